"""Known data sets: each set of the paper is read from torchvision's layout, whole, with its splits and its metric."""

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import layouts
import numpy as np
import pytest
from images import encoded, error_of, spec, values

from raybasin.data import dataset, torchvision_sets
from raybasin.jobs import prepare
from raybasin.sweep import specs

PAPER = {
    "caltech101": (101, "mean_class_accuracy", 2525 + 505, 5647),
    "cifar10": (10, "accuracy", 45000 + 5000, 10000),
    "cifar100": (100, "accuracy", 45000 + 5000, 10000),
    "dtd": (47, "accuracy", 1880 + 1880, 1880),
    "eurosat": (10, "accuracy", 10800 + 2700, 13500),
    "fgvcaircraft": (100, "mean_class_accuracy", 3334 + 3333, 3333),
    "flowers102": (102, "mean_class_accuracy", 1020 + 1020, 6149),
    "food101": (101, "accuracy", 68175 + 7575, 25250),
    "oxfordiiitpet": (37, "mean_class_accuracy", 2940 + 740, 3669),
    "stanfordcars": (196, "accuracy", 6494 + 1650, 8041),
    "sun397": (397, "accuracy", 15880 + 3970, 19850),
}
"""Classes, metric, training and validation images, test images of Sadrtdinov et al. (2023)."""


def test_sizes_and_metrics_are_those_of_the_paper():
    for name, (_, metric, n_train, n_test) in PAPER.items():
        assert torchvision_sets.TORCHVISION[name].sizes == (n_train, n_test)
        assert torchvision_sets.metric_of(name) == metric
    assert (
        {name for name, one in torchvision_sets.TORCHVISION.items() if one.sizes} == set(PAPER) == set(layouts.LAYOUTS)
    )
    assert torchvision_sets.metric_of("mnist") == torchvision_sets.metric_of("a folder of mine") == "accuracy"


@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_a_set_is_read_from_torchvisions_own_layout(name, tmp_path, monkeypatch):
    layouts.LAYOUTS[name](tmp_path, monkeypatch)
    loaded = dataset.load(spec(tmp_path, name=name, validation={"images": 2}))
    trained, tested = sorted(values(loaded.train) + values(loaded.val)), sorted(values(loaded.test))
    if name.startswith("cifar"):
        assert (trained, tested) == (list(range(20)), list(range(100, 110)))
        assert loaded.classes.names == tuple("abcdefghij")
        return
    for images in (loaded.train, loaded.val, loaded.test):
        assert [layouts.class_of(value) for value in values(images)] == images.labels_N.tolist()
    assert len(loaded.classes.names) == 2
    if torchvision_sets.TORCHVISION[name].cut and name != "sun397":  # one pool: half of each class is for testing
        assert sorted(trained + tested) == [0, 1, 2, 3, 10, 11, 12, 13]
        assert np.bincount(loaded.test.labels_N).tolist() == [2, 2]
    else:
        with_val = layouts.VAL if torchvision_sets.TORCHVISION[name].val else ()
        assert (trained, tested) == (sorted([*layouts.TRAIN, *with_val]), sorted(layouts.TEST))


@pytest.mark.parametrize("name", [name for name in layouts.LAYOUTS if not name.startswith("cifar")])
def test_a_set_from_which_images_are_missing_is_refused_with_both_sizes(name, tmp_path, monkeypatch):
    layouts.LAYOUTS[name](tmp_path, monkeypatch)
    n_train, n_test = torchvision_sets.TORCHVISION[name].sizes
    layouts.whole(monkeypatch, name, n_train + 1000, n_test)
    said = error_of(spec(tmp_path, name=name))
    assert f"{name} has {n_train + 1000:,} images to train on" in said and f"{n_train} and {n_test} were found" in said
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize("name", ["dtd", "fgvcaircraft", "flowers102"])
def test_official_validation_images_join_the_training_images_or_are_the_validation_split(name, tmp_path, monkeypatch):
    layouts.LAYOUTS[name](tmp_path, monkeypatch)
    joined = dataset.load(spec(tmp_path, name=name, validation={"images": 2}))
    official = dataset.load(spec(tmp_path, name=name, validation="official"))
    assert (len(joined.train), len(joined.val)) == (8, 2)
    assert sorted(values(official.train)) == sorted(layouts.TRAIN)
    assert sorted(values(official.val)) == sorted(layouts.VAL)
    assert official.train_fingerprint == joined.train_fingerprint
    one_class = dataset.load(spec(tmp_path, name=name, validation="official", train_images=2))
    assert (len(one_class.train), sorted(values(one_class.val))) == (2, sorted(layouts.VAL))


def test_a_set_without_official_validation_images_says_so(tmp_path, monkeypatch):
    layouts.food101(tmp_path, monkeypatch)
    assert "food101 has no official validation images" in error_of(
        spec(tmp_path, name="food101", validation="official")
    )


def test_the_cut_of_a_pool_hangs_on_names_alone():
    """Written out once more: of each class the names with the lowest SHA-256, wherever the folder lies."""
    pool = [(f"somewhere/{name}/{i}.jpg", k) for k, name in enumerate("ab") for i in range(7)]
    train, test = torchvision_sets.lowest_digests(pool[::-1], Path("somewhere"), per_class=3)
    assert sorted(train + test) == pool
    for k, name in enumerate("ab"):
        digests = {
            f"somewhere/{name}/{i}.jpg": hashlib.sha256(f"{name}/{i}.jpg".encode()).hexdigest() for i in range(7)
        }
        assert [path for path, label in train if label == k] == sorted(sorted(digests, key=digests.get)[:3])
    elsewhere, _ = torchvision_sets.lowest_digests(
        [(f"/else/{path}", k) for path, k in pool], Path("/else"), per_class=3
    )
    assert elsewhere == [(f"/else/{path}", k) for path, k in train]
    half, other = torchvision_sets.lowest_digests(pool, Path("somewhere"), per_class=None)
    assert (len(half), len(other)) == (6, 8)


def test_lists_of_sun397_are_found_beside_the_images_or_in_a_folder_of_their_own(tmp_path, monkeypatch):
    layouts.sun397(tmp_path, monkeypatch)
    lists = [tmp_path / "SUN397" / f"{split}_01.txt" for split in ("Training", "Testing")]
    before = dataset.index(spec(tmp_path, name="sun397")).train.audit.fingerprint
    (tmp_path / "Partitions").mkdir()
    for path in lists:
        path.rename(tmp_path / "Partitions" / path.name)
    assert dataset.index(spec(tmp_path, name="sun397")).train.audit.fingerprint == before
    (tmp_path / "Partitions" / "Training_01.txt").write_text("/a/abbey/sun_not_there.jpg\n")
    assert "names 1 images that are not there, such as a/abbey/sun_not_there.jpg" in error_of(
        spec(tmp_path, name="sun397")
    )
    (tmp_path / "Partitions" / "Testing_01.txt").unlink()
    (tmp_path / "Partitions" / "Training_01.txt").unlink()
    assert "Training_01.txt is missing" in error_of(spec(tmp_path, name="sun397"))


def test_a_list_of_sun397_names_no_file_outside(tmp_path, monkeypatch):
    layouts.sun397(tmp_path, monkeypatch)
    (tmp_path / "secret.jpg").write_bytes(encoded(77))
    (tmp_path / "SUN397" / "Training_01.txt").write_text("/../secret.jpg\n")
    assert "not there" in error_of(spec(tmp_path, name="sun397"))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_pickle_with_another_md5_sum_is_never_loaded(name, tmp_path, monkeypatch):
    folder = layouts.cifar(name, tmp_path, monkeypatch)
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": [], "labels": []}))
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    assert "MD5" in error_of(spec(tmp_path, name=name))


def test_the_facts_of_a_sweep_name_the_metric(tmp_path, monkeypatch):
    layouts.oxfordiiitpet(tmp_path, monkeypatch)
    small = {"name": "digits", "image_size": 32, "augment": [], "classes": [0, 1], "train_images": 10}
    tree = {
        "name": "pets",
        "data": {"name": "oxfordiiitpet", "dir": str(tmp_path), "image_size": 32, "validation": {"images": 2}},
        "model": {
            "name": "test_resnet",
            "pretrained": [{"pretrain": {"data": small, "recipe": {"epochs": 1, "batch_size": 8}}}],
        },
        "recipe": {"epochs": 1, "batch_size": 2},
        "methods": {"local_de": {"n_members": 2}},
    }
    facts = prepare.prepare(specs.parse(tree)).plan.facts
    assert facts.data.metric == "mean_class_accuracy"
    assert facts.pretrain_data[0].metric == "accuracy"


def test_every_known_set_exists_in_torchvision():
    from torchvision import datasets

    assert all(hasattr(datasets, one.factory) for one in torchvision_sets.TORCHVISION.values())


def test_the_partitions_of_sun397_come_with_its_download(tmp_path, monkeypatch):
    from torchvision.datasets import utils

    from raybasin.data import downloads

    fetched = []
    construct = torchvision_sets.construct

    def download_or_read(one, folder, arguments, *, download):
        return layouts.sun397(folder, monkeypatch) if download else construct(one, folder, arguments, download=False)

    monkeypatch.setattr(torchvision_sets, "construct", download_or_read)
    monkeypatch.setattr(downloads, "unreachable", lambda url: None)
    monkeypatch.setattr(utils, "download_and_extract_archive", lambda url, root, **_: fetched.append((url, Path(root))))
    monkeypatch.setenv("RAYBASIN_DATA", str(tmp_path))
    layouts.whole(monkeypatch, "sun397", 6, 4)
    made = dataset.index(specs.DataSpec(name="sun397", validation={"images": 2}))
    assert (len(made.train), len(made.val), len(made.test)) == (4, 2, 4)
    [(url, folder)] = fetched
    assert url == torchvision_sets.PARTITIONS_URL and folder.name == "SUN397"


def test_a_known_set_without_stated_sizes_may_have_any(tmp_path, monkeypatch):
    layouts.dtd(tmp_path)
    monkeypatch.setitem(torchvision_sets.TORCHVISION, "dtd", replace(torchvision_sets.TORCHVISION["dtd"], sizes=None))
    assert len(dataset.index(spec(tmp_path, name="dtd", validation={"images": 2})).test) == 4
