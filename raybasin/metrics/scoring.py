"""From stored predictions and paths to the rows of `scores` and `cells`. No torch: a laptop can compute them again.

Splits are gone through one after another, and of each every predictor is read once, so that memory holds the
predictions of one cell on one split.

Arrays: M members, N examples, C classes, P path points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raybasin.landscape import barriers
from raybasin.metrics import classification
from raybasin.metrics.scores import Networks, scores_of
from raybasin.sweep import ids as naming

Row = dict[str, Any]
OWN, REESTIMATED = "own", "reestimated"


def ensemble_id(member_ids: Sequence[str]) -> str:
    return naming.digest("ensemble", list(member_ids))


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
        return self.statistics[-1]


# scores


def score_rows(cell_id: str, member_ids: Sequence[str], soups: Sequence[Soup], predictions: Predictions) -> list[Row]:
    """Every score of a cell on every split: its members, its ensembles of the first 1..M members, its soups.

    Temperatures are fitted on validation and used everywhere.
    """
    predictor_ids = list(dict.fromkeys([*member_ids, *(soup.predictor_id for soup in soups)]))
    temperatures: dict[tuple[str, str], float] = {}
    rows: list[Row] = []
    for split in predictions.splits:
        found = predictions.read(split, predictor_ids)
        for bn in predictions.statistics:
            scoring = _Scoring(found, split, bn, temperatures)
            rows += [scoring.row(member_id, "member", 1) for member_id in member_ids]
            rows += scoring.ensembles(member_ids)
            if bn == predictions.soup_statistics:
                rows += [scoring.row(soup.predictor_id, f"{soup.kind}_soup", len(soup.members)) for soup in soups]
    return [{"cell_id": cell_id, **row} for row in rows]


@dataclass(frozen=True)
class _Scoring:
    """Makes rows for one split and kind of batch-norm statistics. `temperatures`, by (predictor_id, bn), is filled on
    validation, which comes first."""

    found: Split
    split: str
    bn: str
    temperatures: dict[tuple[str, str], float]

    def row(self, predictor_id: str, kind: str, n_members: int) -> Row:
        """Of one network that `n_members` have gone into."""
        alone = Networks(self.found.of([predictor_id], self.bn), self.found.labels_N)
        return self._row(predictor_id, kind, n_members, alone, 1)

    def ensembles(self, member_ids: Sequence[str]) -> list[Row]:
        """Of the first 1, 2, ... members, each pair of which is compared once."""
        members = Networks(self.found.of(member_ids, self.bn), self.found.labels_N)
        one = ensemble_id(member_ids[:1]), self.bn  # is that member
        self.temperatures.setdefault(one, self.temperatures[member_ids[0], self.bn])
        sizes = range(1, len(member_ids) + 1)
        return [self._row(ensemble_id(member_ids[:size]), "ensemble", size, members, size) for size in sizes]

    def _row(self, predictor_id: str, kind: str, n_members: int, networks: Networks, size: int) -> Row:
        key, on_val = (predictor_id, self.bn), self.split == "val"
        if on_val and key not in self.temperatures:
            log_probs_NC = networks.first(size).log_probs_NC
            self.temperatures[key] = classification.fit_temperature(log_probs_NC, self.found.labels_N)
        scores = scores_of(networks.first(size, self.temperatures[key]))
        if on_val:  # fitted there: no measurement
            scores["calibrated_nll"] = math.nan
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


# cells


def cell_scores(
    member_ids: Sequence[str], paths: Sequence[Row], scores: Sequence[Row], soup_statistics: str, threshold: float
) -> Row:
    """Everything in a row of `cells` that is measured, from the cell's rows of `paths` and `scores`.

    Members and ensembles are scored with their own batch-norm statistics, soups with `soup_statistics`, the
    re-estimated ones where there is batch norm.
    """
    found = {(row["kind"], row["predictor_id"], row["split"], row["bn"]): row for row in scores}
    whole = ensemble_id(member_ids)
    test, val = (found["ensemble", whole, split, OWN] for split in ("test", "val"))
    member_accuracy_M = [found["member", member_id, "test", OWN]["accuracy"] for member_id in member_ids]
    row: Row = {
        **_barriers(paths, threshold),
        "hub_accuracy": member_accuracy_M[0],
        "hub_accuracy_reestimated": found["member", member_ids[0], "test", soup_statistics]["accuracy"],
        "member_accuracy": float(np.mean(member_accuracy_M)),
        "ensemble_accuracy": test["accuracy"],
        "ensemble_nll": test["nll"],
        "val_ensemble_accuracy": val["accuracy"],
        "val_ensemble_nll": val["nll"],
        "disagreement": test["disagreement"],
        "normalised_disagreement": test["normalised_disagreement"],
    }
    uniform, greedy = (naming.soup_id(kind, member_ids) for kind in ("uniform", "greedy"))
    if soup := found.get(("uniform_soup", uniform, "test", soup_statistics)):
        on_val = found["uniform_soup", uniform, "val", soup_statistics]
        row |= {"soup_accuracy": soup["accuracy"], "soup_nll": soup["nll"],
                "val_soup_accuracy": on_val["accuracy"], "val_soup_nll": on_val["nll"]}  # fmt: skip
    if soup := found.get(("greedy_soup", greedy, "test", soup_statistics)):
        row["greedy_soup_accuracy"] = soup["accuracy"]
    return row


def _barriers(paths: Sequence[Row], threshold: float) -> Row:
    """Barriers are decided on validation, on the path with the largest error barrier."""
    by_path: dict[tuple[str, str], list[Row]] = {}
    for point in sorted(paths, key=lambda point: point["t"]):
        if point["split"] == "val":
            by_path.setdefault((point["kind"], point["path_id"]), []).append(point)
    hub = [_barrier(points) for (kind, _), points in by_path.items() if kind == "hub-member"]
    between = [_barrier(points) for (kind, _), points in by_path.items() if kind == "member-member"]
    largest = max(hub, key=lambda path: (path["barrier_error"], path["barrier_error_se"]))
    barrier_nll = max(path["barrier_nll"] for path in hub)
    return {
        "barrier_nll": barrier_nll,
        "barrier_error": largest["barrier_error"],
        "barrier_error_se": largest["barrier_error_se"],
        "barrier_nll_mean": float(np.mean([path["barrier_nll"] for path in hub])),
        "barrier_error_mean": float(np.mean([path["barrier_error"] for path in hub])),
        "member_barrier_nll": max((path["barrier_nll"] for path in between), default=math.nan),
        "member_barrier_error": max((path["barrier_error"] for path in between), default=math.nan),
        "rise_error": max(path["rise_error"] for path in hub),
        "in_basin": barriers.is_in_basin(largest["barrier_error"], barrier_nll, threshold),
        "l2_from_hub": float(np.mean([path["l2_distance"] for path in hub])),
    }


def _barrier(points: Sequence[Row]) -> dict[str, float]:
    """What the points of one path say, in ascending order."""
    t_P, error_P = [point["t"] for point in points], [point["error"] for point in points]
    return {
        "barrier_nll": barriers.barrier(t_P, [point["nll"] for point in points]),
        "barrier_error": barriers.barrier(t_P, error_P),
        "barrier_error_se": max(points[1:-1], key=lambda point: point["error_excess"])["error_excess_se"],
        "rise_error": barriers.rise(error_P),
        "l2_distance": points[0]["l2_distance"],
    }
