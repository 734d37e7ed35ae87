"""Which point is best, chosen on validation data only. Tables are pandas: `cells` and `scores` as they are stored."""

from __future__ import annotations

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
