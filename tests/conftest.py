"""What all tests share: one thread, no Ray beyond this machine, and one tiny sweep that has been run."""

import os

# Read when ray is imported, so before any test module is.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "disabled"

import shutil

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Sums over several threads round differently, and equal bits are asked for."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The sweep of `tiny`, run to its end. To be read only: take `copied` to change something."""
    import tiny

    import raybasin
    from raybasin.store import Folder

    root = tmp_path_factory.mktemp("tiny")
    report = raybasin.run(tiny.spec(), root)
    assert report.complete and not report.failures
    return tiny.Sweep(Folder(root), report.plan)


@pytest.fixture
def copied(finished, tmp_path):
    """The finished sweep in a folder of the test's own."""
    import tiny

    from raybasin.store import Folder

    shutil.copytree(finished.folder.root, tmp_path / "copy")
    return tiny.Sweep(Folder(tmp_path / "copy"), finished.plan)
