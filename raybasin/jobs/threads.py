"""With how many threads a worker computes: that nothing in its process takes more, and how many are fastest.

`workers.cpus: auto` is chosen by a measurement: so many processes as there would be workers make a few training steps
at the same time, with each number of threads in turn, and the number with most images a second of them all is taken.
`python -m raybasin.jobs.threads` is one of these processes; it is asked and answers by lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import IO

import pyarrow as pa
import threadpoolctl
import torch
from pydantic import TypeAdapter

from raybasin.errors import UserError, one_line
from raybasin.jobs import allocator
from raybasin.sweep import specs
from raybasin.sweep.facts import Preprocess
from raybasin.sweep.settings import Settings
from raybasin.sweep.specs import Workers
from raybasin.training import loop, models

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
LEAST_IO_THREADS = 2
"""Arrow reads Parquet for ever with one (apache/arrow issue 37487). They wait for disks and do not compute."""
WARM_STEPS, LEAST_STEPS = 3, 3
SECONDS = 3.0
"""So long steps are counted, or until there are `LEAST_STEPS`."""
LIMIT_SECONDS = 600.0
"""A measurement that takes longer is given up."""
MARK = "raybasin: "
"""Begins each answer: a network of the user's own may print what it likes."""


def limit(threads: int) -> None:
    """From now on this process computes with so many threads at most: OpenMP and MKL in torch, BLAS in NumPy and SciPy,
    Arrow, and whatever reads the environment when it is loaded. Threads that decode images follow torch's number."""
    os.environ.update(dict.fromkeys(VARIABLES, str(threads)))
    torch.set_num_threads(threads)
    with contextlib.suppress(RuntimeError):  # may be said once in a process; eager code uses none of these
        torch.set_num_interop_threads(1)
    threadpoolctl.threadpool_limits(threads)
    pa.set_cpu_count(threads)
    pa.set_io_thread_count(max(LEAST_IO_THREADS, threads))


@dataclass(frozen=True)
class Trial:
    """So many workers of so many threads at once: images a second of training, of all of them together."""

    threads: int
    workers: int
    images_per_second: float


def candidates(cores: int, count: int | None) -> list[int]:
    """Numbers of threads that are tried where `count` workers, or as many as fit, share so many cores."""
    most = max(1, cores // (count or 1))
    powers = [2**power for power in range(most.bit_length())]
    return sorted({*powers, most})


def measure(settings: Settings, cores: int, count: int | None = None) -> tuple[Trial, ...]:
    """Trains the sweep's network at its batch, on images of noise, with each number of threads. Raises UserError where
    that cannot be done."""
    return tuple(
        train_at_once(settings, threads, count or max(1, cores // threads)) for threads in candidates(cores, count)
    )


def fastest(trials: Iterable[Trial]) -> int:
    """The number of threads with most images a second; of equal ones the lowest."""
    return max(trials, key=lambda trial: (trial.images_per_second, -trial.threads)).threads


def described(trials: Sequence[Trial]) -> str:
    """For a person: what was measured, and what was chosen."""
    each = ", ".join(f"{one.workers} of {one.threads}: {one.images_per_second:,.0f} images/s" for one in trials)
    return f"workers.cpus: auto: workers of so many threads train {each}; {fastest(trials)} is taken"


def resolved(kind: Workers, settings: Settings, cores: int, tell: Callable[[str], None]) -> Workers:
    """The kind of workers with as many CPUs as are fastest where so many cores are free. Raises UserError."""
    trials = measure(settings, cores, kind.count)
    tell(described(trials))
    return kind.model_copy(update={"cpus": float(fastest(trials))})


def train_at_once(settings: Settings, threads: int, workers: int) -> Trial:
    """Has so many processes of so many threads train at the same time. Raises UserError where they cannot."""
    request = json.dumps({
        "spec": specs.dump(settings.spec), "threads": threads, "preprocess": asdict(settings.facts.preprocess),
        "n_classes": settings.facts.data.n_classes, "n_train": settings.facts.data.n_train,
        "size": settings.facts.data.train_size,
    })  # fmt: skip
    environment = {**os.environ, **dict.fromkeys(VARIABLES, str(threads))}
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
        children: list[subprocess.Popen[str]] = []
        for _ in range(workers):
            children.append(
                subprocess.Popen(
                    [sys.executable, "-m", "raybasin.jobs.threads"], env=environment, text=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                )
            )  # fmt: skip
            stack.callback(_end, children[-1])
        late = threading.Timer(LIMIT_SECONDS, _kill, [children])
        late.start()
        stack.callback(late.cancel)
        try:
            _say(children, request)
            for child in children:
                _answer(child)
            _say(children, "go")
            rates = [float(_answer(child)) for child in children]
        except (OSError, ValueError) as error:  # one of them has died, or was ended
            errors.seek(0)
            said = errors.read().strip() or f"one was ended, or did not answer for {LIMIT_SECONDS:g} s"
            why = one_line(said.rpartition("\n")[2], 400)
            raise UserError(
                f"workers.cpus: auto: {workers} workers of {threads} threads could not be tried ({why}); give a number"
            ) from error
    return Trial(threads, workers, sum(rates))


def _say(children: Iterable[subprocess.Popen[str]], line: str) -> None:
    for child in children:
        assert child.stdin is not None
        child.stdin.write(f"{line}\n")
        child.stdin.flush()


def _answer(child: subprocess.Popen[str]) -> str:
    """Raises ValueError where none comes any more."""
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(MARK):
            return line.removeprefix(MARK)
    raise ValueError("it has ended")


def _kill(children: Iterable[subprocess.Popen[str]]) -> None:
    for child in children:
        child.kill()


def _end(child: subprocess.Popen[str]) -> None:
    with child:  # closes what it was asked by, and waits
        child.kill()


class _EnoughError(Exception):
    """No further step is needed."""


@dataclass
class _Steps:
    """Says that it is ready after the first steps, waits to be asked, and counts."""

    asked: IO[str]
    made: int = 0
    images: int = 0
    began: float = 0.0
    rate: float = field(default=0.0)

    def beat(self, images: int) -> None:
        if not images:  # a step that is not done yet
            return
        self.made += 1
        if self.made == WARM_STEPS:
            print(f"{MARK}ready", flush=True)
            if not self.asked.readline():
                sys.exit("nobody asks any more")
            self.began = time.monotonic()
        elif self.made > WARM_STEPS:
            self.images += images
            seconds = time.monotonic() - self.began
            if seconds > SECONDS and self.made >= WARM_STEPS + LEAST_STEPS:
                self.rate = self.images / seconds
                raise _EnoughError


def main() -> None:
    """One of the processes of a measurement."""
    asked = json.loads(sys.stdin.readline())
    limit(asked["threads"])
    allocator.keep_freed_memory()
    spec, n_classes = specs.parse(asked["spec"]), asked["n_classes"]
    shown = TypeAdapter(Preprocess).validate_python(asked["preprocess"])
    height, width = asked["size"] if all(asked["size"]) else (shown.image_size, shown.image_size)
    n = min(2 * spec.recipe.batch_size, asked["n_train"])
    random = torch.Generator().manual_seed(0)
    images_NHWC = torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=random)
    labels_N = torch.randint(0, n_classes, (n,), generator=random)
    net = models.build(spec.model, n_classes, seed=0, drop_path=spec.recipe.drop_path)
    steps = _Steps(sys.stdin)
    # So low a rate that noise does no harm: how fast steps are does not depend on it.
    cycle = loop.Cycle(spec.recipe, spec.data.augment, 10**6, 1e-9, spec.seed, n_classes=n_classes)
    try:
        placed = models.placed(net, spec.model, torch.device("cpu"))
        loop.train(placed, images_NHWC, labels_N, cycle, shown, beat=steps.beat)
    except _EnoughError:
        pass
    except UserError as error:
        sys.exit(one_line(error))  # who asks takes the last line
    print(f"{MARK}{steps.rate}", flush=True)


if __name__ == "__main__":
    main()
