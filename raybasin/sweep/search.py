"""How the points of the map are chosen: what a sweep file says under `search`.

`grid` takes all ratios that the methods name, and `random` draws from them or from ranges: what they come to is known
before anything is trained. A `searcher` of Ray Tune chooses each point by what the ones before it have come to, and
`boundary` and `best` each cell, so that the line on which exploration leaves the basin, or the best point, is known
soon.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from raybasin.sweep.fields import Arguments, ClassName, Count, Float, PathText, Positive, Rate, Spec


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise ValueError(f"must be [lowest, highest], not [{value[0]:g}, {value[1]:g}]")
    return value


def _not_descending(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"must be [shortest, longest], not [{value[0]:g}, {value[1]:g}]")
    return value


Range = Annotated[tuple[Rate, Rate], AfterValidator(_ascending)]
Lengths = Annotated[tuple[Rate, Rate], AfterValidator(_not_descending)]
"""The same number twice: one length."""


BY_CELL = ("boundary", "best")
"""Kinds of search that choose each cell by itself."""


class SchedulerSpec(Spec):
    """A scheduler of Ray Tune, which ends points early."""

    scheduler: ClassName
    args: Arguments = {}


class CallbackSpec(Spec):
    """A callback of Ray Tune, which is told of all that points report."""

    callback: ClassName
    args: Arguments = {}


class Search(Spec):
    """Which points are measured, in which order, and who is told of it. It changes no result, so it is in no id."""

    kind: Literal["grid", "random", "searcher", "boundary", "best"] = "grid"
    searcher: ClassName | None = None
    args: Arguments = {}
    metric: str | None = None
    mode: Literal["min", "max"] | None = None
    points: Count | None = None
    lr_ratio: Range | None = None
    cycle_ratio: Lengths | None = None
    resolution: Annotated[Float, Field(ge=1.05, le=4)] = 1.1
    of: Literal["soup", "ensemble"] | None = None
    tolerance: Annotated[Float, Field(gt=0, lt=1)] = 0.002
    budget_epochs: Positive | None = None
    scheduler: SchedulerSpec | None = None
    callbacks: tuple[CallbackSpec, ...] = ()
    logs: PathText | None = None

    @property
    def by_results(self) -> bool:
        """Whether what is measured depends on what other points have come to."""
        return bool(self.searcher or self.scheduler or self.by_cell)

    @property
    def by_cell(self) -> bool:
        """Whether cells are chosen one after another, with as many replicates of a point as tell most."""
        return self.kind in BY_CELL

    @property
    def plugs(self) -> bool:
        """Whether it takes anything of Ray Tune's."""
        return bool(self.searcher or self.scheduler or self.callbacks)

    @model_serializer(mode="wrap")
    def _short_form(self, full: SerializerFunctionWrapHandler) -> Any:
        return "grid" if self == Search() else full(self)

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, tree: Any) -> Any:
        if isinstance(tree, str):
            return {"kind": tree}
        if isinstance(tree, Mapping) and tree.get("searcher") is not None and tree.get("kind") is None:
            return {**tree, "kind": "searcher"}
        return tree

    @model_validator(mode="after")
    def _draws_from_a_range(self) -> Search:
        if not self.by_cell and self.cycle_ratio and self.cycle_ratio[0] == self.cycle_ratio[1]:
            raise ValueError(f"cycle_ratio: kind {self.kind} draws from a range; list one length with its method")
        return self

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> Search:
        if self.kind == "grid":
            self.refuse("points", "lr_ratio", "cycle_ratio", because="with kind grid: all ratios of methods are taken")
        if self.kind != "searcher":
            self.refuse("searcher", "args", because=f"with kind {self.kind}; leave it out")
        if self.by_cell:
            self.refuse("scheduler", because=f"with kind {self.kind}, which weighs each replicate by itself")
        else:
            self.refuse("budget_epochs", because=f"with kind {self.kind}; boundary and best take it")
        if self.kind != "boundary":
            self.refuse("resolution", because=f"with kind {self.kind}; boundary takes it")
        if self.kind != "best":
            self.refuse("of", "tolerance", because=f"with kind {self.kind}; best takes it")
        needed = {
            "grid": (),
            "random": ("points",),
            "boundary": ("lr_ratio", "cycle_ratio"),
            "best": ("of", "lr_ratio", "cycle_ratio"),
            "searcher": ("searcher", "metric", "mode", "points"),
        }[self.kind] + (("metric", "mode") if self.scheduler else ())
        for key in needed:
            if getattr(self, key) is None:
                raise ValueError(f"{key}: is missing; {'a scheduler' if key in 'metric mode' else self.kind} needs it")
        if "metric" not in needed:
            self.refuse("metric", "mode", because="without a searcher or a scheduler")
        if not self.callbacks:
            self.refuse("logs", because="without callbacks, which write there")
        return self
