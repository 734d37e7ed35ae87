"""How many workers fit; without a cluster."""

import math
import types

import pytest

pytest.importorskip("ray")

from raybasin.cluster import room
from raybasin.errors import UserError
from raybasin.sweep.specs import Workers


def node(total, available=None, labels=(), own=(), name="n"):
    return room.node(name, total, total if available is None else available, dict(labels), own)


@pytest.mark.parametrize(
    ("cpus", "gpus", "nodes", "expected"),
    [
        (0.9, 0, [{"CPU": 2}], 2),
        (1.0, 0, [{"CPU": 2}], 2),
        (0.1, 0, [{"CPU": 1}], 10),
        (2.0, 0, [{"CPU": 3}, {"CPU": 3}], 2),  # a worker does not span machines
        (1.0, 0.25, [{"CPU": 16, "GPU": 1}], 4),
        (1.0, 0.4, [{"CPU": 16, "GPU": 2}], 4),  # two fit on each card, not five on both
        (1.0, 2.0, [{"CPU": 16, "GPU": 3}], 1),
        (1.0, 0.5, [{"CPU": 16}], 0),
        (4.0, 0, [{"CPU": 2}], 0),
    ],
)
def test_how_many_workers_fit(cpus, gpus, nodes, expected):
    assert room.slots([Workers(cpus=cpus, gpus=gpus)], [node(total) for total in nodes]) == [expected]


GPU = Workers(gpus=1, accelerator_type="A100")
SHARE = Workers(gpus=0.5)
CPU = Workers(cpus=2)
A100 = {"CPU": 8, "GPU": 2, "accelerator_type:A100": 1}


def test_kinds_take_room_one_after_the_other_on_each_node():
    nodes = [A100, {"CPU": 8, "GPU": 2, "accelerator_type:T4": 1}, {"CPU": 3}]
    assert room.slots([GPU, SHARE, CPU], [node(total) for total in nodes]) == [2, 4, 3 + 2 + 1]
    assert room.slots([SHARE, GPU, CPU], [node(total) for total in nodes]) == [8, 0, 2 + 2 + 1]


def test_counts_and_what_is_useful_in_all_are_limits():
    kinds = [GPU.model_copy(update={"count": 1}), CPU]
    assert room.slots(kinds, [node(A100)]) == [1, 3]
    assert room.slots(kinds, [node(A100)], in_all=2) == [1, 1]
    assert room.slots(kinds, [node(A100)], [0, math.inf]) == [0, 4]


def test_resources_and_labels_of_ones_own_say_where():
    disk = Workers(resources={"disk": 2})
    zone = Workers(labels={"zone": "a"})
    nodes = [({"CPU": 8, "disk": 5}, {}), ({"CPU": 8}, {"zone": "a"}), ({"CPU": 8}, {"zone": "b"})]
    made = [node(total, labels=labels) for total, labels in nodes]
    assert room.slots([disk, zone, CPU], made) == [2, 8, 3 + 0 + 4]


def test_what_others_have_is_not_free():
    assert room.slots([CPU], [node({"CPU": 8}, {"CPU": 3.5})]) == [1]
    assert room.slots([CPU], [node({"CPU": 8}, {})]) == [0]
    assert room.slots([SHARE], [node({"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 1.4})]) == [2]  # of 1 and of 0.4
    assert room.slots([Workers(gpus=1)], [node({"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 1.4})]) == [1]


def test_what_own_workers_have_is_taken_before_ray_says_so_and_not_taken_twice():
    for available in ({"CPU": 8}, {"CPU": 4}):
        assert room.slots([CPU], [node({"CPU": 8}, available, own=[CPU, CPU])]) == [2]
    share = Workers(gpus=0.4)
    for available in ({"CPU": 8, "GPU": 2}, {"CPU": 4, "GPU": 0.4}):  # 0.2 and 0.2 are left, on two cards
        assert room.slots([share], [node({"CPU": 8, "GPU": 2}, available, own=[share] * 4)]) == [0]


def test_a_group_that_waits_takes_room_only_if_all_of_it_fits():
    assert room.slots([CPU], [node({"CPU": 8})], waiting=[(CPU, 3)]) == [1]
    assert room.slots([CPU], [node({"CPU": 8})], waiting=[(CPU, 5)]) == [4]
    assert room.slots([CPU], [node({"CPU": 8}), node(A100)], waiting=[(GPU, 2), (CPU, 5)]) == [2]


# Waiting for it


@pytest.fixture
def cluster(monkeypatch):
    """A cluster whose nodes are those of `nodes`, one lot at each look. Of its autoscaler `asked` was asked."""
    made = types.SimpleNamespace(nodes=[[]], asked=[])

    def look(kinds, taken=()):
        return [node(total) for total in (made.nodes.pop(0) if len(made.nodes) > 1 else made.nodes[0])]

    monkeypatch.setattr(room, "nodes", look)
    monkeypatch.setattr(room, "LOOK_SECONDS", 0)
    monkeypatch.setattr(room, "request_resources", lambda **asked: made.asked.append(asked))
    resources = {"CPU": 0, "accelerator_type:Own": 1}
    monkeypatch.setattr(room.ray, "available_resources", lambda: resources)
    monkeypatch.setattr(room.ray, "cluster_resources", lambda: resources)
    return made


def test_room_that_is_there_is_not_asked_for(cluster):
    cluster.nodes = [[{"CPU": 3}]]
    with room.enough([Workers()], 5) as count:
        assert count == 3
    assert cluster.asked == []


@pytest.mark.parametrize(
    ("kinds", "text"),
    [
        ([Workers(cpus=4)], "workers: 1 worker of 4 CPUs do not fit into the cluster's free 0 CPUs and 0 GPUs; 0"),
        ([Workers(count=5)], "workers: 5 workers of 1 CPUs do not fit"),
        ([Workers(count=1), GPU.model_copy(update={"count": 2})],
         "workers: 1 worker of 1 CPUs and 2 workers of 1 CPUs and 1 GPUs of type A100 do not fit"),
    ],
)  # fmt: skip
def test_without_wait_what_does_not_fit_is_refused_and_the_way_out_is_named(cluster, kinds, text):
    cluster.nodes = [[{"CPU": 3}]]
    with pytest.raises(UserError) as caught, room.enough(kinds, 5):
        pass
    assert str(caught.value).startswith(text) and "--wait" in str(caught.value)
    assert cluster.asked == []


def test_with_wait_it_is_asked_for_and_waited_for_and_given_back(cluster):
    cluster.nodes = [[], [{"CPU": 1}], [{"CPU": 1}, {"CPU": 1}], [{"CPU": 9}]]
    told = []
    with room.enough([Workers(count=2)], 5, told.append) as count:
        assert count == 2 and cluster.asked == [{"bundles": [{"CPU": 1.0}] * 2}]
    assert cluster.asked[1:] == [{"bundles": []}]
    assert len(told) == 1 and told[0].startswith("workers: 2 workers of 1 CPUs do not fit")


def test_with_wait_more_is_asked_for_than_what_is_there_already(cluster):
    cluster.nodes = [[{"CPU": 1}]]
    with room.enough([Workers()], 4, str) as count:
        assert count == 1 and cluster.asked == [{"bundles": [{"CPU": 1.0}] * 4}]
    with room.enough([Workers(count=1)], 4, str):
        assert cluster.asked[2:] == [{"bundles": [{"CPU": 1.0}]}]


def test_ray_that_takes_whole_numbers_only_is_asked_for_these(cluster, monkeypatch):
    def request_resources(bundles):
        if any(isinstance(amount, float) for bundle in bundles for amount in bundle.values()):
            raise TypeError("each bundle key should be str and value as int.")
        cluster.asked.append(bundles)

    monkeypatch.setattr(room, "request_resources", request_resources)
    cluster.nodes = [[], [{"CPU": 2}]]
    with room.enough([Workers(cpus=0.5)], 3, str):
        assert cluster.asked == [[{"CPU": 1}] * 3]  # as many as have something to do


def test_whoever_is_interrupted_while_waiting_gives_it_back_too(cluster):
    def interrupted(why):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), room.enough([GPU], 5, interrupted):
        pass
    assert cluster.asked == [{"bundles": [room.asked(GPU)] * 5}, {"bundles": []}]


def test_a_type_of_accelerator_that_nobody_knows_is_refused_and_not_waited_for(cluster):
    cluster.nodes = [[{"CPU": 8, "accelerator_type:Own": 1}]]
    with pytest.raises(UserError, match="accelerator_type: Ray knows no A10O; did you mean 'A10G'"):
        room.enough([Workers(accelerator_type="A10O")], 5, print).__enter__()
    with room.enough([Workers(accelerator_type="Own")], 5) as count:
        assert count == 8


def test_labels_that_this_ray_does_not_place_by_are_refused(cluster, monkeypatch):
    monkeypatch.setattr(room, "ScalingConfig", lambda num_workers: None)
    with pytest.raises(UserError, match="workers.labels: Ray .* places no workers by labels"):
        room.enough([Workers(labels={"zone": "a"})], 5, print).__enter__()
