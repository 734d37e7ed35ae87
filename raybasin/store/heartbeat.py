"""What a running sweep shows, on a terminal or in a log, and the heartbeat by which `status` knows that it runs."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TextIO

from raybasin.errors import shown
from raybasin.store import provenance
from raybasin.store.folders import Folder

LINE_SECONDS = 15.0
HEARTBEAT_SECONDS = 5.0
SILENT_SECONDS = 60.0
"""A sweep whose heartbeat is older than this is taken to have ended."""


@dataclass(frozen=True)
class State:
    """How far a sweep is, what was done before included. `seconds_left` is None before anything can be said."""

    cells: int
    cells_total: int
    networks: int
    networks_total: int
    failed: int
    workers: int
    busy: int
    seconds_left: float | None

    def line(self) -> str:
        left = "" if self.seconds_left is None else f", about {duration(self.seconds_left)} left"
        failed = f", {self.failed} failed" if self.failed else ""
        doing = f"{self.busy} of {self.workers} workers busy" if self.workers else "starting workers"
        cells = f"cells {self.cells}/{self.cells_total}, " if self.cells_total else ""  # none in pre-training
        return f"{cells}networks {self.networks}/{self.networks_total}{failed}, {doing}{left}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@dataclass
class Show:
    """Shows states: one line that is rewritten on a terminal, else a line at every change worth one, 15 s apart."""

    out: TextIO = field(default_factory=lambda: sys.stderr)
    started: float = field(default_factory=time.monotonic)
    _shown: State | None = None
    _shown_at: float = -1e9

    def __call__(self, state: State) -> None:
        now = time.monotonic()
        if self.out.isatty():
            print(f"\r\x1b[2K[{duration(now - self.started)}] {state.line()}", end="", file=self.out, flush=True)
        elif state != self._shown and now - self._shown_at >= LINE_SECONDS:
            self._shown_at = now
            self._shown = state
            print(f"[{duration(now - self.started)}] {state.line()}", file=self.out, flush=True)

    def close(self) -> None:
        if self.out.isatty():
            print(file=self.out)


# The heartbeat


def _name(settings_id: str) -> str:
    return f"state/running-{settings_id}-{platform.node() or 'host'}-{os.getpid()}.json"


@contextlib.contextmanager
def beating(folder: Folder, settings_id: str) -> Iterator[Callable[[str], None]]:
    """Leaves a sign in the folder, at once and every few seconds, that a sweep with these settings runs, and takes it
    away in the end. What it gives is told, in a line, how far the sweep is."""
    key, stop, said = _name(settings_id), threading.Event(), ["starting"]

    def beat() -> None:
        content = {"at": time.time(), **provenance.this_process(), "line": said[-1]}
        with contextlib.suppress(OSError):  # the folder is gone, as whoever needs it will find and say
            folder.put(key, json.dumps(content).encode())

    def go_on() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            beat()

    beat()
    thread = threading.Thread(target=go_on, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield lambda line: said.__setitem__(-1, line)
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(OSError):  # it is taken for ended a minute later all the same
            folder.delete(key)


def running(folder: Folder, settings_id: str) -> list[str]:
    """A line for each sweep with these settings that has been heard of within the last minute, and is not known to have
    been killed since."""
    lines = []
    for name in folder.names("state"):
        if name.startswith(f"running-{settings_id}-"):
            try:
                told = json.loads(folder.get(f"state/{name}"))
                if time.time() - float(told["at"]) < SILENT_SECONDS and not provenance.has_died(told):
                    host, pid, line = (shown(told[key]) for key in ("host", "pid", "line"))
                    lines.append(f"running on {host} (process {pid}): {line}")
            except FileNotFoundError:  # it has just ended
                continue
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
                lines.append(f"state/{name} is not what a running sweep writes; it may be deleted")
    return lines
