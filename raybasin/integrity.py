"""Whether a results folder is whole: `check` finds what is broken, `repair` moves it aside, `compact` copies the rows,
`rescore` computes every score again from stored predictions.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import yaml

from raybasin import scoring, store, tables
from raybasin.errors import UserError
from raybasin.store import Folder

COMPACT_ROWS = 2_000_000
TOLERANCE = 1e-9
"""How far a score computed again may lie from the stored one: other versions sum in another order."""


SOUPS = (("uniform", "soup_sha256"), ("greedy", "greedy_soup_sha256"))
"""Kinds of soup, and the column of `cells` that names the weights of each."""


@dataclass(frozen=True)
class Problem:
    """`key` names the broken file, or the commit that lacks something; `unit` is the cell or member concerned."""

    key: str
    what: str

    def __str__(self) -> str:
        return f"{self.key}: {self.what}"


# check


def check(folder: Folder) -> list[Problem]:
    """Everything in the folder that is not as a finished write leaves it."""
    found = [*_broken_tables(folder), *_broken_weights(folder), *_broken_sweeps(folder)]
    broken = {problem.key for problem in found}
    found += _incomplete_members(folder, broken)
    found += _incomplete_cells(folder, broken | {problem.key for problem in found})
    return found


def _broken_tables(folder: Folder) -> Iterator[Problem]:
    for table in tables.SCHEMAS:
        seen: Counter[tuple[Any, ...]] = Counter()
        for unit in tables.units(folder, table):
            name = f"{table}/{unit}.parquet"
            try:
                keys = tables.read(folder, table, [unit]).select(list(tables.KEYS[table])).to_pylist()
            except UserError:
                yield Problem(name, "cannot be read as a file of its table")
                continue
            seen.update(tuple(key.values()) for key in keys)
            repeated = [tuple(key.values()) for key in keys if seen[tuple(key.values())] > 1]
            if repeated:
                yield Problem(name, f"holds a key that is there already: {repeated[0]}")
            if not keys:
                yield Problem(name, "holds no rows")


def _broken_weights(folder: Folder) -> Iterator[Problem]:
    for name in folder.names("weights"):
        key = f"weights/{name}"
        if hashlib.sha256(folder.get(key)).hexdigest() != name.removesuffix(".safetensors"):
            yield Problem(key, "its content is not what its name says")


def _broken_sweeps(folder: Folder) -> Iterator[Problem]:
    for name in folder.names("sweeps"):
        try:
            tree = yaml.safe_load(folder.get(f"sweeps/{name}"))
            if not isinstance(tree, dict) or not {"sweep", "facts"} <= set(tree):
                raise ValueError("is not a resolved sweep file")
        except (yaml.YAMLError, ValueError) as error:
            yield Problem(f"sweeps/{name}", " ".join(str(error).split())[:100])


def _incomplete_members(folder: Folder, broken: set[str]) -> Iterator[Problem]:
    """Committed members that lack their weights or their epochs, or whose parent is another network by now.

    Lost predictions are a matter of cells: they can be made again without training.
    """
    sound = dict(_sound_rows(folder, "members", broken))
    sha256 = {row["member_id"]: row["weights_sha256"] for row in sound.values()}
    for name, row in sound.items():
        named = [row["weights_sha256"], *filter(None, [row["moments_sha256"]])]
        weights = [f"weights/{digest}.safetensors" for digest in named]
        lost = [key for key in weights if key in broken or not folder.exists(key)]
        if lost:
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
    paths = Counter(unit.partition("-")[0] for unit in tables.units(folder, "paths")
                    if f"paths/{unit}.parquet" not in broken)  # fmt: skip
    for name, row in _sound_rows(folder, "cells", broken):
        cell_id, members = row["cell_id"], row["member_ids"]
        lost = [m for m in members if f"members/{m}.parquet" in broken or not tables.exists(folder, "members", m)]
        made = {scoring.soup_id(kind, SimpleNamespace(**row)): row[column] for kind, column in SOUPS if row[column]}
        soups = [f"weights/{sha256}.safetensors" for sha256 in made.values()]
        gone = [key for key in soups if key in broken or not folder.exists(key)]
        eval_id = eval_ids.get(row["settings_id"])
        predictors = [*members, *made] if eval_id else []
        predicted = [f"predictions/{tables.prediction_unit(p, str(eval_id))}.parquet" for p in predictors]
        unpredicted = [key for key in predicted if key in broken or not folder.exists(key)]
        if lost:
            yield Problem(name, f"its member {lost[0]} is missing or broken")
        elif unpredicted:
            yield Problem(name, f"its {unpredicted[0]} is missing or broken")
        elif f"scores/{cell_id}.parquet" in broken or not tables.exists(folder, "scores", cell_id):
            yield Problem(name, "its scores are missing or broken")
        elif paths[cell_id] < 2 * len(members) - 3:  # to each member, and from each member to the next
            yield Problem(name, "some of its paths are missing or broken")
        elif gone:
            yield Problem(name, f"its soup {gone[0]} is missing or broken")


def _eval_ids(folder: Folder, broken: set[str]) -> dict[str, str]:
    """The eval_id of each settings_id, from the resolved sweep files."""
    names = [f"sweeps/{name}" for name in folder.names("sweeps") if f"sweeps/{name}" not in broken]
    trees = [yaml.safe_load(folder.get(name)) for name in names]
    return {str(tree.get("settings_id")): str(tree["facts"].get("eval_id")) for tree in trees}


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
        source, target = folder.path(key), folder.path(f"{place}/{key}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, target)
    return place


def _with_dependents(folder: Folder, broken: set[str]) -> list[str]:
    """The broken files, what broken members predicted, their paths, and what broken cells were scored with."""
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
    return sorted(found)


def _units_among(keys: set[str], table: str) -> set[str]:
    return {key.removeprefix(f"{table}/").removesuffix(".parquet") for key in keys if key.startswith(f"{table}/")}


def _soup_ids(folder: Folder, key: str) -> list[str]:
    """The predictor ids of a cell's soups; none where its row cannot be read."""
    try:
        [row] = tables.rows(folder, "cells", _units_among({key}, "cells"))
    except UserError:
        return []
    cell = SimpleNamespace(cell_id=row["cell_id"], member_ids=row["member_ids"], reference_ids=())
    return [scoring.soup_id(kind, cell) for kind in ("uniform", "greedy")]


# compact


def compact(folder: Folder, destination: str | Path) -> dict[str, int]:
    """A copy of all tables in few large files, the resolved sweep files beside them; rows copied, by table.

    Weights and control state are not copied. Raises UserError where the destination holds something already.
    """
    target = store.create(destination)
    if any(target.names(name) for name in (*tables.SCHEMAS, "sweeps")):
        raise UserError(f"{destination}: holds results already; name an empty folder with -o")
    for name in folder.names("sweeps"):
        target.put_new(f"sweeps/{name}", folder.get(f"sweeps/{name}"))
    return {table: _compact_table(folder, target, table) for table in tables.SCHEMAS}


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


@dataclass(frozen=True)
class Rescored:
    """`scores` and `figures` computed again; `differences` names those that are not what is stored."""

    cells: int
    figures: int
    largest_difference: float
    differences: tuple[str, ...]


def rescore(folder: Folder, cells: Sequence[Mapping[str, Any]], eval_id: str, threshold: float) -> Rescored:
    """Every score of `cells` (rows of the table) again from stored predictions and paths, without torch or a GPU."""
    count, largest, differences = 0, 0.0, []
    for row in cells:
        for key, was, now in _again(folder, row, eval_id, threshold):
            count += 1
            distance = _distance(was, now)
            largest = max(largest, distance)
            if distance > TOLERANCE:
                differences.append(f"{key}: stored {was}, computed {now}")
    return Rescored(len(cells), count, largest, tuple(differences))


def _again(folder: Folder, row: Mapping[str, Any], eval_id: str, threshold: float) -> Iterator[tuple[str, Any, Any]]:
    """(name, stored, computed) of every figure of one cell."""
    cell_id = row["cell_id"]
    cell = SimpleNamespace(
        cell_id=cell_id, member_ids=list(row["member_ids"]), reference_ids=list(row["reference_ids"])
    )
    stored = [r for r in tables.rows(folder, "scores", _units(folder, "scores", cell_id)) if r["cell_id"] == cell_id]
    batch_norm = any(r["bn"] == scoring.REESTIMATED for r in stored)
    predictions = scoring.stored(folder, eval_id, batch_norm, cell.member_ids[0])
    soups = []
    if isinstance(row["soup_sha256"], str):  # pandas has NaN for what is missing
        uniform = scoring.soup_id("uniform", cell)
        soups.append(scoring.Soup("uniform", uniform, tuple(cell.member_ids), row["soup_sha256"]))
    if isinstance(row["greedy_soup_sha256"], str):
        greedy, chosen = scoring.soup_id("greedy", cell), tuple(row["greedy_soup_members"])
        soups.append(scoring.Soup("greedy", greedy, chosen, row["greedy_soup_sha256"]))
    computed = scoring.score_rows(cell, soups, predictions)
    names = ("kind", "predictor_id", "split", "bn")
    by_key = {tuple(r[name] for name in names): r for r in stored}
    for r in computed:
        key = tuple(r[name] for name in names)
        for column, value in r.items():
            yield f"scores {cell_id} {' '.join(key)} {column}", by_key.get(key, {}).get(column), value
    paths = tables.rows(folder, "paths", _units(folder, "paths", cell_id))
    paths = [point for point in paths if point["cell_id"] == cell_id]
    for column, value in scoring.cell_scores(cell, paths, computed, predictions, threshold).items():
        if column != "in_basin":  # follows from today's threshold
            yield f"cells {cell_id} {column}", row[column], value


def _units(folder: Folder, table: str, cell_id: str) -> list[str] | None:
    """The files of a cell; None, which is all of them, in a compacted folder."""
    return [unit for unit in tables.units(folder, table) if unit.partition("-")[0] == cell_id] or None


def _distance(was: Any, now: Any) -> float:
    """Between two figures: infinite where only one is there, or where they are names that differ."""
    if not (isinstance(was, float) and isinstance(now, float)):
        return 0.0 if was == now else math.inf
    if math.isnan(was) or math.isnan(now):
        return 0.0 if math.isnan(was) and math.isnan(now) else math.inf
    return 0.0 if was == now else abs(was - now)
