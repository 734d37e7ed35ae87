"""Which point is best, chosen on validation data only. Tables are pandas: `cells` and `scores` as they are stored."""

from __future__ import annotations

import pandas as pd

POINT = ["method", "checkpoint", "lr_ratio", "cycle_ratio", "n_members"]
"""What makes a point of the map; its cells differ in `replicate` only."""


def in_metric(cells: pd.DataFrame, scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The cells with every accuracy in `metric`, a column of `scores`.

    The columns `*accuracy` hold it in place of the share of right answers; all else is as in `cells`.
    """
    if metric == "accuracy":
        return cells
    of_cell = cells.set_index("cell_id")
    own, member = scores["bn"] == "own", scores["kind"] == "member"
    like_soups = ~own if (~own).any() else own  # where there is no batch norm, all have their own statistics
    hub = member & (scores["predictor_id"] == scores["cell_id"].map(of_cell["hub_id"]))
    whole = scores["n_members"] == scores["cell_id"].map(of_cell["n_members"])
    test, val = scores["split"] == "test", scores["split"] == "val"
    ensemble, soup = (scores["kind"] == "ensemble") & whole & own, (scores["kind"] == "uniform_soup") & whole
    rows = {
        "hub_accuracy": hub & own & test,
        "hub_accuracy_reestimated": hub & like_soups & test,
        "member_accuracy": member & own & test,
        "ensemble_accuracy": ensemble & test,
        "val_ensemble_accuracy": ensemble & val,
        "soup_accuracy": soup & test,
        "val_soup_accuracy": soup & val,
        "greedy_soup_accuracy": (scores["kind"] == "greedy_soup") & test,
    }
    means = {column: scores[chosen].groupby("cell_id")[metric].mean() for column, chosen in rows.items()}
    return cells.assign(**{column: cells["cell_id"].map(mean) for column, mean in means.items()})


def best_point(cells: pd.DataFrame, accuracy: str, nll: str) -> pd.DataFrame:
    """The cells of the point that is best by mean `accuracy`, then by mean `nll`; ascending replicates.

    Means are compared to 12 decimals: equal counts of images must tie, in whatever order they were added up.
    """
    means = cells.groupby(POINT)[[accuracy, nll]].mean().round(12).dropna(subset=[accuracy]).reset_index()
    best = means.sort_values([accuracy, nll, *POINT], ascending=[False, *[True] * (1 + len(POINT))]).head(1)
    return cells.merge(best[POINT], on=POINT).sort_values("replicate", ignore_index=True)
