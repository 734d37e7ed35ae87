"""Results folders travel: what is read from one may be damaged, or forged by a stranger. This says what may be used.

Nothing that is read is run: tables are Parquet, weights safetensors, the rest plain YAML and JSON. What is left to see
to is that numbers are possible, that text shown is only text, and that names lead nowhere else (`store.Folder` refuses
those that would).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raybasin.errors import one_line
from raybasin.store.schemas import COLUMNS, Bounds, Column

MAX_NAME = 200


def is_name(text: Any) -> bool:
    """Whether a text can stand for itself as a file in a results folder, and be printed."""
    return (
        isinstance(text, str)
        and 0 < len(text) <= MAX_NAME
        and text.isprintable()
        and not text.startswith(".")
        and not any(character in "/\\" for character in text)
    )


# Tables


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
        yield from _impossible(name, column, rows[name])
    if table == "cells" and not _all(pc.equal(pc.list_value_length(rows["member_ids"]), rows["n_members"])):
        yield "n_members is not the number of member_ids"
    if table == "predictions":
        yield from _misshapen(rows)


def _impossible(name: str, column: Column, values: pa.ChunkedArray[Any]) -> Iterator[str]:
    if column.never_null and values.null_count:
        yield f"{name} is missing in a row"
    if pa.types.is_list(column.type) and pc.list_flatten(values).null_count:
        yield f"{name} holds a null"
    if column.bounds and not _is_within(column.bounds, values):
        yield f"{name} is not a number from 0 to {column.bounds.most:g}"
    if pa.types.is_timestamp(column.type) and not _is_within(_MICROSECONDS, values.cast(pa.int64())):
        yield f"{name} is no date of the years 1970 to 2112"


_MICROSECONDS = Bounds(2**52 - 1)


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
