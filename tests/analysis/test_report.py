"""The page holds what was found, and nothing that could load anything or run what is not its own."""

import base64
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import browser
import pytest
import synthetic

from raybasin.analysis import comparisons, details, explored, report
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
    ensemble, soup, *others = report.headlines(whole)
    assert "cycle_ratio 2 (40 epochs), 5 members, checkpoint resnet50.tv_in1k, undecided whether in the" in ensemble
    assert "On test its NLL is 0.128 nats, +0.016 nats against local_de; its accuracy is 95.90 %" in ensemble
    assert "+0.80 points against its hub and −0.40 points against local_de, which reaches 0.112 nats and" in ensemble
    assert "96.30 %; trained for 180 epochs against 100" in ensemble
    assert ensemble.endswith("(n=2; without stored predictions on test there is no interval).")
    # Soups are best at lr_ratio * cycle_ratio = 1, and star_sse's a little better than sse's.
    chosen = "Best soup, chosen on validation: star_sse at lr_ratio 1 (max_lr 0.05), cycle_ratio 1 (20 epochs)"
    assert soup.startswith(chosen)
    assert "its accuracy is 95.30 %, +0.20 points against its hub" in soup and "−1.00 points against" in soup
    sure = [sentence for sentence in others if sentence.startswith("How sure that is: the basin of ")]
    for sentence, (_, line) in zip(sure, whole.boundaries.groupby(["method"], sort=False), strict=True):
        for row in line.query("status == 'found'").to_dict("records"):
            end = f"{row['lr_ratio']:.3g} [{row['low']:.3g}, {row['high']:.3g}] at cycle_ratio {row['cycle_ratio']:g}"
            assert end in sentence
    assert sum("of star_sse of 5 ends" in sentence for sentence in sure) == 1
    undecided = whole.barriers.query("side == 'undecided'").merge(
        whole.boundaries, on=["method", "checkpoint", "n_members", "cycle_ratio"], suffixes=("_own", "")
    )
    n_in, n_out = (int((undecided["lr_ratio_own"] < undecided["low"]).sum()),
                   int((undecided["lr_ratio_own"] > undecided["high"]).sum()))  # fmt: skip
    outside = "None of these lies outside of the interval of the boundary."
    if n_in + n_out:
        outside = "Outside of the boundary's interval, and decided by it, lie "
        outside += f"{n_in + n_out} of these 4: {n_in} in and {n_out} out."
    assert [sentence for sentence in others if sentence not in sure] == [
        "Boundary of star_sse, by the mean error barrier on validation images: "
        "at cycle_ratio 0.5 between lr_ratio 4 (in) and 8 (out); "
        "at cycle_ratio 1 between lr_ratio 2 (in) and 4 (out); "
        "at cycle_ratio 2 between lr_ratio 1 (in) and 2 (out).",
        "Boundary of sse, by the mean error barrier on validation images: "
        "at cycle_ratio 0.5 in the basin up to lr_ratio 4, the highest tried; "
        "at cycle_ratio 1 between lr_ratio 1 (in) and 4 (out).",
        f"4 of 16 points of the map are undecided by their own replicates: the 95 % interval of the barrier, over "
        f"images and replicates, holds the threshold. {outside} {explored.TWO_ANSWERS}",
    ]


def test_the_headlines_say_what_an_ensemble_is_worth_and_what_cannot_be_told_apart(finished: Any) -> None:
    results = reading.open(finished.folder.root)
    ensemble, soup, *others = report.headlines(results)
    point = results.cells.query("method == 'star_sse'" if "star_sse" in ensemble else "method == 'sse'")
    worth = reading.worth(results).set_index("cell_id")["worth"][point["cell_id"]]
    assert any(f"{value:.1f} members of local_de" in ensemble for value in worth)
    for sentence in (ensemble, soup):
        assert "nats against" in sentence and ("(not distinguishable)" in sentence or "(better" in sentence)
    assert sum(sentence.startswith("3 ensembles are compared with local_de in ") for sentence in others) == 2
    verdicts = results.comparisons.query("gain == 'nll_over_local_de'")["verdict"]
    assert f"{(verdicts == 'not distinguishable').sum()} not distinguishable one by one" in "".join(others)


def test_one_replicate_is_given_no_deviation_and_no_local_de_no_comparison(tmp_path: Path) -> None:
    cells = [synthetic.cell("star_sse", 1, 1, 0)]
    ensemble, soup, *_ = report.headlines(star(tmp_path, cells, [1], [1]))
    assert "±" not in soup + ensemble and "(n=1; without stored predictions" in ensemble
    assert "there is no local_de of equal size" in ensemble


def test_a_boundary_that_was_not_crossed_or_is_crossed_twice_is_said_to_be_so(tmp_path: Path) -> None:
    cells = [
        synthetic.cell("star_sse", lr, cycle, 0, barrier_error=height)
        for lr, cycle, height in ((1, 0.5, 0.5), (2, 0.5, 0.6), (1, 1, 0.5), (2, 1, 0.0))
    ]
    sentences = report.headlines(star(tmp_path, cells, [1, 2, 4], [0.5, 1]))
    assert (
        "Boundary of star_sse, by the mean error barrier on validation images: "
        "at cycle_ratio 0.5 out of it from lr_ratio 1, the lowest tried; "
        "at cycle_ratio 1 no single one: out at lr_ratio 1 but in at 2."
    ) in sentences
    assert "2 cells of the sweep not finished: all of the above holds for the rest." in sentences


def test_replicates_on_different_sides_are_counted(tmp_path: Path) -> None:
    cells = [synthetic.cell("star_sse", 1, 1, i, barrier_error=i / 2) for i in (0, 1)]
    assert "At 1 point of 1 the replicates lie on different sides." in report.headlines(star(tmp_path, cells, [1], [1]))


def data_of(page: str) -> dict[str, Any]:
    """What the page's script draws."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found)


def test_the_page_has_a_row_and_details_per_point_and_charts_of_every_cell(whole: Results, page: str) -> None:
    parsed, data, points = Page(page), data_of(page), reading.summary(whole.cells)
    assert parsed.count("tr") == 1 + len(points) == 1 + len(data["details"]["points"])
    titles = [point["title"] for point in data["details"]["points"]]
    assert titles[0].startswith("local_de, lr_ratio 1, cycle_ratio 1, 5 members") and len(set(titles)) == len(titles)
    charts = data["charts"]
    assert len(charts["map"]["ensemble_gain"]) == 2 and "barrier_error" in charts["map"]
    for chart in charts["trade_off"]:
        assert sum(len(trace["x"]) for trace in chart["data"]) == len(whole.cells)
    tiles = charts["map"]["ensemble_gain"][0]["data"][0]
    numbers = sorted(number for row in tiles["customdata"] for number in row)
    assert [titles[number].split(",")[0] for number in numbers] == ["star_sse"] * 12


def test_a_point_has_its_figures_its_replicates_and_the_paths_of_both(whole: Results, page: str) -> None:
    details = data_of(page)["details"]
    point = next(p for p in details["points"] if p["title"].startswith("star_sse, lr_ratio 8, cycle_ratio 2,"))
    figures = {name: (text, verdict) for name, text, verdict in point["figures"]}
    assert figures["accuracy over local_de"] == ("−1.12 points", "")
    height, side = figures["error barrier on validation images"]
    assert side == "out" and height.endswith("points; 0 of 2 replicates in the basin")
    assert point["replicates"]["head"][:3] == ["replicate", "hub", "member"]
    assert [row[:2] for row in point["replicates"]["rows"]] == [["0", "95.00"], ["1", "95.20"]]
    assert [row[:2] for row in point["members"]["rows"][:2]] == [["0", "hub"], ["0", "1"]]
    nll, error = point["charts"]
    assert len(nll["data"]) == len(error["data"]) == 2 * 7
    cell = synthetic.cell("star_sse", 8, 2, 0)
    assert error["data"][0]["y"][5] == pytest.approx(5.1 + 100 * cell["barrier_error"], rel=1e-4)
    assert details["points"][details["first"]]["title"].startswith("star_sse, lr_ratio 1, cycle_ratio 2,")


def test_the_page_says_on_which_images_barriers_decide_and_draws_their_paths(tmp_path: Path) -> None:
    content = synthetic.sweep(basin={"split": "train"})
    results = reading.open(synthetic.write(tmp_path, synthetic.grid(), content=content))
    page = report.page(results)
    assert "barrier on validation" not in page and "barriers on validation" not in page
    assert "by the mean error barrier on training images: at cycle_ratio" in page
    assert "<small>error barrier on training images, points</small>" in page
    assert '<option value="barrier_error">barrier error on training images (percentage points)</option>' in page
    assert "Replicates (barriers on training images)" in page
    data = data_of(page)
    for point in data["details"]["points"]:
        assert "error barrier on training images" in [name for name, _, _ in point["figures"]]
        assert [chart["title"] for chart in point["charts"]] == [
            "paths: NLL on training images", "paths: error rate on training images",
        ]  # fmt: skip
        assert all(trace["y"][0] == pytest.approx(3) for trace in point["charts"][1]["data"])
    assert all("error barrier on training images" in tile for chart in data["charts"]["map"]["ensemble_gain"]
               for row in chart["data"][0]["hovertext"] for tile in row if tile)  # fmt: skip
    assert data["charts"]["trade_off"][0]["layout"]["xaxis"]["title"]["text"].startswith(results.barrier_words)


def test_what_is_worth_as_many_as_there_are_is_at_least_so_in_sentences_and_tables(finished: Any) -> None:
    results = reading.open(finished.folder.root)
    most = results.cells.query("method == 'local_de'")["n_members"].max()
    known = results.cells[["cell_id", "method"]].merge(reading.worth(results), on="cell_id")
    assert set(known.query("method == 'local_de'")["worth_or_more"]) == {False}
    explored_ones = known.query("method != 'local_de'")
    assert (explored_ones["worth_or_more"] == (explored_ones["worth"] >= most)).all()
    assert details.worth_text(5.0, True) == "at least 5.0" and details.worth_text(2.34, False) == "2.3"
    assert details.worth_text(float("nan"), False) == ""
    rows = comparisons.summary(results).to_dict("records")
    for row in rows:
        text = details.worth_text(row["worth"], row["worth_or_more"])
        panel = [said for name, said, _ in details.figures_of(row) if name == "worth"]
        assert report.COLUMNS["worth"].text(row) == text
        assert panel == ([f"{text} members of local_de, by equal calibrated NLL"] if text else [])
    best = rows[details.best_point(results, rows)]
    assert f"worth {report.COLUMNS['worth'].text(best)} members of local_de" in report.headlines(results)[0]


def test_plotly_knows_all_that_charts_ask_of_it(finished: Any) -> None:
    """The package has the schema of the script that is in the page."""
    import plotly.graph_objects

    data = data_of(report.page(reading.open(finished.folder.root)))
    charts = [chart for shown in data["charts"]["map"].values() for chart in shown]
    charts += [chart for name, shown in data["charts"].items() if name != "map" for chart in shown]
    charts += data["details"]["points"][0]["charts"]
    assert len(charts) > 12
    for chart in charts:
        coloured = json.loads(json.dumps(chart).replace('"@ink"', '"black"').replace('"@soft"', '"grey"'))
        drawn = plotly.graph_objects.Figure(coloured["data"], coloured["layout"])
        assert len(drawn.data) == len(chart["data"])


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
    cell = reading.cell_of(whole, reading.example_cell(whole))
    synthetic.write_predictions(whole.folder.root, cell["member_ids"])
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
    assert "No soups were made." in report.headlines(results)
    charts = data_of(report.page(results))["charts"]
    assert "soup_gain" not in charts["map"] and len(charts["trade_off"]) == 1


def test_before_the_first_cell_there_is_no_page(tmp_path: Path) -> None:
    results = reading.open(synthetic.write(tmp_path, []))
    with pytest.raises(UserError, match="no cell is finished yet"):
        report.write(results, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


# What it may not do


def hostile(root: Path) -> Results:
    """Results in which all that may be a name is markup, or ends a script."""
    content = {**synthetic.sweep(model={"name": "resnet50", "pretrained": [HOSTILE]}), "question": HOSTILE}
    versions = '{"<b>torch": "<i>2"}'
    known = {"checkpoint": HOSTILE, "device": HOSTILE, "versions": versions}
    cells = [synthetic.cell("star_sse", lr, 1, 0, **known) for lr in (1, 2, 8)] + [
        synthetic.cell("local_de", 1, 1, 0, **known)
    ]
    failure = synthetic.failure("star_sse", 2, 1, 0, HOSTILE, unit_id="</table><script>")
    tables.write(Folder(root), "failures", "f", [failure])
    return reading.open(synthetic.write(root, cells, content=content))


def test_hostile_names_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    page = report.page(hostile(tmp_path))
    parsed = Page(page)
    assert parsed.count("script") == 3 and not {"b", "i", "img"} & {tag for tag, _ in parsed.tags}
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert parsed.text.count(HOSTILE) >= 4  # question, checkpoint, device, reason
    assert "</table><script>" in parsed.text
    (raw,) = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert "<" not in raw and HOSTILE in data_of(page)["details"]["points"][0]["title"]


def texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from texts_of(one)
    elif isinstance(value, list):
        for one in value:
            yield from texts_of(one)


def test_plotly_is_given_no_markup_from_names(tmp_path: Path) -> None:
    """It takes some of HTML in any text; ours are line breaks alone."""
    data = data_of(report.page(hostile(tmp_path)))
    drawn = [(chart["data"], chart["layout"]) for shown in data["charts"]["map"].values() for chart in shown]
    drawn += [(c["data"], c["layout"]) for name, shown in data["charts"].items() if name != "map" for c in shown]
    texts = [text for chart in drawn for text in texts_of([*chart])]
    assert any("onerror" in text for text in texts)
    assert all("<" not in text.replace("<br>", "") for text in texts)


def test_the_page_lets_its_own_scripts_run_and_nothing_else(page: str) -> None:
    (policy,) = (tag["content"] for name, tag in Page(page).tags if tag.get("http-equiv") == "Content-Security-Policy")
    assert (
        policy is not None and "default-src 'none'" in policy and "'unsafe-inline'" not in policy.split("style-src")[0]
    )
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert len(digests) == 2 and re.findall(r"'sha256-([^']+)'", policy) == digests
    assert {tag for tag, _ in Page(page).tags}.isdisjoint({"link", "iframe", "object", "embed", "base", "img"})
    assert not any({"src", "href"} & {*attributes} for _, attributes in Page(page).tags)


needs_chromium = pytest.mark.skipif(browser.CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser.tab(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def shown(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    report.write(reading.open(finished.folder.root), path)
    return path


ALL_DRAWN = "[...document.querySelectorAll('.plot')].every((plot) => plot.querySelector('.main-svg'))"


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [500, 1400])
def test_a_browser_draws_all_charts_asks_for_nothing_and_cuts_nothing_off(
    tab: Any, shown: Path, width: int, dark: bool
) -> None:
    tab.open(shown, width, dark)
    tab.wait_for(ALL_DRAWN)
    assert tab.value("document.querySelectorAll('.plot').length") > 8
    assert tab.value("document.documentElement.scrollWidth <= window.innerWidth")
    inner = "[...document.querySelectorAll('.wide, .plot')].filter((e) => e.scrollWidth > e.clientWidth + 1).length"
    assert tab.value(inner) == 0
    ink = tab.value("getComputedStyle(document.querySelector('.plot .xtitle')).fill")
    assert (sum(map(int, re.findall(r"\d+", ink)[:3])) > 3 * 128) == dark
    assert (tab.problems, tab.requests) == ([], [])


@needs_chromium
def test_a_click_on_a_tile_shows_the_point(tab: Any, shown: Path) -> None:
    tab.open(shown, 1400)
    tab.wait_for(ALL_DRAWN)
    first = tab.value("document.querySelector('#point h2').textContent")
    box = "document.querySelector('[data-figure=map] .plot .nsewdrag').getBoundingClientRect()"
    for share, rate in ((0.25, 4), (0.75, 1)):  # one of them was shown first
        tab.value("document.querySelector('[data-figure=map]').scrollIntoView()")
        left, top, width, height = tab.value(f"(() => {{ const b = {box}; return [b.x, b.y, b.width, b.height]; }})()")
        tab.click(left + width / 2, top + height * share)
        tab.wait_for(f"document.querySelector('#point h2').textContent.includes('lr_ratio {rate},')")
    assert first.startswith(("star_sse", "sse"))
    assert tab.value("document.querySelectorAll('#point .members tbody tr').length") == 3
    assert tab.value("document.querySelectorAll('#point .plot').length") == 4
    assert not tab.problems


@needs_chromium
def test_tables_are_sorted_and_filtered(tab: Any, shown: Path) -> None:
    tab.open(shown, 1400)
    tab.wait_for(ALL_DRAWN)
    column = "[...document.querySelectorAll('[data-name=points] tbody tr')].map((row) => row.cells[{}].textContent)"
    tab.value("document.querySelector('[data-name=points] th[data-name=NLL] button').click()")
    index = tab.value("document.querySelector('[data-name=points] th[data-name=NLL]').cellIndex")
    ascending = tab.value(column.format(index))
    assert [float(text) for text in ascending] == sorted(float(text) for text in ascending) and len(ascending) == 4
    tab.value("document.querySelector('[data-name=points] th[data-name=NLL] button').click()")
    assert tab.value(column.format(index)) == ascending[::-1]
    tab.value("(() => { const i = document.querySelector('input[type=search]'); i.value = 'STAR_sse 4'; "
              "i.dispatchEvent(new Event('input')); })()")  # fmt: skip
    left = "[...document.querySelectorAll('[data-name=points] tbody tr')].filter((row) => !row.hidden).length"
    assert tab.value(left) < 4 and tab.value("document.querySelector('span.note').textContent").endswith("of 4")


@needs_chromium
def test_no_button_of_a_chart_sends_it_anywhere(tab: Any, shown: Path) -> None:
    tab.open(shown, 1400)
    tab.wait_for(ALL_DRAWN)
    titles = tab.value("[...document.querySelectorAll('.modebar-btn')].map((button) => button.dataset.title)")
    assert set(titles) == {"Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"}


@needs_chromium
def test_hostile_names_run_nothing_in_a_browser(tab: Any, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    report.write(hostile(tmp_path / "results"), page)
    tab.open(page, 1400)
    tab.wait_for(ALL_DRAWN)
    assert tab.value("document.querySelectorAll('img, [onerror]').length") == 0
    assert HOSTILE[:20] in tab.value("document.querySelector('#point h2').textContent")
    assert (tab.problems, tab.requests) == ([], [])


@needs_chromium
@pytest.mark.parametrize("width", [500, 1400])
def test_texts_of_tiles_lie_above_the_lines_with_a_rim_and_fit(
    tab: Any, whole: Results, tmp_path: Path, width: int
) -> None:
    report.write(whole, tmp_path / "report.html")
    tab.open(tmp_path / "report.html", width)
    tab.wait_for(ALL_DRAWN)
    texts = "[...document.querySelectorAll('[data-figure=map] .textpoint')]"  # 12 of star_sse, 4 of sse
    tab.wait_for(f"{texts}.length == 16 && {texts}.every((text) => text.style.stroke)")
    assert tab.value(f"{texts}.every((text) => text.style.paintOrder == 'stroke')")
    lines = "[...text.closest('.scatterlayer').querySelectorAll('.js-line')]"
    before = "line.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING"
    assert tab.value(f"{texts}.every((text) => {lines}.length > 0 && {lines}.every((line) => {before}))")
    widest = tab.value(f"Math.max(...{texts}.slice(0, 12).map((text) => text.getBoundingClientRect().width))")
    map_width = tab.value("document.querySelector('[data-figure=map] .nsewdrag').getBoundingClientRect().width")
    assert 0 < widest <= map_width / 3


@needs_chromium
def test_without_scripts_the_sentences_and_tables_are_there(tab: Any, shown: Path) -> None:
    tab.open(shown, 1400, scripts=False)
    tab.screenshot(shown.with_suffix(".png"))
    parsed = Page(shown.read_text(encoding="utf-8"))
    assert parsed.count("tr") == 1 + 4 and "needs JavaScript" in parsed.text
    assert tab.requests == []


def test_a_report_that_cannot_be_written_leaves_nothing_behind(
    whole: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "page", lambda results: "content")
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match="cannot write the report"):
        report.write(whole, tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_figure_that_cannot_be_made_costs_its_place_only(whole: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise UserError("no predictions <here>")

    monkeypatch.setattr("raybasin.analysis.charts.sizes_charts", broken)
    page = report.page(whole)
    assert "No figure: no predictions <here>" in Page(page).text
    assert data_of(page)["charts"]["sizes"] == [] and data_of(page)["charts"]["trade_off"]


def test_a_report_takes_the_place_of_an_earlier_one(
    whole: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "page", lambda results: "± new")
    (tmp_path / "report.html").write_text("old, and longer")
    report.write(whole, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "± new"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
