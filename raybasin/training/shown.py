"""How images were shown to a network while a checkpoint was trained, by what lies with its weights: the metadata of a
safetensors file (raybasin's own, or of the same names), or timm's `config.json` beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import safetensors

from raybasin.errors import UserError, one_line
from raybasin.sweep.facts import Preprocess

CONFIG = "config.json"
LARGEST = 100_000_000
"""Bytes; timm's configs are a few KB."""
SIZES = ("image_size", "input_px", "input_size", "img_size")
"""What files call the side of the images, in pixels."""

Triple = tuple[float, float, float]
T = TypeVar("T")


@dataclass(frozen=True)
class Told:
    """What is said; None where nothing is."""

    image_size: int | None = None
    mean: Triple | None = None
    std: Triple | None = None
    eval_crop: float | None = None
    interpolation: str | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) is not None for field in fields(self))

    @property
    def says_pixels(self) -> bool:
        """Whether it is said how pixels were normalised."""
        return self.mean is not None or self.std is not None

    def over(self, other: Preprocess) -> Preprocess:
        """As said here, and where nothing is, as `other` has it."""
        return replace(other, **{key: value for key, value in vars(self).items() if value is not None})

    def against(self, shown: Preprocess) -> str:
        """In words, where a sweep shows images otherwise; empty where it does not."""
        differ = [
            f"{words.format(_words(getattr(self, name)))}, here {_words(getattr(shown, name))}"
            for name, words in (("image_size", "{} pixels"), ("mean", "mean {}"), ("std", "std {}"))
            if getattr(self, name) is not None and not _same(getattr(self, name), getattr(shown, name))
        ]
        return f"it was trained on images shown otherwise: {'; '.join(differ)}" if differ else ""


def told(entry: str, architecture: str | None) -> Told:
    """What the file `entry` says, else the `config.json` beside it, where that is of the same timm `architecture`.
    Files that are no safetensors say nothing themselves.

    Raises UserError for what cannot be, such as a deviation of 0.
    """
    path = Path(entry).expanduser()
    own = _of_metadata(path) if path.suffix == ".safetensors" else {}
    try:
        return _checked(own) or _checked(_of_config(path.parent / CONFIG, architecture))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"model.pretrained: {entry}: how images were shown cannot be as it is said there ({one_line(str(error))}); "
            "write the file without that, or set data.image_size and data.normalise"
        ) from error


def networks(entry: str) -> list[str]:
    """Of which networks a file, or the `config.json` beside it, says that its weights are."""
    path = Path(entry).expanduser()
    said = [_of_metadata(path).get(key) for key in ("model", "architecture")] if path.suffix == ".safetensors" else []
    return [str(name) for name in (*said, _config(path.parent / CONFIG).get("architecture")) if name]


def arguments(entry: str) -> dict[str, Any]:
    """The arguments with which the network of a file's weights was built, by its metadata (`args`) or the `model_args`
    of the `config.json` beside it. Raises UserError where they are no mapping."""
    path = Path(entry).expanduser()
    own = _of_metadata(path) if path.suffix == ".safetensors" else {}
    try:
        said = _once(own.get("args"), dict) or _config(path.parent / CONFIG).get("model_args") or {}
        return {str(key): value for key, value in dict(said).items()}
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{entry}: says with which arguments its network was built, but not as a mapping") from error


def _of_metadata(path: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, "np") as file:
            return dict(file.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return {}  # what is wrong with the file is said where its weights are read


def _of_config(path: Path, architecture: str | None) -> dict[str, Any]:
    """The part of timm's `config.json` that is of images; of another library's there is none."""
    whole = _config(path)
    if architecture is None or whole.get("architecture") != architecture:
        return {}
    config = whole.get("pretrained_cfg")
    return config if isinstance(config, dict) else {}


def _config(path: Path) -> dict[str, Any]:
    try:
        whole = json.loads(path.read_text()) if path.stat().st_size <= LARGEST else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return whole if isinstance(whole, dict) else {}


def _checked(said: Mapping[str, Any]) -> Told:
    """Raises TypeError or ValueError for what cannot be."""
    size = next((found for name in SIZES if (found := said.get(name)) not in (None, "")), None)
    interpolation = said.get("interpolation")
    return Told(
        image_size=_once(size, _side),
        mean=_once(said.get("mean"), lambda value: _triple(value, above=-math.inf)),
        std=_once(said.get("std"), lambda value: _triple(value, above=0)),
        eval_crop=_once(said.get("eval_crop") or said.get("crop_pct"), _crop),
        interpolation=interpolation if interpolation in ("bilinear", "bicubic") else None,
    )


def _once(value: Any, read: Callable[[Any], T]) -> T | None:
    """Metadata of safetensors are texts, of numbers and lists too."""
    if value in (None, ""):
        return None
    return read(json.loads(value) if isinstance(value, str) else value)


def _side(value: Any) -> int:
    """Of (channels, height, width) too."""
    value = value[-1] if isinstance(value, list) else value
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or not 8 <= value <= 2048:
        raise ValueError(f"{value!r} pixels")
    return int(value)


def _triple(value: Any, above: float) -> Triple:
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError(f"{value!r} is no value for each of three channels")
    red, green, blue = (float(each) for each in value)
    if not all(above < each < math.inf for each in (red, green, blue)):
        raise ValueError(f"{value!r} as mean or deviation of a channel")
    return red, green, blue


def _crop(value: Any) -> float:
    if not 0 < float(value) <= 1:
        raise ValueError(f"a crop of {value!r}")
    return float(value)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, tuple):
        return all(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def _words(value: Any) -> str:
    return ", ".join(f"{each:.3g}" for each in value) if isinstance(value, tuple) else f"{value:g}"
