"""Whether memory stays bounded as a sweep grows: that of all processes and of the object store, over many small cells.

    python benchmarks/memory.py [--cells N] [--every N]      (make memory)

Runs `raybasin sweep` on scikit-learn's digits with a tiny network and so many cells, and looks about twice a second at
the resident memory of the driver, the workers, the queue, the trials and Ray's own processes, and at what lies in the
object store (shared memory). Prints, at every so many cells, the median and the
largest value since the last line, in MB. Linux only.
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
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from raybasin.store.provenance import versions

KINDS = {
    "driver": "-m raybasin", "worker": "ray::RayTrainWorker", "queue": "ray::JobQueue", "trial": "ray::PointTrial",
    "Ray": "",
}  # fmt: skip
"""Kinds of processes, by how their command line begins or what it holds; the last is every other one."""


def sweep(cells: int) -> dict[str, Any]:
    """So many cells of two members each, in as few epochs as there can be."""
    data = {"name": "digits", "image_size": 32, "augment": [], "test_images": 50, "eval_crop": 1.0}
    target = {**data, "classes": [5, 6, 7, 8, 9], "train_images": {"per_class": 8}, "validation": {"images": 60}}
    source = {**data, "classes": [0, 1, 2, 3, 4], "train_images": {"per_class": 8}, "validation": {"images": 50}}
    pretrain = {"data": source, "recipe": {"epochs": 1, "batch_size": 20}}
    return {
        "name": "memory",
        "data": target,
        "model": {"name": "test_resnet", "pretrained": [{"pretrain": pretrain}]},
        "recipe": {"epochs": 1, "batch_size": 20, "lr": 0.02},
        "methods": {"star_sse": {"n_members": 2, "lr_ratio": [1 + number / 100 for number in range(cells)]}},
        "basin": {"points": 3, "bn_images": 20},
        "keep": {"weights": "soups"},
        "workers": {"cpus": 0.9},
    }


def processes(root: int) -> dict[int, str]:
    """The command lines of `root` and all that it has started, by process id."""
    parents, commands = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                commands[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, ValueError):  # it has just ended
                continue
    found, more = {root}, {root}
    while more:
        more = {pid for pid, parent in parents.items() if parent in more} - found
        found |= more
    return {pid: commands[pid] for pid in found if pid in commands}


def kind_of(command: str) -> str:
    return next(kind for kind, sign in KINDS.items() if sign in command)


def resident_mb(pid: int) -> tuple[float, float]:
    """(memory of its own, memory it shares), in MB: the object store is shared by all that have looked into it."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        own = sum(int(fields.get(key, "0").split()[0]) for key in ("RssAnon", "RssFile"))
        return own / 1024, int(fields.get("RssShmem", "0").split()[0]) / 1024
    except (OSError, ValueError):
        return 0.0, 0.0


def sample(root: int) -> dict[str, list[float]]:
    """Memory in MB of each process, by kind, and of the object store: the most that one process has touched of it
    (plan and images are put there by the driver)."""
    found: dict[str, list[float]] = defaultdict(list)
    in_store = 0.0
    for pid, command in processes(root).items():
        own, shared = resident_mb(pid)
        if own:
            found[kind_of(command)].append(own)
        in_store = max(in_store, shared)
    found["object store"].append(in_store)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--every", type=int, default=50, help="cells to a line")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}; {versions()}")
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), options.cells, options.every)


def measure(folder: Path, cells: int, every: int) -> None:
    (folder / "sweep.yaml").write_text(json.dumps(sweep(cells)))  # which is YAML as well
    command = [sys.executable, "-m", "raybasin", "sweep", "sweep.yaml", "--results", "results"]
    columns = ["driver", "worker", "queue", "trial", "Ray", "object store"]
    print("cells    MB of each process, median (largest)\n" + " ".join(f"{c:>16}" for c in ["done", *columns]))
    with open(folder / "said", "wb") as said:
        running = subprocess.Popen(command, cwd=folder, stdout=said, stderr=subprocess.STDOUT)
    seen: dict[str, list[float]] = defaultdict(list)
    line = every
    while running.poll() is None:
        for kind, sizes in sample(running.pid).items():
            seen[kind] += sizes
        done = len(list((folder / "results" / "cells").glob("*.parquet")))
        if done >= line:
            print(" ".join([f"{done:>16}", *(f"{shown(seen[column]):>16}" for column in columns)]), flush=True)
            seen.clear()
            line += every
        time.sleep(0.5)
    if running.returncode != 0:
        sys.exit((folder / "said").read_text())
    weights = list((folder / "results" / "weights").glob("*.safetensors"))
    print(f"{cells} cells, {len(weights)} files of weights at the end")


def shown(sizes: list[float]) -> str:
    return f"{statistics.median(sizes):.1f} ({max(sizes):.1f})" if sizes else "-"


if __name__ == "__main__":
    main()
