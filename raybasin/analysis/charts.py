"""The figures of the report's page, as plain values that plotly.js draws: each a list of traces and a layout.

They show what `frames` holds, and the maps of `maps`. Names may come from other people's files, and plotly takes some
of HTML in any text for markup: all text goes through `shown`. Colours that begin with `@` are those of the page, which
may be dark.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from raybasin.analysis import figures, frames, maps
from raybasin.analysis import results as reading
from raybasin.analysis.drawing import INSIDE, OUTSIDE
from raybasin.analysis.figures import SCORES
from raybasin.analysis.maps import Panel
from raybasin.analysis.quantities import Quantity, counted, quantity, shortened
from raybasin.analysis.results import Results
from raybasin.analysis.scales import SymmetricLog, tick_labels
from raybasin.landscape import basin_exits
from raybasin.metrics.selection import POINT
from raybasin.sweep import specs

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable

Chart = dict[str, Any]
"""`title`, and what `Plotly.newPlot` takes: `data` and `layout`."""
Trace = dict[str, Any]

INK, SOFT = "@ink", "@soft"
SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "v": "triangle-down", "<": "triangle-left",
           ">": "triangle-right", "D": "diamond", "P": "cross", "X": "x", "*": "star", "p": "pentagon",
           "h": "hexagon"}  # fmt: skip
"""Markers of methods, by what matplotlib calls them."""
DASHES = ("solid", "dash", "dot", "dashdot")
DIGITS = 5

Key = tuple[Any, ...]
"""The values of `POINT`."""


def shown(text: object, width: int = 48) -> str:
    """Text of a table as plotly may show it: shortened, and never read as markup."""
    return html.escape(shortened(str(text), width)).replace("$", "&#36;")


def numbers(values: Iterable[Any]) -> list[float | None]:
    """As JSON has them, with as many digits as can be seen; None where there is no finite number."""
    return [float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None
            for value in pd.Series(list(values), dtype=float)]  # fmt: skip


def _chart(title: str, data: Sequence[Trace], x: Mapping[str, Any], y: Mapping[str, Any], **layout: Any) -> Chart:
    # The title stands outside of what plotly draws, as plain text.
    return {"title": html.unescape(title), "data": [*data], "layout": {"xaxis": dict(x), "yaxis": dict(y), **layout}}


def _titled(text: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": text}, **more}


def _style(method: str) -> tuple[str, str]:
    """Symbol and colour of a method."""
    marker, colour = figures.style(method)[:2]
    return SYMBOLS.get(marker, "circle"), INK if colour == "#000000" else colour


# The map


def map_charts(
    results: Results, value: str, hover: Mapping[Key, tuple[int, str]], lines: maps.Lines | None = None
) -> list[Chart]:
    """One for each checkpoint and method. `hover` has the number of each point on the page and what is said of it,
    `lines` is as in `maps.panels_of`. Raises UserError if there is no such value."""
    panels, shown_as = maps.panels_of(results, value, lines=lines), reading.shown_as(results, value)
    colours = maps.colours_of(panels, shown_as)
    several = len({panel.checkpoint for panel in panels}) > 1
    return [_map_chart(panel, shown_as, colours, hover, several) for panel in panels]


def _map_chart(
    panel: Panel, shown_as: Quantity, colours: ScalarMappable, hover: Mapping[Key, tuple[int, str]], several: bool
) -> Chart:
    if panel.scattered:
        below, above, more = _marks(panel, shown_as, colours, hover), list[Trace](), dict[str, Any]()
    else:
        below, above = _tiles(panel, shown_as, colours, hover)
        more = {"fit": _room(panel, above)}
    of = f", {shown(panel.checkpoint, 30)}" if several else ""
    beat = ""
    if shown_as.of_ensemble and len(panel.local_de):
        beat = f"; local_de {shown_as.text(panel.local_de.mean())}"
    title = f"{shown(panel.method)}{of}, {counted(panel.n_members, 'member')}{beat}"
    return _chart(
        title, [*below, *_line(panel.line), *above],
        _ratio_axis(panel.x, "cycle_ratio (cycle length / fine-tuning length)"),
        _ratio_axis(panel.y, "lr_ratio (max_lr / fine-tuning lr)"), showlegend=False, hovermode="closest",
    ) | more  # fmt: skip


def _room(panel: Panel, labels: Sequence[Trace]) -> dict[str, float]:
    """What a tile's text may take up: of the width of the chart each character, of its height each line."""
    texts = [line for trace in labels for text in trace["text"] for line in text.split("<br>")]
    lines = max((text.count("<br>") + 1 for trace in labels for text in trace["text"]), default=1)
    return {"width": panel.x.narrowest / panel.x.decades / max(map(len, texts), default=1),
            "height": panel.y.narrowest / panel.y.decades / lines}  # fmt: skip


def _ratio_axis(scale: maps.Scale, title: str) -> dict[str, Any]:
    ends = np.log10([scale.edges[0], scale.edges[-1]])
    apart, ratios = 0.05 * (ends[1] - ends[0]), list[float]()
    for ratio in scale.ratios:  # a search may have put some close together
        if not ratios or np.log10(ratio / ratios[-1]) >= apart:
            ratios.append(ratio)
    return _titled(
        title, range=numbers(ends), tickvals=numbers(np.log10(ratios)), ticktext=[f"{ratio:g}" for ratio in ratios],
        zeroline=False, showgrid=False,
    )  # fmt: skip


def _coloured(shown_as: Quantity, colours: ScalarMappable) -> dict[str, Any]:
    """Colours as matplotlib has them: what is coloured are shares of the scale, whose ticks say what they stand for."""
    from matplotlib.colors import to_hex

    low, high = map(float, colours.get_clim())
    linear = type(colours.norm).__name__ == "Normalize"
    ticks = np.array(np.linspace(low, high, 5) if linear else SymmetricLog().ticks(low, high))
    texts = [f"{tick:.3g}".replace("-", "−") for tick in ticks]
    return {
        "cmin": 0, "cmax": 1,
        "colorscale": [[share, to_hex(colours.cmap(share))] for share in np.linspace(0, 1, 13).tolist()],
        "colorbar": {"title": {"text": shown_as.unit, "side": "right"}, "thickness": 12, "outlinewidth": 0,
                     "tickvals": numbers(map(colours.norm, ticks)), "ticktext": texts},
    }  # fmt: skip


def _share(cell: Mapping[Any, Any], shown_as: Quantity, colours: ScalarMappable) -> float | None:
    """Where the value of a point lies on the scale of colours; infinite ones at its ends."""
    value = cell["value"] * shown_as.factor
    return None if np.isnan(value) else round(float(np.clip(colours.norm(value), 0, 1)), 4)


def _said(panel: Panel, cell: Mapping[Any, Any], hover: Mapping[Key, tuple[int, str]]) -> tuple[int | None, str]:
    place = f"{shown(panel.method)}, lr_ratio {cell['lr_ratio']:g}, cycle_ratio {cell['cycle_ratio']:g}"
    key = (panel.method, panel.checkpoint, cell["lr_ratio"], cell["cycle_ratio"], panel.n_members)
    return hover.get(key, (None, f"{place}<br>{cell['state']}"))


def _tiles(
    panel: Panel, shown_as: Quantity, colours: ScalarMappable, hover: Mapping[Key, tuple[int, str]]
) -> tuple[list[Trace], list[Trace]]:
    """What lies below the boundary, and the texts above it, with a halo of the colour of their tile."""
    from matplotlib.colors import to_hex

    shape = len(panel.y.ratios), len(panel.x.ratios)
    z, text, points, said = (np.full(shape, empty, dtype=object) for empty in (None, "", None, ""))
    for cell in panel.table.to_dict("records"):
        at = panel.y.ratios.index(cell["lr_ratio"]), panel.x.ratios.index(cell["cycle_ratio"])
        points[at], said[at] = _said(panel, cell, hover)
        text[at] = maps.cell_text(cell, shown_as).replace("\n", "<br>")
        z[at] = _share(cell, shown_as, colours) if cell["state"] == "done" else None
    scale = _coloured(shown_as, colours)
    known = {"zmin": scale.pop("cmin"), "zmax": scale.pop("cmax"), **scale}
    edges_x, edges_y = (numbers(np.log10(at.edges)) for at in (panel.x, panel.y))
    tiles = {
        "type": "heatmap", "x": edges_x, "y": edges_y, "z": z.tolist(), "customdata": points.tolist(), "xgap": 2,
        "hovertext": said.tolist(), "hoverinfo": "text", "ygap": 2, "hoverongaps": False, **known,
    }  # fmt: skip
    written = [at for at in np.ndindex(shape) if text[at]]
    faces = [None if z[at] is None else colours.cmap(z[at]) for at in written]
    labels = {
        "type": "scatter", "mode": "text", "x": numbers(np.log10([panel.x.ratios[column] for _, column in written])),
        "y": numbers(np.log10([panel.y.ratios[row] for row, _ in written])), "text": [text[at] for at in written],
        "hovertext": [said[at] for at in written], "hoverinfo": "text", "customdata": [points[at] for at in written],
        "textfont": {"size": 12, "color": [SOFT if face is None else maps.ink_on(face) for face in faces]},
        "meta": ["" if face is None else to_hex(face) for face in faces],  # of the halo, which the page draws
    }  # fmt: skip
    return [tiles], [labels]


def _marks(
    panel: Panel, shown_as: Quantity, colours: ScalarMappable, hover: Mapping[Key, tuple[int, str]]
) -> list[Trace]:
    cells = panel.table.to_dict("records")
    said = [_said(panel, cell, hover) for cell in cells]
    out = [cell["state"] == "done" and not cell["in_basin"] for cell in cells]
    marker = {
        "size": [10 + 3 * min(cell["replicates"], 6) for cell in cells],
        "symbol": ["x" if far else "circle" for far in out],
        "color": [_share(cell, shown_as, colours) for cell in cells], "line": {"color": INK, "width": 1},
        "showscale": True, **_coloured(shown_as, colours),
    }  # fmt: skip
    x, y = (numbers(np.log10(panel.table[name])) for name in ("cycle_ratio", "lr_ratio"))
    return [{"type": "scatter", "mode": "markers", "x": x, "y": y, "marker": marker, "hoverinfo": "text",
             "hovertext": [text for _, text in said], "customdata": [point for point, _ in said]}]  # fmt: skip


def _line(line: pd.DataFrame) -> Iterator[Trace]:
    """The basin's boundary and, dashed, the ends of its 95 % interval."""
    if (known := maps.known_line(line)).empty:
        return
    x = numbers(np.log10(known["cycle_ratio"]))
    with np.errstate(divide="ignore"):
        for column, width, dash in (("low", 1, "dash"), ("high", 1, "dash"), ("lr_ratio", 3, "solid")):
            y = numbers(np.log10(known[column].astype(float)))
            for colour, wider in (("white", 2), ("black", 0)):  # seen on dark and light tiles alike
                yield {"type": "scatter", "mode": "lines", "x": x, "y": y, "hoverinfo": "skip",
                       "line": {"color": colour, "width": width + wider, "dash": dash}}  # fmt: skip


# Cells


def trade_off_charts(results: Results, hover: Mapping[Key, tuple[int, str]]) -> list[Chart]:
    """Gain of ensemble and soup by the barrier that decides."""
    cells, barrier = frames.trade_off(results), quantity(results.criterion.barrier)
    threshold, height = barrier.factor * results.threshold, barrier.factor * cells[results.criterion.barrier]
    scale = SymmetricLog(threshold / 2)
    charts = []
    for column in ("ensemble_gain", "soup_gain"):
        gain = 100 * cells[column]
        if gain.isna().all():
            continue
        far = SymmetricLog() if gain.min() < -figures.LARGE_LOSS else None
        traces = _cell_marks(cells, _placed(height, scale), _placed(gain, far), hover)
        lines = [_straight("x", float(scale.positions(threshold))), _straight("y", 0.0)]
        charts.append(_chart(
            f"{quantity(column).title} over the hub", traces,
            _axis(f"{results.barrier_words}, hub to member ({barrier.unit})", height, scale),
            _axis("percentage points", gain, far), shapes=lines, hovermode="closest",
        ))  # fmt: skip
    return charts


def diversity_charts(results: Results, hover: Mapping[Key, tuple[int, str]]) -> list[Chart]:
    """Accuracy of members and gain of ensembles by how much members differ; colours are learning rates."""
    cells = frames.diversity(results)
    if cells["normalised_disagreement"].isna().all():
        return []
    shades = figures.rate_colours(cells["lr_ratio"])
    titles = {"member_accuracy": f"mean member {reading.metric_name(results)} (%)",
              "ensemble_gain": "ensemble gain over the hub (points)"}  # fmt: skip
    return [
        _chart(
            title, _cell_marks(cells, cells["normalised_disagreement"], 100 * cells[column], hover, shades),
            _titled("normalised disagreement of members"), _titled(title), hovermode="closest",
        )
        for column, title in titles.items()
    ]  # fmt: skip


def _placed(values: pd.Series[float], scale: SymmetricLog | None) -> pd.Series[float]:
    return values if scale is None else pd.Series(scale.positions(values), index=values.index)


def _axis(title: str, values: pd.Series[float], scale: SymmetricLog | None) -> dict[str, Any]:
    finite = values[np.isfinite(values)]
    if scale is None or finite.empty:
        return _titled(title)
    ticks = scale.ticks(min(0.0, float(finite.min())), float(finite.max()))
    return _titled(title, tickvals=numbers(scale.positions(ticks)), ticktext=tick_labels(ticks), zeroline=False)


def _straight(which: str, at: float) -> dict[str, Any]:
    """A line across the whole chart, at a value of the axis `which`."""
    along = "y" if which == "x" else "x"
    return {"type": "line", f"{which}0": at, f"{which}1": at, f"{along}0": 0, f"{along}1": 1, f"{along}ref": "paper",
            "line": {"color": SOFT, "width": 1, "dash": "dash" if which == "x" else "solid"}}  # fmt: skip


def _cell_marks(
    cells: pd.DataFrame, x: pd.Series[float], y: pd.Series[float], hover: Mapping[Key, tuple[int, str]],
    shades: Mapping[float, str] | None = None,
) -> list[Trace]:  # fmt: skip
    """A trace for each method, side and, with `shades`, learning rate: hollow marks are out of the basin."""
    traces = []
    rates = cells["lr_ratio"] if shades else pd.Series(0.0, index=cells.index)
    for (method, in_basin, rate), group in cells.groupby([cells["method"], cells["in_basin"], rates]):
        symbol = _style(str(method))[0]
        colour = shades[float(str(rate))] if shades else INSIDE if in_basin else OUTSIDE
        said = [hover.get(tuple(row), (None, "")) for row in group[POINT].itertuples(index=False, name=None)]
        named = f", lr_ratio {rate:g}" if shades else ""
        traces.append({
            "type": "scatter", "mode": "markers", "x": numbers(x[group.index]), "y": numbers(y[group.index]),
            "name": f"{shown(method, 24)}{named}, {'in' if in_basin else 'out'}",
            "customdata": [point for point, _ in said],
            "hovertext": [f"{text}<br>replicate {replicate}" for (_, text), replicate
                          in zip(said, group["replicate"], strict=True)],
            "marker": {"symbol": symbol if in_basin else f"{symbol}-open", "color": colour, "size": 9},
            "hoverinfo": "text",
        })  # fmt: skip
    return traces


# Ensembles and soups: of each method the point that is best on validation


def sizes_charts(results: Results, hover: Mapping[Key, tuple[int, str]]) -> list[Chart]:
    """NLL, accuracy and worth of ensembles and accuracy of soups by size, with 95 % intervals."""
    found = frames.sizes(results)
    charts = []
    for kind, score in (("ensemble", "nll"), ("ensemble", "accuracy"), ("uniform_soup", "accuracy"),
                        ("ensemble", "deep_ensemble_equivalent")):  # fmt: skip
        rows = found[(found["kind"] == kind) & (found["score"] == score)]
        for checkpoint, of_checkpoint in rows.groupby("checkpoint", sort=False):
            if (of_checkpoint["size"] > 1).any():
                charts.append(_sizes_chart(results, of_checkpoint, kind, score, str(checkpoint), hover))
    return charts


def _sizes_chart(
    results: Results, rows: pd.DataFrame, kind: str, score: str, checkpoint: str, hover: Mapping[Key, tuple[int, str]]
) -> Chart:
    if score in SCORES:
        factor, title = SCORES[score][1], figures.score_name(results, kind, score)
        bars = "95 % interval" if figures.interval_of(rows)[0] == "low" else "range of replicates"
        worst = figures.LARGE_LOSS / 100 if kind == "uniform_soup" else np.inf
        ends = numbers(factor * end for end in figures.shown_range(rows, worst))
        y = _titled(f"mean and {bars}", range=ends)
    else:
        factor, title, y = 1, "worth so many members of local_de", _titled("members, by equal calibrated NLL")
    curves = [_curve(curve, "size", factor, hover, score in SCORES) for _, curve in rows.groupby(POINT, sort=False)]
    of = f", {shown(checkpoint, 30)}" if rows["checkpoint"].iloc[0] and len(reading.checkpoints_of(results)) > 1 else ""
    return _chart(f"{title}{of}", curves, _titled("members, hub included", dtick=1), y, hovermode="closest")


def _curve(
    rows: pd.DataFrame, over: str, factor: float, hover: Mapping[Key, tuple[int, str]], bars: bool = True
) -> Trace:
    """Of one point, from rows of `frames.sizes` or `frames.shifts`."""
    first, (low, high) = rows.iloc[0], figures.interval_of(rows)
    symbol, colour = _style(str(first["method"]))
    aside = 0.015 * figures.style(str(first["method"]))[2]  # so that bars do not hide each other
    soup = first["kind"] == "uniform_soup"
    name = f"{shown(figures.of_point(first))}{' soup' if soup else ''}"
    said = "95 %" if low == "low" else "replicates from"
    texts = [f"{name}<br>{over} {row[over]:g}: {factor * row['mean']:.4g} ({said} {factor * row[low]:.4g} to "
             f"{factor * row[high]:.4g}; n={row['replicates']})" for row in rows.to_dict("records")]  # fmt: skip
    point = hover.get(tuple(first[name] for name in POINT), (None, ""))[0]
    trace = {
        "type": "scatter", "mode": "lines+markers", "x": numbers(rows[over] + aside),
        "y": numbers(factor * rows["mean"]),
        "name": name, "line": {"color": colour, "dash": "dash" if soup else "solid", "width": 2},
        "marker": {"symbol": f"{symbol}-open" if soup else symbol, "size": 8}, "hovertext": texts, "hoverinfo": "text",
        "customdata": [point] * len(rows),
    }  # fmt: skip
    if bars:
        up, down = rows[high] - rows["mean"], rows["mean"] - rows[low]
        trace["error_y"] = {"type": "data", "symmetric": False, "array": numbers(factor * up.clip(lower=0)),
                            "arrayminus": numbers(factor * down.clip(lower=0)), "thickness": 1, "width": 3}  # fmt: skip
    return trace


def shift_charts(results: Results, hover: Mapping[Key, tuple[int, str]]) -> list[Chart]:
    """NLL and accuracy by severity; nothing without corrupted images."""
    if not reading.shift_splits(results)["severity"].notna().any():
        return []
    found, several = frames.shifts(results), len(reading.checkpoints_of(results)) > 1
    charts = []
    for (checkpoint, shift), of_shift in found.groupby(["checkpoint", "shift"], sort=False):
        for score in ("nll", "accuracy"):
            rows = of_shift[of_shift["score"] == score]
            name, factor, unit = SCORES[score]
            curves = [
                _curve(curve, "severity", factor, hover) for _, curve in rows.groupby([*POINT, "kind"], sort=False)
            ]
            of = f", {shown(checkpoint, 30)}" if several else ""
            charts.append(_chart(
                f"{shown(shift)}: {name} by severity{of}", curves,
                _titled("severity (0: the clean test split)", dtick=1),
                _titled(f"{name} ({unit})"), hovermode="closest",
            ))  # fmt: skip
    return charts


def reliability_charts(results: Results) -> list[Chart]:
    """How often predictions are right by how sure they are: a chart per checkpoint. Raises UserError without
    predictions."""
    found, several = frames.shown_bins(frames.reliability(results)), len(reading.checkpoints_of(results)) > 1
    diagonal = {"type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "hoverinfo": "skip", "showlegend": False,
                "line": {"color": SOFT, "width": 1, "dash": "dot"}}  # fmt: skip
    charts = []
    for checkpoint, of_checkpoint in found.groupby("checkpoint", sort=False):
        curves = [diagonal]
        for _, rows in of_checkpoint.groupby(POINT, sort=False):
            symbol, colour = _style(str(rows["method"].iloc[0]))
            name = shown(figures.of_point(rows.iloc[0]))
            texts = [f"{name}<br>confidence {row['confidence']:.3f}, accuracy {row['accuracy']:.3f}<br>"
                     f"{counted(row['images'], 'prediction')}" for row in rows.to_dict("records")]  # fmt: skip
            curves.append({
                "type": "scatter", "mode": "lines+markers", "x": numbers(rows["confidence"]),
                "y": numbers(rows["accuracy"]), "name": name, "line": {"color": colour}, "hovertext": texts,
                "marker": {"symbol": symbol, "size": numbers(1.6 * figures.mark_sizes(rows["images"]))},
                "hoverinfo": "text",
            })  # fmt: skip
        of = f", {shown(checkpoint, 30)}" if several else ""
        charts.append(_chart(f"reliability on test{of}", curves, _titled("confidence", range=[0, 1.02]),
                             _titled("accuracy", range=[0, 1.02]), hovermode="closest"))  # fmt: skip
    return charts


# Traces, paths and trainings


def trace_charts(results: Results) -> list[Chart]:
    """The barrier to the weights inside a cycle by epochs since the hub; nothing where nothing was traced."""
    if results.cells["checkpoint_barrier_error"].isna().all():
        return []
    barrier, moments = quantity(results.criterion.barrier), frames.traces(results)
    height, several = barrier.factor * moments["barrier"], moments["checkpoint"].nunique() > 1
    threshold, shades = barrier.factor * results.threshold, figures.rate_colours(moments["lr_ratio"])
    scale = SymmetricLog(threshold / 2)
    charts = []
    for (checkpoint, method, cycle_ratio), of_row in moments.groupby(
        ["checkpoint", "method", "cycle_ratio"], sort=False
    ):
        for origin in (basin_exits.HUB, basin_exits.CHECKPOINT):
            of_origin = of_row[of_row["origin"] == origin]
            curves = [_trace_curve(rows, barrier, scale, shades[float(str(rate))], f"lr_ratio {rate:g}")
                      for rate, rows in of_origin.groupby("lr_ratio")]  # fmt: skip
            of = f", {shown(checkpoint, 30)}" if several else ""
            charts.append(_chart(
                f"{shown(method)}{of}, cycle_ratio {cycle_ratio:g}: from the {origin}", curves,
                _titled("epochs since the hub"),
                _axis(f"{results.traced_barrier_words} ({barrier.unit})", height, scale),
                shapes=[_straight("y", float(scale.positions(threshold)))], hovermode="closest",
            ))  # fmt: skip
    return charts


def _trace_curve(rows: pd.DataFrame, barrier: Quantity, scale: SymmetricLog, colour: str, name: str) -> Trace:
    at = rows.groupby("epochs").agg(mean=("barrier", "mean"), left=("left", "any"))
    mean = barrier.factor * at["mean"]
    texts = [f"{name}<br>{epochs:.3g} epochs: {height:.3g} {barrier.short_unit}{', left for good' * bool(left)}"
             for epochs, height, left in zip(at.index, mean, at["left"], strict=True)]  # fmt: skip
    return {
        "type": "scatter", "mode": "lines+markers", "x": numbers(at.index), "y": numbers(scale.positions(mean)),
        "name": name, "line": {"color": colour}, "hovertext": texts, "hoverinfo": "text",
        "marker": {"size": [12 if left else 6 for left in at["left"]],
                   "symbol": ["circle-open" if left else "circle" for left in at["left"]]},
    }  # fmt: skip


def path_charts(paths: pd.DataFrame) -> list[Chart]:
    """NLL and error rate on the paths of one point, from rows of `frames.paths`."""
    styles = figures.path_styles(zip(paths["start"], paths["end"], strict=True))
    return [
        _chart(f"paths: {name} on {specs.IMAGES[paths['split'].iloc[0]]}",
               _of_members(paths, column, factor, styles, _named_path, "t"),
               _titled("position on the path"), _titled(f"{name} ({unit})"), hovermode="closest")
        for column, name, factor, unit in (("nll", "NLL", 1, "nats"), ("error", "error rate", 100, "%"))
        if len(paths)
    ]  # fmt: skip


def learning_charts(epochs: pd.DataFrame) -> list[Chart]:
    """Training loss and error rate of the members of one point, from rows of `frames.learning`."""
    numbered = epochs.assign(start=epochs["member_index"], end=epochs["member_index"], epochs=epochs["epoch"] + 1)
    colours = figures.MEMBER_COLOURS
    styles = {(index, index): ("o", colours[index % len(colours)]) for index in epochs["member_index"].unique()}
    return [
        _chart(name, _of_members(numbered, column, factor, styles, _named_member, "epochs"), _titled("epochs"),
               _titled(f"{name} ({unit})", rangemode="tozero"), hovermode="closest")
        for column, name, factor, unit in (("train_loss", "training loss", 1, "nats"),
                                           ("train_error", "training error rate", 100, "%"))
        if len(epochs)
    ]  # fmt: skip


def _named_path(start: int, end: int) -> str:
    return f"{start or 'hub'} to {end}"


def _named_member(start: int, end: int) -> str:
    return f"member {end}" if end else "hub"


def _of_members(
    rows: pd.DataFrame, column: str, factor: float, styles: Mapping[figures.Pair, tuple[str, str]],
    named: Callable[[int, int], str], over: str,
) -> list[Trace]:  # fmt: skip
    """A curve for each path or training: colour and marks tell which, the dashes the replicate."""
    traces = []
    dash_of = dict(zip(sorted(rows["replicate"].unique()), cycle(DASHES), strict=False))
    for (replicate, start, end), curve in rows.groupby(["replicate", "start", "end"]):
        ends = int(str(start)), int(str(end))
        name, (marker, colour) = f"{named(*ends)}, replicate {replicate}", styles[ends]
        height = factor * curve[column].astype(float)
        texts = [f"{name}<br>{over} {at:.3g}: {'infinite' if np.isinf(value) else f'{value:.4g}'}"
                 for at, value in zip(curve[over], height, strict=True)]  # fmt: skip
        traces.append({
            "type": "scatter", "mode": "lines+markers", "x": numbers(curve[over]), "y": numbers(height), "name": name,
            "line": {"color": colour, "width": 1.5, "dash": dash_of[replicate]},
            "marker": {"size": 5, "symbol": SYMBOLS[marker]},
            "hovertext": texts, "hoverinfo": "text",
        })  # fmt: skip
    return traces
