"""One encoded image -> uint8 pixels: which formats are read, and what is refused before or while it is decoded."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError, features

from raybasin.errors import UserError

PixelArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
CheckArray = npt.NDArray[np.uint32]
"""CRC-32 of the stored bytes of images."""
HeightWidth = tuple[int, int]
Encoded = tuple[str, bytes]
"""Where an image is stored, in words for a user, and its bytes as stored."""

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: a few bytes can declare gigabytes of pixels."""
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm",
    ".tif", ".tiff",
)  # fmt: skip
"""Every ending that Pillow has for these formats, in lower case."""


def size_of(where: str, content: bytes) -> HeightWidth:
    """As the header of the image tells it. Raises UserError for what is no image."""
    with _opened(where, content) as image:
        return image.height, image.width


def decode(where: str, content: bytes, size: HeightWidth) -> PixelArray:
    """The image as [H, W, 3] of that size: the shorter side resized to fit (bicubic), the centre kept."""
    # An image that has the size already is not resampled.
    return np.asarray(ImageOps.fit(to_rgb(where, content), size[::-1], Image.Resampling.BICUBIC))


def decoder() -> str:
    """Which versions of what decodes are here: others may give other pixels of the same bytes."""
    return ", ".join(f"{name} {features.version(name)}" for name in ("pil", "jpg", "webp", "libtiff", "zlib"))


def to_rgb(where: str, content: bytes) -> Image.Image:
    """The image in RGB. Raises UserError for what is no image, or is not one of 8 bits a channel."""
    with _opened(where, content) as image:
        if image.mode.startswith(("I", "F")):  # PIL would clip these to 0..255 in silence
            raise UserError(f"{where}: has {image.mode} pixels; convert it to 8 bits a channel")
        if image.mode == "P" and "transparency" in image.info:  # the same pixels; PIL warns of the direct way
            return image.convert("RGBA").convert("RGB")
        return image.convert("RGB")


def check_unchanged(where: str, content: bytes, check: np.uint32) -> None:
    """Whether an image is that of which `check` was made. Raises UserError."""
    if zlib.crc32(content) != check:
        raise UserError(f"{where}: is not the image that it was when the sweep began; put it back and run it again")


def not_fetched(content: bytes) -> str | None:
    """What to say of a file that Git LFS has not fetched, of which there is a pointer alone; None for any other."""
    if content.startswith(b"version https://git-lfs.github.com/spec/"):
        return "is a pointer that Git LFS left in place of the file; fetch it with `git lfs pull`"
    return None


@contextmanager
def _opened(where: str, content: bytes) -> Iterator[Image.Image]:
    """Not yet decoded. What goes wrong while it is open is blamed on the image, but for a want of memory."""
    if instead := not_fetched(content):
        raise UserError(f"{where}: {instead}")
    try:
        with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"{where}: {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read")
            yield image
    except (MemoryError, UserError):
        raise
    except Exception as error:  # damaged files make PIL's plug-ins raise nearly anything
        known = f"none of {', '.join(IMAGE_FORMATS)}"
        reason = known if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
        raise UserError(f"{where}: not a readable image ({reason}); replace it or take it out") from error
