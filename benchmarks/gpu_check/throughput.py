"""How many images a second train, are evaluated and are decoded: raybasin's own loops beside plain ones.

Tensors: M branches, B batch, C classes, H x W pixels.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import timm
import torch
from PIL import Image
from rows import Ask, Notes, rates, synchronize
from torch import Tensor, nn

from raybasin.data import images
from raybasin.sweep.facts import Preprocess
from raybasin.sweep.specs import Recipe
from raybasin.training import compiling, evaluation, loop

CLASSES = 100
AUGMENT = ("pad_crop", "flip")


@dataclass(frozen=True)
class Load:
    """A network, the size of its images, and how many are in a batch and on the device."""

    network: str
    image_size: int
    batch: int
    images: int
    precision: str

    def __str__(self) -> str:
        return f"{self.network} {self.image_size} px, batch {self.batch}, {self.precision}"


LOADS = (
    Load("test_resnet", 64, 128, 8192, "fp32"),
    Load("test_resnet", 64, 128, 8192, "bf16"),
    Load("resnet18", 64, 128, 8192, "bf16"),
    Load("resnet50", 224, 128, 2048, "bf16"),
)
TOY = (Load("test_resnet", 32, 8, 24, "fp32"),)
COMPILED = ("resnet50",)
"""Compiling takes half a minute a network and more; what it brings to the small ones is in docs/performance.md."""
STACKED = ("test_resnet", "resnet18")
N_BRANCHES = 4


def shown(size: int) -> Preprocess:
    return Preprocess(
        image_size=size, eval_crop=1.0, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), interpolation="bilinear"
    )


def network(name: str, device: torch.device, order: torch.memory_format = torch.channels_last) -> nn.Module:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=CLASSES)
    return net.to(device, memory_format=order)  # type: ignore[call-overload,no-any-return]


def data(load: Load, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (load.images, load.image_size, load.image_size, 3)
    pixels_NHWC = torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(device)
    return pixels_NHWC, torch.randint(CLASSES, (load.images,), generator=generator).to(device)


def recipe(load: Load, **more: object) -> Recipe:
    return Recipe(epochs=1, batch_size=load.batch, lr=0.01, precision=load.precision, **more)  # type: ignore[arg-type]


def raybasin(ask: Ask, load: Load, graphs: bool, **more: object) -> list[float]:
    """raybasin's own loop, with its augmentations, in runs of three epochs."""
    net = network(load.network, ask.device)
    pixels_NHWC, labels_N = data(load, ask.device)
    n_steps = 3 * len(pixels_NHWC) // load.batch if not ask.toy else 2

    def step() -> int:
        cycle = loop.Cycle(recipe(load, **more), AUGMENT, n_steps, 0.01, seed=1, cuda_graphs=graphs)
        loop.train(net, pixels_NHWC, labels_N, cycle, shown(load.image_size))
        return n_steps * load.batch

    return rates(ask, step)


def own_compiled(ask: Ask, load: Load) -> list[float]:
    """raybasin's own loop with `recipe.compile`; the compiler itself is not for a toy."""
    before, compiling.BACKEND = compiling.BACKEND, "eager" if ask.toy else compiling.BACKEND
    try:
        return raybasin(ask, load, graphs=False, compile=True)
    finally:
        compiling.BACKEND = before


# Plain loops: one batch after another that lies on the device, nothing else


def autocast(load: Load, device: torch.device) -> contextlib.AbstractContextManager[object]:
    low = loop.AUTOCAST.get(load.precision)
    return torch.autocast(device.type, low, enabled=low is not None)


@dataclass
class Plain:
    """A loop as anybody would write it: normalise, forward, backward, SGD."""

    load: Load
    device: torch.device
    order: torch.memory_format = torch.channels_last
    compiled: bool = False
    toy: bool = False

    def __post_init__(self) -> None:
        self.net = network(self.load.network, self.device, self.order)
        pixels_NHWC, labels_N = data(self.load, self.device)
        count = len(labels_N) // self.load.batch
        self.batches = list(zip(pixels_NHWC.chunk(count), labels_N.chunk(count), strict=True))
        self.next = itertools.cycle(self.batches)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        forward: Callable[[Tensor], Tensor] = self.net
        if self.compiled:
            forward = torch.compile(self.net, backend="eager" if self.toy else "inductor")
        self.forward = forward

    def once(self, pixels_BHWC: Tensor, labels_B: Tensor) -> Tensor:
        images_BCHW = (
            pixels_BHWC.permute(0, 3, 1, 2).float().sub_(127.5).mul_(1 / 51).contiguous(memory_format=self.order)
        )
        with autocast(self.load, self.device):
            logits_BC = self.forward(images_BCHW)
        loss = nn.functional.cross_entropy(logits_BC.float(), labels_B)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def __call__(self) -> int:
        self.once(*next(self.next))
        return self.load.batch


@dataclass
class Graphed:
    """The whole step of a loop as one CUDA graph, on a stream of its own."""

    loop: Plain | Stacked

    def __post_init__(self) -> None:
        self.batch = [tensor.clone() for tensor in self.loop.batches[0]]
        self.stream = torch.cuda.Stream()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(3):
                self.loop.once(*self.batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        self.graph = torch.cuda.CUDAGraph()
        self.loop.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.loop.once(*self.batch)

    def __call__(self) -> int:
        for static, fresh in zip(self.batch, next(self.loop.next), strict=True):
            static.copy_(fresh)
        self.graph.replay()
        return int(self.batch[1].numel())


def training(ask: Ask, notes: Notes) -> None:
    for load in TOY if ask.toy else LOADS:
        with strict(load.precision):
            loops: dict[str, Callable[[], list[float]]] = {
                "raybasin's loop": lambda load=load: raybasin(ask, load, graphs=True),
                "raybasin's loop, steps not recorded": lambda load=load: raybasin(ask, load, graphs=False),
                "plain loop": lambda load=load: rates(ask, Plain(load, ask.device)),
            }
            if load.network in COMPILED or ask.toy:
                loops["plain loop, compiled"] = lambda load=load: rates(ask, compiled(ask, load, notes))
                loops["raybasin's loop, compiled"] = lambda load=load: own_compiled(ask, load)
            if ask.device.type == "cuda":
                loops["plain loop, one CUDA graph"] = lambda load=load: rates(ask, Graphed(Plain(load, ask.device)))
            for what, measure in loops.items():
                with notes.trying(f"{load}: {what}"):
                    notes.rate(f"{load}: {what}", measure())
            free(ask)
    if ask.device.type == "cuda":
        for precision in ("fp32", "tf32"):
            load = Load("resnet50", 224, 128, 1024, precision)
            with notes.trying(f"{load}: raybasin's loop"):
                notes.rate(f"{load}: raybasin's loop", raybasin(ask, load, graphs=True))
    load = (TOY if ask.toy else LOADS)[-1]
    with notes.trying(f"{load}: raybasin's loop, deterministic"):
        found = raybasin(ask, load, graphs=True, deterministic=True)
        notes.rate(f"{load}: raybasin's loop, deterministic", found)


def compiled(ask: Ask, load: Load, notes: Notes) -> Plain:
    """A plain loop that is compiled already."""
    began, step = time.perf_counter(), Plain(load, ask.device, compiled=True, toy=ask.toy)
    step()
    synchronize(ask.device)
    notes.add(f"{load}: compiling", time.perf_counter() - began, "s")
    return step


@contextlib.contextmanager
def strict(precision: str) -> Iterator[None]:
    """The plain loops at the precision and with the choices of algorithms that raybasin's loop has."""
    with loop.numerics(Recipe(epochs=1, precision=precision), torch.device("cpu")):  # type: ignore[arg-type]
        yield


def free(ask: Ask) -> None:
    if ask.device.type == "cuda":
        torch.cuda.empty_cache()


# Several branches on one device


@dataclass
class Stacked:
    """Branches as one model: torch.func's ensembling, one optimizer over stacked weights."""

    load: Load
    device: torch.device

    def __post_init__(self) -> None:
        nets = [network(self.load.network, self.device, torch.contiguous_format).train() for _ in range(N_BRANCHES)]
        self.params, self.buffers = torch.func.stack_module_state(nets)  # type: ignore[arg-type]
        self.params = {name: tensor.detach().requires_grad_() for name, tensor in self.params.items()}
        base = copy.deepcopy(nets[0]).to("meta")
        self.optimizer = torch.optim.SGD(self.params.values(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        pixels_NHWC, labels_N = data(self.load, self.device)
        count = len(labels_N) // self.load.batch // N_BRANCHES or 1
        shape = (N_BRANCHES, -1)
        self.batches = [
            (
                p[: len(p) // N_BRANCHES * N_BRANCHES].unflatten(0, shape),
                y[: len(y) // N_BRANCHES * N_BRANCHES].unflatten(0, shape),
            )
            for p, y in zip(pixels_NHWC.chunk(count), labels_N.chunk(count), strict=True)
        ]
        self.next = itertools.cycle(self.batches)

        def loss_of(params: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
            with autocast(self.load, self.device):
                logits = torch.func.functional_call(base, (params, buffers), (images,))
            return nn.functional.cross_entropy(logits.float(), labels)

        self.gradients = torch.func.vmap(torch.func.grad_and_value(loss_of), randomness="different")

    def once(self, pixels_MBHWC: Tensor, labels_MB: Tensor) -> Tensor:
        images_MBCHW = pixels_MBHWC.permute(0, 1, 4, 2, 3).float().sub_(127.5).mul_(1 / 51).contiguous()
        params = {name: tensor.detach() for name, tensor in self.params.items()}
        gradients, loss_M = self.gradients(params, self.buffers, images_MBCHW, labels_MB)
        for name, gradient in gradients.items():
            self.params[name].grad = gradient
        self.optimizer.step()
        return loss_M.sum()

    def __call__(self) -> int:
        batch = next(self.next)
        self.once(*batch)
        return int(batch[1].numel())


def stacked(ask: Ask, notes: Notes) -> None:
    """Four branches at once, beside one after another."""
    loads = TOY if ask.toy else [load for load in LOADS if load.network in STACKED]
    for load in loads:
        with strict(load.precision):
            what = f"{load}: {N_BRANCHES} branches"
            with notes.trying(f"{what} as one model"):
                notes.rate(f"{what} as one model (torch.func)", rates(ask, Stacked(load, ask.device)))
            if ask.device.type != "cuda":
                continue
            with notes.trying(f"{what} as one model, one CUDA graph"):
                graph = Graphed(Stacked(load, ask.device))
                notes.rate(f"{what} as one model (torch.func), one CUDA graph", rates(ask, graph))
            with notes.trying(f"{what}, a CUDA graph and a stream each"):
                steps = [Graphed(Plain(load, ask.device)) for _ in range(N_BRANCHES)]
                notes.rate(f"{what}, a CUDA graph and a stream each", rates(ask, lambda steps=steps: at_once(steps)))
        free(ask)


def at_once(steps: list[Graphed]) -> int:
    """One step of each branch, on its own stream."""
    seen = 0
    for step in steps:
        with torch.cuda.stream(step.stream):
            seen += step()
    return seen


# What is not training


def evaluating(ask: Ask, notes: Notes) -> None:
    for load in TOY if ask.toy else (LOADS[1], LOADS[-1]):
        net = network(load.network, ask.device)
        pixels_NHWC, _ = data(load, ask.device)
        for precision in ("fp32", "bf16"):
            for batch in (evaluation.BATCH, 4 * evaluation.BATCH):
                before, evaluation.BATCH = evaluation.BATCH, batch
                what = f"{load.network} {load.image_size} px, evaluation, {precision}, batch {batch}"
                with (
                    notes.trying(what),
                    strict(precision),
                    torch.autocast(ask.device.type, torch.bfloat16, enabled=precision == "bf16"),
                ):

                    def step(
                        net: nn.Module = net, pixels_NHWC: Tensor = pixels_NHWC, size: int = load.image_size
                    ) -> int:
                        evaluation.log_probs(net, pixels_NHWC, shown(size))
                        return len(pixels_NHWC)

                    notes.rate(what, rates(ask, step))
                evaluation.BATCH = before
        free(ask)


def decoding(ask: Ask, notes: Notes) -> None:
    """JPEGs of 500 x 375 to 224 pixels by Pillow, as a worker decodes them."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
        (500, 375), Image.Resampling.BICUBIC
    )
    grain = rng.integers(-12, 13, (375, 500, 3))
    content = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(content, "JPEG", quality=90)
    encoded, count = content.getvalue(), 4 if ask.toy else 64

    for threads in sorted({1, os.cpu_count() or 1}):
        with ThreadPoolExecutor(threads) as pool:

            def step(pool: ThreadPoolExecutor = pool, threads: int = threads) -> int:
                total = count * threads
                list(pool.map(lambda _: images.decode("made", encoded, (224, 224)), range(total)))
                return total

            said = f"{len(encoded) / 1024:.0f} KB each"
            notes.rate(f"decoding 500 x 375 JPEG to 224 px, {threads} threads", rates(ask, step), said=said)


def limits(ask: Ask, notes: Notes) -> None:
    """What the chip can do: a large product and a large copy."""
    n = 256 if ask.toy else 8192
    for dtype, tf32 in ((torch.bfloat16, False), (torch.float32, True), (torch.float32, False)):
        if ask.device.type == "cpu" and tf32:
            continue
        with strict("tf32" if tf32 else "fp32"), notes.trying(f"product {dtype}"):
            a, b = (torch.randn(n, n, device=ask.device, dtype=dtype) for _ in range(2))
            name = "TF32" if tf32 else str(dtype).removeprefix("torch.")
            flops = [2 * n**3 * rate / 1e12 for rate in rates(ask, lambda a=a, b=b: (a @ b, 1)[1])]
            notes.rate(f"{n} x {n} product, {name}", flops, "TFLOP/s")
    source = torch.empty((1 << 20) if ask.toy else (1 << 30), dtype=torch.uint8, device=ask.device)
    target = torch.empty_like(source)
    copied = [2 * len(source) * rate / 1e12 for rate in rates(ask, lambda: (target.copy_(source), 1)[1])]
    notes.rate("copy on the device, read and written", copied, "TB/s")
