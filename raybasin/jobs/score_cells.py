"""The job that ends a cell: its soups are made, everything is scored, and the row is committed.

Tensors: N examples, C classes, M members.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from raybasin.jobs import retention
from raybasin.jobs.worker_context import (
    Beat,
    Row,
    WorkerContext,
    keep_weights,
    missing_files,
    network,
    predict,
    predict_at,
    reestimated,
    sha256_of,
    store_predictions,
    stored_predictions,
    weights_of,
)
from raybasin.landscape import basin_exits, interpolation
from raybasin.metrics import cell_scores, classification, greedy_soup
from raybasin.metrics.cell_scores import OWN, Soup
from raybasin.store import tables
from raybasin.store.predictions import prediction_unit
from raybasin.store.provenance import describe, versions
from raybasin.sweep import ids
from raybasin.sweep.plan import Cell, shared_columns
from raybasin.training import models


def close_cell(cell: Cell, context: WorkerContext, beat: Beat) -> Row:
    """Makes the soups of a cell whose members and paths are there, scores everything, and commits the cell by its row
    in `cells`, which it returns.

    Of a cell that is committed it stores the predictions of soups that are to be kept by now and are not there.
    """
    folder = context.folder
    if tables.exists(folder, "cells", cell.cell_id):
        return _complete(cell, context, beat)
    started = time.monotonic()
    members = _member_weights(cell, context)
    networks = _Networks(cell, members, _soups(cell, members, context, beat), context, beat)
    _predict_soups(networks)
    known = shared_columns(context.settings, cell.point)
    scores = cell_scores.score_rows(cell.cell_id, cell.member_ids, networks.soups, _predictions(networks))
    if not tables.write(folder, "scores", cell.cell_id, [{**row, **known} for row in scores]):
        scores = tables.rows(folder, "scores", [cell.cell_id])  # of another worker, who was first
    row = {
        **known, **_identity(cell, networks.soups, context), **_measured(cell, scores, context), **_cost(cell, context),
        "close_seconds": time.monotonic() - started, "device": describe(context.device), "versions": versions(),
        "finished_at": tables.now(),
    }  # fmt: skip
    first = tables.write(folder, "cells", cell.cell_id, [row])
    return row if first else _complete(cell, context, beat)


def _identity(cell: Cell, soups: Sequence[Soup], context: WorkerContext) -> Row:
    """What the cell is and which networks it holds."""
    kept = {soup.kind: soup for soup in soups if soup.sha256}
    uniform, greedy = kept.get("uniform"), kept.get("greedy")
    return {
        "cell_id": cell.cell_id, "member_ids": list(cell.member_ids), "hub_id": cell.member_ids[0],
        "n_members": len(cell.member_ids), "max_lr": cell.max_lr, "cycle_epochs": cell.cycle_epochs,
        "variant": cell.variant,
        "soup_sha256": uniform.sha256 if uniform else None,
        "greedy_soup_sha256": greedy.sha256 if greedy else None,
        "greedy_soup_members": list(greedy.members) if greedy else None,
        "kept_predictions": list(context.settings.kept_splits),
        "kept_weights": context.settings.spec.keep.weights,
    }  # fmt: skip


def _measured(cell: Cell, scores: Sequence[Row], context: WorkerContext) -> Row:
    """Scores, barriers and when its runs left the basin."""
    threshold = context.settings.spec.basin.threshold
    paths = tables.rows(context.folder, "paths", [f"{cell.cell_id}-{path.path_id}" for path in cell.paths])
    traced = tables.rows(context.folder, "traces", [f"{cell.cell_id}-{trace.trace_id}" for trace in cell.traces])
    return {
        **cell_scores.cell_columns(cell.member_ids, paths, scores, context.soup_statistics, threshold),
        **basin_exits.summary(traced, threshold),
    }


def _cost(cell: Cell, context: WorkerContext) -> Row:
    """Training that the cell has taken, the hub's included; `wall_seconds` from when its own first run began."""
    members = tables.rows(context.folder, "members", cell.trained_ids)
    now = tables.now()
    return {
        "train_epochs": sum(member["cycle_epochs"] for member in members),
        "train_seconds": sum(member["train_seconds"] for member in members),
        "wall_seconds": max((now - run["finished_at"]).total_seconds() + run["job_seconds"] for run in members[1:]),
    }


def _complete(cell: Cell, context: WorkerContext, beat: Beat) -> Row:
    """The row of a committed cell, once all predictions of its soups that are to be kept are there, and its soups where
    they were pruned and are to be kept by now."""
    folder = context.folder
    row = tables.row(folder, "cells", cell.cell_id)
    soups = cell_scores.soups_of(row)
    restore = context.settings.spec.keep.weights != "best" and retention.is_pruned(cell.cell_id, folder)
    if restore or any(missing_files(soup.predictor_id, context) for soup in soups):
        networks = _Networks(cell, _member_weights(cell, context), soups, context, beat)
        _predict_soups(networks)
        if restore:
            _restore_soups(networks)
    return row


def _restore_soups(networks: _Networks) -> None:
    """Raises RuntimeError where a soup comes out otherwise than it was, as it may on a GPU."""
    folder, cell_id, bn = networks.context.folder, networks.cell.cell_id, networks.context.soup_statistics
    for soup in networks.soups:
        if soup.sha256 and keep_weights(folder, networks.weights(soup.predictor_id, bn)) != soup.sha256:
            raise RuntimeError(f"the {soup.kind} soup of cell {cell_id} is not the one that was pruned")
    retention.restored(cell_id, folder)


# The networks of a cell: members and soups


@dataclass(frozen=True)
class _Networks:
    """The members of a cell, by id, and its soups, whose weights are read or made when they are asked for."""

    cell: Cell
    members: Mapping[str, models.State]
    soups: Sequence[Soup]
    context: WorkerContext
    beat: Beat
    made: dict[tuple[str, str], models.State] = field(default_factory=dict)

    @property
    def keys(self) -> list[tuple[str, str]]:
        """(predictor_id, bn) of each: members with all statistics, soups with their own."""
        members = [(member_id, bn) for member_id in self.members for bn in self.context.statistics]
        return members + [(soup.predictor_id, self.context.soup_statistics) for soup in self.soups]

    def weights(self, predictor_id: str, bn: str) -> models.State:
        """Where splits are scored without storing predictions, every network is needed for each of them: what is made
        is then kept."""
        key = predictor_id, bn
        if key in self.made:
            return self.made[key]
        state = self._make(predictor_id, bn)
        if self.context.settings.kept_splits != self.context.settings.splits:
            self.made[key] = state
        return state

    def _make(self, predictor_id: str, bn: str) -> models.State:
        if predictor_id in self.members:
            state = self.members[predictor_id]
            return state if bn == OWN else reestimated(state, self.context, self.beat)
        soup = next(soup for soup in self.soups if soup.predictor_id == predictor_id)
        if soup.sha256 and not retention.is_pruned(self.cell.cell_id, self.context.folder):
            return weights_of(self.context.folder, soup.sha256)
        return _average([self.members[member_id] for member_id in soup.members], self.context, self.beat)


def _member_weights(cell: Cell, context: WorkerContext) -> dict[str, models.State]:
    return {member_id: weights_of(context.folder, sha256_of(context.folder, member_id))
            for member_id in cell.member_ids}  # fmt: skip


def _average(states: Iterable[models.State], context: WorkerContext, beat: Beat) -> models.State:
    """A uniform soup: the mean of all weights, with batch-norm statistics estimated for it."""
    return reestimated(interpolation.average(states), context, beat)


# Predictions


def _predictions(networks: _Networks) -> cell_scores.Predictions:
    """The predictions of a cell: from the folder, and where they are not kept from the networks themselves."""
    context = networks.context
    stored = stored_predictions(context)

    def read(split: str, predictor_ids: Sequence[str]) -> cell_scores.Split:
        networks.beat()
        return stored.read(split, predictor_ids) if split in stored.splits else _looked_at(split, networks)

    return cell_scores.Predictions(context.settings.splits, stored.batch_norm, read)


def _looked_at(split: str, networks: _Networks) -> cell_scores.Split:
    """The predictions of all networks on one split."""
    context = networks.context
    images_NHWC, labels_N = context.images(split)
    net = network(networks.weights(*networks.keys[0]), context)
    log_probs = {}
    for key in networks.keys:
        net.load_state_dict(networks.weights(*key))
        log_probs[key] = predict(net, images_NHWC, context, networks.beat)
    return cell_scores.Split(labels_N.cpu().numpy(), log_probs)


def _columns_of_soup(soup: Soup, cell: Cell, context: WorkerContext) -> Row:
    """Cells of several methods may share a soup: its rows are of the method that its last candidate is of, whichever
    of the cells is closed first."""
    known = shared_columns(context.settings, cell.point)
    last = tables.row(context.folder, "members", soup.members[-1] if soup.kind == "uniform" else cell.member_ids[-1])
    is_shared = all(last[key] == known[key] for key in ("checkpoint", "replicate", "lr_ratio", "cycle_ratio"))
    return {**known, "method": last["method"]} if is_shared else known


def _predict_soups(networks: _Networks) -> None:
    """Stores the predictions of soups that are to be kept and are not there: a cell whose first members are the same
    may have left them."""
    context, bn = networks.context, networks.context.soup_statistics
    for soup in networks.soups:
        missing = missing_files(soup.predictor_id, context)
        if missing:
            known = _columns_of_soup(soup, networks.cell, context)
            columns = {"kind": f"{soup.kind}_soup", "n_members": len(soup.members), **known}
            states = {bn: networks.weights(soup.predictor_id, bn)}
            store_predictions(soup.predictor_id, states, missing, columns, context, networks.beat)


# Soups


def _soups(cell: Cell, members: Mapping[str, models.State], context: WorkerContext, beat: Beat) -> list[Soup]:
    """The soups that the sweep asks for. Weights are kept of those of all members; smaller ones are averaged anew."""
    made: list[Soup] = []
    if "uniform" in context.settings.spec.soups:
        made += cell_scores.uniform_soups(cell.member_ids)[:-1]
        made.append(_kept_soup("uniform", members, lambda: cell.member_ids, context, beat))
    if "greedy" in context.settings.spec.soups:
        made.append(_kept_soup("greedy", members, lambda: _greedy(members, context, beat), context, beat))
    return made


def _kept_soup(
    kind: str,
    members: Mapping[str, models.State],
    choose: Callable[[], tuple[str, ...]],
    context: WorkerContext,
    beat: Beat,
) -> Soup:
    """Makes a soup of those members that `choose` names, and stores its weights.

    As with members, everything after its making speaks of the weights that the first worker left. What that left stays:
    cells that differ only in how their paths are measured have the same soups, and the same predictions of them.
    """
    folder, predictor_id = context.folder, ids.soup_id(kind, tuple(members))
    outcome = f"state/soup-{prediction_unit(predictor_id, context.settings.eval_id)}.json"
    known = json.loads(folder.get(outcome)) if folder.exists(outcome) else None
    if known is None or not folder.exists(f"weights/{known['sha256']}.safetensors"):  # moved aside, if it was there
        chosen = choose()
        state = _average([members[member_id] for member_id in chosen], context, beat)
        left = {"sha256": keep_weights(folder, state), "members": list(chosen)}
        write = folder.put_new if known is None else folder.put
        write(outcome, json.dumps(left).encode())
        known = json.loads(folder.get(outcome))
    return Soup(kind, predictor_id, tuple(known["members"]), known["sha256"])


def _greedy(members: Mapping[str, models.State], context: WorkerContext, beat: Beat) -> tuple[str, ...]:
    """Which members go into the greedy soup: chosen on validation, with re-estimated statistics throughout."""
    ids = tuple(members)
    stored = stored_predictions(context).read("val", ids)
    labels_N, log_probs_MNC = stored.labels_N, stored.of(ids, context.soup_statistics)
    accuracy_M = [classification.accuracy(log_probs_NC, labels_N) for log_probs_NC in log_probs_MNC]
    nll_M = [classification.nll(log_probs_NC, labels_N) for log_probs_NC in log_probs_MNC]
    net = network(members[ids[0]], context)

    def validation_accuracy(chosen: tuple[int, ...]) -> float:
        if len(chosen) == 1:
            return accuracy_M[chosen[0]]
        average = interpolation.average(members[ids[index]] for index in chosen)
        return classification.accuracy(predict_at(net, average, ("val",), context, beat)["val"], labels_N)

    order = greedy_soup.greedy_order(accuracy_M, nll_M)
    return tuple(ids[index] for index in greedy_soup.greedy_soup(order, validation_accuracy))
