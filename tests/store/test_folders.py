"""A results folder: names appear whole or not at all, and of several writers the first wins."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raybasin.errors import FolderLost, UserError
from raybasin.store import folders, object_store
from raybasin.store.folders import Folder

WRITERS = 8

# What holds wherever a folder lies


@pytest.fixture(params=["disk", "memory", "s3"])
def anywhere(request, tmp_path):
    if request.param == "disk":
        return Folder(tmp_path / "results")
    if request.param == "s3":
        return folders.folder(request.getfixturevalue("s3").address())
    memory = object_store.store.MemoryStore()
    return object_store.Objects("memory://results", small=memory, large=memory)


class TestAnyFolder:
    def test_the_first_writer_wins_and_the_others_are_told(self, anywhere):
        assert anywhere.put_new("cells/a.parquet", b"first") is True
        assert anywhere.put_new("cells/a.parquet", b"second") is False
        assert anywhere.get("cells/a.parquet") == b"first"
        assert anywhere.names("cells") == ["a.parquet"]

    def test_of_racing_writers_exactly_one_wins_and_its_content_stays(self, anywhere):
        for turn in range(10):
            key, gate, won = f"members/{turn}.parquet", threading.Barrier(WRITERS), []

            def write(writer, key=key, gate=gate, won=won):
                gate.wait()
                if anywhere.put_new(key, bytes([writer]) * 10_000):
                    won.append(writer)

            threads = [threading.Thread(target=write, args=(writer,)) for writer in range(WRITERS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(won) == 1
            assert anywhere.get(key) == bytes(won) * 10_000
        assert anywhere.names("members") == sorted(f"{turn}.parquet" for turn in range(10))

    def test_put_replaces(self, anywhere):
        anywhere.put("state/a", b"first, and longer")
        anywhere.put("state/a", b"second")
        assert anywhere.get("state/a") == b"second"
        assert anywhere.names("state") == ["a"]

    def test_contents_come_back_bit_for_bit_and_in_order(self, anywhere):
        contents = {f"weights/{size}": os.urandom(size) for size in (0, 1, 100, 3_000_000)}
        for key, content in contents.items():
            assert anywhere.put_new(key, content)
            assert anywhere.get(key) == content
        keys = sorted(contents, reverse=True)
        assert [bytes(content) for content in anywhere.get_all(keys)] == [contents[key] for key in keys]

    def test_names_are_of_files_right_in_the_folder_sorted_and_without_those_that_begin_with_a_dot(self, anywhere):
        assert anywhere.names("cells") == []
        for name in ("b", "a", "c", ".d.0123", "e/f"):
            anywhere.put(f"cells/{name}", b"x")
        anywhere.put("cells-of-another", b"x")
        assert anywhere.names("cells") == ["a", "b", "c"]
        assert anywhere.names("cells/e") == ["f"]

    def test_sizes_are_those_of_the_files_right_in_the_folder(self, anywhere):
        for key, content in {"cells/a": b"four", "cells/b": b"", "cells/deep/c": b"not here", "d": b"nor here"}.items():
            anywhere.put(key, content)
        assert anywhere.sizes("cells") == {"a": 4, "b": 0} and anywhere.sizes("none") == {}

    def test_what_is_not_there_is_said_to_be_missing(self, anywhere):
        assert not anywhere.exists("cells/a")
        assert not anywhere.is_there()
        for read in (anywhere.get, lambda key: anywhere.get_all([key])):
            with pytest.raises(FileNotFoundError, match="cells/a"):
                read("cells/a")
        anywhere.put("cells/a/b", b"")
        assert not anywhere.exists("cells/a")  # a folder
        assert anywhere.exists("cells/a/b") and anywhere.is_there()

    def test_deleting_what_is_gone_is_no_error(self, anywhere):
        anywhere.put("state/a", b"")
        anywhere.delete("state/a")
        anywhere.delete("state/a")
        anywhere.delete("state/never")
        assert not anywhere.exists("state/a")
        assert anywhere.put_new("state/a", b"again")

    def test_moving_gives_another_name(self, anywhere):
        anywhere.put_new("cells/a", b"content")
        anywhere.move("cells/a", "state/broken/cells/a")
        assert not anywhere.exists("cells/a")
        assert anywhere.get("state/broken/cells/a") == b"content"

    @pytest.mark.parametrize(
        "key", ["../a", "a/../b", "a/..", "/etc/passwd", "a//b", "", ".", "a/./b", "a/", "a\\b", "a\0"]
    )
    def test_a_key_that_leads_outside_is_refused_by_every_operation(self, anywhere, key):
        operations = (
            anywhere.name, anywhere.get, anywhere.exists, anywhere.delete, anywhere.names,
            lambda key: anywhere.get_all([key]), lambda key: anywhere.put(key, b""),
            lambda key: anywhere.put_new(key, b""), lambda key: anywhere.move(key, "a"),
            lambda key: anywhere.move("a", key),
        )  # fmt: skip
        for operation in operations:
            with pytest.raises(ValueError, match="not a name inside a results folder"):
                operation(key)
        assert not anywhere.is_there()


WRITER = """
import sys
from raybasin.store import folders as store
folder = store.folder(sys.argv[1])
sys.stdin.read()  # until all are there
print(*(turn for turn in range(20) if folder.put_new(f"members/{turn}", sys.argv[2].encode() * 10_000)))
"""


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_of_racing_processes_exactly_one_wins(where, request, tmp_path):
    address = str(tmp_path) if where == "disk" else request.getfixturevalue("s3").address()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, address, str(writer)], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True)
        for writer in range(WRITERS)
    ]  # fmt: skip
    for writer in writers:
        writer.stdin.close()
    won = {}
    for number, writer in enumerate(writers):
        for turn in writer.stdout.read().split():
            assert turn not in won
            won[turn] = number
        assert writer.wait(timeout=60) == 0
    assert len(won) == 20
    folder = folders.folder(address)
    for turn, winner in won.items():
        assert folder.get(f"members/{turn}") == str(winner).encode() * 10_000


# On a disk


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "results")


def everything(folder):
    """Names of all files, those that do not count included."""
    return sorted(str(p.relative_to(folder.root)) for p in folder.root.rglob("*") if p.is_file())


def test_a_writer_that_checked_too_early_still_loses(folder, monkeypatch):
    """Both saw that the name was free; the link decides."""
    folder.put_new("cells/a.parquet", b"first")
    monkeypatch.setattr("pathlib.Path.exists", lambda path: False)
    assert folder.put_new("cells/a.parquet", b"second") is False
    assert folder.get("cells/a.parquet") == b"first"
    assert everything(folder) == ["cells/a.parquet"]


@pytest.mark.parametrize("write", [Folder.put, Folder.put_new])
@pytest.mark.parametrize("step", ["fsync", "link-or-replace"])
def test_a_write_that_fails_leaves_no_name(folder, monkeypatch, write, step):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    names = ["fsync"] if step == "fsync" else ["link", "replace"]
    for name in names:
        monkeypatch.setattr(os, name, full)
    with pytest.raises(OSError, match="No space left"):
        write(folder, "cells/a.parquet", b"content")
    assert everything(folder) == []
    assert not folder.exists("cells/a.parquet")


def test_a_replacement_that_fails_leaves_what_was_there(folder, monkeypatch):
    folder.put("state/a", b"before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        folder.put("state/a", b"after")
    assert folder.get("state/a") == b"before"
    assert everything(folder) == ["state/a"]


def failing(number):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_disk_without_fsync_is_used(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", failing(number))
    folder = folders.create(tmp_path / "results")
    assert folder.put_new("cells/a", b"first") and not folder.put_new("cells/a", b"second")
    folder.put("state/a", b"whole")
    assert (folder.get("cells/a"), folder.get("state/a")) == (b"first", b"whole")


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_whose_fsync_fails_is_not(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(UserError, match=f"cannot be written \\({os.strerror(number)}\\)"):
        folders.create(tmp_path / "results")
    with pytest.raises(FolderLost, match=os.strerror(number)):
        Folder(tmp_path / "results").put("state/a", b"")


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EACCES])
def test_a_disk_without_hard_links_is_refused_with_the_way_out(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "link", failing(number))
    with pytest.raises(UserError) as caught:
        folders.create(tmp_path / "results")
    assert str(caught.value) == (
        f"results folder {tmp_path / 'results'}: its disk cannot create a file only where there is none (no hard "
        f"links: {os.strerror(number)}), so two writers could harm each other; name a folder on another disk with "
        "--results"
    )
    assert everything(Folder(tmp_path / "results")) == []
    plain = folders.create_plain(tmp_path / "plain")  # nobody else writes there
    plain.put("a.safetensors", b"")
    assert everything(plain) == ["a.safetensors"]


def test_what_else_a_link_says_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", failing(errno.ENOSPC))
    with pytest.raises(UserError, match="No space left on device"):
        folders.create(tmp_path / "results")


def test_free_space_is_not_known_where_the_file_system_does_not_say(tmp_path, monkeypatch):
    assert Folder(tmp_path / "not" / "there").free() > 0
    monkeypatch.setattr(shutil, "disk_usage", failing(errno.ENOSYS))
    assert Folder(tmp_path).free() is None
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))
    assert Folder(tmp_path).free() is None


def test_create_makes_the_folder_and_leaves_no_probe(tmp_path):
    folder = folders.create(tmp_path / "a" / "b")
    assert folder.root == tmp_path / "a" / "b"
    assert folder.names("state") == [] and everything(folder) == []


def test_create_leaves_the_probes_of_other_runs(tmp_path):
    """Their workers may be looking for them at this moment."""
    Folder(tmp_path).put_new("state/probe-of-another-run", b"")
    assert folders.create(tmp_path).names("state") == ["probe-of-another-run"]


def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        folders.create(tmp_path / "file" / "results")
    text = str(caught.value)
    assert text.startswith(f"results folder {tmp_path / 'file' / 'results'}: cannot be written (")
    assert text.endswith("name another one with --results")


def test_a_folder_that_is_not_there_is_named_with_the_way_out(tmp_path):
    with pytest.raises(UserError, match="is not there; `raybasin sweep FILE --results"):
        folders.existing(tmp_path / "none")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="file: is a file; name the folder"):
        folders.existing(tmp_path / "file")


# By name


@pytest.mark.parametrize("open_folder", [folders.create, folders.at, folders.existing, folders.folder])
@pytest.mark.parametrize("address", ["memory://results", "https://host/results", "sftp://host/results", "://x"])
def test_an_address_that_cannot_hold_results_is_refused(open_folder, address):
    with pytest.raises(UserError, match="no way to create a file only where there is none"):
        open_folder(address)


def test_a_file_address_is_a_folder(tmp_path):
    assert folders.create(f"file://{tmp_path}/results").root == tmp_path / "results"
    with pytest.raises(UserError, match="three slashes"):
        folders.create("file://host/results")


@pytest.mark.parametrize("address", ["s3://", "s3:///a", "s3://b/../c", "s3://b//c", "s3://b/a?c", "s3://b/a%20b"])
def test_an_address_that_is_not_well_formed_is_refused(address):
    with pytest.raises(UserError, match="must be s3://BUCKET/PREFIX"):
        folders.folder(address)


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_a_missing_package_is_named_with_the_way_out(monkeypatch, scheme):
    monkeypatch.setitem(sys.modules, "raybasin.store.object_store", None)
    monkeypatch.delattr("raybasin.store.object_store")
    with pytest.raises(UserError, match=rf'pip install "raybasin\[{scheme}\]"'):
        folders.folder(f"{scheme}://bucket/results")


def test_the_address_of_a_folder_makes_it_again(tmp_path):
    for address in (str(tmp_path), "s3://bucket/a/b", "s3://bucket"):
        assert str(folders.folder(address).root) == address
        assert str(folders.folder(str(folders.folder(address + "/").root)).root) == address
    assert folders.folder("s3://bucket/a").name("cells/b.parquet") == "s3://bucket/a/cells/b.parquet"


def test_an_empty_path_is_not_the_current_folder():
    for opened in (folders.folder, folders.at, folders.existing, folders.create):
        with pytest.raises(UserError, match="its name is empty; name one"):
            opened("")


def test_a_path_may_be_any_that_python_knows_but_no_address(tmp_path):
    class Place:
        def __fspath__(self):
            return str(tmp_path / "results")

    assert folders.folder(Place()).root == folders.folder(tmp_path / "results").root == tmp_path / "results"
    with pytest.raises(UserError) as caught:
        folders.folder(Path("s3://bucket/results"))
    assert str(caught.value) == "results folder s3:/bucket/results: an address is given as text, not as a Path"
