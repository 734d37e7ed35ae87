"""The command line: each command reads its options, calls one room and prints. Torch and ray load only where needed.

Exit status: 0 done; 1 some cells failed, or a check found something; 2 bad input, before anything starts;
130 interrupted.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import raybasin
from raybasin import console
from raybasin.analysis import (
    drawing,
    figures_folder,
    held,
    integrity,
    maps,
    plane_drawing,
    planes,
    programs,
    removal,
)
from raybasin.analysis import report as reporting
from raybasin.analysis import results as reading
from raybasin.analysis.rescore import rescore
from raybasin.errors import FolderLost, StoreError, UserError, duration, one_line, some
from raybasin.jobs import local
from raybasin.jobs.local import Pretrained, Report
from raybasin.serving import export, export_folder
from raybasin.store import folders, heartbeat, inventory, tables
from raybasin.store.folders import Folder
from raybasin.sweep import shipped, specs
from raybasin.sweep.specs import SweepSpec

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="raybasin", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Maps the basin of a pre-trained checkpoint: StarSSE ensembles, soups and barriers.",
)  # fmt: skip
settings_app = typer.Typer(no_args_is_help=True, help="Which settings a results folder holds, and removing one.")
app.add_typer(settings_app, name="settings")


def _hours(stop_after: float | None) -> float | None:
    if stop_after is not None and not 0 < stop_after < math.inf:
        raise UserError(f"--stop-after {stop_after:g}: must be hours, above 0")
    return stop_after


File = Annotated[
    Path, typer.Argument(metavar="FILE", help="a sweep file, or one of `raybasin sweeps` by name", show_default=False)
]
Where = Annotated[str, typer.Argument(metavar="RESULTS", help="a results folder or its address", show_default=False)]
ResultsOption = Annotated[
    str | None, typer.Option(help="results folder, or s3://bucket/prefix (default results/<name>)")
]
DataOption = Annotated[str | None, typer.Option(help="folder with the data set, in one of three layouts")]
CheckpointOption = Annotated[
    list[str] | None, typer.Option(help="file or folder of pre-trained weights; again for several")
]
AddressOption = Annotated[
    str | None, typer.Option(help="of a Ray cluster, host:port (default: this machine, or the Ray job's cluster)")
]
StopOption = Annotated[
    float | None, typer.Option(callback=_hours, help="hours after which to stop; the same command continues")
]
WaitOption = Annotated[
    bool, typer.Option("--wait", help="wait until the Ray cluster has room for workers, and ask its autoscaler for it")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value with dotted keys, for instance recipe.epochs=5; again for several"),
]
CellOption = Annotated[str | None, typer.Option(help="a cell_id (default: the best cell on validation)")]
PictureOption = Annotated[Path, typer.Option("-o", "--output", help="PNG, SVG or PDF")]
SettingsOption = Annotated[
    str | None, typer.Option(help="which settings, in a folder that holds several: an id or its beginning, or latest")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="print errors and the last line alone")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object")]
IdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="a settings_id or its beginning, or latest", show_default=False)
]


def main() -> NoReturn:
    """Runs a command; an error that the user can put right is one or two lines and exit status 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except FolderLost as error:
        of_store = isinstance(error, StoreError)  # which answered at the start, and has stopped to
        more = "; what is written stays, and the same command continues" if of_store else ""
        print(f"error: {error}{more}", file=sys.stderr)
        sys.exit(FAILED)
    sys.exit(0)


def _version(asked: bool) -> None:
    if asked:
        print(f"raybasin {raybasin.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """What may stand before a command."""


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _interruptible(outcome: str = "the same command continues") -> Iterator[None]:
    """One line and exit status 130 for Ctrl-C that nothing else has taken: before a run begins, or a second one."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted; {outcome}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def _silent(line: str) -> None:
    """Tells nobody."""


def _print_json(tree: dict[str, Any]) -> None:
    print(json.dumps(tree, indent=2))


# Before the first sweep


@app.command()
def sweeps(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="of one to print", show_default=False)] = None,
) -> None:
    """List the sweep files that come with raybasin and are known by name, or print one, for a file of one's own."""
    if name is not None:
        print(shipped.named(name).text, end="")
        return
    for one in shipped.everyone().values():
        for line in console.shipped_lines(one):
            print(line)


@app.command()
def init(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="with images, in one of three layouts")],
    checkpoint: Annotated[str, typer.Option(help="file of pre-trained weights, or a timm tag", show_default=False)],
    model: Annotated[str | None, typer.Option(help="timm network, where the checkpoint does not name it")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="a new sweep file")] = Path("sweep.yaml"),
) -> None:
    """Write a first sweep file for images and a checkpoint of one's own, with the reason of each choice."""
    if output.exists():
        raise UserError(f"{output}: is there already, and is left as it is; name another file with -o")
    from raybasin.jobs import first_sweep

    content = first_sweep.text(folder, checkpoint, model)
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); name another file with -o") from error
    print(f"{output}: look through it; then")
    for command in ("lr-range", "plan", "sweep"):
        print(f"  raybasin {command} {output}")


@app.command()
def lr_range(
    file: File,
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    set_: SetOption = None,
    lr: Annotated[
        list[float] | None, typer.Option(help="a rate to try; again for several (default: five around recipe.lr)")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Try learning rates by short fine-tunings of the sweep's first checkpoint, and say which suits."""
    from raybasin.jobs import lr_range as trying

    spec = specs.load(file, set_ or [], data, checkpoint or [])
    tried = trying.measure(spec, lr or trying.rates(spec.recipe.lr), device, _tell)
    for line in console.lr_lines(tried, trying.best(tried)):
        print(line)


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
    wait: WaitOption = False,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="train again what is needed and was pruned (keep.weights)")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be done")] = False,
    quiet: QuietOption = False,
) -> None:
    """Run or continue a sweep; the same command again continues it."""
    started = time.monotonic()
    spec = specs.load(file, set_ or [], data, checkpoint or [])
    where = _results_of(spec, results)
    if dry_run:
        _print_plan(spec, where, quiet=quiet)
        return
    folder = folders.create(where)
    _refuse_compacted(folder, "continued")
    from raybasin.jobs import prepare

    prepared = prepare.prepare(spec)
    plugins = None
    if spec.search.plugs:
        from raybasin.cluster import driver as on_ray

        plugins = on_ray.plugged(prepared.plan.settings)
    others = [f"note: besides this command, {line}" for line in heartbeat.running(folder, prepared.plan.settings_id)]
    with _interruptible(), console.progress(prepared.plan, folder, quiet) as watch:
        situation = local.begin(folder, prepared, retrain)
        for line in () if quiet else (*console.lines(situation), *others, f"results in {folder.root}"):
            _tell(line)
        situation.check(retrain, workers=spec.least_workers)
        from raybasin.cluster import driver as on_ray

        waits = console.waiting(quiet) if wait else None
        options = on_ray.Options(address, stop_after, retrain, waits, _silent if quiet else _tell)
        report = on_ray.run(situation, lambda: prepare.load(prepared), options, watch, plugins)
    _conclude(report, folder, time.monotonic() - started, quiet)


@app.command()
def plan(
    file: File,
    results: ResultsOption = None,
    data: DataOption = None,
    checkpoint: CheckpointOption = None,
    set_: SetOption = None,
    cells: Annotated[bool, typer.Option("--cells", help="list every cell, however many there are")] = False,
    measure: Annotated[
        str | None, typer.Option(help="cpu or cuda: time a few real steps there, and say how long all will take")
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a sweep would do: cells, networks, epochs, disk, what is done already. Stores nothing."""
    spec = specs.load(file, set_ or [], data, checkpoint or [])
    _print_plan(spec, _results_of(spec, results), cells, quiet, as_json, measure)


@app.command()
def pretrain(
    file: File,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="folder for the files (default RESULTS/pretrained)")
    ] = None,
    results: ResultsOption = None,
    data: Annotated[str | None, typer.Option(help="folder with the data of the pretrain entries")] = None,
    set_: SetOption = None,
    address: AddressOption = None,
    stop_after: StopOption = None,
    wait: WaitOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make only the checkpoints that the sweep file declares, and write each as a file that timm loads. A sweep in the
    same results folder finds them; any other takes the files, or their folder, in model.pretrained."""
    spec = specs.load_for_pretraining(file, set_ or [], data)
    folder = folders.create(_results_of(spec, results))
    _refuse_compacted(folder, "continued")
    inventory.check_version(folder)
    target, prefix = (folder, "pretrained/") if output is None else (folders.create_plain(output), "")
    from raybasin.cluster import driver as on_ray
    from raybasin.jobs import prepare
    from raybasin.training import models

    prepared = prepare.prepare_pretraining(spec)
    made, model = prepared.plan, spec.model
    export.check_is_free(target, prefix, made)
    for line in () if quiet else console.pretraining_lines(made, folder):
        _tell(line)
    waits = console.waiting(quiet) if wait else None
    options = on_ray.Options(address, stop_after, wait=waits, tell=_silent if quiet else _tell)
    with _interruptible(), console.progress(made, folder, quiet) as watch:
        report = on_ray.pretrain(prepared, folder, lambda: prepare.load(prepared), options, watch)
    heads = models.head_names(models.build(model, n_classes=2, seed=0), model)
    how_to_load: dict[int | None, str] = {}  # the first checkpoint of each entry
    for checkpoint in report.made:
        path = export.checkpoint(folder, made, checkpoint, heads, target, prefix)
        how_to_load.setdefault(checkpoint.pretrain, export.how_to_load_checkpoint(made, checkpoint, path))
        if not quiet:
            accuracy = tables.row(folder, "checkpoints", checkpoint.key)["val_accuracy"]
            print(f"{path}: validation accuracy {accuracy:.1%}")
    total = len(made.facts.checkpoints)
    for text in [f"{len(report.made)} of {total} checkpoints in {target.root}"] if quiet else how_to_load.values():
        print(text)
    failures = [f"{name}: {reason}" for name, reason in report.failures.items()]
    _exit_with(report, failures, f"{total - len(report.made)} of {total} checkpoints could not be made")


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def submit(
    command: Annotated[
        list[str],
        typer.Argument(metavar="COMMAND...", help="sweep or pretrain, and what follows it", show_default=False),
    ],
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="of the cluster's dashboard")
    ] = "http://127.0.0.1:8265",
    python: Annotated[
        str,
        typer.Option(
            help="the Python that has raybasin's dependencies, by its name on the cluster's head",
            show_default="this one",
        ),
    ] = sys.executable,
) -> None:
    """Run a command as a job of a running Ray cluster, in a copy of the current folder; ends with its exit status."""
    from raybasin.cluster import submission

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    named = _sweep_file(command)
    environment = {} if named is None else shipped.to_send(named)
    client = submission.connect(address)
    job = submission.submit(client, command, python, say, environment)
    say(f"job {job}; it goes on when this command is interrupted. To stop it: {submission.how_to_stop(address, job)}")
    try:
        status = submission.follow(client, job, lambda text: print(text, end="", flush=True), say)
    except KeyboardInterrupt:
        say(f"job {job} goes on")
        raise typer.Exit(INTERRUPTED) from None
    if status == INTERRUPTED:
        say(f"job {job} was stopped; the same command continues")
    raise typer.Exit(status)


def _sweep_file(command: Sequence[str]) -> str | None:
    """The sweep file that a command names; None where it takes none. What is wrong with it the command says itself."""
    known = typer.main.get_command(app)
    found = getattr(known, "commands", {}).get(command[0])
    if found is None:
        return None
    file = found.make_context(command[0], list(command[1:]), resilient_parsing=True).params.get("file")
    return None if file is None else str(file)


def _exit_with(report: Report | Pretrained, failures: list[str], incomplete: str) -> None:
    """Says why a run is not complete, and ends with the exit status for that."""
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    if report.interrupted:
        print(f"interrupted ({report.interrupted}); the same command continues", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if report.ended:
        print(f"ended: {report.ended}", file=sys.stderr)
    if not report.complete:
        print(incomplete, file=sys.stderr)
        raise typer.Exit(FAILED)


def _results_of(spec: SweepSpec, results: str | None) -> str:
    """Where results go. Inside a Ray job the working folder is a temporary copy, which nothing may be written to."""
    inside_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if inside_job and (results is None or not ("://" in results or os.path.isabs(os.path.expanduser(results)))):
        raise UserError(
            f"--results {results or '(not given)'}: a Ray job runs in a temporary folder; "
            "name an absolute path that all machines of the cluster mount, or an address such as s3://bucket/prefix"
        )
    return f"results/{spec.name}" if results is None else results


def _refuse_compacted(folder: Folder, verb: str) -> None:
    if tables.is_compacted(folder):
        raise UserError(f"{folder.root}: is a compacted copy, which cannot be {verb}; name the folder it was made from")


def _print_plan(
    spec: SweepSpec,
    where: str,
    every_cell: bool = False,
    quiet: bool = False,
    as_json: bool = False,
    measure: str | None = None,
) -> None:
    from raybasin.jobs import prepare, timing

    device = timing.device_of(measure) if measure is not None else None
    folder = folders.at(where)
    _refuse_compacted(folder, "continued")
    inventory.check_version(folder)
    prepared = prepare.prepare(spec)
    situation = local.look(local.continued(folder, prepared.plan), folder)
    timed = timing.measure(prepared, situation, device) if device is not None else None
    if as_json:
        _print_json(programs.plan(situation, every_cell, timed))
    elif quiet:
        print(console.to_do(situation))
    else:
        measured = timing.lines(situation.plan, situation.jobs, timed) if timed else ()
        for line in (*console.lines(situation), *prepare.cache_lines(prepared), *measured):
            print(line)
        console.print_table(console.cells_table(situation.plan, situation.done, every_cell))
    situation.check(retrain=True, workers=spec.least_workers)
    prepare.check_room(prepared)


def _conclude(report: Report, folder: Folder, seconds: float, quiet: bool = False) -> None:
    """The table and the map of what is there, and the exit status."""
    opened = reading.open(str(folder.root), report.plan.settings_id)
    if not quiet:
        for table in console.summary_tables(opened):
            console.print_table(table)
        for line in console.explored_lines(opened, report.plan, inventory.survey(folder)):
            print(line)
    if reading.methods_with_a_map(opened):
        try:
            folder.put("map.png", drawing.encoded(maps.map_figure(opened, method=None), "png"))
            if not quiet:
                print(f"map: {folder.name('map.png')}")
        except (UserError, FolderLost) as error:  # that is no reason to be silent about the rest
            print(f"map: {error}", file=sys.stderr)
    total, took = len(report.plan.cells), duration(seconds)
    print(f"{report.committed} of {total} cells done in {took}; results in {folder.root}")
    failures = [f"{failure.cell.label}: {failure.reason}" for failure in report.failures]
    _exit_with(report, failures, "some cells are missing; the same command tries them again")


# Reading


@app.command()
def status(results: Where, settings: SettingsOption = None, as_json: JsonOption = False) -> None:
    """What is done, running and failed."""
    opened = reading.open(results, settings, read_cells=False)
    now = programs.status(opened)
    if as_json:
        _print_json(now)
        return
    cells, networks = now["cells"], now["networks"]
    print(f"sweep {now['sweep']}, settings {now['settings']}")
    counts = (f"{what} done {of['done']} of {of['planned']}" for what, of in (("cells", cells), ("networks", networks)))
    print(", ".join(counts))
    if now["search"]:
        print(f"search: {now['search']}")
    for line in now["running"] or ["not running"]:
        print(line)
    print(f"failed {len(now['failures'])}")
    for row in now["failures"]:
        failed = f"{console.point(row)} replicate={row['replicate']}: {row['reason']} ({row['tries']} tries)"
        print(f"  {one_line(failed)}")


@settings_app.command(name="list")
def list_settings(results: Where, as_json: JsonOption = False) -> None:
    """The settings that a folder holds: how many cells, when last worked on, and what differs from the newest."""
    folder = _with_results(results)
    found = held.settings_of(folder)
    if as_json:
        _print_json({"results": str(folder.root), "settings": [held.as_dict(one, found[0]) for one in found]})
    else:
        console.print_table(console.settings_table(found))


@settings_app.command(name="compare")
def compare_settings(results: Where, a: IdArgument, b: IdArgument, as_json: JsonOption = False) -> None:
    """All keys in which two settings of a folder differ: those that make them two, and what else their files say."""
    folder = _with_results(results)
    pair = held.find(folder, a), held.find(folder, b)
    for one in pair:
        if one.stored is None:
            sweep_file = folder.name(f"sweeps/{one.settings_id}.yaml")
            raise UserError(f"{sweep_file}: is missing or damaged, so there is nothing to compare; run its sweep again")
    found = {"settings": held.changes(*pair), "further": held.further(*pair)}
    if as_json:
        as_values = {name: held.as_mapping(differing) for name, differing in found.items()}
        _print_json({"results": str(folder.root), "compared": [one.settings_id for one in pair], "differ": as_values})
        return
    for name, differing in found.items():
        if differing:
            console.print_table(console.differences_table(differing, pair, console.DIFFERENCES[name]))
    if not any(found.values()):
        print("no key of their sweep files differs")


@settings_app.command(name="rm")
def remove_settings(
    results: Where,
    settings_id: Annotated[str, typer.Argument(metavar="ID", help="a settings_id", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be removed")] = False,
) -> None:
    """Remove what belongs to one settings alone. What other settings in the folder have, too, stays. Killed, the same
    command again ends it."""
    folder = _with_results(results)
    _refuse_compacted(folder, "changed")
    found = removal.look(folder, settings_id) if dry_run else removal.remove(folder, settings_id)
    for line in console.removal_lines(found, "would be removed" if dry_run else "removed"):
        print(line)


def _with_results(results: str) -> Folder:
    folder = folders.existing(results)
    inventory.check_version(folder)
    integrity.check_holds_results(folder)
    return folder


@app.command(name="map")
def map_(
    results: Where,
    output: PictureOption = Path("map.png"),
    value: Annotated[
        str, typer.Option(help="what colours the cells: a gain, a column of cells, or a score such as ensemble_ece")
    ] = "ensemble_gain",
    settings: SettingsOption = None,
) -> None:
    """Draw the map: learning rate by cycle length, with the basin's boundary."""
    opened = reading.open(results, settings)
    drawing.save(maps.map_figure(opened, value=value, method=None), output)
    print(output)
    print(f"in the basin: {maps.rule(opened)}")


@app.command()
def plane(
    results: Where,
    output: PictureOption = Path("plane.png"),
    cell: CellOption = None,
    members: Annotated[str, typer.Option(help="three members of the cell, 0 is the hub")] = "0,1,2",
    points: Annotated[int, typer.Option(help="points along each side of the grid")] = 21,
    split: Annotated[str, typer.Option(help="val or train")] = "val",
    margin: Annotated[
        float, typer.Option(help="how far the grid reaches beyond the members, as a share of their box")
    ] = 0.2,
    value: Annotated[str, typer.Option(help="error or nll")] = "error",
    data: DataOption = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    settings: SettingsOption = None,
) -> None:
    """Draw the plane through three members of a cell in weight space; the same command again continues measuring it."""
    if value not in ("error", "nll"):
        raise UserError(f"--value {value}: must be error or nll")
    opened = reading.open(results, settings)
    _refuse_compacted(opened.folder, "measured in")
    row = reading.cell_of(opened, cell) if cell else reading.best_cell(opened)
    asked = planes.ask(opened, row, members, points, split, margin)
    if not asked.is_measured(opened.folder):
        with _interruptible():
            planes.measure(asked, opened, data, device, console.plane_beat(_tell, points))
    drawing.save(plane_drawing.plane_figure(opened, planes.points_of(opened, asked), value), output)
    print(f"{output}: cell {row['cell_id']} ({console.point(row)}), members {asked.named}")


@app.command()
def report(
    results: Where,
    output: Annotated[Path, typer.Option("-o", "--output", help="an HTML file")] = Path("report.html"),
    settings: SettingsOption = None,
) -> None:
    """Write one self-contained page with everything."""
    reporting.write(reading.open(results, settings), output)
    print(output)


@app.command(name="figures")
def figures_(
    results: Where,
    output: Annotated[str, typer.Option("-o", "--output", help="a new or empty folder", show_default=False)],
    settings: SettingsOption = None,
) -> None:
    """Write every figure as PDF and PNG at the size of a page, and the table behind it as CSV."""
    done = figures_folder.write(reading.open(results, settings), output)
    for name, reason in done.absent.items():
        print(one_line(f"no {name}: {reason}"))
    print(
        f"{done.folder}: {', '.join(name for name in done.files if name.endswith('.pdf'))}; each as .png and .csv too"
    )
    if done.failed:
        reasons = "; ".join(one_line(f"{name} ({reason})") for name, reason in done.failed.items())
        raise UserError(f"{done.folder}: figures that could not be made are not there:\n{reasons}")


@app.command()
def soup(
    results: Where,
    output: Annotated[str, typer.Option("-o", "--output", help="a new .safetensors file", show_default=False)],
    cell: CellOption = None,
    kind: Annotated[str, typer.Option(help="uniform or greedy")] = "uniform",
    settings: SettingsOption = None,
) -> None:
    """Export a soup as one file that timm, or plain torch, loads; prints Python that does, and shows images to it."""
    if kind not in export.KINDS:
        raise UserError(f"--kind {kind}: must be uniform or greedy")
    opened = reading.open(results, settings)
    row = reading.cell_of(opened, cell or str(reading.best_cell(opened)["cell_id"]))
    how = export.soup(opened, row, kind, output)
    chosen = "named by --cell" if cell else "of the point whose uniform soups are best on validation"
    for line in console.soup_lines(opened, row, kind, chosen):
        print(one_line(f"# {line}"))
    print(how)


@app.command(name="export")
def export_(
    results: Where,
    output: Annotated[str, typer.Option("-o", "--output", help="a new or empty folder", show_default=False)],
    what: Annotated[str, typer.Option(help="soup, greedy_soup, ensemble or hub")] = "soup",
    cell: CellOption = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="also model.onnx, for ONNX Runtime")] = False,
    settings: SettingsOption = None,
) -> None:
    """Export a soup, an ensemble or a hub as a folder that timm loads and the Hugging Face hub takes, with its scores
    and a model card."""
    opened = reading.open(results, settings)
    done = export_folder.write(opened, output, what, cell, onnx)
    for line in console.export_lines(done):
        print(one_line(line))


@app.command()
def predict(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="a results folder, an exported folder or a soup", show_default=False)
    ],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGES...", help="folders, images, .parquet, .npy or .npz files", show_default=False),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="a new .parquet file")] = Path("predictions.parquet"),
    what: Annotated[
        str | None,
        typer.Option(help="ensemble (the default of a results folder), soup, greedy_soup, hub or member-K"),
    ] = None,
    cell: CellOption = None,
    settings: SettingsOption = None,
    device: Annotated[str | None, typer.Option(help="such as cuda (default: the first GPU, else cpu)")] = None,
    batch: Annotated[int, typer.Option(min=1, help="images at once")] = 256,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="leave images out that cannot be read, and say which")
    ] = False,
    factory: Annotated[
        str | None, typer.Option(help="module:function that builds the networks, which runs its code")
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Predict the classes of new images: a row for each, calibrated, and how sure the networks are of it."""
    from raybasin.serving import new_images, predictors
    from raybasin.serving import predict as predicting

    target = export.new_file(output, predicting.ENDING, "is Parquet", "predictions")
    predictor = predictors.find(source, what, cell, settings, factory)
    found = new_images.find(images, predictor.classes)
    place, scored = predicting.device_of(device), predicting.Scored()
    for line in () if quiet else console.predictor_lines(predictor, found, str(place)):
        _tell(line)
    with _interruptible("nothing was written"), console.counting(found.n, "images", quiet) as beat:
        rows = predicting.batches(predictor, found, scored, place, batch, skip_unreadable, beat)
        predicting.write(target, rows, predicting.schema(predictor))
    if as_json:
        _print_json(predicting.told(target, predictor, scored))
        return
    for line in console.predicted_lines(predicting.told(target, predictor, scored)):
        print(line)


@app.command()
def scores(results: Where, settings: SettingsOption = None) -> None:
    """Compute every score again from stored predictions and compare it with what is stored."""
    opened = reading.open(results, settings)
    cells = [{str(key): value for key, value in row.items()} for row in reading.committed(opened).to_dict("records")]
    eval_ids = opened.facts.get("shift_eval_ids") or {}
    again = rescore(opened.folder, cells, opened.facts["eval_id"], eval_ids)
    print(f"{again.figures} figures of {again.cells} cells computed again; "
          f"largest difference {again.largest_difference:g}")  # fmt: skip
    if again.not_kept:
        print(f"{again.not_kept} figures cannot be computed again: predictions on {some(again.not_kept_splits, 3)} "
              "were not stored (`keep.predictions` of the sweep file)")  # fmt: skip
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
    for table, rows in integrity.compact(folders.existing(results), output).items():
        print(f"{table}: {rows} rows")


if __name__ == "__main__":
    main()
