"""What log-probabilities of labelled examples say, be they one network's or an ensemble's: class, accuracy, likelihood,
temperature. What `scores` stores of ensembles is made from it.

Every function takes natural-log probabilities (float32 or float64, rows that sum to 1) and integer labels and
computes in float64. Probabilities of exactly 0 (log-probability -inf) are allowed: 0 log 0 = 0. So are rows of NaN: a
network that overflows gives no class, which is a wrong answer of infinite NLL, and what compares probabilities is NaN.

Axes: N examples, C classes, K ensemble sizes 1..K, R ensembles to be measured.

Raises:
    ValueError: on arrays of the wrong shape, on labels that are no class indices, and on rows that are not
        log-probabilities (logits, probabilities, or only partly NaN).
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]

LOG_TEMPERATURE_BOUNDS = (-3.0, 3.0)
NO_CLASS = -1

# Wide enough for float32 and thousands of classes, narrow enough to catch logits and probabilities.
ROW_SUM_TOLERANCE = 1e-3


def classes_of(log_probs: FloatArray) -> IntArray:
    """The likeliest class of each row (the first one, on ties), [...] of [..., C]; NO_CLASS for a row of NaN."""
    classes: IntArray = np.where(np.isnan(log_probs[..., 0]), NO_CLASS, log_probs.argmax(axis=-1))
    return classes


def accuracy(log_probs_NC: FloatArray, labels_N: IntArray) -> float:
    """Share of examples whose likeliest class (the first one, on ties) is the label, in [0, 1]."""
    log_probs_NC, labels_N = checked_examples(log_probs_NC, labels_N)
    return float(np.mean(classes_of(log_probs_NC) == labels_N))


def nll(log_probs_NC: FloatArray, labels_N: IntArray) -> float:
    """Mean negative log-likelihood in nats; inf if some label has probability 0 or none."""
    return mean_nll(*checked_examples(log_probs_NC, labels_N))


def mean_nll(log_probs_NC: FloatArray, labels_N: IntArray) -> float:
    """The same for what has been checked already."""
    return float(np.mean(nll_of_images(log_probs_NC, labels_N)))


def nll_of_images(log_probs_NC: FloatArray, labels_N: IntArray) -> FloatArray:
    """What each example adds to the mean, [N] in nats; of what has been checked already."""
    log_probs_N = log_probs_NC[np.arange(len(labels_N)), labels_N]
    nll_N: FloatArray = np.where(np.isnan(log_probs_N), np.array(np.inf, log_probs_N.dtype), -log_probs_N)
    return nll_N


def tempered(log_probs_NC: FloatArray, temperature: float) -> FloatArray:
    """Log-probabilities [N, C] of softmax(log p / T); T > 1 flattens, T < 1 sharpens."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    tempered_NC: FloatArray = log_softmax(np.asarray(log_probs_NC, dtype=np.float64) / temperature, axis=-1)
    return tempered_NC


def fit_temperature(log_probs_NC: FloatArray, labels_N: IntArray) -> float:
    """The temperature that minimises the NLL of softmax(log p / T), with log T in LOG_TEMPERATURE_BOUNDS.

    Temperature scaling of Guo et al. (2017), section 4.2; for an ensemble, pass its averaged probabilities,
    as Ashukha et al. (2020) do. It is 1 where every temperature is equally good: if all predictions are
    uniform, or if some label has probability 0 or none.
    """
    log_probs_NC, labels_N = checked_examples(log_probs_NC, labels_N)
    if np.isnan(log_probs_NC).any():
        return 1.0
    # No softmax sees this shift, but uniform rows become exactly 0, and ties exact.
    logits_NC = log_probs_NC - log_probs_NC.max(axis=-1, keepdims=True)

    def nll_at(log_temperature: float) -> float:
        scaled_NC = logits_NC * math.exp(-log_temperature)
        return float(np.mean(logsumexp(scaled_NC, axis=-1) - scaled_NC[np.arange(len(labels_N)), labels_N]))

    # The NLL is convex in 1/T, hence has a single valley in log T too, where T and 1/T are alike.
    low, high = LOG_TEMPERATURE_BOUNDS
    found = minimize_scalar(nll_at, bounds=(low, high), method="bounded", options={"xatol": 1e-10})
    # The search never evaluates the bounds themselves. T = 1 comes first, so that it wins ties.
    return math.exp(min((0.0, float(found.x), low, high), key=nll_at))


def deep_ensemble_equivalents(calibrated_nll_R: npt.ArrayLike, reference_K: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The (fractional) size of the deep ensemble that has the same calibrated NLL (Ashukha et al. 2020).

    Linear between neighbouring sizes. Where a further member makes the reference worse, it counts as no gain
    (running minimum); on a plateau the smallest size counts.

    Args:
        calibrated_nll_R: of the ensembles to be measured, in nats.
        reference_K: calibrated NLLs of deep ensembles (here: Local DE) of sizes 1..K, in nats.

    Returns:
        Sizes [R] in [1, K]: 1 also if one network is better already, and K reads "at least K". NaN for a NaN.
    """
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


# Checks


def checked_examples(log_probs_NC: FloatArray, labels_N: IntArray) -> tuple[FloatArray, IntArray]:
    """The predictions of one network and the labels, if they are what their names say."""
    log_probs_NC = checked_log_probs(log_probs_NC, "NC")
    return log_probs_NC, checked_labels(log_probs_NC, labels_N)


def checked_log_probs(log_probs: FloatArray, axes: str) -> FloatArray:
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


def checked_labels(log_probs_NC: FloatArray, labels_N: IntArray) -> IntArray:
    """The same as int64, if there is one for each row and they are class indices."""
    labels_N = np.asarray(labels_N)
    if labels_N.shape != log_probs_NC.shape[:1]:
        raise ValueError(f"log-probabilities have shape {log_probs_NC.shape}, but labels {labels_N.shape}")
    classes = log_probs_NC.shape[1]
    if labels_N.dtype.kind not in "iu" or labels_N.min() < 0 or labels_N.max() >= classes:
        raise ValueError(f"labels must be integers from 0 to {classes - 1}, got {np.unique(labels_N)}")
    return labels_N.astype(np.int64)  # bincount takes no uint64
