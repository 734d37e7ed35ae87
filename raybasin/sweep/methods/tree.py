from typing import ClassVar

from raybasin.sweep.fields import Count
from raybasin.sweep.methods.method import Method


class Tree(Method):
    """StarSSE of SSE: chains of cycles from the hub. One chain of all is sse, chains of one cycle are star_sse."""

    place: ClassVar = 4
    style: ClassVar = ("D", "#009E73")
    of_lineage: ClassVar = ("chain",)

    chain: Count = 2
    """Cycles in a chain."""

    def parent(self, index: int) -> int | None:
        return 0 if (index - 1) % self.chain == 0 else index - 1
