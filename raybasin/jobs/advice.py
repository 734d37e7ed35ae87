"""What a plan shows of how images and steps will be, what it will take, and what is likely not meant."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from raybasin.errors import UserError, duration, one_line
from raybasin.jobs.local import Situation
from raybasin.store import inventory, tables
from raybasin.sweep.job_list import Training
from raybasin.sweep.plan import Plan

FEW_STEPS = 100
"""With fewer steps than these a fine-tuning has hardly begun, at any learning rate."""
STRONG = 5.0
"""From this factor on, enlarging images costs far more time than it gives accuracy."""
ENOUGH = 50
"""So many networks say how fast the others will be."""
DIVERGED = "Diverged: "
"""In the reason of a failure: the name of the error that training ends with where its loss is no number."""
_RATE = re.compile(r"Diverged: .* at max_lr ([0-9.e+-]+)")
BATCHES = (16, 32, 64, 128)
"""Sizes that are proposed."""


def lines(situation: Situation) -> Iterator[str]:
    """For `plan`, behind what it says of the data."""
    made = situation.plan
    yield _images(made)
    yield _steps(made)
    if any(kind.cpus == "auto" for kind in made.spec.kinds):
        yield "workers: of how many threads each is, is measured when the sweep begins; --measure cpu does it now"
    if cost := _cost(situation):
        yield cost
    for note in (_diverges(situation), _few_steps(made), _short_average(made), _enlarged(made), *_idle(made)):
        if note:
            yield f"note: {note}"


def _images(made: Plan) -> str:
    shown, (height, width) = made.facts.preprocess, made.facts.data.train_size
    side = round(shown.image_size / shown.eval_crop)
    crop = "whole" if side == shown.image_size else f"the centre of {side}"
    mean, std = (", ".join(f"{value:.3g}" for value in values) for values in (shown.mean, shown.std))
    stored = f" (as arrays {height} x {width})" if height else ""
    return (
        f"images: {shown.image_size} x {shown.image_size} pixels, {crop} in evaluation{stored}, {shown.interpolation}; "
        f"mean {mean}, std {std}"
    )


def _steps(made: Plan) -> str:
    recipe = made.spec.recipe
    return (
        f"hub: {recipe.epochs} epochs of {made.steps_per_epoch} steps of {recipe.batch_size} images, "
        f"{made.head_steps + _hub_steps(made)} steps in all; {recipe.optimizer}, lr {recipe.lr:g}{recipe.further}"
    )


def _hub_steps(made: Plan) -> int:
    """Without those of the head alone."""
    return made.spec.recipe.epochs * made.steps_per_epoch


def _cost(situation: Situation) -> str | None:
    """How long one worker trains; None where no network of these settings is in the folder, or nothing is left."""
    made = situation.plan
    epochs = sum(job.task.member.cycle_epochs for job in situation.jobs if isinstance(job.task, Training))
    there = sorted(situation.done.members & made.members.keys())[:ENOUGH]
    if not there or not epochs:
        return None
    own = tables.sound(situation.folder, "members", there).to_pandas()
    own = own[own["images_per_second"] > 0]
    if own.empty:
        return None
    speed, device = float(own["images_per_second"].median()), one_line(str(own["device"].iloc[-1]), 60)
    seconds = epochs * made.facts.data.n_train / speed
    return (
        f"training: about {duration(seconds)} of one worker, paths and scores not counted, by {len(own)} networks that "
        f"are there: {speed:,.0f} images/s on {device}"
    )


def _diverges(situation: Situation) -> str | None:
    """What the folder knows of fine-tunings that differ from this one in nothing but rate and length."""
    lr, rates = situation.plan.spec.recipe.lr, []
    for row in tables.rows(situation.folder, "failures"):
        reason = str(row["reason"])
        found = _RATE.search(reason)
        if found is None or reason.startswith("checkpoint"):
            continue
        own = _lr_if_alike(str(row["settings_id"]), situation)
        if own is not None and own <= lr and found[1] == f"{own:g}":  # a branch has another rate than its hub
            rates.append(own)
    if not rates:
        return None
    return (
        f"training at lr {min(rates):g} has diverged in this folder, and recipe.lr is {lr:g}; take a lower one, such "
        "as raybasin lr-range finds"
    )


def _lr_if_alike(settings_id: str, situation: Situation) -> float | None:
    """The rate of stored settings that train the same networks but for rate and length; None where they do not."""
    made = situation.plan
    if settings_id == made.settings_id:
        return made.spec.recipe.lr
    try:
        stored = inventory.stored_sweep(situation.folder, settings_id).settings
    except UserError:  # their sweep file is gone, or of another version
        return None
    return stored.spec.recipe.lr if stored.training_id == made.training_id else None


def _short_average(made: Plan) -> str | None:
    decay, steps = made.spec.recipe.ema_decay, _hub_steps(made)
    if decay is None or made.spec.recipe.ema_warmup or steps * (1 - decay) >= 3:
        return None
    return (
        f"recipe.ema_decay: {decay:g} averages over about {1 / (1 - decay):.0f} steps, and the hub has {steps}, so "
        "that its first ones stay in the average; ema_warmup: true forgets them"
    )


def _few_steps(made: Plan) -> str | None:
    steps, recipe, n_train = _hub_steps(made), made.spec.recipe, made.facts.data.n_train
    if steps >= FEW_STEPS:
        return None
    way = f"recipe.epochs: {-(-FEW_STEPS // made.steps_per_epoch)}"
    smaller = [size for size in BATCHES if size < recipe.batch_size and recipe.epochs * (n_train // size) >= FEW_STEPS]
    if smaller:
        size = max(smaller)
        way = f"recipe.batch_size: {size} makes {recipe.epochs * -(-n_train // size)} of them, or {way}"
    return f"{steps} steps are few for a fine-tuning; {way}"


def _enlarged(made: Plan) -> str | None:
    """Of images that are stored in one size; others are brought to the size that the network sees."""
    shown, (height, width) = made.facts.preprocess, made.facts.data.train_size
    short, side = min(height, width), made.spec.data.common_side
    if not short or (height, width) == (side, side):
        return None
    factor = round(shown.image_size / shown.eval_crop) / short
    if factor < STRONG:
        return None
    return (
        f"images of {height} x {width} are enlarged {factor:.1f} times, which takes {factor**2:.0f} times as long as "
        f"their own size; a smaller data.image_size is worth a try"
    )


def _idle(made: Plan) -> Iterator[str]:
    """What of this machine will not work, where the sweep is run on it."""
    kinds, cores = made.spec.kinds, os.cpu_count() or 1
    gpus = _gpus()
    if gpus and not any(kind.gpus for kind in kinds):
        counted = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
        yield f"this machine has {counted} that the sweep leaves idle; workers.gpus: 1 uses them"
        return
    if len(kinds) == 1 and not kinds[0].gpus and kinds[0].cpus != "auto":
        fit = max(1, int(cores / kinds[0].cpus))
        count = min(kinds[0].count or fit, fit)
        if count * kinds[0].cpus <= cores / 2:
            workers = "1 worker" if count == 1 else f"{count} workers"
            leave = "leaves" if count == 1 else "leave"
            yield f"this machine has {cores} cores, of which {workers} of {kinds[0].cpus:g} {leave} half idle or more"


def _gpus() -> int:
    import torch  # which only reading results does not wait for

    return torch.cuda.device_count()
