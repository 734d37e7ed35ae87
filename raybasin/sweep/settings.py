"""What all jobs of a sweep share: its file and the facts of its inputs, and what follows from the two alone.

It does not grow with the number of cells, so every worker can hold it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from raybasin.sweep import ids, schedules
from raybasin.sweep.facts import CheckpointFacts, Facts
from raybasin.sweep.specs import Pretrain, PretrainEntry, SweepSpec, shift_splits

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
        return ids.settings_id(self.spec, self.facts)

    @cached_property
    def training_id(self) -> str:
        return ids.training_id(self.spec, self.facts)

    @cached_property
    def eval_id(self) -> str:
        return ids.eval_id(self.spec, self.facts)

    @cached_property
    def measuring_id(self) -> str:
        return ids.measuring_id(self.spec, self.facts)

    @cached_property
    def shift_eval_ids(self) -> dict[str, str]:
        """Of each further evaluation set, by its split: what changes the predictions of given weights on it."""
        return {shift.name: ids.shift_eval_id(self.spec, self.facts, shift) for shift in self.facts.shifts}

    # Training

    @cached_property
    def steps_per_epoch(self) -> int:
        recipe = self.spec.recipe
        return schedules.n_batches(self.facts.data.n_train, recipe.batch_size, recipe.drop_last)

    def cycle_steps(self, cycle_ratio: float) -> int:
        recipe = self.spec.recipe
        return schedules.cycle_steps(cycle_ratio, recipe.epochs, self.steps_per_epoch, recipe.schedule_by)

    def max_lr(self, lr_ratio: float) -> float:
        """To 12 digits: 3 * 0.1 and 0.3 are the same rate."""
        return float(f"{lr_ratio * self.spec.recipe.lr:.12g}")

    # Evaluation

    @property
    def bn_images(self) -> int:
        return ids.bn_images(self.spec, self.facts)

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
        own = tuple(
            split for split in OWN_SPLITS
            if split in self.kept_splits and not there(self.eval_id) and not there(f"{self.eval_id}-{split}")
        )  # fmt: skip
        name = self.eval_id if own == OWN_SPLITS else f"{self.eval_id}-{'-'.join(own)}"
        further = {eval_id: split for split, eval_id in self.shift_eval_ids.items() if split in self.kept_splits}
        missing = [PredictionFile(eval_id, eval_id, (split,)) for eval_id, split in further.items()
                   if not there(eval_id)]  # fmt: skip
        return [PredictionFile(name, self.eval_id, own), *missing] if own else missing


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
