"""From stored predictions and paths to the rows of `scores` and `cells`. No torch: a laptop can compute them again.

Arrays: M members, N examples, C classes, P path points.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from raybasin import barriers, metrics, tables
from raybasin.specs import digest
from raybasin.store import Folder

Row = dict[str, Any]
OWN, REESTIMATED = "own", "reestimated"
SPLITS = ("val", "test")


class Scored(Protocol):
    """What must be known of a cell to score it: a planned cell has it, and so has a row of `cells`."""

    @property
    def cell_id(self) -> str: ...
    @property
    def member_ids(self) -> Sequence[str]: ...
    @property
    def reference_ids(self) -> Sequence[str]: ...


def ensemble_id(member_ids: Sequence[str]) -> str:
    return digest("ensemble", list(member_ids))


def soup_id(kind: str, cell: Scored) -> str:
    """The id of the `uniform` or `greedy` soup of a cell's members (the candidates, not the chosen ones)."""
    return digest(f"{kind}_soup", list(cell.member_ids))


@dataclass(frozen=True)
class Soup:
    """A soup that was made: `members` are the ids of its ingredients, `sha256` names its weights."""

    kind: str
    predictor_id: str
    members: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class Predictions:
    """Stored predictions: `log_probs(predictor_id, split, bn)` [N, C], `labels[split]` [N]."""

    log_probs: Callable[[str, str, str], np.ndarray]
    labels: Mapping[str, np.ndarray]
    batch_norm: bool

    @property
    def statistics(self) -> tuple[str, ...]:
        """Whose batch-norm statistics members are scored with; nets without batch norm have only their own."""
        return (OWN, REESTIMATED) if self.batch_norm else (OWN,)

    @property
    def soup_statistics(self) -> str:
        return REESTIMATED if self.batch_norm else OWN

    def of_members(self, member_ids: Sequence[str], split: str, bn: str) -> np.ndarray:
        return np.stack([self.log_probs(member_id, split, bn) for member_id in member_ids])


def stored(folder: Folder, eval_id: str, batch_norm: bool, first_id: str) -> Predictions:
    """The predictions of a results folder, each file read when first asked for; labels are those of `first_id`."""

    @functools.cache
    def blocks(predictor_id: str) -> dict[tuple[str, str], tables.Block]:
        return tables.read_predictions(folder, predictor_id, eval_id)

    labels = {split: blocks(first_id)[split, OWN].labels_N for split in SPLITS}
    return Predictions(lambda predictor_id, split, bn: blocks(predictor_id)[split, bn].log_probs_NC, labels, batch_norm)


# scores


def score_rows(cell: Scored, soups: Sequence[Soup], predictions: Predictions) -> list[Row]:
    """Every score of a cell: its members, its ensembles of the first 1..M members, its soups."""
    rows: list[Row] = []
    for bn in predictions.statistics:
        reference_K = _local_de(cell, predictions, bn)
        for member_id in cell.member_ids:
            rows += _scored(member_id, "member", [member_id], bn, predictions, reference_K)
        for size in range(1, len(cell.member_ids) + 1):
            ids = cell.member_ids[:size]
            rows += _scored(ensemble_id(ids), "ensemble", ids, bn, predictions, reference_K)
        if bn == predictions.soup_statistics:
            for soup in soups:
                scored = _scored(
                    soup.predictor_id, f"{soup.kind}_soup", [soup.predictor_id], bn, predictions, reference_K
                )
                rows += [{**row, "n_members": len(soup.members)} for row in scored]
    return [{"cell_id": cell.cell_id, **row} for row in rows]


def _scored(
    predictor_id: str, kind: str, ids: Sequence[str], bn: str, predictions: Predictions, reference_K: Sequence[float]
) -> list[Row]:
    """A row for each split. The temperature is fitted on validation and used on test."""
    validation = metrics.ensemble_log_probs(predictions.of_members(ids, "val", bn))
    temperature = metrics.fit_temperature(validation, predictions.labels["val"])
    rows = []
    for split in SPLITS:
        log_probs_MNC = predictions.of_members(ids, split, bn)
        scores = metrics.summary(log_probs_MNC, predictions.labels[split], temperature)
        equivalent = None
        if split == "val":  # fitted there: no measurement
            scores["calibrated_nll"] = math.nan
        elif len(reference_K):
            equivalent = metrics.deep_ensemble_equivalent(scores["calibrated_nll"], reference_K)
        rows.append({"predictor_id": predictor_id, "kind": kind, "n_members": len(ids), "split": split, "bn": bn,
                     "deep_ensemble_equivalent": equivalent, **scores})  # fmt: skip
    return rows


def _local_de(cell: Scored, predictions: Predictions, bn: str) -> list[float]:
    """Calibrated NLL on test of Local DE ensembles of 1, 2, ... members; empty where the sweep has none."""
    sizes = [cell.reference_ids[:size] for size in range(1, len(cell.reference_ids) + 1)]
    result = []
    for ids in sizes:
        validation = metrics.ensemble_log_probs(predictions.of_members(ids, "val", bn))
        temperature = metrics.fit_temperature(validation, predictions.labels["val"])
        test = metrics.ensemble_log_probs(predictions.of_members(ids, "test", bn))
        result.append(metrics.calibrated_nll(test, predictions.labels["test"], temperature))
    return result


# paths


def path_rows(nll_P: Sequence[float], wrong_PN: np.ndarray, t_P: Sequence[float]) -> list[Row]:
    """The rows of one path on one split, one per point.

    `nll_P` is the mean NLL, `wrong_PN` whether each example is misclassified, ends included.
    """
    error_P = wrong_PN.mean(axis=1)
    excess_P = barriers.excess(t_P, error_P)
    return [
        {
            "t": float(t),
            "nll": float(nll),
            "error": float(error),
            "error_excess": float(excess),
            "error_excess_se": barriers.excess_se(t, at_t, wrong_PN[0], wrong_PN[-1]),
        }
        for t, nll, error, excess, at_t in zip(t_P, nll_P, error_P, excess_P, wrong_PN, strict=True)
    ]


@dataclass(frozen=True)
class _Path:
    barrier_nll: float
    barrier_error: float
    barrier_error_se: float
    rise_error: float
    l2_distance: float


def _measured(points: Sequence[Row]) -> _Path:
    points = sorted(points, key=lambda point: point["t"])
    t_P = [point["t"] for point in points]
    error_P = [point["error"] for point in points]
    largest = max(points[1:-1], key=lambda point: point["error_excess"])
    return _Path(
        barrier_nll=barriers.barrier(t_P, [point["nll"] for point in points]),
        barrier_error=barriers.barrier(t_P, error_P),
        barrier_error_se=largest["error_excess_se"],
        rise_error=barriers.rise(error_P),
        l2_distance=points[0]["l2_distance"],
    )


# cells


def cell_scores(
    cell: Scored, paths: Sequence[Row], scores: Sequence[Row], predictions: Predictions, threshold: float
) -> Row:
    """Everything in a row of `cells` that is measured, from the cell's rows of `paths` and `scores`.

    Members and ensembles are scored with their own batch-norm statistics, soups with re-estimated ones.
    """
    found = {(row["kind"], row["predictor_id"], row["split"], row["bn"]): row for row in scores}
    whole = ensemble_id(cell.member_ids)
    test, val = (found["ensemble", whole, split, OWN] for split in ("test", "val"))
    member_accuracy_M = [found["member", member_id, "test", OWN]["accuracy"] for member_id in cell.member_ids]
    hub_like_soup = found["member", cell.member_ids[0], "test", predictions.soup_statistics]
    row: Row = {
        **_barriers(paths, threshold),
        "hub_accuracy": member_accuracy_M[0],
        "hub_accuracy_reestimated": hub_like_soup["accuracy"],
        "member_accuracy": float(np.mean(member_accuracy_M)),
        "ensemble_accuracy": test["accuracy"],
        "ensemble_nll": test["nll"],
        "val_ensemble_accuracy": val["accuracy"],
        "val_ensemble_nll": val["nll"],
        "disagreement": test["disagreement"],
        "normalised_disagreement": test["normalised_disagreement"],
    }
    uniform = found.get(("uniform_soup", soup_id("uniform", cell), "test", predictions.soup_statistics))
    if uniform:
        on_val = found["uniform_soup", soup_id("uniform", cell), "val", predictions.soup_statistics]
        row |= {"soup_accuracy": uniform["accuracy"], "soup_nll": uniform["nll"],
                "val_soup_accuracy": on_val["accuracy"], "val_soup_nll": on_val["nll"]}  # fmt: skip
    greedy = found.get(("greedy_soup", soup_id("greedy", cell), "test", predictions.soup_statistics))
    if greedy:
        row["greedy_soup_accuracy"] = greedy["accuracy"]
    return row


def _barriers(paths: Sequence[Row], threshold: float) -> Row:
    """Barriers are decided on validation, on the path with the largest error barrier."""
    by_path: dict[tuple[str, str], list[Row]] = {}
    for point in paths:
        if point["split"] == "val":
            by_path.setdefault((point["kind"], point["path_id"]), []).append(point)
    measured = {key: _measured(points) for key, points in by_path.items()}
    hub = [path for (kind, _), path in measured.items() if kind == "hub-member"]
    between = [path for (kind, _), path in measured.items() if kind == "member-member"]
    largest = max(hub, key=lambda path: (path.barrier_error, path.barrier_error_se))
    return {
        "barrier_nll": max(path.barrier_nll for path in hub),
        "barrier_error": largest.barrier_error,
        "barrier_error_se": largest.barrier_error_se,
        "barrier_nll_mean": float(np.mean([path.barrier_nll for path in hub])),
        "barrier_error_mean": float(np.mean([path.barrier_error for path in hub])),
        "member_barrier_nll": max((path.barrier_nll for path in between), default=math.nan),
        "member_barrier_error": max((path.barrier_error for path in between), default=math.nan),
        "rise_error": max(path.rise_error for path in hub),
        "in_basin": largest.barrier_error <= threshold,
        "l2_from_hub": float(np.mean([path.l2_distance for path in hub])),
    }
