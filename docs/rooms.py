"""Draws the rooms of the package and writes down who imports whom: `make docs`.

Everything is read from the import statements of the code. The picture goes to docs/images/rooms.svg, the table between
the markers of docs/architecture.md.
"""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "raybasin"
PAGE, PICTURE = REPOSITORY / "docs" / "architecture.md", REPOSITORY / "docs" / "images" / "rooms.svg"

FLOORS = (
    "errors", "sweep", "landscape", "metrics", "search", "store", "data", "training", "jobs", "analysis",
    "serving", "cluster", "console", "cli",
)  # fmt: skip
"""From the ground up. A room imports from rooms before it only, so there is no circle."""

PLACES = {
    "cli": (0.5, 10), "console": (0.14, 9), "cluster": (0.88, 8), "serving": (0.42, 8), "analysis": (0.2, 7),
    "search": (0.52, 2.7),
    "jobs": (0.78, 6), "training": (0.88, 4.6), "data": (0.88, 3.2), "store": (0.32, 3.8), "metrics": (0.1, 2.2),
    "landscape": (0.66, 1.3), "sweep": (0.4, 0), "errors": (0.76, 0),
}  # fmt: skip
"""Where the boxes stand: x from 0 to 1, y in floors."""


def files() -> list[Path]:
    """The modules of all rooms."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if room_of(path) in FLOORS]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, bool]]:
    """(name, whether it is imported when the module is) for each import in a file."""
    tree = ast.parse(path.read_text())
    later = {id(node) for block in ast.walk(tree) if _is_deferred(block) for node in ast.walk(block)}
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found += [(name, id(node) not in later) for name in names]
    return found


def _is_deferred(block: ast.AST) -> bool:
    """Whether what a block imports is imported when a function is called, or by a type checker only."""
    for_types = isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
    return for_types or isinstance(block, ast.FunctionDef)


def arrows() -> dict[str, list[str]]:
    """Which rooms each room imports from, both in the order of the floors."""
    found: dict[str, set[str]] = {room: set() for room in FLOORS}
    for path in files():
        named = (name.split(".")[1] for name, _ in imports(path) if name.startswith("raybasin."))
        found[room_of(path)] |= {room for room in named if room in FLOORS and room != room_of(path)}
    return {room: [below for below in FLOORS if below in found[room]] for room in FLOORS}


def said_of(room: str) -> str:
    """The first sentence of a room's own docstring, which is its line in the table."""
    path = PACKAGE / room / "__init__.py" if (PACKAGE / room).is_dir() else PACKAGE / f"{room}.py"
    return re.split(r"(?<=\.)\s", (ast.get_docstring(ast.parse(path.read_text())) or "").replace("\n", " "))[0]


def table() -> str:
    lines = ["| room | holds | imports from |", "| --- | --- | --- |"]
    for room, below in reversed(arrows().items()):
        lines.append(f"| `{room}` | {said_of(room)} | {', '.join(below) or '-'} |")
    return "\n".join(lines)


def write_table() -> None:
    page = PAGE.read_text()
    PAGE.write_text(re.sub(r"(<!-- rooms -->\n).*?(\n<!-- end -->)", lambda m: m[1] + table() + m[2], page, flags=re.S))


def draw() -> None:
    """Boxes and arrows. Every room may raise `errors` and speak of `sweep`: those arrows are left out."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "rooms"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8.5))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 1), ylim=(-0.9, 10.6))
    axes.axis("off")
    boxes = {}
    for room, (x, y) in PLACES.items():
        clause = said_of(room).partition(":")[0].rstrip(".")
        boxes[room] = axes.text(
            x, y, f"{room}\n{textwrap.fill(clause, 26)}", ha="center", va="center", fontsize=9, zorder=3,
            bbox={"boxstyle": "round,pad=0.5", "facecolor": "#eef3f8", "edgecolor": "#33506b"},
        )  # fmt: skip
    figure.draw_without_rendering()  # so that the boxes have their extents, at which arrows begin and end
    for room, below in arrows().items():
        for other in below:
            if other not in ("sweep", "errors"):
                props = {"arrowstyle": "-|>", "color": "#7f94a8", "linewidth": 1.1, "shrinkA": 0, "shrinkB": 2,
                         "patchA": boxes[room].get_bbox_patch(), "patchB": boxes[other].get_bbox_patch()}  # fmt: skip
                axes.annotate("", xy=PLACES[other], xytext=PLACES[room], zorder=1, arrowprops=props)
    axes.text(0.5, -0.8, "every room may import sweep and errors: those arrows are left out", ha="center", fontsize=9)
    figure.savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    draw()
    write_table()
    print(f"{sum(map(len, arrows().values()))} arrows between {len(FLOORS)} rooms: {PICTURE.relative_to(REPOSITORY)}")
