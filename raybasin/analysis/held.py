"""Which settings a results folder holds, which of them was worked on last, and in what they differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raybasin.analysis.quantities import counted
from raybasin.errors import UserError, one_line, some
from raybasin.store import inventory, tables
from raybasin.store.folders import Folder
from raybasin.store.inventory import StoredSweep
from raybasin.sweep import specs
from raybasin.sweep.settings import Difference, differences, flat

LATEST = "latest"
"""In place of a settings_id: the one that was worked on last."""
MOST_SETTINGS, MOST_KEYS, MOST_TEXT = 3, 3, 40
"""So many settings, keys of each and characters of a value are named in one line."""


@dataclass(frozen=True)
class Held:
    """One of the settings in a folder. `worked_at` is when its last cell or network was finished, None where there is
    none; `stored` is its sweep file, None where that is missing or none."""

    settings_id: str
    cells: int
    worked_at: datetime | None
    stored: StoredSweep | None

    @property
    def shown_id(self) -> str:
        """Out of a stranger's table it may be any text."""
        return one_line(self.settings_id, 100)

    @property
    def sweep(self) -> str:
        return one_line(self.stored.spec.name, 100) if self.stored else ""

    @property
    def when(self) -> str:
        return f"{self.worked_at:%Y-%m-%d %H:%M} UTC" if self.worked_at else "never"

    @cached_property
    def hashed(self) -> dict[str, Any]:
        """What its id hashes, by dotted keys; empty where its sweep file is missing."""
        return self.stored.settings.hashed if self.stored else {}

    def __str__(self) -> str:
        """`0f3a (cifar10, 12 cells, last worked on 2026-07-01 12:00 UTC)`."""
        worked = f", last worked on {self.when}" if self.worked_at else ""
        return f"{self.shown_id} ({self.sweep or 'sweep file missing'}, {counted(self.cells, 'cell')}{worked})"


def settings_of(folder: Folder) -> list[Held]:
    """All settings that have cells or a sweep file in `folder`; the one worked on last comes first."""
    cells = _finished(folder, "cells")
    worked = pa.concat_tables([cells, _finished(folder, "members"), _finished(folder, "checkpoints")])
    count, last = ({row["settings_id"]: row["found"] for row in _grouped(rows, how).to_pylist()}
                   for rows, how in ((cells, "count"), (worked, "max")))  # fmt: skip
    planned = {name.removesuffix(".yaml") for name in folder.names("sweeps") if name.endswith(".yaml")}
    found = [
        Held(settings_id, count.get(settings_id, 0), last.get(settings_id), _stored(folder, settings_id))
        for settings_id in sorted({*last, *planned})
        if settings_id in count or settings_id in planned  # of others a network may be left that is shared
    ]
    return sorted(found, key=lambda held: held.worked_at.timestamp() if held.worked_at else 0.0, reverse=True)


def latest(folder: Folder) -> str:
    """The settings_id of those worked on last. Raises UserError where no cell and no network is finished."""
    found = settings_of(folder)
    if not found or (len(found) > 1 and found[0].worked_at is None):
        raise UserError(
            f"results folder {folder.root}: none of its settings has a finished cell or network, so none is the "
            f"latest; name one: {listed(found) or 'there are none'}"
        )
    return found[0].settings_id


def named(asked: str, known: Iterable[str]) -> str | None:
    """The settings_id that is meant: the one that is asked for, or the only one that begins so."""
    begun = [one for one in known if asked and one.startswith(asked)]
    return asked if asked in begun else begun[0] if len(begun) == 1 else None


def find(folder: Folder, settings_id: str) -> Held:
    """One of the settings in a folder, by its id or as much of it as tells it from the others; `latest` is that worked
    on last. Raises UserError for one that is not there."""
    found = settings_of(folder)
    wanted = latest(folder) if settings_id == LATEST else named(settings_id, [held.settings_id for held in found])
    for held in found:
        if held.settings_id == wanted:
            return held
    raise UserError(unknown(folder, settings_id, found))


def unknown(folder: Folder, settings_id: str, found: Iterable[Held]) -> str:
    """The message about settings that are not there."""
    asked, found = one_line(settings_id, 100), list(found)
    begun = asked and sum(held.settings_id.startswith(asked) for held in found) > 1
    what = f"several settings begin with {asked}" if begun else f"holds no settings {asked}"
    return f"results folder {folder.root}: {what}; known are {listed(found) or 'none'}"


def listed(found: Iterable[Held]) -> str:
    return some([str(held) for held in found], 10)


def ambiguous(folder: Folder) -> str:
    """The message that a folder holds several settings, and none was named: which is the newest, in what the others
    differ from it, and the way out."""
    newest, *others = settings_of(folder)
    told = [f"{held}, which differs in {_few(changes(newest, held))}" for held in others]
    named = f"{newest} is the newest, beside" if newest.worked_at else f"{newest} and"
    return (
        f"results folder {folder.root}: holds {1 + len(others)} settings, which do not belong in one map: {named} "
        f"{some(told, MOST_SETTINGS, '; ')}; name one with --settings, or take the newest with "
        f"--settings {LATEST} (in Python settings=); `raybasin settings list {folder.root}` says more"
    )


# Differences


def changes(a: Held, b: Held) -> list[Difference]:
    """What makes two of them different settings; nothing where a sweep file is missing."""
    return differences(a.hashed, b.hashed) if a.stored and b.stored else []


def further(a: Held, b: Held) -> list[Difference]:
    """The other keys of the two sweep files that differ. Most are in no settings_id; what a shift set is made of is in
    it by its fingerprint."""
    if not (a.stored and b.stored):
        return []
    trees = [flat(specs.dump(held.stored.spec)) for held in (a, b) if held.stored]
    resolved = {*a.hashed, *b.hashed, "data.normalise"}  # there it is written out as mean and std
    return [found for found in differences(*trees) if found.key not in resolved]


def shown(value: Any, most: int = MOST_TEXT) -> str:
    """A value of a sweep file in few characters."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    text = f"{value:.12g}" if isinstance(value, float) else str(value)
    return one_line(text if len(text) <= most else f"{text[: most - 3]}...")


def in_words(found: Sequence[Difference], most: int = MOST_KEYS) -> str:
    """`recipe.lr (0.05, not 0.1)`, where the second settings have 0.05, for the first of some differences, and how many
    there are beside."""
    told = [f"{one_line(one.key, 80)} ({shown(one.values[1])}, not {shown(one.values[0])})" for one in found]
    return some(told, most)


def _few(found: Sequence[Difference]) -> str:
    return in_words(found) or "what their sweep files do not tell"


# Reading


def _finished(folder: Folder, table: str) -> pa.Table:
    return tables.sound(folder, table).select(["settings_id", "finished_at"])


def _grouped(rows: pa.Table, how: str) -> pa.Table:
    """By settings_id, `count` of its rows or the `max` of when they were finished, as the column `found`."""
    options = None if how == "max" else pc.CountOptions(mode="all")
    grouped = rows.group_by("settings_id").aggregate([("finished_at", how, options)])
    return grouped.rename_columns(["settings_id", "found"])


def _stored(folder: Folder, settings_id: str) -> StoredSweep | None:
    try:
        return inventory.stored_sweep(folder, settings_id)
    except UserError:
        return None


def as_dict(held: Held, newest: Held) -> dict[str, Any]:
    """What `raybasin settings list --json` says of one."""
    return {
        "settings": held.settings_id,
        "sweep": held.sweep or None,
        "cells": held.cells,
        "last_worked_on": held.worked_at.isoformat() if held.worked_at else None,
        "differs_from_newest": as_mapping(changes(newest, held)),
    }


def as_mapping(found: Iterable[Difference]) -> Mapping[str, list[Any]]:
    """Differences as plain values: by key, the two values."""
    return {one.key: list(one.values) for one in found}
