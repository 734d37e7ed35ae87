"""The job that ends a cell: its soups are made, everything is scored, and the row is committed.

Tensors: N examples, C classes, M members.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from raybasin.jobs import retention
from raybasin.jobs.worker_context import Row, WorkerContext
from raybasin.landscape import basin_exits, interpolation
from raybasin.metrics import cell_scores, classification, selection
from raybasin.metrics.cell_scores import OWN, Predictions, Soup, Split
from raybasin.store import tables
from raybasin.store.predictions import prediction_unit
from raybasin.sweep import ids
from raybasin.sweep.plan import Cell, shared_columns
from raybasin.training import models


def close_cell(cell: Cell, context: WorkerContext) -> Row:
    """Makes the soups of a cell whose members and paths are there, scores everything, and commits the cell by its row
    in `cells`, which it returns.

    Of a cell that is committed it stores the predictions of soups that are to be kept and are not there, and soups that
    were pruned and are to be kept by now.
    """
    folder, settings, started = context.folder, context.settings, time.monotonic()
    if tables.exists(folder, "cells", cell.cell_id):
        return _complete(cell, context)
    members = _member_weights(cell, context)
    networks = _Networks(cell, members, _soups(cell, members, context), context)
    networks.predict_soups()
    known = shared_columns(settings, cell.point)
    scores = cell_scores.score_rows(cell.cell_id, cell.member_ids, networks.soups, networks.predictions())
    if not tables.write(folder, "scores", cell.cell_id, [{**row, **known} for row in scores]):
        scores = tables.rows(folder, "scores", [cell.cell_id])  # of another worker, who was first
    row = {**known, **_columns(cell, networks.soups, scores, context), **context.finish(started, "close_seconds")}
    first = tables.write(folder, "cells", cell.cell_id, [row])
    return row if first else _complete(cell, context)


def _columns(cell: Cell, soups: Sequence[Soup], scores: Sequence[Row], context: WorkerContext) -> Row:
    """What the cell is and which networks it holds, its scores and barriers, when its runs left the basin, and the
    training that it has taken, the hub's included; `wall_seconds` from when its own first run began."""
    folder, settings, now = context.folder, context.settings, tables.now()
    criterion = settings.spec.basin.criterion
    kept = {soup.kind: soup for soup in soups if soup.sha256}
    uniform, greedy = kept.get("uniform"), kept.get("greedy")
    paths = tables.rows(folder, "paths", [f"{cell.cell_id}-{path.path_id}" for path in cell.paths])
    traced = tables.rows(folder, "traces", [f"{cell.cell_id}-{trace.trace_id}" for trace in cell.traces])
    runs = tables.rows(folder, "members", cell.trained_ids)
    measured = cell_scores.cell_columns(cell.member_ids, paths, scores, context.soup_statistics)
    return {
        "cell_id": cell.cell_id, "member_ids": list(cell.member_ids), "hub_id": cell.member_ids[0],
        "n_members": len(cell.member_ids), "max_lr": cell.max_lr, "cycle_epochs": cell.cycle_epochs,
        "variant": cell.variant,
        "soup_sha256": uniform.sha256 if uniform else None,
        "greedy_soup_sha256": greedy.sha256 if greedy else None,
        "greedy_soup_members": list(greedy.members) if greedy else None,
        "kept_predictions": list(settings.kept_splits),
        "kept_weights": settings.spec.keep.weights,
        **measured,
        "in_basin": criterion.holds(measured["barrier_error"], measured["barrier_nll"]),
        **basin_exits.summary(traced, criterion),
        "train_epochs": sum(run["cycle_epochs"] for run in runs),
        "train_seconds": sum(run["train_seconds"] for run in runs),
        "wall_seconds": max((now - run["finished_at"]).total_seconds() + run["job_seconds"] for run in runs[1:]),
    }  # fmt: skip


def _complete(cell: Cell, context: WorkerContext) -> Row:
    """The row of a committed cell, once all of its soups that is to be kept by now is there. Raises RuntimeError where
    a soup that was pruned comes out otherwise than it was, as it may on a GPU."""
    folder, bn = context.folder, context.soup_statistics
    row = tables.row(folder, "cells", cell.cell_id)
    soups = cell_scores.soups_of(row)
    restore = context.settings.spec.keep.weights != "best" and retention.is_pruned(cell.cell_id, folder)
    if restore or any(context.missing_files(soup.predictor_id) for soup in soups):
        networks = _Networks(cell, _member_weights(cell, context), soups, context)
        networks.predict_soups()
        for soup in soups if restore else ():
            if soup.sha256 and context.keep_weights(networks.weights(soup.predictor_id, bn)) != soup.sha256:
                raise RuntimeError(f"the {soup.kind} soup of cell {cell.cell_id} is not the one that was pruned")
        if restore:
            retention.restored(cell.cell_id, folder)
    return row


# The networks of a cell: members and soups


@dataclass(frozen=True)
class _Networks:
    """The members of a cell, by id, and its soups, whose weights are read or made when they are asked for."""

    cell: Cell
    members: Mapping[str, models.State]
    soups: Sequence[Soup]
    context: WorkerContext
    made: dict[tuple[str, str], models.State] = field(default_factory=dict)

    def weights(self, predictor_id: str, bn: str) -> models.State:
        """Where splits are scored without storing predictions, every network is needed for each of them: what is made
        is then kept."""
        key, settings = (predictor_id, bn), self.context.settings
        if key in self.made:
            return self.made[key]
        soup = next((soup for soup in self.soups if soup.predictor_id == predictor_id), None)
        if soup is None:
            member = self.members[predictor_id]
            state = member if bn == OWN else self.context.reestimated(member)
        elif soup.sha256 and not retention.is_pruned(self.cell.cell_id, self.context.folder):
            state = self.context.weights_of(soup.sha256)
        else:
            average = interpolation.average(self.members[member_id] for member_id in soup.members)
            state = self.context.reestimated(average)
        if settings.kept_splits != settings.splits:
            self.made[key] = state
        return state

    def predict_soups(self) -> None:
        """Stores the predictions of soups that are to be kept and are not there: a cell whose first members are the
        same may have left them."""
        context, bn = self.context, self.context.soup_statistics
        for soup in self.soups:
            if missing := context.missing_files(soup.predictor_id):
                known = {"kind": f"{soup.kind}_soup", "n_members": len(soup.members), **self._shared_columns(soup)}
                states = {bn: self.weights(soup.predictor_id, bn)}
                context.store_predictions(soup.predictor_id, states, missing, known)

    def _shared_columns(self, soup: Soup) -> Row:
        """Cells of several methods may share a soup: its rows are of the method that its last candidate is of,
        whichever of the cells is closed first."""
        known = shared_columns(self.context.settings, self.cell.point)
        candidates = soup.members if soup.kind == "uniform" else self.cell.member_ids
        last = tables.row(self.context.folder, "members", candidates[-1])
        is_shared = all(last[key] == known[key] for key in ("checkpoint", "replicate", "lr_ratio", "cycle_ratio"))
        return {**known, "method": last["method"]} if is_shared else known

    def predictions(self) -> Predictions:
        """From the folder, and where they are not kept from the networks themselves."""
        context = self.context
        stored = context.stored_predictions()
        keys = [(member_id, bn) for member_id in self.members for bn in context.statistics]
        keys += [(soup.predictor_id, context.soup_statistics) for soup in self.soups]

        def read(split: str, predictor_ids: Sequence[str]) -> Split:
            context.beat(0)
            if split in stored.splits:
                return stored.read(split, predictor_ids)
            images_NHWC, labels_N = context.images(split)
            shown = context.shown(split, images_NHWC)
            log_probs = {key: context.predict(context.evaluated(self.weights(*key)), shown) for key in keys}
            return Split(labels_N.cpu().numpy(), log_probs)

        return Predictions(context.settings.splits, stored.batch_norm, read)


def _member_weights(cell: Cell, context: WorkerContext) -> dict[str, models.State]:
    return {member_id: context.weights_of(context.sha256_of(member_id)) for member_id in cell.member_ids}


# Soups


def _soups(cell: Cell, members: Mapping[str, models.State], context: WorkerContext) -> list[Soup]:
    """The soups that the sweep asks for. Weights are kept of those of all members; smaller ones are averaged anew.

    As with members, everything after its making speaks of the weights that the first worker left. What that left stays:
    cells that differ only in how their paths are measured have the same soups, and the same predictions of them.
    """
    folder, made = context.folder, []
    for kind in ("uniform", "greedy"):
        if kind not in context.settings.spec.soups:
            continue
        predictor_id = ids.soup_id(kind, cell.member_ids)
        outcome = f"state/soup-{prediction_unit(predictor_id, context.settings.eval_id)}.json"
        known = json.loads(folder.get(outcome)) if folder.exists(outcome) else None
        if known is None or not folder.exists(f"weights/{known['sha256']}.safetensors"):  # moved aside, if it was there
            chosen = cell.member_ids if kind == "uniform" else _greedy(members, context)
            state = context.reestimated(interpolation.average(members[member_id] for member_id in chosen))
            left = {"sha256": context.keep_weights(state), "members": list(chosen)}
            write = folder.put_new if known is None else folder.put
            write(outcome, json.dumps(left).encode())
            known = json.loads(folder.get(outcome))
        smaller = cell_scores.uniform_soups(cell.member_ids)[:-1] if kind == "uniform" else []
        made += [*smaller, Soup(kind, predictor_id, tuple(known["members"]), known["sha256"])]
    return made


def _greedy(members: Mapping[str, models.State], context: WorkerContext) -> tuple[str, ...]:
    """Which members go into the greedy soup: chosen on validation, with re-estimated statistics throughout."""
    ids = tuple(members)
    stored = context.stored_predictions().read("val", ids)
    labels_N, log_probs_MNC = stored.labels_N, stored.of(ids, context.soup_statistics)
    accuracy_M = [classification.accuracy(log_probs_NC, labels_N) for log_probs_NC in log_probs_MNC]
    nll_M = [classification.nll(log_probs_NC, labels_N) for log_probs_NC in log_probs_MNC]

    def validation_accuracy(chosen: tuple[int, ...]) -> float:
        if len(chosen) == 1:
            return accuracy_M[chosen[0]]
        average = interpolation.average(members[ids[index]] for index in chosen)
        return classification.accuracy(context.predict_at(average, ("val",))["val"], labels_N)

    order = selection.greedy_order(accuracy_M, nll_M)
    return tuple(ids[index] for index in selection.greedy_soup(order, validation_accuracy))
