"""Results in S3: the same tables as on a disk, whatever dies, and one clear line where the server says no."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import places
import pytest
import tiny
import yaml
from test_cli import assert_refused, raybasin

import raybasin as package
from raybasin.analysis import integrity
from raybasin.analysis import report as reporting
from raybasin.errors import StoreError, UserError
from raybasin.store import folders, object_store, tables
from raybasin.store.schemas import KEYS

TIMES = {"train_seconds", "job_seconds", "close_seconds", "wall_seconds", "images_per_second", "finished_at",
         "versions"}  # fmt: skip
CODE = str(Path(package.__file__).parents[1])
COMPARED = ("cells", "members", "epochs", "paths", "scores", "predictions", "checkpoints")


@pytest.fixture
def folder(s3):
    return folders.folder(s3.address())


def table(root, name):
    """A table as a user without raybasin reads it, less the columns that differ between two runs of one sweep."""
    frame = pd.read_parquet(f"{root}/{name}")
    frame = frame.drop(columns=TIMES & set(frame))
    return frame.sort_values(list(KEYS[name]), ignore_index=True)


def assert_same_tables(root, finished, methods=None):
    """The tables of the finished sweep, or the part of them that a sweep of fewer `methods` makes."""
    for name in COMPARED:
        found, expected = table(root, name), table(finished.folder.root, name)
        if methods:
            keys = list(KEYS[name])
            expected = expected.merge(found[keys], on=keys)
            if name in ("members", "epochs", "predictions"):  # a network of several methods is of the first of them
                found, expected = found.drop(columns="method"), expected.drop(columns="method")
        assert len(found)
        pd.testing.assert_frame_equal(found, expected)


def uploaded(finished, address):
    """The finished sweep under an address."""
    folder, root = folders.folder(address), finished.folder.root
    for path in root.rglob("*"):
        if path.is_file():
            folder.put(str(path.relative_to(root)), path.read_bytes())
    return folder


# One conditional PUT


def test_the_server_of_these_tests_refuses_to_create_what_is_there(s3):
    """Asked without raybasin: were this not so, the tests below would say nothing."""
    client = object_store.store.S3Store("bucket", prefix="direct", client_options={"allow_http": True})
    client.put("a", b"first", mode="create", use_multipart=False)
    with pytest.raises(object_store.exceptions.AlreadyExistsError, match="412"):
        client.put("a", b"second", mode="create", use_multipart=False)
    client.put("a", b"third", use_multipart=False)
    assert client.get("a").bytes() == b"third"


def test_the_server_of_these_tests_keeps_nothing_of_a_request_that_is_cut_short(s3, folder):
    """As when a worker is killed during one; without raybasin, for the same reason."""
    host, port = s3.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(b"PUT /bucket/half HTTP/1.1\r\nHost: s3\r\nIf-None-Match: *\r\nContent-Length: 1000\r\n\r\nhalf")
    deadline = time.monotonic() + 60
    while s3.requests() != ["PUT /bucket/half *"]:  # which the server tells when it has begun with it
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not folders.folder("s3://bucket").exists("half")  # it does one request at a time


@pytest.mark.parametrize("size", [0, 1000, object_store.SMALL_BYTES, object_store.SMALL_BYTES + 1, 30_000_000])
def test_an_object_of_any_size_is_created_by_one_request_to_its_final_key(s3, folder, size):
    content = os.urandom(size)
    assert folder.put_new("weights/a", content)
    assert s3.requests() == [f"PUT /{folder.name('weights/a').removeprefix('s3://')} *"]
    assert folder.get("weights/a") == content


@pytest.mark.parametrize(
    "operation", ["put_new", "put", "get", "get_all", "exists", "names", "sizes", "delete", "move"]
)
def test_a_server_that_fails_for_a_moment_is_asked_again(s3, folder, operation):
    folder.put("a/b", b"content")
    s3.tell("PUT /-/fail?count=2&when=before")
    operations = {
        "put_new": lambda: folder.put_new("a/c", b"new"), "put": lambda: folder.put("a/b", b"content"),
        "get": lambda: folder.get("a/b") == b"content", "get_all": lambda: folder.get_all(["a/b"]) == [b"content"],
        "exists": lambda: folder.exists("a/b"), "names": lambda: folder.names("a") == ["b"],
        "sizes": lambda: folder.sizes("a") == {"b": 7},
        "delete": lambda: folder.delete("a/b"), "move": lambda: folder.move("a/b", "a/d"),
    }  # fmt: skip
    assert operations[operation]() in (True, None)


def test_whoever_loses_the_answer_to_its_own_creation_is_told_that_something_is_there(s3, folder):
    """The client asks again and is refused because of its first request: what is there is whole, and in use."""
    s3.tell("PUT /-/fail?count=1&when=after")
    assert folder.put_new("cells/a", b"mine") is False
    assert s3.requests() == [f"PUT /{folder.name('cells/a').removeprefix('s3://')} *"] * 2 + [
        f"HEAD /{folder.name('cells/a').removeprefix('s3://')}"
    ]
    assert folder.get("cells/a") == b"mine"


def test_a_conflict_with_a_request_that_comes_to_nothing_is_tried_again(s3, folder, monkeypatch):
    """S3 answers 409 while another conditional write is under way; the client says that the object exists."""
    put, calls = type(folder.small).put, []

    class Conflicting:
        def put(self, *arguments, **options):
            calls.append(arguments)
            if len(calls) < 3:
                raise object_store.exceptions.AlreadyExistsError("409")
            return put(folder.small, *arguments, **options)

        head = folder.small.head

    place = object_store.Objects(folder.root, small=Conflicting(), large=folder.large)
    assert place.put_new("cells/a", b"content") is True
    assert len(calls) == 3 and folder.get("cells/a") == b"content"
    calls.clear()
    monkeypatch.setattr(object_store, "CONFLICTS", 2)
    with pytest.raises(StoreError, match="2 attempts to create it met others"):
        place.put_new("cells/b", b"content")


def test_more_names_than_one_answer_holds(folder):
    names = [f"{number:04}" for number in range(1010)]  # S3 tells 1000 at a time
    for name in names:
        folder.put(f"many/{name}", b"")
    assert folder.names("many") == names


def test_many_small_files_are_read_at_once_and_each_once(s3, folder, monkeypatch):
    monkeypatch.setattr(tables, "FILES_AT_ONCE", 7)
    for unit in range(20):
        tables.write(folder, "members", f"{unit:02}", [{"member_id": f"{unit:02}", "member_index": unit}])
    s3.requests()
    rows = tables.rows(folder, "members")
    assert [row["member_index"] for row in rows] == list(range(20))
    asked = s3.requests()  # the listing is a request to the bucket
    assert len(asked) == len(set(asked)) == 20 and all(request.startswith("GET") for request in asked)


# Sweeps


RUN = """
import sys, tiny, torch, raybasin
torch.set_num_threads(1)
raybasin.run(tiny.spec(methods={"sse": {"n_members": 3}}), sys.argv[1])
"""


def test_a_sweep_that_is_killed_makes_the_tables_of_one_that_is_not(s3, finished):
    address = s3.address()
    folder = folders.folder(address)
    paths = os.pathsep.join([str(places.TESTS), CODE])
    running = subprocess.Popen([sys.executable, "-c", RUN, address], env={**os.environ, "PYTHONPATH": paths})
    deadline = time.monotonic() + 600
    while len(folder.names("members")) < 2 and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    running.kill()
    assert running.wait() == -9, "the sweep was over before it could be killed"
    committed = {name: folder.get(f"members/{name}") for name in folder.names("members")}
    assert len(committed) >= 2
    report = package.run(tiny.spec(methods={"sse": {"n_members": 3}}), address)
    assert report.complete and not report.failures
    assert {name: folder.get(f"members/{name}") for name in committed} == committed  # nothing was done again
    assert_same_tables(address, finished, ["sse"])
    assert integrity.check(folder) == []


def test_a_sweep_during_which_answers_are_lost_makes_the_same_tables(s3, finished, monkeypatch):
    """Every fifth creation is carried out and answered with an error."""
    create = object_store.Objects._create
    count = iter(range(1_000_000))

    def losing(self, key, content):
        if next(count) % 5 == 4:
            s3.tell("PUT /-/fail?count=1&when=after")
        return create(self, key, content)

    monkeypatch.setattr(object_store.Objects, "_create", losing)
    address = s3.address()
    report = package.run(tiny.spec(methods={"sse": {"n_members": 3}}), address)
    assert report.complete and not report.failures
    assert_same_tables(address, finished, ["sse"])


@pytest.mark.ray
def test_a_sweep_on_ray_leaves_the_same_tables_and_its_map_in_the_bucket(s3, finished, tmp_path):
    tree = tiny.tree(methods={"sse": {"n_members": 3}}, workers={"count": 1})
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree))
    address = s3.address()
    command = [sys.executable, "-m", "raybasin", "sweep", str(tmp_path / "sweep.yaml"), "--results", address]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": CODE, "TMPDIR": str(tmp_path), "RAY_TMPDIR": tempfile.gettempdir()}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_tables(address, finished, ["sse"])
    assert f"map: {address}/map.png" in done.stdout and f"results in {address}" in done.stdout
    folder = folders.folder(address)
    assert folder.get("map.png").startswith(b"\x89PNG")
    assert all(name.startswith("soup-") for name in folder.names("state"))
    assert not list(tmp_path.glob("raybasin-*"))  # Ray's own state is gone


# Commands


@pytest.fixture
def sweep_file(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(tiny.tree()))
    return path


def test_every_reading_command_takes_an_address(s3, finished, sweep_file, tmp_path):
    address = s3.address()
    uploaded(finished, address)
    assert "cells done 4 of 4" in raybasin("status", address).stdout
    assert "computed again" in raybasin("scores", address).stdout
    assert "everything is whole" in raybasin("check", address).stdout
    planned = raybasin("plan", sweep_file, "--results", address)
    assert "cells 4, of which done 4" in planned.stdout, planned.stderr
    for command, output in (("map", "map.png"), ("soup", "soup.safetensors")):
        done = raybasin(command, address, "-o", tmp_path / output)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / output).stat().st_size > 10_000
    assert f"raybasin.open({address!r}" in reporting.loading_lines(package.open(address))


def test_log_probabilities_are_those_of_the_folder(s3, finished):
    address = s3.address()
    uploaded(finished, address)
    cell_id = finished.plan.cells[0].cell_id
    theirs = package.log_probs(package.open(address), cell_id, "test")
    assert (theirs == package.log_probs(finished.folder.root, cell_id, "test")).all()


@pytest.mark.parametrize("there", [True, False])
def test_compaction_goes_into_a_bucket_and_out_of_it(s3, finished, tmp_path, there):
    address, copy = s3.address(), tmp_path / "copy"
    source, target = (finished.folder.root, address) if there else (address, copy)
    if not there:
        uploaded(finished, address)
    done = raybasin("compact", source, "-o", target)
    assert done.returncode == 0, done.stderr
    assert_same_tables(target, finished)
    cell_id = finished.plan.cells[0].cell_id
    compacted = package.log_probs(str(target), cell_id, "val")
    assert (compacted == package.log_probs(finished.folder.root, cell_id, "val")).all()
    assert_refused(raybasin("compact", source, "-o", target), "holds results already")


def test_damage_is_found_moved_aside_and_made_good(s3, finished):
    address = s3.address()
    folder = uploaded(finished, address)
    member = finished.cell("star_sse", 4.0).member_ids[1]
    for key in (f"members/{member}.parquet", f"scores/{finished.cell('sse').cell_id}.parquet"):
        content = folder.get(key)
        folder.put(key, content[: len(content) // 2])
    found = raybasin("check", address)
    assert found.returncode == 1 and f"members/{member}.parquet" in found.stdout
    repaired = raybasin("check", address, "--repair")
    assert f"now lies in {address}/state/broken-" in repaired.stdout
    assert package.run(tiny.spec(), address).complete
    assert integrity.check(folder) == []
    assert_same_tables(address, finished)


# Refusals


def test_a_server_that_does_not_know_conditional_writes_is_refused(s3):
    s3.tell("PUT /-/ignore-conditions")
    address = s3.address()
    with pytest.raises(UserError, match="its server replaces what is there although asked to create only"):
        folders.create(address)
    assert folders.folder(address).names("state") == []


@pytest.mark.parametrize("command", ["sweep", "pretrain", "status", "check"])
def test_a_bucket_that_is_not_there_is_named(s3, sweep_file, command):
    address = "s3://no-such-bucket/results"
    arguments = [sweep_file, "--results", address] if command in ("sweep", "pretrain") else [address]
    assert_refused(raybasin(command, *arguments), address, "the bucket is not there")


def test_results_that_are_not_there_are_named(s3):
    address = s3.address()
    assert_refused(raybasin("status", address), address, "is not there; `raybasin sweep FILE --results")


def test_a_server_that_does_not_answer_is_named(s3, monkeypatch, sweep_file):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert_refused(raybasin("sweep", sweep_file, "--results", "s3://bucket/r"), "127.0.0.1:1", "s3://bucket/r")
    assert_refused(raybasin("status", "s3://bucket/r"), "127.0.0.1:1")


def test_a_server_that_fails_for_good_is_named_and_takes_nothing_for_broken(s3, finished):
    """That the server fails says nothing of the files: a check must not call them broken, nor repair them away."""
    address = s3.address()
    folder = uploaded(finished, address)
    names = folder.names("members")
    quick = folders.folder(address, patient=False)
    s3.tell("PUT /-/fail?count=100000&when=before")
    with pytest.raises(StoreError, match="503"):
        tables.read(quick, "members", [names[0].removesuffix(".parquet")])
    with pytest.raises(StoreError, match="503"):
        quick.exists(f"members/{names[0]}")
    checked = raybasin("check", address, "--repair")  # the bucket answers, its objects do not
    assert checked.returncode == 1 and len(checked.stderr.splitlines()) == 1
    assert "503" in checked.stderr and "what is written stays" in checked.stderr
    s3.tell("PUT /-/fail?count=0&when=before")
    assert folder.names("members") == names


def test_settings_are_removed_from_a_bucket(s3, finished):
    address = s3.address()
    folder, settings_id = uploaded(finished, address), finished.plan.settings_id
    for name in ("cells", "members", "paths", "weights"):
        assert folder.names(name)
    done = raybasin("settings", "rm", address, settings_id)
    assert done.returncode == 0, done.stderr
    assert f"settings {settings_id}: removed: 4 cells, 8 networks; " in done.stdout
    assert not any(folder.names(name) for name in (*COMPARED, "weights", "sweeps", "state"))
