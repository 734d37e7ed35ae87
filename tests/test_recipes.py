"""The recipes of docs/recipes.md: three tools give the same answers, and they are raybasin's own; and the notebook.

The folder they are asked of holds two settings that share networks, cells of two replicates, predictions under two
evaluation settings, and a failure that was made good; beside it lies a copy.
"""

import contextlib
import json
import re
import shutil
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import places
import pytest
import tiny

import raybasin
from raybasin.analysis import held, integrity
from raybasin.analysis import results as reading
from raybasin.store import tables
from raybasin.store.folders import Folder

PAGE = (places.REPOSITORY / "docs" / "recipes.md").read_text()
SECTIONS = {
    title: {tool: code for tool, code in re.findall(r"```python\n# (\w+)\n(.*?)```", text, flags=re.DOTALL)}
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)
}
RECIPES = {title: blocks for title, blocks in SECTIONS.items() if blocks}
TOOLS = ("pandas", "DuckDB", "Polars")
STAR = {"star_sse": {"n_members": 3, "lr_ratio": [1]}}


@pytest.fixture(scope="module")
def where(finished, tmp_path_factory):
    """A folder in which `results/digits` can be asked."""
    place = tmp_path_factory.mktemp("recipes")
    root = place / "results" / "digits"
    shutil.copytree(finished.folder.root, root)
    for changes in ({"basin__bn_images": 10, "methods": STAR}, {}):
        assert raybasin.run(tiny.tree(**changes, replicates=2), root).complete
    opened = raybasin.open(root, "latest")
    lost = {**opened.cells.iloc[0][["method", "checkpoint", "lr_ratio", "cycle_ratio", "replicate"]].to_dict(),
            "settings_id": opened.settings_id, "sweep": "tiny"}  # fmt: skip
    at = datetime(2026, 1, 1, tzinfo=UTC)
    for number, unit in enumerate(("made-good", "lost", "lost")):
        unit_id = opened.cells["cell_id"].iloc[0] if unit == "made-good" else unit
        row = {**lost, "unit_id": unit_id, "tries": 3, "reason": f"reason {number}", "at": at + timedelta(days=number)}
        assert tables.write(Folder(root), "failures", f"{unit_id}-{number}", [row])
    shutil.copytree(root, place / "results" / "later-copy")
    return place


@pytest.fixture(scope="module")
def opened(where):
    return raybasin.open(where / "results" / "digits", "latest")


def plain(answer):
    """An answer of any of the tools as a frame whose order says nothing, or as it is."""
    if isinstance(answer, np.ndarray):
        return answer
    if hasattr(answer, "fetchall"):
        answer = pd.DataFrame(answer.fetchall(), columns=answer.columns)
    elif not isinstance(answer, pd.DataFrame):
        answer = pd.DataFrame(answer.rows(), columns=answer.columns)
    answer = answer.rename(columns=str).rename_axis(columns=None)
    frame = answer[sorted(answer.columns)].map(lambda value: np.nan if pd.isna(value) else value)
    keys = [name for name in frame if not str(frame[name].dtype).startswith(("float", "Float"))]
    ratios = [name for name in frame if name in ("lr_ratio", "cycle_ratio", "t")]
    return frame.sort_values([*keys, *ratios]).reset_index(drop=True)


def asked(tool):
    """By title; the answer of a recipe is what it prints at its end."""
    found, names = {}, {}
    for title, blocks in RECIPES.items():
        exec(compile(blocks[tool], f"recipes.md, {title}, {tool}", "exec"), names)
        name = re.search(r"print\((\w+)[^\n]*\)\n\Z", blocks[tool])[1]
        found[title] = plain(names[name])
    return found


@pytest.fixture(scope="module")
def answers(where):
    """By tool and title."""
    for module in ("duckdb", "polars"):
        pytest.importorskip(module)
    with contextlib.chdir(where):
        return {(tool, title): answer for tool in TOOLS for title, answer in asked(tool).items()}


def equal(one, other):
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype == np.float32 and np.array_equal(one, other)
    else:
        pd.testing.assert_frame_equal(one, other, check_dtype=False, rtol=1e-9)
        assert len(one) > 0


def test_every_recipe_is_there_for_all_tools():
    assert len(RECIPES) >= 10
    for title, blocks in RECIPES.items():
        assert tuple(blocks) == TOOLS, title
    assert sum(map(len, RECIPES.values())) == PAGE.count("```python")


@pytest.mark.parametrize("title", RECIPES)
def test_three_tools_give_one_answer(title, answers):
    first, *others = (answers[tool, title] for tool in TOOLS)
    for other in others:
        equal(first, other)


def points(cells, *more):
    return cells[["method", "variant", "checkpoint", "lr_ratio", "cycle_ratio", "n_members", *more]]


def mean(rows, keys, value):
    return rows.groupby(keys, as_index=False)[value].mean()


def of_settings(opened):
    newest_last = reversed(held.settings_of(opened.folder))
    return pd.DataFrame([(one.settings_id, one.cells) for one in newest_last], columns=["settings_id", "cells"])


def shown(opened):
    return points(opened.cells, "replicate", "barrier_error", "ensemble_accuracy", "soup_accuracy")


def barrier(opened):
    star = opened.cells.query("method == 'star_sse'")
    return star.pivot_table("barrier_error", "cycle_ratio", "lr_ratio").reset_index()


def best(opened):
    point = reading.best_cell(opened)
    same = opened.cells
    for name in ("method", "checkpoint", "lr_ratio", "cycle_ratio", "n_members"):
        same = same[same[name] == point[name]]
    means = same[["val_soup_accuracy", "val_soup_nll", "soup_accuracy"]].mean()
    return points(same.head(1)).assign(**means)


def gain(opened):
    over = opened.comparisons.query("gain == 'over_local_de'")
    cells = reading.gains(opened.cells).query("method != 'local_de'")
    spread = cells.groupby(["method", "lr_ratio", "cycle_ratio"])["over_local_de"].std().reset_index(name="deviation")
    found = over.rename(columns={"estimate": "mean", "n_replicates": "replicates"}).merge(spread)
    return points(found.assign(variant=""), "replicates", "mean", "deviation")


def accuracy(opened):
    star = opened.cells.query("method == 'star_sse'").groupby(["lr_ratio", "cycle_ratio"])["ensemble_accuracy"]
    found = pd.DataFrame({"replicates": star.size(), "mean": star.mean(), "deviation": star.std()})
    return found.reset_index()


def size(opened):
    ensembles = opened.scores.query("kind == 'ensemble' and split == 'test' and bn == 'own'")
    return mean(ensembles, ["method", "lr_ratio", "cycle_ratio", "n_members"], "accuracy")


def networks(opened):
    rows = []
    for method, cells in opened.cells.groupby("method"):
        of_method = opened.members[opened.members["member_id"].isin(cells["member_ids"].explode())]
        sums = of_method[["cycle_epochs", "train_seconds"]].sum()
        rows.append((method, len(of_method), *sums, of_method["final_train_loss"].mean()))
    return pd.DataFrame(rows, columns=["method", "networks", "epochs", "seconds", "final_train_loss"])


def curves(opened):
    star = opened.cells.query("method == 'star_sse'")
    ids = set(star["member_ids"].explode()) - set(star["hub_id"])
    of_star = opened.epochs[opened.epochs["member_id"].isin(ids)]
    return mean(of_star, ["lr_ratio", "cycle_ratio", "epoch"], "train_loss")


def along(opened):
    hub = opened.paths.query("kind == 'hub-member' and split == 'val'")
    once = hub.groupby(["path_id", "t"], as_index=False).first()
    return once.groupby(["lr_ratio", "cycle_ratio", "t"], as_index=False)["nll_excess"].median()


def log_probs(opened):
    return raybasin.log_probs(opened, opened.cells["cell_id"].min(), "test")


def failed(opened):
    left = reading.open_failures(opened)
    assert list(left["unit_id"]) == ["lost"]
    return pd.DataFrame([("lost", 2, left["reason"].iloc[-1])], columns=["unit_id", "failures", "reason"])


def counts(opened):
    return of_settings(opened).assign(folder="digits")  # the copy has nothing of its own


ANSWERS = of_settings, shown, barrier, best, gain, accuracy, size, networks, curves, along, log_probs, failed, counts
OWN = dict(zip(RECIPES, ANSWERS, strict=True))


@pytest.mark.parametrize("title", RECIPES)
def test_the_answer_is_raybasins_own(title, answers, opened):
    equal(answers["pandas", title], plain(OWN[title](opened)))


def test_the_recipe_with_error_bars_draws_a_mark_for_each_point(where, opened):
    from matplotlib import pyplot

    names = {}
    with contextlib.chdir(where):
        for title in ("Which settings there are", "The cells of one of them", "Accuracy by ratio with error bars"):
            exec(compile(RECIPES[title]["pandas"], f"recipes.md, {title}", "exec"), names)
        assert Path("accuracy.png").read_bytes().startswith(b"\x89PNG")
    means = 100 * opened.cells.query("method == 'star_sse'").groupby("lr_ratio")["ensemble_accuracy"].mean()
    [(mark, _, [bars])] = names["axis"].containers
    assert dict(zip(*mark.get_data(), strict=True)) == pytest.approx(means.to_dict())
    spread = 100 * opened.cells.query("method == 'star_sse'").groupby("lr_ratio")["ensemble_accuracy"].std()
    halves = [(high - low) / 2 for (_, low), (_, high) in bars.get_segments()]
    assert halves == pytest.approx(spread.tolist())
    pyplot.close("all")


@pytest.mark.parametrize("tool", TOOLS)
def test_a_compacted_copy_is_asked_in_the_same_way(tool, answers, where, tmp_path, monkeypatch):
    integrity.compact(Folder(where / "results" / "digits"), str(tmp_path / "results" / "digits"))
    monkeypatch.chdir(tmp_path)
    for title, answer in asked(tool).items():
        equal(answer, answers[tool, title])


@pytest.mark.parametrize("tool", TOOLS)
def test_where_nothing_has_failed_there_is_no_folder_of_failures(tool, tmp_path):
    names = {"FOLDER": str(tmp_path), "Path": Path}
    exec(compile(RECIPES["Failures"][tool], "recipes.md", "exec"), names)
    assert names["failed"] == []


def test_the_folder_that_is_asked_has_what_a_recipe_can_stumble_over(opened):
    folder = opened.folder
    stored = {table: tables.read(folder, table).to_pandas() for table in ("cells", "scores", "paths", "predictions")}
    assert stored["cells"]["settings_id"].nunique() == 2 and stored["predictions"]["eval_id"].nunique() == 2
    assert opened.members["settings_id"].nunique() == 2  # some were trained under the other settings
    singles = opened.scores.query("kind == 'member' and split == 'test' and bn == 'own'")
    assert singles["predictor_id"].duplicated().any()
    hub_paths = opened.paths.query("kind == 'hub-member' and split == 'val'")
    assert hub_paths.duplicated(["path_id", "t"]).any()
    assert opened.cells["replicate"].nunique() == 2


# The notebook

NOTEBOOK = json.loads((places.REPOSITORY / "docs" / "three_figures.ipynb").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def drawn(where):
    """What the notebook's names are once all its cells were run, in order."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = {}
    with contextlib.chdir(where), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for cell in NOTEBOOK["cells"]:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), f"three_figures.ipynb, {cell['id']}", "exec"), names)
    yield names
    pyplot.close("all")


def test_the_notebook_is_one_and_holds_no_output():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert set(NOTEBOOK) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    for cell in NOTEBOOK["cells"]:
        kind, lines = cell["cell_type"], cell["source"]
        more = {"code": {"outputs": [], "execution_count": None}, "markdown": {}}[kind]
        assert set(cell) == {"cell_type", "id", "metadata", "source", *more}
        assert {name: cell[name] for name in more} == more
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", cell["id"]) and all(isinstance(line, str) for line in lines)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(ids) == len(set(ids))


def test_the_notebook_needs_pandas_and_matplotlib_alone_and_its_links_lead_somewhere():
    text = "\n".join("".join(cell["source"]) for cell in NOTEBOOK["cells"])
    assert set(re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)) == {"matplotlib", "pandas", "itertools"}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith("https://arxiv.org/") or (places.REPOSITORY / "docs" / target).is_file()


def line(panel, label):
    [found] = [line for line in panel.lines if line.get_label() == label]
    return dict(zip(found.get_xdata(), found.get_ydata(), strict=True))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_axis_of_a_figure_says_what_it_shows(number, drawn):
    panels = drawn[f"figure_{number}"].axes
    assert all(panel.get_xlabel() and panel.get_title() for panel in panels) and panels[0].get_ylabel()
    assert panels[-1].get_legend() is not None


def test_the_first_figure_shows_the_means_of_replicates(drawn, opened):
    for panel, what in zip(drawn["figure_1"].axes, ("ensemble", "soup"), strict=True):
        for method in ("star_sse", "sse"):
            cells = opened.cells.query("method == @method")
            means = 100 * cells.groupby("lr_ratio")[f"{what}_accuracy"].mean()
            assert line(panel, f"{method}, length x1") == pytest.approx(means.to_dict())
    local_de = opened.cells.query("method == 'local_de'")["ensemble_accuracy"].mean()
    hubs = opened.cells.query("method != 'local_de'").drop_duplicates("hub_id")["hub_accuracy_reestimated"].mean()
    ensembles, soups = drawn["figure_1"].axes
    assert list(line(ensembles, "local_de").values()) == pytest.approx([100 * local_de] * 2)
    assert list(line(soups, "hub").values()) == pytest.approx([100 * hubs] * 2)


def test_the_second_figure_has_a_mark_for_every_cell(drawn, opened):
    for panel, what in zip(drawn["figure_2"].axes, ("member", "ensemble"), strict=True):
        marks = np.concatenate([marks.get_offsets() for marks in panel.collections])
        cells = 100 * opened.cells[["disagreement", f"{what}_accuracy"]].to_numpy()
        assert sorted(map(tuple, marks.round(9).tolist())) == sorted(map(tuple, cells.round(9).tolist()))


def test_the_third_figure_shows_each_path_once(drawn, opened):
    [panel] = drawn["figure_3"].axes
    star = opened.paths.query("method == 'star_sse' and kind == 'hub-member' and split == 'val'")
    for rate, rows in star.groupby("lr_ratio"):
        once = rows.groupby(["path_id", "t"], as_index=False).first()
        assert line(panel, f"rate x{rate:g}") == pytest.approx((100 * once.groupby("t")["error"].mean()).to_dict())
