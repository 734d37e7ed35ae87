"""What stands behind the map: barriers against gains, diversity, paths, traces, planes, sizes, corrupted images.

Every function gives a matplotlib `Figure`; `drawing.save` writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle, pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from raybasin.analysis import drawing
from raybasin.analysis import results as reading
from raybasin.analysis.drawing import INSIDE, NEUTRAL, OUTSIDE, handle, light_grid, plain, sweep_name
from raybasin.analysis.quantities import counted, quantity
from raybasin.analysis.results import Results
from raybasin.errors import UserError
from raybasin.landscape import basin_exits
from raybasin.metrics import selection
from raybasin.sweep import methods
from raybasin.sweep.criterion import Criterion

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Float64Array = npt.NDArray[np.float64]

LARGE_LOSS = 10.0
"""In percentage points: beyond it a linear axis would hide the gains, and a symmetric logarithmic one is drawn."""

_PATH_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#B09500")
_MOST_PATHS_NAMED = 12
_LEGEND_INSIDE = 4
"""Methods whose names fit into a panel without hiding what it shows."""


def _style(label: str) -> tuple[str, str, int]:
    """Marker and colour of a method or a variant of it, and how many steps to the right of its true position it is
    drawn, so that marks do not hide each other. A method that is not known any more has a grey cross."""
    known, name = list(methods.METHODS), label.split(" ")[0]
    return (*methods.METHODS[name].style, known.index(name)) if name in known else ("X", NEUTRAL, len(known))


def _one_size(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of the most frequent ensemble size: sizes are not mixed in one figure."""
    return cells[cells["n_members"] == reading.main_size(cells)]


def _symmetric_log(axis: Axes, which: str, linear_up_to: float = 1.0) -> None:
    """Makes an axis (`x` or `y`) linear up to a value and logarithmic beyond."""
    (axis.set_xscale if which == "x" else axis.set_yscale)("symlog", linthresh=linear_up_to, linscale=0.6)
    (axis.xaxis if which == "x" else axis.yaxis).set_major_formatter("{x:g}")


def _threshold_handle(results: Results) -> Line2D:
    limit = quantity(results.criterion.barrier).limit(results.threshold)
    return handle(f"threshold, {limit}", NEUTRAL, linestyle="--")


@drawing.default_settings()
def trade_off_figure(results: Results) -> Figure:
    """What leaving the basin costs and brings: gain of the ensemble and of the soup by the barrier that decides."""
    cells, barrier = _one_size(reading.gains(reading.judged(results))), quantity(results.criterion.barrier)
    threshold = barrier.factor * results.threshold
    figure = drawing.new_figure(9.5, 4.4, f"{sweep_name(results)}: what leaving the basin brings")
    for axis, column in zip(figure.subplots(1, 2), ("ensemble_gain", "soup_gain"), strict=True):
        title, gain = quantity(column).title, 100 * cells[column]
        if gain.isna().all():
            axis.text(0.5, 0.5, f"no {title} was computed", ha="center", transform=axis.transAxes)
            axis.set_axis_off()
            continue
        _symmetric_log(axis, "x", threshold / 2)
        if gain.min() < -LARGE_LOSS:
            _symmetric_log(axis, "y")
        _draw_marks(axis, cells, barrier.factor * cells[results.criterion.barrier], gain)
        axis.axvline(threshold, color=NEUTRAL, linestyle="--", linewidth=1.2)
        axis.axhline(0, color=NEUTRAL, linewidth=0.8)
        axis.set_xlabel(f"{results.criterion.words}, hub to member ({barrier.unit})")
        axis.set_ylabel(f"{title} over the hub (percentage points)")
    drawing.legend_below(figure, [*_mark_handles(cells), _threshold_handle(results)])
    return figure


@drawing.default_settings()
def diversity_figure(results: Results) -> Figure:
    """Accuracy of the members against how much they differ, told apart by the side of the boundary."""
    cells = _one_size(reading.judged(results))
    figure = drawing.new_figure(6.4, 4.4, f"{sweep_name(results)}: members' accuracy and diversity")
    axis = figure.subplots()
    _draw_marks(axis, cells, cells["normalised_disagreement"], 100 * cells["member_accuracy"])
    axis.set_xlabel("normalised disagreement (mean over pairs / mean member error)")
    axis.set_ylabel(f"mean member {reading.metric_name(results)} (%, test)")
    drawing.legend_below(figure, _mark_handles(cells))
    return figure


def _draw_marks(axis: Axes, cells: pd.DataFrame, x: pd.Series[float], y: pd.Series[float]) -> None:
    """A mark for each cell: its marker tells the method; filled is in the basin, hollow out of it."""
    for (method, in_basin), group in cells.groupby(["method", "in_basin"]):
        colour = INSIDE if in_basin else OUTSIDE
        axis.plot(
            x[group.index], y[group.index], _style(str(method))[0], linestyle="none", markersize=7,
            markerfacecolor=colour if in_basin else "none", markeredgecolor=colour, markeredgewidth=1.4, alpha=0.85,
        )  # fmt: skip
    light_grid(axis)
    axis.set_axisbelow(True)


def _mark_handles(cells: pd.DataFrame) -> list[Line2D]:
    return [
        *(handle(name, NEUTRAL, marker=_style(name)[0]) for name in reading.in_order(set(cells["method"]))),
        handle("in the basin", INSIDE, marker="o"),
        handle("out of the basin", OUTSIDE, marker="o", markerfacecolor="none"),
    ]


@drawing.default_settings()
def paths_figure(results: Results, cell_id: str, split: str = "val") -> Figure:
    """NLL and error rate on the straight lines between the networks of a cell.

    The dotted line joins the ends of a path: a barrier is a height above it. A triangle at the upper edge is an
    infinite loss.

    Raises:
        UserError: if there is no such cell, or none of its paths was evaluated on `split`.
    """
    cell = reading.cell_of(results, cell_id)
    paths = results.paths
    paths = paths[(paths["cell_id"] == cell_id) & (paths["split"] == split)]
    if paths.empty:
        raise UserError(f"{results.folder.root}: cell {cell_id} has no paths on split {split}")
    index_of = {member_id: index for index, member_id in enumerate(cell["member_ids"])}
    paths = paths.assign(start=paths["start_id"].map(index_of), end=paths["end_id"].map(index_of))
    figure = drawing.new_figure(9.5, 6.2, f"{_described(cell)} ({split})")
    kinds = [kind for kind in ("hub-member", "member-member") if kind in set(paths["kind"])]
    axes = figure.subplots(2, len(kinds), sharex=True, sharey="row", squeeze=False)
    for column, kind in enumerate(kinds):
        of_kind = paths[paths["kind"] == kind]
        _draw_paths(axes[0, column], of_kind, "nll", 1)
        _draw_paths(axes[1, column], of_kind, "error", 100)
        axes[0, column].set_title(f"{kind}: {counted(of_kind['path_id'].nunique(), 'path')}", fontsize=10)
        axes[1, column].set_xlabel("position t on the path")
    axes[0, 0].set_ylabel("NLL (nats)")
    axes[1, 0].set_ylabel("error rate (%)")
    return figure


def _described(cell: pd.Series[Any]) -> str:
    side = "in" if cell["in_basin"] else "out of"
    return (
        f"{cell['method']}, lr_ratio {cell['lr_ratio']:g}, cycle_ratio {cell['cycle_ratio']:g}, "
        f"replicate {cell['replicate']}: {side} the basin"
    )


def _draw_paths(axis: Axes, paths: pd.DataFrame, column: str, factor: float) -> None:
    by_ends = paths.sort_values("t").groupby(["start", "end"])
    for ((start, end), path), colour in zip(by_ends, cycle(_PATH_COLOURS), strict=False):
        t, height = path["t"].to_numpy(), factor * path[column].to_numpy()
        axis.plot(t, height, marker=".", color=colour, label=f"{start} to {end}")
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
    from matplotlib import colormaps

    moments, checkpoints = _moments(results), reading.checkpoints_of(results)
    barrier = quantity(results.criterion.barrier)
    by_row = dict(iter(moments.groupby(["checkpoint", "method", "cycle_ratio"])))
    in_order = product(checkpoints, reading.in_order(set(moments["method"])), sorted(set(moments["cycle_ratio"])))
    rows = [row for row in in_order if row in by_row]
    figure = drawing.new_figure(10.0, 2.5 * len(rows) + 1.5, f"{sweep_name(results)}: when cycles leave the basin")
    axes = figure.subplots(len(rows), 2, sharey=True, sharex="row", squeeze=False)
    rates = sorted(set(moments["lr_ratio"]))
    shades = colormaps["viridis"](np.linspace(0.0, 0.88, len(rates)))  # from dark to light
    styles = {rate: (shades[i], "osD^vPX*"[i % 8]) for i, rate in enumerate(rates)}
    for pair, row in zip(axes, rows, strict=True):
        checkpoint, method, cycle_ratio = row
        of = f" of {plain(checkpoint, 36)}" if len(checkpoints) > 1 else ""
        for axis, origin in zip(pair, (basin_exits.HUB, basin_exits.CHECKPOINT), strict=True):
            of_origin = by_row[row][by_row[row]["origin"] == origin]
            _draw_traces(axis, of_origin, styles, barrier.factor * results.threshold)
            axis.set_title(f"{method}{of}, cycle_ratio {cycle_ratio:g}: from the {origin}", fontsize=9, loc="left")
        pair[0].set_ylabel(f"{results.criterion.words}\n({barrier.unit})", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("epochs since the hub", fontsize=9)
    handles = [handle(f"lr_ratio {rate:g}", colour, marker=marker, linestyle="-", markersize=4)
               for rate, (colour, marker) in styles.items()]  # fmt: skip
    ring = handle("a cell has left", "black", marker="o", markersize=10, markerfacecolor="none")
    drawing.legend_below(figure, [*handles, ring, _threshold_handle(results)])
    return figure


def _moments(results: Results) -> pd.DataFrame:
    """Every path of every trace with its cell's coordinates; `left` marks the earliest exit of a cell, `barrier` is in
    the unit of the figure. The hub has no barrier to itself."""
    cells, criterion = reading.committed(results).set_index("cell_id"), results.criterion
    factor = quantity(criterion.barrier).factor
    points = results.traces[results.traces["cell_id"].isin(cells.index)]
    if points.empty:
        raise UserError(f"{results.folder.root}: no cell was traced; put `trace: true` into basin of the sweep file")
    found = []
    for cell_id, of_cell in points.groupby("cell_id"):
        traced = basin_exits.traced_steps([{str(k): v for k, v in row.items()} for row in of_cell.to_dict("records")])
        exits = basin_exits.first_exits(traced, criterion)
        hub = replace(basin_exits.hub_of(traced), origin=basin_exits.HUB, barrier_error=0.0, barrier_nll=0.0)
        found += [
            {"cell_id": cell_id, "origin": step.origin, "epochs": step.epochs_from_hub,
             "barrier": factor * getattr(step, criterion.barrier), "left": step == exits[step.origin]}
            for step in (hub, *traced)
        ]  # fmt: skip
    columns = ["checkpoint", "method", "lr_ratio", "cycle_ratio", "replicate"]
    return pd.DataFrame(found).join(cells[columns], on="cell_id")


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
    _symmetric_log(axis, "y", threshold / 2)
    axis.set_ylim(bottom=0)
    # Times lie closer together where rates are high; drawn by their square root they are about equally far apart.
    axis.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.xaxis.set_major_formatter("{x:g}")
    light_grid(axis)
    axis.tick_params(labelsize=8)


PLANE_LEVELS = (0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 100)
"""Contours of an error rate in percent: closer together where networks are good."""


@drawing.default_settings()
def plane_figure(results: Results, plane: pd.DataFrame, value: str = "error") -> Figure:
    """The plane through three members, contours of error rate or NLL, the members at their true coordinates.

    Both axes are distances in weight space, in equal units. In a plane of what decides (`basin.by`) the white line is
    `basin.threshold` above the first member.

    Args:
        results: what `raybasin.open` gives.
        plane: the rows of one plane, as `planes.points_of` gives them.
        value: `error` or `nll`.
    """
    from matplotlib.colors import BoundaryNorm

    cell = reading.cell_of(results, plane["cell_id"].iloc[0])
    factor, name, unit, coarse = (100, "error rate", "%", 1.0) if value == "error" else (1, "NLL", "nats", 0.1)
    grid = plane.dropna(subset=["row"])
    height_YX = factor * grid.pivot_table(value, "row", "column", dropna=False).to_numpy()
    x_X, y_Y = (np.sort(grid[axis].unique()) for axis in ("x", "y"))
    ratio = np.ptp(y_Y) / np.ptp(x_X)
    split = {"val": "validation", "train": "training"}[plane["split"].iloc[0]]
    figure = drawing.new_figure(
        float(np.clip(4.6 / ratio, 5.0, 7.0)) + 1.6, float(np.clip(6.2 * ratio, 2.6, 5.2)) + 1.3,
        f"{sweep_name(results)}: plane through three members, {name} on {split} images\n{_described(cell)}",
    )  # fmt: skip
    axis = figure.subplots()
    levels = _plane_levels(height_YX, factor / plane["images"].iloc[0], coarse)
    every_band_alike = BoundaryNorm(levels, 256)
    filled = axis.contourf(x_X, y_Y, height_YX, levels, norm=every_band_alike, cmap="cividis_r")
    axis.contour(x_X, y_Y, height_YX, levels, colors="black", linewidths=0.35, alpha=0.5)
    bar = figure.colorbar(filled, ax=axis, ticks=levels, spacing="uniform")
    bar.set_label(f"{name} ({unit})", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.ax.yaxis.set_major_formatter("{x:g}")
    corners = [list(cell["member_ids"]).index(member_id) for member_id in plane["member_ids"].iloc[0]]
    members = plane.dropna(subset=["member_index"]).set_index("member_index").loc[corners]
    if value == results.criterion.by:
        _draw_rim(axis, (x_X, y_Y, height_YX), members, results.criterion)
    _draw_members(axis, members, factor * members[value], unit)
    axis.set_aspect("equal")
    axis.set_xlabel("distance in weight space (Euclidean, over parameters)", fontsize=9)
    axis.set_ylabel("the same, at right angles", fontsize=9)
    axis.tick_params(labelsize=8)
    return figure


def _plane_levels(height_YX: Float64Array, least: float, scale: float) -> list[float]:
    """Contour levels: fixed round numbers, times `scale`, where they show the surface; else evenly spaced ones, no
    finer than `least`."""
    from matplotlib.ticker import MaxNLocator

    finite = height_YX[np.isfinite(height_YX)]
    low, high = float(finite.min()), float(finite.max())
    levels = [0.0, *(scale * level for level in PLANE_LEVELS)]
    chosen = [level for level, above in pairwise(levels) if above > low and level < high]
    chosen += [level for level in levels if level >= high][:1] or [high]
    if len(chosen) >= 6:
        return chosen
    spare = max(least, 1e-3) if high == low else 0.0
    bands = int(np.clip((high - low) / least, 1, 9))
    return [float(level) for level in MaxNLocator(bands).tick_values(low - spare, high + spare)]


def _draw_rim(axis: Axes, surface: tuple[Float64Array, ...], members: pd.DataFrame, criterion: Criterion) -> None:
    """Where the error or NLL (x, y and percent or nats of `surface`) is the threshold above that of the first member:
    the rim of its basin in the plane."""
    barrier = quantity(criterion.barrier)
    rim = barrier.factor * (members[criterion.by].iloc[0] + criterion.threshold)
    if np.nanmin(surface[-1]) < rim < np.nanmax(surface[-1]):
        axis.contour(*surface, [rim], colors="black", linewidths=3.4)
        axis.contour(*surface, [rim], colors="white", linewidths=1.6, linestyles="--")
        first = members.index[0]
        label = f"{barrier.limit(criterion.threshold)} above {f'member {first:g}' if first else 'the hub'}"
        line = handle(label, "black", linestyle="-", linewidth=3.4)
        axis.legend(handles=[line], loc="best", fontsize=8, framealpha=0.9)


def _draw_members(axis: Axes, members: pd.DataFrame, values: pd.Series[float], unit: str) -> None:
    """The members, joined by the paths between them, each with its own error or NLL."""
    corners = pd.concat([members, members.iloc[:1]])
    axis.plot(corners["x"], corners["y"], color="white", linewidth=1.0, linestyle=":", zorder=3)
    axis.plot(members["x"], members["y"], "o", markersize=8, color="white", markeredgecolor="black", zorder=4)
    for (index, member), own in zip(members.iterrows(), values, strict=True):
        right, up = (member[along] >= members[along].mean() for along in ("x", "y"))  # away from the triangle
        axis.annotate(
            f"{f'member {index:g}' if index else 'hub'}\n{own:.3g} {unit}",
            (member["x"], member["y"]), xytext=(7 if right else -7, 7 if up else -7), textcoords="offset points",
            ha="left" if right else "right", va="bottom" if up else "top", fontsize=8.5, zorder=5,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip


# Ensembles and soups: of each method the point that is best on validation


def _best_points(cells: pd.DataFrame, by: str) -> Iterator[pd.DataFrame]:
    """Of each method the cells of the point, of the most frequent size, whose `ensemble` or `soup` is best."""
    for method in reading.in_order(set(cells["method"])):
        of_method = _one_size(cells[cells["method"] == method])
        point = selection.best_point(of_method, f"val_{by}_accuracy", f"val_{by}_nll")
        if not point.empty:
            yield point


def _where(point: pd.DataFrame) -> str:
    """Where on the map its cells lie; empty for a method that does not explore."""
    first = point.iloc[0]
    at = f" lr {first['lr_ratio']:g}, cycle {first['cycle_ratio']:g}"
    return at if methods.explores(first["method"]) else ""


def _draw_accuracy(
    axis: Axes, point: pd.DataFrame, kind: str, accuracy: pd.DataFrame, step: float, **style: Any
) -> None:
    """A curve of `accuracy` (columns mean, min and max, in percent), of a method's ensembles (solid) or soups (dashed).
    Bars are the range of the replicates: the curves are paired, so that no bar says which of them are different."""
    (marker, colour, steps), solid = _style(point["method"].iloc[0]), kind == "ensemble"
    mean = accuracy["mean"]
    axis.errorbar(
        accuracy.index.astype(float) + step * steps, mean, yerr=[mean - accuracy["min"], accuracy["max"] - mean],
        marker=marker, color=colour, linestyle="-" if solid else "--", markerfacecolor=colour if solid else "white",
        **style,
    )  # fmt: skip
    light_grid(axis)


@drawing.default_settings()
def sizes_figure(results: Results) -> Figure:
    """Test accuracy of the ensemble of the first k members and, below, of the uniform soup of the same, a panel per
    checkpoint.

    Local DE beside the point of each exploring method that is best on validation: by its ensemble above, by its soup
    below. The axis of soups ends a large loss below the worst hub; what a curve falls to stands in the legend.
    """
    checkpoints = reading.checkpoints_of(results)
    cells = reading.judged(results)
    soups = not results.scores[results.scores["kind"] == "uniform_soup"].empty
    many = cells["method"].nunique() > _LEGEND_INSIDE
    width, height = max(6.4, 4.6 * len(checkpoints)), (8.6 if soups else 4.6) + (3.6 if many else 0)
    what = "sizes of ensembles and soups" if soups else "ensemble size"
    figure = drawing.new_figure(width, height, f"{sweep_name(results)}: {what}")
    axes = figure.subplots(1 + soups, len(checkpoints), sharex=True, sharey="row", squeeze=False)
    for row, kind, by in zip(axes, ("ensemble", "uniform_soup"), ("ensemble", "soup"), strict=False):
        for axis, checkpoint in zip(row, checkpoints, strict=True):
            for point in _best_points(cells[cells["checkpoint"] == checkpoint], by):
                _draw_sizes(axis, results, point, kind)
            below = len(axis.get_legend_handles_labels()[1]) > _LEGEND_INSIDE
            where: dict[str, Any] = {"loc": "lower right" if kind == "ensemble" else "best"}
            axis.legend(fontsize=8, frameon=False, **(_BELOW_PANEL if below else where))
            axis.xaxis.get_major_locator().set_params(integer=True)
        name = kind.replace("_", " ")
        row[0].set_ylabel(f"{name} {reading.metric_name(results)} (%, test)\nmean and range of the replicates")
    if soups:
        worst_hub = 100 * cells["hub_accuracy_reestimated"].fillna(cells["hub_accuracy"]).min()
        axes[1, 0].set_ylim(bottom=max(axes[1, 0].get_ylim()[0], worst_hub - LARGE_LOSS))
    for axis, checkpoint in zip(axes[0], checkpoints, strict=True):
        axis.set_title(f"checkpoint {plain(checkpoint, 36)}", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("members, hub included")
    return figure


_BELOW_PANEL: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15)}


def _draw_sizes(axis: Axes, results: Results, point: pd.DataFrame, kind: str) -> None:
    sizes = reading.accuracy_by_size(results, point["cell_id"], kind)
    if sizes.empty:
        return
    accuracy = 100 * sizes.groupby("n_members")["accuracy"].agg(["mean", "min", "max"])
    mean, where = accuracy["mean"], _where(point)
    falls = f", falls to {mean.min():.1f} %" if mean.min() < mean.iloc[0] - LARGE_LOSS else ""
    chosen = f"{where} (best on validation)" if where else ""
    label = f"{point['method'].iloc[0]}{chosen}, n={len(point)}{falls}"
    _draw_accuracy(axis, point, kind, accuracy, step=0.02, capsize=3, label=label)


@drawing.default_settings()
def robustness_figure(results: Results) -> Figure:
    """Test accuracy by severity, mean over corruptions: a panel per checkpoint and shift.

    Of each exploring method the point whose ensemble is best on validation, Local DE beside them. Ensembles are
    drawn solid, their uniform soups dashed. Severity 0 is the clean test split.

    Raises:
        UserError: if there is no shift with corruptions, or it has no scores.
    """
    scores = reading.robustness(results)
    if scores.empty:
        raise UserError(f"{results.folder.root}: no cell has scores on corrupted images (`shifts` of the sweep file)")
    cells = reading.committed(results)
    checkpoints, shifts = reading.checkpoints_of(results), list(dict.fromkeys(scores["shift"]))
    width, height = max(6.4, 4.4 * len(shifts)), 0.8 + 3.8 * len(checkpoints)
    figure = drawing.new_figure(width, height, f"{sweep_name(results)}: accuracy on corrupted images")
    axes = figure.subplots(len(checkpoints), len(shifts), sharex=True, sharey=True, squeeze=False)
    for (checkpoint, shift), axis in zip(product(checkpoints, shifts), axes.flat, strict=True):
        of_shift = scores[scores["shift"] == shift]
        for point in _best_points(cells[cells["checkpoint"] == checkpoint], "ensemble"):
            _draw_severities(axis, of_shift, point)
        n_corruptions = of_shift.loc[of_shift["severity"] > 0, "corruptions"].max()
        several = f"\ncheckpoint {plain(checkpoint, 36)}" if len(checkpoints) > 1 else ""
        axis.set_title(f"{plain(shift)}: mean over {counted(n_corruptions, 'corruption')}{several}", fontsize=9)
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[-1]:
        axis.set_xlabel("severity (0: the clean test split)")
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy (%)\nmean and range of the replicates")
    lines = {line.get_label(): line for axis in axes.flat for line in axis.get_legend_handles_labels()[0]}
    drawing.legend_below(figure, list(lines.values()), width / 3.2)
    return figure


def _draw_severities(axis: Axes, scores: pd.DataFrame, point: pd.DataFrame) -> None:
    """The ensemble and, of a method that explores, the uniform soup over severities."""
    method, size = point.iloc[0][["method", "n_members"]]
    of_point = scores[scores["cell_id"].isin(point["cell_id"]) & (scores["n_members"] == size)]
    ensemble = (of_point["kind"] == "ensemble") & (of_point["bn"] == "own")
    soup = (of_point["kind"] == "uniform_soup") & methods.explores(method)
    for rows, kind in ((of_point[ensemble], "ensemble"), (of_point[soup], "soup")):
        accuracy = 100 * rows.groupby("severity")["accuracy"].agg(["mean", "min", "max"])
        if not accuracy.empty:
            label = f"{method}{_where(point)}, {kind}, n={len(point)}"
            _draw_accuracy(axis, point, kind, accuracy, step=0.03, markersize=5, capsize=2, label=label)
