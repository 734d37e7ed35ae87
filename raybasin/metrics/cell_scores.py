"""All scores of a cell: its rows of `scores` and what its row of `cells` says of these and of paths.
No torch: a laptop can compute them again.

Splits are gone through one after another, and of each every predictor is read once, so that memory holds the
predictions of one cell on one split.

Arrays: M members, N examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from raybasin.landscape import barriers
from raybasin.metrics import classification
from raybasin.metrics.scores import Ensemble, Networks, scores_of
from raybasin.sweep import ids as naming

Row = dict[str, Any]
OWN, REESTIMATED = "own", "reestimated"


def statistics(batch_norm: bool) -> tuple[str, ...]:
    """Whose batch-norm statistics members are scored with; nets without batch norm have only their own. Soups are with
    the last."""
    return (OWN, REESTIMATED) if batch_norm else (OWN,)


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
    """The soups of a committed cell, from its row of `cells`."""
    ids, found = tuple(row["member_ids"]), []
    if isinstance(row["soup_sha256"], str):  # pandas has NaN for what is missing
        found = uniform_soups(ids)
        found[-1] = replace(found[-1], sha256=row["soup_sha256"])
    if isinstance(row["greedy_soup_sha256"], str):
        greedy = naming.soup_id("greedy", ids)
        found.append(Soup("greedy", greedy, tuple(row["greedy_soup_members"]), row["greedy_soup_sha256"]))
    return found


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
        return statistics(self.batch_norm)

    @property
    def soup_statistics(self) -> str:
        return self.statistics[-1]


# scores


def score_rows(cell_id: str, member_ids: Sequence[str], soups: Sequence[Soup], predictions: Predictions) -> list[Row]:
    """Every score of a cell on every split: its members, its ensembles of the first 1..M members, its soups.

    Temperatures are fitted on validation, which comes first, and used everywhere.
    """
    predictor_ids = list(dict.fromkeys([*member_ids, *(soup.predictor_id for soup in soups)]))
    temperatures: dict[tuple[str, str], float] = {}
    rows: list[Row] = []
    for split in predictions.splits:
        found = predictions.read(split, predictor_ids)
        for bn, predictor_id, kind, n_members, ensemble in _scored(member_ids, soups, predictions, found):
            is_first_member = kind == "ensemble" and n_members == 1
            key = member_ids[0] if is_first_member else predictor_id, bn
            if split == "val" and key not in temperatures:
                temperatures[key] = classification.fit_temperature(ensemble.log_probs_NC, ensemble.labels_N)
            scores = scores_of(replace(ensemble, temperature=temperatures[key]))
            if split == "val":  # fitted there: no measurement
                scores["calibrated_nll"] = math.nan
            rows.append({"cell_id": cell_id, "predictor_id": predictor_id, "kind": kind, "n_members": n_members,
                         "split": split, "bn": bn, **scores})  # fmt: skip
    return rows


def _scored(
    member_ids: Sequence[str], soups: Sequence[Soup], predictions: Predictions, found: Split
) -> Iterator[tuple[str, str, str, int, Ensemble]]:
    """(bn, predictor_id, kind, n_members, what is scored) of all that is scored on one split."""
    for bn in predictions.statistics:

        def alone(predictor_id: str, bn: str = bn) -> Ensemble:
            return Networks(found.of([predictor_id], bn), found.labels_N).first(1)

        for member_id in member_ids:
            yield bn, member_id, "member", 1, alone(member_id)
        members = Networks(found.of(member_ids, bn), found.labels_N)  # of which each pair is compared once
        for size in range(1, len(member_ids) + 1):
            yield bn, ensemble_id(member_ids[:size]), "ensemble", size, members.first(size)
        for soup in soups if bn == predictions.soup_statistics else ():
            yield bn, soup.predictor_id, f"{soup.kind}_soup", len(soup.members), alone(soup.predictor_id)


# cells


def cell_columns(member_ids: Sequence[str], paths: Sequence[Row], scores: Sequence[Row], soup_statistics: str) -> Row:
    """Everything in a row of `cells` that is measured, from the cell's rows of `paths` and `scores`.

    Members and ensembles are scored with their own batch-norm statistics, soups with `soup_statistics`, the
    re-estimated ones where there is batch norm.
    """
    found = {(row["kind"], row["predictor_id"], row["split"], row["bn"]): row for row in scores}
    whole = ensemble_id(member_ids)
    test, val = (found["ensemble", whole, split, OWN] for split in ("test", "val"))
    member_accuracy_M = [found["member", member_id, "test", OWN]["accuracy"] for member_id in member_ids]
    row: Row = {
        **barriers.summary(paths),
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
