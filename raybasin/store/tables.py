"""The tables: one explicit schema each, one Parquet file per unit of work, `RESULTS/<table>/<unit>.parquet`.

Every file carries the full schema of its table, so `pandas.read_parquet("RESULTS/cells")` works whatever is in the
files. Folders travel: what is read may be damaged, or forged by a stranger, and `problem` says what may be used.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from raybasin.errors import StoreError, UserError, one_line
from raybasin.store.folders import Folder
from raybasin.store.schemas import COLUMNS, EVENTS, SCHEMAS, Bounds

FILES_AT_ONCE = 256
"""So many files of an object store are held in memory while a table is read."""

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
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def units(folder: Folder, table: str) -> list[str]:
    """The units of `table` that are there, sorted: the names of its files."""
    return [name.removesuffix(".parquet") for name in folder.names(table) if name.endswith(".parquet")]


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
    """The rows of these files: of a disk Arrow reads what it needs, of an object store each whole file at once."""
    schema, keys = SCHEMAS[table], [f"{table}/{name}.parquet" for name in names]
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


def sound(folder: Folder, table: str, only: Iterable[str] | None = None) -> pa.Table:
    """What `read` gives, once it is certain that readers can rely on it: no key is null, numbers by which things are
    laid out are possible, text is text. Raises Damaged (a UserError) that names the first file of which this is not so.
    """
    names = units(folder, table) if only is None else list(only)
    found = read(folder, table, names)
    if problem(table, found) is not None:
        for name in names:
            wrong = problem(table, read(folder, table, [name]))
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
    for name, column in COLUMNS[table].items():
        values = rows[name]
        if column.never_null and values.null_count:
            yield f"{name} is missing in a row"
        if pa.types.is_list(column.type) and pc.list_flatten(values).null_count:
            yield f"{name} holds a null"
        if column.bounds and not _is_within(column.bounds, values):
            yield f"{name} is not a number from 0 to {column.bounds.most:g}"
        if pa.types.is_timestamp(column.type) and not _is_within(_MICROSECONDS, values.cast(pa.int64())):
            yield f"{name} is no date of the years 1970 to 2112"
    if table == "cells" and not _all(pc.equal(pc.list_value_length(rows["member_ids"]), rows["n_members"])):
        yield "n_members is not the number of member_ids"
    if table == "points" and not _all(pc.match_substring_regex(rows["event"], f"^({EVENTS})$")):
        yield f"event is not {EVENTS}"
    if table == "predictions":
        yield from _misshapen(rows)


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


# Compacted copies


def part_unit(first_row: int) -> str:
    """The name of a file of a compacted copy, which holds many units."""
    return f"part-{first_row:012d}"


def is_part(unit: str) -> bool:
    return unit.startswith("part-")


def is_compacted(folder: Folder) -> bool:
    """Whether the folder is a compacted copy: to be read, but neither continued nor checked unit by unit."""
    return any(is_part(unit) for table in SCHEMAS for unit in units(folder, table)[:1])
