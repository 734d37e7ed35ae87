"""Running a sweep: what is done already, what is left, and, without a cluster, doing it in this process.

`cluster` does the same work with the same jobs on many workers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from raybasin.errors import FolderLost, UserError, one_line
from raybasin.jobs import disk, retention
from raybasin.jobs.scheduler import Outcome, Scheduler
from raybasin.store import folders, heartbeat, inventory, tables
from raybasin.store.folders import Folder
from raybasin.sweep import plan, specs
from raybasin.sweep.facts import CheckpointFacts
from raybasin.sweep.plan import Cell, Done, Job, Plan
from raybasin.sweep.specs import SweepSpec

if TYPE_CHECKING:
    import torch

    from raybasin.jobs.prepare import Prepared


LEFT_SECONDS = 3600.0
"""What is being written, and has not grown for so long, was left by a writer that was killed."""


@dataclass(frozen=True)
class Failure:
    cell: Cell
    reason: str
    tries: int
    traceback: str = ""


@dataclass(frozen=True)
class Report:
    """What a run has come to. `interrupted` says who ended it early, if anybody did; `ended` why it could not go on, if
    it could not."""

    plan: Plan
    committed: int
    failures: tuple[Failure, ...] = ()
    interrupted: str = ""
    ended: str = ""

    @property
    def complete(self) -> bool:
        return self.committed == len(self.plan.cells) and not self.failures and not self.ended


@dataclass(frozen=True)
class Pretrained:
    """What a pre-training has come to: the declared checkpoints that are there, and why others are not."""

    plan: Plan
    made: tuple[CheckpointFacts, ...]
    failures: Mapping[str, str]
    """Reasons, by the name of the checkpoint."""
    interrupted: str = ""
    ended: str = ""

    @property
    def complete(self) -> bool:
        return len(self.made) == len(self.plan.facts.checkpoints)


def begin(folder: Folder, prepared: Prepared) -> tuple[Folder, Done]:
    """Puts into the results folder what members start from and the resolved sweep file that explains the rest, and
    takes away what killed runs have left of members that are committed. Gives back the folder, to be written to only
    while it is this one, and what it holds.

    Raises UserError where it cannot be written.
    """
    made = prepared.plan
    sweep_file = f"sweeps/{made.settings_id}.yaml"
    try:
        for sha256, content in prepared.weights.items():
            folder.put_new(f"weights/{sha256}.safetensors", content)
        folder.put(sweep_file, inventory.resolved(made).encode())
        folder = folder.marked(sweep_file)
        retention.wait_for_pruning(folder)
        done = adopt_paths(folder, made, inventory.survey(folder))
        _clear_state(folder, done)
        retention.tidy(folder, made, done)
    except FolderLost as error:
        raise UserError(str(error)) from error
    return folder, done


def end(folder: Folder, made: Plan) -> None:
    """Drops weights that could not be pruned before, since another sweep needed them."""
    retention.tidy(folder, made, inventory.survey(folder))


def jobs_left(made: Plan, done: Done, retrain: bool) -> list[Job]:
    """What is left to do. Raises UserError where that needs weights that were pruned, unless they may be trained
    again."""
    left = plan.jobs(made, done, restore=retrain)
    again = [made.members[job.unit] for job in left if job.kind == "retrain"]
    if again and not retrain:
        raise UserError(
            f"weights of {len(again)} networks were not kept (keep.weights) and are needed again: "
            f"{sum(member.cycle_epochs for member in again):g} epochs of training; --retrain allows it, and "
            "`raybasin plan` says for which cells"
        )
    return left


def not_restored(made: Plan, outcomes: Mapping[str, Outcome]) -> str:
    """Why weights that were to be restored are not, although no cell has failed for it; empty where they are."""
    lost = [outcome for job_id, outcome in outcomes.items() if job_id.startswith("retrain-") and not outcome.ok]
    return f"{len(lost)} networks were not trained again: {why(lost[0], made)}" if lost else ""


def _clear_state(folder: Folder, done: Done) -> None:
    """A worker that is killed between committing a member and removing its snapshot leaves the latter; one that is
    killed while it writes leaves a part of a file."""
    for key, seconds in folder.unfinished():
        if seconds > LEFT_SECONDS:
            folder.delete(key)
    committed = {f"member-{member}" for member in done.members} | {f"checkpoint-{key}" for key in done.checkpoints}
    for name in folder.names("state"):
        if name.partition(".")[0] in committed:
            folder.delete(f"state/{name}")


def adopt_paths(folder: Folder, made: Plan, done: Done) -> Done:
    """Paths of smaller or larger ensembles of the same members are not measured again: their rows are copied."""
    measured = {path_id: cell_id for cell_id, path_id in done.paths}
    adopted = set(done.paths)
    for cell in made.cells:
        for path in cell.paths:
            key = cell.cell_id, path.path_id
            if cell.cell_id not in done.cells and key not in done.paths and path.path_id in measured:
                rows = tables.rows(folder, "paths", [f"{measured[path.path_id]}-{path.path_id}"])
                own = {"cell_id": cell.cell_id, **plan.shared_columns(made, cell)}
                tables.write(folder, "paths", f"{key[0]}-{key[1]}", [{**row, **own} for row in rows])
                adopted.add(key)
    return replace(done, paths=frozenset(adopted))


def record_failure(folder: Folder, made: Plan, failure: Failure) -> None:
    cell = failure.cell
    row = {
        "unit_id": cell.cell_id, "tries": failure.tries, "reason": failure.reason,
        "traceback": failure.traceback or None, "at": tables.now(), **plan.shared_columns(made, cell),
    }  # fmt: skip
    tables.write(folder, "failures", f"{cell.cell_id}-{time.time_ns()}", [row])


def why(outcome: Outcome, made: Plan) -> str:
    """Which job failed, in words, and for what reason."""
    return f"{describe_job(outcome.job_id, made)}: {outcome.reason}" if outcome.job_id else outcome.reason


def describe_job(job_id: str, made: Plan) -> str:
    kind, _, unit = job_id.partition("-")
    if kind == "trace":
        cell_id, _, trace_id = unit.partition("-")
        return f"trace of {describe_job(f'member-{made.traces[cell_id, trace_id].member_id}', made)}"
    if kind in ("member", "retrain"):
        member = made.members[unit]
        role = {"hub": "hub", "tail": "tail"}.get(member.method if member.method == "hub" else member.kind)
        return f"{role or f'member {member.member_index}'} ({unit})"
    return f"{kind} {unit}"


def run(
    spec: SweepSpec | str | os.PathLike[str] | Mapping[str, Any],
    results: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    tell: Callable[[str], None] = lambda line: None,
    retrain: bool = False,
) -> Report:
    """Runs or continues a sweep in this process, one job after another, without Ray.

    Args:
        spec: a sweep, the path of a sweep file, or its content as mappings.
        results: the results folder; it is made if need be, and what it holds is not done again.
        device: where networks run.
        tell: is given a line for each job that is done.
        retrain: whether networks are trained again whose weights were pruned (`keep.weights`) and are needed.

    Raises:
        UserError: for bad input, or a device that does not compute, before anything is trained.
        FolderLost: where the results folder cannot be written any more.
    """
    from raybasin.jobs import prepare
    from raybasin.jobs.worker_context import WorkerContext

    place = _device(device)
    checked = _spec(spec)
    prepared = prepare.prepare(checked)
    made = prepared.plan
    folder = folders.create(results)
    scheduler = Scheduler()
    with heartbeat.beating(folder, made.settings_id) as say:
        loaded = prepare.load(prepared)
        folder, done = begin(folder, prepared)
        context = WorkerContext(folder, made, loaded.target, loaded.pretrain, place, loaded.shifts)
        left = jobs_left(made, done, retrain)
        disk.check(made, folder, done, left, workers=1)
        scheduler.add(left)
        _do_all(scheduler, context, tell, say)
        failures = failures_of(made, scheduler.outcomes)
        for failure in failures:
            record_failure(folder, made, failure)
        end(folder, made)
    return report(folder, made, failures, ended=_ended(scheduler) or not_restored(made, scheduler.outcomes))


def pretrain(
    spec: SweepSpec | str | os.PathLike[str] | Mapping[str, Any],
    results: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    tell: Callable[[str], None] = lambda line: None,
) -> Pretrained:
    """Makes the checkpoints that a sweep declares and nothing else, one after another in this process, without Ray.
    The arguments are those of `run`; a sweep in the same folder then finds them."""
    from raybasin.jobs import prepare
    from raybasin.jobs.worker_context import WorkerContext

    place = _device(device)
    checked = specs.load_for_pretraining(spec) if isinstance(spec, str | os.PathLike) else _spec(spec)
    prepared = prepare.prepare_pretraining(checked)
    made = prepared.plan
    folder = folders.create(results)
    scheduler = Scheduler()
    scheduler.add(plan.checkpoint_jobs(made, inventory.survey(folder)))
    if scheduler.jobs:
        loaded = prepare.load(prepared)
        context = WorkerContext(folder, made, loaded.target, loaded.pretrain, place)
        with heartbeat.beating(folder, made.settings_id) as say:
            _do_all(scheduler, context, tell, say)
    return pretrained(folder, made, scheduler.outcomes.values(), ended=_ended(scheduler))


def pretrained(
    folder: Folder, made: Plan, outcomes: Iterable[Outcome], interrupted: str = "", ended: str = ""
) -> Pretrained:
    """What the folder holds of the declared checkpoints, and what `outcomes` say of the others."""
    there = inventory.survey(folder).checkpoints
    name = {f"checkpoint-{checkpoint.key}": checkpoint.name for checkpoint in made.facts.checkpoints}
    failures = {name[outcome.job_id]: outcome.reason for outcome in outcomes if not outcome.ok and outcome.job_id}
    done = tuple(checkpoint for checkpoint in made.facts.checkpoints if checkpoint.key in there)
    return Pretrained(made, done, failures, interrupted, ended)


def _spec(spec: SweepSpec | str | os.PathLike[str] | Mapping[str, Any]) -> SweepSpec:
    if isinstance(spec, SweepSpec):
        return spec
    return specs.parse(spec) if isinstance(spec, Mapping) else specs.load(spec)


def _device(device: str | torch.device) -> torch.device:
    """Raises UserError for one that does not compute."""
    import torch

    from raybasin.jobs import execution

    try:
        found = torch.device(device)
        execution.prove(found)
    except Exception as error:  # torch says it in many ways
        raise UserError(f"device {device}: cannot be used ({one_line(error, 200)})") from error
    return found


def _ended(scheduler: Scheduler) -> str:
    """Why nothing more could be done, if so."""
    return next((o.reason for o in scheduler.outcomes.values() if not o.ok and not o.job_id), "")


def _do_all(scheduler: Scheduler, context: Any, tell: Callable[[str], None], say: Callable[[str], None]) -> None:
    while (job := scheduler.take("here")) is not None:
        _do(job, scheduler, context, tell)
        cells, networks = scheduler.count("cell"), scheduler.count("member")
        say(f"cells {cells[0]}/{cells[1]}, networks {networks[0]}/{networks[1]} of this run, in one process")


def _do(job: Job, scheduler: Scheduler, context: Any, tell: Callable[[str], None]) -> None:
    from raybasin.jobs import execution

    name = describe_job(job.job_id, context.plan)
    try:
        execution.run(job, context)
    except FolderLost:  # so will be whatever the next job makes
        raise
    except Exception as error:  # one job's failure is its cell's, and is recorded there
        raised = execution.raised(error)
    else:
        scheduler.done("here", job.job_id, None)
        finished, total = scheduler.count("cell")
        cells = f"; {finished} of {total} cells" if total else ""
        tell(f"{name} done{cells}")
        return
    scheduler.failed("here", job.job_id, raised.reason, raised.traceback, raised.certain)
    tell(f"{'failed' if job.job_id in scheduler.outcomes else 'to be tried once more'}: {name}: {raised.reason}")
    try:
        execution.recover(context.device)
    except Exception as error:  # nor will it for any other job
        reason = f"{context.device} does not compute any more ({one_line(error, 200)})"
        scheduler.fail_all(f"{reason}; the same call in a new process continues")


def failures_of(made: Plan, outcomes: Mapping[str, Outcome]) -> tuple[Failure, ...]:
    """The cells that failed, from the outcomes of jobs by id; not those that were open when the sweep ended."""
    return tuple(
        Failure(cell, why(outcome, made), outcome.tries, outcome.traceback)
        for cell in made.cells
        if (outcome := outcomes.get(cell_job(cell.cell_id))) and not outcome.ok and outcome.job_id
    )


def cell_job(cell_id: str) -> str:
    """The id of the job that ends a cell."""
    return f"cell-{cell_id}"


def report(folder: Folder, made: Plan, failures: Sequence[Failure], interrupted: str = "", ended: str = "") -> Report:
    committed = inventory.survey(folder).cells
    return Report(made, sum(cell.cell_id in committed for cell in made.cells), tuple(failures), interrupted, ended)


@dataclass(frozen=True)
class Others:
    """Committed cells in a folder that a plan does not hold: how many there are of which settings."""

    settings_id: str
    sweep: str
    cells: int


def others(folder: Folder, made: Plan) -> list[Others]:
    """By settings_id, those of the plan's own first."""
    found: dict[str, Others] = {}
    for row in tables.sound(folder, "cells").select(["cell_id", "settings_id", "sweep"]).to_pylist():
        if row["cell_id"] not in made.cell:
            before = found.get(row["settings_id"])
            count = before.cells if before else 0
            found[row["settings_id"]] = Others(row["settings_id"], one_line(row["sweep"], 100), count + 1)
    return sorted(found.values(), key=lambda other: (other.settings_id != made.settings_id, other.settings_id))


def waiting(made: Plan, done: Done) -> Sequence[Cell]:
    """The cells that are not committed, and those of which predictions are now to be kept that were not."""
    return plan.open_cells(made, done)
