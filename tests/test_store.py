"""A results folder: names appear whole or not at all, and of several writers the first wins."""

import os
import threading

import pytest

from raybasin import store
from raybasin.errors import UserError
from raybasin.store import Folder

WRITERS = 8


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "results")


def everything(folder):
    """Names of all files, those that do not count included."""
    return sorted(str(p.relative_to(folder.root)) for p in folder.root.rglob("*") if p.is_file())


def test_the_first_writer_wins_and_the_others_are_told(folder):
    assert folder.put_new("cells/a.parquet", b"first") is True
    assert folder.put_new("cells/a.parquet", b"second") is False
    assert folder.get("cells/a.parquet") == b"first"
    assert everything(folder) == ["cells/a.parquet"]


def test_of_racing_writers_exactly_one_wins_and_its_content_stays(folder):
    for turn in range(10):
        key, gate, won = f"members/{turn}.parquet", threading.Barrier(WRITERS), []

        def write(writer, key=key, gate=gate, won=won):
            gate.wait()
            if folder.put_new(key, bytes([writer]) * 10_000):
                won.append(writer)

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert folder.get(key) == bytes(won) * 10_000
    assert everything(folder) == sorted(f"members/{turn}.parquet" for turn in range(10))


def test_a_writer_that_checked_too_early_still_loses(folder, monkeypatch):
    """Both saw that the name was free; the link decides."""
    folder.put_new("cells/a.parquet", b"first")
    monkeypatch.setattr("pathlib.Path.exists", lambda path: False)
    assert folder.put_new("cells/a.parquet", b"second") is False
    assert folder.get("cells/a.parquet") == b"first"
    assert everything(folder) == ["cells/a.parquet"]


def test_put_replaces(folder):
    folder.put("state/a", b"first, and longer")
    folder.put("state/a", b"second")
    assert folder.get("state/a") == b"second"
    assert everything(folder) == ["state/a"]


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


@pytest.mark.parametrize(
    "key", ["../a", "a/../b", "a/..", "/etc/passwd", "a//b", "", ".", "a/./b", "a/", "a\\b", "a\0"]
)
def test_a_key_that_leads_outside_is_refused_by_every_operation(folder, key):
    folder.root.mkdir()
    for operation in (folder.path, folder.get, folder.exists, folder.delete, folder.names):
        with pytest.raises(ValueError, match="not a name inside a results folder"):
            operation(key)
    for write in (folder.put, folder.put_new):
        with pytest.raises(ValueError, match="not a name inside a results folder"):
            write(key, b"")
    assert everything(folder) == []


def test_names_are_sorted_and_those_that_begin_with_a_dot_do_not_count(folder):
    assert folder.names("cells") == []
    for name in ("b", "a", "c"):
        folder.put_new(f"cells/{name}", b"")
    (folder.root / "cells" / ".d.0123").write_bytes(b"half")
    assert folder.names("cells") == ["a", "b", "c"]


def test_deleting_what_is_gone_is_no_error(folder):
    folder.put("state/a", b"")
    folder.delete("state/a")
    folder.delete("state/a")
    folder.delete("state/never")
    with pytest.raises(FileNotFoundError):
        folder.get("state/a")


def test_create_makes_the_folder_and_leaves_no_probe(tmp_path):
    folder = store.create(tmp_path / "a" / "b")
    assert folder.root == tmp_path / "a" / "b"
    assert folder.names("state") == [] and everything(folder) == []


def test_create_leaves_the_probes_of_other_runs(tmp_path):
    """Their workers may be looking for them at this moment."""
    Folder(tmp_path).put_new("state/probe-of-another-run", b"")
    assert store.create(tmp_path).names("state") == ["probe-of-another-run"]


def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        store.create(tmp_path / "file" / "results")
    text = str(caught.value)
    assert text.startswith(f"results folder {tmp_path / 'file' / 'results'}: cannot be written (")
    assert text.endswith("name another one with --results")


def test_a_folder_that_is_not_there_is_named_with_the_way_out(tmp_path):
    with pytest.raises(UserError, match="is not there; `raybasin sweep FILE --results"):
        store.existing(tmp_path / "none")


@pytest.mark.parametrize("open_folder", [store.create, store.existing])
def test_addresses_are_refused(open_folder):
    with pytest.raises(UserError, match="only folders that every machine mounts are supported"):
        open_folder("s3://bucket/results")
