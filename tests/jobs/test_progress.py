"""How far a run is, as a line, and where a notebook shows it."""

import types

import pytest
import tiny

import raybasin
from raybasin.jobs import progress
from raybasin.store import heartbeat
from raybasin.sweep import plan


@pytest.fixture
def made():
    return plan.make(tiny.spec(model__pretrained=["first.pth"]), tiny.facts())


def test_a_line_names_the_points_that_are_worked_at_and_the_time_left(made):
    star, cell = made.cells[0], made.cells[1]
    running = [f"member-{star.member_ids[1]}", f"cell-{star.cell_id}", f"path-{cell.cell_id}-abc",
               f"member-{star.member_ids[0]}", "checkpoint-abc"]  # fmt: skip
    assert progress.line(made, (1, 4), (3, 8), running, 75.0) == (
        "cells 1/4, networks 3/8 of this run, now star_sse lr_ratio=1 cycle_ratio=1, star_sse lr_ratio=4 "
        "cycle_ratio=1, hub and 1 more, about 1 min 15 s left"
    )
    assert progress.line(made, (4, 4), (8, 8), [], None) == "cells 4/4, networks 8/8 of this run"
    assert progress.line(made, (0, 0), (0, 0), ["checkpoint-abc"], None) == "now checkpoint"
    assert progress.seconds_left(0.0, 10.0, 5.0) is None and progress.seconds_left(5.0, 10.0, 4.0) == 8.0


class ZMQInteractiveShell:
    """What IPython calls the shell of a notebook."""


@pytest.fixture
def notebook(monkeypatch):
    monkeypatch.setitem(progress.sys.modules, "IPython", types.SimpleNamespace(get_ipython=ZMQInteractiveShell))


def test_a_notebook_shows_one_line_that_is_rewritten(notebook, capsys):
    with progress.in_notebook() as show:
        show("cells 1/4, about 10 s left")
        show("cells 4/4")
    assert capsys.readouterr().out == f"\rcells 1/4, about 10 s left\r{'cells 4/4':<26}\n"
    with progress.in_notebook(wanted=False) as show:
        show("cells 1/4")
    assert capsys.readouterr().out == ""


def test_a_run_in_a_notebook_shows_how_far_it_is_unless_lines_are_told(copied, notebook, capsys):
    copied.folder.delete(f"cells/{copied.cell('star_sse', 4.0).cell_id}.parquet")
    assert raybasin.run(tiny.spec(), copied.folder.root).complete
    said = capsys.readouterr().out
    assert "cells 0/1 of this run, now star_sse lr_ratio=4 cycle_ratio=1" in said and "cells 1/1 of this run" in said
    raybasin.run(tiny.spec(), copied.folder.root, tell=lambda line: None)
    assert capsys.readouterr().out == ""


def test_status_is_told_what_a_run_in_this_process_does(copied):
    copied.folder.delete(f"cells/{copied.cell('star_sse', 4.0).cell_id}.parquet")
    told = []
    raybasin.run(tiny.spec(), copied.folder.root, tell=lambda line: told.append(heartbeat.running(copied.folder)))
    assert told and "(process " in told[0][0]
