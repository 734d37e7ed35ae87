"""Networks and their weights: timm or a function of the user's own builds them, safetensors keeps them.

A state is a dict of CPU tensors by name. Weights are named by the SHA-256 of their safetensors bytes, which are the
same for equal tensors. The head (the classifier, found through timm's API or named by `model.head`) belongs to a task
and not to a checkpoint: every fine-tuning starts with a new one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from raybasin.errors import UserError, is_out_of_memory, nearest, one_line, some
from raybasin.sweep.specs import Architecture

State = dict[str, Tensor]


def find(model: Architecture) -> None:
    """Sees that timm has the model, or imports its factory, for which the current folder is looked into as well.

    Raises UserError.
    """
    if model.factory is None:
        check_name(model.name)
        return
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # at the end: nothing that is installed is hidden
    _imported(model.factory)


def check_name(name: str) -> None:
    """Raises UserError for a model, or a tag of its weights, that timm does not have."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        if (Path(name).expanduser() / "config.json").is_file():
            raise UserError(f"model: {name} is a folder; as timm's weights it is called local-dir:{name}")
        raise UserError(f"model.name: timm has no model '{name}'{nearest(architecture, timm.list_models())}")
    known = timm.list_pretrained(f"{architecture}.*")
    if tag and name not in known:
        raise UserError(f"model: timm has no weights '{name}'; known are {', '.join(known) or 'none'}")


def key_of(model: Architecture) -> str:
    """The key of the sweep file that is at fault where a network is."""
    return "model.factory" if model.factory else "model.name"


def build(model: Architecture, n_classes: int, seed: int, drop_path: float = 0.0) -> nn.Module:
    """A network with random weights, the same for the same seed, on the CPU.

    Args:
        model: timm's or a factory of the user's own.
        n_classes: the length of its output.
        seed: of the weights; the global generator is left as it was.
        drop_path: the rate of stochastic depth in training, in [0, 1); for timm's models only.

    Raises:
        UserError: if it has no stochastic depth or cannot be built; `model_checks` finds beforehand what else may fail.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model.factory is not None:
            if drop_path:
                raise UserError("recipe.drop_path: is for timm's models; give the rate to the factory in model.args")
            return _made_by_factory(model, model.factory, n_classes)
        args = {**model.args, "drop_path_rate": drop_path} if drop_path else model.args
        try:
            return timm.create_model(model.name, pretrained=False, num_classes=n_classes, **args)
        except Exception as error:  # whatever a model's code makes of arguments that it was not written for
            _check_memory(error, model)
            if drop_path and "drop_path_rate" in str(error):
                raise UserError(
                    f"recipe.drop_path: timm's {model.name} has no stochastic depth; leave it out"
                ) from error
            if not model.args:
                raise
            raise UserError(f"model.args: timm cannot build {model.name} so ({said(error)})") from error


def _made_by_factory(model: Architecture, factory: str, n_classes: int) -> nn.Module:
    """What the user's function returns. Its images come in plain memory order, in which `view` works."""
    function = _imported(factory)
    call = f"model.factory: {factory}(num_classes={n_classes}{''.join(f', {k}={v!r}' for k, v in model.args.items())})"
    with explaining(model, f"{call} fails"):
        net = function(num_classes=n_classes, **model.args)
    if not isinstance(net, nn.Module):
        raise UserError(f"{call} returns a {type(net).__name__}, not a torch.nn.Module")
    if isinstance(net, torch.jit.ScriptModule):
        raise UserError(f"{call} returns a TorchScript module; return what it was made from")
    net.register_forward_pre_hook(lambda module, images: tuple(x.contiguous() for x in images))
    return net


@functools.cache
def _imported(factory: str) -> Callable[..., Any]:
    name, _, path = factory.partition(":")
    try:
        found = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # it runs the user's module
        if is_out_of_memory(error):
            raise
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        is_itself = bool(absent) and f"{name}.".startswith(f"{absent}.")  # and not what it imports
        hint = "; it must lie in the current folder or be installed" if is_itself else ""
        raise UserError(f"model.factory: {name} cannot be imported ({said(error)}){hint}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_")]
            raise UserError(f"model.factory: {name} has no '{path}'{nearest(part, public)}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"model.factory: {factory} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


@contextlib.contextmanager
def explaining(model: Architecture, complaint: str, way_out: str = "") -> Iterator[None]:
    """Makes one UserError of whatever the code of a network raises: the complaint, and its error in brackets."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # it is code that has not been run before, perhaps of the user's own
        _check_memory(error, model)
        raise UserError(f"{complaint} ({said(error)}){way_out}") from error


def said(error: BaseException) -> str:
    """An error's type and text in a line."""
    return one_line(f"{type(error).__name__}: {error}", 300)


def _check_memory(error: BaseException, model: Architecture) -> None:
    """What is at fault where memory runs out is not what was being looked at."""
    if is_out_of_memory(error):
        raise UserError(
            f"{key_of(model)}: there is not enough memory to try {model.name} on two images, which is done on the "
            f"processor before anything is trained ({said(error)[:120]})"
        ) from error


def head_names(net: nn.Module, model: Architecture) -> tuple[str, ...]:
    """The names of the modules that make up the head: as `model.head` says, else as timm's API knows them
    (`pretrained_cfg["classifier"]`, `get_classifier()`). Raises UserError where that does not tell."""
    modules = dict(net.named_modules())
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    candidates = f"; its Linear layers are {some(linear)}" if linear else "; it has no Linear layer"
    names = model.head or _classifiers(net)
    if not names:
        raise UserError(f"model.head: {model.name} does not say which module is its head; name it{candidates}")
    if names != model.head and model.factory is None:
        return tuple(names)  # as timm has it
    for name in names:
        if not name or name not in modules:
            raise UserError(f"model.head: {model.name} has no module '{name}'{candidates}")
        if not modules[name].state_dict():
            raise UserError(f"model.head: '{name}' of {model.name} has no weights{candidates}")
    return tuple(names)


def _classifiers(net: nn.Module) -> tuple[str, ...]:
    config = getattr(net, "pretrained_cfg", None)
    classifier = config.get("classifier") if isinstance(config, Mapping) else None
    if classifier:
        return (classifier,) if isinstance(classifier, str) else tuple(classifier)
    if not callable(getattr(net, "get_classifier", None)):
        return ()
    wanted = net.get_classifier()  # type: ignore[operator]
    wanted = wanted if isinstance(wanted, tuple | list) else (wanted,)
    return tuple(name for name, module in net.named_modules() if any(module is one for one in wanted))


def is_head(key: str, heads: Sequence[str]) -> bool:
    """Whether an entry of a state belongs to one of the modules called `heads`."""
    return any(key.startswith(f"{head}.") for head in heads)


def placed(net: nn.Module, model: Architecture, device: torch.device) -> nn.Module:
    """Convolutions run fastest in channels-last order, on GPUs and on CPUs. Code of the user's own may not run at all
    in it (`view` does not), so it gets plain order."""
    order = torch.channels_last if model.factory is None else torch.preserve_format
    return net.to(device, memory_format=order)  # type: ignore[call-overload,no-any-return]


def with_new_head(model: Architecture, weights: State, n_classes: int, seed: int, drop_path: float = 0.0) -> nn.Module:
    """A network with the body of `weights` (their head does not matter) and a random head, the same for the same
    seed; otherwise as `build`."""
    net = build(model, n_classes, seed, drop_path)
    heads = head_names(net, model)
    own = {key: tensor for key, tensor in net.state_dict().items() if is_head(key, heads)}
    net.load_state_dict({**own, **without_head(weights, heads)})
    return net


def without_head(weights: State, heads: Sequence[str]) -> State:
    """What of `weights` is not in one of the modules called `heads`."""
    return {key: tensor for key, tensor in weights.items() if not is_head(key, heads)}


def state_of(net: nn.Module) -> State:
    """A copy of the network's whole state on the CPU, in plain memory order."""
    return {
        key: tensor.detach().to("cpu", copy=True).contiguous(memory_format=torch.contiguous_format)
        for key, tensor in net.state_dict().items()
    }


def by_prefix(state: Mapping[str, Tensor]) -> dict[str, State]:
    """A state of several owners, whose names begin with the owner's and a dot, as a state for each owner."""
    parts: dict[str, State] = {}
    for key, tensor in state.items():
        owner, _, name = key.partition(".")
        parts.setdefault(owner, {})[name] = tensor
    return parts


def to_bytes(state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The state as safetensors. Without metadata, equal tensors give equal bytes."""
    return safetensors.torch.save(dict(state), metadata=dict(metadata) if metadata else None)


def from_bytes(content: bytes) -> State:
    """Reads what `to_bytes` made."""
    return safetensors.torch.load(content)


def sha256(content: bytes) -> str:
    """Hexadecimal."""
    return hashlib.sha256(content).hexdigest()
