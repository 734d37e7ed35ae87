"""Two sweeps in one folder at once: nothing collides, the first commit wins, and all that is left speaks of it.

Most of these let the second sweep run in the middle of a job of the first, which is what a worker that loses goes
through, at a moment that is certain. One has two processes.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import places
import pytest
import tiny
import yaml

import raybasin
from raybasin.analysis import integrity
from raybasin.analysis.rescore import rescore
from raybasin.jobs import measure_paths, prepare, score_cells, train_members
from raybasin.metrics import cell_scores
from raybasin.store import folders, inventory, tables
from raybasin.store.predictions import read_predictions
from raybasin.store.schemas import KEYS
from raybasin.sweep import specs
from raybasin.training import evaluation, models

TESTS = places.TESTS
SMALL = {"methods": {"star_sse": {"n_members": 3}}, "recipe__epochs": 1}
WITH_LOCAL_DE = {**SMALL, "methods": {"star_sse": {"n_members": 2}, "local_de": {"n_members": 3}}}
OTHER_TEST_IMAGES = {**SMALL, "data__test_images": 30}
MORE_POINTS = {**SMALL, "basin__points": 5}


def assert_one_truth(root, *sweeps):
    """Whole, no key twice, nothing left behind; every prediction made from the weights that rows name."""
    folder = folders.existing(root)
    assert integrity.check(folder) == []
    for table, key in KEYS.items():
        rows = tables.read(folder, table).select(list(key)).to_pylist()
        count = Counter(tuple(row.values()) for row in rows)
        assert not [row for row, n in count.items() if n > 1], table
    assert not [name for name in folder.names("state") if name.startswith(("member-", "checkpoint-", "cell-"))]
    sha256 = {row["member_id"]: row["weights_sha256"] for row in tables.rows(folder, "members")}
    for sweep in sweeps:
        made = prepare.prepare(specs.parse(sweep)).plan
        opened = raybasin.open(root, made.settings_id)
        assert set(opened.cells["cell_id"]) >= {cell.cell_id for cell in made.cells}
        cells = [{str(k): v for k, v in row.items()} for row in opened.cells.to_dict("records")]
        again = rescore(folder, cells, made.eval_id)
        assert again.differences == () and again.figures
        assert_predictions_are_of(folder, made, sha256)


def assert_predictions_are_of(folder, made, sha256):
    context = tiny.context(folder.root, made.spec)
    for member_id in {m for cell in made.cells for m in cell.member_ids}:
        net = context.network(models.from_bytes(folder.get(f"weights/{sha256[member_id]}.safetensors")))
        stored = read_predictions(folder, member_id, made.eval_id)["test", "own"].log_probs_NC
        now = evaluation.log_probs(net, context.splits["test"][0], context.preprocess)
        np.testing.assert_allclose(stored, now, atol=1e-6)
    for row in tables.rows(folder, "cells", [cell.cell_id for cell in made.cells]):
        for soup in cell_scores.soups_of(row):
            if soup.sha256:
                net = context.network(models.from_bytes(folder.get(f"weights/{soup.sha256}.safetensors")))
                blocks = read_predictions(folder, soup.predictor_id, made.eval_id)
                now = evaluation.log_probs(net, context.splits["test"][0], context.preprocess)
                np.testing.assert_allclose(blocks["test", context.soup_statistics].log_probs_NC, now, atol=1e-6)


class Second:
    """A sweep that runs once, in the middle of the first one's job, and ends at other weights, as a second GPU may."""

    def __init__(self, monkeypatch, sweep, root):
        self.monkeypatch, self.sweep, self.root, self.begun = monkeypatch, sweep, root, False

    def run(self):
        if self.begun:
            return
        self.begun = True
        train = train_members._train

        def train_elsewhere(net, *arguments, **options):
            made = train(net, *arguments, **options)
            net.load_state_dict(_shifted(models.state_of(net)))
            return made

        with self.monkeypatch.context() as patch:
            patch.setattr(train_members, "_train", train_elsewhere)
            report = raybasin.run(self.sweep, self.root)
        assert report.complete and not report.failures

    def within(self, owner, name, nth=1, before=False):
        """Has it run right after (or before) the nth call of a function of the first sweep."""
        function, calls = getattr(owner, name), []

        def called(*arguments, **options):
            calls.append(name)
            now = len(calls) == nth and not self.begun
            if now and before:
                self.run()
            result = function(*arguments, **options)
            if now and not before:
                self.run()
            return result

        self.monkeypatch.setattr(owner, name, called)


def _shifted(state):
    return {key: tensor + 1e-3 if key.endswith("weight") else tensor for key, tensor in state.items()}


MOMENTS = {
    "when it has trained the hub": (train_members, "_make_weights", 1, False),
    "when it has trained a member": (train_members, "_make_weights", 2, False),
    "when it has agreed on a member": (train_members, "_agreed_weights", 2, False),
    "when it is about to predict": (train_members, "predict_member", 2, True),
    "when it measures a path": (measure_paths, "_line", 1, False),
    "when it is about to make soups": (score_cells, "_soups", 1, True),
    "when it has made soups": (score_cells, "_soups", 1, False),
    "when it scores a cell": (score_cells.cell_scores, "score_rows", 1, True),
    "when it commits a cell": (score_cells.cell_scores, "cell_columns", 1, False),
    "when it has pre-trained": (train_members, "_train", 1, False),
}
PAIRS = {
    "the same sweep": (SMALL, SMALL),
    "other test images": (SMALL, OTHER_TEST_IMAGES),
    "with local_de": (SMALL, WITH_LOCAL_DE),
    "without local_de": (WITH_LOCAL_DE, SMALL),
    "more points": (SMALL, MORE_POINTS),
}
QUICK = {
    ("other test images", "when it has trained a member"), ("without local_de", "when it scores a cell"),
    ("the same sweep", "when it has agreed on a member"),
}  # fmt: skip
ALL = [pytest.param(pair, moment, id=f"{pair}, {moment}", marks=() if (pair, moment) in QUICK else pytest.mark.slow)
       for pair in PAIRS for moment in MOMENTS]  # fmt: skip


@pytest.mark.parametrize(("pair", "moment"), ALL)
def test_a_sweep_that_another_overtakes_uses_what_that_has_left(pair, moment, tmp_path, monkeypatch):
    first, other = (tiny.tree(**changes) for changes in PAIRS[pair])
    second = Second(monkeypatch, other, tmp_path / "r")
    owner, name, nth, before = MOMENTS[moment]
    second.within(owner, name, nth, before)
    report = raybasin.run(first, tmp_path / "r")
    assert second.begun and report.complete and not report.failures
    monkeypatch.undo()
    assert_one_truth(tmp_path / "r", first, other)


@pytest.mark.slow
def test_a_folder_that_two_sweeps_share_is_as_whole_as_a_folder_of_one(tmp_path):
    for first, second in [(SMALL, WITH_LOCAL_DE), (WITH_LOCAL_DE, SMALL)]:
        root = tmp_path / ("larger" if first is WITH_LOCAL_DE else "smaller")
        for changes in (first, second):
            assert raybasin.run(tiny.tree(**changes), root).complete
        assert_one_truth(root, tiny.tree(**first), tiny.tree(**second))


RUNNER = """
import json, random, sys, time
import raybasin, torch
from raybasin.jobs import train_members as members
torch.set_num_threads(1)
draw, trained = random.Random(int(sys.argv[3])), members._make_weights
def late(*arguments):  # it often loses after it has trained
    made = trained(*arguments)
    time.sleep(draw.choice([0, 0.2, 0.5]))
    return made
members._make_weights = late
time.sleep(draw.uniform(0, 1))
report = raybasin.run(sys.argv[1], sys.argv[2])
print(json.dumps([report.complete, [failure.reason for failure in report.failures]]))
"""


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 6))])
def test_two_processes_in_one_folder_leave_one_truth(seed, tmp_path):
    sweeps = [tiny.tree(**SMALL), tiny.tree(**(SMALL if seed % 2 else OTHER_TEST_IMAGES))]
    running = []
    for number, sweep in enumerate(sweeps):
        file = tmp_path / f"{number}.yaml"
        file.write_text(yaml.safe_dump(sweep))
        command = [sys.executable, "-c", RUNNER, str(file), str(tmp_path / "r"), str(2 * seed + number)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        cwd=TESTS.parent))  # fmt: skip
    for process in running:
        out, err = process.communicate(timeout=600)
        assert out and json.loads(out.splitlines()[-1]) == [True, []], err[-2000:]
    assert_one_truth(tmp_path / "r", *sweeps)


def test_a_larger_sweep_trains_only_what_is_missing(tmp_path, monkeypatch):
    """More ratios, replicates, members and methods, one after another: what is committed is not touched."""
    trained = []
    original = train_members._agreed_weights
    monkeypatch.setattr(
        train_members,
        "_agreed_weights",
        lambda member, *rest: (trained.append(member.member_id), original(member, *rest))[1],
    )
    base = {"star_sse": {"n_members": 2}}
    steps = [
        (base, {}),
        ({"star_sse": {"n_members": 3}}, {}),
        ({"star_sse": {"n_members": 3, "lr_ratio": [1, 2]}}, {}),
        ({"star_sse": {"n_members": 3, "lr_ratio": [1, 2]}, "tree": {"n_members": 3}, "fge": {"n_members": 2},
          "csgld": {"n_members": 2}, "swag": {"n_members": 2, "cycle_ratio": 2}}, {}),
        (base, {"replicates": 2}),
    ]  # fmt: skip
    before = {}
    for methods, more in steps:
        tree = tiny.tree(methods=methods, recipe__epochs=1, **more)
        made = prepare.prepare(specs.parse(tree)).plan
        expected = set(made.members) - set(before)
        trained.clear()
        assert raybasin.run(tree, tmp_path / "r").complete
        assert sorted(trained) == sorted(expected)
        folder = folders.existing(tmp_path / "r")
        files = {unit: Path(folder.name(f"members/{unit}.parquet")) for unit in tables.units(folder, "members")}
        now = {unit: file.stat().st_mtime_ns for unit, file in files.items()}
        assert {unit: now[unit] for unit in before} == before
        assert set(now) == set(before) | expected
        before = now
    assert inventory.survey(folder).cells and integrity.check(folder) == []
