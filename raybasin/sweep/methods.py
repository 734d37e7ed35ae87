"""The exploration methods: each a lineage, a schedule and at most one hook at a step, over the same training loop.

Members are counted from 0, the hub, which every method shares: the ordinary fine-tuning from the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from raybasin.sweep.schedules import Shape

Options = Mapping[str, float | int | None]
"""What a sweep file may say of one method beside its ratios, with every default filled in."""


@dataclass(frozen=True)
class Method:
    """`parent` gives for a member index above 0 the index of the member it starts from, None for a checkpoint."""

    parent: Callable[[int, Options], int | None]
    shape: Shape = "cosine"
    langevin: bool = False
    """Noise is added to the gradients in the last part of a cycle."""
    samples: bool = False
    """There is one run from the hub, the tail, and members are drawn from the moments of its weights."""
    own_checkpoints: bool = False
    """Each member starts from a checkpoint of its own."""
    explores: bool = True
    """Takes `lr_ratio` and `cycle_ratio`; members of the others are ordinary fine-tunings."""
    options: Options = field(default_factory=dict)
    """The keys of its own that the method takes in a sweep file, with their defaults."""


def _from_hub(index: int, options: Options) -> int | None:
    return 0


def _from_the_one_before(index: int, options: Options) -> int | None:
    return index - 1


def _from_checkpoint(index: int, options: Options) -> int | None:
    return None


def _in_chains(index: int, options: Options) -> int | None:
    """Chains of `chain` cycles: the first of each starts from the hub, the others from the one before."""
    chain = options["chain"]
    assert isinstance(chain, int)
    return 0 if (index - 1) % chain == 0 else index - 1


METHODS: dict[str, Method] = {
    # Ordinary fine-tunings of one checkpoint, each with its own seed and head (Local DE).
    "local_de": Method(_from_checkpoint, explores=False),
    # The same, each from an independently pre-trained checkpoint (Global DE).
    "global_de": Method(_from_checkpoint, explores=False, own_checkpoints=True),
    # Every cycle starts from the hub (Sadrtdinov et al. 2023), so all cycles can run at once.
    "star_sse": Method(_from_hub),
    # Every cycle starts where the one before ended (Snapshot Ensembles, Huang et al. 2017).
    "sse": Method(_from_the_one_before),
    # StarSSE of SSE: chains from the hub. One chain of all cycles is sse, chains of one cycle are star_sse.
    "tree": Method(_in_chains, options={"chain": 2}),
    # Fast Geometric Ensembling (Garipov et al. 2018): a triangular rate, networks are taken where it is lowest.
    "fge": Method(_from_the_one_before, shape="triangular", options={"low_ratio": 0.01}),
    # Cyclical SGLD (Zhang et al. 2020): a chain whose cycles end with Langevin noise. The temperature's default is
    # 1 / training images, as in the authors' code.
    "csgld": Method(_from_the_one_before, langevin=True, options={"noise_share": 0.1, "temperature": None}),
    # SWA-Gaussian (Maddox et al. 2019): moments of the weights along a tail at a constant rate, then samples.
    "swag": Method(
        _from_hub, shape="constant", samples=True, options={"rank": 20, "scale": 0.5, "collect_steps": None}
    ),
}


EXPLORING = ("star_sse", "sse", "tree", "fge", "csgld", "swag")
"""The methods that have a rate and a length of their own, and so a map; in the order in which they are shown."""


def variant(method: str, given: Options) -> str:
    """The method's own keys that are given and not at their default, as `key=value`; empty where all are."""
    defaults = METHODS[method].options
    own = sorted((key, value) for key, value in given.items() if key in defaults)
    return " ".join(f"{key}={value:g}" for key, value in own if value is not None and value != defaults[key])


def label(method: str, variant: str) -> str:
    """A method as it is shown: variants are told apart like methods."""
    return f"{method} {variant}".strip()


def explores(label: str) -> bool:
    """Whether cells of this method (or label) have a rate and a length of their own."""
    return label.split(" ")[0] in EXPLORING


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
