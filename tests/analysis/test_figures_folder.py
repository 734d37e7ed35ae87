"""`raybasin figures`: what it writes, at which size, and what it refuses."""

import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import synthetic
import tiny
from matplotlib.text import Text
from PIL import Image
from typer.testing import CliRunner

import raybasin
from raybasin import cli
from raybasin.analysis import drawing, figures, figures_folder, maps
from raybasin.analysis import results as reading
from raybasin.analysis.results import Results
from raybasin.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("whole")
    return reading.open(synthetic.write(root, synthetic.grid()))


@pytest.fixture(scope="module")
def written(whole: Results, tmp_path_factory: pytest.TempPathFactory) -> figures_folder.Written:
    return figures_folder.write(whole, tmp_path_factory.mktemp("figures") / "new")


def test_each_figure_is_a_pdf_a_png_and_its_table(whole: Results, written: figures_folder.Written) -> None:
    names = {Path(name).stem for name in written.files}
    assert {"map_ensemble_gain", "map_barrier_error", "trade_off", "diversity", "sizes", "paths"} <= names
    assert sorted(written.files) == sorted(f"{name}.{kind}" for name in names for kind in ("pdf", "png", "csv"))
    assert sorted(path.name for path in written.folder.iterdir()) == sorted(written.files)
    table = pd.read_csv(written.folder / "trade_off.csv")
    gains = reading.gains(whole.cells).set_index("cell_id")["ensemble_gain"]
    assert table["ensemble_gain"].tolist() == pytest.approx(gains[table["cell_id"]].tolist())


def test_figures_of_one_cell_show_the_best_that_explores_and_name_it(whole: Results) -> None:
    exploring = whole.cells.query("method != 'local_de'")
    means = exploring.groupby(["method", "lr_ratio", "cycle_ratio"])["val_ensemble_accuracy"].mean()
    shown = reading.cell_of(whole, reading.example_cell(whole))
    assert (shown["method"], shown["lr_ratio"], shown["cycle_ratio"]) == means.idxmax() and shown["replicate"] == 0
    figure = figures.paths_figure(whole, shown["cell_id"])
    drawing.on_paper(figure, 2, titled=True)
    assert figure.get_suptitle() == f"{drawing.described(shown)}\npaths on validation images"
    titled = {wanted.name for wanted in figures_folder._wanted(whole) if wanted.titled}
    assert titled == {"paths", "learning"}


def test_what_there_is_none_of_is_said_with_the_reason(written: figures_folder.Written) -> None:
    assert "shifts` of the sweep file" in written.absent["shifts"]
    assert "trace: true" in written.absent["traces"] and "raybasin plane" in written.absent["plane"]
    assert not {Path(name).stem for name in written.files} & {*written.absent}


def test_a_figure_that_cannot_be_made_is_an_error_and_the_others_are_there(
    whole: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(results: Results) -> None:
        raise ValueError("no such font")

    monkeypatch.setattr(figures, "diversity_figure", drawing.default_settings()(broken))
    command = ["figures", str(whole.folder.root), "-o", str(tmp_path / "new")]
    told = CliRunner().invoke(cli.app, command)
    assert isinstance(told.exception, UserError)  # which the command line prints, with exit status 2
    assert "diversity (the figure cannot be drawn (ValueError: no such font))" in str(told.exception)
    assert "no traces: " in told.stdout and "trade_off.pdf" in told.stdout
    names = {path.stem for path in (tmp_path / "new").iterdir()}
    assert "trade_off" in names and "diversity" not in names


def test_a_table_that_is_damaged_is_not_taken_for_one_that_is_not_there(finished: Any, tmp_path: Path) -> None:
    shutil.copytree(finished.folder.root, tmp_path / "results")
    for file in (tmp_path / "results" / "epochs").iterdir():
        file.write_bytes(b"no Parquet")
    done = figures_folder.write(reading.open(tmp_path / "results"), tmp_path / "new")
    assert set(done.failed) == {"learning"} and "raybasin check" in done.failed["learning"]
    assert "learning" not in done.absent


def test_planes_that_are_damaged_take_nothing_else_along(whole: Results, tmp_path: Path) -> None:
    shutil.copytree(whole.folder.root, tmp_path / "results")
    (tmp_path / "results" / "planes").mkdir(exist_ok=True)
    (tmp_path / "results" / "planes" / "aaaa.parquet").write_bytes(b"no Parquet")
    done = figures_folder.write(reading.open(tmp_path / "results"), tmp_path / "new")
    assert "plane" in done.failed and "paths.pdf" in done.files and "traces" in done.absent


def test_predictions_that_some_cells_alone_have_are_no_fault(tmp_path: Path) -> None:
    raybasin.run(tiny.spec(), tmp_path / "results")
    raybasin.run(tiny.spec(replicates=2, keep={"predictions": ["val"]}), tmp_path / "results")
    done = figures_folder.write(reading.open(tmp_path / "results"), tmp_path / "new")
    assert done.failed == {} and "reliability" in {**done.absent, **dict.fromkeys(done.files)}


def test_pictures_are_as_wide_as_columns_of_a_page_and_fonts_are_embedded(written: figures_folder.Written) -> None:
    for path in written.folder.glob("*.png"):
        with Image.open(path) as image:
            assert image.width in (1050, 2100) and round(image.info["dpi"][0]) == 300
    for path in written.folder.glob("*.pdf"):
        content = path.read_bytes()
        assert b"/FontFile2" in content and b"/Type3" not in content
        assert re.search(rb"/MediaBox \[ ?0 0 (252|504) ", content)


def test_letters_on_paper_have_7_to_9_points_and_no_legend_leaves_the_figure(whole: Results) -> None:
    for draw, columns in ((figures.trade_off_figure, 2), (figures.sizes_figure, 1), (maps.map_figure, 2)):
        figure = draw(whole)
        drawing.on_paper(figure, columns)
        shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
        assert all(7 <= text.get_fontsize() <= 9 for text in shown)
        for legend in figure.legends:
            assert legend.get_window_extent().width <= figure.bbox.width + 1


def test_a_folder_that_is_taken_is_left_alone(whole: Results, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty .it has mine.txt.; name a new folder"):
        figures_folder.write(whole, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_before_the_first_cell_nothing_is_made(tmp_path: Path) -> None:
    results = reading.open(synthetic.write(tmp_path / "results", []))
    with pytest.raises(UserError, match="no cell is finished yet"):
        figures_folder.write(results, tmp_path / "new")
    assert not (tmp_path / "new").exists()
