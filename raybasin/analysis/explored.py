"""What the cells of a folder tell of the map, be they of a grid or a search: the boundary as a line, the best point."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from raybasin.errors import UserError
from raybasin.search.best import BestSearch
from raybasin.search.boundary import BoundarySearch
from raybasin.sweep import methods

if TYPE_CHECKING:
    from raybasin.analysis.results import Results

WHOSE = ["method", "checkpoint", "n_members"]
LINE = ["cycle_ratio", "lr_ratio", "low", "high", "status"]
BEST = [
    "lr_ratio",
    "cycle_ratio",
    "score",
    "low",
    "high",
    "regret",
    "boundary",
    "boundary_low",
    "boundary_high",
    "lies",
]
OF = {"soup": "val_soup_accuracy", "ensemble": "val_ensemble_accuracy"}


def boundaries(results: Results) -> pd.DataFrame:
    """The line of each method, checkpoint and ensemble size at the cycle lengths that were measured: `WHOSE` and
    `LINE`, as `Results.boundaries` says. No rows where fewer than two rates were measured."""
    found = [
        whose(cells, line_of(results, cells, sorted(cells["cycle_ratio"].unique()))) for cells in explored(results)
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=[*WHOSE, *LINE])


TWO_ANSWERS = (
    "A point's own verdict uses that point's replicates alone; the boundary's interval uses all points of the map "
    "together, by a model in which barriers rise with the rate, and is the stronger answer to where the basin ends."
)
"""Why a point may be undecided that lies outside of the boundary's interval."""

SAME = 1 + 1e-9
"""Between two rates that are equal: the boundary is known in their logarithms."""


def sides(results: Results) -> pd.DataFrame:
    """The points of methods that explore, rows of `Results.barriers`, with `by_boundary`: `in` or `out` where the point
    lies outside of the boundary's interval at its length, else `undecided`."""
    points = results.barriers[results.barriers["method"].map(methods.explores).astype(bool)]
    ends = results.boundaries[[*WHOSE, "cycle_ratio", "low", "high"]]
    both = points.drop(columns=["low", "high"]).merge(ends, on=[*WHOSE, "cycle_ratio"], how="left")
    rates, low, high = (both[name].astype(float) for name in ("lr_ratio", "low", "high"))
    within = [rates <= low * SAME, rates >= high / SAME]
    return both.assign(by_boundary=np.select(within, ["in", "out"], "undecided"))


def in_words(line: pd.DataFrame) -> str:
    """Where the basin ends at each length, of rows of `boundaries`: `13.2 [9.5, 20.4] at cycle_ratio 1; ...`."""
    return "; ".join(f"{_end(row)} at cycle_ratio {row['cycle_ratio']:g}" for row in line.to_dict("records"))


def _end(row: Mapping[Any, Any]) -> str:
    """Of the basin at one cycle length."""
    if row["status"] in ("all_in", "all_out"):
        return "beyond the rates measured" if row["status"] == "all_in" else "below the rates measured"
    shown = f"[{row['low']:.3g}, {row['high']:.3g}]"
    return f"{row['lr_ratio']:.3g} {shown}" if row["status"] == "found" else f"undecided, {shown}"


def best_points(results: Results, of: str = "soup") -> pd.DataFrame:
    """The best point on validation of each method, checkpoint and ensemble size, by `BestSearch`'s model, and where it
    lies: see `Results.best_points`. Raises UserError for anything but a soup or an ensemble."""
    if of not in OF:
        raise UserError(f"of: must be {' or '.join(OF)}, not {of!r}")
    found = []
    for cells in explored(results):
        scored = cells[cells[OF[of]].notna()]
        ranges = _ranges(results, cells)
        if scored.empty or ranges is None:
            continue
        search = BestSearch(*ranges, tolerance=1.0)
        for cell in scored.to_dict("records"):
            search.tell(cell["lr_ratio"], cell["cycle_ratio"], cell[OF[of]])
        best = search.best()
        [line] = line_of(results, cells, [best.cycle_ratio]).to_dict("records")
        lies = "inside" if best.lr_ratio < line["low"] else "outside" if best.lr_ratio > line["high"] else "at the line"
        place = (line["lr_ratio"], line["low"], line["high"], lies)
        row = (best.lr_ratio, best.cycle_ratio, best.score, best.low, best.high, best.regret, *place)
        found.append(whose(cells, pd.DataFrame([row], columns=BEST)))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=[*WHOSE, *BEST])


def explored(results: Results) -> Iterator[pd.DataFrame]:
    """The cells of each method that explores, checkpoint and ensemble size."""
    names = results.cells["method"].str.split(" ").str[0]
    for _, cells in results.cells[names.isin([*methods.exploring()])].groupby(WHOSE):
        yield cells


def whose(cells: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """The same rows behind what they are of."""
    method, checkpoint, n_members = cells[WHOSE].iloc[0]
    return rows.assign(method=method, checkpoint=checkpoint, n_members=n_members)[[*WHOSE, *rows.columns]]


def line_of(results: Results, cells: pd.DataFrame, cycle_ratios: Iterable[float]) -> pd.DataFrame:
    """The line of cells of one method, checkpoint and size at these lengths: `LINE`; no rows where fewer than two rates
    were measured."""
    if (ranges := _ranges(results, cells)) is None:
        return pd.DataFrame(columns=LINE)
    known = BoundarySearch(*ranges, results.threshold)
    for cell in cells.to_dict("records"):
        known.tell(cell["lr_ratio"], cell["cycle_ratio"], *results.criterion.deciding(cell), cell["replicate"])
    return known.boundary(cycle_ratios)


def _ranges(results: Results, cells: pd.DataFrame) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Of rates and lengths: of the search, if there is one, and of the cells; None where all have the same rate."""
    found = []
    for name in ("lr_ratio", "cycle_ratio"):
        asked = getattr(results.stored.spec.search, name) or (math.inf, -math.inf)
        found.append((min(asked[0], cells[name].min()), max(asked[1], cells[name].max())))
    rates, cycles = found
    return None if rates[0] == rates[1] else (rates, cycles)
