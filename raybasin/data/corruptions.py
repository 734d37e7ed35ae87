"""The corruptions of Hendrycks and Dietterich (ICLR 2019), made on uint8 images by the package imagecorruptions-imaug.

It has all 19 of them with the parameters of ImageNet-C. It draws from NumPy's global generator, which is set anew for
every image, from a stable hash, and put back afterwards: an image is the same whatever else is drawn. (NumPy's legacy
generator and the hash never change; the package's version is in the fingerprint of what it makes.)

Axes: n images of a selection, H height, W width, C = 3 channels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from itertools import count
from typing import Any

import numpy as np

from raybasin.data.images import IntArray, PixelArray
from raybasin.errors import UserError
from raybasin.sweep import ids

PACKAGE = "imagecorruptions-imaug"
LEAST_SIDE = 32
"""The package takes no smaller images."""
TAKES_SEED = ("glass_blur", "impulse_noise")
"""Corruptions that do not draw from NumPy's global generator."""

_one_at_a_time = threading.Lock()


def version() -> str:
    """Name and version of the package that makes the corruptions. Raises UserError where it cannot be imported."""
    _package()
    return f"{PACKAGE} {metadata.version(PACKAGE)}"


def corrupted(images_nHWC: PixelArray, positions_n: IntArray, corruption: str, severity: int) -> PixelArray:
    """The images with one corruption, uint8 of the same shape.

    What is drawn for an image follows from corruption, severity and its position alone.

    Args:
        images_nHWC: uint8, 32 pixels or more each way.
        positions_n: where each image stands in its split, whichever others are made.
        corruption: one of `specs.CORRUPTIONS`.
        severity: 1 to 5, as in ImageNet-C.

    Raises:
        UserError: if the package cannot be imported.
    """
    corrupt = _package()
    made_nHWC = np.empty_like(images_nHWC)
    with _one_at_a_time:
        before = np.random.get_state()
        try:
            for place, position in enumerate(positions_n.tolist()):
                made_nHWC[place] = _corrupted(corrupt, images_nHWC[place], corruption, severity, position)
        finally:
            np.random.set_state(before)
    return made_nHWC


def _corrupted(
    corrupt: Callable[..., PixelArray], image_HWC: PixelArray, corruption: str, severity: int, position: int
) -> PixelArray:
    """One image. Where a draw ends in a division by zero (a spatter without a drop, in 2 of 100 images of 32 pixels at
    severity 1), for which the package would return black pixels, it is drawn again."""
    for attempt in count():
        seed = ids.random_seed("corruption", corruption, severity, position, attempt)
        np.random.seed([seed % 2**32, seed // 2**32])
        given = {"seed": seed % 2**32} if corruption in TAKES_SEED else {}
        with suppress(FloatingPointError), np.errstate(divide="raise", invalid="raise"):
            return corrupt(image_HWC, severity=severity, corruption_name=corruption, **given)
    raise AssertionError("count() ends")


def _package() -> Any:
    try:
        metadata.version(PACKAGE)  # an older package, which no longer works, has a module of the same name
        from imagecorruptions import corrupt
    except ImportError as error:
        without_display = "\nWithout a display put the package opencv-python-headless in the place of opencv-python."
        hint = without_display if "libGL" in str(error) else ""
        raise UserError(
            f"shifts: format corrupt needs packages that cannot be imported here ({error}); "
            f'pip install "raybasin[shifts]"{hint}'
        ) from error
    return corrupt
