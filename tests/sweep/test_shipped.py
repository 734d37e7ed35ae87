"""The sweep files that come with raybasin, found by name where no file is meant."""

import places
import pytest

from raybasin.errors import UserError
from raybasin.sweep import shipped, specs

SWEEPS = places.REPOSITORY / "sweeps"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(shipped.SENT, raising=False)


def test_all_are_known_by_the_names_that_stand_in_them():
    found = shipped.everyone()
    assert {one.path for one in found.values()} == set(SWEEPS.rglob("*.yaml"))
    for name, one in found.items():
        load = specs.load_for_pretraining if name.startswith("pretrain-") else specs.load
        assert load(name) == load(one.path)
        assert load(name).name == name == one.name


def test_each_says_what_it_asks_and_what_that_costs():
    for one in shipped.everyone().values():
        assert len(one.question) > 20 and "\n" not in one.cost and "# " not in one.cost
        assert any(unit in one.cost for unit in ("minutes", "hours"))
    assert shipped.named("digits").cost == "about 6 minutes on 2 CPU cores"
    assert shipped.named("cifar10").cost.endswith("a twentieth of it")


def test_a_file_wins_and_a_folder_is_no_file(tmp_path):
    (tmp_path / "digits").mkdir()
    assert specs.load("digits").name == "digits"
    (tmp_path / "digits").rmdir()
    (tmp_path / "digits").write_text((SWEEPS / "cifar10.yaml").read_text())
    assert specs.load("digits").name == "cifar10"
    (tmp_path / "digits").unlink()
    (tmp_path / "digits").symlink_to("gone")  # is meant, and is not there
    with pytest.raises(UserError, match="^digits: cannot read the sweep file: No such file or directory; name a file"):
        specs.load("digits")


@pytest.mark.parametrize("name", ["digit", "cifar10-digits", "paper"])
def test_an_unknown_name_lists_those_there_are(name):
    with pytest.raises(UserError) as caught:
        specs.load(name)
    assert str(caught.value).startswith(f"{name}: no file here, and no sweep that comes with raybasin; there are ")
    assert all(known in str(caught.value) for known in shipped.everyone())


@pytest.mark.parametrize("path", ["digits.yaml", "sweeps/digits.yaml", "elsewhere/digits.yaml"])
def test_a_path_is_no_name_but_says_which_is_meant(path):
    with pytest.raises(UserError) as caught:
        specs.load(path)
    assert str(caught.value).startswith(f"{path}: cannot read the sweep file: No such file")
    assert str(caught.value).endswith("; one comes with raybasin, and is called `digits`")


@pytest.mark.parametrize("path", ["", ".", "..", "a\0b", "dig its", "paper/swin-t-cifar100", "x" * 300])
def test_what_is_no_name_is_taken_for_a_path_or_refused(path):
    with pytest.raises(UserError, match="cannot read the sweep file|no file here"):
        specs.load(path)


def test_an_installation_without_them_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "_PLACES", (tmp_path / "shipped", tmp_path / "sweeps"))
    with pytest.raises(UserError, match="^digits: the sweeps that come with raybasin are missing .*install it again$"):
        specs.load("digits")


def test_a_job_elsewhere_is_given_what_is_found_here(tmp_path, monkeypatch):
    environment = shipped.to_send("digits")
    monkeypatch.setattr(shipped, "_PLACES", (tmp_path / "none",))  # as where another version is installed
    monkeypatch.setenv(*next(iter(environment.items())))
    assert specs.load("digits") == specs.load(SWEEPS / "digits.yaml")
    with pytest.raises(UserError, match="cifar10: "):
        specs.load("cifar10")
    (tmp_path / "digits").write_text((SWEEPS / "cifar10.yaml").read_text())
    assert specs.load("digits").name == "cifar10"  # it went along with the folder
    assert shipped.to_send("digits") == {} == shipped.to_send("sweeps/digits.yaml")
