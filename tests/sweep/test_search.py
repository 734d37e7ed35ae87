"""What `search` may say in a sweep file, and the points that follow from it."""

import math

import pytest
import tiny

from raybasin.errors import UserError
from raybasin.jobs import prepare
from raybasin.sweep import plan, points, specs
from raybasin.sweep.points import Chosen, MapPoint
from raybasin.sweep.search import Search

OPTUNA = {"searcher": "ray.tune.search.optuna:OptunaSearch", "metric": "barrier_error", "mode": "min", "points": 5}
BOTH = {"lr_ratio": [1, 8], "cycle_ratio": [0.5, 2]}
ASHA = {"scheduler": "ray.tune.schedulers:ASHAScheduler"}
METHODS = {"star_sse": {"n_members": 3}, "local_de": {"n_members": 3}}


def sweep(search, methods=METHODS, **changes):
    return specs.parse(tiny.tree(search=search, methods=methods, **changes))


def planned(search, methods=METHODS, **changes):
    return prepare.prepare(sweep(search, methods, **changes)).plan


def places(made):
    return [(cell.point.method, cell.point.lr_ratio, cell.point.cycle_ratio) for cell in made.cells]


def test_a_grid_is_what_is_meant_by_nothing_and_may_be_written_short():
    assert specs.parse(tiny.tree()).search == Search() == sweep("grid").search == sweep({"kind": "grid"}).search
    assert not Search().by_results and not Search().plugs


def test_a_searcher_names_its_kind():
    found = sweep(OPTUNA).search
    assert found.kind == "searcher" and found.by_results and found.plugs
    assert specs.parse(specs.dump(sweep(OPTUNA))).search == found  # as a results folder keeps it


def test_callbacks_alone_choose_nothing():
    found = sweep({"callbacks": [{"callback": "ray.tune.logger:TBXLoggerCallback"}], "logs": "runs"}).search
    assert found.plugs and not found.by_results


@pytest.mark.parametrize(
    "search, said",
    [
        ("random", "search.points: is missing; random needs it"),
        ("rnd", "search.kind: must be 'grid', 'random', 'searcher', 'boundary' or 'best'"),
        ({"kind": "random", "points": 3, "metric": "barrier_error"}, "search.metric: has no effect without a searcher"),
        ({"points": 3}, "search.points: has no effect with kind grid"),
        ({**OPTUNA, "metric": None}, "search.metric: is missing; a scheduler needs it"),
        ({**OPTUNA, "searcher": "optuna"}, "search.searcher: must be package.module:Class"),
        ({**OPTUNA, "args": {"lambda": 1}}, "search.args: 'lambda' is not the name of an argument"),
        ({"kind": "random", "points": 3, "args": {"a": 1}}, "search.args: has no effect with kind random"),
        ({"scheduler": ASHA}, "search.metric: is missing; a scheduler needs it"),
        ({"kind": "best", **BOTH}, "search.of: is missing; best needs it"),
        ({"kind": "best", "of": "hub", **BOTH}, "search.of: must be 'soup' or 'ensemble', not 'hub'"),
        ({"kind": "best", "of": "soup"}, "search.lr_ratio: is missing; best needs it"),
        ({"kind": "boundary", "of": "soup", **BOTH}, "search.of: has no effect with kind boundary"),
        (
            {"kind": "best", "of": "soup", "resolution": 1.2, **BOTH},
            "search.resolution: has no effect with kind best",
        ),
        ({"kind": "best", "of": "soup", "scheduler": ASHA, **BOTH}, "search.scheduler: has no effect with kind best"),
        ({"logs": "runs"}, "search.logs: has no effect without callbacks"),
        ({"kind": "random", "points": 3, "lr_ratio": [4, 1]}, "search.lr_ratio: must be [lowest, highest], not [4, 1]"),
        (
            {"kind": "random", "points": 3, "cycle_ratio": [1, 1]},
            "search.cycle_ratio: kind random draws from a range; list one length with its method",
        ),
        (
            {"kind": "boundary", "lr_ratio": [1, 8], "cycle_ratio": [2, 1]},
            "search.cycle_ratio: must be [shortest, longest], not [2, 1]",
        ),
        ({"kind": "random", "points": 3, "lr_ratios": [1, 4]}, "search.lr_ratios: unknown key"),
    ],
)
def test_what_cannot_be_meant_is_said_with_its_key(search, said):
    with pytest.raises(UserError) as error:
        sweep(search)
    assert said in str(error.value), str(error.value)


def test_ratios_are_not_chosen_twice():
    methods = {"star_sse": {"n_members": 3, "lr_ratio": [1, 2]}}
    with pytest.raises(UserError, match=r"methods\.star_sse\.lr_ratio: is chosen by search\.lr_ratio; leave it out"):
        sweep({"kind": "random", "points": 3, "lr_ratio": [1, 4]}, methods)


def test_a_search_needs_a_method_with_ratios():
    with pytest.raises(UserError, match="search: has nothing to choose: none of local_de has ratios"):
        sweep({"kind": "random", "points": 3}, {"local_de": {"n_members": 3}})


def test_weights_are_all_kept_where_points_are_chosen_by_results():
    with pytest.raises(UserError, match="keep.weights: soups cannot be had with a searcher"):
        sweep(OPTUNA, keep={"weights": "soups"})


def test_test_images_do_not_choose():
    with pytest.raises(UserError, match=r"search.metric: soup_accuracy is not .* did you mean 'val_soup_accuracy'\?"):
        prepare.prepare(sweep({**OPTUNA, "metric": "soup_accuracy"}))


# The points of random


RANGES = {"kind": "random", "points": 6, "lr_ratio": [0.5, 32], "cycle_ratio": [0.5, 2]}


def test_random_points_lie_in_their_ranges_and_differ():
    made = planned(RANGES)
    drawn = [place for place in places(made) if place[0] == "star_sse"]
    assert len(set(drawn)) == len(drawn) == 6
    assert all(0.5 <= lr <= 32 and 0.5 <= cycle <= 2 for _, lr, cycle in drawn)
    assert ("local_de", 1.0, 1.0) in places(made)  # a method without ratios has its one point, and is not counted


def test_random_points_follow_from_the_seed_and_a_longer_search_begins_with_a_shorter_one():
    short, long = planned(RANGES), planned({**RANGES, "points": 9})
    assert places(planned(RANGES)) == places(short)
    assert set(places(short)) < set(places(long))
    assert set(places(planned(RANGES, seed=7))) != set(places(short))


def test_random_points_are_shared_out_evenly_among_methods():
    methods = {"star_sse": {"n_members": 3}, "sse": {"n_members": 3}}
    found = [method for method, *_ in places(planned(RANGES, methods))]
    assert found.count("star_sse") == found.count("sse") == 3


def test_lists_can_be_drawn_from_but_not_more_than_there_is():
    methods = {"star_sse": {"n_members": 3, "lr_ratio": [1, 2, 4]}}
    assert sorted(lr for _, lr, _ in places(planned({"kind": "random", "points": 3}, methods))) == [1, 2, 4]
    with pytest.raises(UserError, match="search.points: 4 points of star_sse cannot be told from each other"):
        planned({"kind": "random", "points": 4}, methods)


def test_the_ids_of_a_point_are_those_of_a_grid():
    made = planned(RANGES)
    _, lr_ratio, cycle_ratio = next(place for place in places(made) if place[0] == "star_sse")
    grid = planned("grid", {"star_sse": {"n_members": 3, "lr_ratio": lr_ratio, "cycle_ratio": cycle_ratio}})
    assert made.settings_id == grid.settings_id and {cell.cell_id for cell in grid.cells} < set(made.cell)


# Rounding


@pytest.mark.parametrize("by", ["step", "epoch"])
@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 25, 100])
def test_a_cycle_is_rounded_to_whole_steps_or_epochs_and_comes_to_as_many(by, epochs):
    settings = planned(
        {**RANGES, "cycle_ratio": [0.001, 10]}, recipe={**tiny.tree()["recipe"], "epochs": epochs, "schedule_by": by}
    )
    unit = settings.steps_per_epoch if by == "epoch" else 1
    for ratio in (0.01, 0.2, 1 / 3, 0.3333, 0.5, 2 / 3, 1.0, 1.23456789, math.pi, 4.0):
        found = points.snapped(settings, MapPoint("star_sse", "c", 1.0, ratio))
        steps = settings.cycle_steps(found.cycle_ratio)
        assert steps == max(unit, round(ratio * epochs * settings.steps_per_epoch / unit) * unit)
        assert points.snapped(settings, found) == found


@pytest.mark.parametrize(
    "metric, changes", [("val_soup_nll", {"soups": []}), ("member_barrier_nll", {"methods": {"sse": {"n_members": 2}}})]
)
def test_a_metric_that_the_sweep_does_not_measure_is_refused(metric, changes):
    asked = {**OPTUNA, "metric": metric, "lr_ratio": [1, 2], "cycle_ratio": [1, 2]}
    with pytest.raises(UserError, match=f"search.metric: {metric} is not measured"):
        planned(asked, **{"methods": METHODS, **changes})
    planned(asked)


@pytest.mark.parametrize("by", ["step", "epoch"])
def test_what_is_rounded_stays_in_the_range_that_is_searched(by):
    ranges = {**RANGES, "lr_ratio": [1.00004, 31.99996], "cycle_ratio": [0.25, 1 / 3]}
    settings = planned(ranges, recipe={**tiny.tree()["recipe"], "epochs": 10, "schedule_by": by})
    for lr_ratio, cycle_ratio in ((1.00004, 0.25), (31.99996, 1 / 3), (2.0, 0.3)):
        found = points.snapped(settings, MapPoint("star_sse", "c", lr_ratio, cycle_ratio))
        assert 1.00004 <= found.lr_ratio <= 31.99996 and 0.25 <= found.cycle_ratio <= 1 / 3
        assert points.snapped(settings, found) == found


def test_a_rate_is_rounded_to_four_digits_and_what_a_method_lists_is_not():
    ranged, listed = planned(RANGES), planned("grid")
    point = MapPoint("star_sse", "c", 1.23456, 0.7)
    assert points.snapped(ranged, point).lr_ratio == 1.235
    assert points.snapped(listed, point) == point


# What was chosen


def test_a_plan_has_what_was_chosen_and_of_points_that_were_ended_the_replicates_they_have():
    search = {**OPTUNA, "lr_ratio": [0.5, 32], "scheduler": ASHA}
    first = planned(search, replicates=3)
    assert {method for method, *_ in places(first)} == {"local_de"}
    name = first.facts.checkpoints[0].name
    one, other = MapPoint("star_sse", name, 2.0), MapPoint("star_sse", name, 8.0)
    elsewhere = MapPoint("star_sse", "a checkpoint of another run", 8.0)
    made = plan.make(first.spec, first.facts, Chosen((one, other, elsewhere), ((other, (0,)),)))
    found = [(cell.point.lr_ratio, cell.point.replicate) for cell in made.cells if cell.point.method == "star_sse"]
    assert sorted(found) == [(2.0, 0), (2.0, 1), (2.0, 2), (8.0, 0)]
    assert len(plan.of_points(first.settings, [one]).cells) == 3


def test_the_shortest_cycle_of_a_range_must_be_one_that_its_method_can_use():
    with pytest.raises(UserError, match=r"search\.cycle_ratio: 0\.5 for swag: collect_steps"):
        planned({**RANGES, "cycle_ratio": [0.5, 2]}, {"swag": {"n_members": 3}})
