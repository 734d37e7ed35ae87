"""Images decoded once and kept on the disk of a machine: its workers map one file into memory, and none has a copy.

A file holds the pixels, uint8 [N, H, W, 3], the CRC-32 of each image, and a SHA-256 of its own name and these. The name
is a SHA-256 of all that decides the pixels, so that a file is of one selection of stored images, one size and one
decoder. Pixels are those of `StoredImages`, bit for bit. B is the axis of a batch.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import mmap
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from raybasin.data import downloads, images
from raybasin.data.decoding import StoredImages
from raybasin.data.images import CheckArray, IntArray, PixelArray
from raybasin.errors import UserError, format_bytes
from raybasin.store import folders

FORMAT = 1
"""Is raised when files are laid out otherwise, or images brought to their size in another way."""
CHECK_BYTES, SEAL_BYTES = 4, 32
WAY_OUT = "let $RAYBASIN_DATA name a folder on another disk, or leave data.decode out"


class _Mapped(NamedTuple):
    """A file in memory: pages are read when they are looked at, and shared with all that map it."""

    pixels_NHWC: PixelArray
    checks_N: CheckArray
    seen_N: npt.NDArray[np.bool_]
    """Which images this process has compared with their CRC-32."""


@dataclass(frozen=True, eq=False)
class CachedImages:
    """Images [n, H, W, 3] of a file in `folder` on each machine: those at `rows_n` of its N."""

    stored: StoredImages
    """All N, of which the file is made where there is none."""
    fingerprint: str
    """Of the stored split."""
    folder: Path
    rows_n: IntArray
    at_once: ClassVar[int] = 64

    def __len__(self) -> int:
        return len(self.rows_n)

    def __getstate__(self) -> dict[str, Any]:
        """What is known of a file on this machine does not travel to another."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), *self.stored.size, 3

    @property
    def nbytes(self) -> int:
        """Bytes of this description, as it travels to the workers."""
        return self.stored.nbytes + self.rows_n.nbytes

    @cached_property
    def path(self) -> Path:
        """Of the file on this machine, by what decodes here."""
        made_of = hashlib.sha256(f"{FORMAT}; {images.decoder()}; {self.fingerprint}; {self.stored.size}; ".encode())
        made_of.update(self.stored.index_n.astype("<i8").tobytes())
        return self.folder / f"{made_of.hexdigest()}.pixels"

    @property
    def partial(self) -> Path:
        """What the file is called while it is made."""
        return self.path.with_name(f".{self.path.name}.partial")

    @property
    def pixel_bytes(self) -> int:
        return math.prod(self.stored.shape)

    @property
    def file_bytes(self) -> int:
        return self.pixel_bytes + CHECK_BYTES * len(self.stored) + SEAL_BYTES

    def select(self, chosen_n: IntArray) -> CachedImages:
        return replace(self, rows_n=self.rows_n[chosen_n])

    def fill(self, into_bHWC: PixelArray, index_b: IntArray) -> None:
        """Raises UserError for an image that is not what was decoded."""
        mapped = self._mapped
        for place, row in enumerate(self.rows_n[index_b].tolist()):
            into_bHWC[place] = mapped.pixels_NHWC[row]
            if not mapped.seen_N[row]:
                if zlib.crc32(into_bHWC[place]) != mapped.checks_N[row]:
                    raise UserError(f"{self.path}: image {row} is damaged; delete the file, and it is made again")
                mapped.seen_N[row] = True

    def check_readable(self, threads: int) -> None:
        self.ensure(threads)

    @cached_property
    def _mapped(self) -> _Mapped:
        return self.ensure(torch.get_num_threads())  # the CPUs of a worker

    def is_there(self) -> bool:
        """Whether the file is there and whole, as far as its size and its seal tell. Raises UserError where it cannot
        be read."""
        return self._opened() is not None

    def ensure(self, threads: int) -> _Mapped:
        """The file, which is made, by one process of the machine, where it is not there. Raises UserError where it
        cannot be, and for an image that cannot be decoded or has changed."""
        while (mapped := self._opened()) is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with _alone(self.partial) as file:
                    if file is not None and not self.is_there():
                        self._write(file, threads)
            except OSError as error:
                reason = error.strerror or error
                raise UserError(f"{self.path}: cannot write the decoded images: {reason};\n{WAY_OUT}") from error
        return mapped

    def _opened(self) -> _Mapped | None:
        """None where there is no file, or one that was cut short or is another's."""
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_size != self.file_bytes:
                    return None
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{self.path}: cannot read the decoded images: {error.strerror or error}") from error
        checks_N = np.frombuffer(content, "<u4", len(self.stored), self.pixel_bytes)
        if content[-SEAL_BYTES:] != self._seal(checks_N.tobytes()):
            return None
        pixels_NHWC = np.frombuffer(content, np.uint8, self.pixel_bytes).reshape(self.stored.shape)
        return _Mapped(pixels_NHWC, checks_N, np.zeros(len(self.stored), dtype=np.bool_))

    def _seal(self, checks: bytes) -> bytes:
        return hashlib.sha256(self.path.name.encode() + checks).digest()

    def _write(self, file: BinaryIO, threads: int) -> None:
        """The whole file, which has its name once all of it is on the disk."""
        check_room([self])
        checks = b""
        for part_bHWC in self.stored.in_order(threads):
            file.write(part_bHWC.data)
            checks += np.array([zlib.crc32(image) for image in part_bHWC], dtype="<u4").tobytes()
        file.write(checks + self._seal(checks))
        file.flush()
        folders.sync(file.fileno())
        os.replace(file.name, self.path)


def of(stored: StoredImages, fingerprint: str) -> CachedImages:
    """All of `stored`, of a split with that fingerprint, in files under `cache_folder()`."""
    folder = downloads.cache_folder().absolute() / "decoded"
    return CachedImages(stored, fingerprint, folder, np.arange(len(stored)))


def check_room(wanted: Sequence[CachedImages]) -> None:
    """Raises UserError where the disk has no room for those of these files that are not there."""
    missing, free = _missing_bytes(wanted), _free_bytes(wanted[0].folder)
    if free < missing:
        of_it = f"{format_bytes(missing)}, of which {format_bytes(free)} are free"
        raise UserError(f"{wanted[0].folder}: decoded images need {of_it};\n{WAY_OUT}")


def described(wanted: Sequence[CachedImages]) -> str:
    """For a person: what of these files is there, and what is still to be made."""
    folder, missing = wanted[0].folder, _missing_bytes(wanted)
    whole = sum(one.file_bytes for one in {one.path: one for one in wanted}.values())
    if not missing:
        return f"decoded images: {format_bytes(whole)} in {folder}, which are there"
    there = f" beside {format_bytes(whole - missing)} that are there" if missing < whole else ""
    free = format_bytes(_free_bytes(folder))
    return f"decoded images: {format_bytes(missing)} are written to {folder}{there}; {free} are free on its disk"


def _missing_bytes(wanted: Sequence[CachedImages]) -> int:
    """What another process has written of them by now is not counted."""
    missing = 0
    for one in {one.path: one for one in wanted}.values():
        if not one.is_there():
            begun = one.partial.stat().st_size if one.partial.exists() else 0
            missing += max(0, one.file_bytes - begun)
    return missing


def _free_bytes(folder: Path) -> int:
    """On the disk on which `folder` is or will be."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(there).free


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[BinaryIO | None]:
    """The empty file `path` for one process at a time, others wait; None to one that has waited for a file that is no
    longer there. The lock ends with its process, so what one that was killed has begun is begun anew. At the end the
    file is gone, unless it has another name by then. Raises OSError."""
    with open(path, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not _is_at(file, path):
            yield None
            return
        try:
            file.truncate(0)
            yield file
        finally:
            if _is_at(file, path):
                path.unlink()


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
