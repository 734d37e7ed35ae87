"""A sweep or a pre-training on Ray: the same jobs and results as in one process, by as many workers as there are."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError

from raybasin.cluster import connect, pool, room, tune
from raybasin.cluster.queue import Queue
from raybasin.cluster.worker import Supplies
from raybasin.errors import FolderLost
from raybasin.jobs import local
from raybasin.jobs.local import Pretrained, Report, Situation
from raybasin.jobs.scheduler import Outcome
from raybasin.store import inventory, tables
from raybasin.store.folders import Folder
from raybasin.sweep.job_list import Closing, Job, checkpoint_jobs
from raybasin.sweep.settings import Settings

if TYPE_CHECKING:  # torch is for workers
    from raybasin.jobs.prepare import Loaded, Prepared

MAX_QUEUES = 3
"""So many queues are started, or more, as long as each gets something done."""


@dataclass(frozen=True)
class Options:
    address: str | None = None
    """Of a cluster, as host:port; without one, the cluster of the Ray job, else one on this machine for the run."""
    stop_after_hours: float | None = None
    retrain: bool = False
    """Whether networks are trained again whose weights were pruned and are needed."""
    wait: Callable[[str], None] | None = None
    """Is told that there is no room for the workers; it is then asked and waited for. None: that is an error."""


def run(
    situation: Situation,
    load: Callable[[], Loaded],
    options: Options = Options(),
    watch: pool.Watch = lambda stats: None,
) -> Report:
    """Runs or continues a sweep on Ray.

    Args:
        situation: what `local.begin` found in the results folder, at a path or an address that every machine of the
            cluster reaches.
        load: decodes the images (`prepare.load`); not called when nothing is left to do.
        options: which cluster, and for how long.
        watch: is given the state of the queue about once a second.

    Raises:
        UserError: where the cluster does not answer, does not see the folder or has no room for a worker.
        FolderLost: where the results folder cannot be written any more.
    """
    plan, folder = situation.plan, situation.folder
    run = _Run(
        plan.settings, folder, options, watch, situation.jobs, awaited=("cell", "retrain"),
        left=lambda: local.look(plan, folder, options.retrain).jobs,
        check=lambda workers: situation.check(options.retrain, workers),
    )  # fmt: skip
    ending = run.on_cluster(load)
    # A trial records the failure of its cell; one that has died could not.
    recorded = {row["unit_id"]: row["reason"] for row in tables.rows(folder, "failures")}
    for failure in local.failures_of(plan.cells, ending.outcomes):
        if recorded.get(failure.cell.cell_id) != failure.reason:
            local.record_failure(folder, plan, failure)
    return local.end(situation, ending.outcomes, ending.interrupted, ending.ended)


def pretrain(
    prepared: Prepared,
    folder: Folder,
    load: Callable[[], Loaded],
    options: Options = Options(),
    watch: pool.Watch = lambda stats: None,
) -> Pretrained:
    """Makes the checkpoints of `prepare.prepare_pretraining` on Ray; arguments and errors are those of `run`."""
    plan = prepared.plan
    inventory.check_version(folder)

    def left() -> Sequence[Job]:
        return checkpoint_jobs(plan, inventory.survey(folder))

    ending = _Run(plan.settings, folder, options, watch, left(), left, ("checkpoint",)).on_cluster(load)
    return local.pretrained(folder, plan, ending.outcomes.values(), ending.interrupted, ending.ended)


@dataclass(frozen=True)
class _Ending:
    """What came of a run."""

    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    """Of the awaited jobs, by id; none if the run was interrupted."""
    interrupted: str = ""
    """By what, if it was."""
    ended: str = ""
    """Why what is left was given up, if it was."""


@dataclass(frozen=True)
class _Run:
    """What is done on a cluster, and what is waited for."""

    settings: Settings
    folder: Folder
    options: Options
    watch: pool.Watch
    jobs: Sequence[Job]
    left: Callable[[], Sequence[Job]]
    """Looks which of the jobs are left to do, after a queue has died."""
    awaited: tuple[str, ...]
    """Kinds of jobs: once all of these have ended, so has the run."""
    check: Callable[[int], None] = lambda workers: None
    """Raises UserError where the disk has no room for what so many workers do."""

    def on_cluster(self, load: Callable[[], Loaded]) -> _Ending:
        """Does on the cluster what is to be done, if anything is."""
        if not self.jobs:
            return _Ending()
        loaded, kinds = load(), self.settings.spec.kinds
        with (
            connect.cluster(self.options.address, loaded),
            # Ray Train and Ray Tune share through it the checkpoints that are reported to them, and none ever is; so it
            # need not be on a disk that all machines have.
            tempfile.TemporaryDirectory(prefix="raybasin-", ignore_cleanup_errors=True) as storage,
            _interruptible(self.options.stop_after_hours) as reasons,
        ):
            try:
                with room.enough(kinds, self.options.wait) as count:
                    connect.check_folder_is_shared(self.folder)
                    self.check(count)
                    in_store = ray.put(loaded)
                    connect.check_images_are_shared(loaded, in_store)
                    root, marker = str(self.folder.root), self.folder.marker
                    supplies = Supplies(root, marker, ray.put(self.settings), in_store, kinds)
                    return self._with_new_queues(supplies, storage)
            except KeyboardInterrupt:
                return _Ending(interrupted=reasons[0] if reasons else "SIGINT")

    def _with_new_queues(self, supplies: Supplies, storage: str) -> _Ending:
        """A queue that dies takes its workers and trials along. A new one begins with what is not committed by then; so
        it goes on while each of them gets something done."""
        queues, jobs = 0, self.jobs
        while jobs:
            queues += 1
            try:
                return self._with_queue(jobs, supplies, storage, f"{os.path.basename(storage)}-{queues}")
            except RayActorError:
                before, jobs = len(jobs), self.left()
                if queues >= MAX_QUEUES and len(jobs) == before:
                    return _Ending(ended=f"the queue has died {queues} times, the last time before anything was done")
        return _Ending()

    def _with_queue(self, jobs: Sequence[Job], supplies: Supplies, storage: str, name: str) -> _Ending:
        """Has a queue and workers do `jobs`, and trials wait for them. Raises RayActorError when the queue dies, and
        FolderLost."""
        awaited = [job.job_id for job in jobs if job.kind in self.awaited]
        queue = Queue.options(scheduling_strategy=connect.here()).remote([kind.hang_seconds for kind in supplies.kinds])
        _until(queue.submit.remote(jobs))
        with pool.started(queue, supplies, len(jobs), storage, f"{name}-workers") as workers:
            with pool.watching(workers, self.watch):
                # Trials start beside working workers: starting both at once only makes both slower.
                if _until(queue.started.remote()):
                    cells = [job.task.cell for job in jobs if isinstance(job.task, Closing)]
                    tune.run_trials(cells, self.settings, self.folder, queue, storage, f"{name}-cells")
                outcomes = _until(queue.outcomes.remote(awaited))  # also of cells whose trial has died
            stats = _until(queue.stats.remote())
        if stats.folder_lost:
            raise FolderLost(stats.fatal)
        return _Ending(dict(zip(awaited, outcomes, strict=True)), ended=stats.fatal)


def _until(reference: ray.ObjectRef[Any]) -> Any:
    """What `ray.get` gives; unlike it, this notices a signal while it waits."""
    pool.ends(reference)
    return ray.get(reference)


@contextlib.contextmanager
def _interruptible(stop_after_hours: float | None) -> Iterator[list[str]]:
    """Turns Ctrl-C, termination and the end of the time into KeyboardInterrupt in the main thread: the one exception
    that Ray lets through wherever it waits. What it gives then holds the reason."""
    reasons: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield reasons
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        for again in watched:
            signal.signal(again, signal.SIG_IGN)
        reasons.append("the time is up" if number == signal.SIGALRM else signal.Signals(number).name)
        raise KeyboardInterrupt

    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.signal(number, interrupt) for number in watched}
    signal.setitimer(signal.ITIMER_REAL, (stop_after_hours or 0) * 3600)
    try:
        yield reasons
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
