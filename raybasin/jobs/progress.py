"""How far a run is, as a line; in a notebook that line is shown while it runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator

from raybasin.errors import duration, some
from raybasin.sweep.plan import HUB, Plan

MOST_RUNNING = 3
"""So many points that are worked at are named."""


def line(
    plan: Plan, cells: tuple[int, int], networks: tuple[int, int], running: Iterable[str], seconds_left: float | None
) -> str:
    """`cells 1/4, networks 3/8 of this run, now star_sse lr_ratio=4 cycle_ratio=1, about 20 s left`.

    Args:
        plan: that of the run.
        cells: how many are done, and how many there are; `networks` likewise.
        running: the ids of the jobs that are being done.
        seconds_left: None where that is not known.
    """
    counts = [f"{what} {done}/{total}" for what, (done, total) in (("cells", cells), ("networks", networks)) if total]
    points = list(dict.fromkeys(_point(plan, job_id) for job_id in running))
    now = [f"now {some(points, MOST_RUNNING)}"] if points else []
    left = [] if seconds_left is None else [f"about {duration(seconds_left)} left"]
    return ", ".join([*([f"{', '.join(counts)} of this run"] if counts else []), *now, *left]) or "nothing to do"


def _point(plan: Plan, job_id: str) -> str:
    """Where on the map the work of a job lies; what kind it is where it lies nowhere, or was chosen since."""
    kind, unit = job_id.split("-")[:2]
    found = plan.members.get(unit) or plan.cell.get(unit)
    if found is None:
        return kind
    point = found.point
    at = "" if point.method == HUB else f" lr_ratio={point.lr_ratio:g} cycle_ratio={point.cycle_ratio:g}"
    return f"{point.method}{at}"


def seconds_left(cost_done: float, cost_left: float, seconds: float) -> float | None:
    """How long what is left takes at the pace of what was done in so many seconds; None before anything was."""
    return cost_left / cost_done * seconds if cost_done and seconds else None


@contextlib.contextmanager
def in_notebook(wanted: bool = True) -> Iterator[Callable[[str], None]]:
    """Gives what shows a line in the place of the last one, where this runs in a notebook and it is `wanted`; elsewhere
    what it gives does nothing."""
    if not (wanted and _is_notebook()):
        yield lambda text: None
        return
    longest = 0

    def show(text: str) -> None:
        nonlocal longest
        longest = max(longest, len(text))
        print(f"\r{text:<{longest}}", end="", flush=True)  # a shorter line leaves nothing of the one before it

    try:
        yield show
    finally:
        if longest:
            print(flush=True)


def _is_notebook() -> bool:
    """IPython is not imported for that: where it is not there already, this is no notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
