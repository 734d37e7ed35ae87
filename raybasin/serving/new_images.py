"""Images that a network has not seen: folders, files, Parquet and NumPy files, arrays. They are read a batch at a time,
so that there may be more than memory holds.

Axes: N images, H, W pixels, C channels.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raybasin.data import images
from raybasin.data.formats import image_folder, parquet
from raybasin.data.images import IMAGE_SUFFIXES, PixelArray
from raybasin.data.stored import counted, split_of_files
from raybasin.errors import UserError, some

LABELLED_ARRAYS = ("images", "labels")
"""What a `.npz` file holds."""


class NewImage(NamedTuple):
    """One image, and its class where that is known."""

    name: str
    """A path, or the file and the number in it."""
    label: str | None
    stored: bytes | PixelArray
    """As an image file, or its pixels [H, W] or [H, W, 3]."""


@dataclass(frozen=True)
class NewImages:
    """`n` images, which `read` gives one after another; `notes` say what was passed over."""

    n: int
    read: Callable[[], Iterator[NewImage]]
    notes: tuple[str, ...] = ()


def find(given: Any, classes: Sequence[str], labels: Sequence[Any] | None = None) -> NewImages:
    """What is given as images.

    Args:
        given: a path, several of them, an array [N, H, W] or [N, H, W, 3] of uint8, or a list of images of Pillow or
            arrays. A path is a folder of images (at any depth), an image, a `.parquet`, `.npy` or `.npz` file.
        classes: what the network knows: an image below a folder of such a name is taken for one of that class.
        labels: of arrays or images, the name or the number of each one's class.

    Raises:
        UserError: for what is not there, holds no images, or holds images of another kind.
    """
    if isinstance(given, str | os.PathLike):
        given = [given]
    if not isinstance(given, np.ndarray) and isinstance(given, Iterable):
        given = list(given)
        if given and all(isinstance(one, str | os.PathLike) for one in given):
            if labels is not None:
                raise UserError("labels: are for arrays; folders and Parquet files hold their own")
            return _together([_at(Path(path).expanduser(), classes) for path in given])
    return _of_arrays("array", given, _names(labels, classes, "labels"))


def _together(parts: Sequence[NewImages]) -> NewImages:
    if len(parts) == 1:
        return parts[0]
    notes = tuple(note for part in parts for note in part.notes)
    return NewImages(sum(part.n for part in parts), lambda: itertools.chain(*(part.read() for part in parts)), notes)


def _at(path: Path, classes: Sequence[str]) -> NewImages:
    if path.is_dir():
        return _in_folder(path, classes)
    if not path.is_file():
        raise UserError(f"{path}: is not there; name folders, images, or .parquet, .npy or .npz files")
    if path.suffix == parquet.ENDING:
        return _in_parquet(path)
    if path.suffix in (".npy", ".npz"):
        return _in_numpy(path, classes)
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise UserError(
            f"{path}: is no image by its ending; known are {', '.join(IMAGE_SUFFIXES)}, .parquet, .npy, .npz"
        )
    return _of_files([str(path)], [None])


# Files


def _in_folder(folder: Path, classes: Sequence[str]) -> NewImages:
    """All images below it, by path. Where none are, but Parquet files, those."""
    walked = list(image_folder.walk(str(folder)))
    paths = sorted(path for path, why in walked if why is None)
    tables = sorted(path for path, why in walked if why == parquet.ENDING)
    if not paths and tables:
        return _together([_in_parquet(Path(path)) for path in tables])
    if not paths:
        raise UserError(f"{folder}: holds no images (files that end in {', '.join(IMAGE_SUFFIXES[:5])}, ...)")
    known = set(classes)
    labels = [_class_of(path[len(str(folder)) :], known) for path in paths]
    passed = [path for path, why in walked if why is not None]
    notes = [f"{folder}: passed over {counted(passed, 'file')}, such as {passed[0]}"] if passed else []
    without = [path for path, label in zip(paths, labels, strict=True) if label is None]
    if without and len(without) < len(paths):
        notes.append(f"{folder}: {counted(without, 'image')} in no folder of a class, such as {without[0]}")
    return _of_files(paths, labels, tuple(notes))


def _class_of(path: str, classes: set[str]) -> str | None:
    """The nearest folder that has the name of a class."""
    return next((part for part in reversed(path.split(os.sep)[:-1]) if part in classes), None)


def _of_files(paths: Sequence[str], labels: Sequence[str | None], notes: tuple[str, ...] = ()) -> NewImages:
    def read() -> Iterator[NewImage]:
        contents = split_of_files([(path, -1) for path in paths]).read(np.arange(len(paths)))
        for label, (where, content) in zip(labels, contents, strict=True):
            yield NewImage(where, label, content)

    return NewImages(len(paths), read, notes)


def _in_parquet(path: Path) -> NewImages:
    split, labels = parquet.images_of(path)
    n = len(split.labels_N)
    if not n:
        raise UserError(f"{path}: holds no images")

    def read() -> Iterator[NewImage]:
        for label, (where, content) in zip(labels or itertools.repeat(None), split.read(np.arange(n)), strict=False):
            yield NewImage(where, label, content)

    return NewImages(n, read)


def _in_numpy(path: Path, classes: Sequence[str]) -> NewImages:
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return _of_arrays(str(path), loaded, None)
        with loaded:
            found = {name: loaded[name] for name in loaded.files if name in LABELLED_ARRAYS}
            if "images" not in found:
                raise UserError(
                    f"{path}: must hold the arrays images and, where known, labels; it has {some(loaded.files)}"
                )
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as a NumPy file ({' '.join(str(error).split())[:200]})") from error
    labels = found.get("labels")
    return _of_arrays(str(path), found["images"], _names(labels, classes, f"{path}: labels"))


# Arrays


def _of_arrays(where: str, given: Any, labels: Sequence[str | None] | None) -> NewImages:
    if not isinstance(given, np.ndarray | list):
        raise UserError(f"images: must be paths, an array [N, H, W, 3] of uint8 or a list of images, not {type(given)}")
    n = len(given) if getattr(given, "ndim", 1) else 0
    if not n:
        raise UserError(f"{where}: holds no images")
    if isinstance(given, np.ndarray):
        _check_pixels(where, given[0], given.shape)
    if labels is not None and len(labels) != n:
        raise UserError(f"{where}: {n:,} images and {len(labels):,} labels; there must be one for each image")

    def read() -> Iterator[NewImage]:
        for position in range(n):
            name = f"{where}, image {position}"
            yield NewImage(name, labels[position] if labels else None, _pixels_of(name, given[position]))

    return NewImages(n, read)


def _pixels_of(name: str, image: Any) -> PixelArray:
    """Of an array, or an image of Pillow."""
    pixels = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    _check_pixels(name, pixels, pixels.shape)
    return pixels


def _check_pixels(name: str, pixels: PixelArray, shape: tuple[int, ...]) -> None:
    if pixels.dtype != np.uint8:
        raise UserError(f"{name}: holds {pixels.dtype}; pixels must be uint8, from 0 to 255")
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] == 3)) or 0 in pixels.shape:
        raise UserError(f"{name}: has the shape {list(shape)}; an image is [H, W], grey, or [H, W, 3]")
    if pixels.shape[0] * pixels.shape[1] > images.MAX_PIXELS:
        raise UserError(f"{name}: {pixels.shape[1]} x {pixels.shape[0]} pixels; at most {images.MAX_PIXELS:,} are read")


def _names(labels: Any, classes: Sequence[str], where: str) -> list[str | None] | None:
    """Labels by name; numbers are positions in `classes`, negative ones stand for none."""
    if labels is None:
        return None
    names: list[str | None] = []
    for label in np.asarray(labels).tolist():
        if isinstance(label, str):
            names.append(label)
        elif isinstance(label, int) and not isinstance(label, bool) and label < len(classes):
            names.append(classes[label] if label >= 0 else None)
        else:
            raise UserError(f"{where}: {label!r}: must be the name of a class or its number, below {len(classes)}")
    return names
