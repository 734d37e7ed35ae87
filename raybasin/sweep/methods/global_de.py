from typing import ClassVar

from raybasin.sweep.methods.method import Method


class GlobalDE(Method):
    """Global deep ensemble: ordinary fine-tunings, each of an independently pre-trained checkpoint."""

    source: ClassVar = "Sadrtdinov et al. (2023), To Stay or Not to Stay in the Pre-train Basin, arXiv:2303.03374"
    place: ClassVar = 1
    style: ClassVar = ("P", "#CC79A7")
    explores: ClassVar = False
    own_checkpoints: ClassVar = True

    def parent(self, index: int) -> int | None:
        return None
