"""The worker pool: one long Ray Train run whose workers take jobs from the queue, started again where it dies."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray import PlacementGroupID
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybasin.cluster.connect import alive_nodes
from raybasin.cluster.queue import Stats
from raybasin.cluster.worker import Supplies, train_loop
from raybasin.errors import UserError, one_line
from raybasin.store.heartbeat import every
from raybasin.sweep.specs import Workers

STOP_SECONDS = 30.0
"""In which workers end that have been told that no more jobs will come."""
QUIT_SECONDS = 10.0
"""In which workers whose queue has died end by themselves, but for those that have a job in hand."""

POLL_SECONDS = 1.0
WORKER_SECONDS = 300.0
"""How long to wait for a worker, of a pool that has none."""
MAX_FAILED_LOOKS = 10
"""So many looks in a row at workers may fail in a way that nobody has thought of, and the sweep ends."""

Watch = Callable[[Stats], None]

logger = logging.getLogger(__name__)


class _ReplicaBackend(Backend):
    """Each worker is its own replica group, so that Ray Train replaces only the one that died (Ray 2.60)."""

    has_replica_groups = True


class ReplicaBackendConfig(BackendConfig):
    """No process group: workers do not talk to each other."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _ReplicaBackend


@dataclass
class WorkerPool:
    """A Ray Train run, and how to start another one in its place."""

    queue: Any
    supplies: Supplies
    most: int
    """More workers than that would have nothing to do."""
    storage: str
    """A folder of this machine, for Ray Train's files."""
    name: str
    starts: int = 0
    jobs_ended: int = 0
    """By the time that it was last started again."""

    def start(self) -> None:
        """Starts as many workers as at the start, or as the machines that are there by now have room for, but not more
        than `most`."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # where `storage` is
        nodes = _resources_of_nodes()
        whole = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
        count = min(self.most, max(1, min(self.supplies.count, slots(self.supplies.workers, nodes, whole))))
        config = {"queue": self.queue, "supplies": self.supplies}
        options = _fit.options(scheduling_strategy=here)
        self.fit: ray.ObjectRef[Any] = options.remote(config, count, self.storage, f"{self.name}-{self.starts}")
        self.starts += 1

    def start_again(self, jobs_ended: int) -> bool:
        """Starts the workers again, as many as the machines that are left have room for, if any job has ended since
        the last time. False where none has."""
        if jobs_ended == self.jobs_ended:
            return False
        self.jobs_ended = jobs_ended
        self._free()
        self.start()
        return True

    def has_ended(self) -> str:
        """Why the workers are all gone before they were told to; empty while they are not."""
        done, _ = ray.wait([self.fit], timeout=0)
        if not done:
            return ""
        try:
            ray.get(self.fit)
        except RayError as error:  # of whatever kind: the process may have been killed
            return f"the worker pool has failed: {str(error).strip().splitlines()[-1]}"
        return "the worker pool has ended before its work was done"

    def cancel(self, patience: float = 0.0) -> None:
        """Ends all workers, at once or if they have not ended by themselves after `patience` seconds."""
        if not ends(self.fit, patience):  # to cancel what has just ended may crash Ray 2.60
            ray.cancel(self.fit, force=True)
            ray.wait([self.fit], timeout=10)
        self._free()

    def _free(self) -> None:
        """Gives back what workers of this run still hold. Ray Train leaves that to an actor that needs the dashboard to
        see that a run has died; without one, workers that are started again would find no room."""
        own = ray.get_runtime_context().get_job_id()
        for group_id, group in placement_group_table().items():
            held = group["state"] != "REMOVED" and _resources(self.supplies.workers) in group["bundles"].values()
            if held and group_id.endswith(own):  # an id ends with that of the job that has made it
                remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group_id))))


@contextlib.contextmanager
def started(queue: Any, supplies: Supplies, most: int, storage: str, name: str) -> Iterator[WorkerPool]:
    """A pool of at most `most` workers, which in the end finish what they have in hand, and after an error do not."""
    pool = WorkerPool(queue, supplies, most, storage, name)
    pool.start()
    try:
        yield pool
        with contextlib.suppress(RayError):
            ray.get(queue.close.remote(), timeout=STOP_SECONDS)
        pool.cancel(patience=STOP_SECONDS)
    except BaseException as error:
        pool.cancel(patience=QUIT_SECONDS if isinstance(error, RayActorError) else 0.0)
        raise


def ends(reference: ray.ObjectRef[Any], seconds: float = math.inf) -> bool:
    """Whether it does within so many seconds. Unlike one long wait or `ray.get`, this notices a signal."""
    deadline = time.monotonic() + seconds
    while not ray.wait([reference], timeout=min(seconds, 0.2))[0]:
        if time.monotonic() >= deadline:
            return False
    return True


@ray.remote(num_cpus=0, max_retries=0)
def _fit(config: dict[str, Any], count: int, storage: str, name: str) -> None:
    """Runs the Ray Train run. As a task of its own it can be cancelled, which a thread in `fit` cannot."""
    workers = config["supplies"].workers
    resources = _resources(workers)
    DataParallelTrainer(
        train_loop,
        train_loop_config=config,
        backend_config=ReplicaBackendConfig(),
        scaling_config=ScalingConfig(num_workers=count, use_gpu=workers.gpus > 0, resources_per_worker=resources),
        run_config=RunConfig(name=name, storage_path=storage, failure_config=FailureConfig(max_failures=-1)),
    ).fit()


def _resources(workers: Workers) -> dict[str, float]:
    return {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}


# Looking after it


@contextlib.contextmanager
def watching(pool: WorkerPool, watch: Watch) -> Iterator[None]:
    """Shows the state of the queue about once a second, and ends it when its workers do not come or are all gone."""
    looks = _Looks(pool, watch)
    with every(POLL_SECONDS, looks.look):
        yield
    with contextlib.suppress(RayError):
        looks.show(ray.get(pool.queue.stats.remote()))


@dataclass
class _Looks:
    """One look after another at the queue and the workers of `pool`."""

    pool: WorkerPool
    watch: Watch
    failed: int = 0
    """How many have in a row."""
    told: bool = False
    """Whether that progress cannot be shown."""

    def look(self) -> None:
        try:
            stats = ray.get(self.pool.queue.stats.remote(), timeout=60)
            self.show(stats)
            if not stats.idle:
                _look_after(self.pool, stats)
            self.failed = 0
        except RayError:  # what has died is looked at again, or is the queue, as those who wait for it notice
            pass
        except Exception as error:  # without anybody who looks, a worker that hangs would hold up everything
            self.failed += 1
            if self.failed >= MAX_FAILED_LOOKS:
                reason = one_line(f"{type(error).__name__}: {error}", 300)
                with contextlib.suppress(Exception):  # it is tried again
                    ray.get(self.pool.queue.end.remote(f"nobody can look after the workers any more: {reason}"))

    def show(self, stats: Stats) -> None:
        """That progress cannot be shown is no reason to stop looking after workers; a fault is told once."""
        try:
            self.watch(stats)
        except OSError:  # a closed pipe, or a folder that is lost, which workers notice too
            pass
        except Exception as error:
            if not self.told:
                logger.warning("progress cannot be shown: %s", one_line(f"{type(error).__name__}: {error}", 300))
            self.told = True


def _look_after(pool: WorkerPool, stats: Stats) -> None:
    """Ends workers that hang, takes from those whose machine is gone what they held, starts a pool that is gone again,
    and ends a queue for which no worker will come."""
    dead = [node["NodeID"] for node in ray.nodes() if not node["Alive"]]
    for worker in ray.get(pool.queue.hanging.remote(dead)):
        with contextlib.suppress(RayError):
            ray.kill(worker.actor)  # Ray Train replaces it
    reason = pool.has_ended()
    if not reason and stats.quiet_seconds > WORKER_SECONDS:
        pool.cancel()
        reason = f"no worker has been heard of for {WORKER_SECONDS:g} s"
    if reason and not pool.start_again(stats.jobs_ended):
        ray.get(pool.queue.end.remote(reason))


# How many workers fit


def workers_that_fit(workers: Workers) -> int:
    """How many workers the pool has. Raises UserError where the cluster has no room for them."""
    free = ray.available_resources()
    fitting = slots(workers, _resources_of_nodes(), free)
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


def slots(workers: Workers, nodes: Iterable[dict[str, float]], free: dict[str, float]) -> int:
    """How many workers fit: on each node by its CPUs and whole shares of its GPUs, and into what is free in all.

    0.1 CPU is left for the trials, which otherwise would wait for ever.
    """

    def fitting(cpus: float, gpus: float, whole: bool) -> int:
        counts = [int(cpus / workers.cpus + 1e-9)]
        if 0 < workers.gpus < 1 and whole:  # a share lies on one GPU
            counts.append(int(gpus) * int(1 / workers.gpus + 1e-9))
        elif workers.gpus:
            counts.append(int(gpus / workers.gpus + 1e-9))
        return min(counts)

    by_node = sum(fitting(node.get("CPU", 0), node.get("GPU", 0), whole=True) for node in nodes)
    return max(0, min(by_node, fitting(free.get("CPU", 0) - 0.1, free.get("GPU", 0), whole=False)))


def _resources_of_nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in alive_nodes()]
