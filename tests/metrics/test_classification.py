"""Metrics against scikit-learn, torchmetrics, plain loops and answers known in closed form.

Axes: M members, N examples, C classes.
"""

import math
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.special import log_softmax, rel_entr
from scipy.stats import entropy
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from raybasin.metrics import classification

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

PREDICTOR_KEYS = ["accuracy", "mean_class_accuracy", "nll", "calibrated_nll", "temperature", "ece", "brier"]
DIVERSITY_KEYS = ["disagreement", "normalised_disagreement", "pairwise_kl", "mutual_information", "ambiguity"]


@pytest.fixture(name="log_probs_MNC")
def three_members() -> Array:
    """Three members that are right about half of the time, on 200 examples of 5 classes."""
    rng = np.random.default_rng(0)
    shared_NC = rng.normal(size=(200, 5))
    return np.asarray(log_softmax(2.0 * (shared_NC + 0.7 * rng.normal(size=(3, 200, 5))), axis=-1))


@pytest.fixture(name="labels_N")
def labels_without_class_3(log_probs_MNC: Array) -> Labels:
    """Unequal numbers of classes 0, 1, 2 and 4; class 3 is absent."""
    guess_N = log_probs_MNC.mean(axis=0).argmax(axis=-1)
    labels_N = np.where(np.arange(200) % 3 == 0, np.arange(200) % 2, guess_N)
    return np.where(labels_N == 3, 4, labels_N)


@pytest.fixture(name="log_probs_NC")
def first_member(log_probs_MNC: Array) -> Array:
    return np.asarray(log_probs_MNC[0])


def log(probs: npt.ArrayLike) -> Array:
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(probs, dtype=np.float64))


def overconfident(log_odds: float, correct: int, wrong: int) -> tuple[Array, Labels]:
    """A two-class predictor, equally sure of every example: best at T = log_odds / logit(accuracy)."""
    log_probs_NC = np.tile(log_softmax([log_odds, 0.0]), (correct + wrong, 1))
    return log_probs_NC, np.repeat([0, 1], [correct, wrong])


# Ensembles


def test_an_ensemble_averages_probabilities(log_probs_MNC: Array) -> None:
    np.testing.assert_allclose(
        np.exp(classification.ensemble_log_probs(log_probs_MNC)), np.exp(log_probs_MNC).mean(axis=0), rtol=1e-12
    )


def test_an_ensemble_of_one_is_that_member_bit_for_bit(log_probs_MNC: Array) -> None:
    np.testing.assert_array_equal(classification.ensemble_log_probs(log_probs_MNC[:1]), log_probs_MNC[0])


def test_an_ensemble_keeps_probabilities_that_underflow() -> None:
    members_MNC = np.array([[[0.0, -1000.0]], [[0.0, -2000.0]]])
    np.testing.assert_allclose(classification.ensemble_log_probs(members_MNC), [[0.0, -1000.0 - math.log(2)]])


def test_an_ensemble_needs_only_one_member_that_holds_a_class_possible() -> None:
    ensemble_NC = classification.ensemble_log_probs(log([[[1.0, 0.0, 0.0]], [[0.5, 0.5, 0.0]]]))
    np.testing.assert_allclose(np.exp(ensemble_NC), [[0.75, 0.25, 0.0]])


# Accuracy and likelihood


def test_accuracies_are_those_of_torchmetrics(log_probs_NC: Array, labels_N: Labels) -> None:
    probs_NC, labels = torch.from_numpy(np.exp(log_probs_NC)), torch.from_numpy(labels_N)
    micro = multiclass_accuracy(probs_NC, labels, num_classes=5, average="micro")
    assert classification.accuracy(log_probs_NC, labels_N) == pytest.approx(micro.item(), rel=1e-6)
    by_class_C = multiclass_accuracy(probs_NC, labels, num_classes=5, average="none")
    macro = np.mean([by_class_C[c].item() for c in np.unique(labels_N)])
    assert classification.mean_class_accuracy(log_probs_NC, labels_N) == pytest.approx(macro, rel=1e-6)


def test_accuracy_is_the_share_of_likeliest_classes_that_are_labels() -> None:
    log_probs_NC = log([[0.6, 0.4], [0.3, 0.7], [0.2, 0.8], [0.9, 0.1]])
    assert classification.accuracy(log_probs_NC, np.array([0, 1, 0, 0])) == 0.75


def test_mean_class_accuracy_leaves_absent_classes_out(log_probs_NC: Array, labels_N: Labels) -> None:
    assert 3 not in labels_N
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
        expected = balanced_accuracy_score(labels_N, log_probs_NC.argmax(axis=-1))
    assert classification.mean_class_accuracy(log_probs_NC, labels_N) == pytest.approx(expected, rel=1e-12)
    assert expected != pytest.approx(classification.accuracy(log_probs_NC, labels_N), rel=1e-3)


def test_nll_is_the_log_loss(log_probs_NC: Array, labels_N: Labels) -> None:
    expected = log_loss(labels_N, np.exp(log_probs_NC), labels=range(5))
    assert classification.nll(log_probs_NC, labels_N) == pytest.approx(expected, rel=1e-12)


def test_nll_of_an_impossible_label_is_infinite() -> None:
    assert classification.nll(log([[1.0, 0.0], [0.5, 0.5]]), np.array([1, 0])) == math.inf


def test_brier_sums_over_classes_and_averages_over_examples(log_probs_NC: Array, labels_N: Labels) -> None:
    total = 0.0
    for n, label in enumerate(labels_N):
        for c in range(5):
            total += (math.exp(log_probs_NC[n, c]) - (c == label)) ** 2
    assert classification.brier(log_probs_NC, labels_N) == pytest.approx(total / len(labels_N), rel=1e-12)


def test_brier_is_that_of_scikit_learn_unhalved(log_probs_NC: Array, labels_N: Labels) -> None:
    expected = brier_score_loss(labels_N, np.exp(log_probs_NC), labels=range(5), scale_by_half=False)
    assert classification.brier(log_probs_NC, labels_N) == pytest.approx(expected, rel=1e-12)


def test_brier_runs_from_0_to_2() -> None:
    certain_NC = log([[1.0, 0.0]])
    assert classification.brier(certain_NC, np.array([0])) == 0.0
    assert classification.brier(certain_NC, np.array([1])) == 2.0


# Calibration


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_is_that_of_torchmetrics(log_probs_NC: Array, labels_N: Labels, bins: int) -> None:
    expected = multiclass_calibration_error(
        torch.from_numpy(np.exp(log_probs_NC)),
        torch.from_numpy(labels_N),
        num_classes=5,
        n_bins=bins,
        norm="l1",
    )
    assert classification.ece(log_probs_NC, labels_N, bins=bins) == pytest.approx(expected.item(), rel=1e-5)


def test_ece_has_15_bins_by_default(log_probs_NC: Array, labels_N: Labels) -> None:
    default = classification.ece(log_probs_NC, labels_N)
    assert default == classification.ece(log_probs_NC, labels_N, bins=15)
    assert default != classification.ece(log_probs_NC, labels_N, bins=14)


def test_ece_bins_are_closed_above() -> None:
    log_probs_NC = log([[0.5, 0.25, 0.25], [0.75, 0.25, 0.0]])
    # Wrong at confidence 1/2, right at 3/4: in one bin the two gaps would cancel to 1/8.
    assert classification.ece(log_probs_NC, np.array([1, 0]), bins=2) == pytest.approx((0.5 + 0.25) / 2)


def test_certainty_falls_into_the_last_ece_bin() -> None:
    certain_NC = log([[1.0, 0.0], [0.95, 0.05]])
    assert classification.ece(certain_NC, np.array([1, 0]), bins=10) == pytest.approx((1.0 - 0.05) / 2)


@pytest.mark.parametrize(("log_odds", "correct", "wrong"), [(3.0, 8, 2), (1.0, 9, 1), (-0.5, 2, 8), (12.0, 9, 1)])
def test_the_fitted_temperature_makes_confidence_equal_accuracy(log_odds: float, correct: int, wrong: int) -> None:
    log_probs_NC, labels_N = overconfident(log_odds, correct, wrong)
    expected = log_odds / math.log(correct / wrong)
    assert classification.fit_temperature(log_probs_NC, labels_N) == pytest.approx(expected, rel=1e-6)


def test_no_temperature_of_a_fine_grid_beats_the_fitted_one(log_probs_NC: Array, labels_N: Labels) -> None:
    fitted = classification.fit_temperature(log_probs_NC, labels_N)
    best = classification.calibrated_nll(log_probs_NC, labels_N, fitted)
    temperatures = np.exp(np.linspace(-3, 3, 301))
    grid = [classification.calibrated_nll(log_probs_NC, labels_N, temperature) for temperature in temperatures]
    assert best <= min(grid)
    assert best == pytest.approx(min(grid), rel=1e-3)
    assert best < classification.nll(log_probs_NC, labels_N)


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


# Diversity


def test_disagreement_is_the_mean_over_pairs(log_probs_MNC: Array) -> None:
    a_N, b_N, c_N = log_probs_MNC.argmax(axis=-1)
    expected = (np.mean(a_N != b_N) + np.mean(a_N != c_N) + np.mean(b_N != c_N)) / 3
    assert 0 < expected < 1
    assert classification.disagreement(log_probs_MNC) == pytest.approx(expected, rel=1e-12)


def test_normalised_disagreement_divides_by_the_mean_member_error(log_probs_MNC: Array, labels_N: Labels) -> None:
    error = np.mean([labels_N[n] != member_NC[n].argmax() for member_NC in log_probs_MNC for n in range(200)])
    expected = classification.disagreement(log_probs_MNC) / error
    assert classification.normalised_disagreement(log_probs_MNC, labels_N) == pytest.approx(expected, rel=1e-12)


def test_normalised_disagreement_is_2_for_errors_that_never_coincide() -> None:
    right, wrong = [0.9, 0.1], [0.1, 0.9]
    members_MNC = log([[right, wrong, right, right], [right, right, wrong, right]])
    assert classification.normalised_disagreement(members_MNC, np.zeros(4, dtype=int)) == 2.0


def test_pairwise_kl_is_the_mean_over_ordered_pairs(log_probs_MNC: Array) -> None:
    divergences = []
    for i in range(3):
        for j in range(3):
            for n in range(200):
                p_C, q_C = np.exp(log_probs_MNC[i, n]), np.exp(log_probs_MNC[j, n])
                if i != j:
                    divergences.append(sum(p * math.log(p / q) for p, q in zip(p_C, q_C, strict=True)))
    assert classification.pairwise_kl(log_probs_MNC) == pytest.approx(np.mean(divergences), rel=1e-12)


def test_mutual_information_is_ensemble_entropy_minus_member_entropy(log_probs_MNC: Array) -> None:
    def entropy(p_C: Array) -> float:
        return -sum(float(p) * math.log(p) for p in p_C)

    probs_MNC = np.exp(log_probs_MNC)
    per_example = [
        entropy(probs_MNC[:, n].mean(axis=0)) - np.mean([entropy(probs_MNC[m, n]) for m in range(3)])
        for n in range(200)
    ]
    assert classification.mutual_information(log_probs_MNC) == pytest.approx(np.mean(per_example), rel=1e-12)


def test_certain_members_that_contradict_each_other_have_mutual_information_log_2() -> None:
    assert classification.mutual_information(log([[[1.0, 0.0]], [[0.0, 1.0]]])) == pytest.approx(math.log(2))


def test_the_ensembles_brier_score_is_its_members_less_the_ambiguity(log_probs_MNC: Array, labels_N: Labels) -> None:
    """The decomposition of Krogh and Vedelsby (1995)."""
    of_members = np.mean([classification.brier(member_NC, labels_N) for member_NC in log_probs_MNC])
    of_ensemble = classification.brier(classification.ensemble_log_probs(log_probs_MNC), labels_N)
    assert classification.ambiguity(log_probs_MNC) == pytest.approx(of_members - of_ensemble, rel=1e-10)
    assert of_members > of_ensemble


def test_ambiguity_is_the_variance_of_the_members_summed_over_classes(log_probs_MNC: Array) -> None:
    expected = np.exp(log_probs_MNC).var(axis=0).sum(axis=-1).mean()
    assert classification.ambiguity(log_probs_MNC) == pytest.approx(expected, rel=1e-12)


def test_certain_members_that_contradict_each_other_have_ambiguity_one_half() -> None:
    assert classification.ambiguity(log([[[1.0, 0.0]], [[0.0, 1.0]]])) == pytest.approx(0.5)


def test_mutual_information_and_divergence_are_those_of_scipy(log_probs_MNC: Array) -> None:
    probs_MNC = np.exp(log_probs_MNC)
    within = entropy(probs_MNC, axis=-1).mean()
    information = entropy(probs_MNC.mean(axis=0), axis=-1).mean() - within
    assert classification.mutual_information(log_probs_MNC) == pytest.approx(information, rel=1e-10)
    pairs = [rel_entr(probs_MNC[i], probs_MNC[j]).sum(-1).mean() for i in range(3) for j in range(3) if i != j]
    assert classification.pairwise_kl(log_probs_MNC) == pytest.approx(np.mean(pairs), rel=1e-10)


@pytest.mark.filterwarnings("error")
def test_equal_members_have_no_diversity_even_where_a_probability_is_0() -> None:
    members_MNC = log([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]] * 2)
    assert classification.ambiguity(members_MNC) == 0.0
    assert classification.disagreement(members_MNC) == 0.0
    assert classification.pairwise_kl(members_MNC) == 0.0
    assert classification.mutual_information(members_MNC) == pytest.approx(0.0, abs=1e-15)


def test_kl_from_a_certain_member_is_finite_and_to_it_infinite() -> None:
    certain_NC, undecided_NC = log([[1.0, 0.0]]), log([[0.5, 0.5]])
    assert classification._mean_kl(certain_NC, undecided_NC) == pytest.approx(math.log(2))
    assert classification.pairwise_kl(np.stack([certain_NC, undecided_NC])) == math.inf


def test_kl_is_exact_where_a_probability_underflows() -> None:
    # KL(p || q) = 400 - log 2 and KL(q || p) = log 2, for p = (1/2, 1/2) and q = (1, exp(-800)).
    members_MNC = np.array([[[math.log(0.5), math.log(0.5)]], [[0.0, -800.0]]])
    assert classification.pairwise_kl(members_MNC) == pytest.approx(200.0, rel=1e-12)


def test_the_diversity_of_one_member_is_nan(log_probs_MNC: Array, labels_N: Labels) -> None:
    one_MNC = log_probs_MNC[:1]
    assert math.isnan(classification.disagreement(one_MNC))
    assert math.isnan(classification.normalised_disagreement(one_MNC, labels_N))
    assert math.isnan(classification.pairwise_kl(one_MNC))
    assert math.isnan(classification.mutual_information(one_MNC))
    assert math.isnan(classification.ambiguity(one_MNC))


def test_normalised_disagreement_of_members_without_error_is_nan() -> None:
    assert math.isnan(classification.normalised_disagreement(log([[[0.9, 0.1]], [[0.8, 0.2]]]), np.array([0])))


# Deep ensemble equivalent


@pytest.mark.parametrize(
    ("nll", "size"),
    [(0.9, 1.5), (0.8, 2.0), (0.75, 2.5), (0.7, 3.0), (1.0, 1.0), (1.2, 1.0), (0.5, 3.0), (math.inf, 1.0)],
)
def test_deep_ensemble_equivalent_interpolates_and_stays_within_1_and_k(nll: float, size: float) -> None:
    assert classification.deep_ensemble_equivalent(nll, [1.0, 0.8, 0.7]) == pytest.approx(size)


@pytest.mark.parametrize(("nll", "size"), [(0.9, 1.5), (0.85, 1.75), (0.8, 2.0), (0.7, 3.5)])
def test_a_larger_reference_ensemble_that_is_worse_counts_as_no_gain(nll: float, size: float) -> None:
    assert classification.deep_ensemble_equivalent(nll, [1.0, 0.8, 0.9, 0.6]) == pytest.approx(size)


@pytest.mark.parametrize("reference", [[1.0], [1.0, 0.8], [1.0, 0.8, 0.9, 0.6], [1.0, 1.1, 1.2], [0.9, 0.9, 0.5]])
def test_equivalents_of_many_are_those_of_each(reference: list[float]) -> None:
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
    each_R = [classification.deep_ensemble_equivalent(nll, reference) for nll in nll_R]
    np.testing.assert_array_equal(classification.deep_ensemble_equivalents(nll_R, reference), each_R)


def test_deep_ensemble_equivalent_of_an_unknown_nll_is_nan() -> None:
    assert math.isnan(classification.deep_ensemble_equivalent(math.nan, [1.0, 0.8]))


@pytest.mark.parametrize("reference", [[], [[1.0, 0.8]], [1.0, math.nan]])
def test_deep_ensemble_equivalent_needs_a_reference(reference: npt.ArrayLike) -> None:
    with pytest.raises(ValueError, match="reference"):
        classification.deep_ensemble_equivalent(0.9, reference)


# Summary


def test_the_summary_scores_the_ensemble_and_the_diversity_of_its_members(
    log_probs_MNC: Array, labels_N: Labels
) -> None:
    ensemble_NC = classification.ensemble_log_probs(log_probs_MNC)
    expected = {
        "accuracy": classification.accuracy(ensemble_NC, labels_N),
        "mean_class_accuracy": classification.mean_class_accuracy(ensemble_NC, labels_N),
        "nll": classification.nll(ensemble_NC, labels_N),
        "calibrated_nll": classification.calibrated_nll(ensemble_NC, labels_N, 1.5),
        "temperature": 1.5,
        "ece": classification.ece(ensemble_NC, labels_N),
        "brier": classification.brier(ensemble_NC, labels_N),
        "disagreement": classification.disagreement(log_probs_MNC),
        "normalised_disagreement": classification.normalised_disagreement(log_probs_MNC, labels_N),
        "pairwise_kl": classification.pairwise_kl(log_probs_MNC),
        "mutual_information": classification.mutual_information(log_probs_MNC),
        "ambiguity": classification.ambiguity(log_probs_MNC),
    }
    scores = classification.summary(log_probs_MNC, labels_N, temperature=1.5)
    assert list(scores) == [*PREDICTOR_KEYS, *DIVERSITY_KEYS]
    assert scores == expected
    assert {type(score) for score in scores.values()} == {float}


def test_summaries_are_those_of_the_first_members(log_probs_MNC: Array, labels_N: Labels) -> None:
    found = classification.summaries(log_probs_MNC, labels_N, [1.5, math.nan, 0.5])
    assert [list(scores) for scores in found] == [[*PREDICTOR_KEYS, *DIVERSITY_KEYS]] * 3
    for size, temperature in ((1, 1.5), (2, None), (3, 0.5)):
        alone = classification.summary(log_probs_MNC[:size], labels_N, temperature)
        np.testing.assert_array_equal(list(found[size - 1].values()), list(alone.values()))


def test_the_summary_of_one_predictor_without_temperature_has_nan_for_what_is_undefined(
    log_probs_MNC: Array, labels_N: Labels
) -> None:
    scores = classification.summary(log_probs_MNC[:1], labels_N)
    undefined = {key for key, score in scores.items() if math.isnan(score)}
    assert undefined == {"calibrated_nll", "temperature", *DIVERSITY_KEYS}


def test_float32_is_scored_in_float64(log_probs_MNC: Array, labels_N: Labels) -> None:
    single_MNC = log_probs_MNC.astype(np.float32)
    double_MNC = single_MNC.astype(np.float64)
    assert classification.summary(single_MNC, labels_N, 2.0) == classification.summary(double_MNC, labels_N, 2.0)


def test_scoring_leaves_its_inputs_untouched(log_probs_MNC: Array, labels_N: Labels) -> None:
    before_MNC, before_N = log_probs_MNC.copy(), labels_N.copy()
    classification.summary(log_probs_MNC, labels_N, temperature=2.0)
    classification.fit_temperature(log_probs_MNC[0], labels_N)
    np.testing.assert_array_equal(log_probs_MNC, before_MNC)
    np.testing.assert_array_equal(labels_N, before_N)


# Wrong inputs

SCORES = [
    classification.accuracy,
    classification.mean_class_accuracy,
    classification.nll,
    classification.ece,
    classification.brier,
]
OF_MEMBERS = [
    classification.ensemble_log_probs,
    classification.disagreement,
    classification.pairwise_kl,
    classification.mutual_information,
]


@pytest.mark.parametrize("score", [*SCORES, classification.fit_temperature])
def test_labels_of_another_length_are_refused_with_both_shapes(
    score: Callable[..., float], log_probs_NC: Array, labels_N: Labels
) -> None:
    with pytest.raises(ValueError, match=r"\(200, 5\).*\(199,\)"):
        score(log_probs_NC, labels_N[1:])


@pytest.mark.parametrize("score", [*SCORES, classification.fit_temperature])
def test_a_predictor_has_two_axes(score: Callable[..., float], log_probs_MNC: Array, labels_N: Labels) -> None:
    with pytest.raises(ValueError, match=r"\[NC\], got shape \(3, 200, 5\)"):
        score(log_probs_MNC, labels_N)


@pytest.mark.parametrize("function", OF_MEMBERS)
def test_members_have_three_axes(function: Callable[..., object], log_probs_NC: Array) -> None:
    with pytest.raises(ValueError, match=r"\[MNC\], got shape \(200, 5\)"):
        function(log_probs_NC)


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


# Networks that overflow


def test_no_class_is_a_wrong_answer_of_infinite_loss() -> None:
    """Not class 0, where argmax finds the first NaN."""
    log_probs_NC = np.stack([log([0.7, 0.2, 0.1]), [math.nan] * 3, log([0.1, 0.8, 0.1])])
    labels_N = np.array([0, 0, 1])
    scores = classification.summary(log_probs_NC[None], labels_N, temperature=2.0)
    assert scores["accuracy"] == pytest.approx(2 / 3) and scores["mean_class_accuracy"] == pytest.approx(0.75)
    assert scores["nll"] == scores["calibrated_nll"] == math.inf
    assert math.isnan(scores["ece"]) and math.isnan(scores["brier"])
    assert classification.fit_temperature(log_probs_NC, labels_N) == 1.0


def test_what_compares_probabilities_is_unknown_where_one_member_has_none() -> None:
    right = np.stack([log([0.7, 0.2, 0.1]), log([0.1, 0.8, 0.1])])
    both_MNC = np.stack([right, np.stack([right[0], [math.nan] * 3])])
    scores = classification.summary(both_MNC, np.array([0, 1]))
    assert scores["accuracy"] == 0.5 and scores["nll"] == math.inf and scores["disagreement"] == 0.5
    assert all(math.isnan(scores[name]) for name in ("pairwise_kl", "mutual_information", "ambiguity"))
