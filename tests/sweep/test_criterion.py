"""Which barrier decides what is in the basin."""

import math

import pytest
import tiny

from raybasin.sweep import specs
from raybasin.sweep.criterion import Criterion


def test_by_error_it_is_a_low_error_barrier_and_a_finite_loss():
    by_error = Criterion(0.02)
    assert by_error.holds(0.02, 5.0) and not by_error.holds(0.021, 0.0)
    assert not by_error.holds(0.0, math.inf) and not by_error.holds(0.0, math.nan)


def test_by_nll_it_is_a_low_barrier_in_nats_whatever_the_error():
    by_nll = Criterion(0.06, "nll")
    assert by_nll.holds(0.5, 0.06) and not by_nll.holds(0.0, 0.061)
    assert not by_nll.holds(0.0, math.inf) and not by_nll.holds(0.0, math.nan)


@pytest.mark.parametrize(("by", "barrier", "se"), [("error", 0.01, 0.002), ("nll", 0.3, 0.04)])
def test_what_decides_is_the_barrier_of_its_kind_with_its_standard_error(by, barrier, se):
    row = {"barrier_error": 0.01, "barrier_error_se": 0.002, "barrier_nll": 0.3, "barrier_nll_se": 0.04}
    criterion = Criterion(0.02, by)
    assert criterion.deciding(row) == (barrier, se)
    for unknown in (None, math.nan):
        assert criterion.deciding({**row, criterion.barrier_se: unknown}) == (barrier, None)


def test_a_sweep_file_says_by_which():
    assert tiny.spec().basin.criterion == Criterion(0.02, "error")
    assert tiny.spec(basin__by="nll", basin__threshold=0.06).basin.criterion == Criterion(0.06, "nll")
    with pytest.raises(Exception, match="basin.by"):
        specs.parse(tiny.tree(basin__by="accuracy"))
