"""Every key of a sweep file and every fact of its inputs, changed one at a time: which ids change, and which must not.

The table says it for each; that none is left out, and that docs/sweep-file.md says the same, is checked too.
"""

import dataclasses
import re

import pytest
import tiny
from test_docs import CHANGES, KEYS, NEEDS

from raybasin.sweep import ids, plan, specs
from raybasin.sweep.facts import CheckpointFacts, DataFacts, Preprocess, ShiftFacts

ALL = ("members", "eval", "cells", "settings")
BY_WORD = {
    "nothing": (),
    "weights": ("members", "cells", "settings"),
    "predictions": ("eval", "cells", "settings"),
    "paths": ("cells", "settings"),
    "cells": ("cells", "settings"),
}
"""Which ids change, by what docs/sweep-file.md says in its column "changes". (`rows`: other cells, beside the same.)"""

FACTS = {
    "data.train_fingerprint": ("d" * 64, ALL),
    "data.test_fingerprint": ("d" * 64, ("eval", "cells", "settings")),
    "data.train_size": ((64, 64), ALL),
    "data.test_size": ((64, 64), ("eval", "cells", "settings")),
    "preprocess.image_size": (64, ALL),
    "preprocess.eval_crop": (0.5, ALL),
    "preprocess.mean": ((0.1, 0.1, 0.1), ALL),
    "preprocess.std": ((0.1, 0.1, 0.1), ALL),
    "preprocess.interpolation": ("bicubic", ALL),
    "data.metric": ("mean_class_accuracy", ()),
    "data.source": ("elsewhere", ()),
    "data.n_stored": (1000, ()),
    "data.per_class": (((1,), (2,), (3,)), ()),
    "data.notes": (("something",), ()),
    "checkpoint.key": ("d" * 64, ("members", "cells")),
    "checkpoint.name": ("other", ()),
    "checkpoint.taken": ("EMA weights", ()),
}
FOLLOWS = {"data.n_train", "data.n_val", "data.n_test", "data.n_classes", "data.class_names", "checkpoint.pretrain",
           "checkpoint.seed"}  # fmt: skip
"""Facts that follow from those above and from the sweep file."""


def ids_of(made):
    """All ids of a plan, by what they name."""
    return {
        "members": set(made.members), "eval": {made.eval_id}, "cells": set(made.cell), "settings": {made.settings_id}
    }  # fmt: skip


def changed(before, after):
    old, new = ids_of(before), ids_of(after)
    assert (before.hashed == after.hashed) == (before.settings_id == after.settings_id)
    for kind in old:
        assert old[kind] == new[kind] or not old[kind] & new[kind], f"{kind}: some change and some do not"
    return tuple(kind for kind in old if old[kind] != new[kind])


def part_of(facts, key):
    part, _, field = key.partition(".")
    return (facts.checkpoints[0] if part == "checkpoint" else getattr(facts, part)), field


@pytest.mark.parametrize("key", FACTS)
def test_a_fact_of_the_inputs_changes_just_these_ids(key):
    facts, (value, expected) = tiny.facts(), FACTS[key]
    part, field = part_of(facts, key)
    assert getattr(part, field) != value
    other = dataclasses.replace(part, **{field: value})
    name = key.partition(".")[0]
    changes = {"checkpoints": (other,)} if name == "checkpoint" else {name: other}
    after = plan.make(tiny.spec(), dataclasses.replace(facts, **changes))
    assert changed(plan.make(tiny.spec(), facts), after) == expected


def test_no_fact_is_left_out():
    parts = {"data": DataFacts, "preprocess": Preprocess, "checkpoint": CheckpointFacts}
    every = {f"{name}.{field.name}" for name, part in parts.items() for field in dataclasses.fields(part)}
    assert every == set(FACTS) | FOLLOWS


OTHER_SHIFT = {"name": "rain", "fingerprint": "f" * 64, "n_images": 51, "notes": ("something",)}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ShiftFacts)])
def test_a_shift_set_trains_nothing_whatever_becomes_of_it(field):
    shift = ShiftFacts("fog", "e" * 64, 50)
    other = dataclasses.replace(shift, **{field: OTHER_SHIFT[field]})
    before, after = (plan.make(tiny.spec(), dataclasses.replace(tiny.facts(), shifts=(s,))) for s in (shift, other))
    assert set(before.members) == set(after.members) and before.eval_id == after.eval_id


@pytest.mark.parametrize("key", CHANGES)
def test_a_key_of_the_sweep_file_changes_just_these_ids(key):
    word = KEYS[re.sub(r"^methods__[a-z_]+?__", "methods.<method>.", key).replace("__", ".")][3]
    if word == "rows":
        pytest.skip("more or other cells, beside the same")
    needs = NEEDS.get(key, {})
    before, after = tiny.spec(**needs), tiny.spec(**{**needs, key: CHANGES[key]})
    made = changed(plan.make(before, tiny.facts()), plan.make(after, tiny.facts()))
    if word == "weights":  # what changes training data changes predictions as well
        assert {"members", "cells", "settings"} <= set(made)
    else:
        assert made == BY_WORD[word]


OF_PRETRAINING = {key: value for key, value in CHANGES.items() if key.startswith(("data__", "recipe__"))}
OF_PRETRAINING["data__augment"] = ["flip"]  # it has none to begin with
OF_FINE_TUNING = {"recipe__freeze", "recipe__head_epochs", "recipe__head_lr"}
"""Keys that a pretrain entry may not have, since it starts from random weights."""
NO_OTHER_CHECKPOINT = {
    "data__name",
    "data__dir",
    "data__decode",
    "data__test_images",
    "recipe__cuda_graphs",
    "recipe__checkpoint_seconds",
}


def task(**changes):
    """The tiny sweep's pretrain entry with a key changed."""
    made = tiny.tree()["model"]["pretrained"][0]["pretrain"]
    for path, value in changes.items():
        part, _, key = path.partition("__")
        made[part][key] = value
    return specs.parse(tiny.tree(model__pretrained=[{"pretrain": made}])).model.pretrained[0].pretrain


def pretrain_key(entry, seed=0):
    facts = tiny.facts()
    return ids.pretrain_key(entry, seed, tiny.spec().model, facts.data, facts.preprocess)


@pytest.mark.parametrize("key", [key for key in OF_PRETRAINING if key not in OF_FINE_TUNING])
def test_a_key_of_a_pretrain_entry_makes_another_checkpoint_or_is_listed(key):
    needs = NEEDS.get(key, {})
    one, other = task(**needs), task(**{**needs, key: OF_PRETRAINING[key]})
    assert one != other
    assert (pretrain_key(one) == pretrain_key(other)) == (key in NO_OTHER_CHECKPOINT)


def test_another_seed_of_a_pretrain_entry_is_another_checkpoint():
    assert pretrain_key(task()) != pretrain_key(task(), seed=1)


def test_every_key_of_data_and_recipe_is_among_them():
    resolved = {"data__normalise", "data__eval_crop", "data__interpolation"}  # as facts, above
    parts = {"data": specs.DataSpec, "recipe": specs.Recipe}
    every = {f"{name}__{key}" for name, part in parts.items() for key in part.model_fields}
    assert every == set(OF_PRETRAINING) | resolved


def test_what_is_resolved_from_the_model_is_resolved_into_a_pretrain_key_too():
    facts = tiny.facts()
    for field, value in (("eval_crop", 0.5), ("mean", (0.0,) * 3), ("std", (1.0,) * 3), ("interpolation", "bicubic")):
        shown = dataclasses.replace(facts.preprocess, **{field: value})
        assert ids.pretrain_key(task(), 0, tiny.spec().model, facts.data, shown) != pretrain_key(task())
