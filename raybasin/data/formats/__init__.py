"""The formats in which data sets lie in folders, and the way from `data` of a sweep file to the stored images.

A format is a function `open(folder, spec) -> Stored | None`, and its entry in `FORMATS`. No name that is found inside a
file leads out of the data folder (links in an image folder are the user's own, and are followed), and nothing is
unpickled but torchvision's own CIFAR files, after torchvision has checked their MD5 sums.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np

from raybasin.data import downloads, torchvision_sets
from raybasin.data.formats import image_folder, parquet
from raybasin.data.images import IMAGE_SUFFIXES
from raybasin.data.stored import REPORTING_SPLITS, Format, PixelSplit, Stored, StoredSplit, counted, entries, folders_in
from raybasin.data.torchvision_sets import TORCHVISION
from raybasin.errors import UserError, nearest, one_line, some
from raybasin.sweep.specs import DataSpec

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
FORMATS: tuple[Format, ...] = (
    Format(parquet.open, parquet.open_split),
    Format(image_folder.open, image_folder.open_split),
    Format(torchvision_sets.open),  # late, since torchvision takes seconds to import
    Format(partial(parquet.open, nested=True), partial(parquet.open_split, nested=True), nested=True),
)
"""In the order in which they are tried: the first that finds data in a folder reads them."""


def open_source(spec: DataSpec) -> Stored:
    """What `spec.dir` holds or, where it is None, the built-in, cached or downloaded set. Raises UserError."""
    if spec.name == "digits":
        if spec.dir is not None:
            raise UserError("data.dir: digits is built in and takes no folder; give the images there another name")
        return digits()
    with readable():
        if spec.dir is not None:
            folder = existing_folder("data.dir", spec.dir)
            # A folder of data sets will do as well as the folder of the set itself.
            return _open(spec, folder, folder / spec.name) or _nothing_in(folder, spec.name)
        if spec.name not in TORCHVISION:
            raise UserError(
                f"data.name: unknown data set '{spec.name}'{nearest(spec.name, ['digits', *TORCHVISION])} "
                "(any name will do with --data DIR)"
            )
        folder = downloads.cache_folder() / spec.name
        reason = None if folder.exists() else torchvision_sets.download(TORCHVISION[spec.name], folder)
        if reason is None:
            if found := _open(spec, folder):
                return found
            reason = f"no whole copy in '{folder}' (delete that folder to download it again)"
    raise UserError(
        f"data.name: {spec.name}: {reason}. Three ways to supply images: a network and no --data, for torchvision to "
        "download a set that it knows; `make demo`, which needs no data;\n"
        "or --data DIR (make: DATA=DIR), where DIR holds torchvision's own files of the set (whole: MD5 sums are "
        "checked), train/<class>/*.jpg with test/ or val/, or train-*.parquet with test-* or valid-*"
    )


@functools.cache
def digits() -> Stored:
    """scikit-learn's digits: 1,797 images of 8 x 8 grey pixels in 0..16, scaled to 0..255; one pool."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    pixels = (loaded.images.astype(np.int64) * 255 + 8) // 16
    split = PixelSplit(pixels.astype(np.uint8), loaded.target.astype(np.int64))
    return Stored(split, None, None, source="scikit-learn's digits")


def _open(spec: DataSpec, *folders: Path) -> Stored | None:
    for one, folder in itertools.product(FORMATS, folders):
        if folder.is_dir() and (found := one.open(folder, spec)):
            return replace(found, source=one_line(found.source), notes=tuple(map(one_line, found.notes)))
    return None


def open_split(key: str, folder: Path, name: str | None) -> StoredSplit:
    """The split `name` alone: Parquet files in `folder` (or in its `data/`, or its only folder), or `<name>/<class>/*`.
    None stands for the first reporting split or, where there is none, for `<class>/*` in `folder`. Raises UserError
    where there is no such split, or files cannot be read; `key` of the sweep file names the folder."""
    names = REPORTING_SPLITS if name is None else (name,)
    with readable():
        tries = sorted(itertools.product(names, FORMATS), key=lambda pair: pair[1].nested)
        found = next(filter(None, (one.open_split(folder, split) for split, one in tries)), None)
        if found is None and name is None and not folders_in(folder / "train"):
            found = image_folder.open_split(folder, "")
    if found is None:
        wanted = name or "test"
        alone = "" if name else ", or <class>/*.jpg alone; `split: NAME` takes another part"
        raise UserError(
            f"{key}: '{folder}' holds no part {wanted}: {wanted}/<class>/*.jpg or {wanted}-*.parquet{alone}"
        )
    if not len(found.split.labels_N):
        raise UserError(f"{key}: '{folder}' holds no images")
    return found._replace(notes=tuple(map(one_line, found.notes)))


def existing_folder(key: str, path: str) -> Path:
    """The absolute path of a folder that `key` of a sweep file names. Raises UserError where there is none."""
    if "://" in path:
        raise UserError(f"{key}: '{path}' is an address; data are read from a disk that every machine mounts")
    expanded = os.path.expanduser(path)
    folder = Path(expanded).absolute()
    with readable():
        if folder.is_dir():
            return folder
        if folder.exists():
            raise UserError(f"{key}: '{folder}' is a file; name the folder in which the data are")
    relative = "" if os.path.isabs(expanded) else f" ('{path}' counts from where the command is run)"
    raise UserError(f"{key}: there is no folder '{folder}'{relative}")


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """A folder that may not be looked into, or whose name cannot be, is a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or 'the data'}: cannot be read: {error.strerror or error}") from error


def _nothing_in(folder: Path, name: str) -> NoReturn:
    """UserError: what the folder holds in which no format finds the data set `name`, and what is looked for."""
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
            yield (
                f"If {some(folders, 3)} are classes, move them into a folder train; where there is no folder test, "
                "data.train_images says how many are for training (raybasin init sets it)"
            )
