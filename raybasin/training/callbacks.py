"""What a method does at a step of training, beside the step itself. Methods name the functions at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import nn

from raybasin.sweep.ids import random_seed
from raybasin.sweep.plan import Member
from raybasin.sweep.settings import Settings
from raybasin.training import swag
from raybasin.training.models import State


class StepCallback:
    """Plain training: does nothing. A method that does something overrides what it needs."""

    def before_step(self, net: nn.Module, step: int, lr: float) -> None:
        """Is called when the gradients of a step are complete, before the optimizer uses them; `step` counts from 0."""

    def after_step(self, net: nn.Module, done: int) -> None:
        """Is called when the optimizer has made `done` steps."""

    def tensors(self) -> State:
        """What must be remembered beyond an epoch; it is kept with the training state."""
        return {}

    def restore(self, tensors: State) -> None:
        """Goes on from what `tensors` gave in an earlier process."""


@dataclass(frozen=True)
class Langevin(StepCallback):
    """Gaussian noise on the gradients of the steps from `first_step` on: cyclical SGLD.

    Source: Zhang et al. (2020), "Cyclical Stochastic Gradient MCMC for Bayesian Deep Learning", arXiv 1902.03932.

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
        gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        generator = torch.Generator(gradients[0].device).manual_seed(random_seed(self.seed, step, "langevin"))
        for gradient in gradients:
            noise = torch.randn(gradient.shape, generator=generator, device=gradient.device, dtype=gradient.dtype)
            gradient.add_(noise, alpha=deviation)


@dataclass
class MomentCollector(StepCallback):
    """Collects the moments of the parameters every `every` steps and at the end, for SWAG (see `swag`).

    Of the last `rank` collections it keeps the deviations from the mean.
    """

    every: int
    steps: int
    rank: int
    moments: swag.Moments = field(default_factory=swag.Moments)

    def after_step(self, net: nn.Module, done: int) -> None:
        if done % self.every == 0 or done == self.steps:
            self.moments = swag.collect(self.moments, dict(net.named_parameters()), self.rank)

    def tensors(self) -> State:
        return swag.to_tensors(self.moments)

    def restore(self, tensors: State) -> None:
        self.moments = swag.from_tensors(tensors)


def langevin(member: Member, settings: Settings) -> Langevin:
    """Noise in the last `noise_share` of a cycle."""
    first_step = member.cycle_steps - math.ceil(member.option["noise_share"] * member.cycle_steps)
    n_images, momentum = settings.facts.data.n_train, settings.spec.recipe.momentum
    return Langevin(first_step, member.option["temperature"], n_images, momentum, member.seed)


def moment_collector(member: Member, settings: Settings) -> MomentCollector:
    """Moments along a SWAG trajectory."""
    return MomentCollector(int(member.option["collect_steps"]), member.cycle_steps, int(member.option["rank"]))
