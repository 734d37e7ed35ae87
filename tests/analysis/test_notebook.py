"""What notebooks show of results and intervals."""

import math

import synthetic

from raybasin.analysis import results as reading
from raybasin.metrics.intervals import Interval


def test_results_are_a_table_of_what_they_are(tmp_path):
    whole = reading.open(synthetic.write(tmp_path, synthetic.grid()[:-1]))
    shown = whole._repr_html_()
    assert ">synthetic<" in shown and synthetic.SETTINGS in shown and str(tmp_path) in shown
    assert "33 cells done, 1 of the sweep not finished" in shown
    assert "star_sse lr_ratio=1 cycle_ratio=1, checkpoint resnet50.tv_in1k: on test soup 95.2%" in shown


def test_names_are_escaped_and_damage_is_said(tmp_path):
    rows = synthetic.grid(checkpoint="<script>alert(1)</script>")
    forged = reading.open(synthetic.write(tmp_path, rows))._repr_html_()
    assert "<script>" not in forged and "&lt;script&gt;" in forged
    opened = reading.open(tmp_path)
    (tmp_path / "sweeps" / f"{synthetic.SETTINGS}.yaml").write_text("none: of ours")
    assert "damaged" in opened._repr_html_()


def test_results_without_a_cell_have_no_best_point(tmp_path):
    shown = reading.open(synthetic.write(tmp_path, []))._repr_html_()
    assert "0 cells done, 34 of the sweep not finished" in shown and "best" not in shown


def test_an_interval_says_its_verdict_and_what_it_knows():
    shown = Interval(0.012, 0.002, 0.022, 1000, 2, 1, 0.02, "better")._repr_html_()
    assert shown.startswith("<b>+0.012</b> [+0.002, +0.022] <b>better</b> (95% interval over images and replicates;")
    assert "inf" in Interval(math.nan, -math.inf, math.inf, 10, 1, 1, 1.0, "not distinguishable")._repr_html_()
