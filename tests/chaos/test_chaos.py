"""The short part of `make chaos`: one sweep, in which a worker is killed while it writes and one in evaluation, one
hangs in training, and the queue dies. Then, as parts of `make chaos`, a job whose worker always dies, and whole rounds.
"""

import itertools
import sys
from collections import Counter
from pathlib import Path

import pytest
import tiny

sys.path.insert(0, str(Path(__file__).parent))

import rounds

from raybasin import tables

WORKERS = {"cpus": 0.9, "count": 2, "hang_seconds": 5}


@pytest.mark.ray
def test_whatever_dies_or_hangs_the_tables_are_those_of_a_quiet_run(finished, tmp_path):
    this = rounds.Round("short", 0, tmp_path / "round", tiny.tree(recipe__checkpoint_seconds=0, workers=WORKERS))
    with this.command() as process:
        for phase, how in (("write", "kill"), ("train", "stop"), ("evaluate", "kill")):
            assert this.wait_for_jobs(process, 1), this.said()
            this.kill_worker(process, phase, moment=5, how=how)
        stopped = next(death["pid"] for death in this.deaths() if death["how"] == "stop")
        for _ in this.watch(process):
            if stopped not in rounds.processes():
                break
        else:
            raise AssertionError(f"process {stopped} hangs, and is still there\n{this.said()}")
        assert this.wait_for_jobs(process, 1), this.said()
        this.kill_one(process, "queue")
        for _ in this.watch(process):
            pass
    assert this.statuses == [0], this.said()
    assert set(this.kills) == {"worker in writing", "worker in training", "worker in evaluation", "queue"}
    assert not rounds.judge(this, finished.folder).wrong
    assert not tables.rows(this.store, "failures")


@pytest.mark.parametrize("kind", rounds.VICTIMS)
def test_a_seed_draws_the_same_kills_again_and_all_kinds_of_them(kind):
    drawn, again, others = (list(itertools.islice(rounds.strikes(kind, seed), 30)) for seed in (3, 3, 4))
    assert drawn == again != others
    victims = [strike.victim for strike in drawn[: len(rounds.VICTIMS[kind])]]
    assert Counter(victims) == Counter(rounds.VICTIMS[kind])


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
        this.order("train", "kill", moment=1, job=victim)
    with this.command() as process:
        for _ in this.watch(process):
            pass
    assert this.statuses == [1], this.said()
    [failure] = tables.rows(this.store, "failures")
    assert failure["unit_id"] == lost.cell_id and failure["tries"] == 3
    assert "its worker died 3 times" in failure["reason"] and victim.partition("-")[2] in failure["reason"]
    committed = {row["cell_id"] for row in tables.rows(this.store, "cells")}
    assert committed == {cell.cell_id for cell in report.cells} - {lost.cell_id}
    with this.command():
        pass
    assert this.statuses == [1, 0], this.said()


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.parametrize("kind", rounds.VICTIMS)
def test_a_round(kind, tmp_path):
    _, verdict = rounds.one(kind, 0, tmp_path / kind, rounds.quiet(kind, tmp_path / "quiet"))
    assert not verdict.wrong
