"""The data sets of the paper as torchvision stores them, with two classes and few images.

The grey value of an image tells which it is: 10 k + i for image i of class k, 50 more in the official validation split
and 100 more in the test split.
"""

import hashlib
import json
import pickle
from dataclasses import replace
from functools import partial

import numpy as np
from images import encoded
from scipy.io import savemat

from raybasin.data import torchvision_sets

TRAIN, VAL, TEST = (0, 1, 2, 10, 11, 12), (50, 51, 60, 61), (100, 101, 110, 111)


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(value))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def class_of(value):
    return value % 50 // 10


def caltech101(root, monkeypatch):
    """One pool; each class gives two training images and two test images."""
    folder = root / "caltech101" / "101_ObjectCategories"
    put(folder / "BACKGROUND_Google" / "image_0001.jpg", 250)
    for k, name in enumerate(("ant", "bee")):
        for i in range(4):
            put(folder / name / f"image_{i + 1:04d}.jpg", 10 * k + i)
    whole(monkeypatch, "caltech101", 4, 4, cut=partial(torchvision_sets.lowest_digests, per_class=2))


def cifar(name, root, monkeypatch):
    """20 training and 10 test images, with the MD5 sums that torchvision then expects."""
    from torchvision import datasets

    factory, base, names = {
        "cifar10": (datasets.CIFAR10, "cifar-10-batches-py", "label_names"),
        "cifar100": (datasets.CIFAR100, "cifar-100-python", "fine_label_names"),
    }[name]
    labels = "labels" if name == "cifar10" else "fine_labels"
    folder = root / base
    folder.mkdir()

    def put_pickle(file, content):
        stored = pickle.dumps(content)
        (folder / file).write_bytes(stored)
        return hashlib.md5(stored).hexdigest()

    pixels = np.repeat(np.arange(20, dtype=np.uint8)[:, None], 3072, axis=1)
    train = put_pickle("data_batch_1", {"data": pixels, labels: [i % 10 for i in range(20)]})
    test = put_pickle("test_batch", {"data": pixels[:10] + 100, labels: list(range(10))})
    meta = put_pickle("batches.meta", {names: list("abcdefghij")})
    monkeypatch.setattr(factory, "train_list", [["data_batch_1", train]])
    monkeypatch.setattr(factory, "test_list", [["test_batch", test]])
    monkeypatch.setattr(factory, "meta", {"filename": "batches.meta", "key": names, "md5": meta})
    whole(monkeypatch, name, 20, 10)
    return folder


def dtd(root, monkeypatch=None):
    base = root / "dtd" / "dtd"
    for split, values in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        names = []
        for value in values:
            names.append(f"{('banded', 'woven')[class_of(value)]}/{split}{value}.jpg")
            put(base / "images" / names[-1], value)
        write(base / "labels" / f"{split}1.txt", "\n".join(names))
    if monkeypatch:
        whole(monkeypatch, "dtd", 10, 4)


def eurosat(root, monkeypatch):
    for k, name in enumerate(("Forest", "River")):
        for i in range(4):
            put(root / "eurosat" / "2750" / name / f"{name}_{i}.jpg", 10 * k + i)
    whole(monkeypatch, "eurosat", 4, 4)


def fgvcaircraft(root, monkeypatch):
    folder = root / "fgvc-aircraft-2013b" / "data"
    write(folder / "variants.txt", "707-320\nA 300\n")
    for split, values in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        lines = [f"{value:07d} {('707-320', 'A 300')[class_of(value)]}\n" for value in values]
        write(folder / f"images_variant_{split}.txt", "".join(lines))
        for value in values:
            put(folder / "images" / f"{value:07d}.jpg", value)
    whole(monkeypatch, "fgvcaircraft", 10, 4)


def flowers102(root, monkeypatch):
    """Images are numbered from 1, across the splits."""
    from torchvision.datasets import Flowers102

    folder = root / "flowers-102"
    values = [*TRAIN, *VAL, *TEST]
    for number, value in enumerate(values, 1):
        put(folder / "jpg" / f"image_{number:05d}.jpg", value)
    numbers = np.arange(1, len(values) + 1)
    savemat(folder / "imagelabels.mat", {"labels": [1 + class_of(value) for value in values]})
    savemat(folder / "setid.mat", {"trnid": numbers[:6], "valid": numbers[6:10], "tstid": numbers[10:]})
    md5 = {name: hashlib.md5((folder / f"{name}.mat").read_bytes()).hexdigest() for name in ("imagelabels", "setid")}
    files = {"label": ("imagelabels.mat", md5["imagelabels"]), "setid": ("setid.mat", md5["setid"])}
    monkeypatch.setattr(Flowers102, "classes", ["pink primrose", "tiger lily"])
    monkeypatch.setattr(Flowers102, "_file_dict", {**Flowers102._file_dict, **files})
    whole(monkeypatch, "flowers102", 10, 4)


def food101(root, monkeypatch):
    for split, values in (("train", TRAIN), ("test", TEST)):
        listed = {"pie": [], "soup": []}
        for value in values:
            name = ("pie", "soup")[class_of(value)]
            listed[name].append(f"{name}/{value}")
            put(root / "food-101" / "images" / name / f"{value}.jpg", value)
        write(root / "food-101" / "meta" / f"{split}.json", json.dumps(listed))
    whole(monkeypatch, "food101", 6, 4)


def oxfordiiitpet(root, monkeypatch):
    folder = root / "oxford-iiit-pet"
    for split, values in (("trainval", TRAIN), ("test", TEST)):
        lines = []
        for value in values:
            name = f"{('Abyssinian', 'basset_hound')[class_of(value)]}_{value}"
            lines.append(f"{name} {1 + class_of(value)} 1 1\n")
            put(folder / "images" / f"{name}.jpg", value)
        write(folder / "annotations" / f"{split}.txt", "".join(lines))
    whole(monkeypatch, "oxfordiiitpet", 6, 4)


def stanfordcars(root, monkeypatch):
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(["Audi", "BMW"], dtype=object)})
    lists = {"train": folder / "devkit" / "cars_train_annos.mat", "test": folder / "cars_test_annos_withlabels.mat"}
    for split, values in (("train", TRAIN), ("test", TEST)):
        rows = np.zeros(len(values), dtype=[("class", "O"), ("fname", "O")])
        for row, value in zip(rows, values, strict=True):
            row["class"], row["fname"] = 1 + class_of(value), f"{value:05d}.jpg"
            put(folder / f"cars_{split}" / row["fname"], value)
        savemat(lists[split], {"annotations": rows})
    whole(monkeypatch, "stanfordcars", 6, 4)


def sun397(root, monkeypatch):
    """Two classes, one of them with a folder below its letter and name; one image that the partition leaves out."""
    folder = root / "SUN397"
    write(folder / "ClassName.txt", "/a/abbey\n/b/bar/indoor\n")
    for split, values in (("Training", TRAIN), ("Testing", TEST)):
        names = [f"/{('a/abbey', 'b/bar/indoor')[class_of(value)]}/sun_{value}.jpg" for value in values]
        write(folder / f"{split}_01.txt", "\n".join(names) + "\n")
        for name, value in zip(names, values, strict=True):
            put(folder / name[1:], value)
    put(folder / "a" / "abbey" / "sun_unlisted.jpg", 9)
    whole(monkeypatch, "sun397", 6, 4)


def whole(monkeypatch, name, n_train, n_test, **changes):
    """Says that the set of these sizes is whole."""
    monkeypatch.setitem(
        torchvision_sets.TORCHVISION,
        name,
        replace(torchvision_sets.TORCHVISION[name], sizes=(n_train, n_test), **changes),
    )


LAYOUTS = {
    "caltech101": caltech101, "cifar10": partial(cifar, "cifar10"), "cifar100": partial(cifar, "cifar100"),
    "dtd": dtd, "eurosat": eurosat, "fgvcaircraft": fgvcaircraft, "flowers102": flowers102, "food101": food101,
    "oxfordiiitpet": oxfordiiitpet, "stanfordcars": stanfordcars, "sun397": sun397,
}  # fmt: skip
