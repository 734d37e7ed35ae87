"""Lengths and rates against closed forms, and against the authors' own schedule."""

import math

import pytest

from raybasin.sweep import schedules


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


# Warm-up, triangles, constants, batches left out


def authors_warmed_up(epoch, epochs, warmup, low, max_lr):
    """The authors' linear_warmup_cosine, per epoch."""
    if epoch < warmup:
        return (1 - epoch / warmup) * low + (epoch / warmup) * max_lr
    return max_lr / 2 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


def test_by_epoch_the_warm_up_is_the_authors_for_swin():
    """102 epochs, a tenth of them warm-up: int(0.1 * 102) = 10, from 5e-7 to 1e-4."""
    found = [schedules.learning_rate(2 * e, 2 * 102, 2, 1e-4, "epoch", warmup=0.1, warmup_lr=5e-7) for e in range(102)]
    assert found == [authors_warmed_up(e, 102, 10, 5e-7, 1e-4) for e in range(102)]
    assert found[0] == 5e-7 and found[10] == 1e-4 == max(found)


def test_by_step_the_warm_up_takes_its_share_of_the_steps():
    rates = [schedules.learning_rate(s, 20, 7, 1.0, warmup=0.25) for s in range(20)]
    assert rates[:5] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert rates[5:] == [schedules.learning_rate(s, 15, 7, 1.0) for s in range(15)]


def test_without_a_warm_up_nothing_changes():
    for by in ("step", "epoch"):
        plain = [schedules.learning_rate(s, 12, 3, 0.3, by) for s in range(12)]
        assert [schedules.learning_rate(s, 12, 3, 0.3, by, warmup=0.0, warmup_lr=0.0) for s in range(12)] == plain


@pytest.mark.parametrize("steps", [2, 3, 8, 101])
def test_a_triangle_rises_and_falls_and_ends_at_its_lowest_rate(steps):
    rates = [schedules.learning_rate(s, steps, 4, 0.5, shape="triangular", low_ratio=0.02) for s in range(steps)]
    t = [(s + 1) / steps for s in range(steps)]
    assert rates == pytest.approx([0.5 * (0.02 + 0.98 * (1 - abs(2 * x - 1))) for x in t])
    assert rates[-1] == pytest.approx(0.01) == min(rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    if steps % 2 == 0:
        assert max(rates) == 0.5


def test_a_triangle_is_garipovs_turned_by_half_a_period():
    """Their cyclic rate (dnn-mode-connectivity, utils.cyclic_learning_rate) over two cycles."""
    steps, high, low = 10, 0.05, 5e-4

    def theirs(iteration):
        t = iteration % steps / steps
        return high * (1 - 2 * t) + low * 2 * t if t < 0.5 else low * (2 - 2 * t) + high * (2 * t - 1)

    ours = [schedules.learning_rate(s, steps, 5, high, shape="triangular", low_ratio=low / high) for s in range(steps)]
    assert ours == pytest.approx([theirs(s + 1 + steps // 2) for s in range(steps)])


def test_a_constant_rate_is_constant():
    assert {schedules.learning_rate(s, 9, 4, 0.3, shape="constant") for s in range(9)} == {0.3}


@pytest.mark.parametrize(
    ("n_images", "batch_size", "sizes"),
    [(10, 4, [4, 4]), (9, 4, [4, 4]), (8, 4, [4, 4]), (3, 4, [3]), (50000, 256, [256] * 195)],
)  # fmt: skip
def test_a_last_batch_that_is_not_full_can_be_left_out_but_never_the_only_one(n_images, batch_size, sizes):
    assert [s.stop - s.start for s in schedules.batches(n_images, batch_size, drop_last=True)] == sizes
