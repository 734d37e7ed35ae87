"""Jobs that make networks: checkpoints, members, and members once more whose weights were pruned.

What is committed is found and kept, what was interrupted goes on from its last snapshot, and of two workers on one
member the first to write wins and the other goes on with what the first wrote.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from torch import nn

from raybasin.jobs import retention
from raybasin.jobs.worker_context import Labelled, Row, WorkerContext
from raybasin.metrics import classification
from raybasin.metrics.cell_scores import OWN, REESTIMATED
from raybasin.store import tables
from raybasin.store.folders import Folder
from raybasin.sweep import ids, schedules
from raybasin.sweep.facts import CheckpointFacts, Preprocess
from raybasin.sweep.plan import Member, Trace, shared_columns
from raybasin.sweep.settings import Settings, position_of, pretrain_of
from raybasin.sweep.specs import Recipe
from raybasin.training import callbacks, evaluation, loop, models, swag

# Jobs


def pretrain(checkpoint: CheckpointFacts, context: WorkerContext) -> None:
    """Trains a checkpoint from random weights and commits it by its row in `checkpoints`."""
    folder, settings, started = context.folder, context.settings, time.monotonic()
    if tables.exists(folder, "checkpoints", checkpoint.key):
        return
    task = pretrain_of(settings, checkpoint)
    # What a deterministic sweep starts from must come out the same again, too.
    exact = {"deterministic": task.recipe.deterministic or settings.spec.recipe.deterministic}
    recipe, unit = task.recipe.model_copy(update=exact), f"checkpoint-{checkpoint.key}"
    data = context.pretrain_data[position_of(checkpoint)]
    preprocess = settings.facts.preprocess.of(task.data)
    n_classes, seed = len(data.classes.kept), ids.random_seed("pretrain", task.seed)
    steps = recipe.epochs * schedules.n_batches(len(data.train), recipe.batch_size, recipe.drop_last)
    net = context.placed(models.build(settings.spec.model, n_classes, seed, recipe.drop_path))
    cycle = loop.Cycle(
        recipe, task.data.augment, steps, recipe.lr, seed, warm_up=True, n_classes=n_classes,
        cuda_graphs=recorded(recipe, settings),
    )  # fmt: skip
    with _unless_committed("checkpoints", checkpoint.key, folder):
        trained = _train(net, cycle, context.on_device(data.train), preprocess, unit, context)
        val_NHWC, val_labels_N = context.on_device(data.val)
        with loop.float32(recipe, context.device):
            log_probs_NC = evaluation.log_probs(net, val_NHWC, preprocess, context.beat)
        row = {
            "checkpoint_id": checkpoint.key, "weights_sha256": context.keep_weights(models.state_of(net)),
            "sweep": settings.spec.name, "settings_id": settings.settings_id, "checkpoint": checkpoint.name,
            "source": task.data.name, "model": settings.spec.model.name, "n_classes": n_classes, "seed": task.seed,
            "val_accuracy": classification.accuracy(log_probs_NC, val_labels_N.cpu().numpy()),
            "train_epochs": float(recipe.epochs), "train_seconds": trained.train_seconds, **context.finish(started),
        }  # fmt: skip
        tables.write(folder, "checkpoints", checkpoint.key, [row])
        folder.delete(_snapshot(unit))


def train_member(member: Member, trace: Trace | None, context: WorkerContext) -> None:
    """Trains a member from its parent's exact weights (or draws it), predicts with it, and commits it by its row in
    `members`. If it has a trace, it leaves the weights inside its cycle."""
    folder, settings, started = context.folder, context.settings, time.monotonic()
    if not tables.exists(folder, "members", member.member_id):
        with _unless_committed("members", member.member_id, folder):
            start_sha256 = (
                sha256_of_checkpoint(member.point.checkpoint, folder) if member.parent_id is None
                else context.sha256_of(member.parent_id)
            )  # fmt: skip
            made = _agreed_weights(member, start_sha256, trace, context)
            # Whoever committed it meanwhile has removed what it was agreed on by: `made` may be this worker's alone.
            if not tables.exists(folder, "members", member.member_id):
                predict_member(member, context, made.sha256)
                trained, known = made.trained, shared_columns(settings, member.point)
                epochs = [{"member_id": member.member_id, **asdict(epoch), **known} for epoch in trained.epochs]
                if epochs:
                    tables.write(folder, "epochs", member.member_id, epochs)
                images = member.cycle_epochs * settings.facts.data.n_train
                row = {
                    "member_id": member.member_id, "kind": member.kind, "member_index": member.member_index,
                    "parent_id": member.parent_id, "parent_sha256": start_sha256, "weights_sha256": made.sha256,
                    "moments_sha256": made.moments_sha256, "seed": member.seed, "max_lr": member.max_lr,
                    "cycle_epochs": member.cycle_epochs, "cycle_steps": member.cycle_steps,
                    "final_train_loss": trained.epochs[-1].train_loss if epochs else None,
                    "train_seconds": trained.train_seconds,
                    "images_per_second": images / trained.train_seconds if epochs else None,
                    **known, **context.finish(started),
                }  # fmt: skip
                tables.write(folder, "members", member.member_id, [row])
                _forget_training(member, folder)
                return
            _forget_training(member, folder)
    predict_member(member, context)  # it may have been committed under other evaluation settings


def retrain_member(member: Member, context: WorkerContext) -> None:
    """Trains a committed member whose weights were pruned once more, to the same weights.

    Raises RuntimeError where it ends at others, as it may on a GPU: its predictions are not theirs.
    """
    folder = context.folder
    row = tables.row(folder, "members", member.member_id)
    named = retention.weights_named(row)
    if not all(folder.exists(f"weights/{sha256}.safetensors") for sha256 in named):
        made = _make_weights(member, str(row["parent_sha256"]), None, context)
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


def predict_member(member: Member, context: WorkerContext, sha256: str | None = None) -> None:
    """Stores the predictions of a member that are to be kept and are not there, with its own batch-norm statistics and
    with re-estimated ones. `sha256` names its weights where it is not committed yet."""
    if member.kind == "tail":  # it is no member of an ensemble
        return
    missing = context.missing_files(member.member_id)
    if not missing:
        return
    state = context.weights_of(sha256 or context.sha256_of(member.member_id))
    states = {OWN: state}
    if REESTIMATED in context.statistics:
        states[REESTIMATED] = context.reestimated(state)
    known: Row = {"kind": "member", "n_members": 1, **shared_columns(context.settings, member.point)}
    context.store_predictions(member.member_id, states, missing, known)


@contextlib.contextmanager
def _unless_committed(table: str, unit: str, folder: Folder) -> Iterator[None]:
    """Another sweep in this folder may commit the same meanwhile, and remove what it was made from: no error, then."""
    try:
        yield
    except FileNotFoundError:
        if not tables.exists(folder, table, unit):
            raise


def sha256_of_checkpoint(checkpoint: CheckpointFacts, folder: Folder) -> str:
    if checkpoint.pretrain is None:
        return checkpoint.key
    return str(tables.row(folder, "checkpoints", checkpoint.key)["weights_sha256"])


def _snapshot(unit: str) -> str:
    return f"state/{unit}.safetensors"


def _forget_training(member: Member, folder: Folder) -> None:
    """Removes what a committed member could have been resumed from."""
    folder.delete(_snapshot(f"member-{member.member_id}"))
    folder.delete(f"state/member-{member.member_id}.json")


# Weights of members


@dataclass(frozen=True)
class _Made:
    """What has become of a member: its weights, of a SWAG trajectory their mean and the moments, and its training."""

    sha256: str
    trained: loop.Trained
    moments_sha256: str | None = None


def _agreed_weights(member: Member, start_sha256: str, trace: Trace | None, context: WorkerContext) -> _Made:
    """The weights of a member as the first worker to finish it left them.

    On GPUs two workers may end at different weights; everything after this speaks of the same ones.
    """
    folder, outcome = context.folder, f"state/member-{member.member_id}.json"
    if not folder.exists(outcome):
        made = _make_weights(member, start_sha256, trace, context)
        folder.put_new(outcome, json.dumps(asdict(made)).encode())
    known = json.loads(folder.get(outcome))
    return _Made(known["sha256"], loop.trained_from_dict(known["trained"]), known.get("moments_sha256"))


def _make_weights(member: Member, start_sha256: str, trace: Trace | None, context: WorkerContext) -> _Made:
    """Trains a member, or draws it from the moments of the SWAG trajectory that it descends from."""
    folder, moments_sha256 = context.folder, None
    if member.kind == "sample":
        trajectory = tables.row(folder, "members", str(member.parent_id))
        moments = swag.from_tensors(context.weights_of(str(trajectory["moments_sha256"])))
        parameters = swag.sample(moments, member.option["scale"], ids.random_seed(member.seed, "swag"))
        net = context.network(context.weights_of(str(trajectory["weights_sha256"])))
        trained = loop.Trained((), 0.0)
    else:
        net, callback, trained = _train_cycle(member, start_sha256, trace, f"member-{member.member_id}", context)
        if not isinstance(callback, callbacks.MomentCollector):
            return _Made(context.keep_weights(models.state_of(net)), trained)
        moments_sha256 = context.keep_weights(swag.to_tensors(callback.moments))
        parameters = {name: tensor.float() for name, tensor in (callback.moments.mean or {}).items()}
    net.load_state_dict(parameters, strict=False)
    context.reestimate(net)
    return _Made(context.keep_weights(models.state_of(net)), trained, moments_sha256)


def provide_weights_inside(member: Member, trace: Trace, context: WorkerContext) -> bool | None:
    """Sees to it that the weights of a run after the steps of `trace` are there; says whether the run they are of ended
    at the very weights of the member (None for a SWAG trajectory, whose weights are a mean)."""
    folder, unit = context.folder, f"repeat-{member.member_id}"
    missing = [step for step in trace.steps if not folder.exists(inside_key(member.member_id, step))]
    row = tables.row(folder, "members", member.member_id)
    if missing:
        if folder.exists(_snapshot(unit)):
            epochs = loop.snapshot_from_bytes(folder.get(_snapshot(unit))).done.epochs
            if len(epochs) * context.settings.steps_per_epoch >= missing[0]:  # it would not pass by what is missing
                folder.delete(_snapshot(unit))
        _train_cycle(member, str(row["parent_sha256"]), trace, unit, context)
        folder.delete(_snapshot(unit))
    last = models.sha256(folder.get(inside_key(member.member_id, trace.steps[-1])))
    return None if member.kind == "tail" else last == row["weights_sha256"]


def inside_key(member_id: str, step: int) -> str:
    """Where a run leaves its weights after a step of its trace."""
    return f"state/trace-{member_id}-{step}.safetensors"


# Training


def _train_cycle(
    member: Member, start_sha256: str, trace: Trace | None, unit: str, context: WorkerContext
) -> tuple[nn.Module, callbacks.StepCallback | None, loop.Trained]:
    """Trains the network of a member from its first step to its last, with what its method does at a step. If it has a
    trace, it leaves the weights inside its cycle."""
    net, callback = _start(member, start_sha256, context), None
    if member.callback:
        module, _, function = member.callback.partition(":")
        callback = getattr(importlib.import_module(module), function)(member, context.settings)

    def leave(net: nn.Module, step: int) -> None:
        context.folder.put_new(inside_key(member.member_id, step), models.to_bytes(models.state_of(net)))

    watch = {step: functools.partial(leave, step=step) for step in trace.steps} if trace else {}
    cycle = _cycle(member, net, context)
    return net, callback, _train(net, cycle, context.train, context.preprocess, unit, context, callback, watch)


def _start(member: Member, start_sha256: str, context: WorkerContext) -> nn.Module:
    """The network at the first step: the parent's exact weights, or a checkpoint's with the member's own head."""
    state, spec = context.weights_of(start_sha256), context.settings.spec
    if member.parent_id is not None:
        return context.network(state, spec.recipe.drop_path)
    head_seed, n_classes = ids.random_seed(member.seed, "head"), context.settings.facts.data.n_classes
    return context.placed(models.with_new_head(spec.model, state, n_classes, head_seed, spec.recipe.drop_path))


def _cycle(member: Member, net: nn.Module, context: WorkerContext) -> loop.Cycle:
    spec, from_checkpoint = context.settings.spec, member.parent_id is None
    head_steps = context.settings.head_steps if from_checkpoint else 0
    return loop.Cycle(
        spec.recipe, spec.data.augment, member.cycle_steps, member.max_lr, member.seed, shape=member.shape,
        low_ratio=member.option.get("low_ratio", 1.0), warm_up=from_checkpoint,
        n_classes=context.settings.facts.data.n_classes, cuda_graphs=recorded(spec.recipe, context.settings),
        head_steps=head_steps, heads=models.head_names(net, spec.model) if head_steps else (),
    )  # fmt: skip


def recorded(recipe: Recipe, settings: Settings) -> bool:
    """Whether steps are recorded as CUDA graphs, where there is a GPU: what code of the user's own does may differ from
    step to step, and those of a compiled network are not."""
    if recipe.cuda_graphs is None:
        return settings.spec.model.factory is None and not recipe.compile
    return recipe.cuda_graphs


def _train(
    net: nn.Module,
    cycle: loop.Cycle,
    images: Labelled,
    preprocess: Preprocess,
    unit: str,
    context: WorkerContext,
    callback: callbacks.StepCallback | None = None,
    watch: loop.Watch | None = None,
) -> loop.Trained:
    """Trains `net` in place, on from the snapshot of `unit`, if there is one, and leaves snapshots on the way. Raises
    OSError for one that is damaged."""
    folder, snapshot = context.folder, _snapshot(unit)
    try:
        resume = loop.snapshot_from_bytes(folder.get(snapshot)) if folder.exists(snapshot) else None
    except ValueError as error:
        file = folder.name(snapshot)
        raise OSError(f"{file} is damaged; `raybasin check {folder.root} --repair` moves it aside") from error
    return loop.train(
        net, *images, cycle, preprocess, resume=resume, beat=context.beat, callback=callback, watch=watch,
        save=lambda state: folder.put(snapshot, loop.snapshot_to_bytes(state)),
    )  # fmt: skip
