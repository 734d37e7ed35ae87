"""What a row of each table holds, as a typed class: from it schemas, keys, names of files, what readers check and the
columns in docs/tables.md (`make docs`) are made.

A column's annotation says its type (with None where it may be null), its unit, its meaning, and by a `Mark` or `Bounds`
what else it is. Columns are stored in the order of the class, but those that all tables share come first and last.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from types import NoneType
from typing import Annotated, Any, NamedTuple, TypedDict, get_args, get_type_hints

import pyarrow as pa

from raybasin.metrics import scores

SCHEMA_VERSION = 1


class Unit(str):
    """A unit of measurement."""


class Mark(str):
    """What a column is beside a value."""


class Bounds(NamedTuple):
    """From 0 to `most`, both possible unless `above_zero`: for numbers that figures and tables are laid out by."""

    most: float
    above_zero: bool = False


NATS, EPOCHS, STEPS, IMAGES, SECONDS = map(Unit, ("nats", "epochs", "steps", "images", "s"))
SHARE = Unit("share")
KEY = Mark("part of what is unique in its table")
FILE = Mark("part of the name of its file, in the order of the columns")
WHEN = Mark("tells when or how fast")
INDEX, COUNT = Bounds(1_000_000), Bounds(1_000_000, above_zero=True)
REPLICATE, RATIO = Bounds(2**31), Bounds(1e12, above_zero=True)

Text = str | None
Texts = list[str] | None
Reals = list[float] | None
Int = int | None
Real = float | None
Bool = bool | None
Time = datetime | None


# Columns of several tables

CellId = Annotated[str, KEY, FILE, "The cell: hash of its method, its members and what they are evaluated by."]
MemberId = Annotated[str, KEY, FILE, "The network: hash of all that changes its weights."]
PredictorId = Annotated[str, KEY, "Hash of its kind and of the members it is made of; of a member its `member_id`."]
Split = Annotated[str, KEY, "`val`, `test` or a shift set."]
BatchNorm = Annotated[str, KEY, "`own` or `reestimated` batch-norm statistics."]
Nll = Annotated[Real, NATS, "Mean NLL."]
Error = Annotated[Real, SHARE, "Error rate."]
NllExcess = Annotated[Real, NATS, "NLL above the straight line between the NLLs at the two ends."]
NllExcessSe = Annotated[Real, NATS, "Its standard error over the images, paired; NaN where a loss is infinite."]
ErrorExcess = Annotated[Real, SHARE, "Error above the straight line between the errors at the two ends."]
ErrorExcessSe = Annotated[Real, SHARE, "Its standard error over the images, paired."]
Distance = Annotated[Real, "Euclidean distance of the two ends, over parameters; the same in all rows of a path."]
Images = Annotated[Int, IMAGES, "Images of the split."]
BnImages = Annotated[Int, IMAGES, "Images that batch norm was re-estimated on; 0 without batch norm."]
TrainSeconds = Annotated[Real, SECONDS, WHEN, "Training alone, over all interruptions."]
JobSeconds = Annotated[Real, SECONDS, WHEN, "The whole job that measured or made this: reading, computing, writing."]
Device = Annotated[Text, "GPU's name, or `cpu` and the number of threads, of the job that committed this row."]
Versions = Annotated[Text, "Python and package versions as JSON."]
FinishedAt = Annotated[Time, WHEN, "Time of the commit."]


class Settings(TypedDict):
    """What a row belongs to; in every table."""

    checkpoint: Annotated[str, "Name of the pre-trained checkpoint."]
    settings_id: Annotated[str, "Equal for cells that belong on one map."]
    sweep: Annotated[str, "`name` of the sweep file that made the row."]


class Point(Settings):
    """What tells the rows of one sweep apart; in every table."""

    method: Annotated[str, "`star_sse`, `sse`, `local_de`, ...; of a hub's own rows `hub`."]
    replicate: Annotated[int, REPLICATE, "From 0."]
    lr_ratio: Annotated[float, RATIO, "Highest rate over that of the recipe; 1.0 for hubs and `local_de`."]
    cycle_ratio: Annotated[float, RATIO, "Length over that of the recipe; 1.0 for hubs and `local_de`."]


FIRST, LAST = ("method", "checkpoint", "replicate", "lr_ratio", "cycle_ratio"), ("settings_id", "sweep")
COMMON = (*FIRST, *LAST)
"""The columns of every table."""


# Tables


class Cell(Point):
    """One point of the map in one replicate; its commit."""

    cell_id: CellId
    hub_id: Annotated[str, "`member_id` of the hub."]
    member_ids: Annotated[list[str], "Its members, hub first, in the order of `member_index`."]
    variant: Annotated[Text, "Keys of the method that are not at their default, as `key=value`; else empty."]
    n_members: Annotated[int, COUNT, "Hub included."]
    max_lr: Annotated[Real, "Highest learning rate of its cycles."]
    cycle_epochs: Annotated[Real, EPOCHS, "Length of a cycle; need not be whole."]
    barrier_nll: Annotated[Real, NATS, "Largest NLL barrier of its hub-member paths, on `basin.split`."]
    barrier_nll_se: Annotated[
        Real, NATS, "Its standard error over images, at the path's highest inner point; NaN where it is not known."
    ]
    barrier_nll_member: Annotated[Text, "The member to which that path leads."]
    barrier_error: Annotated[float, SHARE, "Largest error barrier of its hub-member paths, on `basin.split`."]
    barrier_error_se: Annotated[Real, SHARE, "Its standard error over images, at the path's highest inner point."]
    barrier_error_member: Annotated[Text, "The member to which that path leads."]
    barrier_nll_mean: Annotated[Real, NATS, "Mean NLL barrier of its hub-member paths, on `basin.split`."]
    barrier_error_mean: Annotated[Real, SHARE, "Mean error barrier of its hub-member paths, on `basin.split`."]
    member_barrier_nll: Annotated[
        Real, NATS, "Largest of its member-member paths, on `basin.split`; NaN for 2 members."
    ]
    member_barrier_error: Annotated[
        Real, SHARE, "Largest of its member-member paths, on `basin.split`; NaN for 2 members."
    ]
    rise_error: Annotated[
        Real, SHARE, "Largest rise of the error above the hub's on a hub-member path, on `basin.split`."
    ]
    in_basin: Annotated[Bool, "By `basin.by` and the threshold at the commit; never where `barrier_nll` is infinite."]
    hub_accuracy: Annotated[Real, SHARE, "Test, bn own."]
    hub_accuracy_reestimated: Annotated[Real, SHARE, "Test, bn reestimated: what a soup is to be compared with."]
    member_accuracy: Annotated[Real, SHARE, "Mean over the members, hub included; test, bn own."]
    ensemble_accuracy: Annotated[Real, SHARE, "Ensemble of all members; test, bn own."]
    ensemble_nll: Annotated[Real, NATS, "Ensemble of all members; test, bn own."]
    soup_accuracy: Annotated[Real, SHARE, "Uniform soup; test, bn reestimated."]
    soup_nll: Annotated[Real, NATS, "Uniform soup; test, bn reestimated."]
    greedy_soup_accuracy: Annotated[Real, SHARE, "Greedy soup; test, bn reestimated."]
    val_ensemble_accuracy: Annotated[Real, SHARE, "Ensemble of all members; val, bn own."]
    val_ensemble_nll: Annotated[Real, NATS, "Ensemble of all members; val, bn own."]
    val_soup_accuracy: Annotated[Real, SHARE, "Uniform soup; val, bn reestimated."]
    val_soup_nll: Annotated[Real, NATS, "Uniform soup; val, bn reestimated."]
    disagreement: Annotated[
        Real, SHARE, "Examples that two members classify differently, mean over pairs; test, bn own."
    ]
    normalised_disagreement: Annotated[Real, "Disagreement over mean member error; test, bn own."]
    l2_from_hub: Annotated[Real, "Mean Euclidean distance of members from the hub, over parameters."]
    exit_step: Annotated[Int, STEPS, "From the hub to where the first of its runs left the hub's basin; null if none."]
    exit_epochs: Annotated[Real, EPOCHS, "`exit_step` in epochs."]
    checkpoint_exit_step: Annotated[Int, STEPS, "The same for the basin of the checkpoint with the hub's head."]
    checkpoint_exit_epochs: Annotated[Real, EPOCHS, "`checkpoint_exit_step` in epochs."]
    checkpoint_barrier_nll: Annotated[Real, NATS, "NLL barrier from the checkpoint with the hub's head to it, val."]
    checkpoint_barrier_error: Annotated[
        Real, SHARE, "Error barrier from the checkpoint with the hub's head to it, val."
    ]
    soup_sha256: Annotated[Text, "Weights of the uniform soup."]
    greedy_soup_sha256: Annotated[Text, "Weights of the greedy soup."]
    greedy_soup_members: Annotated[Texts, "Members in the greedy soup, in the order in which they were accepted."]
    kept_predictions: Annotated[
        list[str], "Splits on which predictions of members and soups were stored at the commit."
    ]
    kept_weights: Annotated[Text, "`keep.weights` at the commit; what `all` has kept no other sweep prunes."]
    train_epochs: Annotated[Real, EPOCHS, "Sum over all its members come from, each once, the hub included."]
    train_seconds: Annotated[Real, SECONDS, WHEN, "Training time, the same sum."]
    wall_seconds: Annotated[Real, SECONDS, WHEN, "From the start of the first of its own members to the commit."]
    close_seconds: Annotated[Real, SECONDS, WHEN, "Time of the last job: soups and scores."]
    device: Device
    versions: Versions
    finished_at: FinishedAt


class Member(Point):
    """One network; its commit."""

    member_id: MemberId
    parent_id: Annotated[Text, "Member it was started or drawn from; null if from the checkpoint."]
    kind: Annotated[Text, "`cycle`: trained; `tail`: trained, moments collected (`swag`); `sample`: drawn from a tail."]
    member_index: Annotated[Int, INDEX, "0 for the hub, then 1, 2, ...; null for a tail, which is in no ensemble."]
    max_lr: Annotated[Real, "Highest learning rate."]
    cycle_epochs: Annotated[Real, EPOCHS, "Length in epochs."]
    cycle_steps: Annotated[Int, STEPS, "Length in steps (batches)."]
    final_train_loss: Annotated[Real, NATS, "Mean training loss of the last epoch."]
    seed: Annotated[Int, "From which its randomness follows; the same for equal seed, replicate and member_index."]
    weights_sha256: Annotated[Text, "Its weights; of a tail their mean."]
    moments_sha256: Annotated[Text, "Of a tail: the file in `weights` with mean, squares and deviations."]
    parent_sha256: Annotated[Text, "Weights it was started from."]
    train_seconds: TrainSeconds
    images_per_second: Annotated[Real, Unit("images/s"), WHEN, "Training images per second of `train_seconds`."]
    job_seconds: JobSeconds
    device: Device
    versions: Versions
    finished_at: FinishedAt


class Epoch(Point):
    """One epoch of a training."""

    member_id: MemberId
    epoch: Annotated[int, KEY, "From 0. The last one of a cycle may be shorter."]
    lr: Annotated[Real, "Rate of its first step."]
    train_loss: Annotated[Real, NATS, "Mean over its images, in training mode and with augmentation."]
    train_error: Annotated[Real, SHARE, "Error rate over its images, in training mode and with augmentation."]


class PathPoint(Point):
    """One point of the straight line between two members, on one split."""

    cell_id: CellId
    path_id: Annotated[str, KEY, FILE, "Equal in all cells that share the path."]
    start_id: Annotated[str, "Member at t = 0."]
    end_id: Annotated[str, "Member at t = 1."]
    kind: Annotated[str, "`hub-member` or `member-member`."]
    split: Annotated[str, KEY, "`val`, `test` where `basin.splits` holds it, or `train` where `basin.split` is."]
    t: Annotated[float, KEY, "Place on the path, 0 to 1."]
    nll: Nll
    error: Error
    nll_excess: NllExcess
    nll_excess_se: NllExcessSe
    error_excess: ErrorExcess
    error_excess_se: ErrorExcessSe
    image_nll_excess: Annotated[
        Reals, NATS, "At the highest inner point: `nll_excess` of each image, in the order of the split; else null."
    ]
    image_error_excess: Annotated[
        Reals, SHARE, "At the highest inner point: `error_excess` of each image, in the order of the split; else null."
    ]
    l2_distance: Distance
    images: Images
    bn_images: BnImages
    job_seconds: JobSeconds


class Score(Point):
    """One predictor on one split, with one kind of batch-norm statistics; `SCORES` are measured of it."""

    cell_id: CellId
    predictor_id: PredictorId
    kind: Annotated[str, "`member`, `ensemble`, `uniform_soup` or `greedy_soup`."]
    n_members: Annotated[int, COUNT, "Networks in it; k for an ensemble of the first k, ingredients of a soup."]
    split: Split
    bn: BatchNorm


SCORES = {
    score.name: Annotated[Real, *([Unit(score.unit)] if score.unit else []), score.meaning] for score in scores.SCORES
}
"""The further columns of `scores`, as annotations."""


class Prediction(Point):
    """One predictor on one example."""

    eval_id: Annotated[str, KEY, "Hash of the images and of how they are shown."]
    predictor_id: Annotated[PredictorId, FILE]
    kind: Annotated[Text, "`member`, `uniform_soup` or `greedy_soup`."]
    n_members: Annotated[Int, COUNT, "Networks averaged into it."]
    split: Split
    bn: BatchNorm
    example: Annotated[int, KEY, "Position in the split, from 0."]
    label: Annotated[int, 'From 0, in the order of the classes (`results.facts["data"]["class_names"]`).']
    log_probs: Annotated[list[float], NATS, "Natural-log probabilities, one per class."]


class TracePoint(Point):
    """One point of the straight line to the weights inside a cycle, on one split."""

    cell_id: CellId
    trace_id: Annotated[str, "Equal in all cells that share the trace."]
    hub_id: Annotated[str, "Hub of the cell."]
    member_id: Annotated[str, KEY, "Run of these weights: a cycle, the tail of `swag`, or the hub itself at its end."]
    origin: Annotated[str, KEY, "Where the path starts: `hub`, or `checkpoint`, its body with the hub's head."]
    step: Annotated[int, KEY, STEPS, "Of the run, after which it had these weights."]
    steps_from_hub: Annotated[Int, STEPS, "These and those of the cycles between hub and run; 0 for the hub."]
    epochs_from_hub: Annotated[Real, EPOCHS, "`steps_from_hub` in epochs."]
    split: Annotated[str, KEY, "As in `paths`."]
    t: Annotated[float, KEY, "Place on the path, 0 at the origin, 1 at these weights."]
    nll: Nll
    error: Error
    nll_excess: NllExcess
    nll_excess_se: NllExcessSe
    error_excess: ErrorExcess
    error_excess_se: ErrorExcessSe
    l2_distance: Distance
    exact: Annotated[Bool, "Whether the run of these weights ended at the member's very bits; null for hubs and tails."]
    images: Images
    bn_images: BnImages
    job_seconds: JobSeconds


class PlanePoint(Point):
    """One point of the plane through three members."""

    plane_id: Annotated[str, KEY, "Hash of the cell, the members and their weights, split, points and margin."]
    cell_id: Annotated[str, "The cell of the members."]
    member_ids: Annotated[list[str], "The three members: at (0, 0), on the x axis, and above it."]
    member_index: Annotated[Int, INDEX, "Of a point that is one of these members: its place in the cell; else null."]
    row: Annotated[Int, "Of a point of the grid: from 0, upwards; else null."]
    column: Annotated[Int, "Of a point of the grid: from 0, rightwards; else null."]
    x: Annotated[float, KEY, "Distance along the line from the first member to the second, over parameters."]
    y: Annotated[float, KEY, "Distance from that line, over parameters."]
    split: Annotated[Text, "`val`, or `train`: the training images without augmentation."]
    nll: Nll
    error: Error
    images: Images
    bn_images: BnImages
    job_seconds: JobSeconds


class Failure(Point):
    """One failure of a cell; the row stays when a later run succeeds."""

    unit_id: Annotated[str, KEY, FILE, "`cell_id` of the cell that failed."]
    tries: Annotated[Int, "How often the job that failed was started in that run."]
    reason: Annotated[Text, "Which job failed, and why."]
    traceback: Annotated[Text, "The last 4 KB of where that was raised; null where a worker died without a word."]
    at: Annotated[datetime, KEY, WHEN, "Time of the failure."]


CHOSEN, ENDED = "chosen", "ended"
EVENTS = rf"{CHOSEN}(-\d+)?|{ENDED}"
"""What may stand there, as a regular expression."""


class ChosenPoint(Settings):
    """A point that a search has chosen by results, or a further replicate of it, or one that its scheduler has ended
    early. `replicate`: which one, of a search that chooses cell by cell; else null."""

    method: Annotated[str, ""]
    replicate: Annotated[Int, REPLICATE, ""]
    lr_ratio: Annotated[float, RATIO, ""]
    cycle_ratio: Annotated[float, RATIO, ""]
    point_id: Annotated[str, KEY, FILE, "Hash of where the point lies and of its settings."]
    event: Annotated[str, KEY, FILE, "`chosen`, `chosen-2` (its replicate 1 is) and so on, or `ended`."]
    variant: Annotated[Text, "As in `cells`."]
    searcher: Annotated[
        Text, "Who has chosen it: `search.searcher`, or `boundary`; null where it was a grid or `random`."
    ]
    replicates: Annotated[Int, "How many it has, of a point that was ended."]
    why: Annotated[
        Text, "Of `boundary`: `bracket` (the line is not yet known to a factor of 2), `refine`, or `replicate`."
    ]
    at: Annotated[datetime, WHEN, "Time of the event."]


class Checkpoint(Settings):
    """A checkpoint that a sweep made; its commit. It is no point of a map: these columns are null."""

    method: Annotated[Text, ""]
    replicate: Annotated[Int, REPLICATE, ""]
    lr_ratio: Annotated[Real, RATIO, ""]
    cycle_ratio: Annotated[Real, RATIO, ""]
    checkpoint_id: Annotated[str, KEY, FILE, "Hash of all that makes it."]
    source: Annotated[str, "`data.name` of what it was trained on."]
    model: Annotated[Text, "`model.name`."]
    n_classes: Annotated[Int, "Classes it was trained on."]
    val_accuracy: Annotated[Real, SHARE, "On the validation split of its own data."]
    train_epochs: Annotated[Real, EPOCHS, "Length of its training."]
    seed: Annotated[Int, "`pretrain.seed`, plus 1 for each further one of `count`."]
    weights_sha256: Annotated[str, "Its weights, with the head it was trained with."]
    train_seconds: TrainSeconds
    job_seconds: JobSeconds
    device: Device
    versions: Versions
    finished_at: FinishedAt


_ROWS: dict[str, Any] = {
    "cells": Cell, "members": Member, "epochs": Epoch, "paths": PathPoint, "scores": Score, "predictions": Prediction,
    "traces": TracePoint, "planes": PlanePoint, "failures": Failure, "checkpoints": Checkpoint,
    "points": ChosenPoint,
}  # fmt: skip
_TYPES = {
    str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), datetime: pa.timestamp("us", tz="UTC"),
    list[str]: pa.list_(pa.string()), list[float]: pa.list_(pa.float32()),
}  # fmt: skip


# What follows from the classes


@dataclass(frozen=True)
class Column:
    """What an annotation says of a column. `bounds` are of all values that are not null."""

    type: pa.DataType
    never_null: bool
    meaning: str
    unit: str
    marks: frozenset[str]
    bounds: Bounds | None


def _column(annotation: Any) -> Column:
    kind, *notes = get_args(annotation)
    nullable = NoneType in get_args(kind)
    kinds: tuple[type, ...] = (str, Unit, Mark, Bounds)
    by_kind: dict[type, list[Any]] = {of: [note for note in notes if type(note) is of] for of in kinds}
    return Column(
        type=_TYPES[get_args(kind)[0] if nullable else kind],
        never_null=not nullable,
        meaning="".join(by_kind[str]),
        unit="".join(by_kind[Unit]),
        marks=frozenset(by_kind[Mark]),
        bounds=next(iter(by_kind[Bounds]), None),
    )


def _columns(table: str) -> dict[str, Column]:
    annotations = get_type_hints(_ROWS[table], include_extras=True) | (SCORES if table == "scores" else {})
    own = [name for name in annotations if name not in COMMON]
    return {name: _column(annotations[name]) for name in (*FIRST, *own, *LAST)}


COLUMNS: dict[str, dict[str, Column]] = {table: _columns(table) for table in _ROWS}


def _marked(table: str, mark: Mark) -> tuple[str, ...]:
    return tuple(name for name, column in COLUMNS[table].items() if mark in column.marks)


KEYS = {table: _marked(table, KEY) for table in COLUMNS}
"""What is unique in each table. A predictor is scored anew under other evaluation settings: hence `eval_id`."""

FILE_NAMES = {table: _marked(table, FILE) for table in COLUMNS}
"""The columns whose values, joined by `-`, are the name of a file, or its beginning up to a further `-`. Where there
are none, the name does not follow from the rows."""

VOLATILE = frozenset(name for table in COLUMNS for name in _marked(table, WHEN))
"""Columns that tell when and how fast. All others are the same in two runs of one sweep on CPUs of one kind, with the
same versions and as many threads per worker, whatever was interrupted; `device` and `versions` say what it ran on."""

METRICS = tuple(
    name for name, column in COLUMNS["cells"].items()
    if column.type == pa.float64() and name.startswith(("val_", "barrier_", "member_barrier_", "rise_"))
)  # fmt: skip
"""What a search may go by: what is measured of a cell on validation images or, of paths, those of `basin.split`."""


def _schema(table: str) -> pa.Schema:
    columns = COLUMNS[table]
    # As pandas itself would leave word: integers are nullable ones, and no nulls make real numbers of them.
    integers = [{"name": name, "field_name": name, "pandas_type": "int64", "numpy_type": "Int64", "metadata": None}
                for name, column in columns.items() if column.type == pa.int64()]  # fmt: skip
    for_pandas = {"index_columns": [], "column_indexes": [], "columns": integers, "pandas_version": "2.2"}
    fields = []
    for name, column in columns.items():
        said = {"unit": column.unit, "description": column.meaning}
        fields.append(pa.field(name, column.type, metadata={key: text for key, text in said.items() if text}))
    of_file = {"table": table, "schema_version": str(SCHEMA_VERSION), "pandas": json.dumps(for_pandas)}
    return pa.schema(fields, of_file)


SCHEMAS = {table: _schema(table) for table in COLUMNS}
"""Of each table the schema that every file of it has whole, whatever is null."""
