"""Jobs that make networks: checkpoints, members, and members once more whose weights were pruned.

What is committed is found and kept, what was interrupted goes on from its last snapshot, and of two workers on one
member the first to write wins and the other goes on with what the first wrote.

Tensors: N examples, H height, W width, C classes.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor, nn

from raybasin.data.decoding import DeviceImages
from raybasin.jobs import retention
from raybasin.jobs.worker_context import (
    Beat,
    Row,
    WorkerContext,
    finish,
    keep_weights,
    missing_files,
    network,
    on_device,
    placed,
    reestimate,
    reestimated,
    sha256_of,
    store_predictions,
    weights_of,
)
from raybasin.metrics import classification
from raybasin.metrics.scoring import OWN, REESTIMATED
from raybasin.store import tables
from raybasin.store.folders import Folder
from raybasin.sweep import methods, schedules, specs
from raybasin.sweep import plan as planning
from raybasin.sweep.facts import preprocess_for
from raybasin.sweep.plan import Member, Trace
from raybasin.training import callbacks, evaluation, loop, models, swag
from raybasin.training.augment import Preprocess

# Checkpoints that the sweep makes itself


def pretrain(key: str, context: WorkerContext, beat: Beat) -> None:
    """Trains a checkpoint from random weights and commits it by its row in `checkpoints`."""
    if tables.exists(context.folder, "checkpoints", key):
        return
    try:
        _pretrain(key, context, beat)
    except FileNotFoundError:  # as in `train_member`
        if not tables.exists(context.folder, "checkpoints", key):
            raise


def _pretrain(key: str, context: WorkerContext, beat: Beat) -> None:
    folder, plan = context.folder, context.plan
    started = time.monotonic()
    checkpoint = next(c for c in plan.facts.checkpoints if c.key == key)
    task = planning.pretrain_of(plan, checkpoint)
    data = context.pretrain_data[planning.position_of(checkpoint)]
    preprocess = Preprocess(**asdict(preprocess_for(task.data, plan.facts.preprocess)))
    images_NHWC, labels_N = on_device(data.train, context.device)
    seed = specs.random_seed("pretrain", task.seed)
    batches = schedules.batches(len(images_NHWC), task.recipe.batch_size, task.recipe.drop_last)
    steps = task.recipe.epochs * len(batches)
    n_classes = len(data.classes.kept)
    net = placed(models.build(plan.spec.model, n_classes, seed, task.recipe.drop_path), context)
    cycle = loop.Cycle(task.recipe, task.data.augment, steps, task.recipe.lr, seed, warm_up=True, n_classes=n_classes)
    trained = _train(net, images_NHWC, labels_N, cycle, preprocess, folder, f"checkpoint-{key}", beat)
    val_NHWC, val_labels_N = on_device(data.val, context.device)
    with loop.float32(task.recipe, context.device):
        log_probs_NC = evaluation.log_probs(net, val_NHWC, preprocess, beat)
    row = {
        "checkpoint_id": key, "weights_sha256": keep_weights(folder, models.state_of(net)), "sweep": plan.spec.name,
        "settings_id": plan.settings_id, "checkpoint": checkpoint.name, "source": task.data.name,
        "model": plan.spec.model.name, "n_classes": len(data.classes.kept), "seed": task.seed,
        "val_accuracy": classification.accuracy(log_probs_NC, val_labels_N.cpu().numpy()),
        "train_epochs": float(task.recipe.epochs), "train_seconds": trained.train_seconds,
        **finish(context, started),
    }  # fmt: skip
    tables.write(folder, "checkpoints", key, [row])
    folder.delete(f"state/checkpoint-{key}.safetensors")


# Members


def train_member(member: Member, context: WorkerContext, beat: Beat) -> None:
    """Trains a member from its parent's exact weights (or draws it), predicts with it, and commits it by its row in
    `members`."""
    if not tables.exists(context.folder, "members", member.member_id):
        try:
            _train_member(member, context, beat)
            return
        except FileNotFoundError:
            # Another sweep in this folder may have committed it meanwhile, and removed what it was made from.
            if not tables.exists(context.folder, "members", member.member_id):
                raise
    _predict_committed(member, context, beat)


def _predict_committed(member: Member, context: WorkerContext, beat: Beat) -> None:
    """The predictions of a member that somebody has committed, perhaps under other evaluation settings."""
    if member.kind != "tail":  # it is no member of an ensemble
        known = planning.shared_columns(context.plan, member)
        predict_member(member.member_id, sha256_of(context.folder, member.member_id), known, context, beat)


def _train_member(member: Member, context: WorkerContext, beat: Beat) -> None:
    folder, plan = context.folder, context.plan
    started = time.monotonic()
    known = planning.shared_columns(plan, member)
    parent_sha256 = sha256_of_parent(member, folder)
    made = _made_once(member, parent_sha256, context, beat)
    if tables.exists(folder, "members", member.member_id):
        # Whoever committed it has removed what it was agreed on by, so `made` may be this worker's alone.
        _predict_committed(member, context, beat)
        _forget(member, folder)
        return
    trained = made.trained
    if member.kind != "tail":  # it is no member of an ensemble
        predict_member(member.member_id, made.sha256, known, context, beat)
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
        **known, **finish(context, started),
    }  # fmt: skip
    tables.write(folder, "members", member.member_id, [row])
    _forget(member, folder)


def retrain_member(member: Member, context: WorkerContext, beat: Beat) -> None:
    """Trains a committed member whose weights were pruned once more, to the same weights.

    Raises RuntimeError where it ends at others, as it may on a GPU: its predictions are not theirs.
    """
    folder = context.folder
    row = tables.row(folder, "members", member.member_id)
    named = retention.weights_named(row)
    if not all(folder.exists(f"weights/{sha256}.safetensors") for sha256 in named):
        made = _made(member, str(row["parent_sha256"]), context, beat)
        _forget(member, folder)
        others = {made.sha256, made.moments_sha256} - {*named, None}
        if others:
            for sha256 in others:
                folder.delete(f"weights/{sha256}.safetensors")
            raise RuntimeError(
                f"member {member.member_id} was trained again and has come out with other weights than those that were "
                "pruned (recipe.deterministic prevents it); take another results folder to train all of it anew"
            )
    retention.restored(member.member_id, folder)


def _forget(member: Member, folder: Folder) -> None:
    """Removes what a committed member could have been resumed from."""
    for suffix in ("safetensors", "json"):
        folder.delete(f"state/member-{member.member_id}.{suffix}")


def predict_member(member_id: str, sha256: str, known: Row, context: WorkerContext, beat: Beat) -> None:
    """Stores the predictions of a member that are to be kept and are not there, with its own statistics and with
    re-estimated ones."""
    missing = missing_files(member_id, context)
    if not missing:
        return
    state = weights_of(context.folder, sha256)
    states = {OWN: state}
    if REESTIMATED in context.statistics:
        states[REESTIMATED] = reestimated(state, context, beat)
    store_predictions(member_id, states, missing, {"kind": "member", "n_members": 1, **known}, context, beat)


@dataclass(frozen=True)
class _Made:
    """What has become of a member: its weights, of a tail also the moments along it, and how it was trained."""

    sha256: str
    trained: loop.Trained
    moments_sha256: str | None = None


def _made_once(member: Member, parent_sha256: str, context: WorkerContext, beat: Beat) -> _Made:
    """A member as the first worker to finish it left it.

    On GPUs two workers may end at different weights; everything after this speaks of the same ones.
    """
    folder, outcome = context.folder, f"state/member-{member.member_id}.json"
    if not folder.exists(outcome):
        made = _made(member, parent_sha256, context, beat)
        folder.put_new(outcome, json.dumps(asdict(made)).encode())
    known = json.loads(folder.get(outcome))
    return _Made(known["sha256"], loop.trained_from_dict(known["trained"]), known.get("moments_sha256"))


def _made(member: Member, parent_sha256: str, context: WorkerContext, beat: Beat) -> _Made:
    return _drawn(member, context, beat) if member.kind == "sample" else _trained(member, parent_sha256, context, beat)


def _trained(member: Member, parent_sha256: str, context: WorkerContext, beat: Beat) -> _Made:
    net = placed(_start(member, parent_sha256, context), context)
    callback = _callback(member, context)
    unit = f"member-{member.member_id}"
    trained = _train(
        net,
        *context.train,
        _cycle(member, context),
        context.preprocess,
        context.folder,
        unit,
        beat,
        callback,
        _watch(member, context),
    )
    if not isinstance(callback, callbacks.MomentCollector):
        return _Made(keep_weights(context.folder, models.state_of(net)), trained)
    moments = keep_weights(context.folder, swag.to_tensors(callback.moments))
    mean = {name: tensor.float() for name, tensor in (callback.moments.mean or {}).items()}
    return _Made(keep_weights(context.folder, _with_parameters(net, mean, context, beat)), trained, moments)


def _drawn(member: Member, context: WorkerContext, beat: Beat) -> _Made:
    """A network drawn from the moments of the tail it descends from. That takes no training."""
    tail = tables.row(context.folder, "members", str(member.parent_id))
    moments = swag.from_tensors(weights_of(context.folder, str(tail["moments_sha256"])))
    weights = swag.draw(moments, member.option["scale"], specs.random_seed(member.seed, "swag"))
    net = network(weights_of(context.folder, str(tail["weights_sha256"])), context)
    return _Made(keep_weights(context.folder, _with_parameters(net, weights, context, beat)), loop.Trained((), 0.0))


def _with_parameters(net: nn.Module, parameters: models.State, context: WorkerContext, beat: Beat) -> models.State:
    """The state of `net` with other parameters, and with batch-norm statistics estimated for them."""
    net.load_state_dict(parameters, strict=False)
    reestimate(net, context, beat)
    return models.state_of(net)


# Training


def _cycle(member: Member, context: WorkerContext) -> loop.Cycle:
    spec = context.plan.spec
    return loop.Cycle(
        spec.recipe, spec.data.augment, member.cycle_steps, member.max_lr, member.seed,
        shape=methods.METHODS[member.method].shape if member.parent_id else "cosine",
        low_ratio=member.option.get("low_ratio", 1.0), warm_up=member.parent_id is None,
        n_classes=context.plan.facts.data.n_classes,
    )  # fmt: skip


def _callback(member: Member, context: WorkerContext) -> callbacks.StepCallback:
    """What the member's method does at a step."""
    option, steps = member.option, member.cycle_steps
    if member.kind == "tail":
        return callbacks.MomentCollector(int(option["collect_steps"]), steps, int(option["rank"]))
    if "temperature" in option:
        first = steps - math.ceil(option["noise_share"] * steps)
        momentum = context.plan.spec.recipe.momentum
        return callbacks.Langevin(first, option["temperature"], context.plan.facts.data.n_train, momentum, member.seed)
    return callbacks.NoCallback()


def _start(member: Member, parent_sha256: str, context: WorkerContext) -> nn.Module:
    """The network at the first step: the parent's exact weights, or a checkpoint's with the member's own head."""
    parent, drop_path = weights_of(context.folder, parent_sha256), context.plan.spec.recipe.drop_path
    if member.parent_id is not None:
        return network(parent, context, drop_path)
    head_seed = specs.random_seed(member.seed, "head")
    model, n_classes = context.plan.spec.model, context.plan.facts.data.n_classes
    return models.with_new_head(model, parent, n_classes, head_seed, drop_path)


def sha256_of_parent(member: Member, folder: Folder) -> str:
    if member.parent_id is not None:
        return str(tables.row(folder, "members", member.parent_id)["weights_sha256"])
    if member.checkpoint.pretrain is not None:
        return str(tables.row(folder, "checkpoints", member.checkpoint.key)["weights_sha256"])
    return member.checkpoint.key


def _train(
    net: nn.Module,
    images_NHWC: DeviceImages,
    labels_N: Tensor,
    cycle: loop.Cycle,
    preprocess: Preprocess,
    folder: Folder,
    unit: str,
    beat: Beat,
    callback: callbacks.StepCallback | None = None,
    watch: loop.Watch | None = None,
) -> loop.Trained:
    """Trains on from the snapshot of `unit`, if there is one, and leaves snapshots on the way."""
    key = f"state/{unit}.safetensors"
    try:
        resume = loop.snapshot_from_bytes(folder.get(key)) if folder.exists(key) else None
    except ValueError as error:
        file = folder.name(key)
        raise OSError(f"{file} is damaged; `raybasin check {folder.root} --repair` moves it aside") from error
    return loop.train(
        net, images_NHWC, labels_N, cycle, preprocess, resume=resume,
        save=lambda snapshot: folder.put(key, loop.snapshot_to_bytes(snapshot)),
        beat=beat, callback=callback, watch=watch,
    )  # fmt: skip


# Weights inside a cycle, for runs that are traced


def _watch(member: Member, context: WorkerContext) -> loop.Watch | None:
    """What leaves the weights inside the cycle of a run that is to be traced."""
    trace = context.plan.traced.get(member.member_id)
    if trace is None or member.parent_id is None or traced_rows(trace, context.folder):
        return None
    return _leaving(member.member_id, context.plan.trace_steps(member), context.folder)


def traced_rows(trace: Trace, folder: Folder) -> list[Row]:
    """The rows of the same trace in another cell, an ensemble of another size for instance; none if there are none."""
    known = [unit for unit in tables.units(folder, "traces") if unit.endswith(f"-{trace.trace_id}")]
    return tables.rows(folder, "traces", known[:1]) if known else []


def leave_inside(member: Member, steps: Sequence[int], context: WorkerContext, beat: Beat) -> bool | None:
    """Sees to it that the weights of a run after `steps` are there; says whether the run they are of ended at the very
    weights of the member (None for a tail, whose weights are a mean)."""
    folder, unit = context.folder, f"repeat-{member.member_id}"
    missing = [step for step in steps if not folder.exists(inside_key(member.member_id, step))]
    row = tables.row(folder, "members", member.member_id)
    if missing:
        snapshot = f"state/{unit}.safetensors"
        if folder.exists(snapshot):
            done = len(loop.snapshot_from_bytes(folder.get(snapshot)).done.epochs) * context.plan.steps_per_epoch
            if done >= missing[0]:  # from there on it would not pass by what is missing
                folder.delete(snapshot)
        net = placed(_start(member, str(row["parent_sha256"]), context), context)
        _train(
            net,
            *context.train,
            _cycle(member, context),
            context.preprocess,
            folder,
            unit,
            beat,
            _callback(member, context),
            _leaving(member.member_id, steps, folder),
        )
        folder.delete(snapshot)
    last = models.sha256(folder.get(inside_key(member.member_id, steps[-1])))
    return None if member.kind == "tail" else last == row["weights_sha256"]


def _leaving(member_id: str, steps: Iterable[int], folder: Folder) -> loop.Watch:
    def leave(net: nn.Module, step: int) -> None:
        folder.put_new(inside_key(member_id, step), models.to_bytes(models.state_of(net)))

    return {step: functools.partial(leave, step=step) for step in steps}


def inside_key(member_id: str, step: int) -> str:
    return f"state/trace-{member_id}-{step}.safetensors"
