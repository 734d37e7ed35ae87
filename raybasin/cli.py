"""The command line. Each command reads its options, calls one room and prints; torch and ray load only where needed.

Exit status: 0 done; 1 some cells failed, or a check found something; 2 bad input, before anything starts;
130 interrupted.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from raybasin.analysis.rescore import rescore
from raybasin.errors import FolderLost, StoreError, UserError, one_line
from raybasin.store import folders
from raybasin.store.folders import Folder
from raybasin.sweep import methods, specs
from raybasin.sweep.specs import SweepSpec

if TYPE_CHECKING:
    from raybasin.analysis.results import Results
    from raybasin.jobs.local import Pretrained, Report, Situation
    from raybasin.sweep.jobs import Done
    from raybasin.sweep.plan import Plan

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="raybasin", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Maps the basin of a pre-trained checkpoint: StarSSE ensembles, soups and barriers.",
)  # fmt: skip

File = Annotated[Path, typer.Argument(metavar="FILE", help="a sweep file", show_default=False)]
Where = Annotated[str, typer.Argument(metavar="RESULTS", help="a results folder or its address", show_default=False)]
ResultsOption = Annotated[
    str | None, typer.Option("--results", help="results folder, or s3://bucket/prefix (default results/<name>)")
]
DataOption = Annotated[str | None, typer.Option("--data", help="folder with the data set, in one of three layouts")]
CheckpointOption = Annotated[
    list[str] | None, typer.Option("--checkpoint", help="file or folder of pre-trained weights; again for several")
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address", help="of a Ray cluster, host:port (default: this machine alone, or the cluster of the Ray job)"
    ),
]
StopOption = Annotated[
    float | None, typer.Option("--stop-after", help="hours after which to stop; the same command continues")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value with dotted keys, for instance recipe.epochs=5; again for several"),
]
SettingsOption = Annotated[
    str | None, typer.Option("--settings", help="which settings, in a folder that holds several")
]


def main() -> NoReturn:
    """Runs a command; an error that the user can put right is one or two lines and exit status 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except StoreError as error:  # it answered at the start, and has stopped to
        print(f"error: {error}; what is written stays, and the same command continues", file=sys.stderr)
        sys.exit(FAILED)
    except FolderLost as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(FAILED)
    sys.exit(0)


# Running


@app.command()
def sweep(
    file: File,
    results: ResultsOption = None,
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    set_: SetOption = None,
    address: AddressOption = None,
    stop_after: StopOption = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="train again what is needed and was pruned (keep.weights)")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be done")] = False,
) -> None:
    """Run or continue a sweep; the same command again continues it."""
    started = time.monotonic()
    _check_hours(stop_after)
    spec = specs.load(file, set_ or [], data, checkpoint or [])
    where = _results_of(spec, results)
    if dry_run:
        _print_plan(spec, where)
        return
    folder = folders.create(where)
    _refuse_compacted(folder, "continued")
    from raybasin.jobs import local, prepare

    prepared = prepare.prepare(spec)
    situation = local.begin(folder, prepared, retrain)
    _announce(situation)
    situation.check(retrain, workers=spec.workers.count or 1)
    from raybasin.cluster import driver as on_ray

    options = on_ray.Options(address=address, stop_after_hours=stop_after, retrain=retrain)
    report = _with_progress(prepared.plan, folder, lambda watch: on_ray.run(
        situation, lambda: prepare.load(prepared), options, watch))  # fmt: skip
    _conclude(report, folder, time.monotonic() - started)


@app.command()
def plan(
    file: File,
    results: ResultsOption = None,
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    set_: SetOption = None,
) -> None:
    """Say what a sweep would do: cells, networks, epochs, disk, what is done already. Trains nothing."""
    spec = specs.load(file, set_ or [], data, checkpoint or [])
    _print_plan(spec, _results_of(spec, results))


@app.command()
def pretrain(
    file: File,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="folder for the files (default RESULTS/pretrained)")
    ] = None,
    results: ResultsOption = None,
    data: Annotated[str | None, typer.Option("--data", help="folder with the data of the pretrain entries")] = None,
    set_: SetOption = None,
    address: AddressOption = None,
    stop_after: StopOption = None,
) -> None:
    """Make only the checkpoints that the sweep file declares, and write each as a file that timm loads. A sweep in the
    same results folder finds them; any other takes the files, or their folder, in model.pretrained."""
    _check_hours(stop_after)
    spec = specs.load_for_pretraining(file, set_ or [], data)
    folder = folders.create(_results_of(spec, results))
    _refuse_compacted(folder, "continued")
    target, prefix = (folder, "pretrained/") if output is None else (folders.create_plain(output), "")
    from raybasin import console
    from raybasin.analysis import export
    from raybasin.cluster import driver as on_ray
    from raybasin.jobs import prepare

    prepared = prepare.prepare_pretraining(spec)
    export.check_is_free(target, prefix, prepared.plan)
    for line in console.pretraining_lines(prepared.plan, folder):
        print(line, file=sys.stderr, flush=True)
    options = on_ray.Options(address=address, stop_after_hours=stop_after)
    report = _with_progress(prepared.plan, folder, lambda watch: on_ray.pretrain(
        prepared, folder, lambda: prepare.load(prepared), options, watch))  # fmt: skip
    _conclude_pretraining(report, folder, target, prefix)


def _conclude_pretraining(report: Pretrained, folder: Folder, target: Folder, prefix: str) -> None:
    """Writes and names the files of what was made, and the exit status."""
    from raybasin.analysis import export
    from raybasin.store import tables
    from raybasin.training import models

    model = report.plan.spec.model
    heads = models.head_names(models.build(model, n_classes=2, seed=0), model)
    first: dict[int | None, tuple[Any, str]] = {}  # of each entry
    for checkpoint in report.made:
        path = export.checkpoint(folder, report.plan, checkpoint, heads, target, prefix)
        row = tables.row(folder, "checkpoints", checkpoint.key)
        print(f"{path}: validation accuracy {row['val_accuracy']:.1%}")
        first.setdefault(checkpoint.pretrain, (checkpoint, path))
    for checkpoint, path in first.values():
        print(export.how_to_load_checkpoint(report.plan, checkpoint, path))
    total = len(report.plan.facts.checkpoints)
    for name, reason in report.failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    if report.interrupted:
        print(f"interrupted ({report.interrupted}); the same command continues", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if report.ended:
        print(f"ended: {report.ended}", file=sys.stderr)
    if not report.complete:
        print(f"{total - len(report.made)} of {total} checkpoints could not be made", file=sys.stderr)
        raise typer.Exit(FAILED)


def _check_hours(stop_after: float | None) -> None:
    if stop_after is not None and not 0 < stop_after < math.inf:
        raise UserError(f"--stop-after {stop_after:g}: must be hours, above 0")


def _results_of(spec: SweepSpec, results: str | None) -> str:
    """Where results go. Inside a Ray job the working folder is a temporary copy, which nothing may be written to."""
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if inside_job and (results is None or not ("://" in results or os.path.isabs(os.path.expanduser(results)))):
        raise UserError(
            f"--results {results or '(not given)'}: a Ray job runs in a temporary folder; "
            "name an absolute path that all machines of the cluster mount, or an address such as s3://bucket/prefix"
        )
    return results or f"results/{spec.name}"


def _refuse_compacted(folder: Folder, verb: str) -> None:
    from raybasin.store import tables

    if tables.is_compacted(folder):
        raise UserError(f"{folder.root}: is a compacted copy, which cannot be {verb}; name the folder it was made from")


def _announce(situation: Situation) -> None:
    from raybasin import console

    for line in console.lines(situation):
        print(line, file=sys.stderr)
    print(f"results in {situation.folder.root}", file=sys.stderr, flush=True)


def _print_plan(spec: SweepSpec, where: str) -> None:
    from raybasin import console
    from raybasin.jobs import local, prepare

    situation = local.look(prepare.prepare(spec).plan, folders.at(where))
    for line in console.lines(situation):
        print(line)
    _print_cells(situation.plan, situation.done)
    situation.check(retrain=True, workers=spec.workers.count or 1)


def _print_cells(made: Plan, done: Done) -> None:
    from raybasin import console

    columns = ("method", "checkpoint", "lr_ratio", "cycle_ratio", "max_lr", "epochs of a cycle", "members",
               "epochs in all", "replicate", "state")  # fmt: skip
    table = Table(*columns, title="cells", title_justify="left")
    for cell in made.cells:
        point, method = cell.point, methods.label(cell.point.method, cell.variant)
        table.add_row(method, point.checkpoint.name, f"{point.lr_ratio:g}", f"{point.cycle_ratio:g}",
                      f"{cell.max_lr:g}", f"{cell.cycle_epochs:g}", str(len(cell.member_ids)),
                      f"{made.train_epochs(cell):g}", str(point.replicate), console.state(cell, done))  # fmt: skip
    _console().print(table)


def _with_progress(made: Plan, folder: Folder, run: Any) -> Any:
    """Runs with progress shown: what the plan holds, less what is still to be done."""
    from raybasin.console import Show, State
    from raybasin.store.heartbeat import beating

    show = Show()
    n_networks = len(made.members) + sum(checkpoint.pretrain is not None for checkpoint in made.facts.checkpoints)

    def state(stats: Any) -> State:
        rate = stats.cost_done / stats.up_seconds if stats.cost_done and stats.up_seconds else None
        cells_left, networks_left = (total - done for done, total in (stats.cells, stats.networks))
        return State(
            cells=len(made.cells) - cells_left, cells_total=len(made.cells), networks=n_networks - networks_left,
            networks_total=n_networks, failed=stats.failed_cells, workers=len(stats.pids),
            busy=len(stats.running), seconds_left=stats.cost_left / rate if rate else None,
        )  # fmt: skip

    usage: list[tuple[float, float, int]] = []
    given_up: dict[str, None] = {}
    try:
        with beating(folder, made.settings_id) as say:

            def watch(stats: Any) -> None:
                show(now := state(stats))
                say(now.line())
                usage.append((stats.busy_seconds, stats.up_seconds, len(stats.pids)))
                given_up.update(dict.fromkeys(stats.given_up))

            report = run(watch)
    finally:
        show.close()
    busy, up, workers = usage[-1] if usage else (0.0, 0.0, 0)
    if workers and up:
        print(f"{workers} workers for {up:.0f} s, {busy / (workers * up):.0%} of it in jobs", file=sys.stderr)
    for line in given_up:
        print(line, file=sys.stderr)
    return report


def _conclude(report: Report, folder: Folder, seconds: float) -> None:
    """The table and the map of what is there, and the exit status."""
    from raybasin.analysis import figures, results
    from raybasin.console import duration

    opened = results.open(str(folder.root), report.plan.settings_id)
    if len(opened.cells):
        _print_summary(opened)
    if results.methods_with_a_map(opened):
        try:
            folder.put("map.png", figures.encoded(figures.map_figure(opened, method=None), "png"))
            print(f"map: {folder.name('map.png')}")
        except (UserError, FolderLost) as error:  # that is no reason to be silent about the rest
            print(f"map: {error}", file=sys.stderr)
    total = len(report.plan.cells)
    print(f"{report.committed} of {total} cells done in {duration(seconds)}; results in {folder.root}")
    for failure in report.failures:
        print(f"failed: {failure.cell.label}: {failure.reason}", file=sys.stderr)
    if report.interrupted:
        print(f"interrupted ({report.interrupted}); the same command continues", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if report.ended:
        print(f"ended: {report.ended}", file=sys.stderr)
    if not report.complete:
        print("some cells are missing; the same command tries them again", file=sys.stderr)
        raise typer.Exit(FAILED)


def _print_summary(opened: Results) -> None:
    """One table for each checkpoint."""
    from raybasin.analysis import results

    summary = results.summary(results.judged(opened))
    metric, n_test = results.metric_name(opened), opened.facts["data"]["n_test"]
    for checkpoint, rows in summary.groupby("checkpoint", sort=False):
        _console().print(_summary_table(str(checkpoint), rows.to_dict("records"), metric, n_test))


def _summary_table(checkpoint: str, rows: list[dict[Any, Any]], metric: str, n_test: int) -> Table:
    title = (
        f"checkpoint {checkpoint}: test {metric} on {n_test} images, % (± sd over replicates); "
        "vs DE = ensemble minus local_de's"
    )
    table = Table(title=title, title_justify="left")
    for name in ("method", "lr_ratio", "cycle_ratio", "in basin", "barrier", "hub", "member", "ensemble", "vs DE",
                 "soup", "epochs"):  # fmt: skip
        table.add_column(name, justify="left" if name == "method" else "right")
    for row in rows:
        table.add_row(
            str(row["method"]), f"{row['lr_ratio']:g}", f"{row['cycle_ratio']:g}",
            f"{row['in_basin'] * row['replicates']:.0f} of {row['replicates']}", f"{100 * row['barrier_error']:.1f}",
            _spread(row, "hub_accuracy"), _spread(row, "member_accuracy"), _spread(row, "ensemble_accuracy"),
            _spread(row, "over_local_de", "+"), _spread(row, "soup_accuracy"), f"{row['train_epochs']:g}",
            style="bold" if row["method"] == "local_de" else None,
        )  # fmt: skip
    return table


def _spread(row: dict[Any, Any], column: str, sign: str = "") -> str:
    mean, sd = 100 * row[column], 100 * row[f"{column}_sd"]
    if mean != mean:
        return "-"
    return f"{mean:{sign}.1f}" + ("" if sd != sd else f" ± {sd:.1f}")


# Reading


@app.command()
def status(results: Where, settings: SettingsOption = None) -> None:
    """What is done, running and failed."""
    from raybasin.analysis import results as reading
    from raybasin.store import heartbeat, inventory

    opened = reading.open(results, settings)
    _refuse_compacted(opened.folder, "asked for its status")
    made = inventory.stored_plan(opened.folder, opened.settings_id)
    done = inventory.survey(opened.folder)
    cells = sum(cell.cell_id in done.cells for cell in made.cells)
    members = sum(member in done.members for member in made.members)
    print(f"sweep {made.spec.name}, settings {opened.settings_id}")
    print(f"cells done {cells} of {len(made.cells)}, networks done {members} of {len(made.members)}")
    for line in heartbeat.running(opened.folder, opened.settings_id) or ["not running"]:
        print(line)
    failures = reading.open_failures(opened).to_dict("records")
    print(f"failed {len(failures)}")
    for row in failures:
        print("  " + one_line(f"{row['method']} lr_ratio={row['lr_ratio']:g} cycle_ratio={row['cycle_ratio']:g} "
                                 f"replicate={row['replicate']}: {row['reason']} ({row['tries']} tries)"))  # fmt: skip


@app.command(name="map")
def map_(
    results: Where,
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG, SVG or PDF")] = Path("map.png"),
    value: Annotated[
        str, typer.Option("--value", help="what colours the cells: a gain or any column of cells")
    ] = "ensemble_gain",
    settings: SettingsOption = None,
) -> None:
    """Draw the map: learning rate by cycle length, with the basin's boundary."""
    from raybasin.analysis import figures
    from raybasin.analysis import results as reading

    figures.save(figures.map_figure(reading.open(results, settings), value=value, method=None), output)
    print(output)


@app.command()
def plane(
    results: Where,
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG, SVG or PDF")] = Path("plane.png"),
    cell: Annotated[str | None, typer.Option("--cell", help="a cell_id (default: the best cell on validation)")] = None,
    members: Annotated[str, typer.Option("--members", help="three members of the cell, 0 is the hub")] = "0,1,2",
    points: Annotated[int, typer.Option("--points", help="points along each side of the grid")] = 21,
    split: Annotated[str, typer.Option("--split", help="val or train")] = "val",
    margin: Annotated[
        float, typer.Option("--margin", help="how far the grid reaches beyond the members, as a share of their box")
    ] = 0.2,
    value: Annotated[str, typer.Option("--value", help="error or nll")] = "error",
    data: DataOption = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda")] = "cpu",
    settings: SettingsOption = None,
) -> None:
    """Draw the plane through three members of a cell in weight space; the same command again continues measuring it."""
    from raybasin.analysis import figures, planes
    from raybasin.analysis import results as reading
    from raybasin.console import duration

    if value not in ("error", "nll"):
        raise UserError(f"--value {value}: must be error or nll")
    opened = reading.open(results, settings)
    _refuse_compacted(opened.folder, "measured in")
    row = planes.choose(opened, cell)
    asked = planes.ask(opened, row, _indices(members), points, split, margin)
    if not asked.is_measured(opened.folder):
        began = time.monotonic()

        def beat(done: int, rows: int) -> None:
            left = f", about {duration((time.monotonic() - began) / done * (rows - done))} left" if done else ""
            print(f"row {done + 1} of {rows}{left}", file=sys.stderr, flush=True)

        try:
            planes.measure(asked, opened, data, device, beat)
        except KeyboardInterrupt:
            print("interrupted; the same command continues", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
    figures.save(figures.plane_figure(opened, planes.points_of(opened, asked), value), output)
    print(f"{output}: cell {row['cell_id']} ({row['method']} lr_ratio={row['lr_ratio']:g} "
          f"cycle_ratio={row['cycle_ratio']:g}), members {asked.named}")  # fmt: skip


def _indices(members: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in members.split(","))
    except ValueError as error:
        raise UserError(f"--members {members}: must be three numbers, for instance 0,1,2") from error


@app.command()
def report(
    results: Where,
    output: Annotated[Path, typer.Option("-o", "--output", help="an HTML file")] = Path("report.html"),
    settings: SettingsOption = None,
) -> None:
    """Write one self-contained page with everything."""
    from raybasin.analysis import report as reporting
    from raybasin.analysis import results as reading

    reporting.write(reading.open(results, settings), output)
    print(output)


@app.command()
def soup(
    results: Where,
    output: Annotated[str, typer.Option("-o", "--output", help="a new .safetensors file", show_default=False)],
    cell: Annotated[str | None, typer.Option("--cell", help="a cell_id (default: the best cell on validation)")] = None,
    kind: Annotated[str, typer.Option("--kind", help="uniform or greedy")] = "uniform",
    settings: SettingsOption = None,
) -> None:
    """Export a soup as one file that timm, or plain torch, loads; prints Python that does, and shows images to it."""
    from raybasin.analysis import export
    from raybasin.analysis import results as reading

    if kind not in export.COLUMNS:
        raise UserError(f"--kind {kind}: must be uniform or greedy")
    opened = reading.open(results, settings)
    cell_id = cell or str(reading.best_cell(opened)["cell_id"])
    row = _by_name(reading.cell_of(opened, cell_id).to_dict())
    how = export.soup(opened, row, kind, output)
    for line in _about_soup(opened, row, kind, "named by --cell" if cell else CHOSEN):
        print(one_line(f"# {line}"))
    print(how)


CHOSEN = "of the point whose uniform soups are best on validation"


def _about_soup(opened: Results, row: dict[str, Any], kind: str, chosen: str) -> Iterator[str]:
    """Which soup it is, and how good."""
    from raybasin.analysis import export

    point = f"{row['method']} lr_ratio={row['lr_ratio']:g} cycle_ratio={row['cycle_ratio']:g}"
    yield (
        f"{kind} soup of {len(export.ingredients(row, kind))} of the {row['n_members']} members of cell "
        f"{row['cell_id']} ({point}), {chosen}; replicate {row['replicate']} of {opened.sweep['replicates']}, "
        "counted from 0"
    )
    accuracy, facts = row[export.ACCURACIES[kind]], opened.facts
    data = facts.get("data") or {}
    if accuracy == accuracy and "n_test" in data:
        yield f"{accuracy:.2%} of {data['n_test']} test images right"
    if facts.get("batch_norm") and "n_train" in data:
        n_estimated = min(opened.sweep["basin"]["bn_images"], data["n_train"])
        yield f"batch-norm statistics estimated again on {n_estimated} training images"


@app.command()
def scores(results: Where, settings: SettingsOption = None) -> None:
    """Compute every score again from stored predictions and compare it with what is stored."""
    from raybasin.analysis import results as reading

    opened = reading.open(results, settings)
    cells = [_by_name(row) for row in reading.committed(opened).to_dict("records")]
    eval_ids = opened.facts.get("shift_eval_ids") or {}
    again = rescore(opened.folder, cells, opened.facts["eval_id"], opened.threshold, eval_ids)
    print(f"{again.figures} figures of {again.cells} cells computed again; "
          f"largest difference {again.largest_difference:g}")  # fmt: skip
    if again.not_kept:
        splits = again.not_kept_splits
        named = ", ".join(splits[:3]) + (f" and {len(splits) - 3} more" if len(splits) > 3 else "")
        print(f"{again.not_kept} figures cannot be computed again: predictions on {named} were not stored "
              "(`keep.predictions` of the sweep file)")  # fmt: skip
    for difference in again.differences[:20]:
        print(one_line(difference))
    if again.differences:
        print(f"{len(again.differences)} figures are not what is stored")
        raise typer.Exit(FAILED)


@app.command()
def check(
    results: Where,
    repair: Annotated[
        bool, typer.Option("--repair", help="move what is broken aside, so that the next run does it again")
    ] = False,
) -> None:
    """See that every commit is whole, every key unique and every file readable."""
    from raybasin.analysis import integrity
    from raybasin.store import tables

    folder = folders.existing(results)
    _refuse_compacted(folder, "checked")
    integrity.check_holds_results(folder)
    problems = integrity.check(folder)
    for problem in problems:
        print(one_line(problem))
    if not problems:
        cells, networks, made = (len(tables.units(folder, name)) for name in ("cells", "members", "checkpoints"))
        print(f"everything is whole: cells {cells}, networks {networks}, checkpoints made {made}")
        return
    if not repair:
        print(f"{len(problems)} problems; --repair moves what is broken aside")
        raise typer.Exit(FAILED)
    print(f"{len(problems)} problems; what is broken now lies in {folder.name(integrity.repair(folder, problems))}")


@app.command()
def compact(
    results: Where,
    output: Annotated[str, typer.Option("-o", "--output", help="an empty folder or address", show_default=False)],
) -> None:
    """Copy all tables into few large Parquet files; the original is not touched."""
    from raybasin.analysis import integrity

    for table, rows in integrity.compact(folders.existing(results), output).items():
        print(f"{table}: {rows} rows")


def _by_name(row: dict[Any, Any]) -> dict[str, Any]:
    return {str(column): value for column, value in row.items()}


def _console() -> Console:
    """As wide as the terminal; in a log, wide enough for every column."""
    width = None if sys.stdout.isatty() else 140
    return Console(width=width, markup=False, highlight=False, emoji=False)  # names of strangers are no markup


if __name__ == "__main__":
    main()
