"""The formats in which data sets lie in folders, and the way from `data` of a sweep file to the stored images.

A format is a file here with a function `open(folder, spec) -> Stored | None`, and its entry in `FORMATS`.

No name that is found inside a file leads out of the data folder (links in an image folder are the user's own, and are
followed), and nothing is unpickled but torchvision's own CIFAR files, after torchvision has checked their MD5 sums.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from raybasin.data import downloads
from raybasin.data.formats import digits, image_folder, missing, parquet, parquet_files, torchvision
from raybasin.data.stored import REPORTING_SPLITS, Format, Stored, StoredSplit, folders_in
from raybasin.data.torchvision_sets import TORCHVISION
from raybasin.errors import UserError, nearest, one_line
from raybasin.sweep.specs import DataSpec

FORMATS: tuple[Format, ...] = (
    Format(parquet.open, parquet.open_split),
    Format(image_folder.open, image_folder.open_split),
    Format(torchvision.open),  # late, since torchvision takes seconds to import
    Format(
        partial(parquet.open, find=parquet_files.only_folder),
        partial(parquet.open_split, find=parquet_files.only_folder),
        nested=True,
    ),
)
"""In the order in which they are tried: the first that finds data in a folder reads them."""


def open_source(spec: DataSpec) -> Stored:
    """What `spec.dir` holds or, where it is None, the built-in, cached or downloaded set. Raises UserError."""
    if spec.name == "digits":
        if spec.dir is not None:
            raise UserError("data.dir: digits is built in and takes no folder; give the images there another name")
        return digits.open()
    with readable():
        if spec.dir is not None:
            folder = existing_folder("data.dir", spec.dir)
            # A folder of data sets will do as well as the folder of the set itself.
            return _open(spec, folder, folder / spec.name) or missing.in_folder(spec.name, folder)
        if spec.name not in TORCHVISION:
            raise UserError(
                f"data.name: unknown data set '{spec.name}'{nearest(spec.name, ['digits', *TORCHVISION])} "
                "(any name will do with --data DIR)"
            )
        folder = downloads.cache_folder() / spec.name
        if not folder.exists() and (reason := downloads.download(TORCHVISION[spec.name], folder)):
            missing.on_this_machine(spec.name, reason)
        return _open(spec, folder) or missing.on_this_machine(
            spec.name, f"no whole copy in '{folder}' (delete that folder to download it again)"
        )


def _open(spec: DataSpec, *folders: Path) -> Stored | None:
    for one, folder in itertools.product(FORMATS, folders):
        if folder.is_dir() and (found := one.open(folder, spec)):
            return replace(found, source=one_line(found.source), notes=tuple(map(one_line, found.notes)))
    return None


def open_split(folder: Path, name: str | None) -> StoredSplit | None:
    """One split alone.

    Args:
        folder: holds Parquet files of that split (or its `data/` does, or its only folder) or `<split>/<class>/*`.
        name: of the split; None for the first reporting split or, where there is none, for `<class>/*` in `folder`.

    Returns:
        None where there is no such split. Raises UserError for files that cannot be read.
    """
    names = REPORTING_SPLITS if name is None else (name,)
    with readable():
        tries = sorted(itertools.product(names, FORMATS), key=lambda pair: pair[1].nested)
        found = next(filter(None, (one.open_split(folder, split) for split, one in tries)), None)
        if found is None and name is None and not folders_in(folder / "train"):
            found = image_folder.open_split(folder, "")
    return found and found._replace(notes=tuple(map(one_line, found.notes)))


def existing_folder(key: str, path: str) -> Path:
    """The absolute path of a folder that `key` of a sweep file names. Raises UserError where there is none."""
    if not path:
        raise UserError(f"{key}: is empty; name a folder, or leave it out")
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


@contextmanager
def readable() -> Iterator[None]:
    """A folder that may not be looked into, or whose name cannot be, is a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or 'the data'}: cannot be read: {error.strerror or error}") from error
