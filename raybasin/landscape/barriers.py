"""Barriers: what a loss or an error rate does on the straight path between two networks.

A path runs over t in [0, 1] and holds both ends, because a barrier is a height above the line between them.
Values are losses in nats or error rates; the results are in the same unit.

Axes: P path points, N examples.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

KINDS = ("nll", "error")
"""What barriers are measured of: columns of `paths`."""


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
    return float(heights(t_P, value_P).max())


def heights(t_P: npt.ArrayLike, value_P: npt.ArrayLike) -> Float64Array:
    """The excess, [P], which is infinite where a value is infinite or NaN, and everywhere if that of an end is.

    Raises:
        ValueError: as `excess` does, but for values that are not finite.
    """
    is_finite_P = np.isfinite(np.asarray(value_P, dtype=np.float64))
    excess_P = excess(t_P, np.where(is_finite_P, value_P, 0.0))
    return np.where(is_finite_P & is_finite_P[0] & is_finite_P[-1], excess_P, math.inf)


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
        In the unit of the values; NaN for a single example, or if some value is not finite.

    Raises:
        ValueError: unless the three are of one shape [N], N >= 1.
    """
    at_t_N, at_start_N, at_end_N = (np.asarray(x_N, dtype=np.float64) for x_N in (at_t_N, at_start_N, at_end_N))
    if not at_t_N.shape == at_start_N.shape == at_end_N.shape or at_t_N.ndim != 1 or at_t_N.size == 0:
        shapes = f"{at_t_N.shape}, {at_start_N.shape} and {at_end_N.shape}"
        raise ValueError(f"the three networks need values [N] of the same examples, got shapes {shapes}")
    if len(at_t_N) == 1 or not all(np.isfinite(x_N).all() for x_N in (at_t_N, at_start_N, at_end_N)):
        return math.nan
    excess_N = image_excess(t, at_t_N, at_start_N, at_end_N)
    return float(excess_N.std(ddof=1) / math.sqrt(len(excess_N)))


def image_excess(t: float, at_t_N: Float64Array, at_start_N: Float64Array, at_end_N: Float64Array) -> Float64Array:
    """What each example adds to the excess at t, whose mean it is, [N]."""
    return at_t_N - ((1.0 - t) * at_start_N + t * at_end_N)


def _checked_values(value_P: npt.ArrayLike) -> Float64Array:
    value_P = np.asarray(value_P, dtype=np.float64)
    if value_P.ndim != 1 or len(value_P) < 2 or not np.isfinite(value_P).all():
        raise ValueError(f"a path needs finite values at its two ends at least, got {value_P.tolist()}")
    return value_P


# Rows of `paths` and `cells`


def path_rows(
    nll_PN: npt.NDArray[np.floating], wrong_PN: npt.NDArray[np.bool_], t_P: Sequence[float], by_image: bool = False
) -> list[dict[str, Any]]:
    """The rows of one path on one split, one per point.

    `nll_PN` is the NLL of each example, `wrong_PN` whether it is misclassified, ends included. `by_image` adds what
    each example does at the highest inner point of either, which intervals over replicates are made from.
    """
    rows: list[dict[str, Any]] = [{"t": float(t)} for t in t_P]
    for kind, value_PN in (("nll", nll_PN), ("error", wrong_PN.astype(np.float64))):
        value_P = [float(np.mean(value_N)) for value_N in value_PN]
        for row, value, above, value_N in zip(rows, value_P, heights(t_P, value_P), value_PN, strict=True):
            row |= {kind: value, f"{kind}_excess": float(above),
                    f"{kind}_excess_se": excess_se(row["t"], value_N, value_PN[0], value_PN[-1])}  # fmt: skip
        highest = rows.index(_highest(rows, kind))
        at_N, start_N, end_N = (value_PN[at].astype(np.float64) for at in (highest, 0, -1))
        if by_image and np.isfinite([at_N, start_N, end_N]).all():  # else the cell is out, and needs no interval
            rows[highest][f"image_{kind}_excess"] = image_excess(t_P[highest], at_N, start_N, end_N).tolist()
    return rows


def summary(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a row of `cells` says of barriers, from the rows of `paths` of its cell. They are measured on validation, or
    on training images where paths were measured on these (`basin.split`)."""
    split = "train" if any(point["split"] == "train" for point in points) else "val"
    paths: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for point in sorted(points, key=lambda point: point["t"]):
        if point["split"] == split:
            paths.setdefault((point["kind"], point["path_id"]), []).append(point)
    hub = [_barriers(path) for (kind, _), path in paths.items() if kind == "hub-member"]
    between = [_barriers(path) for (kind, _), path in paths.items() if kind == "member-member"]
    found = {
        "rise_error": max(path["rise_error"] for path in hub),
        "l2_from_hub": float(np.mean([path["l2_distance"] for path in hub])),
    }
    for kind in KINDS:
        barrier, barrier_se = f"barrier_{kind}", f"barrier_{kind}_se"
        # Of equal ones the same whatever their order; NaN is neither above nor below.
        largest = max(hub, key=lambda path: (path[barrier], np.nan_to_num(path[barrier_se], nan=-1), path["end_id"]))
        found |= {
            barrier: largest[barrier],
            barrier_se: largest[barrier_se],
            f"{barrier}_member": largest["end_id"],
            f"{barrier}_mean": float(np.mean([path[barrier] for path in hub])),
            f"member_{barrier}": max((path[barrier] for path in between), default=math.nan),
        }
    return found


def _highest(path: Sequence[Mapping[str, Any]], kind: str) -> Any:
    """The inner point where the error, or the NLL, is highest above the line between the ends."""
    height_P = heights([point["t"] for point in path], [point[kind] for point in path])
    return path[1 + int(height_P[1:-1].argmax())]


def _barriers(path: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of one path, whose points are in ascending order."""
    t_P = [point["t"] for point in path]
    found = {
        "rise_error": rise([point["error"] for point in path]),
        **{key: path[0][key] for key in ("l2_distance", "end_id")},
    }
    for kind in KINDS:
        se = _highest(path, kind).get(f"{kind}_excess_se")
        found[f"barrier_{kind}"] = barrier(t_P, [point[kind] for point in path])
        found[f"barrier_{kind}_se"] = math.nan if se is None else se  # of a path from before it was measured
    return found
