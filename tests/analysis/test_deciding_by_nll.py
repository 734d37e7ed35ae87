"""`basin.by: nll`: what reads and draws a folder follows the barrier in nats, and the threshold is in nats."""

import math
from pathlib import Path

import numpy as np
import pytest
import synthetic

from raybasin import console
from raybasin.analysis import drawing, figures, maps, report
from raybasin.analysis import results as reading
from raybasin.analysis.results import Results
from raybasin.metrics import intervals
from raybasin.store import tables
from raybasin.store.folders import Folder

HEIGHTS = {  # lr_ratio: (error barrier, barriers in nats of two replicates)
    1: (0.0, (0.0, 0.002)),
    2: (0.0, (0.2, 0.21)),  # in by its error, out by nats
    4: (0.5, (0.01, 0.012)),  # the other way round
    8: (0.0, (0.01, math.inf)),
}
NATS, SE = 0.06, 0.005


def cells(**changes: float) -> list[synthetic.Row]:
    known = {"barrier_error_se": 0.001, "barrier_nll_se": SE, **changes}
    return [
        synthetic.cell("star_sse", lr, 1, replicate, barrier_error=error, barrier_nll=nats, **known)
        for lr, (error, of_replicates) in HEIGHTS.items()
        for replicate, nats in enumerate(of_replicates)
    ]


def written(root: Path, rows: list[synthetic.Row], **basin: object) -> Results:
    methods = {"star_sse": {"lr_ratio": [*HEIGHTS], "cycle_ratio": [1]}}
    return reading.open(synthetic.write(root, rows, content=synthetic.sweep(methods=methods, basin=basin)))


@pytest.fixture(scope="module")
def by_nll(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return written(tmp_path_factory.mktemp("nll"), cells(), by="nll", threshold=NATS)


def test_a_cell_is_in_by_the_barrier_that_the_sweep_file_names(by_nll: Results, tmp_path: Path) -> None:
    by_error = written(tmp_path, cells())
    for results, expected in ((by_nll, {1: 1.0, 2: 0.0, 4: 1.0, 8: 0.5}), (by_error, {1: 1.0, 2: 1.0, 4: 0.0, 8: 0.5})):
        assert results.cells.groupby("lr_ratio")["in_basin"].mean().to_dict() == expected


def test_sides_and_intervals_are_in_nats(by_nll: Results) -> None:
    found = by_nll.barriers.set_index("lr_ratio")
    assert found["side"].to_dict() == {1: "in", 2: "out", 4: "in", 8: "out"} and "barrier_error" not in found
    assert found["barrier_nll"].to_dict() == pytest.approx({1: 0.001, 2: 0.205, 4: 0.011, 8: math.inf})
    half = intervals.Variance(SE**2, 0.01**2 / 2 / 2, 5000, 2).half_width()  # var of two values: squared distance / 2
    assert (found["low"][2], found["high"][2]) == pytest.approx((0.205 - half, 0.205 + half))
    assert found["low"][8] == found["high"][8] == math.inf


def test_the_map_as_a_table_ends_where_nats_say(by_nll: Results) -> None:
    table = reading.grid(by_nll, "barrier_nll", "star_sse", synthetic.CHECKPOINT)
    assert table.set_index("lr_ratio")["in_basin"].to_dict() == {1: True, 2: False, 4: True, 8: False}
    (row,) = reading.boundary(table).to_dict("records")
    assert (row["highest_in"], row["lowest_out"]) == (4, 2)
    inside = table[table["lr_ratio"] < 8]
    assert inside["high"].tolist() == pytest.approx(by_nll.barriers["high"].tolist()[:3])


def test_what_each_image_adds_in_nats_makes_the_interval_over_images_and_replicates(tmp_path: Path) -> None:
    rows = [
        synthetic.cell("star_sse", 1, 1, r, barrier_nll=nats, barrier_nll_se=9.0) for r, nats in enumerate((0.1, 0.2))
    ]
    written(tmp_path, rows, by="nll", threshold=NATS)
    rng = np.random.default_rng(0)
    excess_RN = (rng.normal(size=5000) + rng.normal(size=(2, 5000))).astype(np.float32)
    excess_RN += np.array([[0.1], [0.2]], dtype=np.float32) - excess_RN.mean(axis=1, keepdims=True)
    lower_N = np.zeros(5000).tolist()
    paths = [
        {**{name: row[name] for name in (*synthetic.COMMON, "cell_id")}, "settings_id": synthetic.SETTINGS,
         "path_id": name, "kind": "hub-member", "start_id": "a", "end_id": "b", "split": "val", "t": 0.5,
         "nll": 1.0, "error": 0.1, "nll_excess": height, "nll_excess_se": 0.1, "image_nll_excess": image_N}
        for row, excess_N, nats in zip(rows, excess_RN, (0.1, 0.2), strict=True)
        for name, height, image_N in (("x", nats, excess_N.tolist()), ("y", 0.0, lower_N))
    ]  # fmt: skip
    tables.write(Folder(tmp_path), "paths", "of-images", paths)
    (found,) = reading.open(tmp_path).barriers.to_dict("records")
    half = intervals.variance(excess_RN).half_width()
    assert found["barrier_nll"] == pytest.approx(0.15)
    assert (found["low"], found["high"]) == pytest.approx((max(0.0, 0.15 - half), 0.15 + half))


def test_cells_without_a_standard_error_in_nats_open_and_are_undecided(tmp_path: Path) -> None:
    """As they were written before it was measured."""
    rows = [{name: value for name, value in row.items() if name != "barrier_nll_se"} for row in cells()]
    results = written(tmp_path, rows, by="nll", threshold=NATS)
    assert results.cells["barrier_nll_se"].isna().all()
    assert results.barriers.set_index("lr_ratio")["side"].to_dict() == {
        1: "undecided", 2: "undecided", 4: "undecided", 8: "out",
    }  # fmt: skip
    assert results.barriers["low"].isna().all()
    assert len(results.boundaries) == 1 and "undecided" in report.page(results)


def test_the_line_lies_where_the_barrier_in_nats_crosses_its_threshold(tmp_path: Path) -> None:
    """The synthetic barriers in nats are four times those of the error: 0.08 nats are crossed where 0.02 are."""
    lines = {
        basin["threshold"]: written(tmp_path / str(basin["threshold"]), synthetic.grid(), **basin).boundaries
        for basin in ({"threshold": 0.02}, {"by": "nll", "threshold": 0.08}, {"by": "nll", "threshold": 0.3})
    }
    at = {
        threshold: table.query("method == 'star_sse' and cycle_ratio == 1")["lr_ratio"].item()
        for threshold, table in lines.items()
    }
    assert at[0.08] == pytest.approx(at[0.02], rel=0.1) and at[0.3] > 1.3 * at[0.08]


def test_figures_say_nats(by_nll: Results, tmp_path: Path) -> None:
    figure = maps.map_figure(by_nll, value="barrier_nll")
    drawing.save(figure, tmp_path / "map.png")
    assert figure.axes[-1].get_ylabel() == "barrier NLL on validation images (nats)"
    legend = " ".join(text.get_text() for text in figure.legends[0].get_texts())
    assert "out: mean NLL barrier on validation images above 0.06 nats, or an infinite loss" in legend
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown[1].startswith("0.20") and shown[1].endswith("out") and shown[2].endswith("\nin")
    assert len(figure.findobj(lambda artist: artist.get_gid() == "out")) == 2
    trade_off = figures.trade_off_figure(by_nll)
    drawing.save(trade_off, tmp_path / "trade-off.png")
    assert trade_off.axes[0].get_xlabel() == "NLL barrier on validation images, hub to member (nats)"
    assert any(text.get_text() == "threshold, 0.06 nats" for text in trade_off.legends[0].get_texts())
    assert NATS in [line.get_xdata()[0] for line in trade_off.axes[0].lines]


def test_the_report_and_the_table_at_the_end_say_nats(by_nll: Results) -> None:
    page = report.page(by_nll)
    assert "NLL barrier on validation images, nats" in page and "barriers on validation images in nats" in page
    assert "the largest NLL barrier on validation images from the hub to a member is at most 0.06 nats." in page
    assert "no single one: out at lr_ratio 2 but in at 4" in page
    (table,) = console.summary_tables(by_nll)
    assert "barrier = NLL barrier on validation images, nats" in str(table.title)
    (barriers,) = (list(column.cells) for column in table.columns if column.header == "barrier")
    assert barriers[-1] == "∞" and barriers[1].startswith("0.2")
