"""Log-probabilities that are written as probabilities."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def log(probs: npt.ArrayLike) -> Array:
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(probs, dtype=np.float64))
