"""How many workers fit, and how they are looked after; without Ray."""

import time
import types

import pytest

pytest.importorskip("ray")

from raybasin.cluster import pool
from raybasin.sweep import specs


@pytest.mark.parametrize(
    ("cpus", "gpus", "nodes", "free", "expected"),
    [
        (0.9, 0, [{"CPU": 2}], {"CPU": 2}, 2),
        (1.0, 0, [{"CPU": 2}], {"CPU": 2}, 1),  # 0.1 CPU is kept for trials
        (2.0, 0, [{"CPU": 3}, {"CPU": 3}], {"CPU": 6}, 2),  # a worker does not span machines
        (1.0, 0.25, [{"CPU": 16, "GPU": 1}], {"CPU": 16, "GPU": 1}, 4),
        (1.0, 0.4, [{"CPU": 16, "GPU": 2}], {"CPU": 16, "GPU": 2}, 4),  # two fit on each card, not five on both
        (1.0, 2.0, [{"CPU": 16, "GPU": 3}], {"CPU": 16, "GPU": 3}, 1),
        (1.0, 0.5, [{"CPU": 16}], {"CPU": 16}, 0),
        (1.0, 0, [{"CPU": 8}], {"CPU": 2.5}, 2),
        (4.0, 0, [{"CPU": 2}], {"CPU": 2}, 0),
    ],
)
def test_how_many_workers_fit(cpus, gpus, nodes, free, expected):
    assert pool.slots(specs.Workers(cpus=cpus, gpus=gpus), nodes, free) == expected


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

    def has_ended(self):
        return ""


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

    def has_ended():
        looks.append(None)
        if len(looks) % 3:
            raise KeyError("something that nobody has thought of")
        return ""

    monkeypatch.setattr(workers, "has_ended", has_ended)
    with pool.watching(workers, lambda stats: None):
        wait_until(lambda: len(looks) > 2 * pool.MAX_FAILED_LOOKS)
    assert not workers.ended


def test_where_it_always_goes_wrong_the_sweep_ends_with_the_reason(workers, monkeypatch):
    def has_ended():
        raise KeyError("something that nobody has thought of")

    monkeypatch.setattr(workers, "has_ended", has_ended)
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
