"""Pre-trained weights: what an entry of `model.pretrained` names, how its network was shown images, and its body.

An entry is a file, a folder of files, or a name that timm knows: a tag such as resnet50.tv_in1k, or with a source,
`hf-hub:organisation/model` or `local-dir:folder`, whose `config.json` says what network it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import timm
from huggingface_hub import constants as hub
from pydantic import ValidationError
from timm.models import PretrainedCfg
from timm.models._hub import load_model_config_from_hf, load_model_config_from_path

from raybasin.data import downloads
from raybasin.errors import UserError, is_out_of_memory
from raybasin.sweep.facts import Preprocess
from raybasin.sweep.specs import TIMM_ARGS, Architecture
from raybasin.training import checkpoints, fitting, shown
from raybasin.training.checkpoints import Weights
from raybasin.training.fitting import Body
from raybasin.training.models import State, build, check_name, head_names, said

ModelT = TypeVar("ModelT", bound=Architecture)
CONFIG_READERS: dict[str, Callable[[str], Any]] = {
    "hf-hub": load_model_config_from_hf,
    "local-dir": load_model_config_from_path,
}
FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt", checkpoints.INDEX)
DOWNLOAD_SECONDS = 10.0


def source_of(entry: str) -> tuple[str, str] | None:
    """The source and the id in a name such as `hf-hub:organisation/model` or `local-dir:folder`; None for any other."""
    source, colon, identity = entry.partition(":")
    source = source.lower().replace("_", "-")
    if not colon or source not in CONFIG_READERS:
        return None
    return source, str(Path(identity).expanduser()) if source == "local-dir" else identity


def is_file(entry: str) -> bool:
    """Whether an entry of `model.pretrained` is a file rather than a name that timm knows."""
    if source_of(entry):
        return False
    return entry.endswith(FILE_SUFFIXES) or "/" in entry or Path(entry).is_file()


def files_in(entry: str) -> list[str]:
    """An entry of `model.pretrained` as the entries that it stands for: a folder as its safetensors files in the order
    of their names, where an index stands for its parts; anything else as itself. A timm model's name is no folder.
    Raises UserError for an empty folder, and for parts without their index."""
    folder = Path(entry).expanduser()
    if source_of(entry) or not folder.is_dir() or ("/" not in entry and timm.is_model(_architecture(entry))):
        return [entry]
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    found = [name for name in names if name.endswith(f".safetensors{checkpoints.INDEX}")]
    stems = {name.removesuffix(f".safetensors{checkpoints.INDEX}") for name in found}
    with checkpoints.naming(entry):
        for name in (name for name in names if name.endswith(".safetensors")):
            part = checkpoints.PART.search(name)
            if part is None or int(part[2]) == 1:
                found.append(name)
            elif name[: part.start()] not in stems:
                raise UserError(f"{name} is one of several parts, whose index is missing")
        if not found:
            raise UserError("the folder holds no .safetensors file")
    return [f"{entry.rstrip('/')}/{name}" for name in sorted(found)]


def name_in_tables(entry: str, sha256: str) -> str:
    """What a checkpoint is called: a tag as it is, anything else by its last name and its weights, which tell two of
    one name apart when they meet in one results folder."""
    if source := source_of(entry):
        name = Path(source[1]).name
    elif is_file(entry):
        name = Path(Path(entry).name.removesuffix(checkpoints.INDEX)).stem
    else:
        return entry
    return f"{name}-{sha256[:8]}"


def _architecture(name: str) -> str:
    return name.split(".")[0]


def load_body(entry: str, model: Architecture) -> Body:
    """The body (all but the head) of the weights at `entry`, and what was done to make them fit `model`.

    Files are safetensors, or PyTorch files read with weights_only. Where one holds several sets of weights, that which
    timm's loader takes is taken: averaged (EMA) before raw ones.

    Args:
        entry: a name that timm knows, or a file.
        model: the network that they are for.

    Raises:
        UserError: for what cannot be had, read or loaded.
    """
    sets = checkpoints.read(entry) if is_file(entry) else (Weights(_from_timm(entry, model)),)
    try:
        net, filter_fn = build(model, n_classes=2, seed=0), None
        if model.factory is None:  # timm's way from other layouts of an architecture, such as its authors'
            module = sys.modules[timm.models.model_entrypoint(_architecture(model.name)).__module__]
            filter_fn = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
        return fitting.fit(net, head_names(net, model), sets, model.name, entry, filter_fn)
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(f"checkpoint {entry}: there is not enough memory to load it") from error
        raise


def _from_timm(entry: str, model: Architecture) -> State:
    if model.factory is not None:
        raise UserError(
            f"model.pretrained: {entry} is no file; model.factory takes files, folders and pretrain entries"
        )
    source = source_of(entry)
    if source is None:
        check_name(entry)
    name = _config_of(*source, entry)[0] if source else entry
    if _architecture(name) != _architecture(model.name):
        of = f" ({name})" if source else ""
        raise UserError(f"model.pretrained: {entry}{of} is another architecture than model.name {model.name}")
    if source is None and not getattr(timm.get_pretrained_cfg(entry), "has_weights", False):
        raise UserError(
            f"model.pretrained: timm has no weights for {entry}; name a tag such as resnet50.tv_in1k or a file"
        )
    as_timm_has_it = ":".join(source) if source else entry
    what, is_local = f"model.pretrained: the weights of {entry}", source is not None and source[0] == "local-dir"
    return _asked(lambda: timm.create_model(as_timm_has_it, pretrained=True, **model.args).state_dict(), what, is_local)


def preprocess(model: Architecture, entries: Sequence[str], pixels_matter: bool = True) -> Preprocess:
    """How images were shown when the weights among `entries` (files, and names that timm knows) were trained, else what
    the model itself says; of a factory's, of which nothing is known, timm's defaults: ImageNet's mean and deviation,
    crop 0.875, bicubic.

    Raises UserError where the weights disagree on how pixels are normalised and `pixels_matter`.
    """
    own = _of_name(model.name) if model.factory is None else _from_config(PretrainedCfg())
    found = {entry: said for entry in entries if (said := _said_of(entry, model, own)) is not None}
    (first, of_first), *others = found.items() or [(model.name, own)]
    for entry, other in others:
        if pixels_matter and (other.mean, other.std) != (of_first.mean, of_first.std):
            raise UserError(
                f"model.pretrained: {entry} and {first} were trained with different normalisations; "
                "set data.normalise {mean, std}, or sweep them apart"
            )
    return of_first


def image_size(model: Architecture, entries: Sequence[str]) -> int | None:
    """On images of how many pixels the weights among `entries` were trained, or the model is built for by its
    arguments; None where nothing says so. Raises UserError where the weights disagree."""
    if built_for := model.args.get("img_size"):
        return int(built_for[-1] if isinstance(built_for, Sequence) else built_for)
    found: dict[int, str] = {}
    for entry in entries:
        if (size := _told(entry, model).image_size) is not None:
            found.setdefault(size, entry)
    if len(found) > 1:
        said = " and ".join(f"{entry} at {size}" for size, entry in found.items())
        raise UserError(f"model.pretrained: trained on images of different sizes, {said} pixels; set data.image_size")
    return next(iter(found), None)


ASSUMED = (
    "it does not say how pixels were normalised in its training: timm's values for the network are taken, and "
    "data.normalise sets others"
)


def shown_otherwise(entry: str, model: Architecture, here: Preprocess, normalised: bool) -> str:
    """In words, where a sweep shows images otherwise than they were shown to the weights of `entry`, or where neither
    they nor the sweep (`normalised`) say how pixels are normalised."""
    told = _told(entry, model)
    return "; ".join(filter(None, [told.against(here), "" if normalised or told.says_pixels else ASSUMED]))


def _told(entry: str, model: Architecture) -> shown.Told:
    """What is said of how images were shown to the weights of `entry`."""
    if is_file(entry):
        return shown.told(entry, None if model.factory else _architecture(model.name))
    of_name = _of_name(entry)
    return shown.Told(of_name.image_size, of_name.mean, of_name.std, of_name.eval_crop, of_name.interpolation)


def _said_of(entry: str, model: Architecture, own: Preprocess) -> Preprocess | None:
    """How images were shown to the weights of `entry`; None where nothing says how pixels were normalised."""
    told = _told(entry, model)
    return told.over(own) if told.says_pixels else None


def _of_name(name: str) -> Preprocess:
    """What timm says of a model or of weights."""
    if source := source_of(name):
        return _config_of(*source, name)[2]
    check_name(name)
    return _from_config(timm.get_pretrained_cfg(name) or PretrainedCfg())


def _from_config(config: PretrainedCfg) -> Preprocess:
    mean, std = (tuple(float(v) for v in values) for values in (config.mean, config.std))
    interpolation = config.interpolation if config.interpolation in ("bilinear", "bicubic") else "bicubic"
    return Preprocess(config.input_size[-1], float(config.crop_pct), mean, std, interpolation)  # type: ignore[arg-type]


def resolved(model: ModelT) -> ModelT:
    """The model with the architecture and the arguments that its name's `config.json` gives, where it is a
    `hf-hub:` or `local-dir:` name: a sweep that is stored or sent to workers needs neither. Raises UserError."""
    source = source_of(model.name)
    if model.factory is not None or source is None:
        return model
    name, args, _ = _config_of(*source, model.name)
    tree = {**model.model_dump(), "name": name, "args": {**args, **model.args}}
    try:
        return type(model).model_validate(tree)
    except ValidationError as error:
        raise UserError(f"model.name: {model.name}: its config.json gives arguments that cannot be used") from error


def _config_of(source: str, identity: str, entry: str) -> tuple[str, dict[str, Any], Preprocess]:
    """What a `config.json` of timm's says of a network: its architecture, its arguments, and how it is shown images."""
    what = f"model: config.json of {entry}"
    config, name, args = _asked(lambda: CONFIG_READERS[source](identity), what, source == "local-dir")
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
        shows = PretrainedCfg(input_size=size, **{key: config[key] for key in fields})
        return name, given, _from_config(shows)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise UserError(f"{what}: cannot be used ({said(error)})") from error


def _asked(ask: Callable[[], Any], what: str, is_local: bool) -> Any:
    """What timm finds, in a folder or by a download. Raises UserError in its cause's words.

    Without a network the hub's client looks into its cache at once, as its HF_HUB_OFFLINE makes it do; by itself it
    would ask again and again for a minute.
    """
    offline = hub.HF_HUB_OFFLINE
    try:
        if is_local:
            return ask()
        with downloads.socket_timeout(DOWNLOAD_SECONDS):
            hub.HF_HUB_OFFLINE = offline or downloads.unreachable(hub.ENDPOINT) is not None
            return ask()
    except Exception as error:  # what a download can raise is up to three libraries; the cause is named
        if is_out_of_memory(error):
            raise UserError(f"{what}: there is not enough memory to read this") from error
        reason = checkpoints.without_advice(str(error), 200)
        way_out = "\nWithout a network, name a file with --checkpoint FILE; `make demo` needs neither."
        cause = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
        raise UserError(f"{what} cannot be had ({cause}){'' if is_local else way_out}") from error
    finally:
        hub.HF_HUB_OFFLINE = offline
