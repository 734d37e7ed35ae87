"""Room for workers: how many of each kind Ray will place, counted in advance, and waiting for it."""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.train import ScalingConfig
from ray.util import accelerators

from raybasin.cluster import connect, private
from raybasin.errors import UserError, nearest
from raybasin.sweep.specs import Workers

MAX_ASKED = 1000
"""Workers that the autoscaler is asked for, at most, where `count` does not say how many."""
LOOK_SECONDS = 1.0
"""Between two looks for room that is waited for."""

ACCELERATOR = "accelerator_type:"
"""Ray's name for the resource of which a node with an accelerator has 1, and whoever asks for its type takes 0.001."""
SLACK = 1e-6
"""Ray counts in steps of 1e-4."""


def asked(kind: Workers) -> dict[str, float]:
    """The resources that Ray sets aside for a worker."""
    gpus = {"GPU": kind.gpus} if kind.gpus else {}
    accelerator = {ACCELERATOR + kind.accelerator_type: 0.001} if kind.accelerator_type else {}
    return {"CPU": kind.share, **gpus, **accelerator, **kind.resources}


@dataclass
class Node:
    """A machine of the cluster, and what is free on it."""

    node_id: str
    free: dict[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    cards: list[float] = field(default_factory=list)
    """What is free of each GPU: a share lies on one."""

    def fitting(self, kind: Workers) -> int:
        """How many workers of a kind there is room for."""
        if any(self.labels.get(key) != value for key, value in kind.labels.items()):
            return 0
        counts = [_whole(self.free.get(name, 0.0), amount) for name, amount in asked(kind).items()]
        if kind.gpus:
            by_card = sum(_whole(card, kind.gpus) for card in self.cards)
            counts.append(by_card if kind.gpus < 1 else _whole(self.cards.count(1.0), kind.gpus))
        return max(0, min(counts))

    def take(self, kind: Workers, count: int) -> None:
        """Room for so many workers is gone. Ray fills one GPU before it begins the next."""
        for name, amount in asked(kind).items():
            self.free[name] = self.free.get(name, 0.0) - count * amount
        self.take_cards(kind.gpus, count)

    def take_cards(self, gpus: float, count: int = 1) -> None:
        if gpus >= 1:
            whole = sorted(range(len(self.cards)), key=lambda i: -self.cards[i])
            for i in whole[: round(gpus) * count]:
                self.cards[i] = 0.0
        elif gpus:
            for _ in range(count):
                fits = [i for i, card in enumerate(self.cards) if card >= gpus - SLACK]
                if fits:
                    fullest = min(fits, key=lambda i: self.cards[i])
                    self.cards[fullest] -= gpus


def _whole(of: float, amount: float) -> int:
    return math.floor(of / amount + SLACK)


def node(
    node_id: str,
    total: Mapping[str, float],
    available: Mapping[str, float],
    labels: Mapping[str, str],
    own: Iterable[Workers] = (),
) -> Node:
    """A machine whose resources are `total`, of which Ray calls `available` what nobody has been given. `own` are the
    workers there that are known: their room may not look taken yet."""
    made = Node(node_id, dict(total), labels, [1.0] * int(total.get("GPU", 0)))
    for worker in own:
        made.take(worker, 1)
    others_gpus = made.free.get("GPU", 0.0) - available.get("GPU", 0.0)
    if others_gpus > SLACK:
        made.take_cards(float(math.floor(others_gpus + SLACK)))
        made.take_cards(others_gpus - math.floor(others_gpus + SLACK))
    for name, amount in made.free.items():
        made.free[name] = min(amount, available.get(name, 0.0))
    return made


def slots(
    kinds: Sequence[Workers],
    nodes: Sequence[Node],
    most: Sequence[float] | None = None,
    in_all: float = math.inf,
    waiting: Iterable[tuple[Workers, int]] = (),
) -> list[int]:
    """How many more workers of each kind fit, the kinds one after the other, at most so many of each and so many in
    all. `waiting` are groups of workers that will be placed before, each if the whole of it fits."""
    for kind, count in waiting:
        _place(kind, nodes, count, whole=True)
    fitting = []
    for kind, limit in zip(kinds, most or [kind.count or math.inf for kind in kinds], strict=True):
        fitting.append(_place(kind, nodes, min(limit, in_all)))
        in_all -= fitting[-1]
    return fitting


def _place(kind: Workers, nodes: Sequence[Node], most: float, whole: bool = False) -> int:
    """Takes room for as many as fit, at most so many; where the `whole` must fit, for all or for none."""
    counts, left = [], most
    for there in nodes:
        counts.append(int(min(left, there.fitting(kind))))
        left -= counts[-1]
    if whole and left > 0:
        return 0
    for there, count in zip(nodes, counts, strict=True):
        there.take(kind, count)
    return sum(counts)


# In the cluster


def nodes(kinds: Sequence[Workers], taken: Iterable[tuple[str, int]] = ()) -> list[Node]:
    """The machines of the cluster. `taken` are node and kind of workers that have room there, or shall not have it."""
    own = defaultdict(list)
    for node_id, kind in taken:
        own[node_id].append(kinds[kind])
    available = private.available_by_node()
    return [
        node(there["NodeID"], there["Resources"], available.get(there["NodeID"], {}), there.get("Labels") or {},
             own[there["NodeID"]])
        for there in connect.alive_nodes()
    ]  # fmt: skip


@contextlib.contextmanager
def enough(kinds: Sequence[Workers], most: int, wait: Callable[[str], None] | None = None) -> Iterator[int]:
    """How many workers there is room for: `count` of each kind that says one, and one at least. Where there is less,
    raises UserError; or, with `wait`, which is told why, waits. Then the autoscaler is asked for as many as say their
    count, and of other kinds for as many as have something to do (`most`), until the end of the block, so that it
    replaces machines that go."""
    _check_can_be_asked(kinds)
    fitting, told = slots(kinds, nodes(kinds)), False
    try:
        if wait:
            _ask_for(kinds, most)
        while missing := _missing(kinds, fitting):
            if wait is None:
                raise UserError(missing)
            if not told:
                told = True
                wait(missing.splitlines()[0])
            time.sleep(LOOK_SECONDS)
            fitting = slots(kinds, nodes(kinds))
        yield sum(fitting)
    finally:
        if wait:
            with contextlib.suppress(Exception):  # the cluster may be gone
                request_resources(bundles=[])


def _ask_for(kinds: Sequence[Workers], most: int) -> None:
    wanted = [kind for kind in kinds for _ in range(kind.count or max(1, min(most, MAX_ASKED)))]
    labels = [dict(kind.labels) for kind in wanted]
    selectors: dict[str, Any] = {"bundle_label_selectors": labels} if any(labels) else {}
    bundles = [asked(kind) for kind in wanted]
    try:
        request_resources(bundles=bundles, **selectors)
    except TypeError:  # Ray 2.51 takes whole numbers only
        whole = [{name: math.ceil(amount) for name, amount in bundle.items()} for bundle in bundles]
        request_resources(bundles=whole, **selectors)


def _missing(kinds: Sequence[Workers], fitting: Sequence[int]) -> str:
    """Why `fitting` workers are not enough, and the way out; empty where they are."""
    if any(fitting) and all(count >= (kind.count or 0) for kind, count in zip(kinds, fitting, strict=True)):
        return ""
    free = ray.available_resources()
    wanted = " and ".join(_described(kind) for kind in kinds)
    would = ", ".join(str(count) for count in fitting)
    return (
        f"workers: {wanted} do not fit into the cluster's free {free.get('CPU', 0):g} CPUs and "
        f"{free.get('GPU', 0):g} GPUs; {would} would.\n"
        "Ask for less, for instance --set workers.cpus=0.5 --set workers.gpus=0, leave workers.count out, or wait for "
        "room with --wait."
    )


def _described(kind: Workers) -> str:
    count = kind.count or 1
    gpus = f" and {kind.gpus:g} GPUs" if kind.gpus else ""
    type_ = f" of type {kind.accelerator_type}" if kind.accelerator_type else ""
    others = "".join(f" and {amount:g} {name}" for name, amount in kind.resources.items())
    labels = "".join(f" where {key} is {value}" for key, value in kind.labels.items())
    return f"{count} worker{'s' if count > 1 else ''} of {kind.share:g} CPUs{gpus}{type_}{others}{labels}"


def _check_can_be_asked(kinds: Sequence[Workers]) -> None:
    """Raises UserError for what this cluster's Ray does not know, and would wait for."""
    if any(kind.labels for kind in kinds) and "label_selector" not in inspect.signature(ScalingConfig).parameters:
        raise UserError(f"workers.labels: Ray {ray.__version__} places no workers by labels; a newer one does")
    here = {name.removeprefix(ACCELERATOR) for name in ray.cluster_resources() if name.startswith(ACCELERATOR)}
    known = here | {value for name, value in vars(accelerators).items() if name.isupper() and isinstance(value, str)}
    for kind in kinds:
        if kind.accelerator_type and kind.accelerator_type not in known:
            raise UserError(
                f"workers.accelerator_type: Ray knows no {kind.accelerator_type}{nearest(kind.accelerator_type, known)}"
            )
