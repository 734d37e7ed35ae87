"""The tables: one explicit schema each, with keys and the names of files."""

from __future__ import annotations

import pyarrow as pa

from raybasin.metrics import scores

SCHEMA_VERSION = 1


_TEXT, _INT, _REAL, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()


_TIME = pa.timestamp("us", tz="UTC")


_IDS = pa.list_(pa.string())


COMMON: dict[str, pa.DataType] = {
    "sweep": _TEXT, "settings_id": _TEXT, "checkpoint": _TEXT, "method": _TEXT, "replicate": _INT,
    "lr_ratio": _REAL, "cycle_ratio": _REAL,
}  # fmt: skip


_COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "cells": {
        "cell_id": _TEXT, "member_ids": _IDS, "hub_id": _TEXT, "n_members": _INT, "max_lr": _REAL,
        "cycle_epochs": _REAL, "barrier_nll": _REAL, "barrier_error": _REAL, "barrier_error_se": _REAL,
        "barrier_nll_mean": _REAL, "barrier_error_mean": _REAL, "member_barrier_nll": _REAL,
        "member_barrier_error": _REAL, "rise_error": _REAL, "in_basin": _BOOL, "hub_accuracy": _REAL,
        "hub_accuracy_reestimated": _REAL,
        "member_accuracy": _REAL, "ensemble_accuracy": _REAL, "ensemble_nll": _REAL, "soup_accuracy": _REAL,
        "soup_nll": _REAL, "greedy_soup_accuracy": _REAL, "greedy_soup_members": _IDS, "soup_sha256": _TEXT,
        "greedy_soup_sha256": _TEXT, "kept_predictions": _IDS,
        "val_ensemble_accuracy": _REAL, "val_ensemble_nll": _REAL, "val_soup_accuracy": _REAL,
        "val_soup_nll": _REAL, "disagreement": _REAL, "normalised_disagreement": _REAL, "l2_from_hub": _REAL,
        "variant": _TEXT, "exit_step": _INT, "exit_epochs": _REAL, "checkpoint_exit_step": _INT,
        "checkpoint_exit_epochs": _REAL, "checkpoint_barrier_error": _REAL,
        "train_epochs": _REAL, "train_seconds": _REAL, "wall_seconds": _REAL, "close_seconds": _REAL,
        "device": _TEXT, "versions": _TEXT, "finished_at": _TIME,
    },
    "members": {
        "member_id": _TEXT, "kind": _TEXT, "member_index": _INT, "parent_id": _TEXT, "parent_sha256": _TEXT,
        "weights_sha256": _TEXT, "moments_sha256": _TEXT, "seed": _INT, "max_lr": _REAL, "cycle_epochs": _REAL,
        "cycle_steps": _INT,
        "final_train_loss": _REAL, "train_seconds": _REAL, "images_per_second": _REAL, "job_seconds": _REAL,
        "device": _TEXT, "versions": _TEXT, "finished_at": _TIME,
    },
    "epochs": {"member_id": _TEXT, "epoch": _INT, "lr": _REAL, "train_loss": _REAL, "train_error": _REAL},
    "paths": {
        "cell_id": _TEXT, "path_id": _TEXT, "kind": _TEXT, "start_id": _TEXT, "end_id": _TEXT, "split": _TEXT,
        "t": _REAL, "nll": _REAL, "error": _REAL, "error_excess": _REAL, "error_excess_se": _REAL,
        "l2_distance": _REAL, "images": _INT, "bn_images": _INT, "job_seconds": _REAL,
    },
    "scores": {
        "cell_id": _TEXT, "predictor_id": _TEXT, "kind": _TEXT, "n_members": _INT, "split": _TEXT, "bn": _TEXT,
        **{score.name: _REAL for score in scores.SCORES},
    },
    "predictions": {
        "eval_id": _TEXT, "predictor_id": _TEXT, "kind": _TEXT, "n_members": _INT, "split": _TEXT, "bn": _TEXT,
        "example": _INT,
        "label": _INT, "log_probs": pa.list_(pa.float32()),
    },
    "traces": {
        "cell_id": _TEXT, "trace_id": _TEXT, "hub_id": _TEXT, "member_id": _TEXT, "origin": _TEXT, "step": _INT,
        "steps_from_hub": _INT, "epochs_from_hub": _REAL, "split": _TEXT, "t": _REAL, "nll": _REAL, "error": _REAL,
        "error_excess": _REAL, "error_excess_se": _REAL, "l2_distance": _REAL, "exact": _BOOL, "images": _INT,
        "bn_images": _INT, "job_seconds": _REAL,
    },
    "planes": {
        "plane_id": _TEXT, "cell_id": _TEXT, "member_ids": _IDS, "member_index": _INT, "row": _INT, "column": _INT,
        "x": _REAL, "y": _REAL, "split": _TEXT, "nll": _REAL, "error": _REAL, "images": _INT, "bn_images": _INT,
        "job_seconds": _REAL,
    },
    "failures": {"unit_id": _TEXT, "tries": _INT, "reason": _TEXT, "traceback": _TEXT, "at": _TIME},
    "checkpoints": {
        "checkpoint_id": _TEXT, "weights_sha256": _TEXT, "source": _TEXT, "model": _TEXT, "n_classes": _INT,
        "seed": _INT, "val_accuracy": _REAL, "train_epochs": _REAL, "train_seconds": _REAL, "job_seconds": _REAL,
        "device": _TEXT, "versions": _TEXT, "finished_at": _TIME,
    },
}  # fmt: skip


KEYS: dict[str, tuple[str, ...]] = {
    "cells": ("cell_id",),
    "members": ("member_id",),
    "epochs": ("member_id", "epoch"),
    "paths": ("cell_id", "path_id", "split", "t"),
    "scores": ("cell_id", "predictor_id", "split", "bn"),
    "predictions": ("eval_id", "predictor_id", "split", "bn", "example"),
    "traces": ("cell_id", "member_id", "origin", "step", "split", "t"),
    "planes": ("plane_id", "x", "y"),
    "failures": ("unit_id", "at"),
    "checkpoints": ("checkpoint_id",),
}
"""What is unique in each table. A predictor is scored anew under other evaluation settings: hence `eval_id`."""


VOLATILE = frozenset({
    "train_seconds", "images_per_second", "job_seconds", "close_seconds", "wall_seconds", "finished_at", "at",
})  # fmt: skip
"""Columns that tell when and how fast. All others are the same in two runs of one sweep on CPUs of one kind, with the
same versions and as many threads per worker, whatever was interrupted; `device` and `versions` say what it ran on."""


UNITS: dict[str, tuple[str, ...]] = {
    "cells": ("cell_id",),
    "members": ("member_id",),
    "epochs": ("member_id",),
    "paths": ("cell_id", "path_id"),
    "scores": ("cell_id",),
    "predictions": ("predictor_id",),
    "traces": ("cell_id",),
    "failures": ("unit_id",),
    "checkpoints": ("checkpoint_id",),
}
"""The columns whose values, joined by `-`, are the name of a file, or its beginning up to a further `-`."""


SCHEMAS: dict[str, pa.Schema] = {
    table: pa.schema(
        list({**columns, **COMMON}.items()), metadata={"table": table, "schema_version": str(SCHEMA_VERSION)}
    )
    for table, columns in _COLUMNS.items()
}
