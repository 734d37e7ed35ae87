"""What a worker does: each kind of job reads its inputs from the results folder and leaves its outcome there.

Jobs are idempotent and resumable, so it is enough that each is run at least once: what is committed is found and
kept, what was interrupted goes on from its last snapshot, and of two workers on one job the first to write wins and
the other goes on with what the first wrote. Nothing here knows Ray.

Tensors: N examples, C classes, P path points, M members.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raybasin import (
    barriers,
    basin,
    evaluation,
    hooks,
    images,
    keeping,
    methods,
    metrics,
    models,
    planes,
    schedules,
    scoring,
    soups,
    specs,
    swag,
    tables,
    traces,
    training,
)
from raybasin import plan as planning
from raybasin.augment import Preprocess
from raybasin.data import DataSet, Images
from raybasin.errors import UserError
from raybasin.images import DeviceImages
from raybasin.landscape import PlaneAsked
from raybasin.machine import describe, versions
from raybasin.plan import Cell, Job, Member, Path, Plan, PredictionFile, Trace
from raybasin.scoring import OWN, REESTIMATED, Soup
from raybasin.store import Folder

Beat = Callable[[], None]
"""Called whenever a job has got further, so that one that hangs can be told from one that is long."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Everything a worker needs at hand: where results lie, the plan, the data, and the device to use."""

    folder: Folder
    plan: Plan
    data: DataSet
    pretrain_data: Mapping[int, DataSet]
    device: torch.device
    shifts: Mapping[str, Images] = field(default_factory=dict)
    """Further evaluation sets, by the name of their split."""

    @cached_property
    def preprocess(self) -> Preprocess:
        return Preprocess(**asdict(self.plan.facts.preprocess))

    @cached_property
    def train(self) -> tuple[DeviceImages, Tensor]:
        return on_device(self.data.train, self.device)

    @cached_property
    def splits(self) -> dict[str, tuple[DeviceImages, Tensor]]:
        return {"val": on_device(self.data.val, self.device), "test": on_device(self.data.test, self.device)}

    def images(self, split: str) -> tuple[DeviceImages, Tensor]:
        """Images and labels of a split on the device; a shift set stays there only as long as it is looked at."""
        return self.splits[split] if split in self.splits else on_device(self.shifts[split], self.device)

    @cached_property
    def bn_images_NHWC(self) -> DeviceImages:
        chosen = evaluation.bn_indices(len(self.data.train), self.plan.bn_images, self.plan.spec.data.split_seed)
        return images.select(self.train[0], chosen)

    @property
    def statistics(self) -> tuple[str, ...]:
        return (OWN, REESTIMATED) if self.plan.facts.batch_norm else (OWN,)

    @property
    def soup_statistics(self) -> str:
        return self.statistics[-1]

    @cached_property
    def groups(self) -> Mapping[str, keeping.Group]:
        """Which cells are finished together, by cell_id."""
        return keeping.groups(self.plan)


def on_device(split: Images, device: torch.device) -> tuple[DeviceImages, Tensor]:
    """Images [N, H, W, 3] uint8, and labels [N] as a tensor."""
    return images.on_device(split.images_NHWC, device), torch.tensor(split.labels_N, device=device)


def run(job: Job, bench: Bench, beat: Beat = lambda: None) -> Row:
    """Does `job`. Of a cell it returns the committed row; else nothing, since all is in the folder.

    Raises FolderLost where it cannot be done because the folder cannot be written, or is gone.
    """
    try:
        return _run(job, bench, beat)
    except (OSError, UserError):
        bench.folder.check_there()  # a file that is missing may be the least of what is
        raise


def _run(job: Job, bench: Bench, beat: Beat) -> Row:
    match job.kind:
        case "checkpoint":
            pretrain(job.unit, bench, beat)
        case "member":
            train_member(bench.plan.members[job.unit], bench, beat)
        case "retrain":
            retrain_member(bench.plan.members[job.unit], bench, beat)
        case "predictions":
            known = planning.shared_columns(bench.plan, bench.plan.members[job.unit])
            _predict_member(job.unit, _sha256(bench.folder, job.unit), known, bench, beat)
        case "path":
            cell_id, path_id = job.unit.split("-")
            measure_path(bench.plan.cell[cell_id], bench.plan.paths[cell_id, path_id], bench, beat)
        case "trace":
            cell_id, trace_id = job.unit.split("-")
            measure_trace(bench.plan.cell[cell_id], bench.plan.traces[cell_id, trace_id], bench, beat)
        case "cell":
            row = close_cell(bench.plan.cell[job.unit], bench, beat)
            keeping.after_cell(job.unit, bench.folder, bench.plan, bench.groups)
            return row
        case _:
            raise ValueError(f"unknown kind of job: {job.kind}")
    return {}


# Checkpoints that the sweep makes itself


def pretrain(key: str, bench: Bench, beat: Beat) -> None:
    """Trains a checkpoint from random weights and commits it by its row in `checkpoints`."""
    if tables.exists(bench.folder, "checkpoints", key):
        return
    try:
        _pretrain(key, bench, beat)
    except FileNotFoundError:  # as in `train_member`
        if not tables.exists(bench.folder, "checkpoints", key):
            raise


def _pretrain(key: str, bench: Bench, beat: Beat) -> None:
    folder, plan = bench.folder, bench.plan
    started = time.monotonic()
    checkpoint = next(c for c in plan.facts.checkpoints if c.key == key)
    task = planning.pretrain_of(plan, checkpoint)
    data = bench.pretrain_data[planning.position_of(checkpoint)]
    preprocess = Preprocess(**asdict(planning.shown_for(task.data, plan.facts.preprocess)))
    images_NHWC, labels_N = on_device(data.train, bench.device)
    seed = specs.random_seed("pretrain", task.seed)
    batches = schedules.batches(len(images_NHWC), task.recipe.batch_size, task.recipe.drop_last)
    steps = task.recipe.epochs * len(batches)
    n_classes = len(data.class_names)
    net = _placed(models.build(plan.spec.model, n_classes, seed, task.recipe.drop_path), bench)
    cycle = training.Cycle(
        task.recipe, task.data.augment, steps, task.recipe.lr, seed, warm_up=True, n_classes=n_classes
    )
    trained = _train(net, images_NHWC, labels_N, cycle, preprocess, folder, f"checkpoint-{key}", beat)
    val_NHWC, val_labels_N = on_device(data.val, bench.device)
    with training.float32(task.recipe, bench.device):
        log_probs_NC = evaluation.log_probs(net, val_NHWC, preprocess, beat)
    row = {
        "checkpoint_id": key, "weights_sha256": _keep(folder, models.state_of(net)), "sweep": plan.spec.name,
        "settings_id": plan.settings_id, "checkpoint": checkpoint.name, "source": task.data.name,
        "model": plan.spec.model.name, "n_classes": len(data.class_names), "seed": task.seed,
        "val_accuracy": metrics.accuracy(log_probs_NC, val_labels_N.cpu().numpy()),
        "train_epochs": float(task.recipe.epochs), "train_seconds": trained.train_seconds,
        **_finish(bench, started),
    }  # fmt: skip
    tables.write(folder, "checkpoints", key, [row])
    folder.delete(f"state/checkpoint-{key}.safetensors")


# Members


def train_member(member: Member, bench: Bench, beat: Beat) -> None:
    """Trains a member from its parent's exact weights (or draws it), predicts with it, and commits it by its row in
    `members`."""
    if not tables.exists(bench.folder, "members", member.member_id):
        try:
            _train_member(member, bench, beat)
            return
        except FileNotFoundError:
            # Another sweep in this folder may have committed it meanwhile, and removed what it was made from.
            if not tables.exists(bench.folder, "members", member.member_id):
                raise
    _predict_committed(member, bench, beat)


def _predict_committed(member: Member, bench: Bench, beat: Beat) -> None:
    """The predictions of a member that somebody has committed, perhaps under other evaluation settings."""
    if member.kind != "tail":  # it is no member of an ensemble
        known = planning.shared_columns(bench.plan, member)
        _predict_member(member.member_id, _sha256(bench.folder, member.member_id), known, bench, beat)


def _train_member(member: Member, bench: Bench, beat: Beat) -> None:
    folder, plan = bench.folder, bench.plan
    started = time.monotonic()
    known = planning.shared_columns(plan, member)
    parent_sha256 = _parent_sha256(member, folder)
    made = _made_once(member, parent_sha256, bench, beat)
    if tables.exists(folder, "members", member.member_id):
        # Whoever committed it has removed what it was agreed on by, so `made` may be this worker's alone.
        _predict_committed(member, bench, beat)
        _forget(member, folder)
        return
    trained = made.trained
    if member.kind != "tail":  # it is no member of an ensemble
        _predict_member(member.member_id, made.sha256, known, bench, beat)
    if trained.epochs:
        epochs = [{"member_id": member.member_id, **asdict(epoch), **known} for epoch in trained.epochs]
        tables.write(folder, "epochs", member.member_id, epochs)
    images = member.cycle_epochs * plan.facts.data.n_train
    row = {
        "member_id": member.member_id, "kind": member.kind, "member_index": member.member_index,
        "parent_id": member.parent_id, "parent_sha256": parent_sha256, "weights_sha256": made.sha256,
        "moments_sha256": made.moments_sha256, "seed": member.seed, "max_lr": member.max_lr,
        "cycle_epochs": member.cycle_epochs, "cycle_steps": member.cycle_steps,
        "final_train_loss": trained.epochs[-1].train_loss if trained.epochs else None,
        "train_seconds": trained.train_seconds,
        "images_per_second": images / trained.train_seconds if trained.epochs else None,
        **known, **_finish(bench, started),
    }  # fmt: skip
    tables.write(folder, "members", member.member_id, [row])
    _forget(member, folder)


def retrain_member(member: Member, bench: Bench, beat: Beat) -> None:
    """Trains a committed member whose weights were dropped once more, to the same weights.

    Raises RuntimeError where it ends at others, as it may on a GPU: its predictions are not theirs.
    """
    folder = bench.folder
    row = tables.row(folder, "members", member.member_id)
    named = [sha256 for sha256 in (row["weights_sha256"], row["moments_sha256"]) if sha256]
    if not all(folder.exists(f"weights/{sha256}.safetensors") for sha256 in named):
        made = _made(member, str(row["parent_sha256"]), bench, beat)
        _forget(member, folder)
        others = {made.sha256, made.moments_sha256} - {*named, None}
        if others:
            for sha256 in others:
                folder.delete(f"weights/{sha256}.safetensors")
            raise RuntimeError(
                f"member {member.member_id} was trained again and has come out with other weights than those that were "
                "dropped (recipe.deterministic prevents it); take another results folder to train all of it anew"
            )
    keeping.restored(member.member_id, folder)


def _forget(member: Member, folder: Folder) -> None:
    """Removes what a committed member could have been resumed from."""
    for suffix in ("safetensors", "json"):
        folder.delete(f"state/member-{member.member_id}.{suffix}")


def _predict_member(member_id: str, sha256: str, known: Row, bench: Bench, beat: Beat) -> None:
    """Stores the predictions of a member that are to be kept and are not there, with its own statistics and with
    re-estimated ones."""
    missing = _missing_files(member_id, bench)
    if not missing:
        return
    state = _weights(bench.folder, sha256)
    states = {OWN: state}
    if REESTIMATED in bench.statistics:
        states[REESTIMATED] = _reestimated(state, bench, beat)
    _store_predictions(member_id, states, missing, {"kind": "member", "n_members": 1, **known}, bench, beat)


@dataclass(frozen=True)
class _Made:
    """What has become of a member: its weights, of a tail also the moments along it, and how it was trained."""

    sha256: str
    trained: training.Trained
    moments_sha256: str | None = None


def _made_once(member: Member, parent_sha256: str, bench: Bench, beat: Beat) -> _Made:
    """A member as the first worker to finish it left it.

    On GPUs two workers may end at different weights; everything after this speaks of the same ones.
    """
    folder, outcome = bench.folder, f"state/member-{member.member_id}.json"
    if not folder.exists(outcome):
        made = _made(member, parent_sha256, bench, beat)
        folder.put_new(outcome, json.dumps(asdict(made)).encode())
    known = json.loads(folder.get(outcome))
    return _Made(known["sha256"], training.trained_from_dict(known["trained"]), known.get("moments_sha256"))


def _made(member: Member, parent_sha256: str, bench: Bench, beat: Beat) -> _Made:
    return _drawn(member, bench, beat) if member.kind == "sample" else _trained(member, parent_sha256, bench, beat)


def _trained(member: Member, parent_sha256: str, bench: Bench, beat: Beat) -> _Made:
    net = _placed(_start(member, parent_sha256, bench), bench)
    hook = _hook(member, bench)
    unit = f"member-{member.member_id}"
    trained = _train(net, *bench.train, _cycle(member, bench), bench.preprocess, bench.folder, unit, beat, hook,
                     _watch(member, bench))  # fmt: skip
    if not isinstance(hook, hooks.Collecting):
        return _Made(_keep(bench.folder, models.state_of(net)), trained)
    moments = _keep(bench.folder, swag.to_tensors(hook.moments))
    mean = {name: tensor.float() for name, tensor in (hook.moments.mean or {}).items()}
    return _Made(_keep(bench.folder, _with_parameters(net, mean, bench, beat)), trained, moments)


def _drawn(member: Member, bench: Bench, beat: Beat) -> _Made:
    """A network drawn from the moments of the tail it descends from. That takes no training."""
    tail = tables.row(bench.folder, "members", str(member.parent_id))
    moments = swag.from_tensors(_weights(bench.folder, str(tail["moments_sha256"])))
    weights = swag.draw(moments, member.option["scale"], specs.random_seed(member.seed, "swag"))
    net = _network(_weights(bench.folder, str(tail["weights_sha256"])), bench)
    return _Made(_keep(bench.folder, _with_parameters(net, weights, bench, beat)), training.Trained((), 0.0))


def _with_parameters(net: nn.Module, parameters: models.State, bench: Bench, beat: Beat) -> models.State:
    """The state of `net` with other parameters, and with batch-norm statistics estimated for them."""
    net.load_state_dict(parameters, strict=False)
    _reestimate(net, bench, beat)
    return models.state_of(net)


def _cycle(member: Member, bench: Bench) -> training.Cycle:
    spec = bench.plan.spec
    return training.Cycle(
        spec.recipe, spec.data.augment, member.cycle_steps, member.max_lr, member.seed,
        shape=methods.METHODS[member.method].shape if member.parent_id else "cosine",
        low_ratio=member.option.get("low_ratio", 1.0), warm_up=member.parent_id is None,
        n_classes=bench.plan.facts.data.n_classes,
    )  # fmt: skip


def _hook(member: Member, bench: Bench) -> hooks.Hook:
    """What the member's method does at a step."""
    option, steps = member.option, member.cycle_steps
    if member.kind == "tail":
        return hooks.Collecting(int(option["collect_steps"]), steps, int(option["rank"]))
    if "temperature" in option:
        first = steps - math.ceil(option["noise_share"] * steps)
        momentum = bench.plan.spec.recipe.momentum
        return hooks.Langevin(first, option["temperature"], bench.plan.facts.data.n_train, momentum, member.seed)
    return hooks.Nothing()


def _start(member: Member, parent_sha256: str, bench: Bench) -> nn.Module:
    """The network at the first step: the parent's exact weights, or a checkpoint's with the member's own head."""
    parent, drop_path = _weights(bench.folder, parent_sha256), bench.plan.spec.recipe.drop_path
    if member.parent_id is not None:
        return _network(parent, bench, drop_path)
    head_seed = specs.random_seed(member.seed, "head")
    model, n_classes = bench.plan.spec.model, bench.plan.facts.data.n_classes
    return models.with_new_head(model, parent, n_classes, head_seed, drop_path)


def _parent_sha256(member: Member, folder: Folder) -> str:
    if member.parent_id is not None:
        return str(tables.row(folder, "members", member.parent_id)["weights_sha256"])
    if member.checkpoint.pretrain is not None:
        return str(tables.row(folder, "checkpoints", member.checkpoint.key)["weights_sha256"])
    return member.checkpoint.key


def _train(
    net: nn.Module,
    images_NHWC: DeviceImages,
    labels_N: Tensor,
    cycle: training.Cycle,
    preprocess: Preprocess,
    folder: Folder,
    unit: str,
    beat: Beat,
    hook: hooks.Hook | None = None,
    watch: training.Watch | None = None,
) -> training.Trained:
    """Trains on from the snapshot of `unit`, if there is one, and leaves snapshots on the way."""
    key = f"state/{unit}.safetensors"
    try:
        resume = training.snapshot_from_bytes(folder.get(key)) if folder.exists(key) else None
    except ValueError as error:
        file = folder.name(key)
        raise OSError(f"{file} is damaged; `raybasin check {folder.root} --repair` moves it aside") from error
    return training.train(
        net, images_NHWC, labels_N, cycle, preprocess, resume=resume,
        save=lambda snapshot: folder.put(key, training.snapshot_to_bytes(snapshot)),
        beat=beat, hook=hook, watch=watch,
    )  # fmt: skip


# Predictions


def _missing_files(predictor_id: str, bench: Bench) -> list[PredictionFile]:
    unit = functools.partial(tables.prediction_unit, predictor_id)
    return bench.plan.missing_files(lambda name: tables.exists(bench.folder, "predictions", unit(name)))


def _store_predictions(
    predictor_id: str,
    states: Mapping[str, models.State],
    files: Iterable[PredictionFile],
    known: Row,
    bench: Bench,
    beat: Beat,
) -> None:
    """Writes the predictions of a network whose weights `states` has, by whose batch-norm statistics they are with."""
    net = _network(next(iter(states.values())), bench)
    for file in files:
        blocks = [block for split in file.splits for block in _blocks(net, states, split, bench, beat)]
        tables.write_predictions(bench.folder, predictor_id, file.eval_id, blocks, known, file.name)


def _blocks(
    net: nn.Module, states: Mapping[str, models.State], split: str, bench: Bench, beat: Beat
) -> Iterator[tables.Block]:
    """The predictions of each state on one split; `net` is given their weights."""
    images_NHWC, labels_N = bench.images(split)
    for bn, state in states.items():
        net.load_state_dict(state)
        log_probs_NC = _log_probs(net, images_NHWC, bench, beat)
        yield tables.Block(split, bn, log_probs_NC, labels_N.cpu().numpy())


def _log_probs(net: nn.Module, images_NHWC: DeviceImages, bench: Bench, beat: Beat) -> np.ndarray:
    with training.float32(bench.plan.spec.recipe, bench.device):
        return evaluation.log_probs(net, images_NHWC, bench.preprocess, beat)


def _reestimated(state: models.State, bench: Bench, beat: Beat) -> models.State:
    """The same weights with new batch-norm statistics."""
    net = _network(state, bench)
    _reestimate(net, bench, beat)
    return models.state_of(net)


def _reestimate(net: nn.Module, bench: Bench, beat: Beat) -> None:
    """New batch-norm statistics for the weights that `net` has; nothing where it has no batch norm."""
    with training.float32(bench.plan.spec.recipe, bench.device):
        basin.reestimate_batch_norm(net, evaluation.batches(bench.bn_images_NHWC, bench.preprocess, beat))


def _stored(bench: Bench) -> scoring.Predictions:
    """The predictions in the folder, of the splits whose predictions are kept."""
    plan = bench.plan
    eval_ids = {split: plan.shift_eval_ids.get(split, plan.eval_id) for split in plan.kept_splits}
    return scoring.stored(bench.folder, eval_ids, plan.facts.batch_norm)


# Paths


def measure_path(cell: Cell, path: Path, bench: Bench, beat: Beat) -> None:
    """NLL and error along the straight line between two members, batch norm re-estimated at every point.

    The ends are not run again: they are the members' stored predictions with re-estimated statistics.
    """
    folder, plan, bn = bench.folder, bench.plan, bench.soup_statistics
    unit = f"{cell.cell_id}-{path.path_id}"
    if tables.exists(folder, "paths", unit):
        return
    started = time.monotonic()
    start, end = (_weights(folder, _sha256(folder, member_id)) for member_id in (path.start_id, path.end_id))
    net = _network(start, bench)
    t_P = barriers.path_points(plan.spec.basin.points)
    inside = [_at(net, basin.interpolate(start, end, t), plan.spec.basin.splits, bench, beat) for t in t_P[1:-1]]
    named = {
        "cell_id": cell.cell_id, "path_id": path.path_id, "kind": path.kind, "start_id": path.start_id,
        "end_id": path.end_id, "bn_images": plan.bn_images if plan.facts.batch_norm else 0,
        "l2_distance": basin.l2_distance(start, end, [name for name, _ in net.named_parameters()]),
        "job_seconds": time.monotonic() - started, **planning.shared_columns(plan, cell),
    }  # fmt: skip
    rows: list[Row] = []
    for split in plan.spec.basin.splits:
        ends = _stored(bench).read(split, [path.start_id, path.end_id])
        at_start, at_end = (ends.log_probs[end_id, bn] for end_id in (path.start_id, path.end_id))
        log_probs_PNC = [at_start, *(point[split] for point in inside), at_end]
        points = _points(log_probs_PNC, ends.labels_N, t_P)
        rows += [{**named, "split": split, "images": len(at_start), **point} for point in points]
    tables.write(folder, "paths", unit, rows)


def _at(net: nn.Module, state: models.State, splits: Iterable[str], bench: Bench, beat: Beat) -> dict[str, np.ndarray]:
    """Log-probabilities [N, C] on each split of the network with the weights `state` and new statistics."""
    net.load_state_dict(state)
    _reestimate(net, bench, beat)
    with training.float32(bench.plan.spec.recipe, bench.device):
        return {split: evaluation.log_probs(net, bench.splits[split][0], bench.preprocess, beat) for split in splits}


def _points(log_probs_PNC: Sequence[np.ndarray], labels_N: np.ndarray, t_P: Sequence[float]) -> list[Row]:
    nll_P = [metrics.nll(log_probs_NC, labels_N) for log_probs_NC in log_probs_PNC]
    wrong_PN = np.stack([log_probs_NC.argmax(1) != labels_N for log_probs_NC in log_probs_PNC])
    return scoring.path_rows(nll_P, wrong_PN, t_P)


# Traces


def measure_trace(cell: Cell, trace: Trace, bench: Bench, beat: Beat) -> None:
    """NLL and error along the straight lines from the hub, and from the checkpoint with the hub's head, to the weights
    that a run had after some of its steps, batch norm re-estimated at every point.

    The weights inside the cycle, which the run has left behind, are removed when the rows are there. A run that has
    left none is trained again.
    """
    folder, plan = bench.folder, bench.plan
    unit = f"{cell.cell_id}-{trace.trace_id}"
    if not tables.exists(folder, "traces", unit):
        rows = _traced(trace, folder) or _trace_rows(cell, trace, bench, beat)
        own = {"cell_id": cell.cell_id, **planning.shared_columns(plan, cell)}
        tables.write(folder, "traces", unit, [{**row, **own} for row in rows])
    for step in plan.trace_steps(plan.members[trace.member_id]):
        folder.delete(_inside_key(trace.member_id, step))


def _traced(trace: Trace, folder: Folder) -> list[Row]:
    """The rows of the same trace in another cell, an ensemble of another size for instance; none if there are none."""
    known = [unit for unit in tables.units(folder, "traces") if unit.endswith(f"-{trace.trace_id}")]
    return tables.rows(folder, "traces", known[:1]) if known else []


def _trace_rows(cell: Cell, trace: Trace, bench: Bench, beat: Beat) -> list[Row]:
    started = time.monotonic()
    plan, splits, bn = bench.plan, bench.plan.spec.basin.splits, bench.soup_statistics
    hub_id, member = cell.member_ids[0], plan.members[trace.member_id]
    steps = plan.trace_steps(member)
    hub = _weights(bench.folder, _sha256(bench.folder, hub_id))
    net = _network(hub, bench)
    # The checkpoint has no head for the task. With the hub's it is the same network but for the body.
    pretrained = _weights(bench.folder, _parent_sha256(plan.members[hub_id], bench.folder))
    checkpoint = {**hub, **models.without_head(pretrained, models.head_names(net, plan.spec.model))}
    is_hub = trace.member_id == hub_id
    exact = None if is_hub else _leave_inside(member, steps, bench, beat)
    stored = {split: _stored(bench).read(split, [hub_id]) for split in splits}
    labels: dict[str, np.ndarray] = {split: found.labels_N for split, found in stored.items()}
    at_hub: dict[str, np.ndarray] = {split: found.log_probs[hub_id, bn] for split, found in stored.items()}
    starts: dict[str, _Located] = {traces.CHECKPOINT: (checkpoint, _at(net, checkpoint, splits, bench, beat))}
    if not is_hub:
        starts[traces.HUB] = hub, at_hub
    rows: list[Row] = []
    for step in steps:
        end = hub if is_hub else models.from_bytes(bench.folder.get(_inside_key(trace.member_id, step)))
        at_end = at_hub if is_hub else _at(net, end, splits, bench, beat)
        steps_from_hub = 0 if is_hub else trace.steps_before + step
        known = {
            "trace_id": trace.trace_id, "hub_id": hub_id, "member_id": trace.member_id, "step": step, "exact": exact,
            "steps_from_hub": steps_from_hub, "epochs_from_hub": steps_from_hub / plan.steps_per_epoch,
            "bn_images": plan.bn_images if plan.facts.batch_norm else 0,
        }  # fmt: skip
        for origin, start in starts.items():
            points = _straight(net, start, (end, at_end), labels, bench, beat)
            rows += [{**known, "origin": origin, **point} for point in points]
    seconds = time.monotonic() - started
    return [{**row, "job_seconds": seconds} for row in rows]


_Located = tuple[models.State, Mapping[str, np.ndarray]]
"""Weights, and the log-probabilities [N, C] that they give on each split."""


def _straight(
    net: nn.Module,
    start: _Located,
    end: _Located,
    labels: Mapping[str, np.ndarray],
    bench: Bench,
    beat: Beat,
) -> list[Row]:
    """The rows of one path of a trace on every split."""
    t_P = barriers.path_points(bench.plan.spec.basin.trace_points)
    splits = bench.plan.spec.basin.splits
    inside = [_at(net, basin.interpolate(start[0], end[0], t), splits, bench, beat) for t in t_P[1:-1]]
    names = [name for name, _ in net.named_parameters()]
    known = {"l2_distance": basin.l2_distance(start[0], end[0], names)}
    return [
        {**known, "split": split, "images": len(labels[split]), **point}
        for split in splits
        for point in _points(
            [start[1][split], *(found[split] for found in inside), end[1][split]], labels[split], t_P
        )
    ]  # fmt: skip


def _leave_inside(member: Member, steps: Sequence[int], bench: Bench, beat: Beat) -> bool | None:
    """Sees to it that the weights of a run after `steps` are there; says whether the run they are of ended at the very
    weights of the member (None for a tail, whose weights are a mean)."""
    folder, unit = bench.folder, f"repeat-{member.member_id}"
    missing = [step for step in steps if not folder.exists(_inside_key(member.member_id, step))]
    row = tables.row(folder, "members", member.member_id)
    if missing:
        snapshot = f"state/{unit}.safetensors"
        if folder.exists(snapshot):
            done = len(training.snapshot_from_bytes(folder.get(snapshot)).done.epochs) * bench.plan.steps_per_epoch
            if done >= missing[0]:  # from there on it would not pass by what is missing
                folder.delete(snapshot)
        net = _placed(_start(member, str(row["parent_sha256"]), bench), bench)
        _train(net, *bench.train, _cycle(member, bench), bench.preprocess, folder, unit, beat, _hook(member, bench),
               _leaving(member.member_id, steps, folder))  # fmt: skip
        folder.delete(snapshot)
    last = models.sha256(folder.get(_inside_key(member.member_id, steps[-1])))
    return None if member.kind == "tail" else last == row["weights_sha256"]


def _watch(member: Member, bench: Bench) -> training.Watch | None:
    """What leaves the weights inside the cycle of a run that is to be traced."""
    trace = bench.plan.traced.get(member.member_id)
    if trace is None or member.parent_id is None or _traced(trace, bench.folder):
        return None
    return _leaving(member.member_id, bench.plan.trace_steps(member), bench.folder)


def _leaving(member_id: str, steps: Iterable[int], folder: Folder) -> training.Watch:
    def leave(net: nn.Module, step: int) -> None:
        folder.put_new(_inside_key(member_id, step), models.to_bytes(models.state_of(net)))

    return {step: functools.partial(leave, step=step) for step in steps}


def _inside_key(member_id: str, step: int) -> str:
    return f"state/trace-{member_id}-{step}.safetensors"


# Planes


def measure_plane(asked: PlaneAsked, bench: Bench, beat: Callable[[int, int], None] = lambda done, units: None) -> None:
    """NLL and error on a grid in the plane through three members, and at the members themselves, batch norm
    re-estimated at every point. Each row of the grid is committed by itself, so that this can be interrupted.

    `beat` is told before each file how many of those that were missing are done. Raises UserError for members on one
    line, OSError where weights are gone.
    """
    a, b, c = (_weights(bench.folder, sha256) for sha256 in asked.sha256s)
    net = _network(a, bench)
    try:
        frame = planes.frame(a, b, c, [name for name, _ in net.named_parameters()])
    except ValueError as error:
        raise UserError(f"--members {asked.named}: span no plane ({error}); name others") from error
    x_X, y_Y = planes.grid(frame.members, asked.points, asked.margin)
    index_of, on_grid = dict(zip(frame.members, asked.indices, strict=True)), set(product(x_X, y_Y))
    # A member that is a point of the grid stands among the members, and not in its row as well.
    rows = [[(x, y) for x in x_X if (x, y) not in index_of] for y in y_Y]
    missing = [
        (unit, points)
        for unit, points in zip(asked.units, [list(frame.members), *rows], strict=True)
        if not tables.exists(bench.folder, "planes", unit)
    ]
    known = {
        "plane_id": asked.plane_id, "cell_id": asked.cell_id, "member_ids": list(asked.member_ids),
        "split": asked.split, "bn_images": bench.plan.bn_images if bench.plan.facts.batch_norm else 0,
        **planning.shared_columns(bench.plan, bench.plan.cell[asked.cell_id]),
    }  # fmt: skip
    for number, (unit, points) in enumerate(missing):
        beat(number, len(missing))
        started = time.monotonic()
        placed = [
            {**known, "x": x, "y": y, "member_index": index_of.get((x, y)),
             "row": y_Y.index(y) if (x, y) in on_grid else None,
             "column": x_X.index(x) if (x, y) in on_grid else None,
             **_plane_point(net, planes.state_at(a, b, c, frame.shares(x, y)), asked.split, bench)}
            for x, y in points
        ]  # fmt: skip
        seconds = time.monotonic() - started
        tables.write(bench.folder, "planes", unit, [{**row, "job_seconds": seconds} for row in placed])


def _plane_point(net: nn.Module, state: models.State, split: str, bench: Bench) -> Row:
    images_NHWC, labels_N = bench.train if split == "train" else bench.splits[split]
    net.load_state_dict(state)
    _reestimate(net, bench, lambda: None)
    with training.float32(bench.plan.spec.recipe, bench.device):
        log_probs_NC = evaluation.log_probs(net, images_NHWC, bench.preprocess)
    labels = labels_N.cpu().numpy()
    if np.isnan(log_probs_NC).any():  # far out a network may overflow
        return {"nll": math.nan, "error": math.nan, "images": len(labels)}
    return {"nll": metrics.nll(log_probs_NC, labels), "error": float((log_probs_NC.argmax(1) != labels).mean()),
            "images": len(labels)}  # fmt: skip


# Cells


def close_cell(cell: Cell, bench: Bench, beat: Beat) -> Row:
    """Makes the soups of a cell whose members and paths are there, scores everything, and commits the cell by its row
    in `cells`, which it returns.

    Of a cell that is committed it stores the predictions of soups that are to be kept by now and are not there.
    """
    folder, plan = bench.folder, bench.plan
    if tables.exists(folder, "cells", cell.cell_id):
        return _complete(cell, bench, beat)
    started = time.monotonic()
    states = [_weights(folder, _sha256(folder, member_id)) for member_id in cell.member_ids]
    made = _soups(cell, states, bench, beat)
    networks = _networks(cell, states, made, bench, beat)
    _store_soups(cell, made, networks, bench, beat)
    known = planning.shared_columns(plan, cell)
    agreement = f"state/cell-{cell.cell_id}.json"
    reference = _agreed_reference(cell, bench, agreement)
    if tables.exists(folder, "cells", cell.cell_id):  # as with members, the agreement may be this worker's alone
        folder.delete(agreement)
        return _complete(cell, bench, beat)
    references = _references(reference, cell, folder)
    scores = scoring.score_rows(cell, made, _every_split(networks, bench, beat), references)
    if reference.cell_id == cell.cell_id:
        references = scoring.references_of(scores)
        scores = scoring.with_equivalents(scores, references)
    tables.write(folder, "scores", cell.cell_id, [{**row, **known} for row in scores])
    paths = tables.rows(folder, "paths", [f"{cell.cell_id}-{path.path_id}" for path in cell.paths])
    traced = tables.rows(folder, "traces", [f"{cell.cell_id}-{trace.trace_id}" for trace in cell.traces])
    members = tables.rows(folder, "members", cell.trained_ids)
    kept = {soup.kind: soup for soup in made if soup.sha256}
    row = {
        "cell_id": cell.cell_id, "member_ids": list(cell.member_ids), "hub_id": cell.member_ids[0],
        "n_members": len(cell.member_ids), "max_lr": cell.max_lr, "cycle_epochs": cell.cycle_epochs,
        "reference_ids": list(reference.member_ids) if references else [], "variant": cell.variant, **known,
        "soup_sha256": kept["uniform"].sha256 if "uniform" in kept else None,
        "greedy_soup_sha256": kept["greedy"].sha256 if "greedy" in kept else None,
        "greedy_soup_members": list(kept["greedy"].members) if "greedy" in kept else None,
        "kept_predictions": list(plan.kept_splits),
        **scoring.cell_scores(cell, paths, scores, bench.soup_statistics, plan.spec.basin.threshold),
        **traces.summary(traced, plan.spec.basin.threshold),
        "train_epochs": sum(member["cycle_epochs"] for member in members),
        "train_seconds": sum(member["train_seconds"] for member in members),
        "wall_seconds": _wall_seconds(members[1:]), "close_seconds": time.monotonic() - started,
        "device": describe(bench.device), "versions": versions(), "finished_at": tables.now(),
    }  # fmt: skip
    first = tables.write(folder, "cells", cell.cell_id, [row])
    folder.delete(agreement)
    return row if first else _complete(cell, bench, beat)


def _complete(cell: Cell, bench: Bench, beat: Beat) -> Row:
    """The row of a committed cell, once all predictions of its soups that are to be kept are there, and its soups where
    they were dropped and are to be kept by now."""
    folder = bench.folder
    row = tables.row(folder, "cells", cell.cell_id)
    made = scoring.soups_of(row)
    wanted = bench.plan.spec.keep.weights != "best" and keeping.is_dropped(cell.cell_id, folder)
    if wanted or any(_missing_files(soup.predictor_id, bench) for soup in made):
        states = [_weights(folder, _sha256(folder, member_id)) for member_id in cell.member_ids]
        networks = _networks(cell, states, made, bench, beat)
        _store_soups(cell, made, networks, bench, beat)
        if wanted:
            _restore_soups(cell, made, networks, bench)
    return row


def _restore_soups(cell: Cell, made: Sequence[Soup], networks: Networks, bench: Bench) -> None:
    for soup in made:
        if soup.sha256 and _keep(bench.folder, networks[soup.predictor_id, bench.soup_statistics]()) != soup.sha256:
            raise RuntimeError(f"the {soup.kind} soup of cell {cell.cell_id} is not the one that was dropped")
    keeping.restored(cell.cell_id, bench.folder)


@dataclass(frozen=True)
class _Reference:
    """The Local DE cell that a cell is compared with: its id and members, none where there is none."""

    cell_id: str = ""
    member_ids: tuple[str, ...] = ()


def _agreed_reference(cell: Cell, bench: Bench, agreement: str) -> _Reference:
    """What the cell is compared with: what the first worker to ask found. Two sweeps that share the cell may differ in
    this, and its scores and its row must not."""
    folder, reference = bench.folder, bench.plan.reference_of(cell)
    found = _Reference()
    if reference is not None and (reference == cell or tables.exists(folder, "cells", reference.cell_id)):
        found = _Reference(reference.cell_id, reference.member_ids)
    folder.put_new(agreement, json.dumps(asdict(found)).encode())
    try:
        agreed = json.loads(folder.get(agreement))
    except FileNotFoundError:  # the cell has been committed meanwhile
        return found
    return _Reference(agreed["cell_id"], tuple(agreed["member_ids"]))


def _references(reference: _Reference, cell: Cell, folder: Folder) -> scoring.References:
    """What the deep-ensemble equivalent is measured against: the scores of the Local DE cell. (Its own are yet to be
    computed.)"""
    if reference.cell_id in ("", cell.cell_id) or not tables.exists(folder, "scores", reference.cell_id):
        return {}
    return scoring.references_of(tables.rows(folder, "scores", [reference.cell_id]))


def _wall_seconds(members: Sequence[Row]) -> float:
    """From when the first of a cell's own members was begun until now."""
    return max((tables.now() - member["finished_at"]).total_seconds() + member["job_seconds"] for member in members)


# The networks of a cell: members and soups

Networks = Mapping[tuple[str, str], Callable[[], models.State]]
"""Weights by (predictor_id, bn), made when they are asked for."""


def _networks(
    cell: Cell, states: Sequence[models.State], made: Sequence[Soup], bench: Bench, beat: Beat
) -> Networks:
    """The members with either kind of statistics, and the soups. Where splits are scored without storing predictions,
    every network is needed for each of them: what is made is then kept."""
    kept = functools.cache if bench.plan.kept_splits != bench.plan.splits else lambda make: make
    dropped = keeping.is_dropped(cell.cell_id, bench.folder)
    found: dict[tuple[str, str], Callable[[], models.State]] = {}
    for member_id, state in zip(cell.member_ids, states, strict=True):
        found[member_id, OWN] = functools.partial(_itself, state)
        if REESTIMATED in bench.statistics:
            found[member_id, REESTIMATED] = kept(functools.partial(_reestimated, state, bench, beat))
    for soup in made:
        ingredients = [states[cell.member_ids.index(member_id)] for member_id in soup.members]
        make = (
            functools.partial(_weights, bench.folder, soup.sha256)
            if soup.sha256 and not dropped
            else functools.partial(_average, ingredients, bench, beat)
        )
        found[soup.predictor_id, bench.soup_statistics] = kept(make)
    return found


def _itself(state: models.State) -> models.State:
    return state


def _average(states: Iterable[models.State], bench: Bench, beat: Beat) -> models.State:
    """A uniform soup: the mean of all weights, with batch-norm statistics estimated for it."""
    return _reestimated(basin.average(states), bench, beat)


def _every_split(networks: Networks, bench: Bench, beat: Beat) -> scoring.Predictions:
    """The predictions of a cell: from the folder, and where they are not kept from the networks themselves."""
    stored = _stored(bench)

    def read(split: str, predictor_ids: Sequence[str]) -> scoring.Split:
        beat()
        return stored.read(split, predictor_ids) if split in stored.splits else _looked_at(split, networks, bench, beat)

    return scoring.Predictions(bench.plan.splits, stored.batch_norm, read)


def _looked_at(split: str, networks: Networks, bench: Bench, beat: Beat) -> scoring.Split:
    """The predictions of all networks on one split."""
    images_NHWC, labels_N = bench.images(split)
    net: nn.Module | None = None
    log_probs = {}
    for key, weights in networks.items():
        net = _network(weights(), bench) if net is None else net
        net.load_state_dict(weights())
        log_probs[key] = _log_probs(net, images_NHWC, bench, beat)
    return scoring.Split(labels_N.cpu().numpy(), log_probs)


# Soups


def _soups(cell: Cell, states: Sequence[models.State], bench: Bench, beat: Beat) -> list[Soup]:
    """The soups that the sweep asks for. Weights are kept of those of all members; smaller ones are averaged anew."""
    made: list[Soup] = []
    if "uniform" in bench.plan.spec.soups:
        everyone = tuple(range(len(states)))
        made += scoring.uniform_soups(cell.member_ids)[:-1]
        made.append(_kept_soup("uniform", cell, states, lambda: everyone, bench, beat))
    if "greedy" in bench.plan.spec.soups:
        made.append(_kept_soup("greedy", cell, states, lambda: _greedy(cell, states, bench, beat), bench, beat))
    return made


def _kept_soup(
    kind: str,
    cell: Cell,
    states: Sequence[models.State],
    choose: Callable[[], tuple[int, ...]],
    bench: Bench,
    beat: Beat,
) -> Soup:
    """Makes a soup of those members that `choose` names, and stores its weights.

    As with members, everything after its making speaks of the weights that the first worker left. What that left stays:
    cells that differ only in how their paths are measured have the same soups, and the same predictions of them.
    """
    folder, predictor_id = bench.folder, scoring.soup_id(kind, cell)
    outcome = f"state/soup-{tables.prediction_unit(predictor_id, bench.plan.eval_id)}.json"
    known = json.loads(folder.get(outcome)) if folder.exists(outcome) else None
    if known is None or not folder.exists(f"weights/{known['sha256']}.safetensors"):  # moved aside, if it was there
        chosen = choose()
        state = _average([states[index] for index in chosen], bench, beat)
        left = {"sha256": _keep(folder, state), "members": [cell.member_ids[index] for index in chosen]}
        write = folder.put_new if known is None else folder.put
        write(outcome, json.dumps(left).encode())
        known = json.loads(folder.get(outcome))
    return Soup(kind, predictor_id, tuple(known["members"]), known["sha256"])


def _store_soups(cell: Cell, made: Iterable[Soup], networks: Networks, bench: Bench, beat: Beat) -> None:
    """Stores the predictions of soups that are to be kept and are not there: a cell whose first members are the same
    may have left them."""
    bn, known = bench.soup_statistics, planning.shared_columns(bench.plan, cell)
    for soup in made:
        missing = _missing_files(soup.predictor_id, bench)
        if missing:
            columns = {"kind": f"{soup.kind}_soup", "n_members": len(soup.members), **known}
            states = {bn: networks[soup.predictor_id, bn]()}
            _store_predictions(soup.predictor_id, states, missing, columns, bench, beat)


def _greedy(cell: Cell, states: Sequence[models.State], bench: Bench, beat: Beat) -> tuple[int, ...]:
    """Which members go into the greedy soup: chosen on validation, with re-estimated statistics throughout."""
    stored = _stored(bench).read("val", cell.member_ids)
    labels_N, log_probs_MNC = stored.labels_N, stored.of(cell.member_ids, bench.soup_statistics)
    accuracy_M = [metrics.accuracy(log_probs_NC, labels_N) for log_probs_NC in log_probs_MNC]
    nll_M = [metrics.nll(log_probs_NC, labels_N) for log_probs_NC in log_probs_MNC]
    net = _network(states[0], bench)

    def validation_accuracy(members: tuple[int, ...]) -> float:
        if len(members) == 1:
            return accuracy_M[members[0]]
        average = basin.average(states[index] for index in members)
        return metrics.accuracy(_at(net, average, ("val",), bench, beat)["val"], labels_N)

    return soups.greedy_soup(soups.greedy_order(accuracy_M, nll_M), validation_accuracy).ingredients


# Small things


def _finish(bench: Bench, started: float) -> Row:
    return {"job_seconds": time.monotonic() - started, "device": describe(bench.device), "versions": versions(),
            "finished_at": tables.now()}  # fmt: skip


def _keep(folder: Folder, state: models.State) -> str:
    """Stores weights under the SHA-256 of their bytes, which it returns."""
    content = models.to_bytes(state)
    sha256 = models.sha256(content)
    folder.put_new(f"weights/{sha256}.safetensors", content)
    return sha256


def _weights(folder: Folder, sha256: str) -> models.State:
    """The weights called `sha256`. Raises OSError where the file is gone or is no longer what its name says."""
    content = folder.get(f"weights/{sha256}.safetensors")
    if models.sha256(content) != sha256:
        file = folder.name(f"weights/{sha256}.safetensors")
        raise OSError(f"{file} is damaged; `raybasin check {folder.root} --repair` moves it aside")
    return models.from_bytes(content)


def _sha256(folder: Folder, member_id: str) -> str:
    return str(tables.row(folder, "members", member_id)["weights_sha256"])


def _network(state: models.State, bench: Bench, drop_path: float = 0.0) -> nn.Module:
    net = models.build(bench.plan.spec.model, bench.plan.facts.data.n_classes, seed=0, drop_path=drop_path)
    net.load_state_dict(state)
    return _placed(net, bench)


def _placed(net: nn.Module, bench: Bench) -> nn.Module:
    """Convolutions run fastest in channels-last order, on GPUs and on CPUs. Code of the user's own may not run at all
    in it (`view` does not), so it gets plain order."""
    order = torch.channels_last if bench.plan.spec.model.factory is None else torch.preserve_format
    return net.to(bench.device, memory_format=order)  # type: ignore[call-overload,no-any-return]
