"""The short part of `make chaos`: one sweep, in which a worker is killed while it writes and one in evaluation, one
hangs in training, and the queue dies; and that the verdict on a round finds what it is there to find. Then, as part of
`make chaos`, a job whose worker always dies.
"""

import itertools
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import listening
import pyarrow.parquet as pq
import pytest
import tiny

sys.path.insert(0, str(Path(__file__).parent))

import rounds

from raybasin.store import tables

WORKERS = {"cpus": 0.9, "count": 2, "hang_seconds": 3}


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


@pytest.mark.ray
def test_a_cluster_of_several_nodes_listens_on_loopback_only(tmp_path):
    this = rounds.Round("cluster", 0, tmp_path / "round", tiny.tree())
    cluster = rounds.Cluster(this.environment)
    try:
        cluster.start()
        heard = listening.addresses(set(cluster.processes()))
        assert sum(program == "raylet" for program, _, _ in heard) >= len(cluster.nodes) == 3
        assert {address for _, address, _ in heard} == {"127.0.0.1"}, heard
    finally:
        cluster.stop()


@pytest.mark.parametrize("kind", rounds.VICTIMS)
def test_a_seed_draws_the_same_kills_again_and_all_kinds_of_them(kind):
    drawn, again, others = (list(itertools.islice(rounds.strikes(kind, seed), 30)) for seed in (3, 3, 4))
    assert drawn == again != others
    victims = [strike.victim for strike in drawn[: len(rounds.VICTIMS[kind])]]
    assert Counter(victims) == Counter(rounds.VICTIMS[kind])


@pytest.fixture
def undisturbed(finished, copied, tmp_path):
    """A round in which nothing has happened, and the events that its workers would have written down."""
    this = rounds.Round("none", 0, tmp_path / "round", tiny.tree())
    this.results = str(copied.folder.root)
    epochs = [(f"member-{row['member_id']}", row["epoch"]) for row in finished.rows("epochs")]
    epochs += [(f"checkpoint-{row['checkpoint_id']}", 0) for row in finished.rows("checkpoints")]
    return this, [{"event": "epoch", "job": job, "epoch": epoch, "committed": False} for job, epoch in epochs]


def judged(this, events, finished):
    (this.folder / "events").write_text("".join(json.dumps(event) + "\n" for event in events))
    verdict = rounds.judge(this, finished.folder)
    return {name for name in ("lost", "doubled", "again", "more", "left") if getattr(verdict, name)}


def test_a_round_in_which_nothing_happens_is_good(undisturbed, finished):
    assert judged(*undisturbed, finished) == set()


def delete_a_row(root):
    next((root / "scores").iterdir()).unlink()


def change_a_value(root):
    path = next((root / "members").iterdir())
    table = pq.read_table(path)
    at = table.column_names.index("max_lr")
    pq.write_table(table.set_column(at, table.schema.field("max_lr"), [[1.0]]), path)


def double_a_row(root):
    path = next((root / "cells").iterdir())
    shutil.copy(path, path.with_name("another.parquet"))


def delete_weights(root):
    next((root / "weights").iterdir()).unlink()


@pytest.mark.parametrize(
    ("damage", "found"),
    [(delete_a_row, {"lost"}), (change_a_value, {"lost"}), (double_a_row, {"lost", "doubled"}),
     (delete_weights, {"lost"})],
)  # fmt: skip
def test_what_is_lost_or_doubled_is_found(undisturbed, finished, damage, found):
    this, events = undisturbed
    damage(Path(this.results))
    assert judged(this, events, finished) == found


def test_an_epoch_for_each_interruption_may_be_done_again(undisturbed, finished):
    this, events = undisturbed
    job = events[0]["job"]
    began = [{"event": "job", "job": job}, {"event": "job", "job": job}, {"event": "job ended", "job": job}]
    assert judged(this, [*began, *events, events[0]], finished) == set()


@pytest.mark.parametrize(
    ("event", "found"),
    [({"event": "epoch", "epoch": 0}, {"more"}), ({"event": "evaluation", "committed": True}, {"again"}),
     ({"event": "epoch", "epoch": 0, "committed": True}, {"again", "more"})],
)  # fmt: skip
def test_work_that_need_not_be_done_again_is_found(undisturbed, finished, event, found):
    this, events = undisturbed
    assert judged(this, [*events, {"job": events[0]["job"], **event}], finished) == found


def test_a_process_that_outlives_its_driver_is_found_and_ended(undisturbed, finished, monkeypatch):
    monkeypatch.setattr(rounds, "ORPHAN_SECONDS", 0.0)
    this, events = undisturbed
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        this.orphans = {process.pid: rounds.processes()[process.pid]}
        assert judged(this, events, finished) == {"left"}
    assert process.returncode == -9


@pytest.mark.chaos
@pytest.mark.ray
def test_a_job_whose_workers_always_die_fails_its_cells_and_no_others(tmp_path):
    this = rounds.Round("poison", 0, tmp_path / "round", tiny.tree(workers=WORKERS))
    this.environment["RAYBASIN_CHAOS_DEATHS"] = "3"
    report = rounds.planned(this)
    lost = next(cell for cell in report.cells if cell.point.method == "star_sse")
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
