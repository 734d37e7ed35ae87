"""The lineage of each exploration method: where each member of an ensemble starts.

Members are counted from 0, the hub, which every method shares: the ordinary fine-tuning from the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable


def star_sse(index: int) -> int | None:
    """Every cycle starts from the hub (StarSSE, Sadrtdinov et al. 2023), so all cycles can run at once."""
    return 0


def sse(index: int) -> int | None:
    """Every cycle starts where the one before ended (Snapshot Ensembles, Huang et al. 2017)."""
    return index - 1


def local_de(index: int) -> int | None:
    """Every member is an ordinary fine-tuning of the same checkpoint, with its own seed and head (Local DE)."""
    return None


LINEAGES: dict[str, Callable[[int], int | None]] = {"star_sse": star_sse, "sse": sse, "local_de": local_de}
"""For a member index above 0: the index of its parent, or None where it starts from the checkpoint."""


def pairs(n_members: int, which: str) -> list[tuple[str, int, int]]:
    """The paths of an ensemble as (kind, start, end): hub to each member, then member to member.

    `which` is `consecutive` (k to k + 1 for k >= 1) or `all` (every pair of members other than the hub).
    """
    spokes = [("hub-member", 0, k) for k in range(1, n_members)]
    ends = [
        ("member-member", j, k)
        for j in range(1, n_members)
        for k in range(j + 1, n_members)
        if which == "all" or k == j + 1
    ]
    return spokes + ends
