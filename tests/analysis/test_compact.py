"""Compacted copies: the same answers from few files, also of a folder that a sweep is writing to; and how often reading
commands open a file."""

import os
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tiny

import raybasin
from raybasin.analysis import comparisons, drawing, integrity, maps, programs
from raybasin.analysis import results as reading
from raybasin.errors import UserError
from raybasin.store import tables
from raybasin.store.folders import Folder
from raybasin.store.schemas import KEYS, SCHEMAS
from raybasin.sweep import plan

TABLES = ("cells", "members", "epochs", "paths", "scores", "barriers", "boundaries", "comparisons", "failures")


def in_order(frame):
    keys = [name for name in frame if not any(isinstance(value, list | np.ndarray) for value in frame[name])]
    return frame.sort_values(keys, ignore_index=True)


def test_a_copy_says_what_its_original_says(finished, tmp_path):
    integrity.compact(finished.folder, tmp_path / "copy")
    original, copy = raybasin.open(finished.folder.root), raybasin.open(tmp_path / "copy")
    for table in TABLES:
        pd.testing.assert_frame_equal(in_order(getattr(original, table)), in_order(getattr(copy, table)))
    pd.testing.assert_frame_equal(*(reading.summary(opened.cells) for opened in (original, copy)))
    (said, told) = (programs.status(opened) | {"results": ""} for opened in (original, copy))
    assert said == told and said["cells"] == {"planned": 4, "done": 4}


def test_files_that_were_written_otherwise_are_read_and_compacted(copied, tmp_path):
    """As earlier versions did: with dictionaries, zstd and statistics; one lacks a column that came later."""
    before = {table: tables.read(copied.folder, table).to_pylist() for table in ("cells", "scores")}
    for table in before:
        for unit in tables.units(copied.folder, table):
            rows, path = tables.read(copied.folder, table, [unit]), copied.folder.name(f"{table}/{unit}.parquet")
            pq.write_table(rows, path, compression="zstd", write_page_checksum=True)
    unit = tables.units(copied.folder, "cells")[0]
    rows = tables.read(copied.folder, "cells", [unit]).drop_columns(["rise_error"])
    pq.write_table(rows, copied.folder.name(f"cells/{unit}.parquet"))
    before["cells"][0]["rise_error"] = None
    assert integrity.check(copied.folder) == []
    integrity.compact(copied.folder, tmp_path / "small")
    for table, rows in before.items():
        assert repr(tables.rows(copied.folder, table)) == repr(tables.rows(Folder(tmp_path / "small"), table))
        assert repr(tables.rows(copied.folder, table)) == repr(rows)


# While a sweep runs


def keys(folder, table):
    """Of all rows; each is there once."""
    found = [tuple(row.values()) for row in tables.read(folder, table, columns=list(KEYS[table])).to_pylist()]
    assert max(Counter(found).values(), default=1) == 1, table
    return set(found)


def see_that_it_is_whole(root):
    """Every cell of a copy has all that it speaks of, every row is there once, and its sweep file is there. Gives the
    ids of its cells."""
    folder = Folder(root)
    there = {table: keys(folder, table) for table in SCHEMAS}
    opened = raybasin.open(root)
    members, scored = ({key[0] for key in there[table]} for table in ("members", "scores"))
    trained = {key[0] for key in there["epochs"]}
    paths = Counter(cell_id for cell_id, _ in {key[:2] for key in there["paths"]})
    predicted = {
        row["predictor_id"] for row in tables.read(folder, "predictions", columns=["predictor_id"]).to_pylist()
    }
    for cell in opened.cells.to_dict("records"):
        ids = set(cell["member_ids"])
        assert ids <= members and ids <= trained and ids <= predicted and cell["cell_id"] in scored
        assert paths[cell["cell_id"]] == 2 * len(ids) - 3
    assert opened.stored.spec.name == "tiny" and set(opened.cells["settings_id"]) <= {opened.settings_id}
    return set(opened.cells["cell_id"])


def written_by_a_sweep(cell, folder):
    """The files of a cell in the order in which a sweep writes them; its hub was there before."""
    own = set(cell.member_ids[1:])
    for table in ("predictions", "epochs", "members", "paths", "scores", "cells"):
        for unit in tables.units(folder, table):
            if unit.partition("-")[0] in {*own, cell.cell_id}:
                yield f"{table}/{unit}.parquet"


class Meanwhile:
    """Something that is done before each step of compaction: before a folder is listed, files are read, one is written.
    What it does itself is no step."""

    def __init__(self, monkeypatch, do):
        self.steps, self.do, self.at_it = 0, do, False
        for name in ("_names", "get_all", "_create"):
            monkeypatch.setattr(Folder, name, self.after(getattr(Folder, name)))

    def after(self, original):
        def step(folder, *asked):
            if not self.at_it:
                self.at_it = True
                self.do(self.steps)
                self.steps, self.at_it = self.steps + 1, False
            return original(folder, *asked)

        return step


@pytest.fixture
def interrupted(copied):
    """The finished sweep without one of its cells, and the content of the files of that cell in their order."""
    cell = copied.cell("star_sse", 4.0)
    rest = {key: copied.folder.get(key) for key in written_by_a_sweep(cell, copied.folder)}
    for key in rest:
        copied.folder.delete(key)
    assert len(rest) > 10 and list(rest)[-1] == f"cells/{cell.cell_id}.parquet"
    return copied, cell, rest


def compacted_meanwhile(interrupted, tmp_path, monkeypatch, which, again=False):
    """Compacts while `which(step, number)` says that the file of that number is written before a step, and reads the
    folder and the copy before each; how many steps there were."""
    sweep, cell, rest = interrupted
    source, target = Folder(sweep.folder.root), tmp_path / "few"
    before = {table: keys(source, table) for table in SCHEMAS}
    left, seen = list(rest.items()), list[set[str]]()

    def go_on(step):
        while left and which(step, len(rest) - len(left)):
            key, content = left.pop(0)
            assert source.put_new(key, content)
        seen.append(keys(source, "cells"))
        assert before["cells"] <= seen[-1]
        try:
            opened = raybasin.open(target)
            assert opened.stored
        except UserError:
            return  # it is not there yet
        see_that_it_is_whole(target)

    with monkeypatch.context() as patched:
        meanwhile = Meanwhile(patched, go_on)
        integrity.compact(source, target)
    assert seen == sorted(seen, key=len)
    found = see_that_it_is_whole(target)
    assert {cell.cell_id for cell in sweep.plan.cells} - found <= {cell.cell_id}
    assert all(before[table] <= keys(Folder(target), table) for table in SCHEMAS)
    for key, content in left:
        source.put_new(key, content)
    shutil.rmtree(target)
    if again:  # the second copy has the rest
        assert integrity.check(source) == []
        integrity.compact(source, target)
        assert see_that_it_is_whole(target) == {cell.cell_id for cell in sweep.plan.cells}
    for key in rest:
        source.delete(key)
    return meanwhile.steps


def test_a_cell_that_ends_at_any_step_is_whole_in_the_copy_or_not_there(interrupted, tmp_path, monkeypatch):
    n_steps = compacted_meanwhile(interrupted, tmp_path, monkeypatch, lambda step, number: False)
    assert n_steps > 3 * len(KEYS) // 2
    for at in range(n_steps):
        compacted_meanwhile(interrupted, tmp_path, monkeypatch, lambda step, number, at=at: step == at)


@pytest.mark.parametrize("first", [0, 5, 12, 20])
def test_a_cell_that_is_written_file_by_file_meanwhile(interrupted, tmp_path, monkeypatch, first):
    """One file at each step, from one of the steps on."""
    compacted_meanwhile(interrupted, tmp_path, monkeypatch, lambda step, number: number <= step - first, again=True)


RUN = """
import sys, raybasin, tiny
report = raybasin.run(tiny.spec(), sys.argv[1])
assert report.complete and not report.failures
"""


def test_copies_are_made_while_a_sweep_runs_in_another_process(finished, tmp_path):
    root, copies = tmp_path / "results", list[set[str]]()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    sweep = subprocess.Popen([sys.executable, "-c", RUN, str(root)], env=environment)
    try:
        while sweep.poll() is None or not copies:
            copy = tmp_path / f"copy-{len(copies)}"
            try:
                integrity.compact(Folder(root), copy)
            except UserError as error:
                assert "holds no results" in str(error) and sweep.poll() in (None, 0)
                continue
            copies.append(see_that_it_is_whole(copy))
        assert sweep.wait() == 0
    finally:
        if sweep.poll() is None:
            sweep.kill()
    assert all(one <= later for one, later in zip(copies, copies[1:], strict=False))
    integrity.compact(Folder(root), tmp_path / "last")
    assert see_that_it_is_whole(tmp_path / "last") == {cell.cell_id for cell in finished.plan.cells}
    assert integrity.check(Folder(root)) == []
    assert tiny.values(Folder(root))[0] == tiny.values(finished.folder)[0]
    assert {table: keys(Folder(root), table) for table in KEYS if table != "failures"} == {
        table: keys(Folder(tmp_path / "last"), table) for table in KEYS if table != "failures"
    }


def test_a_copy_that_was_not_finished_is_not_taken_for_one(finished, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die(step):
        if step == of_all.steps - 3:
            raise Killed

    with monkeypatch.context() as patched:
        of_all = Meanwhile(patched, lambda step: None)
        integrity.compact(finished.folder, tmp_path / "whole")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        Meanwhile(patched, die)
        integrity.compact(finished.folder, tmp_path / "copy")
    assert Folder(tmp_path / "copy").names("scores")
    with pytest.raises(UserError, match="holds no results"):
        raybasin.open(tmp_path / "copy")
    with pytest.raises(UserError, match="a copy that was not finished"):
        integrity.compact(finished.folder, tmp_path / "copy")


# How often files are opened


@pytest.fixture
def opened_files(monkeypatch):
    """How often each file was read, by table."""
    found, get = dict[str, Counter[str]](), Folder.get

    def counting(folder, key):
        found.setdefault(key.partition("/")[0], Counter())[key] += 1
        return get(folder, key)

    monkeypatch.setattr(Folder, "get", counting)
    return found


@pytest.fixture
def plans(monkeypatch):
    made, make = [], plan.make
    monkeypatch.setattr(plan, "make", lambda *asked: made.append(1) or make(*asked))
    return made


def most(opened):
    return {table: max(files.values()) for table, files in opened.items() if table in SCHEMAS}


def test_status_reads_a_row_of_each_cell_once_and_plans_once(finished, opened_files, plans):
    assert programs.status(raybasin.open(finished.folder.root))["networks"]["done"] > 5
    assert most(opened_files) == {"cells": 1} and len(plans) == 1


def test_a_map_reads_cells_and_paths_and_each_once_for_all_its_panels(finished, opened_files, plans):
    figure = maps.map_figure(raybasin.open(finished.folder.root), method=None)
    assert drawing.encoded(figure, "png")
    assert most(opened_files) == {"cells": 1, "paths": 1}
    assert len(plans) == 0


def test_a_map_reads_predictions_of_what_it_shows_alone(finished, monkeypatch):
    asked, measured = set(), comparisons._OfImages._measured
    counting = lambda self, predictors, bn: asked.update(predictors) or measured(self, predictors, bn)  # noqa: E731
    monkeypatch.setattr(comparisons._OfImages, "_measured", counting)
    results = raybasin.open(finished.folder.root)
    maps.map_figure(results, "ensemble_gain")
    assert asked and asked <= set(results.cells["member_ids"].explode())  # no soup's
    shown = results.comparisons.query("gain == 'ensemble_gain'").reset_index(drop=True)
    pd.testing.assert_frame_equal(results._gained.of("ensemble_gain"), shown, check_dtype=False)


def test_cells_are_the_same_whether_read_when_opened_or_later(finished):
    now, later = (reading.open(finished.folder.root, read_cells=read_cells) for read_cells in (True, False))
    pd.testing.assert_frame_equal(now.cells, later.cells)


def test_a_check_reads_each_file_once_and_commits_once_more(finished, opened_files, plans):
    assert integrity.check(finished.folder) == []
    assert set(most(opened_files)) == {table for table in SCHEMAS if tables.units(finished.folder, table)}
    assert {table for table, times in most(opened_files).items() if times > 1} == {"cells", "members"}
    assert max(most(opened_files).values()) == 2 and len(plans) == 0


def test_compaction_reads_each_file_once(finished, opened_files, tmp_path):
    integrity.compact(finished.folder, tmp_path / "copy")
    assert set(most(opened_files).values()) == {1}
