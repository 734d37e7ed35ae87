"""A sweep or a pre-training on Ray: the same jobs and results as in one process, by as many workers as there are."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.tune.error import TuneError
from ray.tune.logger import JsonLoggerCallback

from raybasin.cluster import connect, pool, room, search, watching
from raybasin.cluster.queue import Queue, Stats
from raybasin.cluster.trials import Shared
from raybasin.cluster.watching import Before
from raybasin.cluster.worker import Supplies
from raybasin.errors import FolderLost, UserError, one_line
from raybasin.jobs import local, progress
from raybasin.jobs.local import Pretrained, Report, Situation
from raybasin.jobs.scheduler import Outcome
from raybasin.store import folders, heartbeat, inventory, tables
from raybasin.store.folders import Folder
from raybasin.sweep.job_list import Job, checkpoint_jobs
from raybasin.sweep.settings import Settings
from raybasin.sweep.specs import SweepSpec, Workers

if TYPE_CHECKING:  # torch is for workers
    from raybasin.jobs.prepare import Loaded, Prepared

logger = logging.getLogger(__name__)

STORAGE = "raybasin-"
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
    tell: Callable[[str], None] = lambda line: None
    """Is told what is measured before workers are started."""
    log_trials: bool = False
    """Whether Ray Tune keeps files of what trials report for as long as it runs: its tables are made of them."""


def plugged(settings: Settings) -> search.Plugins:
    """What `search` names, made. Raises UserError where it cannot be had, before anything starts."""
    search.check(settings)
    return search.plugins(settings.spec.search)


def run(
    situation: Situation,
    load: Callable[[], Loaded],
    options: Options = Options(),
    watch: pool.Watch = lambda stats: None,
    plugins: search.Plugins | None = None,
) -> Report:
    """Runs or continues a sweep on Ray.

    Args:
        situation: what `local.begin` found in the results folder, at a path or an address that every machine of the
            cluster reaches.
        load: decodes the images (`prepare.load`); not called when nothing is left to do.
        options: which cluster, and for how long.
        watch: is given the state of the queue about once a second.
        plugins: what `plugged` has made, if it has been asked already.

    Raises:
        UserError: where the cluster does not answer, does not see the folder or has no room for a worker.
        FolderLost: where the results folder cannot be written any more.
    """
    plan, folder = situation.plan, situation.folder

    def again() -> _Work:
        left = local.look(local.continued(folder, plan), folder, options.retrain)
        return _of_sweep(left, plugged(plan.settings), options)

    run = _Run(
        plan.settings, folder, options, watch, awaited=("cell", "retrain"),
        first=_of_sweep(situation, plugins or plugged(plan.settings), options), again=again,
        check=lambda workers: situation.check(options.retrain, workers),
    )  # fmt: skip
    ending = run.on_cluster(load)
    # A trial records the failure of its cell; one that has died could not.
    recorded = {row["unit_id"]: row["reason"] for row in tables.rows(folder, "failures")}
    for failure in local.failures_of(local.continued(folder, plan).cells, ending.outcomes):
        if recorded.get(failure.cell.cell_id) != failure.reason:
            local.record_failure(folder, plan, failure)
    report = local.end(situation, ending.outcomes, ending.interrupted, ending.ended)
    return replace(report, trials=ending.trials)


def run_sweep(
    spec: SweepSpec | str | os.PathLike[str] | Mapping[str, Any],
    results: str | os.PathLike[str],
    *,
    address: str | None = None,
    tell: Callable[[str], None] | None = None,
    retrain: bool = False,
) -> Report:
    """What `raybasin.run` does with `ray`. Raises what `run` does."""
    from raybasin.jobs import prepare

    prepared = prepare.prepare(local.spec_of(spec))
    folder = folders.create(results)
    plugins = plugged(prepared.plan.settings)
    with heartbeat.beating(folder, prepared.plan.settings_id) as say, progress.in_notebook(tell is None) as show:
        situation = local.begin(folder, prepared, retrain)
        situation.check(retrain, workers=prepared.plan.spec.least_workers)

        def watch(stats: Stats) -> None:
            is_known = not prepared.plan.spec.search.by_results  # what is still to be done
            left = progress.seconds_left(stats.cost_done, stats.cost_left, stats.up_seconds) if is_known else None
            line = progress.line(situation.plan, stats.cells, stats.networks, stats.running.values(), left)
            say(line)
            (tell or show)(line)

        options = Options(address, retrain=retrain, tell=tell or show, log_trials=True)
        return run(situation, lambda: prepare.load(prepared), options, watch, plugins)


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

    def left() -> _Work:
        jobs = checkpoint_jobs(plan, inventory.survey(folder))
        return _Work(jobs, Before(networks=len(plan.facts.checkpoints) - len(jobs)))

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
    trials: tune.ResultGrid | None = None


@dataclass
class _Work:
    """What a queue is to have done."""

    jobs: Sequence[Job]
    before: Before
    further: int = 0
    """How many more jobs trials may put on the queue at once."""
    measure: Callable[[Any, str, str, Callable[[], int]], tune.ResultGrid | None] = lambda *asked: None
    """Has trials measure what there is to measure while workers do their jobs, given the queue, a folder, a name, and
    how many workers there are by now."""

    @property
    def most(self) -> int:
        """More workers than that would have nothing to do; none where nothing is to be done."""
        return len(self.jobs) + self.further


def _of_sweep(situation: Situation, plugins: search.Plugins, options: Options) -> _Work:
    """What is left of a sweep."""
    if options.log_trials:
        plugins = replace(plugins, callbacks=(*plugins.callbacks, JsonLoggerCallback()))
    plan, done, sought = situation.plan, situation.done, search.sought(situation, options.retrain)
    points = len(sought.listed) + sought.more if plan.spec.search.by_results else 0
    of_point = max(method.n_members for method in plan.spec.methods.values()) * plan.spec.replicates
    cells = sum(cell.cell_id in done.cells for cell in plan.cells)
    made = [checkpoint.key for checkpoint in plan.facts.checkpoints if checkpoint.pretrain is not None]
    networks = sum(member_id in done.members for member_id in plan.members)
    before = Before(cells, networks + sum(key in done.checkpoints for key in made))
    return _Work(sought.jobs, before, points * of_point, partial(_measure, situation, sought, plugins))


def _measure(
    situation: Situation, sought: search.Sought, plugins: search.Plugins,
    queue: Any, storage: str, name: str, workers: Callable[[], int],
) -> tune.ResultGrid | None:  # fmt: skip
    plan, chosen = situation.plan, inventory.chosen(situation.folder, situation.plan)
    by_results = plan.spec.search.by_results
    # A grid's jobs are there already, and trials begin beside working workers: both at once would be slower.
    if not (sought.listed or sought.more) or not (by_results or _until(queue.started.remote())):
        return None
    shared = Shared(
        queue, plan.settings, str(situation.folder.root), situation.done, chosen, tables.now(), submits=by_results,
        stepwise=plugins.scheduler is not None,
    )  # fmt: skip

    left = [cell for cell in plan.cells if cell.cell_id not in situation.done.cells]
    ends = search.Ends(queue, {local.cell_job(cell.cell_id): cell.point.on_map for cell in left})
    wide = search.width(plan.settings) if by_results else 1.0

    def at_once() -> int:
        """So many that every worker has something to do, and one more, whose jobs are there when another ends.
        Where all jobs are there, trials only tell of them, one after another: Ray Tune begins a process for each
        further one while it waits for a first, and then uses the first's."""
        return min(search.MAX_AT_ONCE, math.ceil(workers() / wide) + 1) if by_results else 1

    chooser: search.PointSearch | search.LineSearcher
    if sought.lines:
        chooser = search.LineSearcher(sought.lines, at_once, ends.is_over)
    else:
        chooser = search.PointSearch(
            plan.settings, situation.folder, sought.listed, at_once, ends.is_over,
            None if by_results else ends.points, plugins.searcher, sought.results,
        )  # fmt: skip
    logs = plan.spec.search.logs
    where = (os.path.abspath(os.path.expanduser(logs)), name) if logs else (storage, name)
    try:
        trials = search.run_trials(chooser, shared, plugins, *where)
    except TuneError as error:  # a callback, a scheduler or a searcher has raised; its text ends with what
        if isinstance(error.__context__, UserError):
            raise error.__context__ from None
        reason = one_line(str(error).strip().rpartition("\n")[2], 300)
        if by_results:
            raise UserError(f"search: what it names has raised {reason}; the same command continues") from error
        logger.warning("search: what it names has raised %s; it is told no more, and the sweep goes on", reason)
        return None
    if chooser.lost:
        raise chooser.lost
    return trials


@dataclass(frozen=True)
class _Run:
    """What is done on a cluster, and what is waited for."""

    settings: Settings
    folder: Folder
    options: Options
    watch: pool.Watch
    first: _Work
    again: Callable[[], _Work]
    """Looks what is left to do, after a queue has died."""
    awaited: tuple[str, ...]
    """Kinds of jobs: once all of these have ended, so has the run."""
    check: Callable[[int], None] = lambda workers: None
    """Raises UserError where the disk has no room for what so many workers do."""

    def on_cluster(self, load: Callable[[], Loaded]) -> _Ending:
        """Does on the cluster what is to be done, if anything is."""
        if not self.first.most:
            return _Ending()
        loaded = load()
        with (
            connect.cluster(self.options.address, loaded),
            # Ray Train and Ray Tune share through it the checkpoints that are reported to them, and none ever is; so it
            # need not be on a disk that all machines have.
            tempfile.TemporaryDirectory(prefix=STORAGE, ignore_cleanup_errors=True) as storage,
            _interruptible(self.options.stop_after_hours) as reasons,
        ):
            try:
                kinds = self._kinds()
                with room.enough(kinds, self.first.most, self.options.wait) as count:
                    connect.check_folder_is_shared(self.folder)
                    self.check(count)
                    in_store = ray.put(loaded)
                    connect.check_images_are_shared(loaded, in_store)
                    root, marker = str(self.folder.root), self.folder.marker
                    supplies = Supplies(root, marker, ray.put(self.settings), in_store, kinds)
                    return self._with_new_queues(supplies, storage)
            except KeyboardInterrupt:
                return _Ending(interrupted=reasons[0] if reasons else "SIGINT")

    def _kinds(self) -> tuple[Workers, ...]:
        """The kinds of workers; with `cpus: auto` as many CPUs as are fastest on the one machine that there is. Raises
        UserError where there are others, which may differ."""
        kinds = self.settings.spec.kinds
        if all(kind.cpus != "auto" for kind in kinds):
            return kinds
        if [node["NodeID"] for node in connect.alive_nodes()] != [ray.get_runtime_context().get_node_id()]:
            raise UserError(
                "workers.cpus: auto is measured on the machine of the command, and the cluster has others, which may "
                "differ;\ngive a number: raybasin plan FILE --measure cpu, on one of them, says which is fastest there"
            )
        from raybasin.jobs import threads

        free = max(1, int(ray.available_resources().get("CPU", 0)))
        return tuple(threads.resolved(kind, self.settings, free, self.options.tell) for kind in kinds)

    def _with_new_queues(self, supplies: Supplies, storage: str) -> _Ending:
        """A queue that dies takes its workers and trials along. A new one begins with what is not committed by then; so
        it goes on while each of them gets something done."""
        queues, work, metrics = 0, self.first, watching.Metrics(self.settings)
        sweep = f"{self.settings.spec.name}-{os.path.basename(storage).removeprefix(STORAGE)}"
        while work.most:
            queues += 1
            try:
                return self._with_queue(work, supplies, storage, f"{sweep}-{queues}", metrics)
            except RayActorError:
                before, work = work, self.again()
                if queues >= MAX_QUEUES and work.before == before.before:
                    return _Ending(ended=f"the queue has died {queues} times, the last time before anything was done")
        return _Ending()

    def _with_queue(
        self, work: _Work, supplies: Supplies, storage: str, name: str, metrics: watching.Metrics
    ) -> _Ending:
        """Has a queue and workers do `work`. Raises RayActorError when the queue dies, and FolderLost."""
        queue = Queue.options(scheduling_strategy=connect.here()).remote([kind.hang_seconds for kind in supplies.kinds])
        submitted, count = queue.submit.remote(work.jobs), 1

        def watch(stats: Stats) -> None:
            nonlocal count
            count = len(stats.pids)
            try:
                self.watch(stats)
            finally:
                metrics.show(stats, work.before)

        patient = self.options.wait is not None
        with pool.started(queue, supplies, work.most, storage, f"{name}-workers", patient) as workers:
            _until(submitted)  # the workers' processes start together with the queue's
            with pool.watching(workers, watch):
                trials = work.measure(queue, storage, f"{name}-cells", lambda: count)
                outcomes = _until(queue.ended.remote(self.awaited))  # also of cells whose trial has died
            stats = _until(queue.stats.remote())
        if stats.folder_lost:
            raise FolderLost(stats.fatal)
        return _Ending(outcomes, ended=stats.fatal, trials=trials)


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
