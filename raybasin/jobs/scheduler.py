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

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from raybasin.sweep.job_list import Job, described

FINISHING = ("path", "trace", "cell")
RESTORING = "retrain"
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


@dataclass(slots=True)
class _Place:
    """Where a job stands among the others."""

    number: int
    """Of jobs that are equally urgent, the one that was added first goes first."""
    unmet: int
    """How many of the jobs that it needs are not done."""
    behind: float
    """The work of the longest chain of jobs that begins with it."""
    cells: int = 0
    """How many cells wait for it."""
    needed_by: dict[str, None] = field(default_factory=dict)


Urgency = tuple[int, bool, bool, float, int]


@dataclass
class Scheduler:
    """Adding, taking and ending a job take time that grows with what it needs and what needs it, and with the logarithm
    of how many there are; counts take none."""

    max_tries: int = MAX_TRIES
    on_end: Callable[[str], None] = lambda job_id: None
    """Called with the id of each job that has ended or was withdrawn."""
    jobs: dict[str, Job] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    """The job that each worker has, by worker."""
    ready: set[str] = field(default_factory=set)
    """The jobs that can be taken: all they need is done, and no worker has them."""
    tries: Counter[str] = field(default_factory=Counter)
    machines: dict[str, str] = field(default_factory=dict)
    """Where the workers are that ask for jobs, or will, by worker."""
    raises: Counter[str] = field(default_factory=Counter)
    """How often each job has raised."""
    went_wrong: dict[str, dict[str, str]] = field(default_factory=dict)
    """By job: the workers on which it has raised or which have died of it, and their machines."""
    mishaps: dict[str, list[Mishap]] = field(default_factory=dict)
    """By worker: what has gone wrong there since it last did a job."""
    cost_left: float = 0.0
    cost_done: float = 0.0
    _added: int = 0
    _places: dict[str, _Place] = field(default_factory=dict)
    _queue: list[tuple[Urgency, str]] = field(default_factory=list)
    """A heap of what is ready. A job whose urgency has changed is in it once more; its old places are passed over."""
    _counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Of jobs, by kind and whether they are `all`, `done` or `failed`."""
    _crowd: Counter[tuple[str | None, bool]] = field(default_factory=Counter)
    """Of workers, by machine (None: all) and whether they have had mishaps."""

    def add(self, jobs: Iterable[Job]) -> None:
        """Puts jobs on the board; one that is there already stays as it is."""
        new = {job.job_id: job for job in jobs if job.job_id not in self.jobs}
        for job_id, job in new.items():
            unmet = sum(need not in self.outcomes for need in job.needs)
            self._places[job_id] = _Place(self._added, unmet, job.cost)
            self._added += 1
            self.jobs[job_id] = job
            self.cost_left += job.cost
            self._counts[job.kind, "all"] += 1
        for job_id, job in new.items():
            for need in job.needs:
                self._places[need].needed_by[job_id] = None
        for job in reversed(new.values()):  # jobs mostly stand after what they need, which then is looked at once
            self._raise_needs(job)
        for job in new.values():
            if job.kind == "cell":
                self._count_cell(job)
        for job_id, job in new.items():
            lost = next((self.outcomes[need] for need in job.needs
                         if need in self.outcomes and not self.outcomes[need].ok), None)  # fmt: skip
            if lost:
                self._fail(job_id, lost)
            elif not self._places[job_id].unmet:
                self._make_ready(job_id)

    def withdraw(self, job_ids: Iterable[str]) -> None:
        """Takes jobs off the board again that nobody has begun and no other job needs, and with them what only they
        needed. Weights that were asked for again (`retrain`) are made all the same."""
        unwanted = list(job_ids)
        while unwanted:
            job_id = unwanted.pop()
            job, place = self.jobs.get(job_id), self._places.get(job_id)
            if job is None or place is None or job_id in self.outcomes or job.kind == RESTORING:
                continue
            is_held = not place.unmet and job_id not in self.ready
            if is_held or any(other not in self.outcomes for other in place.needed_by):
                continue
            del self.jobs[job_id], self._places[job_id]
            self.ready.discard(job_id)
            self._counts[job.kind, "all"] -= 1
            self.cost_left -= job.cost
            for need in job.needs:
                self._places[need].needed_by.pop(job_id)
            unwanted += job.needs
            self.on_end(job_id)

    def _raise_needs(self, job: Job) -> None:
        """What a job needs has the job's own work behind it as well."""
        higher = [job]
        while higher:
            job = higher.pop()
            for need in job.needs:
                behind = self.jobs[need].cost + self._places[job.job_id].behind
                if behind > self._places[need].behind:
                    self._places[need].behind = behind
                    self._place_anew(need)
                    higher.append(self.jobs[need])

    def _count_cell(self, job: Job) -> None:
        """All jobs that have to be done before `job`, which ends a cell, are waited for by one cell more."""
        found: set[str] = set()
        left = [*job.needs]
        while left:
            need = left.pop()
            if need not in found:
                found.add(need)
                left += self.jobs[need].needs
                self._places[need].cells += 1
                if self._places[need].cells == 2:
                    self._place_anew(need)

    # Workers

    def joined(self, worker: str, machine: str) -> None:
        """`worker` will ask for jobs."""
        if self.machines.get(worker) != machine:
            self._recount(worker, -1)
            self.machines[worker] = machine
            self._recount(worker, 1)

    def take(self, worker: str, machine: str = "") -> Job | None:
        """The job that `worker`, which is on `machine`, does next; None while there is none for it."""
        self.joined(worker, machine)
        for_others = []
        taken = None
        while self._queue and taken is None:
            place = heapq.heappop(self._queue)
            urgency, job_id = place
            if job_id not in self.ready or urgency != self._urgency(job_id):
                continue
            if self._is_for(job_id, worker):
                taken = job_id
            else:
                for_others.append(place)
        for place in for_others:
            heapq.heappush(self._queue, place)
        if taken is None:
            return None
        self.ready.discard(taken)
        self._put_back(worker)
        self.held[worker] = taken
        self.tries[taken] += 1
        return self.jobs[taken]

    def _is_for(self, job_id: str, worker: str) -> bool:
        """Whether no other worker is better for a job that has gone wrong. One that has never raised, but has lost its
        worker, may go on with that one's successor, unless it is not the first to be lost there in a row."""
        if not self.went_wrong.get(job_id):
            return True
        if not self.raises[job_id] and len(self.mishaps.get(worker, ())) < 2:
            return True
        return self._doubt(job_id, worker) == self._least_doubt(job_id)

    def _doubt(self, job_id: str, worker: str) -> tuple[bool, bool, bool]:
        """How likely it is that a job goes wrong on `worker` because of the worker, or of its machine."""
        before = self.went_wrong[job_id]
        return worker in before, self.machines[worker] in before.values(), bool(self.mishaps.get(worker))

    def _least_doubt(self, job_id: str) -> tuple[bool, bool, bool]:
        """The least that any worker is to be doubted, by counts of workers: there may be a thousand."""
        before = self.went_wrong[job_id]
        of_before = Counter(self._doubt(job_id, worker) for worker in before if worker in self.machines)
        for bad_machine, mishaps in product((False, True), repeat=2):
            on_bad = sum(self._crowd[machine, mishaps] for machine in set(before.values()))
            workers = on_bad if bad_machine else self._crowd[None, mishaps] - on_bad
            if workers > of_before[True, bad_machine, mishaps]:
                return False, bad_machine, mishaps
        return min(of_before)

    def done(self, worker: str, job_id: str, value: Any) -> None:
        """`worker` has done `job_id`. That it was done before, by a worker taken for dead, makes no difference."""
        self._forget_mishaps(worker)
        if job_id in self.jobs:  # that worker's may have been withdrawn meanwhile
            self._conclude(job_id, Outcome(True, value=value, job_id=job_id, tries=self.tries[job_id]))
        self._release(worker, job_id)

    def failed(self, worker: str, job_id: str, reason: str, traceback: str = "", certain: bool = False) -> None:
        """`job_id` raised. It waits again, for another worker if there is one, unless it has been tried often enough or
        is `certain` to raise again; then it fails, and for the same reason all jobs that need it."""
        self._release(worker, job_id)
        if job_id in self.outcomes:
            return
        self.raises[job_id] += 1
        if not certain:
            self._remember(worker, Mishap(job_id, reason, raised=True))
        if certain or self.raises[job_id] >= MAX_RAISES or self.tries[job_id] >= self.max_tries:
            self._give_up(job_id, reason, traceback)

    def lost(self, worker: str, last_words: str = "", traceback: str = "", blamed: bool = True) -> str | None:
        """`worker` is gone: the job it held, which this returns, waits again, or fails after `max_tries`.

        A job that is not `blamed`, since its worker's machine went away, is not counted as tried.
        """
        job_id = self.held.get(worker)
        if job_id is not None and job_id not in self.outcomes:
            if blamed:
                self._remember(worker, Mishap(job_id, last_words, raised=False))
            else:
                self.tries[job_id] -= 1
            if blamed and self.tries[job_id] >= self.max_tries:
                died = f"its worker died {self.tries[job_id] - self.raises[job_id]} times"
                self._give_up(job_id, f"{died}: {last_words}" if last_words else died, traceback)
        self._put_back(worker)
        self._recount(worker, -1)
        self.machines.pop(worker, None)
        return job_id

    def broken(self) -> dict[str, str]:
        """The workers that are to blame for what goes wrong there, and the reason that was given last. A worker that
        is killed gives none, and is not to blame."""
        found = {}
        for worker, mishaps in self.mishaps.items():
            told = [mishap for mishap in mishaps if mishap.reason]
            done = {mishap.job_id for mishap in told if self._is_done(mishap.job_id)}
            if worker in self.machines and len(done) >= BROKEN_JOBS:
                found[worker] = told[-1].reason
        return found

    def dismiss(self, worker: str) -> None:
        """`worker` is to get no more jobs. What went wrong there is not counted against jobs, nor is the one that it
        holds counted as tried."""
        for mishap in self._forget_mishaps(worker):
            self.went_wrong[mishap.job_id].pop(worker, None)
            self.raises[mishap.job_id] -= mishap.raised
            self.tries[mishap.job_id] -= 1
            self._place_anew(mishap.job_id)
        self.lost(worker, blamed=False)

    def fail_all(self, reason: str) -> None:
        """Nothing more can be done: every job that is not done has failed."""
        tried = {tries: Outcome(False, reason=reason, tries=tries) for tries in {0, *self.tries.values()}}
        for job_id in self.jobs:
            self._conclude(job_id, tried[self.tries[job_id]])

    def _remember(self, worker: str, mishap: Mishap) -> None:
        self.went_wrong.setdefault(mishap.job_id, {})[worker] = self.machines.get(worker, "")
        self._recount(worker, -1)
        self.mishaps.setdefault(worker, []).append(mishap)
        self._recount(worker, 1)

    def _forget_mishaps(self, worker: str) -> list[Mishap]:
        if worker not in self.mishaps:
            return []
        self._recount(worker, -1)
        mishaps = self.mishaps.pop(worker)
        self._recount(worker, 1)
        return mishaps

    def _recount(self, worker: str, by: int) -> None:
        """Counts a worker in or out, before and after something about it changes."""
        if worker in self.machines:
            for machine in (None, self.machines[worker]):
                self._crowd[machine, bool(self.mishaps.get(worker))] += by

    # Jobs

    def _urgency(self, job_id: str) -> Urgency:
        """The least goes first."""
        place, finishing = self._places[job_id], self.jobs[job_id].kind in FINISHING
        return self.tries[job_id], not finishing, place.cells < 2, -place.behind, place.number

    def _make_ready(self, job_id: str) -> None:
        if job_id not in self.outcomes:
            self.ready.add(job_id)
            self._place_anew(job_id)

    def _place_anew(self, job_id: str) -> None:
        """A job has become ready, or its urgency has changed."""
        if job_id in self.ready:
            heapq.heappush(self._queue, (self._urgency(job_id), job_id))

    def _release(self, worker: str, job_id: str) -> None:
        """`worker` has no job in hand any more, if it was this one."""
        if self.held.get(worker) == job_id:
            self._put_back(worker)

    def _put_back(self, worker: str) -> None:
        """What `worker` holds waits again, unless it has ended."""
        job_id = self.held.pop(worker, None)
        if job_id is not None and job_id not in self.outcomes:
            self._make_ready(job_id)

    def _give_up(self, job_id: str, reason: str, traceback: str) -> None:
        job = described(self.jobs[job_id])
        self._fail(job_id, Outcome(False, None, reason, job_id, job, self.tries[job_id], traceback))

    def _is_done(self, job_id: str) -> bool:
        return job_id in self.outcomes and self.outcomes[job_id].ok

    def _fail(self, job_id: str, outcome: Outcome) -> None:
        """The job and all that need it, directly or not."""
        hopeless = [job_id]
        while hopeless:
            failed = hopeless.pop()
            if failed not in self.outcomes:
                self._conclude(failed, outcome)
                hopeless += reversed(self._places[failed].needed_by)

    def _conclude(self, job_id: str, outcome: Outcome) -> None:
        """The one place where a job ends: what needs it comes nearer, and whoever waits for it is told."""
        if job_id in self.outcomes:
            return
        job = self.jobs[job_id]
        self.outcomes[job_id] = outcome
        self.ready.discard(job_id)
        self._counts[job.kind, "done" if outcome.ok else "failed"] += 1
        self.cost_left -= job.cost
        if outcome.ok:
            self.cost_done += job.cost
            for needing in self._places[job_id].needed_by:
                self._places[needing].unmet -= 1
                if not self._places[needing].unmet:
                    self._make_ready(needing)
        self.on_end(job_id)

    # Progress

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return len(self.outcomes) == len(self.jobs)

    def count(self, kind: str) -> tuple[int, int]:
        """How many jobs of `kind` are done, and how many there are."""
        return self._counts[kind, "done"], self._counts[kind, "all"]

    def count_failed(self, kind: str) -> int:
        return self._counts[kind, "failed"]
