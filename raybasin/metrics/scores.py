"""The scores of ensembles: accuracy, calibration, diversity. One network is scored as an ensemble of one.

A score is a function of an `Ensemble` that is marked by `score`, which makes it a column of the table `scores` that is
computed for every predictor on every split, and a value that the map can show.

Axes: M members, N examples, C classes, B calibration bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from raybasin.metrics import classification, uncertainty
from raybasin.metrics.classification import FloatArray, IntArray

ECE_BINS = 15

Compute = Callable[..., float]
"""A function of an `Ensemble`."""
Better = Literal["higher", "lower"] | None


class Networks:
    """Log-probabilities of M networks on N labelled examples, and what is known of each and of each pair of them.

    Args:
        log_probs_MNC: natural-log probabilities of the networks; see `classification` for what they may hold.
        labels_N: class indices.

    Raises:
        ValueError: on what `classification` refuses.
    """

    def __init__(self, log_probs_MNC: FloatArray, labels_N: IntArray) -> None:
        self.log_probs_MNC = classification.checked_log_probs(log_probs_MNC, "MNC")
        self.labels_N = classification.checked_labels(self.log_probs_MNC[0], labels_N)

    def first(self, size: int, temperature: float = math.nan) -> Ensemble:
        """The ensemble of the first `size` networks."""
        return Ensemble(self, size, temperature)

    @cached_property
    def classes_MN(self) -> IntArray:
        return classification.classes_of(self.log_probs_MNC)

    @cached_property
    def accuracy_M(self) -> FloatArray:
        return np.mean(self.classes_MN == self.labels_N, axis=-1)

    @cached_property
    def entropy_M(self) -> FloatArray:
        """Mean entropy of a network's predictions, in nats."""
        return np.array([mean_entropy(log_probs_NC) for log_probs_NC in self.log_probs_MNC])

    @cached_property
    def disagreement_MM(self) -> FloatArray:
        """Share of examples that two networks classify differently."""
        return np.stack([np.mean(self.classes_MN != one_N, axis=-1) for one_N in self.classes_MN])

    @cached_property
    def divergence_MM(self) -> FloatArray:
        """Mean KL(p_i || p_j) over examples, in nats."""
        divergence_MM = np.zeros((len(self.log_probs_MNC),) * 2)
        for i, log_p_NC in enumerate(self.log_probs_MNC):
            p_NC = np.exp(log_p_NC)
            for j, log_q_NC in enumerate(self.log_probs_MNC):
                if i != j:
                    # Not p log(p/q) on probabilities: where q underflows to 0, its logarithm is still finite.
                    with np.errstate(invalid="ignore"):  # -inf - -inf and 0 * inf, both where p = 0
                        terms_NC = np.where(p_NC == 0, 0.0, p_NC * (log_p_NC - log_q_NC))
                    divergence_MM[i, j] = np.mean(terms_NC.sum(axis=-1))
        return divergence_MM


@dataclass(frozen=True)
class Ensemble:
    """The first `size` of some networks, whose probabilities are averaged. `temperature` was fitted to this ensemble on
    other data; NaN without one."""

    networks: Networks
    size: int
    temperature: float = math.nan

    @property
    def labels_N(self) -> IntArray:
        return self.networks.labels_N

    @property
    def log_probs_MNC(self) -> FloatArray:
        """Of the members."""
        return self.networks.log_probs_MNC[: self.size]

    @cached_property
    def log_probs_NC(self) -> FloatArray:
        """Of the ensemble, which averages its members' probabilities, not their logits."""
        if self.size == 1:
            return self.log_probs_MNC[0]
        return uncertainty.averaged(self.log_probs_MNC)

    @cached_property
    def correct_N(self) -> np.ndarray:
        """Whether the likeliest class (the first one, on ties) is the label."""
        return classification.classes_of(self.log_probs_NC) == self.labels_N

    def mean_of_pairs(self, values_MM: FloatArray) -> float:
        """Mean over ordered pairs of different members; NaN for one member."""
        pairs = values_MM[: self.size, : self.size][~np.eye(self.size, dtype=bool)]
        return float(np.mean(pairs)) if pairs.size else math.nan


def mean_entropy(log_probs_NC: FloatArray) -> float:
    """Entropy in nats, mean over examples."""
    return float(np.mean(uncertainty.entropy(log_probs_NC)))


@dataclass(frozen=True)
class Score:
    """A score of predictors, and the column of `scores` that holds it.

    Attributes:
        name: of the column.
        compute: the function of an ensemble that gives it.
        unit: of the stored number: `share` (0 to 1), `nats`, or empty for a pure number.
        better: which way is better; None where neither is.
        title: for people, on maps and in reports.
        meaning: a line for docs/tables.md and the metadata of stored files.
    """

    name: str
    compute: Compute
    unit: str
    better: Better
    title: str
    meaning: str


SCORES: list[Score] = []
"""In the order of their columns."""


def score(unit: str, better: Better, title: str, meaning: str) -> Callable[[Compute], Compute]:
    """Makes a function of an ensemble a score of the same name; what is given are fields of `Score`."""

    def enter(compute: Compute) -> Compute:
        SCORES.append(Score(compute.__name__, compute, unit, better, title, meaning))
        return compute

    return enter


def scores_of(ensemble: Ensemble) -> dict[str, float]:
    """All SCORES of an ensemble, by name."""
    return {score.name: score.compute(ensemble) for score in SCORES}


# Of the ensemble's predictions


@score("share", "higher", "accuracy", "Share of the examples that it classifies rightly.")
def accuracy(ensemble: Ensemble) -> float:
    return float(np.mean(ensemble.correct_N))


@score("share", "higher", "mean-per-class accuracy", "Unweighted mean of the accuracies within each class.")
def mean_class_accuracy(ensemble: Ensemble) -> float:
    """Of the classes that occur among the labels; also called balanced accuracy, or macro recall."""
    images_C = np.bincount(ensemble.labels_N)
    correct_C = np.bincount(ensemble.labels_N, weights=ensemble.correct_N)
    return float(np.mean(correct_C[images_C > 0] / images_C[images_C > 0]))


@score("nats", "lower", "NLL", "Mean negative log-likelihood.")
def nll(ensemble: Ensemble) -> float:
    """Inf if some label has probability 0 or none."""
    return classification.mean_nll(ensemble.log_probs_NC, ensemble.labels_N)


@score("nats", "lower", "calibrated NLL", "NLL at `temperature`; NaN on `val`, where the temperature was fitted.")
def calibrated_nll(ensemble: Ensemble) -> float:
    """NLL in nats at the temperature that was fitted on other data (Ashukha et al. 2020); NaN without one."""
    if math.isnan(ensemble.temperature):
        return math.nan
    tempered_NC = classification.tempered(ensemble.log_probs_NC, ensemble.temperature)
    return classification.mean_nll(tempered_NC, ensemble.labels_N)


@score("", None, "temperature", "Fitted on validation.")
def temperature(ensemble: Ensemble) -> float:
    return ensemble.temperature


@score("share", "lower", "expected calibration error", "Expected calibration error, 15 bins.")
def ece(ensemble: Ensemble, bins: int = ECE_BINS) -> float:
    """Expected calibration error, in [0, 1].

    Mean over examples of |accuracy - mean confidence| of the example's bin, where confidence is the largest
    probability and the bins are equally wide: (0, 1/B], ..., ((B-1)/B, 1] (Guo et al. 2017, eq. 3).
    """
    bin_N, confidence_N = bins_of(ensemble, bins)
    # A bin's weight (its count / N) cancels the count in its means, so sums per bin are enough.
    gap_B = np.bincount(bin_N, weights=ensemble.correct_N - confidence_N)
    return float(np.abs(gap_B).sum() / len(ensemble.labels_N))


def bins_of(ensemble: Ensemble, bins: int = ECE_BINS) -> tuple[IntArray, FloatArray]:
    """The bin [N] of each example, from 0, and the confidence [N] by which it is found: see `ece`."""
    confidence_N = np.exp(ensemble.log_probs_NC.max(axis=-1))
    return np.digitize(confidence_N, np.linspace(0.0, 1.0, bins + 1)[1:-1], right=True), confidence_N


@score("", "lower", "Brier score", "Summed over classes, 0 to 2.")
def brier(ensemble: Ensemble) -> float:
    """Squared distance to the one-hot label: sum over classes, mean over examples, in [0, 2] (Brier 1950)."""
    error_NC = np.exp(ensemble.log_probs_NC)
    error_NC[np.arange(len(ensemble.labels_N)), ensemble.labels_N] -= 1.0
    return float(np.mean(np.sum(error_NC**2, axis=-1)))


# Of how its members differ: all NaN for one member


@score("share", None, "disagreement", "Between its members; NaN for one network.")
def disagreement(ensemble: Ensemble) -> float:
    """P[two members predict different classes], mean over unordered pairs, in [0, 1]."""
    return ensemble.mean_of_pairs(ensemble.networks.disagreement_MM)


@score("", None, "normalised disagreement", "Over mean member error; NaN for one network.")
def normalised_disagreement(ensemble: Ensemble) -> float:
    """Mean pairwise disagreement / mean member error; NaN also for members without error.

    Fort et al. (2019) divide by the error, because bad members disagree much without being a good ensemble.
    Equal members are at 0; good members with independent errors come near 2.
    """
    error = float(np.mean([1.0 - accuracy for accuracy in ensemble.networks.accuracy_M[: ensemble.size]]))
    return disagreement(ensemble) / error if error > 0 else math.nan


@score("nats", None, "pairwise KL divergence", "Mean over ordered pairs of members; NaN for one network.")
def pairwise_kl(ensemble: Ensemble) -> float:
    """KL(p_i || p_j) in nats, mean over ordered pairs of members and over examples.

    It is inf if a member gives probability 0 to a class that another one holds possible.
    """
    return ensemble.mean_of_pairs(ensemble.networks.divergence_MM)


@score("nats", None, "mutual information", "Between class and member; NaN for one network.")
def mutual_information(ensemble: Ensemble) -> float:
    """Ensemble entropy minus mean member entropy, in nats, mean over examples.

    The mutual information of prediction and member (Houlsby et al. 2011, BALD), at most log min(M, C).
    """
    if ensemble.size == 1:
        return math.nan
    return float(mean_entropy(ensemble.log_probs_NC) - np.mean(ensemble.networks.entropy_M[: ensemble.size]))


@score("", None, "ambiguity", "Squared distance of members from their ensemble, 0 to below 2; NaN for one network.")
def ambiguity(ensemble: Ensemble) -> float:
    """Squared distance of a member's probabilities from the ensemble's: summed over classes, mean over members and
    examples, in [0, 2).

    The ambiguity of Krogh and Vedelsby (1995) for the squared error: the Brier score of the ensemble is the mean
    Brier score of its members less the ambiguity. So it is what averaging gains, and needs no labels.
    """
    if ensemble.size == 1:
        return math.nan
    probs_NC = np.exp(ensemble.log_probs_NC)
    return float(np.mean([np.mean(np.sum((np.exp(one) - probs_NC) ** 2, axis=-1)) for one in ensemble.log_probs_MNC]))
