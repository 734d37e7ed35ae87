"""The rooms of the package: who may import whom, Ray in one of them alone, and a page that says so."""

import importlib.util
import re

import places
import pytest

spec = importlib.util.spec_from_file_location("rooms", places.REPOSITORY / "docs" / "rooms.py")
rooms = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rooms)

LIGHT = ("errors", "sweep", "store", "search", "analysis", "serving", "console", "cli")
"""Rooms that start without torch, as a laptop that only reads results does."""

each_file = pytest.mark.parametrize("path", rooms.files(), ids=lambda path: str(path.relative_to(rooms.PACKAGE)))


def test_every_room_has_its_floor():
    assert {rooms.room_of(path) for path in rooms.PACKAGE.rglob("*.py")} - {"__init__", "__main__"} == set(rooms.FLOORS)


@each_file
def test_imports_go_downwards(path):
    own = rooms.FLOORS.index(rooms.room_of(path))
    for name, _ in rooms.imports(path):
        if name.startswith("raybasin."):
            room = name.split(".")[1]
            known = room in rooms.FLOORS and rooms.FLOORS.index(room) <= own
            assert known or room == "__version__", f"{name} lies above {path.relative_to(rooms.PACKAGE)}"


@each_file
def test_ray_is_imported_in_cluster_alone_and_torch_not_where_results_are_read(path):
    at_once = {(name.split(".")[0], now) for name, now in rooms.imports(path)}
    assert rooms.room_of(path) == "cluster" or not at_once & {("ray", True), ("ray", False)}
    assert rooms.room_of(path) not in LIGHT or ("torch", True) not in at_once


def test_every_room_is_in_the_readme():
    named = re.findall(r"^  ([a-z_]+)/ ", (places.REPOSITORY / "README.md").read_text(), flags=re.MULTILINE)
    assert set(named) == {path.name for path in rooms.PACKAGE.iterdir() if (path / "__init__.py").exists()}


def test_the_table_of_rooms_is_that_of_the_code():
    """`make docs` writes it."""
    assert rooms.table() in rooms.PAGE.read_text()
    assert all(len(rooms.said_of(room)) > 20 for room in rooms.FLOORS)
