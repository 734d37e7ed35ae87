"""Networks and their weights: timm builds them, safetensors keeps them.

A state is a dict of CPU tensors by name. Weights are named by the SHA-256 of their safetensors bytes, which are the
same for equal tensors. The head (the classifier, found through timm) belongs to a task and not to a checkpoint: every
fine-tuning starts with a new one.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
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
from raybasin.errors import UserError, nearest

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


def build(name: str, n_classes: int, seed: int, drop_path: float = 0.0) -> nn.Module:
    """A network with random weights, the same for the same seed, on the CPU.

    `drop_path` is the rate of stochastic depth in training. Raises UserError for a network that has none.
    """
    depth: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return timm.create_model(name, pretrained=False, num_classes=n_classes, **depth)
        except TypeError as error:
            if not drop_path or "drop_path_rate" not in str(error):
                raise
            raise UserError(f"recipe.drop_path: timm's {name} has no stochastic depth; leave it out") from error


def shown(name: str, entries: Sequence[str], pixels_matter: bool = True) -> Shown:
    """The settings of the pre-trained weights among `entries` (timm tags), else of the model itself.

    Raises UserError where the weights disagree on how pixels are normalised and `pixels_matter`.
    """
    tags = [entry for entry in entries if not is_file(entry)]
    found = {entry: _shown(entry) for entry in tags} or {name: _shown(name)}
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
    config = timm.get_pretrained_cfg(name) or PretrainedCfg()
    mean, std = (tuple(float(v) for v in values) for values in (config.mean, config.std))
    interpolation = config.interpolation if config.interpolation in ("bilinear", "bicubic") else "bicubic"
    return Shown(mean, std, float(config.crop_pct), interpolation)  # type: ignore[arg-type]


# Checkpoints


def is_file(entry: str) -> bool:
    """Whether an entry of `model.pretrained` is a file rather than a timm tag."""
    return entry.endswith(FILE_SUFFIXES) or "/" in entry or Path(entry).is_file()


def read_checkpoint(entry: str, name: str) -> State:
    """The body (all but the head) of the weights at `entry`, a timm tag or a file, checked against model `name`.

    Files are safetensors, or PyTorch files read with weights_only; a state dict may stand under `state_dict` or
    `model`. Raises UserError.
    """
    state = _from_file(entry) if is_file(entry) else _from_timm(entry, name)
    return _fitting_body(state, name, entry)


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


def _from_timm(tag: str, name: str) -> State:
    check_name(tag)
    if tag.split(".")[0] != name.split(".")[0]:
        raise UserError(f"model.pretrained: {tag} is another architecture than model.name {name}")
    config = timm.get_pretrained_cfg(tag)
    if config is None or not config.has_weights:
        raise UserError(
            f"model.pretrained: timm has no weights for {tag}; name a tag such as resnet50.tv_in1k or a file"
        )
    try:
        with downloads.socket_timeout(DOWNLOAD_SECONDS), _offline_without_network():
            return timm.create_model(tag, pretrained=True).state_dict()
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


def head_names(net: nn.Module) -> tuple[str, ...]:
    """The prefixes of the head's tensors, as timm knows them."""
    classifier = net.pretrained_cfg["classifier"]  # type: ignore[index]
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)


def _fitting_body(state: State, name: str, entry: str) -> State:
    with torch.device("meta"):
        net = timm.create_model(name, pretrained=False)
    expected, heads = net.state_dict(), head_names(net)
    wanted = {key: tensor for key, tensor in expected.items() if not _is_head(key, heads)}
    wrong = [
        f"{key} is {_shape(state[key]) if key in state else 'missing'}, not {_shape(tensor)}"
        for key, tensor in wanted.items()
        if key not in state or state[key].shape != tensor.shape
    ]
    wrong += [f"{key} is not in {name}" for key in state if key not in expected and not _is_head(key, heads)]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"checkpoint {entry}: does not fit model {name}: {'; '.join(wrong[:3])}{more}")
    bad = next((key for key in wanted if not bool(torch.isfinite(state[key]).all())), None)
    if bad:
        raise UserError(f"checkpoint {entry}: {bad} holds values that are not finite numbers")
    return {key: state[key].to(tensor.dtype) for key, tensor in wanted.items()}


def _is_head(key: str, heads: tuple[str, ...]) -> bool:
    return any(key.startswith(f"{head}.") for head in heads)


def _shape(tensor: Tensor) -> str:
    return "x".join(str(n) for n in tensor.shape) or "a scalar"


def with_new_head(name: str, body: State, n_classes: int, seed: int, drop_path: float = 0.0) -> nn.Module:
    """A network with the weights of `body` and a random head, the same for the same seed."""
    net = build(name, n_classes, seed, drop_path)
    own = net.state_dict()
    net.load_state_dict({**{k: v for k, v in own.items() if _is_head(k, head_names(net))}, **body})
    return net


def body_of(net: nn.Module) -> State:
    """The network's weights on the CPU, without its head."""
    heads = head_names(net)
    return {key: tensor for key, tensor in state_of(net).items() if not _is_head(key, heads)}


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
