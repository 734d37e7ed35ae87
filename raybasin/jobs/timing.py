"""How long a sweep will take, before anything of it is trained: a few real steps are timed, and an evaluation.

What a plan's jobs cost is known in images that pass through the network (`Job.cost`); how long one takes is measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from raybasin.data import decoding
from raybasin.errors import UserError, is_out_of_memory, one_line
from raybasin.jobs import prepare, train_members
from raybasin.jobs.local import Situation
from raybasin.jobs.prepare import Prepared
from raybasin.jobs.worker_context import WorkerContext
from raybasin.store.provenance import describe
from raybasin.sweep.job_list import Job, Pretraining, Retraining, Training
from raybasin.sweep.plan import Plan
from raybasin.sweep.settings import position_of, pretrain_of
from raybasin.training import evaluation, loop, models

STEPS = 30
"""So many are made, in `MOST_SECONDS` if they are slow, but `LEAST` of them."""
MOST_SECONDS = 30.0
LEAST = 3
FIRST = 12
"""Steps that are not counted, or half of what was made: they choose algorithms, and are recorded on a GPU."""
IMAGES = 512
"""In the evaluation, at most."""


@dataclass(frozen=True)
class Timed:
    """What was measured.

    Attributes:
        step_seconds: of one training step, of `batch` images; over `steps` of them.
        train_seconds: of one training image.
        evaluation_seconds: of one image in evaluation.
        device: on which.
        from_checkpoint: whether these were the first steps of the hub; else the weights were random.
        diverged: what was raised, where these steps, up to the recipe's highest rate, have led to no number.
    """

    step_seconds: float
    batch: int
    steps: int
    train_seconds: float
    evaluation_seconds: float
    device: str
    from_checkpoint: bool
    diverged: str = ""


@dataclass(frozen=True)
class Estimate:
    """Hours of one worker for all that is left."""

    training: float
    evaluation: float


class _EnoughError(Exception):
    """No further step is needed."""


@dataclass
class _Watch:
    """When steps ended, and of how many images they were."""

    device: torch.device
    began: float
    ends: list[float] = field(default_factory=list)
    images: list[int] = field(default_factory=list)

    def beat(self, images: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.ends.append(time.monotonic())
        self.images.append(images)
        if len(self.ends) >= LEAST and self.ends[-1] - self.began > MOST_SECONDS:
            raise _EnoughError

    def counted(self) -> tuple[float, int, int]:
        """Seconds, images and steps, without the first ones."""
        first = min(FIRST, len(self.ends) // 2)
        return self.ends[-1] - self.ends[first - 1], sum(self.images[first:]), len(self.ends) - first


def device_of(name: str) -> torch.device:
    """Raises UserError for what is no device, or is not here."""
    if name not in ("cpu", "cuda"):
        raise UserError(f"--measure {one_line(name)}: must be cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--measure cuda: torch finds no GPU on this machine; --measure cpu times its processor")
    return torch.device(name)


def measure(prepared: Prepared, situation: Situation, device: torch.device) -> Timed:
    """Trains the hub's network a few steps at its real batch, up to its highest rate, and evaluates it; nothing is
    stored. Raises UserError for an image that cannot be decoded."""
    made = prepared.plan
    loaded = prepare.load(prepared)
    context = WorkerContext(situation.folder, made.settings, loaded.target, loaded.pretrain, device)
    spec, facts = made.spec, made.facts
    content = prepared.weights.get(facts.checkpoints[0].key)
    if content is not None:
        net = models.with_new_head(
            spec.model, models.from_bytes(content), facts.data.n_classes, 0, spec.recipe.drop_path
        )
    else:
        net = models.build(spec.model, facts.data.n_classes, 0, spec.recipe.drop_path)
    net = context.placed(net)
    watch, diverged = _Watch(device, time.monotonic()), ""
    cycle = loop.Cycle(
        spec.recipe, spec.data.augment, STEPS, spec.recipe.lr, spec.seed, warm_up=True, n_classes=facts.data.n_classes,
        cuda_graphs=train_members.recorded(spec.recipe, made.settings),
    )  # fmt: skip
    try:
        loop.train(net, *context.train, cycle, context.preprocess, beat=watch.beat)
    except _EnoughError:
        pass
    except loop.Diverged as error:
        diverged = one_line(str(error))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"--measure: there is not enough memory for steps of {spec.recipe.batch_size} images on "
            f"{describe(device)}; take a smaller recipe.batch_size"
        ) from error
    seconds, images, steps = watch.counted()
    return Timed(
        step_seconds=seconds / steps,
        batch=round(images / steps),
        steps=steps,
        train_seconds=seconds / images,
        evaluation_seconds=_evaluation_seconds(net, context),
        device=describe(device),
        from_checkpoint=content is not None,
        diverged=diverged,
    )


def _evaluation_seconds(net: torch.nn.Module, context: WorkerContext) -> float:
    """Of one image; the second time, when algorithms are chosen."""
    images_NHWC = context.on_device(context.data.val)[0]
    shown = decoding.select(images_NHWC, np.arange(min(IMAGES, len(images_NHWC))))
    seconds = 0.0
    with loop.float32(context.settings.spec.recipe, context.device):
        for _ in range(2):
            began = time.monotonic()
            evaluation.log_probs(net, shown, context.preprocess)  # it ends on the host
            seconds = time.monotonic() - began
    return seconds / len(shown)


def estimate(made: Plan, jobs: tuple[Job, ...], timed: Timed) -> Estimate:
    """What `jobs` will take at the measured speeds."""
    trained = sum(_training_images(made, job) for job in jobs)
    evaluated = sum(job.cost for job in jobs) - 3 * trained
    return Estimate(trained * timed.train_seconds / 3600, evaluated * timed.evaluation_seconds / 3600)


def _training_images(made: Plan, job: Job) -> float:
    task = job.task
    if isinstance(task, Training | Retraining):
        return task.member.cycle_epochs * made.facts.data.n_train
    if isinstance(task, Pretraining):
        position = position_of(task.checkpoint)
        return pretrain_of(made, task.checkpoint).recipe.epochs * made.facts.pretrain_data[position].n_train
    return 0.0


def lines(made: Plan, jobs: tuple[Job, ...], timed: Timed) -> Iterator[str]:
    """For `plan`."""
    expected, started = estimate(made, jobs, timed), "the checkpoint" if timed.from_checkpoint else "random weights"
    yield (
        f"measured: {timed.step_seconds:.3g} s a step of {timed.batch} images ({timed.steps} steps from {started}), "
        f"{1 / timed.evaluation_seconds:,.0f} images/s in evaluation, on {one_line(timed.device, 60)}"
    )
    yield (
        f"estimate: {expected.training + expected.evaluation:.2g} hours of one worker: {expected.training:.2g} "
        f"training, {expected.evaluation:.2g} predictions, paths and soups; tables and waiting are not in it"
    )
    if timed.diverged and timed.from_checkpoint:
        yield (
            f"note: these steps diverge ({timed.diverged}), as the hub will; take a lower recipe.lr, such as "
            "raybasin lr-range finds"
        )
