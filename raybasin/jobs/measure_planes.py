"""Planes through three members of a committed cell: which one is asked for, and measuring it into the table `planes`.

Tensors: N examples, C classes, X and Y of a plane.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from raybasin.errors import UserError
from raybasin.jobs.worker_context import Row, WorkerContext
from raybasin.landscape import planes
from raybasin.landscape.interpolation import weighted_sum
from raybasin.metrics import classification
from raybasin.store import tables
from raybasin.store.folders import Folder
from raybasin.sweep.ids import digest
from raybasin.sweep.plan import Point, shared_columns


@dataclass(frozen=True)
class PlaneAsked:
    """A plane through members `indices` of a cell: `points` x `points` points over the members' bounding box, widened
    on every side by `margin` of its longer side."""

    cell_id: str
    indices: tuple[int, int, int]
    member_ids: tuple[str, str, str]
    sha256s: tuple[str, str, str]
    split: str
    points: int
    margin: float

    @cached_property
    def plane_id(self) -> str:
        """Of other weights, as a repaired member may have, it is another plane."""
        return digest("plane", self.cell_id, self.indices, self.sha256s, self.split, self.points, self.margin)

    @property
    def units(self) -> list[str]:
        """The files of `planes` that hold it: the members, then each row of the grid."""
        return [f"{self.plane_id}-members", *(f"{self.plane_id}-{row:03d}" for row in range(self.points))]

    @property
    def named(self) -> str:
        return ",".join(map(str, self.indices))

    def is_measured(self, folder: Folder) -> bool:
        return all(tables.exists(folder, "planes", unit) for unit in self.units)


def measure_plane(
    asked: PlaneAsked, point: Point, context: WorkerContext, beat: Callable[[int, int], None] = lambda done, units: None
) -> None:
    """NLL and error on a grid in the plane through three members, and at the members themselves, batch norm
    re-estimated at every point. Each row of the grid is committed by itself, so that this can be interrupted.

    `point` is that of the cell; `beat` is told before each point how many of those that were missing are done. Raises
    UserError for members on one line, OSError where weights are gone.
    """
    a, b, c = (context.weights_of(sha256) for sha256 in asked.sha256s)
    try:
        frame = planes.frame(a, b, c, context.parameter_names)
    except ValueError as error:
        raise UserError(f"--members {asked.named}: span no plane ({error}); name others") from error
    x_X, y_Y = planes.grid(frame.members, asked.points, asked.margin)
    index_of, on_grid = dict(zip(frame.members, asked.indices, strict=True)), set(product(x_X, y_Y))
    # A member that is a point of the grid stands among the members, and not in its row as well.
    rows = [[(x, y) for x in x_X if (x, y) not in index_of] for y in y_Y]
    missing = [
        (unit, points)
        for unit, points in zip(asked.units, [list(frame.members), *rows], strict=True)
        if not tables.exists(context.folder, "planes", unit)
    ]
    labels_N = context.images(asked.split)[1].cpu().numpy()
    known = {
        "plane_id": asked.plane_id, "cell_id": asked.cell_id, "member_ids": list(asked.member_ids),
        "split": asked.split, "images": len(labels_N), "bn_images": context.bn_images,
        **shared_columns(context.settings, point),
    }  # fmt: skip

    def measure(x: float, y: float) -> Row:
        state, is_on_grid = weighted_sum((a, b, c), frame.shares(x, y)), (x, y) in on_grid
        log_probs_NC = context.predict_at(state, [asked.split])[asked.split]
        return {
            **known, "x": x, "y": y, "member_index": index_of.get((x, y)),
            "row": y_Y.index(y) if is_on_grid else None, "column": x_X.index(x) if is_on_grid else None,
            "nll": classification.nll(log_probs_NC, labels_N),
            "error": 1 - classification.accuracy(log_probs_NC, labels_N),
        }  # fmt: skip

    done, n_points = 0, sum(len(points) for _, points in missing)
    for unit, points in missing:
        started, measured = time.monotonic(), []
        for x, y in points:
            beat(done, n_points)
            measured.append(measure(x, y))
            done += 1
        seconds = time.monotonic() - started
        tables.write(context.folder, "planes", unit, [{**row, "job_seconds": seconds} for row in measured])
