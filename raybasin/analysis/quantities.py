"""What figures and reports call a column of the cells, and the unit in which they give it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raybasin.metrics.selection import SCORED
from raybasin.store.schemas import COLUMNS

PERCENT, POINTS = "%", "percentage points"

UNITS = {"nll": "nats", "_gain": POINTS, "over_": POINTS, "accuracy": PERCENT, "in_basin": PERCENT, "error": POINTS}
"""The unit by a part of the column's name, most of them of shares of images; the first that is found counts. All other
columns are shown in the unit in which they are stored."""

WORDS = {"over_local_de": "over local_de", "in_basin": "share of replicates in basin", "nll": "NLL",
         "val_": "validation ", "l2": "L2"}  # fmt: skip
"""Parts of names that are not shown as they are; of all others `_` becomes a space."""


@dataclass(frozen=True)
class Quantity:
    """How a column is shown, in `unit`: shares of images are stored as fractions and shown in percent."""

    title: str
    unit: str
    signed: bool = False
    """A difference, for which 0 is the middle."""
    of_ensemble: bool = False
    """What Local DE is there to be compared by; its soup, for one, is no line to beat."""
    absent: str = "n/a"
    """What is shown where there is no number."""

    @property
    def factor(self) -> float:
        """From what is stored to `unit`."""
        return 100 if self.unit in (PERCENT, POINTS) else 1

    @property
    def short_unit(self) -> str:
        """As a sentence has it."""
        return "points" if self.unit == POINTS else self.unit

    @property
    def label(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def limit(self, stored: float) -> str:
        """A value that somebody has set, such as a threshold, with its unit and with no more digits than it has."""
        return f"{self.factor * stored:g} {self.short_unit}".rstrip()

    def text(self, stored: float) -> str:
        """A stored value in this unit, without the unit."""
        if np.isnan(stored):
            return self.absent
        if np.isinf(stored):
            return "∞" if stored > 0 else "−∞"
        form = ("+" if self.signed else "") + (".2f" if self.factor != 1 else ".3g")
        return f"{stored * self.factor:{form}}".replace("-", "−")

    def with_interval(self, estimate: float, low: float, high: float) -> str:
        """`+0.44 [−0.91, 1.79]`, in no finer digits than the interval allows; the estimate alone without one."""
        if not np.isfinite([estimate, low, high]).all():
            return self.text(estimate)
        half = max((high - low) / 2 * self.factor, 1e-9)
        decimals = int(np.clip(1 - np.floor(np.log10(half)), 0, 2 if self.factor != 1 else 4))
        sign = "+" if self.signed else ""
        at, *ends = (round(x * self.factor, decimals) + 0.0 for x in (estimate, low, high))  # + 0.0: no negative zero
        shown = ", ".join(f"{end:.{decimals}f}" for end in ends)
        return f"{at:{sign}.{decimals}f} [{shown}]".replace("-", "−")


def quantity(column: str) -> Quantity:
    """How to show a column of the cells, of their gains, or a score of what a cell holds."""
    scores = {of.format(name): stored for name, stored in COLUMNS["scores"].items() for of in SCORED}
    stored = COLUMNS["cells"].get(column) or scores.get(column)
    title = column
    for part, words in WORDS.items():
        title = title.replace(part, words)
    if "local_de" not in title:
        title = title.replace("_", " ")
    return Quantity(
        title,
        unit=next((unit for part, unit in UNITS.items() if part in column), stored.unit if stored else ""),
        signed=column.endswith("_gain") or "over_" in column,
        of_ensemble=column.removeprefix("val_").startswith("ensemble_"),
        absent="never" if "exit_" in column else "n/a",
    )


def counted(n: int, noun: str) -> str:
    """`1 cell`, `2 cells`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def shortened(text: str, width: int = 48) -> str:
    """The end of a text that is too long: what tells paths apart."""
    line = " ".join(str(text).split())
    return line if len(line) <= width else f"…{line[1 - width :]}"
