"""How much disk a sweep needs, whether it is there, and how a bound on it is kept while workers run side by side.

All figures are bytes, estimated from above within a few per cent: float32 weights and log-probabilities are hardly
compressible, and the small files of the other tables are counted as they were measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from raybasin.errors import UserError
from raybasin.jobs import retention
from raybasin.jobs.retention import Group
from raybasin.jobs.scheduler import Outcome
from raybasin.store.folders import Folder
from raybasin.sweep import plan
from raybasin.sweep.plan import Done, Job, Plan

BYTES_PER_WEIGHT = 4
BYTES_PER_LOG_PROB = 4
WEIGHTS_SHARE, WEIGHTS_MORE = 1.01, 40_000
"""A file of weights over its parameters: batch-norm statistics and a header."""
FILE_BYTES = {"member": 25_000, "path": 13_000, "trace": 18_000, "cell": 51_000, "checkpoint": 12_000}
"""What a job leaves in the tables beside predictions."""
PREDICTIONS_MORE = 14_000
"""A file of predictions beside the log-probabilities."""


@dataclass(frozen=True)
class Need:
    """Bytes that are still to be written. `weights` stay; so do `predictions` (on `val`, `test` and all `shifts`) and
    `rows`, all other tables. `passing` are the weights that are pruned again, all of them and those of the largest
    group alone; `snapshots` what one worker may leave to go on from."""

    weights: float
    predictions: Mapping[str, float]
    rows: float
    passing: float
    largest: float
    snapshots: float

    @property
    def staying(self) -> float:
        return self.weights + sum(self.predictions.values()) + self.rows

    def least(self, workers: int) -> float:
        """What must be there: everything that stays, and room for one group of cells at a time."""
        return self.staying + self.largest + workers * self.snapshots


def need(made: Plan, done: Done, jobs: Iterable[Job]) -> Need:
    """What `jobs` will write."""
    jobs = list(jobs)
    return _need(made, done, jobs, _sizes(made, jobs, done, _passing_jobs(made, jobs, _groups(made))))


def _need(made: Plan, done: Done, jobs: Collection[Job], groups: Mapping[str, float]) -> Need:
    """The same, where the bytes of weights that are pruned again are known, by group."""
    per_network = network_bytes(made)
    passing = sum(groups.values())
    largest = max(groups.values(), default=0.0)
    best = largest if made.spec.keep.weights == "best" else 0.0
    networks = sum(_networks(made, job, done) for job in jobs)
    predictions, files = _predictions(made, done, jobs)
    trained = any(job.kind in ("checkpoint", "member", "retrain") for job in jobs)
    states = {"sgd": 1, "adamw": 2}[made.spec.recipe.optimizer]
    inside = made.spec.basin.trace_times if made.traces else 0  # until the run that has left them is measured
    return Need(
        weights=networks * per_network - passing + best,
        predictions=predictions,
        rows=float(sum(FILE_BYTES.get(job.kind, 0) for job in jobs) + files * PREDICTIONS_MORE),
        passing=passing,
        largest=largest,
        # One snapshot is written while the last is there.
        snapshots=(2 * (1 + states) + inside) * per_network if trained else 0.0,
    )


def network_bytes(made: Plan) -> float:
    return WEIGHTS_SHARE * made.facts.n_parameters * BYTES_PER_WEIGHT + WEIGHTS_MORE


def _predictions(made: Plan, done: Done, jobs: Iterable[Job]) -> tuple[dict[str, float], int]:
    """Bytes of log-probabilities by `val`, `test` and `shifts`, and in how many files they are."""
    statistics = 2 if made.facts.batch_norm else 1
    images, files = Counter[str](), 0
    soups: set[str] = set()
    for job in jobs:
        if job.kind in ("member", "predictions") and made.members[job.unit].kind != "tail":
            images += _times(_images(made, job.unit, done), statistics)
            files += len(plan.missing_files(made, job.unit, done))
        if job.kind == "cell":
            soups |= set(plan.soup_ids(made.spec, made.cell[job.unit]))
    for predictor_id in soups:
        images += _images(made, predictor_id, done)
        files += len(plan.missing_files(made, predictor_id, done))
    per_image = made.facts.data.n_classes * BYTES_PER_LOG_PROB
    return {group: float(count * per_image) for group, count in images.items()}, files


def _networks(made: Plan, job: Job, done: Done) -> int:
    """How many networks a job stores. A tail has its mean, two moments of twice the precision, and deviations."""
    if job.kind in ("member", "retrain"):
        member = made.members[job.unit]
        return 1 + 2 * 2 + int(member.option["rank"]) if member.kind == "tail" else 1
    if job.kind == "cell":
        return 0 if job.unit in done.cells else len(made.spec.soups)
    return int(job.kind == "checkpoint")


def _images(made: Plan, predictor_id: str, done: Done) -> Counter[str]:
    """On how many images a predictor has still to predict, by `val`, `test` and `shifts`."""
    found = Counter[str]()
    for file in plan.missing_files(made, predictor_id, done):
        for split in file.splits:
            found[split if split in plan.OWN_SPLITS else "shifts"] += made.n_images[split]
    return found


def _times(counts: Counter[str], factor: int) -> Counter[str]:
    return Counter({key: factor * count for key, count in counts.items()})


# Weights that are pruned again


def _groups(made: Plan) -> Mapping[str, Group]:
    """The group of each cell whose weights may be pruned; none where all are kept."""
    return {} if made.spec.keep.weights == "all" else retention.groups(made)


def _sizes(made: Plan, jobs: Iterable[Job], done: Done, passing: Mapping[str, str]) -> dict[str, float]:
    """Bytes that jobs write and that are pruned when their group is finished, by group."""
    sizes: dict[str, float] = {}
    by_id = {job.job_id: job for job in jobs}
    for job_id, group in passing.items():
        sizes[group] = sizes.get(group, 0.0) + _networks(made, by_id[job_id], done) * network_bytes(made)
    return sizes


def _passing_jobs(made: Plan, jobs: Iterable[Job], of_cell: Mapping[str, Group]) -> dict[str, str]:
    """The jobs that write weights which may be pruned, by job_id, and their group: a group is called by its first
    cell."""
    of_member = {m: group.name for group in of_cell.values() for m in group.member_ids}
    found = {}
    for job in jobs:
        if job.kind in ("member", "retrain") and job.unit in of_member:
            found[job.job_id] = of_member[job.unit]
        elif job.kind == "cell" and made.spec.keep.weights == "best":
            found[job.job_id] = of_cell[job.unit].name
    return found


@dataclass(frozen=True)
class Room:
    """A bound on the weights that are pruned again: no group of cells is begun for which there is no room beside
    those that are open, of which all weights are taken to be there. A group is open from its first job until all its
    cells are done, so what is open can always be finished."""

    capacity: float
    size: Mapping[str, float]
    """Bytes, by group."""
    group_of: Mapping[str, str]
    """By job_id, of the jobs that write such weights."""
    cells_of: Mapping[str, Collection[str]]
    """The jobs that end the cells of a group."""
    there: Collection[str]
    """Groups of which weights were there from the start."""

    def opened(self, held: Iterable[str], outcomes: Mapping[str, Outcome]) -> frozenset[str]:
        begun = {self.group_of[job_id] for job_id in (*held, *outcomes) if job_id in self.group_of}
        return frozenset(name for name in begun | set(self.there) if not self._is_done(name, outcomes))

    def admits(self, job: Job, opened: frozenset[str]) -> bool:
        group = self.group_of.get(job.job_id)
        if group is None or group in opened or not opened:
            return True
        return sum(self.size[name] for name in opened) + self.size[group] <= self.capacity

    def _is_done(self, group: str, outcomes: Mapping[str, Outcome]) -> bool:
        return all(job_id in outcomes and outcomes[job_id].ok for job_id in self.cells_of[group])


def room(made: Plan, folder: Folder, done: Done, jobs: Iterable[Job], workers: int) -> Room | None:
    """The bound on weights that are pruned again; None where all are kept.

    Raises UserError where there is no room for what stays and one group at a time.
    """
    jobs = list(jobs)
    of_cell = _groups(made)
    group_of = _passing_jobs(made, jobs, of_cell)
    passing = _sizes(made, jobs, done, group_of)
    needed, limit = _need(made, done, jobs, passing), _limit(made, folder)
    _refuse_too_much(made, needed, limit, workers)
    if limit is None or made.spec.keep.weights == "all":
        return None
    wanted = {job.job_id for job in jobs}
    named = retention.distinct(of_cell)
    cells_of = {
        name: frozenset(f"cell-{cell.cell_id}" for cell in group.cells) & wanted for name, group in named.items()
    }
    there = {name for name in passing if (named[name].member_ids & set(done.members)) - set(done.pruned)}
    capacity = limit.size - needed.least(workers) + needed.largest
    return Room(capacity, passing, group_of, cells_of, there)


# What there is


@dataclass(frozen=True)
class _Limit:
    """How many bytes may still be written, and what says so."""

    size: float
    said: str
    way_out: str


def _limit(made: Plan, folder: Folder) -> _Limit | None:
    """The tighter of the budget and the free disk; None for an object store without a budget."""
    found = []
    if made.spec.keep.budget_gb is not None:
        budget, used = made.spec.keep.budget_gb * 1e9, folder.size()
        said = f"keep.budget_gb: {made.spec.keep.budget_gb:g}: {format_bytes(used)} are used already, and"
        found.append(_Limit(budget - used, said, "allow more"))
    free = folder.free()
    if free is not None:
        said = f"results folder {folder.root}: {format_bytes(free)} are free on its disk, and"
        found.append(_Limit(free, said, "free some space or name another one with --results"))
    return min(found, key=lambda limit: limit.size, default=None)


def check(made: Plan, folder: Folder, done: Done, jobs: Iterable[Job], workers: int) -> None:
    """Raises UserError where there is no room for what `jobs` will write."""
    _refuse_too_much(made, need(made, done, jobs), _limit(made, folder), workers)


def _refuse_too_much(made: Plan, needed: Need, limit: _Limit | None, workers: int) -> None:
    least = needed.least(workers)
    if limit is None or least <= limit.size or not least:
        return
    less = ["keep.weights: soups"] if made.spec.keep.weights == "all" else []
    less += ["keep.predictions: [val, test]"] if needed.predictions.get("shifts") else []
    raise UserError(
        f"{limit.said} the sweep still needs {format_bytes(least)} at the least (weights that stay "
        f"{format_bytes(needed.weights)}, predictions {format_bytes(sum(needed.predictions.values()))}, other "
        f"tables {format_bytes(needed.rows)}, weights of one group of cells {format_bytes(needed.largest)}, "
        f"unfinished training {format_bytes(workers * needed.snapshots)});\n"
        f"{limit.way_out}{''.join(f', or set {key}' for key in less)}"
    )


def format_bytes(size: float) -> str:
    """Bytes for a person."""
    return f"{size / 1e9:,.2f} GB" if abs(size) >= 1e9 else f"{size / 1e6:,.1f} MB"
