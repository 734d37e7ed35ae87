"""What all tests share: one thread, Ray behind a token, one tiny sweep that has been run, an S3 server."""

import os

import clusters

os.environ.update(clusters.closed())  # read when ray is imported, so before any test module is

import importlib.util
import itertools
import shutil
import urllib.request
from dataclasses import dataclass, field

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
    from raybasin.store.folders import Folder

    root = tmp_path_factory.mktemp("tiny")
    report = raybasin.run(tiny.spec(), root)
    assert report.complete and not report.failures
    return tiny.Sweep(Folder(root), report.plan)


@pytest.fixture
def copied(finished, tmp_path):
    """The finished sweep in a folder of the test's own."""
    import tiny

    from raybasin.store.folders import Folder

    shutil.copytree(finished.folder.root, tmp_path / "copy")
    return tiny.Sweep(Folder(tmp_path / "copy"), finished.plan)


@pytest.fixture
def searching(copied):
    """The same as a search in two replicates that has been stopped: of its five points three were chosen, of which its
    scheduler has ended one after its first replicate, and one was not begun."""
    import tiny

    from raybasin.store import inventory, schemas
    from raybasin.sweep import plan, specs
    from raybasin.sweep.points import MapPoint

    search = {
        "searcher": "ray.tune.search.optuna:OptunaSearch", "metric": "barrier_error", "mode": "min", "points": 5,
        "lr_ratio": [0.5, 32], "scheduler": {"scheduler": "ray.tune.schedulers:ASHAScheduler"},
    }  # fmt: skip
    methods = {"star_sse": {"n_members": 3}, "local_de": {"n_members": 3}}
    tree = specs.dump(copied.plan.spec) | {"search": search, "methods": methods, "replicates": 2}
    made = plan.make(specs.parse(tree), copied.plan.facts)
    points = [MapPoint("star_sse", made.facts.checkpoints[0].name, lr_ratio) for lr_ratio in (1.0, 4.0, 8.0)]
    for point in points:
        inventory.write_chosen(copied.folder, made, point, schemas.CHOSEN)
    inventory.write_chosen(copied.folder, made, points[1], schemas.ENDED, 1)
    made = plan.make(made.spec, made.facts, inventory.chosen(copied.folder, made))
    copied.folder.put(f"sweeps/{made.settings_id}.yaml", inventory.resolved(made).encode())
    return tiny.Sweep(copied.folder, made)


@dataclass(frozen=True)
class S3:
    """The server of `s3_server`, whose address and credentials are in the environment."""

    url: str
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def tell(self, command: str) -> str:
        """One of the commands of `s3_server`, as `METHOD path`."""
        method, path = command.split()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, method=method), timeout=60) as answer:
            return answer.read().decode()

    def requests(self) -> list[str]:
        """What objects were asked for since the last call."""
        return self.tell("GET /-/requests").splitlines()

    def address(self) -> str:
        """A prefix that no other test uses."""
        return f"s3://bucket/results/{next(self.numbers)}"


@pytest.fixture(scope="session")
def s3_server():
    if not importlib.util.find_spec("moto"):
        pytest.skip("moto is not installed")
    import s3_server

    with s3_server.running() as url:
        yield S3(url)


@pytest.fixture
def s3(s3_server, monkeypatch):
    """An S3 server with the bucket `bucket`, found through the environment as every user's is."""
    for variable in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(variable)
    for variable, value in {"AWS_ENDPOINT_URL": s3_server.url, "AWS_ACCESS_KEY_ID": "tests",
                            "AWS_SECRET_ACCESS_KEY": "tests", "AWS_REGION": "us-east-1"}.items():  # fmt: skip
        monkeypatch.setenv(variable, value)
    s3_server.requests()
    yield s3_server
    s3_server.tell("PUT /-/fail?count=0&when=before")
    s3_server.tell("PUT /-/ignore-conditions?off")
