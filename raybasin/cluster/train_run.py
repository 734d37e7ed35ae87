"""One Ray Train run."""

from __future__ import annotations

import contextlib
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend

from raybasin.cluster import private, room
from raybasin.cluster.worker import train_loop
from raybasin.sweep.specs import Workers


@private.replaces_only_what_died
class NoBackend(Backend):
    """Makes no process group: workers do not talk to each other."""


def fit(config: dict[str, Any], kind: Workers, count: int, storage: str, name: str) -> None:
    """Runs `count` workers of a kind, which Ray Train replaces when they die, until all have returned."""
    trainer, settings, argument = private.trainer()

    class NoProcessGroup(settings):  # type: ignore[misc, valid-type]
        @property
        def backend_cls(self) -> type[Backend]:
            return NoBackend

        @property
        def train_func_context(self) -> Any:
            return contextlib.nullcontext  # a device that is broken shall raise where the worker can say so

    trainer(
        train_loop,
        train_loop_config=config,
        scaling_config=scaling(kind, count),
        run_config=RunConfig(name=name, storage_path=storage, failure_config=FailureConfig(max_failures=-1)),
        **{argument: NoProcessGroup()},
    ).fit()


def scaling(kind: Workers, count: int) -> ScalingConfig:
    labels: dict[str, Any] = {"label_selector": dict(kind.labels)} if kind.labels else {}
    return ScalingConfig(num_workers=count, use_gpu=kind.gpus > 0, resources_per_worker=room.asked(kind), **labels)
