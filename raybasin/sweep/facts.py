"""What is found out about the inputs of a sweep before it is planned: data, checkpoints, how images are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from raybasin.sweep.specs import DataSpec

Count = Annotated[int, Field(ge=0, lt=2**40)]


@dataclass(frozen=True)
class DataFacts:
    """What the plan must know of a data set: SHA-256 of what is stored, and what the split makes of it."""

    train_fingerprint: str
    test_fingerprint: str
    n_train: Count
    n_val: Count
    n_test: Count
    n_classes: Count
    class_names: tuple[str, ...] = ()
    train_size: tuple[int, int] = (0, 0)
    test_size: tuple[int, int] = (0, 0)
    """Height and width of the images as arrays; where stored sizes differ, they follow from the spec."""
    metric: str = "accuracy"
    """What the data set is scored by, or `mean_class_accuracy`. It is in no id: both are computed of every network."""
    source: str = ""
    """In which layout it was found, and where. This and what follows is shown, and is in no id."""
    n_stored: Count = 0
    """Images of its classes in what is stored for training, of which training and validation images are taken; 0 where
    nothing says how many."""
    per_class: tuple[tuple[int, ...], ...] = ()
    """How many training, validation and test images of each class."""
    notes: tuple[str, ...] = ()
    """What lies there and was not read, and which images are there twice."""


@dataclass(frozen=True)
class Preprocess:
    """How images are shown to a network. Resolved from the sweep file and, where it is silent, from the model."""

    image_size: int
    """Side of the square that the network sees, in pixels."""
    eval_crop: float
    """In evaluation the shorter side is resized to image_size / eval_crop before the centre crop."""
    mean: tuple[float, float, float]
    """Per channel, for pixel values in [0, 1]; so is `std`."""
    std: tuple[float, float, float]
    interpolation: str = "bilinear"

    def of(self, data: DataSpec) -> Preprocess:
        """How images of `data` are shown: as its spec says, and where that is silent as here."""
        return Preprocess(
            image_size=data.image_size,
            eval_crop=data.eval_crop or self.eval_crop,
            mean=data.normalise.mean if data.normalise else self.mean,
            std=data.normalise.std if data.normalise else self.std,
            interpolation=data.interpolation or self.interpolation,
        )


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
    preprocess: Preprocess
    checkpoints: tuple[CheckpointFacts, ...]
    pretrain_data: Mapping[int, DataFacts]
    """Of each `pretrain` entry, by its position in `model.pretrained`."""
    batch_norm: bool
    n_parameters: int
    shifts: tuple[ShiftFacts, ...] = ()


_FACTS = TypeAdapter(Facts)


def facts_to_dict(facts: Facts) -> dict[str, Any]:
    """Plain values for the resolved sweep file; `facts_from_dict` reads them back."""
    return _FACTS.dump_python(facts, mode="json")


def facts_from_dict(tree: Mapping[str, Any]) -> Facts:
    """Raises ValueError for what `facts_to_dict` cannot have written. Other keys are passed over."""
    return _FACTS.validate_python(tree)
