"""What a worker of the pool does: it takes jobs from the queue until that is closed, and gives signs meanwhile.

The imports of torch and timm cost more than most jobs, so a worker makes them once and does many jobs.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError

from raybasin.errors import FolderLost, StoreError, one_line
from raybasin.store.heartbeat import every
from raybasin.sweep.job_list import Job
from raybasin.sweep.specs import Workers

if TYPE_CHECKING:  # torch is imported once a worker has said that it is there
    from raybasin.jobs.worker_context import WorkerContext

BEAT_SECONDS = 1.0
GPU_MEMORY_SHARE = 0.95
"""Of its share of a GPU's memory, what a worker may allocate; the rest is for its CUDA context."""


@dataclass(frozen=True)
class Supplies:
    """What every worker is given: the folder's address and marker, and references to the sweep's settings and to
    decoded images."""

    root: str
    marker: str | None
    settings: ray.ObjectRef[Any]
    loaded: ray.ObjectRef[Any]
    kinds: tuple[Workers, ...]
    """What workers there are to be."""


def train_loop(config: dict[str, Any]) -> None:
    """The loop of one Ray Train worker. It never calls `ray.train.report`, which is a barrier over all workers."""
    import ray.train

    here, group = ray.get_runtime_context(), ray.util.get_current_placement_group()
    place = os.getpid(), here.get_node_id(), here.current_actor, platform.node()
    name = f"{config['run']}.{ray.train.get_context().get_world_rank()}"
    serve(
        config["queue"],
        config["supplies"],
        name,
        config["kind"],
        (*place, config["kind"], group.id.hex() if group else ""),
    )


def serve(queue: Any, supplies: Supplies, name: str, kind: int, place: tuple[Any, ...]) -> None:
    """Does jobs as the worker of this name and kind; `place` is what else `JobQueue.hello` is told. It returns when no
    more jobs will come, and raises when another process is to be started for it. One that is broken keeps its place
    until then: else a further worker would be started there."""
    try:
        _serve(queue, supplies, name, kind, place)
        ray.get(queue.closes.remote())
    except RayActorError:  # the queue is gone, and with it the driver
        return


def _serve(queue: Any, supplies: Supplies, name: str, kind: int, place: tuple[Any, ...]) -> None:
    """Does jobs until it gets no more."""
    if incarnation := ray.get(queue.hello.remote(name, *place)):
        try:
            context = make_context(supplies, kind)
        except Exception as error:
            if ray.get(queue.cannot_start.remote(name, incarnation, one_line(f"{type(error).__name__}: {error}", 300))):
                raise
            return
        while not isinstance(job := ray.get(queue.take.remote(name, incarnation)), str) or job == "again":
            if isinstance(job, Job):
                _do(job, context, queue, name, incarnation)
        if job == "stale":
            raise RuntimeError(f"worker {name} has been replaced")


def make_context(supplies: Supplies, kind: int) -> WorkerContext:
    """Everything a job needs, after the heavy imports; the device has been seen to compute."""
    import torch

    from raybasin.jobs import allocator, execution, threads
    from raybasin.jobs.worker_context import WorkerContext
    from raybasin.store import folders

    settings, loaded = ray.get([supplies.settings, supplies.loaded])
    if settings.spec.recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    own = supplies.kinds[kind]
    threads.limit(own.threads)
    allocator.keep_freed_memory()
    device = torch.device("cuda:0" if own.gpus else "cpu")
    if 0 < own.gpus < 1:  # Ray shares a GPU by number only; memory must be kept apart here
        torch.cuda.set_per_process_memory_fraction(GPU_MEMORY_SHARE * own.gpus)
    execution.prove(device)
    folder = folders.folder(supplies.root).marked(supplies.marker)
    folder.check_there()  # a machine that has joined meanwhile may not mount it: that is its fault, not the folder's
    loaded.check_readable(torch.get_num_threads())  # a machine that has joined meanwhile may have to decode them
    return WorkerContext(folder, settings, loaded.target, loaded.pretrain, device, loaded.shifts)


@dataclass
class Pulse:
    """Tells the queue that a job gets on, once a second at most: how long it went without a sign at worst, and how many
    images have gone through networks since it last told."""

    tell: Callable[[float, int], None]
    beat_at: float = field(default_factory=time.monotonic)
    told_at: float = field(default_factory=time.monotonic)
    stretch: float = 0.0
    images: int = 0

    def __call__(self, images: int) -> None:
        self.measure()
        self.images += images
        if self.beat_at - self.told_at >= BEAT_SECONDS:
            self.told_at = self.beat_at
            self.tell(self.stretch, self.images)
            self.images = 0

    def measure(self) -> float:
        now = time.monotonic()
        self.stretch = max(self.stretch, now - self.beat_at)
        self.beat_at = now
        return self.stretch


def _do(job: Job, context: WorkerContext, queue: Any, name: str, incarnation: int) -> None:
    from raybasin.jobs import execution

    pulse = Pulse(lambda stretch, images: queue.beat.remote(name, incarnation, stretch, images))

    def beat_for_the_store() -> None:  # a call that waits for an object store ends by itself
        if context.folder.waits():
            pulse(0)

    try:
        with every(BEAT_SECONDS, beat_for_the_store):
            value = execution.run(job, context, pulse)
    except FolderLost as error:  # no job of any cell can be done any more
        continues = "; the same command continues" if isinstance(error, StoreError) else ""
        ray.get(queue.end.remote(f"{error}{continues}", folder_lost=True))
        return
    except Exception as error:  # it fails the cells that need the job, not the pool
        raised = execution.raised(error)
    else:
        ray.get(queue.done.remote(name, incarnation, job.job_id, value, pulse.measure(), pulse.images))
        return
    try:
        execution.recover(context.device)
    except Exception:  # this process can do nothing any more; another one may do the job
        ray.get(queue.dying.remote(name, incarnation, raised.reason, raised.traceback))
        raise
    ray.get(queue.failed.remote(name, incarnation, job.job_id, raised.reason, raised.traceback, raised.certain))
