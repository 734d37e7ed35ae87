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
