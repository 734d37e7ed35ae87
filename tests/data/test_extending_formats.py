"""A format is one function and its entry in the list: nothing else has to know of it."""

import numpy as np
from images import error_of, spec, values, write_folder
from tiny import spec as sweep

from raybasin.data import dataset, formats
from raybasin.data.shift_sets import index as index_shifts
from raybasin.data.shift_sets import load as load_shifts
from raybasin.data.stored import Format, PixelSplit, Stored, StoredSplit, choose_splits
from raybasin.errors import UserError


def open_npz(folder, wanted):
    """`train.npz` with `test.npz` or `val.npz`, each of `images` [N, H, W] and `labels` [N]."""
    if not (folder / "train.npz").is_file():
        return None
    _, reporting = choose_splits(lambda name: (folder / f"{name}.npz").is_file(), wanted)
    test = read(folder / f"{reporting}.npz") if reporting else None
    return Stored(read(folder / "train.npz"), test, ["cat", "dog"], source=f"arrays in '{folder}'")


def open_npz_split(folder, split):
    return StoredSplit(read(path), ["cat", "dog"]) if (path := folder / f"{split}.npz").is_file() else None


def read(path):
    with np.load(path, allow_pickle=False) as arrays:
        if arrays["images"].dtype != np.uint8:
            raise UserError(f"{path}: images must be uint8")
        return PixelSplit(arrays["images"], arrays["labels"])


def write(path, pixel_values, labels, dtype=np.uint8):
    pixels = np.broadcast_to(np.asarray(pixel_values, dtype)[:, None, None], (len(labels), 4, 6))
    np.savez(path, images=pixels, labels=np.asarray(labels))


def test_a_new_format_is_read_split_and_fingerprinted_as_the_others_are(tmp_path, monkeypatch):
    write(tmp_path / "train.npz", range(12), [0, 1] * 6)
    write(tmp_path / "val.npz", range(100, 104), [0, 1] * 2)
    assert "no data in" in error_of(spec(tmp_path))

    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, Format(open_npz)))
    loaded = dataset.load(spec(tmp_path, classes=("cat", "dog"), train_images={"per_class": 4}))
    assert loaded.classes.names == ("cat", "dog")
    assert (len(loaded.train), len(loaded.val), values(loaded.test)) == (8, 3, [100, 101, 102, 103])
    assert loaded.train.images_NHWC.shape == (8, 4, 6, 3)
    assert [value % 2 for value in values(loaded.train)] == loaded.train.labels_N.tolist()
    assert len(loaded.train_fingerprint) == 64 and loaded.train_fingerprint != loaded.test_fingerprint

    write(tmp_path / "train.npz", range(12), [0, 1] * 6, dtype=np.int16)
    assert error_of(spec(tmp_path)) == f"{tmp_path}/train.npz: images must be uint8"


def test_formats_that_come_before_it_win(tmp_path, monkeypatch):
    write(tmp_path / "train.npz", range(12), [0, 1] * 6)
    write_folder(tmp_path, {"a": 4, "b": 4})
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, Format(open_npz)))
    assert dataset.index(spec(tmp_path)).stored.source.startswith("image folder")
    monkeypatch.setattr(formats, "FORMATS", (Format(open_npz), *formats.FORMATS[1:]))
    assert dataset.index(spec(tmp_path, train_images=4)).stored.source == f"arrays in '{tmp_path}'"


def test_with_open_split_it_is_a_further_evaluation_set_too(tmp_path, monkeypatch):
    own = write_folder(tmp_path / "own", {"ant": 4, "cat": 4, "dog": 4})
    write(tmp_path / "test.npz", [7, 8, 9], [1, 0, 1])
    made = sweep(
        data={"name": "mine", "dir": str(own), "validation": {"images": 3}},
        shifts={"arrays": {"format": "folder", "dir": str(tmp_path)}},
    )
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, Format(open_npz, open_npz_split)))
    facts = index_shifts(made, dataset.index(made.data))
    images = load_shifts(made, dataset.load(made.data), facts)["arrays"]
    assert values(images) == [7, 8, 9] and images.labels_N.tolist() == [2, 1, 2]
