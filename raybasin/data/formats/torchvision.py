"""torchvision's own files of the data sets that it knows.

The official validation images always join the training images; they are the validation split where they are asked for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raybasin.data import torchvision_sets
from raybasin.data.images import IntArray
from raybasin.data.stored import Labelled, PixelSplit, Split, Stored, split_of_files
from raybasin.data.torchvision_sets import Known, Part
from raybasin.errors import UserError
from raybasin.sweep.specs import DataSpec


def open(folder: Path, spec: DataSpec) -> Stored | None:
    """The set `spec.name` in torchvision's own layout under `folder`, or None where it is not there.

    Raises UserError for one that is damaged, that names files outside `folder`, or from which images are missing.
    """
    known = torchvision_sets.TORCHVISION.get(spec.name)
    if known is None:
        return None
    if known.factory.startswith("Caltech") and not (folder / spec.name).is_dir():
        return None  # their constructors would make that folder
    try:
        constructed = [
            [torchvision_sets.construct(known, folder, arguments, download=False) for arguments in calls]
            for calls in (known.train, known.val, known.test)
        ]
    except (RuntimeError, FileNotFoundError):  # torchvision's "not found or corrupted", and USPS's missing file
        return None
    except MemoryError:
        raise
    except Exception as error:  # damaged lists and tables raise nearly anything
        raise UserError(
            f"{folder}: torchvision cannot read {spec.name} here: {type(error).__name__}: {error}"
        ) from error
    train, test, official_n = _splits(known, folder, *([known.read(one) for one in calls] for calls in constructed))
    # A copy from which images are missing gives other results.
    sizes = len(train.labels_N), len(test.labels_N) if test else 0
    if known.sizes not in (None, sizes):
        expected = "{:,} images to train on (validation included) and {:,} to test on".format(*known.sizes)
        raise UserError(
            f"{folder}: {spec.name} has {expected}, but {sizes[0]:,} and {sizes[1]:,} were found here;\n"
            "fetch the data set anew, or bring what you have into an image folder (train/<class>/*.jpg, test/...)"
        )
    names = getattr(constructed[0][0], "classes", None) or getattr(constructed[0][0], "categories", None) or ()
    # Imagenette gives each class several names.
    class_names = [name if isinstance(name, str) else ", ".join(name) for name in names]
    source = f"torchvision's files of {spec.name} in '{folder}'"
    return Stored(train, test, class_names or None, source, official_n)


def _splits(
    known: Known, folder: Path, train: list[Part], val: list[Part], test: list[Part]
) -> tuple[Split, Split | None, IntArray | None]:
    """Training and test images, and which of the training images are the official validation images."""
    if isinstance(train[0][0], np.ndarray):
        return _pixels(train), _pixels(test) if test else None, None
    train_files, val_files, test_files = (_labelled(parts, folder) for parts in (train, val, test))
    if known.cut:
        train_files, test_files = known.cut(train_files, folder)
    train_files = sorted(train_files + val_files)
    official = {path for path, _ in val_files}
    official_n = np.flatnonzero([path in official for path, _ in train_files]) if official else None
    return split_of_files(train_files), split_of_files(test_files) if test_files else None, official_n


def _labelled(parts: Sequence[Part], folder: Path) -> Labelled:
    """In their own order, since some of torchvision's lists are in the file system's. Paths must be inside `folder`."""
    labelled = sorted((str(path), int(label)) for part in parts for path, label in zip(*part, strict=True))
    inside = os.path.join(os.path.abspath(folder), "")
    for path, _ in labelled:
        if not os.path.abspath(path).startswith(inside):
            raise UserError(f"{folder}: a list of images names '{path}', outside the folder")
    return labelled


def _pixels(parts: Sequence[Part]) -> PixelSplit:
    labels = [int(label) for _, part in parts for label in part]
    return PixelSplit(np.concatenate([images for images, _ in parts]), np.asarray(labels, dtype=np.int64))
