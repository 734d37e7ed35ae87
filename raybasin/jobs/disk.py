"""How much disk a sweep needs, and whether it is there when the sweep begins.

All figures are bytes, estimated from above within a few per cent: float32 weights and log-probabilities are hardly
compressible, and the small files of the other tables are counted as they were measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from raybasin.errors import UserError, format_bytes
from raybasin.jobs import retention
from raybasin.store.folders import Folder
from raybasin.sweep.job_list import Done, Job, missing_files
from raybasin.sweep.plan import Plan, soup_ids
from raybasin.sweep.settings import OWN_SPLITS

BYTES_PER_WEIGHT, BYTES_PER_LOG_PROB = 4, 4
WEIGHTS_SHARE, WEIGHTS_MORE = 1.01, 40_000
"""A file of weights over its parameters: batch-norm statistics and a header."""
FILE_BYTES = {"member": 25_000, "path": 13_000, "trace": 18_000, "cell": 51_000, "checkpoint": 12_000}
"""What a job leaves in the tables beside predictions."""
PREDICTIONS_MORE = 14_000
"""A file of predictions beside the log-probabilities."""


@dataclass(frozen=True)
class Need:
    """Bytes that are still to be written.

    Attributes:
        weights: those that stay.
        passing: weights that are pruned once their cells are finished. How many there are at once is not bounded: all
            of them may be there just before the last cells are.
        largest: of these, the weights of the cells that need most together before any of theirs are pruned.
        predictions: by `val`, `test` and `shifts` (all of these together).
        rows: all other tables.
        snapshots: what one worker may leave to go on from.
    """

    weights: float
    passing: float
    largest: float
    predictions: Mapping[str, float]
    rows: float
    snapshots: float

    @property
    def staying(self) -> float:
        """What is there when the sweep has ended."""
        return self.weights + sum(self.predictions.values()) + self.rows

    def least(self, workers: int) -> float:
        """What must be there at once, in whatever order jobs are done."""
        return self.staying + self.largest + workers * self.snapshots

    def most(self, workers: int) -> float:
        """What may be there at once."""
        return self.staying + self.passing + workers * self.snapshots


def need(made: Plan, done: Done, jobs: Iterable[Job]) -> Need:
    """What `jobs` will write."""
    jobs, spec = list(jobs), made.spec
    network = WEIGHTS_SHARE * made.facts.n_parameters * BYTES_PER_WEIGHT + WEIGHTS_MORE
    groups = _passing_networks(made, done, jobs)
    largest = max(groups.values(), default=0)
    passing = groups.total() - (largest if spec.keep.weights == "best" else 0)  # one point stays
    predictions, files = _predictions(made, done, jobs)
    in_snapshots = 0
    if any(job.kind in ("checkpoint", "member", "retrain") for job in jobs):
        # Weights and the optimizer's state, twice while one is written; weights inside a cycle until they are measured.
        from raybasin.training import optimizers  # torch, which only reading results does not wait for

        states = optimizers.copies(spec.recipe) + (spec.recipe.ema_decay is not None)
        in_snapshots = 2 * (1 + states) + (spec.basin.trace_times if made.traced else 0)
    return Need(
        weights=(sum(_networks(made, job, done) for job in jobs) - passing) * network,
        passing=passing * network,
        largest=largest * network,
        predictions=predictions,
        rows=float(sum(FILE_BYTES.get(job.kind, 0) for job in jobs) + files * PREDICTIONS_MORE),
        snapshots=in_snapshots * network,
    )


def _networks(made: Plan, job: Job, done: Done) -> int:
    """How many networks a job stores: of a SWAG trajectory its mean, two moments of twice the precision, deviations."""
    if job.kind in ("member", "retrain"):
        member = made.members[job.unit]
        return 1 + 2 * 2 + int(member.option["rank"]) if member.kind == "tail" else 1
    if job.kind == "cell":
        return 0 if job.unit in done.cells else len(made.spec.soups)
    return int(job.kind == "checkpoint")


def _passing_networks(made: Plan, done: Done, jobs: Iterable[Job]) -> Counter[str]:
    """How many of the networks that `jobs` store may be pruned again, by the group of cells that share them."""
    keep = made.spec.keep.weights
    group_of: dict[str, str] = {}  # by the id of a member, or of a cell, whose soups may go
    for group in retention.groups(made) if keep != "all" else ():
        group_of |= dict.fromkeys(group.member_ids, group.name)
        group_of |= dict.fromkeys(group.cell_ids if keep == "best" else (), group.name)
    by_group = Counter[str]()
    for job in jobs:
        if job.unit in group_of:
            by_group[group_of[job.unit]] += _networks(made, job, done)
    return by_group


def _predictions(made: Plan, done: Done, jobs: Iterable[Job]) -> tuple[dict[str, float], int]:
    """Bytes of log-probabilities by `val`, `test` and `shifts`, and in how many files they are."""
    statistics = 2 if made.facts.batch_norm else 1
    predictors: dict[str, int] = {}  # with how many kinds of batch-norm statistics each predicts
    for job in jobs:
        if job.kind in ("member", "predictions") and made.members[job.unit].kind != "tail":
            predictors[job.unit] = statistics
        elif job.kind == "cell":
            predictors.update(dict.fromkeys(soup_ids(made.spec, made.cell[job.unit]), 1))
    images, files = Counter[str](), 0
    for predictor_id, times in predictors.items():
        for file in missing_files(made, predictor_id, done):
            files += 1
            for split in file.splits:
                images[split if split in OWN_SPLITS else "shifts"] += times * made.n_images[split]
    per_image = made.facts.data.n_classes * BYTES_PER_LOG_PROB
    return {group: float(count * per_image) for group, count in images.items()}, files


def check(made: Plan, folder: Folder, needed: Need, workers: int) -> None:
    """Raises UserError where a budget does not allow all that may be there at once, or where the disk has no room for
    what must be."""
    keep, free = made.spec.keep, folder.free()
    snapshots = workers * needed.snapshots
    limits = []  # bytes that may be written, and that are wanted; what says so, and the way out
    if keep.budget_gb is not None:
        used = folder.size()
        said = f"keep.budget_gb: {keep.budget_gb:g}: {format_bytes(used)} are used already, and"
        limits.append((keep.budget_gb * 1e9 - used, needed.most(workers), said, "allow more"))
    if free is not None:  # no object store
        said = f"results folder {folder.root}: {format_bytes(free)} are free on its disk, and"
        limits.append((free, needed.least(workers), said, "free some space or name another one with --results"))
    for limit, wanted, said, way_out in limits:
        if limit < wanted:
            ways = [way_out]
            ways += ["set keep.weights: soups"] if keep.weights == "all" else []
            ways += ["set keep.predictions: [val, test]"] if needed.predictions.get("shifts") else []
            ways += ["run fewer ratios, methods or replicates at a time"] if needed.passing else []
            raise UserError(
                f"{said} the sweep still needs {format_bytes(wanted)} (weights that stay "
                f"{format_bytes(needed.weights)}, weights until their cells are finished "
                f"{format_bytes(wanted - needed.staying - snapshots)}, predictions "
                f"{format_bytes(sum(needed.predictions.values()))}, other tables {format_bytes(needed.rows)}, "
                f"unfinished training {format_bytes(snapshots)});\n{', or '.join(ways)}"
            )
