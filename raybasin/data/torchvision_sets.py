"""Data sets that torchvision knows: how each is constructed, read, split, scored and downloaded.

The sets of the StarSSE paper (Sadrtdinov et al. 2023) are read whole or not at all: the sizes of their splits are
checked. torchvision is imported only when a set is read, since that takes seconds.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raybasin.data import downloads
from raybasin.data.images import IntArray
from raybasin.data.stored import Labelled, PixelSplit, Split, Stored, split_of_files
from raybasin.errors import UserError
from raybasin.sweep.specs import DataSpec

ACCURACY, MEAN_CLASS_ACCURACY = "accuracy", "mean_class_accuracy"
"""The two metrics of data sets: columns of the table `scores`."""

Part = PixelSplit | Labelled
Call = Mapping[str, Any]
"""The arguments of a constructor that read one split."""


def _nhwc(dataset: Any) -> Part:
    """Sets in memory as [N, H, W] or [N, H, W, 3]. QMNIST's targets have further columns after the label."""
    pixels = np.asarray(dataset.data)
    labels = np.asarray(dataset.targets if hasattr(dataset, "targets") else dataset.labels)
    return PixelSplit(pixels, labels.reshape(len(pixels), -1)[:, 0].astype(np.int64))


def _nchw(dataset: Any) -> Part:
    return PixelSplit(dataset.data.transpose(0, 2, 3, 1), np.asarray(dataset.labels, dtype=np.int64))


def _paths(dataset: Any, attribute: str = "_image_files") -> Part:
    paths = map(str, getattr(dataset, attribute))
    return list(zip(paths, map(int, dataset._labels), strict=True))


def _samples(dataset: Any) -> Part:
    samples = dataset.samples if hasattr(dataset, "samples") else dataset._samples
    return [(str(path), int(label)) for path, label in samples]


def _caltech(dataset: Any, pattern: str) -> Part:
    """Caltech's constructors keep numbers in place of paths; `pattern` is how their __getitem__ makes the path."""
    return [
        (os.path.join(dataset.root, pattern.format(dataset.categories[label], number, label + 1)), int(label))
        for number, label in zip(dataset.index, dataset.y, strict=True)
    ]


def partition(pool: Labelled, folder: Path) -> tuple[Labelled, Labelled]:
    """SUN397's first official partition: 50 training and 50 test images of each of its 397 classes, named in two lists
    as `/a/abbey/sun_aaaenaaxldyvhvyz.jpg`."""
    by_name = {"/".join(Path(path).parts[Path(path).parts.index("SUN397") + 1 :]): (path, k) for path, k in pool}
    places = folder / "SUN397", folder / "SUN397" / "Partitions", folder / "Partitions", folder
    splits: list[Labelled] = []
    for name in ("Training_01.txt", "Testing_01.txt"):
        path = next((place / name for place in places if (place / name).is_file()), None)
        if path is None:
            raise UserError(
                f"{places[0]}: {name} is missing; the images are split by the first official partition: unpack\n"
                f"{PARTITIONS_URL} there"
            )
        try:
            wanted = [line.strip().removeprefix("/") for line in path.read_text().splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot read the list of images: {error}") from error
        if missing := [image for image in wanted if image not in by_name]:
            raise UserError(f"{path}: names {len(missing):,} images that are not there, such as {missing[0]}")
        splits.append(sorted(by_name[image] for image in wanted))
    return splits[0], splits[1]


def lowest_digests(pool: Labelled, folder: Path, per_class: int | None) -> tuple[Labelled, Labelled]:
    """Sets without an official split: of each class the `per_class` images (None: half of them, rounded down) whose
    names, as `class/name.jpg`, have the lowest SHA-256 are training images, the others test images: the same ones
    everywhere and for ever."""

    def digest(image: tuple[str, int]) -> bytes:
        return hashlib.sha256("/".join(Path(image[0]).parts[-2:]).encode()).digest()

    classes: dict[int, Labelled] = {}
    for path, label in sorted(pool, key=digest):
        classes.setdefault(label, []).append((path, label))
    train, test = Labelled(), Labelled()
    for images in classes.values():
        count = len(images) // 2 if per_class is None else per_class
        train += images[:count]
        test += images[count:]
    return sorted(train), sorted(test)


@dataclass(frozen=True)
class Known:
    """How to construct a data set of torchvision and what to read from it.

    Official validation images join the training pool, as is usual in transfer learning (Kornblith et al. 2019) and
    as in the runs of Sadrtdinov et al. (2023) that are scored on test.
    """

    factory: str
    url: str | None  # whose host must answer before a download is tried; None where torchvision has no download
    read: Callable[[Any], Part]
    train: Call
    test: Call | None  # None where the set is one pool
    val: Call | None = None  # official validation images
    cut: Callable[[Labelled, Path], tuple[Labelled, Labelled]] | None = None  # of a pool into training and test images
    sizes: tuple[int, int] | None = None  # images to train on, validation included, and test images of the whole set
    metric: str = ACCURACY


_FLAG: tuple[Call, Call] = {"train": True}, {"train": False}
_SPLIT: tuple[Call, Call] = {"split": "train"}, {"split": "test"}
_TRAINVAL: tuple[Call, Call] = {"split": "trainval"}, {"split": "test"}
_POOL: tuple[Call, None] = {}, None
_EMNIST: tuple[Call, Call] = {"train": True, "split": "balanced"}, {"train": False, "split": "balanced"}
_VAL, _VALID = {"split": "val"}, {"split": "valid"}
_CALTECH101 = partial(_caltech, pattern="101_ObjectCategories/{0}/image_{1:04d}.jpg")
_CALTECH256 = partial(_caltech, pattern="256_ObjectCategories/{0}/{2:03d}_{1:04d}.jpg")
_PETS = partial(_paths, attribute="_images")
_THIRTY, _HALF = partial(lowest_digests, per_class=30), partial(lowest_digests, per_class=None)
PARTITIONS_URL = "https://vision.princeton.edu/projects/2010/SUN/download/Partitions.zip"
OXFORD = "https://www.robots.ox.ac.uk"

TORCHVISION: Mapping[str, Known] = {
    # The sets of the paper (Sadrtdinov et al. 2023), with their sizes and metrics.
    "caltech101": Known(
        "Caltech101", "https://data.caltech.edu", _CALTECH101, *_POOL,
        cut=_THIRTY, sizes=(3030, 5647), metric=MEAN_CLASS_ACCURACY,
    ),
    "cifar10": Known("CIFAR10", "https://www.cs.toronto.edu", _nhwc, *_FLAG, sizes=(50000, 10000)),
    "cifar100": Known("CIFAR100", "https://www.cs.toronto.edu", _nhwc, *_FLAG, sizes=(50000, 10000)),
    "dtd": Known("DTD", OXFORD, _paths, *_SPLIT, val=_VAL, sizes=(3760, 1880)),
    "eurosat": Known("EuroSAT", "https://huggingface.co", _samples, *_POOL, cut=_HALF, sizes=(13500, 13500)),
    "fgvcaircraft": Known(
        "FGVCAircraft", OXFORD, _paths, *_SPLIT, val=_VAL, sizes=(6667, 3333), metric=MEAN_CLASS_ACCURACY
    ),
    "flowers102": Known(
        "Flowers102", OXFORD, _paths, *_SPLIT, val=_VAL, sizes=(2040, 6149), metric=MEAN_CLASS_ACCURACY
    ),
    "food101": Known("Food101", "http://data.vision.ee.ethz.ch", _paths, *_SPLIT, sizes=(75750, 25250)),
    "oxfordiiitpet": Known("OxfordIIITPet", OXFORD, _PETS, *_TRAINVAL, sizes=(3680, 3669), metric=MEAN_CLASS_ACCURACY),
    "stanfordcars": Known("StanfordCars", None, _samples, *_SPLIT, sizes=(8144, 8041)),
    "sun397": Known("SUN397", "http://vision.princeton.edu", _paths, *_POOL, cut=partition, sizes=(19850, 19850)),
    # Others.
    "caltech256": Known("Caltech256", "https://data.caltech.edu", _CALTECH256, *_POOL),
    "country211": Known("Country211", "https://openaipublic.azureedge.net", _samples, *_SPLIT, val=_VALID),
    "emnist": Known("EMNIST", "https://biometrics.nist.gov", _nhwc, *_EMNIST),
    "fashionmnist": Known("FashionMNIST", "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com", _nhwc, *_FLAG),
    "gtsrb": Known("GTSRB", "https://sid.erda.dk", _samples, *_SPLIT),
    "imagenette": Known("Imagenette", "https://s3.amazonaws.com", _samples, {"split": "train"}, _VAL),
    "kmnist": Known("KMNIST", "http://codh.rois.ac.jp", _nhwc, *_FLAG),
    "mnist": Known("MNIST", "https://ossci-datasets.s3.amazonaws.com", _nhwc, *_FLAG),
    "qmnist": Known("QMNIST", "https://raw.githubusercontent.com", _nhwc, *_FLAG),
    "renderedsst2": Known("RenderedSST2", "https://openaipublic.azureedge.net", _samples, *_SPLIT, val=_VAL),
    "semeion": Known("SEMEION", "http://archive.ics.uci.edu", _nhwc, *_POOL),
    "stl10": Known("STL10", "http://ai.stanford.edu", _nchw, *_SPLIT),
    "svhn": Known("SVHN", "http://ufldl.stanford.edu", _nchw, *_SPLIT),
    "usps": Known("USPS", "https://www.csie.ntu.edu.tw", _nhwc, *_FLAG),
}  # fmt: skip


def metric_of(name: str) -> str:
    """What the data set `name` is scored by: `accuracy`, or `mean_class_accuracy` for four sets of the paper."""
    known = TORCHVISION.get(name)
    return known.metric if known else ACCURACY


def open(folder: Path, spec: DataSpec) -> Stored | None:
    """The set `spec.name` in torchvision's own layout under `folder`, or None where it is not there.

    Raises UserError for one that is damaged, that names files outside `folder`, or from which images are missing.
    """
    known = TORCHVISION.get(spec.name)
    if known is None:
        return None
    if known.factory.startswith("Caltech") and not (folder / spec.name).is_dir():
        return None  # their constructors would make that folder
    calls = (known.train, known.val, known.test)
    try:
        constructed = [None if call is None else construct(known, folder, call, download=False) for call in calls]
    except (RuntimeError, FileNotFoundError):  # torchvision's "not found or corrupted", and USPS's missing file
        return None
    except MemoryError:
        raise
    except Exception as error:  # damaged lists and tables raise nearly anything
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{folder}: torchvision cannot read {spec.name} here: {reason}") from error
    parts = [None if one is None else known.read(one) for one in constructed]
    train, test, official_n = _splits(known, folder, *parts)
    # A copy from which images are missing gives other results.
    sizes = len(train.labels_N), len(test.labels_N) if test else 0
    if known.sizes not in (None, sizes):
        expected = "{:,} images to train on (validation included) and {:,} to test on".format(*known.sizes)
        raise UserError(
            f"{folder}: {spec.name} has {expected}, but {sizes[0]:,} and {sizes[1]:,} were found here;\n"
            "fetch the data set anew, or bring what you have into an image folder (train/<class>/*.jpg, test/...)"
        )
    names = getattr(constructed[0], "classes", None) or getattr(constructed[0], "categories", None) or ()
    # Imagenette gives each class several names.
    class_names = [name if isinstance(name, str) else ", ".join(name) for name in names]
    source = f"torchvision's files of {spec.name} in '{folder}'"
    return Stored(train, test, class_names or None, source, official_n)


def _splits(known: Known, folder: Path, train: Any, val: Any, test: Any) -> tuple[Split, Split | None, IntArray | None]:
    """Training and test images, and which of the training images are the official validation images. Files are sorted,
    since some of torchvision's lists are in the file system's order, and must be inside `folder`."""
    if isinstance(train, PixelSplit):
        return train, test, None
    inside = os.path.join(os.path.abspath(folder), "")
    for path, _ in itertools.chain(train, val or (), test or ()):
        if not os.path.abspath(path).startswith(inside):
            raise UserError(f"{folder}: a list of images names '{path}', outside the folder")
    if known.cut:
        train, test = known.cut(sorted(train), folder)
    official = {path for path, _ in val or ()}
    train = sorted([*train, *(val or ())])
    official_n = np.flatnonzero([path in official for path, _ in train]) if official else None
    return split_of_files(train), split_of_files(sorted(test)) if test else None, official_n


def construct(known: Known, folder: Path, arguments: Mapping[str, Any], *, download: bool) -> Any:
    """The data set of torchvision in `folder`. Raises whatever torchvision does."""
    from torchvision import datasets

    # StanfordCars takes `download` only to refuse it, and others not at all: say nothing unless it is wanted.
    # SEMEION alone downloads unless told not to.
    wanted = {"download": download} if download or known.factory == "SEMEION" else {}
    return getattr(datasets, known.factory)(root=str(folder), **arguments, **wanted)


def download(wanted: Known, folder: Path) -> str | None:
    """Downloads a set into `folder` all or nothing; the reason where nothing came.

    torchvision takes some data sets for present as soon as their folder exists. So it works in a folder beside, which
    gets its name only when every split could be read.
    """
    if wanted.url is None:
        return "torchvision has no download for this data set"
    if reason := downloads.unreachable(wanted.url):
        return f"cannot be downloaded ({reason})"
    try:
        from torchvision.datasets import utils

        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True)
        with beside as new, downloads.socket_timeout(downloads.STALL_SECONDS):
            for call in (wanted.train, wanted.val, wanted.test):
                if call is not None:
                    construct(wanted, Path(new), call, download=True)
            if wanted.cut is partition:
                # The official partitions, which torchvision leaves out: lists of names, checked when they are read.
                partitions = str(Path(new) / "SUN397")
                utils.download_and_extract_archive(PARTITIONS_URL, partitions, remove_finished=True)
            os.chmod(new, 0o755)  # it was for its owner alone
            os.rename(new, folder)
    except MemoryError:
        raise
    except Exception as error:  # whatever networks, archives and disks raise
        # Another process may have been first, and then its copy serves.
        return None if folder.exists() else f"the download failed ({' '.join(str(error).split())})"
    return None
