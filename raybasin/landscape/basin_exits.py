"""Basin exits: after how many steps of training a run has left the basin it started in.

A run is traced by straight paths to the weights that it had after some of its steps. They start at the hub, and at the
pre-trained checkpoint with the hub's head. Each has barriers as any other path (see `barriers`); a run has left the
basin at the first step from which on, up to its end, every barrier that decides lies above the threshold. There is no
torch here, so that all of it can be computed again from the table `traces`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from raybasin.landscape import barriers

if TYPE_CHECKING:
    from raybasin.sweep.criterion import Criterion

HUB, CHECKPOINT = "hub", "checkpoint"
ORIGINS = (HUB, CHECKPOINT)
"""Where the paths of a trace start: the values of its column `origin`."""

COLUMNS = (
    "exit_step", "exit_epochs", "checkpoint_exit_step", "checkpoint_exit_epochs", "checkpoint_barrier_nll",
    "checkpoint_barrier_error",
)  # fmt: skip
"""Of `cells`, all null where nothing was traced."""


@dataclass(frozen=True)
class TracedStep:
    """The barriers on the path from `origin` to the weights of run `member_id` after `step` of its own steps.

    `steps_from_hub` counts them from the hub, which a run late in a chain starts far from; it is 0 for the hub itself.
    Barriers are on the validation images: `barrier_error` is an error rate, `barrier_nll` in nats.
    """

    member_id: str
    origin: str
    step: int
    steps_from_hub: int
    epochs_from_hub: float
    barrier_error: float
    barrier_nll: float


def traced_steps(points: Iterable[Mapping[str, Any]]) -> list[TracedStep]:
    """The paths whose points are these rows of the table `traces`, all of one cell; by run, origin and step."""
    paths: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for point in points:
        if point["split"] == "val":
            paths.setdefault((point["member_id"], point["origin"], point["step"]), []).append(point)
    found = []
    for (member_id, origin, step), path in sorted(paths.items()):
        path.sort(key=lambda point: point["t"])
        t_P, first = [point["t"] for point in path], path[0]
        error, nll = (barriers.barrier(t_P, [point[value] for point in path]) for value in ("error", "nll"))
        from_hub = int(first["steps_from_hub"]), float(first["epochs_from_hub"])
        found.append(TracedStep(member_id, origin, int(step), *from_hub, barrier_error=error, barrier_nll=nll))
    return found


def exit_of(run: Sequence[TracedStep], criterion: Criterion) -> TracedStep | None:
    """Where a run left the basin: the first step from which on, up to its end, every barrier is above the threshold.

    None where it ends in the basin, even if it was outside in between.
    """
    left = None
    for traced in sorted(run, key=attrgetter("steps_from_hub"), reverse=True):
        if criterion.holds(traced.barrier_error, traced.barrier_nll):
            break
        left = traced
    return left


def first_exits(cell: Sequence[TracedStep], criterion: Criterion) -> dict[str, TracedStep | None]:
    """By origin, the earliest exit among the runs of one cell, of which these are all paths."""
    hub = hub_of(cell)
    runs: dict[tuple[str, str], list[TracedStep]] = {}
    for traced in cell:
        if traced is not hub:
            runs.setdefault((traced.origin, traced.member_id), []).append(traced)
    exits: dict[str, list[TracedStep]] = {origin: [] for origin in ORIGINS}
    for (origin, _), run in runs.items():
        # Seen from the checkpoint, a run that starts at the hub is at first where the hub is.
        starts_at_hub = origin == CHECKPOINT and run[0].steps_from_hub == run[0].step
        if left := exit_of([hub, *run] if starts_at_hub else run, criterion):
            exits[origin].append(left)
    return {origin: min(left, key=attrgetter("steps_from_hub"), default=None) for origin, left in exits.items()}


def hub_of(cell: Sequence[TracedStep]) -> TracedStep:
    """The path from the checkpoint to the hub itself."""
    return next(traced for traced in cell if traced.steps_from_hub == 0)


def summary(points: Iterable[Mapping[str, Any]], criterion: Criterion) -> dict[str, Any]:
    """What `COLUMNS` of `cells` say of one cell: the earliest exit of its runs, and whether the hub is in the
    checkpoint's basin. All None where nothing was traced.

    Args:
        points: the cell's rows of `traces`, in any order.
        criterion: by what a step is in the basin.
    """
    cell = traced_steps(points)
    if not cell:
        return dict.fromkeys(COLUMNS)
    first = first_exits(cell, criterion)
    return {
        "exit_step": getattr(first[HUB], "steps_from_hub", None),
        "exit_epochs": getattr(first[HUB], "epochs_from_hub", None),
        "checkpoint_exit_step": getattr(first[CHECKPOINT], "steps_from_hub", None),
        "checkpoint_exit_epochs": getattr(first[CHECKPOINT], "epochs_from_hub", None),
        "checkpoint_barrier_nll": hub_of(cell).barrier_nll,
        "checkpoint_barrier_error": hub_of(cell).barrier_error,
    }
