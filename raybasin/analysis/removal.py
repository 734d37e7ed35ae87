"""What belongs to one of the settings in a results folder alone, and how it is removed.

Networks, predictions and checkpoints may be shared between settings: what another of them has in a cell, or asks for in
its sweep file, stays, and so does what another has made. Rows that commit go first, so a removal that is cut short
leaves a sound folder; what was still to go stands in `state/removing-<settings_id>.json`, and the same call ends it. It
is done under the lease of `retention`: nobody prunes meanwhile, and a sweep that begins waits for the end of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from raybasin.analysis import held
from raybasin.analysis.held import Held
from raybasin.errors import UserError
from raybasin.jobs import retention
from raybasin.store import heartbeat, tables
from raybasin.store.folders import Folder
from raybasin.sweep import ids
from raybasin.sweep.plan import Plan

COMMITS = ("cells", "members", "checkpoints")
"""Tables whose rows say that something else is there: they go first, in this order."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Removal:
    """The files that belong to one settings alone, in the order in which they go."""

    settings_id: str
    sizes: Mapping[str, int]
    """In bytes, by key."""
    shared: int
    """How many of its networks stay, since other settings have them, too."""

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())

    def files(self, place: str) -> int:
        """How many files of a table go."""
        return sum(key.startswith(f"{place}/") for key in self.sizes)


def look(folder: Folder, settings_id: str) -> Removal:
    """What would go. Raises UserError where there are no such settings, where a sweep runs on the folder, or where what
    the others need is not known."""
    _check_idle(folder)
    there, left = held.settings_of(folder), _left(folder, settings_id)
    mine, kept = ([one for one in there if (one.settings_id == settings_id) == own] for own in (True, False))
    if not mine and left is None:
        raise UserError(held.unknown(folder, settings_id, kept))
    for other in kept:
        if other.stored is None:
            raise UserError(
                f"{folder.name(f'sweeps/{other.settings_id}.yaml')}: is missing or damaged, so what those settings "
                f"share with {settings_id} is not known; run their sweep again (nothing is trained twice), or remove "
                "them first"
            )
    found = _Folder(folder, settings_id, _plans(folder, mine), _plans(folder, kept), left or frozenset())
    return Removal(settings_id, _sized(folder, _going(found)), len(found.mine.members & found.staying))


def remove(folder: Folder, settings_id: str) -> Removal:
    """Removes what `look` finds. Raises what that raises."""
    look(folder, settings_id)  # what is refused is refused before anything is written
    note = _note(settings_id)
    with retention.lease(folder) as renew:
        found = look(folder, settings_id)
        folder.put(note, json.dumps({"keys": list(found.sizes)}).encode())
        for key in found.sizes:
            renew()
            if key.startswith("sweeps/"):
                _check_idle(folder)  # a sweep that has begun meanwhile needs its file
            folder.delete(key)
        folder.delete(note)
    return found


def _check_idle(folder: Folder) -> None:
    for line in heartbeat.running(folder):
        raise UserError(
            f"results folder {folder.root}: nothing is removed while a sweep runs on it ({line}); stop it, or wait for "
            "its end"
        )


def _note(settings_id: str) -> str:
    return f"state/removing-{settings_id}.json"


def _left(folder: Folder, settings_id: str) -> frozenset[str] | None:
    """What a removal that was cut short had found to go; None where there was none."""
    try:
        keys = json.loads(folder.get(_note(settings_id)))["keys"]
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, RecursionError):
        return frozenset()
    return frozenset(key for key in keys if isinstance(key, str)) if isinstance(keys, list) else frozenset()


def _sized(folder: Folder, keys: Iterable[str]) -> dict[str, int]:
    """Those of the keys that are there, each once, with their sizes."""
    sizes: dict[str, dict[str, int]] = {}
    found = {}
    for key in keys:
        place, _, name = key.partition("/")
        if place not in sizes:
            sizes[place] = folder.sizes(place)
        if name in sizes[place]:
            found[key] = sizes[place][name]
    return found


# What settings have


@dataclass(frozen=True)
class _Has:
    """What some settings have in their cells, have made, or ask for, by ids; `evals` are the eval_ids of their
    predictions."""

    cells: frozenset[str]
    members: frozenset[str]
    soups: frozenset[str]
    evals: frozenset[str]
    checkpoints: frozenset[str]


def _plans(folder: Folder, found: Iterable[Held]) -> dict[str, Plan | None]:
    """By settings_id; None where the sweep file is missing or damaged."""
    return {one.settings_id: one.stored.plan(one.stored.chosen(folder)) if one.stored else None for one in found}


@dataclass(frozen=True)
class _Folder:
    """A folder, and the plans of the settings that go and of those that stay. `left` are the keys of a removal that was
    cut short."""

    folder: Folder
    settings_id: str
    going: Mapping[str, Plan | None]
    kept: Mapping[str, Plan | None]
    left: frozenset[str]

    @cached_property
    def cells(self) -> dict[str, Row]:
        return {row["cell_id"]: row for row in tables.sound(self.folder, "cells").to_pylist()}

    @cached_property
    def members(self) -> dict[str, Row]:
        return {row["member_id"]: row for row in tables.sound(self.folder, "members").to_pylist()}

    @cached_property
    def checkpoints(self) -> dict[str, Row]:
        return {row["checkpoint_id"]: row for row in tables.sound(self.folder, "checkpoints").to_pylist()}

    @cached_property
    def mine(self) -> _Has:
        return self._has({self.settings_id: None} | dict(self.going))

    @cached_property
    def others(self) -> _Has:
        return self._has(self.kept)

    @cached_property
    def staying(self) -> frozenset[str]:
        """The networks that are there and stay."""
        return frozenset(member_id for member_id in self.members if not self._goes(member_id))

    def _goes(self, member_id: str) -> bool:
        """Whether a network is of the settings that go, and nobody else has it or has made it."""
        elsewhere = member_id in self.others.members or self.members[member_id]["settings_id"] in self.kept
        return member_id in self.mine.members and not elsewhere

    def _has(self, of: Mapping[str, Plan | None]) -> _Has:
        plans = [plan for plan in of.values() if plan]
        rows = [row for row in self.cells.values() if row["settings_id"] in of]
        ensembles = {tuple(row["member_ids"]) for row in rows} | {c.member_ids for plan in plans for c in plan.cells}
        members = set(chain(self._made(self.members, of), *ensembles, *(plan.members for plan in plans)))
        asked = (checkpoint.key for plan in plans for checkpoint in plan.facts.checkpoints)
        return _Has(
            cells=frozenset(chain((row["cell_id"] for row in rows), *(plan.cell for plan in plans))),
            members=frozenset(self._with_parents(members)),
            soups=frozenset(chain(*map(_soups, ensembles))),
            evals=frozenset(chain(*((plan.eval_id, *plan.shift_eval_ids.values()) for plan in plans))),
            checkpoints=frozenset(chain(self._made(self.checkpoints, of), asked)),
        )

    def _made(self, rows: Mapping[str, Row], of: Collection[str]) -> list[str]:
        """The ids of networks or checkpoints that sweeps of these settings have made."""
        return [unit for unit, row in rows.items() if row["settings_id"] in of]

    def _with_parents(self, member_ids: Collection[str]) -> set[str]:
        """These, and all that they were trained or drawn from."""
        found, waiting = set(member_ids), list(member_ids)
        while waiting:
            parent = self.members.get(waiting.pop(), {}).get("parent_id")
            if parent and parent not in found:
                found.add(parent)
                waiting.append(parent)
        return found

    def is_mine(self, table: str, unit: str) -> bool:
        """Whether all rows of a file are of the settings that go."""
        owners = tables.read(self.folder, table, [unit], columns=["settings_id"])["settings_id"]
        return set(owners.to_pylist()) == {self.settings_id}


def _soups(member_ids: Sequence[str]) -> list[str]:
    """The ids of all soups that may have been made of a cell's members."""
    return [*ids.uniform_soup_ids(member_ids), ids.soup_id("greedy", member_ids)]


# What goes


def _going(found: _Folder) -> Iterator[str]:
    """The keys of everything that goes, in that order; the sweep file last."""
    lost = {
        "cells": [cell_id for cell_id, row in found.cells.items() if row["settings_id"] == found.settings_id],
        "members": [member_id for member_id in found.members if member_id not in found.staying],
        "checkpoints": [key for key, row in found.checkpoints.items()
                        if row["settings_id"] == found.settings_id and key not in found.others.checkpoints],
    }  # fmt: skip
    for table in COMMITS:
        yield from (f"{table}/{unit}.parquet" for unit in sorted(lost[table]))
    state = [key for key in _names(found.folder, "state") if _state_goes(found, key)]
    yield from state
    for table, goes in _RULES.items():
        for unit in tables.units(found.folder, table):
            if goes(found, table, unit):
                yield f"{table}/{unit}.parquet"
    yield from _weights(found, lost, state)
    yield f"sweeps/{found.settings_id}.yaml"


def _names(folder: Folder, place: str) -> list[str]:
    return [f"{place}/{name}" for name in folder.names(place)]


def _of_cell(found: _Folder, table: str, unit: str) -> bool:
    """Of a file that is called by a cell, committed or not."""
    cell_id = unit.partition("-")[0]
    if cell_id in found.others.cells:
        return False
    return cell_id in found.mine.cells or _of_settings(found, table, unit)


def _of_member(found: _Folder, table: str, unit: str) -> bool:
    """Of a file that is called by a network, committed or not."""
    if unit in found.others.members or unit in found.staying:
        return False
    return unit in found.mine.members or _of_settings(found, table, unit)


def _of_settings(found: _Folder, table: str, unit: str) -> bool:
    """Of a file that nothing but its rows tells whose it is."""
    return f"{table}/{unit}.parquet" in found.left or found.is_mine(table, unit)


def _of_predictor(found: _Folder, table: str, unit: str) -> bool:
    """Of predictions, called by the predictor and its eval_id: those of networks and soups that nobody else has, and
    those of shared ones on images that nobody else looks at."""
    predictor_id, eval_id = unit.split("-")[:2] if "-" in unit else (unit, "")
    mine, others = found.mine, found.others
    shared = predictor_id in others.members or predictor_id in others.soups or predictor_id in found.staying
    if eval_id in others.evals and shared:
        return False
    alone = not shared and (predictor_id in mine.members or predictor_id in mine.soups)
    own_images = eval_id in mine.evals and eval_id not in others.evals
    return alone or own_images or f"{table}/{unit}.parquet" in found.left


_RULES: Mapping[str, Callable[[_Folder, str, str], bool]] = {
    "scores": _of_cell, "paths": _of_cell, "traces": _of_cell, "failures": _of_cell, "planes": _of_settings,
    "points": _of_settings, "epochs": _of_member, "predictions": _of_predictor,
}  # fmt: skip
"""Of the other tables: whether a file goes."""


def _state_goes(found: _Folder, key: str) -> bool:
    """What work that was interrupted has left to go on from."""
    named = re.fullmatch(r"state/(member|repeat|trace|checkpoint|soup)-([^-.]+)(?:-([^-.]+))?\.\w+", key)
    if not named:
        return False
    kind, unit, rest = named.groups()
    if kind == "soup":
        return _of_predictor(found, "state", f"{unit}-{rest}")
    if kind == "checkpoint":
        return unit in found.mine.checkpoints and unit not in found.others.checkpoints
    elsewhere = unit in found.others.members or unit in found.staying
    return not elsewhere and (unit in found.mine.members or key in found.left)


def _weights(found: _Folder, lost: Mapping[str, Collection[str]], state: Collection[str]) -> Iterator[str]:
    """Weights that only rows, markers and state that go name, and these markers."""
    rows = {"cells": found.cells, "members": found.members, "checkpoints": found.checkpoints}
    going = {sha256 for table, units in lost.items() for unit in units for sha256 in _sha256s(rows[table][unit])}
    going |= found.mine.checkpoints
    stays = {sha256 for table, by_id in rows.items() for unit in by_id.keys() - set(lost[table])
             for sha256 in _sha256s(by_id[unit])}  # fmt: skip
    stays |= found.others.checkpoints
    for key in _names(found.folder, "state"):
        (going if key in state else stays).update(_sha256s_of_state(found.folder, key))
    gone = {*lost["cells"], *lost["members"]}
    for key in _names(found.folder, "weights"):
        name, _, kind = key.removeprefix("weights/").partition(".")
        if kind == "pruned":  # a marker, called by its unit and not by what weights are
            known = name in gone or (key in found.left and name not in found.cells and name not in found.members)
        else:
            known = name not in stays and (name in going or key in found.left)
        if known:
            yield key


_SHA256S = ("weights_sha256", "moments_sha256", "parent_sha256", "soup_sha256", "greedy_soup_sha256")


def _sha256s(row: Row) -> set[str]:
    """Of all weights that a row names. A network needs those that it was started from, should it be trained again."""
    return {row[column] for column in _SHA256S if row.get(column)}


def _sha256s_of_state(folder: Folder, key: str) -> set[str]:
    if not key.endswith(".json") or not re.match(r"state/(member|repeat|checkpoint|soup)-", key):
        return set()
    try:
        told = json.loads(folder.get(key))
        return {told[name] for name in ("sha256", "moments_sha256") if isinstance(told.get(name), str)}
    except (FileNotFoundError, ValueError, AttributeError, RecursionError):
        return set()
