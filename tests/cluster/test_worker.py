"""What workers do with their jobs, as threads and without Ray."""

import asyncio
import concurrent.futures
import threading
import time
import types
from pathlib import Path

import pytest

pytest.importorskip("ray")

from toy_jobs import toy_job

from raybasin.cluster import worker as worker_module
from raybasin.cluster.queue import MAX_BARREN_STARTS, JobQueue
from raybasin.jobs import execution
from raybasin.store import object_store
from raybasin.store.folders import Folder
from raybasin.training import loop


class Local:
    """The queue in a thread of its own, asked as an actor is."""

    def __init__(self, **options):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.queue = asyncio.run_coroutine_threadsafe(self._made(options), self.loop).result(10)

    async def _made(self, options):
        return JobQueue(**options)

    def __getattr__(self, name):
        def remote(*arguments, **keywords):
            return asyncio.run_coroutine_threadsafe(getattr(self.queue, name)(*arguments, **keywords), self.loop)

        return types.SimpleNamespace(remote=remote)

    def ask(self, name, *arguments):
        return getattr(self, name).remote(*arguments).result(60)


@pytest.fixture
def local(monkeypatch):
    """Makes queues that `worker.serve` can ask without Ray."""
    monkeypatch.setattr(worker_module, "ray", types.SimpleNamespace(get=lambda future: future.result(60)))
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

    def __init__(self, run, folder=None):
        self.run = run
        self.folder = folder or Folder(Path("nowhere"))
        self.device = loop.torch.device("cpu")


@pytest.fixture
def workers(monkeypatch):
    """Starts workers of run 0 as threads, each with its own way to do jobs: `run`, or an exception that its start
    raises."""
    ways, threads = {}, concurrent.futures.ThreadPoolExecutor(8)

    def context(supplies, kind):
        way = ways[supplies]
        if isinstance(way, Exception):
            raise way
        return way

    monkeypatch.setattr(worker_module, "make_context", context)
    monkeypatch.setattr(execution, "run", lambda job, context, beat: context.run(job, context, beat))

    def start(queue, rank, run, folder=None):
        ways[rank] = run if isinstance(run, Exception) else WorkerContext(run, folder)
        return threads.submit(
            worker_module.serve, queue, rank, f"0.{rank}", 0, (100 + rank, "node", None, f"machine{rank}")
        )

    yield start
    threads.shutdown()


def many(count):
    return [toy_job(f"m{n}", "member", 1.0) for n in range(count)]


def test_a_worker_that_is_given_up_when_it_starts_does_not_even_try(local, workers):
    queue = local()
    queue.ask("submit", many(1))
    for _ in range(MAX_BARREN_STARTS):
        queue.ask("hello", "0.0", 100, "node", None, "machine0")
    worker = workers(queue, 0, lambda job, context, beat: {})
    while not queue.ask("stats").given_up:
        time.sleep(0.01)
    queue.ask("close")
    assert worker.result(60) is None
    assert not queue.queue.scheduler.outcomes and not queue.queue.scheduler.tries


def test_each_image_is_told_once_however_many_beats_tell_of_them(local, workers, monkeypatch):
    monkeypatch.setattr(worker_module, "BEAT_SECONDS", 0.05)
    queue = local()
    queue.ask("submit", many(2))

    def steps(job, context, beat):
        for images in range(20):
            beat(images)
            time.sleep(0.01)
        return {}

    worker = workers(queue, 0, steps)
    assert all(outcome.ok for outcome in queue.ask("outcomes", ["m0", "m1"]))
    queue.ask("close")
    assert worker.result(60) is None
    assert queue.ask("stats").images == 2 * sum(range(20))


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
    stats = queue.ask("stats")
    assert not ended[0].done()  # it keeps its place, so that nobody else is started there
    assert stats.given_up == (
        "worker 0.0 on machine0 was given up: jobs that others could do went wrong there: "
        "RuntimeError: Found no NVIDIA driver on your system",
    )
    assert stats.pids == {"0.1": 101}
    queue.ask("close")
    assert [worker.result(60) for worker in ended] == [None, None]


def test_a_worker_whose_device_does_not_compute_is_started_twice(local, workers):
    queue = local()
    queue.ask("submit", many(1))
    with pytest.raises(RuntimeError, match="no NVIDIA driver"):  # upon which Ray Train starts another process
        workers(queue, 0, RuntimeError("no NVIDIA driver")).result(60)
    bad = workers(queue, 0, RuntimeError("no NVIDIA driver"))
    good = workers(queue, 1, lambda job, context, beat: {})
    assert queue.ask("outcomes", ["m0"])[0].ok
    queue.ask("close")
    good.result(60), bad.result(60)
    assert queue.ask("stats").given_up[0].startswith("worker 0.0 on machine0 was given up: it cannot start")


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
    assert any(line.strip().startswith('File "') and "test_worker.py" in line for line in lines)
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
    queue.ask("submit", [toy_job("m1", "member", 9.0), *many(1)])
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
        not queue.queue.scheduler.outcomes
        and queue.queue.workers["0.0"].last_words[0] == "IndexError: an index is out of bounds"
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
    monkeypatch.setattr(worker_module, "BEAT_SECONDS", HANG_SECONDS)


def hung(queue, seconds):
    """The processes found to hang within so many seconds."""
    found, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        found += [process.pid for process in queue.ask("hanging")]
        time.sleep(0.02)
    return found


def test_a_worker_in_a_slow_upload_does_not_hang(local, workers, soon):
    folder = object_store.Objects("s3://bucket", small=Slow(20 * HANG_SECONDS), large=None)
    queue = local(hang_seconds=[HANG_SECONDS])
    queue.ask("submit", many(1))
    worker = workers(queue, 0, lambda job, context, beat: context.folder.put_new("weights/a", b"") or {}, folder)
    assert hung(queue, 22 * HANG_SECONDS) == []
    [outcome] = queue.ask("outcomes", ["m0"])
    assert outcome.ok and outcome.tries == 1
    assert queue.queue.patience[0].longest["member"] < 10 * HANG_SECONDS  # nor is it a measure for others
    queue.ask("close")
    worker.result(60)


def test_a_worker_that_waits_for_a_disk_hangs_as_does_one_whose_store_is_past_all_its_limits(
    local, workers, soon, monkeypatch, tmp_path
):
    monkeypatch.setattr(object_store, "CALL_SECONDS", HANG_SECONDS)
    stuck = threading.Event()
    monkeypatch.setattr("raybasin.store.folders.Folder._create", lambda *arguments: stuck.wait(60))
    client = types.SimpleNamespace(put=lambda *arguments, **options: stuck.wait(60))
    store_folder = object_store.Objects("s3://bucket", small=client, large=client)
    queue = local(hang_seconds=[HANG_SECONDS])
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
