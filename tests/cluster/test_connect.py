"""What is said where Ray cannot start, or does not answer; nothing here starts it but the last test."""

import os
import stat
import subprocess
import sys
import types

import pytest

pytest.importorskip("ray")

import tiny
import yaml

from raybasin.cluster import connect
from raybasin.errors import UserError

NOTHING = types.SimpleNamespace(parts=lambda: [])
BUSY = "The current node timed out during startup. This could happen because some of the raylet failed to startup"


@pytest.fixture
def init(monkeypatch):
    """Stands in for `ray.init`: raises what is put into `raises`, one after another; `calls` has what was called."""
    made = types.SimpleNamespace(raises=[], calls=[])

    def init(**options):
        made.calls.append("init")
        if made.raises:
            raise made.raises.pop(0)

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # tokens are another matter
    monkeypatch.setattr(connect.ray, "init", init)
    monkeypatch.setattr(connect.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(connect.ray, "shutdown", lambda: made.calls.append("shutdown"))
    return made


def refused(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    lines = str(caught.value).splitlines()
    assert len(lines) <= 2
    return lines


def test_ray_that_takes_too_long_to_start_is_tried_once_more(init):
    init.raises = [Exception(BUSY)]
    connect.start_here(NOTHING)
    assert init.calls == ["init", "shutdown", "init"]


@pytest.mark.parametrize(
    "kind", [Exception, RuntimeError, ConnectionError, TimeoutError, ValueError, KeyError, AssertionError]
)
def test_whatever_ray_raises_when_it_starts_is_told_in_two_lines(init, kind):
    init.raises = [kind(BUSY), kind(f"{BUSY}\nmore\x1b[2J")]
    error, way_out = refused(connect.start_here, NOTHING)
    assert error.startswith("Ray cannot start on this machine: ") and BUSY in error and "more" in error
    assert "session_latest/logs" in way_out
    assert init.calls == ["init", "shutdown"] * 2


@pytest.mark.parametrize("number", [28, 30, 13])
def test_a_temporary_folder_that_cannot_be_written_is_named_with_the_variable_to_set(init, number, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/somewhere")
    monkeypatch.setattr(connect, "RAY_BYTES", 0)
    init.raises = [OSError(number, os.strerror(number))]
    error, way_out = refused(connect.start_here, NOTHING)
    assert os.strerror(number) in error and "/somewhere/ray" in way_out and "export RAY_TMPDIR=" in way_out
    assert init.calls == ["init", "shutdown"]  # another try would not change it


def test_a_disk_without_room_for_what_ray_writes_is_named(init, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "not" / "there"))
    monkeypatch.setattr(connect, "RAY_BYTES", 10**18)
    error, way_out = refused(connect.start_here, NOTHING)
    assert f"its temporary folder, {tmp_path}/not/there/ray" in error and "export RAY_TMPDIR=" in way_out
    assert not init.calls


@pytest.mark.parametrize("kind", [Exception, RuntimeError, ConnectionError, KeyError])
def test_whatever_ray_raises_when_it_joins_a_cluster_is_told_in_two_lines(init, kind):
    init.raises = [kind("why")]
    error, way_out = refused(connect.join, "auto")
    assert "auto: the Ray cluster does not answer" in error and "why" in error and "RAY_AUTH_MODE=token" in way_out


def test_a_session_of_the_callers_own_is_not_ended(init, monkeypatch):
    monkeypatch.setattr(connect.ray, "is_initialized", lambda: True)
    init.raises = [RuntimeError("Maybe you called ray.init twice by accident?")] * 3
    refused(connect.join, "auto")
    refused(connect.start_here, NOTHING)
    assert "shutdown" not in init.calls


# The token


@pytest.fixture
def home(monkeypatch, tmp_path):
    """A user who has said nothing of tokens, with a home folder that is not there yet."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_once_and_read_by_its_owner_alone(home):
    connect.keep_token_private()
    token = home / ".ray" / "auth_token"
    made = token.read_text()
    assert len(made) == 64 and mode(token) == 0o600
    token.chmod(0o644)  # as Ray itself writes it
    connect.keep_token_private()
    assert token.read_text() == made and mode(token) == 0o600
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]


@pytest.mark.parametrize("where", ["", None, "a file", "/proc/not there"])
def test_a_home_that_holds_no_token_is_named_with_the_variable_to_set(home, where, monkeypatch, tmp_path):
    if where == "a file":
        home.write_text("")
    elif where is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", where)
    error, way_out = refused(connect.keep_token_private)
    assert ("HOME is not set" if not where else "auth_token cannot be written: ") in error
    assert "export RAY_AUTH_TOKEN=$(" in way_out and "RAY_AUTH_TOKEN_PATH" in way_out and "disabled" not in way_out


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_TOKEN", "t"), ("RAY_AUTH_TOKEN_PATH", "f"),
                                             ("RAY_AUTH_MODE", "disabled")])  # fmt: skip
def test_who_has_a_token_elsewhere_or_wants_none_needs_no_home(home, name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    monkeypatch.delenv("HOME")
    connect.keep_token_private()
    assert not home.exists()


def test_ray_that_knows_no_tokens_is_not_started_unless_none_is_wanted(init, monkeypatch):
    monkeypatch.delattr(connect.ray.exceptions, "AuthenticationError", raising=False)
    monkeypatch.setattr(connect, "RAY_BYTES", 0)
    for mode in ("token", None):
        monkeypatch.delenv("RAY_AUTH_MODE") if mode is None else monkeypatch.setenv("RAY_AUTH_MODE", mode)
        error, way_out = refused(connect.start_here, NOTHING)
        assert "knows no token" in error and "RAY_AUTH_MODE=disabled" in way_out and not init.calls
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    connect.start_here(NOTHING)
    assert init.calls == ["init"]


# In earnest


@pytest.mark.ray
def test_a_temporary_folder_with_too_long_a_path_is_refused_with_the_variable_to_set(tmp_path):
    """As a batch system gives it to a job."""
    long = tmp_path / ("job" * 30)
    long.mkdir()
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tiny.tree(workers={"cpus": 0.5})))
    command = [sys.executable, "-m", "raybasin", "sweep", str(tmp_path / "sweep.yaml"), "--results", "r"]
    environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600,
                          env={**environment, "TMPDIR": str(long), "RAY_AUTH_MODE": "disabled"})  # fmt: skip
    assert done.returncode == 2, done.stderr
    error = done.stderr[done.stderr.index("error: ") :].strip().splitlines()
    assert len(error) == 2 and str(long) in error[1] and "export RAY_TMPDIR=" in error[1]
