"""Weight space: points on a straight path, averages, distances, and batch-norm statistics for new weights.

Batch-norm statistics that were interpolated or averaged do not fit the activations of the new weights, and
the loss they give says little about those weights: call `reestimate_batch_norm` after `interpolate` and
`average`, before anything is evaluated.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

StateDict = Mapping[str, torch.Tensor]


def interpolate(start: StateDict, end: StateDict, t: float) -> dict[str, torch.Tensor]:
    """The point (1-t) start + t end, as new tensors, computed in float64 and rounded once to their own type.

    Floating tensors, complex ones among them, are bit-equal to `start` at t = 0 and to `end` at t = 1. All others
    (such as `num_batches_tracked`) are copied from `start`.

    Raises:
        ValueError: if the two differ in names, shapes or types; the message names the first few tensors.
    """
    _check_same_tensors(start, end)
    return {name: _lerp(tensor, end[name], t) for name, tensor in start.items()}


def average(states: Iterable[StateDict]) -> dict[str, torch.Tensor]:
    """The mean of one or more states, as new tensors, summed in float64 and rounded once to their own type.

    Only the sum and the first state are held, so that a generator may load the states one by one. Tensors
    of integers and booleans are copied from the first state.

    Raises:
        ValueError: if there is no state, or if they differ in names, shapes or types.
    """
    remaining = iter(states)
    first = next(remaining, None)
    if first is None:
        raise ValueError("the average of no states is not defined")
    total = {name: exact(x).clone() for name, x in first.items() if is_number(x)}
    count = 1
    for state in remaining:
        _check_same_tensors(first, state)
        for name in total:
            total[name] += state[name]
        count += 1
    return {
        name: (total[name] / count).to(tensor.dtype) if name in total else tensor.clone()
        for name, tensor in first.items()
    }


def l2_distance(a: StateDict, b: StateDict, names: Iterable[str]) -> float:
    """Euclidean distance between two states over the tensors called `names`, in float64.

    Pass the names of the parameters: batch-norm statistics are on the scale of activations, not of weights.

    Raises:
        ValueError: if a name is missing from a state, or the two tensors differ in shape or type.
    """
    names = list(names)
    _check_same_tensors(a, b, names)
    return math.hypot(*(torch.dist(exact(a[name]), exact(b[name])).item() for name in names))


def is_number(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds real or complex numbers, which have a mean; the mean of counters and masks is none."""
    return tensor.is_floating_point() or tensor.is_complex()


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """The same in float64, or in complex128 where it is complex."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def batch_norm_layers(net: nn.Module) -> list[_BatchNorm]:
    """The net's batch-norm layers, of any kind, that keep running statistics."""
    return [layer for layer in net.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]


def reestimate_batch_norm(net: nn.Module, batches: Iterable[torch.Tensor]) -> int:
    """Replace the batch-norm statistics of `net` by their means over the images in `batches`.

    Each image has the same weight, whatever the size of its batch (torch's `swa_utils.update_bn` gives each
    batch the same). The variance is the mean of the variances within batches, as in training. Only batch norm
    runs in training mode: dropout and the like stay off. The net is left in eval mode with its momenta as
    they were, even after an error, which leaves the statistics unfinished.

    Args:
        net: changed in place, unless it has no batch norm.
        batches: inputs [images, ...] on the net's device. Batch norm needs two values per channel, so a last
            batch of one image may be too small.

    Returns:
        The number of images; 0, with the batches untouched, for a net without batch norm.

    Raises:
        ValueError: if there are no batches, for a net with batch norm.
    """
    net.eval()
    layers = batch_norm_layers(net)
    if not layers:
        return 0
    momenta = [layer.momentum for layer in layers]
    images = 0
    try:
        for layer in layers:
            # The first batch gets all the weight, but an old statistic that is NaN would stay: 0 * NaN.
            layer.reset_running_stats()
            # Not layer.train(), which would reach dropout inside a norm layer too (timm's BatchNormAct2d).
            layer.training = True
        with torch.no_grad():
            for batch in batches:
                images += len(batch)
                for layer in layers:
                    layer.momentum = len(batch) / images
                net(batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        net.eval()
    if images == 0:
        raise ValueError("batch-norm statistics cannot be estimated from no batches")
    return images


def _lerp(start: torch.Tensor, end: torch.Tensor, t: float) -> torch.Tensor:
    # The formula itself is not exact at the ends: it loses the sign of -0.0, and 0 * inf is NaN.
    if t == 0.0 or not is_number(start):
        return start.clone()
    if t == 1.0:
        return end.clone()
    return ((1.0 - t) * exact(start) + t * exact(end)).to(start.dtype)


def _check_same_tensors(a: StateDict, b: StateDict, names: Iterable[str] | None = None) -> None:
    """Raise ValueError unless the tensors of these names (default: all) have equal shapes and types."""
    differing = [
        f"{name} is {_kind(a.get(name))} and {_kind(b.get(name))}"
        for name in ({**a, **b} if names is None else names)
        if name not in a or name not in b or _kind(a[name]) != _kind(b[name])
    ]
    if differing:
        raise ValueError(f"states differ in {len(differing)} tensor(s): {'; '.join(differing[:3])}")


def _kind(tensor: torch.Tensor | None) -> str:
    return "absent" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
