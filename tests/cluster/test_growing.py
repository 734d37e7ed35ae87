"""A pool that grows and shrinks with its cluster: room that is waited for, and nodes that join and leave."""

import inspect
import os
import signal

import clusters
import pytest
import tiny
from ray.train import ScalingConfig

from raybasin.cluster import driver, pool
from raybasin.errors import UserError
from raybasin.jobs import local, prepare
from raybasin.store import folders

pytestmark = pytest.mark.ray

KNOWS_LABELS = "label_selector" in inspect.signature(ScalingConfig).parameters
SMALL = {"labels": {"zone": "a"}} if KNOWS_LABELS else {"resources": {"small": 1}}
KINDS = [{"cpus": 1, "resources": {"large": 1}}, {"cpus": 0.5, "hang_seconds": 90, **SMALL}]


@pytest.fixture
def cluster(tmp_path_factory):
    """A cluster whose head has room for nobody."""
    made = clusters.Cluster(tmp_path_factory.mktemp("g"))
    try:
        made.start(["--num-cpus=0", "--include-dashboard=false", "--object-store-memory=100000000"])
        yield made
    finally:
        made.stop()


def sweep(root, cluster, watch=lambda stats: None, wait=None):
    prepared = prepare.prepare(tiny.spec(workers=KINDS))
    options = driver.Options(address=cluster.address, wait=wait)
    return driver.run(local.begin(folders.create(root), prepared), lambda: prepare.load(prepared), options, watch)


def test_a_pool_waits_for_a_node_and_grows_when_one_joins_and_goes_on_when_one_leaves(
    cluster, finished, tmp_path, monkeypatch
):
    with pytest.raises(UserError, match="do not fit into the cluster's free 0 CPUs") as caught:
        sweep(tmp_path / "r", cluster)
    assert "--wait" in str(caught.value)
    asked, joined, seen = [], [], []

    def wait(why):
        asked.extend(clusters.asked_of_the_autoscaler())
        joined.append(
            cluster.start_node(["--num-cpus=1", '--resources={"large": 1}', "--object-store-memory=100000000"])
        )

    def watch(stats):
        """The second kind's node joins while the first one works; once both do, the first one's is gone."""
        seen.append(set(stats.running))
        if len(joined) == 1 and stats.running:
            small = "--labels=zone=a" if KNOWS_LABELS else '--resources={"small": 2}'
            joined.append(cluster.start_node(["--num-cpus=1", small, "--object-store-memory=100000000"]))
        elif joined[0] and {"0.0", "1.0", "1.1"} & set(stats.running) > {"0.0"}:
            os.kill(joined[0], signal.SIGKILL)
            joined[0] = None

    monkeypatch.setattr(pool, "SETTLE_SECONDS", 1.0)
    report = sweep(tmp_path / "r", cluster, watch, wait)
    assert report.complete and not report.failures
    assert joined[0] is None, "the sweep was over before the second kind of workers had come"
    assert asked == [{"CPU": 1, "large": 1}, {"CPU": 0.5, **SMALL.get("resources", {})}]
    assert set().union(*seen) <= {"0.0", "1.0", "1.1"} and seen[-1] <= {"1.0", "1.1"}
    assert tiny.values(folders.folder(str(tmp_path / "r"))) == tiny.values(finished.folder)
