"""The rules of the queue: what is done next, and what becomes of what cannot be done."""

import random

import pytest
from toy_jobs import toy_job

from raybasin.jobs.scheduler import Outcome, Scheduler


def job(name, needs="", cost=1.0, kind="member"):
    return toy_job(name, kind, cost, needs.split())


def drain(scheduler, worker="w"):
    """The order in which one worker does everything."""
    order = []
    while (taken := scheduler.take(worker)) is not None:
        order.append(taken.job_id)
        scheduler.done(worker, taken.job_id, None)
    return order


def board_of(*jobs, **options):
    scheduler = Scheduler(**options)
    scheduler.add(jobs)
    return scheduler


def test_a_job_waits_for_all_that_it_needs():
    scheduler = board_of(job("a"), job("b"), job("c", "a b", cost=9))
    first, second = scheduler.take("1"), scheduler.take("2")
    assert {first.job_id, second.job_id} == {"a", "b"}
    assert scheduler.take("3") is None
    scheduler.done("1", first.job_id, None)
    assert scheduler.take("3") is None
    scheduler.done("2", second.job_id, None)
    assert scheduler.take("3").job_id == "c"


def test_a_job_is_given_to_one_worker():
    scheduler = board_of(job("a"))
    assert scheduler.take("1").job_id == "a"
    assert scheduler.take("2") is None


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
    scheduler = board_of(job("a", cost=2), job("b", cost=3))
    scheduler.add([job("c", "a", cost=9)])
    assert drain(scheduler) == ["a", "c", "b"]


@pytest.mark.parametrize("kind", ["path", "cell"])
def test_what_finishes_a_cell_goes_before_any_training(kind):
    assert drain(board_of(job("train", cost=100), job("finish", cost=1, kind=kind))) == ["finish", "train"]


def test_the_job_of_a_dead_worker_goes_last_even_before_finishing_ones():
    scheduler = board_of(job("killer", cost=9, kind="cell"), job("a", cost=1))
    assert scheduler.take("1").job_id == "killer"
    assert scheduler.lost("1") == "killer"
    assert drain(scheduler) == ["a", "killer"]
    assert scheduler.outcomes["killer"].ok and scheduler.outcomes["killer"].tries == 2


def test_a_job_fails_when_its_workers_have_died_too_often():
    scheduler = board_of(job("killer"), job("after", "killer"), job("other", cost=0.5), max_tries=2)
    assert scheduler.take("1").job_id == "killer"
    scheduler.lost("1")
    assert scheduler.take("2").job_id == "other"
    assert scheduler.take("3").job_id == "killer"
    scheduler.lost("3")
    assert scheduler.outcomes["killer"] == Outcome(
        False, None, "its worker died 2 times", "killer", "member killer", tries=2
    )
    assert scheduler.outcomes["after"] == scheduler.outcomes["killer"]
    assert scheduler.take("4") is None and not scheduler.idle
    scheduler.done("2", "other", None)
    assert scheduler.idle


def test_a_worker_that_dies_with_empty_hands_changes_nothing():
    scheduler = board_of(job("a"))
    assert scheduler.lost("1") is None
    assert drain(scheduler) == ["a"]


def test_a_failure_goes_on_to_all_that_needs_it_with_its_own_reason():
    scheduler = board_of(job("a"), job("b", "a"), job("c", "b"), job("d", "c x"), job("x"), job("y", "x"))
    taken = scheduler.take("1")
    assert taken.job_id == "a"
    scheduler.failed("1", "a", "Diverged: loss is nan", "File 1", certain=True)
    for name in "abcd":
        assert scheduler.outcomes[name] == Outcome(
            False, None, "Diverged: loss is nan", "a", "member a", tries=1, traceback="File 1"
        )
    assert drain(scheduler) == ["x", "y"]
    assert scheduler.idle


def test_of_two_failures_the_first_is_the_reason():
    scheduler = board_of(job("a"), job("b"), job("c", "a b"))
    workers = {scheduler.take(worker).job_id: worker for worker in ("1", "2")}
    scheduler.failed(workers["b"], "b", "second to be needed, first to fail", certain=True)
    scheduler.failed(workers["a"], "a", "later", certain=True)
    assert (scheduler.outcomes["c"].job_id, scheduler.outcomes["c"].reason) == (
        "b",
        "second to be needed, first to fail",
    )


def test_a_job_added_after_what_it_needs_has_failed_fails_too():
    scheduler = board_of(job("a"))
    scheduler.take("1")
    scheduler.failed("1", "a", "why", certain=True)
    scheduler.add([job("b", "a"), job("c", "b")])
    assert scheduler.take("1") is None
    assert [scheduler.outcomes[name].reason for name in "bc"] == ["why", "why"]
    assert scheduler.idle


def test_adding_again_changes_nothing():
    scheduler = board_of(job("a"), job("b", "a"))
    assert scheduler.take("1").job_id == "a"
    scheduler.add([job("a", cost=50), job("b")])
    assert scheduler.jobs["a"].cost == 1 and scheduler.jobs["b"].needs == ("a",)
    assert scheduler.take("2") is None
    scheduler.done("1", "a", "value")
    scheduler.add([job("a")])
    assert scheduler.outcomes["a"].value == "value"
    assert drain(scheduler) == ["b"]


def test_a_job_done_twice_is_done_once_and_keeps_its_first_value():
    scheduler = board_of(job("a"), job("b", cost=0.5))
    assert scheduler.take("dead").job_id == "a"
    scheduler.lost("dead")  # taken for dead, and yet at work
    assert scheduler.take("2").job_id == "b"
    assert scheduler.take("3").job_id == "a"
    scheduler.done("dead", "a", "early")
    assert scheduler.held == {"2": "b", "3": "a"}
    scheduler.done("3", "a", "late")
    assert scheduler.outcomes["a"].value == "early"
    scheduler.done("2", "b", None)
    assert scheduler.idle and scheduler.held == {}


def test_cost_left_and_counts_follow_the_outcomes():
    scheduler = board_of(job("a", cost=2), job("b", "a", cost=3), job("c", cost=5, kind="cell"))
    assert (scheduler.cost_left, scheduler.count("member"), scheduler.count("cell")) == (10, (0, 2), (0, 1))
    assert scheduler.take("1").job_id == "c"
    assert scheduler.cost_left == 10
    scheduler.done("1", "c", None)
    assert (scheduler.cost_left, scheduler.count("cell")) == (5, (1, 1))
    scheduler.take("1")
    scheduler.failed("1", "a", "why", certain=True)
    assert (scheduler.cost_left, scheduler.count("member")) == (0, (0, 2))


def test_when_nothing_more_can_be_done_everything_open_fails_with_the_reason():
    scheduler = board_of(job("a", cost=2), job("b"), job("c", "b"))
    scheduler.take("1")
    scheduler.done("1", "a", "kept")
    scheduler.fail_all("no worker came")
    assert scheduler.outcomes["a"].ok
    assert [scheduler.outcomes[name].reason for name in "bc"] == ["no worker came"] * 2
    assert scheduler.idle and scheduler.take("1") is None


@pytest.mark.parametrize("seed", range(30))
def test_any_schedule_ends_and_no_job_runs_early_or_twice_at_once(seed):
    """Workers take, finish, raise and die in random order, and are replaced; jobs come in two lots. What is ready is
    known, and each end told once."""
    chance = random.Random(seed)
    jobs = []
    for n in range(chance.randrange(5, 25)):
        needs = chance.sample(range(n), k=min(n, chance.choice([0, 1, 1, 2])))
        kind = chance.choice(["member", "member", "path", "cell"])
        jobs.append(job(f"j{n}", " ".join(f"j{k}" for k in needs), cost=chance.choice([1, 2, 5]), kind=kind))
    half = chance.randrange(len(jobs))
    told = []
    scheduler = board_of(*jobs[:half], on_end=told.append)
    at_work, workers = {}, [f"w{k}" for k in range(4)]
    for turn in range(2000):
        if turn == 10:
            scheduler.add(jobs)
        if turn > 10 and scheduler.idle:
            break
        worker = chance.choice(workers)
        if worker not in at_work:
            taken = scheduler.take(worker, f"machine {worker[1]}")
            if taken is not None:
                assert taken.job_id not in at_work.values()
                assert taken.job_id not in scheduler.outcomes
                assert all(scheduler.outcomes[need].ok for need in taken.needs)
                at_work[worker] = taken.job_id
            else:
                # Nothing to do now means that others are at work, or that a job is theirs, or that all is done.
                assert at_work or scheduler.idle or scheduler.machines.keys() - {worker}
            continue
        open_jobs = [found for found in scheduler.jobs.values() if found.job_id not in scheduler.outcomes]
        assert scheduler.ready == {
            found.job_id
            for found in open_jobs
            if found.job_id not in at_work.values() and all(need in scheduler.outcomes for need in found.needs)
        }
        assert told == list(scheduler.outcomes)
        job_id, fate = at_work.pop(worker), chance.random()
        if fate < 0.1:
            assert scheduler.lost(worker) == job_id
            workers[workers.index(worker)] = f"{worker}'"
        elif fate < 0.25:
            scheduler.failed(worker, job_id, "raised", certain=chance.random() < 0.5)
        else:
            scheduler.done(worker, job_id, None)
    assert scheduler.idle
    for found in jobs:
        outcome = scheduler.outcomes[found.job_id]
        assert outcome.ok == (outcome.job_id == found.job_id and outcome.reason == "")
        if outcome.ok:
            assert all(scheduler.outcomes[need].ok for need in found.needs)
        assert scheduler.tries.get(found.job_id, 0) <= scheduler.max_tries


def test_the_last_words_of_a_worker_are_the_reason():
    scheduler = Scheduler(max_tries=1)
    scheduler.add([toy_job("m")])
    scheduler.take("a")
    scheduler.lost("a", "AcceleratorError: device-side assert")
    assert scheduler.outcomes["m"].reason == "its worker died 1 times: AcceleratorError: device-side assert"


def test_a_job_that_raises_is_tried_once_more_and_then_fails():
    scheduler = board_of(job("a", cost=2), job("b"))
    assert scheduler.take("1").job_id == "a"
    scheduler.failed("1", "a", "OSError: the first time")
    assert drain(scheduler, "1")[0] == "b"  # the others go first
    scheduler = board_of(job("a"))
    for reason in ("OSError: the first time", "OSError: the second time"):
        assert not scheduler.outcomes
        assert scheduler.take("1").job_id == "a"
        scheduler.failed("1", "a", reason, f"File of {reason}")
    said = "OSError: the second time"
    expected = Outcome(False, None, said, "a", "member a", tries=2, traceback=f"File of {said}")
    assert scheduler.outcomes["a"] == expected


def test_a_job_that_raises_is_tried_by_another_worker_while_one_lives():
    scheduler = board_of(job("a"))
    assert scheduler.take("other").job_id == "a"
    scheduler.done("other", "a", None)
    scheduler.add([job("b")])
    scheduler.take("1")
    scheduler.failed("1", "b", "why")
    assert scheduler.take("1") is None
    assert scheduler.take("other").job_id == "b"
    scheduler.done("other", "b", None)
    scheduler.add([job("c")])
    scheduler.take("1")
    scheduler.failed("1", "c", "why")
    scheduler.lost("other")
    assert scheduler.take("1").job_id == "c"


def test_a_job_that_raises_waits_for_a_worker_that_starts():
    scheduler = board_of(job("a"))
    scheduler.joined("2", "machine")
    scheduler.take("1")
    scheduler.failed("1", "a", "why")
    assert scheduler.take("1") is None
    scheduler.lost("2")
    assert scheduler.take("1").job_id == "a"


def test_a_job_that_raises_goes_to_another_machine_while_there_is_one():
    """A machine on which every worker is broken takes no job twice."""
    scheduler = board_of(job("idle"), job("a", cost=0.5))
    assert scheduler.take("far", "2").job_id == "idle"
    assert scheduler.take("1", "1").job_id == "a"
    scheduler.failed("1", "a", "no NVIDIA driver")
    assert scheduler.take("near", "1") is None
    scheduler.done("far", "idle", None)
    assert scheduler.take("near", "1") is None
    assert scheduler.take("far", "2").job_id == "a"


def test_a_job_that_raises_goes_to_a_worker_of_which_nothing_is_known_to_be_wrong():
    scheduler = board_of(job("a", cost=3), job("b", cost=2), job("c"))
    taken = {scheduler.take(worker).job_id: worker for worker in "123"}
    scheduler.failed("1", "a", "why")
    scheduler.failed("2", "b", "why")
    scheduler.done("3", "c", None)
    assert [scheduler.take("1"), scheduler.take("2")] == [None, None]
    assert taken == {"a": "1", "b": "2", "c": "3"} and drain(scheduler, "3") == ["a", "b"]


def test_a_worker_is_broken_when_others_have_done_what_raised_there():
    scheduler = board_of(*(job(name) for name in "abcd"), job("long", cost=9))
    assert scheduler.take("good").job_id == "long"
    for _ in range(4):
        taken = scheduler.take("bad")
        scheduler.failed("bad", taken.job_id, f"no driver for {taken.job_id}")
    assert scheduler.take("bad") is None  # all of it is for the other
    scheduler.done("good", "long", None)
    for done in range(4):
        assert bool(scheduler.broken()) == (done >= 3)
        scheduler.done("good", scheduler.take("good").job_id, None)
    assert scheduler.broken() == {"bad": "no driver for d"}
    scheduler.dismiss("bad")
    assert not scheduler.broken() and scheduler.idle


def test_what_went_wrong_on_a_worker_that_is_dismissed_is_not_counted():
    scheduler = board_of(*(job(name) for name in "abcd"), job("long", cost=9))
    assert scheduler.take("good").job_id == "long"
    for _ in range(4):
        scheduler.failed("bad", scheduler.take("bad").job_id, "no driver")
    scheduler.done("good", "long", None)
    for _ in range(3):
        scheduler.done("good", scheduler.take("good").job_id, None)
    scheduler.dismiss("bad")
    left = scheduler.take("good").job_id
    scheduler.failed("good", left, "OSError")
    assert left not in scheduler.outcomes and scheduler.take("good").job_id == left and scheduler.tries[left] == 2


def test_jobs_that_raise_everywhere_break_no_worker():
    scheduler = board_of(*(job(f"{n}", cost=n) for n in range(8)), job("good"))
    turn = 0
    while not scheduler.idle:
        worker = f"w{turn % 2}"
        turn += 1
        if (taken := scheduler.take(worker)) is not None:
            if taken.job_id == "good":
                scheduler.done(worker, "good", None)
            else:
                scheduler.failed(worker, taken.job_id, "bad job")
        assert not scheduler.broken()
    assert [outcome.ok for outcome in scheduler.outcomes.values()].count(False) == 8


def test_a_worker_on_which_something_succeeds_begins_anew():
    scheduler = board_of(*(job(f"{n}") for n in range(12)), job("long", cost=99))
    assert scheduler.take("good").job_id == "long"
    for n in range(10):
        taken = scheduler.take("bad").job_id
        if n % 3 == 2:
            scheduler.done("bad", taken, None)
        else:
            scheduler.failed("bad", taken, "now and then")
    scheduler.done("good", "long", None)
    while (taken := scheduler.take("good")) is not None:
        scheduler.done("good", taken.job_id, None)
    assert not scheduler.broken()


def test_a_worker_that_says_why_it_dies_is_broken_too_and_one_that_is_killed_is_not():
    for last_words, broken in (("AcceleratorError: unknown", True), ("", False)):
        scheduler = board_of(*(job(f"{n}") for n in range(3)), job("long", cost=99))
        assert scheduler.take("good").job_id == "long"
        for _ in range(3):
            scheduler.take("bad")
            scheduler.lost("bad", last_words)
        assert scheduler.take("bad") is None  # all has been lost there once, one after another
        scheduler.done("good", "long", None)
        while (taken := scheduler.take("good")) is not None:
            scheduler.done("good", taken.job_id, None)
        assert bool(scheduler.broken()) == broken and all(outcome.ok for outcome in scheduler.outcomes.values())


def test_a_job_that_loses_its_worker_goes_on_with_the_successor():
    scheduler = board_of(job("a", cost=2), job("b"))
    assert scheduler.take("1").job_id == "a" and scheduler.take("2").job_id == "b"
    scheduler.lost("1")
    assert scheduler.take("1").job_id == "a"


def test_when_all_workers_raise_everything_it_ends():
    scheduler = board_of(*(job(f"{n}") for n in range(5)))
    for turn in range(100):
        if scheduler.idle:
            break
        worker = f"w{turn % 3}"
        if (taken := scheduler.take(worker)) is not None:
            scheduler.failed(worker, taken.job_id, "no NVIDIA driver")
        assert not scheduler.broken()
    assert scheduler.idle and {outcome.tries for outcome in scheduler.outcomes.values()} == {2}


def test_a_chain_of_a_thousand_is_put_on_the_board_and_fails_as_one():
    names = [f"{n}" for n in range(1000)]
    chain = [job(name, need) for name, need in zip(names, ["", *names], strict=False)]
    scheduler = board_of(*chain)
    assert scheduler.take("w").job_id == "0"
    scheduler.failed("w", "0", "why", certain=True)
    assert scheduler.idle


# What is withdrawn


def fork():
    """A hub that two cells need, each with a branch and a path of its own."""
    names = [
        ("hub", ""),
        ("a", "hub"),
        ("b", "hub"),
        ("path-a", "a"),
        ("path-b", "b"),
        ("cell-a", "path-a"),
        ("cell-b", "path-b"),
    ]
    return board_of(*(job(name, *([need] if need else [])) for name, need in names))


def test_what_only_a_withdrawn_job_needs_goes_with_it():
    scheduler = fork()
    scheduler.withdraw(["cell-a"])
    assert set(scheduler.jobs) == {"hub", "b", "path-b", "cell-b"}
    scheduler.withdraw(["cell-b"])
    assert not scheduler.jobs and scheduler.idle and scheduler.cost_left == 0
    assert scheduler.take("w") is None and scheduler.count("member") == (0, 0)


def test_what_is_begun_or_has_ended_stays_and_nothing_is_done_after_it():
    scheduler = fork()
    scheduler.withdraw(["path-a"])  # the cell needs it
    assert "path-a" in scheduler.jobs
    assert scheduler.take("w").job_id == "hub"
    scheduler.withdraw(["cell-a", "cell-b"])
    assert set(scheduler.jobs) == {"hub"}
    scheduler.done("w", "hub", None)
    assert scheduler.idle and scheduler.take("w") is None
    scheduler.withdraw(["hub", "unknown"])
    assert scheduler.outcomes["hub"].ok


def test_what_was_withdrawn_can_be_put_on_the_board_again():
    scheduler = fork()
    everything = list(scheduler.jobs.values())
    scheduler.withdraw(["cell-a", "cell-b"])
    scheduler.add(everything)
    done = []
    while (taken := scheduler.take("w")) is not None:
        scheduler.done("w", taken.job_id, None)
        done.append(taken.job_id)
    assert scheduler.idle and done.index("hub") == 0 and sorted(done) == sorted(job.job_id for job in everything)


def test_who_waits_for_what_is_withdrawn_is_told():
    told = []
    scheduler = Scheduler(on_end=told.append)
    scheduler.add([job("a"), job("b", "a")])
    scheduler.withdraw(["b"])
    assert told == ["b", "a"]


def test_a_worker_that_was_taken_for_dead_may_come_with_what_was_withdrawn():
    scheduler = board_of(job("a"))
    scheduler.take("1")
    scheduler.lost("1")
    scheduler.withdraw(["a"])
    scheduler.done("1", "a", None)
    assert scheduler.idle and not scheduler.outcomes


def test_weights_that_were_asked_for_again_are_made_all_the_same():
    scheduler = Scheduler()
    scheduler.add([toy_job("r", "retrain"), toy_job("cell", "cell", needs=["r"])])
    scheduler.withdraw(["cell"])
    assert set(scheduler.jobs) == {"r"}
