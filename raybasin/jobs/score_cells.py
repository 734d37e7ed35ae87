"""The job that ends a cell: its soups are made, everything is scored, and the row is committed.

Tensors: N examples, C classes, M members.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from torch import nn

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
from raybasin.metrics import classification, greedy_soup, scoring
from raybasin.metrics.scoring import OWN, REESTIMATED, Soup
from raybasin.store import tables
from raybasin.store.folders import Folder
from raybasin.store.predictions import prediction_unit
from raybasin.store.provenance import describe, versions
from raybasin.sweep import plan as planning
from raybasin.sweep.plan import Cell
from raybasin.training import models


def close_cell(cell: Cell, context: WorkerContext, beat: Beat) -> Row:
    """Makes the soups of a cell whose members and paths are there, scores everything, and commits the cell by its row
    in `cells`, which it returns.

    Of a cell that is committed it stores the predictions of soups that are to be kept by now and are not there.
    """
    folder, plan = context.folder, context.plan
    if tables.exists(folder, "cells", cell.cell_id):
        return _complete(cell, context, beat)
    started = time.monotonic()
    states = [weights_of(folder, sha256_of(folder, member_id)) for member_id in cell.member_ids]
    made = _soups(cell, states, context, beat)
    networks = _networks(cell, states, made, context, beat)
    _store_soups(cell, made, networks, context, beat)
    known = planning.shared_columns(plan, cell)
    agreement = f"state/cell-{cell.cell_id}.json"
    reference = _agreed_reference(cell, context, agreement)
    if tables.exists(folder, "cells", cell.cell_id):  # as with members, the agreement may be this worker's alone
        folder.delete(agreement)
        return _complete(cell, context, beat)
    references = _references(reference, cell, folder)
    scores = scoring.score_rows(cell, made, _every_split(networks, context, beat), references)
    if reference.cell_id == cell.cell_id:
        references = scoring.references_of(scores)
        scores = scoring.with_equivalents(scores, references)
    tables.write(folder, "scores", cell.cell_id, [{**row, **known} for row in scores])
    paths = tables.rows(folder, "paths", [f"{cell.cell_id}-{path.path_id}" for path in cell.paths])
    traced = tables.rows(folder, "traces", [f"{cell.cell_id}-{trace.trace_id}" for trace in cell.traces])
    members = tables.rows(folder, "members", cell.trained_ids)
    kept = {soup.kind: soup for soup in made if soup.sha256}
    row = {
        "cell_id": cell.cell_id, "member_ids": list(cell.member_ids), "hub_id": cell.member_ids[0],
        "n_members": len(cell.member_ids), "max_lr": cell.max_lr, "cycle_epochs": cell.cycle_epochs,
        "reference_ids": list(reference.member_ids) if references else [], "variant": cell.variant, **known,
        "soup_sha256": kept["uniform"].sha256 if "uniform" in kept else None,
        "greedy_soup_sha256": kept["greedy"].sha256 if "greedy" in kept else None,
        "greedy_soup_members": list(kept["greedy"].members) if "greedy" in kept else None,
        "kept_predictions": list(plan.kept_splits),
        **scoring.cell_scores(cell, paths, scores, context.soup_statistics, plan.spec.basin.threshold),
        **basin_exits.summary(traced, plan.spec.basin.threshold),
        "train_epochs": sum(member["cycle_epochs"] for member in members),
        "train_seconds": sum(member["train_seconds"] for member in members),
        "wall_seconds": _wall_seconds(members[1:]), "close_seconds": time.monotonic() - started,
        "device": describe(context.device), "versions": versions(), "finished_at": tables.now(),
    }  # fmt: skip
    first = tables.write(folder, "cells", cell.cell_id, [row])
    folder.delete(agreement)
    return row if first else _complete(cell, context, beat)


def _complete(cell: Cell, context: WorkerContext, beat: Beat) -> Row:
    """The row of a committed cell, once all predictions of its soups that are to be kept are there, and its soups where
    they were pruned and are to be kept by now."""
    folder = context.folder
    row = tables.row(folder, "cells", cell.cell_id)
    made = scoring.soups_of(row)
    wanted = context.plan.spec.keep.weights != "best" and retention.is_pruned(cell.cell_id, folder)
    if wanted or any(missing_files(soup.predictor_id, context) for soup in made):
        states = [weights_of(folder, sha256_of(folder, member_id)) for member_id in cell.member_ids]
        networks = _networks(cell, states, made, context, beat)
        _store_soups(cell, made, networks, context, beat)
        if wanted:
            _restore_soups(cell, made, networks, context)
    return row


def _restore_soups(cell: Cell, made: Sequence[Soup], networks: Networks, context: WorkerContext) -> None:
    for soup in made:
        if soup.sha256 is None:
            continue
        state = networks[soup.predictor_id, context.soup_statistics]()
        if keep_weights(context.folder, state) != soup.sha256:
            raise RuntimeError(f"the {soup.kind} soup of cell {cell.cell_id} is not the one that was pruned")
    retention.restored(cell.cell_id, context.folder)


# What a cell is compared with


@dataclass(frozen=True)
class _Reference:
    """The Local DE cell that a cell is compared with: its id and members, none where there is none."""

    cell_id: str = ""
    member_ids: tuple[str, ...] = ()


def _agreed_reference(cell: Cell, context: WorkerContext, agreement: str) -> _Reference:
    """What the cell is compared with: what the first worker to ask found. Two sweeps that share the cell may differ in
    this, and its scores and its row must not."""
    folder, reference = context.folder, context.plan.reference_of(cell)
    found = _Reference()
    if reference is not None and (reference == cell or tables.exists(folder, "cells", reference.cell_id)):
        found = _Reference(reference.cell_id, reference.member_ids)
    folder.put_new(agreement, json.dumps(asdict(found)).encode())
    try:
        agreed = json.loads(folder.get(agreement))
    except FileNotFoundError:  # the cell has been committed meanwhile
        return found
    return _Reference(agreed["cell_id"], tuple(agreed["member_ids"]))


def _references(reference: _Reference, cell: Cell, folder: Folder) -> scoring.References:
    """What the deep-ensemble equivalent is measured against: the scores of the Local DE cell. (Its own are yet to be
    computed.)"""
    if reference.cell_id in ("", cell.cell_id) or not tables.exists(folder, "scores", reference.cell_id):
        return {}
    return scoring.references_of(tables.rows(folder, "scores", [reference.cell_id]))


def _wall_seconds(members: Sequence[Row]) -> float:
    """From when the first of a cell's own members was begun until now."""
    return max((tables.now() - member["finished_at"]).total_seconds() + member["job_seconds"] for member in members)


# The networks of a cell: members and soups


Networks = Mapping[tuple[str, str], Callable[[], models.State]]
"""Weights by (predictor_id, bn), made when they are asked for."""


def _networks(
    cell: Cell, states: Sequence[models.State], made: Sequence[Soup], context: WorkerContext, beat: Beat
) -> Networks:
    """The members with either kind of statistics, and the soups. Where splits are scored without storing predictions,
    every network is needed for each of them: what is made is then kept."""
    kept = functools.cache if context.plan.kept_splits != context.plan.splits else lambda make: make
    pruned = retention.is_pruned(cell.cell_id, context.folder)
    found: dict[tuple[str, str], Callable[[], models.State]] = {}
    for member_id, state in zip(cell.member_ids, states, strict=True):
        found[member_id, OWN] = functools.partial(_itself, state)
        if REESTIMATED in context.statistics:
            found[member_id, REESTIMATED] = kept(functools.partial(reestimated, state, context, beat))
    for soup in made:
        ingredients = [states[cell.member_ids.index(member_id)] for member_id in soup.members]
        make = (
            functools.partial(weights_of, context.folder, soup.sha256)
            if soup.sha256 and not pruned
            else functools.partial(_average, ingredients, context, beat)
        )
        found[soup.predictor_id, context.soup_statistics] = kept(make)
    return found


def _itself(state: models.State) -> models.State:
    return state


def _average(states: Iterable[models.State], context: WorkerContext, beat: Beat) -> models.State:
    """A uniform soup: the mean of all weights, with batch-norm statistics estimated for it."""
    return reestimated(interpolation.average(states), context, beat)


def _every_split(networks: Networks, context: WorkerContext, beat: Beat) -> scoring.Predictions:
    """The predictions of a cell: from the folder, and where they are not kept from the networks themselves."""
    stored = stored_predictions(context)

    def read(split: str, predictor_ids: Sequence[str]) -> scoring.Split:
        beat()
        return (
            stored.read(split, predictor_ids) if split in stored.splits else _looked_at(split, networks, context, beat)
        )

    return scoring.Predictions(context.plan.splits, stored.batch_norm, read)


def _looked_at(split: str, networks: Networks, context: WorkerContext, beat: Beat) -> scoring.Split:
    """The predictions of all networks on one split."""
    images_NHWC, labels_N = context.images(split)
    net: nn.Module | None = None
    log_probs = {}
    for key, weights in networks.items():
        net = network(weights(), context) if net is None else net
        net.load_state_dict(weights())
        log_probs[key] = predict(net, images_NHWC, context, beat)
    return scoring.Split(labels_N.cpu().numpy(), log_probs)


# Soups


def _soups(cell: Cell, states: Sequence[models.State], context: WorkerContext, beat: Beat) -> list[Soup]:
    """The soups that the sweep asks for. Weights are kept of those of all members; smaller ones are averaged anew."""
    made: list[Soup] = []
    if "uniform" in context.plan.spec.soups:
        everyone = tuple(range(len(states)))
        made += scoring.uniform_soups(cell.member_ids)[:-1]
        made.append(_kept_soup("uniform", cell, states, lambda: everyone, context, beat))
    if "greedy" in context.plan.spec.soups:
        made.append(_kept_soup("greedy", cell, states, lambda: _greedy(cell, states, context, beat), context, beat))
    return made


def _kept_soup(
    kind: str,
    cell: Cell,
    states: Sequence[models.State],
    choose: Callable[[], tuple[int, ...]],
    context: WorkerContext,
    beat: Beat,
) -> Soup:
    """Makes a soup of those members that `choose` names, and stores its weights.

    As with members, everything after its making speaks of the weights that the first worker left. What that left stays:
    cells that differ only in how their paths are measured have the same soups, and the same predictions of them.
    """
    folder, predictor_id = context.folder, scoring.soup_id(kind, cell)
    outcome = f"state/soup-{prediction_unit(predictor_id, context.plan.eval_id)}.json"
    known = json.loads(folder.get(outcome)) if folder.exists(outcome) else None
    if known is None or not folder.exists(f"weights/{known['sha256']}.safetensors"):  # moved aside, if it was there
        chosen = choose()
        state = _average([states[index] for index in chosen], context, beat)
        left = {"sha256": keep_weights(folder, state), "members": [cell.member_ids[index] for index in chosen]}
        write = folder.put_new if known is None else folder.put
        write(outcome, json.dumps(left).encode())
        known = json.loads(folder.get(outcome))
    return Soup(kind, predictor_id, tuple(known["members"]), known["sha256"])


def _store_soups(cell: Cell, made: Iterable[Soup], networks: Networks, context: WorkerContext, beat: Beat) -> None:
    """Stores the predictions of soups that are to be kept and are not there: a cell whose first members are the same
    may have left them."""
    bn, known = context.soup_statistics, planning.shared_columns(context.plan, cell)
    for soup in made:
        missing = missing_files(soup.predictor_id, context)
        if missing:
            columns = {"kind": f"{soup.kind}_soup", "n_members": len(soup.members), **known}
            states = {bn: networks[soup.predictor_id, bn]()}
            store_predictions(soup.predictor_id, states, missing, columns, context, beat)


def _greedy(cell: Cell, states: Sequence[models.State], context: WorkerContext, beat: Beat) -> tuple[int, ...]:
    """Which members go into the greedy soup: chosen on validation, with re-estimated statistics throughout."""
    stored = stored_predictions(context).read("val", cell.member_ids)
    labels_N, log_probs_MNC = stored.labels_N, stored.of(cell.member_ids, context.soup_statistics)
    accuracy_M = [classification.accuracy(log_probs_NC, labels_N) for log_probs_NC in log_probs_MNC]
    nll_M = [classification.nll(log_probs_NC, labels_N) for log_probs_NC in log_probs_MNC]
    net = network(states[0], context)

    def validation_accuracy(members: tuple[int, ...]) -> float:
        if len(members) == 1:
            return accuracy_M[members[0]]
        average = interpolation.average(states[index] for index in members)
        return classification.accuracy(predict_at(net, average, ("val",), context, beat)["val"], labels_N)

    return greedy_soup.greedy_soup(greedy_soup.greedy_order(accuracy_M, nll_M), validation_accuracy).ingredients
