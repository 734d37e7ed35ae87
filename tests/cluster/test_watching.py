"""What Ray tells of a sweep: its metrics, as Prometheus gets them, and what Ray Train says of its runs."""

import asyncio
import json
import os
import re
import urllib.request
from collections import Counter
from pathlib import Path

import listening
import pytest
import tiny

pytest.importorskip("ray")

from toy_jobs import toy_job

import raybasin
from raybasin.cluster import watching
from raybasin.cluster.queue import JobQueue
from raybasin.cluster.watching import Before


def test_what_was_done_before_counts_and_what_has_failed_is_not_done():
    jobs = [toy_job("a", "member", 2.0), toy_job("b", "member", 1.0), toy_job("c", "cell", 1.0, "a"),
            toy_job("d", "cell", 1.0, "b"), toy_job("e", "cell", 1.0)]  # fmt: skip

    async def story():
        queue = JobQueue()
        await queue.submit(jobs)
        workers = {name: await queue.hello(name, 11, f"node {name}") for name in ("0.0", "0.1", "0.2")}
        while (job := await queue.take("0.0", workers["0.0"])).job_id != "b":
            await queue.done("0.0", workers["0.0"], job.job_id, {})
        await queue.failed("0.0", workers["0.0"], "b", "no", certain=True)
        await queue.submit([toy_job("f", "member", 1.0)])
        await queue.take("0.1", workers["0.1"])
        return watching.values(await queue.stats(), Before(cells=10, networks=20))

    assert asyncio.run(story()) == {
        "cells": 13, "cells_done": 12, "cells_failed": 1, "networks": 23, "networks_done": 21,
        "workers": 3, "workers_busy": 1, "workers_given_up": 0, "images": 0,
        "images_per_second": 0,
    }  # fmt: skip


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


@pytest.mark.ray
def test_what_is_exported_of_a_sweep_that_was_continued_is_true_and_on_loopback(cluster, tmp_path):
    address, dashboard, processes = cluster
    begun = tiny.tree(name="watched", methods={"star_sse": {"n_members": 2}, "local_de": {"n_members": 2}},
                      workers={"cpus": 1, "count": 1})
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
    assert values.pop("images_per_second") > 0 and values.pop("workers") == 1
    trained = results.members.cycle_epochs.iloc[before:].sum() * results.facts["data"]["n_train"]
    assert trained < values.pop("images") < 20 * trained  # paths and predictions are most of it here
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
