"""The user documentation: its examples run, and its tables name what there is, no less and no more."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import places
import pytest
import tiny
import yaml

from raybasin.data import images, torchvision_sets
from raybasin.jobs import prepare
from raybasin.store.schemas import COMMON, SCHEMAS, VOLATILE
from raybasin.store.schemas import KEYS as ROW_KEYS
from raybasin.sweep import plan, specs
from raybasin.sweep.facts import CheckpointFacts, ShiftFacts
from raybasin.sweep.methods import METHODS, Method
from raybasin.sweep.search import CallbackSpec, SchedulerSpec, Search

REPOSITORY = places.REPOSITORY
sys.path.insert(0, str(REPOSITORY / "docs"))
import make_columns  # noqa: E402

PAGES = {path.name: path.read_text() for path in sorted((REPOSITORY / "docs").glob("*.md"))}
SWEEP_FILE, TABLES = PAGES["sweep-file.md"], PAGES["tables.md"]


def blocks(page, language):
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page, flags=re.DOTALL | re.MULTILINE)
    return [block for _, block in found]


def table_rows(page):
    """The cells of every table row that begins with a name in backticks."""
    lines = re.findall(r"^\|( `.*)\|$", page, flags=re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines]


# sweep-file.md

SECTIONS = {
    "": specs.SweepSpec, "data.": specs.DataSpec, "model.": specs.ModelSpec, "recipe.": specs.Recipe,
    "methods.<method>.": Method, "basin.": specs.BasinSpec, "workers.": specs.Workers,
    "keep.": specs.KeepSpec, "search.": Search,
    "pretrain.": specs.Pretrain, "shifts.<shift>.": specs.ShiftSpec,
}  # fmt: skip
VALUES = {specs.PerClass, specs.ImageCount, specs.Normalise, specs.PretrainEntry, SchedulerSpec, CallbackSpec}
"""Models that are the value of one key; the page names their keys in its text."""

FIELDS = {prefix + name: field for prefix, model in SECTIONS.items() for name, field in model.model_fields.items()}
FIELDS |= {
    f"methods.<method>.{name}": field for method in METHODS.values() for name, field in method.model_fields.items()
}
KEYS = {row[0].strip("`"): row for row in table_rows(SWEEP_FILE) if len(row) >= 4}
WHOLE = yaml.safe_load(blocks(SWEEP_FILE, "yaml")[0])


def test_every_key_of_a_sweep_file_is_documented_and_no_other():
    known = {*specs.Spec.__subclasses__(), *specs.Architecture.__subclasses__()} - {specs.Architecture}
    assert known == VALUES | set(SECTIONS.values())
    assert set(KEYS) == set(FIELDS)
    for model in VALUES:
        assert all(f"`{name}`" in SWEEP_FILE or f"`{{{name}" in SWEEP_FILE or f"`{name}." in SWEEP_FILE
                   for name in model.model_fields)  # fmt: skip


@pytest.mark.parametrize("key", FIELDS)
def test_the_default_of_a_key_is_as_documented(key):
    field, documented = FIELDS[key], KEYS[key][2]
    if field.is_required():
        assert documented == "required"
    elif isinstance(field.default, specs.Spec):
        assert documented == "its defaults"
    else:
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        assert yaml.safe_load(documented.strip("`")) == default


@pytest.mark.parametrize(
    "block", [(name, block) for name, page in PAGES.items() for block in blocks(page, "yaml")], ids=lambda b: b[0]
)
def test_a_yaml_example_is_a_sweep_or_fits_into_one(block):
    specs.parse({**WHOLE, **yaml.safe_load(block[1])}, block[0])


def test_the_whole_example_writes_out_every_key_and_counts_its_cells():
    assert set(WHOLE) == set(specs.SweepSpec.model_fields)
    for section in ("data", "model", "recipe", "basin", "keep", "workers", "search"):
        assert set(WHOLE[section]) == set(SECTIONS[f"{section}."].model_fields)
    made = plan.make(specs.parse(WHOLE), tiny.facts(n_train=45000))
    assert f"= {len(made.cells)} cells" in SWEEP_FILE and f"= {len(made.members)} networks" in SWEEP_FILE


def test_every_known_data_set_is_named():
    assert all(name in SWEEP_FILE for name in torchvision_sets.TORCHVISION)


CHANGES = {
    "name": "other", "question": "Why?", "replicates": 2, "seed": 1, "soups": ["greedy"], "data__name": "other",
    "data__dir": "elsewhere", "data__image_size": 64, "data__augment": [], "data__classes": [5, 6],
    "data__train_images": 20, "data__test_images": 20, "data__validation": 0.2, "data__split_seed": 1,
    "data__decode": "workers",
    "model__name": "other", "model__factory": "a:b", "model__args": {"width": 2}, "model__head": ["fc"],
    "recipe__epochs": 3, "recipe__batch_size": 10, "recipe__lr": 0.1, "recipe__momentum": 0.5,
    "recipe__nesterov": True, "recipe__weight_decay": 0.1, "recipe__schedule_by": "epoch", "recipe__precision": "bf16",
    "recipe__deterministic": True, "recipe__cuda_graphs": False, "recipe__compile": True,
    "recipe__checkpoint_seconds": 1, "methods__star_sse__n_members": 4,
    "methods__star_sse__lr_ratio": [1, 2, 4], "methods__star_sse__cycle_ratio": [1, 2], "basin__points": 5,
    "basin__by": "nll", "basin__threshold": 0.1, "basin__bn_images": 10, "basin__pairs": "all",
    "basin__splits": ["val", "test"],
    "basin__split": "train", "basin__trace": True, "basin__trace_times": 3, "basin__trace_points": 3,
    "keep__predictions": ["val"], "workers__cpus": 2, "workers__gpus": 1, "workers__count": 2,
    "keep__weights": "soups",
    "keep__budget_gb": 1,
    "workers__hang_seconds": 9.0, "workers__accelerator_type": "A100", "workers__resources": {"disk": 1},
    "workers__labels": {"zone": "a"},
    "recipe__drop_last": True,
    "recipe__optimizer": "adamw", "recipe__betas": [0.8, 0.9], "recipe__eps": 0.1, "recipe__decay": "matrices",
    "recipe__warmup": 0.5, "recipe__warmup_lr": 0.01, "recipe__grad_clip": 1, "recipe__label_smoothing": 0.1,
    "recipe__mixup": 0.8, "recipe__cutmix": 1, "recipe__mix_prob": 0.5, "recipe__mix_switch_prob": 0.1,
    "recipe__optimizer_args": {"amsgrad": True}, "recipe__layer_decay": 0.75, "recipe__layer_decay_min_scale": 0.1,
    "recipe__freeze": ["conv1"], "recipe__head_epochs": 1, "recipe__head_lr": 0.1, "recipe__ema_decay": 0.99,
    "recipe__ema_warmup": True,
    "recipe__drop_path": 0.1, "methods__tree__chain": 3, "methods__fge__low_ratio": 0.1,
    "methods__csgld__noise_share": 0.5, "methods__csgld__temperature": 1, "methods__swag__rank": 2,
    "methods__swag__scale": 1, "methods__swag__collect_steps": 1,
}  # fmt: skip
NEEDS = {
    "basin__trace_times": {"basin__trace": True}, "basin__trace_points": {"basin__trace": True},
    "recipe__betas": {"recipe__optimizer": "adamw"}, "recipe__eps": {"recipe__optimizer": "adamw"},
    "recipe__warmup_lr": {"recipe__warmup": 0.5}, "recipe__mix_prob": {"recipe__mixup": 0.8},
    "recipe__mix_switch_prob": {"recipe__mixup": 0.8}, "recipe__optimizer_args": {"recipe__optimizer": "adamw"},
    "recipe__layer_decay_min_scale": {"recipe__layer_decay": 0.75}, "recipe__head_lr": {"recipe__head_epochs": 1},
    "recipe__ema_warmup": {"recipe__ema_decay": 0.99},
}  # fmt: skip
"""Other keys without which one has no effect."""


def consequence(spec, facts, before=None):
    """In the words of the page: what another spec and facts change for the tiny sweep."""
    old, new = (plan.make(*pair) for pair in ((before or tiny.spec(), tiny.facts()), (spec, facts)))
    assert (old.hashed == new.hashed) == (old.settings_id == new.settings_id)  # what a person compares is what counts
    if old.settings_id == new.settings_id:
        return "nothing" if old.cells == new.cells else "rows"
    if not set(old.members) & set(new.members):
        return "weights"
    assert set(old.members) == set(new.members)
    if old.eval_id != new.eval_id:
        return "predictions"
    path_ids = [{path.path_id for cell in made.cells for path in cell.paths} for made in (old, new)]
    return "cells" if path_ids[0] & path_ids[1] else "paths"


@pytest.mark.parametrize("key", CHANGES)
def test_what_a_key_changes_is_as_documented(key):
    documented = re.sub(r"^methods__[a-z_]+?__", "methods.<method>.", key).replace("__", ".")
    needs = NEEDS.get(key, {})
    if key.startswith("methods__"):  # another value of a key that the method takes
        needs = {key.rpartition("__")[0]: {}}
    before, after = tiny.spec(**needs), tiny.spec(**{**needs, key: CHANGES[key]})
    if key.startswith("methods__star_sse"):
        before, after = tiny.spec(), tiny.spec(**{key: CHANGES[key]})
    assert consequence(after, tiny.facts(), before) == KEYS[documented][3]


@pytest.mark.parametrize(
    "key",
    [k for k, row in KEYS.items()
     if row[3] and not k.startswith(("pretrain.", "shifts.", "search")) and k != "methods"],
)  # fmt: skip
def test_every_change_that_is_documented_is_tested(key):
    two = (*tiny.facts().checkpoints, CheckpointFacts("b", "d" * 64))
    in_facts = {
        "data.normalise": {"mean": (0.0, 0.0, 0.0)},
        "data.eval_crop": {"eval_crop": 0.5},
        "data.interpolation": {"interpolation": "bicubic"},
        "model.pretrained": {"checkpoints": two},
        "shifts": {"shifts": (ShiftFacts("fog", "e" * 64, 10),)},
    }
    if key in in_facts:  # resolved before the plan is made
        assert consequence(tiny.spec(), tiny.facts(**in_facts[key])) == KEYS[key][3]
    else:
        tested = {re.sub(r"^methods__[a-z_]+?__", "methods__<method>__", change) for change in CHANGES}
        assert key.replace(".", "__") in tested


# data-sets.md


def test_the_data_sets_of_the_paper_are_documented_with_their_sizes_and_metrics():
    rows = re.findall(r"^\| (\w+) \|.*\|$", PAGES["data-sets.md"], flags=re.MULTILINE)
    sized = {name: one for name, one in torchvision_sets.TORCHVISION.items() if one.sizes}
    assert set(rows) == set(sized)
    for name, one in sized.items():
        cells = re.search(rf"^\| {name} \|(.*)\|$", PAGES["data-sets.md"], flags=re.MULTILINE).group(1).split("|")
        _, _, metric, n_train, _, n_test, _ = (cell.strip() for cell in cells)
        assert (f"{one.sizes[0]:,}", f"{one.sizes[1]:,}") == (n_train, n_test)
        assert metric == {"accuracy": "accuracy", "mean_class_accuracy": "mean per class"}[one.metric]


def test_the_endings_of_images_are_documented():
    listed = PAGES["data-sets.md"].split("these endings are read")[1].split("all that Pillow has")[0]
    assert set(re.findall(r"`(\.\w+)`", listed)) == set(images.IMAGE_SUFFIXES)


def test_the_python_of_the_data_sets_page_lays_out_folders_that_are_read(tmp_path, monkeypatch):
    from images import encoded

    from raybasin.data import dataset

    monkeypatch.chdir(tmp_path)
    findings = {"1.png": "Mass", "2.png": "Nodule", "3.png": "Mass|Nodule", "4.png": "No Finding", "5.png": "Mass",
                "6.png": "Nodule", "7.png": "Pneumonia"}  # fmt: skip
    (tmp_path / "ChestX-ray14" / "images_001").mkdir(parents=True)
    for name in findings:
        (tmp_path / "ChestX-ray14" / "images_001" / name).write_bytes(encoded(9, (300, 300), mode="L"))
    lines = ["Image Index,Finding Labels,Follow-up #", *(f"{name},{label},0" for name, label in findings.items())]
    (tmp_path / "ChestX-ray14" / "Data_Entry_2017.csv").write_text("\n".join(lines))
    (tmp_path / "ChestX-ray14" / "train_val_list.txt").write_text("1.png\n2.png\n3.png\n4.png\n7.png")
    (tmp_path / "ChestX-ray14" / "test_list.txt").write_text("5.png\n6.png")
    for split in ("train", "test"):
        names = []
        for label, name in enumerate(("axe", "bat")):
            for i in range(2):
                path = tmp_path / "DomainNet" / "clipart" / name / f"{split}{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(10 * label + i))
                names.append(f"clipart/{name}/{path.name} {label}")
        (tmp_path / "DomainNet" / f"clipart_{split}.txt").write_text("\n".join(names))
    for block in blocks(PAGES["data-sets.md"], "python"):
        exec(compile(block, "data-sets.md", "exec"), {})
    assert sorted(str(path) for path in Path("chestx").rglob("*.png")) == [
        "chestx/test/Mass/5.png", "chestx/test/Nodule/6.png", "chestx/train/Mass/1.png", "chestx/train/Nodule/2.png",
    ]  # fmt: skip
    clipart = dataset.index(specs.DataSpec(name="clipart", dir="clipart", validation={"images": 1}))
    assert (len(clipart.train), len(clipart.val), len(clipart.test), clipart.classes.names) == (3, 1, 4, ("axe", "bat"))


# searching.md


def test_the_first_example_of_a_search_is_a_whole_sweep():
    whole = specs.parse(yaml.safe_load(blocks(PAGES["searching.md"], "yaml")[0]), "random.yaml")
    made = prepare.prepare(whole).plan
    assert len(made.cells) == whole.search.points + 1 == 13


def test_what_the_examples_of_searches_name_can_be_plugged_in(tmp_path, monkeypatch):
    for package in ("ray", "optuna", "mlflow", "wandb", "tensorboardX"):
        pytest.importorskip(package)
    from raybasin.cluster import search

    own = next(block for block in blocks(PAGES["searching.md"], "python") if "class Halving" in block)
    (tmp_path / "my_search.py").write_text(own)
    monkeypatch.syspath_prepend(tmp_path)
    trees = [yaml.safe_load(block) for block in blocks(PAGES["searching.md"], "yaml")[1:]]
    made = [search.plugins(specs.parse({**WHOLE, **tree}).search) for tree in trees]
    named = [type(plug).__name__ for one in made for plug in (one.searcher, one.scheduler, *one.callbacks) if plug]
    assert named == ["OptunaSearch", "AsyncHyperBandScheduler", "TBXLoggerCallback", "MLflowLoggerCallback",
                     "WandbLoggerCallback", "Halving"]  # fmt: skip
    halving = made[-1].searcher
    for number in range(6):
        rate = halving.suggest(str(number))["lr_ratio"]
        halving.on_trial_complete(str(number), {"barrier_error": 0.0 if rate < 5 else 0.1})
    assert halving.low < 5 < halving.high < 1.1 * halving.low


# tables.md


def section(title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", TABLES, flags=re.DOTALL | re.MULTILINE).group(1)


def test_the_columns_of_the_tables_page_are_those_of_the_schemas():
    """`make docs` makes them."""
    assert make_columns.with_columns(TABLES) == TABLES


@pytest.mark.parametrize("table", SCHEMAS)
def test_every_column_of_a_table_is_documented_and_no_other(table):
    shared, own = ([row[0].strip("`") for row in table_rows(section(title)) if row[0].count("`") == 2]
                   for title in ("Columns of every table", table))  # fmt: skip
    assert tuple(shared) == COMMON
    assert [*shared[:5], *own, *shared[5:]] == SCHEMAS[table].names


@pytest.mark.parametrize("table", SCHEMAS)
def test_the_key_of_a_table_is_as_documented(table):
    line = re.search(r"^Key: (.*?)\.", section(table), flags=re.MULTILINE).group(1)
    assert tuple(re.findall(r"`(\w+)`", line)) == ROW_KEYS[table]


def test_the_python_of_the_tables_page_runs_from_top_to_bottom(finished, tmp_path, monkeypatch, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "digits").symlink_to(finished.folder.root)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(TABLES, "python"):
        exec(compile(block, "tables.md", "exec"), names)
    said = capsys.readouterr().out
    assert f"4 cells, {len(finished.plan.members)} members, 0 failures" in said and "accuracy without the hub" in said
    assert len(names["hub"]) == 50  # the last of that name: predictions on test


# All pages


@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_every_page_is_python(page):
    for block in blocks(PAGES[page], "python"):
        compile(block, page, "exec")


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_options_exist(page):
    import typer.main

    from raybasin.cli import app

    known = typer.main.get_command(app).commands
    text = "\n".join(blocks(PAGES[page], "bash")).replace("\\\n", " ")
    for line in text.splitlines():
        found = re.search(r"(?:^|-m )raybasin (.*)", line)
        if found:
            words = shlex.split(found.group(1), comments=True)
            while words[0] == "submit":  # what is submitted is a command of its own
                at = next(i for i in range(1, len(words)) if words[i] in known)
                assert {word for word in words[1:at] if word.startswith("-")} <= {"--address", "--python"}, line
                words = words[at:]
            command, *arguments = words
            found = known[command]
            if command == "settings":  # a group of commands
                found, arguments = found.commands[arguments[0]], arguments[1:]
            options = {option for parameter in found.params for option in parameter.opts}
            assert {a for a in arguments if a.startswith("-")} <= options, line


def anchors(text):
    """As GitHub makes them from headings."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        name, _, anchor = target.partition("#")
        if "://" not in target:
            file = REPOSITORY / "docs" / (name or page)
            assert file.exists(), target
            assert not anchor or anchor in anchors(file.read_text()), target


def test_no_file_names_a_folder_of_the_machine_it_was_written_on():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=REPOSITORY, capture_output=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    needles = [os.sep + name + os.sep for name in ("work", "root")]
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = REPOSITORY / name
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" not in content:  # images
            assert not any(needle in content.decode(errors="replace") for needle in needles), name


def test_the_columns_that_differ_between_two_runs_are_as_documented():
    section = TABLES.split("## What two runs have in common")[1].split("\n## ")[0]
    listed = section.split("when and how fast:")[1].split("(`device`")[0]
    assert set(re.findall(r"`(\w+)`", listed)) - {"failures"} == VOLATILE
