"""The trials: one of Ray Tune's for each cell, which asks the queue for what its cell needs.

A trial holds no worker and no GPU. All jobs are queued at the start, so that no worker waits for a trial; a trial joins
the job that ends its cell by its id, which comes from the sweep file and not from Tune. That job commits the cell, so a
trial that dies or comes late delays nothing; the trial records a failure and tells Ray Tune what came out.
"""

from __future__ import annotations

import logging
from typing import Any

import ray
from ray import tune

from raybasin.cluster import connect
from raybasin.jobs import local
from raybasin.store import folders
from raybasin.store.folders import Folder
from raybasin.sweep.plan import Cell
from raybasin.sweep.settings import Settings

TRIALS_AT_ONCE = 4


def run_trials(cells: list[Cell], settings: Settings, folder: Folder, queue: Any, storage: str, name: str) -> None:
    """One trial for each of `cells`, in the order in which they can be expected to be ready."""
    if not cells:  # only weights are restored
        return
    columns = "method", "replicate", "lr_ratio", "cycle_ratio"
    shown = [
        {"cell_id": cell.cell_id, "checkpoint": cell.point.checkpoint.name,
         **{key: getattr(cell.point, key) for key in columns}}
        for cell in sorted(cells, key=lambda cell: -cell.cycle_epochs)
    ]  # fmt: skip
    # It shows a traceback for each trial that fails; the reasons are shown in the end, one line each.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    known = {cell.cell_id: cell for cell in cells}
    trainable = tune.with_parameters(trial, queue=queue, cells=known, settings=settings, root=str(folder.root))
    here = next(node for node in connect.alive_nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())
    of_node = next(name for name in here["Resources"] if name.startswith("node:") and "__" not in name)
    tune.Tuner(
        tune.with_resources(trainable, {of_node: 0.001}),  # on this machine, and no CPU of it: those are for workers
        param_space={"cell": tune.grid_search(shown)},
        tune_config=tune.TuneConfig(max_concurrent_trials=TRIALS_AT_ONCE, reuse_actors=True),
        run_config=tune.RunConfig(name=name, storage_path=storage, verbose=0),
    ).fit()


def trial(config: dict[str, Any], queue: Any, cells: dict[str, Cell], settings: Settings, root: str) -> dict[str, Any]:
    """Waits until its cell is committed; what it returns is what Ray Tune shows of it.

    Raises RuntimeError where a job failed that the cell needs, after the failure is recorded.
    """
    cell = cells[config["cell"]["cell_id"]]
    job_id = local.cell_job(cell.cell_id)
    [outcome] = ray.get(queue.outcomes.remote([job_id]))
    if not outcome.ok:
        for failure in local.failures_of([cell], {job_id: outcome}):  # none if the whole sweep has ended
            local.record_failure(folders.folder(root), settings, failure)
        raise RuntimeError(local.why(outcome))
    return {key: value for key, value in outcome.value.items() if isinstance(value, int | float)}
