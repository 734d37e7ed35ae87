"""Parts of a network that training leaves as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from raybasin.errors import UserError, some
from raybasin.training.models import is_head

IsFrozen = Callable[[str], bool]
"""Of the name of a parameter or a buffer."""


def matches(pattern: str, name: str) -> bool:
    """Whether `name` is what `pattern` says, or lies beneath it: `blocks.0` and `blocks.[01]` are whole blocks."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))


def by_patterns(patterns: Sequence[str]) -> IsFrozen:
    return lambda name: any(matches(pattern, name) for pattern in patterns)


def all_but(heads: Sequence[str]) -> IsFrozen:
    return lambda name: not is_head(name, heads)


def check(net: nn.Module, heads: Sequence[str], patterns: Sequence[str], label: str) -> None:
    """Raises UserError for a pattern that no parameter has, and for one that the head has, which starts at random and
    must be trained."""
    names = [name for name, _ in net.named_parameters()]
    for pattern in patterns:
        found = [name for name in names if matches(pattern, name)]
        if not found:
            tops = list(dict.fromkeys(name.partition(".")[0] for name in names))
            raise UserError(f"recipe.freeze: nothing of {label} is called '{pattern}'; its parts are {some(tops, 12)}")
        if trained := [name for name in found if is_head(name, heads)]:
            raise UserError(
                f"recipe.freeze: '{pattern}' holds {trained[0]} of the head, which starts at random and must be trained"
            )


def hold(net: nn.Module, is_frozen: IsFrozen) -> frozenset[str]:
    """Lets no gradient reach what is frozen. Puts `net` into training mode but for the batch norm of frozen parts,
    which keeps its statistics and uses them.

    Returns the names of the parameters that were trainable until now, for `release`.
    """
    net.train()
    for name, module in net.named_modules():
        if isinstance(module, _BatchNorm) and is_frozen(f"{name}.running_mean"):
            module.training = False  # not eval(), which would reach dropout inside a norm layer too
    held = frozenset(name for name, one in net.named_parameters() if one.requires_grad and is_frozen(name))
    _ask_for_gradients(net, held, False)
    return held


def release(net: nn.Module, held: frozenset[str]) -> None:
    """Undoes `hold`."""
    _ask_for_gradients(net, held, True)
    net.train()


def _ask_for_gradients(net: nn.Module, names: frozenset[str], wanted: bool) -> None:
    for name, parameter in net.named_parameters():
        if name in names:
            parameter.requires_grad_(wanted)
            parameter.grad = None
