"""How sure an ensemble is of each image, without labels. Natural-log probabilities as in `classification`, all in nats.

Axes: M members, N images, C classes.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import logsumexp

from raybasin.metrics.classification import FloatArray, classes_of


def averaged(log_probs_MNC: FloatArray) -> FloatArray:
    """Log of the mean of the members' probabilities, [N, C]."""
    mean_NC: FloatArray = logsumexp(np.asarray(log_probs_MNC, np.float64), axis=0) - math.log(len(log_probs_MNC))
    return mean_NC


def entropy(log_probs_NC: FloatArray) -> FloatArray:
    """Entropy of each prediction, [N], from 0 to log C; NaN for a row of NaN."""
    probs_NC = np.exp(log_probs_NC)
    with np.errstate(invalid="ignore"):  # 0 * -inf
        terms_NC = np.where(probs_NC == 0, 0.0, -probs_NC * log_probs_NC)
    entropy_N: FloatArray = terms_NC.sum(axis=-1)
    return entropy_N


def mutual_information(log_probs_MNC: FloatArray) -> FloatArray:
    """Entropy of the mean less the mean entropy, [N]: what members disagree on, from 0 to log min(M, C). NaN for one
    member. The mutual information of class and member (Houlsby et al. 2011, BALD)."""
    if len(log_probs_MNC) == 1:
        return np.full(log_probs_MNC.shape[1], math.nan)
    mean_of_members_N = np.mean([entropy(np.asarray(one, np.float64)) for one in log_probs_MNC], axis=0)
    information_N: FloatArray = np.maximum(0.0, entropy(averaged(log_probs_MNC)) - mean_of_members_N)
    return information_N


def disagreement(log_probs_MNC: FloatArray) -> FloatArray:
    """Share of the pairs of members that name different classes, [N], from 0 to 1. NaN for one member."""
    n_members, n_images, n_classes = log_probs_MNC.shape
    if n_members == 1:
        return np.full(n_images, math.nan)
    votes_MN = classes_of(log_probs_MNC)
    votes_NC = np.stack([(votes_MN == k).sum(axis=0) for k in range(n_classes)], axis=-1)
    agreeing_N = (votes_NC * (votes_NC - 1)).sum(axis=-1)
    share_N: FloatArray = 1.0 - agreeing_N / (n_members * (n_members - 1))
    return share_N
