"""Whether memory stays bounded as a sweep grows: that of all processes and of the object store, over many small cells.

    python benchmarks/memory.py [--cells N] [--every N]                     (make memory)
    python benchmarks/memory.py --workers 1 2 4 --data FOLDER_WITH_CIFAR10  (ARGS="--workers ...")

Runs `raybasin sweep` on scikit-learn's digits with a tiny network and so many cells, and looks about twice a second at
the resident memory of the driver, the workers, the queue, the trials and Ray's own processes, and at what lies in the
object store (shared memory). Prints, at every so many cells, the median and the
largest value since the last line, in MB. Linux only.

With `--workers` it looks instead at sweeps of so many workers on all images of CIFAR-10, while they train, and tells
what each has of its own from what they share: the proportional set size (PSS) counts a page that k processes map as a
k-th of it for each. The sweep is then ended.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
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


TRAINING_MB, SETTLED = 450, 30.0
"""Private memory from which on a worker trains, and seconds after that which are waited for."""


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


def large(workers: int) -> dict[str, Any]:
    """As many trainings at once as there are workers, on 50,000 images of 32 pixels."""
    return {
        "name": "memory",
        "data": {"name": "cifar10", "image_size": 32, "validation": {"images": 5000}, "augment": ["flip"]},
        "model": {"name": "test_resnet", "pretrained": []},
        "recipe": {"epochs": 1, "batch_size": 100, "lr": 0.02},
        "methods": {"local_de": {"n_members": 1 + max(4, workers)}},
        "workers": {"cpus": 1.8 / workers if workers > 2 else 0.9, "count": workers},
    }


def rollup_mb(pid: int) -> dict[str, float]:
    """Of a process: resident, proportional and private memory, in MB."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    kb = {line[0].rstrip(":"): int(line[1]) for line in lines}
    private = kb["Private_Clean"] + kb["Private_Dirty"]
    return {name: size / 1024 for name, size in (("RSS", kb["Rss"]), ("PSS", kb["Pss"]), ("private", private))}


def by_workers(folder: Path, counts: list[int], data: str, checkpoint: str) -> None:
    print("workers   MB of each, median (largest): RSS, PSS, private; PSS of all; object store, as one has mapped it")
    for count in counts:
        (folder / f"{count}.yaml").write_text(json.dumps(large(count)))
        command = [sys.executable, "-m", "raybasin", "sweep", f"{count}.yaml", "--results", f"results-{count}",
                   "--data", os.path.abspath(data), "--checkpoint", os.path.abspath(checkpoint)]  # fmt: skip
        with open(folder / f"said-{count}", "wb") as said:
            running = subprocess.Popen(command, cwd=folder, stdout=said, stderr=subprocess.STDOUT)
        sizes, stored, training_since = [], 0.0, None
        while running.poll() is None and (training_since is None or time.monotonic() - training_since < SETTLED):
            time.sleep(2)
            pids = [pid for pid, line in processes(running.pid).items() if kind_of(line) == "worker"]
            now = [rollup_mb(pid) for pid in pids]
            if len(now) == count and min(one["private"] for one in now) > TRAINING_MB:
                training_since = training_since or time.monotonic()
                sizes, stored = now, max(resident_mb(pid)[1] for pid in pids)
        if running.poll() is not None:
            sys.exit((folder / f"said-{count}").read_text())
        running.send_signal(signal.SIGINT)
        running.wait(120)
        each = ", ".join(shown([one[name] for one in sizes]) for name in ("RSS", "PSS", "private"))
        print(f"{count:7}   {each}; {sum(one['PSS'] for one in sizes):.0f}; {stored:.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--every", type=int, default=50, help="cells to a line")
    parser.add_argument("--workers", type=int, nargs="+", help="so many at once, on CIFAR-10")
    parser.add_argument("--data", help="folder with CIFAR-10, for --workers")
    parser.add_argument("--checkpoint", default="test_resnet.r160_in1k", help="for --workers")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}; {versions()}")
    with tempfile.TemporaryDirectory() as name:
        if options.workers:
            by_workers(Path(name), options.workers, options.data, options.checkpoint)
        else:
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
