"""The config.json beside exported weights, from which timm builds the network and knows how images are shown to it:
`timm.create_model("local-dir:FOLDER", pretrained=True)`, and `hf-hub:` once the folder is uploaded.

timm writes it, as far as its versions agree. What they do not agree on, or know only of the weights that training began
with, is put right afterwards; and it is read back before anybody relies on it.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybasin.errors import UserError, one_line
from raybasin.serving import export
from raybasin.serving.export import View
from raybasin.store.inventory import StoredSweep
from raybasin.sweep.specs import Architecture

if TYPE_CHECKING:
    from torch import nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"

OF_OTHER_WEIGHTS = (
    "url", "file", "hf_hub_id", "hf_hub_filename", "source", "tag", "notes", "description", "license", "origin_url",
    "paper_name", "paper_ids", "label_offset", "label_names", "label_descriptions",
)  # fmt: skip
"""What timm's own configuration of an architecture says of the weights that it offers by default."""
OF_THE_BASE = ("license", "origin_url", "paper_name", "paper_ids")
"""What holds for fine-tuned weights as it does for those that training began with."""
ANY_SIZE = ("dynamic_img_size", "use_naflex")
"""Arguments with which a network that timm builds for one image size takes others."""


@dataclass(frozen=True)
class Base:
    """The published weights that training began with, as far as is known."""

    hub_id: str | None = None
    """Of a repository on the Hugging Face hub: `timm/resnet50.tv_in1k`."""
    config: tuple[tuple[str, Any], ...] = ()
    """Those of OF_THE_BASE that timm knows."""

    @property
    def license(self) -> str | None:
        return dict(self.config).get("license")


def base_of(stored: StoredSweep, checkpoint: str) -> Base:
    """Of a checkpoint by its name in the tables. Files and networks that the sweep has pre-trained are nobody's."""
    import timm

    for entry in (entry for entry in stored.spec.model.pretrained if isinstance(entry, str)):
        source, _, identity = entry.partition(":")
        name = identity.partition("@")[0]
        if source in ("hf-hub", "hf_hub") and checkpoint.startswith(f"{identity.rpartition('/')[2]}-"):
            return Base(name)
    entries = stored.spec.model.pretrained
    config = timm.get_pretrained_cfg(checkpoint, allow_unregistered=True) if checkpoint in entries else None
    if config is None:
        return Base()
    known = ((key, getattr(config, key, None)) for key in OF_THE_BASE)
    hub_id = f"{config.hf_hub_id}{checkpoint}" if str(config.hf_hub_id).endswith("/") else config.hf_hub_id
    return Base(hub_id or None, tuple((key, value) for key, value in known if value))


def config(model: Architecture, net: nn.Module, classes: tuple[str, ...], view: View, base: Base) -> dict[str, Any]:
    """The content of config.json for `net`, which timm built as `model` says."""
    from timm.models._hub import save_config_for_hf

    model_config = {"label_names": list(classes)} if classes else {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, CONFIG)
        write: Any = save_config_for_hf  # which says that it takes a str, and took none but a Path at first
        write(net, path, model_config=model_config, model_args=dict(model.args))
        tree: dict[str, Any] = json.loads(path.read_text())
    own = {key: value for key, value in tree.pop("pretrained_cfg").items() if key not in OF_OTHER_WEIGHTS}
    arguments, is_fixed = _size(model, view)
    shown = {key: value for key, value in export.timm_config(view).items() if value is not None}
    if own.get("input_size") != list(shown["input_size"]):
        own.pop("pool_size", None)
    for key in ("test_input_size", "test_crop_pct", "test_pool_size"):
        own.pop(key, None)
    tree.pop("model_args", None)  # newer versions add what timm would fill in by itself, and older ones refuse
    said = {"num_classes": tree["num_classes"], "custom_load": False, "fixed_input_size": is_fixed}
    return {
        **tree,
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": {key: v for key, v in {**own, **shown, **said, **dict(base.config)}.items() if v is not None},
    }


def _size(model: Architecture, view: View) -> tuple[dict[str, Any], bool]:
    """The arguments that timm is to build the network with, and whether it takes images of one size alone.

    timm builds some networks for the image size that config.json names. Such a one as was trained on another is told
    its own by `img_size`; config.json must then not call the size fixed, or timm takes the one for the other.
    """
    import timm

    own = timm.get_pretrained_cfg(model.name)
    if own is None or not own.fixed_input_size:
        return dict(model.args), False
    size = model.args.get("img_size", own.input_size[1:])
    built = [size, size] if isinstance(size, int) else list(size)
    takes_any = any(model.args.get(key) for key in ANY_SIZE) or model.args.get("strict_img_size") is False
    if built == [view.preprocess.image_size] * 2 and not takes_any:
        return dict(model.args), True
    return {**model.args, "img_size": built}, False


def config_of_factory(model: Architecture, n_classes: int, classes: tuple[str, ...], view: View) -> dict[str, Any]:
    """What config.json says of a network that timm has not: nothing of it is timm's but how images are shown."""
    shown = {key: value for key, value in export.timm_config(view).items() if value is not None}
    return {
        "factory": model.factory, "args": dict(model.args), "head": list(model.head or ()), "num_classes": n_classes,
        "label_names": list(classes), "pretrained_cfg": {**shown, "num_classes": n_classes},
    }  # fmt: skip


def read_back(folder: Path, content: bytes, view: View) -> nn.Module:
    """The network that timm makes of an exported folder, in evaluation mode. Raises UserError unless it has the weights
    in the file `content`, and is shown images as `view` says."""
    import safetensors.torch
    import timm
    import torch
    from timm.data.config import resolve_model_data_config

    cannot = f"{WEIGHTS} and {CONFIG}: timm {timm.__version__} does not load what would be exported"
    try:
        with torch.random.fork_rng(devices=[]):
            net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        shown = resolve_model_data_config(net)
    except Exception as error:  # whatever a model's code makes of it
        raise UserError(
            f"{cannot} ({one_line(f'{type(error).__name__}: {error}', 200)}); `raybasin soup` writes the weights alone"
        ) from error
    stored, loaded = safetensors.torch.load(content), net.state_dict()
    changed = [key for key, tensor in stored.items() if key not in loaded or not _same(tensor, loaded[key])]
    changed += [key for key in loaded if key not in stored]
    wanted = {key: value for key, value in export.timm_config(view).items() if value is not None}
    changed += [key for key, value in wanted.items() if not _alike(shown[key], value)]
    if changed:
        raise UserError(f"{cannot} as it is ({', '.join(changed[:3])}); `raybasin soup` writes the weights alone")
    return net


def _alike(shown: Any, value: Any) -> bool:
    return list(shown) == list(value) if isinstance(value, tuple) else bool(shown == value)


def _same(a: Any, b: Any) -> bool:
    """To the bit, as far as numbers have an order: a NaN is the same as itself."""
    import torch

    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
