"""Lengths and rates against closed forms, and against the authors' own schedule."""

import math

import pytest

from raybasin import schedules


@pytest.mark.parametrize(
    ("n_images", "batch_size", "sizes"),
    [
        (1, 4, [1]),
        (4, 4, [4]),
        (5, 4, [5]),
        (6, 4, [4, 2]),
        (8, 4, [4, 4]),
        (9, 4, [4, 5]),
        (3, 2, [3]),
        (45_000, 256, [256] * 175 + [200]),
        (1025, 256, [256, 256, 256, 257]),
    ],
)
def test_batches_cover_every_image_once_and_a_remainder_of_one_joins_the_batch_before(n_images, batch_size, sizes):
    slices = schedules.batches(n_images, batch_size)
    assert [s.stop - s.start for s in slices] == sizes
    assert [i for s in slices for i in range(n_images)[s]] == list(range(n_images))


@pytest.mark.parametrize(
    ("ratio", "epochs", "steps_per_epoch", "steps"),
    [(1, 25, 176, 4400), (0.5, 25, 3, 38), (0.25, 1, 2, 1), (0.25, 1, 1, 0), (0.5, 1, 1, 1), (0.1, 1, 4, 0),
     (1.5, 3, 1, 5), (2, 20, 5, 200)],
)  # fmt: skip
def test_a_cycle_by_step_has_the_nearest_number_of_steps_and_halves_go_up(ratio, epochs, steps_per_epoch, steps):
    assert schedules.cycle_steps(ratio, epochs, steps_per_epoch) == steps


@pytest.mark.parametrize(("ratio", "epochs", "whole"), [(0.5, 25, 12), (0.5, 102, 51), (0.99, 1, 0), (1, 25, 25)])
def test_a_cycle_by_epoch_is_cut_to_whole_epochs_as_the_authors_cut_it(ratio, epochs, whole):
    assert schedules.cycle_steps(ratio, epochs, 7, "epoch") == 7 * whole


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_cosine_by_step_is_the_closed_form_at_every_step(steps):
    rates = [schedules.learning_rate(s, steps, 3, 0.4) for s in range(steps)]
    assert rates[0] == 0.4
    assert rates == [pytest.approx(0.2 * (1 + math.cos(math.pi * s / steps)), rel=1e-15) for s in range(steps)]
    assert rates == sorted(rates, reverse=True) and rates[-1] > 0
    # lr(s) + lr(S - s) = max for s = 1..S-1, and the first step has the whole of it.
    assert sum(rates) == pytest.approx(0.4 / 2 * (steps + 1), rel=1e-12)


def test_cosine_by_step_does_not_know_epochs():
    assert [schedules.learning_rate(s, 10, 3, 1.0) for s in range(10)] == [
        schedules.learning_rate(s, 10, 5, 1.0) for s in range(10)
    ]


def authors_rate(epoch, epochs, max_lr):
    """The authors' formula (cosine annealing per epoch, minimum 0)."""
    return max_lr / 2 * (1 + math.cos(math.pi * epoch / epochs))


@pytest.mark.parametrize(("epochs", "max_lr", "last"), [(25, 0.05, 1.97e-4), (12, 0.2, 3.4e-3), (102, 1e-4, 2.4e-8)])
def test_by_epoch_the_rate_is_the_authors_and_short_cycles_end_hotter(epochs, max_lr, last):
    steps_per_epoch = 4
    rates = [schedules.learning_rate(s, 4 * epochs, steps_per_epoch, max_lr, "epoch") for s in range(4 * epochs)]
    assert rates == [authors_rate(s // 4, epochs, max_lr) for s in range(4 * epochs)]
    assert rates[-1] == pytest.approx(last, rel=0.02)


def test_by_step_every_length_ends_near_zero():
    """The step formula ends at max/4 (pi/S)^2: 12 epochs of 176 steps end as cold as 25 do."""
    for epochs in (12, 25):
        steps = 176 * epochs
        last = schedules.learning_rate(steps - 1, steps, 176, 1.0)
        assert last == pytest.approx((math.pi / steps) ** 2 / 4, rel=1e-5)
