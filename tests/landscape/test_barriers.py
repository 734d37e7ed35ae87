"""Barriers of losses whose barrier is known in closed form."""

import math
from collections.abc import Callable, Sequence
from itertools import permutations
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
    known = {
        "kind": kind, "path_id": name, "end_id": f"to-{name}", "split": "val", "l2_distance": float(len(name)),
    }  # fmt: skip
    wrong = np.array(wrong_PN, dtype=bool)
    # Of every two images one has 0.1 nats less inside the path, the other 0.1 more: the mean is what is asked for.
    nll_PN = np.array(nll_P)[:, None] + 0.1 * np.array([[0], [1], [0]]) * np.resize([-1, 1], wrong.shape[1])
    return [{**known, **row} for row in path_rows(nll_PN, wrong, path_points(3), by_image=True)]


def test_a_cell_has_the_barriers_of_its_worst_path_on_validation() -> None:
    flat = path("hub-member", "a", [1.0, 1.5, 1.0], [[0, 0, 0, 1]] * 3)
    high = path("hub-member", "ab", [1.0, 1.2, 1.0], [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 1]])
    between = path("member-member", "abc", [1.0, 3.0, 1.0], [[1, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    elsewhere = [{**point, "split": "test", "error": 1.0} for point in high]
    assert [row["error_excess"] for row in high] == [0.0, 0.5, 0.0]
    found = summary([*elsewhere, *between, *reversed(high), *flat])
    spread = pytest.approx(0.1 * math.sqrt(4 / 3) / 2)  # of -0.1, 0.1, -0.1, 0.1 with ddof 1, over the root of 4
    assert found == {
        "barrier_nll": pytest.approx(0.5), "barrier_nll_se": spread,
        "barrier_error": 0.5, "barrier_error_se": pytest.approx(math.sqrt(1 / 3) / 2),
        "barrier_nll_member": "to-a", "barrier_error_member": "to-ab",
        "barrier_nll_mean": pytest.approx(0.35), "barrier_error_mean": 0.25, "member_barrier_nll": pytest.approx(2.0),
        "member_barrier_error": 0.75, "rise_error": 0.5, "l2_from_hub": 1.5,
    }  # fmt: skip
    assert math.isnan(summary(flat)["member_barrier_nll"])


@pytest.mark.parametrize("nll_P", [[1.0, 1.0, 1.0], [1.0, math.inf, 1.0]])
def test_of_equal_paths_the_same_has_the_barrier_in_any_order(nll_P: list[float]) -> None:
    """Also where no standard error is known."""
    paths = [path("hub-member", name, nll_P, [[0, 0, 0, 1]] * 3) for name in "bca"]
    found = {summary([*one, *two, *three])["barrier_nll_member"] for one, two, three in permutations(paths)}
    assert found == {"to-c"}


def test_the_highest_point_of_the_error_need_not_be_that_of_the_nll() -> None:
    """Over 5 points the error is highest at t = 0.25, the NLL at t = 0.75, and each image's excess stands there."""
    wrong_PN = np.array([[0, 0], [1, 0], [0, 0], [0, 0], [0, 0]], dtype=bool)
    nll_PN = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.2, 2.0], [1.4, 1.0]], dtype=np.float32)
    rows = path_rows(nll_PN, wrong_PN, path_points(5), by_image=True)
    assert [row["nll_excess"] for row in rows] == pytest.approx([0, -0.05, -0.1, 0.45, 0], abs=1e-6)
    # (1.2 - (1 + 0.75 * 0.4), 2 - 1)
    assert rows[3]["image_nll_excess"] == pytest.approx([-0.1, 1.0], abs=1e-6)
    assert rows[3]["nll_excess_se"] == pytest.approx(1.1 / math.sqrt(2) / math.sqrt(2), abs=1e-6)
    assert rows[1]["image_error_excess"] == [1.0, 0.0] and rows[1]["error_excess_se"] == pytest.approx(0.5)
    assert [i for i, row in enumerate(rows) if "image_nll_excess" in row or "image_error_excess" in row] == [1, 3]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_infinite_loss_has_an_infinite_barrier_and_no_standard_error(at: int) -> None:
    nll_PN = np.ones((3, 4))
    nll_PN[at, 0] = math.inf
    known = {"kind": "hub-member", "path_id": "a", "split": "val", "l2_distance": 1.0, "end_id": "b"}
    rows = [{**known, **row} for row in path_rows(nll_PN, np.zeros((3, 4), dtype=bool), path_points(3), by_image=True)]
    found = summary(rows)
    assert found["barrier_nll"] == math.inf and math.isnan(found["barrier_nll_se"])
    assert (found["barrier_error"], found["barrier_error_se"]) == (0.0, 0.0)
    assert not any("image_nll_excess" in row for row in rows)


def test_a_path_from_before_the_excess_in_nats_was_measured_has_its_barrier_alone() -> None:
    old = [{**row, "nll_excess": None, "nll_excess_se": None}
           for row in path("hub-member", "a", [1.0, 1.5, 1.0], [[0, 0, 0, 1]] * 3)]  # fmt: skip
    found = summary(old)
    assert found["barrier_nll"] == pytest.approx(0.5) and math.isnan(found["barrier_nll_se"])
