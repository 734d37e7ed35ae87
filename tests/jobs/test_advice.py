"""What a plan says of images, steps and cost, and what it warns of."""

import pytest
import tiny

from raybasin.jobs import advice, local
from raybasin.store import inventory
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


def test_the_epochs_of_the_head_are_said_beside_the_others(tmp_path):
    steps = said(tmp_path, recipe__epochs=50, recipe__head_epochs=3)[1]
    assert steps.startswith("hub: 50 epochs of 2 steps of 20 images, 106 steps in all; ")
    assert ", after 3 epochs of the head alone" in steps


def test_an_average_over_more_steps_than_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(advice.os, "cpu_count", lambda: 1)
    assert not said(tmp_path, recipe__epochs=50, recipe__ema_decay=0.9)[2:]
    [note] = said(tmp_path, recipe__epochs=50, recipe__ema_decay=0.999)[2:]
    assert note == (
        "note: recipe.ema_decay: 0.999 averages over about 1000 steps, and the hub has 100, so that its first ones "
        "stay in the average; ema_warmup: true forgets them"
    )
    assert not said(tmp_path, recipe__epochs=50, recipe__ema_decay=0.999, recipe__ema_warmup=True)[2:]


def failed(folder, lr, reason, **changes):
    """A cell of settings at that rate has failed, as a run records it."""
    made = plan.make(tiny.spec(model__pretrained=["first.pth"], recipe__lr=lr, **changes), tiny.facts())
    folder.put(f"sweeps/{made.settings_id}.yaml", inventory.resolved(made).encode())
    local.record_failure(folder, made.settings, local.Failure(made.cells[0], reason, 1))


def notes_of_rates(folder, **changes):
    return [line for line in said(folder.root, **changes) if "has diverged" in line]


def test_a_rate_at_which_training_has_diverged_in_the_folder(tmp_path):
    folder, gone = Folder(tmp_path), "member 0: Diverged: training loss is nan in epoch 1 at max_lr 0.5"
    failed(folder, 0.5, gone)
    expected = ("note: training at lr 0.5 has diverged in this folder, and recipe.lr is {:g}; take a lower one, such "
                "as raybasin lr-range finds")  # fmt: skip
    assert notes_of_rates(folder, recipe__lr=0.5) == [expected.format(0.5)]
    assert notes_of_rates(folder, recipe__lr=2, recipe__epochs=5) == [expected.format(2)]
    assert not notes_of_rates(folder, recipe__lr=0.4)
    assert not notes_of_rates(folder, recipe__lr=0.5, recipe__optimizer="adamw")  # another recipe


def test_what_says_nothing_of_the_hubs_rate(tmp_path):
    folder = Folder(tmp_path)
    failed(folder, 0.1, "member 2: Diverged: training loss is nan in epoch 1 at max_lr 0.8")  # a branch
    failed(folder, 0.2, "checkpoint a: Diverged: training loss is nan in epoch 1 at max_lr 0.2")
    failed(folder, 0.3, "member 0: OutOfMemoryError: CUDA out of memory")
    assert not notes_of_rates(folder, recipe__lr=0.9)
