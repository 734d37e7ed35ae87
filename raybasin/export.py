"""Soups and checkpoints as files that timm and plain PyTorch load, with the facts of their making in the metadata. No
torch needed: the weights are copied, and only the header is written anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raybasin import keeping, tables
from raybasin import plan as planning
from raybasin.errors import UserError
from raybasin.plan import CheckpointFacts, Plan
from raybasin.specs import Architecture, identity
from raybasin.store import Folder

COLUMNS = {"uniform": "soup_sha256", "greedy": "greedy_soup_sha256"}


def soup(
    folder: Folder,
    cell: Mapping[str, Any],
    kind: str,
    sweep: Mapping[str, Any],
    class_names: list[str],
    path: str | Path,
) -> str:
    """Writes the soup of `cell` to `path` and returns how to load it.

    Raises UserError for a soup that was not made, weights that are gone, or a path that cannot be written.
    """
    sha256 = cell[COLUMNS[kind]]
    if not isinstance(sha256, str):
        raise UserError(f"cell {cell['cell_id']}: has no {kind} soup; add {kind} to soups in the sweep file")
    try:
        content = folder.get(f"weights/{sha256}.safetensors")
    except OSError as error:
        if keeping.is_dropped(cell["cell_id"], folder):
            raise UserError(
                f"cell {cell['cell_id']}: its soups were not to be kept (keep.weights: best); leave --cell out for the "
                "best one, or run the sweep again with --set keep.weights=all --retrain"
            ) from error
        raise UserError(
            f"{folder.root}: weights/{sha256}.safetensors is gone; `raybasin check` tells what else"
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{folder.root}: weights/{sha256}.safetensors is damaged; `raybasin check` tells what else")
    model = architecture(sweep)
    facts = {
        **_network_facts(model, class_names),
        "kind": f"{kind}_soup", "cell_id": str(cell["cell_id"]), "method": str(cell["method"]),
        "checkpoint": str(cell["checkpoint"]), "lr_ratio": f"{cell['lr_ratio']:g}",
        "cycle_ratio": f"{cell['cycle_ratio']:g}", "replicate": str(cell["replicate"]),
        "n_members": str(cell["n_members"]), "weights_sha256": sha256, "sweep": str(cell["sweep"]),
        "image_size": str(sweep["data"]["image_size"]),
    }  # fmt: skip
    target = Path(path).expanduser()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(with_metadata(content, facts))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder.root}: weights/{sha256}.safetensors is no safetensors file ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another file with -o") from error
    return how_to_load(model, len(class_names), path)


def architecture(sweep: Mapping[str, Any]) -> Architecture:
    """The network of a resolved sweep file."""
    own = {key: value for key, value in sweep["model"].items() if key in Architecture.model_fields}
    return Architecture.model_validate(own)


def _network_facts(model: Architecture, class_names: Sequence[str]) -> dict[str, str]:
    facts = {"format": "pt", "model": model.name, "num_classes": str(len(class_names)),
             "classes": json.dumps(list(class_names))}  # fmt: skip
    if model.factory:
        facts["factory"] = model.factory
    if model.args:
        facts["args"] = json.dumps(model.args)
    if model.head:
        facts["head"] = json.dumps(list(model.head))
    return facts


def how_to_load(model: Architecture, n_classes: int, path: str | Path) -> str:
    """Python that makes the network of an exported file, with timm or with torch and safetensors alone."""
    arguments = f"num_classes={n_classes}" + "".join(f", {key}={value!r}" for key, value in model.args.items())
    if model.factory is None:
        return f"timm.create_model({model.name!r}, {arguments}, checkpoint_path={str(path)!r})"
    module, _, function = model.factory.partition(":")
    return (
        f"from {module} import {function.split('.')[0]}\n"
        f"net = {function}({arguments})\n"
        f"net.load_state_dict(safetensors.torch.load_file({str(path)!r}))"
    )


# Checkpoints


def checkpoint_names(made: Plan) -> dict[str, str]:
    """The file of each checkpoint that the sweep makes, by its key: `<source>-<model>-seed<seed>.safetensors`, with 8
    digits of the key where two entries would share one."""
    plain = {c.key: _plain_name(made, c) for c in made.facts.checkpoints if c.pretrain is not None}
    shared = {name for name in plain.values() if list(plain.values()).count(name) > 1}
    return {key: (f"{name}-{key[:8]}" if name in shared else name) + ".safetensors" for key, name in plain.items()}


def _plain_name(made: Plan, checkpoint: CheckpointFacts) -> str:
    task = planning.pretrain_of(made, checkpoint)
    return f"{task.data.name}-{made.spec.model.name}-seed{task.seed}"


def check_is_free(target: Folder, prefix: str, made: Plan) -> None:
    """Raises UserError where a file that `checkpoint` would write is there and is not of the same checkpoint."""
    for key, name in checkpoint_names(made).items():
        if target.exists(prefix + name) and _metadata(target.get(prefix + name)).get("checkpoint_id") != key:
            raise UserError(f"{target.name(prefix + name)}: is another checkpoint; name another folder with -o")


def _again(checkpoint: CheckpointFacts) -> str:
    return f"delete checkpoints/{checkpoint.key}.parquet there, and the same command makes it again"


def _metadata(content: bytes) -> Mapping[str, Any]:
    """The metadata of a safetensors file; empty where it is none."""
    try:
        facts = _header(content).get("__metadata__")
    except (ValueError, AttributeError):
        return {}
    return facts if isinstance(facts, dict) else {}


def checkpoint(
    folder: Folder, made: Plan, wanted: CheckpointFacts, heads: Sequence[str], target: Folder, prefix: str
) -> str:
    """Writes a checkpoint that was made in `folder` to `target`, under its name after `prefix`: its whole state, the
    modules called `heads` included, and in the metadata how it was made. Returns the file's path or address.

    Raises UserError where its weights are gone or have no head.
    """
    row = tables.row(folder, "checkpoints", wanted.key)
    sha256 = row["weights_sha256"]
    try:
        content = folder.get(f"weights/{sha256}.safetensors")
    except FileNotFoundError as error:
        raise UserError(f"{folder.root}: weights/{sha256}.safetensors is gone; {_again(wanted)}") from error
    if not any(name.startswith(f"{heads[0]}.") for name in _header(content)):
        raise UserError(f"{folder.root}: {wanted.name} was kept without its head; {_again(wanted)}")
    task, data = planning.pretrain_of(made, wanted), made.facts.pretrain_data[planning.position_of(wanted)]
    shown = planning.shown_for(task.data, made.facts.preprocess)
    facts = {
        **_network_facts(made.spec.model, data.class_names), "kind": "checkpoint", "checkpoint_id": wanted.key,
        "weights_sha256": sha256, "source": task.data.name, "source_fingerprint": data.train_fingerprint,
        "source_spec": json.dumps(identity(task.data, without=("dir",))), "n_train": str(data.n_train),
        "n_val": str(data.n_val), "image_size": str(shown.image_size), "mean": json.dumps(shown.mean),
        "std": json.dumps(shown.std), "eval_crop": f"{shown.eval_crop:g}", "interpolation": shown.interpolation,
        "seed": str(task.seed), "epochs": str(task.recipe.epochs), "recipe": json.dumps(task.recipe.model_dump()),
        "val_accuracy": f"{row['val_accuracy']:.6g}", "device": row["device"], "versions": row["versions"],
        "finished_at": row["finished_at"].isoformat(),
    }  # fmt: skip
    name = prefix + checkpoint_names(made)[wanted.key]
    target.put(name, with_metadata(content, facts))
    return target.name(name)


# Bytes


def _header(content: bytes) -> dict[str, Any]:
    """What a safetensors file says of its tensors, by name, and its metadata."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    if not isinstance(header, dict):
        raise ValueError("its header is no mapping")
    return header


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """The same safetensors file with `metadata` in its header.

    A file is 8 bytes that give the header's length, the header as JSON, then the tensors; offsets count from the
    header's end, so it can be replaced. Its length is a multiple of 8, which keeps the tensors aligned.
    """
    length = int.from_bytes(content[:8], "little")
    text = json.dumps({**_header(content), "__metadata__": dict(metadata)}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]
