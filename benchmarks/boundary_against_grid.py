"""The boundary by search and by a dense grid, on real images: the two lines, and the epochs that each has spent.

    python benchmarks/boundary_against_grid.py SWEEP --out FOLDER [--data DIR] [--checkpoint FILE ...]
                                               [--step 1.5] [--cycles 0.5,1,2] [--replicates 4] [--around 5,36]
                                               [--only search|grid]

SWEEP is a sweep file with `search: {kind: boundary, ...}`, such as sweeps/digits-boundary.yaml. The grid has rates a
factor `--step` apart over the same range; with `--around` only those in it are trained, because far from the line the
others say nothing of it, and the epochs of all are counted. Both run into folders of their own under FOLDER, with
`raybasin sweep`, and go on there if it is called again; `--only` runs one of the two, and prints nothing. Else prints
each line with its 95 % interval at the grid's lengths, whether the search's interval holds the grid's line, and what
share of the grid's epochs the search has spent.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

import raybasin
from raybasin.analysis import explored
from raybasin.store.provenance import versions


def sweep(tree: dict[str, object], folder: Path, arguments: list[str]) -> float:
    """Runs or continues a sweep; seconds that this took."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(tree))
    began = time.monotonic()
    command = [sys.executable, "-m", "raybasin", "sweep", str(file), "--results", str(folder), *arguments]
    subprocess.run(command, check=True)
    return time.monotonic() - began


def epochs_of(cells: pd.DataFrame) -> float:
    """Of branches: hubs are the same networks in both."""
    return float(((cells["n_members"] - 1) * cells["cycle_epochs"]).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--step", type=float, default=1.5, help="factor between two rates of the grid")
    parser.add_argument("--cycles", default="0.5,1,2")
    parser.add_argument("--replicates", type=int, default=4, help="of the grid")
    parser.add_argument("--around", default="0,inf", help="rates of the grid that are trained: LOW,HIGH")
    parser.add_argument("--only", choices=("search", "grid"))
    asked, arguments = parser.parse_known_args()
    searched = yaml.safe_load(asked.sweep.read_text())
    low, high = searched["search"]["lr_ratio"]
    cycles = [float(cycle) for cycle in asked.cycles.split(",")]
    rates = [
        float(f"{rate:.4g}") for rate in np.geomspace(low, high, round(np.log(high / low) / np.log(asked.step)) + 1)
    ]
    from_lr, to_lr = (float(rate) for rate in asked.around.split(","))
    trained = [rate for rate in rates if from_lr <= rate <= to_lr]
    star = {**searched["methods"]["star_sse"], "lr_ratio": trained, "cycle_ratio": cycles}
    dense = {**searched, "methods": {"star_sse": star}, "replicates": asked.replicates}
    del dense["search"]
    trees = {"search": searched, "grid": dense}
    if asked.only:
        sweep(trees[asked.only], asked.out / asked.only, arguments)
        return
    seconds = {name: sweep(tree, asked.out / name, arguments) for name, tree in trees.items()}
    found = {name: raybasin.open(asked.out / name) for name in seconds}
    print(f"\n{os.cpu_count()} cores, {platform.machine()}; {versions()}")
    for checkpoint in sorted(found["grid"].cells["checkpoint"].unique()):
        of = {name: r.cells.query("method == 'star_sse' and checkpoint == @checkpoint") for name, r in found.items()}
        lines = {name: explored.line_of(found[name], cells, cycles) for name, cells in of.items()}
        both = lines["search"].merge(lines["grid"], on="cycle_ratio", suffixes=("", "_grid"))
        both["holds"] = (both["low"] <= both["lr_ratio_grid"]) & (both["lr_ratio_grid"] <= both["high"])
        spent = {name: epochs_of(cells) for name, cells in of.items()}
        spent["grid"] *= len(rates) / len(trained)
        print(f"\n{checkpoint}\n{both.round(2).to_string(index=False)}")
        counts = [f"{name} {spent[name]:.0f} in {len(cells)} cells" for name, cells in of.items()]
        print(f"epochs of branches: {', '.join(counts)}; {spent['search'] / spent['grid']:.3f} of the grid's")
    print("seconds of this call: " + ", ".join(f"{name} {taken:.0f}" for name, taken in seconds.items()))


if __name__ == "__main__":
    main()
