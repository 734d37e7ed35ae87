"""Why soups fail: what averaging the weights of a cell's members does, against what the middle of its paths has said.

    python benchmarks/why_soups_fail.py RESULTS [RESULTS ...] [-o why-soups-fail.png]

Nothing is trained: all is in the tables of results folders with star_sse or sse and uniform soups. On the validation
images, with batch norm re-estimated at the soup, at the ends and in the middle of all paths:

- *middle*: loss at the middle of a path less the mean of its ends, as mean over the pairs of members of a cell. A pair
  of members that has no path (`basin.pairs: consecutive`) counts as those that have one. The barrier is its positive
  side, seen at the largest of the paths.
- *soup*: the uniform soup's loss less the mean of its members'. Where the loss is a quadratic it is 2 (M - 1) / M times
  the middle, for M members, whatever the curvature and wherever the members lie: the mean loss of M points lies above
  the loss of their mean by the sum over pairs of a half of their squared distances over M^2, and that of two by an
  eighth of it.

Fits: least squares through 0 of soup on middle, of the cells in the basin and of those that are not. Intervals: 95 %,
of 20,000 draws of the hubs (checkpoint and replicate) with all their cells.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import raybasin
from raybasin.store.provenance import versions

LOSSES = {"error": ("error", 100.0, "points"), "nll": ("NLL", 1.0, "nats")}
DRAWS = 20_000


def measured(name: str, results: raybasin.Results) -> Iterator[dict[str, object]]:
    """Of each cell of one network and one soup: the middle of its paths, and what its soup has lost, by both losses."""
    cells = results.cells[results.cells["soup_accuracy"].notna()].set_index("cell_id")
    paths = results.paths[(results.paths["split"] == "val") & results.paths["cell_id"].isin(cells.index)]
    for cell_id, of_cell in paths.groupby("cell_id"):
        cell = cells.loc[cell_id]
        if cell["method"] not in ("star_sse", "sse"):
            continue
        soup = {"error": 1 - cell["val_soup_accuracy"], "nll": cell["val_soup_nll"]}
        row = {"results": name, "hub": (name, cell["checkpoint"], cell["replicate"]), "n_members": cell["n_members"],
               "in": bool(cell["in_basin"]), "lr_ratio": cell["lr_ratio"], "barrier": 100 * cell["barrier_error"],
               "over_hub": 100 * (cell["soup_accuracy"] - cell["hub_accuracy"])}  # fmt: skip
        for loss in LOSSES:
            row[f"middle_{loss}"], members = middle(of_cell, loss, cell["n_members"])
            row[f"soup_{loss}"] = soup[loss] - members
        yield row


def middle(paths: pd.DataFrame, loss: str, n_members: int) -> tuple[float, float]:
    """The mean over all pairs of the excess in the middle of a path, and the mean loss of the members."""
    at = paths.pivot_table(loss, ["kind", "start_id", "end_id"], "t")
    ends = (at[0.0] + at[1.0]) / 2
    by_kind = (at[0.5] - ends).groupby("kind").mean()
    share_of_hub = 2 / n_members  # of all pairs, those with the hub
    mean = share_of_hub * by_kind["hub-member"] + (1 - share_of_hub) * by_kind.get("member-member", 0.0)
    members = pd.concat([at[0.0].droplevel(["kind", "end_id"]), at[1.0].droplevel(["kind", "start_id"])])
    return mean, members[~members.index.duplicated()].mean()


def slope(cells: pd.DataFrame, loss: str) -> tuple[float, float, float]:
    """Of the soup on the middle, through 0, with its interval."""
    products = pd.DataFrame({"xy": cells[f"middle_{loss}"] * cells[f"soup_{loss}"], "xx": cells[f"middle_{loss}"] ** 2})
    by_hub = products.groupby(cells["hub"]).sum().to_numpy()
    drawn = by_hub[np.random.default_rng(0).integers(len(by_hub), size=(DRAWS, len(by_hub)))].sum(1)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
    return float(products["xy"].sum() / products["xx"].sum()), low, high


def figure(cells: pd.DataFrame, path: Path) -> None:
    """Left the whole range, right the basin, where both axes are small; below 0 averaging pays."""
    drawn, axes = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    ratio = 2 * (cells["n_members"] - 1) / cells["n_members"]
    inside = cells[cells["in"]]
    for axis, shown in zip(axes, (cells, inside), strict=True):
        for marker, (name, of) in zip("o^sDv", shown.groupby("results"), strict=False):
            x, y = 100 * of["middle_error"], 100 * of["soup_error"]
            points = axis.scatter(x, y, 26, np.log2(of["lr_ratio"]), marker=marker, cmap="viridis", vmin=-1, vmax=6,
                                  linewidths=0.3, edgecolors="black", label=name)  # fmt: skip
        ends = 100 * np.array([shown["middle_error"].min(), shown["middle_error"].max()])
        for k in sorted(set(ratio)):
            axis.plot(ends, k * ends, color="tab:red", lw=1, label=f"a quadratic: {k:g} times the middle")
        axis.axhline(0, color="grey", lw=0.6)
        axis.axvline(0, color="grey", lw=0.6)
        axis.set(xlabel="middle of a path less its ends, points of error",
                 ylabel="soup less its members, points of error")  # fmt: skip
    axes[0].set_title("all cells", loc="left")
    axes[0].legend(fontsize=8)
    axes[1].set_title("in the basin", loc="left")
    bar = drawn.colorbar(points, ax=axes, ticks=range(-1, 7), shrink=0.9)
    bar.ax.set_yticklabels([f"{2.0**k:g}" for k in range(-1, 7)])
    bar.set_label("lr_ratio")
    drawn.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("-o", "--out", type=Path, default=Path("why-soups-fail.png"))
    asked = parser.parse_args()
    rows = [row for path in asked.results for row in measured(str(path), raybasin.open(path))]
    cells = pd.DataFrame(rows)
    finite = np.isfinite(cells[[f"{what}_{loss}" for what in ("middle", "soup") for loss in LOSSES]]).all(axis=1)
    print(f"{platform.machine()}; {versions()}\n{(~finite).sum()} cells without a finite loss are left out\n")
    cells = cells[finite]
    for loss, (title, scale, unit) in LOSSES.items():
        for name, of in [*cells.groupby("results"), ("all", cells)]:
            for where, part in (("in", of[of["in"]]), ("out", of[~of["in"]])):
                if part["hub"].nunique() < 2:
                    continue
                found, low, high = slope(part, loss)
                apart = (part[f"soup_{loss}"] - found * part[f"middle_{loss}"]).std() * scale
                print(f"{title:5} {name:40} {where:3} {len(part):4} cells of {part['hub'].nunique():2} hubs: soup = "
                      f"{found:.2f} [{low:.2f}, {high:.2f}] x middle, {apart:.2g} {unit} apart")  # fmt: skip
    for where, part in (("in", cells[cells["in"]]), ("out", cells[~cells["in"]])):
        print(f"{where}: soup better than its hub on test in {(part['over_hub'] > 0).sum()} of {len(part)} cells, by "
              f"{part['over_hub'].median():.1f} points in the median")  # fmt: skip
    figure(cells, asked.out)


if __name__ == "__main__":
    main()
