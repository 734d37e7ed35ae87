"""Named data sets and folders -> uint8 arrays in memory, or images for workers to decode, split reproducibly.

Axes: N examples, H height, W width, C channels (always 3 at the end); K classes. A lower-case letter is a selection
of that axis: `index_n` holds positions among the N images of a stored split.

The order of work keeps what a run does not need from being done. `raybasin.data.formats` opens the stored splits: labels in
memory, images still as stored. `index` fingerprints the stored bytes and makes the split from labels alone; `load`
then decodes only the images that the split uses, or leaves that to the workers where there are too many.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import yaml

from raybasin.data import decoding
from raybasin.errors import UserError, nearest, one_line, some
from raybasin.data.decoding import StoredImages
from raybasin.data.torchvision_sets import IntArray, PixelArray
from raybasin.data.formats import Audit, Encoded, EncodedSplit, HeightWidth, Split, Stored, open_source
from raybasin.sweep.specs import DataSpec, ImageCount, PerClass

DECODE_BATCH = 512
ARRAY_BYTES = 4_000_000_000
"""With `decode: auto`, images that would take more as arrays are decoded by the workers."""
STREAMS = {"validation": 0, "train_images": 1, "test_images": 2, "shifts": 3}
"""One independent stream of random keys for each choice, so that none of them moves another."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images with labels 0..K-1: decoded, or for the workers to decode."""

    images_NHWC: PixelArray | StoredImages
    labels_N: IntArray

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True)
class Classes:
    """The classes of a data set by their stored labels, and which of these labels are kept, ascending: a label's place
    among them is its number 0..K-1."""

    stored: Mapping[int, str]
    kept: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all that are stored."""
        return tuple(self.stored.values())


@dataclass(frozen=True, eq=False)
class DataSet:
    """The three splits of one data set. Fingerprints are of the whole stored splits, before any selection."""

    train: Images
    val: Images
    test: Images
    class_names: tuple[str, ...]
    train_fingerprint: str
    test_fingerprint: str
    classes: Classes


@dataclass(frozen=True, eq=False)
class DataIndex:
    """All of a data set but its pixels: which stored images make each split, in stored order.

    `train_index_n` and `val_index_n` count in the stored training split; `test_index_n` counts in the reporting split
    or, where the source is one pool (`is_pool`), in that pool too. Sizes are (height, width) of the arrays that `load`
    would make.
    """

    train_index_n: IntArray
    val_index_n: IntArray
    test_index_n: IntArray
    test_labels_N: IntArray
    """0..K-1, of the images at `test_index_n`."""
    class_names: tuple[str, ...]
    train_fingerprint: str
    test_fingerprint: str
    train_size: HeightWidth
    test_size: HeightWidth
    is_pool: bool
    classes: Classes
    spec: DataSpec
    stored: Stored
    train_audit: Audit
    test_audit: Audit
    """Of the reporting split or, of a pool, of the pool once more."""

    @property
    def n_train(self) -> int:
        return len(self.train_index_n)

    @property
    def n_val(self) -> int:
        return len(self.val_index_n)

    @property
    def n_test(self) -> int:
        return len(self.test_index_n)


def index(spec: DataSpec) -> DataIndex:
    """Reads, fingerprints and splits the data of `spec` without decoding an image. Raises UserError."""
    stored = open_source(spec)
    train = stored.train.audit()
    return _index(spec, stored, train, stored.test.audit() if stored.test else train)


def load(spec: DataSpec) -> DataSet:
    """The data of `spec`, looked at and decoded in one."""
    return decode(index(spec))


def decode(made: DataIndex) -> DataSet:
    """The images of `made`, decoded or for the workers to decode, as `data.decode` says. Raises UserError, also where
    an image is not any more what was fingerprinted.

    Images of a stored split that all have one size keep it. Where sizes differ, each image is resized (bicubic,
    antialiased) so that its shorter side is round(image_size / crop), with crop = `spec.eval_crop` or 0.875, and its
    centre square of that side is kept: what evaluation at `image_size` would resize it to anyway. Grey, palette and
    transparent images become RGB; EXIF orientation is not applied (as in torchvision).
    """
    stored, kept = made.stored, made.classes.kept
    hold = _hold_stored if _workers_decode(made) else pixels

    def images(split: Split, audit: Audit, index_n: IntArray, size: HeightWidth) -> Images:
        return Images(hold(split, audit, index_n, size), _relabel(split.labels_N[index_n], kept))

    return DataSet(
        train=images(stored.train, made.train_audit, made.train_index_n, made.train_size),
        val=images(stored.train, made.train_audit, made.val_index_n, made.train_size),
        test=images(stored.test or stored.train, made.test_audit, made.test_index_n, made.test_size),
        class_names=made.class_names,
        train_fingerprint=made.train_fingerprint,
        test_fingerprint=made.test_fingerprint,
        classes=made.classes,
    )


# The split, from labels alone


def _index(spec: DataSpec, stored: Stored, train_audit: Audit, test_audit: Audit) -> DataIndex:
    kept = _kept_classes(spec, stored)
    names = tuple(stored.class_names[label] for label in kept)
    train_labels_N = _relabel(stored.train.labels_N, kept)
    official_n = np.flatnonzero(stored.validation_N) if stored.validation_N is not None else None
    counts_K = np.bincount(train_labels_N[train_labels_N >= 0], minlength=len(kept))
    if not counts_K.all():
        passed = "".join(f"\n{note}" for note in stored.notes[:1])
        empty = [name for name, count in zip(names, counts_K.tolist(), strict=True) if not count]
        more = f" (nor have {len(empty) - 1:,} more)" if len(empty) > 1 else ""
        raise UserError(
            f"data: {stored.source}: class '{empty[0]}' has no training image{more}; leave it out by data.classes, or "
            f"put images there{passed}"
        )
    test_labels_N = _relabel(stored.test.labels_N, kept) if stored.test else None
    train_n, val_n, test_n = _split(spec, names, train_labels_N, test_labels_N, official_n)
    return DataIndex(
        train_index_n=train_n,
        val_index_n=val_n,
        test_index_n=test_n,
        test_labels_N=(train_labels_N if test_labels_N is None else test_labels_N)[test_n],
        class_names=names,
        train_fingerprint=train_audit.fingerprint,
        test_fingerprint=test_audit.fingerprint,
        train_size=array_size(train_audit.sizes, spec),
        test_size=array_size(test_audit.sizes or train_audit.sizes, spec),
        is_pool=stored.test is None,
        classes=Classes(stored.class_names, tuple(kept)),
        spec=spec,
        stored=stored,
        train_audit=train_audit,
        test_audit=test_audit,
    )


def _kept_classes(spec: DataSpec, stored: Stored) -> list[int]:
    """The stored labels that `data.classes` keeps, ascending; a class may be given by its number or its name."""
    class_names = stored.class_names
    if len(class_names) < 2:
        names = ", ".join(class_names.values())
        raise UserError(f"data: {stored.source}: holds one class, '{names}'; two or more are needed")
    if spec.classes is None:
        return sorted(class_names)
    kept = [_stored_label(given, class_names) for given in spec.classes]
    for label in kept:
        if kept.count(label) > 1:
            raise UserError(f"data.classes: class {label} ('{class_names[label]}') is given twice")
    return sorted(kept)


def _stored_label(given: int | str, class_names: Mapping[int, str]) -> int:
    if isinstance(given, int):
        return _numbered(given, class_names)
    found = [label for label, name in class_names.items() if name == given]
    if len(found) > 1:
        raise UserError(f"data.classes: '{given}' is the name of classes {found}; give the number instead")
    if not found:
        raise UserError(f"data.classes: unknown class '{given}'{nearest(given, class_names.values())}")
    return found[0]


def _numbered(given: int, class_names: Mapping[int, str]) -> int:
    """The class of that number. Where classes are called by numbers it must be called so, too: `[1, 2]` of the folders
    1 to 12, which are sorted as text, would be 10 and 11."""
    if class_names.get(given) == str(given):
        return given
    if called := [name for name in class_names.values() if is_number(name)]:
        raise UserError(
            f"data.classes: {given} may be a name or a position, since classes are called {some(called, 5)}; "
            f"write names in quotes, such as ['{called[0]}', '{called[-1]}']"
        )
    if given not in class_names:
        low, high = min(class_names), max(class_names)
        raise UserError(f"data.classes: no class {given}; the numbers go from {low} to {high}")
    return given


def is_number(name: str) -> bool:
    """Whether YAML takes it for a number where it stands without quotes."""
    tag = yaml.SafeLoader("").resolve(yaml.ScalarNode, name, (True, False))
    return tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def _relabel(labels_N: IntArray, kept: Sequence[int]) -> IntArray:
    """Labels 0..K-1 in ascending order of the stored label; -1 for images of classes that are not kept."""
    position_N = np.searchsorted(kept, labels_N).clip(max=len(kept) - 1)
    return np.where(np.asarray(kept)[position_N] == labels_N, position_N, -1).astype(np.int64)


def _split(
    spec: DataSpec,
    names: Sequence[str],
    train_labels_N: IntArray,
    test_labels_N: IntArray | None,
    official_n: IntArray | None = None,
) -> tuple[IntArray, IntArray, IntArray]:
    """Ascending positions of the training, validation and test images; labels are 0..K-1, or -1 for "not kept".

    Validation is cut first, then the training images from what is left; of a pool, the test images are the rest of a
    subsampled training set. So validation may hold images that subsampling left out, and no image is in two splits.
    """
    pool_n = np.flatnonzero(train_labels_N >= 0)

    def take(key: str, wanted: int | PerClass | None, labels_N: IntArray, pool_n: IntArray) -> IntArray:
        return stratified(f"data.{key}", key, wanted, labels_N, pool_n, names=names, seed=spec.split_seed)

    if spec.validation == "official":
        val_n = _official(spec, official_n, pool_n)
    else:
        val_n = take("validation", _validation_size(spec, len(pool_n)), train_labels_N, pool_n)
    left_n = np.setdiff1d(pool_n, val_n)
    train_n = take("train_images", spec.train_images, train_labels_N, left_n)
    if test_labels_N is None:
        test_labels_N, reporting_n = train_labels_N, np.setdiff1d(left_n, train_n)
    else:
        reporting_n = np.flatnonzero(test_labels_N >= 0)
    test_n = take("test_images", spec.test_images, test_labels_N, reporting_n)

    counts_K = np.bincount(train_labels_N[train_n], minlength=len(names))
    if not counts_K.all():
        name = names[int(counts_K.argmin())]
        raise UserError(
            f"data: class '{name}' has no training image left of {len(train_n):,}; "
            "set train_images: {per_class: n}, a smaller validation, or classes without it"
        )
    return train_n, val_n, test_n


def _official(spec: DataSpec, official_n: IntArray | None, pool_n: IntArray) -> IntArray:
    """The official validation images of the classes that are kept."""
    if official_n is None:
        raise UserError(
            f"data.validation: {spec.name} has no official validation images here; give a share such as 0.1, or "
            "{images: n}, which are cut from the training images"
        )
    return np.intersect1d(official_n, pool_n)


def _validation_size(spec: DataSpec, n_pool: int) -> int:
    assert spec.validation != "official"
    if isinstance(spec.validation, ImageCount):
        return spec.validation.images
    return max(1, int(spec.validation * n_pool + 0.5))


def stratified(
    where: str,
    stream: str,
    wanted: int | PerClass | None,
    labels_N: IntArray,
    pool_n: IntArray,
    *,
    names: Sequence[str],
    seed: int,
) -> IntArray:
    """A stratified selection of `pool_n`, ascending: all of it, `wanted` images, or `wanted.per_class` of each class.

    Each stored image has a random key of its own, from the seed, the `stream` and its position alone, and the
    lowest keys of each class are taken: which images of a class come first depends neither on the other classes nor on
    how many are wanted. The keys are raw output of the bit generator, which NumPy promises never to change (NEP 19);
    `shuffle` and `choice` carry no such promise.
    """
    if wanted is None:
        return pool_n
    counts_K = np.bincount(labels_N[pool_n], minlength=len(names))
    quota_K = _quota(where, wanted, counts_K, names)
    keys_N = np.random.PCG64([seed, STREAMS[stream]]).random_raw(len(labels_N))
    by_class_n = pool_n[np.lexsort((keys_N[pool_n], labels_N[pool_n]))]
    rank_n = np.arange(len(pool_n)) - np.repeat(counts_K.cumsum() - counts_K, counts_K)
    return np.sort(by_class_n[rank_n < np.repeat(quota_K, counts_K)])


def _quota(where: str, wanted: int | PerClass, counts_K: IntArray, names: Sequence[str]) -> IntArray:
    """How many images of each class to take, of `counts_K` that there are."""
    if isinstance(wanted, PerClass):
        scarce = int(counts_K.argmin())
        if counts_K[scarce] < wanted.per_class:
            raise UserError(
                f"{where}: {wanted.per_class:,} images of each class are asked for, "
                f"but class '{names[scarce]}' has {counts_K[scarce]:,}"
            )
        return np.full(len(names), wanted.per_class)
    if wanted > counts_K.sum():
        raise UserError(f"{where}: {wanted:,} images are asked for, but there are {counts_K.sum():,}")
    return _proportional(counts_K, wanted)


def _proportional(counts_K: IntArray, total: int) -> IntArray:
    """`total` shared out in proportion to `counts_K`, by largest remainder (ties: the lower class), in integers."""
    quota_K, remainder_K = np.divmod(total * counts_K, max(1, int(counts_K.sum())))
    largest = np.argsort(-remainder_K, kind="stable")
    quota_K[largest[: total - int(quota_K.sum())]] += 1
    return quota_K


# What the splits hold


def per_class(made: DataIndex) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """How many training, validation and test images of each class."""
    train, val, test = (np.bincount(one.labels_n, minlength=len(made.class_names)) for one in _parts(made))
    return tuple(train.tolist()), tuple(val.tolist()), tuple(test.tolist())


@dataclass(frozen=True, eq=False)
class Chosen:
    """Images of a stored split that are used as `part`; labels are 0..K-1."""

    part: str
    split: Split
    audit: Audit
    index_n: IntArray
    labels_n: IntArray


@dataclass(frozen=True)
class _Copy:
    """An image of which another one has the same bytes."""

    part: str
    label: int
    where: str


def copies(made: DataIndex) -> Iterator[str]:
    """What there is to say of images that are byte for byte the same, within training and across splits: how many there
    are, with an example."""
    parts = _parts(made)
    groups = _same_bytes(parts)
    for part, other in ((1, 0), (2, 0), (2, 1), (0, 0)):
        yield from _said(groups, parts[part], parts[other])
    yield from _torn(groups, made.class_names)


def copies_of_training(made: DataIndex, other: Chosen) -> Iterator[str]:
    """The same of images that are no part of `made`."""
    training = _parts(made)[0]
    yield from _said(_same_bytes([training, other]), other, training)


def _parts(made: DataIndex) -> list[Chosen]:
    stored, train_audit = made.stored, made.train_audit
    train_labels_N = _relabel(stored.train.labels_N, made.classes.kept)
    train = [Chosen(part, stored.train, train_audit, index_n, train_labels_N[index_n])
             for part, index_n in (("training", made.train_index_n), ("validation", made.val_index_n))]  # fmt: skip
    return [*train, Chosen("test", stored.test or stored.train, made.test_audit, made.test_index_n, made.test_labels_N)]


def _said(groups: Sequence[Sequence[_Copy]], part: Chosen, other: Chosen) -> Iterator[str]:
    """How many images of `part` are images of `other`; or, where these are the same, how many have one before them."""
    pairs = []
    for group in groups:
        ours, theirs = ([copy for copy in group if copy.part == one.part] for one in (part, other))
        pairs += [(copy, theirs[0]) for copy in (ours[1:] if part is other else ours) if theirs]
    if pairs:
        copy, original = pairs[0]
        whose = f"other {other.part}" if part is other else other.part
        yield one_line(
            f"{len(pairs):,} of {len(part.index_n):,} {part.part} images are copies, byte for byte, of {whose} images, "
            f"such as {copy.where}, the same as {original.where}"
        )


def _torn(groups: Sequence[Sequence[_Copy]], class_names: Sequence[str]) -> Iterator[str]:
    """How many images occur in several classes."""
    torn = [group for group in groups if len({copy.label for copy in group}) > 1]
    if torn:
        one = torn[0][0]
        two = next(copy for copy in torn[0] if copy.label != one.label)
        yield one_line(
            f"{len(torn):,} of the images that occur several times are of several classes, such as {one.where} "
            f"('{class_names[one.label]}') and {two.where} ('{class_names[two.label]}')"
        )


def _same_bytes(parts: Sequence[Chosen]) -> list[list[_Copy]]:
    """The images of `parts` in groups of equal bytes. Candidates have one length and one checksum; they alone are read
    again, since checksums of a hundred thousand images may agree by chance."""
    keys = [(one.audit.lengths_N[one.index_n].astype(np.uint64) << np.uint64(32)) | one.audit.checks_N[one.index_n]
            for one in parts]  # fmt: skip
    values, counts = np.unique(np.concatenate(keys), return_counts=True)
    repeated = values[counts > 1]
    found: dict[bytes, list[_Copy]] = {}
    for one, keys_n in zip(parts, keys, strict=True):
        again_n = np.isin(keys_n, repeated)
        contents = one.split.read(one.index_n[again_n])
        for label, (where, content) in zip(one.labels_n[again_n].tolist(), contents, strict=True):
            found.setdefault(hashlib.sha256(content).digest(), []).append(_Copy(one.part, label, where))
    return [group for group in found.values() if len(group) > 1]


# Decoding


def array_size(sizes: set[HeightWidth], spec: DataSpec) -> HeightWidth:
    return next(iter(sizes)) if len(sizes) == 1 else (spec.common_side, spec.common_side)


def _workers_decode(made: DataIndex) -> bool:
    """Whether the workers decode the images. Either way they see the same pixels."""
    how = made.spec.decode
    if not isinstance(made.stored.train, EncodedSplit):
        if how == "workers":
            raise UserError(
                f"data.decode: {made.spec.name} is stored as pixels, which need no decoding; leave decode out"
            )
        return False
    per_image = 3 * math.prod(made.train_size), 3 * math.prod(made.test_size)
    n_bytes = (made.n_train + made.n_val) * per_image[0] + made.n_test * per_image[1]
    return how == "workers" or (how == "auto" and n_bytes > ARRAY_BYTES)


def _hold_stored(split: Split, audit: Audit, index_n: IntArray, size: HeightWidth) -> StoredImages:
    assert isinstance(split, EncodedSplit)
    return StoredImages(decoding.with_random_access(split, audit), index_n, audit.checks_N[index_n], size)


def pixels(split: Split, audit: Audit, index_n: IntArray, size: HeightWidth) -> PixelArray:
    """The chosen images as [n, H, W, 3]. Raises UserError for an encoded one that is not what was audited."""
    if isinstance(split, EncodedSplit):
        return _decode_all(split, audit, index_n, size)
    chosen = split.pixels[index_n]
    return np.ascontiguousarray(chosen) if chosen.ndim == 4 else np.repeat(chosen[..., None], 3, axis=-1)


def _decode_all(split: EncodedSplit, audit: Audit, index_n: IntArray, size: HeightWidth) -> PixelArray:
    """The chosen images, decoded in a few threads (PIL lets go of the lock)."""
    images_nHWC = np.empty((len(index_n), *size, 3), dtype=np.uint8)
    encoded = enumerate(split.read(index_n))

    def decode_into(item: tuple[int, Encoded]) -> None:
        position, (where, content) = item
        decoding.check_unchanged(where, content, audit.checks_N[index_n[position]])
        images_nHWC[position] = decoding.decode(where, content, size)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        # In batches: map() takes all of its input at once, which may be larger than memory.
        while batch := list(itertools.islice(encoded, DECODE_BATCH)):
            list(threads.map(decode_into, batch))
    return images_nHWC
