"""The map: learning rate by cycle length, coloured by a value, with the boundary of the basin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from raybasin.analysis import drawing, explored
from raybasin.analysis import results as reading
from raybasin.analysis.drawing import GREY_TEXT, NEUTRAL, handle, plain
from raybasin.analysis.quantities import Quantity, counted, quantity
from raybasin.analysis.results import Results
from raybasin.errors import NotMeasured
from raybasin.sweep import methods

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from matplotlib.path import Path

NOT_DONE = (0.93, 0.93, 0.93, 1.0)

DIGIT_INCHES, LINE_INCHES = 0.075, 0.16
"""Width of a digit, and height of a line, in the label of a tick."""

FILLED = 0.6
"""Points that fill less of rates by lengths are drawn as marks, others as tiles."""
SCATTERED_INCHES = 5.6, 4.2
LINE_POINTS = 33

LARGE_GAIN = 10.0
"""In percentage points: beyond it a linear scale would hide the small ones, and a symmetric logarithmic one is used."""


@dataclass(frozen=True)
class Scale:
    """The ratios along one log axis of a map. Cells meet at the geometric midpoints between ratios."""

    ratios: tuple[float, ...]

    @cached_property
    def edges(self) -> npt.NDArray[np.float64]:
        """Cell edges, one more than there are ratios; the outermost cells are symmetric about theirs."""
        ratios = np.asarray(self.ratios, dtype=np.float64)
        if len(ratios) == 1:
            return np.concatenate([ratios * 0.5**0.5, ratios * 2**0.5])
        inner = np.sqrt(ratios[:-1] * ratios[1:])
        return np.concatenate([[ratios[0] ** 2 / inner[0]], inner, [ratios[-1] ** 2 / inner[-1]]])

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
    x: Scale
    y: Scale
    line: pd.DataFrame
    """The boundary at lengths close together, as `explored.line_of` gives it."""

    @property
    def scattered(self) -> bool:
        """Whether its points lie where a search has put them, and fill no table."""
        return len(self.table) < FILLED * len(self.x.ratios) * len(self.y.ratios)


Lines = dict[tuple[str, str, int], pd.DataFrame]
"""The boundary of each checkpoint, method and ensemble size."""


@drawing.default_settings()
def map_figure(results: Results, value: str = "ensemble_gain", method: str | None = "star_sse") -> Figure:
    """The map: learning rate by cycle length, coloured by a value, and the boundary of the basin as a line with its
    95 % interval. Points of a grid are tiles with their value, those of a search marks.

    One row of panels per checkpoint and, with `method=None`, one column per exploring method that has cells; all panels
    share their axes and colours. Of each method the cells of the most frequent ensemble size are shown.

    Args:
        results: what `raybasin.open` gives.
        value: a column, gain or score (see `results.values`); its mean over replicates is shown.
        method: a method, or None for all that explore.

    Raises:
        UserError: if there is no such cell or value.
    """
    panels = panels_of(results, value, method)
    shown_as, metric = reading.shown_as(results, value), reading.metric_name(results)
    rows, columns = len({panel.checkpoint for panel in panels}), len({panel.method for panel in panels})
    width = _inches([panel.x for panel in panels], per_cell=0.9, least=2.6 if columns == 1 else 3.4, most=9.0)
    height = _inches([panel.y for panel in panels], per_cell=0.58, least=1.7, most=6.5)
    if any(panel.scattered for panel in panels):
        width, height = SCATTERED_INCHES
    checkpoint = f"checkpoint {plain(panels[0].checkpoint)}" if rows == 1 else f"{rows} checkpoints"
    judged_by = "" if metric == "accuracy" else f"; {metric}"
    decided = f"in or out by the {results.barrier_words}"
    title = f"{drawing.sweep_name(results)}: {shown_as.title}\n{checkpoint}{judged_by}\n{decided}"
    figure = drawing.new_figure(max(columns * (width + 0.3) + 2.1, 7.2), rows * (height + 0.9) + 2.0, title)
    axes = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    colours = colours_of(panels, shown_as)
    of_decade = width / max(panel.x.decades for panel in panels), height / max(panel.y.decades for panel in panels)
    unwritten = 0
    for axis, panel in zip(axes, panels, strict=True):
        axis.set(xscale="log", yscale="log")
        if panel.scattered:
            _draw_marks(axis, panel, shown_as, colours)
        else:
            unwritten += _draw_tiles(axis, panel, shown_as, colours, of_decade)
        _draw_line(axis, panel)
        axis.set_title(_panel_title(panel, value, several=rows > 1), fontsize=9, loc="left")
    _label_axes(axes, columns, panels, results, (width, height))
    _draw_colour_bar(figure, axes, panels, shown_as, colours)
    _draw_legend(figure, panels, shown_as, results, unwritten)
    return figure


def rule(results: Results) -> str:
    """What is in the basin: `error barrier on training images at most 2 points`."""
    return f"{results.barrier_words} at most {quantity(results.criterion.barrier).limit(results.threshold)}"


def panels_of(
    results: Results, value: str = "ensemble_gain", method: str | None = None, lines: Lines | None = None
) -> list[Panel]:
    """The maps of a value, of one method or all that explore, by checkpoint and method. Where several values are drawn,
    `lines` keeps what is the same for all. Raises UserError if there is no such cell or value."""
    lines = {} if lines is None else lines
    cells = reading.values(results, value)
    names = reading.methods_with_a_map(results) if method is None else [method]
    if not names:
        wanted = " or ".join(methods.exploring())
        raise NotMeasured(f"{results.folder.root}: no finished cell of {wanted}, so there is nothing to map")
    panels = []
    where = list(product(reading.checkpoints_of(results), names))
    tables = [reading.grid(results, value, name, checkpoint) for checkpoint, name in where]
    everywhere = pd.concat(tables)
    for (checkpoint, name), table in zip(where, tables, strict=True):
        shown = everywhere if table.empty else table  # a search may have chosen no point there
        size = reading.main_size(cells[cells["method"] == name])
        beside = (cells["method"] == "local_de") & (cells["checkpoint"] == checkpoint) & (cells["n_members"] == size)
        local_de = cells.loc[beside, "value"].dropna()
        x, y = scale(shown["cycle_ratio"]), scale(shown["lr_ratio"])
        own = cells.query("method == @name and checkpoint == @checkpoint and n_members == @size")
        if (checkpoint, name, size) not in lines:
            lines[checkpoint, name, size] = _line_of(results, own, x) if len(own) else pd.DataFrame()
        line = lines[checkpoint, name, size]
        panels.append(Panel(name, checkpoint, size, table, local_de, x, y, line))
    return panels


def _line_of(results: Results, cells: pd.DataFrame, x: Scale) -> pd.DataFrame:
    """The boundary of these cells all along an axis. Of a single length it is that at this length: what is less well
    known beside it is nobody's question."""
    if len(x.ratios) > 1:
        return explored.line_of(results, cells, np.geomspace(x.edges[0], x.edges[-1], LINE_POINTS))
    line = explored.line_of(results, cells, x.ratios)
    return pd.concat([line.assign(cycle_ratio=float(edge)) for edge in x.edges], ignore_index=True)


def frame(panels: Sequence[Panel]) -> pd.DataFrame:
    """The points of these maps as one table."""
    tables = [panel.table.assign(checkpoint=panel.checkpoint, method=panel.method, n_members=panel.n_members)
              for panel in panels]  # fmt: skip
    found = pd.concat(tables, ignore_index=True)
    whose = ["checkpoint", "method", "n_members", "lr_ratio", "cycle_ratio"]
    return found[[*whose, *(name for name in found.columns if name not in whose)]]


def _inches(scales: Sequence[Scale], per_cell: float, least: float, most: float) -> float:
    """Length of an axis on which the narrowest cell can hold its text."""
    longest = max(scale.decades for scale in scales)
    narrowest = min(scale.narrowest for scale in scales)
    return float(np.clip(longest / narrowest * per_cell, least, most))


def colours_of(panels: Sequence[Panel], shown_as: Quantity) -> ScalarMappable:
    """From values in the unit of the map to colours: 0 is white where values are differences. Infinite ones get the
    colours at the ends."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, SymLogNorm

    columns = [panel.table["value"] for panel in panels]
    columns += [panel.local_de for panel in panels if shown_as.of_ensemble]
    values = pd.concat(columns).to_numpy(dtype=float, na_value=np.nan) * shown_as.factor
    values = values[np.isfinite(values)]
    if not len(values):  # of exits: nothing has left
        return ScalarMappable(Normalize(0, 1), "cividis")
    if not shown_as.signed:
        spare = 0.0 if np.ptp(values) > 0 else 0.05 * abs(values[0]) + 1e-6
        return ScalarMappable(Normalize(values.min() - spare, values.max() + spare), "cividis")
    limit = max(float(np.abs(values).max()), 0.1)
    if limit <= LARGE_GAIN:
        return ScalarMappable(Normalize(-limit, limit), "RdBu")
    return ScalarMappable(SymLogNorm(linthresh=1.0, vmin=-limit, vmax=limit), "RdBu")


def ink_on(face: Sequence[float]) -> str:
    """The colour of a text on this one, which is red, green, blue and opacity from 0 to 1."""
    red, green, blue, _ = face
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


LEAST_ROOM = 3.5
"""Points of letters for which a tile has room; with less nothing is written."""


def _draw_tiles(
    axis: Axes, panel: Panel, shown_as: Quantity, colours: ScalarMappable, of_decade: tuple[float, float]
) -> int:
    """Points of one colour each, hatched where they are out of the basin, with their values where these have room, in
    letters as large as the smallest of these tiles has room for. `of_decade` is its width and height in inches. Says of
    how many the value is not written."""
    from matplotlib import patheffects
    from matplotlib.patches import Rectangle

    x, y = (dict(zip(at.ratios, pairwise(at.edges.tolist()), strict=True)) for at in (panel.x, panel.y))
    cells = panel.table.to_dict("records")
    # Two lines of text fit into a tile, or three with an interval.
    line = 0.075 if panel.table["low"].notna().any() else 0.055
    rooms = [
        min(
            _inches_of(x[cell["cycle_ratio"]], of_decade[0]) / 0.085,
            _inches_of(y[cell["lr_ratio"]], of_decade[1]) / line,
        )
        for cell in cells
    ]
    font = float(np.clip(min((room for room in rooms if room >= LEAST_ROOM), default=0.0), 4, 9))
    for cell, room in zip(cells, rooms, strict=True):
        sides, levels = x[cell["cycle_ratio"]], y[cell["lr_ratio"]]
        done, ink = cell["state"] == "done", GREY_TEXT
        face: Any = NOT_DONE
        if done and np.isnan(cell["value"]):
            face = "white"
        elif done:
            face = colours.to_rgba(cell["value"] * shown_as.factor)
            ink = ink_on(face)
        # Patches, of which there may be a thousand: for each collection matplotlib would look at all axes again.
        tile = partial(Rectangle, (sides[0], levels[0]), sides[1] - sides[0], levels[1] - levels[0])
        axis.add_patch(tile(facecolor=face, edgecolor="white", linewidth=min(1.2, room / 4), gid=cell["state"]))
        if done and not cell["in_basin"]:
            axis.add_patch(tile(facecolor="none", edgecolor=ink, alpha=0.45, linewidth=0, hatch="///", gid="out"))
        if room < LEAST_ROOM:
            continue
        axis.text(
            (sides[0] * sides[1]) ** 0.5, (levels[0] * levels[1]) ** 0.5, cell_text(cell, shown_as), color=ink,
            ha="center", va="center", fontsize=font, linespacing=1.15, zorder=3,
            gid=f"{drawing.TILE}{sides[0]} {levels[0]} {sides[1]} {levels[1]}",
            path_effects=[patheffects.withStroke(linewidth=0.6 * font, foreground=face)],  # lines pass behind it
        )  # fmt: skip
    return sum(room < LEAST_ROOM for room in rooms)


def _inches_of(ends: tuple[float, float], of_decade: float) -> float:
    return float(np.log10(ends[1] / ends[0])) * of_decade


def _draw_marks(axis: Axes, panel: Panel, shown_as: Quantity, colours: ScalarMappable) -> None:
    """A mark for each point: round in the basin, a cross out of it, larger where there are more replicates."""
    for cell in panel.table.to_dict("records"):
        done = cell["state"] == "done"
        face: Any = (
            colours.to_rgba(cell["value"] * shown_as.factor) if done and not np.isnan(cell["value"]) else NOT_DONE
        )
        out = done and not cell["in_basin"]
        axis.scatter(
            cell["cycle_ratio"], cell["lr_ratio"], s=45 + 35 * cell["replicates"], color=face, zorder=3,
            marker="X" if out else "o", edgecolors="black", linewidths=0.8, gid="out" if out else cell["state"],
        )  # fmt: skip


def known_line(line: pd.DataFrame) -> pd.DataFrame:
    """The lengths of a boundary at which at least one end of its interval is known."""
    return line if line.empty else line[(line["low"] > 0) | (line["high"] < np.inf)]


def _draw_line(axis: Axes, panel: Panel) -> None:
    """Open ends of an interval reach to the end of the axis, which is set later; no tile, no shade."""
    line = known_line(panel.line)
    if line.empty:
        return
    low, high = line["low"].clip(lower=1e-9), line["high"].clip(upper=1e9)
    shade = axis.fill_between(line["cycle_ratio"], low, high, color=SHADE, linewidth=0, zorder=2, gid="interval")
    if not panel.scattered:
        shade.set_clip_path(_tiled(panel), axis.transData)
    for colour, wider in (("white", 1.6), ("black", 0.0)):
        for end in (low, high):
            axis.plot(line["cycle_ratio"], end, color=colour, linewidth=0.7 + wider, linestyle=DASHED, zorder=2)
        axis.plot(line["cycle_ratio"], line["lr_ratio"], color=colour, linewidth=2.6 + wider, zorder=2, gid="boundary")


SHADE = (0.0, 0.0, 0.0, 0.16)
"""Of the interval: red, green, blue, opacity."""
DASHED = (0, (4, 3))


def _tiled(panel: Panel) -> Path:
    """All tiles of a panel as one shape."""
    from matplotlib.path import Path

    x, y = (dict(zip(at.ratios, pairwise(at.edges.tolist()), strict=True)) for at in (panel.x, panel.y))
    tiles = zip(panel.table["cycle_ratio"].map(x), panel.table["lr_ratio"].map(y), strict=True)
    corners = [[(left, low), (right, low), (right, high), (left, high), (left, low)]
               for (left, right), (low, high) in tiles]  # fmt: skip
    return Path.make_compound_path(*(Path(corner, closed=True) for corner in corners))


def cell_text(cell: dict[Any, Any], shown_as: Quantity) -> str:
    """The value, its interval where one is known, and the side of the boundary: `in`, `out` or `1/2 in` by the mean
    barrier; `?` where that is undecided."""
    if cell["state"] != "done":
        return str(cell["state"])
    n, n_in = cell["replicates"], cell["replicates_in"]
    side = {0: "out", n: "in"}.get(n_in, f"{n_in}/{n} in")
    doubt = " ?" if cell["side"] == "undecided" else ""
    few = f", n={n}" if n < cell["replicates_planned"] else ""
    value = shown_as.with_interval(cell["value"], cell["low"], cell["high"]).replace(" [", "\n[")
    return f"{value}\n{side}{doubt}{few}"


def _panel_title(panel: Panel, value: str, several: bool) -> str:
    if panel.table.empty:
        replicates = "no point"
    elif panel.scattered:  # a search repeats the points where that tells most
        replicates = f"up to {counted(int(panel.table['replicates'].max()), 'replicate')}"
    else:
        replicates = counted(int(panel.table["replicates_planned"].iloc[0]), "replicate")
    checkpoint = f"checkpoint {plain(panel.checkpoint, 36)}\n" if several else ""
    beat = "line to beat: " if quantity(value).of_ensemble else ""
    n = len(panel.local_de)
    mean = quantity(value).text(panel.local_de.mean()) if n else ""
    found = f"{beat}local_de {mean} (n={n})" if n else "no local_de to compare with"
    return f"{checkpoint}{panel.method}, {panel.n_members} members, {replicates}\n{found}"


def _apart(ratios: Iterable[float], axis_inches: float, label_inches: Callable[[str], float]) -> list[float]:
    """These ratios without those that a search has chosen so close together that their labels would touch."""
    at, shown = scale(ratios), list[float]()
    for ratio in at.ratios:
        if shown:
            needed = (label_inches(f"{shown[-1]:g}") + label_inches(f"{ratio:g}")) / 2
        if not shown or np.log10(ratio / shown[-1]) / at.decades * axis_inches >= needed:
            shown.append(ratio)
    return shown


def _label_axes(
    axes: Sequence[Axes], columns: int, panels: Sequence[Panel], results: Results, inches: tuple[float, float]
) -> None:
    """Ratios as ticks; on the far sides what they are in learning rate and in epochs. A panel is so many `inches` wide
    and high."""
    x = _apart(
        (ratio for panel in panels for ratio in panel.x.ratios), inches[0], lambda text: DIGIT_INCHES * len(text)
    )
    y = _apart((ratio for panel in panels for ratio in panel.y.ratios), inches[1], lambda text: LINE_INCHES)
    recipe = results.sweep["recipe"]
    for position, axis in enumerate(axes):
        axis.set_xlim(min(p.x.edges[0] for p in panels), max(p.x.edges[-1] for p in panels))
        axis.set_ylim(min(p.y.edges[0] for p in panels), max(p.y.edges[-1] for p in panels))
        axis.minorticks_off()
        axis.set_xticks(x, [f"{ratio:g}" for ratio in x], fontsize=9)
        axis.set_yticks(y, [f"{ratio:g}" for ratio in y], fontsize=9)
        if position >= len(axes) - columns:
            axis.set_xlabel("cycle_ratio (cycle length / fine-tuning length)", fontsize=9)
        if position % columns == 0:
            axis.set_ylabel("lr_ratio (max_lr / fine-tuning lr)", fontsize=9)
        if position < columns:
            _second_ticks(axis.secondary_xaxis("top").xaxis, x, recipe["epochs"], "cycle length (epochs)")
        if position % columns == columns - 1:
            _second_ticks(axis.secondary_yaxis("right").yaxis, y, recipe["lr"], "max_lr")


def _second_ticks(axis: XAxis | YAxis, ratios: Sequence[float], of_one: float, title: str) -> None:
    """Ticks that say what the ratios are, where the ratio 1 is `of_one`."""
    labels = [f"{ratio * of_one:.3g}" for ratio in ratios]
    axis.set_ticks(ratios, labels, fontsize=8, color=GREY_TEXT)
    axis.set_ticks([], minor=True)
    axis.set_label_text(title, fontsize=8, color=GREY_TEXT)


def _draw_colour_bar(
    figure: Figure, axes: Sequence[Axes], panels: Sequence[Panel], shown_as: Quantity, colours: ScalarMappable
) -> None:
    bar = figure.colorbar(colours, ax=axes, fraction=0.05, pad=0.02, aspect=25 * len({p.checkpoint for p in panels}))
    bar.set_label(shown_as.label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.ax.yaxis.set_major_formatter("{x:g}")
    if not shown_as.of_ensemble:
        return
    for value in {panel.local_de.mean() * shown_as.factor for panel in panels if len(panel.local_de)}:
        if np.isfinite(value):
            bar.ax.plot([0.5], [value], "D", color="black", markeredgecolor="white", markersize=7, clip_on=False)


INTERVAL = "95 % interval of the boundary, by all points together"


def _draw_legend(figure: Figure, panels: Sequence[Panel], shown_as: Quantity, results: Results, unwritten: int) -> None:
    from matplotlib.patches import Patch

    tables = pd.concat([panel.table for panel in panels])
    done = tables[tables["state"] == "done"]
    mixed = (done["replicates_in"] > 0) & (done["replicates_in"] < done["replicates"])
    lines = [known_line(panel.line) for panel in panels]
    bounded = any(line["lr_ratio"].notna().any() for line in lines if len(line))
    marked, written = any(panel.scattered for panel in panels), unwritten < len(tables)
    tiled = any(not panel.scattered for panel in panels)
    beside = shown_as.of_ensemble and any(len(panel.local_de) for panel in panels)
    limit = quantity(results.criterion.barrier).limit(results.threshold)
    out = f"out: mean {results.barrier_words} above {limit}"
    out += ", or an infinite loss" if done["walls"].any() else ""
    ragged = len({(panel.x, panel.y) for panel in panels}) > 1
    handles = [
        (tiled, Patch(facecolor="white", edgecolor="black", hatch="///", label=out)),
        (marked, handle("in the basin; larger: more replicates", "black", marker="o")),
        (marked, handle(out, "black", marker="X")),
        (bounded, handle("basin boundary", "black", linestyle="-", linewidth=2.6)),
        (
            any(map(len, lines)),
            Patch(facecolor=SHADE, edgecolor="black", linestyle=DASHED, linewidth=0.7, label=INTERVAL),
        ),
        (
            tiled and written and (done["side"] == "undecided").any(),
            handle("undecided by its own replicates", "black", marker="$?$"),
        ),
        (tiled and written and mixed.any(), handle("replicates disagree", "black", marker="$1/2$", markersize=16)),
        (beside, handle("local_de, the line to beat", "black", marker="D")),
        (len(done) < len(tables), Patch(facecolor=NOT_DONE, label="not finished")),
        (ragged, Patch(facecolor="white", edgecolor=NEUTRAL, linewidth=0.5, label="not in the sweep")),
        (unwritten > 0, handle("values that have no room: `raybasin figures`", "white")),
    ]
    drawing.legend_below(figure, [entry for wanted, entry in handles if wanted], figure.get_figwidth() / 2.9)
