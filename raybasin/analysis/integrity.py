"""Whether a results folder is whole: `check` finds what is broken, `repair` moves it aside, `compact` copies rows."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from raybasin.errors import StoreError, UserError, one_line
from raybasin.jobs import retention
from raybasin.metrics import cell_scores
from raybasin.store import checksum, folders, inventory, tables
from raybasin.store.folders import Folder
from raybasin.store.predictions import prediction_unit
from raybasin.store.schemas import FILE_NAMES, KEYS, SCHEMAS

if TYPE_CHECKING:
    from typing_extensions import Buffer

COMPACT_ROWS = 2_000_000
UNFINISHED = "was left by a write that did not finish"
UNFINISHED_SECONDS = 300.0
"""What is being written, and has not grown for so long, never will."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """`key` names the broken file, or the commit that lacks something; `unit` is the cell or member concerned."""

    key: str
    what: str

    def __str__(self) -> str:
        return f"{self.key}: {self.what}"


# check


def check_holds_results(folder: Folder) -> None:
    """Raises UserError for a folder in which no sweep has left anything."""
    if not any(folder.names(name) for name in (*SCHEMAS, "sweeps", "weights")):
        raise UserError(
            f"results folder {folder.root}: holds no results; `raybasin sweep FILE --results {folder.root}` makes some"
        )


def check(folder: Folder) -> list[Problem]:
    """Everything in the folder that is not as a finished write leaves it. Raises UserError for results of another
    version: what is whole in theirs would seem broken."""
    inventory.check_version(folder)
    found = [*_broken_tables(folder), *_broken_weights(folder), *_broken_sweeps(folder)]
    found += _broken_state(folder, {problem.key for problem in found})
    # What a writer at work is writing is younger.
    found += [Problem(key, UNFINISHED) for key, seconds in folder.unfinished() if seconds > UNFINISHED_SECONDS]
    whole = _Whole(folder, {problem.key for problem in found})
    for table, lost in (("members", _lost_of_member), ("cells", _lost_of_cell)):
        lacking = [
            Problem(f"{table}/{unit}.parquet", first)
            for unit, row in sorted(whole.rows[table].items())
            for first in islice(lost(row, whole), 1)
        ]
        found += lacking
        whole.drop(table, {problem.key for problem in lacking})
    return found


# Files by themselves


def _broken_tables(folder: Folder) -> Iterator[Problem]:
    for table in SCHEMAS:
        units = tables.units(folder, table)
        shares = [units[start : start + tables.FILES_AT_ONCE] for start in range(0, len(units), tables.FILES_AT_ONCE)]
        found: dict[str, str] = {}
        hashes, rows = list[npt.NDArray[np.uint64]](), list[int]()
        for share, looked_at in zip(shares, _looked_at(folder, table, shares), strict=True):
            found.update(looked_at.broken)
            hashes.append(looked_at.hashes)
            rows += (looked_at.rows.get(unit, 0) for unit in share)
        for unit, what in _repeated(folder, table, _alike(units, hashes, rows)):
            found.setdefault(unit, what)
        yield from (Problem(f"{table}/{unit}.parquet", found[unit]) for unit in units if unit in found)


@dataclass(frozen=True)
class _LookedAt:
    """What is wrong with some files by themselves, by unit; a hash of the key of each of their rows, in the order of
    units, and how many rows each has."""

    broken: dict[str, str]
    hashes: npt.NDArray[np.uint64]
    rows: dict[str, int]


def _looked_at(folder: Folder, table: str, shares: Sequence[Sequence[str]]) -> Iterator[_LookedAt]:
    """Of each share of the units, in their order, as many at once as Arrow may have threads."""
    look = partial(_look_at_all, folder, table)
    if len(shares) <= 1:
        yield from map(look, shares)
        return
    with ThreadPoolExecutor(min(len(shares), pa.cpu_count())) as threads:
        yield from threads.map(look, shares)


def _look_at_all(folder: Folder, table: str, units: Sequence[str]) -> _LookedAt:
    """Files are looked at together, and one by one where something is wrong with one of them."""
    try:
        found = [_whole_rows(content, table) for content in folder.get_all([f"{table}/{u}.parquet" for u in units])]
        counts = dict(zip(units, map(len, found), strict=True))
        rows = pa.concat_tables(found).combine_chunks()
        if tables.problem(table, rows) is None and not any(_others(table, rows, counts).values()):
            return _LookedAt({}, _hashes(rows.select(list(KEYS[table]))), counts)
    except StoreError:
        raise
    except (pa.ArrowException, OSError, ValueError, _NotWhole):
        pass  # it is said below of which file, and what
    broken, kept = dict[str, str](), dict[str, pa.Table]()
    for unit in units:
        what, keys = _look_at(folder, table, unit)
        broken |= {unit: what} if what else {}
        kept |= {} if keys is None else {unit: keys}
    none = SCHEMAS[table].empty_table().select(list(KEYS[table]))
    every = pa.concat_tables([none, *kept.values()]).combine_chunks()
    return _LookedAt(broken, _hashes(every), {unit: len(keys) for unit, keys in kept.items()})


class _NotWhole(Exception):
    """A file of which `_look_at` says what is wrong."""


def _whole_rows(content: Buffer, table: str) -> pa.Table:
    rows = tables.stored(content)
    if _wrong_schema(rows.schema, table) or not len(rows):
        raise _NotWhole
    return tables.with_schema(table, rows)


def _look_at(folder: Folder, table: str, unit: str) -> tuple[str, pa.Table | None]:
    """What is wrong with a file by itself, and the keys of its rows, where they can be read."""
    try:
        wrong = _wrong_schema(tables.stored_schema(folder, table, unit), table)
        if wrong:
            return wrong, None
        rows = tables.sound(folder, table, [unit])
    except tables.Damaged as error:
        return error.what, None
    if not len(rows):
        return "holds no rows", None
    other = _others(table, rows, {unit: len(rows)})[unit]
    return (f"holds rows of {other}" if other else ""), rows.select(list(KEYS[table]))


def _others(table: str, rows: pa.Table, counts: Mapping[str, int]) -> dict[str, str]:
    """Of each unit the first of those whose rows its file holds although its name is not theirs; empty where there is
    none. `rows` are those of the units one after another, so many of each as `counts` says."""
    found = dict.fromkeys(counts, "")
    if not FILE_NAMES[table]:
        return found
    begins = pc.binary_join_element_wise(*(rows[name] for name in FILE_NAMES[table]), "-")
    unit = pa.array(np.repeat(np.arange(len(counts)), list(counts.values())))
    pairs = pa.table({"unit": unit, "begin": begins}).group_by(["unit", "begin"]).aggregate([]).to_pylist()
    units = list(counts)
    for unit_number, begin in sorted((pair["unit"], pair["begin"]) for pair in pairs):
        name = units[unit_number]
        if begin and name != begin and not name.startswith(f"{begin}-"):
            found[name] = found[name] or begin
    return found


# Keys that are there twice


def _hashes(keys: pa.Table) -> npt.NDArray[np.uint64]:
    """A number for each row, equal where keys are: of a large table all of them are held at once."""
    found = np.zeros(len(keys), dtype=np.uint64)
    for column in keys.columns:
        codes = column.combine_chunks().dictionary_encode()
        values = pd.util.hash_array(np.array(codes.dictionary.to_pylist(), dtype=object), categorize=False)
        found = found * np.uint64(0x9E3779B97F4A7C15) + (values[codes.indices.to_numpy()] if len(values) else found)
    return found


def _alike(units: Sequence[str], hashes: Sequence[npt.NDArray[np.uint64]], rows: Sequence[int]) -> list[str]:
    """The units, of these in their order with so many rows each, that hold a row whose hash is there twice."""
    every = np.concatenate([np.empty(0, dtype=np.uint64), *hashes])
    in_order = np.sort(every)
    twice = in_order[1:][in_order[1:] == in_order[:-1]]
    if not len(twice):
        return []
    places = np.searchsorted(np.cumsum(rows), np.flatnonzero(np.isin(every, twice)), side="right")
    return [units[place] for place in np.unique(places)]


def _repeated(folder: Folder, table: str, units: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Those of a few units that hold a key twice, or one that a unit before them holds, with what is to be said."""
    seen: set[tuple[Any, ...]] = set()
    for unit in units:
        keys = _values(tables.read(folder, table, [unit], columns=list(KEYS[table])), KEYS[table])
        again = [key for key, count in Counter(keys).items() if count > 1 or key in seen]
        seen.update(keys)
        if again:
            yield unit, f"holds a key that is there already: {again[0]}"


def _values(rows: pa.Table, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in rows.select(list(columns)).to_pylist()]


def _wrong_schema(stored: pa.Schema, table: str) -> str:
    """What of the schema of a file is not that of its table; columns that older files lack are not wrong."""
    schema = SCHEMAS[table]
    missing = {*KEYS[table], *FILE_NAMES[table]} - set(stored.names)
    if missing:
        return f"lacks column {sorted(missing)[0]}"
    for field in stored:
        if field.name not in schema.names:
            return f"has a column {field.name}, which its table does not have"
        if not field.type.equals(schema.field(field.name).type):
            return f"has column {field.name} as {field.type} instead of {schema.field(field.name).type}"
    return ""


def _broken_weights(folder: Folder) -> Iterator[Problem]:
    for name in folder.names("weights"):
        key = f"weights/{name}"
        if name.endswith(".pruned"):
            if retention.marked(folder.get(key)) is None:
                yield Problem(key, "does not say which weights were pruned")
        elif hashlib.sha256(folder.get(key)).hexdigest() != name.removesuffix(".safetensors"):
            yield Problem(key, "its content is not what its name says")


def _broken_sweeps(folder: Folder) -> Iterator[Problem]:
    for name in folder.names("sweeps"):
        try:
            inventory.sweep_from(folder.get(f"sweeps/{name}"), name)
        except UserError as error:
            yield Problem(f"sweeps/{name}", one_line(error, 200).removeprefix(f"{name}: "))


def _broken_state(folder: Folder, broken: Collection[str]) -> Iterator[Problem]:
    """What jobs that were interrupted left to go on from, where nothing can go on from it."""
    for name in folder.names("state"):
        key = f"state/{name}"
        if not name.startswith(("member-", "checkpoint-", "repeat-", "soup-")):
            continue
        named: list[str] = []
        try:
            content = folder.get(key)
            if name.endswith(".safetensors"):
                checksum.check(content)
            else:
                left = json.loads(content)
                digests = filter(None, (left.get(column) for column in ("sha256", "moments_sha256")))
                named = [f"weights/{sha256}.safetensors" for sha256 in digests]
        except FileNotFoundError:  # its job has just ended
            continue
        except (ValueError, AttributeError) as error:
            yield Problem(key, f"cannot be gone on from ({one_line(error, 80)})")
        lost = [weights for weights in named if weights in broken or not folder.exists(weights)]
        if lost:
            yield Problem(key, f"its {lost[0]} is missing or broken")


# What commits speak of

SPEAKING = {
    "cells": ["cell_id", "settings_id", "member_ids", "kept_predictions", "soup_sha256", "greedy_soup_sha256",
              "greedy_soup_members", "checkpoint_barrier_error"],
    "members": ["member_id", "parent_id", "kind", "cycle_steps", "weights_sha256", "moments_sha256", "parent_sha256"],
}  # fmt: skip
"""The columns of rows that commit which say what else has to be there."""


class _Whole:
    """What is there and not `broken`: `files` of the tables, the weights and the sweep files, by key; the `rows` of
    `cells` and `members`, by table and id; how many `paths` and `traces` each cell has (`counts`); the eval_id of each
    split, by settings_id."""

    def __init__(self, folder: Folder, broken: Collection[str]) -> None:
        # Commits come first: what they speak of was there before them, also while a sweep runs.
        listed = [(place, folder.names(place)) for place in (*SCHEMAS, "weights", "sweeps")]
        names = {place: [name for name in there if f"{place}/{name}" not in broken] for place, there in listed}
        units = {table: [name.removesuffix(".parquet") for name in names[table]] for table in SCHEMAS}
        sweeps = {name: inventory.sweep_from(folder.get(f"sweeps/{name}"), name) for name in names["sweeps"]}
        self.files = {f"{place}/{name}" for place in names for name in names[place]}
        self.rows = {table: {row[KEYS[table][0]]: row
                             for row in tables.read(folder, table, units[table], columns=columns).to_pylist()}
                     for table, columns in SPEAKING.items()}  # fmt: skip
        self.counts = {table: Counter(unit.partition("-")[0] for unit in units[table]) for table in ("paths", "traces")}
        self.eval_ids = {name.removesuffix(".yaml"): stored.eval_ids.by_split for name, stored in sweeps.items()}

    def drop(self, table: str, keys: AbstractSet[str]) -> None:
        """Forgets rows of a table that lack something, and their files."""
        self.files -= keys
        for key in keys:
            del self.rows[table][Path(key).stem]

    def has(self, table: str, unit: str) -> bool:
        return f"{table}/{unit}.parquet" in self.files

    def lost_weights(self, unit: str, sha256s: Iterable[str | None]) -> list[str]:
        """Those weights of a member or cell that are neither there nor pruned."""
        keys = [f"weights/{sha256}.safetensors" for sha256 in sha256s if sha256]
        return [] if f"weights/{unit}.pruned" in self.files else [key for key in keys if key not in self.files]


def _lost_of_member(row: Row, whole: _Whole) -> Iterator[str]:
    """Weights or epochs that are not there, or a parent that is another network by now. Lost predictions are a matter
    of cells: they can be made again without training."""
    for key in whole.lost_weights(row["member_id"], retention.weights_named(row)):
        yield f"its {key} is missing or broken"
    if row["cycle_steps"] == 0:  # drawn, not trained: it has no epochs
        return
    if not whole.has("epochs", row["member_id"]):
        yield "its epochs are missing or broken"
    parent = whole.rows["members"].get(row["parent_id"])
    if parent and parent["weights_sha256"] != row["parent_sha256"]:
        yield f"was trained from other weights than its parent {row['parent_id']} has now"


def _lost_of_cell(row: Row, whole: _Whole) -> Iterator[str]:
    """A member, predictions, scores, paths, traces or the weights of a soup."""
    cell_id, members, soups = row["cell_id"], row["member_ids"], cell_scores.soups_of(row)
    for member_id in members:
        if not whole.has("members", member_id):
            yield f"its member {member_id} is missing or broken"
    eval_ids = whole.eval_ids.get(row["settings_id"], {})
    kept = [split for split in row["kept_predictions"] if split in eval_ids]
    for split, predictor_id in product(kept, [*members, *(soup.predictor_id for soup in soups)]):
        unit = prediction_unit(predictor_id, eval_ids[split])
        if not whole.has("predictions", unit) and not whole.has("predictions", f"{unit}-{split}"):
            yield f"its predictions/{unit}.parquet is missing or broken"
    if not whole.has("scores", cell_id):
        yield "its scores are missing or broken"
    if whole.counts["paths"][cell_id] < 2 * len(members) - 3:  # to each member, and from each member to the next
        yield "some of its paths are missing or broken"
    # Traces are of members, or of the run that these were drawn from.
    rows = [whole.rows["members"].get(member_id, {}) for member_id in members]
    runs = {member.get("parent_id" if member.get("kind") == "sample" else "member_id") for member in rows} - {None}
    if row["checkpoint_barrier_error"] is not None and whole.counts["traces"][cell_id] < len(runs):
        yield "some of its traces are missing or broken"
    for key in whole.lost_weights(cell_id, [soup.sha256 for soup in soups]):
        yield f"its soup {key} is missing or broken"


# repair


def repair(folder: Folder, problems: Sequence[Problem]) -> str:
    """Moves what is broken, and what was made from it (what broken members predicted, their paths and traces, scores of
    broken cells), into a folder beside the tables, which it names: the next run then does both again. Members that were
    trained from a broken one stay; should it come out with other weights than before (on a GPU it may), the next check
    finds them."""
    broken = {problem.key for problem in problems}
    members, cells = (
        {Path(key).stem for key in broken if key.startswith(f"{table}/")} for table in ("members", "cells")
    )
    lost = set(members)
    for cell_id in cells:
        with contextlib.suppress(UserError):  # its row cannot be read
            rows = tables.sound(folder, "cells", [cell_id]).to_pylist()
            lost.update(soup.predictor_id for row in rows for soup in cell_scores.soups_of(row))
    found = broken | {f"{table}/{unit}.parquet" for table, units in (("epochs", members), ("scores", cells))
                      for unit in units if tables.exists(folder, table, unit)}  # fmt: skip
    found |= {f"predictions/{unit}.parquet" for unit in tables.units(folder, "predictions")
              if unit.partition("-")[0] in lost}  # fmt: skip
    for table, ends in (("paths", ("start_id", "end_id")), ("traces", ("hub_id", "member_id"))):
        for unit in tables.units(folder, table) if members else ():
            key = f"{table}/{unit}.parquet"
            if key not in found and members & {tables.rows(folder, table, [unit])[0][end] for end in ends}:
                found.add(key)
    place = f"state/broken-{tables.now():%Y%m%dT%H%M%S%f}"
    for key in sorted(found):
        with contextlib.suppress(FileNotFoundError):  # a job that went on has just removed it
            folder.move(key, f"{place}/{key}")
    return place


# compact


def compact(folder: Folder, destination: str | Path) -> dict[str, int]:
    """A copy of all tables in few large files, the resolved sweep files beside them; rows copied, by table.

    Weights and control state are not copied. Raises UserError where there are no results, or those of another version,
    or where the destination holds something already.
    """
    check_holds_results(folder)
    inventory.check_version(folder)
    target = folders.create(destination, option="-o")
    if any(target.names(name) for name in (*SCHEMAS, "sweeps")):
        raise UserError(
            f"{destination}: holds results already, or a copy that was not finished; name an empty folder with -o"
        )
    # Commits are listed first: what they speak of was there before them, also while a sweep runs. They are written
    # last, and sweep files after them, so that nobody reads a copy that is not finished as if it were whole.
    units = {table: tables.units(folder, table) for table in SCHEMAS}
    copied = {table: _copy_rows(folder, table, units[table], target) for table in reversed(SCHEMAS)}
    for name in folder.names("sweeps"):
        target.put_new(f"sweeps/{name}", folder.get(f"sweeps/{name}"))
    return {table: copied[table] for table in SCHEMAS}


def _copy_rows(folder: Folder, table: str, units: Sequence[str], target: Folder) -> int:
    """Copies the rows of these units, in their order, into as few files as may be; how many there are."""
    copied, left = 0, tables.each(folder, table, units)
    while (first := next(left, None)) is not None:
        with tables.Part(table) as part:
            part.add(first)
            while part.rows < COMPACT_ROWS and (more := next(left, None)) is not None:
                part.add(more)
        target.put_new(f"{table}/{tables.part_unit(copied)}.parquet", part.content)
        copied += part.rows
    return copied
