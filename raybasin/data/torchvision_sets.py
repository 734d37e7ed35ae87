"""Data sets that torchvision knows: how each is constructed, what is read from it, and how it is split and scored.

The sets of the StarSSE paper (Sadrtdinov et al. 2023) are read whole or not at all: the sizes of their splits are
checked. torchvision is imported only when a set is read, since that takes seconds.

Axes: N images, H height, W width.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raybasin.data.images import PixelArray
from raybasin.data.stored import Labelled
from raybasin.errors import UserError

ACCURACY, MEAN_CLASS_ACCURACY = "accuracy", "mean_class_accuracy"
"""The two metrics of data sets: columns of the table `scores`."""

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


# The sets of the paper that torchvision gives as one pool: how it is cut into training and test images


def partition(pool: Labelled, folder: Path) -> tuple[Labelled, Labelled]:
    """SUN397's first official partition: 50 training and 50 test images of each of its 397 classes."""
    by_name = {"/".join(Path(path).parts[Path(path).parts.index("SUN397") + 1 :]): (path, k) for path, k in pool}
    return _listed(by_name, folder, "Training_01.txt"), _listed(by_name, folder, "Testing_01.txt")


def _listed(by_name: Mapping[str, tuple[str, int]], folder: Path, name: str) -> Labelled:
    """The images that a list of the partition names, as `/a/abbey/sun_aaaenaaxldyvhvyz.jpg`."""
    places = folder / "SUN397", folder / "SUN397" / "Partitions", folder / "Partitions", folder
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
    return sorted(by_name[image] for image in wanted)


def lowest_digests(pool: Labelled, folder: Path, per_class: int | None) -> tuple[Labelled, Labelled]:
    """Sets without an official split: of each class the `per_class` images (None: half of them, rounded down) whose
    names, as `class/name.jpg`, have the lowest SHA-256 are training images, the others test images.

    No generator and no order of files has a part in it, so the split is the same everywhere and for ever.
    """

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
    train: Calls
    test: Calls  # none where the set is one pool
    val: Calls = ()  # official validation images
    cut: Callable[[Labelled, Path], tuple[Labelled, Labelled]] | None = None  # of a pool into training and test images
    sizes: tuple[int, int] | None = None  # images to train on, validation included, and test images of the whole set
    metric: str = ACCURACY


_FLAG: tuple[Calls, Calls] = ({"train": True},), ({"train": False},)
_SPLIT: tuple[Calls, Calls] = ({"split": "train"},), ({"split": "test"},)
_TRAINVAL: tuple[Calls, Calls] = ({"split": "trainval"},), ({"split": "test"},)
_NO_TEST: tuple[Calls, Calls] = ({"split": "train"},), ({"split": "val"},)
_POOL: tuple[Calls, Calls] = ({},), ()
_EMNIST: tuple[Calls, Calls] = ({"train": True, "split": "balanced"},), ({"train": False, "split": "balanced"},)
_VAL: Calls = ({"split": "val"},)
_VALID: Calls = ({"split": "valid"},)
_CALTECH101 = partial(_caltech, pattern="101_ObjectCategories/{category}/image_{number:04d}.jpg")
_CALTECH256 = partial(_caltech, pattern="256_ObjectCategories/{category}/{label:03d}_{number:04d}.jpg")
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
    "imagenette": Known("Imagenette", "https://s3.amazonaws.com", _samples, *_NO_TEST),
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


def construct(known: Known, folder: Path, arguments: Mapping[str, Any], *, download: bool) -> Any:
    """The data set of torchvision in `folder`. Raises whatever torchvision does."""
    from torchvision import datasets

    # StanfordCars takes `download` only to refuse it, and others not at all: say nothing unless it is wanted.
    # SEMEION alone downloads unless told not to.
    wanted = {"download": download} if download or known.factory == "SEMEION" else {}
    return getattr(datasets, known.factory)(root=str(folder), **arguments, **wanted)
