"""What a part of the check has to say, as rows that are on disk as soon as they are known."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One figure, or one thing that must hold: `holds` is None for what is measured only."""

    part: str
    what: str
    value: float | None = None
    unit: str = ""
    n: int = 1
    low: float | None = None
    high: float | None = None
    holds: bool | None = None
    said: str = ""


@dataclass(frozen=True)
class Ask:
    """What a part is to be done on: `toy` says at the size of a test."""

    device: torch.device
    toy: bool
    out: Path
    repeats: int = 5
    seconds: float = 0.3
    """Of one repeat."""


@dataclass
class Notes:
    """Rows as they come, each written at once: a part that is ended loses nothing."""

    part: str
    path: Path

    def add(self, what: str, value: float | None = None, unit: str = "", **more: Any) -> None:
        row = Row(self.part, what, value, unit, **more)
        with open(self.path, "a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        print(text(row), flush=True)

    def rate(self, what: str, rates: Iterable[float], unit: str = "images/s", said: str = "") -> None:
        """The median of repeats, with their spread."""
        found = sorted(rates)
        self.add(what, statistics.median(found), unit, n=len(found), low=found[0], high=found[-1], said=said)

    def holds(self, what: str, holds: bool, said: str = "") -> None:
        self.add(what, holds=bool(holds), said=said)

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """What raises is a row, and the part goes on."""
        try:
            yield
        except Exception as error:  # whatever a GPU or a compiler may say
            self.add(what, holds=False, said=f"{type(error).__name__}: {error}"[:600])


def text(row: Row) -> str:
    verdict = {True: "holds  ", False: "FAILS  ", None: ""}[row.holds]
    value = "" if row.value is None else f"{row.value:,.4g} {row.unit}".strip()
    spread = "" if row.low is None else f" ({row.low:,.4g}-{row.high:,.4g}, n={row.n})"
    return f"{row.part}: {verdict}{row.what}  {value}{spread} {row.said}".rstrip()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rates(ask: Ask, step: Callable[[], int]) -> list[float]:
    """Images per second of `step`, which returns how many it has seen, in each of the repeats.

    How many steps a repeat has is found first: steps are queued, so a clock between them would tell nothing.
    """
    seconds, count = 0.0, 1
    while seconds < ask.seconds / 4:  # the first steps load code, choose algorithms and fill pools of memory
        seconds, count = timed(ask, step, count)[1], 2 * count
    per_step = 2 * seconds / count
    count = max(1, round(ask.seconds / per_step))
    found = [timed(ask, step, count) for _ in range(ask.repeats)]
    return [seen / seconds for seen, seconds in found]


def timed(ask: Ask, step: Callable[[], int], count: int) -> tuple[int, float]:
    """How many images so many steps have seen, and the seconds it took."""
    synchronize(ask.device)
    started = time.perf_counter()
    seen = sum(step() for _ in range(count))
    synchronize(ask.device)
    return seen, time.perf_counter() - started
