"""Barriers: what a loss or an error rate does on the straight path between two networks.

A path runs over t in [0, 1] and holds both ends, because a barrier is a height above the line between them.
Values are losses in nats or error rates; the results are in the same unit.

Axes: P path points, N examples.
"""

import math

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


def path_points(points: int) -> tuple[float, ...]:
    """Equally spaced t from 0 to 1, both included.

    Raises:
        ValueError: if their number is even or below 3; the middle of the path, where the barrier between two
            equal wells lies, must be among them.
    """
    if points < 3 or points % 2 == 0:
        raise ValueError(f"a path needs an odd number of points, 3 or more, got {points}")
    return tuple(i / (points - 1) for i in range(points))


def excess(t_P: npt.ArrayLike, value_P: npt.ArrayLike) -> Float64Array:
    """Height above the straight line between the ends, [P]: L(t) - [(1-t) L(0) + t L(1)].

    Raises:
        ValueError: unless t increases from exactly 0 to exactly 1 and there is one finite value for each.
    """
    t_P = np.asarray(t_P, dtype=np.float64)
    value_P = _checked_values(value_P)
    if t_P.shape != value_P.shape:
        raise ValueError(f"path points of shape {t_P.shape} and values of shape {value_P.shape}")
    if t_P[0] != 0.0 or t_P[-1] != 1.0 or not np.all(np.diff(t_P) > 0):
        raise ValueError(f"path points must increase from 0 to 1, both included, got {t_P.tolist()}")
    return value_P - ((1.0 - t_P) * value_P[0] + t_P * value_P[-1])


def barrier(t_P: npt.ArrayLike, value_P: npt.ArrayLike) -> float:
    """The largest excess on the path (Entezari et al. 2021, arXiv 2110.06296).

    Never below 0, because the excess at the ends is 0; infinite where a value is infinite or NaN, as where weights
    are so far out that the network overflows.

    Raises:
        ValueError: as `excess` does, but for values that are not finite.
    """
    is_finite_P = np.isfinite(np.asarray(value_P, dtype=np.float64))
    height = float(excess(t_P, np.where(is_finite_P, value_P, 0.0)).max())
    return height if is_finite_P.all() else math.inf


def is_in_basin(barrier_error: float, barrier_nll: float, threshold: float) -> bool:
    """Whether a path stays in the basin: its error barrier is at most the threshold, and its loss is finite."""
    return barrier_error <= threshold and barrier_nll != math.inf


def rise(value_P: npt.ArrayLike) -> float:
    """The largest E(t) - E(0) on a path whose first point is the hub; never below 0.

    It tells a ruined branch on a flat path: steady ascent from the hub to a bad network has no barrier.

    Raises:
        ValueError: on fewer than two values, or if some are not finite.
    """
    value_P = _checked_values(value_P)
    return float((value_P - value_P[0]).max())


def excess_se(t: float, at_t_N: npt.ArrayLike, at_start_N: npt.ArrayLike, at_end_N: npt.ArrayLike) -> float:
    """Standard error of the mean excess at one path point, over examples that all three networks have seen.

    Paired: the deviation (ddof 1) is that of the examples' own excesses, so that what makes an example hard
    for all three networks cancels.

    Args:
        t: place on the path, in [0, 1].
        at_t_N: loss or error of each example at t.
        at_start_N: the same at t = 0.
        at_end_N: the same at t = 1.

    Returns:
        In the unit of the values; NaN for a single example.

    Raises:
        ValueError: unless the three are of one shape [N], N >= 1.
    """
    at_t_N, at_start_N, at_end_N = (np.asarray(x_N, dtype=np.float64) for x_N in (at_t_N, at_start_N, at_end_N))
    if not at_t_N.shape == at_start_N.shape == at_end_N.shape or at_t_N.ndim != 1 or at_t_N.size == 0:
        shapes = f"{at_t_N.shape}, {at_start_N.shape} and {at_end_N.shape}"
        raise ValueError(f"the three networks need values [N] of the same examples, got shapes {shapes}")
    if len(at_t_N) == 1:
        return math.nan
    excess_N = at_t_N - ((1.0 - t) * at_start_N + t * at_end_N)
    return float(excess_N.std(ddof=1) / math.sqrt(len(excess_N)))


def _checked_values(value_P: npt.ArrayLike) -> Float64Array:
    value_P = np.asarray(value_P, dtype=np.float64)
    if value_P.ndim != 1 or len(value_P) < 2 or not np.isfinite(value_P).all():
        raise ValueError(f"a path needs finite values at its two ends at least, got {value_P.tolist()}")
    return value_P
