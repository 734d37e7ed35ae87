"""The page holds what was found, and nothing that could load or run anything."""

import base64
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import synthetic

from raybasin.analysis import report
from raybasin.analysis import results as reading
from raybasin.analysis.results import Results
from raybasin.errors import UserError
from raybasin.store import tables
from raybasin.store.folders import Folder

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(content)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("whole")
    return reading.open(synthetic.write(root, synthetic.grid()))


@pytest.fixture(scope="module")
def page(whole: Results) -> str:
    return report.page(whole)


def star(root: Path, cells: list[synthetic.Row], lrs: list[float], cycles: list[float]) -> Results:
    content = synthetic.sweep(methods={"star_sse": {"lr_ratio": lrs, "cycle_ratio": cycles}}, replicates=1)
    return reading.open(synthetic.write(root, cells, content=content))


# What it says


def test_the_headlines_are_the_numbers_of_the_tables(whole: Results) -> None:
    soup, ensemble, *others = report.headlines(whole)
    # Soups are best at lr_ratio * cycle_ratio = 1, and star_sse's a little better than sse's.
    chosen = "Best soup, chosen on validation: star_sse at lr_ratio 1 (max_lr 0.05), cycle_ratio 1 (20 epochs)"
    assert soup.startswith(chosen)
    assert "the soup reaches 95.30 %, +0.20 points against its hub and −1.00 points against" in soup
    point = "cycle_ratio 2 (40 epochs), 5 members, checkpoint resnet50.tv_in1k"
    assert f"{point}, undecided whether in the basin" in ensemble
    assert "reaches 95.90 %, +0.80 points against its hub and −0.40 points against" in ensemble
    assert "local_de, which reaches 96.30 %; trained for 180 epochs against 100" in ensemble
    assert ensemble.endswith("(n=2; without stored predictions on test there is no interval).")
    assert others == [
        "Boundary of star_sse: at cycle_ratio 0.5 between lr_ratio 4 (in) and 8 (out); "
        "at cycle_ratio 1 between lr_ratio 2 (in) and 4 (out); "
        "at cycle_ratio 2 between lr_ratio 1 (in) and 2 (out).",
        "Boundary of sse: at cycle_ratio 0.5 in the basin up to lr_ratio 4, the highest tried; "
        "at cycle_ratio 1 between lr_ratio 1 (in) and 4 (out).",
        "4 of 16 points of the map are undecided: the 95 % interval of the barrier, over images and replicates, holds "
        "the threshold.",
    ]


def test_one_replicate_is_given_no_deviation_and_no_local_de_no_comparison(tmp_path: Path) -> None:
    cells = [synthetic.cell("star_sse", 1, 1, 0)]
    soup, ensemble, *_ = report.headlines(star(tmp_path, cells, [1], [1]))
    assert "±" not in soup + ensemble and "(n=1; without stored predictions" in ensemble
    assert "there is no local_de of equal size" in ensemble


def test_a_boundary_that_was_not_crossed_or_is_crossed_twice_is_said_to_be_so(tmp_path: Path) -> None:
    cells = [
        synthetic.cell("star_sse", lr, cycle, 0, barrier_error=height)
        for lr, cycle, height in ((1, 0.5, 0.5), (2, 0.5, 0.6), (1, 1, 0.5), (2, 1, 0.0))
    ]
    sentences = report.headlines(star(tmp_path, cells, [1, 2, 4], [0.5, 1]))
    assert (
        "Boundary of star_sse: at cycle_ratio 0.5 out of it from lr_ratio 1, the lowest tried; "
        "at cycle_ratio 1 no single one: out at lr_ratio 1 but in at 2."
    ) in sentences
    assert "2 cells of the sweep not finished: all of the above holds for the rest." in sentences


def test_replicates_on_different_sides_are_counted(tmp_path: Path) -> None:
    cells = [synthetic.cell("star_sse", 1, 1, i, barrier_error=i / 2) for i in (0, 1)]
    assert "At 1 point of 1 the replicates lie on different sides." in report.headlines(star(tmp_path, cells, [1], [1]))


def test_the_page_has_a_row_per_point_and_five_figures(whole: Results, page: str) -> None:
    parsed = Page(page)
    assert parsed.count("tr") == 1 + len(reading.summary(whole.cells))
    assert parsed.count("img") == 5
    assert "No figure" not in page


def test_the_page_says_what_was_run_on_what(page: str) -> None:
    text = Page(page).text
    for words in (
        "34 finished, 0 not",
        "5000 validation, 10000 test images",
        "NVIDIA H100",
        "raybasin 0.1.0, torch 2.13.0",
        "at most 2 percentage points",
    ):
        assert words in text
    assert "Where does StarSSE leave the pre-train basin of made-up numbers?" in text


def test_the_lines_that_load_the_tables_load_them(whole: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic.write_predictions(whole.folder.root, reading.best_cell(whole)["member_ids"])
    raybasin = SimpleNamespace(open=reading.open, log_probs=reading.log_probs)
    monkeypatch.setitem(sys.modules, "raybasin", raybasin)
    names: dict[str, object] = {}
    exec(report.loading_lines(whole), names)
    assert len(names["cells"]) == len(whole.cells)  # type: ignore[arg-type]
    assert names["results"] == whole


def test_what_failed_is_listed_with_its_reason(tmp_path: Path) -> None:
    failure = synthetic.failure("star_sse", 2, 1, 0, "the loss became NaN in epoch 3")
    tables.write(Folder(tmp_path), "failures", "f", [failure])
    page = report.page(star(tmp_path, [synthetic.cell("star_sse", 1, 1, 0)], [1, 2], [1]))
    assert "the loss became NaN in epoch 3" in page
    assert failure["unit_id"] in page


def test_a_page_without_soups_says_so(tmp_path: Path) -> None:
    none = dict.fromkeys(("soup_accuracy", "greedy_soup_accuracy", "val_soup_accuracy", "val_soup_nll"))
    results = star(tmp_path, [synthetic.cell("star_sse", 1, 1, 0, **none)], [1], [1])
    assert report.headlines(results)[0] == "No soups were made."
    assert Page(report.page(results)).count("img") == 5


def test_before_the_first_cell_there_is_no_page(tmp_path: Path) -> None:
    results = reading.open(synthetic.write(tmp_path, []))
    with pytest.raises(UserError, match="no cell is finished yet"):
        report.write(results, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


# What it may not do


def test_hostile_names_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    content = {**synthetic.sweep(), "question": HOSTILE}
    versions = '{"<b>torch": "<i>2"}'
    cells = [synthetic.cell("star_sse", 1, 1, 0, checkpoint=HOSTILE, device=HOSTILE, versions=versions)]
    failure = synthetic.failure("star_sse", 2, 1, 0, HOSTILE, unit_id="</table><script>")
    tables.write(Folder(tmp_path), "failures", "f", [failure])
    parsed = Page(report.page(reading.open(synthetic.write(tmp_path, cells, content=content))))
    assert not {"script", "b", "i"} & {tag for tag, _ in parsed.tags}
    assert all(attributes["src"].startswith("data:") for tag, attributes in parsed.tags if tag == "img")
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert parsed.text.count(HOSTILE) >= 4  # question, checkpoint, device, reason
    assert "</table><script>" in parsed.text


def test_the_page_loads_nothing(page: str) -> None:
    figures = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)
    assert "//" not in re.sub(r"data:image/svg\+xml;base64,[^\"]+", "", page).replace("</", "")
    for figure in figures:
        svg = base64.b64decode(figure).decode()
        assert re.findall(r"href=\"(?!#|data:)[^\"]*", svg) == []
    assert {tag for tag, _ in Page(page).tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base"})


def test_a_report_that_cannot_be_written_leaves_nothing_behind(
    whole: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "page", lambda results: "content")
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match="cannot write the report"):
        report.write(whole, tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_figure_that_cannot_be_drawn_costs_its_place_only(whole: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("<no glyph>")

    monkeypatch.setattr("raybasin.analysis.figures._draw_sizes", broken)
    page = Page(report.page(whole))
    assert page.count("img") == 4
    assert page.text.count("No figure: the figure cannot be drawn (RuntimeError: <no glyph>)") == 1


def test_a_report_takes_the_place_of_an_earlier_one(
    whole: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "page", lambda results: "± new")
    (tmp_path / "report.html").write_text("old, and longer")
    report.write(whole, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "± new"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
