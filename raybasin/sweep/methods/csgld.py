from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from raybasin.sweep.fields import Float, Positive
from raybasin.sweep.methods.method import Method, Role

if TYPE_CHECKING:
    from raybasin.sweep.specs import Recipe


class CyclicalSGLD(Method):
    """A chain whose cycles end with Langevin noise, added to the gradients."""

    source: ClassVar = "Zhang et al. (2020), Cyclical Stochastic Gradient MCMC, arXiv:1902.03932"
    place: ClassVar = 6
    style: ClassVar = ("<", "#B09500")
    callback: ClassVar = "raybasin.training.callbacks:langevin"

    noise_share: Annotated[Float, Field(gt=0, le=1)] = 0.1
    """Share of a cycle, its last part, that has noise."""
    temperature: Positive | None = None
    """Of the noise. None: 1 over the number of training images, as in the authors' code."""

    def parent(self, index: int) -> int | None:
        return index - 1

    def options(self, role: Role, n_train: int, steps_per_epoch: int) -> dict[str, float | int]:
        return {"noise_share": self.noise_share, "temperature": self.temperature or 1 / n_train}

    def check_recipe(self, recipe: Recipe) -> None:
        if recipe.optimizer != "sgd":
            raise ValueError("needs recipe.optimizer sgd, for whose steps its noise is made")
        for key in ("optimizer_args", "layer_decay", "ema_decay"):
            if getattr(recipe, key):
                why = "an average is no sample" if key == "ema_decay" else "its noise is made for plain SGD at one rate"
                raise ValueError(f"cannot be run with recipe.{key}; {why}")
