"""What a method is: who descends from whom, how long and at which rate, and what is done at a step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from raybasin.sweep.fields import Int, Rate, Several, Spec
from raybasin.sweep.schedules import Shape

if TYPE_CHECKING:
    from raybasin.sweep.specs import Recipe

MAX_MEMBERS = 1000
"""Of one ensemble."""

Role = Literal["cycle", "tail", "sample"]
"""`cycle`, an ordinary run; `tail`, a run along which moments of the weights are collected; `sample`, a network drawn
from these, without training."""


class Method(Spec):
    """An exploration method, and what a sweep file says of it.

    Each is a subclass in a file of its own beside this one, called like the method; its fields are the keys of its own
    that a sweep file may set, all of them numbers. Members are counted from 0, the hub, which every method shares: the
    ordinary fine-tuning from the checkpoint.
    """

    n_members: Annotated[Int, Field(ge=2, le=MAX_MEMBERS)] = 5
    lr_ratio: Several[Rate] = (1.0,)
    cycle_ratio: Several[Rate] = (1.0,)

    source: ClassVar[str] = ""
    """Where the method is described."""
    place: ClassVar[int] = 100
    """Where it comes in tables and legends."""
    style: ClassVar[tuple[str, str]] = ("X", "#8A8A8A")
    """Marker and colour in figures, as matplotlib names them."""
    explores: ClassVar[bool] = True
    """Takes `lr_ratio` and `cycle_ratio`, and so has a map; members of the others are ordinary fine-tunings."""
    own_checkpoints: ClassVar[bool] = False
    """Each member starts from a checkpoint of its own."""
    samples: ClassVar[bool] = False
    """There is one run from the hub, the tail, and members are drawn from the moments of its weights."""
    shape: ClassVar[Shape] = "cosine"
    """Of the learning rate along a cycle."""
    callback: ClassVar[str] = ""
    """What is done at each step beside the step itself, as `module:function`. The function is given the `Member` and
    the sweep's `Settings` and returns a `training.callbacks.StepCallback`; its name, not its module, is part of ids."""
    of_lineage: ClassVar[tuple[str, ...]] = ()
    """Keys that say only who descends from whom: they leave a member that has the same parent as it is."""

    @model_validator(mode="after")
    def _ordinary_fine_tunings_have_no_ratios(self) -> Method:
        if not self.explores and (self.lr_ratio, self.cycle_ratio) != ((1.0,), (1.0,)):
            raise ValueError("takes no lr_ratio or cycle_ratio; its members are ordinary fine-tunings")
        return self

    def parent(self, index: int) -> int | None:
        """The index of the member that member `index`, 1 or more, starts from; None for a checkpoint."""
        raise NotImplementedError

    def options(self, role: Role, n_train: int, steps_per_epoch: int) -> dict[str, float | int]:
        """What its own keys come to for a member of that role: all that changes weights beside rate and length."""
        own = self.model_dump(exclude={*Method.model_fields, *self.of_lineage}, exclude_none=True)
        return dict(sorted(own.items()))

    def check_recipe(self, recipe: Recipe) -> None:
        """Raises ValueError where the method cannot be run with `recipe`."""

    def check_cycle(self, steps: int, steps_per_epoch: int) -> None:
        """Raises ValueError, which begins with the key, where a cycle of so many steps is of no use."""
