"""What all figures share: matplotlib as it is delivered, the colours, empty figures, legends, and files.

Matplotlib is imported when the first figure is drawn. A user's settings and backend do not matter and are left alone.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from raybasin.analysis.quantities import shortened
from raybasin.analysis.results import Results
from raybasin.analysis.scales import SymmetricLog, tick_labels
from raybasin.errors import FolderLost, UserError, one_line
from raybasin.store import folders

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

INSIDE, OUTSIDE, NEUTRAL, GREY_TEXT = "#0072B2", "#D55E00", "#8A8A8A", "#555555"
"""Blue and vermilion of the palette of Okabe and Ito, which the colour-blind can tell apart. In and out of the basin
are never told apart by colour alone."""

DPI = 160
PAPER_DPI = 300
COLUMN_INCHES = {1: 3.5, 2: 7.0}
"""Width of a figure in one column and in both columns of a page."""
SMALLEST_POINTS, LARGEST_POINTS = 7.0, 9.0
"""Letters of a figure on paper."""

_SETTINGS = threading.RLock()
"""Matplotlib's settings are those of the process: of two threads that set and restore them at once, the second would
restore what the first had set."""


@contextlib.contextmanager
def default_settings() -> Iterator[None]:
    """Matplotlib with its own defaults, for a block or as the decorator of a function. Whatever is raised meanwhile
    becomes a UserError: a figure that cannot be drawn must not take anything else down."""
    try:
        with _SETTINGS:
            # A backend in the environment that this matplotlib does not have is no error, since none is used here: a
            # process that a notebook started inherits the notebook's.
            backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
            try:
                import matplotlib
            finally:
                if backend is not None:
                    os.environ["MPLBACKEND"] = backend
            if backend:
                with contextlib.suppress(ValueError):
                    matplotlib.rcParams["backend"] = backend
            own: dict[Any, Any] = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
            with matplotlib.rc_context(own):
                yield
    except (UserError, FolderLost):
        raise
    except Exception as error:  # fonts, layouts and renderers fail in their own ways
        reason = one_line(f"{type(error).__name__}: {error}", 300)
        raise UserError(f"the figure cannot be drawn ({reason})") from error


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


def sweep_name(results: Results) -> str:
    return plain(results.sweep["name"])


def plain(text: str, width: int = 48) -> str:
    """Text of a table as matplotlib may show it: shortened, and never read as a formula."""
    return shortened(text, width).replace("$", r"\$")


def described(cell: pd.Series[Any]) -> str:
    """Which cell it is, in a line."""
    side = "in" if cell["in_basin"] else "out of"
    return (
        f"{cell['method']}, lr_ratio {cell['lr_ratio']:g}, cycle_ratio {cell['cycle_ratio']:g}, "
        f"replicate {cell['replicate']}: {side} the basin"
    )


def handle(label: str, colour: str, **style: Any) -> Line2D:
    """An entry of a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, label=label, **{"linestyle": "none", **style})


_HANDLES: WeakKeyDictionary[Figure, list[Artist]] = WeakKeyDictionary()
"""What the legend of a figure names: matplotlib cannot lay a legend out again."""


def legend_below(figure: Figure, handles: Sequence[Artist], columns: float = 6) -> None:
    """A legend under all panels, of so many columns."""
    _HANDLES[figure] = list(handles)
    columns = max(1, int(columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def handles_of(axes: Iterable[Axes]) -> list[Artist]:
    """What a legend of these axes is to name, each label once."""
    pairs = (pair for axis in axes for pair in zip(*axis.get_legend_handles_labels(), strict=True))
    return list({label: artist for artist, label in pairs}.values())


def light_grid(axis: Axes) -> None:
    axis.grid(color="#E5E5E5", linewidth=0.6)


def whole_numbers(axis: Axes) -> None:
    """Ticks of the x axis at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def symmetric_log(axis: Axes, which: str, linear_up_to: float = 1.0) -> None:
    """Makes an axis (`x` or `y`), on which everything has been drawn, linear up to a value and logarithmic beyond."""
    scale = SymmetricLog(linear_up_to)
    (axis.set_xscale if which == "x" else axis.set_yscale)("symlog", **scale.for_matplotlib)
    of_axis = axis.xaxis if which == "x" else axis.yaxis
    axis.autoscale_view()  # its margins are shares of the axis as it is now
    ticks = scale.ticks(*sorted(map(float, of_axis.get_view_interval())))
    of_axis.set_ticks(ticks, tick_labels(ticks))
    of_axis.set_ticks([], minor=True)


@default_settings()
def on_paper(figure: Figure, columns: int, titled: bool = False) -> None:
    """Brings a figure to the width of one or two columns of a page: without a title, which a caption is for, unless it
    is `titled`, and with letters of 7 to 9 points. What has no room left in a tile of a map is left out: its table has
    it."""
    from matplotlib.text import Text

    width, height = figure.get_size_inches()
    if not titled:
        figure.suptitle("")
    figure.set_size_inches(COLUMN_INCHES[columns], height * max(COLUMN_INCHES[columns] / width, 0.62))
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_fontsize(min(max(text.get_fontsize(), SMALLEST_POINTS), LARGEST_POINTS))
    _narrow_legend(figure)
    figure.draw_without_rendering()
    for axis in figure.axes:
        for label in (axis.xaxis.label, axis.yaxis.label):
            _break(label, axis)
    figure.draw_without_rendering()
    for axis in figure.axes:
        for text in axis.texts:
            _fit(text)


def _narrow_legend(figure: Figure) -> None:
    """Lays the legend out in as many columns as the figure has room for."""
    for columns in range(6, 0, -1):
        for legend in [*figure.legends]:
            legend.remove()
        if figure in _HANDLES:
            legend_below(figure, _HANDLES[figure], columns)
        figure.draw_without_rendering()
        if all(legend.get_window_extent().width <= figure.bbox.width for legend in figure.legends):
            return


def _break(label: Text, axis: Axes) -> None:
    """Breaks the label of an axis that is longer than the axis."""
    own, whole = label.get_window_extent(), axis.get_window_extent()
    if own.width > whole.width and own.height < whole.height:
        label.set_text(label.get_text().replace(" (", "\n("))


def _fit(text: Text) -> None:
    """Lines of a tile's text, beginning with the last but the value, are left out until the rest is within the tile;
    the place of the tile is what `maps` has noted as the text's `gid`."""
    ends = [float(end) for end in (text.get_gid() or "").removeprefix(TILE).split()]
    if len(ends) != 4 or text.axes is None:
        return
    (left, bottom), (right, top) = text.axes.transData.transform([ends[:2], ends[2:]])
    while text.get_text():
        box = text.get_window_extent()
        if box.width <= right - left and box.height <= top - bottom:
            return
        text.set_text("\n".join(text.get_text().split("\n")[:-1]))


TILE = "tile "


def save(figure: Figure, path: str | Path) -> None:
    """Writes a figure, whole or not at all; the ending of `path` says how (png, svg, pdf). Raises UserError."""
    ending = Path(path).suffix.removeprefix(".").lower()
    if ending not in figure.canvas.get_supported_filetypes():
        raise UserError(f"{path}: cannot tell the kind of picture from the name; end it in .png, .svg or .pdf")
    write_whole(path, encoded(figure, ending), "figure")


def write_whole(path: str | Path, content: bytes, what: str) -> None:
    """Writes a file, whole or not at all. Raises UserError, which says what it was."""
    try:
        folders.write_file(Path(path), content)
    except OSError as error:
        raise UserError(f"{path}: cannot write the {what}: {error.strerror or error}") from error


@default_settings()
def encoded(figure: Figure, kind: str, dpi: int = DPI, **options: Any) -> bytes:
    """A figure as the content of a file of this kind (png, svg, pdf), fonts embedded. Raises UserError."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(
        {"pdf.fonttype": 42}
    ):  # as TrueType: publishers refuse the outlines that are the default
        figure.savefig(buffer, format=kind, dpi=dpi, **options)
    return buffer.getvalue()
