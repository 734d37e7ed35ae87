"""What is done every few seconds while something runs; the sign of life of a sweep is tested with its uses."""

import threading
import time

import pytest

from raybasin.store.heartbeat import every


def test_it_is_done_again_and_again_while_the_block_runs_and_not_after():
    done, enough = [], threading.Event()

    def do():
        done.append(time.monotonic())
        if len(done) == 3:
            enough.set()

    started = time.monotonic()
    with every(0.02, do):
        assert enough.wait(30)
    ended = len(done)
    assert done[0] - started >= 0.02
    time.sleep(0.1)
    assert len(done) == ended


def test_it_ends_with_a_block_that_fails_and_waits_for_what_is_under_way():
    begun, ended, is_begun = [], [], threading.Event()

    def do():
        begun.append(True)
        is_begun.set()
        time.sleep(0.1)
        ended.append(True)

    with pytest.raises(ValueError, match="in the block"), every(0.001, do):
        assert is_begun.wait(30)
        raise ValueError("in the block")
    assert len(begun) == len(ended) > 0
