"""Networks and their weights: timm or a function of the user's own builds them, safetensors keeps them.

A state is a dict of CPU tensors by name. Weights are named by the SHA-256 of their safetensors bytes, which are the
same for equal tensors. The head (the classifier, found through timm's API or named by `model.head`) belongs to a task
and not to a checkpoint: every fine-tuning starts with a new one.

Tensors: B batch, C classes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from huggingface_hub import constants as hub
from timm.models import PretrainedCfg
from torch import Tensor, nn

from raybasin import downloads
from raybasin.errors import UserError, nearest, some
from raybasin.specs import Architecture

State = dict[str, Tensor]
FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
DOWNLOAD_SECONDS = 10.0


@dataclass(frozen=True)
class Shown:
    """How a model was shown images when it was pre-trained."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    eval_crop: float
    interpolation: str


def check_name(name: str) -> None:
    """Raises UserError for a model that timm does not have."""
    if not timm.is_model(name.split(".")[0]):
        raise UserError(f"model.name: timm has no model '{name}'{nearest(name.split('.')[0], timm.list_models())}")
    _, _, tag = name.partition(".")
    known = timm.list_pretrained(name.split(".")[0] + ".*")
    if tag and name not in known:
        raise UserError(f"model: timm has no weights '{name}'; known are {', '.join(known) or 'none'}")


def build(model: Architecture, n_classes: int, seed: int, drop_path: float = 0.0) -> nn.Module:
    """A network with random weights, the same for the same seed, on the CPU.

    `drop_path` is the rate of stochastic depth in training. Raises UserError for a network that has none or cannot be
    built; see `check` for what is found beforehand.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model.factory is None:
            return _made_by_timm(model, n_classes, drop_path)
        if drop_path:
            raise UserError("recipe.drop_path: is for timm's models; give the rate to the factory in model.args")
        return _made_by_factory(model, n_classes)


def _made_by_timm(model: Architecture, n_classes: int, drop_path: float) -> nn.Module:
    depth = {"drop_path_rate": drop_path} if drop_path else {}
    try:
        return timm.create_model(model.name, pretrained=False, num_classes=n_classes, **{**model.args, **depth})
    except Exception as error:  # whatever a model's code makes of arguments that it was not written for
        if drop_path and "drop_path_rate" in str(error):
            raise UserError(f"recipe.drop_path: timm's {model.name} has no stochastic depth; leave it out") from error
        if not model.args:
            raise
        raise UserError(f"model.args: timm cannot build {model.name} so ({_said(error)})") from error


def _made_by_factory(model: Architecture, n_classes: int) -> nn.Module:
    """What the user's function returns. Its images come in plain memory order, in which `view` works."""
    assert model.factory is not None
    function = _imported(model.factory)
    call = f"{model.factory}(num_classes={n_classes}{''.join(f', {k}={v!r}' for k, v in model.args.items())})"
    try:
        net = function(num_classes=n_classes, **model.args)
    except Exception as error:  # it is code of the user's own
        raise UserError(f"model.factory: {call} fails ({_said(error)})") from error
    if not isinstance(net, nn.Module):
        raise UserError(f"model.factory: {call} returns a {type(net).__name__}, not a torch.nn.Module")
    net.register_forward_pre_hook(_in_plain_order)
    return net


def _in_plain_order(module: nn.Module, images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous() for x in images)


@functools.cache
def _imported(factory: str) -> Callable[..., Any]:
    name, _, path = factory.partition(":")
    try:
        found = importlib.import_module(name)
    except Exception as error:  # it runs the user's module
        hint = "" if _is_found(error, name) else "; it must lie in the current folder or be installed"
        raise UserError(f"model.factory: {name} cannot be imported ({_said(error)}){hint}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UserError(f"model.factory: {name} has no '{path}'{nearest(part, _public(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"model.factory: {factory} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def _is_found(error: Exception, name: str) -> bool:
    """Whether the module itself was found, and what it imports or does is at fault."""
    return not (isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."))


def _public(found: object) -> list[str]:
    return [name for name in dir(found) if not name.startswith("_")]


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


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


def check(model: Architecture, n_classes: int, image_size: int, drop_path: float = 0.0) -> nn.Module:
    """The network, after it has been seen to be one: two images of `image_size` pixels give logits [2, n_classes], it
    has weights, and its head is found. Raises UserError that names the key."""
    net = build(model, n_classes, seed=0, drop_path=drop_path)
    _check_weights(net, model)
    _check_output(net, model, n_classes, image_size)
    heads = head_names(net, model)
    if model.factory is not None:
        _check_head_follows_classes(net, model, n_classes, heads)
    return net


def _check_weights(net: nn.Module, model: Architecture) -> None:
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise UserError(f"{_key(model)}: {model.name} has no parameters to train")
    odd = next((key for key, value in net.state_dict().items() if not isinstance(value, Tensor)), None)
    if odd:
        raise UserError(f"{_key(model)}: the state of {model.name} holds {odd}, which is not a tensor")


@torch.no_grad()
def _check_output(net: nn.Module, model: Architecture, n_classes: int, image_size: int) -> None:
    training = net.training
    try:
        logits_BC = net.eval()(torch.zeros(2, 3, image_size, image_size))
    except Exception as error:  # any layer's way of saying that this is not its size
        raise UserError(
            f"{_key(model)}: {model.name} does not take images of {image_size} px ({_said(error)}); "
            "set data.image_size or model.args"
        ) from error
    finally:
        net.train(training)
    if not isinstance(logits_BC, Tensor):
        raise UserError(f"{_key(model)}: {model.name} gives a {type(logits_BC).__name__}, not a tensor of logits")
    if tuple(logits_BC.shape) != (2, n_classes):
        raise UserError(
            f"{_key(model)}: {model.name} gives an output of {_shape(logits_BC)} for 2 images, not 2x{n_classes} "
            f"(a logit for each of the {n_classes} classes; num_classes says how many)"
        )


def _check_head_follows_classes(net: nn.Module, model: Architecture, n_classes: int, heads: Sequence[str]) -> None:
    """What has another shape for another number of classes must be in the head."""
    other = build(model, n_classes + 1, seed=0).state_dict()
    for key, tensor in net.state_dict().items():
        if not _is_head(key, heads) and (key not in other or other[key].shape != tensor.shape):
            raise UserError(
                f"model.head: the shape of {key} follows the number of classes, but it is not in the head "
                f"({', '.join(heads)}); name its module in model.head too"
            )


def _key(model: Architecture) -> str:
    return "model.factory" if model.factory else "model.name"


def shown(model: Architecture, entries: Sequence[str], pixels_matter: bool = True) -> Shown:
    """The settings of the pre-trained weights among `entries` (timm tags), else of the model itself; of a factory's,
    of which nothing is known, timm's defaults: ImageNet's mean and deviation, crop 0.875, bicubic.

    Raises UserError where the weights disagree on how pixels are normalised and `pixels_matter`.
    """
    if model.factory is not None:
        return _of_config(PretrainedCfg())
    tags = [entry for entry in entries if not is_file(entry)]
    found = {entry: _shown(entry) for entry in tags} or {model.name: _shown(model.name)}
    first = next(iter(found.values()))
    for entry, other in found.items():
        if pixels_matter and (other.mean, other.std) != (first.mean, first.std):
            raise UserError(
                f"model.pretrained: {entry} and {tags[0]} were trained with different normalisations; "
                "set data.normalise {mean, std}, or sweep them apart"
            )
    return first


def _shown(name: str) -> Shown:
    check_name(name)
    return _of_config(timm.get_pretrained_cfg(name) or PretrainedCfg())


def _of_config(config: PretrainedCfg) -> Shown:
    mean, std = (tuple(float(v) for v in values) for values in (config.mean, config.std))
    interpolation = config.interpolation if config.interpolation in ("bilinear", "bicubic") else "bicubic"
    return Shown(mean, std, float(config.crop_pct), interpolation)  # type: ignore[arg-type]


# Heads


def head_names(net: nn.Module, model: Architecture) -> tuple[str, ...]:
    """The names of the modules that make up the head: as `model.head` says, else as timm's API knows them
    (`pretrained_cfg["classifier"]`, `get_classifier()`). Raises UserError where that does not tell."""
    modules = dict(net.named_modules())
    names = model.head or _classifiers(net)
    if not names:
        raise UserError(f"model.head: {model.name} does not say which module is its head; name it{_linear(modules)}")
    if names != model.head and model.factory is None:
        return tuple(names)  # as timm has it
    for name in names:
        if not name or name not in modules:
            raise UserError(f"model.head: {model.name} has no module '{name}'{_linear(modules)}")
        if not modules[name].state_dict():
            raise UserError(f"model.head: '{name}' of {model.name} has no weights{_linear(modules)}")
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


def _linear(modules: Mapping[str, nn.Module]) -> str:
    """The end of a message: what a head could be."""
    found = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    return f"; its Linear layers are {some(found)}" if found else "; it has no Linear layer"


def _is_head(key: str, heads: Sequence[str]) -> bool:
    return any(key.startswith(f"{head}.") for head in heads)


# Checkpoints


def is_file(entry: str) -> bool:
    """Whether an entry of `model.pretrained` is a file rather than a timm tag."""
    return entry.endswith(FILE_SUFFIXES) or "/" in entry or Path(entry).is_file()


def files_in(entry: str) -> list[str]:
    """An entry of `model.pretrained` as the entries that it stands for: a folder as its safetensors files in the order
    of their names, anything else as itself. A timm model's name is no folder. Raises UserError for an empty folder."""
    folder = Path(entry).expanduser()
    if not folder.is_dir() or ("/" not in entry and timm.is_model(entry.split(".")[0])):
        return [entry]
    found = sorted(path.name for path in folder.glob("*.safetensors") if not path.name.startswith("."))
    if not found:
        raise UserError(f"checkpoint {entry}: the folder holds no .safetensors file")
    return [f"{entry.rstrip('/')}/{name}" for name in found]


def read_checkpoint(entry: str, model: Architecture) -> State:
    """The body (all but the head) of the weights at `entry`, a timm tag or a file, checked against `model`.

    Files are safetensors, or PyTorch files read with weights_only; a state dict may stand under `state_dict` or
    `model`. Raises UserError.
    """
    state = _from_file(entry) if is_file(entry) else _from_timm(entry, model)
    return _fitting_body(state, model, entry)


def _from_file(entry: str) -> State:
    path = Path(entry).expanduser()
    if not path.is_file():
        raise UserError(f"checkpoint {entry}: no such file; name one with --checkpoint FILE or in model.pretrained")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make the readers raise nearly anything
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise UserError(
            f"checkpoint {entry}: cannot be read as safetensors or as plain PyTorch weights ({reason})"
        ) from error
    return _unwrapped(loaded, entry)


def _unwrapped(loaded: object, entry: str) -> State:
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise UserError(f"checkpoint {entry}: holds no state dict (a mapping of names to tensors)")
    return {str(name).removeprefix("module."): tensor for name, tensor in loaded.items()}


def _from_timm(tag: str, model: Architecture) -> State:
    if model.factory is not None:
        raise UserError(f"model.pretrained: {tag} is no file; model.factory takes files, folders and pretrain entries")
    check_name(tag)
    if tag.split(".")[0] != model.name.split(".")[0]:
        raise UserError(f"model.pretrained: {tag} is another architecture than model.name {model.name}")
    config = timm.get_pretrained_cfg(tag)
    if config is None or not config.has_weights:
        raise UserError(
            f"model.pretrained: timm has no weights for {tag}; name a tag such as resnet50.tv_in1k or a file"
        )
    try:
        with downloads.socket_timeout(DOWNLOAD_SECONDS), _offline_without_network():
            return timm.create_model(tag, pretrained=True, **model.args).state_dict()
    except Exception as error:  # what a download can raise is up to three libraries; the cause is named
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"model.pretrained: the weights of {tag} cannot be had ({type(error).__name__}: {reason})\n"
            "Without a network, name a file with --checkpoint FILE; `make demo` needs neither."
        ) from error


@contextlib.contextmanager
def _offline_without_network() -> Iterator[None]:
    """Without a network the hub's client looks into its cache at once, as its HF_HUB_OFFLINE makes it do; by itself it
    would ask again and again for a minute."""
    before = hub.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = before or downloads.unreachable(hub.ENDPOINT) is not None
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = before


def _fitting_body(state: State, model: Architecture, entry: str) -> State:
    net = _without_weights(model)
    expected, heads = net.state_dict(), head_names(net, model)
    wanted = {key: tensor for key, tensor in expected.items() if not _is_head(key, heads)}
    wrong = [
        f"{key} is {_shape(state[key]) if key in state else 'missing'}, not {_shape(tensor)}"
        for key, tensor in wanted.items()
        if key not in state or state[key].shape != tensor.shape
    ]
    wrong += [f"{key} is not in {model.name}" for key in state if key not in expected and not _is_head(key, heads)]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"checkpoint {entry}: does not fit model {model.name}: {'; '.join(wrong[:3])}{more}")
    bad = next((key for key in wanted if not bool(torch.isfinite(state[key]).all())), None)
    if bad:
        raise UserError(f"checkpoint {entry}: {bad} holds values that are not finite numbers")
    return {key: state[key].to(tensor.dtype) for key, tensor in wanted.items()}


def _without_weights(model: Architecture) -> nn.Module:
    """The network for its names and shapes alone. A factory may do what cannot be done without memory."""
    if model.factory is not None:
        return build(model, n_classes=2, seed=0)
    with torch.device("meta"):
        return timm.create_model(model.name, pretrained=False, **model.args)


def _shape(tensor: Tensor) -> str:
    return "x".join(str(n) for n in tensor.shape) or "a scalar"


def with_new_head(
    model: Architecture, weights: State, n_classes: int, seed: int, drop_path: float = 0.0
) -> nn.Module:
    """A network with the body of `weights` (their head does not matter) and a random head, the same for the same
    seed."""
    net = build(model, n_classes, seed, drop_path)
    heads = head_names(net, model)
    own = {key: tensor for key, tensor in net.state_dict().items() if _is_head(key, heads)}
    net.load_state_dict({**own, **without_head(weights, heads)})
    return net


def body_of(net: nn.Module, model: Architecture) -> State:
    """The network's weights on the CPU, without its head."""
    return without_head(state_of(net), head_names(net, model))


def without_head(weights: State, heads: Sequence[str]) -> State:
    """What of `weights` is not in one of the modules called `heads`."""
    return {key: tensor for key, tensor in weights.items() if not _is_head(key, heads)}


def state_of(net: nn.Module) -> State:
    """A copy of the network's whole state on the CPU, in plain memory order."""
    return {
        key: tensor.detach().to("cpu", copy=True).contiguous(memory_format=torch.contiguous_format)
        for key, tensor in net.state_dict().items()
    }


# Bytes


def to_bytes(state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The state as safetensors. Without metadata, equal tensors give equal bytes."""
    return safetensors.torch.save(dict(state), metadata=dict(metadata) if metadata else None)


def from_bytes(content: bytes) -> State:
    return safetensors.torch.load(content)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
