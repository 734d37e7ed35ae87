"""What a worker has at hand, and what every job does with it: weights and predictions, from and to the results folder.

Tensors: N examples, H height, W width, C classes.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raybasin.data import decoding
from raybasin.data.dataset import DataSet, Images
from raybasin.data.decoding import DeviceImages
from raybasin.landscape import batch_norm
from raybasin.metrics.cell_scores import OWN, REESTIMATED, Predictions
from raybasin.store import predictions, tables
from raybasin.store.folders import Folder
from raybasin.store.predictions import Block, prediction_unit, write_predictions
from raybasin.store.provenance import describe, versions
from raybasin.sweep.facts import Preprocess
from raybasin.sweep.settings import PredictionFile, Settings
from raybasin.training import evaluation, loop, models

Beat = Callable[[], None]
"""Called whenever a job has got further, so that one that hangs can be told from one that is long."""
Labelled = tuple[DeviceImages, Tensor]
"""Images [N, H, W, 3] uint8 and their labels [N], on the device."""
Row = dict[str, Any]


@dataclass(frozen=True)
class WorkerContext:
    """Everything a worker needs at hand: where results lie, what all jobs share, the data, and the device to use."""

    folder: Folder
    settings: Settings
    data: DataSet
    pretrain_data: Mapping[int, DataSet]
    device: torch.device
    shifts: Mapping[str, Images] = field(default_factory=dict)
    """Further evaluation sets, by the name of their split."""

    @cached_property
    def preprocess(self) -> Preprocess:
        return self.settings.facts.preprocess

    @cached_property
    def train(self) -> Labelled:
        return on_device(self.data.train, self.device)

    @cached_property
    def splits(self) -> dict[str, Labelled]:
        return {"val": on_device(self.data.val, self.device), "test": on_device(self.data.test, self.device)}

    def images(self, split: str) -> Labelled:
        """Images and labels of a split; a shift set stays on the device only as long as it is looked at."""
        if split == "train":
            return self.train
        return self.splits[split] if split in self.splits else on_device(self.shifts[split], self.device)

    @cached_property
    def bn_images_NHWC(self) -> DeviceImages:
        seed = self.settings.spec.data.split_seed
        chosen = evaluation.bn_indices(len(self.data.train), self.settings.bn_images, seed)
        return decoding.select(self.train[0], chosen)

    @property
    def bn_images(self) -> int:
        """On how many images batch norm is re-estimated; 0 for a network without."""
        return self.settings.bn_images if self.settings.facts.batch_norm else 0

    @property
    def statistics(self) -> tuple[str, ...]:
        return (OWN, REESTIMATED) if self.settings.facts.batch_norm else (OWN,)

    @property
    def soup_statistics(self) -> str:
        return self.statistics[-1]


def on_device(split: Images, device: torch.device) -> Labelled:
    return decoding.on_device(split.images_NHWC, device), torch.tensor(split.labels_N, device=device)


# Weights


def keep_weights(folder: Folder, state: models.State) -> str:
    """Stores weights under the SHA-256 of their bytes, which it returns."""
    content = models.to_bytes(state)
    sha256 = models.sha256(content)
    folder.put_new(f"weights/{sha256}.safetensors", content)
    return sha256


def weights_of(folder: Folder, sha256: str) -> models.State:
    """The weights called `sha256`. Raises OSError where the file is gone or is no longer what its name says."""
    content = folder.get(f"weights/{sha256}.safetensors")
    if models.sha256(content) != sha256:
        file = folder.name(f"weights/{sha256}.safetensors")
        raise OSError(f"{file} is damaged; `raybasin check {folder.root} --repair` moves it aside")
    return models.from_bytes(content)


def sha256_of(folder: Folder, member_id: str) -> str:
    return str(tables.row(folder, "members", member_id)["weights_sha256"])


def network(state: models.State, context: WorkerContext, drop_path: float = 0.0) -> nn.Module:
    net = models.build(context.settings.spec.model, context.settings.facts.data.n_classes, seed=0, drop_path=drop_path)
    net.load_state_dict(state)
    return placed(net, context)


def placed(net: nn.Module, context: WorkerContext) -> nn.Module:
    """Convolutions run fastest in channels-last order, on GPUs and on CPUs. Code of the user's own may not run at all
    in it (`view` does not), so it gets plain order."""
    order = torch.channels_last if context.settings.spec.model.factory is None else torch.preserve_format
    return net.to(context.device, memory_format=order)  # type: ignore[call-overload,no-any-return]


# Predictions


def missing_files(predictor_id: str, context: WorkerContext) -> list[PredictionFile]:
    unit = functools.partial(prediction_unit, predictor_id)
    return context.settings.missing_files(lambda name: tables.exists(context.folder, "predictions", unit(name)))


def store_predictions(
    predictor_id: str,
    states: Mapping[str, models.State],
    files: Iterable[PredictionFile],
    known: Row,
    context: WorkerContext,
    beat: Beat,
) -> None:
    """Writes the predictions of a network whose weights `states` has, by whose batch-norm statistics they are with."""
    net = network(next(iter(states.values())), context)
    for file in files:
        blocks = []
        for split in file.splits:
            images_NHWC, labels_N = context.images(split)
            for bn, state in states.items():
                net.load_state_dict(state)
                log_probs_NC = predict(net, images_NHWC, context, beat)
                blocks.append(Block(split, bn, log_probs_NC, labels_N.cpu().numpy()))
        write_predictions(context.folder, predictor_id, file.eval_id, blocks, known, file.name)


def predict(net: nn.Module, images_NHWC: DeviceImages, context: WorkerContext, beat: Beat) -> np.ndarray:
    with loop.float32(context.settings.spec.recipe, context.device):
        return evaluation.log_probs(net, images_NHWC, context.preprocess, beat)


def reestimated(state: models.State, context: WorkerContext, beat: Beat) -> models.State:
    """The same weights with new batch-norm statistics."""
    net = network(state, context)
    reestimate(net, context, beat)
    return models.state_of(net)


def reestimate(net: nn.Module, context: WorkerContext, beat: Beat) -> None:
    """New batch-norm statistics for the weights that `net` has; nothing where it has no batch norm."""
    with loop.float32(context.settings.spec.recipe, context.device):
        batch_norm.reestimate(net, evaluation.batches(context.bn_images_NHWC, context.preprocess, beat))


def stored_predictions(context: WorkerContext) -> Predictions:
    """The predictions in the folder, of the splits whose predictions are kept."""
    settings = context.settings
    eval_ids = {split: settings.shift_eval_ids.get(split, settings.eval_id) for split in settings.kept_splits}
    return predictions.stored_predictions(context.folder, eval_ids, settings.facts.batch_norm)


def predict_at(
    net: nn.Module, state: models.State, splits: Iterable[str], context: WorkerContext, beat: Beat
) -> dict[str, np.ndarray]:
    """Log-probabilities [N, C] on each split of the network with the weights `state` and new statistics."""
    net.load_state_dict(state)
    reestimate(net, context, beat)
    return {split: predict(net, context.images(split)[0], context, beat) for split in splits}


# Rows


def finish(context: WorkerContext, started: float, seconds: str = "job_seconds") -> Row:
    """How long a job took since `started`, as the column `seconds`, and what it ran on."""
    return {seconds: time.monotonic() - started, "device": describe(context.device), "versions": versions(),
            "finished_at": tables.now()}  # fmt: skip
