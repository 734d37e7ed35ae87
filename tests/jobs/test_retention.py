"""Which weights stay, how much disk a sweep needs, and what needs weights that were pruned."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest
import tiny
import torch
from typer.testing import CliRunner

import raybasin
from raybasin import cli, console
from raybasin.analysis import integrity, results
from raybasin.analysis.rescore import rescore
from raybasin.errors import FolderLost, UserError
from raybasin.jobs import disk, local, prepare, retention, train_members
from raybasin.store import folders, heartbeat, inventory, provenance, tables
from raybasin.store.folders import Folder
from raybasin.store.schemas import KEYS, VOLATILE
from raybasin.sweep import plan, specs
from raybasin.sweep.job_list import Done, jobs_left

STAR = {"star_sse": {"n_members": 3, "lr_ratio": [1, 4]}}
SMALL = {"recipe__epochs": 1, "methods": STAR}


def made_of(**changes):
    return plan.make(tiny.spec(**changes), tiny.facts())


def weights_there(folder):
    return {name.removesuffix(".safetensors") for name in folder.names("weights") if name.endswith(".safetensors")}


def sha256s(folder, table, column):
    return {row[column] for row in tables.rows(folder, table) if row[column]}


def ran(root, retrain=False, **changes):
    tree = tiny.tree(**{**SMALL, **changes})
    report = raybasin.run(tree, root, retrain=retrain)
    assert report.complete, (report.failures, report.ended)
    return folders.existing(root), prepare.prepare(specs.parse(tree)).plan


def assert_same_tables(folder, reference):
    for table, keys in KEYS.items():
        frames = []
        for other in (folder, reference):
            frame = tables.read(other, table).to_pandas().sort_values(list(keys), ignore_index=True)
            frames.append(frame.drop(columns=[c for c in frame if c in (*VOLATILE, "kept_weights")]))
        pd.testing.assert_frame_equal(*frames, check_exact=True)


# Groups


def test_cells_that_share_members_other_than_hubs_are_one_group():
    made = made_of(methods={"star_sse": {"n_members": 3, "lr_ratio": [1, 2]}, "local_de": {"n_members": 3},
                            "swag": {"n_members": 2, "cycle_ratio": 2}}, replicates=2)  # fmt: skip
    found = {cell.cell_id: group for group in retention.groups(made) for cell in group.cells}
    assert set(found) == set(made.cell) and len(retention.groups(made)) == len(made.cells)
    for cell in made.cells:
        assert found[cell.cell_id].member_ids == {*cell.trained_ids, *cell.member_ids} - {cell.member_ids[0]}
    swag = next(cell for cell in made.cells if cell.point.method == "swag")
    assert {made.members[m].kind for m in found[swag.cell_id].member_ids} == {"tail", "sample"}


def test_methods_that_have_a_member_in_common_are_finished_together(tmp_path):
    """The chain goes on from it when the star is done."""
    changes = {"methods": {"star_sse": {"n_members": 2}, "sse": {"n_members": 3}, "tree": {"n_members": 3}}}
    made = made_of(**changes, keep={"weights": "soups"})
    assert len(retention.groups(made)) == 1
    folder, _ = ran(tmp_path / "r", **changes, keep={"weights": "soups"})
    rows = {row["member_id"]: row["weights_sha256"] for row in tables.rows(folder, "members")}
    assert len(set(rows.values())) == len(rows) == len(made.members) == 3  # a hub and a chain of two
    assert weights_there(folder) == hubs_and_soups(folder) and integrity.check(folder) == []


def test_what_a_sweep_has_kept_stays_when_another_takes_the_place_of_its_file(tmp_path):
    """Methods and `keep` are in no settings_id, so a sweep of other methods has the same sweep file."""
    chain, star = {"sse": {"n_members": 3}}, {"star_sse": {"n_members": 3}}
    folder, _ = ran(tmp_path / "r", methods=chain, keep={"weights": "all"})
    kept = weights_there(folder)
    ran(folder.root, methods=star, keep={"weights": "soups"})
    assert len(folder.names("sweeps")) == 1
    assert kept <= weights_there(folder) and integrity.check(folder) == []
    pruned = set(inventory.pruned(folder))
    assert len(pruned) == 1  # the star's second member, which the chain has not
    ran(folder.root, methods={**chain, **star}, keep={"weights": "soups"})  # now it is asked for, and not to be kept
    assert weights_there(folder) == hubs_and_soups(folder)


def test_where_the_best_point_is_kept_replicates_are_one_group():
    made = made_of(methods=STAR, replicates=3, keep={"weights": "best"})
    groups = retention.groups(made)
    assert sorted(len(group.cells) for group in groups) == [3, 3]
    assert all(len({cell.point.lr_ratio for cell in group.cells}) == 1 for group in groups)


# What stays


@pytest.fixture(scope="module")
def kept_all(tmp_path_factory):
    return ran(tmp_path_factory.mktemp("all") / "r")[0]


@pytest.fixture(scope="module")
def kept_soups(tmp_path_factory):
    return ran(tmp_path_factory.mktemp("soups") / "r", keep={"weights": "soups"})


def hubs_and_soups(folder, cells=None):
    rows = [row for row in tables.rows(folder, "cells") if cells is None or row["cell_id"] in cells]
    hubs = {row["weights_sha256"] for row in tables.rows(folder, "members") if row["method"] == "hub"}
    soups = {row[column] for row in rows for column in ("soup_sha256", "greedy_soup_sha256") if row[column]}
    return hubs | soups | sha256s(folder, "checkpoints", "weights_sha256")


def test_soups_hubs_and_checkpoints_stay_and_the_tables_are_the_same(kept_all, kept_soups):
    folder, made = kept_soups
    assert weights_there(folder) == hubs_and_soups(folder)
    assert weights_there(folder) < weights_there(kept_all)
    assert_same_tables(folder, kept_all)
    assert integrity.check(folder) == []
    assert set(inventory.pruned(folder)) == set(made.members) - {cell.member_ids[0] for cell in made.cells}


def test_scores_can_be_computed_again_without_the_weights(kept_soups):
    folder, made = kept_soups
    again = rescore(folder, tables.rows(folder, "cells"), made.eval_id)
    assert again.differences == () and again.figures


def test_of_cells_only_those_of_the_best_point_stay(kept_all, tmp_path):
    folder, made = ran(tmp_path / "r", keep={"weights": "best"})
    best = results.best_cell(raybasin.open(folder.root))
    members = {row["weights_sha256"] for row in tables.rows(folder, "members", list(best["member_ids"]))}
    assert weights_there(folder) == hubs_and_soups(folder, {best["cell_id"]}) | members
    assert_same_tables(folder, kept_all)
    assert integrity.check(folder) == []
    other = next(cell.cell_id for cell in made.cells if cell.cell_id != best["cell_id"])
    invoked = CliRunner().invoke(
        cli.app, ["soup", str(folder.root), "--cell", other, "-o", str(tmp_path / "soup.safetensors")]
    )
    assert isinstance(invoked.exception, UserError) and "--retrain" in str(invoked.exception)


def test_all_that_was_dropped_comes_back_to_the_bit(kept_all, tmp_path):
    folder, _ = ran(tmp_path / "r", keep={"weights": "best"})
    assert weights_there(folder) < weights_there(kept_all)
    with pytest.raises(UserError) as refused:
        cells = {"methods": {"star_sse": {"n_members": 4, "lr_ratio": [1, 4]}}}
        raybasin.run(tiny.tree(**{**SMALL, **cells}), folder.root)
    assert "--retrain" in str(refused.value)
    ran(folder.root, retrain=True)
    assert weights_there(folder) == weights_there(kept_all)
    assert not set(inventory.pruned(folder)) and integrity.check(folder) == []


# Growing


def test_a_larger_ensemble_names_what_it_needs_again_and_comes_out_as_if_nothing_had_been_pruned(tmp_path):
    larger = {"methods": {"star_sse": {"n_members": 4, "lr_ratio": 1}}, "keep": {"weights": "soups"}}
    root = tmp_path / "r"
    folder, _ = ran(root, keep={"weights": "soups"})
    before = {row["member_id"] for row in tables.rows(folder, "members")}
    made = prepare.prepare(specs.parse(tiny.tree(**{**SMALL, **larger}))).plan
    text = "\n".join(console.lines(local.look(made, folder)))
    assert "2 of them are needed again (2 epochs of training" in text
    assert "  star_sse lr_ratio=1 cycle_ratio=1 replicate=0: 2 networks of 2 epochs" in text
    with pytest.raises(UserError, match="weights of 2 networks .* 2 epochs of training; --retrain"):
        raybasin.run(tiny.tree(**{**SMALL, **larger}), root)
    ran(root, retrain=True, **larger)
    assert {row["member_id"] for row in tables.rows(folder, "members")} - before == {made.cells[0].member_ids[3]}
    assert weights_there(folder) == hubs_and_soups(folder)  # and is pruned once more
    assert integrity.check(folder) == []
    fresh, _ = ran(tmp_path / "fresh", **{**larger, "keep": {}})
    ours = {row["cell_id"]: row for row in tables.rows(folder, "cells")}
    for row in tables.rows(fresh, "cells"):
        same = {key: value for key, value in row.items() if key not in (*VOLATILE, "kept_weights")}
        assert {key: value for key, value in ours[row["cell_id"]].items() if key in same} == same


def test_what_has_come_back_stays_when_a_run_is_killed(tmp_path, monkeypatch):
    smaller, larger = ({"star_sse": {"n_members": n}, "sse": {"n_members": 2}} for n in (2, 3))
    folder, _ = ran(tmp_path / "r", methods=smaller, keep={"weights": "soups"})
    restored = retention.restored

    def die(unit, folder):
        restored(unit, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(retention, "restored", die)
    with pytest.raises(KeyboardInterrupt):
        ran(folder.root, retrain=True, methods=larger, keep={"weights": "soups"})
    monkeypatch.undo()
    assert set(inventory.pruned(folder)) == set()  # the one member of both methods has come back
    assert {row["weights_sha256"] for row in tables.rows(folder, "members")} <= weights_there(folder)
    ran(folder.root, retrain=True, methods=larger, keep={"weights": "soups"})
    assert weights_there(folder) == hubs_and_soups(folder) and integrity.check(folder) == []


def test_weights_that_come_out_otherwise_fail_the_cell_and_leave_nothing(kept_soups, tmp_path, monkeypatch):
    folder = copy_of(kept_soups[0], tmp_path)
    there, train = weights_there(folder), train_members._train

    def elsewhere(net, *arguments, **options):
        made = train(net, *arguments, **options)
        with torch.no_grad():
            next(net.parameters()).add_(1e-3)
        return made

    monkeypatch.setattr(train_members, "_train", elsewhere)
    larger = tiny.tree(**{**SMALL, "methods": {"star_sse": {"n_members": 4}}, "keep": {"weights": "soups"}})
    report = raybasin.run(larger, folder.root, retrain=True)
    [failure] = report.failures
    assert "has come out with other weights than those that were pruned" in failure.reason
    new = {row["weights_sha256"] for row in tables.rows(folder, "members")}
    assert weights_there(folder) <= there | new


def copy_of(folder, tmp_path):
    return Folder(shutil.copytree(folder.root, tmp_path / "copy"))


# Others in the same folder


def test_what_another_sweep_keeps_or_has_still_to_do_is_not_pruned(tmp_path):
    root = tmp_path / "r"
    folder, _ = ran(root)  # keeps all
    whole = weights_there(folder)
    ran(root, data__test_images=30, keep={"weights": "soups"})  # of the same members
    assert whole <= weights_there(folder) and integrity.check(folder) == []
    ran(root, keep={"weights": "soups"})  # the first does not need them any more
    assert weights_there(folder) == hubs_and_soups(folder)


@pytest.mark.parametrize("kept", ["all", "soups", "best"])
def test_nothing_goes_that_another_sweep_keeps(kept, tmp_path):
    """It shares members and soups, and has other test images."""
    root, three = tmp_path / "r", {"methods": {"star_sse": {"n_members": 3, "lr_ratio": [0.1, 1, 4]}}}
    folder, _ = ran(root, **three, keep={"weights": kept})
    theirs = weights_there(folder)
    ran(root, **three, retrain=True, data__test_images=30, keep={"weights": "soups"})
    assert theirs <= weights_there(folder) and integrity.check(folder) == []
    ran(root, **three, data__test_images=30, keep={"weights": "best"})
    assert theirs <= weights_there(folder) and integrity.check(folder) == []


def test_nothing_is_dropped_while_the_same_sweep_runs_twice(kept_all, tmp_path, monkeypatch):
    folder = copy_of(kept_all, tmp_path)
    made = prepare.prepare(tiny.spec(**SMALL)).plan
    whole = weights_there(folder)
    monkeypatch.setattr(heartbeat.platform, "node", lambda: "another-machine")
    with heartbeat.beating(folder, made.settings_id):
        monkeypatch.undo()
        ran(folder.root, keep={"weights": "soups"})
        assert weights_there(folder) == whole
    ran(folder.root, keep={"weights": "soups"})
    assert weights_there(folder) == hubs_and_soups(folder)


def test_a_run_that_asks_for_more_of_the_same_settings_is_seen_by_its_sweep_file(kept_all, tmp_path):
    folder = copy_of(kept_all, tmp_path)
    less = prepare.prepare(tiny.spec(**SMALL, keep={"weights": "soups"})).plan
    chain = {"methods": {**STAR, "sse": {"n_members": 3}}}
    more = prepare.prepare(tiny.spec(**{**SMALL, **chain}, keep={"weights": "soups"})).plan
    assert more.settings_id == less.settings_id
    folder.put(f"sweeps/{more.settings_id}.yaml", inventory.resolved(more).encode())
    finished = retention.groups(less)
    needed = retention._needed_elsewhere(folder, less, set(more.members), finished)
    assert needed.member_ids == {
        m for c in more.cells if c.point.method == "sse" or c.point.lr_ratio == 1 for m in c.member_ids[1:]
    }
    finished = retention.groups(more)
    assert retention._needed_elsewhere(folder, more, set(more.members), finished).member_ids == set()


def test_of_another_sweep_only_what_shares_a_network_is_looked_at(tmp_path, monkeypatch):
    folder, methods = Folder(tmp_path), {"star_sse": {"n_members": 3, "lr_ratio": [1 + n / 10 for n in range(30)]}}
    own, other = (
        plan.make(tiny.spec(methods=methods, keep={"weights": "soups"}, data__test_images=images),
                  tiny.facts(n_test=images)) for images in (50, 30)
    )  # fmt: skip
    folder.put_new(f"sweeps/{other.settings_id}.yaml", inventory.resolved(other).encode())
    looked = []
    monkeypatch.setattr(retention, "is_finished", lambda group, *_: looked.append(group.name))
    monkeypatch.setattr(inventory, "survey", None)  # nor is all that the folder holds
    group = retention.groups(own)[7]
    needed = retention._needed_elsewhere(folder, own, group.member_ids, [group])
    assert needed.member_ids == group.member_ids and len(looked) == 1


def test_where_all_was_pruned_before_no_row_is_read_to_see_so(tmp_path, monkeypatch):
    folder, made = ran(tmp_path / "r", keep={"weights": "soups"})
    there = weights_there(folder)
    monkeypatch.setattr(tables, "read", None)
    retention.tidy(folder, made, inventory.survey(folder))
    assert weights_there(folder) == there and not folder.exists(retention.LEASE)


def test_in_a_bucket_other_sweeps_are_asked_too(s3):
    folder = folders.create(s3.address())
    own, other = (
        plan.make(tiny.spec(**SMALL, data__test_images=images), tiny.facts(n_test=images)) for images in (50, 30)
    )
    folder.put_new(f"sweeps/{other.settings_id}.yaml", inventory.resolved(other).encode())
    members = set(other.members) - {cell.member_ids[0] for cell in other.cells}
    assert retention._needed_elsewhere(folder, own, set(own.members)).member_ids == members


def test_a_sweep_that_begins_while_weights_are_dropped_waits_and_knows(kept_all, tmp_path, monkeypatch):
    """Its needs were not there to be seen when others looked."""
    folder = copy_of(kept_all, tmp_path)
    second = prepare.prepare(tiny.spec(**SMALL, data__test_images=30, keep={"weights": "soups"}))
    begun = []

    def begin():
        begun.append(local.begin(folder, second))

    thread = threading.Thread(target=begin)
    look = retention._needed_elsewhere

    def look_and_let_the_second_begin(place, made, *asked):
        found = look(place, made, *asked)
        if made.settings_id != second.plan.settings_id and not thread.ident:
            thread.start()
            while not folder.exists(f"sweeps/{second.plan.settings_id}.yaml"):
                time.sleep(0.01)
            thread.join(5 * retention.LOOK_SECONDS)
            assert thread.is_alive() and not begun
        return found

    monkeypatch.setattr(retention, "_needed_elsewhere", look_and_let_the_second_begin)
    ran(folder.root, keep={"weights": "soups"})
    thread.join()
    assert set(begun[0].done.pruned) == set(inventory.pruned(folder)) != set()
    with pytest.raises(UserError, match="--retrain allows it"):
        begun[0].check()


def _of_a_process_that_died():
    """As it would have written it just now."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return json.dumps({**provenance.sign(), "pid": ended.pid, "line": "cells 1/2"}).encode()


@pytest.mark.skipif(not provenance._processes_here(), reason="whether a process lives can be told on Linux alone")
def test_a_run_that_was_killed_is_known_to_have_ended_at_once(tmp_path):
    folder = Folder(tmp_path)
    folder.put("state/running-s-host-1.json", _of_a_process_that_died())
    folder.put("state/running-s-host-2.json", json.dumps({**provenance.sign(), "line": "x"})
               .encode())  # fmt: skip
    folder.put("state/running-s-host-3.json", b"[]")
    there, odd = heartbeat.running(folder, "s")
    assert f"(process {os.getpid()})" in there and "running-s-host-3.json is not what" in odd
    folder.put_new(retention.LEASE, _of_a_process_that_died())
    retention.wait_for_pruning(folder)


@pytest.mark.parametrize("content", [b'{"at": 0}', b"", b"[]", b'{"at": 1' + 400 * b"0" + b"}"])
def test_a_lease_that_was_left_by_a_run_that_was_killed_holds_up_nobody(content, kept_all, tmp_path):
    folder = copy_of(kept_all, tmp_path)
    folder.put_new(retention.LEASE, content)
    ran(folder.root, keep={"weights": "soups"})
    assert weights_there(folder) == hubs_and_soups(folder) and not folder.exists(retention.LEASE)


def test_a_process_that_is_interrupted_at_whatever_write_goes_on_at_once(kept_all, tmp_path, monkeypatch):
    """As in a notebook, where the process lives on. Nobody else is there, so nobody is waited for."""
    made = prepare.prepare(tiny.spec(**SMALL, keep={"weights": "soups"})).plan
    begun = copy_of(kept_all, tmp_path / "begun")
    begun.put(f"sweeps/{made.settings_id}.yaml", inventory.resolved(made).encode())
    calls, at = [], None
    monkeypatch.setattr(retention.time, "sleep", lambda seconds: pytest.fail("waits for itself"))

    def interrupting(name):
        write = getattr(Folder, name)

        def interrupted(folder, *arguments):
            calls.append(name)
            if at == (len(calls), "before"):
                raise KeyboardInterrupt
            result = write(folder, *arguments)
            if at == (len(calls), "after"):
                raise KeyboardInterrupt
            return result

        monkeypatch.setattr(Folder, name, interrupted)

    for name in ("put_new", "put", "delete"):
        interrupting(name)
    retention.tidy(copy_of(begun, tmp_path / "whole"), made, inventory.survey(begun))
    assert calls[0] == "put_new" and calls[-1] == "delete" and len(calls) >= 10
    for at in [(nth, when) for nth in range(1, len(calls) + 1) for when in ("before", "after")]:
        folder = copy_of(begun, tmp_path / f"{at[0]}-{at[1]}")
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            retention.tidy(folder, made, inventory.survey(folder))
        at = None
        retention.wait_for_pruning(folder)
        retention.tidy(folder, made, inventory.survey(folder))
        assert weights_there(folder) == hubs_and_soups(folder) and not folder.exists(retention.LEASE)


def test_who_is_interrupted_while_somebody_else_prunes_leaves_the_lease_to_them(kept_all, tmp_path, monkeypatch):
    folder = copy_of(kept_all, tmp_path)
    made = prepare.prepare(tiny.spec(**SMALL, keep={"weights": "soups"})).plan

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(retention.time, "sleep", interrupt)
    with retention.lease(folder), pytest.raises(KeyboardInterrupt):
        retention.tidy(folder, made, inventory.survey(folder))
    assert not folder.exists(retention.LEASE)
    theirs = json.dumps({"at": time.time(), "token": "theirs", "host": "another"}).encode()
    folder.put_new(retention.LEASE, theirs)
    with pytest.raises(KeyboardInterrupt):
        retention.tidy(folder, made, inventory.survey(folder))
    assert folder.get(retention.LEASE) == theirs and weights_there(folder) == weights_there(kept_all)


def test_a_lease_that_was_taken_since_the_last_one_went_is_respected(tmp_path, monkeypatch):
    """The holder ends between the try and the look, and a third one takes the lease before what has gone is deleted."""
    folder, waited = Folder(tmp_path), []
    create = Folder._create

    def of(holder):
        return json.dumps({"at": time.time(), "token": holder, "host": "another"}).encode()

    def beaten(place, key, content):
        if not waited and not place.exists(key):
            waited.append("a third one is a moment faster")
            return False  # it was there, and has gone
        return create(place, key, content)

    def sleep(seconds):
        waited.append(json.loads(folder.get(retention.LEASE))["token"])
        folder.delete(retention.LEASE)

    def told(place):
        before = look(place)
        if before is None and len(waited) == 1:
            create(place, retention.LEASE, of("theirs"))
        return before

    look = retention._told
    monkeypatch.setattr(Folder, "_create", beaten)
    monkeypatch.setattr(retention, "_told", told)
    monkeypatch.setattr(retention.time, "sleep", sleep)
    with retention.lease(folder):
        assert waited[1:] == ["theirs"] and json.loads(folder.get(retention.LEASE))["token"] != "theirs"
    assert not folder.exists(retention.LEASE)


def test_a_lease_whose_taking_was_not_answered_is_known_as_ones_own(tmp_path, monkeypatch):
    create = Folder._create
    monkeypatch.setattr(Folder, "_create", lambda *arguments: create(*arguments) and False)
    monkeypatch.setattr(retention.time, "sleep", lambda seconds: pytest.fail("waits for itself"))
    with retention.lease(Folder(tmp_path)):
        pass
    assert not Folder(tmp_path).exists(retention.LEASE)


def test_a_disk_that_answers_nothing_any_more_is_what_is_said(tmp_path, monkeypatch):
    def broken(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Folder, "_create", broken)
    monkeypatch.setattr(Folder, "get", broken)
    with pytest.raises(FolderLost, match="the same command continues"), retention.lease(Folder(tmp_path)):
        pytest.fail("nothing is leased")


def test_weights_that_another_sweep_trains_again_are_not_taken_for_left_over(kept_soups, tmp_path):
    """They are there for a moment beside the marker."""
    folder = copy_of(kept_soups[0], tmp_path)
    keeper = prepare.prepare(tiny.spec(**SMALL, data__test_images=30)).plan  # keeps all
    folder.put_new(f"sweeps/{keeper.settings_id}.yaml", inventory.resolved(keeper).encode())
    unit = next(inventory.pruned(folder))
    [sha256] = retention.marked(folder.get(f"weights/{unit}.pruned"))
    folder.put_new(f"weights/{sha256}.safetensors", b"trained again")
    retention.tidy(folder, kept_soups[1], inventory.survey(folder))
    assert sha256 in weights_there(folder)
    folder.delete(f"sweeps/{keeper.settings_id}.yaml")
    retention.tidy(folder, kept_soups[1], inventory.survey(folder))
    assert sha256 not in weights_there(folder)


def test_what_a_killed_run_had_begun_to_drop_is_pruned(kept_all, tmp_path, monkeypatch):
    folder = copy_of(kept_all, tmp_path)
    delete = Folder.delete

    def die(self, key):
        if key.startswith("weights/"):
            raise KeyboardInterrupt
        delete(self, key)

    monkeypatch.setattr(Folder, "delete", die)
    tree = tiny.tree(**SMALL, keep={"weights": "soups"})
    with pytest.raises(KeyboardInterrupt):
        raybasin.run(tree, folder.root)
    monkeypatch.undo()
    assert len(set(inventory.pruned(folder))) == 1 and integrity.check(folder) == []
    assert raybasin.run(tree, folder.root).complete
    assert weights_there(folder) == hubs_and_soups(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"weights": 1}', b'{"weights": [1]}', b"\xff"])
def test_a_marker_that_says_nothing_is_found(content, kept_soups, tmp_path):
    folder = copy_of(kept_soups[0], tmp_path)
    unit = next(inventory.pruned(folder))
    folder.put(f"weights/{unit}.pruned", content)
    problems = integrity.check(folder)
    assert f"weights/{unit}.pruned" in {problem.key for problem in problems}
    assert f"members/{unit}.parquet" in {problem.key for problem in problems}  # whose weights are lost, for all it says


# Disk


def test_the_disk_that_is_needed_is_counted():
    made = made_of(methods={"star_sse": {"n_members": 3, "lr_ratio": [1, 2]}}, keep={"weights": "soups"})
    left = jobs_left(made, Done())
    needed, network = disk.need(made, Done(), left), 1.01 * 4 * 1000 + 40_000
    assert needed.weights == pytest.approx((1 + 2 * 2) * network)  # the hub, two soups of two cells
    assert needed.passing == pytest.approx(4 * network) and needed.snapshots == pytest.approx(4 * network)
    assert needed.most(3) == pytest.approx(needed.staying + needed.passing + 3 * needed.snapshots)
    assert needed.largest == pytest.approx(2 * network)  # one cell at a time
    assert needed.least(3) == pytest.approx(needed.staying + needed.largest + 3 * needed.snapshots)
    whole = disk.need(made_of(methods={"star_sse": {"n_members": 3, "lr_ratio": [1, 2]}}), Done(), left)
    assert whole.passing == 0 and whole.weights == pytest.approx(needed.weights + needed.passing)
    best = made_of(methods={"star_sse": {"n_members": 3, "lr_ratio": [1, 2]}}, keep={"weights": "best"})
    of_best = disk.need(best, Done(), left)  # of two points one stays, with two members and two soups
    assert of_best.weights == pytest.approx((1 + 4) * network) and of_best.passing == pytest.approx(4 * network)


def test_the_estimate_is_above_what_a_sweep_takes_and_not_by_much(kept_all):
    made = prepare.prepare(specs.parse(tiny.tree(**SMALL))).plan
    needed = disk.need(made, Done(), jobs_left(made, Done()))
    assert 0.9 * needed.staying < kept_all.size() < needed.staying


def test_a_sweep_stays_within_its_budget_at_every_moment(tmp_path, monkeypatch):
    changes = {"methods": {"star_sse": {"n_members": 3, "lr_ratio": [1, 2, 4]}, "sse": {"n_members": 3, "lr_ratio": 3}},
               "recipe__epochs": 1, "recipe__checkpoint_seconds": 0}  # fmt: skip
    made = prepare.prepare(specs.parse(tiny.tree(**changes, keep={"weights": "soups"}))).plan
    needed = disk.need(made, Done(), jobs_left(made, Done()))
    budget = needed.most(1)
    sizes, create, replace = [], Folder._create, Folder._replace

    def watched(write):
        def written(self, key, content):
            made = write(self, key, content)
            sizes.append(Folder(self.root).size())
            return made

        return written

    monkeypatch.setattr(Folder, "_create", watched(create))
    monkeypatch.setattr(Folder, "_replace", watched(replace))
    tree = tiny.tree(**changes, keep={"weights": "soups", "budget_gb": (budget + 10_000) / 1e9})  # its sweep file
    assert raybasin.run(tree, tmp_path / "r").complete
    assert len(sizes) > 50 and max(sizes) < budget


def test_a_budget_that_is_too_small_and_a_disk_that_is_too_full_are_refused_before_anything_is_written(
    tmp_path, monkeypatch
):
    tree = tiny.tree(**SMALL, keep={"budget_gb": 0.001})
    said = r"keep.budget_gb: 0.001: .* still needs .*\n.*keep.weights: soups"
    with pytest.raises(UserError, match=said):
        raybasin.run(tree, tmp_path / "r")
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(json.dumps(tree))
    for command in ("plan", "sweep"):
        invoked = CliRunner().invoke(cli.app, [command, str(sweep), "--results", str(tmp_path / "r")])
        assert isinstance(invoked.exception, UserError) and "keep.budget_gb" in str(invoked.exception)
    monkeypatch.setattr(Folder, "free", lambda self: 1_000_000)
    with pytest.raises(UserError, match=r"1.0 MB are free on its disk, and the sweep still needs"):
        raybasin.run(tiny.tree(**SMALL), tmp_path / "r")
    assert not (tmp_path / "r" / "members").exists()


def test_a_budget_is_for_all_weights_at_once_and_a_disk_need_hold_those_of_a_few_cells(tmp_path, monkeypatch):
    several = {**SMALL, "methods": {"star_sse": {"n_members": 3, "lr_ratio": [1, 2, 4]}}}
    made = prepare.prepare(tiny.spec(**several, keep={"weights": "soups"})).plan
    needed, folder = disk.need(made, Done(), jobs_left(made, Done())), Folder(tmp_path)
    between = (needed.least(1) + needed.most(1)) / 2
    assert needed.least(1) < between < needed.most(1)
    monkeypatch.setattr(Folder, "free", lambda self: between)
    disk.check(made, folder, needed, workers=1)
    monkeypatch.setattr(Folder, "free", lambda self: needed.least(1) - 1)
    with pytest.raises(UserError, match="or run fewer ratios, methods or replicates at a time$"):
        disk.check(made, folder, needed, workers=1)
    monkeypatch.setattr(Folder, "free", lambda self: None)
    bounded = prepare.prepare(tiny.spec(**several, keep={"weights": "soups", "budget_gb": between / 1e9})).plan
    with pytest.raises(UserError, match="keep.budget_gb: .* are used already, and the sweep still needs"):
        disk.check(bounded, folder, needed, workers=1)


def test_the_keys_are_checked():
    with pytest.raises(UserError, match="keep.weights: best is decided by uniform soups"):
        tiny.spec(keep={"weights": "best"}, soups=["greedy"])
    with pytest.raises(UserError, match="keep.weights: soups are all that would be kept"):
        tiny.spec(keep={"weights": "soups"}, soups=[])
    with pytest.raises(UserError, match="keep.budget_gb"):
        tiny.spec(keep={"budget_gb": 0})
    kept = made_of(keep={"weights": "soups", "budget_gb": 3})
    assert (kept.settings_id, set(kept.members)) == (made_of().settings_id, set(made_of().members))
