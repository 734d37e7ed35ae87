"""A search by cell in a results folder, for the boundary or the best point: what it is told, and what it has measured
next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from raybasin.jobs.scheduler import Outcome
from raybasin.search import lines
from raybasin.search.lines import Lines, Wanted
from raybasin.store import inventory, tables
from raybasin.store.folders import Folder
from raybasin.sweep import plan, points
from raybasin.sweep.job_list import Closing, Done, Job, jobs_left
from raybasin.sweep.plan import Cell, Plan
from raybasin.sweep.points import Chosen, MapPoint
from raybasin.sweep.settings import Settings


def cell_of(settings: Settings, point: MapPoint, replicate: int) -> tuple[Plan, Cell]:
    """One replicate of a point, and the plan that it stands in."""
    made = plan.of_points(settings, [point], Chosen((point,), ((point, (replicate,)),)))
    [cell] = made.cells
    return made, cell


@dataclass
class LineSearch:
    """Chooses cells, writes down what it has chosen, and is told what they have come to."""

    folder: Folder
    settings: Settings
    done: Done
    """What was in the folder when the run began."""
    lines: Lines
    out: dict[str, tuple[MapPoint, int]] = field(default_factory=dict)
    """What has been asked for, and not been told, by cell_id."""

    def choose(self) -> tuple[Cell, Wanted] | None:
        """The cell to measure next, which by then is in the table `points`; None when there is none, or none before
        what is out is told. Raises FolderLost."""
        wanted = self.lines.next()
        if wanted is None:
            return None
        inventory.write_cell(self.folder, self.settings, wanted.point, wanted.replicate, wanted.why)
        _, cell = cell_of(self.settings, wanted.point, wanted.replicate)
        self.out[cell.cell_id] = wanted.point, wanted.replicate
        return cell, wanted

    def ended(self, cell_id: str, ok: bool) -> None:
        """A cell that was asked for is in the folder, or has failed."""
        point, _ = self.out.pop(cell_id)
        if ok:
            self.lines.tell(tables.row(self.folder, "cells", cell_id))
        else:
            self.lines.give_up(point)

    def jobs(self, outcomes: Mapping[str, Outcome]) -> list[Job]:
        """The jobs of the next cell, once those before have ended; none when the search is over."""
        for cell_id in list(self.out):
            if outcome := outcomes.get(f"{Closing.kind}-{cell_id}"):
                self.ended(cell_id, outcome.ok)
        if (chosen := self.choose()) is None:
            return []
        made, cell = cell_of(self.settings, chosen[1].point, chosen[1].replicate)
        return jobs_left(replace(made, cells=(cell,)), self.done)


def begin(folder: Folder, settings: Settings, done: Done) -> LineSearch:
    """The search of a sweep, as far as it is: told of every cell that lies where it chooses from, be
    it of a grid, and of what was asked for and is not there yet."""
    found = LineSearch(folder, settings, done, lines.of(settings))
    for row in tables.sound(folder, "cells").to_pylist():
        is_own = row["settings_id"] == settings.settings_id and row["cell_id"] in done.cells
        if is_own and points.is_among(settings, row):
            found.lines.tell(row)
    for point, replicates in inventory.chosen(folder, settings).fewer:
        for replicate in replicates:
            cell = cell_of(settings, point, replicate)[1]
            if cell.cell_id not in done.cells:
                found.lines.expect(point, replicate)
                found.out[cell.cell_id] = point, replicate
    return found
