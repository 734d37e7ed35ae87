"""Images in Parquet files, as the Hugging Face hub and its library `datasets` store them.

Which files make a split is told by their names; that they are all there, and of one revision, is seen to here. Columns
and class names come from the files' schemas, where `datasets` writes what each column is.

Axes: N rows of a split. A lower-case letter is a selection of that axis.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raybasin.errors import UserError, some
from raybasin.data.torchvision_sets import IntArray

Encoded = tuple[str, bytes]
"""Where an image is stored, in words for a user, and its bytes as stored."""

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label")
ENDING = ".parquet"
_OF = re.compile(r"(?:.*-)?(?P<number>\d+)-of-(?P<total>\d+)(?:-[0-9a-f]+)?\.parquet")
"""`train-00000-of-00002.parquet`; older ones end in a fingerprint, `train-00000-of-00002-1f0c8a9b.parquet`."""


# Which files


def place_of(folder: Path, split: str) -> Path | None:
    """`folder` or its `data/`, where files of `split` lie; None where there are none.

    Raises UserError where there are some in both.
    """
    places = [place for place in (folder, folder / "data") if _names(place, split) or _nested(place, split)]
    if len(places) > 1:
        raise UserError(f"{folder}: holds Parquet files of {split}, and so does its folder data; take one of them away")
    return places[0] if places else None


def configuration(folder: Path, split: str) -> Path | None:
    """The one folder in `folder` in which files of `split` lie, as the hub has one for each configuration.

    Raises UserError where it is one of several folders.
    """
    places = sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))
    found = [place for place in places if _names(place, split) or _nested(place, split)]
    if found and len(places) > 1:
        raise UserError(
            f"{folder}: holds Parquet files of {split} in {some([place.name for place in found], 10)}; "
            f"name the folder to read, such as dir: {found[0]}"
        )
    return found[0] if found else None


def files(place: Path, split: str) -> list[Path]:
    """The files of `split` in `place`, in order: `train.parquet`, `train-*.parquet` or `train/*.parquet`.

    Raises UserError where some are missing, or where they are not of one set.
    """
    flat, nested = [place / name for name in _names(place, split)], _nested(place, split)
    if flat and nested:
        raise UserError(f"{place}: holds {split} twice, as {flat[0].name} and in the folder {split}; take one away")
    if nested:
        _check_whole(place / split, split, [path.name for path in nested], re.compile(r"(?P<number>\d+)\.parquet"), 0)
    elif flat:
        counted = re.compile(re.escape(split) + r"-(?P<number>\d+)\.parquet")
        _check_whole(place, split, [path.name for path in flat], counted, None)
    return flat or nested


def unread(place: Path, read: Sequence[Path]) -> list[str]:
    """Parquet files of `place`, and folders of such files, that are not among those read."""
    used = {path.relative_to(place).parts[0] for path in read}
    names = sorted(entry.name for entry in place.iterdir() if entry.name not in used)
    return [name for name in names if not name.startswith(".") and (name.endswith(ENDING) or _parquet_in(place / name))]


def _names(place: Path, split: str) -> list[str]:
    names = [name for name in _parquet_in(place) if name == split + ENDING or name.startswith(f"{split}-")]
    return sorted(names)


def _nested(place: Path, split: str) -> list[Path]:
    return [place / split / name for name in _parquet_in(place / split)]


def _parquet_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    names = (entry.name for entry in folder.iterdir())
    return sorted(name for name in names if name.endswith(ENDING) and not name.startswith("."))


def _check_whole(
    place: Path, split: str, names: Sequence[str], counted: re.Pattern[str], begin: int | None
) -> None:
    """Whether the files are those of one set, and, as far as their numbers tell, all of it.

    Names that say of how many they are begin at 0; those that are only `counted` at `begin` or, where it is None,
    anywhere.
    """
    shards = [(name, found) for name in names if (found := _OF.fullmatch(name))]
    others = [name for name in names if not _OF.fullmatch(name)]
    if shards and others:
        raise UserError(f"{place}: {others[0]} is no shard of the set of {shards[0][0]}; take one of them away")
    if split + ENDING in others and len(others) > 1:
        raise UserError(f"{place}: holds {split} twice, as {split + ENDING} and {others[0]}; take one of them away")
    totals = {int(found["total"]): name for name, found in shards}
    if len(totals) > 1:
        raise UserError(f"{place}: {' and '.join(islice(totals.values(), 2))} are of two revisions; take one away")
    numbered = shards or [(name, found) for name in others if (found := counted.fullmatch(name))]
    if len(numbered) < len(names):
        return
    numbers: dict[int, str] = {}
    for name, found in numbered:
        if (number := int(found["number"])) in numbers:
            raise UserError(f"{place}: {numbers[number]} and {name} have one number; take one of them away")
        numbers[number] = name
    first = 0 if totals else (min(numbers) if begin is None else begin)
    end = next(iter(totals), max(numbers) + 1)
    n_missing = end - first - sum(first <= number < end for number in numbers)
    if n_missing:
        missing = islice((number for number in range(first, end) if number not in numbers), 5)
        listed = ", ".join(_renumbered(*numbered[0], number) for number in missing)
        raise UserError(
            f"{place}: {n_missing:,} of {end - first:,} files of {split} {'is' if n_missing == 1 else 'are'} missing: "
            f"{listed}{' and more' if n_missing > 5 else ''}; fetch the data set anew"
        )


def _renumbered(name: str, found: re.Match[str], number: int) -> str:
    """What a file of that number is called, after the name of another one; fingerprints are left out."""
    start, stop = found.span("number")
    total = f"-of-{found['total']}" if "total" in found.groupdict() else ""
    return f"{name[:start]}{number:0{stop - start}d}{total}{ENDING}"


# What is in them


@dataclass(frozen=True)
class Shard:
    """One Parquet file, and where its rows stand in the split."""

    path: Path
    column: str
    first_row: int
    n_rows: int


@dataclass(frozen=True, eq=False)
class Rows:
    """The files of one split, and the label of each row."""

    shards: tuple[Shard, ...]
    labels_N: IntArray


@dataclass(frozen=True, eq=False)
class Found:
    """What some splits hold; `columns` says in words where it was read."""

    splits: tuple[Rows, ...]
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
    others: tuple[str, ...]
    """Further columns that hold images or labels by their type."""


def read(splits: Sequence[Sequence[Path]], listed: Path | None) -> Found:
    """The labels of all splits, numbered alike, and where their images lie.

    Args:
        splits: the files of each split.
        listed: a `classes.json`, which names the classes in the order of their numbers.

    Raises UserError where files cannot be read, or differ in columns or in the order of their classes.
    """
    opened = [[_file(path) for path in paths] for paths in splits]
    whole = [file for files in opened for file in files]
    first = whole[0]
    for other in whole[1:]:
        _check_alike(first, other)
    named = next((file for file in whole if file.names), None)
    for other in whole:
        _check_same_names(named, other)
    names = _listed_names(listed) if listed else None
    notes = [f"not read: column {', '.join(first.others)}"] if first.others else []
    if names is None and pa.types.is_string(first.labels.type):
        names = sorted(set().union(*(pc.unique(file.labels).to_pylist() for file in whole)))
    elif names is None and named is not None:
        names = named.names
        if unnamed := [file.path.name for file in whole if not file.names]:
            notes.append(f"class names are those of {named.path.name}; there are none in {some(unnamed, 3)}")
    elif named is not None and names is not None:
        _check_listed(listed, names, named)
    return Found(
        tuple(_rows(files, names) for files in opened), names, f"columns {first.image} and {first.label}", tuple(notes)
    )


def _rows(files: Sequence[_File], names: list[str] | None) -> Rows:
    shards: list[Shard] = []
    for file in files:
        first_row = shards[-1].first_row + shards[-1].n_rows if shards else 0
        shards.append(Shard(file.path, file.image, first_row, len(file.labels)))
    return Rows(tuple(shards), np.concatenate([_numbers(file, names) for file in files]))


def _numbers(file: _File, names: list[str] | None) -> IntArray:
    if not pa.types.is_string(file.labels.type):
        return file.labels.to_numpy()
    assert names is not None
    if len(set(names)) < len(names):
        raise UserError(f"{file.path}: column {file.label} holds names, and classes.json has one name twice")
    numbers = pc.index_in(file.labels, value_set=pa.array(names, pa.string()))
    if numbers.null_count:
        unknown = file.labels.filter(pc.is_null(numbers))[0].as_py()
        raise UserError(f"{file.path}: holds the class '{unknown}', which classes.json does not name")
    return numbers.cast(pa.int64()).to_numpy()


def _file(path: Path) -> _File:
    with _open(path) as file:
        schema = file.schema_arrow
        features = _features(schema)
        image, images = _column(
            path, schema, "image", IMAGE_COLUMNS, _holds_images,
            lambda name: _holds_struct(schema.field(name).type) or features.get(name, {}).get("_type") == "Image",
            "hold images: be binary, or a struct with the image in `bytes`",
        )  # fmt: skip
        label, labels = _column(
            path, schema, "label", LABEL_COLUMNS, _holds_labels,
            lambda name: features.get(name, {}).get("_type") == "ClassLabel", "hold integers or text, one an image",
        )  # fmt: skip
        return _File(
            path, image, label, _labels(path, file, label), _class_names(features, label), (*images, *labels)
        )


@contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    """The open file; what Arrow finds wrong with it is a UserError that names it."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except MemoryError:  # Arrow's is an ArrowException too, and no fault of the file
        raise
    except (pa.ArrowException, OSError) as error:
        if instead := _not_fetched_file(path):
            raise UserError(f"{path}: {instead}") from error
        raise UserError(f"{path}: cannot read the Parquet file: {' '.join(str(error).split())}") from error


def not_fetched(content: bytes) -> str | None:
    """What to say of a file that Git LFS has not fetched, of which there is a pointer alone; None for any other."""
    if content.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a pointer that Git LFS left in place of the file; fetch it with `git lfs pull`"
    return None


def _not_fetched_file(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            return not_fetched(file.read(100))
    except OSError:  # the cause is known already
        return None


def _column(
    path: Path,
    schema: pa.Schema,
    what: str,
    usual: Sequence[str],
    fits: Callable[[pa.DataType], bool],
    marked: Callable[[str], bool],
    must: str,
) -> tuple[str, list[str]]:
    """The first of the `usual` names that the file has, else the one column that is `marked` as such, and which others
    there are. Its type must be one that `fits`, as `must` says in words."""
    names = list(schema.names)
    others = [name for name in names if names.count(name) == 1 and marked(name)]
    found = [name for name in usual if name in names] or others
    if not found or (len(others) > 1 and found is others):
        which = f"which of {some(found)} holds the {what}s cannot be told" if found else f"has no {what} column"
        raise UserError(f"{path}: {which}; call it {' or '.join(usual)}; the columns are {some(names)}")
    if names.count(found[0]) > 1:
        raise UserError(f"{path}: has two columns {found[0]}")
    kind = schema.field(found[0]).type
    if not fits(kind):
        raise UserError(f"{path}: column {found[0]} must {must}, not {kind}")
    return found[0], [name for name in dict.fromkeys([*found, *others]) if name != found[0]]


def _holds_images(kind: pa.DataType) -> bool:
    return _is_binary(kind) or _holds_struct(kind)


def _holds_struct(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _holds_labels(kind: pa.DataType) -> bool:
    return pa.types.is_integer(_plain_type(kind)) or _is_text(_plain_type(kind))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _labels(path: Path, file: pq.ParquetFile, column: str) -> pa.ChunkedArray[Any]:
    """Of all rows, as int64 or string."""
    labels = file.read(columns=[column]).column(0)
    text = _is_text(_plain_type(labels.type))
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    labels = labels.cast(pa.string() if text else pa.int64())
    labels.validate(full=True)  # text may be anything but UTF-8
    n_without = labels.null_count + (pc.sum(pc.equal(labels, "")).as_py() or 0 if text else 0)
    if n_without:
        raise UserError(f"{path}: column {column} has {n_without:,} rows without a label")
    return labels


def _check_alike(first: _File, other: _File) -> None:
    """Files of one data set have the same columns."""
    kinds = [f"{file.image} and {file.label} ({file.labels.type})" for file in (first, other)]
    if kinds[0] != kinds[1]:
        raise UserError(
            f"{other.path}: has the columns {kinds[1]}, and {first.path.name} has {kinds[0]};\n"
            "they are of different revisions or data sets; take one away"
        )


def _check_same_names(named: _File | None, other: _File) -> None:
    """A label must mean the same class in all files."""
    if named is None or named.names is None or other.names in (None, named.names):
        return
    ours, theirs = named.names, other.names or []
    k = next((k for k, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    differ = f"{len(ours)} classes and {len(theirs)}" if k is None else f"label {k} '{ours[k]}' and '{theirs[k]}'"
    raise UserError(
        f"{named.path} and {other.path} name {differ}: labels would mean different classes;\n"
        "number them alike (datasets has align_labels_with_mapping for it), or take the files of another revision away"
    )


def _check_listed(listed: Path | None, names: Sequence[str], named: _File) -> None:
    """`classes.json` may call classes otherwise than the schema, but not number them otherwise."""
    known = named.names or []
    moved = [name for name in known if name in names and known.index(name) != names.index(name)]
    if moved or len(names) != len(known):
        differ = f"numbers '{moved[0]}' otherwise" if moved else f"names {len(names)} classes, other"
        raise UserError(f"{listed}: {differ} than {named.path.name}; mend or remove it")


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What `datasets` says of each column, by its name; empty where the file comes from elsewhere."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _class_names(features: Mapping[str, dict[str, Any]], label: str) -> list[str] | None:
    names = features.get(label, {}).get("names")
    return names if isinstance(names, list) and names and all(isinstance(name, str) for name in names) else None


def _listed_names(path: Path) -> list[str]:
    """The names in `classes.json`: a list of names, or of objects with a `name`."""
    try:
        entries = json.loads(path.read_bytes())
        if not isinstance(entries, list):
            raise TypeError("it is not a list")
        names = [entry["name"] if isinstance(entry, dict) else entry for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: cannot read the class names: {error}") from error
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: must be a list of names, or of objects with a name")
    return names


# Their images


def read_rows(shards: Sequence[Shard], index_n: IntArray) -> Iterator[Encoded]:
    """The images of ascending rows, a row group in memory at a time. A `path` stored beside the bytes is not used."""
    for shard in shards:
        rows_n = index_n[np.searchsorted(index_n, shard.first_row) :] - shard.first_row
        rows_n = rows_n[: np.searchsorted(rows_n, shard.n_rows)]
        if not len(rows_n):
            continue
        with _open(shard.path) as file:
            if file.metadata.num_rows != shard.n_rows:
                raise UserError(f"{shard.path}: has changed since it was first read; put it back and run it again")
            start = 0
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                chosen = rows_n[np.searchsorted(rows_n, start) : np.searchsorted(rows_n, stop)]
                if len(chosen):
                    yield from _row_images(shard.path, _contents(file, group, shard.column), chosen.tolist(), start)
                start = stop


def _contents(file: pq.ParquetFile, group: int, column: str) -> pa.ChunkedArray[Any]:
    if pa.types.is_struct(file.schema_arrow.field(column).type):
        found = file.read_row_group(group, columns=[f"{column}.bytes"]).column(0)
        return pc.struct_field(found, "bytes")
    return file.read_row_group(group, columns=[column]).column(0)


def _row_images(path: Path, contents: pa.ChunkedArray[Any], rows: Sequence[int], start: int) -> Iterator[Encoded]:
    """The images of these rows of the file; `contents` begins at row `start`."""
    for row in rows:
        content, where = contents[row - start].as_py(), f"{path}, row {row}"
        if content is None:
            raise UserError(f"{where}: has no image bytes (a path alone is not followed)")
        yield where, content
