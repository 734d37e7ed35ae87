"""The tables: one explicit schema each, one Parquet file per unit of work, `RESULTS/<table>/<unit>.parquet`.

Every file carries the full schema of its table, so `pandas.read_parquet("RESULTS/cells")` works whatever is in the
files. Files are create-only (see `store`). The row in `members` commits a member and the row in `cells` commits a
cell; each is written after everything it speaks of.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from raybasin.errors import StoreError, UserError
from raybasin.store import validation
from raybasin.store.folders import Folder

SCHEMA_VERSION = 1
FILES_AT_ONCE = 256
"""So many files of an object store are held in memory while a table is read."""

_TEXT, _INT, _REAL, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_TIME = pa.timestamp("us", tz="UTC")
_IDS = pa.list_(pa.string())

COMMON: dict[str, pa.DataType] = {
    "sweep": _TEXT, "settings_id": _TEXT, "checkpoint": _TEXT, "method": _TEXT, "replicate": _INT,
    "lr_ratio": _REAL, "cycle_ratio": _REAL,
}  # fmt: skip

_COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "cells": {
        "cell_id": _TEXT, "member_ids": _IDS, "hub_id": _TEXT, "n_members": _INT, "max_lr": _REAL,
        "cycle_epochs": _REAL, "barrier_nll": _REAL, "barrier_error": _REAL, "barrier_error_se": _REAL,
        "barrier_nll_mean": _REAL, "barrier_error_mean": _REAL, "member_barrier_nll": _REAL,
        "member_barrier_error": _REAL, "rise_error": _REAL, "in_basin": _BOOL, "hub_accuracy": _REAL,
        "hub_accuracy_reestimated": _REAL,
        "member_accuracy": _REAL, "ensemble_accuracy": _REAL, "ensemble_nll": _REAL, "soup_accuracy": _REAL,
        "soup_nll": _REAL, "greedy_soup_accuracy": _REAL, "greedy_soup_members": _IDS, "soup_sha256": _TEXT,
        "greedy_soup_sha256": _TEXT, "reference_ids": _IDS, "kept_predictions": _IDS,
        "val_ensemble_accuracy": _REAL, "val_ensemble_nll": _REAL, "val_soup_accuracy": _REAL,
        "val_soup_nll": _REAL, "disagreement": _REAL, "normalised_disagreement": _REAL, "l2_from_hub": _REAL,
        "variant": _TEXT, "exit_step": _INT, "exit_epochs": _REAL, "checkpoint_exit_step": _INT,
        "checkpoint_exit_epochs": _REAL, "checkpoint_barrier_error": _REAL,
        "train_epochs": _REAL, "train_seconds": _REAL, "wall_seconds": _REAL, "close_seconds": _REAL,
        "device": _TEXT, "versions": _TEXT, "finished_at": _TIME,
    },
    "members": {
        "member_id": _TEXT, "kind": _TEXT, "member_index": _INT, "parent_id": _TEXT, "parent_sha256": _TEXT,
        "weights_sha256": _TEXT, "moments_sha256": _TEXT, "seed": _INT, "max_lr": _REAL, "cycle_epochs": _REAL,
        "cycle_steps": _INT,
        "final_train_loss": _REAL, "train_seconds": _REAL, "images_per_second": _REAL, "job_seconds": _REAL,
        "device": _TEXT, "versions": _TEXT, "finished_at": _TIME,
    },
    "epochs": {"member_id": _TEXT, "epoch": _INT, "lr": _REAL, "train_loss": _REAL, "train_error": _REAL},
    "paths": {
        "cell_id": _TEXT, "path_id": _TEXT, "kind": _TEXT, "start_id": _TEXT, "end_id": _TEXT, "split": _TEXT,
        "t": _REAL, "nll": _REAL, "error": _REAL, "error_excess": _REAL, "error_excess_se": _REAL,
        "l2_distance": _REAL, "images": _INT, "bn_images": _INT, "job_seconds": _REAL,
    },
    "scores": {
        "cell_id": _TEXT, "predictor_id": _TEXT, "kind": _TEXT, "n_members": _INT, "split": _TEXT, "bn": _TEXT,
        "accuracy": _REAL, "mean_class_accuracy": _REAL, "nll": _REAL, "calibrated_nll": _REAL,
        "temperature": _REAL, "ece": _REAL, "brier": _REAL, "disagreement": _REAL,
        "normalised_disagreement": _REAL, "pairwise_kl": _REAL, "mutual_information": _REAL,
        "ambiguity": _REAL, "deep_ensemble_equivalent": _REAL,
    },
    "predictions": {
        "eval_id": _TEXT, "predictor_id": _TEXT, "kind": _TEXT, "n_members": _INT, "split": _TEXT, "bn": _TEXT,
        "example": _INT,
        "label": _INT, "log_probs": pa.list_(pa.float32()),
    },
    "traces": {
        "cell_id": _TEXT, "trace_id": _TEXT, "hub_id": _TEXT, "member_id": _TEXT, "origin": _TEXT, "step": _INT,
        "steps_from_hub": _INT, "epochs_from_hub": _REAL, "split": _TEXT, "t": _REAL, "nll": _REAL, "error": _REAL,
        "error_excess": _REAL, "error_excess_se": _REAL, "l2_distance": _REAL, "exact": _BOOL, "images": _INT,
        "bn_images": _INT, "job_seconds": _REAL,
    },
    "planes": {
        "plane_id": _TEXT, "cell_id": _TEXT, "member_ids": _IDS, "member_index": _INT, "row": _INT, "column": _INT,
        "x": _REAL, "y": _REAL, "split": _TEXT, "nll": _REAL, "error": _REAL, "images": _INT, "bn_images": _INT,
        "job_seconds": _REAL,
    },
    "failures": {"unit_id": _TEXT, "tries": _INT, "reason": _TEXT, "traceback": _TEXT, "at": _TIME},
    "checkpoints": {
        "checkpoint_id": _TEXT, "weights_sha256": _TEXT, "source": _TEXT, "model": _TEXT, "n_classes": _INT,
        "seed": _INT, "val_accuracy": _REAL, "train_epochs": _REAL, "train_seconds": _REAL, "job_seconds": _REAL,
        "device": _TEXT, "versions": _TEXT, "finished_at": _TIME,
    },
}  # fmt: skip

KEYS: dict[str, tuple[str, ...]] = {
    "cells": ("cell_id",),
    "members": ("member_id",),
    "epochs": ("member_id", "epoch"),
    "paths": ("cell_id", "path_id", "split", "t"),
    "scores": ("cell_id", "predictor_id", "split", "bn"),
    "predictions": ("eval_id", "predictor_id", "split", "bn", "example"),
    "traces": ("cell_id", "member_id", "origin", "step", "split", "t"),
    "planes": ("plane_id", "x", "y"),
    "failures": ("unit_id", "at"),
    "checkpoints": ("checkpoint_id",),
}
"""What is unique in each table. A predictor is scored anew under other evaluation settings: hence `eval_id`."""

VOLATILE = frozenset({
    "train_seconds", "images_per_second", "job_seconds", "close_seconds", "wall_seconds", "finished_at", "at",
})  # fmt: skip
"""Columns that tell when and how fast. All others are the same in two runs of one sweep on CPUs of one kind, with the
same versions and as many threads per worker, whatever was interrupted; `device` and `versions` say what it ran on."""

UNITS: dict[str, tuple[str, ...]] = {
    "cells": ("cell_id",),
    "members": ("member_id",),
    "epochs": ("member_id",),
    "paths": ("cell_id", "path_id"),
    "scores": ("cell_id",),
    "predictions": ("predictor_id",),
    "traces": ("cell_id",),
    "failures": ("unit_id",),
    "checkpoints": ("checkpoint_id",),
}
"""The columns whose values, joined by `-`, are the name of a file, or its beginning up to a further `-`."""

SCHEMAS: dict[str, pa.Schema] = {
    table: pa.schema(
        list({**columns, **COMMON}.items()), metadata={"table": table, "schema_version": str(SCHEMA_VERSION)}
    )
    for table, columns in _COLUMNS.items()
}

_FORMAT = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)

Row = Mapping[str, Any]


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
    """The units of `table` that are there, sorted."""
    return [name.removesuffix(".parquet") for name in folder.names(table) if name.endswith(".parquet")]


def read(
    folder: Folder,
    table: str,
    only: Iterable[str] | None = None,
    where: pc.Expression | None = None,
    columns: list[str] | None = None,
) -> pa.Table:
    """The rows of `table` (of the units `only`, and for which `where` holds), with today's schema (or these `columns`
    of it): a column that older files lack is null.

    Raises UserError for a file that is not a readable Parquet file of this table. What the rows hold is not looked at:
    see `sound`.
    """
    keys = [f"{table}/{unit}.parquet" for unit in (units(folder, table) if only is None else only)]
    if not keys:
        return SCHEMAS[table].empty_table()
    try:
        return _read(folder, table, keys, where, columns)
    except StoreError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        broken = next((key for key in keys if not _readable(folder, table, key)), None)
        if broken is None:
            raise
        raise UserError(
            f"{folder.name(broken)}: is not a readable file of table {table}; "
            f"`raybasin check {folder.root} --repair` moves it aside"
        ) from error


def _read(
    folder: Folder, table: str, keys: Sequence[str], where: pc.Expression | None, columns: list[str] | None
) -> pa.Table:
    """The rows of the files `keys`: of a disk Arrow reads what it needs, of an object store each whole file at once."""
    schema, parquet = SCHEMAS[table], _FORMAT
    if isinstance(folder.root, Path):
        files = [folder.name(key) for key in keys]
        if not all(map(os.path.isfile, files)):  # Arrow would wait for a pipe, and read a folder of files
            raise FileNotFoundError("no such file")
        return ds.dataset(files, schema=schema, format=parquet).to_table(columns, where)
    parts = []
    for start in range(0, len(keys), FILES_AT_ONCE):
        contents = folder.get_all(keys[start : start + FILES_AT_ONCE])
        fragments = [parquet.make_fragment(pa.BufferReader(content)) for content in contents]
        parts.append(ds.FileSystemDataset(fragments, schema, parquet).to_table(columns, where))
    return pa.concat_tables(parts)


def sound(folder: Folder, table: str, only: Iterable[str] | None = None) -> pa.Table:
    """What `read` gives, once it is certain that readers can rely on it: no key is null, numbers by which things are
    laid out are possible, text is text. Raises UserError that names the first file of which this is not so.
    """
    names = units(folder, table) if only is None else list(only)
    found = read(folder, table, names)
    if validation.problem(table, found) is None:
        return found
    for name in names:
        wrong = validation.problem(table, read(folder, table, [name]))
        if wrong is not None:
            raise UserError(
                f"{folder.name(f'{table}/{name}.parquet')}: {wrong}; "
                f"`raybasin check {folder.root} --repair` moves it aside"
            )
    return found


def stored_schema(folder: Folder, table: str, unit: str) -> pa.Schema:
    """The schema that a file itself has. Raises UserError for one that cannot be read."""
    key = f"{table}/{unit}.parquet"
    try:
        return pq.read_schema(pa.BufferReader(folder.get(key)))
    except StoreError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{folder.name(key)}: is not a readable Parquet file") from error


def rows(folder: Folder, table: str, only: Iterable[str] | None = None) -> list[dict[str, Any]]:
    return read(folder, table, only).to_pylist()


def row(folder: Folder, table: str, unit: str) -> dict[str, Any]:
    """The one row of `unit`. Raises UserError where its file holds none."""
    found = rows(folder, table, [unit])
    if not found:
        raise UserError(
            f"{folder.root}/{table}/{unit}.parquet: holds no rows; "
            f"`raybasin check {folder.root} --repair` moves it aside"
        )
    return found[0]


def exists(folder: Folder, table: str, unit: str) -> bool:
    return folder.exists(f"{table}/{unit}.parquet")


# Predictions: large, so they go from array to Arrow without passing through Python numbers


@dataclass(frozen=True)
class Block:
    """The predictions of one predictor on one split: float32 log-probabilities [N, C] and labels [N]."""

    split: str
    bn: str
    log_probs_NC: np.ndarray
    labels_N: np.ndarray


def prediction_unit(predictor_id: str, eval_id: str) -> str:
    """The file of `predictions` that holds one predictor under one evaluation setting."""
    return f"{predictor_id}-{eval_id}"


def write_predictions(
    folder: Folder, predictor_id: str, eval_id: str, blocks: Sequence[Block], known: Row, name: str | None = None
) -> bool:
    """Writes the blocks of one predictor as one file; `known` holds the columns that are equal in all its rows, `name`
    is what the file is called after the predictor (its `eval_id`).

    Each block is a row group, so that a reader of one split leaves the others alone.
    """
    known = {"predictor_id": predictor_id, "eval_id": eval_id, **known}
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, SCHEMAS["predictions"], compression="zstd") as writer:
        for block in blocks:
            writer.write_table(_block_table(block, known))
    return folder.put_new(f"predictions/{prediction_unit(predictor_id, name or eval_id)}.parquet", buffer.getvalue())


def _block_table(block: Block, known: Row) -> pa.Table:
    schema = SCHEMAS["predictions"]
    n, n_classes = block.log_probs_NC.shape
    values = pa.array(np.ascontiguousarray(block.log_probs_NC, dtype=np.float32).ravel())
    offsets = pa.array(np.arange(0, (n + 1) * n_classes, n_classes, dtype=np.int32))
    own = {"split": block.split, "bn": block.bn}
    arrays = {
        "example": pa.array(np.arange(n)),
        "label": pa.array(np.asarray(block.labels_N, dtype=np.int64)),
        "log_probs": pa.ListArray.from_arrays(offsets, values),
    }
    columns = [
        arrays[field.name] if field.name in arrays
        else pa.repeat(pa.scalar({**known, **own}.get(field.name), field.type), n)
        for field in schema
    ]  # fmt: skip
    return pa.Table.from_arrays(columns, schema=schema)


def prediction_rows(folder: Folder, predictor_id: str, eval_id: str, split: str | None = None) -> pa.Table:
    """The rows of one predictor (on one split), in a folder as written or a compacted copy. Raises UserError where
    there are none."""
    unit = prediction_unit(predictor_id, eval_id)
    only = [name for name in (unit, f"{unit}-val", f"{unit}-test") if exists(folder, "predictions", name)]
    only = only or [name for name in units(folder, "predictions") if is_part(name)]
    mine = (pc.field("predictor_id") == predictor_id) & (pc.field("eval_id") == eval_id)
    rows = read(folder, "predictions", only, mine if split is None else mine & (pc.field("split") == split))
    wrong = validation.problem("predictions", rows)
    if wrong is not None:
        raise UserError(f"{folder.root}/predictions/{unit}.parquet: {wrong}")
    if not len(rows):
        raise UserError(
            f"{folder.root}: no predictions of {predictor_id} (predictions/{unit}.parquet); "
            f"`raybasin check {folder.root}` says what else is missing"
        )
    return rows


def part_unit(first_row: int) -> str:
    """The name of a file of a compacted copy, which holds many units."""
    return f"part-{first_row:012d}"


def is_part(unit: str) -> bool:
    return unit.startswith("part-")


def is_compacted(folder: Folder) -> bool:
    """Whether the folder is a compacted copy: to be read, but neither continued nor checked unit by unit."""
    return any(is_part(unit) for table in SCHEMAS for unit in units(folder, table)[:1])


def predicted(folder: Folder) -> set[tuple[str, str]]:
    """Which predictions there are, as (predictor_id, name of their file). In a compacted copy, whose files have other
    names, the name is `<eval_id>-<split>`, and for sets that have an `eval_id` of their own that id."""
    names = units(folder, "predictions")
    found = {(predictor_id, name) for predictor_id, _, name in (unit.partition("-") for unit in names)}
    parts = [name for name in names if is_part(name)]
    if not parts:
        return found
    columns = ["predictor_id", "eval_id", "split"]
    for row in read(folder, "predictions", parts, columns=columns).group_by(columns).aggregate([]).to_pylist():
        own = row["split"] in ("val", "test")
        found.add((row["predictor_id"], f"{row['eval_id']}-{row['split']}" if own else row["eval_id"]))
    return found


def read_predictions(
    folder: Folder, predictor_id: str, eval_id: str, split: str | None = None
) -> dict[tuple[str, str], Block]:
    """The blocks of one predictor by (split, bn), examples ascending. Raises UserError where there are none."""
    table = prediction_rows(folder, predictor_id, eval_id, split).sort_by("example")
    blocks = {}
    for split, bn in sorted(set(zip(table["split"].to_pylist(), table["bn"].to_pylist(), strict=True))):
        part = table.filter((pc.field("split") == split) & (pc.field("bn") == bn))
        values = part["log_probs"].combine_chunks()
        flat = values.flatten().to_numpy(zero_copy_only=False)
        blocks[split, bn] = Block(split, bn, flat.reshape(len(part), -1), part["label"].to_numpy())
    return blocks


def _readable(folder: Folder, table: str, key: str) -> bool:
    try:
        _read(folder, table, [key], None, None)
    except StoreError:
        raise
    except (pa.ArrowException, OSError, ValueError):
        return False
    return True
