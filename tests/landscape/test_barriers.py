"""Barriers of losses whose barrier is known in closed form."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from raybasin.landscape.barriers import (
    barrier,
    excess,
    excess_se,
    path_points,
    path_rows,
    rise,
    summary,
)

Array = npt.NDArray[np.float64]


def double_well(x: Array) -> Array:
    """Minima of 0 at x = -1 and x = 1, a hill of height 1 between them."""
    return (x**2 - 1.0) ** 2


@pytest.mark.parametrize(("points", "expected"), [(3, (0.0, 0.5, 1.0)), (5, (0.0, 0.25, 0.5, 0.75, 1.0))])
def test_a_path_holds_both_ends_and_its_middle(points: int, expected: tuple[float, ...]) -> None:
    assert path_points(points) == expected


@pytest.mark.parametrize("points", [3, 11, 25, 101, 2001])
def test_path_points_are_exact_at_the_ends_and_in_the_middle(points: int) -> None:
    t_P = path_points(points)
    assert (len(t_P), t_P[0], t_P[points // 2], t_P[-1]) == (points, 0.0, 0.5, 1.0)


@pytest.mark.parametrize("points", [-1, 0, 1, 2, 10])
def test_a_path_has_an_odd_number_of_points_from_3_on(points: int) -> None:
    with pytest.raises(ValueError, match=f"odd number of points, 3 or more, got {points}"):
        path_points(points)


def test_a_quadratic_loss_has_no_barrier() -> None:
    t_P = path_points(11)
    x_P = 5.0 * np.array(t_P) - 2.0
    assert barrier(t_P, 3.0 * (x_P - 0.7) ** 2 + 0.1) == 0.0


@pytest.mark.parametrize("slope", [0.0, 0.3, -2.0])
def test_two_wells_have_the_barrier_between_them_whatever_their_levels(slope: float) -> None:
    t_P = path_points(11)
    x_P = 2.0 * np.array(t_P) - 1.0
    # A slope is itself the line between the ends, so only the hill of height 1 is left.
    assert barrier(t_P, double_well(x_P) + slope * x_P + 4.0) == pytest.approx(1.0)


def test_a_barrier_need_not_lie_in_the_middle() -> None:
    t_P = path_points(5)
    assert barrier(t_P, [0.1, 0.6, 0.2, 0.3, 0.5]) == pytest.approx(0.6 - (0.75 * 0.1 + 0.25 * 0.5))


def test_excess_is_the_height_above_the_line_between_the_ends() -> None:
    np.testing.assert_allclose(excess([0.0, 0.25, 1.0], [1.0, 4.0, 5.0]), [0.0, 2.0, 0.0])


def test_excess_is_exactly_0_at_the_ends() -> None:
    excess_P = excess(path_points(3), [0.1, 0.2, 1 / 3])
    assert (excess_P[0], excess_P[-1]) == (0.0, 0.0)


@pytest.mark.parametrize(
    "t_P", [[0.1, 0.5, 1.0], [0.0, 0.5, 0.9], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0], [0.0, math.nan, 1.0]]
)
def test_a_barrier_needs_points_that_increase_from_0_to_1(t_P: list[float]) -> None:
    with pytest.raises(ValueError, match="increase from 0 to 1"):
        barrier(t_P, [0.0, 1.0, 0.0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_wall_on_the_path_is_an_infinite_barrier_and_has_no_rise(value: float, place: int) -> None:
    value_P = [0.0, 0.1, 0.2]
    value_P[place] = value
    assert barrier(path_points(3), value_P) == math.inf
    with pytest.raises(ValueError, match="finite values"):
        excess(path_points(3), value_P)
    with pytest.raises(ValueError, match="finite values"):
        rise(value_P)


def test_points_and_values_of_different_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3,\) and values of shape \(2,\)"):
        excess(path_points(3), [0.0, 1.0])


@pytest.mark.parametrize("measure", [rise, lambda value_P: barrier([0.0], value_P)], ids=["rise", "barrier"])
def test_one_point_is_no_path(measure: Callable[[list[float]], float]) -> None:
    with pytest.raises(ValueError, match="two ends"):
        measure([0.5])


def test_a_ruined_branch_on_a_flat_path_rises_without_a_barrier() -> None:
    t_P = path_points(11)
    error_P = [0.1 + 0.8 * t for t in t_P]
    assert barrier(t_P, error_P) == pytest.approx(0.0, abs=1e-12)
    assert rise(error_P) == pytest.approx(0.8)


def test_a_branch_better_than_the_hub_does_not_rise() -> None:
    assert rise([0.3, 0.2, 0.1]) == 0.0


def test_a_rise_is_measured_from_the_hub_and_not_from_the_lower_end() -> None:
    assert rise([0.3, 0.7, 0.1]) == pytest.approx(0.4)


def test_excess_se_is_that_of_the_paired_differences() -> None:
    rng = np.random.default_rng(0)
    at_t_N, at_start_N, at_end_N = rng.random((3, 20))
    differences = [m - (0.7 * a + 0.3 * b) for m, a, b in zip(at_t_N, at_start_N, at_end_N, strict=True)]
    mean = sum(differences) / 20
    expected = math.sqrt(sum((d - mean) ** 2 for d in differences) / 19 / 20)
    assert excess_se(0.3, at_t_N, at_start_N, at_end_N) == pytest.approx(expected, rel=1e-12)


def test_examples_that_are_equally_hard_all_along_the_path_leave_no_error() -> None:
    difficulty_N = np.array([0.0, 1.0, 7.0, 3.0])
    assert excess_se(0.5, difficulty_N + 0.25, difficulty_N, difficulty_N) == 0.0


@pytest.mark.filterwarnings("error")
def test_the_standard_error_of_one_example_is_nan() -> None:
    assert math.isnan(excess_se(0.5, [1.0], [0.0], [0.0]))


@pytest.mark.parametrize("at_end_N", [[0.0], [[0.0, 1.0]], 0.0])
def test_excess_se_needs_the_same_examples(at_end_N: npt.ArrayLike) -> None:
    with pytest.raises(ValueError, match="same examples"):
        excess_se(0.5, [1.0, 0.0], [0.0, 1.0], at_end_N)


# Rows of the tables


def path(kind: str, name: str, nll_P: Sequence[float], wrong_PN: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    known = {"kind": kind, "path_id": name, "split": "val", "l2_distance": float(len(name))}
    return [{**known, **row} for row in path_rows(nll_P, np.array(wrong_PN, dtype=bool), path_points(3))]


def test_a_cell_has_the_barriers_of_its_worst_path_on_validation() -> None:
    flat = path("hub-member", "a", [1.0, 1.5, 1.0], [[0, 0, 0, 1]] * 3)
    high = path("hub-member", "ab", [1.0, 1.2, 1.0], [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 1]])
    between = path("member-member", "abc", [1.0, 3.0, 1.0], [[1, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    elsewhere = [{**point, "split": "test", "error": 1.0} for point in high]
    assert [row["error_excess"] for row in high] == [0.0, 0.5, 0.0]
    found = summary([*elsewhere, *between, *reversed(high), *flat], threshold=0.02)
    assert found == {
        "barrier_nll": 0.5, "barrier_error": 0.5, "barrier_error_se": pytest.approx(math.sqrt(1 / 3) / 2),
        "barrier_nll_mean": pytest.approx(0.35), "barrier_error_mean": 0.25, "member_barrier_nll": 2.0,
        "member_barrier_error": 0.75, "rise_error": 0.5, "in_basin": False, "l2_from_hub": 1.5,
    }  # fmt: skip
    alone = summary(flat, threshold=0.02)
    assert alone["in_basin"] and math.isnan(alone["member_barrier_nll"])
