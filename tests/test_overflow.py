"""Where weights are so far out that a network overflows: what is measured there is a row, and the cell out of the
basin."""

import math

import numpy as np
import pytest
import tiny

import raybasin
from raybasin.analysis import drawing, figures, integrity, maps, quantities, report, results
from raybasin.analysis.rescore import rescore
from raybasin.landscape import interpolation
from raybasin.metrics import cell_scores
from raybasin.store import inventory, tables
from raybasin.store.predictions import read_predictions
from raybasin.training import loop, models

SWEEP = {
    "recipe__epochs": 1, "methods": {"star_sse": {"n_members": 3, "lr_ratio": [1, 4]}}, "basin__trace": True,
    "basin__trace_times": 2, "basin__trace_points": 3,
}  # fmt: skip


def overflowing(state):
    return {name: tensor * 1e39 if name == "fc.weight" else tensor for name, tensor in state.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sweep of which every network between two others overflows."""
    root, interpolate, average = tmp_path_factory.mktemp("overflow"), interpolation.interpolate, interpolation.average

    def averaged(states):
        states = list(states)
        return overflowing(average(states)) if len(states) > 1 else average(states)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpolation, "interpolate", lambda start, end, t: overflowing(interpolate(start, end, t)))
        patch.setattr(interpolation, "average", averaged)
        assert raybasin.run(tiny.tree(**SWEEP), root).complete
    return root


def test_an_infinite_loss_inside_a_path_is_a_row_and_the_cell_is_out_of_the_basin(folder):
    opened = raybasin.open(folder)
    inside = opened.paths[opened.paths["t"] == 0.5]
    assert len(inside) == 2 * 3 and set(inside["nll"]) == {math.inf} and set(inside["error"]) == {1.0}
    assert set(opened.cells["barrier_nll"]) == {math.inf} and not opened.cells["in_basin"].any()
    assert set(opened.barriers["side"]) == {"out"}
    table = results.grid(opened, "ensemble_gain", "star_sse", opened.cells["checkpoint"].iloc[0])
    assert not table["in_basin"].any()


def test_the_side_does_not_hang_on_the_error_alone(folder):
    """An infinite loss at a single image may hardly raise the error."""
    opened = raybasin.open(folder)
    vars(opened)["cells"] = opened.cells.assign(barrier_error=0.0, barrier_error_se=0.1)
    assert results.is_wall(opened.cells).all() and set(opened.barriers["side"]) == {"out"}


def test_a_run_leaves_the_basin_at_an_infinite_loss(folder):
    traced = raybasin.open(folder).cells
    assert (traced["exit_step"] > 0).all() and (traced["checkpoint_barrier_error"] > 0.02).all()


def test_a_soup_that_overflows_is_scored_and_no_greedy_soup_takes_it(folder):
    scores = raybasin.open(folder).scores
    uniform = scores[scores["kind"] == "uniform_soup"]
    assert set(uniform["accuracy"]) == {0.0} and set(uniform["nll"]) == {math.inf}
    assert set(scores[scores["kind"] == "greedy_soup"]["n_members"]) == {1}


def test_everything_that_reads_such_a_folder_still_does(folder, tmp_path):
    opened = raybasin.open(folder)
    assert integrity.check(opened.folder) == []
    again = rescore(opened.folder, opened.cells.to_dict("records"), opened.facts["eval_id"])
    assert again.differences == () and again.figures
    assert len(drawing.encoded(maps.map_figure(opened, method=None), "png")) > 1000
    report.write(opened, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size > 10_000
    done = inventory.survey(opened.folder)
    assert done.cells == set(opened.cells["cell_id"])
    soup = next(s for s in cell_scores.soups_of(tables.rows(opened.folder, "cells")[0]) if s.kind == "uniform")
    block = read_predictions(opened.folder, soup.predictor_id, opened.facts["eval_id"])["test", "reestimated"]
    assert np.isnan(block.log_probs_NC).all()


@pytest.mark.filterwarnings("error")
def test_infinite_values_are_drawn_as_such(folder):
    """Cells are coloured by what is finite, and paths show where they leave the picture."""
    opened = raybasin.open(folder)
    figure = maps.map_figure(opened, value="barrier_nll", method=None)
    assert len(drawing.encoded(figure, "png")) > 1000
    axis = figure.axes[0]
    texts = [text.get_text() for text in axis.texts]
    assert len(texts) == len(opened.cells) and all(text.startswith("∞\nout") for text in texts)
    assert np.isfinite(figure.axes[-1].get_ylim()).all()
    assert "infinite loss" in " ".join(text.get_text() for text in figure.legends[0].get_texts())
    of_paths = figures.paths_figure(opened, opened.cells["cell_id"].iloc[0])
    assert len(drawing.encoded(of_paths, "png")) > 1000
    beyond = [[line for line in axis.lines if line.get_gid() == "infinite"] for axis in of_paths.axes[:2]]
    assert [len(lines) for lines in beyond] == [2, 1]  # two paths from the hub, one between members
    assert all(line.get_xdata() == [0.5] for lines in beyond for line in lines)
    assert quantities.quantity("barrier_nll").text(opened.cells["barrier_nll"].mean()) == "∞"


def test_weights_that_are_no_numbers_after_the_last_step_are_a_divergence(tmp_path):
    """The loss of the last step was still finite."""
    context = tiny.context(tmp_path, tiny.spec(**SWEEP))
    net = models.build(context.plan.spec.model, 5, seed=0)
    cycle = loop.Cycle(context.plan.spec.recipe, (), steps=2, max_lr=0.1, seed=0)

    def overflow(net):
        net.get_classifier().weight.data[0, 0] = math.inf

    with pytest.raises(loop.Diverged, match="weights are not finite after the last step"):
        loop.train(net, *context.train, cycle, context.preprocess, watch={2: overflow})
