"""The network of a training run compiled by torch: fewer kernels, each of which does more, for a minute of compiling.

What is compiled is the network's own code, forward and backward. One compilation serves all networks of one shape that
a process trains, and torch keeps it on the machine's disk for further processes.

Tensors: B batch, C classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch._dynamo.config as dynamo
import torch._inductor.config as inductor
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from raybasin.errors import UserError, one_line
from raybasin.store.heartbeat import every

BACKEND = "inductor"
MOST_VARIANTS = 64
"""Of a network's code, that are compiled in one process: by shape of the batch, number of classes, parts that are
frozen. With more, torch would go on uncompiled and say nothing."""
BEAT_SECONDS = 1.0

Gradients = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From images [B, 3, S, S] and targets [B] or [B, C] to the loss and the logits [B, C]; it leaves the gradients."""


@contextlib.contextmanager
def compiled(net: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """`net`, compiled once it is called for the first time, by as many threads as torch computes with.

    Raises UserError where torch cannot compile it, in the calls within the block.
    """
    with (
        dynamo.patch(recompile_limit=MOST_VARIANTS, fail_on_recompile_limit_hit=True),
        inductor.patch(compile_threads=torch.get_num_threads()),
    ):
        try:
            yield torch.compile(net, dynamic=False, backend=BACKEND)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            said = str(error).strip().partition("\n")[0]  # what follows is for developers of torch
            raise UserError(
                f"this network cannot be compiled here ({one_line(said, 200)});\nset recipe.compile: false"
            ) from error


@dataclass
class Steps:
    """The two halves of a step of a compiled network. A step that is compiled takes as long as hundreds of others:
    meanwhile `beat` says that it goes on."""

    compute_gradients: Gradients
    update: Callable[[], None]
    beat: Callable[[int], None]
    seen: set[torch.Size] = field(default_factory=set)

    def gradients(self, images_BCHW: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the logits [B, C]; the gradients are complete."""
        if images_BCHW.shape in self.seen:
            return self.compute_gradients(images_BCHW, target_B)
        with every(BEAT_SECONDS, lambda: self.beat(0)):
            outcome = self.compute_gradients(images_BCHW, target_B)
        self.seen.add(images_BCHW.shape)
        return outcome
