"""The queue's rules for workers that come, die, hang or cannot start; without Ray."""

import asyncio
import contextlib
import types

import pytest

pytest.importorskip("ray")

from raybasin.board import Outcome
from raybasin.cluster import fleet
from raybasin.plan import Job

JOBS = [Job("a", "member", "a", 2.0), Job("b", "member", "b", 1.0)]


async def a_queue():
    queue = fleet.JobQueue()
    await queue.submit(JOBS)
    return queue


def test_a_waiter_of_a_worker_that_died_swallows_no_job():
    async def story():
        queue = fleet.JobQueue()
        old = await queue.hello(0, 11)
        waiting = asyncio.create_task(queue.take(0, old))
        await asyncio.sleep(0)
        new = await queue.hello(0, 12)
        await queue.submit(JOBS)
        assert await waiting == "stale"
        assert (await queue.take(0, new)).job_id == "a"

    asyncio.run(story())


def test_what_a_worker_held_is_done_by_its_successor():
    async def story():
        queue = await a_queue()
        first = await queue.hello(0, 11)
        assert (await queue.take(0, first)).job_id == "a"
        second = await queue.hello(0, 12)
        assert [(await queue.take(0, second)).job_id, (await queue.stats()).pids] == ["b", {0: 12}]
        await queue.done(0, second, "b", {})
        assert (await queue.take(0, second)).job_id == "a"  # after the others: it may have killed its worker

    asyncio.run(story())


@pytest.fixture
def clock(monkeypatch):
    """The seconds that the queue believes it is."""
    now = types.SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(fleet, "time", types.SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_a_worker_that_hangs_is_given_up_once_and_loses_its_job(clock):
    async def story():
        queue = await a_queue()
        rank = await queue.hello(0, 11)
        assert (await queue.take(0, rank)).job_id == "a"
        clock.seconds += 599  # no job of the kind has ended: ten times the least
        assert not await queue.hanging()
        other = await queue.hello(1, 12)
        clock.seconds += 2
        assert [process.pid for process in await queue.hanging()] == [11]
        assert not await queue.hanging()
        assert (await queue.stats()).pids == {1: 12}
        assert await queue.take(0, rank) == "stale"
        assert (await queue.take(1, other)).job_id == "b"
        await queue.done(0, rank, "a", {"late": True})  # it was not dead after all: what it did counts
        assert queue.board.outcomes["a"].value == {"late": True}

    asyncio.run(story())


@pytest.mark.parametrize(("stretch", "patience"), [(0.5, 60.0), (20.0, 200.0)])
def test_patience_is_ten_times_the_longest_stretch_of_its_kind_and_a_least(clock, stretch, patience):
    async def story():
        queue = await a_queue()
        rank = await queue.hello(0, 11)
        await queue.take(0, rank)
        await queue.done(0, rank, "a", {}, stretch)
        assert (await queue.take(0, rank)).job_id == "b"
        for _ in range(5):
            clock.seconds += patience - 1
            assert not await queue.hanging()
            await queue.beat(0, rank, 0.1)
        clock.seconds += patience + 1
        assert [process.pid for process in await queue.hanging()] == [11]

    asyncio.run(story())


def test_a_job_that_always_hangs_fails_with_that_reason(clock):
    async def story():
        queue = fleet.JobQueue()
        await queue.submit(JOBS[:1])
        for _ in range(3):
            rank = await queue.hello(0, 11)
            assert (await queue.take(0, rank)).job_id == "a"
            clock.seconds += 601
            assert await queue.hanging()
        return queue.board.outcomes["a"]

    outcome = asyncio.run(story())
    assert not outcome.ok and outcome.tries == 3
    assert outcome.reason == "its worker died 3 times: no progress for 601 s"


def test_a_worker_that_waits_does_not_hang_and_one_that_never_gets_so_far_does(clock):
    async def story():
        queue = fleet.JobQueue()
        ready = await queue.hello(0, 11)
        await queue.hello(1, 12)
        waiting = asyncio.create_task(queue.take(0, ready))
        await asyncio.sleep(0)
        clock.seconds += 601
        assert [process.pid for process in await queue.hanging()] == [12]
        waiting.cancel()

    asyncio.run(story())


def test_a_job_is_not_to_blame_for_a_machine_that_goes_away():
    async def story():
        queue = fleet.JobQueue()
        await queue.submit(JOBS[:1])
        for number in range(5):
            rank = await queue.hello(0, 11, f"node {number}")
            assert (await queue.take(0, rank)).job_id == "a"
            await queue.gone(0, "another node")
            assert "0" in queue.board.held
            await queue.gone(0, f"node {number}")
            assert "0" not in queue.board.held and await queue.take(0, rank) == "stale"
        rank = await queue.hello(0, 11)
        await queue.take(0, rank)
        await queue.done(0, rank, "a", {})
        return queue.board.outcomes["a"]

    assert asyncio.run(story()) == Outcome(True, value={}, job_id="a", tries=1)


def test_quiet_is_a_fleet_of_which_nobody_works_or_waits(clock):
    async def story():
        queue = await a_queue()
        rank = await queue.hello(0, 11, "node")
        await queue.take(0, rank)
        clock.seconds += 100
        assert (await queue.stats()).quiet_seconds == 0
        await queue.gone(0, "node")
        assert (await queue.stats()).quiet_seconds == 100
        await queue.hello(0, 12)
        assert (await queue.stats()).quiet_seconds == 0

    asyncio.run(story())


def test_a_lost_folder_ends_everything_and_is_no_jobs_failure():
    async def story():
        queue = await a_queue()
        await queue.take(0, await queue.hello(0, 11))
        await queue.end("results folder r: is gone", folder_lost=True)
        stats = await queue.stats()
        return stats.folder_lost, stats.fatal, [outcome.job_id for outcome in queue.board.outcomes.values()]

    assert asyncio.run(story()) == (True, "results folder r: is gone", ["", ""])


def test_a_fleet_that_cannot_start_ends_everything_and_one_that_has_worked_does_not():
    async def story(worked):
        queue = await a_queue()
        rank = await queue.hello(0, 11)
        if worked:
            await queue.take(0, rank)
        await queue.cannot_start("ModuleNotFoundError: no timm")
        return queue.fatal, [outcome.ok for outcome in queue.board.outcomes.values()]

    assert asyncio.run(story(False)) == ("a worker cannot start: ModuleNotFoundError: no timm", [False, False])
    assert asyncio.run(story(True)) == ("", [])


def test_workers_that_only_start_and_die_end_the_sweep():
    async def story():
        queue = await a_queue()
        for _ in range(fleet.MAX_BARREN_STARTS + 2):
            await queue.hello(0, 11)
        return queue.fatal

    assert "none has finished a job" in asyncio.run(story())


def test_those_who_wait_for_a_job_are_told_when_nothing_more_will_come():
    async def story():
        queue = await a_queue()
        waiting = asyncio.create_task(queue.outcomes(["a", "b"]))
        await asyncio.sleep(0)
        await queue.end("the fleet has failed")
        with contextlib.suppress(asyncio.TimeoutError):
            return await asyncio.wait_for(waiting, 5)

    assert [(outcome.ok, outcome.reason) for outcome in asyncio.run(story())] == [(False, "the fleet has failed")] * 2


def test_a_sweep_can_start_when_the_first_job_is_taken():
    async def story():
        queue = await a_queue()
        started = asyncio.create_task(queue.started())
        await asyncio.sleep(0)
        assert not started.done()
        await queue.take(0, await queue.hello(0, 11))
        await asyncio.wait_for(started, 5)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("cpus", "gpus", "nodes", "free", "expected"),
    [
        (0.9, 0, [{"CPU": 2}], {"CPU": 2}, 2),
        (1.0, 0, [{"CPU": 2}], {"CPU": 2}, 1),  # 0.1 CPU is kept for trials
        (2.0, 0, [{"CPU": 3}, {"CPU": 3}], {"CPU": 6}, 2),  # a worker does not span machines
        (1.0, 0.25, [{"CPU": 16, "GPU": 1}], {"CPU": 16, "GPU": 1}, 4),
        (1.0, 0.4, [{"CPU": 16, "GPU": 2}], {"CPU": 16, "GPU": 2}, 4),  # two fit on each card, not five on both
        (1.0, 2.0, [{"CPU": 16, "GPU": 3}], {"CPU": 16, "GPU": 3}, 1),
        (1.0, 0.5, [{"CPU": 16}], {"CPU": 16}, 0),
        (1.0, 0, [{"CPU": 8}], {"CPU": 2.5}, 2),
        (4.0, 0, [{"CPU": 2}], {"CPU": 2}, 0),
    ],
)
def test_how_many_workers_fit(cpus, gpus, nodes, free, expected):
    assert fleet.slots(fleet.Workers(cpus=cpus, gpus=gpus), nodes, free) == expected
