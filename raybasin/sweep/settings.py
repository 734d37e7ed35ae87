"""What all jobs of a sweep share: its file and the facts of its inputs, and what follows from the two alone.

It does not grow with the number of cells, so every worker can hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from raybasin.sweep import ids, schedules
from raybasin.sweep.facts import CheckpointFacts, Facts
from raybasin.sweep.specs import Pretrain, PretrainEntry, SweepSpec, dump, shift_splits

OWN_SPLITS = ("val", "test")


@dataclass(frozen=True)
class PredictionFile:
    """One file of each predictor's predictions: the name that follows its `predictor_id`, and what is in it.

    Validation and test lie in one file, called by its `eval_id`; where one of them was kept later or alone, it lies in
    a file of its own, `<eval_id>-<split>`. Every shift split has its own file, called by its own `eval_id`.
    """

    name: str
    eval_id: str
    splits: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """A sweep file and the facts of its inputs."""

    spec: SweepSpec
    facts: Facts

    # Ids

    @cached_property
    def settings_id(self) -> str:
        """Everything that must be equal for cells to stand in one map: all but method, ratios, replicate, checkpoint
        and n_members."""
        length = (self.spec.recipe.epochs, self.spec.recipe.lr)
        return ids.digest("settings", self.training_id, length, self.measuring_id)

    @cached_property
    def training_id(self) -> str:
        """What changes the weights of every network alike: architecture, training images (but not where they lie),
        recipe and seed. Length and rate are hashed for each network as they are resolved."""
        recipe = ids.identity(self.spec.recipe, without=("epochs", "lr", *ids.HOW))
        chosen = self._data_identity("test_images")
        data = [self.facts.data.train_fingerprint, self.facts.data.train_size, chosen, asdict(self.facts.preprocess)]
        network = ids.architecture_identity(self.spec.model)
        return ids.digest("training", ids.RESULTS_VERSION, network, data, recipe, self.spec.seed)

    @cached_property
    def eval_id(self) -> str:
        """What changes the predictions of given weights."""
        data, chosen, shown = self.facts.data, self._data_identity("augment"), asdict(self.facts.preprocess)
        stored = (data.train_fingerprint, data.test_fingerprint, data.train_size, data.test_size)
        return ids.digest("eval", ids.RESULTS_VERSION, *stored, chosen, shown, self.bn_images)

    @cached_property
    def shift_eval_ids(self) -> dict[str, str]:
        """Of each further evaluation set, by its split, what changes the predictions of given weights on it: its
        images, how they are shown, and the training images on which batch norm is estimated again. What it is called
        does not, nor do the test images."""
        chosen, shown = self._data_identity("augment", "test_images"), asdict(self.facts.preprocess)
        stored = (self.facts.data.train_fingerprint, self.facts.data.train_size, chosen, shown, self.bn_images)
        return {s.name: ids.digest("shift", ids.RESULTS_VERSION, s.fingerprint, *stored) for s in self.facts.shifts}

    @cached_property
    def measuring_id(self) -> str:
        """What changes the rows of a cell of given members. What is in the basin is decided on reading, not here."""
        basin = ids.identity(self.spec.basin, without=("by", "threshold"))
        shifts = sorted([shift.name, shift.fingerprint] for shift in self.facts.shifts)
        return ids.digest("measuring", self.eval_id, basin, sorted(self.spec.soups), shifts)

    @cached_property
    def hashed(self) -> dict[str, Any]:
        """What `settings_id` hashes, to be compared by a person: values by the dotted keys of the sweep file, as they
        were resolved; what was found in its inputs stands under `facts` and the names of the shift sets."""
        tree, data, shown = dump(self.spec), self.facts.data, asdict(self.facts.preprocess)
        found = ("train_fingerprint", "test_fingerprint", "train_size", "test_size")
        return flat({
            "model": _without(tree["model"], "pretrained"),
            "data": _without(tree["data"], *ids.WHERE) | {
                "eval_crop": shown["eval_crop"], "interpolation": shown["interpolation"],
                "normalise": {"mean": list(shown["mean"]), "std": list(shown["std"])},
            },
            "recipe": _without(tree["recipe"], *ids.HOW),
            "basin": _without(tree["basin"], "by", "threshold"),
            "soups": sorted(tree["soups"]),
            "seed": tree["seed"],
            "shifts": {shift.name: shift.fingerprint for shift in self.facts.shifts},
            "facts": {
                "data": {name: value for name, value in asdict(data).items() if name in found},
                **({} if shown["image_size"] == tree["data"]["image_size"] else {"image_size": shown["image_size"]}),
            },
        })  # fmt: skip

    def path_id(self, start_id: str, end_id: str) -> str:
        basin = self.spec.basin
        return ids.digest("path", start_id, end_id, self.eval_id, basin.points, sorted(basin.path_splits))

    def trace_id(self, hub_id: str, member_id: str) -> str:
        basin = self.spec.basin
        looked_at = (basin.trace_times, basin.trace_points, sorted(basin.splits))
        return ids.digest("trace", hub_id, member_id, self.eval_id, *looked_at)

    def _data_identity(self, *without: str) -> dict[str, Any]:
        return ids.identity(self.spec.data, without=(*ids.WHERE, *ids.SHOWN, *without))

    # Training

    @cached_property
    def steps_per_epoch(self) -> int:
        recipe = self.spec.recipe
        return schedules.n_batches(self.facts.data.n_train, recipe.batch_size, recipe.drop_last)

    def cycle_steps(self, cycle_ratio: float) -> int:
        recipe = self.spec.recipe
        return schedules.cycle_steps(cycle_ratio, recipe.epochs, self.steps_per_epoch, recipe.schedule_by)

    @property
    def head_steps(self) -> int:
        """Steps in which the head alone is trained, before every run that starts from a checkpoint."""
        return self.spec.recipe.head_epochs * self.steps_per_epoch

    def max_lr(self, lr_ratio: float) -> float:
        """To 12 digits: 3 * 0.1 and 0.3 are the same rate."""
        return float(f"{lr_ratio * self.spec.recipe.lr:.12g}")

    # Evaluation

    @property
    def bn_images(self) -> int:
        """On how many training images batch-norm statistics are estimated again."""
        return min(self.spec.basin.bn_images, self.facts.data.n_train)

    @cached_property
    def n_images(self) -> dict[str, int]:
        """How many images each split has. Validation comes first, since temperatures are fitted there."""
        data = self.facts.data
        return {"val": data.n_val, "test": data.n_test, **{s.name: s.n_images for s in self.facts.shifts}}

    @property
    def splits(self) -> tuple[str, ...]:
        """Everything that is scored."""
        return tuple(self.n_images)

    @cached_property
    def kept_splits(self) -> tuple[str, ...]:
        """The splits whose predictions are stored: `val`, `test` and those of shifts, all of them, those of a shift or
        single ones, as `keep.predictions` names them."""
        asked = set(self.spec.keep.predictions)
        shifted = {s.name for s in shift_splits(self.spec.shifts) if asked & {"shifts", s.shift, s.name}}
        return tuple(split for split in self.splits if split in (asked & set(OWN_SPLITS)) | shifted)

    def missing_files(self, there: Callable[[str], bool]) -> list[PredictionFile]:
        """The files that a predictor still lacks of those to be kept; `there` knows which it has, by their names."""
        kept = [split for split in OWN_SPLITS if split in self.kept_splits and not there(self.eval_id)]
        own = tuple(split for split in kept if not there(f"{self.eval_id}-{split}"))
        name = self.eval_id if own == OWN_SPLITS else f"{self.eval_id}-{'-'.join(own)}"
        further = {eval_id: split for split, eval_id in self.shift_eval_ids.items() if split in self.kept_splits}
        shifted = [PredictionFile(name, name, (split,)) for name, split in further.items() if not there(name)]
        return [PredictionFile(name, self.eval_id, own), *shifted] if own else shifted


# Comparing two


@dataclass(frozen=True)
class Difference:
    """A key that two settings have with different values; None also where one of them does not have it."""

    key: str
    values: tuple[Any, Any]


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """The keys in which two `flat` mappings differ, in the order of the first."""
    keys = dict.fromkeys([*a, *b])
    return [Difference(key, (a.get(key), b.get(key))) for key in keys if a.get(key) != b.get(key)]


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a tree by their dotted keys. Lists are values; a mapping that holds nothing is as none."""
    return dict(_flat(tree, ""))


def _flat(tree: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _without(tree: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key not in keys}


def pretrain_of(settings: Settings, checkpoint: CheckpointFacts) -> Pretrain:
    """How `checkpoint` is made: the sweep file's entry, with the seed of this checkpoint alone."""
    entry = settings.spec.model.pretrained[position_of(checkpoint)]
    assert isinstance(entry, PretrainEntry)
    seed = entry.pretrain.seed if checkpoint.seed is None else checkpoint.seed
    return entry.pretrain.model_copy(update={"seed": seed, "count": 1})


def position_of(checkpoint: CheckpointFacts) -> int:
    """The position in `model.pretrained` of the entry that makes `checkpoint`."""
    if checkpoint.pretrain is None:
        raise ValueError(f"checkpoint {checkpoint.name} is not made by the sweep")
    return checkpoint.pretrain
