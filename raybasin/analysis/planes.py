"""Planes through three members of a committed cell: which one is asked for, whether it is measured, measuring it.

What is measured is kept in the table `planes`; torch and the data are needed only for what is not there yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from raybasin.analysis import results as reading
from raybasin.analysis.results import Results
from raybasin.errors import UserError
from raybasin.jobs.measure_planes import PlaneAsked
from raybasin.store import tables

SPLITS = ("val", "train")
"""Of a plane. Nothing is decided by it, and test is for reporting only."""

MEMBERS = (0, 1, 2)
POINTS, MARGIN = 21, 0.2
MOST_POINTS, MOST_MARGIN = 501, 10.0


def ask(
    results: Results,
    cell: pd.Series[Any],
    indices: Sequence[int] = MEMBERS,
    points: int = POINTS,
    split: str = "val",
    margin: float = MARGIN,
) -> PlaneAsked:
    """The plane through three members of `cell`, a row of the cells. Raises UserError for what cannot be."""
    member_ids = list(cell["member_ids"])
    named = ",".join(map(str, indices))
    if len(member_ids) < 3:
        raise UserError(f"cell {cell['cell_id']}: has {len(member_ids)} members, and a plane needs three; name another")
    if len(set(indices)) != 3 or len(indices) != 3 or not all(0 <= index < len(member_ids) for index in indices):
        raise UserError(
            f"--members {named}: must be three different members of 0 (the hub) to {len(member_ids) - 1}, "
            "for instance 0,1,2"
        )
    if split not in SPLITS:
        raise UserError(f"--split {split}: must be {' or '.join(SPLITS)}")
    if not 3 <= points <= MOST_POINTS:
        raise UserError(f"--points {points}: must be from 3 to {MOST_POINTS}, the points along each side")
    if not 0 <= margin <= MOST_MARGIN:
        raise UserError(f"--margin {margin:g}: must be from 0 to {MOST_MARGIN:g}, a share of the members' box")
    sha256_of = dict(zip(results.members["member_id"], results.members["weights_sha256"], strict=True))
    chosen = [member_ids[index] for index in indices]
    lost = next((member_id for member_id in chosen if member_id not in sha256_of), None)
    if lost:
        raise UserError(f"{results.folder.root}: member {lost} is missing; `raybasin check` says what else")
    a, b, c = ((index, member_ids[index], sha256_of[member_ids[index]]) for index in indices)
    (i, j, k), ids, hashes = zip(a, b, c, strict=True)
    return PlaneAsked(str(cell["cell_id"]), (i, j, k), ids, hashes, split, points, float(margin))


def measure(
    asked: PlaneAsked,
    results: Results,
    data_dir: str | None = None,
    device: str = "cpu",
    beat: Callable[[int, int], None] = lambda done, units: None,
) -> None:
    """Measures what of a plane is not there yet. Raises UserError where weights or data are missing or are others."""
    import torch

    from raybasin.data import dataset
    from raybasin.jobs import measure_planes, retention
    from raybasin.jobs.worker_context import WorkerContext
    from raybasin.store import inventory

    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        there = "cpu or cuda" if torch.cuda.is_available() else "cpu: PyTorch sees no GPU here"
        raise UserError(f"--device {device}: must be {there}")
    made = inventory.stored_plan(results.folder, results.settings_id)
    if asked.cell_id not in made.cell:
        raise UserError(
            f"cell {asked.cell_id}: is not in the last sweep file of settings {results.settings_id}; run a sweep file "
            "that has it, or name another cell"
        )
    for member_id in asked.member_ids:
        if retention.is_pruned(member_id, results.folder):
            raise UserError(
                f"member {member_id}: its weights were not to be kept (keep.weights: {made.spec.keep.weights}); run "
                "the sweep again with --set keep.weights=all --retrain"
            )
    spec = made.spec.data
    if data_dir is not None:
        spec = spec.model_copy(update={"dir": data_dir})
    try:
        loaded = dataset.load(spec)
    except UserError as error:
        raise UserError(f"{error}\nThe plane needs the sweep's data; name their folder with --data DIR") from error
    if (loaded.train_fingerprint, len(loaded.train), len(loaded.val)) != (
        made.facts.data.train_fingerprint, made.facts.data.n_train, made.facts.data.n_val,
    ):  # fmt: skip
        raise UserError(f"data {spec.name}: are not the data of this sweep; name their folder with --data DIR")
    try:
        context = WorkerContext(results.folder, made.settings, loaded, {}, torch.device(device))
        measure_planes.measure_plane(asked, made.cell[asked.cell_id].point, context, beat)
    except OSError as error:
        raise UserError(
            f"{results.folder.root}: the weights of members {asked.named} cannot be read ({error.strerror or error}); "
            f"`raybasin check {results.folder.root}` says what is missing"
        ) from error


def points_of(results: Results, asked: PlaneAsked) -> pd.DataFrame:
    """The rows of a measured plane."""
    rows = tables.read(results.folder, "planes", asked.units)
    return rows.to_pandas().sort_values(["y", "x"], ignore_index=True)


def choose(results: Results, cell_id: str | None) -> pd.Series[Any]:
    """The row of a cell, of the best one unless it is named. Raises UserError."""
    return reading.cell_of(results, cell_id) if cell_id else reading.best_cell(results)
