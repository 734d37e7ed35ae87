"""How sure a mean difference is, from images that all replicates share.

d[r, i] is a difference on image i in replicate r: of two predictors' correctness (0/1) or NLL, or the height of a path
above the line between its ends. Images are one draw from the task, the same for all replicates, and replicates are one
draw of training, so the mean over both has the crossed variance

    var_images / N + var_replicates / R + var_rest / (R N),

which the mean squares of a two-way layout without replication estimate (Searle, Casella, McCulloch 1992, chapter 4).
Of independent checkpoints the replicates' means are taken first, and checkpoints stand in place of replicates:
replicates are nested in them.

Satterthwaite's degrees of freedom are too many where there are 2 or 3 replicates: such an interval holds the truth in
as few as 86 % of cases instead of 95 (benchmarks/intervals.py). So the quantile lies between the two of Student's t, as
Cochran (1964) has it for the Behrens-Fisher problem, and goes from the one to the other by a weight found to hold.

Where an image changes by a whole step or not at all, as correctness does, a few images that happen not to have changed
may be all that differs: of 60 images of which one in 80 changes, more than a third of such data sets show no spread.
So two images that are not seen count, the less the more are seen to change: for counts of a Poisson distribution
of any mean 90 % of intervals or more hold it then (benchmarks/intervals.py).

Axes: C checkpoints, R replicates, N images.
"""

from __future__ import annotations

import functools
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import t as student

LEVEL = 0.95
Verdict = Literal["better", "worse", "not distinguishable"]
Side = Literal["in", "out", "undecided"]
Float64Array = npt.NDArray[np.float64]

SMALLEST_P = 1e-12
UNSEEN, ENOUGH = 2, 3
"""How many images that are not seen to change count; where so many are seen to, by 1 / e less."""


@dataclass(frozen=True)
class Variance:
    """Of a mean over R rows (replicates or checkpoints) and N images: the part `images` of images that all rows share,
    and the part `rows` of all else, which is known from R rows alone. Both are variances of the mean, not of one
    value; `rows` is NaN for a single row."""

    images: float
    rows: float
    n_images: int
    n_rows: int

    @property
    def se(self) -> float:
        """Standard error of the mean."""
        return math.sqrt(self.images + (0.0 if math.isnan(self.rows) else self.rows))

    def half_width(self, level: float = LEVEL) -> float:
        """Half of an interval that holds the true mean in a share `level` of cases.

        With a the part of images and b that of rows, the quantile goes from the images' q_N to the rows' q_R as
        q_N + (q_R - q_N) exp(-2 (q_N / q_R) a / b). Where a is known exactly and b from 1, 2, ... 20 degrees of
        freedom, 94.4 to 96.7 % of 95 % intervals hold the truth whatever a / b is (benchmarks/intervals.py).
        """
        of_images = _quantile(level, self.n_images - 1)
        if math.isnan(self.rows) or self.rows == 0:
            return float(of_images * math.sqrt(self.images))
        of_rows = _quantile(level, self.n_rows - 1)
        weight = math.exp(-2 * of_images / of_rows * self.images / self.rows)
        return float((of_images + (of_rows - of_images) * weight) * self.se)

    def p_value(self, estimate: float) -> float:
        """The least 1 - level at which the interval around `estimate` does not hold 0."""
        if abs(estimate) <= self.half_width(SMALLEST_P):
            return 1.0
        if abs(estimate) >= self.half_width(1 - SMALLEST_P):
            return SMALLEST_P

        def above(log_p: float) -> float:
            return self.half_width(1 - math.exp(log_p)) - abs(estimate)

        return float(math.exp(brentq(above, math.log(SMALLEST_P), math.log1p(-SMALLEST_P))))


@functools.lru_cache(maxsize=1024)  # simulations and maps ask for few of them, thousands of times
def _quantile(level: float, degrees: int) -> float:
    """Student's t, two-sided."""
    return float(student.ppf((1 + level) / 2, degrees))


def variance(d_RN: npt.ArrayLike, step: float = 0.0) -> Variance:
    """Of the mean of a two-way layout, by its mean squares. A component that comes out negative is 0.

    `step`: how much an image changes by where most do not change at all, 1 for correctness; 0: each has a value of its
    own, as NLLs do. It is added to the images' part as `unseen` says.

    Where values lie on a grid, as those of 0/1 correctness do, the means of few rows may tie by chance and would say
    that rows do not vary; their spread is then taken for that of half a step.
    """
    d_RN = _checked(d_RN)
    n_rows, n_images = d_RN.shape
    n = n_rows * n_images
    row_mean_R, image_mean_N = d_RN.mean(axis=1), d_RN.mean(axis=0)
    ms_images = n_rows * float(image_mean_N.var(ddof=1))
    rare = unseen(int((d_RN != 0).any(axis=0).sum()), n_images, step)
    if n_rows == 1:
        return Variance(ms_images / n + rare, math.nan, n_images, n_rows)
    rest_RN = d_RN - row_mean_R[:, None] - image_mean_N + d_RN.mean()
    ms_rest = float((rest_RN**2).sum()) / ((n_rows - 1) * (n_images - 1))
    values = np.unique(d_RN.round(12))
    apart = float(np.diff(values).min()) if len(values) > 1 else 0.0
    rows = max(float(row_mean_R.var(ddof=1)), (apart / 2 / n_images) ** 2 / 12) / n_rows
    return Variance(max(0.0, ms_images - ms_rest) / n + rare, rows, n_images, n_rows)


def unseen(n_changed: int, n_images: int, step: float) -> float:
    """Variance of a mean over images for those that are not seen to change by `step`, where `n_changed` are."""
    return UNSEEN * (step / n_images) ** 2 * math.exp(-n_changed / ENOUGH)


def expected(n_images: int, n_rows: int, image_sd: float, row_sd: float) -> Variance:
    """What `variance` would find where one value deviates by `image_sd` from its row's mean, half of whose variance all
    rows share, and the rows' own means by `row_sd`."""
    shared, rest = image_sd**2 / 2, image_sd**2 / 2
    if n_rows == 1:
        return Variance((shared + rest) / n_images, math.nan, n_images, n_rows)
    return Variance(shared / n_images, (row_sd**2 + rest / n_images) / n_rows, n_images, n_rows)


@dataclass(frozen=True)
class Interval:
    """An estimate and the interval that holds the truth in a share `level` of cases.

    `n_replicates` are counted over all of `n_checkpoints`. `knows` names the spreads that the interval takes account
    of: with one replicate it is that of the images alone, and speaks of those networks and no others.
    """

    estimate: float
    low: float
    high: float
    n_images: int
    n_replicates: int
    n_checkpoints: int
    p_value: float
    """Of no difference."""
    verdict: Verdict

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        counts = f"images {self.n_images}, replicates {self.n_replicates}, checkpoints {self.n_checkpoints}"
        return (
            f"<b>{self.estimate:+.4g}</b> [{self.low:+.4g}, {self.high:+.4g}] <b>{html.escape(self.verdict)}</b> "
            f"({LEVEL:.0%} interval over {' and '.join(self.knows)}; {counts}; p = {self.p_value:.2g})"
        )

    @property
    def knows(self) -> tuple[str, ...]:
        beside = ("replicates", "checkpoints") if self.n_checkpoints > 1 else ("replicates",)
        return ("images", *(beside if self.n_replicates > 1 else ()))


def interval(
    differences: Sequence[npt.ArrayLike],
    better: Literal["higher", "lower"] = "higher",
    level: float = LEVEL,
    step: float = 0.0,
) -> Interval:
    """The mean difference over images, replicates and checkpoints.

    With several checkpoints it speaks of further checkpoints of their kind, with one of further replicates from it.

    Args:
        differences: of each checkpoint d_RN [R replicates, N images], 2 images or more, the same for all.
        better: which differences are good.
        level: share of cases in which the truth is to lie within.
        step: as in `variance`.

    Raises:
        ValueError: if there is none, or they are not of the same images.
    """
    checkpoints = [_checked(d_RN) for d_RN in differences]
    if len({d_RN.shape[1] for d_RN in checkpoints}) != 1:
        raise ValueError(f"differences must be of the same images, got shapes {[d_RN.shape for d_RN in checkpoints]}")
    rows = checkpoints[0] if len(checkpoints) == 1 else np.stack([d_RN.mean(axis=0) for d_RN in checkpoints])
    counts = rows.shape[1], sum(len(d_RN) for d_RN in checkpoints), len(checkpoints)
    if not np.isfinite(rows).all():  # an infinite NLL: no mean, and nothing to say
        with np.errstate(invalid="ignore"):
            return Interval(float(rows.mean()), -math.inf, math.inf, *counts, 1.0, "not distinguishable")
    estimate, of_mean = float(rows.mean()), variance(rows, step)
    half = of_mean.half_width(level)
    low, high = estimate - half, estimate + half
    verdict: Verdict = "not distinguishable"
    if low > 0 or high < 0:
        verdict = "better" if (low > 0) == (better == "higher") else "worse"
    return Interval(estimate, low, high, *counts, of_mean.p_value(estimate), verdict)


def of_mean(values_N: npt.ArrayLike, share: bool = False, level: float = LEVEL) -> tuple[float, float]:
    """(low, high) of one predictor's mean over images: in a share `level` of cases it holds what further images of the
    task would give. It says nothing of how much another training would change.

    Args:
        values_N: of each image, 2 or more.
        share: whether they are 0 or 1. The rarer of the two are then what `unseen` counts, so that an accuracy of 1
            on few images is not taken for certain.
        level: as in `interval`.
    """
    values_N = np.asarray(values_N, dtype=np.float64)
    if not np.isfinite(values_N).all():
        return -math.inf, math.inf
    mean, flips = float(values_N.mean()), share and values_N.mean() > 0.5
    half = variance((1 - values_N if flips else values_N)[None], 1.0 if share else 0.0).half_width(level)
    return (max(0.0, mean - half), min(1.0, mean + half)) if share else (mean - half, mean + half)


def side(low: float, high: float, threshold: float) -> Side:
    """Whether a barrier within this interval is at most the threshold, above it, or either by what is known."""
    return "in" if high <= threshold else "out" if low > threshold else "undecided"


def holm(p_values: npt.ArrayLike) -> Float64Array:
    """P values of as many comparisons, adjusted so that a false verdict among all of them is as rare as one alone
    would be: Holm 1979. NaN stays NaN and does not count."""
    p_values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p_values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p_values[order]))
    return adjusted


def _checked(d_RN: npt.ArrayLike) -> Float64Array:
    d_RN = np.asarray(d_RN, dtype=np.float64)
    if d_RN.ndim != 2 or len(d_RN) == 0 or d_RN.shape[1] < 2:
        raise ValueError(f"differences must be [R replicates, N images], of 2 images or more, got shape {d_RN.shape}")
    return d_RN
