"""What planning a large sweep costs: CPU seconds of each step between the sweep file and the first job.

    python benchmarks/planning.py [--cells N] [--shapes NAME ...] [--times N] [--profile STEP]

Plans sweeps of 10,000 cells of several shapes, in an empty folder and in one that holds all of them already, and the
same at a quarter of the cells: what is linear then costs a quarter. Nothing is trained. The folder is filled with true
rows of `members`, `cells` and `scores`, and with empty files where planning looks at names only.

Prints the median of `--times` runs of each step and, in brackets, how many times that of a quarter of the cells it is;
`--profile` shows instead where one step spends its time.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import gc
import io
import json
import os
import platform
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raybasin import console
from raybasin.jobs import disk, local, retention
from raybasin.jobs.prepare import Prepared
from raybasin.jobs.scheduler import Scheduler
from raybasin.store import inventory
from raybasin.store.folders import Folder
from raybasin.store.predictions import prediction_unit
from raybasin.store.provenance import versions
from raybasin.store.schemas import SCHEMAS
from raybasin.sweep import plan, specs
from raybasin.sweep.facts import CheckpointFacts, DataFacts, Facts, Preprocess
from raybasin.sweep.plan import Member, Plan, shared_columns, soup_ids
from raybasin.sweep.specs import SweepSpec

FACTS = Facts(
    data=DataFacts("a" * 64, "b" * 64, n_train=45_000, n_val=500, n_test=500, n_classes=10),
    preprocess=Preprocess(32, 1.0, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
    checkpoints=(CheckpointFacts("first", "c" * 64),),
    pretrain_data={},
    batch_norm=True,
    n_parameters=1_000,
)
MEANWHILE = datetime(2026, 1, 1, tzinfo=UTC)


def ratios(count: int) -> list[float]:
    return [1 + number / 100 for number in range(count)]


def replicated(method: str, cells: int, replicates: int, **keys: Any) -> dict[str, Any]:
    """So many cells of one method, ten lengths of each rate."""
    grid = {"lr_ratio": ratios(cells // replicates // 10), "cycle_ratio": ratios(10), **keys}
    return {"methods": {method: grid}, "replicates": replicates}


SHAPES: dict[str, Callable[[int], dict[str, Any]]] = {
    "star": lambda cells: replicated("star_sse", cells, replicates=10),
    "one hub": lambda cells: {"methods": {"star_sse": {"lr_ratio": ratios(cells)}}},
    "replicates": lambda cells: {"methods": {"star_sse": {}}, "replicates": cells},
    "chains": lambda cells: replicated("sse", cells, replicates=10, n_members=20),
    "long chains": lambda cells: {"methods": {"sse": {"n_members": 1000, "lr_ratio": ratios(max(1, cells // 100))}}},
    "pairs": lambda cells: replicated("star_sse", cells, replicates=10) | {"basin": {"pairs": "all"}},
    "soups": lambda cells: replicated("star_sse", cells, replicates=10) | {"keep": {"weights": "soups"}},
    "best": lambda cells: replicated("star_sse", cells, replicates=10) | {"keep": {"weights": "best"}},
    "trace": lambda cells: replicated("star_sse", cells, replicates=10) | {"basin": {"trace": True}},
    "mixed": lambda cells: {
        "replicates": 5,
        "methods": {name: {"lr_ratio": ratios(cells // 250), "cycle_ratio": ratios(10)}
                    for name in ("star_sse", "sse", "tree", "csgld", "swag")},
        "keep": {"weights": "soups"},
    },
}  # fmt: skip
"""Sweeps of so many cells (of `long chains` a hundredth), by what is particular about them."""


def tree(shape: str, cells: int) -> dict[str, Any]:
    return {
        "name": shape.replace(" ", "-"), "data": {"name": "cifar10", "image_size": 32},
        "model": {"name": "resnet18", "pretrained": ["first.pth"]}, "recipe": {"epochs": 20, "lr": 0.05},
        **SHAPES[shape](cells),
    }  # fmt: skip


# A folder that holds all of a sweep


def fill(folder: Folder, made: Plan) -> None:
    """Everything that a sweep leaves, as far as planning looks at it."""
    root, pruned = Path(folder.root), made.spec.keep.weights != "all"
    for place in (*SCHEMAS, "weights", "sweeps", "state"):
        (root / place).mkdir(parents=True, exist_ok=True)
    (root / "sweeps" / f"{made.settings_id}.yaml").write_text(inventory.resolved(made))
    said = {"device": "cpu", "versions": versions(), "finished_at": MEANWHILE}
    members = {m.member_id: _member_row(m, made) | said for m in made.members.values()}
    _write(root, "members", members)
    _write(root, "cells", {cell.cell_id: _cell_row(cell, made) | said for cell in made.cells})
    _write(root, "scores", {cell.cell_id: _score_row(cell, made) for cell in made.cells})
    hubs = {cell.member_ids[0] for cell in made.cells}
    for member_id in made.members:
        (root / "epochs" / f"{member_id}.parquet").touch()
        gone = pruned and member_id not in hubs
        marker = {"weights": [_sha256(member_id)], "keep": made.spec.keep.weights, "settings_id": made.settings_id}
        if gone:
            (root / "weights" / f"{member_id}.pruned").write_text(json.dumps(marker))
        else:
            (root / "weights" / f"{_sha256(member_id)}.safetensors").touch()
    predictors = {p for cell in made.cells for p in (*cell.member_ids, *soup_ids(made.spec, cell))}
    for predictor_id in predictors:
        (root / "predictions" / f"{prediction_unit(predictor_id, made.eval_id)}.parquet").touch()
    for cell in made.cells:
        for path in cell.paths:
            (root / "paths" / f"{cell.cell_id}-{path.path_id}.parquet").touch()
        for trace in cell.traces:
            (root / "traces" / f"{cell.cell_id}-{trace.trace_id}.parquet").touch()


def _sha256(unit: str) -> str:
    return unit * 4


def _member_row(member: Member, made: Plan) -> dict[str, Any]:
    return {
        **shared_columns(made, member.point), "member_id": member.member_id, "parent_id": member.parent_id,
        "kind": member.kind, "member_index": member.member_index, "max_lr": member.max_lr, "seed": member.seed,
        "cycle_epochs": member.cycle_epochs, "cycle_steps": member.cycle_steps, "train_seconds": 1.0,
        "weights_sha256": _sha256(member.member_id), "job_seconds": 1.0,
    }  # fmt: skip


def _cell_row(cell: plan.Cell, made: Plan) -> dict[str, Any]:
    return {
        **shared_columns(made, cell.point), "cell_id": cell.cell_id, "hub_id": cell.member_ids[0],
        "member_ids": list(cell.member_ids), "variant": cell.variant, "n_members": len(cell.member_ids),
        "barrier_error": 0.01, "soup_accuracy": 0.9, "val_soup_accuracy": 0.9, "val_soup_nll": 0.3,
        "val_ensemble_accuracy": 0.9, "ensemble_accuracy": 0.9, "hub_accuracy": 0.9,
        "kept_predictions": ["val", "test"],
        "kept_weights": made.spec.keep.weights, "train_epochs": made.train_epochs(cell),
    }  # fmt: skip


def _score_row(cell: plan.Cell, made: Plan) -> dict[str, Any]:
    return {
        **shared_columns(made, cell.point), "cell_id": cell.cell_id, "predictor_id": cell.member_ids[0],
        "kind": "member", "n_members": 1, "split": "test", "bn": "own", "accuracy": 0.9,
    }  # fmt: skip


def _write(root: Path, table: str, rows: dict[str, dict[str, Any]]) -> None:
    """As `tables.write`, without waiting for the disk at each file."""
    whole = pa.Table.from_pylist(list(rows.values()), schema=SCHEMAS[table])
    for number, unit in enumerate(rows):
        pq.write_table(whole.slice(number, 1), root / table / f"{unit}.parquet", write_page_checksum=True)


# Steps


@dataclass
class Bench:
    """One sweep in one folder. Each step is made from what those before it left; `begin` puts the sweep file there."""

    tree: dict[str, Any]
    folder: Folder
    seconds: dict[str, list[float]] = field(default_factory=dict)
    profiled: str = ""
    said: str = ""

    def run(self) -> None:
        folder = self.folder
        spec: SweepSpec = self.step("specs.parse", lambda: specs.parse(self.tree))
        made: Plan = self.step("plan.make", lambda: plan.make(spec, FACTS))
        done = self.step("inventory.survey", lambda: inventory.survey(folder))
        self.step("retention.groups", lambda: retention.groups(made))
        situation: local.Situation = self.step("local.look", lambda: local.look(made, folder, done=done))
        self.step("disk.need", lambda: disk.need(made, done, situation.jobs))
        self.step("disk.check", lambda: situation.check(retrain=True))
        lines = self.step("console.lines", lambda: list(console.lines(situation)))
        printed = self.step("console.print_cells", lambda: shown(situation))
        self.step("Scheduler.add", lambda: Scheduler().add(situation.jobs))
        begun: local.Situation = self.step("local.begin", lambda: local.begin(folder, Prepared(made, {}, None, {})))
        self.step("local.end", lambda: local.end(begun, {}))
        self.said = (
            f"{len(made.cells):,} cells, {len(made.members):,} networks, "
            f"{sum(len(cell.paths) for cell in made.cells):,} paths, {len(situation.jobs):,} jobs left, "
            f"{len(lines) + printed:,} lines printed"
        )

    def step(self, name: str, does: Callable[[], Any]) -> Any:
        gc.collect()
        profile = cProfile.Profile() if name == self.profiled else contextlib.nullcontext()
        started = time.process_time()
        with profile:
            result = does()
        self.seconds.setdefault(name, []).append(time.process_time() - started)
        if isinstance(profile, cProfile.Profile):
            pstats.Stats(profile).sort_stats("cumulative").print_stats(25)
        return result


def shown(situation: local.Situation) -> int:
    """How many lines `raybasin plan` prints of the cells."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        console.print_table(console.cells_table(situation.plan, situation.done))
    return out.getvalue().count("\n")


def benches(shape: str, cells: int, times: int, profiled: str) -> Iterator[tuple[str, Bench]]:
    """In an empty folder, and in one that holds all."""
    for state in ("empty", "all done"):
        with tempfile.TemporaryDirectory(prefix="planning-") as root:
            bench = Bench(tree(shape, cells), Folder(Path(root)), profiled=profiled)
            if state == "all done":
                fill(bench.folder, plan.make(specs.parse(bench.tree), FACTS))
            for _ in range(times):
                bench.run()
        yield state, bench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--profile", default="", metavar="STEP", help="for instance local.look")
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} CPUs, {versions()}")
    for shape in options.shapes:
        small = benches(shape, options.cells // 4, options.times, "")
        large = benches(shape, options.cells, options.times, options.profile)
        for (state, quarter), (_, whole) in zip(small, large, strict=True):
            print(f"\n{shape}, {state}: {whole.said}")
            of_whole, of_quarter = (
                {step: statistics.median(seconds) for step, seconds in bench.seconds.items()}
                for bench in (whole, quarter)
            )
            for step, seconds in of_whole.items():
                times = f"{seconds / of_quarter[step]:.1f}" if of_quarter[step] > 0.01 else "-"
                print(f"  {step:22}{seconds:8.2f} CPU s  ({times})")
            print(f"  {'in all':22}{sum(of_whole.values()):8.2f} CPU s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
