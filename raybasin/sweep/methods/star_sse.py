from typing import ClassVar

from raybasin.sweep.methods.method import Method


class StarSSE(Method):
    """Every cycle starts from the hub, so all cycles can run at once."""

    source: ClassVar = "Sadrtdinov et al. (2023), To Stay or Not to Stay in the Pre-train Basin, arXiv:2303.03374"
    place: ClassVar = 2
    style: ClassVar = ("o", "#0072B2")

    def parent(self, index: int) -> int | None:
        return 0
