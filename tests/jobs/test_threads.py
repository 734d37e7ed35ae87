"""Threads of a worker: none of its libraries takes more than it was given, and how many are fastest is measured."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import tiny
from typer.testing import CliRunner

from raybasin import cli
from raybasin.errors import UserError
from raybasin.jobs import prepare, threads, timing
from raybasin.jobs.threads import Trial
from raybasin.sweep import plan, specs

SETUP = """
import json, os, sys, types
import numpy, scipy.linalg, sklearn  # BLAS that is loaded before, as by Ray
from raybasin.cluster import worker
from raybasin.jobs import prepare
from raybasin.store import folders
import tiny

wanted, root = float(sys.argv[1]), sys.argv[2]
spec = tiny.spec(workers={"cpus": wanted})
prepared = prepare.prepare(spec)
parts = [prepared.plan.settings, prepare.load(prepared)]
worker.ray = types.SimpleNamespace(get=lambda references: parts)
folders.create(root)
context = worker.make_context(worker.Supplies(root, None, None, None, spec.kinds), 0)

import pyarrow, threadpoolctl, torch
numpy.ones((300, 300)) @ numpy.ones((300, 300))
torch.nn.functional.conv2d(torch.ones(8, 3, 64, 64), torch.ones(16, 3, 3, 3))
from raybasin.data import decoding
print(json.dumps({
    "torch": torch.get_num_threads(), "between": torch.get_num_interop_threads(), "arrow": pyarrow.cpu_count(),
    "arrow_io": pyarrow.io_thread_count(), "decoding": decoding.threads_beside(context.device),
    "blas": [one["num_threads"] for one in threadpoolctl.threadpool_info()],
    "environment": [os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")],
}))
"""


@pytest.mark.parametrize(("cpus", "count"), [(0.5, 1), (1, 1), (2, 2), (3.7, 3)])
def test_a_worker_computes_with_its_threads_and_no_more(tmp_path, cpus, count):
    pytest.importorskip("ray")
    # What a user, a batch system or a container may have set, and what libraries take by themselves.
    environment = {**os.environ, "OMP_NUM_THREADS": "7", "OPENBLAS_NUM_THREADS": "5"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", textwrap.dedent(SETUP), str(cpus), str(tmp_path / "r")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    assert said["torch"] == said["arrow"] == said["decoding"] == count
    assert said["between"] == 1 and said["arrow_io"] == max(2, count)
    assert said["blas"] and max(said["blas"]) <= count
    assert said["environment"] == [str(count)] * 3


# Choosing


def test_numbers_of_threads_that_are_tried():
    assert threads.candidates(1, None) == [1]
    assert threads.candidates(2, None) == [1, 2]
    assert threads.candidates(6, None) == [1, 2, 4, 6]
    assert threads.candidates(16, None) == [1, 2, 4, 8, 16]
    assert threads.candidates(16, 3) == [1, 2, 4, 5]
    assert threads.candidates(2, 4) == [1]  # more workers than CPUs are one thread each


def test_most_images_a_second_win_and_of_equal_ones_fewer_threads():
    trials = (Trial(1, 4, 100.0), Trial(2, 2, 120.0), Trial(4, 1, 120.0))
    assert threads.fastest(trials) == 2
    assert threads.described(trials) == (
        "workers.cpus: auto: workers of so many threads train 4 of 1: 100 images/s, 2 of 2: 120 images/s, 1 of 4: 120 "
        "images/s; 2 is taken"
    )


def settings(**changes):
    return plan.make(tiny.spec(**changes), tiny.facts()).settings


def test_so_many_workers_train_at_once(monkeypatch):
    monkeypatch.setattr(threads, "candidates", lambda cores, count: [2])
    [trial] = threads.measure(settings(), cores=4)
    assert (trial.threads, trial.workers) == (2, 2) and trial.images_per_second > 0


def test_a_network_that_cannot_be_built_says_why():
    with pytest.raises(UserError, match=r"workers.cpus: auto: 1 workers of 1 threads could not be tried \(.*no_such"):
        threads.measure(settings(model__factory="no_such_module:net"), cores=1)


def test_a_network_that_cannot_be_compiled_says_why(monkeypatch):
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    settings = plan.make(tiny.spec(recipe__compile=True), tiny.facts()).settings
    with pytest.raises(UserError, match=r"could not be tried \(recipe.compile: torch is told not to compile"):
        threads.train_at_once(settings, 1, 1)


def test_none_that_answers_is_given_up_and_ended(monkeypatch):
    monkeypatch.setattr(threads, "LIMIT_SECONDS", 0.01)
    with pytest.raises(UserError, match=r"could not be tried \(.*\); give a number"):
        threads.measure(settings(), cores=1)


def test_the_choice_is_told_and_leaves_the_rest_of_the_kind(monkeypatch):
    monkeypatch.setattr(threads, "measure", lambda *asked: (Trial(1, 2, 10.0), Trial(2, 1, 15.0)))
    told = []
    kind = specs.Workers(cpus="auto", hang_seconds=9)
    assert threads.resolved(kind, settings(), 2, told.append) == specs.Workers(cpus=2, hang_seconds=9)
    assert len(told) == 1 and told[0].endswith("2 is taken")


# In a sweep file


def test_auto_is_in_no_id_and_only_for_one_kind_without_a_gpu():
    assert settings(workers={"cpus": "auto"}).settings_id == settings().settings_id
    for workers, said in (
        ({"cpus": "auto", "gpus": 1}, "workers.cpus: auto is measured for workers without a GPU"),
        ([{"cpus": "auto"}, {"cpus": 2}], "workers.cpus: auto is measured with one kind of workers"),
    ):
        with pytest.raises(UserError, match=said):
            tiny.spec(workers=workers)


def test_a_plan_says_that_it_is_measured_and_measures_it_when_asked(tmp_path, monkeypatch):
    asked = []

    def measured(settings, cores, count):
        asked.append((cores, count))
        return Trial(1, 2, 10.0), Trial(2, 1, 15.0)

    monkeypatch.setattr(threads, "measure", measured)
    file = tmp_path / "tiny.yaml"
    file.write_text(json.dumps(tiny.tree(workers={"cpus": "auto"})))
    options = ["plan", str(file), "--results", str(tmp_path / "results")]
    said = CliRunner().invoke(cli.app, options, catch_exceptions=False).stdout
    assert "is measured when the sweep begins" in said and not asked
    monkeypatch.setattr(timing.os, "cpu_count", lambda: 2)
    said = CliRunner().invoke(cli.app, [*options, "--measure", "cpu"], catch_exceptions=False).stdout
    assert asked == [(2, None)] and "2 is taken" in said and "2 threads" in said
    options = [*options, "--measure", "cpu", "--json"]
    told = json.loads(CliRunner().invoke(cli.app, options, catch_exceptions=False).stdout)
    assert told["measured"]["by_threads"][1] == {"threads": 2, "workers": 1, "images_per_second": 15.0}


def test_one_process_has_nothing_to_choose(tmp_path):
    prepared = prepare.prepare(tiny.spec(workers={"cpus": "auto"}))
    assert [kind.cpus for kind in prepared.plan.spec.kinds] == ["auto"]
