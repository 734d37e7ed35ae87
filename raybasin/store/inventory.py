"""What a results folder holds: the units that are there, and the resolved sweep files that say how they were made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from raybasin.errors import UserError, one_line
from raybasin.store import provenance, tables
from raybasin.store.folders import Folder
from raybasin.store.schemas import CHOSEN, ENDED
from raybasin.sweep import ids, methods, plan, points, specs, strict_yaml
from raybasin.sweep.facts import Facts, facts_from_dict, facts_to_dict
from raybasin.sweep.job_list import Done
from raybasin.sweep.plan import Plan
from raybasin.sweep.points import Chosen, MapPoint
from raybasin.sweep.search import BY_CELL
from raybasin.sweep.settings import OWN_SPLITS, Settings


def survey(folder: Folder) -> Done:
    """What a results folder holds, from the names of its files."""
    return Done(
        checkpoints=frozenset(tables.units(folder, "checkpoints")),
        members=frozenset(tables.units(folder, "members")),
        predictions=frozenset(tables.unit_pairs(folder, "predictions")),
        cells=frozenset(tables.units(folder, "cells")),
        paths=frozenset(tables.unit_pairs(folder, "paths")),
        traces=frozenset(tables.unit_pairs(folder, "traces")),
        inside_cycles=frozenset(
            (trace[1], int(trace[2]))
            for name in folder.names("state")
            if (trace := re.fullmatch(r"trace-([^-]+)-(\d+)\.safetensors", name))
        ),
        pruned=frozenset(pruned(folder)),
    )


def pruned(folder: Folder) -> Iterator[str]:
    """The members and cells whose weights were not to be kept."""
    for name in folder.names("weights"):
        unit, _, suffix = name.partition(".")
        if suffix == "pruned":
            yield unit


# Resolved sweep files


MAX_TREE_BYTES = 4_000_000
_Id = Annotated[str, Field(pattern=r"^\w{1,100}$")]


@dataclass(frozen=True)
class EvalIds:
    """Which predictions are of one set of settings: on its validation and test split, and on each shift split."""

    eval_id: _Id | None = None
    shift_eval_ids: Mapping[str, _Id] = field(default_factory=dict)

    @property
    def by_split(self) -> dict[str, str]:
        """The eval_id of each split, validation first."""
        return {**dict.fromkeys(OWN_SPLITS, self.eval_id), **self.shift_eval_ids} if self.eval_id else {}


_EVAL_IDS = TypeAdapter(EvalIds)


@dataclass(frozen=True)
class StoredSweep:
    """A resolved sweep file: the sweep with every default, and what was found in its inputs."""

    spec: specs.SweepSpec
    facts: Facts
    eval_ids: EvalIds
    source: str
    """What messages call its file."""

    @property
    def settings(self) -> Settings:
        return Settings(self.spec, self.facts)

    def chosen(self, folder: Folder) -> Chosen:
        """What its search has chosen in `folder` by now."""
        return chosen(folder, self.settings)

    def plan(self, chosen: Chosen = points.NONE) -> Plan:
        """What was planned, of a search what it has chosen. Raises UserError for facts that do not fit the sweep."""
        try:
            return plan.make(self.spec, self.facts, chosen)
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            reason = one_line(f"{type(error).__name__}: {error}", 200)
            raise UserError(f"{self.source}: is not a resolved sweep file ({reason}); run the sweep again") from error

    def facts_tree(self) -> dict[str, Any]:
        """The facts as plain values, with the ids."""
        return {**facts_to_dict(self.facts), **vars(self.eval_ids)}


def resolved(made: Plan) -> str:
    """The sweep file with every default written out and everything found in its inputs, as YAML."""
    tree = {
        "results_version": ids.RESULTS_VERSION,
        "settings_id": made.settings_id,
        "sweep": specs.dump(made.spec),
        "facts": facts_to_dict(made.facts) | {"eval_id": made.eval_id, "shift_eval_ids": dict(made.shift_eval_ids)},
        "versions": json.loads(provenance.versions()),
    }
    return yaml.safe_dump(tree, sort_keys=False)


def check_version(folder: Folder) -> None:
    """Raises UserError where `folder` holds a sweep of a raybasin whose numerics or ids were others."""
    for name in folder.names("sweeps"):
        if name.endswith(".yaml"):
            _check_version(folder.get(f"sweeps/{name}"), folder.name(f"sweeps/{name}"))


def _check_version(content: bytes, source: str) -> None:
    """The first version did not name itself. What is damaged is left to whoever needs it."""
    said = re.search(rb"^results_version:(.*)$", content, flags=re.MULTILINE)
    is_first = not said and content.startswith(b"settings_id:") and b"\nversions:" in content
    version = said[1].strip() if said else b"1" if is_first else b""
    if not re.fullmatch(rb"\d{1,9}", version) or int(version) == ids.RESULTS_VERSION:
        return
    wrote = re.search(rb"^  raybasin: *['\"]?([\w.+-]{1,40})", content, flags=re.MULTILINE)
    raise UserError(
        f"{source}: was written by raybasin{f' {wrote[1].decode()}' if wrote else ''} with results of version "
        f"{int(version)}, and this raybasin has version {ids.RESULTS_VERSION}, with other ids; "
        "name another folder with --results, or use the older raybasin (pandas still reads the Parquet files)"
    )


def sweep_from(content: bytes, source: str) -> StoredSweep:
    """What a resolved sweep file, which messages call `source`, says. Raises UserError."""
    _check_version(content, source)
    if len(content) > MAX_TREE_BYTES:
        raise UserError(f"{source}: larger than {MAX_TREE_BYTES} bytes; this is no file of a sweep")
    tree = strict_yaml.plain_yaml(content, source)
    for key in ("sweep", "facts"):
        if not isinstance(tree, dict) or key not in tree:
            raise UserError(f"{source}: is not a resolved sweep file: it must hold the key {key}")
    if tree.get("results_version") != ids.RESULTS_VERSION:
        raise UserError(f"{source}: is damaged: its results_version is not {ids.RESULTS_VERSION}")
    try:
        facts, eval_ids = facts_from_dict(tree["facts"]), _EVAL_IDS.validate_python(tree["facts"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(["facts", *map(str, first["loc"])])
        raise UserError(f"{source}: {one_line(where, 100)}: {one_line(first['msg'], 100)}") from error
    return StoredSweep(specs.parse(tree["sweep"], source), facts, eval_ids, source)


def stored_sweep(folder: Folder, settings_id: str) -> StoredSweep:
    """The resolved sweep file of these settings. Raises UserError where it is not there, or is none."""
    key = f"sweeps/{settings_id}.yaml"
    source = folder.name(key)
    try:
        return sweep_from(folder.get(key), source)
    except OSError as error:
        raise UserError(f"{source}: cannot read the sweep file of these results: {one_line(error)}") from error


def stored_plan(folder: Folder, settings_id: str) -> Plan:
    """The plan of a sweep that was run into `folder`, from its resolved sweep file. Raises UserError."""
    stored = stored_sweep(folder, settings_id)
    return stored.plan(stored.chosen(folder))


# What was chosen by results


def chosen(folder: Folder, settings: Settings) -> Chosen:
    """What searches by these settings have chosen in `folder` so far, in the order in which they did."""
    if not settings.spec.search.by_results:
        return points.NONE
    search, found, fewer = settings.spec.search, dict[MapPoint, None](), dict[MapPoint, tuple[int, ...]]()
    checkpoints = {checkpoint.name for checkpoint in settings.facts.checkpoints}
    for row in sorted(tables.sound(folder, "points").to_pylist(), key=lambda row: row["at"]):
        point, is_ended = points.of_row(row), row["event"] == ENDED
        if point.method not in settings.spec.methods or point.checkpoint not in checkpoints:
            continue
        if row["point_id"] != points.point_id(settings, point):
            continue
        if search.by_cell and row["searcher"] == search.kind:
            # Earlier versions wrote how many replicates a point had by then, since each began with replicate 0.
            replicate = row["replicates"] - 1 if row["replicate"] is None else row["replicate"]
            if replicate < settings.spec.replicates:
                found[point], fewer[point] = None, (*fewer.get(point, ()), replicate)
        elif not search.by_cell and is_ended:
            fewer[point] = tuple(range(row["replicates"] or 0))
        elif not search.by_cell and row["searcher"] not in BY_CELL:
            found[point] = None
    return Chosen(tuple(found), tuple(fewer.items()))


def measured(folder: Folder, settings: Settings, chosen: Chosen) -> dict[MapPoint, list[dict[str, Any]]]:
    """The cells of the points that lie where the search chooses from, those of a grid too, with as many replicates as
    it asks for (or as a scheduler has left them)."""
    found: dict[MapPoint, list[dict[str, Any]]] = {}
    for row in tables.sound(folder, "cells").to_pylist():
        if row["settings_id"] == settings.settings_id and points.is_among(settings, row):
            found.setdefault(points.of_row(row), []).append(row)
    enough = points.replicates(settings, found, chosen)
    return {point: rows for point, rows in found.items() if len(rows) >= len(enough[point])}


def write_cell(folder: Folder, settings: Settings, point: MapPoint, replicate: int, why: str) -> None:
    """Says for good that a search by cell has chosen one replicate of `point`, and why."""
    _write(folder, settings, point, CHOSEN if not replicate else f"{CHOSEN}-{replicate + 1}", replicate, why=why)


def write_chosen(
    folder: Folder, settings: Settings, point: MapPoint, event: str, replicates: int | None = None
) -> None:
    """Says for good that a search has chosen `point`, or that it has ended it after so many replicates."""
    _write(folder, settings, point, event, None, replicates=replicates)


def _write(
    folder: Folder, settings: Settings, point: MapPoint, event: str, replicate: int | None, *,
    replicates: int | None = None, why: str | None = None,
) -> None:  # fmt: skip
    spec, unit = settings.spec, points.point_id(settings, point)
    by = spec.search.searcher or (spec.search.kind if spec.search.by_cell else None)
    row = {
        **asdict(point), "replicate": replicate, "sweep": spec.name, "settings_id": settings.settings_id,
        "point_id": unit, "event": event, "variant": methods.variant(spec.methods[point.method]),
        "searcher": by, "replicates": replicates, "why": why, "at": tables.now(),
    }  # fmt: skip
    tables.write(folder, "points", f"{unit}-{event}", [row])
