"""A seal for safetensors files: a SHA-256 in their own metadata, so that one damaged bit does not go unnoticed.

Weights need none, since they are named by the SHA-256 of their bytes. Snapshots of a training run are replaced under
one name, and a run that went on from a damaged one would end at other weights without anybody knowing.
"""

from __future__ import annotations

import hashlib
import json
import struct

KEY = "sha256"


def digest(content: bytes) -> str:
    """SHA-256 of a safetensors file, hexadecimal, whatever seal it has. Raises ValueError for another kind of file."""
    try:
        (size,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + size])
        header.get("__metadata__", {}).pop(KEY, None)
    except (struct.error, AttributeError, TypeError) as error:
        raise ValueError("not a safetensors file") from error
    of_all = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    of_all.update(memoryview(content)[8 + size :])
    return of_all.hexdigest()


def check(content: bytes) -> None:
    """Raises ValueError for a file that is not what was sealed."""
    found = digest(content)
    (size,) = struct.unpack_from("<Q", content)
    if json.loads(content[8 : 8 + size]).get("__metadata__", {}).get(KEY) != found:
        raise ValueError("its content is not what was written")
