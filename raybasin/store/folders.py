"""A results folder as a set of named byte strings, written whole or not at all, on a disk or in an object store.

`put_new` creates and never replaces: of several writers the first wins. Everything that counts is written this way;
`put` replaces, for control state that may be lost. A write that fails raises FolderLost: no job can help it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from raybasin.errors import FolderLost, StoreError, UserError, one_line

if TYPE_CHECKING:
    from typing_extensions import Buffer

OBJECT_STORES = ("s3", "gs", "az")
"""The kinds of address whose servers create an object in one step and only where there is none."""

WAY_OUT = {
    errno.ENOSPC: "free some space", errno.EDQUOT: "free some space", errno.EFBIG: "raise the limit on file sizes",
    errno.EROFS: "make it writable", errno.EACCES: "make it writable", errno.EPERM: "make it writable",
}  # fmt: skip

NOT_SUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
"""How file systems say that they have no fsync (some behind FUSE, SMB and 9p)."""
NO_HARD_LINKS = {*NOT_SUPPORTED, errno.EPERM, errno.EACCES, errno.EMLINK}
"""How they say that a file, which was just written beside it, cannot have a second name (FAT, exFAT, SMB, FUSE)."""
MAX_NAME = 200


class NoHardLinks(FolderLost):
    """A disk on which no file can be created only where there is none."""


class BadName(UserError, ValueError):
    """A name, perhaps out of somebody's table, that would lead out of the results folder."""


@dataclass(frozen=True)
class Folder:
    """A results folder on a disk that every machine of the run mounts at the same path. `object_store.Objects` is one
    in an object store. `str(folder.root)` is what `folder` makes it from again, in whatever process."""

    root: Path | str
    marker: str | None = None
    """A key that must be there whenever something is written to a disk: without it, this is the empty mount point of a
    disk that has gone, and what is written now would be lost when it comes back."""

    def name(self, key: str) -> str:
        """What a person calls `key`: its path or its address."""
        return f"{self.root}/{checked(key)}"

    def put_new(self, key: str, content: bytes) -> bool:
        """Writes `key` unless it exists; says whether this call was the one that wrote it.

        False is certain: something whole is there. After a lost answer of an object store it may be this call's own.
        """
        with self._writing(key):
            return self._create(key, content)

    def put(self, key: str, content: bytes) -> None:
        """Writes `key`, in place of what is there."""
        with self._writing(key):
            self._replace(key, content)

    def get(self, key: str) -> bytes:
        """The content of `key`. Raises FileNotFoundError."""
        path = self._path(key)
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return path.read_bytes()

    def get_all(self, keys: Sequence[str]) -> list[Buffer]:
        """The contents of several keys, in their order; an object store is asked for many at once."""
        return [self.get(key) for key in keys]

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def delete(self, key: str) -> None:
        """Removes `key`; it is no error that it is gone already."""
        self._path(key).unlink(missing_ok=True)

    def move(self, key: str, target: str) -> None:
        """Gives `key` another name. An object store copies and then deletes: cut short, it leaves both."""
        source, path = self._path(key), self._path(target)
        path.parent.mkdir(parents=True, exist_ok=True)
        source.rename(path)

    def names(self, folder: str) -> list[str]:
        """The names of the files right in `folder`, sorted. Those that begin with a dot do not count, nor do those that
        no writer here gives: they could not be printed, or lead elsewhere."""
        return sorted(
            name
            for name in self._names(folder)
            if not name.startswith(".") and name.isprintable() and "\\" not in name and 0 < len(name) <= MAX_NAME
        )

    def is_there(self) -> bool:
        return Path(self.root).is_dir()

    def size(self) -> int:
        """Bytes of everything that is in the folder, of other sweeps as well."""
        total = 0
        for place, _, names in os.walk(self.root):
            for name in names:
                with contextlib.suppress(OSError):  # it has just gone
                    total += os.lstat(os.path.join(place, name)).st_size
        return total

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of each file right in `folder`, by its name."""
        found = {}
        for name in self.names(folder):
            with contextlib.suppress(FileNotFoundError):  # it has just gone
                found[name] = self._path(f"{folder}/{name}").stat().st_size
        return found

    def waits(self) -> bool:
        """Whether an object store has been asked for something, which ends by itself. A disk may never answer."""
        return False

    def free(self) -> int | None:
        """Bytes that are free on its disk, whether the folder is there yet or not. None for an object store, and for a
        file system that does not say (a bucket that is mounted has a size of 0)."""
        try:
            root = Path(self.root).absolute()
            usage = shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists()))
        except OSError:
            return None
        return usage.free if usage.total else None

    def unfinished(self) -> Iterator[tuple[str, float]]:
        """(key, age in seconds) of what is being written to a disk, or was by somebody who was killed."""
        with os.scandir(self.root) as entries:
            places = [entry.name for entry in entries if entry.is_dir()]
        for place in places:
            with os.scandir(os.path.join(self.root, place)) as entries:
                begun = [entry for entry in entries if entry.name.startswith(".") and "." in entry.name[1:]]
            for entry in begun:
                with contextlib.suppress(FileNotFoundError):
                    yield f"{place}/{entry.name}", time.time() - entry.stat().st_mtime

    def marked(self, marker: str | None) -> Folder:
        """This folder, to be written to only while `marker` is there."""
        return replace(self, marker=marker)

    def check_there(self) -> None:
        """Raises FolderLost where the folder is on a disk that is gone."""
        if not (self.is_there() and (not self.marker or self.exists(self.marker))):
            raise FolderLost(
                f"results folder {self.root}: is gone, or is not the one of this sweep any more; mount it again, and "
                "the same command continues"
            )

    @contextlib.contextmanager
    def _writing(self, key: str) -> Iterator[None]:
        """Turns what the disk says into FolderLost."""
        try:
            if self.marker:
                self.check_there()
            yield
        except FolderLost:
            raise
        except OSError as error:
            reason, way_out = error.strerror or str(error), WAY_OUT.get(error.errno or 0, "see to its disk")
            raise FolderLost(
                f"results folder {self.root}: {key} cannot be written ({reason}); {way_out}, and the same command "
                "continues"
            ) from error

    def _path(self, key: str) -> Path:
        return Path(self.root, checked(key))

    def _create(self, key: str, content: bytes) -> bool:
        path = self._path(key)
        if path.exists():
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with _written_beside(path, content) as temporary:
            try:
                os.link(temporary, path)  # unlike a rename, a hard link fails where the name is taken
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in NO_HARD_LINKS:
                    raise
                raise NoHardLinks(
                    f"results folder {self.root}: its disk cannot create a file only where there is none (no hard "
                    f"links: {error.strerror}), so two writers could harm each other; name a folder on another disk"
                ) from error
        return True

    def _replace(self, key: str, content: bytes) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)

    def _names(self, folder: str) -> list[str]:
        if not self._path(folder).is_dir():
            return []
        with os.scandir(self._path(folder)) as entries:
            # As `entry.is_file()`, but a link to itself is none and no error.
            return [
                entry.name
                for entry in entries
                if entry.is_file(follow_symlinks=False) or (entry.is_symlink() and os.path.isfile(entry.path))
            ]


def checked(key: str) -> str:
    """`key`. Raises BadName (a ValueError and a UserError) for one that would lead outside of the folder."""
    parts = key.split("/")
    if not all(parts) or any(part in (".", "..") or "\\" in part or "\0" in part for part in parts):
        raise BadName(f"{one_line(repr(key), 200)} is not a name inside a results folder")
    return key


def write_file(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all, in place of what is there. Raises OSError."""
    with _written_beside(path, content) as temporary:
        os.replace(temporary, path)


@contextlib.contextmanager
def _written_beside(path: Path, content: bytes) -> Iterator[Path]:
    """A whole file in the folder of `path`, with a name that begins with a dot, to be given that name."""
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            sync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    try:  # a new name survives a power cut only when its folder has been synced too
        descriptor = os.open(path.parent, os.O_RDONLY)
    except PermissionError:  # one may write there and not read
        return
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def sync(descriptor: int) -> None:
    """As `os.fsync`, as far as the file system has that."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise


# By name


def folder(results: str | os.PathLike[str], patient: bool = True) -> Folder:
    """The folder with this path or address, whether it is there or not; nobody is asked.

    Args:
        results: a path, `file://`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
        patient: whether to try for about a minute where an object store does not answer, or for seconds.

    Raises:
        UserError: for an address that cannot hold results, or whose package is not installed.
    """
    address = os.fspath(results)
    if not address:  # pathlib would take the current folder; most often a variable of the shell is not set
        raise UserError("results folder: its name is empty; name one")
    scheme, _, rest = address.partition("://")
    if not rest and "://" not in address:
        if address.partition(":/")[0] in (*OBJECT_STORES, "file") and ":/" in address:  # as pathlib.Path makes it
            raise UserError(f"results folder {address}: an address is given as text, not as a Path")
        return Folder(Path(address).expanduser().absolute())
    if scheme == "file":
        parts = urlsplit(address)
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise UserError(f"results folder {address}: a file:// address has three slashes before the path")
        return Folder(Path(parts.path))
    if scheme not in OBJECT_STORES:
        raise UserError(
            f"results folder {results}: {scheme}:// has no way to create a file only where there is none, so two "
            "writers could harm each other; name a folder, or s3://, gs:// or az://"
        )
    try:
        from raybasin.store import object_store
    except ImportError as error:
        raise UserError(
            f"results folder {results}: needs a package that is not installed ({error.name}); "
            f'`pip install "raybasin[{scheme}]"`'
        ) from error
    return object_store.open(address, patient)


def create(results: str | os.PathLike[str], option: str = "--results") -> Folder:
    """The folder `results`, made if need be and seen to be writable once and no more. Raises UserError, which says that
    `option` names another one."""
    with _writing_to(f"results folder {results}", option):
        there, probe = folder(results, patient=False), f"state/probe-{uuid.uuid4().hex}"
        there.put_new(probe, b"first")
        try:  # a server that does not know conditional writes replaces the first, and says nothing
            if there.put_new(probe, b"second") or there.get(probe) != b"first":
                raise UserError(
                    f"results folder {there.root}: its server replaces what is there although asked to create only "
                    f"(If-None-Match), so two writers could harm each other; name another one with {option}"
                )
        finally:
            there.delete(probe)  # and no other: another run's workers may be looking for theirs
    return folder(results)


def create_plain(address: str | os.PathLike[str]) -> Folder:
    """A folder for files of the user's own, made if need be and seen to be writable. Raises UserError."""
    made, probe = folder(address), f"probe-{uuid.uuid4().hex}"
    with _writing_to(str(address), "-o"):
        made.put(probe, b"writable")
        made.delete(probe)
    return made


@contextlib.contextmanager
def _writing_to(what: str, option: str) -> Iterator[None]:
    try:
        yield
    except NoHardLinks as error:
        raise UserError(f"{error} with {option}") from error
    except OSError as error:
        # What says everything: a StoreError itself, else what the disk said before FolderLost was made of it.
        disk = error.__cause__ if isinstance(error.__cause__, OSError) and not isinstance(error, StoreError) else error
        reason = getattr(disk, "strerror", None) or str(disk)
        raise UserError(f"{what}: cannot be written ({reason}); name another one with {option}") from error


def at(results: str | os.PathLike[str]) -> Folder:
    """The folder `results`, whether it is there or not: to look at, not to write to. Raises UserError."""
    _is_there(results)
    return folder(results)


def existing(results: str | os.PathLike[str]) -> Folder:
    """The folder `results`, which must be there. Raises UserError."""
    there = folder(results)
    if not _is_there(results):
        if isinstance(there.root, Path) and there.root.exists():
            raise UserError(f"results folder {results}: is a file; name the folder that a sweep was run into")
        raise UserError(f"results folder {results}: is not there; `raybasin sweep FILE --results {results}` makes it")
    return there


def _is_there(results: str | os.PathLike[str]) -> bool:
    try:
        return folder(results, patient=False).is_there()
    except OSError as error:
        raise UserError(f"results folder {results}: cannot be read ({error.strerror or error})") from error
