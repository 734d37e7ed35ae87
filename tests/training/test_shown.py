"""How images were shown to a checkpoint, by what lies with it."""

import json

import pytest
import timm
import tiny
import torch
from safetensors.torch import save_file

from raybasin.errors import UserError
from raybasin.jobs import prepare
from raybasin.sweep import specs
from raybasin.sweep.facts import Preprocess
from raybasin.sweep.specs import Architecture
from raybasin.training import pretrained, shown
from raybasin.training.shown import Told

NET = Architecture(name="test_resnet")
HERE = Preprocess(224, 0.875, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")


def file(folder, name="a.safetensors", **metadata):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"x": torch.zeros(1)}, folder / name, metadata={key: str(value) for key, value in metadata.items()})
    return str(folder / name)


def told(entry):
    return shown.told(entry, "test_resnet")


def test_what_raybasin_and_others_write_into_a_file_is_read(tmp_path):
    own = file(tmp_path / "own", image_size=64, mean="[0.1, 0.2, 0.3]", std="[1, 1, 2]", eval_crop=0.9,
               interpolation="bicubic", model="test_resnet")  # fmt: skip
    assert told(own) == Told(64, (0.1, 0.2, 0.3), (1, 1, 2), 0.9, "bicubic")
    assert told(file(tmp_path / "other", input_px=64)) == Told(64)
    assert told(file(tmp_path / "size", input_size="[3, 96, 96]")) == Told(96)
    assert not told(file(tmp_path / "none")) and not told(file(tmp_path / "note", source="Tiny-ImageNet"))


def test_a_config_of_timm_beside_it_is_read_if_it_is_of_the_same_network(tmp_path):
    entry = file(tmp_path, "model.safetensors")
    config = {"architecture": "test_resnet", "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.4, 0.4, 0.4],
              "std": [0.3, 0.3, 0.3], "crop_pct": 0.95, "interpolation": "bilinear"}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert told(entry) == Told(64, (0.4,) * 3, (0.3,) * 3, 0.95, "bilinear")
    assert not shown.told(entry, "resnet18") and not shown.told(entry, None)
    for other in (
        "[]",
        "{",
        json.dumps({"architecture": "test_resnet"}),
        json.dumps({"hidden_size": 3}),
        "[" * 100_000,
    ):
        (tmp_path / "config.json").write_text(other)
        assert not told(entry)
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 20)  # what is wrong with it is said where it is loaded
    assert not told(str(tmp_path / "broken.safetensors"))


@pytest.mark.parametrize(
    "wrong", [{"std": "[0, 1, 1]"}, {"image_size": "0"}, {"image_size": "huge"}, {"mean": "[1, 2]"}, {"eval_crop": "2"},
              {"image_size": "1e9"}, {"mean": '["a", "b", "c"]'}, {"std": "[NaN, 1, 1]"}]
)  # fmt: skip
def test_what_cannot_be_is_said_with_the_way_out(tmp_path, wrong):
    with pytest.raises(UserError, match="how images were shown cannot be as it is said there") as error:
        told(file(tmp_path, **wrong))
    assert "data.image_size" in str(error.value)


def test_weights_that_say_it_decide_how_images_are_shown(tmp_path):
    entry = file(tmp_path, image_size=64, mean="[0.1, 0.2, 0.3]", std="[1, 1, 2]")
    found = pretrained.preprocess(NET, [file(tmp_path / "silent"), entry])
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (1, 1, 2))
    assert found.interpolation == pretrained.preprocess(NET, []).interpolation
    other = file(tmp_path / "other", mean="[0.2, 0.2, 0.3]", std="[1, 1, 2]")
    with pytest.raises(UserError, match="different normalisations"):
        pretrained.preprocess(NET, [entry, other])
    assert pretrained.preprocess(NET, [entry, other], pixels_matter=False) == found


def test_the_size_is_that_of_the_checkpoints_unless_they_disagree(tmp_path):
    entry, silent = file(tmp_path, input_px=64), file(tmp_path / "silent")
    assert pretrained.image_size(NET, [silent]) is None
    assert pretrained.image_size(NET, [entry, silent]) == 64
    assert pretrained.image_size(NET, ["test_resnet.r160_in1k"]) == 160
    assert pretrained.image_size(NET.model_copy(update={"args": {"img_size": 96}}), [entry]) == 96
    with pytest.raises(UserError, match=r"64 and .* at 32 pixels; set data.image_size"):
        pretrained.image_size(NET, [entry, file(tmp_path / "other", image_size=32)])


def test_where_a_sweep_shows_images_otherwise_it_says_so(tmp_path):
    entry = file(tmp_path, image_size=64, mean="[0.5, 0.5, 0.5]", std="[0.2, 0.2, 0.2]")
    said = pretrained.shown_otherwise(entry, NET, HERE, normalised=True)
    assert said == (
        "it was trained on images shown otherwise: 64 pixels, here 224; std 0.2, 0.2, 0.2, here 0.5, 0.5, 0.5"
    )
    assert pretrained.shown_otherwise(file(tmp_path / "silent"), NET, HERE, normalised=True) == ""


def test_a_sweep_that_gives_no_size_takes_that_of_its_checkpoint(tmp_path):
    net, tree = timm.create_model("test_resnet", num_classes=7), tiny.tree()
    metadata = {"image_size": "48", "mean": "[0.1, 0.2, 0.3]", "std": "[0.4, 0.4, 0.4]"}
    save_file(net.state_dict(), tmp_path / "mine.safetensors", metadata=metadata)
    tree["model"] = {"name": "test_resnet", "pretrained": [str(tmp_path / "mine.safetensors")]}
    given = prepare.prepare(specs.parse(tree)).plan
    del tree["data"]["image_size"]
    made = prepare.prepare(specs.parse(tree)).plan
    assert made.spec.data.image_size == made.facts.preprocess.image_size == 48
    assert (made.facts.preprocess.mean, made.facts.preprocess.std) == ((0.1, 0.2, 0.3), (0.4, 0.4, 0.4))
    assert made.facts.checkpoints[0].taken == ""
    assert given.facts.preprocess.image_size == 32
    assert given.facts.checkpoints[0].taken == "it was trained on images shown otherwise: 48 pixels, here 32"
    save_file(net.state_dict(), tmp_path / "silent.safetensors", metadata={"image_size": "48"})
    silent = specs.parse({**tree, "model": {**tree["model"], "pretrained": [str(tmp_path / "silent.safetensors")]}})
    assert prepare.prepare(silent).plan.facts.checkpoints[0].taken == pretrained.ASSUMED
    again = prepare.prepare(specs.parse(specs.dump(made.spec))).plan  # as a folder keeps it
    assert again.settings_id == made.settings_id != given.settings_id
