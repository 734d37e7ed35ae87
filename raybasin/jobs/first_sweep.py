"""A first sweep file for one's own images and checkpoint, with the reason of each choice beside it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import timm

from raybasin.data import dataset
from raybasin.data.dataset import DataIndex
from raybasin.errors import UserError, one_line
from raybasin.landscape import batch_norm
from raybasin.sweep import specs, strict_yaml
from raybasin.sweep.specs import Architecture, DataSpec
from raybasin.training import models, pretrained, shown

SMALL = 64
"""Images of at most so many pixels are moved and mirrored; larger ones are also cropped at several scales."""
TRAINED_ON = 224
"""Pixels, where nothing says on how many a checkpoint was trained."""
STEPS = 300
"""That a hub should have, about: fewer hardly adapt it, many more cost without being needed for a first look."""
FEWEST_EPOCHS, MOST_EPOCHS = 5, 40
FEWEST_VAL, MOST_VAL, LARGEST_SHARE = 300, 2000, 0.3
"""Validation images: what decides whether a point is in the basin, and which one is best."""
DECIDING_VAL = 800
"""With fewer of them most points near the boundary stay undecided, by the error on them (docs/results.md)."""


@dataclass(frozen=True)
class Choice:
    """Lines of the file: a key with its value, and why."""

    text: str
    why: str

    def lines(self, width: int) -> str:
        return f"{self.text:<{width}}  # {self.why}" if self.why else self.text


def text(folder: str, checkpoint: str, model: str | None = None) -> str:
    """The sweep file. It has been read as one: it is a sweep that can be planned.

    Args:
        folder: where the images are, in one of the layouts that sweeps read.
        checkpoint: a file, or a tag of timm's.
        model: the timm network, where the checkpoint does not say which it is.

    Raises:
        UserError: for data or weights that cannot be read, or a network that nobody names.
    """
    for given, what in ((folder, "the folder of images"), (checkpoint, "--checkpoint")):
        if not given:  # the current folder would be taken for it
            raise UserError(f"{what}: is empty; name one")
    network = _network(checkpoint, model)
    if pretrained.is_file(checkpoint):  # what only timm's hub has may be large, and is read when the sweep is planned
        _check_fits(checkpoint, network)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(folder).expanduser().resolve().name).strip("-") or "images"
    index = dataset.index(DataSpec(name=name, dir=str(Path(folder).expanduser().absolute())))
    parts = [
        _header(name, index),
        "data:", *_indented(_data(index, network, checkpoint)),
        "model:", *_indented(_model(network, checkpoint)),
        "recipe:", *_indented(_recipe(index, network)),
        "methods:", *_indented(_methods()),
        *(choice.lines(30) for choice in _rest(index)),
    ]  # fmt: skip
    content = "\n".join(parts) + "\n"
    specs.parse(strict_yaml.plain_yaml(content.encode(), "the first sweep file"))
    return content


def _network(checkpoint: str, model: str | None) -> Architecture:
    """With the arguments that the checkpoint says it was built with, where it is of that network."""
    name = model or _network_of(checkpoint)
    is_own = pretrained.is_file(checkpoint) and name in shown.networks(checkpoint)
    return Architecture.model_validate({"name": name, "args": shown.arguments(checkpoint) if is_own else {}})


def _network_of(checkpoint: str) -> str:
    """The timm network of a checkpoint, by its tag, its metadata or the `config.json` beside it."""
    if not pretrained.is_file(checkpoint):
        models.check_name(checkpoint)
        return checkpoint.split(".")[0]
    if not Path(checkpoint).expanduser().is_file():
        raise UserError(f"{checkpoint}: is no file; name a file with weights, or a tag of timm's, with --checkpoint")
    for name in shown.networks(checkpoint):
        if timm.is_model(name):
            return name
    raise UserError(f"{checkpoint}: does not say of which network it is; name a timm model with --model")


def _check_fits(checkpoint: str, network: Architecture) -> None:
    models.check_name(network.name)
    try:
        pretrained.load_body(checkpoint, network)
    except UserError as error:
        others = [name for name in shown.networks(checkpoint) if name.split(".")[0] != network.name.split(".")[0]]
        hint = f"; it says that it is of {one_line(others[0], 80)}" if others else ""
        raise UserError(f"{error}{hint}; name its own network with --model, or another checkpoint") from error


def _header(name: str, index: DataIndex) -> str:
    n_train, n_val = _counts(index)
    return (
        f"# A first sweep: {len(index.classes.kept)} classes, {n_train} training and {n_val} validation images.\n"
        "# `raybasin plan` says what it does, `raybasin sweep` does it. All keys: docs/sweep-file.md.\n"
        f"name: {name}"
    )


def _data(index: DataIndex, network: Architecture, checkpoint: str) -> list[Choice]:
    height, width = index.train.size
    sizes = index.train.audit.sizes
    size = pretrained.image_size(network, [checkpoint])
    why = "pixels that the network sees: as in the pre-training" if size else "nothing says on how many it was trained"
    stored = f"; stored {height} x {width}" if len(sizes) == 1 else f"; stored in {len(sizes)} sizes"
    is_small = len(sizes) == 1 and max(height, width) <= SMALL
    augment = "[pad_crop, flip]" if is_small else "[random_resized_crop, flip]"
    n_train, n_val = _counts(index)
    found = [
        Choice(f"name: {index.spec.name}", ""),
        Choice(f"dir: {json.dumps(index.spec.dir)}", ""),
        Choice(f"image_size: {size or TRAINED_ON}", why + stored),
        Choice(f"augment: {augment}", "take `flip` out where left and right differ, as in digits"),
    ]
    if index.stored.test is None:
        found.append(Choice(f"train_images: {n_train}", "there is no test split: all the others are the test images"))
    found.append(
        Choice(f"validation: {{images: {n_val}}}", "cut from the training images; they decide what is in the basin")
    )
    return found


def _counts(index: DataIndex) -> tuple[int, int]:
    """Training and validation images; where there is one pool of images, a quarter of it is left for the test."""
    is_pool = index.stored.test is None
    n = len(index.train) + len(index.val) + (len(index.test) if is_pool else 0)
    n -= n // 4 if is_pool else 0
    n_val = min(MOST_VAL, max(FEWEST_VAL, n // 10), int(LARGEST_SHARE * n))
    return n - n_val, n_val


def _model(network: Architecture, checkpoint: str) -> list[Choice]:
    entry = str(Path(checkpoint).expanduser().absolute()) if pretrained.is_file(checkpoint) else checkpoint
    return [
        Choice(f"name: {network.name}", ""),
        *([Choice(f"args: {json.dumps(dict(network.args))}", "as the checkpoint says")] if network.args else []),
        Choice(f"pretrained: [{json.dumps(entry)}]", "several checkpoints tell more than one"),
    ]


def _recipe(index: DataIndex, network: Architecture) -> list[Choice]:
    n_train, _ = _counts(index)
    batch = max([size for size in (16, 32, 64, 128) if n_train >= 20 * size], default=16)
    epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(STEPS * batch / n_train)))
    steps = math.ceil(n_train / batch)
    few = f"; {STEPS} or more would be better" if steps * epochs < STEPS else ""
    return [
        Choice(f"epochs: {epochs}", f"of about {steps} steps: a hub of {steps * epochs}{few}"),
        Choice(f"batch_size: {batch}", f"{steps} steps an epoch"),
        *_optimizer(network),
    ]


def _optimizer(network: Architecture) -> list[Choice]:
    """What is usual for networks with batch norm, and for those without: transformers and their like."""
    why = "`raybasin lr-range FILE` tries others"
    if batch_norm.layers(models.build(network, n_classes=2, seed=0)):
        return [Choice("lr: 0.02", why), Choice("momentum: 0.9", ""), Choice("weight_decay: 5.0e-4", "")]
    return [
        Choice("optimizer: adamw", f"{network.name} has no batch norm; `layer_decay: 0.75` is usual, too"),
        Choice("lr: 2.0e-4", why),
        Choice("weight_decay: 0.05", ""),
        Choice("decay: matrices", "biases and norms have none"),
        Choice("warmup: 0.1", "of the hub's steps"),
        Choice("grad_clip: 1.0", ""),
    ]


def _methods() -> list[Choice]:
    return [
        Choice("star_sse: {n_members: 5, lr_ratio: [1, 4, 16]}", "a hub and 4 branches, at 3 rates over recipe.lr"),
        Choice("local_de: {n_members: 5}", "what is usual: 5 fine-tunings of the checkpoint, to compare with"),
    ]


def _rest(index: DataIndex) -> list[Choice]:
    basin = Choice("basin: {points: 7}", "places on each path at which it is measured")
    if _counts(index)[1] < DECIDING_VAL:
        basin = Choice("basin: {points: 7, split: train}", "few images: barriers on training decide sooner")
    return [
        Choice("replicates: 3", "hubs; 1 is enough to look, 5 for a figure in print: `plan` says how sure each is"),
        basin,
        Choice("soups: [uniform, greedy]", ""),
    ]


def _indented(choices: list[Choice]) -> list[str]:
    return [f"  {choice.lines(52)}" for choice in choices]
