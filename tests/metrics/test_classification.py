"""Accuracy, likelihood and temperature against scikit-learn, plain loops and answers known in closed form.

Axes: M members, N examples, C classes.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from log_probs import Array, Labels, log
from scipy.special import log_softmax
from sklearn.metrics import log_loss

from raybasin.metrics import classification


def overconfident(log_odds: float, correct: int, wrong: int) -> tuple[Array, Labels]:
    """A two-class predictor, equally sure of every example: best at T = log_odds / logit(accuracy)."""
    log_probs_NC = np.tile(log_softmax([log_odds, 0.0]), (correct + wrong, 1))
    return log_probs_NC, np.repeat([0, 1], [correct, wrong])


# Accuracy and likelihood


def test_accuracy_is_the_share_of_likeliest_classes_that_are_labels() -> None:
    log_probs_NC = log([[0.6, 0.4], [0.3, 0.7], [0.2, 0.8], [0.9, 0.1]])
    assert classification.accuracy(log_probs_NC, np.array([0, 1, 0, 0])) == 0.75


def test_nll_is_the_log_loss(log_probs_NC: Array, labels_N: Labels) -> None:
    expected = log_loss(labels_N, np.exp(log_probs_NC), labels=range(5))
    assert classification.nll(log_probs_NC, labels_N) == pytest.approx(expected, rel=1e-12)


def test_nll_of_an_impossible_label_is_infinite() -> None:
    assert classification.nll(log([[1.0, 0.0], [0.5, 0.5]]), np.array([1, 0])) == math.inf


# Calibration


@pytest.mark.parametrize(("log_odds", "correct", "wrong"), [(3.0, 8, 2), (1.0, 9, 1), (-0.5, 2, 8), (12.0, 9, 1)])
def test_the_fitted_temperature_makes_confidence_equal_accuracy(log_odds: float, correct: int, wrong: int) -> None:
    log_probs_NC, labels_N = overconfident(log_odds, correct, wrong)
    expected = log_odds / math.log(correct / wrong)
    assert classification.fit_temperature(log_probs_NC, labels_N) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("correct", "wrong", "bound"), [(5, 0, -3.0), (2, 3, 3.0)])
def test_the_fitted_temperature_stops_at_its_bounds(correct: int, wrong: int, bound: float) -> None:
    assert classification.fit_temperature(*overconfident(1.0, correct, wrong)) == math.exp(bound)


@pytest.mark.filterwarnings("error")
def test_the_temperature_is_1_where_all_are_equally_good() -> None:
    assert classification.fit_temperature(log([[0.25] * 4] * 3), np.array([0, 1, 3])) == 1.0
    assert classification.fit_temperature(log([[1.0, 0.0], [0.6, 0.4]]), np.array([1, 0])) == 1.0


def test_a_class_of_probability_0_does_not_disturb_the_temperature() -> None:
    log_probs_NC, labels_N = overconfident(3.0, 8, 2)
    padded_NC = np.concatenate([log_probs_NC, np.full((10, 1), -np.inf)], axis=1)
    assert classification.fit_temperature(padded_NC, labels_N) == classification.fit_temperature(log_probs_NC, labels_N)
    np.testing.assert_array_equal(
        classification.tempered(padded_NC, 2.0)[:, :2], classification.tempered(log_probs_NC, 2.0)
    )


def test_tempering_is_a_power_of_the_probabilities(log_probs_NC: Array) -> None:
    power_NC = np.exp(log_probs_NC) ** (1 / 2.5)
    expected_NC = power_NC / power_NC.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(np.exp(classification.tempered(log_probs_NC, 2.5)), expected_NC, rtol=1e-12)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_must_be_positive(log_probs_NC: Array, temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        classification.tempered(log_probs_NC, temperature)


# Deep ensemble equivalent


@pytest.mark.parametrize(
    ("nll", "size"),
    [(0.9, 1.5), (0.8, 2.0), (0.75, 2.5), (0.7, 3.0), (1.0, 1.0), (1.2, 1.0), (0.5, 3.0), (math.inf, 1.0)],
)
def test_deep_ensemble_equivalent_interpolates_and_stays_within_1_and_k(nll: float, size: float) -> None:
    assert classification.deep_ensemble_equivalents([nll], [1.0, 0.8, 0.7]) == pytest.approx(size)


@pytest.mark.parametrize(("nll", "size"), [(0.9, 1.5), (0.85, 1.75), (0.8, 2.0), (0.7, 3.5)])
def test_a_larger_reference_ensemble_that_is_worse_counts_as_no_gain(nll: float, size: float) -> None:
    assert classification.deep_ensemble_equivalents([nll], [1.0, 0.8, 0.9, 0.6]) == pytest.approx(size)


@pytest.mark.parametrize("reference", [[1.0], [1.0, 0.8], [1.0, 0.8, 0.9, 0.6], [1.0, 1.1, 1.2], [0.9, 0.9, 0.5]])
def test_equivalents_of_many_are_those_found_by_walking(reference: list[float]) -> None:
    nll_R = [0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.3, math.nan, math.inf]
    best_K = np.minimum.accumulate(reference)

    def by_hand(nll: float) -> float:
        """Walks from size to size."""
        if math.isnan(nll) or nll >= best_K[0]:
            return math.nan if math.isnan(nll) else 1.0
        for size in range(1, len(best_K)):
            if best_K[size] <= nll:
                return size + (best_K[size - 1] - nll) / (best_K[size - 1] - best_K[size])
        return float(len(best_K))

    expected_R = [by_hand(nll) for nll in nll_R]
    np.testing.assert_allclose(classification.deep_ensemble_equivalents(nll_R, reference), expected_R, rtol=1e-12)


def test_deep_ensemble_equivalent_of_an_unknown_nll_is_nan() -> None:
    assert np.isnan(classification.deep_ensemble_equivalents([math.nan], [1.0, 0.8])).all()


@pytest.mark.parametrize("reference", [[], [[1.0, 0.8]], [1.0, math.nan]])
def test_deep_ensemble_equivalent_needs_a_reference(reference: npt.ArrayLike) -> None:
    with pytest.raises(ValueError, match="reference"):
        classification.deep_ensemble_equivalents([0.9], reference)


# Wrong inputs

SCORES = [classification.accuracy, classification.nll, classification.fit_temperature]


@pytest.mark.parametrize("score", SCORES)
def test_labels_of_another_length_are_refused_with_both_shapes(
    score: Callable[..., float], log_probs_NC: Array, labels_N: Labels
) -> None:
    with pytest.raises(ValueError, match=r"\(200, 5\).*\(199,\)"):
        score(log_probs_NC, labels_N[1:])


@pytest.mark.parametrize("score", SCORES)
def test_a_predictor_has_two_axes(score: Callable[..., float], log_probs_MNC: Array, labels_N: Labels) -> None:
    with pytest.raises(ValueError, match=r"\[NC\], got shape \(3, 200, 5\)"):
        score(log_probs_MNC, labels_N)


def test_no_examples_have_no_score() -> None:
    with pytest.raises(ValueError, match=r"non-empty .* \(0, 5\)"):
        classification.nll(np.empty((0, 5)), np.empty(0, dtype=int))


@pytest.mark.parametrize("label", [-1, 5, 0.0])
def test_labels_are_class_indices(log_probs_NC: Array, label: float) -> None:
    with pytest.raises(ValueError, match="labels must be integers from 0 to 4"):
        classification.nll(log_probs_NC, np.full(200, label))


@pytest.mark.parametrize(
    "row",
    [[3.0, -1.0, 2.0], [1000.0, 0.0, 0.0], [0.2, 0.5, 0.3], [math.nan, 0.0, 0.0]],
    ids=["logits", "huge logits", "probabilities", "partly NaN"],
)
def test_what_is_no_log_probability_is_refused(row: list[float]) -> None:
    with pytest.raises(ValueError, match="not log-probabilities: 1 of 2 rows"):
        classification.nll(np.stack([log([0.2, 0.5, 0.3]), row]), np.array([0, 1]))
