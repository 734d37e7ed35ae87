"""Hostile inputs, made from good ones: sweep files, and results folders with damaged, forged and odd files.

Every input follows from the draws that hypothesis makes, so it is the same for the same seed.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import places
import pyarrow as pa
import pyarrow.parquet as pq
import tiny
import yaml
from hypothesis import strategies as st

from raybasin import cli
from raybasin.errors import UserError
from raybasin.store.schemas import SCHEMAS
from raybasin.sweep import plan, specs
from raybasin.sweep.facts import CheckpointFacts, Facts

REPOSITORY = places.REPOSITORY
CPU_SECONDS, WALL_SECONDS = 60, 600
"""For one input: of computing, and of waiting. They end what hangs, and are far above what an input takes."""


class Hung(BaseException):
    """An input was not done with in time. No `except Exception` on the way catches it."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    def ring(number: int, frame: Any) -> None:
        raise Hung(f"not done within {CPU_SECONDS} s of computing or {WALL_SECONDS} s of waiting")

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, CPU_SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, WALL_SECONDS)}
    before = {number: signal.signal(number, ring) for number in timers}
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


# Values

NUMBERS = [0, 1, -1, 2, 3, 4, 5, 1000, 10**6, 10**9, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**40, 0.0, -0.0, 0.5,
           1e-300, 1e300, 5e-324, float("nan"), float("inf"), float("-inf")]  # fmt: skip
TEXTS = ["", " ", ".", "..", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "\0", "\n", "\x1b[31m", "-", "--repair",
         "part-0", "null", "é", "\u202e", "\ud7ff", "{}", "{0}", "%s", "$x$", "$\\frac$", "*", "<script>", "x" * 300,
         "0" * 16, "a" * 64, "uniform", "val", "test", "own", "cifar10", "digits", "star_sse", "swag", "tree",
         "global_de", "resnet50", "no_such_thing"]  # fmt: skip
SCALARS = [None, True, False, *NUMBERS, *TEXTS]
MARKS = [b"*a", b"&a ", b"!!python/object/apply:os.system [x]", b"!!python/name:os.system", b"<<: ", b"? ", b"{", b"}",
         b"[", b"]", b": ", b"- ", b"\t", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"---\n", b"|", b">", b"%", b"@", b"'",
         b'"', b"\n", b"#", b"!!binary ", b"!!set ", b"!!timestamp ", b"2001-01-01", b"0x", b"1_0", b"12:30:45",
         b"1e9999", b"9" * 5000, b"[" * 500, b"{a: " * 200]  # fmt: skip


def scalars() -> st.SearchStrategy[Any]:
    return st.one_of(st.sampled_from(SCALARS), st.integers(), st.floats(), st.text(max_size=8))


def values() -> st.SearchStrategy[Any]:
    containers = st.one_of(
        st.lists(scalars(), max_size=4), st.dictionaries(st.sampled_from(TEXTS), scalars(), max_size=3)
    )
    return st.one_of(scalars(), scalars(), containers, st.lists(containers, max_size=2))


def near(value: Any) -> st.SearchStrategy[Any]:
    """Values that may well be right in the place of `value`."""
    if isinstance(value, bool) or value is None:
        return st.sampled_from([True, False, None])
    if isinstance(value, int | float):
        return st.one_of(st.integers(0, 12), st.floats(0, 2), st.sampled_from([value * 2, value / 2, value + 1]))
    if isinstance(value, list):
        return st.permutations(value).map(lambda items: items[: max(1, len(items) - 1)]) if value else st.just([1, 2])
    return st.just(value)


# Trees, as YAML and JSON hold them


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or position) of a tree, in order."""
    found: list[tuple[Any, Any]] = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in items:
        found.append((tree, key))
        found += places(child)
    return found


def mutate_tree(draw: Any, tree: Any) -> Any:
    """The tree with one thing in it replaced, removed, renamed, added, or put into a list."""
    known = places(tree)
    if not known:
        return draw(values())
    container, key = draw(st.sampled_from(known))
    kinds = ["set", "set", "near", "near", "near", "near", "remove", "rename", "add", "list", "move"]
    match draw(st.sampled_from(kinds)):
        case "set":
            container[key] = draw(values())
        case "near":
            container[key] = draw(near(container[key]))
        case "remove":
            del container[key]
        case "rename" if isinstance(container, dict):
            container[draw(st.one_of(st.sampled_from([k for c, k in known if isinstance(c, dict)]), scalars()))] = (
                container.pop(key)
            )
        case "add" if isinstance(container, dict):
            container[draw(st.one_of(st.sampled_from([k for c, k in known if isinstance(c, dict)]), scalars()))] = draw(
                values()
            )
        case "list":
            container[key] = [container[key]] * draw(st.integers(0, 3))
        case _:
            other, at = draw(st.sampled_from(known))
            container[key] = copy.deepcopy(other[at])
    return tree


def mutate_bytes(draw: Any, content: bytes, marks: list[bytes] = MARKS) -> bytes:
    at = draw(st.integers(0, len(content)))
    length = draw(st.integers(0, min(64, len(content))))
    match draw(st.sampled_from(["flip", "cut", "remove", "insert", "repeat", "replace", "empty", "mark"])):
        case "flip" if content:
            at = min(at, len(content) - 1)
            return content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
        case "cut":
            return content[:at]
        case "remove":
            return content[:at] + content[at + length :]
        case "insert":
            return content[:at] + draw(st.binary(max_size=16)) + content[at:]
        case "repeat":
            return content[:at] + content[at : at + length] * draw(st.integers(2, 20)) + content[at:]
        case "replace":
            return draw(st.binary(max_size=200))
        case "empty":
            return b""
    return content[:at] + draw(st.sampled_from(marks)) + content[at:]


# Sweep files


@functools.cache
def seeds() -> tuple[Any, ...]:
    """Good sweep files to begin with."""
    whole = (REPOSITORY / "docs" / "sweep-file.md").read_text().split("```yaml\n")[1].split("```")[0]
    files = [path.read_text() for path in sorted((REPOSITORY / "sweeps").glob("**/*.yaml"))]
    return (*(yaml.safe_load(text) for text in (whole, *files)), tiny.tree())


@st.composite
def sweep_files(draw: Any) -> tuple[bytes, list[str]]:
    """The bytes of a sweep file, and `--set` options to go with it."""
    kind = draw(st.sampled_from(["tree", "tree", "tree", "bytes", "bytes", "noise", "set"]))
    tree = copy.deepcopy(draw(st.sampled_from(seeds())))
    options: list[str] = []
    if kind == "tree":
        for _ in range(draw(st.integers(1, 4))):
            tree = mutate_tree(draw, tree)
    try:
        content = yaml.safe_dump(tree, sort_keys=False, allow_unicode=draw(st.booleans())).encode(errors="replace")
    except (yaml.YAMLError, UnicodeError):  # what YAML cannot say
        content = json.dumps(tree, skipkeys=True).encode()
    if kind == "bytes":
        for _ in range(draw(st.integers(1, 3))):
            content = mutate_bytes(draw, content)
    if kind == "noise":
        content = draw(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda t: t.encode())))
    if kind == "set":
        keys = st.one_of(st.sampled_from(["recipe.epochs", "methods.sse", "data", "", ".", "a.b", "basin.points"]),
                         st.text(max_size=12))  # fmt: skip
        options = [draw(keys) + draw(st.sampled_from(["=", "", "=="])) + str(draw(values()))]
    return content, options


def facts_for(spec: specs.SweepSpec) -> Facts:
    """Facts of a made-up data set that go with `spec`: as many checkpoints as it names."""
    made = {i for i, entry in enumerate(spec.model.pretrained) if not isinstance(entry, str)}
    checkpoints = tuple(CheckpointFacts(f"c{i}", f"{i:064x}", i if i in made else None)
                        for i in range(len(spec.model.pretrained)))  # fmt: skip
    facts = tiny.facts(checkpoints=checkpoints, n_train=400, n_val=100)
    return Facts(facts.data, facts.preprocess, checkpoints, {i: facts.data for i in made}, True, 1000)


def read_sweep_file(path: Path, content: bytes, options: list[str]) -> plan.Plan | None:
    """What `plan` does with a sweep file once its data are known; None where the file is refused in a line or two."""
    path.write_bytes(content)
    try:
        spec = specs.load(path, options)
        return plan.make(spec, facts_for(spec))
    except UserError as error:
        assert_said_well(str(error))
        return None


def assert_said_well(message: str) -> None:
    assert message.strip() and len(message.splitlines()) <= 2, message
    assert "Traceback" not in message


# Results folders


def linked(source: Path, target: Path) -> None:
    """A copy that shares files with its original until they are replaced; nothing writes into a file in place."""
    for folder, _, names in os.walk(source):
        here = target / Path(folder).relative_to(source)
        here.mkdir(parents=True, exist_ok=True)
        for name in names:
            os.link(Path(folder) / name, here / name)


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def mutate_folder(draw: Any, root: Path) -> str:
    """One thing in the folder changed; says what."""
    by_place: dict[str, list[Path]] = {}
    for path in files_of(root):
        by_place.setdefault(path.relative_to(root).parts[0], []).append(path)
    if not by_place:
        return "nothing is left"
    place = draw(st.sampled_from([name for name in ("cells", "cells", "members", "paths", "scores", "predictions",
                                                    "epochs", "checkpoints", "failures", "sweeps", "sweeps", "weights",
                                                    "state") if name in by_place] or sorted(by_place)))  # fmt: skip
    path = draw(st.sampled_from(by_place[place]))
    of_tables = [_forged_parquet] * 5 if path.suffix == ".parquet" else []
    of_trees = [_forged_tree] * 4 if path.suffix in (".yaml", ".json") else []
    of_weights = [_forged_header] * 3 if path.suffix == ".safetensors" else []
    change: Callable[[Any, Path], str] = draw(
        st.sampled_from([*of_tables, *of_trees, *of_weights, _bytes, _bytes, _renamed, _odd, _lost])
    )
    return f"{place}: {change(draw, path)}"


def _put(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def _bytes(draw: Any, path: Path) -> str:
    _put(path, mutate_bytes(draw, path.read_bytes(), [b"\0" * 8, b"\xff" * 8, b"PAR1", *MARKS]))
    return "bytes"


def _renamed(draw: Any, path: Path) -> str:
    other = draw(st.one_of(st.sampled_from(sorted(path.parent.iterdir())).map(lambda p: p.name),
                           st.sampled_from([t for t in TEXTS if t not in ("", ".", "..")])))  # fmt: skip
    name = other.replace("/", "_").replace("\0", "_")[:200]
    if draw(st.booleans()) and not name.endswith(path.suffix):
        name += path.suffix
    with contextlib.suppress(OSError):  # a folder of that name
        path.rename(path.parent / name)
    return f"renamed {name!r}"


def _odd(draw: Any, path: Path) -> str:
    """Something in the file's place that is no file."""
    kind = draw(st.sampled_from(["folder", "link out", "link nowhere", "link to itself", "link to folder", "pipe"]))
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        target = {"link out": "/etc/hostname", "link nowhere": "nowhere", "link to itself": path.name,
                  "link to folder": ".."}[kind]  # fmt: skip
        path.symlink_to(target)
    return kind


def _lost(draw: Any, path: Path) -> str:
    if draw(st.booleans()):
        shutil.rmtree(path.parent)
        return "whole folder lost"
    path.unlink()
    return "lost"


def _forged_tree(draw: Any, path: Path) -> str:
    is_json = path.suffix == ".json"
    try:
        tree = json.loads(path.read_bytes()) if is_json else yaml.safe_load(path.read_bytes())
    except (ValueError, yaml.YAMLError):
        return "forged already"
    for _ in range(draw(st.integers(1, 3))):
        tree = mutate_tree(draw, tree)
    with contextlib.suppress(yaml.YAMLError, TypeError, UnicodeError):
        text = json.dumps(tree, skipkeys=True) if is_json else yaml.safe_dump(tree, sort_keys=False)
        _put(path, text.encode(errors="replace"))
    return "forged"


def _forged_header(draw: Any, path: Path) -> str:
    content = path.read_bytes()
    if len(content) < 8:
        return "forged already"
    length = int.from_bytes(content[:8], "little")
    if draw(st.booleans()):
        size = draw(st.sampled_from([0, 1, 7, length - 1, length + 1, len(content), 2**31, 2**40, 2**63, 2**64 - 1]))
        _put(path, size.to_bytes(8, "little") + content[8:])
        return "header of another length"
    try:
        header = json.loads(content[8 : 8 + length])
    except ValueError:
        return "forged already"
    text = json.dumps(mutate_tree(draw, header), skipkeys=True).encode()
    _put(path, len(text).to_bytes(8, "little") + text + content[8 + length :])
    return "header forged"


def _forged_parquet(draw: Any, path: Path) -> str:
    """A readable Parquet file with other columns or values than it should have."""
    try:
        table = pq.read_table(io.BytesIO(path.read_bytes()))
    except (pa.ArrowException, OSError, ValueError):
        return "forged already"
    if not table.column_names:
        return "nothing to forge"
    name = draw(st.sampled_from(table.column_names))
    at = table.column_names.index(name)
    kind = draw(st.sampled_from(["value", "value", "value", "all", "none", "drop", "rename", "type", "twice", "no rows",
                                 "extra", "column twice"]))  # fmt: skip
    column = table[name].to_pylist()
    row = draw(st.integers(0, max(0, len(column) - 1)))
    if kind in ("value", "all") and column:
        value = _forged_value(draw, table.schema.field(name).type)
        column = [value] * len(column) if kind == "all" else [*column[:row], value, *column[row + 1 :]]
        with contextlib.suppress(pa.ArrowException, OverflowError, ValueError, TypeError, UnicodeError):
            table = table.set_column(at, table.schema.field(name), pa.array(column, table.schema.field(name).type))
    elif kind == "none":
        table = table.set_column(at, name, pa.nulls(len(table), table.schema.field(name).type))
    elif kind == "drop":
        table = table.drop_columns([name])
    elif kind == "rename":
        others = [draw(st.sampled_from([*TEXTS, *table.column_names])) if n == name else n for n in table.column_names]
        table = table.rename_columns(others)
    elif kind == "type":
        other = draw(st.sampled_from([pa.string(), pa.int32(), pa.float32(), pa.bool_(), pa.binary(), pa.date32(),
                                      pa.list_(pa.int64()), pa.struct([("a", pa.int64())])]))  # fmt: skip
        table = table.set_column(at, name, pa.nulls(len(table), other))
    elif kind == "twice":
        table = pa.concat_tables([table, table.slice(row, 1)])
    elif kind == "no rows":
        table = table.slice(0, 0)
    elif kind == "extra":
        table = table.append_column(draw(st.sampled_from(TEXTS)), pa.array(["x"] * len(table)))
    elif kind == "column twice":
        table = table.append_column(name, table[name])
    buffer = io.BytesIO()
    try:
        pq.write_table(table, buffer)
    except (pa.ArrowException, UnicodeError):  # what Parquet cannot say
        return "no Parquet"
    _put(path, buffer.getvalue())
    return f"{kind} {name}"


def _forged_value(draw: Any, kind: pa.DataType) -> Any:
    if draw(st.integers(0, 4)) == 0:
        return None
    if pa.types.is_list(kind):
        return draw(st.lists(st.one_of(st.none(), _of_type(kind.value_type)), max_size=6))
    return draw(_of_type(kind))


def _of_type(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_string(kind):
        return st.sampled_from(TEXTS)
    if pa.types.is_boolean(kind):
        return st.booleans()
    if pa.types.is_integer(kind) or pa.types.is_timestamp(kind):
        return st.sampled_from([n for n in NUMBERS if isinstance(n, int) and -(2**63) <= n < 2**63])
    return st.sampled_from([float(n) for n in NUMBERS])


# Commands

COMMANDS: dict[str, list[str]] = {
    "status": ["status", "{r}"],
    "status for programs": ["status", "{r}", "--json"],
    "settings": ["settings", "list", "{r}"],
    "map": ["map", "{r}", "-o", "{out}/map.png"],
    "report": ["report", "{r}", "-o", "{out}/report.html"],
    "scores": ["scores", "{r}"],
    "check": ["check", "{r}"],
    "repair": ["check", "{r}", "--repair"],
    "compact": ["compact", "{r}", "-o", "{out}/compacted"],
    "soup": ["soup", "{r}", "-o", "{out}/soup.safetensors"],
    "export": ["export", "{r}", "-o", "{out}/exported"],
    "export ensemble": ["export", "{r}", "--what", "ensemble", "-o", "{out}/exported"],
    "greedy soup": ["soup", "{r}", "--kind", "greedy", "-o", "{out}/soup.safetensors"],
}


def command(name: str, root: Path, out: Path) -> tuple[int, str, str]:
    """Runs a command of the command line in this process: exit status, what it printed, and what it complained of."""
    arguments = [part.format(r=root, out=out) for part in COMMANDS[name]]
    said, complained = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["raybasin", *arguments]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
            cli.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    finally:
        sys.argv = before
    return code, said.getvalue(), complained.getvalue()


def assert_handled(name: str, root: Path, out: Path) -> int:
    """A command ends well, with a finding, or with a refusal in a line or two."""
    code, said, complained = command(name, root, out)
    assert code in (0, 1, 2), (code, said, complained)
    assert "Traceback" not in said + complained
    if code == 2:
        assert complained.startswith("error: "), complained
        assert_said_well(complained)
    return code


def tables_from_python(root: Path) -> None:
    """What a notebook does with a folder."""
    import raybasin

    results = raybasin.open(root)
    for table in SCHEMAS:
        if table != "predictions":
            getattr(results, table)
    for cell_id in list(results.cells["cell_id"])[:2]:
        raybasin.log_probs(results, cell_id, "test")
