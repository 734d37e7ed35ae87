"""What a plan says of time before anything is trained: a few real steps, and what they come to."""

import itertools
import json

import pytest
import tiny
import torch
from typer.testing import CliRunner

from raybasin import cli
from raybasin.errors import UserError
from raybasin.jobs import local, prepare, timing
from raybasin.jobs.timing import Timed
from raybasin.store.folders import Folder
from raybasin.sweep import plan
from raybasin.sweep.job_list import Training

TIMED = Timed(0.2, 20, 18, 0.01, 0.002, "cpu, 1 thread", from_checkpoint=True)


def looked_at(folder, facts=None, **changes):
    made = plan.make(tiny.spec(model__pretrained=["first.pth"], **changes), facts or tiny.facts())
    return local.look(made, Folder(folder))


def test_an_estimate_is_the_jobs_at_the_measured_speeds(tmp_path):
    situation = looked_at(tmp_path)
    expected = timing.estimate(situation.plan, situation.jobs, TIMED)
    trained = [job.task.member for job in situation.jobs if isinstance(job.task, Training)]
    assert expected.training == pytest.approx(sum(m.cycle_epochs for m in trained) * 40 * 0.01 / 3600)
    images = sum(job.cost for job in situation.jobs) - 3 * 40 * sum(m.cycle_epochs for m in trained)
    assert images > 0 and expected.evaluation == pytest.approx(images * 0.002 / 3600)


def test_epochs_of_the_head_are_in_the_estimate_of_what_starts_from_a_checkpoint(tmp_path):
    before, after = (looked_at(tmp_path, recipe__head_epochs=count) for count in (0, 3))
    hours = [timing.estimate(one.plan, one.jobs, TIMED) for one in (before, after)]
    # The hub, and the two further members of local_de.
    assert hours[1].training - hours[0].training == pytest.approx(3 * 3 * 40 * 0.01 / 3600)
    assert hours[1].evaluation == pytest.approx(hours[0].evaluation)


def test_what_was_measured_is_said_and_a_rate_that_diverges(tmp_path):
    situation = looked_at(tmp_path)
    measured, estimate = timing.lines(situation.plan, situation.jobs, TIMED)
    assert measured == (
        "measured: 0.2 s a step of 20 images (18 steps from the checkpoint), 500 images/s in evaluation, on cpu, "
        "1 thread"
    )
    assert estimate.startswith("estimate: ") and "hours of one worker" in estimate
    gone = Timed(0.2, 20, 18, 0.01, 0.002, "cpu", True, diverged="training loss is nan")
    assert "these steps diverge (training loss is nan)" in list(timing.lines(situation.plan, situation.jobs, gone))[2]
    # From random weights nothing follows for a checkpoint.
    scratch = Timed(0.2, 20, 18, 0.01, 0.002, "cpu", False, diverged="training loss is nan")
    assert len(list(timing.lines(situation.plan, situation.jobs, scratch))) == 2


def test_a_few_real_steps_are_made_and_nothing_is_stored(tmp_path, monkeypatch):
    prepared, sizes = prepare.prepare(tiny.spec()), []
    real = timing._Watch.beat
    monkeypatch.setattr(timing._Watch, "beat", lambda watch, images: sizes.append(images) or real(watch, images))
    timed = timing.measure(prepared, local.look(prepared.plan, Folder(tmp_path)), torch.device("cpu"))
    assert sizes == [20] * timing.STEPS and timed.batch == 20 and timed.steps == timing.STEPS - timing.FIRST
    assert timed.train_seconds > 0 and timed.evaluation_seconds > 0 and not timed.from_checkpoint
    assert timed.step_seconds == pytest.approx(20 * timed.train_seconds)
    assert not timed.diverged and list(tmp_path.iterdir()) == []


def test_a_rate_that_leads_to_no_number_is_found(tmp_path):
    prepared = prepare.prepare(tiny.spec(recipe__lr=1e6, recipe__momentum=0.99, recipe__weight_decay=10))
    timed = timing.measure(prepared, local.look(prepared.plan, Folder(tmp_path)), torch.device("cpu"))
    assert "at max_lr 1e+06" in timed.diverged


def test_slow_steps_are_few_and_first_ones_are_not_counted(monkeypatch):
    clock = itertools.count(0.0, 20.0)
    monkeypatch.setattr(timing.time, "monotonic", lambda: next(clock))
    watch = timing._Watch(torch.device("cpu"), timing.time.monotonic())
    watch.beat(5)
    watch.beat(5)
    with pytest.raises(timing._EnoughError):
        watch.beat(3)
    assert watch.counted() == (40.0, 8, 2)


def test_too_large_a_batch_is_said_with_the_way_out(tmp_path, monkeypatch):
    def full(*args, **more):
        raise torch.OutOfMemoryError("CUDA out of memory")

    prepared = prepare.prepare(tiny.spec())
    monkeypatch.setattr(timing.loop, "train", full)
    with pytest.raises(UserError, match="--measure: there is not enough memory for steps of 20 images.*batch_size"):
        timing.measure(prepared, local.look(prepared.plan, Folder(tmp_path)), torch.device("cpu"))


def test_a_device_that_is_not_here(monkeypatch):
    with pytest.raises(UserError, match="--measure gpu: must be cpu or cuda"):
        timing.device_of("gpu")
    monkeypatch.setattr(timing.torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--measure cuda: torch finds no GPU"):
        timing.device_of("cuda")


def test_a_program_is_told_in_numbers(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(tiny.tree()))
    options = ["plan", str(file), "--results", str(tmp_path / "results"), "--json", "--measure", "cpu"]
    said = json.loads(CliRunner().invoke(cli.app, options, catch_exceptions=False).stdout)
    assert said["estimated_hours"]["training"] > 0 < said["estimated_hours"]["evaluation"]
    assert said["measured"]["device"].startswith("cpu")
