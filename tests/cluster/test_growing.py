"""A pool that grows and shrinks with its cluster: room that is waited for, and nodes that join and leave."""

import inspect
import math
import os
import signal

import clusters
import pytest
import safetensors.torch
import timm
import tiny
from ray.train import ScalingConfig

from raybasin.cluster import driver, pool
from raybasin.errors import UserError
from raybasin.jobs import local, prepare
from raybasin.store import folders
from raybasin.sweep import specs

pytestmark = pytest.mark.ray

KNOWS_LABELS = "label_selector" in inspect.signature(ScalingConfig).parameters
SMALL = {"labels": {"zone": "a"}} if KNOWS_LABELS else {"resources": {"small": 1}}
KINDS = [{"cpus": 1, "resources": {"large": 1}}, {"cpus": 0.5, "hang_seconds": 90, **SMALL}]
STORE = "--object-store-memory=100000000"
WAITS = """
import pathlib, sys, time
import timm

GO = pathlib.Path(__file__).with_name("go")


def network(num_classes):
    until = time.monotonic() + 600
    while sys.argv[0].endswith("default_worker.py") and not GO.exists() and time.monotonic() < until:
        time.sleep(0.1)
    return timm.create_model("test_resnet", num_classes=num_classes)
"""
"""A network that cannot be made in a process of Ray's before the file `go` is there."""


@pytest.fixture
def cluster(tmp_path_factory):
    """A cluster whose head has room for nobody."""
    made = clusters.Cluster(tmp_path_factory.mktemp("g"))
    try:
        made.start(["--num-cpus=0", "--include-dashboard=false", STORE])
        yield made
    finally:
        made.stop()


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """A sweep of six networks, which are all ready at once."""
    (tmp_path / "waits_for_go.py").write_text(WAITS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))  # of the nodes
    net = timm.create_model("test_resnet", num_classes=5)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "net.safetensors")
    tree = tiny.tree(methods={"local_de": {"n_members": 6}}, recipe__epochs=1, workers=KINDS)
    tree["model"] = {
        "factory": "waits_for_go:network", "head": "fc", "pretrained": [str(tmp_path / "net.safetensors")],
    }  # fmt: skip
    return specs.parse(tree)


def sweep(spec, root, cluster, watch=lambda stats: None, wait=None):
    prepared = prepare.prepare(spec)
    options = driver.Options(address=cluster.address, wait=wait)
    return driver.run(local.begin(folders.create(root), prepared), lambda: prepare.load(prepared), options, watch)


def test_a_pool_waits_for_a_node_and_grows_when_one_joins_and_goes_on_when_one_leaves(
    cluster, spec, tmp_path, monkeypatch
):
    """The second kind's node joins while the first kind's worker is in a job; once both are, the first one's node is
    gone for good."""
    with pytest.raises(UserError, match="do not fit into the cluster's free 0 CPUs") as caught:
        sweep(spec, tmp_path / "r", cluster)
    assert "--wait" in str(caught.value)
    asked, raylets, seen = [], [], []

    def wait(why):
        asked.extend(clusters.asked_of_the_autoscaler())
        raylets.append(cluster.start_node(["--num-cpus=1", '--resources={"large": 1}', STORE]))

    def watch(stats):
        seen.append(set(stats.running))
        if seen[-1] == {"0.0"} and len(raylets) == 1:
            small = "--labels=zone=a" if KNOWS_LABELS else '--resources={"small": 2}'
            raylets.append(cluster.start_node(["--num-cpus=1", small, STORE]))
        elif len(seen[-1]) == 3 and not (tmp_path / "go").exists():
            os.kill(raylets[0], signal.SIGKILL)
            (tmp_path / "go").touch()

    monkeypatch.setattr(pool, "SETTLE_SECONDS", 1.0)
    report = sweep(spec, tmp_path / "r", cluster, watch, wait)
    assert report.complete and not report.failures
    whole = [{name: math.ceil(amount) for name, amount in bundle.items()} for bundle in asked]  # as Ray 2.51 has it
    as_many = len(whole) // 2  # as have something to do, of each kind
    assert as_many >= 6
    assert whole == [{"CPU": 1, "large": 1}] * as_many + [{"CPU": 1, **SMALL.get("resources", {})}] * as_many
    assert {"0.0", "1.0", "1.1"} in seen  # two of the second kind fit
    assert set().union(*seen) == {"0.0", "1.0", "1.1"} and "0.0" not in seen[-1]
    local.run(spec, tmp_path / "alone")
    assert tiny.values(folders.folder(tmp_path / "r")) == tiny.values(folders.folder(tmp_path / "alone"))
