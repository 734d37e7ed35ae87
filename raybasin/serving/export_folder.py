"""A soup, an ensemble or a hub as a folder that works elsewhere: with timm alone, or uploaded to the Hugging Face hub.

A network is config.json and model.safetensors; an ensemble has a folder of these for each member. Beside them lie the
classes, the scores, the sweep file and a card that says all of it. The folder appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybasin.analysis.results import Results
from raybasin.errors import FolderLost, UserError, nearest, one_line
from raybasin.serving import export, exported, model_card, onnx_file, timm_folder
from raybasin.serving.export import View
from raybasin.serving.exported import WHATS, Chosen, Network, Tree
from raybasin.serving.onnx_file import Checked
from raybasin.serving.timm_folder import CONFIG, WEIGHTS, Base
from raybasin.store import folders

if TYPE_CHECKING:
    from torch import nn

OF_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".onnx", ".json", ".yaml", ".md", ".zip", ".tar", ".gz")
"""What a folder is not called: whoever does wants a file."""
AVERAGED = "mean of softmax probabilities"


@dataclass(frozen=True)
class Exported:
    """A folder that was written, and what its scores.json says."""

    folder: Path
    about: Tree


@dataclass(frozen=True)
class _Work:
    """What all networks of one export have in common."""

    chosen: Chosen
    onnx: bool
    view: View
    base: Base
    config: Tree = field(default_factory=dict)

    @property
    def n_classes(self) -> int:
        return self.chosen.results.stored.facts.data.n_classes


def write(
    results: Results, directory: str | os.PathLike[str], what: str = "soup", cell: str | None = None, onnx: bool = False
) -> Exported:
    """See `raybasin.export`."""
    target = _new_folder(directory)
    if onnx:
        onnx_file.check_installed()
    if what not in WHATS:
        raise UserError(f"--what {what}: cannot be exported{nearest(what, WHATS)}")
    chosen = exported.choose(results, what, cell)
    work = _work(chosen, onnx)
    with _whole(target, directory) as folder:
        checked, members = [], []
        for network in exported.networks(chosen):
            checked += _write_network(network, work, folder / network.place)
            members.append({"folder": network.place, **_said(network)})
        about = exported.about(chosen)
        if checked:
            about["onnx"] = _worst(checked)
        if what == "ensemble":
            ensemble = {"members": members, "average": AVERAGED, "temperature": about["temperature"]["value"],
                        "calibrated": "softmax(log(average) / temperature)"}  # fmt: skip
            _put_json(folder / "ensemble.json", exported.plain(ensemble))
        else:
            about |= _said_once(members[0])
        _put_json(folder / "scores.json", about)
        _describe(folder, target.name, work, about)
    return Exported(target, about)


def _work(chosen: Chosen, onnx: bool) -> _Work:
    """Builds the network once where timm has it, to write config.json; a factory's only for ONNX, as it is code of
    whoever wrote the sweep file."""
    stored = chosen.results.stored
    model, data, view = stored.spec.model, stored.facts.data, export.view_of(chosen.results)
    if model.factory is not None:
        config = timm_folder.config_of_factory(model, data.n_classes, data.class_names, view)
        return _Work(chosen, onnx, view, Base(), config)
    from raybasin.training import models

    models.check_name(model.name)
    base = timm_folder.base_of(stored, str(chosen.cell["checkpoint"]))
    with models.explaining(model, f"model.name: timm cannot build {model.name}"):
        net = models.build(model, data.n_classes, seed=0)
        config = timm_folder.config(model, net, data.class_names, view, base)
    return _Work(chosen, onnx, view, base, config)


def _write_network(network: Network, work: _Work, folder: Path) -> list[Checked]:
    """Writes config.json and the weights, and with ONNX that, of which it says how close it is."""
    folder.mkdir(exist_ok=True)
    _put_json(folder / CONFIG, work.config)
    try:
        folders.write_file(folder / WEIGHTS, export.with_metadata(network.content, network.facts))
    except ValueError as error:
        file = work.chosen.results.folder.name(f"weights/{network.facts['weights_sha256']}{export.SUFFIX}")
        raise UserError(f"{file}: is no safetensors file ({error})") from error
    if work.chosen.results.stored.spec.model.factory is None:
        net = timm_folder.read_back(folder, network.content, work.view)
    elif work.onnx:
        net = _of_factory(network, work)
    else:
        return []
    return [onnx_file.write(net, work.view.preprocess.image_size, folder)] if work.onnx else []


def _of_factory(network: Network, work: _Work) -> nn.Module:
    """Runs the factory's code. Raises UserError where that is not there, or makes another network."""
    from raybasin.training import models

    model = work.chosen.results.stored.spec.model
    models.find(model)
    net = models.build(model, work.n_classes, seed=0)
    with models.explaining(model, f"model.factory: {model.factory} makes a network with other weights"):
        net.load_state_dict(models.from_bytes(network.content))
    return net.eval()


def _worst(checked: list[Checked]) -> Tree:
    """Of all networks that one which lies farthest from torch."""
    return asdict(max(checked, key=lambda one: one.largest_difference or 0.0))


def _said(network: Network) -> Tree:
    known = ("member_id", "weights_sha256")
    return {key: network.facts[key] for key in known if key in network.facts}


def _said_once(member: Tree) -> Tree:
    return {key: value for key, value in member.items() if key != "folder"}


def _describe(folder: Path, name: str, work: _Work, about: Tree) -> None:
    """Writes what says of the networks what they are."""
    results = work.chosen.results
    classes = [one_line(label) for label in results.stored.facts.data.class_names]
    folders.write_file(folder / "labels.txt", "".join(f"{label}\n" for label in classes).encode())
    folders.write_file(folder / "sweep.yaml", results.folder.get(f"sweeps/{results.settings_id}.yaml"))
    card = model_card.card(name, work.chosen, about, work.view, work.base)
    folders.write_file(folder / "README.md", card.encode())


def _put_json(path: Path, tree: Any) -> None:
    folders.write_file(path, (json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


# Where it is written


def _new_folder(directory: str | os.PathLike[str]) -> Path:
    """Raises UserError unless a new folder can have this name, or an empty one has it."""
    name, target = os.fspath(directory), Path(directory).expanduser().absolute()
    if "://" in name:
        raise UserError(f"{name}: is an address; name a folder of this machine with -o, and upload that")
    if target.suffix.lower() in OF_FILES:
        raise UserError(
            f"{name}: is the name of a file, and a folder is written; name {target.stem} with -o, or use `raybasin "
            "soup` for one file"
        )
    if target.is_symlink() and target.is_dir():
        target = target.resolve()
    if target.is_dir():
        with contextlib.suppress(OSError):
            if not any(target.iterdir()):
                return target
        raise UserError(f"{name}: is not empty, and is left as it is; name another folder with -o")
    if os.path.lexists(target):
        raise UserError(f"{name}: is a file, and is left as it is; name another folder with -o")
    return target


@contextlib.contextmanager
def _whole(target: Path, name: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to write into, which becomes `target` at the end of the block; after an error nothing of it is left. It
    lies in the nearest folder that is there, and so on the same disk."""
    beside = next(place for place in target.parents if place.exists())
    folder = beside / f".{target.name}.{uuid.uuid4().hex}"
    try:
        folder.mkdir()
        yield folder
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder, target)
    except FolderLost:  # the results folder's, from which it is read
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{os.fspath(name)}: cannot be written ({reason}); name another folder with -o") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
