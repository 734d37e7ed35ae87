"""What a worker does: each kind of job reads its inputs from the results folder and leaves its outcome there.

Jobs are idempotent and resumable, so it is enough that each is run at least once: what is committed is found and
kept, what was interrupted goes on from its last snapshot, and of two workers on one job the first to write wins and
the other goes on with what the first wrote. Nothing here knows Ray.
"""

from __future__ import annotations

import gc
import re
import traceback
from dataclasses import dataclass

import torch

from raybasin.errors import UserError, is_out_of_memory, one_line, printable
from raybasin.jobs import retention
from raybasin.jobs.measure_paths import measure_path, measure_trace
from raybasin.jobs.score_cells import close_cell
from raybasin.jobs.train_members import predict_member, pretrain, retrain_member, train_member
from raybasin.jobs.worker_context import Beat, Row, WorkerContext
from raybasin.store.schemas import METRICS
from raybasin.sweep import job_list
from raybasin.training.loop import Diverged

TRACEBACK_CHARACTERS = 4096


def run(job: job_list.Job, context: WorkerContext, beat: Beat = lambda images: None) -> Row:
    """Does `job`. Of a cell it returns what a search may go by; else nothing, since all is in the folder.

    Raises FolderLost where it cannot be done because the folder cannot be written, or is gone.
    """
    context.beat = beat
    try:
        match job.task:
            case job_list.Pretraining(checkpoint):
                pretrain(checkpoint, context)
            case job_list.Training(member, trace):
                train_member(member, trace, context)
            case job_list.Retraining(member):
                retrain_member(member, context)
            case job_list.Predicting(member):
                predict_member(member, context)
            case job_list.PathMeasurement() as task:
                measure_path(task, context)
            case job_list.TraceMeasurement() as task:
                measure_trace(task, context)
            case job_list.Closing(cell, group):
                row = close_cell(cell, context)
                if group is not None:
                    retention.after_cell(group, context.folder, context.settings)
                return {name: row[name] for name in METRICS}
            case _:
                raise ValueError(f"unknown kind of job: {job.kind}")
    except (OSError, UserError):
        context.folder.check_there()  # a file that is missing may be the least of what is
        raise
    return {}


# What it raises


@dataclass(frozen=True)
class Raised:
    """An exception in words. The exception itself holds its frames, and with them whatever was on the device."""

    reason: str
    """In one line."""
    traceback: str
    certain: bool
    """Whether it would be raised again, wherever the job is tried, and only after as much training. What is said of the
    input need not be so: one worker may not be able to read it, or to call the user's own code."""


def raised(error: Exception) -> Raised:
    """Of the traceback the end is kept, and of paths in it the last three parts: the rest tells of the machine."""
    reason = one_line(f"{type(error).__name__}: {error}")
    if is_out_of_memory(error):
        reason += "; take fewer workers at once (workers.count, workers.gpus) or a smaller recipe.batch_size"
    lines = "".join(traceback.format_exception(error)).splitlines()
    text = "\n".join(printable(line) for line in lines)
    text = re.sub(r'File "[^"]*?((?:/[^"/]*){3})"', lambda path: f'File "{path[1][1:]}"', text)
    text = text if len(text) <= TRACEBACK_CHARACTERS else f"...{text[3 - TRACEBACK_CHARACTERS :]}"
    return Raised(reason, text, isinstance(error, Diverged))


def recover(device: torch.device) -> None:
    """Makes room after a job that has raised, and sees whether `device` still computes. Raises what it says where it
    does not: after most CUDA errors every later call of the process fails too."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    prove(device)


def prove(device: torch.device) -> None:
    """Computes a little on `device`. Raises RuntimeError where it cannot."""
    ones = torch.ones(256, 256, device=device)
    if (ones @ ones).sum().item() != 256**3:
        raise RuntimeError(f"{device} computes wrongly")
