"""How the pool grows, and how its workers are looked after; without Ray."""

import types

import pytest

pytest.importorskip("ray")

import time

from raybasin.cluster import pool, room
from raybasin.cluster.pool import RETRY_SECONDS, SETTLE_SECONDS
from raybasin.sweep.specs import Workers as Kind

# Growing


class Cluster:
    """Machines, and groups of workers that are placed as Ray does: each as a whole, as soon as there is room for it."""

    def __init__(self, kinds, monkeypatch):
        self.kinds, self.cpus, self.groups, self.over, self.now = kinds, {}, {}, {}, 1000.0
        self.starting, self.silent = {}, set()
        for name in ("alive_nodes", "here"):
            monkeypatch.setattr(pool.connect, name, getattr(self, name))
        monkeypatch.setattr(pool, "time", types.SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(pool, "_fit", self)
        monkeypatch.setattr(pool, "_groups", lambda kinds: dict(self.groups))
        monkeypatch.setattr(pool, "_remove", lambda group: self.groups.pop(group, None))
        monkeypatch.setattr(pool, "ends", lambda fit, seconds: fit in self.over)
        monkeypatch.setattr(pool, "ray", types.SimpleNamespace(get=lambda fit: None, wait=lambda *_, **__: None,
                                                               cancel=self.cancel))  # fmt: skip
        monkeypatch.setattr(room, "nodes", self.nodes)
        self.pool = pool.WorkerPool(None, types.SimpleNamespace(kinds=kinds), 10, "storage", "name")

    def alive_nodes(self):
        return [{"NodeID": name} for name in self.cpus]

    def here(self):
        return None

    def options(self, **options):
        return self

    def remote(self, config, kind, count, storage, name):
        group = pool._Group([room.asked(kind)] * count, ())
        self.starting[f"g{config['run']}"] = self.now, group
        return config["run"]

    def cancel(self, fit, force):
        self.over[fit] = True  # its group stays, as Ray Train leaves it

    def nodes(self, kinds, taken=()):
        own = {name: [kinds[kind] for node, kind in taken if node == name] for name in self.cpus}
        return [room.node(n, {"CPU": c}, {"CPU": c - self.used(n)}, {}, own[n]) for n, c in self.cpus.items()]

    def used(self, node):
        return sum(group.bundles[0]["CPU"] * group.nodes.count(node) for group in self.groups.values())

    def place(self):
        for name in [name for name, (at, _) in self.starting.items() if at <= self.now]:
            self.groups[name] = self.starting.pop(name)[1]
        for name, group in self.groups.items():
            there = [node for node in group.nodes if node in self.cpus]
            self.groups[name] = pool._Group(group.bundles, tuple(there))
            lost = len(group.bundles) - len(there)
            free = [n for n, c in self.cpus.items() for _ in range(int((c - self.used(n)) / group.bundles[0]["CPU"]))]
            if 0 < lost <= len(free):
                self.groups[name] = pool._Group(group.bundles, (*there, *free[:lost]))

    def workers(self):
        """The group of each worker that has a place and has said hello."""
        return {
            f"{run.number}.{rank}": group
            for run in self.pool.runs
            if (group := f"g{run.number}") in self.groups and run.number not in self.silent
            for rank in range(len(self.groups[group].nodes))
        }

    def seconds(self, count, jobs=100, broken=(), idle=False):
        """So many looks, one a second. Each worker that has a place has said so, and does one of `jobs`, if there are
        enough and unless it is broken or all are `idle`. Gives why the pool has ended, if it has."""
        reasons = []
        for _ in range(count):
            self.now += 1
            self.place()
            groups = self.workers()
            pids = {name: 1 for name in groups if name not in broken}
            running = {} if idle else dict(list(pids.items())[:jobs])
            ready = 0 if idle else jobs - len(running)
            stats = types.SimpleNamespace(groups=groups, pids=pids, ready=ready, running=running)
            reasons.append(self.pool.tend(stats))
        return [reason for reason in reasons if reason]

    def sizes(self):
        return [run.count for run in self.pool.runs]


@pytest.fixture
def cluster(monkeypatch):
    def make(*kinds, cpus=(), most=10):
        made = Cluster(kinds or (Kind(),), monkeypatch)
        made.cpus = {f"n{i}": amount for i, amount in enumerate(cpus)}
        made.pool.most = most
        made.pool.start()
        return made

    return make


def test_at_the_start_there_are_as_many_workers_as_fit_and_have_something_to_do(cluster):
    assert cluster(cpus=[4, 3]).sizes() == [7]
    assert cluster(cpus=[40]).sizes() == [10]


def test_no_run_is_large(cluster):
    assert cluster(cpus=[70], most=1000).sizes() == [32, 32, 6]


def test_where_no_room_is_free_yet_it_is_taken_when_it_is(cluster):
    made = cluster(cpus=[0])
    made.seconds(30)
    assert made.sizes() == []
    made.cpus["n0"] = 4
    made.seconds(30)
    assert made.sizes() == [4]


def test_machines_that_come_one_after_the_other_get_one_further_run(cluster):
    made = cluster(cpus=[2])
    made.seconds(30)
    assert made.sizes() == [2]
    for i in range(1, 5):
        made.cpus[f"n{i}"] = 2
        made.seconds(2)
    made.seconds(int(SETTLE_SECONDS) + 30)
    assert made.sizes() == [2, 8]
    assert [run.name for run in made.pool.runs] == ["0", "1"]


def test_no_more_workers_than_jobs_or_than_count_says(cluster):
    made = cluster(cpus=[2])
    made.cpus["n1"] = 8
    made.seconds(60, jobs=5)
    assert made.sizes() == [2, 3]
    made.seconds(60, jobs=5)
    assert made.sizes() == [2, 3]
    made = cluster(Kind(count=3), cpus=[2])
    made.cpus["n1"] = 8
    made.seconds(60)
    assert made.sizes() == [2, 1]


def test_a_machine_that_comes_back_is_taken_by_who_lost_it_and_not_twice(cluster):
    made = cluster(cpus=[2, 3])
    assert made.sizes() == [5]
    made.seconds(5)
    lost = made.cpus.pop("n1")
    made.seconds(100)
    assert made.sizes() == [5]  # two go on
    made.cpus["n2"] = lost
    made.seconds(100)
    assert made.sizes() == [5] and len(made.pool.runs[0].places) == 5


def test_a_smaller_machine_is_not_kept_free_for_who_lost_a_larger_one(cluster):
    made = cluster(cpus=[2, 3])
    made.seconds(5)
    made.cpus.pop("n1")
    made.cpus["n2"] = 2
    made.seconds(30)
    assert made.sizes() == [5, 2]
    made.cpus["n3"] = 4
    made.seconds(60)
    assert sum(len(run.places) for run in made.pool.runs) == 8


def test_a_run_that_has_lost_all_its_places_gives_way(cluster):
    made = cluster(cpus=[4])
    made.seconds(5)
    made.cpus = {"n1": 3}
    made.seconds(int(pool.PLACE_SECONDS) - 10)
    assert made.sizes() == [4, 3]  # its room cannot be that of the first one
    made.seconds(30)
    assert made.sizes() == [3] and set(made.groups) == {"g1"}


def test_a_run_that_waits_for_a_place_and_does_nothing_gives_way(cluster):
    made = cluster(cpus=[2, 2])
    made.seconds(5)
    made.cpus.pop("n1")
    made.seconds(300)
    assert made.sizes() == [4]  # two of it are busy
    made.seconds(1, idle=True)  # between two jobs
    made.seconds(5)
    assert made.sizes() == [4]
    made.seconds(10, idle=True)
    assert made.sizes() == [] and not made.groups
    made.seconds(20)
    assert made.sizes() == [2]


def test_a_run_that_is_slow_to_start_is_waited_for(cluster):
    made = cluster(cpus=[2])
    made.starting = {name: (made.now + 200, group) for name, (_, group) in made.starting.items()}
    made.seconds(250)
    assert made.pool.started == 1 and made.sizes() == [2] and len(made.pool.runs[0].places) == 2


def test_where_nobody_works_a_run_without_a_place_is_tried_again_at_once(cluster, monkeypatch):
    made = cluster(cpus=[2])
    with monkeypatch.context() as patch:
        patch.setattr(made, "place", lambda: made.groups.update({n: g for n, (_, g) in made.starting.items()}))
        made.seconds(int(pool.PLACE_SECONDS) + 2)
    made.starting.clear()
    made.seconds(int(SETTLE_SECONDS) + 2)
    assert made.pool.started == 2 and made.sizes() == [2] and len(made.pool.runs[0].places) == 2


def test_runs_of_one_size_keep_their_room_whichever_says_hello_first(cluster):
    made = cluster(cpus=[64], most=1000)
    made.starting = dict(reversed(made.starting.items()))  # Ray may place the second first
    made.silent = {0, 1}
    made.seconds(30)
    made.silent = {0}
    made.seconds(100)
    assert set(made.groups) == {"g0", "g1"} and made.pool.started == 2
    made.silent = set()
    made.seconds(5)
    assert made.sizes() == [32, 32] and {run.number: run.group for run in made.pool.runs} == {0: "g0", 1: "g1"}
    made.over[0] = True
    made.seconds(1)
    assert "g1" in made.groups and "g0" not in made.groups


def test_what_one_of_two_silent_runs_has_left_does_not_keep_the_other_from_room(cluster):
    made = cluster(cpus=[32], most=1000)
    made.seconds(1)
    made.groups["g9"] = made.groups.pop("g0")  # of a run that has died before it was known
    made.starting["g0"] = made.now, pool._Group(made.groups["g9"].bundles, ())
    made.silent = {0}
    made.seconds(int(pool.PLACE_SECONDS) + int(SETTLE_SECONDS) + 5)
    assert "g9" not in made.groups and len(made.pool.runs) == 1 and len(made.pool.runs[0].places) == 32


def test_how_long_there_was_no_worker_counts_from_when_one_could_have_come(cluster):
    made = cluster(cpus=[2])
    made.now += 400
    assert made.pool.seconds_without() == 400
    made.seconds(5)
    made.cpus = {}
    made.seconds(100)
    assert not made.pool.runs and made.pool.seconds_without() == 505
    made.pool.patient = True  # --wait: nobody could have come
    assert made.pool.seconds_without() == 0
    made.cpus = {"n1": 2}
    made.seconds(int(SETTLE_SECONDS) + 2)
    assert made.sizes() == [2] and made.pool.seconds_without() < SETTLE_SECONDS


def test_a_run_for_which_there_seemed_to_be_room_is_not_tried_at_once_again(cluster, monkeypatch):
    made = cluster(cpus=[2])
    made.seconds(5)
    made.cpus["n1"] = 2
    with monkeypatch.context() as patch:
        patch.setattr(made, "place", lambda: made.groups.update({n: g for n, (_, g) in made.starting.items()}))
        made.seconds(300)  # Ray knows better
    made.starting.clear()
    assert made.pool.started == 2 and made.sizes() == [2] and set(made.groups) == {"g0"}
    made.now += RETRY_SECONDS
    made.seconds(30)
    assert made.sizes() == [2, 2]


def test_what_a_run_has_left_that_was_killed_is_given_back_and_others_take_the_room(cluster):
    made = cluster(cpus=[4])
    made.seconds(5)
    made.cpus["n1"] = 2
    made.seconds(30)
    assert made.sizes() == [4, 2]
    made.over[0] = True
    assert made.seconds(60) == []  # no reason to end: one run is left
    assert made.sizes() == [2, 4] and set(made.groups) == {"g1", "g2"}
    assert made.pool.ended == {"0"}


def test_workers_that_are_broken_keep_their_place_and_are_the_end_where_they_are_all(cluster):
    made = cluster(cpus=[1, 1])
    assert made.seconds(100, broken=["0.0"]) == [] and made.sizes() == [2]
    made.cpus["n2"] = 1
    assert made.seconds(100, broken=["0.0", "0.1"]) == [] and made.sizes() == [2, 1]
    assert made.seconds(1, broken=["0.0", "0.1", "1.0"]) == ["the worker pool has ended before its work was done"]


def test_the_last_run_that_ends_is_the_end_unless_something_was_done(cluster):
    made = cluster(cpus=[4])
    made.seconds(5)
    made.over[0] = True
    assert made.seconds(1) == ["the worker pool has ended before its work was done"]
    assert not made.pool.start_again(0)
    assert made.pool.start_again(3) and made.sizes() == [4]
    assert not made.pool.start_again(3)


def test_kinds_share_the_queue_and_each_has_its_room(cluster):
    made = cluster(Kind(cpus=4, count=1), Kind(cpus=1), cpus=[4, 3])
    assert [(run.kind, run.count) for run in made.pool.runs] == [(0, 1), (1, 3)]
    made.cpus["n2"] = 8
    made.seconds(30)
    assert [(run.kind, run.count) for run in made.pool.runs] == [(0, 1), (1, 3), (1, 8)]


# Looking after workers


class Workers:
    """A pool whose workers are all right, with what is asked of its queue."""

    def __init__(self):
        self.calls, self.ended = [], []
        self.idle = False

    @property
    def queue(self):
        return self

    def __getattr__(self, name):
        return types.SimpleNamespace(remote=lambda *arguments: (name, arguments))

    def answer(self, asked, timeout=None):
        name, arguments = asked
        self.calls.append(name)
        if name == "end":
            self.ended.append(arguments[0])
        if name == "hanging":
            return []
        return types.SimpleNamespace(fatal="", idle=self.idle, quiet_seconds=0.0, jobs_ended=0)

    ended = ()

    def tend(self, stats):
        return ""

    def seconds_without(self):
        return 0.0


@pytest.fixture
def workers(monkeypatch):
    made = Workers()
    monkeypatch.setattr(pool, "ray", types.SimpleNamespace(get=made.answer, nodes=list))
    monkeypatch.setattr(pool, "POLL_SECONDS", 0.01)
    return made


def wait_until(true):
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_workers_are_looked_after_although_it_goes_wrong_now_and_then(workers, monkeypatch):
    looks = []

    def tend(stats):
        looks.append(None)
        if len(looks) % 3:
            raise KeyError("something that nobody has thought of")
        return ""

    monkeypatch.setattr(workers, "tend", tend)
    with pool.watching(workers, lambda stats: None):
        wait_until(lambda: len(looks) > 2 * pool.MAX_FAILED_LOOKS)
    assert not workers.ended


def test_where_it_always_goes_wrong_the_sweep_ends_with_the_reason(workers, monkeypatch):
    def tend(stats):
        raise KeyError("something that nobody has thought of")

    monkeypatch.setattr(workers, "tend", tend)
    with pool.watching(workers, lambda stats: None):
        wait_until(lambda: workers.ended)
    assert workers.ended[0] == (
        "nobody can look after the workers any more: KeyError: 'something that nobody has thought of'"
    )


def test_progress_that_cannot_be_shown_is_told_once_and_ends_nothing(workers, caplog):
    def watch(stats):
        raise UnicodeEncodeError("ascii", "ä", 0, 1, "ordinal not in range")

    with pool.watching(workers, watch):
        wait_until(lambda: workers.calls.count("hanging") > 3)
    assert [record.message.partition(":")[0] for record in caplog.records] == ["progress cannot be shown"]
    assert not workers.ended
