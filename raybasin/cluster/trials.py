"""The trials of Ray Tune: one for each point of the map, with all of its replicates.

A trial holds no worker and no GPU: workers take jobs from the queue, and the trial tells Ray Tune what they come to. It
is a class, not a function, since Ray Tune then uses its process again for the next point, which costs a hundredth of
another process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import ray
from ray import tune

from raybasin.jobs import line_search, local
from raybasin.jobs.scheduler import Outcome
from raybasin.store import folders, tables
from raybasin.store.schemas import METRICS
from raybasin.sweep import plan
from raybasin.sweep.job_list import Done, Job, Training, jobs_left
from raybasin.sweep.plan import Cell, Plan
from raybasin.sweep.points import Chosen, MapPoint
from raybasin.sweep.settings import Settings

REPLICATES, REPLICATES_LEFT, NETWORKS, TRAINING_EPOCHS = "replicates", "replicates_left", "networks", "training_epochs"
"""What a trial reports beside the metrics of `schemas.METRICS`."""


@dataclass(frozen=True)
class Shared:
    """What all trials of a run are given."""

    queue: Any
    settings: Settings
    root: str
    done: Done
    """What was in the folder when the run began."""
    chosen: Chosen
    at: datetime
    """When the run began."""
    submits: bool
    """Whether trials put their own jobs on the queue; else all were put there at the start."""
    stepwise: bool
    """Whether a trial begins a replicate once the one before it has ended, so that a scheduler can end it there."""


class PointTrial(tune.Trainable):
    """Each step waits for something to end, and returns what the point has come to so far: means over its replicates
    that have ended, NaN before the first has."""

    def setup(self, config: dict[str, Any], shared: Shared) -> None:  # type: ignore[override]
        self.shared = shared
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.progress = Progress(self.shared, point_of(new_config), new_config.get("replicate"))
        return True

    def step(self) -> dict[str, Any]:
        return self.progress.step()

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}  # what a point has come to is in the tables: a trial that goes on looks there

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        pass


@dataclass
class Progress:
    """What has come of a point so far."""

    shared: Shared
    point: MapPoint
    replicate: int | None = None
    """The only one that it is about; None: all of them."""
    begun: int = 0
    """How many of its cells have been begun."""
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    """Those of `cells` that have ended well."""
    failures: list[str] = field(default_factory=list)
    networks: set[str] = field(default_factory=set)
    """The ids of those that are there."""
    waiting: set[str] = field(default_factory=set)
    """The jobs that have been begun and have not ended: of those that train networks, and that end cells."""

    @cached_property
    def plan(self) -> Plan:
        if self.replicate is None:
            return plan.of_points(self.shared.settings, [self.point], self.shared.chosen)
        made, cell = line_search.cell_of(self.shared.settings, self.point, self.replicate)
        return replace(made, cells=(cell,))

    @property
    def left(self) -> int:
        """How many cells have not ended."""
        return len(self.plan.cells) - len(self.rows) - len(self.failures)

    def step(self) -> dict[str, Any]:
        """Waits until something more has ended. Raises RuntimeError in the end where a cell has failed."""
        before = self.left
        if not self.waiting:
            upto = self.begun + 1 if self.shared.stepwise else len(self.plan.cells)
            for cell in self.plan.cells[self.begun : upto]:
                self._begin(cell)
            self.begun = upto
        while self.waiting and self.left == before:
            for job_id, outcome in ray.get(self.shared.queue.news.remote(sorted(self.waiting))).items():
                self.waiting.discard(job_id)
                self._ended(job_id, outcome)
            if self.rows or not self.shared.stepwise:  # before the first replicate a scheduler has nothing to go by
                break
        if not self.left and self.failures:
            raise RuntimeError("; ".join(dict.fromkeys(self.failures)))
        return {
            **means(self.rows), REPLICATES: len(self.rows), REPLICATES_LEFT: self.left, NETWORKS: len(self.networks),
            TRAINING_EPOCHS: sum(self.plan.members[member_id].cycle_epochs for member_id in self.networks),
            "done": not self.left,
        }  # fmt: skip

    def _begin(self, cell: Cell) -> None:
        shared = self.shared
        self.networks |= set(cell.trained_ids) & set(shared.done.members)
        if cell.cell_id in shared.done.cells:
            self.networks |= set(cell.trained_ids)
            self.rows.append(tables.row(folders.folder(shared.root), "cells", cell.cell_id))
            return
        if shared.submits:
            ray.get(shared.queue.submit.remote(jobs_of(cell, self.plan, shared.done)))
        to_train = {f"{Training.kind}-{member_id}" for member_id in {*cell.trained_ids} - self.networks}
        self.waiting |= {*to_train, local.cell_job(cell.cell_id)}

    def _ended(self, job_id: str, outcome: Outcome) -> None:
        kind, _, unit = job_id.partition("-")
        if kind == Training.kind:
            self.networks |= {unit} if outcome.ok else set()
        elif outcome.ok:
            self.rows.append(outcome.value)
        else:
            self.failures.append(local.why(outcome))
            folder = folders.folder(self.shared.root)
            for failure in local.failures_of([self.plan.cell[unit]], {job_id: outcome}):  # none if it was withdrawn
                own = [name for name in tables.units(folder, "failures") if name.startswith(f"{unit}-")]
                known = [row["reason"] for row in tables.rows(folder, "failures", own) if row["at"] >= self.shared.at]
                if failure.reason not in known:  # by this trial, before it was killed
                    local.record_failure(folder, self.shared.settings, failure)


def point_of(config: Mapping[str, Any]) -> MapPoint:
    """The point that a trial's configuration names."""
    return MapPoint(**{name: value for name, value in config.items() if name != "replicate"})


def jobs_of(cell: Cell, of: Plan, done: Done) -> list[Job]:
    """What is left to do for one cell of a plan."""
    return jobs_left(replace(of, cells=(cell,)), done)


def means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Each metric's mean over replicates; NaN where one has none (it diverged, or the sweep makes no soup)."""

    def number(value: Any) -> float:
        return math.nan if value is None else float(value)

    return {name: float(np.mean([number(row.get(name)) for row in rows])) if rows else math.nan for name in METRICS}
