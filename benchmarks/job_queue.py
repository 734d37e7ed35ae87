"""What handing out jobs costs: a sweep of 10,900 cells whose jobs do nothing, by 1,000 workers that are simulated.

    python benchmarks/job_queue.py [--cells N] [--workers N]

Prints the CPU seconds of the queue of `raybasin/cluster/queue.py`, without Ray, for putting the jobs on it, for handing
all of them out, and for failing all of them, and how long `stats` took meanwhile. Each cell has a hub, which it shares
with others, five members, five paths and the job that ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import statistics
import time
from dataclasses import dataclass

from raybasin.cluster.queue import JobQueue
from raybasin.sweep.job_list import Job

MEMBERS = 5
CELLS_PER_HUB = 100


@dataclass(frozen=True)
class NoTask:
    kind: str
    unit: str


def jobs_of(cells: int) -> list[Job]:
    jobs: dict[str, Job] = {}

    def add(kind: str, unit: str, cost: float, needs: list[str]) -> str:
        job = Job(NoTask(kind, unit), cost, tuple(needs))
        return jobs.setdefault(job.job_id, job).job_id

    for cell in range(cells):
        hub = add("member", f"hub{cell // CELLS_PER_HUB}", 100.0, [])
        members = [add("member", f"{cell}-{n}", 50.0 + cell % 7, [hub]) for n in range(MEMBERS)]
        paths = [add("path", f"{cell}-{n}", 5.0, [hub, member]) for n, member in enumerate(members)]
        add("cell", f"{cell}", 1.0, [hub, *members, *paths])
    return list(jobs.values())


async def worker(queue: JobQueue, rank: int) -> None:
    name = f"0.{rank}"
    incarnation = await queue.hello(name, rank, f"node {rank // 8}")
    while not isinstance(job := await queue.take(name, incarnation), str) or job == "again":
        if isinstance(job, Job):
            await asyncio.sleep(0)
            await queue.done(name, incarnation, job.job_id, None)


async def looks(queue: JobQueue, seconds: list[float]) -> None:
    while not (await queue.stats()).idle:
        started = time.perf_counter()
        await queue.stats()
        seconds.append(time.perf_counter() - started)
        await asyncio.sleep(0.05)
    await queue.close()


async def handed_out(jobs: list[Job], workers: int) -> tuple[float, float, list[float]]:
    """(CPU seconds of adding, of handing out, seconds of each `stats`)"""
    queue, seconds = JobQueue(), []
    started = time.process_time()
    await queue.submit(jobs)
    added = time.process_time()
    await asyncio.gather(looks(queue, seconds), *(worker(queue, rank) for rank in range(workers)))
    return added - started, time.process_time() - added, seconds


async def failed(jobs: list[Job]) -> float:
    """CPU seconds of failing all jobs at once."""
    queue = JobQueue()
    await queue.submit(jobs)
    started = time.process_time()
    await queue.end("nothing more can be done")
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_900)
    parser.add_argument("--workers", type=int, default=1_000)
    options = parser.parse_args()
    jobs = jobs_of(options.cells)
    adding, handing, seconds = asyncio.run(handed_out(jobs, options.workers))
    print(f"{len(jobs):,} jobs of {options.cells:,} cells, {options.workers:,} workers that are simulated")
    print(f"put on the queue: {adding:.2f} CPU s; handed out and done: {handing:.2f} CPU s")
    print(f"stats: median {1000 * statistics.median(seconds):.2f} ms, longest {1000 * max(seconds):.2f} ms")
    print(f"all failed at once: {asyncio.run(failed(jobs)):.2f} CPU s; Python {platform.python_version()}")


if __name__ == "__main__":
    main()
