"""What it brings that workers keep the memory that a step frees: images a second with and without it, in turns.

    python benchmarks/kept_memory.py [--rounds N]

Two workers of one thread train noise at the same time, as `workers.cpus: auto` measures. Where the environment says how
`malloc` is to be set raybasin leaves it alone, so the other way is had by saying there what is so anyway. Printed are
medians with their range, and the median of the pairs' ratios with theirs.
"""

from __future__ import annotations

import argparse
import os
import platform
from unittest import mock

from threads import settings, shown

from raybasin.jobs.threads import train_at_once
from raybasin.store.provenance import versions

TRAINED = (
    ("test_resnet", 32, 20),
    ("test_resnet", 64, 50),
    ("resnet18", 64, 32),
    ("resnet50", 224, 16),
)
"""Network, pixels of a side, batch."""
AS_IT_IS = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}; {versions()}\n")
    print("| network, image, batch | given back | kept | ratio |")
    for network, size, batch in TRAINED:
        asked = settings(network, batch, size)
        rates: dict[bool, list[float]] = {False: [], True: []}
        for number in range(options.rounds):
            for kept in (False, True) if number % 2 else (True, False):
                with mock.patch.dict(os.environ, {} if kept else AS_IT_IS):
                    rates[kept].append(train_at_once(asked, 1, 2).images_per_second)
        ratios = [kept / given_back for given_back, kept in zip(*rates.values(), strict=True)]
        row = f"{shown(rates[False])} | {shown(rates[True])} | {shown(ratios, 2)}"
        print(f"| {network}, {size} px, {batch} | {row} |", flush=True)


if __name__ == "__main__":
    main()
