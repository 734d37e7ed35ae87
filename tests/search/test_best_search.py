"""The search for the best point, on scores that are known."""

import math
from itertools import product

import numpy as np
import pytest

from raybasin.errors import UserError
from raybasin.search import BestSearch, best


def search(**options):
    return BestSearch(**{"lr_ratio": (0.5, 64), "cycle_ratio": (0.25, 4), "tolerance": 0.002, **options})


def score(lr_ratio, cycle_ratio):
    """The best, 0.63, is at lr_ratio 6 and cycle_ratio 1; beyond 20 it falls off."""
    up = 0.03 * math.exp(-((math.log(lr_ratio / 6) / 1.2) ** 2) - math.log(cycle_ratio) ** 2 / 4)
    return 0.6 + up - 0.2 / (1 + math.exp(-5 * math.log(lr_ratio / 20)))


def finished(found, measure, at_once=3):
    cells = []
    while points := found.ask(at_once):
        assert len(set(points)) == len(points)
        for point in points:
            cells.append((*point, measure(*point)))
            found.tell(*cells[-1])
        assert len(cells) < 300
    return cells


def noisy(seed, sign=1):
    rng = np.random.default_rng(seed)
    return lambda *point: sign * (score(*point) + 0.004 * rng.standard_normal())


def test_a_known_best_point_is_found():
    found = search()
    cells = finished(found, noisy(0))
    best = found.best()
    assert found.stopped == "resolution" and best.regret <= 0.002
    assert score(best.lr_ratio, best.cycle_ratio) > 0.63 - 3 * 0.002
    assert best.low < best.score < best.high
    assert sum(cell[1] for cell in cells) < 100  # five lengths, twenty rates, once each: 155


def test_the_smallest_is_found_alike():
    up, down = search(), search(sign=-1)
    cells = finished(up, noisy(1), 4)
    for lr_ratio, cycle_ratio, value in cells:
        down.tell(lr_ratio, cycle_ratio, -value)
    one, other = up.best(), down.best()
    assert (one.lr_ratio, one.cycle_ratio) == (other.lr_ratio, other.cycle_ratio)
    assert (one.score, one.low, one.high) == pytest.approx((-other.score, -other.high, -other.low))


def test_the_order_of_what_is_told_does_not_matter():
    cells = finished(search(budget_epochs=12), noisy(2))
    one, other = search(), search()
    for number in range(len(cells)):
        one.tell(*cells[number])
        other.tell(*cells[-1 - number])
    assert one.best() == other.best()
    assert one.ask(4) == other.ask(4)


def test_what_diverged_is_not_the_best_and_stops_nothing():
    found = search(max_points=25)
    measure = noisy(3)
    finished(found, lambda lr, cycle: math.nan if lr > 10 else measure(lr, cycle))
    assert found.best().lr_ratio < 12


def test_nothing_but_what_diverged_is_an_error_to_ask_the_best_of():
    found = search()
    found.tell(1, 1, math.nan)
    assert found.ask(1)
    with pytest.raises(UserError, match="told of no score"):
        found.best()


def test_a_budget_is_kept_to():
    found = search(budget_epochs=10, tolerance=1e-6)
    cells = finished(found, noisy(4))
    assert found.stopped == "budget" and 9 < sum(cell[1] for cell in cells) <= 10
    assert found.spent_epochs == pytest.approx(sum(cell[1] for cell in cells))


def test_points_say_why():
    found, measure, words = search(), noisy(5), set()
    while points := found.ask(2):
        for point in points:
            words.add(found.why(*point))
            found.tell(*point, measure(*point))
    assert {"explore", "refine"} <= words <= {"explore", "refine", "replicate"}


def test_a_point_given_up_is_not_asked_for_again():
    found = search()
    points = found.ask(4)
    for point in points:
        found.give_up(*point)
    assert not set(points) & set(found.ask(10))


@pytest.mark.parametrize(("options", "said"), [
    ({"lr_ratio": (4, 2)}, "lr_ratio: must be"), ({"tolerance": 0}, "tolerance: must be above 0"),
])  # fmt: skip
def test_what_cannot_be_searched_is_said(options, said):
    with pytest.raises(UserError, match=said):
        search(**options)
    with pytest.raises(UserError, match="both must be above 0"):
        search().tell(0, 1, 0.5)


def test_where_everything_diverges_it_ends():
    found, cells = search(), 0
    while points := found.ask(1):
        found.tell(*points[0], math.nan)
        cells += 1
        assert cells <= 20
    assert found.stopped == "cannot decide"


def test_what_is_known_is_that_of_the_plain_formulas_over_all_cells():
    """Cells at one place, of unequal number, one of them without a score: the covariance of all cells, inverted. Where
    scores are bent, so is their noise."""
    rng, cells = np.random.default_rng(1), []
    for lr_ratio, cycle_ratio, count in ((1.0, 1.0, 3), (4.0, 0.5, 1), (9.0, 2.0, 2), (30.0, 1.0, 4)):
        cells += [best.Scored(math.log(lr_ratio), math.log(cycle_ratio), float(rng.normal())) for _ in range(count)]
    cells.append(best.Scored(math.log(50), 0.0, -math.inf))
    place_C2 = np.array([[0.0, 0.0], [1.0, 0.5], [3.0, -0.5]])
    known = best._posterior(cells, place_C2)
    finite = np.array([cell.score for cell in cells[:-1]])
    bend, place_N2 = best._scale(finite), np.array([cell[:2] for cell in cells])
    told_N = np.append(finite, finite.min())
    score_N = bend.bent(told_N)
    mean_N = np.array([told_N[(place_N2 == place).all(axis=1)].mean() for place in place_N2])
    slope_N = np.maximum(bend.unit / (bend.unit + np.maximum(bend.top - mean_N, 0)), best.FLATTEST)
    center, scale = bend.bent(finite).mean(), bend.bent(finite).std()
    found = []
    for *lengths, rough, size, noise in product(best.LENGTH_LR, best.LENGTH_CYCLE, best.ROUGH, best.SIZE, best.NOISE):
        own_CC, across_NC, inner_NN = (
            size**2 * ((1 - rough) * best._kernel(*pair, lengths) + rough * best._kernel(*pair, [*best.ROUGH_LENGTHS]))
            for pair in ((place_C2, place_C2), (place_N2, place_C2), (place_N2, place_N2))
        )
        within_NN, apart_N = inner_NN + noise**2 * np.diag(slope_N**2), (score_N - center) / scale
        log_evidence = -(apart_N @ np.linalg.solve(within_NN, apart_N) + np.linalg.slogdet(within_NN)[1]) / 2
        covariance_CC = own_CC - across_NC.T @ np.linalg.solve(within_NN, across_NC)
        found.append((log_evidence, across_NC.T @ np.linalg.solve(within_NN, apart_N), covariance_CC))
    log_evidence_H, mean_HC, covariance_HCC = (np.array(one) for one in zip(*found, strict=True))
    weight_H = np.exp(log_evidence_H - log_evidence_H.max())
    weight_H /= weight_H.sum()
    mean_C, variance_C = weight_H @ mean_HC, np.einsum("h,hcc->c", weight_H, covariance_HCC)
    variance_C += weight_H @ (mean_HC - mean_C) ** 2
    assert known.mean_C == pytest.approx(center + scale * mean_C)
    assert np.diag(known.covariance_CC) == pytest.approx(scale**2 * variance_C)
