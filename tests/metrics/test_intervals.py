"""Intervals of mean differences against closed forms, and how often they hold a known truth."""

import math

import numpy as np
import pytest
from scipy import stats

from raybasin.metrics import intervals
from raybasin.metrics.intervals import Variance, interval


def crossed(rng, images, replicates, rest, n_replicates, n_images):
    """d_RN around 0 with these standard deviations."""
    return (
        images * rng.standard_normal(n_images)
        + replicates * rng.standard_normal((n_replicates, 1))
        + rest * rng.standard_normal((n_replicates, n_images))
    )


# The variance


def test_the_parts_are_the_mean_squares_of_a_two_way_layout():
    d_RN = np.array([[0.0, 1.0, 5.0], [2.0, 3.0, 4.0]])
    # By hand: row means 2 and 3, image means 1, 2 and 4.5, residuals (-0.5, -0.5, 1) and their negatives.
    ms_rows, ms_images, ms_rest = 3 * 0.5, 2 * 3.25, 2 * (0.25 + 0.25 + 1) / 2
    found = intervals.variance(d_RN)
    assert found.images == pytest.approx((ms_images - ms_rest) / 6)
    assert found.rows == pytest.approx(ms_rows / 6)
    assert found.se == pytest.approx(math.sqrt((ms_images + ms_rows - ms_rest) / 6))


def test_the_estimated_variance_of_the_mean_is_right_on_average():
    rng = np.random.default_rng(0)
    found = [intervals.variance(crossed(rng, 1.0, 0.2, 1.5, 4, 50)).se ** 2 for _ in range(2000)]
    assert np.mean(found) == pytest.approx(1 / 50 + 0.2**2 / 4 + 1.5**2 / 200, rel=0.03)


def test_one_replicate_is_the_t_interval_over_images_and_says_so():
    d_N = np.random.default_rng(1).standard_normal(40)
    found = interval([[d_N]])
    expected = stats.ttest_1samp(d_N, 0.0)
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval(0.95))
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.knows == ("images",)


def test_where_replicates_alone_differ_it_is_the_t_interval_over_them():
    means_R = np.array([0.1, 0.4, 0.3])
    found = interval([np.repeat(means_R[:, None], 20, axis=1)])
    assert (found.low, found.high) == pytest.approx(stats.ttest_1samp(means_R, 0.0).confidence_interval(0.95))
    assert found.knows == ("images", "replicates")


def test_with_two_replicates_the_interval_is_wide():
    """One degree of freedom: 12.7 standard errors."""
    found = interval([np.repeat([[0.1], [0.2]], 20, axis=1)])
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, 1) * 0.05)


def test_replicates_of_several_checkpoints_count_as_their_means():
    rng = np.random.default_rng(2)
    checkpoints = [crossed(rng, 1, 1, 1, n, 30) for n in (2, 2, 3)]
    found, of_means = interval(checkpoints), interval([np.stack([d_RN.mean(axis=0) for d_RN in checkpoints])])
    assert (found.estimate, found.low, found.high) == (of_means.estimate, of_means.low, of_means.high)
    assert (found.n_checkpoints, found.n_replicates, found.n_images) == (3, 7, 30)
    assert found.knows == ("images", "replicates", "checkpoints")


# Coverage


@pytest.mark.parametrize("n_replicates", [2, 3, 5])
@pytest.mark.parametrize(
    ("images", "replicates", "rest"), [(1, 0, 1), (1, 0.1, 1), (0.2, 0, 1), (0, 1, 1), (1, 0, 0.1)]
)
def test_95_percent_intervals_hold_the_truth_in_93_to_97_percent(images, replicates, rest, n_replicates):
    rng, times = np.random.default_rng([n_replicates, round(10 * replicates)]), 2000
    hits = 0
    for _ in range(times):
        d_RN = crossed(rng, images, replicates, rest, n_replicates, 100)
        hits += abs(d_RN.mean()) <= intervals.variance(d_RN).half_width()
    assert 0.93 <= hits / times <= 0.97


def test_where_few_images_differ_ties_of_replicates_are_no_certainty():
    rng, times, hits = np.random.default_rng(3), 2000, 0
    for _ in range(times):
        d_RN = rng.choice([-1.0, 0.0, 1.0], p=[0.02, 0.95, 0.03], size=(2, 100))
        v = intervals.variance(d_RN)
        hits += abs(d_RN.mean() - 0.01) <= v.half_width() + 1e-12
    assert 0.93 <= hits / times <= 0.97


@pytest.mark.parametrize("n_replicates", [1, 2, 3, 5])
@pytest.mark.parametrize("n_images", [60, 100, 300])
def test_where_few_images_change_and_replicates_agree_on_them_the_interval_is_honest(n_images, n_replicates):
    """One image in 80 changes, in all replicates alike."""
    rng, times, hits, narrow = np.random.default_rng(7), 1000, 0, 0
    for _ in range(times):
        d_RN = np.repeat(rng.choice([0.0, 1.0], p=[79 / 80, 1 / 80], size=(1, n_images)), n_replicates, axis=0)
        distance = abs(d_RN.mean() - 1 / 80)
        hits += distance <= intervals.variance(d_RN, step=1).half_width()
        narrow += distance <= intervals.variance(d_RN).half_width()
    assert hits / times >= 0.91 and narrow / times < 0.9


def test_counts_of_any_mean_are_held():
    """The count of images that change is Poisson, by its exact distribution."""
    counts = np.arange(200)
    half = [intervals.variance(np.repeat([[1.0, 0.0]], [n, 10_000 - n], axis=1), step=1).half_width() for n in counts]
    for mean in np.linspace(0.1, 60, 300):
        held = np.abs(counts - mean) / 10_000 <= half
        assert stats.poisson(mean).pmf(counts[held]).sum() >= 0.9


def test_what_no_image_shows_is_not_certain():
    found = interval([np.zeros((1, 60))], step=1.0)
    assert found.high == -found.low == pytest.approx(stats.t.ppf(0.975, 59) * math.sqrt(2) / 60)
    assert found.verdict == "not distinguishable" and found.p_value == 1
    many = crossed(np.random.default_rng(8), 1, 0, 1, 2, 60)
    assert intervals.variance(many, step=1.0).images == pytest.approx(intervals.variance(many).images, abs=1e-6)


@pytest.mark.parametrize(("level", "least", "most"), [(0.8, 0.795, 0.825), (0.99, 0.983, 0.997)])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 1, 3, 10, 100])
@pytest.mark.parametrize("degrees", [1, 2, 4])
def test_other_levels_hold_too(level, least, most, ratio, degrees):
    """With the images' part known, by integration over the rows' estimated one."""
    quantiles_Q = stats.chi2.ppf((np.arange(400) + 0.5) / 400, degrees) / degrees
    half_Q = [Variance(1.0, ratio * q, 10**6, degrees + 1).half_width(level) for q in quantiles_Q]
    covered = np.mean(2 * stats.norm.cdf(np.array(half_Q) / math.sqrt(1 + ratio)) - 1)
    assert least <= covered <= most


# Verdicts


def test_the_verdict_follows_from_the_interval_and_from_what_is_good():
    up_RN = 1 + 0.1 * crossed(np.random.default_rng(4), 1, 1, 1, 3, 50)
    assert interval([up_RN]).verdict == "better" and interval([-up_RN]).verdict == "worse"
    assert interval([up_RN], better="lower").verdict == "worse"
    assert interval([up_RN - up_RN.mean()]).verdict == "not distinguishable"


def test_equal_predictors_cannot_be_told_apart():
    found = interval([np.zeros((2, 30))])
    assert (found.low, found.high, found.p_value, found.verdict) == (0, 0, 1, "not distinguishable")


def test_an_infinite_nll_leaves_nothing_to_say():
    d_RN = np.zeros((2, 30))
    d_RN[0, 3] = math.inf
    found = interval([d_RN], better="lower")
    assert (found.estimate, found.low, found.high) == (math.inf, -math.inf, math.inf)
    assert found.verdict == "not distinguishable"


def test_the_p_value_is_where_the_interval_ends_at_0():
    d_RN = 0.4 + crossed(np.random.default_rng(5), 1, 0.1, 1, 3, 50)
    found = interval([d_RN])
    assert 0 < found.p_value < 1
    at = interval([d_RN], level=1 - found.p_value)
    assert min(abs(at.low), abs(at.high)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("shift", "side"), [(0.0, "in"), (1.0, "out"), (0.5, "undecided")])
def test_the_side_of_a_threshold_is_decided_by_the_whole_interval(shift, side):
    d_RN = shift + 0.1 * crossed(np.random.default_rng(6), 1, 1, 1, 3, 50)
    found = interval([d_RN])
    assert intervals.side(found.low, found.high, threshold=0.5) == side


def test_holm_is_that_of_the_textbook():
    assert intervals.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert intervals.holm([0.6, math.nan, 0.7])[[0, 2]] == pytest.approx([1, 1])
    assert math.isnan(intervals.holm([0.6, math.nan])[1])


@pytest.mark.parametrize("shape", [(0, 5), (2, 1), (3,), (1, 2, 3)])
def test_what_is_no_table_of_replicates_and_images_is_refused(shape):
    with pytest.raises(ValueError, match="must be .R replicates, N images."):
        interval([np.zeros(shape)])


def test_other_images_are_not_averaged():
    with pytest.raises(ValueError, match="of the same images"):
        interval([np.zeros((2, 5)), np.zeros((2, 6))])


# Of one predictor


def test_the_interval_of_a_mean_over_images_is_student_s():
    values_N = np.random.default_rng(0).normal(2, 3, 50)
    low, high = intervals.of_mean(values_N)
    half = stats.t.ppf(0.975, 49) * values_N.std(ddof=1) / math.sqrt(50)
    assert (low, high) == pytest.approx((values_N.mean() - half, values_N.mean() + half))
    assert intervals.of_mean([1.0, math.inf]) == (-math.inf, math.inf)


def test_an_accuracy_is_not_certain_because_no_image_was_wrong():
    right_N = np.ones(50)
    low, high = intervals.of_mean(right_N, share=True)
    assert 0.9 < low < 0.98 and high == 1
    assert intervals.of_mean(1 - right_N, share=True) == pytest.approx((0, 1 - low))
    right_N[:10] = 0
    low, high = intervals.of_mean(right_N, share=True)
    assert intervals.of_mean(1 - right_N, share=True) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("share", "n_images"), [(0.7, 100), (0.95, 100), (0.98, 300)])
def test_intervals_of_an_accuracy_hold_the_truth(share, n_images):
    rng = np.random.default_rng(1)
    found = [intervals.of_mean(rng.random(n_images) < share, share=True) for _ in range(2000)]
    assert 0.9 < np.mean([low <= share <= high for low, high in found]) < 0.98
