"""How sure an ensemble is of an image, against values that are known."""

import numpy as np
import pytest

from raybasin.metrics import scores, uncertainty

RNG = np.random.default_rng(0)


def log_probs(*shape):
    return np.log(RNG.dirichlet(np.ones(shape[-1]), shape[:-1]))


def test_entropy_of_no_idea_and_of_certainty():
    with np.errstate(divide="ignore"):
        rows_NC = np.log(np.array([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]]))
    assert uncertainty.entropy(rows_NC) == pytest.approx([np.log(4), 0.0, np.log(2)])


def test_members_that_are_sure_of_different_classes_have_all_the_information():
    with np.errstate(divide="ignore"):
        certain_MNC = np.log(np.array([[[1.0, 0]], [[0, 1.0]]]))
    assert uncertainty.mutual_information(certain_MNC) == pytest.approx([np.log(2)])
    assert uncertainty.disagreement(certain_MNC) == pytest.approx([1.0])


def test_members_that_are_alike_differ_in_nothing():
    alike_MNC = np.repeat(log_probs(1, 7, 5), 3, axis=0)
    assert uncertainty.mutual_information(alike_MNC) == pytest.approx(np.zeros(7), abs=1e-12)
    assert (uncertainty.disagreement(alike_MNC) == 0).all()


def test_the_mean_over_images_is_the_score_of_the_tables():
    log_probs_MNC, labels_N = log_probs(4, 50, 3), RNG.integers(0, 3, 50)
    of_all = scores.scores_of(scores.Networks(log_probs_MNC, labels_N).first(4))
    assert uncertainty.disagreement(log_probs_MNC).mean() == pytest.approx(of_all["disagreement"])
    assert uncertainty.mutual_information(log_probs_MNC).mean() == pytest.approx(of_all["mutual_information"])


def test_of_one_network_there_is_no_disagreement_and_of_an_overflow_nothing():
    one_MNC = log_probs(1, 3, 4)
    assert np.isnan(uncertainty.mutual_information(one_MNC)).all() and np.isnan(uncertainty.disagreement(one_MNC)).all()
    one_MNC[0, 1] = np.nan
    assert np.isnan(uncertainty.entropy(one_MNC[0])).tolist() == [False, True, False]
