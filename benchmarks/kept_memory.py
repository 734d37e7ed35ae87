"""What it brings that workers keep the memory that a step frees: images a second with and without it, in turns.

    python benchmarks/kept_memory.py [--rounds N]

Two workers of one thread train noise at the same time, as `workers.cpus: auto` measures. Where the environment says how
`malloc` is to be set raybasin leaves it alone, so the other way is had by saying there what is so anyway. Printed are
medians with their range, and the median of the pairs' ratios with theirs.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from unittest import mock

from threads import begin, in_turns, settings

from raybasin.jobs.threads import train_at_once
from raybasin.sweep.settings import Settings

TRAINED = (
    ("test_resnet", 32, 20),
    ("test_resnet", 64, 50),
    ("resnet18", 64, 32),
    ("resnet50", 224, 16),
)
"""Network, pixels of a side, batch."""
AS_IT_IS = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}


def rate(asked: Settings, environment: dict[str, str]) -> float:
    with mock.patch.dict(os.environ, environment):
        return train_at_once(asked, 1, 2).images_per_second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    options = begin(parser, "| network, image, batch | given back | kept | ratio |")
    for network, size, batch in TRAINED:
        asked = settings(network, batch, size)
        row = in_turns(partial(rate, asked, AS_IT_IS), partial(rate, asked, {}), options.rounds)
        print(f"| {network}, {size} px, {batch} | {row} |", flush=True)


if __name__ == "__main__":
    main()
