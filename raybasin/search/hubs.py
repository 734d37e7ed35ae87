"""What replicates have in common, and what that leaves unknown of the line.

Cells of one replicate start from one hub and share its seeds: each replicate moves the whole line. `line_model` takes
cells for independent, which finds the line's course and says too much of its level where few replicates have most of
the cells. Here the course is taken as found, and the level is worked out once more: replicate r has its line at m + s_r
beyond what was found, with s_r normal of a standard deviation that is not known (a random-effects model: Searle,
Casella, McCulloch 1992, chapter 3). Level, deviation and the barrier's shape take the values of grids, the shifts are
summed over. What this says more than the same without shifts is how far the line moves, and by how much its interval
widens.

Axes: H combinations of shapes, R replicates, S shifts, M levels, T deviations of the shifts.
"""

from __future__ import annotations

from operator import itemgetter

import numpy as np
from scipy.special import logsumexp

from raybasin.search.line_model import Array, LineModel, Seen, Shapes, mean_barrier

USUAL, TAIL = 0.1, 4
"""Of the prior on the deviation between replicates, in log lr_ratio: half of a Student's t, its scale and its degrees
of freedom. The scale is of the size that grids of digits and CIFAR-10 allow (benchmarks/what_replicates_share.py)."""
DEVIATION_T = np.array([0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.27, 0.36, 0.5])
FARTHEST_SHIFT, FARTHEST_LEVEL = 1.5, 0.7
"""In log lr_ratio."""


def level(model: LineModel, seen: Seen, line_K: Array) -> tuple[float, float]:
    """By how much the line lies beyond `line_K`, which was found as if cells were independent, and the standard
    deviation that their replicates add to what is known of it. Both are 0 where no cell names its replicate.

    Args:
        model: that has found the line.
        seen: what its cells say; those of which no replicate is known stand for one each.
        line_K: log lr_ratio of the line at each of the lengths of `seen`.
    """
    if not seen.of_replicate:
        return 0.0, 0.0
    steps = int(FARTHEST_SHIFT / model.step)
    shift_S = model.step * np.arange(-steps, steps + 1)
    level_M = shift_S[np.abs(shift_S) <= FARTHEST_LEVEL]
    log_like_HRS = _by_replicate(model, seen, line_K, steps)
    log_prior_T = -(TAIL + 1) / 2 * np.log1p((DEVIATION_T / USUAL) ** 2 / TAIL) + np.log(np.gradient(DEVIATION_T))
    log_HTM = _summed(log_like_HRS, _spread(shift_S, level_M)) + log_prior_T[:, None]
    of_mean_HTM = level_M - _before(model.shapes)[..., None]
    mean, variance = _moments(log_HTM, of_mean_HTM)
    mean_alone, variance_alone = _moments(log_HTM[:, :1], of_mean_HTM[:, :1])
    return mean - mean_alone, float(np.sqrt(max(variance - variance_alone, 0.0)))


def _by_replicate(model: LineModel, seen: Seen, line_K: Array, steps: int) -> Array:
    """The log likelihood of each replicate's cells, where its line lies so many steps beyond the one that was found."""
    found: dict[int, Array] = {}
    for (replicate, row), table_HL in sorted(seen.of_replicate.items(), key=itemgetter(0)):
        at = round((line_K[row] - model.line_L[0]) / model.step) + np.arange(-steps, steps + 1)
        found[replicate] = found.get(replicate, 0.0) + table_HL[:, np.clip(at, 0, len(model.line_L) - 1)]
    return np.stack([found[replicate] for replicate in sorted(found)], axis=1)


def _spread(shift_S: Array, level_M: Array) -> Array:
    """[T, M, S]: how likely a replicate's shift is, by deviation and level."""
    apart_MS = shift_S - level_M[:, None]
    deviation_T11 = np.maximum(DEVIATION_T, 1e-3)[:, None, None]
    likely_TMS = np.exp(-((apart_MS / deviation_T11) ** 2) / 2)
    return likely_TMS / likely_TMS.sum(-1, keepdims=True)


def _summed(log_like_HRS: Array, likely_TMS: Array) -> Array:
    """The log likelihood [H, T, M] of all replicates, summed over the shift of each."""
    top_HR1 = log_like_HRS.max(-1, keepdims=True)
    n_h, n_r, n_s = log_like_HRS.shape
    like_HRTM = np.exp(log_like_HRS - top_HR1).reshape(-1, n_s) @ likely_TMS.reshape(-1, n_s).T
    like_HRTM = np.log(np.maximum(like_HRTM, 1e-300)).reshape(n_h, n_r, *likely_TMS.shape[:2])
    return like_HRTM.sum(1) + top_HR1.sum(1)[..., None]


def _before(shapes: Shapes) -> Array:
    """[H, T]: how far before the mean of the replicates' lines their mean barrier crosses the threshold: where barriers
    are exponential, by k s^2 / 2."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(16)
    distance_D = np.linspace(-2.0, 0.3, 93)
    found = []
    for deviation in DEVIATION_T:
        each_HDQ = mean_barrier(distance_D[:, None] - deviation * nodes, shapes)
        mean_HD = each_HDQ @ weights / weights.sum()
        found.append([np.interp(0.0, np.log(of_shape_D), distance_D) for of_shape_D in mean_HD])
    return -np.array(found).T


def _moments(log_weight_: Array, value_: Array) -> tuple[float, float]:
    weight_ = np.exp(log_weight_ - logsumexp(log_weight_))
    mean = float((weight_ * value_).sum())
    return mean, float((weight_ * (value_ - mean) ** 2).sum())
