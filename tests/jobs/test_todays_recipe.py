"""A whole small sweep with all that today's fine-tuning adds: what it costs, what starts from what, what stays."""

import pytest
import tiny

from raybasin.analysis import integrity
from raybasin.jobs import local, prepare
from raybasin.store.folders import Folder
from raybasin.training import models

SPEC = {
    "recipe__optimizer": "lamb", "recipe__lr": 0.005, "recipe__layer_decay": 0.7, "recipe__decay": "matrices",
    "recipe__freeze": ["conv1", "bn1"], "recipe__head_epochs": 1, "recipe__head_lr": 0.02, "recipe__ema_decay": 0.8,
    "methods": {"star_sse": {"n_members": 2}, "sse": {"n_members": 3}, "local_de": {"n_members": 2}},
    "basin__trace": True, "basin__trace_times": 2, "basin__trace_points": 3, "model__name": "test_resnet",
}  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    spec = tiny.spec(**{key: value for key, value in SPEC.items() if "freeze" not in key})
    names = [name for name, _ in models.build(spec.model, 5, 0).named_parameters()]
    frozen = names[0].rpartition(".")[0]  # the first layer, whatever this version of timm calls it
    spec = tiny.spec(**{**SPEC, "recipe__freeze": frozen})
    root = tmp_path_factory.mktemp("todays")
    report = local.run(spec, root)
    assert report.complete, report.failures
    return tiny.Sweep(Folder(root), report.plan), frozen


def weights(swept, member_id):
    sweep, _ = swept
    return models.from_bytes(sweep.folder.get(f"weights/{sweep.members()[member_id]['weights_sha256']}.safetensors"))


def test_runs_from_the_checkpoint_cost_the_epochs_of_the_head_too(swept):
    sweep, _ = swept
    for row in sweep.rows("members"):
        assert (row["cycle_epochs"], row["cycle_steps"]) == ((3, 6) if row["parent_id"] is None else (2, 4))
    epochs = {row["member_id"]: 0 for row in sweep.rows("epochs")}
    for row in sweep.rows("epochs"):
        epochs[row["member_id"]] += 1
    assert sorted(set(epochs.values())) == [2, 3]
    cost = {(row["method"], row["train_epochs"]) for row in sweep.rows("cells")}
    assert cost == {("star_sse", 5), ("sse", 7), ("local_de", 6)}
    lrs = [row["lr"] for row in sorted(sweep.rows("epochs"), key=lambda row: row["epoch"])
           if row["member_id"] == sweep.cell("sse").member_ids[0]]  # fmt: skip
    assert lrs[:2] == [0.02, 0.005]


def test_what_is_frozen_is_the_same_in_all_and_the_rest_is_not(swept):
    sweep, frozen = swept
    hub, branch = (weights(swept, member_id) for member_id in sweep.cell("star_sse").member_ids)
    same = {key for key in hub if hub[key].equal(branch[key])}
    assert {key for key in hub if key.startswith(f"{frozen}.")} <= same
    assert sum(key.endswith(".weight") for key in hub) > 2 * len(same)


def test_traces_end_at_the_very_weights_of_the_member_which_are_averaged(swept):
    sweep, _ = swept
    rows = sweep.rows("traces")
    assert {row["exact"] for row in rows} == {True, None}  # None of the hub itself
    assert {row["step"] for row in rows if row["exact"] is None} == {6}  # its end, the epochs of the head included


def test_the_folder_is_whole_and_a_second_run_has_nothing_to_do(swept):
    sweep, _ = swept
    assert integrity.check(sweep.folder) == []
    assert local.look(sweep.plan, sweep.folder).jobs == ()


def test_a_killed_sweep_comes_out_the_same(swept, tmp_path, monkeypatch):
    """Each training is cut off after an epoch, the first of which is of the head alone, and goes on in another run."""
    sweep, frozen = swept
    less = {"recipe__checkpoint_seconds": 0, "methods": {"star_sse": {"n_members": 2}}, "basin__trace": False}
    spec = tiny.spec(**{key: value for key, value in {**SPEC, "recipe__freeze": frozen, **less}.items()
                        if "trace_" not in key})  # fmt: skip

    class CutOffError(BaseException):
        pass

    put, cuts = Folder.put, set()

    def cut_off(folder, key, content):
        put(folder, key, content)
        if key.startswith("state/member-") and key not in cuts:
            cuts.add(key)
            raise CutOffError

    monkeypatch.setattr(Folder, "put", cut_off)
    for _ in range(20):
        try:
            report = local.run(spec, tmp_path)
            break
        except CutOffError:
            continue
    assert report.complete and len(cuts) == 2
    known, again = sweep.members(), tiny.Sweep(Folder(tmp_path), report.plan).members()
    assert {name: row["weights_sha256"] for name, row in again.items()} == {
        name: known[name]["weights_sha256"] for name in sweep.cell("star_sse").member_ids
    }


@pytest.mark.parametrize(
    ("changes", "text"),
    [({"recipe__optimizer": "adahessian"}, "second derivatives"),
     ({"recipe__freeze": "nothing"}, "is called 'nothing'"), ({"recipe__freeze": "fc"}, "of the head"),
     ({"recipe__optimizer_args": {"beta": 1}}, "takes no 'beta'")],
)  # fmt: skip
def test_what_is_wrong_with_a_recipe_is_found_before_anything_is_trained(changes, text):
    with pytest.raises(prepare.UserError, match=text):
        prepare.prepare(tiny.spec(**changes))
