"""How long the same cells take in the way of the method's authors, and what each difference gives alone.

    python benchmarks/authors_way.py DATA CHECKPOINT [--lr-ratios 1 4 8 16] [--cycle-ratios 1] [--epochs 8] [--runs 1]

The authors' way (the code released with the paper: docs/method.md#differences-from-the-authors-code) is written here
anew: for each point of the grid a hub of its own, branches one after another in one process, images one by one through
float32 transforms in the worker processes of a DataLoader, norms of all gradients after each step, validation in the
first and in the last epoch, predictions on validation and test at the end. The released code measures no paths and
makes no soups, without which there is no map of where members leave the basin: here both are added in the same way,
each point of a path by `swa_utils.update_bn` and a pass over a DataLoader, for the paths and the uniform soup that
`raybasin sweep` has. Both train with the same recipe on the same images of CIFAR-10 (DATA: a folder that holds it in
one of the layouts), so often in turns as `--runs` says.

Prints what the parts give, each by itself (the shared hub and the shared first cycle in epochs, the data path and the
concurrency in images per second), then the wall time of both to the whole map, start included, what of the authors' way
the released code does, and training alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context

import pandas as pd
import torch
import torchvision.transforms as T
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from raybasin.data import dataset
from raybasin.data.dataset import DataSet, Images
from raybasin.jobs import prepare
from raybasin.landscape import interpolation
from raybasin.store.provenance import versions
from raybasin.sweep import specs
from raybasin.sweep.facts import Preprocess
from raybasin.sweep.specs import Recipe, SweepSpec
from raybasin.training import loop, models, pretrained

SWEEP = "cifar10-cpu"
SPEED_EPOCHS = 2
MEMBERS = 5


class Transformed(Dataset[tuple[Tensor, int]]):
    """Images as float32 tensors, each of which goes through the transforms when it is asked for."""

    def __init__(self, images: Images, shown: Preprocess, train: bool) -> None:
        pixels_NHWC = torch.as_tensor(images.images_NHWC)
        self.images = list(pixels_NHWC.permute(0, 3, 1, 2).float().div(255))
        self.labels = images.labels_N.tolist()
        side = self.images[0].shape[-1]
        moved = [T.RandomCrop(side, padding=side // 8), T.RandomHorizontalFlip()] if train else []
        self.transform = T.Compose(
            [*moved, T.Resize(shown.image_size, antialias=False), T.Normalize(shown.mean, shown.std)]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def loader(
    images: Images, shown: Preprocess, batch: int, train: bool, count: int | None = None
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches of the images, or of the first `count` of them."""
    chosen = Subset(Transformed(images, shown, train), range(len(images))[:count])
    return DataLoader(chosen, batch, shuffle=train, num_workers=os.cpu_count() or 1)  # type: ignore[arg-type]


def trained_epochs(net: nn.Module, batches: DataLoader[tuple[Tensor, Tensor]], recipe: Recipe, lr: float, epochs: int
                   ) -> Iterator[int]:  # fmt: skip
    """Trains an epoch for each item that is asked for: cosine by epochs, and all that is logged at a step."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr, recipe.momentum, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        seen = 0
        for images_BCHW, labels_B in batches:
            loss = nn.functional.cross_entropy(net(images_BCHW), labels_B)
            optimizer.zero_grad()
            loss.backward()
            norm = sum(float(p.grad.norm()) ** 2 for p in net.parameters() if p.grad is not None)
            optimizer.step()
            seen += len(labels_B)
            if not (loss.item() >= 0 and norm >= 0):
                raise FloatingPointError("the loss is no number")
        schedule.step()
        yield seen


@torch.no_grad()
def predicted(net: nn.Module, batches: DataLoader[tuple[Tensor, Tensor]]) -> Tensor:
    net.eval()
    found = torch.cat([net(images_BCHW).softmax(1) for images_BCHW, _ in batches])
    net.train()
    return found


def measured(net: nn.Module, networks: Sequence[models.State], points: int,
             bn: DataLoader[tuple[Tensor, Tensor]], val: DataLoader[tuple[Tensor, Tensor]],
             test: DataLoader[tuple[Tensor, Tensor]]) -> None:  # fmt: skip
    """Paths from the hub to each member and from each member to the next on validation images; the uniform soup."""

    def evaluated(state: models.State, *loaders: DataLoader[tuple[Tensor, Tensor]]) -> None:
        net.load_state_dict(state)
        torch.optim.swa_utils.update_bn(bn, net)
        for batches in loaders:
            predicted(net, batches)

    hub, *members = networks
    for start, end in [*((hub, member) for member in members), *pairwise(members)]:
        for position in range(points):
            evaluated(interpolation.interpolate(start, end, position / (points - 1)), val)
    evaluated(interpolation.average(networks), val, test)


def authors_map(spec: SweepSpec, data: DataSet, shown: Preprocess, start: models.State) -> tuple[float, float, float]:
    """(seconds for all points of `star_sse`, one after another; of these without paths and soups; of these in training,
    with its validation)"""
    began, recipe, method = time.perf_counter(), spec.recipe, spec.methods["star_sse"]
    training = paths = 0.0
    train, val, test = (
        loader(images, shown, recipe.batch_size, images is data.train) for images in (data.train, data.val, data.test)
    )
    bn = loader(data.train, shown, recipe.batch_size, train=False, count=spec.basin.bn_images)

    def train_once(net: nn.Module, lr: float, epochs: int) -> None:
        nonlocal training
        since = time.perf_counter()
        for epoch, _ in enumerate(trained_epochs(net, train, recipe, lr, epochs)):
            if epoch in (0, epochs - 1):
                predicted(net, val)
        training += time.perf_counter() - since

    for lr_ratio in method.lr_ratio:
        for cycle_ratio in method.cycle_ratio:
            hub = models.with_new_head(spec.model, start, len(data.classes.kept), 0)
            train_once(hub, recipe.lr, recipe.epochs)
            networks = [models.state_of(hub)]
            for _ in range(method.n_members - 1):
                hub.load_state_dict(networks[0])
                train_once(hub, recipe.lr * lr_ratio, round(recipe.epochs * cycle_ratio))
                networks.append(models.state_of(hub))
            for state in networks:
                hub.load_state_dict(state)
                for batches in (val, test):
                    predicted(hub, batches)
            since = time.perf_counter()
            measured(hub, networks, spec.basin.points, bn, val, test)
            paths += time.perf_counter() - since
    seconds = time.perf_counter() - began
    return seconds, seconds - paths, training


def raybasin_map(sweep: str, settings: Sequence[str], data: str, checkpoint: str) -> tuple[float, float, float]:
    """(wall seconds of `raybasin sweep`, all included; the same; of these in training, over its workers)"""
    with tempfile.TemporaryDirectory() as results:
        sets = [argument for one in settings for argument in ("--set", one)]
        command = [sys.executable, "-m", "raybasin", "sweep", sweep, "--results", results, "--data", data,
                   "--checkpoint", checkpoint, *sets]  # fmt: skip
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - began
        members = pd.read_parquet(f"{results}/members")
        return seconds, seconds, float(members["train_seconds"].sum()) / (os.cpu_count() or 1)


def own_speed(spec: SweepSpec, data: DataSet, shown: Preprocess, threads: int) -> float:
    """Images per second of raybasin's loop in this process."""
    torch.set_num_threads(threads)
    net = models.build(spec.model, len(data.classes.kept), 0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images_NHWC, labels_N = torch.as_tensor(data.train.images_NHWC), torch.as_tensor(data.train.labels_N)
    steps = -(-len(labels_N) // spec.recipe.batch_size) * SPEED_EPOCHS
    cycle = loop.Cycle(spec.recipe, spec.data.augment, steps, spec.recipe.lr, 0, n_classes=len(data.classes.kept))
    done = loop.train(net, images_NHWC, labels_N, cycle, shown)
    return SPEED_EPOCHS * len(labels_N) / done.train_seconds


def authors_speed(spec: SweepSpec, data: DataSet, shown: Preprocess) -> float:
    """Images per second of the authors' loop, with all threads and as many DataLoader processes."""
    torch.set_num_threads(os.cpu_count() or 1)
    net = models.build(spec.model, len(data.classes.kept), 0)
    batches = loader(data.train, shown, spec.recipe.batch_size, train=True)
    began = time.perf_counter()
    seen = sum(trained_epochs(net, batches, spec.recipe, spec.recipe.lr, SPEED_EPOCHS))
    return seen / (time.perf_counter() - began)


def epochs_of(spec: SweepSpec) -> tuple[float, float]:
    """(in the authors' way, with one hub for all points)"""
    method, recipe = spec.methods["star_sse"], spec.recipe
    cycles = [recipe.epochs * ratio * (method.n_members - 1) for ratio in method.cycle_ratio for _ in method.lr_ratio]
    return sum(cycles) + recipe.epochs * len(cycles), sum(cycles) + recipe.epochs


def shared_cycle(spec: SweepSpec) -> float:
    """Epochs of SSE beside StarSSE at the same points over those that are left where the first cycle is shared."""
    members = spec.methods["star_sse"].n_members - 1
    return 2 * members / (2 * members - 1)


def told(name: str, values: Sequence[float], unit: str = "") -> None:
    spread = f" ({min(values):.3g}-{max(values):.3g})" if len(values) > 1 else ""
    print(f"{name}: {statistics.median(values):.3g}{spread}{unit}, n={len(values)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("checkpoint")
    parser.add_argument("--lr-ratios", type=float, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--cycle-ratios", type=float, nargs="+", default=[1])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=1000, help="of training")
    parser.add_argument("--runs", type=int, default=1)
    asked = parser.parse_args()
    points = {"n_members": MEMBERS, "lr_ratio": asked.lr_ratios, "cycle_ratio": asked.cycle_ratios}
    settings = [f"methods={{star_sse: {points}}}", "replicates=1", f"recipe.epochs={asked.epochs}",
                f"data.train_images={asked.images}"]  # fmt: skip
    given = specs.load(SWEEP, settings, asked.data, [asked.checkpoint])
    prepared = prepare.prepare(given)
    spec, shown = prepared.plan.spec, prepared.plan.facts.preprocess
    data = dataset.load(spec.data)
    start = pretrained.load_body(asked.checkpoint, spec.model).state
    cores = os.cpu_count() or 1
    print(f"{cores} cores, {platform.processor() or platform.machine()}, load {os.getloadavg()[0]:.1f}; {versions()}")

    whole, shared = epochs_of(spec)
    print(f"shared hub: {whole:g} epochs / {shared:g} = {whole / shared:.2f}")
    print(f"shared first cycle, where SSE stands beside StarSSE: {shared_cycle(spec):.2f} of the cycles' epochs")
    path, together = [], []
    with ProcessPoolExecutor(cores, get_context("spawn")) as workers:
        for _ in range(max(3, asked.runs)):
            alone = own_speed(spec, data, shown, cores)
            path.append(alone / authors_speed(spec, data, shown))
            asks = [workers.submit(own_speed, spec, data, shown, 1) for _ in range(cores)]
            together.append(sum(ask.result() for ask in asks) / alone)
    told("data path and loop, images/s in one process of all threads over the authors'", path)
    told(f"concurrency, images/s of {cores} processes of one thread over one of all threads", together)

    torch.set_num_threads(cores)
    theirs, ours = [], []
    for _ in range(asked.runs):
        theirs.append(authors_map(spec, data, shown, start))
        ours.append(raybasin_map(SWEEP, settings, asked.data, asked.checkpoint))
    parts = ("to the whole map", "without paths and soups in the authors' way", "training alone")
    for part, what in enumerate(parts):
        a, b = [run[part] for run in theirs], [run[part] for run in ours]
        told(f"{what}, in the authors' way", a, " s")
        told(f"{what}, by raybasin sweep", b, " s")
        told(f"{what}, authors' way / raybasin", [one / other for one, other in zip(a, b, strict=True)])


if __name__ == "__main__":
    main()
