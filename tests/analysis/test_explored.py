"""The boundary as a line, and the best point, from the cells of a folder."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import synthetic

from raybasin.analysis import explored
from raybasin.analysis import results as reading
from raybasin.analysis.results import Results
from raybasin.errors import UserError

LOAD = 2 ** math.sqrt(0.02 / 0.019)
"""lr_ratio * cycle_ratio where the barrier of `synthetic` is the threshold."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return reading.open(synthetic.write(tmp_path_factory.mktemp("whole"), synthetic.grid()))


def folder(root: Path, cells: list[synthetic.Row]) -> Results:
    return reading.open(synthetic.write(root, cells))


def test_the_interval_of_a_line_holds_it(whole: Results) -> None:
    found = whole.boundaries.query("method == 'star_sse'")
    assert found["cycle_ratio"].tolist() == [0.5, 1, 2] and set(found["n_members"]) == {5}
    short, middle, long = found.itertuples()
    for row in (short, middle):
        assert row.low < LOAD / row.cycle_ratio < row.high and row.status == "found"
        assert row.high / row.low < 4  # between two rates that are a factor of 2 apart, and a little more
    assert long.low == 0 and long.high > LOAD / 2 and long.status == "undecided"  # it lies at the lowest rate


def test_more_cells_tell_more(whole: Results, tmp_path: Path) -> None:
    dense = [synthetic.cell("star_sse", 2 ** (n / 3), 1, replicate) for n in range(9) for replicate in range(4)]
    [line] = folder(tmp_path, dense).boundaries.itertuples()
    [coarse] = whole.boundaries.query("method == 'star_sse' and cycle_ratio == 1").itertuples()
    assert line.low < LOAD < line.high and line.high / line.low < coarse.high / coarse.low


def test_a_line_beyond_the_rates_is_said_to_be_there(tmp_path: Path) -> None:
    cells = [synthetic.cell("star_sse", lr, 1, 0, barrier_error=0.0) for lr in (0.1, 0.2, 0.4, 0.8)]
    [line] = folder(tmp_path, cells).boundaries.itertuples()
    assert line.high == math.inf and line.status in ("all_in", "undecided")


def test_one_rate_has_no_line_and_a_cell_that_diverged_is_out(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", [synthetic.cell("star_sse", 4, 1, 0)])
    assert one.boundaries.empty and list(one.boundaries) == list(
        folder(tmp_path / "none", [synthetic.cell("local_de", 1, 1, 0)]).boundaries
    )
    cells = [synthetic.cell("star_sse", lr, 1, r, barrier_error=0.0) for lr in (1, 2, 4) for r in (0, 1)]
    gone = {"barrier_error": math.nan, "barrier_error_se": math.nan}
    cells += [synthetic.cell("star_sse", lr, 1, r, **gone) for lr in (16, 64) for r in (0, 1)]
    [line] = folder(tmp_path / "diverged", cells).boundaries.itertuples()
    assert line.low > 2 and line.high < 32


def test_the_best_point_and_where_it_lies(whole: Results) -> None:
    """Soups gain with the load until the barrier costs more: at about twice the load of the threshold."""
    best = whole.best_points("soup").query("method == 'star_sse'").iloc[0]
    cells = whole.cells.query("method == 'star_sse'")
    top = cells.groupby(["lr_ratio", "cycle_ratio"])["val_soup_accuracy"].mean().max()
    assert best["low"] <= top <= best["high"] and best["score"] == pytest.approx(top, abs=0.004)
    assert best["lies"] in ("inside", "at the line", "outside")
    assert best["boundary_low"] <= best["boundary"] <= best["boundary_high"]
    assert best["boundary"] == pytest.approx(LOAD / best["cycle_ratio"], rel=0.5)


def test_a_sweep_without_soups_has_no_best_soup(tmp_path: Path) -> None:
    cells = [synthetic.cell("star_sse", lr, 1, 0, val_soup_accuracy=None) for lr in (1, 2)]
    results = folder(tmp_path, cells)
    assert results.best_points("soup").empty and len(results.best_points("ensemble")) == 1
    with pytest.raises(UserError, match="must be soup or ensemble"):
        results.best_points("hub")


def test_a_cell_says_what_placed_it(whole: Results) -> None:
    assert set(whole.cells["why"]) == {"listed"}


def test_a_folder_without_cells_has_no_lines_and_no_best_points(tmp_path: Path) -> None:
    none = folder(tmp_path, [])
    assert none.boundaries.empty and none.best_points().empty


def test_an_infinite_loss_on_a_path_is_out_for_the_line_too(tmp_path: Path) -> None:
    walls = {8: math.inf, 16: math.inf}
    cells = [
        synthetic.cell("star_sse", lr, 1, r, barrier_error=0.0, barrier_nll=walls.get(lr, 0.0))
        for lr in (1, 2, 4, 8, 16) for r in (0, 1)
    ]  # fmt: skip
    results = folder(tmp_path, cells)
    [line] = results.boundaries.itertuples()
    assert results.barriers.set_index("lr_ratio")["side"].loc[[8, 16]].tolist() == ["out", "out"]
    assert line.low > 1 and line.high < 16


def test_points_outside_of_the_boundarys_interval_are_decided_by_it(tmp_path):
    results = reading.open(synthetic.write(tmp_path, synthetic.grid()))
    sides = explored.sides(results)
    assert len(sides) == 16 and set(sides["by_boundary"]) == {"in", "out", "undecided"}
    ends = results.boundaries.set_index(["method", "cycle_ratio"])
    for row in sides.to_dict("records"):
        low, high = ends.loc[(row["method"], row["cycle_ratio"]), ["low", "high"]]
        expected = "in" if row["lr_ratio"] < low else "out" if row["lr_ratio"] > high else "undecided"
        assert row["by_boundary"] == expected
    one_rate = [synthetic.cell("star_sse", 1, 1, replicate) for replicate in (0, 1)]
    content = synthetic.sweep(methods={"star_sse": {"lr_ratio": [1], "cycle_ratio": [1]}})
    alone = reading.open(synthetic.write(tmp_path / "one", one_rate, content=content))
    assert list(explored.sides(alone)["by_boundary"]) == ["undecided"]
