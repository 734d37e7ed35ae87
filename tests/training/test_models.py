"""Networks and their weights: bodies are exact, heads are new, and equal tensors are equal bytes."""

import json
import math
import subprocess
import sys

import places
import pytest
import safetensors.torch
import tiny
import torch
from states import NET, assert_equal_states, body, body_of, own

import raybasin
from raybasin import console
from raybasin.analysis import integrity, results
from raybasin.analysis.rescore import rescore
from raybasin.errors import UserError
from raybasin.jobs import local as running
from raybasin.serving import export
from raybasin.store import folders
from raybasin.sweep import specs
from raybasin.training import evaluation, models


@pytest.fixture(scope="module")
def state():
    """The weights of a small network with a head for 7 classes."""
    return models.build(NET, 7, seed=1).state_dict()


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
    assert_equal_states(body_of(net, NET), body(state))


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


def test_a_network_that_needs_plain_memory_order_gets_it():
    net = models.build(own("group_norm", head=("fc",)), 5, seed=0)
    images_BCHW = torch.randn(2, 3, 32, 32)
    expected = net(images_BCHW)
    assert torch.equal(net(images_BCHW.contiguous(memory_format=torch.channels_last)), expected)


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
    again = rescore(swept.folder, cells, opened.facts["eval_id"])
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
