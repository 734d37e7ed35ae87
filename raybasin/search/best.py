"""Which point is measured next, so that the point with the best score is known soon.

The score is a Gaussian process of log lr_ratio and log cycle_ratio, plus noise between replicates. Its lengths, its
size and the noise take the values of a grid, weighed by their evidence, which is exact. The next cell is the one by
which the largest posterior mean is expected to grow most per epoch: the knowledge gradient (Frazier, Powell and Dayanik
2009), which asks for one more replicate of an old point as it does for a new one.

Axes: C points that may be measured, N cells that were told, at P places, H values of the grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from raybasin.errors import UserError
from raybasin.search import offers
from raybasin.search.line_model import Array
from raybasin.search.offers import BUDGET, CANNOT_DECIDE, REPLICATE, RESOLUTION, Cost, Offers, Point, Snap

LENGTH_LR, LENGTH_CYCLE = (0.5, 1.0, 2.0), (1.0, 2.5)
"""Over which log lr_ratio and log cycle_ratio scores go together."""
SIZE, NOISE = (0.7, 1.5, 3.0), (0.05, 0.1, 0.2, 0.35, 0.6, 1.0)
"""Standard deviations of the score and of its replicates, in standard deviations of all that were told."""
ROUGH, ROUGH_LENGTHS = (0.0, 0.25, 0.6), (0.3, 0.5)
"""Share of the score's variance that goes together over a short way only, and that way: edges, which a smooth score has
not."""
FARTHEST = 0.25
"""Between the rates of two points, in log lr_ratio."""
FIRST = 8
"""So many scores are told before any is compared: till then points are spread, over long cycles too."""
ALL_DIVERGE = 20
"""After so many cells without a score, and fewer than `FIRST` with one, more of the same do not decide."""
WORTH_NOTHING = 0.01
"""Below this share of what is still open, the best next cell is not worth measuring."""
FLATTEST = 0.05
"""Noise is taken to be at least this share of what it is near the top, however far below it a score lies."""
NEGLIGIBLE = 1e-9
"""Below this share of the largest weight, a value of the grid adds nothing to the covariance."""
NORMAL_NODES, NORMAL_WEIGHTS = np.polynomial.hermite_e.hermegauss(9)
NORMAL_WEIGHTS = NORMAL_WEIGHTS / NORMAL_WEIGHTS.sum()


class Scored(NamedTuple):
    """One replicate at one point."""

    log_lr: float
    log_cycle: float
    score: float


@dataclass(frozen=True)
class Best:
    """The point of the largest expected score, the score with its 95 % interval, and what is still open."""

    lr_ratio: float
    cycle_ratio: float
    score: float
    low: float
    high: float
    regret: float
    """By how much the best of all points is expected to be better than this one."""


@dataclass(frozen=True)
class Scale:
    """Scores as they are near the top, and their logarithm below: by how much a point is worse than the best matters,
    by how much one beyond the boundary is worse than another does not, and would make the model see waves there."""

    top: float
    unit: float

    def bent(self, score: Array | float) -> Array:
        below = np.maximum(self.top - np.asarray(score), 0)
        return np.asarray(score) + below - self.unit * np.log1p(below / self.unit)

    def slope(self, score: Array) -> Array:
        """Of `bent`: by how much noise counts less there."""
        return self.unit / (self.unit + np.maximum(self.top - score, 0))

    def straight(self, bent: float) -> float:
        below = max(self.top - bent, 0.0)
        return bent + below - self.unit * math.expm1(below / self.unit)


@dataclass(frozen=True)
class Known:
    """Of the bent score at all points."""

    mean_C: Array
    covariance_CC: Array
    noise_variance: float
    """Of one replicate."""
    scale: Scale


class BestSearch:
    """Finds the point with the largest score (`sign=-1`: the smallest) in ranges of lr_ratio and cycle_ratio.

    `ask`, `give_up` and `stopped` are as in BoundarySearch. A score of NaN, of a cell that diverged, is as bad as the
    worst that was told.
    """

    def __init__(
        self, lr_ratio: tuple[float, float], cycle_ratio: tuple[float, float], tolerance: float, *, sign: int = 1,
        budget_epochs: float | None = None, max_points: int | None = None,
        cost: Cost = offers.cycle_ratio_of, snap: Snap = offers.to_4_digits,
    ) -> None:  # fmt: skip
        """`tolerance`: it ends once the best of all points is expected to be better than `best()` by less, in units of
        the score."""
        if not 0 < tolerance < math.inf:
            raise UserError(f"tolerance: must be above 0, not {tolerance:g}")
        offers.check_ranges(lr_ratio, cycle_ratio)
        self.tolerance, self.sign = tolerance, sign
        rates, cycles = offers.spaced(*lr_ratio, FARTHEST), offers.spaced(*cycle_ratio, math.log(2))
        self._offers = Offers(rates, cycles, cost, snap, budget_epochs, max_points)
        self._place_C2 = np.log(np.array(self._offers.points))
        self._cells: list[Scored] = []
        self._known: Known | None = None

    def tell(self, lr_ratio: float, cycle_ratio: float, score: float) -> None:
        offers.check_point(lr_ratio, cycle_ratio)
        value = self.sign * float(score) if math.isfinite(score) else -math.inf
        self._cells.append(Scored(math.log(lr_ratio), math.log(cycle_ratio), value))
        self._offers.settle((lr_ratio, cycle_ratio))
        self._known = None

    def give_up(self, lr_ratio: float, cycle_ratio: float) -> None:
        """A point that was asked for will not be told, and is not asked for again."""
        self._offers.give_up((lr_ratio, cycle_ratio))

    def expect(self, lr_ratio: float, cycle_ratio: float) -> None:
        """A point that was asked for before, of a search that was interrupted, is still out."""
        self._offers.out[lr_ratio, cycle_ratio] = self._word((lr_ratio, cycle_ratio))

    @property
    def spent_epochs(self) -> float:
        return self._offers.spent_epochs

    @property
    def stopped(self) -> str | None:
        """Why nothing more is asked for, in the words of BoundarySearch; None while there is something."""
        if not self._offers.may_C().any():
            return BUDGET
        if len(self._finite()) < FIRST:
            return CANNOT_DECIDE if len(self._cells) - len(self._finite()) >= ALL_DIVERGE else None
        known = self._posterior()
        open_regret = _regret(known)
        if open_regret <= self.tolerance:
            return RESOLUTION
        return CANNOT_DECIDE if _gain_C(known).max() < WORTH_NOTHING * open_regret else None

    def ask(self, n: int) -> list[Point]:
        """Up to `n` points to measure next, none of them still out; [] when done, or while what is out may do."""
        if self.stopped:
            return []
        known, here = self._posterior(), self._offers
        chosen: list[Point] = []
        for number in here.out_C():
            known = _after(known, number)
        while len(chosen) < n and here.may_C().any():
            early = len(self._finite()) + len(here.out) < FIRST
            worth_C = np.diag(known.covariance_CC) * np.sqrt(here.costs_C) if early else _gain_C(known)
            best = int(np.argmax(np.where(here.may_C(), worth_C / here.costs_C, -np.inf)))
            point = here.points[best]
            here.out[point] = self._word(point)
            chosen.append(point)
            known = _after(known, best)
        return chosen

    def _word(self, point: Point) -> str:
        if point in self._offers.told:
            return REPLICATE
        return "explore" if len(self._finite()) + len(self._offers.out) < FIRST else "refine"

    def why(self, lr_ratio: float, cycle_ratio: float) -> str:
        """Of a point that is out: `explore`, `refine` or `replicate`."""
        return self._offers.out[lr_ratio, cycle_ratio]

    def best(self) -> Best:
        if not self._finite():
            raise UserError("a search for the best point that was told of no score yet: tell it of one first")
        known = self._posterior()
        best = int(np.argmax(known.mean_C))
        half = 1.96 * math.sqrt(known.covariance_CC[best, best])
        middle = float(known.mean_C[best])
        ends = (self.sign * known.scale.straight(bent) for bent in (middle - half, middle, middle + half))
        low, score, high = sorted(ends)
        lr_ratio, cycle_ratio = self._offers.points[best]
        return Best(lr_ratio, cycle_ratio, score, low, high, _regret(known))

    def _finite(self) -> list[float]:
        return [cell.score for cell in self._cells if math.isfinite(cell.score)]

    def _posterior(self) -> Known:
        if self._known is None:
            self._known = _posterior(sorted(self._cells), self._place_C2)
        return self._known


def _kernel(one_N2: Array, other_N2: Array, lengths: list[float]) -> Array:
    """Matern's with smoothness 5/2."""
    apart = np.sqrt(5) * np.sqrt((((one_N2[:, None] - other_N2) / lengths) ** 2).sum(-1))
    return (1 + apart + apart**2 / 3) * np.exp(-apart)


def _posterior(cells: list[Scored], place_C2: Array) -> Known:
    """Mean and covariance over the grid's values, by their evidence. Cells at one place count as their mean and the
    squares around it, which is exact; for all sizes and noises the places' covariance is diagonalised once."""
    finite = np.array([cell.score for cell in cells if math.isfinite(cell.score)])
    bend = _scale(finite)
    told_N = np.array([max(cell.score, finite.min(initial=math.inf)) for cell in cells])
    score_N = bend.bent(told_N)
    finite = bend.bent(finite)
    center = finite.mean() if len(finite) else 0.0
    scale = max(float(finite.std()), 1e-6) if len(finite) > 1 else 1.0
    apart_N = (score_N - center) / scale if len(finite) else np.zeros(len(cells))
    place_N2 = np.array([cell[:2] for cell in cells]).reshape(-1, 2)
    place_P2, place_N, count_P = np.unique(place_N2, axis=0, return_inverse=True, return_counts=True)
    place_N = place_N.ravel()
    apart_P = np.bincount(place_N, apart_N, len(place_P2)) / count_P
    slope_P = np.maximum(bend.slope(np.bincount(place_N, told_N, len(place_P2)) / count_P), FLATTEST)
    square_within = (((apart_N - apart_P[place_N]) / slope_P[place_N]) ** 2).sum()
    root_P = np.sqrt(count_P) / slope_P
    shapes, evidences, means = [], [], []
    for *lengths, rough in product(LENGTH_LR, LENGTH_CYCLE, ROUGH):
        own_CC, across_PC, inner_PP = (
            (1 - rough) * _kernel(one, other, lengths) + rough * _kernel(one, other, list(ROUGH_LENGTHS))
            for one, other in ((place_C2, place_C2), (place_P2, place_C2), (place_P2, place_P2))
        )
        value_P, vector_PP = np.linalg.eigh(root_P[:, None] * inner_PP * root_P)
        turned_P, loading_PC = vector_PP.T @ (root_P * apart_P), vector_PP.T @ (root_P[:, None] * across_PC)
        for size, noise in product(SIZE, NOISE):
            variance_P = size**2 * np.maximum(value_P, 0) + noise**2
            misfit = (turned_P**2 / variance_P).sum() + square_within / noise**2
            volume = np.log(variance_P).sum() / 2 + (len(cells) - len(place_P2)) * math.log(noise)
            evidences.append(-misfit / 2 - volume)
            means.append(size**2 * loading_PC.T @ (turned_P / variance_P))
            shapes.append((size**2, noise**2, own_CC, size**2 * loading_PC / np.sqrt(variance_P)[:, None]))
    weight_H, mean_HC = np.exp(np.array(evidences) - logsumexp(evidences)), np.array(means)
    mean_C = weight_H @ mean_HC
    covariance_CC = np.einsum("h,hc,hd->cd", weight_H, mean_HC - mean_C, mean_HC - mean_C)
    for weight, (size_squared, _, own_CC, known_PC) in zip(weight_H, shapes, strict=True):
        if weight > NEGLIGIBLE * weight_H.max():
            covariance_CC += weight * (size_squared * own_CC - known_PC.T @ known_PC)
    noise_variance = scale**2 * float(weight_H @ np.array([noise_squared for _, noise_squared, *_ in shapes]))
    return Known(center + scale * mean_C, scale**2 * covariance_CC, noise_variance, bend)


def _scale(score_N: Array) -> Scale:
    """From the upper half of what was told."""
    if len(score_N) < 2:
        return Scale(float(score_N.max(initial=0.0)), 1.0)
    middle, top = np.quantile(score_N, [0.5, 0.9])
    return Scale(float(top), max(float(top - middle), 1e-6))


def _gain_C(known: Known) -> Array:
    """By how much the largest mean is expected to grow by one cell at each point."""
    variance_C = np.diag(known.covariance_CC) + known.noise_variance
    moved_CC = known.covariance_CC / np.sqrt(variance_C)[:, None]
    largest_QC = [(known.mean_C + node * moved_CC).max(1) for node in NORMAL_NODES]
    return np.maximum(NORMAL_WEIGHTS @ np.array(largest_QC) - known.mean_C.max(), 0)


def _after(known: Known, point: int) -> Known:
    """As if one cell had been measured at this point, with what was expected."""
    column_C = known.covariance_CC[:, point] / math.sqrt(known.covariance_CC[point, point] + known.noise_variance)
    return replace(known, covariance_CC=known.covariance_CC - np.outer(column_C, column_C))


def _regret(known: Known) -> float:
    """How much better the best of all points is expected to be than the one of the largest mean.

    By draws that are the same for each question, so that the answer is, too.
    """
    count = len(known.mean_C)
    jitter = 1e-9 * np.trace(known.covariance_CC) / count + 1e-15
    lower_CC = np.linalg.cholesky(known.covariance_CC + jitter * np.eye(count))
    draws_CS = lower_CC @ np.random.default_rng(0).standard_normal((count, 256))
    best = int(np.argmax(known.mean_C))
    apart_CS = known.mean_C[:, None] + draws_CS
    return float((apart_CS.max(0) - apart_CS[best]).mean())
