"""Where images come from: digits, torchvision, image folders and Parquet, opened as they are stored.

Axes: N images of a stored split, H height, W width, K classes. A lower-case letter is a selection of that axis:
`index_n` holds positions among the N images of a stored split.

A source is opened as `Stored`: labels in memory, images still as stored, so that what a run does not use is never
decoded. Fingerprints are of the stored bytes.

No name that is found inside a file leads out of the data folder (links in an image folder are the user's own, and are
followed), and nothing is unpickled here.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from raybasin import downloads, known
from raybasin.errors import UserError, nearest, some
from raybasin.known import TORCHVISION, Known, Labelled
from raybasin.specs import DataSpec

PixelArray = known.PixelArray
IntArray = known.IntArray
BoolArray = npt.NDArray[np.bool_]
CheckArray = npt.NDArray[np.uint32]
HeightWidth = tuple[int, int]
Encoded = tuple[str, bytes]
"""Where an image is stored, in words for a user, and its bytes as stored."""

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: a few bytes can declare gigabytes of pixels."""
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")
IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label")
VALIDATION_SPLITS = ("valid", "validation", "val")
REPORTING_SPLITS = ("test", *VALIDATION_SPLITS)
STALL_SECONDS = 30.0


# Stored splits: labels in memory, images as they are stored


@dataclass(frozen=True, eq=False)
class Audit:
    """What one pass over the stored bytes of a split finds out.

    `lengths_N` (bytes) and `checks_N` (CRC-32) are of each image as it is stored; empty for a split of pixels.
    """

    fingerprint: str
    sizes: set[HeightWidth]
    """The image sizes: one, or two where sizes differ."""
    lengths_N: IntArray
    checks_N: CheckArray


@dataclass(frozen=True, eq=False)
class PixelSplit:
    """A split stored as pixels: [N, H, W] grey or [N, H, W, 3]."""

    pixels: PixelArray
    labels_N: IntArray

    def audit(self) -> Audit:
        digest = hashlib.sha256(f"pixels {self.pixels.shape}".encode())
        for image in self.pixels:
            digest.update(image.tobytes())
        height, width = self.pixels.shape[1:3]
        none = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint32)
        return Audit(_with_labels(digest, self.labels_N), {(height, width)}, *none)

    def scan(self) -> tuple[str, set[HeightWidth]]:
        """The fingerprint and the one image size."""
        found = self.audit()
        return found.fingerprint, found.sizes


@dataclass(frozen=True, eq=False)
class EncodedSplit:
    """A split stored as image files; `read` gives the bytes of the images at ascending positions."""

    read: Callable[[IntArray], Iterator[Encoded]]
    labels_N: IntArray
    shards: tuple[Shard, ...] = ()
    """The Parquet files it lies in, where it does: then one image costs the reading of its whole row group."""

    def audit(self) -> Audit:
        """Image sizes are as the headers tell them."""
        n = len(self.labels_N)
        digest = hashlib.sha256(b"encoded")
        sizes: set[HeightWidth] = set()
        lengths_N, checks_N = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.uint32)
        for position, (where, content) in enumerate(self.read(np.arange(n))):
            lengths_N[position], checks_N[position] = len(content), zlib.crc32(content)
            digest.update(len(content).to_bytes(8, "little"))
            digest.update(content)
            if len(sizes) < 2:  # a second size settles it, and headers are the slow part
                with open_image(where, content) as image:
                    sizes.add((image.height, image.width))
        return Audit(_with_labels(digest, self.labels_N), sizes, lengths_N, checks_N)

    def scan(self) -> tuple[str, set[HeightWidth]]:
        """The fingerprint, and the image sizes: one, or two where sizes differ."""
        found = self.audit()
        return found.fingerprint, found.sizes


Split = PixelSplit | EncodedSplit


@dataclass(frozen=True, eq=False)
class Stored:
    """What a source holds. `test` is None where the source is one pool; `class_names` goes by stored label."""

    train: Split
    test: Split | None
    class_names: Mapping[int, str]
    validation_N: BoolArray | None = None
    """Which training images are the official validation images; None where there are none."""


def _with_labels(digest: Any, labels_N: IntArray) -> str:
    digest.update(labels_N.astype("<i8").tobytes())
    return str(digest.hexdigest())


def _stored(
    train: Split,
    test: Split | None,
    names: Sequence[str] | None,
    where: str,
    validation_N: BoolArray | None = None,
) -> Stored:
    """`Stored`, with labels checked and classes named: by `names`, else by the numbers that occur."""
    labels = np.unique(np.concatenate([split.labels_N for split in (train, test) if split is not None]))
    if not len(train.labels_N):
        raise UserError(f"{where}: holds no training images")
    if labels[0] < 0:
        raise UserError(f"{where}: holds the label {labels[0]} (unlabelled images?); labels must be 0 or above")
    if names is None:
        return Stored(train, test, {label: str(label) for label in labels.tolist()}, validation_N)
    if labels[-1] >= len(names):
        raise UserError(f"{where}: holds the label {labels[-1]}, but names only {len(names)} classes")
    return Stored(train, test, dict(enumerate(names)), validation_N)


@contextmanager
def open_image(where: str, content: bytes) -> Iterator[Image.Image]:
    """The opened, not yet decoded image; whatever goes wrong with it becomes a UserError that names `where`."""
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{where}: {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read")
            yield image
    except UserError:
        raise
    except Exception as error:  # damaged files make PIL's plug-ins raise nearly anything
        raise UserError(f"{where}: not a readable image ({error}); replace it or take it out") from error


# Opening


def open_source(spec: DataSpec) -> Stored:
    """What `spec.dir` holds or, where it is None, the built-in, cached or downloaded set. Raises UserError."""
    if spec.name == "digits":
        if spec.dir is not None:
            raise UserError("data.dir: digits is built in and takes no folder; give the images there another name")
        return _digits()
    official = spec.validation == "official"
    if spec.dir is not None:
        folder = Path(spec.dir).expanduser()
        # A folder of data sets will do as well as the folder of the set itself.
        found = _found(spec.name, official, folder, folder / spec.name)
        return found or _missing(spec.name, f"no data in '{folder}'")
    if spec.name not in TORCHVISION:
        raise UserError(
            f"data.name: unknown data set '{spec.name}'{nearest(spec.name, ['digits', *TORCHVISION])} "
            "(any name will do with --data DIR)"
        )
    return _from_cache(spec.name, official)


def _missing(name: str, reason: str) -> NoReturn:
    raise UserError(
        f"data.name: {name}: {reason}. Three ways to supply images: a network and no --data, for torchvision to "
        "download a set that it knows; `make demo`, which needs no data;\n"
        "or --data DIR (make: DATA=DIR), where DIR holds torchvision's own files of the set (whole: MD5 sums are "
        "checked), train/<class>/*.jpg with test/ or val/, or train-*.parquet with test-* or valid-*"
    )


def _found(name: str, official: bool, *folders: Path) -> Stored | None:
    """The data set that one of `folders` holds in one of the three layouts, or None.

    torchvision's official validation images always join the training images; those of the other layouts do where
    `official` validation images are asked for.
    """
    layouts: tuple[Callable[[Path], Stored | None], ...] = (
        lambda folder: _parquet(folder, official),
        lambda folder: _image_folder(folder, official),
        lambda folder: _torchvision(name, folder),  # last: torchvision takes seconds to import
    )
    found = (layout(folder) for layout in layouts for folder in folders if folder.is_dir())
    return next((stored for stored in found if stored is not None), None)


def _digits() -> Stored:
    """scikit-learn's 1,797 digits, 8 x 8 grey in 0..16, scaled to 0..255; one pool."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images.astype(np.int64) * 255 + 8) // 16
    split = PixelSplit(pixels.astype(np.uint8), digits.target.astype(np.int64))
    return _stored(split, None, None, "digits")


def open_part(folder: Path, part: str | None) -> tuple[EncodedSplit, list[str] | None] | None:
    """One split alone, and the names of its classes where it has any.

    Args:
        folder: holds `<part>-*.parquet` (or its `data/` does) or `<part>/<class>/*`.
        part: None for the first reporting split or, where there is none, for `<class>/*` in `folder` itself.

    Returns:
        None where there is no such split. Raises UserError for files that cannot be read.
    """
    for name in REPORTING_SPLITS if part is None else (part,):
        for place in (folder, folder / "data"):
            if paths := _shard_paths(place, name):
                split, names = _shards(paths)
                return split, _listed_names(place) or names
        if class_names := _class_folders(folder / name):
            return _files(_class_paths(folder / name, class_names)), class_names
    if part is None and not _class_folders(folder / "train") and (class_names := _class_folders(folder)):
        return _files(_class_paths(folder, class_names)), class_names
    return None


# Image folders


def _image_folder(folder: Path, official: bool) -> Stored | None:
    """`train/<class>/*` with `test/`, `valid/` or `val/`, or None; classes are numbered in the order of their names."""
    class_names = _class_folders(folder / "train")
    if not class_names:
        return None
    reporting = next((name for name in REPORTING_SPLITS if _class_folders(folder / name)), None)
    validation = next((name for name in VALIDATION_SPLITS if _class_folders(folder / name)), None)
    if not official or validation == reporting:
        validation = None
    for split in filter(None, (reporting, validation)):
        if other := set(_class_folders(folder / split)) ^ set(class_names):
            raise UserError(
                f"{folder}: train and {split} must hold the same classes; only one of them has {some(sorted(other))}"
            )
    train, val, test = (
        _class_paths(folder / split, class_names) if split else [] for split in ("train", validation, reporting)
    )
    validation_N = _tail(len(train), len(val)) if validation else None
    return _stored(_files(train + val), _files(test) if reporting else None, class_names, str(folder), validation_N)


def _tail(n_train: int, n_val: int) -> BoolArray:
    """True for the last `n_val` of `n_train + n_val` images."""
    return np.arange(n_train + n_val) >= n_train


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _class_paths(folder: Path, class_names: Sequence[str]) -> Labelled:
    return [(path, label) for label, name in enumerate(class_names) for path in sorted(_image_files(folder / name))]


def _image_files(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield os.path.join(parent, name)


def _files(labelled: Labelled) -> EncodedSplit:
    """The split of these paths, each with its label."""
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


# Parquet shards as the Hugging Face hub stores them


@dataclass(frozen=True)
class Shard:
    """One Parquet file, and where its rows stand in the split."""

    path: Path
    column: str
    first_row: int


def _parquet(folder: Path, official: bool) -> Stored | None:
    """`train-*.parquet` with `test-*`, `valid-*` or `val-*`, in `folder` or its `data/`; None where there are none."""
    train_paths = _shard_paths(folder, "train")
    if not train_paths:
        return _parquet(folder / "data", official) if (folder / "data").is_dir() else None
    test_paths, val_paths = (
        next(filter(None, (_shard_paths(folder, name) for name in splits)), [])
        for splits in (REPORTING_SPLITS, VALIDATION_SPLITS)
    )
    if not official or val_paths == test_paths:
        val_paths = []
    train, names = _shards([*train_paths, *val_paths])
    test = _shards(test_paths)[0] if test_paths else None
    n_val = sum(_rows(path) for path in val_paths)
    validation_N = _tail(len(train.labels_N) - n_val, n_val) if val_paths else None
    return _stored(train, test, _listed_names(folder) or names, str(folder), validation_N)


def _rows(path: Path) -> int:
    with _parquet_file(path) as file:
        return int(file.metadata.num_rows)


def _shard_paths(folder: Path, split: str) -> list[Path]:
    return sorted([*folder.glob(f"{split}-*.parquet"), *folder.glob(f"{split}.parquet")])


def _shards(paths: Sequence[Path]) -> tuple[EncodedSplit, list[str] | None]:
    """The split in `paths`, and the class names that its schema gives, if any."""
    shards: list[Shard] = []
    labels: list[IntArray] = []
    names = None
    for path in paths:
        with _parquet_file(path) as file:
            schema = file.schema_arrow
            label = _column(path, schema, LABEL_COLUMNS, pa.types.is_integer, "hold integers")
            image = _column(path, schema, IMAGE_COLUMNS, _has_bytes, "be a struct with the image in `bytes`")
            shards.append(Shard(path, image, first_row=sum(map(len, labels))))
            labels.append(_labels(path, file, label))
            names = names or _schema_names(schema, label)
    return EncodedSplit(partial(_read_rows, shards), np.concatenate(labels), tuple(shards)), names


@contextmanager
def _parquet_file(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot read the Parquet file: {' '.join(str(error).split())}") from error


def _column(
    path: Path, schema: pa.Schema, candidates: Sequence[str], fits: Callable[[pa.DataType], bool], must: str
) -> str:
    """The first of `candidates` that the file has; its type must be one that `fits`, as `must` says in words."""
    name = next((name for name in candidates if name in schema.names), None)
    if name is None:
        raise UserError(f"{path}: has no column {' or '.join(candidates)}; its columns are {some(schema.names)}")
    kind = schema.field(name).type
    if not fits(kind):
        raise UserError(f"{path}: column {name} must {must}, not {kind}")
    return name


def _has_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _labels(path: Path, file: pq.ParquetFile, column: str) -> IntArray:
    labels = file.read(columns=[column]).column(0)
    if labels.null_count:
        raise UserError(f"{path}: column {column} has {labels.null_count:,} rows without a label")
    return labels.cast(pa.int64()).to_numpy()


def _read_rows(shards: Sequence[Shard], index_n: IntArray) -> Iterator[Encoded]:
    """The images of ascending rows, a row group in memory at a time. A `path` stored beside the bytes is not used."""
    for shard in shards:
        with _parquet_file(shard.path) as file:
            rows_n = index_n - shard.first_row
            start = 0
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                chosen = rows_n[np.searchsorted(rows_n, start) : np.searchsorted(rows_n, stop)]
                if len(chosen):
                    column = file.read_row_group(group, columns=[f"{shard.column}.bytes"]).column(0)
                    yield from _row_images(shard.path, pc.struct_field(column, "bytes"), chosen.tolist(), start)
                start = stop


def _row_images(path: Path, contents: pa.ChunkedArray[Any], rows: Sequence[int], start: int) -> Iterator[Encoded]:
    """The images of these rows of the file; `contents` begins at row `start`."""
    for row in rows:
        content, where = contents[row - start].as_py(), f"{path}, row {row}"
        if content is None:
            raise UserError(f"{where}: has no image bytes (a path alone is not followed)")
        yield where, content


def _schema_names(schema: pa.Schema, label: str) -> list[str] | None:
    """The names of the Hugging Face `ClassLabel` in the schema metadata, or None."""
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _listed_names(folder: Path) -> list[str] | None:
    """The names in `classes.json`: a list of names, or of objects with a `name`; None where there is no such file."""
    path = folder / "classes.json"
    if not path.is_file():
        return None
    try:
        entries = json.loads(path.read_bytes())
        names = [entry["name"] if isinstance(entry, dict) else entry for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot read the class names: {error}") from error
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: must be a list of names, or of objects with a name")
    return names


# torchvision


def _torchvision(name: str, folder: Path) -> Stored | None:
    """The set `name` in torchvision's own layout under `folder`, or None where it is not there."""
    found = known.read(name, folder)
    if found is None:
        return None
    validation_N = None
    if found.official:
        validation_N = np.asarray([path in found.official for path, _ in found.train], dtype=bool)
    test = None if found.test is None else _split_of(found.test)
    return _stored(_split_of(found.train), test, found.class_names, str(folder), validation_N)


def _split_of(images: Labelled | tuple[PixelArray, IntArray]) -> Split:
    return PixelSplit(*images) if isinstance(images, tuple) else _files(images)


# The cache and downloads


def cache_folder() -> Path:
    """Where downloads are kept: $RAYBASIN_DATA, else ~/.cache/raybasin."""
    return Path(os.environ.get("RAYBASIN_DATA") or "~/.cache/raybasin").expanduser()


def _from_cache(name: str, official: bool) -> Stored:
    folder = cache_folder() / name
    if not folder.exists() and (reason := _download(TORCHVISION[name], folder)):
        _missing(name, reason)
    return _found(name, official, folder) or _missing(
        name, f"no whole copy in '{folder}' (delete that folder to download it again)"
    )


def _download(wanted: Known, folder: Path) -> str | None:
    """Downloads into `folder` all or nothing; the reason where nothing came.

    torchvision takes some data sets for present as soon as their folder exists. So it works in a folder beside, which
    gets its name only when every split could be read.
    """
    if wanted.url is None:
        return "torchvision has no download for this data set"
    if reason := downloads.unreachable(wanted.url):
        return f"cannot be downloaded ({reason})"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(
                prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True
            ) as partial_folder,
            downloads.socket_timeout(STALL_SECONDS),
        ):
            for arguments in wanted.train + wanted.val + wanted.test:
                known.construct(wanted, Path(partial_folder), arguments, download=True)
            if wanted.cut is known.partition:
                _download_partitions(Path(partial_folder) / "SUN397")
            os.chmod(partial_folder, 0o755)  # it was for its owner alone
            os.rename(partial_folder, folder)
    except Exception as error:  # whatever networks, archives and disks raise
        # Another process may have been first, and then its copy serves.
        return None if folder.exists() else f"the download failed ({' '.join(str(error).split())})"
    return None


def _download_partitions(folder: Path) -> None:
    """SUN397's official partitions, which torchvision leaves out: lists of names, checked when they are read."""
    from torchvision.datasets.utils import download_and_extract_archive

    download_and_extract_archive(known.PARTITIONS_URL, str(folder), remove_finished=True)
