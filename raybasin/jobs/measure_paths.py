"""Jobs that measure the loss between networks: along paths, and along the traces of runs.

Tensors: N examples, C classes, P path points.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from raybasin.jobs.train_members import inside_key, leave_inside, sha256_of_parent, traced_rows
from raybasin.jobs.worker_context import (
    Beat,
    Row,
    WorkerContext,
    network,
    predict_at,
    sha256_of,
    stored_predictions,
    weights_of,
)
from raybasin.landscape import barriers, basin_exits, interpolation
from raybasin.metrics import classification, scoring
from raybasin.store import tables
from raybasin.sweep import plan as planning
from raybasin.sweep.plan import Cell, Path, Trace
from raybasin.training import models

# Paths


def measure_path(cell: Cell, path: Path, context: WorkerContext, beat: Beat) -> None:
    """NLL and error along the straight line between two members, batch norm re-estimated at every point.

    The ends are not run again: they are the members' stored predictions with re-estimated statistics.
    """
    folder, plan, bn = context.folder, context.plan, context.soup_statistics
    unit = f"{cell.cell_id}-{path.path_id}"
    if tables.exists(folder, "paths", unit):
        return
    started = time.monotonic()
    start, end = (weights_of(folder, sha256_of(folder, member_id)) for member_id in (path.start_id, path.end_id))
    net = network(start, context)
    t_P = barriers.path_points(plan.spec.basin.points)
    inside = [
        predict_at(net, interpolation.interpolate(start, end, t), plan.spec.basin.splits, context, beat)
        for t in t_P[1:-1]
    ]
    named = {
        "cell_id": cell.cell_id, "path_id": path.path_id, "kind": path.kind, "start_id": path.start_id,
        "end_id": path.end_id, "bn_images": plan.bn_images if plan.facts.batch_norm else 0,
        "l2_distance": interpolation.l2_distance(start, end, [name for name, _ in net.named_parameters()]),
        "job_seconds": time.monotonic() - started, **planning.shared_columns(plan, cell),
    }  # fmt: skip
    rows: list[Row] = []
    for split in plan.spec.basin.splits:
        ends = stored_predictions(context).read(split, [path.start_id, path.end_id])
        at_start, at_end = (ends.log_probs[end_id, bn] for end_id in (path.start_id, path.end_id))
        log_probs_PNC = [at_start, *(point[split] for point in inside), at_end]
        points = _points(log_probs_PNC, ends.labels_N, t_P)
        rows += [{**named, "split": split, "images": len(at_start), **point} for point in points]
    tables.write(folder, "paths", unit, rows)


def _points(log_probs_PNC: Sequence[np.ndarray], labels_N: np.ndarray, t_P: Sequence[float]) -> list[Row]:
    nll_P = [classification.nll(log_probs_NC, labels_N) for log_probs_NC in log_probs_PNC]
    wrong_PN = np.stack([classification.classes_of(log_probs_NC) != labels_N for log_probs_NC in log_probs_PNC])
    return scoring.path_rows(nll_P, wrong_PN, t_P)


# Traces


def measure_trace(cell: Cell, trace: Trace, context: WorkerContext, beat: Beat) -> None:
    """NLL and error along the straight lines from the hub, and from the checkpoint with the hub's head, to the weights
    that a run had after some of its steps, batch norm re-estimated at every point.

    The weights inside the cycle, which the run has left behind, are removed when the rows are there. A run that has
    left none is trained again.
    """
    folder, plan = context.folder, context.plan
    unit = f"{cell.cell_id}-{trace.trace_id}"
    if not tables.exists(folder, "traces", unit):
        rows = traced_rows(trace, folder) or _trace_rows(cell, trace, context, beat)
        own = {"cell_id": cell.cell_id, **planning.shared_columns(plan, cell)}
        tables.write(folder, "traces", unit, [{**row, **own} for row in rows])
    for step in plan.trace_steps(plan.members[trace.member_id]):
        folder.delete(inside_key(trace.member_id, step))


def _trace_rows(cell: Cell, trace: Trace, context: WorkerContext, beat: Beat) -> list[Row]:
    started = time.monotonic()
    plan, splits, bn = context.plan, context.plan.spec.basin.splits, context.soup_statistics
    hub_id, member = cell.member_ids[0], plan.members[trace.member_id]
    steps = plan.trace_steps(member)
    hub = weights_of(context.folder, sha256_of(context.folder, hub_id))
    net = network(hub, context)
    # The checkpoint has no head for the task. With the hub's it is the same network but for the body.
    pretrained = weights_of(context.folder, sha256_of_parent(plan.members[hub_id], context.folder))
    checkpoint = {**hub, **models.without_head(pretrained, models.head_names(net, plan.spec.model))}
    is_hub = trace.member_id == hub_id
    exact = None if is_hub else leave_inside(member, steps, context, beat)
    stored = {split: stored_predictions(context).read(split, [hub_id]) for split in splits}
    labels: dict[str, np.ndarray] = {split: found.labels_N for split, found in stored.items()}
    at_hub: dict[str, np.ndarray] = {split: found.log_probs[hub_id, bn] for split, found in stored.items()}
    starts: dict[str, _Located] = {
        basin_exits.CHECKPOINT: (checkpoint, predict_at(net, checkpoint, splits, context, beat))
    }
    if not is_hub:
        starts[basin_exits.HUB] = hub, at_hub
    rows: list[Row] = []
    for step in steps:
        end = hub if is_hub else models.from_bytes(context.folder.get(inside_key(trace.member_id, step)))
        at_end = at_hub if is_hub else predict_at(net, end, splits, context, beat)
        steps_from_hub = 0 if is_hub else trace.steps_before + step
        known = {
            "trace_id": trace.trace_id, "hub_id": hub_id, "member_id": trace.member_id, "step": step, "exact": exact,
            "steps_from_hub": steps_from_hub, "epochs_from_hub": steps_from_hub / plan.steps_per_epoch,
            "bn_images": plan.bn_images if plan.facts.batch_norm else 0,
        }  # fmt: skip
        for origin, start in starts.items():
            points = _straight(net, start, (end, at_end), labels, context, beat)
            rows += [{**known, "origin": origin, **point} for point in points]
    seconds = time.monotonic() - started
    return [{**row, "job_seconds": seconds} for row in rows]


_Located = tuple[models.State, Mapping[str, np.ndarray]]
"""Weights, and the log-probabilities [N, C] that they give on each split."""


def _straight(
    net: nn.Module,
    start: _Located,
    end: _Located,
    labels: Mapping[str, np.ndarray],
    context: WorkerContext,
    beat: Beat,
) -> list[Row]:
    """The rows of one path of a trace on every split."""
    t_P = barriers.path_points(context.plan.spec.basin.trace_points)
    splits = context.plan.spec.basin.splits
    inside = [predict_at(net, interpolation.interpolate(start[0], end[0], t), splits, context, beat) for t in t_P[1:-1]]
    names = [name for name, _ in net.named_parameters()]
    known = {"l2_distance": interpolation.l2_distance(start[0], end[0], names)}
    return [
        {**known, "split": split, "images": len(labels[split]), **point}
        for split in splits
        for point in _points(
            [start[1][split], *(found[split] for found in inside), end[1][split]], labels[split], t_P
        )
    ]  # fmt: skip
