"""What Ray tells of a sweep: its metrics, as Prometheus gets them, and what Ray Train says of its runs."""

import json
import os
import re
import urllib.request
from collections import Counter
from pathlib import Path

import listening
import pytest
import tiny

import raybasin

pytestmark = pytest.mark.ray


def exported(address):
    """What the one node of the cluster exports of raybasin, by metric and what is known of its source; and the port."""
    import ray

    from raybasin.cluster import connect

    connect.join(address)
    try:
        [node] = connect.alive_nodes()
    finally:
        ray.shutdown()
    port = node["MetricsExportPort"]
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read().decode()
    lines = re.findall(r"^ray_raybasin_(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE)
    return [(name, dict(re.findall(r'(\w+)="([^"]*)"', tags)), float(value)) for name, tags, value in lines], port


def runs_of_train(dashboard):
    asked = urllib.request.Request(f"{dashboard}/api/train/v2/runs/v1")
    asked.add_header("Authorization", f"Bearer {os.environ['RAY_AUTH_TOKEN']}")
    return json.loads(urllib.request.urlopen(asked, timeout=60).read())["train_runs"]


def test_what_is_exported_of_a_sweep_that_was_continued_is_true_and_on_loopback(cluster, tmp_path):
    address, dashboard, processes = cluster
    begun = tiny.tree(name="watched", methods={"star_sse": {"n_members": 2}, "local_de": {"n_members": 2}})
    assert raybasin.run(begun, tmp_path / "r", ray=True, address=address).complete
    before = len(raybasin.open(tmp_path / "r").members)
    whole = {**begun, "methods": {**begun["methods"], "sse": {"n_members": 3}}}
    report = raybasin.run(whole, tmp_path / "r", ray=True, address=address)
    found, port = exported(address)

    results = raybasin.open(tmp_path / "r")
    [settings] = set(results.cells.settings_id)
    ours = [(name, tags["WorkerId"], value) for name, tags, value in found
            if (tags["sweep"], tags["settings"]) == ("watched", settings)]  # fmt: skip
    last = max(driver for _, driver, _ in ours)  # jobs are numbered
    values = {name: value for name, driver, value in ours if driver == last}
    assert report.complete and len(results.cells) == 3 and len(results.members) > before > 0
    assert values.pop("images_per_second") > 0 and values.pop("workers") >= 1
    trained = results.members.cycle_epochs.iloc[before:].sum() * results.facts["data"]["n_train"]
    assert trained < values.pop("images_total") < 40 * trained  # paths and predictions are most of it here
    networks = len(results.members) + 1  # and the checkpoint
    assert values == {
        "cells": 3, "cells_done": 3, "cells_failed": 0, "networks": networks, "networks_done": networks,
        "workers_busy": 0, "workers_given_up": 0,
    }  # fmt: skip
    assert {host for _, host, heard in listening.addresses(processes()) if heard == port} == {"127.0.0.1"}

    [trial] = [Path(result.path) for result in report.trials]
    assert trial.name.startswith("sse-lr1-cycle1-") and trial.parent.name.startswith("watched-")
    runs = [run for run in runs_of_train(dashboard) if run["name"].startswith("watched-")]
    assert Counter(run["status"] for run in runs) == {"FINISHED": 2}, runs
