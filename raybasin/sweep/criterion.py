"""What decides whether a point is in the basin: the one place that says which barrier does, and which columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

By = Literal["error", "nll"]


@dataclass(frozen=True)
class Criterion:
    """`basin.threshold` and `basin.by`: the highest barrier in the basin, an error rate or nats, and what it is of.

    Whatever decides, draws or words the basin asks for its columns here; their units are in `store.schemas`.
    """

    threshold: float
    by: By = "error"

    @property
    def words(self) -> str:
        return {"error": "error barrier", "nll": "NLL barrier"}[self.by]

    @property
    def barrier(self) -> str:
        """Of `cells`: what decides. Of `Results.barriers` its mean over replicates."""
        return f"barrier_{self.by}"

    @property
    def barrier_se(self) -> str:
        """Of `cells`: its standard error over images."""
        return f"barrier_{self.by}_se"

    @property
    def excess(self) -> str:
        """Of `paths`: the height above the line between the ends; `<this>_se` its standard error, `image_<this>` what
        each image adds to it."""
        return f"{self.by}_excess"

    @property
    def checkpoint_barrier(self) -> str:
        """Of `cells`: the barrier that says whether the hub is in the basin of its checkpoint."""
        return f"checkpoint_barrier_{self.by}"

    @property
    def image_step(self) -> float:
        """What an image adds to it by changing, where most do not; 0: each image adds something of its own."""
        return {"error": 1.0, "nll": 0.0}[self.by]

    @property
    def highest(self) -> float:
        """What no barrier is above."""
        return {"error": 1.0, "nll": math.inf}[self.by]

    def deciding(self, row: Mapping[Any, Any]) -> tuple[float, float | None]:
        """The barrier of a row of `cells`, NaN where the loss is infinite on a path; and its standard error over
        images, None where that is not known: of one image, or in nats of a cell from before it was measured."""
        barrier, nll, se = row[self.barrier], row["barrier_nll"], row[self.barrier_se]
        is_known = barrier is not None and nll is not None and math.isfinite(nll)
        return barrier if is_known else math.nan, None if se is None or math.isnan(se) else se

    def holds(self, barrier_error: float, barrier_nll: float) -> bool:
        """Whether what has these barriers, a difference of error rates and nats, is in the basin. Where the loss is
        infinite or no number somewhere on the way it is out, whatever the error says."""
        deciding = {"error": barrier_error, "nll": barrier_nll}[self.by]
        return deciding <= self.threshold and math.isfinite(barrier_nll)
