"""The heartbeat that a running sweep leaves in its folder: by it `status` and other sweeps know that it runs."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
from collections.abc import Callable, Iterator

from raybasin.errors import one_line
from raybasin.store import provenance
from raybasin.store.folders import Folder

HEARTBEAT_SECONDS = 5.0
SILENT_SECONDS = 60.0
"""A sweep whose heartbeat is older than this is taken to have ended."""


@contextlib.contextmanager
def every(seconds: float, do: Callable[[], object]) -> Iterator[None]:
    """Calls `do`, which must not raise, in a thread while the block runs, so many seconds after its beginning and after
    the end of each call. The end of the block waits for a call that is under way."""
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(seconds):
            do()

    thread = threading.Thread(target=go_on, name=getattr(do, "__name__", "every"), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def beating(folder: Folder, settings_id: str) -> Iterator[Callable[[str], None]]:
    """Leaves a sign in the folder, at once and every few seconds, that a sweep with these settings runs, and takes it
    away in the end. What it gives is told, in a line, how far the sweep is."""
    key, said = f"state/running-{settings_id}-{platform.node() or 'host'}-{os.getpid()}.json", ["starting"]

    def beat() -> None:
        content = {**provenance.sign(), "line": said[-1]}
        with contextlib.suppress(OSError):  # the folder is gone, as whoever needs it will find and say
            folder.put(key, json.dumps(content).encode())

    beat()
    try:
        with every(HEARTBEAT_SECONDS, beat):
            yield lambda line: said.__setitem__(-1, line)
    finally:
        with contextlib.suppress(OSError):  # it is taken for ended a minute later all the same
            folder.delete(key)


def running(folder: Folder, settings_id: str | None = None) -> list[str]:
    """A line for each sweep with these settings, or with any, that has been heard of within the last minute, and is not
    known to have been killed since."""
    lines = []
    for name in folder.names("state"):
        if name.startswith("running-" if settings_id is None else f"running-{settings_id}-"):
            try:
                told = json.loads(folder.get(f"state/{name}"))
                if provenance.is_recent(told, SILENT_SECONDS):
                    host, pid, line = (one_line(told[key]) for key in ("host", "pid", "line"))
                    lines.append(f"running on {host} (process {pid}): {line}")
            except FileNotFoundError:  # it has just ended
                continue
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
                lines.append(f"state/{name} is not what a running sweep writes; it may be deleted")
    return lines
