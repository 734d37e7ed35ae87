"""The worker pool: Ray Train runs whose workers take jobs from the queue; where there is room and work, one more.

Ray Train's own runs are of a fixed size and start only when there is room for all of it, so a run is small, and the
pool has as many as it takes.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import PlacementGroupID
from ray.exceptions import RayActorError, RayError
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from raybasin.cluster import connect, room
from raybasin.cluster.queue import Stats
from raybasin.cluster.worker import Supplies
from raybasin.errors import one_line
from raybasin.store.heartbeat import every
from raybasin.sweep.specs import Workers

STOP_SECONDS = 30.0
"""In which workers end that have been told that no more jobs will come."""
QUIT_SECONDS = 10.0
"""In which workers whose queue has died end by themselves, but for those that have a job in hand."""

POLL_SECONDS = 1.0
WORKER_SECONDS = 300.0
"""How long to wait for a worker, of a pool that has none."""
MAX_FAILED_LOOKS = 10
"""So many looks in a row at workers may fail in a way that nobody has thought of, and the sweep ends."""

RUN_WORKERS = 32
"""Of one run, at most. Each has processes of its own on the driver's machine, which take about as much memory as a
worker does; and one whose machines go may have to start anew as a whole."""
SETTLE_SECONDS = 10.0
"""Machines come one after the other: so long after the first room is seen, one run is started for all of them."""
PLACE_SECONDS = 60.0
"""A run that waits for a place so long, and whose workers do nothing, is ended: others may have room for them."""
IDLE_SECONDS = 5.0
"""Between two jobs a worker has none for a moment: so long without one, it does nothing."""
RETRY_SECONDS = 600.0
"""After so long workers of a kind are tried again that have found no place where there seemed to be one, while others
work."""

OVER = "the worker pool has ended before its work was done"

Watch = Callable[[Stats], None]

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """A Ray Train run: workers of one kind, which are named after its number and their rank."""

    number: int
    kind: int
    count: int
    fit: ray.ObjectRef[Any]
    group: str = ""
    """The placement group that holds its room, once a worker of it has told."""
    places: tuple[str, ...] = ()
    """On which nodes its workers have room: none yet, or fewer than it has workers since a machine is gone."""
    has_begun: bool = False
    """Whether it has ever had a place."""
    whole_at: float = field(default_factory=lambda: time.monotonic())
    """When it last had all its places, or had not asked for any yet: on a busy machine it takes a minute to start."""

    busy_at: float = -math.inf
    """When one of its workers was last seen with a job."""

    @property
    def name(self) -> str:
        return str(self.number)

    @property
    def workers(self) -> int:
        """Those it has, or will have soon: not those whose machine is gone."""
        return len(self.places) if self.has_begun else self.count

    def has_ended(self) -> str:
        """Why its workers are all gone before they were told to; empty while they are not."""
        if not ends(self.fit, 0):
            return ""
        try:
            ray.get(self.fit)
        except RayError as error:  # of whatever kind: the process may have been killed
            return f"the worker pool has failed: {str(error).strip().splitlines()[-1]}"
        return OVER

    def see(self, group: str, nodes: Collection[str], waits: bool) -> None:
        """Takes note of its group, if that is known, of the nodes where it has room, and whether it waits for more."""
        self.group, self.places = group, tuple(nodes)
        self.has_begun = self.has_begun or bool(nodes)
        if not waits:
            self.whole_at = time.monotonic()


@dataclass
class WorkerPool:
    """Ray Train runs, and what is needed to start another one."""

    queue: Any
    supplies: Supplies
    most: int
    """More workers than that would have nothing to do at the start."""
    storage: str
    """A folder of this machine, for Ray Train's files."""
    name: str
    runs: list[Run] = field(default_factory=list)
    started: int = 0
    ended: set[str] = field(default_factory=set)
    """Names of runs that are over."""
    room_since: float | None = None
    """When room was seen for which no run is started yet."""
    pauses: dict[int, float] = field(default_factory=dict)
    """Until when no worker is started, by kind."""
    jobs_ended: int = 0
    """By the time that it was last started again."""
    patient: bool = False
    """Whether room is waited for as long as there is none for any worker."""
    began_at: float = field(default_factory=lambda: time.monotonic())
    """When a run was last started."""

    def start(self) -> None:
        """Starts as many workers as there is room for, but not more than `most`. Where there is none, it comes when
        what held it has ended, and is then seen."""
        self.room_since = -math.inf
        self.grow(self.most)

    def start_again(self, jobs_ended: int) -> bool:
        """Starts the workers again, as many as the machines that are left have room for, if any job has ended since
        the last time. False where none has."""
        if jobs_ended == self.jobs_ended:
            return False
        self.jobs_ended = jobs_ended
        self.cancel()
        self.start()
        return True

    def tend(self, stats: Stats) -> str:
        """Looks at the runs: one that is over is forgotten, one that only holds room is ended, and where there is room
        and work a further one is started. Gives the reason if the last one has ended."""
        reason = ""
        for run in list(self.runs):
            if why := run.has_ended():
                reason = why
                self._end(run)
        self._look_for_places(stats.groups)
        busy = {_run_of(name) for name in stats.running}
        for run in list(self.runs):
            if run.name in busy:
                run.busy_at = time.monotonic()
            waits, idle = time.monotonic() - run.whole_at > PLACE_SECONDS, time.monotonic() - run.busy_at > IDLE_SECONDS
            if waits and (idle or not run.places):
                self._end(run)
                if not run.has_begun and self.runs:  # where nobody works, it is tried again at once
                    self.pauses[run.kind] = time.monotonic() + RETRY_SECONDS
        if reason and not self.runs:
            return reason
        names, there = {run.name for run in self.runs}, sum(run.workers for run in self.runs)
        broken = sum(_run_of(name) in names for name in stats.groups.keys() - stats.pids.keys())
        self.grow(stats.ready - (there - broken - len(stats.running)))
        return OVER if broken and broken >= sum(run.workers for run in self.runs) and self.room_since is None else ""

    def seconds_without(self) -> float:
        """For how long a worker could have come."""
        return 0.0 if self.patient and not self.runs else time.monotonic() - self.began_at

    def grow(self, useful: int) -> None:
        """Starts runs where there is room for workers, at most for so many."""
        counts = self._room(useful) if useful > 0 else []
        if not any(counts):
            self.room_since = None
            return
        self.room_since = time.monotonic() if self.room_since is None else self.room_since
        if time.monotonic() - self.room_since >= SETTLE_SECONDS:
            for kind, count in enumerate(counts):
                for begun in range(0, count, RUN_WORKERS):
                    self._start_run(kind, min(RUN_WORKERS, count - begun))
            self.room_since = None

    def cancel(self, patience: float = 0.0) -> None:
        """Ends all workers, at once or if they have not ended by themselves after `patience` seconds. Ray Train waits
        for a worker that has no place; nobody else does."""
        if patience:
            self._look_for_places({})
        for run in self.runs:
            if len(run.places) == run.count:
                began = time.monotonic()
                ends(run.fit, patience)
                patience = max(0.0, patience - (time.monotonic() - began))
        for run in list(self.runs):
            self._end(run)
        for group in _groups(self.supplies.kinds):
            _remove(group)

    def _start_run(self, kind: int, count: int) -> None:
        number, workers = self.started, self.supplies.kinds[kind]
        self.started += 1
        config = {"queue": self.queue, "supplies": self.supplies, "run": number, "kind": kind}
        name = f"{self.name}-{number}"  # by which the dashboard and metrics tell of it
        options = _fit.options(name=name, scheduling_strategy=connect.here())  # where `storage` is
        fit = options.remote(config, workers, count, self.storage, name)
        self.runs.append(Run(number, kind, count, fit))
        self.began_at = time.monotonic()

    def _end(self, run: Run) -> None:
        """Ends a run, if it has not ended, and gives back what it holds. Ray Train leaves that to an actor that needs
        the dashboard to see that a run has died; without one, others would find no room."""
        if not ends(run.fit, 0):  # to cancel what has just ended may crash Ray 2.60
            ray.cancel(run.fit, force=True)
            ray.wait([run.fit], timeout=10)
        if run.group:
            _remove(run.group)
        self.runs.remove(run)
        self.ended.add(run.name)

    def _look_for_places(self, told: Mapping[str, str]) -> None:
        """Finds out where the runs have room, and removes the groups that runs which have died have left.

        A worker tells which group is its run's. Before one has, the groups that are like it and nobody's stand for all
        runs of that kind and size together: how much room these have is known, but not which of them has it. So none
        waits for room as long as any of the groups has it, and none of them is removed. Where they are more than runs,
        one that has died may hold the room of those that live.
        """
        groups = _groups(self.supplies.kinds)
        of_run = {_run_of(name): group for name, group in told.items()}
        known = {run.number: group for run in self.runs if (group := of_run.get(run.name, run.group)) in groups}
        nobodys = [held for group, held in groups.items() if group not in known.values()]
        alive = {node["NodeID"] for node in connect.alive_nodes()}
        untold: dict[tuple[int, int], list[Run]] = {}
        for run in self.runs:
            if run.number in known:
                nodes = [node for node in groups[known[run.number]].nodes if node in alive]
                run.see(known[run.number], nodes, len(nodes) < run.count)
            else:
                untold.setdefault((run.kind, run.count), []).append(run)
        asked = [self._share(runs, nobodys, alive) for runs in untold.values()]
        for group, held in groups.items():
            if group not in known.values() and held.bundles not in asked:
                _remove(group)

    def _share(
        self, runs: Sequence[Run], nobodys: Collection[_Group], alive: Collection[str]
    ) -> list[dict[str, float]]:
        """Lets runs of one kind and size, of which none has told, stand for the groups that are like them; gives what
        these ask for."""
        count = runs[0].count
        asked = [room.asked(self.supplies.kinds[runs[0].kind])] * count
        placed = [[node for node in held.nodes if node in alive] for held in nobodys if held.bundles == asked]
        wait = len(placed) > len(runs) or not any(len(nodes) == count for nodes in placed)
        for run, nodes in itertools.zip_longest(runs, placed[: len(runs)]):
            run.see("", nodes or (), wait and nodes is not None)
        return asked

    def _room(self, useful: int) -> list[int]:
        """For how many more workers of each kind there is room, at most for so many in all."""
        kinds, limits = self.supplies.kinds, []
        for number, kind in enumerate(kinds):
            there = sum(run.workers for run in self.runs if run.kind == number)
            paused = time.monotonic() < self.pauses.get(number, 0.0)
            limits.append(0 if paused else max(0, (kind.count or math.inf) - there))
        taken = [(node, run.kind) for run in self.runs for node in run.places]
        waiting = [(kinds[run.kind], run.count - len(run.places)) for run in self.runs]
        return room.slots(kinds, room.nodes(kinds, taken), limits, useful, waiting)


@contextlib.contextmanager
def started(
    queue: Any, supplies: Supplies, most: int, storage: str, name: str, patient: bool = False
) -> Iterator[WorkerPool]:
    """A pool of at most `most` workers, which in the end finish what they have in hand, and after an error do not."""
    pool = WorkerPool(queue, supplies, most, storage, name, patient=patient)
    pool.start()
    try:
        yield pool
        with contextlib.suppress(RayError):
            ray.get(queue.close.remote(), timeout=STOP_SECONDS)
        pool.cancel(patience=STOP_SECONDS)
    except BaseException as error:
        pool.cancel(patience=QUIT_SECONDS if isinstance(error, RayActorError) else 0.0)
        raise


def ends(reference: ray.ObjectRef[Any], seconds: float = math.inf) -> bool:
    """Whether it does within so many seconds. Unlike one long wait or `ray.get`, this notices a signal."""
    deadline = time.monotonic() + seconds
    while not ray.wait([reference], timeout=min(seconds, 0.2))[0]:
        if time.monotonic() >= deadline:
            return False
    return True


@ray.remote(num_cpus=0, max_retries=0)
def _fit(config: dict[str, Any], kind: Workers, count: int, storage: str, name: str) -> None:
    """Runs a Ray Train run. As a task of its own it can be cancelled, which a thread in `fit` cannot."""
    from raybasin.cluster import train_run

    train_run.fit(config, kind, count, storage, name)


def _run_of(worker: str) -> str:
    return worker.partition(".")[0]


# The placement groups in which Ray Train holds the workers' room


@dataclass(frozen=True)
class _Group:
    bundles: list[dict[str, float]]
    nodes: tuple[str, ...]
    """Where the bundles are; those that wait for a place are not among them."""


def _groups(kinds: Collection[Workers]) -> dict[str, _Group]:
    """The groups of workers that this process's runs have, or have left behind, by id, which ends with that of the
    job."""
    own, asked = ray.get_runtime_context().get_job_id(), [room.asked(kind) for kind in kinds]
    found = {}
    for group, held in placement_group_table().items():
        bundles = list(held["bundles"].values())
        if group.endswith(own) and held["state"] != "REMOVED" and bundles and bundles[0] in asked:
            found[group] = _Group(bundles, tuple(node for node in held["bundles_to_node_id"].values() if node))
    return found


def _remove(group: str) -> None:
    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))


# Looking after it


@contextlib.contextmanager
def watching(pool: WorkerPool, watch: Watch) -> Iterator[None]:
    """Shows the state of the queue about once a second, and ends it when its workers do not come or are all gone."""
    looks = _Looks(pool, watch)
    with every(POLL_SECONDS, looks.look):
        yield
    with contextlib.suppress(RayError):
        looks.show(ray.get(pool.queue.stats.remote()))


@dataclass
class _Looks:
    """One look after another at the queue and the workers of `pool`."""

    pool: WorkerPool
    watch: Watch
    failed: int = 0
    """How many have in a row."""
    told: bool = False
    """Whether that progress cannot be shown."""

    def look(self) -> None:
        try:
            stats = ray.get(self.pool.queue.stats.remote(), timeout=60)
            self.show(stats)
            if not stats.idle:
                _look_after(self.pool, stats)
            self.failed = 0
        except RayError:  # what has died is looked at again, or is the queue, as those who wait for it notice
            pass
        except Exception as error:  # without anybody who looks, a worker that hangs would hold up everything
            self.failed += 1
            if self.failed >= MAX_FAILED_LOOKS:
                reason = one_line(f"{type(error).__name__}: {error}", 300)
                with contextlib.suppress(Exception):  # it is tried again
                    ray.get(self.pool.queue.end.remote(f"nobody can look after the workers any more: {reason}"))

    def show(self, stats: Stats) -> None:
        """That progress cannot be shown is no reason to stop looking after workers; a fault is told once."""
        try:
            self.watch(stats)
        except OSError:  # a closed pipe, or a folder that is lost, which workers notice too
            pass
        except Exception as error:
            if not self.told:
                logger.warning("progress cannot be shown: %s", one_line(f"{type(error).__name__}: {error}", 300))
            self.told = True


def _look_after(pool: WorkerPool, stats: Stats) -> None:
    """Ends workers that hang, takes from those whose machine or run is gone what they held, sees that there are as many
    as can be, starts a pool that is gone again, and ends a queue for which no worker will come."""
    dead = [node["NodeID"] for node in ray.nodes() if not node["Alive"]]
    for worker in ray.get(pool.queue.hanging.remote(dead, pool.ended)):
        with contextlib.suppress(RayError):
            ray.kill(worker.actor)  # Ray Train replaces it
    reason = pool.tend(stats)
    if not reason and min(stats.quiet_seconds, pool.seconds_without()) > WORKER_SECONDS:
        reason = f"no worker has been heard of for {WORKER_SECONDS:g} s"
    if reason and not pool.start_again(stats.jobs_ended):
        ray.get(pool.queue.end.remote(reason))
