"""Weights in and out: bodies are exact, heads are new, and a file that does not fit is refused in one line."""

import io
import json
import math
import pickle
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import places
import pytest
import safetensors.torch
import timm
import tiny
import torch

import raybasin
from raybasin import console
from raybasin.analysis import export, integrity, results
from raybasin.analysis.rescore import rescore
from raybasin.errors import UserError
from raybasin.jobs import local as running
from raybasin.jobs import prepare
from raybasin.store import folders
from raybasin.sweep import specs
from raybasin.sweep.facts import Preprocess
from raybasin.training import evaluation, models

NAME = "test_resnet"
NET = specs.Architecture(name=NAME)
REAL = places.SHARED / "checkpoints"


@pytest.fixture(scope="module")
def state():
    """The weights of a small network with a head for 7 classes."""
    return models.build(NET, 7, seed=1).state_dict()


def body(state):
    return {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}


def assert_equal_states(found, expected):
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor), key


def complaint(path, model=NET):
    with pytest.raises(UserError) as caught:
        models.read_checkpoint(str(path), model)
    text = str(caught.value)
    assert text.startswith(f"checkpoint {path}: ") and "\n" not in text
    return text.removeprefix(f"checkpoint {path}: ")


# Networks


def test_a_network_is_the_same_for_the_same_seed_and_leaves_the_global_generator_alone(state):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = models.build(NET, 7, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert_equal_states(again, state)
    other = models.build(NET, 7, seed=2).state_dict()
    assert not torch.equal(other["fc.weight"], state["fc.weight"])


def test_a_new_head_hangs_on_the_seed_and_the_body_is_exact(state):
    fit = body(state)
    one, same, other = (models.with_new_head(NET, fit, 5, seed).state_dict() for seed in (3, 3, 4))
    assert_equal_states(body(one), fit)
    assert_equal_states(body(other), fit)
    assert one["fc.weight"].shape == (5, state["fc.weight"].shape[1])
    assert torch.equal(one["fc.weight"], same["fc.weight"])
    assert not torch.equal(one["fc.weight"], other["fc.weight"])


def test_the_body_of_a_network_is_all_but_its_head(state):
    net = models.build(NET, 7, seed=1)
    assert models.head_names(net, NET) == ("fc",)
    assert_equal_states(models.body_of(net, NET), body(state))


def test_a_state_is_a_copy():
    net = models.build(NET, 7, seed=1)
    taken = models.state_of(net)
    kept = {key: tensor.clone() for key, tensor in taken.items()}
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.add_(1)
    assert_equal_states(taken, kept)


def test_an_unknown_model_is_answered_with_the_nearest():
    with pytest.raises(UserError) as caught:
        models.check_name("test_resnt")
    assert str(caught.value) == "model.name: timm has no model 'test_resnt'; did you mean 'test_resnet'?"


def test_an_unknown_tag_is_answered_with_those_there_are():
    with pytest.raises(UserError, match=r"timm has no weights 'resnet50\.nope'; known are .*resnet50\.tv_in1k"):
        models.check_name("resnet50.nope")
    models.check_name("resnet50.tv_in1k")


# Networks of the user's own: tests/nets.py


def own(function, **keys):
    return specs.Architecture(name=function, factory=f"nets:{function}", **keys)


def test_a_factory_is_called_with_the_number_of_classes_and_its_arguments():
    model = own("group_norm", args={"width": 4}, head=("fc",))
    net = models.check(model, 5, 32)
    assert net.fc.weight.shape == (5, 4 * 16)
    one, same, other = (models.build(model, 5, seed).state_dict() for seed in (1, 1, 2))
    assert_equal_states(one, same)
    assert not torch.equal(one["fc.weight"], other["fc.weight"])
    fresh = models.with_new_head(model, one, 3, seed=9)
    assert fresh.fc.weight.shape == (3, 4 * 16)
    assert_equal_states(models.body_of(fresh, model), {k: v for k, v in one.items() if not k.startswith("fc.")})


@pytest.mark.parametrize("function", ["with_classifier", "with_config"])
def test_a_head_that_the_network_names_itself_is_found(function):
    model = own(function)
    assert models.head_names(models.check(model, 5, 32), model) == ("fc",)


def test_a_network_that_needs_plain_memory_order_gets_it():
    net = models.build(own("group_norm", head=("fc",)), 5, seed=0)
    images_BCHW = torch.randn(2, 3, 32, 32)
    expected = net(images_BCHW)
    assert torch.equal(net(images_BCHW.contiguous(memory_format=torch.channels_last)), expected)


def test_a_head_of_two_modules(tmp_path):
    model = own("two_heads", head=("fc", "other"))
    net = models.check(model, 5, 32)
    assert not any(key.startswith(("fc.", "other.")) for key in models.body_of(net, model))


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (own("nothing"), "model.factory: nets has no 'nothing'; known are "),
        (own("no_nrm"), "model.factory: nets has no 'no_nrm'; did you mean 'no_norm'?"),
        (own("a_number"), "model.factory: nets:a_number is a int, not a function"),
        (own("raises"), "model.factory: nets:raises(num_classes=5) fails (KeyError: 'no such thing')"),
        (own("no_module"), "model.factory: nets:no_module(num_classes=5) returns a str, not a torch.nn.Module"),
        (own("no_norm", args={"wdth": 4}), "model.factory: nets:no_norm(num_classes=5, wdth=4) fails (TypeError: "),
        (own("pairs"), "model.factory: pairs gives a tuple, not a tensor of logits"),
        (own("no_weights"), "model.factory: no_weights has no parameters to train"),
        (own("always_seven", head=("fc",)), "model.factory: always_seven gives an output of 2x7 for 2 images, not 2x5"),
        (own("no_norm"), "model.head: no_norm does not say which module is its head; name it; its Linear layers are f"),
        (own("no_norm", head=("head",)), "model.head: no_norm has no module 'head'; its Linear layers are fc"),
        (own("no_norm", head=("norm",)), "model.head: 'norm' of no_norm has no weights; its Linear layers are fc"),
        (own("no_norm", head=("first",)), "model.head: the shape of fc.weight follows the number of classes, but it is "
         "not in the head (first); name its module in model.head too"),
        (own("two_heads", head=("fc",)), "model.head: the shape of other.weight follows the number of classes"),
        (specs.Architecture(name="x", factory="no_such_package.networks:x"),
         "model.factory: no_such_package.networks cannot be imported (ModuleNotFoundError: No module named "
         "'no_such_package'); it must lie in the current folder or be installed"),
        (specs.Architecture(name=NAME, args={"wdth": 3}), "model.args: timm cannot build test_resnet so (TypeError: "),
        (specs.Architecture(name="vit_tiny_patch16_224"),
         "model.name: vit_tiny_patch16_224 does not take images of 32 px (AssertionError: "),
        (specs.Architecture(name=NAME, head=("fcc",)), "model.head: test_resnet has no module 'fcc'; its Linear layers "
         "are fc"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_network_that_cannot_be_swept_is_named_with_its_key(model, text):
    with pytest.raises(UserError) as caught:
        models.find(model)
        models.check(model, 5, 32)
    said = str(caught.value)
    assert said.startswith(text) and "\n" not in said


def refusal(function):
    with pytest.raises(UserError) as caught:
        models.check(own(function), 5, 32)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("model.factory: ")


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("pairs_in_training", "pairs_in_training gives a tuple in training, not a tensor of logits; turn its auxiliary "
         "classifiers off with model.args: {aux_logits: false}"),
        ("keys_in_training", "keys_in_training gives a dict in training, not a tensor of logits"),
        ("loss_in_training", "loss_in_training gives an output of a scalar in training for 2 images, not 2x5 "),
        ("needs_labels_in_training", "needs_labels_in_training fails in training on two images (TypeError: "),
        ("detached", "no weight of detached gets a gradient in training; its output may be detached"),
        ("integers_out", "integers_out gives an output of torch.int64, not real logits"),
        ("lazy", "the state of lazy holds fc.weight, which has no shape until the network sees an image (a lazy "
         "layer); give the layer its sizes"),
        ("extra_state", "the state of extra_state holds _extra_state, which is not a tensor"),
        ("tensor_as_extra_state", "the state of tensor_as_extra_state holds _extra_state, which is an extra state of "),
        ("complex_weights", "the state of complex_weights holds phase, which is complex; weights are averaged, and "
         "measured, as real numbers"),
        ("sparse_buffer", "the state of sparse_buffer holds adjacency, which is sparse; weights must be dense "),
        ("doubles", "doubles does not take images of 32 px (RuntimeError: Input type (float) and bias type (double) "
         "should be the same); its weights are torch.float64, and images are torch.float32"),
        ("random_width", "random_width is another network each time it is built (extra.weight differs)"),
        ("random_constant", "random_constant gives other logits when it is built again and given the same state; "),
        ("random_in_evaluation", "random_in_evaluation gives other logits when it is built again and given the same "),
        ("scripted", "nets:scripted(num_classes=5) returns a TorchScript module; return what it was made from"),
        ("leaves", "nets:leaves(num_classes=5) fails (SystemExit: 3)"),
        *((name, f"there is not enough memory to try {name} on two images, which is done on the processor before ")
          for name in ("out_of_memory", "out_of_memory_in_training", "asks_for_too_much")),
    ],
)  # fmt: skip
def test_what_would_fail_only_after_training_has_begun_is_found_before(function, text):
    assert refusal(function).startswith(text)


@pytest.mark.parametrize("function", ["tied", "frozen_body", "odd_buffers", "own_buffer", "part_called_module"])
def test_networks_that_are_odd_and_right_pass(function):
    models.check(own(function), 5, 32)


def test_the_check_leaves_the_weights_statistics_and_generator_as_they_were():
    model = own("batch_norm", head=("fc",))
    before = torch.get_rng_state()
    net = models.check(model, 5, 32)
    assert torch.equal(torch.get_rng_state(), before)
    assert_equal_states(net.state_dict(), models.build(model, 5, seed=0).state_dict())
    assert net.training and all(parameter.grad is None for parameter in net.parameters())


def test_an_interruption_of_the_check_says_nothing_of_the_network():
    with pytest.raises(KeyboardInterrupt):
        models.check(own("interrupted"), 5, 32)


def test_torchvisions_googlenet_is_refused_with_the_argument_that_mends_it():
    def googlenet(**args):
        return specs.Architecture(
            name="googlenet", factory="torchvision.models:googlenet", head=("fc",), args={"init_weights": False, **args}
        )

    with pytest.raises(UserError, match="gives a GoogLeNetOutputs in training, .* model.args: {aux_logits: false}"):
        models._check_training(models.build(googlenet(), 5, 0), googlenet(), 5, torch.zeros(2, 3, 64, 64))
    models.check(googlenet(aux_logits=False), 5, 64)


def test_a_network_is_looked_at_before_the_weights_that_are_to_fit_it(tmp_path):
    torch.save({"x": torch.ones(1)}, tmp_path / "x.pth")
    spec = tiny.spec(model={"factory": "nets:lazy", "pretrained": [str(tmp_path / "x.pth")]})
    with pytest.raises(UserError, match=r"model\.factory: the state of lazy holds fc\.weight"):
        prepare.prepare(spec)


def test_other_sizes_are_reached_by_arguments_of_timm():
    model = specs.Architecture(name="vit_tiny_patch16_224", args={"img_size": 32})
    state = models.check(model, 5, 32).state_dict()
    assert state["pos_embed"].shape[1] == (32 // 16) ** 2 + 1  # patches of 16 pixels and the class token


def test_a_module_that_fails_while_it_is_imported_is_named(tmp_path, monkeypatch):
    (tmp_path / "breaking_networks.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "found_networks.py").write_text("from torch import nn\nbuild = lambda num_classes: nn.Flatten()\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    models.find(specs.Architecture(name="x", factory="found_networks:build"))  # in the current folder
    with pytest.raises(UserError) as caught:
        models.find(specs.Architecture(name="x", factory="breaking_networks:build"))
    assert str(caught.value) == (
        "model.factory: breaking_networks cannot be imported "
        "(ModuleNotFoundError: No module named 'nothing_of_this_name')"
    )


def test_weights_of_a_factory_are_files(tmp_path):
    model = own("batch_norm", head=("fc",))
    state = models.build(model, 9, seed=3).state_dict()
    path = write(tmp_path / "a.pth", state)
    assert_equal_states(models.read_checkpoint(str(path), model), {k: v for k, v in state.items() if k[:3] != "fc."})
    other = write(tmp_path / "b.pth", {"x": torch.ones(1)})
    assert complaint(other, model).startswith("does not fit model batch_norm: ")
    with pytest.raises(UserError, match="model.pretrained: resnet50.tv_in1k is no file; model.factory takes"):
        models.read_checkpoint("resnet50.tv_in1k", model)


def test_images_of_a_factory_are_shown_by_imagenets_statistics():
    found = models.shown(own("no_norm"), [])
    assert found == Preprocess(224, 0.875, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")


# Whole sweeps without batch norm

SMALL_SWEEP = {"methods": {"star_sse": {"n_members": 3}, "local_de": {"n_members": 2}}}
PRETRAINED = tiny.tree()["model"]["pretrained"]
WITHOUT_BATCH_NORM = {
    "GroupNorm": {"factory": "nets:group_norm", "args": {"width": 4}, "head": "fc", "pretrained": PRETRAINED},
    "no norm": {"factory": "nets:no_norm", "head": "fc", "pretrained": PRETRAINED},
    "LayerNorm": {"name": "test_vit", "args": {"img_size": 32}, "pretrained": PRETRAINED},
}


@pytest.fixture(scope="module", params=WITHOUT_BATCH_NORM)
def swept(request, tmp_path_factory):
    """A tiny sweep of a network without batch norm, run to its end."""
    root = tmp_path_factory.mktemp("swept")
    report = raybasin.run(tiny.spec(model=WITHOUT_BATCH_NORM[request.param], **SMALL_SWEEP), root)
    assert report.complete and not report.failures
    return tiny.Sweep(folders.Folder(root), report.plan)


def test_a_sweep_without_batch_norm_is_whole_and_re_estimates_nothing(swept):
    assert integrity.check(swept.folder) == []
    assert not swept.plan.facts.batch_norm
    cells = swept.rows("cells")
    assert len(cells) == 2
    for cell in cells:
        assert all(math.isfinite(cell[name]) for name in ("barrier_error", "soup_accuracy", "greedy_soup_accuracy"))
        assert all(math.isfinite(cell[name]) for name in ("ensemble_nll", "soup_nll", "val_soup_nll", "l2_from_hub"))
        assert cell["hub_accuracy_reestimated"] == cell["hub_accuracy"]
    for table in ("scores", "predictions"):
        assert {row["bn"] for row in swept.rows(table)} == {"own"}
    assert {row["bn_images"] for row in swept.rows("paths")} == {0}
    assert {row["kind"] for row in swept.rows("scores")} == {"member", "ensemble", "uniform_soup", "greedy_soup"}
    opened = raybasin.open(swept.folder.root)
    again = rescore(swept.folder, cells, opened.facts["eval_id"], opened.threshold)
    assert again.figures > 100 and not again.differences


def test_the_ends_and_the_middle_of_a_path_without_batch_norm_are_plain_networks(swept):
    """The middle of a path is the network with the mean of both ends' weights, computed here without raybasin's."""
    cell = swept.cell("star_sse")
    rows = swept.members()
    point = next(p for p in swept.rows("paths") if p["kind"] == "hub-member" and p["t"] == 0.5)
    start, end = (models.from_bytes(swept.folder.get(f"weights/{rows[point[key]]['weights_sha256']}.safetensors"))
                  for key in ("start_id", "end_id"))  # fmt: skip
    net = models.build(swept.plan.spec.model, 5, seed=0)
    net.load_state_dict({name: (start[name].double() + end[name].double()).div(2).float() for name in start})
    context = tiny.context(swept.folder.root, swept.plan.spec)
    images_NHWC, labels_N = context.splits["val"]
    log_probs_NC = torch.from_numpy(evaluation.log_probs(net, images_NHWC, context.preprocess))
    assert cell.member_ids[0] == point["start_id"]
    assert point["nll"] == pytest.approx(torch.nn.functional.nll_loss(log_probs_NC, labels_N).item(), abs=1e-5)


def test_a_soup_loads_into_plain_torch_without_raybasin(swept, tmp_path):
    """In a process of its own, which has the file, the user's code, and timm or torch."""
    path = tmp_path / "soup.safetensors"
    opened = raybasin.open(swept.folder.root)
    cell = results.best_cell(opened).to_dict()
    how = export.soup(opened, cell, "uniform", path)
    model = swept.plan.spec.model
    script = (
        f"{how}\n"
        "import sys, torch, safetensors.torch\n"
        f"stored = safetensors.torch.load_file({str(path)!r})\n"
        "assert set(stored) == set(net.state_dict()) and all(torch.equal(v, stored[k]) for k, v in "
        "net.state_dict().items())\n"
        "assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 5)\n"
        "assert not any(name.startswith('raybasin') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=places.TESTS, check=True)
    with safetensors.safe_open(path, "pt") as file:
        facts = file.metadata()
    assert facts["weights_sha256"] == cell["soup_sha256"] and facts["model"] == model.name
    assert facts.get("factory") == model.factory
    assert json.loads(facts.get("args", "{}")) == model.args
    assert json.loads(facts.get("head", "null")) == (list(model.head) if model.head else None)


def test_a_plan_says_that_it_runs_the_users_code(swept):
    said = [line for line in console.lines(running.look(swept.plan, swept.folder)) if "code of your own" in line]
    model = swept.plan.spec.model
    assert len(said) == bool(model.factory)
    if said:
        assert model.factory in said[0] and "ImageNet's mean and deviation, crop 1," in said[0]


# Folders of checkpoints


def test_a_folder_stands_for_its_files_in_the_order_of_their_names(tmp_path, monkeypatch):
    for name in ("b.safetensors", "a.safetensors", ".hidden.safetensors", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert models.files_in(f"{tmp_path}/") == [f"{tmp_path}/a.safetensors", f"{tmp_path}/b.safetensors"]
    assert models.files_in(f"{tmp_path}/a.safetensors") == [f"{tmp_path}/a.safetensors"]
    assert models.files_in("resnet50.tv_in1k") == ["resnet50.tv_in1k"]
    monkeypatch.chdir(tmp_path.parent)
    assert models.files_in(tmp_path.name) == [f"{tmp_path.name}/a.safetensors", f"{tmp_path.name}/b.safetensors"]
    Path("resnet50").mkdir()
    assert models.files_in("resnet50") == ["resnet50"]  # the model's name; ./resnet50 is the folder


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(UserError) as caught:
        models.files_in(str(tmp_path))
    assert str(caught.value) == f"checkpoint {tmp_path}: the folder holds no .safetensors file"


# Tags: no test may need the network, so a download is replaced by a network with random weights


def test_a_tag_of_another_architecture_is_refused_before_anything_is_downloaded(monkeypatch):
    monkeypatch.setattr(models.timm, "create_model", lambda *a, **k: pytest.fail("a download was begun"))
    with pytest.raises(UserError) as caught:
        models.read_checkpoint("resnet18.tv_in1k", specs.Architecture(name="resnet50"))
    assert str(caught.value) == ("model.pretrained: resnet18.tv_in1k is another architecture than model.name resnet50")


def test_weights_that_cannot_be_downloaded_are_named_with_the_cause_and_the_way_out(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(models.timm, "create_model", offline)
    with pytest.raises(UserError) as caught:
        models.read_checkpoint("resnet50.tv_in1k", specs.Architecture(name="resnet50"))
    first, second = str(caught.value).splitlines()
    assert first == (
        "model.pretrained: the weights of resnet50.tv_in1k cannot be had (ConnectionError: no route to host)"
    )
    assert "--checkpoint FILE" in second


def saved_as_timm_does(folder, name="test_resnet", size=None):
    """A folder with weights and a config.json, with settings of its own. Returns the network."""
    torch.manual_seed(1)
    args = {"img_size": size} if size else {}
    net = timm.create_model(name, num_classes=3, **args)
    net.pretrained_cfg.update(
        mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop_pct=0.9, interpolation="bilinear", num_classes=3
    )
    timm.models.save_for_hf(net, folder, model_args=args, safe_serialization=True)
    return net


def local(folder, **model):
    return tiny.spec(model={"name": "test_resnet", "pretrained": [f"local-dir:{folder}"], **model})


def test_a_folder_of_timms_is_a_checkpoint_with_its_own_preprocessing(tmp_path):
    net = saved_as_timm_does(tmp_path / "mine")
    made = prepare.prepare(local(tmp_path / "mine", name="test_resnet")).plan
    (checkpoint,) = made.facts.checkpoints
    assert checkpoint.key == models.sha256(models.to_bytes(models.body_of(net, NET)))
    assert checkpoint.name == f"mine-{checkpoint.key[:8]}"
    shown = made.facts.preprocess
    assert (shown.mean, shown.std, shown.interpolation) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")


def test_a_folder_of_timms_names_the_network_too_which_then_needs_it_no_more(tmp_path):
    folder = tmp_path / "mine"
    net = saved_as_timm_does(folder, "test_vit", size=32)
    made = prepare.prepare(local(folder, name=f"local_dir:{folder}")).plan
    model = made.spec.model
    assert model.name == "test_vit" and model.args["img_size"] == [32, 32] and "num_classes" not in model.args
    found = {name: tensor.shape for name, tensor in models.build(model, 5, seed=0).state_dict().items()}
    assert found["pos_embed"] == net.state_dict()["pos_embed"].shape
    assert made.facts.preprocess.mean == (0.1, 0.2, 0.3)
    assert specs.parse(specs.dump(made.spec)) == made.spec


def test_a_model_of_the_hub_is_taken_from_its_cache_without_a_network(tmp_path, monkeypatch):
    net = saved_as_timm_does(tmp_path / "mine")
    kept = tmp_path / "hub" / "models--me--mine"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0123")
    (kept / "snapshots").mkdir()
    (tmp_path / "mine").rename(kept / "snapshots" / "0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(models.downloads, "unreachable", lambda url: "no network")
    for entry in ("hf-hub:me/mine", "hf_hub:me/mine"):
        assert not models.is_file(entry) and models.files_in(entry) == [entry]
        assert_equal_states(models.read_checkpoint(entry, NET), models.body_of(net, NET))
        assert models.shown(NET, [entry]) == Preprocess(224, 0.9, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")
    with pytest.raises(UserError) as caught:
        models.read_checkpoint("hf-hub:me/other", NET)
    first, second = str(caught.value).splitlines()
    assert first.startswith("model: config.json of hf-hub:me/other cannot be had (LocalEntryNotFoundError: ")
    assert "--checkpoint FILE" in second


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, r"model: config.json of local-dir:\S+ cannot be had \(FileNotFoundError: Config file not found: "),
        ({"config.json": "{]"}, r"model: config.json of local-dir:\S+ cannot be had \(JSONDecodeError: "),
        ({"config.json": "{}"}, r"model: config.json of local-dir:\S+ cannot be had \(KeyError: 'architecture'\)"),
        ({"config.json": '{"architecture": "test_resnet", "mean": "abc"}'},
         r"model: config.json of local-dir:\S+: cannot be used \(ValueError: "),
        ({"config.json": '{"architecture": "test_vit"}'},
         r"model.pretrained: local-dir:\S+ \(test_vit\) is another architecture than model.name test_resnet"),
        ({"config.json": '{"architecture": "test_resnet"}'},
         r"model.pretrained: the weights of local-dir:\S+ cannot be had \(RuntimeError: No suitable checkpoints found"),
        ({"config.json": '{"architecture": "test_resnet"}', "model.pth": {"x": Path.touch}},
         r"model.pretrained: the weights of local-dir:\S+ cannot be had \(RuntimeError: Unsupported globals: "),
    ],
)  # fmt: skip
def test_a_folder_that_is_none_of_timms_is_refused_in_a_line(tmp_path, files, said):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, content in files.items():
        if isinstance(content, str):
            (folder / name).write_text(content)
        else:
            torch.save(content, folder / name)
    with pytest.raises(UserError) as caught:
        prepare.prepare(local(folder))
    assert re.match(said, str(caught.value)) and "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_weights_of_a_factory_have_no_name_in_timm():
    with pytest.raises(UserError, match="local-dir:x is no file; model.factory takes"):
        models.read_checkpoint("local-dir:x", own("no_norm", head=("fc",)))


@pytest.mark.parametrize(("entry", "is_file"), [("a.safetensors", True), ("a.pth", True), ("dir/a", True),
                                                ("resnet50.tv_in1k", False), ("resnet50", False)])  # fmt: skip
def test_files_and_tags_are_told_apart(entry, is_file):
    assert models.is_file(entry) == is_file


def test_weights_that_were_trained_with_different_pixels_need_normalise():
    tags = ["resnet50.tv_in1k", "resnet50.fb_swsl_ig1b_ft_in1k", "inception_v3.tf_in1k"]
    resnet = specs.Architecture(name="resnet50")
    found = models.shown(resnet, tags[:2])
    assert found.mean == (0.485, 0.456, 0.406)
    with pytest.raises(UserError, match="inception_v3.tf_in1k and resnet50.tv_in1k .* set data.normalise"):
        models.shown(resnet, tags)
    assert models.shown(resnet, tags, pixels_matter=False) == found


# Files


def write(path, content):
    """As the suffix says: safetensors or a PyTorch file."""
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.pt", "a.bin", "a.pth.tar"])
def test_the_body_of_a_file_comes_back_exact(tmp_path, state, name):
    path = write(tmp_path / name, state)
    assert_equal_states(models.read_checkpoint(str(path), NET), body(state))


def test_a_file_without_a_head_fits(tmp_path, state):
    path = write(tmp_path / "a.pth", body(state))
    assert_equal_states(models.read_checkpoint(str(path), NET), body(state))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "args": {"lr": 0.1}},
        lambda s: {f"module.{key}": tensor for key, tensor in s.items()},
        lambda s: {"state_dict": {f"module.{key}": tensor for key, tensor in s.items()}},
    ],
    ids=["state_dict", "model", "module.", "state_dict with module."],
)
def test_a_state_dict_is_unwrapped(tmp_path, state, wrap):
    path = write(tmp_path / "a.pth", wrap(state))
    assert_equal_states(models.read_checkpoint(str(path), NET), body(state))


def test_weights_of_another_precision_become_those_of_the_model(tmp_path, state):
    halves = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    found = models.read_checkpoint(str(write(tmp_path / "a.pth", halves)), NET)
    assert_equal_states(found, {key: halves[key].to(tensor.dtype) for key, tensor in body(state).items()})


def test_weights_of_another_architecture_are_named_with_the_first_tensors_that_do_not_fit(tmp_path):
    other = models.build(NET, 7, seed=0).state_dict()
    first, second, third = list(other)[:3]
    wide = {key: torch.cat([tensor, tensor]) for key, tensor in other.items() if tensor.ndim and key != first}
    text = complaint(write(tmp_path / "a.pth", wide))
    assert text.startswith(f"does not fit model {NAME}: {first} is missing, not ")
    assert f"; {second} is {2 * len(other[second])}, not {len(other[second])}; {third} is " in text
    assert text.count(" is ") == 3 and text.endswith(" more")


def test_a_tensor_that_the_model_does_not_have_is_named(tmp_path, state):
    text = complaint(write(tmp_path / "a.pth", {**state, "extra.weight": torch.ones(1)}))
    assert text == f"does not fit model {NAME}: extra.weight is not in {NAME}"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, state, value):
    broken = {key: tensor.clone() for key, tensor in state.items()}
    key = next(key for key, tensor in broken.items() if tensor.ndim == 4)
    broken[key].view(-1)[3] = value
    assert complaint(write(tmp_path / "a.safetensors", broken)) == f"{key} holds values that are not finite numbers"


def test_a_head_that_is_not_finite_does_not_matter(tmp_path, state):
    broken = {**state, "fc.bias": torch.full_like(state["fc.bias"], float("nan"))}
    assert_equal_states(models.read_checkpoint(str(write(tmp_path / "a.pth", broken)), NET), body(state))


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": 3}, {}, {"a": 1}, torch.ones(3)], ids=repr)
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    text = complaint(write(tmp_path / "a.pth", content))
    assert text.startswith(("holds no state dict", f"does not fit model {NAME}"))


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_file_that_holds_code_is_refused_without_running_it(tmp_path, state, new_format):
    touched = tmp_path / "touched"
    path = tmp_path / "a.pth"
    torch.save({**state, "extra": Trap(touched)}, path, _use_new_zipfile_serialization=new_format)
    assert complaint(path).startswith("cannot be read as safetensors or as plain PyTorch weights (")
    assert not touched.exists()
    path.write_bytes(pickle.dumps(Trap(touched), protocol=2))
    complaint(path)
    assert not touched.exists()
    pickle.loads(path.read_bytes())  # noqa: S301  the trap does work
    assert touched.exists()


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_a_file_that_was_cut_short_is_refused(tmp_path, state, name, share):
    path = write(tmp_path / name, state)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert complaint(path).startswith("cannot be read as safetensors or as plain PyTorch weights (")


@pytest.mark.parametrize("content", [b"<html>404</html>", b"PK\x03\x04rubbish", b"(lp0\n.", b"0", b"\x80\x02.", b"}."])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_what_is_no_weights_file_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    complaint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_pickle_is_refused_however_it_breaks(tmp_path):
    """Its reader raises nearly anything: IndexError and AssertionError have been seen."""
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    (name,) = [part for part in parts if part.endswith("data.pkl")]
    path = tmp_path / "a.pth"
    for position in range(len(parts[name])):
        damaged = bytearray(parts[name])
        damaged[position] = ord("0")  # POP
        with zipfile.ZipFile(path, "w") as archive:
            for part, content in parts.items():
                archive.writestr(part, bytes(damaged) if part == name else content)
        complaint(path)


def test_a_file_that_is_not_there_is_named_with_the_way_out(tmp_path):
    assert complaint(tmp_path / "none.pth") == "no such file; name one with --checkpoint FILE or in model.pretrained"


# Bytes


def test_equal_tensors_give_equal_bytes_whatever_their_order_and_layout(state):
    content = models.to_bytes(state)
    reversed_ = {key: state[key].clone() for key in reversed(state)}
    assert models.to_bytes(reversed_) == content
    net = models.build(NET, 7, seed=1).to(memory_format=torch.channels_last)
    assert models.to_bytes(models.state_of(net)) == content
    assert models.sha256(content) == models.sha256(models.to_bytes(models.from_bytes(content)))


def test_one_bit_more_gives_other_bytes(state):
    other = {key: tensor.clone() for key, tensor in state.items()}
    other["fc.bias"][0] = torch.nextafter(other["fc.bias"][0], torch.tensor(9.0))
    assert models.sha256(models.to_bytes(other)) != models.sha256(models.to_bytes(state))


def test_bytes_come_back_as_the_same_tensors(state):
    odd = {**state, "zero": torch.tensor(-0.0), "count": torch.tensor(3), "nan": torch.tensor([float("nan")])}
    found = models.from_bytes(models.to_bytes(odd))
    assert set(found) == set(odd)
    for key, tensor in odd.items():
        assert found[key].numpy().tobytes() == tensor.numpy().tobytes()
        assert (found[key].shape, found[key].dtype) == (tensor.shape, tensor.dtype)


# Real weights


@pytest.mark.skipif(not REAL.is_dir(), reason="no shared checkpoints beside this repository")
def test_the_shared_checkpoints_load_and_are_different_networks_for_64_pixels():
    states = [models.read_checkpoint(str(path), NET) for path in sorted(REAL.glob("test_resnet-*.safetensors"))]
    assert len(states) == 2
    first, second = states
    assert set(first) == set(second) == set(body(models.build(NET, 7, seed=0).state_dict()))
    assert models.sha256(models.to_bytes(first)) != models.sha256(models.to_bytes(second))
    net = models.with_new_head(NET, first, 10, seed=0).eval()
    with torch.no_grad():
        logits_BC = net(torch.randn(2, 3, 64, 64))
    assert logits_BC.shape == (2, 10) and bool(torch.isfinite(logits_BC).all())


@pytest.mark.parametrize(("reason", "offline"), [("no network: name not known", True), (None, False)])
def test_the_hub_is_asked_only_where_there_is_a_network(monkeypatch, reason, offline):
    from huggingface_hub import constants as hub

    monkeypatch.setattr(models.downloads, "unreachable", lambda url: reason)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    with models._offline_without_network():
        assert hub.HF_HUB_OFFLINE is offline
    assert hub.HF_HUB_OFFLINE is False
