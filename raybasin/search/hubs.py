"""How far replicates move the line, and what that leaves unknown.

Cells of one replicate start from one hub and share its seeds, so they move together. `line_model` takes cells for
independent, which places the line well and says too much where few replicates have most of the cells. Here the shift
of each replicate is estimated from what its cells leave unexplained, to first order, and from how far the shifts lie
apart the variance between replicates (a random-effects model: Searle, Casella, McCulloch 1992, chapter 3), with a
prior, because a handful of replicates says little of it.

Axes: H combinations of shapes, N cells, R replicates, T values of a grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raybasin.search.line_model import FLOOR, Array, Cell, Shapes, mean_barrier, noise_variance

USUAL = 0.1
"""Standard deviation between replicates, in log lr_ratio, before any is known: what grids of digits and CIFAR-10 allow
(benchmarks/what_replicates_share.py). Half-normal."""
GRID_T = np.linspace(0.0, 0.6, 61)
STEP = 1e-3
"""For derivatives, in log lr_ratio."""


def variance(cells: Sequence[Cell], line_N: Array, shapes: Shapes, weight_H: Array, threshold: float) -> float:
    """Of the line, in log lr_ratio squared, for its being known from these replicates and no others.

    Args:
        cells: those that name a replicate count; there may be none, and the variance is 0.
        line_N: log lr_ratio of the line at the length of each cell.
        shapes, weight_H: of the barrier, and how likely each is.
        threshold: of the barrier.
    """
    shift_R, precision_R = _shifts(cells, line_N, shapes, weight_H, threshold)
    if not len(shift_R):
        return 0.0
    share_R = precision_R / precision_R.sum()
    return _between(shift_R, precision_R) * float((share_R**2).sum())


def _shifts(
    cells: Sequence[Cell], line_N: Array, shapes: Shapes, weight_H: Array, threshold: float
) -> tuple[Array, Array]:
    """How far each replicate moves the line, and how precisely that is known; of those with a cell on the slope."""
    counts = [number for number, cell in enumerate(cells) if cell.replicate >= 0 and np.isfinite(cell.barrier)]
    log_lr_N, _, barrier_N, se_N, replicate_N = np.array([cells[number] for number in counts]).reshape(-1, 5).T
    noise_N, distance_N = np.hypot(se_N / threshold, FLOOR), log_lr_N - line_N[counts]
    before_HN, mean_HN, after_HN = (mean_barrier(distance_N + step, shapes) for step in (-STEP, 0.0, STEP))
    # As `log_likelihood_HL` has it: the logarithm of the barrier plus 2 image errors is normal.
    log_variance_HN = np.log1p((noise_variance(mean_HN, shapes) + noise_N**2) / (mean_HN + 2 * noise_N) ** 2)
    log_mean_HN = np.log(mean_HN + 2 * noise_N) - log_variance_HN / 2
    log_mean_N = weight_H @ log_mean_HN
    variance_N = weight_H @ (log_variance_HN + (log_mean_HN - log_mean_N) ** 2)
    slope_N = weight_H @ np.log((after_HN + 2 * noise_N) / (before_HN + 2 * noise_N)) / (2 * STEP)
    apart_N = np.log(np.maximum(barrier_N / threshold, 0) + 2 * noise_N) - log_mean_N
    _, place_N = np.unique(replicate_N, return_inverse=True)
    precision_R = np.bincount(place_N, slope_N**2 / variance_N)
    moved_R = np.bincount(place_N, -slope_N * apart_N / variance_N)
    is_known_R = precision_R > 0
    return moved_R[is_known_R] / precision_R[is_known_R], precision_R[is_known_R]


def _between(shift_R: Array, precision_R: Array) -> float:
    """The expected variance between replicates: its likelihood is that of the shifts around a mean that is not known,
    which has been integrated out."""
    spread_TR = GRID_T[:, None] ** 2 + 1 / precision_R
    weight_TR = 1 / spread_TR
    mean_T1 = (weight_TR @ shift_R / weight_TR.sum(1))[:, None]
    log_like_T = (
        -(np.log(spread_TR).sum(1) + np.log(weight_TR.sum(1)) + (weight_TR * (shift_R - mean_T1) ** 2).sum(1)) / 2
    )
    log_T = log_like_T - (GRID_T / USUAL) ** 2 / 2
    posterior_T = np.exp(log_T - log_T.max())
    return float(posterior_T @ GRID_T**2 / posterior_T.sum())
