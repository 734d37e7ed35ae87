"""One self-contained HTML page about a results folder: what was asked, run, found and how to read it.

Its figures are embedded, and it loads nothing. Names in the tables may come from other people's files: jinja2 escapes
all text that it puts into `report.html.jinja`.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from raybasin.analysis import comparisons, drawing, figures, maps
from raybasin.analysis import results as reading
from raybasin.analysis.quantities import counted, quantity, shortened
from raybasin.analysis.results import Results
from raybasin.errors import UserError
from raybasin.metrics import intervals, selection
from raybasin.sweep import methods
from raybasin.sweep.search import Search

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CSS_PIXELS_PER_INCH = 96


def write(results: Results, path: str | Path) -> None:
    """Writes the page to `path`, whole or not at all. Raises UserError if no cell is finished, or that cannot be."""
    drawing.write_whole(path, page(results).encode(), "report")


def page(results: Results) -> str:
    """The page as text. Raises UserError if no cell is finished."""
    import jinja2

    reading.committed(results)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("report.html.jinja")
    columns, barrier = _columns(results), quantity(results.criterion.barrier)
    points = comparisons.summary(results).to_dict("records")
    failures = reading.open_failures(results)[FAILURE_COLUMNS].astype(str).to_numpy().tolist()
    return template.render(
        name=results.stored.spec.name,
        question=results.stored.spec.question,
        headlines=headlines(results),
        figures=_figures(results),
        headings=[(name, gloss) for name, (gloss, _) in columns.items()],
        points=[[text(point) for _, text in columns.values()] for point in points],
        what_was_run=what_was_run(results),
        failure_columns=[(name, "") for name in FAILURE_COLUMNS],
        failures=failures,
        mean_per_class=reading.metric_name(results) != "accuracy",
        deciding_barrier=results.criterion.words,
        barrier_unit=barrier.short_unit,
        threshold=f"{barrier.factor * results.threshold:g} {barrier.unit}",
        barrier_images={"val": "validation", "train": "training"}[results.stored.spec.basin.split] + " images",
        loading_lines=loading_lines(results),
        made_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        settings_id=results.settings_id,
    )


FAILURE_COLUMNS = ["method", "lr_ratio", "cycle_ratio", "replicate", "tries", "reason", "unit_id"]


def _figures(results: Results) -> dict[str, dict[str, Any]]:
    """By the name that the template has for it, the source and width of an image, or why there is none."""
    wanted: dict[str, Callable[[], Figure]] = {
        "map": lambda: maps.map_figure(results, method=None),
        "trade_off": lambda: figures.trade_off_figure(results),
        "diversity": lambda: figures.diversity_figure(results),
        "sizes": lambda: figures.sizes_figure(results),
        "paths": lambda: figures.paths_figure(results, example_cell(results)),
    }
    if reading.shift_splits(results)["severity"].notna().any():
        wanted["robustness"] = lambda: figures.robustness_figure(results)
    if results.cells["checkpoint_barrier_error"].notna().any():
        wanted["trace"] = lambda: figures.trace_figure(results)
    drawn: dict[str, dict[str, Any]] = {}
    nothing_of_today = {"Date": None, "Creator": None, "Type": None, "Format": None}
    for name, draw in wanted.items():
        try:
            figure = draw()
            content = base64.b64encode(drawing.encoded(figure, "svg", metadata=nothing_of_today)).decode()
        except UserError as error:
            drawn[name] = {"problem": str(error)}
        else:
            width = round(CSS_PIXELS_PER_INCH * figure.get_figwidth())
            drawn[name] = {"source": f"data:image/svg+xml;base64,{content}", "width": width}
    return drawn


COLUMNS: dict[str, tuple[str, Callable[[dict[Any, Any]], str]]] = {
    "method": ("whom a member descends from", lambda row: row["method"]),
    "checkpoint": ("pre-trained weights", lambda row: row["checkpoint"]),
    "lr_ratio": ("max_lr / fine-tuning lr", lambda row: f"{row['lr_ratio']:g}"),
    "cycle_ratio": ("cycle length / fine-tuning length", lambda row: f"{row['cycle_ratio']:g}"),
    "members": ("hub included", lambda row: str(row["n_members"])),
    "in basin": ("of the n replicates", lambda row: f"{row['in_basin'] * row['replicates']:.0f}/{row['replicates']}"),
    "barrier": ("", lambda row: _interval(row, row["decided_by"], "")),
    "basin": ("at 95 %", lambda row: row["side"]),
    "hub": ("accuracy", lambda row: _text(row, "hub_accuracy")),
    "member": ("mean accuracy of a member", lambda row: _text(row, "member_accuracy")),
    "ensemble": ("accuracy", lambda row: _text(row, "ensemble_accuracy")),
    "over local_de": ("by the ensemble", lambda row: _interval(row, "over_local_de", "over_local_de_")),
    "verdict": ("on that", lambda row: _verdict(row["over_local_de_verdict"])),
    "NLL": ("of the ensemble, nats", lambda row: _text(row, "ensemble_nll")),
    "soup": ("accuracy", lambda row: _text(row, "soup_accuracy")),
    "soup over hub": ("by the soup", lambda row: _interval(row, "soup_gain", "soup_gain_")),
    "verdict ": ("on that", lambda row: _verdict(row["soup_gain_verdict"])),
    "epochs": ("trained in all", lambda row: f"{row['train_epochs']:g}"),
}
"""Of the table of all points: heading, explanation, and what a row of `comparisons.summary` shows."""


def _columns(results: Results) -> dict[str, tuple[str, Callable[[dict[Any, Any]], str]]]:
    """Those of `COLUMNS` that are shown, with the unit of the barrier that decides."""
    may_be_equal = {"checkpoint": "checkpoint", "members": "n_members"}  # in all points, and is left out then
    columns = {name: column for name, column in COLUMNS.items()
               if name not in may_be_equal or results.cells[may_be_equal[name]].nunique() > 1}  # fmt: skip
    gloss = f"{results.criterion.words}, {quantity(results.criterion.barrier).short_unit}"
    return columns | {"barrier": (gloss, columns["barrier"][1])}


def _text(row: dict[Any, Any], column: str) -> str:
    return quantity(column).text(row[column])


def _interval(row: dict[Any, Any], column: str, prefix: str) -> str:
    return quantity(column).with_interval(row[column], row[f"{prefix}low"], row[f"{prefix}high"])


def _verdict(verdict: Any) -> str:
    return verdict if isinstance(verdict, str) else ""


# What the data say, as plain sentences


def headlines(results: Results) -> list[str]:
    """The findings, each a sentence or two; every choice is made on validation and every score is on test."""
    parts = (_best_soup, _best_ensemble, _boundaries, _exits, _doubts)
    return [sentence for part in parts for sentence in part(results)]


def _best_soup(results: Results) -> Iterator[str]:
    cells = reading.gains(reading.judged(results))
    if cells["val_soup_accuracy"].isna().all():
        yield "No soups were made."
        return
    point = selection.best_point(cells, "val_soup_accuracy", "val_soup_nll")
    compared = ""
    if point["over_local_de"].notna().all():
        compared = f" and {_gain(results, point, 'soup_over_local_de', 'the local_de ensemble of equal size')}"
    yield (
        f"Best soup, chosen on validation: {_named(point)}. On test the soup reaches "
        f"{_mean(point, 'soup_accuracy')} %, {_gain(results, point, 'soup_gain', 'its hub')}"
        f"{compared}; the ensemble of the same members reaches "
        f"{_mean(point, 'ensemble_accuracy')} %, {_gain(results, point, 'ensemble_gain', 'the hub')} "
        f"({_replicates(results, point)})."
    )


def _best_ensemble(results: Results) -> Iterator[str]:
    cells = reading.gains(reading.judged(results))
    exploring = reading.exploring(cells)
    if exploring.empty:
        return
    point = selection.best_point(exploring, "val_ensemble_accuracy", "val_ensemble_nll")
    where = {"in": "in the basin", "out": "out of the basin", "undecided": "undecided whether in the basin"}
    side = where[results.barriers.merge(point[selection.POINT].head(1), on=selection.POINT)["side"].iloc[0]]
    if point["over_local_de"].isna().any():
        compared = "; there is no local_de of equal size to compare it with"
    else:
        same = ["checkpoint", "n_members", "replicate"]
        local_de = cells[cells["method"] == "local_de"].merge(point[same], on=same)
        compared = (
            f" and {_gain(results, point, 'over_local_de', 'local_de')}, which reaches "
            f"{_mean(local_de, 'ensemble_accuracy')} %; trained for {point['train_epochs'].mean():g} epochs "
            f"against {local_de['train_epochs'].mean():g}"
        )
    yield (
        f"Best exploring ensemble, chosen on validation: {_named(point)}, {side}. On test it reaches "
        f"{_mean(point, 'ensemble_accuracy')} %, {_gain(results, point, 'ensemble_gain', 'its hub')}"
        f"{compared} ({_replicates(results, point)})."
    )


def _mean(cells: pd.DataFrame, column: str) -> str:
    return quantity(column).text(cells[column].mean())


def _gain(results: Results, point: pd.DataFrame, gain: str, over: str) -> str:
    """`+0.44 [−0.91, 1.79] points against its hub (not distinguishable)`; without stored predictions the mean alone."""
    rows = results.comparisons.query("gain == @gain").merge(point[selection.POINT].head(1), on=selection.POINT)
    found = rows.to_dict("records")[0]
    shown = quantity(gain).with_interval(found["estimate"], found["low"], found["high"])
    verdict = f" ({found['verdict']})" if isinstance(found["verdict"], str) else ""
    return f"{shown} points against {over}{verdict}"


def _replicates(results: Results, point: pd.DataFrame) -> str:
    """What the intervals of a sentence are over."""
    rows = results.comparisons.merge(point[selection.POINT].head(1), on=selection.POINT)
    n, n_images = len(point), rows["n_images"].max()
    if np.isnan(n_images):
        return f"n={n}; without stored predictions on test there is no interval"
    if n == 1:
        return f"95 % intervals over {n_images:.0f} images; n=1: how much a replicate varies is not known"
    return f"95 % intervals over {n_images:.0f} images and {n} replicates"


def _checkpoints(results: Results) -> list[tuple[str, str]]:
    """The checkpoints, and how a sentence names each: not at all where there is only one."""
    names = reading.checkpoints_of(results)
    return [(name, f" from {shortened(name)}" if len(names) > 1 else "") for name in names]


def _boundaries(results: Results) -> Iterator[str]:
    for checkpoint, of in _checkpoints(results):
        for method in reading.methods_with_a_map(results):
            table = reading.grid(results, results.criterion.barrier, method, checkpoint)
            if rows := reading.boundary(table).to_dict("records"):
                yield f"Boundary of {method}{of}: {'; '.join(map(_place, rows))}."


def _place(row: dict[Any, Any]) -> str:
    """Where the boundary lies at one cycle length, from a row of `results.boundary`."""
    at = f"at cycle_ratio {row['cycle_ratio']:g}"
    highest_in, lowest_out = row["highest_in"], row["lowest_out"]
    if np.isnan(lowest_out):
        return f"{at} in the basin up to lr_ratio {highest_in:g}, the highest tried"
    if np.isnan(highest_in):
        return f"{at} out of it from lr_ratio {lowest_out:g}, the lowest tried"
    if highest_in > lowest_out:
        return f"{at} no single one: out at lr_ratio {lowest_out:g} but in at {highest_in:g}"
    return f"{at} between lr_ratio {highest_in:g} (in) and {lowest_out:g} (out)"


def _exits(results: Results) -> Iterator[str]:
    """When cycles left the basin, and whether the hub has left that of the checkpoint; nothing without traces."""
    cells, deciding = results.cells[results.cells["checkpoint_barrier_error"].notna()], results.criterion
    if cells.empty:
        return
    for checkpoint, of in _checkpoints(results):
        own = cells["checkpoint"] == checkpoint
        for method in reading.in_order(set(cells.loc[own, "method"])):
            for cycle_ratio, point in cells[own & (cells["method"] == method)].groupby("cycle_ratio"):
                left = point.groupby("lr_ratio")["exit_epochs"].mean().dropna()
                when = [f"lr_ratio {rate:g} after {epochs:.3g}" for rate, epochs in left.items()]
                if when:
                    first = when[0].replace(" after ", " leaves the basin after ") + " epochs"
                    yield f"{method}{of}, cycle_ratio {cycle_ratio:g}: {', '.join([first, *when[1:]])}."
        barrier = quantity(deciding.checkpoint_barrier)
        hubs = cells[own].drop_duplicates("hub_id")[deciding.checkpoint_barrier]
        inside = int((hubs <= deciding.threshold).sum())
        yield (
            f"The hub{of} is in the basin of its checkpoint in {inside} of {counted(len(hubs), 'replicate')} "
            f"({deciding.words} at most {barrier.text(hubs.max())} {barrier.short_unit})."
        )


def _doubts(results: Results) -> Iterator[str]:
    explored = reading.exploring(reading.committed(results))
    sides = reading.exploring(results.barriers)["side"]
    if undecided := int((sides == "undecided").sum()):
        yield (
            f"{undecided} of {counted(len(sides), 'point')} of the map are undecided: "
            "the 95 % interval of the barrier, over images and replicates, holds the threshold."
        )
    yield from _many(results)
    shares = explored.groupby(selection.POINT)["in_basin"].mean()
    mixed = int(((shares > 0) & (shares < 1)).sum())
    if mixed:
        yield f"At {counted(mixed, 'point')} of {len(shares)} the replicates lie on different sides."
    missing = reading.missing_cells(results)
    if missing:
        yield f"{counted(missing, 'cell')} of the sweep not finished: all of the above holds for the rest."


def _many(results: Results) -> Iterator[str]:
    """How many points were compared at once, and how many of the differences are left after Holm's correction."""
    found = results.comparisons.query("gain == 'over_local_de'").dropna(subset="p_value")
    if len(found) > 1:
        apart = int((found["verdict"] != "not distinguishable").sum())
        corrected = int((found["p_holm"] < 1 - intervals.LEVEL).sum())
        yield (
            f"{len(found)} points are compared with local_de: {apart} can be told from it one by one, "
            f"{corrected} after Holm's correction for so many."
        )


def _named(point: pd.DataFrame) -> str:
    """Which point of the map its cells are of."""
    cell = point.iloc[0]
    rate = f"lr_ratio {cell['lr_ratio']:g} (max_lr {cell['max_lr']:g})"
    length = f"cycle_ratio {cell['cycle_ratio']:g} ({cell['cycle_epochs']:.4g} epochs)"
    where = f" at {rate}, {length}" if methods.explores(cell["method"]) else ""
    return f"{cell['method']}{where}, {cell['n_members']} members, checkpoint {shortened(cell['checkpoint'])}"


def what_was_run(results: Results) -> list[tuple[str, str]]:
    """Names and values: the sweep, how much of it is finished, and on what it ran."""
    spec, facts, cells = results.stored.spec, results.stored.facts.data, results.cells
    recipe, n_sets = spec.recipe, Counter(reading.shift_splits(results)["shift"])
    hours = results.members["train_seconds"].sum() / 3600
    asked = (_asked(label, keys, spec.search) for label, keys in reading.planned_methods(results).items())
    pairs = [
        ("Cells", f"{len(cells)} finished, {reading.missing_cells(results)} not"),
        ("Replicates", str(spec.replicates)),
        ("Methods", "; ".join(asked)),
        ("Search", reading.searched(results)),
        ("Checkpoint", ", ".join(reading.checkpoints_of(results))),
        ("Model", spec.model.name),
        ("Data", f"{spec.data.name} at {spec.data.image_size} pixels, {facts.n_train} training, {facts.n_val} "
                 f"validation, {facts.n_test} test images, {facts.n_classes} classes"),
        ("Shifts", ", ".join(f"{name} ({counted(n, 'set')})" for name, n in n_sets.items())),
        ("Metric", reading.metric_name(results)),
        ("Recipe", f"{recipe.epochs} epochs, batches of {recipe.batch_size}, {recipe.optimizer}, "
                   f"lr {recipe.lr:g}, cosine by {recipe.schedule_by}, {recipe.precision}{recipe.further}"),
        ("Device", ", ".join(sorted(set(cells["device"].dropna()))) or "not recorded"),
        ("Versions", _versions(cells["versions"])),
        ("Training", f"{hours:.3g} hours on one worker" if hours else ""),
    ]  # fmt: skip
    return [(name, text) for name, text in pairs if text]


def _asked(label: str, method: methods.Method, search: Search) -> str:
    said = [label, f"{method.n_members} members"]
    for ratio in ("lr_ratio", "cycle_ratio") if method.explores else ():
        ends: tuple[float, float] | None = getattr(search, ratio)
        values = f"{ends[0]:g} to {ends[1]:g}" if ends else ", ".join(f"{x:g}" for x in getattr(method, ratio))
        said.append(f"{ratio} {values}")
    return ", ".join(said)


def _versions(column: pd.Series[str]) -> str:
    """`torch 2.13.0`; all of them where cells differ."""
    found: dict[str, set[str]] = {}
    for text in column.dropna().unique():
        for name, version in json.loads(text).items():
            found.setdefault(str(name), set()).add(str(version))
    return ", ".join(f"{name} {' and '.join(sorted(found[name]))}" for name in sorted(found)) or "not recorded"


def loading_lines(results: Results) -> str:
    """Python that loads the tables of these results."""
    root, cell_id = str(results.folder.root), example_cell(results)
    return f"""import raybasin

results = raybasin.open({root!r}, settings={results.settings_id!r})
results.cells            # one row per cell; also .members .epochs .paths .scores .failures
raybasin.log_probs(results, {cell_id!r}, "test")   # [members, examples, classes]

import pandas            # or without raybasin: the stored tables, of all settings
cells = pandas.read_parquet({f"{root}/cells"!r})"""


def example_cell(results: Results) -> str:
    """The best cell or, where there are no soups to choose it by, the first."""
    try:
        return str(reading.best_cell(results)["cell_id"])
    except UserError:
        return str(reading.committed(results)["cell_id"].iloc[0])
