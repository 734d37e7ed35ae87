"""What replicates have in common, and how much less is known of a line for it."""

import math

import numpy as np
import pytest

from raybasin.search import BoundarySearch, hubs
from raybasin.search.line_model import Cell, LineModel

CYCLES = (0.5, 1.0, 2.0)


def measured(moved, per_replicate=9, steepness=3.0, seed=0):
    """Cells around a line at lr_ratio 8 for all lengths, which replicate r moves by moved[r], with noise of 25 %."""
    rng, found = np.random.default_rng(seed), []
    for replicate, shift in enumerate(moved):
        for number in range(per_replicate):
            log_lr = math.log(8) + rng.uniform(-0.5, 0.7)
            rise = math.exp(-steepness * (log_lr - math.log(8) - shift))
            barrier = 0.02 * 8 / (1 + 7 * rise) * rng.lognormal(-0.03, 0.25)
            found.append((math.exp(log_lr), CYCLES[number % 3], barrier, 0.002, replicate))
    return found


def width(cells, known=True):
    search = BoundarySearch((0.5, 64), (0.5, 2), 0.02)
    for *cell, replicate in cells:
        search.tell(*cell, replicate if known else None)
    line = search.boundary([1.0])
    return math.log(line["high"][0] / line["low"][0]), line


def test_cells_of_no_known_replicate_are_independent():
    model = LineModel((math.log(0.5), math.log(64)), (-0.7, 0.7), 0.02, 150)
    cells = [Cell(2.0, 0.0, 0.02, 0.002), Cell(2.2, 0.0, 0.05, 0.002)]
    assert hubs.level(model, model.seen(cells), np.full(1, 2.0)) == (0.0, 0.0)


def test_one_replicate_says_little_of_others_and_many_that_agree_say_much():
    alone, many = measured([0.0], per_replicate=36), measured([0.0] * 12, per_replicate=3)
    added = [width(cells)[0] - width(cells, known=False)[0] for cells in (alone, many)]
    assert added[0] > 0.15 and added[1] < 0.05


def test_replicates_that_differ_widen_the_interval_to_what_their_number_leaves_open():
    moved = [-0.3, 0.3, -0.25, 0.35, 0.2, -0.3]
    (known, line), (unknown, _) = width(measured(moved)), width(measured(moved), known=False)
    assert known > 1.3 * unknown
    assert known > 2 * 0.7 * 1.96 * np.std(moved) / math.sqrt(len(moved))
    assert line["low"][0] < 8 < line["high"][0]


def test_the_order_does_not_matter():
    cells = measured([0.1, -0.1, 0.2])
    for one, other in zip(width(cells)[1].itertuples(), width(cells[::-1])[1].itertuples(), strict=True):
        assert one == other


def test_the_line_of_the_mean_lies_before_the_mean_of_the_lines():
    """Where barriers are exponential by k s^2 / 2, and on the line itself where replicates do not differ."""
    model = LineModel((math.log(0.5), math.log(64)), (-0.7, 0.7), 0.02, 150)
    before_HT = hubs._before(model.shapes)
    high = model.shapes.height_H == 15.0
    assert before_HT[:, 0] == pytest.approx(0, abs=1e-3)
    expected = model.shapes.steepness_H[high] * hubs.DEVIATION_T[2] ** 2 / 2
    assert before_HT[high, 2] == pytest.approx(expected, rel=0.25, abs=2e-3)


def test_intervals_hold_the_line_of_further_replicates():
    """Twelve sets of six replicates that move the line by 20 %."""
    rng, hits, blind = np.random.default_rng(5), 0, 0
    for number in range(12):
        cells = measured(0.2 * rng.standard_normal(6), steepness=4.0, seed=number)
        truth = 8 * math.exp(-4.0 * 0.2**2 / 2 * 0.8)  # the barrier saturates, so a bit less than k s^2 / 2
        for known in (True, False):
            line = width(cells, known)[1]
            held = line["low"][0] <= truth <= line["high"][0]
            hits, blind = hits + (held and known), blind + (held and not known)
    assert hits >= 10 and blind <= hits - 1
