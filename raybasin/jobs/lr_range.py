"""Which learning rate suits a fine-tuning: a few short ones at rates far apart, on the sweep's own data."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raybasin.errors import UserError, one_line
from raybasin.jobs import advice, local
from raybasin.store import tables
from raybasin.store.folders import Folder
from raybasin.sweep import specs
from raybasin.sweep.specs import SweepSpec

FACTORS = (0.1, 10**-0.5, 1.0, 10**0.5, 10.0)
"""Of the sweep's own `recipe.lr`: half a power of ten apart."""
STEPS = 100
"""Of each fine-tuning, about."""
NETWORKS = 2
"""At each rate: how far they lie apart says what a difference is worth."""


@dataclass(frozen=True)
class Tried:
    """Fine-tunings at one rate: means over networks, NaN where one diverged, and how far the networks' NLLs lie
    apart."""

    lr: float
    val_accuracy: float
    val_nll: float
    nll_range: float


def rates(lr: float) -> list[float]:
    return [float(f"{lr * factor:.2g}") for factor in FACTORS]


def measure(
    spec: SweepSpec, lrs: Sequence[float], device: str = "cpu", tell: Callable[[str], None] = lambda line: None
) -> list[Tried]:
    """Fine-tunes `NETWORKS` networks from the sweep's first checkpoint at each rate, for as many epochs as `STEPS`
    steps take, and the sweep has at most, in a folder that is gone afterwards. Raises UserError."""
    found, epochs = [], _epochs(spec)
    for lr in lrs:
        with tempfile.TemporaryDirectory(prefix="raybasin-lr-") as folder:
            report = local.run(short(spec, lr, epochs), folder, device=device)
            reasons = [failure.reason for failure in report.failures]
            if any(advice.DIVERGED in reason for reason in reasons):
                found.append(Tried(lr, math.nan, math.nan, math.nan))
            elif not report.complete:
                reason = next(iter(reasons), report.ended or report.interrupted)
                raise UserError(f"recipe.lr {lr:g}: {one_line(reason, 300)}")
            else:
                found.append(_tried(Folder(Path(folder)), lr))
        tell(f"lr {lr:g}: validation NLL {found[-1].val_nll:.3f}, accuracy {found[-1].val_accuracy:.1%}")
    return found


def short(spec: SweepSpec, lr: float, epochs: int) -> SweepSpec:
    """The sweep's fine-tuning alone, at another rate and of fewer epochs, from its first checkpoint."""
    tree = specs.dump(spec)
    recipe = tree["recipe"]
    recipe |= {"lr": lr, "epochs": epochs, "warmup_lr": min(recipe["warmup_lr"], lr)}
    recipe["head_epochs"] = min(recipe["head_epochs"], epochs)
    tree["model"]["pretrained"] = tree["model"]["pretrained"][:1]
    only = {
        "methods": {"local_de": {"n_members": NETWORKS}},
        "replicates": 1,
        "search": "grid",
        "shifts": {},
        "soups": [],
    }
    return specs.parse({**tree, **only, "basin": {"points": 3}})


def _epochs(spec: SweepSpec) -> int:
    from raybasin.jobs import prepare

    return min(spec.recipe.epochs, math.ceil(STEPS / prepare.prepare(spec).plan.steps_per_epoch))


def _tried(folder: Folder, lr: float) -> Tried:
    rows = [row for row in tables.rows(folder, "scores") if (row["kind"], row["split"]) == ("member", "val")]
    nll, accuracy = (np.array([row[name] for row in rows if row["bn"] == "own"], float) for name in ("nll", "accuracy"))
    return Tried(lr, float(accuracy.mean()), float(nll.mean()), float(np.ptp(nll)))


def best(tried: Sequence[Tried]) -> Tried:
    """The one with the lowest NLL on validation. Raises UserError where all diverged."""
    sound = [one for one in tried if math.isfinite(one.val_nll)]
    if not sound:
        raise UserError("recipe.lr: training diverges at every rate that was tried; try lower ones with --lr")
    return min(sound, key=lambda one: one.val_nll)
