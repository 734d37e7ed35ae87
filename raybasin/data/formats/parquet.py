"""Images in Parquet files, as the Hugging Face hub and its library `datasets` name and store them.

Columns and class names come from the files' schemas, where `datasets` writes what each column is. Axes: N rows of a
split. A lower-case letter is a selection of that axis.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raybasin.data import stored
from raybasin.data.images import Encoded, IntArray, not_fetched
from raybasin.data.stored import EncodedSplit, Shard, Stored, StoredSplit, entries, folders_in
from raybasin.errors import UserError, some
from raybasin.sweep.specs import DataSpec

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label")
BINARY = (pa.binary(), pa.large_binary(), pa.binary_view())
TEXT = (pa.string(), pa.large_string(), pa.string_view())
ENDING = ".parquet"
_OF = re.compile(r"(?:.*-)?(?P<number>\d+)-of-(?P<total>\d+)(?:-[0-9a-f]+)?\.parquet")
"""`train-00000-of-00002.parquet`; older ones end in a fingerprint, `train-00000-of-00002-1f0c8a9b.parquet`."""


def open(folder: Path, spec: DataSpec, nested: bool = False) -> Stored | None:
    """Files of `train` with `test`, `valid`, `validation` or `val`, in the folder where those of `train` lie, or
    None; with `nested`, where they lie in the one folder in `folder`."""
    place = _place_of(folder, "train", nested)
    if place is None:
        return None
    if folders_in(folder / "train"):
        raise UserError(f"{folder}: holds Parquet files of train and class folders in train; take one of them away")
    names = stored.choose_splits(lambda name: _files(place, name), spec)
    train, val, test = (_files(place, name) if name else [] for name in ("train", *names))
    splits, class_names, columns, notes = _read([train + val, test] if test else [train + val], place, folder)
    first_val = sum(shard.n_rows for shard in splits[0].shards[: len(train)])
    used = [*train, *val, *test]
    image_folders = [name for name in stored.REPORTING_SPLITS if folders_in(folder / name)]
    return Stored(
        splits[0],
        splits[1] if test else None,
        class_names,
        source=f"Parquet in '{place}': {stored.counted(used, 'file')}, columns {columns}",
        validation_n=np.arange(first_val, len(splits[0].labels_N)) if val else None,
        notes=(*notes, *stored.not_read({*unread(place, used), *image_folders})),
    )


def open_split(folder: Path, split: str, nested: bool = False) -> StoredSplit | None:
    """Files of `split` in the folder where they lie, or None."""
    place = _place_of(folder, split, nested)
    if place is None:
        return None
    [whole], class_names, _, notes = _read([_files(place, split)], place, folder)
    return StoredSplit(whole, class_names, notes)


def images_of(path: Path) -> tuple[EncodedSplit, list[str | None] | None]:
    """The images of one file, whatever its name, and what the class of each is called: None for a row without one, and
    in place of the list where the file has no column of labels. A number is named by the file's schema or by a
    `classes.json` beside it, and is its own name where neither does. Raises UserError."""
    with _open_file(path) as file:
        columns = _columns(path, file.schema_arrow, needs_labels=False)
        n_rows = file.metadata.num_rows
        labels = None if columns.label is None else _labels(path, file, columns.label).to_pylist()
    shards = (Shard(path, columns.encoded, 0, n_rows),)
    split = EncodedSplit(partial(_read_rows, shards), np.full(n_rows, -1), shards)
    if labels is None:
        return split, None
    listed = next((beside for folder in path.parents[:2] if (beside := folder / "classes.json").is_file()), None)
    names = columns.names or (_listed_names(listed, []) if listed else [])

    def name(label: int | str | None) -> str | None:
        if isinstance(label, str):
            return label or None
        if label is None or label < 0:  # as `datasets` has it where labels are withheld
            return None
        return names[label] if label < len(names) else str(label)

    return split, [name(label) for label in labels]


# Which files


def unread(place: Path, read: Sequence[Path]) -> list[str]:
    """Parquet files of `place`, and folders of such files, that are not among those read."""
    used = {path.relative_to(place).parts[0] for path in read}
    names = [name for name in folders_in(place) if _parquet_in(place / name)]
    return [name for name in sorted({*names, *_parquet_in(place)}) if name not in used]


def _place_of(folder: Path, split: str, nested: bool) -> Path | None:
    """Where files of `split` lie: in `folder` or its `data/`, or, with `nested`, in the one folder that it holds, as
    the hub has one for each configuration. None where there are none; UserError where several may be meant."""
    places = [folder / name for name in folders_in(folder)] if nested else [folder, folder / "data"]
    found = [place for place in places if _flat(place, split) or _parquet_in(place / split)]
    if nested and found and len(places) > 1:
        raise UserError(
            f"{folder}: holds Parquet files of {split} in {some([place.name for place in found], 10)}; "
            f"name the folder to read, such as dir: {found[0]}"
        )
    if len(found) > 1:
        raise UserError(f"{folder}: holds Parquet files of {split}, and so does its folder data; take one of them away")
    return found[0] if found else None


def _files(place: Path, split: str) -> list[Path]:
    """The files of `split` in `place`, in order: `train.parquet`, `train-*.parquet` or `train/*.parquet`.

    Raises UserError where they are not of one set or, as far as their numbers tell, not all of it: those that say of
    how many files they are (`_OF`) and those in a folder are numbered from 0, others from any number.
    """
    flat, nested = _flat(place, split), _parquet_in(place / split)
    if flat and nested:
        raise UserError(f"{place}: holds {split} twice, as {flat[0]} and in the folder {split}; take one away")
    folder, names, start = (place / split, nested, "") if nested else (place, flat, re.escape(split) + "-")
    shards = {name: found for name in names if (found := _OF.fullmatch(name))}
    others = [name for name in names if name not in shards]
    if shards and others:
        raise UserError(f"{folder}: {others[0]} is no shard of the set of {next(iter(shards))}; take one of them away")
    if split + ENDING in others and len(others) > 1:
        raise UserError(f"{folder}: holds {split} twice, as {split + ENDING} and {others[0]}; take one of them away")
    pattern = re.compile(start + r"(?P<number>\d+)\.parquet")
    numbered = shards or {name: found for name in others if (found := pattern.fullmatch(name))}
    if numbered and len(numbered) == len(names):
        _check_numbers(folder, split, numbered, from_0=bool(shards or nested))
    return [folder / name for name in names]


def _check_numbers(folder: Path, split: str, numbered: Mapping[str, re.Match[str]], from_0: bool) -> None:
    """Whether each number from the first to the last is that of one file."""
    totals = {int(found["total"]): name for name, found in numbered.items() if "total" in found.groupdict()}
    if len(totals) > 1:
        raise UserError(f"{folder}: {' and '.join(islice(totals.values(), 2))} are of two revisions; take one away")
    numbers: dict[int, str] = {}
    for name, found in numbered.items():
        if (number := int(found["number"])) in numbers:
            raise UserError(f"{folder}: {numbers[number]} and {name} have one number; take one of them away")
        numbers[number] = name
    wanted = range(0 if from_0 else min(numbers), next(iter(totals), max(numbers) + 1))
    # Counted and not listed, and not by len(): a name may claim to be one of any number of files.
    n_wanted = wanted.stop - wanted.start
    n_missing = n_wanted - sum(number in wanted for number in numbers)
    if n_missing:
        like, found = next(iter(numbered.items()))
        first, last = found.span("number")
        end = f"-of-{found['total']}{ENDING}" if totals else ENDING  # fingerprints are left out
        missing = (f"{like[:first]}{k:0{last - first}d}{end}" for k in wanted if k not in numbers)
        raise UserError(
            f"{folder}: {n_missing:,} of {n_wanted:,} files of {split} {'is' if n_missing == 1 else 'are'} missing: "
            f"{', '.join(islice(missing, 5))}{' and more' if n_missing > 5 else ''}; fetch the data set anew"
        )


def _flat(place: Path, split: str) -> list[str]:
    return [name for name in _parquet_in(place) if name == split + ENDING or name.startswith(f"{split}-")]


def _parquet_in(folder: Path) -> list[str]:
    names = (entry.name for entry in entries(folder))
    return [name for name in names if name.endswith(ENDING) and not name.startswith(".")]


# Labels and class names of all files


class _File(NamedTuple):
    path: Path
    image: str
    encoded: str
    """The column `image`, or the part of it that holds the bytes."""
    label: str
    labels: pa.ChunkedArray[Any]
    """int64 or string."""
    names: list[str]
    """The classes by number, as the schema tells; none where it does not."""
    unread: list[str]
    """Further columns that hold images or labels by their type."""


def _read(
    splits: Sequence[Sequence[Path]], *folders: Path
) -> tuple[list[EncodedSplit], list[str] | None, str, tuple[str, ...]]:
    """The labels of the files of each split, numbered alike, and where their images lie; what the classes are called;
    the columns that were read; notes. The first `classes.json` in `folders` names the classes in their order.

    Raises UserError where files cannot be read, or differ in columns or in the order of their classes.
    """
    opened = [[_file(path) for path in paths] for paths in splits]
    whole = [file for files in opened for file in files]
    first = whole[0]
    kinds = [f"{file.image} and {file.label} ({file.labels.type})" for file in whole]
    for file, kind in zip(whole, kinds, strict=True):
        if kind != kinds[0]:
            raise UserError(
                f"{file.path}: has the columns {kind}, and {first.path.name} has {kinds[0]};\n"
                "they are of different revisions or data sets; take one away"
            )
    listed = next((path for folder in folders if (path := folder / "classes.json").is_file()), None)
    names, notes = _class_names(whole, listed)
    if first.unread:
        notes = (f"not read: column {', '.join(first.unread)}", *notes)
    return [_split(files, names) for files in opened], names, f"{first.image} and {first.label}", notes


def _class_names(files: Sequence[_File], listed: Path | None) -> tuple[list[str] | None, tuple[str, ...]]:
    """What the classes are called, by number, where they are called anything, and a note of whence that is known. A
    label must mean the same class in all files."""
    named = [file for file in files if file.names]
    known = named[0].names if named else []
    for other in named:
        if other.names != known:
            pairs = enumerate(zip(known, other.names, strict=False))
            differ = next(
                (f"label {k} '{ours}' and '{theirs}'" for k, (ours, theirs) in pairs if ours != theirs),
                f"{len(known)} classes and {len(other.names)}",
            )
            raise UserError(
                f"{named[0].path} and {other.path} name {differ}: labels would mean different classes;\nnumber them "
                "alike (datasets has align_labels_with_mapping for it), or take the files of another revision away"
            )
    if listed:
        return _listed_names(listed, named), ()
    if pa.types.is_string(files[0].labels.type):
        return sorted(set().union(*(pc.unique(file.labels).to_pylist() for file in files))), ()
    unnamed = [file.path.name for file in files if not file.names]
    if named and unnamed:
        return known, (f"class names are those of {named[0].path.name}; there are none in {some(unnamed, 3)}",)
    return known or None, ()


def _listed_names(path: Path, named: Sequence[_File]) -> list[str]:
    """The names in `classes.json`, a list of names or of objects with a `name`: it may call classes otherwise than the
    schemas of the files `named`, but not number them otherwise."""
    try:
        listed = json.loads(path.read_bytes())
        if not isinstance(listed, list):
            raise TypeError("it is not a list")
        names = [entry["name"] if isinstance(entry, dict) else entry for entry in listed]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: cannot read the class names: {error}") from error
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: must be a list of names, or of objects with a name")
    known = named[0].names if named else names
    moved = [name for name in known if name in names and known.index(name) != names.index(name)]
    if moved or len(names) != len(known):
        differ = f"numbers '{moved[0]}' otherwise" if moved else f"names {len(names)} classes, other"
        raise UserError(f"{path}: {differ} than {named[0].path.name}; mend or remove it")
    return names


def _split(files: Sequence[_File], names: list[str] | None) -> EncodedSplit:
    shards: list[Shard] = []
    labels_N: list[IntArray] = []
    for file in files:
        numbers = file.labels
        if names is not None and pa.types.is_string(file.labels.type):
            if len(set(names)) < len(names):
                raise UserError(f"{file.path}: column {file.label} holds names, and classes.json has one name twice")
            numbers = pc.index_in(file.labels, value_set=pa.array(names, pa.string()))
            if numbers.null_count:
                unknown = file.labels.filter(pc.is_null(numbers))[0].as_py()
                raise UserError(f"{file.path}: holds the class '{unknown}', which classes.json does not name")
        shards.append(Shard(file.path, file.encoded, sum(map(len, labels_N)), len(numbers)))
        labels_N.append(numbers.cast(pa.int64()).to_numpy())
    return EncodedSplit(partial(_read_rows, tuple(shards)), np.concatenate(labels_N), tuple(shards))


class _Columns(NamedTuple):
    """Which columns of a file hold images and labels."""

    image: str
    encoded: str
    label: str | None
    names: list[str]
    unread: list[str]


def _file(path: Path) -> _File:
    with _open_file(path) as file:
        image, encoded, label, classes, unread = _columns(path, file.schema_arrow)
        assert label is not None
        labels = _labels(path, file, label)
        n_empty = pc.sum(pc.equal(labels, "")).as_py() or 0 if pa.types.is_string(labels.type) else 0
        if n_without := labels.null_count + n_empty:
            raise UserError(f"{path}: column {label} has {n_without:,} rows without a label")
        return _File(path, image, encoded, label, labels, classes, unread)


def _columns(path: Path, schema: pa.Schema, needs_labels: bool = True) -> _Columns:
    names, features = list(schema.names), _features(schema)
    kinds = {name: schema.field(name).type for name in names if names.count(name) == 1}
    structs = [name for name, kind in kinds.items() if _holds_bytes(kind)]
    of_images = [name for name in kinds if name in structs or features.get(name, {}).get("_type") == "Image"]
    of_labels = [name for name in kinds if features.get(name, {}).get("_type") == "ClassLabel"]
    image, more = _column(path, "image", IMAGE_COLUMNS, of_images, names)
    if kinds[image] not in BINARY and image not in structs:
        must = "hold images: be binary, or a struct with the image in `bytes`"
        raise UserError(f"{path}: column {image} must {must}, not {kinds[image]}")
    encoded = f"{image}.bytes" if image in structs else image
    if not needs_labels and not of_labels and not any(name in names for name in LABEL_COLUMNS):
        return _Columns(image, encoded, None, [], more)
    label, more_labels = _column(path, "label", LABEL_COLUMNS, of_labels, names)
    return _Columns(image, encoded, label, _class_list(features.get(label, {})), [*more, *more_labels])


def _holds_bytes(kind: pa.DataType) -> bool:
    """Whether it is a struct with an image in `bytes`, as `datasets` stores them."""
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and kind.field("bytes").type in BINARY)


def _class_list(feature: Mapping[str, Any]) -> list[str]:
    """The names of a column's classes, as `datasets` says; none where it does not."""
    classes = feature.get("names")
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return list(classes) if named and classes else []


def _labels(path: Path, file: pq.ParquetFile, column: str) -> pa.ChunkedArray[Any]:
    """Of all rows, as int64 or string."""
    kind = file.schema_arrow.field(column).type
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not pa.types.is_integer(plain) and plain not in TEXT:
        raise UserError(f"{path}: column {column} must hold integers or text, one an image, not {kind}")
    labels = file.read(columns=[column]).column(0)
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(plain)
    labels = labels.cast(pa.string() if plain in TEXT else pa.int64())
    labels.validate(full=True)  # text may be anything but UTF-8
    return labels


def _column(
    path: Path, holds: str, usual: Sequence[str], marked: Sequence[str], names: Sequence[str]
) -> tuple[str, list[str]]:
    """Of the columns `names`, the first that has a `usual` name, else the one that is `marked` as such by its type or
    by `datasets`; and which others there are."""
    found = [name for name in usual if name in names] or marked
    if not found or (len(marked) > 1 and found is marked):
        which = f"which of {some(found)} holds the {holds}s cannot be told" if found else f"has no {holds} column"
        raise UserError(f"{path}: {which}; call it {' or '.join(usual)}; the columns are {some(names)}")
    if names.count(found[0]) > 1:
        raise UserError(f"{path}: has two columns {found[0]}")
    return found[0], [name for name in dict.fromkeys([*found, *marked]) if name != found[0]]


@contextmanager
def _open_file(path: Path) -> Iterator[pq.ParquetFile]:
    """The open file; what Arrow finds wrong with it is a UserError that names it."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except MemoryError:  # Arrow's is an ArrowException too, and no fault of the file
        raise
    except (pa.ArrowException, OSError) as error:
        reason = f"cannot read the Parquet file: {' '.join(str(error).split())}"
        with suppress(OSError), path.open("rb") as start:
            reason = not_fetched(start.read(100)) or reason
        raise UserError(f"{path}: {reason}") from error


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What `datasets` says of each column, by its name; empty where the file comes from elsewhere."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _read_rows(shards: Sequence[Shard], index_n: IntArray) -> Iterator[Encoded]:
    """The images of ascending rows, a row group in memory at a time. A `path` stored beside the bytes is not used."""
    for shard in shards:
        low, high = np.searchsorted(index_n, [shard.first_row, shard.first_row + shard.n_rows])
        if low == high:
            continue
        rows_n = index_n[low:high] - shard.first_row
        with _open_file(shard.path) as file:
            if file.metadata.num_rows != shard.n_rows:
                raise UserError(f"{shard.path}: has changed since it was first read; put it back and run it again")
            n_rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            starts = np.cumsum([0, *n_rows]).tolist()
            groups_n = np.searchsorted(starts, rows_n, side="right") - 1
            for group in np.unique(groups_n).tolist():
                contents = file.read_row_group(group, columns=[shard.column]).flatten().column(0)
                for row in rows_n[groups_n == group].tolist():
                    where, content = f"{shard.path}, row {row}", contents[row - starts[group]].as_py()
                    if content is None:
                        raise UserError(f"{where}: has no image bytes (a path alone is not followed)")
                    yield where, content
                del contents  # before the next one is read
