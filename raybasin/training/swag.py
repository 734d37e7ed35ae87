"""SWA-Gaussian: the moments of weights along a training run, and networks drawn from the Gaussian they define.

Maddox et al. (2019), "A Simple Baseline for Bayesian Uncertainty in Deep Learning". Of the weights w_1, w_2, ... that
are collected, with running mean m_n after n of them:

    mean        m_n
    variance    1/n sum (w_i - m_n)^2, each weight by itself
    deviations  D = the last K of w_n - m_n

A draw is m + sqrt(scale) (sqrt(variance) z_1 + D z_2 / sqrt(K - 1)), z_1 and z_2 standard normal; scale 1/2 gives each
of the two parts half of the covariance, as in the paper. Only parameters have moments: batch-norm statistics are to be
estimated again for each draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]
MIN_VARIANCE = 1e-30


@dataclass(frozen=True)
class Moments:
    """Of `count` collected weights: mean and sum of squared deviations in float64, `deviations` in the weights' type,
    the oldest first."""

    count: int = 0
    mean: Mapping[str, Tensor] | None = None
    squares: Mapping[str, Tensor] | None = None
    deviations: tuple[Mapping[str, Tensor], ...] = ()


def collected(moments: Moments, weights: Mapping[str, Tensor], rank: int) -> Moments:
    """The moments with one more collection; the tensors of `moments` and `weights` are left as they are. What is no
    floating number has no moments.

    The squares are summed as Welford (1962) does: the difference of two large means would lose the small variances of
    trained weights.
    """
    plain = torch.contiguous_format  # the network's may be channels-last, which no file can hold
    exact = {
        name: tensor.detach().to("cpu", torch.float64, copy=True, memory_format=plain)
        for name, tensor in weights.items()
        if tensor.is_floating_point()
    }
    mean = moments.mean or {name: torch.zeros_like(tensor) for name, tensor in exact.items()}
    squares = moments.squares or {name: torch.zeros_like(tensor) for name, tensor in exact.items()}
    count = moments.count + 1
    moved = {name: mean[name] + (tensor - mean[name]) / count for name, tensor in exact.items()}
    summed = {name: squares[name] + (x - mean[name]) * (x - moved[name]) for name, x in exact.items()}
    deviation = {name: (x - moved[name]).to(weights[name].dtype) for name, x in exact.items()}
    return Moments(count, moved, summed, (*moments.deviations, deviation)[-rank:])


def draw(moments: Moments, scale: float, seed: int) -> State:
    """Weights drawn from the Gaussian of `moments`, in the type of the deviations, the same for the same seed.

    Raises ValueError on fewer than two collections, which have no covariance.
    """
    rank = len(moments.deviations)
    if moments.count < 2 or rank < 2 or moments.mean is None or moments.squares is None:
        raise ValueError(f"a Gaussian needs two collected weights, not {moments.count} (deviations: {rank})")
    generator = torch.Generator().manual_seed(seed)
    across_K = torch.randn(rank, generator=generator, dtype=torch.float64) / math.sqrt(rank - 1)
    drawn: State = {}
    for name, mean in sorted(moments.mean.items()):  # whatever their order in a file, they get the same numbers
        variance = (moments.squares[name] / moments.count).clamp(min=MIN_VARIANCE)
        own = variance.sqrt() * torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        deviations = [deviation[name] for deviation in moments.deviations]
        shared = sum(
            (share * deviation.double() for share, deviation in zip(across_K, deviations, strict=True)),
            start=torch.zeros_like(mean),
        )
        drawn[name] = (mean + math.sqrt(scale) * (own + shared)).to(deviations[0].dtype)
    return drawn


def to_tensors(moments: Moments) -> State:
    """The moments as one flat state, which safetensors can hold; `from_tensors` reads it back."""
    state: State = {"count": torch.tensor(moments.count)}
    for part, tensors in (("mean", moments.mean), ("squares", moments.squares)):
        state |= {f"{part}.{name}": tensor for name, tensor in (tensors or {}).items()}
    for index, deviation in enumerate(moments.deviations):
        state |= {f"deviation{index}.{name}": tensor for name, tensor in deviation.items()}
    return state


def from_tensors(state: Mapping[str, Tensor]) -> Moments:
    parts: dict[str, State] = {}
    for key, tensor in state.items():
        part, _, name = key.partition(".")
        if name:
            parts.setdefault(part, {})[name] = tensor
    deviations = [parts[f"deviation{index}"] for index in range(sum(part.startswith("deviation") for part in parts))]
    return Moments(int(state["count"]), parts.get("mean"), parts.get("squares"), tuple(deviations))
