"""Who chooses the points: a searcher of Ray Tune around a list, and around a searcher that goes by results.

All that has been chosen is in the table `points`, and what it came to in `cells`; from these a search goes on after it
was stopped. Ray Tune's own state is not kept.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.tune.schedulers import (
    HyperBandForBOHB,
    PopulationBasedTraining,
    PopulationBasedTrainingReplay,
    ResourceChangingScheduler,
    TrialScheduler,
)
from ray.tune.search import Searcher

from raybasin.cluster.trials import REPLICATES_LEFT, PointTrial, Shared, means, point_of
from raybasin.errors import FolderLost, UserError, nearest, one_line
from raybasin.jobs import line_search, local
from raybasin.jobs.line_search import LineSearch
from raybasin.jobs.local import Situation
from raybasin.store import inventory
from raybasin.store.folders import Folder
from raybasin.store.schemas import CHOSEN, ENDED
from raybasin.sweep import plan, points
from raybasin.sweep.job_list import Job, jobs_left
from raybasin.sweep.plan import Cell
from raybasin.sweep.points import MapPoint
from raybasin.sweep.search import Search
from raybasin.sweep.settings import Settings

T = TypeVar("T")
MAX_REPEATS = 50
"""A searcher that proposes points that there are already, so many times in a row, has no more to propose."""

UNFIT = (PopulationBasedTraining, PopulationBasedTrainingReplay, ResourceChangingScheduler, HyperBandForBOHB)
"""Schedulers that give a trial another configuration or other resources on its way, of which a point has none; and one
that must know its searcher."""

SLACK = 1e-6
"""By which a proposal may lie outside of its range."""
NODE_SHARE = 0.001
"""Of the driver's machine, what a trial asks for: nothing that a worker could use."""
MAX_TRIES = 2
"""How often a trial begins again."""
MAX_AT_ONCE = 100
"""Trials, each a process of some 0.3 GB on the driver's machine."""

logger = logging.getLogger(__name__)


# What a sweep file plugs in


@dataclass(frozen=True)
class Plugins:
    searcher: Searcher | None = None
    scheduler: TrialScheduler | None = None
    callbacks: Sequence[tune.Callback] = ()


def plugins(search: Search) -> Plugins:
    """What `search` names, made. Raises UserError where it cannot be, or is not what its key asks for."""
    callbacks = tuple(
        _made(f"search.callbacks[{number}]", named.callback, named.args, tune.Callback)
        for number, named in enumerate(search.callbacks)
    )
    ends, chooses = search.scheduler, search.searcher
    scheduler = _made("search.scheduler", ends.scheduler, ends.args, TrialScheduler) if ends else None
    if ends and {"metric", "mode"} & set(ends.args):
        raise UserError("search.scheduler.args: metric and mode are search.metric and search.mode; leave them out")
    if ends and isinstance(scheduler, UNFIT):
        raise UserError(
            f"search.scheduler: {ends.scheduler} does more with trials than to end them, and a point of the map stays "
            "what it is; take another one, such as ray.tune.schedulers:ASHAScheduler"
        )
    return Plugins(_made("search", chooses, search.args, Searcher) if chooses else None, scheduler, callbacks)


def check(settings: Settings) -> None:
    """Raises UserError for a searcher that does not take the space of the sweep, and for `logs` that cannot be written
    to: asked of another one, since a searcher is told once."""
    search = settings.spec.search
    if search.searcher:
        PointSearch(settings, Folder(Path()), (), lambda: 1, lambda: False, None, plugins(search).searcher)
    if search.logs:
        logs = Path(search.logs).expanduser()
        try:
            logs.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=logs).close()
        except OSError as error:
            raise UserError(f"search.logs: {logs} cannot be written: {error.strerror}") from error


def _made(key: str, named: str, arguments: Mapping[str, Any], kind: type[T]) -> T:
    module, _, name = named.partition(":")
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        known = vars(found) if isinstance(error, AttributeError) else ()
        close = nearest(name, [n for n in known if isinstance(known[n], type)]) if known else ""
        raise UserError(f"{key}: {named} cannot be imported ({one_line(error, 200)}){close}") from error
    if not (isinstance(found, type) and issubclass(found, kind)):  # nothing else is called
        raise UserError(f"{key}: {named} is no {kind.__module__}.{kind.__qualname__}")
    try:
        return found(**arguments)
    except Exception as error:  # its own checks
        raise UserError(
            f"{key}: {named} cannot be made: {one_line(f'{type(error).__name__}: {error}', 300)}"
        ) from error


def space(settings: Settings) -> dict[str, Any]:
    """What a searcher chooses from, in Ray Tune's terms. Raises UserError where methods list different ratios."""
    among: dict[str, Any] = {}
    for key, names in points.choices(settings).items():
        among[key] = tune.choice(names) if len(names) > 1 else names[0]
    methods = points.choices(settings)["method"]
    for ratio in ("lr_ratio", "cycle_ratio"):
        if ends := getattr(settings.spec.search, ratio):
            among[ratio] = tune.loguniform(*ends)
            continue
        listed = {name: tuple(getattr(settings.spec.methods[name], ratio)) for name in methods}
        if len(set(listed.values())) > 1:
            raise UserError(
                f"search: {' and '.join(listed)} list different values of {ratio}; give them the same, or "
                f"search.{ratio}: [lowest, highest]"
            )
        values = listed[methods[0]]
        among[ratio] = tune.choice(list(values)) if len(values) > 1 else values[0]
    return among


# Who chooses


@dataclass
class _Place:
    """What a trial measures, and by which ids the searcher has asked for it."""

    point: MapPoint
    asked: list[str] = field(default_factory=list)


class PointSearch(Searcher):
    """Gives the points of a list, and then those that `searcher` proposes, until there are `most` in all.

    A proposal is rounded to a point that can be told from others. One that is known is answered from what it came to,
    and one that is being measured once that is known; then it is asked again: neither counts, nor costs a trial.
    """

    def __init__(
        self, settings: Settings, folder: Folder, listed: Sequence[MapPoint], at_once: Callable[[], int],
        is_over: Callable[[], bool], ended: Collection[MapPoint] | None = None, searcher: Searcher | None = None,
        results: Mapping[MapPoint, float] | None = None,
    ) -> None:  # fmt: skip
        """
        Args:
            listed: the points to begin with.
            at_once: says how many points may be measured at the same time.
            is_over: says whether none is to begin any more.
            ended: where all jobs are on the queue already, the points that have come to their end, kept up to date by
                `is_over`. These are given first; where there is none, the next is waited for.
            searcher: who proposes further points.
            results: what `search.metric` was at points that were measured before.
        """
        search = settings.spec.search
        super().__init__(metric=search.metric, mode=search.mode)
        self.settings, self.folder, self.at_once, self.is_over = settings, folder, at_once, is_over
        self.ended = ended
        self.inner = searcher  # Ray Tune takes an attribute `searcher` for one that it has wrapped itself
        self.listed, self.results = list(listed), dict(results or {})
        self.most = (search.points or 0) if searcher else len(self.listed)
        self.running: dict[str, _Place] = {}
        self.known = {*self.results, *self.listed}
        self.proposals = 0
        self.fruitless = False
        """Whether nothing new was proposed, and nothing has been heard since."""
        self.constant: dict[str, Any] = {}
        self.lost: FolderLost | None = None
        """Why the last choice could not be written down, and so nothing more is chosen."""
        if searcher:
            self._introduce(searcher)

    def _introduce(self, searcher: Searcher) -> None:
        """Tells the searcher what it chooses from, and what points came to that were measured before."""
        name = self.settings.spec.search.searcher
        among = space(self.settings)
        self.constant = {key: value for key, value in among.items() if isinstance(value, str | float)}
        try:
            taken = searcher.set_search_properties(self.metric, self.mode, among)
        except Exception as error:  # its own checks
            raise UserError(
                f"search: {name} cannot choose from {one_line(among, 200)}: {one_line(error, 200)}"
            ) from error
        if not taken:
            raise UserError(f"search: {name} does not take its space from Ray Tune; give it none in args")
        for point, value in self.results.items():
            if not self._tell(point, value):
                logger.warning("%s cannot be told what was measured before; what it proposes again costs nothing", name)
                break

    def _tell(self, point: MapPoint, value: float) -> bool:
        """Tells the searcher of a point that it has not asked for. False where it takes none."""
        if self.inner is None or math.isnan(value):
            return True
        try:
            varied = {key: value for key, value in asdict(point).items() if key not in self.constant}
            self.inner.add_evaluated_point(varied, value)
        except (NotImplementedError, AttributeError):
            return False
        except ValueError:  # it lies where the searcher does not choose from any more, and tells it nothing
            pass
        return True

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        """A point as a mapping; None while none is to begin, FINISHED if none is left."""
        if len(self.running) >= self.at_once():
            return None
        if self.lost or self.is_over():
            return Searcher.FINISHED
        if self.listed:
            ended = self.ended or ()
            number = next((number for number, point in enumerate(self.listed) if point in ended), 0)
            place = _Place(self.listed.pop(number))
        elif self.inner is None or len(self.known) >= self.most:
            return Searcher.FINISHED
        else:
            found = self._proposed(self.inner)
            if not isinstance(found, _Place):
                return found
            place = found
        self.running[trial_id] = place
        return asdict(place.point)

    def _proposed(self, searcher: Searcher) -> _Place | str | None:
        """A point that is new; None if the searcher waits for results, FINISHED if it has no more to propose."""
        if self.fruitless and self.running:  # Ray Tune asks ten times a second
            return None
        for _ in range(MAX_REPEATS):
            self.proposals += 1
            asked = f"proposal-{self.proposals}"
            proposed = searcher.suggest(asked)
            if not isinstance(proposed, dict):
                return proposed if proposed is None or not self.running else None
            point = self._point(proposed)
            if point not in self.known:
                self.known.add(point)
                try:
                    inventory.write_chosen(self.folder, self.settings, point, CHOSEN)
                except FolderLost as error:
                    self.lost = error
                    return Searcher.FINISHED
                return _Place(point, [asked])
            if point in self.results:
                self._answer(asked, self.results[point])
            for place in self.running.values():
                if place.point == point:
                    place.asked.append(asked)
        self.fruitless = True
        return None if self.running else Searcher.FINISHED

    def _point(self, proposed: Mapping[str, Any]) -> MapPoint:
        """Raises UserError for what is no point of the sweep."""
        with contextlib.suppress(TypeError, ValueError, KeyError):
            point = MapPoint(**{**self.constant, **proposed})
            ranges = [(point.lr_ratio, points.range_of(self.settings, "lr_ratio", point.method)),
                      (point.cycle_ratio, points.range_of(self.settings, "cycle_ratio", point.method))]  # fmt: skip
            known = points.choices(self.settings)
            is_known = point.method in known["method"] and point.checkpoint in known["checkpoint"]
            if is_known and all(min(ends) - SLACK <= ratio <= max(ends) + SLACK for ratio, ends in ranges):
                return points.snapped(self.settings, point)
        name = self.settings.spec.search.searcher
        raise UserError(f"search: {name} proposes {one_line(proposed, 200)}, which is no point of this sweep")

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        place = self.running.get(trial_id)
        self.fruitless = False
        if self.inner and place and not math.isnan(result[self.metric]):
            for asked in place.asked:
                self.inner.on_trial_result(asked, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        place = self.running.pop(trial_id, None)
        self.fruitless = False
        if self.inner is None or place is None:
            return
        value = math.nan if error or not result else result[self.metric]
        self.results[place.point] = value
        for asked in place.asked:
            self._answer(asked, value, result)
        if not place.asked:
            self._tell(place.point, value)

    def _answer(self, asked: str, value: float, result: dict[str, Any] | None = None) -> None:
        """Says what a proposal came to; to what failed or diverged searchers are told that it failed."""
        assert self.inner and self.metric
        if math.isnan(value):
            self.inner.on_trial_complete(asked, error=True)
        else:
            self.inner.on_trial_complete(asked, {**(result or {}), self.metric: value})

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """All that a search knows is in the tables."""


class LineSearcher(Searcher):
    """Gives one cell after another, as searches by cell choose them: those first that were chosen before."""

    def __init__(self, search: LineSearch, at_once: Callable[[], int], is_over: Callable[[], bool]) -> None:
        """The arguments are those of `PointSearch`."""
        super().__init__()
        self.search, self.at_once, self.is_over = search, at_once, is_over
        self.listed = list(search.out)
        self.running: dict[str, str] = {}
        """Cells by the ids of trials."""
        self.lost: FolderLost | None = None

    @property
    def folder(self) -> Folder:
        return self.search.folder

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        """A cell as a mapping; None while none is to begin, FINISHED if none is left."""
        if len(self.running) >= self.at_once():
            return None
        if self.lost or self.is_over():
            return Searcher.FINISHED
        if not self.listed:
            try:
                chosen = self.search.choose()
            except FolderLost as error:
                self.lost = error
                return Searcher.FINISHED
            if chosen is None:
                return None if self.running else Searcher.FINISHED
            self.listed.append(chosen[0].cell_id)
        self.running[trial_id] = cell_id = self.listed.pop(0)
        point, replicate = self.search.out[cell_id]
        return {**asdict(point), "replicate": replicate}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A cell is told when it has ended."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if (cell_id := self.running.pop(trial_id, None)) is not None:
            self.search.ended(cell_id, ok=bool(result) and not error)

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """All that a search knows is in the tables."""


@dataclass
class Ends:
    """What has come to its end on a queue."""

    queue: Any
    point_of: Mapping[str, MapPoint]
    """By the job that ends a cell."""
    seen: int = 0
    points: set[MapPoint] = field(default_factory=set)
    """Those of which all cells have ended."""

    def __post_init__(self) -> None:
        self.left = Counter(self.point_of.values())

    def is_over(self) -> bool:
        """Whether the queue has nothing done any more. Looks which cells have ended, too."""
        try:
            is_over, ended = ray.get(self.queue.cells_ended.remote(self.seen))
        except RayActorError:  # whoever waits for the queue finds that, too
            return True
        self.seen += len(ended)
        for point in (self.point_of[job_id] for job_id in ended if job_id in self.point_of):
            self.left[point] -= 1
            if not self.left[point]:
                self.points.add(point)
        return bool(is_over)


class Withdrawing(tune.Callback):
    """Takes back what is not begun of a point that a scheduler has ended, and says so in the folder for good."""

    def __init__(self, shared: Shared, folder: Folder) -> None:
        self.shared, self.folder = shared, folder

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if not trial.last_result.get(REPLICATES_LEFT, True):
            return
        settings, point = self.shared.settings, point_of(trial.config)
        cells = [cell.cell_id for cell in plan.of_points(settings, [point], self.shared.chosen).cells]
        jobs = [local.cell_job(cell_id) for cell_id in cells]
        there = set(ray.get(self.shared.queue.withdraw.remote(jobs)))
        begun = [cell for cell, job in zip(cells, jobs, strict=True) if job in there or cell in self.shared.done.cells]
        if len(begun) < len(cells):
            inventory.write_chosen(self.folder, settings, point, ENDED, len(begun))


class Forgetting(tune.Callback):
    """Drops what Ray Tune keeps to average over a trial's last steps, 30 KB of which nobody asks once it has ended."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        trial.metric_n_steps.clear()


# A run


@dataclass(frozen=True)
class Sought:
    """What a search has to do, by what its folder holds; nothing of it where it is done."""

    listed: tuple[MapPoint, ...]
    """The points that are measured whatever comes of others: all that is left of a grid; of a search those that were
    chosen before and are not finished, and for a scheduler, which compares, also those that are."""
    results: Mapping[MapPoint, float]
    """What the metric is at others."""
    jobs: tuple[Job, ...]
    """What is put on the queue before any trial begins: all there is to do, or what no trial does."""
    more: int
    """How many points are still to be chosen, at most; of a boundary nobody knows."""
    lines: LineSearch | None = None
    """Who chooses the cells of a boundary."""


def sought(situation: Situation, retrain: bool) -> Sought:
    """What is left to do of a sweep."""
    made, done = situation.plan, situation.done
    cells: dict[MapPoint, list[Cell]] = {}
    for cell in made.cells:
        cells.setdefault(cell.point.on_map, []).append(cell)
    left = {point for point, own in cells.items() if any(cell.cell_id not in done.cells for cell in own)}
    if not made.spec.search.by_results:
        # Those that are ready first come first.
        listed = sorted(left, key=lambda point: -cells[point][0].cycle_epochs)
        return Sought(tuple(listed), {}, situation.jobs, 0)
    if made.spec.search.by_cell:
        return _of_lines(situation, retrain)
    return _by_results(situation, cells, left, retrain)


def _of_lines(situation: Situation, retrain: bool) -> Sought:
    """The same of a boundary, whose trials begin the jobs of their cells."""
    made, done = situation.plan, situation.done
    found = line_search.begin(situation.folder, made.settings, done)
    others = tuple(cell for cell in made.cells if cell.cell_id not in found.out)
    is_over = not found.out and all(found.lines.stopped.values())
    jobs = jobs_left(replace(made, cells=others), done, retrain)
    return Sought((), {}, tuple(jobs), 0 if is_over else MAX_AT_ONCE, found)


def _by_results(
    situation: Situation, cells: Mapping[MapPoint, Sequence[Cell]], left: Collection[MapPoint], retrain: bool
) -> Sought:
    """The same of a sweep with a searcher or a scheduler, whose trials begin the jobs of their points."""
    made, search = situation.plan, situation.plan.spec.search
    chosen = inventory.chosen(situation.folder, made)
    explored = [point for point in cells if made.spec.methods[point.method].explores]
    unfinished = [point for point in explored if point in left]
    # A scheduler compares with all: those that are finished, and those that it has ended, tell what they came to first.
    listed = sorted(explored, key=lambda point: point in left) if search.scheduler else unfinished
    others = [cell for point, own in cells.items() for cell in own
              if point not in explored or cell.cell_id in situation.done.cells]  # fmt: skip
    jobs = jobs_left(replace(made, cells=tuple(others)), situation.done, retrain)
    if search.searcher is None or search.points is None:
        return Sought(tuple(listed if unfinished else ()), {}, tuple(jobs), 0)
    rows = inventory.measured(situation.folder, made, chosen)
    results = {point: means(own)[str(search.metric)] for point, own in rows.items() if point not in listed}
    more = max(0, search.points - len({*results, *listed}))
    return Sought(tuple(listed if unfinished or more else ()), results, tuple(jobs), more)


def run_trials(
    search: PointSearch | LineSearcher, shared: Shared, plugged: Plugins, storage: str, name: str
) -> tune.ResultGrid:
    """Has Ray Tune measure the points that `search` gives."""
    # It shows a traceback for each trial that fails; the reasons are shown in the end, one line each.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    here = next(node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())
    of_node = next(name for name in here["Resources"] if name.startswith("node:") and "__" not in name)
    trainable = tune.with_parameters(PointTrial, shared=shared)
    config = shared.settings.spec.search
    return tune.Tuner(
        tune.with_resources(trainable, {of_node: NODE_SHARE}),  # on this machine, and no CPU of it
        tune_config=tune.TuneConfig(
            search_alg=search, scheduler=plugged.scheduler, num_samples=-1, reuse_actors=True,
            metric=config.metric, mode=config.mode, trial_name_creator=_name, trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=name, storage_path=storage, verbose=0,
            callbacks=[Withdrawing(shared, search.folder), *plugged.callbacks, Forgetting()],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            # One that is killed begins anew, and finds what it has come to; where jobs are all there, nobody misses it.
            failure_config=tune.FailureConfig(max_failures=MAX_TRIES if shared.submits else 0),
        ),
    ).fit()  # fmt: skip


def _name(trial: Any) -> str:
    """What a trial is called by TensorBoard and the like. `/` may not be in it, but may be in a checkpoint's name."""
    point, replicate = point_of(trial.config), trial.config.get("replicate")
    which = "" if replicate is None else f"-replicate{replicate}"
    return f"{point.method}-lr{point.lr_ratio:g}-cycle{point.cycle_ratio:g}{which}-{trial.trial_id}"


def width(settings: Settings) -> float:
    """How many workers one point of a search can give something to do, on average over its networks."""
    spec = settings.spec
    name, checkpoint = (names[0] for names in points.choices(settings).values())
    ratios = [points.range_of(settings, ratio, name)[0] for ratio in ("lr_ratio", "cycle_ratio")]
    one = plan.of_points(settings, [points.snapped(settings, MapPoint(name, checkpoint, *ratios))])
    depth: dict[str, int] = {}
    for member in one.members.values():  # each after the one that it starts from
        depth[member.member_id] = 1 + depth.get(member.parent_id or "", 0)
    one_by_one = spec.search.scheduler or spec.search.by_cell
    replicates = spec.replicates if one_by_one else 1
    return max(1.0, len(depth) / replicates / max(depth.values()))
