"""Running a sweep: what is done already, what is left, and, without a cluster, doing it in this process.

`cluster` does the same work with the same jobs on many workers.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from raybasin.errors import FolderLost, UserError, one_line
from raybasin.jobs import allocator, disk, progress, retention
from raybasin.jobs.scheduler import Outcome, Scheduler
from raybasin.store import folders, heartbeat, inventory, tables
from raybasin.store.folders import Folder
from raybasin.sweep import plan as planning
from raybasin.sweep import specs
from raybasin.sweep.facts import CheckpointFacts
from raybasin.sweep.job_list import Closing, Done, Job, Retraining, checkpoint_jobs, described, jobs_left
from raybasin.sweep.plan import Cell, Plan, shared_columns
from raybasin.sweep.settings import Settings
from raybasin.sweep.specs import SweepSpec

if TYPE_CHECKING:
    import torch

    from raybasin.jobs.prepare import Loaded, Prepared


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
    results: str = ""
    """Path or address of the results folder."""
    trials: Any = None
    """What Ray Tune says of its trials, one for each point: a `ray.tune.ResultGrid`; None without Ray."""

    def __repr__(self) -> str:
        counts = f"{self.committed} of {len(self.plan.cells)} cells committed, {len(self.failures)} failed"
        return _on_a_screen("Report", counts, self)

    @property
    def complete(self) -> bool:
        whole = not (self.failures or self.ended or self.interrupted)  # an interrupted search may be without open cells
        return whole and self.committed == len(self.plan.cells)


@dataclass(frozen=True)
class Pretrained:
    """What a pre-training has come to: the declared checkpoints that are there, and why others are not."""

    plan: Plan
    made: tuple[CheckpointFacts, ...]
    failures: Mapping[str, str]
    """Reasons, by the name of the checkpoint."""
    interrupted: str = ""
    ended: str = ""
    results: str = ""
    """Path or address of the results folder."""

    def __repr__(self) -> str:
        total = len(self.plan.facts.checkpoints)
        return _on_a_screen("Pretrained", f"{len(self.made)} of {total} checkpoints made", self)

    @property
    def complete(self) -> bool:
        return len(self.made) == len(self.plan.facts.checkpoints)


def _on_a_screen(name: str, counts: str, of: Report | Pretrained) -> str:
    """What a session of Python shows of a report, whose plan may hold thousands of cells."""
    why_not_all = "".join(f"; {text}" for text in (of.interrupted, of.ended) if text)
    return f"{name}: {counts}{why_not_all}; results in {of.results}"


# Beginning and ending


def continued(folder: Folder, made: Plan) -> Plan:
    """The plan with all that its search has chosen in `folder` by now."""
    return planning.make(made.spec, made.facts, inventory.chosen(folder, made)) if made.spec.search.by_results else made


@dataclass(frozen=True)
class Situation:
    """What a results folder holds of a sweep, and what is left to do: looked up once, and handed on.

    `folder` is written to only while it is the one that was looked at.
    """

    plan: Plan
    folder: Folder
    done: Done
    jobs: tuple[Job, ...]

    @cached_property
    def need(self) -> disk.Need:
        """The disk that `jobs` will take."""
        return disk.need(self.plan, self.done, self.jobs)

    def check(self, retrain: bool = False, workers: int = 1) -> None:
        """Raises UserError where what is left cannot be done by so many workers: because it needs weights that were
        pruned, unless they may be trained again, or more disk than there is."""
        again = [job.task.member for job in self.jobs if isinstance(job.task, Retraining)]
        if again and not retrain:
            raise UserError(
                f"weights of {len(again)} networks were not kept (keep.weights) and are needed again: "
                f"{sum(member.cycle_epochs for member in again):g} epochs of training; --retrain allows it, and "
                "`raybasin plan` says for which cells"
            )
        disk.check(self.plan, self.folder, self.need, workers)


def look(plan: Plan, folder: Folder, retrain: bool = False, done: Done | None = None) -> Situation:
    """What is left to do of a plan in a folder; where `retrain` is set, weights that were pruned and are to be kept by
    now are left to be made again."""
    done = done or inventory.survey(folder)
    groups = [] if plan.spec.keep.weights == "all" else retention.groups(plan)
    of_cell = {cell.cell_id: group for group in groups for cell in group.cells}
    return Situation(plan, folder, done, tuple(jobs_left(plan, done, retrain, of_cell)))


def begin(folder: Folder, prepared: Prepared, retrain: bool = False) -> Situation:
    """Puts into the results folder the resolved sweep file, which explains the rest, and what members start from, and
    takes away what killed runs have left of members that are committed.

    Raises UserError where it cannot be written.
    """
    made = prepared.plan
    sweep_file = f"sweeps/{made.settings_id}.yaml"
    try:
        inventory.check_version(folder)
        folder.put(sweep_file, inventory.resolved(made).encode())
        folder = folder.marked(sweep_file)
        made = continued(folder, made)
        retention.wait_for_pruning(folder)
        for sha256, content in prepared.weights.items():  # by now nobody removes them with settings that had them, too
            folder.put_new(f"weights/{sha256}.safetensors", content)
        done = inventory.survey(folder)
        # A worker that is killed leaves a part of what it was writing, or snapshots of what it has just committed.
        for key, seconds in folder.unfinished():
            if seconds > LEFT_SECONDS:
                folder.delete(key)
        committed = {f"member-{member}" for member in done.members} | {f"checkpoint-{key}" for key in done.checkpoints}
        for name in folder.names("state"):
            if name.partition(".")[0] in committed:
                folder.delete(f"state/{name}")
        retention.tidy(folder, made, done)
    except FolderLost as error:
        raise UserError(str(error)) from error
    return look(made, folder, retrain, done)


def end(situation: Situation, outcomes: Mapping[str, Outcome], interrupted: str = "", ended: str = "") -> Report:
    """Drops weights that could not be pruned before, since another sweep needed them, and says what has come of all.

    Args:
        situation: what `begin` found.
        outcomes: of the jobs that end cells and restore weights, by job_id.
        interrupted: who ended it early, if anybody did.
        ended: why nothing more could be done, if so.
    """
    folder = situation.folder
    made = continued(folder, situation.plan)
    done = inventory.survey(folder)
    retention.tidy(folder, made, done)
    committed = sum(cell.cell_id in done.cells for cell in made.cells)
    failures = tuple(failures_of(made.cells, outcomes))
    lost = [o for job_id, o in outcomes.items() if job_id.startswith(f"{Retraining.kind}-") and not o.ok]
    if lost and not ended:  # although no cell may have failed for it
        ended = f"{len(lost)} networks were not trained again: {why(lost[0])}"
    return Report(made, committed, failures, interrupted, ended, str(folder.root))


# Failures


def failures_of(cells: Iterable[Cell], outcomes: Mapping[str, Outcome]) -> list[Failure]:
    """The cells that failed, from the outcomes of jobs by id; not those that were open when the sweep ended."""
    return [
        Failure(cell, why(outcome), outcome.tries, outcome.traceback)
        for cell in cells
        if (outcome := outcomes.get(cell_job(cell.cell_id))) and not outcome.ok and outcome.job_id
    ]


def cell_job(cell_id: str) -> str:
    """The id of the job that ends a cell."""
    return f"{Closing.kind}-{cell_id}"


def record_failure(folder: Folder, settings: Settings, failure: Failure) -> None:
    cell = failure.cell
    row = {
        "unit_id": cell.cell_id, "tries": failure.tries, "reason": failure.reason,
        "traceback": failure.traceback or None, "at": tables.now(), **shared_columns(settings, cell.point),
    }  # fmt: skip
    tables.write(folder, "failures", f"{cell.cell_id}-{time.time_ns()}", [row])


def why(outcome: Outcome) -> str:
    """Which job failed, in words, and for what reason."""
    return f"{outcome.job}: {outcome.reason}" if outcome.job_id else outcome.reason


# In this process


def run(
    spec: SweepSpec | str | os.PathLike[str] | Mapping[str, Any],
    results: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    tell: Callable[[str], None] | None = None,
    retrain: bool = False,
) -> Report:
    """Runs or continues a sweep in this process, one job after another, without Ray.

    Args:
        spec: a sweep, the path of a sweep file, or its content as mappings.
        results: the results folder; it is made if need be, and what it holds is not done again.
        device: where networks run.
        tell: is given a line for each job that is done; without it a notebook shows how far the run is.
        retrain: whether networks are trained again whose weights were pruned (`keep.weights`) and are needed.

    Raises:
        UserError: for bad input, or a device that does not compute, before anything is trained.
        FolderLost: where the results folder cannot be written any more.
    """
    from raybasin.jobs import prepare

    place = device_of(device)
    prepared = prepare.prepare(spec_of(spec))
    if prepared.plan.spec.search.plugs:
        raise UserError("search: a searcher, a scheduler and callbacks are Ray Tune's; run this sweep with ray=True")
    folder = folders.create(results)
    with _telling(folder, prepared.plan, tell) as say:
        loaded = prepare.load(prepared)
        situation = begin(folder, prepared, retrain)
        situation.check(retrain)
        more = None
        if prepared.plan.spec.search.by_cell:
            from raybasin.jobs import line_search

            more = line_search.begin(situation.folder, prepared.plan.settings, situation.done).jobs
        plan = continued(situation.folder, situation.plan)
        scheduler = _do(situation.jobs, situation.folder, plan, loaded, place, tell or _silent, say, more)
        for failure in failures_of(continued(situation.folder, situation.plan).cells, scheduler.outcomes):
            record_failure(situation.folder, situation.plan, failure)
        return end(situation, scheduler.outcomes, ended=_ended(scheduler))


def pretrain(
    spec: SweepSpec | str | os.PathLike[str] | Mapping[str, Any],
    results: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    tell: Callable[[str], None] | None = None,
) -> Pretrained:
    """Makes the checkpoints that a sweep declares and nothing else, one after another in this process, without Ray.
    The arguments are those of `run`; a sweep in the same folder then finds them."""
    from raybasin.jobs import prepare

    place = device_of(device)
    prepared = prepare.prepare_pretraining(spec_of(spec, specs.load_for_pretraining))
    plan, folder = prepared.plan, folders.create(results)
    inventory.check_version(folder)
    jobs = checkpoint_jobs(plan, inventory.survey(folder))
    scheduler = Scheduler()
    if jobs:
        with _telling(folder, plan, tell) as say:
            scheduler = _do(jobs, folder, plan, prepare.load(prepared), place, tell or _silent, say)
    return pretrained(folder, plan, scheduler.outcomes.values(), ended=_ended(scheduler))


def pretrained(
    folder: Folder, plan: Plan, outcomes: Iterable[Outcome], interrupted: str = "", ended: str = ""
) -> Pretrained:
    """What the folder holds of the declared checkpoints, and what `outcomes` say of the others."""
    there = inventory.survey(folder).checkpoints
    name = {f"checkpoint-{checkpoint.key}": checkpoint.name for checkpoint in plan.facts.checkpoints}
    failures = {name[outcome.job_id]: outcome.reason for outcome in outcomes if not outcome.ok and outcome.job_id}
    made = tuple(checkpoint for checkpoint in plan.facts.checkpoints if checkpoint.key in there)
    return Pretrained(plan, made, failures, interrupted, ended, str(folder.root))


def spec_of(
    spec: SweepSpec | str | os.PathLike[str] | Mapping[str, Any],
    load: Callable[[str | os.PathLike[str]], SweepSpec] = specs.load,
) -> SweepSpec:
    """A sweep as any of the forms in which Python may give it. Raises UserError."""
    if isinstance(spec, SweepSpec):
        return spec
    return specs.parse(spec) if isinstance(spec, Mapping) else load(spec)


def device_of(device: str | torch.device) -> torch.device:
    """Raises UserError for one that does not compute."""
    import torch

    from raybasin.jobs import execution

    try:
        found = torch.device(device)
        execution.prove(found)
    except Exception as error:  # torch says it in many ways
        raise UserError(f"device {device}: cannot be used ({one_line(error, 200)})") from error
    return found


@allocator.freed_memory_kept()
def _do(
    jobs: Iterable[Job],
    folder: Folder,
    plan: Plan,
    loaded: Loaded,
    device: torch.device,
    tell: Callable[[str], None],
    say: Callable[[str], None],
    more: Callable[[Mapping[str, Outcome]], list[Job]] | None = None,
) -> Scheduler:
    """Does `jobs`, one after another, and then what `more` gives, which is told what has come of them."""
    from raybasin.jobs import execution
    from raybasin.jobs.worker_context import WorkerContext

    context = WorkerContext(folder, plan.settings, loaded.target, loaded.pretrain, device, loaded.shifts)
    scheduler, began = Scheduler(), time.monotonic()
    scheduler.add(jobs)
    while (job := scheduler.take("here") or _further(scheduler, more)) is not None:
        name, raised = described(job), None
        say(_how_far(scheduler, plan, job, None if more else time.monotonic() - began))
        try:
            execution.run(job, context)
        except FolderLost:  # so will be whatever the next job makes
            raise
        except Exception as error:  # one job's failure is its cell's, and is recorded there
            raised = execution.raised(error)
        if raised is None:
            scheduler.done("here", job.job_id, None)
            finished, total = scheduler.count("cell")
            tell(f"{name} done{f'; {finished} of {total} cells' if total else ''}")
        else:
            scheduler.failed("here", job.job_id, raised.reason, raised.traceback, raised.certain)
            what = "failed" if job.job_id in scheduler.outcomes else "to be tried once more"
            tell(f"{what}: {name}: {raised.reason}")
            try:
                execution.recover(device)
            except Exception as error:  # nor will it compute for any other job
                reason = f"{device} does not compute any more ({one_line(error, 200)})"
                scheduler.fail_all(f"{reason}; the same call in a new process continues")
    say(_how_far(scheduler, plan, None, None))
    return scheduler


def _silent(line: str) -> None:
    """Tells nobody."""


def _how_far(scheduler: Scheduler, plan: Plan, job: Job | None, seconds: float | None) -> str:
    """How far a run in this process is, and which job it does now, after so many seconds; of a search, of which it is
    not known what is still to be done, no seconds are given."""
    left = None if seconds is None else progress.seconds_left(scheduler.cost_done, scheduler.cost_left, seconds)
    running = [job.job_id] if job else []
    return progress.line(plan, scheduler.count("cell"), scheduler.count("member"), running, left)


@contextlib.contextmanager
def _telling(folder: Folder, plan: Plan, tell: Callable[[str], None] | None) -> Iterator[Callable[[str], None]]:
    """Gives what is told how far the run is: `raybasin status` by its heartbeat, and, unless lines are told otherwise,
    a notebook."""
    with heartbeat.beating(folder, plan.settings_id) as say, progress.in_notebook(tell is None) as show:

        def both(line: str) -> None:
            say(line)
            show(line)

        yield both


def _further(scheduler: Scheduler, more: Callable[[Mapping[str, Outcome]], list[Job]] | None) -> Job | None:
    """The first of the jobs that are to be done after those that are done; None if there are none."""
    while more and not _ended(scheduler) and (jobs := more(scheduler.outcomes)):
        scheduler.add(jobs)
        if job := scheduler.take("here"):  # none where all of them need what has failed
            return job
    return None


def _ended(scheduler: Scheduler) -> str:
    """Why nothing more could be done, if so."""
    return next((o.reason for o in scheduler.outcomes.values() if not o.ok and not o.job_id), "")


@dataclass(frozen=True)
class Others:
    """Committed cells in a folder that a plan does not hold: how many there are of which settings."""

    settings_id: str
    sweep: str
    cells: int


def others(folder: Folder, made: Plan) -> list[Others]:
    """By settings_id, those of the plan's own first."""
    # A file is called by its cell: those of the plan's own need not be opened, of which there may be thousands.
    units = [unit for unit in tables.units(folder, "cells") if unit not in made.cell]
    columns = tables.sound(folder, "cells", units).select(["cell_id", "settings_id", "sweep"])
    rows = [row for row in columns.to_pylist() if row["cell_id"] not in made.cell]
    count = Counter(row["settings_id"] for row in rows)
    sweep = {row["settings_id"]: one_line(row["sweep"], 100) for row in rows}
    own_first = sorted(count, key=lambda settings_id: (settings_id != made.settings_id, settings_id))
    return [Others(settings_id, sweep[settings_id], count[settings_id]) for settings_id in own_first]
