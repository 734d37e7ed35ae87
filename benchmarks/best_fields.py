"""How well the search for the best point finds it where it is known, against a grid and random points.

    python benchmarks/best_fields.py --fields 60

A field is a score that rises to a best point, wider in lr_ratio or in cycle_ratio, and falls off beyond a line, outside
which the barrier takes it; its replicates spread. Printed are the regret (by how much the point that is named the best
is worse than the best of all, in percentage points of the score), the epochs (sums of cycle_ratio over cells, as mean),
and how often the 95 % interval of the score holds the true score of the point that is named.

The grid has 8 rates and 5 lengths with 2 replicates; `random` spends as many epochs as the search did, on points with
one replicate each, and `random_x3` three times as many. Both name the point with the best mean.
"""

from __future__ import annotations

import argparse
import platform
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy

from raybasin.search import BestSearch

LR, CYCLE = (0.5, 64.0), (0.25, 4.0)
LOG_LR, LOG_CYCLE = np.log(LR), np.log(CYCLE)


@dataclass(frozen=True)
class Field:
    """Scores are shares; lengths are in log lr_ratio and log cycle_ratio."""

    gain: float
    at: tuple[float, float]
    widths: tuple[float, float]
    tilt: float
    line: float
    drop: float
    spread: float

    def score(self, log_lr: np.ndarray, log_cycle: np.ndarray) -> np.ndarray:
        apart, up = log_lr - self.at[0] - self.tilt * (log_cycle - self.at[1]), log_cycle - self.at[1]
        bump = self.gain * np.exp(-((apart / self.widths[0]) ** 2) - (up / self.widths[1]) ** 2)
        return 0.7 + bump - self.drop / (1 + np.exp(-4 * (apart - self.line)))

    def best(self) -> float:
        rates, cycles = np.meshgrid(np.linspace(*LOG_LR, 400), np.linspace(*LOG_CYCLE, 100))
        return float(self.score(rates, cycles).max())

    def measure(self, rng: np.random.Generator, lr_ratio: float, cycle_ratio: float) -> float:
        return float(self.score(np.log(lr_ratio), np.log(cycle_ratio)) + self.spread * rng.standard_normal())


def drawn(rng: np.random.Generator) -> Field:
    return Field(
        gain=rng.uniform(0.01, 0.05), at=(rng.uniform(np.log(2), np.log(16)), rng.uniform(*LOG_CYCLE)),
        widths=(rng.uniform(0.8, 2), rng.uniform(1, 3)), tilt=rng.normal(0, 0.3), line=rng.uniform(0.5, 1.5),
        drop=rng.uniform(0, 0.3), spread=rng.uniform(0.002, 0.01),
    )  # fmt: skip


def by_grid(field: Field, rng: np.random.Generator) -> dict:
    points = [(lr, cycle) for lr in np.geomspace(*LR, 8) for cycle in np.geomspace(*CYCLE, 5)]
    means = [np.mean([field.measure(rng, *point) for _ in range(2)]) for point in points]
    return {"point": points[int(np.argmax(means))], "epochs": 2 * sum(cycle for _, cycle in points)}


def by_chance(field: Field, rng: np.random.Generator, budget: float) -> dict:
    best, best_score, epochs = (np.exp(LOG_LR.mean()), 1.0), -np.inf, 0.0
    while True:
        point = np.exp(rng.uniform(*LOG_LR)), np.exp(rng.uniform(*LOG_CYCLE))
        if epochs + point[1] > budget:
            return {"point": best, "epochs": epochs}
        epochs += point[1]
        score = field.measure(rng, *point)
        if score > best_score:
            best, best_score = point, score


def by_search(field: Field, rng: np.random.Generator, at_once: int, tolerance: float) -> dict:
    search, seconds = BestSearch(LR, CYCLE, tolerance), time.process_time()
    while points := search.ask(at_once):
        for point in points:
            search.tell(*point, field.measure(rng, *point))
    best = search.best()
    return {
        "point": (best.lr_ratio, best.cycle_ratio), "epochs": search.spent_epochs, "low": best.low, "high": best.high,
        "why": search.stopped, "seconds": time.process_time() - seconds,
    }  # fmt: skip


def rows_of(number: int, arguments: argparse.Namespace) -> list[dict]:
    draw = [np.random.default_rng(one) for one in np.random.SeedSequence([arguments.seed, number]).spawn(5)]
    field = drawn(draw[0])
    searched = by_search(field, draw[1], arguments.at_once, arguments.tolerance)
    found = {
        "grid": by_grid(field, draw[2]), "random": by_chance(field, draw[3], searched["epochs"]),
        "random_x3": by_chance(field, draw[4], 3 * searched["epochs"]), "search": searched,
    }  # fmt: skip
    rows = []
    for strategy, row in found.items():
        score = float(field.score(*np.log(row["point"])))
        hit = float(row["low"] <= score <= row["high"]) if "low" in row else np.nan
        rows.append({**row, "strategy": strategy, "regret": 100 * (field.best() - score), "hit": 100 * hit})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=4, help="points that are asked for together")
    parser.add_argument("--tolerance", type=float, default=0.002)
    arguments = parser.parse_args()
    rows = pd.DataFrame([row for number in range(arguments.fields) for row in rows_of(number, arguments)])
    groups = rows.groupby("strategy", sort=False)
    table = groups.agg(
        fields=("regret", "size"), median=("regret", "median"), p90=("regret", lambda each: each.quantile(0.9)),
        mean=("regret", "mean"), epochs=("epochs", "mean"), coverage=("hit", "mean"), cpu_s=("seconds", "mean"),
    )  # fmt: skip
    print(table.round(3).to_string())
    print(f"stopped: {rows['why'].value_counts().to_dict()}")
    versions = f"numpy {np.__version__}, scipy {scipy.__version__}, pandas {pd.__version__}"
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {versions}")


if __name__ == "__main__":
    main()
