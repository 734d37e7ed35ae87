"""Arithmetic on weights: points of a straight path, weighted sums, averages, and distances.

Batch-norm statistics that were interpolated or averaged do not fit the activations of the new weights, and the loss
they give says little about those weights: call `batch_norm.reestimate` on the result before anything is evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

StateDict = Mapping[str, torch.Tensor]


def interpolate(start: StateDict, end: StateDict, t: float) -> dict[str, torch.Tensor]:
    """The point (1-t) start + t end, computed and rounded as `weighted_sum` does.

    It is bit-equal to `start` at t = 0 and to `end` at t = 1, but for integers and booleans, which are those of
    `start`.

    Raises:
        ValueError: if the two differ in names, shapes or types; the message names the first few tensors.
    """
    _check_same_tensors(start, end)
    return weighted_sum((start, end), (1.0 - t, t))


def weighted_sum(states: Sequence[StateDict], shares: Sequence[float]) -> dict[str, torch.Tensor]:
    """The sum of share times state, as new tensors, summed in float64 and rounded once to their own type.

    Tensors of integers and booleans (such as `num_batches_tracked`) are copied from the first state. Where one share
    is 1 and the others are 0, that state is copied bit for bit: the sum would lose the sign of -0.0, and 0 * inf is
    NaN.
    """
    used = [(share, state) for share, state in zip(shares, states, strict=True) if share != 0.0]
    copied = used[0][1] if len(used) == 1 and used[0][0] == 1.0 else None

    def summed(name: str) -> torch.Tensor:
        if copied is not None:
            return copied[name].clone()
        terms = [share * exact(state[name]) for share, state in zip(shares, states, strict=True)]
        return sum(terms[1:], start=terms[0]).to(states[0][name].dtype)

    return {name: summed(name) if is_number(tensor) else tensor.clone() for name, tensor in states[0].items()}


def average(states: Iterable[StateDict]) -> dict[str, torch.Tensor]:
    """The mean of one or more states, as new tensors, summed in float64 and rounded once to their own type.

    Only the sum and the first state are held, so that a generator may load the states one by one. Tensors of integers
    and booleans are copied from the first state.

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
    return {name: (total[name] / count).to(x.dtype) if name in total else x.clone() for name, x in first.items()}


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
