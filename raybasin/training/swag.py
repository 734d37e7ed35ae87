"""SWA-Gaussian: the moments of weights along a training trajectory, and samples of the Gaussian they define.

Maddox et al. (2019), "A Simple Baseline for Bayesian Uncertainty in Deep Learning", arXiv 1902.02476. Of the weights
w_1, w_2, ... that are collected, with running mean m_n after n of them:

    mean        m_n
    variance    1/n sum (w_i - m_n)^2, each weight by itself
    deviations  D = the last K of w_n - m_n

A sample is m + sqrt(scale) (sqrt(variance) z_1 + D z_2 / sqrt(K - 1)), z_1 and z_2 standard normal (equation 1); scale
1/2 gives each of the two parts half of the covariance, as in the paper. Only parameters have moments: batch-norm
statistics are to be re-estimated for each sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from raybasin.training.models import State, by_prefix

MIN_VARIANCE = 1e-30


@dataclass(frozen=True)
class Moments:
    """Of `count` collected weights: mean and sum of squared deviations in float64, and the last `deviations` in the
    weights' own type, the oldest first."""

    count: int = 0
    mean: Mapping[str, Tensor] | None = None
    squares: Mapping[str, Tensor] | None = None
    deviations: tuple[Mapping[str, Tensor], ...] = ()


def collect(moments: Moments, weights: Mapping[str, Tensor], rank: int) -> Moments:
    """The moments with one more collection; the tensors of `moments` and `weights` are left as they are.

    The squares are summed as Welford (1962) does: the difference of two large means would lose the small variances of
    trained weights.

    Args:
        moments: so far; `Moments()` before the first collection.
        weights: the parameters, on any device. Those that are no floating numbers have no moments.
        rank: how many deviations are kept.
    """
    plain = torch.contiguous_format  # the network's may be channels-last, which no file can hold
    exact = {
        name: tensor.detach().to("cpu", torch.float64, copy=True, memory_format=plain)
        for name, tensor in weights.items()
        if tensor.is_floating_point()
    }
    zeros = {name: torch.zeros_like(tensor) for name, tensor in exact.items()}
    before, squares, count = moments.mean or zeros, moments.squares or zeros, moments.count + 1
    mean = {name: before[name] + (x - before[name]) / count for name, x in exact.items()}
    squares = {name: squares[name] + (x - before[name]) * (x - mean[name]) for name, x in exact.items()}
    deviation = {name: (x - mean[name]).to(weights[name].dtype) for name, x in exact.items()}
    return Moments(count, mean, squares, (*moments.deviations, deviation)[-rank:])


def sample(moments: Moments, scale: float, seed: int) -> State:
    """Weights sampled from the Gaussian of `moments`, in the type of the deviations, the same for the same seed.

    Args:
        moments: of two collections at least.
        scale: factor of the covariance; 0.5 is the paper's.
        seed: of a generator of its own.

    Raises:
        ValueError: on fewer than two collections, which have no covariance.
    """
    rank = len(moments.deviations)
    if moments.count < 2 or rank < 2 or moments.mean is None or moments.squares is None:
        raise ValueError(f"a Gaussian needs two collected weights, not {moments.count} (deviations: {rank})")
    generator = torch.Generator().manual_seed(seed)
    across_K = torch.randn(rank, generator=generator, dtype=torch.float64) / math.sqrt(rank - 1)
    sampled: State = {}
    for name, mean in sorted(moments.mean.items()):  # whatever their order in a file, they get the same numbers
        variance = (moments.squares[name] / moments.count).clamp(min=MIN_VARIANCE)
        around = variance.sqrt() * torch.randn(mean.shape, generator=generator, dtype=torch.float64)
        shared = torch.zeros_like(mean)
        for share, deviation in zip(across_K, moments.deviations, strict=True):
            shared = shared + share * deviation[name].double()
        sampled[name] = (mean + math.sqrt(scale) * (around + shared)).to(moments.deviations[0][name].dtype)
    return sampled


def to_tensors(moments: Moments) -> State:
    """The moments as one flat state, which safetensors can hold; `from_tensors` reads it back."""
    parts: dict[str, Mapping[str, Tensor]] = {"mean": moments.mean or {}, "squares": moments.squares or {}}
    parts |= {f"deviation{index}": deviation for index, deviation in enumerate(moments.deviations)}
    named = {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
    return {"count": torch.tensor(moments.count), **named}


def from_tensors(state: Mapping[str, Tensor]) -> Moments:
    """Reads what `to_tensors` made."""
    parts = by_prefix(state)
    deviations = [parts[f"deviation{index}"] for index in range(sum(part.startswith("deviation") for part in parts))]
    return Moments(int(state["count"]), parts.get("mean"), parts.get("squares"), tuple(deviations))
