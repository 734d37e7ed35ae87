"""What raybasin uses of Ray that Ray does not promise to keep: each thing with its reason, and none elsewhere.

tests/cluster/test_private.py fails when one of them is gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from ray._private import ray_constants, state

T = TypeVar("T")


def replaces_only_what_died(backend: type[T]) -> type[T]:
    """Makes each worker of a Ray Train run with this backend its own replica group, so that Ray Train (2.60) replaces
    only the one that died. No public option says so. Ray that does not know the name replaces all workers of the run:
    slower, and as safe."""
    backend.has_replica_groups = True  # type: ignore[attr-defined]
    return backend


def trainer() -> tuple[type[Any], type[Any], str]:
    """Ray Train's trainer of plain workers, the class of its backend's settings, and the argument that takes these.

    Private is the first trainer. The public one would do, and does where that is gone, but imports torch in two more
    processes of each run: 0.6 GB, and a start that takes half as long again.
    """
    try:
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    except ImportError:
        from ray.train.torch import TorchConfig, TorchTrainer

        return TorchTrainer, TorchConfig, "torch_config"
    from ray.train import BackendConfig

    return DataParallelTrainer, BackendConfig, "backend_config"


def available_by_node() -> Mapping[str, Mapping[str, float]]:
    """What is free on each node, by its id. Ray publishes only the sum over all nodes, into which a worker may fit that
    fits on none of them."""
    return state.available_resources_per_node()


@contextlib.contextmanager
def loopback_stays_loopback() -> Iterator[None]:
    """Keeps Ray from taking the machine's own address for 127.0.0.1, and from listening on all interfaces then.

    It does so only where it holds that there can be clusters of several machines, which is everywhere but on macOS and
    Windows; its own switch for that, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, is read when Ray is imported, and would also
    hold for joining a cluster of several machines. Whether it has helped is looked at: `connect.check_loopback`.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
