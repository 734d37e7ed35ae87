"""A search for the boundary in one process: after a kill it goes on from its tables; what a grid has left counts."""

import shutil
from dataclasses import replace

import pandas as pd
import pytest
import tiny

import raybasin
from raybasin import console
from raybasin.analysis import results as reading
from raybasin.errors import UserError
from raybasin.jobs import execution, local
from raybasin.store import inventory, tables
from raybasin.store.folders import Folder
from raybasin.sweep.points import MapPoint
from raybasin.sweep.settings import Settings

ASKED = {"kind": "boundary", "lr_ratio": [1, 256], "cycle_ratio": [0.5, 1], "points": 5}


def tree(**changes):
    return tiny.tree(
        **{
            "methods": {"star_sse": {"n_members": 2}},
            "replicates": 2,
            "search": ASKED,
            "basin__threshold": 0.2,
            **changes,
        }
    )


class Killed(BaseException):
    """As a SIGKILL would, nothing catches it."""


def chosen(folder):
    rows = tables.sound(Folder(folder), "points").to_pandas()
    return rows.drop(columns="at").sort_values(["point_id", "event"], ignore_index=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    report = raybasin.run(tree(), folder)
    assert report.complete and report.committed == 5
    return folder


def test_it_measures_as_many_cells_as_it_may_and_says_why_each(whole):
    rows, cells = chosen(whole), raybasin.open(whole).cells
    assert len(rows) == len(cells) == 5 and set(rows["searcher"]) == {"boundary"}
    assert set(rows["why"]) <= {"bracket", "refine", "replicate"}
    assert set(cells["replicate"]) == {0, 1}  # the fifth cell is of a hub of its own, wherever it lies
    assert any(len(own) == 1 and own == {1} for own in cells.groupby(["lr_ratio", "cycle_ratio"])["replicate"].agg(set))
    assert reading.missing_cells(raybasin.open(whole)) == 0 and reading.searched(raybasin.open(whole)).startswith("5 c")
    assert all(rows["replicate"] + 1 == rows["event"].str.extract(r"-(\d+)$")[0].fillna(1).astype(int))
    assert raybasin.run(tree(), whole).committed == 5 and len(chosen(whole)) == 5  # nothing is left


def test_the_end_of_a_sweep_says_where_the_basin_ends_and_why_the_search_stopped(whole):
    results = raybasin.open(whole)
    made = inventory.stored_plan(results.folder, results.settings_id)
    said = list(console.explored_lines(results, made, inventory.survey(results.folder)))
    checkpoint = results.cells["checkpoint"].iloc[0]
    assert said[0].startswith(f"star_sse of 2, checkpoint {checkpoint}: the basin ends at lr_ratio [95 %]: ")
    assert said[0].count(" at cycle_ratio ") == results.cells["cycle_ratio"].nunique() and "nan" not in said[0]
    [stopped] = said[1:]  # for which of the reasons hangs on how a processor rounds
    start, _, why = stopped.partition(" stopped: ")
    assert start == f"the search of star_sse from checkpoint {checkpoint}" and why in console.STOPPED.values()
    grid = replace(made, spec=tiny.spec())
    assert list(console.explored_lines(results, grid, inventory.survey(results.folder))) == said[:1]


@pytest.mark.parametrize("kills", [(1,), (4, 9)])
def test_after_a_kill_it_asks_for_what_it_would_have_asked_for(whole, tmp_path, kills):
    for jobs in kills:
        done = []

        def dies(line, done=done, jobs=jobs):
            done.append(line)
            if len(done) == jobs:
                raise Killed

        with pytest.raises(Killed):
            raybasin.run(tree(), tmp_path, tell=dies)
    assert raybasin.run(tree(), tmp_path).complete
    pd.testing.assert_frame_equal(chosen(tmp_path), chosen(whole))
    assert sorted(raybasin.open(tmp_path).cells.cell_id) == sorted(raybasin.open(whole).cells.cell_id)


def test_cells_of_a_grid_count_and_a_failed_cell_does_not_hold_it_up(tmp_path, monkeypatch):
    grid = {"star_sse": {"n_members": 2, "lr_ratio": [2, 8], "cycle_ratio": [1]}}
    assert raybasin.run(tree(methods=grid, search="grid", replicates=1), tmp_path).committed == 2
    failed, run = [], execution.run

    def fails(job, *rest, **named):
        if job.kind == "path" and not failed:
            failed.append(job.job_id)
        if job.job_id in failed:
            raise RuntimeError("no")
        return run(job, *rest, **named)

    monkeypatch.setattr(execution, "run", fails)
    report = raybasin.run(tree(), tmp_path)
    assert len(report.failures) == 1 and not report.complete
    rows = chosen(tmp_path)
    cells = raybasin.open(tmp_path).cells
    assert len(rows) >= 3 and len(cells) == 2 + len(rows) - 1


def test_other_kinds_of_search_do_not_take_its_points(whole):
    plan = inventory.stored_plan(Folder(whole), raybasin.open(whole).cells.settings_id.iloc[0])
    assert len(plan.cells) == 5
    other = Settings(plan.spec.model_copy(update={"search": local.spec_of(tree(search="grid")).search}), plan.facts)
    assert inventory.chosen(Folder(whole), other).points == ()


def test_weights_may_not_go_that_a_later_point_may_need():
    with pytest.raises(UserError, match="keep.weights"):
        local.spec_of(tree(keep={"weights": "soups"}))


def test_what_was_chosen_counts_as_far_as_the_sweep_still_asks_for_it(whole, tmp_path):
    """Fewer replicates, or one checkpoint less: what they have no place for is not looked for."""
    shutil.copytree(whole, tmp_path / "copy")
    results = raybasin.open(tmp_path / "copy")
    made = inventory.stored_plan(results.folder, results.settings_id)
    cell = results.cells.iloc[0]
    point = MapPoint("star_sse", cell["checkpoint"], cell["lr_ratio"], cell["cycle_ratio"])
    inventory.write_cell(results.folder, made, point, 1, "replicate")
    gone = replace(point, checkpoint="gone")
    inventory.write_cell(results.folder, made, gone, 0, "bracket")
    assert raybasin.run(tree(replicates=1), tmp_path / "copy").complete
