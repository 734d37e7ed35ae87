"""The optimizer of a recipe: PyTorch's SGD and AdamW, or any of timm's whose state a snapshot can hold to the bit."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from timm.optim import (  # type: ignore[attr-defined]
    create_optimizer_v2,
    get_optimizer_class,
    get_optimizer_info,
    list_optimizers,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from torch import Tensor, nn

from raybasin.errors import UserError, nearest
from raybasin.sweep.specs import Recipe
from raybasin.training import cuda_graphs, models

OWN = ("sgd", "adamw")
"""PyTorch's, with keys of their own in a recipe. A recorded step may hold their whole part."""
LOOKAHEAD = "lookahead_"
"""What timm takes before a name: the mean of slow and fast weights every few steps."""
REFUSED = {
    "Kron": "its preconditioner is updated at random, from a generator that no snapshot holds",
    "Adahessian": "it needs second derivatives, which the steps of training do not compute",
}
"""Classes of timm's whose training could not go on to the bit, or not at all."""
NOT_OPTIONS = {
    "params", "lr", "weight_decay", "foreach", "fused", "capturable", "differentiable", "maximize", "momentum_dtype",
}  # fmt: skip
"""Parameters that are given otherwise, or are no matter of a sweep file."""

Groups = Iterable[dict[str, Any]] | Iterable[nn.Parameter]


# What can be had


def check(recipe: Recipe) -> None:
    """Raises UserError for an optimizer that timm does not have or that cannot be used, and for options that are not
    its own. It is tried on a few weights."""
    name = recipe.optimizer
    base = name if name in OWN else name.removeprefix(LOOKAHEAD)
    names = [str(one) for one in list_optimizers()]
    if base not in names:
        raise UserError(f"recipe.optimizer: timm has no optimizer '{name}'{nearest(base, names)}")
    info = get_optimizer_info(base)
    if isinstance(info.opt_class, str):
        package = info.opt_class.partition(".")[0]
        raise UserError(
            f"recipe.optimizer: {name} is of the package {package}, whose state no snapshot holds to the bit; take one "
            "of timm's or PyTorch's own"
        )
    why = REFUSED.get(info.opt_class.__name__) or (REFUSED["Adahessian"] if info.second_order else None)
    if why:
        raise UserError(f"recipe.optimizer: {name} cannot be used; {why}")
    known = _options(name, base)
    for key in recipe.optimizer_args:
        if key not in known:
            raise UserError(f"recipe.optimizer_args: {name} takes no '{key}'; it takes {', '.join(sorted(known))}")
    for value in _values(_tried(recipe)):
        if not isinstance(value, Tensor | bool | int | float):
            kind = type(value).__name__
            raise UserError(f"recipe.optimizer: {name} cannot be used; it keeps a {kind}, which no snapshot holds")


def _options(name: str, base: str) -> set[str]:
    """What `optimizer_args` may hold. timm drops `eps` and `betas` without a word where an optimizer has none."""
    info = get_optimizer_info(base)
    known = set(inspect.signature(get_optimizer_class(base, bind_defaults=False)).parameters) - NOT_OPTIONS
    known -= ({"eps"} if not info.has_eps else set()) | ({"betas"} if not info.has_betas else set())
    return known - ({"momentum", "nesterov", "betas", "eps"} if name in OWN else set())


def copies(recipe: Recipe) -> int:
    """How many numbers its state has for each weight, rounded up."""
    optimizer = _tried(recipe)
    weights = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    kept = sum(value.numel() for value in _values(optimizer) if isinstance(value, Tensor) and value.ndim)
    return max(1, math.ceil(kept / weights))


def _tried(recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of a few weights, after one step. Raises UserError where that does not work."""
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    try:
        optimizer = make(net, recipe.model_copy(update={"layer_decay": None}), recipe.lr)
        optimizer.step()
    except Exception as error:  # whatever its code makes of values that it was not written for
        if not recipe.optimizer_args:
            raise
        raise UserError(f"recipe.optimizer_args: {recipe.optimizer} fails with them ({models.said(error)})") from error
    return optimizer


def _values(optimizer: torch.optim.Optimizer) -> list[Any]:
    states = optimizer.state_dict()["state"].values()
    return [value for state in states for value in state.values() if value is not None]


# Making one


def make(net: nn.Module, recipe: Recipe, max_lr: float, frozen: Collection[str] = ()) -> torch.optim.Optimizer:
    """A fresh optimizer of the parameters that are not `frozen`, which ask for no gradient. `max_lr` is what timm's
    variants that correct weight decay divide the rate by; the rates themselves are set at each step."""
    groups = _groups(net, recipe, frozen)
    args: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in recipe.optimizer_args.items()
    }
    if recipe.optimizer not in OWN:
        args |= {"lr": max_lr, "weight_decay": recipe.weight_decay}
        return create_optimizer_v2(groups, opt=recipe.optimizer, **args)
    fused = cuda_graphs.fusible(net.parameters())  # one kernel, which reads the rate where it lies
    lr = torch.tensor(max_lr, device=next(net.parameters()).device) if fused else max_lr
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "adamw":
        optimizer = torch.optim.AdamW(
            groups, lr=lr, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay,
            fused=fused or None, capturable=fused, **args,
        )  # fmt: skip
    else:
        optimizer = torch.optim.SGD(
            groups, lr=lr, momentum=recipe.momentum, nesterov=recipe.nesterov, weight_decay=recipe.weight_decay,
            fused=fused or None, **args,
        )  # fmt: skip
    for group in optimizer.param_groups:  # one tensor for all groups would have the rate of the last
        if isinstance(group["lr"], Tensor):
            group["lr"] = group["lr"].clone()
    return optimizer


def _groups(net: nn.Module, recipe: Recipe, frozen: Collection[str]) -> Groups:
    """The parameters, in groups that differ in weight decay or in rate (`lr_scale`), as timm makes them. With
    `decay: matrices` biases, norms and what the network itself names have no decay."""
    if recipe.layer_decay is not None:
        return _layers(net, recipe)
    if recipe.decay == "matrices":
        return param_groups_weight_decay(net, recipe.weight_decay, no_weight_decay_list=_undecayed(net))
    return [parameter for name, parameter in net.named_parameters() if name not in frozen]


def _layers(net: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    matrices = recipe.decay == "matrices"
    return param_groups_layer_decay(
        net, weight_decay=recipe.weight_decay, no_weight_decay_list=_undecayed(net) if matrices else (),
        weight_decay_exclude_1d=matrices, layer_decay=recipe.layer_decay or 1.0,
        min_scale=recipe.layer_decay_min_scale,
    )  # fmt: skip


def _undecayed(net: nn.Module) -> Collection[str]:
    """What the network names itself, such as Swin's position biases."""
    return net.no_weight_decay() if hasattr(net, "no_weight_decay") else ()  # type: ignore[operator]


def check_layers(net: nn.Module, recipe: Recipe, label: str) -> None:
    """Raises UserError where timm cannot tell the layers of `net` apart, so that all would have one rate."""
    if recipe.layer_decay is None:
        return
    said = hasattr(net, "group_matcher") or (getattr(net, "pretrained_cfg", None) or {}).get("classifier")
    scales = {group["lr_scale"] for group in _layers(net, recipe)} if said else set()
    if len(scales) < 2:
        raise UserError(
            f"recipe.layer_decay: {label} does not say how its layers follow each other (group_matcher), so all would "
            "have one rate; leave it out"
        )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the next step, which each group has its share of."""
    for group in optimizer.param_groups:
        own = rate * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], Tensor):  # as a recording reads it
            group["lr"].fill_(own)
        else:
            group["lr"] = own


# Its state


def tensors(optimizer: torch.optim.Optimizer) -> models.State:
    """All that changes with its steps, copied. Numbers of Python's are kept as 64-bit tensors of their own kind."""
    found = {}
    tree = optimizer.state_dict()
    for index, state in tree["state"].items():
        for name, value in state.items():
            if value is not None:
                owner = "optimizer" if isinstance(value, Tensor) else "optimizer_value"
                found[f"{owner}.{index}.{name}"] = kept(value)
    for index, group in enumerate(tree["param_groups"]):
        for name in _counters(group):
            found[f"optimizer_group.{index}.{name}"] = kept(group[name])
    return found


def _counters(group: Mapping[str, Any]) -> list[str]:
    """What groups themselves count: steps, as timm's LAMB and Adan do, and those of Lookahead."""
    return [name for name in ("step", "lookahead_step") if name in group]


def kept(value: Any) -> Tensor:
    """A copy that a snapshot may hold."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    kind = torch.bool if isinstance(value, bool) else torch.int64 if isinstance(value, int) else torch.float64
    return torch.tensor(value, dtype=kind)


def restore(optimizer: torch.optim.Optimizer, parts: Mapping[str, models.State]) -> None:
    """Goes on from what `tensors` gave in an earlier process, by its owner."""
    states: dict[int, dict[str, Any]] = {}
    for place, own in models.by_prefix(parts.get("optimizer", {})).items():
        states.setdefault(int(place), {}).update(own)
    for place, own in models.by_prefix(parts.get("optimizer_value", {})).items():
        states.setdefault(int(place), {}).update({name: tensor.item() for name, tensor in own.items()})
    tree = optimizer.state_dict()
    for place, own in models.by_prefix(parts.get("optimizer_group", {})).items():
        for name, tensor in own.items():
            tree["param_groups"][int(place)][name] = tensor.item() if tensor.dtype == torch.int64 else tensor
    optimizer.load_state_dict({**tree, "state": states})
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    held = getattr(optimizer, "_base_optimizer", optimizer).state  # Lookahead keeps nothing itself
    for index, state in states.items():
        parameter = ordered[index]
        for name, value in held[parameter].items():
            if isinstance(value, Tensor):
                held[parameter][name] = _placed(value, state[name].dtype, parameter)


def _placed(value: Tensor, dtype: torch.dtype, parameter: nn.Parameter) -> Tensor:
    """In the type in which it was kept, which torch makes that of the parameter, and in the parameter's order in
    memory, as fused optimizers want it."""
    if value.shape != parameter.shape:
        return value.to(dtype)
    return torch.empty_like(parameter, dtype=dtype, requires_grad=False).copy_(value)
