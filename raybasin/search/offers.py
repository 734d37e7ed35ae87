"""The points that may be asked for: which are out, what they cost, and what a budget leaves."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from raybasin.errors import UserError
from raybasin.search.line_model import Truth

Point = tuple[float, float]
"""lr_ratio, cycle_ratio."""
Cost = Callable[[float, float], float]
Snap = Callable[[float, float], Point]

RESOLUTION, BUDGET, CANNOT_DECIDE = "resolution", "budget", "cannot decide"
"""Why a search stops."""
REPLICATE = "replicate"
CELLS_OF_A_HUB = 4
"""Before so many cells on a line for each of its replicates, none with a further hub is begun."""


def cycle_ratio_of(lr_ratio: float, cycle_ratio: float) -> float:
    return cycle_ratio


def to_4_digits(lr_ratio: float, cycle_ratio: float) -> Point:
    return float(f"{lr_ratio:.4g}"), float(f"{cycle_ratio:.4g}")


def check_ranges(lr_ratio: tuple[float, float], cycle_ratio: tuple[float, float]) -> None:
    """Both ends of a range of lengths may be the same: there is but one."""
    low, high = lr_ratio
    if not 0 < low < high < math.inf:
        raise UserError(f"lr_ratio: must be (lowest, highest), both above 0, not ({low:g}, {high:g})")
    low, high = cycle_ratio
    if not 0 < low <= high < math.inf:
        raise UserError(f"cycle_ratio: must be (shortest, longest), both above 0, not ({low:g}, {high:g})")


def check_point(lr_ratio: float, cycle_ratio: float) -> str:
    """What a cell there is called in messages."""
    where = f"a cell at lr_ratio {lr_ratio:g}, cycle_ratio {cycle_ratio:g}"
    if not (0 < lr_ratio < math.inf and 0 < cycle_ratio < math.inf):
        raise UserError(f"{where}: both must be above 0")
    return where


def spaced(low: float, high: float, farthest: float) -> list[float]:
    """From low to high in equal factors, of which the logarithm is at most `farthest`."""
    count = math.ceil(math.log(high / low) / farthest - 1e-9) + 1
    return [float(value) for value in np.geomspace(low, high, count)]


class Offers:
    """Points in rows of one cycle length each; `told` and `out` are kept here."""

    def __init__(
        self, rates: list[float], cycles: list[float], cost: Cost, snap: Snap, budget_epochs: float | None,
        max_points: int | None,
    ) -> None:  # fmt: skip
        self.points = [snap(rate, cycle) for cycle in cycles for rate in rates]
        self.row_cycles = [cycle for _, cycle in self.points[:: len(rates)]]
        self.cost, self.budget_epochs, self.max_points = cost, budget_epochs, max_points
        self.costs_C = np.array([cost(*point) for point in self.points])
        if not (self.costs_C > 0).all():
            raise UserError("cost: must be above 0 at each point of the ranges")
        self.told: list[Point] = []
        self.out: dict[Point, str] = {}
        self.given_up: set[Point] = set()

    @property
    def spent_epochs(self) -> float:
        """Of all that is told and out, in the unit of `cost`; the same in any order."""
        return math.fsum(self.cost(*point) for point in [*self.told, *self.out])

    def settle(self, point: Point) -> None:
        self.told.append(point)
        self.out.pop(point, None)

    def give_up(self, point: Point) -> None:
        self.out.pop(point, None)
        self.given_up.add(point)

    def may_C(self) -> Truth:
        """Which points may be asked for."""
        gone = {*self.out, *self.given_up}
        may_C = np.array([point not in gone for point in self.points])
        if self.budget_epochs is not None:
            may_C &= self.costs_C <= self.budget_epochs * (1 + 1e-9) - self.spent_epochs
        if self.max_points is not None:
            may_C &= len(self.told) + len(self.out) < self.max_points
        return may_C

    def out_C(self) -> list[int]:
        """The numbers of the points that are out."""
        return [number for number, point in enumerate(self.points) if point in self.out]
