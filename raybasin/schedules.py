"""Lengths and learning rates of a cycle, as closed formulas of the step: nothing to store, so any step can be resumed.

A step is one batch. s = 0..S-1 counts the steps of one cycle, e = 0..E-1 its epochs.
"""

from __future__ import annotations

import math
from typing import Literal

By = Literal["step", "epoch"]


def batches(n_images: int, batch_size: int) -> list[slice]:
    """The batches of one epoch as slices of its order. The last batch is kept; a remainder of one image joins the
    batch before it, because batch norm has no variance of one."""
    starts = list(range(0, n_images, batch_size))
    if len(starts) > 1 and n_images - starts[-1] == 1:
        starts.pop()
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], n_images], strict=True)]


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


def learning_rate(step: int, steps: int, steps_per_epoch: int, max_lr: float, by: By = "step") -> float:
    """The rate of step s of S. By step the cosine ends near 0 for every length; by epoch, as in the authors' code, the
    rate is held within an epoch and short cycles end hotter: at 1.7 % of the peak for 12 epochs, 0.4 % for 25."""
    if by == "epoch":
        return cosine(step // steps_per_epoch, steps // steps_per_epoch, max_lr)
    return cosine(step, steps, max_lr)
