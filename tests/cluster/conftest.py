"""One cluster, `ray start --head` on loopback and with a token, for all tests that need no other."""

import contextlib
import os
import signal
from pathlib import Path

import clusters
import pytest


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """The addresses of a running cluster and of its dashboard, and what gives its processes."""
    port, dashboard = clusters.free_port(), clusters.free_port()
    temporary = tmp_path_factory.mktemp("r")

    def processes():
        return _cluster_processes(str(temporary), port)

    try:
        clusters.start_head(
            port, temporary,
            ["--num-cpus=3", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
             "--dashboard-agent-listen-port=0", "--include-dashboard=true", "--object-store-memory=300000000"],
            {**os.environ, "RAY_TRAIN_ENABLE_STATE_TRACKING": "1"},
        )  # fmt: skip
        yield f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", processes
    finally:
        for pid in processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _cluster_processes(folder, port):
    """The processes that name the cluster's folder or port, and all that they have started."""
    parents, found = {}, set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if folder in command or f":{port}" in command:
                    found.add(int(entry.name))
    found.discard(os.getpid())
    while started := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= started
    return found
