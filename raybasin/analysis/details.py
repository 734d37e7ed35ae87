"""What the report's page says of one point of the map: its figures with intervals and verdicts, its replicates, its
members, its paths and trainings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from raybasin.analysis import charts, comparisons, frames
from raybasin.analysis import results as reading
from raybasin.analysis.quantities import counted, quantity
from raybasin.analysis.results import Results
from raybasin.metrics.selection import POINT

Row = Mapping[Any, Any]
"""Of `comparisons.summary`."""

FIGURES = (
    ("NLL of the ensemble", "ensemble_nll", ""),
    ("NLL over local_de", "nll_over_local_de", "nll_over_local_de_"),
    ("worth", "worth", ""),
    ("accuracy of the ensemble", "ensemble_accuracy", ""),
    ("accuracy over local_de", "over_local_de", "over_local_de_"),
    ("accuracy over the hub", "ensemble_gain", "ensemble_gain_"),
    ("accuracy of the hub", "hub_accuracy", ""),
    ("mean accuracy of a member", "member_accuracy", ""),
    ("NLL of the soup", "soup_nll", ""),
    ("NLL of the soup over the ensemble of local_de", "soup_nll_over_local_de", "soup_nll_over_local_de_"),
    ("accuracy of the soup", "soup_accuracy", ""),
    ("accuracy of the soup over the hub", "soup_gain", "soup_gain_"),
    ("accuracy of the soup over the ensemble of local_de", "soup_over_local_de", "soup_over_local_de_"),
)
"""Of a point: what it is called, its column, and what the columns of its interval begin with."""

OF_ENSEMBLE_OVER_LOCAL_DE = ("nll_over_local_de", "over_local_de")
"""What says nothing of Local DE itself."""

REPLICATE = {
    "replicate": "replicate", "hub": "hub_accuracy", "member": "member_accuracy", "ensemble": "ensemble_accuracy",
    "NLL": "ensemble_nll", "worth": "worth", "soup": "soup_accuracy", "greedy soup": "greedy_soup_accuracy",
    "disagreement": "disagreement", "normalised": "normalised_disagreement", "L2 from hub": "l2_from_hub",
    "barrier, points": "barrier_error", "barrier, nats": "barrier_nll", "left after": "exit_epochs",
}  # fmt: skip
MEMBER = {
    "replicate": "replicate", "member": "member_index", "accuracy": "accuracy", "NLL": "nll",
    "highest rate": "max_lr", "epochs": "cycle_epochs", "training loss": "final_train_loss",
}  # fmt: skip


def worth_text(worth: float, or_more: bool) -> str:
    """`2.3`, or `at least 5.0` where there is no larger Local DE to measure it by; empty where that is not known."""
    return "" if np.isnan(worth) else f"{'at least ' if or_more else ''}{worth:.1f}"


def title(row: Row) -> str:
    return (
        f"{row['method']}, lr_ratio {row['lr_ratio']:g}, cycle_ratio {row['cycle_ratio']:g}, "
        f"{counted(row['n_members'], 'member')}, checkpoint {row['checkpoint']}"
    )


def figures_of(row: Row) -> Iterator[tuple[str, str, str]]:
    """Name, value with its interval and unit, and verdict of all that is known of a point."""
    for name, column, interval in FIGURES:
        value = row[column]
        itself = row["method"] == "local_de" and column in OF_ENSEMBLE_OVER_LOCAL_DE
        if np.isnan(value) or itself:
            continue
        shown_as = quantity(column)
        if column == "worth":
            members = worth_text(value, row["worth_or_more"])
            yield name, f"{members} members of local_de, by equal calibrated NLL", ""
            continue
        low, high, verdict, p_holm = (row[f"{interval}{of}"] if interval else np.nan for of in comparisons.OF_GAIN)
        text = shown_as.with_interval(value, low, high)
        yield name, f"{text} {shown_as.short_unit}", comparisons.verdict_words(verdict, p_holm)
    barrier = quantity(row["decided_by"])
    height = barrier.with_interval(row[row["decided_by"]], row["low"], row["high"])
    inside = f"{row['in_basin'] * row['replicates']:.0f} of {counted(row['replicates'], 'replicate')} in the basin"
    yield row["barrier_words"], f"{height} {barrier.short_unit}; {inside}", row["side"]
    yield "cost", f"{row['train_epochs']:g} epochs trained in all", ""


def hover(row: Row) -> str:
    """A few lines for the point in charts."""
    lines = [f"{name}: {text}{f' ({verdict})' if verdict else ''}" for name, text, verdict in figures_of(row)]
    wanted = [line for line in lines if line.startswith(("NLL of the ens", "NLL over", "worth", "accuracy of the ens",
                                                         "accuracy over", row["barrier_words"]))]  # fmt: skip
    return "<br>".join(charts.shown(line, 140) for line in (title(row), *wanted))


def of_points(results: Results, points: list[dict[Any, Any]]) -> Iterator[dict[str, Any]]:
    """What the page shows of each of these points (rows of `comparisons.summary`) when it is chosen."""
    cells = reading.judged(results).merge(reading.worth(results), on="cell_id")
    paths = _grouped(frames.paths(results, cells["cell_id"]))
    trainings = _grouped(frames.learning(results, cells))
    members = _grouped(_members(results, cells))
    by_point = dict(iter(cells.groupby(POINT)))
    for row in points:
        own = by_point[tuple(row[name] for name in POINT)].sort_values("replicate")
        yield {
            "title": title(row),
            "figures": [*figures_of(row)],
            "replicates": _table(own, REPLICATE),
            "members": _table(_of(members, own), MEMBER),
            "charts": [*charts.path_charts(_of(paths, own)), *charts.learning_charts(_of(trainings, own))],
        }


def _grouped(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    found: dict[str, pd.DataFrame] = {str(cell_id): of_cell for cell_id, of_cell in rows.groupby("cell_id")}
    return {"": rows.head(0), **found}


def _of(rows: Mapping[str, pd.DataFrame], cells: pd.DataFrame) -> pd.DataFrame:
    found = [rows[cell_id] for cell_id in cells["cell_id"] if cell_id in rows]
    return pd.concat(found, ignore_index=True) if found else rows[""]


def _members(results: Results, cells: pd.DataFrame) -> pd.DataFrame:
    """The members of these cells with their scores on test."""
    metric = results.stored.facts.data.metric
    known = results.members[["member_id", "max_lr", "cycle_epochs", "final_train_loss"]]
    scores = results.scores.query("split == 'test' and bn == 'own' and kind == 'member'")
    scores = scores.assign(accuracy=scores[metric])[["cell_id", "predictor_id", "accuracy", "nll"]]
    found = frames.members_of(cells).merge(known, on="member_id", how="left")
    return found.merge(scores.rename(columns={"predictor_id": "member_id"}), on=["cell_id", "member_id"], how="left")


def _table(rows: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, Any]:
    """Headings and rows of texts, without the columns that hold nothing."""
    there = {name: column for name, column in columns.items()
             if column in rows and rows[column].notna().any()}  # fmt: skip
    texts = [[_cell(column, row) for column in there.values()] for row in rows.to_dict("records")]
    return {"head": [*there], "rows": texts}


def _cell(column: str, row: Row) -> str:
    value = row[column]
    if column == "worth":
        return worth_text(value, row["worth_or_more"])
    if column in ("replicate", "member_index"):
        return "hub" if column == "member_index" and value == 0 else f"{value:g}"
    return "" if pd.isna(value) and "exit_" not in column else quantity(column).text(float(value))


def best_point(results: Results, points: list[dict[Any, Any]]) -> int:
    """Which of the points is shown first: the exploring one whose ensemble is best on validation, if there is one."""
    chosen = reading.best_explored(results)
    if chosen.empty:
        return 0
    return next(i for i, row in enumerate(points) if all(row[name] == chosen[name].iloc[0] for name in POINT))
