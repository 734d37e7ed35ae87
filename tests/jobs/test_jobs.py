"""A whole tiny sweep in one process: who starts from what, what is done once, and what its tables say."""

import dataclasses
import json
import math
import os
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import states
import tiny
import torch
import yaml

import raybasin
from raybasin import cli
from raybasin.analysis import integrity
from raybasin.analysis.rescore import rescore
from raybasin.errors import UserError
from raybasin.jobs import execution, train_members, worker_context
from raybasin.landscape import batch_norm, interpolation
from raybasin.metrics import cell_scores, classification
from raybasin.store import folders, inventory, tables
from raybasin.store.predictions import read_predictions, stored_predictions
from raybasin.store.schemas import COMMON, KEYS, SCHEMAS
from raybasin.sweep import ids, specs
from raybasin.sweep.job_list import Closing, Job, PathMeasurement, Pretraining, Training
from raybasin.training import evaluation, loop, models, swag

NET = specs.Architecture(name="test_resnet")
TIMES = {"train_seconds", "wall_seconds", "close_seconds", "job_seconds", "finished_at", "images_per_second"}


@pytest.fixture(scope="module")
def context(finished):
    return tiny.context(finished.folder.root, finished.plan.spec)


@pytest.fixture
def trainings(monkeypatch):
    """The learning rates of the trainings that are begun."""
    begun = []
    train = loop.train

    def counting(net, images_NHWC, labels_N, cycle, *args, **kwargs):
        begun.append(cycle.max_lr)
        return train(net, images_NHWC, labels_N, cycle, *args, **kwargs)

    monkeypatch.setattr(loop, "train", counting)
    return begun


@pytest.fixture
def points(monkeypatch):
    """The positions of the path points that are evaluated."""
    at = []
    interpolate = interpolation.interpolate

    def counting(start, end, t):
        at.append(t)
        return interpolate(start, end, t)

    monkeypatch.setattr(interpolation, "interpolate", counting)
    return at


def files(folder):
    """Every file of a results folder with its content, but for control state and resolved sweep files."""
    return {
        str(path.relative_to(folder.root)): path.read_bytes()
        for path in folder.root.rglob("*")
        if path.is_file() and path.relative_to(folder.root).parts[0] not in ("state", "sweeps")
    }


def untimed(row):
    """A row without what differs from run to run; NaN as text, so that rows can be compared."""
    return {key: "nan" if value != value else value for key, value in row.items() if key not in TIMES}


def start_sha256(member, parent_sha256, context):
    """The SHA-256 of the weights at a member's first step."""
    return models.sha256(models.to_bytes(models.state_of(train_members._start(member, parent_sha256, context))))


# Who starts from what


@pytest.mark.parametrize("lr_ratio", [1.0, 4.0])
def test_every_branch_of_star_sse_starts_from_the_exact_bytes_of_the_hub(finished, context, lr_ratio):
    rows = finished.members()
    hub, *branches = finished.cell("star_sse", lr_ratio).member_ids
    assert rows[hub]["method"] == "hub" and rows[hub]["member_index"] == 0
    assert len(branches) == 2
    for member_id in branches:
        assert rows[member_id]["parent_id"] == hub
        assert rows[member_id]["parent_sha256"] == rows[hub]["weights_sha256"]
        member = finished.plan.members[member_id]
        assert start_sha256(member, rows[member_id]["parent_sha256"], context) == rows[hub]["weights_sha256"]


def test_every_cycle_of_sse_starts_from_the_exact_bytes_of_the_one_before(finished, context):
    rows = finished.members()
    chain = finished.cell("sse").member_ids
    for before, member_id in zip(chain, chain[1:], strict=False):
        assert rows[member_id]["parent_id"] == before
        assert rows[member_id]["parent_sha256"] == rows[before]["weights_sha256"]
        member = finished.plan.members[member_id]
        assert start_sha256(member, rows[member_id]["parent_sha256"], context) == rows[before]["weights_sha256"]
    assert len({rows[member_id]["weights_sha256"] for member_id in chain}) == 3


def test_members_of_local_de_start_from_the_checkpoint_each_with_a_head_of_its_own(finished, context):
    rows = finished.members()
    (checkpoint,) = finished.rows("checkpoints")
    kept = models.from_bytes(finished.folder.get(f"weights/{checkpoint['weights_sha256']}.safetensors"))
    body = {name: tensor for name, tensor in kept.items() if not name.startswith("fc.")}
    assert len(body) < len(kept)  # the checkpoint's own head is kept with it, and used by no member
    heads = []
    for member_id in finished.cell("local_de").member_ids:
        assert rows[member_id]["parent_id"] is None
        assert rows[member_id]["parent_sha256"] == checkpoint["weights_sha256"]
        net = train_members._start(finished.plan.members[member_id], checkpoint["weights_sha256"], context)
        assert models.to_bytes(states.body_of(net, NET)) == models.to_bytes(body)
        heads.append(net.state_dict()["fc.weight"])
    assert len({head.numpy().tobytes() for head in heads}) == len(heads) == 3


def test_the_first_cycles_of_star_sse_and_sse_are_the_same_network(finished):
    """Same hub, same rate and length, same batches: the methods part at the second cycle."""
    rows = finished.members()
    star, chain = finished.cell("star_sse").member_ids, finished.cell("sse").member_ids
    assert star[:2] == chain[:2]
    assert rows[star[1]]["method"] == "star_sse"  # which asks for it first
    assert rows[star[2]]["weights_sha256"] != rows[chain[2]]["weights_sha256"]


def test_cycles_at_another_rate_are_other_networks(finished):
    rows = finished.members()
    slow, fast = (finished.cell("star_sse", lr_ratio).member_ids for lr_ratio in (1.0, 4.0))
    assert slow[0] == fast[0]
    assert {rows[m]["weights_sha256"] for m in slow[1:]}.isdisjoint(rows[m]["weights_sha256"] for m in fast[1:])


def test_weights_are_kept_under_the_hash_of_their_bytes(finished):
    named = {row["weights_sha256"] for row in finished.rows("members") + finished.rows("checkpoints")}
    named |= {row[column] for row in finished.rows("cells") for column in ("soup_sha256", "greedy_soup_sha256")}
    names = finished.folder.names("weights")
    assert {name.removesuffix(".safetensors") for name in names} == named
    for name in names:
        assert models.sha256(finished.folder.get(f"weights/{name}")) == name.removesuffix(".safetensors")


def test_members_say_how_they_were_trained(finished):
    rows = finished.members()
    cycle = rows[finished.cell("star_sse", 4.0).member_ids[1]]
    assert (cycle["max_lr"], cycle["cycle_steps"], cycle["cycle_epochs"]) == (0.08, 4, 2.0)
    assert (cycle["method"], cycle["lr_ratio"], cycle["cycle_ratio"], cycle["replicate"]) == ("star_sse", 4.0, 1.0, 0)
    epochs = [row for row in finished.rows("epochs") if row["member_id"] == cycle["member_id"]]
    assert [row["epoch"] for row in epochs] == [0, 1]
    assert [row["lr"] for row in epochs] == [0.08, pytest.approx(0.04, rel=1e-12)]
    assert epochs[-1]["train_loss"] == cycle["final_train_loss"]


# What is done once


def test_running_again_trains_and_measures_nothing_and_adds_no_row(copied, trainings, points):
    before = files(copied.folder)
    report = raybasin.run(copied.plan.spec, copied.folder.root)
    assert report.complete
    assert (trainings, points) == ([], [])
    assert files(copied.folder) == before


def test_a_larger_ensemble_trains_its_new_members_and_measures_their_paths_alone(copied, trainings, points):
    before = files(copied.folder)
    larger = {"star_sse": {"n_members": 4}, "sse": {"n_members": 4}, "local_de": {"n_members": 3}}
    report = raybasin.run(tiny.spec(methods=larger), copied.folder.root)
    assert report.complete and len(report.plan.cells) == 3
    assert trainings == [0.02, 0.02]
    # Hub to the new one and the last to the new one, each with one point inside, for two methods.
    assert points == [0.5] * 4
    after = files(copied.folder)
    assert {name: after[name] for name in before} == before

    grown = tiny.Sweep(copied.folder, report.plan)
    assert grown.plan.settings_id == copied.plan.settings_id
    for method in ("star_sse", "sse"):
        smaller, larger = copied.cell(method), grown.cell(method)
        assert larger.member_ids[:3] == smaller.member_ids and larger.cell_id != smaller.cell_id
        rows = [row for row in copied.rows("paths") if row["cell_id"] in (smaller.cell_id, larger.cell_id)]
        points_of = {(row["cell_id"], row["path_id"], row["t"]): untimed(row) for row in rows}
        assert len(points_of) == len(rows) == 3 * (3 + 5)
        for (cell_id, path_id, t), row in points_of.items():
            if cell_id == smaller.cell_id:
                assert points_of[larger.cell_id, path_id, t] == {**row, "cell_id": larger.cell_id}


def test_a_cell_whose_row_is_gone_is_made_again_equal_but_for_times(copied, trainings, points):
    (before,) = [row for row in copied.rows("cells") if row["cell_id"] == copied.cell("star_sse").cell_id]
    unit = before["cell_id"]
    copied.folder.delete(f"cells/{unit}.parquet")
    assert raybasin.run(copied.plan.spec, copied.folder.root).complete
    assert untimed(tables.row(copied.folder, "cells", unit)) == untimed(before)
    assert (trainings, points) == ([], [])


def test_a_member_whose_row_is_gone_is_trained_again_to_the_same_bits(copied, trainings):
    member_id = copied.cell("sse").member_ids[-1]
    before = copied.members()[member_id]
    for key in (f"members/{member_id}.parquet", f"cells/{copied.cell('sse').cell_id}.parquet",
                f"weights/{before['weights_sha256']}.safetensors"):  # fmt: skip
        copied.folder.delete(key)
    assert raybasin.run(copied.plan.spec, copied.folder.root).complete
    assert trainings == [0.02]
    assert untimed(copied.members()[member_id]) == untimed(before)


def test_members_that_no_open_cell_needs_are_not_wanted(copied, trainings):
    for member_id in copied.plan.members:
        copied.folder.delete(f"members/{member_id}.parquet")
    assert raybasin.run(copied.plan.spec, copied.folder.root).complete
    assert trainings == []


def test_other_evaluation_settings_train_nothing_and_predict_again(copied, trainings):
    """More images for batch norm change every re-estimated score and no weights."""
    report = raybasin.run(tiny.spec(basin__bn_images=40, methods={"sse": {"n_members": 3}}), copied.folder.root)
    assert report.complete and not report.failures
    assert trainings == []
    other = tiny.Sweep(copied.folder, report.plan)
    assert set(other.plan.members) < set(copied.plan.members)
    member_id = copied.cell("sse").member_ids[1]
    old, new = (read_predictions(copied.folder, member_id, made.eval_id) for made in (copied.plan, report.plan))
    np.testing.assert_array_equal(old["val", "own"].log_probs_NC, new["val", "own"].log_probs_NC)
    assert (old["val", "reestimated"].log_probs_NC != new["val", "reestimated"].log_probs_NC).any()
    assert_keys_are_unique(copied.folder)


def test_paths_that_other_settings_measured_are_taken_over_as_ones_own(copied, points):
    """`soups` is in the settings and not in a path: its rows are copied under the new cell and settings."""
    methods = {"sse": {"n_members": 3}, "star_sse": {"n_members": 2}}
    report = raybasin.run(tiny.spec(name="other", soups=["uniform"], methods=methods), copied.folder.root)
    assert report.complete and points == []
    own = report.plan.settings_id
    assert own != copied.plan.settings_id
    rows = [row for row in copied.rows("paths") if row["cell_id"] in report.plan.cell]
    assert len(rows) == sum(len(cell.paths) for cell in report.plan.cells) * 3
    assert {(row["settings_id"], row["sweep"]) for row in rows} == {(own, "other")}
    found = raybasin.open(copied.folder.root, settings=own)
    assert set(found.paths["cell_id"]) == set(found.cells["cell_id"]) == set(report.plan.cell)


def test_a_run_that_is_cut_off_goes_on_from_its_last_epoch_to_the_same_bits(copied, monkeypatch):
    member_id = copied.cell("star_sse", 4.0).member_ids[-1]
    before = copied.members()[member_id]
    copied.folder.delete(f"members/{member_id}.parquet")
    often = tiny.context(copied.folder.root, tiny.spec(recipe__checkpoint_seconds=0))
    member = often.plan.members[member_id]

    steps = []

    def die(images):
        steps.append("step")
        if len(steps) == 3:  # in the second epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_members.train_member(member, None, dataclasses.replace(often, beat=die))
    assert to_go_on_from(copied.folder) == [f"member-{member_id}.safetensors"]
    snapshot = loop.snapshot_from_bytes(copied.folder.get(f"state/member-{member_id}.safetensors"))
    assert [epoch.epoch for epoch in snapshot.done.epochs] == [0]

    seen = []
    train = loop.train

    def spy(*args, resume=None, **kwargs):
        seen.append(resume is not None and len(resume.done.epochs))
        return train(*args, resume=resume, **kwargs)

    monkeypatch.setattr(loop, "train", spy)
    train_members.train_member(member, None, often)
    assert seen == [1]
    assert untimed(copied.members()[member_id]) == untimed(before)
    assert to_go_on_from(copied.folder) == []


def test_a_worker_that_comes_second_keeps_what_the_first_left(copied, trainings):
    """It finds weights and epochs in the state folder, and does not train."""
    member_id = copied.cell("sse").member_ids[-1]
    before = copied.members()[member_id]
    epochs = [row for row in copied.rows("epochs") if row["member_id"] == member_id]
    trained = loop.Trained(
        tuple(loop.Epoch(*(row[key] for key in ("epoch", "lr", "train_loss", "train_error"))) for row in epochs),
        before["train_seconds"],
    )
    left = {"sha256": before["weights_sha256"], "trained": train_members.asdict(trained)}
    copied.folder.delete(f"members/{member_id}.parquet")
    copied.folder.put_new(f"state/member-{member_id}.json", json.dumps(left).encode())
    again = tiny.context(copied.folder.root, copied.plan.spec)
    train_members.train_member(again.plan.members[member_id], None, again)
    assert trainings == []
    assert untimed(copied.members()[member_id]) == untimed(before)
    assert to_go_on_from(copied.folder) == []


def test_jobs_done_twice_leave_everything_as_it_is(finished, context, trainings, points):
    before = files(finished.folder)
    cell = finished.cell("star_sse")
    for task in (
        Training(finished.plan.members[cell.member_ids[1]]), PathMeasurement(cell.cell_id, cell.point, cell.paths[0]),
        Pretraining(finished.plan.facts.checkpoints[0]), Closing(cell),
    ):  # fmt: skip
        execution.run(Job(task, 1.0), context)
    assert (trainings, points) == ([], [])
    assert files(finished.folder) == before


@pytest.mark.parametrize("version", [1, 3])
def test_a_folder_of_another_version_is_refused_in_a_line_that_says_what_to_do(copied, version, tmp_path):
    key = f"sweeps/{copied.plan.settings_id}.yaml"
    now = copied.folder.get(key).decode()
    line = "" if version == 1 else f"results_version: {version}\n"  # it was not there at first
    copied.folder.put(key, now.replace("results_version: 2\n", line).encode())
    said = rf"yaml: was written by raybasin .* of version {version}, and this raybasin has version 2.*--results"
    with pytest.raises(UserError, match=said):
        raybasin.open(copied.folder.root)
    with pytest.raises(UserError, match=said):
        raybasin.run(copied.plan.spec, copied.folder.root)
    with pytest.raises(UserError, match=said):
        integrity.check(copied.folder)
    with pytest.raises(UserError, match=said):
        integrity.compact(copied.folder, tmp_path / "few")
    assert not (tmp_path / "few").exists()
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(yaml.safe_dump(tiny.tree()))
    with pytest.raises(UserError, match=said):
        cli._print_plan(specs.load(sweep), str(copied.folder.root))


def test_a_sweep_file_whose_version_cannot_be_read_is_damaged_and_of_no_version(copied):
    key = f"sweeps/{copied.plan.settings_id}.yaml"
    copied.folder.put(key, copied.folder.get(key).replace(b"results_version: 2", b"results_version: two"))
    with pytest.raises(UserError, match="is damaged: its results_version is not 2"):
        inventory.stored_plan(copied.folder, copied.plan.settings_id)
    assert [problem.key for problem in integrity.check(copied.folder)] == [key]


# Failures


def test_a_job_that_raises_fails_its_cells_alone_and_the_next_run_does_the_rest(copied, monkeypatch):
    wider = tiny.spec(methods={"star_sse": {"n_members": 3, "lr_ratio": [1, 2, 4]}, "local_de": {"n_members": 3}})
    train = loop.train

    def failing(net, images_NHWC, labels_N, cycle, *args, **kwargs):
        if cycle.max_lr == 0.04:
            raise loop.Diverged("training loss is nan")
        return train(net, images_NHWC, labels_N, cycle, *args, **kwargs)

    copied.folder.delete(f"cells/{copied.cell('star_sse', 4.0).cell_id}.parquet")
    monkeypatch.setattr(loop, "train", failing)
    report = raybasin.run(wider, copied.folder.root)
    assert not report.complete and report.committed == 3
    (failure,) = report.failures
    assert (failure.cell.point.method, failure.cell.point.lr_ratio) == ("star_sse", 2.0)
    first = failure.cell.member_ids[1]
    assert failure.reason == f"member 1 ({first}): Diverged: training loss is nan"
    (row,) = copied.rows("failures")
    assert (row["unit_id"], row["reason"], row["tries"]) == (failure.cell.cell_id, failure.reason, 1)
    assert (row["settings_id"], row["method"], row["lr_ratio"]) == (report.plan.settings_id, "star_sse", 2.0)
    assert tables.exists(copied.folder, "cells", copied.cell("star_sse", 4.0).cell_id)

    monkeypatch.setattr(loop, "train", train)
    report = raybasin.run(wider, copied.folder.root)
    assert report.complete and report.failures == ()
    assert len(copied.rows("failures")) == 1


def test_a_hub_that_fails_takes_all_cells_of_its_replicate_with_it(copied, monkeypatch):
    def failing(*args, **kwargs):
        raise loop.Diverged("training loss is nan")

    monkeypatch.setattr(loop, "train", failing)
    spec = tiny.spec(seed=1, replicates=2, methods={"sse": {"n_members": 2}, "local_de": {"n_members": 2}})
    report = raybasin.run(spec, copied.folder.root)
    assert report.committed == 0 and len(report.failures) == 4
    for failure in report.failures:
        assert failure.reason == f"hub ({failure.cell.member_ids[0]}): Diverged: training loss is nan"
    assert sorted(row["unit_id"] for row in copied.rows("failures")) == sorted(report.plan.cell)


def test_a_job_that_raises_once_is_done_in_the_end(copied, monkeypatch):
    lost = copied.cell("star_sse", 4.0).cell_id
    copied.folder.delete(f"cells/{lost}.parquet")
    close, told = execution.close_cell, []

    def fails_once(*args):
        monkeypatch.setattr(execution, "close_cell", close)
        raise OSError("the disk has stumbled")

    monkeypatch.setattr(execution, "close_cell", fails_once)
    report = raybasin.run(tiny.spec(), copied.folder.root, tell=told.append)
    assert report.complete and not report.failures
    assert told[0] == f"to be tried once more: cell {lost}: OSError: the disk has stumbled"


def test_the_end_of_the_traceback_stands_beside_the_reason(copied, monkeypatch):
    copied.folder.delete(f"cells/{copied.cell('star_sse', 4.0).cell_id}.parquet")

    def deep(depth):
        if depth:
            deep(depth - 1) if depth % 2 else other(depth - 1)
        raise OSError("bad\x07 sector")

    def other(depth):
        deep(depth)

    monkeypatch.setattr(execution, "close_cell", lambda *args: deep(200))
    report = raybasin.run(tiny.spec(), copied.folder.root)
    (row,) = copied.rows("failures")
    assert row["reason"].endswith("OSError: bad sector") and row["tries"] == 2
    text = row["traceback"]
    assert text == report.failures[0].traceback and len(text) == 4096 and text.startswith("...")
    assert text.endswith("OSError: bad  sector") and 'test_jobs.py", line' in text
    assert text.replace("\n", "").isprintable() and os.path.dirname(__file__) not in text


def test_failures_of_before_there_were_tracebacks_are_read(copied, monkeypatch):
    monkeypatch.setattr(execution, "close_cell", lambda *args: 1 / 0)
    copied.folder.delete(f"cells/{copied.cell('star_sse', 4.0).cell_id}.parquet")
    raybasin.run(tiny.spec(), copied.folder.root)
    (name,) = copied.folder.names("failures")
    path = copied.folder.root / "failures" / name
    pq.write_table(pq.read_table(path).drop(["traceback"]), path)
    (row,) = copied.rows("failures")
    assert row["traceback"] is None and "ZeroDivisionError" in row["reason"]


def test_a_device_that_does_not_compute_is_refused_before_anything_starts(tmp_path):
    for device in ("cuda:77", "no such device"):
        with pytest.raises(UserError, match=f"^device {device}: cannot be used"):
            raybasin.run(tiny.spec(), tmp_path / "r", device=device)
    assert not (tmp_path / "r").exists()


def test_a_device_that_computes_no_more_ends_the_run_and_marks_no_cell_as_failed(copied, monkeypatch):
    copied.folder.delete(f"cells/{copied.cell('star_sse', 4.0).cell_id}.parquet")
    copied.folder.delete(f"cells/{copied.cell('sse').cell_id}.parquet")

    def ruins(*args):
        monkeypatch.setattr(execution, "prove", broken)
        raise IndexError("an index is out of bounds")

    def broken(device):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(execution, "close_cell", ruins)
    report = raybasin.run(tiny.spec(), copied.folder.root)
    assert not report.complete and not report.failures
    assert report.ended == (
        "cpu does not compute any more (CUDA error: device-side assert triggered); the same call in a new process "
        "continues"
    )


def damaged(folder, sha256):
    path = folder.root / f"weights/{sha256}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_weights_of_which_one_bit_has_changed_are_not_used(copied):
    cell = copied.cell("sse")
    sha256 = copied.members()[cell.member_ids[-1]]["weights_sha256"]
    damaged(copied.folder, sha256)
    copied.folder.delete(f"cells/{cell.cell_id}.parquet")
    report = raybasin.run(copied.plan.spec, copied.folder.root)
    (failure,) = report.failures
    assert failure.cell.cell_id == cell.cell_id
    assert f"weights/{sha256}.safetensors is damaged" in failure.reason
    assert report.committed == 3


def test_bad_input_is_found_before_the_results_folder_is_made(tmp_path):
    for changes in ({"model__name": "test_resnt"}, {"data__classes": [5, 77]}, {"model__pretrained": ["none.pth"]}):
        with pytest.raises(UserError):
            raybasin.run(tiny.tree(**changes), tmp_path / "results")
    assert not (tmp_path / "results").exists()


# What the tables say


def assert_keys_are_unique(folder):
    for table, key in KEYS.items():
        keys = tables.read(folder, table).select(list(key)).to_pylist()
        assert len({tuple(row.values()) for row in keys}) == len(keys), table
        assert all(value is not None for row in keys for value in row.values()), table


def test_keys_are_unique_in_every_table(finished):
    assert_keys_are_unique(finished.folder)
    counts = {table: len(finished.rows(table)) for table in SCHEMAS}
    # Eight networks; four cells of 3 paths with 3 points; 110 images under two statistics, and three soups a cell, of
    # which one is that of two cells.
    assert counts == {
        "cells": 4, "members": 8, "epochs": 16, "paths": 36, "scores": 4 * (2 * 2 * (3 + 3) + 2 * 3),
        "predictions": 110 * (2 * 8 + 3 * 4 - 1), "failures": 0, "checkpoints": 1,
        "traces": 0, "planes": 0, "points": 0,
    }  # fmt: skip


def test_every_row_says_where_it_belongs(finished):
    explored = {"star_sse", "sse", "local_de"}
    methods = {"cells": explored, "paths": explored, "scores": explored, "members": {"hub", *explored},
               "epochs": {"hub", *explored}, "predictions": {"hub", *explored}}  # fmt: skip
    for table, expected in methods.items():
        rows = tables.read(finished.folder, table).select(list(COMMON)).to_pylist()
        assert all(value is not None for row in rows for value in row.values()), table
        assert {row["settings_id"] for row in rows} == {finished.plan.settings_id}
        assert {row["sweep"] for row in rows} == {"tiny"}
        assert {row["method"] for row in rows} == expected


def to_go_on_from(folder):
    """What is in the state folder but for the choices of soups, which cells that share them go on to use."""
    return [name for name in folder.names("state") if not name.startswith("soup-")]


def test_nothing_to_go_on_from_is_left_in_the_end(finished):
    assert to_go_on_from(finished.folder) == []


def scores_of(finished, cell):
    """The scores of a cell by predictor, split and statistics."""
    return {
        (row["predictor_id"], row["split"], row["bn"]): row
        for row in finished.rows("scores")
        if row["cell_id"] == cell.cell_id
    }


@pytest.mark.parametrize("method", ["star_sse", "sse", "local_de"])
def test_the_ends_of_every_path_are_the_members_stored_scores(finished, method):
    cell = finished.cell(method)
    scores = scores_of(finished, cell)
    paths = [row for row in finished.rows("paths") if row["cell_id"] == cell.cell_id]
    for path in cell.paths:
        points = {row["t"]: row for row in paths if row["path_id"] == path.path_id}
        assert sorted(points) == [0.0, 0.5, 1.0]
        for t, member_id in ((0.0, path.start_id), (1.0, path.end_id)):
            score = scores[member_id, "val", "reestimated"]
            assert points[t]["nll"] == score["nll"]
            assert points[t]["error"] == pytest.approx(1 - score["accuracy"], abs=1e-12)
            assert points[t]["error_excess"] == 0
            assert (points[t]["images"], points[t]["bn_images"]) == (60, 20)


def test_a_path_starts_at_the_hub_at_t_0(finished):
    """Trap: a path that steps before it measures has no start."""
    for cell in finished.plan.cells:
        own = [row for row in finished.rows("paths") if row["cell_id"] == cell.cell_id]
        spokes = [row for row in own if row["kind"] == "hub-member"]
        hub = scores_of(finished, cell)[cell.member_ids[0], "val", "reestimated"]
        starts = [row for row in spokes if row["t"] == 0]
        assert [row["start_id"] for row in starts] == [cell.member_ids[0]] * 2
        assert [row["nll"] for row in starts] == [hub["nll"]] * 2


def test_the_middle_of_a_path_is_the_average_with_new_statistics(finished, context):
    """Trap: interpolated statistics are silently bad. Computed again here from the stored weights."""
    cell = finished.cell("star_sse", 4.0)
    path = cell.paths[0]
    rows = finished.members()
    start, end = (
        models.from_bytes(finished.folder.get(f"weights/{rows[m]['weights_sha256']}.safetensors"))
        for m in (path.start_id, path.end_id)
    )
    net = models.build(NET, 5, seed=0).to(memory_format=torch.channels_last)
    middle = {
        key: ((tensor.double() + end[key].double()) / 2).to(tensor.dtype) if tensor.is_floating_point() else tensor
        for key, tensor in start.items()
    }
    images_NHWC, labels_N = context.splits["val"]

    def nll():
        return classification.nll(evaluation.log_probs(net, images_NHWC, context.preprocess), labels_N.numpy())

    net.load_state_dict(middle)
    with_old_statistics = nll()
    batch_norm.reestimate(net, evaluation.batches(context.bn_images_NHWC, context.preprocess))
    (stored,) = [
        row["nll"] for row in finished.rows("paths")
        if (row["cell_id"], row["path_id"], row["t"]) == (cell.cell_id, path.path_id, 0.5)
    ]  # fmt: skip
    assert stored == nll()
    assert stored != pytest.approx(with_old_statistics, rel=1e-6)
    assert len(context.bn_images_NHWC) == 20


def test_images_that_are_prepared_once_are_what_each_pass_would_prepare(context, monkeypatch):
    images_NHWC, _ = context.splits["val"]
    prepared = context.shown("val", images_NHWC)
    assert isinstance(prepared, evaluation.Prepared) and prepared is context.shown("val", images_NHWC)
    seen = []
    kept = list(evaluation.batches(prepared, context.preprocess, seen.append))
    anew = list(evaluation.batches(images_NHWC, context.preprocess))
    assert all(torch.equal(one, other) for one, other in zip(kept, anew, strict=True))
    assert sum(seen) == len(prepared) == len(images_NHWC)
    monkeypatch.setattr(worker_context, "PREPARED_BYTES", 10)
    assert context.shown("test", images_NHWC) is images_NHWC


def test_soups_are_kept_with_new_statistics_and_score_as_stored(finished, context):
    cell = finished.cell("star_sse", 4.0)
    (row,) = [row for row in finished.rows("cells") if row["cell_id"] == cell.cell_id]
    members = finished.members()
    net = models.build(NET, 5, seed=0).to(memory_format=torch.channels_last)
    soup = models.from_bytes(finished.folder.get(f"weights/{row['soup_sha256']}.safetensors"))
    net.load_state_dict(soup)
    images_NHWC, labels_N = context.splits["test"]
    log_probs_NC = evaluation.log_probs(net, images_NHWC, context.preprocess)
    assert classification.accuracy(log_probs_NC, labels_N.numpy()) == row["soup_accuracy"]
    assert classification.nll(log_probs_NC, labels_N.numpy()) == row["soup_nll"]
    states = [
        models.from_bytes(finished.folder.get(f"weights/{members[m]['weights_sha256']}.safetensors"))
        for m in cell.member_ids
    ]
    for name in (name for name, _ in net.named_parameters()):
        mean = sum(state[name].double() for state in states) / 3
        assert torch.equal(soup[name], mean.float()), name


def test_a_greedy_soup_is_chosen_on_validation_and_never_worse_there_than_its_best_member(finished):
    for row in finished.rows("cells"):
        cell = finished.plan.cell[row["cell_id"]]
        scores = scores_of(finished, cell)
        on_val = [scores[m, "val", "reestimated"] for m in cell.member_ids]
        chosen = row["greedy_soup_members"]
        best = max(on_val, key=lambda score: (score["accuracy"], -score["nll"]))
        assert chosen[0] == best["predictor_id"] and set(chosen) <= set(cell.member_ids)
        greedy = scores[ids.soup_id("greedy", cell.member_ids), "val", "reestimated"]
        assert greedy["accuracy"] >= best["accuracy"]
        assert (greedy["accuracy"] > best["accuracy"]) == (len(chosen) > 1)
        assert greedy["n_members"] == len(chosen)


@pytest.mark.parametrize("bn", ["own", "reestimated"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_an_ensemble_of_one_is_the_hub(finished, split, bn):
    for cell in finished.plan.cells:
        scores = scores_of(finished, cell)
        hub = scores[cell.member_ids[0], split, bn]
        one = scores[cell_scores.ensemble_id(cell.member_ids[:1]), split, bn]
        assert untimed({**one, "predictor_id": "", "kind": ""}) == untimed({**hub, "predictor_id": "", "kind": ""})


def test_an_ensemble_averages_probabilities_of_the_first_members(finished):
    cell = finished.cell("sse")
    scores = scores_of(finished, cell)
    for size in (2, 3):
        blocks = [
            read_predictions(finished.folder, m, finished.plan.eval_id)["test", "own"] for m in cell.member_ids[:size]
        ]
        probabilities_NC = np.mean([np.exp(b.log_probs_NC.astype(np.float64)) for b in blocks], axis=0)
        labels_N = blocks[0].labels_N
        row = scores[cell_scores.ensemble_id(cell.member_ids[:size]), "test", "own"]
        assert row["accuracy"] == np.mean(probabilities_NC.argmax(1) == labels_N)
        assert row["nll"] == pytest.approx(-np.log(probabilities_NC[np.arange(50), labels_N]).mean(), rel=1e-6)
        assert row["n_members"] == size


def test_temperature_is_fitted_on_validation_and_so_says_nothing_there(finished):
    """Trap: selection on the split that is reported."""
    for row in finished.rows("scores"):
        assert math.isnan(row["calibrated_nll"]) == (row["split"] == "val")
    for cell in finished.plan.cells:
        scores = scores_of(finished, cell)
        for (predictor_id, _, bn), row in scores.items():
            assert row["temperature"] == scores[predictor_id, "val", bn]["temperature"]


def test_the_row_of_a_cell_is_what_its_scores_and_paths_say(finished):
    members = finished.members()
    for row in finished.rows("cells"):
        cell = finished.plan.cell[row["cell_id"]]
        scores = scores_of(finished, cell)
        own = [scores[m, "test", "own"]["accuracy"] for m in cell.member_ids]
        whole = scores[cell_scores.ensemble_id(cell.member_ids), "test", "own"]
        assert (row["hub_id"], row["hub_accuracy"]) == (cell.member_ids[0], own[0])
        assert row["member_accuracy"] == pytest.approx(sum(own) / 3)
        assert (row["ensemble_accuracy"], row["ensemble_nll"]) == (whole["accuracy"], whole["nll"])
        assert row["n_members"] == 3 and row["train_epochs"] == 6.0
        assert row["train_seconds"] == pytest.approx(sum(members[m]["train_seconds"] for m in cell.member_ids))
        spokes = [p for p in finished.rows("paths") if p["cell_id"] == cell.cell_id and p["kind"] == "hub-member"]
        middles = [p["error_excess"] for p in spokes if p["t"] == 0.5]
        assert row["barrier_error"] == pytest.approx(max(0.0, *middles), abs=1e-12)
        assert row["in_basin"] == (row["barrier_error"] <= 0.02)
        assert row["rise_error"] >= 0


def test_scores_computed_again_from_stored_predictions_are_those_stored(finished):
    cells = {row["cell_id"]: row for row in finished.rows("cells")}
    for cell in finished.plan.cells:
        row, members = cells[cell.cell_id], cell.member_ids
        soups = [
            cell_scores.Soup("uniform", ids.soup_id("uniform", members[:2]), members[:2]),
            cell_scores.Soup("uniform", ids.soup_id("uniform", members), members, row["soup_sha256"]),
            cell_scores.Soup("greedy", ids.soup_id("greedy", members), tuple(row["greedy_soup_members"]), "any"),
        ]
        assert [soup.predictor_id for soup in soups] == [soup.predictor_id for soup in cell_scores.soups_of(row)]
        predictions = stored_predictions(finished.folder, dict.fromkeys(("val", "test"), finished.plan.eval_id), True)
        again = cell_scores.score_rows(cell.cell_id, cell.member_ids, soups, predictions)
        stored = scores_of(finished, cell)
        assert len(again) == len(stored)
        for found in again:
            expected = stored[found["predictor_id"], found["split"], found["bn"]]
            assert untimed(found) == untimed({key: expected[key] for key in found})


def test_a_sound_folder_passes_its_own_checks(finished):
    assert integrity.check(finished.folder) == []


def test_log_probs_are_those_of_the_members_hub_first(finished):
    cell = finished.cell("star_sse", 4.0)
    found = raybasin.log_probs(raybasin.open(finished.folder.root), cell.cell_id, "test")
    assert found.shape == (3, 50, 5)
    for m, member_id in enumerate(cell.member_ids):
        block = read_predictions(finished.folder, member_id, finished.plan.eval_id)["test", "own"]
        np.testing.assert_array_equal(found[m], block.log_probs_NC)


def test_the_resolved_sweep_file_gives_the_same_plan_back(finished):
    assert inventory.stored_plan(finished.folder, finished.plan.settings_id) == finished.plan


def test_data_of_the_splits_are_disjoint_and_as_many_as_asked_for(context):
    counts = {name: len(labels_N) for name, (_, labels_N) in context.splits.items()}
    assert counts == {"val": 60, "test": 50} and len(context.train[1]) == 40
    # Digits hold a few images twice over, but none in the same place of the data set.
    seen = [images_NHWC.flatten(1).numpy().tobytes() for images_NHWC, _ in (context.train, *context.splits.values())]
    assert len(set(seen)) == 3


# The same bits elsewhere


def test_a_fresh_run_in_another_order_has_the_same_bits(finished, tmp_path):
    """Two of the methods, the last first: every network they share is equal to the byte, and so are its scores."""
    methods = {"local_de": {"n_members": 3}, "star_sse": {"n_members": 3, "lr_ratio": [4]}}
    report = raybasin.run(tiny.spec(methods=methods), tmp_path)
    assert report.complete
    fresh = tiny.Sweep(folders.Folder(tmp_path), report.plan)
    mine, theirs = fresh.members(), finished.members()
    assert len(mine) == 5 and set(mine) < set(theirs)
    assert {m: row["weights_sha256"] for m, row in mine.items()} == {m: theirs[m]["weights_sha256"] for m in mine}
    for cell in fresh.plan.cells:
        old, new = scores_of(finished, cell), scores_of(fresh, cell)
        assert {key: untimed(row) for key, row in new.items()} == {key: untimed(row) for key, row in old.items()}
    cells = {row["cell_id"]: untimed(row) for row in finished.rows("cells")}
    assert all(cells[row["cell_id"]] == untimed(row) for row in fresh.rows("cells"))


def test_replicates_have_hubs_of_their_own(copied):
    report = raybasin.run(tiny.spec(replicates=2, methods={"star_sse": {"n_members": 2}}), copied.folder.root)
    assert report.complete
    hubs = {cell.point.replicate: cell.member_ids[0] for cell in report.plan.cells}
    rows = copied.members()
    assert rows[hubs[0]]["weights_sha256"] != rows[hubs[1]]["weights_sha256"]
    assert rows[hubs[0]]["parent_sha256"] == rows[hubs[1]]["parent_sha256"]


def test_a_checkpoint_file_is_put_with_the_results_and_hubs_start_from_it(copied, tmp_path):
    """A file with another head; what is kept is its body, under its own hash."""
    path = tmp_path / "given.safetensors"
    path.write_bytes(models.to_bytes(models.build(NET, 9, seed=4).state_dict()))
    results = tmp_path / "results"
    report = raybasin.run(tiny.spec(model__pretrained=[str(path)], methods={"sse": {"n_members": 2}}), results)
    assert report.complete
    (cell,) = report.plan.cells
    body = states.body_of(models.build(NET, 9, seed=4), NET)
    sha256 = models.sha256(models.to_bytes(body))
    assert (cell.point.checkpoint.name, cell.point.checkpoint.key) == (f"given-{sha256[:8]}", sha256)
    fresh = tiny.Sweep(folders.Folder(results), report.plan)
    assert fresh.members()[cell.member_ids[0]]["parent_sha256"] == sha256
    assert fresh.rows("checkpoints") == []
    path.unlink()
    shutil.move(results, tmp_path / "moved")
    assert raybasin.open(tmp_path / "moved").cells["cell_id"].tolist() == [cell.cell_id]


def test_seeds_in_the_tables_are_those_of_the_plan(finished):
    for member_id, row in finished.members().items():
        member = finished.plan.members[member_id]
        assert row["seed"] == member.seed == ids.random_seed(0, 0, row["member_index"])


# The other methods

OTHERS = {
    "tree": {"n_members": 4, "chain": 2}, "fge": {"n_members": 3}, "csgld": {"n_members": 3},
    "swag": {"n_members": 4, "cycle_ratio": 2, "collect_steps": 1}, "global_de": {"n_members": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """The tiny sweep with the other methods, from two checkpoints."""
    tree = tiny.tree(methods=OTHERS)
    second = {"pretrain": {**tree["model"]["pretrained"][0]["pretrain"], "seed": 1}}
    tree["model"]["pretrained"].append(second)
    root = tmp_path_factory.mktemp("others")
    report = raybasin.run(tree, root)
    assert report.complete and not report.failures
    return tiny.Sweep(folders.at(root), report.plan)


def test_all_methods_leave_a_whole_folder_whose_scores_can_be_computed_again(others):
    assert integrity.check(others.folder) == []
    opened = raybasin.open(others.folder.root)
    assert set(opened.cells["method"]) == {*OTHERS, "swag collect_steps=1"} - {"swag"}
    cells = opened.cells.to_dict("records")
    again = rescore(others.folder, cells, opened.facts["eval_id"])
    assert again.figures > 500 and again.differences == ()


def test_cells_cost_what_the_plan_says(others):
    for row in others.rows("cells"):
        assert row["train_epochs"] == others.plan.train_epochs(others.plan.cell[row["cell_id"]])


def test_draws_of_swag_have_no_training_of_their_own_and_come_from_the_moments_of_the_tail(others):
    rows = others.members()
    hub, *draws = others.cell("swag").member_ids
    tail = rows[rows[draws[0]]["parent_id"]]
    assert (tail["kind"], tail["member_index"], tail["parent_id"], tail["cycle_steps"]) == ("tail", None, hub, 8)
    moments = swag.from_tensors(models.from_bytes(others.folder.get(f"weights/{tail['moments_sha256']}.safetensors")))
    assert moments.count == 8
    mean = models.from_bytes(others.folder.get(f"weights/{tail['weights_sha256']}.safetensors"))
    torch.testing.assert_close(mean["fc.weight"], moments.mean["fc.weight"].float())
    for draw in draws:
        row = rows[draw]
        assert (row["kind"], row["train_seconds"], row["cycle_epochs"]) == ("sample", 0.0, 0.0)
        assert row["final_train_loss"] is None and not tables.exists(others.folder, "epochs", draw)
        weights = models.from_bytes(others.folder.get(f"weights/{row['weights_sha256']}.safetensors"))
        expected = swag.sample(moments, 0.5, ids.random_seed(row["seed"], "swag"))
        assert torch.equal(weights["fc.weight"], expected["fc.weight"])


def test_batch_norm_of_a_draw_is_re_estimated(others):
    predictions = read_predictions(others.folder, others.cell("swag").member_ids[1], others.plan.eval_id)
    np.testing.assert_allclose(
        predictions["test", "own"].log_probs_NC, predictions["test", "reestimated"].log_probs_NC, rtol=1e-5, atol=1e-5
    )


def test_fge_ends_every_cycle_at_its_lowest_rate_and_the_tail_of_swag_has_one_rate(others):
    epochs = {}
    for row in others.rows("epochs"):
        epochs.setdefault(row["method"], set()).add(row["lr"])
    assert epochs["swag"] == {0.02}
    # The first steps of its two epochs of two steps lie a quarter and three quarters up and down the triangle.
    assert list(epochs["fge"]) == [pytest.approx(0.02 * (0.01 + 0.99 * 0.5))]


def test_noise_makes_csgld_another_network_than_sse(finished, others):
    chain, noisy = finished.cell("sse").member_ids, others.cell("csgld").member_ids
    assert chain[0] == noisy[0]
    assert finished.members()[chain[1]]["weights_sha256"] != others.members()[noisy[1]]["weights_sha256"]


def test_global_de_takes_its_members_from_both_checkpoints(others):
    rows = others.members()
    for cell in (c for c in others.plan.cells if c.point.method == "global_de"):
        first, second = (rows[member_id] for member_id in cell.member_ids)
        assert first["parent_sha256"] != second["parent_sha256"]
        assert first["checkpoint"] == cell.point.checkpoint.name != second["checkpoint"]


def test_a_lost_draw_is_drawn_again_to_the_same_bits(others, tmp_path, trainings):
    shutil.copytree(others.folder.root, tmp_path / "copy")
    folder = folders.at(tmp_path / "copy")
    cell = others.cell("swag")
    before = others.members()[cell.member_ids[2]]
    for key in (f"members/{before['member_id']}.parquet", f"weights/{before['weights_sha256']}.safetensors",
                f"cells/{cell.cell_id}.parquet"):  # fmt: skip
        folder.delete(key)
    assert raybasin.run(others.plan.spec, folder.root).complete
    assert untimed(tables.row(folder, "members", before["member_id"])) == untimed(before)
    assert trainings == []
