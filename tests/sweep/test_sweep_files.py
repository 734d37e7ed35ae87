"""Every file in sweeps/ is a valid sweep and runs one cell, at toy size."""

import numpy as np
import pandas as pd
import places
import pytest
import yaml
from PIL import Image

import raybasin
from raybasin.errors import UserError
from raybasin.sweep import plan, schedules, specs

REPOSITORY = places.REPOSITORY
FOR_PRETRAINING = sorted((REPOSITORY / "sweeps").rglob("pretrain-*.yaml"))
FILES = sorted(set((REPOSITORY / "sweeps").rglob("*.yaml")) - set(FOR_PRETRAINING))
SHARED = REPOSITORY.parent / "shared"
CIFAR = SHARED / "data" / "cifar10"


def named(path):
    return str(path.relative_to(REPOSITORY))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Ten classes of noise in an image folder, for whatever data set a sweep names."""
    root = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 2)):
        for label in range(10):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(pixels.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    return root


def toy(path, images):
    """The sweep at `path` with one cell of two members, few images and short recipes; the rest as it stands."""
    tree = yaml.safe_load(path.read_text())
    tree["recipe"] |= {"epochs": 1, "batch_size": 8, "precision": "fp32"}
    tree["data"] |= {"image_size": 32, "train_images": {"per_class": 2}, "validation": {"images": 20}}
    method = next(iter(tree["methods"]))
    tree["methods"] = {method: {**tree["methods"][method], "n_members": 2, "lr_ratio": [1], "cycle_ratio": [1]}}
    tree |= {"replicates": 1, "workers": {"cpus": 1}}
    if "search" in tree:
        tree["search"] |= {"points": 1}
    tree["basin"] = {**tree.get("basin", {}), "points": 3, "bn_images": 8}
    small = {"name": "digits", "image_size": 32, "augment": [], "classes": [0, 1], "train_images": 10}
    pretrain = {"data": small, "recipe": {"epochs": 1, "batch_size": 8}}
    tree["model"] = {"name": "test_resnet", "pretrained": [{"pretrain": pretrain}]}
    if tree["data"]["name"] != "digits":
        tree["data"] |= {"dir": str(images), "test_images": None}
    return tree


def test_there_are_sweep_files():
    assert len(FILES) >= 3


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_sweep_file_is_valid_and_says_what_it_asks(path):
    spec = specs.load(path)
    assert spec.question.endswith("?") or "." in spec.question
    assert "# varied:" in path.read_text() and "# cost:" in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_sweep_file_runs_one_cell_at_toy_size(path, images, tmp_path):
    report = raybasin.run(toy(path, images), tmp_path)
    assert report.complete and not report.failures
    cells = pd.read_parquet(tmp_path / "cells")
    assert len(cells) == 1 and cells["soup_accuracy"].between(0, 1).all()


PAPER = REPOSITORY / "sweeps" / "paper"


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("byol-resnet50-cifar100", {"epochs": 25, "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4, "decay": "all"}),
        ("resnet50-cifar100", {"epochs": 25, "lr": 0.005, "momentum": 0.9, "weight_decay": 5e-4, "decay": "all"}),
        ("swin-t-cifar100", {
            "epochs": 102, "lr": 1e-4, "optimizer": "adamw", "weight_decay": 0.25, "decay": "matrices", "warmup": 0.1,
            "warmup_lr": 5e-7, "grad_clip": 5.0, "label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0, "drop_path": 0.1,
            "precision": "fp16", "drop_last": True,
        }),
    ],
)  # fmt: skip
def test_the_papers_recipes_and_grid_are_the_released_ones(name, recipe):
    spec = specs.load(PAPER / f"{name}.yaml")
    assert {key: getattr(spec.recipe, key) for key in recipe} == recipe
    assert (spec.recipe.batch_size, spec.recipe.schedule_by) == (256, "epoch")
    for method in ("star_sse", "sse"):
        wanted = spec.methods[method]
        assert (wanted.lr_ratio, wanted.cycle_ratio) == ((0.25, 0.5, 1, 2, 4), (0.5, 1, 2, 4))
        assert wanted.n_members == 5
    assert {"local_de", "global_de"} <= set(spec.methods)
    n_images = 45_000
    steps = {"byol-resnet50-cifar100": 4_400, "resnet50-cifar100": 4_400, "swin-t-cifar100": 17_850}
    batches = schedules.batches(n_images, spec.recipe.batch_size, spec.recipe.drop_last)
    assert spec.recipe.epochs * len(batches) == steps[name]


def test_the_swin_recipe_trains_a_small_swin(images, tmp_path):
    """Warm-up, clipping, mixing, stochastic depth and decay of matrices together, on timm's smallest net with both."""
    tree = toy(PAPER / "swin-t-cifar100.yaml", images)
    tree["model"]["name"] = "test_convnext"
    tree["recipe"] |= {"epochs": 10, "precision": "fp16"}
    report = raybasin.run(tree, tmp_path)
    assert report.complete and not report.failures
    epochs = pd.read_parquet(tmp_path / "epochs").query("method == 'hub'").sort_values("epoch")
    assert epochs["lr"].iloc[0] == 5e-7 and epochs["lr"].max() == 1e-4
    assert np.isfinite(epochs["train_loss"]).all()


def test_a_network_without_stochastic_depth_is_named(images, tmp_path):
    tree = toy(REPOSITORY / "sweeps" / "digits.yaml", images)
    tree["recipe"]["drop_path"] = 0.1
    tree["model"]["name"] = "vgg11"
    with pytest.raises(UserError, match=r"recipe.drop_path: timm's vgg11 has no stochastic depth; leave it out"):
        raybasin.run(tree, tmp_path)


@pytest.mark.parametrize("path", FOR_PRETRAINING, ids=named)
def test_a_file_for_pretraining_makes_its_checkpoints_at_toy_size(path, images, tmp_path):
    assert "# varied:" in path.read_text() and "# cost:" in path.read_text()
    tree = yaml.safe_load(path.read_text())
    (entry,) = tree["model"]["pretrained"]
    small = {"train_images": 20, "test_images": 10, "validation": {"images": 10}, "image_size": 32, "dir": str(images)}
    entry["pretrain"]["data"] |= small
    entry["pretrain"]["recipe"] |= {"epochs": 1}
    (tmp_path / "f.yaml").write_text(yaml.safe_dump(tree))
    made = raybasin.pretrain(tmp_path / "f.yaml", tmp_path / "r")
    assert made.complete and len(made.made) == entry["pretrain"]["count"]


def test_the_demo_shows_both_sides_of_the_boundary():
    spec = specs.load(REPOSITORY / "sweeps" / "digits.yaml")
    star = spec.methods["star_sse"]
    assert {0.5, 2, 8, 32} <= set(star.lr_ratio) and {0.5, 1, 2} <= set(star.cycle_ratio)
    assert star.n_members == 5 and spec.replicates == 2 and {"sse", "local_de"} <= set(spec.methods)


@pytest.mark.skipif(not CIFAR.is_dir(), reason="no CIFAR-10 beside the repository (../shared/data/cifar10)")
def test_a_very_small_piece_of_the_cifar_sweep_runs_on_real_images(tmp_path):
    weights = SHARED / "checkpoints" / "test_resnet-tinyimagenet64.safetensors"
    if not weights.is_file():
        pytest.skip("no checkpoint beside the repository (../shared/checkpoints)")
    small = ["data.train_images=100", "data.validation={images: 50}", "data.test_images=200",
             "recipe={epochs: 4, batch_size: 10, lr: 0.02}",
             "methods={star_sse: {n_members: 2, lr_ratio: [4]}, local_de: {n_members: 2}}", "replicates=1",
             "basin={points: 3, bn_images: 50}"]  # fmt: skip
    spec = specs.load(REPOSITORY / "sweeps" / "cifar10-cpu.yaml", small, str(CIFAR), [str(weights)])
    report = raybasin.run(spec, tmp_path)
    assert report.complete
    cells = pd.read_parquet(tmp_path / "cells").set_index("method")
    assert cells.loc["star_sse", "hub_accuracy"] > 0.15  # chance is 0.10; the checkpoint has seen other images
    assert cells.loc["star_sse", "hub_accuracy"] == cells.loc["local_de", "hub_accuracy"]
    opened = raybasin.open(tmp_path)
    assert opened.facts["data"]["class_names"][:2] == ["airplane", "automobile"]
    assert isinstance(report.plan, plan.Plan)
