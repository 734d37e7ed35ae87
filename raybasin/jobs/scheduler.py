"""Which job is done next, and what came of it: the rules of the queue, as plain state without threads or Ray.

A job waits until all that it needs is done. Of the jobs that can run, one that finishes a cell (a path, its scores)
goes first, and then one that several cells wait for (a hub), so that cells are committed as the sweep goes on. Of the
others the one with the most work behind it goes first, its own and that of the longest chain that waits for it: the
longest job, where jobs do not depend on each other. A job whose worker died, or that raised, goes after all others, so
that one that kills its workers cannot hold up the rest.

A job that raises is tried once more, by another worker if there is one: the first may be to blame. A worker is, if jobs
that went wrong there, one after another, are then done by others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from raybasin.sweep.job_list import Job, described

FINISHING = ("path", "trace", "cell")
MAX_TRIES = 3
MAX_RAISES = 2
BROKEN_JOBS = 3
"""A worker is broken when so many jobs that went wrong there since it last did one have been done by others."""


@dataclass(frozen=True)
class Outcome:
    """What came of a job: its value, or the reason why there is none, and where it was raised. `job_id` is the job that
    failed; empty where no job did, but the whole sweep has ended for that reason."""

    ok: bool
    value: Any = None
    reason: str = ""
    job_id: str = ""
    job: str = ""
    """In words."""
    tries: int = 0
    traceback: str = ""


@dataclass(frozen=True)
class Mishap:
    """A job went wrong on a worker: it raised, or the worker died; of some deaths nobody knows the reason."""

    job_id: str
    reason: str
    raised: bool


@dataclass
class Scheduler:
    max_tries: int = MAX_TRIES
    changed: Callable[[], None] = lambda: None
    """Called whenever a job has ended, or can be taken that could not before: others may wait for that."""
    jobs: dict[str, Job] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    """The job that each worker has, by worker."""
    tries: dict[str, int] = field(default_factory=dict)
    machines: dict[str, str] = field(default_factory=dict)
    """Where the workers are that ask for jobs, or will, by worker."""
    raises: Counter[str] = field(default_factory=Counter)
    """How often each job has raised."""
    went_wrong: dict[str, dict[str, str]] = field(default_factory=dict)
    """By job: the workers on which it has raised or which have died of it, and their machines."""
    mishaps: dict[str, list[Mishap]] = field(default_factory=dict)
    """By worker: what has gone wrong there since it last did a job."""
    _behind: dict[str, float] = field(default_factory=dict)
    _cells_waiting: Counter[str] = field(default_factory=Counter)

    def add(self, jobs: Iterable[Job]) -> None:
        """Puts jobs on the board; one that is there already stays as it is."""
        new = [job for job in jobs if job.job_id not in self.jobs]
        if not new:
            return
        self.jobs.update((job.job_id, job) for job in new)
        self._behind.update((job.job_id, job.cost) for job in new)
        for job in new:
            self._raise_needs(job)
            if job.kind == "cell":
                self._cells_waiting.update(self._all_needs(job))
        for job in new:
            for need in job.needs:
                if need in self.outcomes and not self.outcomes[need].ok:
                    self._fail(job.job_id, self.outcomes[need])
        self.changed()

    def _raise_needs(self, job: Job) -> None:
        """What a job needs has the job's own work behind it as well."""
        higher = [job]
        while higher:
            job = higher.pop()
            for need in job.needs:
                behind = self.jobs[need].cost + self._behind[job.job_id]
                if need in self._behind and behind > self._behind[need]:
                    self._behind[need] = behind
                    higher.append(self.jobs[need])

    def _all_needs(self, job: Job) -> set[str]:
        """The ids of all jobs that have to be done before `job`."""
        found: set[str] = set()
        left = [*job.needs]
        while left:
            need = left.pop()
            if need not in found:
                found.add(need)
                left += self.jobs[need].needs
        return found

    def joined(self, worker: str, machine: str) -> None:
        """`worker` will ask for jobs."""
        self.machines[worker] = machine

    def take(self, worker: str, machine: str = "") -> Job | None:
        """The job that `worker`, which is on `machine`, does next; None while there is none for it."""
        self.joined(worker, machine)
        begun = {*self.outcomes, *self.held.values()}
        ready = (
            job for job in self.jobs.values()
            if job.job_id not in begun and all(need in self.outcomes for need in job.needs)
        )  # fmt: skip
        job = max((job for job in ready if self._is_for(job, worker)), key=self._urgency, default=None)
        if job is None:
            return None
        self.held[worker] = job.job_id
        self.tries[job.job_id] = self.tries.get(job.job_id, 0) + 1
        return job

    def _is_for(self, job: Job, worker: str) -> bool:
        """Whether no other worker is better for a job that has gone wrong. One that has never raised, but has lost its
        worker, may go on with that one's successor, unless it is not the first to be lost there in a row."""
        if not self.went_wrong.get(job.job_id):
            return True
        if not self.raises[job.job_id] and len(self.mishaps.get(worker, ())) < 2:
            return True
        return self._doubt(job, worker) == min(self._doubt(job, other) for other in self.machines)

    def _doubt(self, job: Job, worker: str) -> tuple[bool, bool, bool]:
        """How likely it is that `job` goes wrong on `worker` because of the worker, or of its machine."""
        before = self.went_wrong[job.job_id]
        return worker in before, self.machines[worker] in before.values(), bool(self.mishaps.get(worker))

    def _urgency(self, job: Job) -> tuple[int, bool, bool, float]:
        shared = self._cells_waiting[job.job_id] > 1
        return -self.tries.get(job.job_id, 0), job.kind in FINISHING, shared, self._behind[job.job_id]

    def done(self, worker: str, job_id: str, value: Any) -> None:
        """`worker` has done `job_id`. That it was done before, by a worker taken for dead, makes no difference."""
        self._release(worker, job_id)
        self.mishaps.pop(worker, None)
        self._conclude(job_id, Outcome(True, value=value, job_id=job_id, tries=self.tries.get(job_id, 0)))

    def failed(self, worker: str, job_id: str, reason: str, traceback: str = "", certain: bool = False) -> None:
        """`job_id` raised. It waits again, for another worker if there is one, unless it has been tried often enough or
        is `certain` to raise again; then it fails, and for the same reason all jobs that need it."""
        self._release(worker, job_id)
        if job_id in self.outcomes:
            return
        self.raises[job_id] += 1
        if not certain:
            self._remember(worker, Mishap(job_id, reason, raised=True))
        if certain or self.raises[job_id] >= MAX_RAISES or self.tries.get(job_id, 0) >= self.max_tries:
            self._give_up(job_id, reason, traceback)
        self.changed()

    def lost(self, worker: str, last_words: str = "", traceback: str = "", blamed: bool = True) -> str | None:
        """`worker` is gone: the job it held, which this returns, waits again, or fails after `max_tries`.

        A job that is not `blamed`, since its worker's machine went away, is not counted as tried.
        """
        job_id = self.held.pop(worker, None)
        if job_id is not None and job_id not in self.outcomes:
            if blamed:
                self._remember(worker, Mishap(job_id, last_words, raised=False))
            else:
                self.tries[job_id] -= 1
            if blamed and self.tries[job_id] >= self.max_tries:
                died = f"its worker died {self.tries[job_id] - self.raises[job_id]} times"
                self._give_up(job_id, f"{died}: {last_words}" if last_words else died, traceback)
        self.machines.pop(worker, None)
        self.changed()
        return job_id

    def _remember(self, worker: str, mishap: Mishap) -> None:
        self.went_wrong.setdefault(mishap.job_id, {})[worker] = self.machines.get(worker, "")
        self.mishaps.setdefault(worker, []).append(mishap)

    def _give_up(self, job_id: str, reason: str, traceback: str) -> None:
        tries = self.tries.get(job_id, 0)
        job = described(self.jobs[job_id])
        self._fail(job_id, Outcome(False, None, reason, job_id, job, tries, traceback))

    def broken(self) -> dict[str, str]:
        """The workers that are to blame for what goes wrong there, and the reason that was given last. A worker that
        is killed gives none, and is not to blame."""
        found = {}
        for worker in self.machines:
            told = [mishap for mishap in self.mishaps.get(worker, ()) if mishap.reason]
            if len({mishap.job_id for mishap in told if self._is_done(mishap.job_id)}) >= BROKEN_JOBS:
                found[worker] = told[-1].reason
        return found

    def dismiss(self, worker: str) -> None:
        """`worker` is to get no more jobs. What went wrong there is not counted against jobs, nor is the one that it
        holds counted as tried."""
        for mishap in self.mishaps.pop(worker, ()):
            self.went_wrong[mishap.job_id].pop(worker, None)
            self.raises[mishap.job_id] -= mishap.raised
            self.tries[mishap.job_id] -= 1
        self.lost(worker, blamed=False)

    def fail_all(self, reason: str) -> None:
        """Nothing more can be done: every job that is not done has failed."""
        for job_id in self.jobs:
            self._fail(job_id, Outcome(False, reason=reason, tries=self.tries.get(job_id, 0)))

    def _release(self, worker: str, job_id: str) -> None:
        if self.held.get(worker) == job_id:
            del self.held[worker]

    def _is_done(self, job_id: str) -> bool:
        return job_id in self.outcomes and self.outcomes[job_id].ok

    def _fail(self, job_id: str, outcome: Outcome) -> None:
        """The job and all that need it, directly or not."""
        hopeless = [job_id]
        while hopeless:
            failed = hopeless.pop()
            if failed not in self.outcomes:
                self._conclude(failed, outcome)
                hopeless += [job.job_id for job in self.jobs.values() if failed in job.needs]

    def _conclude(self, job_id: str, outcome: Outcome) -> None:
        """The one place where a job ends: whoever waits for it is told."""
        if job_id not in self.outcomes:
            self.outcomes[job_id] = outcome
            self.changed()

    # Progress

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return len(self.outcomes) == len(self.jobs)

    def count(self, kind: str) -> tuple[int, int]:
        """How many jobs of `kind` are done, and how many there are."""
        of_kind = [job_id for job_id, job in self.jobs.items() if job.kind == kind]
        return sum(self._is_done(job_id) for job_id in of_kind), len(of_kind)

    def count_failed(self, kind: str) -> int:
        return sum(1 for job_id, o in self.outcomes.items() if not o.ok and self.jobs[job_id].kind == kind)

    def cost_left(self) -> float:
        return sum(job.cost for job_id, job in self.jobs.items() if job_id not in self.outcomes)
