"""Parquet of the Hugging Face hub: its layouts are read; what is missing, mixed or numbered otherwise is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import STRUCT, encoded, error_of, spec, values, write_shard

from raybasin.data import dataset
from raybasin.data.formats import parquet
from raybasin.errors import UserError

CAT_DOG = ["cat", "dog"]


def write(root, *names, n=4, **options):
    """Files of `n` images each, whose values go on from one to the next; labels 0 and 1 in turn."""
    for position, name in enumerate(names):
        labels = options.pop("labels", None) or [0, 1] * (n // 2)
        write_shard(root / name, range(n * position, n * (position + 1)), labels, **options)
    return root


def write_splits(root, train=None, test=None, **both):
    """One file of each, with options of their own."""
    write(root, "train-00000-of-00001.parquet", **{**both, **(train or {})})
    write(root, "test-00000-of-00001.parquet", **{**both, **(test or {})})
    return root


def seen(folder, **keys):
    """What is trained on, validation included, as pairs of value and class, and the same of test."""
    loaded = dataset.load(spec(folder, validation={"images": 1}, **keys))
    pairs = [[(value, loaded.classes.names[label]) for value, label in zip(values(part), part.labels_N, strict=True)]
             for part in (loaded.train, loaded.val, loaded.test)]  # fmt: skip
    return sorted(pairs[0] + pairs[1]), pairs[2]


# Which files


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("train/0000.parquet", "train/0001.parquet", "test/0000.parquet"),
        ("plain_text/train/0000.parquet", "plain_text/test/0000.parquet"),
        ("plain_text/train-00000-of-00001.parquet", "plain_text/validation-00000-of-00001.parquet"),
        ("data/train-00000-of-00002-3fc1.parquet", "data/train-00001-of-00002-a01b.parquet", "data/test-0.parquet"),
        ("train.parquet", "test.parquet"),
        ("train-7.parquet", "train-8.parquet", "valid-2017.parquet"),
        ("train/part-00000-6f-c000.parquet", "train/part-00007-6f-c000.parquet", "test/0000.parquet"),
    ],
)
def test_the_layouts_of_the_hub_are_read_in_the_order_of_their_files(tmp_path, names):
    write(tmp_path, *names)
    train, test = seen(tmp_path)
    n = 4 * (len(names) - 1)
    assert train == [(i, str(i % 2)) for i in range(n)]
    assert test == [(i, str(i % 2)) for i in range(n, n + 4)]


TRAIN, TEST = "train-00000-of-00001.parquet", "test-00000-of-00001.parquet"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("train-00001-of-00003.parquet", TEST),
         "2 of 3 files of train are missing: train-00000-of-00003.parquet, train-00002-of-00003.parquet"),
        ((TRAIN, "test-00000-of-00002.parquet"), "1 of 2 files of test is missing: test-00001-of-00002.parquet"),
        ((TRAIN, "valid-00001-of-00002.parquet"), "1 of 2 files of valid is missing: valid-00000-of-00002.parquet"),
        (("train-00000-of-90000.parquet",), "89,999 of 90,000 files of train are missing"),
        (("train-0-of-10000000000000000000.parquet",), "9,999,999,999,999,999,999 of 10,000,000,000,000,000,000 files"),
        (("train-00001-of-00002-3fc1.parquet",), "is missing: train-00000-of-00002.parquet"),
        (("train/0000.parquet", "train/0002.parquet"), "1 of 3 files of train is missing: 0001.parquet"),
        (("train/0001.parquet",), "1 of 2 files of train is missing: 0000.parquet"),
        (("train-0.parquet", "train-2.parquet"), "1 of 3 files of train is missing: train-1.parquet"),
        ((TRAIN, "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"), "are of two revisions"),
        (("train-00000-of-00001-3fc1.parquet", "train-00000-of-00001-9d2e.parquet"), "have one number"),
        (("train.parquet", TRAIN), "train.parquet is no shard of the set of train-00000-of-00001.parquet"),
        (("train.parquet", "train-0.parquet"), "holds train twice, as train.parquet and train-0.parquet"),
        (("train.parquet", "train/0000.parquet"), "holds train twice, as train.parquet and in the folder train"),
        ((TRAIN, "test.parquet", "test/0000.parquet"), "holds test twice"),
        (("train.parquet", "data/train.parquet"), "holds Parquet files of train, and so does its folder data"),
        (("a/train.parquet", "b/train.parquet"), "in a, b; name the folder to read, such as dir: {here}/a"),
        (("a/train.parquet", "other/notes.parquet"), "in a; name the folder to read, such as dir: {here}/a"),
    ],
)  # fmt: skip
def test_files_that_are_not_one_whole_set_are_refused(tmp_path, names, said):
    write(tmp_path, *names)
    message = error_of(spec(tmp_path))
    assert said.format(here=tmp_path) in message and len(message.splitlines()) <= 2


def test_a_missing_official_validation_file_is_named(tmp_path):
    write(tmp_path, TRAIN, TEST, "validation-00000-of-00002.parquet")
    assert "validation-00001-of-00002.parquet" in error_of(spec(tmp_path, validation="official"))


def test_a_file_that_lost_rows_since_it_was_looked_at_is_named(tmp_path):
    write(tmp_path, TRAIN, TEST)
    made = dataset.index(spec(tmp_path, validation={"images": 1}))
    write(tmp_path, TRAIN, n=2)
    with pytest.raises(UserError, match=f"{TRAIN}: has changed"):
        dataset.decode(made)


def test_what_is_not_read_is_said(tmp_path):
    write(tmp_path, TRAIN, TEST, "extra-00000-of-00001.parquet", "valid/0000.parquet")
    (tmp_path / "README.md").write_text("about")
    stored = dataset.index(spec(tmp_path, validation={"images": 1})).stored
    assert stored.notes == ("not read: extra-00000-of-00001.parquet, valid",)
    assert stored.source == f"Parquet in '{tmp_path}': 2 files, columns img and label"


# Columns


def dictionary(kind):
    return pa.dictionary(pa.int32(), kind)


@pytest.mark.parametrize(
    "options",
    [
        *({"label_kind": kind} for kind in (pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.uint64())),
        {"label_kind": dictionary(pa.int64())},
        {"label": "labels"},
        {"kind": pa.binary()},
        {"kind": pa.large_binary(), "column": "image"},
        {"kind": pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])},
        {"column": "picture"},
        {"column": "pixels", "label": "kind", "names": ["0", "1"]},
    ],
    ids=str,
)
def test_columns_of_other_names_and_types_are_read(tmp_path, options):
    write_splits(tmp_path, **options)
    assert seen(tmp_path) == ([(i, str(i % 2)) for i in range(4)], [(i, str(i % 2)) for i in range(4)])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), dictionary(pa.string())])
def test_labels_that_are_text_are_the_names_of_the_classes_in_their_order(tmp_path, kind):
    write_splits(tmp_path, label_kind=kind, train={"labels": ["fox", "ant", "fox", "bee"]},
                 test={"labels": ["bee", "fox", "bee", "ant"]})  # fmt: skip
    train, test = seen(tmp_path, train_images={"per_class": 1})
    assert {("fox"), ("ant"), ("bee")} == {name for _, name in train}
    assert test == [(0, "bee"), (1, "fox"), (2, "bee"), (3, "ant")]
    assert dataset.index(spec(tmp_path, validation={"images": 1})).classes.names == ("ant", "bee", "fox")


def test_text_is_numbered_as_classes_json_lists_it(tmp_path):
    write_splits(tmp_path, labels=["fox", "ant", "fox", "ant"])
    (tmp_path / "classes.json").write_text('["fox", "bee", "ant"]')
    made = dataset.index(spec(tmp_path, validation={"images": 1}, classes=("fox", "ant")))
    assert made.classes.names == ("fox", "ant") and made.test.labels_n.tolist() == [0, 1, 0, 1]
    (tmp_path / "classes.json").write_text('["fox", "bee"]')
    assert "holds the class 'ant', which classes.json does not name" in error_of(spec(tmp_path))


def test_a_class_that_only_test_has_has_no_training_image(tmp_path):
    write_splits(tmp_path, train={"labels": ["a", "b"] * 2}, test={"labels": ["a", "c"] * 2})
    assert "class 'c' has no training image" in error_of(spec(tmp_path))


def test_which_of_several_columns_is_read_is_said(tmp_path):
    further = {"coarse_label": pa.array([0] * 4), "mask": pa.array([{"bytes": b"", "path": ""}] * 4, STRUCT)}
    classes = {"_type": "ClassLabel", "names": CAT_DOG}
    features = {"fine_label": classes, "coarse_label": {"_type": "ClassLabel", "names": ["pet"]}}
    write_splits(tmp_path, label="fine_label", further=further, metadata={"info": {"features": features}})
    made = dataset.index(spec(tmp_path, validation={"images": 1}))
    stored = made.stored
    assert stored.source.endswith("columns img and fine_label")
    assert stored.notes == ("not read: column mask, coarse_label",)
    assert made.classes.names == ("cat", "dog")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"label": "x"}, "has no label column; call it label or labels or fine_label; the columns are img, x"),
        ({"column": "a", "further": {"b": pa.array([None] * 4, STRUCT)}}, "which of a, b holds the images"),
        ({"column": "a", "kind": pa.binary()}, "has no image column"),
        ({"label_kind": pa.float64()}, "column label must hold integers or text, one an image, not double"),
        ({"label_kind": pa.list_(pa.int64()), "labels": [[0], [1]] * 2}, "not list<"),
        ({"labels": ["a", "", "b", ""]}, "column label has 2 rows without a label"),
        ({"labels": [0, -1, 1, -1]}, "2 of 4 training images have the label -1, which stands for none"),
        ({"labels": [0, 2**63] * 2, "label_kind": pa.uint64()}, "cannot read the Parquet file"),
    ],
)
def test_columns_that_cannot_be_read_are_named(tmp_path, options, said):
    write_splits(tmp_path, **options)
    message = error_of(spec(tmp_path))
    assert said in message and str(tmp_path) in message and len(message.splitlines()) <= 2


def test_unlabelled_test_images_are_named_as_those(tmp_path):
    write_splits(tmp_path, test={"labels": [-1] * 4})
    assert "4 of 4 test images have the label -1" in error_of(spec(tmp_path))


def test_text_that_is_no_text_is_refused(tmp_path):
    write_splits(tmp_path)
    raw = pa.array([b"\xff\xfe"] * 4, pa.binary()).view(pa.string())
    table = pq.read_table(tmp_path / TEST).set_column(1, "label", raw)
    for name in (TRAIN, TEST):
        pq.write_table(table, tmp_path / name)
    assert "cannot read the Parquet file" in error_of(spec(tmp_path))


@pytest.mark.parametrize("other", [{"label": "labels"}, {"column": "image"}, {"labels": ["a", "b"] * 2}])
def test_files_with_other_columns_are_of_another_set(tmp_path, other):
    write_splits(tmp_path, test=other)
    assert f"{tmp_path / TEST}: has the columns" in error_of(spec(tmp_path))


# The order of the classes


def test_class_names_in_another_order_are_refused_wherever_they_are(tmp_path):
    write_splits(tmp_path, names=CAT_DOG, test={"names": CAT_DOG[::-1]})
    message = error_of(spec(tmp_path))
    assert all(part in message for part in (TRAIN, TEST, "name label 0 'cat' and 'dog'"))
    assert len(message.splitlines()) <= 2

    write_splits(tmp_path, names=CAT_DOG, test={"names": [*CAT_DOG, "fox"]})
    assert "name 2 classes and 3" in error_of(spec(tmp_path))

    write_splits(tmp_path, names=CAT_DOG)
    write(tmp_path, "valid-00000-of-00001.parquet", names=CAT_DOG[::-1])
    assert "name label 0" in error_of(spec(tmp_path, validation="official"))
    seen(tmp_path)  # else it is not read

    two = tmp_path / "two"
    write(two, "train-00000-of-00002.parquet", names=CAT_DOG)
    write(two, "train-00001-of-00002.parquet", names=CAT_DOG[::-1])
    assert "name label 0" in error_of(spec(two))


@pytest.mark.parametrize("content", ['{"a": 1}', "[1, 2]", '[{"wnid": "n01"}]', "[" * 10**5, "7", "\xff"])
def test_a_classes_json_that_is_no_list_of_names_is_named(tmp_path, content):
    write_splits(tmp_path)
    (tmp_path / "classes.json").write_bytes(content.encode("latin1"))
    message = error_of(spec(tmp_path))
    assert "classes.json: " in message and len(message.splitlines()) == 1


def test_names_that_are_no_text_are_refused_and_strange_metadata_is_not_used(tmp_path):
    write_splits(tmp_path, metadata={"info": {"features": {"label": {"names": ["\ud800", "b"]}}}})
    assert "the name of the class '?' is not UTF-8" in error_of(spec(tmp_path))
    for features in ([1], {"label": {"_type": ["x"], "names": {"a": 1}}}, {"label": {"names": [1, 2]}}, "x"):
        write_splits(tmp_path, metadata={"info": {"features": features}})
        assert {name for _, name in seen(tmp_path)[1]} == {"0", "1"}


@pytest.mark.parametrize("named", ["train", "test"])
def test_names_that_only_some_files_have_are_those_of_all_and_that_is_said(tmp_path, named):
    write_splits(tmp_path, **{named: {"names": CAT_DOG}})
    assert {name for _, name in seen(tmp_path)[1]} == set(CAT_DOG)
    notes = dataset.index(spec(tmp_path, validation={"images": 1})).stored.notes
    files = {"train": TRAIN, "test": TEST}
    assert notes == (f"class names are those of {files.pop(named)}; there are none in {files.popitem()[1]}",)


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        (["dog", "cat"], "classes.json: numbers 'cat' otherwise than train-00000-of-00001.parquet"),
        (["cat", "dog", "fox"], "classes.json: names 3 classes, other than train-00000-of-00001.parquet"),
        (["Katze", "cat"], "numbers 'cat' otherwise"),
        (["Katze", "Hund"], None),
        (["cat", "dog"], None),
    ],
)
def test_classes_json_may_rename_classes_and_not_renumber_them(tmp_path, listed, said):
    write_splits(tmp_path, names=CAT_DOG)
    (tmp_path / "classes.json").write_text(json.dumps(listed))
    if said:
        assert said in error_of(spec(tmp_path))
    else:
        assert [name for _, name in seen(tmp_path)[1]] == listed * 2


def test_classes_json_beside_the_folder_of_the_files_counts(tmp_path):
    write_splits(tmp_path / "data")
    (tmp_path / "classes.json").write_text(json.dumps(CAT_DOG))
    assert {name for _, name in seen(tmp_path)[1]} == set(CAT_DOG)


# Blame


def test_a_want_of_memory_is_not_blamed_on_the_file(tmp_path, monkeypatch):
    def exhausted(*arguments, **options):
        raise pa.ArrowMemoryError("malloc of size 1 failed")

    write_splits(tmp_path)
    monkeypatch.setattr(parquet.pq.ParquetFile, "read", exhausted)
    with pytest.raises(MemoryError):
        dataset.index(spec(tmp_path))


def test_rows_are_read_at_their_places_across_files_and_row_groups(tmp_path):
    write(tmp_path, "train-0.parquet", "train-1.parquet", "train-2.parquet", n=8)
    stored = dataset.index(spec(tmp_path, train_images=4, validation={"images": 2})).stored
    positions = np.array([0, 2, 3, 7, 8, 15, 23])
    assert [content for _, content in stored.train.read(positions)] == [encoded(value) for value in positions.tolist()]
    assert [where for where, _ in stored.train.read(positions[[0, 4]])] == [
        f"{tmp_path / 'train-0.parquet'}, row 0", f"{tmp_path / 'train-1.parquet'}, row 0"
    ]  # fmt: skip


def test_a_pointer_of_git_lfs_is_called_so(tmp_path):
    write(tmp_path, TRAIN)
    (tmp_path / TEST).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    assert f"{tmp_path / TEST}: is a pointer that Git LFS left" in error_of(spec(tmp_path))


def test_how_many_classes_have_no_image_is_said(tmp_path):
    for name in (TRAIN, TEST):
        write_shard(tmp_path / name, range(4), [0, 1, 0, 1], names=["a", "b", "c", "d", "e"])
    assert "class 'c' has no training image (nor have 2 more)" in error_of(spec(tmp_path))
