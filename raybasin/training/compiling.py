"""The network of a training run compiled by torch: fewer kernels, each of which does more, for a minute of compiling.

What is compiled is the network's own code, forward and backward. One compilation serves all networks of one shape that
a process trains, and torch keeps it on the machine's disk for further processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import torch
import torch._dynamo.config as dynamo
import torch._inductor.config as inductor
from torch import Tensor, nn
from torch._dynamo.callback import callback_handler
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from raybasin.errors import UserError, one_line
from raybasin.store.heartbeat import every

BACKEND = "inductor"
MOST_VARIANTS = 64
"""Of a network's code, that are compiled in one process: by shape of the batch, number of classes, parts that are
frozen. With more, torch would go on uncompiled and say nothing."""
BEAT_SECONDS = 1.0


@contextlib.contextmanager
def compiled(net: nn.Module, beat: Callable[[int], None]) -> Iterator[Callable[[Tensor], Tensor]]:
    """`net`, compiled where it is called, by as many threads as torch computes with. That takes as long as hundreds of
    steps: meanwhile `beat` is told, of 0 images, that it goes on.

    Raises UserError where torch cannot compile it, also in the calls within the block.
    """
    if dynamo.disable or os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        raise UserError(
            "recipe.compile: torch is told not to compile (TORCH_COMPILE_DISABLE or TORCHDYNAMO_DISABLE);\n"
            "unset that, or set recipe.compile: false"
        )
    with (
        dynamo.patch(recompile_limit=MOST_VARIANTS, fail_on_recompile_limit_hit=True, suppress_errors=False),
        inductor.patch(compile_threads=torch.get_num_threads()),
        _signs(lambda: beat(0)),
    ):
        try:
            yield torch.compile(net, dynamic=False, backend=BACKEND)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            said = str(error).strip().partition("\n")[0]  # what follows is for developers of torch
            raise UserError(
                f"this network cannot be compiled here ({one_line(said, 200)});\nset recipe.compile: false"
            ) from error


@contextlib.contextmanager
def _signs(give: Callable[[], None]) -> Iterator[None]:
    """Gives one a second while torch compiles, forward or backward."""
    with contextlib.ExitStack() as under_way:

        def begin(of: object) -> None:
            under_way.enter_context(every(BEAT_SECONDS, give))

        def end(of: object) -> None:
            under_way.pop_all().close()

        callback_handler.register_start_callback(begin)
        callback_handler.register_end_callback(end)
        try:
            yield
        finally:
            callback_handler.remove_start_callback(begin)
            callback_handler.remove_end_callback(end)
