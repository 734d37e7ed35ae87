"""When a cycle leaves the basin: where it is looked at, what is measured there, and what follows from it."""

import dataclasses
import math
import shutil
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import synthetic
import tiny
import torch
from typer.testing import CliRunner

import raybasin
from raybasin import cli, console
from raybasin.analysis import drawing, figures, integrity, maps, report
from raybasin.analysis.rescore import rescore
from raybasin.analysis.results import Results
from raybasin.errors import UserError
from raybasin.jobs import local, train_members
from raybasin.landscape import basin_exits
from raybasin.store import inventory, tables
from raybasin.store.folders import Folder
from raybasin.store.schemas import COMMON, KEYS
from raybasin.sweep import plan, schedules
from raybasin.sweep.criterion import Criterion
from raybasin.sweep.job_list import Done, jobs_left
from raybasin.sweep.plan import Trace
from raybasin.training import evaluation, loop, models

# Where to look


def test_at_a_constant_rate_the_times_are_squares():
    assert schedules.trace_steps(64, 8, 4, shape="constant") == (4, 16, 36, 64)


@pytest.mark.parametrize("shape", ["cosine", "triangular"])
def test_a_time_is_the_first_step_after_which_the_rates_so_far_have_their_share(shape):
    rates = [schedules.learning_rate(s, 100, 10, 0.3, shape=shape, low_ratio=0.1) for s in range(100)]
    found = schedules.trace_steps(100, 10, 5, shape=shape, low_ratio=0.1)
    assert len(found) == 5 and found[-1] == 100
    for k, step in enumerate(found[:-1], start=1):
        wanted = (k / 5) ** 2 * sum(rates)
        assert sum(rates[:step]) >= wanted > sum(rates[: step - 1])


def test_early_times_are_closer_together_where_the_rate_is_highest_there():
    gaps = [b - a for a, b in pairwise((0, *schedules.trace_steps(1000, 100, 8)))]
    assert gaps == sorted(gaps) and gaps[0] < 10


@pytest.mark.parametrize(("steps", "times"), [(1, 8), (2, 8), (3, 8), (4, 1), (7, 100)])
def test_a_short_cycle_is_looked_at_after_each_of_its_steps_at_most(steps, times):
    found = schedules.trace_steps(steps, 2, times)
    assert found[-1] == steps and list(found) == sorted(set(found)) and found[0] >= 1
    if times == 100:
        assert found == tuple(range(1, steps + 1))


# When it has left


def traced_step(height, step=1, before=0, origin="hub", run="m"):
    return basin_exits.TracedStep(run, origin, step, before + step, (before + step) / 10, height, height)


IN, AT, OUT = 0.01, 0.02, 0.03
BY_ERROR = Criterion(0.02)


@pytest.mark.parametrize(
    ("heights", "left_at"),
    [
        ([IN, IN, IN], None), ([IN, OUT, OUT], 2), ([OUT, OUT, OUT], 1), ([OUT, IN, OUT], 3), ([OUT, OUT, IN], None),
        ([IN, IN, OUT], 3), ([OUT, OUT, AT], None), ([AT, AT, OUT], 3), ([OUT], 1),
    ],
)  # fmt: skip
def test_a_run_has_left_where_it_stays_outside_to_its_end(heights, left_at):
    run = [traced_step(height, step) for step, height in enumerate(heights, start=1)]
    found = basin_exits.exit_of(run[::-1], BY_ERROR)
    assert (found.step if found else None) == left_at


def path(member_id, origin, step, height, before=0, cell_id="cell", **more):
    """The rows of a path of three points with an error barrier of `height` (and one of twice that in nats)."""
    rows = [
        {
            "cell_id": cell_id, "trace_id": f"t-{member_id}", "hub_id": "hub", "member_id": member_id, "origin": origin,
            "step": step, "steps_from_hub": before + step if member_id != "hub" else 0,
            "epochs_from_hub": (before + step) / 10 if member_id != "hub" else 0.0, "split": split, "t": t,
            "error": (0.1 + 0.2 * t + height * (t == 0.5)) if split == "val" else 0.9,
            "nll": 1.0 - t + 2 * height * (t == 0.5), "images": 10, "bn_images": 10,
        }
        for split in ("val", "test")
        for t in (1.0, 0.0, 0.5)
    ]  # fmt: skip
    return [{**row, **more} for row in rows]


def test_traced_steps_have_the_barriers_of_their_paths_on_validation():
    found = basin_exits.traced_steps([*path("b", "hub", 20, 0.25), *path("b", "hub", 3, 0.0)])
    assert [(m.step, m.epochs_from_hub) for m in found] == [(3, 0.3), (20, 2.0)]
    assert [m.barrier_error for m in found] == pytest.approx([0.0, 0.25])
    assert [m.barrier_nll for m in found] == pytest.approx([0.0, 0.5])


def test_nothing_follows_from_no_traces():
    assert basin_exits.summary([], BY_ERROR) == dict.fromkeys(basin_exits.COLUMNS)


def test_a_cell_has_left_when_the_first_of_its_runs_has():
    rows = path("hub", "checkpoint", 100, 0.01)
    for member_id, heights in (("a", (IN, IN, OUT)), ("b", (IN, OUT, OUT)), ("c", (OUT, OUT, IN))):
        for step, height in zip((1, 4, 9), heights, strict=True):
            rows += path(member_id, "hub", step, height) + path(member_id, "checkpoint", step, IN)
    assert basin_exits.summary(rows, BY_ERROR) == {
        "exit_step": 4, "exit_epochs": 0.4, "checkpoint_exit_step": None, "checkpoint_exit_epochs": None,
        "checkpoint_barrier_nll": pytest.approx(0.02), "checkpoint_barrier_error": pytest.approx(0.01),
    }  # fmt: skip


def test_by_nll_an_exit_is_that_of_the_barrier_in_nats():
    """The paths are twice as high in nats: 0.03 of error are 0.06 nats."""
    rows = path("hub", "checkpoint", 100, 0.01)
    for step, height in zip((1, 4, 9), (0.01, 0.03, 0.04), strict=True):
        rows += path("a", "hub", step, height) + path("a", "checkpoint", step, 0.01)
    exits = {nats: basin_exits.summary(rows, Criterion(nats, "nll"))["exit_step"] for nats in (0.01, 0.03, 0.07, 0.09)}
    assert exits == {0.01: 1, 0.03: 4, 0.07: 9, 0.09: None}
    assert basin_exits.summary(rows, Criterion(0.06))["exit_step"] is None


def test_steps_of_a_chain_are_counted_from_the_hub():
    """The second cycle leaves; the third is outside from its start, which is no exit of its own."""
    rows = path("hub", "checkpoint", 100, 0.01)
    for member_id, before, heights in (("a", 0, (IN, IN)), ("b", 9, (IN, OUT)), ("c", 18, (OUT, OUT))):
        for step, height in zip((4, 9), heights, strict=True):
            rows += path(member_id, "hub", step, height, before) + path(member_id, "checkpoint", step, height, before)
    found = basin_exits.summary(rows, BY_ERROR)
    assert (found["exit_step"], found["exit_epochs"], found["checkpoint_exit_step"]) == (18, 1.8, 18)


@pytest.mark.parametrize(("hub", "left_at"), [(OUT, 0), (IN, 4)])
def test_what_starts_at_a_hub_outside_the_basin_of_the_checkpoint_was_never_in_it(hub, left_at):
    rows = path("hub", "checkpoint", 100, hub)
    for step in (4, 9):
        rows += path("a", "hub", step, IN) + path("a", "checkpoint", step, OUT)
    found = basin_exits.summary(rows, BY_ERROR)
    assert (found["exit_step"], found["checkpoint_exit_step"]) == (None, left_at)


# A sweep whose members were trained before traces were asked for

METHODS = {"star_sse": {"n_members": 3, "lr_ratio": 4}, "sse": {"n_members": 3}, "local_de": {"n_members": 3}}
ON = {"basin__trace": True, "basin__trace_times": 3, "basin__trace_points": 3}


def spec(methods=None, **changes):
    return tiny.spec(methods=methods or METHODS, **ON, **changes)


@pytest.fixture(scope="module")
def traced(finished, tmp_path_factory):
    root = tmp_path_factory.mktemp("traced") / "copy"
    shutil.copytree(finished.folder.root, root)
    done = raybasin.run(spec(), root)
    assert done.complete and not done.failures
    return tiny.Sweep(Folder(root), done.plan)


@pytest.fixture
def again(traced, tmp_path):
    shutil.copytree(traced.folder.root, tmp_path / "again")
    return tiny.Sweep(Folder(tmp_path / "again"), traced.plan)


@pytest.fixture
def trainings(monkeypatch):
    """The number of epochs that each training begins with: 0, or where it goes on."""
    begun, train = [], loop.train

    def counting(*args, **kwargs):
        begun.append(len(kwargs["resume"].done.epochs) if kwargs["resume"] else 0)
        return train(*args, **kwargs)

    monkeypatch.setattr(loop, "train", counting)
    return begun


def weights(sweep, sha256):
    return models.from_bytes(sweep.folder.get(f"weights/{sha256}.safetensors"))


def test_tracing_changes_no_member(finished, traced):
    assert set(traced.members()) == set(finished.members())
    assert traced.members() == finished.members()


def test_what_descends_from_the_hub_is_traced_at_its_times_and_the_hub_at_its_end(traced):
    steps = {}
    for row in traced.rows("traces"):
        steps.setdefault((row["cell_id"], row["member_id"], row["origin"]), set()).add(row["step"])
    expected = {}
    for cell in (traced.cell("star_sse", 4.0), traced.cell("sse")):
        hub, *branches = cell.member_ids
        expected[cell.cell_id, hub, "checkpoint"] = {4}
        expected |= {(cell.cell_id, m, origin): {1, 2, 4} for m in branches for origin in basin_exits.ORIGINS}
    assert steps == expected


def test_a_run_that_is_trained_again_ends_at_the_bits_of_its_member(traced):
    exact = {row["member_id"]: row["exact"] for row in traced.rows("traces")}
    hub = traced.cell("sse").member_ids[0]
    assert exact.pop(hub) is None
    assert len(exact) == 4 and all(exact.values())


def test_at_the_end_of_a_cycle_the_path_from_the_hub_is_that_of_the_ensemble(traced):
    """Measured twice: once as a path of the cell, once as the last path of a trace."""
    for cell in (traced.cell("star_sse", 4.0), traced.cell("sse")):
        for member_id in cell.member_ids[1:]:
            mine = {row["t"]: row for row in traced.rows("traces")
                    if (row["member_id"], row["origin"], row["step"]) == (member_id, "hub", 4)}  # fmt: skip
            path = {row["t"]: row for row in traced.rows("paths")
                    if (row["cell_id"], row["start_id"], row["end_id"])
                    == (cell.cell_id, cell.member_ids[0], member_id)}  # fmt: skip
            assert set(mine) == set(path) == {0.0, 0.5, 1.0}
            for t, row in mine.items():
                for column in ("nll", "error", "error_excess", "l2_distance"):
                    assert row[column] == pytest.approx(path[t][column], rel=1e-6, abs=1e-12), (t, column)
                assert (row["images"], row["bn_images"]) == (60, 20)


def test_the_checkpoint_wears_the_head_of_the_hub(traced):
    context = tiny.context(traced.folder.root, traced.plan.spec)
    hub_id = traced.cell("sse").member_ids[0]
    hub = weights(traced, traced.members()[hub_id]["weights_sha256"])
    (checkpoint,) = traced.rows("checkpoints")
    body = weights(traced, checkpoint["weights_sha256"])
    assert (body["fc.weight"] != hub["fc.weight"]).any()  # its own head, for the classes it was pre-trained on
    net = context.network({**body, "fc.weight": hub["fc.weight"], "fc.bias": hub["fc.bias"]})
    context.reestimate(net)
    images_NHWC, labels_N = context.splits["val"]
    log_probs_NC = evaluation.log_probs(net, images_NHWC, context.preprocess)
    nll = -log_probs_NC[np.arange(60), labels_N].mean()
    starts = {row["nll"] for row in traced.rows("traces") if row["origin"] == "checkpoint" and row["t"] == 0.0}
    assert list(starts) == pytest.approx([nll], rel=1e-6)
    ends = {row["nll"] for row in traced.rows("traces") if row["member_id"] == hub_id and row["t"] == 1.0}
    stored = {row["nll"] for row in traced.rows("scores")
              if (row["predictor_id"], row["split"], row["bn"]) == (hub_id, "val", "reestimated")}  # fmt: skip
    assert list(ends) == pytest.approx(list(stored), rel=1e-6)


def trace_of(member):
    return Trace("x", member.member_id, steps=(1, 2, 4), steps_before=0)


def test_the_weights_inside_a_cycle_are_those_that_training_had_there(traced, tmp_path):
    """After two steps an epoch is over: a snapshot that training leaves then has the same weights."""
    context = tiny.context(traced.folder.root, spec(recipe__checkpoint_seconds=0))
    member = context.plan.members[traced.cell("star_sse", 4.0).member_ids[1]]
    sha256 = traced.members()[member.member_id]["parent_sha256"]
    seen, saved = {}, []
    net = train_members._start(member, sha256, context)
    watch = {step: lambda net, step=step: seen.update({step: models.state_of(net)}) for step in (1, 2, 3, 4)}
    loop.train(
        net,
        *context.train,
        train_members._cycle(member, net, context),
        context.preprocess,
        save=saved.append,
        watch=watch,
    )
    for name, tensor in seen[2].items():
        assert torch.equal(saved[0].tensors[f"net.{name}"], tensor)
    assert models.sha256(models.to_bytes(seen[4])) == traced.members()[member.member_id]["weights_sha256"]
    elsewhere = dataclasses.replace(context, folder=Folder(tmp_path))
    for table in ("members", "weights"):
        shutil.copytree(traced.folder.root / table, tmp_path / table)
    assert train_members.provide_weights_inside(member, trace_of(member), elsewhere)
    for step in (1, 2, 4):
        assert elsewhere.folder.get(train_members.inside_key(member.member_id, step)) == models.to_bytes(seen[step])


def test_distances_in_a_chain_are_from_the_hub_of_the_cell(traced):
    rows = [row for row in traced.rows("traces") if row["member_id"] == traced.cell("sse").member_ids[2]]
    assert {(row["step"], row["steps_from_hub"], row["epochs_from_hub"]) for row in rows} == {
        (1, 5, 2.5), (2, 6, 3.0), (4, 8, 4.0),
    }  # fmt: skip


def test_nothing_but_rows_is_left(traced):
    assert [name for name in traced.folder.names("state") if name.startswith(("trace", "repeat"))] == []
    named = {row["weights_sha256"] for row in traced.rows("members") + traced.rows("checkpoints")}
    named |= {row[column] for row in traced.rows("cells") for column in ("soup_sha256", "greedy_soup_sha256")}
    assert {name.removesuffix(".safetensors") for name in traced.folder.names("weights")} == named
    assert integrity.check(traced.folder) == []


def test_cells_say_when_they_left_and_cells_without_traces_nothing(traced):
    for row in traced.rows("cells"):
        if row["settings_id"] == traced.plan.settings_id:
            own = [point for point in traced.rows("traces") if point["cell_id"] == row["cell_id"]]
            assert {column: row[column] for column in basin_exits.COLUMNS} == basin_exits.summary(own, BY_ERROR)
            assert (row["checkpoint_barrier_error"] is None) == (row["method"] == "local_de")
        else:
            assert all(row[column] is None for column in basin_exits.COLUMNS)


def test_scores_are_computed_again_with_traces_and_copies_keep_them(traced, tmp_path):
    opened = raybasin.open(traced.folder.root, traced.plan.settings_id)
    cells = opened.cells.to_dict("records")
    found = rescore(traced.folder, cells, traced.plan.eval_id)
    assert found.differences == ()
    cell = next(cell for cell in cells if cell["method"] == "sse")
    changed = rescore(traced.folder, [{**cell, "checkpoint_barrier_error": 0.5}], traced.plan.eval_id)
    assert len(changed.differences) == 1 and "checkpoint_barrier_error: stored 0.5" in changed.differences[0]
    integrity.compact(traced.folder, tmp_path / "small")
    assert len(raybasin.open(tmp_path / "small", traced.plan.settings_id).traces) == len(opened.traces) > 0


def test_a_run_that_is_traced_from_the_start_is_trained_once_and_gives_the_same_rows(again, traced, trainings):
    cell = again.cell("star_sse", 4.0)
    for member_id in cell.member_ids[1:]:
        again.folder.delete(f"members/{member_id}.parquet")
    again.folder.delete(f"cells/{cell.cell_id}.parquet")
    for trace in cell.traces:
        again.folder.delete(f"traces/{cell.cell_id}-{trace.trace_id}.parquet")
    assert raybasin.run(spec(), again.folder.root).complete
    assert trainings == [0, 0]

    def untimed(sweep):
        rows = [row for row in sweep.rows("traces") if row["cell_id"] == cell.cell_id]
        rows.sort(key=lambda row: [row[name] for name in KEYS["traces"]])
        return [{**row, "job_seconds": None} for row in rows]

    assert untimed(again) == untimed(traced)
    before, after = traced.members(), again.members()
    assert {m: row["weights_sha256"] for m, row in after.items()} == {m: r["weights_sha256"] for m, r in before.items()}


def test_a_larger_ensemble_takes_over_the_traces_of_its_first_members(again, trainings):
    larger = raybasin.run(spec({"sse": {"n_members": 4}}), again.folder.root)
    assert larger.complete and trainings == [0]
    (cell,) = larger.plan.cells
    old, new = ([row for row in again.rows("traces") if row["cell_id"] == c.cell_id]
                for c in (again.cell("sse"), cell))  # fmt: skip
    assert {row["member_id"] for row in new} == set(cell.member_ids) and len(new) > len(old)
    own = {(row["member_id"], row["origin"], row["step"], row["t"]): row for row in new}
    for row in old:
        copy = own[row["member_id"], row["origin"], row["step"], row["t"]]
        assert {**copy, "cell_id": row["cell_id"]} == row


def test_a_lost_trace_is_found_moved_aside_and_measured_again(again, trainings):
    cell = again.cell("star_sse", 4.0)
    name = f"traces/{cell.cell_id}-{cell.traces[1].trace_id}.parquet"
    again.folder.put(name, again.folder.get(name)[:100])
    problems = integrity.check(again.folder)
    assert {problem.key for problem in problems} == {name, f"cells/{cell.cell_id}.parquet"}
    integrity.repair(again.folder, problems)
    assert raybasin.run(spec(), again.folder.root).complete
    assert trainings == [0] and integrity.check(again.folder) == []


def test_repairing_a_member_takes_its_traces_along(again):
    cell = again.cell("sse")
    member_id = cell.member_ids[2]
    again.folder.delete(f"weights/{again.members()[member_id]['weights_sha256']}.safetensors")
    integrity.repair(again.folder, integrity.check(again.folder))
    kept = {row["member_id"] for row in again.rows("traces") if row["cell_id"] == cell.cell_id}
    assert kept == set(cell.member_ids[:2])


def test_a_training_that_is_done_again_goes_on_where_it_was_interrupted(again, trainings, monkeypatch):
    context = tiny.context(again.folder.root, spec(recipe__checkpoint_seconds=0))
    member = context.plan.members[again.cell("star_sse", 4.0).member_ids[1]]
    put_new = Folder.put_new

    def killed_at_the_end(folder, key, content):
        if key == train_members.inside_key(member.member_id, 4):
            raise KeyboardInterrupt
        return put_new(folder, key, content)

    monkeypatch.setattr(Folder, "put_new", killed_at_the_end)
    with pytest.raises(KeyboardInterrupt):
        train_members.provide_weights_inside(member, trace_of(member), context)
    monkeypatch.setattr(Folder, "put_new", put_new)
    assert (member.member_id, 1) in inventory.survey(again.folder).inside_cycles
    assert train_members.provide_weights_inside(member, trace_of(member), context)
    assert trainings == [0, 1]  # an epoch was done


def test_a_training_that_is_done_again_starts_over_where_it_would_pass_by_what_is_missing(again, trainings):
    context = tiny.context(again.folder.root, spec(recipe__checkpoint_seconds=0))
    member = context.plan.members[again.cell("star_sse", 4.0).member_ids[1]]
    snapshot = f"state/repeat-{member.member_id}.safetensors"
    net = train_members._start(member, again.members()[member.member_id]["parent_sha256"], context)
    loop.train(net, *context.train, train_members._cycle(member, net, context), context.preprocess, resume=None,
                   save=lambda s: context.folder.put(snapshot, loop.snapshot_to_bytes(s)))  # fmt: skip
    assert again.folder.exists(snapshot)
    assert train_members.provide_weights_inside(member, trace_of(member), context)
    assert trainings == [0, 0] and not again.folder.exists(snapshot)


def test_plan_says_what_is_trained_again_for_a_trace(finished, traced):
    made = tiny.context(finished.folder.root, spec()).plan
    said = "\n".join(console.lines(local.look(made, finished.folder)))
    assert "6 traces to measure; 4 of their networks were trained without leaving weights inside" in said
    assert "are trained again for it, 8 epochs in all; until it is measured, a trace takes up to" in said
    assert "0 traces to measure" in "\n".join(console.lines(local.look(made, traced.folder)))
    assert "trace" not in "\n".join(console.lines(local.look(finished.plan, finished.folder)))


def test_a_trace_costs_what_it_runs():
    made = plan.make(spec({"star_sse": {"n_members": 2}}), tiny.facts())
    cost = {job.unit: job for job in jobs_left(made, Done()) if job.kind == "trace"}
    (cell,) = made.cells
    hub, branch = (cost[f"{cell.cell_id}-{trace.trace_id}"] for trace in cell.traces)
    assert (hub.cost, branch.cost) == (2 * (60 + 20), (1 + 3 * 3) * (60 + 20))
    done = Done(members=set(made.members), predictions={(m, made.eval_id) for m in made.members})
    again = {job.unit: job.cost for job in jobs_left(made, done) if job.kind == "trace"}
    assert again[branch.unit] == branch.cost + 3 * 2 * 40 and again[hub.unit] == hub.cost


def test_traces_are_of_runs_and_of_no_draws():
    made = plan.make(spec({"swag": {"n_members": 4, "cycle_ratio": 2}, "tree": {"n_members": 4}}), tiny.facts())
    swag, tree = made.cells
    assert [(made.members[t.member_id].kind, t.steps_before) for t in swag.traces] == [("cycle", 0), ("tail", 0)]
    assert [(made.members[t.member_id].member_index, t.steps_before) for t in tree.traces] == [
        (0, 0), (1, 0), (2, 4), (3, 0),
    ]  # fmt: skip


# Reading


def traced_cells(root, threshold=0.02):
    """The grid of `synthetic` with traces: the barrier of star_sse grows with the square of the share of its cycle, sse
    has none."""
    content = synthetic.sweep(basin={"trace": True, "threshold": threshold})
    rows, points = [], []
    for row in synthetic.grid():
        if row["method"] != "local_de":
            known = {name: row[name] for name in (*COMMON, "cell_id")}
            points += path("hub", "checkpoint", 100, 0.01, **known)
            for member_id in row["member_ids"][1:]:
                for quarter in (1, 2, 3, 4):
                    height = row["barrier_error"] * (quarter / 4) ** 2 if row["method"] == "star_sse" else 0.0
                    for origin in basin_exits.ORIGINS:
                        step = int(50 * row["cycle_ratio"] * quarter)
                        points += path(member_id, origin, step, height, **known)
            row = {**row, "checkpoint_barrier_error": 0.01}
        rows.append(row)
    synthetic.write(root, rows, content=content)
    tables.write(Folder(root), "traces", "all", points)
    return raybasin.open(root)


def test_when_a_cell_left_follows_from_todays_threshold(tmp_path):
    """lr_ratio 8 over a cycle of 20 epochs: barriers of 0.0107, 0.0428, 0.096 and 0.171 at 5, 10, 15 and 20 epochs."""
    for threshold, expected in ((0.02, 10), (0.05, 15), (0.2, math.nan)):
        cells = traced_cells(tmp_path / str(threshold), threshold).cells
        cell = cells.query("method == 'star_sse' and lr_ratio == 8 and cycle_ratio == 1 and replicate == 0").iloc[0]
        assert cell["exit_epochs"] == pytest.approx(expected, nan_ok=True)
        assert pd.isna(cell["exit_step"]) if math.isnan(expected) else cell["exit_step"] == 10 * expected
        assert str(cells["exit_step"].dtype) == "Int64"
    assert cells.query("method == 'sse'")["exit_epochs"].isna().all()


def test_the_figure_has_a_line_for_each_rate_and_a_ring_where_a_cell_left(tmp_path):
    results = traced_cells(tmp_path / "r")
    figure = figures.trace_figure(results)
    drawing.save(figure, tmp_path / "trace.png")
    assert len(figure.axes) == (3 + 2) * 2  # cycle lengths; from the hub and from the checkpoint
    middle = figure.axes[2]
    assert middle.get_title(loc="left") == "star_sse, cycle_ratio 1: from the hub"
    lines = [line for line in middle.lines if line.get_marker() not in ("None", "o") or line.get_markersize() == 4]
    curves = [line for line in lines if line.get_gid() != "left" and len(line.get_xdata()) > 2]
    assert len(curves) == 4
    fastest = curves[-1]
    np.testing.assert_allclose(fastest.get_xdata(), [0, 5, 10, 15, 20])
    np.testing.assert_allclose(fastest.get_ydata(), [0, *(17.1 * share**2 for share in (0.25, 0.5, 0.75, 1))])
    rings = [line for line in middle.lines if line.get_gid() == "left" and len(line.get_xdata())]
    cells = results.cells.query("method == 'star_sse' and cycle_ratio == 1 and exit_epochs == exit_epochs")
    assert sorted({x for line in rings for x in line.get_xdata()}) == sorted(set(cells["exit_epochs"]))
    assert any("threshold, 2 points" in text.get_text() for text in figure.legends[0].get_texts())


def test_a_map_can_show_when_cells_left(tmp_path):
    root = traced_cells(tmp_path / "r").folder.root
    done = CliRunner().invoke(cli.app, ["map", str(root), "--value", "exit_epochs", "-o", str(tmp_path / "map.png")])
    assert done.exit_code == 0, done.output
    for method, expected in (("star_sse", {"never", "10", "15"}), ("sse", {"never"})):
        figure = maps.map_figure(raybasin.open(root), value="exit_epochs", method=method)
        shown = {text.get_text().splitlines()[0] for axis in figure.axes for text in axis.texts}
        assert expected <= shown and "n/a" not in shown and (shown == {"never"}) == (method == "sse")
    with pytest.raises(UserError, match="no cell of local_de has one"):
        maps.map_figure(raybasin.open(root), value="exit_epochs", method="local_de")


def test_the_report_says_when_cells_left_and_shows_it(tmp_path):
    page = report.page(traced_cells(tmp_path / "r"))
    assert "star_sse, cycle_ratio 1: lr_ratio 4 leaves the basin after 15 epochs, lr_ratio 8 after 10." in page
    assert "The hub is in the basin of its checkpoint in 2 of 2 replicates" in page
    assert "When cycles leave: the error barrier on validation images to the weights inside a cycle" in page


def test_by_nll_the_figure_and_the_report_of_exits_are_in_nats(tmp_path, monkeypatch):
    monkeypatch.setattr(Results, "criterion", Criterion(0.04, "nll"))
    results = traced_cells(tmp_path / "r")
    figure = figures.trace_figure(results)
    drawing.save(figure, tmp_path / "trace.png")
    assert figure.axes[2].get_ylabel() == "NLL barrier on validation images\n(nats)"
    assert any(text.get_text() == "threshold, 0.04 nats" for text in figure.legends[0].get_texts())
    page = report.page(results)
    assert "(NLL barrier on validation images at most " in page
    assert "When cycles leave: the NLL barrier on validation images to the weights" in page
    # Traced paths are twice as high in nats, so 0.04 nats are where 0.02 of error are.
    assert "star_sse, cycle_ratio 1: lr_ratio 4 leaves the basin after 15 epochs, lr_ratio 8 after 10." in page


def test_results_without_traces_say_how_to_get_them(tmp_path):
    results = raybasin.open(synthetic.write(tmp_path, synthetic.grid()))
    with pytest.raises(UserError, match="no cell was traced; put `trace: true` into basin"):
        figures.trace_figure(results)
    assert "When cycles leave: " not in report.page(results)
