"""Which points the map of a sweep has. A point stands for all of its replicates."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raybasin.errors import UserError
from raybasin.sweep import ids, methods
from raybasin.sweep.settings import Settings

LR_DIGITS = 4
"""Significant digits of an lr_ratio that is drawn: more would only make tables hard to read."""
SLACK = 1e-9
"""Of steps, by which the ends of a range may be off."""
MAX_DRAWS = 100
"""So many times in a row a draw may give a point that there is already."""


@dataclass(frozen=True)
class MapPoint:
    method: str
    checkpoint: str
    """Its name."""
    lr_ratio: float = 1.0
    cycle_ratio: float = 1.0


def of_row(row: Mapping[str, Any]) -> MapPoint:
    """The point that a row of a table lies at."""
    return MapPoint(row["method"], row["checkpoint"], row["lr_ratio"], row["cycle_ratio"])


@dataclass(frozen=True)
class Chosen:
    """What has been chosen so far of a sweep whose points follow from results: its points, and which replicates those
    have that are not to have all that the sweep asks for: a scheduler has ended them early, or a search by cell adds
    one after another."""

    points: tuple[MapPoint, ...] = ()
    fewer: tuple[tuple[MapPoint, tuple[int, ...]], ...] = ()


NONE = Chosen()


def known(settings: Settings, chosen: Chosen = NONE) -> list[MapPoint]:
    """The points of a sweep, each once: those that follow from its file, and those that were chosen by results."""
    spec, checkpoints = settings.spec, [found.name for found in settings.facts.checkpoints]
    kind, found = spec.search.kind, []
    for checkpoint, (name, method) in itertools.product(checkpoints, spec.methods.items()):
        if kind == "grid" or not method.explores:
            ratios = itertools.product(method.lr_ratio, method.cycle_ratio)
            found += [MapPoint(name, checkpoint, *ratio) for ratio in ratios]
    if kind == "random":
        found += _drawn(settings)
    if kind == "searcher" or spec.search.by_cell:
        found += [point for point in chosen.points if point.checkpoint in checkpoints and point.method in spec.methods]
    return list(dict.fromkeys(found))


def replicates(
    settings: Settings, wanted: Iterable[MapPoint], chosen: Chosen = NONE
) -> dict[MapPoint, tuple[int, ...]]:
    """Which replicates each of these points is to have: all that the sweep asks for, or fewer, as was chosen."""
    search, every = settings.spec.search, tuple(range(settings.spec.replicates))
    fewer = dict(chosen.fewer) if search.scheduler or search.by_cell else {}
    return {point: tuple(number for number in fewer.get(point, every) if number in every) for point in wanted}


def choices(settings: Settings) -> dict[str, list[str]]:
    """The methods and the checkpoints among which a search chooses."""
    exploring = [name for name, method in settings.spec.methods.items() if method.explores]
    return {"method": exploring, "checkpoint": [found.name for found in settings.facts.checkpoints]}


def range_of(settings: Settings, ratio: str, method: str) -> Sequence[float] | tuple[float, float]:
    """The values of `lr_ratio` or `cycle_ratio` among which a search chooses, or the ends of its range."""
    return getattr(settings.spec.search, ratio) or getattr(settings.spec.methods[method], ratio)


def snapped(settings: Settings, point: MapPoint) -> MapPoint:
    """The nearest point that can be told from others: the rate to 4 digits, the cycle to whole steps (by epoch, whole
    epochs), and at least one, in the range that is searched; values that a method lists stay as they are."""
    spec, search = settings.spec, settings.spec.search
    point = replace(point, lr_ratio=float(point.lr_ratio), cycle_ratio=float(point.cycle_ratio))
    if search.lr_ratio:
        low, high = search.lr_ratio
        point = replace(point, lr_ratio=min(max(float(f"{point.lr_ratio:.{LR_DIGITS}g}"), low), high))
    if search.cycle_ratio:
        unit = settings.steps_per_epoch if spec.recipe.schedule_by == "epoch" else 1
        whole = spec.recipe.epochs * settings.steps_per_epoch
        low, high = search.cycle_ratio
        least, most = math.ceil(low * whole / unit - SLACK), math.floor(high * whole / unit + SLACK)
        nearest = round(point.cycle_ratio * whole / unit)
        steps = max(1, min(max(nearest, least), most) if least <= most else nearest) * unit
        # Of the ratios that come to as many steps, in the range if there is one, that of the fewest digits, 3 or more.
        shorter = [float(f"{steps / whole:.{digits}g}") for digits in range(3, 17)]
        ratios = [*shorter, math.nextafter(steps / whole, math.inf), low, high]
        same = [ratio for ratio in ratios if settings.cycle_steps(ratio) == steps]
        point = replace(point, cycle_ratio=next((ratio for ratio in same if low <= ratio <= high), same[0]))
    return point


def _drawn(settings: Settings) -> list[MapPoint]:
    """The points of `random`: each checkpoint and method in turn, ratios drawn with equal chances for equal factors (or
    of a list, for its values). They follow from the sweep's seed, and a longer search begins with a shorter one's."""
    search = settings.spec.search
    found: dict[MapPoint, None] = {}
    draw = random.Random(ids.random_seed(settings.spec.seed, "search"))
    combinations = list(itertools.product(*choices(settings).values()))
    for number in range(search.points or 0):
        method, checkpoint = combinations[number % len(combinations)]
        for _ in range(MAX_DRAWS):
            ratios = [_one(draw, settings, ratio, method) for ratio in ("lr_ratio", "cycle_ratio")]
            point = snapped(settings, MapPoint(method, checkpoint, *ratios))
            if point not in found:
                break
        else:
            raise UserError(
                f"search.points: {search.points} points of {method} cannot be told from each other; take fewer, or "
                "more ratios to draw from"
            )
        found[point] = None
    return list(found)


def _one(draw: random.Random, settings: Settings, ratio: str, method: str) -> float:
    if ends := getattr(settings.spec.search, ratio):
        return math.exp(draw.uniform(*map(math.log, ends)))
    return draw.choice(getattr(settings.spec.methods[method], ratio))


def is_among(settings: Settings, row: Mapping[str, Any]) -> bool:
    """Whether a search chooses from where a row of `cells` lies, and would make the same cell there."""
    spec, among, point = settings.spec, choices(settings), of_row(row)
    if point.method not in among["method"] or point.checkpoint not in among["checkpoint"]:
        return False
    for ratio in ("lr_ratio", "cycle_ratio"):
        value, values = getattr(point, ratio), range_of(settings, ratio, point.method)
        is_range = getattr(spec.search, ratio) is not None
        if not (values[0] <= value <= values[-1] if is_range else value in values):
            return False
    method = spec.methods[point.method]
    return bool(row["n_members"] == method.n_members and (row["variant"] or "") == methods.variant(method))


def by_method(points: Iterable[MapPoint]) -> dict[tuple[str, str], list[MapPoint]]:
    """The points of each checkpoint and method."""
    grouped: dict[tuple[str, str], list[MapPoint]] = {}
    for point in points:
        grouped.setdefault((point.checkpoint, point.method), []).append(point)
    return grouped


def point_id(settings: Settings, point: MapPoint) -> str:
    """Names a point among those of all settings."""
    method = settings.spec.methods[point.method]
    label, ratios = methods.label(point.method, methods.variant(method)), (point.lr_ratio, point.cycle_ratio)
    return ids.digest("point", settings.settings_id, label, method.n_members, point.checkpoint, *ratios)
