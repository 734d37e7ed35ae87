"""What a person is told while a sweep runs; what is told before and after it is tested with what it tells of."""

import io
from types import SimpleNamespace

import pytest
import tiny

from raybasin import console
from raybasin.store import heartbeat
from raybasin.store.folders import Folder
from raybasin.sweep import plan


class Terminal(io.StringIO):
    def isatty(self):
        return True


def stats(**changes):
    """A queue that has ended 2 of the 4 cells and 5 of the 9 networks of `tiny` in 100 seconds."""
    counts = {"cells": (0, 2), "networks": (1, 5), "failed_cells": 0, "running": {"a": "job"}, "pids": {0: 1, 1: 2}}
    costs = {"cost_done": 10.0, "cost_left": 20.0, "busy_seconds": 150.0, "worker_seconds": 200.0, "up_seconds": 100.0,
             "given_up": ()}  # fmt: skip
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
    networks = len(made.members)
    assert capsys.readouterr().err.splitlines() == [
        f"[1 s] cells 2/4, networks {networks - 4}/{networks}, 1 of 2 workers busy, about 3 min 20 s left",
        f"[20 s] cells 2/4, networks {networks - 4}/{networks}, 1 failed, 0 of 2 workers busy, about 3 min 20 s left",
        "2 workers for 100 s, 75% of it in jobs",
        "worker 1: broken",
    ]
    assert len(beats.said) == 4 and beats.said[-1].startswith("cells 2/4")


def test_a_terminal_shows_one_line_that_is_rewritten(made, tmp_path, monkeypatch):
    monkeypatch.setattr(console.sys, "stderr", terminal := Terminal())
    with console.progress(made, Folder(tmp_path)) as watch:
        watch(stats(pids={}, running={}, cost_done=0.0))
        watch(stats(pids={}, running={}, cost_done=0.0))
    first, second = terminal.getvalue().split("\r\x1b[2K")[1:]
    assert first == second.rstrip("\n") and first.endswith("starting workers")
    assert not list((tmp_path / "state").iterdir())


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
