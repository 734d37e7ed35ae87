"""Further evaluation sets: every format is read, matched and fingerprinted, and what is wrong is found beforehand."""

import dataclasses
import hashlib
import sys

import numpy as np
import pandas as pd
import places
import pytest
import synthetic
import tiny
from images import encoded, values, write_folder, write_parquet, write_shard

from raybasin import console
from raybasin.analysis import figures, report
from raybasin.analysis import results as reading
from raybasin.data import dataset, shift_sets
from raybasin.errors import UserError
from raybasin.jobs import local, prepare
from raybasin.store.folders import Folder
from raybasin.sweep import ids, plan, specs
from raybasin.sweep.facts import ShiftFacts, facts_from_dict, facts_to_dict
from raybasin.sweep.job_list import Done, jobs_left

REAL_CIFAR10 = places.SHARED / "data" / "cifar10"
PER_SEVERITY = 10


def sweep(made_shifts, folder, **changes):
    """A sweep of the three classes a, b and c in an image folder, with these shifts."""
    whole = {"name": "mine", "dir": str(folder), "validation": {"images": 3}, **changes}
    return tiny.spec(data=whole, model__pretrained=["first.pth"], shifts=made_shifts)


@pytest.fixture
def own(tmp_path):
    return write_folder(tmp_path / "own", {"a": 4, "b": 4, "c": 4})


def loaded(spec):
    """Facts and images of all sets; the facts must be true of the images."""
    facts = shift_sets.index(spec, dataset.index(spec.data))
    images = shift_sets.load(spec, dataset.load(spec.data), facts)
    assert [(f.name, f.n_images) for f in facts] == [(name, len(part)) for name, part in images.items()]
    assert all(part.images_NHWC.dtype == np.uint8 for part in images.values())
    return facts, images


def error_of(spec):
    with pytest.raises(UserError) as caught:
        shift_sets.index(spec, dataset.index(spec.data))
    return str(caught.value)


def write_cifar_c(root, names=("fog", "snow"), labels=(0, 1, 2), per_severity=PER_SEVERITY):
    """In the published layout: the value of image i of severity s is 50 (s - 1) + i, its label labels[i % 3]."""
    root.mkdir(exist_ok=True)
    value_N = np.concatenate([50 * s + np.arange(per_severity) for s in range(5)]).astype(np.uint8)
    for name in names:
        np.save(root / f"{name}.npy", np.broadcast_to(value_N[:, None, None, None], (len(value_N), 32, 32, 3)))
    np.save(root / "labels.npy", np.tile(np.resize(labels, per_severity), 5).astype(np.uint8))
    return root


# CIFAR-10-C, CIFAR-100-C and CIFAR-10.1


def test_a_block_of_a_cifar_c_file_is_one_severity(own, tmp_path):
    folder = write_cifar_c(tmp_path / "c")
    wanted = {"format": "cifar-c", "dir": str(folder), "corruptions": ["snow", "fog"], "severities": [5, 1]}
    facts, images = loaded(sweep({"cifar10c": wanted}, own))
    assert list(images) == ["cifar10c-snow-5", "cifar10c-snow-1", "cifar10c-fog-5", "cifar10c-fog-1"]
    assert values(images["cifar10c-fog-5"]) == list(range(200, 210))
    assert values(images["cifar10c-fog-1"]) == list(range(10))
    assert images["cifar10c-fog-1"].labels_N.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert images["cifar10c-fog-1"].images_NHWC.shape == (10, 32, 32, 3)
    # Equal images have equal fingerprints, whatever they are called.
    assert facts[0].fingerprint == facts[2].fingerprint != facts[1].fingerprint


def test_a_choice_of_images_is_stratified_and_the_same_in_every_set(own, tmp_path):
    folder = write_cifar_c(tmp_path / "c")
    wanted = {"format": "cifar-c", "dir": str(folder), "corruptions": ["fog", "snow"], "images": 6}
    _, images = loaded(sweep({"c": wanted}, own))
    assert len(images) == 10
    first = np.asarray(values(images["c-fog-1"]))
    assert all((np.asarray(values(images[f"c-snow-{s}"])) - first == 50 * (s - 1)).all() for s in range(1, 6))
    assert np.bincount(images["c-fog-1"].labels_N).tolist() == [2, 2, 2]
    assert error_of(sweep({"c": {**wanted, "images": 11}}, own)) == (
        "shifts.c.images: 11 images are asked for, but there are 10"
    )


def test_the_fifteen_common_corruptions_are_the_default(own, tmp_path):
    folder = write_cifar_c(tmp_path / "c", specs.CORRUPTIONS)
    facts = shift_sets.index(
        sweep({"c": {"format": "cifar-c", "dir": str(folder)}}, own), dataset.index(sweep({}, own).data)
    )
    assert [f.name for f in facts] == [f"c-{name}-{s}" for name in specs.COMMON_CORRUPTIONS for s in range(1, 6)]


def test_a_fingerprint_covers_pixels_and_labels_that_are_shown_and_no_others(own, tmp_path):
    folder = write_cifar_c(tmp_path / "c", ["fog"])
    spec = sweep({"c": {"format": "cifar-c", "dir": str(folder), "corruptions": "fog", "severities": 1}}, own)
    fingerprints = [loaded(spec)[0][0].fingerprint]
    images, labels = np.load(folder / "fog.npy").copy(), np.load(folder / "labels.npy")
    images[PER_SEVERITY] += 1  # of severity 2
    np.save(folder / "fog.npy", images)
    assert loaded(spec)[0][0].fingerprint == fingerprints[0]
    images[0, 31, 31, 2] += 1
    np.save(folder / "fog.npy", images)
    fingerprints.append(loaded(spec)[0][0].fingerprint)
    labels[0] = 1
    np.save(folder / "labels.npy", labels)
    fingerprints.append(loaded(spec)[0][0].fingerprint)
    assert len(set(fingerprints)) == 3 and all(len(f) == 64 for f in fingerprints)


@pytest.mark.parametrize(("version", "count"), [("v4", 5), ("v6", 7)])
def test_cifar_10_1_is_read_in_both_versions(own, tmp_path, version, count):
    for name, n in (("v4", 5), ("v6", 7)):
        np.save(tmp_path / f"cifar10.1_{name}_data.npy", np.full((n, 32, 32, 3), n, np.uint8))
        np.save(tmp_path / f"cifar10.1_{name}_labels.npy", np.arange(n, dtype=np.int32) % 3)
    _, images = loaded(sweep({"cifar10_1": {"format": "cifar-10.1", "dir": str(tmp_path), "version": version}}, own))
    assert list(images) == ["cifar10_1"] and values(images["cifar10_1"]) == [count] * count


def damage(folder, path, content):
    if isinstance(content, bytes):
        (folder / path).write_bytes(content)
    else:
        np.save(folder / path, content, allow_pickle=True)


@pytest.mark.parametrize(
    ("path", "content", "text"),
    [
        ("fog.npy", b"not an array", "fog.npy: not a readable .npy file"),
        ("fog.npy", np.array([{"a": 1}], dtype=object), "fog.npy: not a readable .npy file"),
        ("fog.npy", np.zeros((50, 32, 32, 3), np.float32), "must hold uint8 [N, H, W, 3], not float32 [50, 32, 32, 3]"),
        ("fog.npy", np.zeros((50, 32, 32), np.uint8), "must hold uint8 [N, H, W, 3], not uint8 [50, 32, 32]"),
        ("labels.npy", np.zeros(49, np.uint8), "labels.npy: must hold 50 integers, one for each image of fog.npy"),
        ("labels.npy", np.zeros(50), "must hold 50 integers, one for each image of fog.npy, not float64 [50]"),
        ("labels.npy", np.full(50, 9), "holds the class 9, which the sweep's data do not have; known are 0, 1, 2"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(own, tmp_path, path, content, text):
    folder = write_cifar_c(tmp_path / "c", ["fog"])
    damage(folder, path, content)
    message = error_of(sweep({"c": {"format": "cifar-c", "dir": str(folder), "corruptions": "fog"}}, own))
    assert text in message and str(folder) in message


def test_a_truncated_file_and_unequal_blocks_are_named(own, tmp_path):
    folder = write_cifar_c(tmp_path / "c", ["fog"])
    spec = sweep({"c": {"format": "cifar-c", "dir": str(folder), "corruptions": "fog"}}, own)
    whole = (folder / "fog.npy").read_bytes()
    (folder / "fog.npy").write_bytes(whole[:-1])
    assert "fog.npy: not a readable .npy file" in error_of(spec)
    damage(folder, "fog.npy", np.zeros((51, 32, 32, 3), np.uint8))
    damage(folder, "labels.npy", np.zeros(51, np.uint8))
    assert "as many images of each of 5 severities, and holds 51" in error_of(spec)


def test_a_file_or_folder_that_is_not_there_is_named_with_the_nearest(own, tmp_path):
    folder = write_cifar_c(tmp_path / "c", ["gaussian_blur"])
    wanted = {"format": "cifar-c", "dir": str(folder), "corruptions": "gaussian_noise"}
    assert error_of(sweep({"c": wanted}, own)).endswith("gaussian_noise.npy; did you mean 'gaussian_blur.npy'?")
    assert error_of(sweep({"c": {**wanted, "dir": str(tmp_path / "x")}}, own)) == (
        f"shifts.c.dir: there is no folder '{tmp_path / 'x'}'"
    )
    assert "labels.npy' is a file" in error_of(sweep({"c": {**wanted, "dir": str(folder / "labels.npy")}}, own))


# Folders and Parquet


def test_a_folder_is_matched_by_name_and_need_not_have_every_class(own, tmp_path):
    write_folder(tmp_path / "s", {"b": 2, "c": 3}, splits=("test",))
    _, images = loaded(sweep({"sketch": {"format": "folder", "dir": str(tmp_path / "s")}}, own))
    assert images["sketch"].labels_N.tolist() == [1, 1, 2, 2, 2]
    assert values(images["sketch"]) == [0, 1, 10, 11, 12]


def test_classes_may_lie_in_the_folder_itself_or_in_another_part(own, tmp_path):
    write_folder(tmp_path, {"a": 1, "c": 1}, splits=("flat",))
    _, images = loaded(sweep({"s": {"format": "folder", "dir": str(tmp_path / "flat")}}, own))
    assert images["s"].labels_N.tolist() == [0, 2]
    write_folder(tmp_path / "parts", {"b": 2}, splits=("train",))
    _, images = loaded(sweep({"s": {"format": "folder", "dir": str(tmp_path / "parts"), "split": "train"}}, own))
    assert images["s"].labels_N.tolist() == [1, 1]
    assert "holds no part test: test/<class>/*.jpg" in error_of(
        sweep({"s": {"format": "folder", "dir": str(tmp_path / "parts")}}, own)
    )


def test_the_classes_that_the_sweep_keeps_are_kept_of_a_shift(own, tmp_path):
    write_folder(tmp_path / "s", {"a": 1, "b": 2, "c": 3}, splits=("test",))
    wanted = {"s": {"format": "folder", "dir": str(tmp_path / "s")}}
    _, images = loaded(sweep(wanted, own, classes=["a", "c"], validation={"images": 2}))
    assert images["s"].labels_N.tolist() == [0, 1, 1, 1] and values(images["s"]) == [0, 20, 21, 22]
    write_folder(tmp_path / "only", {"b": 2}, splits=("test",))
    none = sweep({"s": {"format": "folder", "dir": str(tmp_path / "only")}}, own, classes=["a", "c"],
                 validation={"images": 2})  # fmt: skip
    assert error_of(none) == "shifts.s: holds no image of the classes that data.classes keeps"


def test_classes_that_the_data_do_not_have_are_named(own, tmp_path):
    write_folder(tmp_path / "s", {"a": 1, "aa": 1, "zebra": 1}, splits=("test",))
    message = error_of(sweep({"s": {"format": "folder", "dir": str(tmp_path / "s")}}, own))
    assert "holds the classes aa, zebra, which the sweep's data do not have; did you mean 'a'?" in message


def test_parquet_is_matched_by_name_where_it_has_names_and_else_by_number(tmp_path, own):
    write_shard(tmp_path / "test-0.parquet", range(4), [2, 0, 1, 1])
    wanted = {"p": {"format": "folder", "dir": str(tmp_path)}}
    _, images = loaded(sweep(wanted, own))
    assert images["p"].labels_N.tolist() == [2, 0, 1, 1] and values(images["p"]) == [0, 1, 2, 3]
    (tmp_path / "classes.json").write_text('["c", "b", "a"]')
    _, images = loaded(sweep(wanted, own))
    assert images["p"].labels_N.tolist() == [0, 2, 1, 1]


def test_data_whose_classes_have_no_names_are_matched_by_number(tmp_path):
    own_shards, shift = tmp_path / "own", tmp_path / "shift"
    own_shards.mkdir(), shift.mkdir()
    write_parquet(own_shards)
    write_shard(shift / "test-0.parquet", [7, 8], [2, 0])
    _, images = loaded(sweep({"p": {"format": "folder", "dir": str(shift)}}, own_shards, classes=[0, 2],
                             validation={"images": 2}))  # fmt: skip
    assert images["p"].labels_N.tolist() == [1, 0]


def test_numbers_are_not_matched_with_classes_that_are_called_by_other_numbers(tmp_path):
    own = write_folder(tmp_path / "own", {"1": 4, "2": 4, "10": 4})
    write_shard(tmp_path / "test.parquet", range(2), [1, 2])
    wanted = sweep({"p": {"format": "folder", "dir": str(tmp_path)}}, own)
    assert "numbers in place of names, and the sweep's data call class 0 '1'" in error_of(wanted)
    (tmp_path / "classes.json").write_text('["10", "2", "1"]')
    _, images = loaded(wanted)
    assert images["p"].labels_N.tolist() == [2, 0]


def test_a_name_of_two_classes_cannot_be_matched(tmp_path):
    write_parquet(tmp_path)
    (tmp_path / "classes.json").write_text('["crane", "b", "crane"]')
    write_folder(tmp_path / "s", {"crane": 1}, splits=("test",))
    message = error_of(sweep({"s": {"format": "folder", "dir": str(tmp_path / "s")}}, tmp_path))
    assert "'crane' is the name of classes [0, 2]" in message


def test_images_of_several_sizes_are_brought_to_one(own, tmp_path):
    write_folder(tmp_path / "s", {"a": 2}, splits=("test",), size=(50, 40))
    write_folder(tmp_path / "s", {"b": 2}, splits=("test",), size=(30, 60))
    _, images = loaded(sweep({"s": {"format": "folder", "dir": str(tmp_path / "s")}}, own, image_size=14))
    assert images["s"].images_NHWC.shape == (4, 16, 16, 3)


@pytest.mark.parametrize("kind", ["folder", "cifar-c"])
def test_a_set_that_changes_between_planning_and_loading_is_named(own, tmp_path, kind):
    if kind == "folder":
        write_folder(tmp_path / "s", {"b": 2}, splits=("test",))
        spec = sweep({"s": {"format": "folder", "dir": str(tmp_path / "s")}}, own)
    else:
        write_cifar_c(tmp_path / "s", ["fog"])
        spec = sweep({"s": {"format": "cifar-c", "dir": str(tmp_path / "s"), "corruptions": "fog"}}, own)
    target = dataset.index(spec.data)
    facts = shift_sets.index(spec, target)
    if kind == "folder":
        (tmp_path / "s" / "test" / "b" / "000.png").write_bytes(encoded(77))
    else:
        damage(tmp_path / "s", "labels.npy", np.tile(np.arange(10) // 4, 5))
    with pytest.raises(UserError, match=rf"shifts\.s: {tmp_path}/s.* has changed since the sweep began"):
        shift_sets.load(spec, dataset.decode(target), facts)


def test_what_lies_beside_a_set_and_copies_of_training_images_are_said(own, tmp_path):
    write_folder(tmp_path / "s", {"b": 2}, splits=("test",))
    (tmp_path / "s" / "test" / "b" / "x.avif").write_bytes(b"")
    spec = sweep({"s": {"format": "folder", "dir": str(tmp_path / "s")}}, own)
    train = dataset.index(spec.data)
    [(path, content)] = train.stored.train.read(train.train.index_n[:1])
    (tmp_path / "s" / "test" / "b" / "000.png").write_bytes(content)
    (tmp_path / "s" / "test" / "b" / "001.png").write_bytes(encoded(99))
    [facts] = shift_sets.index(spec, train)
    assert facts.notes == (
        f"passed over in test: 1 .avif (such as {tmp_path}/s/test/b/x.avif)",
        f"1 of 2 shift images are copies, byte for byte, of training images, such as {tmp_path}/s/test/b/000.png, "
        f"the same as {path}",
    )
    write_cifar_c(tmp_path / "c", ["fog"])
    [facts] = shift_sets.index(sweep({"c": {"format": "cifar-c", "dir": str(tmp_path / "c"), "corruptions": "fog",
                                        "severities": 1}}, own), train)  # fmt: skip
    assert facts.notes == ()


def test_files_that_a_set_lacks_are_named(own, tmp_path):
    write_shard(tmp_path / "test-00001-of-00002.parquet", range(3), [0, 1, 2])
    wanted = {"format": "folder", "dir": str(tmp_path)}
    assert "missing: test-00000-of-00002.parquet" in error_of(sweep({"p": wanted}, own))
    (tmp_path / "test-00001-of-00002.parquet").rename(tmp_path / "train.parquet")
    write_shard(tmp_path / "hub" / "default" / "test" / "0000.parquet", range(3), ["b", "c", "b"])
    _, images = loaded(sweep({"p": {**wanted, "dir": str(tmp_path / "hub")}}, own))
    assert images["p"].labels_N.tolist() == [1, 2, 1]


# Corruptions made on the fly


def gradients(n, side=40, seed=0):
    """Smooth random images [n, side, side, 3]."""
    corners = np.random.default_rng(seed).integers(0, 256, (n, 2, 2, 3))
    t = np.linspace(0, 1, side)
    rows = corners[:, 0, None] * (1 - t)[:, None, None] + corners[:, 1, None] * t[:, None, None]
    mixed = rows[:, :, None, 0] * (1 - t)[:, None] + rows[:, :, None, 1] * t[:, None]
    return mixed.astype(np.uint8)


@pytest.fixture
def photos(tmp_path):
    """An image folder of two classes whose images are large enough."""
    from PIL import Image

    for split, n in (("train", 4), ("test", 6)):
        for k, name in enumerate("ab"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for i, image in enumerate(gradients(n, seed=k)):
                Image.fromarray(image).save(tmp_path / "photos" / split / name / f"{i}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("corruption", specs.CORRUPTIONS)
def test_a_corruption_is_the_packages_own_with_numpys_generator_at_the_hash_of_the_image(corruption):
    """An independent computation of one image of each corruption, from the package's function itself."""
    from imagecorruptions import corrupt

    image = gradients(1)[0]
    seed = ids.random_seed("corruption", corruption, 3, 5, 0)
    np.random.seed([seed % 2**32, seed // 2**32])
    given = {"seed": seed % 2**32} if corruption in ("glass_blur", "impulse_noise") else {}
    expected = corrupt(image, severity=3, corruption_name=corruption, **given)
    made = shift_sets.corrupted(image[None], np.array([5]), corruption, 3)
    assert made.shape == (1, 40, 40, 3) and made.dtype == np.uint8
    np.testing.assert_array_equal(made[0], expected)
    assert (made[0] != image).any()


def test_an_image_hangs_on_its_position_alone_and_the_global_generator_is_left_as_it_was():
    images = gradients(3)
    np.random.seed(1)
    np.random.normal()  # half of a pair: the other half is part of the state
    before = np.random.get_state()
    for corruption in ("gaussian_noise", "motion_blur", "impulse_noise", "glass_blur"):
        together = shift_sets.corrupted(images, np.array([4, 7, 9]), corruption, 2)
        alone = shift_sets.corrupted(images[1:2], np.array([7]), corruption, 2)
        elsewhere = shift_sets.corrupted(images[1:2], np.array([8]), corruption, 2)
        np.testing.assert_array_equal(together[1], alone[0])
        assert (alone != elsewhere).any()
    after = np.random.get_state()
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_noise_grows_with_severity_as_in_imagenet_c():
    """Gaussian noise of severity s has standard deviation (0.08, 0.12, 0.18, 0.26, 0.38)[s - 1] before clipping."""
    grey = np.full((20, 40, 40, 3), 128, np.uint8)
    for severity, sigma in enumerate((0.08, 0.12), start=1):  # hardly anything is clipped at these
        made = shift_sets.corrupted(grey, np.arange(20), "gaussian_noise", severity) / 255
        assert made.std() == pytest.approx(sigma, rel=0.03)


def test_a_spatter_without_a_drop_is_drawn_again():
    """The package divides by zero there, and gives black pixels."""
    images = np.full((300, 32, 32, 3), 200, np.uint8)
    made = shift_sets.corrupted(images, np.arange(300), "spatter", 1)
    assert made.mean(axis=(1, 2, 3)).min() > 100


def test_corruptions_are_made_of_the_images_of_the_test_split(photos):
    wanted = {"format": "corrupt", "corruptions": ["contrast", "gaussian_noise"], "severities": [2], "images": 4}
    spec = sweep({"corrupted": wanted}, photos)
    facts, images = loaded(spec)
    assert list(images) == ["corrupted-contrast-2", "corrupted-gaussian_noise-2"]
    assert np.bincount(images["corrupted-contrast-2"].labels_N).tolist() == [2, 2]
    test = dataset.load(spec.data).test.images_NHWC / 255.0
    means = test.mean(axis=(1, 2), keepdims=True)
    low_contrast = (np.clip((test - means) * 0.3 + means, 0, 1) * 255).astype(np.uint8)
    found = [np.abs(low_contrast.astype(int) - image).max((1, 2, 3)).min() for image in
             images["corrupted-contrast-2"].images_NHWC.astype(int)]  # fmt: skip
    assert max(found) <= 1
    again, _ = loaded(spec)
    assert again == facts
    other, _ = loaded(sweep({"corrupted": {**wanted, "images": 5}}, photos))
    assert not {f.fingerprint for f in facts} & {f.fingerprint for f in other}


def test_another_version_of_the_package_makes_other_sets(photos, monkeypatch):
    spec = sweep({"c": {"format": "corrupt", "corruptions": "fog", "severities": 1}}, photos)
    before = shift_sets.index(spec, dataset.index(spec.data))
    monkeypatch.setattr(shift_sets.metadata, "version", lambda package: "99")
    assert shift_sets.index(spec, dataset.index(spec.data))[0].fingerprint != before[0].fingerprint


def test_a_missing_package_is_named_with_how_to_install_it(photos, monkeypatch):
    spec = sweep({"c": {"format": "corrupt", "corruptions": "fog"}}, photos)
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    message = error_of(spec)
    assert message.startswith("shifts: format corrupt needs packages") and 'pip install "raybasin[shifts]"' in message


def test_images_that_are_too_small_for_corruptions_are_named():
    message = error_of(tiny.spec(shifts={"c": {"format": "corrupt"}}))
    assert message == (
        "shifts.c: corruptions are made for images of 32 pixels or more; "
        "the test images of digits are 8 x 8 as they are stored"
    )


@pytest.mark.skipif(not REAL_CIFAR10.is_dir(), reason="no CIFAR-10 beside the repository")
def test_real_images_get_worse_with_severity():
    wanted = {"format": "corrupt", "corruptions": ["gaussian_noise", "defocus_blur", "contrast", "fog"]}
    spec = sweep({"c": wanted}, REAL_CIFAR10, name="cifar10", validation=0.1, train_images=100, test_images=20)
    _, images = loaded(spec)
    clean = dataset.load(spec.data).test
    for corruption in wanted["corruptions"]:
        made = [images[f"c-{corruption}-{s}"] for s in (1, 3, 5)]
        assert all((part.labels_N == clean.labels_N).all() for part in made)
        distance = [np.abs(part.images_NHWC - clean.images_NHWC.astype(float)).mean() for part in made]
        assert distance[0] < distance[1] < distance[2], corruption


# Ids


ONE = ShiftFacts("fog", "1" * 64, 10)
TWO = ShiftFacts("snow", "2" * 64, 10)


def made(*found, **changes):
    return plan.make(tiny.spec(model__pretrained=["first.pth"], **changes), tiny.facts(shifts=found))


def test_a_shift_trains_nothing_again_and_leaves_predictions_and_paths():
    without, with_one = made(), made(ONE)
    assert without.members == with_one.members and without.eval_id == with_one.eval_id
    ids_of_paths = [{path.path_id for cell in found.cells for path in cell.paths} for found in (without, with_one)]
    assert ids_of_paths[0] == ids_of_paths[1]
    assert not set(without.cell) & set(with_one.cell) and without.settings_id != with_one.settings_id
    done = Done(members=set(without.members), predictions={(m, without.eval_id) for m in without.members})
    assert not {job.kind for job in jobs_left(with_one, done)} & {"member", "checkpoint"}


def test_the_order_of_shifts_is_in_no_id_and_their_images_and_names_are():
    def ids(made_plan):
        return made_plan.settings_id, frozenset(made_plan.cell)

    assert ids(made(ONE, TWO)) == ids(made(TWO, ONE))
    assert len({ids(made(ONE)), ids(made(TWO)), ids(made(dataclasses.replace(ONE, name="x"))), ids(made(ONE, TWO)),
                ids(made(dataclasses.replace(ONE, fingerprint="3" * 64)))}) == 5  # fmt: skip


def test_predictions_on_a_shift_hang_on_what_they_are_made_of_alone():
    before = made(ONE, TWO)
    one = before.shift_eval_ids["fog"]
    assert len({one, before.shift_eval_ids["snow"], before.eval_id}) == 3
    with pytest.raises(KeyError):
        before.shift_eval_ids["test"]
    for same in ({"data__test_images": 7}, {"basin__points": 5}, {"soups": ["greedy"]}, {"data__augment": []}):
        assert made(ONE, **same).shift_eval_ids["fog"] == one
    assert made(dataclasses.replace(ONE, name="x")).shift_eval_ids["x"] == one
    for other in ({"basin__bn_images": 7}, {"data__split_seed": 1}, {"data__train_images": 30}):
        assert made(ONE, **other).shift_eval_ids["fog"] != one


def test_facts_go_through_a_file():
    facts = tiny.facts(shifts=(ONE, TWO))
    assert facts_from_dict(facts_to_dict(facts)) == facts


def test_prepare_finds_the_sets_and_loads_them(own, tmp_path):
    write_folder(tmp_path / "s", {"b": 2}, splits=("test",))
    spec = tiny.spec(data={"name": "mine", "dir": str(own), "image_size": 32, "validation": {"images": 3}},
                     shifts={"s": {"format": "folder", "dir": str(tmp_path / "s")}})  # fmt: skip
    prepared = prepare.prepare(spec)
    found = prepared.plan
    assert [(f.name, f.n_images) for f in found.facts.shifts] == [("s", 2)]
    assert list(found.shift_eval_ids) == ["s"]
    assert "shifts: 1 further sets, 2 images in all" in list(
        console.lines(local.look(found, Folder(tmp_path / "results")))
    )
    assert values(prepare.load(prepared).shifts["s"]) == [0, 1]


# Reading


SHIFTS = {
    "c": {"format": "corrupt", "corruptions": ["fog", "snow"], "severities": [1, 3]},
    "sketch": {"format": "folder", "dir": "sketch"},
}
LOSS = {"c-fog-1": 0.1, "c-fog-3": 0.3, "c-snow-1": 0.2, "c-snow-3": 0.5, "sketch": 0.25}
"""What each set takes from the accuracy on test."""


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    cells = synthetic.grid()
    root = synthetic.write(tmp_path_factory.mktemp("shifted"), cells, content=synthetic.sweep(shifts=SHIFTS))
    rows = [
        {**{name: row[name] for name in (*synthetic.COMMON, "cell_id")},
         "predictor_id": f"{kind}-{row['cell_id']}", "kind": kind, "n_members": row["n_members"], "split": split,
         "bn": bn, "accuracy": row[f"{column}_accuracy"] - loss, "nll": 1 + loss}
        for row in cells
        for kind, column, bn in (("ensemble", "ensemble", "own"), ("uniform_soup", "soup", "reestimated"))
        for split, loss in {"test": 0.0, **LOSS}.items()
    ]  # fmt: skip
    synthetic.tables.write(Folder(root), "scores", "shifted", rows)
    return reading.open(root)


def test_robustness_is_the_mean_over_corruptions_by_severity_with_the_clean_test_split_first(shifted):
    table = reading.robustness(shifted)
    cell = shifted.cells[shifted.cells["method"] == "sse"].iloc[0]
    found = table[(table["cell_id"] == cell["cell_id"]) & (table["kind"] == "uniform_soup")]
    assert found["severity"].tolist() == [0, 1, 3] and set(found["shift"]) == {"c"}
    assert found["corruptions"].tolist() == [1, 2, 2]
    np.testing.assert_allclose(found["accuracy"], cell["soup_accuracy"] - np.array([0, 0.15, 0.4]))
    np.testing.assert_allclose(found["nll"], [1, 1.15, 1.4])


def test_shift_splits_say_what_each_set_is_of(shifted):
    table = reading.shift_splits(shifted)
    assert table["split"].tolist() == list(LOSS)
    assert table[["shift", "corruption", "severity"]].iloc[1].tolist() == ["c", "fog", 3]
    assert table.iloc[-1][["corruption", "severity"]].isna().all()


def test_without_shifts_there_is_no_row_and_no_figure(tmp_path):
    results = reading.open(synthetic.write(tmp_path, synthetic.grid()))
    assert reading.robustness(results).empty and reading.shift_splits(results).empty
    with pytest.raises(UserError, match="no cell has scores on corrupted images"):
        figures.robustness_figure(results)
    assert "On corrupted images, by severity" not in report.page(results)


def test_the_figure_shows_the_means_of_the_points_that_are_best_on_validation(shifted):
    (axis,) = figures.robustness_figure(shifted).axes
    assert axis.get_title() == "c: mean over 2 corruptions"
    lines = {c.get_label(): c.lines[0] for c in axis.containers}
    assert list(lines) == [
        "local_de, ensemble, n=2", "star_sse lr 1, cycle 2, ensemble, n=2", "star_sse lr 1, cycle 2, soup, n=2",
        "sse lr 4, cycle 0.5, ensemble, n=2", "sse lr 4, cycle 0.5, soup, n=2",
    ]  # fmt: skip
    np.testing.assert_allclose(lines["local_de, ensemble, n=2"].get_ydata(orig=False), [96.3, 81.3, 56.3])


def test_the_report_shows_them(shifted):
    page = report.page(shifted)
    assert "On corrupted images, by severity" in page and "c (4 sets), sketch (1 set)" in page


def test_a_mean_over_severities_can_be_taken_in_pandas(shifted):
    """The mean corruption accuracy, as docs/tables.md has it."""
    table = reading.robustness(shifted).query("kind == 'ensemble' and bn == 'own' and severity > 0")
    mean = table.groupby("cell_id")["accuracy"].mean()
    expected = shifted.cells.set_index("cell_id")["ensemble_accuracy"] - np.mean([0.15, 0.4])
    pd.testing.assert_series_equal(mean, expected.reindex(mean.index), check_names=False)


def test_a_sweep_file_of_results_that_was_tampered_with_is_named(tmp_path):
    content = {**synthetic.sweep(), "shifts": {"c": {"format": "zip"}}}
    results = reading.open(synthetic.write(tmp_path, synthetic.grid()[:1], content=content))
    with pytest.raises(UserError, match=r"\.yaml: shifts\.c\.format: must be 'cifar-c'"):
        reading.shift_splits(results)


def test_the_fingerprint_of_pixels_is_a_sha_256_of_what_is_shown(own, tmp_path):
    folder = write_cifar_c(tmp_path / "c", ["fog"])
    spec = sweep({"c": {"format": "cifar-c", "dir": str(folder), "corruptions": "fog", "severities": 2}}, own)
    (facts,), images = loaded(spec)
    shown = images["c-fog-2"]
    expected = hashlib.sha256(b"pixels (10, 32, 32, 3)")
    expected.update(shown.images_NHWC.tobytes())
    expected.update(shown.labels_N.astype("<i8").tobytes())
    assert facts.fingerprint == expected.hexdigest()
