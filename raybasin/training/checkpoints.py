"""What a file of weights holds: read without running code, whatever wrote it, and taken out of what stands around it.

A training script's file holds more than one set of weights (raw and averaged ones, an optimizer's), and things that
are no weights. `read` gives the sets in the order in which they are to be tried; `models` sees which of them fits.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import types
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from raybasin.errors import UserError, is_out_of_memory, one_line, some

INDEX = ".index.json"
PREFERRED = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Where timm's loader looks, in its order: the first that is there is taken, whatever else there is."""
MAX_DEPTH = 3
ZIP = b"PK\x03\x04"
MAX_INDEX_BYTES = 100_000_000


@dataclass(frozen=True)
class Weights:
    """One set of tensors by name. `key` says where in the file it stood ("" for the file itself), `versions` are those
    of the modules, as torch keeps them, and `others` the keys of the sets that are not tried."""

    tensors: Mapping[str, Tensor]
    key: str = ""
    versions: Mapping[str, Any] | None = None
    others: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    """Names of entries that are no tensors."""


def _dict(*args: object) -> dict[object, object]:
    return {}


_ALLOWED: list[Any] = [
    # Plain values.
    *((kind, f"builtins.{kind.__name__}") for kind in (bool, int, float, str, bytes, list, tuple, dict)),
    argparse.Namespace, types.SimpleNamespace, datetime.date, datetime.datetime, datetime.timedelta,
    # What only looks like more: each becomes a plain value.
    (_dict, "collections.defaultdict"),
    (str, "torch.torch_version.TorchVersion"),
    *((dict, f"{module}.AttributeDict") for module in (
        "pytorch_lightning.utilities.parsing", "lightning.pytorch.utilities.parsing",
        "lightning_fabric.utilities.data", "lightning.fabric.utilities.data",
    )),
    *((pure, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for pure, name in (
        (PurePosixPath, "PurePosixPath"), (PurePosixPath, "PosixPath"),
        (PureWindowsPath, "PureWindowsPath"), (PureWindowsPath, "WindowsPath"),
    )),
    # numpy's numbers and arrays, by their names in numpy 1 and 2.
    np.ndarray, np.dtype,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__ if name != "ObjectDType"),
    *((value.__reduce__()[0], f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")
      for name, value in (("scalar", np.float64(0)), ("_reconstruct", np.zeros(0)))),
]  # fmt: skip
"""What a PyTorch file may hold beside tensors: types that only keep values. None of them runs code of the file's."""

_NOT_WEIGHTS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the weights; `git lfs pull` fetches them"),
    (b"<!doctype", "is a web page, not weights; download the file itself"),
    (b"<html", "is a web page, not weights; download the file itself"),
    (b"\x89hdf", "is an HDF5 file, as Keras writes them; weights are read from safetensors or PyTorch files"),
    (b"\x93numpy", "is a NumPy array; weights are read from safetensors or PyTorch files"),
    (b"\x1f\x8b", "is compressed; unpack it first"),
    (b"bzh", "is compressed; unpack it first"),
    (b"\xfd7zxz", "is compressed; unpack it first"),
    (b"gguf", "is a GGUF file; weights are read from safetensors or PyTorch files"),
)
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_BLOCKED = re.compile(r"(?:Unsupported global:|unsupported) GLOBAL (\S+)")
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.(safetensors|bin)$")


def read(entry: str) -> tuple[Weights, ...]:
    """The sets of weights in a file, the first to be tried first; more than one only where nothing in the file says
    which is meant. An index of parts is read as one file. Raises UserError that names the cause."""
    path = Path(entry).expanduser()
    if path.is_dir():
        raise UserError(f"checkpoint {entry}: is a folder, not a file; its name must not be that of a timm model")
    if not path.is_file():
        raise UserError(f"checkpoint {entry}: no such file; name one with --checkpoint FILE or in model.pretrained")
    loaded = _joined(path, entry) if path.name.endswith(INDEX) else _loaded(path, entry)
    found = tuple(_sets(loaded))
    if not found:
        held = f", but {_held(loaded)}" if not isinstance(loaded, Mapping) or loaded else ""
        raise UserError(f"checkpoint {entry}: holds no state dict (a mapping of names to tensors){held}")
    return found


def parts(names: list[str]) -> tuple[list[str], list[str]]:
    """Of the files in a folder: those that are a checkpoint each, an index standing for its parts; and the parts of
    which there is no index."""
    indices = [name for name in names if name.endswith(f".safetensors{INDEX}")]
    stems = {name.removesuffix(f".safetensors{INDEX}") for name in indices}
    whole, lost = list(indices), []
    for name in names:
        part = _PART.search(name)
        if not name.endswith(".safetensors"):
            continue
        if part is None or int(part[2]) == 1:
            whole.append(name)
        elif name[: part.start()] not in stems:
            lost.append(name)
    return sorted(whole), lost


# Files


def _loaded(path: Path, entry: str) -> object:
    if (part := _PART.search(path.name)) and int(part[2]) > 1:
        index = f"{path.name[: part.start()]}.{part[3]}{INDEX}"
        hint = f"name {index} instead" if (path.parent / index).is_file() else f"{index}, which joins them, is missing"
        raise UserError(f"checkpoint {entry}: is one of {int(part[2])} parts; {hint}")
    return _content(path, entry)


def _content(path: Path, entry: str) -> object:
    """What a single file holds, by what it is rather than by what it is called."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
        _refuse_what_is_plain(head, path, entry)
        if head[8:9] == b"{" and head[:4] != ZIP:
            return safetensors.torch.load_file(path)
        if head[:4] != ZIP and head[:1] != b"\x80":
            raise ValueError("it begins as neither of them does")
        # The set of allowed types is torch's own and global; it is put back. Of a path torch would look at the ending.
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")  # they are for whoever writes such files
            return torch.load(file, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # damaged files make the readers raise nearly anything
        if is_out_of_memory(error):
            raise UserError(f"checkpoint {entry}: there is not enough memory to read it") from error
        raise UserError(
            f"checkpoint {entry}: cannot be read as safetensors or as plain PyTorch weights ({_why(error, path)})"
        ) from error


def _refuse_what_is_plain(head: bytes, path: Path, entry: str) -> None:
    if not head:
        raise UserError(f"checkpoint {entry}: is empty")
    said = next((said for magic, said in _NOT_WEIGHTS if head.lstrip().lower().startswith(magic)), None)
    if said:
        raise UserError(f"checkpoint {entry}: {said}")
    if head[:4] != ZIP:
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] or name for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ValueError("the file is cut short or damaged") from error
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise UserError(
            f"checkpoint {entry}: is a TorchScript archive, which is a program; save the module's state_dict() instead"
        )
    if names and all(name.endswith(".npy") for name in names):
        raise UserError(
            f"checkpoint {entry}: is a NumPy archive; load it into its network with timm, and save its state dict"
        )


def _why(error: Exception, path: Path) -> str:
    """The cause in a line, without advice on how to run a file's code after all."""
    text = _ESCAPES.sub("", str(error))
    if blocked := _blocked(text, path):
        return (
            f"it holds {some(blocked, 3)}, which may run code and is not loaded; where you trust the file, save its "
            "state dict alone, or as safetensors"
        )
    return without_advice(text.partition("WeightsUnpickler error: ")[2] or text, 160) or type(error).__name__


def without_advice(text: str, most: int) -> str:
    """The first line of a reader's complaint, less what says how to run a file's code after all."""
    line = next((line.strip() for line in _ESCAPES.sub("", text).splitlines() if line.strip()), "")
    said = [s for s in re.split(r"(?<=[.!])\s+", line) if not re.search("weights_only|safe_globals|unsafe", s)]
    return one_line(" ".join(said), most)


def _blocked(text: str, path: Path) -> list[str]:
    """The names of the types that a PyTorch file holds and that are not read."""
    found = _BLOCKED.search(text)
    if not found:
        return []
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # it reads only the newer of torch's two formats, and whole files
        names = []
    return [one_line(name, 80) for name in sorted(names) or [found[1]]]


def _joined(path: Path, entry: str) -> dict[str, Tensor]:
    """The tensors of all parts that an index names, which lie beside it."""
    try:
        with open(path, "rb") as file:
            files = json.loads(file.read(MAX_INDEX_BYTES))["weight_map"].values()
        names = sorted({str(name) for name in files})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"checkpoint {entry}: is not an index of parts ({type(error).__name__})") from error
    joined: dict[str, Tensor] = {}
    for name in names:
        part = path.parent / name
        if Path(name).name != name:
            raise UserError(f"checkpoint {entry}: names '{one_line(name, 80)}', which does not lie beside it")
        if not part.is_file():
            raise UserError(f"checkpoint {entry}: its part {one_line(name, 80)} is missing")
        content = _content(part, f"{entry}: {name}")
        joined |= content if isinstance(content, dict) else {}
    return joined


# What stands around weights


def _sets(loaded: object) -> Iterator[Weights]:
    """A file's sets of weights: the one that timm would take, else all that there are."""
    every = [key for key in loaded if _tensors(loaded[key])] if isinstance(loaded, Mapping) else []
    found = list(_below(loaded, "", 0))
    top = found[0].key.partition(".")[0] if len(found) == 1 else ""
    for one in found:
        yield Weights(one.tensors, one.key, one.versions, tuple(k for k in every if top and k != top), one.beside)


def _below(loaded: object, key: str, depth: int) -> Iterator[Weights]:
    if not isinstance(loaded, Mapping) or depth > MAX_DEPTH:
        return
    for name in PREFERRED:
        if isinstance(loaded.get(name), Mapping):
            found = list(_below(loaded[name], _joined_key(key, name), depth + 1))
            if found:
                yield from found
                return
    tensors = _tensors(loaded)
    if tensors:
        beside = tuple(str(name) for name, value in loaded.items() if name not in tensors)
        yield Weights(tensors, key, getattr(loaded, "_metadata", None), beside=beside)
    for name, value in loaded.items():
        if isinstance(name, str):
            yield from _below(value, _joined_key(key, name), depth + 1)


def _joined_key(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _tensors(value: object) -> dict[str, Tensor]:
    if not isinstance(value, Mapping):
        return {}
    return {name: tensor for name, tensor in value.items() if isinstance(name, str) and isinstance(tensor, Tensor)}


def _held(loaded: object) -> str:
    if isinstance(loaded, Mapping):
        return f"keys such as {one_line(some([str(key) for key in loaded], 3), 100)}"
    return f"a {type(loaded).__name__}"
