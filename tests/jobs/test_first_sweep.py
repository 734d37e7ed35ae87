"""A first sweep file for own images and an own checkpoint: it can be planned as it is."""

import json

import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

from raybasin import cli
from raybasin.errors import UserError
from raybasin.jobs import first_sweep, prepare
from raybasin.sweep import specs


def images(folder, side=(40, 40), n=60, splits=("train", "test")):
    for split in splits:
        for number, name in enumerate(("cat", "dog", "hen")):
            for i in range(n):
                path = folder / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                colour = (80 * number, (7 * i) % 256, 100 + len(split))
                Image.new("RGB", side, colour).save(path)
    return folder


def checkpoint(folder, name="mine.safetensors", network="test_resnet", **metadata):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(timm.create_model(network, num_classes=7).state_dict(), folder / name, metadata=metadata or None)
    return str(folder / name)


def test_it_can_be_planned_as_it_is(tmp_path, monkeypatch):
    folder = images(tmp_path / "my pets!")
    weights = checkpoint(tmp_path / "w", model="test_resnet", image_size="48")
    content = first_sweep.text(str(folder), weights)
    (tmp_path / "sweep.yaml").write_text(content)
    made = prepare.prepare(specs.load(tmp_path / "sweep.yaml")).plan
    assert made.spec.name == "my-pets" and made.spec.data.augment == ("pad_crop", "flip")
    assert made.facts.preprocess.image_size == 48 and made.facts.data.n_classes == 3
    assert made.facts.data.n_val == 54 and made.facts.data.n_train == 126 and made.facts.data.n_test == 180
    assert made.spec.recipe.epochs * made.steps_per_epoch >= 250
    assert set(made.spec.methods) == {"star_sse", "local_de"}


def test_a_network_without_batch_norm_gets_the_optimizer_of_transformers(tmp_path):
    weights = checkpoint(tmp_path / "w", network="test_vit", model="test_vit", image_size="160")
    content = first_sweep.text(str(images(tmp_path / "pets")), weights)
    (tmp_path / "sweep.yaml").write_text(content)
    recipe = prepare.prepare(specs.load(tmp_path / "sweep.yaml")).plan.spec.recipe
    assert (recipe.optimizer, recipe.decay, recipe.warmup, recipe.grad_clip) == ("adamw", "matrices", 0.1, 1.0)
    assert "test_vit has no batch norm" in content


def test_the_network_is_built_as_the_checkpoint_says(tmp_path):
    folder, weights = str(images(tmp_path / "pets", side=(32, 32))), tmp_path / "small.safetensors"
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=7)
    save_file(net.state_dict(), weights, metadata={"model": "vit_tiny_patch16_224", "args": '{"img_size": 32}'})
    content = first_sweep.text(folder, str(weights))
    assert 'args: {"img_size": 32}' in content and "image_size: 32" in content
    (tmp_path / "sweep.yaml").write_text(content)
    assert prepare.prepare(specs.load(tmp_path / "sweep.yaml")).plan.spec.model.args == {"img_size": 32}
    save_file(net.state_dict(), weights, metadata={"model": "vit_tiny_patch16_224", "args": "32"})
    with pytest.raises(UserError, match="says with which arguments its network was built, but not as a mapping"):
        first_sweep.text(folder, str(weights))


def test_weights_of_another_network_are_refused_before_a_file_is_written(tmp_path):
    folder = str(images(tmp_path / "pets", n=20))
    weights = checkpoint(tmp_path / "w", model="test_resnet")
    with pytest.raises(UserError, match="does not fit model test_vit.*it says that it is of test_resnet; name its own"):
        first_sweep.text(folder, weights, "test_vit")
    with pytest.raises(UserError, match="does not fit model test_vit.*name its own network with --model"):
        first_sweep.text(folder, checkpoint(tmp_path / "v"), "test_vit")


def test_comments_count_the_steps_of_the_file(tmp_path):
    weights = checkpoint(tmp_path / "w", model="test_resnet")
    content = first_sweep.text(str(images(tmp_path / "pets", n=20)), weights)
    assert "of about 3 steps: a hub of 120; 300 or more would be better" in content and "3 steps an epoch" in content


def test_large_images_of_several_sizes_and_no_test_split(tmp_path):
    folder = images(tmp_path / "pets", side=(90, 120), splits=("train",))
    Image.new("RGB", (300, 200)).save(folder / "train" / "cat" / "0.png")
    weights = checkpoint(tmp_path / "w", model="test_resnet")
    content = first_sweep.text(str(folder), weights)
    assert "random_resized_crop" in content and "stored in 2 sizes" in content
    assert "image_size: 224" in content and "nothing says on how many it was trained" in content
    (tmp_path / "sweep.yaml").write_text(content)
    made = prepare.prepare(specs.load(tmp_path / "sweep.yaml")).plan
    assert (made.facts.data.n_train, made.facts.data.n_val, made.facts.data.n_test) == (95, 40, 45)


def test_the_network_is_named_by_a_tag_by_the_file_beside_it_or_by_the_user(tmp_path):
    silent, folder = checkpoint(tmp_path / "w"), str(images(tmp_path / "pets"))
    with pytest.raises(UserError, match="does not say of which network it is; name a timm model with --model"):
        first_sweep.text(folder, silent)
    assert "name: test_resnet\n" in first_sweep.text(folder, silent, "test_resnet")
    (tmp_path / "w" / "config.json").write_text(json.dumps({"architecture": "test_resnet"}))
    assert "name: test_resnet\n" in first_sweep.text(folder, silent)
    tagged = first_sweep.text(folder, "test_resnet.r160_in1k")
    assert "image_size: 160" in tagged and 'pretrained: ["test_resnet.r160_in1k"]' in tagged
    for wrong, said in (("test_resnet.nothing", "timm has no weights"), (str(tmp_path / "no.pth"), "is no file")):
        with pytest.raises(UserError, match=said):
            first_sweep.text(folder, wrong)
    with pytest.raises(UserError):
        first_sweep.text(str(tmp_path / "empty"), silent)


def test_a_file_that_is_there_is_left_as_it_is(tmp_path, monkeypatch, capsys):
    weights = checkpoint(tmp_path / "w", model="test_resnet")
    arguments = ["raybasin", "init", str(images(tmp_path / "pets")), "--checkpoint", weights]
    monkeypatch.setattr("sys.argv", [*arguments, "-o", str(tmp_path / "mine.yaml")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0 and "raybasin plan" in capsys.readouterr().out
    before = (tmp_path / "mine.yaml").read_text()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "is left as it is" in capsys.readouterr().err
    assert (tmp_path / "mine.yaml").read_text() == before
