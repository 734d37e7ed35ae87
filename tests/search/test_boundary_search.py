"""The boundary search: what it answers for lines that are known, and that its answer follows from what it was told."""

import math

import numpy as np
import pandas as pd
import pytest

from raybasin.errors import UserError
from raybasin.search import BoundarySearch, line_model
from raybasin.search.boundary import IMAGE_NOISE

LR, CYCLE, CYCLES = (0.5, 64), (0.25, 4), (0.25, 0.5, 1, 2, 4)


def search(**options):
    return BoundarySearch(**{"lr_ratio": LR, "cycle_ratio": CYCLE, "threshold": 0.02, **options})


def barrier(lr_ratio, cycle_ratio, level=8.0, slope=0.3, steepness=4.0, height=0.15):
    """Without noise; it crosses 0.02 at lr_ratio = level * cycle_ratio ** slope."""
    apart = math.log(lr_ratio / level) - slope * math.log(cycle_ratio)
    return height / (1 + (height / 0.02 - 1) * math.exp(-steepness * apart))


def measured(rng, lr_ratio, cycle_ratio, spread=0.3, **field):
    clean = barrier(lr_ratio, cycle_ratio, **field)
    return max(0.0, clean * rng.lognormal(-(spread**2) / 2, spread) + 0.003 * rng.standard_normal()), 0.003


def finished(found, measure, at_once=3):
    """Measures what is asked for, until nothing is; all cells that were told."""
    cells = []
    while points := found.ask(at_once):
        for point in points:
            cells.append((*point, *measure(*point)))
            found.tell(*cells[-1])
        assert len(cells) < 500
    return cells


def noisy(seed, **field):
    rng = np.random.default_rng(seed)
    return lambda *point: measured(rng, *point, **field)


def told(cells, **options):
    found = search(**options)
    for cell in cells:
        found.tell(*cell)
    return found


def test_a_known_line_is_found_to_the_resolution():
    found = search()
    cells = finished(found, noisy(0))
    line = found.boundary(CYCLES)
    assert list(line.columns) == ["cycle_ratio", "lr_ratio", "low", "high", "status"]
    assert list(line["cycle_ratio"]) == list(CYCLES) and set(line["status"]) == {"found"}
    assert found.stopped == "resolution"
    truth = 8 * np.array(CYCLES) ** 0.3
    assert (np.abs(np.log(line["lr_ratio"] / truth)) < 3 * math.log(1.1)).all()
    assert (line["high"] / line["low"] <= 1.1 ** (2 * 1.96) * 1.0001).all()
    assert sum(cell[1] for cell in cells) < 60  # bisection to a factor of 1.1 with 2 replicates comes to 93


def test_a_line_without_noise_is_found_closer_than_asked_for():
    found = search()
    finished(found, lambda *point: (barrier(*point), 0.001))
    line = found.boundary([0.3, 1, 3])
    assert np.allclose(line["lr_ratio"], 8 * line["cycle_ratio"] ** 0.3, rtol=0.08)
    assert (line["low"] < line["lr_ratio"]).all() and (line["lr_ratio"] < line["high"]).all()


def test_the_order_of_what_is_told_does_not_matter():
    cells = finished(search(budget_epochs=8), noisy(1))
    others = [cells[number] for number in np.random.default_rng(0).permutation(len(cells))]
    one, other = told(cells), told(others)
    assert one.boundary(CYCLES).equals(other.boundary(CYCLES))
    assert one.ask(5) == other.ask(5)


def test_a_search_is_rebuilt_from_what_it_was_told():
    """Told one by one between questions, or all at once in a new search: the next points are the same."""
    going_on, measure, cells = search(), noisy(2), []
    for _ in range(5):
        for point in going_on.ask(3):
            cells.append((*point, *measure(*point)))
            going_on.tell(*cells[-1])
    assert going_on.ask(3) == told(cells).ask(3)


def test_points_asked_for_together_are_different_and_none_is_out_twice():
    found = search()
    first = found.ask(6)
    second = found.ask(6)
    assert len({*first, *second}) == 12
    found.tell(*first[0], 0.0, 0.003)
    assert not set(found.ask(6)) & {*first[1:], *second}


def test_all_points_lie_in_the_ranges():
    found = search(lr_ratio=(1, 3), cycle_ratio=(1, 1.5))
    cells = finished(found, noisy(3, level=2.0))
    assert cells and all(1 <= lr_ratio <= 3 and 1 <= cycle_ratio <= 1.5 for lr_ratio, cycle_ratio, *_ in cells)


def test_short_cycles_come_first():
    found = search()
    cells = finished(found, noisy(4))
    half = len(cells) // 2
    assert np.mean([cell[1] for cell in cells[:half]]) < 0.7 * np.mean([cell[1] for cell in cells[half:]])


def test_one_more_replicate_of_a_point_is_among_what_is_asked_for():
    found = search()
    cells = finished(found, noisy(5, spread=0.9))
    assert len({cell[:2] for cell in cells}) < len(cells)


def test_each_point_says_why_it_was_asked_for():
    found, rng, words = search(), np.random.default_rng(6), []
    while points := found.ask(2):
        for point in points:
            words.append(found.why(*point))
            found.tell(*point, *measured(rng, *point, spread=0.8))
    assert words[0] == "bracket" and set(words) == {"bracket", "refine", "replicate"}


def test_a_point_that_is_not_out_has_no_reason():
    with pytest.raises(KeyError):
        search().why(1.0, 1.0)


def test_everything_inside_is_all_in_and_everything_outside_all_out():
    inside, outside = search(), search()
    rng = np.random.default_rng(0)
    finished(inside, lambda *point: (max(0.0, 0.002 * rng.standard_normal()), 0.003))
    finished(outside, lambda *point: (0.2 * rng.lognormal(0, 0.2), 0.003))
    for found, status in ((inside, "all_in"), (outside, "all_out")):
        line = found.boundary(CYCLES)
        assert found.stopped == "resolution" and set(line["status"]) == {status}
        assert line["lr_ratio"].isna().all()
    line = inside.boundary(CYCLES)
    assert np.isinf(line["high"]).all() and line["low"].between(64 / 1.1, 64).all()
    line = outside.boundary(CYCLES)
    assert (line["low"] == 0).all() and line["high"].between(0.5, 0.5 * 1.1).all()


def test_nothing_told_decides_nothing():
    line = search().boundary(CYCLES)
    assert set(line["status"]) == {"undecided"}
    assert (line["low"] == 0).all() and np.isinf(line["high"]).all()
    assert search().boundary([]).empty


def test_cells_that_diverged_are_outside():
    """Where the outside is nothing but divergence, the line lies between it and what was measured."""
    found = search()
    finished(found, lambda lr_ratio, _: (math.nan, math.nan) if lr_ratio > 10 else (0.0, 0.003))
    line = found.boundary(CYCLES)
    assert set(line["status"]) == {"found"}
    assert line["lr_ratio"].between(8, 12.5).all()


def test_a_barrier_that_is_infinite_is_one_that_diverged():
    one, other = search(), search()
    one.tell(10, 1, math.inf, 0.01)
    other.tell(10, 1, math.nan, math.nan)
    assert one.boundary(CYCLES).equals(other.boundary(CYCLES))


def test_a_grid_that_is_there_counts():
    """Points that were never asked for, at lengths between those that are, and outside the range."""
    measure = noisy(7)
    grid = [(lr, cycle, *measure(lr, cycle)) for lr in (1, 4, 8, 16, 128) for cycle in (0.3, 1.3, 3.5, 6) for _ in "12"]
    after, alone = told(grid), search()
    cells, more = finished(after, measure), finished(alone, noisy(7))
    assert sum(cell[1] for cell in cells) < sum(cell[1] for cell in more)
    assert np.allclose(after.boundary(CYCLES)["lr_ratio"], alone.boundary(CYCLES)["lr_ratio"], rtol=0.4)


def test_a_budget_is_kept_to_with_what_is_out_and_counts_in_the_unit_of_cost():
    found = search(budget_epochs=100, cost=lambda lr_ratio, cycle_ratio: 40 * cycle_ratio)
    out = found.ask(20)
    assert 90 < found.spent_epochs <= 100
    assert found.ask(1) == [] and found.stopped == "budget"
    for point in out:
        found.tell(*point, 0.0, 0.003)
    assert 90 < found.spent_epochs <= 100
    assert sum(40 * point[1] for point in out) == pytest.approx(found.spent_epochs)


def test_a_number_of_points_is_kept_to():
    found = search(max_points=7)
    assert len(finished(found, noisy(8))) == 7
    assert found.stopped == "budget"


def test_it_stops_where_more_of_the_same_cannot_decide():
    """A barrier that stays just above the threshold, with replicates that spread by more than their mean."""
    measure = noisy(9, spread=1.3, height=0.026, steepness=1.0)
    points = [(lr, cycle) for lr in (2, 8, 32) for cycle in CYCLES for _ in range(3)]
    found = told([(*point, *measure(*point)) for point in points], resolution=1.05)
    assert found.stopped == "cannot decide" and found.ask(4) == []


def test_what_was_given_up_is_not_asked_for_again():
    found = search()
    points = found.ask(3)
    for point in points:
        found.give_up(*point)
    assert not set(points) & set(found.ask(30))


def test_only_points_that_can_be_measured_are_asked_for():
    """A cycle of whole steps of a tenth, and a rate of two digits."""
    found = search(snap=lambda lr, cycle: (float(f"{lr:.2g}"), math.ceil(cycle * 10) / 10))
    cells = finished(found, noisy(10))
    assert all(lr == float(f"{lr:.2g}") and cycle in (0.3, 0.5, 1, 2, 4) for lr, cycle, *_ in cells)
    assert found.stopped == "resolution"


def test_intervals_hold_the_truth_as_often_as_they_say():
    """12 lines of random level, slope and steepness: 60 intervals of 95 %, those of one line much alike.

    benchmarks/boundary_fields.py measures the share; here it must not be far off.
    """
    rng, hits, errors = np.random.default_rng(11), [], []
    for _ in range(12):
        field = {"level": rng.uniform(3, 20), "slope": rng.normal(0, 0.3), "steepness": rng.uniform(2, 6)}
        found, spread = search(), rng.uniform(0.2, 0.5)
        finished(found, lambda *point, field=field, spread=spread: measured(rng, *point, spread=spread, **field), 8)
        line, truth = found.boundary(CYCLES), field["level"] * np.array(CYCLES) ** field["slope"]
        hits += list((line["low"] <= truth) & (truth <= line["high"]))
        errors += list(np.abs(np.log(line["lr_ratio"].fillna(64) / np.clip(truth, *LR))))
    assert np.mean(hits) > 0.8
    assert np.median(errors) < math.log(1.1)


@pytest.mark.parametrize(("options", "said"), [
    ({"lr_ratio": (4, 2)}, "lr_ratio: must be"),
    ({"cycle_ratio": (0, 2)}, "cycle_ratio: must be"),
    ({"threshold": 0}, "threshold: must be above 0"),
    ({"resolution": 1}, "resolution: must be at least 1.05"),
    ({"cost": lambda lr, cycle: 0}, "cost: must be above 0"),
])  # fmt: skip
def test_what_cannot_be_searched_is_said(options, said):
    with pytest.raises(UserError, match=said):
        search(**options)


def test_a_standard_error_that_is_not_known_is_a_usual_one():
    one, other = search(), search()
    one.tell(10, 1, 0.03, None)
    other.tell(10, 1, 0.03, IMAGE_NOISE * one.threshold)
    pd.testing.assert_frame_equal(one.boundary([1]), other.boundary([1]))


@pytest.mark.parametrize("cell", [(0, 1, 0.1, 0.01), (1, math.nan, 0.1, 0.01), (1, 1, 0.1, -1), (1, 1, 0.1, math.nan)])
def test_what_cannot_be_a_cell_is_said(cell):
    with pytest.raises(UserError, match="a cell at lr_ratio"):
        search().tell(*cell)
    with pytest.raises(UserError, match="cycle_ratios"):
        search().boundary([0])


def test_cells_at_very_many_lengths_count_at_the_nearest_of_a_few():
    """A random search has a length of its own for each cell; a step for each of them would take all memory."""
    rng = np.random.default_rng(0)
    points = zip(np.geomspace(*LR, 19).tolist() * 8, np.geomspace(*CYCLE, 152).tolist(), strict=True)
    found = told([(*point, *measured(rng, *point)) for point in points])
    assert len(found._all_known()[0].log_cycle_K) <= line_model.MOST_LENGTHS + len(CYCLES)
    line = found.boundary(np.geomspace(*CYCLE, 60))  # more than are worked out together
    truth = 8 * line["cycle_ratio"] ** 0.3
    assert ((line["low"] < truth) & (truth < line["high"])).mean() > 0.8
    assert (line["high"] / line["low"]).median() < 1.4


@pytest.mark.parametrize("resolution", [1.0, 1.0001, 1.03, math.inf])
def test_a_resolution_that_would_take_all_memory_is_refused(resolution):
    with pytest.raises(UserError, match=r"resolution: must be at least 1\.05"):
        search(resolution=resolution)
    assert search(resolution=1.05).ask(1)


def test_barriers_that_fall_with_the_rate_have_no_line():
    """High inside and 0 outside is none of the shapes that the model knows; it would be surely out everywhere."""
    rng = np.random.default_rng(0)
    grid = [(float(rate), cycle) for rate in np.geomspace(*LR, 8) for cycle in CYCLES]
    found = told([(*point, 0.1 / (1 + (point[0] / 8) ** 4) * rng.lognormal(0, 0.25), 0.003) for point in grid])
    assert found.stopped == "cannot decide" and found.ask(4) == []
    line = found.boundary(CYCLES)
    assert set(line["status"]) == {"undecided"} and (line["low"] == 0).all() and np.isinf(line["high"]).all()


def test_noise_far_inside_or_outside_is_no_falling_barrier():
    for mean, status in ((0.001, "all_in"), (0.3, "all_out")):
        rng, found = np.random.default_rng(1), search()
        while points := found.ask(4):
            for point in points:
                found.tell(*point, mean * rng.lognormal(0, 0.8), 0.003)
        assert set(found.boundary(CYCLES)["status"]) == {status}
