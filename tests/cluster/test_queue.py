"""The queue's rules for workers that come, die, hang or cannot start; without Ray."""

import asyncio
import contextlib
import copy
import dataclasses
import random
import types

import pytest

pytest.importorskip("ray")

from toy_jobs import toy_job

from raybasin.cluster import queue as queue_module
from raybasin.cluster.queue import JobQueue
from raybasin.jobs.scheduler import Outcome

JOBS = [toy_job("a", "member", 2.0), toy_job("b", "member", 1.0)]


def many(count):
    return [toy_job(f"m{n}", "member", 1.0) for n in range(count)]


async def a_queue():
    queue = JobQueue()
    await queue.submit(JOBS)
    return queue


def test_a_waiter_of_a_worker_that_died_swallows_no_job():
    async def story():
        queue = JobQueue()
        old = await queue.hello("0", 11)
        waiting = asyncio.create_task(queue.take("0", old))
        await asyncio.sleep(0)
        new = await queue.hello("0", 12)
        await queue.submit(JOBS)
        assert await waiting == "stale"
        assert (await queue.take("0", new)).job_id == "a"

    asyncio.run(story())


def test_what_a_worker_held_is_done_by_its_successor():
    async def story():
        queue = await a_queue()
        first = await queue.hello("0", 11)
        assert (await queue.take("0", first)).job_id == "a"
        second = await queue.hello("0", 12)
        assert [(await queue.take("0", second)).job_id, (await queue.stats()).pids] == ["b", {"0": 12}]
        await queue.done("0", second, "b", {})
        assert (await queue.take("0", second)).job_id == "a"  # after the others: it may have killed its worker

    asyncio.run(story())


@pytest.fixture
def clock(monkeypatch):
    """The seconds that the queue believes it is."""
    now = types.SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(queue_module, "time", types.SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_images_a_second_are_those_of_the_last_minute(clock):
    async def story():
        queue = await a_queue()
        this = await queue.hello("0", 11)
        await queue.take("0", this)
        assert (await queue.stats()).images_per_second == 0
        for each in [10] * 120 + [40] * 60:
            clock.seconds += 1
            await queue.beat("0", this, 0.1, each)
            stats = await queue.stats()
            assert stats.images_per_second >= 10
        assert (stats.images, stats.images_per_second) == (1200 + 2400, 40)
        clock.seconds += 1
        await queue.done("0", this, "a", {}, 0.1, 7)  # what has not been told of
        assert (await queue.stats()).images == 3607

    asyncio.run(story())


def test_images_a_second_of_a_run_that_ends_before_it_is_looked_at_are_those_since_its_first_job(clock):
    async def story():
        queue = await a_queue()
        this = await queue.hello("0", 11)
        clock.seconds += 50  # nothing to do yet
        job = await queue.take("0", this)
        clock.seconds += 0.5
        await queue.done("0", this, job.job_id, {}, 0.1, 20)
        assert (await queue.stats()).images_per_second == 40
        clock.seconds += 19.5
        assert (await queue.stats()).images_per_second == 1

    asyncio.run(story())


def test_images_a_second_are_of_the_last_minute_however_rarely_somebody_looks(clock):
    async def story():
        queue = await a_queue()
        this = await queue.hello("0", 11)
        await queue.take("0", this)
        for each in [600] * 5 + [60] * 20:
            clock.seconds += 10
            await queue.beat("0", this, 0.1, each)
            pace = (await queue.stats()).images_per_second
        assert pace == 6

    asyncio.run(story())


def test_a_worker_that_hangs_is_given_up_once_and_loses_its_job(clock):
    async def story():
        queue = await a_queue()
        this = await queue.hello("0", 11)
        assert (await queue.take("0", this)).job_id == "a"
        clock.seconds += 599  # no job of the kind has ended: ten times the least
        assert not await queue.hanging()
        other = await queue.hello("1", 12)
        clock.seconds += 2
        assert [process.pid for process in await queue.hanging()] == [11]
        assert not await queue.hanging()
        assert (await queue.stats()).pids == {"1": 12}
        assert await queue.take("0", this) == "stale"
        assert (await queue.take("1", other)).job_id == "b"
        await queue.done("0", this, "a", {"late": True})  # it was not dead after all: what it did counts
        assert queue.scheduler.outcomes["a"].value == {"late": True}

    asyncio.run(story())


@pytest.mark.parametrize(("stretch", "patience"), [(0.5, 60.0), (20.0, 200.0)])
def test_patience_is_ten_times_the_longest_stretch_of_its_kind_and_a_least(clock, stretch, patience):
    async def story():
        queue = await a_queue()
        this = await queue.hello("0", 11)
        await queue.take("0", this)
        await queue.done("0", this, "a", {}, stretch)
        assert (await queue.take("0", this)).job_id == "b"
        for _ in range(5):
            clock.seconds += patience - 1
            assert not await queue.hanging()
            await queue.beat("0", this, 0.1)
        clock.seconds += patience + 1
        assert [process.pid for process in await queue.hanging()] == [11]

    asyncio.run(story())


def test_a_job_that_always_hangs_fails_with_that_reason(clock):
    async def story():
        queue = JobQueue()
        await queue.submit(JOBS[:1])
        for _ in range(3):
            this = await queue.hello("0", 11)
            assert (await queue.take("0", this)).job_id == "a"
            clock.seconds += 601
            assert await queue.hanging()
        return queue.scheduler.outcomes["a"]

    outcome = asyncio.run(story())
    assert not outcome.ok and outcome.tries == 3
    assert outcome.reason == "its worker died 3 times: no progress for 601 s"


def test_a_worker_that_waits_does_not_hang_and_one_that_never_gets_so_far_does(clock):
    async def story():
        queue = JobQueue()
        ready = await queue.hello("0", 11)
        await queue.hello("1", 12)
        waiting = asyncio.create_task(queue.take("0", ready))
        await asyncio.sleep(0)
        clock.seconds += 601
        assert [process.pid for process in await queue.hanging()] == [12]
        waiting.cancel()

    asyncio.run(story())


def test_a_job_is_not_to_blame_for_a_machine_that_goes_away():
    async def story():
        queue = JobQueue()
        await queue.submit(JOBS[:1])
        for number in range(5):
            this = await queue.hello("0", 11, f"node {number}")
            assert (await queue.take("0", this)).job_id == "a"
            assert not await queue.hanging(["another node"])
            assert "0" in queue.scheduler.held
            assert not await queue.hanging([f"node {number}"])
            assert "0" not in queue.scheduler.held and await queue.take("0", this) == "stale"
        this = await queue.hello("0", 11)
        await queue.take("0", this)
        await queue.done("0", this, "a", {})
        return queue.scheduler.outcomes["a"]

    assert asyncio.run(story()) == Outcome(True, value={}, job_id="a", tries=1)


def test_quiet_is_a_pool_of_which_nobody_works_or_waits(clock):
    async def story():
        queue = await a_queue()
        this = await queue.hello("0", 11, "node")
        await queue.take("0", this)
        clock.seconds += 100
        assert (await queue.stats()).quiet_seconds == 0
        await queue.hanging(["node"])
        assert (await queue.stats()).quiet_seconds == 100
        await queue.hello("0", 12)
        assert (await queue.stats()).quiet_seconds == 0

    asyncio.run(story())


def test_a_lost_folder_ends_everything_and_is_no_jobs_failure():
    async def story():
        queue = await a_queue()
        await queue.take("0", await queue.hello("0", 11))
        await queue.end("results folder r: is gone", folder_lost=True)
        stats = await queue.stats()
        return stats.folder_lost, stats.fatal, [outcome.job_id for outcome in queue.scheduler.outcomes.values()]

    assert asyncio.run(story()) == (True, "results folder r: is gone", ["", ""])


def test_a_worker_that_cannot_start_is_tried_twice_and_then_named_and_the_others_go_on():
    async def story():
        queue = await a_queue()
        good = await queue.hello("1", 21, "node", None, "here")
        for again in (True, False):
            bad = await queue.hello("0", 11, "node", None, "there")
            assert await queue.cannot_start("0", bad, "RuntimeError: no NVIDIA driver") is again
        assert await queue.take("0", bad) == "given up"
        stats = await queue.stats()
        assert stats.given_up == ("worker 0 on there was given up: it cannot start: RuntimeError: no NVIDIA driver",)
        assert stats.pids == {"1": 21} and not stats.fatal
        for name in "ab":
            assert (await queue.take("1", good)).job_id == name
            await queue.done("1", good, name, {})
        assert queue.scheduler.idle

    asyncio.run(story())


def test_where_no_worker_can_start_the_end_says_why():
    async def story():
        queue = await a_queue()
        for _ in range(2):
            await queue.cannot_start(
                "0", await queue.hello("0", 11, "node", None, "here"), "ModuleNotFoundError: no timm"
            )
        await queue.end("the worker pool has ended before its work was done")
        return await queue.started(), (await queue.stats()).fatal

    started, reason = asyncio.run(story())
    assert not started
    assert reason == (
        "the worker pool has ended before its work was done; worker 0 on here was given up: it cannot start: "
        "ModuleNotFoundError: no timm"
    )


def test_a_worker_that_only_starts_and_dies_is_given_up_and_one_that_is_at_its_first_job_is_not():
    async def story():
        queue = await a_queue()
        good = await queue.hello("1", 21, "node 1")
        assert (await queue.take("1", good)).job_id == "a"
        for _ in range(queue_module.MAX_BARREN_STARTS):
            assert await queue.hello("0", 11, "node 0", None, "there")
        assert await queue.hello("0", 11, "node 0", None, "there") == 0
        assert (await queue.stats()).given_up == (
            "worker 0 on there was given up: it has died 6 times and has ended no job",
        )
        assert not queue.fatal
        await queue.done("1", good, "a", {})
        assert (await queue.take("1", good)).job_id == "b"
        assert await queue.hello("0", 12, "another node")  # it may be well there

    asyncio.run(story())


def test_a_worker_that_dies_now_and_then_is_not_given_up():
    async def story():
        queue = JobQueue()
        await queue.submit(many(20))
        for _ in range(20):
            this = await queue.hello("0", 11, "node")
            await queue.done("0", this, (await queue.take("0", this)).job_id, {})
        return queue.scheduler.idle

    assert asyncio.run(story())


def test_those_who_wait_for_a_job_are_told_when_nothing_more_will_come():
    async def story():
        queue = await a_queue()
        waiting = asyncio.create_task(queue.outcomes(["a", "b"]))
        await asyncio.sleep(0)
        await queue.end("the worker pool has failed")
        with contextlib.suppress(asyncio.TimeoutError):
            return await asyncio.wait_for(waiting, 5)

    assert [(outcome.ok, outcome.reason) for outcome in asyncio.run(story())] == [
        (False, "the worker pool has failed")
    ] * 2


def test_a_sweep_can_start_when_the_first_job_is_taken():
    async def story():
        queue = await a_queue()
        started = asyncio.create_task(queue.started())
        await asyncio.sleep(0)
        assert not started.done()
        await queue.take("0", await queue.hello("0", 11))
        await asyncio.wait_for(started, 5)

    asyncio.run(story())


def test_the_seconds_of_workers_are_those_that_each_was_there(clock):
    async def story():
        queue = await a_queue()
        first = await queue.hello("0.0", 11)
        clock.seconds += 50  # nothing has begun
        assert (await queue.take("0.0", first)).job_id == "a"
        clock.seconds += 10
        second = await queue.hello("1.0", 12, "node")
        assert (await queue.take("1.0", second)).job_id == "b"
        clock.seconds += 5
        await queue.hanging(["node"])
        clock.seconds += 100
        return await queue.stats()

    stats = asyncio.run(story())
    assert (stats.worker_seconds, stats.busy_seconds, stats.up_seconds) == (115 + 5, 115 + 5, 115)


def test_what_a_worker_of_a_run_that_has_ended_held_waits_again_and_is_not_to_blame():
    async def story():
        queue = await a_queue()
        workers = {name: await queue.hello(name, 11) for name in ("0.0", "1.0")}
        assert (await queue.take("0.0", workers["0.0"])).job_id == "a"
        assert not await queue.hanging(ended_runs={"0"})
        assert await queue.take("0.0", workers["0.0"]) == "stale"
        assert (await queue.stats()).pids == {"1.0": 11} and not queue.scheduler.held
        for _ in JOBS:
            await queue.done("1.0", workers["1.0"], (await queue.take("1.0", workers["1.0"])).job_id, {})
        return queue.scheduler.outcomes["a"].tries

    assert asyncio.run(story()) == 1


def test_each_kind_of_workers_has_its_own_patience(clock):
    async def story():
        queue = JobQueue([60.0, 300.0])
        await queue.submit(many(4))
        fast, slow = await queue.hello("0.0", 11), await queue.hello("1.0", 12, kind=1)
        await queue.done("0.0", fast, (await queue.take("0.0", fast)).job_id, {}, 0.1)
        await queue.done("1.0", slow, (await queue.take("1.0", slow)).job_id, {}, 20.0)
        await queue.take("0.0", fast), await queue.take("1.0", slow)
        clock.seconds += 61
        assert [worker.pid for worker in await queue.hanging()] == [11]
        clock.seconds += 238
        assert not await queue.hanging()
        clock.seconds += 2
        assert [worker.pid for worker in await queue.hanging()] == [12]

    asyncio.run(story())


# Nobody waits for ever


def test_who_waits_for_a_job_that_nobody_has_put_there_is_told_so():
    async def story():
        queue = await a_queue()
        return await asyncio.wait_for(queue.outcomes(["never"]), 5)

    [outcome] = asyncio.run(story())
    assert not outcome.ok and outcome.reason == "job never is not in the queue" and not outcome.job_id


def test_a_job_that_raises_is_not_kept_for_a_worker_that_asks_no_more(clock):
    async def story():
        queue = await a_queue()
        gone, here = await queue.hello("0", 11), await queue.hello("1", 12)
        for name, incarnation in (("0", gone), ("1", here)):
            job = await queue.take(name, incarnation)
            if name == "0":
                await queue.done("0", gone, job.job_id, {})
        await queue.failed("1", here, job.job_id, "why")
        taking = asyncio.create_task(queue.take("1", here))
        await asyncio.sleep(0)
        assert not taking.done()  # worker 0 might do it
        clock.seconds += queue_module.AWAY_SECONDS + 1
        await queue.hanging()
        return (await asyncio.wait_for(taking, 5)).job_id

    assert asyncio.run(story()) == "b"


@pytest.mark.parametrize("seed", range(10))
def test_nobody_waits_while_there_is_a_job_for_them(seed):
    """Workers ask, finish, raise, die and are replaced in random order, and jobs come in lots."""
    chance, names = random.Random(seed), [f"{run}.{rank}" for run in range(2) for rank in range(2)]

    def node(name):
        return f"node {name[-1]}"

    async def story():
        queue, calls, held = JobQueue(), {}, {}
        incarnations = {name: await queue.hello(name, 1, node(name)) for name in names}
        lots = [
            [toy_job(f"{lot}-{n}", "member", 1.0, [f"{lot}-{n - 1}"] * (n % 3 > 0)) for n in range(9)]
            for lot in range(3)
        ]
        for _ in range(400):
            name, fate = chance.choice(names), chance.random()
            if lots and fate < 0.05:
                await queue.submit(lots.pop())
            elif fate < 0.1:
                incarnations[name] = await queue.hello(name, 1, node(name))
                held.pop(name, None)
            elif name in held:
                job_id = held.pop(name)
                if fate < 0.3:
                    await queue.failed(name, incarnations[name], job_id, "raised", certain=fate < 0.15)
                else:
                    await queue.done(name, incarnations[name], job_id, {})
            elif name not in calls:
                calls[name] = asyncio.create_task(queue.take(name, incarnations[name]))
            await asyncio.sleep(0)
            for waiting in list(queue.asking):
                scheduler = copy.deepcopy(dataclasses.replace(queue.scheduler, on_end=lambda job_id: None))
                assert scheduler.take(waiting, node(waiting)) is None
            for caller in [caller for caller, call in calls.items() if call.done()]:
                said = calls.pop(caller).result()
                if not isinstance(said, str):
                    held[caller] = said.job_id
        assert held == queue.scheduler.held
        await queue.close()
        return [await call for call in calls.values()]

    assert set(asyncio.run(story())) <= {"closed", "given up"}


@pytest.mark.parametrize("by", ["submit", "done", "close"])
def test_a_call_that_is_cancelled_harms_nobody_and_gets_no_job(by):
    async def story():
        queue = JobQueue()
        gone, other = await queue.hello("0", 11), await queue.hello("1", 12)
        await queue.submit(JOBS[:1])
        assert (await queue.take("1", other)).job_id == "a"
        waiting = asyncio.create_task(queue.take("0", gone))
        await asyncio.sleep(0)
        waiting.cancel()  # it is told so when it runs next
        if by == "done":
            await queue.submit(JOBS)
            await queue.done("1", other, "a", {})
        elif by == "close":
            await queue.close()
            return
        else:
            await queue.submit(JOBS)
        assert queue.scheduler.held == ({} if by == "done" else {"1": "a"})
        assert (await asyncio.wait_for(queue.take("0", gone), 5)).job_id == "b"

    asyncio.run(story())


# Jobs that are waited for one by one, and withdrawn


def test_news_come_with_the_first_job_that_ends(monkeypatch):
    monkeypatch.setattr(queue_module, "NEWS_SECONDS", 0.0)

    async def story():
        queue = await a_queue()
        first = await queue.hello(0, 11)
        waiting = asyncio.create_task(queue.news(["a", "b"]))
        await queue.take(0, first)
        assert not waiting.done()
        await queue.done(0, first, "a", {"x": 1})
        assert {job_id: outcome.value for job_id, outcome in (await waiting).items()} == {"a": {"x": 1}}

    asyncio.run(story())


def test_news_of_several_that_end_together_come_at_once():
    async def story():
        queue = await a_queue()
        first = await queue.hello(0, 11)
        waiting = asyncio.create_task(queue.news(["a", "b"]))
        for _ in range(2):
            await queue.done(0, first, (await queue.take(0, first)).job_id, None)
        assert set(await waiting) == {"a", "b"}  # without waiting for NEWS_SECONDS: nothing more is to come

    asyncio.run(story())


def test_who_waits_for_a_withdrawn_job_is_told_that_it_is_not_there():
    async def story():
        queue = await a_queue()
        waiting = asyncio.create_task(queue.news(["a"]))
        everything = asyncio.create_task(queue.ended(["member"]))
        await asyncio.sleep(0)
        assert await queue.withdraw(["a", "never submitted"]) == []
        (outcome,) = (await waiting).values()
        assert not outcome.ok and not outcome.job_id and "is not in the queue" in outcome.reason
        first = await queue.hello(0, 11)
        await queue.done(0, first, (await queue.take(0, first)).job_id, {"x": 1})
        assert await everything == {"b": Outcome(True, job_id="b", tries=1)}  # of those that are left, without values

    asyncio.run(story())


def test_all_jobs_of_a_kind_are_waited_for_those_too_that_come_later():
    async def story():
        queue = await a_queue()
        waiting = asyncio.create_task(queue.ended(["member"]))
        first = await queue.hello(0, 11)
        for _ in range(2):
            job = await queue.take(0, first)
            if job.job_id == "b":
                await queue.submit(many(1))
            await queue.done(0, first, job.job_id, None)
        await asyncio.sleep(0)
        assert not waiting.done()
        await queue.done(0, first, (await queue.take(0, first)).job_id, None)
        assert set(await waiting) == {"a", "b", "m0"}

    asyncio.run(story())
