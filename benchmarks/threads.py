"""Two workers of one thread against one of two: images a second of the whole machine, by network and batch.

    python benchmarks/threads.py [--rounds N] [--size N]

Trains as `workers.cpus: auto` measures: processes that make training steps of noise at the same time for 3 s or more.
Each round measures the two ways one after the other, and every second round the other way about; printed are medians
with their range, and the median of the pairs' ratios with theirs. Ratios above 1 are for two workers of one thread.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics

from raybasin.jobs import threads
from raybasin.store.provenance import versions
from raybasin.sweep import plan, specs
from raybasin.sweep.facts import CheckpointFacts, DataFacts, Facts, Preprocess
from raybasin.sweep.settings import Settings

NETWORKS = ("test_resnet", "resnet18")
BATCHES = (32, 128)
WAYS = ((1, 2), (2, 1))
"""Threads of a worker, and workers."""


def settings(network: str, batch: int, size: int) -> Settings:
    spec = specs.parse({
        "name": "threads", "data": {"name": "digits", "image_size": size, "augment": ["pad_crop", "flip"]},
        "model": {"name": network, "pretrained": ["none.pth"]},
        "recipe": {"epochs": 1, "batch_size": batch},
        "methods": {"star_sse": {"n_members": 2}},
    })  # fmt: skip
    data = DataFacts("a" * 64, "b" * 64, 10_000, 1_000, 1_000, 10, train_size=(size, size))
    shown = Preprocess(size, 1.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    facts = Facts(data, shown, (CheckpointFacts("none", "c" * 64),), pretrain_data={}, batch_norm=True, n_parameters=1)
    return plan.make(spec, facts).settings


def shown(values: list[float], digits: int = 0) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}; {versions()}\n")
    print("| network, batch | two of one thread | one of two threads | ratio |")
    for network in NETWORKS:
        for batch in BATCHES:
            asked = settings(network, batch, options.size)
            rates: dict[tuple[int, int], list[float]] = {way: [] for way in WAYS}
            for number in range(options.rounds):
                for way in WAYS[:: 1 if number % 2 else -1]:
                    rates[way].append(threads.train_at_once(asked, *way).images_per_second)
            ratios = [one / two for one, two in zip(*rates.values(), strict=True)]
            cells = " | ".join(shown(rates[way]) for way in WAYS)
            print(f"| {network}, {batch} | {cells} | {shown(ratios, 2)} |", flush=True)


if __name__ == "__main__":
    main()
