"""A whole sweep that takes seconds: scikit-learn's digits, a network of 0.4 M parameters, two epochs.

`tree` is its sweep file as mappings, `facts` what `prepare` would find for a sweep of a made-up data set.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raybasin.store import tables
from raybasin.store.folders import Folder
from raybasin.store.schemas import KEYS, VOLATILE
from raybasin.sweep import plan, specs
from raybasin.sweep.facts import CheckpointFacts, DataFacts, Facts, Preprocess

_TREE: dict[str, Any] = {
    "name": "tiny",
    "data": {
        "name": "digits", "image_size": 32, "augment": ["pad_crop", "flip"], "classes": [5, 6, 7, 8, 9],
        "train_images": {"per_class": 8}, "validation": {"images": 60}, "test_images": 50, "eval_crop": 1.0,
    },
    "model": {
        "name": "test_resnet",
        "pretrained": [
            {
                "pretrain": {
                    "data": {
                        "name": "digits", "image_size": 32, "augment": [], "classes": [0, 1, 2, 3, 4],
                        "train_images": {"per_class": 8}, "validation": {"images": 50}, "test_images": 10,
                        "eval_crop": 1.0,
                    },
                    "recipe": {"epochs": 1, "batch_size": 20},
                }
            }
        ],
    },
    "recipe": {"epochs": 2, "batch_size": 20, "lr": 0.02},
    "methods": {
        "star_sse": {"n_members": 3, "lr_ratio": [1, 4]},
        "sse": {"n_members": 3},
        "local_de": {"n_members": 3},
    },
    "basin": {"points": 3, "bn_images": 20, "threshold": 0.02},
}  # fmt: skip


def tree(**changes: Any) -> dict[str, Any]:
    """The tiny sweep with keys changed; `__` goes down a level: `recipe__epochs=3`."""
    made = copy.deepcopy(_TREE)
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = made
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return made


def spec(**changes: Any) -> specs.SweepSpec:
    return specs.parse(tree(**changes))


def facts(**changes: Any) -> Facts:
    """40 training images, one checkpoint file; a change goes to the part of the facts that has a field of that name."""
    data = {"train_fingerprint": "a" * 64, "test_fingerprint": "b" * 64, "n_train": 40, "n_val": 60, "n_test": 50,
            "n_classes": 5, "train_size": (0, 0)}  # fmt: skip
    shown = {"image_size": 32, "eval_crop": 1.0, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2),
             "interpolation": "bilinear"}  # fmt: skip
    whole = {"checkpoints": (CheckpointFacts("first", "c" * 64),), "pretrain_data": {}, "batch_norm": True,
             "n_parameters": 1000, "shifts": ()}  # fmt: skip
    for key, value in changes.items():
        next(part for part in (data, shown, whole) if key in part)[key] = value
    return Facts(data=DataFacts(**data), preprocess=Preprocess(**shown), **whole)


@dataclass(frozen=True)
class Sweep:
    """A sweep that was run into a folder."""

    folder: Folder
    plan: plan.Plan

    def rows(self, table: str) -> list[dict[str, Any]]:
        return tables.rows(self.folder, table)

    def cell(self, method: str, lr_ratio: float = 1.0) -> plan.Cell:
        return next(c for c in self.plan.cells if (c.point.method, c.point.lr_ratio) == (method, lr_ratio))

    def members(self) -> dict[str, dict[str, Any]]:
        return {row["member_id"]: row for row in self.rows("members")}


def values(folder: Folder) -> tuple[dict[str, list[str]], list[str]]:
    """Every row of every table but `failures`, without the columns that tell when and how fast, in the order of keys,
    and the names of all weights, which are their SHA-256."""
    found = {}
    for table, keys in KEYS.items():
        rows = sorted(tables.rows(folder, table), key=lambda row: [str(row[key]) for key in keys])
        found[table] = [repr({k: v for k, v in row.items() if k not in VOLATILE}) for row in rows]
    return {table: rows for table, rows in found.items() if table != "failures"}, folder.names("weights")


def context(root: Path, sweep_spec: specs.SweepSpec) -> Any:
    """What a worker has at hand for a sweep in the folder `root`, and beside it the plan of that sweep."""
    import torch

    from raybasin.jobs import prepare
    from raybasin.jobs.worker_context import WorkerContext

    @dataclass
    class Context(WorkerContext):
        plan: Any = None

    prepared = prepare.prepare(sweep_spec)
    made, loaded = prepared.plan, prepare.load(prepared)
    return Context(
        Folder(root), made.settings, loaded.target, loaded.pretrain, torch.device("cpu"), loaded.shifts, plan=made
    )
