"""What is found out about the inputs of a sweep before it is planned: data, checkpoints, how images are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from raybasin.sweep.specs import (
    DataSpec,
)


@dataclass(frozen=True)
class DataFacts:
    """What the plan must know of a data set: SHA-256 of what is stored, and what the split makes of it."""

    train_fingerprint: str
    test_fingerprint: str
    n_train: int
    n_val: int
    n_test: int
    n_classes: int
    class_names: tuple[str, ...] = ()
    train_size: tuple[int, int] = (0, 0)
    test_size: tuple[int, int] = (0, 0)
    """Height and width of the images as arrays; where stored sizes differ, they follow from the spec."""
    metric: str = "accuracy"
    """What the data set is scored by, or `mean_class_accuracy`. It is in no id: both are computed of every network."""
    source: str = ""
    """In which layout it was found, and where. This and what follows is shown, and is in no id."""
    per_class: tuple[tuple[int, ...], ...] = ()
    """How many training, validation and test images of each class."""
    notes: tuple[str, ...] = ()
    """What lies there and was not read, and which images are there twice."""


@dataclass(frozen=True)
class PreprocessFacts:
    """How images are shown: resolved from the sweep file and, where it is silent, from the model's own settings."""

    image_size: int
    eval_crop: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str


@dataclass(frozen=True)
class CheckpointFacts:
    """A checkpoint's name in the tables and its key: the SHA-256 of its weights, or of how they are to be made."""

    name: str
    key: str
    pretrain: int | None = None
    """Position in `model.pretrained` of the entry that makes it; None where the weights exist."""
    seed: int | None = None
    """Which of that entry's seeds; None for its first."""
    taken: str = ""
    """What was chosen of its file or done to it, in words. It is in no id: the key says what came of it."""


@dataclass(frozen=True)
class ShiftFacts:
    """A further evaluation set: `name` is its `split` in the tables, the fingerprint covers all that makes its images
    and labels."""

    name: str
    fingerprint: str
    n_images: int
    notes: tuple[str, ...] = ()
    """What lies there and was not read."""


@dataclass(frozen=True)
class Facts:
    data: DataFacts
    preprocess: PreprocessFacts
    checkpoints: tuple[CheckpointFacts, ...]
    pretrain_data: Mapping[int, DataFacts]
    """Of each `pretrain` entry, by its position in `model.pretrained`."""
    batch_norm: bool
    n_parameters: int
    shifts: tuple[ShiftFacts, ...] = ()


def preprocess_for(data: DataSpec, otherwise: PreprocessFacts) -> PreprocessFacts:
    """How images of `data` are shown: as its spec says, and where that is silent as `otherwise`."""
    return PreprocessFacts(
        image_size=data.image_size,
        eval_crop=data.eval_crop or otherwise.eval_crop,
        mean=data.normalise.mean if data.normalise else otherwise.mean,
        std=data.normalise.std if data.normalise else otherwise.std,
        interpolation=data.interpolation or otherwise.interpolation,
    )


def facts_to_dict(facts: Facts) -> dict[str, Any]:
    """Plain values for the resolved sweep file; `facts_from_dict` reads them back."""
    return asdict(facts)


def facts_from_dict(tree: Mapping[str, Any]) -> Facts:
    shown = dict(tree["preprocess"])
    return Facts(
        data=_data_facts(tree["data"]),
        preprocess=PreprocessFacts(**{**shown, "mean": tuple(shown["mean"]), "std": tuple(shown["std"])}),
        checkpoints=tuple(CheckpointFacts(**checkpoint) for checkpoint in tree["checkpoints"]),
        pretrain_data={int(k): _data_facts(v) for k, v in tree["pretrain_data"].items()},
        batch_norm=tree["batch_norm"],
        n_parameters=tree["n_parameters"],
        shifts=tuple(
            ShiftFacts(**{**shift, "notes": tuple(shift.get("notes", ()))}) for shift in tree.get("shifts", ())
        ),
    )


def _data_facts(tree: Mapping[str, Any]) -> DataFacts:
    lists = {key: tuple(tree[key]) for key in ("class_names", "train_size", "test_size", "notes") if key in tree}
    return DataFacts(**{**tree, **lists, "per_class": tuple(tuple(counts) for counts in tree.get("per_class", ()))})
