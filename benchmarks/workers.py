"""How well the worker pool uses its cores: the demo by Ray, and the same jobs one after another in one process.

    python benchmarks/workers.py [--runs N] [--set key=value ...]      (make benchmark)

Prints, for each run, the wall time of `raybasin sweep` and of a plain loop over the same jobs that has all cores to
itself, and the share of the workers' time that was spent in jobs once the first job had started. The runs alternate,
so that a change of load on the machine falls on both; the figure to report is the ratio.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from raybasin.store.provenance import versions

REPOSITORY = Path(__file__).resolve().parents[1]
SWEEP = REPOSITORY / "sweeps" / "digits.yaml"
LOOP = """
import os, sys, torch, raybasin
from raybasin.sweep import specs
torch.set_num_threads(os.cpu_count())
report = raybasin.run(specs.load(sys.argv[1], sys.argv[3:]), sys.argv[2])
sys.exit(0 if report.complete else 1)
"""


def timed(command: list[str]) -> tuple[float, str]:
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.monotonic() - started, done.stdout + done.stderr


def by_ray(folder: Path, overrides: list[str]) -> tuple[float, float]:
    """(wall seconds, share of the workers' time in jobs)"""
    sets = [argument for override in overrides for argument in ("--set", override)]
    command = [sys.executable, "-m", "raybasin", "sweep", str(SWEEP), "--results", str(folder), *sets]
    seconds, said = timed(command)
    found = re.search(r"workers for \d+ s, (\d+)% of it in jobs", said)
    if not found:
        raise RuntimeError(f"the sweep did not say how busy its workers were:\n{said}")
    return seconds, int(found[1]) / 100


def by_loop(folder: Path, overrides: list[str]) -> float:
    return timed([sys.executable, "-c", LOOP, str(SWEEP), str(folder), *overrides])[0]


def job_seconds(folder: Path) -> float:
    """Seconds in jobs, added up over workers, as the tables have them."""
    members = pd.read_parquet(folder / "members").job_seconds.sum()
    paths = pd.read_parquet(folder / "paths").groupby(["cell_id", "path_id"]).job_seconds.first().sum()
    return float(members + paths + pd.read_parquet(folder / "cells").close_seconds.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f} at the start; {versions()}")
    ratios = []
    for run in range(options.runs):
        with tempfile.TemporaryDirectory() as scratch:
            pool, loop = Path(scratch) / "pool", Path(scratch) / "loop"
            pool_seconds, share = by_ray(pool, options.overrides)
            loop_seconds = by_loop(loop, options.overrides)
            ratios.append(loop_seconds / pool_seconds)
            print(
                f"run {run}: pool {pool_seconds:.0f} s wall, {share:.0%} of worker time in jobs "
                f"({job_seconds(pool):.0f} job seconds); loop {loop_seconds:.0f} s wall "
                f"({job_seconds(loop):.0f} job seconds); loop / pool {ratios[-1]:.2f}",
                flush=True,
            )
    spread = f" ± {statistics.stdev(ratios):.2f}" if len(ratios) > 1 else ""
    print(f"loop / pool: {statistics.mean(ratios):.2f}{spread} (n = {len(ratios)})")


if __name__ == "__main__":
    main()
