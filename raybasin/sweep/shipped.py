"""The sweep files that come with raybasin, which commands take by name: `raybasin sweep digits`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from raybasin.errors import UserError, some
from raybasin.sweep import strict_yaml

_PACKAGE = Path(__file__).resolve().parent.parent
_PLACES = _PACKAGE / "shipped", _PACKAGE.parent / "sweeps"
"""In a wheel beside the modules, in a checkout beside the package."""

SENT = "RAYBASIN_SENT_SWEEP"
"""The variable by which a job of a cluster is given the shipped sweep that it was submitted with, name and text: the
raybasin that is installed there may have another one of that name."""


@dataclass(frozen=True)
class Shipped:
    """A sweep file that comes with raybasin."""

    name: str
    """As it stands in the file: the names of its folders and its own, joined by `-`."""
    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def question(self) -> str:
        return str(strict_yaml.plain_yaml(self.text, str(self.path))["question"])

    @property
    def cost(self) -> str:
        """What the comment at its top says."""
        found = re.search(r"^# cost: *(.*(?:\n# {3,}.*)*)", self.text, re.MULTILINE)
        return " ".join(found[1].replace("\n#", " ").split()) if found else ""


def everyone() -> dict[str, Shipped]:
    """All of them by name, those of subfolders last."""
    folder = next((place for place in _PLACES if place.is_dir()), _PLACES[0])
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path.with_suffix("")))
    names = ["-".join(path.relative_to(folder).with_suffix("").parts) for path in paths]
    return {name: Shipped(name, path) for name, path in zip(names, paths, strict=True)}


def named(name: str) -> Shipped:
    """The shipped sweep of that name. Raises UserError that lists those there are."""
    known = everyone()
    if not known:
        raise UserError(f"{name}: the sweeps that come with raybasin are missing ({_PLACES[0]}); install it again")
    if name not in known:
        raise UserError(f"{name}: no file here, and no sweep that comes with raybasin; there are {some(list(known))}")
    return known[name]


def is_name(path: str | os.PathLike[str]) -> bool:
    """Whether a shipped sweep is meant: a name without folder and suffix that is no file here. (A folder is none.)"""
    bare = re.fullmatch(r"[A-Za-z0-9_-]+", os.fspath(path)) is not None
    return bare and (os.path.isdir(path) or not os.path.lexists(path))


def content(path: str | os.PathLike[str]) -> bytes | None:
    """What a shipped sweep holds; None where `path` is not the name of one. Raises UserError for an unknown name."""
    if not is_name(path):
        return None
    name, _, text = os.environ.get(SENT, "").partition("\n")
    return (text if name == os.fspath(path) else named(os.fspath(path)).text).encode()


def to_send(path: str | os.PathLike[str]) -> Mapping[str, str]:
    """The environment in which a job elsewhere finds by this name the same sweep as is found here."""
    found = content(path)
    return {} if found is None else {SENT: f"{os.fspath(path)}\n{found.decode()}"}


def hint(path: str | os.PathLike[str]) -> str:
    """The end of a message about a sweep file that is not there, where one of that file's name comes with raybasin."""
    called = [one.name for one in everyone().values() if one.path.name == Path(path).name]
    return f"; one comes with raybasin, and is called `{called[0]}`" if called else ""
