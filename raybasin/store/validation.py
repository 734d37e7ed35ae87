"""Results folders travel: what is read from one may be damaged, or forged by a stranger. This says what may be used.

Nothing that is read is run: tables are Parquet, weights safetensors, the rest plain YAML and JSON. What is left to see
to is that numbers are possible, that text shown is only text, and that names lead nowhere else (`store.Folder` refuses
those that would).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from raybasin.errors import UserError, one_line

MAX_NAME = 200
MAX_TREE_BYTES = 4_000_000
LARGEST = {"replicate": 2**31, "n_members": 1_000_000, "member_index": 1_000_000, "lr_ratio": 1e12, "cycle_ratio": 1e12}
"""Bounds, included, of numbers that figures and tables are laid out by; each must be finite and from 0 on."""
ABOVE_ZERO = ("lr_ratio", "cycle_ratio", "n_members")

_SHARED = ("sweep", "settings_id", "checkpoint")
_POINT = ("method", "replicate", "lr_ratio", "cycle_ratio")
NEVER_NULL: dict[str, tuple[str, ...]] = {
    "cells": ("cell_id", "member_ids", "hub_id", "n_members", "barrier_error", *_SHARED, *_POINT),
    "members": ("member_id", *_SHARED, *_POINT),
    "epochs": ("member_id", "epoch", *_SHARED, *_POINT),
    "paths": ("cell_id", "path_id", "kind", "start_id", "end_id", "split", "t", *_SHARED, *_POINT),
    "scores": ("cell_id", "predictor_id", "kind", "n_members", "split", "bn", *_SHARED, *_POINT),
    "predictions": ("eval_id", "predictor_id", "split", "bn", "example", "label", "log_probs"),
    "failures": ("unit_id", "at", *_SHARED, *_POINT),
    "checkpoints": ("checkpoint_id", "weights_sha256", "source", *_SHARED),
}
"""What every row of a table has had since the first version, and readers rely on."""


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
    for column in NEVER_NULL.get(table, ()):
        if rows[column].null_count:
            yield f"{column} is missing in a row"
    for column in rows.column_names:
        kind = rows.schema.field(column).type
        if pa.types.is_list(kind) and pc.list_flatten(rows[column]).null_count:
            yield f"{column} holds a null"
        elif column in LARGEST:
            yield from _out_of_bounds(column, rows[column])
        elif pa.types.is_timestamp(kind):
            yield from _out_of_calendar(column, rows[column])
    if table == "cells":
        sizes = pc.equal(pc.list_value_length(rows["member_ids"]), rows["n_members"])
        if not pc.all(sizes, min_count=0).as_py():
            yield "n_members is not the number of member_ids"
    if table == "predictions":
        yield from _misshapen(rows)


def _out_of_bounds(column: str, numbers: pa.ChunkedArray[Any]) -> Iterator[str]:
    numbers = numbers.drop_null()
    above = pc.greater if column in ABOVE_ZERO else pc.greater_equal
    possible = pc.and_(above(numbers, 0), pc.less_equal(numbers, LARGEST[column]))  # of NaN neither holds
    if not pc.all(possible, min_count=0).as_py():
        yield f"{column} is not a number from 0 to {LARGEST[column]:g}"


def _out_of_calendar(column: str, times: pa.ChunkedArray[Any]) -> Iterator[str]:
    microseconds = pc.min_max(times.cast(pa.int64())).as_py()
    if microseconds["min"] is not None and not (microseconds["min"] >= 0 and microseconds["max"] < 2**52):
        yield f"{column} is no date of the years 1970 to 2112"


def _misshapen(rows: pa.Table) -> Iterator[str]:
    """The predictions of one predictor must make a matrix."""
    log_probs = rows["log_probs"].combine_chunks()
    columns = {"row": pc.list_parent_indices(log_probs), "is_nan": pc.is_nan(pc.list_flatten(log_probs))}
    found = pa.table(columns).group_by("row").aggregate([("is_nan", "any"), ("is_nan", "all")])
    if not found["is_nan_any"].equals(found["is_nan_all"]):  # a network that overflows has NaN for every class
        yield "log_probs holds what is no number"
    widths = rows.select(["eval_id", "predictor_id"]).append_column("width", pc.list_value_length(rows["log_probs"]))
    counts = widths.group_by(["eval_id", "predictor_id"]).aggregate([("width", "min"), ("width", "max")])
    if not pc.all(pc.equal(counts["width_min"], counts["width_max"]), min_count=0).as_py():
        yield "log_probs differ in length"


# Trees of plain values


class _Loader(yaml.SafeLoader):
    """Plain values only, and none twice by reference: a short file cannot stand for an endless tree."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported")
        return super().compose_node(parent, index)


def tree(content: bytes, source: str, keys: Collection[str] = ()) -> dict[str, Any]:
    """The mapping that a YAML file of a results folder holds. Raises UserError where it is none, or lacks `keys`."""
    if len(content) > MAX_TREE_BYTES:
        raise UserError(f"{source}: larger than {MAX_TREE_BYTES} bytes; this is no file of a sweep")
    try:
        loader = _Loader(content)
        try:
            found = loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError, LookupError) as error:
        raise UserError(f"{source}: not valid YAML: {one_line(error, 200)}") from error
    missing = sorted(set(keys) - set(found)) if isinstance(found, dict) else sorted(keys)
    if not isinstance(found, dict) or missing:
        raise UserError(f"{source}: is not a resolved sweep file: it must hold the key {(missing or ['sweep'])[0]}")
    return {str(key): value for key, value in found.items()}


def facts(found: Any, source: str) -> dict[str, Any]:
    """The facts of a resolved sweep file, as far as readers use them: sizes of the data, class names, names of
    checkpoints and the `eval_id`. Raises UserError for what cannot be."""
    if not isinstance(found, dict):
        raise UserError(f"{source}: facts: must hold keys")
    data, checkpoints = found.get("data") or {}, found.get("checkpoints") or []
    if "eval_id" in found and not is_name(found["eval_id"]):
        raise UserError(f"{source}: facts.eval_id: is not a name")
    if not isinstance(data, dict):
        raise UserError(f"{source}: facts.data: must hold keys")
    for key, value in data.items():
        if str(key).startswith("n_") and not (type(value) is int and 0 <= value < 2**40):
            raise UserError(f"{source}: facts.data.{one_line(key)}: must be a number of images or classes")
    names = data.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{source}: facts.data.class_names: must be a list of names")
    if not isinstance(checkpoints, list) or not all(isinstance(c, dict) and "name" in c for c in checkpoints):
        raise UserError(f"{source}: facts.checkpoints: must be a list of checkpoints with their names")
    return {str(key): value for key, value in found.items()}
