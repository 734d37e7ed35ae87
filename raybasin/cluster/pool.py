"""The fleet: one long Ray Train run whose workers take jobs from a queue until it is closed.

Starting a worker that imports torch and timm costs more than most jobs, so workers are started once. The queue is an
actor around `jobs.scheduler`; workers pull from it and anyone may put jobs on it and wait for them. Nothing durable
lives here: what a job has done is in the results folder, and a fleet that dies is replaced by running the sweep again.

No worker calls `ray.train.report`: it is a barrier over all workers, and these have nothing to wait for.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray import PlacementGroupID
from ray.exceptions import RayActorError, RayError
from ray.train.backend import Backend, BackendConfig
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybasin.errors import FolderLost, StoreError, one_line
from raybasin.jobs.scheduler import MAX_TRIES, Outcome, Scheduler
from raybasin.sweep.plan import Job
from raybasin.sweep.specs import Workers

TAKE_SECONDS = 20.0
BEAT_SECONDS = 1.0
AWAY_SECONDS = 3 * TAKE_SECONDS
"""A worker that waits for a job asks for one more often than that."""
HANG_FACTOR = 10.0
"""A worker hangs that has not got on for so many times the longest stretch that jobs of its kind go without a sign, and
for `workers.hang_seconds` at least. Before a job of its kind has ended there is no measure, and the least is so many
times as long."""
GPU_MEMORY_SHARE = 0.95
"""Of its share of a GPU's memory, what a worker may allocate; the rest is for its CUDA context."""
MAX_BARREN_STARTS = 6
"""A worker that has been started so many times on one machine, and has ended no job, is not started once more."""
MAX_FAILED_STARTS = 2
"""A worker that cannot start so many times in a row is given up."""


class _ReplicaBackend(Backend):
    """Each worker is its own replica group, so that Ray Train replaces only the one that died (Ray 2.60)."""

    has_replica_groups = True


class ReplicaBackendConfig(BackendConfig):
    """No process group: workers do not talk to each other."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _ReplicaBackend


@dataclass(frozen=True)
class Process:
    """Where a worker runs: its process, its node and that one's name, and the actor by which Ray can end it."""

    pid: int
    node_id: str = ""
    actor: Any = None
    machine: str = ""


@dataclass(frozen=True)
class Stats:
    """The queue at one moment. Seconds count from the first job that was taken."""

    cells: tuple[int, int]
    networks: tuple[int, int]
    running: dict[str, str]
    pids: dict[int, int]
    """The process of each worker, by its rank."""
    nodes: dict[int, str]
    """The node of each worker, by its rank."""
    quiet_seconds: float
    """How long there has been work, no worker that does it, and no sign of one that waits or starts."""
    jobs_ended: int
    idle: bool
    failed_cells: int
    cost_left: float
    cost_done: float
    busy_seconds: float
    up_seconds: float
    fatal: str
    folder_lost: bool
    """Whether `fatal` is that the results folder cannot be written."""
    given_up: tuple[str, ...]
    """A line for each worker that gets no more jobs, since it is broken: which, where and why."""


class JobQueue:
    """Hands out jobs. A worker is known by its rank and its incarnation: how many have held that rank."""

    def __init__(self, max_tries: int = MAX_TRIES, hang_seconds: float = 60.0) -> None:
        self.changed = asyncio.Condition()
        self.scheduler = Scheduler(max_tries, changed=self.changed.notify_all)
        self.hang_seconds = hang_seconds
        self.incarnation: dict[int, int] = {}
        self.processes: dict[int, Process] = {}
        self.hung: list[Process] = []
        self.last_words: dict[int, tuple[str, str]] = {}
        self.failed_starts: dict[int, int] = {}
        self.given_up: dict[int, str] = {}
        self.told: list[str] = []
        self.barren_starts: dict[tuple[int, str], int] = {}
        self.closed = False
        self.fatal = ""
        self.folder_lost = False
        self.first_take: float | None = None
        self.last_done: float | None = None
        self.taken_at: dict[str, float] = {}
        self.beat_at: dict[int, float] = {}
        self.starting: set[int] = set()
        self.heard_at = time.monotonic()
        self.longest_stretch: dict[str, float] = {}
        self.measured: set[str] = set()
        self.busy_seconds = 0.0
        self.cost_done = 0.0

    async def submit(self, jobs: Sequence[Job]) -> None:
        """Puts jobs on the board; those that are there already stay as they are."""
        async with self.changed:
            self.scheduler.add(jobs)
            if self.fatal:
                self.scheduler.fail_all(self.fatal)

    async def outcomes(self, job_ids: Sequence[str]) -> list[Outcome]:
        """What came of these jobs, once all of them have ended. One that was never submitted has failed."""
        scheduler = self.scheduler
        async with self.changed:
            await self.changed.wait_for(
                lambda: all(i in scheduler.outcomes or i not in scheduler.jobs for i in job_ids)
            )
            return [scheduler.outcomes.get(i) or Outcome(False, reason=f"job {i} is not in the queue") for i in job_ids]

    async def started(self) -> bool:
        """Returns when the first worker has taken a job (True), or none ever will (False)."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.first_take is not None or self.closed or self.scheduler.idle)
            return self.first_take is not None and not self.closed

    async def hello(self, rank: int, pid: int, node_id: str = "", actor: Any = None, machine: str = "") -> int:
        """A worker has started: what the last one of its rank still held waits again. 0 if it may go at once."""
        async with self.changed:
            self._hear(rank)
            self.incarnation[rank] = self.incarnation.get(rank, 0) + 1
            self.processes[rank] = Process(pid, node_id, actor, machine)
            self.starting.add(rank)
            self.given_up.pop(rank, None)
            self._lose(rank)
            self.scheduler.joined(str(rank), node_id)
            self.changed.notify_all()
            starts = self.barren_starts[rank, node_id] = self.barren_starts.get((rank, node_id), 0) + 1
            if starts > MAX_BARREN_STARTS:
                self._give_up(rank, f"it has died {starts - 1} times and has ended no job")
                return 0
            return self.incarnation[rank]

    async def take(self, rank: int, incarnation: int) -> Job | str:
        """The next job of a worker, or `closed`, or `again` after 20 s without one, or `stale`, or `given up`.

        A call of a worker that has died may still be waiting here: it must not swallow a job.
        """
        async with self.changed:
            deadline = time.monotonic() + TAKE_SECONDS
            if self.incarnation.get(rank) == incarnation:
                self._hear(rank)
                self.starting.discard(rank)
                self.failed_starts.pop(rank, None)
            while True:
                if self.incarnation.get(rank) != incarnation:
                    return "stale"
                if self.closed:
                    return "closed"
                if rank in self.given_up:
                    return "given up"
                job = self.scheduler.take(str(rank), self.processes[rank].node_id)
                if job is not None:
                    if self.first_take is None:
                        self.first_take = time.monotonic()
                        self.changed.notify_all()
                    self.taken_at[str(rank)] = time.monotonic()
                    self._hear(rank)
                    return job
                left = deadline - time.monotonic()
                if left <= 0:
                    return "again"
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), left)

    async def beat(self, rank: int, incarnation: int, stretch: float) -> None:
        """A job has got on. `stretch` is the longest time, in seconds, that it has been without a sign so far."""
        job_id = self.scheduler.held.get(str(rank))
        if self.incarnation.get(rank) == incarnation and job_id is not None:
            self._hear(rank)
            self._measure(job_id, stretch)

    async def done(self, rank: int, incarnation: int, job_id: str, value: Any, stretch: float = 0.0) -> None:
        async with self.changed:
            self._measure(job_id, stretch)
            self.measured.add(self.scheduler.jobs[job_id].kind)
            if job_id not in self.scheduler.outcomes:
                self.cost_done += self.scheduler.jobs[job_id].cost
            if self.incarnation.get(rank) == incarnation:
                self._stop_clock(str(rank))
                self._is_fruitful(rank)
            self.scheduler.done(str(rank), job_id, value)
            self.last_done = time.monotonic()
            for worker, reason in self.scheduler.broken().items():
                self._give_up(int(worker), f"jobs that others could do went wrong there: {reason}")

    async def failed(
        self, rank: int, incarnation: int, job_id: str, reason: str, traceback: str = "", certain: bool = False
    ) -> None:
        """A job has raised; `certain` is that it would elsewhere, too."""
        async with self.changed:
            if self.incarnation.get(rank) == incarnation and rank not in self.given_up:
                self._stop_clock(str(rank))
                self._is_fruitful(rank)
                self.scheduler.failed(str(rank), job_id, reason, traceback, certain)

    async def cannot_start(self, rank: int, incarnation: int, reason: str) -> bool:
        """A worker's imports or device have failed. Whether another process is to try it in its place; else the worker
        is given up. Those that can start go on, and where there are none the fleet ends."""
        async with self.changed:
            if self.incarnation.get(rank) != incarnation:
                return True
            self.failed_starts[rank] = self.failed_starts.get(rank, 0) + 1
            if self.failed_starts[rank] < MAX_FAILED_STARTS and not self.closed:
                return True
            self._give_up(rank, f"it cannot start: {reason}")
            return False

    async def dying(self, rank: int, reason: str, traceback: str = "") -> None:
        """The last words of a worker that a job has ruined: its successor may do the job."""
        self.last_words[rank] = reason, traceback

    async def gone(self, rank: int, node_id: str) -> None:
        """The machine of a worker is gone: what it held waits again, and is not to blame."""
        async with self.changed:
            if rank in self.processes and self.processes[rank].node_id == node_id:
                self._replace(rank, "its machine is gone", blamed=False)

    async def hanging(self) -> list[Process]:
        """The workers that hang, each of them once; what they held waits again."""
        async with self.changed:
            for rank in list(self.processes):
                silent = time.monotonic() - self.beat_at[rank]
                if silent > self._patience(rank):
                    self.hung.append(self.processes[rank])
                    self._replace(rank, f"no progress for {silent:.0f} s")
                elif silent > AWAY_SECONDS and str(rank) in self.scheduler.machines.keys() - self.scheduler.held.keys():
                    self.scheduler.lost(str(rank))  # it may be dead: no job is kept for it
            found, self.hung = self.hung, []
            return found

    async def end(self, reason: str, folder_lost: bool = False) -> None:
        """Nothing more can be done: everybody who waits is told why."""
        async with self.changed:
            self.folder_lost = self.folder_lost or folder_lost
            self._end(reason)
            self.changed.notify_all()

    async def close(self) -> None:
        """No more jobs will come: workers end when they next ask."""
        async with self.changed:
            self.closed = True
            self.changed.notify_all()

    async def stats(self) -> Stats:
        until = time.monotonic() if not self.scheduler.idle else (self.last_done or time.monotonic())
        running = sum(time.monotonic() - since for since in self.taken_at.values())
        return Stats(
            cells=self.scheduler.count("cell"),
            networks=_added(self.scheduler.count("member"), self.scheduler.count("checkpoint")),
            running=dict(self.scheduler.held),
            pids={rank: process.pid for rank, process in self.processes.items() if rank not in self.given_up},
            nodes={rank: process.node_id for rank, process in self.processes.items()},
            quiet_seconds=0.0 if self.scheduler.held or self.scheduler.idle else time.monotonic() - self.heard_at,
            jobs_ended=len(self.scheduler.outcomes),
            idle=self.scheduler.idle,
            failed_cells=self.scheduler.count_failed("cell"),
            cost_left=self.scheduler.cost_left(),
            cost_done=self.cost_done,
            busy_seconds=self.busy_seconds + running,
            up_seconds=until - self.first_take if self.first_take else 0.0,
            fatal=self.fatal,
            folder_lost=self.folder_lost,
            given_up=tuple(self.told),
        )

    def _lose(self, rank: int, blamed: bool = True) -> None:
        """What the worker of `rank` held waits again."""
        self._stop_clock(str(rank))
        self.scheduler.lost(str(rank), *self.last_words.pop(rank, ("", "")), blamed=blamed)

    def _give_up(self, rank: int, reason: str) -> None:
        """A worker that is broken gets no more jobs, and those that went wrong there are not to blame. What it has in
        hand, and does after all, counts."""
        self._stop_clock(str(rank))
        self.starting.discard(rank)
        self.given_up[rank] = reason
        self.told.append(f"worker {rank} on {self.processes[rank].machine} was given up: {reason}")
        self.scheduler.dismiss(str(rank))

    def _replace(self, rank: int, reason: str, blamed: bool = True) -> None:
        """A worker that hangs, or whose machine is gone, keeps no job. Should it live after all, it is told so."""
        self.incarnation[rank] += 1
        self.last_words[rank] = reason, ""
        self._lose(rank, blamed)
        del self.processes[rank]
        self.starting.discard(rank)

    def _hear(self, rank: int) -> None:
        self.beat_at[rank] = self.heard_at = time.monotonic()

    def _measure(self, job_id: str, stretch: float) -> None:
        kind = self.scheduler.jobs[job_id].kind
        self.longest_stretch[kind] = max(stretch, self.longest_stretch.get(kind, 0.0))

    def _patience(self, rank: int) -> float:
        """How long, in seconds, the worker of `rank` may go without a sign before it is taken to hang."""
        job_id = self.scheduler.held.get(str(rank))
        if job_id is None:  # it waits for a job, which is no hanging, unless it has never got so far
            return HANG_FACTOR * self.hang_seconds if rank in self.starting else math.inf
        kind = self.scheduler.jobs[job_id].kind
        least = self.hang_seconds if kind in self.measured else HANG_FACTOR * self.hang_seconds
        return max(least, HANG_FACTOR * self.longest_stretch.get(kind, 0.0))

    def _is_fruitful(self, rank: int) -> None:
        self.barren_starts.pop((rank, self.processes[rank].node_id), None)

    def _stop_clock(self, worker: str) -> None:
        since = self.taken_at.pop(worker, None)
        if since is not None:
            self.busy_seconds += time.monotonic() - since

    def _end(self, reason: str) -> None:
        more = f"and {len(self.told) - 2} more workers were given up"
        self.fatal = self.fatal or "; ".join([reason, *self.told[:2], *[more][: len(self.told) > 2]])
        self.closed = True
        self.scheduler.fail_all(self.fatal)


Queue: Any = ray.remote(num_cpus=0, max_restarts=0)(JobQueue)


def _added(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]


# Workers


@dataclass(frozen=True)
class Supplies:
    """What every worker is given: the folder's address and marker, and references to the plan and decoded images."""

    root: str
    marker: str | None
    plan: ray.ObjectRef[Any]
    loaded: ray.ObjectRef[Any]
    workers: Workers
    count: int
    """How many workers there were room for at the start. Later on, what a fleet that has died still holds may not look
    free yet; Ray Train waits for it."""


def work(config: dict[str, Any]) -> None:
    """The loop of one Ray Train worker: takes jobs until the queue is closed."""
    import ray.train

    here = ray.get_runtime_context()
    place = os.getpid(), here.get_node_id(), here.current_actor, platform.node()
    serve(config["queue"], config["supplies"], ray.train.get_context().get_world_rank(), place)


def serve(queue: Any, supplies: Supplies, rank: int, place: tuple[Any, ...]) -> None:
    """What the worker of this rank does; `place` is what else `JobQueue.hello` is told. It returns when it is to do no
    more, and raises when another process is to be started for it."""
    try:
        incarnation = ray.get(queue.hello.remote(rank, *place))
        if not incarnation:
            return
        try:
            context, run = _bench(supplies)
        except Exception as error:
            if ray.get(queue.cannot_start.remote(rank, incarnation, one_line(f"{type(error).__name__}: {error}", 300))):
                raise
            return
        while not isinstance(job := ray.get(queue.take.remote(rank, incarnation)), str) or job == "again":
            if isinstance(job, Job):
                _do(job, context, run, queue, rank, incarnation)
        if job == "stale":
            raise RuntimeError(f"worker {rank} has been replaced")
    except RayActorError:  # the queue is gone, and with it the driver
        return


def _bench(supplies: Supplies) -> tuple[Any, Any]:
    """The heavy imports, once per worker, and everything a job needs; the device has been seen to compute."""
    import torch

    from raybasin.jobs import execution
    from raybasin.jobs.worker_context import WorkerContext
    from raybasin.store import folders

    plan, loaded = ray.get([supplies.plan, supplies.loaded])
    if plan.spec.recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.set_num_threads(max(1, int(supplies.workers.cpus)))
    device = torch.device("cuda:0" if supplies.workers.gpus else "cpu")
    if 0 < supplies.workers.gpus < 1:  # Ray shares a GPU by number only; memory must be kept apart here
        torch.cuda.set_per_process_memory_fraction(GPU_MEMORY_SHARE * supplies.workers.gpus)
    execution.prove(device)
    folder = replace(folders.folder(supplies.root), marker=supplies.marker)
    return WorkerContext(folder, plan, loaded.target, loaded.pretrain, device, loaded.shifts), execution.run


@dataclass
class _Pulse:
    """Tells the queue that a job gets on, once a second at most, and how long it went without a sign at worst."""

    tell: Callable[[float], None]
    beat_at: float = field(default_factory=time.monotonic)
    told_at: float = field(default_factory=time.monotonic)
    stretch: float = 0.0

    def __call__(self) -> None:
        self.measure()
        if self.beat_at - self.told_at >= BEAT_SECONDS:
            self.told_at = self.beat_at
            self.tell(self.stretch)

    def measure(self) -> float:
        now = time.monotonic()
        self.stretch = max(self.stretch, now - self.beat_at)
        self.beat_at = now
        return self.stretch


@contextlib.contextmanager
def _ticking(pulse: _Pulse, waits: Callable[[], bool]) -> Iterator[None]:
    """Gives signs while `waits` says that something is waited for which ends by itself."""
    over = threading.Event()

    def tick() -> None:
        while not over.wait(BEAT_SECONDS):
            if waits():
                pulse()

    ticker = threading.Thread(target=tick, name="ticker", daemon=True)
    ticker.start()
    try:
        yield
    finally:
        over.set()
        ticker.join()


def _do(job: Job, context: Any, run: Any, queue: Any, rank: int, incarnation: int) -> None:
    from raybasin.jobs import execution

    pulse = _Pulse(lambda stretch: queue.beat.remote(rank, incarnation, stretch))
    try:
        with _ticking(pulse, context.folder.waits):
            value = run(job, context, pulse)
    except FolderLost as error:  # no job of any cell can be done any more
        continues = "; the same command continues" if isinstance(error, StoreError) else ""
        ray.get(queue.end.remote(f"{error}{continues}", folder_lost=True))
        return
    except Exception as error:  # it fails the cells that need the job, not the fleet
        raised = execution.raised(error)
    else:
        ray.get(queue.done.remote(rank, incarnation, job.job_id, value, pulse.measure()))
        return
    try:
        execution.recover(context.device)
    except Exception:  # this process can do nothing any more; another one may do the job
        ray.get(queue.dying.remote(rank, raised.reason, raised.traceback))
        raise
    ray.get(queue.failed.remote(rank, incarnation, job.job_id, raised.reason, raised.traceback, raised.certain))


# Starting and stopping


@dataclass
class Fleet:
    queue: Any
    start: Callable[[int], ray.ObjectRef[Any]]
    """Starts so many workers; what it gives back ends with them."""
    supplies: Supplies
    most: int
    fit: ray.ObjectRef[Any]
    jobs_ended: int = 0
    """By the time that it was last started again."""

    def start_again(self, jobs_ended: int) -> bool:
        """Starts the workers again, as many as the machines that are left have room for, if any job has ended since
        the last time."""
        if jobs_ended == self.jobs_ended:
            return False
        self.jobs_ended = jobs_ended
        self._free()
        self.fit = self.start(min(self.most, _that_fit_now(self.supplies)))
        return True

    def kill(self, process: Process) -> None:
        """Ends the process of a worker that hangs, wherever it is; Ray Train replaces it."""
        with contextlib.suppress(RayError):
            ray.kill(process.actor)

    def has_ended(self) -> str:
        """Why the workers are all gone before they were told to; empty while they are not."""
        done, _ = ray.wait([self.fit], timeout=0)
        if not done:
            return ""
        try:
            ray.get(self.fit)
        except RayError as error:  # of whatever kind: the process may have been killed
            return f"the fleet has failed: {str(error).strip().splitlines()[-1]}"
        return "the fleet has ended before its work was done"

    def stop(self, timeout: float = 30.0) -> None:
        """Lets workers finish, or cancels them after `timeout` seconds."""
        with contextlib.suppress(RayError):
            ray.get(self.queue.close.remote(), timeout=timeout)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:  # in short waits, in which a signal is noticed
            if ray.wait([self.fit], timeout=0.2)[0]:
                return
        self.cancel()

    def cancel(self, patience: float = 0.0) -> None:
        """Ends all workers, at once or if they have not ended by themselves after `patience` seconds."""
        if not ray.wait([self.fit], timeout=patience)[0]:  # to cancel what has just ended may crash Ray 2.60
            ray.cancel(self.fit, force=True)
            ray.wait([self.fit], timeout=10)
        self._free()

    def _free(self) -> None:
        """Gives back what workers of this run still hold. Ray Train leaves that to an actor that needs the dashboard to
        see that a run has died; without one, workers that are started again would find no room."""
        own = ray.get_runtime_context().get_job_id()
        for group_id, group in placement_group_table().items():
            held = group["state"] != "REMOVED" and _resources(self.supplies.workers) in group["bundles"].values()
            if held and group_id.endswith(own):  # an id ends with that of the job that has made it
                remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group_id))))


def _resources(workers: Workers) -> dict[str, float]:
    return {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}


@ray.remote(num_cpus=0, max_retries=0)
def _fit(config: dict[str, Any], count: int, storage: str, name: str) -> None:
    """Runs the Ray Train run. As a task of its own it can be cancelled, which a thread in `fit` cannot."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    workers = config["supplies"].workers
    resources = _resources(workers)
    DataParallelTrainer(
        work,
        train_loop_config=config,
        backend_config=ReplicaBackendConfig(),
        scaling_config=ScalingConfig(num_workers=count, use_gpu=workers.gpus > 0, resources_per_worker=resources),
        run_config=RunConfig(name=name, storage_path=storage, failure_config=FailureConfig(max_failures=-1)),
    ).fit()


def start(queue: Any, supplies: Supplies, most: int, storage: str, name: str) -> Fleet:
    """Starts as many workers as there is room for, but not more than `most`."""
    numbers = itertools.count()
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # where `storage` is

    def fit(count: int) -> ray.ObjectRef[Any]:
        config = {"queue": queue, "supplies": supplies}
        return _fit.options(scheduling_strategy=here).remote(config, count, storage, f"{name}-{next(numbers)}")

    return Fleet(queue, fit, supplies, most, fit(min(most, _that_fit_now(supplies))))


def _that_fit_now(supplies: Supplies) -> int:
    """As many workers as at the start, or as the machines that are there by now have room for."""
    nodes = list(alive_nodes())
    whole = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    return max(1, min(supplies.count, slots(supplies.workers, nodes, whole)))


# How many workers fit


def slots(workers: Workers, nodes: Iterable[dict[str, float]], free: dict[str, float]) -> int:
    """How many workers fit: on each node by its CPUs and whole shares of its GPUs, and into what is free in all.

    0.1 CPU is left for the trials, which otherwise would wait for ever.
    """
    by_node = 0
    for node in nodes:
        fitting = [int(node.get("CPU", 0) / workers.cpus + 1e-9)]
        if workers.gpus:
            gpus = node.get("GPU", 0)
            fitting.append(int(gpus / workers.gpus) if workers.gpus >= 1 else int(gpus) * int(1 / workers.gpus + 1e-9))
        by_node += min(fitting)
    in_all = [int((free.get("CPU", 0) - 0.1) / workers.cpus + 1e-9)]
    if workers.gpus:
        in_all.append(int(free.get("GPU", 0) / workers.gpus + 1e-9))
    return max(0, min(by_node, *in_all))


def alive_nodes() -> Iterator[dict[str, float]]:
    yield from (node["Resources"] for node in ray.nodes() if node["Alive"])
