"""What a file of weights holds: read without running code, whatever wrote it, and taken out of what stands around it.

A training script's file holds more than one set of weights (raw and averaged ones, an optimizer's), and things that
are no weights. `read` gives the sets in the order in which they are to be tried; `fitting` sees which of them fits.
timm's own loader is not used: it refuses files of its own training script, takes one set without a word, and advises to
run a file's code.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import re
import types
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from raybasin.errors import UserError, is_out_of_memory, one_line, some

INDEX = ".index.json"
PART = re.compile(r"-(\d{5})-of-(\d{5})\.(safetensors|bin)$")
PREFERRED = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Where timm's loader looks, in its order: the first that is there is taken, whatever else there is."""
MAX_DEPTH = 3  # so many keys a set of weights may lie under
ZIP = b"PK\x03\x04"
MAX_INDEX_BYTES = 100_000_000


@dataclass(frozen=True)
class Weights:
    """One set of tensors by name."""

    tensors: Mapping[str, Tensor]
    key: str = ""  # where in the file it stood, "" for the file itself
    versions: Mapping[str, Any] | None = None  # of the modules, as torch keeps them
    others: tuple[str, ...] = ()  # keys of the sets that are not tried
    beside: tuple[str, ...] = ()  # names of entries that are no tensors


@contextlib.contextmanager
def naming(entry: str) -> Iterator[None]:
    """Puts the checkpoint's name in front of what is wrong with it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"checkpoint {entry}: {error}") from error


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

_ELSEWHERE = "weights are read from safetensors or PyTorch files"
_NOT_WEIGHTS: tuple[tuple[bytes | tuple[bytes, ...], str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the weights; `git lfs pull` fetches them"),
    ((b"<!doctype", b"<html"), "is a web page, not weights; download the file itself"),
    ((b"\x1f\x8b", b"bzh", b"\xfd7zxz"), "is compressed; unpack it first"),
    (b"\x89hdf", f"is an HDF5 file, as Keras writes them; {_ELSEWHERE}"),
    (b"\x93numpy", f"is a NumPy array; {_ELSEWHERE}"),
    (b"gguf", f"is a GGUF file; {_ELSEWHERE}"),
)
"""How a file begins, in small letters, that is plainly something else; and what is said of it."""
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_BLOCKED = re.compile(r"(?:Unsupported global:|unsupported) GLOBAL (\S+)")


def read(entry: str) -> tuple[Weights, ...]:
    """The sets of weights in the file `entry`, the first to be tried first.

    There is more than one only where nothing in the file says which is meant. An index of parts is read as one file.
    Raises UserError that names the cause.
    """
    path = Path(entry).expanduser()
    with naming(entry):
        if path.is_dir():
            raise UserError("is a folder, not a file; its name must not be that of a timm model")
        if not path.is_file():
            raise UserError("no such file; name one with --checkpoint FILE or in model.pretrained")
        part = PART.search(path.name)
        if part and int(part[2]) > 1:
            index = f"{path.name[: part.start()]}.{part[3]}{INDEX}"
            is_there = (path.parent / index).is_file()
            hint = f"name {index} instead" if is_there else f"{index}, which joins them, is missing"
            raise UserError(f"is one of {int(part[2])} parts; {hint}")
        loaded = _joined(path) if path.name.endswith(INDEX) else _content(path)
        found = _sets(loaded)
        if not found:
            held = f", but a {type(loaded).__name__}"
            if isinstance(loaded, Mapping):
                held = f", but keys such as {one_line(some(list(map(str, loaded)), 3), 100)}" if loaded else ""
            raise UserError(f"holds no state dict (a mapping of names to tensors){held}")
    top = found[0].key.partition(".")[0]
    if len(found) > 1 or not top or not isinstance(loaded, Mapping):
        return tuple(found)
    return (replace(found[0], others=tuple(key for key in loaded if key != top and _tensors(loaded[key]))),)


def _joined(path: Path) -> dict[str, Tensor]:
    """The tensors of all parts that an index names, which lie beside it."""
    try:
        with open(path, "rb") as file:
            files = json.loads(file.read(MAX_INDEX_BYTES))["weight_map"].values()
        names = sorted({str(name) for name in files})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"is not an index of parts ({type(error).__name__})") from error
    joined: dict[str, Tensor] = {}
    for name in names:
        if Path(name).name != name:
            raise UserError(f"names '{one_line(name, 80)}', which does not lie beside it")
        if not (path.parent / name).is_file():
            raise UserError(f"its part {one_line(name, 80)} is missing")
        try:
            content = _content(path.parent / name)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        joined |= content if isinstance(content, dict) else {}
    return joined


def _content(path: Path) -> object:
    """What a single file holds, by what it is rather than by what it is called."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
        _refuse_what_is_plain(head, path)
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
            raise UserError("there is not enough memory to read it") from error
        raise UserError(f"cannot be read as safetensors or as plain PyTorch weights ({_why(error, path)})") from error


def _refuse_what_is_plain(head: bytes, path: Path) -> None:
    """Raises UserError for a file that plainly holds something else, ValueError for a damaged archive."""
    if not head:
        raise UserError("is empty")
    for magic, said in _NOT_WEIGHTS:
        if head.lstrip().lower().startswith(magic):
            raise UserError(said)
    if head[:4] != ZIP:
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] or name for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ValueError("the file is cut short or damaged") from error
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise UserError("is a TorchScript archive, which is a program; save the module's state_dict() instead")
    if names and all(name.endswith(".npy") for name in names):
        raise UserError("is a NumPy archive; load it into its network with timm, and save its state dict")


def _why(error: Exception, path: Path) -> str:
    """The cause in a line, without advice on how to run a file's code after all."""
    text = _ESCAPES.sub("", str(error))
    if found := _BLOCKED.search(text):
        try:
            with torch.serialization.safe_globals(_ALLOWED):
                names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        except Exception:  # it reads only the newer of torch's two formats, and whole files
            names = []
        return (
            f"it holds {some([one_line(name, 80) for name in names or [found[1]]], 3)}, which may run code and is not "
            "loaded; where you trust the file, save its state dict alone, or as safetensors"
        )
    return without_advice(text.partition("WeightsUnpickler error: ")[2] or text, 160) or type(error).__name__


def without_advice(text: str, most: int) -> str:
    """The first line of a reader's complaint, less what says how to run a file's code after all."""
    line = next((line.strip() for line in _ESCAPES.sub("", text).splitlines() if line.strip()), "")
    said = [s for s in re.split(r"(?<=[.!])\s+", line) if not re.search("weights_only|safe_globals|unsafe", s)]
    return one_line(" ".join(said), most)


def _sets(loaded: object, key: str = "", depth: int = 0) -> list[Weights]:
    """The set that timm would take from what stands under `key`, else all the sets that stand there."""
    if not isinstance(loaded, Mapping) or depth > MAX_DEPTH:
        return []
    under = f"{key}." if key else ""
    for name in PREFERRED:
        if preferred := _sets(loaded.get(name), f"{under}{name}", depth + 1):
            return preferred
    found = []
    if tensors := _tensors(loaded):
        beside = tuple(str(name) for name in loaded if name not in tensors)
        found.append(Weights(tensors, key, getattr(loaded, "_metadata", None), beside=beside))
    for name, value in loaded.items():
        if isinstance(name, str):
            found += _sets(value, f"{under}{name}", depth + 1)
    return found


def _tensors(value: object) -> dict[str, Tensor]:
    if not isinstance(value, Mapping):
        return {}
    return {name: tensor for name, tensor in value.items() if isinstance(name, str) and isinstance(tensor, Tensor)}
