"""Further evaluation sets, which `shifts` of the sweep file names: published ones, and the test split corrupted.

`index` finds what is wrong and fingerprints what will be shown; `load` decodes or makes it, and only what is asked for.

Axes: N images of a stored set, K classes. A lower-case letter is a selection of that axis: `index_n` holds positions
among the N images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raybasin.data import corruptions
from raybasin.data import dataset
from raybasin.data import formats
from raybasin.data.dataset import Classes, DataIndex, DataSet, Images
from raybasin.errors import UserError, nearest, some
from raybasin.data.decoding import as_array
from raybasin.data.formats import Audit, HeightWidth, IntArray, Part, PixelSplit, Split
from raybasin.sweep.facts import ShiftFacts
from raybasin.sweep.ids import digest
from raybasin.sweep.specs import SEVERITIES, DataSpec, ShiftSpec, ShiftSplit, SweepSpec, shift_splits


@dataclass(frozen=True, eq=False)
class StoredSet:
    """A set that is stored: which images of `split` are shown, and their labels 0..K-1; `where` it lies, and what lies
    there and was not read."""

    name: str
    split: Split
    index_n: IntArray
    labels_n: IntArray
    where: str
    notes: tuple[str, ...]


def index(spec: SweepSpec, target: DataIndex) -> tuple[ShiftFacts, ...]:
    """Name, fingerprint and size of every further evaluation set, in the order of the sweep file.

    A fingerprint is the SHA-256 of the images that are shown, as they are stored, and their labels; of corrupted ones
    of what they are made from, and by which version of which package. Raises UserError.
    """
    return tuple(facts for name, shift in spec.shifts.items() for facts in _index(name, shift, spec, target))


def load(spec: SweepSpec, target: DataSet, planned: Sequence[ShiftFacts]) -> dict[str, Images]:
    """The images of every further evaluation set by its split, each at one size (as `data.load`). Raises UserError,
    also where a set is not any more what `index` saw."""
    fingerprints = {facts.name: facts.fingerprint for facts in planned}
    return {
        split: images
        for name, shift in spec.shifts.items()
        for split, images in _load(name, shift, spec, target, fingerprints)
    }


def _index(name: str, shift: ShiftSpec, spec: SweepSpec, target: DataIndex) -> Iterator[ShiftFacts]:
    if shift.format == "corrupt":
        yield from _index_corrupted(name, shift, spec.data, target)
        return
    for found in _open(name, shift, spec.data, target.classes):
        _, fingerprint, audit = _scan(found, spec.data)
        shown = dataset.Chosen("shift", found.split, audit, found.index_n, found.labels_n)
        notes = (*found.notes, *dataset.copies_of_training(target, shown))
        yield ShiftFacts(found.name, fingerprint, len(found.index_n), notes)


def _load(
    name: str, shift: ShiftSpec, spec: SweepSpec, target: DataSet, fingerprints: Mapping[str, str]
) -> Iterator[tuple[str, Images]]:
    if shift.format == "corrupt":
        yield from _load_corrupted(name, shift, spec.data, target)
        return
    for found in _open(name, shift, spec.data, target.classes):
        size, fingerprint, audit = _scan(found, spec.data)
        if fingerprint != fingerprints[found.name]:
            raise UserError(f"shifts.{name}: {found.where} has changed since the sweep began; run it again")
        yield found.name, Images(dataset.pixels(found.split, audit, found.index_n, size), found.labels_n)


def _splits(name: str, shift: ShiftSpec) -> tuple[ShiftSplit, ...]:
    return shift_splits({name: shift})


# Sets that are stored


def _open(name: str, shift: ShiftSpec, spec: DataSpec, classes: Classes) -> Iterator[StoredSet]:
    assert shift.dir is not None
    folder = formats.existing_folder(f"shifts.{name}.dir", shift.dir)
    if shift.format == "folder":
        part = _part(name, shift, folder)
        names = None if part.class_names is None else dict(enumerate(part.class_names))
        yield _set(name, name, shift, spec, classes, part.split, names, str(folder), part.notes)
    elif shift.format == "cifar-10.1":
        prefix = f"cifar10.1_{shift.version}"
        stored = _arrays(name, folder / f"{prefix}_data.npy", folder / f"{prefix}_labels.npy")
        yield _set(name, name, shift, spec, classes, stored, None, str(folder))
    else:
        for split in _splits(name, shift):
            path = folder / f"{split.corruption}.npy"
            whole = _arrays(name, path, folder / "labels.npy")
            yield _set(split.name, name, shift, spec, classes, _severity(name, path, whole, split), None, str(path))


def _set(
    split: str,
    name: str,
    shift: ShiftSpec,
    spec: DataSpec,
    classes: Classes,
    stored: Split,
    names: Mapping[int, str] | None,
    where: str,
    notes: tuple[str, ...] = (),
) -> StoredSet:
    """The images of classes that are kept, or as many of them as are asked for."""
    labels_N = _matched(name, stored.labels_N, names, classes, where)
    index_n = _chosen(name, shift, spec, labels_N, classes)
    labels_n = labels_N[index_n]
    if isinstance(stored, PixelSplit):  # copied, so that what is fingerprinted is what is shown; and no more than that
        stored, index_n = PixelSplit(stored.pixels[index_n], labels_n), np.arange(len(index_n))
    return StoredSet(split, stored, index_n, labels_n, where, notes)


def _matched(
    name: str, stored_N: IntArray, names: Mapping[int, str] | None, classes: Classes, where: str
) -> IntArray:
    """Labels 0..K-1 of the sweep's classes, -1 for those that it does not keep: by name, else by number.

    Raises UserError for classes that its data do not have.
    """
    present = np.unique(stored_N).tolist()
    if names is None:
        odd = {label: word for label, word in classes.stored.items() if dataset.is_number(word) and word != str(label)}
        if odd:
            label, word = next(iter(odd.items()))
            raise UserError(
                f"shifts.{name}: {where} has numbers in place of names, and the sweep's data call class {label} "
                f"'{word}', so they cannot be matched; give the set names (class folders, or classes.json)"
            )
        found = {label: label for label in present if label in classes.stored}
        words = {label: str(label) for label in present}
        known = [str(label) for label in classes.stored]
    else:
        words = {label: names.get(label, str(label)) for label in present}
        found = {label: _label_of(name, word, classes) for label, word in words.items() if word in classes.names}
        known = list(classes.names)
    unknown = [words[label] for label in present if label not in found]
    if unknown:
        noun = "class" if len(unknown) == 1 else "classes"
        raise UserError(
            f"shifts.{name}: {where} holds the {noun} {some(unknown)}, which the sweep's data do not have"
            f"{nearest(unknown[0], known)}"
        )
    position = {label: k for k, label in enumerate(classes.kept)}
    return np.asarray([position.get(found[label], -1) for label in present], dtype=np.int64)[
        np.searchsorted(present, stored_N)
    ]


def _label_of(name: str, word: str, classes: Classes) -> int:
    """The stored label of the class that is called so, of which there must be one."""
    labels = [label for label, known in classes.stored.items() if known == word]
    if len(labels) > 1:
        raise UserError(
            f"shifts.{name}: '{word}' is the name of classes {labels} of the sweep's data, so images of that class "
            "cannot be matched"
        )
    return labels[0]


def _chosen(name: str, shift: ShiftSpec, spec: DataSpec, labels_N: IntArray, classes: Classes) -> IntArray:
    """Ascending positions of the images that are shown: stratified by class where not all of them are."""
    names = [classes.stored[label] for label in classes.kept]
    pool_n = np.flatnonzero(labels_N >= 0)
    if not len(pool_n):
        raise UserError(f"shifts.{name}: holds no image of the classes that data.classes keeps")
    return dataset.stratified(
        f"shifts.{name}.images", "shifts", shift.images, labels_N, pool_n, names=names, seed=spec.split_seed
    )


def _scan(found: StoredSet, spec: DataSpec) -> tuple[HeightWidth, str, Audit]:
    """The size at which the images are shown to `augment`, the fingerprint of them and of their labels, and the audit
    of the split."""
    audit = found.split.audit()
    if isinstance(found.split, PixelSplit):
        return next(iter(audit.sizes)), audit.fingerprint, audit
    size = dataset.array_size(audit.sizes, spec)
    chosen = found.index_n.tolist(), found.labels_n.tolist()
    return size, hashlib.sha256(digest(audit.fingerprint, size, *chosen).encode()).hexdigest(), audit


def _part(name: str, shift: ShiftSpec, folder: Path) -> Part:
    part = formats.open_part(folder, shift.split)
    if part is None:
        wanted = shift.split or "test"
        alone = "" if shift.split else ", or <class>/*.jpg alone; `split: NAME` takes another part"
        raise UserError(
            f"shifts.{name}.dir: '{folder}' holds no part {wanted}: {wanted}/<class>/*.jpg or {wanted}-*.parquet{alone}"
        )
    if not len(part.split.labels_N):
        raise UserError(f"shifts.{name}.dir: '{folder}' holds no images")
    return part


# The .npy files of CIFAR-10-C, CIFAR-100-C and CIFAR-10.1


def _arrays(name: str, pixels_path: Path, labels_path: Path) -> PixelSplit:
    """Images [N, H, W, 3] and their labels [N]. Pixels stay on the disk until they are asked for."""
    pixels, labels = _array(name, pixels_path), _array(name, labels_path)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or 0 in pixels.shape:
        raise UserError(f"{pixels_path}: must hold uint8 [N, H, W, 3], not {pixels.dtype} {list(pixels.shape)}")
    if labels.dtype.kind not in "iu" or labels.shape != pixels.shape[:1]:
        raise UserError(
            f"{labels_path}: must hold {len(pixels):,} integers, one for each image of {pixels_path.name}, "
            f"not {labels.dtype} {list(labels.shape)}"
        )
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


def _severity(name: str, path: Path, whole: PixelSplit, split: ShiftSplit) -> PixelSplit:
    """The images of one severity: these follow one another in the file in equal numbers."""
    assert split.severity is not None
    if len(whole.labels_N) % len(SEVERITIES):
        raise UserError(f"{path}: must hold as many images of each of 5 severities, and holds {len(whole.labels_N):,}")
    each = len(whole.labels_N) // len(SEVERITIES)
    block = slice((split.severity - 1) * each, split.severity * each)
    return PixelSplit(whole.pixels[block], whole.labels_N[block])


# The test split, corrupted


def _index_corrupted(name: str, shift: ShiftSpec, spec: DataSpec, target: DataIndex) -> Iterator[ShiftFacts]:
    if min(target.test_size) < corruptions.LEAST_SIDE:
        height, width = target.test_size
        raise UserError(
            f"shifts.{name}: corruptions are made for images of {corruptions.LEAST_SIDE} pixels or more; "
            f"the test images of {spec.name} are {height} x {width} as they are stored"
        )
    chosen_n = _chosen(name, shift, spec, target.test_labels_N, target.classes)
    made_from = hashlib.sha256(target.test_fingerprint.encode())
    for part in (target.test_size, chosen_n, target.test_index_n[chosen_n], target.test_labels_N[chosen_n]):
        made_from.update(np.asarray(part).astype("<i8").tobytes())
    for split in _splits(name, shift):
        made = digest(made_from.hexdigest(), corruptions.version(), split.corruption, split.severity)
        yield ShiftFacts(split.name, hashlib.sha256(made.encode()).hexdigest(), len(chosen_n))


def _load_corrupted(
    name: str, shift: ShiftSpec, spec: DataSpec, target: DataSet
) -> Iterator[tuple[str, Images]]:
    labels_N = target.test.labels_N
    chosen_n = _chosen(name, shift, spec, labels_N, target.classes)
    images_nHWC = as_array(target.test.images_NHWC, chosen_n)
    for split in _splits(name, shift):
        assert split.corruption is not None and split.severity is not None
        made_nHWC = corruptions.corrupted(images_nHWC, chosen_n, split.corruption, split.severity)
        yield split.name, Images(made_nHWC, labels_N[chosen_n])
