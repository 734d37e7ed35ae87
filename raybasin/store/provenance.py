"""What a result was made on: device and versions, for the tables; and which process of this machine one is."""

from __future__ import annotations

import functools
import json
import os
import platform
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGES = ("raybasin", "ray", "torch", "torchvision", "timm", "numpy", "pyarrow", "imagecorruptions-imaug")


@functools.cache
def versions() -> str:
    """Python and package versions as JSON; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return json.dumps(found, sort_keys=True)


def describe(device: torch.device) -> str:
    """`cpu, 1 thread` or the GPU's name."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"


@functools.cache
def _processes_here() -> str:
    """Names what the numbers of processes refer to: this start of the system and, in a container, its own numbers.
    Empty where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return ""


def sign() -> dict[str, Any]:
    """What others can tell by whether this process still lives, and when it said so."""
    return {"at": time.time(), "host": platform.node(), "pid": os.getpid(), "processes": _processes_here()}


def is_recent(told: Mapping[str, Any], seconds: float) -> bool:
    """Whether a `sign` is not older than that, nor its process known to have ended since. Raises ValueError where it is
    not what `sign` gives."""
    try:
        return time.time() - float(told["at"]) < seconds and not _has_died(told)
    except (TypeError, LookupError, AttributeError, OverflowError) as error:
        raise ValueError(f"no sign of a process: {error}") from error


def _has_died(process: Mapping[str, Any]) -> bool:
    """Whether a process is known to have ended: only one of this machine can be."""
    if not _processes_here() or process.get("processes") != _processes_here():
        return False
    try:
        os.kill(int(process["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # somebody else's, or no number of a process
        return False
    return False
