"""Kills what a sweep consists of, runs the same command again, and compares the tables with those of a quiet run.

    python tests/chaos/rounds.py [--seed N] [--rounds N] [--kinds machine,cluster]      (make chaos)

A round is a results folder of its own: the same command with kills, again and again, until it has come through. The
order of victims and the moments are drawn from the seed. `machine` rounds kill, on a cluster that the command starts
itself, workers (in training, in evaluation, while they write), the queue, trials, the driver, and all other processes
at once; `cluster` rounds kill whole nodes of a cluster of three. Every kill is SIGKILL, to processes that the round has
started, by their ids. Workers kill themselves, so that it can be said what they were doing (see `tracer`).

After each round:
    lost      keys that the quiet run has and this one has not, values that differ, weights of another SHA-256
    doubled   keys that stand twice, epochs of members that were committed already
    redone    epochs begun again, beyond one for each time that a member was interrupted
must be none, `raybasin check` must find nothing wrong, and the command must have ended with 0.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd
import tiny
import yaml

from raybasin import integrity, machine, prepare, runs, specs, tables
from raybasin.plan import Plan
from raybasin.store import Folder

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]

MOMENTS = {"train": 14, "evaluate": 40, "write": 60}
"""A worker dies at one of so many moments after it has got its order."""
RUN_SECONDS = 1800.0
ORDER_SECONDS = 180.0
"""An order that no worker gets to for so long is taken back: too little may be left to do."""


def sweep_tree(n_workers: int = 2) -> dict[str, Any]:
    """The tiny sweep with more cells and longer networks, so that there is something to hit."""
    return tiny.tree(
        recipe={"epochs": 4, "batch_size": 10, "lr": 0.02, "checkpoint_seconds": 0},
        methods={
            "star_sse": {"n_members": 4, "lr_ratio": [1, 2, 4]},
            "sse": {"n_members": 3, "lr_ratio": [1, 4]},
            "local_de": {"n_members": 3},
        },
        replicates=2,
        workers={"cpus": 0.9, "count": n_workers},
    )


# Processes


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    command: str


def processes() -> dict[int, Process]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if state != "Z":
                    found[int(entry.name)] = Process(int(entry.name), int(parent), command)
    return found


def descendants(roots: set[int]) -> dict[int, Process]:
    """The processes `roots` and all that they have started and that is not orphaned."""
    everything, found = processes(), set(roots)
    while more := {p.pid for p in everything.values() if p.parent in found} - found:
        found |= more
    return {pid: everything[pid] for pid in found if pid in everything}


def kill(pids: list[int]) -> list[int]:
    """Those of `pids` that were there to be killed."""
    killed = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
    return killed


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# Clusters of several nodes


@dataclass
class Cluster:
    """A head without CPUs for workers, and nodes of one worker each, all on loopback."""

    folder: Path
    environment: dict[str, str]
    port: int = field(default_factory=free_port)
    nodes: dict[int, set[int]] = field(default_factory=dict)
    """The processes of each node, by its number; the head is 0."""
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def start(self, *arguments: str) -> int:
        number = next(self.numbers)
        place = self.folder / f"n{number}"
        ray = Path(sys.executable).with_name("ray")
        where = [f"--port={self.port}", "--head", "--include-dashboard=false"] if number == 0 else [
            f"--address=127.0.0.1:{self.port}"]  # fmt: skip
        before = set(processes())
        subprocess.run(
            [ray, "start", *where, "--node-ip-address=127.0.0.1", "--object-store-memory=100000000",
             "--disable-usage-stats", *([f"--temp-dir={place}"] if number == 0 else []), *arguments],
            check=True, capture_output=True, timeout=180, env=self.environment,
        )  # fmt: skip
        tag = f":{self.port}"
        started = {pid for pid, process in processes().items() if pid not in before and tag in process.command}
        self.nodes[number] = started
        return number

    def kill(self, number: int) -> list[int]:
        """A machine goes away: its raylet, its workers, everything."""
        return kill(list(descendants(self.nodes.pop(number))))

    def stop(self) -> None:
        for number in list(self.nodes):
            self.kill(number)


# A round


@dataclass
class Round:
    kind: str
    seed: int
    folder: Path
    tree: dict[str, Any] = field(default_factory=lambda: sweep_tree())
    kills: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    run: int = 0
    address: str | None = None
    orders: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.random = random.Random(f"{self.kind} {self.seed}")
        for name in ("orders", "taken"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "sweep.yaml").write_text(yaml.safe_dump(self.tree))
        (self.folder / "run").write_text("0")
        self.environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS",)} | {
            "PYTHONPATH": f"{HERE / 'tracer'}{os.pathsep}{REPOSITORY}", "RAYBASIN_CHAOS": str(self.folder),
            "RAYBASIN_CHAOS_RESULTS": str(self.results), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def events(self) -> list[dict[str, Any]]:
        path = self.folder / "events"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def deaths(self) -> list[dict[str, Any]]:
        return [event for event in self.events() if event["event"] == "death"]

    def say(self, line: str) -> None:
        self.log.append(line)
        print(f"  {self.kind} {self.seed}: {line}", flush=True)

    def killed(self, kind: str, what: str) -> None:
        self.kills[kind] += 1
        self.say(f"killed {what}")

    @contextlib.contextmanager
    def command(self) -> Iterator[subprocess.Popen[bytes]]:
        """The same command, once more."""
        self.run += 1
        (self.folder / "run").write_text(str(self.run))
        where = ["--address", self.address] if self.address else []
        with open(self.folder / f"said-{self.run}", "wb") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "raybasin", "sweep", str(self.folder / "sweep.yaml"),
                 "--results", str(self.results), *where],
                env=self.environment, cwd=self.folder, stdout=said, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            yield process
            self.statuses.append(process.wait())
        finally:
            left = list(descendants({process.pid}))
            kill(left)
            process.wait()

    def watch(self, process: subprocess.Popen[bytes]) -> Iterator[float]:
        """Gives the seconds since the start, a few times a second, while the command runs."""
        started = time.monotonic()
        while process.poll() is None:
            seconds = time.monotonic() - started
            if seconds > RUN_SECONDS:
                raise TimeoutError(f"{self.kind} {self.seed}: the command has not ended after {seconds:.0f} s")
            yield seconds
            time.sleep(0.1)

    def order(self, phase: str, how: str = "kill", job: str = "", after: int | None = None) -> Path:
        """Tells the worker that gets there first (in `job`, if one is named) what to do to itself."""
        number = next(self.orders)
        path, temporary = self.folder / "orders" / f"{phase}.{number}", self.folder / f"order-{number}"
        after = after or self.random.randint(1, MOMENTS[phase])
        temporary.write_text(json.dumps({"after": after, "how": how, "job": job}))
        temporary.rename(path)
        return path

    def said(self) -> str:
        return "\n".join((self.folder / f"said-{run}").read_text() for run in range(1, self.run + 1))

    def wait_for_jobs(self, process: subprocess.Popen[bytes], jobs: int) -> bool:
        """Whether so many more jobs have ended before the command did."""
        ended = self.jobs_ended()
        for _ in self.watch(process):
            if self.jobs_ended() >= ended + jobs:
                time.sleep(self.random.uniform(0.0, 1.0))
                return process.poll() is None
        return False

    def jobs_ended(self) -> int:
        return sum(event["event"] == "job ended" for event in self.events())

    def kill_worker(self, process: subprocess.Popen[bytes], phase: str, how: str = "kill") -> None:
        """Has the next worker that comes so far kill itself, or stop."""
        before, order = len(self.deaths()), self.order(phase, how)
        for seconds in self.watch(process):
            if len(self.deaths()) > before or seconds > ORDER_SECONDS:
                break
        order.unlink(missing_ok=True)
        for death in self.deaths()[before:]:
            self.killed(f"worker, {phase}", f"a worker in {death['job']}, {death['place']}, by SIG{how.upper()}")


def named(process: subprocess.Popen[bytes], *titles: str) -> list[int]:
    """The processes of a command whose title, which Ray sets, begins with one of `titles`."""
    return [p.pid for p in descendants({process.pid}).values() if p.command.startswith(titles)]


def machine_round(this: Round) -> None:
    """One machine: each kind of victim once, in a random order, and again, until the command comes through."""
    bag: list[str] = []
    while 0 not in this.statuses:
        with this.command() as process:
            while this.wait_for_jobs(process, this.random.randint(1, 3)):
                bag = bag or this.random.sample(MACHINE, len(MACHINE))
                if not strike(this, process, bag.pop()):
                    break


def strike(this: Round, process: subprocess.Popen[bytes], victim: str) -> bool:
    """Kills; whether the command must go on by itself."""
    if victim in MOMENTS:
        this.kill_worker(process, victim)
    elif victim == "driver":
        left = descendants({process.pid})
        kill([process.pid])
        this.killed(victim, f"the driver, process {process.pid}, and left {len(left) - 1} to end by themselves")
    elif victim == "cluster":
        everything = set(descendants({process.pid})) - {process.pid}
        this.killed(victim, f"GCS, raylet, workers and all other processes but the driver, {len(kill([*everything]))}")
    else:
        found = named(process, "ray::JobQueue" if victim == "queue" else "ray::ImplicitFunc")
        if found and kill([this.random.choice(found)]):
            this.killed(victim, f"a {victim}")
    return victim not in ("driver", "cluster")


def cluster_round(this: Round) -> None:
    """A head and two machines of one worker, of which one goes away while the command goes on, and another comes."""
    some = Cluster(this.folder / "c", this.environment)
    try:
        some.start("--num-cpus=1")
        for _ in range(2):
            some.start("--num-cpus=1")
        this.address = f"127.0.0.1:{some.port}"
        with this.command() as process:
            while this.wait_for_jobs(process, this.random.randint(2, 6)):
                victim = this.random.choice([number for number in some.nodes if number])
                this.killed("node", f"node {victim} and its {len(some.kill(victim))} processes")
                some.start("--num-cpus=1")
        finish(this)
    finally:
        some.stop()


MACHINE = (*MOMENTS, "queue", "trial", "driver", "cluster")
ROUNDS: dict[str, Callable[[Round], None]] = {"machine": machine_round, "cluster": cluster_round}


def finish(this: Round) -> None:
    """The same command, until it says that all is done; it must not need more than one quiet run."""
    if not this.statuses or this.statuses[-1] != 0:
        with this.command() as process:
            for _ in this.watch(process):
                pass
    if this.statuses[-1] != 0:
        raise AssertionError(this.said())


def planned(this: Round) -> Plan:
    return prepare.prepare(specs.parse(this.tree)).plan


# What has come of it


@dataclass(frozen=True)
class Verdict:
    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    redone: tuple[str, ...]
    epochs: int
    epochs_again: int

    @property
    def good(self) -> bool:
        return not (self.lost or self.doubled or self.redone)


def quiet(folder: Path) -> Folder:
    """The results of a run that nothing disturbs, in one process and without Ray."""
    import torch

    torch.set_num_threads(1)
    report = runs.run(specs.parse(sweep_tree()), folder)
    assert report.complete and not report.failures
    return Folder(folder)


def judge(this: Round, reference: Folder) -> Verdict:
    folder = Folder(this.results)
    problems = [p for p in integrity.check(folder) if p.what != integrity.UNFINISHED]  # they are no part of the tables
    lost = [*differences(folder, reference), *map(str, problems)]
    doubled = [f"epoch {e['epoch']} of {e['job']}, which is committed" for e in this.events()
               if e["event"] == "epoch" and e["committed"]]  # fmt: skip
    doubled += repeated_keys(folder)
    begun: Counter[str] = Counter(e["job"] for e in this.events() if e["event"] == "epoch")
    needed = Counter(f"member-{row['member_id']}" for row in tables.rows(reference, "epochs"))
    for checkpoint in tables.rows(reference, "checkpoints"):
        needed[f"checkpoint-{checkpoint['checkpoint_id']}"] = round(checkpoint["train_epochs"])
    starts = Counter(e["job"] for e in this.events() if e["event"] == "job")
    ends = Counter(e["job"] for e in this.events() if e["event"] == "job ended")
    again = {job: begun[job] - needed[job] for job in begun}
    redone = [f"{job}: {n} epochs more than needed, and {starts[job] - ends[job]} interruptions"
              for job, n in again.items() if n > starts[job] - ends[job]]  # fmt: skip
    return Verdict(tuple(lost), tuple(doubled), tuple(redone), sum(needed.values()), sum(again.values()))


def differences(folder: Folder, reference: Folder) -> list[str]:
    """Where the tables of two runs of one sweep differ, but for VOLATILE columns, and which weights do."""
    found = []
    for table, keys in tables.KEYS.items():
        ours, theirs = (_frame(f, table, keys) for f in (folder, reference))
        try:
            pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
        except AssertionError as error:
            found.append(f"{table}: {' '.join(str(error).split())[:300]}")
    for name in sorted({*folder.names("weights")} ^ {*reference.names("weights")}):
        found.append(f"weights/{name}: in one of the two only")
    return found


def _frame(folder: Folder, table: str, keys: tuple[str, ...]) -> pd.DataFrame:
    frame = tables.read(folder, table).to_pandas()
    return frame.sort_values(list(keys), ignore_index=True).drop(columns=[c for c in frame if c in tables.VOLATILE])


def repeated_keys(folder: Folder) -> list[str]:
    found = []
    for table, keys in tables.KEYS.items():
        rows = tables.read(folder, table).select(list(keys)).to_pylist()
        counts = Counter(tuple(row.values()) for row in rows)
        found += [f"{table}: {key} stands {n} times" for key, n in counts.items() if n > 1]
    return found


# The program


def one(kind: str, seed: int, folder: Path, reference: Folder) -> tuple[Round, Verdict]:
    this = Round(kind, seed, folder)
    ROUNDS[kind](this)
    finish(this)
    return this, judge(this, reference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0, help="of the first round of each kind")
    parser.add_argument("--rounds", type=int, default=1, help="of each kind")
    parser.add_argument("--kinds", default=",".join(ROUNDS))
    parser.add_argument("--keep", type=Path, help="an empty folder where everything is left to be looked at")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}; {machine.versions()}")
    scratch = options.keep or Path(tempfile.mkdtemp(prefix="chaos-"))
    reference = quiet(scratch / "quiet")
    rounds = []
    for seed in range(options.seed, options.seed + options.rounds):
        for kind in options.kinds.split(","):
            started = time.monotonic()
            this, verdict = one(kind, seed, scratch / f"{kind}-{seed}", reference)
            rounds.append((this, verdict))
            print(f"{kind} {seed}: {sum(this.kills.values())} kills in {len(this.statuses)} runs, "
                  f"{time.monotonic() - started:.0f} s, statuses {this.statuses}; "
                  f"{len(verdict.lost)} lost, {len(verdict.doubled)} doubled, "
                  f"{verdict.epochs_again} epochs begun again besides {verdict.epochs}", flush=True)  # fmt: skip
            for line in (*verdict.lost, *verdict.doubled, *verdict.redone):
                print(f"  {line}")
    total: Counter[str] = sum((this.kills for this, _ in rounds), Counter())
    print(f"\n{sum(total.values())} kills: " + ", ".join(f"{n} {kind}" for kind, n in sorted(total.items())))
    print(f"{len(rounds)} rounds, {sum(len(this.statuses) for this, _ in rounds)} runs; "
          f"{sum(len(v.lost) for _, v in rounds)} lost, {sum(len(v.doubled) for _, v in rounds)} doubled, "
          f"{sum(v.epochs_again for _, v in rounds)} epochs begun again besides {sum(v.epochs for _, v in rounds)}, "
          f"{sum(len(v.redone) for _, v in rounds)} networks with more than one per interruption")  # fmt: skip
    good = all(verdict.good for _, verdict in rounds)
    if good and not options.keep:
        shutil.rmtree(scratch)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
