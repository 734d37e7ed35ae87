"""What `plan` says of a sweep before it runs: how much there is to do, what is done, and what to think twice about."""

from __future__ import annotations

from collections.abc import Iterator

from raybasin import plan, runs
from raybasin.plan import Plan
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
    yield (
        f"cells {len(made.cells)}, of which done {sum(c.cell_id in done.cells for c in made.cells)}; "
        f"networks {len(made.members)}, of which done {sum(m in done.members for m in made.members)}"
    )
    yield (
        f"to do: {len(to_train)} networks of {sum(m.cycle_epochs for m in to_train):g} epochs in all, "
        f"{sum(job.kind == 'checkpoint' for job in jobs)} checkpoints, "
        f"{sum(job.kind == 'path' for job in jobs)} paths; "
        f"about {disk_bytes(made, jobs) / 1e6:,.0f} MB of disk"
    )
    for settings_id, count in runs.foreign_cells(folder, made).items():
        yield f"the folder also holds {count} cells of other settings ({settings_id}); they are left alone"
    yield from warnings(made)


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


def warnings(made: Plan) -> Iterator[str]:
    data, threshold = made.facts.data, made.spec.basin.threshold
    if data.n_val < 2 / threshold:
        yield (
            f"note: with {data.n_val} validation images one image is {1 / data.n_val:.1%} of error, coarse for a "
            f"threshold of {threshold:.1%}; {2 / threshold:.0f} or more would be better"
        )


def disk_bytes(made: Plan, jobs: list[plan.Job]) -> float:
    """Disk that `jobs` will need: weights and predictions, which make up nearly all of it."""
    data = made.facts.data
    weights = made.facts.n_parameters * BYTES_PER_WEIGHT
    predictions = (data.n_val + data.n_test) * data.n_classes * BYTES_PER_LOG_PROB
    statistics = 2 if made.facts.batch_norm else 1
    per_kind = {
        "checkpoint": weights,
        "member": weights + statistics * predictions,
        "predictions": statistics * predictions,
        "cell": len(made.spec.soups) * (weights + predictions),
        "path": 0,
    }
    return float(sum(per_kind[job.kind] for job in jobs))
