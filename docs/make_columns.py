"""Writes the tables of columns in docs/tables.md anew, from raybasin/store/schemas.py: `make docs`."""

import re
from collections.abc import Mapping
from pathlib import Path

from raybasin.store.schemas import COLUMNS, COMMON, Column

PAGE = Path(__file__).parent / "tables.md"
TYPES = {
    "string": "text", "int64": "integer", "double": "real", "bool": "boolean", "timestamp[us, tz=UTC]": "time",
    "list<item: string>": "list of text", "list<item: float>": "list of real32",
}  # fmt: skip


def table_of(columns: Mapping[str, Column]) -> str:
    rows = [
        f"| `{name}` | {TYPES[str(column.type)]} | {column.unit} | {column.meaning} |"
        for name, column in columns.items()
    ]
    return "\n".join(["| column | type | unit | meaning |", "| --- | --- | --- | --- |", *rows, ""])


def with_columns(page: str) -> str:
    """The page, with the table of each section that has a table of columns made anew."""
    shared = {name: COLUMNS["cells"][name] for name in COMMON}
    sections = {"Columns of every table": shared}
    for table, columns in COLUMNS.items():
        sections[table] = {name: column for name, column in columns.items() if name not in COMMON}
    for title, columns in sections.items():
        head, heading, rest = page.partition(f"\n## {title}\n")
        made = table_of(columns).replace("\\", r"\\")
        page = head + heading + re.sub(r"^\| column \|.*\n(\|.*\n)*", made, rest, count=1, flags=re.MULTILINE)
    return page


if __name__ == "__main__":
    PAGE.write_text(with_columns(PAGE.read_text()))
