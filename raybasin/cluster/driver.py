"""A sweep or a pre-training on Ray: the same jobs and results as in one process, by as many workers as there are."""

from __future__ import annotations

import contextlib
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError

from raybasin.cluster import connect, pool, tune
from raybasin.cluster.queue import Queue
from raybasin.cluster.worker import Supplies
from raybasin.errors import FolderLost, UserError
from raybasin.jobs import local
from raybasin.jobs.local import Pretrained, Report, Situation
from raybasin.jobs.scheduler import Outcome
from raybasin.store import inventory, tables
from raybasin.store.folders import Folder
from raybasin.sweep.jobs import Closing, Job, checkpoint_jobs
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
    if not situation.jobs:
        return local.end(situation, {})
    plan, folder = situation.plan, situation.folder

    def again() -> Sequence[Job]:
        return local.look(plan, folder, options.retrain).jobs

    def check(workers: int) -> None:
        situation.check(options.retrain, workers)

    run = _Run(plan.settings, folder, options, watch, situation.jobs, again, ("cell", "retrain"), check)
    came = run.on_cluster(load())
    _record_unrecorded(situation, came.outcomes)
    return local.end(situation, came.outcomes, came.interrupted, came.ended)


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

    jobs = left()
    if not jobs:
        return local.pretrained(folder, plan, ())
    came = _Run(plan.settings, folder, options, watch, jobs, left, ("checkpoint",)).on_cluster(load())
    return local.pretrained(folder, plan, came.outcomes.values(), came.interrupted, came.ended)


def _record_unrecorded(situation: Situation, outcomes: Mapping[str, Outcome]) -> None:
    """A trial records the failure of its cell; one that has died could not."""
    failures = local.failures_of(situation.plan.cells, outcomes)
    recorded = {row["unit_id"]: row["reason"] for row in tables.rows(situation.folder, "failures")}
    for failure in failures:
        if recorded.get(failure.cell.cell_id) != failure.reason:
            local.record_failure(situation.folder, situation.plan, failure)


@dataclass(frozen=True)
class _Came:
    """What came of a run: of the jobs waited for, by id, or why it was interrupted, if it was, in which case there are
    none; and why the rest was given up, if it was."""

    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    interrupted: str = ""
    ended: str = ""


@dataclass(frozen=True)
class _Run:
    """What is done on a cluster, and what is waited for."""

    settings: Settings
    folder: Folder
    options: Options
    watch: pool.Watch
    jobs: Sequence[Job]
    again: Callable[[], Sequence[Job]]
    """Looks what is left to do, after a queue has died."""
    awaited: tuple[str, ...]
    """Kinds of jobs: once all of these have ended, so has the run."""
    check: Callable[[int], None] = lambda workers: None
    """Raises UserError where so many workers cannot do it."""

    def on_cluster(self, loaded: Loaded) -> _Came:
        """Connects to the cluster, and does there what is left."""
        workers = self.settings.spec.workers
        with (
            connect.cluster(self.options.address, loaded),
            _control_state(self.folder) as storage,
            _interruptible(self.options.stop_after_hours) as interruption,
        ):
            try:
                connect.check_folder_is_shared(self.folder)
                count = pool.workers_that_fit(workers)
                self.check(count)
                in_store = ray.put(loaded)
                connect.check_images_are_shared(loaded, in_store)
                root, marker = str(self.folder.root), self.folder.marker
                return self._queues(Supplies(root, marker, ray.put(self.settings), in_store, workers, count), storage)
            except KeyboardInterrupt:
                return _Came(interrupted=interruption.reason or "SIGINT")

    def _queues(self, supplies: Supplies, storage: Path) -> _Came:
        """A queue that dies takes its workers and trials along. A new one begins with what is not committed by then; so
        it goes on while each of them gets something done."""
        queues, jobs = 0, self.jobs
        while jobs:
            queues += 1
            try:
                return self._queue(jobs, supplies, str(storage), f"{storage.name}-{queues}")
            except RayActorError:
                before, jobs = len(jobs), self.again()
                if queues >= MAX_QUEUES and len(jobs) == before:
                    return _Came(ended=f"the queue has died {queues} times, the last time before anything was done")
        return _Came()

    def _queue(self, jobs: Sequence[Job], supplies: Supplies, storage: str, name: str) -> _Came:
        """Does `jobs`. Raises RayActorError when the queue dies, and FolderLost."""
        awaited = [job.job_id for job in jobs if job.kind in self.awaited]
        queue = Queue.remote(hang_seconds=supplies.workers.hang_seconds)
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
        return _Came(dict(zip(awaited, outcomes, strict=True)), ended=stats.fatal)


@contextlib.contextmanager
def _control_state(folder: Folder) -> Iterator[Path]:
    """Where Ray keeps what it needs during a run, in a folder with the run's name. None of it is needed afterwards.

    Beside an object store this is a folder of this machine: Ray Train and Ray Tune share through it the checkpoints
    that are reported to them, and none ever is.
    """
    name = f"run-{uuid.uuid4().hex[:8]}"
    if isinstance(folder.root, Path):
        storage = folder.root / "state" / "ray" / name
        try:
            storage.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"results folder {folder.root}: cannot be written ({error.strerror})") from error
    else:
        storage = Path(tempfile.mkdtemp(prefix=f"raybasin-{name}-"))
    try:
        yield storage
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def _until(reference: ray.ObjectRef[Any]) -> Any:
    """What `ray.get` gives; unlike it, this notices a signal while it waits."""
    while not ray.wait([reference], timeout=0.2)[0]:
        pass
    return ray.get(reference)


@dataclass
class _Interruption:
    """Why a run was interrupted, once it is."""

    reason: str = ""


@contextlib.contextmanager
def _interruptible(stop_after_hours: float | None) -> Iterator[_Interruption]:
    """Turns Ctrl-C, termination and the end of the time into KeyboardInterrupt in the main thread: the one exception
    that Ray lets through wherever it waits."""
    interruption = _Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        for again in watched:
            signal.signal(again, signal.SIG_IGN)
        interruption.reason = "the time is up" if number == signal.SIGALRM else signal.Signals(number).name
        raise KeyboardInterrupt

    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.signal(number, interrupt) for number in watched}
    if stop_after_hours is not None:
        signal.setitimer(signal.ITIMER_REAL, stop_after_hours * 3600)
    try:
        yield interruption
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
