"""Reading a results folder: exact answers on made-up numbers."""

import statistics
import typing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import synthetic
import yaml

from raybasin.analysis import held, maps
from raybasin.analysis import results as reading
from raybasin.analysis.results import Results
from raybasin.errors import UserError
from raybasin.jobs import local
from raybasin.store import tables
from raybasin.store.folders import Folder
from raybasin.store.schemas import COMMON, SCHEMAS
from raybasin.sweep import ids


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("whole")
    return reading.open(synthetic.write(root, synthetic.grid()))


def results_of(root: Path, cells: list[synthetic.Row], **changes: object) -> Results:
    """A folder with these cells and the synthetic sweep, of which top-level keys are changed."""
    return reading.open(synthetic.write(root, cells, content=synthetic.sweep(**changes)))


def only_star(lr_ratio: list[float], cycle_ratio: list[float]) -> dict[str, object]:
    return {"star_sse": {"lr_ratio": lr_ratio, "cycle_ratio": cycle_ratio}}


# Opening


def test_the_only_settings_are_opened_unnamed(whole: Results) -> None:
    assert whole.settings_id == synthetic.SETTINGS
    assert whole.sweep["name"] == "synthetic"
    assert len(whole.cells) == len(synthetic.grid())


def test_several_settings_are_refused_with_what_differs_and_the_way_out(tmp_path: Path) -> None:
    changed = synthetic.sweep(name="other", recipe={"epochs": 20, "lr": 0.1, "momentum": 0.5, "grad_clip": 1},
                              data={"name": "cifar10", "eval_crop": 0.9}, seed=1, replicates=9)  # fmt: skip
    synthetic.write(tmp_path, synthetic.grid()[:3], "aaaa")
    synthetic.write(tmp_path, synthetic.grid()[4:5], "bbbb", changed)
    with pytest.raises(UserError) as refused:
        reading.open(tmp_path)
    assert str(refused.value) == (
        f"results folder {tmp_path}: holds 2 settings, which do not belong in one map: aaaa (synthetic, 3 cells, last "
        "worked on 2026-07-01 00:01 UTC) is the newest, beside bbbb (other, 1 cell, last worked on 2026-07-01 00:00 "
        "UTC), which differs in recipe.lr (0.1, not 0.05), recipe.momentum (0.5, not 0.9), recipe.grad_clip (1, not "
        "none) and 1 more; name one with --settings, or take the newest with --settings latest (in Python settings=); "
        f"`raybasin settings list {tmp_path}` says more"
    )


def test_the_latest_settings_are_those_worked_on_last(tmp_path: Path) -> None:
    synthetic.write(tmp_path, synthetic.grid()[1:2], "aaaa")
    assert reading.open(tmp_path, settings="latest").settings_id == "aaaa"
    synthetic.write(tmp_path, synthetic.grid()[:1], "bbbb")
    assert reading.open(tmp_path, settings="latest").settings_id == "aaaa"
    synthetic.write(tmp_path, [], "cccc")
    common = {name: synthetic.grid()[0][name] for name in COMMON}
    row = {**common, "settings_id": "cccc", "member_id": "m", "finished_at": datetime(2026, 8, 1, tzinfo=UTC)}
    tables.write(Folder(tmp_path), "members", "m", [row])
    assert reading.open(tmp_path, settings="latest").settings_id == "cccc"  # no cell of it is finished yet
    with pytest.raises(UserError, match="name one with --settings, or take the newest"):
        reading.open(tmp_path)


def test_where_nothing_was_worked_on_none_of_several_is_the_latest(tmp_path: Path) -> None:
    for settings_id in ("aaaa", "bbbb"):
        synthetic.write(tmp_path, [], settings_id)
    with pytest.raises(UserError, match=r"none is the latest; name one: aaaa \(synthetic, 0 cells\), bbbb"):
        reading.open(tmp_path, settings="latest")


def test_named_settings_are_read_alone(tmp_path: Path) -> None:
    synthetic.write(tmp_path, synthetic.grid()[:3], "aaaa")
    synthetic.write(tmp_path, synthetic.grid()[3:4], "bbbb")
    results = reading.open(tmp_path, settings="bbbb")
    for table in (results.cells, results.scores, results.paths):
        assert set(table["cell_id"]) == {synthetic.grid()[3]["cell_id"]}


def test_settings_are_named_by_as_much_of_their_id_as_tells_them_apart(tmp_path: Path) -> None:
    for number, name in enumerate(("abba", "abcd", "ab")):
        synthetic.write(tmp_path, synthetic.grid()[number : number + 1], name)
    assert reading.open(tmp_path, settings="abc").settings_id == "abcd"
    assert reading.open(tmp_path, settings="ab").settings_id == "ab"  # the whole id of one of them
    assert held.find(Folder(tmp_path), "abb").settings_id == "abba"
    for asked, said in (("a", "several settings begin with a; known are"), ("", "holds no settings ;")):
        with pytest.raises(UserError, match=said):
            reading.open(tmp_path, settings=asked)


def test_unknown_settings_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    synthetic.write(tmp_path, synthetic.grid()[:3], "aaaa")
    with pytest.raises(UserError, match=r"no settings cccc; known are aaaa \(synthetic, 3 cells, last"):
        reading.open(tmp_path, settings="cccc")


def test_settings_that_only_wait_to_be_run_count_where_there_are_no_cells(tmp_path: Path) -> None:
    synthetic.write(tmp_path, [], "aaaa")
    assert reading.open(tmp_path).settings_id == "aaaa"
    synthetic.write(tmp_path, [], "bbbb")
    with pytest.raises(UserError, match=r"aaaa \(synthetic, 0 cells\) and bbbb.*what their sweep files do not tell"):
        reading.open(tmp_path)
    synthetic.write(tmp_path, synthetic.grid()[:1], "bbbb")
    assert reading.open(tmp_path).settings_id == "bbbb"


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no results"):
        reading.open(tmp_path)


def test_results_without_their_sweep_file_are_refused_by_its_name(tmp_path: Path) -> None:
    synthetic.write(tmp_path, synthetic.grid()[:1])
    sweep_file = tmp_path / "sweeps" / f"{synthetic.SETTINGS}.yaml"
    sweep_file.unlink()
    with pytest.raises(UserError, match=str(sweep_file)):
        _ = reading.open(tmp_path).cells


def test_before_the_first_cell_every_table_is_empty_and_has_its_columns(tmp_path: Path) -> None:
    results = reading.open(synthetic.write(tmp_path, []))
    for name in ("cells", "members", "epochs", "paths", "scores", "failures", "checkpoints"):
        table = getattr(results, name)
        assert len(table) == 0
        on_reading = {"scores": {"deep_ensemble_equivalent"}, "cells": {"why"}}.get(name, set())
        assert set(table.columns) == set(SCHEMAS[name].names) | on_reading
    assert reading.missing_cells(results) == len(synthetic.grid())
    with pytest.raises(UserError, match="no cell is finished yet; `raybasin status"):
        reading.best_cell(results)


def test_members_are_those_of_the_cells_whatever_settings_trained_them(tmp_path: Path) -> None:
    row = synthetic.grid()[0]
    synthetic.write(tmp_path, [row])
    common = {name: row[name] for name in COMMON}
    for member_id in (row["hub_id"], "of-no-cell"):
        member = {**common, "settings_id": "earlier", "member_id": member_id}
        tables.write(Folder(tmp_path), "members", member_id, [member])
        tables.write(Folder(tmp_path), "epochs", member_id, [{**member, "epoch": 0}])
    results = reading.open(tmp_path)
    assert results.members["member_id"].tolist() == [row["hub_id"]]
    assert results.epochs["member_id"].tolist() == [row["hub_id"]]


def test_in_basin_follows_the_threshold_of_the_sweep_file_and_not_what_was_stored(tmp_path: Path) -> None:
    rows = [
        synthetic.cell("star_sse", 1, 1, replicate, barrier_error=height, in_basin=height > 0.05)
        for replicate, height in enumerate((0.049, 0.05, 0.051))
    ]
    results = results_of(tmp_path, rows, basin={"threshold": 0.05})
    assert results.cells.sort_values("replicate")["in_basin"].tolist() == [True, True, False]


def test_the_types_that_public_functions_return_can_be_resolved() -> None:
    assert typing.get_type_hints(reading.open)["return"] is Results
    assert typing.get_type_hints(reading.log_probs)["return"] == reading.Float32Array
    for returned in (Results, local.Report, local.Pretrained):
        assert typing.get_type_hints(returned)


# Log-probabilities


def test_log_probs_have_the_hub_first_and_the_examples_in_order(tmp_path: Path) -> None:
    row = synthetic.grid()[0]
    synthetic.write(tmp_path, [row])
    synthetic.write_predictions(tmp_path, row["member_ids"])
    results = reading.open(tmp_path)
    log_probs_MNC = reading.log_probs(results, row["cell_id"], "test")
    expected = [[synthetic.log_probs_of(m, n) for n in range(synthetic.N_EXAMPLES)] for m in range(5)]
    assert log_probs_MNC.dtype == np.float32
    np.testing.assert_array_equal(log_probs_MNC, np.asarray(expected, dtype=np.float32))
    labels = results.predictions(row["member_ids"][:1], "test")["label"]
    np.testing.assert_array_equal(labels, np.arange(synthetic.N_EXAMPLES) % synthetic.N_CLASSES)
    np.testing.assert_array_equal(reading.log_probs(tmp_path, row["cell_id"], "test"), log_probs_MNC)


def test_only_the_predictions_asked_for_are_read(tmp_path: Path) -> None:
    row = synthetic.grid()[0]
    synthetic.write(tmp_path, [row])
    synthetic.write_predictions(tmp_path, row["member_ids"][:2])
    (tmp_path / "predictions" / "another.parquet").write_bytes(b"not Parquet")
    rows = reading.open(tmp_path).predictions(row["member_ids"][1::-1], "val")
    assert rows["predictor_id"].unique().tolist() == row["member_ids"][1::-1]
    assert rows["example"].tolist() == [*range(synthetic.N_EXAMPLES)] * 2
    assert set(rows["split"]) == {"val"}
    assert len(reading.open(tmp_path).predictions([], "val")) == 0


def test_predictions_that_are_not_there_are_named(tmp_path: Path) -> None:
    row = synthetic.grid()[0]
    results = reading.open(synthetic.write(tmp_path, [row]))
    synthetic.write_predictions(tmp_path, row["member_ids"][:1])
    with pytest.raises(UserError, match=f"no predictions of {row['member_ids'][1]}"):
        reading.log_probs(results, row["cell_id"], "val")
    with pytest.raises(UserError, match="none for split blurred with bn own; there are test/own"):
        results.predictions(row["member_ids"][:1], "blurred")
    with pytest.raises(UserError, match="no finished cell nonsense"):
        reading.log_probs(results, "nonsense", "val")


# The best cell


def soups(lr_ratio: float, accuracies: list[float], nlls: list[float], first: int = 0) -> list[synthetic.Row]:
    return [
        synthetic.cell("star_sse", lr_ratio, 1, first + i, val_soup_accuracy=accuracy, val_soup_nll=nll)
        for i, (accuracy, nll) in enumerate(zip(accuracies, nlls, strict=True))
    ]


def test_the_best_cell_has_the_highest_mean_validation_soup_and_not_the_luckiest_one(tmp_path: Path) -> None:
    cells = [*soups(1, [0.99, 0.80], [0.1, 0.1]), *soups(2, [0.93, 0.91], [0.9, 0.9])]
    best = reading.best_cell(results_of(tmp_path, cells))
    assert (best["lr_ratio"], best["replicate"]) == (2, 0)


def test_of_equal_soups_the_one_with_the_lower_nll_is_best(tmp_path: Path) -> None:
    # 0.1 + 0.2 is larger than 0.3 + 0.0 in the last bit of a float, though the counts of images are equal.
    cells = [*soups(1, [0.1, 0.2], [0.5, 0.5]), *soups(2, [0.3, 0.0], [0.4, 0.5]), *soups(4, [0.1], [0.0])]
    assert reading.best_cell(results_of(tmp_path, cells))["lr_ratio"] == 2


def test_the_best_cell_is_the_lowest_replicate_that_is_there(tmp_path: Path) -> None:
    cells = [*soups(1, [0.5], [0.5]), *soups(2, [0.9, 0.8], [0.5, 0.5], first=1)]
    assert reading.best_cell(results_of(tmp_path, cells[::-1]))["replicate"] == 1


def test_ensembles_of_two_sizes_are_two_points(tmp_path: Path) -> None:
    cells = [
        synthetic.cell("star_sse", 1, 1, 0, n_members=n_members, val_soup_accuracy=accuracy)
        for n_members, accuracy in ((3, 0.99), (5, 0.5))
    ] + soups(2, [0.8], [0.5])
    best = reading.best_cell(results_of(tmp_path, cells))
    assert (best["lr_ratio"], best["n_members"]) == (1, 3)


def test_without_soups_there_is_no_best_cell(tmp_path: Path) -> None:
    cells = [synthetic.cell("star_sse", 1, 1, 0, val_soup_accuracy=None, val_soup_nll=None)]
    with pytest.raises(UserError, match="holds no soups"):
        reading.best_cell(results_of(tmp_path, cells))


# Gains and their summary


def test_gains_are_paired_by_replicate() -> None:
    rows = [
        synthetic.cell("star_sse", 1, 1, 0, hub_accuracy=0.5, ensemble_accuracy=0.75, soup_accuracy=0.25),
        synthetic.cell("star_sse", 1, 1, 1, hub_accuracy=0.25, ensemble_accuracy=0.75, greedy_soup_accuracy=1.0),
        synthetic.cell("local_de", 1, 1, 1, ensemble_accuracy=0.875),
        synthetic.cell("local_de", 1, 1, 0, ensemble_accuracy=0.5),
    ]
    gains = reading.gains(pd.DataFrame(rows))
    assert gains["ensemble_gain"].tolist()[:2] == [0.25, 0.5]
    assert gains["soup_gain"].iloc[0] == -0.25
    assert gains["greedy_soup_gain"].iloc[1] == 0.75
    assert gains["over_local_de"].tolist() == [0.25, -0.125, 0, 0]


@pytest.mark.parametrize("other", [{"n_members": 3}, {"checkpoint": "another"}, {"replicate": 1}])
def test_a_local_de_of_another_size_checkpoint_or_replicate_is_no_line_to_beat(
    other: dict[str, object],
) -> None:
    rows = [synthetic.cell("star_sse", 1, 1, 0), {**synthetic.cell("local_de", 1, 1, 0), **other}]
    assert np.isnan(reading.gains(pd.DataFrame(rows))["over_local_de"].iloc[0])


def test_the_summary_has_local_de_first_and_means_over_replicates() -> None:
    accuracies = [0.5, 0.75, 0.875]
    rows = [
        synthetic.cell("star_sse", 1, 1, i, ensemble_accuracy=x, in_basin=i > 0) for i, x in enumerate(accuracies)
    ] + [synthetic.cell("local_de", 1, 1, 0, ensemble_accuracy=0.625)]
    local_de, star = reading.summary(pd.DataFrame(rows)).to_dict("records")
    assert (local_de["method"], local_de["replicates"]) == ("local_de", 1)
    assert star["replicates"] == 3
    assert star["in_basin"] == pytest.approx(2 / 3)
    assert star["ensemble_accuracy"] == pytest.approx(statistics.mean(accuracies))
    assert star["over_local_de"] == -0.125  # one replicate has a local_de beside it


def test_by_size_goes_from_the_hub_to_the_whole_ensemble(whole: Results) -> None:
    row = synthetic.cell("local_de", 1, 1, 1)
    sizes = reading.by_size(whole, [row["cell_id"]]).sort_values("n_members")
    assert sizes["n_members"].tolist() == [1, 2, 3, 4, 5]
    assert sizes["accuracy"].iloc[[0, -1]].tolist() == [row["hub_accuracy"], row["ensemble_accuracy"]]


def judged_by_mean_class_accuracy(sweep: Any) -> Results:
    """The tiny sweep, as if its data set had that metric."""
    path = sweep.folder.root / f"sweeps/{sweep.plan.settings_id}.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["facts"]["data"]["metric"] = "mean_class_accuracy"
    path.write_text(yaml.safe_dump(tree))
    return reading.open(sweep.folder.root)


def test_cells_are_judged_by_the_metric_of_their_data_set(copied: Any) -> None:
    """Against scikit-learn's balanced accuracy of the stored predictions."""
    from sklearn.metrics import balanced_accuracy_score

    as_stored = reading.open(copied.folder.root)
    assert reading.judged(as_stored).equals(as_stored.cells)
    results = judged_by_mean_class_accuracy(copied)
    assert reading.metric_name(results) == "mean-per-class accuracy"

    def balanced(predictor_ids: list[str], split: str, bn: str) -> float:
        found = results.predictions(predictor_ids, split, bn)
        probabilities = np.exp(np.stack(found["log_probs"])).reshape(len(predictor_ids), -1, 5).mean(0)
        return float(balanced_accuracy_score(found["label"][: len(probabilities)], probabilities.argmax(1)))

    cells = reading.judged(results).to_dict("records")
    assert len(cells) == 4
    for row in cells:
        members = list(row["member_ids"])
        soup = ids.soup_id("uniform", row["member_ids"])
        greedy = ids.soup_id("greedy", row["member_ids"])
        expected = {
            "hub_accuracy": balanced(members[:1], "test", "own"),
            "hub_accuracy_reestimated": balanced(members[:1], "test", "reestimated"),
            "member_accuracy": np.mean([balanced([member], "test", "own") for member in members]),
            "ensemble_accuracy": balanced(members, "test", "own"),
            "val_ensemble_accuracy": balanced(members, "val", "own"),
            "soup_accuracy": balanced([soup], "test", "reestimated"),
            "val_soup_accuracy": balanced([soup], "val", "reestimated"),
            "greedy_soup_accuracy": balanced([greedy], "test", "reestimated"),
        }
        assert {column: row[column] for column in expected} == pytest.approx(expected)
    same = [column for column in results.cells if "accuracy" not in column]
    assert reading.judged(results)[same].equals(results.cells[same])
    assert not reading.judged(results)["hub_accuracy"].equals(results.cells["hub_accuracy"])


def test_the_best_cell_and_the_sizes_go_by_the_metric_of_the_data_set(copied: Any) -> None:
    results = judged_by_mean_class_accuracy(copied)
    cells = reading.judged(results)
    assert reading.best_cell(results)["val_soup_accuracy"] == cells["val_soup_accuracy"].max()
    row = cells.iloc[0]
    sizes = reading.by_size(results, [row["cell_id"]]).set_index("n_members")["accuracy"]
    assert sizes[1] == row["hub_accuracy"] and sizes[3] == row["ensemble_accuracy"]


def test_figures_and_reports_name_the_metric(copied: Any) -> None:
    from raybasin.analysis import figures, maps, report

    results = judged_by_mean_class_accuracy(copied)
    assert "mean-per-class accuracy" in maps.map_figure(results).get_suptitle()
    assert "mean-per-class accuracy" in figures.sizes_figure(results).axes[0].get_ylabel()
    assert ("Metric", "mean-per-class accuracy") in report.what_was_run(results)


# The map


def test_the_boundary_lies_where_the_barriers_put_it(whole: Results) -> None:
    table = reading.grid(whole, "ensemble_gain", "star_sse", synthetic.CHECKPOINT)
    edge = reading.boundary(table)
    assert edge["cycle_ratio"].tolist() == [0.5, 1, 2]
    assert (edge["highest_in"] * edge["cycle_ratio"]).tolist() == [synthetic.IN_UP_TO] * 3
    assert (edge["lowest_out"] / edge["highest_in"]).tolist() == [2, 2, 2]


def test_a_map_holds_means_over_replicates(tmp_path: Path) -> None:
    heights = (0.0, 0.06)
    cells = [
        synthetic.cell("star_sse", 1, 1, i, barrier_error=height, hub_accuracy=0.5, ensemble_accuracy=0.5 + i / 4)
        for i, height in enumerate(heights)
    ]
    results = results_of(tmp_path, cells, methods=only_star([1], [1]))
    (row,) = reading.grid(results, "ensemble_gain", "star_sse", synthetic.CHECKPOINT).to_dict("records")
    assert row["value"] == 0.125
    assert row["barrier_error"] == 0.03
    assert (row["replicates"], row["replicates_in"], row["in_basin"]) == (2, 1, False)


def test_a_map_tells_missing_from_failed_and_keeps_ratios_of_earlier_runs(tmp_path: Path) -> None:
    results = results_of(tmp_path, [synthetic.cell("star_sse", 16, 1, 0)], methods=only_star([1, 2], [1]))
    failure = synthetic.failure("star_sse", 2, 1, 0, "out of memory")
    tables.write(Folder(tmp_path), "failures", "f", [failure])
    table = reading.grid(results, "ensemble_gain", "star_sse", synthetic.CHECKPOINT)
    assert dict(zip(table["lr_ratio"], table["state"], strict=True)) == {
        1: "missing",
        2: "failed",
        16: "done",
    }
    other = reading.grid(results, "ensemble_gain", "star_sse", "another checkpoint")
    assert other["state"].tolist() == ["missing", "missing"]


def test_a_boundary_may_be_missing_on_either_side_or_crossed_twice(tmp_path: Path) -> None:
    sides = {0.5: "ii", 1: "oo", 2: "oi"}
    cells = [
        synthetic.cell("star_sse", lr, cycle, 0, barrier_error=0.0 if side == "i" else 0.5)
        for cycle, column in sides.items()
        for lr, side in zip((1, 2), column, strict=True)
    ]
    results = results_of(tmp_path, cells, methods=only_star([1, 2], [0.5, 1, 2]))
    edge = reading.boundary(reading.grid(results, "soup_gain", "star_sse", synthetic.CHECKPOINT))
    np.testing.assert_array_equal(edge["highest_in"], [2, np.nan, 2])
    np.testing.assert_array_equal(edge["lowest_out"], [np.nan, 1, 1])


def test_a_map_shows_one_size_of_ensembles(tmp_path: Path) -> None:
    cells = [synthetic.cell("star_sse", lr, 1, 0, n_members=5) for lr in (1, 2)]
    cells += [synthetic.cell("star_sse", 1, 1, 0, n_members=9, ensemble_nll=7.0)]
    results = results_of(tmp_path, cells, methods=only_star([1, 2], [1]))
    usual = reading.grid(results, "ensemble_nll", "star_sse", synthetic.CHECKPOINT)
    assert usual["value"].max() < 1
    large = reading.grid(results, "ensemble_nll", "star_sse", synthetic.CHECKPOINT, n_members=9)
    assert large["state"].tolist() == ["done", "missing"]
    with pytest.raises(UserError, match="no finished cell of star_sse has 7 members; there are 5, 9"):
        reading.grid(results, "ensemble_nll", "star_sse", synthetic.CHECKPOINT, n_members=7)


@pytest.mark.parametrize(
    ("value", "method", "message"),
    [
        ("ensemble_gian", "star_sse", "did you mean 'ensemble_gain'"),
        ("device", "star_sse", "is not a numeric column"),
        (
            "ensemble_gain",
            "global_de",
            "no finished cell of method global_de; there are local_de, sse, star_sse",
        ),
    ],
)
def test_what_cannot_be_mapped_is_refused(whole: Results, value: str, method: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        reading.grid(whole, value, method, synthetic.CHECKPOINT)


def test_a_value_that_no_cell_has_is_refused(tmp_path: Path) -> None:
    results = results_of(tmp_path, [synthetic.cell("star_sse", 1, 1, 0)])
    with pytest.raises(UserError, match="no cell of star_sse has one"):
        reading.grid(results, "over_local_de", "star_sse", synthetic.CHECKPOINT)


def test_cells_that_are_not_finished_are_counted(tmp_path: Path) -> None:
    cells = [row for row in synthetic.grid() if row["lr_ratio"] != 8]
    assert reading.missing_cells(results_of(tmp_path, cells)) == 6


def test_of_a_search_the_points_count_that_were_chosen_with_the_replicates_that_were_left_them(searching: Any) -> None:
    results = reading.open(searching.folder.root)
    name = searching.plan.facts.checkpoints[0].name
    table = reading.grid(results, "ensemble_gain", "star_sse", name)
    assert dict(zip(table["lr_ratio"], table["state"], strict=True)) == {1.0: "done", 4.0: "done", 8.0: "missing"}
    # A second replicate of local_de and of 1.0, and both of 8.0; 4.0 is to have one.
    assert len(searching.plan.cells) == 7 and reading.missing_cells(results) == 4
    said = reading.searched(results)
    assert said.startswith("3 of 5 points by ray.tune.search.optuna:OptunaSearch, 1 point ended early by ")
    assert said.endswith("; barrier_error, min")
    assert results.points.groupby("event")["lr_ratio"].apply(list).to_dict() == {
        "chosen": [1.0, 4.0, 8.0], "ended": [4.0],
    }  # fmt: skip


def test_a_checkpoint_at_which_a_search_has_chosen_no_point_has_an_empty_map(tmp_path: Path) -> None:
    search = {"searcher": "ray.tune.search.optuna:OptunaSearch", "metric": "barrier_error", "mode": "min", "points": 5}
    names = [synthetic.CHECKPOINT, "other"]
    cells = [synthetic.cell("star_sse", lr_ratio, 1, 0) for lr_ratio in (1, 4)]
    cells.append(synthetic.cell("local_de", 1, 1, 0, checkpoint="other"))
    methods = {"star_sse": {"lr_ratio": [1, 2, 4]}, "local_de": {}}
    model = {"name": "resnet50", "pretrained": names}
    results = results_of(tmp_path, cells, search=search, methods=methods, model=model)
    assert reading.grid(results, "barrier_error", "star_sse", "other").empty
    assert reading.boundary(reading.grid(results, "barrier_error", "star_sse", "other")).empty
    figure = maps.map_figure(results, "barrier_error")
    assert [len(axis.texts) for axis in figure.axes[:2]] == [2, 0] and "no point" in figure.axes[1].get_title("left")


def test_points_that_lie_close_together_share_a_tick_and_have_no_values(tmp_path: Path) -> None:
    rates = [1, 1.001, 1.002, 2, 4]
    results = results_of(tmp_path, [synthetic.cell("star_sse", rate, 1, 0) for rate in rates], methods={"star_sse": {}})
    axis = maps.map_figure(results, "barrier_error").axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["1", "2", "4"]
    assert len(axis.texts) == 3  # values that would lie upon one another are not written


def test_the_random_points_of_a_sweep_file_are_its_map(tmp_path: Path) -> None:
    search = {"kind": "random", "points": 3, "lr_ratio": [0.5, 32]}
    empty = results_of(tmp_path / "empty", [], search=search, methods={"star_sse": {}, "local_de": {}})
    rates = [point.lr_ratio for label, point, _ in empty.planned if label == "star_sse"]
    assert len(rates) == 3 and reading.missing_cells(empty) == 4 * 2
    cells = [synthetic.cell("star_sse", rate, 1, 0) for rate in rates[:2]]
    some = results_of(tmp_path / "some", cells, search=search, methods={"star_sse": {}, "local_de": {}})
    states = reading.grid(some, "ensemble_gain", "star_sse", synthetic.CHECKPOINT).set_index("lr_ratio")["state"]
    assert states.to_dict() == {rates[0]: "done", rates[1]: "done", rates[2]: "missing"}
    assert reading.missing_cells(some) == 6 and reading.searched(some) == "3 points at random"
    assert some.points.empty


def test_of_the_failures_of_a_unit_the_last_stands_until_the_unit_is_finished(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    failures = [
        synthetic.failure("star_sse", 1, 1, 0, reason, unit_id=unit, at=pd.Timestamp(at, tz="UTC"))
        for unit, reason, at in (
            ("a", "first", "2026-01-01"), ("a", "second", "2026-01-02"), ("done", "once", "2026-01-01"),
        )
    ]  # fmt: skip
    for number, failure in enumerate(reversed(failures)):
        tables.write(folder, "failures", str(number), [failure])
    tables.write(folder, "members", "done", [{"member_id": "done"}])
    results = results_of(tmp_path, synthetic.grid()[:1])
    assert len(results.failures) == 3
    assert reading.open_failures(results)["reason"].tolist() == ["second"]


def test_reading_the_maps_data_changes_no_table(whole: Results) -> None:
    before = whole.cells.copy(deep=True)
    reading.gains(whole.cells)
    reading.summary(whole.cells)
    reading.grid(whole, "soup_gain", "sse", synthetic.CHECKPOINT)
    pd.testing.assert_frame_equal(whole.cells, before)


@pytest.mark.parametrize("integers", ["int64", "Int64"])
def test_a_score_of_what_a_cell_holds_can_be_mapped(
    copied: Any, monkeypatch: pytest.MonkeyPatch, integers: str
) -> None:
    """A column of `scores` needs no entry anywhere to be drawn; nullable integers change nothing."""
    from raybasin.analysis import maps

    results = reading.open(copied.folder.root)
    for table in ("cells", "scores"):
        rows = getattr(results, table)
        whole = [column for column in rows.select_dtypes("integer") if rows[column].notna().all()]
        results.__dict__[table] = rows.astype(dict.fromkeys(whole, integers))
    cells, scores = results.cells, results.scores
    for value, kind, bn in (("ensemble_ece", "ensemble", "own"), ("soup_brier", "uniform_soup", "reestimated")):
        found = reading.values(results, value).set_index("cell_id")["value"]
        for cell in cells.to_dict("records"):
            row = scores.query(f"cell_id == '{cell['cell_id']}' and kind == '{kind}' and split == 'test'")
            row = row[(row["bn"] == bn) & (row["n_members"] == cell["n_members"])]
            assert [found[cell["cell_id"]]] == row[value.rpartition("_")[2]].tolist()
        assert maps.map_figure(results, value=value).axes
    with pytest.raises(UserError, match="did you mean 'ensemble_ece'"):
        reading.values(results, "ensemble_eec")


def test_member_rows_of_another_method_that_asked_first_are_found(tmp_path: Path) -> None:
    """A network that two methods share stands once in `members`, under the one that asked for it first."""
    row = synthetic.grid()[0]
    synthetic.write(tmp_path, [row])
    common = {name: row[name] for name in COMMON}
    for member_id in row["member_ids"]:
        member = {**common, "method": "another", "member_id": member_id}
        tables.write(Folder(tmp_path), "members", member_id, [member])
    assert set(reading.open(tmp_path).members["member_id"]) == set(row["member_ids"])
