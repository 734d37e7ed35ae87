"""What to run: the sweep file as frozen, validated values. Errors are `UserError`s that name the file and the key."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator

from raybasin.errors import UserError, nearest, one_line
from raybasin.sweep import fields, shipped, strict_yaml
from raybasin.sweep.criterion import By, Criterion
from raybasin.sweep.fields import Below1, Count, Distinct, Float, Int, Name, Names, NonNegative, Positive, Seed, Spec
from raybasin.sweep.methods import METHODS, Method
from raybasin.sweep.search import Search

MAX_FILE_BYTES = 1_000_000
Augmentation = Literal[
    "random_resized_crop", "random_resized_crop_bicubic", "pad_crop", "flip", "rand_augment", "color_jitter",
    "random_erasing",
]  # fmt: skip

COMMON_CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
"""The 15 of the benchmark of Hendrycks and Dietterich (ICLR 2019), in its order."""
FURTHER_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The 4 that it keeps apart for choices that are made with corrupted images."""
CORRUPTIONS = COMMON_CORRUPTIONS + FURTHER_CORRUPTIONS
SEVERITIES = (1, 2, 3, 4, 5)


def _share_or_official(value: Any) -> Any:
    """One message for what is neither a number nor keys nor the one word."""
    if value is None or isinstance(value, list) or (isinstance(value, str) and value != "official"):
        raise ValueError(f"must be a share, {{images: count}} or official, not {value!r}")
    return value


def _class_name(value: Any) -> Any:
    """YAML makes a number of a name such as `1.0`, and true or false of `yes` and `no`."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"must be the name of a class, in quotes, or its number, not {value!r}")
    return value


ClassName = Annotated[int | str, BeforeValidator(_class_name)]


class PerClass(Spec):
    per_class: Count


class ImageCount(Spec):
    images: Count


class Normalise(Spec):
    """Mean and standard deviation of each colour channel, for pixel values in [0, 1]."""

    mean: tuple[Float, Float, Float]
    std: tuple[Positive, Positive, Positive]


class DataSpec(Spec):
    """Which images, how they are split and how they are shown to the network."""

    name: Name
    dir: fields.PathText | None = None
    image_size: Annotated[Int, Field(ge=8, le=2048)] = 224
    augment: Distinct[Augmentation] = ("random_resized_crop", "flip")
    classes: Annotated[tuple[ClassName, ...], Field(min_length=2), AfterValidator(fields.unique)] | None = None
    train_images: Count | PerClass | None = None
    test_images: Count | PerClass | None = None
    validation: Annotated[
        Annotated[Float, Field(gt=0, lt=1)] | ImageCount | Literal["official"], BeforeValidator(_share_or_official)
    ] = 0.1
    split_seed: Seed = 0
    normalise: Normalise | None = None
    eval_crop: Annotated[Float, Field(gt=0, le=1)] | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    decode: Literal["auto", "arrays", "workers", "cache"] = "auto"

    @property
    def common_side(self) -> int:
        """The side of the squares that stored images of several sizes are brought to; where `eval_crop` is left to the
        model, a usual one."""
        return round(self.image_size / (self.eval_crop or 0.875))

    @model_validator(mode="after")
    def _one_crop(self) -> DataSpec:
        if len(crops := [name for name in self.augment if "crop" in name]) > 1:
            raise ValueError(f"augment: {' and '.join(crops)} exclude each other; keep one")
        return self


class Recipe(Spec):
    """The ordinary fine-tuning. Cycles use the same recipe with their own `max_lr` and length."""

    epochs: Count
    batch_size: Annotated[Int, Field(ge=2)] = 256
    drop_last: bool = False
    optimizer: Name = "sgd"
    optimizer_args: fields.Arguments = {}
    lr: fields.Rate = 0.05
    momentum: Below1 = 0.9
    nesterov: bool = False
    betas: tuple[Below1, Below1] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 1e-4
    decay: Literal["all", "matrices"] = "all"
    layer_decay: fields.Share | None = None
    layer_decay_min_scale: Below1 = 0.0
    freeze: Annotated[tuple[str, ...], BeforeValidator(fields.listed), AfterValidator(fields.unique)] = ()
    head_epochs: Annotated[Int, Field(ge=0, lt=2**31)] = 0
    head_lr: fields.Rate | None = None
    ema_decay: fields.Share | None = None
    ema_warmup: bool = False
    schedule_by: Literal["step", "epoch"] = "step"
    warmup: Below1 = 0.0
    warmup_lr: NonNegative = 0.0
    grad_clip: Positive | None = None
    label_smoothing: Below1 = 0.0
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    mix_prob: Annotated[Float, Field(ge=0, le=1)] = 1.0
    mix_switch_prob: Annotated[Float, Field(ge=0, le=1)] = 0.5
    drop_path: Below1 = 0.0
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    deterministic: bool = False
    cuda_graphs: bool | None = None
    compile: bool = False
    checkpoint_seconds: NonNegative = 30.0

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    @property
    def further(self) -> str:
        """In words, what it has beside optimizer, rate and length, each with a comma before it; empty where it has
        nothing."""
        has = {
            f", warm-up over {self.warmup:g} of the steps": self.warmup,
            f", gradients clipped at {self.grad_clip or 0:g}": self.grad_clip,
            f", label smoothing {self.label_smoothing:g}": self.label_smoothing,
            f", mixup {self.mixup:g}": self.mixup,
            f", cutmix {self.cutmix:g}": self.cutmix,
            f", drop path {self.drop_path:g}": self.drop_path,
            f", after {self.head_epochs} epochs of the head alone": self.head_epochs,
            f", layer decay {self.layer_decay}": self.layer_decay,
            f", frozen: {len(self.freeze)} named parts": self.freeze,
            f", EMA of weights {self.ema_decay}": self.ema_decay,
        }
        return "".join(text for text, value in has.items() if value)

    @model_validator(mode="after")
    def _options_are_of_the_optimizer(self) -> Recipe:
        """What `optimizer_args` may hold is known to the optimizer, and found before anything is trained."""
        own = {"sgd": ("momentum", "nesterov"), "adamw": ("betas", "eps")}.get(self.optimizer, ())
        way_out = "leave it out" if own else "give it in optimizer_args"
        others = [key for key in ("momentum", "nesterov", "betas", "eps") if key not in own]
        self.refuse(*others, because=f"with optimizer {self.optimizer}; {way_out}")
        for key in ("lr", "weight_decay", *own):
            if key in self.optimizer_args:
                raise ValueError(f"optimizer_args: {key} is given as recipe.{key}")
        return self

    @model_validator(mode="after")
    def _keys_have_an_effect(self) -> Recipe:
        needs = {
            "layer_decay_min_scale": ("layer_decay", self.layer_decay),
            "head_lr": ("head_epochs", self.head_epochs),
            "ema_warmup": ("ema_decay", self.ema_decay),
        }
        for key, (other, value) in needs.items():
            if not value:
                self.refuse(key, because=f"without {other}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov: needs momentum above 0")
        if not self.warmup:
            self.refuse("warmup_lr", because="without warmup, the share of a fine-tuning that it takes")
        if self.warmup_lr > self.lr:
            raise ValueError(f"warmup_lr: must be at most lr, {self.lr:g}, not {self.warmup_lr:g}")
        if not self.mixes:
            self.refuse("mix_prob", "mix_switch_prob", because="without mixup or cutmix")
        if self.compile:
            if self.cuda_graphs:
                raise ValueError("compile: compiled steps are not recorded; leave out compile or cuda_graphs")
            if self.deterministic:
                raise ValueError("compile: torch chooses kernels by timing them; leave out compile or deterministic")
        return self


def _of_all_weights(recipe: Recipe) -> Recipe:
    for key in ("freeze", "head_epochs"):
        if getattr(recipe, key):
            raise ValueError(f"{key}: is for fine-tuning; a pre-training starts from random weights")
    return recipe


class Pretrain(Spec):
    """Checkpoints that the sweep makes itself, on their own data, from random weights: `count` independent ones, of
    the seeds `seed`, `seed` + 1 and so on."""

    data: DataSpec
    recipe: Annotated[Recipe, AfterValidator(_of_all_weights)]
    seed: Seed = 0
    count: Annotated[Int, Field(ge=1, le=10_000)] = 1

    @model_validator(mode="after")
    def _seeds_exist(self) -> Pretrain:
        if self.seed + self.count > 2**63:
            raise ValueError("count: the last seed, seed + count - 1, must be below 2^63")
        return self


class PretrainEntry(Spec):
    pretrain: Pretrain


def _checkpoint_entry(value: Any) -> Any:
    """One branch of the union, chosen by shape, so that an error names one key and not every alternative."""
    value = fields.as_path(value)
    if isinstance(value, str | PretrainEntry):
        return value
    if isinstance(value, Mapping):
        return PretrainEntry.model_validate(value)
    raise ValueError("must be a timm tag, a file, a folder or {pretrain: {data, recipe, seed}}")


Checkpoint = Annotated[str | PretrainEntry, BeforeValidator(_checkpoint_entry)]


_WEIGHTS = "weights come from model.pretrained"
TIMM_ARGS = {
    "num_classes": "it follows from the data", "pretrained": _WEIGHTS, "checkpoint_path": _WEIGHTS,
    "pretrained_cfg": _WEIGHTS, "pretrained_cfg_overlay": _WEIGHTS, "pretrained_strict": _WEIGHTS,
    "cache_dir": _WEIGHTS, "features_only": "the network must classify",
}  # fmt: skip
"""Arguments of timm.create_model that are given otherwise."""


class Architecture(Spec):
    """What builds a network: a timm model's name, or a function of the user's own (`factory`) that is called with
    `num_classes` and `args`; `head` names the classifier where timm's API does not."""

    name: str
    factory: fields.FunctionName | None = None
    args: fields.Arguments = {}
    head: Names | None = None

    @model_validator(mode="before")
    @classmethod
    def _factory_has_a_label(cls, tree: Any) -> Any:
        """With a factory the name is a label, by default the function's own name."""
        if isinstance(tree, Mapping) and tree.get("factory") is not None and tree.get("name") is None:
            return {**tree, "name": str(tree["factory"]).rpartition(":")[2].rpartition(".")[2]}
        return tree

    @model_validator(mode="after")
    def _fits_the_factory(self) -> Architecture:
        for key in self.args:
            if key == "num_classes" or (key in TIMM_ARGS and not self.factory):
                raise ValueError(f"args: {key} is not for a sweep file to set; {TIMM_ARGS[key]}")
        if self.factory:
            try:
                fields.relative_name(self.name)
            except ValueError as error:
                raise ValueError(f"name: {error}") from error
        return self


class ModelSpec(Architecture):
    """The network and the checkpoints that it starts from."""

    pretrained: Annotated[tuple[Checkpoint, ...], Field(min_length=1)]


def _with_names(value: Any) -> Any:
    """The keys of each method together with its name, which says what they may be."""
    return {str(name): (name, keys) for name, keys in value.items()} if isinstance(value, Mapping) else value


def _method(named: tuple[Any, Any]) -> Method:
    name, given = named
    if name not in METHODS:
        raise ValueError(f"unknown method{nearest(str(name), METHODS)}")
    for key in given if isinstance(given, Mapping) else ():
        takers = [other for other, method in METHODS.items() if key in method.model_fields]
        if takers and name not in takers:
            raise ValueError(f"{key}: only {', '.join(takers)} takes it")
    return METHODS[name].model_validate(given)


Methods = Annotated[
    dict[str, Annotated[SerializeAsAny[Method], BeforeValidator(_method)]],
    BeforeValidator(_with_names),
    Field(min_length=1),
]


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"must be odd, so that the middle of a path is one of them, not {value}")
    return value


Points = Annotated[Int, Field(ge=3), AfterValidator(_odd)]


IMAGES = {"train": "training images", "val": "validation images", "test": "test images"}
"""What a person is told of the splits of a sweep's own data."""


class BasinSpec(Spec):
    points: Points = 11
    by: By = "error"
    threshold: Positive = 0.02
    bn_images: Annotated[Int, Field(ge=2, lt=2**31)] = 2048
    pairs: Literal["consecutive", "all"] = "consecutive"
    splits: Annotated[tuple[Literal["val", "test"], ...], Field(min_length=1), AfterValidator(fields.unique)] = ("val",)
    split: Literal["val", "train"] = "val"
    trace: bool = False
    trace_times: Annotated[Int, Field(ge=1, le=1000)] = 8
    trace_points: Points = 5

    @property
    def criterion(self) -> Criterion:
        return Criterion(self.threshold, self.by)

    @property
    def images(self) -> str:
        """On which images barriers decide, as a person is told."""
        return IMAGES[self.split]

    @property
    def path_splits(self) -> tuple[str, ...]:
        """Where paths are measured: `splits`, and the training images where these decide."""
        return (*self.splits, "train") if self.split == "train" else self.splits

    @model_validator(mode="after")
    def _can_be_measured(self) -> BasinSpec:
        if "val" not in self.splits:
            raise ValueError("splits: must hold val, on which exits and, by default, barriers are decided")
        if self.by == "nll" and "threshold" not in self.model_fields_set:
            raise ValueError("threshold: is missing; with by: nll it is in nats, and has no default")
        if not self.trace:
            for key in ("trace_times", "trace_points"):
                self.refuse(key, because=f"without trace: true; add it, or leave {key} out")
        return self


class ShiftSpec(Spec):
    """Further evaluation sets of one origin: with corruptions, one for each of them at each severity."""

    format: Literal["cifar-c", "cifar-10.1", "folder", "corrupt"]
    dir: fields.PathText | None = None
    corruptions: Names | None = None
    severities: fields.Several[Annotated[Int, Field(ge=1, le=5)]] = SEVERITIES
    images: Count | None = None
    version: Literal["v4", "v6"] = "v6"
    split: Name | None = None

    @property
    def corrupted(self) -> bool:
        return self.format in ("cifar-c", "corrupt")

    @model_validator(mode="after")
    def _keys_fit_the_format(self) -> ShiftSpec:
        takers = {
            "dir": ("cifar-c", "cifar-10.1", "folder"),
            "corruptions": ("cifar-c", "corrupt"),
            "severities": ("cifar-c", "corrupt"),
            "version": ("cifar-10.1",),
            "split": ("folder",),
        }
        others = [key for key, formats in takers.items() if self.format not in formats]
        self.refuse(*others, because=f"with format {self.format}; leave it out")
        if self.format in takers["dir"] and self.dir is None:
            raise ValueError(f"dir: is missing; format {self.format} needs the folder with the files")
        for name in self.corruptions or ():
            if name not in CORRUPTIONS:
                raise ValueError(f"corruptions: unknown corruption '{name}'{nearest(name, CORRUPTIONS)}")
        return self


class KeepSpec(Spec):
    """What is stored. It changes no result, so it is in no id."""

    predictions: Names = ("val", "test", "shifts")
    weights: Literal["all", "soups", "best"] = "all"
    budget_gb: Positive | None = None


def _number_or_auto(value: Any) -> Any:
    if isinstance(value, str) and value != "auto":
        raise ValueError(f"must be a number above 0 or auto, not {value!r}")
    return value


class Workers(Spec):
    """A kind of workers: what one of them needs; their number follows from the cluster unless `count` is given."""

    cpus: Annotated[Positive | Literal["auto"], BeforeValidator(_number_or_auto)] = 1.0
    gpus: NonNegative = 0.0
    count: Count | None = None
    hang_seconds: Positive = 60.0
    accelerator_type: Name | None = None
    resources: dict[Name, Positive] = {}
    labels: dict[str, str] = {}

    @property
    def share(self) -> float:
        """Of a machine's CPUs, those of one of them. `auto` is another number by the time that it is asked for."""
        assert self.cpus != "auto"
        return self.cpus

    @property
    def threads(self) -> int:
        """With how many one of them computes."""
        return max(1, int(self.share))

    @model_validator(mode="after")
    def _resources_and_labels_are_plain(self) -> Workers:
        if self.cpus == "auto" and self.gpus:
            raise ValueError("cpus: auto is measured for workers without a GPU; give a number")
        if (self.cpus != "auto" and self.cpus < 1e-4) or 0 < self.gpus < 1e-4:
            raise ValueError("cpus and gpus: 0.0001 is the least that Ray counts")
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(f"gpus: {self.gpus:g} must be a whole number, or a share of one")
        for name in self.resources:
            if name.lower() in ("cpu", "gpu"):
                raise ValueError(f"resources: holds {name}, which is given as {name.lower()}s")
        for key, value in self.labels.items():  # to Ray those are conditions: !a, in(a, b)
            if not key or not value or not set(value).isdisjoint("!()"):
                raise ValueError(f"labels: {one_line(key)!r} must be the value of a label, not {one_line(value)!r}")
        return self


class SweepSpec(Spec):
    name: Name
    question: str = ""
    data: DataSpec
    model: ModelSpec
    recipe: Recipe
    methods: Methods
    replicates: Count = 1
    seed: Seed = 0
    basin: BasinSpec = BasinSpec()
    soups: Distinct[Literal["uniform", "greedy"]] = ("uniform", "greedy")
    shifts: dict[Name, ShiftSpec] = {}
    keep: KeepSpec = KeepSpec()
    workers: Workers | Annotated[tuple[Workers, ...], Field(min_length=1)] = Workers()
    search: Search = Search()

    @property
    def kinds(self) -> tuple[Workers, ...]:
        """The kinds of workers, be it one or several."""
        return (self.workers,) if isinstance(self.workers, Workers) else self.workers

    @property
    def least_workers(self) -> int:
        """With how many workers a sweep may begin."""
        return sum(kind.count or 0 for kind in self.kinds) or 1

    @model_validator(mode="after")
    def _measured_workers_are_alone(self) -> SweepSpec:
        if len(self.kinds) > 1 and any(kind.cpus == "auto" for kind in self.kinds):
            raise ValueError("workers.cpus: auto is measured with one kind of workers; give numbers")
        return self

    @model_validator(mode="after")
    def _a_deterministic_sweep_compiles_nothing(self) -> SweepSpec:
        entries = [entry.pretrain for entry in self.model.pretrained if isinstance(entry, PretrainEntry)]
        if self.recipe.deterministic and any(entry.recipe.compile for entry in entries):
            raise ValueError("model.pretrained: recipe.compile is not deterministic, as recipe.deterministic asks for")
        return self

    @model_validator(mode="after")
    def _shifts_have_names_of_their_own(self) -> SweepSpec:
        seen: dict[str, str] = {}
        for split in shift_splits(self.shifts):
            if split.shift in ("train", "val", "test"):
                raise ValueError(f"shifts.{split.shift}: is a split of the sweep's own data; take another name")
            if split.name in seen:
                raise ValueError(
                    f"shifts.{split.shift}: its set {split.name} is called like one of {seen[split.name]}; "
                    "take another name"
                )
            seen[split.name] = split.shift
        return self

    @model_validator(mode="after")
    def _enough_is_kept(self) -> SweepSpec:
        asked, weights = self.keep.predictions, self.keep.weights
        known = ["val", "test", "shifts", *self.shifts, *(split.name for split in shift_splits(self.shifts))]
        for name in asked:
            if name not in known:
                raise ValueError(f"keep.predictions: holds '{name}', which is no split{nearest(name, known)}")
        if "val" not in asked:
            raise ValueError(
                "keep.predictions: must hold val, from which temperatures, greedy soups and the ends of paths are taken"
            )
        if "test" in self.basin.splits and "test" not in asked:
            raise ValueError("keep.predictions: must hold test where basin.splits does, for the ends of paths")
        if weights == "best" and "uniform" not in self.soups:
            raise ValueError("keep.weights: best is decided by uniform soups, so uniform must stand in soups")
        if self.search.of == "soup" and "uniform" not in self.soups:
            raise ValueError("search.of: soup goes by uniform soups, so uniform must stand in soups")
        if weights == "soups" and not self.soups:
            raise ValueError("keep.weights: soups are all that would be kept, and soups names none")
        if weights != "all" and self.search.by_results:
            raise ValueError(
                f"keep.weights: {weights} cannot be had with a searcher, a scheduler or a boundary: any hub may be "
                "needed by a point that is chosen later; leave it out, and drop weights by a later run without them"
            )
        return self

    @model_validator(mode="after")
    def _methods_leave_ratios_to_the_search(self) -> SweepSpec:
        exploring = {name: method for name, method in self.methods.items() if method.explores}
        if not exploring and self.search.kind != "grid":
            raise ValueError(f"search: has nothing to choose: none of {', '.join(self.methods)} has ratios")
        for key in ("lr_ratio", "cycle_ratio"):
            for name, method in exploring.items() if getattr(self.search, key) else ():
                if getattr(method, key) != Method.model_fields[key].default:
                    raise ValueError(f"methods.{name}.{key}: is chosen by search.{key}; leave it out")
        return self

    @model_validator(mode="after")
    def _methods_fit_the_recipe(self) -> SweepSpec:
        for name, method in self.methods.items():
            try:
                method.check_recipe(self.recipe)
            except ValueError as error:
                raise ValueError(f"methods.{name}: {error}") from error
        return self


@dataclass(frozen=True)
class ShiftSplit:
    """One further evaluation set: its `split` in the tables, and the shift that it is of."""

    name: str
    shift: str
    corruption: str | None = None
    severity: int | None = None


def shift_splits(shifts: Mapping[str, ShiftSpec]) -> tuple[ShiftSplit, ...]:
    """The sets that `shifts` add, in the order of the file: `<shift>-<corruption>-<severity>`, or `<shift>` alone."""
    found: list[ShiftSplit] = []
    for name, shift in shifts.items():
        corruptions = (shift.corruptions or COMMON_CORRUPTIONS) if shift.corrupted else ()
        corrupted = [ShiftSplit(f"{name}-{c}-{s}", name, c, s) for c, s in product(corruptions, shift.severities)]
        found += corrupted or [ShiftSplit(name, name)]
    return tuple(found)


# Reading


def load(
    path: str | os.PathLike[str],
    overrides: Iterable[str] = (),
    data_dir: str | os.PathLike[str] | None = None,
    checkpoints: Sequence[str | os.PathLike[str]] = (),
) -> SweepSpec:
    """The sweep file at `path`.

    Args:
        path: a YAML file, or the name of a sweep that comes with raybasin (`shipped`).
        overrides: `key=value` with dotted keys and YAML values, put in one after another.
        data_dir: where the sweep's data lie, in place of `data.dir`.
        checkpoints: files or folders, in place of `model.pretrained`.

    Raises UserError where the file cannot be read, is not YAML or is not a sweep.
    """
    tree = _tree(path, overrides)
    if data_dir is not None:
        _put(tree, "data.dir", _absolute(data_dir))
    if checkpoints:
        _put(tree, "model.pretrained", list(checkpoints))
    return parse(tree, os.fspath(path))


def load_for_pretraining(
    path: str | os.PathLike[str], overrides: Iterable[str] = (), data_dir: str | os.PathLike[str] | None = None
) -> SweepSpec:
    """The sweep file at `path` for its `pretrain` entries alone: `data_dir` is where their data lie, and `data`,
    `recipe` and `methods`, which they do not need, may be missing.

    Raises UserError where the file cannot be read or is not such a sweep, or declares no `pretrain` entry.
    """
    source = os.fspath(path)
    tree = _tree(path, overrides)
    tasks: list[dict[Any, Any]] = []
    match tree:
        case {"model": {"pretrained": [*entries]}}:
            found = [entry.get("pretrain") for entry in entries if isinstance(entry, dict)]
            tasks = [task for task in found if isinstance(task, dict)]
    if not tasks:
        raise UserError(f"{source}: model.pretrained declares no {{pretrain: ...}} entry; there is nothing to make")
    for task in tasks:
        if data_dir is not None and isinstance(task.get("data"), dict):
            task["data"]["dir"] = _absolute(data_dir)
    # What is missing stands as the first entry has it: its value is not used, only seen to be valid.
    filled = {"methods": {"local_de": {}}, **{key: tasks[0][key] for key in ("data", "recipe") if key in tasks[0]}}
    return parse({**filled, **tree}, source)


def _absolute(path: str | os.PathLike[str]) -> str:
    """An empty path stays one, and is refused as in a sweep file."""
    return str(Path(os.path.expanduser(path)).absolute()) if os.fspath(path) else ""


def _tree(path: str | os.PathLike[str], overrides: Iterable[str]) -> dict[Any, Any]:
    """The content of a sweep file with `key=value` put in."""
    source = os.fspath(path)
    content = _content(path)
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"{source}: larger than {MAX_FILE_BYTES} bytes; this is not a sweep file")
    tree = strict_yaml.plain_yaml(content, source)
    if not isinstance(tree, dict):
        raise UserError(f"{source}: is not a sweep file: it must hold keys such as name, data, model, recipe, methods")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UserError(f"--set {one_line(override)}: must be key=value, for instance --set recipe.epochs=5")
        _put(tree, key, strict_yaml.plain_yaml(value, f"--set {one_line(override)}"))
    return tree


def _content(path: str | os.PathLike[str]) -> bytes:
    """Of a file, or of the shipped sweep of that name; of a file that is too large, one byte too many."""
    content = shipped.content(path)
    if content is not None:
        return content
    try:
        with open(path, "rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        others = shipped.hint(path) or "; name a file, or a sweep that `raybasin sweeps` lists"
        way_out = others if isinstance(error, FileNotFoundError) else ""
        reason = f"{getattr(error, 'strerror', error)}{way_out}"
        raise UserError(f"{os.fspath(path)}: cannot read the sweep file: {reason}") from error


def parse(tree: Mapping[str, Any], source: str = "sweep") -> SweepSpec:
    """A validated sweep from nested mappings; `source` names it in errors. Raises UserError."""
    try:
        return SweepSpec.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error, source)) from error
    except RecursionError as error:
        raise UserError(f"{source}: nested too deeply") from error


def _put(tree: dict[Any, Any], key: str, value: Any) -> None:
    if not all(key.split(".")):
        raise UserError(f"--set {one_line(key)}: must be keys joined by dots, for instance recipe.epochs")
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            holds = "holds a list, which is set whole" if isinstance(child, list) else "holds a value, not keys"
            raise UserError(f"--set {one_line(key)}: '{one_line(parent)}' {holds}")
        node = child
    node[last] = value


def _explain(error: ValidationError, source: str) -> str:
    """The first error, in one line: an unknown key before all others. Where a key may hold a value or keys of its own,
    what is wrong with those keys says more than that they are no value."""
    errors = error.errors(include_url=False)
    place = _keys_of(errors[0]["loc"])
    inside = [e for e in errors if _keys_of(e["loc"])[: len(place)] == place]
    unknown = next((e for e in errors if e["type"] == "extra_forbidden"), None)
    first = unknown or max(inside, key=lambda e: len(_keys_of(e["loc"])))
    where, text = ".".join(str(part) for part in _keys_of(first["loc"])), _reason(first)
    # A check of a whole mapping names its key itself, as "key: what is wrong".
    joint = "." if text.split(": ")[0].replace("-", "_").isidentifier() else ": "
    return f"{source}: {where + joint if where else ''}{text}"


def _keys_of(loc: tuple[int | str, ...]) -> list[int | str]:
    """Pydantic adds names of union branches to a location; only keys and positions mean something to a user."""
    return [
        part
        for position, part in enumerate(loc)
        if isinstance(part, int)
        or loc[:position] in (("shifts",), ("methods",))  # a name that the user has chosen
        or (part.isidentifier() and part.lower() == part and part not in ("int", "float", "str"))
    ]


def _reason(error: Any) -> str:
    kind = error["type"]
    if kind == "missing":
        return "is missing"
    if kind == "too_short" and error["ctx"]["min_length"] > 1:
        return f"must hold at least {error['ctx']['min_length']} values, not {error['input']!r}"
    plain = {"tuple_type": "must be a list", "too_short": "must not be empty", "model_type": "must hold keys",
             "dict_type": "must hold keys"}  # fmt: skip
    message = plain.get(kind) or error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    try:
        shown = repr(error.get("input"))
    except ValueError:  # Python does not write out an integer of thousands of digits
        return message
    return message if kind in ("value_error", "extra_forbidden") or len(shown) > 60 else f"{message}, not {shown}"


def dump(spec: SweepSpec) -> dict[str, Any]:
    """The sweep with every default written out, as plain JSON values."""
    return spec.model_dump(mode="json")
