"""Networks that are to predict, from wherever they lie: a results folder, a folder that `export` wrote, a file that
`soup` wrote. What the metadata of a file say is a stranger's word, and is looked at before it is used."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from raybasin.analysis import results as reading
from raybasin.analysis.results import Results
from raybasin.errors import UserError, one_line
from raybasin.serving import export, exported
from raybasin.serving.export import SUFFIX, View
from raybasin.serving.timm_folder import WEIGHTS
from raybasin.store import checksum
from raybasin.sweep.facts import Preprocess
from raybasin.sweep.specs import Architecture

if TYPE_CHECKING:
    from torch import nn

ENSEMBLE = "ensemble.json"
LARGEST_JSON = 2**24
KINDS = {"uniform_soup": "soup"}
"""What the metadata call otherwise than `--what` does."""


@dataclass(frozen=True)
class Predictor:
    """Networks on the CPU in evaluation mode, whose probabilities are averaged, and how images are shown to them."""

    nets: tuple[nn.Module, ...]
    classes: tuple[str, ...]
    view: View
    temperature: float
    """At which the average is calibrated; NaN where that is not known."""
    words: str
    """What it is, for people: `ensemble of 5 networks, cell ... (star_sse, lr_ratio 8, cycle_ratio 1)`."""


@dataclass(frozen=True)
class _File:
    """A network as a safetensors file, and where it lies, for messages."""

    where: str
    content: bytes
    facts: Mapping[str, str]


def find(
    source: Results | str | os.PathLike[str],
    what: str | None = None,
    cell: str | None = None,
    settings: str | None = None,
    factory: str | None = None,
) -> Predictor:
    """The networks of a source.

    Args:
        source: a results folder (or what `raybasin.open` gives), an exported folder, or a `.safetensors` file.
        what: `soup`, `greedy_soup`, `ensemble`, `hub` or `member-K`. By default the ensemble of a results folder, and
            all that an exported one holds.
        cell: of a results folder, by default the one that is best on validation.
        settings: of a results folder that holds several.
        factory: that of the networks, where they have one: it is code that is run, and so must be named.

    Raises:
        UserError: for what is not there, is damaged, or is not what its metadata say.
    """
    if isinstance(source, Results):
        return _of_results(source, what, cell, factory)
    path = Path(source).expanduser()
    of_results = {"--cell": cell, "--settings": settings}
    if is_exported(path):
        for option in (name for name, given in of_results.items() if given is not None):
            raise UserError(f"{option}: is for a results folder, and {path} holds what was exported from one")
        return _of_file(path, what, factory) if path.is_file() else _of_folder(path, what, factory)
    return _of_results(reading.open(source, settings), what, cell, factory)


def is_exported(path: Path) -> bool:
    """Whether this is a folder or a file that was exported, as far as its names tell."""
    return path.is_file() or (path / ENSEMBLE).is_file() or (path / WEIGHTS).is_file()


# A results folder


def _of_results(results: Results, what: str | None, cell: str | None, factory: str | None) -> Predictor:
    chosen = exported.choose(results, what or "ensemble", cell)
    root = str(results.folder.root)
    files = [_File(f"{root}: {one.place or chosen.what}", one.content, one.facts) for one in exported.networks(chosen)]
    return _predictor(files, chosen.temperature, factory, f"{_named(chosen.what, files)}, {chosen.how}")


# An exported folder, or a file


def _of_folder(folder: Path, what: str | None, factory: str | None) -> Predictor:
    if not (folder / ENSEMBLE).is_file():
        return _of_file(folder / WEIGHTS, what, factory)
    about = _json(folder / ENSEMBLE)
    members = about.get("members")
    places = [one.get("folder") for one in members if isinstance(one, dict)] if isinstance(members, list) else []
    if not places or places != [f"member-{index}" for index in range(len(places))]:
        raise UserError(f"{folder / ENSEMBLE}: does not name its members member-0, member-1, ...; export it anew")
    if what not in (None, "ensemble"):
        index = exported.member_index(what or "")
        if index >= len(places):
            raise UserError(f"--what {what}: {folder} has {len(places)} members, counted from 0")
        return _of_file(folder / places[index] / WEIGHTS, what, factory)
    files = [_read(folder / place / WEIGHTS) for place in places]
    return _predictor(
        files, _temperature(about.get("temperature"), folder / ENSEMBLE), factory, _named("ensemble", files)
    )


def _of_file(path: Path, what: str | None, factory: str | None) -> Predictor:
    """Of one network. `what` may say what it is, and nothing else."""
    file = _read(path)
    kind = file.facts.get("kind", "")
    own = {KINDS.get(kind, kind), *([f"member-{file.facts.get('member_index')}"] if kind in ("hub", "member") else [])}
    if what is not None and what not in own:
        raise UserError(f"--what {what}: {path} holds {min(own) or 'another network'}; leave --what out")
    temperature = _temperature(file.facts.get("temperature"), path)
    return _predictor([file], temperature, factory, _named(min(own), [file]))


def _read(path: Path) -> _File:
    if path.suffix != SUFFIX:
        raise UserError(f"{path}: is no results folder, and its name does not end in {SUFFIX}")
    try:
        content = path.read_bytes()
        metadata = checksum.header(content)[0]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(f"{path}: is no safetensors file ({one_line(error, 200)})") from error
    if not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(f"{path}: is no safetensors file (its metadata are not text)")
    return _File(str(path), content, metadata)


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text()) if path.stat().st_size <= LARGEST_JSON else None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error, 200)})") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: is not what `raybasin export` writes")
    return tree


def _temperature(said: Any, where: Path) -> float:
    if said is None:
        return math.nan
    try:
        value = float(said)
    except (TypeError, ValueError):
        value = -1.0
    if not 0 < value < math.inf:
        raise UserError(f"{where}: temperature {one_line(repr(said), 50)}: must be a number above 0")
    return value


def _named(what: str, files: list[_File]) -> str:
    """What the metadata say that it is."""
    facts = files[0].facts
    of = f" of {len(files)} networks" if len(files) > 1 else ""
    parts = [facts[name] for name in ("method",) if name in facts]
    parts += [f"{name} {facts[name]}" for name in ("lr_ratio", "cycle_ratio", "replicate") if name in facts]
    cell = f" of cell {facts['cell_id']}" if "cell_id" in facts else ""
    return one_line(f"{what}{of}{cell}{' (' + ', '.join(parts) + ')' if parts else ''}", 300)


# The networks


def _predictor(files: list[_File], temperature: float, factory: str | None, words: str) -> Predictor:
    first = files[0]
    classes, view = _classes(first), _view(first)
    for file in files[1:]:
        if (_classes(file), _view(file)) != (classes, view):
            raise UserError(f"{file.where}: has other classes than {first.where}, or is shown images otherwise")
    nets = tuple(_network(file, len(classes), factory) for file in files)
    return Predictor(nets, classes, view, temperature, words)


def _network(file: _File, n_classes: int, factory: str | None) -> nn.Module:
    from raybasin.training import models

    model = _architecture(file)
    if model.factory != factory:
        code = f"is built by {model.factory}, code that is run with your rights" if model.factory else "has no factory"
        way_out = f"add --factory {model.factory} if you trust it" if model.factory else "leave --factory out"
        raise UserError(f"{file.where}: the network {code}; {way_out}")
    models.find(model)
    with models.explaining(model, f"{file.where}: is not the network that its metadata name"):
        net = models.build(model, n_classes, seed=0)
        net.load_state_dict(models.from_bytes(file.content))
    return net.eval()


def _architecture(file: _File) -> Architecture:
    said = {key: _loaded(file, key) for key in ("args", "head") if key in file.facts}
    try:
        return Architecture.model_validate(
            {"name": file.facts.get("model"), "factory": file.facts.get("factory"), **said}
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "model"
        raise UserError(f"{file.where}: metadata {one_line(key, 50)}: {one_line(first['msg'], 200)}") from error


def _classes(file: _File) -> tuple[str, ...]:
    names = _loaded(file, "classes")
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file.where}: metadata classes: must be a list of two names or more")
    return tuple(names)


def _view(file: _File) -> View:
    """Raises UserError where images cannot be shown as the metadata say."""
    size, crop, side = (_loaded(file, key) for key in ("image_size", "eval_crop", "common_side"))
    mean, std = (_loaded(file, key) for key in ("mean", "std"))
    try:
        shown = Preprocess(int(size), float(crop), _triple(mean), _triple(std), file.facts["interpolation"])
        is_possible = export.is_possible(shown) and (side is None or 0 < int(side) <= 4096)
    except (TypeError, ValueError, KeyError):
        is_possible = False
    if not is_possible:
        raise UserError(f"{file.where}: its metadata do not say how images are shown to it; export it anew")
    return View(shown, None if side is None else int(side))


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _loaded(file: _File, key: str) -> Any:
    """A value that the metadata hold as JSON; None where they have none."""
    if key not in file.facts:
        return None
    try:
        return json.loads(file.facts[key])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file.where}: metadata {key}: {one_line(error, 100)}") from error
