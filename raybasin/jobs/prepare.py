"""From a sweep file to facts: reads data and checkpoints as far as the plan needs them, and finds what is wrong.

Everything that a user can get wrong in the inputs is found here, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from torch import nn

from raybasin.data import dataset, decoded, decoding, shift_sets, torchvision_sets
from raybasin.data.dataset import DataIndex, DataSet, Images
from raybasin.data.decoded import CachedImages
from raybasin.errors import UserError, nearest
from raybasin.landscape import batch_norm
from raybasin.store import schemas
from raybasin.sweep import ids, plan
from raybasin.sweep.facts import CheckpointFacts, DataFacts, Facts, Preprocess
from raybasin.sweep.plan import Plan
from raybasin.sweep.specs import PretrainEntry, SweepSpec
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

    @property
    def in_memory(self) -> bool:
        """Whether all images are, and nothing has to be read from the disk any more."""
        return all(isinstance(part.images_NHWC, np.ndarray) for part in self.parts())

    def check_readable(self, threads: int | None = None) -> None:
        """Raises UserError where this machine cannot give the images that are not in memory. Those that it is to keep
        decoded are decoded now where they are not there, by so many threads, or by as many as pay."""
        for part in self.parts():
            if not isinstance(part.images_NHWC, np.ndarray):
                part.images_NHWC.check_readable(threads or decoding.most_threads())


def prepare(spec: SweepSpec) -> Prepared:
    """Looks at data (without decoding images) and at checkpoints, and plans the sweep. Raises UserError."""
    given, spec = spec, _resolved(spec)
    _check_metric(spec)
    index = dataset.index(spec.data)
    target = _data_facts(index)
    if target.n_test == 0:  # there may be test images under another name, which is among the notes of what was not read
        is_pool = index.stored.test is None
        what = "no test split" if is_pool else "no image in its test split"
        way = "set data.train_images, and the rest is the test split" if is_pool else "put images there"
        notes = f"\n{'; '.join(index.stored.notes)}" if index.stored.notes else ""
        raise UserError(
            f"data: {index.stored.source}: there is {what} and all images are used for training and validation; "
            f"{way}{notes}"
        )
    net = model_checks.check(spec.model, target.n_classes, spec.data.image_size, spec.recipe.drop_path)
    model_checks.check_recipe(net, spec.model, spec.recipe)
    pretrain = _pretrain_indices(spec)
    facts, weights = _facts(given, spec, target, pretrain, net)
    made = plan.make(spec, replace(facts, shifts=shift_sets.index(spec, index)))
    return Prepared(made, weights, index, pretrain)


def _check_metric(spec: SweepSpec) -> None:
    metric = f"val_{spec.search.of}_accuracy" if spec.search.kind == "best" else spec.search.metric
    larger = any(method.n_members > 2 for method in spec.methods.values() if method.explores)
    why = {"val_soup_": "" if spec.soups else "without soups", "member_barrier_": "" if larger else "of two members"}
    for begin, reason in why.items():
        if reason and (metric or "").startswith(begin):
            raise UserError(f"search.metric: {metric} is not measured {reason}; search by another one, or change that")
    if metric is not None and metric not in schemas.METRICS:
        raise UserError(
            f"search.metric: {metric} is not what points are searched by{nearest(metric, schemas.METRICS)}; "
            f"there are {', '.join(schemas.METRICS)} (test images must not choose)"
        )


def prepare_pretraining(spec: SweepSpec) -> Prepared:
    """Looks at what the `pretrain` entries of a sweep need and at nothing else: the plan has their checkpoints and no
    cells, and the data of the first of them in place of the sweep's. Raises UserError."""
    given, spec = spec, _resolved(spec)
    pretrain = _pretrain_indices(spec)
    first = _data_facts(pretrain[min(pretrain)])
    net = models.build(spec.model, first.n_classes, seed=0)
    facts, _ = _facts(given, spec, first, pretrain, net, only_made=True)
    return Prepared(Plan(spec, facts, members={}, cells=()), {}, None, pretrain)


def _resolved(spec: SweepSpec) -> SweepSpec:
    """The sweep with its network as `pretrained.resolved` has it, and images of the size that the checkpoints were
    trained on, where it gives none and they say one."""
    model = pretrained.resolved(spec.model)
    models.find(model)
    if model is not spec.model:
        spec = spec.model_copy(update={"model": model})
    if "image_size" in spec.data.model_fields_set or (size := pretrained.image_size(spec.model, _given(spec))) is None:
        return spec
    return spec.model_copy(update={"data": spec.data.model_copy(update={"image_size": size})})


def _given(spec: SweepSpec) -> list[str]:
    """The checkpoints that the sweep does not make: names that timm knows, and files."""
    return [file for one in spec.model.pretrained if isinstance(one, str) for file in pretrained.files_in(one)]


def _pretrain_indices(spec: SweepSpec) -> dict[int, DataIndex]:
    """The data of each `pretrain` entry, with which the network is seen to work, by its position."""
    found = {}
    for position, entry in enumerate(spec.model.pretrained):
        if isinstance(entry, PretrainEntry):
            data, recipe = entry.pretrain.data, entry.pretrain.recipe
            found[position] = dataset.index(data)
            n_classes = len(found[position].classes.kept)
            net = model_checks.check(spec.model, n_classes, data.image_size, recipe.drop_path)
            model_checks.check_recipe(net, spec.model, recipe)
    return found


def in_cache(prepared: Prepared) -> list[CachedImages]:
    """What machines keep decoded on their disks. Nothing is written."""
    indices = [*([prepared.target] if prepared.target else []), *prepared.pretrain.values()]
    return [part for index in indices for part in dataset.in_cache(index)]


def cache_lines(prepared: Prepared) -> Iterator[str]:
    """For `plan`: what is kept decoded, and what of it is there."""
    if cached := in_cache(prepared):
        yield decoded.described(cached)


def check_room(prepared: Prepared) -> None:
    """Raises UserError where this machine's disk has no room for what is to be kept decoded."""
    if cached := in_cache(prepared):
        decoded.check_room(cached)


def load(prepared: Prepared) -> Loaded:
    """The images that were looked at: decoded, and UserError for one that cannot be, or for the workers to decode.

    What ids were made of is what is loaded: an image that has changed since is a UserError. Where only checkpoints are
    made, the data of the first of them stand for the sweep's.
    """
    made = prepared.plan
    check_room(prepared)
    pretrain = {position: dataset.decode(index) for position, index in prepared.pretrain.items()}
    if prepared.target is None:
        return Loaded(target=pretrain[min(pretrain)], pretrain=pretrain)
    target = dataset.decode(prepared.target)
    return Loaded(target, pretrain, shift_sets.load(made.spec, target, made.facts.shifts))


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
        n_stored=dataset.n_stored(index),
        per_class=dataset.per_class(index),
        notes=(*index.stored.notes, *dataset.copies(index)),
    )


def _facts(
    given: SweepSpec,
    spec: SweepSpec,
    target: DataFacts,
    pretrain: Mapping[int, DataIndex],
    net: nn.Module,
    only_made: bool = False,
) -> tuple[Facts, dict[str, bytes]]:
    """The facts of a sweep, as `given` and as resolved, and the bytes of its checkpoints that are at hand, by SHA-256;
    with `only_made` there are but those that it makes itself."""
    own = pretrained.preprocess(given.model, _given(given), pixels_matter=given.data.normalise is None)
    shown = own.of(spec.data)
    pretrain_data = {position: _data_facts(index) for position, index in pretrain.items()}
    checkpoints, weights = _checkpoints(spec, shown, pretrain_data, only_made)
    facts = Facts(
        data=target,
        preprocess=shown,
        checkpoints=tuple(checkpoints),
        pretrain_data=pretrain_data,
        batch_norm=bool(batch_norm.layers(net)),
        n_parameters=sum(parameter.numel() for parameter in net.parameters()),
    )
    return facts, weights


def _checkpoints(
    spec: SweepSpec, shown: Preprocess, pretrain_data: Mapping[int, DataFacts], only_made: bool
) -> tuple[list[CheckpointFacts], dict[str, bytes]]:
    found: list[CheckpointFacts] = []
    weights: dict[str, bytes] = {}
    for position, entry in enumerate(spec.model.pretrained):
        if isinstance(entry, PretrainEntry):
            task, data = entry.pretrain, pretrain_data[position]
            for seed in range(task.seed, task.seed + task.count):
                key = ids.pretrain_key(task, seed, spec.model, data, shown.of(task.data))
                name = f"{task.data.name}-seed{seed}-{key[:8]}"
                found.append(CheckpointFacts(name, key, pretrain=position, seed=seed))
        elif not only_made:
            for file in pretrained.files_in(entry):
                body = pretrained.load_body(file, spec.model)
                content = models.to_bytes(body.state)
                key = models.sha256(content)
                weights[key] = content
                differs = pretrained.shown_otherwise(file, spec.model, shown, spec.data.normalise is not None)
                taken = "; ".join(filter(None, [*body.notes, differs]))
                found.append(CheckpointFacts(pretrained.name_in_tables(file, key), key, taken=taken))
    for one, two in combinations(found, 2):
        if one.key == two.key:
            raise UserError(f"model.pretrained: {one.name} and {two.name} are the same weights; leave one of them out")
    return found, weights
