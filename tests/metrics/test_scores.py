"""Scores of ensembles against scikit-learn, torchmetrics, plain loops and answers known in closed form.

Axes: M members, N examples, C classes.
"""

import math
import subprocess
import sys
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from log_probs import Array, Labels, log
from scipy.special import rel_entr
from scipy.stats import entropy
from sklearn.metrics import balanced_accuracy_score, brier_score_loss
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from raybasin.metrics import classification, scores

PREDICTOR_KEYS = ["accuracy", "mean_class_accuracy", "nll", "calibrated_nll", "temperature", "ece", "brier"]
DIVERSITY_KEYS = ["disagreement", "normalised_disagreement", "pairwise_kl", "mutual_information", "ambiguity"]


def of_one(score: Callable[..., float], log_probs_NC: Array, labels_N: Labels, **options: int) -> float:
    return score(scores.Networks(np.asarray(log_probs_NC)[None], labels_N).first(1), **options)


def of_members(score: Callable[..., float], log_probs_MNC: Array, labels_N: Labels | None = None) -> float:
    """Without labels, for scores that need none."""
    labels_N = np.zeros(len(log_probs_MNC[0]), dtype=int) if labels_N is None else labels_N
    return score(scores.Networks(log_probs_MNC, labels_N).first(len(log_probs_MNC)))


def ensemble_log_probs(log_probs_MNC: Array) -> Array:
    labels_N = np.zeros(log_probs_MNC.shape[1], dtype=int)
    return scores.Networks(log_probs_MNC, labels_N).first(len(log_probs_MNC)).log_probs_NC


def summary(log_probs_MNC: Array, labels_N: Labels, temperature: float = math.nan) -> dict[str, float]:
    return scores.scores_of(scores.Networks(log_probs_MNC, labels_N).first(len(log_probs_MNC), temperature))


def calibrated_nll(log_probs_NC: Array, labels_N: Labels, temperature: float) -> float:
    return scores.calibrated_nll(scores.Networks(log_probs_NC[None], labels_N).first(1, temperature))


# Ensembles


def test_an_ensemble_averages_probabilities(log_probs_MNC: Array) -> None:
    np.testing.assert_allclose(
        np.exp(ensemble_log_probs(log_probs_MNC)), np.exp(log_probs_MNC).mean(axis=0), rtol=1e-12
    )


def test_an_ensemble_of_one_is_that_member_bit_for_bit(log_probs_MNC: Array) -> None:
    np.testing.assert_array_equal(ensemble_log_probs(log_probs_MNC[:1]), log_probs_MNC[0])


def test_an_ensemble_keeps_probabilities_that_underflow() -> None:
    members_MNC = np.array([[[0.0, -1000.0]], [[0.0, -2000.0]]])
    np.testing.assert_allclose(ensemble_log_probs(members_MNC), [[0.0, -1000.0 - math.log(2)]])


def test_an_ensemble_needs_only_one_member_that_holds_a_class_possible() -> None:
    ensemble_NC = ensemble_log_probs(log([[[1.0, 0.0, 0.0]], [[0.5, 0.5, 0.0]]]))
    np.testing.assert_allclose(np.exp(ensemble_NC), [[0.75, 0.25, 0.0]])


# Accuracy and likelihood


def test_accuracies_are_those_of_torchmetrics(log_probs_NC: Array, labels_N: Labels) -> None:
    probs_NC, labels = torch.from_numpy(np.exp(log_probs_NC)), torch.from_numpy(labels_N)
    micro = multiclass_accuracy(probs_NC, labels, num_classes=5, average="micro")
    assert classification.accuracy(log_probs_NC, labels_N) == pytest.approx(micro.item(), rel=1e-6)
    by_class_C = multiclass_accuracy(probs_NC, labels, num_classes=5, average="none")
    macro = np.mean([by_class_C[c].item() for c in np.unique(labels_N)])
    assert of_one(scores.mean_class_accuracy, log_probs_NC, labels_N) == pytest.approx(macro, rel=1e-6)


def test_mean_class_accuracy_leaves_absent_classes_out(log_probs_NC: Array, labels_N: Labels) -> None:
    assert 3 not in labels_N
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "y_pred contains classes not in y_true")
        expected = balanced_accuracy_score(labels_N, log_probs_NC.argmax(axis=-1))
    assert of_one(scores.mean_class_accuracy, log_probs_NC, labels_N) == pytest.approx(expected, rel=1e-12)
    assert expected != pytest.approx(classification.accuracy(log_probs_NC, labels_N), rel=1e-3)


def test_brier_sums_over_classes_and_averages_over_examples(log_probs_NC: Array, labels_N: Labels) -> None:
    total = 0.0
    for n, label in enumerate(labels_N):
        for c in range(5):
            total += (math.exp(log_probs_NC[n, c]) - (c == label)) ** 2
    assert of_one(scores.brier, log_probs_NC, labels_N) == pytest.approx(total / len(labels_N), rel=1e-12)


def test_brier_is_that_of_scikit_learn_unhalved(log_probs_NC: Array, labels_N: Labels) -> None:
    expected = brier_score_loss(labels_N, np.exp(log_probs_NC), labels=range(5), scale_by_half=False)
    assert of_one(scores.brier, log_probs_NC, labels_N) == pytest.approx(expected, rel=1e-12)


def test_brier_runs_from_0_to_2() -> None:
    certain_NC = log([[1.0, 0.0]])
    assert of_one(scores.brier, certain_NC, np.array([0])) == 0.0
    assert of_one(scores.brier, certain_NC, np.array([1])) == 2.0


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
    assert of_one(scores.ece, log_probs_NC, labels_N, bins=bins) == pytest.approx(expected.item(), rel=1e-5)


def test_ece_has_15_bins_by_default(log_probs_NC: Array, labels_N: Labels) -> None:
    default = of_one(scores.ece, log_probs_NC, labels_N)
    assert default == of_one(scores.ece, log_probs_NC, labels_N, bins=15)
    assert default != of_one(scores.ece, log_probs_NC, labels_N, bins=14)


def test_ece_bins_are_closed_above() -> None:
    log_probs_NC = log([[0.5, 0.25, 0.25], [0.75, 0.25, 0.0]])
    # Wrong at confidence 1/2, right at 3/4: in one bin the two gaps would cancel to 1/8.
    assert of_one(scores.ece, log_probs_NC, np.array([1, 0]), bins=2) == pytest.approx((0.5 + 0.25) / 2)


def test_certainty_falls_into_the_last_ece_bin() -> None:
    certain_NC = log([[1.0, 0.0], [0.95, 0.05]])
    assert of_one(scores.ece, certain_NC, np.array([1, 0]), bins=10) == pytest.approx((1.0 - 0.05) / 2)


def test_no_temperature_of_a_fine_grid_beats_the_fitted_one(log_probs_NC: Array, labels_N: Labels) -> None:
    fitted = classification.fit_temperature(log_probs_NC, labels_N)
    best = calibrated_nll(log_probs_NC, labels_N, fitted)
    temperatures = np.exp(np.linspace(-3, 3, 301))
    grid = [calibrated_nll(log_probs_NC, labels_N, temperature) for temperature in temperatures]
    assert best <= min(grid)
    assert best == pytest.approx(min(grid), rel=1e-3)
    assert best < classification.nll(log_probs_NC, labels_N)


# Diversity


def test_disagreement_is_the_mean_over_pairs(log_probs_MNC: Array) -> None:
    a_N, b_N, c_N = log_probs_MNC.argmax(axis=-1)
    expected = (np.mean(a_N != b_N) + np.mean(a_N != c_N) + np.mean(b_N != c_N)) / 3
    assert 0 < expected < 1
    assert of_members(scores.disagreement, log_probs_MNC) == pytest.approx(expected, rel=1e-12)


def test_normalised_disagreement_divides_by_the_mean_member_error(log_probs_MNC: Array, labels_N: Labels) -> None:
    error = np.mean([labels_N[n] != member_NC[n].argmax() for member_NC in log_probs_MNC for n in range(200)])
    expected = of_members(scores.disagreement, log_probs_MNC) / error
    assert of_members(scores.normalised_disagreement, log_probs_MNC, labels_N) == pytest.approx(expected, rel=1e-12)


def test_normalised_disagreement_is_2_for_errors_that_never_coincide() -> None:
    right, wrong = [0.9, 0.1], [0.1, 0.9]
    members_MNC = log([[right, wrong, right, right], [right, right, wrong, right]])
    assert of_members(scores.normalised_disagreement, members_MNC, np.zeros(4, dtype=int)) == 2.0


def test_pairwise_kl_is_the_mean_over_ordered_pairs(log_probs_MNC: Array) -> None:
    divergences = []
    for i in range(3):
        for j in range(3):
            for n in range(200):
                p_C, q_C = np.exp(log_probs_MNC[i, n]), np.exp(log_probs_MNC[j, n])
                if i != j:
                    divergences.append(sum(p * math.log(p / q) for p, q in zip(p_C, q_C, strict=True)))
    assert of_members(scores.pairwise_kl, log_probs_MNC) == pytest.approx(np.mean(divergences), rel=1e-12)


def test_mutual_information_is_ensemble_entropy_minus_member_entropy(log_probs_MNC: Array) -> None:
    def entropy(p_C: Array) -> float:
        return -sum(float(p) * math.log(p) for p in p_C)

    probs_MNC = np.exp(log_probs_MNC)
    per_example = [
        entropy(probs_MNC[:, n].mean(axis=0)) - np.mean([entropy(probs_MNC[m, n]) for m in range(3)])
        for n in range(200)
    ]
    assert of_members(scores.mutual_information, log_probs_MNC) == pytest.approx(np.mean(per_example), rel=1e-12)


def test_certain_members_that_contradict_each_other_have_mutual_information_log_2() -> None:
    assert of_members(scores.mutual_information, log([[[1.0, 0.0]], [[0.0, 1.0]]])) == pytest.approx(math.log(2))


def test_the_ensembles_brier_score_is_its_members_less_the_ambiguity(log_probs_MNC: Array, labels_N: Labels) -> None:
    """The decomposition of Krogh and Vedelsby (1995)."""
    mean_of_members = np.mean([of_one(scores.brier, member_NC, labels_N) for member_NC in log_probs_MNC])
    of_ensemble = of_one(scores.brier, ensemble_log_probs(log_probs_MNC), labels_N)
    assert of_members(scores.ambiguity, log_probs_MNC) == pytest.approx(mean_of_members - of_ensemble, rel=1e-10)
    assert mean_of_members > of_ensemble


def test_ambiguity_is_the_variance_of_the_members_summed_over_classes(log_probs_MNC: Array) -> None:
    expected = np.exp(log_probs_MNC).var(axis=0).sum(axis=-1).mean()
    assert of_members(scores.ambiguity, log_probs_MNC) == pytest.approx(expected, rel=1e-12)


def test_certain_members_that_contradict_each_other_have_ambiguity_one_half() -> None:
    assert of_members(scores.ambiguity, log([[[1.0, 0.0]], [[0.0, 1.0]]])) == pytest.approx(0.5)


def test_mutual_information_and_divergence_are_those_of_scipy(log_probs_MNC: Array) -> None:
    probs_MNC = np.exp(log_probs_MNC)
    within = entropy(probs_MNC, axis=-1).mean()
    information = entropy(probs_MNC.mean(axis=0), axis=-1).mean() - within
    assert of_members(scores.mutual_information, log_probs_MNC) == pytest.approx(information, rel=1e-10)
    pairs = [rel_entr(probs_MNC[i], probs_MNC[j]).sum(-1).mean() for i in range(3) for j in range(3) if i != j]
    assert of_members(scores.pairwise_kl, log_probs_MNC) == pytest.approx(np.mean(pairs), rel=1e-10)


@pytest.mark.filterwarnings("error")
def test_equal_members_have_no_diversity_even_where_a_probability_is_0() -> None:
    members_MNC = log([[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]] * 2)
    assert of_members(scores.ambiguity, members_MNC) == 0.0
    assert of_members(scores.disagreement, members_MNC) == 0.0
    assert of_members(scores.pairwise_kl, members_MNC) == 0.0
    assert of_members(scores.mutual_information, members_MNC) == pytest.approx(0.0, abs=1e-15)


def test_kl_from_a_certain_member_is_finite_and_to_it_infinite() -> None:
    certain_NC, undecided_NC = log([[1.0, 0.0]]), log([[0.5, 0.5]])
    both = scores.Networks(np.stack([certain_NC, undecided_NC]), np.array([0]))
    assert both.divergence_MM[0, 1] == pytest.approx(math.log(2))
    assert of_members(scores.pairwise_kl, np.stack([certain_NC, undecided_NC])) == math.inf


def test_kl_is_exact_where_a_probability_underflows() -> None:
    # KL(p || q) = 400 - log 2 and KL(q || p) = log 2, for p = (1/2, 1/2) and q = (1, exp(-800)).
    members_MNC = np.array([[[math.log(0.5), math.log(0.5)]], [[0.0, -800.0]]])
    assert of_members(scores.pairwise_kl, members_MNC) == pytest.approx(200.0, rel=1e-12)


def test_the_diversity_of_one_member_is_nan(log_probs_MNC: Array, labels_N: Labels) -> None:
    one_MNC = log_probs_MNC[:1]
    assert math.isnan(of_members(scores.disagreement, one_MNC))
    assert math.isnan(of_members(scores.normalised_disagreement, one_MNC, labels_N))
    assert math.isnan(of_members(scores.pairwise_kl, one_MNC))
    assert math.isnan(of_members(scores.mutual_information, one_MNC))
    assert math.isnan(of_members(scores.ambiguity, one_MNC))


def test_normalised_disagreement_of_members_without_error_is_nan() -> None:
    assert math.isnan(of_members(scores.normalised_disagreement, log([[[0.9, 0.1]], [[0.8, 0.2]]]), np.array([0])))


# Summary


def test_the_summary_scores_the_ensemble_and_the_diversity_of_its_members(
    log_probs_MNC: Array, labels_N: Labels
) -> None:
    ensemble_NC = ensemble_log_probs(log_probs_MNC)
    expected = {
        "accuracy": classification.accuracy(ensemble_NC, labels_N),
        "mean_class_accuracy": of_one(scores.mean_class_accuracy, ensemble_NC, labels_N),
        "nll": classification.nll(ensemble_NC, labels_N),
        "calibrated_nll": calibrated_nll(ensemble_NC, labels_N, 1.5),
        "temperature": 1.5,
        "ece": of_one(scores.ece, ensemble_NC, labels_N),
        "brier": of_one(scores.brier, ensemble_NC, labels_N),
        "disagreement": of_members(scores.disagreement, log_probs_MNC),
        "normalised_disagreement": of_members(scores.normalised_disagreement, log_probs_MNC, labels_N),
        "pairwise_kl": of_members(scores.pairwise_kl, log_probs_MNC),
        "mutual_information": of_members(scores.mutual_information, log_probs_MNC),
        "ambiguity": of_members(scores.ambiguity, log_probs_MNC),
    }
    found = summary(log_probs_MNC, labels_N, temperature=1.5)
    assert list(found) == [*PREDICTOR_KEYS, *DIVERSITY_KEYS]
    assert found == expected
    assert {type(score) for score in found.values()} == {float}


def test_summaries_are_those_of_the_first_members(log_probs_MNC: Array, labels_N: Labels) -> None:
    networks = scores.Networks(log_probs_MNC, labels_N)
    for size, temperature in ((1, 1.5), (2, math.nan), (3, 0.5)):
        found = scores.scores_of(networks.first(size, temperature))
        alone = summary(log_probs_MNC[:size], labels_N, temperature)
        assert list(found) == list(alone) == [*PREDICTOR_KEYS, *DIVERSITY_KEYS]
        np.testing.assert_array_equal(list(found.values()), list(alone.values()))


def test_the_summary_of_one_predictor_without_temperature_has_nan_for_what_is_undefined(
    log_probs_MNC: Array, labels_N: Labels
) -> None:
    found = summary(log_probs_MNC[:1], labels_N)
    undefined = {key for key, score in found.items() if math.isnan(score)}
    assert undefined == {"calibrated_nll", "temperature", *DIVERSITY_KEYS}


def test_float32_is_scored_in_float64(log_probs_MNC: Array, labels_N: Labels) -> None:
    single_MNC = log_probs_MNC.astype(np.float32)
    double_MNC = single_MNC.astype(np.float64)
    assert summary(single_MNC, labels_N, 2.0) == summary(double_MNC, labels_N, 2.0)


def test_scoring_leaves_its_inputs_untouched(log_probs_MNC: Array, labels_N: Labels) -> None:
    before_MNC, before_N = log_probs_MNC.copy(), labels_N.copy()
    summary(log_probs_MNC, labels_N, temperature=2.0)
    classification.fit_temperature(log_probs_MNC[0], labels_N)
    np.testing.assert_array_equal(log_probs_MNC, before_MNC)
    np.testing.assert_array_equal(labels_N, before_N)


# Networks that overflow


def test_no_class_is_a_wrong_answer_of_infinite_loss() -> None:
    """Not class 0, where argmax finds the first NaN."""
    log_probs_NC = np.stack([log([0.7, 0.2, 0.1]), [math.nan] * 3, log([0.1, 0.8, 0.1])])
    labels_N = np.array([0, 0, 1])
    found = summary(log_probs_NC[None], labels_N, temperature=2.0)
    assert found["accuracy"] == pytest.approx(2 / 3) and found["mean_class_accuracy"] == pytest.approx(0.75)
    assert found["nll"] == found["calibrated_nll"] == math.inf
    assert math.isnan(found["ece"]) and math.isnan(found["brier"])
    assert classification.fit_temperature(log_probs_NC, labels_N) == 1.0


def test_what_compares_probabilities_is_unknown_where_one_member_has_none() -> None:
    right = np.stack([log([0.7, 0.2, 0.1]), log([0.1, 0.8, 0.1])])
    both_MNC = np.stack([right, np.stack([right[0], [math.nan] * 3])])
    found = summary(both_MNC, np.array([0, 1]))
    assert found["accuracy"] == 0.5 and found["nll"] == math.inf and found["disagreement"] == 0.5
    assert all(math.isnan(found[name]) for name in ("pairwise_kl", "mutual_information", "ambiguity"))


# Wrong inputs


def test_what_is_no_log_probability_and_labels_that_are_none_are_refused(
    log_probs_MNC: Array, labels_N: Labels
) -> None:
    for log_probs, labels, said in (
        (log_probs_MNC[0], labels_N, r"\[MNC\], got shape \(200, 5\)"),
        (log_probs_MNC, labels_N[1:], r"\(200, 5\).*\(199,\)"),
        (np.exp(log_probs_MNC), labels_N, "not log-probabilities: 600 of 600 rows"),
        (log_probs_MNC, labels_N + 5, "labels must be integers from 0 to 4"),
    ):
        with pytest.raises(ValueError, match=said):
            scores.Networks(log_probs, labels)


# A score is one function

ONE_MORE = """
import sys
import numpy as np
from raybasin.metrics.scores import score

@score("share", None, "mean margin", "Between the two likeliest.")
def margin(ensemble):
    top_N2 = np.sort(np.exp(ensemble.log_probs_NC), axis=-1)[:, -2:]
    return float(np.mean(top_N2[:, 1] - top_N2[:, 0]))

from raybasin.metrics.cell_scores import Predictions, Split, score_rows
from raybasin.store import schemas, tables

log_probs = {("a", "own"): np.log([[0.75, 0.25]]), ("b", "own"): np.log([[0.25, 0.75]])}
predictions = Predictions(("val", "test"), False, lambda split, ids: Split(np.array([0]), log_probs))
rows = score_rows("cell", ["a", "b"], [], predictions)
field = schemas.SCHEMAS["scores"].field("margin")
assert {b"Between the two likeliest.", b"share"} <= set(field.metadata.values()) and tables.encode("scores", rows)
print([(row["kind"], round(row["margin"], 6)) for row in rows if row["split"] == "test"])
"""


def test_a_further_score_is_computed_for_every_predictor_and_stored() -> None:
    done = subprocess.run([sys.executable, "-c", ONE_MORE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([("member", 0.5), ("member", 0.5), ("ensemble", 0.5), ("ensemble", 0.0)])


def test_every_score_says_what_it_is() -> None:
    assert len({score.name for score in scores.SCORES}) == len(scores.SCORES)
    assert all(score.title and score.meaning and score.unit in ("share", "nats", "") for score in scores.SCORES)
