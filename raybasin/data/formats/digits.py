"""scikit-learn's digits, which are built in: they need neither a folder nor a network."""

from __future__ import annotations

import numpy as np

from raybasin.data.stored import PixelSplit, Stored


def open() -> Stored:
    """1,797 images of 8 x 8 grey pixels in 0..16, scaled to 0..255; one pool."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images.astype(np.int64) * 255 + 8) // 16
    split = PixelSplit(pixels.astype(np.uint8), digits.target.astype(np.int64))
    return Stored(split, None, None, source="scikit-learn's digits")
