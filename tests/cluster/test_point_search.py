"""Who chooses points, and what is told to whom; without a cluster."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny

pytest.importorskip("ray")

from ray.tune.search import Searcher

from raybasin.cluster import search, trials
from raybasin.cluster.search import Plugins, PointSearch
from raybasin.errors import FolderLost, UserError
from raybasin.jobs import local
from raybasin.jobs.scheduler import Outcome
from raybasin.store import inventory, tables
from raybasin.store.folders import Folder
from raybasin.sweep import plan, specs
from raybasin.sweep.job_list import Done
from raybasin.sweep.points import NONE, MapPoint, of_row, point_id

OPTUNA = {"searcher": "ray.tune.search.optuna:OptunaSearch", "metric": "barrier_error", "mode": "min", "points": 5}
RANGED = {**OPTUNA, "lr_ratio": [0.5, 32]}
METHODS = {"star_sse": {"n_members": 3}, "local_de": {"n_members": 3}}


def planned(asked=RANGED, methods=METHODS, **changes):
    return plan.make(specs.parse(tiny.tree(search=asked, methods=methods, **changes)), tiny.facts())


def at(lr_ratio, cycle_ratio=1.0):
    return MapPoint("star_sse", "first", lr_ratio, cycle_ratio)


class Scripted(Searcher):
    """Proposes the rates it was made with, and keeps what it is told."""

    def __init__(self, *rates):
        super().__init__()
        self.rates, self.told, self.results, self.added = list(rates), [], [], []

    def set_search_properties(self, metric, mode, config, **spec):
        self.space = config
        return True

    def suggest(self, trial_id):
        return {"lr_ratio": self.rates.pop(0)} if self.rates else Searcher.FINISHED

    def on_trial_result(self, trial_id, result):
        self.results.append((trial_id, result["barrier_error"]))

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.told.append((trial_id, None if result is None else result["barrier_error"], error))

    def add_evaluated_point(self, parameters, value, error=False, pruned=False, intermediate_values=None):
        self.added.append((parameters, value))


class Forgetful(Scripted):
    """Takes no point that it has not asked for, as many do."""

    def add_evaluated_point(self, *anything, **named):
        raise NotImplementedError


def chooser(folder, inner=None, listed=(), results=None, at_once=2, is_over=lambda: False, ended=None):
    return PointSearch(planned().settings, folder, listed, lambda: at_once, is_over, ended, inner, results)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_a_list_is_given_in_its_order_a_few_at_a_time(folder):
    points = chooser(folder, listed=[at(1.0), at(2.0), at(4.0)])
    assert [points.suggest(name)["lr_ratio"] for name in "ab"] == [1.0, 2.0]
    assert points.suggest("c") is None
    points.on_trial_complete("a", {"barrier_error": 0.0})
    assert points.suggest("c") == {"method": "star_sse", "checkpoint": "first", "lr_ratio": 4.0, "cycle_ratio": 1.0}
    points.on_trial_complete("b", error=True)
    assert points.suggest("d") == Searcher.FINISHED
    assert not folder.names("points")  # it follows from the sweep file


def test_points_that_have_come_to_their_end_are_given_before_one_that_is_waited_for(folder):
    ended = {at(4.0)}
    points = chooser(folder, listed=[at(1.0), at(2.0), at(4.0), at(8.0)], ended=ended, at_once=1)
    given = []
    for name in "abcd":
        given.append(points.suggest(name)["lr_ratio"])
        assert points.suggest("another") is None
        points.on_trial_complete(name, {"barrier_error": 0.0})
        ended |= {at(8.0)} if name == "b" else set()
    assert given == [4.0, 1.0, 8.0, 2.0]


def test_a_proposal_is_rounded_completed_and_written_down(folder):
    points = chooser(folder, Scripted(1.23456))
    assert points.suggest("a") == {"method": "star_sse", "checkpoint": "first", "lr_ratio": 1.235, "cycle_ratio": 1.0}
    (row,) = tables.rows(folder, "points")
    assert (row["lr_ratio"], row["event"], row["searcher"]) == (1.235, "chosen", RANGED["searcher"])
    assert inventory.chosen(folder, planned()).points == (at(1.235),)


def test_a_searcher_hears_of_its_own_proposals_by_its_own_names(folder):
    inner = Scripted(1.0, 2.0)
    points = chooser(folder, inner)
    points.suggest("a"), points.suggest("b")
    points.on_trial_result("b", {"barrier_error": math.nan})  # nothing has ended yet
    points.on_trial_result("b", {"barrier_error": 0.5})
    points.on_trial_complete("b", {"barrier_error": 0.25})
    points.on_trial_complete("a", error=True)
    assert inner.results == [("proposal-2", 0.5)]
    assert inner.told == [("proposal-2", 0.25, False), ("proposal-1", None, True)]


def test_a_branch_that_diverged_is_told_as_a_failure(folder):
    inner = Scripted(1.0)
    points = chooser(folder, inner)
    points.suggest("a")
    points.on_trial_complete("a", {"barrier_error": math.nan})
    assert inner.told == [("proposal-1", None, True)]


def test_what_is_known_is_answered_and_costs_no_trial(folder):
    inner = Scripted(1.0, 1.00001, 2.0)
    points = chooser(folder, inner, results={at(1.0): 0.125})
    assert inner.added == [({"lr_ratio": 1.0}, 0.125)]
    assert points.suggest("a")["lr_ratio"] == 2.0
    assert inner.told == [("proposal-1", 0.125, False), ("proposal-2", 0.125, False)]


def test_what_is_being_measured_is_answered_when_it_is_known(folder):
    inner = Scripted(2.0, 2.0, 2.0, 4.0)
    points = chooser(folder, inner)
    assert points.suggest("a")["lr_ratio"] == 2.0 and points.suggest("b")["lr_ratio"] == 4.0
    points.on_trial_complete("a", {"barrier_error": 0.5})
    assert inner.told == [(f"proposal-{n}", 0.5, False) for n in (1, 2, 3)]


def test_a_searcher_that_only_repeats_itself_has_no_more_to_propose(folder):
    inner = Scripted(*[2.0] * 500)
    points = chooser(folder, inner)
    points.suggest("a")
    assert points.suggest("b") is None  # it may say something else when it knows more
    asked = len(inner.rates)
    assert points.suggest("b") is None and len(inner.rates) == asked  # and is not asked before
    points.on_trial_complete("a", {"barrier_error": 0.5})
    assert points.suggest("b") == Searcher.FINISHED


def test_points_are_counted_with_those_that_were_there(folder):
    points = chooser(folder, Scripted(*range(2, 30)), at_once=100, results={at(1.0): 0.0, at(1.5): 0.0})
    found = [points.suggest(str(n)) for n in range(5)]
    assert found[3:] == [Searcher.FINISHED] * 2 and all(isinstance(one, dict) for one in found[:3])


def test_a_point_chosen_before_and_not_finished_is_told_when_it_is(folder):
    inner = Scripted()
    points = chooser(folder, inner, listed=[at(2.0)])
    points.suggest("a")
    points.on_trial_complete("a", {"barrier_error": 0.25})
    assert inner.added == [({"lr_ratio": 2.0}, 0.25)] and not inner.told


def test_a_searcher_that_cannot_be_told_of_old_points_is_named_and_goes_on(folder, caplog):
    points = chooser(folder, Forgetful(1.0, 3.0), results={at(1.0): 0.125})
    assert "cannot be told what was measured before" in caplog.text
    assert points.suggest("a")["lr_ratio"] == 3.0


def test_nothing_is_chosen_once_the_sweep_is_over_or_the_folder_is_lost(folder, monkeypatch):
    assert chooser(folder, Scripted(1.0), is_over=lambda: True).suggest("a") == Searcher.FINISHED

    def lose(*anything):
        raise FolderLost("no space left")

    points = chooser(folder, Scripted(1.0, 2.0))
    monkeypatch.setattr(inventory, "write_chosen", lose)
    assert points.suggest("a") == points.suggest("b") == Searcher.FINISHED and "no space" in str(points.lost)


# The space


def test_a_searcher_chooses_from_ranges_lists_methods_and_checkpoints():
    methods = {"star_sse": {"n_members": 3, "cycle_ratio": [0.5, 1]}, "sse": {"n_members": 3, "cycle_ratio": [0.5, 1]}}
    space = search.space(planned(methods=methods).settings)
    assert (space["lr_ratio"].lower, space["lr_ratio"].upper) == (0.5, 32)
    assert space["cycle_ratio"].categories == [0.5, 1.0] and space["method"].categories == ["star_sse", "sse"]
    assert space["checkpoint"] == "first"


def test_methods_that_list_different_ratios_cannot_be_chosen_among():
    methods = {"star_sse": {"n_members": 3, "cycle_ratio": [0.5, 1]}, "sse": {"n_members": 3}}
    with pytest.raises(UserError, match="star_sse and sse list different values of cycle_ratio"):
        search.space(planned(methods=methods).settings)


# What is plugged in


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"searcher": "raytune.search:Optuna"}, "search: raytune.search:Optuna cannot be imported"),
        ({"searcher": "ray.tune.search.optuna:OptunaSearcher"}, "did you mean 'OptunaSearch'?"),
        ({"searcher": "os:system"}, "search: os:system is no ray.tune.search.searcher.Searcher"),
        ({"searcher": "builtins:dict"}, "builtins:dict is no ray.tune.search.searcher.Searcher"),
        ({"args": {"sed": 1}}, "OptunaSearch cannot be made: TypeError"),
        ({"scheduler": {"scheduler": "ray.tune.search.optuna:OptunaSearch"}}, "search.scheduler: .* is no ray.tune"),
        ({"scheduler": {"scheduler": "ray.tune.schedulers:ASHAScheduler", "args": {"max_t": 0}}}, "cannot be made"),
        (
            {
                "scheduler": {
                    "scheduler": "ray.tune.schedulers:PopulationBasedTraining",
                    "args": {"hyperparam_mutations": {"lr_ratio": [1, 2]}},
                }
            },
            "does more with trials than",
        ),
        (
            {"scheduler": {"scheduler": "ray.tune.schedulers:HyperBandForBOHB"}},
            "does more with trials than",
        ),
        (
            {"scheduler": {"scheduler": "ray.tune.schedulers:ResourceChangingScheduler"}},
            "does more with trials than",
        ),
        ({"callbacks": [{"callback": "os:getcwd"}]}, r"search\.callbacks\[0\]: os:getcwd is no ray.tune"),
    ],
)
def test_what_cannot_be_plugged_in_is_said_with_its_key(changes, said):
    pytest.importorskip("optuna")
    with pytest.raises(UserError, match=said):
        search.plugins(planned({**RANGED, **changes}).spec.search)


def test_what_is_plugged_in_is_made():
    pytest.importorskip("optuna")
    asked = {**RANGED, "args": {"seed": 1}, "scheduler": {"scheduler": "ray.tune.schedulers:ASHAScheduler"},
             "callbacks": [{"callback": "ray.tune.logger:TBXLoggerCallback"}]}  # fmt: skip
    made = search.plugins(planned(asked).spec.search)
    names = [type(part).__name__ for part in (made.searcher, made.scheduler, *made.callbacks)]
    assert names == ["OptunaSearch", "AsyncHyperBandScheduler", "TBXLoggerCallback"]
    assert search.plugins(planned("grid").spec.search) == Plugins()


class Elsewhere(Scripted):
    """Takes no point that lies outside of its space, as Optuna."""

    def add_evaluated_point(self, parameters, value, error=False, pruned=False, intermediate_values=None):
        raise ValueError("not contained in the distribution")


def test_a_point_that_is_finished_where_the_searcher_does_not_choose_any_more_tells_it_nothing(folder):
    points = chooser(folder, Elsewhere(4.0), listed=[at(100.0)])
    points.suggest("a")
    points.on_trial_complete("a", {"barrier_error": 0.5})
    assert points.suggest("b")["lr_ratio"] == 4.0


class Free(Searcher):
    """Proposes what it was made with, and takes any space, or none."""

    def __init__(self, proposal=None, takes=True):
        super().__init__()
        self.proposal, self.takes = proposal, takes

    def set_search_properties(self, metric, mode, config, **spec):
        if self.takes is None:
            raise RuntimeError("nothing to vary")
        return self.takes

    def suggest(self, trial_id):
        return self.proposal


@pytest.mark.parametrize(
    "proposal",
    [{"lr_ratio": "fast"}, {"lr_ratio": math.nan}, {"lr_ratio": -1.0}, {"lr_ratio": 33.0}, {"rate": 1.0},
     {"lr_ratio": 1.0, "method": "swag"}, {"lr_ratio": 1.0, "cycle_ratio": math.inf}],
)  # fmt: skip
def test_a_proposal_that_is_no_point_is_shown(folder, proposal):
    with pytest.raises(UserError, match="which is no point of this sweep"):
        chooser(folder, Free(proposal)).suggest("a")


def test_a_whole_number_is_the_rate_that_it_is(folder):
    assert chooser(folder, Free({"lr_ratio": 2})).suggest("a")["lr_ratio"] == 2.0
    assert inventory.chosen(folder, planned()).points == (at(2.0),)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"searcher": f"{__name__}:Free", "args": {"takes": False}}, "does not take its space from Ray Tune"),
        ({"searcher": f"{__name__}:Free", "args": {"takes": None}}, "cannot choose from .*: nothing to vary"),
        ({"scheduler": {"scheduler": "ray.tune.schedulers:ASHAScheduler", "args": {"metric": "barrier_error"}}},
         "metric and mode are search.metric and search.mode"),
        ({"callbacks": [{"callback": "ray.tune.logger:TBXLoggerCallback"}], "logs": "/dev/null/x"},
         "search.logs: /dev/null/x cannot be written"),
    ],
)  # fmt: skip
def test_what_would_fail_later_is_said_before_anything_starts(changes, said):
    from raybasin.cluster import driver

    with pytest.raises(UserError, match=said):
        driver.plugged(planned({**RANGED, "args": {}, **changes}).settings)


# What is left to do


def situation(sweep_run, asked, methods=None, **changes):
    """The finished sweep of `tiny`, with another search."""
    made, spec = sweep_run.plan, sweep_run.plan.spec
    tree = specs.dump(spec) | {"search": asked, **changes}
    if methods:
        tree["methods"] = methods
    made = local.continued(sweep_run.folder, plan.make(specs.parse(tree), made.facts))
    return local.look(made, sweep_run.folder)


def test_a_search_takes_into_account_what_a_grid_has_left(finished):
    methods = {"star_sse": {"n_members": 3}, "sse": {"n_members": 3}, "local_de": {"n_members": 3}}
    found = search.sought(situation(finished, RANGED, methods), retrain=False)
    assert {(p.method, p.lr_ratio) for p in found.results} == {("star_sse", 1.0), ("star_sse", 4.0), ("sse", 1.0)}
    stored = {row["cell_id"]: row["barrier_error"] for row in finished.rows("cells")}
    at_4 = next(point for point in found.results if point.lr_ratio == 4.0)
    assert found.results[at_4] == stored[finished.cell("star_sse", 4.0).cell_id]
    assert found.more == 2 and not found.listed and not found.jobs


def test_points_with_too_few_replicates_or_out_of_range_are_not_known(finished):
    methods = {"star_sse": {"n_members": 3}, "local_de": {"n_members": 3}}
    narrow = search.sought(situation(finished, {**RANGED, "lr_ratio": [2, 32]}, methods), retrain=False)
    assert [point.lr_ratio for point in narrow.results] == [4.0]
    more = search.sought(situation(finished, RANGED, methods, replicates=2), retrain=False)
    assert not more.results and more.more == 5


def test_a_finished_grid_leaves_nothing_and_a_larger_one_only_what_is_new(finished):
    found = search.sought(local.look(finished.plan, finished.folder), retrain=False)
    assert not (found.jobs or found.listed or found.more)
    ashas = {"kind": "grid", "metric": "barrier_error", "mode": "min",
             "scheduler": {"scheduler": "ray.tune.schedulers:ASHAScheduler"}}  # fmt: skip
    compared = search.sought(situation(finished, ashas), retrain=False)
    assert not (compared.jobs or compared.listed or compared.more)
    methods = {"star_sse": {"n_members": 3, "lr_ratio": [1, 4, 8]}}
    found = search.sought(situation(finished, "grid", methods), retrain=False)
    assert [point.lr_ratio for point in found.listed] == [8.0] and found.jobs


def test_points_that_a_scheduler_has_ended_stay_ended_until_it_is_gone(copied):
    ashas = {"kind": "grid", "metric": "barrier_error", "mode": "min",
             "scheduler": {"scheduler": "ray.tune.schedulers:ASHAScheduler"}}  # fmt: skip
    first = situation(copied, ashas, replicates=3)
    point = next(p for p in search.sought(first, False).listed if (p.method, p.lr_ratio) == ("star_sse", 4.0))
    inventory.write_chosen(copied.folder, first.plan, point, inventory.ENDED, 1)
    again = situation(copied, ashas, replicates=3)
    assert len(again.plan.cells) == len(first.plan.cells) - 2
    left = search.sought(again, False)
    assert left.listed[0] == point  # all that it would have trained is there: it only tells what it came to
    cell_ids = {cell.cell_id for cell in again.plan.cells}
    assert copied.cell("star_sse", 4.0).cell_id in cell_ids
    assert len(situation(copied, "grid", replicates=3).plan.cells) == len(first.plan.cells)


@pytest.mark.parametrize("stepwise", [False, True])
def test_a_scheduler_hears_nothing_before_a_replicate_has_ended(finished, tmp_path, monkeypatch, stepwise):
    """What it would hear of a training that goes on has no value yet, and schedulers go by the first that they hear."""
    made = situation(finished, "grid", replicates=2).plan
    row = next(row for row in finished.rows("cells") if row["method"] == "star_sse")

    def news(jobs):
        first = min(jobs, key=lambda job: job.startswith("cell"))
        return {first: Outcome(True, value=row if first.startswith("cell") else None, job_id=first)}

    monkeypatch.setattr(trials, "ray", SimpleNamespace(get=lambda answer: answer))
    asked = {"news": news, "submit": lambda jobs: None}
    queue = SimpleNamespace(**{name: SimpleNamespace(remote=call) for name, call in asked.items()})
    shared = trials.Shared(queue, made.settings, str(tmp_path), Done(), NONE, tables.now(), True, stepwise)
    progress, told = trials.Progress(shared, of_row(row)), []
    while not (told and told[-1]["done"]):
        told.append(progress.step())
    assert [one["replicates"] for one in told if not math.isnan(one["barrier_error"])][-1] == 2
    assert any(math.isnan(one["barrier_error"]) for one in told) == (not stepwise)
    assert all(a["training_epochs"] <= b["training_epochs"] for a, b in itertools.pairwise(told))


def test_as_many_points_at_once_as_give_all_workers_something_to_do():
    stars = planned(methods={"star_sse": {"n_members": 5}}, replicates=3).settings  # 3 hubs, then 12 branches
    chains = planned(methods={"sse": {"n_members": 5}}, replicates=3).settings
    assert search.width(stars) == 15 / 2 and search.width(chains) == 3
    asha = {**RANGED, "scheduler": {"scheduler": "ray.tune.schedulers:ASHAScheduler"}}
    one_by_one = planned(asha, {"star_sse": {"n_members": 5}}, replicates=3).settings
    assert search.width(one_by_one) == 5 / 2


def test_cells_of_more_or_fewer_members_do_not_count(finished):
    larger = search.sought(situation(finished, {**RANGED, "points": 2}, {"star_sse": {"n_members": 4}}), False)
    assert larger.more == 2 and not larger.results
    ids = [point_id(planned(methods={"star_sse": {"n_members": n}}).settings, at(1.0)) for n in (3, 4)]
    assert ids[0] != ids[1]


def test_other_settings_in_the_folder_do_not_count(finished, tmp_path):
    made = situation(finished, RANGED, {"star_sse": {"n_members": 3}})
    recipe = made.plan.spec.recipe.model_copy(update={"lr": 0.03})
    other = plan.make(made.plan.spec.model_copy(update={"recipe": recipe}), made.plan.facts)
    assert not search.sought(replace(made, plan=other), False).results
