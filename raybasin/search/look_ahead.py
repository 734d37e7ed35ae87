"""What one more cell would tell, for every point that could be measured next.

A cell is foreseen as t = log(barrier + a bit), which is steep where the barrier rises and flat inside and far outside.
From the posterior follow its mean, its variance, its noise and its covariance with the line at each cycle length, and
from these, as in linear regression, by how much it narrows the line. So it counts what a cell tells of other lengths,
and of the barrier's shape, and what several cells that are measured at once tell together.

Axes: H, K, L as in `line_model`; R rows, that is cycle lengths that points may have, X rates of a row, C = R X points.
"""

from __future__ import annotations

import numpy as np

from raybasin.search.line_model import FLOOR, Array, Posterior, mean_barrier, noise_variance

MOST, LEAST = 64, 1e-4
"""Combinations of shapes are left out beyond these, the likeliest, and below this weight relative to the largest."""
NOWHERE = 1e-9
"""Places where the line is less likely than this are left out."""


class LookAhead:
    """Of points at `rows` (indices of K) times every `stride`-th place of the line within the range."""

    def __init__(self, posterior: Posterior, rows: list[int], inside: slice, stride: int, image_noise: float) -> None:
        likely = np.sort(np.argsort(-posterior.weight_H, kind="stable")[:MOST])
        likely = likely[posterior.weight_H[likely] > LEAST * posterior.weight_H.max()]
        self.weight_H = posterior.weight_H[likely] / posterior.weight_H[likely].sum()
        shapes, density_HRL = posterior.shapes[likely], posterior.density_HKL[likely][:, rows]
        places = np.flatnonzero(np.einsum("h,hrl->rl", self.weight_H, density_HRL).max(0) > NOWHERE)
        self.density_HRL = density_HRL[:, :, places]
        self.density_HRL /= self.density_HRL.sum(-1, keepdims=True)
        line_L = posterior.line_L[places]
        self.covariance_HRR = posterior.covariance_HKK[likely][:, rows][:, :, rows]
        self.variance_HR = np.diagonal(self.covariance_HRR, axis1=1, axis2=2)

        # What is foreseen depends on the distance from the line alone, so it is worked out once for each distance.
        count, step = len(posterior.line_L), posterior.line_L[1] - posterior.line_L[0]
        barrier_HD = mean_barrier(step * np.arange(1 - count, count), shapes)
        bit = np.hypot(FLOOR, image_noise)
        noise_HD = (noise_variance(barrier_HD, shapes) + bit**2) / (barrier_HD + bit) ** 2
        apart_XL = np.arange(count)[inside][::stride, None] - places + count - 1
        self.foreseen_HXL = np.log(barrier_HD + bit)[:, apart_XL]
        by_rate_HLX = self.foreseen_HXL.transpose(0, 2, 1)
        self.mean_HRX = self.density_HRL @ by_rate_HLX
        variance_HRX = self.density_HRL @ by_rate_HLX**2 - self.mean_HRX**2
        noise_HRX = self.density_HRL @ noise_HD[:, apart_XL].transpose(0, 2, 1)
        self.with_line_HRX = (self.density_HRL * line_L) @ by_rate_HLX
        self.with_line_HRX -= (self.density_HRL @ line_L)[..., None] * self.mean_HRX

        # The line where it lies outside the range is taken to lie at its end: no more is asked of it.
        lowest, *_, highest = posterior.line_L[inside]
        within_L = np.clip(line_L, lowest, highest)
        self.target_HR = self.density_HRL @ within_L
        share_HR = self.density_HRL[:, :, within_L == line_L].sum(-1)
        own_HRX = (self.density_HRL * within_L) @ by_rate_HLX - self.target_HR[..., None] * self.mean_HRX
        self.target_R = self.weight_H @ self.target_HR
        target_variance_R = self.weight_H @ (self.density_HRL @ within_L**2) - self.target_R**2
        self.target_variance_R = np.maximum(target_variance_R, 1e-9)
        self.mean_C = self._average(self.mean_HRX)
        self.variance_C = self._average(variance_HRX + self.mean_HRX**2) - self.mean_C**2 + self._average(noise_HRX)
        self.with_target_CR = self._with_target(own_HRX, share_HR)
        self.taken: list[Array] = []
        """For each point that is taken as measured, how far every other is foreseen by it: a column of Cholesky's."""

    def _average(self, each_HRX: Array) -> Array:
        return np.einsum("h,hrx->rx", self.weight_H, each_HRX).ravel()

    def _with_target(self, own_HRX: Array, share_HR: Array) -> Array:
        """Covariance of each point with the line in each row; between rows that of the line, by Stein's lemma."""
        per_line_HRX = self.with_line_HRX / self.variance_HR[..., None]
        across_HRXR = per_line_HRX[..., None] * (self.covariance_HRR * share_HR[:, None])[:, :, None]
        for row in range(own_HRX.shape[1]):
            across_HRXR[:, row, :, row] = own_HRX[:, row]
        between_HR = self.target_HR - self.target_R
        across_HRXR += self.mean_HRX[..., None] * between_HR[:, None, None]
        return np.einsum("h,hrxs->rxs", self.weight_H, across_HRXR).reshape(-1, own_HRX.shape[1])

    def _with_point(self, point: int) -> Array:
        """Covariance of each point with one of them."""
        row, rate = divmod(point, self.mean_HRX.shape[2])
        per_line_HR = self.covariance_HRR[:, row] / self.variance_HR / self.variance_HR[:, row, None]
        across_HRX = self.with_line_HRX * (per_line_HR * self.with_line_HRX[:, row, rate, None])[..., None]
        weighed_HL = self.density_HRL[:, row] * self.foreseen_HXL[:, rate]
        one_H = self.mean_HRX[:, row, rate]
        across_HRX[:, row] = (
            np.einsum("hl,hxl->hx", weighed_HL, self.foreseen_HXL) - one_H[:, None] * self.mean_HRX[:, row]
        )
        return self._average(across_HRX + one_H[:, None, None] * self.mean_HRX) - self.mean_C * self.mean_C[point]

    def take(self, point: int) -> None:
        """Foresees everything as if one cell had been measured at this point."""
        column_C = self._with_point(point) - sum(column_C * column_C[point] for column_C in self.taken)
        # The raw variance of the point itself holds its noise, which is not shared with a further cell at it.
        scale = np.sqrt(self.variance_C[point])
        column_C = column_C / scale
        by_target_R = self.with_target_CR[point] / scale
        self.with_target_CR = self.with_target_CR - np.outer(column_C, by_target_R)
        self.target_variance_R = np.maximum(self.target_variance_R - by_target_R**2, 1e-9)
        self.variance_C = np.maximum(self.variance_C - column_C**2, 1e-9)
        self.taken = [*self.taken, column_C]

    def explained_CR(self) -> Array:
        """Which share of the line's variance in each row one more cell takes away."""
        explained_CR = self.with_target_CR**2 / self.variance_C[:, None] / self.target_variance_R
        return np.clip(explained_CR, 0, 0.999)
