"""Scores of classifiers and of ensembles of them: accuracy, calibration, diversity.

Every function takes natural-log probabilities (float32 or float64, rows that sum to 1) and integer labels and
computes in float64. Probabilities of exactly 0 (log-probability -inf) are allowed: 0 log 0 = 0. So are rows of NaN: a
network that overflows gives no class, which is a wrong answer of infinite NLL, and what compares probabilities is NaN.

scikit-learn computes what it has in this form. The rest is written out here, because scikit-learn and torchmetrics
start from probabilities: they clip them (`log_loss`), refuse or warn of rows that sum to 1 in float32 only
(`brier_score_loss`), need torch (`multiclass_calibration_error`), or lose what underflows (`rel_entr`). The tests
compare with them all the same.

Axes: M members, N examples, C classes, B calibration bins, K ensemble sizes 1..K.

Raises:
    ValueError: by every function here, on arrays of the wrong shape, on labels that are no class indices, and
        on rows that are not log-probabilities (logits, probabilities, or only partly NaN).
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp
from sklearn.metrics import accuracy_score, recall_score

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]

LOG_TEMPERATURE_BOUNDS = (-3.0, 3.0)
ECE_BINS = 15

# Wide enough for float32 and thousands of classes, narrow enough to catch logits and probabilities.
ROW_SUM_TOLERANCE = 1e-3


def ensemble_log_probs(log_probs_MNC: FloatArray) -> FloatArray:
    """Log of the members' mean probabilities, [N, C]: an ensemble averages probabilities, not logits."""
    log_probs_MNC = _checked_log_probs(log_probs_MNC, "MNC")
    return _log_mean(log_probs_MNC)


def accuracy(log_probs_NC: FloatArray, labels_N: IntArray) -> float:
    """Share of examples whose likeliest class (the first one, on ties) is the label, in [0, 1]."""
    return _accuracy(*_checked_examples(log_probs_NC, labels_N))


def mean_class_accuracy(log_probs_NC: FloatArray, labels_N: IntArray) -> float:
    """Unweighted mean of the accuracies within each class that occurs among the labels, in [0, 1].

    Also called balanced accuracy, or macro recall. (`balanced_accuracy_score` is the same, and warns of predicted
    classes that do not occur.)
    """
    return _mean_class_accuracy(*_checked_examples(log_probs_NC, labels_N))


def nll(log_probs_NC: FloatArray, labels_N: IntArray) -> float:
    """Mean negative log-likelihood in nats; inf if some label has probability 0."""
    return _nll(*_checked_examples(log_probs_NC, labels_N))


def ece(log_probs_NC: FloatArray, labels_N: IntArray, *, bins: int = ECE_BINS) -> float:
    """Expected calibration error, in [0, 1].

    Mean over examples of |accuracy - mean confidence| of the example's bin, where confidence is the largest
    probability and the bins are equally wide: (0, 1/B], ..., ((B-1)/B, 1] (Guo et al. 2017, eq. 3).
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    return _ece(*_checked_examples(log_probs_NC, labels_N), bins)


def brier(log_probs_NC: FloatArray, labels_N: IntArray) -> float:
    """Squared distance to the one-hot label: sum over classes, mean over examples, in [0, 2] (Brier 1950)."""
    return _brier(*_checked_examples(log_probs_NC, labels_N))


def tempered(log_probs_NC: FloatArray, temperature: float) -> FloatArray:
    """Log-probabilities [N, C] of softmax(log p / T); T > 1 flattens, T < 1 sharpens."""
    return _tempered(_checked_log_probs(log_probs_NC, "NC"), temperature)


def calibrated_nll(log_probs_NC: FloatArray, labels_N: IntArray, temperature: float) -> float:
    """NLL in nats at a temperature that was fitted on other data (Ashukha et al. 2020)."""
    return nll(tempered(log_probs_NC, temperature), labels_N)


def fit_temperature(log_probs_NC: FloatArray, labels_N: IntArray) -> float:
    """The temperature that minimises the NLL of softmax(log p / T), with log T in LOG_TEMPERATURE_BOUNDS.

    Temperature scaling of Guo et al. (2017), section 4.2; for an ensemble, pass its averaged probabilities,
    as Ashukha et al. (2020) do. It is 1 where every temperature is equally good: if all predictions are
    uniform, or if some label has probability 0 or none.
    """
    log_probs_NC, labels_N = _checked_examples(log_probs_NC, labels_N)
    if np.isnan(log_probs_NC).any():
        return 1.0
    # No softmax sees this shift, but uniform rows become exactly 0, and ties exact.
    logits_NC = log_probs_NC - log_probs_NC.max(axis=-1, keepdims=True)

    def nll_at(log_temperature: float) -> float:
        scaled_NC = logits_NC * math.exp(-log_temperature)
        return float(np.mean(logsumexp(scaled_NC, axis=-1) - _of_labels(scaled_NC, labels_N)))

    # The NLL is convex in 1/T, hence has a single valley in log T too, where T and 1/T are alike.
    low, high = LOG_TEMPERATURE_BOUNDS
    found = minimize_scalar(nll_at, bounds=(low, high), method="bounded", options={"xatol": 1e-10})
    # The search never evaluates the bounds themselves. T = 1 comes first, so that it wins ties.
    return math.exp(min((0.0, float(found.x), low, high), key=nll_at))


def disagreement(log_probs_MNC: FloatArray) -> float:
    """P[two members predict different classes], mean over unordered pairs, in [0, 1]; NaN for one member."""
    return _mean_of_pairs(_disagreements(_checked_log_probs(log_probs_MNC, "MNC")))


def normalised_disagreement(log_probs_MNC: FloatArray, labels_N: IntArray) -> float:
    """Mean pairwise disagreement / mean member error; NaN for one member and for members without error.

    Fort et al. (2019) divide by the error, because bad members disagree much without being a good ensemble.
    Equal members are at 0; good members with independent errors come near 2.
    """
    log_probs_MNC = _checked_log_probs(log_probs_MNC, "MNC")
    accuracy_M = [accuracy(log_probs_NC, labels_N) for log_probs_NC in log_probs_MNC]
    return _normalised(disagreement(log_probs_MNC), accuracy_M)


def pairwise_kl(log_probs_MNC: FloatArray) -> float:
    """KL(p_i || p_j) in nats, mean over ordered pairs of members and over examples; NaN for one member.

    It is inf if a member gives probability 0 to a class that another one holds possible.
    """
    return _mean_of_pairs(_divergences(_checked_log_probs(log_probs_MNC, "MNC")))


def mutual_information(log_probs_MNC: FloatArray) -> float:
    """Ensemble entropy minus mean member entropy, in nats, mean over examples; NaN for one.

    The mutual information of prediction and member (Houlsby et al. 2011, BALD), at most log min(M, C).
    """
    log_probs_MNC = _checked_log_probs(log_probs_MNC, "MNC")
    entropy_M = [_mean_entropy(log_probs_NC) for log_probs_NC in log_probs_MNC]
    return _information(_log_mean(log_probs_MNC), entropy_M)


def ambiguity(log_probs_MNC: FloatArray) -> float:
    """Squared distance of a member's probabilities from the ensemble's: summed over classes, mean over members and
    examples, in [0, 2); NaN for one member.

    The ambiguity of Krogh and Vedelsby (1995) for the squared error: the Brier score of the ensemble is the mean
    Brier score of its members less the ambiguity. So it is what averaging gains, and needs no labels.
    """
    log_probs_MNC = _checked_log_probs(log_probs_MNC, "MNC")
    return _ambiguity(log_probs_MNC, _log_mean(log_probs_MNC))


def deep_ensemble_equivalent(calibrated_nll: float, reference_K: npt.ArrayLike) -> float:
    """The (fractional) size of the deep ensemble that has the same calibrated NLL (Ashukha et al. 2020).

    Linear between neighbouring sizes. Where a further member makes the reference worse, it counts as no gain
    (running minimum); on a plateau the smallest size counts.

    Args:
        calibrated_nll: of the ensemble to be measured, in nats.
        reference_K: calibrated NLLs of deep ensembles (here: Local DE) of sizes 1..K, in nats.

    Returns:
        A size in [1, K]: 1 also if one network is better already, and K reads "at least K". NaN for a NaN.
    """
    return float(deep_ensemble_equivalents([calibrated_nll], reference_K)[0])


def deep_ensemble_equivalents(calibrated_nll_R: npt.ArrayLike, reference_K: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """`deep_ensemble_equivalent` of each of R calibrated NLLs, [R]."""
    nll_R, reference_K = (np.asarray(values, dtype=np.float64) for values in (calibrated_nll_R, reference_K))
    if reference_K.ndim != 1 or reference_K.size == 0 or not np.isfinite(reference_K).all():
        raise ValueError(f"the reference must be a non-empty array [K] of finite values, got {reference_K}")
    best_K = np.minimum.accumulate(reference_K)
    # The first size that is enough, as an index: the size is one more. NaN comes after everything.
    enough_R = np.searchsorted(-best_K, -nll_R, side="left")
    inside_R = np.clip(enough_R, 1, len(best_K) - 1) if len(best_K) > 1 else np.zeros_like(enough_R)
    before_R, after_R = best_K[inside_R - 1], best_K[inside_R]
    with np.errstate(invalid="ignore", divide="ignore"):  # where the size is not between two
        between_R = inside_R + (before_R - nll_R) / (before_R - after_R)
    size_R = np.where(enough_R == 0, 1.0, np.where(enough_R == len(best_K), float(len(best_K)), between_R))
    return np.where(np.isnan(nll_R), math.nan, size_R)


def summary(log_probs_MNC: FloatArray, labels_N: IntArray, temperature: float | None = None) -> dict[str, float]:
    """All scores of the ensemble of these members (of a single predictor, if M = 1), by name.

    Args:
        log_probs_MNC: log-probabilities of the members.
        labels_N: class indices.
        temperature: fitted to the same ensemble on other data; without one, it and `calibrated_nll` are NaN.
    """
    sizes = [len(log_probs_MNC)]
    return _summaries(log_probs_MNC, labels_N, sizes, [math.nan if temperature is None else temperature])[0]


def summaries(log_probs_MNC: FloatArray, labels_N: IntArray, temperatures_K: Sequence[float]) -> list[dict[str, float]]:
    """The `summary` of the ensembles of the first 1, 2, ... members, each pair of members compared once.

    Args:
        log_probs_MNC: log-probabilities of the members.
        labels_N: class indices.
        temperatures_K: one for each size, up to the largest; NaN for none.
    """
    return _summaries(log_probs_MNC, labels_N, range(1, len(temperatures_K) + 1), temperatures_K)


def _summaries(
    log_probs_MNC: FloatArray, labels_N: IntArray, sizes: Sequence[int], temperatures: Sequence[float]
) -> list[dict[str, float]]:
    log_probs_MNC = _checked_log_probs(log_probs_MNC, "MNC")  # once: the check costs as much as a score
    labels_N = _checked_labels(log_probs_MNC[0], labels_N)
    disagreement_MM, divergence_MM = _disagreements(log_probs_MNC), _divergences(log_probs_MNC)
    accuracy_M = [_accuracy(log_probs_NC, labels_N) for log_probs_NC in log_probs_MNC]
    entropy_M = [_mean_entropy(log_probs_NC) for log_probs_NC in log_probs_MNC]
    found = []
    for size, temperature in zip(sizes, temperatures, strict=True):
        members_MNC = log_probs_MNC[:size]
        log_probs_NC = _log_mean(members_MNC)
        known = not math.isnan(temperature)
        disagreement = _mean_of_pairs(disagreement_MM[:size, :size])
        found.append({
            "accuracy": _accuracy(log_probs_NC, labels_N),
            "mean_class_accuracy": _mean_class_accuracy(log_probs_NC, labels_N),
            "nll": _nll(log_probs_NC, labels_N),
            "calibrated_nll": _nll(_tempered(log_probs_NC, temperature), labels_N) if known else math.nan,
            "temperature": temperature,
            "ece": _ece(log_probs_NC, labels_N, ECE_BINS),
            "brier": _brier(log_probs_NC, labels_N),
            "disagreement": disagreement,
            "normalised_disagreement": _normalised(disagreement, accuracy_M[:size]),
            "pairwise_kl": _mean_of_pairs(divergence_MM[:size, :size]),
            "mutual_information": _information(log_probs_NC, entropy_M[:size]),
            "ambiguity": _ambiguity(members_MNC, log_probs_NC),
        })  # fmt: skip
    return found


def _normalised(disagreement: float, accuracy_M: Sequence[float]) -> float:
    error = float(np.mean([1.0 - accuracy for accuracy in accuracy_M]))
    return disagreement / error if error > 0 else math.nan


def _information(log_probs_NC: FloatArray, entropy_M: Sequence[float]) -> float:
    """What knowing the member tells of the prediction of an ensemble, from the mean entropies of its members."""
    return float(_mean_entropy(log_probs_NC) - np.mean(entropy_M)) if len(entropy_M) > 1 else math.nan


def _ambiguity(log_probs_MNC: FloatArray, log_probs_NC: FloatArray) -> float:
    """Mean squared distance of members from their ensemble."""
    if len(log_probs_MNC) == 1:
        return math.nan
    probs_NC = np.exp(log_probs_NC)
    return float(np.mean([np.mean(np.sum((np.exp(member) - probs_NC) ** 2, axis=-1)) for member in log_probs_MNC]))


NO_CLASS = -1


def classes_of(log_probs: FloatArray) -> IntArray:
    """The likeliest class of each row (the first one, on ties), [...] of [..., C]; NO_CLASS for a row of NaN."""
    classes: IntArray = np.where(np.isnan(log_probs[..., 0]), NO_CLASS, log_probs.argmax(axis=-1))
    return classes


def _accuracy(log_probs_NC: FloatArray, labels_N: IntArray) -> float:
    return float(accuracy_score(labels_N, classes_of(log_probs_NC)))


def _mean_class_accuracy(log_probs_NC: FloatArray, labels_N: IntArray) -> float:
    prediction_N = classes_of(log_probs_NC)
    return float(recall_score(labels_N, prediction_N, labels=np.unique(labels_N), average="macro"))


def _nll(log_probs_NC: FloatArray, labels_N: IntArray) -> float:
    of_labels_N = _of_labels(log_probs_NC, labels_N)
    return math.inf if np.isnan(of_labels_N).any() else float(-np.mean(of_labels_N))


def _ece(log_probs_NC: FloatArray, labels_N: IntArray, bins: int) -> float:
    confidence_N = np.exp(log_probs_NC.max(axis=-1))
    correct_N = classes_of(log_probs_NC) == labels_N
    bin_N = np.digitize(confidence_N, np.linspace(0.0, 1.0, bins + 1)[1:-1], right=True)
    # A bin's weight (its count / N) cancels the count in its means, so sums per bin are enough.
    gap_B = np.bincount(bin_N, weights=correct_N - confidence_N)
    return float(np.abs(gap_B).sum() / len(labels_N))


def _brier(log_probs_NC: FloatArray, labels_N: IntArray) -> float:
    error_NC = np.exp(log_probs_NC)
    error_NC[np.arange(len(labels_N)), labels_N] -= 1.0
    return float(np.mean(np.sum(error_NC**2, axis=-1)))


def _tempered(log_probs_NC: FloatArray, temperature: float) -> FloatArray:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    tempered_NC: FloatArray = log_softmax(log_probs_NC / temperature, axis=-1)
    return tempered_NC


def _log_mean(log_probs_MNC: FloatArray) -> FloatArray:
    if len(log_probs_MNC) == 1:
        return log_probs_MNC[0]
    log_mean_NC: FloatArray = logsumexp(log_probs_MNC, axis=0) - math.log(len(log_probs_MNC))
    return log_mean_NC


def _of_labels(values_NC: FloatArray, labels_N: IntArray) -> FloatArray:
    return values_NC[np.arange(len(labels_N)), labels_N]


def _disagreements(log_probs_MNC: FloatArray) -> FloatArray:
    """Share of examples that two members classify differently, [M, M]."""
    prediction_MN = classes_of(log_probs_MNC)
    return np.stack([np.mean(prediction_MN != one_N, axis=-1) for one_N in prediction_MN])


def _divergences(log_probs_MNC: FloatArray) -> FloatArray:
    """Mean KL(p_i || p_j) over examples, [M, M]."""
    divergence_MM = np.zeros((len(log_probs_MNC), len(log_probs_MNC)))
    for i, log_p_NC in enumerate(log_probs_MNC):
        p_NC = np.exp(log_p_NC)
        for j in range(len(log_probs_MNC)):
            if i != j:
                divergence_MM[i, j] = _mean_kl(log_p_NC, log_probs_MNC[j], p_NC)
    return divergence_MM


def _mean_kl(log_p_NC: FloatArray, log_q_NC: FloatArray, p_NC: FloatArray | None = None) -> float:
    if p_NC is None:
        p_NC = np.exp(log_p_NC)
    # Not p log(p/q) on probabilities: where q underflows to 0, its logarithm is still finite.
    with np.errstate(invalid="ignore"):  # -inf - -inf and 0 * inf, both where p = 0
        terms_NC = np.where(p_NC == 0, 0.0, p_NC * (log_p_NC - log_q_NC))
    return float(np.mean(terms_NC.sum(axis=-1)))


def _mean_entropy(log_probs_NC: FloatArray) -> float:
    probs_NC = np.exp(log_probs_NC)
    with np.errstate(invalid="ignore"):  # 0 * -inf
        terms_NC = np.where(probs_NC == 0, 0.0, -probs_NC * log_probs_NC)
    return float(np.mean(terms_NC.sum(axis=-1)))


def _mean_of_pairs(values_MM: FloatArray) -> float:
    """Mean over ordered pairs of different members; NaN for one member."""
    different_MM = ~np.eye(len(values_MM), dtype=bool)
    return float(np.mean(values_MM[different_MM])) if different_MM.any() else math.nan


def _checked_log_probs(log_probs: FloatArray, axes: str) -> FloatArray:
    """The same in float64, if it has these axes and its rows are log-probabilities."""
    log_probs = np.asarray(log_probs, dtype=np.float64)
    if log_probs.ndim != len(axes) or log_probs.size == 0:
        raise ValueError(f"log-probabilities must be a non-empty array [{axes}], got shape {log_probs.shape}")
    with np.errstate(over="ignore"):  # of logits, taken for log-probabilities
        row_sums = np.exp(log_probs).sum(axis=-1)
    right = (np.abs(row_sums - 1.0) <= ROW_SUM_TOLERANCE) | np.isnan(log_probs).all(axis=-1)
    if not right.all():
        raise ValueError(
            f"not log-probabilities: {(~right).sum()} of {right.size} rows do not sum to 1 after exp, "
            f"the first one to {row_sums[~right][0]:.4g}"
        )
    return log_probs


def _checked_examples(log_probs_NC: FloatArray, labels_N: IntArray) -> tuple[FloatArray, IntArray]:
    log_probs_NC = _checked_log_probs(log_probs_NC, "NC")
    return log_probs_NC, _checked_labels(log_probs_NC, labels_N)


def _checked_labels(log_probs_NC: FloatArray, labels_N: IntArray) -> IntArray:
    labels_N = np.asarray(labels_N)
    if labels_N.shape != log_probs_NC.shape[:1]:
        raise ValueError(f"log-probabilities have shape {log_probs_NC.shape}, but labels {labels_N.shape}")
    classes = log_probs_NC.shape[1]
    if labels_N.dtype.kind not in "iu" or labels_N.min() < 0 or labels_N.max() >= classes:
        raise ValueError(f"labels must be integers from 0 to {classes - 1}, got {np.unique(labels_N)}")
    return labels_N.astype(np.int64)  # bincount takes no uint64
