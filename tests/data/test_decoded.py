"""Images that a machine keeps decoded in a file: the pixels of the arrays, made once, and never half of it believed."""

import contextlib
import fcntl
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from images import encoded, error_of, spec, sweep, write_parquet
from PIL import Image

import raybasin
from raybasin.data import dataset, decoded, decoding, images
from raybasin.errors import UserError
from raybasin.store import tables
from raybasin.store.folders import Folder
from raybasin.sweep import schedules, specs
from raybasin.sweep.facts import Preprocess
from raybasin.training import augment

CPU = torch.device("cpu")
SHOWN = Preprocess(16, 0.875, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("RAYBASIN_DATA", str(folder))
    return folder / "decoded"


@pytest.fixture
def photos(tmp_path):
    """20 training and 6 test JPEGs of noise, of several sizes, in an image folder."""
    random = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 3)):
        for name in "ab":
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return tmp_path / "photos"


def loaded(folder, how="cache", **keys):
    return dataset.load(spec(folder, image_size=16, decode=how, **keys))


def cached(folder, **keys):
    return loaded(folder, **keys).train.images_NHWC


def whole(part):
    return decoding.on_device(part, CPU)[0 : len(part)]


# The same pixels


@pytest.mark.parametrize("layout", ["folder", "parquet"])
def test_a_file_has_the_pixels_of_the_array(photos, tmp_path, cache, layout):
    folder = photos if layout == "folder" else write_parquet(tmp_path / "parquet")
    arrays, kept = loaded(folder, "arrays"), loaded(folder)
    for split in ("train", "val", "test"):
        array, part = getattr(arrays, split).images_NHWC, getattr(kept, split).images_NHWC
        assert (len(part), part.shape) == (len(array), array.shape)
        assert np.array_equal(whole(part).numpy(), array)
        chosen = np.array([1, 0])
        assert np.array_equal(decoding.as_array(part, chosen), array[chosen])
        assert np.array_equal(whole(part.select(chosen).select(np.array([1]))).numpy(), array[:1])
    assert len(list(cache.iterdir())) == 3
    assert kept.train_fingerprint == arrays.train_fingerprint


@pytest.mark.parametrize("names", [(), ("random_resized_crop_bicubic", "flip", "rand_augment", "color_jitter")])
def test_augmented_batches_are_those_of_the_array(photos, names):
    reader, array_NHWC = (decoding.on_device(loaded(photos, how).train.images_NHWC, CPU) for how in ("cache", "arrays"))
    n, height, width, _ = reader.shape
    draws = augment.draw_epoch(n, names, height, width, SHOWN, torch.Generator().manual_seed(3))
    for positions in schedules.batches(n, 5):
        seen, expected = (augment.training_batch(pixels, draws, positions, SHOWN) for pixels in (reader, array_NHWC))
        assert torch.equal(seen[0], expected[0]) and torch.equal(seen[1], expected[1])


def test_a_sweep_has_the_same_ids_weights_and_scores_either_way(photos, tmp_path):
    reports = {}
    for how in ("arrays", "cache"):
        made = sweep(photos, decode=how)
        reports[how] = raybasin.run(made, tmp_path / how)
        assert reports[how].complete
    assert reports["arrays"].plan.settings_id == reports["cache"].plan.settings_id
    for table, columns in (
        ("members", ("member_id", "weights_sha256")),
        ("cells", ("cell_id", "soup_sha256", "barrier_error")),
        ("predictions", ("predictor_id", "split", "bn", "example", "log_probs")),
    ):
        rows = [tables.read(Folder(tmp_path / how), table).to_pylist() for how in reports]
        found = [sorted(str([row[column] for column in columns]) for row in one) for one in rows]
        assert found[0] == found[1] and found[0]


def test_an_empty_selection_has_a_file_too(photos):
    part = cached(photos)
    none = decoded.of(part.stored.select(np.arange(0)), part.fingerprint)
    none.check_readable(1)
    assert len(none) == 0 and none.is_there() and none.path.stat().st_size == none.file_bytes


# Made once, and of what it says


def test_a_file_is_made_once_and_found_by_all_that_ask_for_the_same(photos, cache, monkeypatch):
    first = cached(photos)
    monkeypatch.setattr(decoding.StoredImages, "in_order", lambda *_: pytest.fail("decoded again"))
    assert np.array_equal(whole(cached(photos)), whole(first))
    shutil.move(photos, moved := photos.parent / "moved")  # what is stored is the same
    assert np.array_equal(whole(cached(moved)), whole(first))


def test_another_size_selection_decoder_or_content_has_another_file(photos, monkeypatch):
    part = cached(photos)
    other = photos.parent / "other"
    shutil.copytree(photos, other)
    (other / "train" / "a" / "0.jpg").write_bytes(encoded(9, size=(30, 20), file_format="JPEG"))
    paths = {
        part.path,
        dataset.load(spec(photos, image_size=24, decode="cache")).train.images_NHWC.path,
        cached(photos, train_images=5).path,
        cached(other).path,
        loaded(photos).val.images_NHWC.path,
    }
    monkeypatch.setattr(images, "decoder", lambda: "another")
    assert len({*paths, cached(photos).path}) == 6


def test_what_travels_holds_no_image_and_nothing_of_this_machine(photos):
    part = cached(photos)
    content = pickle.dumps(part)
    whole(part)
    assert pickle.dumps(part) == content
    assert len(content) < part.file_bytes / 2  # of which paths, that may be long, are a part
    again = pickle.loads(content)  # noqa: S301
    assert np.array_equal(whole(again), whole(part))
    assert abs(part.nbytes - len(content)) < 1000


def test_a_machine_without_the_file_makes_it(photos):
    part = cached(photos)
    expected = whole(part)
    part.path.unlink()
    again = replace(part)
    again.check_readable(2)
    assert again.path.stat().st_size == again.file_bytes and np.array_equal(whole(again), expected)


def test_pixels_can_only_be_read(photos):
    part = cached(photos)
    with pytest.raises(ValueError, match="read-only"):
        part.ensure(1).pixels_NHWC[0] = 0


# Never half of it


@pytest.mark.parametrize("damage", ["short", "long", "empty", "seal", "checks", "of another"])
def test_a_file_that_is_not_whole_is_made_again(photos, damage):
    part = cached(photos)
    content = part.path.read_bytes()
    n = len(part.stored)
    bad = {
        "short": content[:-1], "long": content + b"\0", "empty": b"", "seal": content[:-1] + b"\0",
        "checks": content[: -32 - 4 * n] + bytes(4 * n) + content[-32:],
    }.get(damage)  # fmt: skip
    if bad is None:
        bad = decoded.of(part.stored, "another")
        bad.check_readable(1)
        bad = bad.path.read_bytes()
    part.path.write_bytes(bad)
    assert not part.is_there()
    cached(photos)
    assert part.path.read_bytes() == content


def test_damaged_pixels_are_noticed_when_they_are_looked_at(photos):
    part = cached(photos)
    content = bytearray(part.path.read_bytes())
    content[5] ^= 1
    part.path.write_bytes(content)
    with pytest.raises(UserError, match=f"{part.path}: image 0 is damaged; delete the file"):
        whole(cached(photos))
    rest = np.arange(1, len(part))
    assert np.array_equal(whole(cached(photos).select(rest)), whole(loaded(photos, "workers").train.images_NHWC)[1:])


BUILDER = """
import os, sys, time
import numpy as np
from raybasin.data import dataset, decoding
from raybasin.sweep.specs import DataSpec

decode = decoding.StoredImages.decoded
def slowly(stored, position, encoded):
    open(sys.argv[2], "a").write("x")
    time.sleep(float(sys.argv[3]))
    return decode(stored, position, encoded)
decoding.StoredImages.decoded = slowly
part = dataset.load(DataSpec(name="mine", dir=sys.argv[1], validation={"images": 3}, image_size=16, decode="cache"))
print(part.train.images_NHWC.path)
"""


def builder(folder, log, seconds):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(BUILDER), str(folder), str(log), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)


def test_two_that_begin_at_once_decode_each_image_once(photos, tmp_path, cache):
    running = [builder(photos, tmp_path / "log", 0.05) for _ in range(2)]
    said = {one.communicate(timeout=300)[0] for one in running}
    assert [one.returncode for one in running] == [0, 0] and len(said) == 1
    assert len((tmp_path / "log").read_text()) == 26
    assert len(list(cache.iterdir())) == 3
    assert np.array_equal(whole(cached(photos)), whole(loaded(photos, "workers").train.images_NHWC))


def test_what_was_killed_is_not_believed_and_begun_anew(photos, tmp_path, cache):
    running = builder(photos, tmp_path / "log", 0.4)
    while not (tmp_path / "log").exists():
        assert running.poll() is None
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=300)
    [left] = cache.iterdir()
    assert left.name.endswith(".partial")
    assert np.array_equal(whole(cached(photos)), whole(loaded(photos, "workers").train.images_NHWC))
    assert not list(cache.glob(".*"))


def test_who_has_waited_for_a_file_that_was_given_its_name_does_not_touch_it(tmp_path):
    path, final = tmp_path / "partial", tmp_path / "final"
    with contextlib.ExitStack() as waits:
        with decoded._alone(path) as file:
            file.write(b"made")
            file.flush()
            waiting = waits.enter_context(open(path, "a+b"))
            os.replace(path, final)
        fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert not decoded._is_at(waiting, path) and final.read_bytes() == b"made"


# Said before anything is trained


def test_an_image_that_cannot_be_decoded_is_named_and_nothing_is_left(photos, cache):
    image = photos / "train" / "a" / "1.jpg"
    os.truncate(image, image.stat().st_size - 200)
    assert "a/1.jpg: not a readable image" in error_of(spec(photos, image_size=16, decode="cache"))
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]


def test_no_file_is_begun_where_there_is_no_room_for_it(photos, cache, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    said = error_of(spec(photos, image_size=16, decode="cache"))
    assert "decoded images need 0.0 MB, of which 0.0 MB are free" in said and "$RAYBASIN_DATA" in said
    assert not list(cache.iterdir())


def test_a_folder_that_cannot_be_written_is_an_error(photos, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAYBASIN_DATA", str(tmp_path / "file"))
    said = error_of(spec(photos, image_size=16, decode="cache"))
    assert "cannot" in said and "decoded" in said


def test_a_disk_that_fills_up_leaves_nothing(photos, cache, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoded.folders, "sync", full)
    said = error_of(spec(photos, image_size=16, decode="cache"))
    assert "cannot write the decoded images: No space left on device" in said
    assert not list(cache.iterdir())


def test_what_is_there_and_what_is_not_is_described(photos, cache):
    index = dataset.index(spec(photos, image_size=16, decode="cache"))
    parts = dataset.in_cache(index)
    said = decoded.described(parts)
    assert f"are written to {cache}; " in said and "are free on its disk" in said and not cache.exists()
    parts[0].check_readable(1)
    assert "beside" in decoded.described(parts)
    dataset.decode(index)
    assert decoded.described(parts).endswith("which are there")
    assert not dataset.in_cache(dataset.index(spec(photos, decode="workers")))


def test_sets_that_are_stored_as_pixels_have_nothing_to_keep():
    assert "data.decode: digits is stored as pixels" in error_of(specs.DataSpec(name="digits", decode="cache"))


def test_files_are_under_the_cache_folder(photos, cache):
    assert cached(photos).path.parent == cache == Path(os.environ["RAYBASIN_DATA"]) / "decoded"
