"""What ids are made with: each hashes everything that changes the result it names, and nothing else. Those of a sweep,
its paths and traces are in `Settings`, those of networks and cells where they are planned (`plan`), the others here.

A larger ensemble, one more ratio or another threshold leaves the ids of finished work as they are, and so trains
nothing again. What a method or a sweep is called changes no weights, and is in no id of a network: the first cycle of
`sse` and the first branch of `star_sse` at equal settings are one network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from raybasin.sweep.facts import DataFacts, Preprocess
from raybasin.sweep.fields import Spec
from raybasin.sweep.specs import Architecture, Pretrain

RESULTS_VERSION = 2
"""Raised whenever the numerics or the ids change, so that old results are never taken for new ones."""

WHERE = ("name", "dir", "decode")
"""Keys of data that say where images lie and who decodes them: they change no pixel."""
SHOWN = ("normalise", "eval_crop", "interpolation")
"""Keys of data that are hashed as they are resolved."""

_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def identity(spec: Spec, without: Iterable[str] = ()) -> dict[str, Any]:
    """What of `spec` makes results differ: its keys that are not at their default, less those named. A key that a later
    version adds changes no id already written."""
    return spec.model_dump(mode="json", exclude=set(without), exclude_defaults=True)


def architecture_identity(model: Architecture) -> str | dict[str, Any]:
    """What ids hash of a network: the name, which is all there is to most, or every key that is set.

    The code behind a `factory` is in no id.
    """
    chosen = identity(model, without=("pretrained",))
    return model.name if set(chosen) == {"name"} else chosen


def digest(*parts: Any) -> str:
    """A stable id of 16 hexadecimal digits of the JSON of `parts`; the same in every process and on every machine."""
    return _sha256(parts).hex()[:16]


def random_seed(*parts: Any) -> int:
    """A seed of 63 bits, from a stable hash of `parts`."""
    return int.from_bytes(_sha256(parts)[:8], "big") >> 1


HOW = ("checkpoint_seconds", "cuda_graphs")
"""Keys of a recipe that change how it is carried out, and nothing that comes of it."""


def _sha256(parts: tuple[Any, ...]) -> bytes:
    return hashlib.sha256(_JSON.encode(parts).encode()).digest()


def pretrain_key(task: Pretrain, seed: int, model: Architecture, data: DataFacts, shown: Preprocess) -> str:
    """The key of a checkpoint that is yet to be made: a hash of all that makes it. `seed` is one of the task's."""
    chosen = identity(task.data, without=(*WHERE, "test_images"))
    recipe = identity(task.recipe, without=HOW)
    stored = (data.train_fingerprint, data.train_size)
    network = architecture_identity(model)
    return digest("pretrain", RESULTS_VERSION, network, *stored, chosen, asdict(shown), recipe, seed)


def soup_id(kind: str, member_ids: Sequence[str]) -> str:
    """The id of the `uniform` or `greedy` soup of these members (the candidates, not the chosen ones)."""
    return digest(f"{kind}_soup", list(member_ids))


def uniform_soup_ids(member_ids: Sequence[str]) -> Iterator[str]:
    """The ids of the uniform soups of the first 2, 3, ... of these members, the text of each being hashed as the
    beginning of the next: a chain may be a thousand members long."""
    begun = hashlib.sha256(f'["uniform_soup",[{_JSON.encode(member_ids[0])}'.encode())
    for member_id in member_ids[1:]:
        begun.update(f",{_JSON.encode(member_id)}".encode())
        whole = begun.copy()
        whole.update(b"]]")
        yield whole.hexdigest()[:16]
