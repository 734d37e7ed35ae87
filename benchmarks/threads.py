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
from collections.abc import Callable
from functools import partial
from itertools import product

from raybasin.jobs import threads
from raybasin.store.provenance import versions
from raybasin.sweep import plan, specs
from raybasin.sweep.facts import CheckpointFacts, DataFacts, Facts, Preprocess
from raybasin.sweep.settings import Settings

NETWORKS = ("test_resnet", "resnet18")
BATCHES = (32, 128)


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


def in_turns(one: Callable[[], float], other: Callable[[], float], rounds: int) -> str:
    """Both measured so often, every second time the other way about: each, and how many times the first the second is,
    as cells of a table."""
    measured: dict[Callable[[], float], list[float]] = {one: [], other: []}
    for number in range(rounds):
        for way in (one, other)[:: 1 if number % 2 else -1]:
            measured[way].append(way())
    ratios = [second / first for first, second in zip(*measured.values(), strict=True)]
    return " | ".join([*map(shown, measured.values()), shown(ratios, 2)])


def begin(parser: argparse.ArgumentParser, columns: str) -> argparse.Namespace:
    """Reads the command line and prints which machine it is, and the head of a table."""
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}; {versions()}\n\n{columns}")
    return options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    options = begin(parser, "| network, batch | one of two threads | two of one thread | ratio |")
    for network, batch in product(NETWORKS, BATCHES):
        asked = settings(network, batch, options.size)

        def rate(threads_: int, workers: int, asked: Settings = asked) -> float:
            return threads.train_at_once(asked, threads_, workers).images_per_second

        row = in_turns(partial(rate, 2, 1), partial(rate, 1, 2), options.rounds)
        print(f"| {network}, {batch} | {row} |", flush=True)


if __name__ == "__main__":
    main()
