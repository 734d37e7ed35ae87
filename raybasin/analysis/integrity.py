"""Whether a results folder is whole: `check` finds what is broken, `repair` moves it aside, `compact` copies the rows,
`rescore` computes every score again from stored predictions.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from raybasin.errors import UserError, one_line
from raybasin.jobs import retention
from raybasin.metrics import scoring
from raybasin.store import checksum, folders, inventory, tables
from raybasin.store.folders import Folder
from raybasin.store.predictions import prediction_unit
from raybasin.store.schemas import FILE_NAMES, KEYS, SCHEMAS
from raybasin.sweep import plan

COMPACT_ROWS = 2_000_000
UNFINISHED = "was left by a write that did not finish"
UNFINISHED_SECONDS = 300.0
"""What is being written, and has not grown for so long, never will."""


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
    """Everything in the folder that is not as a finished write leaves it."""
    found = [*_broken_tables(folder), *_broken_weights(folder), *_broken_sweeps(folder)]
    broken = {problem.key for problem in found}
    found += _broken_state(folder, broken)
    found += _unfinished_writes(folder)
    found += _incomplete_members(folder, broken)
    found += _incomplete_cells(folder, broken | {problem.key for problem in found})
    return found


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
    name = f"{table}/{unit}.parquet"
    try:
        wrong = _wrong_schema(tables.stored_schema(folder, table, unit), table)
        if wrong:
            return wrong, []
        rows = tables.sound(folder, table, [unit])
    except UserError as error:
        what = str(error).partition(f"{name}: ")[2].partition("; `raybasin")[0]
        return what if what and "is not a readable" not in what else "cannot be read as a file of its table", []
    keys = [tuple(key.values()) for key in rows.select(list(KEYS[table])).to_pylist()]
    if not keys:
        return "holds no rows", []
    others = [name for name in sorted(_names(rows, table)) if unit != name and not unit.startswith(f"{name}-")]
    return (f"holds rows of {others[0]}" if others else ""), keys


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


def _names(rows: pa.Table, table: str) -> set[str]:
    """What the name of the file that holds `rows` should begin with; nothing where it does not follow from rows."""
    columns = FILE_NAMES[table]
    if not columns:
        return set()
    return {"-".join(map(str, row.values())) for row in rows.select(list(columns)).to_pylist()}


def _broken_weights(folder: Folder) -> Iterator[Problem]:
    for name in folder.names("weights"):
        key = f"weights/{name}"
        if name.endswith(".pruned"):
            if retention.marked(folder.get(key)) is None:
                yield Problem(key, "does not say which weights were pruned")
        elif hashlib.sha256(folder.get(key)).hexdigest() != name.removesuffix(".safetensors"):
            yield Problem(key, "its content is not what its name says")


def _broken_state(folder: Folder, broken: set[str]) -> Iterator[Problem]:
    """What jobs that were interrupted left to go on from, where nothing can go on from it."""
    for name in folder.names("state"):
        key = f"state/{name}"
        if not name.startswith(("member-", "checkpoint-", "repeat-", "soup-")):
            continue
        try:
            if name.endswith(".safetensors"):
                checksum.check(folder.get(key))
                continue
            left = json.loads(folder.get(key))
            digests = filter(None, (left.get(column) for column in ("sha256", "moments_sha256")))
            named = [f"weights/{sha256}.safetensors" for sha256 in digests]
        except FileNotFoundError:  # its job has just ended
            continue
        except (ValueError, AttributeError) as error:
            yield Problem(key, f"cannot be gone on from ({' '.join(str(error).split())[:80]})")
            continue
        lost = [weights for weights in named if weights in broken or not folder.exists(weights)]
        if lost:
            yield Problem(key, f"its {lost[0]} is missing or broken")


def _unfinished_writes(folder: Folder) -> Iterator[Problem]:
    """What writers that were killed left; that of a writer at work is younger."""
    for key, seconds in folder.unfinished():
        if seconds > UNFINISHED_SECONDS:
            yield Problem(key, UNFINISHED)


def _broken_sweeps(folder: Folder) -> Iterator[Problem]:
    for name in folder.names("sweeps"):
        try:
            inventory.sweep_from(folder.get(f"sweeps/{name}"), name)
        except UserError as error:
            yield Problem(f"sweeps/{name}", one_line(error, 200).removeprefix(f"{name}: "))


def _incomplete_members(folder: Folder, broken: set[str]) -> Iterator[Problem]:
    """Committed members that lack their weights or their epochs, or whose parent is another network by now.

    Lost predictions are a matter of cells: they can be made again without training.
    """
    sound = dict(_sound_rows(folder, "members", broken))
    sha256 = {row["member_id"]: row["weights_sha256"] for row in sound.values()}
    pruned = {unit for unit in inventory.pruned(folder) if f"weights/{unit}.pruned" not in broken}
    for name, row in sound.items():
        weights = [f"weights/{digest}.safetensors" for digest in retention.weights_named(row)]
        lost = [key for key in weights if key in broken or not folder.exists(key)]
        if lost and row["member_id"] not in pruned:
            yield Problem(name, f"its {lost[0]} is missing or broken")
        elif row["cycle_steps"] == 0:  # drawn, not trained: it has no epochs
            continue
        elif f"epochs/{row['member_id']}.parquet" in broken or not tables.exists(folder, "epochs", row["member_id"]):
            yield Problem(name, "its epochs are missing or broken")
        elif row["parent_id"] in sha256 and sha256[row["parent_id"]] != row["parent_sha256"]:
            yield Problem(name, f"was trained from other weights than its parent {row['parent_id']} has now")


def _incomplete_cells(folder: Folder, broken: set[str]) -> Iterator[Problem]:
    """Committed cells that lack a member, its predictions, a path, their scores or the weights of a soup."""
    eval_ids = _eval_ids(folder, broken)
    pruned = set(inventory.pruned(folder))
    predicted = {u for u in tables.units(folder, "predictions") if f"predictions/{u}.parquet" not in broken}
    paths = Counter(unit.partition("-")[0] for unit in tables.units(folder, "paths")
                    if f"paths/{unit}.parquet" not in broken)  # fmt: skip
    traced = Counter(unit.partition("-")[0] for unit in tables.units(folder, "traces")
                     if f"traces/{unit}.parquet" not in broken)  # fmt: skip
    for name, row in _sound_rows(folder, "cells", broken):
        cell_id, members = row["cell_id"], row["member_ids"]
        lost = [m for m in members if f"members/{m}.parquet" in broken or not tables.exists(folder, "members", m)]
        soups = scoring.soups_of(row)
        weights = [f"weights/{soup.sha256}.safetensors" for soup in soups if soup.sha256]
        gone = [key for key in weights if key in broken or not folder.exists(key)]
        gone = [] if cell_id in pruned else gone
        predictors = [*members, *(soup.predictor_id for soup in soups)]
        unpredicted = _unpredicted(predictors, row, eval_ids.get(row["settings_id"], {}), predicted)
        if lost:
            yield Problem(name, f"its member {lost[0]} is missing or broken")
        elif unpredicted:
            yield Problem(name, f"its predictions/{unpredicted[0]}.parquet is missing or broken")
        elif f"scores/{cell_id}.parquet" in broken or not tables.exists(folder, "scores", cell_id):
            yield Problem(name, "its scores are missing or broken")
        elif paths[cell_id] < 2 * len(members) - 3:  # to each member, and from each member to the next
            yield Problem(name, "some of its paths are missing or broken")
        elif row["checkpoint_barrier_error"] is not None and traced[cell_id] < len(_runs(folder, members, broken)):
            yield Problem(name, "some of its traces are missing or broken")
        elif gone:
            yield Problem(name, f"its soup {gone[0]} is missing or broken")


def _unpredicted(
    predictors: Sequence[str], row: Mapping[str, Any], eval_ids: Mapping[str, str], there: Collection[str]
) -> list[str]:
    """The files that a cell lacks of the predictions that it has kept."""
    found = []
    for split in scoring.kept_splits(row) or plan.OWN_SPLITS:
        if split in eval_ids:
            units = [prediction_unit(predictor_id, eval_ids[split]) for predictor_id in predictors]
            found += [unit for unit in units if unit not in there and f"{unit}-{split}" not in there]
    return found


def _runs(folder: Folder, member_ids: Sequence[str], broken: set[str]) -> set[str]:
    """What a cell has traces of: its members, or the run that they were drawn from."""
    rows = tables.rows(folder, "members", [m for m in member_ids if f"members/{m}.parquet" not in broken])
    return {row["parent_id"] if row["kind"] == "sample" else row["member_id"] for row in rows}


def _eval_ids(folder: Folder, broken: set[str]) -> dict[str, dict[str, str]]:
    """The eval_id of each split, by settings_id, from the resolved sweep files."""
    found = {}
    for name in folder.names("sweeps"):
        if f"sweeps/{name}" not in broken:
            found[name.removesuffix(".yaml")] = inventory.sweep_from(
                folder.get(f"sweeps/{name}"), name
            ).eval_ids.by_split
    return found


def _sound_rows(folder: Folder, table: str, broken: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for unit in tables.units(folder, table):
        name = f"{table}/{unit}.parquet"
        if name not in broken:
            yield from ((name, row) for row in tables.rows(folder, table, [unit]))


# repair


def repair(folder: Folder, problems: Sequence[Problem]) -> str:
    """Moves what is broken, and what was made from it, into a folder beside the tables, which it names: the next run
    then does both again. Members that were trained from a broken one stay; should it come out with other weights than
    before (on a GPU it may), the next check finds them."""
    place = f"state/broken-{tables.now():%Y%m%dT%H%M%S%f}"
    for key in _with_dependents(folder, {problem.key for problem in problems}):
        with contextlib.suppress(FileNotFoundError):  # a job that went on has just removed it
            folder.move(key, f"{place}/{key}")
    return place


def _with_dependents(folder: Folder, broken: set[str]) -> list[str]:
    """The broken files, what broken members predicted, their paths and traces, and the scores of broken cells."""
    members, cells = (_units_among(broken, table) for table in ("members", "cells"))
    found = set(broken)
    found |= {f"epochs/{member}.parquet" for member in members if tables.exists(folder, "epochs", member)}
    lost = members | {soup for name in cells for soup in _soup_ids(folder, f"cells/{name}.parquet")}
    found |= {f"predictions/{unit}.parquet" for unit in tables.units(folder, "predictions")
              if unit.partition("-")[0] in lost}  # fmt: skip
    found |= {f"scores/{cell}.parquet" for cell in cells if tables.exists(folder, "scores", cell)}
    for unit in tables.units(folder, "paths"):
        key = f"paths/{unit}.parquet"
        if unit.partition("-")[0] in cells and key not in found:
            point = tables.rows(folder, "paths", [unit])[0]
            if {point["start_id"], point["end_id"]} & members:
                found.add(key)
    for unit in tables.units(folder, "traces") if members else ():
        key = f"traces/{unit}.parquet"
        if key not in found:
            path = tables.rows(folder, "traces", [unit])[0]
            if {path["hub_id"], path["member_id"]} & members:
                found.add(key)
    return sorted(found)


def _units_among(keys: set[str], table: str) -> set[str]:
    return {key.removeprefix(f"{table}/").removesuffix(".parquet") for key in keys if key.startswith(f"{table}/")}


def _soup_ids(folder: Folder, key: str) -> list[str]:
    """The predictor ids of a cell's soups; none where its row cannot be read."""
    try:
        rows = tables.sound(folder, "cells", _units_among({key}, "cells")).to_pylist()
    except UserError:
        return []
    return [soup.predictor_id for row in rows for soup in scoring.soups_of(row)]


# compact


def compact(folder: Folder, destination: str | Path) -> dict[str, int]:
    """A copy of all tables in few large files, the resolved sweep files beside them; rows copied, by table.

    Weights and control state are not copied. Raises UserError where there are no results, or the destination holds
    something already.
    """
    check_holds_results(folder)
    target = folders.create(destination, option="-o")
    if any(target.names(name) for name in (*SCHEMAS, "sweeps")):
        raise UserError(f"{destination}: holds results already; name an empty folder with -o")
    for name in folder.names("sweeps"):
        target.put_new(f"sweeps/{name}", folder.get(f"sweeps/{name}"))
    return {table: _compact_table(folder, target, table) for table in SCHEMAS}


def _compact_table(folder: Folder, target: Folder, table: str) -> int:
    copied = 0
    for part in _large_parts(folder, table):
        target.put_new(f"{table}/{tables.part_unit(copied)}.parquet", tables.encode_table(part))
        copied += len(part)
    return copied


def _large_parts(folder: Folder, table: str) -> Iterator[pa.Table]:
    """The rows of `table`, whole units together, at least COMPACT_ROWS at a time but for the last."""
    units: list[pa.Table] = []
    for unit in tables.units(folder, table):
        units.append(tables.read(folder, table, [unit]))
        if sum(map(len, units)) >= COMPACT_ROWS:
            yield pa.concat_tables(units)
            units = []
    if units:
        yield pa.concat_tables(units)


# rescore
