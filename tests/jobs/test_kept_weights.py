"""Splits whose predictions are kept and splits that are only scored: the same scores, and what is done when the choice
changes. Soups of every size. Deep-ensemble equivalents against a Local DE that grows."""

import shutil
from collections import Counter

import numpy as np
import pytest
import tiny
import torch
from images import write_folder
from scipy.special import logsumexp

import raybasin
from raybasin import console
from raybasin.analysis import integrity, results
from raybasin.analysis.rescore import rescore
from raybasin.errors import UserError
from raybasin.jobs import disk, execution, local
from raybasin.landscape import batch_norm
from raybasin.metrics import cell_scores, classification
from raybasin.store import inventory, predictions, tables
from raybasin.store.folders import Folder
from raybasin.store.predictions import read_predictions, stored_predictions
from raybasin.store.schemas import KEYS
from raybasin.sweep import ids, plan
from raybasin.sweep.facts import ShiftFacts
from raybasin.sweep.job_list import Closing, Done, Job, jobs_left
from raybasin.training import evaluation, loop, models

METHODS = {"star_sse": {"n_members": 3, "lr_ratio": 4}, "local_de": {"n_members": 2}}
CLASSES = [str(name) for name in (5, 6, 7, 8, 9)]


@pytest.fixture(scope="module")
def spec_of(tmp_path_factory):
    """The tiny sweep with two shift sets, `gray` of 20 images and `dark` of 5, with keys changed."""
    root = tmp_path_factory.mktemp("images")
    for name, count in (("gray", 4), ("dark", 1)):
        write_folder(root / name, dict.fromkeys(CLASSES, count), splits=("test",), size=(8, 8))
    shifts = {name: {"format": "folder", "dir": str(root / name)} for name in ("gray", "dark")}
    return lambda **changes: tiny.spec(**{"methods": METHODS, "shifts": shifts, **changes})


@pytest.fixture(scope="module")
def everything(spec_of, tmp_path_factory):
    """Its results with all predictions kept. To be read only."""
    return ran(spec_of(), tmp_path_factory.mktemp("everything"))


@pytest.fixture(scope="module")
def scored_only(spec_of, everything, tmp_path_factory):
    """The same networks in a folder that keeps no predictions on shift sets."""
    root = tmp_path_factory.mktemp("scored-only") / "copy"
    shutil.copytree(everything.folder.root, root)
    forget(Folder(root), set(everything.plan.shift_eval_ids.values()))
    return ran(spec_of(keep={"predictions": ["val", "test"]}), root)


def ran(spec, root):
    report = raybasin.run(spec, root)
    assert report.complete, report.failures
    return tiny.Sweep(Folder(root), report.plan)


def forget(folder, names):
    """Removes the cells and their scores, and predictions in files of these names."""
    for table in ("cells", "scores"):
        for unit in tables.units(folder, table):
            folder.delete(f"{table}/{unit}.parquet")
    for unit in tables.units(folder, "predictions"):
        if unit.partition("-")[2] in names:
            folder.delete(f"predictions/{unit}.parquet")


def copy_of(sweep, tmp_path):
    shutil.copytree(sweep.folder.root, tmp_path / "copy")
    return Folder(tmp_path / "copy")


def scores(sweep):
    """By cell, predictor, split and statistics; NaN as text, so that rows can be compared."""
    key = ("cell_id", "predictor_id", "split", "bn")
    return {
        tuple(row[name] for name in key): {k: "nan" if v != v else v for k, v in row.items()}
        for row in sweep.rows("scores")
    }


def rescored(sweep):
    opened = raybasin.open(sweep.folder.root, settings=sweep.plan.settings_id)
    cells = opened.cells.to_dict("records")
    facts = opened.facts
    return rescore(opened.folder, cells, facts["eval_id"], facts["shift_eval_ids"])


@pytest.fixture
def passes(monkeypatch):
    """How often networks were run on how many images, and how many were trained."""
    seen = Counter()
    log_probs, train = evaluation.log_probs, loop.train

    def counting(net, images_NHWC, preprocess, *beat):
        seen[len(images_NHWC)] += 1
        return log_probs(net, images_NHWC, preprocess, *beat)

    def training_counted(*args, **kwargs):
        seen["trained"] += 1
        return train(*args, **kwargs)

    monkeypatch.setattr(evaluation, "log_probs", counting)
    monkeypatch.setattr(loop, "train", training_counted)
    return seen


# Shift sets


def test_every_predictor_is_scored_on_every_split(everything):
    found = scores(everything)
    for cell in everything.plan.cells:
        rows = [row for (cell_id, *_), row in found.items() if cell_id == cell.cell_id]
        n = len(cell.member_ids)
        for split in ("val", "test", "gray", "dark"):
            kinds = Counter((row["kind"], row["bn"]) for row in rows if row["split"] == split)
            assert kinds == {
                ("member", "own"): n, ("member", "reestimated"): n, ("ensemble", "own"): n,
                ("ensemble", "reestimated"): n, ("uniform_soup", "reestimated"): n - 1,
                ("greedy_soup", "reestimated"): 1,
            }  # fmt: skip


def test_predictions_on_a_shift_are_the_networks_own_in_a_file_of_their_own(everything, spec_of):
    cell = everything.cell("star_sse", 4.0)
    member_id = cell.member_ids[1]
    eval_id = everything.plan.shift_eval_ids["gray"]
    rows = tables.rows(everything.folder, "predictions", [f"{member_id}-{eval_id}"])
    assert {(row["split"], row["eval_id"], row["kind"]) for row in rows} == {("gray", eval_id, "member")}
    context = tiny.context(everything.folder.root, spec_of())
    sha256 = everything.members()[member_id]["weights_sha256"]
    net = models.build(tiny.spec().model, 5, seed=0).to(memory_format=torch.channels_last)
    net.load_state_dict(models.from_bytes(everything.folder.get(f"weights/{sha256}.safetensors")))
    expected_NC = evaluation.log_probs(net, context.images("gray")[0], context.preprocess)
    found_MNC = raybasin.log_probs(everything.folder.root, cell.cell_id, "gray")
    assert found_MNC.shape == (3, 20, 5)
    np.testing.assert_array_equal(found_MNC[1], expected_NC)


def test_temperatures_come_from_validation_on_every_split(everything):
    found = scores(everything)
    for (cell_id, predictor_id, _, bn), row in found.items():
        assert row["temperature"] == found[cell_id, predictor_id, "val", bn]["temperature"]
        assert (row["calibrated_nll"] == "nan") == (row["split"] == "val")


@pytest.mark.parametrize("split", ["test", "gray", "dark"])
def test_the_equivalent_on_a_split_is_against_local_de_on_that_split(everything, split):
    """By hand: probabilities are averaged, tempered at the temperature in the table, and sizes interpolated."""
    found, root = scores(everything), everything.folder.root
    read = raybasin.open(root).scores.set_index(["cell_id", "predictor_id", "split", "bn"])["deep_ensemble_equivalent"]
    star, local_de = everything.cell("star_sse", 4.0), everything.cell("local_de")
    labels_N = raybasin.open(root).predictions(local_de.member_ids[:1], split)["label"].to_numpy()

    def calibrated(cell, size):
        log_probs_MNC = raybasin.log_probs(root, cell.cell_id, split)[:size].astype(np.float64)
        key = cell.cell_id, cell_scores.ensemble_id(cell.member_ids[:size]), split, "own"
        row = found[key]
        scaled_NC = np.log(np.exp(log_probs_MNC).mean(0)) / row["temperature"]
        nll = float(np.mean(logsumexp(scaled_NC, 1) - scaled_NC[np.arange(len(labels_N)), labels_N]))
        assert row["calibrated_nll"] == pytest.approx(nll, rel=1e-6)
        return nll, read[key]

    one, two = (calibrated(local_de, size)[0] for size in (1, 2))
    for size in (1, 2, 3):
        nll, equivalent = calibrated(star, size)
        # Where the second member does not help, what is better than one network is as good as "at least two".
        between = 1 + (one - nll) / (one - two) if two < one else 1 + (nll < one)
        assert equivalent == pytest.approx(min(max(between, 1), 2), abs=1e-4)


def test_scores_of_every_split_are_computed_again(everything):
    again = rescored(everything)
    assert (again.differences, again.not_kept) == ((), 0)
    assert again.figures > len(everything.rows("scores")) * 15
    assert integrity.check(everything.folder) == []


def test_a_new_shift_leaves_networks_and_predictions_and_adds_its_own(copied, spec_of, passes):
    methods = {"sse": {"n_members": 3}}
    before = {path.name: path.read_bytes() for path in (copied.folder.root / "predictions").iterdir()}
    grown = ran(spec_of(methods=methods), copied.folder.root)
    after = {path.name: path.read_bytes() for path in (copied.folder.root / "predictions").iterdir()}
    assert {name: after[name] for name in before} == before
    # Three members with two kinds of statistics and three soups. Greedy soups are chosen on the 60 of validation.
    assert (passes["trained"], passes[20], passes[5], passes[50]) == (0, 9, 9, 0)
    assert {row["split"] for row in grown.rows("scores") if row["cell_id"] in grown.plan.cell} == {
        "val", "test", "gray", "dark",
    }  # fmt: skip


def test_every_file_is_read_once_for_each_split_and_one_split_at_a_time(everything, monkeypatch):
    read, order = read_predictions, []

    def noting(folder, predictor_id, eval_id, split=None):
        order.append((split or eval_id, predictor_id))
        return read(folder, predictor_id, eval_id, split)

    monkeypatch.setattr(predictions, "read_predictions", noting)
    cell = everything.cell("star_sse", 4.0)
    made = everything.plan
    eval_ids = {split: made.shift_eval_ids.get(split, made.eval_id) for split in made.splits}
    soups = cell_scores.soups_of(tables.row(everything.folder, "cells", cell.cell_id))
    cell_scores.score_rows(cell.cell_id, cell.member_ids, soups, stored_predictions(everything.folder, eval_ids, True))
    assert len(order) == len(set(order)) == 4 * (3 + 3)
    splits = [split for split, _ in order]
    assert splits == sorted(splits, key=splits.index)


# What is not kept


def test_scores_are_the_same_whether_predictions_are_kept_or_not(everything, scored_only):
    assert scored_only.plan.settings_id == everything.plan.settings_id
    assert set(scored_only.plan.cell) == set(everything.plan.cell)
    assert scores(scored_only) == scores(everything)
    shifted = set(everything.plan.shift_eval_ids.values())
    assert not [u for u in tables.units(scored_only.folder, "predictions") if u.partition("-")[2] in shifted]
    assert integrity.check(scored_only.folder) == []


def test_what_cannot_be_computed_again_is_counted_and_named(everything, scored_only):
    again = rescored(scored_only)
    assert again.differences == () and again.not_kept_splits == ("dark", "gray")
    assert again.figures + again.not_kept == rescored(everything).figures
    half = sum(row["split"] in ("gray", "dark") for row in scored_only.rows("scores"))
    assert again.not_kept % half == 0 and again.not_kept > 10 * half


def test_log_probs_that_were_not_kept_are_asked_for_in_vain_with_the_way_out(scored_only):
    with pytest.raises(UserError, match="predictions on split gray were not stored; put it into keep.predictions"):
        raybasin.log_probs(scored_only.folder.root, scored_only.plan.cells[0].cell_id, "gray")
    assert len(raybasin.log_probs(scored_only.folder.root, scored_only.plan.cells[0].cell_id, "test"))


def test_predictions_that_are_to_be_kept_later_are_made_without_training(everything, scored_only, tmp_path, spec_of,
                                                                       passes):  # fmt: skip
    folder = copy_of(scored_only, tmp_path)
    wider = spec_of(keep={"predictions": ["val", "test", "gray"]})
    made = plan.make(wider, scored_only.plan.facts)
    left = jobs_left(made, inventory.survey(folder))
    assert [job.task.cell for job in left if job.kind == "cell"] == list(made.cells)
    grown = ran(wider, folder.root)
    assert (passes["trained"], passes[5], passes[50], passes[60]) == (0, 0, 0, 0)
    # Four members, twice each; soups of two and three and a greedy one, and of local_de of two and a greedy one.
    assert passes[20] == 2 * 4 + 3 + 2
    cell_id = grown.plan.cells[0].cell_id
    np.testing.assert_array_equal(
        raybasin.log_probs(folder.root, cell_id, "gray"), raybasin.log_probs(everything.folder.root, cell_id, "gray")
    )
    again = rescored(grown)
    assert again.differences == () and again.not_kept_splits == ("dark",)
    assert jobs_left(grown.plan, inventory.survey(folder)) == []
    assert scores(grown) == scores(everything)


def test_networks_that_are_gone_fail_the_cell_by_name_and_leave_it_committed(scored_only, tmp_path, spec_of):
    folder = copy_of(scored_only, tmp_path)
    member_id = scored_only.cell("local_de").member_ids[1]
    folder.delete(f"weights/{scored_only.members()[member_id]['weights_sha256']}.safetensors")
    report = raybasin.run(spec_of(), folder.root)
    assert not report.complete and report.committed == 2
    assert [failure.cell.point.method for failure in report.failures] == ["local_de"]
    assert "weights" in report.failures[0].reason


def test_test_predictions_that_were_left_out_come_into_files_of_their_own(everything, spec_of, tmp_path, passes):
    folder = copy_of(everything, tmp_path)
    eval_id = everything.plan.eval_id
    forget(folder, {eval_id, *everything.plan.shift_eval_ids.values()})
    without = ran(spec_of(keep={"predictions": ["val"]}), folder.root)
    assert {name for _, name in inventory.survey(folder).predictions} == {f"{eval_id}-val"}
    assert scores(without) == scores(everything) and integrity.check(folder) == []
    assert rescored(without).not_kept_splits == ("dark", "gray", "test")
    with pytest.raises(UserError, match="predictions on split test were not stored"):
        raybasin.log_probs(folder.root, without.plan.cells[0].cell_id, "test")
    grown = ran(spec_of(keep={"predictions": ["val", "test"]}), folder.root)
    assert passes["trained"] == 0
    assert {name for _, name in inventory.survey(folder).predictions} == {f"{eval_id}-val", f"{eval_id}-test"}
    keys = tables.read(folder, "predictions").select(list(KEYS["predictions"])).to_pylist()
    assert len({tuple(row.values()) for row in keys}) == len(keys)
    for split in ("val", "test"):
        cell_id = grown.plan.cells[1].cell_id
        np.testing.assert_array_equal(
            raybasin.log_probs(folder.root, cell_id, split), raybasin.log_probs(everything.folder.root, cell_id, split)
        )
    assert rescored(grown).differences == () and integrity.check(folder) == []


def test_keep_is_in_no_id_and_lost_predictions_of_a_kept_split_are_found(everything, tmp_path):
    folder = copy_of(everything, tmp_path)
    unit = f"{everything.cell('star_sse', 4.0).member_ids[2]}-{everything.plan.shift_eval_ids['dark']}"
    folder.delete(f"predictions/{unit}.parquet")
    problems = integrity.check(folder)
    assert {problem.key for problem in problems} == {f"cells/{everything.cell('star_sse', 4.0).cell_id}.parquet"}
    assert unit in problems[0].what


def test_a_compacted_copy_gives_the_same_scores_again(everything, tmp_path):
    integrity.compact(everything.folder, tmp_path / "few")
    again = rescored(tiny.Sweep(Folder(tmp_path / "few"), everything.plan))
    assert (again.figures, again.differences, again.not_kept) == (rescored(everything).figures, (), 0)


# Soups of every size


def test_a_soup_of_two_is_the_average_of_the_first_two_with_new_statistics(everything, spec_of):
    cell = everything.cell("star_sse", 4.0)
    context = tiny.context(everything.folder.root, spec_of())
    weights = [everything.members()[member_id]["weights_sha256"] for member_id in cell.member_ids[:2]]
    first, second = (models.from_bytes(everything.folder.get(f"weights/{sha}.safetensors")) for sha in weights)
    net = models.build(tiny.spec().model, 5, seed=0).to(memory_format=torch.channels_last)
    net.load_state_dict({
        name: ((tensor.double() + second[name].double()) / 2).float() if tensor.is_floating_point() else tensor
        for name, tensor in first.items()
    })  # fmt: skip
    batch_norm.reestimate(net, evaluation.batches(context.bn_images_NHWC, context.preprocess))
    soup_id = ids.soup_id("uniform", cell.member_ids[:2])
    for split, (images_NHWC, labels_N) in {**context.splits, "gray": context.images("gray")}.items():
        log_probs_NC = evaluation.log_probs(net, images_NHWC, context.preprocess)
        row = scores(everything)[cell.cell_id, soup_id, split, "reestimated"]
        assert (row["kind"], row["n_members"]) == ("uniform_soup", 2)
        assert row["nll"] == pytest.approx(classification.nll(log_probs_NC, labels_N.numpy()), rel=1e-6)
    # Weights are kept of the soups of all members alone, and of greedy ones, which may happen to be of these two.
    rows, named = everything.rows("cells"), {row["weights_sha256"] for row in everything.members().values()}
    named |= {row[column] for row in rows for column in ("soup_sha256", "greedy_soup_sha256")}
    named |= {row["weights_sha256"] for row in everything.rows("checkpoints")}
    assert {name.removesuffix(".safetensors") for name in everything.folder.names("weights")} == named
    assert models.sha256(models.to_bytes(models.state_of(net))) not in {row["soup_sha256"] for row in rows}


def test_the_soup_of_a_smaller_ensemble_is_found_again(everything, tmp_path, spec_of, passes):
    folder = copy_of(everything, tmp_path)
    smaller = {"star_sse": {"n_members": 2, "lr_ratio": 4}, "local_de": {"n_members": 2}}
    cell = everything.cell("star_sse", 4.0)
    name = f"predictions/{ids.soup_id('uniform', cell.member_ids[:2])}-{everything.plan.eval_id}.parquet"
    before = (folder.root / name).stat().st_mtime_ns
    grown = ran(spec_of(methods=smaller), folder.root)
    assert (folder.root / name).stat().st_mtime_ns == before
    assert passes[20] == 1  # its greedy soup alone
    row = tables.row(folder, "cells", grown.cell("star_sse", 4.0).cell_id)
    larger = [r for r in everything.rows("scores") if r["cell_id"] == cell.cell_id and r["split"] == "test"]
    (soup,) = [r for r in larger if r["kind"] == "uniform_soup" and r["n_members"] == 2]
    assert (row["soup_accuracy"], row["soup_nll"]) == (soup["accuracy"], soup["nll"])


# A Local DE that grows


def test_equivalents_that_are_read_are_against_the_largest_local_de_there_is(everything, tmp_path, spec_of):
    folder = copy_of(everything, tmp_path)
    ran(spec_of(methods={"local_de": {"n_members": 3}}), folder.root)
    opened = raybasin.open(folder.root)
    star = everything.cell("star_sse", 4.0).cell_id
    largest = opened.cells.query("method == 'local_de' and n_members == 3")["cell_id"].item()
    read = opened.scores[opened.scores["cell_id"] == star]
    assert len(read) == sum(row["cell_id"] == star for row in tables.rows(folder, "scores"))
    for row in read.to_dict("records"):
        of = (row["split"], row["bn"])
        reference = opened.scores.query(f"cell_id == '{largest}' and kind == 'ensemble' and split == '{of[0]}'")
        nll_K = reference[reference["bn"] == of[1]].sort_values("n_members")["calibrated_nll"]
        if row["split"] == "val":
            assert np.isnan(row["deep_ensemble_equivalent"])
        else:
            [expected] = classification.deep_ensemble_equivalents([row["calibrated_nll"]], nll_K)
            assert len(nll_K) == 3 and row["deep_ensemble_equivalent"] == expected


def test_without_a_local_de_that_can_be_compared_with_there_is_no_equivalent(everything, monkeypatch):
    opened, alone, endless = (raybasin.open(everything.folder.root) for _ in range(3))
    stored = opened.scores.drop(columns="deep_ensemble_equivalent")
    assert opened.scores["deep_ensemble_equivalent"].notna().any()
    vars(alone)["cells"] = opened.cells[opened.cells["method"] != "local_de"]
    assert alone.scores["deep_ensemble_equivalent"].isna().all()
    vars(endless)["cells"] = opened.cells
    infinite = stored.assign(calibrated_nll=stored["calibrated_nll"].where(stored["kind"] != "ensemble", np.inf))
    monkeypatch.setattr(results.Results, "_of_settings", lambda self, table: infinite)
    assert endless.scores["deep_ensemble_equivalent"].isna().all()


# The plan


def tiny_plan(**changes):
    shifts = (ShiftFacts("gray", "1" * 64, 1000), ShiftFacts("dark", "2" * 64, 500))
    sets = {name: {"format": "folder", "dir": name} for name in ("gray", "dark")}
    return plan.make(tiny.spec(methods=METHODS, shifts=sets, **changes), tiny.facts(shifts=shifts))


def test_the_plan_says_the_disk_by_splits_and_what_leaving_some_out_saves(tmp_path):
    """4 networks predict with two kinds of statistics, 5 soups with one; 5 classes of 4 bytes."""
    predictors = 2 * 4 + 3 + 2
    made = tiny_plan()
    needed = disk.need(made, Done(), jobs_left(made, Done()))
    assert needed.predictions == {
        "val": predictors * 60 * 20, "test": predictors * 50 * 20, "shifts": predictors * 1500 * 20,
    }  # fmt: skip
    assert needed.weights == (4 + 2 * 2) * (1.01 * 1000 * 4 + 40_000)
    text = "\n".join(console.lines(local.look(made, Folder(tmp_path))))
    assert "predictions 0.4 MB (val 0.0 MB, test 0.0 MB, shifts 0.4 MB)" in text
    assert "with keep: {predictions: [val, test]} they are scored and not stored" in text
    made = tiny_plan(keep={"predictions": ["val", "test", "dark"]})
    assert disk.need(made, Done(), jobs_left(made, Done())).predictions["shifts"] == predictors * 500 * 20
    text = "\n".join(console.lines(local.look(made, Folder(tmp_path))))
    assert "predictions on gray are scored and not stored, which saves" in text


def test_scoring_without_stored_predictions_costs_a_look_at_every_network(tmp_path):
    kept, left = tiny_plan(), tiny_plan(keep={"predictions": ["val", "test"]})
    assert kept.settings_id == left.settings_id and kept.cells == left.cells
    star = next(cell for cell in kept.cells if cell.point.method == "star_sse").cell_id
    costs = [{job.job_id: job.cost for job in jobs_left(made, Done())} for made in (kept, left)]
    soups = 3 * 1500
    assert costs[1][f"cell-{star}"] - costs[0][f"cell-{star}"] == (2 * 3 + 3) * 1500 + 3 * 20 - soups
    member = kept.cells[0].member_ids[0]
    assert costs[0][f"member-{member}"] - costs[1][f"member-{member}"] == 2 * 1500


def test_two_names_of_one_set_share_their_predictions():
    shifts = (ShiftFacts("gray", "1" * 64, 10), ShiftFacts("dark", "1" * 64, 10))
    sets = {name: {"format": "folder", "dir": name} for name in ("gray", "dark")}
    made = plan.make(tiny.spec(methods=METHODS, shifts=sets), tiny.facts(shifts=shifts))
    files = made.missing_files(lambda name: False)
    assert [file.name for file in files] == [made.eval_id, made.shift_eval_ids["gray"]]


@pytest.mark.parametrize(
    ("predictions", "error"),
    [
        (["test"], "keep.predictions: must hold val, from which temperatures"),
        (["val", "tset"], "keep.predictions: holds 'tset', which is no split; did you mean 'test'?"),
        (["val", "grey"], "keep.predictions: holds 'grey', which is no split; did you mean 'gray'?"),
        ([], "keep.predictions: must not be empty"),
        (["val", "val"], "keep.predictions: holds val twice"),
        ([3], "keep.predictions"),
    ],
)
def test_predictions_that_cannot_be_kept_are_named(predictions, error, spec_of):
    with pytest.raises(UserError) as caught:
        spec_of(keep={"predictions": predictions})
    assert error in str(caught.value)


def test_what_paths_are_evaluated_on_must_be_kept(spec_of):
    with pytest.raises(UserError, match="keep.predictions: must hold test where basin.splits does"):
        spec_of(basin__splits=["val", "test"], keep={"predictions": ["val"]})
    with pytest.raises(UserError, match="keep.prediction: unknown key; did you mean 'predictions'"):
        spec_of(keep={"prediction": ["val"]})


def test_jobs_of_committed_cells_leave_them_as_they_are(everything, spec_of):
    context = tiny.context(everything.folder.root, spec_of())
    before = {path: path.read_bytes() for path in everything.folder.root.rglob("*") if path.is_file()}
    for cell in everything.plan.cells:
        execution.run(Job(Closing(cell), 1.0), context)
    assert {path: path.read_bytes() for path in everything.folder.root.rglob("*") if path.is_file()} == before
