"""What is chosen on validation data only: the best point of a map, and the members of a greedy soup.

Tables are pandas: `cells` and `scores` as they are stored. Axes: M members.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pandas as pd

POINT = ["method", "checkpoint", "lr_ratio", "cycle_ratio", "n_members"]
"""What makes a point of the map; its cells differ in `replicate` only."""

SCORED = ("hub_{}", "hub_{}_reestimated", "member_{}", "ensemble_{}", "val_ensemble_{}", "soup_{}", "val_soup_{}",
          "greedy_soup_{}")  # fmt: skip
"""Whose scores a cell has, as names of columns. The ensemble and the soups are of all members, `member` is their mean;
on test unless they begin with `val_`; with the members' own batch-norm statistics but for soups, whose are
re-estimated, and for the hub that is like them."""


def with_score(cells: pd.DataFrame, scores: pd.DataFrame, score: str, called: str | None = None) -> pd.DataFrame:
    """The cells with a score of all that they hold.

    Args:
        cells: the table `cells`.
        scores: the table `scores`.
        score: a column of it.
        called: what columns are named after (see `SCORED`), in place of what is there; `score` by default.
    """
    of_cell = cells.set_index("cell_id")
    own, member = scores["bn"] == "own", scores["kind"] == "member"
    like_soups = ~own if (~own).any() else own  # where there is no batch norm, all have their own statistics
    hub = member & (scores["predictor_id"] == scores["cell_id"].map(of_cell["hub_id"]))
    whole = scores["n_members"] == scores["cell_id"].map(of_cell["n_members"])
    test, val = scores["split"] == "test", scores["split"] == "val"
    ensemble, soup = (scores["kind"] == "ensemble") & whole & own, (scores["kind"] == "uniform_soup") & whole
    greedy = scores["kind"] == "greedy_soup"
    rows = (hub & own & test, hub & like_soups & test, member & own & test, ensemble & test, ensemble & val,
            soup & test, soup & val, greedy & test)  # fmt: skip
    means = {
        column.format(called or score): cells["cell_id"].map(scores[chosen].groupby("cell_id")[score].mean())
        for column, chosen in zip(SCORED, rows, strict=True)
    }
    return cells.assign(**means)


def in_metric(cells: pd.DataFrame, scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The cells with every accuracy in `metric`, a column of `scores`; all else is as in `cells`."""
    return cells if metric == "accuracy" else with_score(cells, scores, metric, called="accuracy")


def best_point(cells: pd.DataFrame, accuracy: str, nll: str) -> pd.DataFrame:
    """The cells of the point that is best by mean `accuracy`, then by mean `nll`; ascending replicates.

    Means are compared to 12 decimals: equal counts of images must tie, in whatever order they were added up.
    """
    means = cells.groupby(POINT)[[accuracy, nll]].mean().round(12).dropna(subset=[accuracy]).reset_index()
    best = means.sort_values([accuracy, nll, *POINT], ascending=[False, *[True] * (1 + len(POINT))]).head(1)
    return cells.merge(best[POINT], on=POINT).sort_values("replicate", ignore_index=True)


# Greedy soups: networks with averaged weights


def greedy_order(val_accuracy_M: Sequence[float], val_nll_M: Sequence[float]) -> list[int]:
    """Member indices, best first: by accuracy, then by lower NLL, then by index.

    Raises:
        ValueError: if the lengths differ, or if a value is NaN and so has no place in an order.
    """
    if len(val_accuracy_M) != len(val_nll_M):
        raise ValueError(f"{len(val_accuracy_M)} accuracies and {len(val_nll_M)} NLLs")
    if any(math.isnan(value) for value in (*val_accuracy_M, *val_nll_M)):
        raise ValueError(f"members cannot be ordered by NaN: accuracies {val_accuracy_M}, NLLs {val_nll_M}")
    return sorted(range(len(val_accuracy_M)), key=lambda i: (-val_accuracy_M[i], val_nll_M[i], i))


def greedy_soup(order: Sequence[int], score: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    """Greedy recipe of Wortsman et al. (2022): start from the best member, add each next one that helps.

    A member helps if validation accuracy strictly increases, as in the authors' code: ties are left out. Each
    member is tried once.

    Args:
        order: member indices, best first (`greedy_order`).
        score: validation accuracy of the uniform soup of these members; called once for each member.

    Returns:
        Member indices in the order in which they were accepted, the best single member first.

    Raises:
        ValueError: if the order is empty or names a member twice.
    """
    if not order or len(set(order)) != len(order):
        raise ValueError(f"the order must name each member once, and at least one, got {list(order)}")
    ingredients = [order[0]]
    best = score((order[0],))
    for member in order[1:]:
        accuracy = score((*ingredients, member))
        if accuracy > best:
            ingredients.append(member)
            best = accuracy
    return tuple(ingredients)
