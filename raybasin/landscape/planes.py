"""The plane through three networks in weight space: coordinates in units of weight distance, and shares of the three.

A plane is drawn as in Garipov et al. (2018, arXiv 1802.10026): with members a, b, c the axes are u = (b - a) / |b - a|
and v, the part of c - a across u over its length (Gram-Schmidt). So u and v are orthonormal, distances on the page are
distances between weights, and a lies at (0, 0), b on the x axis, c above it. The norm is Euclidean over the parameters;
batch-norm statistics are no weights, and are to be re-estimated at every point.

Axes: X, Y points of a grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from raybasin.landscape.interpolation import StateDict, exact

Point = tuple[float, float]

FLAT = 1e-6
"""Members whose triangle is flatter than this, height over longest side, span no plane: rounding would set it."""


@dataclass(frozen=True)
class Frame:
    """Where the members a, b, c lie: (0, 0), (bx, 0) and (cx, cy), with bx and cy above 0."""

    bx: float
    cx: float
    cy: float

    @property
    def members(self) -> tuple[Point, Point, Point]:
        return (0.0, 0.0), (self.bx, 0.0), (self.cx, self.cy)

    def shares(self, x: float, y: float) -> tuple[float, float, float]:
        """The shares of a, b and c in the weights at (x, y), 1 in all; at the members they are exactly 1 and 0.

        `interpolation.weighted_sum` makes the weights of them.
        """
        of_c = y / self.cy
        of_b = (x - of_c * self.cx) / self.bx
        return 1.0 - of_b - of_c, of_b, of_c


def frame(a: StateDict, b: StateDict, c: StateDict, names: Sequence[str]) -> Frame:
    """The plane through three states, measured in float64 over the tensors called `names` (the parameters).

    Raises:
        ValueError: if the three lie on one line, or two of them at one point.
    """
    ab = {name: exact(b[name]) - exact(a[name]) for name in names}
    ac = {name: exact(c[name]) - exact(a[name]) for name in names}
    bx = _norm(ab)
    along = sum(float((ab[name] * ac[name]).sum()) for name in names)
    cx = along / bx if bx else 0.0
    cy = _norm({name: ac[name] - (cx / bx) * ab[name] for name in names}) if bx else 0.0
    longest = max(bx, _norm(ac))
    if not bx or cy <= FLAT * longest:
        raise ValueError(
            f"the three lie on one line: the third is {cy:.3g} away from that through the others, {longest:.3g} apart"
        )
    return Frame(bx, cx, cy)


def grid(members: Sequence[Point], points: int, margin: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Coordinates x [X] and y [Y], equally spaced over the members' bounding box and a margin around it.

    Args:
        members: where they lie, as `Frame.members`.
        points: of each axis, at least 2. Both ends are exact, so that members on the border are points of the grid.
        margin: by how much the box is widened on every side, as a share of its longer side.
    """
    boxes = [(min(values), max(values)) for values in zip(*members, strict=True)]
    wider = margin * max(high - low for low, high in boxes)
    x_X, y_Y = (_spaced(low - wider, high + wider, points) for low, high in boxes)
    return x_X, y_Y


def _spaced(low: float, high: float, points: int) -> tuple[float, ...]:
    inner = (low + (high - low) * i / (points - 1) for i in range(1, points - 1))
    return low, *inner, high


def _norm(tensors: Mapping[str, torch.Tensor]) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(tensor)) for tensor in tensors.values()))
