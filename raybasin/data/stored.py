"""What a format opens: labels in memory, images still as they are stored, so that none is decoded that is not used."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from raybasin.data.images import CheckArray, Encoded, HeightWidth, IntArray, PixelArray, size_of
from raybasin.errors import UserError, some
from raybasin.sweep.specs import DataSpec

VALIDATION_SPLITS = ("valid", "validation", "val")
REPORTING_SPLITS = ("test", *VALIDATION_SPLITS)
Labelled = list[tuple[str, int]]
"""Paths of images, each with its label."""


class Shard(NamedTuple):
    """One Parquet file, and where its rows stand in the split."""

    path: Path
    column: str
    """That of the encoded images, such as `img.bytes`."""
    first_row: int
    n_rows: int


@dataclass(frozen=True, eq=False)
class PixelSplit:
    """A split stored as pixels: [N, H, W] grey or [N, H, W, 3]."""

    pixels: PixelArray
    labels_N: IntArray

    def read(self, index_n: IntArray) -> Iterator[Encoded]:
        for position in index_n.tolist():
            yield f"image {position}", self.pixels[position].tobytes()


@dataclass(frozen=True, eq=False)
class EncodedSplit:
    """A split stored as image files; `read` gives the bytes of the images at ascending positions."""

    read: Callable[[IntArray], Iterator[Encoded]]
    labels_N: IntArray
    shards: tuple[Shard, ...] = ()
    """The Parquet files it lies in, where it does: then one image costs the reading of its whole row group."""


Split = PixelSplit | EncodedSplit


@dataclass(frozen=True, eq=False)
class Stored:
    """A data set as a format found it."""

    train: Split
    """With the official validation images, where these are used."""
    test: Split | None
    """None where there are training images alone: one pool, of which the test images are cut."""
    class_names: Sequence[str] | None
    """By label; None where classes have numbers alone."""
    source: str
    """In which format it was found, and where."""
    validation_n: IntArray | None = None
    """Which training images are the official validation images; None where there are none."""
    notes: tuple[str, ...] = ()
    """What lies there and was not read, and why."""


class StoredSplit(NamedTuple):
    """One split alone."""

    split: Split
    class_names: Sequence[str] | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A way in which data sets are stored in a folder. Both functions give None where the folder holds none in this
    format, and raise UserError for files that cannot be read."""

    open: Callable[[Path, DataSpec], Stored | None]
    open_split: Callable[[Path, str], StoredSplit | None] = lambda folder, split: None
    """The split of that name alone, as further evaluation sets need it."""
    nested: bool = False
    """Whether it looks into the folder in a folder, and so comes after all that do not."""


@dataclass(frozen=True, eq=False)
class Audit:
    """What one pass over the stored bytes of a split finds out."""

    fingerprint: str
    """SHA-256 of all that is stored, and of the labels."""
    sizes: set[HeightWidth]
    """The image sizes: one, or two where sizes differ."""
    lengths_N: IntArray
    """Of each image as it is stored, in bytes."""
    checks_N: CheckArray


def audit(split: Split) -> Audit:
    """Reads all of `split`. Sizes of encoded images are as their headers tell them. Raises UserError."""
    n = len(split.labels_N)
    lengths_N, checks_N = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.uint32)
    sizes: set[HeightWidth] = set()
    if encoded := isinstance(split, EncodedSplit):
        digest = hashlib.sha256(b"encoded")
    else:
        digest = hashlib.sha256(f"pixels {split.pixels.shape}".encode())
        sizes.add(split.pixels.shape[1:3])
    for position, (where, content) in enumerate(split.read(np.arange(n))):
        lengths_N[position], checks_N[position] = len(content), zlib.crc32(content)
        if encoded:
            if not content:
                raise UserError(f"{where}: is empty; replace it or take it out")
            digest.update(len(content).to_bytes(8, "little"))
            if len(sizes) < 2:  # a second size settles it, and headers are the slow part
                sizes.add(size_of(where, content))
        digest.update(content)
    digest.update(split.labels_N.astype("<i8").tobytes())
    return Audit(digest.hexdigest(), sizes, lengths_N, checks_N)


def choose_splits(there: Callable[[str], object], spec: DataSpec) -> tuple[str | None, str | None]:
    """The names of the official validation split, where `spec` asks for it, and of the split that is reported on (the
    first that is `there`), which is then no validation split."""
    reporting = next(filter(there, REPORTING_SPLITS), None)
    validation = next(filter(there, VALIDATION_SPLITS), None)
    return (validation if spec.validation == "official" and validation != reporting else None), reporting


def split_of_files(labelled: Labelled) -> EncodedSplit:
    labels_N = np.asarray([label for _, label in labelled], dtype=np.int64)
    # As one Arrow buffer, which processes of a machine share where it travels through shared memory; names that are no
    # UTF-8 are kept as the file system has them.
    paths = pa.array([os.fsencode(path) for path, _ in labelled], pa.large_binary())
    return EncodedSplit(partial(_read_files, paths), labels_N)


def _read_files(paths: pa.Array[Any], index_n: IntArray) -> Iterator[Encoded]:
    for position in index_n.tolist():
        path = os.fsdecode(paths[position].as_py())
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot read the image: {error.strerror}") from error
        yield path, content


def folders_in(folder: Path) -> list[str]:
    """The names of those that are not hidden; none where there is no such folder."""
    return [one.name for one in entries(folder) if os.path.isdir(one.path) and not one.name.startswith(".")]


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What lies in `folder`, by name; nothing where there is no such folder."""
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as found:
        return sorted(found, key=lambda entry: entry.name)


def counted(things: Sequence[object], noun: str) -> str:
    return f"{len(things):,} {noun}{'' if len(things) == 1 else 's'}"


def not_read(names: Iterable[str]) -> tuple[str, ...]:
    """The note that names what lies there and was not read."""
    listed = sorted(names)
    return (f"not read: {some(listed, 5)}",) if listed else ()
