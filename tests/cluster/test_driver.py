"""The sweep on Ray: the same results as in one process, whatever dies, and errors before anything starts.

One cluster, that of conftest.py, serves all of this file's tests.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import listening
import numpy as np
import pandas as pd
import places
import pytest
import safetensors.torch
import timm
import tiny
import yaml
from PIL import Image

from raybasin.errors import UserError
from raybasin.jobs import local, prepare, threads
from raybasin.store import folders, inventory, tables
from raybasin.store.schemas import KEYS
from raybasin.sweep import specs
from raybasin.sweep.specs import Workers

pytestmark = pytest.mark.ray

REPOSITORY = places.REPOSITORY
TIMES = {
    "train_seconds",
    "job_seconds",
    "close_seconds",
    "wall_seconds",
    "images_per_second",
    "finished_at",
    "versions",
}
"""Columns that may differ between two runs of one sweep."""
WAIT_SECONDS = 600
"""Longer than anything here takes on a machine that is busy with something else. Nothing waits that long for what has
happened."""


def test_the_cluster_of_these_tests_listens_on_loopback_only(cluster):
    import ray

    from raybasin.cluster import connect
    from raybasin.cluster.queue import Queue

    address, _, processes = cluster
    connect.join(address)
    try:
        queue = Queue.remote()
        ray.get(queue.stats.remote())  # and so a process of the cluster runs code of ours
        until = time.monotonic() + WAIT_SECONDS
        programs, expected = set(), {"gcs_server", "raylet", "ray::DashboardA", "ray::RuntimeEnv"}
        while not expected <= programs and time.monotonic() < until:  # agents come later than the cluster does
            time.sleep(0.5)
            heard = listening.addresses(processes() | {os.getpid()})
            programs = {program for program, _, _ in heard}
        assert expected <= programs, heard
        assert {address for _, address, _ in heard} == {"127.0.0.1"}, heard
    finally:
        ray.shutdown()


def test_whoever_has_not_the_token_of_the_cluster_is_refused(cluster, tmp_path):
    address, dashboard, _ = cluster
    for path in ("/api/jobs/", "/api/version"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(dashboard + path, timeout=60)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tiny.tree()))
    command = [sys.executable, "-m", "raybasin", "sweep", str(tmp_path / "sweep.yaml"), "--results", "r"]
    environment = {**os.environ, "RAY_AUTH_TOKEN": "0" * 64, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([*command, "--address", address], cwd=tmp_path, env=environment, capture_output=True,
                          text=True, timeout=WAIT_SECONDS)  # fmt: skip
    assert done.returncode == 2, done.stderr
    error = done.stderr[done.stderr.index("error: --address") :].strip().splitlines()  # after what Ray has to say
    assert len(error) == 2 and "does not answer" in error[0] and "RAY_AUTH_MODE=token" in error[1]


def sweep(spec, root, address, watch=lambda stats: None):
    from raybasin.cluster import driver as on_ray

    prepared = prepare.prepare(spec)
    options = on_ray.Options(address=address)
    return on_ray.run(local.begin(folders.create(root), prepared), lambda: prepare.load(prepared), options, watch)


def table(root, name):
    frame = pd.read_parquet(Path(root) / name)
    return frame.drop(columns=TIMES & set(frame)).sort_values(list(KEYS[name]), ignore_index=True)


def assert_same_tables(root, other):
    for name in ("cells", "members"):
        pd.testing.assert_frame_equal(table(root, name), table(other, name))


def on_two_workers(spec):
    return spec.model_copy(update={"workers": Workers(cpus=1, count=2)})


def test_a_pool_whose_worker_is_killed_makes_the_tables_of_one_process(cluster, finished, tmp_path):
    from ray.train.backend import Backend

    pids, killed = [], []

    def kill_once(stats):
        pids.append(dict(stats.pids))
        if not killed and len(stats.pids) == 2 and stats.running:
            rank = next(iter(stats.running))
            killed.append(rank)
            os.kill(stats.pids[rank], signal.SIGKILL)

    report = sweep(on_two_workers(tiny.spec()), tmp_path / "r", cluster[0], kill_once)
    assert report.complete and not report.failures
    assert killed, "the sweep was over before a worker could be killed"
    survivor = {"0.0": "0.1", "0.1": "0.0"}[killed[0]]
    if hasattr(Backend, "has_replica_groups"):  # Ray that has not replaces both
        assert len({p[survivor] for p in pids if survivor in p}) == 1
    assert_same_tables(tmp_path / "r", finished.folder.root)
    assert not list((tmp_path / "r" / "state").glob("member-*"))


def images_of_noise(root):
    """24 training and 8 test images of several sizes, which become squares when they are decoded."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in "ab":
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return {"name": "noise", "dir": str(root), "image_size": 32, "validation": {"images": 6}}


def decoded_by_workers(root, how="workers"):
    tree = tiny.tree(data={**images_of_noise(root), "decode": how}, methods={"star_sse": {"n_members": 2}})
    return specs.parse(tree)


def test_workers_that_decode_images_make_the_tables_of_one_process_with_arrays(cluster, tmp_path):
    spec = decoded_by_workers(tmp_path / "images")
    report = sweep(on_two_workers(spec), tmp_path / "r", cluster[0])
    assert report.complete and not report.failures
    arrays = spec.model_copy(update={"data": spec.data.model_copy(update={"decode": "arrays"})})
    local.run(arrays, tmp_path / "alone")
    assert_same_tables(tmp_path / "r", tmp_path / "alone")


def test_how_many_threads_workers_have_is_measured_before_they_start(cluster, tmp_path, monkeypatch):
    asked, told = [], []

    def measured(settings, cores, count):
        asked.append((cores, count))
        return threads.Trial(1, 3, 10.0), threads.Trial(2, 1, 15.0)

    monkeypatch.setattr(threads, "measure", measured)
    spec = tiny.spec(methods={"local_de": {"n_members": 2}}, recipe__epochs=1, workers={"cpus": "auto"})
    from raybasin.cluster import driver as on_ray

    report = on_ray.run_sweep(spec, tmp_path / "r", address=cluster[0], tell=told.append)
    assert report.complete and asked == [(3, None)]
    assert any("2 is taken" in line for line in told)
    devices = {row["device"] for row in tables.rows(folders.folder(tmp_path / "r"), "members")}
    assert devices == {"cpu, 2 threads"}


def test_threads_are_not_measured_for_machines_that_may_differ(cluster, tmp_path, monkeypatch):
    from raybasin.cluster import connect

    nodes = connect.alive_nodes
    monkeypatch.setattr(connect, "alive_nodes", lambda: [*nodes(), {"NodeID": "another"}])
    monkeypatch.setattr(threads, "measure", lambda *asked: pytest.fail("measured"))
    with pytest.raises(UserError, match="workers.cpus: auto is measured on the machine of the command"):
        sweep(tiny.spec(workers={"cpus": "auto"}), tmp_path / "r", cluster[0])
    assert not list((tmp_path / "r" / "members").glob("*"))


def test_a_machine_that_has_no_decoded_images_makes_them_and_all_workers_map_them(cluster, tmp_path, monkeypatch):
    from raybasin.cluster import driver as on_ray

    monkeypatch.setenv("RAYBASIN_DATA", str(tmp_path / "cache"))  # of this process: workers are told where
    spec = decoded_by_workers(tmp_path / "images", "cache")
    prepared = prepare.prepare(on_two_workers(spec))

    def load():
        loaded = prepare.load(prepared)
        shutil.rmtree(tmp_path / "cache")
        return loaded

    situation = local.begin(folders.create(tmp_path / "r"), prepared)
    report = on_ray.run(situation, load, on_ray.Options(address=cluster[0]))
    assert report.complete and not report.failures
    assert len(list((tmp_path / "cache" / "decoded").iterdir())) == 3
    arrays = spec.model_copy(update={"data": spec.data.model_copy(update={"decode": "arrays"})})
    local.run(arrays, tmp_path / "alone")
    assert_same_tables(tmp_path / "r", tmp_path / "alone")


def test_a_machine_that_cannot_read_the_images_is_named_before_anything_is_trained(cluster, tmp_path):
    from raybasin.cluster import driver as on_ray

    prepared = prepare.prepare(decoded_by_workers(tmp_path / "images"))

    def load():
        loaded = prepare.load(prepared)
        (tmp_path / "images" / "test" / "b" / "03.png").unlink()
        return loaded

    with pytest.raises(UserError, match=r"(?s)machine \S+ cannot read the images: .*b/03\.png.*decode: arrays"):
        on_ray.run(local.begin(folders.create(tmp_path / "r"), prepared), load, on_ray.Options(address=cluster[0]))
    assert not list((tmp_path / "r" / "members").glob("*"))


def test_a_finished_sweep_starts_nothing(finished):
    assert sweep(tiny.spec(), finished.folder.root, "127.0.0.1:1").complete  # nobody answers there


def test_a_job_that_raises_fails_its_cells_and_no_others(cluster, copied):
    lost = next(cell for cell in copied.plan.cells if cell.point.method == "star_sse")
    other = next(cell for cell in copied.plan.cells if cell.point.method == "sse")
    for cell in (lost, other):
        copied.folder.delete(f"cells/{cell.cell_id}.parquet")
    members = pd.read_parquet(copied.folder.root / "members").set_index("member_id")
    own = next(member for member in lost.member_ids[1:] if member not in other.member_ids)  # the first is both's
    weights = members.loc[own, "weights_sha256"]
    copied.folder.delete(f"weights/{weights}.safetensors")
    one = Workers(cpus=1, count=1)  # is soon done with what is missing
    report = sweep(tiny.spec().model_copy(update={"workers": one}), copied.folder.root, cluster[0])
    assert [failure.cell.cell_id for failure in report.failures] == [lost.cell_id]
    assert weights in report.failures[0].reason
    assert other.cell_id in inventory.survey(copied.folder).cells
    assert list(pd.read_parquet(copied.folder.root / "failures")["unit_id"]) == [lost.cell_id]


def test_the_pool_pretrains_a_network_of_the_users_own_from_the_folder_of_the_command(cluster, tmp_path):
    """The console script has no current folder on its path, nor has a worker."""
    (tmp_path / "networks_of_mine.py").write_text((REPOSITORY / "tests" / "nets.py").read_text())
    (entry,) = tiny.tree()["model"]["pretrained"]
    good, bad = ({"pretrain": {**entry["pretrain"], **keys}} for keys in ({"count": 2}, {"seed": 7}))
    bad["pretrain"]["recipe"] = {"epochs": 3, "lr": 1e6, "weight_decay": 1e30, "batch_size": 20}
    model = {"factory": "networks_of_mine:batch_norm", "head": "fc", "pretrained": [good, bad]}
    tree = {"name": "mine", "model": model, "workers": {"cpus": 1, "count": 2}}

    def pretrain():
        (tmp_path / "sweep.yaml").write_text(json.dumps(tree))
        raybasin = Path(sys.executable).with_name("raybasin")
        command = [raybasin, "pretrain", "sweep.yaml", "--address", cluster[0], "-o", "o"]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True,
                              timeout=WAIT_SECONDS)  # fmt: skip

    done = pretrain()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Diverged" in done.stderr and "1 of 3 checkpoints could not be made" in done.stderr
    assert "networks_of_mine:batch_norm is code of your own" in done.stderr
    names = ["digits-batch_norm-seed0.safetensors", "digits-batch_norm-seed1.safetensors"]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == names
    assert f"net.load_state_dict(safetensors.torch.load_file('{tmp_path / 'o' / names[0]}'))" in done.stdout
    model["pretrained"] = [good]
    again = pretrain()
    assert again.returncode == 0 and "checkpoints 2, of which done 2" in again.stderr, again.stderr


BROKEN = """
import os, pathlib, sys, time
import timm

HERE = pathlib.Path(__file__).parent


def network(num_classes):
    if sys.argv[0].endswith("default_worker.py"):  # a process of Ray's: the first of them is broken
        claim, mine = HERE / "broken", str(os.getpid())
        try:
            with open(claim, "x") as file:
                file.write(mine)
        except FileExistsError:
            pass
        if claim.read_text() in ("", mine):
            with open(HERE / "raised", "a") as file:
                file.write("x")
            raise RuntimeError("Found no NVIDIA driver on your system")
        until = time.monotonic() + 300
        while len((HERE / "raised").read_text()) < 4 and time.monotonic() < until:
            time.sleep(0.1)
    return timm.create_model("test_resnet", num_classes=num_classes)
"""
"""A network that cannot be made in one process of the cluster; in the others, once that one has raised on four jobs."""


def test_a_worker_that_is_broken_is_named_and_the_others_do_its_jobs(cluster, tmp_path):
    (tmp_path / "sometimes_broken.py").write_text(BROKEN)
    tree = tiny.tree(methods={"local_de": {"n_members": 6}}, recipe__epochs=1, workers={"cpus": 1, "count": 2})
    net = timm.create_model("test_resnet", num_classes=5)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "net.safetensors")
    tree["model"] = {"factory": "sometimes_broken:network", "head": "fc", "pretrained": ["net.safetensors"]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree))
    command = [Path(sys.executable).with_name("raybasin"), "sweep", "sweep.yaml", "--address", cluster[0],
               "--results", "r"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                          capture_output=True, text=True, timeout=WAIT_SECONDS)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((tmp_path / "raised").read_text()) >= 4
    [line] = [line for line in done.stderr.splitlines() if "was given up" in line]
    assert line.startswith("worker ") and os.uname().nodename in line
    assert line.endswith("(RuntimeError: Found no NVIDIA driver on your system)")
    assert not (tmp_path / "r" / "failures").exists()
    frame = pd.read_parquet(tmp_path / "r" / "members")
    assert len(frame) == 6


def test_a_pool_that_does_not_fit_is_refused(cluster, tmp_path):
    spec = tiny.spec().model_copy(update={"workers": Workers(cpus=64)})
    with pytest.raises(UserError, match="64 CPUs do not fit"):
        sweep(spec, tmp_path / "r", cluster[0])
    spec = tiny.spec().model_copy(update={"workers": Workers(cpus=1, gpus=0.5)})
    with pytest.raises(UserError, match="and 0.5 GPUs do not fit"):
        sweep(spec, tmp_path / "r", cluster[0])


def test_a_cluster_that_does_not_answer_is_named(tmp_path):
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1: the Ray cluster does not answer"):
        sweep(tiny.spec(), tmp_path / "r", "127.0.0.1:1")


def test_an_address_without_a_port_is_refused(tmp_path):
    with pytest.raises(UserError, match="must be host:port"):
        sweep(tiny.spec(), tmp_path / "r", "nowhere")


def test_a_submitted_command_ends_with_its_own_exit_status(cluster, finished, tmp_path):
    from ray.job_submission import JobSubmissionClient

    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tiny.tree()))
    results = tmp_path / "results"

    def submit(*arguments):
        command = [sys.executable, "-m", "raybasin", "submit", "--address", cluster[1], *arguments]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=WAIT_SECONDS)

    done = submit("sweep", str(tmp_path / "sweep.yaml"), "--results", str(results))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cells done" in done.stdout and "ray job stop" in done.stderr
    assert_same_tables(results, finished.folder.root)
    refused = submit("sweep", str(tmp_path / "sweep.yaml"), "--results", "results/relative")
    assert refused.returncode == 2
    assert "name an absolute path" in refused.stdout
    jobs = sorted(JobSubmissionClient(cluster[1]).list_jobs(), key=lambda job: job.start_time or 0)
    assert [job.driver_exit_code for job in jobs if job.submission_id] == [0, 2]


def test_a_cluster_with_a_token_says_so_to_a_submission_without_one(cluster):
    command = [sys.executable, "-m", "raybasin", "submit", "--address", cluster[1], "status", "r"]
    without = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    done = subprocess.run(command, cwd=REPOSITORY, env=without, capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert done.returncode == 2
    error = done.stderr[done.stderr.index("error: --address") :].strip().splitlines()
    assert len(error) == 2 and "does not let you in" in error[0] and "RAY_AUTH_MODE=token" in error[1]


def test_an_interrupted_sweep_ends_with_130_and_goes_on_where_it_was(finished, tmp_path):
    import ray

    if not hasattr(ray.exceptions, "AuthenticationError"):
        pytest.skip("this Ray knows no tokens, and is not started without")
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tiny.tree()))
    command = [sys.executable, "-m", "raybasin", "sweep", str(tmp_path / "sweep.yaml"), "--results", "r"]
    # As a user has it: no address, and Ray's own choice of authentication, whose token goes to the home folder.
    unset = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    environment = {key: value for key, value in os.environ.items() if key not in unset} | {"HOME": str(tmp_path)}
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)  # fmt: skip
    members = tmp_path / "r" / "members"
    deadline = time.monotonic() + WAIT_SECONDS
    while len(list(members.glob("[!.]*"))) < 2 and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    heard = listening.addresses(listening.descendants(running.pid))
    running.send_signal(signal.SIGINT)
    said, _ = running.communicate(timeout=WAIT_SECONDS)
    assert running.returncode == 130, said
    assert "the same command continues" in said
    programs = {program for program, _, _ in heard}
    assert {"gcs_server", "raylet"} <= programs, heard  # it was a whole cluster that was looked at
    assert {address for _, address, _ in heard} == {"127.0.0.1"}, heard
    token = tmp_path / ".ray" / "auth_token"  # made, and asked for, since nothing else was said
    assert token.stat().st_mode & 0o077 == 0
    before = {path.name: path.stat().st_mtime_ns for path in members.glob("[!.]*")}
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True,
                           timeout=WAIT_SECONDS)  # fmt: skip
    assert again.returncode == 0, again.stdout + again.stderr
    assert {name: (members / name).stat().st_mtime_ns for name in before} == before  # nothing committed was done again
    assert_same_tables(tmp_path / "r", finished.folder.root)
    assert (tmp_path / "r" / "map.png").stat().st_size > 10_000
