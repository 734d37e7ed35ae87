"""What a plan says of images, steps and cost, and what it warns of."""

import pytest
import tiny

from raybasin.jobs import advice, local
from raybasin.store.folders import Folder
from raybasin.sweep import plan


def said(folder, facts=None, **changes):
    spec = tiny.spec(model__pretrained=["first.pth"], **changes)
    made = plan.make(spec, facts or tiny.facts())
    return list(advice.lines(local.look(made, Folder(folder))))


def test_images_and_steps_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(advice.os, "cpu_count", lambda: 1)
    images, steps, *notes = said(tmp_path, recipe__epochs=20, recipe__batch_size=8)
    assert images == ("images: 32 x 32 pixels, whole in evaluation, bilinear; mean 0.5, 0.5, 0.5, std 0.2, 0.2, 0.2")
    assert steps.startswith("hub: 20 epochs of 5 steps of 8 images, 100 steps in all; sgd, lr ")
    assert notes == []


def test_few_steps_and_what_would_make_more(tmp_path, monkeypatch):
    monkeypatch.setattr(advice.os, "cpu_count", lambda: 1)
    facts = tiny.facts(n_train=360)
    [note] = said(tmp_path, facts, recipe__epochs=8, recipe__batch_size=256)[2:]
    assert note == (
        "note: 16 steps are few for a fine-tuning; recipe.batch_size: 16 makes 184 of them, or recipe.epochs: 50"
    )


@pytest.mark.parametrize(("height", "size", "crop", "factor"), [(32, 224, 0.875, "8.0"), (32, 224, 1.0, "7.0")])
def test_strong_enlarging(tmp_path, monkeypatch, height, size, crop, factor):
    monkeypatch.setattr(advice.os, "cpu_count", lambda: 1)
    facts = tiny.facts(train_size=(height, 40), image_size=size, eval_crop=crop)
    notes = said(tmp_path, facts, recipe__epochs=100, data__image_size=size)[2:]
    assert len(notes) == 1 and f"enlarged {factor} times" in notes[0] and "data.image_size" in notes[0]
    assert not said(tmp_path, tiny.facts(train_size=(64, 64)), recipe__epochs=100)[2:]


def test_a_machine_that_would_be_half_idle(tmp_path, monkeypatch):
    monkeypatch.setattr(advice.os, "cpu_count", lambda: 4)
    assert not said(tmp_path, recipe__epochs=100, workers={"cpus": 1})[2:]
    [note] = said(tmp_path, recipe__epochs=100, workers={"cpus": 1, "count": 2})[2:]
    assert note == "note: this machine has 4 cores, of which 2 workers of 1 leave half idle or more"
    monkeypatch.setattr(advice, "_gpus", lambda: 2)
    [note] = said(tmp_path, recipe__epochs=100)[2:]
    assert note == "note: this machine has 2 GPUs that the sweep leaves idle; workers.gpus: 1 uses them"
    assert not said(tmp_path, recipe__epochs=100, workers={"gpus": 1})[2:]


def test_the_cost_is_told_by_networks_that_are_there(finished):
    rows = finished.rows("members")
    spec = finished.plan.spec
    methods = spec.methods | {"star_sse": spec.methods["star_sse"].model_copy(update={"lr_ratio": (64.0, 128.0)})}
    more = plan.make(spec.model_copy(update={"methods": methods}), finished.plan.facts)
    lines = list(advice.lines(local.look(more, finished.folder)))
    [cost] = [line for line in lines if line.startswith("training: about ")]
    assert f"by {len({row['member_id'] for row in rows} & set(more.members))} networks that are there" in cost
    assert not [line for line in advice.lines(local.look(finished.plan, finished.folder)) if "training:" in line]
