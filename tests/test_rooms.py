"""The rooms of the package: who may import whom, and Ray in one of them alone."""

import ast
import re

import places
import pytest

PACKAGE = places.REPOSITORY / "raybasin"

FLOORS = ["errors", "sweep", "landscape", "metrics", "store", "data", "training", "jobs", "analysis", "cluster",
          "console", "cli"]  # fmt: skip
"""From the ground up. A room imports from rooms before it only, so there is no circle."""

LIGHT = ("errors", "sweep", "store", "analysis", "console", "cli")
"""Rooms that start without torch, as a laptop that only reads results does."""


def imports(path):
    """(module, whether at its top) for each import in a file."""
    tree = ast.parse(path.read_text())
    deferred = {id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef)
                for node in ast.walk(function)}  # fmt: skip
    typing_only = {id(node) for branch in ast.walk(tree)
                   if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
                   for node in ast.walk(branch)}  # fmt: skip
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from ((name, id(node) not in deferred | typing_only) for name in names)


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if room_of(path) not in ("__init__", "__main__")]


def test_every_room_has_its_floor():
    assert {room_of(path) for path in FILES} == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    own = FLOORS.index(room_of(path))
    for name, _ in imports(path):
        if name.startswith("raybasin."):
            room = name.split(".")[1]
            known = room in FLOORS and (FLOORS.index(room) <= own)
            assert known or room == "__version__", f"{path.relative_to(PACKAGE)} imports {name}, which lies above it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_ray_is_imported_in_cluster_alone_and_torch_not_where_results_are_read(path):
    outside = {(name.split(".")[0], at_top) for name, at_top in imports(path)}
    assert room_of(path) == "cluster" or not {name for name, _ in outside} & {"ray"}
    assert room_of(path) not in LIGHT or ("torch", True) not in outside


def test_every_room_is_in_the_readme_and_says_what_it_holds():
    readme = (places.REPOSITORY / "README.md").read_text()
    named = set(re.findall(r"^  ([a-z_]+)(?:/|\.py) ", readme, flags=re.MULTILINE))
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert named >= rooms
    assert all(len((PACKAGE / room / "__init__.py").read_text()) > 30 for room in rooms)
