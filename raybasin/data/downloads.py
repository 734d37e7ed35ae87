"""Downloads end: where there is no network this is said within seconds, and none hangs on a silent server."""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

CONNECT_SECONDS = 5.0
STALL_SECONDS = 30.0


def cache_folder() -> Path:
    """Where downloads are kept: $RAYBASIN_DATA, else ~/.cache/raybasin."""
    return Path(os.environ.get("RAYBASIN_DATA") or "~/.cache/raybasin").expanduser()


def unreachable(url: str) -> str | None:
    """Why the host of `url` cannot be reached within a few seconds; None where it can, or where a proxy will ask it."""
    parts = urlsplit(url)
    if parts.scheme in urllib.request.getproxies():
        return None
    address = str(parts.hostname), 443 if parts.scheme == "https" else 80
    outcome: list[str | None] = [f"no network: {address[0]} does not answer within {CONNECT_SECONDS:.0f} s"]

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=CONNECT_SECONDS).close()
            outcome[0] = None
        except OSError as error:
            outcome[0] = f"no network: {address[0]}: {error.strerror or error}"

    # In a thread because looking the name up takes no time-out.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return outcome[0]


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Downloads of torchvision and timm set no time-out; this one bounds each read and is taken back afterwards."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
