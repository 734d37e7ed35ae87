"""What a notebook shows of results: a few lines of HTML. Names out of a folder are escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from raybasin.analysis import results as reading
from raybasin.analysis.quantities import counted
from raybasin.analysis.results import Results
from raybasin.errors import UserError, one_line


def summary(results: Results) -> str:
    """The sweep, its settings, how many cells are done, and the best point on validation. It never raises UserError: of
    a folder that is damaged it says so."""
    rows = [("results", str(results.folder.root)), ("settings", results.settings_id)]
    try:
        rows += _rows(results)
    except UserError as error:
        rows.append(("damaged", str(error)))
    left = 'style="text-align: left"'
    cells = ((escape(name), escape(one_line(text))) for name, text in rows)
    return f"<table>{''.join(f'<tr><th {left}>{name}</th><td {left}>{text}</td></tr>' for name, text in cells)}</table>"


def _rows(results: Results) -> Iterable[tuple[str, str]]:
    done, missing = len(results.cells), reading.missing_cells(results)
    yield "sweep", results.stored.spec.name
    yield "cells", f"{counted(done, 'cell')} done" + (f", {missing} of the sweep not finished" if missing else "")
    try:
        best = reading.best_cell(results)
    except UserError:  # no cell is finished, or no soup was made
        return
    at = f"{best['method']} lr_ratio={best['lr_ratio']:g} cycle_ratio={best['cycle_ratio']:g}"
    yield (
        "best soup on validation",
        (
            f"{at}, checkpoint {best['checkpoint']}: on test soup {best['soup_accuracy']:.1%}, ensemble "
            f"{best['ensemble_accuracy']:.1%}, hub {best['hub_accuracy']:.1%} {reading.metric_name(results)}"
        ),
    )
