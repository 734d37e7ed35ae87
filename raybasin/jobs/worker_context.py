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
from raybasin.metrics import cell_scores
from raybasin.metrics.cell_scores import Predictions
from raybasin.store import predictions, tables
from raybasin.store.folders import Folder
from raybasin.store.predictions import Block, prediction_unit, write_predictions
from raybasin.store.provenance import describe, versions
from raybasin.sweep.facts import Preprocess
from raybasin.sweep.settings import PredictionFile, Settings
from raybasin.training import evaluation, loop, models
from raybasin.training.evaluation import Prepared

Beat = Callable[[int], None]
"""Is called as a job gets on, with the number of images that have gone through a network since the last call."""
"""Called whenever a job has got further, so that one that hangs can be told from one that is long."""
Labelled = tuple[DeviceImages, Tensor]
"""Images [N, H, W, 3] uint8 and their labels [N], on the device."""
Row = dict[str, Any]
PREPARED_BYTES = 2**24
"""Of a split, as the network sees it; a larger one is prepared anew for each pass, and takes a few hundredths of it."""


@dataclass
class WorkerContext:
    """Everything a worker needs at hand: where results lie, what all jobs share, the data, and the device to use."""

    folder: Folder
    settings: Settings
    data: DataSet
    pretrain_data: Mapping[int, DataSet]
    device: torch.device
    shifts: Mapping[str, Images] = field(default_factory=dict)
    """Further evaluation sets, by the name of their split."""
    beat: Beat = lambda images: None
    """Of the job that is being done."""
    _prepared: dict[str, Prepared] = field(default_factory=dict, init=False)

    # Images

    @cached_property
    def preprocess(self) -> Preprocess:
        return self.settings.facts.preprocess

    def on_device(self, split: Images) -> Labelled:
        return decoding.on_device(split.images_NHWC, self.device), torch.tensor(split.labels_N, device=self.device)

    @cached_property
    def train(self) -> Labelled:
        return self.on_device(self.data.train)

    @cached_property
    def splits(self) -> dict[str, Labelled]:
        return {"val": self.on_device(self.data.val), "test": self.on_device(self.data.test)}

    def images(self, split: str) -> Labelled:
        """Images and labels of a split; a shift set stays on the device only as long as it is looked at."""
        if split == "train":
            return self.train
        return self.splits[split] if split in self.splits else self.on_device(self.shifts[split])

    def shown(self, split: str, images_NHWC: DeviceImages) -> DeviceImages | Prepared:
        """The images of a split (or `bn`) for evaluation; those of a small one are prepared once for all networks."""
        n_bytes = len(images_NHWC) * 3 * self.preprocess.image_size**2 * 4
        if split in self.shifts or n_bytes > PREPARED_BYTES:
            return images_NHWC
        if split not in self._prepared:
            self._prepared[split] = evaluation.prepare(images_NHWC, self.preprocess)
        return self._prepared[split]

    # Batch norm

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
        return cell_scores.statistics(self.settings.facts.batch_norm)

    @property
    def soup_statistics(self) -> str:
        return self.statistics[-1]

    def reestimate(self, net: nn.Module) -> None:
        """New batch-norm statistics for the weights that `net` has; nothing where it has no batch norm."""
        with loop.float32(self.settings.spec.recipe, self.device):
            batch_norm.reestimate(
                net, evaluation.batches(self.shown("bn", self.bn_images_NHWC), self.preprocess, self.beat)
            )

    def reestimated(self, state: models.State) -> models.State:
        """The same weights with new batch-norm statistics."""
        net = self.evaluated(state)
        self.reestimate(net)
        return models.state_of(net)

    # Weights

    def keep_weights(self, state: models.State) -> str:
        """Stores weights under the SHA-256 of their bytes, which it returns."""
        content = models.to_bytes(state)
        sha256 = models.sha256(content)
        self.folder.put_new(f"weights/{sha256}.safetensors", content)
        return sha256

    def weights_of(self, sha256: str) -> models.State:
        """The weights called `sha256`. Raises OSError where the file is gone or is no longer what its name says."""
        key = f"weights/{sha256}.safetensors"
        content = self.folder.get(key)
        if models.sha256(content) != sha256:
            file = self.folder.name(key)
            raise OSError(f"{file} is damaged; `raybasin check {self.folder.root} --repair` moves it aside")
        return models.from_bytes(content)

    def sha256_of(self, member_id: str) -> str:
        return str(tables.row(self.folder, "members", member_id)["weights_sha256"])

    def network(self, state: models.State, drop_path: float = 0.0) -> nn.Module:
        """A network of its own, to be trained."""
        n_classes = self.settings.facts.data.n_classes
        net = models.build(self.settings.spec.model, n_classes, seed=0, drop_path=drop_path)
        net.load_state_dict(state)
        return self.placed(net)

    def evaluated(self, state: models.State) -> nn.Module:
        """The one network that this worker evaluates with, with the weights `state` until it is asked for again: to
        build one takes as long as dozens of images through a small network."""
        self._evaluated.load_state_dict(state)
        return self._evaluated

    @cached_property
    def parameter_names(self) -> tuple[str, ...]:
        """Of the network; what else its state holds are buffers."""
        return tuple(name for name, _ in self._evaluated.named_parameters())

    @cached_property
    def _evaluated(self) -> nn.Module:
        return self.placed(models.build(self.settings.spec.model, self.settings.facts.data.n_classes, seed=0))

    def placed(self, net: nn.Module) -> nn.Module:
        return models.placed(net, self.settings.spec.model, self.device)

    # Predictions

    def missing_files(self, predictor_id: str) -> list[PredictionFile]:
        unit = functools.partial(prediction_unit, predictor_id)
        return self.settings.missing_files(lambda name: tables.exists(self.folder, "predictions", unit(name)))

    def store_predictions(
        self, predictor_id: str, states: Mapping[str, models.State], files: Iterable[PredictionFile], known: Row
    ) -> None:
        """Writes the predictions of a network whose weights `states` has, by whose batch-norm statistics they are
        with."""
        for file in files:
            blocks = []
            for split in file.splits:
                images_NHWC, labels_N = self.images(split)
                for bn, state in states.items():
                    log_probs_NC = self.predict(self.evaluated(state), self.shown(split, images_NHWC))
                    blocks.append(Block(split, bn, log_probs_NC, labels_N.cpu().numpy()))
            write_predictions(self.folder, predictor_id, file.eval_id, blocks, known, file.name)

    def stored_predictions(self) -> Predictions:
        """The predictions in the folder, of the splits whose predictions are kept."""
        settings = self.settings
        eval_ids = {split: settings.shift_eval_ids.get(split, settings.eval_id) for split in settings.kept_splits}
        return predictions.stored_predictions(self.folder, eval_ids, settings.facts.batch_norm)

    def predict(self, net: nn.Module, images_NHWC: DeviceImages | Prepared) -> np.ndarray:
        """Log-probabilities [N, C] of the weights that `net` has."""
        with loop.float32(self.settings.spec.recipe, self.device):
            return evaluation.log_probs(net, images_NHWC, self.preprocess, self.beat)

    def predict_at(self, state: models.State, splits: Iterable[str]) -> dict[str, np.ndarray]:
        """Log-probabilities [N, C] on each split of the network with the weights `state` and new statistics."""
        net = self.evaluated(state)
        self.reestimate(net)
        return {split: self.predict(net, self.shown(split, self.images(split)[0])) for split in splits}

    # Rows

    def finish(self, started: float, seconds: str = "job_seconds") -> Row:
        """How long a job took since `started`, as the column `seconds`, and what it ran on."""
        return {seconds: time.monotonic() - started, "device": describe(self.device), "versions": versions(),
                "finished_at": tables.now()}  # fmt: skip
