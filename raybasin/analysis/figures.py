"""What stands behind the map: barriers against gains, diversity, paths, traces, sizes, corrupted images, reliability,
trainings.

Every function gives a matplotlib `Figure`; `drawing.save` writes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import cycle, product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from raybasin.analysis import drawing, frames
from raybasin.analysis import results as reading
from raybasin.analysis.drawing import INSIDE, NEUTRAL, OUTSIDE, handle, light_grid, plain, sweep_name
from raybasin.analysis.quantities import counted, quantity
from raybasin.analysis.results import Results
from raybasin.errors import NotMeasured
from raybasin.landscape import basin_exits
from raybasin.metrics.selection import POINT
from raybasin.sweep import methods
from raybasin.sweep.specs import IMAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

LARGE_LOSS = 10.0
"""In percentage points: beyond it a linear axis would hide the gains, and a symmetric logarithmic one is drawn."""

MEMBER_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B09500", "#8A8A8A")
"""Of members by their number, hub first. All are seen on light and dark pages."""
_PATH_MARKS = ("o", "s", "^", "D", "X", "v", "*", "P")
_MOST_PATHS_NAMED = 12


def style(label: str) -> tuple[str, str, int]:
    """Marker and colour of a method or a variant of it, and how many steps to the right of its true position it is
    drawn, so that marks do not hide each other. A method that is not known any more has a grey cross."""
    known, name = list(methods.METHODS), label.split(" ")[0]
    return (*methods.METHODS[name].style, known.index(name)) if name in known else ("X", NEUTRAL, len(known))


Pair = tuple[int, int]


def path_styles(pairs: Iterable[Pair]) -> dict[Pair, tuple[str, str]]:
    """Marker and colour of each path, by the numbers of the members at its ends: no two are alike. One from the hub has
    the colour of the member at its end."""
    known: dict[Pair, tuple[str, str]] = {}
    for number, pair in enumerate(sorted(set(pairs)), 1):
        rounds, colour = divmod(number, len(MEMBER_COLOURS))
        known[pair] = _PATH_MARKS[rounds % len(_PATH_MARKS)], MEMBER_COLOURS[colour]
    return known


def _threshold_handle(results: Results) -> Line2D:
    limit = quantity(results.criterion.barrier).limit(results.threshold)
    return handle(f"threshold, {limit}", NEUTRAL, linestyle="--")


@drawing.default_settings()
def trade_off_figure(results: Results) -> Figure:
    """What leaving the basin costs and brings: gain of the ensemble and of the soup by the barrier that decides."""
    cells, barrier = frames.trade_off(results), quantity(results.criterion.barrier)
    threshold = barrier.factor * results.threshold
    figure = drawing.new_figure(9.5, 4.4, f"{sweep_name(results)}: what leaving the basin brings")
    for axis, column in zip(figure.subplots(1, 2), ("ensemble_gain", "soup_gain"), strict=True):
        title, gain = quantity(column).title, 100 * cells[column]
        if gain.isna().all():
            axis.text(0.5, 0.5, f"no {title} was computed", ha="center", transform=axis.transAxes)
            axis.set_axis_off()
            continue
        _draw_marks(axis, cells, barrier.factor * cells[results.criterion.barrier], gain)
        axis.axvline(threshold, color=NEUTRAL, linestyle="--", linewidth=1.2)
        axis.axhline(0, color=NEUTRAL, linewidth=0.8)
        drawing.symmetric_log(axis, "x", threshold / 2)
        if gain.min() < -LARGE_LOSS:
            drawing.symmetric_log(axis, "y")
        axis.set_xlabel(f"{results.barrier_words}, hub to member ({barrier.short_unit})")
        axis.set_ylabel(f"{title} over the hub (points)")
    drawing.legend_below(figure, [*_mark_handles(cells), _threshold_handle(results)])
    return figure


@drawing.default_settings()
def diversity_figure(results: Results) -> Figure:
    """How good members are and what their ensemble gains, against how much they differ: told apart by method, by
    learning rate and by the side of the boundary."""
    cells = frames.diversity(results)
    figure = drawing.new_figure(9.5, 4.4, f"{sweep_name(results)}: members' accuracy and diversity, and what it brings")
    shades = rate_colours(cells["lr_ratio"])
    for axis, column in zip(figure.subplots(1, 2), ("member_accuracy", "ensemble_gain"), strict=True):
        _draw_marks(axis, cells, cells["normalised_disagreement"], 100 * cells[column], shades)
        axis.set_xlabel("normalised disagreement of members")
    accuracy, gain = figure.axes
    accuracy.set_ylabel(f"mean member {reading.metric_name(results)} (%, test)")
    gain.set_ylabel("ensemble gain over the hub (points)")
    gain.axhline(0, color=NEUTRAL, linewidth=0.8)
    drawing.legend_below(figure, [*_mark_handles(cells, shades), *_rate_handles(shades)])
    return figure


def rate_colours(rates: Iterable[float]) -> dict[float, str]:
    """A colour for each `lr_ratio`, from dark to light."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    ascending = sorted(set(rates))
    shades = colormaps["viridis"](np.linspace(0.0, 0.88, len(ascending)))
    return {rate: to_hex(shade) for rate, shade in zip(ascending, shades, strict=True)}


def _rate_handles(shades: Mapping[float, str]) -> list[Line2D]:
    return [handle(f"lr_ratio {rate:g}", colour, marker="s", markersize=8) for rate, colour in shades.items()]


def _draw_marks(
    axis: Axes, cells: pd.DataFrame, x: pd.Series[float], y: pd.Series[float], shades: Mapping[float, str] | None = None
) -> None:
    """A mark for each cell: its marker tells the method; filled is in the basin, hollow out of it. Its colour tells the
    side, too, or with `shades` the learning rate."""
    for (method, in_basin, rate), group in cells.groupby(["method", "in_basin", "lr_ratio"]):
        colour = shades[float(str(rate))] if shades else INSIDE if in_basin else OUTSIDE
        axis.plot(
            x[group.index], y[group.index], style(str(method))[0], linestyle="none", markersize=7,
            markerfacecolor=colour if in_basin else "none", markeredgecolor=colour, markeredgewidth=1.4, alpha=0.85,
        )  # fmt: skip
    light_grid(axis)
    axis.set_axisbelow(True)


def _mark_handles(cells: pd.DataFrame, shades: Mapping[float, str] | None = None) -> list[Line2D]:
    inside, outside = (NEUTRAL, NEUTRAL) if shades else (INSIDE, OUTSIDE)
    return [
        *(handle(name, NEUTRAL, marker=style(name)[0]) for name in reading.in_order(set(cells["method"]))),
        handle("in the basin", inside, marker="o"),
        handle("out of the basin", outside, marker="o", markerfacecolor="none"),
    ]


@drawing.default_settings()
def paths_figure(results: Results, cell_id: str, split: str | None = None) -> Figure:
    """NLL and error rate on the straight lines between the networks of a cell, on the images of `split`: by default
    those that decide (`basin.split`).

    The dotted line joins the ends of a path: a barrier is a height above it. A triangle at the upper edge is an
    infinite loss.

    Raises:
        UserError: if there is no such cell, or none of its paths was evaluated on `split`.
    """
    cell = reading.cell_of(results, cell_id)
    split = split or results.stored.spec.basin.split
    paths = frames.paths(results, [cell_id], split)
    if paths.empty:
        raise NotMeasured(f"{results.folder.root}: cell {cell_id} has no paths on split {split}")
    figure = drawing.new_figure(9.5, 6.2, f"{drawing.described(cell)}\npaths on {IMAGES.get(split, split)}")
    kinds = [kind for kind in ("hub-member", "member-member") if kind in set(paths["kind"])]
    axes = figure.subplots(2, len(kinds), sharex=True, sharey="row", squeeze=False)
    styles = path_styles(zip(paths["start"], paths["end"], strict=True))
    for column, kind in enumerate(kinds):
        of_kind = paths[paths["kind"] == kind]
        _draw_paths(axes[0, column], of_kind, "nll", 1, styles)
        _draw_paths(axes[1, column], of_kind, "error", 100, styles)
        axes[0, column].set_title(f"{kind}: {counted(of_kind['path_id'].nunique(), 'path')}", fontsize=10)
        axes[1, column].set_xlabel("position t on the path")
    axes[0, 0].set_ylabel("NLL (nats)")
    axes[1, 0].set_ylabel("error rate (%)")
    return figure


def _draw_paths(
    axis: Axes, paths: pd.DataFrame, column: str, factor: float, styles: Mapping[Pair, tuple[str, str]]
) -> None:
    by_ends = paths.sort_values("t").groupby(["start", "end"])
    for (start, end), path in by_ends:
        marker, colour = styles[int(str(start)), int(str(end))]
        t, height = path["t"].to_numpy(), factor * path[column].to_numpy()
        axis.plot(t, height, marker=marker, markersize=3.5, color=colour, label=f"{start or 'hub'} to {end}")
        axis.plot(t[[0, -1]], height[[0, -1]], color=colour, linestyle=":", linewidth=1)
        for beyond in t[np.isinf(height)]:
            axis.plot(beyond, 0.98, "^", color=colour, transform=axis.get_xaxis_transform(), gid="infinite")
    light_grid(axis)
    if column == "nll" and len(by_ends) <= _MOST_PATHS_NAMED:
        if np.isinf(paths[column]).any():
            axis.plot([], [], "^", color=NEUTRAL, label="infinite")
        axis.legend(title="member", title_fontsize=8, fontsize=8, frameon=False)


@drawing.default_settings()
def trace_figure(results: Results) -> Figure:
    """When cycles left the basin: the barrier to the weights inside a cycle, by epochs since the hub.

    Left on paths from the hub, right on paths from the checkpoint with the hub's head; a row for each method and length
    of cycle. A line is the mean over runs and replicates at one learning rate, its band their range; a ring marks where
    the first run of a cell left for good.

    Raises:
        UserError: if the sweep did not ask for traces.
    """
    barrier = quantity(results.criterion.barrier)
    moments, checkpoints = frames.traces(results), reading.checkpoints_of(results)
    moments = moments.assign(barrier=barrier.factor * moments["barrier"])
    by_row = dict(iter(moments.groupby(["checkpoint", "method", "cycle_ratio"])))
    in_order = product(checkpoints, reading.in_order(set(moments["method"])), sorted(set(moments["cycle_ratio"])))
    rows = [row for row in in_order if row in by_row]
    figure = drawing.new_figure(10.0, 2.5 * len(rows) + 1.5, f"{sweep_name(results)}: when cycles leave the basin")
    axes = figure.subplots(len(rows), 2, sharey=True, sharex="row", squeeze=False)
    shades = rate_colours(moments["lr_ratio"])
    styles = {rate: (shade, "osD^vPX*"[i % 8]) for i, (rate, shade) in enumerate(shades.items())}
    for pair, row in zip(axes, rows, strict=True):
        checkpoint, method, cycle_ratio = row
        of = f" of {plain(checkpoint, 36)}" if len(checkpoints) > 1 else ""
        for axis, origin in zip(pair, (basin_exits.HUB, basin_exits.CHECKPOINT), strict=True):
            of_origin = by_row[row][by_row[row]["origin"] == origin]
            _draw_traces(axis, of_origin, styles, barrier.factor * results.threshold)
            axis.set_title(f"{method}{of}, cycle_ratio {cycle_ratio:g}: from the {origin}", fontsize=9, loc="left")
        pair[0].set_ylabel(f"{results.traced_barrier_words}\n({barrier.unit})", fontsize=9)
    for axis in axes.flat:  # panels share their axis, so that its ticks follow from all of them
        drawing.symmetric_log(axis, "y", barrier.factor * results.threshold / 2)
        axis.set_ylim(bottom=0)
    for axis in axes[-1]:
        axis.set_xlabel("epochs since the hub", fontsize=9)
    handles = [handle(f"lr_ratio {rate:g}", colour, marker=marker, linestyle="-", markersize=4)
               for rate, (colour, marker) in styles.items()]  # fmt: skip
    ring = handle("a cell has left", "black", marker="o", markersize=10, markerfacecolor="none")
    drawing.legend_below(figure, [*handles, ring, _threshold_handle(results)])
    return figure


def _draw_traces(axis: Axes, moments: pd.DataFrame, styles: dict[float, tuple[Any, str]], threshold: float) -> None:
    """Barriers and threshold are in the unit of the figure."""
    from matplotlib.ticker import MaxNLocator

    for rate, (colour, marker) in styles.items():
        of_rate = moments[moments["lr_ratio"] == rate]
        barrier = of_rate.groupby("epochs")["barrier"]
        mean = barrier.mean()
        axis.fill_between(mean.index, barrier.min(), barrier.max(), color=colour, alpha=0.18, linewidth=0)
        axis.plot(mean.index, mean, marker=marker, markersize=4, color=colour, linewidth=1.4)
        rings = of_rate[of_rate["left"]]
        axis.plot(rings["epochs"], rings["barrier"], "o", ms=10, mfc="none", mew=1.6, color=colour, gid="left")
    axis.axhline(threshold, color=NEUTRAL, linestyle="--", linewidth=1.2)
    # Times lie closer together where rates are high; drawn by their square root they are about equally far apart.
    axis.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.xaxis.set_major_formatter("{x:g}")
    light_grid(axis)
    axis.tick_params(labelsize=8)


# Ensembles and soups: of each method the point that is best on validation


SCORES = {"accuracy": ("accuracy", 100, "%"), "nll": ("NLL", 1, "nats")}
"""Of `frames.sizes` and `frames.shifts`: what they are called, and from what is stored to the unit."""


def score_name(results: Results, kind: str, score: str) -> str:
    """`ensemble accuracy (%, test)`, in the metric of the data set."""
    name, _, unit = SCORES[score]
    metric = reading.metric_name(results) if score == "accuracy" else name
    return f"{kind.replace('_', ' ')} {metric} ({unit}, test)"


def of_point(point: pd.Series[Any]) -> str:
    """Which method, and where on the map; nothing more of a method that does not explore."""
    at = f" lr {point['lr_ratio']:g}, cycle {point['cycle_ratio']:g}"
    return f"{point['method']}{at if methods.explores(point['method']) else ''}"


def _draw_curve(axis: Axes, rows: pd.DataFrame, over: str, factor: float, step: float, **options: Any) -> None:
    """A curve of a method's ensembles (solid) or soups (dashed), from rows of `frames.sizes` or `frames.shifts`. Bars
    are the 95 % interval where it is known, else the range of the replicates."""
    marker, colour, steps = style(rows["method"].iloc[0])
    solid = rows["kind"].iloc[0] == "ensemble"
    mean = factor * rows["mean"].to_numpy()
    bars = [factor * rows[name].to_numpy() for name in interval_of(rows)]
    axis.errorbar(
        rows[over].to_numpy(dtype=float) + step * steps, mean, yerr=np.maximum(0, [mean - bars[0], bars[1] - mean]),
        marker=marker, color=colour, linestyle="-" if solid else "--", markerfacecolor=colour if solid else "white",
        elinewidth=0.9, **options,
    )  # fmt: skip
    light_grid(axis)


def interval_of(rows: pd.DataFrame) -> tuple[str, str]:
    """The columns of `frames.sizes` or `frames.shifts` between which a bar reaches."""
    known = "low" in rows and rows["low"].notna().all()
    return ("low", "high") if known else ("lowest", "highest")


def shown_range(rows: pd.DataFrame, largest_loss: float = math.inf) -> tuple[float, float]:
    """Ends of an axis, in the unit of the rows: it holds all means and replicates. Of intervals it holds as much again:
    those of two replicates may be so wide that the means would lie on one line."""
    low, high = float(rows["lowest"].min()), float(rows["highest"].max())
    if largest_loss < math.inf:
        low = max(low, float(rows.loc[rows["size"] == rows["size"].min(), "lowest"].min()) - largest_loss)
    if interval_of(rows)[0] == "lowest":
        spare = 0.06 * (high - low) + 1e-4
        return low - spare, high + spare
    spare = high - low + 1e-3
    lowest, highest = float(rows["low"].min()), float(rows["high"].max())
    return max(low - spare, lowest - spare / 8), min(high + spare, highest + spare / 8)


@drawing.default_settings()
def sizes_figure(results: Results) -> Figure:
    """Test accuracy and NLL of the ensemble of the first k members and, below, accuracy of the uniform soup of them, a
    panel per checkpoint.

    Local DE beside the point of each method that is best on validation: by its ensemble above, by its soup below. The
    axis of soups ends a large loss below the worst hub; what a curve falls to stands in the legend.
    """
    found, checkpoints = frames.sizes(results), reading.checkpoints_of(results)
    panels = [("ensemble", "accuracy"), ("ensemble", "nll"), ("uniform_soup", "accuracy")]
    of_panel = {panel: found[(found["kind"] == panel[0]) & (found["score"] == panel[1])] for panel in panels}
    drawn = {panel: rows for panel, rows in of_panel.items() if (rows["size"] > 1).any()}
    if not drawn:
        raise NotMeasured(f"{results.folder.root}: there are no scores by size on test")
    width, height = max(6.4, 4.6 * len(checkpoints)), 1.3 + 2.5 * len(drawn)
    figure = drawing.new_figure(width, height, f"{sweep_name(results)}: what a further member brings")
    axes = figure.subplots(len(drawn), len(checkpoints), sharex=True, sharey="row", squeeze=False)
    for row, ((kind, score), rows) in zip(axes, drawn.items(), strict=True):
        for axis, checkpoint in zip(row, checkpoints, strict=True):
            _draw_sizes(axis, rows[rows["checkpoint"] == checkpoint], score)
        worst = LARGE_LOSS / 100 if kind == "uniform_soup" else math.inf
        row[0].set_ylim(*(SCORES[score][1] * end for end in shown_range(rows, worst)))
        bars = "95 % interval" if interval_of(rows)[0] == "low" else "range of the replicates"
        row[0].set_ylabel(f"{score_name(results, kind, score)}\nmean and {bars}")
    for axis, checkpoint in zip(axes[0], checkpoints, strict=True):
        axis.set_title(f"checkpoint {plain(checkpoint, 36)}", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("members, hub included")
    drawing.legend_below(figure, drawing.handles_of(axes.flat), width / 3.2)
    return figure


def _draw_sizes(axis: Axes, rows: pd.DataFrame, score: str) -> None:
    factor = SCORES[score][1]
    for _, point in rows.groupby(POINT, sort=False):
        first = point.iloc[0]
        mean = factor * point["mean"]
        loss = score == "accuracy" and mean.min() < mean.iloc[0] - LARGE_LOSS
        falls = f", falls to {mean.min():.1f} %" if loss else ""
        kind = ", soup" if first["kind"] == "uniform_soup" else ""
        label = f"{of_point(first)}{kind}, n={point['replicates'].max()}{falls}"
        _draw_curve(axis, point, "size", factor, step=0.02, capsize=2.5, label=label)
    drawing.whole_numbers(axis)


@drawing.default_settings()
def robustness_figure(results: Results) -> Figure:
    """Test accuracy by severity, mean over corruptions: a panel per checkpoint and shift.

    Of each method the point whose ensemble is best on validation, Local DE beside them. Ensembles are drawn solid,
    their uniform soups dashed. Severity 0 is the clean test split.

    Raises:
        UserError: if there is no shift with corruptions, or it has no scores.
    """
    found = frames.shifts(results).query("score == 'accuracy'")
    checkpoints, shifts = reading.checkpoints_of(results), list(dict.fromkeys(found["shift"]))
    width, height = max(6.4, 4.4 * len(shifts)), 0.8 + 3.8 * len(checkpoints)
    figure = drawing.new_figure(width, height, f"{sweep_name(results)}: accuracy on corrupted images")
    axes = figure.subplots(len(checkpoints), len(shifts), sharex=True, sharey=True, squeeze=False)
    for (checkpoint, shift), axis in zip(product(checkpoints, shifts), axes.flat, strict=True):
        shown = found[(found["checkpoint"] == checkpoint) & (found["shift"] == shift)]
        for _, curve in shown.groupby([*POINT, "kind"], sort=False):
            first = curve.iloc[0]
            label = f"{of_point(first)}, {'soup' if first['kind'] == 'uniform_soup' else 'ensemble'}"
            label += f", n={curve['replicates'].max()}"
            _draw_curve(axis, curve, "severity", 100, step=0.03, markersize=5, capsize=2, label=label)
        n_corruptions = shown.loc[shown["severity"] > 0, "corruptions"].max()
        several = f"\ncheckpoint {plain(checkpoint, 36)}" if len(checkpoints) > 1 else ""
        axis.set_title(f"{plain(shift)}: mean over {counted(n_corruptions, 'corruption')}{several}", fontsize=9)
        drawing.whole_numbers(axis)
    for axis in axes[-1]:
        axis.set_xlabel("severity (0: the clean test split)")
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy (%)\nmean and range of the replicates")
    drawing.legend_below(figure, drawing.handles_of(axes.flat), width / 3.2)
    return figure


BINS_SHOWN = f"bins of {frames.FEWEST_IN_BIN} predictions or more; larger marks: more of them"


def mark_sizes(images: pd.Series[int]) -> pd.Series[float]:
    """Diameters in points of the marks of `frames.reliability`, by how many predictions they stand for: a hundredfold
    is 5 points more."""
    return 1 + 2.5 * images.map(math.log10)


@drawing.default_settings()
def reliability_figure(results: Results) -> Figure:
    """How often predictions are right by how sure they are, on test: the hub and the ensemble of each method's best
    point on validation, a panel per checkpoint. On the diagonal the two are equal; below it networks are too sure.

    Raises:
        UserError: if predictions on test were not stored.
    """
    known, checkpoints = frames.shown_bins(frames.reliability(results)), reading.checkpoints_of(results)
    figure = drawing.new_figure(max(5.2, 4.4 * len(checkpoints)), 5.4, f"{sweep_name(results)}: reliability")
    axes = figure.subplots(1, len(checkpoints), sharex=True, sharey=True, squeeze=False)[0]
    for axis, checkpoint in zip(axes, checkpoints, strict=True):
        axis.plot([0, 1], [0, 1], color=NEUTRAL, linewidth=0.8, linestyle=":")
        for _, curve in known[known["checkpoint"] == checkpoint].groupby(POINT, sort=False):
            marker, colour, _ = style(curve["method"].iloc[0])
            axis.plot(curve["confidence"], curve["accuracy"], color=colour, linewidth=1.2)
            sizes = mark_sizes(curve["images"]) ** 2
            axis.scatter(curve["confidence"], curve["accuracy"], sizes, color=colour, marker=marker, gid="bins")
            axis.plot([], [], color=colour, marker=marker, markersize=4.5, label=of_point(curve.iloc[0]))
        axis.set_aspect("equal")
        axis.set_axisbelow(True)
        axis.set_xlabel(f"confidence\n({BINS_SHOWN})".replace("; ", ";\n"))
        light_grid(axis)
        if len(checkpoints) > 1:
            axis.set_title(f"checkpoint {plain(checkpoint, 30)}", fontsize=9)
    axes[0].set_ylabel("accuracy (test)")
    drawing.legend_below(figure, drawing.handles_of(axes), figure.get_figwidth() / 2.6)
    return figure


@drawing.default_settings()
def learning_figure(results: Results, cell_id: str) -> Figure:
    """Training loss and error rate of a cell's members by epoch.

    Raises:
        UserError: if there is no such cell, or its epochs are not there.
    """
    cell = reading.cell_of(results, cell_id)
    epochs = frames.learning(results, results.cells[results.cells["cell_id"] == cell_id])
    if epochs.empty:
        raise NotMeasured(f"{results.folder.root}: cell {cell_id} has no epochs")
    figure = drawing.new_figure(9.5, 3.8, drawing.described(cell))
    axes = figure.subplots(1, 2)
    for (index, curve), colour in zip(epochs.groupby("member_index"), cycle(MEMBER_COLOURS), strict=False):
        label = f"member {index!s}" if index else "hub"
        for axis, (column, factor) in zip(axes, (("train_loss", 1), ("train_error", 100)), strict=True):
            axis.plot(curve["epoch"] + 1, factor * curve[column], marker=".", color=colour, label=label)
    for axis, title in zip(axes, ("training loss (nats)", "training error rate (%)"), strict=True):
        axis.set_xlabel("epochs")
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
        drawing.whole_numbers(axis)
        light_grid(axis)
    drawing.legend_below(figure, axes[0].get_legend_handles_labels()[0], 7)
    return figure
