"""Sources: every layout is read, bad data is named, and a download comes whole or not at all."""

import json
import socket
import threading

import layouts
import numpy as np
import pytest
from images import encoded, error_of, spec, values, write_folder, write_parquet, write_shard

from raybasin import data, downloads, known, sources
from raybasin.specs import DataSpec

# Digits, folders and Parquet


def test_digits_are_scaled_from_16_to_255_in_all_three_channels():
    from sklearn.datasets import load_digits

    made = data.index(DataSpec(name="digits"))
    digits = data.load(DataSpec(name="digits"))
    original = load_digits().images[made.train_index_n] * 255 / 16
    assert np.abs(digits.train.images_NHWC - original[..., None]).max() <= 0.5


def test_an_image_folder_is_read_in_the_order_of_names(tmp_path):
    write_folder(tmp_path, {"b": 3, "a": 3}, splits=("train", "val"))
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    loaded = data.load(spec(tmp_path, validation={"images": 2}))
    assert loaded.class_names == ("a", "b")
    assert values(loaded.test) == [0, 1, 2, 10, 11, 12]
    assert sorted(values(loaded.train) + values(loaded.val)) == [0, 1, 2, 10, 11, 12]
    assert loaded.train.images_NHWC.shape == (4, 4, 6, 3)


def test_only_a_training_folder_is_one_pool(tmp_path):
    write_folder(tmp_path, {"a": 6, "b": 6}, splits=("train",))
    made = data.index(spec(tmp_path, train_images=4))
    assert (made.n_train, made.n_val, made.n_test, made.is_pool) == (4, 3, 5, True)


@pytest.mark.parametrize("layout", ["folder", "parquet"])
def test_official_validation_images_of_a_folder_are_used_where_they_are_asked_for(tmp_path, layout):
    if layout == "folder":
        write_folder(tmp_path, {"a": 2, "b": 2}, splits=("train", "val", "test"))
        seen = [0, 1, 10, 11]
    else:
        for split, first in (("train", 0), ("validation", 50), ("test", 100)):
            write_shard(tmp_path / f"{split}-0.parquet", range(first, first + 4), [0, 1] * 2)
        seen = list(range(4))
    cut = data.load(spec(tmp_path, validation={"images": 2}))
    assert sorted(values(cut.train) + values(cut.val)) == seen
    official = data.load(spec(tmp_path, validation="official"))
    assert sorted(values(official.train)) == seen
    assert sorted(values(official.val)) == (seen if layout == "folder" else list(range(50, 54)))
    assert official.test_fingerprint == cut.test_fingerprint


def test_a_validation_split_that_reports_is_no_official_validation(tmp_path):
    write_folder(tmp_path, {"a": 4, "b": 4}, splits=("train", "val"))
    assert "no official validation images" in error_of(spec(tmp_path, validation="official"))


def test_splits_with_other_classes_are_refused(tmp_path):
    write_folder(tmp_path, {"a": 3, "b": 3}, splits=("train",))
    write_folder(tmp_path, {"a": 3, "c": 3}, splits=("test",))
    assert "b, c" in error_of(spec(tmp_path))


@pytest.mark.parametrize("options", [{}, {"column": "image"}, {"label": "fine_label"}])
def test_parquet_shards_are_read_in_order(tmp_path, options):
    loaded = data.load(spec(write_parquet(tmp_path, **options)))
    assert loaded.class_names == ("0", "1", "2")
    assert values(loaded.test) == [100, 101, 102, 103, 104, 105]
    assert loaded.test.labels_N.tolist() == [0, 1, 2, 0, 1, 2]
    assert sorted(values(loaded.train) + values(loaded.val)) == list(range(12))
    assert [value % 3 for value in values(loaded.train)] == loaded.train.labels_N.tolist()


def test_a_folder_of_data_sets_and_the_hubs_data_folder_will_do(tmp_path):
    (tmp_path / "mine" / "data").mkdir(parents=True)
    write_parquet(tmp_path / "mine" / "data")
    assert data.index(spec(tmp_path)).n_test == 6


@pytest.mark.parametrize("listed", [["x", "y", "z"], [{"wnid": "n1", "name": name} for name in "xyz"]])
def test_class_names_come_from_classes_json(tmp_path, listed):
    write_parquet(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps(listed))
    assert data.index(spec(tmp_path)).class_names == ("x", "y", "z")


def test_class_names_come_from_the_hubs_metadata(tmp_path):
    features = {"label": {"_type": "ClassLabel", "names": ["u", "v", "w"]}}
    write_parquet(tmp_path, metadata={"info": {"features": features}})
    assert data.index(spec(tmp_path)).class_names == ("u", "v", "w")


def test_too_few_class_names_and_missing_labels_are_errors(tmp_path):
    write_parquet(tmp_path)
    (tmp_path / "classes.json").write_text('["x", "y"]')
    assert "label 2, but names only 2 classes" in error_of(spec(tmp_path))
    (tmp_path / "classes.json").unlink()
    write_shard(tmp_path / "test-00000-of-00001.parquet", range(3), [0, -1, 2])
    assert "label -1" in error_of(spec(tmp_path))
    write_shard(tmp_path / "test-00000-of-00001.parquet", range(3), [0, None, 2])
    assert "1 rows without a label" in error_of(spec(tmp_path))


def test_wrong_columns_and_broken_shards_are_named(tmp_path):
    write_parquet(tmp_path, column="picture")
    assert "img or image" in error_of(spec(tmp_path))
    (tmp_path / "train-00000-of-00002.parquet").write_bytes(b"PAR1 and nothing else")
    assert "train-00000-of-00002.parquet" in error_of(spec(tmp_path))


def test_a_path_in_parquet_is_never_followed(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(77))
    folder = tmp_path / "set"
    folder.mkdir()
    paths = ["../secret.png", str(secret), "2.png"] * 2
    write_shard(folder / "train-0.parquet", range(6), [0, 1, 2] * 2, paths=paths)
    loaded = data.load(spec(folder))
    assert sorted(values(loaded.train) + values(loaded.val)) == list(range(6))
    write_shard(folder / "train-0.parquet", range(6), [0, 1, 2] * 2, paths=paths, images=[None] * 6)
    assert "train-0.parquet, row 0: has no image bytes" in error_of(spec(folder))


# Damaged and huge images


def test_a_corrupt_image_is_named_by_file_or_row(tmp_path):
    write_folder(tmp_path / "folder", {"a": 4, "b": 4})
    bad = tmp_path / "folder" / "test" / "b" / "002.png"
    bad.write_bytes(bad.read_bytes()[:50])
    assert str(bad) in error_of(spec(tmp_path / "folder"))

    write_parquet(tmp_path)
    images = [encoded(0), encoded(1), encoded(2), encoded(3), b"no image at all", encoded(5)]
    write_shard(tmp_path / "train-00001-of-00002.parquet", range(6), [0, 1, 2] * 2, images=images)
    assert "train-00001-of-00002.parquet, row 4: not a readable image" in error_of(spec(tmp_path))


def test_huge_images_are_refused(tmp_path, monkeypatch):
    write_parquet(tmp_path)
    monkeypatch.setattr(sources, "MAX_PIXELS", 20)
    assert "6 x 4 pixels" in error_of(spec(tmp_path))


# Fingerprints


def test_fingerprints_change_with_one_pixel_one_label_and_the_order(tmp_path):
    def train_fingerprint(images, labels):
        write_shard(tmp_path / "train-0.parquet", range(6), labels, images=images)
        return data.index(spec(tmp_path, validation={"images": 1})).train_fingerprint

    images, labels = [encoded(i) for i in range(6)], [0, 1, 2] * 2
    found = {
        train_fingerprint(images, labels),
        train_fingerprint([encoded(9), *images[1:]], labels),
        train_fingerprint(images, [0, 1, 2, 0, 2, 1]),
        train_fingerprint(images[::-1], labels),
    }
    assert len(found) == 4


def test_fingerprints_of_pixels_change_with_one_byte_and_one_label():
    pixels, labels = np.zeros((5, 2, 2), np.uint8), np.arange(5)
    other_pixels, other_labels = pixels.copy(), labels.copy()
    other_pixels[4, 1, 1], other_labels[4] = 1, 0
    pairs = (pixels, labels), (other_pixels, labels), (pixels, other_labels)
    assert len({sources.PixelSplit(*pair).scan()[0] for pair in pairs}) == 3


# torchvision


def test_a_list_that_names_a_file_outside_the_folder_is_refused(tmp_path):
    root = tmp_path / "set"
    for name in ("meta", "images"):
        (root / "food-101" / name).mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(encoded(77))
    for split in ("train", "test"):
        (root / "food-101" / "meta" / f"{split}.json").write_text('{"pie": ["../../../secret"]}')
    assert "outside the folder" in error_of(spec(root, name="food101"))


def test_damaged_lists_of_torchvision_are_a_clear_error(tmp_path):
    layouts.dtd(tmp_path)
    (tmp_path / "dtd" / "dtd" / "labels" / "train1.txt").write_text("no slash here")
    assert "torchvision cannot read dtd here" in error_of(spec(tmp_path, name="dtd"))


# Missing data


def test_an_unknown_name_is_answered_with_the_nearest_one():
    assert "did you mean 'cifar10'" in error_of(DataSpec(name="cifra10"))


def test_data_that_is_nowhere_is_answered_with_three_ways_to_supply_it(tmp_path):
    message = error_of(spec(tmp_path, name="cifar10"))
    assert all(way in message for way in ("network", "--data DIR", "DATA=DIR", "make demo", str(tmp_path)))
    assert len(message.splitlines()) <= 2


@pytest.mark.parametrize("failure", ["refused", "silent"])
def test_without_a_network_a_download_fails_soon_and_leaves_nothing(tmp_path, monkeypatch, failure):
    over = threading.Event()

    def connect(*_, **__):
        if failure == "silent":
            over.wait(60)
        raise OSError("unreachable")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(downloads, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(downloads.urllib.request, "getproxies", dict)
    monkeypatch.setenv("RAYBASIN_DATA", str(tmp_path))
    reason = "does not answer within" if failure == "silent" else "unreachable"
    said = error_of(DataSpec(name="cifar10"))
    over.set()
    assert "no network: www.cs.toronto.edu" in said and reason in said
    assert list(tmp_path.iterdir()) == []


def test_a_broken_download_leaves_nothing_and_gives_the_time_out_back(tmp_path, monkeypatch):
    def construct(one, folder, arguments, *, download):
        (folder / "dtd" / "dtd").mkdir(parents=True)  # what torchvision would take for the whole data set
        assert socket.getdefaulttimeout() == sources.STALL_SECONDS
        raise RuntimeError("the line went dead")

    monkeypatch.setattr(downloads, "unreachable", lambda url: None)
    monkeypatch.setattr(known, "construct", construct)
    monkeypatch.setenv("RAYBASIN_DATA", str(tmp_path))
    assert "the line went dead" in error_of(DataSpec(name="dtd"))
    assert list(tmp_path.iterdir()) == []
    assert socket.getdefaulttimeout() is None


def test_a_whole_download_is_kept_and_used_again(tmp_path, monkeypatch):
    construct, downloaded = known.construct, []

    def download_or_read(one, folder, arguments, *, download):
        if not download:
            return construct(one, folder, arguments, download=False)
        downloaded.append(arguments)
        return None if (folder / "dtd").exists() else layouts.dtd(folder, monkeypatch)

    monkeypatch.setattr(downloads, "unreachable", lambda url: None)
    monkeypatch.setattr(known, "construct", download_or_read)
    monkeypatch.setenv("RAYBASIN_DATA", str(tmp_path))
    for _ in range(2):
        assert data.index(DataSpec(name="dtd", validation={"images": 2})).n_test == 4
    assert len(downloaded) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["dtd"]
