"""Whether a results folder is whole: `check` finds what is broken, `repair` moves it aside, `compact` copies rows."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import pyarrow as pa

from raybasin.errors import UserError, one_line
from raybasin.jobs import retention
from raybasin.metrics import cell_scores
from raybasin.store import checksum, folders, inventory, tables
from raybasin.store.folders import Folder
from raybasin.store.predictions import prediction_unit
from raybasin.store.schemas import FILE_NAMES, KEYS, SCHEMAS

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
    for table, lost in (("members", _lost_of_member), ("cells", _lost_of_cell)):
        whole = _Whole(folder, {problem.key for problem in found})
        for unit, row in sorted(whole.rows[table].items()):
            found += [Problem(f"{table}/{unit}.parquet", first) for first in islice(lost(row, whole), 1)]
    return found


# Files by themselves


def _broken_tables(folder: Folder) -> Iterator[Problem]:
    for table in SCHEMAS:
        seen: set[tuple[Any, ...]] = set()
        for unit in tables.units(folder, table):
            what, keys = _look_at(folder, table, unit)
            repeated = [key for key, count in Counter(keys).items() if count > 1 or key in seen]
            seen.update(keys)
            if not what and repeated:
                what = f"holds a key that is there already: {repeated[0]}"
            if what:
                yield Problem(f"{table}/{unit}.parquet", what)


def _look_at(folder: Folder, table: str, unit: str) -> tuple[str, list[tuple[Any, ...]]]:
    """What is wrong with a file by itself, and the keys of its rows, where they can be read."""
    try:
        wrong = _wrong_schema(tables.stored_schema(folder, table, unit), table)
        if wrong:
            return wrong, []
        rows = tables.sound(folder, table, [unit])
    except tables.Damaged as error:
        return error.what, []
    keys, begins = _values(rows, KEYS[table]), {"-".join(map(str, row)) for row in _values(rows, FILE_NAMES[table])}
    if not keys:
        return "holds no rows", []
    others = [begin for begin in sorted(begins) if begin and unit != begin and not unit.startswith(f"{begin}-")]
    return (f"holds rows of {others[0]}" if others else ""), keys


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
        self.rows = {table: {row[KEYS[table][0]]: row for row in tables.rows(folder, table, units[table])}
                     for table in ("cells", "members")}  # fmt: skip
        self.counts = {table: Counter(unit.partition("-")[0] for unit in units[table]) for table in ("paths", "traces")}
        self.eval_ids = {name.removesuffix(".yaml"): stored.eval_ids.by_split for name, stored in sweeps.items()}

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
        raise UserError(f"{destination}: holds results already; name an empty folder with -o")
    for name in folder.names("sweeps"):
        target.put_new(f"sweeps/{name}", folder.get(f"sweeps/{name}"))
    copied = dict.fromkeys(SCHEMAS, 0)
    for table in SCHEMAS:
        part: list[pa.Table] = []  # whole units
        units = tables.units(folder, table)
        for unit in units:
            part.append(tables.read(folder, table, [unit]))
            if sum(map(len, part)) >= COMPACT_ROWS or unit == units[-1]:
                rows = pa.concat_tables(part)
                target.put_new(f"{table}/{tables.part_unit(copied[table])}.parquet", tables.encode_table(rows))
                copied[table] += len(rows)
                part = []
    return copied
