"""A results folder with known numbers, written through `raybasin.store.tables`: for tests of the reading side.

The error barrier of a cell follows from `load = lr_ratio * cycle_ratio` alone: 0 up to a load of 1, then
growing. With the default threshold of 0.02 a cell is in the basin exactly when `load <= IN_UP_TO`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from raybasin.store import tables
from raybasin.store.folders import Folder
from raybasin.store.predictions import prediction_unit
from raybasin.store.schemas import COMMON
from raybasin.sweep import ids, specs

SETTINGS = "5e771465e771465e"
EVAL_ID = "eva1eva1eva1eva1"
CHECKPOINT = "resnet50.tv_in1k"
IN_UP_TO = 2.0
N_EXAMPLES, N_CLASSES = 40, 4
FACTS = {"n_train": 45000, "n_val": 5000, "n_test": 10000, "n_classes": 10,
         "train_fingerprint": "0" * 16, "test_fingerprint": "1" * 16}  # fmt: skip
PREPROCESS = {"image_size": 32, "eval_crop": 1.0, "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear"}

Row = dict[str, Any]


def barrier(lr_ratio: float, cycle_ratio: float) -> float:
    """In error rate; it crosses 0.02 between loads of 2 and 4."""
    return 0.019 * max(0.0, math.log2(lr_ratio * cycle_ratio)) ** 2


def sweep(**changes: Any) -> Row:
    """The resolved sweep file of the grid below, with top-level keys changed."""
    tree: Row = {
        "name": "synthetic",
        "question": "Where does StarSSE leave the pre-train basin of made-up numbers?",
        "data": {"name": "cifar10"},
        "model": {"name": "resnet50", "pretrained": [CHECKPOINT]},
        "recipe": {"epochs": 20, "lr": 0.05},
        "methods": {
            "star_sse": {"lr_ratio": [1, 2, 4, 8], "cycle_ratio": [0.5, 1, 2]},
            "sse": {"lr_ratio": [1, 4], "cycle_ratio": [0.5, 1]},
            "local_de": {},
        },
        "replicates": 2,
    }
    return specs.dump(specs.parse({**tree, **changes}))


def cell(method: str, lr_ratio: float, cycle_ratio: float, replicate: int, **changes: Any) -> Row:
    """A row of `cells`; `changes` replace columns."""
    load = 64.0 if method == "local_de" else lr_ratio * cycle_ratio
    height = 0.6 if method == "local_de" else barrier(lr_ratio, cycle_ratio)
    checkpoint, n_members = changes.get("checkpoint", CHECKPOINT), changes.get("n_members", 5)
    hub_id = f"hub-{checkpoint}-{replicate}"
    name = f"{method}-{lr_ratio:g}-{cycle_ratio:g}-{checkpoint}-{replicate}"
    # Replicates differ by 0.2 points in everything, so differences within a replicate have no spread.
    hub = 0.950 + 0.002 * replicate
    skill = 0.9 if method == "sse" else 1.0
    gain = 0.012 if method == "local_de" else skill * 0.008 * math.exp(-(math.log2(load / 2) ** 2) / 4)
    soup = skill * 0.002 * load - 4 * height**1.5 if method != "local_de" else -0.8
    row = {
        "cell_id": f"{name}-{n_members}",
        "member_ids": [hub_id, *(f"{name}-m{index}" for index in range(1, n_members))],
        "hub_id": hub_id, "n_members": n_members, "max_lr": 0.05 * lr_ratio,
        "cycle_epochs": 20.0 * cycle_ratio,
        "barrier_nll": 4 * height, "barrier_error": height, "barrier_error_se": 0.0005 + height / 40,
        "barrier_nll_se": 0.002 + height / 10,
        "barrier_nll_mean": 3 * height, "barrier_error_mean": 0.8 * height, "member_barrier_nll": 5 * height,
        "member_barrier_error": 1.2 * height, "rise_error": height, "in_basin": height <= 0.02,
        "hub_accuracy": hub, "member_accuracy": hub - 0.002 * load**0.5, "ensemble_accuracy": hub + gain,
        "ensemble_nll": 0.16 - 4 * gain, "soup_accuracy": max(0.1, hub + soup), "soup_nll": 0.2 - 4 * soup,
        "greedy_soup_accuracy": hub + max(0.0, soup), "greedy_soup_members": [hub_id],
        "kept_predictions": ["val", "test"],
        "val_ensemble_accuracy": hub + gain - 0.001, "val_ensemble_nll": 0.17 - 4 * gain,
        "val_soup_accuracy": max(0.1, hub + soup - 0.001), "val_soup_nll": 0.21 - 4 * soup,
        "disagreement": 0.02 + 0.005 * math.log2(1 + load),
        "normalised_disagreement": 0.4 + 0.1 * math.log2(1 + load), "l2_from_hub": 3 * load**0.5,
        "train_epochs": 20 + 4 * 20 * cycle_ratio, "train_seconds": 300.0, "wall_seconds": 400.0,
        "device": "NVIDIA H100", "versions": json.dumps({"torch": "2.13.0", "raybasin": "0.1.0"}),
        "finished_at": datetime(2026, 7, 1, tzinfo=UTC) + timedelta(minutes=replicate),
        **_common(method, lr_ratio, cycle_ratio, replicate, checkpoint),
    }  # fmt: skip
    return {**row, **changes}


def grid(replicates: int = 2, **changes: Any) -> list[Row]:
    """All cells of `sweep()`."""
    points = [("star_sse", lr, cycle) for lr in (1, 2, 4, 8) for cycle in (0.5, 1, 2)]
    points += [("sse", lr, cycle) for lr in (1, 4) for cycle in (0.5, 1)] + [("local_de", 1, 1)]
    return [cell(*point, replicate, **changes) for point in points for replicate in range(replicates)]


def write(root: Path, cells: Iterable[Row], settings_id: str = SETTINGS, content: Row | None = None) -> Path:
    """The folder of a finished sweep: its sweep file, cells, scores and paths."""
    folder = Folder(root)
    facts = {"eval_id": EVAL_ID, "data": FACTS, "preprocess": PREPROCESS, "pretrain_data": {}, "batch_norm": True,
             "n_parameters": 1000}  # fmt: skip
    resolved: Row = {"results_version": ids.RESULTS_VERSION, "sweep": content or sweep(), "facts": facts}
    names = resolved["sweep"]["model"]["pretrained"]
    resolved["facts"]["checkpoints"] = [{"name": name, "key": name, "pretrain": None} for name in names]
    folder.put_new(f"sweeps/{settings_id}.yaml", yaml.safe_dump(resolved).encode())
    rows = [{**row, "settings_id": settings_id} for row in cells]
    split = resolved["sweep"]["basin"]["split"]
    for table, make in (
        ("cells", lambda row: [row]), ("scores", _scores), ("paths", lambda row: _paths(row, {"val", split})),
    ):  # fmt: skip
        # One file for all cells: sixty files, each flushed to the disk, would be most of the tests' time.
        made = [written for row in rows for written in make(row)]
        if made:
            tables.write(folder, table, ids.digest(settings_id, [row["cell_id"] for row in rows]), made)
    return root


def write_predictions(root: Path, member_ids: Sequence[str]) -> None:
    """Predictions on `val` and `test`; those of member m on example n follow from `log_probs_of(m, n)`."""
    for m, member_id in enumerate(member_ids):
        rows = [
            {
                "predictor_id": member_id, "kind": "member", "n_members": 1, "split": split, "bn": bn,
                "example": n, "label": n % N_CLASSES, "log_probs": log_probs_of(m, n),
                "eval_id": EVAL_ID, **_common("star_sse", 1, 1, 0, CHECKPOINT),
            }
            for split in ("val", "test")
            for bn in ("own", "reestimated")
            for n in reversed(range(N_EXAMPLES))
        ]  # fmt: skip
        tables.write(Folder(root), "predictions", prediction_unit(member_id, EVAL_ID), rows)


def log_probs_of(member: int, example: int) -> list[float]:
    logits_C = np.arange(N_CLASSES) * (member + 1) + 0.01 * example
    return [float(x) for x in logits_C - np.log(np.exp(logits_C).sum())]


def failure(method: str, lr_ratio: float, cycle_ratio: float, replicate: int, reason: str, **changes: Any) -> Row:
    common = _common(method, lr_ratio, cycle_ratio, replicate, CHECKPOINT)
    row = {
        "unit_id": f"failed-{method}-{lr_ratio:g}-{cycle_ratio:g}-{replicate}",
        "tries": 3,
        "reason": reason,
    }
    return {**row, "at": datetime(2026, 7, 1, tzinfo=UTC), **common, **changes}


def _common(method: str, lr_ratio: float, cycle_ratio: float, replicate: int, checkpoint: str) -> Row:
    return {
        "sweep": "synthetic", "settings_id": SETTINGS, "checkpoint": checkpoint, "method": method,
        "replicate": replicate, "lr_ratio": float(lr_ratio), "cycle_ratio": float(cycle_ratio),
    }  # fmt: skip


def _scores(row: Row) -> list[Row]:
    """Ensembles of the first k members: the gain grows as 1 - 1/k towards what the cell's row says."""
    n = row["n_members"]
    gain = row["ensemble_accuracy"] - row["hub_accuracy"]
    common = {name: row[name] for name in (*COMMON, "cell_id")}
    hub = {"predictor_id": row["hub_id"], "kind": "member", "n_members": 1, "accuracy": row["hub_accuracy"]}
    ensembles = [
        {
            "predictor_id": f"{row['cell_id']}-first{k}", "kind": "ensemble", "n_members": k,
            "accuracy": row["hub_accuracy"] + gain * (1 - 1 / k) / (1 - 1 / n),
        }
        for k in range(2, n + 1)
    ]  # fmt: skip
    return [{**common, **score, "split": "test", "bn": "own"} for score in (hub, *ensembles)]


def _paths(row: Row, splits: Iterable[str]) -> list[Row]:
    """Parabolas with the barriers of the cell's row in the middle; on training images by 0.02 of error lower."""
    members = row["member_ids"]
    pairs = [("hub-member", 0, k) for k in range(1, len(members))]
    pairs += [("member-member", k, k + 1) for k in range(1, len(members) - 1)]
    common = {name: row[name] for name in (*COMMON, "cell_id")}
    rows = []
    for split, (kind, a, b) in product(sorted(splits), pairs):
        prefix = "" if kind == "hub-member" else "member_"
        for t in np.linspace(0, 1, 11).tolist():
            bump = 4 * t * (1 - t) * (1 - 0.1 * (b - 1))
            height_nll, height_error = row[f"{prefix}barrier_nll"], row[f"{prefix}barrier_error"]
            rows.append({
                **common, "path_id": f"{a}-{b}", "kind": kind, "start_id": members[a], "end_id": members[b],
                "split": split, "t": t, "images": 5000, "bn_images": 2048,
                "nll": 0.2 + 0.01 * t + bump * height_nll,
                "error": (0.05 if split == "val" else 0.03) + 0.002 * t + bump * height_error,
            })  # fmt: skip
    return rows
