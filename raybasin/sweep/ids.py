"""Every id: a hash of everything that changes the result it names, and of nothing else.

A larger ensemble, one more ratio or another threshold leaves the ids of finished work as they are, and so trains
nothing again. What a method or a sweep is called changes no weights, and is in no id of a network: the first cycle of
`sse` and the first branch of `star_sse` at equal settings are one network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from raybasin.sweep.facts import DataFacts, Facts, Preprocess, ShiftFacts
from raybasin.sweep.fields import Spec
from raybasin.sweep.specs import Architecture, Pretrain, SweepSpec

RESULTS_VERSION = 2
"""Raised whenever the numerics or the ids change, so that old results are never taken for new ones."""

WHERE = ("name", "dir", "decode")
"""Keys of data that say where images lie and who decodes them: they change no pixel."""
SHOWN = ("normalise", "eval_crop", "interpolation")
"""Keys of data that are hashed as they are resolved."""


def identity(spec: Spec, without: Iterable[str] = ()) -> dict[str, Any]:
    """What of `spec` makes results differ: its keys that are not at their default, less those named. A key that a later
    version adds changes no id already written."""
    return spec.model_dump(mode="json", exclude=set(without), exclude_defaults=True)


def architecture_identity(model: Architecture) -> str | dict[str, Any]:
    """What ids hash of a network: the name, which is all there is to most, or every key that is set.

    The code behind a `factory` is in no id.
    """
    chosen = identity(model, without=("pretrained",))
    return model.name if set(chosen) == {"name"} else chosen


def digest(*parts: Any) -> str:
    """A stable id of 16 hexadecimal digits of the JSON of `parts`; the same in every process and on every machine."""
    return _sha256(parts).hex()[:16]


def random_seed(*parts: Any) -> int:
    """A seed of 63 bits, from a stable hash of `parts`."""
    return int.from_bytes(_sha256(parts)[:8], "big") >> 1


def _sha256(parts: tuple[Any, ...]) -> bytes:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).digest()


# Networks


def pretrain_key(task: Pretrain, seed: int, model: Architecture, data: DataFacts, shown: Preprocess) -> str:
    """The key of a checkpoint that is yet to be made: a hash of all that makes it. `seed` is one of the task's."""
    chosen = identity(task.data, without=(*WHERE, "test_images"))
    recipe = identity(task.recipe, without=("checkpoint_seconds",))
    stored = (data.train_fingerprint, data.train_size)
    network = architecture_identity(model)
    return digest("pretrain", RESULTS_VERSION, network, *stored, chosen, asdict(shown), recipe, seed)


def training_id(spec: SweepSpec, facts: Facts) -> str:
    """What changes the weights of every network of a sweep alike: architecture, training images, recipe and seed.
    Length and rate are hashed for each network as they are resolved."""
    recipe = identity(spec.recipe, without=("epochs", "lr", "checkpoint_seconds"))
    network = architecture_identity(spec.model)
    return digest("training", RESULTS_VERSION, network, _training_data(spec, facts), recipe, spec.seed)


def _training_data(spec: SweepSpec, facts: Facts) -> list[Any]:
    """What of the data changes weights. Test images do not, and where the files lie does not."""
    chosen = identity(spec.data, without=(*WHERE, "test_images", *SHOWN))
    return [facts.data.train_fingerprint, facts.data.train_size, chosen, asdict(facts.preprocess)]


def member_id(
    training_id: str,
    start: str | None,
    shape: str,
    cycle_steps: int,
    max_lr: float,
    replicate: int,
    index: int,
    more: Mapping[str, Any],
) -> str:
    """What changes the weights of one network.

    Args:
        training_id: of the sweep.
        start: the key of the checkpoint or the member_id of the parent that it starts from.
        shape: of its learning rate.
        cycle_steps: its length.
        max_lr: its highest rate.
        replicate: with `index`, what its seed follows from.
        index: its place in the ensemble.
        more: of what is no plain cycle: its role, its callback's name and the method's own keys.
    """
    plain = [more] if more else []
    return digest("member", training_id, start, shape, cycle_steps, max_lr, replicate, index, *plain)


# Predictions and measurements


def bn_images(spec: SweepSpec, facts: Facts) -> int:
    """On how many training images batch-norm statistics are estimated again."""
    return min(spec.basin.bn_images, facts.data.n_train)


def eval_id(spec: SweepSpec, facts: Facts) -> str:
    """What changes the predictions of given weights."""
    data = facts.data
    chosen = identity(spec.data, without=(*WHERE, "augment", *SHOWN))
    stored = (data.train_fingerprint, data.test_fingerprint, data.train_size, data.test_size)
    return digest("eval", RESULTS_VERSION, *stored, chosen, asdict(facts.preprocess), bn_images(spec, facts))


def shift_eval_id(spec: SweepSpec, facts: Facts, shift: ShiftFacts) -> str:
    """What changes the predictions of given weights on a further evaluation set: its images, how they are shown, and
    the training images on which batch norm is estimated again. What it is called does not, nor do the test images."""
    chosen = identity(spec.data, without=(*WHERE, "augment", "test_images", *SHOWN))
    stored = (facts.data.train_fingerprint, facts.data.train_size)
    shown = asdict(facts.preprocess)
    return digest("shift", RESULTS_VERSION, shift.fingerprint, *stored, chosen, shown, bn_images(spec, facts))


def measuring_id(spec: SweepSpec, facts: Facts) -> str:
    """What changes the rows of a cell of given members. The threshold is applied on reading and is in no id."""
    basin = identity(spec.basin, without=("threshold",))
    shifts = sorted([shift.name, shift.fingerprint] for shift in facts.shifts)
    return digest("measuring", eval_id(spec, facts), basin, sorted(spec.soups), shifts)


def settings_id(spec: SweepSpec, facts: Facts) -> str:
    """Everything that must be equal for cells to stand in one map: all but method, ratios, replicate, checkpoint and
    n_members."""
    length = (spec.recipe.epochs, spec.recipe.lr)
    return digest("settings", training_id(spec, facts), length, measuring_id(spec, facts))


def cell_id(label: str, member_ids: Sequence[str], measuring_id: str) -> str:
    """Cells of two methods, or of two variants of one, are two points, even if their members are the same networks."""
    return digest("cell", label, list(member_ids), measuring_id)


def path_id(spec: SweepSpec, eval_id: str, start_id: str, end_id: str) -> str:
    return digest("path", start_id, end_id, eval_id, spec.basin.points, sorted(spec.basin.splits))


def trace_id(spec: SweepSpec, eval_id: str, hub_id: str, member_id: str) -> str:
    basin = spec.basin
    return digest("trace", hub_id, member_id, eval_id, basin.trace_times, basin.trace_points, sorted(basin.splits))


def soup_id(kind: str, member_ids: Sequence[str]) -> str:
    """The id of the `uniform` or `greedy` soup of these members (the candidates, not the chosen ones)."""
    return digest(f"{kind}_soup", list(member_ids))
