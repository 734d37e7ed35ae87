"""Further evaluation sets, which `shifts` of the sweep file names: published ones, and the test split corrupted.

`index` finds what is wrong and fingerprints the images that are evaluated on; `load` decodes or makes them.

Axes: N images of a stored set, K classes. A lower-case letter is a selection of that axis: `index_n` holds positions
among the N images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raybasin.data import corruptions, dataset, formats
from raybasin.data.dataset import Classes, DataIndex, DataSet, Images, Selection
from raybasin.data.decoding import as_array
from raybasin.data.images import IntArray
from raybasin.data.stored import PixelSplit, StoredSplit, audit
from raybasin.errors import UserError, nearest, some
from raybasin.sweep.facts import ShiftFacts
from raybasin.sweep.ids import digest
from raybasin.sweep.specs import SEVERITIES, DataSpec, ShiftSpec, SweepSpec, shift_splits


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
                made_nHWC = corruptions.corrupted(images_nHWC, chosen_n, one.corruption, one.severity)
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
    where, names = f"shifts.{name}.images", classes.names
    return dataset.stratified(where, "shifts", shift.images, labels_N, pool_n, names=names, seed=spec.split_seed)


# Sets that are stored


def _stored(
    name: str, shift: ShiftSpec, spec: DataSpec, classes: Classes
) -> Iterator[tuple[str, Path, tuple[str, ...], Selection]]:
    """Each set: its split in the tables, where it lies, notes of what is not read, and the images of classes that are
    kept, or as many of them as are asked for."""
    assert shift.dir is not None
    folder = formats.existing_folder(f"shifts.{name}.dir", shift.dir)
    for one in shift_splits({name: shift}):
        where = folder
        if shift.format == "folder":
            found = _open_folder(name, shift, folder)
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


def _open_folder(name: str, shift: ShiftSpec, folder: Path) -> StoredSplit:
    found = formats.open_split(folder, shift.split)
    if found is None:
        wanted = shift.split or "test"
        alone = "" if shift.split else ", or <class>/*.jpg alone; `split: NAME` takes another part"
        raise UserError(
            f"shifts.{name}.dir: '{folder}' holds no part {wanted}: {wanted}/<class>/*.jpg or {wanted}-*.parquet{alone}"
        )
    if not len(found.split.labels_N):
        raise UserError(f"shifts.{name}.dir: '{folder}' holds no images")
    return found


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
    return hashlib.sha256(digest(chosen.audit.fingerprint, chosen.size, *positions).encode()).hexdigest()


# The .npy files of CIFAR-10-C, CIFAR-100-C and CIFAR-10.1


def _arrays(name: str, pixels_path: Path, labels_path: Path, severity: int | None = None) -> PixelSplit:
    """Images [N, H, W, 3] and their labels [N], or those of one severity: these follow one another in the file in equal
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


# The test split, corrupted


def _index_corrupted(name: str, shift: ShiftSpec, spec: DataSpec, target: DataIndex) -> Iterator[ShiftFacts]:
    test = target.test
    if min(test.size) < corruptions.LEAST_SIDE:
        raise UserError(
            f"shifts.{name}: corruptions are made for images of {corruptions.LEAST_SIDE} pixels or more; "
            f"the test images of {spec.name} are {test.size[0]} x {test.size[1]} as they are stored"
        )
    chosen_n = _choose(name, shift, spec, test.labels_n, target.classes)
    made_from = hashlib.sha256(test.audit.fingerprint.encode())
    for part in (test.size, chosen_n, test.index_n[chosen_n], test.labels_n[chosen_n]):
        made_from.update(np.asarray(part).astype("<i8").tobytes())
    for split in shift_splits({name: shift}):
        made = digest(made_from.hexdigest(), corruptions.version(), split.corruption, split.severity)
        yield ShiftFacts(split.name, hashlib.sha256(made.encode()).hexdigest(), len(chosen_n))
