"""An exported folder in a process that has timm and not raybasin: it gets what the tables say, from config.json alone.

One tiny sweep on images that have the size the network sees, so that timm's own transform shows them to the bit.
"""

import importlib.util
import json
import os
import subprocess
import sys

import nets  # noqa: F401  (what a factory of the tests is found in)
import numpy as np
import places
import pytest
import safetensors
import synthetic
import timm
import tiny
import torch
import yaml
from huggingface_hub import ModelCard
from three_digits import CLASSES, OWN
from typer.testing import CliRunner

import raybasin
from raybasin import cli
from raybasin.errors import UserError
from raybasin.jobs import retention
from raybasin.serving import export, exported, onnx_file, timm_folder
from raybasin.store import checksum, folders, tables
from raybasin.sweep import plan, specs
from raybasin.sweep.facts import Preprocess

WHATS = exported.WHATS
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason='pip install "raybasin[export]" for ONNX')

STRANGER = """
import json, sys
sys.modules["raybasin"] = None  # whoever imports it fails
from pathlib import Path
import timm, torch
from PIL import Image

def scores(kind, images, temperature=1.0):
    nll, right = [], []
    for path, image in images:
        probabilities, label = kind(image, temperature), classes.index(path.parent.name)
        right.append(bool(probabilities.argmax() == label))
        nll.append(-float(probabilities[label].log()))
    return {"accuracy": sum(right) / len(right), "nll": sum(nll) / len(nll)}

def by_hand(image, temperature):
    pixels = transform(image)[None]
    with torch.inference_mode():
        return torch.stack([net(pixels).softmax(1) for net in nets]).mean(0)[0]

def by_the_card(image, temperature):
    return space["probabilities"](space["transform"](image)[None], temperature)[0]

images = [(path, Image.open(path).convert("RGB")) for path in sorted(Path(sys.argv[1]).glob("*/*.png"))]
found = {}
for folder in map(Path, sys.argv[2:]):
    about = json.loads((folder / "ensemble.json").read_text()) if (folder / "ensemble.json").exists() else None
    places = [folder / member["folder"] for member in about["members"]] if about else [folder]
    nets = [timm.create_model(f"local-dir:{place}", pretrained=True).eval() for place in places]
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(nets[0]))
    classes = (folder / "labels.txt").read_text().splitlines()
    space = {}
    exec((folder / "README.md").read_text().split("```python\\n")[1].split("```")[0], space)
    assert space["classes"] == classes
    temperature = json.loads((folder / "scores.json").read_text())["temperature"]["value"]
    found[folder.name] = {**scores(by_hand, images), "by the card": scores(by_the_card, images)["nll"],
                          "calibrated_nll": scores(by_the_card, images, temperature)["nll"]}
print(json.dumps(found))
"""


def alone(code, *arguments, cwd, isolated=True, path=()):
    """What a fresh Python says, which `-I` keeps from this checkout."""
    elsewhere = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path:
        elsewhere["PYTHONPATH"] = os.pathsep.join(map(str, path))
    command = [sys.executable, *(["-I"] if isolated else []), "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def by_a_stranger(folder, images):
    """What a fresh process finds that has timm and cannot import raybasin: by timm's functions, and by the card."""
    return alone(STRANGER, images / "test", *WHATS, cwd=folder)


def said(folder):
    return json.loads((folder / "scores.json").read_text())


@pytest.mark.parametrize("what", WHATS)
def test_a_process_with_timm_alone_gets_the_scores_of_the_tables(swept, cell, folder, by_a_stranger, what):
    column = f"{what}_accuracy"
    assert by_a_stranger[what]["accuracy"] == cell[column] == said(folder / what)["scores"]["test"]["accuracy"]["value"]
    assert by_a_stranger[what]["nll"] == pytest.approx(said(folder / what)["scores"]["test"]["nll"]["value"], abs=1e-5)
    if what in ("soup", "ensemble"):
        assert by_a_stranger[what]["nll"] == pytest.approx(cell[f"{what}_nll"], abs=1e-5)


def test_the_networks_tell_classes_apart(by_a_stranger):
    """Else the test before would hold of any network."""
    assert min(found["accuracy"] for found in by_a_stranger.values()) > 0.6
    assert len({round(found["nll"], 4) for found in by_a_stranger.values()}) >= 3


@pytest.mark.parametrize("what", WHATS)
def test_the_python_of_the_card_averages_and_calibrates(folder, by_a_stranger, what):
    on_test, found = said(folder / what)["scores"]["test"], by_a_stranger[what]
    assert found["by the card"] == pytest.approx(on_test["nll"]["value"], abs=1e-5)
    assert found["calibrated_nll"] == pytest.approx(on_test["calibrated_nll"]["value"], abs=1e-5)


@pytest.mark.parametrize("what", WHATS)
def test_the_folder_holds_what_the_card_lists_and_nothing_else(swept, cell, folder, what):
    shared = {"README.md", "labels.txt", "scores.json", "sweep.yaml"}
    network = {"config.json", "model.safetensors"}
    members = {f"member-{index}" for index in range(3)}
    assert {path.name for path in (folder / what).iterdir()} == shared | (
        {*members, "ensemble.json"} if what == "ensemble" else network
    )
    for place in members if what == "ensemble" else ("",):
        assert network == {path.name for path in (folder / what / place).iterdir()} - shared
    assert (folder / what / "labels.txt").read_text() == "a | b\nfive\nit's\n"
    stored = swept.folder.get(f"sweeps/{swept.settings_id}.yaml")
    assert (folder / what / "sweep.yaml").read_bytes() == stored
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_the_weights_are_the_stored_ones_and_say_where_they_are_from(swept, cell, folder):
    members = swept.members.set_index("member_id")["weights_sha256"]
    named = {"soup": cell["soup_sha256"], "greedy_soup": cell["greedy_soup_sha256"], "hub": members[cell["hub_id"]]}
    named |= {f"ensemble/member-{i}": members[member_id] for i, member_id in enumerate(cell["member_ids"])}
    for place, sha256 in named.items():
        content = swept.folder.get(f"weights/{sha256}.safetensors")
        written = (folder / place / "model.safetensors").read_bytes()
        kept, ours = checksum.header(content), checksum.header(written)
        assert kept[1] == ours[1] and bytes(kept[2]) == bytes(ours[2]), place
        assert ours[0]["weights_sha256"] == sha256 and ours[0]["cell_id"] == cell["cell_id"]
    with safetensors.safe_open(folder / "ensemble" / "member-1" / "model.safetensors", "pt") as file:
        facts = file.metadata()
    assert (facts["kind"], facts["member_id"], facts["member_index"]) == ("member", cell["member_ids"][1], "1")
    soup = folder.parent / "one.safetensors"
    done = CliRunner().invoke(cli.app, ["soup", str(swept.folder.root), "-o", str(soup), "--cell", cell["cell_id"]])
    assert done.exit_code == 0 and soup.read_bytes() == (folder / "soup" / "model.safetensors").read_bytes()


def test_config_json_says_how_images_are_shown(folder):
    config = json.loads((folder / "soup" / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["num_features"]) == ("test_resnet", 3, 96)
    assert config["label_names"] == list(CLASSES) and "model_args" not in config
    own = config["pretrained_cfg"]
    assert own["input_size"] == [3, 32, 32] and (own["mean"], own["std"]) == (OWN["mean"], OWN["std"])
    # Bicubic as images of several sizes are brought to one: those of a single size cannot be told from such.
    assert (own["crop_pct"], own["crop_mode"], own["interpolation"]) == (1.0, "center", "bicubic")
    assert not set(timm_folder.OF_OTHER_WEIGHTS) & set(own)
    net = timm.create_model(f"local-dir:{folder / 'soup'}", pretrained=True)
    assert net.pretrained_cfg["label_names"] == list(CLASSES)


def test_the_scores_have_intervals_verdicts_and_how_the_cell_was_chosen(swept, cell, folder):
    about = said(folder / "soup")
    assert about["chosen"] == "named by --cell" and about["cell"]["replicate"] == 0 and about["replicates"] == 1
    assert about["batch_norm"] == "reestimated" and said(folder / "hub")["batch_norm"] == "own"
    row = swept.scores.query("kind == 'uniform_soup' and split == 'test' and n_members == 3")
    row = row[row["cell_id"] == cell["cell_id"]].iloc[0]
    assert about["temperature"] == {"value": row["temperature"], "fitted_on": "val", "n_images": 20}
    on_test = about["scores"]["test"]
    assert on_test["ece"]["value"] == row["ece"] and on_test["n_images"] == swept.stored.facts.data.n_test
    for score in ("accuracy", "nll"):
        assert on_test[score]["low"] < on_test[score]["high"]
        assert on_test[score]["low"] <= on_test[score]["value"] <= on_test[score]["high"]
    told = {(one["baseline"], one["metric"]): one for one in about["comparisons"]}
    assert set(told) == {(b, m) for b in ("hub", "local_de ensemble") for m in ("accuracy", "nll")}
    [gain] = swept.comparisons.query("gain == 'soup_gain' and method == 'star_sse'").to_dict("records")
    for name in ("estimate", "low", "high", "verdict"):
        assert told["hub", "accuracy"][name] == pytest.approx(gain[name])
        assert told["hub", "accuracy"]["these_weights"][name] == pytest.approx(gain[name])  # of one replicate
    assert {one["baseline"] for one in said(folder / "hub")["comparisons"]} == {"local_de ensemble"}


def test_an_ensemble_says_how_it_is_averaged(swept, cell, folder):
    about = json.loads((folder / "ensemble" / "ensemble.json").read_text())
    assert [member["member_id"] for member in about["members"]] == list(cell["member_ids"])
    assert [member["folder"] for member in about["members"]] == ["member-0", "member-1", "member-2"]
    assert about["average"] == "mean of softmax probabilities"
    [row] = swept.scores.query("kind == 'ensemble' and split == 'test' and bn == 'own' and n_members == 3").query(
        "cell_id == @cell.cell_id").to_dict("records")  # fmt: skip
    assert about["temperature"] == row["temperature"]


@pytest.mark.parametrize("what", WHATS)
def test_the_card_is_one_of_the_hub(folder, what):
    card = ModelCard.load(folder / what / "README.md")
    assert card.data.library_name == "timm" and card.data.pipeline_tag == "image-classification"
    assert card.data.datasets == ["pics"] and {"raybasin", "timm"} <= set(card.data.tags)
    on_test = said(folder / what)["scores"]["test"]
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {score: on_test[score]["value"] for score in ("accuracy", "nll", "calibrated_nll", "ece")}
    assert {result.dataset_type for result in card.data.eval_results} == {"pics"}
    text = card.text
    assert "replicate 0 of 1" in text and "named by --cell" in text and "a \\| b, five, it's" in text
    assert f"{on_test['accuracy']['value']:.2%}".replace("%", " %") in text and "[" in text
    assert "batch-norm statistics" in text and "{%" not in text and "None" not in text.split("## How to load it")[0]


# Which cell, and which weights


def test_without_cell_it_is_the_best_on_validation(swept, tmp_path):
    done = CliRunner().invoke(cli.app, ["export", str(swept.folder.root), "-o", str(tmp_path / "best")])
    assert done.exit_code == 0, done.output
    about, best = said(tmp_path / "best"), raybasin.analysis.results.best_cell(swept)
    assert about["cell"]["cell_id"] == best["cell_id"] and about["chosen"].startswith("best on validation")
    assert done.output.startswith(f"{tmp_path / 'best'}: soup of 3 of the 3 members of cell {best['cell_id']}")
    assert f"accuracy {best['soup_accuracy']:.2%}".replace("%", " %") in done.output


def test_the_best_ensemble_is_chosen_by_ensembles(swept):
    chosen = exported.choose(swept, "ensemble", None)
    cells = swept.cells.sort_values(["val_ensemble_accuracy", "val_ensemble_nll"], ascending=[False, True])
    assert chosen.cell["cell_id"] == cells["cell_id"].iloc[0] and "ensembles are best" in chosen.how


def test_pruned_weights_are_named_with_the_way_out(swept, cell, monkeypatch, tmp_path):
    members = swept.members.set_index("member_id")["weights_sha256"]
    gone = {members[cell["member_ids"][1]], cell["soup_sha256"]}
    whole = folders.Folder.get

    def get(self, key):
        if any(sha256 in key for sha256 in gone):
            raise FileNotFoundError(key)
        return whole(self, key)

    monkeypatch.setattr(folders.Folder, "get", get)
    monkeypatch.setattr(retention, "is_pruned", lambda unit, folder: True)
    for what, words in (("ensemble", "export its soup or its hub"), ("soup", "its soups were not to be kept")):
        with pytest.raises(UserError, match=rf"cell {cell['cell_id']}: .*{words}.*keep.weights=all --retrain"):
            raybasin.export(swept, tmp_path / what, what=what, cell=cell["cell_id"])
    raybasin.export(swept, tmp_path / "hub", what="hub", cell=cell["cell_id"])
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


# Where it cannot be written


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("full", "full: is not empty, and is left as it is; name another folder with -o"),
        ("file", "file: is a file, and is left as it is; name another folder with -o"),
        ("link", "link: is a file"),
        ("soup.safetensors", "is the name of a file, and a folder is written; name soup with -o"),
        ("soup.PT", "is the name of a file"),
        ("s3://bucket/soup", "s3://bucket/soup: is an address; name a folder of this machine with -o"),
        ("file/soup", "cannot be written (Not a directory); name another folder with -o"),
    ],
)
def test_a_folder_that_cannot_be_is_refused(swept, tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_bytes(b"precious")
    (tmp_path / "file").write_bytes(b"precious")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    done = CliRunner().invoke(cli.app, ["export", str(swept.folder.root), "-o", name])
    assert isinstance(done.exception, UserError) and words in str(done.exception)
    assert "\n" not in str(done.exception) and sorted(tmp_path.rglob("*")) == before


def test_what_nobody_has_is_refused_by_name(swept, tmp_path):
    with pytest.raises(UserError, match="--what greedy: cannot be exported; did you mean 'greedy_soup'"):
        raybasin.export(swept, tmp_path / "a", what="greedy")
    with pytest.raises(UserError, match="no finished cell nonsense"):
        raybasin.export(str(swept.folder.root), tmp_path / "a", cell="nonsense")


def test_an_empty_folder_is_taken_and_parents_are_made(swept, cell, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    raybasin.export(swept, tmp_path / "link", what="hub", cell=cell["cell_id"])
    assert (tmp_path / "empty" / "README.md").exists()
    raybasin.export(swept, tmp_path / "a" / "b.v2", what="hub", cell=cell["cell_id"])
    assert (tmp_path / "a" / "b.v2" / "config.json").exists()


def test_a_write_that_fails_leaves_nothing(swept, cell, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); name another folder"):
        raybasin.export(swept, tmp_path / "new" / "soup", cell=cell["cell_id"])
    assert not list(tmp_path.iterdir())


# Other networks


def view_of(image_size=96, **changes):
    return export.View(Preprocess(image_size, 0.9, (0.5,) * 3, (0.25,) * 3, "bicubic", **changes), None)


@pytest.mark.parametrize(
    ("model", "image_size"),
    [
        ({"name": "test_vit", "args": {"dynamic_img_size": True}}, 96),
        ({"name": "test_vit", "args": {"dynamic_img_size": True}}, 160),
        ({"name": "test_vit", "args": {"img_size": 96}}, 96),
        ({"name": "test_vit"}, 160),
        ({"name": "test_vit.r160_in1k"}, 160),
        ({"name": "test_convnext", "args": {"head_init_scale": 0.5}}, 64),
        ({"name": "test_resnet.r160_in1k", "args": {"output_stride": 16}}, 32),
    ],
)  # fmt: skip
def test_timm_builds_the_same_network_from_config_json(tmp_path, model, image_size):
    from raybasin.training import models

    architecture, view = specs.Architecture.model_validate(model), view_of(image_size)
    net = models.build(architecture, 4, seed=3)
    config = timm_folder.config(architecture, net, ("a", "b", "c", "d"), view, timm_folder.Base())
    (tmp_path / "config.json").write_text(json.dumps(config))
    content = models.to_bytes(models.state_of(net))
    (tmp_path / "model.safetensors").write_bytes(content)
    again = timm_folder.read_back(tmp_path, content, view)
    pixels_NCHW = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(again(pixels_NCHW), net.eval()(pixels_NCHW))
    with pytest.raises(UserError, match=r"timm .* does not load what would be exported as it is \(input_size"):
        timm_folder.read_back(tmp_path, content, view_of(image_size + 32))


def test_published_weights_are_named_with_their_licence():
    tree = tiny.tree(model={"name": "resnet50", "pretrained": ["resnet50.tv_in1k", "hf-hub:who/net@v2", "a.pth"]})
    stored = type("Stored", (), {"spec": specs.parse(tree)})
    base = timm_folder.base_of(stored, "resnet50.tv_in1k")
    assert base.hub_id == "timm/resnet50.tv_in1k" and base.license == "bsd-3-clause"
    assert timm_folder.base_of(stored, "a-01234567") == timm_folder.Base()


FACTORY = {"name": "own", "factory": "nets:batch_norm", "args": {"width": 12}, "head": ["fc"]}


@pytest.fixture(scope="module")
def planted(images, tmp_path_factory):
    """A cell of a network that timm has not; nothing is trained, and there are no predictions."""
    from raybasin.jobs import local, prepare
    from raybasin.training import models

    root = tmp_path_factory.mktemp("planted")
    architecture = specs.Architecture.model_validate(FACTORY)
    (root / "weights.safetensors").write_bytes(models.to_bytes(models.build(architecture, 3, seed=0).state_dict()))
    data = {"name": "pics", "dir": str(images), "augment": [], "image_size": 32, "eval_crop": 1.0,
            "validation": {"images": 20}}  # fmt: skip
    tree = {**tiny.tree(methods={"star_sse": {"n_members": 2}}), "data": data,
            "model": {**FACTORY, "pretrained": [str(root / "weights.safetensors")]}}  # fmt: skip
    prepared = prepare.prepare(specs.parse(tree))
    made, there = prepared.plan, folders.create(root / "results")
    local.begin(there, prepared)
    content, one = models.to_bytes(models.state_of(models.build(architecture, 3, seed=1))), made.cells[0]
    there.put_new(f"weights/{models.sha256(content)}.safetensors", content)
    row = synthetic.cell("star_sse", 1, 1, 0, cell_id=one.cell_id, member_ids=list(one.member_ids), n_members=2,
                         soup_sha256=models.sha256(content), greedy_soup_sha256=None)  # fmt: skip
    tables.write(there, "cells", one.cell_id, [{**row, **plan.shared_columns(made.settings, one.point)}])
    return raybasin.open(root / "results")


def test_a_factory_is_written_without_being_run(planted, images, tmp_path, monkeypatch):
    from raybasin.training import models

    monkeypatch.setattr(models, "_imported", lambda factory: pytest.fail("the factory was run"))
    raybasin.export(planted, tmp_path / "own")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    assert "architecture" not in config and config["factory"] == "nets:batch_norm" and config["args"] == {"width": 12}
    text = (tmp_path / "own" / "README.md").read_text()
    assert "`timm.create_model` cannot build it" in text and "net = nets.batch_norm(num_classes=3, width=12)" in text
    assert "library_name: pytorch" in text and said(tmp_path / "own")["scores"] == {}
    code = "import sys; from pathlib import Path\nspace = {}\n"
    code += 'exec(Path(sys.argv[1]).read_text().split("```python\\n")[1].split("```")[0], space)\n'
    code += "from PIL import Image\nimage = Image.open(sys.argv[2])\n"
    code += "print(space['probabilities'](space['transform'](image)[None]).shape[1])"
    picture = next((images / "test").glob("*/*.png"))
    found = alone(code, "own/README.md", picture, cwd=tmp_path, isolated=False, path=[places.TESTS])
    assert found == 3


# ONNX


@needs_onnx
@pytest.mark.parametrize("what", ["soup", "ensemble"])
def test_onnx_computes_the_same_for_any_number_of_images(swept, cell, tmp_path, what):
    import onnxruntime

    options = ["--what", what, "--cell", cell["cell_id"], "--onnx"]
    done = CliRunner().invoke(cli.app, ["export", str(swept.folder.root), "-o", str(tmp_path / what), *options])
    assert done.exit_code == 0, done.output
    about = said(tmp_path / what)["onnx"]
    assert 0 <= about["largest_difference"] < 1e-4 and about["n_images"] == 5
    assert "its logits differ from torch's by at most" in done.output
    assert "ONNX Runtime" in (tmp_path / what / "README.md").read_text()
    for place in ["member-0", "member-1", "member-2"] if what == "ensemble" else [""]:
        path = tmp_path / what / place
        net = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
        session = onnxruntime.InferenceSession(path / "model.onnx")
        for n in (1, 7):
            pixels_NCHW = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(n))
            [logits_NC] = session.run(["logits"], {"pixels": pixels_NCHW.numpy()})
            with torch.inference_mode():
                np.testing.assert_allclose(logits_NC, net(pixels_NCHW).numpy(), atol=1e-4)


@needs_onnx
def test_a_network_that_takes_one_number_of_images_alone_is_refused(planted, tmp_path):
    """As that of the factory does."""
    with pytest.raises(UserError, match="--onnx: torch exports this network for 2 images at once and no other number"):
        raybasin.export(planted, tmp_path / "own", onnx=True)
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_a_network_that_torch_cannot_export_is_named(tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, pixels):
            return pixels.mean((2, 3)) if pixels.sum().item() > 0 else pixels.amax((2, 3))

    with pytest.raises(UserError, match="--onnx: torch .* cannot export this network .*; leave --onnx out") as error:
        onnx_file.write(Odd(), 8, tmp_path)
    assert "\n" not in str(error.value)


def test_without_onnx_its_install_line_is_named(swept, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'onnx and onnxscript are not installed.*pip install "raybasin\[export\]"'):
        raybasin.export(swept, tmp_path / "soup", onnx=True)
    assert not list(tmp_path.iterdir())


def test_yaml_and_text_cannot_be_broken_by_a_strangers_names():
    from raybasin.serving import model_card

    hostile = "x\n---\n| `a` <b> [c](d)"
    assert model_card.markdown(hostile) == "x --- \\| \\`a\\` \\<b\\> \\[c\\]\\(d\\)"
    assert yaml.safe_load(yaml.safe_dump({"name": hostile})) == {"name": hostile}


def test_scores_json_is_json_whatever_the_scores_are():
    told = exported.plain({"a": float("inf"), "b": np.float64("nan"), "c": (np.int64(3), None, True)})
    assert told == {"a": "inf", "b": None, "c": [3, None, True]}
