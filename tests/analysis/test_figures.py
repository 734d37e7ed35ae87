"""Figures say what the tables say."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from raybasin.analysis import charts, drawing, figures, maps, scales
from raybasin.analysis import results as reading
from raybasin.analysis.results import Results
from raybasin.errors import UserError
from raybasin.store import tables
from raybasin.store.folders import Folder
from raybasin.store.schemas import COMMON


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("whole")
    return reading.open(synthetic.write(root, synthetic.grid()))


def star(root: Path, lrs: list[float], cycles: list[float], cells: Iterable[synthetic.Row]) -> Results:
    """A folder whose sweep asks for this grid of star_sse, and which holds `cells`."""
    content = synthetic.sweep(methods={"star_sse": {"lr_ratio": lrs, "cycle_ratio": cycles}})
    return reading.open(synthetic.write(root, cells, content=content))


def drawn(figure: Figure, gid: str) -> int:
    """How many cells of this state (done, failed, missing) or side (out) there are."""
    return len(figure.findobj(lambda artist: artist.get_gid() == gid))


def panels(figure: Figure) -> list[Axes]:
    """The axes of the maps, without those of the colour bar."""
    return [axis for axis in figure.axes if axis.get_xscale() == "log"]


def texts(figure: Figure) -> Iterator[str]:
    """What stands in the cells."""
    return (text.get_text() for axis in panels(figure) for text in axis.texts)


def titles(figure: Figure) -> str:
    return "\n".join(axis.get_title(loc="left") for axis in panels(figure))


# The map


@pytest.mark.parametrize(
    ("lrs", "cycles"),
    [
        ([1, 2, 4, 8], [0.5, 1, 2]),
        ([0.5, 1, 2, 3, 8, 16], [0.1, 0.5, 0.6, 2]),
        ([4], [0.5]),
        ([1, 2, 4, 8], [1]),
    ],
    ids=["4x3", "irregular 6x4", "1x1", "4x1"],
)
def test_a_map_has_one_cell_per_point_of_the_grid(tmp_path: Path, lrs: list[float], cycles: list[float]) -> None:
    cells = [synthetic.cell("star_sse", lr, cycle, 0) for lr, cycle in product(lrs, cycles)]
    figure = maps.map_figure(star(tmp_path, lrs, cycles, cells))
    drawing.save(figure, tmp_path / "map.png")
    assert drawn(figure, "done") == len(lrs) * len(cycles)
    assert drawn(figure, "out") == sum(lr * cycle > synthetic.IN_UP_TO for lr, cycle in product(lrs, cycles))
    (axis,) = panels(figure)
    assert axis.get_xticks().tolist() == sorted(cycles)
    assert axis.get_yticks().tolist() == sorted(lrs)
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_cells_meet_at_geometric_midpoints() -> None:
    np.testing.assert_allclose(maps.scale([16, 1, 4]).edges, [0.5, 2, 8, 32])
    np.testing.assert_allclose(maps.scale([1, 4, 64]).edges, [0.5, 2, 16, 256])
    np.testing.assert_allclose(maps.scale([3]).edges, [3 / 2**0.5, 3 * 2**0.5])


def of(axis: Axes, gid: str) -> list[Line2D]:
    return [line for line in axis.lines if line.get_gid() == gid]


def test_the_map_draws_the_line_of_its_data_with_its_interval(whole: Results) -> None:
    (axis,) = panels(maps.map_figure(whole))
    cycles, rates = of(axis, "boundary")[-1].get_data()
    assert cycles[0] <= 0.5 and cycles[-1] >= 2
    found = whole.boundaries.query("method == 'star_sse'")
    drawn_at = np.exp(np.interp(np.log(found["cycle_ratio"]), np.log(cycles), np.log(rates)))
    np.testing.assert_allclose(drawn_at, found["lr_ratio"], rtol=0.02)
    assert len(axis.findobj(lambda artist: artist.get_gid() == "interval")) == 1


def test_a_map_of_one_rate_has_no_line(tmp_path: Path) -> None:
    cells = [synthetic.cell("star_sse", 4, cycle, 0) for cycle in (0.5, 1)]
    (axis,) = panels(maps.map_figure(star(tmp_path, [4], [0.5, 1], cells)))
    assert not of(axis, "boundary")


def test_points_of_a_search_are_marks(tmp_path: Path) -> None:
    places = [(1, 1), (2.5, 0.5), (6.3, 0.5), (3.1, 1), (2.1, 2), (0.7, 2), (4.4, 1)]
    cells = [synthetic.cell("star_sse", lr, cycle, replicate) for lr, cycle in places for replicate in (0, 1)]
    figure = maps.map_figure(star(tmp_path, [1, 4], [1], cells[:-1]))
    drawing.save(figure, tmp_path / "map.png")
    (axis,) = panels(figure)
    assert len(axis.collections) - 1 == len(places) + 1  # the interval; one that is asked for and not finished
    out = sum(synthetic.barrier(*place) > 0.02 for place in places)
    assert (drawn(figure, "out"), drawn(figure, "done")) == (out, len(places) - out) and drawn(figure, "missing") == 1
    assert of(axis, "boundary") and not list(texts(figure))
    legend = figure.legends[0] if figure.legends else axis.get_legend()
    assert "larger: more replicates" in "".join(text.get_text() for text in legend.get_texts())


def test_values_that_nobody_could_read_are_not_written(tmp_path: Path) -> None:
    lrs, cycles = [float(f"{lr:.4g}") for lr in np.geomspace(0.5, 16, 60)], [0.5, 1.0, 2.0]
    cells = [synthetic.cell("star_sse", lr, cycle, 0) for lr in lrs for cycle in cycles]
    figure = maps.map_figure(star(tmp_path, lrs, cycles, cells))
    assert not list(texts(figure)) and drawn(figure, "done") == len(cells)
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert "values that have no room: `raybasin figures`" in legend
    assert not {"undecided by its own replicates", "replicates disagree"} & legend


def test_a_cell_shows_its_mean_and_its_side(tmp_path: Path) -> None:
    cells = [
        synthetic.cell("star_sse", lr, 1, replicate, hub_accuracy=0.5, ensemble_accuracy=0.5 + gain,
                       barrier_error=height, barrier_error_se=error)
        for lr, replicate, gain, height, error in (
            (1, 0, 0.010, 0.0, 0.001), (1, 1, 0.020, 0.0, 0.001),  # both in
            (2, 0, -0.01, 0.5, 0.001), (2, 1, -0.02, 0.5, 0.001),  # both out
            (4, 0, 0.000, 0.0, 0.001), (4, 1, 0.004, 0.5, 0.001),  # disagree, and so are undecided
            (8, 0, 0.010, 0.019, 0.01),  # undecided, and the other replicate is not finished
        )
    ]  # fmt: skip
    results = star(tmp_path, [1, 2, 4, 8, 16, 32], [1], cells)
    tables.write(Folder(tmp_path), "failures", "f", [synthetic.failure("star_sse", 16, 1, 0, "NaN loss")])
    figure = maps.map_figure(results)
    shown = ["+1.50\nin", "−1.50\nout", "+0.20\n1/2 in ?", "+1.00\nin ?, n=1", "failed", "missing"]
    assert list(texts(figure)) == shown
    assert (drawn(figure, "done"), drawn(figure, "failed"), drawn(figure, "missing")) == (4, 1, 1)
    legend = " ".join(text.get_text() for text in figure.legends[0].get_texts())
    for words in ("above 2 points", "undecided", "disagree", "not finished"):
        assert words in legend


def test_gains_are_coloured_around_white_and_accuracies_are_not(whole: Results) -> None:
    gain = maps.map_figure(whole).axes[-1]
    assert gain.get_ylim()[0] == -gain.get_ylim()[1]
    accuracy = maps.map_figure(whole, value="ensemble_accuracy").axes[-1]
    assert accuracy.get_ylim()[0] > 90
    assert accuracy.get_ylabel() == "ensemble accuracy (%)"


def test_a_panel_per_method_and_checkpoint_on_one_colour_scale(tmp_path: Path) -> None:
    second = "/models/$two$/net_1.safetensors"
    content = synthetic.sweep(model={"name": "resnet50", "pretrained": [synthetic.CHECKPOINT, second]})
    cells = [*synthetic.grid(replicates=1), *synthetic.grid(replicates=1, checkpoint=second)]
    results = reading.open(synthetic.write(tmp_path, cells, content=content))
    figure = maps.map_figure(results, method=None)
    drawing.save(figure, tmp_path / "map.svg")  # a name between dollars would be read as a formula
    assert len(panels(figure)) == 4
    assert len(figure.axes) == 5  # one colour bar
    assert drawn(figure, "done") == 2 * (12 + 4)
    assert r"checkpoint /models/\$two\$/net_1.safetensors" in titles(figure)


def test_the_title_names_the_line_to_beat_where_local_de_is_one(whole: Results) -> None:
    assert "5 members, 2 replicates\nline to beat: local_de +1.20 (n=2)" in titles(maps.map_figure(whole))
    assert "to beat" not in titles(maps.map_figure(whole, value="soup_gain"))


def test_methods_without_a_map_are_refused(tmp_path: Path) -> None:
    results = reading.open(synthetic.write(tmp_path, [synthetic.cell("local_de", 1, 1, 0)]))
    with pytest.raises(UserError, match="no finished cell of star_sse or sse"):
        maps.map_figure(results, method=None)


# The other figures


def test_the_trade_off_has_a_mark_per_cell_at_its_barrier_and_gain(whole: Results) -> None:
    ensemble, soup = figures.trade_off_figure(whole).axes
    gains = reading.gains(whole.cells)
    for axis, column in ((ensemble, "ensemble_gain"), (soup, "soup_gain")):
        # Lines with a marker are cells; the others are the threshold and zero.
        marks = np.concatenate([line.get_xydata() for line in axis.lines if line.get_marker() != "None"])
        expected = 100 * gains[["barrier_error", column]].to_numpy()
        np.testing.assert_allclose(sorted(marks.tolist()), sorted(expected.tolist()))


def test_the_trade_off_says_so_where_no_soups_were_made(tmp_path: Path) -> None:
    cells = [synthetic.cell("star_sse", lr, 1, 0, soup_accuracy=None) for lr in (1, 2)]
    _, soup = figures.trade_off_figure(star(tmp_path, [1, 2], [1], cells)).axes
    assert [text.get_text() for text in soup.texts] == ["no soup gain was computed"]


def test_in_and_out_of_the_basin_differ_by_more_than_colour(whole: Results) -> None:
    for axis in figures.diversity_figure(whole).axes:
        marks = [line for line in axis.lines if line.get_marker() != "None"]
        hollow = [line for line in marks if line.get_markerfacecolor() == "none"]
        assert sum(len(line.get_xdata()) for line in hollow) == (~whole.cells["in_basin"]).sum()
        assert sum(len(line.get_xdata()) for line in marks) == len(whole.cells)


def test_diversity_is_shown_with_the_gain_and_the_rates(whole: Results) -> None:
    figure = figures.diversity_figure(whole)
    gain = figure.axes[1]
    marks = np.concatenate([line.get_xydata() for line in gain.lines if line.get_marker() != "None"])
    cells = reading.gains(whole.cells)
    expected = np.stack([cells["normalised_disagreement"], 100 * cells["ensemble_gain"]], axis=1)
    np.testing.assert_allclose(sorted(marks.tolist()), sorted(expected.tolist()))
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [name for name in named if "lr_ratio" in name] == [f"lr_ratio {rate}" for rate in (1, 2, 4, 8)]


@pytest.mark.parametrize("ends", [(0, 0.4), (0, 3), (-90, 2), (-0.5, 0.7), (0, 60000), (-3000, 0.1)])
def test_ticks_of_a_symmetric_axis_are_several_round_numbers_that_do_not_touch(ends: tuple[float, float]) -> None:
    scale = scales.SymmetricLog(1.0)
    ticks = scale.ticks(*ends)
    assert 3 <= len(ticks) <= 12 and 0 in ticks and ticks == sorted(ticks)
    assert all(ends[0] <= tick <= ends[1] for tick in ticks)
    low, high = scale.positions(ends)
    assert (np.diff(scale.positions(ticks)) >= 0.085 * (high - low)).all()
    assert all(f"{abs(tick):e}"[0] in "0125" for tick in ticks)


def test_positions_on_a_symmetric_axis_are_those_of_matplotlib() -> None:
    from matplotlib.scale import SymmetricalLogTransform

    values = [-300.0, -2.0, -0.5, 0.0, 0.3, 1.0, 7.0, 1e4]
    theirs = SymmetricalLogTransform(10, 0.7, 0.6).transform(np.array(values))
    ours = scales.SymmetricLog(0.7).positions(values)
    np.testing.assert_allclose(ours / ours[-1], theirs / theirs[-1])


def test_every_path_is_drawn_in_nats_and_in_percent(whole: Results) -> None:
    cell = synthetic.cell("star_sse", 8, 2, 0)
    figure = figures.paths_figure(whole, cell["cell_id"])
    assert [axis.get_title() for axis in figure.axes[:2]] == ["hub-member: 4 paths", "member-member: 3 paths"]
    nll, _, error, _ = figure.axes
    assert len(nll.lines) == 2 * 4  # a path, and the line between its ends
    assert [text.get_text() for text in nll.get_legend().get_texts()] == [
        "hub to 1",
        "hub to 2",
        "hub to 3",
        "hub to 4",
    ]
    middle = 5
    assert nll.lines[0].get_ydata()[middle] == pytest.approx(0.205 + cell["barrier_nll"])
    assert error.lines[0].get_ydata()[middle] == pytest.approx(5.1 + 100 * cell["barrier_error"])


def test_no_two_paths_look_alike(whole: Results) -> None:
    pairs = list(combinations(range(8), 2))
    styles = figures.path_styles(pairs)
    assert len(set(styles.values())) == len(pairs) == 28
    assert [styles[0, member][1] for member in range(1, 8)] == list(figures.MEMBER_COLOURS[1:])
    figure = figures.paths_figure(whole, synthetic.cell("star_sse", 8, 2, 0)["cell_id"])
    of_nll = [line for axis in figure.axes[:2] for line in axis.lines if line.get_label()[0] != "_"]
    assert len({(line.get_color(), line.get_marker()) for line in of_nll}) == len(of_nll) == 7


def test_the_interval_is_shaded_over_tiles_alone_and_named(tmp_path: Path) -> None:
    cells = [synthetic.cell("star_sse", lr, cycle, replicate) for lr, cycle in product([1, 2, 4, 8], [0.5, 2])
             for replicate in (0, 1)]  # fmt: skip
    cells += [synthetic.cell("sse", lr, 1, replicate) for lr in (1, 2) for replicate in (0, 1)]
    methods = {"star_sse": {"lr_ratio": [1, 2, 4, 8], "cycle_ratio": [0.5, 2]},
               "sse": {"lr_ratio": [1, 2], "cycle_ratio": [1]}}  # fmt: skip
    results = reading.open(synthetic.write(tmp_path, cells, content=synthetic.sweep(methods=methods)))
    figure = maps.map_figure(results, method=None)
    axis = panels(figure)[1]
    assert axis.get_title(loc="left").startswith("sse")
    [shade] = axis.findobj(lambda artist: artist.get_gid() == "interval")
    path, _ = shade.get_clip_path().get_transformed_path_and_affine()
    of_tiles = path.transformed(axis.transScale.inverted()) if path.vertices.max() < 2 else path
    assert [of_tiles.contains_point((1, rate)) for rate in (1, 2, 4, 8)] == [True, True, False, False]
    dashed = [line for line in axis.lines if line.get_linestyle() == "--"]
    assert dashed and all(len(set(line.get_ydata())) == 1 for line in dashed)
    end = results.boundaries.query("method == 'sse'")["low"].item()
    assert end in [line.get_ydata()[0] for line in dashed]
    assert maps.INTERVAL in [text.get_text() for text in figure.legends[0].get_texts()]


def test_bins_of_few_predictions_are_not_drawn_and_the_figure_says_so(
    whole: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    bins = pd.DataFrame({"checkpoint": synthetic.CHECKPOINT, "method": "star_sse", "lr_ratio": 1.0, "cycle_ratio": 1.0,
                         "n_members": 5, "bin": range(3), "images": [4, 5, 500], "confidence": [0.2, 0.5, 0.9],
                         "accuracy": [1.0, 0.6, 0.9]})  # fmt: skip
    monkeypatch.setattr(figures.frames, "reliability", lambda results: bins)
    figure = figures.reliability_figure(whole)
    [marks] = figure.axes[0].findobj(lambda artist: artist.get_gid() == "bins")
    assert marks.get_offsets().tolist() == [[0.5, 0.6], [0.9, 0.9]]
    few, many = np.sqrt(marks.get_sizes())
    assert many - few == pytest.approx(5)
    assert "bins of 5 predictions or more" in figure.axes[0].get_xlabel()
    [chart] = charts.reliability_charts(whole)
    assert chart["data"][1]["x"] == [0.5, 0.9]
    assert chart["data"][1]["marker"]["size"][1] - chart["data"][1]["marker"]["size"][0] == pytest.approx(8, rel=1e-3)


def test_figures_say_on_which_images_barriers_decide_and_draw_their_paths(tmp_path: Path) -> None:
    content = synthetic.sweep(basin={"split": "train"})
    results = reading.open(synthetic.write(tmp_path, synthetic.grid(), content=content))
    barriers = maps.map_figure(results, "barrier_error")
    assert barriers.axes[-1].get_ylabel() == "barrier error on training images (percentage points)"
    for figure in (barriers, maps.map_figure(results)):
        assert figure.get_suptitle().endswith("in or out by the error barrier on training images")
        legend = [text.get_text() for text in figure.legends[0].get_texts()]
        assert "out: mean error barrier on training images above 2 points" in legend
    assert figures.trade_off_figure(results).axes[0].get_xlabel().startswith("error barrier on training images, hub")
    paths = figures.paths_figure(results, synthetic.cell("star_sse", 8, 2, 0)["cell_id"])
    assert paths.get_suptitle().endswith("paths on training images")
    assert paths.axes[2].lines[0].get_ydata()[0] == pytest.approx(3)


def test_paths_that_were_not_evaluated_are_refused(whole: Results) -> None:
    with pytest.raises(UserError, match="has no paths on split test"):
        figures.paths_figure(whole, synthetic.cell("sse", 1, 1, 0)["cell_id"], split="test")


def test_sizes_start_at_the_hub_and_show_the_point_that_is_best_on_validation(whole: Results) -> None:
    figure = figures.sizes_figure(whole)
    axis = figure.axes[0]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["local_de, n=2", "star_sse lr 1, cycle 2, n=2", "sse lr 4, cycle 0.5, n=2"]
    local_de = axis.containers[0].lines[0]
    np.testing.assert_allclose(local_de.get_ydata(orig=False)[[0, -1]], [95.1, 96.3])


def write_soups(root: Path, cells: list[synthetic.Row], accuracy: Callable[[synthetic.Row, int], float]) -> None:
    """Rows of `scores` of the uniform soups of every size, and of hubs with re-estimated statistics."""
    rows = []
    for cell in cells:
        common = {name: cell[name] for name in (*COMMON, "cell_id")} | {"split": "test", "bn": "reestimated"}
        rows.append({**common, "predictor_id": cell["hub_id"], "kind": "member", "n_members": 1, "accuracy": 0.95})
        for size in range(2, cell["n_members"] + 1):
            own = {"predictor_id": f"{cell['cell_id']}-{size}", "kind": "uniform_soup", "n_members": size}
            rows.append({**common, **own, "accuracy": accuracy(cell, size)})
    tables.write(Folder(root), "scores", "soups", rows)


def test_soups_of_every_size_stand_below_and_do_not_hide_what_is_near_the_hub(tmp_path: Path) -> None:
    cells = synthetic.grid()
    root = synthetic.write(tmp_path, cells)
    write_soups(root, cells, lambda cell, size: 0.2 if cell["method"] == "local_de" else 0.95 + 0.002 * size)
    figure = figures.sizes_figure(reading.open(root))
    ensembles, soups = figure.axes
    assert ensembles.get_ylabel().startswith("ensemble accuracy")
    assert soups.get_ylabel().startswith("uniform soup accuracy")
    labels = [text.get_text() for text in figure.legends[0].get_texts() if "soup" in text.get_text()]
    assert labels[0] == "local_de, soup, n=2, falls to 20.0 %" and "falls" not in "".join(labels[1:])
    star = soups.containers[1].lines[0]
    np.testing.assert_allclose(star.get_ydata(orig=False), [95.0, 95.4, 95.6, 95.8, 96.0])
    assert 80 < soups.get_ylim()[0] < 95


# Files and imports


def test_a_figure_without_a_known_ending_or_folder_is_refused(whole: Results, tmp_path: Path) -> None:
    figure = figures.diversity_figure(whole)
    with pytest.raises(UserError, match="cannot tell the kind of picture"):
        drawing.save(figure, tmp_path / "map")
    with pytest.raises(UserError, match="cannot write the figure: No such file"):
        drawing.save(figure, tmp_path / "nowhere" / "map.png")


def test_drawing_needs_no_pyplot_and_importing_no_matplotlib(whole: Results) -> None:
    code = (
        "import sys; from raybasin.analysis import figures, maps, results; assert 'matplotlib' not in sys.modules;"
        f"maps.map_figure(results.open({str(whole.folder.root)!r}));"
        "assert 'matplotlib.figure' in sys.modules; assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# Surroundings

DRAW = """
import sys
from raybasin.analysis import drawing, maps, results
drawing.save(maps.map_figure(results.open(sys.argv[1]), method=None), sys.argv[2])
import matplotlib
print(matplotlib.get_backend(auto_select=False) if len(sys.argv) > 3 else "")
"""
ODD = """
text.usetex: true
font.family: No Such Font
font.size: 30
savefig.dpi: 7
savefig.bbox: tight
axes.grid: true
figure.constrained_layout.use: false
backend: nonsense
svg.fonttype: none
axes.prop_cycle: cycler('color', ['red'])
"""


def drawn_elsewhere(results: Results, path: Path, **environment: str) -> bytes:
    """The map as a process of its own writes it, in the folder of `path`."""
    done = subprocess.run(
        [sys.executable, "-c", DRAW, str(results.folder.root), str(path)], cwd=path.parent, capture_output=True,
        text=True, timeout=120, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return path.read_bytes()


def test_settings_and_backends_of_the_user_do_not_matter(whole: Results, tmp_path: Path) -> None:
    """Nor do those of the notebook that started the process, nor a folder for settings that cannot be written."""
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "matplotlibrc").write_text(ODD)
    (tmp_path / "file").write_text("")
    plain = drawn_elsewhere(whole, tmp_path / "plain.png", MPLBACKEND="agg")
    assert plain.startswith(b"\x89PNG")
    notebook = "module://matplotlib_inline.backend_inline"
    assert drawn_elsewhere(whole, tmp_path / "notebook.png", MPLBACKEND=notebook) == plain
    assert drawn_elsewhere(whole, tmp_path / "odd" / "map.png", MPLBACKEND="nonsense") == plain
    unwritable = {"MPLCONFIGDIR": str(tmp_path / "file" / "in-a-file"), "HOME": str(tmp_path / "file")}
    assert drawn_elsewhere(whole, tmp_path / "unwritable.png", **unwritable) == plain


def test_drawing_leaves_the_settings_and_the_backend_as_they_are(whole: Results, tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"axes.grid": True, "font.size": 30, "text.usetex": True}):
        before = dict(matplotlib.rcParams)
        drawing.save(maps.map_figure(whole), tmp_path / "map.pdf")
        assert dict(matplotlib.rcParams) == before
    code = DRAW.replace("import sys", "import os, sys; os.environ['MPLBACKEND'] = 'pdf'")
    done = subprocess.run(
        [sys.executable, "-c", code, str(whole.folder.root), str(tmp_path / "map.png"), "tell"], capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == "pdf", done.stderr


def test_what_matplotlib_raises_is_one_line(whole: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(figure: Figure, *args: object, **kwargs: object) -> None:
        raise RuntimeError("no glyph\nfor this")

    figure = maps.map_figure(whole)
    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(UserError) as caught:
        drawing.save(figure, tmp_path / "map.png")
    assert str(caught.value) == "the figure cannot be drawn (RuntimeError: no glyph for this)"
    assert not (tmp_path / "map.png").exists()
    monkeypatch.setattr(Figure, "suptitle", broken)
    with pytest.raises(UserError, match="cannot be drawn"):
        maps.map_figure(whole)


def test_threads_that_draw_at_once_leave_the_settings_as_they_were(monkeypatch):
    """The second may not begin before the first has put the settings back, which it would take for the user's."""
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "font.size", 31.0)
    seen: list[float] = []

    def draw():
        with drawing.default_settings():
            seen.append(matplotlib.rcParams["font.size"])

    with drawing.default_settings():
        other = threading.Thread(target=draw)
        other.start()
        other.join(0.2)
        assert seen == []
    other.join()
    assert seen == [matplotlib.rcParamsDefault["font.size"]] and matplotlib.rcParams["font.size"] == 31.0
