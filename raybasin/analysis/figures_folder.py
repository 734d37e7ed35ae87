"""`raybasin figures`: every figure of a results folder as PDF, PNG and the table behind it, at the size of a page."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from raybasin.analysis import drawing, figures, frames, maps, plane_drawing
from raybasin.analysis import results as reading
from raybasin.analysis.results import Results
from raybasin.errors import NotMeasured, UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTHING_OF_TODAY = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}
"""Equal results make equal files."""


@dataclass(frozen=True)
class Wanted:
    """A figure: what draws it, the table behind it, how many columns of a page it takes, and whether its title stays:
    where it names the cell that is shown."""

    name: str
    draw: Callable[[], Figure]
    frame: Callable[[], pd.DataFrame]
    columns: int = 2
    titled: bool = False


@dataclass(frozen=True)
class Written:
    """The names of the files in `folder`, and by the name of a figure why there is none of it: nothing of it was
    measured (`absent`), or it could not be made (`failed`)."""

    folder: Path
    files: list[str]
    absent: dict[str, str]
    failed: dict[str, str]


def write(results: Results, directory: str | Path) -> Written:
    """Writes each figure that these results have as `<name>.pdf`, `.png` (300 dpi) and `.csv` into a new or empty
    folder.

    Raises:
        UserError: if no cell is finished, or the folder is taken or cannot be written.
    """
    reading.committed(results)
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = next(folder.iterdir(), None)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written ({error.strerror or error}); name another folder") from error
    if taken:
        raise UserError(f"{directory}: is not empty (it has {taken.name}); name a new folder, or an empty one")
    done = Written(folder, [], {}, {})
    for wanted in _wanted(results):
        try:
            content = _content(wanted)
        except NotMeasured as error:
            done.absent[wanted.name] = str(error)
        except UserError as error:  # a table that is damaged, a figure that cannot be drawn: the others can be
            done.failed[wanted.name] = str(error)
        else:
            for ending, written in content.items():
                drawing.write_whole(folder / f"{wanted.name}.{ending}", written, "figure")
                done.files.append(f"{wanted.name}.{ending}")
    return done


def _content(wanted: Wanted) -> dict[str, bytes]:
    """Of each file that a figure becomes, by its ending."""
    figure, frame = wanted.draw(), wanted.frame()
    drawing.on_paper(figure, wanted.columns, wanted.titled)
    content = {
        kind: drawing.encoded(figure, kind, drawing.PAPER_DPI, metadata=metadata)
        for kind, metadata in NOTHING_OF_TODAY.items()
    }
    return {**content, "csv": frame.to_csv(index=False, lineterminator="\n").encode()}


def _wanted(results: Results) -> Iterator[Wanted]:
    """All figures there may be. A table that is not there is found out when the figure is drawn."""
    for value in ("ensemble_gain", "soup_gain", results.criterion.barrier):
        panels = _panels(results, value)
        yield Wanted(f"map_{value}", _map(results, value), panels, columns=2)
    best = functools.cache(lambda: reading.example_cell(results))
    several = len(reading.checkpoints_of(results)) > 1
    yield Wanted("trade_off", lambda: figures.trade_off_figure(results), lambda: frames.trade_off(results))
    yield Wanted("diversity", lambda: figures.diversity_figure(results), lambda: frames.diversity(results))
    yield Wanted("sizes", lambda: figures.sizes_figure(results), lambda: frames.sizes(results))
    yield Wanted("reliability", lambda: figures.reliability_figure(results), lambda: frames.reliability(results),
                 1 + several)  # fmt: skip
    yield Wanted("shifts", lambda: figures.robustness_figure(results), lambda: frames.shifts(results), 2)
    yield Wanted("traces", lambda: figures.trace_figure(results), lambda: frames.traces(results))
    yield Wanted("paths", lambda: figures.paths_figure(results, best()), lambda: frames.paths(results, [best()]),
                 titled=True)  # fmt: skip
    yield Wanted("learning", lambda: figures.learning_figure(results, best()),
                 lambda: frames.learning(results, results.cells[results.cells["cell_id"] == best()]),
                 titled=True)  # fmt: skip
    yield from _planes(results)


def _map(results: Results, value: str) -> Callable[[], Figure]:
    return lambda: maps.map_figure(results, value, method=None)


def _panels(results: Results, value: str) -> Callable[[], pd.DataFrame]:
    return lambda: maps.frame(maps.panels_of(results, value))


def _planes(results: Results) -> Iterator[Wanted]:
    """Each plane that `raybasin plane` has measured to its end."""
    try:
        planes = results.planes
        if planes.empty:
            raise NotMeasured(f"no plane was measured; `raybasin plane {results.folder.root}` does")
    except UserError as error:
        reason = error

        def none() -> Figure:
            raise reason

        yield Wanted("plane", none, lambda: results.planes)
        return
    for plane_id, rows in planes.groupby("plane_id"):
        if rows["member_index"].notna().any() and rows["row"].notna().any():
            points = rows.sort_values(["y", "x"], ignore_index=True)
            yield Wanted(f"plane_{plane_id}", _plane(results, points), _same(points), titled=True)


def _plane(results: Results, points: pd.DataFrame) -> Callable[[], Figure]:
    return lambda: plane_drawing.plane_figure(results, points)


def _same(points: pd.DataFrame) -> Callable[[], pd.DataFrame]:
    return lambda: points.assign(member_ids=points["member_ids"].map(" ".join))
