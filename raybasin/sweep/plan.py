"""From a sweep and the facts of its inputs to the work: networks, paths between them and cells, each with its id."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from raybasin.errors import UserError
from raybasin.sweep import ids, methods, points, schedules
from raybasin.sweep.facts import CheckpointFacts, Facts
from raybasin.sweep.methods import Method, Role
from raybasin.sweep.points import NONE, Chosen, MapPoint
from raybasin.sweep.schedules import Shape
from raybasin.sweep.settings import Settings
from raybasin.sweep.specs import SweepSpec

MAX_PARTS = 1_000_000
"""Networks and paths in all cells of a sweep; it is planned in memory, and each is a file."""

HUB = "hub"
"""What stands for the method of hubs, which belong to all."""


@dataclass(frozen=True)
class Point:
    """Where on the map of one checkpoint something lies: what every row of every table says of it."""

    method: str
    checkpoint: CheckpointFacts
    replicate: int
    lr_ratio: float = 1.0
    cycle_ratio: float = 1.0

    @property
    def on_map(self) -> MapPoint:
        """The point that it is a replicate of."""
        return MapPoint(self.method, self.checkpoint.name, self.lr_ratio, self.cycle_ratio)


@dataclass(frozen=True)
class Member:
    """One network to train, or to draw: the unit of durable work. It says all that its training needs, so that a
    network of two methods is one; its point is of the first of them, as methods are shown."""

    member_id: str
    point: Point
    index: int
    """Its seed follows from it, the replicate and the sweep's; in an ensemble it is the member's place."""
    parent_id: str | None
    max_lr: float
    cycle_steps: int
    cycle_epochs: float
    seed: int
    kind: Role
    shape: Shape
    callback: str
    """What is done at each step, as `module:function` (`Method.callback`); empty where nothing is."""
    options: tuple[tuple[str, float | int], ...]
    """What the method has to say of it beside rate and length."""

    @property
    def option(self) -> dict[str, float | int]:
        return dict(self.options)

    @property
    def member_index(self) -> int | None:
        """Place in the ensemble; None for a tail, which is no member itself."""
        return None if self.kind == "tail" else self.index


@dataclass(frozen=True)
class Path:
    path_id: str
    kind: str
    """`hub-member` or `member-member`."""
    start_id: str
    end_id: str


@dataclass(frozen=True)
class Trace:
    """Paths from the hub, and from the checkpoint, to a run at several of its steps; to the hub itself, at its end."""

    trace_id: str
    member_id: str
    steps: tuple[int, ...]
    """After which steps of its training the run is looked at."""
    steps_before: int
    """Steps from the hub to the start of the run: those of the cycles between them in a chain."""


@dataclass(frozen=True)
class Cell:
    """One point of the map: an ensemble, its soups and the paths between its members."""

    cell_id: str
    point: Point
    variant: str
    """The method's own keys where they are not at their default, as `key=value`: cells that differ in it are other
    points."""
    max_lr: float
    cycle_epochs: float
    member_ids: tuple[str, ...]
    """The hub first."""
    trained_ids: tuple[str, ...]
    """All runs that the members come from, each once: what the cell has cost."""
    paths: tuple[Path, ...]
    traces: tuple[Trace, ...] = ()

    @property
    def label(self) -> str:
        point, method = self.point, methods.label(self.point.method, self.variant)
        return f"{method} lr_ratio={point.lr_ratio:g} cycle_ratio={point.cycle_ratio:g} replicate={point.replicate}"


@dataclass(frozen=True)
class Plan(Settings):
    """All networks and cells of a sweep. It grows with them; workers are given its `settings`."""

    members: Mapping[str, Member]
    """By member_id."""
    cells: tuple[Cell, ...]

    def __repr__(self) -> str:
        return f"Plan: sweep {self.spec.name}, {len(self.cells)} cells, {len(self.members)} networks"

    @property
    def settings(self) -> Settings:
        return Settings(self.spec, self.facts)

    @cached_property
    def cell(self) -> dict[str, Cell]:
        """By cell_id."""
        return {cell.cell_id: cell for cell in self.cells}

    @cached_property
    def traced(self) -> dict[str, Trace]:
        """The trace of each run that has one, by member_id."""
        return {trace.member_id: trace for cell in self.cells for trace in cell.traces}

    def train_epochs(self, cell: Cell) -> float:
        """What `cell` costs, the hub included and pre-training not."""
        return sum(self.members[member_id].cycle_epochs for member_id in cell.trained_ids)


def shared_columns(settings: Settings, point: Point) -> dict[str, Any]:
    """The columns that all tables have, in the rows of what lies at `point`."""
    return {
        "sweep": settings.spec.name, "settings_id": settings.settings_id, "checkpoint": point.checkpoint.name,
        "method": point.method, "replicate": point.replicate, "lr_ratio": point.lr_ratio,
        "cycle_ratio": point.cycle_ratio,
    }  # fmt: skip


def soup_ids(spec: SweepSpec, cell: Cell) -> list[str]:
    """The soups of a cell: the uniform ones of its first 2, 3, ... members, and the greedy one."""
    uniform = ids.uniform_soup_ids(cell.member_ids) if "uniform" in spec.soups else ()
    return [*uniform, *([ids.soup_id("greedy", cell.member_ids)] if "greedy" in spec.soups else [])]


def n_soups(spec: SweepSpec, cell: Cell) -> int:
    """How many `soup_ids` there are."""
    return (len(cell.member_ids) - 1 if "uniform" in spec.soups else 0) + ("greedy" in spec.soups)


# Making one


def make(spec: SweepSpec, facts: Facts, chosen: Chosen = NONE) -> Plan:
    """The whole of the work of a sweep; where its points follow from results, of the points `chosen` so far. Raises
    UserError for what cannot be trained: cycles of no length, or of equal length or rate, batches that cannot be mixed,
    too few checkpoints."""
    settings = Settings(spec, facts)
    _check(settings)
    return of_points(settings, points.known(settings, chosen), chosen)


def of_points(settings: Settings, wanted: Iterable[MapPoint], chosen: Chosen = NONE) -> Plan:
    """The work of these points alone, in all replicates, or as many as were `chosen`."""
    spec, facts, planning = settings.spec, settings.facts, _Planning(settings)
    replicates = points.replicates(settings, wanted, chosen)
    grouped = points.by_method(replicates)
    # In the order of the sweep file, but made in that in which methods are shown: in whatever order a file names them,
    # a network that two have in common is of the same one.
    shown = {name: spec.methods[name] for name in methods.METHODS if name in spec.methods}
    variants = {name: methods.variant(method) for name, method in shown.items()}
    cells: list[Cell] = []
    for checkpoint, replicate in itertools.product(facts.checkpoints, range(spec.replicates)):
        own = {
            name: [at for at in grouped.get((checkpoint.name, name), ()) if replicate in replicates[at]]
            for name in shown
        }
        if not any(own.values()):
            continue
        hub = planning.hub(checkpoint, replicate)
        made = {
            name: [
                planning.cell(
                    Point(name, checkpoint, replicate, at.lr_ratio, at.cycle_ratio), method, variants[name], hub
                )
                for at in own[name]
            ]
            for name, method in shown.items()
        }
        cells += [cell for name in spec.methods for cell in made[name]]
    return Plan(spec, facts, planning.members, tuple(cells))


@dataclass(frozen=True)
class _Cycle:
    """What the runs of one role have in common in a cell."""

    kind: Role
    shape: Shape
    max_lr: float
    steps: int
    callback: str
    options: tuple[tuple[str, float | int], ...]
    more: tuple[Any, ...]
    """What ids hash beside: nothing for the ordinary cycle."""


@dataclass
class _Planning:
    """Cells, one after another. What one trains is found by those after it."""

    settings: Settings
    members: dict[str, Member] = field(default_factory=dict)

    def hub(self, checkpoint: CheckpointFacts, replicate: int) -> Member:
        point = Point(HUB, checkpoint, replicate)
        return self._member(self._cycle(point, methods.METHODS["local_de"]()), point, 0, None)

    def cell(self, point: Point, method: Method, variant: str, hub: Member) -> Cell:
        settings, spec = self.settings, self.settings.spec
        runs = self._runs(point, method, hub)
        hub_id, *others = member_ids = tuple(run.member_id for run in runs if run.kind != "tail")
        label = methods.label(point.method, variant)
        between = itertools.combinations(others, 2) if spec.basin.pairs == "all" else itertools.pairwise(others)
        ends = [("hub-member", hub_id, other) for other in others] + [("member-member", *pair) for pair in between]
        return Cell(
            # Cells of two methods, or of two variants of one, are two points, even if their members are the same.
            cell_id=ids.digest("cell", label, member_ids, settings.measuring_id),
            point=point,
            variant=variant,
            max_lr=settings.max_lr(point.lr_ratio),
            cycle_epochs=settings.cycle_steps(point.cycle_ratio) / settings.steps_per_epoch,
            member_ids=member_ids,
            trained_ids=tuple(run.member_id for run in runs),
            paths=tuple(Path(settings.path_id(start, end), kind, start, end) for kind, start, end in ends),
            traces=self._traces(*runs) if spec.basin.trace else (),
        )

    def _runs(self, point: Point, method: Method, hub: Member) -> list[Member]:
        """The members of a cell and the tail that they are drawn from, if they are, each after the one that it starts
        from; the hub first."""
        if method.samples:
            tail = self._member(self._cycle(point, method, "tail"), point, 1, hub)
            draw, draws = self._cycle(point, method, "sample"), range(1, method.n_members)
            return [hub, tail, *(self._member(draw, point, index, tail) for index in draws)]
        runs, cycle = [hub], self._cycle(point, method)
        every = self.settings.facts.checkpoints
        place = every.index(point.checkpoint)
        for index in range(1, method.n_members):
            parent, start = method.parent(index), point
            if method.own_checkpoints:  # the one that follows so many places later
                start = replace(point, checkpoint=every[(place + index) % len(every)])
            runs.append(self._member(cycle, start, index, None if parent is None else runs[parent]))
        return runs

    def _cycle(self, point: Point, method: Method, role: Role = "cycle") -> _Cycle:
        settings = self.settings
        options = method.options(role, settings.facts.data.n_train, settings.steps_per_epoch)
        callback = "" if role == "sample" else method.callback
        more: dict[str, Any] = {"callback": callback.rpartition(":")[2], **options} if callback or options else {}
        if role != "cycle":  # their batch-norm statistics are estimated when they are made, and are weights of theirs
            more |= {"role": role, "bn_images": settings.bn_images}
        steps = 0 if role == "sample" else settings.cycle_steps(point.cycle_ratio)
        hashed = (more,) if more else ()
        max_lr = settings.max_lr(point.lr_ratio)
        return _Cycle(role, method.shape, max_lr, steps, callback, tuple(options.items()), hashed)

    def _member(self, cycle: _Cycle, point: Point, index: int, parent: Member | None) -> Member:
        settings, seeded = self.settings, (point.replicate, index)
        start = parent.member_id if parent else point.checkpoint.key
        hashed = (settings.training_id, start, cycle.shape, cycle.steps, cycle.max_lr, *seeded, *cycle.more)
        member_id = ids.digest("member", *hashed)
        if member_id not in self.members:
            steps = cycle.steps + (0 if parent else settings.head_steps)
            self.members[member_id] = Member(
                member_id=member_id,
                point=point,
                index=index,
                parent_id=parent.member_id if parent else None,
                max_lr=cycle.max_lr,
                cycle_steps=steps,
                cycle_epochs=steps / settings.steps_per_epoch,
                seed=ids.random_seed(settings.spec.seed, *seeded),
                kind=cycle.kind,
                shape=cycle.shape,
                callback=cycle.callback,
                options=cycle.options,
            )
        return self.members[member_id]

    def _traces(self, hub: Member, *others: Member) -> tuple[Trace, ...]:
        """Of every run that descends from the hub, and of the hub itself. What starts from the checkpoint has a head of
        its own, and is not traced."""
        settings = self.settings
        by, times = settings.spec.recipe.schedule_by, settings.spec.basin.trace_times
        traces = [Trace(settings.trace_id(hub.member_id, hub.member_id), hub.member_id, (hub.cycle_steps,), 0)]
        before = {hub.member_id: 0}
        for run in others:
            if run.parent_id is None or run.kind == "sample":
                continue
            between = 0 if run.parent_id == hub.member_id else self.members[run.parent_id].cycle_steps
            before[run.member_id] = before[run.parent_id] + between
            low_ratio = run.option.get("low_ratio", 1.0)
            steps = schedules.trace_steps(run.cycle_steps, settings.steps_per_epoch, times, by, run.shape, low_ratio)
            trace_id = settings.trace_id(hub.member_id, run.member_id)
            traces.append(Trace(trace_id, run.member_id, steps, before[run.member_id]))
        return tuple(traces) if len(traces) > 1 else ()


# What cannot be trained


def _check(settings: Settings) -> None:
    spec, n_train, n_checkpoints = settings.spec, settings.facts.data.n_train, len(settings.facts.checkpoints)
    parts, most = 0, 0
    for method in spec.methods.values():
        n = method.n_members
        paths = n * (n - 1) // 2 if spec.basin.pairs == "all" else 2 * n - 3
        most = max(most, n + paths)
        if spec.search.kind == "grid" or not method.explores:
            parts += n_checkpoints * len(method.lr_ratio) * len(method.cycle_ratio) * (n + paths)
    parts = spec.replicates * (parts + (spec.search.points or 0) * most)
    if parts > MAX_PARTS:  # a slip of the pen (replicates: 10000000), before its cells fill the memory
        raise UserError(
            f"the sweep has {parts} networks and paths in its cells, and {MAX_PARTS} are the most; take fewer "
            "replicates, ratios, points, checkpoints or n_members, or split it into several sweep files"
        )
    recipe = spec.recipe
    sizes = schedules.batch_sizes(n_train, recipe.batch_size, recipe.drop_last)
    odd = [size for size in sizes if size % 2] if recipe.mixes else []
    if odd:  # timm mixes an image with its opposite in the batch
        raise UserError(
            f"recipe.{'mixup' if recipe.mixup else 'cutmix'}: needs batches of an even number of images, and one "
            f"has {odd[0]} ({n_train} images in batches of {recipe.batch_size}); take an even batch_size and "
            "drop_last: true"
        )
    for name, method in spec.methods.items():
        if method.own_checkpoints and method.n_members > n_checkpoints:
            raise UserError(
                f"methods.{name}.n_members: {method.n_members} members need as many independent checkpoints, and "
                f"model.pretrained has {n_checkpoints}; add some, or take a smaller n_members"
            )
        _check_ratios(name, method, settings)
        if method.explores and spec.search.cycle_ratio:
            shortest = points.snapped(settings, MapPoint(name, "", cycle_ratio=spec.search.cycle_ratio[0]))
            try:
                method.check_cycle(settings.cycle_steps(shortest.cycle_ratio), settings.steps_per_epoch)
            except ValueError as error:
                raise UserError(f"search.cycle_ratio: {spec.search.cycle_ratio[0]:g} for {name}: {error}") from error


def _check_ratios(name: str, method: Method, settings: Settings) -> None:
    steps_per_epoch = settings.steps_per_epoch
    lengths: dict[int, float] = {}
    for ratio in method.cycle_ratio:
        steps = settings.cycle_steps(ratio)
        epochs = f"{settings.spec.recipe.epochs} epochs of {steps_per_epoch} steps"
        where = f"methods.{name}.cycle_ratio: {ratio:g} of {epochs}"
        if steps < 1:
            raise UserError(f"{where} is a cycle of 0 steps; take a larger ratio or more recipe.epochs")
        if steps in lengths:
            raise UserError(f"{where} is {steps} steps, as is {lengths[steps]:g}; leave one of them out")
        lengths[steps] = ratio
        try:
            method.check_cycle(steps, steps_per_epoch)
        except ValueError as error:
            raise UserError(f"methods.{name}.{error}") from error
    rates: dict[float, float] = {}
    for ratio in method.lr_ratio:
        same = rates.setdefault(settings.max_lr(ratio), ratio)
        if same != ratio:
            raise UserError(f"methods.{name}.lr_ratio: {ratio!r} and {same!r} are the same rate; leave one of them out")
