from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from raybasin.sweep.fields import Count, Int, Positive
from raybasin.sweep.methods.method import Method, Role

if TYPE_CHECKING:
    from raybasin.sweep.specs import Recipe


class SWAG(Method):
    """SWA-Gaussian: moments of the weights along a tail at a constant rate, then samples from their Gaussian."""

    source: ClassVar = "Maddox et al. (2019), A Simple Baseline for Bayesian Uncertainty, arXiv:1902.02476"
    place: ClassVar = 7
    style: ClassVar = ("*", "#882255")
    samples: ClassVar = True
    shape: ClassVar = "constant"
    callback: ClassVar = "raybasin.training.callbacks:moment_collector"

    rank: Annotated[Int, Field(ge=2, le=1000)] = 20
    """How many deviations from the mean are kept."""
    scale: Positive = 0.5
    """Of the covariance of the draws."""
    collect_steps: Count | None = None
    """Steps from one collection of weights to the next. None: those of an epoch."""

    def parent(self, index: int) -> int | None:
        return 0

    def options(self, role: Role, n_train: int, steps_per_epoch: int) -> dict[str, float | int]:
        """The tail knows nothing of the draws, and their lineage says how it was collected."""
        if role == "sample":
            return {"scale": self.scale}
        return {"collect_steps": self.collect_steps or steps_per_epoch, "rank": self.rank}

    def check_recipe(self, recipe: Recipe) -> None:
        if recipe.ema_decay:
            raise ValueError("cannot be run with recipe.ema_decay; it collects the moments of the weights themselves")

    def check_cycle(self, steps: int, steps_per_epoch: int) -> None:
        every = self.collect_steps or steps_per_epoch
        if steps <= every:
            raise ValueError(
                f"collect_steps: weights are collected every {every} steps (an epoch, unless it is given), once only "
                f"in a tail of {steps}; a Gaussian needs two. Give fewer, or a larger cycle_ratio"
            )
