"""What `status` and `plan` say, as plain values for programs: `--json`. Keys stay as they are; new ones may come."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pandas as pd

from raybasin.analysis import results as reading
from raybasin.analysis.results import Results
from raybasin.jobs.local import Situation
from raybasin.store import heartbeat, tables
from raybasin.sweep import methods
from raybasin.sweep.job_list import Retraining, Training, state_of
from raybasin.sweep.plan import Cell

if TYPE_CHECKING:
    from raybasin.jobs.timing import Timed

FAILURE = ("unit_id", "method", "checkpoint", "lr_ratio", "cycle_ratio", "replicate", "reason", "tries")


def status(results: Results) -> dict[str, Any]:
    """What is done, running and failed."""
    folder, failures = results.folder, reading.open_failures(results)
    made = results.stored.plan(results.stored.chosen(folder))
    cells, networks = (tables.ids(folder, table) for table in ("cells", "members"))
    return {
        "results": str(results.folder.root),
        "sweep": made.spec.name,
        "settings": results.settings_id,
        "cells": {"planned": len(made.cells), "done": sum(cell.cell_id in cells for cell in made.cells)},
        "networks": {"planned": len(made.members), "done": sum(member in networks for member in made.members)},
        "search": reading.searched(results) or None,
        "running": heartbeat.running(folder, results.settings_id),
        "failures": [
            {name: None if pd.isna(row[name]) else row[name] for name in FAILURE} | {"at": row["at"].isoformat()}
            for row in failures.astype(object).to_dict("records")
        ],
    }


def plan(situation: Situation, every_cell: bool = False, timed: Timed | None = None) -> dict[str, Any]:
    """What a sweep would do, and, where it is asked for, each cell; with what was `timed`, how long it will take."""
    made, done, need = situation.plan, situation.done, situation.need
    states = Counter(state_of(cell, done) for cell in made.cells)
    kinds = Counter(job.kind for job in situation.jobs)
    trained = [job.task.member for job in situation.jobs if isinstance(job.task, Training)]
    again = [job.task.member for job in situation.jobs if isinstance(job.task, Retraining)]
    hours = _hours(situation, timed) if timed else None
    cells = {"cell_list": [_cell(cell, situation) for cell in made.cells]} if every_cell else {}
    return {
        "results": str(situation.folder.root),
        "sweep": made.spec.name,
        "settings": made.settings_id,
        "cells": {"planned": len(made.cells), **{name: states[name] for name in ("done", "begun", "new")}},
        "networks": {"planned": len(made.members), "done": sum(member in done.members for member in made.members)},
        "to_do": {
            "networks": len(trained),
            "epochs": sum(member.cycle_epochs for member in trained),
            "networks_again": len(again),
            "epochs_again": sum(member.cycle_epochs for member in again),
            "checkpoints": kinds["checkpoint"],
            "paths": kinds["path"],
            "traces": kinds["trace"],
        },
        "disk_bytes": {"staying": round(need.staying), "passing": round(need.passing)},
        **({"measured": asdict(timed), "estimated_hours": hours} if timed else {}),
        **cells,
    }


def _hours(situation: Situation, timed: Timed) -> dict[str, float]:
    from raybasin.jobs import timing  # torch, which only a plan waits for

    return asdict(timing.estimate(situation.plan, situation.jobs, timed))


def _cell(cell: Cell, situation: Situation) -> dict[str, Any]:
    point = cell.point
    return {
        "cell_id": cell.cell_id,
        "method": methods.label(point.method, cell.variant),
        "checkpoint": point.checkpoint.name,
        "lr_ratio": point.lr_ratio,
        "cycle_ratio": point.cycle_ratio,
        "replicate": point.replicate,
        "n_members": len(cell.member_ids),
        "epochs": situation.plan.train_epochs(cell),
        "state": state_of(cell, situation.done),
    }
