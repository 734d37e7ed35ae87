"""Every score computed again from stored predictions, and compared with what is stored."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raybasin.errors import one_line
from raybasin.landscape import basin_exits
from raybasin.metrics import cell_scores
from raybasin.store import tables
from raybasin.store.folders import Folder
from raybasin.store.predictions import predicted, stored_predictions
from raybasin.sweep.settings import OWN_SPLITS

TOLERANCE = 1e-9
"""How far a score computed again may lie from the stored one: other versions sum in another order."""


@dataclass(frozen=True)
class Rescored:
    """`figures` of so many `cells` computed again; `differences` names those that are not what is stored. `not_kept`
    counts those that cannot be computed again, because predictions on `not_kept_splits` were not stored."""

    cells: int
    figures: int
    largest_difference: float
    differences: tuple[str, ...]
    not_kept: int = 0
    not_kept_splits: tuple[str, ...] = ()


def rescore(
    folder: Folder,
    cells: Sequence[Mapping[str, Any]],
    eval_id: str,
    shift_eval_ids: Mapping[str, str] | None = None,
) -> Rescored:
    """Every score of `cells` (rows of the table) again from stored predictions and paths, without torch or a GPU.

    Args:
        cells: rows of the table `cells`, of one set of settings.
        eval_id: of the predictions on `val` and `test`.
        shift_eval_ids: of the predictions on each shift split.
    """
    again = _Again(folder, {**dict.fromkeys(OWN_SPLITS, eval_id), **(shift_eval_ids or {})})
    count, largest, differences = 0, 0.0, []
    for row in cells:
        try:
            for key, was, now in again.cell(row):
                count += 1
                distance = _distance(was, now)
                largest = max(largest, distance)
                if distance > TOLERANCE:
                    differences.append(f"{key}: stored {was}, computed {now}")
        except (ValueError, LookupError, TypeError) as error:  # rows that no sweep writes
            differences.append(f"cells {row['cell_id']}: cannot be computed again ({one_line(error, 200)})")
    lost = again.not_kept
    return Rescored(len(cells), count, largest, tuple(differences), lost.total(), tuple(sorted(lost)))


class _Again:
    """Computes cells again, and counts in `not_kept`, by split, the figures that cannot be."""

    def __init__(self, folder: Folder, eval_ids: Mapping[str, str]) -> None:
        self.folder, self.eval_ids = folder, eval_ids
        self.predicted = predicted(folder)
        self.not_kept: Counter[str] = Counter()

    def cell(self, row: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        """(name, stored, computed) of every figure of one cell."""
        cell_id = row["cell_id"]
        stored = self._rows("scores", cell_id)
        batch_norm = any(r["bn"] == cell_scores.REESTIMATED for r in stored)
        computed = self._scores(row, batch_norm)
        absent = {column for column in stored[0] if all(r[column] is None for r in stored)}  # from before it was scored
        columns = [column for column in computed[0] if column not in absent]
        by_key = {_key(r): r for r in stored}
        for r in computed:
            was = by_key.get(_key(r), {})
            for column in columns:
                yield f"scores {cell_id} {' '.join(_key(r))} {column}", was.get(column), r[column]
        there = {r["split"] for r in computed}
        lost = [r for r in stored if r["split"] not in there]
        for r in lost:
            self.not_kept[r["split"]] += len(columns)
        for column, value in self._columns(row, [*computed, *lost], batch_norm).items():
            # A name that is not there is of a cell from before it was stored, which others of the folder may not be.
            if not isinstance(value, str) or isinstance(row[column], str):
                yield f"cells {cell_id} {column}", row[column], value

    def _scores(self, row: Mapping[str, Any], batch_norm: bool) -> list[dict[str, Any]]:
        """The scores on the splits that were to be kept, and on those on which all predictors have predictions."""
        member_ids, soups, kept = list(row["member_ids"]), cell_scores.soups_of(row), row["kept_predictions"]
        predictor_ids = [*member_ids, *(soup.predictor_id for soup in soups)]
        splits = {
            split: eval_id
            for split, eval_id in self.eval_ids.items()
            if split in kept or all({(p, eval_id), (p, f"{eval_id}-{split}")} & self.predicted for p in predictor_ids)
        }
        predictions = stored_predictions(self.folder, splits, batch_norm)
        return cell_scores.score_rows(row["cell_id"], member_ids, soups, predictions)

    def _columns(self, row: Mapping[str, Any], scores: Sequence[dict[str, Any]], batch_norm: bool) -> dict[str, Any]:
        """What the row of a cell measures: not what today's threshold makes of it."""
        paths, traced = (self._rows(table, row["cell_id"]) for table in ("paths", "traces"))
        soup_statistics = cell_scores.REESTIMATED if batch_norm else cell_scores.OWN
        found = cell_scores.cell_columns(list(row["member_ids"]), paths, scores, soup_statistics)
        if traced:
            hub = basin_exits.hub_of(basin_exits.traced_steps(traced))
            found["checkpoint_barrier_error"] = hub.barrier_error
        return found

    def _rows(self, table: str, cell_id: str) -> list[dict[str, Any]]:
        """From the files of the cell; from all of them in a compacted folder."""
        own = [unit for unit in tables.units(self.folder, table) if unit.partition("-")[0] == cell_id]
        return [row for row in tables.sound(self.folder, table, own or None).to_pylist() if row["cell_id"] == cell_id]


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row["kind"], row["predictor_id"], row["split"], row["bn"]


def _distance(was: Any, now: Any) -> float:
    """Between two figures: infinite where only one is there, or where they are names that differ."""
    if not (isinstance(was, float) and isinstance(now, float)):
        return 0.0 if was == now else math.inf
    if was == now or (math.isnan(was) and math.isnan(now)):
        return 0.0
    return math.inf if math.isnan(was - now) else abs(was - now)
