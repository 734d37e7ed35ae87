"""The connection to a Ray cluster: starting one on this machine or joining one, and whether its machines see the data.

One that is started here listens on loopback only, and asks for a token that its owner alone can read.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import secrets
import socket
import tempfile
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybasin.cluster import private
from raybasin.errors import UserError, format_bytes, one_line
from raybasin.store import folders
from raybasin.store.folders import WAY_OUT, Folder

if TYPE_CHECKING:  # torch is for workers: probes start without it
    from raybasin.jobs.prepare import Loaded

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
ANSWER_SECONDS = 10.0
PROBE_SECONDS = 120.0
RAY_BYTES = 100_000_000
"""What Ray must be able to write on this machine, most of it logs."""


@contextlib.contextmanager
def cluster(address: str | None, loaded: Loaded) -> Iterator[None]:
    """A connection to the cluster at `address`, or to that of the Ray job this is, or a cluster for this run only."""
    address, before = address or os.environ.get("RAY_ADDRESS"), listeners()
    if address:
        join(address)
    else:
        start_here(loaded)
    try:
        if not address or _host(address) in LOOPBACK:
            check_loopback(before)
        if not address:
            ray.get(_has_started.remote())  # by then Ray's agents have, which come later than the cluster
            check_loopback(before)
        yield
    finally:
        ray.shutdown()


def join(address: str) -> None:
    """Joins a running cluster. Raises UserError where it does not answer."""
    host, port = _host(address), address.rpartition(":")[2]
    if address != "auto" and (not host or "/" in host or not port.isdigit()):
        raise UserError(
            f"--address (or RAY_ADDRESS) {address}: must be host:port of a Ray cluster, for instance 127.0.0.1:6379"
        )
    try:
        if address != "auto":
            socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
        with private.loopback_stays_loopback() if host in LOOPBACK else contextlib.nullcontext():
            _init(address=address)
    except Exception as error:
        raise UserError(
            f"--address (or RAY_ADDRESS) {address}: the Ray cluster does not answer ({one_line(error, 200)})\n"
            "Start one with `ray start --head`, or leave the address out to use this machine alone. One with a token "
            "needs it here, too: export RAY_AUTH_MODE=token."
        ) from error


def start_here(loaded: Loaded) -> None:
    """A cluster on this machine alone, which listens on loopback only. Where RAY_AUTH_MODE is unset, Ray makes a token
    and asks for it; setting the variable here would be too late, since Ray has read it when it was imported."""
    _check_ray_knows_tokens()
    keep_token_private()
    free = Folder(Path(_ray_folder())).free() or 0
    if free < RAY_BYTES:  # Ray would start, and its processes then wait for each other
        raise _cannot_start(
            f"{format_bytes(free)} are free for its temporary folder, {_ray_folder()}",
            "Free some space, or export RAY_TMPDIR=FOLDER, a short path on another disk of this machine.",
        )
    images = sum(part.images_NHWC.nbytes for part in loaded.parts())
    in_store = 2 * images + 300_000_000  # bytes; Ray Tune keeps there something, too
    options = {"address": "local", "include_dashboard": False, "object_store_memory": in_store}
    with private.loopback_stays_loopback():
        try:
            try:
                _init(**options)
            except Exception as error:
                if _way_out(error):
                    raise
                _init(**options)  # a machine that is busy may just have taken too long
        except Exception as error:
            logs = f"Its logs are in {_ray_folder()}/session_latest/logs. Where the machine was only busy, try again."
            raise _cannot_start(one_line(error, 300), _way_out(error) or logs) from error


def _init(**options: Any) -> None:
    """What it raises may be of any class, Exception included. A session of the caller's own is left alone."""
    own = ray.is_initialized()
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    except BaseException:
        if not own:
            ray.shutdown()
        raise


def _cannot_start(reason: str, way_out: str) -> UserError:
    return UserError(f"Ray cannot start on this machine: {reason}\n{way_out}")


def _way_out(error: Exception) -> str:
    """What to do about an error that another try would not change; empty for others."""
    elsewhere = "export RAY_TMPDIR=FOLDER, a short path on a disk of this machine"
    if "AF_UNIX" in str(error):
        return f"The path of Ray's temporary folder, {_ray_folder()}, is too long: {elsewhere}, for instance /tmp."
    if isinstance(error, OSError) and error.errno in WAY_OUT:
        return f"Ray's temporary folder is {_ray_folder()}: {WAY_OUT[error.errno]}, or {elsewhere}."
    return ""


def _ray_folder() -> str:
    return os.path.join(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")


def _host(address: str) -> str:
    return address.rpartition(":")[0]


@ray.remote(num_cpus=0)
def _has_started() -> None:
    pass


# Who can reach it


def listeners() -> set[tuple[int, str, int]]:
    """(process, address, port) of all on which this process listens, or one that it has started."""
    own, found = psutil.Process(), set()
    for process in (own, *own.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            for socket_ in process.net_connections("tcp"):
                if socket_.status == psutil.CONN_LISTEN:
                    found.add((process.pid, *socket_.laddr))
    return found


def check_loopback(before: Collection[tuple[int, str, int]]) -> None:
    """Raises UserError where more than this machine reaches what has begun to listen since `before`: what keeps Ray on
    loopback is private, and may have stopped to."""
    for pid, address, port in sorted(listeners() - set(before)):
        ip: Any = ipaddress.ip_address(address)
        if not (getattr(ip, "ipv4_mapped", None) or ip).is_loopback:
            raise _cannot_start(
                f"Ray {ray.__version__} listens on {address}, port {port} (process {pid}), which others may reach",
                "It has been ended. export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, or take a version of Ray that "
                "docs/cluster.md names.",
            )


# The token


def _check_ray_knows_tokens() -> None:
    """Raises UserError where Ray is too old to ask for one, unless none is wanted."""
    if not hasattr(ray.exceptions, "AuthenticationError") and os.environ.get("RAY_AUTH_MODE") != "disabled":
        raise _cannot_start(
            f"Ray {ray.__version__} knows no token that would keep other users of it from running programs as you",
            "Take a newer version of Ray, or, if there are none, export RAY_AUTH_MODE=disabled.",
        )


def keep_token_private() -> None:
    """Sees to it that nobody else on the machine can read the token. Where there is none Ray makes one, for everybody
    to read; one that it finds it leaves as it is. Raises UserError where none can be kept."""
    elsewhere = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ)
    if elsewhere or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    home = os.environ.get("HOME")
    if not home:
        raise _no_token("HOME is not set")
    path = Path(home) / ".ray" / "auth_token"  # where Ray looks
    try:
        if path.exists():
            with contextlib.suppress(OSError):  # it may be on a disk that can only be read
                path.chmod(0o600)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=path.parent) as file:  # only its owner can read it
                file.write(secrets.token_hex(32))
                file.flush()
                with contextlib.suppress(FileExistsError):  # another sweep has just made one
                    os.link(file.name, path)
    except OSError as error:
        raise _no_token(f"{path} cannot be written: {error.strerror}") from error


def _no_token(reason: str) -> UserError:
    return _cannot_start(
        f"it has nowhere to keep the token that guards its ports ({reason})",
        "Give it one: export RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))'), or name a "
        "file that holds one with RAY_AUTH_TOKEN_PATH.",
    )


# The machines of the cluster


def here() -> NodeAffinitySchedulingStrategy:
    """Places an actor or a task on this machine."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def alive_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def check_folder_is_shared(folder: Folder) -> None:
    """Every machine must reach the results folder by the same name. Raises UserError that names one that does not."""
    probe = f"state/probe-{uuid.uuid4().hex}"
    folder.put_new(probe, b"seen")
    try:
        for machine, reason in _refusals(_does_not_see, str(folder.root), probe):
            raise UserError(
                f"results folder {folder.root}: machine {machine} {reason}; name a folder with --results that all "
                "machines mount at the same path, or an address for which all have credentials"
            )
    finally:
        folder.delete(probe)


def check_images_are_shared(loaded: Loaded, in_store: ray.ObjectRef[Loaded]) -> None:
    """Every machine must read the images that are not in memory, at the same paths; those that it is to keep decoded it
    decodes now, however long that takes. Raises UserError that names one that does not."""
    if loaded.in_memory:
        return
    for machine, reason in _refusals(_cannot_read, in_store, patient=True):
        raise UserError(
            f"machine {machine} cannot read the images: {reason}\n"
            "Each machine decodes them: mount the data (of Parquet with data.decode: workers, also $RAYBASIN_DATA) at "
            "the same path on all machines, or set data.decode: arrays."
        )


def _refusals(probe: Any, *arguments: Any, patient: bool = False) -> Iterator[tuple[str, str]]:
    """The machines, by name, on which `probe` gives a reason, and the reason. Raises UserError where one cannot even
    run it, or, unless this is `patient`, takes too long."""
    nodes = alive_nodes()
    pinned = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    answers = [probe.options(scheduling_strategy=strategy).remote(*arguments) for strategy in pinned]
    for node, answer in zip(nodes, answers, strict=True):
        machine = node["NodeManagerHostname"]
        while patient and not ray.wait([answer], timeout=0.2)[0]:  # unlike one long wait, this notices a signal
            pass
        try:
            reason = ray.get(answer, timeout=PROBE_SECONDS)
        except RayError as error:
            said = " ".join(str(error).split())[-200:]
            raise UserError(f"machine {machine} of the cluster cannot run raybasin ({said})") from error
        if reason:
            yield machine, reason


@ray.remote(num_cpus=0)
def _does_not_see(root: str, probe: str) -> str:
    """Why this machine does not see the probe; empty where it does."""
    try:
        return "" if folders.folder(root, patient=False).exists(probe) else "does not see it"
    except (UserError, OSError) as error:
        return f"cannot read it ({error})"


@ray.remote(num_cpus=0)
def _cannot_read(loaded: Loaded) -> str:
    """Why this machine cannot read the images that are not in memory; empty where it can."""
    try:
        loaded.check_readable()
    except UserError as error:
        return str(error)
    return ""
