"""Units and words of what is drawn."""

import math

import pandas as pd
import pytest

from raybasin.analysis.quantities import counted, mean_and_sd, quantity, shortened


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


def test_a_deviation_stands_beside_a_mean_where_there_is_one():
    assert mean_and_sd(pd.Series([0.5, 0.75]), "hub_accuracy") == "62.50 ± 17.68"
    assert mean_and_sd(pd.Series([0.5]), "hub_accuracy") == "50.00"
    assert mean_and_sd(pd.Series([0.5, math.inf]), "ensemble_nll") == "∞"


def test_of_a_long_name_the_end_is_kept():
    assert shortened("x" * 60, 10) == "…" + "x" * 9 and shortened("a\nb") == "a b"
    assert (counted(1, "cell"), counted(2, "cell")) == ("1 cell", "2 cells")
