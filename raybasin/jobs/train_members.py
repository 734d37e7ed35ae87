"""Jobs that make networks: checkpoints, members, and members once more whose weights were pruned.

What is committed is found and kept, what was interrupted goes on from its last snapshot, and of two workers on one
member the first to write wins and the other goes on with what the first wrote.

Tensors: N examples, H height, W width, C classes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import time
from collections.abc import Iterator
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
from raybasin.metrics.cell_scores import OWN, REESTIMATED
from raybasin.store import tables
from raybasin.store.folders import Folder
from raybasin.sweep import ids, schedules
from raybasin.sweep.facts import CheckpointFacts, Preprocess
from raybasin.sweep.plan import Member, Trace, shared_columns
from raybasin.sweep.settings import position_of, pretrain_of
from raybasin.training import callbacks, evaluation, loop, models, swag

LabelledImages = tuple[DeviceImages, Tensor]
"""Images [N, H, W, 3] uint8, and their labels [N]."""


@contextlib.contextmanager
def _unless_committed(table: str, unit: str, folder: Folder) -> Iterator[None]:
    """Another sweep in this folder may commit the same meanwhile, and remove what it was made from: no error, then."""
    try:
        yield
    except FileNotFoundError:
        if not tables.exists(folder, table, unit):
            raise


# Checkpoints that the sweep makes itself


def pretrain(checkpoint: CheckpointFacts, context: WorkerContext, beat: Beat) -> None:
    """Trains a checkpoint from random weights and commits it by its row in `checkpoints`."""
    if not tables.exists(context.folder, "checkpoints", checkpoint.key):
        with _unless_committed("checkpoints", checkpoint.key, context.folder):
            _make_checkpoint(checkpoint, context, beat)


def _make_checkpoint(checkpoint: CheckpointFacts, context: WorkerContext, beat: Beat) -> None:
    folder, settings = context.folder, context.settings
    started = time.monotonic()
    task = pretrain_of(settings, checkpoint)
    recipe, data = task.recipe, context.pretrain_data[position_of(checkpoint)]
    preprocess = settings.facts.preprocess.of(task.data)
    n_classes, seed = len(data.classes.kept), ids.random_seed("pretrain", task.seed)
    steps = recipe.epochs * schedules.n_batches(len(data.train), recipe.batch_size, recipe.drop_last)
    net = placed(models.build(settings.spec.model, n_classes, seed, recipe.drop_path), context)
    cycle = loop.Cycle(recipe, task.data.augment, steps, recipe.lr, seed, warm_up=True, n_classes=n_classes)
    run = _Run(f"checkpoint-{checkpoint.key}", cycle, on_device(data.train, context.device), preprocess)
    trained = run.train(net, folder, beat)
    val_NHWC, val_labels_N = on_device(data.val, context.device)
    with loop.float32(recipe, context.device):
        log_probs_NC = evaluation.log_probs(net, val_NHWC, preprocess, beat)
    row = {
        "checkpoint_id": checkpoint.key, "weights_sha256": keep_weights(folder, models.state_of(net)),
        "sweep": settings.spec.name, "settings_id": settings.settings_id, "checkpoint": checkpoint.name,
        "source": task.data.name, "model": settings.spec.model.name, "n_classes": n_classes, "seed": task.seed,
        "val_accuracy": classification.accuracy(log_probs_NC, val_labels_N.cpu().numpy()),
        "train_epochs": float(recipe.epochs), "train_seconds": trained.train_seconds, **finish(context, started),
    }  # fmt: skip
    tables.write(folder, "checkpoints", checkpoint.key, [row])
    folder.delete(run.snapshot)


# Members


def train_member(member: Member, trace: Trace | None, context: WorkerContext, beat: Beat) -> None:
    """Trains a member from its parent's exact weights (or draws it), predicts with it, and commits it by its row in
    `members`. If it has a trace, it leaves the weights inside its cycle."""
    folder = context.folder
    if not tables.exists(folder, "members", member.member_id):
        with _unless_committed("members", member.member_id, folder):
            if _commit_member(member, trace, context, beat):
                return
    predict_member(member, context, beat)  # perhaps it was committed under other evaluation settings


def _commit_member(member: Member, trace: Trace | None, context: WorkerContext, beat: Beat) -> bool:
    """False where somebody else has committed it meanwhile."""
    folder, settings = context.folder, context.settings
    started = time.monotonic()
    start_sha256 = sha256_of_start(member, folder)
    made = _agreed_weights(member, start_sha256, trace, context, beat)
    if tables.exists(folder, "members", member.member_id):
        # Whoever committed it has removed what it was agreed on by, so `made` may be this worker's alone.
        _forget_training(member, folder)
        return False
    predict_member(member, context, beat, made.sha256)
    trained, known = made.trained, shared_columns(settings, member.point)
    if trained.epochs:
        epochs = [{"member_id": member.member_id, **asdict(epoch), **known} for epoch in trained.epochs]
        tables.write(folder, "epochs", member.member_id, epochs)
    images = member.cycle_epochs * settings.facts.data.n_train
    row = {
        "member_id": member.member_id, "kind": member.kind, "member_index": member.member_index,
        "parent_id": member.parent_id, "parent_sha256": start_sha256, "weights_sha256": made.sha256,
        "moments_sha256": made.moments_sha256, "seed": member.seed, "max_lr": member.max_lr,
        "cycle_epochs": member.cycle_epochs, "cycle_steps": member.cycle_steps,
        "final_train_loss": trained.epochs[-1].train_loss if trained.epochs else None,
        "train_seconds": trained.train_seconds,
        "images_per_second": images / trained.train_seconds if trained.epochs else None,
        **known, **finish(context, started),
    }  # fmt: skip
    tables.write(folder, "members", member.member_id, [row])
    _forget_training(member, folder)
    return True


def retrain_member(member: Member, context: WorkerContext, beat: Beat) -> None:
    """Trains a committed member whose weights were pruned once more, to the same weights.

    Raises RuntimeError where it ends at others, as it may on a GPU: its predictions are not theirs.
    """
    folder = context.folder
    row = tables.row(folder, "members", member.member_id)
    named = retention.weights_named(row)
    if not all(folder.exists(f"weights/{sha256}.safetensors") for sha256 in named):
        made = _make_weights(member, str(row["parent_sha256"]), None, context, beat)
        _forget_training(member, folder)
        others = {made.sha256, made.moments_sha256} - {*named, None}
        if others:
            for sha256 in others:
                folder.delete(f"weights/{sha256}.safetensors")
            raise RuntimeError(
                f"member {member.member_id} was trained again and has come out with other weights than those that were "
                "pruned (recipe.deterministic prevents it); take another results folder to train all of it anew"
            )
    retention.restored(member.member_id, folder)


def _forget_training(member: Member, folder: Folder) -> None:
    """Removes what a committed member could have been resumed from."""
    for suffix in ("safetensors", "json"):
        folder.delete(f"state/member-{member.member_id}.{suffix}")


def predict_member(member: Member, context: WorkerContext, beat: Beat, sha256: str | None = None) -> None:
    """Stores the predictions of a member that are to be kept and are not there, with its own batch-norm statistics and
    with re-estimated ones. `sha256` names its weights where it is not committed yet."""
    if member.kind == "tail":  # it is no member of an ensemble
        return
    missing = missing_files(member.member_id, context)
    if not missing:
        return
    state = weights_of(context.folder, sha256 or sha256_of(context.folder, member.member_id))
    states = {OWN: state}
    if REESTIMATED in context.statistics:
        states[REESTIMATED] = reestimated(state, context, beat)
    known: Row = {"kind": "member", "n_members": 1, **shared_columns(context.settings, member.point)}
    store_predictions(member.member_id, states, missing, known, context, beat)


def sha256_of_start(member: Member, folder: Folder) -> str:
    """What a member starts from: its parent's weights, or those of its checkpoint."""
    if member.parent_id is not None:
        return sha256_of(folder, member.parent_id)
    return sha256_of_checkpoint(member.point.checkpoint, folder)


def sha256_of_checkpoint(checkpoint: CheckpointFacts, folder: Folder) -> str:
    if checkpoint.pretrain is None:
        return checkpoint.key
    return str(tables.row(folder, "checkpoints", checkpoint.key)["weights_sha256"])


# Their weights


@dataclass(frozen=True)
class _Made:
    """What has become of a member: its weights, of a tail also the moments along it, and how it was trained."""

    sha256: str
    trained: loop.Trained
    moments_sha256: str | None = None


def _agreed_weights(
    member: Member, start_sha256: str, trace: Trace | None, context: WorkerContext, beat: Beat
) -> _Made:
    """The weights of a member as the first worker to finish it left them.

    On GPUs two workers may end at different weights; everything after this speaks of the same ones.
    """
    folder, outcome = context.folder, f"state/member-{member.member_id}.json"
    if not folder.exists(outcome):
        made = _make_weights(member, start_sha256, trace, context, beat)
        folder.put_new(outcome, json.dumps(asdict(made)).encode())
    known = json.loads(folder.get(outcome))
    return _Made(known["sha256"], loop.trained_from_dict(known["trained"]), known.get("moments_sha256"))


def _make_weights(member: Member, start_sha256: str, trace: Trace | None, context: WorkerContext, beat: Beat) -> _Made:
    if member.kind == "sample":
        return _draw_sample(member, context, beat)
    net = _start(member, start_sha256, context)
    callback = _callback(member, context)
    watch = _leave_weights(trace, context.folder) if trace else {}
    trained = _run(member, f"member-{member.member_id}", context).train(net, context.folder, beat, callback, watch)
    if not isinstance(callback, callbacks.MomentCollector):
        return _Made(keep_weights(context.folder, models.state_of(net)), trained)
    moments = keep_weights(context.folder, swag.to_tensors(callback.moments))
    mean = {name: tensor.float() for name, tensor in (callback.moments.mean or {}).items()}
    return _Made(keep_weights(context.folder, _with_parameters(net, mean, context, beat)), trained, moments)


def _draw_sample(member: Member, context: WorkerContext, beat: Beat) -> _Made:
    """A network drawn from the moments of the tail it descends from. That takes no training."""
    tail = tables.row(context.folder, "members", str(member.parent_id))
    moments = swag.from_tensors(weights_of(context.folder, str(tail["moments_sha256"])))
    weights = swag.sample(moments, member.option["scale"], ids.random_seed(member.seed, "swag"))
    net = network(weights_of(context.folder, str(tail["weights_sha256"])), context)
    return _Made(keep_weights(context.folder, _with_parameters(net, weights, context, beat)), loop.Trained((), 0.0))


def _with_parameters(net: nn.Module, parameters: models.State, context: WorkerContext, beat: Beat) -> models.State:
    """The state of `net` with other parameters, and with batch-norm statistics estimated for them."""
    net.load_state_dict(parameters, strict=False)
    reestimate(net, context, beat)
    return models.state_of(net)


def _start(member: Member, start_sha256: str, context: WorkerContext) -> nn.Module:
    """The network at the first step: the parent's exact weights, or a checkpoint's with the member's own head."""
    state, spec = weights_of(context.folder, start_sha256), context.settings.spec
    if member.parent_id is not None:
        return network(state, context, spec.recipe.drop_path)
    head_seed, n_classes = ids.random_seed(member.seed, "head"), context.settings.facts.data.n_classes
    return placed(models.with_new_head(spec.model, state, n_classes, head_seed, spec.recipe.drop_path), context)


def _callback(member: Member, context: WorkerContext) -> callbacks.StepCallback | None:
    """What the member's method does at a step."""
    if not member.callback:
        return None
    module, _, function = member.callback.partition(":")
    made: callbacks.StepCallback = getattr(importlib.import_module(module), function)(member, context.settings)
    return made


def _run(member: Member, unit: str, context: WorkerContext) -> _Run:
    spec = context.settings.spec
    cycle = loop.Cycle(
        spec.recipe, spec.data.augment, member.cycle_steps, member.max_lr, member.seed, shape=member.shape,
        low_ratio=member.option.get("low_ratio", 1.0), warm_up=member.parent_id is None,
        n_classes=context.settings.facts.data.n_classes,
    )  # fmt: skip
    return _Run(unit, cycle, context.train, context.preprocess)


@dataclass(frozen=True)
class _Run:
    """One training run, which goes on from the snapshot of `unit`, if there is one, and leaves snapshots on the way."""

    unit: str
    cycle: loop.Cycle
    images: LabelledImages
    preprocess: Preprocess

    @property
    def snapshot(self) -> str:
        return f"state/{self.unit}.safetensors"

    def train(
        self,
        net: nn.Module,
        folder: Folder,
        beat: Beat,
        callback: callbacks.StepCallback | None = None,
        watch: loop.Watch | None = None,
    ) -> loop.Trained:
        """Trains `net` in place. Raises OSError for a snapshot that is damaged."""
        try:
            resume = loop.snapshot_from_bytes(folder.get(self.snapshot)) if folder.exists(self.snapshot) else None
        except ValueError as error:
            file = folder.name(self.snapshot)
            raise OSError(f"{file} is damaged; `raybasin check {folder.root} --repair` moves it aside") from error
        return loop.train(
            net, *self.images, self.cycle, self.preprocess, resume=resume,
            save=lambda snapshot: folder.put(self.snapshot, loop.snapshot_to_bytes(snapshot)),
            beat=beat, callback=callback, watch=watch,
        )  # fmt: skip


# Weights inside a cycle, for runs that are traced


def provide_weights_inside(member: Member, trace: Trace, context: WorkerContext, beat: Beat) -> bool | None:
    """Sees to it that the weights of a run after the steps of `trace` are there; says whether the run they are of ended
    at the very weights of the member (None for a tail, whose weights are a mean)."""
    folder = context.folder
    missing = [step for step in trace.steps if not folder.exists(inside_key(member.member_id, step))]
    row = tables.row(folder, "members", member.member_id)
    if missing:
        run = _run(member, f"repeat-{member.member_id}", context)
        if folder.exists(run.snapshot):
            epochs = loop.snapshot_from_bytes(folder.get(run.snapshot)).done.epochs
            if len(epochs) * context.settings.steps_per_epoch >= missing[0]:  # it would not pass by what is missing
                folder.delete(run.snapshot)
        net = _start(member, str(row["parent_sha256"]), context)
        run.train(net, folder, beat, _callback(member, context), _leave_weights(trace, folder))
        folder.delete(run.snapshot)
    last = models.sha256(folder.get(inside_key(member.member_id, trace.steps[-1])))
    return None if member.kind == "tail" else last == row["weights_sha256"]


def _leave_weights(trace: Trace, folder: Folder) -> loop.Watch:
    """What leaves the weights of a run after each step of its trace."""

    def leave(net: nn.Module, step: int) -> None:
        folder.put_new(inside_key(trace.member_id, step), models.to_bytes(models.state_of(net)))

    return {step: functools.partial(leave, step=step) for step in trace.steps}


def inside_key(member_id: str, step: int) -> str:
    return f"state/trace-{member_id}-{step}.safetensors"
