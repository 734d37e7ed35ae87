"""What a result was made on: device and versions, for the tables."""

from __future__ import annotations

import functools
import json
import platform
from importlib import metadata
from typing import TYPE_CHECKING

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
