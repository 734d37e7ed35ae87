"""What a check finds: each kind of damage is planted, found, moved aside, and made good by the next run."""

import pytest
import tiny

import raybasin
from raybasin import integrity, tables


def test_a_finished_sweep_is_whole(finished):
    assert integrity.check(finished.folder) == []


def truncate(folder, key):
    content = folder.get(key)
    folder.put(key, content[: len(content) // 2])


def a_cell(sweep):
    return sweep.cell("star_sse", 4.0)


PLANTED = {
    "a truncated row of cells": lambda s: truncate(s.folder, f"cells/{a_cell(s).cell_id}.parquet"),
    "a truncated row of members": lambda s: truncate(s.folder, f"members/{a_cell(s).member_ids[1]}.parquet"),
    "truncated scores": lambda s: truncate(s.folder, f"scores/{a_cell(s).cell_id}.parquet"),
    "missing scores": lambda s: s.folder.delete(f"scores/{a_cell(s).cell_id}.parquet"),
    "a truncated path": lambda s: truncate(s.folder, f"paths/{a_cell(s).cell_id}-{a_cell(s).paths[0].path_id}.parquet"),
    "truncated predictions": lambda s: truncate(
        s.folder, f"predictions/{a_cell(s).member_ids[1]}-{s.plan.eval_id}.parquet"
    ),
    "missing epochs": lambda s: s.folder.delete(f"epochs/{a_cell(s).member_ids[1]}.parquet"),
    "truncated weights of a member": lambda s: truncate(
        s.folder, f"weights/{s.members()[a_cell(s).member_ids[1]]['weights_sha256']}.safetensors"
    ),
    "missing weights of a soup": lambda s: s.folder.delete(
        f"weights/{tables.row(s.folder, 'cells', a_cell(s).cell_id)['soup_sha256']}.safetensors"
    ),
}


@pytest.mark.parametrize("damage", PLANTED)
def test_damage_is_found_moved_aside_and_made_good(copied, damage):
    before = {table: copied.rows(table) for table in ("cells", "members")}
    PLANTED[damage](copied)
    problems = integrity.check(copied.folder)
    assert problems, damage
    integrity.repair(copied.folder, problems)
    report = raybasin.run(tiny.spec(), copied.folder.root)
    assert report.complete and not report.failures
    assert integrity.check(copied.folder) == []
    for table, rows in before.items():
        key = tables.KEYS[table][0]
        sha = "weights_sha256" if table == "members" else "soup_sha256"
        assert {row[key]: row[sha] for row in copied.rows(table)} == {row[key]: row[sha] for row in rows}


def test_a_row_that_stands_twice_is_found(copied):
    cell_id = a_cell(copied).cell_id
    row = tables.row(copied.folder, "cells", cell_id)
    tables.write(copied.folder, "cells", "again", [row])
    assert any("holds a key that is there already" in problem.what for problem in integrity.check(copied.folder))


def test_a_member_trained_from_other_weights_than_its_parent_has_now_is_found(copied):
    hub = a_cell(copied).member_ids[0]
    row = {**tables.row(copied.folder, "members", hub)}
    other = copied.members()[a_cell(copied).member_ids[1]]["weights_sha256"]
    copied.folder.put(f"members/{hub}.parquet", tables.encode("members", [{**row, "weights_sha256": other}]))
    found = [problem for problem in integrity.check(copied.folder) if "other weights than its parent" in problem.what]
    children = {row["member_id"] for row in copied.rows("members") if row["parent_id"] == hub}
    assert {problem.key for problem in found} == {f"members/{child}.parquet" for child in children}


def test_repair_takes_along_what_a_broken_member_was_used_for(copied):
    cell = a_cell(copied)
    member = cell.member_ids[1]
    truncate(copied.folder, f"members/{member}.parquet")
    integrity.repair(copied.folder, integrity.check(copied.folder))
    assert not [unit for unit in tables.units(copied.folder, "predictions") if unit.startswith(member)]
    paths = [row for row in copied.rows("paths") if row["cell_id"] == cell.cell_id]
    assert paths and not [row for row in paths if member in (row["start_id"], row["end_id"])]
    assert not tables.exists(copied.folder, "scores", cell.cell_id)


@pytest.mark.parametrize("soups", [[], ["uniform"], ["greedy"]])
def test_scores_are_computed_again_for_any_choice_of_soups(soups, finished, tmp_path):
    import tiny as sweep

    spec = sweep.spec(soups=soups, methods={"local_de": {"n_members": 2}})
    assert raybasin.run(spec, tmp_path).complete
    opened = raybasin.open(tmp_path)
    cells = opened.cells.to_dict("records")
    again = integrity.rescore(opened.folder, cells, opened.facts["eval_id"], opened.threshold)
    assert again.figures > 50 and not again.differences


def test_a_figure_that_is_lost_differs_from_one_that_is_there():
    nan = float("nan")
    assert integrity._distance(nan, 0.5) == integrity._distance(None, 0.5) == float("inf")
    assert integrity._distance(nan, nan) == integrity._distance(0.5, 0.5) == 0


def test_a_large_table_is_compacted_into_several_files(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(integrity, "COMPACT_ROWS", 500)
    copied = integrity.compact(finished.folder, tmp_path)["predictions"]
    files = sorted((tmp_path / "predictions").iterdir())
    assert len(files) > 1 and copied == len(finished.rows("predictions"))
    assert raybasin.open(tmp_path).cells["cell_id"].is_unique
    cell_id = finished.plan.cells[0].cell_id
    assert (
        raybasin.log_probs(tmp_path, cell_id, "val") == raybasin.log_probs(finished.folder.root, cell_id, "val")
    ).all()
