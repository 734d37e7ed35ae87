"""The exponential moving average of a network along its training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raybasin.training.models import State

POWER = 2 / 3
"""Of timm's warm-up of the decay."""


@dataclass
class Average:
    """As timm's ModelEmaV3 has it: parameters and floating-point buffers are averaged, batch-norm statistics among
    them, and what counts is copied. It begins with the weights after the first step."""

    decay: float
    warmup: bool
    tensors: State

    def decay_at(self, done: int) -> float:
        """The weight of the past when `done` steps are made."""
        if done <= 1:
            return 0.0
        return min(self.decay, 1 - done**-POWER) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, net: nn.Module, done: int) -> None:
        means: list[Tensor] = []
        values: list[Tensor] = []
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                means.append(self.tensors[name])
                values.append(value)
            else:
                self.tensors[name].copy_(value)
        torch._foreach_lerp_(means, values, weight=1 - self.decay_at(done))

    def restore(self, tensors: State) -> None:
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)


def of(net: nn.Module, decay: float, warmup: bool) -> Average:
    return Average(decay, warmup, _copied(net))


@contextlib.contextmanager
def shown(net: nn.Module, average: Average | None) -> Iterator[None]:
    """Within, `net` has the averaged weights, if there are any; then its own again."""
    if average is None:
        yield
        return
    own = _copied(net)
    net.load_state_dict(average.tensors)
    try:
        yield
    finally:
        net.load_state_dict(own)


def _copied(net: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}
