"""Short fine-tunings at several learning rates."""

import math

import pytest
import tiny

from raybasin import console
from raybasin.errors import UserError
from raybasin.jobs import lr_range
from raybasin.jobs.lr_range import Tried

GOOD, BETTER, GONE = Tried(0.01, 0.6, 1.0, 0.1), Tried(0.1, 0.7, 0.8, 0.1), Tried(10.0, 0.2, math.nan, math.nan)


def test_each_rate_is_tried_on_the_sweeps_own_data_and_a_wild_one_is_worse(tmp_path, monkeypatch):
    monkeypatch.setattr(lr_range.tempfile, "tempdir", str(tmp_path))
    said = []
    low, high = lr_range.measure(tiny.spec(), [0.02, 1e6], tell=said.append)
    assert (low.lr, high.lr) == (0.02, 1e6) and 0 < low.val_nll < math.inf and 0 <= low.val_accuracy <= 1
    assert not high.val_nll < low.val_nll and len(said) == 2
    assert lr_range.best([high, low]) == low
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


def test_a_short_one_is_the_sweeps_fine_tuning_and_nothing_else():
    spec = lr_range.short(tiny.spec(recipe__epochs=30, recipe__warmup=0.1, recipe__warmup_lr=0.01), 0.001, 5)
    assert (spec.recipe.lr, spec.recipe.epochs, spec.recipe.warmup_lr) == (0.001, 5, 0.001)
    assert list(spec.methods) == ["local_de"] and spec.replicates == 1 and not spec.soups
    assert spec.data == tiny.spec().data


def test_rates_lie_around_the_sweeps_own():
    assert lr_range.rates(0.02) == [0.002, 0.0063, 0.02, 0.063, 0.2]


def test_the_lowest_nll_is_proposed_and_an_end_of_the_range_said():
    tried = [GOOD, BETTER, GONE]
    assert lr_range.best(tried) == BETTER
    lines = list(console.lr_lines(tried, BETTER))
    assert lines[3].split() == ["10", "diverged"] and lines[4].startswith("recipe.lr: 0.1 ") and len(lines) == 5
    assert "at an end of what was tried" in list(console.lr_lines([GOOD, BETTER], BETTER))[-1]
    with pytest.raises(UserError, match="diverges at every rate"):
        lr_range.best([GONE])
