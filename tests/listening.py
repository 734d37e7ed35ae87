"""Which addresses a process and all that it has started listen on, from Linux's /proc."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import struct
from pathlib import Path

LISTEN = "0A"


def descendants(pid: int) -> set[int]:
    """`pid` and all that it has started, directly or not."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def addresses(pids: set[int]) -> set[tuple[str, str, int]]:
    """(program, address, port) of every TCP socket on which one of these processes listens."""
    sockets = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    sockets[os.readlink(entry)] = name
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            inode = line.split()[9]
            if state == LISTEN and f"socket:[{inode}]" in sockets:
                host, _, port = local.partition(":")
                found.add((sockets[f"socket:[{inode}]"], str(_address(host)), int(port, 16)))
    return found


def _address(words: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Words of 32 bits in the machine's order, as the kernel writes them (here little endian)."""
    packed = b"".join(struct.pack("<I", int(words[at : at + 8], 16)) for at in range(0, len(words), 8))
    address = ipaddress.ip_address(packed)
    return getattr(address, "ipv4_mapped", None) or address
