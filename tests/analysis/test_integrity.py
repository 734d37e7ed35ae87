"""What a check finds: each kind of damage is planted, found, moved aside, and made good by the next run."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from typer.testing import CliRunner

import raybasin
from raybasin import cli
from raybasin.analysis import integrity
from raybasin.analysis import results as reading
from raybasin.analysis.rescore import _distance, rescore
from raybasin.errors import UserError
from raybasin.store import tables
from raybasin.store.schemas import KEYS, SCHEMAS
from raybasin.training import loop, models


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
        key = KEYS[table][0]
        sha = "weights_sha256" if table == "members" else "soup_sha256"
        assert {row[key]: row[sha] for row in copied.rows(table)} == {row[key]: row[sha] for row in rows}


# Further damage: what is found of it and moved aside, and then, once for all of it, what the next run makes good


def flip(folder, key, place):
    """One bit is another."""
    content = bytearray(folder.get(key))
    content[int(len(content) * place)] ^= 1
    folder.put(key, bytes(content))


def rewrite(folder, table, unit, change):
    content = tables.read(folder, table, [unit])
    folder.put(f"{table}/{unit}.parquet", tables.encode_table(change(content)))


def last_member(sweep):
    """A member that no other descends from."""
    return sweep.cell("sse").member_ids[-1]


def interrupt(sweep):
    """As a run leaves a member that was killed after its training: not committed, and its outcome there."""
    row = sweep.members()[last_member(sweep)]
    sweep.folder.delete(f"members/{row['member_id']}.parquet")
    left = {"sha256": row["weights_sha256"], "trained": {"epochs": [], "train_seconds": 1.0}, "moments_sha256": None}
    outcome = f"state/member-{row['member_id']}.json"
    sweep.folder.put(outcome, json.dumps(left).encode())
    return outcome


def unfinished(sweep):
    path = sweep.folder.root / "cells" / ".abc.parquet.0123"
    path.write_bytes(b"PAR1")
    os.utime(path, (0, 0))
    return "cells/.abc.parquet.0123"


def with_unknown_column(sweep):
    unit = sweep.cell("local_de").cell_id
    rewrite(sweep.folder, "cells", unit, lambda rows: rows.append_column("mood", rows["hub_id"]))
    return f"cells/{unit}.parquet"


def with_a_column_of_another_type(sweep):
    unit = sweep.cell("local_de").cell_id
    place = SCHEMAS["scores"].get_field_index("accuracy")
    change = lambda rows: rows.set_column(place, "accuracy", rows["accuracy"].cast("float"))  # noqa: E731
    rewrite(sweep.folder, "scores", unit, change)
    return f"scores/{unit}.parquet"


def without_a_key(sweep):
    unit = sweep.cell("local_de").member_ids[1]
    rewrite(sweep.folder, "epochs", unit, lambda rows: rows.drop_columns(["epoch"]))
    return f"epochs/{unit}.parquet"


def with_rows_of_another(sweep):
    unit, other = (sweep.cell("sse").member_ids[k] for k in (1, 2))
    sweep.folder.put(f"epochs/{unit}.parquet", sweep.folder.get(f"epochs/{other}.parquet"))
    return f"epochs/{unit}.parquet"


def with_a_row_twice(sweep):
    cell = a_cell(sweep)
    unit = f"{cell.cell_id}-{cell.paths[0].path_id}"
    rewrite(sweep.folder, "paths", unit, lambda rows: rows.take([0, *range(len(rows))]))
    return f"paths/{unit}.parquet"


def a_second_file_of_a_cell(sweep):
    cell_id = a_cell(sweep).cell_id
    sweep.folder.put_new("cells/again.parquet", sweep.folder.get(f"cells/{cell_id}.parquet"))
    return "cells/again.parquet"


def a_flipped_bit_in_predictions(sweep):
    key = f"predictions/{a_cell(sweep).member_ids[1]}-{sweep.plan.eval_id}.parquet"
    flip(sweep.folder, key, 0.5)
    return key


def a_flipped_bit_in_weights(sweep):
    key = f"weights/{sweep.members()[last_member(sweep)]['weights_sha256']}.safetensors"
    flip(sweep.folder, key, 0.7)
    return key


def a_truncated_checkpoint(sweep):
    key = f"checkpoints/{sweep.plan.facts.checkpoints[0].key}.parquet"
    truncate(sweep.folder, key)
    return key


def a_flipped_bit_in_a_snapshot(sweep):
    outcome = interrupt(sweep)
    sweep.folder.delete(outcome)
    weights = models.from_bytes(sweep.folder.get(f"weights/{sweep.folder.names('weights')[0]}"))
    key = outcome.replace(".json", ".safetensors")
    sweep.folder.put(key, loop.snapshot_to_bytes(loop.Snapshot(weights, loop.Trained((), 1.0))))
    flip(sweep.folder, key, 0.9)
    return key


def an_outcome_without_its_weights(sweep):
    outcome = interrupt(sweep)
    sweep.folder.delete(f"weights/{json.loads(sweep.folder.get(outcome))['sha256']}.safetensors")
    return outcome


def a_truncated_outcome(sweep):
    outcome = interrupt(sweep)
    truncate(sweep.folder, outcome)
    return outcome


def a_truncated_failure(sweep):
    sweep.folder.put("failures/a-1.parquet", b"PAR1 and no more")
    return "failures/a-1.parquet"


def an_empty_table(sweep):
    unit = last_member(sweep)
    rewrite(sweep.folder, "epochs", unit, lambda rows: rows.slice(0, 0))
    return f"epochs/{unit}.parquet"


FURTHER = [
    unfinished, with_unknown_column, with_a_column_of_another_type, without_a_key, with_rows_of_another,
    with_a_row_twice, a_second_file_of_a_cell, a_flipped_bit_in_predictions, a_flipped_bit_in_weights,
    a_truncated_checkpoint, a_flipped_bit_in_a_snapshot, an_outcome_without_its_weights, a_truncated_outcome,
    a_truncated_failure, an_empty_table,
]  # fmt: skip


@pytest.mark.parametrize("plant", FURTHER, ids=lambda plant: plant.__name__)
def test_further_damage_is_found_and_moved_aside(copied, plant):
    key = plant(copied)
    problems = integrity.check(copied.folder)
    assert key in {problem.key for problem in problems}
    place = integrity.repair(copied.folder, problems)
    assert (copied.folder.root / place / key).exists() and not Path(copied.folder.name(key)).exists()
    assert key not in {problem.key for problem in integrity.check(copied.folder)}


def test_a_choice_that_cannot_be_is_found_and_moved_aside(searching):
    unit = next(unit for unit in tables.units(searching.folder, "points") if unit.endswith("-ended"))
    place = SCHEMAS["points"].get_field_index("event")
    change = lambda rows: rows.set_column(place, "event", pa.array(["forgotten"]))  # noqa: E731
    rewrite(searching.folder, "points", unit, change)
    with pytest.raises(UserError, match=f"{unit}.parquet: event is not chosen"):
        reading.missing_cells(reading.open(searching.folder.root))
    problems = integrity.check(searching.folder)
    assert [problem.key for problem in problems] == [f"points/{unit}.parquet"]
    integrity.repair(searching.folder, problems)
    assert reading.missing_cells(reading.open(searching.folder.root)) == 5  # 4.0 is to have all replicates again


def test_one_run_makes_good_all_of_it_at_once(copied, finished):
    together = [plant for plant in FURTHER if "outcome" not in plant.__name__ and plant is not a_flipped_bit_in_weights]
    for plant in together:
        plant(copied)
    while problems := integrity.check(copied.folder):
        integrity.repair(copied.folder, problems)
        assert raybasin.run(tiny.spec(), copied.folder.root).complete
    assert tiny.values(copied.folder) == tiny.values(finished.folder)


@pytest.mark.parametrize("plant", [an_outcome_without_its_weights, a_truncated_outcome, a_flipped_bit_in_a_snapshot])
def test_a_member_that_cannot_be_gone_on_from_fails_and_begins_anew_after_repair(copied, finished, plant):
    key = plant(copied)
    for unit in ("cells", "scores"):
        copied.folder.delete(f"{unit}/{copied.cell('sse').cell_id}.parquet")
    report = raybasin.run(tiny.spec(), copied.folder.root)
    assert [failure.cell.cell_id for failure in report.failures] == [copied.cell("sse").cell_id]
    if plant is a_flipped_bit_in_a_snapshot:
        assert f"{key} is damaged" in report.failures[0].reason and "check" in report.failures[0].reason
    integrity.repair(copied.folder, integrity.check(copied.folder))
    assert raybasin.run(tiny.spec(), copied.folder.root).complete
    assert tiny.values(copied.folder) == tiny.values(finished.folder)


def test_every_flipped_bit_of_a_row_is_found_or_harmless(copied):
    """Parquet has no checksum over its footer: what it says of columns is compared with the schema instead."""
    unit = last_member(copied)
    key, before = f"members/{unit}.parquet", tables.row(copied.folder, "members", unit)
    content = copied.folder.get(key)
    for place in range(0, len(content), 7):
        garbled = bytearray(content)
        garbled[place] ^= 0x10
        Path(copied.folder.name(key)).write_bytes(bytes(garbled))
        wrong, _ = integrity._look_at(copied.folder, "members", unit)
        assert wrong or tables.row(copied.folder, "members", unit) == before, place


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
    again = rescore(opened.folder, cells, opened.facts["eval_id"])
    assert again.figures > 50 and not again.differences


@pytest.mark.parametrize("how_many", [1, None])
def test_what_cells_of_earlier_versions_do_not_say_is_no_difference(copied, how_many):
    """Of all cells, or of those from before a sweep was continued."""
    for file in sorted((copied.folder.root / "cells").iterdir())[:how_many]:
        rows = pq.read_table(file).drop_columns(["barrier_error_member", "barrier_nll_member"])
        pq.write_table(rows, file)
    told = CliRunner().invoke(cli.app, ["scores", str(copied.folder.root)])
    assert told.exit_code == 0, told.stdout
    assert integrity.check(copied.folder) == []


def test_of_paths_that_are_equally_flat_every_reader_takes_the_same(tmp_path):
    spec = tiny.spec(recipe__epochs=1, methods={"star_sse": {"n_members": 5, "lr_ratio": [1e-4, 1]}})
    raybasin.run(spec, tmp_path)
    opened = raybasin.open(tmp_path)
    flat = opened.cells[opened.cells["lr_ratio"] < 1]
    assert (flat["barrier_error"] == 0).all() and (flat["barrier_error_se"] == 0).all()  # as all its paths
    again = rescore(opened.folder, opened.cells.to_dict("records"), opened.facts["eval_id"])
    assert not again.differences


def test_a_figure_that_is_lost_differs_from_one_that_is_there():
    nan = float("nan")
    assert _distance(nan, 0.5) == _distance(None, 0.5) == float("inf")
    assert _distance(nan, nan) == _distance(0.5, 0.5) == 0


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
