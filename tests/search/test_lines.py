"""Which cell of which line is measured next."""

import math
from collections import Counter

import numpy as np
import pytest
import tiny

from raybasin.errors import UserError
from raybasin.search import lines
from raybasin.sweep import points, specs
from raybasin.sweep.facts import CheckpointFacts
from raybasin.sweep.points import MapPoint
from raybasin.sweep.settings import Settings

ASKED = {"kind": "boundary", "lr_ratio": [0.5, 64], "cycle_ratio": [0.5, 2]}
TWO = (CheckpointFacts("first", "c" * 64), CheckpointFacts("second", "d" * 64))


def searched(asked=ASKED, replicates=3, **facts):
    tree = tiny.tree(search=asked, methods={"star_sse": {"n_members": 3}}, replicates=replicates)
    return lines.of(Settings(specs.parse(tree), tiny.facts(**facts)))


def row(wanted, barrier, se=0.002):
    point = wanted.point
    return {"method": point.method, "checkpoint": point.checkpoint, "lr_ratio": point.lr_ratio,
            "cycle_ratio": point.cycle_ratio, "replicate": wanted.replicate, "barrier_error": barrier,
            "barrier_nll": barrier, "barrier_error_se": se}  # fmt: skip


def steep(point, at=8.0):
    return 0.02 * min(4.0, (point.lr_ratio / at) ** 4)


def measured(search, cells=1000):
    """Measures cells one after another, until the search is over or there are so many."""
    found = []
    while len(found) < cells and (wanted := search.next()):
        found.append(wanted)
        search.tell(row(wanted, steep(wanted.point)))
    return found


def test_by_nll_it_is_told_nats():
    """What is out by its error and in by nats moves the line up."""
    tree = tiny.tree(search=ASKED, methods={"star_sse": {"n_members": 3}}, basin__by="nll", basin__threshold=0.06)
    search = lines.of(Settings(specs.parse(tree), tiny.facts()))
    for lr_ratio, nats, se in ((1.0, 0.0, 0.001), (4.0, 0.01, 0.001), (16.0, 0.3, 0.01), (32.0, 0.9, None)):
        [line] = search.searches
        wanted = lines.Wanted(MapPoint(*line, lr_ratio, 1.0), 0, "bracket")
        search.tell({**row(wanted, 0.5), "barrier_nll": nats, "barrier_nll_se": se})
    [found] = next(iter(search.searches.values())).boundary([1.0]).itertuples()
    assert 4 < found.lr_ratio < 16 and found.status == "found"


def test_it_ends_with_the_line_known_and_measures_no_cell_twice():
    search = searched()
    cells = measured(search)
    assert len({(wanted.point, wanted.replicate) for wanted in cells}) == len(cells)
    assert set(search.stopped.values()) == {"resolution"}
    [line] = search.searches.values()
    for found in line.boundary([0.5, 1, 2]).itertuples():
        assert found.low <= 8 <= found.high and found.high / found.low <= 1.1**4


def test_what_it_asks_for_can_be_told_from_others_and_has_as_many_replicates_as_the_sweep_allows():
    search = searched(replicates=2)
    settings = Settings(specs.parse(tiny.tree(search=ASKED, methods={"star_sse": {"n_members": 3}})), tiny.facts())
    cells = measured(search)
    for wanted in cells:
        assert points.snapped(settings, wanted.point) == wanted.point
        assert wanted.replicate < 2
    assert len({(wanted.point, wanted.replicate) for wanted in cells}) == len(cells)


def test_one_length_may_be_all_that_is_searched():
    search = searched({**ASKED, "cycle_ratio": [1, 1]})
    assert {wanted.point.cycle_ratio for wanted in measured(search)} == {1.0}
    [line] = search.searches.values()
    [found] = line.boundary([1]).itertuples()
    assert found.low <= 8 <= found.high and line.stopped == "resolution"
    best = searched({**BEST, "cycle_ratio": [1, 1]})
    while wanted := best.next():
        best.tell(scored(wanted, peaked(wanted.point)))
    [found] = [one.best() for one in best.searches.values()]
    assert 3 < found.lr_ratio < 12 and found.cycle_ratio == 1


def test_each_checkpoint_has_its_line_and_they_share_budget_and_points():
    search = searched({**ASKED, "points": 10}, checkpoints=TWO)
    cells = measured(search)
    assert sorted(wanted.point.checkpoint for wanted in cells) == ["first"] * 5 + ["second"] * 5
    assert set(search.stopped.values()) == {"budget"}
    epochs = searched({**ASKED, "budget_epochs": 40}, checkpoints=TWO)
    spent = sum(2 * 2 * wanted.point.cycle_ratio for wanted in measured(epochs))  # 2 branches of 2 epochs
    assert 30 < spent <= 40


def test_one_that_goes_on_asks_for_what_one_that_was_not_interrupted_would_have():
    whole = [(wanted.point, wanted.replicate) for wanted in measured(searched())]
    first = searched()
    told = [row(wanted, steep(wanted.point)) for wanted in measured(first, cells=7)]
    pending = first.next()
    again = searched()
    for one in reversed(told):
        again.tell(one)
    again.expect(pending.point, pending.replicate)
    again.tell(row(pending, steep(pending.point)))
    rest = [(wanted.point, wanted.replicate) for wanted in measured(again)]
    assert whole == [(points.of_row(one), one["replicate"]) for one in told] + [
        (pending.point, pending.replicate), *rest
    ]  # fmt: skip


def test_a_grid_that_is_there_counts_and_a_cell_that_fails_is_not_asked_for_again():
    grid = searched()
    for lr_ratio in (1.0, 2.0, 4.0, 8.0, 16.0):
        for replicate in range(2):
            point = MapPoint("star_sse", "first", lr_ratio, 1.0)
            grid.tell(row(lines.Wanted(point, replicate, ""), steep(point)))
    assert len(measured(grid)) < len(measured(searched()))
    search = searched()
    failed = search.next()
    search.give_up(failed.point)
    assert failed.point not in [wanted.point for wanted in measured(search)]


def test_what_diverged_is_out():
    search = searched()
    while wanted := search.next():
        search.tell(row(wanted, math.nan if wanted.point.lr_ratio > 4 else 0.0, None))
    [line] = search.searches.values()
    assert all(line.boundary([1]).high >= 4 * 0.9)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"kind": "boundary"}, "lr_ratio: is missing; boundary needs it"),
        ({**ASKED, "metric": "barrier_error", "mode": "min"}, "metric: has no effect"),
        ({**ASKED, "resolution": 1}, "resolution"),
        ({**ASKED, "budget_epochs": 0}, "budget_epochs"),
        ({**ASKED, "searcher": "ray.tune.search.optuna:OptunaSearch"}, "searcher: has no effect"),
        ({"kind": "random", "points": 3, "resolution": 1.2}, "resolution: has no effect with kind random"),
        (
            {**ASKED, "scheduler": {"scheduler": "ray.tune.schedulers:ASHAScheduler"}},
            "scheduler: has no effect with kind boundary",
        ),
    ],
)
def test_what_a_boundary_needs_and_what_it_does_not_take(asked, words):
    with pytest.raises(UserError, match=words):
        specs.parse(tiny.tree(search=asked, methods={"star_sse": {"n_members": 3}}))


BEST = {"kind": "best", "of": "soup", "lr_ratio": [0.5, 64], "cycle_ratio": [0.5, 2]}


def scored(wanted, score):
    return {**row(wanted, 0.0), "val_soup_accuracy": score, "val_ensemble_accuracy": 0.0}


def peaked(point, at=6.0):
    return 0.9 - 0.05 * math.log(point.lr_ratio / at) ** 2 - 0.02 * math.log(point.cycle_ratio) ** 2


def test_the_best_point_is_found_by_the_score_that_is_asked_for():
    search, cells = searched(BEST), 0
    while wanted := search.next():
        search.tell(scored(wanted, peaked(wanted.point)))
        cells += 1
    assert set(search.stopped.values()) <= {"resolution", "cannot decide"} and cells < 60
    [best] = [one.best() for one in search.searches.values()]
    assert 3 < best.lr_ratio < 12 and best.low <= 0.9 <= best.high + 0.01


def test_a_search_for_the_best_goes_on_and_takes_no_score_for_a_bad_one():
    whole, told = searched(BEST), []
    for _ in range(12):
        wanted = whole.next()
        score = None if wanted.point.lr_ratio > 20 else peaked(wanted.point)
        told.append(scored(wanted, score))
        whole.tell(told[-1])
    again = searched(BEST)
    for one in told[::-1]:
        again.tell(one)
    assert again.next() == whole.next()
    pending = again.next()
    later = searched(BEST)
    for one in told:
        later.tell(one)
    later.next()
    later.expect(pending.point, pending.replicate)
    assert later.next() == again.next()


@pytest.mark.parametrize(
    ("on_line", "at_point", "most", "expected"),
    [
        ({}, set(), 8, 0),
        ({0: 3}, set(), 8, 0),
        ({0: 3}, {0}, 8, 1),
        ({0: 4}, set(), 8, 1),
        ({0: 4, 1: 2}, {1}, 8, 0),
        ({0: 4, 1: 4}, set(), 8, 2),
        ({0: 4, 1: 4}, set(), 2, 0),
        ({0: 4, 1: 4, 2: 1}, {0, 1, 2}, 8, 3),
        ({0: 6, 5: 1}, set(), 8, 1),
    ],
)
def test_cells_of_a_line_are_spread_over_replicates(on_line, at_point, most, expected):
    assert lines.spread(on_line, at_point, most) == expected


def test_a_line_has_about_as_many_cells_of_each_replicate():
    search, rng, counts = searched({**ASKED, "points": 24}, replicates=8), np.random.default_rng(0), Counter()
    while wanted := search.next():
        search.tell(row(wanted, steep(wanted.point) * rng.lognormal(-0.3, 0.8)))
        counts[wanted.replicate] += 1
    assert counts.total() == 24
    assert set(counts) == set(range(6)) and min(counts.values()) >= 3
