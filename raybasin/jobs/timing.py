"""How long a sweep will take, before anything of it is trained: a few real steps are timed, and an evaluation.

What a plan's jobs cost is known in images that pass through the network (`Job.cost`); how long one takes is measured,
and where workers decode images over and over, how long that takes, too.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from raybasin.data import dataset, decoding
from raybasin.data.dataset import DataSet, Images, Selection
from raybasin.data.stored import EncodedSplit
from raybasin.errors import UserError, duration, is_out_of_memory, one_line
from raybasin.jobs import allocator, threads, train_members
from raybasin.jobs.local import Situation
from raybasin.jobs.prepare import Prepared
from raybasin.jobs.worker_context import WorkerContext
from raybasin.store.provenance import describe
from raybasin.sweep.job_list import Job, Pretraining, Retraining, Training
from raybasin.sweep.plan import Plan
from raybasin.sweep.settings import position_of, pretrain_of
from raybasin.sweep.specs import SweepSpec, Workers
from raybasin.training import evaluation, loop, models

STEPS = 30
"""So many are made, in `MOST_SECONDS` if they are slow, but `LEAST` of them."""
MOST_SECONDS = 30.0
LEAST = 3
FIRST = 12
"""Steps that are not counted, or half of what was made: they choose algorithms, and are recorded on a GPU."""
IMAGES = 512
"""In the evaluation, at most, and of larger sets in training, at least."""
DECODED = 256
"""So many are decoded one after another, in `DECODE_SECONDS` if they are slow, but `LEAST` of them."""
DECODE_SECONDS = 5.0


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
        decode_seconds: of decoding one stored training image on one core, to the size that it is kept in; None where
            images are stored as pixels.
        decoders: threads by which a worker decodes its images over and over; 0 where they are decoded once, or not at
            all.
        trained_at_once: whether it decodes while it trains, as beside a GPU, and not in turn.
        by_threads: what was measured to choose `workers.cpus: auto`, where it was asked for.
        compile_seconds: of the first step, where the network is compiled.
    """

    step_seconds: float
    batch: int
    steps: int
    train_seconds: float
    evaluation_seconds: float
    device: str
    from_checkpoint: bool
    diverged: str = ""
    decode_seconds: float | None = None
    decoders: int = 0
    trained_at_once: bool = False
    by_threads: tuple[threads.Trial, ...] = ()
    compile_seconds: float | None = None

    def fed(self, seconds: float) -> float:
        """Seconds that an image takes which takes so many once it is decoded."""
        if not self.decoders or self.decode_seconds is None:
            return seconds
        decoding_ = self.decode_seconds / self.decoders
        return max(seconds, decoding_) if self.trained_at_once else seconds + decoding_


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
        if not images:  # a step that is not done yet
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.ends.append(time.monotonic())
        self.images.append(images)
        if len(self.ends) >= LEAST and self.ends[-1] - self.ends[0] > MOST_SECONDS:
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


@allocator.freed_memory_kept()
def measure(prepared: Prepared, situation: Situation, device: torch.device) -> Timed:
    """Trains the hub's network a few steps at its real batch, up to its highest rate, and evaluates it, with as many
    threads as a worker has; nothing is stored. Of images that workers do not have in memory some are decoded
    beforehand, and decoding is timed by itself. Raises UserError for an image that cannot be decoded."""
    assert prepared.target is not None
    made = prepared.plan
    kind = kind_on(made.spec, device)
    trials: tuple[threads.Trial, ...] = ()
    if kind.cpus == "auto":
        trials = threads.measure(made.settings, os.cpu_count() or 1, kind.count)
        kind = kind.model_copy(update={"cpus": float(threads.fastest(trials))})
    context = WorkerContext(situation.folder, made.settings, _shown(prepared), {}, device)
    with _computing_with(kind.threads):
        return replace(_measured(prepared, context, device), by_threads=trials)


def _measured(prepared: Prepared, context: WorkerContext, device: torch.device) -> Timed:
    made, target = prepared.plan, prepared.target
    assert target is not None
    spec, facts = made.spec, made.facts
    content = prepared.weights.get(facts.checkpoints[0].key)
    if content is not None:
        net = models.with_new_head(
            spec.model, models.from_bytes(content), facts.data.n_classes, 0, spec.recipe.drop_path
        )
    else:
        net = models.build(spec.model, facts.data.n_classes, 0, spec.recipe.drop_path)
    net = context.placed(net)
    watch, diverged = _steps(net, context, device)
    seconds, images, steps = watch.counted()
    over_and_over = dataset.decoded_by(target) == "workers"
    return Timed(
        step_seconds=seconds / steps,
        batch=round(images / steps),
        steps=steps,
        train_seconds=seconds / images,
        evaluation_seconds=_evaluation_seconds(net, context),
        device=describe(device),
        from_checkpoint=content is not None,
        diverged=diverged,
        decode_seconds=_decode_seconds(target.train),
        decoders=decoding.threads_beside(device) if over_and_over else 0,
        trained_at_once=device.type == "cuda",
        compile_seconds=watch.ends[0] - watch.began if spec.recipe.compile else None,
    )


def _steps(net: torch.nn.Module, context: WorkerContext, device: torch.device) -> tuple[_Watch, str]:
    """Trains `net` some steps; gives when they ended, and, where they have led to no number, what was raised."""
    spec, facts = context.settings.spec, context.settings.facts
    watch = _Watch(device, time.monotonic())
    # A batch that is not full is compiled for itself, in the middle of what is counted.
    recipe = spec.recipe.model_copy(update={"drop_last": True}) if spec.recipe.compile else spec.recipe
    cycle = loop.Cycle(
        recipe, spec.data.augment, STEPS, spec.recipe.lr, spec.seed, warm_up=True, n_classes=facts.data.n_classes,
        cuda_graphs=train_members.recorded(spec.recipe, context.settings),
    )  # fmt: skip
    try:
        loop.train(net, *context.train, cycle, context.preprocess, beat=watch.beat)
    except _EnoughError:
        pass
    except loop.Diverged as error:
        return watch, one_line(str(error))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"--measure: there is not enough memory for steps of {spec.recipe.batch_size} images on "
            f"{describe(device)}; take a smaller recipe.batch_size"
        ) from error
    return watch, ""


def kind_on(spec: SweepSpec, device: torch.device) -> Workers:
    """The first kind of workers that compute on such a device; where there is none, the first of all."""
    return next((kind for kind in spec.kinds if (kind.gpus > 0) == (device.type == "cuda")), spec.kinds[0])


@contextlib.contextmanager
def _computing_with(count: int) -> Iterator[None]:
    """So many threads compute within."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _shown(prepared: Prepared) -> DataSet:
    """What is trained and evaluated on: all images where workers have them in memory, else some of them."""
    target = prepared.target
    assert target is not None
    if dataset.decoded_by(target) == "arrays":
        return dataset.decode(target)
    batch = prepared.plan.spec.recipe.batch_size
    train, val = _some(target.train, batch * math.ceil(IMAGES / batch)), _some(target.val, IMAGES)
    fingerprint = target.train.audit.fingerprint
    return DataSet(_decoded(train), _decoded(val), _decoded(val), target.classes, fingerprint, fingerprint)


def _decoded(chosen: Selection) -> Images:
    return Images(dataset.pixels(chosen), chosen.labels_n)


def _some(chosen: Selection, count: int) -> Selection:
    """So many of the images, or all: spread over a folder, whose classes may have images of other sizes; of Parquet,
    which is read by many rows at a time, the first ones."""
    last = len(chosen) - 1
    assert isinstance(chosen.split, EncodedSplit)
    spread = np.linspace(0, last, min(count, len(chosen))).astype(np.int64)
    of_n = np.arange(len(spread)) if chosen.split.shards else spread
    return replace(chosen, index_n=chosen.index_n[of_n], labels_n=chosen.labels_n[of_n])


def _decode_seconds(chosen: Selection) -> float | None:
    """Of one image on one core, without its reading; None where none is encoded."""
    if not isinstance(chosen.split, EncodedSplit):
        return None
    stored = dataset.stored_images(_some(chosen, DECODED))
    encoded = [*stored.split.read(stored.index_n)]
    began, seconds, done = time.monotonic(), 0.0, 0
    for position, content in enumerate(encoded):
        stored.decoded(position, content)
        seconds, done = time.monotonic() - began, position + 1
        if done >= LEAST and seconds > DECODE_SECONDS:
            break
    return seconds / done


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
    train_seconds, evaluation_seconds = timed.fed(timed.train_seconds), timed.fed(timed.evaluation_seconds)
    return Estimate(trained * train_seconds / 3600, evaluated * evaluation_seconds / 3600)


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
    if timed.by_threads:
        yield threads.described(timed.by_threads)
    expected, started = estimate(made, jobs, timed), "the checkpoint" if timed.from_checkpoint else "random weights"
    training, evaluation = expected.training * 3600, expected.evaluation * 3600
    yield (
        f"measured: {timed.step_seconds:.3g} s a step of {timed.batch} images ({timed.steps} steps from {started}), "
        f"{1 / timed.evaluation_seconds:,.0f} images/s in evaluation, on {one_line(timed.device, 60)}"
    )
    yield (
        f"estimate: {duration(training + evaluation)} of one worker: training {duration(training)}, predictions, paths "
        f"and soups {duration(evaluation)}; tables and waiting are not in it"
    )
    yield from _decoding_lines(made, timed)
    if timed.compile_seconds is not None:
        yield (
            f"compiling: {timed.compile_seconds:.0f} s, once in each worker (less where its machine has done it "
            "before), and again for a last batch that is not full and for head_epochs; not in the estimate"
        )
    if timed.diverged and timed.from_checkpoint:
        yield (
            f"note: these steps diverge ({timed.diverged}), as the hub will; take a lower recipe.lr, such as "
            "raybasin lr-range finds"
        )


def _decoding_lines(made: Plan, timed: Timed) -> Iterator[str]:
    """How fast images are decoded, and whether that is fast enough for the training."""
    if timed.decode_seconds is None:
        return
    core, trained = 1 / timed.decode_seconds, 1 / timed.train_seconds
    speed = f"decoding: {core:,.0f} images/s of one core"
    if not timed.decoders:
        data = made.facts.data
        seconds = math.ceil((data.n_train + data.n_val + data.n_test) * timed.decode_seconds)
        yield f"{speed}, each once: {duration(seconds)} of one core at most"
        return
    fed = timed.decoders * core
    by = "1 thread" if timed.decoders == 1 else f"{timed.decoders} threads"
    yield f"{speed}, each image whenever it is needed; a worker decodes {fed:,.0f} by {by}, and trains {trained:,.0f}"
    if fed < trained:
        more = f"workers.cpus: {math.ceil(trained / core) + 1} or " if timed.trained_at_once else ""
        yield (
            f"note: training would starve: {trained / fed:.1f} times as many images are trained as are decoded in the "
            f"same time; {more}data.decode: cache, which decodes each image once, would feed it"
        )
