"""Jobs that measure the loss between networks: along paths, and along the traces of runs.

Tensors: N examples, C classes, P path points.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from raybasin.jobs.train_members import (
    inside_key,
    provide_weights_inside,
    sha256_of_checkpoint,
)
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
from raybasin.sweep.job_list import PathMeasurement, TraceMeasurement
from raybasin.sweep.plan import shared_columns
from raybasin.training import models


@dataclass(frozen=True)
class _Located:
    """A point of weight space: weights, and the log-probabilities [N, C] that they give on each split."""

    state: models.State
    log_probs: Mapping[str, np.ndarray]


def measure_path(task: PathMeasurement, context: WorkerContext, beat: Beat) -> None:
    """NLL and error along the straight line between two members, batch norm re-estimated at every point.

    The ends are not run again: they are the members' stored predictions with re-estimated statistics.
    """
    if tables.exists(context.folder, "paths", task.unit):
        return
    if task.copy_of:
        _copy("paths", task, context)
        return
    started = time.monotonic()
    path, basin = task.path, context.settings.spec.basin
    start, end = (_stored(member_id, context) for member_id in (path.start_id, path.end_id))
    points = _line(network(start.state, context), start, end, basin.points, context, beat)
    known = {
        "cell_id": task.cell_id, "path_id": path.path_id, "kind": path.kind, "start_id": path.start_id,
        "end_id": path.end_id, "bn_images": context.bn_images, "job_seconds": time.monotonic() - started,
        **shared_columns(context.settings, task.point),
    }  # fmt: skip
    tables.write(context.folder, "paths", task.unit, [{**known, **point} for point in points])


def measure_trace(task: TraceMeasurement, context: WorkerContext, beat: Beat) -> None:
    """NLL and error along the straight lines from the hub, and from the checkpoint with the hub's head, to the weights
    that a run had after some of its steps, batch norm re-estimated at every point.

    The weights inside the cycle, which the run has left behind, are removed when the rows are there. A run that has
    left none is trained again.
    """
    folder, trace = context.folder, task.trace
    if task.copy_of:
        _copy("traces", task, context)
    elif not tables.exists(folder, "traces", task.unit):
        own = {"cell_id": task.cell_id, **shared_columns(context.settings, task.point)}
        rows = _trace_rows(task, context, beat)
        tables.write(folder, "traces", task.unit, [{**row, **own} for row in rows])
    for step in trace.steps:
        folder.delete(inside_key(trace.member_id, step))


def _copy(table: str, task: PathMeasurement | TraceMeasurement, context: WorkerContext) -> None:
    """The rows of the same path or trace in another cell, as rows of this one."""
    own = {"cell_id": task.cell_id, **shared_columns(context.settings, task.point)}
    rows = tables.rows(context.folder, table, [task.copy_of])
    if not rows:
        raise OSError(f"{table}/{task.copy_of} holds no rows; `raybasin check {context.folder.root} --repair` moves it")
    tables.write(context.folder, table, task.unit, [{**row, **own} for row in rows])


def _trace_rows(task: TraceMeasurement, context: WorkerContext, beat: Beat) -> list[Row]:
    started = time.monotonic()
    trace, basin = task.trace, context.settings.spec.basin
    is_hub = trace.member_id == task.hub_id
    hub = _stored(task.hub_id, context)
    net = network(hub.state, context)
    starts = {basin_exits.CHECKPOINT: _checkpoint_with_head_of(hub, net, task, context, beat)}
    if not is_hub:
        starts[basin_exits.HUB] = hub
    exact = None if is_hub else provide_weights_inside(task.member, trace, context, beat)
    rows: list[Row] = []
    for step in trace.steps:
        end = hub if is_hub else _left_inside(task, step, net, context, beat)
        steps_from_hub = 0 if is_hub else trace.steps_before + step
        known = {
            "trace_id": trace.trace_id, "hub_id": task.hub_id, "member_id": trace.member_id, "step": step,
            "exact": exact, "steps_from_hub": steps_from_hub, "bn_images": context.bn_images,
            "epochs_from_hub": steps_from_hub / context.settings.steps_per_epoch,
        }  # fmt: skip
        for origin, start in starts.items():
            points = _line(net, start, end, basin.trace_points, context, beat)
            rows += [{**known, "origin": origin, **point} for point in points]
    seconds = time.monotonic() - started
    return [{**row, "job_seconds": seconds} for row in rows]


def _stored(member_id: str, context: WorkerContext) -> _Located:
    """A committed member; batch norm re-estimated, as the predictions that are stored of it say."""
    stored, bn = stored_predictions(context), context.soup_statistics
    log_probs: dict[str, np.ndarray] = {
        split: stored.read(split, [member_id]).log_probs[member_id, bn] for split in context.settings.spec.basin.splits
    }
    return _Located(weights_of(context.folder, sha256_of(context.folder, member_id)), log_probs)


def _checkpoint_with_head_of(
    hub: _Located, net: nn.Module, task: TraceMeasurement, context: WorkerContext, beat: Beat
) -> _Located:
    """The checkpoint has no head for the task. With the hub's it is the same network but for the body."""
    settings = context.settings
    pretrained = weights_of(context.folder, sha256_of_checkpoint(task.point.checkpoint, context.folder))
    body = models.without_head(pretrained, models.head_names(net, settings.spec.model))
    state = {**hub.state, **body}
    return _Located(state, predict_at(net, state, settings.spec.basin.splits, context, beat))


def _left_inside(task: TraceMeasurement, step: int, net: nn.Module, context: WorkerContext, beat: Beat) -> _Located:
    """What a run has left after `step` of its steps."""
    state = models.from_bytes(context.folder.get(inside_key(task.trace.member_id, step)))
    return _Located(state, predict_at(net, state, context.settings.spec.basin.splits, context, beat))


def _line(
    net: nn.Module, start: _Located, end: _Located, n_points: int, context: WorkerContext, beat: Beat
) -> list[Row]:
    """The rows of the straight line between two points of weight space, ends included, on every split."""
    splits = context.settings.spec.basin.splits
    t_P = barriers.path_points(n_points)
    inside = [
        predict_at(net, interpolation.interpolate(start.state, end.state, t), splits, context, beat) for t in t_P[1:-1]
    ]
    on_path = [start.log_probs, *inside, end.log_probs]
    distance = interpolation.l2_distance(start.state, end.state, [name for name, _ in net.named_parameters()])
    rows: list[Row] = []
    for split in splits:
        labels_N = context.splits[split][1].cpu().numpy()
        points = _points([point[split] for point in on_path], labels_N, t_P)
        rows += [{"l2_distance": distance, "split": split, "images": len(labels_N), **point} for point in points]
    return rows


def _points(log_probs_PNC: Sequence[np.ndarray], labels_N: np.ndarray, t_P: Sequence[float]) -> list[Row]:
    nll_P = [classification.nll(log_probs_NC, labels_N) for log_probs_NC in log_probs_PNC]
    wrong_PN = np.stack([classification.classes_of(log_probs_NC) != labels_N for log_probs_NC in log_probs_PNC])
    return scoring.path_rows(nll_P, wrong_PN, t_P)
