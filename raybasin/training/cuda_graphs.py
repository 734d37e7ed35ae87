"""The steps of a training run on a GPU, recorded once and replayed: a small network's step takes the GPU less time than
it takes Python to ask for it, kernel by kernel.

A recording computes what the calls that it was made of compute, to the bit where the algorithms are deterministic, on
tensors of its own: inputs are copied into them, and gradients stay in them. What runs on the host between two kernels
is not run again, so a network may be recorded only if its code does the same at every step.

Tensors: B batch, C classes.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from raybasin.errors import UserError, one_line

RECORDED_AFTER = 8
"""So many steps of batches of one shape are done as they come. The first choose algorithms and make the optimizer's
state, which a recording cannot; and a recording costs about as much time as it saves in so many."""


T = TypeVar("T")


class Replay(Protocol):
    """What was recorded."""

    def replay(self) -> None: ...


class Record(Protocol):
    """Records what a function asks of the device; it is not done then. The function's results are those of a replay,
    once there was one."""

    def __call__(self, work: Callable[[], T], /) -> tuple[Replay, T]: ...


Gradients = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From images [B, 3, S, S] and targets [B] or [B, C] to the loss and the logits [B, C]; it leaves the gradients."""


@dataclass(frozen=True)
class _Recording:
    """A step with batches of one shape: the tensors that its replays read and write."""

    inputs: tuple[Tensor, Tensor]
    outputs: tuple[Tensor, Tensor]
    gradients: list[Tensor | None]
    compute: Replay
    update: Replay | None
    """None where that half is done as it comes."""


@dataclass
class Recorder:
    """Does the two halves of a step, `gradients` and `update`, as they come at first and from recordings later on.

    Between the halves the gradients of the parameters are those of the step, for whoever looks at them or changes them
    in place.
    """

    compute_gradients: Gradients
    update_parameters: Callable[[], None]
    parameters: list[nn.Parameter]
    record: Record
    records_update: bool = True
    """Not for an optimizer that computes on the host from step to step: a recording would repeat the first."""
    seen: Counter[tuple[torch.Size, torch.Size]] = field(default_factory=Counter)
    recordings: dict[tuple[torch.Size, torch.Size], _Recording] = field(default_factory=dict)
    current: _Recording | None = None

    def gradients(self, images_BCHW: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the logits [B, C], which the next step may write over; the gradients are complete."""
        shape = images_BCHW.shape, target_B.shape
        self.seen[shape] += 1
        if self.seen[shape] <= RECORDED_AFTER:
            self.current = None
            return self.compute_gradients(images_BCHW, target_B)
        if shape not in self.recordings:
            self.recordings[shape] = self._recorded(images_BCHW, target_B)
        before, self.current = self.current, self.recordings[shape]
        if before is not self.current:
            for parameter, gradient in zip(self.parameters, self.current.gradients, strict=True):
                parameter.grad = gradient
        for static, fresh in zip(self.current.inputs, (images_BCHW, target_B), strict=True):
            static.copy_(fresh)
        self.current.compute.replay()
        return self.current.outputs

    def update(self) -> None:
        """The optimizer's part of the step whose gradients were computed last."""
        if self.current is None or self.current.update is None:
            self.update_parameters()
        else:
            self.current.update.replay()

    def _recorded(self, images_BCHW: Tensor, target_B: Tensor) -> _Recording:
        inputs = images_BCHW.clone(), target_B.clone()
        for parameter in self.parameters:  # so that the recording makes gradients of its own
            parameter.grad = None
        try:
            compute, outputs = self.record(lambda: self.compute_gradients(*inputs))
            update = self.record(self.update_parameters)[0] if self.records_update else None
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise UserError(
                f"a step of this network cannot be recorded as a CUDA graph ({one_line(error, 200)});\n"
                "set recipe.cuda_graphs: false"
            ) from error
        return _Recording(inputs, outputs, [parameter.grad for parameter in self.parameters], compute, update)


def on_gpu(device: torch.device) -> Record:
    """Records on the stream that is current, which must be one of `own_stream`. All recordings of a process take their
    memory from one pool, since only one of them is under way at a time."""

    def record(work: Callable[[], T], /) -> tuple[Replay, T]:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream(device)
        # Images may be decoded by other threads meanwhile, into memory that they ask the driver for.
        pool = _pool(device).id
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):  # type: ignore[arg-type]
            results = work()
        return graph, results

    return record


@contextlib.contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """The default stream cannot be recorded. What was asked of it is done before; what is asked later comes after."""
    outside, stream = torch.cuda.current_stream(device), _stream(device)
    stream.wait_stream(outside)
    with torch.cuda.stream(stream):
        yield
    outside.wait_stream(stream)


# torch keeps freed memory apart for each stream and for each pool that was ever used, and gives it back to the GPU only
# when this process finds no other. With new ones for each network a worker's memory grows at its neighbours' cost.


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@functools.cache
def _pool(device: torch.device) -> torch.cuda.MemPool:
    with torch.cuda.device(device):
        return torch.cuda.MemPool()


def fusible(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether the optimizers' fused kernels, which can be recorded with a rate that changes, take these parameters."""
    return all(parameter.is_cuda and parameter.is_floating_point() for parameter in parameters)
