"""Kendall's S, against the sum over all pairs."""

import math

import numpy as np

from raybasin.search.boundary import _agreement


def over_all_pairs(rates_N, barriers_N):
    agree = np.sign(rates_N[:, None] - rates_N) * (np.greater.outer(barriers_N, barriers_N) * 1.0)
    return agree.sum()


def test_pairs_that_rise_together_are_counted_with_ties_infinities_and_what_is_no_number():
    random = np.random.default_rng(0)
    for n in (1, 2, 5, 40):
        for _ in range(20):
            rates_N, barriers_N = random.integers(0, 5, n) / 2.0, random.choice([0.0, 0.1, 0.2, 0.5, math.inf], n)
            barriers_N[random.random(n) < 0.1] = math.nan
            assert _agreement(zip(rates_N.tolist(), barriers_N.tolist(), strict=True)) == over_all_pairs(
                rates_N, barriers_N
            )
    assert _agreement([(1.0, 0.1), (2.0, 0.2), (3.0, 0.3)]) == 3 and _agreement([(1.0, 0.2), (2.0, 0.1)]) == -1
