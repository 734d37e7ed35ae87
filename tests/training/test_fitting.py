"""Which weights of a file are taken for a network, under which names, and what is said of it."""

import argparse
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import timm
import tiny
import torch
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn

from raybasin import console
from raybasin.errors import UserError
from raybasin.jobs import local, prepare
from raybasin.store import folders
from raybasin.sweep import specs
from raybasin.sweep.facts import facts_from_dict, facts_to_dict
from raybasin.training import models, pretrained

NAME = "test_resnet"
NET = specs.Architecture(name=NAME)


def network(seed):
    torch.manual_seed(seed)
    return timm.create_model(NAME, num_classes=7)


@pytest.fixture(scope="module")
def raw():
    return network(1).state_dict()


@pytest.fixture(scope="module")
def averaged():
    return network(2).state_dict()


def taken(tmp_path, content, model=NET):
    torch.save(content, tmp_path / "a.pth")
    return pretrained.load_body(str(tmp_path / "a.pth"), model)


def complaint(tmp_path, content, model=NET):
    with pytest.raises(UserError) as caught:
        taken(tmp_path, content, model)
    prefix = f"checkpoint {tmp_path / 'a.pth'}: "
    assert str(caught.value).startswith(prefix) and "\n" not in str(caught.value)
    return str(caught.value).removeprefix(prefix)


def named(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def assert_body(found, state):
    expected = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    assert set(found.state) == set(expected)
    for name, tensor in expected.items():
        assert found.state[name].dtype == tensor.dtype and torch.equal(found.state[name], tensor), name


# Memory


def test_whatever_lies_in_memory_in_another_way_has_the_same_key(tmp_path, raw):
    plain = models.sha256(models.to_bytes(taken(tmp_path, raw).state))
    storage = torch.zeros(sum(tensor.numel() for tensor in raw.values()) + 1)
    views, start = {}, 1
    for name, tensor in raw.items():
        view = storage[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
        views[name] = view.copy_(tensor) if tensor.is_floating_point() else tensor
    forms = {
        "channels last": network(1).to(memory_format=torch.channels_last).state_dict(),
        "views of one storage": views,
        "parameters": {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in raw.items()},
        "scalars of shape [1], as before torch 0.4": {k: v.reshape(1) if v.ndim == 0 else v for k, v in raw.items()},
    }
    for form, state in forms.items():
        found = taken(tmp_path, state)
        assert found.notes == () and models.sha256(models.to_bytes(found.state)) == plain, form


def test_weights_that_two_names_share_are_found_under_either(tmp_path):
    model = specs.Architecture(name="tied", factory="nets:tied")
    state = models.build(model, 5, seed=1).state_dict()
    assert state["twin.weight"].data_ptr() == state["first.weight"].data_ptr()
    body = {name: tensor.clone() for name, tensor in state.items() if name[:3] != "fc."}
    for gone in (None, "twin.weight", "first.weight"):
        found = taken(tmp_path, {name: tensor for name, tensor in state.items() if name != gone}, model)
        assert set(found.state) == set(body) and all(torch.equal(found.state[name], body[name]) for name in body)
    assert len({tensor.data_ptr() for tensor in found.state.values()}) == len(body)
    models.to_bytes(found.state)  # safetensors holds no memory twice


def test_names_of_before_that_a_layer_knows_are_taken_as_torch_takes_them(tmp_path):
    model = specs.Architecture(name="weight_normed", factory="nets:weight_normed")
    state = models.build(model, 5, seed=1).state_dict()
    old = {"original0": "weight_g", "original1": "weight_v"}
    before = {}
    for name, tensor in state.items():
        start, parametrized, last = name.partition("parametrizations.weight.")
        before[start + old[last] if parametrized else name] = tensor
    assert "first.weight_g" in before
    found = taken(tmp_path, before, model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.state.items())
    assert found.notes == ("2 entries under older names, which its layers know (original0, original1)",)


# Prefixes


def test_names_that_are_all_the_networks_stay_whatever_else_they_could_be(tmp_path):
    model = specs.Architecture(name="copy_in_head", factory="nets:copy_in_head", head=("fc", "aux"))
    state = models.build(model, 5, seed=1).state_dict()
    found = taken(tmp_path, state, model)
    assert found.notes == () and set(found.state) == {n for n in state if not n.startswith(("fc.", "aux."))}
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.state.items())


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.backbone."]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_prefix_goes_where_the_names_then_fit(tmp_path, raw, prefix, suffix):
    path = tmp_path / f"a{suffix}"
    (torch.save if suffix == ".pth" else safetensors.torch.save_file)(named(prefix, raw), path)
    found = pretrained.load_body(str(path), NET)
    assert_body(found, raw)
    assert found.notes == (f"names without the prefix `{prefix}`",)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_a_part_of_the_networks_own_that_is_called_like_a_wrapper_stays(tmp_path, prefix):
    model = specs.Architecture(name="part_called_module", factory="nets:part_called_module")
    state = models.build(model, 5, seed=1).state_dict()
    assert {name for name in state if name.startswith("module.")}
    found = taken(tmp_path, named(prefix, state), model)
    assert set(found.state) == {name for name in state if not name.startswith("fc.")}
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.state.items())


def test_wrappers_inside_a_network_go_as_well(tmp_path, raw):
    """torch.compile of one part; and DataParallel around some of the names, as timm's loader takes it."""
    inner = {name.replace("layer2.", "layer2._orig_mod."): tensor for name, tensor in raw.items()}
    some = {(f"module.{name}" if name.startswith("layer") else name): tensor for name, tensor in raw.items()}
    for state, wrapper in ((inner, "_orig_mod"), (some, "module")):
        found = taken(tmp_path, state)
        assert_body(found, raw)
        assert found.notes == (f"names without `{wrapper}`",)


def test_what_stands_beside_a_lightning_module_is_left_out_and_said(tmp_path, raw):
    content = {
        "state_dict": {**named("net.", raw), "criterion.weight": torch.ones(7), "train_acc.tp": torch.zeros(7)},
        "hyper_parameters": {"lr": 0.1}, "epoch": 3, "callbacks": {}, "optimizer_states": [{"state": {}}],
    }  # fmt: skip
    found = taken(tmp_path, content)
    assert_body(found, raw)
    assert found.notes == (
        "names without the prefix `net.`", "2 entries without it left out (criterion.weight, train_acc.tp)"
    )  # fmt: skip


def test_the_averages_of_torch_and_timm_are_taken(tmp_path, raw):
    swa = torch.optim.swa_utils.AveragedModel(network(1))
    for state in (swa.state_dict(), ModelEmaV3(network(1)).state_dict()):
        found = taken(tmp_path, state)
        assert_body(found, raw)
        assert "names without the prefix `module.`" in found.notes


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        (lambda raw, other: {**raw, **named("module.", other)}, "as they are and after `module.`"),
        (lambda raw, other: {**named("model.", raw), **named("ema.module.", other)},
         "after `ema.module.` and after `model.`"),
    ],
)  # fmt: skip
def test_two_networks_under_two_prefixes_are_not_chosen_between(tmp_path, raw, averaged, rename, said):
    assert complaint(tmp_path, rename(raw, averaged)) == (
        f"holds two sets of weights that fit, whose names do so {said}; save the one that is meant as a file of its own"
    )


def test_a_prefix_that_cannot_be_mended_is_named(tmp_path, raw):
    foreign = {"encoder.a.weight": torch.ones(2), "encoder.b.weight": torch.ones(2)}
    assert complaint(tmp_path, foreign).endswith("; every name in the file begins with `encoder.`")
    cut_short = {name: tensor for name, tensor in named("encoder.", raw).items() if "layer4" not in name}
    text = complaint(tmp_path, cut_short)
    assert "layer4.0.conv1.weight is missing" in text
    assert text.endswith("; every name in the file begins with `encoder.`")
    half = {(f"encoder.{name}" if name.startswith("layer") else name): tensor for name, tensor in raw.items()}
    parameters = [name for name, _ in network(1).named_parameters() if not name.startswith("fc.")]
    inside = sum(name.startswith("layer") for name in parameters)
    text = complaint(tmp_path, half)
    assert text.endswith(f"; after `encoder.` are {inside} of its {len(parameters)} parameters, without a prefix are "
                         f"{len(parameters) - inside}")  # fmt: skip


def test_a_prefix_that_the_file_lacks_is_named(tmp_path):
    model = specs.Architecture(name="part_called_module", factory="nets:part_called_module")
    state = models.build(model, 5, seed=1).state_dict()
    inner = {name.removeprefix("module."): tensor for name, tensor in state.items() if name.startswith("module.")}
    assert complaint(tmp_path, inner, model).endswith("; the names would fit with `module.` in front")


# Which of several


@pytest.mark.parametrize(
    ("keys", "which", "notes"),
    [
        (("state_dict", "state_dict_ema"), 1, ("EMA weights under `state_dict_ema`, not `state_dict`",)),
        (("model", "model_ema"), 1, ("EMA weights under `model_ema`, not `model`",)),
        (("model", "ema"), 0, ("weights under `model`, not `ema`",)),
        (("state_dict", "ema_state_dict"), 0, ("weights under `state_dict`, not `ema_state_dict`",)),
        (("net", "ema_state_dict"), 1, ("EMA weights under `ema_state_dict`, not `net`",)),
    ],
)
def test_of_raw_and_averaged_weights_those_are_taken_that_timm_takes(tmp_path, raw, averaged, keys, which, notes):
    content = dict(zip(keys, (raw, averaged), strict=True))
    found = taken(tmp_path, {**content, "epoch": 3})
    assert_body(found, (raw, averaged)[which])
    assert found.notes == notes
    if keys[0] in ("state_dict", "model"):  # timm knows no others
        net = timm.create_model(NAME, num_classes=7, checkpoint_path=str(tmp_path / "a.pth"))
        assert torch.equal(net.state_dict()["conv1.0.weight"], found.state["conv1.0.weight"])


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema", "ema_state_dict", "model_state_dict", "weights"])
def test_one_set_of_weights_is_found_under_any_key(tmp_path, raw, key):
    optimizer = torch.optim.Adam(network(1).parameters())
    found = taken(tmp_path, {key: raw, "optimizer": optimizer.state_dict(), "epoch": 3})
    assert_body(found, raw)
    assert found.notes == (f"{'EMA weights' if 'ema' in key else 'weights'} under `{key}`",)


def test_a_key_that_timm_prefers_and_that_holds_no_weights_is_passed_over(tmp_path, raw):
    found = taken(tmp_path, {"state_dict_ema": None, "model": {"name": "resnet"}, "net": {"module": raw}})
    assert_body(found, raw)
    assert found.notes == ("weights under `net.module`",)


def test_a_student_and_its_teacher_are_not_chosen_between(tmp_path, raw, averaged):
    assert complaint(tmp_path, {"student": raw, "teacher": averaged}) == (
        "holds several sets of weights that fit, under `student`, `teacher`; "
        "save the one that is meant as a file of its own"
    )


def test_of_several_sets_the_one_that_fits_is_taken(tmp_path, raw):
    other = {f"decoder.{index}.weight": torch.ones(3) for index in range(4)}
    found = taken(tmp_path, {"generator": other, "classifier": raw})
    assert_body(found, raw)
    assert found.notes == ("weights under `classifier`",)


def test_the_file_of_timms_own_training_script_loads(tmp_path, raw):
    net = network(1)
    saver = CheckpointSaver(
        net, torch.optim.SGD(net.parameters(), lr=0.1), args=argparse.Namespace(model=NAME, folder=Path("out")),
        model_ema=ModelEmaV3(network(2)), checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path),
    )  # fmt: skip
    saver.save_checkpoint(0, metric=50.0)
    found = pretrained.load_body(str(tmp_path / "last.pth.tar"), NET)
    assert_body(found, network(2).state_dict())
    assert found.notes[0] == "EMA weights under `state_dict_ema`, not `state_dict`"


# Entries that are absent, or too many


def test_counters_of_batch_norm_may_be_absent_as_torch_has_it(tmp_path, raw):
    old = {name: tensor for name, tensor in raw.items() if not name.endswith("num_batches_tracked")}
    versioned = OrderedDict(old)
    versioned._metadata = raw._metadata  # which says that it is new, and so torch itself refuses it; timm does not
    assert network(1).load_state_dict(dict(old)) is not None
    for state in (old, versioned):
        found = taken(tmp_path, state)
        assert_body(found, {**raw, **{k: torch.tensor(0) for k in raw if k.endswith("num_batches_tracked")}})
        (note,) = found.notes
        assert note == "15 entries absent, which the network has by itself (num_batches_tracked)"


def test_statistics_of_batch_norm_may_not_be_absent(tmp_path, raw):
    text = complaint(tmp_path, {name: tensor for name, tensor in raw.items() if "running" not in name})
    assert text.startswith(f"does not fit model {NAME}: conv1.1.running_mean is missing, not 16; ")


def test_counters_of_a_profiler_are_left_out_and_said(tmp_path, raw):
    more = {name: torch.ones(1) for name in ("total_ops", "layer1.0.conv1.total_ops", "layer1.total_params")}
    found = taken(tmp_path, named("module.", {**raw, **more}))
    assert_body(found, raw)
    assert found.notes[1] == "3 entries of no weight left out (total_ops, total_params)"


def test_what_the_network_computes_itself_may_stand_in_a_file(tmp_path):
    model = specs.Architecture(name="own_buffer", factory="nets:own_buffer")
    net = models.build(model, 5, seed=1)
    assert "index" not in net.state_dict()
    found = taken(tmp_path, {**net.state_dict(), "index": net.index + 1}, model)
    assert set(found.state) == {name for name in net.state_dict() if not name.startswith("fc.")}
    assert found.notes == ("1 entry of no weight left out (index)",)


def test_a_layer_that_the_network_does_not_have_is_refused(tmp_path, raw):
    text = complaint(tmp_path, {**raw, "layer1.0.se.fc.weight": torch.ones(2)})
    assert text == f"does not fit model {NAME}: layer1.0.se.fc.weight is not in {NAME}"


def test_what_is_no_tensor_is_left_out_and_said(tmp_path, raw):
    found = taken(tmp_path, {**raw, "epoch": 3})
    assert_body(found, raw)
    assert found.notes == ("what is no tensor left out (epoch)",)


# Types


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_of_another_precision_become_the_networks_and_this_is_said(tmp_path, raw, dtype):
    other = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in raw.items()}
    found = taken(tmp_path, other)
    assert_body(found, {name: tensor.to(raw[name].dtype) for name, tensor in other.items()})
    assert found.notes == (f"{str(dtype).removeprefix('torch.')} taken as float32",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.to(torch.complex64), "is complex64, not float32; save it as float32 numbers"),
        (lambda x: x.to(torch.int8), "is int8, not float32; save it as float32 numbers"),
        (lambda x: x.to_sparse(), "is sparse; weights must be dense tensors of plain numbers"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "is quantised; weights must be dense tensors of "
         "plain numbers"),
        (lambda x: x.to("meta"), "is on the device meta, where tensors have no values"),
        (lambda x: x.double() * 1e300, "holds values that are not finite numbers"),
    ],
    ids=["complex", "integers", "sparse", "quantised", "meta", "too large"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_numbers_that_are_none_of_the_networks_are_refused_by_name(tmp_path, raw, change, said):
    state = {**raw, "layer1.0.conv1.weight": change(raw["layer1.0.conv1.weight"])}
    assert complaint(tmp_path, state) == f"layer1.0.conv1.weight {said}"


# Other layouts, through timm's own filters


def test_a_swin_in_its_authors_layout_loads(tmp_path):
    model = specs.Architecture(name="swin_tiny_patch4_window7_224")
    torch.manual_seed(1)
    net = timm.create_model(model.name, num_classes=4)

    def official(name):
        name = re.sub(r"^head\.fc\.", "head.", name)
        return re.sub(r"^layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)

    content = {official(name): tensor for name, tensor in net.state_dict().items()}
    content |= {f"{name}.relative_position_index": module.relative_position_index
                for name, module in net.named_modules() if hasattr(module, "relative_position_index")}  # fmt: skip
    found = taken(tmp_path, {"model": content}, model)
    assert found.notes == ("brought by timm into the network's layout",)
    for name, tensor in net.state_dict().items():
        assert name.startswith("head.") or torch.equal(found.state[name], tensor), name


def test_positions_are_resized_as_timm_does_and_this_is_said(tmp_path):
    model = specs.Architecture(name="test_vit", args={"img_size": 64})
    torch.manual_seed(1)
    net = timm.create_model("test_vit", num_classes=4)
    found = taken(tmp_path, net.state_dict(), model)
    assert found.notes == ("brought by timm into the network's shapes: pos_embed from 1x101x64 to 1x17x64",)
    assert torch.equal(found.state["patch_embed.proj.weight"], net.state_dict()["patch_embed.proj.weight"])


# What loads, loads as before


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext", "test_maxvit",
                                  "test_mambaout", "test_vit_relpos"])  # fmt: skip
def test_a_networks_own_state_is_its_checkpoint_to_the_bit(tmp_path, name):
    model = specs.Architecture(name=name)
    torch.manual_seed(1)
    net = timm.create_model(name, num_classes=4)
    body = models.without_head(models.state_of(net), models.head_names(net, model))
    found = taken(tmp_path, net.state_dict(), model)
    assert found.notes == () and models.to_bytes(found.state) == models.to_bytes(body)


# In a plan


def test_a_plan_says_what_it_took_of_each_file_and_no_id_hangs_on_it(tmp_path, raw, averaged):
    torch.save({"state_dict": raw, "state_dict_ema": named("module.", averaged)}, tmp_path / "both.pth")
    safetensors.torch.save_file({k: v for k, v in averaged.items() if k[:3] != "fc."}, tmp_path / "both.safetensors")
    torch.save(raw, tmp_path / "plain.pth")
    path, same, plain = (str(tmp_path / name) for name in ("both.pth", "both.safetensors", "plain.pth"))
    normalise = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}
    made, other = (
        prepare.prepare(tiny.spec(model__pretrained=[one, plain], data__normalise=normalise)).plan
        for one in (path, same)
    )
    assert set(made.cell) == set(other.cell) and made.settings_id == other.settings_id
    looked = [local.look(each, folders.Folder(tmp_path / "none")) for each in (made, other)]
    said = [[line for line in console.lines(one) if line.startswith("checkpoint ")] for one in looked]
    name = made.facts.checkpoints[0].name
    assert said == [
        [f"checkpoint {name}: EMA weights under `state_dict_ema`, not `state_dict`; "
         "names without the prefix `module.`"], []
    ]  # fmt: skip
    assert facts_from_dict(facts_to_dict(made.facts)) == made.facts


def test_a_hostile_name_does_not_reach_the_terminal(tmp_path, raw):
    found = taken(tmp_path, named("\x1b[31mred.", raw))
    assert_body(found, raw)
    assert all(text.isprintable() for text in found.notes)
    assert complaint(tmp_path, {"\x1b[2J": raw["bn1.weight"]}).isprintable()
