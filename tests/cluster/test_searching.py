"""Searches on a cluster, with the real packages of those who search, schedule and listen; nothing leaves here."""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import tiny

pytest.importorskip("ray")

from ray import tune

import raybasin
from raybasin.store import tables
from raybasin.store.folders import Folder
from raybasin.store.schemas import KEYS
from raybasin.sweep import specs

pytestmark = pytest.mark.ray

TPE = {"searcher": "ray.tune.search.optuna:OptunaSearch", "args": {"seed": 1}, "metric": "val_ensemble_nll",
       "mode": "min", "points": 3, "lr_ratio": [0.5, 16]}  # fmt: skip
METHODS = {"star_sse": {"n_members": 3}, "local_de": {"n_members": 3}}
WORKERS = {"cpus": 1, "count": 2}


def tree(search, methods=METHODS, **changes):
    return tiny.tree(search=search, methods=methods, workers=WORKERS, **changes)


def points(root):
    return [
        (row["lr_ratio"], row["replicate"]) for row in tables.rows(Folder(root), "cells") if row["method"] == "star_sse"
    ]


def same_points_as_a_grid(tmp_path, rates):
    """What one process makes of the rates that were chosen, as a grid."""
    methods = {**METHODS, "star_sse": {"n_members": 3, "lr_ratio": sorted(rates)}}
    assert raybasin.run(tiny.tree(methods=methods), tmp_path / "grid").complete
    return tiny.values(Folder(tmp_path / "grid"))


def test_tpe_searches_is_listened_to_by_tensorboard_mlflow_and_wandb_and_goes_on_from_the_tables(
    cluster, tmp_path, monkeypatch
):
    for package in ("optuna", "mlflow", "wandb"):
        pytest.importorskip(package)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = (tmp_path / "mlruns").as_uri()
    callbacks = [
        {"callback": "ray.tune.logger:TBXLoggerCallback"},
        {"callback": "ray.air.integrations.mlflow:MLflowLoggerCallback",
         "args": {"tracking_uri": store, "experiment_name": "basin"}},
        {"callback": "ray.air.integrations.wandb:WandbLoggerCallback",
         "args": {"project": "basin", "mode": "offline", "dir": str(tmp_path)}},
    ]  # fmt: skip
    root, logs = tmp_path / "results", tmp_path / "logs"
    report = raybasin.run(tree({**TPE, "callbacks": callbacks, "logs": str(logs)}), root, ray=True, address=cluster[0])
    assert report.complete and len(report.trials) == 3 and not report.trials.errors
    cells = {row["lr_ratio"]: row for row in tables.rows(Folder(root), "cells") if row["method"] == "star_sse"}
    seen = {result.config["lr_ratio"]: result.metrics["val_ensemble_nll"] for result in report.trials}
    assert seen == {rate: row["val_ensemble_nll"] for rate, row in cells.items()} and len(seen) == 3
    assert all(result.metrics["networks"] == 3 for result in report.trials)

    events = list(logs.rglob("events.out.tfevents.*"))
    assert len(events) == 3 and all(b"ray/tune/val_ensemble_nll" in path.read_bytes() for path in events)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name("basin").experiment_id])
    assert {float(run.data.params["lr_ratio"]): run.data.metrics["val_ensemble_nll"] for run in runs} == seen
    assert len(list(tmp_path.rglob("offline-run-*/*.wandb"))) == 3

    more = raybasin.run(tree({**TPE, "points": 5}), root, ray=True, address=cluster[0])
    assert more.complete and len(more.trials) == 2  # the other three were known
    assert {path.name for path in root.iterdir()} <= {*KEYS, "weights", "sweeps", "state"}  # nothing of Ray's
    rates = {rate for rate, _ in points(root)}
    assert len(rates) == 5 and set(seen) < rates
    found, weights = tiny.values(Folder(root))
    expected, expected_weights = same_points_as_a_grid(tmp_path, rates)
    del found["points"], expected["points"]
    assert found == expected and weights == expected_weights  # hubs once, cells paired, whoever chooses the points


class Unreachable(tune.Callback):
    def on_trial_result(self, iteration, trials, trial, result, **info):
        raise ConnectionError("the tracking server is down")


def test_a_callback_that_raises_is_named_and_ends_nothing(cluster, tmp_path, caplog):
    asked = {"kind": "grid", "callbacks": [{"callback": f"{__name__}:Unreachable"}]}
    methods = {"star_sse": {"n_members": 2}}
    report = raybasin.run(tree(asked, methods), tmp_path, ray=True, address=cluster[0])
    assert report.complete and report.trials is None
    assert "has raised ConnectionError: the tracking server is down; it is told no more" in caplog.text


def test_asha_ends_points_between_replicates(cluster, tmp_path):
    asha = {
        "kind": "grid", "metric": "barrier_error", "mode": "min",
        "scheduler": {"scheduler": "ray.tune.schedulers:ASHAScheduler",
                      "args": {"time_attr": "replicates", "grace_period": 1, "max_t": 3, "reduction_factor": 2}},
    }  # fmt: skip
    methods = {**METHODS, "star_sse": {"n_members": 3, "lr_ratio": [0.5, 8, 16, 32]}}
    report = raybasin.run(tree(asha, methods, replicates=3), tmp_path, ray=True, address=cluster[0])
    assert report.complete and len(report.trials) == 4 and not report.trials.errors
    ended = {row["lr_ratio"]: row["replicates"] for row in tables.rows(Folder(tmp_path), "points")}
    have = Counter(rate for rate, _ in points(tmp_path))
    assert dict(have) == {rate: ended.get(rate, 3) for rate in (0.5, 8, 16, 32)} and all(ended.values())
    assert (
        Counter(row["method"] for row in tables.rows(Folder(tmp_path), "cells"))["local_de"] == 3
    )  # none of its points


def test_what_a_scheduler_ends_is_withdrawn_for_good_and_a_trial_that_is_killed_begins_again(cluster, tmp_path):
    ends = {
        "kind": "grid",
        "metric": "barrier_error",
        "mode": "min",
        "scheduler": {"scheduler": "stopping:EndsHighRates"},
    }
    methods = {"star_sse": {"n_members": 3, "lr_ratio": [1, 8]}}
    asked, killed = tree(ends, methods, replicates=2), []

    def kill_a_trial(line):
        trials = [pid for pid in cluster[2]() if _command(pid).startswith("ray::PointTrial")]
        if trials and not killed:
            os.kill(trials[0], signal.SIGKILL)
            killed.append(trials[0])

    report = raybasin.run(asked, tmp_path, ray=True, address=cluster[0], tell=kill_a_trial)
    assert report.complete and killed and not report.trials.errors
    assert sorted(points(tmp_path)) == [(1.0, 0), (1.0, 1), (8.0, 0)]
    before = tiny.values(Folder(tmp_path))
    started = time.time()
    assert raybasin.run(asked, tmp_path, ray=True, address=cluster[0]).complete
    found = tiny.values(Folder(tmp_path))
    assert found == before and not any(path.stat().st_mtime > started for path in (tmp_path / "members").iterdir())
    spec = specs.parse({**asked, "search": "grid"})
    assert raybasin.run(spec, tmp_path).complete and (8.0, 1) in points(tmp_path)  # without the scheduler it goes on


def _command(pid):
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_the_trials_of_a_grid_tell_what_its_tables_hold(cluster, finished, tmp_path):
    said = []
    report = raybasin.run(tiny.tree(workers=WORKERS), tmp_path, ray=True, address=cluster[0], tell=said.append)
    assert report.complete and len(report.trials) == 4 and said
    frame = report.trials.get_dataframe().set_index(["config/method", "config/lr_ratio"])["val_ensemble_accuracy"]
    cells = pd.DataFrame(tables.rows(Folder(tmp_path), "cells")).set_index(["method", "lr_ratio"])
    assert frame.to_dict() == cells["val_ensemble_accuracy"].to_dict()
    assert tiny.values(Folder(tmp_path)) == tiny.values(finished.folder)
    assert not {"points"} & {path.name for path in tmp_path.iterdir()}
