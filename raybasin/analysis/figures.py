"""Figures of a results folder: the map of the basin, and what stands behind it.

Every function gives a matplotlib `Figure`; `save` writes it. Matplotlib is imported when the first figure is drawn, and
draws with its own defaults: neither a user's settings nor a backend matter, and both are left as they are. In and out
of the basin are never told apart by colour alone.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from raybasin.analysis import results as reading
from raybasin.analysis.results import Results
from raybasin.errors import FolderLost, UserError, one_line
from raybasin.landscape import basin_exits
from raybasin.metrics import selection
from raybasin.store import folders
from raybasin.sweep import methods

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

P = ParamSpec("P")
R = TypeVar("R")
Float64Array = npt.NDArray[np.float64]
Segment = tuple[tuple[float, float], tuple[float, float]]

INSIDE, OUTSIDE, NEUTRAL = "#0072B2", "#D55E00", "#8A8A8A"
"""Blue and vermilion of the palette of Okabe and Ito, which the colour-blind can tell apart."""

DPI = 160

LARGE_LOSS = 0.1
"""In accuracy: beyond it a linear axis would hide the gains, and a symmetric logarithmic one is drawn."""

NOT_DONE = (0.93, 0.93, 0.93, 1.0)

_LINES = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#B09500")
_MAX_LEGEND = 12
_LEGEND_INSIDE = 4
"""Methods whose names fit into a panel without hiding what it shows."""


# Units and words


@dataclass(frozen=True)
class Quantity:
    """How a column is shown: `factor` takes what is stored to `unit`."""

    title: str
    unit: str
    factor: float = 1.0
    signed: bool = False
    """A difference, for which 0 is the middle."""
    of_ensemble: bool = False
    """What Local DE is there to be compared by; its soup, for one, is no line to beat."""
    absent: str = "n/a"
    """What is shown where there is no number."""

    @property
    def label(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, stored: float) -> str:
        """A stored value in this unit, without the unit."""
        if np.isnan(stored):
            return self.absent
        if np.isinf(stored):
            return "∞" if stored > 0 else "−∞"
        shown = stored * self.factor
        form = "+.2f" if self.signed else ".2f" if self.factor != 1 else ".3g"
        return f"{shown:{form}}".replace("-", "−")


def quantity(column: str) -> Quantity:
    """How to show a column of the cells."""
    title = column.replace("_", " ").replace("over local de", "over local_de")
    title = title.replace("nll", "NLL").replace("val ", "validation ").replace("l2", "L2")
    of_ensemble = column.removeprefix("val_").startswith("ensemble_")
    if column.endswith("_gain") or column.startswith("over_"):
        return Quantity(title, "percentage points", 100, signed=True, of_ensemble=of_ensemble)
    if "accuracy" in column:
        return Quantity(title, "%", 100, of_ensemble=of_ensemble)
    if "error" in column:
        return Quantity(title, "percentage points", 100)
    if "exit_" in column:
        return Quantity(title, "epochs" if "epochs" in column else "steps", absent="never")
    if column == "in_basin":
        return Quantity("share of replicates in basin", "%", 100)
    units = {"nll": "nats", "seconds": "s", "epochs": "epochs"}
    unit = next((unit for part, unit in units.items() if part in column), "")
    return Quantity(title, unit, of_ensemble=of_ensemble)


def shortened(text: str, width: int = 48) -> str:
    """The end of a text that is too long: what tells paths apart."""
    shown = " ".join(str(text).split())
    return shown if len(shown) <= width else f"…{shown[1 - width :]}"


def plain(text: str, width: int = 48) -> str:
    """Text of a table as matplotlib may show it: shortened, and never read as a formula."""
    return shortened(text, width).replace("$", r"\$")


def mean_and_sd(values: pd.Series[float], shown: Quantity) -> str:
    """`+0.85 ± 0.10`: mean and sample standard deviation; a single value has none, nor have infinite ones."""
    mean = shown.text(values.mean())
    spread = len(values) > 1 and np.isfinite(values).all()
    return f"{mean} ± {values.std(ddof=1) * shown.factor:.2f}" if spread else mean


def counted(n: int, noun: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


# Matplotlib as it is delivered


def _with_own_settings(draw: Callable[P, R]) -> Callable[P, R]:
    """`draw` under matplotlib's defaults. Whatever it raises becomes a UserError: a figure that cannot be drawn must
    not take anything else down."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _own_settings():
                return draw(*args, **kwargs)
        except (UserError, FolderLost):
            raise
        except Exception as error:  # fonts, layouts and renderers fail in their own ways
            reason = one_line(f"{type(error).__name__}: {error}", 300)
            raise UserError(f"the figure cannot be drawn ({reason})") from error

    return drawn


_SETTINGS = threading.RLock()
"""Matplotlib's settings are those of the process: of two threads that set and restore them at once, the second would
restore what the first had set."""


@contextlib.contextmanager
def _own_settings() -> Iterator[None]:
    with _SETTINGS:
        _import_matplotlib()
        import matplotlib

        own: dict[Any, Any] = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
        with matplotlib.rc_context(own):
            yield


def _import_matplotlib() -> None:
    """Imports it as it is imported elsewhere, except that a backend in the environment which it does not have (as the
    notebook's, in a process that the notebook started) is no error: none is used here."""
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


# The map


@dataclass(frozen=True)
class Scale:
    """The ratios along one log axis of a map. Cells meet at the geometric midpoints between ratios."""

    ratios: tuple[float, ...]

    @cached_property
    def edges(self) -> Float64Array:
        """Cell edges, one more than there are ratios; the outermost cells are symmetric about theirs."""
        ratios = np.asarray(self.ratios, dtype=np.float64)
        if len(ratios) == 1:
            return np.concatenate([ratios * 0.5**0.5, ratios * 2**0.5])
        inner = np.sqrt(ratios[:-1] * ratios[1:])
        first, last = ratios[0] ** 2 / inner[0], ratios[-1] ** 2 / inner[-1]
        edges: Float64Array = np.concatenate([[first], inner, [last]])
        return edges

    def bounds(self, ratio: float) -> tuple[float, float]:
        """The two edges of the cell of `ratio`."""
        position = self.ratios.index(ratio)
        return float(self.edges[position]), float(self.edges[position + 1])

    @property
    def decades(self) -> float:
        """Length of the axis."""
        return float(np.log10(self.edges[-1] / self.edges[0]))

    @property
    def narrowest(self) -> float:
        """Width of the narrowest cell, in decades."""
        return float(np.diff(np.log10(self.edges)).min())


def scale(ratios: Iterable[float]) -> Scale:
    """The scale of these ratios, in any order and as often as they come."""
    return Scale(tuple(sorted(set(ratios))))


@dataclass(frozen=True)
class Panel:
    """One map: a `results.grid` and what is written above it."""

    method: str
    checkpoint: str
    n_members: int
    table: pd.DataFrame
    local_de: pd.Series[float]
    """The value of the Local Deep Ensembles of equal size, one per replicate; may be empty."""

    @cached_property
    def x(self) -> Scale:
        return scale(self.table["cycle_ratio"])

    @cached_property
    def y(self) -> Scale:
        return scale(self.table["lr_ratio"])


def boundary_segments(table: pd.DataFrame, x: Scale, y: Scale) -> list[Segment]:
    """The cell edges between neighbours of which one is in the basin and the other is not."""
    done = table[table["state"] == "done"]
    inside = dict(zip(zip(done["cycle_ratio"], done["lr_ratio"], strict=True), done["in_basin"], strict=True))

    def differ(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a in inside and b in inside and inside[a] != inside[b]

    upright = [
        ((x.edges[i + 1], y.bounds(lr)[0]), (x.edges[i + 1], y.bounds(lr)[1]))
        for lr in y.ratios
        for i, (left, right) in enumerate(pairwise(x.ratios))
        if differ((left, lr), (right, lr))
    ]
    level = [
        ((x.bounds(cycle)[0], y.edges[j + 1]), (x.bounds(cycle)[1], y.edges[j + 1]))
        for cycle in x.ratios
        for j, (lower, upper) in enumerate(pairwise(y.ratios))
        if differ((cycle, lower), (cycle, upper))
    ]
    return upright + level


@_with_own_settings
def map_figure(
    results: Results,
    value: str = "ensemble_gain",
    method: str | None = "star_sse",
    n_members: int | None = None,
) -> Figure:
    """The map: learning rate by cycle length, coloured by a value, the boundary of the basin drawn.

    One row of panels per checkpoint and, with `method=None`, one column per exploring method that has cells;
    all panels share their axes and colours.

    Args:
        results: what `raybasin.open` gives.
        value: a numeric column of the cells or of their gains; its mean over replicates is shown.
        method: a method, or None for all that explore.
        n_members: size of the ensembles; by default the one that most cells of a method have.

    Raises:
        UserError: if there is no such cell or value.
    """
    panels = _panels(results, value, method, n_members)
    shown = quantity(value)
    rows, columns = len({panel.checkpoint for panel in panels}), len({panel.method for panel in panels})
    width = _inches([panel.x for panel in panels], per_cell=0.9, least=2.6 if columns == 1 else 3.4, most=9.0)
    height = _inches([panel.y for panel in panels], per_cell=0.58, least=1.7, most=6.5)
    checkpoint = f"checkpoint {plain(panels[0].checkpoint)}" if rows == 1 else f"{rows} checkpoints"
    metric = reading.metric_name(results)
    judged = "" if metric == "accuracy" else f"; {metric}"
    title = f"{plain(results.sweep['name'])}: {shown.title}\n{checkpoint}{judged}"
    figure = _figure(max(columns * (width + 0.3) + 2.1, 7.2), rows * (height + 0.9) + 2.0, title)
    axes = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    colours = _colours(panels, shown)
    for axis, panel in zip(axes, panels, strict=True):
        _draw_panel(axis, panel, shown, colours, _font_size(panel, panels, width, height))
        axis.set_title(_panel_title(panel, shown, several=rows > 1), fontsize=9, loc="left")
    _label_axes(axes, columns, panels, results)
    _draw_colour_bar(figure, axes, panels, shown, colours)
    _draw_map_legend(figure, panels, shown, results.threshold)
    return figure


def _panels(results: Results, value: str, method: str | None, n_members: int | None) -> list[Panel]:
    cells = reading.gains(reading.judged(results))
    names = reading.methods_with_a_map(results) if method is None else [method]
    if not names:
        wanted = " or ".join(methods.exploring())
        raise UserError(f"{results.folder.root}: no finished cell of {wanted}, so there is nothing to map")
    panels = []
    for checkpoint in reading.checkpoints_of(results):
        for name in names:
            table = reading.grid(results, value, name, checkpoint, n_members)
            size = n_members or reading.main_size(cells[cells["method"] == name])
            beside = (cells["method"] == "local_de") & (cells["checkpoint"] == checkpoint)
            local_de = cells.loc[beside & (cells["n_members"] == size), value].dropna()
            panels.append(Panel(name, checkpoint, size, table, local_de))
    return panels


def _inches(scales: Sequence[Scale], per_cell: float, least: float, most: float) -> float:
    """Length of an axis on which the narrowest cell can hold its text."""
    longest = max(scale.decades for scale in scales)
    narrowest = min(scale.narrowest for scale in scales)
    return float(np.clip(longest / narrowest * per_cell, least, most))


def _font_size(panel: Panel, panels: Sequence[Panel], width: float, height: float) -> float:
    """A size at which two lines of text fit into the smallest cell of a panel."""
    cell_width = width * panel.x.narrowest / max(p.x.decades for p in panels)
    cell_height = height * panel.y.narrowest / max(p.y.decades for p in panels)
    return float(np.clip(min(cell_width / 0.085, cell_height / 0.055), 4, 9))


def _colours(panels: Sequence[Panel], shown: Quantity) -> ScalarMappable:
    """From values in the unit shown to colours: 0 is white where values are differences. Infinite ones get the colours
    at the ends."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, SymLogNorm

    columns = [panel.table["value"] for panel in panels]
    columns += [panel.local_de for panel in panels if shown.of_ensemble]
    values = pd.concat(columns).to_numpy(dtype=np.float64) * shown.factor
    values = values[np.isfinite(values)]
    if not len(values):  # of exits: nothing has left
        return ScalarMappable(Normalize(0, 1), "cividis")
    if not shown.signed:
        spare = 0.0 if np.ptp(values) > 0 else 0.05 * abs(values[0]) + 1e-6
        return ScalarMappable(Normalize(values.min() - spare, values.max() + spare), "cividis")
    limit = max(float(np.abs(values).max()), 0.1)
    if limit <= 100 * LARGE_LOSS:
        return ScalarMappable(Normalize(-limit, limit), "RdBu")
    return ScalarMappable(SymLogNorm(linthresh=1.0, vmin=-limit, vmax=limit), "RdBu")


def _draw_panel(axis: Axes, panel: Panel, shown: Quantity, colours: ScalarMappable, font: float) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    for cell in panel.table.to_dict("records"):
        _draw_cell(axis, cell, panel, shown, colours, font)
    for colour, width in (("white", 6.0), ("black", 3.2)):
        for start, end in boundary_segments(panel.table, panel.x, panel.y):
            axis.plot(*zip(start, end, strict=True), color=colour, linewidth=width, solid_capstyle="round")


def _draw_cell(
    axis: Axes, cell: dict[Hashable, Any], panel: Panel, shown: Quantity, colours: ScalarMappable, font: float
) -> None:
    """A cell, marked with its state; hatched where it is out of the basin."""
    sides, (low, high) = panel.x.bounds(cell["cycle_ratio"]), panel.y.bounds(cell["lr_ratio"])
    done = cell["state"] == "done"
    known = done and not np.isnan(cell["value"])
    face = colours.to_rgba(cell["value"] * shown.factor) if known else "white" if done else NOT_DONE
    ink = _ink(face) if known else "#555555"
    axis.fill_between(sides, low, high, facecolor=face, edgecolor="white", linewidth=1.2, gid=cell["state"])
    if done and not cell["in_basin"]:
        axis.fill_between(
            sides, low, high, facecolor="none", edgecolor=ink, alpha=0.45, linewidth=0, hatch="///", gid="out"
        )
    axis.text(
        (sides[0] * sides[1]) ** 0.5,
        (low * high) ** 0.5,
        _cell_text(cell, shown),
        ha="center",
        va="center",
        fontsize=font,
        color=ink,
        linespacing=1.15,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": face, "edgecolor": "none"},
        zorder=3,
    )


def _cell_text(cell: dict[Hashable, Any], shown: Quantity) -> str:
    """The value, and below it the side of the boundary: `in`, `out` or `1/2 in`; `?` where undecided."""
    if cell["state"] != "done":
        return str(cell["state"])
    n, n_in = cell["replicates"], cell["replicates_in"]
    side = {0: "out", n: "in"}.get(n_in, f"{n_in}/{n} in")
    doubt = " ?" if cell["undecided"] else ""
    few = f", n={n}" if n < cell["replicates_planned"] else ""
    return f"{shown.text(cell['value'])}\n{side}{doubt}{few}"


def _ink(face: Any) -> str:
    """Black or white, whichever reads better on `face`, an RGBA colour."""
    red, green, blue, _ = face
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _panel_title(panel: Panel, shown: Quantity, several: bool) -> str:
    replicates = counted(int(panel.table["replicates_planned"].iloc[0]), "replicate")
    lines = [f"checkpoint {plain(panel.checkpoint, 36)}"] if several else []
    lines += [f"{panel.method}, {panel.n_members} members, {replicates}"]
    beat = "line to beat: " if shown.of_ensemble else ""
    n = len(panel.local_de)
    found = f"{beat}local_de {mean_and_sd(panel.local_de, shown)} (n={n})" if n else ""
    lines += [found or "no local_de to compare with"]
    return "\n".join(lines)


def _label_axes(axes: Sequence[Axes], columns: int, panels: Sequence[Panel], results: Results) -> None:
    """Ratios as ticks; on the far sides what they are in learning rate and in epochs."""
    x = scale(ratio for panel in panels for ratio in panel.x.ratios)
    y = scale(ratio for panel in panels for ratio in panel.y.ratios)
    recipe = results.sweep["recipe"]
    for position, axis in enumerate(axes):
        axis.set_xlim(min(p.x.edges[0] for p in panels), max(p.x.edges[-1] for p in panels))
        axis.set_ylim(min(p.y.edges[0] for p in panels), max(p.y.edges[-1] for p in panels))
        axis.minorticks_off()
        axis.set_xticks(x.ratios, [f"{ratio:g}" for ratio in x.ratios], fontsize=9)
        axis.set_yticks(y.ratios, [f"{ratio:g}" for ratio in y.ratios], fontsize=9)
        if position >= len(axes) - columns:
            axis.set_xlabel("cycle_ratio (cycle length / fine-tuning length)", fontsize=9)
        if position % columns == 0:
            axis.set_ylabel("lr_ratio (max_lr / fine-tuning lr)", fontsize=9)
        if position < columns:
            epochs = [f"{ratio * recipe['epochs']:.3g}" for ratio in x.ratios]
            _second_ticks(axis.secondary_xaxis("top").xaxis, x, epochs, "cycle length (epochs)")
        if position % columns == columns - 1:
            rates = [f"{ratio * recipe['lr']:.3g}" for ratio in y.ratios]
            _second_ticks(axis.secondary_yaxis("right").yaxis, y, rates, "max_lr")


def _second_ticks(axis: XAxis | YAxis, at: Scale, labels: Sequence[str], title: str) -> None:
    axis.set_ticks(at.ratios, labels, fontsize=8, color="#555555")
    axis.set_ticks([], minor=True)
    axis.set_label_text(title, fontsize=8, color="#555555")


def _draw_colour_bar(
    figure: Figure, axes: Sequence[Axes], panels: Sequence[Panel], shown: Quantity, colours: ScalarMappable
) -> None:
    bar = figure.colorbar(colours, ax=axes, fraction=0.05, pad=0.02, aspect=25 * len({p.checkpoint for p in panels}))
    bar.set_label(shown.label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.ax.yaxis.set_major_formatter("{x:g}")
    if not shown.of_ensemble:
        return
    for value in {panel.local_de.mean() * shown.factor for panel in panels if len(panel.local_de)}:
        if np.isfinite(value):
            bar.ax.plot([0.5], [value], "D", color="black", markeredgecolor="white", markersize=7, clip_on=False)


def _draw_map_legend(figure: Figure, panels: Sequence[Panel], shown: Quantity, threshold: float) -> None:
    from matplotlib.patches import Patch

    tables = pd.concat([panel.table for panel in panels])
    done = tables[tables["state"] == "done"]
    mixed = (done["replicates_in"] > 0) & (done["replicates_in"] < done["replicates"])
    bounded = any(boundary_segments(panel.table, panel.x, panel.y) for panel in panels)
    beside = shown.of_ensemble and any(len(panel.local_de) for panel in panels)
    walls = ", or an infinite loss" if done["walls"].any() else ""
    out = f"out: mean error barrier above {100 * threshold:g} points{walls}"
    handles = [
        (True, Patch(facecolor="white", edgecolor="black", hatch="///", label=out)),
        (bounded, _handle("basin boundary", "black", linestyle="-", linewidth=3.2)),
        (done["undecided"].any(), _handle("undecided: within 2 standard errors", "black", marker="$?$")),
        (mixed.any(), _handle("replicates disagree", "black", marker="$1/2$", markersize=16)),
        (beside, _handle("local_de, the line to beat", "black", marker="D")),
        (len(done) < len(tables), Patch(facecolor=NOT_DONE, label="not finished")),
        (len({(panel.x, panel.y) for panel in panels}) > 1, Patch(
            facecolor="white", edgecolor=NEUTRAL, linewidth=0.5, label="not in the sweep",
        )),
    ]  # fmt: skip
    columns = max(1, int(figure.get_figwidth() / 2.9))
    chosen = [handle for wanted, handle in handles if wanted]
    figure.legend(handles=chosen, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


# What stands behind the map


@_with_own_settings
def trade_off_figure(results: Results) -> Figure:
    """What leaving the basin costs and brings: gain of the ensemble and of the soup by error barrier."""
    cells = _one_size(reading.gains(reading.judged(results)))
    figure = _figure(9.5, 4.4, f"{plain(results.sweep['name'])}: what leaving the basin brings")
    for axis, column in zip(figure.subplots(1, 2), ("ensemble_gain", "soup_gain"), strict=True):
        shown = quantity(column)
        if cells[column].isna().all():
            axis.text(0.5, 0.5, f"no {shown.title} was computed", ha="center", transform=axis.transAxes)
            axis.set_axis_off()
            continue
        axis.set_xscale("symlog", linthresh=1, linscale=0.6)
        axis.xaxis.set_major_formatter("{x:g}")
        if cells[column].min() < -LARGE_LOSS:
            axis.set_yscale("symlog", linthresh=1, linscale=0.6)
            axis.yaxis.set_major_formatter("{x:g}")
        _scatter(axis, cells.assign(_x=100 * cells["barrier_error"], _y=100 * cells[column]))
        axis.axvline(100 * results.threshold, color=NEUTRAL, linestyle="--", linewidth=1.2)
        axis.axhline(0, color=NEUTRAL, linewidth=0.8)
        axis.set_xlabel("error barrier, hub to member (percentage points)")
        axis.set_ylabel(f"{shown.title} over the hub (percentage points)")
    threshold = f"threshold, {100 * results.threshold:g} points"
    _legend(figure, [*_method_handles(cells), *_side_handles(), _handle(threshold, NEUTRAL, linestyle="--")])
    return figure


@_with_own_settings
def diversity_figure(results: Results) -> Figure:
    """Accuracy of the members against how much they differ, told apart by the side of the boundary."""
    cells = _one_size(reading.judged(results))
    figure = _figure(6.4, 4.4, f"{plain(results.sweep['name'])}: members' accuracy and diversity")
    axis = figure.subplots()
    _scatter(axis, cells.assign(_x=cells["normalised_disagreement"], _y=100 * cells["member_accuracy"]))
    axis.set_xlabel("normalised disagreement (mean over pairs / mean member error)")
    axis.set_ylabel(f"mean member {reading.metric_name(results)} (%, test)")
    _legend(figure, [*_method_handles(cells), *_side_handles()])
    return figure


@_with_own_settings
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
    member_ids = list(cell["member_ids"])
    name = f"{cell['method']}, lr_ratio {cell['lr_ratio']:g}, cycle_ratio {cell['cycle_ratio']:g}"
    side = "in" if cell["in_basin"] else "out of"
    figure = _figure(9.5, 6.2, f"{name}, replicate {cell['replicate']}: {side} the basin ({split})")
    kinds = [kind for kind in ("hub-member", "member-member") if kind in set(paths["kind"])]
    axes = figure.subplots(2, len(kinds), sharex=True, sharey="row", squeeze=False)
    for column, kind in enumerate(kinds):
        of_kind = paths[paths["kind"] == kind]
        _draw_paths(axes[0, column], of_kind, "nll", 1, member_ids)
        _draw_paths(axes[1, column], of_kind, "error", 100, member_ids)
        axes[0, column].set_title(f"{kind}: {counted(of_kind['path_id'].nunique(), 'path')}", fontsize=10)
        axes[1, column].set_xlabel("position t on the path")
    axes[0, 0].set_ylabel("NLL (nats)")
    axes[1, 0].set_ylabel("error rate (%)")
    return figure


@_with_own_settings
def trace_figure(results: Results) -> Figure:
    """When cycles left the basin: the error barrier to the weights inside a cycle, by epochs since the hub.

    Left on paths from the hub, right on paths from the checkpoint with the hub's head; a row for each method and length
    of cycle. A line is the mean over runs and replicates at one learning rate, its band their range; a ring marks where
    the first run of a cell left for good.

    Raises:
        UserError: if the sweep did not ask for traces.
    """
    moments = _moments(results)
    checkpoints = reading.checkpoints_of(results)
    points = set(zip(moments["checkpoint"], moments["method"], moments["cycle_ratio"], strict=True))
    rows = [
        (checkpoint, method, cycle_ratio)
        for checkpoint in checkpoints
        for method in reading.in_order(set(moments["method"]))
        for cycle_ratio in sorted(set(moments["cycle_ratio"]))
        if (checkpoint, method, cycle_ratio) in points
    ]
    figure = _figure(10.0, 2.5 * len(rows) + 1.5, f"{plain(results.sweep['name'])}: when cycles leave the basin")
    axes = figure.subplots(len(rows), 2, sharey=True, sharex="row", squeeze=False)
    rates = sorted(set(moments["lr_ratio"]))
    for (left, right), (checkpoint, method, cycle_ratio) in zip(axes, rows, strict=True):
        of_row = moments[(moments["checkpoint"] == checkpoint) & (moments["method"] == method)]
        of_row = of_row[of_row["cycle_ratio"] == cycle_ratio]
        of = f" of {plain(checkpoint, 36)}" if len(checkpoints) > 1 else ""
        for axis, origin in ((left, basin_exits.HUB), (right, basin_exits.CHECKPOINT)):
            _draw_traces(axis, of_row[of_row["origin"] == origin], rates, results.threshold)
            axis.set_title(f"{method}{of}, cycle_ratio {cycle_ratio:g}: from the {origin}", fontsize=9, loc="left")
        left.set_ylabel("error barrier\n(percentage points)", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("epochs since the hub", fontsize=9)
    handles = [
        _handle(f"lr_ratio {rate:g}", colour, marker=marker, linestyle="-", markersize=4)
        for rate, (colour, marker) in zip(rates, _rate_styles(rates), strict=True)
    ]
    ring = _handle("a cell has left", "black", marker="o", markersize=10, markerfacecolor="none")
    threshold = _handle(f"threshold, {100 * results.threshold:g} points", NEUTRAL, linestyle="--")
    _legend(figure, [*handles, ring, threshold])
    return figure


def _moments(results: Results) -> pd.DataFrame:
    """Every path of every trace with its cell's coordinates; `left` marks the earliest exit of a cell. The hub stands
    at 0 on both sides: there is no way from it to itself, and so no barrier."""
    cells = reading.committed(results).set_index("cell_id")
    points = results.traces[results.traces["cell_id"].isin(cells.index)]
    if points.empty:
        raise UserError(f"{results.folder.root}: no cell was traced; put `trace: true` into basin of the sweep file")
    found = []
    for cell_id, of_cell in points.groupby("cell_id"):
        traced = basin_exits.traced_steps([{str(k): v for k, v in row.items()} for row in of_cell.to_dict("records")])
        exits = basin_exits.first_exits(traced, results.threshold)
        hub = basin_exits.hub_of(traced)
        at_hub = replace(hub, origin=basin_exits.HUB, barrier_error=0.0, barrier_nll=0.0)
        for step in (at_hub, *traced):
            left = step == exits[step.origin]
            found.append({"cell_id": cell_id, "origin": step.origin, "epochs": step.epochs_from_hub,
                          "barrier": 100 * step.barrier_error, "left": left})  # fmt: skip
    columns = ["checkpoint", "method", "lr_ratio", "cycle_ratio", "replicate"]
    return pd.DataFrame(found).join(cells[columns], on="cell_id")


def _draw_traces(axis: Axes, moments: pd.DataFrame, rates: Sequence[float], threshold: float) -> None:
    from matplotlib.ticker import MaxNLocator

    for rate, (colour, marker) in zip(rates, _rate_styles(rates), strict=True):
        of_rate = moments[moments["lr_ratio"] == rate]
        barrier = of_rate.groupby("epochs")["barrier"]
        mean = barrier.mean()
        axis.fill_between(mean.index, barrier.min(), barrier.max(), color=colour, alpha=0.18, linewidth=0)
        axis.plot(mean.index, mean, marker=marker, markersize=4, color=colour, linewidth=1.4)
        rings = of_rate[of_rate["left"]]
        axis.plot(
            rings["epochs"], rings["barrier"], "o", markersize=10, markerfacecolor="none", color=colour,
            markeredgewidth=1.6, gid="left",
        )  # fmt: skip
    axis.axhline(100 * threshold, color=NEUTRAL, linestyle="--", linewidth=1.2)
    axis.set_yscale("symlog", linthresh=1, linscale=0.6)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylim(bottom=0)
    # Times lie closer together where rates are high; drawn by their square root they are about equally far apart.
    axis.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.grid(color="#E5E5E5", linewidth=0.6)
    axis.tick_params(labelsize=8)


def _rate_styles(rates: Sequence[float]) -> list[tuple[Any, str]]:
    """A colour and a marker for each learning rate, from dark to light."""
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0.0, 0.88, len(rates)))
    return [(shade, "osD^vPX*"[number % 8]) for number, shade in enumerate(shades)]


PLANE_LEVELS = (0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 100)
"""Contours of an error rate in percent: closer together where networks are good."""


@_with_own_settings
def plane_figure(results: Results, plane: pd.DataFrame, value: str = "error") -> Figure:
    """The plane through three members, contours of error rate or NLL, the members at their true coordinates.

    Both axes are distances in weight space, in equal units. The white line is `basin.threshold` of error above the
    first member.

    Args:
        plane: the rows of one plane, as `landscape.points_of` gives them.
        value: `error` or `nll`.
    """
    cell = reading.cell_of(results, plane["cell_id"].iloc[0])
    factor, unit = (100, "error rate (%)") if value == "error" else (1, "NLL (nats)")
    grid = plane.dropna(subset=["row"])
    height_YX = factor * grid.pivot_table(value, "row", "column", dropna=False).to_numpy()
    x_X, y_Y = (np.sort(grid[axis].unique()) for axis in ("x", "y"))
    ratio = np.ptp(y_Y) / np.ptp(x_X)
    split = {"val": "validation", "train": "training"}[plane["split"].iloc[0]]
    figure = _figure(
        float(np.clip(4.6 / ratio, 5.0, 7.0)) + 1.6, float(np.clip(6.2 * ratio, 2.6, 5.2)) + 1.3,
        f"{plain(results.sweep['name'])}: plane through three members, {unit.partition(' (')[0]} on {split} images\n"
        f"{cell['method']}, lr_ratio {cell['lr_ratio']:g}, cycle_ratio {cell['cycle_ratio']:g}, "
        f"replicate {cell['replicate']}: {'in' if cell['in_basin'] else 'out of'} the basin",
    )  # fmt: skip
    axis = figure.subplots()
    levels = _plane_levels(height_YX, factor / plane["images"].iloc[0], 1.0 if value == "error" else 0.1)
    filled = axis.contourf(x_X, y_Y, height_YX, levels, norm=_by_rank(levels), cmap="cividis_r")
    axis.contour(x_X, y_Y, height_YX, levels, colors="black", linewidths=0.35, alpha=0.5)
    bar = figure.colorbar(filled, ax=axis, ticks=levels, spacing="uniform")
    bar.set_label(unit, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.ax.yaxis.set_major_formatter("{x:g}")
    members = plane.dropna(subset=["member_index"]).set_index("member_index").loc[_corners(plane, cell)]
    if value == "error":
        _draw_rim(axis, x_X, y_Y, height_YX, members, results.threshold)
    _draw_members(axis, members, value, factor)
    axis.set_aspect("equal")
    axis.set_xlabel("distance in weight space (Euclidean, over parameters)", fontsize=9)
    axis.set_ylabel("the same, at right angles", fontsize=9)
    axis.tick_params(labelsize=8)
    return figure


def _corners(plane: pd.DataFrame, cell: pd.Series[Any]) -> list[int]:
    """The indices of the three members, the one at (0, 0) first."""
    return [list(cell["member_ids"]).index(member_id) for member_id in plane["member_ids"].iloc[0]]


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


def _by_rank(levels: Sequence[float]) -> Any:
    """A norm that gives every band between two levels an equal share of the colours."""
    from matplotlib.colors import BoundaryNorm

    return BoundaryNorm(levels, 256)


def _draw_rim(
    axis: Axes, x_X: Float64Array, y_Y: Float64Array, error_YX: Float64Array, members: pd.DataFrame, threshold: float
) -> None:
    """Where the error (in percent) is `threshold` above that of the first member: the rim of its basin in the plane."""
    rim = 100 * (members["error"].iloc[0] + threshold)
    if np.nanmin(error_YX) < rim < np.nanmax(error_YX):
        axis.contour(x_X, y_Y, error_YX, [rim], colors="black", linewidths=3.4)
        axis.contour(x_X, y_Y, error_YX, [rim], colors="white", linewidths=1.6, linestyles="--")
        label = f"{100 * threshold:g} points above {_member_name(members.index[0])}"
        line = _handle(label, "black", linestyle="-", linewidth=3.4)
        axis.legend(handles=[line], loc="best", fontsize=8, framealpha=0.9)


def _draw_members(axis: Axes, members: pd.DataFrame, value: str, factor: float) -> None:
    """The members, joined by the paths between them, each with its own error or NLL."""
    unit = " %" if value == "error" else " nats"
    corners = pd.concat([members, members.iloc[:1]])
    axis.plot(corners["x"], corners["y"], color="white", linewidth=1.0, linestyle=":", zorder=3)
    axis.plot(members["x"], members["y"], "o", markersize=8, color="white", markeredgecolor="black", zorder=4)
    for index, member in members.iterrows():
        right, up = (member[along] >= members[along].mean() for along in ("x", "y"))  # away from the triangle
        axis.annotate(
            f"{_member_name(index).removeprefix('the ')}\n{factor * member[value]:.3g}{unit}",
            (member["x"], member["y"]), xytext=(7 if right else -7, 7 if up else -7), textcoords="offset points",
            ha="left" if right else "right", va="bottom" if up else "top", fontsize=8.5, zorder=5,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip


def _member_name(index: Any) -> str:
    return "the hub" if int(index) == 0 else f"member {int(index)}"


@_with_own_settings
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
    figure = _figure(width, height, f"{plain(results.sweep['name'])}: {what}")
    axes = figure.subplots(1 + soups, len(checkpoints), sharex=True, sharey="row", squeeze=False)
    for row, kind in zip(axes, ("ensemble", "uniform_soup"), strict=False):
        for axis, checkpoint in zip(row, checkpoints, strict=True):
            of_checkpoint = cells[cells["checkpoint"] == checkpoint]
            for method in reading.in_order(set(of_checkpoint["method"])):
                _draw_sizes(axis, results, _one_size(of_checkpoint[of_checkpoint["method"] == method]), kind)
            _size_legend(axis, "lower right" if kind == "ensemble" else "best")
            axis.xaxis.get_major_locator().set_params(integer=True)
        name = "ensemble" if kind == "ensemble" else "uniform soup"
        row[0].set_ylabel(f"{name} {reading.metric_name(results)} (%, test)\nmean ± sd over replicates")
    if soups:
        worst_hub = 100 * cells["hub_accuracy_reestimated"].fillna(cells["hub_accuracy"]).min()
        axes[1, 0].set_ylim(bottom=max(axes[1, 0].get_ylim()[0], worst_hub - 100 * LARGE_LOSS))
    for axis, checkpoint in zip(axes[0], checkpoints, strict=True):
        axis.set_title(f"checkpoint {plain(checkpoint, 36)}", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("members, hub included")
    return figure


def _size_legend(axis: Axes, inside: Literal["lower right", "best"]) -> None:
    """In the panel while it is short, else below it."""
    if len(axis.get_legend_handles_labels()[1]) <= _LEGEND_INSIDE:
        axis.legend(fontsize=8, frameon=False, loc=inside)
    else:
        axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15))


@_with_own_settings
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
    title = f"{plain(results.sweep['name'])}: accuracy on corrupted images"
    figure = _figure(width, height, title)
    axes = figure.subplots(len(checkpoints), len(shifts), sharex=True, sharey=True, squeeze=False)
    for (checkpoint, shift), axis in zip(product(checkpoints, shifts), axes.flat, strict=True):
        of_checkpoint = cells[cells["checkpoint"] == checkpoint]
        for method in reading.in_order(set(of_checkpoint["method"])):
            of_method = _one_size(of_checkpoint[of_checkpoint["method"] == method])
            _draw_severities(axis, scores[scores["shift"] == shift], of_method)
        n_corruptions = scores.loc[(scores["shift"] == shift) & (scores["severity"] > 0), "corruptions"].max()
        several = f"\ncheckpoint {plain(checkpoint, 36)}" if len(checkpoints) > 1 else ""
        axis.set_title(f"{plain(shift)}: mean over {counted(n_corruptions, 'corruption')}{several}", fontsize=9)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(color="#E5E5E5", linewidth=0.6)
    for axis in axes[-1]:
        axis.set_xlabel("severity (0: the clean test split)")
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy (%)\nmean ± sd over replicates")
    lines = {line.get_label(): line for axis in axes.flat for line in axis.get_legend_handles_labels()[0]}
    columns = max(1, int(width / 3.2))
    figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=columns, fontsize=8, frameon=False)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Writes a figure, whole or not at all; the ending of `path` says how (png, svg, pdf). Raises UserError."""
    ending = Path(path).suffix.removeprefix(".").lower()
    if ending not in figure.canvas.get_supported_filetypes():
        raise UserError(f"{path}: cannot tell the kind of picture from the name; end it in .png, .svg or .pdf")
    content = encoded(figure, ending)
    try:
        folders.write_file(Path(path), content)
    except OSError as error:
        raise UserError(f"{path}: cannot write the figure: {error.strerror or error}") from error


@_with_own_settings
def encoded(figure: Figure, kind: str, **options: Any) -> bytes:
    """A figure as the content of a file of this kind (png, svg, pdf). Raises UserError."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=DPI, **options)
    return buffer.getvalue()


def _figure(width: float, height: float, title: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


def _one_size(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of the most frequent ensemble size: sizes are not mixed in one figure."""
    return cells[cells["n_members"] == reading.main_size(cells)]


def _scatter(axis: Axes, cells: pd.DataFrame) -> None:
    """Columns `_x` and `_y`: the marker tells the method; filled is in the basin, hollow out of it."""
    for (method, in_basin), group in cells.groupby(["method", "in_basin"]):
        marker, _ = _style(str(method))
        colour = INSIDE if in_basin else OUTSIDE
        face = colour if in_basin else "none"
        axis.plot(
            group["_x"], group["_y"], marker, linestyle="none", markersize=7, markerfacecolor=face,
            markeredgecolor=colour, markeredgewidth=1.4, alpha=0.85,
        )  # fmt: skip
    axis.grid(color="#E5E5E5", linewidth=0.6)
    axis.set_axisbelow(True)


def _style(method: str) -> tuple[str, str]:
    known = methods.METHODS.get(method.split(" ")[0])
    return known.style if known else ("X", NEUTRAL)


def _handle(label: str, colour: str, **style: Any) -> Line2D:
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, label=label, **{"linestyle": "none", **style})


def _method_handles(cells: pd.DataFrame) -> list[Line2D]:
    present = reading.in_order(set(cells["method"]))
    return [_handle(name, NEUTRAL, marker=_style(name)[0]) for name in present]


def _side_handles() -> list[Line2D]:
    return [
        _handle("in the basin", INSIDE, marker="o"),
        _handle("out of the basin", OUTSIDE, marker="o", markerfacecolor="none"),
    ]


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8, frameon=False)


def _draw_paths(axis: Axes, paths: pd.DataFrame, column: str, factor: float, member_ids: Sequence[str]) -> None:
    by_position = sorted(
        paths.groupby("path_id"),
        key=lambda item: [member_ids.index(item[1][end].iloc[0]) for end in ("start_id", "end_id")],
    )
    for number, (_, points) in enumerate(by_position):
        path = points.sort_values("t")
        t, height = path["t"].to_numpy(), factor * path[column].to_numpy()
        start, end = (member_ids.index(path[name].iloc[0]) for name in ("start_id", "end_id"))
        colour = _LINES[number % len(_LINES)]
        axis.plot(t, height, marker=".", color=colour, label=f"{start} to {end}")
        axis.plot(t[[0, -1]], height[[0, -1]], color=colour, linestyle=":", linewidth=1)
        for beyond in t[np.isinf(height)]:
            at_the_edge = axis.get_xaxis_transform()
            axis.plot(beyond, 0.98, "^", color=colour, transform=at_the_edge, gid="infinite")
    axis.grid(color="#E5E5E5", linewidth=0.6)
    if column == "nll" and len(by_position) <= _MAX_LEGEND:
        if np.isinf(paths[column]).any():
            axis.plot([], [], "^", color=NEUTRAL, label="infinite")
        axis.legend(title="member", title_fontsize=8, fontsize=8, frameon=False)


def _draw_severities(axis: Axes, scores: pd.DataFrame, cells: pd.DataFrame) -> None:
    """The ensemble and the uniform soup of the point that is best on validation, over severities."""
    point = selection.best_point(cells, "val_ensemble_accuracy", "val_ensemble_nll")
    if point.empty:
        return
    first = point.iloc[0]
    method, n_members, explores = first["method"], first["n_members"], methods.explores(first["method"])
    of_point = scores[scores["cell_id"].isin(point["cell_id"]) & (scores["n_members"] == n_members)]
    ensemble = of_point[(of_point["kind"] == "ensemble") & (of_point["bn"] == "own")]
    soup = of_point[of_point["kind"] == "uniform_soup"] if explores else of_point[:0]
    marker, colour = _style(method)
    beside = 0.03 * list(methods.METHODS).index(method.split(" ")[0])
    where = f" lr {first['lr_ratio']:g}, cycle {first['cycle_ratio']:g}" if explores else ""
    for rows, kind, line in ((ensemble, "ensemble", "-"), (soup, "soup", "--")):
        accuracy = 100 * rows.groupby("severity")["accuracy"].agg(["mean", "std"])
        if accuracy.empty:
            continue
        axis.errorbar(
            accuracy.index.to_numpy(dtype=np.float64) + beside, accuracy["mean"], yerr=accuracy["std"].fillna(0),
            marker=marker, markersize=5, markerfacecolor=colour if kind == "ensemble" else "white", color=colour,
            linestyle=line, capsize=2, label=f"{method}{where}, {kind}, n={len(point)}",
        )  # fmt: skip


def _draw_sizes(axis: Axes, results: Results, cells: pd.DataFrame, kind: str) -> None:
    """One curve: the point of `cells` that is best on validation."""
    chosen_by = "ensemble" if kind == "ensemble" else "soup"
    if cells[f"val_{chosen_by}_accuracy"].isna().all():
        return
    point = selection.best_point(cells, f"val_{chosen_by}_accuracy", f"val_{chosen_by}_nll")
    sizes = reading.accuracy_by_size(results, point["cell_id"], kind).groupby("n_members")["accuracy"]
    if not len(sizes):
        return
    first = point.iloc[0]
    method = first["method"]
    marker, colour = _style(method)
    where = f" lr {first['lr_ratio']:g}, cycle {first['cycle_ratio']:g} (best on validation)"
    mean, deviation = 100 * sizes.mean(), 100 * sizes.std(ddof=1).fillna(0)
    beside = 0.02 * list(methods.METHODS).index(method.split(" ")[0])
    falls = f", falls to {mean.min():.1f} %" if mean.min() < mean.iloc[0] - 100 * LARGE_LOSS else ""
    label = f"{method}{where if methods.explores(method) else ''}, n={len(point)}{falls}"
    axis.errorbar(
        mean.index + beside, mean, yerr=deviation, marker=marker, color=colour, capsize=3, label=label,
        linestyle="-" if kind == "ensemble" else "--", markerfacecolor=colour if kind == "ensemble" else "white",
    )  # fmt: skip
    axis.grid(color="#E5E5E5", linewidth=0.6)
