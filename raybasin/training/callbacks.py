"""What a method does at a step of training, beside the step itself.

A hook is called before each step of the optimizer, when the gradients are there, and after it. What it must remember
beyond an epoch it gives as tensors, which are kept with the training state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from raybasin.sweep.ids import random_seed
from raybasin.sweep.plan import Member
from raybasin.sweep.settings import Settings
from raybasin.training import swag

State = dict[str, Tensor]


class StepCallback(Protocol):
    def before_step(self, net: nn.Module, step: int, lr: float) -> None:
        """Gradients are complete; `step` counts from 0."""

    def after_step(self, net: nn.Module, done: int) -> None:
        """`done` steps have been made."""

    def tensors(self) -> State:
        """What a run that goes on later needs."""

    def restore(self, tensors: State) -> None: ...


class NoCallback:
    """Plain training."""

    def before_step(self, net: nn.Module, step: int, lr: float) -> None: ...

    def after_step(self, net: nn.Module, done: int) -> None: ...

    def tensors(self) -> State:
        return {}

    def restore(self, tensors: State) -> None: ...


@dataclass(frozen=True)
class Langevin:
    """Gaussian noise on the gradients of the steps from `first_step` on: cyclical SGLD (Zhang et al. 2020).

    Its standard deviation is sqrt(2 (1 - momentum) / lr) * sqrt(temperature / n_images), as in the authors' code, where
    the loss is the mean over a batch. The noise of a step has a seed of its own, so nothing has to be remembered.
    """

    first_step: int
    temperature: float
    n_images: int
    momentum: float
    seed: int

    def before_step(self, net: nn.Module, step: int, lr: float) -> None:
        if step < self.first_step or lr <= 0:
            return
        deviation = math.sqrt(2 * (1 - self.momentum) / lr * self.temperature / self.n_images)
        parameters = [parameter for parameter in net.parameters() if parameter.grad is not None]
        generator = torch.Generator(parameters[0].device).manual_seed(random_seed(self.seed, step, "langevin"))
        for parameter in parameters:
            assert parameter.grad is not None
            noise = torch.randn(parameter.shape, generator=generator, device=parameter.device, dtype=parameter.dtype)
            parameter.grad.add_(noise, alpha=deviation)

    def after_step(self, net: nn.Module, done: int) -> None: ...

    def tensors(self) -> State:
        return {}

    def restore(self, tensors: State) -> None: ...


@dataclass
class MomentCollector:
    """Moments of the parameters, collected every `every` steps and at the end: the tail of SWAG (see `swag`)."""

    every: int
    steps: int
    rank: int
    moments: swag.Moments = field(default_factory=swag.Moments)

    def before_step(self, net: nn.Module, step: int, lr: float) -> None: ...

    def after_step(self, net: nn.Module, done: int) -> None:
        if collects(done, self.every, self.steps):
            self.moments = swag.collected(self.moments, dict(net.named_parameters()), self.rank)

    def tensors(self) -> State:
        return swag.to_tensors(self.moments)

    def restore(self, tensors: State) -> None:
        self.moments = swag.from_tensors(tensors)


def collects(done: int, every: int, steps: int) -> bool:
    """Whether weights are collected after `done` of `steps` steps."""
    return done % every == 0 or done == steps


# What methods name in `Method.callback`


def langevin(member: Member, settings: Settings) -> Langevin:
    """Noise in the last `noise_share` of a cycle."""
    first_step = member.cycle_steps - math.ceil(member.option["noise_share"] * member.cycle_steps)
    n_images, momentum = settings.facts.data.n_train, settings.spec.recipe.momentum
    return Langevin(first_step, member.option["temperature"], n_images, momentum, member.seed)


def moment_collector(member: Member, settings: Settings) -> MomentCollector:
    """Moments along a tail."""
    return MomentCollector(int(member.option["collect_steps"]), member.cycle_steps, int(member.option["rank"]))
