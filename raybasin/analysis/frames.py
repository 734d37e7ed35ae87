"""The data behind the figures: what `raybasin figures` draws and writes as CSV, and what the report's page draws.

Values are in the units in which tables are stored: shares from 0 to 1, NLL in nats.

Axes: N examples, B calibration bins, R replicates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from raybasin.analysis import comparisons
from raybasin.analysis import results as reading
from raybasin.analysis.results import Results
from raybasin.errors import NotMeasured
from raybasin.landscape import basin_exits
from raybasin.metrics import scores, selection
from raybasin.metrics.selection import POINT
from raybasin.sweep import methods

PLACE = ["checkpoint", "method", "lr_ratio", "cycle_ratio", "replicate"]


def one_size(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of the most frequent ensemble size: sizes are not mixed in one figure."""
    return cells[cells["n_members"] == reading.main_size(cells)]


def best_points(cells: pd.DataFrame, by: str) -> Iterator[pd.DataFrame]:
    """Of each method the cells of the point, of the most frequent size, whose `ensemble` or `soup` is best on
    validation."""
    for method in reading.in_order(set(cells["method"])):
        of_method = one_size(cells[cells["method"] == method])
        point = selection.best_point(of_method, f"val_{by}_accuracy", f"val_{by}_nll")
        if not point.empty:
            yield point


def _place(point: pd.DataFrame) -> dict[str, Any]:
    """Which point these cells are of."""
    return {name: point[name].iloc[0] for name in POINT}


# Cells


def trade_off(results: Results) -> pd.DataFrame:
    """What leaving the basin costs and brings: a row per cell, its barrier and what it gains."""
    return _cells(results)[[*POINT, "replicate", "cell_id", "in_basin", "barrier_error", "barrier_nll",
                            "ensemble_gain", "soup_gain"]]  # fmt: skip


def diversity(results: Results) -> pd.DataFrame:
    """How good and how different members are, and what their ensemble gains: a row per cell."""
    return _cells(results)[[*POINT, "replicate", "cell_id", "in_basin", "normalised_disagreement", "disagreement",
                            "member_accuracy", "hub_accuracy", "ensemble_accuracy", "ensemble_gain"]]  # fmt: skip


def _cells(results: Results) -> pd.DataFrame:
    return one_size(reading.gains(reading.judged(results)))


# Paths, traces, trainings, planes


def paths(results: Results, cell_ids: Iterable[str], split: str | None = None) -> pd.DataFrame:
    """The paths of these cells on `split`, by default on that which decides (`basin.split`), a row per point: `start`
    and `end` are the numbers of its members."""
    split = split or results.stored.spec.basin.split
    cells = reading.committed(results).set_index("cell_id")
    rows = results.paths
    rows = rows[rows["cell_id"].isin(list(cell_ids)) & (rows["split"] == split)]
    numbers = {(cell_id, member_id): index for cell_id in rows["cell_id"].unique()
               for index, member_id in enumerate(cells.loc[cell_id, "member_ids"])}  # fmt: skip
    start, end = (
        pd.array([numbers.get(pair) for pair in zip(rows["cell_id"], rows[of], strict=True)], dtype="Int64")
        for of in ("start_id", "end_id")
    )
    columns = [*PLACE, "cell_id", "path_id", "kind", "start", "end", "split", "t", "nll", "error"]
    found = rows.assign(start=start, end=end, method=rows["cell_id"].map(cells["method"]))[columns]
    return found.sort_values(["replicate", "kind", "start", "end", "t"], ignore_index=True)


def members_of(cells: pd.DataFrame) -> pd.DataFrame:
    """The members of these cells: `cell_id, replicate, member_id, member_index`."""
    whose = cells[["cell_id", "replicate", "member_ids"]].explode("member_ids", ignore_index=True)
    index = whose.groupby("cell_id").cumcount()
    return whose.assign(member_index=index).rename(columns={"member_ids": "member_id"})


def learning(results: Results, cells: pd.DataFrame) -> pd.DataFrame:
    """The trainings of the members of these cells, a row per epoch."""
    columns = ["member_id", "epoch", "lr", "train_loss", "train_error"]
    found = members_of(cells).merge(results.epochs[columns], on="member_id")
    return found.sort_values(["replicate", "cell_id", "member_index", "epoch"], ignore_index=True)


def traces(results: Results) -> pd.DataFrame:
    """Every path of every trace: its `origin`, `epochs` since the hub and `barrier` (the one that decides); `left`
    marks the earliest exit of a cell. The hub has no barrier to itself. Raises UserError if nothing was traced."""
    cells, criterion = reading.committed(results).set_index("cell_id"), results.criterion
    points = results.traces[results.traces["cell_id"].isin(cells.index)]
    if points.empty:
        raise NotMeasured(f"{results.folder.root}: no cell was traced; put `trace: true` into basin of the sweep file")
    found = []
    for cell_id, of_cell in points.groupby("cell_id"):
        traced = basin_exits.traced_steps([{str(k): v for k, v in row.items()} for row in of_cell.to_dict("records")])
        exits = basin_exits.first_exits(traced, criterion)
        hub = replace(basin_exits.hub_of(traced), origin=basin_exits.HUB, barrier_error=0.0, barrier_nll=0.0)
        found += [
            {"cell_id": cell_id, "origin": step.origin, "epochs": step.epochs_from_hub,
             "barrier": getattr(step, criterion.barrier), "left": step == exits[step.origin]}
            for step in (hub, *traced)
        ]  # fmt: skip
    return pd.DataFrame(found).join(cells[PLACE], on="cell_id")


# Ensembles and soups: of each method the point that is best on validation


def sizes(results: Results) -> pd.DataFrame:
    """Accuracy (in the metric of the data set), NLL and worth on test of the ensembles and uniform soups of the first k
    members: Local DE beside the point of each method that is best on validation, by its ensemble or its soup.

    A row per `kind`, point, `score` and `size`: the `mean` over replicates, the `lowest` and `highest` of them, and
    where predictions on test were stored the 95 % interval `low, high` over images and replicates.
    """
    cells, by_image = reading.judged(results), comparisons.BySize(results)
    rows: list[dict[str, Any]] = []
    for checkpoint in reading.checkpoints_of(results):
        for kind, by in (("ensemble", "ensemble"), ("uniform_soup", "soup")):
            for point in best_points(cells[cells["checkpoint"] == checkpoint], by):
                rows += _sizes_of(results, point, kind, by_image)
    columns = [*POINT, "kind", "score", "size", "replicates", "mean", "lowest", "highest", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _sizes_of(
    results: Results, point: pd.DataFrame, kind: str, by_image: comparisons.BySize
) -> Iterator[dict[str, Any]]:
    found = reading.by_size(results, point["cell_id"], kind)
    measured = by_image.intervals(point["cell_id"], kind, set(found["n_members"]))
    known = _place(point)
    for size in sorted(set(map(int, found["n_members"]))):
        of_size = found[found["n_members"] == size]
        for score in ("accuracy", "nll", "deep_ensemble_equivalent"):
            values = of_size[score].dropna()
            if len(values):
                low, high = measured.get((size, score), (np.nan, np.nan))
                yield {**known, "kind": kind, "score": score, "size": size, "replicates": len(values),
                       "mean": values.mean(), "lowest": values.min(), "highest": values.max(), "low": low,
                       "high": high}  # fmt: skip


def shifts(results: Results) -> pd.DataFrame:
    """Accuracy and NLL by severity, means over the corruptions of a shift: of each method the point whose ensemble is
    best on validation, and of a method that explores its uniform soup too. Severity 0 is the clean test split.

    A row per `shift`, point, `kind`, `score` and `severity`: the `mean` over replicates, the `lowest` and `highest` of
    them. Raises UserError if there is no shift with corruptions, or it has no scores.
    """
    found = reading.robustness(results)
    if found.empty:
        raise NotMeasured(f"{results.folder.root}: no cell has scores on corrupted images (`shifts` of the sweep file)")
    cells, rows = reading.committed(results), list[dict[str, Any]]()
    for checkpoint in reading.checkpoints_of(results):
        for point in best_points(cells[cells["checkpoint"] == checkpoint], "ensemble"):
            whole = found["cell_id"].isin(point["cell_id"]) & (found["n_members"] == point["n_members"].iloc[0])
            for kind, of_kind in _kinds_of(found[whole], point["method"].iloc[0]):
                for (shift, severity), scored in of_kind.groupby(["shift", "severity"]):
                    known = {**_place(point), "kind": kind, "shift": shift, "severity": severity}
                    rows += _spread(known, scored)
    return pd.DataFrame(rows)


def _kinds_of(scored: pd.DataFrame, method: str) -> Iterator[tuple[str, pd.DataFrame]]:
    yield "ensemble", scored[(scored["kind"] == "ensemble") & (scored["bn"] == "own")]
    if methods.explores(method):
        yield "uniform_soup", scored[scored["kind"] == "uniform_soup"]


def _spread(known: dict[str, Any], scored: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for score in ("accuracy", "nll"):
        values = scored[score].dropna()
        if len(values):
            yield {**known, "score": score, "corruptions": scored["corruptions"].max(),
                   "replicates": scored["cell_id"].nunique(),
                   "mean": values.mean(), "lowest": values.min(), "highest": values.max()}  # fmt: skip


def reliability(results: Results) -> pd.DataFrame:
    """How often predictions are right that are so and so sure, on test: the hubs, and of each method the ensemble of
    the point that is best on validation, all replicates together. In each of equally wide bins of `confidence` its
    mean, the `accuracy` there, and how many predictions (`images`) it has.

    Raises:
        UserError: if predictions on test were not stored.
    """
    cells, rows = reading.committed(results), list[dict[str, Any]]()
    for checkpoint in reading.checkpoints_of(results):
        points = list(best_points(cells[cells["checkpoint"] == checkpoint], "ensemble"))
        hubs = pd.concat(points).drop_duplicates("hub_id")
        rows += _bins(
            results, {**_place(hubs), "method": "hub", "n_members": 1}, [[hub_id] for hub_id in hubs["hub_id"]]
        )
        for point in points:
            rows += _bins(results, _place(point), list(point["member_ids"]))
    return pd.DataFrame(rows)


FEWEST_IN_BIN = 5
"""Bins with fewer predictions are not drawn: of so few, all or none may be right by chance."""


def shown_bins(bins: pd.DataFrame) -> pd.DataFrame:
    """Those rows of `reliability` that are drawn."""
    return bins[bins["images"] >= FEWEST_IN_BIN]


def _bins(results: Results, known: dict[str, Any], ensembles: Sequence[Sequence[str]]) -> Iterator[dict[str, Any]]:
    """The rows of these ensembles, each the ids of its members, taken together."""
    totals = np.zeros((3, scores.ECE_BINS))
    for member_ids in ensembles:
        log_probs_MNC, labels_N = reading.labelled(results, list(member_ids), "test", "own")
        whole = scores.Networks(log_probs_MNC, labels_N).first(len(member_ids))
        bin_N, confidence_N = scores.bins_of(whole)
        finite_N = np.isfinite(confidence_N)  # an overflow is no confidence
        for total_B, weight_N in zip(totals, (np.ones(len(bin_N)), whole.correct_N, confidence_N), strict=True):
            total_B += np.bincount(bin_N[finite_N], weights=weight_N[finite_N], minlength=scores.ECE_BINS)
    for number, (images, correct, confidence) in enumerate(totals.T):
        if images:
            yield {**known, "bin": number, "images": int(images), "confidence": confidence / images,
                   "accuracy": correct / images}  # fmt: skip
