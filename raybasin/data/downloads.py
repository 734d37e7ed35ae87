"""Downloads end: where there is no network this is said within seconds, and none hangs on a silent server."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from raybasin.data import torchvision_sets

CONNECT_SECONDS = 5.0
STALL_SECONDS = 30.0


def cache_folder() -> Path:
    """Where downloads are kept: $RAYBASIN_DATA, else ~/.cache/raybasin."""
    return Path(os.environ.get("RAYBASIN_DATA") or "~/.cache/raybasin").expanduser()


def download(wanted: torchvision_sets.Known, folder: Path) -> str | None:
    """Downloads a set into `folder` all or nothing; the reason where nothing came.

    torchvision takes some data sets for present as soon as their folder exists. So it works in a folder beside, which
    gets its name only when every split could be read.
    """
    if wanted.url is None:
        return "torchvision has no download for this data set"
    if reason := unreachable(wanted.url):
        return f"cannot be downloaded ({reason})"
    from torchvision.datasets import utils

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(
                prefix=f".{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True
            ) as new,
            socket_timeout(STALL_SECONDS),
        ):
            for arguments in wanted.train + wanted.val + wanted.test:
                torchvision_sets.construct(wanted, Path(new), arguments, download=True)
            if wanted.cut is torchvision_sets.partition:
                # The official partitions, which torchvision leaves out: lists of names, checked when they are read.
                partitions = str(Path(new) / "SUN397")
                utils.download_and_extract_archive(torchvision_sets.PARTITIONS_URL, partitions, remove_finished=True)
            os.chmod(new, 0o755)  # it was for its owner alone
            os.rename(new, folder)
    except MemoryError:
        raise
    except Exception as error:  # whatever networks, archives and disks raise
        # Another process may have been first, and then its copy serves.
        return None if folder.exists() else f"the download failed ({' '.join(str(error).split())})"
    return None


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
