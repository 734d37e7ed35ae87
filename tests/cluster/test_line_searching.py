"""A search by cell on Ray: the cells that one process chooses, also after the driver was killed in the middle."""

import os
import signal
import subprocess
import sys
import time

import pytest
import tiny
import yaml

pytest.importorskip("ray")

import raybasin
from raybasin.analysis import explored
from raybasin.store import tables
from raybasin.store.folders import Folder

pytestmark = pytest.mark.ray

BOUNDARY = {"kind": "boundary", "lr_ratio": [1, 256], "cycle_ratio": [0.5, 1], "points": 5}


def tree(search, **changes):
    """One worker: with more, what is chosen depends on what is out."""
    given = {"methods": {"star_sse": {"n_members": 2}}, "replicates": 2, "basin__threshold": 0.2,
             "workers": {"cpus": 1, "count": 1}}  # fmt: skip
    return tiny.tree(search=search, **{**given, **changes})


def measured(root):
    return sorted((row["lr_ratio"], row["cycle_ratio"], row["replicate"]) for row in tables.rows(Folder(root), "cells"))


def test_ray_measures_what_it_was_asked_for_and_each_cell_is_a_trial(cluster, tmp_path):
    report = raybasin.run(tree(BOUNDARY), tmp_path / "ray", ray=True, address=cluster[0])
    assert report.complete and report.committed == 5 == len(report.trials) and not report.trials.errors
    results = raybasin.open(tmp_path / "ray")
    assert set(results.cells["why"]) <= {"bracket", "refine", "replicate"} and len(results.boundaries)
    again = raybasin.run(tree(BOUNDARY), tmp_path / "ray", ray=True, address=cluster[0])
    assert again.complete and again.committed == 5 and not again.trials


def test_killed_in_the_middle_it_ends_with_the_line_of_a_run_that_was_left_alone(cluster, tmp_path):
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree(BOUNDARY)))
    command = [sys.executable, "-m", "raybasin", "sweep", tmp_path / "sweep.yaml", "--address", cluster[0], "--results"]
    driver = subprocess.Popen([*command, tmp_path / "killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        cells = tmp_path / "killed" / "cells"
        deadline = time.monotonic() + 300
        while driver.poll() is None and time.monotonic() < deadline:
            if cells.is_dir() and len(list(cells.glob("*.parquet"))) >= 2:
                os.kill(driver.pid, signal.SIGKILL)
            time.sleep(0.05)
        assert driver.wait(60) == -signal.SIGKILL
    finally:
        driver.kill()
        driver.wait()
    before = measured(tmp_path / "killed")
    assert len(before) < 5
    report = raybasin.run(tree(BOUNDARY), tmp_path / "killed", ray=True, address=cluster[0])
    assert report.complete and report.committed == 5
    assert raybasin.run(tree(BOUNDARY), tmp_path / "whole").complete
    assert set(before) <= set(measured(tmp_path / "killed"))
    asked = [{(row["point_id"], row["event"]) for row in tables.rows(Folder(tmp_path / name), "points")}
             for name in ("killed", "whole")]  # fmt: skip
    assert len(asked[0]) == 5
    found = [raybasin.open(tmp_path / name) for name in ("killed", "whole")]
    lines = [explored.line_of(results, results.cells, [0.5, 1]) for results in found]
    for one, other in zip(*(line.itertuples() for line in lines), strict=True):
        assert one.low <= other.high and other.low <= one.high


def test_the_best_point(cluster, tmp_path):
    search = {"kind": "best", "of": "soup", "lr_ratio": [1, 16], "cycle_ratio": [0.5, 1], "points": 3}
    report = raybasin.run(tree(search), tmp_path, ray=True, address=cluster[0])
    assert report.complete and report.committed == 3
    [best] = raybasin.open(tmp_path).best_points("soup").itertuples()
    assert 1 <= best.lr_ratio <= 16 and best.lies in ("inside", "at the line", "outside")
