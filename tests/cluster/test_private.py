"""What is private of Ray: a test for each thing in `private`, which fails when Ray has it no more; no cluster."""

import re
import subprocess
import sys

import places
import pytest

pytest.importorskip("ray")

import ray.train

from raybasin.cluster import connect, private
from raybasin.errors import UserError

VERSION = tuple(int(part) for part in ray.__version__.split(".")[:2])


def test_ray_train_has_a_trainer_that_needs_no_torch():
    trainer, settings, argument = private.trainer()
    assert trainer.__name__ == "DataParallelTrainer"
    assert settings is ray.train.BackendConfig and argument == "backend_config"


def test_where_that_is_gone_the_public_one_takes_its_place(monkeypatch):
    from ray.train.torch import TorchConfig, TorchTrainer

    monkeypatch.setitem(sys.modules, "ray.train.v2.api.data_parallel_trainer", None)
    assert private.trainer() == (TorchTrainer, TorchConfig, "torch_config")


@pytest.mark.skipif(VERSION < (2, 60), reason="this Ray replaces all workers of a run")
def test_ray_train_still_asks_whether_workers_are_replaced_one_by_one():
    """That it then does so is seen where a worker is killed, in test_driver.py."""
    from ray.train.backend import Backend

    assert Backend.has_replica_groups is False


def test_ray_takes_loopback_for_what_it_is_as_long_as_it_is_told_to():
    from ray._private import services

    with private.loopback_stays_loopback():
        assert services.resolve_ip_for_localhost("127.0.0.1") == "127.0.0.1"
    assert services.ray_constants.ENABLE_RAY_CLUSTER is (sys.platform == "linux")


LISTENS = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
listener = socket.create_server((sys.argv[1], 0), family=family)
print("listening", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "::ffff:127.0.0.1"])
def test_what_listens_beyond_loopback_is_found_in_whatever_process_was_started(address):
    before = connect.listeners()
    with subprocess.Popen(
        [sys.executable, "-c", LISTENS, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as it:
        try:
            assert it.stdout.readline() == b"listening\n"
            connect.check_loopback(connect.listeners())  # what was there is not Ray's
            if address != "0.0.0.0":
                connect.check_loopback(before)
            else:
                with pytest.raises(UserError, match=rf"listens on 0\.0\.0\.0, port \d+ \(process {it.pid}\)"):
                    connect.check_loopback(before)
        finally:
            it.stdin.close()


def test_nothing_else_of_the_package_uses_what_is_private():
    private_name = re.compile(r"\bray\._[a-z]|ray\.train\.v2|has_replica_groups")
    sources = (places.REPOSITORY / "raybasin").rglob("*.py")
    assert {path.name for path in sources if private_name.search(path.read_text())} == {"private.py"}
