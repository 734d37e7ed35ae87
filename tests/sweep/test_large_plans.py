"""Plans and what is left of them against slow and obvious definitions, and how the work of planning grows."""

import dataclasses
import hashlib
import itertools
import json

import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raybasin.sweep import ids, methods, plan
from raybasin.sweep.facts import CheckpointFacts
from raybasin.sweep.job_list import Done, Training, jobs_left

CHECKPOINTS = tuple(CheckpointFacts(name, letter * 64) for name, letter in (("a", "c"), ("b", "d"), ("c", "e")))
RATIOS = st.lists(st.sampled_from([0.5, 1, 2, 4]), min_size=1, max_size=3, unique=True)
KEYS = {"tree": {"chain": st.integers(1, 3)}, "csgld": {"noise_share": st.sampled_from([0.1, 0.5])},
        "swag": {"rank": st.integers(2, 4), "collect_steps": st.just(1)},
        "fge": {"low_ratio": st.just(0.1)}}  # fmt: skip


@st.composite
def plans(draw):
    """Small sweeps of any methods, one to three checkpoints and one or two replicates."""
    found = {}
    for name in draw(st.lists(st.sampled_from(sorted(methods.METHODS)), min_size=1, max_size=4, unique=True)):
        found[name] = {"n_members": draw(st.integers(2, 3 if name == "global_de" else 5))}
        found[name] |= {key: draw(values) for key, values in KEYS.get(name, {}).items()}
        if methods.METHODS[name].explores:
            found[name] |= {"lr_ratio": draw(RATIOS), "cycle_ratio": draw(RATIOS)}
    number = 3 if "global_de" in found else draw(st.integers(1, 3))
    spec = tiny.spec(
        methods=found, replicates=draw(st.integers(1, 2)), model__pretrained=["a.pth"] * number,
        basin__trace=draw(st.booleans()), basin__pairs=draw(st.sampled_from(["all", "consecutive"])),
        soups=draw(st.sampled_from([["uniform"], ["greedy"], ["uniform", "greedy"]])),
        keep={"weights": "all", "predictions": draw(st.sampled_from([["val"], ["val", "test"]]))},
    )  # fmt: skip
    return plan.make(spec, tiny.facts(checkpoints=CHECKPOINTS[:number]))


def hashed(*parts):
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_id(made, method, checkpoint, replicate, lr_ratio, cycle_ratio, index, role="cycle"):
    """The id of a run, each time by way of all from which it descends."""
    place = (checkpoint, replicate, lr_ratio, cycle_ratio)
    if index == 0:
        method, lr_ratio, cycle_ratio, parent = methods.METHODS["local_de"](), 1.0, 1.0, None
    elif role == "tail":
        parent = run_id(made, method, *place, 0)
    elif role == "sample":
        parent = run_id(made, method, *place, 1, "tail")
    elif (before := method.parent(index)) is not None:
        parent = run_id(made, method, *place, before)
    else:
        parent = None
        if method.own_checkpoints:
            every = made.facts.checkpoints
            checkpoint = every[(every.index(checkpoint) + index) % len(every)]
    more = {}
    callback = "" if role == "sample" else method.callback
    options = method.options(role, made.facts.data.n_train, made.steps_per_epoch)
    if callback or options:
        more = {"callback": callback.rpartition(":")[2], **options}
    if role != "cycle":
        more |= {"role": role, "bn_images": made.bn_images}
    steps = 0 if role == "sample" else made.cycle_steps(cycle_ratio)
    what = (made.training_id, parent or checkpoint.key, method.shape, steps, made.max_lr(lr_ratio), replicate, index)
    return hashed("member", *what, *([more] if more else []))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(plans())
def test_a_plan_is_what_its_definition_says_of_each_cell_alone(made):
    points, trained = [], {}
    for checkpoint, replicate in itertools.product(made.facts.checkpoints, range(made.spec.replicates)):
        for name, method in made.spec.methods.items():
            for ratios in itertools.product(method.lr_ratio, method.cycle_ratio):
                role = "sample" if method.samples else "cycle"
                place = (made, method, checkpoint, replicate, *ratios)
                members = [run_id(*place, index, role if index else "cycle") for index in range(method.n_members)]
                tail = [run_id(*place, 1, "tail")] if method.samples else []
                points.append((name, checkpoint, replicate, *ratios, tuple(members)))
                trained[tuple(members), name] = {*members, *tail}
    assert [(*dataclasses.astuple(c.point)[:1], c.point.checkpoint, c.point.replicate, c.point.lr_ratio,
             c.point.cycle_ratio, c.member_ids) for c in made.cells] == points  # fmt: skip
    assert all(set(cell.trained_ids) == trained[cell.member_ids, cell.point.method] for cell in made.cells)
    assert set(made.members) == {run for runs in trained.values() for run in runs}
    for cell in made.cells:
        label = methods.label(cell.point.method, cell.variant)
        assert cell.cell_id == hashed("cell", label, cell.member_ids, made.measuring_id)
        assert plan.soup_ids(made.spec, cell) == [
            *(hashed("uniform_soup", cell.member_ids[:n]) for n in range(2, len(cell.member_ids) + 1)
              if "uniform" in made.spec.soups),
            *([hashed("greedy_soup", cell.member_ids)] if "greedy" in made.spec.soups else []),
        ]  # fmt: skip


# What is left


def reference(made, done):
    """The jobs that are left, and what each needs, by id: each is looked for anew wherever something asks for it."""
    jobs = {}

    def weights(member_id):
        member = made.members[member_id]
        if member_id in done.members and member_id not in done.pruned:
            return set()
        job_id = f"{'retrain' if member_id in done.members else 'member'}-{member_id}"
        jobs[job_id] = weights(member.parent_id) if member.parent_id else set()
        return {job_id}

    def predicted(predictor_id):
        return not made.missing_files(lambda name: (predictor_id, name) in done.predictions)

    def member(member_id):
        needed = weights(member_id)
        if member_id not in done.members or predicted(member_id):
            return needed if member_id not in done.members else set()
        jobs[f"predictions-{member_id}"] = needed
        return {f"predictions-{member_id}"}

    def networks(member_ids):
        return set().union(*(member(member_id) | weights(member_id) for member_id in member_ids))

    measured = {name: f"{cell_id}-{name}" for cell_id, name in (*done.paths, *done.traces)}
    for cell in made.cells:
        is_there = cell.cell_id in done.cells
        whole = set(cell.member_ids) <= set(done.members)
        if is_there and not (whole and not all(map(predicted, [*cell.member_ids, *plan.soup_ids(made.spec, cell)]))):
            continue
        needs = networks(cell.member_ids)
        wanted = [("path", p.path_id, [p.start_id, p.end_id]) for p in cell.paths]
        wanted += [("trace", t.trace_id, [cell.member_ids[0], t.member_id]) for t in cell.traces]
        for kind, name, ends in wanted if not is_there else ():
            if (cell.cell_id, name) in (done.paths if kind == "path" else done.traces):
                continue
            job_id = f"{kind}-{cell.cell_id}-{name}"
            if name in measured:
                origin = f"{kind}-{measured[name]}"
                jobs[job_id] = {origin} & jobs.keys()
            else:
                measured[name] = f"{cell.cell_id}-{name}"
                jobs[job_id] = (networks(ends) if kind == "path"
                                else member(ends[0]) | member(ends[1]) | weights(ends[1]))  # fmt: skip
            needs.add(job_id)
        jobs[f"cell-{cell.cell_id}"] = needs
    return jobs


@st.composite
def situations(draw):
    """A plan, and any part of what it makes."""
    made = draw(plans())
    chance = draw(st.randoms(use_true_random=False))
    share = draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))

    def some(things):
        return frozenset(thing for thing in sorted(things) if chance.random() < share)

    members = some(made.members)
    predictors = {p for cell in made.cells for p in (*cell.member_ids, *plan.soup_ids(made.spec, cell))}
    done = Done(
        members=members,
        pruned=frozenset(m for m in sorted(members) if chance.random() < 0.2),
        predictions=some((p, made.eval_id) for p in predictors),
        cells=some(made.cell),
        paths=some((cell.cell_id, path.path_id) for cell in made.cells for path in cell.paths),
        traces=some((cell.cell_id, trace.trace_id) for cell in made.cells for trace in cell.traces),
    )
    return made, done


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(situations())
def test_what_is_left_is_what_its_definition_says(situation):
    made, done = situation
    jobs = jobs_left(made, done)
    assert {job.job_id: set(job.needs) for job in jobs} == reference(made, done)
    seen = set()
    for job in jobs:  # in an order in which they can be done, and as they are called
        assert seen.issuperset(job.needs) and job.job_id == f"{job.task.kind}-{job.task.unit}"
        seen.add(job.job_id)


# How it grows


class Counted:
    """A set that counts how often it is asked for something, and how much of it is walked through."""

    def __init__(self, things):
        self.things, self.asked, self.walked = frozenset(things), 0, 0

    def __contains__(self, thing):
        self.asked += 1
        return thing in self.things

    def __len__(self):
        return len(self.things)

    def __iter__(self):
        self.walked += len(self.things)
        return iter(self.things)


def sweep_of(replicates, **changes):
    grid = {"star_sse": {"n_members": 4, "lr_ratio": [1, 2, 4]}, "sse": {"n_members": 4}}
    return tiny.spec(methods=grid, replicates=replicates, model__pretrained=["a.pth"], **changes)


def test_planning_hashes_twice_as_much_for_twice_the_replicates(monkeypatch):
    hashes, original = [], ids._sha256
    monkeypatch.setattr(ids, "_sha256", lambda parts: hashes.append(parts) or original(parts))

    def count(replicates):
        hashes.clear()
        plan.make(sweep_of(replicates), tiny.facts())
        return len(hashes)

    of_settings = 2 * count(5) - count(10)
    assert count(20) - of_settings == 4 * (count(5) - of_settings)
    assert of_settings < 10


def test_what_is_there_is_looked_up_and_never_walked_through_for_each_cell():
    def work(replicates):
        made = plan.make(sweep_of(replicates, basin__trace=True), tiny.facts())
        predictors = {p for cell in made.cells for p in (*cell.member_ids, *plan.soup_ids(made.spec, cell))}
        done = Done(
            members=Counted(made.members), cells=Counted(made.cell), pruned=Counted(()),
            predictions=Counted((p, made.eval_id) for p in predictors),
            paths=Counted((cell.cell_id, path.path_id) for cell in made.cells for path in cell.paths),
            traces=Counted((cell.cell_id, trace.trace_id) for cell in made.cells for trace in cell.traces),
        )  # fmt: skip
        assert jobs_left(made, done) == []
        parts = dataclasses.asdict(done).keys()
        found = [getattr(done, part) for part in parts if isinstance(getattr(done, part), Counted)]
        assert done.members.walked == done.cells.walked == done.predictions.walked == 0
        assert done.paths.walked <= len(done.paths) and done.traces.walked <= 2 * len(done.traces)
        return sum(part.asked for part in found)

    assert work(20) == 2 * work(10)


def test_a_network_to_be_trained_is_one_job_however_many_cells_wait_for_it():
    jobs = jobs_left(made := plan.make(sweep_of(3), tiny.facts()), Done())
    trainings = [job.unit for job in jobs if isinstance(job.task, Training)]
    assert sorted(trainings) == sorted(made.members)
