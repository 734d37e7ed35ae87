"""What would fail only after training has begun is found before: a network is built and tried on two images.

Tensors: B = 2 images, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from raybasin.errors import UserError
from raybasin.sweep.specs import Architecture, Recipe
from raybasin.training import fitting, frozen, optimizers
from raybasin.training.models import build, explaining, head_names, is_head, key_of, state_of


def check(model: Architecture, n_classes: int, image_size: int, drop_path: float = 0.0) -> nn.Module:
    """The network, after it has been seen to be one: two images give logits [2, n_classes], in evaluation and in
    training, from where gradients reach its weights; these can be averaged and stored; and its head is found.

    The network has been trained on for less than a step: it is good for its layers and shapes.

    Args:
        model: what is built.
        n_classes: the length of its output.
        image_size: side of the images, in pixels.
        drop_path: the rate of stochastic depth in training.

    Raises:
        UserError: that names the key of the sweep file.
    """
    net = build(model, n_classes, seed=0, drop_path=drop_path)
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise UserError(f"{key_of(model)}: {model.name} has no parameters to train")
    parameters = dict(net.named_parameters(remove_duplicate=False))
    for key, value in net.state_dict(keep_vars=True).items():
        if odd := _odd(key, value, key in parameters):
            raise UserError(f"{key_of(model)}: the state of {model.name} holds {key}, which {odd}")
    images_BCHW = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    logits_BC = _evaluate(net, model, n_classes, images_BCHW)
    heads = head_names(net, model)
    if model.factory is not None:
        _check_built_again(net, model, n_classes, images_BCHW, logits_BC)
        more = build(model, n_classes + 1, seed=0).state_dict()
        for key, tensor in net.state_dict().items():
            if not is_head(key, heads) and (key not in more or more[key].shape != tensor.shape):
                raise UserError(
                    f"model.head: the shape of {key} follows the number of classes, but it is not in the head "
                    f"({', '.join(heads)}); name its module in model.head too"
                )
    _check_training(net, model, n_classes, images_BCHW)
    return net


def check_recipe(net: nn.Module, model: Architecture, recipe: Recipe) -> None:
    """Raises UserError where `recipe` cannot train `net`: for its optimizer, layer-wise decay, or what it freezes."""
    optimizers.check(recipe)
    optimizers.check_layers(net, recipe, model.name)
    frozen.check(net, head_names(net, model), recipe.freeze, model.name)


def _odd(key: str, value: object, is_parameter: bool) -> str:
    """Why what a state holds under `key` is not weights; empty where it is."""
    if not isinstance(value, Tensor):
        return "is not a tensor"
    if key.rpartition(".")[2] == "_extra_state":
        return "is an extra state of the module's own (get_extra_state), which cannot be averaged"
    if is_lazy(value):
        return "has no shape until the network sees an image (a lazy layer); give the layer its sizes"
    if is_parameter and value.is_complex():
        return "is complex; weights are averaged, and measured, as real numbers"
    return fitting.odd_kind(value)


@torch.no_grad()
def _evaluate(net: nn.Module, model: Architecture, n_classes: int, images_BCHW: Tensor) -> Tensor:
    """The logits [B, n_classes] in evaluation."""
    types = {parameter.dtype for parameter in net.parameters() if parameter.is_floating_point()} - {torch.float32}
    way_out = "set data.image_size or model.args"
    if types:
        way_out = f"its weights are {', '.join(sorted(map(str, types)))}, and images are torch.float32"
    complaint = f"{key_of(model)}: {model.name} does not take images of {images_BCHW.shape[-1]} px"
    training = net.training
    try:
        with explaining(model, complaint, f"; {way_out}"):
            logits_BC = net.eval()(images_BCHW)
    finally:
        net.train(training)
    return _checked_logits(logits_BC, model, n_classes)


def _checked_logits(logits_BC: object, model: Architecture, n_classes: int, when: str = "") -> Tensor:
    gives = f"{key_of(model)}: {model.name} gives"
    if not isinstance(logits_BC, Tensor):
        raise UserError(f"{gives} a {type(logits_BC).__name__}{when}, not a tensor of logits")
    if tuple(logits_BC.shape) != (2, n_classes):
        raise UserError(
            f"{gives} an output of {fitting.shape(logits_BC)}{when} for 2 images, not 2x{n_classes} (a logit for each "
            f"of the {n_classes} classes; num_classes says how many)"
        )
    if not logits_BC.is_floating_point():
        raise UserError(f"{gives} an output of {logits_BC.dtype}{when}, not real logits")
    return logits_BC


def _check_training(net: nn.Module, model: Architecture, n_classes: int, images_BCHW: Tensor) -> None:
    """One pass forward and back as in training, where a network may do what it does not do in evaluation. What that
    changes in the state is put back."""
    before, training = state_of(net), net.training
    try:
        with (
            explaining(model, f"{key_of(model)}: {model.name} fails in training on two images"),
            torch.random.fork_rng(devices=[]),
            torch.enable_grad(),  # whatever the caller is at
        ):
            torch.manual_seed(0)
            output = net.train()(images_BCHW)
            if not isinstance(output, Tensor) and getattr(net, "aux_logits", None) is True:
                raise UserError(
                    f"{key_of(model)}: {model.name} gives a {type(output).__name__} in training, not a tensor of "
                    "logits; turn its auxiliary classifiers off with model.args: {aux_logits: false}"
                )
            logits_BC = _checked_logits(output, model, n_classes, " in training")
            if logits_BC.requires_grad:
                nn.functional.cross_entropy(logits_BC.float(), torch.arange(2) % n_classes).backward()
    finally:
        net.train(training)
    if all(parameter.grad is None for parameter in net.parameters()):
        raise UserError(
            f"{key_of(model)}: no weight of {model.name} gets a gradient in training; its output may be detached"
        )
    net.zero_grad(set_to_none=True)
    net.load_state_dict(before)


def _check_built_again(
    net: nn.Module, model: Architecture, n_classes: int, images_BCHW: Tensor, logits_BC: Tensor
) -> None:
    """A network built with other random numbers must become the same one with the same state: that is how networks are
    kept, averaged and measured."""
    other, state = build(model, n_classes, seed=1), state_of(net)
    theirs = other.state_dict()
    for key in {**state, **theirs}:
        if key not in state or key not in theirs or state[key].shape != theirs[key].shape:
            raise UserError(f"model.factory: {model.name} is another network each time it is built ({key} differs)")
    with explaining(model, f"model.factory: {model.name} does not load its own state"):
        other.load_state_dict(state)  # a module may load in its own way
    with torch.no_grad():
        again_BC = other.eval()(images_BCHW)
    if not torch.allclose(logits_BC, again_BC, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise UserError(
            f"model.factory: {model.name} gives other logits when it is built again and given the same state; what it "
            "draws at random must be in its state (register_buffer), and evaluation must not be random"
        )
