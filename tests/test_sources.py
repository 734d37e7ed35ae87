"""Sources: every layout is read, bad data is named, and a download comes whole or not at all."""

import hashlib
import json
import pickle
import socket
import threading

import numpy as np
import pytest
from images import encoded, error_of, spec, values, write_folder, write_parquet, write_shard

from raybasin import data, downloads, sources
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


def write_cifar10(root, monkeypatch):
    """20 training and 10 test images as torchvision stores them, with the MD5 sums that torchvision then expects."""
    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    folder.mkdir()

    def put(name, content):
        stored = pickle.dumps(content)
        (folder / name).write_bytes(stored)
        return hashlib.md5(stored).hexdigest()

    pixels = np.repeat(np.arange(20, dtype=np.uint8)[:, None], 3072, axis=1)
    train = put("data_batch_1", {"data": pixels, "labels": [i % 10 for i in range(20)]})
    test = put("test_batch", {"data": pixels[:10] + 100, "labels": list(range(10))})
    meta = put("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", train]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", test]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})
    return folder


def test_cifar10_in_torchvisions_layout(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    loaded = data.load(spec(tmp_path, name="cifar10", validation={"images": 5}))
    assert loaded.class_names == tuple("abcdefghij")
    assert values(loaded.test) == list(range(100, 110))
    assert sorted(values(loaded.train) + values(loaded.val)) == list(range(20))
    assert loaded.train.images_NHWC.shape == (15, 32, 32, 3)


def test_a_pickle_with_another_md5_sum_is_never_loaded(tmp_path, monkeypatch):
    folder = write_cifar10(tmp_path, monkeypatch)
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": [], "labels": []}))
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    assert "MD5" in error_of(spec(tmp_path, name="cifar10"))


def test_file_backed_sets_are_read_from_torchvisions_lists(tmp_path):
    for k, name in enumerate(["Forest", "River"]):
        (tmp_path / "eurosat" / "2750" / name).mkdir(parents=True)
        for i in range(5):
            (tmp_path / "eurosat" / "2750" / name / f"{i}.jpg").write_bytes(encoded(10 * k + i))
    loaded = data.load(spec(tmp_path, name="eurosat", train_images=4))
    assert loaded.class_names == ("Forest", "River")
    assert sorted(values(loaded.train) + values(loaded.val) + values(loaded.test)) == [*range(5), *range(10, 15)]


def write_dtd(root):
    """Two images of two classes in each of the three official splits of DTD."""
    base = root / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for s, split in enumerate(("train", "val", "test")):
        names = []
        for k, name in enumerate(("banded", "woven")):
            (base / "images" / name).mkdir(parents=True, exist_ok=True)
            for i in range(2):
                (base / "images" / name / f"{split}{i}.jpg").write_bytes(encoded(100 * s + 10 * k + i))
                names.append(f"{name}/{split}{i}.jpg")
        (base / "labels" / f"{split}1.txt").write_text("\n".join(names))


def test_official_validation_images_join_the_training_pool(tmp_path):
    write_dtd(tmp_path)
    loaded = data.load(spec(tmp_path, name="dtd", validation={"images": 2}))
    assert sorted(values(loaded.train) + values(loaded.val)) == [0, 1, 10, 11, 100, 101, 110, 111]
    assert values(loaded.test) == [200, 201, 210, 211]


def test_a_list_that_names_a_file_outside_the_folder_is_refused(tmp_path):
    root = tmp_path / "set"
    for name in ("meta", "images"):
        (root / "food-101" / name).mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(encoded(77))
    for split in ("train", "test"):
        (root / "food-101" / "meta" / f"{split}.json").write_text('{"pie": ["../../../secret"]}')
    assert "outside the folder" in error_of(spec(root, name="food101"))


def test_damaged_lists_of_torchvision_are_a_clear_error(tmp_path):
    write_dtd(tmp_path)
    (tmp_path / "dtd" / "dtd" / "labels" / "train1.txt").write_text("no slash here")
    assert "torchvision cannot read dtd here" in error_of(spec(tmp_path, name="dtd"))


def test_every_known_set_exists_in_torchvision():
    from torchvision import datasets

    assert all(hasattr(datasets, known.factory) for known in sources.TORCHVISION.values())


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
    def construct(known, folder, arguments, *, download):
        (folder / "dtd" / "dtd").mkdir(parents=True)  # what torchvision would take for the whole data set
        assert socket.getdefaulttimeout() == sources.STALL_SECONDS
        raise RuntimeError("the line went dead")

    monkeypatch.setattr(downloads, "unreachable", lambda url: None)
    monkeypatch.setattr(sources, "_construct", construct)
    monkeypatch.setenv("RAYBASIN_DATA", str(tmp_path))
    assert "the line went dead" in error_of(DataSpec(name="dtd"))
    assert list(tmp_path.iterdir()) == []
    assert socket.getdefaulttimeout() is None


def test_a_whole_download_is_kept_and_used_again(tmp_path, monkeypatch):
    construct, downloaded = sources._construct, []

    def download_or_read(known, folder, arguments, *, download):
        if not download:
            return construct(known, folder, arguments, download=False)
        downloaded.append(arguments)
        return None if (folder / "dtd").exists() else write_dtd(folder)

    monkeypatch.setattr(downloads, "unreachable", lambda url: None)
    monkeypatch.setattr(sources, "_construct", download_or_read)
    monkeypatch.setenv("RAYBASIN_DATA", str(tmp_path))
    for _ in range(2):
        assert data.index(DataSpec(name="dtd", validation={"images": 2})).n_test == 4
    assert len(downloaded) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["dtd"]
