"""From stored predictions and paths to the rows of `scores` and `cells`. No torch: a laptop can compute them again.

Splits are gone through one after another, and of each every predictor is read once, so that memory holds the
predictions of one cell on one split.

Arrays: M members, N examples, C classes, P path points, K ensemble sizes 1..K.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from raybasin.landscape import barriers
from raybasin.metrics import classification
from raybasin.sweep import ids as naming

Row = dict[str, Any]
OWN, REESTIMATED = "own", "reestimated"


class Scored(Protocol):
    """What must be known of a cell to score it: a planned cell has it, and so has a row of `cells`."""

    @property
    def cell_id(self) -> str: ...
    @property
    def member_ids(self) -> Sequence[str]: ...


def ensemble_id(member_ids: Sequence[str]) -> str:
    return naming.digest("ensemble", list(member_ids))


def soup_id(kind: str, cell: Scored) -> str:
    """The id of the `uniform` or `greedy` soup of a cell's members (the candidates, not the chosen ones)."""
    return naming.soup_id(kind, cell.member_ids)


@dataclass(frozen=True)
class Soup:
    """A soup that was made: `members` are the ids of its ingredients, `sha256` names its weights if they are kept."""

    kind: str
    predictor_id: str
    members: tuple[str, ...]
    sha256: str | None = None


def uniform_soups(member_ids: Sequence[str]) -> list[Soup]:
    """The soups of the first 2, 3, ... members."""
    ids = tuple(member_ids)
    sizes = range(2, len(ids) + 1)
    return [Soup("uniform", naming.soup_id("uniform", ids[:size]), ids[:size]) for size in sizes]


def soups_of(row: Mapping[str, Any]) -> list[Soup]:
    """The soups of a committed cell, from its row of `cells`. (One that does not say which predictions it keeps is from
    the time when only the uniform soup of all members was made.)"""
    ids, found = tuple(row["member_ids"]), []
    if isinstance(row["soup_sha256"], str):  # pandas has NaN for what is missing
        smaller, whole = uniform_soups(ids)[:-1], uniform_soups(ids)[-1]
        found += [*(smaller if kept_splits(row) else []), replace(whole, sha256=row["soup_sha256"])]
    if isinstance(row["greedy_soup_sha256"], str):
        greedy = naming.soup_id("greedy", ids)
        found.append(Soup("greedy", greedy, tuple(row["greedy_soup_members"]), row["greedy_soup_sha256"]))
    return found


def kept_splits(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The splits whose predictions a committed cell has kept, from its row of `cells`; none where it does not say."""
    kept = row.get("kept_predictions")
    return () if kept is None or isinstance(kept, float) else tuple(kept)


@dataclass(frozen=True)
class Split:
    """Predictions on one split: log-probabilities [N, C] by (predictor_id, bn), and the labels [N]."""

    labels_N: np.ndarray
    log_probs: Mapping[tuple[str, str], np.ndarray]

    def of(self, predictor_ids: Sequence[str], bn: str) -> np.ndarray:
        return np.stack([self.log_probs[predictor_id, bn] for predictor_id in predictor_ids])


@dataclass(frozen=True)
class Predictions:
    """`read(split, predictor_ids)` gives the predictions of these on one of `splits`, of which `val` is the first."""

    splits: tuple[str, ...]
    batch_norm: bool
    read: Callable[[str, Sequence[str]], Split]

    @property
    def statistics(self) -> tuple[str, ...]:
        """Whose batch-norm statistics members are scored with; nets without batch norm have only their own."""
        return (OWN, REESTIMATED) if self.batch_norm else (OWN,)

    @property
    def soup_statistics(self) -> str:
        return REESTIMATED if self.batch_norm else OWN


# scores


def score_rows(cell: Scored, soups: Sequence[Soup], predictions: Predictions) -> list[Row]:
    """Every score of a cell on every split: its members, its ensembles of the first 1..M members, its soups.

    Temperatures are fitted on validation and used everywhere.
    """
    soup_ids = [soup.predictor_id for soup in soups]
    predictor_ids = list(dict.fromkeys([*cell.member_ids, *soup_ids]))
    temperatures: dict[tuple[str, str], float] = {}
    rows: list[Row] = []
    for split in predictions.splits:
        found = predictions.read(split, predictor_ids)
        for bn in predictions.statistics:
            of_members = _Scoring(found, split, bn, temperatures)
            rows += of_members.members(cell.member_ids)
            rows += of_members.ensembles(cell.member_ids)
            if bn == predictions.soup_statistics:
                rows += [of_members.soup(soup) for soup in soups]
    return [{"cell_id": cell.cell_id, **row} for row in rows]


@dataclass(frozen=True)
class _Scoring:
    """Makes rows for one split and kind of batch-norm statistics. `temperatures`, by (predictor_id, bn), is filled on
    validation, which comes first."""

    found: Split
    split: str
    bn: str
    temperatures: dict[tuple[str, str], float]

    def members(self, member_ids: Sequence[str]) -> list[Row]:
        return [self._of_one(member_id, "member", 1) for member_id in member_ids]

    def soup(self, soup: Soup) -> Row:
        return self._of_one(soup.predictor_id, f"{soup.kind}_soup", len(soup.members))

    def ensembles(self, member_ids: Sequence[str]) -> list[Row]:
        log_probs_MNC = self.found.of(member_ids, self.bn)
        ids = [ensemble_id(member_ids[:size]) for size in range(1, len(member_ids) + 1)]
        if (member_ids[0], self.bn) in self.temperatures:  # the ensemble of one is that member
            self.temperatures[ids[0], self.bn] = self.temperatures[member_ids[0], self.bn]
        temperatures_K = [self._temperature(ids[size - 1], log_probs_MNC[:size]) for size in range(1, len(ids) + 1)]
        scores_K = classification.summaries(log_probs_MNC, self.found.labels_N, temperatures_K)
        return [self._row(ids[k], "ensemble", k + 1, scores) for k, scores in enumerate(scores_K)]

    def _of_one(self, predictor_id: str, kind: str, n_members: int) -> Row:
        log_probs_MNC = self.found.of([predictor_id], self.bn)
        temperature = self._temperature(predictor_id, log_probs_MNC)
        return self._row(
            predictor_id, kind, n_members, classification.summary(log_probs_MNC, self.found.labels_N, temperature)
        )

    def _temperature(self, predictor_id: str, log_probs_MNC: np.ndarray) -> float:
        key = predictor_id, self.bn
        if self.split == "val" and key not in self.temperatures:
            log_probs_NC = classification.ensemble_log_probs(log_probs_MNC)
            self.temperatures[key] = classification.fit_temperature(log_probs_NC, self.found.labels_N)
        return self.temperatures[key]

    def _row(self, predictor_id: str, kind: str, n_members: int, scores: dict[str, float]) -> Row:
        if self.split == "val":  # fitted there: no measurement
            scores = {**scores, "calibrated_nll": math.nan}
        return {"predictor_id": predictor_id, "kind": kind, "n_members": n_members, "split": self.split,
                "bn": self.bn, **scores}  # fmt: skip


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
    cell: Scored, paths: Sequence[Row], scores: Sequence[Row], soup_statistics: str, threshold: float
) -> Row:
    """Everything in a row of `cells` that is measured, from the cell's rows of `paths` and `scores`.

    Members and ensembles are scored with their own batch-norm statistics, soups with `soup_statistics`, the
    re-estimated ones where there is batch norm.
    """
    found = {(row["kind"], row["predictor_id"], row["split"], row["bn"]): row for row in scores}
    whole = ensemble_id(cell.member_ids)
    test, val = (found["ensemble", whole, split, OWN] for split in ("test", "val"))
    member_accuracy_M = [found["member", member_id, "test", OWN]["accuracy"] for member_id in cell.member_ids]
    hub_like_soup = found["member", cell.member_ids[0], "test", soup_statistics]
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
    uniform = found.get(("uniform_soup", soup_id("uniform", cell), "test", soup_statistics))
    if uniform:
        on_val = found["uniform_soup", soup_id("uniform", cell), "val", soup_statistics]
        row |= {"soup_accuracy": uniform["accuracy"], "soup_nll": uniform["nll"],
                "val_soup_accuracy": on_val["accuracy"], "val_soup_nll": on_val["nll"]}  # fmt: skip
    greedy = found.get(("greedy_soup", soup_id("greedy", cell), "test", soup_statistics))
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
    barrier_nll = max(path.barrier_nll for path in hub)
    return {
        "barrier_nll": barrier_nll,
        "barrier_error": largest.barrier_error,
        "barrier_error_se": largest.barrier_error_se,
        "barrier_nll_mean": float(np.mean([path.barrier_nll for path in hub])),
        "barrier_error_mean": float(np.mean([path.barrier_error for path in hub])),
        "member_barrier_nll": max((path.barrier_nll for path in between), default=math.nan),
        "member_barrier_error": max((path.barrier_error for path in between), default=math.nan),
        "rise_error": max(path.rise_error for path in hub),
        "in_basin": barriers.is_in_basin(largest.barrier_error, barrier_nll, threshold),
        "l2_from_hub": float(np.mean([path.l2_distance for path in hub])),
    }
