"""Where images come from: digits, torchvision, image folders and Parquet, opened as they are stored.

Axes: N images of a stored split, H height, W width, K classes. A lower-case letter is a selection of that axis:
`index_n` holds positions among the N images of a stored split.

A source is opened as `Stored`: labels in memory, images still as stored, so that what a run does not use is never
decoded. Fingerprints are of the stored bytes.

No name that is found inside a file leads out of the data folder (links in an image folder are the user's own, and are
followed), and nothing is unpickled but torchvision's own CIFAR files, after torchvision has checked their MD5 sums.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
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

from raybasin import downloads
from raybasin.errors import UserError, nearest, some
from raybasin.specs import DataSpec

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
STALL_SECONDS = 30.0


# Stored splits: labels in memory, images as they are stored


@dataclass(frozen=True, eq=False)
class PixelSplit:
    """A split stored as pixels: [N, H, W] grey or [N, H, W, 3]."""

    pixels: PixelArray
    labels_N: IntArray

    def scan(self) -> tuple[str, set[HeightWidth]]:
        """The fingerprint and the one image size."""
        digest = hashlib.sha256(f"pixels {self.pixels.shape}".encode())
        for image in self.pixels:
            digest.update(image.tobytes())
        height, width = self.pixels.shape[1:3]
        return _with_labels(digest, self.labels_N), {(height, width)}


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
                with open_image(where, content) as image:
                    sizes.add((image.height, image.width))
        return _with_labels(digest, self.labels_N), sizes


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
    if spec.dir is not None:
        folder = Path(spec.dir).expanduser()
        # A folder of data sets will do as well as the folder of the set itself.
        return _found(spec.name, folder, folder / spec.name) or _missing(spec.name, f"no data in '{folder}'")
    if spec.name not in TORCHVISION:
        raise UserError(
            f"data.name: unknown data set '{spec.name}'{nearest(spec.name, ['digits', *TORCHVISION])} "
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
            return _class_files(folder / name, class_names), class_names
    if part is None and not _class_folders(folder / "train") and (class_names := _class_folders(folder)):
        return _class_files(folder, class_names), class_names
    return None


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
            f"{some(sorted(other))}"
        )
    train = _class_files(folder / "train", class_names)
    test = _class_files(reporting, class_names) if reporting else None
    return _stored(train, test, class_names, str(folder))


def _class_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _class_files(folder: Path, class_names: Sequence[str]) -> EncodedSplit:
    return _files(
        [(path, label) for label, name in enumerate(class_names) for path in sorted(_image_files(folder / name))]
    )


def _image_files(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield os.path.join(parent, name)


def _files(labelled: Sequence[tuple[str, int]]) -> EncodedSplit:
    """The split of these paths, each with its label."""
    labels_N = np.asarray([label for _, label in labelled], dtype=np.int64)
    return EncodedSplit(partial(_read_files, [path for path, _ in labelled]), labels_N)


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
            label = _column(path, schema, LABEL_COLUMNS, pa.types.is_integer, "hold integers")
            image = _column(path, schema, IMAGE_COLUMNS, _has_bytes, "be a struct with the image in `bytes`")
            shards.append(Shard(path, image, first_row=sum(map(len, labels))))
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

Part = tuple[PixelArray | list[str], Sequence[int]]
"""Pixels or paths of some images, and their labels."""
Calls = tuple[Mapping[str, Any], ...]
"""The arguments of calls to a constructor, which together read one split."""


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
    return [str(path) for path, _ in samples], [label for _, label in samples]


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
    train: Calls
    test: Calls  # none where the set is one pool


_FLAG: tuple[Calls, Calls] = ({"train": True},), ({"train": False},)
_SPLIT: tuple[Calls, Calls] = ({"split": "train"},), ({"split": "test"},)
_THREE: tuple[Calls, Calls] = ({"split": "train"}, {"split": "val"}), ({"split": "test"},)
_THREE_VALID: tuple[Calls, Calls] = ({"split": "train"}, {"split": "valid"}), ({"split": "test"},)
_TRAINVAL: tuple[Calls, Calls] = ({"split": "trainval"},), ({"split": "test"},)
_NO_TEST: tuple[Calls, Calls] = ({"split": "train"},), ({"split": "val"},)
_POOL: tuple[Calls, Calls] = ({},), ()
_EMNIST: tuple[Calls, Calls] = ({"train": True, "split": "balanced"},), ({"train": False, "split": "balanced"},)
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
        test = [_construct(known, folder, arguments, download=False) for arguments in known.test]
    except (RuntimeError, FileNotFoundError):  # torchvision's "not found or corrupted", and USPS's missing file
        return None
    except Exception as error:  # damaged lists and tables raise nearly anything
        raise UserError(f"{folder}: torchvision cannot read {name} here: {type(error).__name__}: {error}") from error
    train_split = _joined([_part(known, dataset, folder) for dataset in train])
    test_split = _joined([_part(known, dataset, folder) for dataset in test]) if test else None
    return _stored(train_split, test_split, _torchvision_names(train[0]), str(folder))


def _construct(known: Known, folder: Path, arguments: Mapping[str, Any], *, download: bool) -> Any:
    from torchvision import datasets

    # StanfordCars takes `download` only to refuse it, and others not at all: say nothing unless it is wanted.
    # SEMEION alone downloads unless told not to.
    wanted = {"download": download} if download or known.factory == "SEMEION" else {}
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
        return PixelSplit(np.concatenate([images for images, _ in parts]), np.asarray(labels, dtype=np.int64))
    paths = [path for images, _ in parts for path in images]
    return _files(sorted(zip(paths, labels, strict=True)))


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
    if not folder.exists() and (reason := _download(TORCHVISION[name], folder)):
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
    if reason := downloads.unreachable(known.url):
        return f"cannot be downloaded ({reason})"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(
                prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True
            ) as partial_folder,
            downloads.socket_timeout(STALL_SECONDS),
        ):
            for arguments in known.train + known.test:
                _construct(known, Path(partial_folder), arguments, download=True)
            os.chmod(partial_folder, 0o755)  # it was for its owner alone
            os.rename(partial_folder, folder)
    except Exception as error:  # whatever networks, archives and disks raise
        # Another process may have been first, and then its copy serves.
        return None if folder.exists() else f"the download failed ({' '.join(str(error).split())})"
    return None
