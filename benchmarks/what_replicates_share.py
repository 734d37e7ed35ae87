"""How much of the noise between cells near the line do all cells of a replicate have in common, in stored sweeps?

    python benchmarks/what_replicates_share.py RESULTS...

Cells of one replicate start from the same hub. For each method that explores and each checkpoint of these folders, of
the points with all replicates that half of the points have, and of those whose mean barrier lies between a quarter of
the threshold and five times it: the standard deviation of the logarithm of the barrier between replicates (a quarter of
the threshold is added to each barrier, which bounds what few images do to small ones), the share of its variance that a
replicate's cells have in common, by a two-way layout of points and replicates, and its 95 % interval by the F
distribution (Searle, Casella, McCulloch 1992, section 3.6).
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
from scipy.stats import f as fisher

import raybasin
from raybasin.analysis import explored


def shared(log_PR: np.ndarray) -> tuple[float, float, float, float]:
    """Standard deviation within points, and the share in common with its interval."""
    n_points, n_replicates = log_PR.shape
    apart_PR = log_PR - log_PR.mean(axis=1, keepdims=True)
    means_R = apart_PR.mean(axis=0)
    degrees = n_replicates - 1, (n_points - 1) * (n_replicates - 1)
    ms_replicates = n_points * (means_R**2).sum() / degrees[0]
    ms_rest = ((apart_PR - means_R) ** 2).sum() / degrees[1]
    ratio = ms_replicates / ms_rest

    def share(f: float) -> float:
        return (f - 1) / (f - 1 + n_points)

    deviation = np.sqrt((apart_PR**2).sum() / (n_points * degrees[0]))
    low, high = (share(ratio / fisher.ppf(q, *degrees)) for q in (0.975, 0.025))
    return deviation, share(ratio), low, high


def main() -> None:
    if not sys.argv[1:] or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    rows = []
    for folder in sys.argv[1:]:
        results = raybasin.open(folder)
        barrier, threshold = results.criterion.barrier, results.threshold
        for cells in explored.explored(results):
            table = cells.pivot_table(values=barrier, index=["cycle_ratio", "lr_ratio"], columns="replicate")
            table = table.dropna(axis="columns", thresh=len(table) // 2).dropna()
            mean = table.mean(axis=1)
            near = table[(mean > threshold / 4) & (mean < 5 * threshold)]
            if near.shape[0] < 3 or near.shape[1] < 2:
                continue
            deviation, share, low, high = shared(np.log(near.to_numpy() + threshold / 4))
            method, checkpoint, _ = cells[explored.WHOSE].iloc[0]
            rows.append((folder, method, checkpoint, *near.shape, deviation, share, low, high))
    columns = ["results", "method", "checkpoint", "points", "replicates", "sd of log", "share in common", "low", "high"]
    print(pd.DataFrame(rows, columns=columns).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
