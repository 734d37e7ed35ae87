"""What a results folder holds: the units that are there, and the resolved sweep files that say how they were made."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from raybasin.errors import UserError, one_line
from raybasin.store import provenance, tables, validation
from raybasin.store.folders import Folder
from raybasin.sweep import ids, plan, specs
from raybasin.sweep.facts import facts_from_dict, facts_to_dict
from raybasin.sweep.jobs import Done
from raybasin.sweep.plan import Plan


def survey(folder: Folder) -> Done:
    """What a results folder holds, from the names of its files."""
    return Done(
        checkpoints=frozenset(tables.units(folder, "checkpoints")),
        members=frozenset(tables.units(folder, "members")),
        predictions=frozenset((predictor_id, name) for predictor_id, _, name in
                              (unit.partition("-") for unit in tables.units(folder, "predictions"))),
        cells=frozenset(tables.units(folder, "cells")),
        paths=frozenset((cell_id, path_id) for cell_id, _, path_id in
                        (unit.partition("-") for unit in tables.units(folder, "paths"))),
        traces=frozenset((cell_id, trace_id) for cell_id, _, trace_id in
                         (unit.partition("-") for unit in tables.units(folder, "traces"))),
        inside_cycles=frozenset(_inside_cycles(folder)),
        pruned=frozenset(pruned(folder)),
    )  # fmt: skip


def _inside_cycles(folder: Folder) -> Iterator[tuple[str, int]]:
    """The weights that runs to be traced have left, as (member_id, step)."""
    for name in folder.names("state"):
        kind, _, rest = name.removesuffix(".safetensors").partition("-")
        member_id, _, step = rest.partition("-")
        if kind == "trace" and step.isdigit():
            yield member_id, int(step)


def pruned(folder: Folder) -> Iterator[str]:
    """The members and cells whose weights were not to be kept."""
    for name in folder.names("weights"):
        unit, _, suffix = name.partition(".")
        if suffix == "pruned":
            yield unit


# Resolved sweep files


def resolved(made: Plan) -> str:
    """The sweep file with every default written out and everything found in its inputs, as YAML."""
    tree = {
        "results_version": ids.RESULTS_VERSION,
        "settings_id": made.settings_id,
        "sweep": specs.dump(made.spec),
        "facts": {
            **facts_to_dict(made.facts),
            "eval_id": made.eval_id,
            "shift_eval_ids": made.shift_eval_ids,
        },
        "versions": yaml.safe_load(provenance.versions()),
    }
    return yaml.safe_dump(tree, sort_keys=False)


def check_version(folder: Folder) -> None:
    """Raises UserError where `folder` holds a sweep of a raybasin whose numerics or ids were others."""
    for name in folder.names("sweeps"):
        if name.endswith(".yaml"):
            _check_version(folder.get(f"sweeps/{name}"), folder.name(f"sweeps/{name}"))


def _check_version(content: bytes, source: str) -> None:
    """What is no resolved sweep file has no version; it is refused by whoever needs it."""
    version = re.search(rb"^results_version: *(\d{1,9})\s*$", content, flags=re.MULTILINE)
    is_resolved = version or re.search(rb"^settings_id:", content, flags=re.MULTILINE)
    if not is_resolved or (version and int(version[1]) == ids.RESULTS_VERSION):
        return
    wrote = re.search(rb"^  raybasin: *['\"]?([\w.+-]{1,40})", content, flags=re.MULTILINE)
    raise UserError(
        f"{source}: was written by raybasin{f' {wrote[1].decode()}' if wrote else ''} with results of version "
        f"{int(version[1]) if version else 1}, and this raybasin has version {ids.RESULTS_VERSION}, with other ids; "
        "name another folder with --results, or use the older raybasin (pandas still reads the Parquet files)"
    )


def stored_plan(folder: Folder, settings_id: str) -> Plan:
    """The plan of a sweep that was run into `folder`, from its resolved sweep file. Raises UserError."""
    key = f"sweeps/{settings_id}.yaml"
    source = folder.name(key)
    try:
        return plan_from(folder.get(key), source)
    except OSError as error:
        raise _unreadable(source, error) from error


def plan_from(content: bytes, source: str) -> Plan:
    """The plan of a resolved sweep file, which messages call `source`. Raises UserError."""
    _check_version(content, source)
    try:
        tree = validation.tree(content, source, ["sweep", "facts"])
        facts = facts_from_dict(validation.facts(tree["facts"], source))
        return plan.make(specs.parse(tree["sweep"], source), facts)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise _unreadable(source, error) from error


def _unreadable(source: str, error: Exception) -> UserError:
    reason = one_line(f"{type(error).__name__}: {error}", 200)
    return UserError(f"{source}: is not a resolved sweep file ({reason}); run the sweep again")
