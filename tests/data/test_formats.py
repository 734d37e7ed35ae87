"""Sources: every layout is read, bad data is named, and a download comes whole or not at all."""

import json
import os
import socket
import subprocess
import threading

import layouts
import numpy as np
import pyarrow as pa
import pytest
import tiny
from images import encoded, error_of, spec, values, write_folder, write_parquet, write_shard
from PIL import Image

from raybasin.data import dataset, downloads, images, stored, torchvision_sets
from raybasin.data.images import to_rgb
from raybasin.errors import UserError
from raybasin.jobs import prepare
from raybasin.sweep import specs
from raybasin.sweep.specs import DataSpec

# Digits, folders and Parquet


def test_digits_are_scaled_from_16_to_255_in_all_three_channels():
    from sklearn.datasets import load_digits

    made = dataset.index(DataSpec(name="digits"))
    digits = dataset.load(DataSpec(name="digits"))
    original = load_digits().images[made.train.index_n] * 255 / 16
    assert np.abs(digits.train.images_NHWC - original[..., None]).max() <= 0.5


def test_an_image_folder_is_read_in_the_order_of_names(tmp_path):
    write_folder(tmp_path, {"b": 3, "a": 3}, splits=("train", "val"))
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    loaded = dataset.load(spec(tmp_path, validation={"images": 2}))
    assert loaded.classes.names == ("a", "b")
    assert values(loaded.test) == [0, 1, 2, 10, 11, 12]
    assert sorted(values(loaded.train) + values(loaded.val)) == [0, 1, 2, 10, 11, 12]
    assert loaded.train.images_NHWC.shape == (4, 4, 6, 3)


def test_only_a_training_folder_is_one_pool(tmp_path):
    write_folder(tmp_path, {"a": 6, "b": 6}, splits=("train",))
    made = dataset.index(spec(tmp_path, train_images=4))
    assert (len(made.train), len(made.val), len(made.test), made.stored.test is None) == (4, 3, 5, True)


@pytest.mark.parametrize("layout", ["folder", "parquet"])
def test_official_validation_images_of_a_folder_are_used_where_they_are_asked_for(tmp_path, layout):
    if layout == "folder":
        write_folder(tmp_path, {"a": 2, "b": 2}, splits=("train", "val", "test"))
        seen = [0, 1, 10, 11]
    else:
        for split, first in (("train", 0), ("validation", 50), ("test", 100)):
            write_shard(tmp_path / f"{split}-0.parquet", range(first, first + 4), [0, 1] * 2)
        seen = list(range(4))
    cut = dataset.load(spec(tmp_path, validation={"images": 2}))
    assert sorted(values(cut.train) + values(cut.val)) == seen
    official = dataset.load(spec(tmp_path, validation="official"))
    assert sorted(values(official.train)) == seen
    assert sorted(values(official.val)) == (seen if layout == "folder" else list(range(50, 54)))
    assert official.test_fingerprint == cut.test_fingerprint


def test_a_validation_split_that_reports_is_no_official_validation(tmp_path):
    write_folder(tmp_path, {"a": 4, "b": 4}, splits=("train", "val"))
    assert "no official validation images" in error_of(spec(tmp_path, validation="official"))


def test_classes_that_lie_one_folder_deeper_are_refused_by_name(tmp_path):
    for split in ("train", "test"):
        write_folder(tmp_path / "one" / split, {"ant": 2, "bee": 2}, splits=("images",))
    message = error_of(spec(tmp_path / "one"))
    assert f"{tmp_path}/one/train: holds one class folder, images" in message and "ant, bee. Move them up" in message
    for split in ("train", "test"):
        write_folder(tmp_path / "two" / split, {"ant": 2, "bee": 2}, splits=("images", "more"))
    message = error_of(spec(tmp_path / "two"))
    assert "train/images/: holds no images but folders of images, ant, bee" in message
    assert len(message.splitlines()) <= 2


def test_one_folder_of_images_in_each_class_is_read_and_said(tmp_path):
    """As the original Tiny-ImageNet has it."""
    for split in ("train", "test"):
        for name, value in (("n01", 0), ("n02", 10)):
            for i in range(3):
                layouts.put(tmp_path / split / name / "images" / f"{i}.JPEG", value + i)
    loaded = dataset.load(spec(tmp_path, validation={"images": 2}))
    assert loaded.classes.names == ("n01", "n02") and values(loaded.test) == [0, 1, 2, 10, 11, 12]
    below = f"6 images in folders below their class folder, such as {tmp_path}/train/n01/images/0.JPEG"
    assert below in dataset.index(spec(tmp_path, validation={"images": 1})).stored.notes


def test_a_single_class_is_refused(tmp_path):
    write_folder(tmp_path / "f", {"a": 4})
    assert "holds one class folder, a, and must hold two" in error_of(spec(tmp_path / "f"))
    write_shard(tmp_path / "p" / "train.parquet", range(4), [0] * 4)
    assert "holds one class, '0'; two or more are needed" in error_of(spec(tmp_path / "p"))


def test_what_is_passed_over_is_counted_by_its_ending_with_an_example(tmp_path):
    write_folder(tmp_path, {"ant": 3, "bee": 3}, splits=("train", "test", "extra"))
    ant = tmp_path / "train" / "ant"
    for name in ("1.avif", "2.AVIF", "labels", ".hidden.png"):
        (ant / name).write_bytes(encoded(1))
    (ant / ".cache").mkdir()
    (ant / ".cache" / "0.png").write_bytes(encoded(1))
    (tmp_path / "train" / "7.png").write_bytes(encoded(1))
    made = dataset.index(spec(tmp_path, validation={"images": 1}))
    assert (len(made.train), len(made.val), len(made.test)) == (5, 1, 6)
    passed, unread = made.stored.notes
    assert unread == "not read: extra"
    assert passed.startswith("passed over in train: ")
    examples = {"2 .avif": ant / "1.avif", "2 hidden": ant / ".cache", "1 without an ending": ant / "labels",
                "1 outside of the class folders": tmp_path / "train" / "7.png"}  # fmt: skip
    assert all(f"{counted} (such as {path})" in passed for counted, path in examples.items())


@pytest.mark.parametrize("parquet_first", [True, False])
def test_a_split_that_lies_there_in_the_other_layout_is_named(tmp_path, parquet_first):
    """Its images are not tested on, though they may have been meant to be."""
    if parquet_first:
        write_shard(tmp_path / "train.parquet", range(12), [0, 1] * 6)
        write_folder(tmp_path, {"ant": 3, "bee": 3}, splits=("test",))
    else:
        write_folder(tmp_path, {"ant": 6, "bee": 6}, splits=("train",))
        write_shard(tmp_path / "test.parquet", range(4), [0, 1] * 2)
    made = dataset.index(spec(tmp_path, train_images=4))
    assert made.stored.test is None
    assert made.stored.notes == ("not read: test" + (".parquet" if not parquet_first else ""),)


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ("ant bee cow", "ant bee", "only train has cow."),
        ("ant bee", "ant bee cow", "only test has cow."),
        ("ant bee", "ant cow", "only train has bee; only test has cow."),
        ("n1 n2", "images", "only train has n1, n2; only test has images."),
        ("Ant bee", "ant bee", "only train has Ant; only test has ant (they differ in capitals"),
        ("caf\u00e9 bee", "cafe\u0301 bee", "or Unicode forms alone)"),
    ],
)
def test_class_folders_of_two_splits_that_differ_are_told_apart(tmp_path, ours, theirs, words):
    write_folder(tmp_path, dict.fromkeys(ours.split(), 2), splits=("train",))
    write_folder(tmp_path, dict.fromkeys(theirs.split(), 2), splits=("test",))
    message = error_of(spec(tmp_path))
    assert words in message and "take test away" in message and len(message.splitlines()) == 2


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    assert to_rgb("a", (tmp_path / "a.png").read_bytes()).getpixel((0, 0)) == (10, 200, 30)


def test_an_empty_file_is_found_by_plan(tmp_path):
    """Also where the headers of the images are not looked at any more, since their sizes differ."""
    write_folder(tmp_path, {"ant": 3, "bee": 3})
    (tmp_path / "train" / "ant" / "000.png").write_bytes(encoded(1, size=(9, 9)))
    (last := tmp_path / "train" / "bee" / "002.png").write_bytes(b"")
    with pytest.raises(UserError, match=f"{last}: is empty; replace it or take it out"):
        dataset.index(spec(tmp_path))


def test_a_pointer_of_git_lfs_in_place_of_an_image_is_called_so():
    with pytest.raises(UserError, match=r"^a\.png: is a pointer .* `git lfs pull`"):
        to_rgb("a.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")


def test_without_test_images_it_is_said_what_is_not_read(tmp_path):
    write_folder(tmp_path, {"ant": 6, "bee": 6}, splits=("train", "Test"))
    sweep = specs.parse(tiny.tree(data={"name": "mine", "dir": str(tmp_path), "image_size": 8, "augment": []}))
    with pytest.raises(UserError, match="there is no test split (.|\n)*not read: Test"):
        prepare.prepare(sweep)
    for name in ("ant", "bee"):
        (tmp_path / "test" / name).mkdir(parents=True)
    with pytest.raises(UserError, match="there is no image in its test split .* put images there"):
        prepare.prepare(sweep)


def test_a_class_without_a_readable_ending_says_what_is_there_instead(tmp_path):
    write_folder(tmp_path, {"ant": 3, "bee": 3})
    for path in (tmp_path / "train" / "bee").iterdir():
        path.rename(path.with_suffix(".avif"))
    message = error_of(spec(tmp_path))
    assert "class 'bee' has no training image" in message and "3 .avif" in message and len(message.splitlines()) == 2


def test_every_ending_of_the_formats_that_are_read_is_known():
    from PIL import Image

    Image.init()
    registered = {ending for ending, name in Image.EXTENSION.items() if name in images.IMAGE_FORMATS}
    assert registered == set(images.IMAGE_SUFFIXES)


def test_images_are_read_by_all_their_endings_in_either_case(tmp_path):
    write_folder(tmp_path, {"a": 1, "b": 1})
    for i, (ending, file_format) in enumerate({"JPE": "JPEG", "jfif": "JPEG", "Pgm": "PPM", "TIF": "TIFF"}.items()):
        (tmp_path / "train" / "a" / f"{i}.{ending}").write_bytes(encoded(100, mode="L", file_format=file_format))
    made = dataset.index(spec(tmp_path, validation={"images": 1}))
    assert (len(made.train) + len(made.val), made.stored.notes) == (6, ())


def test_links_are_followed_but_not_in_circles_or_to_nothing(tmp_path):
    write_folder(tmp_path / "set", {"ant": 3, "bee": 3})
    link = tmp_path / "set" / "train" / "ant" / "again"
    link.symlink_to(tmp_path / "set" / "train")
    assert f"{link}" in error_of(spec(tmp_path / "set")) and "back to a folder that it lies in" in error_of(
        spec(tmp_path / "set")
    )
    link.unlink()
    (link.parent / "9.png").symlink_to(tmp_path / "gone.png")
    assert "9.png: is no file, or a link to what is not there" in error_of(spec(tmp_path / "set"))
    (link.parent / "9.png").unlink()
    os.mkfifo(link.parent / "9.png")
    assert "9.png: is no file" in error_of(spec(tmp_path / "set"))
    (link.parent / "9.png").unlink()
    write_folder(tmp_path / "elsewhere", {"x": 2}, splits=("more",), mode="L")
    link.symlink_to(tmp_path / "elsewhere" / "more" / "x")
    assert len(dataset.index(spec(tmp_path / "set")).train) == 3 + 3 + 2 - 3


def test_names_that_are_no_utf8_are_fine_for_images_and_refused_for_classes(tmp_path):
    write_folder(tmp_path, {"ant": 3, "bee": 3})
    path = os.fsencode(tmp_path / "test" / "ant") + b"/caf\xe9.png"
    with open(path, "wb") as file:
        file.write(encoded(99))
    assert 99 in values(dataset.load(spec(tmp_path, validation={"images": 1})).test)
    os.rename(os.fsencode(tmp_path / "train" / "bee"), os.fsencode(tmp_path / "train") + b"/caf\xe9")
    os.rename(tmp_path / "test" / "bee", os.fsencode(tmp_path / "test") + b"/caf\xe9")
    assert "the name of the class 'caf?' is not UTF-8" in error_of(spec(tmp_path))


def test_a_folder_with_parquet_and_class_folders_is_refused(tmp_path):
    write_folder(tmp_path, {"a": 3, "b": 3})
    write_shard(tmp_path / "train" / "0000.parquet", range(4), [0, 1] * 2)
    assert "holds Parquet files of train and class folders in train" in error_of(spec(tmp_path))


def test_folders_as_deep_as_they_can_be_are_looked_through(tmp_path, monkeypatch):
    write_folder(tmp_path, {"a": 2, "b": 2})
    monkeypatch.chdir(tmp_path / "train" / "a")
    try:
        for _ in range(1200):
            os.mkdir("x")
            os.chdir("x")
        (tmp_path / "train" / "a" / "000.png").rename("deep.png")
        made = dataset.index(spec(tmp_path, validation={"images": 1}))
    finally:  # deeper than shutil, and so pytest, would take away
        subprocess.run(["rm", "-rf", tmp_path / "train"], check=True)
    assert (len(made.train), len(made.val)) == (3, 1)


@pytest.mark.parametrize("options", [{}, {"column": "image"}, {"label": "fine_label"}])
def test_parquet_shards_are_read_in_order(tmp_path, options):
    loaded = dataset.load(spec(write_parquet(tmp_path, **options)))
    assert loaded.classes.names == ("0", "1", "2")
    assert values(loaded.test) == [100, 101, 102, 103, 104, 105]
    assert loaded.test.labels_N.tolist() == [0, 1, 2, 0, 1, 2]
    assert sorted(values(loaded.train) + values(loaded.val)) == list(range(12))
    assert [value % 3 for value in values(loaded.train)] == loaded.train.labels_N.tolist()


def test_a_folder_of_data_sets_and_the_hubs_data_folder_will_do(tmp_path):
    (tmp_path / "mine" / "data").mkdir(parents=True)
    write_parquet(tmp_path / "mine" / "data")
    assert len(dataset.index(spec(tmp_path)).test) == 6


@pytest.mark.parametrize("listed", [["x", "y", "z"], [{"wnid": "n1", "name": name} for name in "xyz"]])
def test_class_names_come_from_classes_json(tmp_path, listed):
    write_parquet(tmp_path)
    (tmp_path / "classes.json").write_text(json.dumps(listed))
    assert dataset.index(spec(tmp_path)).classes.names == ("x", "y", "z")


def test_class_names_come_from_the_hubs_metadata(tmp_path):
    features = {"label": {"_type": "ClassLabel", "names": ["u", "v", "w"]}}
    write_parquet(tmp_path, metadata={"info": {"features": features}})
    assert dataset.index(spec(tmp_path)).classes.names == ("u", "v", "w")


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
    write_parquet(tmp_path, column="picture", kind=pa.string(), images=list("abcdef"))
    assert "has no image column; call it img or image; the columns are picture, label" in error_of(spec(tmp_path))
    write_parquet(tmp_path, column="image", kind=pa.string(), images=list("abcdef"))
    assert "column image must hold images: be binary, or a struct" in error_of(spec(tmp_path))
    (tmp_path / "train-00000-of-00002.parquet").write_bytes(b"PAR1 and nothing else")
    assert "train-00000-of-00002.parquet" in error_of(spec(tmp_path))


def test_a_path_in_parquet_is_never_followed(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(77))
    folder = tmp_path / "set"
    folder.mkdir()
    paths = ["../secret.png", str(secret), "2.png"] * 2
    write_shard(folder / "train-0.parquet", range(6), [0, 1, 2] * 2, paths=paths)
    loaded = dataset.load(spec(folder))
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
    monkeypatch.setattr(images, "MAX_PIXELS", 20)
    assert "6 x 4 pixels" in error_of(spec(tmp_path))


def test_only_what_pillow_does_is_blamed_on_the_image(monkeypatch):
    content = encoded(1)
    with pytest.raises(UserError, match="here: not a readable image"):
        images.to_rgb("here", content[:45])
    with pytest.raises(UserError, match="here: not a readable image .none of JPEG, PNG, WEBP, BMP, GIF, PPM, TIFF."):
        images.size_of("here", b"something else")
    for error in (MemoryError(), KeyboardInterrupt()):

        def fails(*arguments, error=error, **options):
            raise error

        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(images.Image.Image, "convert", fails)
            images.to_rgb("here", content)
        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(images.Image, "open", fails)
            images.size_of("here", content)
    monkeypatch.setattr(images.ImageOps, "fit", lambda *_: [][0])  # a fault of ours
    with pytest.raises(IndexError):
        images.decode("here", content, (4, 4))


# Fingerprints


def test_fingerprints_change_with_one_pixel_one_label_and_the_order(tmp_path):
    def train_fingerprint(contents, labels):
        write_shard(tmp_path / "train-0.parquet", range(6), labels, images=contents)
        return dataset.index(spec(tmp_path, validation={"images": 1})).train.audit.fingerprint

    contents, labels = [encoded(i) for i in range(6)], [0, 1, 2] * 2
    found = {
        train_fingerprint(contents, labels),
        train_fingerprint([encoded(9), *contents[1:]], labels),
        train_fingerprint(contents, [0, 1, 2, 0, 2, 1]),
        train_fingerprint(contents[::-1], labels),
    }
    assert len(found) == 4


def test_fingerprints_of_pixels_change_with_one_byte_and_one_label():
    pixels, labels = np.zeros((5, 2, 2), np.uint8), np.arange(5)
    other_pixels, other_labels = pixels.copy(), labels.copy()
    other_pixels[4, 1, 1], other_labels[4] = 1, 0
    pairs = (pixels, labels), (other_pixels, labels), (pixels, other_labels)
    assert len({stored.audit(stored.PixelSplit(*pair)).fingerprint for pair in pairs}) == 3


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


def test_a_folder_above_a_link_is_that_of_what_it_leads_to(tmp_path):
    write_folder(tmp_path / "a" / "set", {"ant": 3, "bee": 3})
    (tmp_path / "a" / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a" / "other")
    made = dataset.index(spec(tmp_path / "link" / ".." / "set", validation={"images": 1}))
    assert len(made.train) == 5


def test_a_known_set_that_cannot_be_downloaded_is_answered_with_three_ways_to_supply_it(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYBASIN_DATA", str(tmp_path))
    message = error_of(DataSpec(name="stanfordcars"))
    assert all(way in message for way in ("network", "--data DIR", "DATA=DIR", "make demo", "has no download"))
    assert len(message.splitlines()) <= 2


@pytest.mark.parametrize(
    ("there", "way"),
    [
        (["set-1.0/train/ant/1.png", "set-1.0/test/ant/1.png"], "may be those in '{}/set-1.0'; name that folder"),
        (["train/data-00000-of-00001.arrow", "dataset_dict.json"], "write each split by its to_parquet"),
        (["data-00000-of-00001.arrow"], "write each split by its to_parquet"),
        (["train-000000.tar"], "Archives such as train-000000.tar are not read; unpack them"),
        (["images.ZIP"], "unpack them"),
        (["Train/ant/1.png", "Test/ant/1.png"], "Rename Test, Train: names of splits are in lower case"),
        (["train/1.png", "train/metadata.csv"], "train/ holds no folders of classes"),
        (["ant/1.png", "bee/1.png"], "If ant, bee are classes, move them into a folder train"),
    ],
)
def test_what_people_have_in_place_of_a_layout_is_told_the_way_out(tmp_path, there, way):
    for name in there:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    message = error_of(spec(tmp_path))
    assert way.format(tmp_path) in message and len(message.splitlines()) == 2


def test_an_address_is_not_looked_for_in_the_current_folder():
    assert "'s3://bucket/set' is an address" in error_of(spec("s3://bucket/set"))


def test_a_folder_without_data_says_what_it_holds_and_what_is_looked_for(tmp_path):
    message = error_of(spec(tmp_path, name="cifar10"))
    assert f"no data in '{tmp_path}': it holds nothing" in message and "torchvision's own files of cifar10" in message
    (tmp_path / "Train" / "ant").mkdir(parents=True)
    (tmp_path / "a.zip").write_bytes(b"")
    message = error_of(spec(tmp_path))
    assert "it holds 1 folder (Train) and 1 file (a.zip)" in message and "torchvision" not in message
    assert all(layout in message for layout in ("train/<class>/*.jpg", "train-*.parquet", "train/*.parquet"))
    assert len(message.splitlines()) <= 2


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("nowhere", "data.dir: there is no folder '{here}/nowhere' ('nowhere' counts from where the command is run)"),
        ("{here}/nowhere", "data.dir: there is no folder '{here}/nowhere'"),
        ("a.zip", "data.dir: '{here}/a.zip' is a file; name the folder in which the data are"),
        ("~nobody-of-that-name/x", "there is no folder '{here}/~nobody-of-that-name/x'"),
        ("x" * 300, "{here}/" + "x" * 300 + ": cannot be read: File name too long"),
        ("a\0b", "there is no folder '{here}/a b'"),
    ],
)
def test_a_folder_that_is_not_there_is_named_with_its_absolute_path(tmp_path, monkeypatch, wanted, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.zip").write_bytes(b"")
    assert said.format(here=tmp_path) in error_of(spec(wanted.format(here=tmp_path)))


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
        assert socket.getdefaulttimeout() == downloads.STALL_SECONDS
        raise RuntimeError("the line went dead")

    monkeypatch.setattr(downloads, "unreachable", lambda url: None)
    monkeypatch.setattr(torchvision_sets, "construct", construct)
    monkeypatch.setenv("RAYBASIN_DATA", str(tmp_path))
    assert "the line went dead" in error_of(DataSpec(name="dtd"))
    assert list(tmp_path.iterdir()) == []
    assert socket.getdefaulttimeout() is None


def test_a_whole_download_is_kept_and_used_again(tmp_path, monkeypatch):
    construct, downloaded = torchvision_sets.construct, []

    def download_or_read(one, folder, arguments, *, download):
        if not download:
            return construct(one, folder, arguments, download=False)
        downloaded.append(arguments)
        return None if (folder / "dtd").exists() else layouts.dtd(folder, monkeypatch)

    monkeypatch.setattr(downloads, "unreachable", lambda url: None)
    monkeypatch.setattr(torchvision_sets, "construct", download_or_read)
    monkeypatch.setenv("RAYBASIN_DATA", str(tmp_path))
    for _ in range(2):
        assert len(dataset.index(DataSpec(name="dtd", validation={"images": 2})).test) == 4
    assert len(downloaded) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["dtd"]
