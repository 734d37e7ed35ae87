"""How well the boundary search finds lines that are known, against a grid and against bisection, on random fields.

    python benchmarks/boundary_fields.py                                     # 60 fields of each kind
    python benchmarks/boundary_fields.py --fields 1000 --kinds light heavy --at-once 4

A field has a line (log lr_ratio on which the mean barrier crosses the threshold, for each cycle length), a barrier that
is a logistic in log lr_ratio, and noise between replicates and between images, cut off at 0. Everything is drawn from
`--seed`, each field and each strategy with numbers of its own, so that `--fields 30` are the first 30 of more. Of
`hubs3`, `hubs10` and `hubs25` each of 8 replicates moves the whole line, with a standard deviation of 3, 10 and 25 %,
and the search takes replicates as a sweep does.

Errors are factors of lr_ratio, of five cycle lengths a field; a line outside the range counts as at its end. Epochs are
the sums of cycle_ratio over the cells, as mean over the fields, relative to those of bisection and of the grid.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
import sklearn
from scipy.optimize import brentq

from raybasin.search import BoundarySearch, lines

LR, CYCLE, THRESHOLD = (0.5, 64.0), (0.25, 4.0), 0.02
CYCLES = (0.25, 0.5, 1.0, 2.0, 4.0)
IMAGE_NOISE = 0.003
HUBS = 8
"""Replicates that a search may take, where hubs differ."""
LOW, HIGH = np.log(LR)

Line = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Field:
    """A truth to be found. The line is log lr_ratio as a function of log cycle_ratio."""

    line: Line
    steepness: float
    height: float
    spread: float
    is_lognormal: bool
    diverges: float = np.inf
    """How far beyond the line training diverges, in log lr_ratio."""
    floor: float = 0.0
    """The barrier deep inside."""
    steeper: float = 0.0
    """By how much log steepness grows with log cycle_ratio."""
    hubs: float = 0.0
    """By how much replicates move the line, as standard deviation of log lr_ratio."""
    moved_R: tuple[float, ...] = (0.0,)
    """By how much each does that the search may take."""

    def mean(self, lr_ratio: float, cycle_ratio: float, moved: float = 0.0) -> float:
        """The barrier as mean over those replicates that move the line so far."""
        apart = np.log(lr_ratio) - self.line(np.log(cycle_ratio)) - moved
        steepness = self.steepness * cycle_ratio**self.steeper
        height, threshold = self.height - self.floor, THRESHOLD - self.floor
        return self.floor + height / (1 + (height / threshold - 1) * np.exp(np.clip(-steepness * apart, -300, 300)))

    def truth(self) -> np.ndarray:
        """Where the mean over all replicates that there could be crosses the threshold, at CYCLES."""
        lines = self.line(np.log(np.array(CYCLES)))
        if not self.hubs:
            return lines
        nodes, weights = np.polynomial.hermite_e.hermegauss(40)

        def above(log_lr: float, cycle: float) -> float:
            heights = [self.mean(np.exp(log_lr), cycle, self.hubs * node) for node in nodes]
            return float(weights @ heights / weights.sum()) - THRESHOLD

        return np.array([brentq(above, line - 3, line + 3, args=(c,)) for c, line in zip(CYCLES, lines, strict=True)])

    def measure(
        self, rng: np.random.Generator, lr_ratio: float, cycle_ratio: float, replicate: int | None = None
    ) -> tuple[float, float]:
        """Barrier and standard error over images of one replicate."""
        if np.log(lr_ratio) - self.line(np.log(cycle_ratio)) > self.diverges * rng.uniform(0.8, 1.2):
            return np.nan, np.nan
        moved = self.hubs * rng.standard_normal() if replicate is None and self.hubs else self.moved_R[replicate or 0]
        mean = self.mean(lr_ratio, cycle_ratio, moved)
        if self.is_lognormal:
            log_spread = np.sqrt(np.log1p(self.spread**2))
            mean *= np.exp(log_spread * rng.standard_normal() - log_spread**2 / 2)
        else:
            mean *= 1 + self.spread * rng.standard_normal()
        return max(0.0, mean + IMAGE_NOISE * rng.standard_normal()), IMAGE_NOISE


def quadratic(rng: np.random.Generator) -> Line:
    level, slope, curvature = rng.uniform(np.log(3), np.log(20)), rng.normal(0, 0.4), rng.normal(0, 0.12)
    return lambda log_cycle: level + slope * log_cycle + curvature * log_cycle**2


def light(rng: np.random.Generator) -> Field:
    return Field(quadratic(rng), rng.uniform(1.5, 6), rng.uniform(0.06, 0.3), 0.25, False)


def heavy(rng: np.random.Generator) -> Field:
    return Field(quadratic(rng), rng.uniform(1.5, 7), rng.uniform(0.06, 0.3), rng.uniform(0.2, 0.9), True)


def middling(rng: np.random.Generator, line: Line, **more: float) -> Field:
    """Another line under noise between the light and the heavy."""
    more = {"steepness": rng.uniform(1.5, 7), "height": rng.uniform(0.06, 0.3), "spread": rng.uniform(0.2, 0.6), **more}
    return Field(line, is_lognormal=True, **more)


def kink(rng: np.random.Generator) -> Field:
    level, at, before, after = rng.uniform(np.log(3), np.log(20)), rng.uniform(-0.9, 0.9), *rng.normal(0, 0.6, 2)
    return middling(rng, lambda u: level + np.where(u < at, before, after) * (u - at))


def plateau(rng: np.random.Generator) -> Field:
    level, at, width = rng.uniform(np.log(3), np.log(20)), rng.uniform(-0.9, 0.9), rng.uniform(0.1, 0.4)
    jump = rng.uniform(0.4, 1.2) * rng.choice([-1, 1])
    return middling(rng, lambda u: level + jump * np.tanh((u - at) / width) / 2)


def leaving(rng: np.random.Generator) -> Field:
    level, slope = rng.choice([np.log(0.7), np.log(45)]) + rng.normal(0, 0.3), rng.normal(0, 0.6)
    return middling(rng, lambda u: level + slope * u)


def heaviest(rng: np.random.Generator) -> Field:
    return middling(rng, quadratic(rng), spread=rng.uniform(0.9, 1.3))


def low(rng: np.random.Generator) -> Field:
    """The barrier ends just above the threshold."""
    return middling(rng, quadratic(rng), height=THRESHOLD * rng.uniform(1.3, 2.5))


def floored(rng: np.random.Generator) -> Field:
    """A barrier inside, too, as measured on digits; outside training diverges soon."""
    return middling(rng, quadratic(rng), floor=rng.uniform(0, 0.004), diverges=rng.uniform(0.5, 2))


def steepening(rng: np.random.Generator) -> Field:
    return middling(rng, quadratic(rng), steepness=rng.uniform(2, 4), steeper=rng.uniform(-0.35, 0.35))


def of_hubs(rng: np.random.Generator, deviation: float) -> Field:
    field = middling(rng, quadratic(rng))
    return replace(field, hubs=deviation, moved_R=tuple(deviation * rng.standard_normal(HUBS)))


KINDS = {kind.__name__: kind for kind in (
    light, heavy, kink, plateau, leaving, heaviest, low, floored, steepening
)}  # fmt: skip
KINDS |= {f"hubs{round(100 * deviation)}": partial(of_hubs, deviation=deviation) for deviation in (0.03, 0.1, 0.25)}


# Strategies: each returns log lr_ratio at CYCLES, the epochs, and intervals and a word where it has them


def by_bisection(field: Field, rng: np.random.Generator) -> dict:
    lines, epochs = [], 0.0
    for cycle in CYCLES:
        low, high = LOW, HIGH
        while high - low > np.log(1.1):
            middle = (low + high) / 2
            cells = [field.measure(rng, np.exp(middle), cycle)[0] for _ in range(2)]
            epochs += 2 * cycle
            is_in = np.mean(cells) <= THRESHOLD  # NaN: out
            low, high = (middle, high) if is_in else (low, middle)
        lines.append((low + high) / 2)
    return {"line": lines, "epochs": epochs}


def by_grid(field: Field, rng: np.random.Generator) -> dict:
    """The place that splits a row with the fewest points on the wrong side."""
    rates = np.linspace(LOW, HIGH, int(np.ceil((HIGH - LOW) / np.log(1.1))) + 1)
    lines, epochs = [], 0.0
    for cycle in CYCLES:
        cells = np.array([[field.measure(rng, np.exp(rate), cycle)[0] for _ in range(2)] for rate in rates])
        is_in = cells.mean(1) <= THRESHOLD
        wrong = [(~is_in[:split]).sum() + is_in[split:].sum() for split in range(len(rates) + 1)]
        ends = np.concatenate([[LOW], (rates[1:] + rates[:-1]) / 2, [HIGH]])
        lines.append(ends[np.flatnonzero(wrong == np.min(wrong))].mean())
        epochs += 2 * cycle * len(rates)
    return {"line": lines, "epochs": epochs}


def by_search(field: Field, rng: np.random.Generator, at_once: int, budget: float | None, resolution: float) -> dict:
    search = BoundarySearch(LR, CYCLE, THRESHOLD, resolution, budget_epochs=budget)
    seconds, cells, epochs, asks = time.process_time(), 0, 0.0, 0
    on_line: Counter[int] = Counter()
    at_point: defaultdict[tuple[float, float], set[int]] = defaultdict(set)
    while points := search.ask(at_once):
        asks += 1
        for point in points:
            replicate = lines.spread(on_line, at_point[point], HUBS) if field.hubs else None
            if replicate is not None:
                on_line[replicate] += 1
                at_point[point].add(replicate)
            search.tell(*point, *field.measure(rng, *point, replicate), replicate)
            if len(at_point[point]) == HUBS:
                search.give_up(*point)
            cells, epochs = cells + 1, epochs + point[1]
    found = search.boundary(CYCLES)
    line = np.log(found["lr_ratio"].fillna(found["low"].where(found["status"] == "all_in", LR[0])))
    # Undecided rows whose middle lies beyond an end have no lr_ratio: the end that the interval reaches over.
    line = np.where(found["lr_ratio"].isna() & np.isinf(found["high"]), HIGH, line)
    return {
        "line": np.clip(line, LOW, HIGH), "epochs": epochs, "low": np.log(found["low"].clip(lower=1e-9)),
        "high": np.log(found["high"]), "status": found["status"], "why": search.stopped, "cells": cells,
        "asks": asks, "seconds": time.process_time() - seconds,
    }  # fmt: skip


def rows_of(kind: str, number: int, seed: int, arguments: argparse.Namespace) -> list[dict]:
    """One row for each strategy and cycle length."""
    draw = np.random.SeedSequence([seed, list(KINDS).index(kind), number]).spawn(4)
    field = KINDS[kind](np.random.default_rng(draw[0]))
    strategies = {
        "grid": lambda rng: by_grid(field, rng),
        "bisection": lambda rng: by_bisection(field, rng),
        "search": lambda rng: by_search(field, rng, arguments.at_once, arguments.budget, arguments.resolution),
    }
    truth, rows = field.truth(), []
    for (name, strategy), one in zip(strategies.items(), draw[1:], strict=True):
        found = strategy(np.random.default_rng(one))
        of_row = pd.DataFrame(found).assign(strategy=name, kind=kind, field=number, cycle=CYCLES, truth=truth)
        rows.append(of_row)
    return pd.concat(rows)


def kept(kind: str, number: int, arguments: argparse.Namespace) -> pd.DataFrame:
    """The rows of a field, from the file of rows if they are there."""
    file = arguments.rows
    if file and file.exists():
        there = pd.read_csv(file)
        own = there[(there["kind"] == kind) & (there["field"] == number)]
        if len(own):
            return own
    found = rows_of(kind, number, arguments.seed, arguments)
    if file:
        found.to_csv(file, mode="a", header=not file.exists(), index=False)
    return found


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    error = np.exp(np.abs(rows["line"] - rows["truth"].clip(LOW, HIGH)))
    hit = ((rows["low"] <= rows["truth"]) & (rows["truth"] <= rows["high"])).where(rows["low"].notna())
    groups = rows.assign(error=error, hit=hit.astype(float)).groupby(["kind", "strategy"], sort=False)
    table = pd.DataFrame({
        "fields": groups["field"].nunique(),
        "median": groups["error"].median(),
        "p90": groups["error"].quantile(0.9),
        "epochs": groups["epochs"].mean(),
        "coverage": groups["hit"].mean() * 100,
        "cells": groups["cells"].mean(),
        "cpu_s": groups["seconds"].mean(),
    })  # fmt: skip
    for other in ("bisection", "grid"):
        base = table["epochs"].xs(other, level="strategy")
        table[f"of_{other}"] = table["epochs"] / base.reindex(table.index.get_level_values("kind")).to_numpy()
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fields", type=int, default=60)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=4, help="points that are asked for together")
    parser.add_argument("--budget", type=float, help="sum of cycle_ratio over cells; without it, until it stops")
    parser.add_argument("--resolution", type=float, default=1.1)
    parser.add_argument(
        "--rows", type=Path, help="CSV file that gets the rows of each field; what is there is not redone"
    )
    arguments = parser.parse_args()
    for kind in arguments.kinds:
        of_kind = pd.concat([kept(kind, number, arguments) for number in range(arguments.fields)])
        print(summary(of_kind).round(3).to_string(header=kind == arguments.kinds[0]), flush=True)
        searched = of_kind[of_kind["strategy"] == "search"]
        ends = searched.groupby("why")["field"].nunique().to_dict()
        print(f"    stopped: {ends}; rows: {searched['status'].value_counts().to_dict()}", flush=True)
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, "
        f"scipy {scipy.__version__}, scikit-learn {sklearn.__version__}, pandas {pd.__version__}"
    )


if __name__ == "__main__":
    main()
