"""The predictions that metrics are tested on: M members, N examples, C classes."""

import numpy as np
import pytest
from log_probs import Array, Labels
from scipy.special import log_softmax


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
