"""What a person is told: by `plan` before a sweep runs, while it runs, and at its end, on a terminal or in a log."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from raybasin.analysis import comparisons, explored, held
from raybasin.analysis import results as reading
from raybasin.analysis.held import Held
from raybasin.analysis.quantities import counted, quantity
from raybasin.analysis.removal import Removal
from raybasin.analysis.results import Results
from raybasin.errors import duration, format_bytes, one_line, some
from raybasin.jobs import advice, disk, line_search, local
from raybasin.jobs.local import Situation
from raybasin.jobs.lr_range import Tried
from raybasin.metrics import intervals
from raybasin.serving import export, model_card
from raybasin.serving.export_folder import Exported
from raybasin.serving.new_images import NewImages
from raybasin.serving.predictors import Predictor
from raybasin.store import heartbeat, inventory
from raybasin.store.folders import Folder
from raybasin.sweep import methods
from raybasin.sweep.facts import DataFacts
from raybasin.sweep.job_list import (
    Done,
    Job,
    Retraining,
    TraceMeasurement,
    Training,
    checkpoint_jobs,
    must_repeat,
    state_of,
)  # fmt: skip
from raybasin.sweep.plan import Cell, Plan
from raybasin.sweep.search import Search
from raybasin.sweep.settings import Difference, pretrain_of
from raybasin.sweep.shipped import Shipped
from raybasin.sweep.specs import KeepSpec

MOST_CELLS = 24
"""So many cells are listed one by one; of more there is a line for each method."""
MOST_LINES = 6
"""So many lines are given to things of one kind: checkpoints, further sets, cells that need pruned weights."""


def lines(situation: Situation) -> Iterator[str]:
    """What a sweep asks for, what of it is in the folder, what is to do, and what that takes. However large it is,
    these are few lines."""
    made, done = situation.plan, situation.done
    data, spec = made.facts.data, made.spec
    yield f"sweep {spec.name}, settings {made.settings_id}"
    yield (
        f"data {spec.data.name}: {data.n_train} training, {data.n_val} validation, {data.n_test} test images, "
        f"{data.n_classes} classes; {made.steps_per_epoch} steps an epoch"
    )
    yield from _data_lines(data)
    yield from advice.lines(situation)
    sources = (
        [f"checkpoints are made from {_pretrained_on(made, position)}", *_data_lines(other)]
        for position, other in made.facts.pretrain_data.items()
    )
    yield from _first(chain.from_iterable(sources), "lines on their data")
    if shifts := made.facts.shifts:
        yield f"shifts: {len(shifts)} further sets, {sum(shift.n_images for shift in shifts):,} images in all"
        yield from _first((f"  {shift.name}: {note}" for shift in shifts for note in shift.notes), "notes")
    if spec.model.factory:
        yield _factory(made)
    taken = (f"checkpoint {found.name}: {found.taken}" for found in made.facts.checkpoints if found.taken)
    yield from _first(taken, "checkpoints")
    states = Counter(state_of(cell, done) for cell in made.cells)
    yield (
        f"cells {len(made.cells)}, of which done {states['done']}, begun {states['begun']}, new {states['new']}; "
        f"networks {len(made.members)}, of which done {sum(m in done.members for m in made.members)}"
    )
    if spec.search.by_results:
        yield _search(spec.search)
    yield to_do(situation)
    yield from _pruned(situation)
    yield from _disk_lines(situation)
    if spec.basin.trace:
        yield _traces(situation)
    yield from _first(_others(made, situation.folder), "settings with cells of their own")
    yield from _certainty(made)


def to_do(situation: Situation) -> str:
    """What is left, in one line."""
    jobs = situation.jobs
    to_train = [job.task.member for job in jobs if isinstance(job.task, Training)]
    return (
        f"to do: {len(to_train)} networks of {sum(m.cycle_epochs for m in to_train):g} epochs in all, "
        f"{sum(job.kind == 'checkpoint' for job in jobs)} checkpoints, "
        f"{sum(job.kind == 'path' for job in jobs)} paths"
    )


def _search(search: Search) -> str:
    """That more is to come than a plan can count."""
    limits = [f"{search.budget_epochs:g} epochs"] if search.budget_epochs else []
    limits += [f"{search.points} {'cells' if search.by_cell else 'points'}"] if search.points else []
    most = f"at most {' and '.join(limits)}" if limits else "until it is known or cannot be decided"
    who = search.searcher or search.kind
    return f"search: {who} chooses as results come, {most}; counted here is what is chosen by now"


CHANGED = 0.07
"""Of images, how many change their answer from one predictor to another, or along a path: a guess. With 300 images
it gives standard errors of 1.5 points, as on a first map of six classes; on images as clear as digits they are half."""
BARRIER_SPREAD, GAIN_SPREAD = 0.5, 0.008
"""How far replicates spread beside that, as standard deviations: barriers near the threshold by a share of it, gains in
accuracy. Of the order seen in docs/results.md."""
MOST_REPLICATES, MOST_IMAGES = 30, 1_000_000


def _certainty(made: Plan) -> Iterator[str]:
    """How wide intervals are to be expected, and what would decide whether a point is in the basin: so narrow a one
    that a barrier near 0 is in, and one of twice the threshold out."""
    data, n, criterion = made.facts.data, made.spec.replicates, made.spec.basin.criterion
    threshold, on_train = criterion.threshold, made.spec.basin.split == "train"
    n_images, images = data.n_train if on_train else data.n_val, made.spec.basin.images
    barrier = _barrier_half_width(n_images, n, threshold)
    gain = intervals.expected(max(2, data.n_test), n, CHANGED**0.5, GAIN_SPREAD).half_width()
    over = "images and replicates" if n > 1 else "images alone, with 1 replicate"
    expected = f"95 % intervals to expect over {over}, if {CHANGED:.0%} of the images change their answer:"
    if criterion.by != "error":  # an answer that changes says nothing of how many nats
        yield f"{expected} a gain on test ± {100 * gain:.1f} points"
        yield "the interval of a barrier is forecast for error barriers alone, and here nats decide (basin.by: nll)"
        return
    yield (
        f"{expected} a barrier ± {100 * barrier:.1f} points beside a threshold of {100 * threshold:g}, "
        f"a gain on test ± {100 * gain:.1f}"
    )
    if barrier <= threshold:
        return
    at_hand = data.n_stored - (data.n_val if on_train else data.n_train) if data.n_stored else MOST_IMAGES
    ways = " or ".join(_what_decides(n_images, at_hand, n, threshold, images))
    sooner = "" if on_train else "; barriers on training images (basin.split: train) are decided sooner"
    yield f"points near the boundary will mostly stay undecided; enough would be {ways}{sooner}"


def _what_decides(n_images: int, at_hand: int, replicates: int, threshold: float, images: str) -> list[str]:
    """Each of images, replicates and threshold that is enough alone; else replicates with one of the others. No more
    images are asked for than are `at_hand`."""

    def more_images(r: int) -> str:
        count = _images_that_decide(n_images, r, threshold, at_hand)
        return f"{count:,} {images}" if count else ""

    def higher_threshold(r: int) -> str:
        limit = _threshold_that_decides(n_images, r, threshold)
        return f"a threshold of {100 * limit:.2g} points" if limit else ""

    more = range(replicates + 1 if replicates > 1 else MOST_REPLICATES, MOST_REPLICATES)
    enough = next((r for r in more if _barrier_half_width(n_images, r, threshold) <= threshold), None)
    alone = [more_images(replicates), f"{enough} replicates" if enough else "", higher_threshold(replicates)]
    if ways := [way for way in alone if way]:
        return ways
    both = ((r, way) for found in (more_images, higher_threshold) for r in more if (way := found(r)))
    return next(([f"{r} replicates with {way}"] for r, way in both), [f"many more {images}"])


def _barrier_half_width(n_images: int, replicates: int, threshold: float) -> float:
    return intervals.expected(max(2, n_images), replicates, CHANGED**0.5, BARRIER_SPREAD * threshold).half_width()


def _threshold_that_decides(n_images: int, replicates: int, threshold: float) -> float | None:
    """None where no threshold below 1 does."""
    higher = (threshold * 1.1**step for step in range(1, 40))
    return next((t for t in higher if t < 1 and _barrier_half_width(n_images, replicates, t) <= t), None)


def _images_that_decide(n_images: int, replicates: int, threshold: float, at_hand: int) -> int | None:
    """To two digits; None where replicates alone leave it open, or where there are not so many."""
    while n_images <= at_hand:
        if _barrier_half_width(n_images, replicates, threshold) <= threshold:
            digits = len(str(n_images)) - 2
            return min(math.ceil(n_images / 10**digits) * 10**digits, at_hand) if digits > 0 else n_images
        n_images = math.ceil(n_images * 1.05)
    return None


def _first(all_lines: Iterable[str], what: str) -> Iterator[str]:
    """The first of lines that may be many, and how many there are beside."""
    given = list(all_lines)
    yield from given[:MOST_LINES]
    if len(given) > MOST_LINES:
        yield f"  and {len(given) - MOST_LINES:,} more {what}"


MOST_CLASSES = 12
"""So many classes are listed one by one."""


def _data_lines(data: DataFacts) -> Iterator[str]:
    """Where images were read, how many each class has, and what is to be known of them."""
    if not data.per_class:
        return
    yield f"  from {data.source}"
    names = [one_line(name, 40) for name in data.class_names]
    counts = list(zip(names, *data.per_class, strict=True))
    if len(counts) <= MOST_CLASSES:
        listed = ", ".join(f"{name}: {train}/{val}/{test}" for name, train, val, test in counts)
        yield f"  images a class (training/validation/test): {listed}"
    else:
        ranges = (f"{min(n)}" if min(n) == max(n) else f"{min(n)} to {max(n)}" for n in data.per_class)
        yield f"  classes: {_listed(names)}"
        yield f"  images a class (training/validation/test): {'/'.join(ranges)}"
    for split, n in zip(("validation", "test"), data.per_class[1:], strict=True):
        if sum(n) and 0 in n:
            without = [name for name, count in zip(names, n, strict=True) if not count]
            yield f"  note: no {split} image of {_listed(without)}"
    yield from (f"  note: {note}" for note in data.notes)


def _listed(classes: Sequence[str]) -> str:
    """WordNet's names of classes hold commas."""
    return some(classes, MOST_CLASSES, "; " if any(", " in name for name in classes) else ", ")


def _pretrained_on(made: Plan, position: int) -> str:
    data = made.facts.pretrain_data[position]
    task = pretrain_of(made, next(c for c in made.facts.checkpoints if c.pretrain == position))
    return (
        f"{task.data.name}: {data.n_train} training, {data.n_val} validation images, {data.n_classes} classes, "
        f"{task.recipe.epochs} epochs"
    )


def state(cell: Cell, done: Done) -> str:
    """What there is of a cell, and what is to do."""
    known = state_of(cell, done)
    if known == "done":
        return known
    networks = sum(member_id in done.members for member_id in cell.member_ids)
    paths = sum((cell.cell_id, path.path_id) in done.paths for path in cell.paths)
    left = [f"{count} {what}" for count, what in ((len(cell.member_ids) - networks, "networks"),
                                                  (len(cell.paths) - paths, "paths")) if count]  # fmt: skip
    return f"{known}: {' and '.join(left) or 'scores'} to do"


def _others(made: Plan, folder: Folder) -> Iterator[str]:
    """What the folder holds that this sweep file does not ask for."""
    for other in local.others(folder, made):
        cells = counted(other.cells, "cell")
        if other.settings_id == made.settings_id:
            yield f"the folder also holds {cells} of these settings that the sweep file does not ask for; they stay"
        else:
            yield (
                f"the folder also holds {cells} of other settings ({other.settings_id}, sweep {other.sweep}); "
                "they are left alone"
            )


def pretraining_lines(made: Plan, folder: Folder) -> Iterator[str]:
    """The same of a plan of checkpoints alone."""
    jobs = checkpoint_jobs(made, inventory.survey(folder))
    total = len(made.facts.checkpoints)
    if made.spec.model.factory:
        yield _factory(made)
    for position, data in made.facts.pretrain_data.items():
        ours = [checkpoint for checkpoint in made.facts.checkpoints if checkpoint.pretrain == position]
        yield f"{len(ours)} of {_pretrained_on(made, position)}"
        yield from _data_lines(data)
    yield f"checkpoints {total}, of which done {total - len(jobs)}; results in {folder.root}"


def _factory(made: Plan) -> str:
    """What a sweep file that names code should not do unsaid."""
    model, preprocess = made.spec.model, made.facts.preprocess
    pixels = "ImageNet's mean and deviation" if made.spec.data.normalise is None else "data.normalise"
    return (
        f"network {model.name}: {model.factory} is code of your own, which is run; pixels normalised by {pixels}, "
        f"crop {preprocess.eval_crop:g}, {preprocess.interpolation}"
    )


def _traces(situation: Situation) -> str:
    """How much there is to trace, and what of it needs a training that has been before."""
    made = situation.plan
    wanted = [job.task for job in situation.jobs if isinstance(job.task, TraceMeasurement)]
    again = [task.member for task in wanted if must_repeat(task, situation.done)]
    text = f"{len(wanted)} traces to measure"
    if again:
        text += (
            f"; {len(again)} of their networks were trained without leaving weights inside their cycle and are trained "
            f"again for it, {sum(member.cycle_epochs for member in again):g} epochs in all"
        )
    each = made.spec.basin.trace_times * made.facts.n_parameters * disk.BYTES_PER_WEIGHT / 1e6
    return f"{text}; until it is measured, a trace takes up to {each:,.0f} MB of disk" if wanted else text


def _disk_lines(situation: Situation) -> Iterator[str]:
    made, folder, needed = situation.plan, situation.folder, situation.need
    keep, predictions = made.spec.keep, sum(needed.predictions.values())
    parts = ", ".join(f"{group} {format_bytes(size)}" for group, size in needed.predictions.items())
    yield (
        f"disk: about {format_bytes(needed.staying)} that stay: weights {format_bytes(needed.weights)}, "
        f"predictions {format_bytes(predictions)}{f' ({parts})' if parts else ''}, "
        f"other tables {format_bytes(needed.rows)}"
    )
    if needed.passing:
        yield (
            f"until their cells are finished, up to {format_bytes(needed.passing)} of weights more, which are "
            f"pruned then (keep.weights: {keep.weights})"
        )
    there = [f"{format_bytes(folder.size())} used", f"{keep.budget_gb:g} GB are the budget"] if keep.budget_gb else []
    if (free := folder.free()) is not None:
        there.append(f"{format_bytes(free)} free")
    if there:
        yield f"on the disk: {', '.join(there)}"
    shifts = needed.predictions.get("shifts", 0.0)
    if shifts > (needed.weights + predictions) / 2:
        yield (
            f"note: predictions on the shift sets are {format_bytes(shifts)} of that; with "
            "keep: {predictions: [val, test]} they are scored and not stored"
        )
    if made.kept_splits == made.splits:
        return
    all_kept = keep.model_copy(update={"predictions": KeepSpec().predictions})
    keeping_all = replace(made, spec=made.spec.model_copy(update={"keep": all_kept}))
    saved = disk.need(keeping_all, situation.done, situation.jobs).staying - needed.staying
    if saved > 0:
        left_out = [name for name in made.splits if name not in made.kept_splits]
        splits = ", ".join(left_out) if len(left_out) < 4 else f"{len(left_out)} splits"
        yield f"predictions on {splits} are scored and not stored, which saves {format_bytes(saved)}"


def _pruned(situation: Situation) -> Iterator[str]:
    """Which weights are not there any more, and what needs them."""
    made, jobs = situation.plan, situation.jobs
    gone = sum(member_id in situation.done.pruned for member_id in made.members)
    if gone:
        yield f"weights of {gone} networks were not kept (keep.weights)"
    again = {job.job_id: job.task.member.cycle_epochs for job in jobs if isinstance(job.task, Retraining)}
    if not again:
        return
    yield f"{len(again)} of them are needed again ({sum(again.values()):g} epochs of training; `sweep --retrain`):"
    yield from _first(_needing(made, jobs, again), "cells")


def _needing(made: Plan, jobs: Iterable[Job], again: Mapping[str, float]) -> Iterator[str]:
    """The cells that wait for what is trained `again`: the epochs of each such job by its id."""
    to_do = {job.job_id for job in jobs}
    for cell in made.cells:
        own = [again[job_id] for member_id in cell.trained_ids if (job_id := f"retrain-{member_id}") in again]
        if own and f"cell-{cell.cell_id}" in to_do:
            yield f"  {cell.label}: {len(own)} networks of {sum(own):g} epochs"


# While it runs

LINE_SECONDS = 15.0
"""Between two lines in a log, at least; on a terminal one line is rewritten."""


def _how_far(made: Plan, stats: Any) -> str:
    """How far the sweep is when its queue says `stats`: what the plan holds, less what is still to be done."""
    n_networks = len(made.members) + sum(checkpoint.pretrain is not None for checkpoint in made.facts.checkpoints)
    cells_left, networks_left = (total - done for done, total in (stats.cells, stats.networks))
    cells = f"cells {len(made.cells) - cells_left}/{len(made.cells)}, " if made.cells else ""  # none in pre-training
    failed = f", {stats.failed_cells} failed" if stats.failed_cells else ""
    doing = f"{len(stats.running)} of {len(stats.pids)} workers busy" if stats.pids else "starting workers"
    pace = f", {stats.images_per_second:,.0f} images/s" if stats.images_per_second else ""
    rate = stats.cost_done / stats.up_seconds if stats.cost_done and stats.up_seconds else None
    left = f", about {duration(stats.cost_left / rate)} left" if rate else ""
    if made.spec.search.by_results:  # what is still to be done is not known
        counts = [
            f"{what} {done}/{chosen}" for what, (done, chosen) in (("cells", stats.cells), ("networks", stats.networks))
        ]
        return f"of what is chosen by now, {', '.join(counts)}{failed}, {doing}{pace}"
    return f"{cells}networks {n_networks - networks_left}/{n_networks}{failed}, {doing}{pace}{left}"


def waiting(quiet: bool) -> Callable[[str], None]:
    """What is to be called with the reason why a run waits for room; where it is `quiet`, that says nothing."""
    return (lambda why: None) if quiet else lambda why: print(f"waiting for room; {why}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(made: Plan, folder: Folder, quiet: bool = False) -> Iterator[Callable[[Any], None]]:
    """Gives what a run is to call with the state of its queue about once a second: a person is told, here (but where
    it is `quiet`) and by `raybasin status`. At the end of the block follows how busy the workers were, and what was
    given up, which is told in any case."""
    out, started = sys.stderr, time.monotonic()
    told, told_at = "", -LINE_SECONDS
    last: Any = None
    given_up: dict[str, None] = {}
    try:
        with heartbeat.beating(folder, made.settings_id) as say:

            def watch(stats: Any) -> None:
                nonlocal last, told, told_at
                last, line, seconds = stats, _how_far(made, stats), time.monotonic() - started
                say(line)
                if quiet:
                    pass
                elif out.isatty():
                    print(f"\r\x1b[2K[{duration(seconds)}] {line}", end="", file=out, flush=True)
                elif line != told and seconds - told_at >= LINE_SECONDS:
                    told, told_at = line, seconds
                    print(f"[{duration(seconds)}] {line}", file=out, flush=True)
                given_up.update(dict.fromkeys(stats.given_up))

            yield watch
    finally:
        if out.isatty() and not quiet:
            print(file=out)
    if last and last.pids and last.worker_seconds and not quiet:
        share = last.busy_seconds / last.worker_seconds
        print(f"{len(last.pids)} workers for {last.up_seconds:.0f} s, {share:.0%} of it in jobs", file=sys.stderr)
    for line in given_up:
        print(line, file=sys.stderr)


@contextlib.contextmanager
def counting(total: int, noun: str, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Gives what is to be called with how many more are done: a person sees how many, and the time left."""
    out, started = sys.stderr, time.monotonic()
    done, told_at = 0, started

    def beat(more: int) -> None:
        nonlocal done, told_at
        done += more
        now = time.monotonic()
        if quiet or (now - told_at < LINE_SECONDS and not out.isatty()):
            return
        told_at = now
        left = f", about {duration((now - started) / done * (total - done))} left" if 0 < done < total else ""
        line = f"{done:,} of {total:,} {noun}{left}"
        print(f"\r\x1b[2K{line}" if out.isatty() else line, end="" if out.isatty() else "\n", file=out, flush=True)

    try:
        yield beat
    finally:
        if out.isatty() and not quiet and done:
            print(file=out)


# Tables, and what came out


def print_table(table: Table) -> None:
    """As wide as the terminal, or as COLUMNS says; where nobody looks at it as it comes, plain text, without boxes and
    colours and, without COLUMNS, as wide as it needs to be."""
    if sys.stdout.isatty():
        Console(markup=False, highlight=False, emoji=False).print(table)  # names of strangers are no markup
        return
    out, columns = io.StringIO(), os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() and int(columns) else WIDE
    plain = Console(file=out, width=width, color_system=None, force_terminal=False, no_color=True, markup=False,
                    highlight=False, emoji=False)  # fmt: skip
    if table.title:  # it would be wrapped to the width of the table
        plain.print(table.title)
    table.title, table.box, table.padding = None, None, (0, 2, 0, 0)
    plain.print(table)
    for line in out.getvalue().splitlines():
        print(line.rstrip())


WIDE = 10_000
"""Characters: no table is wider."""


def cells_table(made: Plan, done: Done, every: bool = False) -> Table:
    """The cells, one by one where they are few or `every` one is asked for, else by method."""
    return _every_cell(made, done) if every or len(made.cells) <= MOST_CELLS else _cells_by_method(made, done)


def _cells_by_method(made: Plan, done: Done) -> Table:
    columns = ("method", "lr_ratio", "cycle_ratio", "epochs of a cycle", "members", "epochs of a cell", "checkpoints",
               "replicates", "cells", "done", "begun", "new")  # fmt: skip
    table = Table(*columns, title=f"{len(made.cells):,} cells, by method", title_justify="left")
    by_method: dict[str, list[Cell]] = defaultdict(list)
    for cell in made.cells:
        by_method[methods.label(cell.point.method, cell.variant)].append(cell)
    for label, cells in by_method.items():
        states = Counter(state_of(cell, done) for cell in cells)
        table.add_row(
            label,
            _values(cell.point.lr_ratio for cell in cells),
            _values(cell.point.cycle_ratio for cell in cells),
            _range([cell.cycle_epochs for cell in cells]),
            str(len(cells[0].member_ids)),
            _range([made.train_epochs(cell) for cell in cells]),
            f"{len({cell.point.checkpoint.key for cell in cells}):,}",
            f"{len({cell.point.replicate for cell in cells}):,}",
            *(f"{count:,}" for count in (len(cells), states["done"], states["begun"], states["new"])),
        )
    return table


MOST_VALUES = 5
"""So many values are listed one by one."""


def _values(values: Iterable[float]) -> str:
    found = sorted(set(values))
    if len(found) <= MOST_VALUES:
        return ", ".join(f"{value:g}" for value in found)
    return f"{len(found):,} from {_range(found)}"


def _range(values: Collection[float]) -> str:
    least, most = (f"{value:.4g}" if value < 1000 else f"{value:.0f}" for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"


def _every_cell(made: Plan, done: Done) -> Table:
    columns = ("method", "checkpoint", "lr_ratio", "cycle_ratio", "max_lr", "epochs of a cycle", "members",
               "epochs in all", "replicate", "state")  # fmt: skip
    table = Table(*columns, title="cells", title_justify="left")
    for cell in made.cells:
        point, method = cell.point, methods.label(cell.point.method, cell.variant)
        table.add_row(method, point.checkpoint.name, f"{point.lr_ratio:g}", f"{point.cycle_ratio:g}",
                      f"{cell.max_lr:g}", f"{cell.cycle_epochs:g}", str(len(cell.member_ids)),
                      f"{made.train_epochs(cell):g}", str(point.replicate), state(cell, done))  # fmt: skip
    return table


SUMMARY: dict[str, Callable[[Mapping[Any, Any]], str]] = {
    "method": lambda row: str(row["method"]),
    "lr_ratio": lambda row: f"{row['lr_ratio']:g}",
    "cycle_ratio": lambda row: f"{row['cycle_ratio']:g}",
    "basin": lambda row: str(row["side"]),
    "barrier": lambda row: quantity(row["decided_by"]).with_interval(row[row["decided_by"]], row["low"], row["high"]),
    "hub": lambda row: _percent(row["hub_accuracy"]),
    "member": lambda row: _percent(row["member_accuracy"]),
    "ensemble": lambda row: _percent(row["ensemble_accuracy"]),
    "vs DE": lambda row: _over_local_de(row),
    "soup": lambda row: _percent(row["soup_accuracy"]),
    "n": lambda row: str(row["replicates"]),
    "epochs": lambda row: f"{row['train_epochs']:g}",
}
"""Columns of the table at the end of a sweep, from rows of `comparisons.summary`."""


def summary_tables(results: Results) -> Iterator[Table]:
    """One table for each checkpoint; none where no cell is finished."""
    if results.cells.empty:
        return
    metric, n_test = reading.metric_name(results), results.facts["data"]["n_test"]
    barrier = f"{results.barrier_words}, {quantity(results.criterion.barrier).short_unit}"
    for checkpoint, points in comparisons.summary(results).groupby("checkpoint", sort=False):
        title = (
            f"checkpoint {checkpoint}: test {metric} on {n_test} images, mean of n replicates, %\n"
            f"barrier = {barrier}; vs DE = ensemble minus local_de's, points; no word: not distinguishable; "
            "alone: not after Holm's correction\n"
            "[95 % interval over images and replicates]"
        )
        table = Table(title=title, title_justify="left")
        for name in SUMMARY:
            table.add_column(name, justify="left" if name == "method" else "right")
        for row in points.to_dict("records"):
            style = "bold" if row["method"] == "local_de" else None
            table.add_row(*(text(row) for text in SUMMARY.values()), style=style)
        yield table


STOPPED = {
    "resolution": "what it looks for is known as closely as was asked for",
    "budget": "its budget or its points are spent",
    "cannot decide": "more cells of this kind would not decide; more validation images, more replicates or another "
    "threshold would",
    None: "it has not ended",
}
"""Why a search asks for nothing more."""


def explored_lines(results: Results, made: Plan, done: Done) -> Iterator[str]:
    """Where the basin ends, by method and checkpoint, and what a search by cell has found and why it stopped."""
    for (method, checkpoint, n_members), line in results.boundaries.groupby(explored.WHOSE, sort=False):
        ends = explored.in_words(line)
        yield f"{method} of {n_members}, checkpoint {checkpoint}: the basin ends at lr_ratio [95 %]: {ends}"
    search = made.spec.search
    if search.of:
        for row in results.best_points(search.of).to_dict("records"):
            score = quantity(explored.OF[search.of]).with_interval(row["score"], row["low"], row["high"])
            yield f"best {search.of} on validation: {point(row)}, {score} %, {row['lies']} of the basin's boundary"
    if search.by_cell:
        stopped = line_search.begin(results.folder, made.settings, done).lines.stopped
        for (method, checkpoint), why in stopped.items():
            yield f"the search of {method} from checkpoint {checkpoint} stopped: {STOPPED[why]}"


# Settings of a folder


def settings_table(found: Sequence[Held]) -> Table:
    """One row for each of the settings, that worked on last first."""
    table = Table("settings", "sweep", "cells", "last worked on", "differs from the newest in")
    for one in found:
        changed = held.in_words(held.changes(found[0], one), MOST_LINES)
        missing = "" if one.stored else "sweep file missing or damaged"
        table.add_row(one.shown_id, one.sweep, str(one.cells), one.when, missing or changed)
    return table


DIFFERENCES = {"settings": "what makes them two settings", "further": "what else their sweep files say"}
"""Titles of the tables of differences."""


def differences_table(found: Iterable[Difference], pair: Sequence[Held], title: str) -> Table:
    """The values of two settings, by key."""
    table = Table("key", *(one.shown_id for one in pair), title=title, title_justify="left")
    for one in found:
        table.add_row(one_line(one.key, 100), *(held.shown(value, most=200) for value in one.values))
    return table


def removal_lines(found: Removal, what: str) -> Iterator[str]:
    """What is `removed`, or would be, of which kind, and what stays."""
    counts = ((found.files("cells"), "cell"), (found.files("members"), "network"))
    parts = ", ".join(counted(count, name) for count, name in counts)
    yield f"settings {found.settings_id}: {what}: {parts}; {len(found.sizes)} files, {format_bytes(found.bytes)} in all"
    if found.shared:
        yield f"networks of it that stay, since other settings in the folder have them, too: {found.shared}"


def _percent(share: float) -> str:
    return "-" if pd.isna(share) else f"{100 * share:.1f}"


def _over_local_de(row: Mapping[Any, Any]) -> str:
    if row["method"] == "local_de" or pd.isna(row["over_local_de"]):
        return "-"
    low, high, verdict, p_holm = (row[f"over_local_de_{name}"] for name in comparisons.OF_GAIN)
    shown = quantity("over_local_de").with_interval(row["over_local_de"], low, high)
    told = verdict in ("better", "worse")
    return f"{shown} {comparisons.verdict_words(verdict, p_holm, brief=True)}" if told else shown


def point(row: Mapping[Any, Any] | pd.Series[Any]) -> str:
    """Where a row lies on the map."""
    return f"{row['method']} lr_ratio={row['lr_ratio']:g} cycle_ratio={row['cycle_ratio']:g}"


def soup_lines(results: Results, cell: pd.Series[Any], kind: str, chosen: str) -> Iterator[str]:
    """Which soup was exported, and how good it is."""
    yield (
        f"{kind} soup of {len(export.ingredients(cell, kind))} of the {cell['n_members']} members of cell "
        f"{cell['cell_id']} ({point(cell)}), {chosen}; replicate {cell['replicate']} of "
        f"{results.sweep['replicates']}, counted from 0"
    )
    accuracy, facts = cell[export.KINDS[kind].accuracy], results.facts
    data = facts.get("data") or {}
    if pd.notna(accuracy) and "n_test" in data:
        yield f"{accuracy:.2%} of {data['n_test']} test images right"
    if facts.get("batch_norm") and "n_train" in data:
        n_estimated = min(results.sweep["basin"]["bn_images"], data["n_train"])
        yield f"batch-norm statistics estimated again on {n_estimated} training images"


def export_lines(done: Exported) -> Iterator[str]:
    """What was exported, and how good it is."""
    about, cell = done.about, done.about["cell"]
    of = "" if about["what"] == "hub" else f" of {len(about['members'])} of the {cell['n_members']} members"
    yield (
        f"{done.folder}: {about['what']}{of} of cell {cell['cell_id']} ({point(cell)}), {about['chosen']}; replicate "
        f"{cell['replicate']} of {about['replicates']}, counted from 0"
    )
    yield from model_card.score_lines(about)
    if onnx := about.get("onnx"):
        difference = onnx["largest_difference"]
        checked = "not checked, as onnxruntime is not installed"
        if difference is not None:
            checked = f"its logits differ from torch's by at most {difference:.2g} on {onnx['n_images']} random inputs"
        yield f"model.onnx: {checked}"
    yield "README.md there says how to load it without raybasin"


def predictor_lines(predictor: Predictor, found: NewImages, device: str) -> Iterator[str]:
    """What is about to predict what."""
    calibrated = f"calibrated at temperature {predictor.temperature:.3g}"
    unknown = "not calibrated, as its temperature is not known"
    yield f"{predictor.words}; {unknown if math.isnan(predictor.temperature) else calibrated}; on {device}"
    yield from (f"note: {one_line(note)}" for note in found.notes)


def predicted_lines(told: Mapping[str, Any]) -> Iterator[str]:
    """What was written, and how right it is where that is known."""
    yield f"{told['file']}: {counted(told['n_images'], 'image')}"
    scores = told["scores"]
    if not scores:
        yield "the classes of the images are not known, so there is no accuracy"
    else:
        parts = []
        for name, column in (("accuracy", "ensemble_accuracy"), ("NLL", "ensemble_nll")):
            found, shown = scores[name.lower()], quantity(column)
            values = (math.nan if found[key] is None else float(found[key]) for key in ("value", "low", "high"))
            parts.append(f"{name} {shown.with_interval(*values)}{' %' if name == 'accuracy' else ''}")
        yield f"{', '.join(parts)}, on {counted(scores['accuracy']['n_images'], 'image')} whose class is known"
    if told["unknown_labels"]:
        names = [f"'{one_line(name, 50)}'" for name in told["unknown_labels"]]
        yield f"{sum(told['unknown_labels'].values()):,} images are of classes it does not know: {some(names, 5)}"
    for line in told["unreadable"][:20]:
        yield f"left out: {line}"
    if len(told["unreadable"]) > 20:
        yield f"left out: {len(told['unreadable']) - 20:,} more"


def shipped_lines(one: Shipped) -> Iterator[str]:
    """A sweep file that comes with raybasin: what it asks, and what that costs."""
    yield one.name
    for text in (one.question, f"cost: {one.cost}"):
        yield from textwrap.wrap(text, 112, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def lr_lines(tried: Sequence[Tried], best: Tried) -> Iterator[str]:
    """What fine-tunings at several rates have come to, and which is proposed."""
    yield "lr        validation NLL    accuracy"
    for one in tried:
        end = (
            "diverged"
            if math.isnan(one.val_nll)
            else f"{one.val_nll:.3f} ± {one.nll_range / 2:.3f}     {one.val_accuracy:.1%}"
        )
        yield f"{one.lr:<8g}  {end}"
    yield f"recipe.lr: {best.lr:g}  # the lowest NLL on validation; ± is half of what two networks lie apart"
    if best in (tried[0], tried[-1]):
        yield "note: it is at an end of what was tried; try further ones with --lr"


# A plane

WARM_POINTS = 2
"""After so many it is said how long a plane will take: the first one alone is slower than the others."""


def plane_beat(
    tell: Callable[[str], None], per_row: int, now: Callable[[], float] = time.monotonic
) -> Callable[[int, int], None]:
    """What is told before each point of a plane, of which so many make a row, how many are done: it tells how many
    there are, as soon as that can be known how long they take, and after each row how long the rest does."""
    began: list[float] = []

    def beat(done: int, points: int) -> None:
        if len(began) < WARM_POINTS:
            began.append(now())
        if not done:
            tell(f"{counted(points, 'point')} to measure")
        elif done == WARM_POINTS or (done > WARM_POINTS and done % per_row == 0):
            of_one = (now() - began[1]) / (done - 1)
            tell(f"point {done + 1} of {points}, about {duration(of_one * (points - done))} left")

    return beat
