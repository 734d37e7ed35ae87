"""Data: splits are reproducible and disjoint, classes are relabelled, and only what a split uses is decoded."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from images import encoded, error_of, spec, values, write_folder, write_parquet, write_shard
from PIL import Image

from raybasin import data, images
from raybasin.specs import DataSpec

DIGITS = {
    "name": "digits",
    "classes": (5, 6, 7, 8, 9),
    "train_images": {"per_class": 20},
    "validation": {"images": 300},
}
REAL_CIFAR10 = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10"


# Splits


def test_the_rest_of_a_pool_is_its_test_split():
    digits = data.load(DataSpec(**DIGITS))
    assert [len(digits.train), len(digits.val), len(digits.test)] == [100, 300, 896 - 400]
    assert digits.class_names == ("5", "6", "7", "8", "9")
    assert np.bincount(digits.train.labels_N).tolist() == [20] * 5
    assert digits.train.images_NHWC.shape == (100, 8, 8, 3)
    assert digits.train.images_NHWC.dtype == np.uint8
    assert (digits.train.images_NHWC.min(), digits.train.images_NHWC.max()) == (0, 255)
    assert digits.train_fingerprint == digits.test_fingerprint


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
    for part in (digits.train, digits.val, digits.test):
        share = np.bincount(part.labels_N) / len(part)
        assert np.abs(share - stored / stored.sum()).max() < 1.5 / len(part)


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


# Images


def test_grey_palette_and_transparent_images_become_rgb(tmp_path):
    stored = [encoded(40, mode="L"), encoded(7, mode="P"), encoded(60, mode="RGBA")] * 2
    write_shard(tmp_path / "train-0.parquet", range(6), [0, 0, 0, 1, 1, 1], images=stored)
    loaded = data.load(spec(tmp_path, validation={"images": 1}))
    assert loaded.train.images_NHWC.shape == (5, 4, 6, 3)
    assert {40, 60} <= set(values(loaded.train))


def test_images_of_several_sizes_become_the_square_that_evaluation_needs(tmp_path):
    sizes = [(30, 20), (20, 40), (16, 16)] * 2
    stored = [encoded(50 + i, size=size) for i, size in enumerate(sizes)]
    write_shard(tmp_path / "train-0.parquet", range(6), [0, 1] * 3, images=stored)
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
    fitted = images.decode("x", buffer.getvalue(), (8, 8))
    assert (fitted == 200).all()


def test_deep_images_are_refused(tmp_path):
    write_parquet(tmp_path)
    write_shard(tmp_path / "test-00000-of-00001.parquet", [0], [0], images=[encoded(900, mode="I;16")])
    assert "8 bits" in error_of(spec(tmp_path))


def test_only_the_images_of_the_split_are_decoded(tmp_path, monkeypatch):
    write_parquet(tmp_path)
    decoded = []
    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda where, *rest: decoded.append(where) or decode(where, *rest))
    data.index(spec(tmp_path))
    assert decoded == []
    data.load(spec(tmp_path, train_images=6, test_images=3))
    assert len(decoded) == 6 + 3 + 3


def test_fingerprints_are_of_the_stored_split_and_not_of_the_selection(tmp_path):
    write_folder(tmp_path, {"a": 6, "b": 6})
    whole = data.index(spec(tmp_path))
    part = data.index(spec(tmp_path, train_images=4, test_images=2, split_seed=5, image_size=32))
    assert (part.train_fingerprint, part.test_fingerprint) == (whole.train_fingerprint, whole.test_fingerprint)
    loaded = data.load(spec(tmp_path, train_images=4))
    assert (loaded.train_fingerprint, loaded.test_fingerprint) == (whole.train_fingerprint, whole.test_fingerprint)


# The real thing


@pytest.mark.skipif(not REAL_CIFAR10.is_dir(), reason="no copy of CIFAR-10 beside the repository")
def test_a_thousand_images_of_cifar10():
    loaded = data.load(DataSpec(name="cifar10", dir=str(REAL_CIFAR10), train_images=1000, test_images=500))
    assert [len(loaded.train), len(loaded.val), len(loaded.test)] == [1000, 5000, 500]
    assert np.bincount(loaded.train.labels_N).tolist() == [100] * 10
    assert loaded.class_names[0] == "airplane"
    assert loaded.train.images_NHWC.shape == (1000, 32, 32, 3)
    assert 110 < loaded.train.images_NHWC.mean() < 130
