"""From a sweep file to facts: reads data and checkpoints as far as the plan needs them, and finds what is wrong.

Everything that a user can get wrong in the inputs is found here, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raybasin import basin, data, known, models, plan, shifts
from raybasin.data import DataIndex, DataSet, Images
from raybasin.errors import UserError
from raybasin.plan import CheckpointFacts, DataFacts, Facts, Plan, PreprocessFacts
from raybasin.specs import PretrainEntry, SweepSpec


@dataclass(frozen=True)
class Prepared:
    """The plan, and the bytes of the checkpoints that are at hand, by their SHA-256."""

    plan: Plan
    weights: Mapping[str, bytes]


@dataclass(frozen=True)
class Loaded:
    """The images themselves: of the sweep, of each `pretrain` entry by its position, and of each shift by its split."""

    target: DataSet
    pretrain: Mapping[int, DataSet]
    shifts: Mapping[str, Images] = field(default_factory=dict)

    def parts(self) -> Iterator[Images]:
        """Every split of every set."""
        for whole in (self.target, *self.pretrain.values()):
            yield from (whole.train, whole.val, whole.test)
        yield from self.shifts.values()


def prepare(spec: SweepSpec) -> Prepared:
    """Looks at data (without decoding images) and at checkpoints, and plans the sweep. Raises UserError."""
    models.check_name(spec.model.name)
    index = data.index(spec.data)
    target = _data_facts(index, known.metric_of(spec.data.name))
    if target.n_test == 0:
        raise UserError(
            f"data: {spec.data.name} has no test split and all its images are used for training and validation; "
            "set data.train_images, and the rest is the test split"
        )
    shown = _shown(spec)
    pretrain_data = {
        position: _data_facts(data.index(entry.pretrain.data), known.metric_of(entry.pretrain.data.name))
        for position, entry in enumerate(spec.model.pretrained)
        if isinstance(entry, PretrainEntry)
    }
    checkpoints, weights = _checkpoints(spec, shown, pretrain_data)
    net = models.build(spec.model.name, target.n_classes, seed=0, drop_path=spec.recipe.drop_path)
    facts = Facts(
        data=target,
        preprocess=shown,
        checkpoints=checkpoints,
        pretrain_data=pretrain_data,
        batch_norm=bool(basin.batch_norm_layers(net)),
        n_parameters=sum(parameter.numel() for parameter in net.parameters()),
        shifts=shifts.index(spec, index),
    )
    return Prepared(plan.make(spec, facts), weights)


def load(spec: SweepSpec) -> Loaded:
    """The images of a sweep and its further evaluation sets: decoded, and UserError for one that cannot be, or for the
    workers to decode."""
    target = data.load(spec.data)
    return Loaded(
        target=target,
        pretrain={
            position: data.load(entry.pretrain.data)
            for position, entry in enumerate(spec.model.pretrained)
            if isinstance(entry, PretrainEntry)
        },
        shifts=shifts.load(spec, target),
    )


def _data_facts(index: DataIndex, metric: str) -> DataFacts:
    return DataFacts(
        train_fingerprint=index.train_fingerprint,
        test_fingerprint=index.test_fingerprint,
        n_train=index.n_train,
        n_val=index.n_val,
        n_test=index.n_test,
        n_classes=len(index.class_names),
        class_names=index.class_names,
        train_size=index.train_size,
        test_size=index.test_size,
        metric=metric,
    )


def _shown(spec: SweepSpec) -> PreprocessFacts:
    tags = [entry for entry in spec.model.pretrained if isinstance(entry, str)]
    own = models.shown(spec.model.name, tags, pixels_matter=spec.data.normalise is None)
    of_model = PreprocessFacts(spec.data.image_size, own.eval_crop, own.mean, own.std, own.interpolation)
    return plan.shown_for(spec.data, of_model)


def _checkpoints(
    spec: SweepSpec, shown: PreprocessFacts, pretrain_data: Mapping[int, DataFacts]
) -> tuple[tuple[CheckpointFacts, ...], dict[str, bytes]]:
    found: list[CheckpointFacts] = []
    weights: dict[str, bytes] = {}
    for position, entry in enumerate(spec.model.pretrained):
        if isinstance(entry, PretrainEntry):
            own = plan.shown_for(entry.pretrain.data, shown)
            key = plan.pretrain_key(entry, spec.model.name, pretrain_data[position], own)
            name = f"{entry.pretrain.data.name}-seed{entry.pretrain.seed}-{key[:8]}"
            found.append(CheckpointFacts(name, key, pretrain=position))
        else:
            content = models.to_bytes(models.read_checkpoint(entry, spec.model.name))
            key = models.sha256(content)
            weights[key] = content
            # Two files of one name may meet in one results folder; their weights tell them apart.
            found.append(CheckpointFacts(f"{Path(entry).stem}-{key[:8]}" if models.is_file(entry) else entry, key))
    _check_distinct(found)
    return tuple(found), weights


def _check_distinct(found: Sequence[CheckpointFacts]) -> None:
    for position, checkpoint in enumerate(found):
        for other in found[:position]:
            if other.key == checkpoint.key:
                raise UserError(
                    f"model.pretrained: {other.name} and {checkpoint.name} are the same weights; leave one of them out"
                )
