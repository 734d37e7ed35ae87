"""Weights of a file and a network: which names fit, and what is done to make them, all of it said.

What fits is decided by torch's own `load_state_dict` on the network itself, so that whatever a layer mends while it
loads (counters that old files lack, scalars of shape [1], names of before) is mended here as well. The head is left
out: it belongs to another task. Nothing is made up: every parameter comes from the file.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from raybasin.errors import UserError, is_out_of_memory, one_line, some
from raybasin.training import checkpoints
from raybasin.training.checkpoints import Weights
from raybasin.training.models import State, is_head

Filter = Callable[[Mapping[str, Tensor], nn.Module], Mapping[str, Tensor]]
"""Brings the names and shapes of other layouts of an architecture into those of its network, as timm's do."""

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Names that DataParallel, torch.compile and the like put around a network or around parts of it."""
COUNTERS = frozenset({"num_batches_tracked", "total_ops", "total_params"})
"""Last names of entries that count and weigh nothing: batch norm's, and what the profiler thop leaves behind."""
SEPARATE = "save the one that is meant as a file of its own"


@dataclass(frozen=True)
class Body:
    """The body of a checkpoint, in the network's own names and types; and in words what was chosen of the file or done
    to it, where there was anything."""

    state: State
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Target:
    """A network to be loaded: its state as it was built, the names in its body and those of its body's parameters."""

    net: nn.Module
    built: State
    heads: Sequence[str]
    body: frozenset[str]
    parameters: frozenset[str]

    def tied(self, given: Collection[str]) -> set[str]:
        """Names of parameters that are the same tensor as one which is given."""
        named = list(self.net.named_parameters(remove_duplicate=False))
        known = {id(parameter) for name, parameter in named if name in given}
        return {name for name, parameter in named if id(parameter) in known}


def fit(
    net: nn.Module, heads: Sequence[str], sets: Sequence[Weights], label: str, entry: str, filter_fn: Filter | None
) -> Body:
    """The body that `net` has with the weights of a file; the modules called `heads` stay out.

    Args:
        net: is loaded, and is of no further use.
        heads: names of the modules that make up the head.
        sets: the weights in the file, of which exactly one must fit.
        label: the network's name in errors.
        entry: the file's name in errors.
        filter_fn: is tried where the names do not fit as they are.

    Raises:
        UserError: that names what does not fit.
    """
    built = {name: value.detach().clone() for name, value in net.state_dict().items()}
    body = frozenset(name for name in built if not is_head(name, heads))
    parameters = body.intersection(name for name, _ in net.named_parameters(remove_duplicate=False))
    target = _Target(net, built, heads, body, parameters)
    with checkpoints.naming(entry):
        chosen = _chosen(sets, target)
        for name, tensor in chosen.tensors.items():
            if odd := odd_kind(tensor):
                raise UserError(f"{one_line(name, 200)} {odd}")
        named, renamed = _named(chosen, target)
        for given, brought in _ways(named, target, filter_fn):
            if (used := _load(given, target)) is None:
                continue
            state = {
                name: tensor.detach().clone(memory_format=torch.contiguous_format)
                for name, tensor in net.state_dict().items()
                if name in body
            }
            for name, tensor in state.items():
                if not bool(torch.isfinite(tensor).all()):
                    raise UserError(f"{name} holds values that are not finite numbers")
            return Body(state, (*_origin(chosen), *renamed, *brought, *_what_differs(given.tensors, used, target)))
        wrong = some(_wrong(named.tensors, target, label), 3, "; ")
        raise UserError(f"does not fit model {label}: {wrong}{_prefix_hint(chosen.tensors, target)}")


# Which set, under which names


def _chosen(sets: Sequence[Weights], target: _Target) -> Weights:
    """The set that is meant: the only one, else the only one in which all parameters of the body are found, an average
    (EMA) before raw weights, as timm's loader has it; else the one in which most are."""
    if len(sets) == 1:
        return sets[0]
    found = [max(_prefixes(one.tensors, target).values(), default=0) for one in sets]
    fitting = [
        one for one, count in zip(sets, found, strict=True)
        if count >= len(target.parameters) or _without_wrappers(one.tensors, target)
    ]  # fmt: skip
    averaged = [one for one in fitting if _is_average(one.key)]
    left = averaged if len(averaged) == 1 else fitting
    if len(left) > 1:
        raise UserError(
            f"holds several sets of weights that fit, under {_listed([one.key for one in left])}; {SEPARATE}"
        )
    best = left[0] if left else sets[found.index(max(found))]
    return replace(best, others=tuple(other.key for other in fitting if other is not best))


def _endings(name: str) -> Iterator[str]:
    """`a.b.c`, `b.c` and `c`."""
    parts = name.split(".")
    yield from (".".join(parts[cut:]) for cut in range(len(parts)))


def _prefixes(names: Iterable[str], target: _Target) -> Counter[str]:
    """How many parameters of the body are found under each prefix, "" included."""
    return Counter(
        name.removesuffix(ending) for name in names for ending in _endings(name) if ending in target.parameters
    )


def _without_wrappers(names: Collection[str], target: _Target) -> dict[str, str] | None:
    """Each name as it is without the parts that wrappers have put into it, if the names are then those of all of the
    body's parameters, and no two become one. Where parts of the network itself are called so, names stay."""
    if any(part in WRAPPERS for name in target.built for part in name.split(".")):
        return None
    bare = {
        name: name if name in target.built else ".".join(part for part in name.split(".") if part not in WRAPPERS)
        for name in names
    }
    is_whole = target.parameters <= set(bare.values()) and len(set(bare.values())) == len(bare)
    return bare if is_whole and any(name != short for name, short in bare.items()) else None


def _named(chosen: Weights, target: _Target) -> tuple[Weights, tuple[str, ...]]:
    """The set without a prefix under which, and without which not, its names are the network's; and what was done."""
    tensors = chosen.tensors
    if target.built.keys() >= tensors.keys():
        return chosen, ()
    counts = _prefixes(tensors, target)
    whole = [prefix for prefix, count in counts.items() if count == len(target.parameters)]
    if len(whole) > 1:
        listed = " and ".join(_after(prefix, "as they are") for prefix in sorted(whole))
        raise UserError(f"holds two sets of weights that fit, whose names do so {listed}; {SEPARATE}")
    if not whole and (bare := _without_wrappers(tensors, target)):
        removed = {part for name, short in bare.items() if name != short for part in name.split(".")} & WRAPPERS
        renamed = {bare[name]: tensor for name, tensor in tensors.items()}
        return replace(chosen, tensors=renamed, versions=None), (f"names without {_listed(sorted(removed))}",)
    prefix = whole[0] if whole else max(counts, key=lambda one: (counts[one], -len(one)), default="")
    return _without_prefix(prefix, chosen) if prefix else (chosen, ())


def _without_prefix(prefix: str, chosen: Weights) -> tuple[Weights, tuple[str, ...]]:
    inside = {name.removeprefix(prefix): x for name, x in chosen.tensors.items() if name.startswith(prefix)}
    outside = [name for name in chosen.tensors if not name.startswith(prefix)]
    versions = chosen.versions and {
        f"{name}.".removeprefix(prefix).removesuffix("."): value
        for name, value in chosen.versions.items()
        if f"{name}.".startswith(prefix)
    }
    left_out = (f"{_entries(outside)} without it left out ({_few(outside)})",) if outside else ()
    notes = f"names without the prefix `{one_line(prefix)}`", *left_out
    return replace(chosen, tensors=inside, versions=versions), notes


def _ways(named: Weights, target: _Target, filter_fn: Filter | None) -> Iterator[tuple[Weights, tuple[str, ...]]]:
    """What to try in turn, and what it does: as the file has it, without what it says of the versions of its modules
    (which timm's loader never sees), and through the architecture's filter. Where that has left the names, it has made
    other shapes of some, such as positions."""
    plain, before = replace(named, versions=None), named.tensors
    if named.versions is not None:
        yield named, ()
    yield plain, ()
    if filter_fn is None:
        return
    try:
        after = filter_fn(dict(before), target.net)
    except Exception as error:  # it was not written for whatever this is
        if is_out_of_memory(error):
            raise
        return
    if not isinstance(after, Mapping) or not all(isinstance(tensor, Tensor) for tensor in after.values()):
        return
    names, made = target.body & after.keys(), "layout"
    reshaped = [f"{name} from {shape(before[name])} to {shape(after[name])}" for name in sorted(names)
                if name in before and before[name].shape != after[name].shape]  # fmt: skip
    if reshaped and names == target.body & before.keys():
        made = f"shapes: {_few(reshaped)}"
    yield replace(plain, tensors=after), (f"brought by timm into the network's {made}",)


def _load(given: Weights, target: _Target) -> frozenset[str] | None:
    """Loads the network; the names of it that the body has used, or None where it does not fit.

    torch copies complex numbers into real ones, and the integers of compressed weights as if they were weights: they
    are refused. Counters that the network does not have are left out, and so is what it computes itself and keeps in no
    file.
    """
    for name in sorted(target.body & given.tensors.keys()):
        own, theirs = target.built[name], given.tensors[name]
        lossy = theirs.is_complex() and not own.is_complex()
        if lossy or (name in target.parameters and own.is_floating_point() and not theirs.is_floating_point()):
            raise UserError(f"{name} is {_type(theirs)}, not {_type(own)}; save it as {_type(own)} numbers")
    computed = {name for name, _ in target.net.named_buffers()} - target.built.keys()
    kept: OrderedDict[str, Tensor] = OrderedDict(
        (name, tensor) for name, tensor in given.tensors.items()
        if not is_head(name, target.heads) and (name in target.built or not (_is_counter(name) or name in computed))
    )  # fmt: skip
    if given.versions is not None:
        kept._metadata = given.versions  # type: ignore[attr-defined]
    target.net.load_state_dict(target.built)
    try:
        result = target.net.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return None
    missing = target.body.intersection(result.missing_keys) - target.tied(kept)
    return None if missing or result.unexpected_keys else frozenset(kept)


# What is said of weights that fit, and of those that do not


def _origin(chosen: Weights) -> Iterator[str]:
    others = f", not {_listed(chosen.others)}" if chosen.others else ""
    averaged = _is_average(chosen.key)
    if averaged or others or chosen.key not in ("", "state_dict", "model"):
        yield f"{'EMA weights' if averaged else 'weights'} under `{one_line(chosen.key)}`{others}"
    if chosen.beside:
        yield f"what is no tensor left out ({_few(chosen.beside)})"


def _what_differs(given: Mapping[str, Tensor], used: frozenset[str], target: _Target) -> Iterator[str]:
    tied = target.tied(used)
    absent = {name for name in target.body - used if name in tied or _is_counter(name)}
    extra = [name for name in given if name not in used and not is_head(name, target.heads)]
    for names, said in (
        (absent, "absent, which the network has by itself"),
        (target.body - used - absent, "under older names, which its layers know"),
        (extra, "of no weight left out"),
    ):
        if names:
            yield f"{_entries(names)} {said} ({_few(sorted({name.rpartition('.')[2] for name in names}))})"
    types = {(_type(given[name]), _type(target.built[name])) for name in target.parameters & used if name in given}
    yield from (f"{theirs} taken as {own}" for theirs, own in sorted(types) if theirs != own)


def _wrong(given: Mapping[str, Tensor], target: _Target, label: str) -> list[str]:
    """The tensors that do not fit; where all do, torch's own words."""
    wrong = []
    for name, own in target.built.items():
        theirs = shape(given[name]) if name in given else "missing"
        if name in target.body and theirs != shape(own) and (name in given or not _is_counter(name)):
            wrong.append(f"{name} is {theirs}, not {shape(own)}")
    for name in given:
        if name not in target.built and not is_head(name, target.heads) and not _is_counter(name):
            wrong.append(f"{one_line(name, 200)} is not in {label}")
    if wrong:
        return wrong
    try:
        target.net.load_state_dict({name: given[name] for name in given if name in target.body}, strict=False)
        return ["torch does not load it"]
    except RuntimeError as error:
        return [one_line(str(error).partition(":")[2], 300)]


def _prefix_hint(names: Collection[str], target: _Target) -> str:
    """What names have in common that those of the network do not, or the other way round."""
    longer = Counter(
        own.removesuffix(name) for own in target.parameters for name in _endings(own) if name in names and name != own
    )
    for prefix, count in longer.most_common(1):
        if count == len(target.parameters) > 1:
            return f"; the names would fit with `{prefix}` in front"
    firsts = {name.partition(".")[0] for name in names if "." in name}
    if len(firsts) == 1 and len(names) > 1 and not any(own.split(".")[0] in firsts for own in target.built):
        return f"; every name in the file begins with `{one_line(firsts.pop(), 80)}.`"
    under = {
        _after(prefix, "without a prefix"): {name for name in target.parameters if f"{prefix}{name}" in names}
        for prefix, _ in _prefixes(names, target).most_common(2)
    }
    if len(under) < 2 or target.parameters in under.values() or set().union(*under.values()) < target.parameters:
        return ""
    first, second = (f"{where} are {len(found)}" for where, found in under.items())
    return f"; {first} of its {len(target.parameters)} parameters, {second}"


def odd_kind(tensor: Tensor) -> str:
    """Why a tensor is no plain array of numbers; empty where it is one."""
    if tensor.is_meta:
        return "is on the device meta, where tensors have no values"
    if tensor.is_quantized or tensor.layout != torch.strided:
        return f"is {'quantised' if tensor.is_quantized else 'sparse'}; weights must be dense tensors of plain numbers"
    return ""


def shape(tensor: Tensor) -> str:
    """As 64x3x7x7."""
    return "x".join(str(n) for n in tensor.shape) or "a scalar"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _is_average(key: str) -> bool:
    return "ema" in re.split("[^a-z]+", key.lower())


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def _after(prefix: str, otherwise: str) -> str:
    return f"after {_listed([prefix])}" if prefix else otherwise


def _entries(names: Collection[str]) -> str:
    return f"{len(names)} {'entry' if len(names) == 1 else 'entries'}"


def _few(names: Sequence[str]) -> str:
    return some([one_line(name, 80) for name in names], 3)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{one_line(name, 80)}`" for name in names)
