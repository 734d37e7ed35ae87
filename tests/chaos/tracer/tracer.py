"""In a worker of a chaos run: writes down what it does, and kills itself, SIGKILL, at the moment it is told to.

The folder RAYBASIN_CHAOS holds `events`, one JSON object a line, appended by all workers and surviving them, and
`orders`, one file for each worker that is to die: `train.7` kills the first worker that has reached as many moments of
training as the file says since it first saw the order. Moments are: each step (`train`), each batch in evaluation and
the scoring of a cell (`evaluate`), and, of a write to the results folder, the places between its system calls, or
before, during and after the PUT of an object, and before and after something is deleted (`write`).

Work that begins for what is committed already is written down with `committed`.

A job whose worker has died twice in one run of the command is spared, since the third death would fail its cells;
RAYBASIN_CHAOS_DEATHS is another number.
"""

import builtins
import functools
import json
import os
import signal
import threading
import time
import types
from pathlib import Path

ROOT = Path(os.environ["RAYBASIN_CHAOS"])
DEATHS_OF_A_JOB = int(os.environ.get("RAYBASIN_CHAOS_DEATHS", "2"))
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}

DURING_SECONDS = 0.002
"""So long after its start an upload is certainly under way, and not over yet where it is one of weights."""

_events = os.open(ROOT / "events", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
_job = ""
_left: dict[str, int] = {}
_committed = lambda: False  # noqa: E731
_evaluates_again = False


def log(event, **what):
    line = {"event": event, "job": _job, "pid": os.getpid(), "run": _run(), **what}
    os.write(_events, (json.dumps(line) + "\n").encode())


def _run():
    return int((ROOT / "run").read_text())


def moment(phase, place=""):
    """A point at which an order may be carried out."""
    global _evaluates_again
    if not _job:
        return
    if phase == "evaluate" and _evaluates_again:
        log("evaluation", committed=True)
        _evaluates_again = False
    for name in os.listdir(ROOT / "orders"):
        if name.partition(".")[0] == phase:
            try:
                order = json.loads((ROOT / "orders" / name).read_text())
            except FileNotFoundError:  # another worker has carried it out
                continue
            if order["job"] not in ("", _job):
                continue
            _left[name] = _left.get(name, order["after"]) - 1
            if _left[name] <= 0 and _take(name):
                log("death", phase=phase, place=place, how=order["how"])
                os.kill(os.getpid(), SIGNALS[order["how"]])


def _take(name):
    deaths = [line for line in (ROOT / "events").read_text().splitlines() if '"death"' in line]
    mine = [d for d in map(json.loads, deaths) if d["job"] == _job and d["run"] == _run()]
    if len(mine) >= DEATHS_OF_A_JOB:
        return False
    try:
        os.rename(ROOT / "orders" / name, ROOT / "taken" / name)
    except FileNotFoundError:
        return False
    return True


def install(jobs):
    from raybasin.metrics import cell_scores
    from raybasin.store import folders
    from raybasin.training import augment, loop

    run, epoch, step = jobs.run, loop._Run.epoch, loop._Run.step
    evaluation_batch, score_rows = augment.evaluation_batch, cell_scores.score_rows

    def traced_run(job, context, *arguments):
        global _job, _committed, _evaluates_again
        _job = job.job_id
        kind, _, unit = job.job_id.partition("-")
        _committed = functools.partial(context.folder.exists, f"{kind}s/{unit}.parquet")
        _evaluates_again = _committed()
        log("job")
        try:
            return run(job, context, *arguments)
        finally:
            log("job ended")
            _job = ""

    def traced_epoch(training, number):
        log("epoch", epoch=number, committed=_committed())
        made = epoch(training, number)
        log("epoch ended", epoch=number)
        return made

    def traced_step(*arguments, **keywords):
        moment("train", "before a step")
        return step(*arguments, **keywords)

    def traced_batch(*arguments):
        moment("evaluate", "before a batch")
        return evaluation_batch(*arguments)

    def traced_scores(*arguments):
        moment("evaluate", "before scores")
        made = score_rows(*arguments)
        moment("evaluate", "after scores")
        return made

    jobs.run, loop._Run.epoch, loop._Run.step = traced_run, traced_epoch, traced_step
    augment.evaluation_batch, cell_scores.score_rows = traced_batch, traced_scores
    folders.open, folders.os = _open, _system_calls()
    _trace_deletions(folders.Folder)
    if "://" in os.environ["RAYBASIN_CHAOS_RESULTS"]:
        from raybasin.store import object_store

        _trace_uploads(object_store)
        _trace_deletions(object_store.Objects)


def _trace_uploads(objects):
    """Three moments for each PUT; the one in the middle comes from beside it."""
    client_for = objects.Objects._for

    def traced(self, content):
        client = client_for(self, content)

        def put(key, *arguments, **keywords):
            moment("write", f"before the PUT of {key}")
            beside = threading.Thread(target=_during, args=[key])
            beside.start()
            made = client.put(key, *arguments, **keywords)
            beside.join()
            moment("write", f"after the PUT of {key}")
            return made

        return types.SimpleNamespace(put=put)

    objects.Objects._for = traced


def _trace_deletions(place):
    delete = place.delete

    def traced(self, key):
        moment("write", f"before {key} is deleted")
        delete(self, key)
        moment("write", f"after {key} is deleted")

    place.delete = traced


def _during(key):
    time.sleep(DURING_SECONDS)
    moment("write", f"during the PUT of {key}")


def _open(path, mode="r", *arguments, **keywords):
    """What `store` writes to a file goes there in two halves."""
    file = builtins.open(path, mode, *arguments, **keywords)  # noqa: SIM115
    if "x" not in mode and "w" not in mode:
        return file
    moment("write", "empty file")
    write = file.write

    def in_halves(content):
        write(content[: len(content) // 2])
        file.flush()
        moment("write", "half a file")
        return write(content[len(content) // 2 :])

    return _Writing(file, in_halves)


class _Writing:
    def __init__(self, file, write):
        self.file, self.write = file, write

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


def _system_calls():
    """The module `os` for `store`, with a moment before and after each call that changes a name or a disk."""

    def around(name):
        call = getattr(os, name)

        def traced(*arguments, **keywords):
            moment("write", f"before {name}")
            made = call(*arguments, **keywords)
            moment("write", f"after {name}")
            return made

        return traced

    calls = types.SimpleNamespace(**vars(os))
    for name in ("fsync", "link", "replace"):
        setattr(calls, name, around(name))
    return calls
