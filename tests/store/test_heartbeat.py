"""The thread that does something now and then, beside something else."""

import threading
import time

from raybasin.store.heartbeat import every


def test_what_is_done_every_so_often_is_done_until_the_end_and_not_longer():
    twice, calls = threading.Event(), []

    def do():
        calls.append(None)
        if len(calls) > 1:
            twice.set()

    with every(0.01, do):
        assert twice.wait(30)
    done = len(calls)
    time.sleep(0.05)
    assert len(calls) == done


def test_the_end_waits_for_what_is_under_way():
    begun, ended = threading.Event(), []

    def do():
        begun.set()
        time.sleep(0.05)
        ended.append(None)

    with every(0.01, do):
        assert begun.wait(30)
        assert not ended
    assert ended
