"""What a person is told while a sweep runs; what is told before and after it is tested with what it tells of."""

import dataclasses
import io
import math
import re
from types import SimpleNamespace

import pytest
import tiny
from scipy.stats import t as student

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


# Before a sweep: how sure it can be


def certainty(n_val, replicates, threshold=0.02, **data):
    """What `plan` says of intervals."""
    spec = tiny.spec(model__pretrained=["a.pth"], replicates=replicates, basin__threshold=threshold)
    spec = spec.model_copy(update={"basin": spec.basin.model_copy(update={"split": data.pop("split", "val")})})
    sized = dataclasses.replace(tiny.facts().data, n_val=n_val, n_test=400, **data)
    sized = dataclasses.replace(tiny.facts(), data=sized)
    said = list(console.lines(local.look(plan.make(spec, sized), Folder("nowhere"), done=Done())))
    first = next(i for i, line in enumerate(said) if line.startswith("95 % intervals to expect"))
    return said[first], next((line for line in said[first:] if "enough would be" in line), None)


def test_plan_says_which_interval_is_to_be_expected_of_one_replicate():
    said, _ = certainty(n_val=300, replicates=1)
    half = student.ppf(0.975, 299) * math.sqrt(console.CHANGED / 300)
    assert "over images alone, with 1 replicate" in said
    assert f"a barrier ± {100 * half:.1f} points beside a threshold of 2, a gain on test ± 2.6" in said


def test_plan_forecasts_no_interval_in_nats():
    spec = tiny.spec(model__pretrained=["a.pth"], basin__by="nll", basin__threshold=0.06)
    made = plan.make(spec, tiny.facts(n_val=300, n_test=400))
    said = "\n".join(console.lines(local.look(made, Folder("nowhere"), done=Done())))
    assert "a gain on test ± " in said and "a barrier ±" not in said and "enough would be" not in said
    assert "is forecast for error barriers alone, and here nats decide (basin.by: nll)" in said


@pytest.mark.parametrize(("n_val", "replicates"), [(100, 1), (300, 1), (100, 5), (300, 2), (2000, 3)])
def test_what_plan_says_would_decide_does(n_val, replicates):
    _, undecided = certainty(n_val, replicates)
    for way in undecided.partition("enough would be ")[2].split(" or "):
        images = re.search(r"([\d,]+) validation images", way)
        more = re.search(r"(\d+) replicates", way)
        limit = re.search(r"a threshold of ([\d.]+) points", way)
        found = certainty(
            int(images[1].replace(",", "")) if images else n_val,
            int(more[1]) if more else replicates,
            1.01 * float(limit[1]) / 100 if limit else 0.02,  # it is rounded
        )
        assert images or more or limit
        assert found[1] is None, way


def test_ways_that_the_data_do_not_have_are_not_named():
    more_images = "enough would be 700 validation images or a threshold of"
    assert more_images in certainty(n_val=300, replicates=1)[1]
    assert more_images in certainty(n_val=300, replicates=1, n_stored=5000)[1]
    assert "enough would be a threshold of" in certainty(n_val=300, replicates=1, n_stored=340)[1]
    few = {"n_val": 60, "n_train": 300, "n_stored": 360, "split": "train"}
    assert "enough would be a threshold of" in certainty(**few, replicates=1)[1]
    both = certainty(**few, replicates=3)[1]
    replicates, limit = re.search(
        r"enough would be (\d+) replicates with a threshold of ([\d.]+) points$", both
    ).groups()
    assert certainty(**few, replicates=int(replicates), threshold=1.01 * float(limit) / 100)[1] is None


def test_with_images_enough_nothing_stays_undecided_and_two_replicates_need_more_of_them():
    assert certainty(n_val=1500, replicates=1)[1] is None
    assert "4 replicates with" in certainty(n_val=300, replicates=2)[1]


def a_table():
    table = console.Table("name", "value", title="a title that is longer than its table")
    table.add_row("first", "[red]x[/red] " * 30)
    return table


def test_a_table_in_a_pipe_is_plain_text_as_wide_as_it_needs_to_be(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("COLUMNS", raising=False)
    console.print_table(a_table())
    title, names, row = capsys.readouterr().out.splitlines()
    assert title == "a title that is longer than its table" and names == "name   value"
    assert row == ("first  " + "[red]x[/red] " * 30).rstrip()


def test_a_table_is_as_wide_as_columns_says(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    console.print_table(a_table())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 10 and max(map(len, lines)) <= 40 and all(line.isascii() for line in lines)
    monkeypatch.setattr(console.sys, "stdout", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    console.print_table(a_table())
    drawn = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue()).splitlines()
    assert max(map(len, drawn)) == 40 and any("\u2500" in line or "\u2501" in line for line in drawn)


def test_quiet_progress_tells_status_and_nobody_else(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(heartbeat, "beating", beats := Beats())
    with console.progress(made, Folder(tmp_path), quiet=True) as watch:
        watch(stats(given_up=("worker 1: broken",)))
    assert capsys.readouterr().err == "worker 1: broken\n" and len(beats.said) == 1


def test_a_plane_says_how_long_it_takes_as_soon_as_that_is_known_and_after_each_row():
    said, clock = [], [0.0]
    beat = console.plane_beat(said.append, per_row=4, now=lambda: clock[0])
    for done in range(11):
        beat(done, 11)
        clock[0] += 9.0 if done == 0 else 2.0  # the first point warms up
    assert said == [
        "11 points to measure",
        "point 3 of 11, about 18 s left",
        "point 5 of 11, about 14 s left",
        "point 9 of 11, about 6 s left",
    ]
