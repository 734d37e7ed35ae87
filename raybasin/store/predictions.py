"""Predictions of a results folder: large, so they go from array to Arrow without passing through Python numbers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raybasin.errors import UserError
from raybasin.metrics.cell_scores import Predictions, Split
from raybasin.store import tables
from raybasin.store.folders import Folder
from raybasin.store.schemas import SCHEMAS
from raybasin.store.tables import Row
from raybasin.sweep.settings import OWN_SPLITS


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
    schema, buffer = SCHEMAS["predictions"], io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd", write_page_checksum=True) as writer:
        for block in blocks:
            n, n_classes = block.log_probs_NC.shape
            values = pa.array(np.ascontiguousarray(block.log_probs_NC, dtype=np.float32).ravel())
            offsets = pa.array(np.arange(0, (n + 1) * n_classes, n_classes, dtype=np.int32))
            equal = {**known, "predictor_id": predictor_id, "eval_id": eval_id, "split": block.split, "bn": block.bn}
            columns = {
                "example": pa.array(np.arange(n)),
                "label": pa.array(np.asarray(block.labels_N, dtype=np.int64)),
                "log_probs": pa.ListArray.from_arrays(offsets, values),
            }
            columns |= {
                field.name: pa.repeat(pa.scalar(equal.get(field.name), field.type), n)
                for field in schema
                if field.name not in columns
            }
            writer.write_table(pa.table(columns, schema=schema))
    return folder.put_new(f"predictions/{prediction_unit(predictor_id, name or eval_id)}.parquet", buffer.getvalue())


def prediction_rows(folder: Folder, predictor_id: str, eval_id: str, split: str | None = None) -> pa.Table:
    """The rows of one predictor (on one split), in a folder as written or a compacted copy. Raises UserError where
    there are none."""
    unit = prediction_unit(predictor_id, eval_id)
    only = [name for name in (unit, f"{unit}-val", f"{unit}-test") if tables.exists(folder, "predictions", name)]
    only = only or [name for name in tables.units(folder, "predictions") if tables.is_part(name)]
    mine = (pc.field("predictor_id") == predictor_id) & (pc.field("eval_id") == eval_id)
    rows = tables.read(folder, "predictions", only, mine if split is None else mine & (pc.field("split") == split))
    wrong = tables.problem("predictions", rows)
    if wrong is not None:
        raise UserError(f"{folder.root}/predictions/{unit}.parquet: {wrong}")
    if not len(rows):
        raise UserError(
            f"{folder.root}: no predictions of {predictor_id} (predictions/{unit}.parquet); "
            f"`raybasin check {folder.root}` says what else is missing"
        )
    return rows


def predicted(folder: Folder) -> set[tuple[str, str]]:
    """Which predictions there are, as (predictor_id, name of their file). In a compacted copy, whose files have other
    names, the name is `<eval_id>-<split>`, and for sets that have an `eval_id` of their own that id."""
    found = tables.unit_pairs(folder, "predictions")
    parts = [f"{first}-{rest}" for first, rest in found if first == "part"]
    if not parts:
        return found
    columns = ["predictor_id", "eval_id", "split"]
    for row in tables.read(folder, "predictions", parts, columns=columns).group_by(columns).aggregate([]).to_pylist():
        own = row["split"] in OWN_SPLITS
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


def stored_predictions(folder: Folder, eval_ids: Mapping[str, str], batch_norm: bool) -> Predictions:
    """The predictions of a results folder; `eval_ids` are those of its splits, `val` first."""

    def read(split: str, predictor_ids: Sequence[str]) -> Split:
        labels_N, log_probs = np.empty(0), {}
        for predictor_id in predictor_ids:
            # A shift set has its eval_id to itself; other settings may have called it otherwise.
            within = split if split in OWN_SPLITS else None
            for (_, bn), block in read_predictions(folder, predictor_id, eval_ids[split], within).items():
                log_probs[predictor_id, bn], labels_N = block.log_probs_NC, block.labels_N
        return Split(labels_N, log_probs)

    return Predictions(tuple(eval_ids), batch_norm, read)
