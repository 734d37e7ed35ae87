"""Lengths and learning rates of a cycle, as closed formulas of the step: nothing to store, so any step can be resumed.

A step is one batch. s = 0..S-1 counts the steps of one cycle, e = 0..E-1 its epochs.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np

By = Literal["step", "epoch"]
Shape = Literal["cosine", "triangular", "constant"]


def batches(n_images: int, batch_size: int, drop_last: bool = False) -> list[slice]:
    """The batches of one epoch as slices of its order. A last batch that is not full is kept unless `drop_last` (the
    only batch always is); a remainder of one image joins the batch before it, because batch norm has no variance of
    one."""
    starts = list(range(0, n_images, batch_size))
    if drop_last and len(starts) > 1 and n_images % batch_size:
        starts.pop()
        n_images = batch_size * len(starts)
    if len(starts) > 1 and n_images - starts[-1] == 1:
        starts.pop()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], n_images], strict=True)]


def n_batches(n_images: int, batch_size: int, drop_last: bool = False) -> int:
    """How many `batches` there are."""
    full, rest = divmod(n_images, batch_size)
    return full + (1 if (rest > 1 and not drop_last) or (rest and not full) else 0)


def batch_sizes(n_images: int, batch_size: int, drop_last: bool = False) -> set[int]:
    """The sizes that `batches` have: that of the last one, and where there are more, that of all others."""
    count = n_batches(n_images, batch_size, drop_last)
    last = batch_size if drop_last and n_images >= batch_size else n_images - (count - 1) * batch_size
    return {last} if count == 1 else {batch_size, last} if count else set()


def cycle_steps(cycle_ratio: float, epochs: int, steps_per_epoch: int, by: By = "step") -> int:
    """Steps of a cycle of `cycle_ratio` times the `epochs` of the recipe.

    By step, to the nearest step. By epoch, cut to whole epochs, as the authors' code does: int(0.5 * 25) = 12 epochs.
    """
    if by == "epoch":
        return int(cycle_ratio * epochs) * steps_per_epoch
    return math.floor(cycle_ratio * epochs * steps_per_epoch + 0.5)


def cosine(position: int, length: int, max_lr: float) -> float:
    """max_lr / 2 * (1 + cos(pi * position / length)), position = 0..length-1 (Loshchilov and Hutter, 2017)."""
    return max_lr / 2 * (1 + math.cos(math.pi * position / length))


def learning_rate(
    step: int,
    steps: int,
    steps_per_epoch: int,
    max_lr: float,
    by: By = "step",
    *,
    shape: Shape = "cosine",
    warmup: float = 0.0,
    warmup_lr: float = 0.0,
    low_ratio: float = 0.01,
) -> float:
    """The rate of step s of S. By step the cosine ends near 0 for every length; by epoch, as in the authors' code, the
    rate is held within an epoch and short cycles end hotter: at 1.7 % of the peak for 12 epochs, 0.4 % for 25.

    `warmup` is the share of the steps (by epoch: of the epochs, rounded down) in which the cosine is led up to from
    `warmup_lr`, as Sadrtdinov et al. (2023) train Swin. The triangle of Garipov et al. (2018) rises from `low_ratio`
    times the highest rate to the highest, and falls again. It is always by step, and turned by half a period: the last
    step, where a network is taken, is the one of the lowest rate.
    """
    if shape == "constant":
        return max_lr
    if shape == "triangular":
        height = 1 - abs(2 * (step + 1) / steps - 1)
        return max_lr * (low_ratio + (1 - low_ratio) * height)
    if by == "epoch":
        position, length = step // steps_per_epoch, steps // steps_per_epoch
        led_up = int(warmup * length)
    else:
        position, length = step, steps
        led_up = math.floor(warmup * length + 0.5)
    if position < led_up:
        return (1 - position / led_up) * warmup_lr + position / led_up * max_lr
    return cosine(position - led_up, length - led_up, max_lr)


@functools.lru_cache(maxsize=256)
def trace_steps(
    cycle_steps: int,
    steps_per_epoch: int,
    times: int,
    by: By = "step",
    shape: Shape = "cosine",
    low_ratio: float = 0.01,
) -> tuple[int, ...]:
    """After how many steps of a cycle to look whether it has left its basin, ascending; the last is the cycle's end.

    Time k of N is the first step after which the sum of the learning rates so far is at least (k/N)^2 of the cycle's:
    how far a run can have moved goes with that sum, and what leaves at high rates leaves early. Times that fall on one
    step are one, so a short cycle has fewer.
    """
    rate_S = [
        learning_rate(step, cycle_steps, steps_per_epoch, 1.0, by, shape=shape, low_ratio=low_ratio)
        for step in range(cycle_steps)
    ]
    moved_S = np.cumsum(rate_S)
    shares = [(k / times) ** 2 for k in range(1, times)]
    found = {int(np.searchsorted(moved_S, share * moved_S[-1])) + 1 for share in shares}
    return tuple(sorted({*(min(step, cycle_steps) for step in found), cycle_steps}))
