"""What is read of a file, whatever wrote it, and what is refused, with the cause and without running it."""

import argparse
import collections
import datetime
import json
import re
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from raybasin.errors import UserError
from raybasin.training import checkpoints, pretrained

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}
BLOCKED = (
    ", which may run code and is not loaded; where you trust the file, save its state dict alone, or as safetensors)"
)


def read(path):
    return checkpoints.read(str(path))


def complaint(path):
    with pytest.raises(UserError) as caught:
        read(path)
    prefix = f"checkpoint {path}: "
    text = str(caught.value)
    assert text.startswith(prefix) and "\n" not in text
    assert not re.search(r"weights_only|safe_globals|\[1m", text)  # nothing that invites to run it after all
    return text.removeprefix(prefix)


def assert_weights(found):
    (one,) = found
    assert set(one.tensors) == set(WEIGHTS)
    assert all(torch.equal(one.tensors[name], tensor) for name, tensor in WEIGHTS.items())


# What is read


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.ckpt", "a.weights", "a"])
@pytest.mark.parametrize("kind", ["safetensors", "torch", "torch of before 1.6"])
def test_a_file_is_what_it_holds_and_not_what_it_is_called(tmp_path, name, kind):
    path = tmp_path / name
    if kind == "safetensors":
        safetensors.torch.save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=kind == "torch")
    assert_weights(read(path))


HARMLESS = {
    "the arguments of a script": argparse.Namespace(lr=0.1, folder=Path("out"), nested=types.SimpleNamespace(a=1)),
    "paths": [Path("a/b"), Path("/x")],
    "numpy's numbers": [np.float64(1.5), np.int64(3), np.float32(2), np.bool_(True)],
    "numpy's arrays": [np.arange(3), np.array([["a"]]), np.random.RandomState(0).get_state()],
    "times": [datetime.datetime(2020, 1, 2), datetime.date(2020, 1, 2), datetime.timedelta(1)],
    "a version": torch.__version__,
    "collections": [collections.defaultdict(list, {"a": [1]}), collections.OrderedDict(a=1), collections.Counter("aa")],
    "torch's": [torch.Size([1]), torch.float16, torch.device("cpu")],
    "plain values": [1, 1.5, "a", b"a", None, True, 1j, {1, 2}, (1, 2), {"a": [1]}],
}


@pytest.mark.parametrize("what", HARMLESS)
@pytest.mark.parametrize("new_format", [True, False])
def test_values_beside_weights_are_read_and_passed_over(tmp_path, what, new_format):
    torch.save(
        {"state_dict": WEIGHTS, "more": HARMLESS[what]}, tmp_path / "a.pth", _use_new_zipfile_serialization=new_format
    )
    assert_weights(read(tmp_path / "a.pth"))


def test_what_is_allowed_keeps_values_and_calls_nothing():
    for allowed in checkpoints._ALLOWED:
        kind = allowed[0] if isinstance(allowed, tuple) else allowed
        assert kind.__module__.split(".")[0] in (
            "builtins", "argparse", "types", "datetime", "pathlib", "numpy", "raybasin"
        )  # fmt: skip
    assert not {"getattr", "eval", "exec", "__import__", "open"} & {
        name.rpartition(".")[2] for _, name in filter(lambda one: isinstance(one, tuple), checkpoints._ALLOWED)
    }


def test_torchs_own_list_of_allowed_types_is_left_as_it_was(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save({"state_dict": WEIGHTS, "args": argparse.Namespace()}, tmp_path / "a.pth")
    read(tmp_path / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == before


# What is not


class OfItsOwn:
    pass


@pytest.mark.parametrize("new_format", [True, False])
def test_a_type_that_is_not_read_is_named(tmp_path, new_format):
    path = tmp_path / "a.pth"
    torch.save({"state_dict": WEIGHTS, "x": OfItsOwn()}, path, _use_new_zipfile_serialization=new_format)
    assert complaint(path) == (
        f"cannot be read as safetensors or as plain PyTorch weights (it holds {OfItsOwn.__module__}.OfItsOwn{BLOCKED}"
    )


def test_all_types_of_a_whole_pickled_module_are_counted(tmp_path):
    torch.save(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.BatchNorm1d(2), nn.Dropout()), tmp_path / "a.pth")
    assert " (it holds torch.nn.modules.activation.ReLU, torch.nn.modules.batchnorm.BatchNorm1d, " in (
        text := complaint(tmp_path / "a.pth")
    )
    assert " more, which may run code" in text


def test_a_torchscript_archive_is_called_one(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "a.pt")
    assert complaint(tmp_path / "a.pt") == (
        "is a TorchScript archive, which is a program; save the module's state_dict() instead"
    )


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
         "is a Git LFS pointer, not the weights; `git lfs pull` fetches them"),
        (b"\n<!DOCTYPE html><html>", "is a web page, not weights; download the file itself"),
        (b"<html>404</html>", "is a web page, not weights; download the file itself"),
        (b"\x1f\x8b\x08\x00", "is compressed; unpack it first"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras writes them; weights are read from safetensors or PyTorch "
         "files"),
        (b"GGUF\x03", "is a GGUF file; weights are read from safetensors or PyTorch files"),
        (b"just some text", "cannot be read as safetensors or as plain PyTorch weights (it begins as neither of them "
         "does)"),
        (b"PK\x03\x04 cut short", "cannot be read as safetensors or as plain PyTorch weights (the file is cut short or "
         "damaged)"),
    ],
)  # fmt: skip
def test_what_is_plainly_something_else_is_called_that(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    assert complaint(tmp_path / name) == said


def test_a_numpy_archive_is_called_one(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.zeros(2))
    assert complaint(tmp_path / "a.npz").startswith("is a NumPy archive; ")


def test_a_folder_is_no_file(tmp_path):
    assert complaint(tmp_path).startswith("is a folder, not a file")


def test_keys_are_named_where_there_are_no_weights(tmp_path):
    torch.save({"epoch": 3, "arch": "resnet"}, tmp_path / "a.pth")
    assert complaint(tmp_path / "a.pth") == (
        "holds no state dict (a mapping of names to tensors), but keys such as epoch, arch"
    )


def test_memory_that_runs_out_says_nothing_of_the_file(tmp_path, monkeypatch):
    torch.save(WEIGHTS, tmp_path / "a.pth")

    def full(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(torch, "load", full)
    assert complaint(tmp_path / "a.pth") == "there is not enough memory to read it"


def test_an_interruption_while_a_file_is_read_is_one(tmp_path, monkeypatch):
    torch.save(WEIGHTS, tmp_path / "a.pth")

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path / "a.pth")


# Files in parts


PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture()
def in_parts(tmp_path):
    index = {}
    for name, key in zip(PARTS, WEIGHTS, strict=True):
        safetensors.torch.save_file({key: WEIGHTS[key]}, tmp_path / name)
        index[key] = name
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return tmp_path


def test_an_index_stands_for_its_parts(in_parts):
    safetensors.torch.save_file(WEIGHTS, in_parts / "other.safetensors")
    safetensors.torch.save_file(WEIGHTS, in_parts / "single-00001-of-00001.safetensors")
    assert [Path(entry).name for entry in pretrained.files_in(str(in_parts))] == [
        "model.safetensors.index.json", "other.safetensors", "single-00001-of-00001.safetensors"
    ]  # fmt: skip
    assert pretrained.name_in_tables(f"{in_parts}/model.safetensors.index.json", "0123456789") == "model-01234567"
    assert_weights(read(in_parts / "model.safetensors.index.json"))


def test_a_part_is_no_checkpoint(in_parts):
    assert complaint(in_parts / PARTS[0]) == "is one of 2 parts; name model.safetensors.index.json instead"
    (in_parts / "model.safetensors.index.json").unlink()
    assert complaint(in_parts / PARTS[1]) == (
        "is one of 2 parts; model.safetensors.index.json, which joins them, is missing"
    )
    with pytest.raises(UserError) as caught:
        pretrained.files_in(str(in_parts))
    assert str(caught.value) == f"checkpoint {in_parts}: {PARTS[0]} is one of several parts, whose index is missing"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"weight_map": {"a": "../x.safetensors"}}', "names '../x.safetensors', which does not lie beside it"),
        ('{"weight_map": {"a": "x.safetensors"}}', "its part x.safetensors is missing"),
        ("[]", "is not an index of parts (TypeError)"),
        ("{", "is not an index of parts (JSONDecodeError)"),
        ('{"weight_map": 3}', "is not an index of parts (AttributeError)"),
        ('{"weight_map": {}}', "holds no state dict (a mapping of names to tensors)"),
    ],
)
def test_an_index_that_cannot_be_followed_is_refused(tmp_path, content, said):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(content)
    assert complaint(path) == said


def test_an_archive_of_nothing_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/readme.txt", "hello")
    assert complaint(tmp_path / "a.pth").startswith("cannot be read as safetensors or as plain PyTorch weights (")
