"""A seal for safetensors files whose name is not their SHA-256, as that of weights is: one in their own metadata. A run
that went on from a damaged snapshot would end at other weights without anybody knowing.
"""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

KEY = "sha256"


def header(content: bytes) -> tuple[dict[str, str], dict[str, Any], memoryview]:
    """Of a safetensors file the metadata, what it says of each tensor by name, and the bytes of the tensors.

    A file is 8 bytes that give the header's length, the header as JSON, then the tensors. Raises ValueError for another
    kind of file.
    """
    try:
        (size,) = struct.unpack_from("<Q", content)
        tensors = dict(json.loads(content[8 : 8 + size]))
        return dict(tensors.pop("__metadata__", {})), tensors, memoryview(content)[8 + size :]
    except (struct.error, TypeError, ValueError, RecursionError) as error:
        raise ValueError("not a safetensors file") from error


def digest(content: bytes) -> str:
    """SHA-256 of a safetensors file, hexadecimal, whatever seal it has. Raises ValueError for another kind of file."""
    metadata, tensors, data = header(content)
    metadata.pop(KEY, None)
    of_all = hashlib.sha256(json.dumps({"__metadata__": metadata, **tensors}, sort_keys=True).encode())
    of_all.update(data)
    return of_all.hexdigest()


def check(content: bytes) -> None:
    """Raises ValueError for a file that is not what was sealed."""
    if header(content)[0].get(KEY) != digest(content):
        raise ValueError("its content is not what was written")
