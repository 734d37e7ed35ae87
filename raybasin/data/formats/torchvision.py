"""torchvision's own files of the data sets that it knows.

The official validation images always join the training images; they are the validation split where they are asked for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raybasin.data import torchvision_sets
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
    parts = [[_part(known, dataset, folder) for dataset in datasets] for datasets in constructed]
    train, test, official_n = _splits(known, folder, *parts)
    _check_sizes(spec.name, known, train, test, folder)
    source = f"torchvision's files of {spec.name} in '{folder}'"
    return Stored(train, test, _names(constructed[0][0]), source, official_n)


def _part(known: Known, dataset: Any, folder: Path) -> Part:
    """What torchvision read; paths from its lists must stay inside `folder`."""
    images, labels = known.read(dataset)
    if isinstance(images, list):
        inside = os.path.join(os.path.abspath(folder), "")
        for path in images:
            if not os.path.abspath(path).startswith(inside):
                raise UserError(f"{folder}: a list of images names '{path}', outside the folder")
    return images, labels


def _splits(
    known: Known, folder: Path, train: list[Part], val: list[Part], test: list[Part]
) -> tuple[Split, Split | None, np.ndarray | None]:
    """Training and test images, and which of the training images are the official validation images. Paths are in their
    own order: some of torchvision's lists are in the file system's."""
    if isinstance(train[0][0], np.ndarray):
        return _pixels(train), _pixels(test) if test else None, None
    train_files, val_files, test_files = map(_labelled, (train, val, test))
    if known.cut:
        train_files, test_files = known.cut(train_files, folder)
    official = {path for path, _ in val_files}
    train_files = sorted(train_files + val_files)
    official_n = np.flatnonzero([path in official for path, _ in train_files]) if official else None
    return split_of_files(train_files), split_of_files(test_files) if test_files else None, official_n


def _labelled(parts: Sequence[Part]) -> Labelled:
    return sorted((str(path), int(label)) for part in parts for path, label in zip(*part, strict=True))


def _pixels(parts: Sequence[Part]) -> PixelSplit:
    labels = [int(label) for _, part in parts for label in part]
    return PixelSplit(np.concatenate([images for images, _ in parts]), np.asarray(labels, dtype=np.int64))


def _check_sizes(name: str, known: Known, train: Split, test: Split | None, folder: Path) -> None:
    """Whether a set of known sizes is there whole: a copy from which images are missing gives other results."""
    n_train, n_test = len(train.labels_N), len(test.labels_N) if test else 0
    if known.sizes is not None and (n_train, n_test) != known.sizes:
        expected = "{:,} images to train on (validation included) and {:,} to test on".format(*known.sizes)
        raise UserError(
            f"{folder}: {name} has {expected}, but {n_train:,} and {n_test:,} were found here;\n"
            "fetch the data set anew, or bring what you have into an image folder (train/<class>/*.jpg, test/...)"
        )


def _names(dataset: Any) -> list[str] | None:
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
    # Imagenette gives each class several names.
    return [name if isinstance(name, str) else ", ".join(name) for name in names] if names else None
