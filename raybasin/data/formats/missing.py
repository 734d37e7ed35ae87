"""Where no data were found: what is there instead, and the way out, as a UserError."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from raybasin.data.images import IMAGE_SUFFIXES
from raybasin.data.stored import REPORTING_SPLITS, counted, entries, folders_in
from raybasin.data.torchvision_sets import TORCHVISION
from raybasin.errors import UserError, some

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def on_this_machine(name: str, reason: str) -> NoReturn:
    """A known set that is neither given as a folder nor cached, and for some `reason` cannot be downloaded."""
    raise UserError(
        f"data.name: {name}: {reason}. Three ways to supply images: a network and no --data, for torchvision to "
        "download a set that it knows; `make demo`, which needs no data;\n"
        "or --data DIR (make: DATA=DIR), where DIR holds torchvision's own files of the set (whole: MD5 sums are "
        "checked), train/<class>/*.jpg with test/ or val/, or train-*.parquet with test-* or valid-*"
    )


def in_folder(name: str, folder: Path) -> NoReturn:
    """A folder in which no format finds the data set `name`: what it holds, and what is looked for."""
    folders = folders_in(folder)
    files = [entry.name for entry in entries(folder) if not entry.name.startswith(".") and entry.name not in folders]
    found = [
        f"{counted(names, noun)} ({some(names, 5)})" for noun, names in (("folder", folders), ("file", files)) if names
    ]
    way = ""
    with contextlib.suppress(OSError):  # of a folder in it that may not be read, nothing is known
        way = next((f". {way}" for way in _ways_out(folder, folders, files)), "")
    own = f", or torchvision's own files of {name} (whole: MD5 sums are checked)" if name in TORCHVISION else ""
    raise UserError(
        f"data.dir: no data in '{folder}': it holds {' and '.join(found) or 'nothing'}{way}.\n"
        f"Looked for, there and in {name}/, are train/<class>/*.jpg with test/ or val/, and train-*.parquet or "
        f"train/*.parquet with test or valid, also in data/ or in a single folder{own}"
    )


def _ways_out(folder: Path, folders: Sequence[str], files: Sequence[str]) -> Iterator[str]:
    """What to do with what people have in place of the formats that are read, the likeliest first."""
    splits = ("train", *REPORTING_SPLITS)
    for name in folders:
        if folders_in(folder / name / "train"):
            yield f"The data may be those in '{folder / name}'; name that folder"
    if "dataset_dict.json" in files or any(name.endswith(".arrow") for name in files):
        yield "It is from save_to_disk of datasets; write each split by its to_parquet, as train.parquet, test.parquet"
    if packed := [name for name in files if name.lower().endswith(ARCHIVES)]:
        yield f"Archives such as {packed[0]} are not read; unpack them"
    if capital := [name for name in folders if name.lower() in splits and name not in splits]:
        yield f"Rename {some(capital)}: names of splits are in lower case"
    if "train" in folders:
        yield "train/ holds no folders of classes; put its images into a folder for each class"
    for name in folders:
        if any(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in entries(folder / name)):
            yield f"If {some(folders, 3)} are classes, move them into a folder train, and set data.train_images"
