"""Predictions of a network: log-probabilities on fixed images, in float32.

Tensors: N examples, C classes, B batch. Images are uint8 [N, H, W, 3] on the network's device, or read from where they
are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from raybasin.data.decoding import DeviceImages
from raybasin.sweep import schedules
from raybasin.sweep.facts import Preprocess
from raybasin.training import augment

BATCH = 256


@dataclass(frozen=True, eq=False)
class Prepared:
    """Images as `batches` gives them, kept for further passes."""

    batches: tuple[Tensor, ...]

    def __len__(self) -> int:
        return sum(map(len, self.batches))


def prepare(images_NHWC: DeviceImages, preprocess: Preprocess) -> Prepared:
    """All images as the network sees them: 4 bytes for each of its pixels and channels."""
    return Prepared(tuple(batches(images_NHWC, preprocess)))


def batches(
    images_NHWC: DeviceImages | Prepared,
    preprocess: Preprocess,
    beat: Callable[[int], None] = lambda images: None,
) -> Iterator[Tensor]:
    """The images as the network sees them in evaluation, in their order, about 256 at a time; `beat` is called after
    each batch with the number of its images."""
    if isinstance(images_NHWC, Prepared):
        for images_BCHW in images_NHWC.batches:
            yield images_BCHW
            beat(len(images_BCHW))
        return
    for positions in schedules.batches(len(images_NHWC), BATCH):
        images_BCHW = augment.evaluation_batch(images_NHWC[positions], preprocess)
        yield images_BCHW.contiguous(memory_format=torch.channels_last)
        beat(len(images_BCHW))


@torch.inference_mode()
def log_probs(
    net: nn.Module,
    images_NHWC: DeviceImages | Prepared,
    preprocess: Preprocess,
    beat: Callable[[int], None] = lambda images: None,
) -> np.ndarray:
    """Natural-log probabilities [N, C], float32: `log_softmax` of the network in evaluation mode.

    Args:
        net: on the device of the images; it is left in evaluation mode.
        images_NHWC: uint8 [N, H, W, 3], or `Prepared` by this very `preprocess`.
        preprocess: how images are shown to the network.
        beat: is called after each batch with the number of its images.
    """
    net.eval()
    parts = [torch.log_softmax(net(images_BCHW).float(), 1) for images_BCHW in batches(images_NHWC, preprocess, beat)]
    return torch.cat(parts).cpu().numpy()


def bn_indices(n_train: int, bn_images: int, seed: int) -> np.ndarray:
    """Which of `n_train` training images batch norm is re-estimated on: `bn_images` of them at random, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(n_train)[:bn_images])
