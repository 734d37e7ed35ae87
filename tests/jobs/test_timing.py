"""What a plan says of time before anything is trained: a few real steps, and what they come to."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from typer.testing import CliRunner

from raybasin import cli
from raybasin.data import decoded
from raybasin.errors import UserError
from raybasin.jobs import local, prepare, timing
from raybasin.jobs.timing import Timed
from raybasin.store.folders import Folder
from raybasin.sweep import plan, specs
from raybasin.sweep.job_list import Training
from raybasin.training import compiling

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
    assert estimate.startswith("estimate: ") and " of one worker: training " in estimate
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


def test_compiling_is_told_and_not_in_the_steps_that_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    prepared = prepare.prepare(tiny.spec(recipe__compile=True, recipe__batch_size=16))
    situation = local.look(prepared.plan, Folder(tmp_path))
    timed = timing.measure(prepared, situation, torch.device("cpu"))
    assert timed.batch == 16 and timed.compile_seconds > 0  # of 40 images: the rest of 8 would be compiled for itself
    assert any(line.startswith("compiling: ") for line in timing.lines(situation.plan, situation.jobs, timed))


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


def test_a_first_step_that_compiles_leaves_time_for_as_many_as_ever(monkeypatch):
    times = iter([50.0, 51.0, 52.0, 53.0, 81.0])
    monkeypatch.setattr(timing.time, "monotonic", lambda: next(times))
    watch = timing._Watch(torch.device("cpu"), 0.0)
    for _ in range(4):
        watch.beat(5)
        watch.beat(0)  # a sign that a step goes on is no step
    with pytest.raises(timing._EnoughError):
        watch.beat(5)


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


# Decoding


def photos(folder):
    """40 training and 10 test JPEGs of two classes and two sizes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 5)):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (40 + i % 2, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.jpg")
    return folder


def of_photos(folder, **changes):
    data = {"name": "mine", "dir": str(folder), "image_size": 32, "augment": ["flip"], "validation": {"images": 6}}
    entry = {"pretrain": {"data": data, "recipe": {"epochs": 1, "batch_size": 8}}}
    changed = {f"data__{key}": value for key, value in changes.items()}
    return prepare.prepare(tiny.spec(data=data, model__pretrained=[entry], recipe__batch_size=8, **changed))


@pytest.mark.parametrize("how", ["arrays", "workers", "cache"])
def test_decoding_is_measured_and_nothing_is_written_for_that(tmp_path, monkeypatch, how):
    monkeypatch.setenv("RAYBASIN_DATA", str(tmp_path / "cache"))
    prepared = of_photos(photos(tmp_path / "photos"), decode=how)
    situation = local.look(prepared.plan, Folder(tmp_path / "results"))
    threads = torch.get_num_threads()
    timed = timing.measure(prepared, situation, torch.device("cpu"))
    assert timed.decode_seconds > 0 and timed.train_seconds > 0 and not timed.trained_at_once
    assert timed.decoders == (1 if how == "workers" else 0)
    assert not (tmp_path / "cache").exists() and torch.get_num_threads() == threads
    assert any(line.startswith("decoding: ") for line in timing.lines(situation.plan, situation.jobs, timed))


def test_steps_are_timed_with_images_that_are_decoded_already(tmp_path, monkeypatch):
    prepared, seen = of_photos(photos(tmp_path / "photos"), decode="workers"), []
    train = timing.loop.train

    def watched(net, images_NHWC, *args, **more):
        seen.append((images_NHWC, torch.get_num_threads()))
        return train(net, images_NHWC, *args, **more)

    monkeypatch.setattr(timing.loop, "train", watched)
    prepared.plan.spec.__dict__["workers"] = prepared.plan.spec.workers.model_copy(update={"cpus": 2.5})
    timing.measure(prepared, local.look(prepared.plan, Folder(tmp_path / "results")), torch.device("cpu"))
    [(images_NHWC, threads)] = seen
    assert isinstance(images_NHWC, torch.Tensor) and len(images_NHWC) == 34 and threads == 2


def test_sets_stored_as_pixels_are_not_decoded(tmp_path):
    prepared = prepare.prepare(tiny.spec())
    timed = timing.measure(prepared, local.look(prepared.plan, Folder(tmp_path)), torch.device("cpu"))
    assert timed.decode_seconds is None and timed.decoders == 0


def test_a_worker_that_trains_faster_than_it_decodes_is_said_with_the_way_out(tmp_path):
    situation = looked_at(tmp_path)

    def said(**changes):
        return list(timing.lines(situation.plan, situation.jobs, replace(TIMED, **changes)))[2:]

    assert said() == []
    [once] = said(decode_seconds=0.004)
    assert once == "decoding: 250 images/s of one core, each once: 1 s of one core at most"
    [enough] = said(decode_seconds=0.004, decoders=1)  # it trains 100 a second
    assert enough == (
        "decoding: 250 images/s of one core, each image whenever it is needed; "
        "a worker decodes 250 by 1 thread, and trains 100"
    )
    assert len(said(decode_seconds=0.02, decoders=2)) == 1
    speed, note = said(decode_seconds=0.05, decoders=2, trained_at_once=True)
    assert speed.endswith("a worker decodes 40 by 2 threads, and trains 100")
    assert note == (
        "note: training would starve: 2.5 times as many images are trained as are decoded in the same time; "
        "workers.cpus: 6 or data.decode: cache, which decodes each image once, would feed it"
    )
    # Of a processor, more CPUs would train faster, too.
    assert "workers.cpus" not in said(decode_seconds=0.05, decoders=2)[1]


def test_what_is_decoded_over_and_over_is_in_the_estimate(tmp_path):
    situation = looked_at(tmp_path)

    def hours(**changes):
        timed = replace(TIMED, **changes)
        return timing.estimate(situation.plan, situation.jobs, timed)

    plain = hours()
    assert hours(decode_seconds=0.02) == plain
    in_turn = hours(decode_seconds=0.02, decoders=2)  # 0.01 s an image of training, and 0.01 s of decoding
    assert in_turn.training == pytest.approx(2 * plain.training)
    assert in_turn.evaluation == pytest.approx(6 * plain.evaluation)
    beside = hours(decode_seconds=0.02, decoders=4, trained_at_once=True)
    assert beside.training == pytest.approx(plain.training)
    assert beside.evaluation == pytest.approx(2.5 * plain.evaluation)


def test_plan_says_what_is_kept_decoded_and_refuses_where_there_is_no_room(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYBASIN_DATA", str(tmp_path / "cache"))
    tree = of_photos(photos(tmp_path / "photos"), decode="cache").plan.spec
    file = tmp_path / "photos.yaml"
    file.write_text(json.dumps(specs.dump(tree)))
    options = ["plan", str(file), "--results", str(tmp_path / "results")]
    said = CliRunner().invoke(cli.app, options, catch_exceptions=False)
    assert said.exit_code == 0 and f"are written to {tmp_path / 'cache' / 'decoded'}" in said.stdout.replace("\n", "")
    monkeypatch.setattr(decoded, "_free_bytes", lambda folder: 10)
    with pytest.raises(UserError, match="decoded images need"):
        CliRunner().invoke(cli.app, options, catch_exceptions=False)
