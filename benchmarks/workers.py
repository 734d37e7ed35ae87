"""How well the worker pool uses its cores: the demo by Ray, and the same jobs one after another in one process.

    python benchmarks/workers.py [--runs N] [--set key=value ...] [--other TREE]      (make benchmark)

Prints, for each run, the wall time of `raybasin sweep` and of a plain loop over the same jobs that has all cores to
itself, and the share of the workers' time that was spent in jobs once the first job had started; with `--other`, the
wall time of `raybasin sweep` of another checkout, too. The runs alternate, so that a change of load on the machine
falls on all; the figures to report are the ratios.
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
SWEEP = Path("sweeps/digits.yaml")
LOOP = """
import os, sys, torch, raybasin
from raybasin.sweep import specs
torch.set_num_threads(os.cpu_count())
report = raybasin.run(specs.load(sys.argv[1], sys.argv[3:]), sys.argv[2])
sys.exit(0 if report.complete else 1)
"""


def timed(command: list[str], tree: Path = REPOSITORY) -> tuple[float, str]:
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command}:\n{done.stdout}{done.stderr}")
    return time.monotonic() - started, done.stdout + done.stderr


def by_ray(folder: Path, overrides: list[str], tree: Path = REPOSITORY) -> tuple[float, float]:
    """(wall seconds, share of the workers' time in jobs)"""
    sets = [argument for override in overrides for argument in ("--set", override)]
    command = [sys.executable, "-m", "raybasin", "sweep", str(tree / SWEEP), "--results", str(folder), *sets]
    seconds, said = timed(command, tree)
    found = re.search(r"workers for \d+ s, (\d+)% of it in jobs", said)
    if not found:
        raise RuntimeError(f"the sweep did not say how busy its workers were:\n{said}")
    return seconds, int(found[1]) / 100


def by_loop(folder: Path, overrides: list[str]) -> float:
    return timed([sys.executable, "-c", LOOP, str(REPOSITORY / SWEEP), str(folder), *overrides])[0]


def job_seconds(folder: Path) -> float:
    """Seconds in jobs, added up over workers, as the tables have them."""
    members = pd.read_parquet(folder / "members").job_seconds.sum()
    paths = pd.read_parquet(folder / "paths").groupby(["cell_id", "path_id"]).job_seconds.first().sum()
    return float(members + paths + pd.read_parquet(folder / "cells").close_seconds.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--other", type=Path, help="another checkout")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f} at the start; {versions()}")
    ratios: dict[str, list[float]] = {"loop / pool": []}
    for run in range(options.runs):
        with tempfile.TemporaryDirectory() as scratch:
            pool, loop, other = (Path(scratch) / name for name in ("pool", "loop", "other"))
            pool_seconds, share = by_ray(pool, options.overrides)
            said = f"pool {pool_seconds:.0f} s wall, {share:.0%} of worker time in jobs ({job_seconds(pool):.0f} s)"
            if options.other:
                other_seconds, share = by_ray(other, options.overrides, options.other.resolve())
                said += f"; other checkout {other_seconds:.0f} s wall, {share:.0%} ({job_seconds(other):.0f} s)"
                ratios.setdefault("pool / pool of the other checkout", []).append(pool_seconds / other_seconds)
            loop_seconds = by_loop(loop, options.overrides)
            ratios["loop / pool"].append(loop_seconds / pool_seconds)
            print(f"run {run}: {said}; loop {loop_seconds:.0f} s wall ({job_seconds(loop):.0f} s in jobs)", flush=True)
    for what, values in ratios.items():
        print(f"{what}: {statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f}), n = {len(values)}")


if __name__ == "__main__":
    main()
