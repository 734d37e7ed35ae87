"""A results folder as a set of named byte strings, written whole or not at all.

Two writes exist. `put_new` creates and never replaces: of several writers the first wins and the others are told so;
everything that counts is written this way. `put` replaces; it is for control state that may be lost.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from raybasin.errors import UserError


@dataclass(frozen=True)
class Folder:
    """A folder on a disk that every machine of the run mounts at the same path."""

    root: Path

    def path(self, key: str) -> Path:
        """Where `key` lies. Raises ValueError for a key that would lead outside of the folder."""
        parts = key.split("/")
        if not all(parts) or any(part in (".", "..") or "\\" in part or "\0" in part for part in parts):
            raise ValueError(f"not a name inside a results folder: {key!r}")
        return self.root.joinpath(*parts)

    def put_new(self, key: str, content: bytes) -> bool:
        """Writes `key` unless it exists; says whether this call was the one that wrote it."""
        path = self.path(key)
        if path.exists():
            return False
        temporary = self._write_beside(path, content)
        try:
            os.link(temporary, path)  # unlike a rename, a hard link fails where the name is taken
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        _sync(path.parent)
        return True

    def put(self, key: str, content: bytes) -> None:
        """Writes `key`, in place of what is there."""
        path = self.path(key)
        temporary = self._write_beside(path, content)
        try:
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(path.parent)

    def get(self, key: str) -> bytes:
        """The content of `key`. Raises FileNotFoundError."""
        return self.path(key).read_bytes()

    def exists(self, key: str) -> bool:
        return self.path(key).is_file()

    def delete(self, key: str) -> None:
        """Removes `key`; it is no error that it is gone already."""
        self.path(key).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        """The names right in `folder`, sorted; those that begin with a dot are being written and do not count."""
        return sorted(_visible(self.path(folder)))

    def _write_beside(self, path: Path, content: bytes) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary


def _visible(folder: Path) -> Iterator[str]:
    if folder.is_dir():
        yield from (entry.name for entry in os.scandir(folder) if not entry.name.startswith("."))


def _sync(folder: Path) -> None:
    """A new name survives a power cut only when its folder has been synced too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create(results: str | Path) -> Folder:
    """The folder `results`, made if need be and seen to be writable. Raises UserError."""
    folder = _local(results)
    try:
        probe = f"state/probe-{uuid.uuid4().hex}"
        folder.put_new(probe, b"writable")
        folder.delete(probe)  # and no other: another run's workers may be looking for theirs
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"results folder {results}: cannot be written ({reason}); name another one with --results"
        ) from error
    return folder


def create_plain(folder: str | Path) -> Folder:
    """A folder for files of the user's own, made if need be and seen to be writable. Raises UserError."""
    made = Folder(Path(folder).expanduser().absolute())
    probe = f"probe-{uuid.uuid4().hex}"
    try:
        made.put_new(probe, b"writable")
        made.delete(probe)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{folder}: cannot be written ({reason}); name another folder with -o") from error
    return made


def at(results: str | Path) -> Folder:
    """The folder `results`, whether it is there or not: to look at, not to write to. Raises UserError."""
    return _local(results)


def existing(results: str | Path) -> Folder:
    """The folder `results`, which must be there. Raises UserError."""
    folder = _local(results)
    if not folder.root.is_dir():
        raise UserError(f"results folder {results}: is not there; `raybasin sweep FILE --results {results}` makes it")
    return folder


def _local(results: str | Path) -> Folder:
    if "://" in str(results):
        raise UserError(
            f"results folder {results}: only folders that every machine mounts are supported, not addresses"
        )
    return Folder(Path(results).expanduser().absolute())
