"""What a person is told while a sweep runs; what is told before and after it is tested with what it tells of."""

import io
from types import SimpleNamespace

import pytest
import tiny

from raybasin import console
from raybasin.errors import UserError
from raybasin.jobs import local
from raybasin.store import heartbeat
from raybasin.store.folders import Folder
from raybasin.sweep import plan
from raybasin.sweep.job_list import Done


class Terminal(io.StringIO):
    def isatty(self):
        return True


def stats(**changes):
    """A queue that has ended 2 of the 4 cells and 5 of the 9 networks of `tiny` in 100 seconds."""
    counts = {"cells": (0, 2), "networks": (1, 5), "failed_cells": 0, "running": {"a": "job"}, "pids": {0: 1, 1: 2}}
    costs = {"cost_done": 10.0, "cost_left": 20.0, "busy_seconds": 150.0, "worker_seconds": 200.0, "up_seconds": 100.0,
             "images_per_second": 1234.5, "given_up": ()}  # fmt: skip
    return SimpleNamespace(**{**counts, **costs, **changes})


@pytest.fixture
def made():
    return plan.make(tiny.spec(model__pretrained=["first.pth"]), tiny.facts())


def test_a_log_gets_a_line_at_every_change_that_is_worth_one(made, tmp_path, monkeypatch, capsys):
    moments = iter([0.0, 1.0, 2.0, 20.0, 40.0])
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: next(moments)))
    monkeypatch.setattr(heartbeat, "beating", beats := Beats())
    with console.progress(made, Folder(tmp_path)) as watch:
        watch(stats())
        watch(stats(failed_cells=1))  # too soon
        watch(stats(failed_cells=1, running={}, given_up=("worker 1: broken",)))
        watch(stats(failed_cells=1, running={}, given_up=("worker 1: broken",)))  # nothing new
    networks, pace = len(made.members), "1,234 images/s, about 3 min 20 s left"
    assert capsys.readouterr().err.splitlines() == [
        f"[1 s] cells 2/4, networks {networks - 4}/{networks}, 1 of 2 workers busy, {pace}",
        f"[20 s] cells 2/4, networks {networks - 4}/{networks}, 1 failed, 0 of 2 workers busy, {pace}",
        "2 workers for 100 s, 75% of it in jobs",
        "worker 1: broken",
    ]
    assert len(beats.said) == 4 and beats.said[-1].startswith("cells 2/4")


def test_a_terminal_shows_one_line_that_is_rewritten(made, tmp_path, monkeypatch):
    monkeypatch.setattr(console.sys, "stderr", terminal := Terminal())
    with console.progress(made, Folder(tmp_path)) as watch:
        watch(stats(pids={}, running={}, cost_done=0.0, images_per_second=0.0))
        watch(stats(pids={}, running={}, cost_done=0.0, images_per_second=0.0))
    first, second = terminal.getvalue().split("\r\x1b[2K")[1:]
    assert first == second.rstrip("\n") and first.endswith("starting workers")
    assert not list((tmp_path / "state").iterdir())


def cells_of(found, done, every=False):
    """The rows of the table of cells, as text."""
    table = console.cells_table(found, done, every)
    return [tuple(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_few_cells_are_listed_one_by_one_and_of_many_there_is_a_line_for_each_method(made):
    assert len(cells_of(made, Done())) == 4
    methods = {"star_sse": {"n_members": 3, "lr_ratio": [1, 2, 4, 8, 16, 32]}, "sse": {"n_members": 4},
               "tree": {"chain": 3, "cycle_ratio": [1, 2]}}  # fmt: skip
    large = plan.make(tiny.spec(model__pretrained=["a.pth"], methods=methods, replicates=1000), tiny.facts())
    star, other = (cell for cell in large.cells[:7] if cell.point.lr_ratio in (1, 32) and cell.point.method != "sse")
    done = Done(cells={star.cell_id}, members={*star.member_ids, other.member_ids[1]})
    assert cells_of(large, done) == [
        ("star_sse", "6 from 1 to 32", "1", "2", "3", "6", "1", "1,000", "6,000", "1", "1", "5,998"),
        ("sse", "1", "1", "2", "4", "8", "1", "1,000", "1,000", "0", "1", "999"),
        ("tree chain=3", "1", "1, 2", "2 to 4", "5", "10 to 18", "1", "1,000", "2,000", "0", "1", "1,999"),
    ]
    assert len(cells_of(large, done, every=True)) == 9000


def test_however_many_cells_need_pruned_weights_few_lines_say_so(tmp_path):
    found = plan.make(tiny.spec(model__pretrained=["a.pth"], replicates=500), tiny.facts())
    pruned = set(found.members)
    said = list(console.lines(local.look(found, Folder(tmp_path), done=Done(members=pruned, pruned=pruned))))
    assert len(said) < 25 and f"{len(pruned)} of them are needed again" in "".join(said)
    listed = [line for line in said if line.startswith("  ")]
    assert len(listed) == console.MOST_LINES + 1
    assert listed[-1] == f"  and {2000 - console.MOST_LINES:,} more cells"


def test_cells_of_the_sweep_itself_are_not_opened_to_look_for_others(made, tmp_path):
    (tmp_path / "cells").mkdir()
    for cell in made.cells:
        (tmp_path / "cells" / f"{cell.cell_id}.parquet").touch()  # no Parquet: opened, it would be refused
    assert local.others(Folder(tmp_path), made) == []
    (tmp_path / "cells" / "0123456789abcdef.parquet").touch()
    with pytest.raises(UserError, match="0123456789abcdef"):
        local.others(Folder(tmp_path), made)


class Beats:
    """In place of the heartbeat: what it was told."""

    def __init__(self):
        self.said = []

    def __call__(self, folder, settings_id):
        return self

    def __enter__(self):
        return self.said.append

    def __exit__(self, *raised):
        pass
