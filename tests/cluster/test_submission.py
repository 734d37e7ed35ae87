"""A sweep as a job: refused in one line where there is no cluster, and of a cluster that changes, stopped and submitted
again, with the tables of a sweep that was left alone."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import clusters
import listening
import places
import pytest
import tiny
import yaml
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import raybasin
from raybasin import cli
from raybasin.cluster import submission
from raybasin.errors import UserError
from raybasin.store.folders import Folder
from raybasin.sweep import shipped

pytestmark = pytest.mark.ray

WAIT_SECONDS = 600
MARK = "RAYBASIN_TEST_NODE"


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "auto", "ray://127.0.0.1:10001"])
def test_an_address_that_is_not_a_dashboards_is_refused(address):
    with pytest.raises(UserError, match=r"must be that of the cluster's dashboard, for instance http://127\.0\.0\.1"):
        submission.connect(address)


def test_a_dashboard_that_does_not_answer_is_named_whatever_the_environment_names(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:2")
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:1: no dashboard of a Ray cluster answers .*:1\b"):
        submission.connect("http://127.0.0.1:1")


class Client:
    """Of a cluster whose job has one log, told in pieces, between which the line is cut, and then one end."""

    def __init__(self, pieces, **end):
        self.pieces, self.end = list(pieces), end

    async def tail_job_logs(self, job):
        for piece in self.pieces.pop(0):
            yield piece
        if self.pieces:
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, job):
        now = {"status": JobStatus.RUNNING} if self.pieces else self.end
        return JobDetails(type="SUBMISSION", entrypoint="", **now)


def followed(client):
    shown, said = [], []
    return submission.follow(client, "job", shown.append, said.append), "".join(shown), said


def test_a_log_whose_line_was_cut_is_shown_once():
    client = Client([["one\n", "tw"], ["one\n", "two\n", "three\n"]], status=JobStatus.SUCCEEDED, driver_exit_code=0)
    status, shown, said = followed(client)
    assert (status, shown) == (0, "one\ntwo\nthree\n")
    assert said == ["the log of job job breaks off: WebSocket connection closed unexpectedly"]


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ({"status": JobStatus.FAILED, "driver_exit_code": 2}, 2),
        ({"status": JobStatus.FAILED, "driver_exit_code": -9}, 137),
        ({"status": JobStatus.STOPPED}, 130),
        ({"status": JobStatus.FAILED, "message": "its node has died"}, 1),
    ],
)
def test_the_exit_status_is_the_jobs(end, status):
    got, _, said = followed(Client([[]], **end))
    assert got == status
    assert not end.get("message") or "its node has died" in said[0]


def test_a_cluster_that_has_gone_ends_the_wait(monkeypatch):
    class Gone:
        async def tail_job_logs(self, job):
            raise ConnectionError("refused")
            yield

        def get_job_info(self, job):
            raise ConnectionError("refused")

    monkeypatch.setattr(submission, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(submission, "POLL_SECONDS", 0.1)
    status, _, said = followed(Gone())
    assert status == 1
    assert [" ".join(line.split()[:4]) for line in said] == ["the log of job", "the cluster does not"]


@pytest.mark.parametrize(
    ("command", "sent"),
    [
        (["sweep", "--results", "/r", "digits", "--set", "seed=1"], "digits"),
        (["pretrain", "pretrain-tinyimagenet"], "pretrain-tinyimagenet"),
        (["sweep", "sweeps/digits.yaml"], None),
        (["sweep", "mine"], None),
        (["status", "r"], None),
        (["sweep"], None),
        (["no-command", "digits"], None),
    ],
)
def test_a_job_is_given_the_shipped_sweep_that_its_command_names(command, sent, tmp_path, monkeypatch):
    class Asked(Exception):
        pass

    class Cluster:
        def submit_job(self, *, entrypoint, runtime_env):
            assert shlex.split(entrypoint)[1:] == ["-m", "raybasin", *command]
            raise Asked(runtime_env)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("name: mine")  # goes along with the folder
    monkeypatch.setattr(submission, "connect", lambda address: Cluster())
    with pytest.raises(Asked) as asked:
        cli.app(["submit", *command], standalone_mode=False)
    text = sent and f"{sent}\n{shipped.named(sent).text}"
    assert asked.value.args[0] == {"working_dir": ".", "env_vars": {shipped.SENT: text} if sent else {}}


def test_a_job_with_an_unknown_sweep_is_refused_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="digit: no file here"):
        cli.app(["submit", "sweep", "digit"], standalone_mode=False)


# A cluster of this machine


def test_make_cluster_listens_on_loopback_keeps_its_token_private_and_ends_alone(tmp_path, tmp_path_factory):
    home = tmp_path / "home"
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text("0" * 64)  # as Ray leaves it
    dashboard, temporary = clusters.free_port(), tmp_path_factory.mktemp("r")
    environment = {"HOME": str(home), "PATH": os.defpath, "RAY": str(Path(sys.executable).with_name("ray")),
                   "PORT": str(clusters.free_port()), "DASHBOARD_PORT": str(dashboard)}  # fmt: skip

    def local(*arguments):
        done = subprocess.run([places.REPOSITORY / "deploy" / "local.sh", *arguments], cwd=tmp_path, env=environment,
                              capture_output=True, text=True, timeout=WAIT_SECONDS)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    options = ["--num-cpus=1", "--object-store-memory=100000000", f"--temp-dir={temporary}"]
    try:
        assert f"takes jobs at http://127.0.0.1:{dashboard}" in local("start", *options)
        assert "runs already" in local("start", *options)
        assert (home / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
        submit = ["submit", "--address", f"http://127.0.0.1:{dashboard}", "status", str(tmp_path / "nothing")]
        job = subprocess.run(
            [sys.executable, "-m", "raybasin", *submit],
            cwd=places.REPOSITORY,
            text=True,
            env={**environment, "RAY_AUTH_MODE": "token"},
            capture_output=True,
            timeout=WAIT_SECONDS,
        )
        assert job.returncode == 2 and "nothing" in job.stdout, job.stdout + job.stderr
        heard = listening.addresses(listening.descendants(int((tmp_path / ".cluster" / "pid").read_text())))
        assert {"gcs_server", "raylet"} <= {program for program, _, _ in heard}
        assert {address for _, address, _ in heard} == {"127.0.0.1"}, heard
    finally:
        assert "has ended" in local("stop")
    assert "no cluster of this folder runs" in local("stop")
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", dashboard), 1)


# A cluster of three raylets


class Raylets:
    """A head and further nodes of one CPU each; a node's processes are known by a mark in their environment."""

    def __init__(self, folder):
        self.folder, self.port, self.dashboard = folder, clusters.free_port(), clusters.free_port()
        self.environment = {**os.environ, "RAY_JOB_STOP_WAIT_TIME_S": "60"}
        self.number = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.dashboard}"

    def start(self):
        self.number += 1
        environment = {**self.environment, MARK: f"{self.folder}-{self.number}"}
        options = ["--num-cpus=1", "--object-store-memory=100000000", "--dashboard-agent-listen-port=0"]
        if self.number == 1:
            dashboard = ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}"]
            clusters.start_head(self.port, self.folder, [*options, *dashboard], environment)
        else:
            # In a folder of its own, as on a machine of its own: a raylet that unpacks a job's files where another has
            # them takes away the folder that the job runs in.
            clusters.start_node(self.port, [*options, f"--temp-dir={self.folder / str(self.number)}"], environment)
        return self.number

    def kill(self, *numbers):
        marks = {f"{MARK}={self.folder}-{number}".encode() for number in numbers}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if marks & set((entry / "environ").read_bytes().split(b"\0")):
                        os.kill(int(entry.name), signal.SIGKILL)


@pytest.fixture
def raylets(tmp_path_factory):
    made = Raylets(tmp_path_factory.mktemp("r"))
    try:
        for _ in range(3):
            made.start()
        yield made
    finally:
        made.kill(*range(1, made.number + 1))


def committed(results):
    return len(list((results / "members").glob("[!.]*")))


def until(condition, running):
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition() and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert running.poll() is None, running.communicate()[0]
    assert condition()


@pytest.mark.slow
def test_a_job_of_a_cluster_that_changes_is_stopped_and_submitted_again(raylets, tmp_path):
    """Through the Makefile, as the README has it."""
    results = tmp_path / "results"
    tree = tiny.tree(workers={"cpus": 0.9, "count": 2}, replicates=2)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree))
    make = ["make", f"--old-file={sys.prefix}/.ready", f"VENV={sys.prefix}", "submit", f"ADDRESS={raylets.url}",
            f"SWEEP={tmp_path / 'sweep.yaml'}", f"RESULTS={results}"]  # fmt: skip

    def submitted():
        return subprocess.Popen(
            make, cwd=places.REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    running = submitted()
    until(lambda: committed(results) >= 2, running)
    raylets.start()
    raylets.kill(2)
    before = committed(results)
    until(lambda: committed(results) > before, running)
    client = JobSubmissionClient(raylets.url)
    [job] = client.list_jobs()
    stop = shlex.split(submission.how_to_stop(raylets.url, job.submission_id))
    subprocess.run(["env", *stop], check=True, stdout=subprocess.DEVNULL, timeout=WAIT_SECONDS)
    said, _ = running.communicate(timeout=WAIT_SECONDS)
    assert running.returncode == 2 and "Error 130" in said, said  # make's own status for any but 0
    assert "interrupted (SIGTERM); the same command continues" in said
    [job] = client.list_jobs()
    assert job.status == JobStatus.STOPPED and job.driver_exit_code is None
    assert not list((results / "state").glob("running-*"))

    again = submitted()
    said, _ = again.communicate(timeout=WAIT_SECONDS)
    assert again.returncode == 0, said
    assert "8 of 8 cells done" in said
    raybasin.run(tree, tmp_path / "quiet")
    assert tiny.values(Folder(results)) == tiny.values(Folder(tmp_path / "quiet"))


def test_all_of_the_package_is_uploaded_with_the_folder():
    """What was left out an editable installation of the same checkout would stand in for, and a cluster's would not."""
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    repository = Path(__file__).resolve().parents[2]
    left_out = get_excludes_from_ignore_files(repository, include_gitignore=True)
    assert left_out
    package = [path for path in (repository / "raybasin").rglob("*") if "__pycache__" not in path.parts]
    assert package and not [path for path in package if any(excludes(path) for excludes in left_out)]
    for name in ("results", "data", ".venv"):
        assert any(excludes(repository / name / "any") for excludes in left_out), name
