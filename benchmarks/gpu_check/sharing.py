"""Several processes on one device, and the way in which the method's authors trained."""

from __future__ import annotations

import io
import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np
import throughput
import torch
import torchvision.transforms as T
from PIL import Image
from rows import Ask, Notes, synchronize
from torch import nn
from torch.utils.data import DataLoader, Dataset

from raybasin.training import loop

COUNTS = (1, 2, 4)
SECONDS = 3.0
START_SECONDS = 120.0


def workers(ask: Ask, notes: Notes) -> None:
    """1, 2 and 4 workers, each with raybasin's loop and a network of its own, as on a cluster."""
    loads = throughput.TOY if ask.toy else (throughput.LOADS[1],)
    for load in loads:
        alone = 0.0
        for count in COUNTS[:1] if ask.toy else COUNTS:
            what = f"{load}: {count} workers on one device"
            with notes.trying(what):
                found = at_once(ask, load, count)
                alone = alone or found
                notes.add(what, found, "images/s", said=f"{found / alone:.2f} of one")


def at_once(ask: Ask, load: throughput.Load, count: int) -> float:
    """Images per second of all together, each over the same stretch of time."""
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(count), spawn.SimpleQueue()
    seconds = 0.2 if ask.toy else SECONDS
    processes = [spawn.Process(target=work, args=(ask.device, load, seconds, barrier, results)) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(START_SECONDS)
        if any(process.exitcode != 0 for process in processes):
            raise RuntimeError(f"workers ended with {[process.exitcode for process in processes]}")
        return sum(results.get() for _ in processes)
    finally:
        for process in processes:
            process.kill()


def work(device: torch.device, load: throughput.Load, seconds: float, barrier: Barrier, results: Any) -> None:
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(0.95 / max(COUNTS))
    net = throughput.network(load.network, device)
    pixels_NHWC, labels_N = throughput.data(load, device)
    n_steps = len(labels_N) // load.batch
    n_steps *= 5
    cycle = loop.Cycle(throughput.recipe(load), throughput.AUGMENT, n_steps, 0.01, seed=1, cuda_graphs=True)

    def epoch() -> int:
        loop.train(net, pixels_NHWC, labels_N, cycle, throughput.shown(load.image_size))
        return n_steps * load.batch

    epoch()
    barrier.wait(START_SECONDS)
    began, seen = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        seen += epoch()
    results.put(seen / (time.perf_counter() - began))


# The authors' way: https://github.com/isadrtdinov/deep-ensembles-in-pretrain-basin (the paper's appendix)


class Decoded(Dataset[tuple[torch.Tensor, int]]):
    """Images one by one through torchvision's transforms, from pixels (CIFAR) or from JPEGs."""

    def __init__(self, size: int, count: int) -> None:
        rng = np.random.default_rng(0)
        self.count, self.jpeg = count, size >= 224
        stored = rng.integers(0, 256, (375, 500, 3) if self.jpeg else (32, 32, 3), dtype=np.uint8)
        content = io.BytesIO()
        Image.fromarray(stored).resize((500, 375) if self.jpeg else (32, 32)).save(content, "JPEG", quality=90)
        self.pixels, self.content = stored, content.getvalue()
        crop = [T.RandomResizedCrop(size)] if self.jpeg else [T.Resize(size), T.RandomCrop(size, padding=size // 8)]
        normalise = T.Normalize((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
        self.transform = T.Compose([*crop, T.RandomHorizontalFlip(), T.ToTensor(), normalise])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.open(io.BytesIO(self.content)).convert("RGB") if self.jpeg else Image.fromarray(self.pixels)
        return self.transform(image), index % throughput.CLASSES


def authors_way(ask: Ask, notes: Notes) -> None:
    """A DataLoader of eight processes, a transform for each image, float32, one branch after another."""
    sizes = (
        ((32, "test_resnet", 8),)
        if ask.toy
        else ((64, "test_resnet", 128), (64, "resnet18", 128), (224, "resnet50", 128))
    )
    for size, name, batch in sizes:
        what = f"{name} {size} px, batch {batch}, fp32: a loop as the method's authors have it"
        with notes.trying(what), throughput.strict("fp32"):
            net = throughput.network(name, ask.device, torch.contiguous_format).train()
            optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
            images = Decoded(size, 64 if ask.toy else 10**6)
            loader = DataLoader(
                images, batch, shuffle=True, drop_last=True, num_workers=0 if ask.toy else 8,
                pin_memory=ask.device.type == "cuda",
            )  # fmt: skip
            steps = train(net, optimizer, loader, ask.device)
            for _ in range(1 if ask.toy else 10):
                next(steps)
            synchronize(ask.device)
            began, seen, seconds = time.perf_counter(), 0, 0.1 if ask.toy else SECONDS
            for count in steps:
                seen += count
                if time.perf_counter() - began >= seconds:
                    break
            notes.add(what, seen / (time.perf_counter() - began), "images/s")


def train(net: nn.Module, optimizer: torch.optim.Optimizer, loader: Any, device: torch.device) -> Iterator[int]:
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # as a running mean of it is printed
        yield len(labels)
