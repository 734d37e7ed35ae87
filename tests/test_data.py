"""Data: every layout is read, splits are reproducible and disjoint, and bad data is named.

The images are tiny and made here: pixel values tell which image one looks at.
"""

import hashlib
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from raybasin import data
from raybasin.errors import UserError
from raybasin.specs import DataSpec

DIGITS = {
    "name": "digits",
    "classes": (5, 6, 7, 8, 9),
    "train_images": {"per_class": 20},
    "validation": {"images": 300},
}
REAL_CIFAR10 = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"


def encoded(value, size=(6, 4), mode="RGB", file_format="PNG"):
    """An image of one colour as a file's bytes; `size` is (width, height)."""
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode in ("L", "P", "I;16") else (value,) * len(mode)).save(buffer, file_format)
    return buffer.getvalue()


def write_folder(root, counts, splits=("train", "test"), **image):
    """`counts` images of each class in each split; the value of image i of class k is 10 k + i."""
    for split in splits:
        for k, (name, count) in enumerate(sorted(counts.items())):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i:03d}.png").write_bytes(encoded(10 * k + i, **image))
    return root


def write_shard(path, values, labels, label="label", column="img", metadata=None, paths=None, images=None):
    rows = [
        {"bytes": content, "path": name}
        for content, name in zip(
            images or [encoded(v) for v in values], paths or [f"{v}.png" for v in values], strict=True
        )
    ]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({column: pa.array(rows, struct), label: pa.array(labels, pa.int64())})
    if metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, path, row_group_size=3)


def write_parquet(root, n=12, **options):
    """Two training shards and one of test; image i has value i and label i % 3."""
    half = n // 2
    write_shard(root / "train-00000-of-00002.parquet", range(half), [i % 3 for i in range(half)], **options)
    write_shard(root / "train-00001-of-00002.parquet", range(half, n), [i % 3 for i in range(half, n)], **options)
    write_shard(root / "test-00000-of-00001.parquet", range(100, 106), [i % 3 for i in range(6)], **options)
    return root


def spec(folder, **keys):
    return DataSpec(**{"name": "mine", "dir": str(folder), "validation": {"images": 3}, **keys})


def values(images):
    """The value that tells which image it is."""
    return images.images_NHWC[:, 0, 0, 0].tolist()


def error_of(made_spec):
    with pytest.raises(UserError) as caught:
        data.load(made_spec)
    return str(caught.value)


# digits


def test_the_rest_of_a_pool_is_its_test_split():
    digits = data.load(DataSpec(**DIGITS))
    assert [len(digits.train), len(digits.val), len(digits.test)] == [100, 300, 896 - 400]
    assert digits.class_names == ("5", "6", "7", "8", "9")
    assert np.bincount(digits.train.labels_N).tolist() == [20] * 5
    assert digits.train.images_NHWC.shape == (100, 8, 8, 3)
    assert digits.train.images_NHWC.dtype == np.uint8
    assert (digits.train.images_NHWC.min(), digits.train.images_NHWC.max()) == (0, 255)
    assert digits.train_fingerprint == digits.test_fingerprint


def test_digits_are_scaled_from_16_to_255_in_all_three_channels():
    from sklearn.datasets import load_digits

    made = data.index(DataSpec(name="digits"))
    digits = data.load(DataSpec(name="digits"))
    original = load_digits().images[made.train_index_n] * 255 / 16
    assert np.abs(digits.train.images_NHWC - original[..., None]).max() <= 0.5


def test_a_pool_that_trains_on_all_has_no_test_images():
    digits = data.load(DataSpec(name="digits"))
    assert (len(digits.train), len(digits.val), len(digits.test)) == (1617, 180, 0)


def test_no_image_is_in_two_splits_and_order_is_the_stored_one():
    made = data.index(DataSpec(**DIGITS))
    parts = [made.train_index_n, made.val_index_n, made.test_index_n]
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together) == 896
    assert all((np.diff(part) > 0).all() for part in parts)


def test_validation_and_numbers_are_stratified():
    labels_N = np.repeat([0, 1, 2], [600, 300, 100])
    counts = np.bincount(labels_N)
    assert data._proportional(counts, 10).tolist() == [6, 3, 1]
    assert data._proportional(counts, 1000).tolist() == counts.tolist()
    assert data._proportional(np.array([1, 1, 1]), 2).tolist() == [1, 1, 0]
    digits = data.load(DataSpec(name="digits", train_images=200, test_images=100))
    stored = np.bincount(data.load(DataSpec(name="digits")).train.labels_N)
    for images in (digits.train, digits.val, digits.test):
        share = np.bincount(images.labels_N) / len(images)
        assert np.abs(share - stored / stored.sum()).max() < 1.5 / len(images)


def test_test_images_move_neither_training_nor_validation_and_the_other_way_round(tmp_path):
    write_folder(tmp_path, {"a": 8, "b": 8})
    few, many = (data.index(spec(tmp_path, train_images=6, test_images=n)) for n in (4, 10))
    assert np.array_equal(few.train_index_n, many.train_index_n)
    assert np.array_equal(few.val_index_n, many.val_index_n)
    assert set(few.test_index_n) < set(many.test_index_n)
    other = data.index(spec(tmp_path, train_images=4, validation={"images": 5}, test_images=4))
    assert np.array_equal(few.test_index_n, other.test_index_n)


def test_a_larger_training_set_holds_the_smaller_one():
    small, large = (
        data.index(DataSpec(**{**DIGITS, "train_images": {"per_class": n}})).train_index_n for n in (10, 20)
    )
    assert set(small) < set(large)


def test_the_split_seed_moves_the_split():
    first, second = (data.index(DataSpec(**DIGITS, split_seed=seed)) for seed in (0, 2**62))
    assert not np.array_equal(first.val_index_n, second.val_index_n)
    assert first.train_fingerprint == second.train_fingerprint


def test_the_split_is_the_same_in_another_process():
    program = (
        "import hashlib; from raybasin import data; from raybasin.specs import DataSpec\n"
        f"made = data.index(DataSpec(**{DIGITS!r}))\n"
        "parts = made.train_index_n, made.val_index_n, made.test_index_n\n"
        "split = hashlib.sha256(b''.join(part.tobytes() for part in parts)).hexdigest()\n"
        "print(hash('salted'), made.train_fingerprint, split)"
    )
    answers = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(data.__file__).parents[1])}
        run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
        answers.append(run.stdout.split())
    assert answers[0][0] != answers[1][0]
    assert answers[0][1:] == answers[1][1:]


def test_the_split_is_the_one_of_earlier_versions():
    """Ids of stored results presume this split; if it changes on purpose, raise RESULTS_VERSION."""
    made = data.index(DataSpec(**DIGITS))
    assert made.train_index_n[:5].tolist() == [7, 38, 71, 86, 112]
    assert made.val_index_n[:5].tolist() == [15, 18, 32, 35, 46]
    assert made.train_fingerprint.startswith("4de450da42b3")


# Classes


def test_classes_go_by_number_or_name_and_are_relabelled_in_stored_order(tmp_path):
    write_folder(tmp_path, {"ant": 4, "bee": 4, "cow": 4})
    for classes in ((2, 0), ("cow", "ant"), ("cow", 0)):
        loaded = data.load(spec(tmp_path, classes=classes, validation={"images": 2}))
        assert loaded.class_names == ("ant", "cow")
        assert sorted(set(values(loaded.test))) == [0, 1, 2, 3, 20, 21, 22, 23]
        assert loaded.test.labels_N.tolist() == [0] * 4 + [1] * 4


def test_an_unknown_class_is_named_with_the_nearest_one(tmp_path):
    write_folder(tmp_path, {"ant": 4, "bee": 4})
    assert "did you mean 'bee'" in error_of(spec(tmp_path, classes=("ant", "bees")))
    assert "no class 7; the numbers go from 0 to 1" in error_of(spec(tmp_path, classes=(0, 7)))
    assert "given twice" in error_of(spec(tmp_path, classes=(0, "ant")))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"train_images": 10**6}, ("train_images", "1,000,000", "1,794")),
        ({"train_images": {"per_class": 500}}, ("train_images", "500", "class '")),
        ({"validation": {"images": 5000}}, ("validation", "5,000", "1,797")),
        ({"test_images": 5}, ("test_images", "5", "0")),
        ({"train_images": 9}, ("class '", "no training image")),
    ],
)
def test_asking_for_more_images_than_there_are_gives_the_numbers(keys, words):
    message = error_of(DataSpec(**{"name": "digits", "validation": {"images": 3}, **keys}))
    assert all(word in message for word in words)


# Folders and Parquet


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


# Images


def test_grey_palette_and_transparent_images_become_rgb(tmp_path):
    images = [encoded(40, mode="L"), encoded(7, mode="P"), encoded(60, mode="RGBA")] * 2
    write_shard(tmp_path / "train-0.parquet", range(6), [0, 0, 0, 1, 1, 1], images=images)
    loaded = data.load(spec(tmp_path, validation={"images": 1}))
    assert loaded.train.images_NHWC.shape == (5, 4, 6, 3)
    assert {40, 60} <= set(values(loaded.train))


def test_images_of_several_sizes_become_the_square_that_evaluation_needs(tmp_path):
    sizes = [(30, 20), (20, 40), (16, 16)] * 2
    images = [encoded(50 + i, size=size) for i, size in enumerate(sizes)]
    write_shard(tmp_path / "train-0.parquet", range(6), [0, 1] * 3, images=images)
    write_shard(tmp_path / "test-0.parquet", range(2), [0, 1])
    made = data.index(spec(tmp_path, image_size=14))
    assert (made.train_size, made.test_size) == ((16, 16), (4, 6))
    loaded = data.load(spec(tmp_path, image_size=14))
    assert loaded.train.images_NHWC.shape[1:] == (16, 16, 3)
    assert loaded.test.images_NHWC.shape[1:] == (4, 6, 3)
    assert data.index(spec(tmp_path, image_size=14, eval_crop=0.5)).train_size == (28, 28)


def test_fitting_keeps_the_centre(tmp_path):
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 200
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    fitted = data._decode("x", buffer.getvalue(), data.Form((8, 8), fit=True))
    assert (fitted == 200).all()


def test_a_corrupt_image_is_named_by_file_or_row(tmp_path):
    write_folder(tmp_path / "folder", {"a": 4, "b": 4})
    bad = tmp_path / "folder" / "test" / "b" / "002.png"
    bad.write_bytes(bad.read_bytes()[:50])
    assert str(bad) in error_of(spec(tmp_path / "folder"))

    write_parquet(tmp_path)
    images = [encoded(0), encoded(1), encoded(2), encoded(3), b"no image at all", encoded(5)]
    write_shard(tmp_path / "train-00001-of-00002.parquet", range(6), [0, 1, 2] * 2, images=images)
    assert "train-00001-of-00002.parquet, row 4: not a readable image" in error_of(spec(tmp_path))


def test_huge_and_deep_images_are_refused(tmp_path, monkeypatch):
    write_parquet(tmp_path)
    monkeypatch.setattr(data, "MAX_PIXELS", 20)
    assert "6 x 4 pixels" in error_of(spec(tmp_path))
    monkeypatch.undo()
    write_shard(tmp_path / "test-00000-of-00001.parquet", [0], [0], images=[encoded(900, mode="I;16")])
    assert "8 bits" in error_of(spec(tmp_path))


def test_only_the_images_of_the_split_are_decoded(tmp_path, monkeypatch):
    write_parquet(tmp_path)
    decoded = []
    decode = data._decode
    monkeypatch.setattr(data, "_decode", lambda where, *rest: decoded.append(where) or decode(where, *rest))
    data.index(spec(tmp_path))
    assert decoded == []
    data.load(spec(tmp_path, train_images=6, test_images=3))
    assert len(decoded) == 6 + 3 + 3


# Fingerprints


def test_fingerprints_are_of_the_stored_split_and_not_of_the_selection(tmp_path):
    write_folder(tmp_path, {"a": 6, "b": 6})
    whole = data.index(spec(tmp_path))
    part = data.index(spec(tmp_path, train_images=4, test_images=2, split_seed=5, image_size=32))
    assert (part.train_fingerprint, part.test_fingerprint) == (whole.train_fingerprint, whole.test_fingerprint)
    loaded = data.load(spec(tmp_path, train_images=4))
    assert (loaded.train_fingerprint, loaded.test_fingerprint) == (whole.train_fingerprint, whole.test_fingerprint)


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
    assert len({data.PixelSplit(*pair).scan()[0] for pair in pairs}) == 3


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
    assert sorted(values(loaded.train) + values(loaded.val) + values(loaded.test)) == [
        0,
        1,
        2,
        3,
        4,
        10,
        11,
        12,
        13,
        14,
    ]


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

    assert all(hasattr(datasets, known.factory) for known in data.TORCHVISION.values())


# Missing data


def test_an_unknown_name_is_answered_with_the_nearest_one():
    assert "did you mean 'cifar10'" in error_of(DataSpec(name="cifra10"))


def test_data_that_is_nowhere_is_answered_with_three_ways_to_supply_it(tmp_path):
    message = error_of(spec(tmp_path, name="cifar10"))
    assert all(way in message for way in ("network", "--data DIR", "DATA=DIR", "make demo", str(tmp_path)))
    assert len(message.splitlines()) <= 2


@pytest.mark.parametrize("failure", ["refused", "silent"])
def test_without_a_network_a_download_fails_soon_and_leaves_nothing(tmp_path, monkeypatch, failure):
    def connect(*_, **__):
        if failure == "silent":
            time.sleep(5)
        raise OSError("unreachable")

    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.setattr(data, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(data.urllib.request, "getproxies", dict)
    monkeypatch.setenv("RAYBASIN_DATA", str(tmp_path))
    started = time.monotonic()
    assert "no network: www.cs.toronto.edu" in error_of(DataSpec(name="cifar10"))
    assert time.monotonic() - started < 2
    assert list(tmp_path.iterdir()) == []


def test_a_broken_download_leaves_nothing_and_gives_the_time_out_back(tmp_path, monkeypatch):
    def construct(known, folder, arguments, *, download):
        (folder / "dtd" / "dtd").mkdir(parents=True)  # what torchvision would take for the whole data set
        assert socket.getdefaulttimeout() == data.STALL_SECONDS
        raise RuntimeError("the line went dead")

    monkeypatch.setattr(data, "_unreachable", lambda url: None)
    monkeypatch.setattr(data, "_construct", construct)
    monkeypatch.setenv("RAYBASIN_DATA", str(tmp_path))
    assert "the line went dead" in error_of(DataSpec(name="dtd"))
    assert list(tmp_path.iterdir()) == []
    assert socket.getdefaulttimeout() is None


def test_a_whole_download_is_kept_and_used_again(tmp_path, monkeypatch):
    construct, downloads = data._construct, []

    def download_or_read(known, folder, arguments, *, download):
        if not download:
            return construct(known, folder, arguments, download=False)
        downloads.append(arguments)
        return None if (folder / "dtd").exists() else write_dtd(folder)

    monkeypatch.setattr(data, "_unreachable", lambda url: None)
    monkeypatch.setattr(data, "_construct", download_or_read)
    monkeypatch.setenv("RAYBASIN_DATA", str(tmp_path))
    for _ in range(2):
        assert data.index(DataSpec(name="dtd", validation={"images": 2})).n_test == 4
    assert len(downloads) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["dtd"]


# The real thing


@pytest.mark.skipif(not REAL_CIFAR10.is_dir(), reason="no copy of CIFAR-10 beside the repository")
def test_a_thousand_images_of_cifar10():
    loaded = data.load(DataSpec(name="cifar10", dir=str(REAL_CIFAR10), train_images=1000, test_images=500))
    assert [len(loaded.train), len(loaded.val), len(loaded.test)] == [1000, 5000, 500]
    assert np.bincount(loaded.train.labels_N).tolist() == [100] * 10
    assert loaded.class_names[0] == "airplane"
    assert loaded.train.images_NHWC.shape == (1000, 32, 32, 3)
    assert 110 < loaded.train.images_NHWC.mean() < 130
