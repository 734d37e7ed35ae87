"""From a sweep file to facts: reads data and checkpoints as far as the plan needs them, and finds what is wrong.

Everything that a user can get wrong in the inputs is found here, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from torch import nn

from raybasin.data import dataset, shift_sets, torchvision_sets
from raybasin.data.dataset import DataIndex, DataSet, Images
from raybasin.errors import UserError
from raybasin.landscape import batch_norm
from raybasin.sweep import ids, plan
from raybasin.sweep.facts import CheckpointFacts, DataFacts, Facts, Preprocess
from raybasin.sweep.plan import Plan
from raybasin.sweep.specs import Pretrain, PretrainEntry, SweepSpec
from raybasin.training import model_checks, models, pretrained


@dataclass(frozen=True)
class Prepared:
    """The plan, the bytes of the checkpoints that are at hand, by their SHA-256, and the data that were looked at."""

    plan: Plan
    weights: Mapping[str, bytes]
    target: DataIndex | None
    """None where only checkpoints are made."""
    pretrain: Mapping[int, DataIndex]


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
    given, spec = spec, _resolved(spec)
    models.find(spec.model)
    index = dataset.index(spec.data)
    target = _data_facts(index)
    if target.n_test == 0:
        _without_test(index)
    net = model_checks.check(spec.model, target.n_classes, spec.data.image_size, spec.recipe.drop_path)
    pretrain = _pretrain_indices(spec)
    pretrain_data = {position: _data_facts(made) for position, made in pretrain.items()}
    shown = _shown(given)
    checkpoints, weights = _checkpoints(spec, shown, pretrain_data)
    facts = _facts(target, shown, checkpoints, pretrain_data, net)
    made = plan.make(spec, replace(facts, shifts=shift_sets.index(spec, index)))
    return Prepared(made, weights, index, pretrain)


def prepare_pretraining(spec: SweepSpec) -> Prepared:
    """Looks at what the `pretrain` entries of a sweep need and at nothing else: the plan has their checkpoints and no
    cells, and the data of the first of them in place of the sweep's. Raises UserError."""
    given, spec = spec, _resolved(spec)
    models.find(spec.model)
    pretrain = _pretrain_indices(spec)
    pretrain_data = {position: _data_facts(made) for position, made in pretrain.items()}
    shown = _shown(given)
    checkpoints, _ = _checkpoints(spec, shown, pretrain_data, only_made=True)
    first = min(pretrain_data)
    net = models.build(spec.model, pretrain_data[first].n_classes, seed=0)
    facts = _facts(pretrain_data[first], shown, checkpoints, pretrain_data, net)
    return Prepared(Plan(spec, facts, members={}, cells=()), {}, None, pretrain)


def _resolved(spec: SweepSpec) -> SweepSpec:
    """The sweep with its network as `pretrained.resolved` has it."""
    model = pretrained.resolved(spec.model)
    return spec if model is spec.model else spec.model_copy(update={"model": model})


def _pretrain_indices(spec: SweepSpec) -> dict[int, DataIndex]:
    """The data of each `pretrain` entry, with which the network is seen to work, by its position."""
    found = {}
    for position, entry in enumerate(spec.model.pretrained):
        if isinstance(entry, PretrainEntry):
            data, drop_path = entry.pretrain.data, entry.pretrain.recipe.drop_path
            found[position] = dataset.index(data)
            model_checks.check(spec.model, len(found[position].classes.kept), data.image_size, drop_path)
    return found


def _facts(
    target: DataFacts,
    shown: Preprocess,
    checkpoints: tuple[CheckpointFacts, ...],
    pretrain_data: Mapping[int, DataFacts],
    net: nn.Module,
) -> Facts:
    return Facts(
        data=target,
        preprocess=shown,
        checkpoints=checkpoints,
        pretrain_data=pretrain_data,
        batch_norm=bool(batch_norm.layers(net)),
        n_parameters=sum(parameter.numel() for parameter in net.parameters()),
    )


def load(prepared: Prepared) -> Loaded:
    """The images that were looked at: decoded, and UserError for one that cannot be, or for the workers to decode.

    What ids were made of is what is loaded: an image that has changed since is a UserError. Where only checkpoints are
    made, the data of the first of them stand for the sweep's.
    """
    made = prepared.plan
    pretrain = {position: dataset.decode(index) for position, index in prepared.pretrain.items()}
    if prepared.target is None:
        return Loaded(target=pretrain[min(pretrain)], pretrain=pretrain)
    target = dataset.decode(prepared.target)
    return Loaded(target, pretrain, shift_sets.load(made.spec, target, made.facts.shifts))


def _without_test(index: DataIndex) -> NoReturn:
    """There may be test images under another name, which is among the notes of what was not read."""
    is_pool = index.stored.test is None
    what = "no test split" if is_pool else "no image in its test split"
    way = "set data.train_images, and the rest is the test split" if is_pool else "put images there"
    notes = f"\n{'; '.join(index.stored.notes)}" if index.stored.notes else ""
    raise UserError(
        f"data: {index.stored.source}: there is {what} and all images are used for training and validation; "
        f"{way}{notes}"
    )


def _data_facts(index: DataIndex) -> DataFacts:
    return DataFacts(
        train_fingerprint=index.train.audit.fingerprint,
        test_fingerprint=index.test.audit.fingerprint,
        n_train=len(index.train),
        n_val=len(index.val),
        n_test=len(index.test),
        n_classes=len(index.classes.kept),
        class_names=index.classes.names,
        train_size=index.train.size,
        test_size=index.test.size,
        metric=torchvision_sets.metric_of(index.spec.name),
        source=index.stored.source,
        per_class=dataset.per_class(index),
        notes=(*index.stored.notes, *dataset.copies(index)),
    )


def _shown(spec: SweepSpec) -> Preprocess:
    given = [entry for entry in spec.model.pretrained if isinstance(entry, str)]
    entries = [entry for one in given for entry in pretrained.files_in(one)]
    own = pretrained.preprocess(spec.model, entries, pixels_matter=spec.data.normalise is None)
    return own.of(spec.data)


def _checkpoints(
    spec: SweepSpec, shown: Preprocess, pretrain_data: Mapping[int, DataFacts], only_made: bool = False
) -> tuple[tuple[CheckpointFacts, ...], dict[str, bytes]]:
    found: list[CheckpointFacts] = []
    weights: dict[str, bytes] = {}
    for position, entry in enumerate(spec.model.pretrained):
        if isinstance(entry, PretrainEntry):
            found += _made(spec, entry.pretrain, position, shown, pretrain_data[position])
        elif not only_made:
            for one in pretrained.files_in(entry):
                body = pretrained.load_body(one, spec.model)
                content = models.to_bytes(body.state)
                key = models.sha256(content)
                weights[key] = content
                name = pretrained.name_in_tables(one, key)
                found.append(CheckpointFacts(name, key, taken="; ".join(body.notes)))
    _check_distinct(found)
    return tuple(found), weights


def _made(
    spec: SweepSpec, task: Pretrain, position: int, shown: Preprocess, facts: DataFacts
) -> Iterator[CheckpointFacts]:
    """The checkpoints of one `pretrain` entry: one for each of its seeds."""
    own = shown.of(task.data)
    for seed in range(task.seed, task.seed + task.count):
        key = ids.pretrain_key(task, seed, spec.model, facts, own)
        yield CheckpointFacts(f"{task.data.name}-seed{seed}-{key[:8]}", key, pretrain=position, seed=seed)


def _check_distinct(found: Sequence[CheckpointFacts]) -> None:
    for position, checkpoint in enumerate(found):
        for other in found[:position]:
            if other.key == checkpoint.key:
                raise UserError(
                    f"model.pretrained: {other.name} and {checkpoint.name} are the same weights; leave one of them out"
                )
