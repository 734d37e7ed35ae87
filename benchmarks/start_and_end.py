"""What passes before the first job and after the last cell of `raybasin sweep`, step by step.

    python benchmarks/start_and_end.py [--times N] [--other PYTHON]

Runs a sweep of a few tiny networks and watches from outside, 20 times a second, which processes there are and which
files: seconds from the command to each step, as medians and spread. With `--other`, the Python of another environment,
its runs take turns with those of this one.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import tiny

PROCESSES = {
    "Ray's store": ("gcs_server",), "Ray's raylet": ("raylet/raylet",), "queue": ("ray::JobQueue",),
    "Train": ("ray::TrainController",), "a worker": ("ray::RayTrainWorker",),
    "a trial": ("ray::PointTrial", "ray::ImplicitFunc"),
}  # fmt: skip
"""What tells of a step: a process with this in its command."""


def run(python: str, folder: Path) -> dict[str, float]:
    """Seconds from the command to each step, and from the last cell to the prompt."""
    sweep = folder / "sweep.yaml"
    sweep.write_text(yaml.safe_dump(tiny.tree(workers={"cpus": 0.9})))
    command = [python, "-m", "raybasin", "sweep", str(sweep), "--results", str(folder / "results")]
    seen: dict[str, float] = {}
    said: list[str] = []
    began = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, bufsize=1)
    os.set_blocking(child.stderr.fileno(), False)
    while child.poll() is None:
        now = time.monotonic() - began
        if line := child.stderr.readline():
            said.append(line)
            seen.setdefault("its first line", now)
        for process in psutil.Process(child.pid).children(recursive=True):
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            for step, told in PROCESSES.items():
                if any(part in line for part in told):
                    seen.setdefault(step, now)
        for where in ("members", "cells"):
            if list((folder / "results" / where).glob("*.parquet")):
                seen.setdefault(f"the first of {where}", now)
        time.sleep(0.05)
    ended, seen["prompt"] = time.time(), time.monotonic() - began
    if child.returncode:
        raise SystemExit("".join([*said, *child.stderr, f"the sweep has ended with {child.returncode}"]))
    last = max(path.stat().st_mtime for path in (folder / "results" / "cells").iterdir())
    seen["from the last cell to the prompt"] = ended - last
    return seen


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--other", help="the Python of another environment, which takes turns with this one")
    asked = parser.parse_args()
    pythons = {"this": sys.executable, **({"other": asked.other} if asked.other else {})}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
    for _ in range(asked.times):
        for name, python in pythons.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(run(python, Path(folder)))
            print(name, ", ".join(f"{step} {seconds:.1f}" for step, seconds in found[name][-1].items()), flush=True)
    for name, runs in found.items():
        print(f"\n{name}, n={len(runs)}")
        for step in max(runs, key=len):
            seconds = [one[step] for one in runs if step in one]
            print(f"{step:35s} {statistics.median(seconds):6.1f} s ({min(seconds):.1f}-{max(seconds):.1f})")
    print(f"\n{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")


if __name__ == "__main__":
    main()
