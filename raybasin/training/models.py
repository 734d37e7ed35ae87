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
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import timm
import torch
from huggingface_hub import constants as hub
from pydantic import ValidationError
from timm.models import PretrainedCfg
from timm.models._hub import load_model_config_from_hf, load_model_config_from_path
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from raybasin.data import downloads
from raybasin.errors import UserError, is_out_of_memory, nearest, some
from raybasin.sweep.facts import Preprocess
from raybasin.sweep.specs import TIMM_ARGS, Architecture
from raybasin.training import checkpoints, fitting
from raybasin.training.checkpoints import Weights
from raybasin.training.fitting import Taken

State = dict[str, Tensor]
ModelT = TypeVar("ModelT", bound=Architecture)
SOURCES = ("hf-hub", "local-dir")
FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt", checkpoints.INDEX)
DOWNLOAD_SECONDS = 10.0


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
        _check_memory(error, model)
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
    except (Exception, SystemExit) as error:  # it is code of the user's own
        _check_memory(error, model)
        raise UserError(f"model.factory: {call} fails ({_said(error)})") from error
    if not isinstance(net, nn.Module):
        raise UserError(f"model.factory: {call} returns a {type(net).__name__}, not a torch.nn.Module")
    if isinstance(net, torch.jit.ScriptModule):
        raise UserError(f"model.factory: {call} returns a TorchScript module; return what it was made from")
    net.register_forward_pre_hook(_in_plain_order)
    return net


def _in_plain_order(module: nn.Module, images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous() for x in images)


@functools.cache
def _imported(factory: str) -> Callable[..., Any]:
    name, _, path = factory.partition(":")
    try:
        found = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # it runs the user's module
        if is_out_of_memory(error):
            raise
        hint = "" if _is_found(error, name) else "; it must lie in the current folder or be installed"
        raise UserError(f"model.factory: {name} cannot be imported ({_said(error)}){hint}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UserError(f"model.factory: {name} has no '{path}'{nearest(part, _public(found))}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"model.factory: {factory} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def _is_found(error: BaseException, name: str) -> bool:
    """Whether the module itself was found, and what it imports or does is at fault."""
    return not (isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."))


def _public(found: object) -> list[str]:
    return [name for name in dir(found) if not name.startswith("_")]


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _check_memory(error: BaseException, model: Architecture) -> None:
    """What is at fault where memory runs out is not what was being looked at."""
    if is_out_of_memory(error):
        raise UserError(
            f"{_key(model)}: there is not enough memory to try {model.name} on two images, which is done on the "
            f"processor before anything is trained ({_said(error)[:120]})"
        ) from error


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
    """The network, after it has been seen to be one: two images of `image_size` pixels give logits [2, n_classes], in
    evaluation and in training, from where gradients reach its weights; these can be averaged and stored; and its head
    is found. Raises UserError that names the key.

    The network has been trained on for less than a step: it is good for its layers and shapes.
    """
    net = build(model, n_classes, seed=0, drop_path=drop_path)
    _check_weights(net, model)
    images_BCHW = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    logits_BC = _check_output(net, model, n_classes, images_BCHW)
    heads = head_names(net, model)
    if model.factory is not None:
        _check_built_again(net, model, n_classes, images_BCHW, logits_BC)
        _check_head_follows_classes(net, model, n_classes, heads)
    _check_training(net, model, n_classes, images_BCHW)
    return net


def _check_weights(net: nn.Module, model: Architecture) -> None:
    """That the state is weights as they are averaged and stored: dense tensors, real if they are trained."""
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise UserError(f"{_key(model)}: {model.name} has no parameters to train")
    parameters = dict(net.named_parameters(remove_duplicate=False))
    for key, value in net.state_dict(keep_vars=True).items():
        if odd := _odd(key, value, key in parameters):
            raise UserError(f"{_key(model)}: the state of {model.name} holds {key}, which {odd}")


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
def _check_output(net: nn.Module, model: Architecture, n_classes: int, images_BCHW: Tensor) -> Tensor:
    """The logits [B, n_classes] in evaluation."""
    training = net.training
    try:
        logits_BC = net.eval()(images_BCHW)
    except Exception as error:  # any layer's way of saying that this is not its size
        _check_memory(error, model)
        raise UserError(
            f"{_key(model)}: {model.name} does not take images of {images_BCHW.shape[-1]} px ({_said(error)}); "
            f"{_way_out(net)}"
        ) from error
    finally:
        net.train(training)
    return _checked_logits(logits_BC, model, n_classes, "")


def _way_out(net: nn.Module) -> str:
    types = {parameter.dtype for parameter in net.parameters() if parameter.is_floating_point()} - {torch.float32}
    if types:
        return f"its weights are {', '.join(sorted(map(str, types)))}, and images are torch.float32"
    return "set data.image_size or model.args"


def _checked_logits(logits_BC: object, model: Architecture, n_classes: int, when: str) -> Tensor:
    if not isinstance(logits_BC, Tensor):
        raise UserError(f"{_key(model)}: {model.name} gives a {type(logits_BC).__name__}{when}, not a tensor of logits")
    if tuple(logits_BC.shape) != (2, n_classes):
        raise UserError(
            f"{_key(model)}: {model.name} gives an output of {fitting.shape(logits_BC)}{when} for 2 images, not "
            f"2x{n_classes} (a logit for each of the {n_classes} classes; num_classes says how many)"
        )
    if not logits_BC.is_floating_point():
        raise UserError(f"{_key(model)}: {model.name} gives an output of {logits_BC.dtype}{when}, not real logits")
    return logits_BC


def _check_training(net: nn.Module, model: Architecture, n_classes: int, images_BCHW: Tensor) -> None:
    """One pass forward and back as in training, where a network may do what it does not do in evaluation. What that
    changes in the state is put back."""
    before, training = state_of(net), net.training
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():  # whatever the caller is at
            torch.manual_seed(0)
            output = net.train()(images_BCHW)
            if not isinstance(output, Tensor) and getattr(net, "aux_logits", None) is True:
                raise UserError(
                    f"{_key(model)}: {model.name} gives a {type(output).__name__} in training, not a tensor of logits; "
                    "turn its auxiliary classifiers off with model.args: {aux_logits: false}"
                )
            logits_BC = _checked_logits(output, model, n_classes, " in training")
            if logits_BC.requires_grad:
                nn.functional.cross_entropy(logits_BC.float(), torch.arange(2) % n_classes).backward()
    except UserError:
        raise
    except Exception as error:  # it is code that has not been run before
        _check_memory(error, model)
        raise UserError(f"{_key(model)}: {model.name} fails in training on two images ({_said(error)})") from error
    finally:
        net.train(training)
    if all(parameter.grad is None for parameter in net.parameters()):
        raise UserError(
            f"{_key(model)}: no weight of {model.name} gets a gradient in training; its output may be detached"
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
    try:
        other.load_state_dict(state)
    except Exception as error:  # a module may load in its own way
        raise UserError(f"model.factory: {model.name} does not load its own state ({_said(error)})") from error
    with torch.no_grad():
        again_BC = other.eval()(images_BCHW)
    if not torch.allclose(logits_BC, again_BC, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise UserError(
            f"model.factory: {model.name} gives other logits when it is built again and given the same state; what it "
            "draws at random must be in its state (register_buffer), and evaluation must not be random"
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


def shown(model: Architecture, entries: Sequence[str], pixels_matter: bool = True) -> Preprocess:
    """The settings of the pre-trained weights among `entries` (names that timm knows), else of the model itself; of a
    factory's, of which nothing is known, timm's defaults: ImageNet's mean and deviation, crop 0.875, bicubic.

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


def _shown(name: str) -> Preprocess:
    if source_of(name):
        return _config_of(name).shown
    check_name(name)
    return _of_config(timm.get_pretrained_cfg(name) or PretrainedCfg())


def _of_config(config: PretrainedCfg) -> Preprocess:
    mean, std = (tuple(float(v) for v in values) for values in (config.mean, config.std))
    interpolation = config.interpolation if config.interpolation in ("bilinear", "bicubic") else "bicubic"
    return Preprocess(config.input_size[-1], float(config.crop_pct), mean, std, interpolation)  # type: ignore[arg-type]


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


def source_of(entry: str) -> tuple[str, str] | None:
    """The source and the id in a name as timm has them, `hf-hub:organisation/model` or `local-dir:folder`; None for any
    other."""
    source, colon, identity = entry.partition(":")
    source = source.lower().replace("_", "-")
    return (source, identity) if colon and source in SOURCES else None


def is_file(entry: str) -> bool:
    """Whether an entry of `model.pretrained` is a file rather than a name that timm knows."""
    if source_of(entry):
        return False
    return entry.endswith(FILE_SUFFIXES) or "/" in entry or Path(entry).is_file()


def label(entry: str) -> str:
    """What an entry is called in the tables, where its weights tell it from others of the same name."""
    source = source_of(entry)
    name = Path(source[1] if source else entry).name
    return name if source else Path(name.removesuffix(checkpoints.INDEX)).stem


def files_in(entry: str) -> list[str]:
    """An entry of `model.pretrained` as the entries that it stands for: a folder as its safetensors files in the order
    of their names, where an index stands for its parts; anything else as itself. A timm model's name is no folder.
    Raises UserError for an empty folder, and for parts without their index."""
    folder = Path(entry).expanduser()
    if source_of(entry) or not folder.is_dir() or ("/" not in entry and timm.is_model(entry.split(".")[0])):
        return [entry]
    found, lost = checkpoints.parts(sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")))
    if lost:
        raise UserError(f"checkpoint {entry}: {lost[0]} is one of several parts, whose index is missing")
    if not found:
        raise UserError(f"checkpoint {entry}: the folder holds no .safetensors file")
    return [f"{entry.rstrip('/')}/{name}" for name in found]


def read_checkpoint(entry: str, model: Architecture) -> State:
    """The body (all but the head) of the weights at `entry`. Raises UserError; see `taken`."""
    return taken(entry, model).state


def taken(entry: str, model: Architecture) -> Taken:
    """The body (all but the head) of the weights at `entry`, a name that timm knows or a file, and what was done to
    make them fit `model`.

    Files are safetensors, or PyTorch files read with weights_only. Where one holds several sets of weights, that which
    timm's loader takes is taken: averaged (EMA) before raw ones. Raises UserError.
    """
    sets = checkpoints.read(entry) if is_file(entry) else (Weights(_from_timm(entry, model)),)
    try:
        net = build(model, n_classes=2, seed=0)
        return fitting.fit(net, head_names(net, model), sets, model.name, entry, _filter(model))
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(f"checkpoint {entry}: there is not enough memory to load it") from error
        raise


def _filter(model: Architecture) -> fitting.Filter | None:
    """The function by which timm brings other layouts of an architecture, such as its authors', into its own."""
    if model.factory is not None:
        return None
    module = sys.modules[timm.models.model_entrypoint(model.name.split(".")[0]).__module__]
    return getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)


def _from_timm(entry: str, model: Architecture) -> State:
    if model.factory is not None:
        raise UserError(
            f"model.pretrained: {entry} is no file; model.factory takes files, folders and pretrain entries"
        )
    source = source_of(entry)
    name = _config_of(entry).name if source else entry
    if source is None:
        check_name(entry)
    if name.split(".")[0] != model.name.split(".")[0]:
        of = f" ({name})" if source else ""
        raise UserError(f"model.pretrained: {entry}{of} is another architecture than model.name {model.name}")
    config = timm.get_pretrained_cfg(entry) if source is None else None
    if source is None and (config is None or not config.has_weights):
        raise UserError(
            f"model.pretrained: timm has no weights for {entry}; name a tag such as resnet50.tv_in1k or a file"
        )
    what, local = f"model.pretrained: the weights of {entry}", source is not None and source[0] == "local-dir"
    name = _as_timm_has_it(entry)
    return _asked(lambda: timm.create_model(name, pretrained=True, **model.args).state_dict(), what, local)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Config:
    """What a `config.json` of timm's says of a network: its architecture, its arguments, and how it is shown images."""

    name: str
    args: Mapping[str, Any]
    shown: Preprocess


def resolved(model: ModelT) -> ModelT:
    """The model with the architecture and the arguments that its name's `config.json` gives, where it is a
    `hf-hub:` or `local-dir:` name: a sweep that is stored or sent to workers needs neither. Raises UserError."""
    if model.factory is not None or source_of(model.name) is None:
        return model
    config = _config_of(model.name)
    tree = {**model.model_dump(), "name": config.name, "args": {**config.args, **model.args}}
    try:
        return type(model).model_validate(tree)
    except ValidationError as error:
        raise UserError(f"model.name: {model.name}: its config.json gives arguments that cannot be used") from error


def _config_of(entry: str) -> _Config:
    source, identity = source_of(entry) or ("", "")
    reader = load_model_config_from_hf if source == "hf-hub" else load_model_config_from_path
    what = f"model: config.json of {entry}"
    where = identity if source == "hf-hub" else str(Path(identity).expanduser())
    config, name, args = _asked(lambda: reader(where), what, source == "local-dir")
    try:
        name = str(name)
        own = timm.get_pretrained_cfg(name) or PretrainedCfg()
        given = {key: value for key, value in dict(args or {}).items() if key not in TIMM_ARGS}
        size = tuple(config.get("input_size") or own.input_size)
        if config.get("fixed_input_size") and size[1:] != tuple(own.input_size[1:]):
            given.setdefault("img_size", list(size[1:]))
        if given.get("in_chans") == own.input_size[0]:
            del given["in_chans"]
        if config.get("global_pool") is not None:
            given.setdefault("global_pool", config["global_pool"])
        fields = {"mean", "std", "crop_pct", "interpolation"} & config.keys()
        return _Config(name, given, _of_config(PretrainedCfg(**{key: config[key] for key in fields})))
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise UserError(f"{what}: cannot be used ({_said(error)})") from error


def _as_timm_has_it(entry: str) -> str:
    source = source_of(entry)
    if source is None:
        return entry
    return f"{source[0]}:{Path(source[1]).expanduser() if source[0] == 'local-dir' else source[1]}"


def _asked(ask: Callable[[], Any], what: str, local: bool) -> Any:
    """What timm finds, in a folder or by a download. Raises UserError in its cause's words."""
    try:
        if local:
            return ask()
        with downloads.socket_timeout(DOWNLOAD_SECONDS), _offline_without_network():
            return ask()
    except Exception as error:  # what a download can raise is up to three libraries; the cause is named
        if is_out_of_memory(error):
            raise UserError(f"{what}: there is not enough memory to read this") from error
        reason = checkpoints.without_advice(str(error), 200)
        way_out = "\nWithout a network, name a file with --checkpoint FILE; `make demo` needs neither."
        raise UserError(
            f"{what} cannot be had ({type(error).__name__}{f': {reason}' if reason else ''}){'' if local else way_out}"
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


def with_new_head(model: Architecture, weights: State, n_classes: int, seed: int, drop_path: float = 0.0) -> nn.Module:
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
