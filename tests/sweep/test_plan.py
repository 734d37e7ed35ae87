"""What changes an id and what does not, who descends from whom, and what is left to do."""

import dataclasses
import json

import places
import pytest
import tiny

from raybasin.errors import UserError
from raybasin.sweep import ids, methods, plan, specs
from raybasin.sweep.facts import CheckpointFacts, facts_from_dict, facts_to_dict
from raybasin.sweep.job_list import Done, jobs_left

FILES = {"model__pretrained": ["first.pth"]}


def made(facts=None, **changes):
    """The plan of the tiny sweep, which starts here from a file."""
    return plan.make(tiny.spec(**{**FILES, **changes}), facts or tiny.facts())


def cell_of(found, method, lr_ratio=1.0, cycle_ratio=1.0, replicate=0):
    return next(
        c for c in found.cells
        if (c.point.method, c.point.lr_ratio) == (method, lr_ratio)
        and (c.point.cycle_ratio, c.point.replicate) == (cycle_ratio, replicate)
    )  # fmt: skip


def paths_of(found):
    return {(cell.cell_id, path.path_id) for cell in found.cells for path in cell.paths}


def everything_done(found):
    predictors = {*found.members, *(soup for cell in found.cells for soup in plan.soup_ids(found.spec, cell))}
    return Done(checkpoints={c.key for c in found.facts.checkpoints}, members=set(found.members),
                predictions={(predictor_id, found.eval_id) for predictor_id in predictors},
                cells=set(found.cell), paths=paths_of(found))  # fmt: skip


# What changes no weights trains nothing again

SAME_MEMBERS = {
    "a larger ensemble": {
        "methods": {"star_sse": {"n_members": 5, "lr_ratio": [1, 4]}, "sse": {"n_members": 4},
                    "local_de": {"n_members": 4}}
    },
    "more rates": {
        "methods": {"star_sse": {"n_members": 3, "lr_ratio": [0.5, 1, 2, 4]}, "sse": {"n_members": 3},
                    "local_de": {"n_members": 3}}
    },
    "more lengths": {
        "methods": {"star_sse": {"n_members": 3, "lr_ratio": [1, 4], "cycle_ratio": [1, 2]}, "sse": {"n_members": 3},
                    "local_de": {"n_members": 3}}
    },
    "more replicates": {"replicates": 3},
    "another threshold": {"basin__threshold": 0.1},
    "more points": {"basin__points": 5},
    "every pair": {"basin__pairs": "all"},
    "paths on test too": {"basin__splits": ["val", "test"]},
    "more images for batch norm": {"basin__bn_images": 30},
    "other workers": {"workers": {"cpus": 2, "gpus": 1, "count": 3}},
    "state saved more often": {"recipe__checkpoint_seconds": 0},
    "other test images": {"data__test_images": 20},
    "other soups": {"soups": ["uniform"]},
    "another name": {"name": "b", "question": "why?"},
    "data elsewhere": {"data__dir": "elsewhere"},
    "data by another name": {"data__name": "same-images"},
    "a default spelt out": {"recipe__momentum": 0.9, "seed": 0},
    "defaults of the model spelt out": {
        "data__normalise": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}, "data__interpolation": "bilinear",
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", SAME_MEMBERS.values(), ids=SAME_MEMBERS)
def test_no_member_gets_another_id_by(changes):
    before, after = made(), made(**changes)
    assert set(before.members) <= set(after.members)
    assert all(after.members[member_id].seed == member.seed for member_id, member in before.members.items())


def test_no_member_gets_another_id_by_other_stored_test_images():
    after = made(tiny.facts(test_fingerprint="d" * 64, n_test=7))
    assert set(after.members) == set(made().members)


NEW_MEMBERS = {
    "epochs": {"recipe__epochs": 3},
    "batch size": {"recipe__batch_size": 10},
    "rate": {"recipe__lr": 0.03},
    "momentum": {"recipe__momentum": 0.8},
    "nesterov": {"recipe__nesterov": True},
    "weight decay": {"recipe__weight_decay": 0.0},
    "schedule": {"recipe__schedule_by": "epoch"},
    "precision": {"recipe__precision": "bf16"},
    "determinism": {"recipe__deterministic": True},
    "seed": {"seed": 1},
    "augmentation": {"data__augment": ["flip"]},
    "classes": {"data__classes": [5, 6]},
    "training images": {"data__train_images": {"per_class": 7}},
    "validation": {"data__validation": 0.2},
    "split seed": {"data__split_seed": 1},
    "model": {"model__name": "resnet50"},
}


@pytest.mark.parametrize("changes", NEW_MEMBERS.values(), ids=NEW_MEMBERS)
def test_every_member_gets_another_id_by_another(changes):
    assert not set(made().members) & set(made(**changes).members)


NEW_FACTS = {
    "stored training image": {"train_fingerprint": "d" * 64},
    "checkpoint": {"checkpoints": (CheckpointFacts("first", "d" * 64),)},
    "image size": {"image_size": 64},
    "crop": {"eval_crop": 0.9},
    "mean": {"mean": (0.5, 0.5, 0.4)},
    "standard deviation": {"std": (0.2, 0.2, 0.3)},
    "interpolation": {"interpolation": "bicubic"},
}


@pytest.mark.parametrize("changes", NEW_FACTS.values(), ids=NEW_FACTS)
def test_every_member_gets_another_id_by_another_found(changes):
    assert not set(made().members) & set(made(tiny.facts(**changes)).members)


def test_a_checkpoint_by_another_name_is_the_same_checkpoint():
    renamed = made(tiny.facts(checkpoints=(CheckpointFacts("second", "c" * 64),)))
    assert set(renamed.members) == set(made().members)


def test_no_id_survives_new_numerics(monkeypatch):
    before = made()
    settings = before.settings_id, before.eval_id
    monkeypatch.setattr(ids, "RESULTS_VERSION", ids.RESULTS_VERSION + 1)
    after = made()
    assert not set(before.members) & set(after.members)
    assert not set(before.cell) & set(after.cell)
    assert not {*settings} & {after.settings_id, after.eval_id}


def test_the_ids_of_the_tiny_plan_are_what_they_always_were():
    found = made()
    assert cell_of(found, "star_sse", 4.0).member_ids == ("b5882c47b2b0f8fb", "0620d53ac4bcc452", "acb1ddf79721766a")
    assert cell_of(found, "star_sse", 4.0).cell_id == "d0064cead56d5351"
    assert cell_of(made(soups=["greedy"]), "star_sse", 4.0).cell_id == "a2effebf70f0e504"  # and these


EVERY_METHOD = {
    "star_sse": {"n_members": 4}, "sse": {"n_members": 4, "lr_ratio": 2}, "tree": {"n_members": 4, "chain": 3},
    "fge": {"n_members": 3}, "csgld": {"n_members": 3}, "swag": {"n_members": 3, "cycle_ratio": 4},
    "local_de": {"n_members": 2}, "global_de": {"n_members": 2},
}  # fmt: skip
TWO = (CheckpointFacts("first", "c" * 64), CheckpointFacts("second", "d" * 64))
RECORDED = {
    "star_sse": "adaa499468177e50 8a50a6a98ec5f8d9 2f5f1d11a8a72d8e 42dce2d1ed746443 8d8f40fcd5bf19d0 53e69e8acfac1284",
    "sse": "b1b5a72c285052c3 54dbda50ad365e6d 4ecec408d9c97853 969ca07898e264e7 27fccb0225a1ef47 ce494195f4947b67",
    "tree": "7dced2e275342e84 6f5abf0077901692 cc60083d4a8c4f82 5a4868a1ab345372 8d8f40fcd5bf19d0 326770a8a21e45ea",
    "fge": "24d615b1635136e7 b6978806f4a7fc8c bd6fb0e5cc04801b e678595b87c96fd8 7b666cf2a3c9c2b0 727410cca59f6526",
    "csgld": "7a901457bd73a96d aff677bb200e0bac aa6a96a59d9f830b 8e64cc26a2d9fad6 ee92c5e0aa7ca67d 2e7cb755433832ac",
    "swag": "eee3d12a559bba46 a3cb51035bce9ce1 ef8c65cf8d0e0bda 2b77dc2f9eff3cf3 0bacbc986c39f750 25e02c443a400e71",
    "local_de": "d06b22a324c6bbd0 ffda78cb03fd6008 a73fb18a01035817 - 3a28e00f7a648c92 c967ef846a9be8cb",
    "global_de": "ab7a9e77b8e35e97 00647ff4363e6f11 659edf3b589e2ff8 - 6343f373290ea055 ffa76754c6e8218a",
}
"""By method the ids of its cell, of the last run, path and trace of that, and of its first and last soup: folders of
users are full of them."""


def test_the_ids_of_every_method_are_what_they_always_were():
    found = made(
        tiny.facts(checkpoints=TWO), model__pretrained=["a.pth", "b.pth"], methods=EVERY_METHOD, basin__trace=True
    )
    ids_of = {
        cell.point.method: " ".join([
            cell.cell_id, cell.trained_ids[-1], cell.paths[-1].path_id,
            cell.traces[-1].trace_id if cell.traces else "-",
            *(plan.soup_ids(found.spec, cell)[place] for place in (0, -1)),
        ])
        for cell in found.cells
        if cell.point.checkpoint == TWO[0]
    }  # fmt: skip
    assert ids_of == RECORDED
    assert (found.settings_id, found.eval_id) == ("7c4401e2ab4cb683", "2507845dc0e252bb")
    assert (found.training_id, found.measuring_id) == ("7cd28a64c0484401", "88c94a232fb319e4")
    last = found.members[cell_of(found, "star_sse").trained_ids[-1]]
    assert last.seed == 4930027141411804147 and len(found.members) == 34


def test_the_soups_of_a_long_chain_have_the_ids_that_they_have_one_by_one():
    members = [ids.digest(number) for number in range(30)]
    expected = [ids.soup_id("uniform", members[:size]) for size in range(2, 31)]
    assert list(ids.uniform_soup_ids(members)) == expected
    for soups in ([], ["uniform"], ["greedy"], ["greedy", "uniform"]):
        found = made(soups=soups)
        assert all(plan.n_soups(found.spec, cell) == len(plan.soup_ids(found.spec, cell)) for cell in found.cells)


def test_equal_rates_written_differently_are_the_same_rate():
    """3 * 0.1 is not 0.3 in binary: the rate is rounded to 12 digits before it is hashed."""
    one = {"star_sse": {"n_members": 2, "lr_ratio": 3}}
    thrice = cell_of(made(recipe__lr=0.1, methods=one), "star_sse", 3.0)
    once = cell_of(made(recipe__lr=0.3, methods={"star_sse": {"n_members": 2}}), "star_sse")
    assert thrice.max_lr == once.max_lr == 0.3


# Lineage


def parents(found, cell):
    return [found.members[member_id].parent_id for member_id in cell.member_ids]


def test_every_branch_of_star_sse_starts_from_the_hub():
    found = made()
    cell = cell_of(found, "star_sse")
    hub, *branches = cell.member_ids
    assert parents(found, cell) == [None, hub, hub]
    assert len(set(branches)) == 2


def test_every_cycle_of_sse_starts_from_the_one_before():
    found = made()
    cell = cell_of(found, "sse")
    assert parents(found, cell) == [None, *cell.member_ids[:-1]]


def test_members_of_local_de_start_from_the_checkpoint_with_seeds_of_their_own():
    found = made()
    cell = cell_of(found, "local_de")
    assert parents(found, cell) == [None, None, None]
    assert len({found.members[member_id].seed for member_id in cell.member_ids}) == 3


def test_lineages_are_known_for_every_method_that_a_sweep_may_name():
    assert set(methods.METHODS) == set(specs.METHODS)


def test_a_hub_is_shared_by_all_cells_of_a_replicate_and_by_no_others():
    found = made(replicates=2)
    hubs = {replicate: {c.member_ids[0] for c in found.cells if c.point.replicate == replicate} for replicate in (0, 1)}
    assert len(hubs[0]) == len(hubs[1]) == 1
    assert hubs[0] != hubs[1]
    (hub_id,) = hubs[0]
    hub = found.members[hub_id]
    assert (hub.point.method, hub.member_index, hub.point.lr_ratio, hub.point.cycle_ratio) == ("hub", 0, 1.0, 1.0)


def test_the_same_index_has_the_same_seed_in_every_cell_of_a_replicate():
    """So cells are paired: their members see the same batches."""
    found = made(replicates=2)
    seeds = {}
    for cell in found.cells:
        for index, member_id in enumerate(cell.member_ids):
            seeds.setdefault((cell.point.replicate, index), set()).add(found.members[member_id].seed)
    assert all(len(same) == 1 for same in seeds.values())
    assert len({seed for same in seeds.values() for seed in same}) == len(seeds) == 6


def test_cells_of_different_rates_or_lengths_share_only_the_hub():
    """Trap: in the authors' sweep the cell's rate and length are in no file name."""
    grid = {"star_sse": {"n_members": 3, "lr_ratio": [1, 2], "cycle_ratio": [0.5, 1]}}
    found = made(methods=grid)
    assert len(found.cells) == len(found.cell) == 4
    assert len(found.members) == 1 + 4 * 2
    assert len({(c.max_lr, c.cycle_epochs) for c in found.cells}) == 4


def test_lengths_and_rates_are_resolved():
    found = made(methods={"sse": {"n_members": 2, "lr_ratio": 4, "cycle_ratio": 0.75}})
    (cell,) = found.cells
    hub, cycle = (found.members[member_id] for member_id in cell.member_ids)
    assert (hub.max_lr, hub.cycle_steps, hub.cycle_epochs) == (0.02, 4, 2.0)
    assert (cycle.max_lr, cycle.cycle_steps, cycle.cycle_epochs) == (0.08, 3, 1.5)
    assert (cell.max_lr, cell.cycle_epochs) == (0.08, 1.5)


def test_each_checkpoint_has_its_own_hubs_and_cells():
    both = tiny.facts(checkpoints=(CheckpointFacts("first", "c" * 64), CheckpointFacts("second", "e" * 64)))
    found = made(both, model__pretrained=["first.pth", "second.pth"])
    assert len(found.cells) == 2 * len(made().cells)
    assert set(made().members) < set(found.members)
    assert all({found.members[m].point.checkpoint for m in c.member_ids} == {c.point.checkpoint} for c in found.cells)


# Paths


def path_ends(cell):
    position = {member_id: k for k, member_id in enumerate(cell.member_ids)}
    return [(p.kind, position[p.start_id], position[p.end_id]) for p in cell.paths]


def test_paths_go_from_the_hub_to_each_member_and_from_member_to_member():
    four = {"methods": {"star_sse": {"n_members": 4}}}
    spokes = [("hub-member", 0, 1), ("hub-member", 0, 2), ("hub-member", 0, 3)]
    (consecutive,) = made(**four).cells
    assert path_ends(consecutive) == [*spokes, ("member-member", 1, 2), ("member-member", 2, 3)]
    (every,) = made(**four, basin__pairs="all").cells
    between = [("member-member", 1, 2), ("member-member", 1, 3), ("member-member", 2, 3)]
    assert path_ends(every) == [*spokes, *between]


def test_two_members_have_one_path():
    (cell,) = made(methods={"sse": {"n_members": 2}}).cells
    assert path_ends(cell) == [("hub-member", 0, 1)]


# Errors


@pytest.mark.parametrize(
    ("method", "ratios", "text"),
    [
        ("star_sse", [1, 0.1], "methods.star_sse.cycle_ratio: 0.1 of 2 epochs of 2 steps is a cycle of 0 steps"),
        ("sse", [0.5, 1, 1.01], "methods.sse.cycle_ratio: 1.01 of 2 epochs of 2 steps is 4 steps, as is 1;"),
    ],
)
def test_cycles_without_length_or_of_equal_length_are_errors_that_name_the_method(method, ratios, text):
    with pytest.raises(UserError) as caught:
        made(methods={method: {"n_members": 3, "cycle_ratio": ratios}})
    assert str(caught.value).startswith(text)


def test_ratios_that_are_one_rate_when_rounded_are_an_error():
    """They would be two cells of one id."""
    with pytest.raises(UserError, match=r"methods\.sse\.lr_ratio: 0\.30000000000000004 and 0\.3 are the same rate"):
        made(methods={"sse": {"n_members": 2, "lr_ratio": [0.3, 0.1 * 3]}})


def test_a_length_that_is_cut_to_no_epoch_is_an_error():
    with pytest.raises(UserError, match=r"methods\.sse\.cycle_ratio: 0\.4 of 2 epochs .* a cycle of 0 steps"):
        made(recipe__schedule_by="epoch", methods={"sse": {"n_members": 2, "cycle_ratio": 0.4}})


# Jobs


def needed_before(job, jobs):
    return set(job.needs) <= {other.job_id for other in jobs[: jobs.index(job)]}


def test_jobs_are_everything_once_each_after_what_it_needs():
    found = made(replicates=2)
    jobs = jobs_left(found, Done())
    assert all(needed_before(job, jobs) for job in jobs)
    units = {kind: sorted(job.unit for job in jobs if job.kind == kind) for kind in ("member", "path", "cell")}
    assert units == {
        "member": sorted(found.members),
        "path": sorted(f"{cell_id}-{path_id}" for cell_id, path_id in paths_of(found)),
        "cell": sorted(found.cell),
    }
    assert len(jobs) == sum(map(len, units.values()))
    assert all(job.job_id == f"{job.kind}-{job.unit}" for job in jobs)


def test_jobs_need_the_parent_the_ends_and_the_members():
    found = made()
    jobs = {job.job_id: job for job in jobs_left(found, Done())}
    cell = cell_of(found, "sse")
    hub, first, second = cell.member_ids
    assert jobs[f"member-{hub}"].needs == ()
    assert jobs[f"member-{second}"].needs == (f"member-{first}",)
    path = cell.paths[-1]
    assert (path.start_id, path.end_id) == (first, second)
    assert jobs[f"path-{cell.cell_id}-{path.path_id}"].needs == (f"member-{first}", f"member-{second}")
    wanted = {f"member-{m}" for m in cell.member_ids}
    wanted |= {f"path-{cell.cell_id}-{p.path_id}" for p in cell.paths}
    assert set(jobs[f"cell-{cell.cell_id}"].needs) == wanted


def test_a_path_or_trace_of_two_cells_is_measured_once_and_copied():
    changes = {"methods": {"star_sse": {"n_members": 2}, "sse": {"n_members": 2}}, "basin__trace": True}
    found = made(**changes)
    star, chain = found.cells
    assert star.member_ids == chain.member_ids and star.cell_id != chain.cell_id
    jobs = {(job.kind, job.task.cell_id): job for job in jobs_left(found, Done()) if job.kind in ("path", "trace")}
    for kind in ("path", "trace"):
        measured, copied = jobs[kind, star.cell_id], jobs[kind, chain.cell_id]
        assert measured.cost > 0 and not measured.task.copy_of
        assert (copied.cost, copied.needs, copied.task.copy_of) == (0, (measured.job_id,), measured.unit)
    before = Done(members=set(found.members), paths={("earlier", star.paths[0].path_id)})
    paths = [job for job in jobs_left(found, before) if job.kind == "path"]
    assert [(job.needs, job.task.copy_of) for job in paths] == [((), f"earlier-{star.paths[0].path_id}")] * 2


def test_a_hub_needs_the_checkpoint_that_is_yet_to_be_made():
    facts = tiny.facts(
        checkpoints=(CheckpointFacts("digits-seed0", "f" * 16, pretrain=0),), pretrain_data={0: tiny.facts().data}
    )
    found = plan.make(tiny.spec(), facts)
    jobs = {job.job_id: job for job in jobs_left(found, Done())}
    first = next(iter(jobs.values()))
    assert (first.job_id, first.kind, first.needs) == (f"checkpoint-{'f' * 16}", "checkpoint", ())
    for member in found.members.values():
        origin = f"member-{member.parent_id}" if member.parent_id else first.job_id
        assert jobs[f"member-{member.member_id}"].needs == (origin,)
    assert not any(job.kind == "checkpoint" for job in jobs_left(found, Done(checkpoints={"f" * 16})))


def test_nothing_is_left_where_all_cells_are_committed():
    found = made()
    assert jobs_left(found, everything_done(found)) == []
    # Nor are members wanted again that only committed cells need.
    assert jobs_left(found, Done(cells=set(found.cell))) == []


def test_of_one_open_cell_only_what_is_missing_is_left():
    found = made()
    cell = cell_of(found, "sse")
    last, path = cell.member_ids[-1], cell.paths[0]
    whole = everything_done(found)
    done = dataclasses.replace(
        whole, cells=whole.cells - {cell.cell_id}, members=whole.members - {last},
        paths=whole.paths - {(cell.cell_id, path.path_id)},
    )  # fmt: skip
    left = {job.job_id: job.needs for job in jobs_left(found, done)}
    path_job = f"path-{cell.cell_id}-{path.path_id}"
    assert left == {
        f"member-{last}": (),
        path_job: (),
        f"cell-{cell.cell_id}": (f"member-{last}", path_job),
    }


def test_members_trained_under_other_evaluation_settings_have_only_to_predict_again():
    before, after = made(), made(basin__bn_images=30)
    jobs = jobs_left(after, everything_done(before))
    assert {job.unit for job in jobs if job.kind == "predictions"} == set(after.members)
    assert not any(job.kind == "member" for job in jobs)
    assert all(needed_before(job, jobs) for job in jobs)
    of_id = {job.job_id: job for job in jobs}
    for cell in after.cells:
        assert {f"predictions-{m}" for m in cell.member_ids} <= set(of_id[f"cell-{cell.cell_id}"].needs)


def test_a_larger_ensemble_needs_only_its_new_members():
    before, after = made(), made(methods={"star_sse": {"n_members": 4, "lr_ratio": [1, 4]}, "sse": {"n_members": 4}})
    jobs = jobs_left(after, everything_done(before))
    new = {job.unit for job in jobs if job.kind == "member"}
    assert new == set(after.members) - set(before.members)
    assert {after.members[member_id].member_index for member_id in new} == {3}
    assert len(new) == 3
    # The same paths have the same ids, whichever cell they belong to.
    old_paths = {path_id for _, path_id in paths_of(before)}
    assert {p.path_id for c in after.cells for p in c.paths if p.path_id not in old_paths} == {
        p.path_id for c in after.cells for p in c.paths if p.end_id in new
    }


def test_a_training_step_costs_three_passes_and_a_point_one():
    found = made()
    jobs = {job.job_id: job for job in jobs_left(found, Done())}
    cell = cell_of(found, "star_sse")
    scoring = 2 * (60 + 50) + 20  # val and test under two kinds of statistics, and what these are estimated on
    assert jobs[f"member-{cell.member_ids[0]}"].cost == 3 * 2 * 40 + scoring
    assert jobs[f"path-{cell.cell_id}-{cell.paths[0].path_id}"].cost == 1 * (60 + 20)
    # Its soups of two and of three, and the greedy one, have one kind of statistics.
    assert jobs[f"cell-{cell.cell_id}"].cost == 3 * (60 + 50 + 20)


# Settings


SAME_SETTINGS = {
    "methods": {"methods": {"sse": {"n_members": 7, "lr_ratio": [3], "cycle_ratio": [1, 2]}}},
    "replicates": {"replicates": 4},
    "threshold": {"basin__threshold": 0.5},
    "workers": {"workers": {"cpus": 4}},
    "checkpoint_seconds": {"recipe__checkpoint_seconds": 0},
    "name": {"name": "b"},
    "order of soups": {"soups": ["greedy", "uniform"]},
}


@pytest.mark.parametrize("changes", SAME_SETTINGS.values(), ids=SAME_SETTINGS)
def test_settings_do_not_hang_on(changes):
    assert made(**changes).settings_id == made().settings_id


def test_settings_do_not_hang_on_checkpoints():
    other = tiny.facts(checkpoints=(CheckpointFacts("x", "1" * 64), CheckpointFacts("y", "2" * 64)))
    assert made(other, model__pretrained=["x.pth", "y.pth"]).settings_id == made().settings_id


OTHER_SETTINGS = {
    **NEW_MEMBERS,
    "test images": {"data__test_images": 20},
    "points": {"basin__points": 5},
    "pairs": {"basin__pairs": "all"},
    "splits": {"basin__splits": ["val", "test"]},
    "split": {"basin__split": "train"},
    "images for batch norm": {"basin__bn_images": 30},
    "soups": {"soups": ["uniform"]},
}


@pytest.mark.parametrize("changes", OTHER_SETTINGS.values(), ids=OTHER_SETTINGS)
def test_settings_are_others_by_other(changes):
    assert made(**changes).settings_id != made().settings_id


@pytest.mark.parametrize("changes", [{"basin__threshold": 0.1}, {"workers": {"cpus": 2}}, {"replicates": 2}])
def test_cells_keep_their_ids_where_nothing_that_is_measured_changes(changes):
    assert set(made().cell) <= set(made(**changes).cell)


@pytest.mark.parametrize(
    "changes",
    [{"basin__points": 5}, {"basin__pairs": "all"}, {"basin__splits": ["val", "test"]}, {"basin__bn_images": 30},
     {"soups": ["greedy"]}, {"data__test_images": 20}],
)  # fmt: skip
def test_cells_measured_otherwise_are_other_cells(changes):
    assert not set(made().cell) & set(made(**changes).cell)


def test_more_images_for_batch_norm_than_there_are_is_all_of_them():
    """40 training images: 50 and 2048 ask for the same."""
    few, many = made(basin__bn_images=50), made(basin__bn_images=2048)
    assert few.bn_images == many.bn_images == 40
    assert few.eval_id == many.eval_id


def test_one_cell_more_leaves_the_others_with_their_ids():
    wider = made(methods={"star_sse": {"n_members": 3, "lr_ratio": [8, 4, 1, 2]}, "local_de": {"n_members": 3}})
    assert cell_of(wider, "star_sse", 4.0).cell_id == cell_of(made(), "star_sse", 4.0).cell_id


# Facts


def test_facts_come_back_from_plain_values():
    facts = tiny.facts(
        checkpoints=(CheckpointFacts("digits-seed0", "f" * 16, pretrain=0), CheckpointFacts("x", "e" * 64)),
        pretrain_data={0: tiny.facts().data},
    )
    plain = json.loads(json.dumps(facts_to_dict(facts)))
    assert facts_from_dict(plain) == facts


def test_the_key_of_a_checkpoint_hangs_on_all_that_makes_it_and_on_nothing_else():
    base = tiny.tree()["model"]["pretrained"][0]
    facts = tiny.facts()

    def key(model="test_resnet", data=facts.data, shown=facts.preprocess, **changes):
        entry = json.loads(json.dumps(base))
        for path, value in changes.items():
            part, _, name = path.partition("__")
            (entry["pretrain"][part] if name else entry["pretrain"])[name or part] = value
        task = specs.PretrainEntry.model_validate(entry).pretrain
        return ids.pretrain_key(task, task.seed, specs.Architecture(name=model), data, shown)

    assert key() == key(recipe__checkpoint_seconds=0) == key(data__test_images=5) == key(data__dir="elsewhere")
    others = [
        key(seed=1), key(recipe__epochs=2), key(recipe__lr=0.1), key(data__augment=["flip"]),
        key(data__classes=[0, 1]), key(model="resnet50"), key(data=tiny.facts(train_fingerprint="9").data),
        key(shown=tiny.facts(image_size=64).preprocess),
    ]  # fmt: skip
    assert len({key(), *others}) == 1 + len(others)


# The other methods

ALL = {
    "star_sse": {}, "sse": {}, "tree": {"chain": 2}, "fge": {}, "csgld": {}, "swag": {"cycle_ratio": 4}, "local_de": {},
    "global_de": {},
}  # fmt: skip


def five(**changes):
    """All methods, five members each, from five checkpoints."""
    checkpoints = tuple(CheckpointFacts(f"checkpoint{k}", f"{k}" * 64) for k in range(5))
    return made(tiny.facts(checkpoints=checkpoints), methods=ALL, **changes)


def test_all_methods_at_equal_cost_cost_the_same():
    """Within 5 % (here: exactly), the hub counted once; a draw of swag costs nothing."""
    found = five()
    costs = {cell.point.method: found.train_epochs(cell) for cell in found.cells}
    assert set(costs) == set(ALL)
    assert set(costs.values()) == {5 * 2.0}


def training(member):
    """All that its weights come from."""
    ids = "member_id", "point"
    return repr([getattr(member, f.name) for f in dataclasses.fields(member) if f.name not in ids]), (
        member.point.checkpoint.key, member.point.replicate,
    )  # fmt: skip


@pytest.mark.parametrize("file", ["cifar10-cpu", "digits", "cifar10-methods", "paper/resnet50-cifar100"])
def test_nothing_is_trained_twice_in_a_sweep(file):
    """Nor at a second name: the first cycle of sse is the first branch of star_sse at the same rate and length."""
    spec = specs.load(places.REPOSITORY / "sweeps" / f"{file}.yaml")
    checkpoints = tuple(CheckpointFacts(f"checkpoint{k}", f"{k}" * 64) for k in range(5))
    found = plan.make(spec, tiny.facts(checkpoints=checkpoints, n_train=45_000))
    assert len({training(member) for member in found.members.values()}) == len(found.members)
    star = {(c.point.checkpoint, c.point.replicate, c.point.lr_ratio, c.point.cycle_ratio): c for c in found.cells
            if c.point.method == "star_sse"}  # fmt: skip
    chains = [c for c in found.cells if c.point.method == "sse"]
    for cell in chains:
        same = star.get((cell.point.checkpoint, cell.point.replicate, cell.point.lr_ratio, cell.point.cycle_ratio))
        assert same is None or (same.member_ids[1] == cell.member_ids[1] and same.cell_id != cell.cell_id)
    saved = sum(found.members[c.member_ids[1]].cycle_epochs for c in chains)
    assert saved > 0.02 * sum(member.cycle_epochs for member in found.members.values())


def test_a_tree_is_chains_from_the_hub():
    found = made(methods={"tree": {"n_members": 7, "chain": 3}})
    (cell,) = found.cells
    hub, *ids = cell.member_ids
    assert parents(found, cell) == [None, hub, ids[0], ids[1], hub, ids[3], ids[4]]


def test_trees_of_one_chain_and_of_single_cycles_have_the_lineages_of_sse_and_star_sse():
    for chain, method in ((1, "star_sse"), (6, "sse")):
        found = made(methods={"tree": {"n_members": 6, "chain": chain}, method: {"n_members": 6}})
        places = []
        for cell in (cell_of(found, name) for name in ("tree", method)):
            places.append([parent and cell.member_ids.index(parent) for parent in parents(found, cell)])
        assert places[0] == places[1]


@pytest.mark.parametrize("method", ["fge", "csgld"])
def test_fge_and_csgld_are_chains(method):
    found = made(methods={method: {"n_members": 4}})
    (cell,) = found.cells
    assert parents(found, cell) == [None, *cell.member_ids[:-1]]


def test_members_of_swag_are_drawn_from_one_tail_that_starts_from_the_hub():
    found = made(methods={"swag": {"n_members": 4, "cycle_ratio": 3}})
    (cell,) = found.cells
    hub, *draws = cell.member_ids
    (tail_id,) = {found.members[draw].parent_id for draw in draws}
    tail = found.members[tail_id]
    assert (tail.parent_id, tail.kind, tail.member_index, tail.cycle_epochs) == (hub, "tail", None, 6.0)
    assert [found.members[draw].kind for draw in draws] == ["sample"] * 3
    assert [found.members[draw].member_index for draw in draws] == [1, 2, 3]
    assert {found.members[draw].cycle_epochs for draw in draws} == {0.0}
    assert cell.trained_ids[:2] == (hub, tail_id) and tail_id not in cell.member_ids
    assert found.train_epochs(cell) == 2 + 6


def test_more_draws_train_nothing_again_and_another_scale_leaves_the_tail():
    options = ({"n_members": 3}, {"n_members": 5}, {"n_members": 3, "scale": 1})
    few, more, wide = (made(methods={"swag": {"cycle_ratio": 2, **own}}) for own in options)
    assert set(few.members) < set(more.members)
    trained = [{m for m, member in found.members.items() if member.cycle_steps} for found in (few, more, wide)]
    assert trained[0] == trained[1] == trained[2]
    assert not {m for m, member in few.members.items() if member.kind == "sample"} & set(wide.members)


def test_draws_hang_on_the_images_their_statistics_are_estimated_on():
    one, other = (made(methods={"swag": {"cycle_ratio": 2}}, basin__bn_images=n) for n in (20, 30))
    shared = {one.members[m].point.method for m in set(one.members) & set(other.members)}
    assert shared == {"hub"}


def test_members_of_global_de_are_fine_tunings_of_all_checkpoints():
    found = five()
    for position, cell in enumerate(c for c in found.cells if c.point.method == "global_de"):
        members = [found.members[member_id] for member_id in cell.member_ids]
        assert [m.point.checkpoint.name for m in members] == [f"checkpoint{(position + k) % 5}" for k in range(5)]
        assert [m.parent_id for m in members] == [None] * 5
        assert [m.member_index for m in members] == list(range(5))
        assert cell.point.checkpoint == members[0].point.checkpoint


def test_local_de_and_global_de_are_the_rows_and_diagonals_of_the_same_fine_tunings():
    both = made(five().facts, methods={"local_de": {}, "global_de": {}})
    assert len(both.cells) == 10 and len(both.members) == 25
    alone = made(five().facts, methods={"global_de": {}})
    assert set(alone.members) == set(both.members)


def test_global_de_needs_as_many_checkpoints_as_members():
    with pytest.raises(UserError, match=r"methods.global_de.n_members: 5 members need .* has 1; add some"):
        made(methods={"global_de": {}})


def test_a_tail_too_short_for_two_collections_is_refused():
    with pytest.raises(UserError, match=r"methods.swag.collect_steps: .* every 2 steps .* once only in a tail of 2"):
        made(methods={"swag": {"cycle_ratio": 0.5}})
    assert made(methods={"swag": {"cycle_ratio": 0.5, "collect_steps": 1}}).cells


def test_mixing_needs_even_batches():
    with pytest.raises(UserError, match=r"recipe.mixup: needs batches of an even number .* one has 5 .*drop_last"):
        made(tiny.facts(n_train=45), recipe__mixup=0.8)
    assert made(tiny.facts(n_train=45), recipe__mixup=0.8, recipe__drop_last=True).cells


def test_the_keys_of_a_method_change_its_members_and_no_others():
    plain = made(methods={"fge": {}, "csgld": {}, "tree": {}, "sse": {}})
    other = made(methods={"fge": {"low_ratio": 0.1}, "csgld": {"temperature": 1}, "tree": {"chain": 4}, "sse": {}})
    shared = {plain.members[m].point.method for m in set(plain.members) & set(other.members)}
    assert shared == {"hub", "sse"}  # of a tree, the cycles that it has in common with the chain
    assert [cell.variant for cell in plain.cells] == ["", "", "", ""]
    assert [cell.variant for cell in other.cells] == ["low_ratio=0.1", "temperature=1", "chain=4", ""]
    assert "csgld temperature=1 lr_ratio=1" in other.cells[1].label


def test_a_method_key_spelt_out_at_its_default_changes_nothing():
    plain, spelt = (made(methods={"fge": own, "csgld": {}}) for own in ({}, {"low_ratio": 0.01}))
    assert set(plain.members) == set(spelt.members) and plain.cells == spelt.cells


# Long chains


@pytest.mark.parametrize("method", ["sse", "tree", "fge", "star_sse"])
def test_the_largest_ensemble_can_be_planned(method):
    """A chain of a thousand members is no deep recursion."""
    made = plan.make(tiny.spec(methods={method: {"n_members": methods.MAX_MEMBERS}}), tiny.facts())
    jobs = jobs_left(made, Done())
    place = {job.job_id: position for position, job in enumerate(jobs)}
    assert sum(job.kind == "member" for job in jobs) == methods.MAX_MEMBERS
    assert all(place[need] < place[job.job_id] for job in jobs for need in job.needs)


def test_a_chain_of_dropped_weights_is_trained_again_as_far_back_as_need_be():
    made = plan.make(tiny.spec(methods={"sse": {"n_members": methods.MAX_MEMBERS}}), tiny.facts())
    chain = made.cells[0].member_ids
    kept = Done(members=frozenset(chain[:-1]), pruned=frozenset(chain[500:-1]))
    again = [job for job in jobs_left(made, kept) if job.kind == "retrain"]
    assert [job.unit for job in again] == list(chain[500:-1])
    assert again[0].needs == () and again[1].needs == (again[0].job_id,)


def test_a_network_of_two_methods_is_of_the_same_one_in_whatever_order_a_file_names_them():
    wanted = {"sse": {"n_members": 3}, "star_sse": {"n_members": 3}}
    one, other = made(methods=wanted), made(methods=dict(reversed(wanted.items())))
    assert one.members == other.members and set(one.cells) == set(other.cells)
    assert [cell.point.method for cell in one.cells] == ["sse", "star_sse"]
    shared = set(one.cells[0].member_ids[1:]) & set(one.cells[1].member_ids)
    assert [one.members[member_id].point.method for member_id in shared] == ["star_sse"]
