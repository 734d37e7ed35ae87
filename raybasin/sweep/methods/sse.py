from typing import ClassVar

from raybasin.sweep.methods.method import Method


class SSE(Method):
    """Snapshot ensemble: every cycle starts where the one before ended."""

    source: ClassVar = "Huang et al. (2017), Snapshot Ensembles: Train 1, Get M for Free, arXiv:1704.00109"
    place: ClassVar = 3
    style: ClassVar = ("^", "#E69F00")

    def parent(self, index: int) -> int | None:
        return index - 1
