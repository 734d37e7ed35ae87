"""Jobs that measure the loss between networks: along paths, and along the traces of runs.

Tensors: N examples, C classes, P path points.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from raybasin.jobs.train_members import inside_key, provide_weights_inside, sha256_of_checkpoint
from raybasin.jobs.worker_context import Row, WorkerContext
from raybasin.landscape import barriers, basin_exits, interpolation
from raybasin.metrics import classification
from raybasin.store import tables
from raybasin.sweep.job_list import PathMeasurement, TraceMeasurement
from raybasin.sweep.plan import shared_columns
from raybasin.training import models


@dataclass(frozen=True)
class _Located:
    """A point of weight space: weights, and the log-probabilities [N, C] that they give on each split."""

    state: models.State
    log_probs: Mapping[str, np.ndarray]


def measure_path(task: PathMeasurement, context: WorkerContext) -> None:
    """NLL and error along the straight line between two members, batch norm re-estimated at every point.

    The ends are not run again where their predictions with re-estimated statistics are stored: on training images, on
    which they are not, they are.
    """
    path = task.path

    def measure() -> list[Row]:
        basin = context.settings.spec.basin
        start, end = (_stored(member_id, context) for member_id in (path.start_id, path.end_id))
        if basin.split == "train":
            start, end = (replace(at, log_probs={**at.log_probs, **context.predict_at(at.state, ("train",))})
                          for at in (start, end))  # fmt: skip
        known = {"path_id": path.path_id, "kind": path.kind, "start_id": path.start_id, "end_id": path.end_id}
        return [{**known, **point} for point in _line(start, end, basin.points, context, by_image=True)]

    _commit("paths", task, context, measure)


def measure_trace(task: TraceMeasurement, context: WorkerContext) -> None:
    """NLL and error along the straight lines from the hub, and from the checkpoint with the hub's head, to the weights
    that a run had after some of its steps, batch norm re-estimated at every point.

    The weights inside the cycle, which the run has left behind, are removed when the rows are there. A run that has
    left none is trained again.
    """
    _commit("traces", task, context, lambda: _trace_rows(task, context))
    for step in task.trace.steps:
        context.folder.delete(inside_key(task.trace.member_id, step))


def _commit(
    table: str, task: PathMeasurement | TraceMeasurement, context: WorkerContext, measure: Callable[[], list[Row]]
) -> None:
    """Writes the rows of a path or trace unless they are there: copies of what another cell has, or measured ones."""
    folder, started = context.folder, time.monotonic()
    if tables.exists(folder, table, task.unit):
        return
    own = {"cell_id": task.cell_id, **shared_columns(context.settings, task.point)}
    if task.copy_of:
        rows = tables.rows(folder, table, [task.copy_of])
        if not rows:
            raise OSError(f"{table}/{task.copy_of} holds no rows; `raybasin check {folder.root} --repair` moves it")
    else:
        rows = measure()
        own["job_seconds"] = time.monotonic() - started
    tables.write(folder, table, task.unit, [{**row, **own} for row in rows])


def _trace_rows(task: TraceMeasurement, context: WorkerContext) -> list[Row]:
    trace, folder, spec = task.trace, context.folder, context.settings.spec
    hub = _stored(task.hub_id, context)

    def located(state: models.State) -> _Located:
        return _Located(state, context.predict_at(state, spec.basin.splits))

    # The checkpoint has no head for the task. With the hub's it is the same network but for the body.
    pretrained = context.weights_of(sha256_of_checkpoint(task.point.checkpoint, folder))
    body = models.without_head(pretrained, models.head_names(context.evaluated(hub.state), spec.model))
    starts, exact = {basin_exits.CHECKPOINT: located({**hub.state, **body})}, None
    is_hub = trace.member_id == task.hub_id
    if not is_hub:
        starts[basin_exits.HUB] = hub
        exact = provide_weights_inside(task.member, trace, context)
    rows: list[Row] = []
    for step in trace.steps:
        end = hub if is_hub else located(models.from_bytes(folder.get(inside_key(trace.member_id, step))))
        steps_from_hub = 0 if is_hub else trace.steps_before + step
        known = {
            "trace_id": trace.trace_id, "hub_id": task.hub_id, "member_id": trace.member_id, "step": step,
            "exact": exact, "steps_from_hub": steps_from_hub,
            "epochs_from_hub": steps_from_hub / context.settings.steps_per_epoch,
        }  # fmt: skip
        for origin, start in starts.items():
            points = _line(start, end, spec.basin.trace_points, context)
            rows += [{**known, "origin": origin, **point} for point in points]
    return rows


def _stored(member_id: str, context: WorkerContext) -> _Located:
    """A committed member; batch norm re-estimated, as the predictions that are stored of it say."""
    stored, bn = context.stored_predictions(), context.soup_statistics
    log_probs: dict[str, np.ndarray] = {
        split: stored.read(split, [member_id]).log_probs[member_id, bn] for split in context.settings.spec.basin.splits
    }
    return _Located(context.weights_of(context.sha256_of(member_id)), log_probs)


def _line(start: _Located, end: _Located, n_points: int, context: WorkerContext, by_image: bool = False) -> list[Row]:
    """The rows of the straight line between two points of weight space, ends included, on every split."""
    splits, t_P = tuple(start.log_probs), barriers.path_points(n_points)
    inside = [context.predict_at(interpolation.interpolate(start.state, end.state, t), splits) for t in t_P[1:-1]]
    on_path = [start.log_probs, *inside, end.log_probs]
    distance = interpolation.l2_distance(start.state, end.state, context.parameter_names)
    rows: list[Row] = []
    for split in splits:
        labels_N = context.images(split)[1].cpu().numpy()
        checked = [classification.checked_examples(point[split], labels_N) for point in on_path]
        nll_PN = np.stack([classification.nll_of_images(*of_point) for of_point in checked])
        wrong_PN = np.stack([classification.classes_of(point[split]) != labels_N for point in on_path])
        known = {"l2_distance": distance, "split": split, "images": len(labels_N), "bn_images": context.bn_images}
        rows += [{**known, **point} for point in barriers.path_rows(nll_PN, wrong_PN, t_P, by_image)]
    return rows
