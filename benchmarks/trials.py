"""What Ray Tune costs: a sweep whose jobs do nothing, so that nothing is left but its trials.

    python benchmarks/trials.py [--points N] [--replicates N] [--pairs N]

A grid of so many points runs through the very queue, searcher and trials of a sweep; of its jobs there are only those
that end cells, and who takes them says at once that they are done. Prints the CPU seconds of the driver, of the trials'
processes and of Ray's own (less what these take when nothing is to be done), how many processes there were, and by how
much the driver has grown. Beside it: functions of Ray Tune's, four at a time and logged, as it does by itself.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import tune

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import tiny

from raybasin.cluster import connect, search
from raybasin.cluster.queue import Queue
from raybasin.cluster.trials import Shared
from raybasin.store import tables
from raybasin.store.folders import Folder
from raybasin.store.schemas import METRICS
from raybasin.sweep import plan, points
from raybasin.sweep.job_list import Done, Job, jobs_left

IDLE_SECONDS = 10.0


@ray.remote(num_cpus=0)
def do_nothing(queue: Any) -> None:
    """Takes every job, and says that it is done."""
    name, incarnation = "0.0", 0
    incarnation = ray.get(queue.hello.remote(name, os.getpid()))
    while not isinstance(job := ray.get(queue.take.remote(name, incarnation)), str) or job == "again":
        if isinstance(job, Job):
            queue.done.remote(
                name, incarnation, job.job_id, dict.fromkeys(METRICS, 0.0) if job.kind == "cell" else None
            )


@dataclass
class Processes:
    """CPU seconds of this process and of all that it has started, by what they are called."""

    seconds: dict[int, tuple[str, float]]
    over: bool = False

    def __init__(self) -> None:
        self.seconds, self.names = {}, {}
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.over:
            self.look()
            time.sleep(0.25)

    def look(self) -> dict[int, tuple[str, float]]:
        for process in psutil.Process().children(recursive=True):
            try:
                name = process.cmdline()[0].partition(" ")[0] if process.cmdline() else ""
                self.seconds[process.pid] = name, sum(process.cpu_times()[:2])
            except psutil.Error:
                pass
        return dict(self.seconds)


def spent(
    before: dict[int, tuple[str, float]], after: dict[int, tuple[str, float]], of: Callable[[str], bool]
) -> float:
    return sum(seconds - before.get(pid, ("", 0.0))[1] for pid, (name, seconds) in after.items() if of(name))


def measured(what: str, run: Callable[[], None], n_points: int, replicates: int) -> dict[str, float]:
    watch = Processes()
    time.sleep(1)
    start = watch.look()
    time.sleep(IDLE_SECONDS)
    before = watch.look()
    idle = spent(start, before, lambda name: True) / IDLE_SECONDS
    own, grown, began = time.process_time(), psutil.Process().memory_info().rss, time.monotonic()
    run()
    seconds, own = time.monotonic() - began, time.process_time() - own
    grown = psutil.Process().memory_info().rss - grown
    after = watch.look()
    watch.over = True
    trial = spent(before, after, is_trial)
    queue = spent(before, after, lambda name: name.startswith("ray::JobQueue"))
    doing = spent(before, after, lambda name: name.startswith("ray::do_nothing"))
    everything = spent(before, after, lambda name: True)
    daemons = max(0.0, everything - trial - queue - doing - idle * seconds)
    figures = {
        "driver": own / n_points, "trials": trial / n_points, "Ray": daemons / n_points,
        "Tune in all": (own + trial + daemons) / n_points,
        "processes": sum(is_trial(name) for name, _ in after.values()),
        "KB a cell": grown / n_points / replicates / 1024, "seconds": seconds,
    }  # fmt: skip
    print(what, "; ".join(f"{key} {value:.4g}" for key, value in figures.items()), f"(queue {queue:.1f} s)", flush=True)
    return figures


def is_trial(name: str) -> bool:
    """A trial's process, or one that Ray had ready for one."""
    return name.startswith("ray::") and not name.startswith(
        ("ray::JobQueue", "ray::do_nothing", "ray::Dash", "ray::Runt")
    )


def as_raybasin(n_points: int, replicates: int, folder: Path) -> Callable[[], None]:
    rates = [1 + n / 1000 for n in range(n_points)]
    methods = {"star_sse": {"n_members": 2, "lr_ratio": rates}}
    made = plan.make(tiny.spec(methods=methods, replicates=replicates), tiny.facts())
    jobs = [replace(job, needs=()) for job in jobs_left(made, Done()) if job.kind == "cell"]
    queue = Queue.options(scheduling_strategy=connect.here()).remote()
    ray.get(queue.submit.remote(jobs))
    ends = search.Ends(queue, {f"cell-{cell.cell_id}": cell.point.on_map for cell in made.cells})
    shared = Shared(queue, made.settings, str(folder), Done(), points.NONE, tables.now(), submits=False, stepwise=False)

    def run() -> None:
        worker = do_nothing.remote(queue)
        chooser = search.PointSearch(
            made.settings, Folder(folder), points.known(made), lambda: 1, ends.is_over, ends.points
        )
        grid = search.run_trials(chooser, shared, search.Plugins(), str(folder / "tune"), "trials")
        assert len(grid) == n_points and not grid.errors
        ray.get(queue.close.remote())
        ray.get(worker)

    return run


def by_itself(n_points: int, folder: Path) -> Callable[[], None]:
    """The trainable that raybasin had before: a function for each, four at a time."""
    from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, TBXLoggerCallback

    def run() -> None:
        tune.Tuner(
            tune.with_resources(lambda config: dict.fromkeys(METRICS, 0.0), {"CPU": 0.01}),
            param_space={"n": tune.grid_search(list(range(n_points)))},
            tune_config=tune.TuneConfig(max_concurrent_trials=4, reuse_actors=True),
            run_config=tune.RunConfig(name="functions", storage_path=str(folder), verbose=0,
                                      callbacks=[JsonLoggerCallback(), CSVLoggerCallback(), TBXLoggerCallback()]),
        ).fit()  # fmt: skip

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--replicates", type=int, default=3)
    parser.add_argument("--functions", type=int, default=200, help="points of Ray Tune's functions; 0 for none")
    parser.add_argument("--pairs", type=int, default=1)
    asked = parser.parse_args()
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    found: dict[str, list[float]] = {"raybasin": [], "functions": []}
    for _ in range(asked.pairs):
        with tempfile.TemporaryDirectory() as folder, connect.private.loopback_stays_loopback():
            for what, n_points in (("raybasin", asked.points), ("functions", asked.functions)):
                if not n_points:
                    continue
                ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
                if what == "raybasin":
                    run, replicates = as_raybasin(n_points, asked.replicates, Path(folder)), asked.replicates
                else:
                    run, replicates = by_itself(n_points, Path(folder)), 1
                found[what].append(measured(what, run, n_points, replicates)["Tune in all"])
                ray.shutdown()
    for what, figures in found.items():
        if figures:
            spread = f", {min(figures):.3g}-{max(figures):.3g}" if len(figures) > 1 else ""
            print(f"{what}: {statistics.median(figures):.3g} CPU s a point (n={len(figures)}{spread})")
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, Ray {ray.__version__}")


if __name__ == "__main__":
    main()
