"""Which weights stay: `keep.weights` of the sweep file, and what is done with the others.

Hubs stay, and so do checkpoints. The weights of other members are pruned once nothing that is left to do needs them:
cells that share such members are finished together, and nothing of them is pruned before. A marker in their place,
`weights/<member_id>.pruned`, tells weights that were pruned from weights that were lost; it names their SHA-256, and
is there before they go.

Who needs weights is looked up, and what nobody needs is deleted, under a lease, of which there is one in a folder: a
sweep that begins first leaves its sweep file there, where it is seen, and then waits for whoever has looked before.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import pyarrow.compute as pc

from raybasin.errors import UserError
from raybasin.metrics import scoring, selection
from raybasin.store import heartbeat, inventory, provenance, tables
from raybasin.store.folders import Folder
from raybasin.store.predictions import prediction_unit
from raybasin.sweep.jobs import Done, lacks_predictions
from raybasin.sweep.plan import Cell, Plan, soup_ids
from raybasin.sweep.settings import OWN_SPLITS, Settings
from raybasin.sweep.specs import KeepSpec

LEASE = "state/pruning.json"
LEASE_SECONDS = 60.0
"""A lease that has not been renewed for so long was left by somebody who was killed."""
LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Group:
    """Cells that share weights which may be pruned (where the best point is kept, also those that make one point), and
    the members whose weights these are. Members of two methods may be trained alike, and have the same file."""

    cells: tuple[Cell, ...]
    member_ids: frozenset[str]

    @property
    def name(self) -> str:
        return self.cells[0].cell_id


def groups(plan: Plan) -> dict[str, Group]:
    """The group of each cell, by its id."""
    hubs = {cell.member_ids[0] for cell in plan.cells}
    passing = {cell.cell_id: _passing(cell, hubs) for cell in plan.cells}
    by_root: dict[str, list[Cell]] = defaultdict(list)
    root = _Roots()
    for cell in plan.cells:
        for shared in (*passing[cell.cell_id], *_point(plan.spec.keep, cell)):
            root.join(cell.cell_id, shared)
    for cell in plan.cells:
        by_root[root.of(cell.cell_id)].append(cell)
    found: dict[str, Group] = {}
    for cells in by_root.values():
        group = Group(tuple(cells), frozenset(m for cell in cells for m in passing[cell.cell_id]))
        found.update((cell.cell_id, group) for cell in cells)
    return found


def distinct(of_cell: Mapping[str, Group]) -> dict[str, Group]:
    """Each group once, by its name."""
    return {group.name: group for group in of_cell.values()}


def _passing(cell: Cell, hubs: Collection[str]) -> list[str]:
    """What a cell trains and draws but for hubs: its weights may be pruned."""
    everything = dict.fromkeys((*cell.member_ids, *cell.trained_ids))
    return [member_id for member_id in everything if member_id not in hubs]


def _point(keep: KeepSpec, cell: Cell) -> list[str]:
    """What replicates of one point have in common, where points are compared."""
    if keep.weights != "best":
        return []
    return [repr((replace(cell.point, replicate=0), cell.variant, len(cell.member_ids)))]


class _Roots:
    """Disjoint sets."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def of(self, item: str) -> str:
        while (above := self.parent.setdefault(item, item)) != item:
            self.parent[item] = self.parent[above]
            item = above
        return item

    def join(self, a: str, b: str) -> None:
        self.parent[self.of(a)] = self.of(b)


def is_finished(group: Group, plan: Settings, done: Done) -> bool:
    """Whether the sweep needs the weights of a group's members no more."""
    return all(cell.cell_id in done.cells and not lacks_predictions(plan, cell, done) for cell in group.cells)


# In a results folder


def after_cell(cell: Cell, group: Group, folder: Folder, settings: Settings) -> None:
    """Drops what is not to be kept, now that the cell is committed. Whoever commits the last cell of a group does so:
    each commits first and looks then."""
    done = _look(group, folder, settings)
    if not is_finished(group, settings, done):
        return
    if settings.spec.keep.weights == "soups":
        with _lease(folder) as renew:
            _drop([group], folder, settings, done, frozenset(), renew)
    else:
        tidy(folder, stored_plan(f"{settings.settings_id}.yaml", folder), inventory.survey(folder))


def tidy(folder: Folder, plan: Plan, done: Done) -> None:
    """Drops all that is not to be kept by now, and what runs that were killed had begun to drop."""
    keep = plan.spec.keep.weights
    if keep == "all":
        return
    everything = distinct(groups(plan)).values()
    finished = [group for group in everything if is_finished(group, plan, done)]
    best: frozenset[str] = frozenset()
    if keep == "best" and finished:
        best = _best(folder, plan, [c.cell_id for g in everything if g not in finished for c in g.cells])
    with _lease(folder) as renew:
        _end_pruning(folder, plan, done)
        _drop(finished, folder, plan, done, best, renew)


def _look(group: Group, folder: Folder, plan: Settings) -> Done:
    """What the folder holds of a group."""

    def predicted(predictor_id: str, name: str) -> bool:
        return tables.exists(folder, "predictions", prediction_unit(predictor_id, name))

    names = {file.name for file in plan.missing_files(lambda name: False)}
    names |= {f"{plan.eval_id}-{split}" for split in OWN_SPLITS}
    predictors = {p for c in group.cells for p in (*c.member_ids, *soup_ids(plan.spec, c))}
    members = {member_id for cell in group.cells for member_id in cell.member_ids} | group.member_ids
    units = [*members, *(cell.cell_id for cell in group.cells)]
    return Done(
        members={member_id for member_id in members if tables.exists(folder, "members", member_id)},
        cells={cell.cell_id for cell in group.cells if tables.exists(folder, "cells", cell.cell_id)},
        predictions={(p, name) for p in predictors for name in names if predicted(p, name)},
        pruned={unit for unit in units if folder.exists(_marker(unit))},
    )


def _best(folder: Folder, plan: Plan, unfinished: Collection[str]) -> frozenset[str]:
    """The cells of the best point of all that are finished, by the rule of `raybasin soup`."""
    cells, scores = (_of_settings(folder, table, plan.settings_id) for table in ("cells", "scores"))
    cells = selection.in_metric(cells, scores, plan.facts.data.metric)
    cells = cells[~cells["cell_id"].isin(list(unfinished)) & cells["val_soup_accuracy"].notna()]
    return frozenset(selection.best_point(cells, "val_soup_accuracy", "val_soup_nll")["cell_id"])


def _of_settings(folder: Folder, table: str, settings_id: str) -> pd.DataFrame:
    rows = tables.sound(folder, table)
    return rows.filter(pc.equal(rows["settings_id"], settings_id)).to_pandas()


def _drop(
    found: Collection[Group],
    folder: Folder,
    plan: Settings,
    done: Done,
    best: Collection[str],
    renew: Callable[[], None],
) -> None:
    """Drops the members of finished groups, and where a best point is kept also the soups of other points."""
    elsewhere = _needed_elsewhere(folder, plan, {m for group in found for m in group.member_ids}) if found else None
    if elsewhere is None:
        return
    for group in found:
        renew()
        hubs = {cell.member_ids[0] for cell in group.cells}
        of_best = {member for cell in group.cells if cell.cell_id in best for member in cell.trained_ids}
        staying = {*hubs, *of_best, *(group.member_ids & elsewhere)}
        going = group.member_ids - staying - set(done.pruned)
        soups = {cell.cell_id for cell in group.cells if best and cell.cell_id not in best} - set(done.pruned)
        if not going and not soups:
            continue
        weights = {row["member_id"]: weights_named(row) for row in tables.rows(folder, "members", staying | going)}
        rows = tables.rows(folder, "cells", [cell.cell_id for cell in group.cells])
        made = {row["cell_id"]: [soup for soup in scoring.soups_of(row) if soup.sha256] for row in rows}
        averages = {cell_id: [str(soup.sha256) for soup in averaged] for cell_id, averaged in made.items()}
        stay = {sha256 for member_id in staying for sha256 in weights[member_id]}
        stay |= {sha256 for cell_id, sha256s in averages.items() if cell_id not in soups for sha256 in sha256s}
        for unit, sha256s in [*((m, weights[m]) for m in going), *((c, averages[c]) for c in soups)]:
            _drop_unit(unit, [sha256 for sha256 in sha256s if sha256 not in stay], folder, plan)
        for soup in (soup for cell_id in soups for soup in made[cell_id]):  # its choice would be gone on from
            folder.delete(f"state/soup-{prediction_unit(soup.predictor_id, plan.eval_id)}.json")


def weights_named(row: Mapping[str, Any]) -> list[str]:
    """The SHA-256 of all weights that a row of `members` names."""
    return [sha256 for sha256 in (row["weights_sha256"], row["moments_sha256"]) if sha256]


def _drop_unit(unit: str, sha256s: list[str], folder: Folder, plan: Settings) -> None:
    said = {"weights": sha256s, "keep": plan.spec.keep.weights, "settings_id": plan.settings_id}
    folder.put(_marker(unit), json.dumps(said).encode())
    for sha256 in sha256s:
        folder.delete(_file(sha256))


def _end_pruning(folder: Folder, plan: Plan, done: Done) -> None:
    """A marker is written first, so that a run that is killed then leaves it beside the weights."""
    there = set(folder.names("weights"))
    named: set[str] = set()
    for unit in sorted(done.pruned):
        with contextlib.suppress(FileNotFoundError):  # its weights have just been restored
            named.update(marked(folder.get(_marker(unit))) or ())
    left = {sha256 for sha256 in named if f"{sha256}.safetensors" in there}
    elsewhere = _needed_elsewhere(folder, plan, done.pruned) if left else None
    if elsewhere is None:
        return
    # It may be there again for a member that is trained alike, or was trained again, and needed.
    staying = (set(done.members) - set(done.pruned)) | (elsewhere & set(done.members))
    left -= {sha256 for row in tables.rows(folder, "members", staying) for sha256 in weights_named(row)}
    for sha256 in left:
        folder.delete(_file(sha256))


def marked(content: bytes) -> list[str] | None:
    """The SHA-256 of the weights that a marker names; None where the file is no marker."""
    try:
        named = json.loads(content)["weights"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return named if isinstance(named, list) and all(isinstance(sha256, str) for sha256 in named) else None


def is_pruned(unit: str, folder: Folder) -> bool:
    return folder.exists(_marker(unit))


def restored(unit: str, folder: Folder) -> None:
    """The weights of a unit are there again."""
    folder.delete(_marker(unit))


def _marker(unit: str) -> str:
    return f"weights/{unit}.pruned"


def _file(sha256: str) -> str:
    return f"weights/{sha256}.safetensors"


# Other sweeps in the same folder


@contextlib.contextmanager
def _lease(folder: Folder) -> Iterator[Callable[[], None]]:
    """Makes sure that nobody else drops weights meanwhile, and that sweeps that begin wait for the end of it. What it
    gives renews the lease."""

    def content() -> bytes:
        return json.dumps({"at": time.time(), **provenance.this_process()}).encode()

    while not folder.put_new(LEASE, content()):
        if not _is_leased(folder):
            folder.delete(LEASE)
        time.sleep(LOOK_SECONDS)
    try:
        yield lambda: folder.put(LEASE, content())
    finally:
        folder.delete(LEASE)


def _is_leased(folder: Folder) -> bool:
    """Whether somebody is pruning weights; not where the lease was left by one who was killed."""
    try:
        told = json.loads(folder.get(LEASE))
        return time.time() - float(told["at"]) < LEASE_SECONDS and not provenance.has_died(told)
    except FileNotFoundError:
        return False
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # not what a holder writes
        return False


def wait_for_pruning(folder: Folder) -> None:
    """Returns when nobody drops weights who has begun to before this call. A sweep whose file is in the folder by then
    is seen by all who begin later."""
    while _is_leased(folder):
        time.sleep(LOOK_SECONDS)


def _needed_elsewhere(folder: Folder, settings: Settings, asked: Collection[str]) -> frozenset[str] | None:
    """Which of the members `asked` sweeps in this folder keep or have still to do something with. None where that is
    not known: a resolved sweep file cannot be read, or the same sweep runs twice, and the other may need more."""
    if len(heartbeat.running(folder, settings.settings_id)) > 1:
        return None
    found: set[str] = set()
    for name in folder.names("sweeps"):
        if name.endswith(".yaml"):
            try:
                found |= _needed_by(stored_plan(name, folder), folder, asked)
            except UserError:
                return None
    return frozenset(found)


def stored_plan(name: str, folder: Folder) -> Plan:
    """Of a stored sweep; made anew when its file has changed. Raises UserError."""
    return _plan_from(folder.get(f"sweeps/{name}"), folder.name(f"sweeps/{name}"))


@functools.lru_cache(maxsize=8)
def _plan_from(content: bytes, source: str) -> Plan:
    return inventory.plan_from(content, source)


def _needed_by(plan: Plan, folder: Folder, asked: Collection[str]) -> set[str]:
    if plan.spec.keep.weights == "all":
        return set(asked) & set(plan.members)
    concerned = [group for group in distinct(groups(plan)).values() if not group.member_ids.isdisjoint(asked)]
    left = [group for group in concerned if not is_finished(group, plan, _look(group, folder, plan))]
    return {member_id for group in left for member_id in group.member_ids}
