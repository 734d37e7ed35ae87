"""The tables: one explicit schema each, one Parquet file per unit of work, `RESULTS/<table>/<unit>.parquet`.

Every file carries the full schema of its table, so `pandas.read_parquet("RESULTS/cells")` works whatever is in the
files. Folders travel: what is read may be damaged, or forged by a stranger, and `problem` says what may be used.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from raybasin.errors import StoreError, UserError, one_line
from raybasin.store.folders import Folder
from raybasin.store.schemas import COLUMNS, EVENTS, KEYS, SCHEMAS, Bounds

if TYPE_CHECKING:
    from typing_extensions import Buffer

FILES_AT_ONCE = 256
"""So many files are held in memory while a table is read."""
FEW_ROWS = 1_000
"""So many rows make a small file, in which what reading costs is a matter of pages, not of bytes."""

_FORMAT = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)
_MICROSECONDS = Bounds(2**52 - 1)

Row = Mapping[str, Any]


class Damaged(UserError):
    """A file of a table that is not as a sweep writes it; `what` says in which way."""

    what = ""


def now() -> datetime:
    return datetime.now(UTC)


def write(folder: Folder, table: str, unit: str, rows: Sequence[Row]) -> bool:
    """Writes the rows of `unit` unless it is there; says whether this call wrote them.

    Raises ValueError for a row that has a column the schema does not know (one that it lacks is null).
    """
    return folder.put_new(f"{table}/{unit}.parquet", encode(table, rows))


def encode(table: str, rows: Sequence[Row]) -> bytes:
    """`rows` as the bytes of a Parquet file with the schema of `table`."""
    schema = SCHEMAS[table]
    unknown = {column for row in rows for column in row} - set(schema.names)
    if unknown:
        raise ValueError(f"table {table} has no column {', '.join(sorted(unknown))}")
    return encode_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema))


def encode_table(table: pa.Table) -> bytes:
    """`table` as the bytes of a Parquet file. A small file, of which a folder has many, has one page for each column
    and a quick codec: it is read in a third of the time, and is no larger."""
    buffer, small = io.BytesIO(), len(table) <= FEW_ROWS
    how: dict[str, Any] = (
        {"compression": "lz4", "use_dictionary": False, "write_statistics": False} if small else {"compression": "zstd"}
    )
    pq.write_table(table, buffer, write_page_checksum=True, **how)
    return buffer.getvalue()


def units(folder: Folder, table: str) -> list[str]:
    """The units of `table` that are there, sorted: the names of its files."""
    return [name.removesuffix(".parquet") for name in folder.names(table) if name.endswith(".parquet")]


def ids(folder: Folder, table: str) -> frozenset[str]:
    """The ids of what is there of a table whose key is one: the names of its files, in a compacted copy a column."""
    there = units(folder, table)
    if not any(map(is_part, there)):
        return frozenset(there)
    (key,) = KEYS[table]
    return frozenset(read(folder, table, there, columns=[key])[key].to_pylist())


def unit_pairs(folder: Folder, table: str) -> set[tuple[str, str]]:
    """The same where a name begins with an id: that, and what follows it."""
    return {(first, rest) for first, _, rest in (unit.partition("-") for unit in units(folder, table))}


def exists(folder: Folder, table: str, unit: str) -> bool:
    return folder.exists(f"{table}/{unit}.parquet")


def read(
    folder: Folder,
    table: str,
    only: Iterable[str] | None = None,
    where: pc.Expression | None = None,
    columns: list[str] | None = None,
) -> pa.Table:
    """The rows of `table` (of the units `only`, and for which `where` holds), with today's schema (or these `columns`
    of it): a column that older files lack is null.

    Raises Damaged (a UserError) for a file that is not a readable Parquet file of this table. What the rows hold is not
    looked at: see `sound`.
    """
    wanted = units(folder, table) if only is None else list(only)
    if not wanted:
        return SCHEMAS[table].empty_table()
    try:
        return _read(folder, table, wanted, where, columns)
    except StoreError:
        raise
    except (pa.ArrowException, OSError, ValueError):
        for unit in wanted:
            with _unreadable(folder, table, unit, f"a readable file of table {table}"):
                _read(folder, table, [unit], None, None)
        raise


@contextlib.contextmanager
def _unreadable(folder: Folder, table: str, unit: str, wanted: str) -> Iterator[None]:
    """Raises Damaged for a file that cannot be read; an object store that does not answer says nothing of it."""
    try:
        yield
    except StoreError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(folder, table, unit, f"is not {wanted}") from error


def _damaged(folder: Folder, table: str, unit: str, what: str) -> Damaged:
    file = folder.name(f"{table}/{unit}.parquet")
    error = Damaged(f"{file}: {what}; `raybasin check {folder.root} --repair` moves it aside")
    error.what = what  # not by the constructor: exceptions travel between processes by their text and attributes
    return error


def _read(
    folder: Folder, table: str, names: Sequence[str], where: pc.Expression | None, columns: list[str] | None
) -> pa.Table:
    """The rows of these files. Small ones are read one after another, each at once; of large ones, and where rows are
    chosen, Arrow reads what it needs."""
    keys = [f"{table}/{name}.parquet" for name in names]
    if where is None and not any(map(is_part, names)):
        batches = [keys[start : start + FILES_AT_ONCE] for start in range(0, len(keys), FILES_AT_ONCE)]
        # In one thread: most of a small file's time is Python's, and threads wait for each other.
        in_order = None if columns is None else [name for name in SCHEMAS[table].names if name in columns]
        found = pa.concat_tables(_read_small(folder, table, in_order, batch) for batch in batches)
        return found if columns is None else found.select(columns)
    schema = SCHEMAS[table]
    if isinstance(folder.root, Path):
        files = [folder.name(key) for key in keys]
        if not all(map(os.path.isfile, files)):  # Arrow would wait for a pipe, and read a folder of files
            raise FileNotFoundError("no such file")
        return ds.dataset(files, schema=schema, format=_FORMAT).to_table(columns, where)
    parts = []
    for start in range(0, len(keys), FILES_AT_ONCE):
        contents = folder.get_all(keys[start : start + FILES_AT_ONCE])
        fragments = [_FORMAT.make_fragment(pa.BufferReader(content)) for content in contents]
        parts.append(ds.FileSystemDataset(fragments, schema, _FORMAT).to_table(columns, where))
    return pa.concat_tables(parts)


def _read_small(folder: Folder, table: str, columns: list[str] | None, keys: Sequence[str]) -> pa.Table:
    """Whole small files as one table, of which each column lies in one piece; `columns` as files have them in order."""
    wanted = _schema(table, columns)
    found = [stored(content, columns) for content in folder.get_all(keys)]
    # Nearly all have today's schema, and what a file says beside it is dropped of all at once.
    fitting = [rows if rows.schema.equals(wanted) else with_schema(table, rows, columns) for rows in found]
    return pa.Table.from_arrays(pa.concat_tables(fitting).combine_chunks().columns, schema=wanted)


def each(folder: Folder, table: str, units: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of one unit after another. Raises as `read` does."""
    for start in range(0, len(units), FILES_AT_ONCE):
        share = units[start : start + FILES_AT_ONCE]
        contents = folder.get_all([f"{table}/{unit}.parquet" for unit in share])
        for unit, content in zip(share, contents, strict=True):
            with _unreadable(folder, table, unit, f"a readable file of table {table}"):
                rows = with_schema(table, stored(content))
            yield rows


def stored(content: Buffer, columns: list[str] | None = None) -> pa.Table:
    """The rows of a Parquet file with the schema that it has itself; of `columns` those that it has. Raises OSError and
    pa.ArrowException for one that cannot be read."""
    with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
        return file.read(columns, use_threads=False)


def with_schema(table: str, rows: pa.Table, columns: list[str] | None = None) -> pa.Table:
    """`rows` as today's schema has them: a column that they lack is null. Raises pa.ArrowException where a column is of
    another kind."""
    wanted = _schema(table, columns)
    if rows.schema.equals(wanted):
        return pa.Table.from_arrays(rows.columns, schema=wanted)
    names = rows.schema.names
    if len(set(names)) < len(names):
        raise pa.ArrowInvalid("a column is there twice")
    filled = [
        rows[field.name].cast(field.type) if field.name in names else pa.nulls(len(rows), field.type)
        for field in wanted
    ]
    return pa.table(filled, schema=wanted)


def _schema(table: str, columns: list[str] | None) -> pa.Schema:
    """Today's, of these columns."""
    schema = SCHEMAS[table]
    return schema if columns is None else pa.schema([schema.field(name) for name in columns], schema.metadata)


def sound(folder: Folder, table: str, only: Iterable[str] | None = None, columns: list[str] | None = None) -> pa.Table:
    """What `read` gives, once it is certain that readers can rely on it: no key is null, numbers by which things are
    laid out are possible, text is text. Raises Damaged (a UserError) that names the first file of which this is not so.
    """
    names = units(folder, table) if only is None else list(only)
    found = read(folder, table, names, columns=columns)
    if problem(table, found) is not None:
        for name in names:
            wrong = problem(table, read(folder, table, [name], columns=columns))
            if wrong is not None:
                raise _damaged(folder, table, name, wrong)
    return found


def stored_schema(folder: Folder, table: str, unit: str) -> pa.Schema:
    """The schema that a file itself has. Raises Damaged for one that cannot be read."""
    with _unreadable(folder, table, unit, "a readable Parquet file"):
        return pq.read_schema(pa.BufferReader(folder.get(f"{table}/{unit}.parquet")))


def rows(folder: Folder, table: str, only: Iterable[str] | None = None) -> list[dict[str, Any]]:
    return read(folder, table, only).to_pylist()


def row(folder: Folder, table: str, unit: str) -> dict[str, Any]:
    """The one row of `unit`. Raises Damaged where its file holds none."""
    found = rows(folder, table, [unit])
    if not found:
        raise _damaged(folder, table, unit, "holds no rows")
    return found[0]


# What may be used of what is read


def problem(table: str, rows: pa.Table) -> str | None:
    """What in `rows`, read with the schema of `table`, cannot be; None where all can."""
    return next(_problems(table, rows), None)


def _problems(table: str, rows: pa.Table) -> Iterator[str]:
    try:
        rows.validate(full=True)
    except pa.ArrowException as error:
        yield one_line(error, 200)
        return
    there = set(rows.column_names)
    for name, column in COLUMNS[table].items():
        if name not in there:  # it was not asked for
            continue
        values = rows[name]
        if column.never_null and values.null_count:
            yield f"{name} is missing in a row"
        if pa.types.is_list(column.type) and pc.list_flatten(values).null_count:
            yield f"{name} holds a null"
        if column.bounds and not _is_within(column.bounds, values):
            yield f"{name} is not a number from 0 to {column.bounds.most:g}"
        if pa.types.is_timestamp(column.type) and not _is_within(_MICROSECONDS, values.cast(pa.int64())):
            yield f"{name} is no date of the years 1970 to 2112"
    if table in _OF_TABLE:
        needed, look_at = _OF_TABLE[table]
        yield from look_at(rows) if there.issuperset(needed) else ()


def _miscounted(cells: pa.Table) -> Iterator[str]:
    if not _all(pc.equal(pc.list_value_length(cells["member_ids"]), cells["n_members"])):
        yield "n_members is not the number of member_ids"


def _unknown_event(points: pa.Table) -> Iterator[str]:
    if not _all(pc.match_substring_regex(points["event"], f"^({EVENTS})$")):
        yield f"event is not {EVENTS}"


def _is_within(bounds: Bounds, values: pa.ChunkedArray[Any]) -> bool:
    """Of NaN no comparison holds; what is null does not count."""
    above = pc.greater if bounds.above_zero else pc.greater_equal
    return _all(pc.and_(above(values, 0), pc.less_equal(values, bounds.most)))


def _all(holds: pa.ChunkedArray[Any]) -> bool:
    return bool(pc.all(holds, min_count=0).as_py())


def _misshapen(rows: pa.Table) -> Iterator[str]:
    """The predictions of one predictor must make a matrix."""
    log_probs = rows["log_probs"].combine_chunks()
    columns = {"row": pc.list_parent_indices(log_probs), "is_nan": pc.is_nan(pc.list_flatten(log_probs))}
    found = pa.table(columns).group_by("row").aggregate([("is_nan", "any"), ("is_nan", "all")])
    if not found["is_nan_any"].equals(found["is_nan_all"]):  # a network that overflows has NaN for every class
        yield "log_probs holds what is no number"
    widths = rows.select(["eval_id", "predictor_id"]).append_column("width", pc.list_value_length(rows["log_probs"]))
    counts = widths.group_by(["eval_id", "predictor_id"]).aggregate([("width", "min"), ("width", "max")])
    if not _all(pc.equal(counts["width_min"], counts["width_max"])):
        yield "log_probs differ in length"


_OF_TABLE: dict[str, tuple[tuple[str, ...], Callable[[pa.Table], Iterator[str]]]] = {
    "cells": (("member_ids", "n_members"), _miscounted),
    "points": (("event",), _unknown_event),
    "predictions": (("eval_id", "predictor_id", "log_probs"), _misshapen),
}
"""What is looked at of one table alone, where these columns were read."""


# Compacted copies

GROUP_ROWS = 50_000
"""So many rows of a large file lie together: who looks for one predictor reads no others."""


class Part:
    """A large file of a compacted copy, made from the rows of one unit after another: of these no more are held at once
    than lie together. Its `content` is there when its block has ended."""

    def __init__(self, table: str) -> None:
        self.rows, self.content = 0, b""
        self._buffer, self._group, self._group_rows = io.BytesIO(), list[pa.Table](), 0
        self._writer = pq.ParquetWriter(self._buffer, SCHEMAS[table], compression="zstd", write_page_checksum=True)

    def add(self, rows: pa.Table) -> None:
        self.rows += len(rows)
        self._group.append(rows)
        self._group_rows += len(rows)
        if self._group_rows >= GROUP_ROWS:
            self._write()

    def _write(self) -> None:
        if self._group:
            self._writer.write_table(pa.concat_tables(self._group))
        self._group.clear()
        self._group_rows = 0

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *failed: object) -> None:
        self._write()
        self._writer.close()
        self.content = self._buffer.getvalue()


def part_unit(first_row: int) -> str:
    """The name of a file of a compacted copy, which holds many units."""
    return f"part-{first_row:012d}"


def is_part(unit: str) -> bool:
    return unit.startswith("part-")


def is_compacted(folder: Folder) -> bool:
    """Whether the folder is a compacted copy: to be read, but neither continued nor checked unit by unit."""
    return any(exists(folder, table, part_unit(0)) for table in SCHEMAS)
