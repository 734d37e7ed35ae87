"""Weights of a file and a network: which names fit, and what is done to make them, all of it said.

What fits is decided by torch's own `load_state_dict` on the network itself, so that whatever a layer mends while it
loads (counters that old files lack, scalars of shape [1], names of before) is mended here as well. The head is left
out: it belongs to another task. Nothing is made up: every parameter comes from the file.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raybasin.errors import UserError, is_out_of_memory, one_line, some
from raybasin.training.checkpoints import Weights

State = dict[str, Tensor]
Filter = Callable[[Mapping[str, Tensor], nn.Module], Mapping[str, Tensor]]
"""Brings the names and shapes of other layouts of an architecture into those of its network, as timm's do."""

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Names that DataParallel, torch.compile and the like put around a network or around parts of it."""
COUNTERS = frozenset({"num_batches_tracked", "total_ops", "total_params"})
"""Last names of entries that count and weigh nothing: batch norm's, and what the profiler thop leaves behind."""


@dataclass(frozen=True)
class Taken:
    """The body of a checkpoint, in the network's own names and types; and in words what was chosen of the file or done
    to it, where there was anything."""

    state: State
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Target:
    """A network to be loaded: its state as it was built, the names in its body, those of its body's parameters, how
    names in its head begin, and its architecture's filter."""

    net: nn.Module
    built: State
    body: frozenset[str]
    parameters: frozenset[str]
    heads: tuple[str, ...]
    filter: Filter | None

    def in_head(self, name: str) -> bool:
        return name.startswith(self.heads)


@dataclass(frozen=True)
class _Named:
    """Weights under names that may be the network's, and what was done for that."""

    tensors: Mapping[str, Tensor]
    versions: Mapping[str, Any] | None
    notes: tuple[str, ...] = ()


def fit(
    net: nn.Module, heads: Sequence[str], sets: Sequence[Weights], label: str, entry: str, filter_fn: Filter | None
) -> Taken:
    """The body that `net` has with the weights of a file; the modules called `heads` stay out.

    Args:
        net: is loaded, and is of no further use.
        sets: the weights in the file, of which exactly one must fit.
        label: the network's name in errors.
        entry: the file's name in errors.
        filter_fn: is tried where the names do not fit as they are.

    Raises UserError that names what does not fit.
    """
    built = {name: value.detach().clone() for name, value in net.state_dict().items()}
    in_head = tuple(f"{head}." for head in heads)
    body = frozenset(name for name in built if not name.startswith(in_head))
    parameters = body.intersection(name for name, _ in net.named_parameters(remove_duplicate=False))
    target = _Target(net, built, body, parameters, in_head, filter_fn)
    chosen = _chosen(sets, target, entry)
    for name, tensor in chosen.tensors.items():
        if odd := odd_kind(tensor):
            raise UserError(f"checkpoint {entry}: {one_line(name, 200)} {odd}")
    named = _named(chosen, target, entry)
    for given, notes in _ways(named, target):
        _check_types(given, target, entry)
        if (used := _load(given, target)) is not None:
            state = _body(target, entry)
            return Taken(state, (*_origin(chosen), *named.notes, *notes, *_said_of(given, used, target)))
    raise UserError(f"checkpoint {entry}: does not fit model {label}: {_differences(named, target, label, chosen)}")


# Which set, under which names


def _chosen(sets: Sequence[Weights], target: _Target, entry: str) -> Weights:
    """The set that is meant: the only one, else the only one whose names fit, an average (EMA) before raw weights, as
    timm's loader has it."""
    if len(sets) == 1:
        return sets[0]
    fitting = [one for one in sets if _covers(one.tensors, target)]
    averaged = [one for one in fitting if _is_average(one.key)]
    left = averaged if len(averaged) == 1 else fitting
    if len(left) > 1:
        raise UserError(
            f"checkpoint {entry}: holds several sets of weights that fit, under {_listed([one.key for one in left])}; "
            "save the one that is meant as a file of its own"
        )
    best = left[0] if left else max(sets, key=lambda one: max(_prefixes(one.tensors, target).values(), default=0))
    others = tuple(other.key for other in fitting if other is not best)
    return Weights(best.tensors, best.key, best.versions, others, best.beside)


def _covers(names: Collection[str], target: _Target) -> bool:
    counts = _prefixes(names, target)
    return max(counts.values(), default=0) >= len(target.parameters) or _is_whole(_bare(names, target), target)


def _prefixes(names: Iterable[str], target: _Target) -> Counter[str]:
    """How many parameters of the body are found under each prefix, "" included."""
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in target.parameters:
                found["".join(f"{part}." for part in parts[:cut])] += 1
    return found


def _named(chosen: Weights, target: _Target, entry: str) -> _Named:
    """The set without a prefix under which, and without which not, its names are the network's."""
    if target.built.keys() >= chosen.tensors.keys():
        return _Named(chosen.tensors, chosen.versions)
    counts = _prefixes(chosen.tensors, target)
    whole = [prefix for prefix, count in counts.items() if count == len(target.parameters)]
    if len(whole) > 1 and target.parameters:
        listed = " and ".join(
            "as they are" if not prefix else f"after `{one_line(prefix)}`" for prefix in sorted(whole)
        )
        raise UserError(
            f"checkpoint {entry}: holds two sets of weights that fit, whose names do so {listed}; save the one that is "
            "meant as a file of its own"
        )
    if not whole and _is_whole(bare := _bare(chosen.tensors, target), target):
        return _Named(
            {bare[name]: tensor for name, tensor in chosen.tensors.items()}, None,
            (f"names without {_listed(_removed(bare))}",),
        )  # fmt: skip
    prefix = whole[0] if whole else max(counts, key=lambda one: (counts[one], -len(one)), default="")
    return _without(prefix, chosen) if prefix else _Named(chosen.tensors, chosen.versions)


def _without(prefix: str, chosen: Weights) -> _Named:
    inside = {name.removeprefix(prefix): x for name, x in chosen.tensors.items() if name.startswith(prefix)}
    outside = [name for name in chosen.tensors if not name.startswith(prefix)]
    versions = chosen.versions and {
        f"{name}.".removeprefix(prefix).removesuffix("."): value
        for name, value in chosen.versions.items()
        if f"{name}.".startswith(prefix)
    }
    notes = [f"names without the prefix `{one_line(prefix)}`"]
    if outside:
        notes.append(f"{_entries(outside)} without it left out ({_few(outside)})")
    return _Named(inside, versions, tuple(notes))


def _bare(names: Iterable[str], target: _Target) -> dict[str, str]:
    """Each name without the parts that wrappers have put into it, if it is not the network's as it is. Where parts of
    the network itself are called so, names stay."""
    own = any(part in WRAPPERS for name in target.built for part in name.split("."))
    return {
        name: name if own or name in target.built else ".".join(p for p in name.split(".") if p not in WRAPPERS)
        for name in names
    }


def _is_whole(bare: Mapping[str, str], target: _Target) -> bool:
    """Whether all parameters of the body are there, and no two names have become one."""
    return set(bare.values()) >= target.parameters and len(set(bare.values())) == len(bare)


def _removed(bare: Mapping[str, str]) -> list[str]:
    return sorted({part for name, short in bare.items() if name != short for part in name.split(".")} & WRAPPERS)


# Loading


def _ways(named: _Named, target: _Target) -> Iterator[tuple[Mapping[str, Tensor], tuple[str, ...]]]:
    """What to try in turn: as the file has it, without what it says of the versions of its modules (which timm's loader
    never sees), and through the architecture's filter."""
    if named.versions is not None:
        given: OrderedDict[str, Tensor] = OrderedDict(named.tensors)
        given._metadata = named.versions  # type: ignore[attr-defined]
        yield given, ()
    yield named.tensors, ()
    if target.filter is not None:
        try:
            filtered = target.filter(dict(named.tensors), target.net)
        except Exception as error:  # it was not written for whatever this is
            if is_out_of_memory(error):
                raise
            return
        if isinstance(filtered, Mapping) and all(isinstance(x, Tensor) for x in filtered.values()):
            yield filtered, (_brought(named.tensors, filtered, target),)


def _brought(before: Mapping[str, Tensor], after: Mapping[str, Tensor], target: _Target) -> str:
    """What the filter has done: where it has left the names, it has made other shapes of some, such as positions."""
    names = target.body.intersection(after)
    reshaped = [f"{name} from {shape(before[name])} to {shape(after[name])}" for name in sorted(names)
                if name in before and before[name].shape != after[name].shape]  # fmt: skip
    if reshaped and names == target.body.intersection(before):
        return f"brought by timm into the network's shapes: {_few(reshaped)}"
    return "brought by timm into the network's layout"


def _load(given: Mapping[str, Tensor], target: _Target) -> frozenset[str] | None:
    """Loads the network with `given`; the names of it that the body has used, or None where it does not fit."""
    computed = frozenset(name for name, _ in target.net.named_buffers()).difference(target.built)
    kept: OrderedDict[str, Tensor] = OrderedDict(
        (name, tensor) for name, tensor in given.items()
        if not target.in_head(name) and not _is_left_out(name, computed, target)
    )  # fmt: skip
    if (versions := getattr(given, "_metadata", None)) is not None:
        kept._metadata = versions  # type: ignore[attr-defined]
    target.net.load_state_dict(target.built)
    try:
        result = target.net.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return None
    tied = _tied(target.net, kept)
    missing = [name for name in result.missing_keys if name in target.body and name not in tied]
    return None if missing or result.unexpected_keys else frozenset(kept)


def _is_left_out(name: str, computed: Collection[str], target: _Target) -> bool:
    """Counters that the network does not have, and what it computes itself and keeps in no file."""
    return name not in target.built and (name.rpartition(".")[2] in COUNTERS or name in computed)


def _tied(net: nn.Module, given: Collection[str]) -> set[str]:
    """Names of parameters that are the same tensor as one which is given."""
    names: dict[int, list[str]] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name for same in names.values() if any(one in given for one in same) for name in same}


def _check_types(given: Mapping[str, Tensor], target: _Target, entry: str) -> None:
    """torch copies complex numbers into real ones, and the integers of compressed weights as if they were weights."""
    for name in sorted(target.body & given.keys()):
        own, theirs = target.built[name], given[name]
        lossy = theirs.is_complex() and not own.is_complex()
        if lossy or (name in target.parameters and own.is_floating_point() and not theirs.is_floating_point()):
            raise UserError(
                f"checkpoint {entry}: {name} is {_type(theirs)}, not {_type(own)}; save it as {_type(own)} numbers"
            )


def _body(target: _Target, entry: str) -> State:
    plain = torch.contiguous_format
    state = {
        name: tensor.detach().clone(memory_format=plain)
        for name, tensor in target.net.state_dict().items()
        if name in target.body
    }
    bad = next((name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())), None)
    if bad:
        raise UserError(f"checkpoint {entry}: {bad} holds values that are not finite numbers")
    return state


# Words


def _origin(chosen: Weights) -> Iterator[str]:
    others = f", not {_listed(chosen.others)}" if chosen.others else ""
    if _is_average(chosen.key):
        yield f"EMA weights under `{one_line(chosen.key)}`{others}"
    elif others or chosen.key not in ("", "state_dict", "model"):
        yield f"weights under `{one_line(chosen.key)}`{others}"
    if chosen.beside:
        yield f"what is no tensor left out ({_few(chosen.beside)})"


def _is_average(key: str) -> bool:
    return "ema" in re.split("[^a-z]+", key.lower())


def _said_of(given: Mapping[str, Tensor], used: frozenset[str], target: _Target) -> Iterator[str]:
    tied = _tied(target.net, used)
    absent = {name for name in target.body - used if name in tied or name.rpartition(".")[2] in COUNTERS}
    if absent:
        yield f"{_entries(absent)} absent, which the network has by itself ({_few(_last_names(absent))})"
    if renamed := target.body - used - absent:
        yield f"{_entries(renamed)} under older names, which its layers know ({_few(_last_names(renamed))})"
    if extra := [name for name in given if name not in used and not target.in_head(name)]:
        yield f"{_entries(extra)} of no weight left out ({_few(_last_names(extra))})"
    types = {(_type(given[name]), _type(target.built[name])) for name in target.parameters & used if name in given}
    for theirs, own in sorted(types):
        if theirs != own:
            yield f"{theirs} taken as {own}"


def _differences(named: _Named, target: _Target, label: str, chosen: Weights) -> str:
    wrong = [
        f"{name} is {shape(named.tensors[name]) if name in named.tensors else 'missing'}, not "
        f"{shape(target.built[name])}"
        for name in target.built
        if name in target.body and (name not in named.tensors or named.tensors[name].shape != target.built[name].shape)
        and not (name not in named.tensors and name.rpartition(".")[2] in COUNTERS)
    ]  # fmt: skip
    wrong += [
        f"{one_line(name, 200)} is not in {label}"
        for name in named.tensors
        if name not in target.built and not target.in_head(name) and name.rpartition(".")[2] not in COUNTERS
    ]
    wrong = wrong or [_torchs_words(named, target)]
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return f"{'; '.join(wrong[:3])}{more}{_prefix_hint(chosen.tensors, target)}"


def _torchs_words(named: _Named, target: _Target) -> str:
    """Why torch does not load weights of the right names and shapes."""
    kept = {name: tensor for name, tensor in named.tensors.items() if name in target.body}
    try:
        target.net.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        return one_line(str(error).partition(":")[2], 300)
    return "torch does not load it"


def _prefix_hint(names: Collection[str], target: _Target) -> str:
    """What names have in common that those of the network do not, or the other way round."""
    longer = Counter(
        own.removesuffix(name) for own in target.parameters for name in _ends(own) if name in names and name != own
    )
    prefix, count = max(longer.items(), key=lambda item: item[1], default=("", 0))
    if count == len(target.parameters) and count > 1:
        return f"; the names would fit with `{prefix}` in front"
    firsts = {name.partition(".")[0] for name in names if "." in name}
    if len(firsts) == 1 and len(names) > 1 and not any(own.split(".")[0] in firsts for own in target.built):
        return f"; every name in the file begins with `{one_line(firsts.pop(), 80)}.`"
    first, second = [*(prefix for prefix, _ in _prefixes(names, target).most_common(2)), "", ""][:2]
    under_first, under_second = (
        {name for name in target.parameters if f"{prefix}{name}" in names} for prefix in (first, second)
    )
    if under_first != target.parameters and under_first | under_second >= target.parameters:
        return (
            f"; {_where(first)} are {len(under_first)} of its {len(target.parameters)} parameters, "
            f"{_where(second)} are {len(under_second)}"
        )
    return ""


def _where(prefix: str) -> str:
    return f"after `{one_line(prefix, 80)}`" if prefix else "without a prefix"


def _ends(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[cut:]) for cut in range(1, len(parts)))


def shape(tensor: Tensor) -> str:
    return "x".join(str(n) for n in tensor.shape) or "a scalar"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def odd_kind(tensor: Tensor) -> str:
    """Why a tensor is no plain array of numbers; empty where it is one."""
    if tensor.is_meta:
        return "is on the device meta, where tensors have no values"
    if tensor.is_quantized or tensor.layout != torch.strided:
        return f"is {'quantised' if tensor.is_quantized else 'sparse'}; weights must be dense tensors of plain numbers"
    return ""


def _entries(names: Collection[str]) -> str:
    return f"{len(names)} {'entry' if len(names) == 1 else 'entries'}"


def _last_names(names: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def _few(names: Sequence[str]) -> str:
    return some([one_line(name, 80) for name in names], 3)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{one_line(name, 80)}`" for name in names)
