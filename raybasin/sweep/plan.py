"""From a sweep and the facts of its inputs to the work: checkpoints, members, cells, jobs, each with a durable id.

An id is a hash of everything that changes the result it names, and of nothing else: a larger ensemble, one more ratio
or another threshold leaves the ids of finished work as they are, and so trains nothing again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from raybasin.errors import UserError
from raybasin.sweep import methods, schedules, specs
from raybasin.sweep.facts import CheckpointFacts, DataFacts, Facts, Preprocess, ShiftFacts
from raybasin.sweep.specs import (
    Architecture,
    MethodSpec,
    Pretrain,
    PretrainEntry,
    Recipe,
    SweepSpec,
    digest,
    identity,
)

MAX_PARTS = 1_000_000
"""Networks and paths in all cells of a sweep; it is planned in memory, and each is a file."""


@dataclass(frozen=True)
class Member:
    """One network to train, or to draw: the unit of durable work."""

    member_id: str
    method: str
    checkpoint: CheckpointFacts
    replicate: int
    member_index: int | None
    """Place in the ensemble; None for a run that is no member itself."""
    parent_id: str | None
    lr_ratio: float
    cycle_ratio: float
    max_lr: float
    cycle_steps: int
    cycle_epochs: float
    seed: int
    kind: str = "cycle"
    """`cycle`; `tail`, a run whose moments are collected; `sample`, a network drawn from these, without training."""
    options: tuple[tuple[str, float | int], ...] = ()
    """What the method has to say of it beside rate and length."""
    run_id: str = ""
    """Equal for members that are trained alike, and so end at the same weights, whatever method they belong to: the
    first cycle of a chain and the first branch of a star, for instance."""

    @property
    def option(self) -> dict[str, float | int]:
        return dict(self.options)


@dataclass(frozen=True)
class Path:
    path_id: str
    kind: str
    start_id: str
    end_id: str


@dataclass(frozen=True)
class Trace:
    """Paths from the hub, and from the checkpoint, to a run at several of its steps; to the hub itself, at its end."""

    trace_id: str
    member_id: str
    steps_before: int
    """Steps from the hub to the start of the run: those of the cycles between them in a chain."""


@dataclass(frozen=True)
class Cell:
    """One point of the map."""

    cell_id: str
    method: str
    checkpoint: CheckpointFacts
    replicate: int
    lr_ratio: float
    cycle_ratio: float
    max_lr: float
    cycle_epochs: float
    member_ids: tuple[str, ...]
    trained_ids: tuple[str, ...]
    """All runs that the members come from, each once: what the cell has cost."""
    paths: tuple[Path, ...]
    traces: tuple[Trace, ...] = ()
    variant: str = ""
    """The method's own keys where they are not at their default, as `key=value`: cells that differ in it are other
    points."""

    @property
    def label(self) -> str:
        method = methods.label(self.method, self.variant)
        return f"{method} lr_ratio={self.lr_ratio:g} cycle_ratio={self.cycle_ratio:g} replicate={self.replicate}"


@dataclass(frozen=True)
class Job:
    """One thing a worker does: `kind` is checkpoint, member, retrain, predictions, path, trace or cell, `unit` the id
    of what it makes (retrain and predictions: of the member)."""

    job_id: str
    kind: str
    unit: str
    cost: float
    """Image passes through the network; a training step counts three."""
    needs: tuple[str, ...] = ()
    """Jobs that must be done first; where one fails, this one does."""


@dataclass(frozen=True)
class Done:
    """The ids of what the results folder holds already. Predictions by predictor_id and file (`PredictionFile.name`),
    paths by (cell_id, path_id), traces by (cell_id, trace_id), weights inside a cycle by (member_id, step). `pruned`
    are the members and cells whose weights were not to be kept."""

    checkpoints: Collection[str] = frozenset()
    members: Collection[str] = frozenset()
    predictions: Collection[tuple[str, str]] = frozenset()
    cells: Collection[str] = frozenset()
    paths: Collection[tuple[str, str]] = frozenset()
    traces: Collection[tuple[str, str]] = frozenset()
    inside_cycles: Collection[tuple[str, int]] = frozenset()
    pruned: Collection[str] = frozenset()


@dataclass(frozen=True)
class PredictionFile:
    """One file of each predictor's predictions: the name that follows its `predictor_id`, and what is in it.

    Validation and test lie in one file, called by its `eval_id`; where one of them was kept later or alone, it lies in
    a file of its own, `<eval_id>-<split>`. Every shift split has its own file, called by its own `eval_id`.
    """

    name: str
    eval_id: str
    splits: tuple[str, ...]


OWN_SPLITS = ("val", "test")


@dataclass(frozen=True)
class Plan:
    spec: SweepSpec
    facts: Facts
    members: Mapping[str, Member]
    cells: tuple[Cell, ...]

    @cached_property
    def settings_id(self) -> str:
        return settings_id(self.spec, self.facts)

    @cached_property
    def eval_id(self) -> str:
        return eval_id(self.spec, self.facts)

    @cached_property
    def paths(self) -> dict[tuple[str, str], Path]:
        return {(cell.cell_id, path.path_id): path for cell in self.cells for path in cell.paths}

    @cached_property
    def traces(self) -> dict[tuple[str, str], Trace]:
        return {(cell.cell_id, trace.trace_id): trace for cell in self.cells for trace in cell.traces}

    @cached_property
    def traced(self) -> dict[str, Trace]:
        """The trace of each run that has one, by member_id."""
        return {trace.member_id: trace for trace in self.traces.values()}

    def trace_steps(self, member: Member) -> tuple[int, ...]:
        """After which steps of its training a member is looked at; the hub at its end only."""
        if member.parent_id is None:
            return (member.cycle_steps,)
        shape, low_ratio = methods.METHODS[member.method].shape, member.option.get("low_ratio", 1.0)
        by, times = self.spec.recipe.schedule_by, self.spec.basin.trace_times
        return schedules.trace_steps(member.cycle_steps, self.steps_per_epoch, times, by, shape, low_ratio)

    @cached_property
    def cell(self) -> dict[str, Cell]:
        return {cell.cell_id: cell for cell in self.cells}

    @cached_property
    def shift_eval_ids(self) -> dict[str, str]:
        """Of each further evaluation set, by its split: what changes the predictions of given weights on it."""
        return {shift.name: shift_eval_id(self.spec, self.facts, shift) for shift in self.facts.shifts}

    def shift_eval_id(self, split: str) -> str:
        """Predictions on the further evaluation set `split` are kept under this id. Raises KeyError for another."""
        return self.shift_eval_ids[split]

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """Everything that is scored: validation first, since temperatures are fitted there."""
        return (*OWN_SPLITS, *self.shift_eval_ids)

    @cached_property
    def kept_splits(self) -> tuple[str, ...]:
        """The splits whose predictions are stored."""
        asked = specs.kept_splits(self.spec)
        return tuple(split for split in self.splits if split in asked)

    @property
    def n_images(self) -> dict[str, int]:
        """How many images each split has."""
        data = self.facts.data
        return {"val": data.n_val, "test": data.n_test, **{s.name: s.n_images for s in self.facts.shifts}}

    def missing_files(self, there: Callable[[str], bool]) -> list[PredictionFile]:
        """The files that a predictor still lacks of those to be kept; `there` knows which it has, by their names."""
        own = tuple(
            split for split in OWN_SPLITS
            if split in self.kept_splits and not there(self.eval_id) and not there(f"{self.eval_id}-{split}")
        )  # fmt: skip
        name = self.eval_id if own == OWN_SPLITS else f"{self.eval_id}-{'-'.join(own)}"
        further = {eval_id: split for split, eval_id in self.shift_eval_ids.items() if split in self.kept_splits}
        missing = [PredictionFile(eval_id, eval_id, (split,)) for eval_id, split in further.items()
                   if not there(eval_id)]  # fmt: skip
        return [PredictionFile(name, self.eval_id, own), *missing] if own else missing

    @property
    def steps_per_epoch(self) -> int:
        return _steps_per_epoch(self.spec, self.facts)

    def train_epochs(self, cell: Cell) -> float:
        """What `cell` costs, the hub included and pre-training not."""
        return sum(self.members[member_id].cycle_epochs for member_id in cell.trained_ids)

    @property
    def bn_images(self) -> int:
        return min(self.spec.basin.bn_images, self.facts.data.n_train)


# Ids

WHERE = ("name", "dir", "decode")
"""Keys of data that say where images lie and who decodes them: they change no pixel."""
SHOWN = ("normalise", "eval_crop", "interpolation")
"""Keys of data that are hashed as they are resolved."""


def _shown(facts: Facts) -> dict[str, Any]:
    return asdict(facts.preprocess)


def _training_data(spec: SweepSpec, facts: Facts) -> list[Any]:
    """What of the data changes weights. Test images do not, and where the files lie does not."""
    chosen = identity(spec.data, without=(*WHERE, "test_images", *SHOWN))
    return [facts.data.train_fingerprint, facts.data.train_size, chosen, _shown(facts)]


def _training_recipe(recipe: Recipe) -> dict[str, Any]:
    """Length and rate are hashed as resolved; how often state is saved changes nothing."""
    return identity(recipe, without=("epochs", "lr", "checkpoint_seconds"))


def pretrain_key(task: Pretrain, seed: int, model: Architecture, data: DataFacts, shown: Preprocess) -> str:
    """The key of a checkpoint that is yet to be made: a hash of all that makes it. `seed` is one of the task's."""
    network = specs.architecture_identity(model)
    chosen = identity(task.data, without=(*WHERE, "test_images"))
    recipe = identity(task.recipe, without=("checkpoint_seconds",))
    stored = (data.train_fingerprint, data.train_size)
    return digest("pretrain", specs.RESULTS_VERSION, network, *stored, chosen, asdict(shown), recipe, seed)


def eval_id(spec: SweepSpec, facts: Facts) -> str:
    """What changes the predictions of given weights."""
    data = facts.data
    chosen = identity(spec.data, without=(*WHERE, "augment", *SHOWN))
    stored = (data.train_fingerprint, data.test_fingerprint, data.train_size, data.test_size)
    bn_images = min(spec.basin.bn_images, data.n_train)
    return digest("eval", specs.RESULTS_VERSION, *stored, chosen, _shown(facts), bn_images)


def shift_eval_id(spec: SweepSpec, facts: Facts, shift: ShiftFacts) -> str:
    """What changes the predictions of given weights on a further evaluation set: its images, how they are shown, and
    the training images on which batch norm is estimated again. What it is called does not, nor do the test images."""
    data = facts.data
    other = (*WHERE, "augment", "test_images", *SHOWN)
    bn_images = min(spec.basin.bn_images, data.n_train)
    stored = (data.train_fingerprint, data.train_size)
    return digest("shift", specs.RESULTS_VERSION, shift.fingerprint, *stored, identity(spec.data, without=other),
                  _shown(facts), bn_images)  # fmt: skip


def _shifts(facts: Facts) -> list[list[list[str]]]:
    """As the last part of a hash: nothing where there are none, so that ids from before there were any stay."""
    found = sorted([shift.name, shift.fingerprint] for shift in facts.shifts)
    return [found] if found else []


def settings_id(spec: SweepSpec, facts: Facts) -> str:
    """Everything that must be equal for cells to stand in one map: all but method, ratios, replicate, checkpoint and
    n_members. The threshold is applied on reading and is in no id."""
    recipe = identity(spec.recipe, without=("checkpoint_seconds",))
    basin = identity(spec.basin, without=("threshold",))
    network = specs.architecture_identity(spec.model)
    return digest("settings", specs.RESULTS_VERSION, network, _training_data(spec, facts), eval_id(spec, facts), recipe,
                  basin, _soups(spec), spec.seed, *_shifts(facts))  # fmt: skip


def _soups(spec: SweepSpec) -> list[str]:
    """Which soups are scored. Cells that were committed when `uniform` meant the soup of all members alone are others:
    they lack rows that are now promised."""
    return sorted({"uniform": "uniform soups of every size"}.get(kind, kind) for kind in spec.soups)


def soup_id(kind: str, member_ids: Sequence[str]) -> str:
    """The id of the `uniform` or `greedy` soup of these members (the candidates, not the chosen ones)."""
    return digest(f"{kind}_soup", list(member_ids))


def soup_ids(spec: SweepSpec, cell: Cell) -> list[str]:
    """The soups of a cell: the uniform ones of its first 2, 3, ... members, and the greedy one."""
    sizes = range(2, len(cell.member_ids) + 1) if "uniform" in spec.soups else ()
    uniform = [soup_id("uniform", cell.member_ids[:size]) for size in sizes]
    return [*uniform, *([soup_id("greedy", cell.member_ids)] if "greedy" in spec.soups else [])]


# Members and cells


def make(spec: SweepSpec, facts: Facts) -> Plan:
    """The whole of the work of a sweep. Raises UserError for what cannot be trained: cycles of no length, or of equal
    length or rate, batches that cannot be mixed, too few checkpoints."""
    _check_size(spec, facts)
    _check_batches(spec, facts)
    for name, method in spec.methods.items():
        _check_lengths(name, method, spec, facts)
        _check_method(name, method, spec, facts)
    members: dict[str, Member] = {}
    cells = [
        _cell(spec, facts, position, replicate, method, lr_ratio, cycle_ratio, members)
        for position in range(len(facts.checkpoints))
        for replicate in range(spec.replicates)
        for method, wanted in spec.methods.items()
        for lr_ratio in wanted.lr_ratio
        for cycle_ratio in wanted.cycle_ratio
    ]
    return Plan(spec, facts, members, tuple(cells))


def _steps_per_epoch(spec: SweepSpec, facts: Facts) -> int:
    return schedules.n_batches(facts.data.n_train, spec.recipe.batch_size, spec.recipe.drop_last)


def _check_size(spec: SweepSpec, facts: Facts) -> None:
    """A slip of the pen (replicates: 10000000) is refused before its cells fill the memory."""
    each = sum(len(m.lr_ratio) * len(m.cycle_ratio) * _parts(m, spec) for m in spec.methods.values())
    parts = each * spec.replicates * len(facts.checkpoints)
    if parts > MAX_PARTS:
        raise UserError(
            f"the sweep has {parts} networks and paths in its cells, and {MAX_PARTS} are the most; take fewer "
            "replicates, ratios, checkpoints or n_members, or split it into several sweep files"
        )


def _parts(method: MethodSpec, spec: SweepSpec) -> int:
    """Members and paths of one cell."""
    n = method.n_members
    return n + (n * (n - 1) // 2 if spec.basin.pairs == "all" else 2 * n - 3)


def _cycle_steps(spec: SweepSpec, facts: Facts, cycle_ratio: float) -> int:
    recipe = spec.recipe
    return schedules.cycle_steps(cycle_ratio, recipe.epochs, _steps_per_epoch(spec, facts), recipe.schedule_by)


def _check_batches(spec: SweepSpec, facts: Facts) -> None:
    """timm mixes an image with its opposite in the batch, so there must be an even number of them."""
    recipe = spec.recipe
    if not recipe.mixes:
        return
    for size in schedules.batch_sizes(facts.data.n_train, recipe.batch_size, recipe.drop_last):
        if size % 2:
            raise UserError(
                f"recipe.{'mixup' if recipe.mixup else 'cutmix'}: needs batches of an even number of images, and one "
                f"has {size} ({facts.data.n_train} images in batches of {recipe.batch_size}); "
                "take an even batch_size and drop_last: true"
            )


def _check_lengths(name: str, method: MethodSpec, spec: SweepSpec, facts: Facts) -> None:
    lengths: dict[int, float] = {}
    for ratio in method.cycle_ratio:
        steps = _cycle_steps(spec, facts, ratio)
        where = (
            f"methods.{name}.cycle_ratio: {ratio:g} of {spec.recipe.epochs} epochs of {_steps_per_epoch(spec, facts)} "
            "steps"
        )
        if steps < 1:
            raise UserError(f"{where} is a cycle of 0 steps; take a larger ratio or more recipe.epochs")
        if steps in lengths:
            raise UserError(f"{where} is {steps} steps, as is {lengths[steps]:g}; leave one of them out")
        lengths[steps] = ratio
    rates: dict[float, float] = {}
    for ratio in method.lr_ratio:
        rate = _max_lr(ratio, spec.recipe)
        if rate in rates:
            same = f"{ratio!r} and {rates[rate]!r} are the same rate"
            raise UserError(f"methods.{name}.lr_ratio: {same}; leave one of them out")
        rates[rate] = ratio


def _check_method(name: str, method: MethodSpec, spec: SweepSpec, facts: Facts) -> None:
    kind = methods.METHODS[name]
    if kind.own_checkpoints and method.n_members > len(facts.checkpoints):
        raise UserError(
            f"methods.{name}.n_members: {method.n_members} members need as many independent checkpoints, and "
            f"model.pretrained has {len(facts.checkpoints)}; add some, or take a smaller n_members"
        )
    if kind.samples:
        every = method.collect_steps or _steps_per_epoch(spec, facts)
        for ratio in method.cycle_ratio:
            steps = _cycle_steps(spec, facts, ratio)
            if steps <= every:
                raise UserError(
                    f"methods.{name}.collect_steps: weights are collected every {every} steps (an epoch, unless it is "
                    f"given), once only in a tail of {steps}; a Gaussian needs two. Give fewer, or a larger cycle_ratio"
                )


def _cell(
    spec: SweepSpec,
    facts: Facts,
    position: int,
    replicate: int,
    method: str,
    lr_ratio: float,
    cycle_ratio: float,
    members: dict[str, Member],
) -> Cell:
    """One cell; its members, and what they come from, are put into `members`, where a hub is found again by every cell
    of its replicate."""
    wanted, checkpoint = spec.methods[method], facts.checkpoints[position]
    lineage = _lineage(spec, facts, position, replicate, method, lr_ratio, cycle_ratio, members)
    member_ids = tuple(member.member_id for member in lineage)
    basin = identity(spec.basin, without=("threshold",))
    evaluation = (eval_id(spec, facts), basin, _soups(spec), *_shifts(facts))
    return Cell(
        cell_id=digest("cell", member_ids, *evaluation),
        method=method,
        checkpoint=checkpoint,
        replicate=replicate,
        lr_ratio=lr_ratio,
        cycle_ratio=cycle_ratio,
        max_lr=_max_lr(lr_ratio, spec.recipe),
        cycle_epochs=_cycle_steps(spec, facts, cycle_ratio) / _steps_per_epoch(spec, facts),
        member_ids=member_ids,
        trained_ids=_trained(member_ids, members),
        paths=tuple(
            Path(_path_id(spec, facts, member_ids[a], member_ids[b]), kind, member_ids[a], member_ids[b])
            for kind, a, b in methods.pairs(wanted.n_members, spec.basin.pairs)
        ),
        traces=_traces(spec, facts, member_ids, members),
        variant=methods.variant(method, wanted.options),
    )


def _lineage(
    spec: SweepSpec,
    facts: Facts,
    position: int,
    replicate: int,
    method: str,
    lr_ratio: float,
    cycle_ratio: float,
    members: dict[str, Member],
) -> list[Member]:
    """The members of a cell, hub first."""
    kind, wanted = methods.METHODS[method], spec.methods[method]
    options = _options(method, wanted, facts)

    def add(name: str, index: int, parent: Member | None, at: int = position, **more: Any) -> Member:
        ratios = (lr_ratio, cycle_ratio) if kind.explores and name != "hub" else (1.0, 1.0)
        made = _member(spec, facts, facts.checkpoints[at], replicate, name, index, parent, *ratios, **more)
        return members.setdefault(made.member_id, made)

    lineage = [add("hub", 0, None)]
    tail = add(method, 1, lineage[0], role="tail", options=options) if kind.samples else None
    for index in range(1, wanted.n_members):
        if kind.own_checkpoints:
            # The ordinary fine-tuning that Local DE has of that checkpoint: the same run, whoever counts it.
            at = (position + index) % len(facts.checkpoints)
            lineage.append(add("local_de", index, None, at))
        elif tail is not None:
            lineage.append(add(method, index, tail, role="sample", options=options))
        else:
            parent = kind.parent(index, options)
            lineage.append(add(method, index, None if parent is None else lineage[parent], options=options))
    return lineage


def _options(method: str, wanted: MethodSpec, facts: Facts) -> dict[str, float | int | None]:
    """The method's own keys, as given or at their defaults."""
    options = {**methods.METHODS[method].options, **wanted.options}
    if "temperature" in options and options["temperature"] is None:
        options["temperature"] = 1 / facts.data.n_train
    return options


def _trained(member_ids: Iterable[str], members: Mapping[str, Member]) -> tuple[str, ...]:
    """The members and all that they come from, ancestors first, each once."""
    found: dict[str, None] = {}
    for member_id in member_ids:
        lineage: list[str] = []
        ancestor: str | None = member_id
        while ancestor is not None and ancestor not in found:
            lineage.append(ancestor)
            ancestor = members[ancestor].parent_id
        found.update(dict.fromkeys(reversed(lineage)))
    return tuple(found)


def _path_id(spec: SweepSpec, facts: Facts, start_id: str, end_id: str) -> str:
    return digest("path", start_id, end_id, eval_id(spec, facts), spec.basin.points, sorted(spec.basin.splits))


def _traces(
    spec: SweepSpec, facts: Facts, member_ids: Sequence[str], members: Mapping[str, Member]
) -> tuple[Trace, ...]:
    """Of every run that descends from the hub, and of the hub itself. What starts from the checkpoint has a head of its
    own, and is not traced."""
    hub_id, *others = _trained(member_ids, members)
    runs = [run for run in others if members[run].parent_id is not None and members[run].kind != "sample"]
    if not spec.basin.trace or not runs:
        return ()
    chosen = (eval_id(spec, facts), spec.basin.trace_times, spec.basin.trace_points, sorted(spec.basin.splits))
    before = {hub_id: 0}
    for run in runs:
        parent = members[run].parent_id
        assert parent is not None
        before[run] = 0 if parent == hub_id else before[parent] + members[parent].cycle_steps
    return tuple(Trace(digest("trace", hub_id, run, *chosen), run, steps) for run, steps in before.items())


def _member(
    spec: SweepSpec,
    facts: Facts,
    checkpoint: CheckpointFacts,
    replicate: int,
    method: str,
    index: int,
    parent: Member | None,
    lr_ratio: float,
    cycle_ratio: float,
    *,
    role: str = "cycle",
    options: Mapping[str, float | int | None] | None = None,
) -> Member:
    recipe = spec.recipe
    spe = _steps_per_epoch(spec, facts)
    steps = 0 if role == "sample" else _cycle_steps(spec, facts, cycle_ratio)
    max_lr = _max_lr(lr_ratio, recipe)
    parent_id = parent.member_id if parent else None
    own = _own_options(role, options or {}, spe)
    # Statistics of these are estimated when they are made, and are part of their weights.
    made_with = {} if role == "cycle" else {"bn_images": min(spec.basin.bn_images, facts.data.n_train)}
    more = [{"role": role, **own, **made_with}] if role != "cycle" or own else []
    network, data = specs.architecture_identity(spec.model), _training_data(spec, facts)
    member_id = digest(
        "member", specs.RESULTS_VERSION, network, checkpoint.key, parent_id, data, _training_recipe(recipe), method,
        steps, max_lr, spec.seed, replicate, index, *more,
    )  # fmt: skip
    run_id = digest(
        "run", specs.RESULTS_VERSION, network, checkpoint.key, parent.run_id if parent else None, data,
        _training_recipe(recipe), methods.METHODS[method].shape if parent else None, steps, max_lr, spec.seed,
        replicate, index, *more,
    )  # fmt: skip
    return Member(
        member_id=member_id,
        method=method,
        checkpoint=checkpoint,
        replicate=replicate,
        member_index=None if role == "tail" else index,
        parent_id=parent_id,
        lr_ratio=lr_ratio,
        cycle_ratio=cycle_ratio,
        max_lr=max_lr,
        cycle_steps=steps,
        cycle_epochs=steps / spe,
        seed=specs.random_seed(spec.seed, replicate, index),
        kind=role,
        options=tuple(own.items()),
        run_id=run_id,
    )


def _own_options(role: str, options: Mapping[str, float | int | None], steps_per_epoch: int) -> dict[str, float | int]:
    """Which of a method's options change this member: `chain` only changes whom it descends from, and of swag the tail
    knows nothing of the draws."""
    other = {"tail": {"scale"}, "sample": {"rank", "collect_steps"}}.get(role, set()) | {"chain"}
    own = {key: value for key, value in options.items() if key not in other}
    if own.get("collect_steps", 0) is None:
        own["collect_steps"] = steps_per_epoch
    return {key: value for key, value in sorted(own.items()) if value is not None}


def _max_lr(lr_ratio: float, recipe: Recipe) -> float:
    """To 12 digits: 3 * 0.1 and 0.3 are the same rate."""
    return float(f"{lr_ratio * recipe.lr:.12g}")


# Jobs


def jobs(plan: Plan, done: Done, restore: bool = False) -> list[Job]:
    """What is left to do, every job after those it needs. A cell that is committed needs nothing any more, unless
    predictions are now to be kept that were not, or weights that were pruned are to be restored."""
    wanted = _Jobs(plan, done, restore)
    for cell in plan.cells:
        wanted.cell(cell)
        if restore and plan.spec.keep.weights == "all":
            for member_id in cell.trained_ids:
                wanted.weights(member_id)
    return list(wanted.jobs.values())


def checkpoint_jobs(plan: Plan, done: Done) -> list[Job]:
    """The checkpoints that are left to be made, whether a cell waits for them or not."""
    wanted = _Jobs(plan, done)
    for checkpoint in plan.facts.checkpoints:
        wanted.checkpoint(checkpoint)
    return list(wanted.jobs.values())


def open_cells(plan: Plan, done: Done) -> list[Cell]:
    """The cells that a job is still to end."""
    return [cell for cell in plan.cells if cell.cell_id not in done.cells or lacks_predictions(plan, cell, done)]


def lacks_predictions(plan: Plan, cell: Cell, done: Done) -> bool:
    """Whether `cell` is committed and its networks are there, but not all predictions that are to be kept."""
    if cell.cell_id not in done.cells or not set(cell.member_ids) <= set(done.members):
        return False
    predictors = (*cell.member_ids, *soup_ids(plan.spec, cell))
    return any(missing_files(plan, predictor_id, done) for predictor_id in predictors)


def missing_files(plan: Plan, predictor_id: str, done: Done) -> list[PredictionFile]:
    """What is still to be stored of the predictions of a member or soup."""
    return plan.missing_files(lambda name: (predictor_id, name) in done.predictions)


class _Jobs:
    """Collects jobs by walking back from what is wanted to what is there."""

    def __init__(self, plan: Plan, done: Done, restore: bool = False) -> None:
        self.plan, self.done = plan, done
        self.restored = done.pruned if restore and plan.spec.keep.weights != "best" else ()
        self.jobs: dict[str, Job] = {}
        images = plan.n_images
        self.statistics = 2 if plan.facts.batch_norm else 1
        self.kept = sum(images[split] for split in plan.kept_splits)
        self.not_kept = sum(images.values()) - self.kept
        self.scoring = self.statistics * self.kept + plan.bn_images

    def cell(self, cell: Cell) -> str | None:
        complete = cell.cell_id in self.done.cells and cell.cell_id not in self.restored
        if complete and not lacks_predictions(self.plan, cell, self.done):
            return None
        needs = [job for member_id in cell.member_ids for job in (self.member(member_id), self.weights(member_id))]
        soups = len(soup_ids(self.plan.spec, cell)) * (self.kept + self.plan.bn_images)
        if cell.cell_id in self.done.cells:
            return self._add("cell", cell.cell_id, float(soups), needs)
        needs += [self.path(cell, path) for path in cell.paths]
        needs += [self.trace(cell, trace) for trace in cell.traces]
        return self._add("cell", cell.cell_id, float(soups + self._not_kept(cell)), needs)

    def _not_kept(self, cell: Cell) -> int:
        """Splits without stored predictions are looked at by every network of a cell when it is scored."""
        networks = self.statistics * len(cell.member_ids) + len(soup_ids(self.plan.spec, cell))
        estimating = len(cell.member_ids) * self.plan.bn_images if self.not_kept else 0
        return networks * self.not_kept + estimating

    def path(self, cell: Cell, path: Path) -> str | None:
        if (cell.cell_id, path.path_id) in self.done.paths:
            return None
        cost = (self.plan.spec.basin.points - 2) * (self._split_images() + self.plan.bn_images)
        ends = (path.start_id, path.end_id)
        needs = [job for end_id in ends for job in (self.member(end_id), self.weights(end_id))]
        return self._add("path", f"{cell.cell_id}-{path.path_id}", float(cost), needs)

    def trace(self, cell: Cell, trace: Trace) -> str | None:
        if (cell.cell_id, trace.trace_id) in self.done.traces:
            return None
        member, cost = self.plan.members[trace.member_id], 0.0
        if not is_traced(trace, self.done):
            inside, times = self.plan.spec.basin.trace_points - 2, len(self.plan.trace_steps(member))
            networks = 1 + (inside if member.parent_id is None else times * (1 + 2 * inside))
            cost = float(networks * (self._split_images() + self.plan.bn_images))
        if must_repeat(self.plan, trace, self.done):
            cost += 3 * member.cycle_epochs * self.plan.facts.data.n_train
        needs = [self.member(cell.member_ids[0]), self.member(trace.member_id)]
        if not is_traced(trace, self.done):
            needs.append(self.weights(trace.member_id))
        return self._add("trace", f"{cell.cell_id}-{trace.trace_id}", cost, needs)

    def member(self, member_id: str) -> str | None:
        return self.predictions(member_id) if member_id in self.done.members else self.weights(member_id)

    def weights(self, member_id: str) -> str | None:
        """What gives a member its weights: its training, or where they were pruned the same training once more."""
        wanted = self._training(member_id)
        lineage, job_id, ancestor = [], wanted, member_id
        while job_id is not None and job_id not in self.jobs:  # no recursion: a chain may be a thousand members long
            lineage.append(ancestor)
            parent_id = self.plan.members[ancestor].parent_id
            if parent_id is None:
                break
            ancestor, job_id = parent_id, self._training(parent_id)
        for ancestor in reversed(lineage):
            self._train(ancestor)
        return wanted

    def _training(self, member_id: str) -> str | None:
        """The id of the job that gives a member its weights; None where they are there."""
        if member_id not in self.done.members:
            return f"member-{member_id}"
        return f"retrain-{member_id}" if member_id in self.done.pruned else None

    def _train(self, member_id: str) -> None:
        """Adds that job, of a member whose parent has its own already."""
        member = self.plan.members[member_id]
        origin = self._training(member.parent_id) if member.parent_id else self.checkpoint(member.checkpoint)
        cost = 3 * member.cycle_epochs * self.plan.facts.data.n_train
        if member_id in self.done.members:
            self._add("retrain", member_id, cost, [origin])
        else:
            self._add("member", member_id, cost + self.scoring, [origin])

    def predictions(self, member_id: str) -> str | None:
        """A member that was trained under other evaluation settings has still to predict under these."""
        if not missing_files(self.plan, member_id, self.done):
            return None
        return self._add("predictions", member_id, float(self.scoring), [self.weights(member_id)])

    def checkpoint(self, checkpoint: CheckpointFacts) -> str | None:
        if checkpoint.pretrain is None or checkpoint.key in self.done.checkpoints:
            return None
        task = pretrain_of(self.plan, checkpoint)
        images = self.plan.facts.pretrain_data[position_of(checkpoint)].n_train
        return self._add("checkpoint", checkpoint.key, 3.0 * task.recipe.epochs * images, [])

    def _split_images(self) -> int:
        """Images on which every point of a path is evaluated."""
        data = self.plan.facts.data
        return sum({"val": data.n_val, "test": data.n_test}[split] for split in self.plan.spec.basin.splits)

    def _add(self, kind: str, unit: str, cost: float, needs: Iterable[str | None]) -> str:
        job_id = f"{kind}-{unit}"
        if job_id not in self.jobs:
            self.jobs[job_id] = Job(job_id, kind, unit, cost, _unmet(needs))
        return job_id


def is_traced(trace: Trace, done: Done) -> bool:
    """Whether some cell has it: its rows are copied then."""
    return any(trace_id == trace.trace_id for _, trace_id in done.traces)


def must_repeat(plan: Plan, trace: Trace, done: Done) -> bool:
    """Whether a run has to be trained again to be traced: it is committed, and its weights inside the cycle, which only
    a run that is to be traced leaves, are not there."""
    member = plan.members[trace.member_id]
    if member.parent_id is None or member.member_id not in done.members or is_traced(trace, done):
        return False
    return any((member.member_id, step) not in done.inside_cycles for step in plan.trace_steps(member))


def _unmet(job_ids: Iterable[str | None]) -> tuple[str, ...]:
    """Each job once; None stands for one that is done."""
    return tuple(dict.fromkeys(job_id for job_id in job_ids if job_id is not None))


def shared_columns(plan: Plan, unit: Member | Cell) -> dict[str, Any]:
    """The columns that all tables have, in the rows of `unit`."""
    return {
        "sweep": plan.spec.name, "settings_id": plan.settings_id, "checkpoint": unit.checkpoint.name,
        "method": unit.method, "replicate": unit.replicate, "lr_ratio": unit.lr_ratio,
        "cycle_ratio": unit.cycle_ratio,
    }  # fmt: skip


def pretrain_of(plan: Plan, checkpoint: CheckpointFacts) -> Pretrain:
    """How `checkpoint` is made: the sweep file's entry, with the seed of this checkpoint alone."""
    entry = plan.spec.model.pretrained[position_of(checkpoint)]
    assert isinstance(entry, PretrainEntry)
    task = entry.pretrain
    seed = task.seed if checkpoint.seed is None else checkpoint.seed
    return task.model_copy(update={"seed": seed, "count": 1})


def position_of(checkpoint: CheckpointFacts) -> int:
    """The position in `model.pretrained` of the entry that makes `checkpoint`."""
    if checkpoint.pretrain is None:
        raise ValueError(f"checkpoint {checkpoint.name} is not made by the sweep")
    return checkpoint.pretrain
