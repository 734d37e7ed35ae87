"""Sweep files: what is wrong with one is said in a line that names the key, and what is right keeps its id for ever."""

import copy
import datetime
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import places
import pytest
import tiny
import yaml

from raybasin.errors import UserError
from raybasin.jobs import local
from raybasin.sweep import ids, specs
from raybasin.sweep.methods import METHODS

SWEEPS = places.REPOSITORY / "sweeps"
SMALL = {
    "name": "a",
    "data": {"name": "digits"},
    "model": {
        "name": "test_resnet",
        "pretrained": [{"pretrain": {"data": {"name": "digits"}, "recipe": {"epochs": 1}}}, "x.safetensors"],
    },
    "recipe": {"epochs": 2},
    "methods": {"star_sse": {"n_members": 3}},
}
PRETRAIN = "model.pretrained.0.pretrain"


def changed(key, value):
    """`SMALL` with the dotted key set."""
    tree = node = copy.deepcopy(SMALL)
    *parents, last = key.split(".")
    for parent in parents:
        node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
    node[last] = value
    return tree


def complaint(tree):
    with pytest.raises(UserError) as caught:
        specs.parse(tree, "f.yaml")
    return str(caught.value)


def load(tmp_path, content, *overrides):
    path = tmp_path / "f.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return specs.load(path, overrides)


def load_complaint(tmp_path, content, *overrides):
    with pytest.raises(UserError) as caught:
        load(tmp_path, content, *overrides)
    return str(caught.value).replace(f"{tmp_path}{os.sep}", "")


# Errors of content


@pytest.mark.parametrize(
    ("key", "value"), [("data.dir", ""), ("model.pretrained", [""]), ("shifts", {"s": {"format": "folder", "dir": ""}})]
)
def test_an_empty_path_is_not_the_current_folder(key, value):
    assert "is empty; name a path" in complaint(changed(key, value))


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("replicate", "replicates"),
        ("data.augmnt", "augment"),
        ("data.normalise.means", "mean"),
        ("data.train_images.perclass", "per_class"),
        ("data.test_images.perclass", "per_class"),
        ("data.validation.image", "images"),
        ("model.pretraind", "pretrained"),
        (f"{PRETRAIN}.sed", "seed"),
        (f"{PRETRAIN}.counts", "count"),
        ("model.factry", "factory"),
        ("model.heads", "head"),
        (f"{PRETRAIN}.data.nme", "name"),
        (f"{PRETRAIN}.data.augmentation", "augment"),
        (f"{PRETRAIN}.recipe.epoch", "epochs"),
        ("recipe.batchsize", "batch_size"),
        ("recipe.Epochs", "epochs"),
        ("methods.star_sse.lr_ratios", "lr_ratio"),
        ("basin.point", "points"),
        ("workers.cpu", "cpus"),
        ("workers.hang_second", "hang_seconds"),
        ("shifts.c.corruption", "corruptions"),
        ("shifts.data.severitys", "severities"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one_at_every_level(key, nearest):
    assert complaint(changed(key, 1)) == f"f.yaml: {key}: unknown key; did you mean '{nearest}'?"


def test_a_key_of_a_pretrain_entry_gets_the_nearest_known_one():
    assert complaint(changed("model.pretrained", [{"pretrained": {}}])) == (
        "f.yaml: model.pretrained.0.pretrained: unknown key; did you mean 'pretrain'?"
    )


def test_a_key_that_is_like_no_other_is_answered_with_all_that_are_known():
    assert complaint(changed("basin.zzz", 1)) == (
        "f.yaml: basin.zzz: unknown key; known are points, by, threshold, bn_images, pairs, splits, split, trace, "
        "trace_times, trace_points"
    )


def test_a_misspelt_key_is_the_error_even_where_it_leaves_a_needed_one_missing():
    tree = changed("recipe", {"epochss": 3})
    assert complaint(tree) == "f.yaml: recipe.epochss: unknown key; did you mean 'epochs'?"


@pytest.mark.parametrize(
    ("method", "hint"),
    [("starsse", "did you mean 'star_sse'?"), ("star-sse", "did you mean 'star_sse'?"),
     ("Zzz", "known are local_de, global_de, star_sse, sse, tree, fge, csgld, swag")],
)  # fmt: skip
def test_an_unknown_method_is_named(method, hint):
    assert complaint(changed(f"methods.{method}", {})) == f"f.yaml: methods.{method}: unknown method; {hint}"


@pytest.mark.parametrize("key", ["name", "data", "model", "recipe", "methods"])
def test_a_missing_key_is_named(key):
    tree = {name: value for name, value in SMALL.items() if name != key}
    assert complaint(tree) == f"f.yaml: {key}: is missing"


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("methods", {}, "must not be empty, not {}"),
        ("methods", [], "must hold keys, not []"),
        ("methods.star_sse", None, "must hold keys, not None"),
        ("model", 3, "must hold keys, not 3"),
        ("data", None, "must hold keys, not None"),
        ("model.factory", "networks.small", "must be package.module:function, for instance my_networks:small_cnn"),
        ("model.factory", "../networks:small", "must be package.module:function, for instance my_networks:small_cnn"),
        ("model.factory", "a:b c", "must be package.module:function, for instance my_networks:small_cnn"),
        ("model.head", [], "must not be empty, not []"),
        ("model.head", ["fc", "fc"], "holds fc twice"),
        ("model.args", [1], "must hold keys, not [1]"),
        ("model.args", {"a-b": 1}, "'a-b' is not the name of an argument"),
        ("model.args", {"class": 1}, "'class' is not the name of an argument"),
        ("model.args", {"num_classes": 3}, "num_classes is not for a sweep file to set; it follows from the data"),
        ("model.args", {"checkpoint_path": "x"},
         "checkpoint_path is not for a sweep file to set; weights come from model.pretrained"),
        ("model.args", {"width": [math.nan]}, "must be a finite number, not nan"),
        ("model.args", {"at": datetime.date(2020, 1, 1)},
         "must be numbers, text, true/false, null, or lists and mappings of these, not datetime.date(2020, 1, 1)"),
        (f"{PRETRAIN}.count", 0, "must be greater than or equal to 1, not 0"),
        (f"{PRETRAIN}.count", 10_001, "must be less than or equal to 10000, not 10001"),
        ("model.pretrained", [], "must not be empty, not []"),
        ("model.pretrained", "x.pth", "must be a list, not 'x.pth'"),
        ("data.augment", "flip", "must be a list, not 'flip'"),
        ("data.classes", [1], "must hold at least 2 values, not [1]"),
        ("recipe.epochs", None, "must be a valid integer, not None"),
        ("recipe.epochs", 0, "must be greater than or equal to 1, not 0"),
        ("recipe.batch_size", 1, "must be greater than or equal to 2, not 1"),
        ("recipe.optimizer", 7, "must be a valid string, not 7"),
        ("recipe.optimizer_args", {"lr": 1}, "lr is given as recipe.lr"),
        ("recipe.optimizer_args", {"momentum": 0.5}, "momentum is given as recipe.momentum"),
        ("recipe.layer_decay", 1, "must be less than 1, not 1"),
        ("recipe.layer_decay_min_scale", 0.1, "has no effect without layer_decay"),
        ("recipe.freeze", ["fc", "fc"], "holds fc twice"),
        ("recipe.head_epochs", -1, "must be greater than or equal to 0, not -1"),
        ("recipe.head_lr", 0.1, "has no effect without head_epochs"),
        ("recipe.ema_decay", 0, "must be greater than 0, not 0"),
        ("recipe.ema_warmup", True, "has no effect without ema_decay"),
        (f"{PRETRAIN}.recipe.freeze", ["conv1"], "is for fine-tuning; a pre-training starts from random weights"),
        (f"{PRETRAIN}.recipe.head_epochs", 1, "is for fine-tuning; a pre-training starts from random weights"),
        ("recipe.precision", "fp8", "must be 'fp32', 'tf32', 'bf16' or 'fp16', not 'fp8'"),
        ("recipe.warmup", 1, "must be less than 1, not 1"),
        ("recipe.grad_clip", 0, "must be greater than 0, not 0"),
        ("recipe.label_smoothing", 1.0, "must be less than 1, not 1.0"),
        ("recipe.mixup", -1, "must be greater than or equal to 0, not -1"),
        ("recipe.cutmix", -1, "must be greater than or equal to 0, not -1"),
        ("recipe.drop_path", 1, "must be less than 1, not 1"),
        ("recipe.decay", "some", "must be 'all' or 'matrices', not 'some'"),
        ("recipe.betas", 0.9, "must be a list, not 0.9"),
        ("basin.bn_images", 1, "must be greater than or equal to 2, not 1"),
        ("recipe.betas", [0.9, 0.99], "has no effect with optimizer sgd; leave it out"),
        ("recipe.eps", 0.1, "has no effect with optimizer sgd; leave it out"),
        ("recipe.warmup_lr", 0.01, "has no effect without warmup, the share of a fine-tuning that it takes"),
        ("recipe.mix_prob", 0.5, "has no effect without mixup or cutmix"),
        ("recipe.mix_switch_prob", 0.1, "has no effect without mixup or cutmix"),
        ("recipe.mix_prob", 2, "must be less than or equal to 1, not 2"),
        ("methods.star_sse.chain", 2, "only tree takes it"),
        ("methods.star_sse.low_ratio", 0.1, "only fge takes it"),
        ("methods.star_sse.temperature", 1, "only csgld takes it"),
        ("methods.star_sse.rank", 3, "only swag takes it"),
        ("recipe.momentum", 1, "must be less than 1, not 1"),
        ("recipe.schedule_by", "batch", "must be 'step' or 'epoch', not 'batch'"),
        ("recipe.weight_decay", -1, "must be greater than or equal to 0, not -1"),
        ("recipe.lr", 0, "must be greater than 0, not 0"),
        ("recipe.lr", 1e300, "must be less than or equal to 1000000, not 1e+300"),
        ("methods.star_sse.n_members", 1, "must be greater than or equal to 2, not 1"),
        ("methods.star_sse.lr_ratio", [], "must not be empty, not []"),
        ("methods.star_sse.lr_ratio", [1, 2, 1.0], "holds 1.0 twice"),
        ("methods.star_sse.cycle_ratio", [0.5, 0.5], "holds 0.5 twice"),
        ("basin.points", 4, "must be odd, so that the middle of a path is one of them, not 4"),
        ("basin.trace_times", 4, "has no effect without trace: true; add it, or leave trace_times out"),
        ("basin.trace_points", 7, "has no effect without trace: true; add it, or leave trace_points out"),
        ("basin.points", 1, "must be greater than or equal to 3, not 1"),
        ("basin.splits", ["test"], "must hold val, on which exits and, by default, barriers are decided"),
        ("basin.splits", ["val", "val"], "holds val twice"),
        ("basin.splits", [], "must not be empty, not []"),
        ("basin.threshold", 0, "must be greater than 0, not 0"),
        ("data.augment", ["flip", "flip"], "holds flip twice"),
        ("data.augment", ["pad_crop", "random_resized_crop"],
         "pad_crop and random_resized_crop exclude each other; keep one"),
        ("data.augment", ["pad_crop", "random_resized_crop_bicubic"],
         "pad_crop and random_resized_crop_bicubic exclude each other; keep one"),
        ("workers.cpus", "all", "must be a number above 0 or auto, not 'all'"),
        ("data.decode", "worker", "must be 'auto', 'arrays', 'workers' or 'cache', not 'worker'"),
        ("data.validation", 1.0, "must be less than 1, not 1.0"),
        ("data.validation", "offical", "must be a share, {images: count} or official, not 'offical'"),
        ("data.train_images", 0, "must be greater than or equal to 1, not 0"),
        ("data.image_size", 4, "must be greater than or equal to 8, not 4"),
        ("data.name", "../x", "must be letters, digits, '.', '_' or '-', beginning with a letter or digit"),
        ("name", "a/b", "must be letters, digits, '.', '_' or '-', beginning with a letter or digit"),
        ("soups", ["uniform", "uniform"], "holds uniform twice"),
        ("seed", -1, "must be greater than or equal to 0, not -1"),
        ("search.kind", "line", "must be 'grid', 'random', 'searcher', 'boundary' or 'best', not 'line'"),
    ],
)  # fmt: skip
def test_an_impossible_value_is_named_with_its_key(key, value, text):
    assert complaint(changed(key, value)) == f"f.yaml: {key}: {text}"


CIFAR_C = {"format": "cifar-c", "dir": "c"}


@pytest.mark.parametrize(
    ("shift", "text"),
    [
        ({**CIFAR_C, "format": "zip"},
         "format: must be 'cifar-c', 'cifar-10.1', 'folder' or 'corrupt', not 'zip'"),
        ({"dir": "c"}, "format: is missing"),
        ({"format": "cifar-c"}, "dir: is missing; format cifar-c needs the folder with the files"),
        ({"format": "folder"}, "dir: is missing; format folder needs the folder with the files"),
        ({**CIFAR_C, "format": "corrupt"}, "dir: has no effect with format corrupt; leave it out"),
        ({**CIFAR_C, "corruptions": ["fogg"]}, "corruptions: unknown corruption 'fogg'; did you mean 'fog'?"),
        ({**CIFAR_C, "corruptions": []}, "corruptions: must not be empty, not []"),
        ({**CIFAR_C, "corruptions": ["fog", "fog"]}, "corruptions: holds fog twice"),
        ({**CIFAR_C, "corruptions": "../x"}, "corruptions: unknown corruption '../x'; known are gaussian_noise, "),
        ({**CIFAR_C, "severities": [0]}, "severities.0: must be greater than or equal to 1, not 0"),
        ({**CIFAR_C, "severities": 6}, "severities.0: must be less than or equal to 5, not 6"),
        ({**CIFAR_C, "severities": [True]}, "severities.0: must be a number, not true/false"),
        ({**CIFAR_C, "severities": [1, 1]}, "severities: holds 1 twice"),
        ({**CIFAR_C, "images": 0}, "images: must be greater than or equal to 1, not 0"),
        ({**CIFAR_C, "version": "v4"}, "version: has no effect with format cifar-c; leave it out"),
        ({**CIFAR_C, "format": "cifar-10.1", "version": "v5"}, "version: must be 'v4' or 'v6', not 'v5'"),
        ({**CIFAR_C, "format": "cifar-10.1", "severities": 1},
         "severities: has no effect with format cifar-10.1; leave it out"),
        ({**CIFAR_C, "format": "folder", "corruptions": "fog"},
         "corruptions: has no effect with format folder; leave it out"),
        ({**CIFAR_C, "split": "test"}, "split: has no effect with format cifar-c; leave it out"),
        ({**CIFAR_C, "format": "folder", "split": "../x"},
         "split: must be letters, digits, '.', '_' or '-', beginning with a letter or digit"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["c", "CIFAR-10.C"])
def test_what_is_wrong_with_a_shift_is_named_with_its_key(name, shift, text):
    assert complaint({**SMALL, "shifts": {name: shift}}).startswith(f"f.yaml: shifts.{name}.{text}")


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_a_shift_cannot_be_called_like_a_split_of_the_sweep(name):
    assert complaint({**SMALL, "shifts": {name: CIFAR_C}}) == (
        f"f.yaml: shifts.{name}: is a split of the sweep's own data; take another name"
    )


def test_names_of_shifts_are_names_and_those_of_their_sets_differ():
    assert complaint({**SMALL, "shifts": {"a/b": CIFAR_C}}).startswith(
        "f.yaml: shifts.a/b: must be letters, digits, '.', '_' or '-'"
    )
    two = {"c": {**CIFAR_C, "corruptions": "fog"}, "c-fog-1": {"format": "folder", "dir": "x"}}
    assert complaint({**SMALL, "shifts": two}) == (
        "f.yaml: shifts.c-fog-1: its set c-fog-1 is called like one of c; take another name"
    )


def test_shifts_survive_being_written_out_with_every_default():
    shifts = {"c": CIFAR_C, "v": {"format": "cifar-10.1", "dir": "v"}, "f": {"format": "folder", "dir": "f"},
              "m": {"format": "corrupt", "corruptions": "fog", "severities": 2}}  # fmt: skip
    made = specs.parse({**SMALL, "shifts": shifts})
    assert specs.parse(specs.dump(made)) == made
    assert [split.name for split in specs.shift_splits(made.shifts)][-3:] == ["v", "f", "m-fog-2"]


def test_a_number_of_thousands_of_digits_is_too_large():
    assert complaint(changed("recipe.epochs", 16**5000)) == "f.yaml: recipe.epochs: must be less than 2147483648"


@pytest.mark.parametrize(
    ("key", "value", "where", "text"),
    [
        ("methods.star_sse.lr_ratio", [0], "methods.star_sse.lr_ratio.0", "must be greater than 0, not 0"),
        ("methods.star_sse.cycle_ratio", [1, -2], "methods.star_sse.cycle_ratio.1", "must be greater than 0, not -2"),
        ("methods.star_sse.lr_ratio", [True], "methods.star_sse.lr_ratio.0", "must be a number, not true/false"),
        ("data.augment", ["flipp"], "data.augment.0", "must be 'random_resized_crop', 'random_resized_crop_bicubic', "
         "'pad_crop', 'flip', 'rand_augment', 'color_jitter' or 'random_erasing', not 'flipp'"),
        ("basin.splits", ["train"], "basin.splits.0", "must be 'val' or 'test', not 'train'"),
        ("model.pretrained", [3], "model.pretrained.0", "must be a timm tag, a file, a folder or "
         "{pretrain: {data, recipe, seed}}"),
        ("model.pretrained", [{}], "model.pretrained.0.pretrain", "is missing"),
        ("data.validation", {"images": 0}, "data.validation.images", "must be greater than or equal to 1, not 0"),
        ("data.train_images", {"per_class": 0}, "data.train_images.per_class",
         "must be greater than or equal to 1, not 0"),
        ("data.train_images", {}, "data.train_images.per_class", "is missing"),
        ("data.normalise", {"mean": [0, 0, 0], "std": [1, 1, 0]}, "data.normalise.std.2",
         "must be greater than 0, not 0"),
    ],
)  # fmt: skip
def test_an_impossible_value_inside_a_list_or_a_mapping_is_named_with_its_place(key, value, where, text):
    assert complaint(changed(key, value)) == f"f.yaml: {where}: {text}"


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"trace": "perhaps"}, "trace: must be a valid boolean, unable to interpret input, not 'perhaps'"),
        ({"trace": True, "trace_points": 4},
         "trace_points: must be odd, so that the middle of a path is one of them, not 4"),
        ({"trace": True, "trace_times": 0}, "trace_times: must be greater than or equal to 1, not 0"),
        ({"trce": True}, "trce: unknown key; did you mean 'trace'?"),
    ],
)  # fmt: skip
def test_a_wrong_key_of_a_trace_is_named(keys, text):
    assert complaint(changed("basin", keys)) == f"f.yaml: basin.{text}"


@pytest.mark.parametrize(
    "key",
    ["recipe.epochs", "recipe.lr", "seed", "methods.star_sse.n_members", "data.validation", "data.image_size",
     "basin.threshold", "workers.cpus", "workers.hang_seconds", f"{PRETRAIN}.seed"],
)  # fmt: skip
def test_true_is_no_number(key):
    assert complaint(changed(key, True)) == f"f.yaml: {key}: must be a number, not true/false"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "key", ["recipe.lr", "basin.threshold", "recipe.weight_decay", "workers.cpus", "workers.hang_seconds"]
)
def test_nan_and_infinity_are_no_values(key, value):
    assert complaint(changed(key, value)) == f"f.yaml: {key}: must be a finite number, not {value}"


@pytest.mark.parametrize(("key", "value"), [("recipe.epochs", "many"), ("recipe.epochs", 2.5), ("recipe.lr", [1]),
                                            ("name", 3), ("question", ["?"]), ("recipe.nesterov", 3)])  # fmt: skip
def test_a_value_of_the_wrong_type_is_named_with_its_key(key, value):
    text = complaint(changed(key, value))
    assert text.startswith(f"f.yaml: {key}: must be a valid ") and text.endswith(f"not {value!r}")


@pytest.mark.parametrize("ratio", [{"lr_ratio": [2]}, {"cycle_ratio": 0.5}, {"lr_ratio": [1, 2]}])
def test_local_de_takes_no_ratios(ratio):
    assert complaint(changed("methods.local_de", ratio)) == (
        "f.yaml: methods.local_de: takes no lr_ratio or cycle_ratio; its members are ordinary fine-tunings"
    )


@pytest.mark.parametrize(
    ("own", "text"),
    [
        ({"tree": {"chain": 0}}, "tree.chain: must be greater than or equal to 1, not 0"),
        ({"fge": {"low_ratio": 1}}, "fge.low_ratio: must be less than 1, not 1"),
        ({"csgld": {"noise_share": 0}}, "csgld.noise_share: must be greater than 0, not 0"),
        ({"csgld": {"temperature": 0}}, "csgld.temperature: must be greater than 0, not 0"),
        ({"swag": {"rank": 1}}, "swag.rank: must be greater than or equal to 2, not 1"),
        ({"swag": {"scale": -1}}, "swag.scale: must be greater than 0, not -1"),
        ({"swag": {"collect_steps": 0}}, "swag.collect_steps: must be greater than or equal to 1, not 0"),
        ({"swag": {"ranc": 3}}, "swag.ranc: unknown key; did you mean 'rank'?"),
        ({"global_de": {"lr_ratio": 2}},
         "global_de: takes no lr_ratio or cycle_ratio; its members are ordinary fine-tunings"),
    ],
)  # fmt: skip
def test_an_impossible_key_of_a_method_is_named(own, text):
    assert complaint(changed("methods", own)) == f"f.yaml: methods.{text}"


def test_the_keys_of_the_other_optimizer_and_sgld_without_sgd_are_refused():
    adamw = changed("recipe", {"epochs": 1, "optimizer": "adamw"})
    assert complaint({**adamw, "recipe": {**adamw["recipe"], "momentum": 0.5}}) == (
        "f.yaml: recipe.momentum: has no effect with optimizer adamw; leave it out"
    )
    assert complaint({**adamw, "methods": {"csgld": {}}}) == (
        "f.yaml: methods.csgld: needs recipe.optimizer sgd, for whose steps its noise is made"
    )
    for method, key, value, why in (
        ("csgld", "layer_decay", 0.5, "its noise is made for plain SGD at one rate"),
        ("csgld", "optimizer_args", {"dampening": 0.1}, "its noise is made for plain SGD at one rate"),
        ("csgld", "ema_decay", 0.9, "an average is no sample"),
        ("swag", "ema_decay", 0.9, "it collects the moments of the weights themselves"),
    ):
        tree = {**adamw, "recipe": {"epochs": 1, key: value}, "methods": {method: {}}}
        assert complaint(tree) == f"f.yaml: methods.{method}: cannot be run with recipe.{key}; {why}"
    lion = {**adamw, "recipe": {"epochs": 1, "optimizer": "lion", "betas": [0.9, 0.95]}}
    assert complaint(lion) == ("f.yaml: recipe.betas: has no effect with optimizer lion; give it in optimizer_args")


def test_a_warm_up_cannot_begin_above_the_rate():
    tree = changed("recipe", {"epochs": 1, "lr": 0.01, "warmup": 0.1, "warmup_lr": 0.1})
    assert complaint(tree) == "f.yaml: recipe.warmup_lr: must be at most lr, 0.01, not 0.1"


def test_a_resolved_sweep_file_with_every_default_written_out_is_read_again():
    for recipe in ({"epochs": 1}, {"epochs": 1, "optimizer": "adamw"}):
        spec = specs.parse(changed("recipe", recipe))
        assert specs.parse(specs.dump(spec)) == spec


def test_the_last_seed_of_a_pretraining_is_a_seed():
    task = {"data": {"name": "digits"}, "recipe": {"epochs": 1}, "seed": 2**63 - 2, "count": 3}
    assert complaint(changed("model.pretrained", [{"pretrain": task}])) == (
        f"f.yaml: {PRETRAIN}.count: the last seed, seed + count - 1, must be below 2^63"
    )
    assert complaint(changed("model.pretrained", [{"pretrain": {**task, "count": 2}}, {}])).endswith("is missing")


def test_a_factory_is_its_own_label_unless_it_has_one():
    def model(**keys):
        return specs.parse({**SMALL, "model": {"pretrained": ["x.pth"], **keys}}).model

    assert model(factory="networks.small:cnn").name == "cnn"
    assert model(factory="networks.small:cnn", name="mine").name == "mine"
    assert model(factory="networks:Net.small").name == "small"
    assert complaint({**SMALL, "model": {"factory": "a:b", "name": "../x", "pretrained": ["x.pth"]}}) == (
        "f.yaml: model.name: must be letters, digits, '.', '_' or '-', beginning with a letter or digit"
    )
    assert complaint({**SMALL, "model": {"pretrained": ["x.pth"]}}) == "f.yaml: model.name: is missing"


def test_an_architecture_is_hashed_by_its_name_where_there_is_no_more_to_it():
    def identity(**keys):
        return ids.architecture_identity(specs.Architecture(**keys))

    assert identity(name="resnet50") == "resnet50"
    assert identity(name="resnet50", args={}, head=None) == "resnet50"
    others = [identity(name="a", factory="m:a"), identity(name="b", factory="m:a"), identity(name="a", factory="n:a"),
              identity(name="a", factory="m:a", args={"w": 1}), identity(name="a", factory="m:a", head=["fc"]),
              identity(name="a", args={"w": 1}), identity(name="a", head=["fc"])]  # fmt: skip
    assert len({ids.digest(other) for other in others}) == len(others)


# Files for pre-training alone


def test_a_file_for_pretraining_needs_no_more_than_a_name_and_a_model(tmp_path):
    path = tmp_path / "f.yaml"
    tree = {"name": "a", "model": SMALL["model"]}
    path.write_text(yaml.safe_dump(tree))
    made = specs.load_for_pretraining(path, data_dir=str(tmp_path / "d"))
    assert made.model.pretrained[0].pretrain.data.dir == str(tmp_path / "d")
    assert made.model.pretrained[1] == "x.safetensors"
    whole = {**SMALL, "data": {"name": "digits", "eval_crop": 0.5}}
    path.write_text(yaml.safe_dump(whole))
    assert specs.load_for_pretraining(path) == specs.parse(whole)


@pytest.mark.parametrize(
    ("pretrained", "text"),
    [
        (["x.pth"], "model.pretrained declares no {pretrain: ...} entry; there is nothing to make"),
        ([{"pretrain": 3}], "model.pretrained declares no {pretrain: ...} entry; there is nothing to make"),
        (3, "model.pretrained declares no {pretrain: ...} entry; there is nothing to make"),
        ([{"pretrain": {"data": {"name": "digits"}, "recipe": {"epochs": 0}}}],
         "model.pretrained.0.pretrain.recipe.epochs: must be greater than or equal to 1, not 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_for_pretraining_is_named(tmp_path, pretrained, text):
    path = tmp_path / "f.yaml"
    path.write_text(yaml.safe_dump({"name": "a", "model": {"name": "m", "pretrained": pretrained}}))
    with pytest.raises(UserError) as caught:
        specs.load_for_pretraining(path)
    assert str(caught.value) == f"{path}: {text}"


def test_nesterov_needs_momentum():
    tree = changed("recipe", {"epochs": 1, "nesterov": True, "momentum": 0})
    assert complaint(tree) == "f.yaml: recipe.nesterov: needs momentum above 0"


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ({"cuda_graphs": True}, "recipe.compile: compiled steps are not recorded; leave out compile or cuda_graphs"),
        ({"deterministic": True}, "recipe.compile: torch chooses kernels by timing them; leave out compile or "),
    ],
)
def test_what_cannot_be_compiled_is_refused(recipe, text):
    assert text in complaint(changed("recipe", {"epochs": 1, "compile": True, **recipe}))


def test_a_deterministic_sweep_does_not_compile_its_checkpoint():
    tree = changed("recipe", {"epochs": 2, "deterministic": True})
    assert specs.parse(tree)
    tree["model"]["pretrained"][0]["pretrain"]["recipe"]["compile"] = True
    assert "model.pretrained: recipe.compile is not deterministic" in complaint(tree)


def test_every_error_is_one_line():
    for key, value in [("recipe.epochs", "a\nb"), ("name", "a\nb"), ("question", ["x" * 5000])]:
        assert "\n" not in complaint(changed(key, value))


# Errors of the file


def test_a_key_given_twice_is_an_error_at_any_depth(tmp_path):
    text = yaml.safe_dump(SMALL)
    n_lines = len(text.splitlines())
    assert load_complaint(tmp_path, text + "name: b\n") == (
        f"f.yaml: not valid YAML: line {n_lines + 1}: key 'name' is given twice"
    )
    assert load_complaint(tmp_path, "recipe: {epochs: 2, epochs: 3}\n") == (
        "f.yaml: not valid YAML: line 1: key 'epochs' is given twice"
    )


@pytest.mark.parametrize("text", ["a: &x [1]\nb: *x\n", "a: 1\nb: &x {c: *x}\n"])
def test_aliases_are_refused_before_anything_is_expanded(tmp_path, text):
    assert load_complaint(tmp_path, text) == "f.yaml: not valid YAML: line 2: aliases (*name) are not supported"


@pytest.mark.parametrize(
    "content",
    ["name: [\n", "name: 'a\n", "a: b: c", "\ta: 1", b"\xff\xfe\x00", b"a: \x00", "a: !!python/object:os.system x",
     "a: !!timestamp x\n", "a: !!bool x\n", "a: !!int x\n", "a: 2020-13-45\n", "? [1]\n: 2\n", "a: 1\n---\nb: 2\n",
     "a: " + "[" * 2000, "a: " + "{a: " * 1000 + "1" + "}" * 1000, "seed: " + "9" * 5000],
)  # fmt: skip
def test_what_is_not_yaml_is_said_in_one_line_that_names_the_file(tmp_path, content):
    text = load_complaint(tmp_path, content)
    assert text.startswith("f.yaml:") and "not valid YAML: " in text and "\n" not in text


def test_a_yaml_error_names_the_line(tmp_path):
    assert load_complaint(tmp_path, "name: a\nrecipe: {\nmodel: x: y\n").startswith("f.yaml: line 3: not valid YAML: ")


@pytest.mark.parametrize("content", ["", "- 1\n", "text\n", "# nothing\n"])
def test_a_file_without_keys_is_no_sweep(tmp_path, content):
    assert load_complaint(tmp_path, content).startswith("f.yaml: is not a sweep file")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    text = yaml.safe_dump(SMALL)
    padded = text + "#" * (specs.MAX_FILE_BYTES - len(text))
    assert load(tmp_path, padded).name == "a"
    assert load_complaint(tmp_path, padded + "#") == "f.yaml: larger than 1000000 bytes; this is not a sweep file"


def test_a_file_that_is_not_there_is_named(tmp_path):
    absent = "No such file or directory; name a file, or a sweep that `raybasin sweeps` lists"
    for path, reason in ((tmp_path / "none.yaml", absent), (tmp_path, "Is a directory")):
        with pytest.raises(UserError) as caught:
            specs.load(path)
        assert str(caught.value) == f"{path}: cannot read the sweep file: {reason}"


# --set


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("recipe.epochs=5", lambda s: s.recipe.epochs == 5),
        ("recipe.lr=1e-3", lambda s: s.recipe.lr == 0.001),
        ("methods.star_sse.lr_ratio=[2, 4]", lambda s: s.methods["star_sse"].lr_ratio == (2, 4)),
        ("methods.star_sse.lr_ratio=2", lambda s: s.methods["star_sse"].lr_ratio == (2,)),
        ("methods.sse={n_members: 4}", lambda s: "sse" in s.methods and s.methods["sse"].n_members == 4),
        ("workers.count=2", lambda s: s.workers.count == 2),
        ("question=a=b", lambda s: s.question == "a=b"),
        ("data.train_images={per_class: 5}", lambda s: s.data.train_images == specs.PerClass(per_class=5)),
        ("model.pretrained=[a, b]", lambda s: s.model.pretrained == ("a", "b")),
    ],
)
def test_set_puts_a_value_in_at_any_depth(tmp_path, override, found):
    text = yaml.safe_dump(SMALL)
    assert not found(load(tmp_path, text))
    assert found(load(tmp_path, text, override))


def test_the_last_of_several_overrides_counts(tmp_path):
    made = load(tmp_path, yaml.safe_dump(SMALL), "recipe.epochs=5", "seed=3", "recipe.epochs=6")
    assert (made.recipe.epochs, made.seed) == (6, 3)


@pytest.mark.parametrize("override", ["recipe.epochs", "=5", "recipe.=5", ".epochs=5", "recipe..epochs=5", "name.x=3",
                                      "model.pretrained.0=3", "recipe.epochs=[", "recipe.epochs=*x"])  # fmt: skip
def test_a_bad_override_is_named(tmp_path, override):
    text = load_complaint(tmp_path, yaml.safe_dump(SMALL), override)
    assert text.startswith(f"--set {override.split('=')[0]}") and "\n" not in text


@pytest.mark.parametrize(
    ("override", "text"),
    [("recipe.epoch=5", "f.yaml: recipe.epoch: unknown key; did you mean 'epochs'?"),
     ("recipe.epochs=", "f.yaml: recipe.epochs: must be a valid integer, not None"),
     ("replicates=yes", "f.yaml: replicates: must be a number, not true/false")],
)  # fmt: skip
def test_an_override_is_checked_like_the_file(tmp_path, override, text):
    assert load_complaint(tmp_path, yaml.safe_dump(SMALL), override) == text


# Values


def test_defaults_are_those_of_the_contract():
    made = specs.dump(specs.parse({**SMALL, "model": {"name": "m", "pretrained": ["m.tag"]}}))
    assert made == {
        "name": "a",
        "question": "",
        "data": {
            "name": "digits", "dir": None, "image_size": 224, "augment": ["random_resized_crop", "flip"],
            "classes": None, "train_images": None, "test_images": None, "validation": 0.1, "split_seed": 0,
            "normalise": None, "eval_crop": None, "interpolation": None, "decode": "auto",
        },
        "model": {"name": "m", "factory": None, "args": {}, "head": None, "pretrained": ["m.tag"]},
        "recipe": {
            "epochs": 2, "batch_size": 256, "drop_last": False, "optimizer": "sgd", "lr": 0.05, "momentum": 0.9,
            "nesterov": False, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 1e-4, "decay": "all",
            "optimizer_args": {}, "layer_decay": None, "layer_decay_min_scale": 0.0, "freeze": [], "head_epochs": 0,
            "head_lr": None, "ema_decay": None, "ema_warmup": False,
            "schedule_by": "step", "warmup": 0.0, "warmup_lr": 0.0, "grad_clip": None,
            "label_smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0, "mix_prob": 1.0, "mix_switch_prob": 0.5,
            "drop_path": 0.0, "precision": "fp32", "deterministic": False, "cuda_graphs": None, "compile": False,
            "checkpoint_seconds": 30.0,
        },
        "methods": {
            "star_sse": {"n_members": 3, "lr_ratio": [1.0], "cycle_ratio": [1.0]}
        },
        "replicates": 1,
        "seed": 0,
        "basin": {"points": 11, "by": "error", "threshold": 0.02, "bn_images": 2048, "pairs": "consecutive",
                  "splits": ["val"], "split": "val", "trace": False, "trace_times": 8, "trace_points": 5},
        "soups": ["uniform", "greedy"],
        "shifts": {},
        "keep": {"predictions": ["val", "test", "shifts"], "weights": "all", "budget_gb": None},
        "workers": {"cpus": 1.0, "gpus": 0.0, "count": None, "hang_seconds": 60.0,
                    "accelerator_type": None, "resources": {}, "labels": {}},
        "search": "grid",
    }  # fmt: skip
    assert METHODS["sse"]().n_members == 5


def test_a_dumped_sweep_reads_back_equal_through_yaml():
    made = specs.parse(SMALL)
    assert specs.parse(yaml.safe_load(yaml.safe_dump(specs.dump(made)))) == made


def test_specs_cannot_be_changed():
    made = specs.parse(SMALL)
    with pytest.raises(Exception, match="frozen"):
        made.recipe.epochs = 3


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_file_of_the_repository_is_valid_and_bears_its_name(path):
    made = specs.load_for_pretraining(path) if path.stem.startswith("pretrain-") else specs.load(path)
    assert made.name == path.stem
    assert made.question


# Identity (trap: seeds from hash(), which differ from process to process)


def test_identity_leaves_out_what_stands_at_its_default():
    bare = specs.Recipe(epochs=3)
    spelt = specs.Recipe(**specs.Recipe(epochs=3).model_dump())
    assert ids.identity(bare) == ids.identity(spelt) == {"epochs": 3}
    assert ids.identity(specs.Recipe(epochs=3, lr=0.1)) == {"epochs": 3, "lr": 0.1}
    assert ids.identity(specs.Recipe(epochs=3, lr=0.1), without=("epochs",)) == {"lr": 0.1}


def test_whole_numbers_and_lists_of_one_are_the_same_settings():
    short = specs.parse(changed("methods.star_sse", {"lr_ratio": 2}))
    full = specs.parse(changed("methods.star_sse", {"lr_ratio": [2.0], "n_members": 5}))
    assert ids.identity(short) == ids.identity(full)


def test_digest_and_random_seed_are_what_they_always_were():
    """Literal values: a change here makes all stored results foreign, and needs a new RESULTS_VERSION."""
    assert ids.RESULTS_VERSION == 2
    assert ids.digest("a", 1, 2.5, None, {"b": [1], "a": True}) == "ac528b456695370b"
    assert ids.digest() == "4f53cda18c2baa0c"
    assert ids.random_seed(0, 0, 0) == 1514418728207454864
    assert ids.random_seed(0, 1, "data") == 2559107010455922318
    assert ids.digest(ids.identity(tiny.spec())) == "ce22d752655b3e77"


def test_digest_is_16_hexadecimal_digits_and_a_seed_has_63_bits():
    digests = [ids.digest(n) for n in range(200)]
    assert len(set(digests)) == 200
    assert all(len(found) == 16 and set(found) <= set("0123456789abcdef") for found in digests)
    seeds = [ids.random_seed(n) for n in range(200)]
    assert len(set(seeds)) == 200
    assert 2**62 < max(seeds) < 2**63 and min(seeds) >= 0


def test_digest_tells_apart_what_looks_alike_and_not_the_order_of_keys():
    alike = [("1",), (1,), (1.5,), ("1.5",), (None,), ("null",), ([1, 2],), (1, 2), ("",), ()]
    assert len({ids.digest(*parts) for parts in alike}) == len(alike)
    assert ids.digest({"a": 1, "b": 2}) == ids.digest({"b": 2, "a": 1})
    assert ids.digest((1, 2)) == ids.digest([1, 2])


class Place:
    """A path that is no pathlib.Path, as some libraries have them."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return self.path


@pytest.mark.parametrize("kind", [Path, Place])
def test_from_python_every_path_may_be_any_that_python_knows(tmp_path, kind):
    tree = changed("model.pretrained", [kind("dir/x.pth"), "y.pth"])
    tree["data"]["dir"] = kind("some/data")
    tree["shifts"] = {"c": {"format": "folder", "dir": kind("/more")}}
    spec = specs.parse(tree)
    assert spec == specs.parse({
        **tree, "model": {**tree["model"], "pretrained": ["dir/x.pth", "y.pth"]},
        "data": {**tree["data"], "dir": "some/data"}, "shifts": {"c": {"format": "folder", "dir": "/more"}},
    })  # fmt: skip
    json.dumps(specs.dump(spec))
    (tmp_path / "f.yaml").write_text(yaml.safe_dump(SMALL))
    loaded = specs.load(kind(str(tmp_path / "f.yaml")), (), kind("/d"), [kind("dir/x.pth")])
    assert (loaded.data.dir, loaded.model.pretrained) == ("/d", ("dir/x.pth",))
    assert local.spec_of(kind(str(tmp_path / "f.yaml")), specs.load) == specs.parse(SMALL)
    assert specs.load_for_pretraining(kind(str(tmp_path / "f.yaml")), (), kind("/d")).name == "a"


def test_a_path_of_bytes_is_named():
    assert complaint(changed("data.dir", Place(b"x"))) == "f.yaml: data.dir: must be text, not b'x'"


def test_digest_refuses_nan_and_values_that_have_no_one_text():
    with pytest.raises(ValueError):
        ids.digest(math.nan)
    with pytest.raises(TypeError):
        ids.digest({1, 2})


def test_ids_and_seeds_are_equal_in_processes_whose_hashes_differ():
    program = (
        "import json, sys; sys.path.insert(0, sys.argv[1])\n"
        "import tiny; from raybasin.sweep import ids, plan\n"
        "made = plan.make(tiny.spec(model__pretrained=['x.pth']), tiny.facts())\n"
        "print(json.dumps([hash('a'), ids.digest('a', {'c': 1, 'b': 2}), ids.random_seed('a'), made.settings_id,\n"
        "                  made.eval_id, [c.cell_id for c in made.cells], list(made.members),\n"
        "                  [m.seed for m in made.members.values()]]))"
    )
    found = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        arguments = [sys.executable, "-c", program, str(places.TESTS)]
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    (first_hash, *first), (second_hash, *second) = found
    assert first_hash != second_hash
    assert first == second


def test_a_search_for_the_best_soup_needs_soups_and_barriers_in_nats_a_threshold():
    best = {"kind": "best", "of": "soup", "lr_ratio": [1, 8], "cycle_ratio": [0.5, 1]}
    tree = tiny.tree(search=best, soups=["greedy"], methods={"star_sse": {"n_members": 2}})
    with pytest.raises(UserError, match="search.of: soup goes by uniform soups, so uniform must stand in soups"):
        specs.parse(tree)
    tree = tiny.tree()
    tree["basin"] = {key: value for key, value in tree["basin"].items() if key != "threshold"} | {"by": "nll"}
    with pytest.raises(UserError, match="threshold: is missing; with by: nll it is in nats"):
        specs.parse(tree)


def test_what_a_recipe_has_beside_the_ordinary_is_said_in_words():
    assert specs.Recipe(epochs=1).further == ""
    full = specs.Recipe(epochs=1, head_epochs=2, layer_decay=0.75, freeze=["a", "b"], ema_decay=0.9)
    first = specs.Recipe(epochs=1, warmup=0.1, grad_clip=1.0, mixup=0.2, cutmix=1, drop_path=0.1)
    assert first.further == (
        ", warm-up over 0.1 of the steps, gradients clipped at 1, mixup 0.2, cutmix 1, drop path 0.1"
    )
    assert full.further == (
        ", after 2 epochs of the head alone, layer decay 0.75, frozen: 2 named parts, EMA of weights 0.9"
    )
