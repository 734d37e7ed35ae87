"""Greedy soups, with score functions that are known in full."""

import math

import pytest

from raybasin.metrics.selection import greedy_order, greedy_soup


class FakeScore:
    """Looks accuracies up and notes which soups it was asked for; any other soup is a KeyError."""

    def __init__(self, accuracies: dict[tuple[int, ...], float]) -> None:
        self.accuracies = accuracies
        self.asked: list[tuple[int, ...]] = []

    def __call__(self, members: tuple[int, ...]) -> float:
        self.asked.append(members)
        return self.accuracies[members]


def test_members_are_ordered_by_accuracy_then_nll_then_index() -> None:
    assert greedy_order([0.8, 0.9, 0.8, 0.9, 0.8], [0.3, 0.5, 0.2, 0.4, 0.3]) == [3, 1, 2, 0, 4]


def test_a_member_whose_score_is_nan_has_no_place_in_the_order() -> None:
    with pytest.raises(ValueError, match="NaN"):
        greedy_order([0.8, math.nan], [0.3, 0.2])
    with pytest.raises(ValueError, match="NaN"):
        greedy_order([0.8, 0.9], [0.3, math.nan])


def test_accuracies_and_nlls_must_be_of_the_same_members() -> None:
    with pytest.raises(ValueError, match="2 accuracies and 1 NLLs"):
        greedy_order([0.8, 0.9], [0.3])


def test_a_member_is_added_if_it_helps_and_skipped_if_it_hurts() -> None:
    score = FakeScore({(2,): 0.8, (2, 0): 0.85, (2, 0, 3): 0.7, (2, 0, 1): 0.9})
    assert greedy_soup([2, 0, 3, 1], score) == (2, 0, 1)


def test_each_member_is_tried_once_on_top_of_those_accepted() -> None:
    score = FakeScore({(2,): 0.8, (2, 0): 0.85, (2, 0, 3): 0.7, (2, 0, 1): 0.9})
    greedy_soup([2, 0, 3, 1], score)
    assert score.asked == [(2,), (2, 0), (2, 0, 3), (2, 0, 1)]


def test_a_tie_is_not_accepted() -> None:
    score = FakeScore({(0,): 0.8, (0, 1): 0.8, (0, 2): 0.81})
    assert greedy_soup([0, 1, 2], score) == (0, 2)


def test_a_member_must_beat_the_soup_and_not_only_the_best_member() -> None:
    score = FakeScore({(0,): 0.8, (0, 1): 0.9, (0, 1, 2): 0.85})
    assert greedy_soup([0, 1, 2], score) == (0, 1)


def test_the_soup_of_one_member_is_that_member() -> None:
    score = FakeScore({(7,): 0.5})
    assert greedy_soup([7], score) == (7,)
    assert score.asked == [(7,)]


@pytest.mark.parametrize("order", [[], [0, 1, 0]])
def test_an_order_names_each_member_once_and_at_least_one(order: list[int]) -> None:
    with pytest.raises(ValueError, match="each member once"):
        greedy_soup(order, lambda members: 0.5)
