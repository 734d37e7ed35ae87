from typing import Annotated, ClassVar

from pydantic import Field

from raybasin.sweep.fields import Float
from raybasin.sweep.methods.method import Method


class FGE(Method):
    """Fast geometric ensembling: a chain with a triangular rate, networks are taken where it is lowest."""

    source: ClassVar = "Garipov et al. (2018), Loss Surfaces, Mode Connectivity, and Fast Ensembling, arXiv:1802.10026"
    place: ClassVar = 5
    style: ClassVar = ("v", "#56B4E9")
    shape: ClassVar = "triangular"

    low_ratio: Annotated[Float, Field(gt=0, lt=1)] = 0.01
    """Lowest rate of the triangle over its highest."""

    def parent(self, index: int) -> int | None:
        return index - 1
