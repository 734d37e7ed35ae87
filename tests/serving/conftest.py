"""One tiny sweep on images that have the size the network sees, and what is exported of it."""

import numpy as np
import pytest
import tiny
from PIL import Image
from sklearn.datasets import load_digits
from three_digits import CLASSES, OWN

import raybasin
from raybasin.serving import exported
from raybasin.sweep import specs


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Digits of 32 by 32 pixels, 3 classes, in the layout of folders."""
    folder, digits = tmp_path_factory.mktemp("images"), load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:400], digits.target[:400], strict=True)):
        if label < len(CLASSES):
            place = folder / ("train" if number < 260 else "test") / CLASSES[label]
            place.mkdir(parents=True, exist_ok=True)
            grey = Image.fromarray((pixels * 15).astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
            grey.convert("RGB").save(place / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def swept(images, tmp_path_factory):
    data = {"name": "pics", "dir": str(images), "augment": [], "image_size": 32, "eval_crop": 1.0, "normalise": OWN,
            "interpolation": "bilinear", "validation": {"images": 20}, "train_images": {"per_class": 16}}  # fmt: skip
    methods = {"star_sse": {"n_members": 3, "lr_ratio": [2]}, "local_de": {"n_members": 3}}
    tree = {**tiny.tree(methods=methods, recipe__lr=0.05, recipe__epochs=16), "data": data}
    root = tmp_path_factory.mktemp("swept")
    report = raybasin.run(specs.parse(tree), root)
    assert report.complete and not report.failures
    return raybasin.open(root)


@pytest.fixture(scope="module")
def cell(swept):
    return swept.cells.query("method == 'star_sse'").iloc[0]


@pytest.fixture(scope="module")
def folder(swept, cell, tmp_path_factory):
    """Where one folder for each of exported.WHATS lies."""
    place = tmp_path_factory.mktemp("exported")
    for what in exported.WHATS:
        assert raybasin.export(swept, place / what, what=what, cell=cell["cell_id"]) == place / what
    return place
