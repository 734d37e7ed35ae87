"""The figure of a plane through three members: contours of error rate or NLL, and the members themselves."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from raybasin.analysis import drawing
from raybasin.analysis import results as reading
from raybasin.analysis.drawing import handle, sweep_name
from raybasin.analysis.quantities import quantity
from raybasin.analysis.results import Results
from raybasin.sweep.criterion import Criterion
from raybasin.sweep.specs import IMAGES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Float64Array = npt.NDArray[np.float64]

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
    images = IMAGES[plane["split"].iloc[0]]
    figure = drawing.new_figure(
        float(np.clip(4.6 / ratio, 5.0, 7.0)) + 1.6, float(np.clip(6.2 * ratio, 2.6, 5.2)) + 1.3,
        f"{sweep_name(results)}: plane through three members, {name} on {images}\n{drawing.described(cell)}",
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
        _draw_rim(figure, axis, (x_X, y_Y, height_YX), members, results.criterion)
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


def _draw_rim(
    figure: Figure, axis: Axes, surface: tuple[Float64Array, ...], members: pd.DataFrame, criterion: Criterion
) -> None:
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
        drawing.legend_below(figure, [line])  # no label of a member is hidden by it there


def _outwards(axis: Axes, along: str, places: pd.Series[float], own: float) -> bool:
    """Whether a label lies on the side where coordinates grow: away from the triangle, but within the plane."""
    low, high = sorted(axis.get_xlim() if along == "x" else axis.get_ylim())
    share = (own - low) / (high - low)
    if not LABEL_SHARE < share < 1 - LABEL_SHARE:
        return share <= LABEL_SHARE
    return own >= float(places.mean())


LABEL_SHARE = 0.13
"""Of an axis: what a label of a member needs."""


def _draw_members(axis: Axes, members: pd.DataFrame, values: pd.Series[float], unit: str) -> None:
    """The members, joined by the paths between them, each with its own error or NLL."""
    corners = pd.concat([members, members.iloc[:1]])
    axis.plot(corners["x"], corners["y"], color="white", linewidth=1.0, linestyle=":", zorder=3)
    axis.plot(members["x"], members["y"], "o", markersize=8, color="white", markeredgecolor="black", zorder=4)
    for (index, member), own in zip(members.iterrows(), values, strict=True):
        right, up = (_outwards(axis, along, members[along], float(member[along])) for along in ("x", "y"))
        axis.annotate(
            f"{f'member {index:g}' if index else 'hub'}\n{own:.3g} {unit}",
            (member["x"], member["y"]), xytext=(7 if right else -7, 7 if up else -7), textcoords="offset points",
            ha="left" if right else "right", va="bottom" if up else "top", fontsize=8.5, zorder=5,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip
