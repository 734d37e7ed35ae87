"""Whether a results folder is whole: `check` finds what is broken, `repair` moves it aside, `compact` copies the rows,
`rescore` computes every score again from stored predictions.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pyarrow as pa

from raybasin.errors import UserError, shown
from raybasin.jobs import retention
from raybasin.landscape import basin_exits
from raybasin.metrics import scoring
from raybasin.store import checksum, folders, inventory, tables, validation
from raybasin.store.folders import Folder
from raybasin.sweep import plan, specs

COMPACT_ROWS = 2_000_000
UNFINISHED = "was left by a write that did not finish"
UNFINISHED_SECONDS = 300.0
"""What is being written, and has not grown for so long, never will."""
TOLERANCE = 1e-9
"""How far a score computed again may lie from the stored one: other versions sum in another order."""


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
    if not any(folder.names(name) for name in (*tables.SCHEMAS, "sweeps", "weights")):
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
    for table in tables.SCHEMAS:
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
    keys = [tuple(key.values()) for key in rows.select(list(tables.KEYS[table])).to_pylist()]
    if not keys:
        return "holds no rows", []
    others = [name for name in sorted(_names(rows, table)) if unit != name and not unit.startswith(f"{name}-")]
    return (f"holds rows of {others[0]}" if others else ""), keys


def _wrong_schema(stored: pa.Schema, table: str) -> str:
    """What of the schema of a file is not that of its table; columns that older files lack are not wrong."""
    schema = tables.SCHEMAS[table]
    missing = {*tables.KEYS[table], *tables.UNITS.get(table, ())} - set(stored.names)
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
    columns = tables.UNITS.get(table)
    if columns is None:
        return set()
    return {"-".join(map(str, row.values())) for row in rows.select(list(columns)).to_pylist()}


def _broken_weights(folder: Folder) -> Iterator[Problem]:
    for name in folder.names("weights"):
        key = f"weights/{name}"
        if name.endswith(".dropped"):
            if retention.marked(folder.get(key)) is None:
                yield Problem(key, "does not say which weights were dropped")
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
            tree = validation.tree(folder.get(f"sweeps/{name}"), name, ["sweep", "facts"])
            validation.facts(tree["facts"], name)
            specs.parse(tree["sweep"], name)
        except UserError as error:
            yield Problem(f"sweeps/{name}", shown(error, 200).removeprefix(f"{name}: "))


def _incomplete_members(folder: Folder, broken: set[str]) -> Iterator[Problem]:
    """Committed members that lack their weights or their epochs, or whose parent is another network by now.

    Lost predictions are a matter of cells: they can be made again without training.
    """
    sound = dict(_sound_rows(folder, "members", broken))
    sha256 = {row["member_id"]: row["weights_sha256"] for row in sound.values()}
    dropped = {unit for unit in inventory.dropped(folder) if f"weights/{unit}.dropped" not in broken}
    for name, row in sound.items():
        weights = [f"weights/{digest}.safetensors" for digest in retention.weights_named(row)]
        lost = [key for key in weights if key in broken or not folder.exists(key)]
        if lost and row["member_id"] not in dropped:
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
    dropped = set(inventory.dropped(folder))
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
        gone = [] if cell_id in dropped else gone
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
            units = [tables.prediction_unit(predictor_id, eval_ids[split]) for predictor_id in predictors]
            found += [unit for unit in units if unit not in there and f"{unit}-{split}" not in there]
    return found


def _runs(folder: Folder, member_ids: Sequence[str], broken: set[str]) -> set[str]:
    """What a cell has traces of: its members, or the run that they were drawn from."""
    rows = tables.rows(folder, "members", [m for m in member_ids if f"members/{m}.parquet" not in broken])
    return {row["parent_id"] if row["kind"] == "sample" else row["member_id"] for row in rows}


def _eval_ids(folder: Folder, broken: set[str]) -> dict[str, dict[str, str]]:
    """The eval_id of each split, by settings_id, from the resolved sweep files."""
    names = [f"sweeps/{name}" for name in folder.names("sweeps") if f"sweeps/{name}" not in broken]
    trees = [validation.tree(folder.get(name), name) for name in names]
    return {str(tree.get("settings_id")): eval_ids(tree["facts"]) for tree in trees}


def eval_ids(facts: Mapping[str, Any]) -> dict[str, str]:
    """The eval_id of each split, validation first, from the facts of a resolved sweep file."""
    if not facts.get("eval_id"):
        return {}
    return {**dict.fromkeys(plan.OWN_SPLITS, str(facts["eval_id"])), **(facts.get("shift_eval_ids") or {})}


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
    """`figures` of so many `cells` computed again; `differences` names those that are not what is stored. `not_kept`
    counts those that cannot be computed again, because predictions on `not_kept_splits` were not stored."""

    cells: int
    figures: int
    largest_difference: float
    differences: tuple[str, ...]
    not_kept: int = 0
    not_kept_splits: tuple[str, ...] = ()


def rescore(
    folder: Folder,
    cells: Sequence[Mapping[str, Any]],
    eval_id: str,
    threshold: float,
    shift_eval_ids: Mapping[str, str] = MappingProxyType({}),
) -> Rescored:
    """Every score of `cells` (rows of the table) again from stored predictions and paths, without torch or a GPU.

    Args:
        cells: rows of the table `cells`, of one set of settings.
        eval_id: of the predictions on `val` and `test`.
        threshold: the largest error barrier in the basin.
        shift_eval_ids: of the predictions on each shift split.
    """
    again = _Again(folder, {**dict.fromkeys(plan.OWN_SPLITS, eval_id), **shift_eval_ids}, threshold)
    count, largest, differences = 0, 0.0, []
    for row in cells:
        try:
            for key, was, now in again.cell(row):
                count += 1
                distance = _distance(was, now)
                largest = max(largest, distance)
                if distance > TOLERANCE:
                    differences.append(f"{key}: stored {was}, computed {now}")
        except (ValueError, LookupError, TypeError) as error:  # rows that no sweep writes
            differences.append(f"cells {row['cell_id']}: cannot be computed again ({shown(error, 200)})")
    lost = again.not_kept
    return Rescored(len(cells), count, largest, tuple(differences), lost.total(), tuple(sorted(lost)))


class _Again:
    """Computes cells again, and counts in `not_kept`, by split, the figures that cannot be."""

    def __init__(self, folder: Folder, eval_ids: Mapping[str, str], threshold: float) -> None:
        self.folder, self.eval_ids, self.threshold = folder, eval_ids, threshold
        self.predicted = tables.predicted(folder)
        self.references: dict[tuple[str, ...], scoring.References] = {}
        self.not_kept: Counter[str] = Counter()

    def cell(self, row: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        """(name, stored, computed) of every figure of one cell."""
        cell_id = row["cell_id"]
        stored = self._rows("scores", cell_id)
        batch_norm = any(r["bn"] == scoring.REESTIMATED for r in stored)
        computed = self._scores(row, batch_norm)
        lost = [r for r in stored if r["split"] not in {c["split"] for c in computed}]
        absent = {column for column in stored[0] if all(r[column] is None for r in stored)}  # from before it was scored
        absent -= {"deep_ensemble_equivalent"}
        names = ("kind", "predictor_id", "split", "bn")
        by_key = {tuple(r[name] for name in names): r for r in stored}
        for r in computed:
            key = tuple(r[name] for name in names)
            for column, value in r.items():
                if column not in absent:
                    yield f"scores {cell_id} {' '.join(key)} {column}", by_key.get(key, {}).get(column), value
        for r in lost:
            self.not_kept[r["split"]] += len(computed[0].keys() - absent)
        paths = self._rows("paths", cell_id)
        bn = scoring.REESTIMATED if batch_norm else scoring.OWN
        cell = SimpleNamespace(cell_id=cell_id, member_ids=list(row["member_ids"]))
        traced = self._rows("traces", cell_id)
        if traced:  # when it left follows from today's threshold
            at_hub = basin_exits.summary(traced, self.threshold)["checkpoint_barrier_error"]
            yield f"cells {cell_id} checkpoint_barrier_error", row["checkpoint_barrier_error"], at_hub
        for column, value in scoring.cell_scores(cell, paths, [*computed, *lost], bn, self.threshold).items():
            if column != "in_basin":  # follows from today's threshold
                yield f"cells {cell_id} {column}", row[column], value

    def _scores(self, row: Mapping[str, Any], batch_norm: bool) -> list[dict[str, Any]]:
        """The scores on those splits for which there are predictions; those that must be there are not looked for."""
        cell = SimpleNamespace(cell_id=row["cell_id"], member_ids=list(row["member_ids"]))
        soups = scoring.soups_of(row)
        predictors = [*cell.member_ids, *(soup.predictor_id for soup in soups)]
        splits = self._splits(predictors, scoring.kept_splits(row) or plan.OWN_SPLITS)
        predictions = scoring.stored(self.folder, splits, batch_norm)
        reference_ids = tuple(row["reference_ids"])
        rows = scoring.score_rows(cell, soups, predictions, {})
        if not reference_ids:
            return rows
        itself = reference_ids == tuple(cell.member_ids)
        references = scoring.references_of(rows) if itself else self._references(reference_ids, batch_norm)
        rows = scoring.with_equivalents(rows, references)
        # Where the reference has kept no predictions, what was measured against it cannot be measured again.
        unknown = {split for split in splits if split != "val"} - {split for split, _ in references}
        for split in unknown:
            self.not_kept[split] += sum(r["split"] == split for r in rows)
        return [_without_equivalent(r) if r["split"] in unknown else r for r in rows]

    def _references(self, member_ids: tuple[str, ...], batch_norm: bool) -> scoring.References:
        if member_ids not in self.references:
            predictions = scoring.stored(self.folder, self._splits(member_ids, ("val",)), batch_norm)
            self.references[member_ids] = scoring.reference_rows(member_ids, predictions)
        return self.references[member_ids]

    def _splits(self, predictor_ids: Sequence[str], promised: Sequence[str]) -> dict[str, str]:
        """The eval_id of each split that was promised to be there, and of those on which all have predictions."""
        return {
            split: eval_id
            for split, eval_id in self.eval_ids.items()
            if split in promised or all(self._has(predictor_id, split) for predictor_id in predictor_ids)
        }

    def _has(self, predictor_id: str, split: str) -> bool:
        eval_id = self.eval_ids[split]
        return bool({(predictor_id, eval_id), (predictor_id, f"{eval_id}-{split}")} & self.predicted)

    def _rows(self, table: str, cell_id: str) -> list[dict[str, Any]]:
        rows = tables.sound(self.folder, table, _units(self.folder, table, cell_id)).to_pylist()
        return [row for row in rows if row["cell_id"] == cell_id]


def _without_equivalent(row: dict[str, Any]) -> dict[str, Any]:
    return {column: value for column, value in row.items() if column != "deep_ensemble_equivalent"}


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
