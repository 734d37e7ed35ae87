"""Where the seconds in jobs go: training, predictions of networks, paths, closing cells; two trees in turns.

    python benchmarks/job_seconds.py [--sweep digits] [--set key=value ...] [--data DIR] [--checkpoint FILE]
                                     [--other TREE] [--runs 3]

Runs a sweep in one process of one thread (`raybasin.run`), from this tree and, with `--other`, from another checkout in
turns with it, and prints medians and ranges of the seconds that the tables have, and of the process's CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from raybasin.store.provenance import versions

TREE = Path(__file__).resolve().parents[1]
PART = [
    "replicates=1",
    "methods={star_sse: {n_members: 5, lr_ratio: [0.5, 2], cycle_ratio: [1]}, local_de: {n_members: 5}}",
]
"""Of the demo: 3 cells, 13 networks, 21 paths."""
RUN = """
import json, sys, time, torch, pandas as pd, raybasin
from raybasin.sweep import specs
torch.set_num_threads(1)
asked = json.loads(sys.argv[1])
spec = specs.load(asked["sweep"], asked["set"], asked["data"], asked["checkpoint"])
began = time.process_time()
report = raybasin.run(spec, asked["results"])
cpu = time.process_time() - began
assert report.complete, report
members, paths, cells = (pd.read_parquet(f"{asked['results']}/{table}") for table in ("members", "paths", "cells"))
print(json.dumps({
    "training": members.train_seconds.sum(),
    "predictions and the rest of networks": (members.job_seconds - members.train_seconds).sum(),
    "paths": paths.groupby(["cell_id", "path_id"]).job_seconds.first().sum(),
    "closing cells": cells.close_seconds.sum(),
    "CPU seconds of the process": cpu,
}))
"""


def once(tree: Path, asked: dict[str, object]) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as results:
        command = [sys.executable, "-c", RUN, json.dumps({**asked, "results": results})]
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    in_jobs = sum(list(found.values())[:4])
    return {**found, "share of training in jobs": found["training"] / in_jobs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", default="digits")
    parser.add_argument("--set", action="append", dest="sets", help="default: a part of the demo of 3 cells")
    parser.add_argument("--data")
    parser.add_argument("--checkpoint", action="append", default=[])
    parser.add_argument("--other", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    asked = {
        "sweep": options.sweep, "set": options.sets or PART, "data": options.data, "checkpoint": options.checkpoint,
    }  # fmt: skip
    trees = {"this": TREE, **({"other": options.other.resolve()} if options.other else {})}
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {versions()}")
    found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
    for run in range(options.runs):
        for name in trees if run % 2 == 0 else reversed(trees):
            found[name].append(once(trees[name], asked))
            print(name, {what: round(value, 2) for what, value in found[name][-1].items()}, flush=True)
    for what in found["this"][0]:
        line = f"{what:40s}"
        for runs in found.values():
            values = [run[what] for run in runs]
            line += f" {statistics.median(values):8.2f} ({min(values):.2f}-{max(values):.2f})"
        if "other" in found:
            ratios = [a[what] / b[what] for a, b in zip(found["this"], found["other"], strict=True)]
            line += f"   this / other {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(line)


if __name__ == "__main__":
    main()
