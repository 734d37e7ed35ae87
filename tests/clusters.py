"""Ray clusters for tests: on loopback alone, and closed by a token, wherever the tests run.

Ray 2.60 takes 127.0.0.1 for the machine's own address, and then listens on all interfaces. For a cluster of one node it
has a switch against that, which docs/cluster.md tells users of; with it, it takes no further nodes. Those are started
here by a process in which 127.0.0.1 stays what it is. No public option of `ray start` does that.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass
class Cluster:
    """A head, and nodes that are given to it and taken away. `folder` has a short path."""

    folder: Path
    port: int = field(default_factory=free_port)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, options: list[str]) -> None:
        start_head(self.port, self.folder, options, os.environ)

    def start_node(self, options: list[str]) -> int:
        """Gives the process of its raylet, with which all others of the node end."""
        before = self._raylets()
        start_node(self.port, options, os.environ)
        [new] = self._raylets() - before
        return new

    def stop(self) -> None:
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _processes(self) -> dict[int, str]:
        """Those that name the cluster's folder or port."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    command = (entry / "cmdline").read_bytes().decode(errors="replace")
                    if str(self.folder) in command or f":{self.port}" in command:
                        found[int(entry.name)] = command
        return found

    def _raylets(self) -> set[int]:
        return {pid for pid, command in self._processes().items() if "/raylet/raylet" in command}


def asked_of_the_autoscaler() -> list[dict[str, float]]:
    """What the cluster to which this process is connected was last asked for."""
    from ray.experimental.internal_kv import _internal_kv_get

    asked = json.loads(_internal_kv_get(b"autoscaler_resource_request") or b"[]")
    return [bundle.get("resources", bundle) for bundle in asked]  # Ray 2.51 names them
