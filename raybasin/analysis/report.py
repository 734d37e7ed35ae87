"""One self-contained HTML page about a results folder: what was asked, run, found and how to read it.

The page loads nothing from anywhere: its figures are embedded. Names in the tables may come from other
people's files, so all text is escaped, once, by the few functions at the end that make HTML.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from raybasin.analysis import figures
from raybasin.analysis import results as reading
from raybasin.analysis.figures import counted, mean_and_sd, quantity, shortened
from raybasin.analysis.results import Results
from raybasin.errors import UserError
from raybasin.metrics import selection
from raybasin.store import folders
from raybasin.sweep import methods

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write(results: Results, path: str | Path) -> None:
    """Writes the page to `path`, whole or not at all.

    Raises:
        UserError: if no cell is finished, or `path` cannot be written.
    """
    content = page(results).encode()
    try:
        folders.write_file(Path(path), content)
    except OSError as error:
        raise UserError(f"{path}: cannot write the report: {error.strerror or error}") from error


def page(results: Results) -> str:
    """The page as text. Raises UserError if no cell is finished."""
    reading.committed(results)
    name = str(results.sweep["name"])
    sections = [
        _element("p", results.sweep.get("question") or "", "question"),
        _section("In short", _list(headlines(results))),
        _section("The map", _figure(lambda: figures.map_figure(results, method=None), MAP_CAPTION)),
        _section("Every point of the map", _note(TABLE_NOTE) + _summary_table(results)),
        _section("What stands behind it", "".join(_other_figures(results))),
        _section("What was run", _definitions(what_was_run(results))),
        _section("What failed", _failures(results)),
        _section("How to read it", _definitions(_terms(results))),
        _section("Load the tables", _element("pre", loading_lines(results))),
    ]
    made = f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by raybasin, settings {results.settings_id}."
    body = _element("h1", f"{name}: a map of the pre-train basin") + "".join(sections) + _note(made)
    return PAGE.format(title=html.escape(f"{name} - raybasin"), style=STYLE, body=body)


# What the data say, as plain sentences


def headlines(results: Results) -> list[str]:
    """The findings, each a sentence or two; every choice is made on validation and every score is on test."""
    sentences = [_best_soup(results), _best_ensemble(results), *_boundaries(results)]
    sentences += [*_exits(results), *_doubts(results)]
    return [sentence for sentence in sentences if sentence]


def _best_soup(results: Results) -> str:
    cells = reading.gains(reading.judged(results))
    if cells["val_soup_accuracy"].isna().all():
        return "No soups were made."
    point = selection.best_point(cells, "val_soup_accuracy", "val_soup_nll")
    return (
        f"Best soup, chosen on validation: {_named(point)}. On test the soup reaches "
        f"{_mean(point, 'soup_accuracy')} %, {_mean(point, 'soup_gain')} points against its hub"
        f"{_soup_over_local_de(point)}; the ensemble of the same members reaches "
        f"{_mean(point, 'ensemble_accuracy')} %, {_mean(point, 'ensemble_gain')} points against the hub "
        f"({_replicates(point)})."
    )


def _soup_over_local_de(point: pd.DataFrame) -> str:
    over = point["soup_accuracy"] - point["ensemble_accuracy"] + point["over_local_de"]
    if over.isna().any():
        return ""
    return f" and {mean_and_sd(over, quantity('over_local_de'))} against the local_de ensemble of equal size"


def _best_ensemble(results: Results) -> str:
    cells = reading.gains(reading.judged(results))
    exploring = cells[cells["method"].map(methods.explores).astype(bool)]
    if exploring.empty:
        return ""
    point = selection.best_point(exploring, "val_ensemble_accuracy", "val_ensemble_nll")
    return (
        f"Best exploring ensemble, chosen on validation: {_named(point)}, "
        f"{_side(int(point['in_basin'].sum()), len(point))}. On test it reaches "
        f"{_mean(point, 'ensemble_accuracy')} %, {_mean(point, 'ensemble_gain')} points against its hub"
        f"{_over_local_de(cells, point)} ({_replicates(point)})."
    )


def _over_local_de(cells: pd.DataFrame, point: pd.DataFrame) -> str:
    if point["over_local_de"].isna().any():
        return "; there is no local_de of equal size to compare it with"
    same = ["checkpoint", "n_members", "replicate"]
    local_de = cells[cells["method"] == "local_de"].merge(point[same], on=same)
    epochs, its_epochs = (f"{table['train_epochs'].mean():g}" for table in (point, local_de))
    return (
        f" and {_mean(point, 'over_local_de')} against local_de, which reaches "
        f"{_mean(local_de, 'ensemble_accuracy')} %; trained for {epochs} epochs against {its_epochs}"
    )


def _mean(cells: pd.DataFrame, column: str) -> str:
    return mean_and_sd(cells[column], quantity(column))


def _replicates(cells: pd.DataFrame) -> str:
    n = len(cells)
    return f"mean ± sd, n={n}" if n > 1 else "n=1: how much a replicate varies is not known"


def _boundaries(results: Results) -> Iterable[str]:
    checkpoints = reading.checkpoints_of(results)
    for checkpoint in checkpoints:
        for method in reading.methods_with_a_map(results):
            table = reading.grid(results, "barrier_error", method, checkpoint)
            rows = reading.boundary(table).to_dict("records")
            of = f" from {shortened(checkpoint)}" if len(checkpoints) > 1 else ""
            if rows:
                yield f"Boundary of {method}{of}: {'; '.join(map(_place, rows))}."


def _is_traced(results: Results) -> bool:
    return bool(results.cells["checkpoint_barrier_error"].notna().any())


def _exits(results: Results) -> Iterable[str]:
    """When cycles left the basin, and whether the hub has left that of the checkpoint; nothing without traces."""
    if not _is_traced(results):
        return
    cells = results.cells[results.cells["checkpoint_barrier_error"].notna()]
    checkpoints = reading.checkpoints_of(results)
    for checkpoint in checkpoints:
        of, own = f" from {shortened(checkpoint)}" if len(checkpoints) > 1 else "", cells["checkpoint"] == checkpoint
        for method in reading.in_order(set(cells.loc[own, "method"])):
            for cycle_ratio, point in cells[own & (cells["method"] == method)].groupby("cycle_ratio"):
                left = point.groupby("lr_ratio")["exit_epochs"].mean().dropna()
                when = [f"lr_ratio {rate:g} after {epochs:.3g}" for rate, epochs in left.items()]
                if when:
                    first = when[0].replace(" after ", " leaves the basin after ") + " epochs"
                    yield f"{method}{of}, cycle_ratio {cycle_ratio:g}: {', '.join([first, *when[1:]])}."
        hubs = cells[own].drop_duplicates("hub_id")["checkpoint_barrier_error"]
        inside = int((hubs <= results.threshold).sum())
        yield (
            f"The hub{of} is in the basin of its checkpoint in {inside} of {counted(len(hubs), 'replicate')} "
            f"(error barrier at most {quantity('checkpoint_barrier_error').text(hubs.max())} points)."
        )


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


def _doubts(results: Results) -> Iterable[str]:
    cells = reading.committed(results)
    explored = cells[cells["method"].map(methods.explores).astype(bool)]
    undecided = int(reading.undecided(explored, results.threshold).sum())
    if undecided:
        yield (
            f"{undecided} of {counted(len(explored), 'cell')} of the map are undecided: "
            "the barrier lies within two standard errors of the threshold."
        )
    shares = explored.groupby(selection.POINT)["in_basin"].mean()
    mixed = int(((shares > 0) & (shares < 1)).sum())
    if mixed:
        yield f"At {counted(mixed, 'point')} of {len(shares)} the replicates lie on different sides."
    missing = reading.missing_cells(results)
    if missing:
        yield f"{counted(missing, 'cell')} of the sweep not finished: all of the above holds for the rest."


def _named(point: pd.DataFrame) -> str:
    """Which point of the map its cells are of."""
    cell = point.iloc[0]
    rate = f"lr_ratio {cell['lr_ratio']:g} (max_lr {cell['max_lr']:g})"
    length = f"cycle_ratio {cell['cycle_ratio']:g} ({cell['cycle_epochs']:.4g} epochs)"
    where = f" at {rate}, {length}" if methods.explores(cell["method"]) else ""
    return f"{cell['method']}{where}, {cell['n_members']} members, checkpoint {shortened(cell['checkpoint'])}"


def _side(n_in: int, n: int) -> str:
    return {0: "out of the basin", n: "in the basin"}.get(n_in, f"in the basin in {n_in} of {n} replicates")


def what_was_run(results: Results) -> list[tuple[str, str]]:
    """Names and values: the sweep, how much of it is finished, and on what it ran."""
    sweep, cells = results.sweep, results.cells
    missing = reading.missing_cells(results)
    recipe = sweep["recipe"]
    hours = results.members["train_seconds"].sum() / 3600
    pairs = [
        ("Cells", f"{len(cells)} finished, {missing} not"),
        ("Replicates", str(sweep["replicates"])),
        ("Methods", "; ".join(_asked(name, keys) for name, keys in reading.planned_methods(results).items())),
        ("Checkpoint", ", ".join(reading.checkpoints_of(results))),
        ("Model", str(sweep["model"]["name"])),
        ("Data", _data(results)),
        *_shifts(results),
        ("Metric", reading.metric_name(results)),
        ("Recipe", f"{recipe['epochs']} epochs, batches of {recipe['batch_size']}, {recipe['optimizer']}, "
                   f"lr {recipe['lr']:g}, {recipe['schedule']} by {recipe['schedule_by']}, "
                   f"{recipe['precision']}"),
        ("Device", ", ".join(sorted(set(cells["device"].dropna()))) or "not recorded"),
        ("Versions", _versions(cells["versions"])),
    ]  # fmt: skip
    return pairs + ([("Training", f"{hours:.3g} hours on one worker")] if hours else [])


def _data(results: Results) -> str:
    data, facts = results.sweep["data"], results.facts.get("data") or {}
    sizes = {"n_train": "training", "n_val": "validation", "n_test": "test images", "n_classes": "classes"}
    counts = "".join(f", {facts[name]} {noun}" for name, noun in sizes.items() if name in facts)
    return f"{data['name']} at {data['image_size']} pixels{counts}"


def _shifts(results: Results) -> Iterable[tuple[str, str]]:
    """What the sweep was evaluated on beside its own data, where there is anything."""
    sets = reading.shift_splits(results).groupby("shift", sort=False).size()
    if len(sets):
        yield "Shifts", ", ".join(f"{name} ({counted(int(count), 'set')})" for name, count in sets.items())


def _asked(name: str, method: dict[str, Any]) -> str:
    if not methods.explores(name):
        return f"{name}, {method['n_members']} members"
    lr, cycle = (", ".join(f"{x:g}" for x in method[key]) for key in ("lr_ratio", "cycle_ratio"))
    return f"{name}, {method['n_members']} members, lr_ratio {lr}, cycle_ratio {cycle}"


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


# Parts of the page

MAP_CAPTION = (
    "Columns: length of a cycle; rows: its highest learning rate. The number is the mean over replicates, "
    "the word below it the side of the boundary."
)
TABLE_NOTE = "Means over n replicates ± their sample standard deviation. Accuracies in %, differences in points."
TRADE_OFF_CAPTION = (
    "Each mark is one cell; left of the dashed line it is in the basin. A soup below 0 is worse than the hub alone."
)
DIVERSITY_CAPTION = "An ensemble gains when its members differ and are good: up and to the right."
SIZES_CAPTION = "What one more member brings, to the ensemble and to the soup. Local DE is the line to beat."
TRACE_CAPTION = (
    "When cycles leave: the error barrier to the weights inside a cycle; a ring marks where the first run of a cell "
    "left for good. Bands are the range over runs and replicates."
)
PATHS_CAPTION = "The paths between the members of the best cell; a barrier is a height above the dotted line."
ROBUSTNESS_CAPTION = (
    "Accuracy on corrupted images, by severity; of each exploring method the point whose ensemble is best on "
    "validation."
)

TERMS = """
hub: the first, ordinary fine-tuning from the checkpoint; member 0 of every ensemble of its replicate.
cell: one method at one learning rate, cycle length, checkpoint and replicate; one point of the map.
replicate: an independent hub with its own seed. Deviations are over replicates.
barrier: the largest height of a path above the straight line between its ends, never below 0. A path is the
    straight line between the weights of two members; BN statistics are estimated again at every point of it.
    Measured on validation data, in error rate or in nats.
rise: the largest error on a path from the hub, less the hub's own. It tells a ruined member, to which the way
    may lead steadily uphill, without a barrier.
in the basin: the largest error barrier from the hub to a member is at most {threshold}. The hub stands for
    the pre-train basin: the checkpoint has no head for the new classes.
undecided: the barrier lies within two standard errors of that threshold. Measured on more images it might
    turn out to lie on the other side.
ensemble: the mean of the members' predicted probabilities.
soup: one network with the mean of the members' weights, BN statistics estimated again.
gain: accuracy on test minus that of the hub of the same replicate.
local_de: Local Deep Ensemble: every member is fine-tuned from the checkpoint on its own. At equal size it is
    the line to beat.
"""

MEAN_PER_CLASS = """
accuracy: here the mean-per-class accuracy, the metric of this data set: the unweighted mean over the classes
    of the share of right answers within each. Barriers and errors count images.
"""

COLUMNS: dict[str, tuple[str, Callable[[dict[Any, Any]], str]]] = {
    "method": ("whom a member descends from", lambda row: row["method"]),
    "checkpoint": ("pre-trained weights", lambda row: row["checkpoint"]),
    "lr_ratio": ("max_lr / fine-tuning lr", lambda row: f"{row['lr_ratio']:g}"),
    "cycle_ratio": ("cycle length / fine-tuning length", lambda row: f"{row['cycle_ratio']:g}"),
    "members": ("hub included", lambda row: str(row["n_members"])),
    "in basin": (
        "of the n replicates",
        lambda row: f"{round(row['in_basin'] * row['replicates'])}/{row['replicates']}",
    ),
    "barrier": ("error barrier, points", lambda row: quantity("barrier_error").text(row["barrier_error"])),
    "hub": ("accuracy", lambda row: _spread(row, "hub_accuracy")),
    "member": ("mean accuracy of a member", lambda row: _spread(row, "member_accuracy")),
    "ensemble": ("accuracy", lambda row: _spread(row, "ensemble_accuracy")),
    "over local_de": ("by the ensemble", lambda row: _spread(row, "over_local_de")),
    "NLL": ("of the ensemble, nats", lambda row: quantity("ensemble_nll").text(row["ensemble_nll"])),
    "soup": ("accuracy", lambda row: _spread(row, "soup_accuracy")),
    "epochs": ("trained in all", lambda row: f"{row['train_epochs']:g}"),
}
"""Of the summary table: heading, explanation, and what a row shows."""


def _spread(row: dict[Any, Any], column: str) -> str:
    """`95.10 ± 0.14`; without a deviation where there is one replicate."""
    shown, deviation = quantity(column), row[f"{column}_sd"]
    text = shown.text(row[column])
    return text if np.isnan(deviation) else f"{text} ± {deviation * shown.factor:.2f}"


def _summary_table(results: Results) -> str:
    rows = reading.summary(reading.judged(results)).to_dict("records")
    same = {"checkpoint": "checkpoint", "members": "n_members"}
    left_out = {name for name, column in same.items() if results.cells[column].nunique() == 1}
    columns = {name: column for name, column in COLUMNS.items() if name not in left_out}
    body = [[show(row) for _, show in columns.values()] for row in rows]
    return _table([(name, column[0]) for name, column in columns.items()], body)


def _other_figures(results: Results) -> Iterable[str]:
    yield _figure(lambda: figures.trade_off_figure(results), TRADE_OFF_CAPTION)
    yield _figure(lambda: figures.diversity_figure(results), DIVERSITY_CAPTION)
    yield _figure(lambda: figures.sizes_figure(results), SIZES_CAPTION)
    yield _figure(lambda: figures.paths_figure(results, example_cell(results)), PATHS_CAPTION)
    if reading.shift_splits(results)["severity"].notna().any():
        yield _figure(lambda: figures.robustness_figure(results), ROBUSTNESS_CAPTION)
    if _is_traced(results):
        yield _figure(lambda: figures.trace_figure(results), TRACE_CAPTION)


def _failures(results: Results) -> str:
    failures = reading.open_failures(results)
    if failures.empty:
        return _note("Nothing that was tried is left unfinished because of an error.")
    columns = ["method", "lr_ratio", "cycle_ratio", "replicate", "tries", "reason", "unit_id"]
    rows = failures[columns].astype(str).to_numpy().tolist()
    return _table([(name, "") for name in columns], rows)


def _terms(results: Results) -> list[tuple[str, str]]:
    """Words and their meanings, from the lines of `TERMS`."""
    threshold = f"{100 * results.threshold:g} percentage points"
    terms = TERMS if reading.metric_name(results) == "accuracy" else MEAN_PER_CLASS + TERMS.lstrip()
    lines = terms.format(threshold=threshold).replace("\n    ", " ").strip().splitlines()
    return [(word, meaning) for word, _, meaning in (line.partition(": ") for line in lines)]


# HTML

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --line: #d0d0d0; --soft: #5a5a5a;
        --shade: #f4f4f4 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #161616; --line: #444; --soft: #a8a8a8; --shade: #222 }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 74rem;
       margin: 0 auto; padding: 1rem; overflow-wrap: break-word }
h1 { font-size: 1.6rem; line-height: 1.2 } h2 { font-size: 1.2rem; margin-top: 2.2rem }
.question { font-size: 1.1rem; color: var(--soft) }
li, dd { max-width: 46rem } li { margin-bottom: .5rem }
.wide { overflow-x: auto } figure { margin: 1rem 0 }
img { display: block; height: auto; max-width: max(100%, 34rem); background: #fff; border-radius: 4px }
figcaption, .note { color: var(--soft); font-size: .9rem }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .5rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { background: var(--shade); vertical-align: bottom }
th small { display: block; font-weight: normal; white-space: normal; min-width: 4rem; color: var(--soft) }
th:first-child, td:first-child { text-align: left }
td.text { text-align: left; white-space: normal; min-width: 14rem; max-width: 26rem; overflow-wrap: anywhere }
dt { font-weight: 600; margin-top: .6rem } dd { margin: 0 }
pre { background: var(--shade); padding: .8rem; overflow-x: auto; font-size: .85rem; border-radius: 4px }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

CSS_PIXELS_PER_INCH = 96
_LONG = 30


def _element(tag: str, text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f"<{tag}{attribute}>{html.escape(text)}</{tag}>\n"


def _note(text: str) -> str:
    return _element("p", text, "note")


def _section(title: str, content: str) -> str:
    return f"<section>\n{_element('h2', title)}{content}</section>\n"


def _list(items: Iterable[str]) -> str:
    return f"<ul>\n{''.join(_element('li', item) for item in items)}</ul>\n"


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    return f"<dl>\n{''.join(_element('dt', name) + _element('dd', value) for name, value in pairs)}</dl>\n"


def _table(headings: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}{_element('small', gloss)}</th>" for name, gloss in headings)
    body = "".join(f"<tr>{''.join(_cell(text) for text in row)}</tr>\n" for row in rows)
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"
    return f'<div class="wide">{table}</div>\n'


def _cell(text: str) -> str:
    return _element("td", text, "text" if len(text) > _LONG else "").rstrip("\n")


def _figure(draw: Callable[[], Figure], caption: str) -> str:
    """A figure with its caption, or the reason why there is none."""
    try:
        figure = draw()
        content = figures.encoded(figure, "svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    except UserError as error:
        return _note(f"No figure: {error}")
    source = f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"
    width = round(CSS_PIXELS_PER_INCH * figure.get_figwidth())
    image = f'<img src="{source}" width="{width}" alt="{html.escape(caption)}">'
    return f'<figure>\n<div class="wide">{image}</div>\n{_element("figcaption", caption)}</figure>\n'
