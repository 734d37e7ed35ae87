"""Disks that fill up, go away or can only be read: one clear error, nothing half done, and the same command goes on."""

import builtins
import errno
import os
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import pytest
import tiny
import yaml

import raybasin
from raybasin import cli
from raybasin.analysis import integrity
from raybasin.errors import FolderLost, UserError
from raybasin.jobs import prepare
from raybasin.store import folders, tables

SPEC = tiny.spec(methods={"star_sse": {"n_members": 3}}, recipe__checkpoint_seconds=0)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The tables of an undisturbed run, and how many files are written in one."""
    root = tmp_path_factory.mktemp("quiet")
    assert raybasin.run(SPEC, root).complete
    return folders.existing(root)


@pytest.fixture(autouse=True)
def prepared_once(monkeypatch, expected):
    """Many runs of one sweep: its inputs are read once."""
    prepared = prepare.prepare(SPEC)
    loaded = prepare.load(prepared)
    monkeypatch.setattr(prepare, "prepare", lambda spec: prepared)
    monkeypatch.setattr(prepare, "load", lambda prepared: loaded)


class FailingDisk:
    """Stands in for what `store` takes from `os` and for `open`: each write fails once, at a place that goes round."""

    PLACES = ("mkdir or open", "half a file", "fsync", "name")
    CODES = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)

    def __init__(self, first):
        self.failed = {}
        self.turn = first
        self.os = types.SimpleNamespace(**vars(os))
        self.os.fsync = self.around(os.fsync, "fsync")
        self.os.link = self.around(os.link, "name")
        self.os.replace = self.around(os.replace, "name")
        self.key = None

    def around(self, call, place):
        def failing(*arguments, **keywords):
            self.fail(place)
            return call(*arguments, **keywords)

        return failing

    def fail(self, place):
        if self.failed.get(self.key) == place:
            self.failed[self.key] = "done"
            raise OSError(self.CODES[self.turn % len(self.CODES)], "the disk says no")

    def open(self, path, mode):
        _, name, _ = Path(path).name.split(".", 2)
        self.key = f"{Path(path).parent.name}/{name.partition('probe-')[0]}"  # a probe has another name in each run
        if self.key not in self.failed:
            self.failed[self.key] = self.PLACES[self.turn % len(self.PLACES)]
            self.turn += 1
        self.fail("mkdir or open")
        file = builtins.open(path, mode)  # noqa: SIM115
        write = file.write

        class Writing:
            def __enter__(this):
                return this

            def __exit__(this, *error):
                file.close()

            def __getattr__(this, name):
                return getattr(file, name)

            def write(this, content):
                write(content[: len(content) // 2])
                self.fail("half a file")
                return write(content[len(content) // 2 :])

        return Writing()


@pytest.mark.parametrize("first", [0, *(pytest.param(first, marks=pytest.mark.chaos) for first in (1, 2, 3))])
def test_every_write_may_fail_once(first, expected, tmp_path, monkeypatch):
    disk = FailingDisk(first)
    root = tmp_path / "r"
    folder = folders.create(root)
    monkeypatch.setattr(folders, "os", disk.os)
    monkeypatch.setattr(folders, "open", disk.open, raising=False)
    said = Counter()
    for _ in range(200):
        try:
            report = raybasin.run(SPEC, root)
            break
        except (FolderLost, UserError) as error:
            said[type(error)] += 1
            assert str(root) in str(error) and "the disk says no" in str(error)
            assert "same command continues" in str(error) or "name another one" in str(error)
            assert not list(folder.unfinished())  # nothing half written is left
            assert not integrity.check(folder)  # and nothing half committed
    assert report.complete and not report.failures
    assert said[FolderLost] > 25 and said[UserError] == 2  # the probe and the resolved sweep file
    assert tiny.values(folder) == tiny.values(expected)
    assert not tables.rows(folder, "failures")


def test_a_process_may_die_at_every_write(expected, tmp_path):
    """In a child for each write of the sweep, which ends itself there as SIGKILL would: nothing is cleaned up."""
    root = tmp_path / "r"
    folder = folders.create(root)
    seen = tmp_path / "seen"
    seen.write_text("")
    places = Counter()
    for _ in range(400):
        child = os.fork()
        if child == 0:
            _dying_run(root, seen)
        _, status = os.waitpid(child, 0)
        assert not integrity.check(folder)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            break
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == 9
        places[seen.read_text().splitlines()[-1].split()[1]] += 1
    assert sum(places.values()) > 25 and len(places) == 3, places
    assert tiny.values(folder) == tiny.values(expected)
    for key, _ in list(folder.unfinished()):
        os.utime(folder.name(key), (0, 0))
    assert {p.what for p in integrity.check(folder)} == {integrity.UNFINISHED}
    assert raybasin.run(SPEC, root).complete
    assert not list(folder.unfinished()) and not integrity.check(folder)  # the next run has taken them away
    assert not [name for name in folder.names("state") if name.startswith("member-")]


def _dying_run(root, seen):
    """Runs the sweep and dies at the first write that none has died at, before, in or after it by turns."""
    known = [line.split()[0] for line in seen.read_text().splitlines()]
    put, turns = folders._written_beside, ("before", "within", "after")

    def dying(path, content):
        key = f"{path.parent.name}/{path.name}"
        if key in known or "probe-" in key or "running-" in key:  # these have another name in each run
            return put(path, content)
        turn = turns[len(known) % 3]
        with seen.open("a") as file:
            file.write(f"{key} {turn}\n")
        if turn == "within":
            path.parent.mkdir(exist_ok=True)
            path.with_name(f".{path.name}.half").write_bytes(content[: len(content) // 2])
        elif turn == "after":
            with put(path, content) as temporary:
                os.link(temporary, path)
                os.kill(os.getpid(), 9)
        os.kill(os.getpid(), 9)
        raise AssertionError("alive")

    folders._written_beside = dying
    try:
        os._exit(0 if raybasin.run(SPEC, root).complete else 1)
    finally:
        os._exit(3)


# Real file systems


def mount(*arguments):
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"may not mount here: {done.stderr.strip() or done.returncode}")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, too small for the sweep."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=3m", "tmpfs", place)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def raybasin_cli(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["raybasin", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr()


def test_a_disk_that_fills_up_ends_the_sweep_and_one_with_room_continues_it(small_disk, expected, monkeypatch):
    root = small_disk / "r"
    with pytest.raises(UserError, match="are free on its disk, and the sweep still needs"):
        raybasin.run(SPEC, root)
    monkeypatch.setattr(folders.Folder, "free", lambda self: 10**9)  # as it was before others had filled it
    with pytest.raises(FolderLost, match=r"No space left on device.*free some space") as error:
        raybasin.run(SPEC, root)
    assert str(root) in str(error.value) and "\n" not in str(error.value)
    folder = folders.existing(root)
    assert not integrity.check(folder) and not list(folder.unfinished())
    assert not tables.rows(folder, "failures")  # it is no cell's failure
    mount("-o", "remount,size=100m", small_disk)
    assert raybasin.run(SPEC, root).complete
    assert tiny.values(folder) == tiny.values(expected)


def test_a_full_disk_is_bad_input_before_anything_starts(small_disk):
    (small_disk / "filler").write_bytes(b"")
    with pytest.raises(OSError), open(small_disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 65536)
    with pytest.raises(UserError, match="No space left on device"):
        raybasin.run(SPEC, small_disk / "r")


def test_a_disk_that_can_only_be_read_is_bad_input(small_disk, monkeypatch, capsys, tmp_path):
    mount("-o", "remount,ro", small_disk)
    with pytest.raises(UserError, match="Read-only file system"):
        raybasin.run(SPEC, small_disk / "r")


def test_a_disk_that_turns_read_only_ends_the_sweep(small_disk, expected):
    mount("-o", "remount,size=100m", small_disk)
    root = small_disk / "r"

    def protect(line):
        if "member 1" in line:
            mount("-o", "remount,ro", small_disk)

    with pytest.raises(FolderLost, match=r"Read-only file system.*make it writable"):
        raybasin.run(SPEC, root, tell=protect)
    folder = folders.existing(root)
    assert not integrity.check(folder)
    mount("-o", "remount,rw", small_disk)
    assert raybasin.run(SPEC, root).complete
    assert tiny.values(folder) == tiny.values(expected)


@pytest.mark.parametrize("below", ["", "r"])
def test_nothing_is_written_beneath_a_mount_that_is_lost(small_disk, tmp_path, expected, below):
    mount("-o", "remount,size=100m", small_disk)
    place = tmp_path / "mounted"
    place.mkdir()
    mount("--bind", small_disk, place)

    def lose(line):
        if "hub" in line:
            subprocess.run(["umount", place], check=True)

    try:
        with pytest.raises(FolderLost, match="is gone") as error:
            raybasin.run(SPEC, place / below, tell=lose)
        assert str(place) in str(error.value)
        assert not list(place.iterdir())
        mount("--bind", small_disk, place)
        assert raybasin.run(SPEC, place / below).complete
        assert tiny.values(folders.existing(place / below)) == tiny.values(expected)
    finally:
        subprocess.run(["umount", place], capture_output=True)


def test_the_command_ends_with_1_and_one_line_when_the_folder_is_lost(monkeypatch, capsys, tmp_path):
    def lost(*arguments, **keywords):
        raise FolderLost("results folder r: is gone; mount it again, and the same command continues")

    from raybasin.cluster import driver

    monkeypatch.setattr(driver, "run", lost)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tiny.tree()))
    code, said = raybasin_cli(monkeypatch, capsys, "sweep", tmp_path / "sweep.yaml", "--results", tmp_path / "r")
    assert code == 1
    assert said.err.splitlines()[-1] == (
        "error: results folder r: is gone; mount it again, and the same command continues"
    )
    assert "Traceback" not in said.err
