"""An exported soup in a process that has timm, or torch and the user's own code, and not raybasin: following what
`soup` prints, it gets as many test images right as the tables say.

Nothing is trained: networks and images are made up, in such a way that no prediction is close.
"""

import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import places
import pytest
import safetensors
import synthetic
import timm
import tiny
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

import raybasin
from raybasin import cli
from raybasin.errors import UserError
from raybasin.jobs import local, prepare
from raybasin.serving import export
from raybasin.store import folders, tables
from raybasin.sweep import plan, specs
from raybasin.sweep.facts import Preprocess
from raybasin.training import evaluation, models

CLASSES = ("an ant", "bees", "it's")
N_IMAGES = 45
LEAST_MARGIN = 0.02
"""Between the two highest logits of an image: far more than the rounding of any processor."""

OWN = {"mean": [0.3, 0.5, 0.6], "std": [0.5, 0.1, 0.9]}
NET = {"name": "test_resnet"}
CASES = {
    "64 px": ({"image_size": 64, "eval_crop": 1.0}, NET, [(64, 64)]),
    "own normalisation": (
        {"image_size": 40, "eval_crop": 1.0, "normalise": OWN, "interpolation": "bilinear"}, NET, [(40, 40)]
    ),
    "made smaller": (
        {"image_size": 32, "eval_crop": 0.85, "normalise": OWN, "interpolation": "bilinear"}, NET, [(60, 75)]
    ),
    "made larger": ({"image_size": 64, "eval_crop": 0.9, "interpolation": "bicubic"}, NET, [(20, 26)]),
    "several sizes": ({"image_size": 48, "eval_crop": 0.8}, NET, [(70, 50), (61, 90), (48, 48)]),
    "several sizes, the model's crop": ({"image_size": 48}, NET, [(70, 50), (61, 90), (48, 48)]),
    "factory": (
        {"image_size": 32, "eval_crop": 0.9, "normalise": OWN},
        {"factory": "nets:batch_norm", "args": {"width": 12}, "head": "fc"}, [(64, 48)],
    ),
    "another size than timm's": (
        {"image_size": 96, "eval_crop": 1.0}, {"name": "test_vit", "args": {"dynamic_img_size": True}}, [(96, 96)]
    ),
}  # fmt: skip
"""Keys of the data and of the model, and the sizes (width, height) of the images."""
NOT_RESIZED = ("64 px", "own normalisation", "another size than timm's")

FOLLOW = """
import sys
from pathlib import Path
from PIL import Image
import json, torch
found = {}
for name, code, images in json.load(sys.stdin):
    space = {}
    exec(code, space)
    net, transform, classes = space["net"], space["transform"], space["classes"]
    logits, right, right_by_timm = [], 0, 0
    with torch.inference_mode():
        for path in sorted(Path(images).glob("*/*.png")):
            image = Image.open(path)
            logits.append(net(transform(image)[None])[0])
            right += classes[logits[-1].argmax()] == path.parent.name
            if "timm" in space:
                timm = space["timm"]
                resolved = timm.data.create_transform(**timm.data.resolve_model_data_config(net), is_training=False)
                right_by_timm += classes[net(resolved(image)[None])[0].argmax()] == path.parent.name
    found[name] = {"log_probs": torch.stack(logits).log_softmax(1).tolist(), "right": right, "by timm": right_by_timm}
assert not [name for name in sys.modules if name.startswith("raybasin")]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Planted:
    """A results folder with one cell, whose soup is a made-up network, and what raybasin finds of it on test."""

    results: Path
    images: Path
    log_probs_NC: np.ndarray
    right: int


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return {name: plant(tmp_path_factory.mktemp("planted"), *case) for name, case in CASES.items()}


def plant(root, data_keys, model, sizes):
    draw_images(root / "images", sizes)
    spec = sweep(root, data_keys, model)
    net, paths = models.build(spec.model, len(CLASSES), seed=1), sorted((root / "images" / "test").glob("*/*.png"))
    decided_N = np.ptp(np.sort(spread(net, root, spec))[:, -2:], axis=1) > LEAST_MARGIN
    for path, decided in zip(paths, decided_N, strict=True):
        if not decided:
            path.unlink()
    prepared = prepare.prepare(spec)
    made, folder = prepared.plan, folders.create(root / "results")
    local.begin(folder, prepared)
    log_probs_NC, labels_N = predict(net, root, spec)
    right = int((log_probs_NC.argmax(1) == labels_N).sum())
    content, cell = models.to_bytes(models.state_of(net)), made.cells[0]
    sha256 = models.sha256(content)
    folder.put_new(f"weights/{sha256}.safetensors", content)
    accuracy, members = right / len(labels_N), list(cell.member_ids)
    row = synthetic.cell("star_sse", 1, 1, 0, cell_id=cell.cell_id, member_ids=members, n_members=2,
                         soup_sha256=sha256, soup_accuracy=accuracy, greedy_soup_sha256=sha256,
                         greedy_soup_accuracy=accuracy, greedy_soup_members=members[:1])  # fmt: skip
    tables.write(folder, "cells", cell.cell_id, [{**row, **plan.shared_columns(made.settings, cell.point)}])
    return Planted(folder.root, root / "images" / "test", log_probs_NC, right)


def draw_images(folder, sizes):
    """Coarse patterns with noise, so that it matters how they are resized; the classes mean nothing."""
    rng = np.random.default_rng(0)
    for split, number in itertools.product(("train", "test"), range(N_IMAGES)):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize(sizes[number % len(sizes)], Image.Resampling.NEAREST), dtype=np.int16)
        image = (pixels + rng.integers(-20, 21, pixels.shape)).clip(0, 255).astype(np.uint8)
        place = folder / split / CLASSES[number % len(CLASSES)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number:03d}.png")


def sweep(root, data_keys, model):
    weights = root / "weights.safetensors"
    architecture = specs.Architecture.model_validate(model)
    weights.write_bytes(models.to_bytes(models.build(architecture, 3, seed=0).state_dict()))
    data = {"name": "pics", "dir": str(root / "images"), "augment": [], "validation": {"images": 6}, **data_keys}
    tree = tiny.tree(methods={"star_sse": {"n_members": 2}}, replicates=2)
    return specs.parse({**tree, "data": data, "model": {**model, "pretrained": [str(weights)]}})


def predict(net, root, spec):
    worker = tiny.context(root / "results", spec)
    images_NHWC, labels_N = worker.splits["test"]
    return evaluation.log_probs(net, images_NHWC, worker.preprocess), labels_N.numpy()


def spread(net, root, spec):
    """Gives the network logits that prefer no class and differ by about 1, and returns their log-probabilities."""
    head = net.get_submodule(models.head_names(net, spec.model)[0])
    with torch.no_grad():
        for _ in range(2):
            log_probs_NC = torch.from_numpy(predict(net, root, spec)[0])
            logits_NC = log_probs_NC - log_probs_NC.mean(1, keepdim=True)
            scale = logits_NC.std(0).mean()
            head.weight.div_(scale)
            head.bias.sub_(logits_NC.mean(0)).div_(scale)
    return predict(net, root, spec)[0]


def soup(planted, path, *options):
    return CliRunner().invoke(cli.app, ["soup", str(planted.results), "-o", str(path), *options])


@pytest.fixture(scope="module")
def followed(planted, tmp_path_factory):
    """What one process, started in the folder of the user's own code, finds by what was printed."""
    folder, asked = tmp_path_factory.mktemp("exported"), []
    for number, (name, each) in enumerate(planted.items()):
        done = soup(each, folder / f"{number}.safetensors")
        assert done.exit_code == 0, done.output
        asked.append((name, done.output, str(each.images)))
    done = subprocess.run([sys.executable, "-c", FOLLOW], cwd=places.TESTS, input=json.dumps(asked),
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_another_process_gets_as_many_images_right(planted, followed, name):
    cell = raybasin.open(planted[name].results).cells.iloc[0]
    n_test = len(planted[name].log_probs_NC)
    assert n_test > N_IMAGES / 2 and len(set(planted[name].log_probs_NC.argmax(1))) == len(CLASSES)
    assert followed[name]["right"] == planted[name].right == round(cell["soup_accuracy"] * n_test)
    np.testing.assert_allclose(followed[name]["log_probs"], planted[name].log_probs_NC, atol=1e-4)
    if name in NOT_RESIZED:
        assert followed[name]["by timm"] == planted[name].right


def test_the_file_says_how_images_are_shown_and_what_its_outputs_mean(planted, tmp_path):
    path = tmp_path / "soup.safetensors"
    assert soup(planted["several sizes, the model's crop"], path, "--kind", "greedy").exit_code == 0
    with safetensors.safe_open(path, "pt") as file:
        facts = file.metadata()
    config = timm.get_pretrained_cfg("test_resnet")
    assert json.loads(facts["classes"]) == list(CLASSES)
    assert (json.loads(facts["mean"]), json.loads(facts["std"])) == (list(config.mean), list(config.std))
    assert float(facts["eval_crop"]) == config.crop_pct and facts["interpolation"] == config.interpolation
    assert (facts["image_size"], facts["common_side"], facts["kind"]) == ("48", "55", "greedy_soup")
    assert len(json.loads(facts["members"])) == 1 and facts["n_members"] == "2"
    assert soup(planted["made larger"], tmp_path / "b.safetensors").exit_code == 0
    with safetensors.safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert "common_side" not in file.metadata()


def test_what_is_printed_says_which_soup_it_is(planted, tmp_path):
    each = planted["64 px"]
    [cell] = raybasin.open(each.results).cells.to_dict("records")
    done = soup(each, tmp_path / "a.safetensors")
    first, second, third = done.output.splitlines()[:3]
    assert first == (
        f"# uniform soup of 2 of the 2 members of cell {cell['cell_id']} (star_sse lr_ratio=1 cycle_ratio=1), of the "
        "point whose uniform soups are best on validation; replicate 0 of 2, counted from 0"
    )
    assert second == f"# {each.right / len(each.log_probs_NC):.2%} of {len(each.log_probs_NC)} test images right"
    assert third == "# batch-norm statistics estimated again on 20 training images"
    done = soup(each, tmp_path / "b.safetensors", "--kind", "greedy", "--cell", cell["cell_id"])
    assert done.output.startswith("# greedy soup of 1 of the 2 members") and ", named by --cell; rep" in done.output


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("soup.pt", "soup.pt: its name must say that it holds safetensors; name soup.safetensors with -o"),
        ("soup.pth", "name soup.safetensors"),
        ("soup.v2.bin", "name soup.v2.safetensors"),
        ("soup", "name soup.safetensors"),
        ("there.safetensors", "there.safetensors: is there already, and is left as it is; name another file with -o"),
        ("link.safetensors", "is there already"),
        ("folder.safetensors", "folder.safetensors: is a folder"),
        ("there.safetensors/soup.safetensors", "cannot be written"),
    ],
)
def test_a_name_that_a_soup_cannot_have_is_refused(planted, tmp_path, name, words):
    (tmp_path / "there.safetensors").write_bytes(b"precious")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.safetensors").mkdir()
    before = sorted(tmp_path.iterdir())
    done = soup(planted["64 px"], tmp_path / name)
    assert isinstance(done.exception, UserError)
    assert words in str(done.exception) and str(tmp_path / name) in str(done.exception)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.safetensors").read_bytes() == b"precious"


def test_an_address_is_refused(planted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.app, ["soup", str(planted["64 px"].results), "-o", "s3://bucket/soup.safetensors"])
    assert "s3://bucket/soup.safetensors: is an address" in str(done.exception) and not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_nothing(planted, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    done = soup(planted["64 px"], tmp_path / "soup.safetensors")
    assert "cannot be written (No space left on device); name another file with -o" in str(done.exception)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"mean": ["__import__('os')", 0, 0]}, {"std": [1, 1, 0]}, {"std": [1, 1]}, {"image_size": "64); print("},
        {"eval_crop": 0}, {"eval_crop": float("nan")}, {"mean": [0, 0, float("inf")]},
        {"interpolation": "x'); print('"},
    ],
)  # fmt: skip
def test_what_a_stranger_says_of_images_is_not_printed_as_python(planted, tmp_path, change):
    cell = raybasin.open(planted["64 px"].results).cells.iloc[0].to_dict()
    shutil.copytree(planted["64 px"].results, tmp_path / "forged")
    [path] = (tmp_path / "forged" / "sweeps").iterdir()
    tree = yaml.safe_load(path.read_text())
    tree["facts"]["preprocess"].update(change)
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=r"facts.*preprocess"):
        export.soup(raybasin.open(tmp_path / "forged"), cell, "uniform", tmp_path / "soup.safetensors")
    assert [place.name for place in tmp_path.iterdir()] == ["forged"]


def test_timm_is_told_how_images_of_several_sizes_are_brought_to_one():
    """That is bicubic, whatever evaluation resizes by."""
    shown = Preprocess(48, 0.8, (0.5,) * 3, (0.2,) * 3, "bilinear")
    assert export.timm_config(export.View(shown, None))["interpolation"] == "bilinear"
    assert export.timm_config(export.View(shown, 60))["interpolation"] == "bicubic"


def test_timm_resizes_to_what_evaluation_resizes_to():
    for image_size in range(8, 400):
        for eval_crop in (1.0, 0.95, 0.9, 0.875, 0.8, 2 / 3, 0.5, 0.11):
            crop = export.timm_crop(image_size, eval_crop)
            [resize, *_] = timm.data.create_transform(image_size, crop_pct=crop).transforms
            assert resize.size == round(image_size / eval_crop), (image_size, eval_crop)
            assert crop == pytest.approx(eval_crop, abs=0.07)
