from typing import ClassVar

from raybasin.sweep.methods.method import Method


class LocalDE(Method):
    """Local deep ensemble: ordinary fine-tunings of one checkpoint, each with its own seed and head."""

    source: ClassVar = "Sadrtdinov et al. (2023), To Stay or Not to Stay in the Pre-train Basin, arXiv:2303.03374"
    place: ClassVar = 0
    style: ClassVar = ("s", "#000000")
    explores: ClassVar = False

    def parent(self, index: int) -> int | None:
        return None
