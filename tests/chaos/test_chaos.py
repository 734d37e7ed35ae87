"""The short part of `make chaos`: one sweep, in which a worker is killed while it writes and one in evaluation, one
hangs in training, and the queue dies. Then, as parts of `make chaos`, a job whose worker always dies, and whole rounds.
"""

import sys
from pathlib import Path

import pandas as pd
import pytest
import tiny

sys.path.insert(0, str(Path(__file__).parent))

import rounds

from raybasin import tables
from raybasin.store import Folder

WORKERS = {"cpus": 0.9, "count": 2, "hang_seconds": 5}


@pytest.mark.ray
def test_whatever_dies_or_hangs_the_tables_are_those_of_a_quiet_run(finished, tmp_path):
    this = rounds.Round("short", 0, tmp_path / "round", tiny.tree(recipe__checkpoint_seconds=0, workers=WORKERS))
    with this.command() as process:
        for phase, how in (("write", "kill"), ("train", "stop"), ("evaluate", "kill")):
            assert this.wait_for_jobs(process, 1), this.said()
            this.kill_worker(process, phase, how)
        stopped = next(death["pid"] for death in this.deaths() if death["how"] == "stop")
        for _ in this.watch(process):
            if stopped not in rounds.processes():
                break
        else:
            raise AssertionError(f"process {stopped} hangs, and is still there\n{this.said()}")
        assert this.wait_for_jobs(process, 1), this.said()
        assert not rounds.strike(this, process, "queue") or this.kills["queue"] == 1
        for _ in this.watch(process):
            pass
    assert this.statuses == [0], this.said()
    assert set(this.kills) == {"worker, write", "worker, train", "worker, evaluate", "queue"}
    verdict = rounds.judge(this, finished.folder)
    assert verdict.good, verdict
    assert not tables.rows(Folder(this.results), "failures")


@pytest.mark.chaos
@pytest.mark.ray
def test_a_job_whose_workers_always_die_fails_its_cells_and_no_others(tmp_path):
    this = rounds.Round("poison", 0, tmp_path / "round", tiny.tree(workers=WORKERS))
    this.environment["RAYBASIN_CHAOS_DEATHS"] = "3"
    report = rounds.planned(this)
    lost = next(cell for cell in report.cells if cell.method == "star_sse")
    own = set(lost.member_ids) - {m for cell in report.cells if cell is not lost for m in cell.member_ids}
    victim = f"member-{sorted(own)[0]}"
    for _ in range(3):
        this.order("train", job=victim, after=1)
    with this.command() as process:
        for _ in this.watch(process):
            pass
    assert this.statuses == [1], this.said()
    [failure] = tables.rows(Folder(this.results), "failures")
    assert failure["unit_id"] == lost.cell_id and failure["tries"] == 3
    assert "its worker died 3 times" in failure["reason"] and victim.partition("-")[2] in failure["reason"]
    assert set(pd.read_parquet(this.results / "cells")["cell_id"]) == {c.cell_id for c in report.cells} - {lost.cell_id}
    with this.command():
        pass
    assert this.statuses == [1, 0], this.said()


@pytest.mark.chaos
@pytest.mark.parametrize("kind", rounds.ROUNDS)
def test_a_round(kind, tmp_path):
    this, verdict = rounds.one(kind, 0, tmp_path / kind, rounds.quiet(tmp_path / "quiet"))
    assert verdict.good, verdict
