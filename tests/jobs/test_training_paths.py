"""Barriers on training images: what is measured there, and that it decides."""

import numpy as np
import pytest
import tiny
import torch

import raybasin
from raybasin.analysis.rescore import rescore
from raybasin.data import dataset
from raybasin.jobs.worker_context import WorkerContext
from raybasin.landscape import barriers
from raybasin.metrics import classification
from raybasin.store import inventory


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("train") / "r"
    methods = {"star_sse": {"n_members": 3, "lr_ratio": [16]}}
    assert raybasin.run(tiny.tree(methods=methods, basin__split="train"), root).complete
    return raybasin.open(root)


def test_paths_are_measured_on_training_images_beside_validation(results):
    sizes = results.paths.groupby("split")["images"].unique()
    assert {split: list(images) for split, images in sizes.items()} == {"train": [40], "val": [60]}


def test_the_ends_of_a_path_are_its_networks_on_training_images_without_augmentation(results):
    made = inventory.stored_plan(results.folder, results.settings_id)
    context = WorkerContext(results.folder, made.settings, dataset.load(made.spec.data), {}, torch.device("cpu"))
    labels_N = context.images("train")[1].numpy()
    path = results.paths.query("split == 'train' and kind == 'hub-member'").sort_values("t")
    for t, member in ((0.0, "start_id"), (1.0, "end_id")):
        row = path[path["t"] == t].iloc[0]
        state = context.weights_of(context.sha256_of(row[member]))
        log_probs_NC = context.predict_at(state, ["train"])["train"]
        assert row["nll"] == pytest.approx(classification.nll(log_probs_NC, labels_N))
        assert row["error"] == pytest.approx(1 - classification.accuracy(log_probs_NC, labels_N))


def test_they_decide_the_barrier_of_the_cell_and_its_interval(results):
    (cell,) = results.cells.to_dict("records")
    rows = results.paths[results.paths["split"] == "train"].to_dict("records")
    expected = barriers.summary(rows)
    assert {name: cell[name] for name in ("barrier_error", "barrier_nll")} == pytest.approx(
        {name: expected[name] for name in ("barrier_error", "barrier_nll")}
    )
    (barrier,) = results.barriers.to_dict("records")
    assert (barrier["n_images"], barrier["barrier_error"]) == (40, cell["barrier_error"])
    stored = results.paths.query("split == 'train' and kind == 'hub-member'")["image_error_excess"].dropna()
    means = [float(np.mean(excess)) for excess in stored]
    assert max(0.0, *means) == pytest.approx(cell["barrier_error"], abs=1e-7)


def test_scores_computed_again_agree(results):
    again = rescore(results.folder, results.cells.to_dict("records"), results.facts["eval_id"])
    assert again.differences == ()
