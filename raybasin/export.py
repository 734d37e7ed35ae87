"""A soup as one file that timm and plain PyTorch load, with the facts of its making in its metadata. No torch needed:
the weights are copied, and only the header is written anew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raybasin.errors import UserError
from raybasin.store import Folder

COLUMNS = {"uniform": "soup_sha256", "greedy": "greedy_soup_sha256"}


def soup(
    folder: Folder,
    cell: Mapping[str, Any],
    kind: str,
    sweep: Mapping[str, Any],
    class_names: list[str],
    path: str | Path,
) -> str:
    """Writes the soup of `cell` to `path` and returns how to load it.

    Raises UserError for a soup that was not made, weights that are gone, or a path that cannot be written.
    """
    sha256 = cell[COLUMNS[kind]]
    if not isinstance(sha256, str):
        raise UserError(f"cell {cell['cell_id']}: has no {kind} soup; add {kind} to soups in the sweep file")
    try:
        content = folder.get(f"weights/{sha256}.safetensors")
    except FileNotFoundError as error:
        raise UserError(
            f"{folder.root}: weights/{sha256}.safetensors is gone; `raybasin check` tells what else"
        ) from error
    name = sweep["model"]["name"]
    facts = {
        "format": "pt", "model": name, "num_classes": str(len(class_names)), "classes": json.dumps(class_names),
        "kind": f"{kind}_soup", "cell_id": str(cell["cell_id"]), "method": str(cell["method"]),
        "checkpoint": str(cell["checkpoint"]), "lr_ratio": f"{cell['lr_ratio']:g}",
        "cycle_ratio": f"{cell['cycle_ratio']:g}", "replicate": str(cell["replicate"]),
        "n_members": str(cell["n_members"]), "weights_sha256": sha256, "sweep": str(cell["sweep"]),
        "image_size": str(sweep["data"]["image_size"]),
    }  # fmt: skip
    target = Path(path).expanduser()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(with_metadata(content, facts))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another file with -o") from error
    return f"timm.create_model({name!r}, num_classes={len(class_names)}, checkpoint_path={str(path)!r})"


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """The same safetensors file with `metadata` in its header.

    A file is 8 bytes that give the header's length, the header as JSON, then the tensors; offsets count from the
    header's end, so it can be replaced. Its length is a multiple of 8, which keeps the tensors aligned.
    """
    length = int.from_bytes(content[:8], "little")
    header = {"__metadata__": dict(metadata), **json.loads(content[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]
