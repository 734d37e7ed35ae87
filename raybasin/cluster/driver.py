"""A sweep on Ray: Ray Tune has a trial for every cell, and a trial asks the fleet for what its cell needs.

A trial holds no worker and no GPU. All jobs are queued at the start, so that no worker waits for a trial; a trial joins
the job that ends its cell by its id, which comes from the sweep file and not from Tune. That job commits the cell, so a
trial that dies or comes late delays nothing; the trial records a failure and tells Ray Tune what came out.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

# Ray reads these when it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one cannot be silenced
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # its handler ends a sweep as if all were done

import numpy as np
import ray
from ray import tune
from ray._private import ray_constants
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybasin.cluster import pool
from raybasin.cluster.pool import Fleet, Stats, Supplies
from raybasin.errors import FolderLost, UserError, one_line
from raybasin.jobs import disk, local
from raybasin.jobs.local import Failure, Pretrained, Report
from raybasin.jobs.scheduler import Outcome
from raybasin.store import folders, inventory, tables
from raybasin.store.folders import WAY_OUT, Folder
from raybasin.sweep import plan as planning
from raybasin.sweep.plan import Job, Plan
from raybasin.sweep.specs import Workers

if TYPE_CHECKING:  # torch is for workers: trials and probes start without it
    from raybasin.jobs.prepare import Loaded, Prepared

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
ANSWER_SECONDS = 10.0
PROBE_SECONDS = 120.0
POLL_SECONDS = 1.0
MAX_FAILED_LOOKS = 10
"""So many looks in a row at workers may fail in a way that nobody has thought of, and the sweep ends."""
WAIT_SECONDS = 0.2
TRIALS_AT_ONCE = 4
RAY_BYTES = 100_000_000
"""What Ray must be able to write on this machine, most of it logs."""
QUIT_SECONDS = 10.0
"""In which workers whose queue has died end by themselves, but for those that have a job in hand."""
MAX_QUEUES = 3
"""So many queues are started, or more, as long as each gets something done."""

Watch = Callable[[Stats], None]

logger = logging.getLogger(__name__)


class CellFailed(RuntimeError):
    """A job that the cell needs has failed."""


@dataclass(frozen=True)
class Options:
    address: str | None = None
    """Of a cluster, as host:port; without one, the cluster of the Ray job, else one on this machine for the run."""
    stop_after_hours: float | None = None
    worker_seconds: float = 300.0
    """How long to wait for a worker, of a fleet that has none."""
    retrain: bool = False
    """Whether networks are trained again whose weights were pruned and are needed."""


def run(
    prepared: Prepared,
    folder: Folder,
    load: Callable[[], Loaded],
    options: Options = Options(),
    watch: Watch = lambda stats: None,
) -> Report:
    """Runs or continues a sweep on Ray.

    Args:
        prepared: what `prepare.prepare` returns.
        folder: the results folder, at a path or an address that every machine of the cluster reaches.
        load: decodes the images (`prepare.load`); not called when nothing is left to do.
        options: which cluster, and for how long.
        watch: is given the state of the queue about once a second.

    Raises:
        UserError: where the cluster does not answer, does not see the folder or has no room for a worker.
        FolderLost: where the results folder cannot be written any more.
    """
    made = prepared.plan
    folder, done = local.begin(folder, prepared)
    if not local.jobs_left(made, done, options.retrain):
        return local.report(folder, made, ())

    def left(workers: int) -> Work:
        done = inventory.survey(folder)
        jobs = local.jobs_left(made, done, options.retrain)
        awaited = [job.job_id for job in jobs if job.kind in ("cell", "retrain")]
        disk.check(made, folder, done, jobs, workers)
        return Work(jobs, awaited)

    def trials(queue: Any, storage: str, name: str) -> None:
        _tune(made, folder, queue, storage, name)

    outcomes, interrupted, ended = _on_fleet(made, folder, left, load(), options, watch, trials)
    failures = local.failures_of(made, outcomes)
    _record_unrecorded(folder, made, failures)
    local.end(folder, made)
    return local.report(folder, made, failures, interrupted, ended or local.not_restored(made, outcomes))


def pretrain(
    prepared: Prepared,
    folder: Folder,
    load: Callable[[], Loaded],
    options: Options = Options(),
    watch: Watch = lambda stats: None,
) -> Pretrained:
    """Makes the checkpoints of `prepare.prepare_pretraining` on a fleet; arguments and errors are those of `run`."""
    made = prepared.plan

    def left(workers: int) -> Work:
        jobs = planning.checkpoint_jobs(made, inventory.survey(folder))
        return Work(jobs, [job.job_id for job in jobs])

    if not left(1).jobs:
        return local.pretrained(folder, made, ())
    outcomes, interrupted, ended = _on_fleet(made, folder, left, load(), options, watch)
    return local.pretrained(folder, made, outcomes.values(), interrupted, ended)


Outcomes = dict[str, Outcome]
"""By the id of the job that was waited for."""


@dataclass(frozen=True)
class Work:
    """The jobs that are left to do, and the ids of those to wait for."""

    jobs: Sequence[Job]
    awaited: Sequence[str]


Left = Callable[[int], Work]
"""What is left to do by so many workers."""

Beside = Callable[[Any, str, str], None]
"""What is done beside the workers, once they work: it is given the queue, and a place and name for Ray's files."""


def _on_fleet(
    made: Plan,
    folder: Folder,
    left: Left,
    loaded: Loaded,
    options: Options,
    watch: Watch,
    beside: Beside = lambda queue, storage, name: None,
) -> tuple[Outcomes, str, str]:
    """Does what is left on a fleet: what came of the jobs waited for, why the run was interrupted, if it was, in which
    case there are none, and why the rest was given up, if it was.

    A queue that dies takes its workers and trials along. A new one begins with what is not committed by then; so it
    goes on while each of them gets something done.
    """
    with (
        _cluster(options.address, loaded),
        _control_state(folder) as (storage, name),
        _interruptible(options.stop_after_hours) as interruption,
    ):
        check_folder_is_shared(folder)
        count = workers_that_fit(made.spec.workers)
        try:
            in_store = ray.put(loaded)
            check_images_are_shared(loaded, in_store)
            root, marker = str(folder.root), folder.marker
            supplies = pool.Supplies(root, marker, ray.put(made), in_store, made.spec.workers, count)
            for queues in itertools.count(1):
                work = left(count)
                try:
                    names = storage, f"{name}-{queues}"
                    outcomes, ended = _with_queue(work, supplies, options, watch, beside, *names)
                    return outcomes, "", ended
                except RayActorError:
                    if queues >= MAX_QUEUES and len(left(count).jobs) == len(work.jobs):
                        return {}, "", f"the queue has died {queues} times, the last time before anything was done"
        except KeyboardInterrupt:
            return {}, interruption.reason or "SIGINT", ""
    raise AssertionError("unreachable")


def _with_queue(
    work: Work,
    supplies: Supplies,
    options: Options,
    watch: Watch,
    beside: Beside,
    storage: str,
    name: str,
) -> tuple[Outcomes, str]:
    """Does `work`: what came of what is awaited, and why the rest was given up. Raises RayActorError when the queue
    dies, and FolderLost."""
    if not work.jobs:
        return {}, ""
    crew: Fleet | None = None
    try:
        queue = pool.Queue.remote(hang_seconds=supplies.workers.hang_seconds)
        until(queue.submit.remote(work.jobs))
        crew = pool.start(queue, supplies, len(work.jobs), storage, f"{name}-fleet")
        with _watching(crew, watch, options.worker_seconds):
            # Trials start beside working workers: starting both at once only makes both slower.
            if until(queue.started.remote()):
                beside(queue, storage, f"{name}-cells")
            outcomes = until(queue.outcomes.remote(work.awaited))  # also of cells whose trial has died
        stats = until(queue.stats.remote())
        crew.stop()
    except BaseException as error:
        if crew is not None:
            crew.cancel(patience=QUIT_SECONDS if isinstance(error, RayActorError) else 0.0)
        raise
    if stats.folder_lost:
        raise FolderLost(stats.fatal)
    return dict(zip(work.awaited, outcomes, strict=True)), stats.fatal


def until(reference: ray.ObjectRef[Any]) -> Any:
    """What `ray.get` gives; unlike it, this notices a signal while it waits."""
    while not ray.wait([reference], timeout=WAIT_SECONDS)[0]:
        pass
    return ray.get(reference)


def _record_unrecorded(folder: Folder, made: Plan, failures: Sequence[Failure]) -> None:
    """A trial records the failure of its cell; one that has died could not."""
    recorded = {row["unit_id"]: row["reason"] for row in tables.rows(folder, "failures")}
    for failure in failures:
        if recorded.get(failure.cell.cell_id) != failure.reason:
            local.record_failure(folder, made, failure)


# Ray Tune


def _tune(made: Plan, folder: Folder, queue: Any, storage: str, name: str) -> None:
    """One trial for each cell that is not committed, in the order in which cells can be expected to be ready."""
    cells = [
        {"cell_id": cell.cell_id, "method": cell.method, "checkpoint": cell.checkpoint.name,
         "replicate": cell.replicate, "lr_ratio": cell.lr_ratio, "cycle_ratio": cell.cycle_ratio}
        for cell in sorted(local.waiting(made, inventory.survey(folder)), key=lambda cell: -cell.cycle_epochs)
    ]  # fmt: skip
    if not cells:  # only weights are restored
        return
    # It shows a traceback for each trial that fails; the reasons are shown in the end, one line each.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    trainable = tune.with_parameters(trial, queue=queue, made=made, root=str(folder.root))
    tune.Tuner(
        tune.with_resources(trainable, {"CPU": 0.01}),
        param_space={"cell": tune.grid_search(cells)},
        tune_config=tune.TuneConfig(max_concurrent_trials=TRIALS_AT_ONCE, reuse_actors=True),
        run_config=tune.RunConfig(name=name, storage_path=storage, verbose=0),
    ).fit()


def trial(config: dict[str, Any], queue: Any, made: Plan, root: str) -> dict[str, Any]:
    """Waits until its cell is committed; what it returns is what Ray Tune shows of it.

    Raises CellFailed, after the failure is recorded.
    """
    folder, cell = folders.folder(root), made.cell[config["cell"]["cell_id"]]
    [outcome] = ray.get(queue.outcomes.remote([local.cell_job(cell.cell_id)]))
    if not outcome.ok:
        failure = Failure(cell, local.why(outcome, made), outcome.tries, outcome.traceback)
        if outcome.job_id:  # else the whole sweep has ended, and is told so once
            local.record_failure(folder, made, failure)
        raise CellFailed(failure.reason)
    return {key: value for key, value in outcome.value.items() if isinstance(value, int | float)}


# The cluster


@contextlib.contextmanager
def _cluster(address: str | None, loaded: Loaded) -> Iterator[None]:
    """A connection to the cluster at `address`, or to that of the Ray job this is, or a cluster for this run only."""
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        connect(address)
    else:
        _start_here(loaded)
    try:
        yield
    finally:
        ray.shutdown()


def _start_here(loaded: Loaded) -> None:
    """A cluster on this machine alone, which listens on loopback only. Where RAY_AUTH_MODE is unset, Ray makes a token
    and asks for it; setting the variable here would be too late, since Ray has read it when it was imported."""
    _keep_token_to_oneself()
    _check_temporary_folder()
    options = {"address": "local", "include_dashboard": False, "object_store_memory": _object_store_bytes(loaded)}
    with _loopback_stays_loopback():
        try:
            _init(**options)
        except Exception as error:
            if _way_out(error):
                raise _cannot_start(error) from error
            try:  # a machine that is busy may just have taken too long
                _init(**options)
            except Exception as again:
                raise _cannot_start(again) from again


def _init(**options: Any) -> None:
    """What it raises may be of any class, Exception included. A session of the caller's own is left alone."""
    own = ray.is_initialized()
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except BaseException:
        if not own:
            ray.shutdown()
        raise


def _cannot_start(error: Exception) -> UserError:
    logs = f"Its logs are in {_ray_folder()}/session_latest/logs. Where the machine was only busy, try again."
    way_out = _way_out(error) or logs
    return UserError(f"Ray cannot start on this machine: {one_line(error, 300)}\n{way_out}")


def _way_out(error: Exception) -> str:
    """What to do about an error that another try would not change; empty for others."""
    elsewhere = "export RAY_TMPDIR=FOLDER, a short path on a disk of this machine"
    if "AF_UNIX" in str(error):
        return f"The path of Ray's temporary folder, {_ray_folder()}, is too long: {elsewhere}, for instance /tmp."
    if isinstance(error, OSError) and error.errno in WAY_OUT:
        return f"Ray's temporary folder is {_ray_folder()}: {WAY_OUT[error.errno]}, or {elsewhere}."
    return ""


def _check_temporary_folder() -> None:
    """Where it is full Ray starts, and its processes then wait for each other."""
    free = Folder(Path(_ray_folder())).free() or 0
    if free < RAY_BYTES:
        raise UserError(
            f"Ray cannot start on this machine: {disk.format_bytes(free)} are free for its temporary folder, "
            f"{_ray_folder()}\n"
            "Free some space, or export RAY_TMPDIR=FOLDER, a short path on another disk of this machine."
        )


def _ray_folder() -> str:
    return os.path.join(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")


def _keep_token_to_oneself() -> None:
    """Sees to it that nobody else on the machine can read the token. Where there is none Ray makes one, for everybody
    to read; one that it finds it leaves as it is. Raises UserError where none can be kept."""
    elsewhere = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)
    if elsewhere or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    home = os.environ.get("HOME")
    if not home:
        raise _no_token("HOME is not set")
    path = Path(home) / ".ray" / "auth_token"  # where Ray looks
    try:
        if path.exists():
            with contextlib.suppress(OSError):  # it may be on a disk that can only be read
                path.chmod(0o600)
        else:
            _make_token(path)
    except OSError as error:
        raise _no_token(f"{path} cannot be written: {error.strerror}") from error


def _no_token(reason: str) -> UserError:
    return UserError(
        f"Ray cannot start on this machine: it has nowhere to keep the token that guards its ports ({reason})\n"
        "Give it one: export RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))'), or name a "
        "file that holds one with RAY_AUTH_TOKEN_PATH."
    )


def _make_token(path: Path) -> None:
    """Only its owner can read it, from the beginning."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with open(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):  # another sweep has just made one
            os.link(temporary, path)
    finally:
        os.unlink(temporary)


@contextlib.contextmanager
def _loopback_stays_loopback() -> Iterator[None]:
    """Keeps Ray from taking the machine's own address for 127.0.0.1, and from listening on all interfaces then.

    It does so only where it holds that there can be clusters of several machines, which is everywhere but on macOS and
    Windows; its own switch for that, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, is read when Ray is imported, and would also
    hold for joining a cluster of several machines.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def connect(address: str) -> None:
    """Joins a running cluster. Raises UserError where it does not answer."""
    host, _, port = address.rpartition(":")
    if address != "auto" and (not host or "/" in host or not port.isdigit()):
        raise UserError(
            f"--address (or RAY_ADDRESS) {address}: must be host:port of a Ray cluster, for instance 127.0.0.1:6379"
        )
    try:
        if address != "auto":
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
        with _loopback_stays_loopback() if host in LOOPBACK else contextlib.nullcontext():
            _init(address=address)
    except Exception as error:
        raise UserError(
            f"--address (or RAY_ADDRESS) {address}: the Ray cluster does not answer ({one_line(error, 200)})\n"
            "Start one with `ray start --head`, or leave the address out to use this machine alone. One with a token "
            "needs it here, too: export RAY_AUTH_MODE=token."
        ) from error


def _object_store_bytes(loaded: Loaded) -> int:
    """Room for the images and for what Ray Tune keeps there."""
    return 2 * sum(part.images_NHWC.nbytes for part in loaded.parts()) + 300_000_000


def workers_that_fit(workers: Workers) -> int:
    """How many workers the fleet has. Raises UserError where the cluster has no room for them."""
    free = ray.available_resources()
    fitting = pool.slots(workers, pool.alive_nodes(), free)
    wanted = workers.count or 1
    if fitting < wanted:
        each = f"{workers.cpus:g} CPUs" + (f" and {workers.gpus:g} GPUs" if workers.gpus else "")
        raise UserError(
            f"workers: {wanted} worker{'s' if wanted > 1 else ''} of {each} do not fit into the cluster's free "
            f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs (0.1 CPU is kept for trials); "
            f"{fitting} would.\n"
            "Ask for less, for instance --set workers.cpus=0.9 --set workers.gpus=0, or leave workers.count out."
        )
    return workers.count or fitting


def check_folder_is_shared(folder: Folder) -> None:
    """Every machine must reach the results folder by the same name. Raises UserError that names one that does not."""
    probe = f"state/probe-{uuid.uuid4().hex}"
    folder.put_new(probe, b"seen")
    nodes = [node for node in ray.nodes() if node["Alive"]]
    asked = [
        _sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            str(folder.root), probe
        )
        for node in nodes
    ]
    try:
        for node, answer in zip(nodes, asked, strict=True):
            _check_node_sees(folder, node["NodeManagerHostname"], answer)
    finally:
        folder.delete(probe)


def check_images_are_shared(loaded: Loaded, in_store: ray.ObjectRef[Loaded]) -> None:
    """Every machine must read the images that workers decode, at the same paths. Raises UserError that names one that
    does not."""
    if all(isinstance(part.images_NHWC, np.ndarray) for part in loaded.parts()):
        return
    nodes = [node for node in ray.nodes() if node["Alive"]]
    asked = [
        _cannot_read.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            in_store
        )
        for node in nodes
    ]
    for node, answer in zip(nodes, asked, strict=True):
        machine = node["NodeManagerHostname"]
        try:
            reason = ray.get(answer, timeout=PROBE_SECONDS)
        except RayError as error:
            said = " ".join(str(error).split())[-200:]
            raise UserError(f"machine {machine} of the cluster cannot run raybasin ({said})") from error
        if reason:
            raise UserError(
                f"machine {machine} cannot read the images: {reason}\n"
                "Workers decode them: mount the data (of Parquet, also $RAYBASIN_DATA) at the same path on all "
                "machines, or set data.decode: arrays."
            )


@ray.remote(num_cpus=0)
def _cannot_read(loaded: Loaded) -> str:
    """Why this machine cannot read the images that workers decode; empty where it can."""
    try:
        for part in loaded.parts():
            if not isinstance(part.images_NHWC, np.ndarray):
                part.images_NHWC.check_readable()
    except UserError as error:
        return str(error)
    return ""


def _check_node_sees(folder: Folder, machine: str, answer: ray.ObjectRef[str]) -> None:
    try:
        reason = ray.get(answer, timeout=PROBE_SECONDS)
    except RayError as error:
        reason = " ".join(str(error).split())[-200:]
        raise UserError(f"machine {machine} of the cluster cannot run raybasin ({reason})") from error
    if reason:
        raise UserError(
            f"results folder {folder.root}: machine {machine} {reason}; name a folder with --results that all machines "
            "mount at the same path, or an address for which all have credentials"
        )


@ray.remote(num_cpus=0)
def _sees(root: str, probe: str) -> str:
    """Why a machine does not see the probe; empty where it does."""
    try:
        return "" if folders.folder(root, patient=False).exists(probe) else "does not see it"
    except (UserError, OSError) as error:
        return f"cannot read it ({error})"


@contextlib.contextmanager
def _control_state(folder: Folder) -> Iterator[tuple[str, str]]:
    """Where Ray keeps what it needs during a run, and the run's name. None of it is needed afterwards.

    Beside an object store this is a folder of this machine: Ray Train and Ray Tune share through it the checkpoints
    that are reported to them, and none ever is.
    """
    name = f"run-{uuid.uuid4().hex[:8]}"
    if isinstance(folder.root, Path):
        storage = folder.root / "state" / "ray" / name
        try:
            storage.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"results folder {folder.root}: cannot be written ({error.strerror})") from error
    else:
        storage = Path(tempfile.mkdtemp(prefix=f"raybasin-{name}-"))
    try:
        yield str(storage), name
    finally:
        shutil.rmtree(storage, ignore_errors=True)


# Watching and interrupting


@contextlib.contextmanager
def _watching(crew: Fleet, watch: Watch, worker_seconds: float) -> Iterator[None]:
    """Shows the state of the queue, and ends it when its workers do not come or are all gone."""
    stop, shows = threading.Event(), _that_never_raises(watch)

    def look() -> bool:
        """Whether there is still a queue to look after."""
        try:
            stats = ray.get(crew.queue.stats.remote(), timeout=60)
        except RayActorError:
            return False  # those who wait for the queue notice it too
        except RayError:
            return True
        shows(stats)
        with contextlib.suppress(RayError):  # what has died is looked at again, or is the queue
            _look_after(crew, stats, worker_seconds, stop)
        return True

    def poll() -> None:
        failed = 0
        while not stop.wait(POLL_SECONDS):
            try:
                if not look():
                    return
                failed = 0
            except Exception as error:  # without anybody who looks, a worker that hangs would hold up everything
                failed += 1
                if failed >= MAX_FAILED_LOOKS:
                    reason = one_line(f"{type(error).__name__}: {error}", 300)
                    with contextlib.suppress(Exception):  # it is tried again
                        ray.get(crew.queue.end.remote(f"nobody can look after the workers any more: {reason}"))

    thread = threading.Thread(target=poll, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)
    with contextlib.suppress(RayError):
        shows(ray.get(crew.queue.stats.remote()))


def _that_never_raises(watch: Watch) -> Watch:
    """That progress cannot be shown is no reason to stop looking after workers; a fault is told once."""
    told: list[str] = []

    def shows(stats: Stats) -> None:
        try:
            watch(stats)
        except OSError:  # a closed pipe, or a folder that is lost, which workers notice too
            pass
        except Exception as error:
            if not told:
                told.append(one_line(f"{type(error).__name__}: {error}", 300))
                logger.warning("progress cannot be shown: %s", told[0])

    return shows


def _look_after(crew: Fleet, stats: Stats, worker_seconds: float, stop: threading.Event) -> None:
    """Ends workers that hang, takes from those whose machine is gone what they held, starts a fleet that is gone again,
    and ends a queue for which no worker will come."""
    if stats.fatal or stats.idle:
        return
    for process in ray.get(crew.queue.hanging.remote()):
        crew.kill(process)
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    for rank, node_id in stats.nodes.items():
        if node_id not in alive:
            ray.get(crew.queue.gone.remote(rank, node_id))
    reason = crew.has_ended()
    if not reason and stats.quiet_seconds > worker_seconds:
        crew.cancel()
        reason = f"no worker has been heard of for {worker_seconds:g} s"
    if reason and not stop.is_set() and not crew.start_again(stats.jobs_ended):
        ray.get(crew.queue.end.remote(reason))


@dataclass
class Interruption:
    """Why a run was interrupted, once it is."""

    reason: str = ""


@contextlib.contextmanager
def _interruptible(stop_after_hours: float | None) -> Iterator[Interruption]:
    """Turns Ctrl-C, termination and the end of the time into KeyboardInterrupt in the main thread: the one exception
    that Ray lets through wherever it waits."""
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        for again in watched:
            signal.signal(again, signal.SIG_IGN)
        interruption.reason = "the time is up" if number == signal.SIGALRM else signal.Signals(number).name
        raise KeyboardInterrupt

    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = {number: signal.signal(number, interrupt) for number in watched}
    if stop_after_hours is not None:
        signal.setitimer(signal.ITIMER_REAL, stop_after_hours * 3600)
    try:
        yield interruption
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
