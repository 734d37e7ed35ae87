"""Images in Parquet files, as the Hugging Face hub and its library `datasets` store them.

Columns and class names come from the files' schemas, where `datasets` writes what each column is.

Axes: N rows of a split. A lower-case letter is a selection of that axis.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raybasin.data import stored
from raybasin.data.formats import parquet_files
from raybasin.data.images import Encoded, IntArray, not_fetched
from raybasin.data.stored import EncodedSplit, Shard, Stored, StoredSplit, choose_splits
from raybasin.errors import UserError, some
from raybasin.sweep.specs import DataSpec

Find = Callable[[Path, str], Path | None]
"""The folder in a folder where Parquet files of a split lie."""
IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label")


def open(folder: Path, spec: DataSpec, find: Find = parquet_files.place_of) -> Stored | None:
    """Files of `train` with `test`, `valid`, `validation` or `val`, in the folder that `find` finds for those of
    `train`, or None."""
    place = find(folder, "train")
    if place is None:
        return None
    if stored.folders_in(folder / "train"):
        raise UserError(f"{folder}: holds Parquet files of train and class folders in train; take one of them away")
    names = choose_splits(lambda name: parquet_files.files(place, name), spec)
    train, val, test = (parquet_files.files(place, name) if name else [] for name in ("train", *names))
    found = _read([train + val, test] if test else [train + val], _class_list(place, folder))
    first_val = sum(shard.n_rows for shard in found.splits[0].shards[: len(train)])
    used = [*train, *val, *test]
    image_folders = [name for name in stored.REPORTING_SPLITS if stored.folders_in(folder / name)]
    return Stored(
        found.splits[0],
        found.splits[1] if test else None,
        found.class_names,
        source=f"Parquet in '{place}': {stored.counted(used, 'file')}, columns {found.columns}",
        validation_n=np.arange(first_val, len(found.splits[0].labels_N)) if val else None,
        notes=(*found.notes, *stored.not_read({*parquet_files.unread(place, used), *image_folders})),
    )


def open_split(folder: Path, split: str, find: Find = parquet_files.place_of) -> StoredSplit | None:
    """Files of `split` in the folder that `find` finds for them, or None."""
    place = find(folder, split)
    if place is None:
        return None
    found = _read([parquet_files.files(place, split)], _class_list(place, folder))
    return StoredSplit(found.splits[0], found.class_names, found.notes)


def _class_list(*folders: Path) -> Path | None:
    """The first `classes.json` in these folders: it names the classes in the order of their numbers."""
    return next((path for folder in folders if (path := folder / "classes.json").is_file()), None)


# Labels and class names of all files


class _Found(NamedTuple):
    splits: list[EncodedSplit]
    class_names: list[str] | None
    columns: str
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _File:
    path: Path
    image: str
    label: str
    labels: pa.ChunkedArray[Any]
    """int64 or string."""
    names: list[str] | None
    """The classes by number, as the schema tells."""
    unread: tuple[str, ...]
    """Further columns that hold images or labels by their type."""


def _read(splits: Sequence[Sequence[Path]], listed: Path | None) -> _Found:
    """The labels of all splits, numbered alike, and where their images lie.

    Args:
        splits: the files of each split.
        listed: a `classes.json`.

    Raises UserError where files cannot be read, or differ in columns or in the order of their classes.
    """
    opened = [[_file(path) for path in paths] for paths in splits]
    whole = [file for files in opened for file in files]
    first = whole[0]
    for other in whole[1:]:
        _check_alike(first, other)
    names, notes = _class_names(whole, listed)
    if first.unread:
        notes = (f"not read: column {', '.join(first.unread)}", *notes)
    return _Found([_split(files, names) for files in opened], names, f"{first.image} and {first.label}", notes)


def _split(files: Sequence[_File], names: list[str] | None) -> EncodedSplit:
    first_rows = np.cumsum([0, *(len(file.labels) for file in files)]).tolist()
    shards = tuple(
        Shard(file.path, file.image, first_row, len(file.labels))
        for file, first_row in zip(files, first_rows, strict=False)
    )
    labels_N = np.concatenate([_numbers(file, names) for file in files])
    return EncodedSplit(partial(_read_rows, shards), labels_N, shards)


def _numbers(file: _File, names: list[str] | None) -> IntArray:
    if names is None or not pa.types.is_string(file.labels.type):
        return file.labels.to_numpy()
    if len(set(names)) < len(names):
        raise UserError(f"{file.path}: column {file.label} holds names, and classes.json has one name twice")
    numbers = pc.index_in(file.labels, value_set=pa.array(names, pa.string()))
    if numbers.null_count:
        unknown = file.labels.filter(pc.is_null(numbers))[0].as_py()
        raise UserError(f"{file.path}: holds the class '{unknown}', which classes.json does not name")
    return numbers.cast(pa.int64()).to_numpy()


def _class_names(files: Sequence[_File], listed: Path | None) -> tuple[list[str] | None, tuple[str, ...]]:
    """What the classes are called, by number, where they are called anything, and a note of whence that is known."""
    named = next((file for file in files if file.names), None)
    if named:
        for other in files:
            _check_same_names(named, other)
    if listed:
        names = _listed_names(listed)
        if named:
            _check_listed(listed, names, named)
        return names, ()
    if pa.types.is_string(files[0].labels.type):
        return sorted(set().union(*(pc.unique(file.labels).to_pylist() for file in files))), ()
    unnamed = [file.path.name for file in files if not file.names]
    if named and unnamed:
        return named.names, (f"class names are those of {named.path.name}; there are none in {some(unnamed, 3)}",)
    return (named.names if named else None), ()


def _check_alike(first: _File, other: _File) -> None:
    """Files of one data set have the same columns."""
    kinds = [f"{file.image} and {file.label} ({file.labels.type})" for file in (first, other)]
    if kinds[0] != kinds[1]:
        raise UserError(
            f"{other.path}: has the columns {kinds[1]}, and {first.path.name} has {kinds[0]};\n"
            "they are of different revisions or data sets; take one away"
        )


def _check_same_names(named: _File, other: _File) -> None:
    """A label must mean the same class in all files."""
    ours, theirs = named.names or [], other.names or []
    if not theirs or ours == theirs:
        return
    k = next((k for k, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    differ = f"{len(ours)} classes and {len(theirs)}" if k is None else f"label {k} '{ours[k]}' and '{theirs[k]}'"
    raise UserError(
        f"{named.path} and {other.path} name {differ}: labels would mean different classes;\n"
        "number them alike (datasets has align_labels_with_mapping for it), or take the files of another revision away"
    )


def _check_listed(listed: Path, names: Sequence[str], named: _File) -> None:
    """`classes.json` may call classes otherwise than the schema, but not number them otherwise."""
    known = named.names or []
    moved = [name for name in known if name in names and known.index(name) != names.index(name)]
    if moved or len(names) != len(known):
        differ = f"numbers '{moved[0]}' otherwise" if moved else f"names {len(names)} classes, other"
        raise UserError(f"{listed}: {differ} than {named.path.name}; mend or remove it")


def _listed_names(path: Path) -> list[str]:
    """The names in `classes.json`: a list of names, or of objects with a `name`."""
    try:
        listed = json.loads(path.read_bytes())
        if not isinstance(listed, list):
            raise TypeError("it is not a list")
        names = [entry["name"] if isinstance(entry, dict) else entry for entry in listed]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: cannot read the class names: {error}") from error
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: must be a list of names, or of objects with a name")
    return names


# One file


def _file(path: Path) -> _File:
    with _open_file(path) as file:
        schema, names = file.schema_arrow, list(file.schema_arrow.names)
        features = _features(schema)
        kinds = {name: schema.field(name).type for name in names if names.count(name) == 1}
        of_images = [
            name for name in kinds if _is_image_struct(kinds[name]) or features.get(name, {}).get("_type") == "Image"
        ]
        of_labels = [name for name in kinds if features.get(name, {}).get("_type") == "ClassLabel"]
        image, images = _column(path, "image", IMAGE_COLUMNS, of_images, names)
        label, labels = _column(path, "label", LABEL_COLUMNS, of_labels, names)
        if not _is_binary(kinds[image]) and not _is_image_struct(kinds[image]):
            must = "hold images: be binary, or a struct with the image in `bytes`"
            raise UserError(f"{path}: column {image} must {must}, not {kinds[image]}")
        plain = kinds[label].value_type if pa.types.is_dictionary(kinds[label]) else kinds[label]
        if not pa.types.is_integer(plain) and not _is_text(plain):
            raise UserError(f"{path}: column {label} must hold integers or text, one an image, not {kinds[label]}")
        classes = features.get(label, {}).get("names")
        is_list = isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)
        unread = (*images, *labels)
        return _File(path, image, label, _labels(path, file, label, plain), classes if is_list else None, unread)


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


def _labels(path: Path, file: pq.ParquetFile, column: str, kind: pa.DataType) -> pa.ChunkedArray[Any]:
    """Of all rows, as int64 or string; `kind` is that of the values, where these are stored as a dictionary."""
    text = _is_text(kind)
    labels = file.read(columns=[column]).column(0)
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(kind)
    labels = labels.cast(pa.string() if text else pa.int64())
    labels.validate(full=True)  # text may be anything but UTF-8
    n_without = labels.null_count + (pc.sum(pc.equal(labels, "")).as_py() or 0 if text else 0)
    if n_without:
        raise UserError(f"{path}: column {column} has {n_without:,} rows without a label")
    return labels


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_image_struct(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)


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


# Images


def _read_rows(shards: Sequence[Shard], index_n: IntArray) -> Iterator[Encoded]:
    """The images of ascending rows, a row group in memory at a time. A `path` stored beside the bytes is not used."""
    for shard in shards:
        rows_n = index_n[np.searchsorted(index_n, shard.first_row) :] - shard.first_row
        rows_n = rows_n[: np.searchsorted(rows_n, shard.n_rows)]
        if not len(rows_n):
            continue
        with _open_file(shard.path) as file:
            if file.metadata.num_rows != shard.n_rows:
                raise UserError(f"{shard.path}: has changed since it was first read; put it back and run it again")
            start = 0
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                chosen_n = rows_n[np.searchsorted(rows_n, start) : np.searchsorted(rows_n, stop)]
                if len(chosen_n):
                    yield from _images_of_group(shard, file, group, start, chosen_n)
                start = stop


def _images_of_group(shard: Shard, file: pq.ParquetFile, group: int, start: int, rows_n: IntArray) -> Iterator[Encoded]:
    """The images of these rows of the file, all of one row group, which begins at row `start`."""
    if pa.types.is_struct(file.schema_arrow.field(shard.column).type):
        structs = file.read_row_group(group, columns=[f"{shard.column}.bytes"]).column(0)
        contents = pc.struct_field(structs, "bytes")
    else:
        contents = file.read_row_group(group, columns=[shard.column]).column(0)
    for row in rows_n.tolist():
        where, content = f"{shard.path}, row {row}", contents[row - start].as_py()
        if content is None:
            raise UserError(f"{where}: has no image bytes (a path alone is not followed)")
        yield where, content
