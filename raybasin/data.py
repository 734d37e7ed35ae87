"""Named data sets and folders -> uint8 arrays in memory, split reproducibly.

Axes: N examples, H height, W width, C channels (always 3 at the end); K classes. A lower-case letter is a selection
of that axis: `index_n` holds positions among the N images of a stored split.

The order of work keeps what a run does not need from being done. A source (`digits`, torchvision, an image folder,
Parquet shards) is opened as `Stored`: labels in memory, images still as stored. `index` fingerprints the stored bytes
and makes the split from labels alone; `load` then decodes only the images that the split uses.

Nothing here follows a name found in data out of its folder, and nothing is unpickled but torchvision's own CIFAR
files, after torchvision has checked their MD5 sums.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import itertools
import json
import os
import shutil
import socket
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from raybasin.errors import UserError
from raybasin.specs import DataSpec, ImageCount, PerClass

PixelArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
HeightWidth = tuple[int, int]
Encoded = tuple[str, bytes]
"""Where an image is stored, in words for a user, and its bytes as stored."""

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: a few bytes can declare gigabytes of pixels."""
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff")
IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label")
REPORTING_SPLITS = ("test", "valid", "validation", "val")
DEFAULT_EVAL_CROP = 0.875
DECODE_BATCH = 512
CONNECT_SECONDS = 5.0
STALL_SECONDS = 30.0

# One independent stream of random keys for each choice, so that none of them moves another.
VALIDATION, TRAIN, TEST = range(3)


@dataclass(frozen=True, eq=False)
class Images:
    """Decoded images with labels 0..K-1."""

    images_NHWC: PixelArray
    labels_N: IntArray

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True, eq=False)
class DataSet:
    """The three splits of one data set. Fingerprints are of the whole stored splits, before any selection."""

    train: Images
    val: Images
    test: Images
    class_names: tuple[str, ...]
    train_fingerprint: str
    test_fingerprint: str


@dataclass(frozen=True, eq=False)
class DataIndex:
    """All of a data set but its pixels: which stored images make each split, in stored order.

    `train_index_n` and `val_index_n` count in the stored training split; `test_index_n` counts in the reporting split
    or, where the source is one pool (`is_pool`), in that pool too. Sizes are (height, width) of the arrays that `load`
    would make.
    """

    train_index_n: IntArray
    val_index_n: IntArray
    test_index_n: IntArray
    class_names: tuple[str, ...]
    train_fingerprint: str
    test_fingerprint: str
    train_size: HeightWidth
    test_size: HeightWidth
    is_pool: bool

    @property
    def n_train(self) -> int:
        return len(self.train_index_n)

    @property
    def n_val(self) -> int:
        return len(self.val_index_n)

    @property
    def n_test(self) -> int:
        return len(self.test_index_n)


def index(spec: DataSpec) -> DataIndex:
    """Reads, fingerprints and splits the data of `spec` without decoding an image. Raises UserError."""
    return _index(spec, _open(spec))[0]


def load(spec: DataSpec) -> DataSet:
    """The data of `spec`, decoded. Raises UserError.

    Images of a stored split that all have one size keep it. Where sizes differ, each image is resized (bicubic,
    antialiased) so that its shorter side is round(image_size / crop), with crop = `spec.eval_crop` or 0.875, and its
    centre square of that side is kept: what evaluation at `image_size` would resize it to anyway. Grey, palette and
    transparent images become RGB; EXIF orientation is not applied (as in torchvision).
    """
    stored = _open(spec)
    made, train_form, test_form = _index(spec, stored)
    kept = _kept_classes(spec, stored.class_names)

    def images(split: Split, index_n: IntArray, form: Form) -> Images:
        return Images(split.decode(index_n, form), _relabel(split.labels_N[index_n], kept))

    return DataSet(
        train=images(stored.train, made.train_index_n, train_form),
        val=images(stored.train, made.val_index_n, train_form),
        test=images(stored.test or stored.train, made.test_index_n, test_form),
        class_names=made.class_names,
        train_fingerprint=made.train_fingerprint,
        test_fingerprint=made.test_fingerprint,
    )


# Stored splits: labels in memory, images as they are stored


@dataclass(frozen=True)
class Form:
    """What one stored split becomes as an array: its size, and whether images must be fitted to it."""

    size: HeightWidth
    fit: bool


@dataclass(frozen=True, eq=False)
class PixelSplit:
    """A split stored as pixels: [N, H, W] grey or [N, H, W, 3]."""

    pixels: PixelArray
    labels_N: IntArray

    def scan(self) -> tuple[str, set[HeightWidth]]:
        """The fingerprint and the one image size."""
        digest = hashlib.sha256(f"pixels {self.pixels.shape}".encode())
        for start in range(0, len(self.pixels), DECODE_BATCH):
            digest.update(self.pixels[start : start + DECODE_BATCH].tobytes())
        height, width = self.pixels.shape[1:3]
        return _with_labels(digest, self.labels_N), {(height, width)}

    def decode(self, index_n: IntArray, form: Form) -> PixelArray:
        """The chosen images as [n, H, W, 3]."""
        chosen = self.pixels[index_n]
        return np.ascontiguousarray(chosen) if chosen.ndim == 4 else np.repeat(chosen[..., None], 3, axis=-1)


@dataclass(frozen=True, eq=False)
class EncodedSplit:
    """A split stored as image files; `read` gives the bytes of the images at ascending positions."""

    read: Callable[[IntArray], Iterator[Encoded]]
    labels_N: IntArray

    def scan(self) -> tuple[str, set[HeightWidth]]:
        """The fingerprint, and the image sizes as their headers tell them: one, or two where sizes differ."""
        digest = hashlib.sha256(b"encoded")
        sizes: set[HeightWidth] = set()
        for where, content in self.read(np.arange(len(self.labels_N))):
            digest.update(len(content).to_bytes(8, "little"))
            digest.update(content)
            if len(sizes) < 2:  # a second size settles it, and headers are the slow part
                sizes.add(_size(where, content))
        return _with_labels(digest, self.labels_N), sizes

    def decode(self, index_n: IntArray, form: Form) -> PixelArray:
        """The chosen images as [n, H, W, 3]; only they are decoded, in a few threads (PIL lets go of the lock)."""
        images_nHWC = np.empty((len(index_n), *form.size, 3), dtype=np.uint8)
        encoded = enumerate(self.read(index_n))

        def decode_into(item: tuple[int, Encoded]) -> None:
            position, (where, content) = item
            images_nHWC[position] = _decode(where, content, form)

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            # In batches: map() takes all of its input at once, which may be larger than memory.
            while batch := list(itertools.islice(encoded, DECODE_BATCH)):
                list(threads.map(decode_into, batch))
        return images_nHWC


Split = PixelSplit | EncodedSplit


@dataclass(frozen=True, eq=False)
class Stored:
    """What a source holds. `test` is None where the source is one pool; `class_names` goes by stored label."""

    train: Split
    test: Split | None
    class_names: Mapping[int, str]


def _with_labels(digest: Any, labels_N: IntArray) -> str:
    digest.update(labels_N.astype("<i8").tobytes())
    return str(digest.hexdigest())


def _stored(train: Split, test: Split | None, names: Sequence[str] | None, where: str) -> Stored:
    """`Stored`, with labels checked and classes named: by `names`, else by the numbers that occur."""
    labels = np.unique(np.concatenate([split.labels_N for split in (train, test) if split is not None]))
    if not len(train.labels_N):
        raise UserError(f"{where}: holds no training images")
    if labels[0] < 0:
        raise UserError(f"{where}: holds the label {labels[0]} (unlabelled images?); labels must be 0 or above")
    if names is None:
        return Stored(train, test, {label: str(label) for label in labels.tolist()})
    if labels[-1] >= len(names):
        raise UserError(f"{where}: holds the label {labels[-1]}, but names only {len(names)} classes")
    return Stored(train, test, dict(enumerate(names)))


# Images


@contextmanager
def _image(where: str, content: bytes) -> Iterator[Image.Image]:
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


def _size(where: str, content: bytes) -> HeightWidth:
    with _image(where, content) as image:
        return image.height, image.width


def _decode(where: str, content: bytes, form: Form) -> PixelArray:
    with _image(where, content) as image:
        if image.mode.startswith(("I", "F")):  # PIL would clip these to 0..255 in silence
            raise UserError(f"{where}: has {image.mode} pixels; convert it to 8 bits a channel")
        rgb = image.convert("RGB")
        if form.fit:
            rgb = ImageOps.fit(rgb, form.size[::-1], Image.Resampling.BICUBIC)
        return np.asarray(rgb)


def _form(sizes: set[HeightWidth], spec: DataSpec) -> Form:
    if len(sizes) == 1:
        return Form(next(iter(sizes)), fit=False)
    side = round(spec.image_size / (spec.eval_crop or DEFAULT_EVAL_CROP))
    return Form((side, side), fit=True)


# The split, from labels alone


def _index(spec: DataSpec, stored: Stored) -> tuple[DataIndex, Form, Form]:
    train_fingerprint, train_sizes = stored.train.scan()
    test_fingerprint, test_sizes = stored.test.scan() if stored.test else (train_fingerprint, train_sizes)
    train_form, test_form = _form(train_sizes, spec), _form(test_sizes or train_sizes, spec)
    kept = _kept_classes(spec, stored.class_names)
    names = tuple(stored.class_names[label] for label in kept)
    train_n, val_n, test_n = _split(
        spec,
        names,
        _relabel(stored.train.labels_N, kept),
        _relabel(stored.test.labels_N, kept) if stored.test else None,
    )
    made = DataIndex(
        train_index_n=train_n,
        val_index_n=val_n,
        test_index_n=test_n,
        class_names=names,
        train_fingerprint=train_fingerprint,
        test_fingerprint=test_fingerprint,
        train_size=train_form.size,
        test_size=test_form.size,
        is_pool=stored.test is None,
    )
    return made, train_form, test_form


def _kept_classes(spec: DataSpec, class_names: Mapping[int, str]) -> list[int]:
    """The stored labels that `data.classes` keeps, ascending; a class may be given by its number or its name."""
    if spec.classes is None:
        return sorted(class_names)
    kept = [_stored_label(given, class_names) for given in spec.classes]
    for label in kept:
        if kept.count(label) > 1:
            raise UserError(f"data.classes: class {label} ('{class_names[label]}') is given twice")
    return sorted(kept)


def _stored_label(given: int | str, class_names: Mapping[int, str]) -> int:
    if isinstance(given, int):
        if given not in class_names:
            low, high = min(class_names), max(class_names)
            raise UserError(f"data.classes: no class {given}; the numbers go from {low} to {high}")
        return given
    found = [label for label, name in class_names.items() if name == given]
    if len(found) > 1:
        raise UserError(f"data.classes: '{given}' is the name of classes {found}; give the number instead")
    if not found:
        raise UserError(f"data.classes: unknown class '{given}'{_nearest(given, class_names.values())}")
    return found[0]


def _relabel(labels_N: IntArray, kept: Sequence[int]) -> IntArray:
    """Labels 0..K-1 in ascending order of the stored label; -1 for images of classes that are not kept."""
    position_N = np.searchsorted(kept, labels_N).clip(max=len(kept) - 1)
    return np.where(np.asarray(kept)[position_N] == labels_N, position_N, -1).astype(np.int64)


def _split(
    spec: DataSpec, names: Sequence[str], train_labels_N: IntArray, test_labels_N: IntArray | None
) -> tuple[IntArray, IntArray, IntArray]:
    """Ascending positions of the training, validation and test images; labels are 0..K-1, or -1 for "not kept".

    Validation is cut first, then the training images from what is left; of a pool, the test images are the rest of a
    subsampled training set. So validation may hold images that subsampling left out, and no image is in two splits.
    """
    pool_n = np.flatnonzero(train_labels_N >= 0)
    take = partial(_take, names=names, seed=spec.split_seed)

    val_n = take(train_labels_N, pool_n, _validation_size(spec, len(pool_n)), VALIDATION, key="validation")
    left_n = np.setdiff1d(pool_n, val_n)
    train_n = take(train_labels_N, left_n, spec.train_images, TRAIN, key="train_images")
    if test_labels_N is None:
        test_labels_N, reporting_n = train_labels_N, np.setdiff1d(left_n, train_n)
    else:
        reporting_n = np.flatnonzero(test_labels_N >= 0)
    test_n = take(test_labels_N, reporting_n, spec.test_images, TEST, key="test_images")

    counts_K = np.bincount(train_labels_N[train_n], minlength=len(names))
    if not counts_K.all():
        name = names[int(counts_K.argmin())]
        raise UserError(
            f"data: class '{name}' has no training image left of {len(train_n):,}; "
            "set train_images: {per_class: n}, a smaller validation, or classes without it"
        )
    return train_n, val_n, test_n


def _validation_size(spec: DataSpec, n_pool: int) -> int:
    if isinstance(spec.validation, ImageCount):
        return spec.validation.images
    return max(1, int(spec.validation * n_pool + 0.5))


def _take(
    labels_N: IntArray,
    pool_n: IntArray,
    wanted: int | PerClass | None,
    purpose: int,
    *,
    key: str,
    names: Sequence[str],
    seed: int,
) -> IntArray:
    """A stratified selection of `pool_n`, ascending: all of it, `wanted` images, or `wanted.per_class` of each class.

    Each stored image has a random key of its own, from (seed, purpose) and its position alone, and the lowest keys of
    each class are taken: which images of a class come first depends neither on the other classes nor on how many are
    wanted. The keys are raw output of the bit generator, which NumPy promises never to change (NEP 19); `shuffle` and
    `choice` carry no such promise.
    """
    if wanted is None:
        return pool_n
    counts_K = np.bincount(labels_N[pool_n], minlength=len(names))
    if isinstance(wanted, PerClass):
        if counts_K.min() < wanted.per_class:
            scarce = int(counts_K.argmin())
            raise UserError(
                f"data.{key}: {wanted.per_class:,} images of each class are asked for, "
                f"but class '{names[scarce]}' has {counts_K[scarce]:,}"
            )
        quota_K = np.full(len(names), wanted.per_class)
    else:
        if wanted > len(pool_n):
            raise UserError(f"data.{key}: {wanted:,} images are asked for, but there are {len(pool_n):,}")
        quota_K = _proportional(counts_K, wanted)
    keys_N = np.random.PCG64([seed, purpose]).random_raw(len(labels_N))
    by_class_n = pool_n[np.lexsort((keys_N[pool_n], labels_N[pool_n]))]
    rank_n = np.arange(len(pool_n)) - np.repeat(counts_K.cumsum() - counts_K, counts_K)
    return np.sort(by_class_n[rank_n < np.repeat(quota_K, counts_K)])


def _proportional(counts_K: IntArray, total: int) -> IntArray:
    """`total` shared out in proportion to `counts_K`, by largest remainder (ties: the lower class), in integers."""
    quota_K, remainder_K = np.divmod(total * counts_K, max(1, int(counts_K.sum())))
    largest = np.argsort(-remainder_K, kind="stable")
    quota_K[largest[: total - int(quota_K.sum())]] += 1
    return quota_K


# Sources


def _open(spec: DataSpec) -> Stored:
    if spec.name == "digits":
        if spec.dir is not None:
            raise UserError("data.dir: digits is built in and takes no folder; give the images there another name")
        return _digits()
    if spec.dir is not None:
        folder = Path(spec.dir).expanduser()
        # A folder of data sets will do as well as the folder of the set itself.
        return _found(spec.name, folder, folder / spec.name) or _missing(spec.name, f"no data in '{folder}'")
    if spec.name not in TORCHVISION:
        raise UserError(
            f"data.name: unknown data set '{spec.name}'{_nearest(spec.name, ['digits', *TORCHVISION])} "
            "(any name will do with --data DIR)"
        )
    return _from_cache(spec.name)


def _missing(name: str, reason: str) -> NoReturn:
    raise UserError(
        f"data.name: {name}: {reason}. Three ways to supply images: a network and no --data, for torchvision to "
        "download a set that it knows; `make demo`, which needs no data;\n"
        "or --data DIR (make: DATA=DIR), where DIR holds torchvision's own files of the set (whole: MD5 sums are "
        "checked), train/<class>/*.jpg with test/ or val/, or train-*.parquet with test-* or valid-*"
    )


def _found(name: str, *folders: Path) -> Stored | None:
    """The data set that one of `folders` holds in one of the three layouts, or None."""
    # torchvision last: it takes seconds to import.
    layouts = _parquet, _image_folder, partial(_torchvision, name)
    found = (layout(folder) for layout in layouts for folder in folders if folder.is_dir())
    return next((stored for stored in found if stored is not None), None)


def _digits() -> Stored:
    """scikit-learn's 1,797 digits, 8 x 8 grey in 0..16, scaled to 0..255; one pool."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images.astype(np.int64) * 255 + 8) // 16
    split = PixelSplit(pixels.astype(np.uint8), digits.target.astype(np.int64))
    return _stored(split, None, [str(name) for name in digits.target_names], "digits")


# Image folders


def _image_folder(folder: Path) -> Stored | None:
    """`train/<class>/*` with `test/`, `valid/` or `val/`, or None; classes are numbered in the order of their names."""
    class_names = _class_folders(folder / "train")
    if not class_names:
        return None
    reporting = next((folder / name for name in REPORTING_SPLITS if _class_folders(folder / name)), None)
    if reporting is not None and (other := set(_class_folders(reporting)) ^ set(class_names)):
        raise UserError(
            f"{folder}: train and {reporting.name} must hold the same classes; only one of them has "
            f"{_some(sorted(other))}"
        )
    train = _class_files(folder / "train", class_names)
    test = _class_files(reporting, class_names) if reporting else None
    return _stored(train, test, class_names, str(folder))


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _class_files(folder: Path, class_names: Sequence[str]) -> EncodedSplit:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        found = sorted(_image_files(folder / name))
        paths += found
        labels += [label] * len(found)
    return _files(paths, labels)


def _image_files(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield os.path.join(parent, name)


def _files(paths: Sequence[str], labels: Sequence[int]) -> EncodedSplit:
    return EncodedSplit(partial(_read_files, paths), np.asarray(labels, dtype=np.int64))


def _read_files(paths: Sequence[str], index_n: IntArray) -> Iterator[Encoded]:
    for position in index_n.tolist():
        try:
            content = Path(paths[position]).read_bytes()
        except OSError as error:
            raise UserError(f"{paths[position]}: cannot read the image: {error.strerror}") from error
        yield paths[position], content


# Parquet shards as the Hugging Face hub stores them


@dataclass(frozen=True)
class Shard:
    """One Parquet file, and where its rows stand in the split."""

    path: Path
    column: str
    first_row: int


def _parquet(folder: Path) -> Stored | None:
    """`train-*.parquet` with `test-*`, `valid-*` or `val-*`, in `folder` or its `data/`; None where there are none."""
    train_paths = _shard_paths(folder, "train")
    if not train_paths:
        return _parquet(folder / "data") if (folder / "data").is_dir() else None
    test_paths = next(filter(None, (_shard_paths(folder, name) for name in REPORTING_SPLITS)), None)
    train, names = _shards(train_paths)
    test = _shards(test_paths)[0] if test_paths else None
    return _stored(train, test, _listed_names(folder) or names, str(folder))


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
            label = _column(path, schema, LABEL_COLUMNS)
            shards.append(Shard(path, _column(path, schema, IMAGE_COLUMNS), sum(map(len, labels))))
            labels.append(_labels(path, file, label))
            names = names or _schema_names(schema, label)
    return EncodedSplit(partial(_read_rows, shards), np.concatenate(labels)), names


@contextmanager
def _parquet_file(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot read the Parquet file: {' '.join(str(error).split())}") from error


def _column(path: Path, schema: pa.Schema, candidates: Sequence[str]) -> str:
    """The first of `candidates` that the file has, with the type it must have."""
    name = next((name for name in candidates if name in schema.names), None)
    if name is None:
        raise UserError(f"{path}: has no column {' or '.join(candidates)}; its columns are {_some(schema.names)}")
    kind = schema.field(name).type
    if candidates is LABEL_COLUMNS and not pa.types.is_integer(kind):
        raise UserError(f"{path}: column {name} must hold integers, not {kind}")
    if candidates is IMAGE_COLUMNS and not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
        raise UserError(f"{path}: column {name} must be a struct with the image in `bytes`, not {kind}")
    return name


def _labels(path: Path, file: pq.ParquetFile, column: str) -> IntArray:
    labels = file.read(columns=[column]).column(0)
    if labels.null_count:
        raise UserError(f"{path}: column {column} has {labels.null_count:,} rows without a label")
    return labels.cast(pa.int64()).to_numpy()


def _read_rows(shards: Sequence[Shard], index_n: IntArray) -> Iterator[Encoded]:
    """The images of ascending rows, a row group in memory at a time. A `path` stored beside the bytes is not used."""
    for shard in shards:
        with _parquet_file(shard.path) as file:
            start = shard.first_row
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                rows = index_n[np.searchsorted(index_n, start) : np.searchsorted(index_n, stop)] - start
                if len(rows):
                    column = file.read_row_group(group, columns=[f"{shard.column}.bytes"]).column(0)
                    in_file = start - shard.first_row
                    yield from _row_images(shard.path, column, rows, in_file)
                start = stop


def _row_images(path: Path, column: pa.ChunkedArray[Any], rows: IntArray, in_file: int) -> Iterator[Encoded]:
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    for row in rows.tolist():
        content, where = column[row].as_py(), f"{path}, row {in_file + row}"
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

Part = tuple[PixelArray | list[str], Sequence[int]]
"""Pixels or paths of some images, and their labels."""


def _nhwc(dataset: Any) -> Part:
    """Sets in memory as [N, H, W] or [N, H, W, 3]. QMNIST's targets have further columns after the label."""
    pixels = np.asarray(dataset.data)
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return pixels, np.asarray(labels).reshape(len(pixels), -1)[:, 0].tolist()


def _nchw(dataset: Any) -> Part:
    return dataset.data.transpose(0, 2, 3, 1), dataset.labels.tolist()


def _paths(dataset: Any, attribute: str = "_image_files") -> Part:
    return [str(path) for path in getattr(dataset, attribute)], dataset._labels


def _samples(dataset: Any) -> Part:
    samples = dataset.samples if hasattr(dataset, "samples") else dataset._samples
    return [str(path) for path, _ in samples], [int(label) for _, label in samples]


def _caltech(dataset: Any, pattern: str) -> Part:
    """Caltech's constructors keep numbers in place of paths; `pattern` is how their __getitem__ makes the path."""
    names = [
        pattern.format(category=dataset.categories[label], label=label + 1, number=number)
        for number, label in zip(dataset.index, dataset.y, strict=True)
    ]
    return [os.path.join(dataset.root, name) for name in names], dataset.y


@dataclass(frozen=True)
class Known:
    """How to construct a data set of torchvision and what to read from it.

    Official validation images join the training pool, as is usual in transfer learning (Kornblith et al. 2019).
    """

    factory: str
    url: str | None  # whose host must answer before a download is tried; None where torchvision has no download
    read: Callable[[Any], Part]
    train: tuple[Mapping[str, Any], ...]
    test: Mapping[str, Any] | None


_FLAG: Any = ({"train": True},), {"train": False}
_SPLIT: Any = ({"split": "train"},), {"split": "test"}
_THREE: Any = ({"split": "train"}, {"split": "val"}), {"split": "test"}
_THREE_VALID: Any = ({"split": "train"}, {"split": "valid"}), {"split": "test"}
_TRAINVAL: Any = ({"split": "trainval"},), {"split": "test"}
_NO_TEST: Any = ({"split": "train"},), {"split": "val"}
_POOL: Any = ({},), None
_EMNIST: Any = ({"train": True, "split": "balanced"},), {"train": False, "split": "balanced"}
_CALTECH101 = partial(_caltech, pattern="101_ObjectCategories/{category}/image_{number:04d}.jpg")
_CALTECH256 = partial(_caltech, pattern="256_ObjectCategories/{category}/{label:03d}_{number:04d}.jpg")

TORCHVISION: Mapping[str, Known] = {
    "caltech101": Known("Caltech101", "https://data.caltech.edu", _CALTECH101, *_POOL),
    "caltech256": Known("Caltech256", "https://data.caltech.edu", _CALTECH256, *_POOL),
    "cifar10": Known("CIFAR10", "https://www.cs.toronto.edu", _nhwc, *_FLAG),
    "cifar100": Known("CIFAR100", "https://www.cs.toronto.edu", _nhwc, *_FLAG),
    "country211": Known("Country211", "https://openaipublic.azureedge.net", _samples, *_THREE_VALID),
    "dtd": Known("DTD", "https://www.robots.ox.ac.uk", _paths, *_THREE),
    "emnist": Known("EMNIST", "https://biometrics.nist.gov", _nhwc, *_EMNIST),
    "eurosat": Known("EuroSAT", "https://huggingface.co", _samples, *_POOL),
    "fashionmnist": Known("FashionMNIST", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com", _nhwc, *_FLAG),
    "fgvcaircraft": Known("FGVCAircraft", "https://www.robots.ox.ac.uk", _paths, *_TRAINVAL),
    "flowers102": Known("Flowers102", "https://www.robots.ox.ac.uk", _paths, *_THREE),
    "food101": Known("Food101", "http://data.vision.ee.ethz.ch", _paths, *_SPLIT),
    "gtsrb": Known("GTSRB", "https://sid.erda.dk", _samples, *_SPLIT),
    "imagenette": Known("Imagenette", "https://s3.amazonaws.com", _samples, *_NO_TEST),
    "kmnist": Known("KMNIST", "http://codh.rois.ac.jp", _nhwc, *_FLAG),
    "mnist": Known("MNIST", "https://ossci-datasets.s3.amazonaws.com", _nhwc, *_FLAG),
    "oxfordiiitpet": Known(
        "OxfordIIITPet", "https://www.robots.ox.ac.uk", partial(_paths, attribute="_images"), *_TRAINVAL
    ),
    "qmnist": Known("QMNIST", "https://raw.githubusercontent.com", _nhwc, *_FLAG),
    "renderedsst2": Known("RenderedSST2", "https://openaipublic.azureedge.net", _samples, *_THREE),
    "semeion": Known("SEMEION", "http://archive.ics.uci.edu", _nhwc, *_POOL),
    "stanfordcars": Known("StanfordCars", None, _samples, *_SPLIT),
    "stl10": Known("STL10", "http://ai.stanford.edu", _nchw, *_SPLIT),
    "sun397": Known("SUN397", "http://vision.princeton.edu", _paths, *_POOL),
    "svhn": Known("SVHN", "http://ufldl.stanford.edu", _nchw, *_SPLIT),
    "usps": Known("USPS", "https://www.csie.ntu.edu.tw", _nhwc, *_FLAG),
}


def _torchvision(name: str, folder: Path) -> Stored | None:
    """The set `name` in torchvision's own layout under `folder`, or None where it is not there, whole."""
    known = TORCHVISION.get(name)
    if known is None:
        return None
    if known.factory.startswith("Caltech") and not (folder / name).is_dir():
        return None  # their constructors would make that folder
    try:
        train = [_construct(known, folder, arguments, download=False) for arguments in known.train]
        test = [] if known.test is None else [_construct(known, folder, known.test, download=False)]
    except (RuntimeError, FileNotFoundError):  # torchvision's "not found or corrupted", and USPS's missing file
        return None
    except Exception as error:  # damaged lists and tables raise nearly anything
        raise UserError(f"{folder}: torchvision cannot read {name} here: {type(error).__name__}: {error}") from error
    parts = [_part(known, dataset, folder) for dataset in train]
    test_split = _joined([_part(known, test[0], folder)]) if test else None
    return _stored(_joined(parts), test_split, _torchvision_names(train[0]), str(folder))


def _construct(known: Known, folder: Path, arguments: Mapping[str, Any], *, download: bool) -> Any:
    from torchvision import datasets

    # StanfordCars takes `download` only to refuse it, and others not at all: say nothing unless it is wanted.
    wanted = {"download": True} if download else {"download": False} if known.factory == "SEMEION" else {}
    return getattr(datasets, known.factory)(root=str(folder), **arguments, **wanted)


def _part(known: Known, dataset: Any, folder: Path) -> Part:
    """What torchvision read; paths from its lists must stay inside `folder`."""
    images, labels = known.read(dataset)
    if isinstance(images, list):
        inside = os.path.join(os.path.abspath(folder), "")
        for path in images:
            if not os.path.abspath(path).startswith(inside):
                raise UserError(f"{folder}: a list of images names '{path}', outside the folder")
    return images, labels


def _joined(parts: Sequence[Part]) -> Split:
    """One split of several parts, in the order of paths: some of torchvision's lists are in the file system's."""
    labels = [int(label) for _, part in parts for label in part]
    if isinstance(parts[0][0], np.ndarray):
        return PixelSplit(np.concatenate([np.asarray(images) for images, _ in parts]), np.asarray(labels, np.int64))
    paths = [str(path) for images, _ in parts for path in images]
    in_order = sorted(zip(paths, labels, strict=True))
    return _files([path for path, _ in in_order], [label for _, label in in_order])


def _torchvision_names(dataset: Any) -> list[str] | None:
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    # Imagenette gives each class several names.
    return [name if isinstance(name, str) else ", ".join(name) for name in names] if names else None


# The cache and downloads


def cache_folder() -> Path:
    """Where downloads are kept: $RAYBASIN_DATA, else ~/.cache/raybasin."""
    return Path(os.environ.get("RAYBASIN_DATA") or "~/.cache/raybasin").expanduser()


def _from_cache(name: str) -> Stored:
    folder = cache_folder() / name
    if not folder.exists():
        reason = _download(TORCHVISION[name], folder)
        if reason:
            _missing(name, reason)
    return _found(name, folder) or _missing(
        name, f"no whole copy in '{folder}' (delete that folder to download it again)"
    )


def _download(known: Known, folder: Path) -> str | None:
    """Downloads into `folder` all or nothing; the reason where nothing came.

    torchvision takes some data sets for present as soon as their folder exists. So it works in a folder beside, which
    gets its name only when every split could be read.
    """
    if known.url is None:
        return "torchvision has no download for this data set"
    if reason := _unreachable(known.url):
        return f"cannot be downloaded ({reason})"
    partial_folder = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial_folder = tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent)
        with _socket_timeout(STALL_SECONDS):
            for arguments in (*known.train, *([] if known.test is None else [known.test])):
                _construct(known, Path(partial_folder), arguments, download=True)
        os.chmod(partial_folder, 0o755)  # mkdtemp's folders are for their owner alone
        os.rename(partial_folder, folder)
    except Exception as error:  # whatever networks, archives and disks raise
        # Another process may have been first, and then its copy serves.
        return None if folder.exists() else f"the download failed ({' '.join(str(error).split())})"
    finally:
        if partial_folder:
            shutil.rmtree(partial_folder, ignore_errors=True)
    return None


def _unreachable(url: str) -> str | None:
    """Why the host of `url` cannot be reached within a few seconds; None where it can, or where a proxy will ask it."""
    parts = urlsplit(url)
    if parts.scheme in urllib.request.getproxies():
        return None
    address = str(parts.hostname), 443 if parts.scheme == "https" else 80
    outcome: list[str | None] = [f"no network: {address[0]} does not answer within {CONNECT_SECONDS:.0f} s"]

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=CONNECT_SECONDS).close()
            outcome[0] = None
        except OSError as error:
            outcome[0] = f"no network: {address[0]}: {error.strerror or error}"

    # In a thread because looking the name up takes no time-out.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return outcome[0]


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torchvision's downloads set no time-out; this one bounds each read and is taken back afterwards."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


# Words


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {_some(known)}"


def _some(names: Sequence[str], most: int = 30) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
