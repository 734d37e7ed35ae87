"""What a training step frees is kept for the next one.

glibc gives memory back to the system as soon as much of it is free at the end of the heap, which a training step leaves
behind each time: the next one gets it back page by page, each of them cleared first. That took up to a fifth of the CPU
seconds of training on a processor (docs/performance.md#memory-that-is-kept).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Of `mallopt`: M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h."""
KEPT = {MMAP_THRESHOLD: 2**30, TRIM_THRESHOLD: 2**31 - 1}
"""Bytes: smaller pieces come from the heap, and of its free end less than so much is kept."""
LIBRARY = {MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26}
"""The most that glibc itself comes to, after a program has freed large pieces."""
SAID = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed_memory() -> bool:
    """From now on this process keeps what it frees, up to 2 GiB of it. Does nothing and returns False where the C
    library is not glibc, or where the environment says how its `malloc` is to be set (`SAID`, or GLIBC_TUNABLES)."""
    if any(name in os.environ for name in SAID) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    return _set(KEPT)


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """As `keep_freed_memory`, and at the end gives back to the system what is free by then."""
    kept = keep_freed_memory()
    try:
        yield
    finally:
        if kept:
            _set(LIBRARY)
            ctypes.CDLL(None).malloc_trim(0)


def _set(options: dict[int, int]) -> bool:
    try:
        is_glibc = (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except ValueError:  # another C library does not know the name
        is_glibc = False
    return is_glibc and all([ctypes.CDLL(None).mallopt(option, n_bytes) for option, n_bytes in options.items()])
