"""Ray clusters for tests: on loopback alone, and closed by a token, wherever the tests run.

Ray 2.60 takes 127.0.0.1 for the machine's own address, and then listens on all interfaces. For a cluster of one node it
has a switch against that, which docs/cluster.md tells users of; with it, it takes no further nodes. Those are started
here by a process in which 127.0.0.1 stays what it is. No public option of `ray start` does that.
"""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

START_SECONDS = 300
SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
STAYS = """
from ray._private import services
services.resolve_ip_for_localhost = lambda host: host
from ray.scripts.scripts import main
main()
"""


def closed() -> dict[str, str]:
    """The environment of a cluster that nobody else can join, and of those who may.

    By default Ray's workers give way to everybody else: beside a busy machine's other work they all but stand still.
    """
    return {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_head(port: int, folder: Path, options: list[str], environment: Mapping[str, str]) -> None:
    """A cluster of one node. `folder` is where its sockets are, whose paths must be short."""
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={port}", f"--temp-dir={folder}"]
    _start([*command, *options], {**environment, SWITCH: "0"})


def start_node(port: int, options: list[str], environment: Mapping[str, str]) -> None:
    """One more node."""
    _start([sys.executable, "-c", STAYS, "start", f"--address=127.0.0.1:{port}", *options], environment)


def _start(command: list[str], environment: Mapping[str, str]) -> None:
    common = ["--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    done = subprocess.run([*command, *common], capture_output=True, text=True, timeout=START_SECONDS, env=environment)
    if done.returncode:
        raise subprocess.SubprocessError(f"Ray has not started: {done.stdout}{done.stderr}")
