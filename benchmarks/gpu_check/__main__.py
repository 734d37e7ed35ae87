"""What a GPU makes of raybasin: whether its results are right, and how fast everything is. Without a network.

    python benchmarks/gpu_check [--device cuda] [--out FOLDER] [--toy] [--parts a,b]      (make gpu-check)

Parts run in processes of their own, each with a time limit; rows are on disk as soon as they are known. Those that ask
what is right run side by side, then those that take the time one after another. The last lines are a table for
docs/results.md. The exit status is 1 where something does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.extend(str(Path(__file__).resolve().parents[2] / folder) for folder in ("", "tests"))

import torch
from rows import Ask, Notes, Row

from raybasin.store.provenance import describe, versions

HERE = Path(__file__).resolve().parent
RIGHT = ("recorded", "agree", "precisions", "continued", "memory", "fleet")
FAST = ("limits", "training", "workers", "authors_way", "evaluating", "decoding", "stacked")
LIMIT_SECONDS = {"training": 240.0}
OTHER_SECONDS = 150.0


def of(part: str) -> Callable[[Ask, Notes], None]:
    """What does a part. Its module is imported only then: a part may need what others do not."""
    if part in RIGHT:
        import correctness as module
    elif part in ("workers", "authors_way"):
        import sharing as module  # type: ignore[no-redef]
    else:
        import throughput as module  # type: ignore[no-redef]
    return getattr(module, part)  # type: ignore[no-any-return]


def do(part: str, ask: Ask) -> None:
    """In this process."""
    notes = Notes(part, ask.out / f"{part}.jsonl")
    if not ask.toy:
        torch.set_num_threads(min(8, os.cpu_count() or 1))
    began = time.monotonic()
    with notes.trying("the whole part"):
        of(part)(ask, notes)
    notes.add("took", time.monotonic() - began, "s")


def in_processes(parts: list[str], device: str, out: Path) -> None:
    side_by_side = {part: start(part, device, out) for part in parts if part in RIGHT}
    for part, process in side_by_side.items():
        wait(part, process, out)
    for part in parts:
        if part in FAST:
            wait(part, start(part, device, out), out)


def start(part: str, device: str, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-u", str(HERE), "--device", device, "--out", str(out), "--part", part]
    with open(out / f"{part}.log", "wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def wait(part: str, process: subprocess.Popen[bytes], out: Path) -> None:
    limit = LIMIT_SECONDS.get(part, OTHER_SECONDS)
    try:
        status = process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with what it has started
        process.wait()
        status = None
    if status != 0:
        why = f"ended with status {status}" if status is not None else f"took longer than {limit:.0f} s"
        tail = (out / f"{part}.log").read_text(errors="replace")[-600:]
        Notes(part, out / f"{part}.jsonl").holds("the part", False, f"{why}: {tail}")


def rows(out: Path, parts: Iterable[str]) -> list[Row]:
    found = []
    for part in parts:
        path = out / f"{part}.jsonl"
        if path.exists():
            found += [Row(**json.loads(line)) for line in path.read_text().splitlines()]
    return found


def table(found: Iterable[Row], device: torch.device) -> str:
    """In the form of docs/results.md."""
    lines = [f"{describe(device)}, {os.cpu_count()} cores, {platform.machine()}; {versions()}", "",
             "| part | what | median | spread, n | |", "| --- | --- | ---: | --- | --- |"]  # fmt: skip
    for row in found:
        value = "" if row.value is None else f"{row.value:,.4g} {row.unit}".strip()
        spread = "" if row.low is None else f"{row.low:,.4g} to {row.high:,.4g}, {row.n}"
        verdict = {True: "holds", False: "**fails**", None: ""}[row.holds]
        said = " ".join(row.said.split())[:160].replace("|", "\\|")
        lines.append(f"| {row.part} | {row.what} | {value} | {spread} | {' '.join([verdict, said]).strip()} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="an empty folder for rows and logs")
    parser.add_argument("--toy", action="store_true", help="at the size of a test")
    parser.add_argument("--parts", default=",".join((*RIGHT, *FAST)))
    parser.add_argument("--part", choices=(*RIGHT, *FAST), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    device = torch.device(asked.device)
    out = asked.out or Path(tempfile.mkdtemp(prefix="gpu-check-"))
    out.mkdir(parents=True, exist_ok=True)
    if asked.part:
        do(asked.part, Ask(device, False, out))
        return 0
    parts = asked.parts.split(",")
    if unknown := set(parts) - {*RIGHT, *FAST}:
        parser.error(f"--parts: {', '.join(sorted(unknown))}: there are {', '.join((*RIGHT, *FAST))}")
    if asked.toy:  # in this process, which has torch already
        torch.set_num_threads(1)
        for part in parts:
            do(part, Ask(device, True, out, repeats=1, seconds=0.02))
    else:
        in_processes(parts, asked.device, out)
    found = rows(out, parts)
    (out / "table.md").write_text(table(found, device) + "\n")
    print(table(found, device))
    return 1 if any(row.holds is False for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
