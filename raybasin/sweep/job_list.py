"""The jobs of a sweep: what each is to do, what it needs to be done before, and which are left.

A job carries all that its doing takes beside the sweep's `Settings`, so that one can be added while a sweep runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from raybasin.sweep.facts import CheckpointFacts
from raybasin.sweep.plan import Cell, Member, Path, Plan, Point, Trace, n_soups, soup_ids
from raybasin.sweep.settings import PredictionFile, Settings, position_of, pretrain_of


@dataclass(frozen=True)
class Pretraining:
    """A checkpoint is trained from random weights."""

    kind: ClassVar[str] = "checkpoint"
    checkpoint: CheckpointFacts

    @property
    def unit(self) -> str:
        return self.checkpoint.key


@dataclass(frozen=True)
class _OfMember:
    member: Member

    @property
    def unit(self) -> str:
        return self.member.member_id


@dataclass(frozen=True)
class Training(_OfMember):
    """A member is trained, or drawn, and predicts. If it has a `trace`, it leaves the weights that this needs."""

    kind: ClassVar[str] = "member"
    trace: Trace | None = None


@dataclass(frozen=True)
class Retraining(_OfMember):
    """A member whose weights were pruned is trained once more, to the same weights."""

    kind: ClassVar[str] = "retrain"


@dataclass(frozen=True)
class Predicting(_OfMember):
    """A member that was trained under other evaluation settings predicts under these."""

    kind: ClassVar[str] = "predictions"


@dataclass(frozen=True)
class PathMeasurement:
    """Loss and error along the straight line between two members of a cell."""

    kind: ClassVar[str] = "path"
    cell_id: str
    point: Point
    path: Path
    copy_of: str = ""
    """The unit of another cell that has the same path, whose rows are copied; empty where it is to be measured."""

    @property
    def unit(self) -> str:
        return f"{self.cell_id}-{self.path.path_id}"


@dataclass(frozen=True)
class TraceMeasurement:
    """Loss and error from the hub, and from the checkpoint, to `member` along its training."""

    kind: ClassVar[str] = "trace"
    cell_id: str
    point: Point
    hub_id: str
    member: Member
    trace: Trace
    copy_of: str = ""
    """As of a path."""

    @property
    def unit(self) -> str:
        return f"{self.cell_id}-{self.trace.trace_id}"


@dataclass(frozen=True)
class Closing:
    """The soups of a cell are made, all is scored and the cell is committed. `group` (`retention.Group`) are the cells
    that share weights which may be pruned with it; None where all weights are kept."""

    kind: ClassVar[str] = "cell"
    cell: Cell
    group: Any = None

    @property
    def unit(self) -> str:
        return self.cell.cell_id


Task = Pretraining | Training | Retraining | Predicting | PathMeasurement | TraceMeasurement | Closing
"""What is to be done. With `kind`, `unit` names it: the id of what it makes."""


@dataclass(frozen=True)
class Job:
    """One thing a worker does."""

    task: Task
    cost: float
    """Image passes through the network; a training step counts three."""
    needs: tuple[str, ...] = ()
    """Ids of jobs that must be done first; where one fails, this one does."""

    @property
    def kind(self) -> str:
        return self.task.kind

    @property
    def unit(self) -> str:
        return self.task.unit

    @cached_property
    def job_id(self) -> str:
        return f"{self.kind}-{self.unit}"


def described(job: Job) -> str:
    """A job for a person: which member of an ensemble, rather than its id alone."""
    task = job.task
    if not isinstance(task, Training | Retraining | TraceMeasurement):
        return f"{job.kind} {job.unit}"
    member = task.member
    role = "hub" if member.index == 0 else "tail" if member.kind == "tail" else f"member {member.index}"
    return f"{'trace of ' if isinstance(task, TraceMeasurement) else ''}{role} ({member.member_id})"


@dataclass(frozen=True)
class Done:
    """The ids of what the results folder holds already. Predictions by predictor_id and file (`PredictionFile.name`),
    paths by (cell_id, path_id), traces by (cell_id, trace_id), weights inside a cycle by (member_id, step). `pruned`
    are the members and cells whose weights were not to be kept."""

    checkpoints: Collection[str] = frozenset()
    members: Collection[str] = frozenset()
    predictions: Collection[tuple[str, str]] = frozenset()
    cells: Collection[str] = frozenset()
    paths: Collection[tuple[str, str]] = frozenset()
    traces: Collection[tuple[str, str]] = frozenset()
    inside_cycles: Collection[tuple[str, int]] = frozenset()
    pruned: Collection[str] = frozenset()


def state_of(cell: Cell, done: Done) -> str:
    """`done`, `begun` or `new`: what there is of a cell. Its hub is everybody's, and begins none."""
    if cell.cell_id in done.cells:
        return "done"
    own = any(member_id in done.members for member_id in cell.member_ids[1:])
    return "begun" if own or any((cell.cell_id, path.path_id) in done.paths for path in cell.paths) else "new"


def jobs_left(plan: Plan, done: Done, restore: bool = False, groups: Mapping[str, Any] | None = None) -> list[Job]:
    """What is left to do, every job after those it needs. A cell that is committed needs nothing any more, unless
    predictions are now to be kept that were not, or weights that were pruned are to be restored.

    Args:
        plan: all that is wanted.
        done: all that is there.
        restore: whether weights that were pruned, and are to be kept by now, are made again.
        groups: what each cell is finished together with (one of `retention.groups`), by cell_id.
    """
    left = _Left(plan, done, restore, groups)
    for cell in plan.cells:
        left.cell(cell)
        if restore and plan.spec.keep.weights == "all":
            for member_id in cell.trained_ids:
                left.weights(member_id)
    return list(left.jobs.values())


def checkpoint_jobs(plan: Plan, done: Done) -> list[Job]:
    """The checkpoints that are left to be made, whether a cell waits for them or not."""
    left = _Left(plan, done)
    for checkpoint in plan.facts.checkpoints:
        left.checkpoint(checkpoint)
    return list(left.jobs.values())


def lacks_predictions(settings: Settings, cell: Cell, done: Done) -> bool:
    """Whether `cell` is committed and its networks are there, but not all predictions that are to be kept."""
    if cell.cell_id not in done.cells or not all(member_id in done.members for member_id in cell.member_ids):
        return False
    predictors = (*cell.member_ids, *soup_ids(settings.spec, cell))
    return any(missing_files(settings, predictor_id, done) for predictor_id in predictors)


def missing_files(settings: Settings, predictor_id: str, done: Done) -> list[PredictionFile]:
    """What is still to be stored of the predictions of a member or soup."""
    return settings.missing_files(lambda name: (predictor_id, name) in done.predictions)


def must_repeat(task: TraceMeasurement, done: Done) -> bool:
    """Whether a run has to be trained again to be traced: it is committed, and its weights inside the cycle, which only
    a run that is to be traced leaves, are not there."""
    member = task.member
    if task.copy_of or member.parent_id is None or member.member_id not in done.members:
        return False
    return any((member.member_id, step) not in done.inside_cycles for step in task.trace.steps)


class _Left:
    """Collects jobs by walking back from what is wanted to what is there. Each method gives the id of the job that
    makes what the method is called after, None where that is there."""

    def __init__(self, plan: Plan, done: Done, restore: bool = False, groups: Mapping[str, Any] | None = None) -> None:
        self.plan, self.done, self.groups = plan, done, groups or {}
        self.restored = done.pruned if restore and plan.spec.keep.weights != "best" else ()
        self.jobs: dict[str, Job] = {}
        self.measured = {name: f"{cell_id}-{name}" for cell_id, name in (*done.paths, *done.traces)}
        """The unit of each path and trace that is measured, or that a job measures."""
        images = plan.n_images
        self.done_traces = {trace_id for _, trace_id in done.traces}
        self.statistics = 2 if plan.facts.batch_norm else 1
        self.kept = sum(images[split] for split in plan.kept_splits)
        self.not_kept = sum(images.values()) - self.kept
        self.scoring = self.statistics * self.kept + plan.bn_images
        self.path_point = plan.bn_images + sum(images[split] for split in plan.spec.basin.splits)
        """Passes for the loss of one network on a path."""

    def cell(self, cell: Cell) -> str | None:
        complete = cell.cell_id in self.done.cells and cell.cell_id not in self.restored
        if complete and not lacks_predictions(self.plan, cell, self.done):
            return None
        needs = self._networks(cell.member_ids)
        soups = n_soups(self.plan.spec, cell)
        cost = soups * (self.kept + self.plan.bn_images)
        if cell.cell_id not in self.done.cells:
            needs += [self.path(cell, path) for path in cell.paths]
            needs += [self.trace(cell, trace) for trace in cell.traces]
            # Splits without stored predictions are looked at by every network of a cell when it is scored.
            cost += (self.statistics * len(cell.member_ids) + soups) * self.not_kept
            cost += len(cell.member_ids) * self.plan.bn_images if self.not_kept else 0
        return self._add(Closing(cell, self.groups.get(cell.cell_id)), cost, needs)

    def path(self, cell: Cell, path: Path) -> str | None:
        if (cell.cell_id, path.path_id) in self.done.paths:
            return None
        task = PathMeasurement(cell.cell_id, cell.point, path, self.measured.get(path.path_id, ""))
        if task.copy_of:
            return self._copy(task)
        self.measured[path.path_id] = task.unit
        cost = (self.plan.spec.basin.points - 2) * self.path_point
        return self._add(task, cost, self._networks((path.start_id, path.end_id)))

    def trace(self, cell: Cell, trace: Trace) -> str | None:
        if (cell.cell_id, trace.trace_id) in self.done.traces:
            return None
        hub_id, member = cell.member_ids[0], self.plan.members[trace.member_id]
        copy_of = self.measured.get(trace.trace_id, "")
        task = TraceMeasurement(cell.cell_id, cell.point, hub_id, member, trace, copy_of)
        if copy_of:
            return self._copy(task)
        self.measured[trace.trace_id] = task.unit
        inside = self.plan.spec.basin.trace_points - 2
        networks = 1 + (inside if member.parent_id is None else len(trace.steps) * (1 + 2 * inside))
        cost = networks * self.path_point + (self._training_cost(member) if must_repeat(task, self.done) else 0.0)
        needs = [self.member(hub_id), self.member(trace.member_id), self.weights(trace.member_id)]
        return self._add(task, cost, needs)

    def _copy(self, task: PathMeasurement | TraceMeasurement) -> str:
        origin = f"{task.kind}-{task.copy_of}"
        return self._add(task, 0.0, [origin if origin in self.jobs else None])

    def _networks(self, member_ids: Iterable[str]) -> list[str | None]:
        """Their predictions, and their weights; what is yet to be trained has one job for both."""
        needs: list[str | None] = []
        for member_id in member_ids:
            needs.append(self.member(member_id))
            if member_id in self.done.members:
                needs.append(self.weights(member_id))
        return needs

    def member(self, member_id: str) -> str | None:
        """Its predictions, whether it is trained already or not."""
        if member_id not in self.done.members:
            return self.weights(member_id)
        if not missing_files(self.plan, member_id, self.done):
            return None
        return self._add(Predicting(self.plan.members[member_id]), self.scoring, [self.weights(member_id)])

    def weights(self, member_id: str) -> str | None:
        """Its training, or where its weights were pruned the same training once more."""
        wanted = self._training(member_id)
        if wanted is None or wanted in self.jobs:
            return wanted
        lineage: list[str] = []
        job_id: str | None = wanted
        ancestor = member_id
        while job_id is not None and job_id not in self.jobs:  # no recursion: a chain may be a thousand members long
            lineage.append(ancestor)
            parent_id = self.plan.members[ancestor].parent_id
            if parent_id is None:
                break
            ancestor, job_id = parent_id, self._training(parent_id)
        for member in (self.plan.members[ancestor] for ancestor in reversed(lineage)):
            origin = self._training(member.parent_id) if member.parent_id else self.checkpoint(member.point.checkpoint)
            cost = self._training_cost(member)
            if member.member_id in self.done.members:
                self._add(Retraining(member), cost, [origin])
                continue
            trace = self.plan.traced.get(member.member_id)
            is_traced = trace is not None and (member.parent_id is None or trace.trace_id in self.done_traces)
            self._add(Training(member, None if is_traced else trace), cost + self.scoring, [origin])
        return wanted

    def _training(self, member_id: str) -> str | None:
        """The id of the job that gives a member its weights; None where they are there."""
        if member_id not in self.done.members:
            return f"{Training.kind}-{member_id}"
        return f"{Retraining.kind}-{member_id}" if member_id in self.done.pruned else None

    def _training_cost(self, member: Member) -> float:
        return 3 * member.cycle_epochs * self.plan.facts.data.n_train

    def checkpoint(self, checkpoint: CheckpointFacts) -> str | None:
        if checkpoint.pretrain is None or checkpoint.key in self.done.checkpoints:
            return None
        epochs = pretrain_of(self.plan, checkpoint).recipe.epochs
        images = self.plan.facts.pretrain_data[position_of(checkpoint)].n_train
        return self._add(Pretraining(checkpoint), 3 * epochs * images, [])

    def _add(self, task: Task, cost: float, needs: Iterable[str | None]) -> str:
        job = Job(task, float(cost), tuple(dict.fromkeys(job_id for job_id in needs if job_id is not None)))
        return self.jobs.setdefault(job.job_id, job).job_id
