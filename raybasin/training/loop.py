"""One training run: a cycle, a hub or a pre-training, resumable at every epoch.

Nothing in a step waits on the host: images lie on the device as uint8 and are augmented there, what is random in an
epoch is drawn at its start from a seed of that epoch alone, and losses are summed on the device. So a run resumed
from the end of any epoch goes on exactly as if it had not been interrupted, with no generator state to keep.

Tensors: N images, B batch, C classes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import Tensor, nn

from raybasin.data.decoding import DeviceImages
from raybasin.store import checksum
from raybasin.sweep import schedules
from raybasin.sweep.facts import Preprocess
from raybasin.sweep.ids import random_seed
from raybasin.sweep.specs import Recipe
from raybasin.training import augment, averaging, compiling, cuda_graphs, frozen, models, optimizers
from raybasin.training.callbacks import StepCallback

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Diverged(RuntimeError):
    """The training loss, or a weight, is no longer a finite number."""


Watch = Mapping[int, Callable[[nn.Module], None]]
"""What is shown the network after so many steps, in training mode. It must leave everything as it is."""


@dataclass(frozen=True)
class Cycle:
    """What is trained: `steps` batches at rates up to `max_lr`, `seed` for all that is random."""

    recipe: Recipe
    augment: tuple[str, ...]
    steps: int
    max_lr: float
    seed: int
    shape: schedules.Shape = "cosine"
    low_ratio: float = 0.01  # of a triangular schedule: its lowest rate as a share of `max_lr`
    warm_up: bool = False  # the recipe's: for runs that start from a checkpoint, not from a trained network
    n_classes: int = 0  # for mixed labels only
    cuda_graphs: bool = False  # whether steps on a GPU are recorded; not for networks whose steps differ
    head_steps: int = 0  # the first of `steps`, whole epochs: the head alone is trained, with an optimizer of its own
    heads: tuple[str, ...] = ()  # the modules that it is

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The rate of a step, counted from 0."""
        recipe = self.recipe
        if step < self.head_steps:
            peak = recipe.head_lr or self.max_lr
            return schedules.learning_rate(step, self.head_steps, steps_per_epoch, peak, recipe.schedule_by)
        step, steps = step - self.head_steps, self.steps - self.head_steps
        return schedules.learning_rate(
            step, steps, steps_per_epoch, self.max_lr, recipe.schedule_by, shape=self.shape,
            warmup=recipe.warmup if self.warm_up else 0.0, warmup_lr=recipe.warmup_lr, low_ratio=self.low_ratio,
        )  # fmt: skip


@dataclass(frozen=True)
class Epoch:
    """What was recorded of one: `lr` is the rate of its first step; loss (nats) and error (a share) are means over its
    images, in training mode."""

    epoch: int
    lr: float
    train_loss: float
    train_error: float


@dataclass(frozen=True)
class Trained:
    """What a run recorded: each of its epochs, and the seconds it took, interruptions left out."""

    epochs: tuple[Epoch, ...]
    train_seconds: float


@dataclass(frozen=True)
class Snapshot:
    """All that a run needs to go on after its last whole epoch."""

    tensors: models.State
    done: Trained


def train(
    net: nn.Module,
    images_NHWC: DeviceImages,
    labels_N: Tensor,
    cycle: Cycle,
    preprocess: Preprocess,
    resume: Snapshot | None = None,
    save: Callable[[Snapshot], None] | None = None,
    beat: Callable[[int], None] = lambda images: None,
    callback: StepCallback | None = None,
    watch: Watch | None = None,
) -> Trained:
    """Trains `net` in place, with a fresh optimizer. With `ema_decay` it ends with the averaged weights.

    Args:
        net: on the device of the images.
        images_NHWC: uint8 [N, H, W, 3].
        labels_N: int64 class indices [N], on the same device.
        cycle: what is trained.
        preprocess: how images are shown to the network.
        resume: where an earlier call with the same arguments was interrupted.
        save: is given a snapshot after an epoch when `checkpoint_seconds` have passed since the last.
        beat: is called at every step with the number of its images, and with 0 while one takes long.
        callback: what the method does at a step, beside the step.
        watch: sees the steps that this call makes, not those before `resume`.

    Raises:
        Diverged: if the training loss, or a weight at the end, is no finite number.
        UserError: for an image that is decoded only now and cannot be, or where `recipe.compile` is not possible.
    """
    recipe = cycle.recipe
    batches = schedules.batches(len(images_NHWC), recipe.batch_size, recipe.drop_last)
    n_epochs = math.ceil(cycle.steps / len(batches))
    device = images_NHWC.device
    run = _Run(net, callback or StepCallback(), images_NHWC, labels_N, cycle, preprocess, batches, beat, watch or {})
    graphs = cycle.cuda_graphs and cuda_graphs.fusible(net.parameters())
    epochs = list(resume.done.epochs) if resume else []
    seconds = resume.done.train_seconds if resume else 0.0
    head_epochs = cycle.head_steps // len(batches)
    saved = time.monotonic()
    with (
        numerics(recipe, device),
        run.recording() if graphs else run.compiled() if recipe.compile else contextlib.nullcontext(),
        run.part(head_only=head_epochs > 0 and len(epochs) <= head_epochs),  # that of the last epoch that was made
    ):
        if resume is not None:
            run.restore(resume.tensors)
        for epoch in range(len(epochs), n_epochs):
            if epoch == head_epochs > 0:
                run.begin(head_only=False)
            started = time.monotonic()
            epochs.append(run.epoch(epoch))
            seconds += time.monotonic() - started
            if save and epoch + 1 < n_epochs and time.monotonic() - saved >= recipe.checkpoint_seconds:
                save(Snapshot(run.tensors(), Trained(tuple(epochs), seconds)))
                saved = time.monotonic()
    if run.average is not None:
        net.load_state_dict(run.average.tensors)
    if not all(bool(parameter.isfinite().all()) for parameter in net.parameters()):  # the last step has done it
        raise Diverged(f"weights are not finite after the last step at max_lr {cycle.max_lr:g}")
    return Trained(tuple(epochs), seconds)


@dataclass
class _Run:
    """A run under way: what changes with every step, and what does not."""

    net: nn.Module
    callback: StepCallback
    images_NHWC: DeviceImages
    labels_N: Tensor
    cycle: Cycle
    preprocess: Preprocess
    batches: list[slice]
    beat: Callable[[int], None]
    watch: Watch
    record: cuda_graphs.Record | None = None
    """What records steps, where they are recorded."""
    steps: cuda_graphs.Recorder | None = None
    """Where steps are recorded and replayed."""
    forward: Callable[[Tensor], Tensor] = field(init=False)
    """`net`, or what it was compiled to."""
    optimizer: torch.optim.Optimizer = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    average: averaging.Average | None = None
    held: frozenset[str] = frozenset()
    """Parameters that are not trained now."""

    def __post_init__(self) -> None:
        self.forward = self.net

    @contextlib.contextmanager
    def compiled(self) -> Iterator[None]:
        """Steps are of the compiled network within."""
        with compiling.compiled(self.net, self.beat) as self.forward:
            yield

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Steps are recorded within, and what was recorded is dropped at its end, with the memory that it holds."""
        device = self.images_NHWC.device
        try:
            with cuda_graphs.own_stream(device):
                self.record = cuda_graphs.on_gpu(device)
                yield
        finally:
            self.record = self.steps = None

    @contextlib.contextmanager
    def part(self, head_only: bool) -> Iterator[None]:
        """Begins with the head alone, or with all that is trained; at the end all may be trained again."""
        try:
            self.begin(head_only)
            yield
        finally:
            frozen.release(self.net, self.held)

    def begin(self, head_only: bool) -> None:
        """A fresh optimizer, loss scale and average, of the head alone or of all that is trained: nothing is known of
        the steps before."""
        net, cycle, recipe = self.net, self.cycle, self.cycle.recipe
        frozen.release(net, self.held)
        self.held = frozen.hold(net, frozen.all_but(cycle.heads) if head_only else frozen.by_patterns(recipe.freeze))
        self.optimizer = optimizers.make(net, recipe, cycle.max_lr, self.held)
        self.scaler = torch.amp.GradScaler(self.images_NHWC.device.type, enabled=recipe.precision == "fp16")
        self.average = None
        if recipe.ema_decay is not None and not head_only:
            self.average = averaging.of(net, recipe.ema_decay, recipe.ema_warmup)
        if self.record is not None:  # what was recorded is of other parameters
            self.steps = cuda_graphs.Recorder(
                self.gradients, self.update, list(net.parameters()), self.record, recipe.optimizer in optimizers.OWN
            )

    def epoch(self, epoch: int) -> Epoch:
        """Trains one epoch, or what the cycle's length leaves of it."""
        cycle, device = self.cycle, self.images_NHWC.device
        n, height, width, _ = self.images_NHWC.shape
        generator = torch.Generator().manual_seed(random_seed(cycle.seed, epoch, "data"))
        torch.manual_seed(random_seed(cycle.seed, epoch, "network"))  # dropout draws from the global generator
        draws = augment.draw_epoch(n, cycle.augment, height, width, self.preprocess, generator).to(device)
        loss_sum, wrong_sum = torch.zeros((), device=device), torch.zeros((), device=device)
        seen, first = 0, epoch * len(self.batches)
        with _mixing(cycle.recipe, cycle.n_classes, random_seed(cycle.seed, epoch, "mix")) as mix:
            for step, positions in enumerate(self.batches[: cycle.steps - first], start=first):
                images_BCHW, index_B = augment.training_batch(self.images_NHWC, draws, positions, self.preprocess)
                labels_B = self.labels_N[index_B]
                loss, logits_BC = self.step(step, images_BCHW, labels_B, mix)
                loss_sum += loss * len(labels_B)
                wrong_sum += (logits_BC.argmax(1) != labels_B).sum()
                seen += len(labels_B)
                self.beat(len(labels_B))
                if step + 1 in self.watch:
                    with averaging.shown(self.net, self.average):
                        self.watch[step + 1](self.net)
        mean_loss = float(loss_sum) / seen
        if not math.isfinite(mean_loss):
            raise Diverged(f"training loss is {mean_loss} in epoch {epoch} at max_lr {cycle.max_lr:g}")
        return Epoch(epoch, cycle.learning_rate(first, len(self.batches)), mean_loss, float(wrong_sum) / seen)

    def step(self, step: int, images_BCHW: Tensor, labels_B: Tensor, mix: Mixup | None) -> tuple[Tensor, Tensor]:
        """One step of the optimizer; the loss and the logits it was made with, detached. The next step may write over
        them."""
        rate = self.cycle.learning_rate(step, len(self.batches))
        optimizers.set_rate(self.optimizer, rate)
        images_BCHW, target_B = mix(images_BCHW, labels_B) if mix is not None else (images_BCHW, labels_B)
        done_by = self.steps or self
        loss, logits_BC = done_by.gradients(images_BCHW, target_B)
        self.callback.before_step(self.net, step, rate)
        done_by.update()
        self.callback.after_step(self.net, step + 1)
        if self.average is not None:
            self.average.update(self.net, step + 1 - self.cycle.head_steps)
        return loss, logits_BC

    def gradients(self, images_BCHW: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the logits, detached; the gradients lie with the parameters."""
        net, recipe = self.net, self.cycle.recipe
        low_precision = AUTOCAST.get(recipe.precision)
        with torch.autocast(images_BCHW.device.type, low_precision, enabled=low_precision is not None):
            logits_BC = self.forward(images_BCHW.contiguous(memory_format=torch.channels_last))
        smoothing = 0.0 if recipe.mixes else recipe.label_smoothing  # mixed targets are smoothed already
        loss = nn.functional.cross_entropy(logits_BC.float(), target_B, label_smoothing=smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        if recipe.grad_clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), recipe.grad_clip)
        return loss.detach(), logits_BC.detach()

    def update(self) -> None:
        """The optimizer's part of a step."""
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def tensors(self) -> models.State:
        """What changes with every step, copied; the names say whose each tensor is."""
        tensors = {f"net.{key}": tensor for key, tensor in models.state_of(self.net).items()}
        tensors |= optimizers.tensors(self.optimizer)
        if self.average is not None:
            tensors |= {f"ema.{name}": optimizers.kept(tensor) for name, tensor in self.average.tensors.items()}
        tensors |= {f"scaler.{name}": torch.tensor(value) for name, value in self.scaler.state_dict().items()}
        return tensors | {f"callback.{name}": tensor for name, tensor in self.callback.tensors().items()}

    def restore(self, tensors: models.State) -> None:
        """Goes on from what `tensors` gave in an earlier process."""
        parts = models.by_prefix(tensors)
        self.net.load_state_dict(parts["net"])
        optimizers.restore(self.optimizer, parts)
        if self.average is not None:
            self.average.restore(parts["ema"])
        if "scaler" in parts:
            self.scaler.load_state_dict({name: tensor.item() for name, tensor in parts["scaler"].items()})
        if "callback" in parts:
            self.callback.restore(parts["callback"])


@contextlib.contextmanager
def _mixing(recipe: Recipe, n_classes: int, seed: int) -> Iterator[Mixup | None]:
    """timm's mixup and cutmix, if the recipe has them. They draw from numpy's global generator, which is put back."""
    if not recipe.mixes:
        yield None
        return
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield Mixup(
            mixup_alpha=recipe.mixup, cutmix_alpha=recipe.cutmix, prob=recipe.mix_prob,
            switch_prob=recipe.mix_switch_prob, mode="batch", label_smoothing=recipe.label_smoothing,
            num_classes=n_classes,
        )  # fmt: skip
    finally:
        np.random.set_state(before)


@contextlib.contextmanager
def numerics(recipe: Recipe, device: torch.device) -> Iterator[None]:
    """Float32 means float32: TF32 only where the recipe says so. What is set is put back."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, conv.allow_tf32, conv.deterministic, conv.benchmark
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    matmul.allow_tf32 = conv.allow_tf32 = recipe.precision == "tf32"
    conv.deterministic, conv.benchmark = recipe.deterministic, not recipe.deterministic
    if recipe.deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        matmul.allow_tf32, conv.allow_tf32, conv.deterministic, conv.benchmark = before
        torch.use_deterministic_algorithms(was_deterministic)


def float32(recipe: Recipe, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The precision of every score, whatever the recipe trains in; as deterministic as the recipe."""
    return numerics(recipe.model_copy(update={"precision": "fp32"}), device)


def snapshot_to_bytes(snapshot: Snapshot) -> bytes:
    """One safetensors file with a checksum of itself, so that it is there whole or not at all."""
    metadata = {"done": json.dumps(asdict(snapshot.done))}
    digest = checksum.digest(models.to_bytes(snapshot.tensors, metadata))
    return models.to_bytes(snapshot.tensors, {**metadata, checksum.KEY: digest})


def snapshot_from_bytes(content: bytes) -> Snapshot:
    """Raises ValueError where `content` is not, to the bit, what `snapshot_to_bytes` made."""
    checksum.check(content)
    metadata, _, _ = checksum.header(content)
    return Snapshot(models.from_bytes(content), trained_from_dict(json.loads(metadata["done"])))


def trained_from_dict(tree: dict[str, Any]) -> Trained:
    """What `dataclasses.asdict` made of it, as it comes back from JSON."""
    return Trained(tuple(Epoch(**epoch) for epoch in tree["epochs"]), float(tree["train_seconds"]))
