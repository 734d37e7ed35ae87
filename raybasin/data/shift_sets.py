"""Further evaluation sets, which `shifts` of the sweep file names: published ones, and the test split corrupted.

`index` finds what is wrong and fingerprints the images that are evaluated on; `load` decodes or makes them.

Corruptions are those of Hendrycks and Dietterich (ICLR 2019) with the parameters of ImageNet-C, made by the package
imagecorruptions-imaug. It draws from NumPy's global generator, which is set anew for every image from a stable hash,
and put back afterwards: an image is the same whatever else is drawn. (NumPy's legacy generator and the hash never
change; the package's version is in the fingerprint.) Axes are those of dataset.py.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raybasin.data import dataset, formats
from raybasin.data.dataset import Classes, DataIndex, DataSet, Images, Selection
from raybasin.data.decoding import as_array
from raybasin.data.images import IntArray, PixelArray
from raybasin.data.stored import PixelSplit, StoredSplit, audit
from raybasin.errors import UserError, nearest, some
from raybasin.sweep import ids
from raybasin.sweep.facts import ShiftFacts
from raybasin.sweep.specs import SEVERITIES, DataSpec, ShiftSpec, SweepSpec, shift_splits

PACKAGE = "imagecorruptions-imaug"
LEAST_SIDE = 32
"""The package takes no smaller images."""
TAKES_SEED = ("glass_blur", "impulse_noise")
"""Corruptions that do not draw from NumPy's global generator."""

_one_at_a_time = threading.Lock()


def index(spec: SweepSpec, target: DataIndex) -> tuple[ShiftFacts, ...]:
    """Name, fingerprint and size of every further evaluation set, in the order of the sweep file.

    A fingerprint is the SHA-256 of the images that are evaluated on, as they are stored, and their labels; of corrupted
    ones of what they are made from, and by which version of which package. Raises UserError.
    """
    facts: list[ShiftFacts] = []
    for name, shift in spec.shifts.items():
        if shift.format == "corrupt":
            facts += _index_corrupted(name, shift, spec.data, target)
            continue
        for split, _, notes, chosen in _stored(name, shift, spec.data, target.classes):
            notes = (*notes, *dataset.copies_of_training(target, chosen))
            facts.append(ShiftFacts(split, _fingerprint(chosen), len(chosen), notes))
    return tuple(facts)


def load(spec: SweepSpec, target: DataSet, planned: Sequence[ShiftFacts]) -> dict[str, Images]:
    """The images of every further evaluation set by its split, each at one size (as `dataset.load`). Raises UserError,
    also where a set is not any more what `index` saw."""
    fingerprints = {facts.name: facts.fingerprint for facts in planned}
    images: dict[str, Images] = {}
    for name, shift in spec.shifts.items():
        if shift.format == "corrupt":
            chosen_n = _choose(name, shift, spec.data, target.test.labels_N, target.classes)
            images_nHWC, labels_n = as_array(target.test.images_NHWC, chosen_n), target.test.labels_N[chosen_n]
            for one in shift_splits({name: shift}):
                assert one.corruption is not None and one.severity is not None
                made_nHWC = corrupted(images_nHWC, chosen_n, one.corruption, one.severity)
                images[one.name] = Images(made_nHWC, labels_n)
            continue
        for split, where, _, chosen in _stored(name, shift, spec.data, target.classes):
            if _fingerprint(chosen) != fingerprints[split]:
                raise UserError(f"shifts.{name}: {where} has changed since the sweep began; run it again")
            images[split] = Images(dataset.pixels(chosen), chosen.labels_n)
    return images


def _choose(name: str, shift: ShiftSpec, spec: DataSpec, labels_N: IntArray, classes: Classes) -> IntArray:
    """Ascending positions of the images that are evaluated on: stratified by class where not all of them are."""
    pool_n = np.flatnonzero(labels_N >= 0)
    if not len(pool_n):
        raise UserError(f"shifts.{name}: holds no image of the classes that data.classes keeps")
    where = f"shifts.{name}.images"
    return dataset.stratified(where, "shifts", shift.images, labels_N, pool_n, classes, spec.split_seed)


def _stored(
    name: str, shift: ShiftSpec, spec: DataSpec, classes: Classes
) -> Iterator[tuple[str, Path, tuple[str, ...], Selection]]:
    """Each set: its split in the tables, where it lies, notes of what is not read, and the images of classes that are
    kept, or as many of them as are asked for."""
    assert shift.dir is not None
    key = f"shifts.{name}.dir"
    folder = formats.existing_folder(key, shift.dir)
    for one in shift_splits({name: shift}):
        where = folder
        if shift.format == "folder":
            found = formats.open_split(key, folder, shift.split)
        elif shift.format == "cifar-10.1":
            prefix = f"cifar10.1_{shift.version}"
            found = StoredSplit(_arrays(name, folder / f"{prefix}_data.npy", folder / f"{prefix}_labels.npy"), None)
        else:
            where = folder / f"{one.corruption}.npy"
            found = StoredSplit(_arrays(name, where, folder / "labels.npy", one.severity), None)
        labels_N = _match_classes(name, where, found, classes)
        index_n = _choose(name, shift, spec, labels_N, classes)
        labels_n, split = labels_N[index_n], found.split
        if isinstance(split, PixelSplit):  # copied: what is fingerprinted is what is loaded, and no more than that
            split, index_n = PixelSplit(split.pixels[index_n], labels_n), np.arange(len(index_n))
        seen = audit(split)
        chosen = Selection("shift", split, seen, dataset.array_size(seen.sizes, spec), index_n, labels_n)
        yield one.name, where, found.notes, chosen


def _match_classes(name: str, where: Path, found: StoredSplit, classes: Classes) -> IntArray:
    """The sweep's class 0..K-1 of each image: the one of the same name or, where the set has no names, of the same
    stored label. -1 for classes that the sweep does not keep. Raises UserError for those that its data do not have."""
    by_name = found.class_names is not None
    labels_of: dict[str, list[int]] = {}
    for label, word in classes.stored.items():
        if not by_name and dataset.is_number(word) and word != str(label):
            raise UserError(
                f"shifts.{name}: {where} has numbers in place of names, and the sweep's data call class {label} "
                f"'{word}', so they cannot be matched; give the set names (class folders, or classes.json)"
            )
        labels_of.setdefault(word if by_name else str(label), []).append(label)
    labels, position_N = np.unique(found.split.labels_N, return_inverse=True)
    names = dict(enumerate(found.class_names or ()))
    words = [names.get(label, str(label)) for label in labels.tolist()]
    if unknown := [word for word in words if word not in labels_of]:
        raise UserError(
            f"shifts.{name}: {where} holds the {'class' if len(unknown) == 1 else 'classes'} {some(unknown)}, "
            f"which the sweep's data do not have{nearest(unknown[0], labels_of)}"
        )
    if twice := [word for word in words if len(labels_of[word]) > 1]:
        raise UserError(
            f"shifts.{name}: '{twice[0]}' is the name of classes {labels_of[twice[0]]} of the sweep's data, so images "
            "of that class cannot be matched"
        )
    return classes.number(np.asarray([labels_of[word][0] for word in words], dtype=np.int64))[position_N]


def _fingerprint(chosen: Selection) -> str:
    """Of the images, as they are stored, and of their labels."""
    if isinstance(chosen.split, PixelSplit):
        return chosen.audit.fingerprint
    positions = chosen.index_n.tolist(), chosen.labels_n.tolist()
    return hashlib.sha256(ids.digest(chosen.audit.fingerprint, chosen.size, *positions).encode()).hexdigest()


def _arrays(name: str, pixels_path: Path, labels_path: Path, severity: int | None = None) -> PixelSplit:
    """Images [N, H, W, 3] and labels [N] of CIFAR-10.1 or CIFAR-C, of which one severity follows the other in equal
    numbers. Pixels stay on the disk until they are asked for."""
    pixels, labels = _array(name, pixels_path), _array(name, labels_path)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or 0 in pixels.shape:
        raise UserError(f"{pixels_path}: must hold uint8 [N, H, W, 3], not {pixels.dtype} {list(pixels.shape)}")
    if labels.dtype.kind not in "iu" or labels.shape != pixels.shape[:1]:
        raise UserError(
            f"{labels_path}: must hold {len(pixels):,} integers, one for each image of {pixels_path.name}, "
            f"not {labels.dtype} {list(labels.shape)}"
        )
    if severity is not None:
        each, rest = divmod(len(labels), len(SEVERITIES))
        if rest:
            raise UserError(
                f"{pixels_path}: must hold as many images of each of 5 severities, and holds {len(labels):,}"
            )
        block = slice((severity - 1) * each, severity * each)
        pixels, labels = pixels[block], labels[block]
    return PixelSplit(pixels, labels.astype(np.int64))


def _array(name: str, path: Path) -> npt.NDArray[Any]:
    if not path.is_file():
        there = [other.name for other in path.parent.glob("*.npy")]
        raise UserError(f"shifts.{name}.dir: there is no file {path}{nearest(path.name, there) if there else ''}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:  # damaged headers make NumPy raise nearly anything
        raise UserError(f"{path}: not a readable .npy file ({' '.join(str(error).split())})") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path}: must be one array, and is an archive of several")
    return array


def corrupted(images_nHWC: PixelArray, positions_n: IntArray, corruption: str, severity: int) -> PixelArray:
    """The images with one corruption, uint8 of the same shape. Raises UserError if the package cannot be imported.

    What is drawn for an image follows from corruption, severity and its position alone. Where a draw ends in a division
    by zero (a spatter without a drop, in 2 of 100 images of 32 pixels at severity 1), for which the package would
    return black pixels, it is drawn again.

    Args:
        images_nHWC: uint8, 32 pixels or more each way.
        positions_n: where each image stands in its split, whichever others are made.
        corruption: one of `specs.CORRUPTIONS`.
        severity: 1 to 5, as in ImageNet-C.
    """
    corrupt, _ = _package()
    made_nHWC = np.empty_like(images_nHWC)
    with _one_at_a_time:
        before = np.random.get_state()
        try:
            for place, position in enumerate(positions_n.tolist()):
                for attempt in count():
                    seed = ids.random_seed("corruption", corruption, severity, position, attempt)
                    np.random.seed([seed % 2**32, seed // 2**32])
                    given = {"seed": seed % 2**32} if corruption in TAKES_SEED else {}
                    with suppress(FloatingPointError), np.errstate(divide="raise", invalid="raise"):
                        made_nHWC[place] = corrupt(
                            images_nHWC[place], severity=severity, corruption_name=corruption, **given
                        )
                        break
        finally:
            np.random.set_state(before)
    return made_nHWC


def _index_corrupted(name: str, shift: ShiftSpec, spec: DataSpec, target: DataIndex) -> Iterator[ShiftFacts]:
    test = target.test
    if min(test.size) < LEAST_SIDE:
        raise UserError(
            f"shifts.{name}: corruptions are made for images of {LEAST_SIDE} pixels or more; "
            f"the test images of {spec.name} are {test.size[0]} x {test.size[1]} as they are stored"
        )
    chosen_n = _choose(name, shift, spec, test.labels_n, target.classes)
    made_from = hashlib.sha256(test.audit.fingerprint.encode())
    for part in (test.size, chosen_n, test.index_n[chosen_n], test.labels_n[chosen_n]):
        made_from.update(np.asarray(part).astype("<i8").tobytes())
    for split in shift_splits({name: shift}):
        made = ids.digest(made_from.hexdigest(), _package()[1], split.corruption, split.severity)
        yield ShiftFacts(split.name, hashlib.sha256(made.encode()).hexdigest(), len(chosen_n))


def _package() -> tuple[Callable[..., PixelArray], str]:
    """The function that makes corruptions, and of which version of which package it is."""
    try:
        version = metadata.version(PACKAGE)  # an older package, which no longer works, has a module of the same name
        from imagecorruptions import corrupt
    except ImportError as error:
        without_display = "\nWithout a display put the package opencv-python-headless in the place of opencv-python."
        hint = without_display if "libGL" in str(error) else ""
        raise UserError(
            f"shifts: format corrupt needs packages that cannot be imported here ({error}); "
            f'pip install "raybasin[shifts]"{hint}'
        ) from error
    return corrupt, f"{PACKAGE} {version}"
