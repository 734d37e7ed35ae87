"""The queue: an actor around `jobs.scheduler`, which knows the workers that take jobs from it, and when one is dead.

Anyone may put jobs on it and wait for them. Nothing durable lives here: what a job has done is in the results folder,
and a queue that dies is replaced by one that begins with what is left.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from raybasin.jobs.scheduler import Outcome, Scheduler
from raybasin.sweep.job_list import Job

TAKE_SECONDS = 20.0
NEWS_SECONDS = 1.0
"""Whoever waits for several jobs is told of those together that end within it."""
AWAY_SECONDS = 3 * TAKE_SECONDS
"""A worker that waits for a job asks for one more often than that."""
PACE_SECONDS = 60.0
"""Images a second are counted over the last so many, of a younger run since its first job was taken."""
HANG_FACTOR = 10.0
MAX_BARREN_STARTS = 6
"""A worker that has been started so many times on one machine, and has ended no job, is not started once more."""
MAX_FAILED_STARTS = 2
"""A worker that cannot start so many times in a row is given up."""


@dataclass
class Worker:
    """A process that does jobs. `incarnation` is how many have had its name, which is `run.rank`: the scheduler holds
    what goes wrong against a name, not against a process."""

    name: str
    incarnation: int
    pid: int
    node_id: str
    actor: Any
    """By which Ray can end it."""
    machine: str
    group: str
    """The placement group that holds its room."""
    heard_at: float
    doing: str = "start"
    """The kind of job that it has in hand; empty while it waits for one."""
    since: float = field(default_factory=lambda: time.monotonic())
    took_at: float | None = None
    """When it took that."""
    last_words: tuple[str, str] = ("", "")
    """Why it cannot go on, and the traceback."""
    given_up: bool = False


@dataclass
class Patience:
    """How long a worker with a job may give no sign before it is taken to hang: HANG_FACTOR times the longest that jobs
    of that kind have gone without one, on workers of one kind, and `least` seconds at least. Before a job of the kind
    has ended there is no measure, and the least is HANG_FACTOR times as long, as it is for a start. One that waits may
    do so for ever."""

    least: float
    longest: dict[str, float] = field(default_factory=dict)
    """The longest stretch without a sign, in seconds, by kind of job."""
    measured: set[str] = field(default_factory=set)
    """Kinds of which a job has ended."""

    def note(self, kind: str, stretch: float) -> None:
        self.longest[kind] = max(stretch, self.longest.get(kind, 0.0))

    def ended(self, kind: str, stretch: float) -> None:
        self.note(kind, stretch)
        self.measured.add(kind)

    def seconds(self, kind: str) -> float:
        if not kind:
            return math.inf
        least = self.least if kind in self.measured else HANG_FACTOR * self.least
        return max(least, HANG_FACTOR * self.longest.get(kind, 0.0))


@dataclass(frozen=True)
class Stats:
    """The queue at one moment. Of `cells` and `networks`: how many are done, and how many there are. `running` has the
    job of each worker that does one, costs are as in `Job`. Since the first job that was taken, `up_seconds` have
    passed; workers have been there for `worker_seconds`, and of these in jobs for `busy_seconds`."""

    cells: tuple[int, int]
    networks: tuple[int, int]
    failed_cells: int
    jobs_ended: int
    idle: bool
    running: dict[str, str]
    pids: dict[str, int]
    """The process of each worker that gets jobs, by its name."""
    groups: dict[str, str]
    """The placement group of each worker, by its name, of those too that get no more jobs."""
    ready: int
    """Jobs that could be done and that nobody does."""
    quiet_seconds: float
    """How long there has been work, no worker that does it, and no sign of one that waits or starts."""
    cost_left: float
    cost_done: float
    images: int
    """How many have gone through networks, each as often as it has, in training or not."""
    images_per_second: float
    """Of the last minute."""
    busy_seconds: float
    worker_seconds: float
    up_seconds: float
    fatal: str
    """Why nothing more can be done; empty while something can."""
    folder_lost: bool
    """Whether `fatal` is that the results folder cannot be written."""
    given_up: tuple[str, ...]
    """A line for each worker that gets no more jobs, since it is broken: which, where and why."""


class JobQueue:
    """Hands out jobs. A worker gives its name and its incarnation, so that one that was taken for dead can be
    told from its successor.

    Between two waits a method has the queue to itself: all run in one thread. Who waits is woken only for what it waits
    for, since there may be a thousand workers.
    """

    def __init__(self, hang_seconds: Sequence[float] = (60.0,)) -> None:
        self.scheduler = Scheduler(on_end=self._tell_of_end)
        self.ends: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        """Of jobs that somebody waits for: set when they end, or are withdrawn."""
        self.cells: list[str] = []
        """The jobs that end cells and have ended, in that order."""
        self.begun = asyncio.Event()
        """Set once a job has been taken, or none ever will."""
        self.patience = [Patience(least) for least in hang_seconds]
        """With each kind of workers: what is long for a GPU is not for a CPU."""
        self.kinds: dict[str, int] = {}
        """Of which kind the worker of a name is."""
        self.workers: dict[str, Worker] = {}
        """By name. One that is dead, or is taken to be, is not among them."""
        self.asking: dict[str, asyncio.Future[Job | str]] = {}
        """The calls of workers that wait for a job, by name, the one that has waited longest first."""
        self.incarnations: Counter[str] = Counter()
        self.failed_starts: Counter[str] = Counter()
        """How many of a name have said that they cannot start, in a row."""
        self.barren_starts: Counter[tuple[str, str]] = Counter()
        """How many of a name have started on a node, since one has ended a job there."""
        self.given_up: list[str] = []
        self.closed = False
        self.closing = asyncio.Event()
        self.fatal = ""
        self.folder_lost = False
        self.heard_at = time.monotonic()
        self.first_take: float | None = None
        self.last_done: float | None = None
        self.busy_seconds = 0.0
        self.images = 0
        self.images_at: deque[tuple[float, int]] = deque()
        """How many there were when: at the first job, and about once a second while somebody looks."""
        self.past_seconds = 0.0
        """Of workers that are gone."""

    # For those who want jobs done

    async def submit(self, jobs: Sequence[Job]) -> None:
        """Puts jobs on the queue; those that are there already stay as they are."""
        self.scheduler.add(jobs)
        if self.fatal:
            self.scheduler.fail_all(self.fatal)
        self._hand_out()

    async def cells_ended(self, since: int) -> tuple[bool, list[str]]:
        """Whether nothing that is put on the queue will be done any more, and which jobs that end cells have ended, in
        that order, after the first `since` of them."""
        return self.closed, self.cells[since:]

    async def ended(self, kinds: Sequence[str]) -> dict[str, Outcome]:
        """What came of all jobs of these kinds, by id and without their values, once all have ended."""
        scheduler = self.scheduler
        while left := [i for i, job in scheduler.jobs.items() if job.kind in kinds and i not in scheduler.outcomes]:
            await self.outcomes(left)
        outcomes = scheduler.outcomes.items()
        return {i: replace(outcome, value=None) for i, outcome in outcomes if scheduler.jobs[i].kind in kinds}

    async def outcomes(self, job_ids: Sequence[str]) -> list[Outcome]:
        """What came of these jobs, once all of them have ended. One that was never submitted has failed."""
        ended, jobs = self.scheduler.outcomes, self.scheduler.jobs
        for job_id in job_ids:
            if job_id in jobs and job_id not in ended:
                await self.ends[job_id].wait()
        return [ended.get(i) or Outcome(False, reason=f"job {i} is not in the queue") for i in job_ids]

    async def news(self, job_ids: Sequence[str]) -> dict[str, Outcome]:
        """What came of those of these jobs that have ended, once one has; a little later, if more are to come."""
        everything = asyncio.ensure_future(self.outcomes(job_ids))
        first = [asyncio.ensure_future(self.outcomes([job_id])) for job_id in job_ids]
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([everything], timeout=NEWS_SECONDS)
            ended = self.scheduler.outcomes
            return {job_id: (await one)[0] for job_id, one in zip(job_ids, first, strict=True)
                    if job_id in ended or one.done()}  # fmt: skip
        finally:
            for waiting in (everything, *first):
                waiting.cancel()

    async def withdraw(self, job_ids: Sequence[str]) -> list[str]:
        """Takes back of these jobs what nobody has begun, with what only they need. Returns those that stay."""
        self.scheduler.withdraw(job_ids)
        if self.scheduler.idle:
            self.begun.set()
        return [job_id for job_id in job_ids if job_id in self.scheduler.jobs]

    async def started(self) -> bool:
        """Returns when the first worker has taken a job (True), or none ever will (False)."""
        if not self.scheduler.idle:
            await self.begun.wait()
        return self.first_take is not None and not self.closed

    async def end(self, reason: str, folder_lost: bool = False) -> None:
        """Nothing more can be done: everybody who waits is told why."""
        told = self.given_up[:2]
        if len(self.given_up) > 2:
            told.append(f"and {len(self.given_up) - 2} more workers were given up")
        self.fatal = self.fatal or "; ".join([reason, *told])
        self.folder_lost = self.folder_lost or folder_lost
        self.scheduler.fail_all(self.fatal)
        await self.close()

    async def close(self) -> None:
        """No more jobs will come: workers end when they next ask."""
        self.closed = True
        self.closing.set()
        self.begun.set()
        for name in list(self.asking):
            self._answer(name, "closed")

    async def stats(self) -> Stats:
        scheduler, workers, now = self.scheduler, self.workers, time.monotonic()
        members, checkpoints = scheduler.count("member"), scheduler.count("checkpoint")
        until = self.last_done if scheduler.idle and self.last_done else now
        return Stats(
            cells=scheduler.count("cell"),
            networks=(members[0] + checkpoints[0], members[1] + checkpoints[1]),
            failed_cells=scheduler.count_failed("cell"),
            jobs_ended=len(scheduler.outcomes),
            idle=scheduler.idle,
            running=dict(scheduler.held),
            pids={name: worker.pid for name, worker in workers.items() if not worker.given_up},
            groups={name: worker.group for name, worker in workers.items()},
            ready=len(scheduler.ready),
            quiet_seconds=0.0 if scheduler.held or scheduler.idle else now - self.heard_at,
            cost_left=scheduler.cost_left,
            cost_done=scheduler.cost_done,
            images=self.images,
            images_per_second=self._pace(now),
            busy_seconds=self.busy_seconds + sum(now - (worker.took_at or now) for worker in workers.values()),
            worker_seconds=self.past_seconds + sum(self._there(worker, until) for worker in workers.values()),
            up_seconds=until - self.first_take if self.first_take else 0.0,
            fatal=self.fatal,
            folder_lost=self.folder_lost,
            given_up=tuple(self.given_up),
        )

    # For workers

    async def hello(
        self,
        name: str,
        pid: int,
        node_id: str = "",
        actor: Any = None,
        machine: str = "",
        kind: int = 0,
        group: str = "",
    ) -> int:
        """A worker has started: what the last one of its name still held waits again. Returns the incarnation, or 0 if
        it may go at once."""
        if name in self.workers:
            self._bury(name, *self.workers[name].last_words)
        self.incarnations[name] += 1
        worker = Worker(name, self.incarnations[name], pid, node_id, actor, machine, group, time.monotonic())
        self.kinds[name] = kind
        self.workers[name], self.heard_at = worker, worker.heard_at
        self.scheduler.joined(worker.name, node_id)
        died = self.barren_starts[name, node_id]
        self.barren_starts[name, node_id] += 1
        if died >= MAX_BARREN_STARTS:
            self._give_up(worker, f"it has died {died} times and has ended no job")
        self._hand_out()
        return 0 if worker.given_up else worker.incarnation

    async def cannot_start(self, name: str, incarnation: int, reason: str) -> bool:
        """A worker's imports or device have failed. Whether another process is to try it in its place; else the worker
        is given up. Those that can start go on, and where there are none the pool ends."""
        worker = self._current(name, incarnation)
        if worker is None:
            return True
        self.failed_starts[name] += 1
        if self.failed_starts[name] < MAX_FAILED_STARTS and not self.closed:
            return True
        self._give_up(worker, f"it cannot start: {reason}")
        self._hand_out()
        return False

    async def take(self, name: str, incarnation: int) -> Job | str:
        """The next job of a worker, or `closed`, or `again` after 20 s without one, or `stale`, or `given up`.

        A call of a worker that has died may still be waiting here: as soon as it is known to be dead, it gets no job.
        """
        worker = self._current(name, incarnation)
        if worker is None:
            return "stale"
        self._hear(worker)
        worker.doing = ""
        del self.failed_starts[name]
        if self.closed or worker.given_up:
            return "closed" if self.closed else "given up"
        if job := self._next_job(worker):
            return job
        self._answer(name, "again")
        loop = asyncio.get_running_loop()
        call = self.asking[name] = loop.create_future()
        # Not `wait_for`, which may drop a job that is handed out just as the time is up.
        timer = loop.call_later(TAKE_SECONDS, self._answer, name, "again")
        try:
            return await call
        finally:
            timer.cancel()
            if self.asking.get(name) is call:  # the call itself was cancelled
                del self.asking[name]

    async def beat(self, name: str, incarnation: int, stretch: float, images: int = 0) -> None:
        """A job has got on. `stretch` is the longest time, in seconds, that it has been without a sign so far; `images`
        have gone through networks since the last beat."""
        self.images += images
        worker = self._current(name, incarnation)
        if worker and worker.doing:
            self._hear(worker)
            self.patience[self.kinds[name]].note(worker.doing, stretch)

    async def done(
        self, name: str, incarnation: int, job_id: str, value: Any, stretch: float = 0.0, images: int = 0
    ) -> None:
        self.images += images
        if job := self.scheduler.jobs.get(job_id):  # one that a worker taken for dead had may have been withdrawn
            self.patience[self.kinds[name]].ended(job.kind, stretch)
        if worker := self._current(name, incarnation):
            self._puts_down(worker)
            del self.barren_starts[name, worker.node_id]
        self.last_done = time.monotonic()
        self.scheduler.done(name, job_id, value)
        for name, reason in self.scheduler.broken().items():
            self._give_up(self.workers[name], f"jobs that others could do went wrong there: {reason}")
        self._hand_out()

    async def failed(
        self, name: str, incarnation: int, job_id: str, reason: str, traceback: str = "", certain: bool = False
    ) -> None:
        """A job has raised; `certain` is that it would elsewhere, too."""
        worker = self._current(name, incarnation)
        if worker and not worker.given_up:
            self._puts_down(worker)
            del self.barren_starts[name, worker.node_id]
            self.scheduler.failed(worker.name, job_id, reason, traceback, certain)
            self._hand_out()

    async def dying(self, name: str, incarnation: int, reason: str, traceback: str = "") -> None:
        """The last words of a worker that a job has ruined: its successor may do the job."""
        if worker := self._current(name, incarnation):
            worker.last_words = reason, traceback

    async def closes(self) -> None:
        """Returns when no more jobs will come."""
        await self.closing.wait()

    # For those who look after workers

    async def hanging(self, dead_nodes: Collection[str] = (), ended_runs: Collection[str] = ()) -> list[Worker]:
        """The workers that hang, each of them once; what they held waits again, and so does what those held whose
        machine or whose run is gone, which are not to blame."""
        found = []
        for name, worker in list(self.workers.items()):
            silent = time.monotonic() - worker.heard_at
            if worker.node_id in dead_nodes:
                self._bury(name, "its machine is gone", blamed=False)
            elif name.partition(".")[0] in ended_runs:
                self._bury(name, "its run has ended", blamed=False)
            elif silent > self.patience[self.kinds[name]].seconds(worker.doing):
                found.append(worker)
                self._bury(name, f"no progress for {silent:.0f} s")
            elif silent > AWAY_SECONDS and worker.name not in self.scheduler.held:
                self.scheduler.lost(worker.name)  # it may be dead: no job is kept for it
        self._hand_out()
        return found

    # State

    def _pace(self, now: float) -> float:
        marks = self.images_at
        if not marks:
            return 0.0
        if now - marks[-1][0] >= 1:
            marks.append((now, self.images))
        while len(marks) > 1 and now - marks[1][0] >= PACE_SECONDS:
            marks.popleft()
        since, before = marks[0]
        return (self.images - before) / (now - since) if now > since else 0.0

    def _current(self, name: str, incarnation: int) -> Worker | None:
        """The worker of that name; None if the one that calls was taken for dead, or another one has its name."""
        worker = self.workers.get(name)
        return worker if worker and worker.incarnation == incarnation else None

    def _hear(self, worker: Worker) -> None:
        worker.heard_at = self.heard_at = time.monotonic()

    def _hand_out(self) -> None:
        """Gives what is ready to workers that wait, those that have waited longest first."""
        for name, call in list(self.asking.items()) if self.scheduler.ready else ():
            if not self.scheduler.ready:
                return
            if not call.done() and (job := self._next_job(self.workers[name])):  # done: it was cancelled just now
                self._answer(name, job)

    def _answer(self, name: str, said: Job | str) -> None:
        """Ends a worker's waiting for a job, if it does wait."""
        call = self.asking.pop(name, None)
        if call and not call.done():
            call.set_result(said)

    def _tell_of_end(self, job_id: str) -> None:
        if job_id in self.ends:
            self.ends.pop(job_id).set()
        if job_id in self.scheduler.outcomes and self.scheduler.jobs[job_id].kind == "cell":
            self.cells.append(job_id)
        if self.scheduler.idle:
            self.begun.set()

    def _next_job(self, worker: Worker) -> Job | None:
        job = self.scheduler.take(worker.name, worker.node_id)
        if job:
            self._hear(worker)
            worker.doing, worker.took_at = job.kind, worker.heard_at
            if self.first_take is None:
                self.first_take = worker.heard_at
                self.images_at.append((self.first_take, 0))
                self.begun.set()
        return job

    def _there(self, worker: Worker, until: float) -> float:
        """For how long a worker has been there, since the first job was taken; one that gets none is not."""
        began = max(worker.since, self.first_take or until)
        return 0.0 if worker.given_up else max(0.0, until - began)

    def _puts_down(self, worker: Worker) -> None:
        """It has no job in hand any more."""
        if worker.took_at is not None:
            self.busy_seconds += time.monotonic() - worker.took_at
        worker.doing, worker.took_at = "", None

    def _bury(self, name: str, reason: str, traceback: str = "", blamed: bool = True) -> None:
        """A worker that is dead, or is taken to be, keeps no job. Should it live after all, it is told so."""
        worker = self.workers.pop(name)
        self.past_seconds += self._there(worker, time.monotonic())
        self._answer(name, "stale")
        self._puts_down(worker)
        self.scheduler.lost(worker.name, reason, traceback, blamed=blamed)

    def _give_up(self, worker: Worker, reason: str) -> None:
        """A worker that is broken gets no more jobs, and those that went wrong there are not to blame. What it has in
        hand, and does after all, counts."""
        self._puts_down(worker)
        self._answer(worker.name, "given up")
        self.past_seconds += self._there(worker, time.monotonic())
        worker.given_up = True
        self.given_up.append(f"worker {worker.name} on {worker.machine} was given up: {reason}")
        self.scheduler.dismiss(worker.name)


_remote: Any = ray.remote
Queue = _remote(num_cpus=0, max_restarts=0, max_concurrency=100_000)(JobQueue)
"""The actor. Each worker that waits is a call that is under way, of which Ray otherwise lets 1,000 in."""
