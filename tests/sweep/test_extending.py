"""What it takes to add a method: one file, whatever it does. This writes that file, and runs a sweep with it."""

import sys

import pytest
import tiny

import raybasin
from raybasin.analysis import maps, results
from raybasin.errors import UserError
from raybasin.jobs import execution
from raybasin.store import tables
from raybasin.sweep import methods, plan, specs
from raybasin.sweep.job_list import Done, jobs_left
from raybasin.sweep.methods import METHODS

FILE = '''
"""A star whose branches shrink their weights a little at every step."""

from typing import ClassVar

from raybasin.sweep.fields import Positive
from raybasin.sweep.methods.method import Method


class Shrinking(Method):
    source: ClassVar = "these tests"
    style: ClassVar = ("p", "#123456")
    callback: ClassVar = f"{__name__}:shrink"

    share: Positive = 0.001

    def parent(self, index):
        return 0


def shrink(member, settings):
    from raybasin.training.callbacks import StepCallback

    class Shrink(StepCallback):
        def after_step(self, net, done):
            for parameter in net.parameters():
                parameter.data.mul_(1 - member.option["share"])

    return Shrink()
'''


@pytest.fixture
def shrinking(tmp_path, monkeypatch):
    """The file, where it would lie in the repository."""
    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "shrinking.py").write_text(FILE)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(folder)])
    monkeypatch.setitem(METHODS, "shrinking", methods.found()["shrinking"])
    yield
    del sys.modules["raybasin.sweep.methods.shrinking"]


def test_a_method_is_one_file(shrinking, tmp_path):
    wanted = {"star_sse": {"n_members": 2}, "shrinking": {"n_members": 2, "share": 0.01}}
    report = raybasin.run(tiny.tree(methods=wanted, recipe__epochs=1), tmp_path / "r")
    assert report.complete and not report.failures
    opened = raybasin.open(tmp_path / "r")
    assert results.methods_with_a_map(opened) == ["star_sse", "shrinking share=0.01"]
    assert "shrinking share=0.01" in [axis.get_title(loc="left").split(",")[0] for axis in
                                      maps.map_figure(opened, method=None).axes]  # fmt: skip
    branches = opened.members[opened.members["member_index"] == 1]
    assert sorted(branches["method"]) == ["shrinking", "star_sse"]
    assert branches["weights_sha256"].nunique() == 2  # from one hub, with one seed
    with pytest.raises(UserError, match=r"methods.shrinking.share: must be greater than 0, not -1"):
        specs.parse(tiny.tree(methods={"shrinking": {"share": -1}}))
    with pytest.raises(UserError, match=r"methods.sse.share: only shrinking takes it"):
        specs.parse(tiny.tree(methods={"sse": {"share": 1}}))


def test_a_callback_alone_makes_another_network(shrinking):
    """Lineage and keys may be those of another method."""
    made = plan.make(tiny.spec(methods={"star_sse": {"n_members": 2}, "shrinking": {"n_members": 2}}), tiny.facts())
    assert len(made.members) == 3


def test_a_job_that_was_not_planned_at_the_start_is_done_by_a_worker_of_before(tmp_path):
    """A worker holds nothing that grows with the cells: what a job takes it brings along."""
    few, more = (tiny.spec(methods={"star_sse": {"n_members": 2, "lr_ratio": rates}}, recipe__epochs=1)
                 for rates in ([1], [1, 2]))  # fmt: skip
    worker = tiny.context(tmp_path, few)
    later = tiny.context(tmp_path, more).plan
    assert worker.settings.settings_id == later.settings_id
    for job in jobs_left(later, Done()):
        execution.run(job, worker)
    assert {row["lr_ratio"] for row in tables.rows(worker.folder, "cells")} == {1.0, 2.0}
