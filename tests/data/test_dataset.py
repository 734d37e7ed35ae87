"""Data: splits are reproducible and disjoint, classes are relabelled, and only what a split uses is decoded."""

import io
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import places
import pytest
import tiny
import yaml
from images import encoded, error_of, spec, values, write_folder, write_parquet, write_shard
from PIL import Image

from raybasin import console
from raybasin.data import dataset, decoding, formats, images
from raybasin.data import stored as stored_splits
from raybasin.errors import UserError
from raybasin.jobs import local, prepare
from raybasin.store import inventory
from raybasin.store.folders import Folder
from raybasin.sweep import plan, specs
from raybasin.sweep.facts import facts_from_dict
from raybasin.sweep.specs import DataSpec

DIGITS = {
    "name": "digits",
    "classes": (5, 6, 7, 8, 9),
    "train_images": {"per_class": 20},
    "validation": {"images": 300},
}
REAL_CIFAR10 = places.SHARED / "data" / "cifar10"


# Splits


def test_the_rest_of_a_pool_is_its_test_split():
    digits = dataset.load(DataSpec(**DIGITS))
    assert [len(digits.train), len(digits.val), len(digits.test)] == [100, 300, 896 - 400]
    assert digits.classes.names == ("5", "6", "7", "8", "9")
    assert np.bincount(digits.train.labels_N).tolist() == [20] * 5
    assert digits.train.images_NHWC.shape == (100, 8, 8, 3)
    assert digits.train.images_NHWC.dtype == np.uint8
    assert (digits.train.images_NHWC.min(), digits.train.images_NHWC.max()) == (0, 255)
    assert digits.train_fingerprint == digits.test_fingerprint


def test_a_pool_that_trains_on_all_has_no_test_images():
    digits = dataset.load(DataSpec(name="digits"))
    assert (len(digits.train), len(digits.val), len(digits.test)) == (1617, 180, 0)


def test_no_image_is_in_two_splits_and_order_is_the_stored_one():
    made = dataset.index(DataSpec(**DIGITS))
    parts = [made.train.index_n, made.val.index_n, made.test.index_n]
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together) == 896
    assert all((np.diff(part) > 0).all() for part in parts)


@pytest.mark.parametrize(
    ("counts", "wanted", "quota"),
    [
        ((600, 300, 100), 10, [6, 3, 1]),
        ((600, 300, 100), 1000, [600, 300, 100]),
        ((1, 1, 1), 2, [1, 1, 0]),
        ((5, 0, 3), 4, [3, 0, 1]),
    ],
)
def test_images_are_shared_out_by_largest_remainder(counts, wanted, quota):
    labels_N = np.repeat([0, 1, 2], counts)
    classes = dataset.Classes({0: "a", 1: "b", 2: "c"}, (0, 1, 2))
    index_n = dataset.stratified("x", "validation", wanted, labels_N, np.arange(len(labels_N)), classes, 0)
    assert np.bincount(labels_N[index_n], minlength=3).tolist() == quota


def test_validation_and_numbers_are_stratified():
    digits = dataset.load(DataSpec(name="digits", train_images=200, test_images=100))
    stored = np.bincount(dataset.load(DataSpec(name="digits")).train.labels_N)
    for part in (digits.train, digits.val, digits.test):
        share = np.bincount(part.labels_N) / len(part)
        assert np.abs(share - stored / stored.sum()).max() < 1.5 / len(part)


def test_test_images_move_neither_training_nor_validation_and_the_other_way_round(tmp_path):
    write_folder(tmp_path, {"a": 8, "b": 8})
    few, many = (dataset.index(spec(tmp_path, train_images=6, test_images=n)) for n in (4, 10))
    assert np.array_equal(few.train.index_n, many.train.index_n)
    assert np.array_equal(few.val.index_n, many.val.index_n)
    assert set(few.test.index_n) < set(many.test.index_n)
    other = dataset.index(spec(tmp_path, train_images=4, validation={"images": 5}, test_images=4))
    assert np.array_equal(few.test.index_n, other.test.index_n)


def test_a_larger_training_set_holds_the_smaller_one():
    small, large = (
        dataset.index(DataSpec(**{**DIGITS, "train_images": {"per_class": n}})).train.index_n for n in (10, 20)
    )
    assert set(small) < set(large)


def test_the_split_seed_moves_the_split():
    first, second = (dataset.index(DataSpec(**DIGITS, split_seed=seed)) for seed in (0, 2**62))
    assert not np.array_equal(first.val.index_n, second.val.index_n)
    assert first.train.audit.fingerprint == second.train.audit.fingerprint


def test_the_split_is_the_same_in_another_process():
    program = (
        "import hashlib; from raybasin.data import dataset as data; from raybasin.sweep.specs import DataSpec\n"
        f"made = data.index(DataSpec(**{DIGITS!r}))\n"
        "parts = made.train.index_n, made.val.index_n, made.test.index_n\n"
        "split = hashlib.sha256(b''.join(part.tobytes() for part in parts)).hexdigest()\n"
        "print(hash('salted'), made.train.audit.fingerprint, split)"
    )
    answers = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(dataset.__file__).parents[1])}
        run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
        answers.append(run.stdout.split())
    assert answers[0][0] != answers[1][0]
    assert answers[0][1:] == answers[1][1:]


def test_the_split_is_the_one_of_earlier_versions():
    """Ids of stored results presume this split; if it changes on purpose, raise RESULTS_VERSION."""
    made = dataset.index(DataSpec(**DIGITS))
    assert made.train.index_n[:5].tolist() == [7, 38, 71, 86, 112]
    assert made.val.index_n[:5].tolist() == [15, 18, 32, 35, 46]
    assert made.train.audit.fingerprint.startswith("4de450da42b3")


# Classes


def test_classes_go_by_number_or_name_and_are_relabelled_in_stored_order(tmp_path):
    write_folder(tmp_path, {"ant": 4, "bee": 4, "cow": 4})
    for classes in ((2, 0), ("cow", "ant"), ("cow", 0)):
        loaded = dataset.load(spec(tmp_path, classes=classes, validation={"images": 2}))
        assert loaded.classes.names == ("ant", "cow")
        assert sorted(set(values(loaded.test))) == [0, 1, 2, 3, 20, 21, 22, 23]
        assert loaded.test.labels_N.tolist() == [0] * 4 + [1] * 4


def test_an_unknown_class_is_named_with_the_nearest_one(tmp_path):
    write_folder(tmp_path, {"ant": 4, "bee": 4})
    assert "did you mean 'bee'" in error_of(spec(tmp_path, classes=("ant", "bees")))
    assert "no class 7; the numbers go from 0 to 1" in error_of(spec(tmp_path, classes=(0, 7)))
    assert "given twice" in error_of(spec(tmp_path, classes=(0, "ant")))


def test_a_number_never_means_a_class_of_another_name(tmp_path):
    """Folders are sorted as text: the class at place 1 of the folders 1 to 12 is 10."""
    write_folder(tmp_path / "plain", {str(i): 2 for i in range(1, 13)})
    message = error_of(spec(tmp_path / "plain", classes=(1, 2)))
    assert "1 may be a name or a position" in message and "write names in quotes, such as ['1', '9']" in message
    made = dataset.index(spec(tmp_path / "plain", classes=("1", "2"), validation={"images": 1}))
    assert made.classes.names == ("1", "2")

    write_folder(tmp_path / "padded", {f"{i:05d}": 2 for i in range(10)})
    assert "in quotes" in error_of(spec(tmp_path / "padded", classes=(8, 9)))
    write_folder(tmp_path / "same", {str(i): 2 for i in range(10)})
    same = [dataset.index(spec(tmp_path / "same", classes=classes, validation={"images": 1})).classes.names
            for classes in ((8, 3), ("8", "3"))]  # fmt: skip
    assert same == [("3", "8")] * 2
    assert "12 may be a name or a position" in error_of(spec(tmp_path / "same", classes=(8, 12)))
    write_folder(tmp_path / "some", {"1.5": 2, "ant": 2, "bee": 2})
    assert "in quotes" in error_of(spec(tmp_path / "some", classes=(1, 2)))
    write_folder(tmp_path / "words", {"707-320": 2, "2 CV": 2})  # not numbers, although they begin as such
    assert len(dataset.index(spec(tmp_path / "words", classes=(0, 1), validation={"images": 1})).train) == 3


@pytest.mark.parametrize("value", ["00010", "1:30", "-012"])
def test_a_number_that_yaml_reads_otherwise_than_it_stands_is_refused(tmp_path, value):
    path = tmp_path / "s.yaml"
    path.write_text(f"name: x\ndata: {{name: mine, classes: [a, {value}]}}\n")
    with pytest.raises(UserError, match=rf"line 2: {value} is -?\d+ in YAML; put a name in quotes"):
        specs.load(path)


@pytest.mark.parametrize("value", [True, 1.0, None, ["a"]])
def test_a_class_is_a_name_or_a_number(value):
    with pytest.raises(UserError, match="must be the name of a class, in quotes, or its number"):
        specs.parse(tiny.tree(data__classes=["a", value]))


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
    loaded = dataset.load(spec(tmp_path, validation={"images": 1}))
    assert loaded.train.images_NHWC.shape == (5, 4, 6, 3)
    assert {40, 60} <= set(values(loaded.train))


def test_images_of_several_sizes_become_the_square_that_evaluation_needs(tmp_path):
    sizes = [(30, 20), (20, 40), (16, 16)] * 2
    stored = [encoded(50 + i, size=size) for i, size in enumerate(sizes)]
    write_shard(tmp_path / "train-0.parquet", range(6), [0, 1] * 3, images=stored)
    write_shard(tmp_path / "test-0.parquet", range(2), [0, 1])
    made = dataset.index(spec(tmp_path, image_size=14))
    assert (made.train.size, made.test.size) == ((16, 16), (4, 6))
    loaded = dataset.load(spec(tmp_path, image_size=14))
    assert loaded.train.images_NHWC.shape[1:] == (16, 16, 3)
    assert loaded.test.images_NHWC.shape[1:] == (4, 6, 3)
    assert dataset.index(spec(tmp_path, image_size=14, eval_crop=0.5)).train.size == (28, 28)


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
    dataset.index(spec(tmp_path))
    assert decoded == []
    dataset.load(spec(tmp_path, train_images=6, test_images=3))
    assert len(decoded) == 6 + 3 + 3


def test_fingerprints_are_of_the_stored_split_and_not_of_the_selection(tmp_path):
    write_folder(tmp_path, {"a": 6, "b": 6})
    whole = dataset.index(spec(tmp_path))
    part = dataset.index(spec(tmp_path, train_images=4, test_images=2, split_seed=5, image_size=32))
    expected = whole.train.audit.fingerprint, whole.test.audit.fingerprint
    assert (part.train.audit.fingerprint, part.test.audit.fingerprint) == expected
    loaded = dataset.load(spec(tmp_path, train_images=4))
    assert (loaded.train_fingerprint, loaded.test_fingerprint) == expected


# What is loaded is what was looked at


def change(folder, layout):
    """Another image in place of one, as a file or as a row."""
    if layout == "folder":
        (folder / "train" / "b" / "001.png").write_bytes(encoded(201))
        return "train/b/001.png"
    rows = [encoded(i) for i in range(4)]
    write_shard(folder / "train-0.parquet", range(4), [0, 1] * 2, images=[*rows[:2], encoded(201), rows[3]])
    return "train-0.parquet, row 2"


@pytest.fixture(params=["folder", "parquet"])
def stored(request, tmp_path):
    if request.param == "folder":
        write_folder(tmp_path, {"a": 2, "b": 2})
    else:
        for name in ("train-0.parquet", "test-0.parquet"):
            write_shard(tmp_path / name, range(4), [0, 1] * 2)
    return tmp_path, request.param


@pytest.mark.parametrize("how", ["arrays", "workers"])
def test_an_image_that_changes_between_planning_and_loading_is_named(stored, how, tmp_path_factory, monkeypatch):
    folder, layout = stored
    small = {"name": "mine", "dir": str(folder), "image_size": 32, "validation": {"images": 1}, "decode": how}
    task = {"data": small, "recipe": {"epochs": 1, "batch_size": 2}}
    digits = tiny.tree()["data"]
    for own, pretrained in ((small, tiny.tree()["model"]["pretrained"]), (digits, [{"pretrain": task}])):
        # A copy of Parquet that was made before the change would still serve.
        monkeypatch.setenv("RAYBASIN_DATA", str(tmp_path_factory.mktemp("cache")))
        prepared = prepare.prepare(tiny.spec(data=own, model__pretrained=pretrained))
        name = change(folder, layout)
        with pytest.raises(UserError, match=f"{name}: is not the image that it was"):
            loaded = prepare.load(prepared)
            for part in loaded.parts():  # of workers, who find it when they come to it
                if isinstance(part.images_NHWC, decoding.StoredImages):
                    decoding.as_array(part.images_NHWC, np.arange(len(part)))
        if layout == "folder":
            (folder / name).write_bytes(encoded(11))
        else:
            write_shard(folder / "train-0.parquet", range(4), [0, 1] * 2)
        assert len(prepare.load(prepared).target.train) > 0


def test_checkpoints_alone_are_made_of_what_was_looked_at(stored):
    folder, layout = stored
    task = {"data": {"name": "mine", "dir": str(folder), "image_size": 32, "validation": {"images": 1}},
            "recipe": {"epochs": 1, "batch_size": 2}}  # fmt: skip
    prepared = prepare.prepare_pretraining(tiny.spec(model__pretrained=[{"pretrain": task}]))
    loaded = prepare.load(prepared)
    assert loaded.target is loaded.pretrain[0] and len(loaded.target.train) == 3
    name = change(folder, layout)
    with pytest.raises(UserError, match=f"{name}: is not the image that it was"):
        prepare.load(prepared)


def test_data_are_read_once_to_plan_and_once_to_decode(tmp_path, monkeypatch):
    write_folder(tmp_path, {"a": 4, "b": 4})
    read, original = Counter(), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.update([path]) or original(path))
    dataset.load(spec(tmp_path))
    assert len(read) == 16 and set(read.values()) == {2}


# Images that are there twice


def said(folder, **keys):
    return list(dataset.copies(dataset.index(spec(folder, **{"validation": "official", **keys}))))


def test_copies_are_counted_across_splits_and_within_training(tmp_path):
    for split, first in (("train", 0), ("val", 50), ("test", 100)):
        for k, name in enumerate(("ant", "bee")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                (tmp_path / split / name / f"{i}.png").write_bytes(encoded(first + 10 * k + i))
    assert said(tmp_path) == []
    one = encoded(1)  # train/ant/1.png
    for name in ("train/ant/8.png", "val/ant/8.png", "test/ant/8.png", "test/bee/8.png"):
        (tmp_path / name).write_bytes(one)
    (tmp_path / "test" / "bee" / "9.png").write_bytes(encoded(50))  # val/ant/0.png
    assert said(tmp_path) == [
        f"1 of 7 validation images are copies, byte for byte, of training images, such as {tmp_path}/val/ant/8.png, "
        f"the same as {tmp_path}/train/ant/1.png",
        f"2 of 9 test images are copies, byte for byte, of training images, such as {tmp_path}/test/ant/8.png, "
        f"the same as {tmp_path}/train/ant/1.png",
        f"3 of 9 test images are copies, byte for byte, of validation images, such as {tmp_path}/test/ant/8.png, "
        f"the same as {tmp_path}/val/ant/8.png",
        f"1 of 7 training images are copies, byte for byte, of other training images, such as "
        f"{tmp_path}/train/ant/8.png, the same as {tmp_path}/train/ant/1.png",
        f"2 of the images that occur several times are of several classes, such as {tmp_path}/train/ant/1.png ('ant') "
        f"and {tmp_path}/test/bee/8.png ('bee')",
    ]  # fmt: skip


def test_an_image_that_validation_is_cut_from_may_have_a_twin_that_is_trained_on(tmp_path):
    write_folder(tmp_path, {"a": 6, "b": 6})
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(encoded(10 if path.parent.name == "a" else 20))
    for path in (tmp_path / "test").rglob("*.png"):
        path.write_bytes(encoded(200 + int(path.stem) + 10 * (path.parent.name == "b")))
    across, within = said(tmp_path, validation={"images": 4})
    assert across.startswith("4 of 4 validation images") and within.startswith("6 of 8 training images")


def test_images_of_one_length_and_checksum_are_no_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_splits, "zlib", SimpleNamespace(crc32=lambda content: 7))
    write_folder(tmp_path, {"a": 3, "b": 3}, splits=("train", "val", "test"))
    (tmp_path / "test" / "b" / "000.png").write_bytes(encoded(99))
    found = said(tmp_path)
    assert found[1].startswith("5 of 6 test images")


def test_copies_are_found_among_pixels(monkeypatch):
    pixels = np.arange(12, dtype=np.uint8).repeat(4).reshape(12, 2, 2)
    pixels[7] = pixels[1]
    found = stored_splits.Stored(stored_splits.PixelSplit(pixels, np.arange(12) % 2), None, None, source="digits")
    monkeypatch.setattr(formats, "digits", lambda: found)
    made = dataset.index(DataSpec(name="digits", train_images=10, validation={"images": 1}))
    [found] = dataset.copies(made)
    assert re.search(r"copies, .* such as image (1, the same as image 7|7, the same as image 1)$", found)


# What plan says of data


def lines(folder, **keys):
    made = tiny.spec(data={"name": "mine", "dir": str(folder), "image_size": 32, "validation": {"images": 3}, **keys})
    return list(console.lines(local.look(prepare.prepare(made).plan, Folder(folder / "results"))))


def test_plan_says_what_is_trained_on(tmp_path):
    write_folder(tmp_path, {"ant": 4, "bee": 6})
    for name in ("000.png", "001.png"):
        (tmp_path / "test" / "bee" / name).unlink()
    (tmp_path / "train" / "ant" / "x.txt").write_text("")
    (tmp_path / "test" / "ant" / "000.png").write_bytes(encoded(15))
    found = lines(tmp_path)
    start = found.index(f"  from image folder '{tmp_path}': train, test")
    assert found[start - 1].startswith("data mine: 7 training, 3 validation, 8 test images, 2 classes")
    assert found[start + 1] == "  images a class (training/validation/test): ant: 3/1/4, bee: 4/2/4"
    assert found[start + 2] == f"  note: passed over in train: 1 .txt (such as {tmp_path}/train/ant/x.txt)"
    assert any(line.startswith("  note: ") and "test images are copies" in line for line in found)
    [after] = [k for k, line in enumerate(found, 1) if line.startswith("checkpoints are made from digits: 40 training")]
    assert found[after] == "  from scikit-learn's digits"


def test_names_of_classes_are_printed_as_text(tmp_path):
    write_folder(tmp_path, {"a": 3, "b\n\x1b[31m" + "x" * 50: 3})
    assert any(f"a: 2/1/3, b [31m{'x' * 33}: " in line for line in lines(tmp_path, validation={"images": 2}))


def test_plan_abbreviates_many_classes_and_names_those_without_test_images(tmp_path):
    write_folder(tmp_path, {f"c{k:02d}": 3 + (k == 5) for k in range(14)})
    for path in (tmp_path / "test" / "c07").iterdir():
        path.unlink()
    found = lines(tmp_path, validation={"images": 14})
    assert "  classes: c00, c01, c02, c03, c04, c05, c06, c07, c08, c09, c10, c11 and 2 more" in found
    assert "  images a class (training/validation/test): 2 to 3/1/0 to 4" in found
    assert "  note: no test image of c07" in found


def test_classes_whose_names_hold_commas_can_be_told_apart(tmp_path):
    write_folder(tmp_path, {"frog, Rana": 3, "newt": 3, "toad": 3})
    for name in ("frog, Rana", "toad"):
        for path in (tmp_path / "test" / name).iterdir():
            path.unlink()
    assert "  note: no test image of frog, Rana; toad" in lines(tmp_path, validation={"images": 3})


def test_facts_of_data_go_through_a_file_and_those_of_older_files_are_read(tmp_path):
    write_folder(tmp_path, {"ant": 4, "bee": 6})
    made = prepare.prepare(tiny.spec(data={"name": "mine", "dir": str(tmp_path), "image_size": 32})).plan
    stored = yaml.safe_load(inventory.resolved(made))["facts"]
    assert facts_from_dict(stored) == made.facts
    for key in ("source", "per_class", "notes"):
        del stored["data"][key]
    assert facts_from_dict(stored).data.per_class == ()
    assert plan.make(made.spec, facts_from_dict(stored)).settings_id == made.settings_id


# The real thing


@pytest.mark.skipif(not REAL_CIFAR10.is_dir(), reason="no copy of CIFAR-10 beside the repository")
def test_a_thousand_images_of_cifar10():
    loaded = dataset.load(DataSpec(name="cifar10", dir=str(REAL_CIFAR10), train_images=1000, test_images=500))
    assert [len(loaded.train), len(loaded.val), len(loaded.test)] == [1000, 5000, 500]
    assert np.bincount(loaded.train.labels_N).tolist() == [100] * 10
    assert loaded.classes.names[0] == "airplane"
    assert loaded.train.images_NHWC.shape == (1000, 32, 32, 3)
    assert 110 < loaded.train.images_NHWC.mean() < 130
