"""Where images come from: digits, torchvision, image folders and Parquet, opened as they are stored.

Axes: N images of a stored split, H height, W width, K classes. A lower-case letter is a selection of that axis:
`index_n` holds positions among the N images of a stored split.

A source is opened as `Stored`: labels in memory, images still as stored, so that what a run does not use is never
decoded. Fingerprints are of the stored bytes.

No name that is found inside a file leads out of the data folder (links in an image folder are the user's own, and are
followed), and nothing is unpickled here.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tempfile
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from raybasin.data import downloads
from raybasin.data import torchvision_sets
from raybasin.data import parquet
from raybasin.errors import UserError, nearest, one_line, some
from raybasin.data.torchvision_sets import TORCHVISION, Known, Labelled
from raybasin.sweep.specs import DataSpec

PixelArray = torchvision_sets.PixelArray
IntArray = torchvision_sets.IntArray
BoolArray = npt.NDArray[np.bool_]
CheckArray = npt.NDArray[np.uint32]
HeightWidth = tuple[int, int]
Encoded = parquet.Encoded
Shard = parquet.Shard

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: a few bytes can declare gigabytes of pixels."""
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm",
    ".tif", ".tiff",
)  # fmt: skip
"""Every ending that Pillow has for these formats, in lower case."""
VALIDATION_SPLITS = ("valid", "validation", "val")
REPORTING_SPLITS = ("test", *VALIDATION_SPLITS)
STALL_SECONDS = 30.0


# Stored splits: labels in memory, images as they are stored


@dataclass(frozen=True, eq=False)
class Audit:
    """What one pass over the stored bytes of a split finds out.

    `lengths_N` (bytes) and `checks_N` (CRC-32) are of each image as it is stored.
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

    def read(self, index_n: IntArray) -> Iterator[Encoded]:
        for position in index_n.tolist():
            yield f"image {position}", self.pixels[position].tobytes()

    def audit(self) -> Audit:
        n = len(self.labels_N)
        digest = hashlib.sha256(f"pixels {self.pixels.shape}".encode())
        checks_N = np.zeros(n, dtype=np.uint32)
        for position, (_, content) in enumerate(self.read(np.arange(n))):
            digest.update(content)
            checks_N[position] = zlib.crc32(content)
        height, width = self.pixels.shape[1:3]
        lengths_N = np.full(n, self.pixels[:1].nbytes, dtype=np.int64)
        return Audit(_with_labels(digest, self.labels_N), {(height, width)}, lengths_N, checks_N)


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
            if not content:
                raise UserError(f"{where}: is empty; replace it or take it out")
            lengths_N[position], checks_N[position] = len(content), zlib.crc32(content)
            digest.update(len(content).to_bytes(8, "little"))
            digest.update(content)
            if len(sizes) < 2:  # a second size settles it, and headers are the slow part
                sizes.add(size_of(where, content))
        return Audit(_with_labels(digest, self.labels_N), sizes, lengths_N, checks_N)


Split = PixelSplit | EncodedSplit


@dataclass(frozen=True, eq=False)
class Stored:
    """What a source holds. `test` is None where the source is one pool; `class_names` goes by stored label."""

    train: Split
    test: Split | None
    class_names: Mapping[int, str]
    validation_N: BoolArray | None
    """Which training images are the official validation images; None where there are none."""
    source: str
    """In which layout it was found, and where."""
    notes: tuple[str, ...]
    """What lies there and was not read, and why."""


def _with_labels(digest: Any, labels_N: IntArray) -> str:
    digest.update(labels_N.astype("<i8").tobytes())
    return str(digest.hexdigest())


def _stored(
    train: Split,
    test: Split | None,
    names: Sequence[str] | None,
    where: str,
    validation_N: BoolArray | None = None,
    *,
    source: str,
    notes: tuple[str, ...] = (),
) -> Stored:
    """`Stored`, with labels checked and classes named: by `names`, else by the numbers that occur."""
    if not len(train.labels_N):
        raise UserError(f"{where}: holds no training images")
    for name, split in (("training", train), ("test", test)):
        if split is not None and (n_without := int((split.labels_N < 0).sum())):
            raise UserError(
                f"{where}: {n_without:,} of {len(split.labels_N):,} {name} images have the label "
                f"{split.labels_N.min()}, which stands for none; labels must be 0 or above. Take their files away"
            )
    labels = np.unique(np.concatenate([split.labels_N for split in (train, test) if split is not None]))
    if names is None:
        class_names = {label: str(label) for label in labels.tolist()}
    elif labels[-1] >= len(names):
        raise UserError(f"{where}: holds the label {labels[-1]}, but names only {len(names)} classes")
    else:
        class_names = dict(enumerate(names))
    if garbled := [name for name in class_names.values() if name.encode(errors="replace").decode() != name]:
        raise UserError(f"{where}: the name of the class '{garbled[0]}' is not UTF-8; rename it")
    return Stored(train, test, class_names, validation_N, one_line(source), tuple(map(one_line, notes)))


def size_of(where: str, content: bytes) -> HeightWidth:
    """As the header of the image tells it. Raises UserError for what is no image."""
    with _opened(where, content) as image:
        return image.height, image.width


def decoded(where: str, content: bytes) -> Image.Image:
    """The image in RGB. Raises UserError for what is no image, or is not one of 8 bits a channel."""
    with _opened(where, content) as image:
        if image.mode.startswith(("I", "F")):  # PIL would clip these to 0..255 in silence
            raise UserError(f"{where}: has {image.mode} pixels; convert it to 8 bits a channel")
        if image.mode == "P" and "transparency" in image.info:  # the same pixels; PIL warns of the direct way
            return _blaming(where, lambda: image.convert("RGBA").convert("RGB"))
        return _blaming(where, lambda: image.convert("RGB"))


def _opened(where: str, content: bytes) -> Image.Image:
    """Not yet decoded."""
    if instead := parquet.not_fetched(content):
        raise UserError(f"{where}: {instead}")
    image = _blaming(where, lambda: Image.open(io.BytesIO(content), formats=IMAGE_FORMATS))
    if image.width * image.height > MAX_PIXELS:
        raise UserError(f"{where}: {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read")
    return image


def _blaming(where: str, read: Callable[[], Image.Image]) -> Image.Image:
    """What `read` gives; what goes wrong in it is blamed on the image, but for a want of memory."""
    try:
        return read()
    except MemoryError:
        raise
    except Exception as error:  # damaged files make PIL's plug-ins raise nearly anything
        known = f"none of {', '.join(IMAGE_FORMATS)}"
        reason = known if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
        raise UserError(f"{where}: not a readable image ({reason}); replace it or take it out") from error


# Opening


def open_source(spec: DataSpec) -> Stored:
    """What `spec.dir` holds or, where it is None, the built-in, cached or downloaded set. Raises UserError."""
    if spec.name == "digits":
        if spec.dir is not None:
            raise UserError("data.dir: digits is built in and takes no folder; give the images there another name")
        return _digits()
    official = spec.validation == "official"
    if spec.dir is not None:
        folder = existing_folder("data.dir", spec.dir)
        # A folder of data sets will do as well as the folder of the set itself.
        with readable():
            return _found(spec.name, official, folder, folder / spec.name) or _nothing(spec.name, folder)
    if spec.name not in TORCHVISION:
        raise UserError(
            f"data.name: unknown data set '{spec.name}'{nearest(spec.name, ['digits', *TORCHVISION])} "
            "(any name will do with --data DIR)"
        )
    with readable():
        return _from_cache(spec.name, official)


def existing_folder(key: str, path: str) -> Path:
    """The absolute path of a folder that `key` of a sweep file names. Raises UserError where there is none."""
    if not path:
        raise UserError(f"{key}: is empty; name a folder, or leave it out")
    if "://" in path:
        raise UserError(f"{key}: '{path}' is an address; data are read from a disk that every machine mounts")
    folder = Path(os.path.expanduser(path)).absolute()
    with readable():
        if folder.is_dir():
            return folder
        if folder.exists():
            raise UserError(f"{key}: '{folder}' is a file; name the folder in which the data are")
    relative = "" if os.path.isabs(os.path.expanduser(path)) else f" ('{path}' counts from where the command is run)"
    raise UserError(f"{key}: there is no folder '{folder}'{relative}")


@contextmanager
def readable() -> Iterator[None]:
    """A folder that may not be looked into, or whose name cannot be, is a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or 'the data'}: cannot be read: {error.strerror or error}") from error


def _missing(name: str, reason: str) -> NoReturn:
    raise UserError(
        f"data.name: {name}: {reason}. Three ways to supply images: a network and no --data, for torchvision to "
        "download a set that it knows; `make demo`, which needs no data;\n"
        "or --data DIR (make: DATA=DIR), where DIR holds torchvision's own files of the set (whole: MD5 sums are "
        "checked), train/<class>/*.jpg with test/ or val/, or train-*.parquet with test-* or valid-*"
    )


def _nothing(name: str, folder: Path) -> NoReturn:
    """What a folder holds in which no data were found, and what is looked for."""
    entries = [entry for entry in _entries(folder) if not entry.name.startswith(".")]
    kinds: dict[str, list[str]] = {"folder": [entry.name for entry in entries if entry.is_dir()]}
    kinds["file"] = [entry.name for entry in entries if entry.name not in kinds["folder"]]
    holds = [f"{_counted(names, noun)} ({some(names, 5)})" for noun, names in kinds.items() if names]
    own = f", or torchvision's own files of {name} (whole: MD5 sums are checked)" if name in TORCHVISION else ""
    raise UserError(
        f"data.dir: no data in '{folder}': it holds {' and '.join(holds) or 'nothing'}{_way_out(folder, kinds)}.\n"
        f"Looked for, there and in {name}/, are train/<class>/*.jpg with test/ or val/, and train-*.parquet or "
        f"train/*.parquet with test or valid, also in data/ or in a single folder{own}"
    )


ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def _way_out(folder: Path, kinds: Mapping[str, Sequence[str]]) -> str:
    """What to do with what people have in place of the layouts that are read; empty where nothing is known."""
    with contextlib.suppress(OSError):  # of a folder in it that may not be read, nothing is known
        return next((f". {way}" for way in _ways_out(folder, kinds["folder"], kinds["file"])), "")
    return ""


def _ways_out(folder: Path, folders: Sequence[str], files: Sequence[str]) -> Iterator[str]:
    splits = ("train", *REPORTING_SPLITS)
    for name in folders:
        if _class_folders(folder / name / "train"):
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
        if any(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in _entries(folder / name)):
            yield f"If {some(folders, 3)} are classes, move them into a folder train, and set data.train_images"


def _found(name: str, official: bool, *folders: Path) -> Stored | None:
    """The data set that one of `folders` holds in one of the three layouts, or None.

    torchvision's official validation images always join the training images; those of the other layouts do where
    `official` validation images are asked for.
    """
    layouts: tuple[Callable[[Path], Stored | None], ...] = (
        lambda folder: _parquet(folder, official),
        lambda folder: _image_folder(folder, official),
        lambda folder: _torchvision(name, folder),  # torchvision takes seconds to import
        lambda folder: _configuration(folder, official),
    )
    found = (layout(folder) for layout in layouts for folder in folders if folder.is_dir())
    return next((stored for stored in found if stored is not None), None)


def _digits() -> Stored:
    """scikit-learn's 1,797 digits, 8 x 8 grey in 0..16, scaled to 0..255; one pool."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images.astype(np.int64) * 255 + 8) // 16
    split = PixelSplit(pixels.astype(np.uint8), digits.target.astype(np.int64))
    return _stored(split, None, None, "digits", source="scikit-learn's digits")


@dataclass(frozen=True, eq=False)
class Part:
    """One split alone: its classes by name, where they have any, and what was passed over."""

    split: EncodedSplit
    class_names: list[str] | None
    notes: tuple[str, ...] = ()


def open_part(folder: Path, part: str | None) -> Part | None:
    """One split alone.

    Args:
        folder: holds Parquet files of `part` (or its `data/` does, or its only folder) or `<part>/<class>/*`.
        part: None for the first reporting split or, where there is none, for `<class>/*` in `folder` itself.

    Returns:
        None where there is no such split. Raises UserError for files that cannot be read.
    """
    with readable():
        for name in REPORTING_SPLITS if part is None else (part,):
            if place := parquet.place_of(folder, name):
                return _parquet_part(place, folder, name)
            if _class_folders(folder / name):
                return _folder_part(folder / name)
        for name in REPORTING_SPLITS if part is None else (part,):
            if place := parquet.configuration(folder, name):
                return _parquet_part(place, folder, name)
        if part is None and not _class_folders(folder / "train") and _class_folders(folder):
            return _folder_part(folder)
    return None


def _parquet_part(place: Path, folder: Path, name: str) -> Part:
    found = parquet.read([parquet.files(place, name)], _class_list(place, folder))
    return Part(_rows(found.splits[0]), found.class_names, tuple(map(one_line, found.notes)))


def _folder_part(folder: Path) -> Part:
    tree = _tree(folder)
    return Part(_files(tree.labelled), tree.class_names, tuple(map(one_line, tree.notes)))


# Image folders


@dataclass(frozen=True, eq=False)
class _Tree:
    """`<class>/*` of one split: the images, labelled by the order of the classes' names, and what was passed over."""

    class_names: list[str]
    labelled: Labelled
    notes: tuple[str, ...]


def _image_folder(folder: Path, official: bool) -> Stored | None:
    """`train/<class>/*` with `test/`, `valid/`, `validation/` or `val/`, or None; classes are numbered in the order of
    their names."""
    class_names = _class_folders(folder / "train")
    if not class_names:
        return None
    if len(class_names) < 2:
        deeper = _class_folders(folder / "train" / class_names[0])
        further = f"; the classes may be those in it: {some(deeper, 10)}. Move them up" if deeper else ""
        raise UserError(f"{folder / 'train'}: holds one class folder, {class_names[0]}, and must hold two{further}")
    reporting = next((name for name in REPORTING_SPLITS if _class_folders(folder / name)), None)
    validation = next((name for name in VALIDATION_SPLITS if _class_folders(folder / name)), None)
    if not official or validation == reporting:
        validation = None
    for split in filter(None, (reporting, validation)):
        _check_same_classes(folder, split, class_names, _class_folders(folder / split))
    used = {name: _tree(folder / name) for name in ("train", validation, reporting) if name}
    train, val, test = (used[name].labelled if name else [] for name in ("train", validation, reporting))
    return _stored(
        _files(train + val),
        _files(test) if reporting else None,
        class_names,
        str(folder),
        _tail(len(train), len(val)) if validation else None,
        source=f"image folder '{folder}': {', '.join(used)}",
        notes=(
            *(note for tree in used.values() for note in tree.notes),
            *_not_read({*_class_folders(folder), *parquet.unread(folder, ())} - set(used)),
        ),
    )


def _check_same_classes(folder: Path, split: str, ours: Sequence[str], theirs: Sequence[str]) -> None:
    """The class folders of train, and those of another split."""
    more, missing = (sorted(set(a) - set(b)) for a, b in ((ours, theirs), (theirs, ours)))
    if not more and not missing:
        return
    only = [f"only {name} has {some(found, 10)}" for name, found in (("train", more), (split, missing)) if found]
    alike = {_spelled(name) for name in more} & {_spelled(name) for name in missing}
    same = " (they differ in capitals, spaces or Unicode forms alone)" if alike else ""
    raise UserError(
        f"{folder}: train and {split} must hold the same classes; {'; '.join(only)}{same}.\n"
        f"Rename or take away what differs, or take {split} away where its images have no classes"
    )


def _spelled(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _tail(n_train: int, n_val: int) -> BoolArray:
    """True for the last `n_val` of `n_train + n_val` images."""
    return np.arange(n_train + n_val) >= n_train


def _splits_of_folders(folder: Path) -> list[str]:
    """Which splits `folder` holds as folders of classes."""
    return [name for name in ("train", *REPORTING_SPLITS) if _class_folders(folder / name)]


def _folders(folder: Path) -> list[Path]:
    """The folders in `folder` that are not hidden."""
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _class_folders(folder: Path) -> list[str]:
    return [entry.name for entry in _folders(folder)]


def _tree(folder: Path) -> _Tree:
    """The images of `folder`. Raises UserError where a class has folders of images in place of images."""
    class_names = _class_folders(folder)
    labelled: Labelled = []
    passed = [(entry.path, "outside of the class folders") for entry in _entries(folder) if not entry.is_dir()]
    deeper = Labelled()
    for label, name in enumerate(class_names):
        top = os.path.join(folder, name, "")
        seen = list(_walk(top))
        images = sorted(path for path, why in seen if why is None)
        below = [path for path in images if os.sep in path[len(top) :]]
        inside = sorted({path[len(top) :].split(os.sep)[0] for path in below})
        if len(below) == len(images) and len(inside) > 1:
            raise UserError(
                f"{top}: holds no images but folders of images, {some(inside, 10)}: are these the classes?\n"
                f"Then move them up; otherwise move their images into {name}"
            )
        passed += [(path, why) for path, why in seen if why is not None]
        labelled += [(path, label) for path in images]
        deeper += [(path, label) for path in below]
    notes = list(_passed_over(folder, passed))
    if deeper:
        notes.append(f"{_counted(deeper, 'image')} in folders below their class folder, such as {deeper[0][0]}")
    return _Tree(class_names, labelled, tuple(notes))


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _walk(top: str) -> Iterator[tuple[str, str | None]]:
    """Every file below `top`, with the reason where it is passed over; None for an image. Links are followed."""
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(top, ())]
    while waiting:
        folder, above = waiting.pop()
        there = os.stat(folder)
        if (here := (there.st_dev, there.st_ino)) in above:
            raise UserError(f"{folder}: a link on the way leads back to a folder that it lies in; take the link out")
        for entry in _entries(folder):
            if entry.name.startswith("."):
                yield entry.path, "hidden"
            elif entry.is_dir():
                waiting.append((entry.path, (*above, here)))
            elif not entry.name.lower().endswith(IMAGE_SUFFIXES):
                yield entry.path, os.path.splitext(entry.name)[1].lower() or "without an ending"
            elif not entry.is_file():
                raise UserError(f"{entry.path}: is no file, or a link to what is not there; put the image there")
            else:
                yield entry.path, None


def _passed_over(folder: Path, passed: Sequence[tuple[str, str]]) -> Iterator[str]:
    """What of `folder` is not read, by why, with an example of each."""
    if passed:
        counts = Counter(why for _, why in passed)
        example = {why: path for path, why in reversed(passed)}
        listed = [f"{n:,} {why} (such as {example[why]})" for why, n in counts.most_common(5)]
        more = f" and {len(counts) - 5} other endings" if len(counts) > 5 else ""
        yield f"passed over in {folder.name}: {', '.join(listed)}{more}"


def _not_read(names: Collection[str]) -> Iterator[str]:
    if names:
        yield f"not read: {some(sorted(names), 5)}"


def _counted(things: Sequence[Any], noun: str) -> str:
    return f"{len(things):,} {noun}{'' if len(things) == 1 else 's'}"


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


# Parquet


def _parquet(folder: Path, official: bool) -> Stored | None:
    """`train` of Parquet files with `test`, `valid`, `validation` or `val`, in `folder` or its `data/`, or None."""
    place = parquet.place_of(folder, "train")
    if place and _class_folders(folder / "train"):
        raise UserError(f"{folder}: holds Parquet files of train and class folders in train; take one of them away")
    return _parquet_at(place, folder, official) if place else None


def _configuration(folder: Path, official: bool) -> Stored | None:
    """The same in the one folder that `folder` holds, or None."""
    place = parquet.configuration(folder, "train")
    return _parquet_at(place, folder, official) if place else None


def _parquet_at(place: Path, folder: Path, official: bool) -> Stored:
    train_paths = parquet.files(place, "train")
    test_paths, val_paths = (
        next(filter(None, (parquet.files(place, name) for name in splits)), [])
        for splits in (REPORTING_SPLITS, VALIDATION_SPLITS)
    )
    if not official or val_paths == test_paths:
        val_paths = []
    paths = [*train_paths, *val_paths, *test_paths]
    found = parquet.read(list(filter(None, ([*train_paths, *val_paths], test_paths))), _class_list(place, folder))
    train, *test = (_rows(rows) for rows in found.splits)
    n_val = sum(shard.n_rows for shard in found.splits[0].shards[len(train_paths) :])
    return _stored(
        train,
        test[0] if test else None,
        found.class_names,
        str(place),
        _tail(len(train.labels_N) - n_val, n_val) if val_paths else None,
        source=f"Parquet in '{place}': {_counted(paths, 'file')}, {found.columns}",
        notes=(*found.notes, *_not_read({*parquet.unread(place, paths), *_splits_of_folders(folder)})),
    )


def _rows(rows: parquet.Rows) -> EncodedSplit:
    return EncodedSplit(partial(parquet.read_rows, rows.shards), rows.labels_N, rows.shards)


def _class_list(*folders: Path) -> Path | None:
    """The first `classes.json` in these folders."""
    return next((path for folder in folders if (path := folder / "classes.json").is_file()), None)


# torchvision


def _torchvision(name: str, folder: Path) -> Stored | None:
    """The set `name` in torchvision's own layout under `folder`, or None where it is not there."""
    found = torchvision_sets.read(name, folder)
    if found is None:
        return None
    validation_N = None
    if found.official:
        validation_N = np.asarray([path in found.official for path, _ in found.train], dtype=bool)
    test = None if found.test is None else _split_of(found.test)
    source = f"torchvision's files of {name} in '{folder}'"
    return _stored(_split_of(found.train), test, found.class_names, str(folder), validation_N, source=source)


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
                torchvision_sets.construct(wanted, Path(partial_folder), arguments, download=True)
            if wanted.cut is torchvision_sets.partition:
                _download_partitions(Path(partial_folder) / "SUN397")
            os.chmod(partial_folder, 0o755)  # it was for its owner alone
            os.rename(partial_folder, folder)
    except MemoryError:
        raise
    except Exception as error:  # whatever networks, archives and disks raise
        # Another process may have been first, and then its copy serves.
        return None if folder.exists() else f"the download failed ({' '.join(str(error).split())})"
    return None


def _download_partitions(folder: Path) -> None:
    """SUN397's official partitions, which torchvision leaves out: lists of names, checked when they are read."""
    from torchvision.datasets.utils import download_and_extract_archive

    download_and_extract_archive(torchvision_sets.PARTITIONS_URL, str(folder), remove_finished=True)
