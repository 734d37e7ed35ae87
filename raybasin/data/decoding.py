"""Images that are decoded when they are wanted: what a data set too large for arrays gives to the workers instead.

`StoredImages` says which images these are and holds none of their bytes, so it travels to the workers in place of an
array. A worker makes an `ImageReader` of it, which stands where else the tensor of all images does; a few threads
decode the batches that will be wanted next. Pixels are those of the arrays, bit for bit. B is the axis of a batch.
`decoded` has the same for images that lie decoded on the machine's disk.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import os
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from raybasin.data import downloads, images
from raybasin.data.images import CheckArray, Encoded, HeightWidth, IntArray, PixelArray
from raybasin.data.stored import Audit, EncodedSplit, Shard
from raybasin.errors import UserError
from raybasin.store import folders
from raybasin.sweep import schedules

AHEAD = 2
"""So many batches are decoded before they are asked for, while a GPU is busy with the last."""
DECODE_BATCH = 512
"""So many encoded images are held in memory while all are decoded."""


def most_threads() -> int:
    """With how many threads images are decoded where nothing else is done meanwhile."""
    return min(8, os.cpu_count() or 1)


def threads_beside(device: torch.device) -> int:
    """With how many threads a worker decodes. On a processor it does so in turn with the network, with all of its CPUs;
    beside a GPU all the time, and one CPU is for what keeps that busy."""
    return max(1, torch.get_num_threads() - (device.type == "cuda"))


class LazyImages(Protocol):
    """Images [n, H, W, 3] of which none is in memory. What there is of it travels to the workers."""

    @property
    def at_once(self) -> int:
        """So many of a batch are one task for a thread."""

    def __len__(self) -> int: ...

    @property
    def shape(self) -> tuple[int, int, int, int]: ...

    @property
    def nbytes(self) -> int:
        """Bytes of this description, as it travels to the workers."""

    def select(self, chosen_n: IntArray) -> LazyImages:
        """Those at `chosen_n`, in that order."""

    def fill(self, into_bHWC: PixelArray, index_b: IntArray) -> None:
        """Writes the images at `index_b` of 0..n-1. Raises UserError for one that cannot be read or is another one."""

    def check_readable(self, threads: int) -> None:
        """Raises UserError where this machine cannot give the images; with so many threads they are decoded, where they
        are to be kept so."""


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Images [n, H, W, 3] that are still as they are stored: those at `index_n` of a split."""

    split: EncodedSplit
    index_n: IntArray
    checks_n: CheckArray
    """The CRC-32 of the stored bytes of each: what was fingerprinted is what is decoded, on whatever machine."""
    size: HeightWidth
    at_once: ClassVar[int] = 1

    def __len__(self) -> int:
        return len(self.index_n)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), *self.size, 3

    @property
    def nbytes(self) -> int:
        """Bytes of this description, as it travels to the workers."""
        return len(pickle.dumps(self, protocol=5))

    def select(self, chosen_n: IntArray) -> StoredImages:
        return replace(self, index_n=self.index_n[chosen_n], checks_n=self.checks_n[chosen_n])

    def decode(self, position: int) -> PixelArray:
        """The image at `position` of 0..n-1. Raises UserError where it cannot be read or is another one."""
        [encoded] = self.split.read(self.index_n[position : position + 1])
        return self.decoded(position, encoded)

    def decoded(self, position: int, encoded: Encoded) -> PixelArray:
        """The image at `position`, as it was read. Raises UserError where it cannot be decoded or is another one."""
        images.check_unchanged(*encoded, self.checks_n[position])
        return images.decode(*encoded, self.size)

    def fill(self, into_bHWC: PixelArray, index_b: IntArray) -> None:
        for place, position in enumerate(index_b.tolist()):
            into_bHWC[place] = self.decode(position)

    def in_order(self, threads: int) -> Iterator[PixelArray]:
        """All images in batches [b, H, W, 3], read as they are stored: so it costs little of Parquet, too. Raises
        UserError as `decode` does."""
        encoded = enumerate(self.split.read(self.index_n))
        with ThreadPoolExecutor(threads) as pool:  # PIL lets go of the lock
            # In batches: map() takes all of its input at once, which may be larger than memory.
            while batch := list(itertools.islice(encoded, DECODE_BATCH)):
                yield np.stack([*pool.map(self.decoded, *zip(*batch, strict=True))])

    def check_readable(self, threads: int = 1) -> None:
        """Decodes the first and the last image, as a machine must be able to. Raises UserError."""
        for position in {0, len(self) - 1} if len(self) else ():
            self.decode(position)


_threads = functools.cache(partial(ThreadPoolExecutor, thread_name_prefix="decode"))


class _Batch(NamedTuple):
    """A batch, and its images that are being decoded into it."""

    pixels_BHWC: Tensor
    images: list[Future[None]]


class ImageReader:
    """`LazyImages` as a worker uses them: like the uint8 tensor [N, H, W, 3] of all images, in batches.

    Its memory is that of at most `ahead` + 1 batches. Not for several threads at once.
    """

    def __init__(self, stored: LazyImages, device: torch.device) -> None:
        self.stored, self.device = stored, device
        self.ahead = AHEAD if device.type == "cuda" else 0  # a processor would compute and decode at once
        self._in_order_N = torch.arange(len(stored))
        self._order: tuple[Tensor, IntArray] = self._in_order_N, self._in_order_N.numpy()
        self._pending: dict[bytes, _Batch] = {}

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.stored.shape

    def __getitem__(self, positions: slice) -> Tensor:
        """The images at `positions`; beside a GPU, soon, those of the slices of equal length that follow, too."""
        return self.batch(self._in_order_N, positions)

    def batch(self, order_N: Tensor, positions: slice) -> Tensor:
        """The images `order_N[positions]`, [B, H, W, 3]; beside a GPU those that follow in that order are decoded next.

        Raises UserError for an image that cannot be read.
        """
        if self._order[0] is not order_N:  # copied from the device once for each order, that is once in an epoch
            self._order = order_N, order_N.cpu().numpy()
        order = self._order[1]
        later = schedules.batches(len(order), positions.stop - positions.start)
        coming = [step for step in later if step.start >= positions.stop][: self.ahead]
        wanted = {order[step].tobytes(): order[step] for step in (positions, *coming)}
        for key in self._pending.keys() - wanted.keys():  # what was decoded for another order
            for image in self._pending.pop(key).images:
                image.cancel()
        for key, index_b in wanted.items():
            if key not in self._pending:
                self._pending[key] = self._begin(index_b)
        batch = self._pending.pop(order[positions].tobytes())
        for image in batch.images:
            image.result()
        return batch.pixels_BHWC.to(self.device, non_blocking=True)

    def _begin(self, index_b: IntArray) -> _Batch:
        # Memory from which a GPU can fetch it without waiting.
        pin_memory = self.device.type == "cuda"
        pixels_BHWC = torch.empty((len(index_b), *self.shape[1:]), dtype=torch.uint8, pin_memory=pin_memory)
        into = pixels_BHWC.numpy()

        threads = _threads(threads_beside(self.device))
        starts = range(0, len(index_b), self.stored.at_once)
        parts = [slice(start, start + self.stored.at_once) for start in starts]
        return _Batch(pixels_BHWC, [threads.submit(self.stored.fill, into[part], index_b[part]) for part in parts])


DeviceImages = Tensor | ImageReader
"""uint8 images [N, H, W, 3] on a device: all of them, or decoded as they are asked for."""


def on_device(images_NHWC: PixelArray | LazyImages, device: torch.device) -> DeviceImages:
    """Arrays are copied to a GPU. On the processor the tensor is of the array's own memory, which all workers of a
    machine may share and none can write to: images are read, and never changed."""
    if not isinstance(images_NHWC, np.ndarray):
        return ImageReader(images_NHWC, device)
    with warnings.catch_warnings():  # torch would have every tensor writable
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(images_NHWC)).to(device)


def select(images_NHWC: DeviceImages, chosen_n: IntArray) -> DeviceImages:
    """The images at `chosen_n`, in that order."""
    if isinstance(images_NHWC, ImageReader):
        return ImageReader(images_NHWC.stored.select(chosen_n), images_NHWC.device)
    return images_NHWC[torch.from_numpy(chosen_n).to(images_NHWC.device)]


def as_array(images_NHWC: PixelArray | LazyImages, chosen_n: IntArray) -> PixelArray:
    """The images at `chosen_n`, at least one, decoded. Raises UserError for one that cannot be."""
    if isinstance(images_NHWC, np.ndarray):
        return images_NHWC[chosen_n]
    return ImageReader(images_NHWC.select(chosen_n), torch.device("cpu"))[0 : len(chosen_n)].numpy()


def with_random_access(split: EncodedSplit, audit: Audit) -> EncodedSplit:
    """The same split such that one image is read at the cost of one image, as files are. Of Parquet, whose row groups
    are read whole, the images are copied once, as they are encoded, one after another into a file under
    `cache_folder()`, which its fingerprint names. Raises UserError where there is no room."""
    if not split.shards:
        return split
    path = downloads.cache_folder().absolute() / "encoded" / f"{audit.fingerprint}.images"
    n_bytes = int(audit.lengths_N.sum())
    if not path.is_file() or path.stat().st_size != n_bytes:
        _copy_images(split, path, audit.checks_N, n_bytes)
    starts_N = np.cumsum(audit.lengths_N) - audit.lengths_N
    return replace(split, read=partial(_read_copy, path, starts_N, audit.lengths_N, split.shards), shards=())


def _copy_images(split: EncodedSplit, path: Path, checks_N: CheckArray, n_bytes: int) -> None:
    """All images of `split` into the file `path`, which is there whole or not at all, and as they were audited."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < n_bytes:
            raise UserError(
                f"{path.parent}: a copy of the encoded images needs {n_bytes / 1e9:.1f} GB, of which {free / 1e9:.1f} "
                "are free;\nlet $RAYBASIN_DATA name a folder on a larger disk, or set data.decode: arrays"
            )
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
            with open(Path(folder) / path.name, "xb") as file:
                for check, (where, content) in zip(checks_N, split.read(np.arange(len(checks_N))), strict=True):
                    images.check_unchanged(where, content, check)
                    file.write(content)
                file.flush()
                folders.sync(file.fileno())
            os.replace(file.name, path)
    except OSError as error:
        raise UserError(f"{path}: cannot write the copy of the encoded images: {error.strerror or error}") from error


def _read_copy(
    path: Path, starts_N: IntArray, lengths_N: IntArray, shards: Sequence[Shard], index_n: IntArray
) -> Iterator[Encoded]:
    first_rows = [shard.first_row for shard in shards]
    try:
        with open(path, "rb", buffering=0) as file:
            for position in index_n.tolist():
                shard = shards[bisect.bisect_right(first_rows, position) - 1]
                where = f"{shard.path}, row {position - shard.first_row}"
                yield where, os.pread(file.fileno(), int(lengths_N[position]), int(starts_N[position]))
    except OSError as error:
        raise UserError(f"{path}: cannot read the copy of the encoded images: {error.strerror or error}") from error
