"""README.md of an exported folder: a model card in the format of the Hugging Face hub, YAML first and then text.

Names in it may come from other people's files: the YAML is dumped, and what the text shows of them is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from raybasin.analysis.quantities import counted
from raybasin.analysis.results import Results
from raybasin.errors import one_line
from raybasin.serving import export
from raybasin.serving.export import View
from raybasin.serving.exported import SOUPS, Chosen, Tree
from raybasin.serving.timm_folder import WEIGHTS, Base
from raybasin.sweep.specs import Pretrain, PretrainEntry

TEMPLATE = "model_card.md.jinja"
TITLES = {
    "accuracy": "accuracy", "mean_class_accuracy": "mean-per-class accuracy", "nll": "NLL, nats",
    "calibrated_nll": "calibrated NLL, nats", "ece": "ECE",
}  # fmt: skip
PERCENT = ("accuracy", "mean_class_accuracy", "ece")
KINDS = {"soup": "Uniform soup", "greedy_soup": "Greedy soup", "ensemble": "Ensemble", "hub": "Hub"}


def card(name: str, chosen: Chosen, about: Tree, view: View, base: Base) -> str:
    """The card of the folder `name`, of which `about` is scores.json."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters["md"] = markdown  # in place of autoescape, which is for HTML
    results, cell = chosen.results, chosen.cell
    stored = results.stored
    n_members = len(chosen.members)
    return environment.get_template(TEMPLATE).render(
        front_matter=yaml.safe_dump(front_matter(name, chosen, about, base), sort_keys=False, allow_unicode=True),
        name=name, title=_title(chosen), what=chosen.what, cell=cell, about=about, n_members=n_members,
        n_ingredients=n_members if chosen.what in SOUPS else None, is_soup=chosen.what in SOUPS,
        spec=stored.spec, data=stored.facts.data, factory=stored.spec.model.factory, view=view, base=base,
        origin=_origin(results, str(cell["checkpoint"]), base), temperature=_number(about["temperature"]["value"]),
        columns=[TITLES[score] for score in _shown(about)], rows=_rows(about), verdicts=_verdicts(about),
        knows_images=any(score.get("low") is not None for score in about["scores"].get("test", {}).values()
                         if isinstance(score, Mapping)),
        load=_load(name, chosen, view), exact=_exact(name, chosen, view), resized=_is_resized(chosen, view),
        classes=[one_line(label, 60) for label in stored.facts.data.class_names],
        bn_images=min(stored.spec.basin.bn_images, stored.facts.data.n_train), own_bn=about["batch_norm"] == "own",
    )  # fmt: skip


def _title(chosen: Chosen) -> str:
    of = "" if chosen.what == "hub" else f" of {len(chosen.members)} networks"
    spec = chosen.results.stored.spec
    return f"{KINDS[chosen.what]}{of}, {spec.model.name} on {spec.data.name}"


def markdown(text: object) -> str:
    """A text from elsewhere in one line, in which nothing is markup."""
    return re.sub(r"([\\`*_{}\[\]<>()#|!~&])", r"\\\1", one_line(text))


# YAML


def front_matter(name: str, chosen: Chosen, about: Tree, base: Base) -> Tree:
    """What the hub reads. What is not known is left out."""
    spec = chosen.results.stored.spec
    own = {"library_name": "timm"} if spec.model.factory is None else {"library_name": "pytorch"}
    kind = "ensemble" if chosen.what == "ensemble" else "model-soup" if chosen.what in SOUPS else "fine-tuned"
    tags = ["image-classification", *(["timm"] if spec.model.factory is None else []), "raybasin", kind]
    found: Tree = {
        "pipeline_tag": "image-classification", **own, "tags": tags, "license": base.license,
        "base_model": base.hub_id, "datasets": [spec.data.name],
        "model-index": _model_index(name, spec.data.name, about),
    }  # fmt: skip
    return {key: value for key, value in found.items() if value}


def _model_index(name: str, data: str, about: Tree) -> list[Tree]:
    task = {"type": "image-classification", "name": "Image classification"}
    results = [
        {"task": task, "dataset": {"name": f"{data}, {split}", "type": data, "split": split}, "metrics": metrics}
        for split, scores in about["scores"].items()
        if (metrics := _metrics(scores))
    ]
    return [{"name": name, "results": results}] if results else []


def _metrics(scores: Tree) -> list[Tree]:
    return [
        {"type": score, "value": scores[score]["value"], "name": title}
        for score, title in TITLES.items()
        if score in scores and isinstance(scores[score]["value"], float)
    ]


# Text


def _shown(about: Tree) -> list[str]:
    """The scores that are in the table."""
    held: Tree = next(iter(about["scores"].values()), {})
    return [score for score in TITLES if score in held]


def _rows(about: Tree) -> list[list[str]]:
    return [
        [split, str(scores["n_images"] or ""), *(_with_interval(scores, score) for score in _shown(about))]
        for split, scores in about["scores"].items()
    ]


def _with_interval(scores: Tree, score: str) -> str:
    one = scores[score]
    value, low, high = (_figure(one.get(key), score) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" if one.get("low") is not None else value


def _figure(value: Any, score: str) -> str:
    if not isinstance(value, float):
        return "infinite" if value == "inf" else "not known" if value is None else str(value)
    return f"{100 * value:.2f} %" if score in PERCENT else f"{value:.4f}"


def _number(value: Any) -> str:
    return f"{value:.8g}" if isinstance(value, float) else "not known"


def score_lines(about: Tree) -> list[str]:
    """A line for each split: `test, 50 images: accuracy 92.00 % [81.2 %, 97.1 %], ...`."""
    return [
        f"{split}, {scores['n_images']} images: "
        + ", ".join(f"{TITLES[s].partition(',')[0]} {_with_interval(scores, s)}" for s in _shown(about))
        for split, scores in about["scores"].items()
    ]


def _verdicts(about: Tree) -> list[str]:
    """A sentence for each comparison."""
    return [_verdict(told) for told in about["comparisons"]]


def _verdict(told: Tree) -> str:
    against, metric = f"the {told['baseline']}".replace("_", "\\_"), told["metric"]
    start = f"{TITLES[metric].partition(',')[0]} against {against}: "
    if told["verdict"] is None:
        return f"{start}not known ({markdown(told['why_not'])})."
    over = f"{told['n_images']} images"
    if told["n_replicates"] == 1:
        return f"{start}{_difference(told, metric)} (over {over} alone, since there is one replicate)."
    these = told["these_weights"]
    own = "not known" if these["verdict"] is None else f"{_difference(these, metric)} (over {over})"
    both = f"{over} and {told['n_replicates']} replicates"
    return f"{start}{_difference(told, metric)} (over {both}). These weights: {own}."


def _difference(told: Tree, metric: str) -> str:
    """`+2.5 points [+1.1, +3.9], better`."""
    factor, unit = (100, "points") if metric in PERCENT else (1, "nats")
    estimate, low, high = (
        f"{factor * told[key]:+.3g}" if isinstance(told[key], float) else str(told[key])
        for key in ("estimate", "low", "high")
    )
    return f"{estimate} {unit} [{low}, {high}], {told['verdict']}"


def _origin(results: Results, checkpoint: str, base: Base) -> str:
    """A sentence on the weights that fine-tuning began with."""
    made = next((facts for facts in results.stored.facts.checkpoints if facts.name == checkpoint), None)
    if made is not None and made.pretrain is not None:
        entry = results.stored.spec.model.pretrained[made.pretrain]
        task: Pretrain | None = entry.pretrain if isinstance(entry, PretrainEntry) else None
        if task is not None:
            return (
                f"The checkpoint {markdown(checkpoint)} was pre-trained by the sweep itself, from random weights, for "
                f"{counted(task.recipe.epochs, 'epoch')} on {markdown(task.data.name)}."
            )
    where = f" ({markdown(base.hub_id)} on the Hugging Face hub)" if base.hub_id else ""
    return f"Training began with the weights {markdown(checkpoint)}{where}."


# Python that loads it


def _load(name: str, chosen: Chosen, view: View) -> str:
    """Python that gives `probabilities` of normalised pixels, `classes` and `transform`, for a fresh process that is
    started where the folder lies."""
    if chosen.results.stored.spec.model.factory is not None:
        return _load_factory(name, chosen, view)
    ensemble = chosen.what == "ensemble"
    return (
        ("import json\n" if ensemble else "") + "from pathlib import Path\n\nimport timm\nimport torch\n\n"
        f"folder = Path({name!r})\n{NETWORKS if ensemble else NETWORK}"
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net), is_training=False)\n"
        'classes = (folder / "labels.txt").read_text(encoding="utf-8").split("\\n")[:-1]\n'
        f"{AVERAGE if ensemble else ALONE}"
    )


NETWORK = """net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
"""
NETWORKS = """members = json.loads((folder / "ensemble.json").read_text())["members"]
nets = [timm.create_model(f"local-dir:{folder / member['folder']}", pretrained=True).eval() for member in members]
net = nets[0]  # images are shown to all of them alike
"""
ALONE = """

@torch.inference_mode()
def probabilities(pixels, temperature=1.0):
    return (net(pixels) / temperature).softmax(1)


# of an image of PIL: probabilities(transform(image.convert("RGB"))[None])"""
AVERAGE = """

@torch.inference_mode()
def probabilities(pixels, temperature=1.0):
    log_probs = torch.stack([net(pixels).log_softmax(1) for net in nets])
    mean = log_probs.logsumexp(0)  # the logarithm of the averaged probabilities, up to a constant
    return (mean / temperature).softmax(1)


# of an image of PIL: probabilities(transform(image.convert("RGB"))[None])"""


def _load_factory(name: str, chosen: Chosen, view: View) -> str:
    stored = chosen.results.stored
    model, n_classes = stored.spec.model, stored.facts.data.n_classes
    if chosen.what != "ensemble":
        return f"import torch\n{export.how_to_load(model, n_classes, view, f'{name}/{WEIGHTS}')}\n{ALONE}"
    first = export.how_to_load(model, n_classes, view, f"{name}/member-0/{WEIGHTS}")
    return (
        f"import copy\nfrom pathlib import Path\nimport torch\n{first}\n\nnets = []\n"
        f"for number in range({len(chosen.members)}):\n"
        f"    nets.append(copy.deepcopy(net))\n"
        f'    weights = Path({name!r}, f"member-{{number}}", {WEIGHTS!r})\n'
        f"    nets[-1].load_state_dict(safetensors.torch.load_file(weights))\n{AVERAGE}"
    )


def _exact(name: str, chosen: Chosen, view: View) -> str:
    """Python that shows images to the bit as evaluation did, of a network of timm's."""
    stored = chosen.results.stored
    place = f"{name}/member-0" if chosen.what == "ensemble" else name
    return export.how_to_load(stored.spec.model, stored.facts.data.n_classes, view, f"{place}/{WEIGHTS}")


def _is_resized(chosen: Chosen, view: View) -> bool:
    """Whether evaluation resized images, which timm's own transform then does with other rounding."""
    resized = round(view.preprocess.image_size / view.preprocess.eval_crop)
    return view.common_side is not None or min(chosen.results.stored.facts.data.test_size) != resized
