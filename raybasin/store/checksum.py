"""A seal for safetensors files: a SHA-256 in their own metadata, so that one damaged bit does not go unnoticed.

Weights need none, since they are named by the SHA-256 of their bytes. Snapshots of a training run are replaced under
one name, and a run that went on from a damaged one would end at other weights without anybody knowing.
"""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

KEY = "sha256"


def digest(content: bytes) -> str:
    """SHA-256 of a safetensors file, hexadecimal, whatever seal it has. Raises ValueError for another kind of file."""
    entries, size = _parsed(content)
    entries.get("__metadata__", {}).pop(KEY, None)
    of_all = hashlib.sha256(json.dumps(entries, sort_keys=True).encode())
    of_all.update(memoryview(content)[8 + size :])
    return of_all.hexdigest()


def check(content: bytes) -> None:
    """Raises ValueError for a file that is not what was sealed."""
    if header(content).get("__metadata__", {}).get(KEY) != digest(content):
        raise ValueError("its content is not what was written")


def header(content: bytes) -> dict[str, Any]:
    """The header of a safetensors file: where each tensor lies, by name, and its strings under `__metadata__`.

    Raises ValueError for another kind of file.
    """
    return _parsed(content)[0]


def _parsed(content: bytes) -> tuple[dict[str, Any], int]:
    """The header, and the bytes it takes."""
    try:
        (size,) = struct.unpack_from("<Q", content)
        entries = json.loads(content[8 : 8 + size])
    except struct.error as error:
        raise ValueError("not a safetensors file") from error
    if not isinstance(entries, dict) or not isinstance(entries.get("__metadata__", {}), dict):
        raise ValueError("not a safetensors file")
    return entries, size
