"""The searches of a sweep: one for each method that explores and each checkpoint, and which cell is measured next."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from raybasin.search.best import BestSearch
from raybasin.search.boundary import BoundarySearch
from raybasin.search.offers import CELLS_OF_A_HUB
from raybasin.sweep import points
from raybasin.sweep.criterion import Criterion
from raybasin.sweep.points import MapPoint
from raybasin.sweep.settings import Settings

Line = tuple[str, str]
"""Method, checkpoint."""


def spread(on_line: Mapping[int, int], at_point: Collection[int], most: int) -> int:
    """Which replicate of a point is measured next, below `most`: of those that the line has begun, and one more once
    they have enough cells, the one with fewest cells that this point has not.

    Replicates of a line have a hub and its seeds in common, so that few cells of each of many say more of the mean
    over replicates than many cells of one.

    Args:
        on_line: how many cells of the line each replicate has.
        at_point: the replicates that the point has; fewer than `most`.
    """
    begun = min(most, 1 + sum(on_line.values()) // CELLS_OF_A_HUB)
    free = [number for number in range(most) if number not in at_point]
    if among := [number for number in free if number < begun]:
        return min(among, key=lambda number: (on_line.get(number, 0), number))
    return free[0]


@dataclass(frozen=True)
class Wanted:
    """A cell that is to be measured."""

    point: MapPoint
    replicate: int
    """From 0."""
    why: str
    """`BoundarySearch.why`, or `BestSearch.why`."""


@dataclass(frozen=True)
class Lines:
    searches: Mapping[Line, BoundarySearch | BestSearch]
    score: str
    """The column of `cells` that a search for the best point goes by."""
    criterion: Criterion
    """What a search for the boundary goes by."""
    most: int
    """Replicates of a point, at most."""
    there: defaultdict[MapPoint, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Which replicates each point has, measured or to be measured."""

    def tell(self, row: Mapping[str, Any]) -> None:
        """A row of `cells`, of a point that the search chooses among."""
        point = points.of_row(row)
        search = self._search(point)
        self.there[point].add(row["replicate"])
        if isinstance(search, BoundarySearch):
            search.tell(point.lr_ratio, point.cycle_ratio, *self.criterion.deciding(row), row["replicate"])
        else:
            score = row[self.score]
            search.tell(point.lr_ratio, point.cycle_ratio, math.nan if score is None else score)
        self._cap(point)

    def expect(self, point: MapPoint, replicate: int) -> None:
        """A cell was asked for before, by a run that was interrupted, and is not there."""
        self.there[point].add(replicate)
        self._search(point).expect(point.lr_ratio, point.cycle_ratio)

    def give_up(self, point: MapPoint) -> None:
        """A cell that was asked for has failed."""
        self._search(point).give_up(point.lr_ratio, point.cycle_ratio)

    def next(self) -> Wanted | None:
        """The next cell to measure, of the line on which least has been spent; None when nothing is to be measured, or
        not before what is out is told."""
        for (method, checkpoint), search in sorted(self.searches.items(), key=lambda item: item[1].spent_epochs):
            for lr_ratio, cycle_ratio in search.ask(1):
                point = MapPoint(method, checkpoint, lr_ratio, cycle_ratio)
                line = [on for at, on in self.there.items() if (at.method, at.checkpoint) == (method, checkpoint)]
                replicate = spread(Counter(itertools.chain(*line)), self.there[point], self.most)
                self.there[point].add(replicate)
                return Wanted(point, replicate, search.why(lr_ratio, cycle_ratio))
        return None

    @property
    def stopped(self) -> dict[Line, str | None]:
        """Why each search has ended; None of one that has not."""
        return {line: search.stopped for line, search in self.searches.items()}

    def _search(self, point: MapPoint) -> BoundarySearch | BestSearch:
        return self.searches[point.method, point.checkpoint]

    def _cap(self, point: MapPoint) -> None:
        if len(self.there[point]) >= self.most:
            self._search(point).give_up(point.lr_ratio, point.cycle_ratio)


def of(settings: Settings) -> Lines:
    """The searches that `search` asks for, which know nothing yet. They share budget and points."""
    search, among = settings.spec.search, points.choices(settings)
    lines = list(itertools.product(among["method"], among["checkpoint"]))
    assert search.lr_ratio and search.cycle_ratio
    ranges, score = (search.lr_ratio, search.cycle_ratio), f"val_{search.of}_accuracy"
    criterion = settings.spec.basin.criterion
    budget = search.budget_epochs / len(lines) if search.budget_epochs else None
    most = max(1, search.points // len(lines)) if search.points else None

    def limits(method: str, checkpoint: str) -> dict[str, Any]:
        snap = partial(_snapped, settings, method, checkpoint)
        return {"budget_epochs": budget, "max_points": most, "cost": _cost(settings, method), "snap": snap}

    if search.kind == "best":
        best = {line: BestSearch(*ranges, search.tolerance, **limits(*line)) for line in lines}
        return Lines(best, score, criterion, settings.spec.replicates)
    boundary = {
        line: BoundarySearch(*ranges, criterion.threshold, search.resolution, **limits(*line)) for line in lines
    }
    return Lines(boundary, score, criterion, settings.spec.replicates)


def _cost(settings: Settings, method: str) -> Callable[[float, float], float]:
    """Epochs of a cell without its hub, which all cells of its replicate share."""
    branches = settings.spec.methods[method].n_members - 1
    return lambda lr_ratio, cycle_ratio: branches * settings.cycle_steps(cycle_ratio) / settings.steps_per_epoch


def _snapped(
    settings: Settings, method: str, checkpoint: str, lr_ratio: float, cycle_ratio: float
) -> tuple[float, float]:
    point = points.snapped(settings, MapPoint(method, checkpoint, lr_ratio, cycle_ratio))
    return point.lr_ratio, point.cycle_ratio
