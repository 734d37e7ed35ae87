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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from raybasin import augment, models, schedules
from raybasin.augment import Preprocess
from raybasin.specs import Recipe, random_seed


class Diverged(RuntimeError):
    """The training loss is no longer a finite number."""


@dataclass(frozen=True)
class Cycle:
    """What is trained: `steps` batches with a learning rate from `max_lr` down, `seed` for all that is random."""

    recipe: Recipe
    augment: tuple[str, ...]
    steps: int
    max_lr: float
    seed: int


@dataclass(frozen=True)
class Epoch:
    """`lr` is the rate of the epoch's first step; loss (nats) and error are means over its images, in training mode."""

    epoch: int
    lr: float
    train_loss: float
    train_error: float


@dataclass(frozen=True)
class Trained:
    epochs: tuple[Epoch, ...]
    train_seconds: float


@dataclass(frozen=True)
class Snapshot:
    """All that a run needs to go on after its last whole epoch."""

    tensors: models.State
    done: Trained


def train(
    net: nn.Module,
    images_NHWC: Tensor,
    labels_N: Tensor,
    cycle: Cycle,
    preprocess: Preprocess,
    resume: Snapshot | None = None,
    save: Callable[[Snapshot], None] | None = None,
    beat: Callable[[], None] = lambda: None,
) -> Trained:
    """Trains `net` in place, on the device of `images_NHWC` (uint8), where the network must be too.

    `save` is given a snapshot after an epoch when `checkpoint_seconds` have passed since the last; `beat` is called at
    every step. Raises Diverged.
    """
    recipe = cycle.recipe
    batches = schedules.batches(len(images_NHWC), recipe.batch_size)
    n_epochs = math.ceil(cycle.steps / len(batches))
    optimizer = _optimizer(net, recipe)
    epochs: list[Epoch] = []
    seconds = 0.0
    if resume is not None:
        _restore(net, optimizer, resume)
        epochs, seconds = list(resume.done.epochs), resume.done.train_seconds
    net.train()
    saved = time.monotonic()
    with numerics(recipe, images_NHWC.device):
        for epoch in range(len(epochs), n_epochs):
            started = time.monotonic()
            epochs.append(_epoch(net, optimizer, images_NHWC, labels_N, cycle, preprocess, batches, epoch, beat))
            seconds += time.monotonic() - started
            if save and epoch + 1 < n_epochs and time.monotonic() - saved >= recipe.checkpoint_seconds:
                save(Snapshot(_tensors(net, optimizer), Trained(tuple(epochs), seconds)))
                saved = time.monotonic()
    return Trained(tuple(epochs), seconds)


def _epoch(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    images_NHWC: Tensor,
    labels_N: Tensor,
    cycle: Cycle,
    preprocess: Preprocess,
    batches: list[slice],
    epoch: int,
    beat: Callable[[], None],
) -> Epoch:
    n, height, width, _ = images_NHWC.shape
    device, recipe = images_NHWC.device, cycle.recipe
    generator = torch.Generator(device).manual_seed(random_seed(cycle.seed, epoch, "data"))
    torch.manual_seed(random_seed(cycle.seed, epoch, "network"))  # dropout draws from the global generator
    draws = augment.draw_epoch(n, cycle.augment, height, width, preprocess, generator)
    loss_sum = torch.zeros((), device=device)
    wrong_sum = torch.zeros((), device=device)
    seen = 0
    first = epoch * len(batches)
    for step, positions in enumerate(batches[: cycle.steps - first], start=first):
        rate = schedules.learning_rate(step, cycle.steps, len(batches), cycle.max_lr, recipe.schedule_by)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images_BCHW, index_B = augment.training_batch(images_NHWC, draws, positions, preprocess)
        labels_B = labels_N[index_B]
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            logits_BC = net(images_BCHW.contiguous(memory_format=torch.channels_last))
        loss = nn.functional.cross_entropy(logits_BC.float(), labels_B)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach() * len(labels_B)
        wrong_sum += (logits_BC.detach().argmax(1) != labels_B).sum()
        seen += len(labels_B)
        beat()
    mean_loss = float(loss_sum) / seen
    if not math.isfinite(mean_loss):
        raise Diverged(f"training loss is {mean_loss} in epoch {epoch} at max_lr {cycle.max_lr:g}")
    lr = schedules.learning_rate(first, cycle.steps, len(batches), cycle.max_lr, recipe.schedule_by)
    return Epoch(epoch, lr, mean_loss, float(wrong_sum) / seen)


def _optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        net.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )


# Precision


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


# Snapshots: one safetensors file, so that it is there whole or not at all


def _tensors(net: nn.Module, optimizer: torch.optim.Optimizer) -> models.State:
    tensors = {f"net.{key}": tensor for key, tensor in models.state_of(net).items()}
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            if value is not None:
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value).detach().to("cpu", copy=True).contiguous()
    return tensors


def _restore(net: nn.Module, optimizer: torch.optim.Optimizer, snapshot: Snapshot) -> None:
    states: dict[int, dict[str, Tensor]] = {}
    weights: models.State = {}
    for key, tensor in snapshot.tensors.items():
        owner, _, name = key.partition(".")
        if owner == "net":
            weights[name] = tensor
        else:
            index, _, moment = name.partition(".")
            states.setdefault(int(index), {})[moment] = tensor
    net.load_state_dict(weights)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def snapshot_to_bytes(snapshot: Snapshot) -> bytes:
    return models.to_bytes(snapshot.tensors, {"done": json.dumps(asdict(snapshot.done))})


def snapshot_from_bytes(content: bytes) -> Snapshot:
    header_size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + header_size])["__metadata__"]
    return Snapshot(models.from_bytes(content), trained_from_dict(json.loads(metadata["done"])))


def trained_from_dict(tree: dict[str, object]) -> Trained:
    epochs = tuple(Epoch(**epoch) for epoch in tree["epochs"])  # type: ignore[attr-defined]
    return Trained(epochs, float(tree["train_seconds"]))  # type: ignore[arg-type]
