"""Images that workers decode: the pixels of the arrays, a few batches ahead, within a bounded memory."""

import errno
import os
import pickle
import shutil
from collections import Counter, namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from images import encoded, error_of, spec, sweep, write_parquet, write_shard
from PIL import Image

import raybasin
from raybasin.data import dataset, decoding
from raybasin.errors import UserError
from raybasin.store import tables
from raybasin.store.folders import Folder
from raybasin.sweep import ids, plan, schedules, specs
from raybasin.sweep.facts import Preprocess, ShiftFacts
from raybasin.training import augment

CPU = torch.device("cpu")
SHOWN = Preprocess(16, 0.875, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
AUGMENTATIONS = (
    (), ("flip",), ("pad_crop", "flip"), ("random_resized_crop", "flip"),
    ("random_resized_crop_bicubic", "flip", "rand_augment", "color_jitter", "random_erasing"),
)  # fmt: skip


@pytest.fixture
def noise(tmp_path):
    """20 training and 6 test images of noise, of several sizes, in an image folder."""
    random = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 3)):
        for name in "ab":
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("RAYBASIN_DATA", str(folder))
    return folder / "encoded"


def both(made_spec):
    """The data decoded into arrays, and for workers to decode."""
    return tuple(dataset.load(made_spec.model_copy(update={"decode": how})) for how in ("arrays", "workers"))


def reader_and_array(folder):
    arrays, stored = both(spec(folder, image_size=16, validation={"images": 2}))
    reader = decoding.on_device(stored.train.images_NHWC, CPU)
    return reader, decoding.on_device(arrays.train.images_NHWC, CPU)


# The same pixels


@pytest.mark.parametrize("layout", ["folder", "parquet"])
def test_a_reader_gives_the_pixels_of_the_array(noise, tmp_path, cache, layout):
    folder = noise
    if layout == "parquet":
        folder = tmp_path / "parquet"
        folder.mkdir()
        for split in ("train", "test"):
            files = sorted((noise / split).rglob("*.png"))
            write_shard(folder / f"{split}-0.parquet", range(len(files)), [i % 2 for i in range(len(files))],
                        images=[path.read_bytes() for path in files])  # fmt: skip
    arrays, stored = both(spec(folder, image_size=16))
    for split in ("train", "val", "test"):
        array, part = getattr(arrays, split), getattr(stored, split)
        reader = decoding.on_device(part.images_NHWC, CPU)
        assert isinstance(reader, decoding.ImageReader)
        assert (len(reader), reader.shape, reader.device) == (len(array), array.images_NHWC.shape, CPU)
        assert part.labels_N.tolist() == array.labels_N.tolist()
        assert torch.equal(reader[0 : len(array)], torch.from_numpy(array.images_NHWC))
        order_N = torch.randperm(len(array), generator=torch.Generator().manual_seed(1))
        parts = [reader.batch(order_N, positions) for positions in schedules.batches(len(array), 2)]
        assert torch.equal(torch.cat(parts), torch.from_numpy(array.images_NHWC)[order_N])
    assert stored.train_fingerprint == arrays.train_fingerprint


@pytest.mark.parametrize("names", AUGMENTATIONS, ids="+".join)
def test_augmented_batches_are_those_of_the_array(noise, names):
    reader, array_NHWC = reader_and_array(noise)
    n, height, width, _ = reader.shape
    draws = augment.draw_epoch(n, names, height, width, SHOWN, torch.Generator().manual_seed(3))
    for positions in schedules.batches(n, 5):
        seen, expected = (augment.training_batch(pixels, draws, positions, SHOWN) for pixels in (reader, array_NHWC))
        assert torch.equal(seen[0], expected[0]) and torch.equal(seen[1], expected[1])


def test_a_selection_is_that_of_the_array(noise):
    reader, array_NHWC = reader_and_array(noise)
    chosen = np.array([11, 3, 4])
    assert torch.equal(decoding.select(reader, chosen)[0:3], decoding.select(array_NHWC, chosen))
    assert torch.equal(decoding.select(array_NHWC, chosen), array_NHWC[torch.from_numpy(chosen)])
    for whole in (reader.stored, array_NHWC.numpy()):
        assert np.array_equal(decoding.as_array(whole, chosen), array_NHWC.numpy()[chosen])


def test_a_sweep_has_the_same_ids_weights_and_predictions_either_way(noise, tmp_path):
    reports = {}
    for how in ("arrays", "workers"):
        reports[how] = raybasin.run(sweep(noise, decode=how), tmp_path / how)
        assert reports[how].complete and not reports[how].failures
    assert reports["arrays"].plan.settings_id == reports["workers"].plan.settings_id
    for table, key, column in (
        ("checkpoints", "checkpoint_id", "weights_sha256"),
        ("members", "member_id", "weights_sha256"),
        ("cells", "cell_id", "soup_sha256"),
    ):
        found = [{row[key]: row[column] for row in tables.rows(Folder(tmp_path / how), table)} for how in reports]
        assert found[0] == found[1] and found[0]
    predictions = [tables.read(Folder(tmp_path / how), "predictions").to_pylist() for how in reports]
    keys = ("predictor_id", "split", "bn", "example", "log_probs")
    assert len({tuple(str([row[k] for k in keys]) for row in rows) for rows in predictions}) == 1


# Memory and work


def test_no_more_than_two_batches_are_decoded_ahead_and_each_image_once(noise, monkeypatch):
    decoded = Counter()
    decode = decoding.StoredImages.decode

    def counted(stored, position):
        decoded[position] += 1
        return decode(stored, position)

    monkeypatch.setattr(decoding.StoredImages, "decode", counted)
    reader, _ = reader_and_array(noise)
    reader.ahead = decoding.AHEAD  # as beside a GPU
    order_N = torch.randperm(len(reader), generator=torch.Generator().manual_seed(2))
    for positions in schedules.batches(len(reader), 3):
        reader.batch(order_N, positions)
        assert len(reader._pending) <= decoding.AHEAD
        assert all(tuple(batch.pixels_BHWC.shape)[0] <= 4 for batch in reader._pending.values())
    assert not reader._pending
    assert decoded == Counter(range(len(reader)))


def test_another_order_drops_what_was_decoded_for_the_last(noise):
    reader, array_NHWC = reader_and_array(noise)
    reader.ahead = decoding.AHEAD
    first, second = (torch.randperm(len(reader), generator=torch.Generator().manual_seed(k)) for k in (4, 5))
    reader.batch(first, slice(0, 3))
    assert torch.equal(reader.batch(second, slice(0, 3)), array_NHWC[second[:3]])
    assert set(reader._pending) == {second[3:6].numpy().tobytes(), second[6:9].numpy().tobytes()}


def test_a_processor_decodes_in_turn_with_the_network_and_a_gpu_has_one_cpu_for_itself(noise, monkeypatch):
    reader, _ = reader_and_array(noise)
    for positions in schedules.batches(len(reader), 3):
        reader[positions]
        assert not reader._pending
    for count, on_cpu, beside_gpu in ((1, 1, 1), (2, 2, 1), (4, 4, 3)):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: count)
        assert decoding.threads_beside(CPU) == on_cpu
        assert decoding.threads_beside(torch.device("cuda")) == beside_gpu


def test_what_travels_to_the_workers_holds_no_image(noise):
    _, stored = both(spec(noise, image_size=16))
    content = pickle.dumps(stored.train.images_NHWC)
    assert len(content) < sum(path.stat().st_size for path in noise.rglob("*.png")) / 5
    again = decoding.on_device(pickle.loads(content), CPU)  # noqa: S301
    assert torch.equal(again[0:3], decoding.on_device(stored.train.images_NHWC, CPU)[0:3])
    assert abs(stored.train.images_NHWC.nbytes - len(content)) < 200


# Which of the two


def test_workers_decode_what_would_be_large_as_arrays(noise, monkeypatch):
    made = spec(noise, image_size=16)
    n_bytes = sum(
        part.images_NHWC.nbytes for part in vars(dataset.load(made)).values() if isinstance(part, dataset.Images)
    )
    for limit, kind in ((n_bytes, np.ndarray), (n_bytes - 1, decoding.StoredImages)):
        monkeypatch.setattr(dataset, "ARRAY_BYTES", limit)
        loaded = dataset.load(made)
        assert all(isinstance(part.images_NHWC, kind) for part in (loaded.train, loaded.val, loaded.test))


def test_who_decodes_is_in_no_id(noise):
    shift = ShiftFacts("shifted", "e" * 64, 10)
    facts = replace(tiny.facts(), shifts=(shift,))
    made = [plan.make(sweep(noise, decode=how), facts) for how in ("auto", "arrays", "workers")]
    assert len({(one.settings_id, one.eval_id, tuple(one.members), one.cells) for one in made}) == 1
    assert len({one.shift_eval_ids["shifted"] for one in made}) == 1
    tasks = [one.spec.model.pretrained[0].pretrain for one in made]
    keys = {ids.pretrain_key(task, 0, made[0].spec.model, facts.data, facts.preprocess) for task in tasks}
    assert len(keys) == 1


def test_sets_that_are_stored_as_pixels_have_nothing_to_decode():
    assert "data.decode: digits is stored as pixels" in error_of(specs.DataSpec(name="digits", decode="workers"))


# Damage


def test_an_image_that_has_changed_since_is_named_and_not_trained_on(noise):
    reader, _ = reader_and_array(noise)
    [(path, _)] = reader.stored.split.read(reader.stored.index_n[3:4])
    Path(path).write_bytes(encoded(77, size=(30, 23)))
    with pytest.raises(UserError, match=f"{path}: is not the image that it was"):
        reader[0 : len(reader)]
    Path(path).unlink()
    with pytest.raises(UserError, match=f"{path}: cannot read the image"):
        reader[0 : len(reader)]


def test_the_first_and_last_image_tell_whether_a_machine_can_read_them(noise):
    _, stored = both(spec(noise, image_size=16))
    stored.test.images_NHWC.check_readable()
    (noise / "test" / "b" / "2.png").unlink()
    with pytest.raises(UserError, match=r"b/2\.png"):
        stored.test.images_NHWC.check_readable()


def test_a_damaged_image_fails_the_jobs_that_meet_it_by_name(noise, tmp_path):
    (noise / "test" / "a" / "1.png").write_bytes((noise / "test" / "a" / "1.png").read_bytes()[:200])
    report = raybasin.run(sweep(noise, decode="workers"), tmp_path / "results")
    assert report.failures and all("a/1.png: not a readable image" in failure.reason for failure in report.failures)


# The copy of Parquet


def test_parquet_is_copied_once_and_read_from_the_copy(tmp_path, cache, monkeypatch):
    made = spec(write_parquet(tmp_path), decode="workers", image_size=8)
    first = dataset.load(made)
    copies = sorted(cache.iterdir())
    assert {path.name for path in copies} == {
        f"{first.train_fingerprint}.images", f"{first.test_fingerprint}.images"
    }  # fmt: skip
    monkeypatch.setattr(decoding, "_copy_images", lambda *_: pytest.fail("copied again"))
    again = decoding.on_device(dataset.load(made).train.images_NHWC, CPU)
    (tmp_path / "train-00000-of-00002.parquet").unlink()
    assert sorted(again[0:9][:, 0, 0, 0].tolist()) == again[0:9][:, 0, 0, 0].tolist()
    assert len(again[0:9]) == 9


def test_a_copy_that_was_cut_short_is_made_again_and_one_that_was_changed_is_noticed(tmp_path, cache):
    made = spec(write_parquet(tmp_path), decode="workers", image_size=8)
    copy = cache / f"{dataset.load(made).train_fingerprint}.images"
    content = copy.read_bytes()
    os.truncate(copy, 10)
    stored = dataset.load(made).train.images_NHWC
    assert copy.read_bytes() == content
    copy.write_bytes(bytes(len(content)))
    with pytest.raises(UserError, match=r"train-00000-of-00002\.parquet, row \d: is not the image"):
        decoding.on_device(stored, CPU)[0:2]
    copy.unlink()
    with pytest.raises(UserError, match="cannot read the copy"):
        decoding.on_device(stored, CPU)[0:2]


def test_a_copy_is_made_on_a_disk_without_fsync(tmp_path, cache, monkeypatch):
    def not_supported(descriptor):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", not_supported)
    reader_and_array(write_parquet(tmp_path))
    assert len(list(cache.glob("*.images"))) == 2  # of training and of test


def test_no_copy_is_begun_where_there_is_no_room_for_it(tmp_path, cache, monkeypatch):
    made = spec(write_parquet(tmp_path), decode="workers", image_size=8)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    said = error_of(made)
    assert "$RAYBASIN_DATA" in said and "decode: arrays" in said and len(said.splitlines()) == 2
    assert not list(cache.iterdir())


def test_on_the_processor_arrays_are_shared_even_where_nothing_may_write_to_them(recwarn):
    images_NHWC = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    images_NHWC.flags.writeable = False
    shown = decoding.on_device(images_NHWC, CPU)
    assert np.shares_memory(shown.numpy(), images_NHWC) and not recwarn.list
    assert torch.equal(shown[1:], torch.tensor(images_NHWC[1:].copy()))
