"""Pre-trained weights come back exact, and what does not fit is refused in one line."""

import io
import pickle
import re
import zipfile
from pathlib import Path

import places
import pytest
import safetensors.torch
import timm
import tiny
import torch
from states import NAME, NET, assert_equal_states, body, body_of, own

from raybasin.errors import UserError
from raybasin.jobs import prepare
from raybasin.sweep import specs
from raybasin.sweep.facts import Preprocess
from raybasin.training import models, pretrained

REAL = places.SHARED / "checkpoints"


@pytest.fixture(scope="module")
def state():
    """The weights of a small network with a head for 7 classes."""
    return models.build(NET, 7, seed=1).state_dict()


def read_checkpoint(entry, model):
    return pretrained.load_body(entry, model).state


def complaint(path, model=NET):
    with pytest.raises(UserError) as caught:
        read_checkpoint(str(path), model)
    text = str(caught.value)
    assert text.startswith(f"checkpoint {path}: ") and "\n" not in text
    return text.removeprefix(f"checkpoint {path}: ")


# Folders of checkpoints


def test_a_folder_stands_for_its_files_in_the_order_of_their_names(tmp_path, monkeypatch):
    for name in ("b.safetensors", "a.safetensors", ".hidden.safetensors", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert pretrained.files_in(f"{tmp_path}/") == [f"{tmp_path}/a.safetensors", f"{tmp_path}/b.safetensors"]
    assert pretrained.files_in(f"{tmp_path}/a.safetensors") == [f"{tmp_path}/a.safetensors"]
    assert pretrained.files_in("resnet50.tv_in1k") == ["resnet50.tv_in1k"]
    monkeypatch.chdir(tmp_path.parent)
    assert pretrained.files_in(tmp_path.name) == [f"{tmp_path.name}/a.safetensors", f"{tmp_path.name}/b.safetensors"]
    Path("resnet50").mkdir()
    assert pretrained.files_in("resnet50") == ["resnet50"]  # the model's name; ./resnet50 is the folder


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(UserError) as caught:
        pretrained.files_in(str(tmp_path))
    assert str(caught.value) == f"checkpoint {tmp_path}: the folder holds no .safetensors file"


# Tags: no test may need the network, so a download is replaced by a network with random weights


def test_a_tag_of_another_architecture_is_refused_before_anything_is_downloaded(monkeypatch):
    monkeypatch.setattr(pretrained.timm, "create_model", lambda *a, **k: pytest.fail("a download was begun"))
    with pytest.raises(UserError) as caught:
        read_checkpoint("resnet18.tv_in1k", specs.Architecture(name="resnet50"))
    assert str(caught.value) == ("model.pretrained: resnet18.tv_in1k is another architecture than model.name resnet50")


def test_weights_that_cannot_be_downloaded_are_named_with_the_cause_and_the_way_out(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(pretrained.timm, "create_model", offline)
    with pytest.raises(UserError) as caught:
        read_checkpoint("resnet50.tv_in1k", specs.Architecture(name="resnet50"))
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
    assert checkpoint.key == models.sha256(models.to_bytes(body_of(net, NET)))
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
    monkeypatch.setattr(pretrained.downloads, "unreachable", lambda url: "no network")
    for entry in ("hf-hub:me/mine", "hf_hub:me/mine"):
        assert not pretrained.is_file(entry) and pretrained.files_in(entry) == [entry]
        assert_equal_states(read_checkpoint(entry, NET), body_of(net, NET))
        assert pretrained.preprocess(NET, [entry]) == Preprocess(160, 0.9, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")
    with pytest.raises(UserError) as caught:
        read_checkpoint("hf-hub:me/other", NET)
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
        read_checkpoint("local-dir:x", own("no_norm", head=("fc",)))


@pytest.mark.parametrize(("entry", "is_file"), [("a.safetensors", True), ("a.pth", True), ("dir/a", True),
                                                ("resnet50.tv_in1k", False), ("resnet50", False)])  # fmt: skip
def test_files_and_tags_are_told_apart(entry, is_file):
    assert pretrained.is_file(entry) == is_file


def test_weights_that_were_trained_with_different_pixels_need_normalise():
    tags = ["resnet50.tv_in1k", "resnet50.fb_swsl_ig1b_ft_in1k", "inception_v3.tf_in1k"]
    resnet = specs.Architecture(name="resnet50")
    found = pretrained.preprocess(resnet, tags[:2])
    assert found.mean == (0.485, 0.456, 0.406)
    with pytest.raises(UserError, match="inception_v3.tf_in1k and resnet50.tv_in1k .* set data.normalise"):
        pretrained.preprocess(resnet, tags)
    assert pretrained.preprocess(resnet, tags, pixels_matter=False) == found


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
    assert_equal_states(read_checkpoint(str(path), NET), body(state))


def test_a_file_without_a_head_fits(tmp_path, state):
    path = write(tmp_path / "a.pth", body(state))
    assert_equal_states(read_checkpoint(str(path), NET), body(state))


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
    assert_equal_states(read_checkpoint(str(path), NET), body(state))


def test_weights_of_another_precision_become_those_of_the_model(tmp_path, state):
    halves = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    found = read_checkpoint(str(write(tmp_path / "a.pth", halves)), NET)
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
    assert_equal_states(read_checkpoint(str(write(tmp_path / "a.pth", broken)), NET), body(state))


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


def test_weights_of_a_factory_are_files(tmp_path):
    model = own("batch_norm", head=("fc",))
    state = models.build(model, 9, seed=3).state_dict()
    path = write(tmp_path / "a.pth", state)
    assert_equal_states(read_checkpoint(str(path), model), {k: v for k, v in state.items() if k[:3] != "fc."})
    other = write(tmp_path / "b.pth", {"x": torch.ones(1)})
    assert complaint(other, model).startswith("does not fit model batch_norm: ")
    with pytest.raises(UserError, match="model.pretrained: resnet50.tv_in1k is no file; model.factory takes"):
        read_checkpoint("resnet50.tv_in1k", model)


def test_images_of_a_factory_are_shown_by_imagenets_statistics():
    found = pretrained.preprocess(own("no_norm"), [])
    assert found == Preprocess(224, 0.875, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")


# Real weights


@pytest.mark.skipif(not REAL.is_dir(), reason="no shared checkpoints beside this repository")
def test_the_shared_checkpoints_load_and_are_different_networks_for_64_pixels():
    states = [read_checkpoint(str(path), NET) for path in sorted(REAL.glob("test_resnet-*.safetensors"))]
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

    monkeypatch.setattr(pretrained.downloads, "unreachable", lambda url: reason)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    seen, net = [], models.build(NET, 7, seed=1)
    monkeypatch.setattr(pretrained.timm, "create_model", lambda *a, **k: seen.append(hub.HF_HUB_OFFLINE) or net)
    read_checkpoint("resnet50.tv_in1k", specs.Architecture(name="resnet50"))
    assert seen[0] is offline and hub.HF_HUB_OFFLINE is False
