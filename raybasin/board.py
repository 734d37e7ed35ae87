"""Which job is done next, and what came of it: the rules of the queue, as plain state without threads or Ray.

A job waits until all that it needs is done, and until what it merely comes after has ended, well or not. Of the jobs
that can run, one that finishes a cell (a path, its scores) goes first, and then one that several cells wait for (a
hub), so that cells are committed as the sweep goes on. Of the others the one with the most work behind it goes first,
its own and that of the longest chain that waits for it: the longest job, where jobs do not depend on each other. A job
whose worker died goes after all others, so that one that kills its workers cannot hold up the rest. Where room on the
disk is bounded, a job waits until there is some.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from raybasin.plan import Job

FINISHING = ("path", "trace", "cell")
MAX_TRIES = 3


@dataclass(frozen=True)
class Outcome:
    """What came of a job: its value, or the reason why there is none. `job_id` is the job that failed; empty where no
    job did, but the whole sweep has ended for that reason."""

    ok: bool
    value: Any = None
    reason: str = ""
    job_id: str = ""
    tries: int = 0


class Room(Protocol):
    """A bound on what jobs leave on the disk."""

    def opened(self, held: Iterable[str], outcomes: Mapping[str, Outcome]) -> frozenset[str]:
        """What is begun and not finished, from the jobs that are held and those that have ended."""

    def admits(self, job: Job, opened: frozenset[str]) -> bool:
        """Whether there is room for what `job` leaves, beside that."""


NO_ROOM = "there is no room on the disk beside the weights of cells that have failed"


@dataclass
class Board:
    max_tries: int = MAX_TRIES
    room: Room | None = None
    jobs: dict[str, Job] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    """The job that each worker has, by worker."""
    tries: dict[str, int] = field(default_factory=dict)
    _behind: dict[str, float] = field(default_factory=dict)
    _cells_waiting: Counter[str] = field(default_factory=Counter)

    def add(self, jobs: Iterable[Job]) -> None:
        """Puts jobs on the board; one that is there already stays as it is."""
        new = [job for job in jobs if job.job_id not in self.jobs]
        if not new:
            return
        self.jobs.update((job.job_id, job) for job in new)
        for job in new:
            self._behind[job.job_id] = job.cost
        for job in new:
            self._raise_needs(job)
            if job.kind == "cell":
                self._cells_waiting.update(self._all_needs(job))
        for job in new:
            self._fail_if_hopeless(job)

    def _raise_needs(self, job: Job) -> None:
        """What a job needs has the job's own work behind it as well."""
        for need in (*job.needs, *job.after):
            behind = self.jobs[need].cost + self._behind[job.job_id]
            if need in self._behind and behind > self._behind[need]:
                self._behind[need] = behind
                self._raise_needs(self.jobs[need])

    def _all_needs(self, job: Job) -> set[str]:
        """The ids of all jobs that have to be done before `job`."""
        found: set[str] = set()
        left = [*job.needs, *job.after]
        while left:
            need = left.pop()
            if need not in found:
                found.add(need)
                left += [*self.jobs[need].needs, *self.jobs[need].after]
        return found

    def take(self, worker: str) -> Job | None:
        """The job that `worker` does next; None while there is none for it."""
        ready = [job for job in self.jobs.values() if self._ready(job)]
        fitting = self._fitting(ready)
        if not fitting and not self.held:  # and so nothing will make room
            for job in ready:
                self._fail(job.job_id, Outcome(False, reason=NO_ROOM, job_id=job.job_id))
        if not fitting:
            return None
        job = max(fitting, key=self._urgency)
        self.held[worker] = job.job_id
        self.tries[job.job_id] = self.tries.get(job.job_id, 0) + 1
        return job

    def _urgency(self, job: Job) -> tuple[int, bool, bool, float]:
        shared = self._cells_waiting[job.job_id] > 1
        return -self.tries.get(job.job_id, 0), job.kind in FINISHING, shared, self._behind[job.job_id]

    def _ready(self, job: Job) -> bool:
        waiting = job.job_id not in self.outcomes and job.job_id not in self.held.values()
        return waiting and all(need in self.outcomes for need in (*job.needs, *job.after))

    def _fitting(self, ready: list[Job]) -> list[Job]:
        if self.room is None or not ready:
            return ready
        opened = self.room.opened(self.held.values(), self.outcomes)
        return [job for job in ready if self.room.admits(job, opened)]

    def done(self, worker: str, job_id: str, value: Any) -> None:
        """`worker` has done `job_id`. That it was done before, by a worker taken for dead, makes no difference."""
        self._release(worker, job_id)
        self.outcomes.setdefault(job_id, Outcome(True, value=value, job_id=job_id, tries=self.tries.get(job_id, 0)))

    def failed(self, worker: str, job_id: str, reason: str) -> None:
        """`job_id` raised: so do, for the same reason, all jobs that need it."""
        self._release(worker, job_id)
        self._fail(job_id, Outcome(False, reason=reason, job_id=job_id, tries=self.tries.get(job_id, 0)))

    def lost(self, worker: str, last_words: str = "", blamed: bool = True) -> str | None:
        """`worker` is gone: the job it held, which this returns, waits again, or fails after `max_tries`.

        A job that is not `blamed`, since its worker's machine went away, is not counted as tried.
        """
        job_id = self.held.pop(worker, None)
        if job_id is None or job_id in self.outcomes:
            return job_id
        if not blamed:
            self.tries[job_id] -= 1
        elif self.tries[job_id] >= self.max_tries:
            reason = f"its worker died {self.tries[job_id]} times" + (f": {last_words}" if last_words else "")
            self._fail(job_id, Outcome(False, reason=reason, job_id=job_id, tries=self.tries[job_id]))
        return job_id

    def fail_all(self, reason: str) -> None:
        """Nothing more can be done: every job that is not done has failed."""
        for job_id in self.jobs:
            self._fail(job_id, Outcome(False, reason=reason, tries=self.tries.get(job_id, 0)))

    def _release(self, worker: str, job_id: str) -> None:
        if self.held.get(worker) == job_id:
            del self.held[worker]

    def _fail(self, job_id: str, outcome: Outcome) -> None:
        if job_id in self.outcomes:
            return
        self.outcomes[job_id] = outcome
        for job in self.jobs.values():
            if job_id in job.needs:
                self._fail(job.job_id, outcome)

    def _fail_if_hopeless(self, job: Job) -> None:
        for need in job.needs:
            if need in self.outcomes and not self.outcomes[need].ok:
                self._fail(job.job_id, self.outcomes[need])

    # Progress

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return len(self.outcomes) == len(self.jobs)

    def count(self, kind: str) -> tuple[int, int]:
        """How many jobs of `kind` are done, and how many there are."""
        of_kind = [job_id for job_id, job in self.jobs.items() if job.kind == kind]
        return sum(1 for job_id in of_kind if job_id in self.outcomes and self.outcomes[job_id].ok), len(of_kind)

    def count_failed(self, kind: str) -> int:
        return sum(1 for job_id, o in self.outcomes.items() if not o.ok and self.jobs[job_id].kind == kind)

    def cost_left(self) -> float:
        return sum(job.cost for job_id, job in self.jobs.items() if job_id not in self.outcomes)
