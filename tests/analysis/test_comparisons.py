"""Differences and barriers with their intervals, against what is stored and against sums by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic
from scipy.special import log_softmax, logsumexp

import raybasin
from raybasin.analysis import comparisons
from raybasin.analysis import results as reading
from raybasin.analysis.results import Results
from raybasin.errors import UserError
from raybasin.metrics import intervals
from raybasin.metrics.selection import POINT
from raybasin.store import tables
from raybasin.store.folders import Folder
from raybasin.store.predictions import prediction_unit
from raybasin.sweep.criterion import Criterion

N = 60


@pytest.fixture(scope="module")
def stored(finished: Any) -> Results:
    """The tiny sweep, one replicate."""
    return reading.open(finished.folder.root)


@pytest.fixture(scope="module")
def two_replicates(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two methods in two replicates with predictions at random; star_sse at 1 knows the labels best."""
    root = tmp_path_factory.mktemp("two")
    cells = [
        synthetic.cell(method, lr, 1, replicate, n_members=2)
        for method, lr in (("star_sse", 1), ("star_sse", 2), ("local_de", 1))
        for replicate in (0, 1)
    ]
    content = synthetic.sweep(methods={"star_sse": {"n_members": 2, "lr_ratio": [1, 2]}, "local_de": {"n_members": 2}})
    synthetic.write(root, cells, content=content)
    rng = np.random.default_rng(0)
    strength = {("star_sse", 1.0): 2.0, ("star_sse", 2.0): 1.0, ("local_de", 1.0): 1.0}
    written = set()
    for cell in cells:
        for member_id in set(cell["member_ids"]) - written:
            written.add(member_id)
            labels_N = np.arange(N) % 3
            logits_NC = rng.standard_normal((N, 3))
            logits_NC[np.arange(N), labels_N] += strength[cell["method"], cell["lr_ratio"]]
            rows = [
                {"predictor_id": member_id, "split": "test", "bn": "own", "example": i, "label": int(labels_N[i]),
                 "log_probs": log_softmax(logits_NC[i]).tolist(), "eval_id": synthetic.EVAL_ID,
                 **{name: cell[name] for name in reading.COMMON}}
                for i in range(N)
            ]  # fmt: skip
            tables.write(Folder(root), "predictions", prediction_unit(member_id, synthetic.EVAL_ID), rows)
    return reading.open(root)


def by_hand(results: Results, metric: str) -> list[list[float]]:
    """d_RN of star_sse at 1 from local_de."""
    differences = []
    for replicate in (0, 1):
        per_point = []
        for method in ("star_sse", "local_de"):
            at = (results.cells[["method", "lr_ratio", "replicate"]] == [method, 1, replicate]).all(axis=1)
            cell = results.cells[at].iloc[0]
            rows = [results.predictions([member_id], "test") for member_id in cell["member_ids"]]
            log_probs_NC = logsumexp([np.stack(found["log_probs"]) for found in rows], axis=0) - np.log(2)
            labels_N = rows[0]["label"].to_numpy()
            per_point.append(
                (log_probs_NC.argmax(1) == labels_N) if metric == "accuracy" else -log_probs_NC[range(N), labels_N]
            )
        differences.append((np.asarray(per_point[0], dtype=float) - per_point[1]).tolist())
    return differences


@pytest.mark.parametrize(("metric", "better"), [("accuracy", "higher"), ("nll", "lower")])
def test_two_points_are_compared_image_by_image_in_the_same_replicates(
    two_replicates: Results, metric: str, better: Any
) -> None:
    found = raybasin.compare(
        two_replicates, {"method": "star_sse", "lr_ratio": 1}, "local_de", split="test", metric=metric
    )
    expected = intervals.interval([by_hand(two_replicates, metric)], better=better, step=float(metric == "accuracy"))
    assert (found.n_images, found.n_replicates, found.knows) == (N, 2, ("images", "replicates"))
    assert [found.estimate, found.low, found.high] == pytest.approx([expected.estimate, expected.low, expected.high])
    assert found.verdict == expected.verdict


def test_the_other_way_round_it_is_the_same_difference_with_the_other_sign(two_replicates: Results) -> None:
    a, b = {"method": "star_sse", "lr_ratio": 1}, {"method": "star_sse", "lr_ratio": 2}
    one, other = (raybasin.compare(two_replicates, *pair, metric="nll") for pair in ((a, b), (b, a)))
    assert [one.estimate, one.low, one.high] == pytest.approx([-other.estimate, -other.high, -other.low])


def test_every_gain_of_a_sweep_is_the_difference_of_its_stored_accuracies(stored: Results) -> None:
    found = stored.comparisons
    gains = reading.gains(stored.cells).set_index(POINT)
    assert set(found["gain"]) == {*reading.GAINS, *reading.NLL_GAINS}
    for row in found.to_dict("records"):
        gain = gains.loc[tuple(row[name] for name in POINT), row["gain"]]
        assert row["estimate"] == pytest.approx(float(np.mean(gain)), abs=1e-12)
        assert row["low"] <= row["estimate"] <= row["high"] and row["n_images"] == 50
    assert (found["p_holm"] >= found["p_value"]).all()


def test_scores_of_a_sweep_are_what_predictions_say_by_image(stored: Results) -> None:
    """Against the stored scores, which were made otherwise."""
    scores = stored.scores.query("split == 'test' and bn == 'own' and kind == 'ensemble' and n_members == 3")
    by_cell = scores.set_index("cell_id")
    star, local_de = (stored.cells.query(f"method == '{m}'")["cell_id"].iloc[0] for m in ("sse", "local_de"))
    for metric in comparisons.METRICS:
        found = raybasin.compare(stored, "sse", "local_de", metric=metric)
        assert found.estimate == pytest.approx(by_cell.loc[star, metric] - by_cell.loc[local_de, metric], abs=1e-9)
        assert found.knows == ("images",)


def test_soups_are_compared_with_the_statistics_that_are_asked_for(stored: Results) -> None:
    cell = stored.cells.query("method == 'sse'").iloc[0]
    own = raybasin.compare(stored, {"method": "sse", "of": "soup"}, "hub")
    like = raybasin.compare(stored, {"method": "sse", "of": "soup"}, {"of": "hub", "bn": "reestimated"})
    assert own.estimate == pytest.approx(cell["soup_accuracy"] - cell["hub_accuracy"])
    assert like.estimate == pytest.approx(cell["soup_accuracy"] - cell["hub_accuracy_reestimated"])


def test_without_predictions_on_test_there_is_the_estimate_alone(tmp_path: Path) -> None:
    results = reading.open(synthetic.write(tmp_path, synthetic.grid()))
    row = results.comparisons.query("gain == 'over_local_de' and method == 'star_sse'").iloc[0]
    assert row["estimate"] == pytest.approx(-0.004, abs=0.05) and np.isnan(row["low"]) and row["verdict"] is None
    assert reading.grid(results, "ensemble_gain", "star_sse", synthetic.CHECKPOINT)["low"].isna().all()


@pytest.mark.parametrize(
    ("a", "b", "metric", "said"),
    [
        ("star_sse", "local_de", None, "star_sse: 2 points are meant; name lr_ratio too"),
        ("nonsense", "hub", None, "method nonsense: has no finished cell"),
        ({"method": "sse", "lr": 1}, "hub", None, "lr: is nothing to choose a point by"),
        ({"method": "sse", "of": "soops"}, "hub", None, "of soops: is no predictor of a cell; did you mean 'soup'"),
        ({"method": "sse", "lr_ratio": 3}, "hub", None, "method sse, lr_ratio 3: no finished cell lies there"),
        ("sse", "local_de", "ece", "metric ece: cannot be compared image by image"),
    ],
)
def test_what_is_no_point_is_said_to_be_none(stored: Results, a: Any, b: Any, metric: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        raybasin.compare(stored, a, b, metric=metric)


# Barriers


def test_every_path_holds_what_each_image_adds_where_it_is_highest(stored: Results) -> None:
    paths = stored.paths
    highest = paths[paths["image_error_excess"].notna()]
    assert len(highest) == paths.groupby(["cell_id", "path_id"]).ngroups
    for row in highest.to_dict("records"):
        assert len(row["image_error_excess"]) == row["images"] == 60
        assert np.mean(row["image_error_excess"]) == pytest.approx(row["error_excess"], abs=1e-7)
        se = np.std(row["image_error_excess"], ddof=1) / np.sqrt(60)
        assert se == pytest.approx(row["error_excess_se"], abs=1e-7)


def assert_as_the_cells_say(results: Results, threshold: float, barrier: str, **tolerance: float) -> None:
    """One replicate: the images' t interval around what the cell says, and of errors what is not seen to change."""
    cells, excess = results.cells.set_index(POINT), comparisons._excesses(results)
    step = 1.0 if barrier == "barrier_error" else 0.0
    assert len(results.barriers) == 4
    for row in results.barriers.to_dict("records"):
        cell = cells.loc[tuple(row[name] for name in POINT)]
        unseen = intervals.unseen(np.count_nonzero(excess[cell["cell_id"]]), 60, step)
        half = intervals.Variance(float(cell[f"{barrier}_se"]) ** 2 + unseen, np.nan, 60, 1).half_width()
        assert row[barrier] == cell[barrier]
        high = min(cell[barrier] + half, 1.0 if barrier == "barrier_error" else math.inf)
        assert row["high"] == pytest.approx(high, **tolerance)
        assert row["side"] == intervals.side(row["low"], row["high"], threshold)


def test_the_interval_of_a_barrier_is_that_of_the_path_that_decides(stored: Results) -> None:
    assert_as_the_cells_say(stored, 0.02, "barrier_error", abs=1e-6)


@pytest.mark.parametrize("by", ["error", "nll"])
def test_of_each_cell_the_one_path_is_read_that_has_its_barrier(
    stored: Results, monkeypatch: pytest.MonkeyPatch, by: Any
) -> None:
    monkeypatch.setattr(Results, "criterion", Criterion(0.06, by))
    results, older = (reading.open(stored.folder.root) for _ in range(2))
    files = comparisons._deciding_paths(results)
    assert files and len(files) == len(results.cells)
    column = f"barrier_{by}_member"
    for cell, file in zip(results.cells.to_dict("records"), files, strict=True):
        assert file == f"{cell['cell_id']}-{results.stored.settings.path_id(cell['hub_id'], cell[column])}"
    vars(older)["cells"] = older.cells.assign(**{column: None})  # as earlier versions wrote it
    assert len(comparisons._deciding_paths(older) or ()) > len(files)
    excess, of_older = comparisons._excesses(results), comparisons._excesses(older)
    assert excess.keys() == of_older.keys() == set(results.cells["cell_id"])
    assert all(np.array_equal(excess[cell_id], of_older[cell_id]) for cell_id in excess)


def test_of_a_barrier_in_nats_too(stored: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Results, "criterion", Criterion(0.06, "nll"))
    results = reading.open(stored.folder.root)
    assert (results.cells["barrier_nll_se"] > 0).all()
    assert_as_the_cells_say(results, 0.06, "barrier_nll", rel=1e-5)


def test_replicates_that_differ_widen_the_interval_of_a_barrier(tmp_path: Path) -> None:
    heights = {1: (0.0, 0.001, 0.0), 2: (0.01, 0.02, 0.03), 4: (0.2, 0.21, 0.2), 8: (0.0, 0.5, 0.3)}
    cells = [
        synthetic.cell("star_sse", lr, 1, replicate, barrier_error=height, barrier_error_se=0.001)
        for lr, of_replicates in heights.items()
        for replicate, height in enumerate(of_replicates)
    ]
    results = reading.open(synthetic.write(tmp_path, cells))
    found = results.barriers.set_index("lr_ratio")
    assert found["side"].to_dict() == {1: "in", 2: "undecided", 4: "out", 8: "undecided"}
    assert (found["low"] >= 0).all() and set(found["n_replicates"]) == {3}
    expected = intervals.Variance(0.001**2, np.var(heights[2], ddof=1) / 3, 5000, 3).half_width()
    assert found["high"][2] == pytest.approx(0.02 + expected)


def test_a_verdict_that_does_not_hold_after_holm_says_so():
    assert comparisons.verdict_words("better", 0.049) == "better"
    assert comparisons.verdict_words("better", 0.566) == "better alone, not after Holm"
    assert comparisons.verdict_words("worse", 0.06, brief=True) == "worse alone"
    assert comparisons.verdict_words("not distinguishable", 1.0) == "not distinguishable"
    assert comparisons.verdict_words(None, np.nan) == comparisons.verdict_words(np.nan, np.nan) == ""
