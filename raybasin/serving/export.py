"""Soups and checkpoints as files that timm and plain PyTorch load, with the facts of their making in the metadata: how
images are shown to the network and what its outputs mean among them. No torch needed: the weights are copied, and only
the header is written anew."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from raybasin.analysis.results import Results
from raybasin.errors import UserError
from raybasin.jobs import retention
from raybasin.metrics import cell_scores
from raybasin.store import checksum, folders, tables
from raybasin.store.folders import Folder
from raybasin.sweep.facts import CheckpointFacts, Preprocess
from raybasin.sweep.ids import identity, soup_id
from raybasin.sweep.plan import Plan
from raybasin.sweep.settings import position_of, pretrain_of
from raybasin.sweep.specs import Architecture, DataSpec

SUFFIX = ".safetensors"

Cell = Mapping[str, Any] | pd.Series  # type: ignore[type-arg]
"""A row of the table `cells`."""


class Kind(NamedTuple):
    """The columns of `cells` that tell of a kind of soup."""

    sha256: str
    accuracy: str
    members: str


KINDS = {
    "uniform": Kind("soup_sha256", "soup_accuracy", "member_ids"),
    "greedy": Kind("greedy_soup_sha256", "greedy_soup_accuracy", "greedy_soup_members"),
}


@dataclass(frozen=True)
class View:
    """How evaluation shows an image to a network."""

    preprocess: Preprocess
    common_side: int | None
    """The side of the square that an image is first brought to, where the stored ones have several sizes."""


def soup(results: Results, cell: Cell, kind: str, path: str | Path) -> str:
    """Writes the soup of a cell, of a `kind` of KINDS, as a new file that timm or plain torch loads; its `path` ends in
    `.safetensors`. Returns Python that loads it and shows images to the network.

    Raises UserError for a soup that was not made, weights that are gone, or a path that cannot be written.
    """
    target = new_file(path, SUFFIX, "holds safetensors", "soup")
    content, facts = soup_of(results, cell, kind)
    model, class_names, view = results.stored.spec.model, results.stored.facts.data.class_names, view_of(results)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folders.write_file(target, with_metadata(content, facts))
    except ValueError as error:
        file = results.folder.name(f"weights/{facts['weights_sha256']}{SUFFIX}")
        raise UserError(f"{file}: is no safetensors file ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another file with -o") from error
    return how_to_load(model, len(class_names), view, str(target))


def soup_of(results: Results, cell: Cell, kind: str) -> tuple[bytes, dict[str, str]]:
    """The file of a cell's soup as it is stored, and the metadata that it is exported with. Raises UserError for a soup
    that was not made, or whose weights are gone."""
    columns = KINDS[kind]
    if not isinstance(cell[columns.sha256], str):
        raise UserError(f"cell {cell['cell_id']}: has no {kind} soup; add {kind} to soups in the sweep file")
    content = _weights(
        results, cell[columns.sha256], cell["cell_id"],
        f"cell {cell['cell_id']}: its soups were not to be kept (keep.weights: best); leave --cell out for the best "
        "one, or run the sweep again with --set keep.weights=all --retrain",
    )  # fmt: skip
    made_of = ingredients(cell, kind)
    return content, {
        **facts_of(results, cell, f"{kind}_soup", cell[columns.sha256]), "n_members": str(cell["n_members"]),
        "members": json.dumps(made_of), "test_accuracy": str(cell[columns.accuracy]),
        **_calibration(results, cell, soup_id(kind, list(cell["member_ids"])), f"{kind}_soup"),
    }  # fmt: skip


def member_of(results: Results, cell: Cell, index: int) -> tuple[bytes, dict[str, str]]:
    """The same of a member of a cell, 0 is the hub; it has its own batch-norm statistics. Raises UserError where its
    weights are gone."""
    member_id = str(cell["member_ids"][index])
    found = results.members.query("member_id == @member_id")["weights_sha256"]
    if found.empty:
        raise UserError(f"{results.folder.root}: member {member_id} is missing; `raybasin check` tells what else")
    sha256 = str(found.iloc[0])
    content = _weights(
        results, sha256, member_id,
        f"cell {cell['cell_id']}: weights of its members were not to be kept (keep.weights); export its soup or its "
        "hub, or run the sweep again with --set keep.weights=all --retrain",
    )  # fmt: skip
    kind = "member" if index else "hub"
    return content, {
        **facts_of(results, cell, kind, sha256), "member_id": member_id, "member_index": str(index),
        **_calibration(results, cell, member_id, "member"),
    }  # fmt: skip


def temperature(results: Results, cell_id: str, predictor_id: str, kind: str) -> float:
    """That at which a predictor of a cell is calibrated, fitted on validation; of soups with the batch-norm statistics
    that they are stored with. NaN where the folder holds no scores of it."""
    has_batch_norm, rows = results.stored.facts.batch_norm, results.scores
    bn = cell_scores.statistics(has_batch_norm)[-1] if kind.endswith("_soup") else cell_scores.OWN
    of_it = (rows["cell_id"] == cell_id) & (rows["predictor_id"] == predictor_id)
    found = rows.loc[of_it & (rows["kind"] == kind) & (rows["bn"] == bn), "temperature"]
    return float(found.iloc[0]) if len(found) else math.nan


def _calibration(results: Results, cell: Cell, predictor_id: str, kind: str) -> dict[str, str]:
    value = temperature(results, str(cell["cell_id"]), predictor_id, kind)
    return {} if math.isnan(value) else {"temperature": repr(value)}


def facts_of(results: Results, cell: Cell, kind: str, sha256: str) -> dict[str, str]:
    """What the metadata of every network of a cell say: how it is used, which it is, and where it stands on the map."""
    stored = results.stored
    return {
        **shared_facts(stored.spec.model, stored.facts.data.class_names, view_of(results)),
        "kind": kind, "cell_id": str(cell["cell_id"]), "method": str(cell["method"]),
        "checkpoint": str(cell["checkpoint"]), "lr_ratio": f"{cell['lr_ratio']:g}",
        "cycle_ratio": f"{cell['cycle_ratio']:g}", "replicate": str(cell["replicate"]), "weights_sha256": sha256,
        "sweep": str(cell["sweep"]),
    }  # fmt: skip


def ingredients(cell: Cell, kind: str) -> list[str]:
    """The ids of the members in the soup of a cell."""
    members = cell[KINDS[kind].members]
    return [] if members is None else [str(member) for member in members]


def _weights(results: Results, sha256: str, unit: str, if_pruned: str) -> bytes:
    """A file of weights, which is what its name says. Raises UserError, `if_pruned` where those of `unit` (a cell for
    its soups, or a member) were not to be kept."""
    folder, key = results.folder, f"weights/{sha256}{SUFFIX}"
    try:
        content = folder.get(key)
    except OSError as error:
        if retention.is_pruned(unit, folder):
            raise UserError(if_pruned) from error
        raise UserError(f"{folder.root}: {key} is gone; `raybasin check` tells what else") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{folder.root}: {key} is damaged; `raybasin check` tells what else")
    return content


def new_file(path: str | Path, suffix: str, kind: str, stem: str) -> Path:
    """Raises UserError unless a new file can have this name, which ends in `suffix` to say that it is of this `kind`;
    `stem` stands in for a name that is nothing but an ending."""
    target = Path(path).expanduser()
    if "://" in str(path):
        raise UserError(f"{path}: is an address; name a file of this machine with -o")
    if target.suffix != suffix:
        raise UserError(f"{path}: its name must say that it {kind}; name {target.stem or stem}{suffix} with -o")
    if os.path.lexists(target):
        what = "a folder" if target.is_dir() else "there already"
        raise UserError(f"{path}: is {what}, and is left as it is; name another file with -o")
    return target


def view_of(results: Results) -> View:
    """How the test images of a sweep were shown. What the folder says of it may be a stranger's, and is printed as
    Python: the numbers must be possible ones."""
    facts, shown = results.stored.facts, results.stored.facts.preprocess
    if not is_possible(shown):
        raise UserError(f"{results.folder.root}: facts of settings {results.settings_id}: preprocess cannot be")
    return _view(shown, results.stored.spec.data, facts.data.test_size)


def is_possible(shown: Preprocess) -> bool:
    """Whether images can be shown so."""
    return (
        0 < shown.image_size <= 2048 and 1e-3 <= shown.eval_crop <= 1
        and all(map(math.isfinite, shown.mean)) and all(0 < value < math.inf for value in shown.std)
        and shown.interpolation in ("bilinear", "bicubic")
    )  # fmt: skip


def _view(preprocess: Preprocess, data: DataSpec, stored: tuple[int, ...]) -> View:
    """The view of images of `data` whose arrays have the size `stored`, (height, width)."""
    return View(preprocess, data.common_side if stored == (data.common_side, data.common_side) else None)


def shared_facts(model: Architecture, class_names: Sequence[str], view: View) -> dict[str, str]:
    """What the metadata of a soup and of a checkpoint say alike: of the network, its classes and its images."""
    shown = view.preprocess
    facts = {
        "format": "pt", "model": model.name, "num_classes": str(len(class_names)),
        "classes": json.dumps(list(class_names)), "factory": model.factory,
        "args": model.args and json.dumps(model.args), "head": model.head and json.dumps(list(model.head)),
        "image_size": str(shown.image_size), "mean": json.dumps(shown.mean), "std": json.dumps(shown.std),
        "eval_crop": str(shown.eval_crop), "interpolation": shown.interpolation,
        "common_side": view.common_side and str(view.common_side),
    }  # fmt: skip
    return {name: value for name, value in facts.items() if value}


# Python that loads a file, for a process without raybasin


def how_to_load(model: Architecture, n_classes: int, view: View, path: str) -> str:
    """Python that makes the network of an exported file and shows images to it as evaluation did: with timm or, of a
    factory, with torch, torchvision and safetensors alone. It gives `net`, `classes` and `transform`."""
    own, side, call = view.preprocess, view.common_side, _arguments(model, n_classes, view)
    if model.factory is None:
        imports = "import json, safetensors, timm"
        network = (
            f"net = timm.create_model({model.name!r}, {call}, checkpoint_path={path!r}, "
            f"pretrained_cfg_overlay={timm_config(view)!r}).eval()"
        )
        note = "# timm.data.resolve_model_data_config(net) tells timm's own transforms the same, nearly: they round "
        note += "what they resize\n"
    else:
        module, _, function = model.factory.partition(":")
        imports = f"import json, safetensors.torch\nimport {module}"
        network = f"net = {module}.{function}({call}).eval()\n"
        network += f"net.load_state_dict(safetensors.torch.load_file({path!r}))"
        note = ""
    image = "image.convert('RGB')"
    if side is not None:
        imports += "\nfrom PIL import Image, ImageOps"
        image = f"ImageOps.fit({image}, ({side}, {side}), Image.Resampling.BICUBIC)"
    resized, mode = round(own.image_size / own.eval_crop), f"F.InterpolationMode.{own.interpolation.upper()}"
    resize = (
        f"    pixels = F.resize(pixels, {resized}, {mode}, antialias=True).clamp(0, 1)\n" if side != resized else ""
    )
    return f"""{imports}
import torchvision.transforms.functional as F

{network}
classes = json.loads(safetensors.safe_open({path!r}, 'pt').metadata()['classes'])

{note}def transform(image):
    pixels = F.to_tensor({image})
{resize}    return F.normalize(F.center_crop(pixels, {own.image_size}), {own.mean!r}, {own.std!r})

# the class of an image of PIL: classes[net(transform(image)[None]).argmax()]"""


def _arguments(model: Architecture, n_classes: int, view: View) -> str:
    """Of the call that builds the network. timm builds some networks for the image size of the overlay, unless they
    are given one: such a network as was trained on images of another size must be given its own."""
    arguments = {"num_classes": n_classes, **model.args}
    if model.factory is None and model.args and "img_size" not in model.args:
        import timm

        config = timm.get_pretrained_cfg(model.name)
        if config and config.fixed_input_size and config.input_size[1:] != (view.preprocess.image_size,) * 2:
            arguments["img_size"] = tuple(config.input_size[1:])
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items())


def timm_config(view: View) -> dict[str, Any]:
    """What timm.data.resolve_model_data_config reads of a model. timm resizes once: images of several sizes as they are
    brought to one size here, which is nearly all that is done to them."""
    own = view.preprocess
    interpolation = own.interpolation if view.common_side is None else "bicubic"
    return {
        "input_size": (3, own.image_size, own.image_size), "test_input_size": None, "mean": own.mean,
        "std": own.std, "crop_pct": timm_crop(own.image_size, own.eval_crop), "test_crop_pct": None,
        "crop_mode": "center", "interpolation": interpolation,
    }  # fmt: skip


def timm_crop(image_size: int, eval_crop: float) -> float:
    """The crop with which timm, which rounds down, resizes to what evaluation, which rounds, resizes to."""
    resized = round(image_size / eval_crop)
    if math.floor(image_size / eval_crop) == resized:
        return eval_crop
    return math.floor(1e6 * image_size / resized) / 1e6


# Checkpoints


def checkpoint_names(made: Plan) -> dict[str, str]:
    """The file of each checkpoint that the sweep makes, by its key: `<source>-<model>-seed<seed>.safetensors`, with 8
    digits of the key where two entries would share one."""
    plain = {}
    for facts in made.facts.checkpoints:
        if facts.pretrain is not None:
            task = pretrain_of(made, facts)
            plain[facts.key] = f"{task.data.name}-{made.spec.model.name}-seed{task.seed}"
    count = Counter(plain.values())
    return {key: (f"{name}-{key[:8]}" if count[name] > 1 else name) + SUFFIX for key, name in plain.items()}


def check_is_free(target: Folder, prefix: str, made: Plan) -> None:
    """Raises UserError where a file that `checkpoint` would write is there and is not of the same checkpoint."""
    for key, name in checkpoint_names(made).items():
        file, there = prefix + name, None
        if not target.exists(file):
            continue
        with contextlib.suppress(ValueError):  # no safetensors file
            there = checksum.header(target.get(file))[0].get("checkpoint_id")
        if there != key:
            raise UserError(f"{target.name(file)}: is another checkpoint; name another folder with -o")


def checkpoint(
    folder: Folder, made: Plan, wanted: CheckpointFacts, heads: Sequence[str], target: Folder, prefix: str
) -> str:
    """Writes a checkpoint that was made in `folder` to `target`, under its name after `prefix`: its whole state, the
    modules called `heads` included, and in the metadata how it was made. Returns the file's path or address.

    Raises UserError where its weights are gone or have no head.
    """
    row = tables.row(folder, "checkpoints", wanted.key)
    sha256 = row["weights_sha256"]
    again = f"delete checkpoints/{wanted.key}.parquet there, and the same command makes it again"
    try:
        content = folder.get(f"weights/{sha256}.safetensors")
    except FileNotFoundError as error:
        raise UserError(f"{folder.root}: weights/{sha256}.safetensors is gone; {again}") from error
    _, tensors, _ = checksum.header(content)
    if not any(name.startswith(f"{heads[0]}.") for name in tensors):
        raise UserError(f"{folder.root}: {wanted.name} was kept without its head; {again}")
    task, data = pretrain_of(made, wanted), made.facts.pretrain_data[position_of(wanted)]
    facts = {
        **shared_facts(made.spec.model, data.class_names, _view_of_checkpoint(made, wanted)),
        "kind": "checkpoint", "checkpoint_id": wanted.key,
        "weights_sha256": sha256, "source": task.data.name, "source_fingerprint": data.train_fingerprint,
        "source_spec": json.dumps(identity(task.data, without=("dir",))), "n_train": str(data.n_train),
        "n_val": str(data.n_val), "seed": str(task.seed), "epochs": str(task.recipe.epochs),
        "recipe": json.dumps(task.recipe.model_dump()), "val_accuracy": f"{row['val_accuracy']:.6g}",
        "device": row["device"], "versions": row["versions"], "finished_at": row["finished_at"].isoformat(),
    }  # fmt: skip
    name = prefix + checkpoint_names(made)[wanted.key]
    target.put(name, with_metadata(content, facts))
    return target.name(name)


def how_to_load_checkpoint(made: Plan, checkpoint: CheckpointFacts, path: str) -> str:
    """As `how_to_load`, of a file that `checkpoint` wrote; one in a bucket is loaded from a copy in the current
    folder."""
    n_classes = made.facts.pretrain_data[position_of(checkpoint)].n_classes
    local = path.rpartition("/")[2] if "://" in path else path
    return how_to_load(made.spec.model, n_classes, _view_of_checkpoint(made, checkpoint), local)


def _view_of_checkpoint(made: Plan, checkpoint: CheckpointFacts) -> View:
    data = pretrain_of(made, checkpoint).data
    stored = made.facts.pretrain_data[position_of(checkpoint)].train_size
    return _view(made.facts.preprocess.of(data), data, stored)


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """The same safetensors file with `metadata` in its header. Raises ValueError for another kind of file.

    Offsets of tensors count from the header's end, so it can be replaced. Its length is a multiple of 8, which keeps
    the tensors aligned.
    """
    _, tensors, data = checksum.header(content)
    text = json.dumps({**tensors, "__metadata__": dict(metadata)}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, data])
