"""Axes for values that span decades on both sides of 0, and the ticks of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LEAST_GAP = 0.085
"""Between two ticks, as a share of the axis: their labels would touch otherwise."""


@dataclass(frozen=True)
class SymmetricLog:
    """Linear from -`linear_up_to` to `linear_up_to` and logarithmic beyond, as matplotlib's `symlog`."""

    linear_up_to: float = 1.0

    LINEAR_DECADES = 0.6
    """Length of the linear half, in decades."""

    def positions(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Where values lie along the axis, in decades from 0."""
        share = np.asarray(values, dtype=np.float64) / self.linear_up_to
        half = self.LINEAR_DECADES / 0.9  # matplotlib takes the first decade beyond for 0.9 of one
        beyond = half + np.log10(np.maximum(np.abs(share), 1))
        return np.where(np.abs(share) <= 1, half * share, np.sign(share) * beyond)

    def ticks(self, low: float, high: float) -> list[float]:
        """Round numbers on an axis from `low` to `high`, ascending and so far apart that their labels do not touch: 0,
        powers of ten, and between them multiples by 2 and 5."""
        if low == high:
            return [low]
        ends = self.positions([low, high])
        largest = np.floor(np.log10(max(abs(low), abs(high))))
        smallest = min(np.floor(np.log10(self.linear_up_to)), largest) - 1
        powers = np.arange(largest, smallest - 1, -1)
        sizes = [float(f"{digit}e{power:.0f}") for digit in (1, 5, 2) for power in powers]
        chosen: list[float] = []
        for tick in (0.0, *(sign * size for size in sizes for sign in (1, -1))):
            apart = np.abs(self.positions(tick) - self.positions(chosen)) if chosen else np.array([np.inf])
            if low <= tick <= high and (apart >= LEAST_GAP * (ends[1] - ends[0])).all():
                chosen.append(tick)
        return sorted(chosen)

    @property
    def for_matplotlib(self) -> dict[str, Any]:
        """What `set_xscale("symlog", ...)` takes."""
        return {"linthresh": self.linear_up_to, "linscale": self.LINEAR_DECADES}


def tick_labels(ticks: list[float]) -> list[str]:
    """As people write them, with a true minus."""
    return [f"{tick:g}".replace("-", "−") for tick in ticks]
