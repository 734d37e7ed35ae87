"""The queue's rules for workers that come, die, hang or cannot start; without Ray."""

import asyncio
import concurrent.futures
import contextlib
import threading
import time
import types

import pytest

pytest.importorskip("ray")

from raybasin.cluster import driver as on_ray
from raybasin.cluster import pool
from raybasin.jobs.scheduler import Outcome
from raybasin.store import object_store
from raybasin.store.folders import Folder
from raybasin.sweep.plan import Job
from raybasin.training import loop

JOBS = [Job("a", "member", "a", 2.0), Job("b", "member", "b", 1.0)]


async def a_queue():
    queue = pool.JobQueue()
    await queue.submit(JOBS)
    return queue


def test_a_waiter_of_a_worker_that_died_swallows_no_job():
    async def story():
        queue = pool.JobQueue()
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
    monkeypatch.setattr(pool, "time", types.SimpleNamespace(monotonic=lambda: now.seconds))
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
        assert queue.scheduler.outcomes["a"].value == {"late": True}

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
        queue = pool.JobQueue()
        await queue.submit(JOBS[:1])
        for _ in range(3):
            rank = await queue.hello(0, 11)
            assert (await queue.take(0, rank)).job_id == "a"
            clock.seconds += 601
            assert await queue.hanging()
        return queue.scheduler.outcomes["a"]

    outcome = asyncio.run(story())
    assert not outcome.ok and outcome.tries == 3
    assert outcome.reason == "its worker died 3 times: no progress for 601 s"


def test_a_worker_that_waits_does_not_hang_and_one_that_never_gets_so_far_does(clock):
    async def story():
        queue = pool.JobQueue()
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
        queue = pool.JobQueue()
        await queue.submit(JOBS[:1])
        for number in range(5):
            rank = await queue.hello(0, 11, f"node {number}")
            assert (await queue.take(0, rank)).job_id == "a"
            await queue.gone(0, "another node")
            assert "0" in queue.scheduler.held
            await queue.gone(0, f"node {number}")
            assert "0" not in queue.scheduler.held and await queue.take(0, rank) == "stale"
        rank = await queue.hello(0, 11)
        await queue.take(0, rank)
        await queue.done(0, rank, "a", {})
        return queue.scheduler.outcomes["a"]

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
        return stats.folder_lost, stats.fatal, [outcome.job_id for outcome in queue.scheduler.outcomes.values()]

    assert asyncio.run(story()) == (True, "results folder r: is gone", ["", ""])


def test_a_worker_that_cannot_start_is_tried_twice_and_then_named_and_the_others_go_on():
    async def story():
        queue = await a_queue()
        good = await queue.hello(1, 21, "node", None, "here")
        for again in (True, False):
            bad = await queue.hello(0, 11, "node", None, "there")
            assert await queue.cannot_start(0, bad, "RuntimeError: no NVIDIA driver") is again
        assert await queue.take(0, bad) == "given up"
        stats = await queue.stats()
        assert stats.given_up == ("worker 0 on there was given up: it cannot start: RuntimeError: no NVIDIA driver",)
        assert stats.pids == {1: 21} and not stats.fatal
        for name in "ab":
            assert (await queue.take(1, good)).job_id == name
            await queue.done(1, good, name, {})
        assert queue.scheduler.idle

    asyncio.run(story())


def test_where_no_worker_can_start_the_end_says_why():
    async def story():
        queue = await a_queue()
        for _ in range(2):
            await queue.cannot_start(0, await queue.hello(0, 11, "node", None, "here"), "ModuleNotFoundError: no timm")
        await queue.end("the fleet has ended before its work was done")
        return await queue.started(), (await queue.stats()).fatal

    started, reason = asyncio.run(story())
    assert not started
    assert reason == (
        "the fleet has ended before its work was done; worker 0 on here was given up: it cannot start: "
        "ModuleNotFoundError: no timm"
    )


def test_a_worker_that_only_starts_and_dies_is_given_up_and_one_that_is_at_its_first_job_is_not():
    async def story():
        queue = await a_queue()
        good = await queue.hello(1, 21, "node 1")
        assert (await queue.take(1, good)).job_id == "a"
        for _ in range(pool.MAX_BARREN_STARTS):
            assert await queue.hello(0, 11, "node 0", None, "there")
        assert await queue.hello(0, 11, "node 0", None, "there") == 0
        assert (await queue.stats()).given_up == (
            "worker 0 on there was given up: it has died 6 times and has ended no job",
        )
        assert not queue.fatal
        await queue.done(1, good, "a", {})
        assert (await queue.take(1, good)).job_id == "b"
        assert await queue.hello(0, 12, "another node")  # it may be well there

    asyncio.run(story())


def test_a_worker_that_dies_now_and_then_is_not_given_up():
    async def story():
        queue = pool.JobQueue()
        await queue.submit(many(20))
        for _ in range(20):
            rank = await queue.hello(0, 11, "node")
            await queue.done(0, rank, (await queue.take(0, rank)).job_id, {})
        return queue.scheduler.idle

    assert asyncio.run(story())


def test_a_worker_that_is_given_up_when_it_starts_does_not_even_try(local, workers):
    queue = local()
    queue.ask("submit", many(1))
    for _ in range(pool.MAX_BARREN_STARTS):
        queue.ask("hello", 0, 100, "node", None, "machine0")
    assert workers(queue, 0, lambda job, context, beat: {}).result(60) is None
    assert not queue.queue.scheduler.outcomes and not queue.queue.scheduler.tries


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
    assert pool.slots(pool.Workers(cpus=cpus, gpus=gpus), nodes, free) == expected


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
        gone, here = await queue.hello(0, 11), await queue.hello(1, 12)
        for rank, incarnation in ((0, gone), (1, here)):
            job = await queue.take(rank, incarnation)
            if rank == 0:
                await queue.done(0, gone, job.job_id, {})
        await queue.failed(1, here, job.job_id, "why")
        taking = asyncio.create_task(queue.take(1, here))
        await asyncio.sleep(0)
        assert not taking.done()  # worker 0 might do it
        clock.seconds += pool.AWAY_SECONDS + 1
        await queue.hanging()
        return (await asyncio.wait_for(taking, 5)).job_id

    assert asyncio.run(story()) == "b"


# Workers, without Ray


class Local:
    """The queue in a thread of its own, asked as an actor is."""

    def __init__(self, **options):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.queue = asyncio.run_coroutine_threadsafe(self._made(options), self.loop).result(10)

    async def _made(self, options):
        return pool.JobQueue(**options)

    def __getattr__(self, name):
        def remote(*arguments, **keywords):
            return asyncio.run_coroutine_threadsafe(getattr(self.queue, name)(*arguments, **keywords), self.loop)

        return types.SimpleNamespace(remote=remote)

    def ask(self, name, *arguments):
        return getattr(self, name).remote(*arguments).result(60)


@pytest.fixture
def local(monkeypatch):
    """Makes queues that `fleet.serve` can ask without Ray."""
    monkeypatch.setattr(pool, "ray", types.SimpleNamespace(get=lambda future: future.result(60)))
    made = []

    def make(**options):
        made.append(Local(**options))
        return made[-1]

    yield make
    for queue in made:
        queue.loop.call_soon_threadsafe(queue.loop.stop)
        queue.thread.join(10)


class WorkerContext:
    """What a worker has: a folder on a disk, and a processor."""

    def __init__(self, folder=None):
        self.folder = folder or Folder(on_ray.Path("nowhere"))
        self.device = loop.torch.device("cpu")


@pytest.fixture
def workers(monkeypatch):
    """Starts workers as threads, each with its own way to do jobs: `run`, or an exception that its start raises."""
    ways, threads = {}, concurrent.futures.ThreadPoolExecutor(8)

    def context(supplies):
        way = ways[supplies]
        if isinstance(way, Exception):
            raise way
        return way

    monkeypatch.setattr(pool, "_bench", context)

    def start(queue, rank, run, folder=None):
        ways[rank] = run if isinstance(run, Exception) else (WorkerContext(folder), run)
        return threads.submit(pool.serve, queue, rank, rank, (100 + rank, "node", None, f"machine{rank}"))

    yield start
    threads.shutdown()


def many(count):
    return [Job(f"m{n}", "member", f"m{n}", 1.0) for n in range(count)]


def test_a_worker_on_which_everything_raises_is_given_up_and_the_others_do_its_jobs(local, workers):
    queue, jobs = local(), many(9)
    queue.ask("submit", jobs)
    raised = threading.Semaphore(0)

    def broken(job, context, beat):
        raised.release()
        raise RuntimeError("Found no NVIDIA driver on your system")

    def good(job, context, beat):
        if not waited:
            waited.extend(raised.acquire(timeout=30) for _ in range(4))  # until four jobs have raised elsewhere
        return {"done": job.job_id}

    waited = []
    ended = [workers(queue, 0, broken), workers(queue, 1, good)]
    outcomes = queue.ask("outcomes", [job.job_id for job in jobs])
    assert all(waited) and [outcome.ok for outcome in outcomes] == [True] * 9
    assert ended[0].result(60) is None  # it has gone, and is not to be started again
    stats = queue.ask("stats")
    assert stats.given_up == (
        "worker 0 on machine0 was given up: jobs that others could do went wrong there: "
        "RuntimeError: Found no NVIDIA driver on your system",
    )
    assert stats.pids == {1: 101}
    queue.ask("close")
    assert ended[1].result(60) is None


def test_a_worker_whose_device_does_not_compute_is_started_twice(local, workers):
    queue = local()
    queue.ask("submit", many(1))
    with pytest.raises(RuntimeError, match="no NVIDIA driver"):  # upon which Ray Train starts another process
        workers(queue, 0, RuntimeError("no NVIDIA driver")).result(60)
    assert workers(queue, 0, RuntimeError("no NVIDIA driver")).result(60) is None
    good = workers(queue, 1, lambda job, context, beat: {})
    assert queue.ask("outcomes", ["m0"])[0].ok
    queue.ask("close")
    good.result(60)
    assert queue.ask("stats").given_up[0].startswith("worker 0 on machine0 was given up: it cannot start")


def test_of_a_job_that_raises_the_traceback_is_kept(local, workers):
    def fails(job, context, beat):
        raise OSError("no such sector\x1b[2J\nsecond line")

    queue = local()
    queue.ask("submit", many(1))
    worker = workers(queue, 0, fails)
    [outcome] = queue.ask("outcomes", ["m0"])
    queue.ask("close")
    worker.result(60)
    assert outcome.reason == "OSError: no such sector [2J second line" and outcome.tries == 2
    lines = outcome.traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):" and "second line" in lines[-1]
    assert any(line.strip().startswith('File "') and "test_queue.py" in line for line in lines)
    assert all(line.isprintable() for line in lines)


def test_an_error_that_would_come_again_costs_one_try(local, workers):
    def diverges(job, context, beat):
        raise loop.Diverged("training loss is nan")

    queue = local()
    queue.ask("submit", many(1))
    worker = workers(queue, 0, diverges)
    [outcome] = queue.ask("outcomes", ["m0"])
    queue.ask("close")
    worker.result(60)
    assert (outcome.reason, outcome.tries) == ("Diverged: training loss is nan", 1)


def test_a_job_that_runs_out_of_gpu_memory_is_tried_again_and_the_way_out_is_named(local, workers):
    tries = []

    def hungry(job, context, beat):
        tries.append(job.job_id)
        if job.job_id == "m0" or len(tries) == 1:
            raise loop.torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return {}

    queue = local()
    queue.ask("submit", [Job("m1", "member", "m1", 9.0), *many(1)])
    worker = workers(queue, 0, hungry)
    once, never = queue.ask("outcomes", ["m1", "m0"])
    queue.ask("close")
    worker.result(60)
    assert once.ok and once.tries == 2
    assert never.tries == 2 and never.reason == (
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB; take fewer workers at once (workers.count, "
        "workers.gpus) or a smaller recipe.batch_size"
    )


def test_a_worker_whose_device_computes_no_more_dies_with_the_reason_and_another_does_the_job(
    local, workers, monkeypatch
):
    from raybasin.jobs import execution

    def sticky(device):
        raise RuntimeError("CUDA error: device-side assert triggered")

    def ruins(job, context, beat):
        raise IndexError("an index is out of bounds")

    queue = local()
    queue.ask("submit", many(1))
    with monkeypatch.context() as patch:
        patch.setattr(execution, "prove", sticky)
        with pytest.raises(RuntimeError, match="device-side assert"):
            workers(queue, 0, ruins).result(60)
    assert (
        not queue.queue.scheduler.outcomes and queue.queue.last_words[0][0] == "IndexError: an index is out of bounds"
    )
    successor = workers(queue, 0, lambda job, context, beat: {})
    [outcome] = queue.ask("outcomes", ["m0"])
    queue.ask("close")
    successor.result(60)
    assert outcome.ok and outcome.tries == 2


class Slow:
    """A client of an object store whose server takes its time."""

    def __init__(self, seconds):
        self.seconds = seconds

    def put(self, *arguments, **options):
        time.sleep(self.seconds)


HANG_SECONDS = 0.2


@pytest.fixture
def soon(monkeypatch):
    """Workers give signs, if any, more often than they must: once HANG_SECONDS have passed ten times, one hangs."""
    monkeypatch.setattr(pool, "BEAT_SECONDS", HANG_SECONDS)


def hung(queue, seconds):
    """The processes found to hang within so many seconds."""
    found, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        found += [process.pid for process in queue.ask("hanging")]
        time.sleep(0.02)
    return found


def test_a_worker_in_a_slow_upload_does_not_hang(local, workers, soon):
    folder = Folder(object_store.Objects("s3://bucket", Slow(20 * HANG_SECONDS), Slow(20 * HANG_SECONDS)))
    queue = local(hang_seconds=HANG_SECONDS)
    queue.ask("submit", many(1))
    worker = workers(queue, 0, lambda job, context, beat: context.folder.put_new("weights/a", b"") or {}, folder)
    assert hung(queue, 22 * HANG_SECONDS) == []
    [outcome] = queue.ask("outcomes", ["m0"])
    assert outcome.ok and outcome.tries == 1
    assert queue.queue.longest_stretch["member"] < 10 * HANG_SECONDS  # nor is it a measure for others
    queue.ask("close")
    worker.result(60)


def test_a_worker_that_waits_for_a_disk_hangs_as_does_one_whose_store_is_past_all_its_limits(
    local, workers, soon, monkeypatch, tmp_path
):
    monkeypatch.setattr(object_store, "CALL_SECONDS", HANG_SECONDS)
    stuck = threading.Event()
    monkeypatch.setattr("raybasin.store.folders.Disk.create", lambda *arguments: stuck.wait(60))
    client = types.SimpleNamespace(put=lambda *arguments, **options: stuck.wait(60))
    store_folder = Folder(object_store.Objects("s3://bucket", client, client))
    queue = local(hang_seconds=HANG_SECONDS)
    queue.ask("submit", many(2))
    threads = [
        workers(queue, rank, lambda job, context, beat: context.folder.put_new("weights/a", b"") or {}, folder)
        for rank, folder in enumerate((Folder(tmp_path), store_folder))
    ]
    found, until = [], time.monotonic() + 60
    while len(found) < 2 and time.monotonic() < until:
        found += hung(queue, HANG_SECONDS)
    assert sorted(found) == [100, 101]
    queue.ask("close")
    stuck.set()
    for thread in threads:
        with pytest.raises(RuntimeError, match="has been replaced"):
            thread.result(60)


# Looking after workers


class Crew:
    """A fleet whose workers are all right, with what is asked of its queue."""

    def __init__(self):
        self.calls, self.ended = [], []
        self.idle = False

    @property
    def queue(self):
        return self

    def __getattr__(self, name):
        return types.SimpleNamespace(remote=lambda *arguments: (name, arguments))

    def answer(self, asked, timeout=None):
        name, arguments = asked
        self.calls.append(name)
        if name == "end":
            self.ended.append(arguments[0])
        if name == "hanging":
            return []
        return types.SimpleNamespace(fatal="", idle=self.idle, nodes={}, quiet_seconds=0.0, jobs_ended=0)

    def has_ended(self):
        return ""


@pytest.fixture
def crew(monkeypatch):
    made = Crew()
    monkeypatch.setattr(on_ray, "ray", types.SimpleNamespace(get=made.answer, nodes=lambda: []))
    monkeypatch.setattr(on_ray, "POLL_SECONDS", 0.01)
    return made


def wait_until(true):
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_workers_are_looked_after_although_it_goes_wrong_now_and_then(crew, monkeypatch):
    looks = []

    def has_ended():
        looks.append(None)
        if len(looks) % 3:
            raise KeyError("something that nobody has thought of")
        return ""

    monkeypatch.setattr(crew, "has_ended", has_ended)
    with on_ray._watching(crew, lambda stats: None, 300.0):
        wait_until(lambda: len(looks) > 2 * on_ray.MAX_FAILED_LOOKS)
    assert not crew.ended


def test_where_it_always_goes_wrong_the_sweep_ends_with_the_reason(crew, monkeypatch):
    def has_ended():
        raise KeyError("something that nobody has thought of")

    monkeypatch.setattr(crew, "has_ended", has_ended)
    with on_ray._watching(crew, lambda stats: None, 300.0):
        wait_until(lambda: crew.ended)
    assert crew.ended[0] == (
        "nobody can look after the workers any more: KeyError: 'something that nobody has thought of'"
    )


def test_progress_that_cannot_be_shown_is_told_once_and_ends_nothing(crew, caplog):
    def watch(stats):
        raise UnicodeEncodeError("ascii", "ä", 0, 1, "ordinal not in range")

    with on_ray._watching(crew, watch, 300.0):
        wait_until(lambda: crew.calls.count("hanging") > 3)
    assert [record.message.partition(":")[0] for record in caplog.records] == ["progress cannot be shown"]
    assert not crew.ended
