"""Reading a large results folder: seconds and memory of each command that reads one, before and after `compact`.

    python benchmarks/large_folders.py [--cells N ...] [--keep SPLIT ...] [--times N] [--in FOLDER]
    python benchmarks/large_folders.py --make FOLDER --cells N      (the folder alone, and its sweep file beside it)

Makes a folder that is as a finished sweep of so many cells leaves it: one real cell of five members is trained on
scikit-learn's digits, and its rows are written by the store's own functions for every cell, network and path of the
plan of a larger sweep file, with that plan's ids. `status`, `plan` and `check` find everything complete. A cell has 4
networks of its own, 7 paths and 9 predictors with stored predictions.

Left out: barriers are those of the one cell, raised with lr_ratio so that there is a boundary; weights of members are
pruned, as `keep.weights: soups` has it, and all hubs and all soups have the weights of the one cell's, so that the time
that `check` takes to hash 30 GB of soups is not measured. Files are written without waiting for the disk, and are read
back from the memory of the system.

Each command runs in a process of its own. Prints of each the median of `--times` runs: seconds, CPU seconds and the
most memory it had (peak RSS), with the last line that it said.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import raybasin
from raybasin.jobs import prepare
from raybasin.metrics.cell_scores import ensemble_id
from raybasin.store import inventory, predictions, tables
from raybasin.store.folders import Folder
from raybasin.store.predictions import Block, read_predictions, write_predictions
from raybasin.store.provenance import versions
from raybasin.store.schemas import SCHEMAS
from raybasin.sweep import specs
from raybasin.sweep.ids import soup_id
from raybasin.sweep.plan import Cell, Member, Plan, shared_columns, soup_ids

CYCLES, REPLICATES, MEMBERS = 10, 10, 5
OPENING = """
import sys, raybasin
found = raybasin.open(sys.argv[1])
print(len(found.cells), len(found.members), len(found.scores), len(found.boundaries))
"""
WATCHING = """
import json, os, sys
child = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[2:]], os.environ)
_, status, used = os.wait4(child, 0)
told = {"cpu": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / 1024, "rc": os.waitstatus_to_exitcode(status)}
open(sys.argv[1], "w").write(json.dumps(told))
"""
"""Starts a command, and waits for it: the peak of a process is at least what the one that started it had then."""
COMMANDS: dict[str, Callable[[Path, Path, Path], list[str]]] = {
    "status": lambda root, file, out: ["-m", "raybasin", "status", str(root)],
    "plan": lambda root, file, out: ["-m", "raybasin", "plan", str(file), "--results", str(root), "--quiet"],
    "map": lambda root, file, out: ["-m", "raybasin", "map", str(root), "-o", str(out / "map.png")],
    "open": lambda root, file, out: ["-c", OPENING, str(root)],
    "check": lambda root, file, out: ["-m", "raybasin", "check", str(root)],
    "compact": lambda root, file, out: ["-m", "raybasin", "compact", str(root), "-o", str(out / "compacted")],
}  # fmt: skip
"""What is run after `python`. `open` asks for cells, members, scores and boundaries of `raybasin.open`."""


def tree(cells: int, keep: Sequence[str]) -> dict[str, Any]:
    """A sweep of so many cells of five members on scikit-learn's digits."""
    rates = max(1, round(cells / CYCLES / REPLICATES))
    digits = {"name": "digits", "image_size": 32, "test_images": 50, "eval_crop": 1.0}
    source = {**digits, "classes": [0, 1, 2, 3, 4], "train_images": {"per_class": 8}, "validation": {"images": 50}}
    return {
        "name": f"large-{cells}",
        "data": {**digits, "classes": [5, 6, 7, 8, 9], "train_images": {"per_class": 8}, "validation": {"images": 60}},
        "model": {"name": "test_resnet", "pretrained": [{"pretrain": {"data": source, "recipe": {"epochs": 1}}}]},
        "recipe": {"epochs": 2, "batch_size": 20, "lr": 0.02},
        "methods": {"star_sse": {
            "n_members": MEMBERS, "lr_ratio": [float(f"{rate:.6g}") for rate in np.geomspace(1, 32, rates)],
            "cycle_ratio": [number / 4 for number in range(1, CYCLES + 1)],
        }},
        "basin": {"points": 3, "bn_images": 20, "threshold": 0.02},
        "replicates": REPLICATES,
        "keep": {"weights": "soups", "predictions": list(keep)},
    }  # fmt: skip


# A folder as a sweep leaves it


class Unsynced(Folder):
    """A folder whose files are not waited for."""

    def _create(self, key: str, content: bytes) -> bool:
        path = Path(self.root, key)
        path.write_bytes(content)
        return True

    _replace = _create


@dataclass(frozen=True)
class Template:
    """The rows of one real cell: each network by its index, each path by its kind and the indices of its ends."""

    cell: dict[str, Any]
    members: list[dict[str, Any]]
    epochs: list[list[dict[str, Any]]]
    paths: dict[tuple[str, int, int], list[dict[str, Any]]]
    scores: list[dict[str, Any]]
    predictions: list[list[Block]]
    """Of members, then of soups."""
    known: list[dict[str, Any]]
    """What the rows of predictions say of their predictor."""
    predictors: dict[str, int]
    """Position of everything that is scored."""


def predictors_of(member_ids: Sequence[str]) -> list[str]:
    """Everything that is scored of a cell: members, ensembles, uniform soups and the greedy one."""
    sizes = range(1, len(member_ids) + 1)
    soups = [soup_id("uniform", member_ids[:size]) for size in sizes if size > 1]
    return [*member_ids, *(ensemble_id(member_ids[:size]) for size in sizes), *soups, soup_id("greedy", member_ids)]


def template(folder: Folder, made: Plan) -> Template:
    (cell,) = made.cells
    ids = list(cell.member_ids)
    rows = {table: tables.rows(folder, table) for table in ("cells", "members", "epochs", "paths", "scores")}
    stored = [*ids, *soup_ids(made.spec, cell)]
    known = {}
    for unit in tables.units(folder, "predictions"):
        first = tables.read(folder, "predictions", [unit]).slice(0, 1).to_pylist()[0]
        known[first["predictor_id"]] = {name: first[name] for name in ("kind", "n_members")}
    return Template(
        cell=rows["cells"][0],
        members=sorted(rows["members"], key=lambda row: ids.index(row["member_id"])),
        epochs=[[row for row in rows["epochs"] if row["member_id"] == member_id] for member_id in ids],
        paths={(path.kind, ids.index(path.start_id), ids.index(path.end_id)):
               [row for row in rows["paths"] if row["path_id"] == path.path_id] for path in cell.paths},
        scores=rows["scores"],
        predictions=[list(read_predictions(folder, predictor_id, made.eval_id).values()) for predictor_id in stored],
        known=[known[predictor_id] for predictor_id in stored],
        predictors={predictor_id: place for place, predictor_id in enumerate(predictors_of(ids))},
    )  # fmt: skip


def weights_sha256(member: Member, one: Template) -> str:
    """Of hubs that of the one that is there, of others any: they are pruned."""
    return str(one.members[0]["weights_sha256"]) if member.parent_id is None else member.member_id * 4


def write_member(folder: Folder, made: Plan, member: Member, one: Template) -> None:
    known, unit, sha256 = shared_columns(made, member.point), member.member_id, weights_sha256(member, one)
    row = one.members[member.index]
    parent = {"parent_sha256": one.members[0]["weights_sha256"]} if member.parent_id else {}
    own = {"member_id": unit, "parent_id": member.parent_id, "max_lr": member.max_lr, "seed": member.seed,
           "cycle_epochs": member.cycle_epochs, "cycle_steps": member.cycle_steps}  # fmt: skip
    epochs = [{**epoch, **known, "member_id": unit} for epoch in one.epochs[member.index]]
    write_predicted(folder, made, unit, member.index, known, one)
    tables.write(folder, "epochs", unit, epochs)
    tables.write(folder, "members", unit, [{**row, **known, **own, **parent, "weights_sha256": sha256}])
    if member.parent_id:
        marker = {"weights": [sha256], "keep": made.spec.keep.weights, "settings_id": made.settings_id}
        folder.put(f"weights/{unit}.pruned", json.dumps(marker).encode())


def write_predicted(
    folder: Folder, made: Plan, predictor_id: str, place: int, known: dict[str, Any], one: Template
) -> None:
    for file in made.missing_files(lambda name: False):
        blocks = [block for block in one.predictions[place] if block.split in file.splits]
        write_predictions(folder, predictor_id, file.eval_id, blocks, {**known, **one.known[place]}, file.name)


def write_cell(folder: Folder, made: Plan, cell: Cell, one: Template) -> None:
    known, ids = {**shared_columns(made, cell.point), "cell_id": cell.cell_id}, list(cell.member_ids)
    raised = 0.03 * np.log2(cell.point.lr_ratio) / 5
    for place, predictor_id in enumerate(soup_ids(made.spec, cell), start=len(ids)):
        shared = {name: value for name, value in known.items() if name != "cell_id"}
        write_predicted(folder, made, predictor_id, place, shared, one)
    for path in cell.paths:
        ends = {"path_id": path.path_id, "start_id": path.start_id, "end_id": path.end_id}
        rows = one.paths[path.kind, ids.index(path.start_id), ids.index(path.end_id)]
        inner = [{"error_excess": row["error_excess"] + raised} if 0 < row["t"] < 1 else {} for row in rows]
        unit = f"{cell.cell_id}-{path.path_id}"
        tables.write(folder, "paths", unit, [{**row, **known, **ends, **more}
                                             for row, more in zip(rows, inner, strict=True)])  # fmt: skip
    predictors = predictors_of(ids)
    tables.write(folder, "scores", cell.cell_id, [
        {**row, **known, "predictor_id": predictors[one.predictors[row["predictor_id"]]]} for row in one.scores
    ])  # fmt: skip
    members_before = [row["member_id"] for row in one.members]
    greedy = [ids[members_before.index(member_id)] for member_id in one.cell["greedy_soup_members"]]
    for kind, column, chosen in (("uniform", "soup_sha256", ids), ("greedy", "greedy_soup_sha256", greedy)):
        left = json.dumps({"sha256": one.cell[column], "members": chosen}).encode()
        folder.put(f"state/soup-{predictions.prediction_unit(soup_id(kind, ids), made.eval_id)}.json", left)
    own = {"hub_id": ids[0], "member_ids": ids, "max_lr": cell.max_lr, "cycle_epochs": cell.cycle_epochs,
           "greedy_soup_members": greedy, "kept_predictions": list(made.kept_splits),
           "barrier_error": max(0.0, one.cell["barrier_error"] + raised),
           **{column: ids[members_before.index(one.cell[column])]
              for column in ("barrier_nll_member", "barrier_error_member")},
           "train_epochs": made.train_epochs(cell)}  # fmt: skip
    tables.write(folder, "cells", cell.cell_id, [{**one.cell, **known, **own}])


def make(root: Path, file: Path, cells: int, keep: Sequence[str]) -> Plan:
    """Fills the folder `root` with all of a sweep, whose file is written to `file`."""
    large = tree(cells, keep)
    file.write_text(yaml.safe_dump(large))
    small = {**large, "methods": {"star_sse": {"n_members": MEMBERS}}, "replicates": 1, "keep": {"predictions": keep}}
    with tempfile.TemporaryDirectory(prefix="one-cell-") as where:
        report = raybasin.run(specs.parse(small), where)
        source = Folder(Path(where))
        one = template(source, report.plan)
        for place in (*SCHEMAS, "sweeps", "state"):
            (root / place).mkdir(parents=True)
        shutil.copytree(Path(where, "checkpoints"), root / "checkpoints", dirs_exist_ok=True)
        shutil.copytree(Path(where, "weights"), root / "weights")
    made = prepare.prepare(specs.load(file, [], None, [])).plan
    assert (made.eval_id, made.facts.checkpoints) == (report.plan.eval_id, report.plan.facts.checkpoints)
    kept = {one.cell["soup_sha256"], one.cell["greedy_soup_sha256"], one.members[0]["weights_sha256"]}
    pruned = {row["weights_sha256"] for row in one.members} - kept
    for sha256 in pruned:
        (root / "weights" / f"{sha256}.safetensors").unlink()
    folder = Unsynced(root)
    folder.put(f"sweeps/{made.settings_id}.yaml", inventory.resolved(made).encode())
    shares = list(range(0, len(made.cells), 100))
    with ProcessPoolExecutor(initializer=partial(_begin, folder, made, one)) as workers:
        list(workers.map(_write_share, shares))
    for member in made.members.values():
        if member.parent_id is None:
            write_member(folder, made, member, one)
    return made


_AT_HAND: list[Any] = []
"""What the workers of `make` write, and where to."""


def _begin(*at_hand: Any) -> None:
    _AT_HAND[:] = at_hand


def _write_share(first: int) -> None:
    folder, made, one = _AT_HAND
    for cell in made.cells[first : first + 100]:
        for member_id in cell.member_ids[1:]:
            write_member(folder, made, made.members[member_id], one)
        write_cell(folder, made, cell, one)


# Measuring


@dataclass(frozen=True)
class Cost:
    seconds: float
    cpu_seconds: float
    peak_mb: float
    said: str
    status: int


def measured(command: Sequence[str]) -> Cost:
    """What a command costs in a process of its own, with the last line that it says."""
    with tempfile.TemporaryDirectory() as where:
        out, told = Path(where, "out"), Path(where, "told")
        with out.open("w") as stdout:
            started = time.monotonic()
            watching = [sys.executable, "-S", "-c", WATCHING, str(told), *command]
            subprocess.run(watching, stdout=stdout, stderr=subprocess.STDOUT, check=True)
            seconds = time.monotonic() - started
        used, said = json.loads(told.read_text()), out.read_text().strip().splitlines()
    return Cost(seconds, used["cpu"], used["peak_mb"], said[-1] if said else "", used["rc"])


def runs(root: Path, file: Path, out: Path, names: Sequence[str], times: int) -> Iterator[tuple[str, list[Cost]]]:
    for name in names:
        found = []
        for _ in range(times):
            shutil.rmtree(out / "compacted", ignore_errors=True)
            found.append(measured(COMMANDS[name](root, file, out)))
        yield name, found


def tell(cells: int, state: str, name: str, found: Sequence[Cost]) -> None:
    """Prints a row."""
    costs = [(one.seconds, one.cpu_seconds, one.peak_mb) for one in found]
    seconds, cpu, peak = (statistics.median(column) for column in zip(*costs, strict=True))
    spread = f"{min(one.seconds for one in found):.1f}-{max(one.seconds for one in found):.1f}"
    what = f"| {cells:,} | {state} | {name} |"
    if found[0].status:
        print(f"{what} refused | | | {found[0].said}", flush=True)
        return
    print(f"{what} {seconds:.1f} ({spread}) | {cpu:.1f} | {peak:.0f} | {found[-1].said[:90]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[1_000, 3_000, 10_000], help="hundreds")
    parser.add_argument("--keep", nargs="+", default=["val"], metavar="SPLIT", help="whose predictions are stored")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="only make a folder, of the first of --cells")
    parser.add_argument(
        "--in", dest="where", type=Path, metavar="FOLDER", help="make folders here, or take those there"
    )
    parser.add_argument("--compacted", choices=("too", "only", "no"), default="too", help="the compacted copy")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    asked = parser.parse_args()
    if asked.make:
        made = make(asked.make, asked.make.with_suffix(".yaml"), asked.cells[0], asked.keep)
        print(f"{asked.make}: {len(made.cells):,} cells, {len(made.members):,} networks")
        return
    where = asked.where or Path(tempfile.mkdtemp(prefix="large-folders-"))
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} CPUs, {versions()}")
    print("| cells | folder | command | seconds (range) | CPU s | peak MB | said |\n|---|---|---|---|---|---|---|")
    for cells in asked.cells:
        root, file, out = where / f"large-{cells}", where / f"large-{cells}.yaml", where / "out"
        if not root.exists():
            make(root, file, cells, asked.keep)
        out.mkdir(exist_ok=True)
        for state, folder in (("as written", root), ("compacted", out / "kept")):
            if asked.compacted == ("no" if state == "compacted" else "only"):
                continue
            if state == "compacted":
                shutil.rmtree(out / "kept", ignore_errors=True)
                measured(["-m", "raybasin", "compact", str(root), "-o", str(out / "kept")])
            names = [name for name in asked.commands if state == "as written" or name != "compact"]
            for name, found in runs(folder, file, out, names, asked.times):
                tell(cells, state, name, found)
    if not asked.where:
        shutil.rmtree(where)


if __name__ == "__main__":
    main()
