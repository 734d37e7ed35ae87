"""Removing one of the settings in a folder: all that is its own goes, what others need stays, whatever is killed."""

import json
import shutil

import pytest
import tiny

import raybasin
from raybasin.analysis import held, integrity, removal
from raybasin.errors import UserError
from raybasin.jobs import local, prepare
from raybasin.store import heartbeat, tables
from raybasin.store.folders import Folder
from raybasin.store.schemas import SCHEMAS
from raybasin.sweep import specs

STAR = {"star_sse": {"n_members": 3, "lr_ratio": [1]}}


def of_settings(folder):
    return {one.settings_id: one for one in held.settings_of(folder)}


def everything(folder):
    """All files but those that a run draws or leaves for a moment."""
    places = (*SCHEMAS, "weights", "sweeps", "state")
    return {f"{place}/{name}" for place in places for name in folder.names(place)}


def values(folder):
    return {place: folder.names(place) for place in (*SCHEMAS, "weights", "sweeps", "state")}


def settings_id_of(**changes):
    return prepare.prepare(specs.parse(tiny.tree(**changes))).plan.settings_id


@pytest.fixture(scope="module")
def beside(finished, tmp_path_factory):
    """The finished sweep, and in the same folder one that shares its networks and predictions and not its paths, one
    that shares nothing but the checkpoint, and one that was begun and not finished."""
    root = tmp_path_factory.mktemp("beside") / "r"
    shutil.copytree(finished.folder.root, root)
    for changes in ({"basin__points": 5}, {"recipe__lr": 0.01}):
        assert raybasin.run(tiny.tree(methods=STAR, **changes), root).complete
    return root


@pytest.fixture
def several(beside, tmp_path):
    shutil.copytree(beside, tmp_path / "r")
    return Folder(tmp_path / "r")


OTHER_PATHS, OTHER_RATE = {"basin__points": 5}, {"recipe__lr": 0.01}


@pytest.mark.parametrize("changes", [OTHER_PATHS, OTHER_RATE], ids=["shares networks", "shares the checkpoint"])
def test_what_stays_is_what_was_there_without_it(several, finished, changes, tmp_path):
    settings_id = settings_id_of(**changes)
    before = everything(several)
    expected = removal.look(several, settings_id)
    assert everything(several) == before
    done = removal.remove(several, settings_id)
    assert done == expected and before - everything(several) == set(done.sizes)
    assert done.bytes == sum(done.sizes.values()) > 0 and done.files("cells") == 1
    other = OTHER_RATE if changes is OTHER_PATHS else OTHER_PATHS
    shutil.copytree(finished.folder.root, tmp_path / "alone")
    assert raybasin.run(tiny.tree(methods=STAR, **other), tmp_path / "alone").complete
    assert values(several) == values(Folder(tmp_path / "alone"))
    assert integrity.check(several) == []


def test_what_shares_its_networks_keeps_them(several, finished):
    done = removal.remove(several, finished.plan.settings_id)
    assert done.shared == 3  # the hub, and two branches
    assert integrity.check(several) == []
    assert set(of_settings(several)) == {settings_id_of(**OTHER_PATHS), settings_id_of(**OTHER_RATE)}
    for changes in (OTHER_PATHS, OTHER_RATE):
        again = local.look(prepare.prepare(specs.parse(tiny.tree(methods=STAR, **changes))).plan, several)
        assert again.jobs == ()  # nothing that it needs is missing
    assert "checkpoints/" in " ".join(everything(several))  # whoever made it, it is the others', too


def test_all_settings_removed_one_by_one_leave_nothing(several, finished):
    for settings_id in list(of_settings(several)):
        removal.remove(several, settings_id)
    left = everything(several)
    assert {key.partition("/")[0] for key in left} <= {"checkpoints", "weights"}, left
    assert integrity.check(several) == []


class Killed(BaseException):
    pass


def test_a_removal_that_is_killed_anywhere_leaves_a_sound_folder_and_the_same_call_ends_it(
    beside, finished, tmp_path, monkeypatch
):
    whole = Folder(tmp_path / "whole")
    shutil.copytree(beside, whole.root)
    total = len(removal.remove(whole, finished.plan.settings_id).sizes)
    delete = Folder.delete
    for number, after in enumerate([0, 1, 3, 6, 20, total // 2, total - 6, total - 1, total]):
        folder, turns = Folder(tmp_path / str(number)), iter(range(after))
        shutil.copytree(beside, folder.root)

        def dies(self, key, turns=turns):
            if not key.startswith("state/pruning") and next(turns, None) is None:
                raise Killed
            delete(self, key)

        monkeypatch.setattr(Folder, "delete", dies)
        with pytest.raises(Killed):
            removal.remove(folder, finished.plan.settings_id)
        monkeypatch.undo()
        assert integrity.check(folder) == [], after
        removal.remove(folder, finished.plan.settings_id)
        assert values(folder) == values(whole), after


def test_a_sweep_that_goes_on_with_settings_half_removed_makes_them_whole(several, finished, monkeypatch):
    delete, turns = Folder.delete, iter(range(12))

    def dies(self, key):
        if next(turns, None) is None:
            raise Killed
        delete(self, key)

    monkeypatch.setattr(Folder, "delete", dies)
    with pytest.raises(Killed):
        removal.remove(several, finished.plan.settings_id)
    monkeypatch.undo()
    assert raybasin.run(tiny.tree(), several.root).complete
    assert integrity.check(several) == []
    for table in ("cells", "members"):
        assert set(finished.folder.names(table)) <= set(several.names(table))
    removal.remove(several, finished.plan.settings_id)  # by a note that is old
    assert integrity.check(several) == [] and len(of_settings(several)) == 2


def test_what_interrupted_jobs_left_goes_with_their_settings(several, finished):
    member = next(m for m in finished.plan.cells[1].member_ids if m not in finished.plan.cells[0].member_ids)
    shared = finished.plan.cells[0].member_ids[0]
    row = finished.members()[member]
    left = {"sha256": row["weights_sha256"], "moments_sha256": None}
    for member_id in (member, shared):
        several.put(f"state/member-{member_id}.json", json.dumps(left).encode())
    several.delete(f"members/{member}.parquet")
    removal.remove(several, finished.plan.settings_id)
    assert [name for name in several.names("state") if not name.startswith("soup-")] == [f"member-{shared}.json"]
    assert several.exists(f"weights/{row['weights_sha256']}.safetensors")  # it may go on from there
    assert not tables.exists(several, "epochs", member)


def test_nothing_is_removed_while_a_sweep_runs_or_where_it_is_not_known_what_others_need(several, finished):
    before = everything(several)
    with (
        heartbeat.beating(several, settings_id_of(**OTHER_RATE)),
        pytest.raises(UserError, match="nothing is removed while a sweep runs on it .running on .* stop it, or wait"),
    ):
        removal.remove(several, finished.plan.settings_id)
    with pytest.raises(UserError, match="holds no settings abc; known are "):
        removal.remove(several, "abc")
    several.move(f"sweeps/{settings_id_of(**OTHER_PATHS)}.yaml", "state/aside")
    with pytest.raises(UserError, match="missing or damaged, so what those settings share with .* is not known"):
        removal.remove(several, finished.plan.settings_id)
    several.move("state/aside", f"sweeps/{settings_id_of(**OTHER_PATHS)}.yaml")
    assert everything(several) == before


def test_settings_whose_sweep_file_is_lost_are_removed_by_their_rows(several):
    settings_id = settings_id_of(**OTHER_RATE)
    several.delete(f"sweeps/{settings_id}.yaml")
    removal.remove(several, settings_id)
    assert settings_id not in of_settings(several) and integrity.check(several) == []
    assert not any(settings_id in {row["settings_id"] for row in tables.rows(several, table)}
                   for table in ("cells", "members", "scores", "paths", "epochs"))  # fmt: skip
