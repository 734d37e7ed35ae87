"""Named data sets and folders -> uint8 arrays in memory, or images for workers to decode, split reproducibly.

`index` fingerprints the stored bytes and makes the split from labels alone; `decode` then decodes only the images that
the split uses, or leaves that to the workers where there are too many. Axes: N images of a stored split, H height,
W width, C channels (always 3 at the end), K classes; `index_n` holds positions among the N: a selection of them.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import yaml

from raybasin.data import decoded, decoding, formats
from raybasin.data.decoded import CachedImages
from raybasin.data.decoding import LazyImages, StoredImages
from raybasin.data.images import HeightWidth, IntArray, PixelArray
from raybasin.data.stored import Audit, EncodedSplit, Split, Stored, audit
from raybasin.errors import UserError, nearest, one_line, some
from raybasin.sweep.specs import DataSpec, ImageCount, PerClass

ARRAY_BYTES = 4_000_000_000
"""With `decode: auto`, images that would take more as arrays are decoded by the workers."""
STREAMS = {"validation": 0, "train_images": 1, "test_images": 2, "shifts": 3}
"""One independent stream of random keys for each choice, so that none of them moves another."""


@dataclass(frozen=True)
class Classes:
    """Classes by their stored labels, and which labels are kept, ascending: a label's place there is its number."""

    stored: Mapping[int, str]
    kept: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.stored[label] for label in self.kept)

    def number(self, labels_N: IntArray) -> IntArray:
        """Stored labels as numbers 0..K-1; -1 for those that are not kept."""
        position_N = np.searchsorted(self.kept, labels_N).clip(max=len(self.kept) - 1)
        return np.where(np.asarray(self.kept)[position_N] == labels_N, position_N, -1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Selection:
    """Images of a stored split that are used for one `purpose`: training, validation, test or shift."""

    purpose: str
    split: Split
    audit: Audit
    size: HeightWidth
    """That they are decoded to."""
    index_n: IntArray
    """Their positions in the stored split, ascending."""
    labels_n: IntArray
    """0..K-1."""

    def __len__(self) -> int:
        return len(self.index_n)


@dataclass(frozen=True, eq=False)
class DataIndex:
    """All of a data set but its pixels: which stored images make each split. Training and validation images are of one
    stored split; test images are of another one or, where the source is one pool, of that same one."""

    spec: DataSpec
    stored: Stored
    classes: Classes
    train: Selection
    val: Selection
    test: Selection


@dataclass(frozen=True, eq=False)
class Images:
    """Images with labels 0..K-1: decoded in memory or on disk, or for the workers to decode."""

    images_NHWC: PixelArray | LazyImages
    labels_N: IntArray

    def __len__(self) -> int:
        return len(self.labels_N)


@dataclass(frozen=True, eq=False)
class DataSet:
    """The three splits of one data set. Fingerprints are of the whole stored splits, before any selection."""

    train: Images
    val: Images
    test: Images
    classes: Classes
    train_fingerprint: str
    test_fingerprint: str


def load(spec: DataSpec) -> DataSet:
    """The data of `spec`, looked at and decoded in one."""
    return decode(index(spec))


def index(spec: DataSpec) -> DataIndex:
    """Reads, fingerprints and splits the data of `spec` without decoding an image. Raises UserError."""
    stored = formats.open_source(spec)
    classes = _classes(spec, stored)
    train_split, test_split = stored.train, stored.test or stored.train
    train_audit = audit(train_split)
    test_audit = train_audit if test_split is train_split else audit(test_split)
    train_labels_N, test_labels_N = classes.number(train_split.labels_N), classes.number(test_split.labels_N)
    counts_K = np.bincount(train_labels_N[train_labels_N >= 0], minlength=len(classes.kept))
    if empty := [name for name, count in zip(classes.names, counts_K.tolist(), strict=True) if not count]:
        more = f" (nor have {len(empty) - 1:,} more)" if len(empty) > 1 else ""
        passed = "".join(f"\n{note}" for note in stored.notes[:1])
        raise UserError(
            f"data: {stored.source}: class '{empty[0]}' has no training image{more}; leave it out by data.classes, or "
            f"put images there{passed}"
        )
    train_n, val_n, test_n = _split(spec, stored, classes, train_labels_N, test_labels_N)
    size = array_size(train_audit.sizes, spec)
    test_size = array_size(test_audit.sizes or train_audit.sizes, spec)
    train = Selection("training", train_split, train_audit, size, train_n, train_labels_N[train_n])
    val = Selection("validation", train_split, train_audit, size, val_n, train_labels_N[val_n])
    test = Selection("test", test_split, test_audit, test_size, test_n, test_labels_N[test_n])
    return DataIndex(spec, stored, classes, train, val, test)


def array_size(sizes: set[HeightWidth], spec: DataSpec) -> HeightWidth:
    return next(iter(sizes)) if len(sizes) == 1 else (spec.common_side, spec.common_side)


def _classes(spec: DataSpec, stored: Stored) -> Classes:
    """All classes, and those that `data.classes` keeps, each of which may be given by its number or its name."""
    found = _stored_classes(stored)
    if len(found) < 2:
        names = ", ".join(found.values())
        raise UserError(f"data: {stored.source}: holds one class, '{names}'; two or more are needed")
    if spec.classes is None:
        return Classes(found, tuple(sorted(found)))
    kept = sorted(_stored_label(given, found) for given in spec.classes)
    for label, following in itertools.pairwise(kept):
        if label == following:
            raise UserError(f"data.classes: class {label} ('{found[label]}') is given twice")
    return Classes(found, tuple(kept))


def _stored_classes(stored: Stored) -> dict[int, str]:
    """What the classes are called, by their stored labels: where they have no names, by the numbers that occur."""
    if not len(stored.train.labels_N):
        raise UserError(f"{stored.source}: holds no training images")
    splits = {"training": stored.train, "test": stored.test}
    labels_of = {name: split.labels_N for name, split in splits.items() if split}
    for name, labels_N in labels_of.items():
        if n_without := int((labels_N < 0).sum()):
            raise UserError(
                f"{stored.source}: {n_without:,} of {len(labels_N):,} {name} images have the label "
                f"{labels_N.min()}, which stands for none; labels must be 0 or above. Take their files away"
            )
    labels = np.unique(np.concatenate([*labels_of.values()])).tolist()
    if stored.class_names is None:
        return {label: str(label) for label in labels}
    if labels[-1] >= len(stored.class_names):
        raise UserError(
            f"{stored.source}: holds the label {labels[-1]}, but names only {len(stored.class_names)} classes"
        )
    if garbled := [name for name in stored.class_names if name.encode(errors="replace").decode() != name]:
        raise UserError(f"{stored.source}: the name of the class '{garbled[0]}' is not UTF-8; rename it")
    return dict(enumerate(stored.class_names))


def _stored_label(given: int | str, class_names: Mapping[int, str]) -> int:
    """Of the class of that name or number. Where classes are called by numbers it must be called so, too: `[1, 2]` of
    the folders 1 to 12, which are sorted as text, would be 10 and 11."""
    if isinstance(given, int):
        called = [name for name in class_names.values() if is_number(name)]
        if called and class_names.get(given) != str(given):
            raise UserError(
                f"data.classes: {given} may be a name or a position, since classes are called {some(called, 5)}; "
                f"write names in quotes, such as ['{called[0]}', '{called[-1]}']"
            )
        if given not in class_names:
            low, high = min(class_names), max(class_names)
            raise UserError(f"data.classes: no class {given}; the numbers go from {low} to {high}")
        return given
    found = [label for label, name in class_names.items() if name == given]
    if len(found) > 1:
        raise UserError(f"data.classes: '{given}' is the name of classes {found}; give the number instead")
    if not found:
        raise UserError(f"data.classes: unknown class '{given}'{nearest(given, class_names.values())}")
    return found[0]


def is_number(name: str) -> bool:
    """Whether YAML takes it for a number where it stands without quotes."""
    tag = yaml.SafeLoader("").resolve(yaml.ScalarNode, name, (True, False))
    return tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def _split(
    spec: DataSpec, stored: Stored, classes: Classes, train_labels_N: IntArray, test_labels_N: IntArray
) -> tuple[IntArray, IntArray, IntArray]:
    """Ascending positions of the training, validation and test images; labels are 0..K-1, or -1 for "not kept".

    Validation is cut first, then the training images from what is left; of a pool, the test images are the rest of a
    subsampled training set. So validation may hold images that subsampling left out, and no image is in two splits.
    """

    def take(key: str, wanted: int | PerClass | None, labels_N: IntArray, pool_n: IntArray) -> IntArray:
        return stratified(f"data.{key}", key, wanted, labels_N, pool_n, classes, spec.split_seed)

    pool_n = np.flatnonzero(train_labels_N >= 0)
    if spec.validation == "official":
        if stored.validation_n is None:
            raise UserError(
                f"data.validation: {spec.name} has no official validation images here; give a share such as 0.1, or "
                "{images: n}, which are cut from the training images"
            )
        val_n = np.intersect1d(stored.validation_n, pool_n)
    else:
        asked = spec.validation
        wanted = asked.images if isinstance(asked, ImageCount) else max(1, int(asked * len(pool_n) + 0.5))
        val_n = take("validation", wanted, train_labels_N, pool_n)
    left_n = np.setdiff1d(pool_n, val_n)
    train_n = take("train_images", spec.train_images, train_labels_N, left_n)
    reporting_n = np.flatnonzero(test_labels_N >= 0) if stored.test else np.setdiff1d(left_n, train_n)
    test_n = take("test_images", spec.test_images, test_labels_N, reporting_n)

    counts_K = np.bincount(train_labels_N[train_n], minlength=len(classes.kept))
    if not counts_K.all():
        name = classes.names[int(counts_K.argmin())]
        raise UserError(
            f"data: class '{name}' has no training image left of {len(train_n):,}; "
            "set train_images: {per_class: n}, a smaller validation, or classes without it"
        )
    return train_n, val_n, test_n


def stratified(
    where: str,
    stream: str,
    wanted: int | PerClass | None,
    labels_N: IntArray,
    pool_n: IntArray,
    classes: Classes,
    seed: int,
) -> IntArray:
    """A stratified selection of `pool_n`, ascending: all of it, `wanted` images in proportion to the classes (by
    largest remainder; ties: the lower class), or `wanted.per_class` of each class.

    Each stored image has a random key of its own, from the seed, the `stream` and its position alone, and the lowest
    keys of each class are taken: which images of a class come first depends neither on the other classes nor on how
    many are wanted. Keys are raw output of the bit generator, which NumPy promises never to change (NEP 19); `shuffle`
    and `choice` carry no such promise.
    """
    if wanted is None:
        return pool_n
    counts_K = np.bincount(labels_N[pool_n], minlength=len(classes.kept))
    if isinstance(wanted, PerClass):
        scarce = int(counts_K.argmin())
        if counts_K[scarce] < wanted.per_class:
            raise UserError(
                f"{where}: {wanted.per_class:,} images of each class are asked for, "
                f"but class '{classes.names[scarce]}' has {counts_K[scarce]:,}"
            )
        quota_K = np.full(len(counts_K), wanted.per_class)
    else:
        if wanted > len(pool_n):
            raise UserError(f"{where}: {wanted:,} images are asked for, but there are {len(pool_n):,}")
        quota_K, remainder_K = np.divmod(wanted * counts_K, len(pool_n))
        largest = np.argsort(-remainder_K, kind="stable")
        quota_K[largest[: wanted - int(quota_K.sum())]] += 1
    keys_N = np.random.PCG64([seed, STREAMS[stream]]).random_raw(len(labels_N))
    by_class_n = pool_n[np.lexsort((keys_N[pool_n], labels_N[pool_n]))]
    rank_n = np.arange(len(pool_n)) - np.repeat(counts_K.cumsum() - counts_K, counts_K)
    return np.sort(by_class_n[rank_n < np.repeat(quota_K, counts_K)])


def per_class(data: DataIndex) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """How many training, validation and test images of each class."""
    n_classes, parts = len(data.classes.kept), (data.train, data.val, data.test)
    train, val, test = (tuple(np.bincount(part.labels_n, minlength=n_classes).tolist()) for part in parts)
    return train, val, test


def n_stored(data: DataIndex) -> int:
    """Images of the classes that are kept in the split that training and validation images are taken from."""
    return int((data.classes.number(data.stored.train.labels_N) >= 0).sum())


class _Copy(NamedTuple):
    """An image of which another one has the same bytes."""

    purpose: str
    label: int
    where: str


def copies(data: DataIndex) -> Iterator[str]:
    """Notes of images that are byte for byte the same, across splits, within training and across classes."""
    groups = _same_bytes([data.train, data.val, data.test])
    pairs = (data.val, data.train), (data.test, data.train), (data.test, data.val), (data.train, data.train)
    for part, other in pairs:
        yield from _copied(groups, part, other)
    mixed = [group for group in groups if len({copy.label for copy in group}) > 1]
    if mixed:
        one = mixed[0][0]
        two = next(copy for copy in mixed[0] if copy.label != one.label)
        yield one_line(
            f"{len(mixed):,} of the images that occur several times are of several classes, such as {one.where} "
            f"('{data.classes.names[one.label]}') and {two.where} ('{data.classes.names[two.label]}')"
        )


def copies_of_training(data: DataIndex, other: Selection) -> Iterator[str]:
    """The same of images that are no part of `data`, against its training images."""
    yield from _copied(_same_bytes([data.train, other]), other, data.train)


def _copied(groups: Sequence[Sequence[_Copy]], part: Selection, other: Selection) -> Iterator[str]:
    """A note of how many images of `part` have a copy in `other` or, where that is `part`, repeat an earlier one."""
    pairs = []
    for group in groups:
        ours, theirs = ([copy for copy in group if copy.purpose == one.purpose] for one in (part, other))
        pairs += [(copy, theirs[0]) for copy in (ours[1:] if part is other else ours) if theirs]
    if pairs:
        copy, original = pairs[0]
        whose = f"other {other.purpose}" if part is other else other.purpose
        yield one_line(
            f"{len(pairs):,} of {len(part):,} {part.purpose} images are copies, byte for byte, of {whose} images, "
            f"such as {copy.where}, the same as {original.where}"
        )


def _same_bytes(parts: Sequence[Selection]) -> list[list[_Copy]]:
    """The images of `parts` in groups of equal bytes. Those of one checksum are read again, since the checksums of many
    images may agree by chance."""
    keys = [part.audit.checks_N[part.index_n] for part in parts]
    values, counts = np.unique(np.concatenate(keys), return_counts=True)
    repeated = values[counts > 1]
    found: dict[bytes, list[_Copy]] = {}
    for part, keys_n in zip(parts, keys, strict=True):
        again_n = np.isin(keys_n, repeated)
        contents = part.split.read(part.index_n[again_n])
        for label, (where, content) in zip(part.labels_n[again_n].tolist(), contents, strict=True):
            found.setdefault(hashlib.sha256(content).digest(), []).append(_Copy(part.purpose, label, where))
    return [group for group in found.values() if len(group) > 1]


def decode(data: DataIndex) -> DataSet:
    """The images of `data`, decoded or for the workers to decode, as `data.decode` says; with `cache` the files are
    there when it returns. Raises UserError, also where an image is not any more what was fingerprinted.

    Images of a stored split that all have one size keep it. Where sizes differ, each image is resized (bicubic,
    antialiased) so that its shorter side is round(image_size / crop), with crop = `spec.eval_crop` or 0.875, and its
    centre square of that side is kept: what evaluation at `image_size` would resize it to anyway. Grey, palette and
    transparent images become RGB; EXIF orientation is not applied (as in torchvision).
    """
    how = decoded_by(data)
    train, val, test = (Images(_held(part, how), part.labels_n) for part in (data.train, data.val, data.test))
    return DataSet(train, val, test, data.classes, data.train.audit.fingerprint, data.test.audit.fingerprint)


def decoded_by(data: DataIndex) -> Literal["arrays", "workers", "cache"]:
    """What `data.decode` comes to. Raises UserError where there is nothing to decode for workers or a cache."""
    how, is_encoded = data.spec.decode, isinstance(data.stored.train, EncodedSplit)
    if how in ("workers", "cache") and not is_encoded:
        raise UserError(f"data.decode: {data.spec.name} is stored as pixels, which need no decoding; leave decode out")
    if how != "auto":
        return how
    n_bytes = sum(len(part) * 3 * math.prod(part.size) for part in (data.train, data.val, data.test))
    return "workers" if is_encoded and n_bytes > ARRAY_BYTES else "arrays"


def in_cache(data: DataIndex) -> list[CachedImages]:
    """The three splits, where `data.decode` keeps them in files; else none. Nothing is written."""
    if decoded_by(data) != "cache":
        return []
    return [_cached(part) for part in (data.train, data.val, data.test)]


def stored_images(chosen: Selection) -> StoredImages:
    """The images of an encoded split, as they are stored."""
    assert isinstance(chosen.split, EncodedSplit)
    return StoredImages(chosen.split, chosen.index_n, chosen.audit.checks_N[chosen.index_n], chosen.size)


def _held(chosen: Selection, how: str) -> PixelArray | LazyImages:
    if how == "arrays":
        return pixels(chosen)
    if how == "cache":
        cached = _cached(chosen)
        cached.ensure(decoding.most_threads())
        return cached
    stored = stored_images(chosen)
    return replace(stored, split=decoding.with_random_access(stored.split, chosen.audit))


def _cached(chosen: Selection) -> CachedImages:
    return decoded.of(stored_images(chosen), chosen.audit.fingerprint)


def pixels(chosen: Selection) -> PixelArray:
    """The images as [n, H, W, 3]. Raises UserError for an encoded one that is not what was audited."""
    if not isinstance(chosen.split, EncodedSplit):
        stored = chosen.split.pixels[chosen.index_n]
        return np.ascontiguousarray(stored) if stored.ndim == 4 else np.repeat(stored[..., None], 3, axis=-1)
    images_nHWC = np.empty((len(chosen), *chosen.size, 3), dtype=np.uint8)
    first = 0
    for part_bHWC in stored_images(chosen).in_order(decoding.most_threads()):
        images_nHWC[first : first + len(part_bHWC)] = part_bHWC
        first += len(part_bHWC)
    return images_nHWC
