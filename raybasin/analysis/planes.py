"""Planes through three members of a committed cell: which one is asked for, whether it is measured, measuring it.

What is measured is kept in the table `planes`; the data are needed only for what is not there yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd

from raybasin.analysis.results import Results
from raybasin.errors import UserError
from raybasin.store import inventory, tables

if TYPE_CHECKING:
    from raybasin.jobs.measure_planes import PlaneAsked


def ask(
    results: Results,
    cell: pd.Series[Any],
    members: str = "0,1,2",
    points: int = 21,
    split: str = "val",
    margin: float = 0.2,
) -> PlaneAsked:
    """The plane through three members of `cell`, a row of the cells.

    Args:
        results: what `raybasin.open` gives.
        cell: where the members are from.
        members: their numbers, 0 is the hub.
        points: along each side of the grid, 3 to 501.
        split: `val` or `train`; test is for reporting only.
        margin: how far the grid reaches beyond the members, as a share of their bounding box, 0 to 10.

    Raises:
        UserError: for members that are not three of the cell or are lost, or what is not as above.
    """
    from raybasin.jobs.measure_planes import PlaneAsked

    member_ids = list(cell["member_ids"])
    if len(member_ids) < 3:
        raise UserError(f"cell {cell['cell_id']}: has {len(member_ids)} members, and a plane needs three; name another")
    known = {str(index): index for index in range(len(member_ids))}
    indices = [known.get(part.strip(), -1) for part in members.split(",")]
    if len(indices) != 3 or len(set(indices)) != 3 or -1 in indices:
        raise UserError(
            f"--members {members}: must be three different members of 0 (the hub) to {len(member_ids) - 1}, "
            "for instance 0,1,2"
        )
    if split not in ("val", "train"):
        raise UserError(f"--split {split}: must be val or train")
    if not 3 <= points <= 501:
        raise UserError(f"--points {points}: must be from 3 to 501, the points along each side")
    if not 0 <= margin <= 10:
        raise UserError(f"--margin {margin:g}: must be from 0 to 10, a share of the members' box")
    sha256_of = dict(zip(results.members["member_id"], results.members["weights_sha256"], strict=True))
    chosen = [member_ids[index] for index in indices]
    lost = next((member_id for member_id in chosen if member_id not in sha256_of), None)
    if lost:
        raise UserError(f"{results.folder.root}: member {lost} is missing; `raybasin check` says what else")
    (i, j, k), (a, b, c) = indices, chosen
    hashes = sha256_of[a], sha256_of[b], sha256_of[c]
    return PlaneAsked(str(cell["cell_id"]), (i, j, k), (a, b, c), hashes, split, points, float(margin))


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
    spec = made.spec.data if data_dir is None else made.spec.data.model_copy(update={"dir": data_dir})
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
