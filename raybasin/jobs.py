"""What a worker does: each kind of job reads its inputs from the results folder and leaves its outcome there.

Jobs are idempotent and resumable, so it is enough that each is run at least once: what is committed is found and
kept, what was interrupted goes on from its last snapshot, and of two workers on one job the first to write wins and
the other goes on with what the first wrote. Nothing here knows Ray.

Tensors: N examples, C classes, P path points, M members.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
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
    methods,
    metrics,
    models,
    schedules,
    scoring,
    soups,
    specs,
    swag,
    tables,
    training,
)
from raybasin import plan as planning
from raybasin.augment import Preprocess
from raybasin.data import DataSet, Images
from raybasin.images import DeviceImages
from raybasin.machine import describe, versions
from raybasin.plan import Cell, Job, Member, Path, Plan
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


def on_device(split: Images, device: torch.device) -> tuple[DeviceImages, Tensor]:
    """Images [N, H, W, 3] uint8, and labels [N] as a tensor."""
    return images.on_device(split.images_NHWC, device), torch.tensor(split.labels_N, device=device)


def run(job: Job, bench: Bench, beat: Beat = lambda: None) -> Row:
    """Does `job`. Of a cell it returns the committed row; else nothing, since all is in the folder."""
    match job.kind:
        case "checkpoint":
            pretrain(job.unit, bench, beat)
        case "member":
            train_member(bench.plan.members[job.unit], bench, beat)
        case "predictions":
            known = planning.shared_columns(bench.plan, bench.plan.members[job.unit])
            _predict_member(job.unit, _sha256(bench.folder, job.unit), known, bench, beat)
        case "path":
            cell_id, path_id = job.unit.split("-")
            measure_path(bench.plan.cell[cell_id], bench.plan.paths[cell_id, path_id], bench, beat)
        case "cell":
            return close_cell(bench.plan.cell[job.unit], bench, beat)
        case _:
            raise ValueError(f"unknown kind of job: {job.kind}")
    return {}


# Checkpoints that the sweep makes itself


def pretrain(key: str, bench: Bench, beat: Beat) -> None:
    """Trains a checkpoint from random weights and commits it by its row in `checkpoints`."""
    folder, plan = bench.folder, bench.plan
    if tables.exists(folder, "checkpoints", key):
        return
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
        log_probs_NC = evaluation.log_probs(net, val_NHWC, preprocess)
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
    if tables.exists(bench.folder, "members", member.member_id):
        return
    try:
        _train_member(member, bench, beat)
    except FileNotFoundError:
        # Another sweep in this folder may have committed it meanwhile, and removed what it was made from.
        if not tables.exists(bench.folder, "members", member.member_id):
            raise


def _train_member(member: Member, bench: Bench, beat: Beat) -> None:
    folder, plan = bench.folder, bench.plan
    started = time.monotonic()
    known = planning.shared_columns(plan, member)
    parent_sha256 = _parent_sha256(member, folder)
    made = _made_once(member, parent_sha256, bench, beat)
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
    for suffix in ("safetensors", "json"):
        folder.delete(f"state/member-{member.member_id}.{suffix}")


def _predict_member(member_id: str, sha256: str, known: Row, bench: Bench, beat: Beat) -> None:
    """Stores the predictions of a member with its own statistics and with re-estimated ones."""
    folder, eval_id = bench.folder, bench.plan.eval_id
    if tables.exists(folder, "predictions", tables.prediction_unit(member_id, eval_id)):
        return
    net = _network(_weights(folder, sha256), bench)
    blocks = _predict(net, OWN, bench, beat)
    if REESTIMATED in bench.statistics:
        _reestimate(net, bench)
        blocks += _predict(net, REESTIMATED, bench, beat)
    tables.write_predictions(folder, member_id, eval_id, blocks, {"kind": "member", "n_members": 1, **known})


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
        made = _drawn(member, bench) if member.kind == "sample" else _trained(member, parent_sha256, bench, beat)
        folder.put_new(outcome, json.dumps(asdict(made)).encode())
    known = json.loads(folder.get(outcome))
    return _Made(known["sha256"], training.trained_from_dict(known["trained"]), known.get("moments_sha256"))


def _trained(member: Member, parent_sha256: str, bench: Bench, beat: Beat) -> _Made:
    net = _placed(_start(member, parent_sha256, bench), bench)
    hook = _hook(member, bench)
    unit = f"member-{member.member_id}"
    trained = _train(net, *bench.train, _cycle(member, bench), bench.preprocess, bench.folder, unit, beat, hook)
    if not isinstance(hook, hooks.Collecting):
        return _Made(_keep(bench.folder, models.state_of(net)), trained)
    moments = _keep(bench.folder, swag.to_tensors(hook.moments))
    mean = {name: tensor.float() for name, tensor in (hook.moments.mean or {}).items()}
    return _Made(_keep(bench.folder, _with_parameters(net, mean, bench)), trained, moments)


def _drawn(member: Member, bench: Bench) -> _Made:
    """A network drawn from the moments of the tail it descends from. That takes no training."""
    tail = tables.row(bench.folder, "members", str(member.parent_id))
    moments = swag.from_tensors(_weights(bench.folder, str(tail["moments_sha256"])))
    weights = swag.draw(moments, member.option["scale"], specs.random_seed(member.seed, "swag"))
    net = _network(_weights(bench.folder, str(tail["weights_sha256"])), bench)
    return _Made(_keep(bench.folder, _with_parameters(net, weights, bench)), training.Trained((), 0.0))


def _with_parameters(net: nn.Module, parameters: models.State, bench: Bench) -> models.State:
    """The state of `net` with other parameters, and with batch-norm statistics estimated for them."""
    net.load_state_dict(parameters, strict=False)
    _reestimate(net, bench)
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
) -> training.Trained:
    """Trains on from the snapshot of `unit`, if there is one, and leaves snapshots on the way."""
    key = f"state/{unit}.safetensors"
    return training.train(
        net, images_NHWC, labels_N, cycle, preprocess,
        resume=training.snapshot_from_bytes(folder.get(key)) if folder.exists(key) else None,
        save=lambda snapshot: folder.put(key, training.snapshot_to_bytes(snapshot)),
        beat=beat, hook=hook,
    )  # fmt: skip


# Predictions


def _predict(net: nn.Module, bn: str, bench: Bench, beat: Beat) -> list[tables.Block]:
    """The log-probabilities of `net` on every split, with the statistics it has; `bn` says which these are."""
    blocks = []
    with training.float32(bench.plan.spec.recipe, bench.device):
        for split, (images_NHWC, labels_N) in bench.splits.items():
            log_probs_NC = evaluation.log_probs(net, images_NHWC, bench.preprocess)
            blocks.append(tables.Block(split, bn, log_probs_NC, labels_N.cpu().numpy()))
            beat()
    return blocks


def _reestimate(net: nn.Module, bench: Bench) -> None:
    """New batch-norm statistics for the weights that `net` has; nothing where it has no batch norm."""
    with training.float32(bench.plan.spec.recipe, bench.device):
        basin.reestimate_batch_norm(net, evaluation.batches(bench.bn_images_NHWC, bench.preprocess))


def _stored(bench: Bench, first_id: str) -> scoring.Predictions:
    return scoring.stored(bench.folder, bench.plan.eval_id, bench.plan.facts.batch_norm, first_id)


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
    stored = _stored(bench, path.start_id)
    rows: list[Row] = []
    for split in plan.spec.basin.splits:
        at_start, at_end = (stored.log_probs(end_id, split, bn) for end_id in (path.start_id, path.end_id))
        log_probs_PNC = [at_start, *(point[split] for point in inside), at_end]
        points = _points(log_probs_PNC, stored.labels[split], t_P)
        rows += [{**named, "split": split, "images": len(at_start), **point} for point in points]
    tables.write(folder, "paths", unit, rows)


def _at(net: nn.Module, state: models.State, splits: Iterable[str], bench: Bench, beat: Beat) -> dict[str, np.ndarray]:
    """Log-probabilities [N, C] on each split of the network with the weights `state` and new statistics."""
    net.load_state_dict(state)
    _reestimate(net, bench)
    with training.float32(bench.plan.spec.recipe, bench.device):
        found = {split: evaluation.log_probs(net, bench.splits[split][0], bench.preprocess) for split in splits}
    beat()
    return found


def _points(log_probs_PNC: Sequence[np.ndarray], labels_N: np.ndarray, t_P: Sequence[float]) -> list[Row]:
    nll_P = [metrics.nll(log_probs_NC, labels_N) for log_probs_NC in log_probs_PNC]
    wrong_PN = np.stack([log_probs_NC.argmax(1) != labels_N for log_probs_NC in log_probs_PNC])
    return scoring.path_rows(nll_P, wrong_PN, t_P)


# Cells


def close_cell(cell: Cell, bench: Bench, beat: Beat) -> Row:
    """Makes the soups of a cell whose members and paths are there, scores everything, and commits the cell by its row
    in `cells`, which it returns."""
    folder, plan = bench.folder, bench.plan
    if tables.exists(folder, "cells", cell.cell_id):
        return tables.row(folder, "cells", cell.cell_id)
    started = time.monotonic()
    states = [_weights(folder, _sha256(folder, member_id)) for member_id in cell.member_ids]
    made = [_soup(kind, cell, states, bench, beat) for kind in plan.spec.soups]
    predictions = _stored(bench, cell.member_ids[0])
    known = planning.shared_columns(plan, cell)
    if not all(tables.exists(folder, "members", member_id) for member_id in cell.reference_ids):
        cell = replace(cell, reference_ids=())
    scores = scoring.score_rows(cell, made, predictions)
    tables.write(folder, "scores", cell.cell_id, [{**row, **known} for row in scores])
    paths = tables.rows(folder, "paths", [f"{cell.cell_id}-{path.path_id}" for path in cell.paths])
    members = tables.rows(folder, "members", cell.trained_ids)
    soup = {soup.kind: soup for soup in made}
    row = {
        "cell_id": cell.cell_id, "member_ids": list(cell.member_ids), "hub_id": cell.member_ids[0],
        "n_members": len(cell.member_ids), "max_lr": cell.max_lr, "cycle_epochs": cell.cycle_epochs,
        "reference_ids": list(cell.reference_ids), "variant": cell.variant, **known,
        "soup_sha256": soup["uniform"].sha256 if "uniform" in soup else None,
        "greedy_soup_sha256": soup["greedy"].sha256 if "greedy" in soup else None,
        "greedy_soup_members": list(soup["greedy"].members) if "greedy" in soup else None,
        **scoring.cell_scores(cell, paths, scores, predictions, plan.spec.basin.threshold),
        "train_epochs": sum(member["cycle_epochs"] for member in members),
        "train_seconds": sum(member["train_seconds"] for member in members),
        "wall_seconds": _wall_seconds(members[1:]), "close_seconds": time.monotonic() - started,
        "device": describe(bench.device), "versions": versions(), "finished_at": tables.now(),
    }  # fmt: skip
    tables.write(folder, "cells", cell.cell_id, [row])
    for made_soup in made:
        folder.delete(f"state/soup-{tables.prediction_unit(made_soup.predictor_id, plan.eval_id)}.json")
    return row


def _wall_seconds(members: Sequence[Row]) -> float:
    """From when the first of a cell's own members was begun until now."""
    return max((tables.now() - member["finished_at"]).total_seconds() + member["job_seconds"] for member in members)


def _soup(kind: str, cell: Cell, states: Sequence[models.State], bench: Bench, beat: Beat) -> Soup:
    """Makes a soup of the members' weights, and stores it and its predictions.

    As with members, everything after its making speaks of the weights that the first worker left.
    """
    folder, predictor_id = bench.folder, scoring.soup_id(kind, cell)
    unit = tables.prediction_unit(predictor_id, bench.plan.eval_id)
    outcome = f"state/soup-{unit}.json"
    if not folder.exists(outcome):
        chosen = tuple(range(len(states))) if kind == "uniform" else _greedy(cell, states, bench, beat)
        net = _network(basin.average(states[index] for index in chosen), bench)
        _reestimate(net, bench)
        left = {"sha256": _keep(folder, models.state_of(net)), "members": [cell.member_ids[i] for i in chosen]}
        folder.put_new(outcome, json.dumps(left).encode())
    known = json.loads(folder.get(outcome))
    soup = Soup(kind, predictor_id, tuple(known["members"]), known["sha256"])
    if not tables.exists(folder, "predictions", unit):
        blocks = _predict(_network(_weights(folder, soup.sha256), bench), bench.soup_statistics, bench, beat)
        columns = {"kind": f"{kind}_soup", "n_members": len(soup.members), **planning.shared_columns(bench.plan, cell)}
        tables.write_predictions(folder, predictor_id, bench.plan.eval_id, blocks, columns)
    return soup


def _greedy(cell: Cell, states: Sequence[models.State], bench: Bench, beat: Beat) -> tuple[int, ...]:
    """Which members go into the greedy soup: chosen on validation, with re-estimated statistics throughout."""
    stored, bn = _stored(bench, cell.member_ids[0]), bench.soup_statistics
    labels_N = stored.labels["val"]
    log_probs_MNC = stored.of_members(cell.member_ids, "val", bn)
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
        raise OSError(f"weights/{sha256}.safetensors is damaged; `raybasin check --repair` moves it aside")
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
