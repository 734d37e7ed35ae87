"""Kills what a sweep consists of, runs the same command again, and compares the tables with those of a quiet run.

    python tests/chaos/rounds.py [--seed N] [--rounds N] [--kinds machine,cluster,s3,keep] [--replicates N]

A round is a results folder of its own: the same command with kills, again and again, until it has come through.
`machine` rounds run on a cluster that the command starts itself, and kill workers (in training, in evaluation, while
they write), trials, the queue, the driver, and everything but the driver at once. `cluster` rounds run on a cluster of
three nodes that lives on when the driver dies; they also kill nodes, and the cluster with its head. `s3` rounds are
`machine` rounds whose results lie in a bucket, `keep` rounds such that drop weights (`keep.weights: soups`). Every kill
is SIGKILL, to processes that the round has started, by their ids. Workers kill themselves, so that it can be said what
they were doing (see `tracer`).

What a seed repeats is the order of victims and, for each, after how many jobs, how much later and at which moment of
its work it dies. Which job that hits is up to the machine.

After each round:
    lost      keys that the quiet run has and this one has not, values that differ, weights of another SHA-256, files
              that `raybasin check` finds broken, a command that was left alone and ended with another status than 0
    doubled   keys that stand twice
    redone    training or evaluation begun for what was committed; epochs begun again, beyond one for each time that a
              network was interrupted
    left      processes of a killed driver that are still there in the end
must be none.
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
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import clusters
import pandas as pd
import tiny
import yaml

from raybasin.analysis import integrity
from raybasin.jobs import local, prepare
from raybasin.store import folders, provenance, tables
from raybasin.store.folders import Folder
from raybasin.store.schemas import KEYS, VOLATILE
from raybasin.sweep import specs
from raybasin.sweep.plan import Plan

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]

MOMENTS = {"train": 14, "evaluate": 40, "write": 60}
"""A worker dies at one of so many moments after it has got its order."""
PHASES = {"train": "training", "evaluate": "evaluation", "write": "writing"}
MACHINE = (*MOMENTS, *MOMENTS, "trial", "trial", "queue", "driver", "cluster")
VICTIMS = {"machine": MACHINE, "cluster": (*MACHINE, *["node"] * 5), "s3": MACHINE, "keep": MACHINE}
"""Who is killed in a round of each kind, in a random order, and then again. What is soon replaced dies more often."""
KEPT = {"keep": "soups"}
"""Which weights stay in a round of a kind, where not all do."""
RUN_SECONDS = 1200.0
ORDER_SECONDS = 300.0
"""An order that no worker gets to for so long is taken back: too little may be left to do."""
ORPHAN_SECONDS = 60.0
GCS_SECONDS = 10
"""How long Ray looks for a control store that is gone before its processes end, instead of a minute."""
TITLES = {"queue": "ray::JobQueue", "trial": "ray::PointTrial", "worker": "ray::RayTrainWorker"}
"""How Ray names processes."""


@dataclass(frozen=True)
class Strike:
    """All that is drawn for one kill."""

    victim: str
    jobs: int
    """So many jobs end first."""
    pause: float
    """Seconds after that."""
    moment: int
    """Of a worker: at which of its moments."""
    pick: float
    """Of several victims: which, from 0 to 1."""


def strikes(kind: str, seed: int) -> Iterator[Strike]:
    """The kills of a round, without end: the same for the same seed."""
    draw = random.Random(f"{kind} {seed}")
    while True:
        for victim in draw.sample(VICTIMS[kind], len(VICTIMS[kind])):
            moment = draw.randint(1, MOMENTS.get(victim, 1))
            yield Strike(victim, draw.randint(1, 3), draw.random(), moment, draw.random())


def sweep_tree(kind: str, replicates: int) -> dict[str, Any]:
    """The tiny sweep with more cells and longer networks, so that there is something to hit."""
    return tiny.tree(
        recipe={"epochs": 4, "batch_size": 10, "lr": 0.02, "checkpoint_seconds": 0},
        methods={
            "star_sse": {"n_members": 4, "lr_ratio": [1, 2, 4]},
            "sse": {"n_members": 3, "lr_ratio": [1, 4]},
            "local_de": {"n_members": 3},
        },
        replicates=replicates,
        workers={"cpus": 0.9, "count": 2},
        keep={"weights": KEPT.get(kind, "all")},
    )


# Processes


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    born: int
    """When it started, by which it differs from a later one with its number."""
    command: str


def processes() -> dict[int, Process]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if stat[0] != "Z":
                    found[int(entry.name)] = Process(int(entry.name), int(stat[1]), int(stat[19]), command)
    return found


def descendants(roots: Iterable[int]) -> dict[int, Process]:
    """The processes `roots` and all that they have started and that is not orphaned."""
    everything, found = processes(), set(roots)
    while more := {p.pid for p in everything.values() if p.parent in found} - found:
        found |= more
    return {pid: everything[pid] for pid in found if pid in everything}


def kill(pids: Iterable[int]) -> list[int]:
    """Kills; those of `pids` that were there to be killed."""
    killed = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
    return killed


# Clusters of several nodes


@dataclass
class Cluster:
    """Three nodes of one CPU each, on this machine; node 0 is the head. What belongs to a node is known by its
    environment or by who has started it."""

    environment: dict[str, str]
    port: int = field(default_factory=clusters.free_port)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="ray-")))
    """Ray has sockets there, whose paths must be short."""
    nodes: list[int] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self.numbers = itertools.count()
        for _ in range(3):
            self.start_node()

    def start_node(self) -> None:
        number = next(self.numbers)
        options, environment = ["--num-cpus=1", "--object-store-memory=100000000"], {**self.environment}
        environment[MARK] = self._mark(number)
        if number == 0:
            clusters.start_head(self.port, self.folder, ["--include-dashboard=false", *options], environment)
        else:
            clusters.start_node(self.port, options, environment)
        self.nodes.append(number)

    def processes(self, *numbers: int) -> dict[int, Process]:
        """Those of some nodes, or of all."""
        marks = {f"{MARK}={self._mark(number)}".encode() for number in numbers or self.nodes}
        return descendants(pid for pid in processes() if marks & set(_environment(pid)))

    def _mark(self, number: int) -> str:
        return f"{self.folder}-{number}"

    def kill(self, *numbers: int) -> int:
        """Machines go away: raylets, workers, everything. Gives the number of processes."""
        killed = kill(self.processes(*numbers))
        self.nodes = [number for number in self.nodes if number not in numbers]
        return len(killed)

    def stop(self) -> None:
        if self.nodes:
            self.kill(*self.nodes)
        shutil.rmtree(self.folder, ignore_errors=True)


MARK = "RAYBASIN_CHAOS_NODE"


def _environment(pid: int) -> list[bytes]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return []


# A bucket


@contextlib.contextmanager
def bucket(this: Round) -> Iterator[None]:
    """A server of its own for the results of a round, which in the end are copied to the round's folder."""
    import s3_server

    with s3_server.running() as url:
        ours = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "chaos", "AWS_SECRET_ACCESS_KEY": "chaos",
                "AWS_REGION": "us-east-1"}  # fmt: skip
        before = dict(os.environ)
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
            this.environment.pop(name, None)
        os.environ.update(ours)
        this.environment |= ours
        this.results = f"s3://bucket/{this.kind}-{this.seed}"
        this.environment["RAYBASIN_CHAOS_RESULTS"] = this.results
        try:
            yield
        finally:
            _copy(this.store, this.folder / "results")
            os.environ.clear()
            os.environ.update(before)


def _copy(source: Folder, target: Path) -> None:
    for folder in (*KEYS, "weights", "sweeps", "state"):
        for name in source.names(folder):
            key = f"{folder}/{name}"
            (target / key).parent.mkdir(parents=True, exist_ok=True)
            (target / key).write_bytes(source.get(key))


# A round


@dataclass
class Round:
    kind: str
    seed: int
    folder: Path
    tree: dict[str, Any]
    kills: Counter[str] = field(default_factory=Counter)
    statuses: list[int] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)
    orphans: dict[int, Process] = field(default_factory=dict)
    """What a killed driver has left behind, to end by itself."""
    run: int = 0
    cluster: Cluster | None = None
    orders: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        for name in ("orders", "taken"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "sweep.yaml").write_text(yaml.safe_dump(self.tree))
        (self.folder / "run").write_text("0")
        self.results = str(self.folder / "results")
        self.environment = {key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS",)} | {
            "PYTHONPATH": f"{HERE / 'tracer'}{os.pathsep}{REPOSITORY}", "RAYBASIN_CHAOS": str(self.folder),
            "RAYBASIN_CHAOS_RESULTS": self.results, **clusters.closed(),
            "RAY_gcs_rpc_server_reconnect_timeout_s": str(GCS_SECONDS), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self._events: list[dict[str, Any]] = []
        self._read = 0

    @property
    def store(self) -> Folder:
        return folders.folder(self.results)

    # What has happened

    def events(self) -> list[dict[str, Any]]:
        """What workers have written down so far."""
        path = self.folder / "events"
        if path.exists():
            with open(path, "rb") as file:
                file.seek(self._read)
                whole, _, _ = file.read().rpartition(b"\n")
            if whole:
                self._read += len(whole) + 1
                self._events += map(json.loads, whole.splitlines())
        return self._events

    def deaths(self) -> list[dict[str, Any]]:
        return [event for event in self.events() if event["event"] == "death"]

    def jobs_ended(self) -> int:
        return sum(event["event"] == "job ended" for event in self.events())

    def said(self) -> str:
        return "\n".join((self.folder / f"said-{run}").read_text() for run in range(1, self.run + 1))

    def say(self, line: str) -> None:
        print(f"  {self.kind} {self.seed}: {line}", flush=True)

    def killed(self, kind: str, what: str) -> None:
        self.kills[kind] += 1
        self.say(f"killed {what}")

    # The command

    @contextlib.contextmanager
    def command(self) -> Iterator[subprocess.Popen[bytes]]:
        """The same command, once more."""
        self.run += 1
        (self.folder / "run").write_text(str(self.run))
        where = ["--address", self.cluster.address] if self.cluster else []
        with open(self.folder / f"said-{self.run}", "wb") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "raybasin", "sweep", str(self.folder / "sweep.yaml"),
                 "--results", self.results, *where],
                env=self.environment, cwd=self.folder, stdout=said, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            yield process
            self.statuses.append(process.wait(RUN_SECONDS))
        finally:
            kill(descendants({process.pid}))
            process.wait()

    def watch(self, process: subprocess.Popen[bytes]) -> Iterator[float]:
        """Gives the seconds since the start, a few times a second, while the command runs."""
        started = time.monotonic()
        while process.poll() is None:
            seconds = time.monotonic() - started
            if seconds > RUN_SECONDS:
                raise TimeoutError(f"run {self.run} of the command has not ended after {seconds:.0f} s")
            yield seconds
            time.sleep(0.1)

    def wait_for_jobs(self, process: subprocess.Popen[bytes], jobs: int, pause: float = 0.0) -> bool:
        """Whether so many more jobs have ended before the command did."""
        ended = self.jobs_ended()
        for _ in self.watch(process):
            if self.jobs_ended() >= ended + jobs:
                time.sleep(pause)
                return process.poll() is None
        return False

    def found(self, process: subprocess.Popen[bytes], title: str) -> list[Process]:
        """The processes of the command, wherever they run, whose title begins so; the oldest first."""
        around = descendants({process.pid}) | (self.cluster.processes() if self.cluster else {})
        return sorted((p for p in around.values() if p.command.startswith(title)), key=lambda p: (p.born, p.pid))

    # Kills

    def order(self, phase: str, how: str, moment: int, job: str = "") -> Path:
        """Tells the worker that gets there first (in `job`, if one is named) what to do to itself."""
        number = next(self.orders)
        path, temporary = self.folder / "orders" / f"{phase}.{number}", self.folder / f"order-{number}"
        temporary.write_text(json.dumps({"after": moment, "how": how, "job": job}))
        temporary.rename(path)
        return path

    def kill_worker(self, process: subprocess.Popen[bytes], phase: str, moment: int, how: str = "kill") -> None:
        """Has the next worker that comes so far kill itself, or stop."""
        before, order = len(self.deaths()), self.order(phase, how, moment)
        for seconds in self.watch(process):
            if len(self.deaths()) > before or seconds > ORDER_SECONDS:
                break
        order.unlink(missing_ok=True)
        for death in self.deaths()[before:]:
            self.killed(f"worker in {PHASES[phase]}", f"a worker in {death['job']}, {death['place']}")

    def kill_one(self, process: subprocess.Popen[bytes], victim: str, pick: float = 0.0) -> None:
        """Kills a trial or the queue, as soon as there is one."""
        for seconds in self.watch(process):
            found = self.found(process, TITLES[victim])
            if found and kill([found[int(pick * len(found))].pid]):
                self.killed(victim, f"a {victim}")
                return
            if seconds > ORDER_SECONDS:
                return

    def kill_driver(self, process: subprocess.Popen[bytes]) -> None:
        if self.cluster:
            left = {p.pid: p for title in TITLES.values() for p in self.found(process, title)}
        else:
            left = descendants({process.pid})
        if kill([process.pid]):
            left.pop(process.pid, None)
            self.orphans |= left
            self.killed("driver", f"the driver, and left {len(left)} processes to end by themselves")

    def kill_cluster(self, process: subprocess.Popen[bytes]) -> None:
        if self.cluster:
            killed = self.cluster.kill(*self.cluster.nodes)
        else:
            killed = len(kill(pid for pid in descendants({process.pid}) if pid != process.pid))
        if killed:
            self.killed("cluster", f"GCS, raylets, workers and all other processes but the driver, {killed}")

    def kill_node(self, process: subprocess.Popen[bytes], pick: float) -> None:
        """A machine goes away, one with a worker if the head is not the only one, and another comes."""
        assert self.cluster
        others = [number for number in self.cluster.nodes if number]
        workers = {p.pid for p in self.found(process, TITLES["worker"])}
        busy = [number for number in others if workers & set(self.cluster.processes(number))] or others
        number = busy[int(pick * len(busy))]
        if process.poll() is None:
            self.killed("node", f"node {number} and its {self.cluster.kill(number)} processes")
            self.cluster.start_node()

    def strike(self, process: subprocess.Popen[bytes], strike: Strike) -> bool:
        """Kills; whether the command must come through all the same."""
        match strike.victim:
            case "driver":
                self.kill_driver(process)
            case "cluster":
                self.kill_cluster(process)
            case "node":
                self.kill_node(process, strike.pick)
            case "queue" | "trial":
                self.kill_one(process, strike.victim, strike.pick)
            case phase:
                self.kill_worker(process, phase, strike.moment)
        return strike.victim not in ("driver", "cluster")


def play(this: Round) -> None:
    """The command, and kills in the order that was drawn, until it comes through."""
    drawn = strikes(this.kind, this.seed)
    strike = next(drawn)
    while 0 not in this.statuses:
        if this.cluster and not this.cluster.nodes:
            this.cluster.start()
        with this.command() as process:
            left_alone = True
            while left_alone and this.wait_for_jobs(process, strike.jobs, strike.pause):
                left_alone, strike = this.strike(process, strike), next(drawn)
        if left_alone and this.statuses[-1] != 0:
            this.trouble.append(f"run {this.run} of the command ended with status {this.statuses[-1]}")
            return


def one(kind: str, seed: int, replicates: int, folder: Path, reference: Folder) -> tuple[Round, Verdict]:
    """A round, and what has come of it."""
    this = Round(kind, seed, folder, sweep_tree(kind, replicates))
    with contextlib.ExitStack() as stack:
        if kind == "s3":
            stack.enter_context(bucket(this))
        if kind == "cluster":
            this.cluster = Cluster(this.environment)
            stack.callback(this.cluster.stop)
        try:
            play(this)
        except (TimeoutError, subprocess.SubprocessError) as error:
            this.trouble.append(str(error))
        return this, judge(this, reference)


def planned(this: Round) -> Plan:
    return prepare.prepare(specs.parse(this.tree)).plan


# What has come of it


@dataclass(frozen=True)
class Verdict:
    lost: tuple[str, ...]
    doubled: tuple[str, ...]
    again: tuple[str, ...]
    """Work begun for what was committed."""
    more: tuple[str, ...]
    """Networks of which more epochs were begun again than one for each interruption."""
    left: tuple[str, ...]
    interruptions: int
    epochs: int
    epochs_again: int

    @property
    def wrong(self) -> tuple[str, ...]:
        return self.lost + self.doubled + self.again + self.more + self.left


def quiet(kind: str, replicates: int, folder: Path) -> Folder:
    """The results of a run that nothing disturbs, in one process and without Ray."""
    import torch

    torch.set_num_threads(1)
    report = local.run(specs.parse(sweep_tree(kind, replicates)), folder)
    assert report.complete and not report.failures
    return Folder(folder)


def judge(this: Round, reference: Folder) -> Verdict:
    left = outliving(this.orphans)
    folder, events = this.store, this.events()
    problems = [p for p in integrity.check(folder) if p.what != integrity.UNFINISHED]  # they are no part of the tables
    again = {f"{e['event']} in {e['job']}, which is committed" for e in events if e.get("committed")}
    begun = Counter(e["job"] for e in events if e["event"] == "epoch")
    needed = Counter(f"member-{row['member_id']}" for row in tables.rows(reference, "epochs"))
    for checkpoint in tables.rows(reference, "checkpoints"):
        needed[f"checkpoint-{checkpoint['checkpoint_id']}"] = round(checkpoint["train_epochs"])
    interrupted = Counter(e["job"] for e in events if e["event"] == "job")
    interrupted.subtract(e["job"] for e in events if e["event"] == "job ended")
    surplus = {job: begun[job] - needed[job] for job in begun | needed}
    more = [f"{job}: {n} epochs more than needed, and {interrupted[job]} interruptions"
            for job, n in surplus.items() if not 0 <= n <= interrupted[job]]  # fmt: skip
    return Verdict(
        lost=(*this.trouble, *differences(folder, reference), *map(str, problems)),
        doubled=tuple(repeated_keys(folder)), again=tuple(sorted(again)), more=tuple(more), left=left,
        interruptions=sum(interrupted.values()), epochs=sum(needed.values()), epochs_again=sum(surplus.values()),
    )  # fmt: skip


def outliving(orphans: dict[int, Process]) -> tuple[str, ...]:
    """Those that are still there after a while, which are then killed."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    while True:
        now = processes()
        left = [p for p in orphans.values() if p.pid in now and now[p.pid].born == p.born]
        if not left or time.monotonic() > deadline:
            kill(p.pid for p in left)
            return tuple(f"process {p.pid} ({p.command[:60]}) outlives its driver" for p in left)
        time.sleep(0.5)


def differences(folder: Folder, reference: Folder) -> list[str]:
    """Where the tables of two runs of one sweep differ, but for VOLATILE columns, and which weights do."""
    found = []
    for table, keys in KEYS.items():
        ours, theirs = (_frame(f, table, keys) for f in (folder, reference))
        try:
            pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
        except AssertionError as error:
            found.append(f"{table}: {' '.join(str(error).split())[:300]}")
        for name in sorted({*folder.names(table)} ^ {*reference.names(table)}):
            found.append(f"{table}/{name}: in one of the two only")
    for name in sorted({*folder.names("weights")} ^ {*reference.names("weights")}):
        found.append(f"weights/{name}: in one of the two only")
    return found


def _frame(folder: Folder, table: str, keys: tuple[str, ...]) -> pd.DataFrame:
    frame = tables.read(folder, table).to_pandas()
    return frame.sort_values(list(keys), ignore_index=True).drop(columns=[c for c in frame if c in VOLATILE])


def repeated_keys(folder: Folder) -> list[str]:
    found = []
    for table, keys in KEYS.items():
        rows = tables.read(folder, table).select(list(keys)).to_pylist()
        counts = Counter(tuple(row.values()) for row in rows)
        found += [f"{table}: {key} stands {n} times" for key, n in counts.items() if n > 1]
    return found


# The program


def table(rounds: list[tuple[Round, Verdict]]) -> str:
    """What the documentation shows."""
    kills: Counter[str] = sum((this.kills for this, _ in rounds), Counter())
    verdicts = [verdict for _, verdict in rounds]
    kinds = [f"worker in {phase}" for phase in PHASES.values()] + ["queue", "trial", "driver", "cluster", "node"]
    counts = Counter(this.kind for this, _ in rounds)
    rows = [
        *((f"killed: {kind}", kills[kind]) for kind in kinds),
        ("**killed in all**", sum(kills.values())),
        ("rounds: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()), len(rounds)),
        ("runs of the command", sum(len(this.statuses) for this, _ in rounds)),
        ("jobs that were interrupted", sum(v.interruptions for v in verdicts)),
        ("lost or different", sum(len(v.lost) for v in verdicts)),
        ("doubled", sum(len(v.doubled) for v in verdicts)),
        ("committed work done again", sum(len(v.again) for v in verdicts)),
        (f"epochs begun again, beside the {sum(v.epochs for v in verdicts)} needed",
         sum(v.epochs_again for v in verdicts)),
        ("networks with more of them than interruptions", sum(len(v.more) for v in verdicts)),
        ("processes that outlived their driver", sum(len(v.left) for v in verdicts)),
    ]  # fmt: skip
    return "\n".join(["| what | how often |", "| --- | ---: |", *(f"| {what} | {n} |" for what, n in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0, help="of the first round of each kind")
    parser.add_argument("--rounds", type=int, default=1, help="of each kind")
    parser.add_argument("--kinds", default=",".join(VICTIMS))
    parser.add_argument(
        "--replicates", type=int, default=3, help="of the sweep; more of them are killed where processes start slowly"
    )
    parser.add_argument("--keep", type=Path, help="an empty folder where everything is left to be looked at")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}; {provenance.versions()}")
    scratch = options.keep or Path(tempfile.mkdtemp(prefix="chaos-"))
    started = time.monotonic()
    references: dict[str, Folder] = {}
    rounds: list[tuple[Round, Verdict]] = []
    failed: list[str] = []
    for seed, kind in itertools.product(range(options.seed, options.seed + options.rounds), options.kinds.split(",")):
        begun, folder = time.monotonic(), scratch / f"{kind}-{seed}"
        wrong: tuple[str, ...]
        try:
            if (kept := KEPT.get(kind, "all")) not in references:
                references[kept] = quiet(kind, options.replicates, scratch / f"quiet-{kept}")
            this, verdict = one(kind, seed, options.replicates, folder, references[kept])
        except Exception:
            wrong = (traceback.format_exc(),)
        else:
            rounds.append((this, verdict))
            wrong = verdict.wrong
            print(f"{kind} {seed}: {this.kills.total()} kills in {len(this.statuses)} runs, "
                  f"{time.monotonic() - begun:.0f} s, statuses {this.statuses}")  # fmt: skip
        if wrong:
            failed.append(f"{kind} {seed} has failed: --kinds {kind} --seed {seed} repeats its draws; see {folder}")
            print(*wrong, failed[-1], sep="\n", flush=True)
        elif not options.keep:
            shutil.rmtree(folder)
    print(f"\n{table(rounds)}\n\n{(time.monotonic() - started) / 60:.0f} minutes", *failed, sep="\n")
    if not (failed or options.keep):
        shutil.rmtree(scratch)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
