"""Units and words of what is drawn."""

import math

import pytest

from raybasin.analysis.quantities import counted, quantity, shortened


@pytest.mark.parametrize(
    ("column", "label"),
    [
        ("ensemble_gain", "ensemble gain (percentage points)"),
        ("over_local_de", "over local_de (percentage points)"),
        ("val_soup_accuracy", "validation soup accuracy (%)"),
        ("barrier_error_se", "barrier error se (percentage points)"),
        ("in_basin", "share of replicates in basin (%)"),
        ("checkpoint_exit_step", "checkpoint exit step (steps)"),
        ("exit_epochs", "exit epochs (epochs)"),
        ("member_barrier_nll", "member barrier NLL (nats)"),
        ("l2_from_hub", "L2 from hub"),
        ("wall_seconds", "wall seconds (s)"),
        ("val_soup_nll", "validation soup NLL (nats)"),
        ("ensemble_mutual_information", "ensemble mutual information (nats)"),
        ("member_ece", "member ece (share)"),
    ],
)
def test_a_column_is_shown_with_its_unit(column, label):
    assert quantity(column).label == label


def test_differences_have_a_sign_and_what_is_absent_a_word():
    assert quantity("soup_gain").text(-0.01) == "−1.00" and quantity("hub_accuracy").text(0.5) == "50.00"
    assert quantity("exit_step").text(math.nan) == "never" and quantity("ensemble_nll").text(math.inf) == "∞"
    assert quantity("ensemble_nll").text(0.12345) == "0.123"


@pytest.mark.parametrize(
    ("estimate", "low", "high", "shown"),
    [
        (0.0044, -0.0091, 0.0179, "+0.4 [−0.9, 1.8]"),
        (0.0044, 0.0043, 0.0045, "+0.44 [0.43, 0.45]"),
        (-0.003, -0.20, 0.19, "0 [−20, 19]"),
        (0.0044, math.nan, math.nan, "+0.44"),
        (math.inf, -math.inf, math.inf, "∞"),
    ],
)
def test_an_interval_has_no_finer_digits_than_it_allows(estimate, low, high, shown):
    assert quantity("soup_gain").with_interval(estimate, low, high).removeprefix("+") == shown.removeprefix("+")
    assert quantity("ensemble_nll").with_interval(1.23456, 1.2, 1.27) == "1.235 [1.200, 1.270]"


def test_of_a_long_name_the_end_is_kept():
    assert shortened("x" * 60, 10) == "…" + "x" * 9 and shortened("a\nb") == "a b"
    assert (counted(1, "cell"), counted(2, "cell")) == ("1 cell", "2 cells")
