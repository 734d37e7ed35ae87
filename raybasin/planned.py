"""What `plan` says of a sweep before it runs: how much there is to do, what is done, and what to think twice about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from raybasin import plan, runs
from raybasin.plan import Plan
from raybasin.specs import KeepSpec
from raybasin.store import Folder

BYTES_PER_WEIGHT = 4
BYTES_PER_LOG_PROB = 4


def lines(made: Plan, folder: Folder) -> Iterator[str]:
    done = runs.survey(folder)
    jobs = plan.jobs(made, done)
    data, spec = made.facts.data, made.spec
    to_train = [made.members[job.unit] for job in jobs if job.kind == "member"]
    yield f"sweep {spec.name}, settings {made.settings_id}"
    yield (
        f"data {spec.data.name}: {data.n_train} training, {data.n_val} validation, {data.n_test} test images, "
        f"{data.n_classes} classes; {made.steps_per_epoch} steps an epoch"
    )
    if shifts := made.facts.shifts:
        yield f"shifts: {len(shifts)} further sets, {sum(shift.n_images for shift in shifts):,} images in all"
    if spec.model.factory:
        yield _factory(made)
    states = Counter(state(cell, done).partition(":")[0] for cell in made.cells)
    yield (
        f"cells {len(made.cells)}, of which done {states[DONE]}, begun {states[BEGUN]}, new {states[NEW]}; "
        f"networks {len(made.members)}, of which done {sum(m in done.members for m in made.members)}"
    )
    yield (
        f"to do: {len(to_train)} networks of {sum(m.cycle_epochs for m in to_train):g} epochs in all, "
        f"{sum(job.kind == 'checkpoint' for job in jobs)} checkpoints, "
        f"{sum(job.kind == 'path' for job in jobs)} paths"
    )
    yield from _disk_lines(made, disk(made, done, jobs), disk(_keeping_everything(made), done, jobs))
    if spec.basin.trace:
        yield _traces(made, done, jobs)
    yield from _others(made, folder)
    yield from warnings(made)


DONE, BEGUN, NEW = "done", "begun", "new"


def state(cell: plan.Cell, done: plan.Done) -> str:
    """What there is of a cell, and what is to do."""
    if cell.cell_id in done.cells:
        return DONE
    networks = sum(member_id in done.members for member_id in cell.member_ids)
    own = sum(member_id in done.members for member_id in cell.member_ids[1:])  # the hub is everybody's
    paths = sum((cell.cell_id, path.path_id) in done.paths for path in cell.paths)
    left = [f"{count} {what}" for count, what in ((len(cell.member_ids) - networks, "networks"),
                                                  (len(cell.paths) - paths, "paths")) if count]  # fmt: skip
    return f"{BEGUN if own or paths else NEW}: {' and '.join(left) or 'scores'} to do"


def _others(made: Plan, folder: Folder) -> Iterator[str]:
    """What the folder holds that this sweep file does not ask for."""
    for other in runs.others(folder, made):
        shown = f"{other.cells} {'cell' if other.cells == 1 else 'cells'}"
        if other.settings_id == made.settings_id:
            yield f"the folder also holds {shown} of these settings that the sweep file does not ask for; they stay"
        else:
            yield (
                f"the folder also holds {shown} of other settings ({other.settings_id}, sweep {other.sweep}); "
                "they are left alone"
            )


def pretraining_lines(made: Plan, folder: Folder) -> Iterator[str]:
    """The same of a plan of checkpoints alone."""
    jobs = plan.checkpoint_jobs(made, runs.survey(folder))
    total = len(made.facts.checkpoints)
    if made.spec.model.factory:
        yield _factory(made)
    for position, data in made.facts.pretrain_data.items():
        ours = [checkpoint for checkpoint in made.facts.checkpoints if checkpoint.pretrain == position]
        task = plan.pretrain_of(made, ours[0])
        yield (
            f"{len(ours)} of {task.data.name}: {data.n_train} training, {data.n_val} validation images, "
            f"{data.n_classes} classes, {task.recipe.epochs} epochs"
        )
    yield f"checkpoints {total}, of which done {total - len(jobs)}; results in {folder.root}"


def _factory(made: Plan) -> str:
    """What a sweep file that names code should not do unsaid."""
    model, shown = made.spec.model, made.facts.preprocess
    pixels = "ImageNet's mean and deviation" if made.spec.data.normalise is None else "data.normalise"
    return (
        f"network {model.name}: {model.factory} is code of your own, which is run; pixels normalised by {pixels}, "
        f"crop {shown.eval_crop:g}, {shown.interpolation}"
    )


def _traces(made: Plan, done: plan.Done, jobs: list[plan.Job]) -> str:
    """How much there is to trace, and what of it needs a training that has been before."""
    wanted = [made.traces[cell_id, trace_id] for cell_id, _, trace_id in
              (job.unit.partition("-") for job in jobs if job.kind == "trace")]  # fmt: skip
    again = [made.members[trace.member_id] for trace in wanted if plan.must_repeat(made, trace, done)]
    text = f"{len(wanted)} traces to measure"
    if again:
        epochs = sum(member.cycle_epochs for member in again)
        text += (
            f"; {len(again)} of their networks were trained without leaving weights inside their cycle and are trained "
            f"again for it, {epochs:g} epochs in all"
        )
    each = made.spec.basin.trace_times * made.facts.n_parameters * BYTES_PER_WEIGHT / 1e6
    return text if not wanted else f"{text}; until it is measured, a trace takes up to {each:,.0f} MB of disk"


def warnings(made: Plan) -> Iterator[str]:
    data, threshold = made.facts.data, made.spec.basin.threshold
    if data.n_val < 2 / threshold:
        yield (
            f"note: with {data.n_val} validation images one image is {1 / data.n_val:.1%} of error, coarse for a "
            f"threshold of {threshold:.1%}; {2 / threshold:.0f} or more would be better"
        )


# Disk


@dataclass(frozen=True)
class Disk:
    """Bytes that jobs will need: weights, and predictions on `val`, `test` and all `shifts`. Nearly all of it."""

    weights: float
    predictions: Mapping[str, float]

    @property
    def total(self) -> float:
        return self.weights + sum(self.predictions.values())


def disk(made: Plan, done: plan.Done, jobs: Iterable[plan.Job]) -> Disk:
    """What `jobs` will need. Log-probabilities are hardly compressible, so they are counted as they are."""
    statistics = 2 if made.facts.batch_norm else 1
    networks, images = 0, Counter[str]()
    soups: set[str] = set()
    for job in jobs:
        if job.kind in ("member", "predictions") and made.members[job.unit].kind != "tail":
            images += _times(_images(made, job.unit, done), statistics)
        if job.kind == "cell":
            soups |= set(plan.soup_ids(made.spec, made.cell[job.unit]))
        networks += _networks(made, job, done)
    for predictor_id in soups:
        images += _images(made, predictor_id, done)
    per_image = made.facts.data.n_classes * BYTES_PER_LOG_PROB
    weights = float(networks * made.facts.n_parameters * BYTES_PER_WEIGHT)
    return Disk(weights, {group: float(count * per_image) for group, count in images.items()})


def _networks(made: Plan, job: plan.Job, done: plan.Done) -> int:
    """How many networks a job stores. A tail has its mean, two moments of twice the precision, and deviations."""
    if job.kind == "member" and made.members[job.unit].kind == "tail":
        return 1 + 2 * 2 + int(made.members[job.unit].option["rank"])
    if job.kind == "cell":
        return 0 if job.unit in done.cells else len(made.spec.soups)
    return int(job.kind in ("checkpoint", "member"))


def _images(made: Plan, predictor_id: str, done: plan.Done) -> Counter[str]:
    """On how many images a predictor has still to predict, by `val`, `test` and `shifts`."""
    found = Counter[str]()
    for file in plan.missing_files(made, predictor_id, done):
        for split in file.splits:
            found[split if split in plan.OWN_SPLITS else "shifts"] += made.n_images[split]
    return found


def _times(counts: Counter[str], factor: int) -> Counter[str]:
    return Counter({key: factor * count for key, count in counts.items()})


def _keeping_everything(made: Plan) -> Plan:
    return replace(made, spec=made.spec.model_copy(update={"keep": KeepSpec()}))


def _disk_lines(made: Plan, needed: Disk, at_most: Disk) -> Iterator[str]:
    parts = ", ".join(f"{group} {_megabytes(size)}" for group, size in needed.predictions.items())
    yield (
        f"disk: about {_megabytes(needed.total)}: weights {_megabytes(needed.weights)}, "
        f"predictions {_megabytes(sum(needed.predictions.values()))}{f' ({parts})' if parts else ''}"
    )
    shifts = needed.predictions.get("shifts", 0.0)
    if shifts > needed.total / 2:
        yield (
            f"note: predictions on the shift sets are {_megabytes(shifts)} of that; with "
            "keep: {predictions: [val, test]} they are scored and not stored"
        )
    if at_most.total > needed.total:
        left_out = [name for name in made.splits if name not in made.kept_splits]
        shown = ", ".join(left_out) if len(left_out) < 4 else f"{len(left_out)} splits"
        saved = _megabytes(at_most.total - needed.total)
        yield f"predictions on {shown} are scored and not stored, which saves {saved}"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"
