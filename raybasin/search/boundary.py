"""Which point is measured next, so that the basin's boundary is known soon, and how well it is known.

`line_model` says what is known, `look_ahead` what one more cell would add to it; here the two are put to use.
"""

from __future__ import annotations

import copy
import itertools
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from raybasin.errors import UserError
from raybasin.search import hubs, offers
from raybasin.search.line_model import MOST_LENGTHS, Array, Cell, LineModel, Posterior, Seen, Truth
from raybasin.search.look_ahead import LookAhead
from raybasin.search.offers import BUDGET, CANNOT_DECIDE, REPLICATE, RESOLUTION, Cost, Offers, Point, Snap

COLUMNS = ["cycle_ratio", "lr_ratio", "low", "high", "status"]
CERTAIN = (0.025, 0.5, 0.975)
"""The ends and the middle of a 95 % interval."""
NORMAL_95 = 1.96
FARTHEST = 0.1
"""Between the rates of two points, in log lr_ratio, at most."""
FINEST = 0.034
"""Between two places where the line may lie, in log lr_ratio, at most."""
FINEST_RESOLUTION = 1.05
"""Replicates spread by far more: a finer line would take hundreds of cells, and a step of the model for each."""
CELLS_AT_MOST = 60
"""Where more cells than these at the best point would be needed, more of the same does not decide."""
BRACKETED = 0.3
"""Standard error of log lr_ratio below which a further cell takes as much as the one before."""
FALLS = 3.5
"""By how many standard deviations of Kendall's tau, where rate and barrier have nothing to do with each other, the one
falls with the other before there is no line to be found."""
ENOUGH_ALONE = 0.7
"""Of the resolution: once an interval is so narrow but for what replicates have in common, more cells of them are in
vain."""
IMAGE_NOISE = 0.2
"""Standard error of a barrier over images, in thresholds, before any is told."""


def _agreement(places: Iterable[tuple[float, float]]) -> int:
    """Of (rate, barrier) the pairs that rise together minus those of which one falls, Kendall's S: each is compared
    with all of lower rates at once, since a folder may have thousands. A barrier that is no number counts for none."""
    lower: list[float] = []
    agree, in_order = 0, sorted(place for place in places if not math.isnan(place[1]))
    for _, same in itertools.groupby(in_order, key=lambda place: place[0]):
        barriers = [barrier for _, barrier in same]
        agree += sum(bisect_left(lower, each) + bisect_right(lower, each) - len(lower) for each in barriers)
        for barrier in barriers:
            insort(lower, barrier)
    return agree


class BoundarySearch:
    """Finds at which lr_ratio the barrier crosses a threshold, for each cycle_ratio of a range.

    What it says depends on what it was told and on nothing else: on no order, no random number, no clock.

        search = BoundarySearch(lr_ratio=(0.5, 64), cycle_ratio=(0.25, 4), threshold=0.02)
        while points := search.ask(4):
            for lr_ratio, cycle_ratio in points:
                search.tell(lr_ratio, cycle_ratio, *measured(lr_ratio, cycle_ratio))
        search.boundary([0.25, 1, 4])
    """

    def __init__(
        self, lr_ratio: tuple[float, float], cycle_ratio: tuple[float, float], threshold: float,
        resolution: float = 1.1, seed: int = 0, *, budget_epochs: float | None = None, max_points: int | None = None,
        cost: Cost = offers.cycle_ratio_of, snap: Snap = offers.to_4_digits,
    ) -> None:  # fmt: skip
        """
        Args:
            lr_ratio, cycle_ratio: the ranges, both ends included; (1, 1): one length.
            threshold: of the barrier, in the unit of what is told: a share (0.02: two points of error), or nats.
            resolution: it ends once the line is known to this factor of lr_ratio everywhere, as standard error: its
                95 % interval then reaches from the line divided by the square of it to the line times that.
            seed: has no effect, nothing is drawn; searches that draw take one.
            budget_epochs: of all cells that are told and out together, in the unit of `cost`.
            max_points: how many cells may be told and out together.
            cost: of one cell at (lr_ratio, cycle_ratio), in epochs; without it, its cycle_ratio.
            snap: the point that is measured where (lr_ratio, cycle_ratio) is asked for: only such are asked for.
        """
        offers.check_ranges(lr_ratio, cycle_ratio)
        if not 0 < threshold < math.inf:
            raise UserError(f"threshold: must be above 0, not {threshold:g}")
        if not FINEST_RESOLUTION <= resolution < math.inf:
            raise UserError(f"resolution: must be at least {FINEST_RESOLUTION}, not {resolution:g}")
        self.threshold, self.resolution, self.seed = threshold, resolution, seed
        rates = offers.spaced(*lr_ratio, min(math.log(resolution), FARTHEST))
        self._offers = Offers(rates, offers.spaced(*cycle_ratio, math.log(2)), cost, snap, budget_epochs, max_points)
        self._rows = [math.log(cycle) for cycle in self._offers.row_cycles]
        self._log_lr = math.log(lr_ratio[0]), math.log(lr_ratio[1])
        self._stride = math.ceil((self._log_lr[1] - self._log_lr[0]) / (len(rates) - 1) / FINEST)
        log_cycle = math.log(cycle_ratio[0]), math.log(cycle_ratio[1])
        self._model = LineModel(self._log_lr, log_cycle, threshold, (len(rates) - 1) * self._stride)
        self._cells: list[Cell] = []
        self._said: Seen | None = None
        self._known: tuple[Posterior, LookAhead] | None = None
        self._level: tuple[float, float] | None = None
        """What `hubs.level` says of the cells: the same whatever lengths are asked for."""

    # What was measured

    def tell(
        self, lr_ratio: float, cycle_ratio: float, barrier_error: float, barrier_error_se: float | None,
        replicate: int | None = None,
    ) -> None:  # fmt: skip
        """One cell, that is one replicate, whether asked for or not. The barrier is in the unit of `threshold`; NaN: it
        diverged, it is out. A standard error of None: it is not known, and taken for a usual one. Cells of the same
        `replicate`, 0 or more, have a hub and its seeds in common; None: as if each were a replicate of its own."""
        where = offers.check_point(lr_ratio, cycle_ratio)
        if not math.isfinite(barrier_error):
            barrier_error, barrier_error_se = math.inf, 0.0
        if barrier_error_se is None:
            barrier_error_se = IMAGE_NOISE * self.threshold
        if not 0 <= barrier_error_se < math.inf:
            raise UserError(f"{where}: its standard error must be 0 or more, not {barrier_error_se:g}")
        place, number = (math.log(lr_ratio), math.log(cycle_ratio)), -1 if replicate is None else replicate
        self._cells.append(Cell(*place, float(barrier_error), float(barrier_error_se), number))
        self._offers.settle((lr_ratio, cycle_ratio))
        self._said = self._known = self._level = None

    def give_up(self, lr_ratio: float, cycle_ratio: float) -> None:
        """A point that was asked for will not be told, and is not asked for again."""
        self._offers.give_up((lr_ratio, cycle_ratio))

    def expect(self, lr_ratio: float, cycle_ratio: float) -> None:
        """A point that was asked for before, of a search that was interrupted, is still out."""
        self._offers.out[lr_ratio, cycle_ratio] = self._word((lr_ratio, cycle_ratio))

    # What is measured next

    @property
    def spent_epochs(self) -> float:
        """What all cells that are told and out come to, in the unit of `cost`."""
        return self._offers.spent_epochs

    @property
    def stopped(self) -> str | None:
        """Why nothing more is asked for: `resolution`, `budget` or `cannot decide`; None while there is something."""
        if self._falls():
            return CANNOT_DECIDE
        if self._resolved_R().all():
            return RESOLUTION
        if not self._offers.may_C().any():
            return BUDGET
        return None if self._decidable() else CANNOT_DECIDE

    def ask(self, n: int) -> list[Point]:
        """Up to `n` points to measure next, none of them still out; [] when done, or while what is out may do."""
        if self.stopped:
            return []
        ahead = copy.copy(self._all_known()[1])
        for number in self._offers.out_C():
            ahead.take(number)
        chosen: list[Point] = []
        target = math.log(self.resolution) ** 2
        while len(chosen) < n:
            left_CR = ahead.target_variance_R * (1 - ahead.explained_CR())
            gain_C = np.log((target + ahead.target_variance_R) / (target + left_CR)).sum(1) / self._offers.costs_C
            gain_C[~self._offers.may_C()] = -1
            best = int(np.argmax(gain_C))
            if gain_C[best] <= 0:
                break
            point = self._offers.points[best]
            self._offers.out[point] = self._word(point)
            chosen.append(point)
            ahead.take(best)
        return chosen

    def why(self, lr_ratio: float, cycle_ratio: float) -> str:
        """Of a point that is out: `replicate`, `bracket` (the line is not yet known to a factor of 2) or `refine`."""
        return self._offers.out[lr_ratio, cycle_ratio]

    def _word(self, point: Point) -> str:
        if point in self._offers.told:
            return REPLICATE
        low, _, high = self._quantiles(self._all_known()[0], [math.log(point[1])])[0]
        return "bracket" if high - low > math.log(2) else "refine"

    def _seen(self) -> Seen:
        """What the cells say of the line."""
        if self._said is None:
            self._said = self._model.seen(self._cells)
        return self._said

    def _all_known(self) -> tuple[Posterior, LookAhead]:
        """What is known of the line, and what further cells would tell of it."""
        if self._known is None:
            known = self._model.posterior(self._seen(), self._rows)
            rows = [known.log_cycle_K.index(row) for row in self._rows]
            inside = slice(self._model.outside, len(known.line_L) - self._model.outside)
            errors = [cell.barrier_se for cell in self._cells if math.isfinite(cell.barrier)]
            noise = float(np.median(errors)) / self.threshold if errors else IMAGE_NOISE
            self._known = known, LookAhead(known, rows, inside, self._stride, noise)
        return self._known

    def _quantiles(self, known: Posterior, log_cycles: Sequence[float]) -> Array:
        """The ends and the middle of the line's interval at each length, which speak of further replicates, too."""
        found_K3 = known.quantiles(log_cycles, CERTAIN)
        if self._level is None:
            self._level = hubs.level(self._model, self._seen(), known.at(self._seen().log_cycle_K))
        shift, deviation = self._level
        apart_K3 = found_K3 - found_K3[:, 1:2]
        widened_K3 = np.sign(apart_K3) * np.hypot(apart_K3, NORMAL_95 * deviation * np.array([1, 0, 1]))
        return found_K3[:, 1:2] + shift + widened_K3

    def _resolved_R(self) -> Truth:
        return self._is_narrow_R(self._quantiles(self._all_known()[0], self._rows), math.log(self.resolution))

    def _is_narrow_R(self, found_R3: Array, deviation: float) -> Truth:
        """Whether the line's interval is as narrow as that of this standard deviation, or lies beyond an end of the
        range but for one step."""
        low_R, _, high_R = found_R3.T
        step, (lowest, highest) = math.log(self.resolution), self._log_lr
        return (high_R - low_R <= 2 * NORMAL_95 * deviation) | (low_R >= highest - step) | (high_R <= lowest + step)

    def _decidable(self) -> bool:
        """Whether there is a row that is not yet resolved and that not too many cells would resolve.

        After m cells that each take the share e of the variance there is, v is v / (1 + m e / (1 - e)); where the
        line is not yet bracketed, cells take more than that.
        """
        known, ahead = self._all_known()
        share_R = np.maximum(ahead.explained_CR().max(0), 1e-9)
        variance_R = np.minimum(ahead.target_variance_R, BRACKETED**2)
        needed_R = (variance_R / math.log(self.resolution) ** 2 - 1) * (1 - share_R) / share_R
        is_open_R = ~self._resolved_R()
        if self._replicates_are_spent():  # what they leave open in common, more cells of them do not decide
            deviation = ENOUGH_ALONE * math.log(self.resolution)
            is_open_R &= ~self._is_narrow_R(known.quantiles(self._rows, CERTAIN), deviation)
        return bool((is_open_R & (needed_R <= CELLS_AT_MOST)).any())

    def _replicates_are_spent(self) -> bool:
        """Whether the cells are so many for their replicates that there can be no further ones: see `lines.spread`."""
        replicates = {cell.replicate for cell in self._cells} - {-1}
        return bool(replicates) and len(self._cells) >= offers.CELLS_OF_A_HUB * (len(replicates) + 1)

    def _falls(self) -> bool:
        """Whether barriers fall with the rate though some are out: then nothing here speaks of a line. By Kendall's
        tau, whose variance without ties is n (n - 1) (2n + 5) / 18; ties make it smaller."""
        if not any(cell.barrier > self.threshold for cell in self._cells):
            return False
        n = len(self._cells)
        agree = _agreement((cell.log_lr, cell.barrier) for cell in self._cells)
        return bool(agree < -FALLS * math.sqrt(n * (n - 1) * (2 * n + 5) / 18))

    # What is known

    def boundary(self, cycle_ratios: Iterable[float]) -> pd.DataFrame:
        """The line at some cycle lengths, each with its 95 % interval.

        Status `found`: the interval lies in the range; `all_in`, `all_out`: it lies beyond the upper or lower end, to
        the resolution; `undecided`: the line may be in the range or not, or barriers fall with the rate. An interval
        that reaches over an end of the range is open there: 0 or inf.
        """
        cycles = [float(cycle) for cycle in cycle_ratios]
        if any(not 0 < cycle < math.inf for cycle in cycles):
            raise UserError(f"cycle_ratios: must all be above 0, not {cycles}")
        if self._falls():
            rows = [(cycle, math.nan, 0.0, math.inf, "undecided") for cycle in cycles]
            return pd.DataFrame(rows, columns=COLUMNS)
        rows, seen = [], self._seen()
        for start in range(0, len(cycles), MOST_LENGTHS):  # memory grows with the square of their number
            some = cycles[start : start + MOST_LENGTHS]
            logs = [math.log(cycle) for cycle in some]
            quantiles = self._quantiles(self._model.posterior(seen, logs), logs)
            rows += [self._row(cycle, *row) for cycle, row in zip(some, quantiles, strict=True)]
        return pd.DataFrame(rows, columns=COLUMNS)

    def _row(self, cycle: float, low: float, line: float, high: float) -> tuple[float, float, float, float, str]:
        lowest, highest = self._log_lr
        step, below, above = math.log(self.resolution), low < lowest, high > highest
        if low >= highest - step and above:
            status = "all_in"
        elif high <= lowest + step and below:
            status = "all_out"
        else:
            status = "undecided" if below or above else "found"
        lr_ratio = math.exp(line) if lowest <= line <= highest and status in ("found", "undecided") else math.nan
        return (
            cycle, lr_ratio, 0.0 if below else math.exp(min(low, highest)),
            math.inf if above else math.exp(max(high, lowest)), status,
        )  # fmt: skip
