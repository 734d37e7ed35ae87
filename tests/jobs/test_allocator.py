"""What a training step frees is kept for the next: no page is asked for again, and nothing that is computed changes."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from raybasin.jobs import allocator

STEPS = """
import json, resource, sys, torch
from raybasin.jobs import allocator

WARM = 100  # steps after which the heap has grown to what steps need, however pieces of it have come to lie

torch.set_num_threads(1)
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3), torch.nn.ReLU())
optimizer, images = torch.optim.SGD(net.parameters(), 0.1), torch.randn(16, 3, 64, 64)

def train(steps):
    for _ in range(steps):
        optimizer.zero_grad()
        net(images).square().mean().backward()
        optimizer.step()

def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    train(steps)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps

def resident():
    return int(open("/proc/self/statm").read().split()[1])

kept = "keep" in sys.argv and allocator.keep_freed_memory()
if "within" in sys.argv:
    with allocator.freed_memory_kept():
        train(WARM)
        within, before = faults(10), resident()
    print(json.dumps({"within": within, "given back": before - resident()}))
else:
    train(WARM)
    found = faults(10)
    print(json.dumps({"kept": kept, "faults": found, "weights": net[0].weight.sum().item().hex()}))
"""

needs_glibc = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}), reason="the C library is not glibc"
)


def steps(*arguments):
    clean = {name: value for name, value in os.environ.items() if name not in {*allocator.SAID, "GLIBC_TUNABLES"}}
    command = [sys.executable, "-c", textwrap.dedent(STEPS), *arguments]
    places = os.pathsep.join(filter(None, sys.path))
    ran = subprocess.run(command, env={**clean, "PYTHONPATH": places}, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@needs_glibc
def test_a_step_asks_the_system_for_no_memory_that_the_one_before_had():
    plain, kept = steps(), steps("keep")
    assert kept["kept"] and not plain["kept"]
    assert plain["faults"] > 100  # 4 kB each, or the test shows nothing
    assert kept["faults"] < plain["faults"] / 5
    assert kept["weights"] == plain["weights"]


@needs_glibc
def test_a_process_of_the_users_own_gets_its_memory_back():
    found = steps("within")
    assert found["within"] < 100
    assert found["given back"] > 500


@pytest.mark.parametrize(
    "said",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"MALLOC_MMAP_THRESHOLD_": "131072"},
     {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}],
)  # fmt: skip
def test_what_the_environment_says_of_malloc_is_left_as_it_is(said, monkeypatch):
    monkeypatch.setattr(allocator, "_set", lambda options: pytest.fail("set all the same"))
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert not allocator.keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(allocator.os, "confstr", unknown)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("called"))
    assert not allocator._set(allocator.KEPT)
