"""Whether a device computes what a CPU does, goes on after a kill, and says it when its memory is full."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import throughput
import timm
import tiny
import torch
import yaml
from rows import Ask, Notes

import raybasin
from raybasin.store.folders import Folder
from raybasin.sweep.specs import Recipe
from raybasin.training import callbacks, loop

NLL_BOUND = 2e-3
"""How far likelihoods of the same weights may lie apart, CPU and device; accuracies by one image of the fifty."""
MOVED_BOUND = 0.02
"""How far weights may lie apart after ten steps, as a share of how far they have moved."""
START_SECONDS = 240.0


def sweep(ask: Ask, **changes: Any) -> dict[str, Any]:
    """A sweep of seconds, with what is drawn at random on the host and without dropout."""
    size = {"methods": {"star_sse": {"n_members": 2}}} if ask.toy else {"recipe__epochs": 6}
    return tiny.tree(**{**size, **changes})


def agree(ask: Ask, notes: Notes) -> None:
    """What one device and the CPU make of the same: of networks that are trained, and of a training."""
    measured(ask, notes)
    trained(ask, notes)


def measured(ask: Ask, notes: Notes) -> None:
    """A sweep by the CPU, and all that is measured of its networks once more by the device."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / name for name in ("cpu", "device")]
        report = raybasin.run(sweep(ask), folders[0])
        notes.holds("a sweep by the CPU", report.complete, str(report))
        shutil.copytree(*folders)
        for table in ("predictions", "paths", "scores", "cells"):
            shutil.rmtree(folders[1] / table)
        notes.holds("measured again", raybasin.run(sweep(ask), folders[1], device=ask.device).complete)
        cpu, device = (raybasin.open(folder).cells.set_index("cell_id").sort_index() for folder in folders)
        notes.holds("the same cells", list(cpu.index) == list(device.index))
        for kind, bound in (("accuracy", 0.0201), ("error", 0.0201), ("nll", NLL_BOUND)):
            columns = [c for c in cpu.columns if cpu[c].dtype == np.float64 and c.endswith(kind)]
            apart = (cpu[columns] - device[columns]).abs().max()
            what = f"CPU and device, measured of the same networks, {kind}: largest difference"
            notes.add(what, float(apart.max()), n=len(cpu) * len(columns), holds=bool(apart.max() <= bound))


def trained(ask: Ask, notes: Notes) -> None:
    """The first steps of one training: the distance between the weights as a share of the distance that they moved."""
    load = throughput.Load("test_resnet", 64, 64, 8 if ask.toy else 640, "fp32")
    start, ends, losses = None, [], []
    for device in (torch.device("cpu"), ask.device):
        net = throughput.network(load.network, device)
        start = torch.cat([p.detach().flatten().cpu() for p in net.parameters()])
        cycle = loop.Cycle(throughput.recipe(load), throughput.AUGMENT, 10, 0.01, seed=1, cuda_graphs=True)
        done = loop.train(net, *throughput.data(load, device), cycle, throughput.shown(load.image_size))
        ends.append(torch.cat([p.detach().flatten().cpu() for p in net.parameters()]))
        losses.append(done.epochs[0].train_loss)
    apart = float((ends[0] - ends[1]).norm() / (ends[0] - start).norm())
    notes.add("CPU and device, ten steps: distance of weights over distance moved", apart, holds=apart <= MOVED_BOUND,
              said=f"losses {losses[0]:.5f} and {losses[1]:.5f}")  # fmt: skip


VARIANTS: dict[str, dict[str, Any]] = {
    **{precision: {"precision": precision} for precision in ("fp32", "tf32", "bf16", "fp16")},
    "AdamW": {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "decay": "matrices"},
    "clipped, smoothed": {"grad_clip": 1.0, "label_smoothing": 0.1, "nesterov": True},
    "mixup": {"mixup": 0.2, "cutmix": 1.0},
}


def recorded(ask: Ask, notes: Notes) -> None:
    """Steps that are recorded as CUDA graphs, against those that are not, and against a run that was interrupted and
    goes on in new objects: equal to the bit, with deterministic algorithms."""
    for name, more in list(VARIANTS.items())[-2 if ask.toy else 0 :]:
        if ask.device.type == "cpu" and name == "fp16":
            continue
        with notes.trying(f"recorded steps, {name}"):
            plain, epochs, _ = steps_of(ask, more, graphs=False)
            other, again, snapshots = steps_of(ask, more, graphs=True)
            later, rest, _ = steps_of(ask, more, graphs=True, resume=snapshots[len(snapshots) // 2])
            notes.holds(f"recorded steps are the steps, {name}", same(plain, other) and epochs == again,
                        f"loss {epochs[-1].train_loss:.5f}, {again[-1].train_loss:.5f}")  # fmt: skip
            notes.holds(f"interrupted and continued, {name}", same(other, later) and again == rest)
    with notes.trying("recorded steps with noise on gradients"):
        noise = callbacks.Langevin(3, 1e-3, 100, 0.9, 5)
        plain, other = (steps_of(ask, {}, graphs=graphs, callback=noise)[0] for graphs in (False, True))
        notes.holds("recorded steps are the steps, with noise on gradients", same(plain, other))


def steps_of(ask: Ask, more: dict[str, Any], graphs: bool, resume: Any = None, callback: Any = None) -> tuple[Any, ...]:
    """A training with a last batch that is not full and dropped paths, and the snapshots on its way."""
    size, batch, epochs = (32, 8, 2) if ask.toy else (64, 64, 12)
    load = throughput.Load("test_resnet", size, batch, 4 * batch + 6, more.get("precision", "fp32"))
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=throughput.CLASSES, drop_path_rate=0.2)
    net = net.to(ask.device, memory_format=torch.channels_last)
    given = {"lr": 0.01, **more, "epochs": epochs, "batch_size": batch, "deterministic": True, "checkpoint_seconds": 0}
    recipe = Recipe(**given)
    cycle = loop.Cycle(recipe, throughput.AUGMENT, 5 * epochs, recipe.lr, seed=1, n_classes=throughput.CLASSES,
                       cuda_graphs=graphs)  # fmt: skip
    snapshots: list[Any] = []
    done = loop.train(net, *throughput.data(load, ask.device), cycle, throughput.shown(size), resume=resume,
                      save=snapshots.append, callback=callback)  # fmt: skip
    return net.state_dict(), done.epochs, snapshots


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def precisions(ask: Ask, notes: Notes) -> None:
    """The networks of a sweep in every precision."""
    with tempfile.TemporaryDirectory() as scratch:
        for precision in ("fp32", "tf32", "bf16", "fp16"):
            if precision == "fp16" and ask.device.type == "cpu":
                continue
            with notes.trying(precision):
                tree = sweep(ask, recipe__precision=precision, methods={"star_sse": {"n_members": 2}})
                report = raybasin.run(tree, Path(scratch) / precision, device=ask.device)
                [cell] = raybasin.open(Path(scratch) / precision).cells.itertuples()
                well = report.complete and np.isfinite(cell.ensemble_nll) and (cell.member_accuracy > 0.25 or ask.toy)
                notes.add(f"accuracy of the networks, {precision}", cell.member_accuracy, holds=bool(well),
                          said=f"NLL of the ensemble {cell.ensemble_nll:.4f}; chance is 0.2")  # fmt: skip


RUN = """
import sys, torch, raybasin, yaml
torch.set_num_threads(1)  # sums over several round differently
report = raybasin.run(yaml.safe_load(open(sys.argv[1])), sys.argv[2], device=sys.argv[3])
sys.exit(0 if report.complete else 1)
"""


def continued(ask: Ask, notes: Notes) -> None:
    """Killed in the middle and run again, against a run that was left alone: equal to the bit."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "sweep.yaml").write_text(yaml.safe_dump(sweep(ask, recipe__deterministic=True)))
        by = [sys.executable, "-c", RUN, str(root / "sweep.yaml")]
        quiet = subprocess.run([*by, str(root / "quiet"), str(ask.device)], env=environment(), timeout=START_SECONDS)
        notes.holds("a deterministic sweep, left alone", quiet.returncode == 0)
        killed(by + [str(root / "killed"), str(ask.device)], root / "killed", 2)
        again = subprocess.run([*by, str(root / "killed"), str(ask.device)], env=environment(), timeout=START_SECONDS)
        notes.holds("the same after a kill", again.returncode == 0)
        compare(notes, "killed and continued, deterministic: tables and weights equal to the bit", root)


def fleet(ask: Ask, notes: Notes) -> None:
    """The same by Ray, several workers on the device, the driver killed in the middle."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        tree = sweep(
            ask, recipe__deterministic=True, recipe__epochs=8 if not ask.toy else 2, methods__star_sse__lr_ratio=[1, 4]
        )
        share = {"gpus": 0.25} if ask.device.type == "cuda" else {"cpus": 1}
        (root / "sweep.yaml").write_text(yaml.safe_dump({**tree, "workers": share}))
        by = [sys.executable, "-m", "raybasin", "sweep", str(root / "sweep.yaml"), "--results"]
        alone = [sys.executable, "-c", RUN, str(root / "sweep.yaml"), str(root / "quiet"), str(ask.device)]
        with subprocess.Popen(alone, env=environment()) as quiet:
            killed([*by, str(root / "killed")], root / "killed", 1)
            began = time.monotonic()
            said = subprocess.run([*by, str(root / "killed")], env=environment(), timeout=START_SECONDS,
                                  capture_output=True, text=True)  # fmt: skip
            notes.add("a sweep by Ray, continued", time.monotonic() - began, "s", said=said.stdout[-1500:])
            notes.holds("Ray's workers on the device", said.returncode == 0, said.stderr[-1500:])
            notes.holds("one process on the device", quiet.wait(START_SECONDS) == 0)
        devices = sorted(raybasin.open(root / "killed").members.device.unique())
        notes.add("networks were trained on", said=", ".join(devices))
        compare(notes, "Ray's workers and one process, deterministic: tables and weights equal to the bit", root)


def killed(command: list[str], folder: Path, networks: int) -> None:
    """Starts `command` and kills it once so many networks are in the folder."""
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + START_SECONDS
    members = folder / "members"
    while process.poll() is None and time.monotonic() < deadline:
        if members.is_dir() and len(list(members.glob("*.parquet"))) >= networks:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.01)
    process.kill()
    process.wait()


def environment() -> dict[str, str]:
    return {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def compare(notes: Notes, what: str, root: Path) -> None:
    quiet, other = (tiny.values(Folder(root / name)) for name in ("quiet", "killed"))
    different = [table for table, rows in quiet[0].items() if rows != other[0][table]]
    different += ["weights"] if quiet[1] != other[1] else []
    notes.holds(what, not different, f"{', '.join(different)} differ" if different else f"{len(quiet[1])} networks")


def memory(ask: Ask, notes: Notes) -> None:
    """A device whose memory is full: said in one line, and the next sweep of the process goes on."""
    if ask.device.type != "cuda":
        return
    with tempfile.TemporaryDirectory() as scratch:
        total = torch.cuda.get_device_properties(ask.device).total_memory
        tree = sweep(ask, data__image_size=224, recipe__batch_size=40, methods={"local_de": {"n_members": 2}})
        torch.cuda.set_per_process_memory_fraction(96 * 2**20 / total)
        report = raybasin.run(tree, Path(scratch) / "full", device=ask.device)
        reasons = {failure.reason for failure in report.failures}
        said = bool(reasons) and all("out of memory" in reason and "batch_size" in reason for reason in reasons)
        notes.holds("memory that is full is said, with the way out", said, "; ".join(reasons)[:400])
        torch.cuda.set_per_process_memory_fraction(1.0)
        again = raybasin.run(tree, Path(scratch) / "full", device=ask.device)
        notes.holds("the same process goes on once there is room", again.complete, str(again))
