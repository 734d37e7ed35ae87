"""One self-contained HTML page about a results folder: what was asked, run, found and how to read it.

Its sentences and tables are plain HTML. `report.js` draws its charts with plotly.js, which is in the page, sorts and
filters the tables and shows the point that is clicked; the page loads nothing. Names in the tables may come from other
people's files: jinja2 escapes all text that it puts into `report.html.jinja`, `charts` what plotly would take for
markup, and the page's policy lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from raybasin.analysis import charts, comparisons, details, drawing, explored, figures, maps
from raybasin.analysis import results as reading
from raybasin.analysis.quantities import counted, quantity, shortened
from raybasin.analysis.results import Results
from raybasin.errors import UserError, duration
from raybasin.metrics import selection
from raybasin.sweep import methods
from raybasin.sweep.search import Search


def write(results: Results, path: str | Path) -> None:
    """Writes the page to `path`, whole or not at all. Raises UserError if no cell is finished, or that cannot be."""
    drawing.write_whole(path, page(results).encode(), "report")


def page(results: Results) -> str:
    """The page as text. Raises UserError if no cell is finished."""
    import jinja2
    from markupsafe import Markup

    reading.committed(results)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    template = environment.get_template("report.html.jinja")
    columns, barrier = _columns(results), quantity(results.criterion.barrier)
    points = comparisons.summary(results).to_dict("records")
    failures = reading.open_failures(results)[FAILURE_COLUMNS].astype(str).to_numpy().tolist()
    drawn, problems = _charts(results, points)
    scripts = [_plotly(), (Path(__file__).parent / "report.js").read_text(encoding="utf-8")]
    return template.render(
        name=results.stored.spec.name,
        question=results.stored.spec.question,
        headlines=headlines(results),
        charts=drawn,
        problems=problems,
        bins_shown=figures.BINS_SHOWN,
        two_answers=explored.TWO_ANSWERS,
        values=[(value, reading.shown_as(results, value).label) for value in drawn["map"]],
        headings=[(name, column.gloss) for name, column in columns.items()],
        points=[
            [(column.text(point), column.more(point), _sorted_by(point[column.by])) for column in columns.values()]
            for point in points
        ],
        details={"first": details.best_point(results, points), "points": [*details.of_points(results, points)]},
        scripts=[Markup(script) for script in scripts],
        hashes=[base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts],
        what_was_run=what_was_run(results),
        failure_columns=[(name, "") for name in FAILURE_COLUMNS],
        failures=[[(text, "", text) for text in failure] for failure in failures],
        mean_per_class=reading.metric_name(results) != "accuracy",
        deciding_barrier=results.barrier_words,
        traced_barrier=results.traced_barrier_words,
        barrier_unit=barrier.short_unit,
        threshold=f"{barrier.factor * results.threshold:g} {barrier.unit}",
        barrier_images=results.stored.spec.basin.images,
        loading_lines=loading_lines(results),
        made_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        settings_id=results.settings_id,
    )  # fmt: skip


def _plotly() -> str:
    """The script of plotly.js, as the Python package has it. Nothing in it may end the element that holds it."""
    from importlib import resources

    script = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _sorted_by(value: Any) -> str:
    """By what a cell of a table is sorted: a number or a text; empty where there is neither."""
    return "" if pd.isna(value) else str(value)


FAILURE_COLUMNS = ["method", "lr_ratio", "cycle_ratio", "replicate", "tries", "reason", "unit_id"]


MAP_VALUES = ("ensemble_gain", "over_local_de", "nll_over_local_de", "ensemble_nll", "ensemble_accuracy", "soup_gain",
              "soup_over_local_de", "barrier_error", "barrier_nll", "normalised_disagreement")  # fmt: skip
"""What the map of the page can show."""


def _charts(results: Results, points: list[dict[Any, Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    """By the name that the template has for them the charts of each figure (of the map, by its value), and why there is
    none."""
    hover = {tuple(row[name] for name in selection.POINT): (i, details.hover(row)) for i, row in enumerate(points)}
    wanted: dict[str, Callable[[], list[charts.Chart]]] = {
        "trade_off": lambda: charts.trade_off_charts(results, hover),
        "diversity": lambda: charts.diversity_charts(results, hover),
        "sizes": lambda: charts.sizes_charts(results, hover),
        "reliability": lambda: charts.reliability_charts(results),
        "shifts": lambda: charts.shift_charts(results, hover),
        "traces": lambda: charts.trace_charts(results),
    }
    drawn: dict[str, Any] = {"map": {}}
    lines: maps.Lines = {}
    problems: dict[str, str] = {}
    for value in MAP_VALUES:
        try:
            drawn["map"][value] = charts.map_charts(results, value, hover, lines)
        except UserError as error:  # no soups, no Local DE
            problems.setdefault("map", str(error))
    for name, draw in wanted.items():
        try:
            drawn[name] = draw()
        except UserError as error:
            drawn[name], problems[name] = [], str(error)
    return drawn, problems


def _nothing(row: dict[Any, Any]) -> str:
    return ""


@dataclass(frozen=True)
class Column:
    """Of the table of all points: what explains it, the column of `comparisons.summary` by which it is sorted, and what
    a row of that shows, with `more` below it."""

    gloss: str
    by: str
    text: Callable[[dict[Any, Any]], str]
    more: Callable[[dict[Any, Any]], str] = _nothing


def _mean_of(gloss: str, by: str) -> Column:
    return Column(gloss, by, lambda row: quantity(by).text(row[by]))


def _difference(gloss: str, by: str) -> Column:
    """Below it its interval and the verdict on it; nothing where a method is compared with itself."""

    def parts(row: dict[Any, Any]) -> tuple[str, str]:
        if row["method"] == "local_de" and by in details.OF_ENSEMBLE_OVER_LOCAL_DE:
            return "", ""
        verdict = comparisons.verdict_words(row[f"{by}_verdict"], row[f"{by}_p_holm"])
        return _parts(quantity(by).with_interval(row[by], row[f"{by}_low"], row[f"{by}_high"]), verdict)

    return Column(gloss, by, lambda row: parts(row)[0], lambda row: parts(row)[1])


def _parts(with_interval: str, word: str) -> tuple[str, str]:
    """`+0.44 [−0.91, 1.79]` and a word as what stands above and what stands below in a cell of the table."""
    at, bracket, ends = with_interval.partition(" [")
    return at, f"{bracket.strip()}{ends} {word}".strip()


def _barrier(row: dict[Any, Any]) -> tuple[str, str]:
    height = quantity(row["decided_by"]).with_interval(row[row["decided_by"]], row["low"], row["high"])
    return _parts(height, row["side"])


COLUMNS: dict[str, Column] = {
    "method": Column("whom a member descends from", "method", lambda row: row["method"]),
    "checkpoint": Column("pre-trained weights", "checkpoint", lambda row: row["checkpoint"]),
    "lr_ratio": Column("max_lr / fine-tuning lr", "lr_ratio", lambda row: f"{row['lr_ratio']:g}"),
    "cycle_ratio": Column("cycle length / fine-tuning length", "cycle_ratio", lambda row: f"{row['cycle_ratio']:g}"),
    "members": Column("hub included", "n_members", lambda row: str(row["n_members"])),
    "in basin": Column(
        "of the n replicates", "in_basin", lambda row: f"{row['in_basin'] * row['replicates']:.0f}/{row['replicates']}"
    ),
    "barrier": Column("", "barrier_error", lambda row: _barrier(row)[0], lambda row: _barrier(row)[1]),
    "NLL": _mean_of("of the ensemble, nats", "ensemble_nll"),
    "NLL over local_de": _difference("by the ensemble, nats", "nll_over_local_de"),
    "worth": Column("members of local_de", "worth", lambda row: details.worth_text(row["worth"], row["worth_or_more"])),
    "hub": _mean_of("accuracy", "hub_accuracy"),
    "member": _mean_of("mean accuracy", "member_accuracy"),
    "ensemble": _mean_of("accuracy", "ensemble_accuracy"),
    "over local_de": _difference("accuracy of the ensemble", "over_local_de"),
    "soup": _mean_of("accuracy", "soup_accuracy"),
    "soup over hub": _difference("accuracy", "soup_gain"),
    "epochs": Column("trained in all", "train_epochs", lambda row: f"{row['train_epochs']:g}"),
}
"""Of the table of all points, by their headings."""


def _columns(results: Results) -> dict[str, Column]:
    """Those of `COLUMNS` that are shown, with the unit of the barrier that decides."""
    may_be_equal = {"checkpoint": "checkpoint", "members": "n_members"}  # in all points, and is left out then
    columns = {name: column for name, column in COLUMNS.items()
               if name not in may_be_equal or results.cells[may_be_equal[name]].nunique() > 1}  # fmt: skip
    gloss = f"{results.barrier_words}, {quantity(results.criterion.barrier).short_unit}"
    return columns | {"barrier": replace(columns["barrier"], gloss=gloss, by=results.criterion.barrier)}


# What the data say, as plain sentences


def headlines(results: Results) -> list[str]:
    """The findings, each a sentence or two; every choice is made on validation and every score is on test."""
    parts = (_best_ensemble, _best_soup, _boundaries, _exits, _doubts)
    return [sentence for part in parts for sentence in part(results)]


def _best_soup(results: Results) -> Iterator[str]:
    cells = reading.gains(reading.judged(results))
    if cells["val_soup_accuracy"].isna().all():
        yield "No soups were made."
        return
    point = selection.best_point(cells, "val_soup_accuracy", "val_soup_nll")
    compared = ""
    if point["over_local_de"].notna().all():
        compared = (
            f", {_gain(results, point, 'soup_nll_over_local_de', 'the local_de ensemble of equal size')}, and"
            f" {_gain(results, point, 'soup_over_local_de', 'it in accuracy')}"
        )
    yield (
        f"Best soup, chosen on validation: {_named(point)}. On test its NLL is {_mean(point, 'soup_nll')} nats"
        f"{compared}; its accuracy is {_mean(point, 'soup_accuracy')} %, "
        f"{_gain(results, point, 'soup_gain', 'its hub')} ({_replicates(results, point)})."
    )


def _best_ensemble(results: Results) -> Iterator[str]:
    cells = reading.gains(reading.judged(results))
    if reading.exploring(cells).empty:
        return
    best = reading.best_explored(results)["cell_id"]
    point = cells[cells["cell_id"].isin(best)]
    where = {"in": "in the basin", "out": "out of the basin", "undecided": "undecided whether in the basin"}
    found = explored.sides(results).merge(point[selection.POINT].head(1), on=selection.POINT).iloc[0]
    side = where[found["side"]]
    if found["side"] == "undecided" != found["by_boundary"]:
        side = f"undecided by its own replicates, {where[found['by_boundary']]} by the boundary"
    nll, accuracy = (_mean(point, f"ensemble_{score}") for score in ("nll", "accuracy"))
    gain = _gain(results, point, "ensemble_gain", "its hub")
    if point["over_local_de"].isna().any():
        said = f"{nll} nats and its accuracy {accuracy} %, {gain}; there is no local_de of equal size to compare it to"
    else:
        same = ["checkpoint", "n_members", "replicate"]
        local_de = cells[cells["method"] == "local_de"].merge(point[same], on=same)
        said = (
            f"{nll} nats, {_gain(results, point, 'nll_over_local_de', 'local_de')}{_worth(results, point)}; its "
            f"accuracy is {accuracy} %, {gain} and {_gain(results, point, 'over_local_de', 'local_de')}, which reaches "
            f"{_mean(local_de, 'ensemble_nll')} nats and {_mean(local_de, 'ensemble_accuracy')} %; trained for "
            f"{point['train_epochs'].mean():g} epochs against {local_de['train_epochs'].mean():g}"
        )
    yield (
        f"Best exploring ensemble, chosen on validation: {_named(point)}, {side}. On test its NLL is {said} "
        f"({_replicates(results, point)})."
    )


def _worth(results: Results, point: pd.DataFrame) -> str:
    """How many members of Local DE an ensemble is worth, mean and range of the replicates; nothing where that is not
    known."""
    known = point[["cell_id"]].merge(reading.worth(results).dropna(subset="worth"), on="cell_id")
    if known.empty:
        return ""
    low, high = known["worth"].min(), known["worth"].max()
    spread = f" (replicates {low:.1f} to {high:.1f})" if high - low >= 0.05 else ""
    text = details.worth_text(known["worth"].mean(), bool(known["worth_or_more"].any()))
    return f", worth {text} members of local_de{spread}"


def _mean(cells: pd.DataFrame, column: str) -> str:
    return quantity(column).text(cells[column].mean())


def _gain(results: Results, point: pd.DataFrame, gain: str, over: str) -> str:
    """`+0.44 [−0.91, 1.79] points against its hub (not distinguishable)`; without stored predictions the mean alone."""
    unit = quantity(gain).short_unit
    rows = results.comparisons.query("gain == @gain").merge(point[selection.POINT].head(1), on=selection.POINT)
    found = rows.to_dict("records")[0]
    shown = quantity(gain).with_interval(found["estimate"], found["low"], found["high"])
    verdict = comparisons.verdict_words(found["verdict"], found["p_holm"])
    return f"{shown} {unit} against {over}{f' ({verdict})' if verdict else ''}"


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
                yield f"Boundary of {method}{of}, by the mean {results.barrier_words}: {'; '.join(map(_place, rows))}."
    named = dict(_checkpoints(results))
    for (whose, start, n_members), line in results.boundaries.groupby(explored.WHOSE, sort=False):
        of_all = f"{whose} of {n_members}{named[str(start)]}"
        yield f"How sure that is: the basin of {of_all} ends at lr_ratio [95 %] {explored.in_words(line)}."


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
            f"({results.traced_barrier_words} at most {barrier.text(hubs.max())} {barrier.short_unit})."
        )


def _doubts(results: Results) -> Iterator[str]:
    exploring = reading.exploring(reading.committed(results))
    yield from _undecided(results)
    yield from _many(results)
    shares = exploring.groupby(selection.POINT)["in_basin"].mean()
    mixed = int(((shares > 0) & (shares < 1)).sum())
    if mixed:
        yield f"At {counted(mixed, 'point')} of {len(shares)} the replicates lie on different sides."
    missing = reading.missing_cells(results)
    if missing:
        yield f"{counted(missing, 'cell')} of the sweep not finished: all of the above holds for the rest."


def _undecided(results: Results) -> Iterator[str]:
    """How many points their own replicates leave undecided, and how many of these the boundary decides."""
    points = explored.sides(results)
    if (undecided := points[points["side"] == "undecided"]).empty:
        return
    by_boundary = Counter(undecided["by_boundary"])
    n_in, n_out = by_boundary["in"], by_boundary["out"]
    outside = (
        f"Outside of the boundary's interval, and decided by it, lie {n_in + n_out} of these {len(undecided)}: "
        f"{n_in} in and {n_out} out."
    )
    yield (
        f"{len(undecided)} of {counted(len(points), 'point')} of the map are undecided by their own replicates: the "
        f"95 % interval of the barrier, over images and replicates, holds the threshold. "
        f"{outside if n_in + n_out else 'None of these lies outside of the interval of the boundary.'} "
        f"{explored.TWO_ANSWERS}"
    )


def _many(results: Results) -> Iterator[str]:
    """How many points were compared at once, and how many of the differences are left after Holm's correction."""
    for gain, words in (("nll_over_local_de", "NLL"), ("over_local_de", reading.metric_name(results))):
        found = results.comparisons
        found = found[found["gain"] == gain].dropna(subset="p_value")
        if len(found) > 1:
            counts = Counter(found["verdict"])
            corrected = int((found["p_holm"] < comparisons.ALPHA).sum())
            yield (
                f"{len(found)} ensembles are compared with local_de in {words}: {counts['better']} better, "
                f"{counts['worse']} worse, {counts['not distinguishable']} not distinguishable one by one; {corrected} "
                "can be told from it after Holm's correction for so many."
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
    trained = results.members["train_seconds"].sum()
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
        ("Training", f"{duration(trained)} of one worker" if trained else ""),
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
    root, cell_id = str(results.folder.root), reading.example_cell(results)
    return f"""import raybasin

results = raybasin.open({root!r}, settings={results.settings_id!r})
results.cells            # one row per cell; also .members .epochs .paths .scores .failures
raybasin.log_probs(results, {cell_id!r}, "test")   # [members, examples, classes]

import pandas            # or without raybasin: the stored tables, of all settings
cells = pandas.read_parquet({f"{root}/cells"!r})"""
