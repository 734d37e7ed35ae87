"""The rules of the queue: what is done next, and what becomes of what cannot be done."""

import random

import pytest

from raybasin.board import Board, Outcome
from raybasin.plan import Job


def job(name, needs="", cost=1.0, kind="member"):
    return Job(name, kind, name, float(cost), tuple(needs.split()))


def drain(board, worker="w"):
    """The order in which one worker does everything."""
    order = []
    while (taken := board.take(worker)) is not None:
        order.append(taken.job_id)
        board.done(worker, taken.job_id, None)
    return order


def board_of(*jobs, **options):
    board = Board(**options)
    board.add(jobs)
    return board


def test_a_job_waits_for_all_that_it_needs():
    board = board_of(job("a"), job("b"), job("c", "a b", cost=9))
    first, second = board.take("1"), board.take("2")
    assert {first.job_id, second.job_id} == {"a", "b"}
    assert board.take("3") is None
    board.done("1", first.job_id, None)
    assert board.take("3") is None
    board.done("2", second.job_id, None)
    assert board.take("3").job_id == "c"


def test_a_job_is_given_to_one_worker():
    board = board_of(job("a"))
    assert board.take("1").job_id == "a"
    assert board.take("2") is None


def test_the_longest_job_goes_first():
    assert drain(board_of(job("short", cost=1), job("long", cost=9), job("middle", cost=5))) == [
        "long", "middle", "short",
    ]  # fmt: skip


def test_of_equal_jobs_the_one_with_the_longest_chain_behind_it_goes_first():
    singles = [job(f"star{k}") for k in range(3)]
    chain = [job("sse1"), job("sse2", "sse1"), job("sse3", "sse2")]
    assert drain(board_of(*singles, *chain)) == ["sse1", "sse2", "star0", "star1", "star2", "sse3"]


def test_a_chain_counts_as_long_as_its_longest_branch_and_not_as_its_sum():
    many = [job("hub"), *(job(f"leaf{k}", "hub", cost=3) for k in range(5))]
    assert drain(board_of(*many, job("single", cost=4.5)))[:2] == ["single", "hub"]
    assert drain(board_of(*many, job("single", cost=3.5)))[:2] == ["hub", "single"]


def test_work_added_later_counts_for_what_it_needs():
    board = board_of(job("a", cost=2), job("b", cost=3))
    board.add([job("c", "a", cost=9)])
    assert drain(board) == ["a", "c", "b"]


@pytest.mark.parametrize("kind", ["path", "cell"])
def test_what_finishes_a_cell_goes_before_any_training(kind):
    assert drain(board_of(job("train", cost=100), job("finish", cost=1, kind=kind))) == ["finish", "train"]


def test_the_job_of_a_dead_worker_goes_last_even_before_finishing_ones():
    board = board_of(job("killer", cost=9, kind="cell"), job("a", cost=1))
    assert board.take("1").job_id == "killer"
    assert board.lost("1") == "killer"
    assert drain(board) == ["a", "killer"]
    assert board.outcomes["killer"].ok and board.outcomes["killer"].tries == 2


def test_a_job_fails_when_its_workers_have_died_too_often():
    board = board_of(job("killer"), job("after", "killer"), job("other", cost=0.5), max_tries=2)
    assert board.take("1").job_id == "killer"
    board.lost("1")
    assert board.take("2").job_id == "other"
    assert board.take("3").job_id == "killer"
    board.lost("3")
    assert board.outcomes["killer"] == Outcome(False, reason="its worker died 2 times", job_id="killer", tries=2)
    assert board.outcomes["after"] == board.outcomes["killer"]
    assert board.take("4") is None and not board.idle
    board.done("2", "other", None)
    assert board.idle


def test_a_worker_that_dies_with_empty_hands_changes_nothing():
    board = board_of(job("a"))
    assert board.lost("1") is None
    assert drain(board) == ["a"]


def test_a_failure_goes_on_to_all_that_needs_it_with_its_own_reason():
    board = board_of(job("a"), job("b", "a"), job("c", "b"), job("d", "c x"), job("x"), job("y", "x"))
    taken = board.take("1")
    assert taken.job_id == "a"
    board.failed("1", "a", "ValueError: loss is nan")
    for name in "abcd":
        assert board.outcomes[name] == Outcome(False, reason="ValueError: loss is nan", job_id="a", tries=1)
    assert drain(board) == ["x", "y"]
    assert board.idle


def test_of_two_failures_the_first_is_the_reason():
    board = board_of(job("a"), job("b"), job("c", "a b"))
    workers = {board.take(worker).job_id: worker for worker in ("1", "2")}
    board.failed(workers["b"], "b", "second to be needed, first to fail")
    board.failed(workers["a"], "a", "later")
    assert (board.outcomes["c"].job_id, board.outcomes["c"].reason) == ("b", "second to be needed, first to fail")


def test_a_job_added_after_what_it_needs_has_failed_fails_too():
    board = board_of(job("a"))
    board.take("1")
    board.failed("1", "a", "why")
    board.add([job("b", "a"), job("c", "b")])
    assert board.take("1") is None
    assert [board.outcomes[name].reason for name in "bc"] == ["why", "why"]
    assert board.idle


def test_adding_again_changes_nothing():
    board = board_of(job("a"), job("b", "a"))
    assert board.take("1").job_id == "a"
    board.add([job("a", cost=50), job("b")])
    assert board.jobs["a"].cost == 1 and board.jobs["b"].needs == ("a",)
    assert board.take("2") is None
    board.done("1", "a", "value")
    board.add([job("a")])
    assert board.outcomes["a"].value == "value"
    assert drain(board) == ["b"]


def test_a_job_done_twice_is_done_once_and_keeps_its_first_value():
    board = board_of(job("a"), job("b", cost=0.5))
    assert board.take("dead").job_id == "a"
    board.lost("dead")  # taken for dead, and yet at work
    assert board.take("2").job_id == "b"
    assert board.take("3").job_id == "a"
    board.done("dead", "a", "early")
    assert board.held == {"2": "b", "3": "a"}
    board.done("3", "a", "late")
    assert board.outcomes["a"].value == "early"
    board.done("2", "b", None)
    assert board.idle and board.held == {}


def test_cost_left_and_counts_follow_the_outcomes():
    board = board_of(job("a", cost=2), job("b", "a", cost=3), job("c", cost=5, kind="cell"))
    assert (board.cost_left(), board.count("member"), board.count("cell")) == (10, (0, 2), (0, 1))
    assert board.take("1").job_id == "c"
    assert board.cost_left() == 10
    board.done("1", "c", None)
    assert (board.cost_left(), board.count("cell")) == (5, (1, 1))
    board.take("1")
    board.failed("1", "a", "why")
    assert (board.cost_left(), board.count("member")) == (0, (0, 2))


def test_when_nothing_more_can_be_done_everything_open_fails_with_the_reason():
    board = board_of(job("a", cost=2), job("b"), job("c", "b"))
    board.take("1")
    board.done("1", "a", "kept")
    board.fail_all("no worker came")
    assert board.outcomes["a"].ok
    assert [board.outcomes[name].reason for name in "bc"] == ["no worker came"] * 2
    assert board.idle and board.take("1") is None


@pytest.mark.parametrize("seed", range(30))
def test_any_schedule_ends_and_no_job_runs_early_or_twice_at_once(seed):
    """Workers take, finish, fail and die in random order, and are replaced; jobs come in two lots."""
    chance = random.Random(seed)
    jobs = []
    for n in range(chance.randrange(5, 25)):
        needs = chance.sample(range(n), k=min(n, chance.choice([0, 1, 1, 2])))
        kind = chance.choice(["member", "member", "path", "cell"])
        jobs.append(job(f"j{n}", " ".join(f"j{k}" for k in needs), cost=chance.choice([1, 2, 5]), kind=kind))
    half = chance.randrange(len(jobs))
    board = board_of(*jobs[:half])
    at_work, workers = {}, [f"w{k}" for k in range(4)]
    for turn in range(2000):
        if turn == 10:
            board.add(jobs)
        if turn > 10 and board.idle:
            break
        worker = chance.choice(workers)
        if worker not in at_work:
            taken = board.take(worker)
            if taken is not None:
                assert taken.job_id not in at_work.values()
                assert taken.job_id not in board.outcomes
                assert all(board.outcomes[need].ok for need in taken.needs)
                at_work[worker] = taken.job_id
            else:
                # Nothing to do now means that somebody else is at work, or that all is done.
                assert at_work or board.idle
            continue
        job_id, fate = at_work.pop(worker), chance.random()
        if fate < 0.1:
            assert board.lost(worker) == job_id
            workers[workers.index(worker)] = f"{worker}'"
        elif fate < 0.15:
            board.failed(worker, job_id, "raised")
        else:
            board.done(worker, job_id, None)
    assert board.idle
    for found in jobs:
        outcome = board.outcomes[found.job_id]
        assert outcome.ok == (outcome.job_id == found.job_id and outcome.reason == "")
        if outcome.ok:
            assert all(board.outcomes[need].ok for need in found.needs)
        assert board.tries.get(found.job_id, 0) <= board.max_tries


def test_a_job_comes_after_another_that_failed():
    board = Board()
    board.add([Job("local_de", "member", "l", 1.0), Job("cell", "cell", "c", 1.0, after=("local_de",))])
    assert board.take("a").job_id == "local_de"
    assert board.take("b") is None
    board.failed("a", "local_de", "out of memory")
    assert board.take("a").job_id == "cell"


def test_the_last_words_of_a_worker_are_the_reason():
    board = Board(max_tries=1)
    board.add([Job("m", "member", "m", 1.0)])
    board.take("a")
    board.lost("a", "AcceleratorError: device-side assert")
    assert board.outcomes["m"].reason == "its worker died 1 times: AcceleratorError: device-side assert"
