"""Whether decoding feeds training: images a second of one core, from JPEG and from the cache, and what the cache takes.

    python benchmarks/decoding.py [--data FOLDER] [--images N] [--held N] [--rounds N]

Decodes N training images of an image folder or of Parquet files (without --data: JPEGs of 64 x 64 that it makes), one
after another, and trains timm's test_resnet with them from arrays, from the cache of `data.decode: cache` and with
`data.decode: workers`, in turn; one thread, CPU seconds, medians with their range. Then so many processes hold all
images, as arrays of their own or mapped from one file: what each adds to its memory (PSS: shared pages are divided by
those who share them). Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from raybasin.data import dataset, decoding
from raybasin.data.dataset import Images
from raybasin.store.provenance import versions
from raybasin.sweep.facts import Preprocess
from raybasin.sweep.specs import DataSpec, ModelSpec, Recipe
from raybasin.training import loop, models

CPU = torch.device("cpu")
BATCH = 128
PROCESSES = (1, 2, 4)


def make_jpegs(folder: Path, images: int, stored: tuple[int, int]) -> Path:
    """Two classes of smooth noise, as compressible as photos are; every second image stands upright."""
    random = np.random.default_rng(0)
    for split, name in itertools.product(("train", "test"), "ab"):
        (folder / split / name).mkdir(parents=True)
        for number in range(images if split == "train" else 2):
            small = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            size = stored if number % 2 else stored[::-1]
            small.resize(size, Image.Resampling.BICUBIC).save(folder / split / name / f"{number}.jpg", quality=90)
    return folder


def held(folder: Path, images: int, how: str, size: int = 64) -> Images:
    spec = DataSpec(name="mine", dir=str(folder), image_size=size, train_images=images, validation={"images": 400},
                    augment=["pad_crop", "flip"], eval_crop=1.0, decode=how)  # fmt: skip
    return dataset.load(spec).train


def cpu_seconds(call: Callable[..., object], *arguments: object) -> float:
    began = time.process_time()
    call(*arguments)
    return time.process_time() - began


def shown(images: int, seconds: list[float]) -> str:
    rates = sorted(images / one for one in seconds)
    return f"{statistics.median(rates):,.0f} ({rates[0]:,.0f}-{rates[-1]:,.0f})"


def feeding(by: dict[str, Images], rounds: int, size: int) -> None:
    images, classes = len(by["arrays"]), int(by["arrays"].labels_N.max()) + 1
    seconds: dict[str, list[float]] = {}

    def timed(what: str, call: Callable[..., object], *arguments: object) -> None:
        seconds.setdefault(what, []).append(cpu_seconds(call, *arguments))

    def read(part: decoding.LazyImages) -> None:
        reader = decoding.on_device(part, CPU)
        for first in range(0, images, BATCH):
            reader[first : first + BATCH]

    def train(part: Images) -> None:
        net = models.build(ModelSpec(name="test_resnet", pretrained=["none"]), classes, seed=0)
        recipe = Recipe(epochs=1, batch_size=BATCH, lr=0.01)
        cycle = loop.Cycle(recipe, ("pad_crop", "flip"), -(-images // BATCH), 0.01, 0, warm_up=True, n_classes=classes)
        shown_as = Preprocess(size, 1.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        labels_N = torch.from_numpy(part.labels_N)
        loop.train(net, decoding.on_device(part.images_NHWC, CPU), labels_N, cycle, shown_as)

    train(by["arrays"])  # algorithms are chosen
    fresh = pickle.dumps(by["cache"].images_NHWC)
    for _ in range(rounds):
        timed("decoded, a JPEG at a time", read, by["workers"].images_NHWC)
        mapped = pickle.loads(fresh)  # noqa: S301
        timed("from the cache, compared with its CRC-32", read, mapped)
        timed("from the cache, again", read, mapped)
        for how, part in by.items():
            timed(f"trained, {how}", train, part)
    print(f"\nimages/s of one core, {images:,} images of {' x '.join(map(str, by['arrays'].images_NHWC.shape[1:3]))}\n")
    for what, all_seconds in seconds.items():
        print(f"| {what} | {shown(images, all_seconds)} |")


def pss_mb() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024


def hold(description: Path, how: str) -> None:
    """What a child process does: says its memory before and after it has looked at all images, when it is asked."""
    part = pickle.loads(description.read_bytes())  # noqa: S301
    order = torch.arange(len(part))
    input()
    print(pss_mb(), flush=True)
    input()
    kept = decoding.on_device(decoding.as_array(part, np.arange(len(part))) if how == "arrays" else part, CPU)
    reader = kept if isinstance(kept, torch.Tensor) else None
    for first in range(0, len(part), BATCH):
        if reader is None:
            kept.batch(order, slice(first, min(first + BATCH, len(part))))
    print("there", flush=True)
    input()
    print(pss_mb(), flush=True)
    input()


def memory(part: decoding.LazyImages, description: Path) -> None:
    description.write_bytes(pickle.dumps(part))
    pixel_mb = np.prod(part.shape) / 1e6
    print(f"\nMB that holding {len(part):,} images ({pixel_mb:,.0f} MB of pixels) adds, all processes together\n")
    for how in ("arrays", "cache"):
        found = []
        for count in PROCESSES:
            command = [sys.executable, __file__, "--hold", how, "--description", str(description)]
            children = [
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                for _ in range(count)
            ]

            def ask(asked: list[subprocess.Popen[str]] = children) -> list[str]:
                for child in asked:
                    assert child.stdin
                    child.stdin.write("\n")
                    child.stdin.flush()
                return [child.stdout.readline() for child in asked if child.stdout]

            before = sum(map(float, ask()))
            ask()
            found.append(sum(map(float, ask())) - before)
            for child in children:
                child.communicate("\n")
        print(f"| {how} | {' | '.join(f'{mb:,.0f}' for mb in found)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--held", type=int, default=8000, help="images whose memory is looked at")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stored", type=int, nargs=2, default=(64, 64), help="size of the JPEGs that are made")
    parser.add_argument("--size", type=int, default=64, help="that they are decoded to, where sizes differ")
    parser.add_argument("--hold", choices=["arrays", "cache"], help=argparse.SUPPRESS)
    parser.add_argument("--description", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.hold:
        hold(options.description, options.hold)
        return
    print(f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}; {versions()}")
    with tempfile.TemporaryDirectory() as name:
        os.environ["RAYBASIN_DATA"] = f"{name}/cache"
        folder = options.data or make_jpegs(
            Path(name) / "made", (max(options.images, options.held) + 400) // 2, tuple(options.stored)
        )
        ways = ("arrays", "cache", "workers")
        feeding({how: held(folder, options.images, how, options.size) for how in ways}, options.rounds, options.size)
        if not options.held:
            return
        memory(held(folder, options.held, "cache").images_NHWC, Path(name) / "description")


if __name__ == "__main__":
    main()
