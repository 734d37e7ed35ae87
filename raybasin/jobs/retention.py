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
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow.compute as pc
from scipy.cluster.hierarchy import DisjointSet

from raybasin.errors import UserError
from raybasin.metrics import cell_scores, selection
from raybasin.store import heartbeat, inventory, provenance, tables
from raybasin.store.folders import Folder
from raybasin.store.predictions import prediction_unit
from raybasin.sweep.job_list import Done, lacks_predictions
from raybasin.sweep.plan import Cell, Plan, soup_ids
from raybasin.sweep.points import Chosen
from raybasin.sweep.settings import OWN_SPLITS, Settings

LEASE = "state/pruning.json"
LEASE_SECONDS = 60.0
"""A lease that has not been renewed for so long was left by somebody who was killed."""
LOOK_SECONDS = 0.1
FEW_GROUPS = 20
"""Of so many groups it is asked file by file what there is, of more by listing the folder."""


@dataclass(frozen=True)
class Group:
    """Cells that share members whose weights may be pruned, and these members.

    Where the best point is kept, the replicates of one point are one group too: points are compared when all of their
    replicates are there.
    """

    cells: tuple[Cell, ...]
    member_ids: frozenset[str]

    @property
    def name(self) -> str:
        return self.cells[0].cell_id

    @property
    def cell_ids(self) -> frozenset[str]:
        return frozenset(cell.cell_id for cell in self.cells)

    @property
    def hub_ids(self) -> frozenset[str]:
        return frozenset(cell.member_ids[0] for cell in self.cells)


def groups(plan: Plan) -> list[Group]:
    """The groups of a sweep; each cell is in one."""
    hubs = {cell.member_ids[0] for cell in plan.cells}
    passing = {cell.cell_id: {*cell.member_ids, *cell.trained_ids} - hubs for cell in plan.cells}
    sharing: DisjointSet[Any] = DisjointSet(passing)
    for cell in plan.cells:
        shared: list[Any] = sorted(passing[cell.cell_id])
        if plan.spec.keep.weights == "best":
            shared.append((replace(cell.point, replicate=0), cell.variant, len(cell.member_ids)))
        for thing in shared:
            sharing.add(thing)
            sharing.merge(cell.cell_id, thing)
    together: dict[Any, list[Cell]] = defaultdict(list)
    for cell in plan.cells:
        together[sharing[cell.cell_id]].append(cell)
    # A group travels with the job of each of its cells; paths, of which there may be thousands, are not asked for.
    return [
        Group(tuple(replace(cell, paths=(), traces=()) for cell in cells),
              frozenset(m for cell in cells for m in passing[cell.cell_id]))
        for cells in together.values()
    ]  # fmt: skip


def is_finished(group: Group, plan: Settings, done: Done) -> bool:
    """Whether the sweep needs the weights of a group's members no more."""
    return all(cell.cell_id in done.cells and not lacks_predictions(plan, cell, done) for cell in group.cells)


# Pruning


def after_cell(group: Group, folder: Folder, settings: Settings) -> None:
    """Prunes what is not to be kept, now that a cell of `group` is committed. Whoever commits the last one does so:
    each commits first and looks then."""
    done = _look([group], folder, settings)
    if not is_finished(group, settings, done):
        return
    if settings.spec.keep.weights == "best":
        key = f"sweeps/{settings.settings_id}.yaml"
        tidy(folder, _stored(folder, key).plan, inventory.survey(folder))
        return
    with lease(folder) as renew:
        _prune([group], folder, settings, done, frozenset(), renew)


def tidy(folder: Folder, plan: Plan, done: Done) -> None:
    """Prunes all that is not to be kept by now, and ends what runs that were killed had begun to prune."""
    keep = plan.spec.keep.weights
    if keep == "all":
        return
    finished = [group for group in groups(plan) if is_finished(group, plan, done)]
    best = _best(folder, plan, finished) if keep == "best" else frozenset[str]()
    with lease(folder) as renew:
        _end_pruning(folder, plan, done)
        if best or keep == "soups":
            _prune(finished, folder, plan, done, best, renew)


def _best(folder: Folder, plan: Plan, finished: Iterable[Group]) -> frozenset[str]:
    """The cells of the best point of all that are `finished`, by the rule of `raybasin soup`; none at first."""
    unfinished = plan.cell.keys() - {cell_id for group in finished for cell_id in group.cell_ids}
    metric = plan.facts.data.metric
    of_scores = () if metric == "accuracy" else None  # accuracies are in the cells, and scores the larger table
    cells, scores = (
        rows.filter(pc.equal(rows["settings_id"], plan.settings_id)).to_pandas()
        for rows in (tables.sound(folder, "cells"), tables.sound(folder, "scores", of_scores))
    )
    cells = selection.in_metric(cells, scores, metric)
    cells = cells[~cells["cell_id"].isin(unfinished) & cells["val_soup_accuracy"].notna()]
    return frozenset(selection.best_point(cells, "val_soup_accuracy", "val_soup_nll")["cell_id"])


def _look(asked: Collection[Group], folder: Folder, plan: Settings) -> Done:
    """What the folder holds of some groups."""
    names = {file.name for file in plan.missing_files(lambda name: False)}
    names |= {f"{plan.eval_id}-{split}" for split in OWN_SPLITS}
    cells = {cell.cell_id: cell for group in asked for cell in group.cells}
    predictors = {p for cell in cells.values() for p in (*cell.member_ids, *soup_ids(plan.spec, cell))}
    members = {member_id for group in asked for member_id in group.hub_ids | group.member_ids}
    return Done(
        members={member_id for member_id in members if tables.exists(folder, "members", member_id)},
        cells={cell_id for cell_id in cells if tables.exists(folder, "cells", cell_id)},
        predictions={(predictor_id, name) for predictor_id in predictors for name in names
                     if tables.exists(folder, "predictions", prediction_unit(predictor_id, name))},
        pruned={unit for unit in members | cells.keys() if is_pruned(unit, folder)},
    )  # fmt: skip


def _prune(
    finished: Collection[Group],
    folder: Folder,
    plan: Settings,
    done: Done,
    best: Collection[str],
    renew: Callable[[], None],
) -> None:
    """Prunes the members of finished groups that no other sweep needs, and, where the best point is kept, the soups of
    all cells but the `best`, whose members stay."""
    may_go = [(group, going) for group in finished if (going := _not_kept(group, best, done))]
    if not may_go:  # as in every sweep that goes on where all was pruned: no other one is looked up
        return
    others = _needed_elsewhere(folder, plan, {m for group, _ in may_go for m in group.member_ids}, finished)
    if others is None:
        return
    for group, units in may_go:
        if going := units - others.member_ids:
            renew()
            _prune_units(going, group, others.soups, folder, plan, done)


def _not_kept(group: Group, best: Collection[str], done: Done) -> set[str]:
    """The members of a finished group that are there and not to be kept; where the best point is, the cells too."""
    of_best = {member_id for cell in group.cells if cell.cell_id in best for member_id in cell.trained_ids}
    units = {member_id for member_id in group.member_ids if member_id not in of_best}
    units |= {cell_id for cell_id in group.cell_ids if cell_id not in best} if best else set()
    return {unit for unit in units if unit not in done.pruned}


def _prune_units(
    going: Collection[str], group: Group, elsewhere: Collection[str], folder: Folder, plan: Settings, done: Done
) -> None:
    """Puts markers in the place of the weights of members and cells of a group.

    A file is named by its content, so several may have the same: it is deleted if nobody in the group names it who
    stays, and it is not one of those that stay `elsewhere`.
    """
    members = tables.rows(folder, "members", group.hub_ids | group.member_ids)
    cells = tables.rows(folder, "cells", group.cell_ids)
    soups = {row["cell_id"]: [soup for soup in cell_scores.soups_of(row) if soup.sha256] for row in cells}
    named = {row["member_id"]: weights_named(row) for row in members}
    named |= {cell_id: [str(soup.sha256) for soup in made] for cell_id, made in soups.items()}
    staying = {sha256 for unit in named.keys() - going if unit not in done.pruned for sha256 in named[unit]}
    for unit in sorted(going):
        gone = [sha256 for sha256 in named[unit] if sha256 not in staying and sha256 not in elsewhere]
        said = {"weights": gone, "keep": plan.spec.keep.weights, "settings_id": plan.settings_id}
        folder.put(_marker(unit), json.dumps(said).encode())
        for sha256 in gone:
            folder.delete(_file(sha256))
        for soup in soups.get(unit, ()):  # else the next run would go on from what was chosen
            folder.delete(f"state/soup-{prediction_unit(soup.predictor_id, plan.eval_id)}.json")


def _end_pruning(folder: Folder, plan: Plan, done: Done) -> None:
    """Deletes weights that a run which was killed has left beside the marker that it had written for them."""
    there = set(folder.names("weights"))
    left: set[str] = set()
    for unit in done.pruned:
        with contextlib.suppress(FileNotFoundError):  # its weights have just been restored
            left.update(marked(folder.get(_marker(unit))) or ())
    left = {sha256 for sha256 in left if f"{sha256}.safetensors" in there}
    others = _needed_elsewhere(folder, plan, set(done.pruned)) if left else None
    if others is None:
        return
    # They may be there for a member that was trained again and is needed, or for another sweep's soup.
    staying = (set(done.members) - set(done.pruned)) | (others.member_ids & set(done.members))
    left -= {sha256 for row in tables.rows(folder, "members", staying) for sha256 in weights_named(row)}
    left -= _soup_sha256s(folder, set(done.cells) - set(done.pruned))
    for sha256 in left:
        folder.delete(_file(sha256))


# Markers


def weights_named(row: Mapping[str, Any]) -> list[str]:
    """The SHA-256 of all weights that a row of `members` names."""
    return [sha256 for sha256 in (row["weights_sha256"], row["moments_sha256"]) if sha256]


def marked(content: bytes) -> list[str] | None:
    """The SHA-256 of the weights that a marker names; None where the file is no marker."""
    try:
        named = json.loads(content)["weights"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return named if isinstance(named, list) and all(isinstance(sha256, str) for sha256 in named) else None


def is_pruned(unit: str, folder: Folder) -> bool:
    """Whether the weights of a member, or the soups of a cell, were not to be kept."""
    return folder.exists(_marker(unit))


def restored(unit: str, folder: Folder) -> None:
    """The weights of a unit are there again."""
    folder.delete(_marker(unit))


def _marker(unit: str) -> str:
    return f"weights/{unit}.pruned"


def _file(sha256: str) -> str:
    return f"weights/{sha256}.safetensors"


# Other sweeps in the same folder


@dataclass(frozen=True)
class _Others:
    """What sweeps in the folder need of some members, and the SHA-256 of the soups that they keep of them."""

    member_ids: frozenset[str]
    soups: frozenset[str]


def _needed_elsewhere(
    folder: Folder, plan: Settings, asked: Collection[str], finished: Collection[Group] = ()
) -> _Others | None:
    """Which of the members `asked` sweeps in the folder keep or have still to do something with. The sweep's own file
    is no exception, but for groups that are `finished`: a run of the same settings that asks for more may have begun.

    None where it is not known (`_sweeps`).
    """
    sweeps = _sweeps(folder, plan.settings_id)
    if sweeps is None:
        return None
    kept = _kept_cells(folder, [sweep.plan for sweep in sweeps])
    needed = {member_id for member_ids in kept.values() for member_id in member_ids}
    cell_ids = set(kept)
    over = {cell_id for group in finished for cell_id in group.cell_ids}
    for sweep in sweeps:
        own = sweep.plan.settings_id == plan.settings_id
        sharing = {group.name: group for member_id in asked if (group := sweep.group_of.get(member_id))}
        touched = [group for group in sharing.values() if not (own and group.cell_ids <= over)]
        cell_ids.update(*(group.cell_ids for group in touched))
        needed |= _needed_by(sweep, touched, folder, own)
    committed = {cell_id for cell_id in cell_ids if tables.exists(folder, "cells", cell_id)}
    return _Others(
        frozenset(needed & set(asked)),
        _soup_sha256s(folder, {cell_id for cell_id in committed if not is_pruned(cell_id, folder)}),
    )


def _sweeps(folder: Folder, settings_id: str) -> list[_Stored] | None:
    """All sweeps of the folder; None where a resolved sweep file cannot be read, or the sweep of
    `settings_id` runs twice: the other run may need more than its file tells."""
    if len(heartbeat.running(folder, settings_id)) > 1:
        return None
    keys = [f"sweeps/{name}" for name in folder.names("sweeps") if name.endswith(".yaml")]
    try:
        return [_stored(folder, key) for key in keys]
    except UserError:
        return None


def _kept_cells(folder: Folder, plans: Collection[Plan]) -> dict[str, set[str]]:
    """The members, and what these were drawn from, of committed cells whose weights were all to be kept and of which no
    sweep file tells any more: one of the same settings, with other methods or ratios, has taken its place."""
    unknown = [unit for unit in tables.units(folder, "cells") if not any(unit in plan.cell for plan in plans)]
    rows = tables.rows(folder, "cells", unknown)
    members = {row["cell_id"]: set(row["member_ids"]) for row in rows if row["kept_weights"] == "all"}
    drawn_from = {
        row["member_id"]: row["parent_id"]
        for row in tables.rows(folder, "members", {m for ids in members.values() for m in ids})
        if row["kind"] == "sample"
    }
    return {cell_id: ids | {drawn_from[m] for m in ids if m in drawn_from} for cell_id, ids in members.items()}


def _soup_sha256s(folder: Folder, cell_ids: Collection[str]) -> frozenset[str]:
    """Of the weights of soups of committed cells."""
    rows = tables.rows(folder, "cells", cell_ids)
    return frozenset(soup.sha256 for row in rows for soup in cell_scores.soups_of(row) if soup.sha256)


def _needed_by(sweep: _Stored, asked: Collection[Group], folder: Folder, own: bool) -> set[str]:
    """The members of the groups `asked` of a sweep that it keeps or has still to do something with. Of the sweep that
    asks, its `own` best point is not looked up: it keeps that by itself."""
    plan, keep = sweep.plan, sweep.plan.spec.keep.weights
    if not asked or keep == "all":
        return {member_id for group in asked for member_id in group.member_ids}
    has_best = keep == "best" and not own
    one_by_one = len(asked) <= FEW_GROUPS and not has_best
    done = _look(asked, folder, plan) if one_by_one else inventory.survey(folder)
    needed = {m for group in asked if not is_finished(group, plan, done) for m in group.member_ids}
    if has_best:
        best = _best(folder, plan, [group for group in sweep.groups if is_finished(group, plan, done)])
        needed |= {member_id for cell in plan.cells if cell.cell_id in best for member_id in cell.trained_ids}
    return needed


@dataclass(frozen=True)
class _Stored:
    """A sweep of the folder, and its groups."""

    plan: Plan
    groups: list[Group]
    group_of: Mapping[str, Group]
    """By the id of a member whose weights may be pruned."""


def _stored(folder: Folder, key: str) -> _Stored:
    """The sweep whose file is `key`; made anew when its file has changed, or its search has chosen more."""
    file = folder.get(key), folder.name(key)
    return _planned(*file, _sweep(*file).chosen(folder))


@functools.lru_cache(maxsize=8)
def _sweep(content: bytes, source: str) -> inventory.StoredSweep:
    return inventory.sweep_from(content, source)


@functools.lru_cache(maxsize=8)
def _planned(content: bytes, source: str, chosen: Chosen) -> _Stored:
    plan = _sweep(content, source).plan(chosen)
    made = groups(plan)
    return _Stored(plan, made, {member_id: group for group in made for member_id in group.member_ids})


# The lease

_left: set[str] = set()
"""The leases that this process holds no more and has perhaps not deleted, since it was interrupted."""


@contextlib.contextmanager
def lease(folder: Folder) -> Iterator[Callable[[], None]]:
    """Makes sure that nobody else prunes weights meanwhile, and that sweeps that begin wait for the end of it. What it
    gives renews the lease, once that has some age."""
    token = uuid.uuid4().hex

    def content() -> bytes:
        return json.dumps({"token": token, **provenance.sign()}).encode()

    try:
        while not folder.put_new(LEASE, content()):
            told = _told(folder)
            if told and told.get("token") == token:  # an object store has written it, and its answer was lost
                break
            if told is not None and _is_held(told):
                time.sleep(LOOK_SECONDS)
            elif told is not None:  # what has gone by itself may be there again by now, and be somebody else's
                folder.delete(LEASE)
        written = time.monotonic()

        def renew() -> None:
            nonlocal written
            if time.monotonic() - written > LEASE_SECONDS / 10:
                folder.put(LEASE, content())
                written = time.monotonic()

        yield renew
    finally:
        _left.add(token)
        with contextlib.suppress(OSError):  # it is taken for left a minute later all the same
            if (_told(folder) or {}).get("token") == token:  # else it is of whom this one was interrupted waiting for
                folder.delete(LEASE)
            _left.discard(token)


def _told(folder: Folder) -> dict[str, Any] | None:
    """What the lease says; empty where it is not what a holder writes, None where there is none."""
    try:
        told = json.loads(folder.get(LEASE))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _is_held(told: Mapping[str, Any]) -> bool:
    """Whether somebody is pruning weights; not where the lease was left by one who was killed or interrupted."""
    try:
        return provenance.is_recent(told, LEASE_SECONDS) and told.get("token") not in _left
    except (ValueError, TypeError):  # a token may be no text
        return False


def wait_for_pruning(folder: Folder) -> None:
    """Returns when nobody prunes weights who has begun to before this call. A sweep whose file is in the folder by then
    is seen by all who begin later."""
    while (told := _told(folder)) is not None and _is_held(told):
        time.sleep(LOOK_SECONDS)
