"""Batch-norm re-estimation: running statistics that fit weights which were not trained but computed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def layers(net: nn.Module) -> list[_BatchNorm]:
    """The net's batch-norm layers, of any kind, that keep running statistics."""
    return [layer for layer in net.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]


def reestimate(net: nn.Module, batches: Iterable[torch.Tensor]) -> int:
    """Replace the batch-norm statistics of `net` by their means over the images in `batches`.

    Each image has the same weight, whatever the size of its batch (torch's `swa_utils.update_bn` gives each batch the
    same). The variance is the mean of the variances within batches, as in training. Only batch norm runs in training
    mode: dropout and the like stay off. The net is left in eval mode with its momenta as they were, even after an
    error, which leaves the statistics unfinished.

    Args:
        net: changed in place, unless it has no batch norm.
        batches: inputs [images, ...] on the net's device. Batch norm needs two values per channel, so a last batch of
            one image may be too small.

    Returns:
        The number of images; 0, with the batches untouched, for a net without batch norm.

    Raises:
        ValueError: if there are no batches, for a net with batch norm.
    """
    net.eval()
    norms = layers(net)
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    images = 0
    try:
        for norm in norms:
            # The first batch gets all the weight, but an old statistic that is NaN would stay: 0 * NaN.
            norm.reset_running_stats()
            # Not norm.train(), which would reach dropout inside a norm layer too (timm's BatchNormAct2d).
            norm.training = True
        with torch.no_grad():
            for batch in batches:
                images += len(batch)
                for norm in norms:
                    norm.momentum = len(batch) / images
                net(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        net.eval()
    if images == 0:
        raise ValueError("batch-norm statistics cannot be estimated from no batches")
    return images
