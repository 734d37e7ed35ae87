"""What measured cells say about the line on which the barrier crosses the threshold.

The model. The line is log lr_ratio = b(log cycle_ratio), a Gaussian process: a level, a slope and smooth deviations,
small or large. At a distance d = log lr_ratio - b from it the mean barrier is, in units of the threshold, the logistic
f(d) = h / (1 + (h - 1) exp(-k d)), which is 1 on the line, exponential inside and h far outside. A replicate is
f(d) times log-normal noise of mean 1, plus the noise of the images, cut off at 0. A cell that diverged is outside.

The posterior. Steepness k, height h, spread of the replicates and size of the deviations take the values of a grid.
For each combination the likelihood of b at one cycle length is a function of one number: it is tabulated, and what the
lengths say of each other is worked out by expectation propagation (Minka 2001; Rasmussen and Williams 2006, section
3.6). All of it is deterministic, and no step takes the shape of the likelihood for a Gaussian's: a length at which
nothing but the inside was seen has its line anywhere above.

Axes: H combinations of the grid, K cycle lengths, L places where the line may lie, in log lr_ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_expit, log_ndtr, logsumexp

Array = NDArray[np.floating]
Truth = NDArray[np.bool_]
Numbers = NDArray[np.intp]

STEEPNESS = (1.2, 1.8, 2.6, 3.8, 5.5, 8.0, 12.0)
"""k: by how many powers of e the barrier grows where log lr_ratio grows by one, inside."""
HEIGHT = (1.5, 3.0, 6.0, 15.0)
"""h: where the barrier ends, in thresholds."""
SPREAD = (0.15, 0.3, 0.5, 0.8, 1.2)
"""Standard deviation between replicates as a share of their mean."""
DEVIATIONS = ((0.12, 2.0, 0.4), (0.45, 2.0, 0.4), (0.45, 0.7, 0.2))
"""Of the line from a straight one: standard deviation, in log lr_ratio; over which log cycle_ratio deviations go
together; and the prior's share. Small and smooth, large and smooth, or with kinks and steps."""
SLOPE = 0.6
"""Standard deviation of the line's slope: at -1 a rate that is twice as large leaves after half the steps."""
LEVEL = 0.4
"""Standard deviation of the line's level, as a share of the range of log lr_ratio."""
SHAPE_ERROR = 0.2
"""How far the logarithm of the barrier may be from the logistic's, as a share of its distance from the threshold's."""
FLOOR = 0.1
"""Noise of the barrier that no standard error tells of, in thresholds: inside it is small, not 0."""
MARGIN = 1.5
"""How far outside the range the line is looked for, in log lr_ratio."""
MOST_LENGTHS = 24
"""Where cells have more lengths than these, each counts at the nearest of so many, evenly apart in log cycle_ratio."""
MOST_TABLES = 1000
"""So many cells' likelihoods are kept, 0.2 MB each."""
SWEEPS, DAMPING, CONVERGED = 15, 0.9, 1e-3
HOPELESS = 30.0
"""By how much the largest log likelihood of a combination may be below that of the best."""
NEGLIGIBLE = {2: 1e-9, 4: 1e-6, 6: 1e-4}
"""After so many sweeps, combinations of a smaller weight, relative to the largest, are left out."""


class Cell(NamedTuple):
    """One replicate at one point. A barrier that is not finite: it diverged."""

    log_lr: float
    log_cycle: float
    barrier: float
    barrier_se: float
    replicate: int = -1
    """-1: not known, as if each cell were a replicate of its own."""


@dataclass(frozen=True)
class Shapes:
    """Of the barrier, in some combinations of the grid."""

    steepness_H: Array
    height_H: Array
    spread_H: Array

    def __getitem__(self, kept: Numbers) -> Shapes:
        return Shapes(self.steepness_H[kept], self.height_H[kept], self.spread_H[kept])


def mean_barrier(distance_: Array, shapes: Shapes) -> Array:
    """In thresholds, with an axis H before those of `distance_`."""
    steepness, height = (column.reshape(-1, *[1] * distance_.ndim) for column in (shapes.steepness_H, shapes.height_H))
    return height / (1 + (height - 1) * np.exp(np.clip(-steepness * distance_, -300, 300)))


def noise_variance(mean_H_: Array, shapes: Shapes) -> Array:
    """Of replicates, and of what no logistic tells of a barrier far from the threshold."""
    return mean_H_**2 * (shapes.spread_H[:, None] ** 2 + (SHAPE_ERROR * np.log(mean_H_)) ** 2)


class AtRate(NamedTuple):
    """What the model says of a barrier at one rate, wherever the line is: cells of that rate have it in common."""

    log_lr: float
    mean_HL: Array
    variance_HL: Array


def at_rate(log_lr: float, line_L: Array, shapes: Shapes) -> AtRate:
    mean_HL = mean_barrier(log_lr - line_L, shapes)
    return AtRate(log_lr, mean_HL, noise_variance(mean_HL, shapes))


def log_likelihood_HL(cell: Cell, threshold: float, line_L: Array, shapes: Shapes, rate: AtRate) -> Array:
    """Of one cell at that rate, up to a constant, for each combination and each place of the line.

    The barrier plus 2 image errors is taken as log-normal, with the mean and the variance of the product and the sum in
    the model. That is the noise of replicates alone where the barrier is large, and nearly a normal one where it is
    small.
    """
    if not np.isfinite(cell.barrier):
        steep_HL = shapes.steepness_H[:, None] * (cell.log_lr - line_L)
        return np.logaddexp(np.log(0.98) + log_expit(steep_HL), np.log(0.01))
    barrier, noise = cell.barrier / threshold, np.hypot(cell.barrier_se / threshold, FLOOR)
    shift = 2 * noise
    shifted_HL = rate.mean_HL + shift
    log_variance_HL = np.log1p((rate.variance_HL + noise**2) / shifted_HL**2)
    log_mean_HL = np.log(shifted_HL) - log_variance_HL / 2
    if barrier <= 0:
        return log_ndtr((np.log(shift) - log_mean_HL) / np.sqrt(log_variance_HL))
    return -((np.log(barrier + shift) - log_mean_HL) ** 2 / log_variance_HL + np.log(log_variance_HL)) / 2


class Seen(NamedTuple):
    """The likelihoods of all cells, for each shape of the barrier."""

    log_cycle_K: list[float]
    log_like_HKL: Array
    of_replicate: dict[tuple[int, int], Array]
    """The same [H, L] of the cells of one replicate at one length, by both; a cell of no known replicate has a number
    below 0 to itself. Nothing where no replicate is known."""


@dataclass(frozen=True)
class Posterior:
    """What is known of the line at some cycle lengths."""

    shapes: Shapes
    weight_H: Array
    log_cycle_K: tuple[float, ...]
    line_L: Array
    density_HKL: Array
    """Of the line at each length; sums to 1 over L."""
    covariance_HKK: Array

    def quantiles(self, log_cycles: Sequence[float], shares: Sequence[float]) -> Array:
        """Below which places the line lies with these probabilities: a row for each length."""
        half = (self.line_L[1] - self.line_L[0]) / 2
        edges = np.append(self.line_L - half, self.line_L[-1] + half)
        rows = [self.log_cycle_K.index(log_cycle) for log_cycle in log_cycles]
        below_KL = np.cumsum(np.einsum("h,hkl->kl", self.weight_H, self.density_HKL[:, rows]), axis=1)
        return np.array([np.interp(shares, np.concatenate([[0.0], below_L]), edges) for below_L in below_KL])

    def at(self, log_cycles: Sequence[float]) -> Array:
        """The expected line, as log lr_ratio, at each of these lengths."""
        line_K = np.einsum("h,hkl,l->k", self.weight_H, self.density_HKL, self.line_L)
        return line_K[[self.log_cycle_K.index(log_cycle) for log_cycle in log_cycles]]


class LineModel:
    """The prior, and the likelihoods of all cells that it has seen, which are the costly part."""

    def __init__(
        self, log_lr: tuple[float, float], log_cycle: tuple[float, float], threshold: float, steps: int
    ) -> None:
        """`steps`: into how many the range of log_lr is divided; the line lies on one of them, or outside."""
        self.threshold = threshold
        self.center, self.cycle_center = sum(log_lr) / 2, sum(log_cycle) / 2
        self.level = LEVEL * (log_lr[1] - log_lr[0])
        self.step = (log_lr[1] - log_lr[0]) / steps
        self.outside = int(np.ceil(MARGIN / self.step))
        self.line_L = log_lr[0] + self.step * np.arange(-self.outside, steps + self.outside + 1)
        self.shapes = Shapes(*np.array(list(product(STEEPNESS, HEIGHT, SPREAD))).T)
        self._tables: dict[Cell, Array] = {}
        self._rate: AtRate | None = None

    def table_HL(self, cell: Cell) -> Array:
        found = self._tables.get(cell)
        if found is None:
            if self._rate is None or self._rate.log_lr != cell.log_lr:  # cells come in the order of their rates
                self._rate = at_rate(cell.log_lr, self.line_L, self.shapes)
            found = log_likelihood_HL(cell, self.threshold, self.line_L, self.shapes, self._rate)
            if len(self._tables) < MOST_TABLES:
                self._tables[cell] = found
        return found

    def prior_covariance_HKK(self, log_cycle_K: Array) -> Array:
        """For each of the deviations, which vary slowest: the likelihoods do not depend on them."""
        slope_K = log_cycle_K - self.cycle_center
        straight_KK = self.level**2 + SLOPE**2 * np.outer(slope_K, slope_K) + 1e-8 * np.eye(len(log_cycle_K))
        each = []
        for deviation, length, _ in DEVIATIONS:
            apart_KK = np.sqrt(5) * np.abs(log_cycle_K[:, None] - log_cycle_K) / length
            each.append(straight_KK + deviation**2 * (1 + apart_KK + apart_KK**2 / 3) * np.exp(-apart_KK))
        return np.repeat(each, len(self.shapes.steepness_H), axis=0)

    def seen(self, cells: Sequence[Cell]) -> Seen:
        """What cells say of the line, each at its own length; their order does not matter."""
        lengths, place = _lengths(cells)
        log_like_HKL = np.zeros((len(self.shapes.steepness_H), len(lengths), len(self.line_L)))
        of_replicate: dict[tuple[int, int], Array] = {}
        names_one = any(cell.replicate >= 0 for cell in cells)
        for number, cell in enumerate(sorted(cells)):
            table_HL, row = self.table_HL(cell), place[cell.log_cycle]
            log_like_HKL[:, row] += table_HL
            if names_one:
                key = (cell.replicate if cell.replicate >= 0 else -1 - number, row)
                if key in of_replicate:
                    of_replicate[key] += table_HL
                else:
                    of_replicate[key] = table_HL.copy()
        return Seen(lengths, log_like_HKL, of_replicate)

    def posterior(self, seen: Seen, log_cycles: Sequence[float]) -> Posterior:
        """At any cycle lengths."""
        told, n_shapes = seen.log_cycle_K, len(self.shapes.steepness_H)
        log_like_HKL = np.tile(seen.log_like_HKL, (len(DEVIATIONS), 1, 1))
        every = told + sorted(set(log_cycles) - set(told))
        covariance_HKK = self.prior_covariance_HKK(np.array(every))
        prior_HKK = covariance_HKK[:, : len(told), : len(told)]
        log_prior_H = np.log(np.repeat([share for _, _, share in DEVIATIONS], n_shapes))
        sites = _expectation_propagation(log_like_HKL, prior_HKK, log_prior_H, self.line_L - self.center)
        padded = ((0, 0), (0, len(every) - len(told)))
        mean_HK, after_HKK, _ = _gaussian(
            covariance_HKK[sites.kept], np.pad(sites.precision_HK, padded), np.pad(sites.shift_HK, padded)
        )
        new_HK, variance_HK = mean_HK[:, len(told) :], np.diagonal(after_HKK, axis1=1, axis2=2)[:, len(told) :]
        apart_HKL = self.line_L - self.center - new_HK[..., None]
        density_HKL = np.exp(-(apart_HKL**2) / (2 * np.maximum(variance_HK, self.step**2 / 4)[..., None]))
        density_HKL /= density_HKL.sum(-1, keepdims=True)
        return Posterior(
            self.shapes[sites.kept % n_shapes], sites.weight_H, tuple(every), self.line_L,
            np.concatenate([sites.tilted_HKL, density_HKL], axis=1), after_HKK,
        )  # fmt: skip


def _lengths(cells: Sequence[Cell]) -> tuple[list[float], dict[float, int]]:
    """At which log cycle_ratios cells count, ascending, and the place among them of each length."""
    lengths = sorted({cell.log_cycle for cell in cells})
    if len(lengths) <= MOST_LENGTHS:
        return lengths, {length: place for place, length in enumerate(lengths)}
    apart = (lengths[-1] - lengths[0]) / (MOST_LENGTHS - 1)
    nearest = {length: round((length - lengths[0]) / apart) for length in lengths}
    used = sorted(set(nearest.values()))
    return [lengths[0] + apart * place for place in used], {
        length: used.index(place) for length, place in nearest.items()
    }


class _Sites(NamedTuple):
    """Gaussians in place of the likelihoods, exp(shift b - precision b^2 / 2), for the combinations that are kept."""

    kept: Numbers
    weight_H: Array
    precision_HK: Array
    shift_HK: Array
    tilted_HKL: Array


def _gaussian(covariance_HKK: Array, precision_HK: Array, shift_HK: Array) -> tuple[Array, Array, Array]:
    """Mean, covariance and log normalisation of a prior of mean 0 times Gaussian sites; precisions may be 0."""
    root_HK = np.sqrt(precision_HK)
    inner_HKK = np.eye(root_HK.shape[1]) + root_HK[:, :, None] * covariance_HKK * root_HK[:, None, :]
    scaled_HKK = root_HK[:, :, None] * covariance_HKK
    after_HKK = covariance_HKK - np.einsum("hji,hjk->hik", scaled_HKK, np.linalg.solve(inner_HKK, scaled_HKK))
    mean_HK = np.einsum("hij,hj->hi", after_HKK, shift_HK)
    log_norm_H = ((shift_HK * mean_HK).sum(1) - np.linalg.slogdet(inner_HKK)[1]) / 2
    return mean_HK, after_HKK, log_norm_H


def _expectation_propagation(log_like_HKL: Array, covariance_HKK: Array, log_prior_H: Array, line_L: Array) -> _Sites:
    """All sites at once, damped, and combinations that the evidence rules out dropped on the way."""
    bound_H = log_like_HKL.max(-1).sum(-1) + log_prior_H
    """No evidence is above it; before the sites have settled, what is computed for it may be."""
    kept = np.flatnonzero(bound_H > bound_H.max() - HOPELESS)
    bound_H, log_like_HKL, covariance_HKK = bound_H[kept], log_like_HKL[kept], covariance_HKK[kept]
    log_prior_H = log_prior_H[kept]
    precision_HK, shift_HK = np.zeros(log_like_HKL.shape[:2]), np.zeros(log_like_HKL.shape[:2])
    step = line_L[1] - line_L[0]
    square_L, smallest = line_L**2 / 2, step**2 / 4
    for sweep in range(SWEEPS):
        mean_HK, after_HKK, log_norm_H = _gaussian(covariance_HKK, precision_HK, shift_HK)
        variance_HK = np.diagonal(after_HKK, axis1=1, axis2=2)
        cavity_HK = np.maximum(1 / variance_HK - precision_HK, 1e-3)
        pull_HK = mean_HK / variance_HK - shift_HK
        log_tilted_HKL = log_like_HKL + pull_HK[..., None] * line_L - cavity_HK[..., None] * square_L
        top_HK = log_tilted_HKL.max(-1)
        tilted_HKL = np.exp(log_tilted_HKL - top_HK[..., None])
        total_HK = tilted_HKL.sum(-1)
        tilted_HKL /= total_HK[..., None]
        tilted_mean_HK = tilted_HKL @ line_L
        tilted_variance_HK = np.maximum(2 * tilted_HKL @ square_L - tilted_mean_HK**2, smallest)
        new_precision_HK = np.maximum(1 / tilted_variance_HK - cavity_HK, 0)
        new_shift_HK = tilted_mean_HK * (new_precision_HK + cavity_HK) - pull_HK
        # A site of two summits may be wider than what the others say; it must not push the line off the grid for that.
        new_shift_HK = np.clip(new_shift_HK, new_precision_HK * line_L[0], new_precision_HK * line_L[-1])
        # Evidence: Rasmussen and Williams, equation 3.65, with the sites' scales from the tilted normalisations.
        both_HK = cavity_HK + precision_HK
        log_site_HK = (pull_HK + shift_HK) ** 2 / both_HK / 2 + np.log(2 * np.pi / both_HK) / 2 - np.log(step)
        log_evidence_H = log_norm_H + (top_HK + np.log(total_HK) - log_site_HK).sum(1)
        log_evidence_H = np.minimum(log_evidence_H + log_prior_H, bound_H)
        weight_H = np.exp(log_evidence_H - logsumexp(log_evidence_H))
        moved = np.abs(new_precision_HK - precision_HK) * variance_HK
        if sweep >= 2 and moved[weight_H > 0.01 * weight_H.max()].max(initial=0) < CONVERGED:
            break
        precision_HK = precision_HK + DAMPING * (new_precision_HK - precision_HK)
        shift_HK = shift_HK + DAMPING * (new_shift_HK - shift_HK)
        if sweep in NEGLIGIBLE:
            likely = weight_H > NEGLIGIBLE[sweep] * weight_H.max()
            kept, bound_H, log_prior_H, log_like_HKL = (
                each[likely] for each in (kept, bound_H, log_prior_H, log_like_HKL)
            )
            covariance_HKK, precision_HK, shift_HK = covariance_HKK[likely], precision_HK[likely], shift_HK[likely]
    return _Sites(kept, weight_H, precision_HK, shift_HK, tilted_HKL)
