"""Leaving a basin as an event: at which steps of a cycle to look, and what the paths measured there say.

A trace is a set of straight paths to the weights that a run had after some of its steps: from the hub, and from the
checkpoint's body with the hub's head. A path has an error barrier as any other; a run has left where it stays above the
threshold to its end. No torch: a laptop can compute it again from the table `traces`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raybasin.landscape import barriers

HUB, CHECKPOINT = "hub", "checkpoint"
ORIGINS = (HUB, CHECKPOINT)

COLUMNS = (
    "exit_step", "exit_epochs", "checkpoint_exit_step", "checkpoint_exit_epochs", "checkpoint_barrier_error",
)  # fmt: skip
"""Of `cells`, all null where nothing was traced."""


@dataclass(frozen=True)
class Moment:
    """One path of a trace: to the weights of run `member_id` after `step` of its steps, which are `steps_from_hub`
    after the hub. Barriers are on validation."""

    cell_id: str
    member_id: str
    origin: str
    step: int
    steps_from_hub: int
    epochs_from_hub: float
    barrier_error: float
    barrier_nll: float


def moments(points: Iterable[Mapping[str, Any]]) -> list[Moment]:
    """The paths in these rows of `traces`, by cell, run, origin and step."""
    paths: dict[tuple[str, str, str, int], list[Mapping[str, Any]]] = {}
    for point in points:
        if point["split"] == "val":
            paths.setdefault((point["cell_id"], point["member_id"], point["origin"], point["step"]), []).append(point)
    return [_moment(sorted(paths[key], key=lambda point: point["t"])) for key in sorted(paths)]


def _moment(path: Sequence[Mapping[str, Any]]) -> Moment:
    first, t_P = path[0], [point["t"] for point in path]
    return Moment(
        first["cell_id"], first["member_id"], first["origin"], int(first["step"]), int(first["steps_from_hub"]),
        float(first["epochs_from_hub"]), barriers.barrier(t_P, [point["error"] for point in path]),
        barriers.barrier(t_P, [point["nll"] for point in path]),
    )  # fmt: skip


def exit_of(run: Sequence[Moment], threshold: float) -> Moment | None:
    """The moment at which a run left: the first of the stretch, up to its end, in which every barrier is above the
    threshold. None where it ends in the basin, even if it was outside in between."""
    left = None
    for moment in sorted(run, key=lambda moment: moment.steps_from_hub, reverse=True):
        if barriers.is_in_basin(moment.barrier_error, moment.barrier_nll, threshold):
            break
        left = moment
    return left


def first_exits(found: Sequence[Moment], threshold: float) -> dict[str, Moment | None]:
    """By origin, the earliest exit among the runs of one cell, of which these are the moments."""
    hub = hub_of(found)
    by_run: dict[tuple[str, str], list[Moment]] = {}
    for moment in found:
        if moment is not hub:
            by_run.setdefault((moment.origin, moment.member_id), []).append(moment)
    first: dict[str, Moment | None] = {}
    for origin in ORIGINS:
        exits = [exit_of(_from_start(run, hub), threshold) for (whence, _), run in by_run.items() if whence == origin]
        left = [moment for moment in exits if moment is not None]
        first[origin] = min(left, key=lambda moment: moment.steps_from_hub, default=None)
    return first


def hub_of(found: Sequence[Moment]) -> Moment:
    """The path from the checkpoint to the hub itself."""
    return next(moment for moment in found if moment.steps_from_hub == 0)


def summary(points: Iterable[Mapping[str, Any]], threshold: float) -> dict[str, Any]:
    """The columns that `cells` has from the rows of `traces` of one cell: the earliest exit of its runs, and whether
    the hub is in the checkpoint's basin. All None where nothing was traced."""
    found = moments(points)
    if not found:
        return dict.fromkeys(COLUMNS)
    first = first_exits(found, threshold)
    return {
        "exit_step": _get(first[HUB], "steps_from_hub"),
        "exit_epochs": _get(first[HUB], "epochs_from_hub"),
        "checkpoint_exit_step": _get(first[CHECKPOINT], "steps_from_hub"),
        "checkpoint_exit_epochs": _get(first[CHECKPOINT], "epochs_from_hub"),
        "checkpoint_barrier_error": hub_of(found).barrier_error,
    }


def _from_start(run: list[Moment], hub: Moment) -> list[Moment]:
    """A run from the hub is, seen from the checkpoint, at first where the hub is."""
    starts_at_hub = run[0].steps_from_hub == run[0].step
    return [hub, *run] if run[0].origin == CHECKPOINT and starts_at_hub else run


def _get(moment: Moment | None, name: str) -> Any:
    return None if moment is None else getattr(moment, name)
