"""What today's fine-tuning adds to a run: any optimizer of timm's, layer-wise rates, parts that stay, the head first,
averaged weights."""

import contextlib
import copy
import dataclasses

import pytest
import timm
import torch
from test_loop import BATCH, CLASSES, PREPROCESS, N, assert_equal, cycle, differ, net
from timm.optim import list_optimizers
from timm.utils import ModelEmaV3
from torch import nn

from raybasin.errors import UserError
from raybasin.sweep.specs import Architecture, Recipe
from raybasin.training import averaging, cuda_graphs, frozen, loop, model_checks, models, optimizers

STEPS_PER_EPOCH = -(-N // BATCH)
VIT = Architecture(name="test_vit", args={"img_size": 32})


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    images_NHWC = torch.randint(256, (N, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return images_NHWC, torch.randint(CLASSES, (N,), generator=generator)


def run(data, made, **options):
    trained_net = net()
    trained = loop.train(trained_net, *data, made, PREPROCESS, **options)
    return models.state_of(trained_net), trained


def head_first(head_epochs=2, steps=10, **recipe):
    made = cycle(steps=head_epochs * STEPS_PER_EPOCH + steps, head_epochs=head_epochs, **recipe)
    return dataclasses.replace(made, head_steps=head_epochs * STEPS_PER_EPOCH, heads=("head",))


def complaint(**recipe):
    with pytest.raises(UserError) as error:
        optimizers.check(Recipe(epochs=1, **recipe))
    return str(error.value)


# Optimizers


def test_most_of_timms_optimizers_are_taken_and_the_others_are_refused_with_the_reason():
    refused = {}
    for name in list_optimizers():
        try:
            optimizers.check(Recipe(epochs=1, optimizer=name))
        except UserError as error:
            refused[name] = str(error)
    assert all(name in refused[name] for name in refused)
    reasons = {"kron": "at random", "adahessian": "second derivatives"}
    packages = {name for name in refused if name.startswith(("bnb", "fused"))}
    assert all("is of the package" in refused[name] for name in packages)
    assert {name for name in refused if name not in packages} <= {*reasons, "kronc", "kronw"}
    assert all(reason in refused[name] for name, reason in reasons.items() if name in refused)


def test_an_unknown_optimizer_or_option_is_named():
    assert "recipe.optimizer: timm has no optimizer 'lionn'" in complaint(optimizer="lionn")
    assert "'lion'" in complaint(optimizer="lionn") and "AdamW" in complaint(optimizer="AdamW")
    assert complaint(optimizer="lion", optimizer_args={"momentum": 0.5}).startswith(
        "recipe.optimizer_args: lion takes no 'momentum'; it takes betas"
    )
    # timm drops these without a word.
    assert "lion takes no 'eps'" in complaint(optimizer="lion", optimizer_args={"eps": 1e-3})
    assert "adamw takes no 'fused'" in complaint(optimizer="adamw", optimizer_args={"fused": True})
    assert "lamb fails with them" in complaint(optimizer="lamb", optimizer_args={"betas": "many"})


def test_options_reach_the_optimizer():
    recipe = Recipe(epochs=1, optimizer="lion", optimizer_args={"betas": [0.5, 0.6]}, weight_decay=0.3)
    (group,) = optimizers.make(net(), recipe, 0.01).param_groups
    assert (group["betas"], group["weight_decay"], group["lr"]) == ((0.5, 0.6), 0.3, 0.01)
    (group,) = optimizers.make(net(), Recipe(epochs=1, optimizer_args={"dampening": 0.5}), 0.01).param_groups
    assert group["dampening"] == 0.5


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [({}, 1), ({"momentum": 0}, 1), ({"optimizer": "adamw"}, 2), ({"optimizer": "lion"}, 1), ({"optimizer": "adan"}, 4),
     ({"optimizer": "adamw", "optimizer_args": {"amsgrad": True}}, 3)],
)  # fmt: skip
def test_what_it_keeps_of_each_weight_is_counted(recipe, expected):
    assert optimizers.copies(Recipe(epochs=1, **recipe)) == expected


# Layer-wise rates


def vit():
    return models.build(VIT, 5, seed=0)


@pytest.mark.parametrize("decay", ["all", "matrices"])
def test_each_layer_has_its_share_of_the_rate_as_timm_says(decay):
    built = vit()
    recipe = Recipe(epochs=1, optimizer="adamw", layer_decay=0.5, decay=decay, weight_decay=0.1)
    made = optimizers.make(built, recipe, 0.01)
    theirs = timm.optim.create_optimizer_v2(
        built, "adamw", lr=0.01, weight_decay=0.1, layer_decay=0.5, filter_bias_and_bn=decay == "matrices"
    )
    optimizers.set_rate(made, 0.008)
    of = {id(p): (g["lr"], g["weight_decay"]) for g in made.param_groups for p in g["params"]}
    if decay == "matrices":
        assert of == {
            id(p): (0.008 * g["lr_scale"], g["weight_decay"]) for g in theirs.param_groups for p in g["params"]
        }
    else:
        assert {weight_decay for _, weight_decay in of.values()} == {0.1}
    assert of[id(built.head.weight)][0] == 0.008 > of[id(built.blocks[0].attn.qkv.weight)][0] > 0


def test_a_lowest_share_and_a_network_that_says_no_layers():
    recipe = Recipe(epochs=1, layer_decay=0.1, layer_decay_min_scale=0.25)
    scales = {group["lr_scale"] for group in optimizers.make(vit(), recipe, 0.1).param_groups}
    assert min(scales) == 0.25 and max(scales) == 1
    with pytest.raises(UserError, match="recipe.layer_decay: own does not say how its layers follow"):
        optimizers.check_layers(net(), recipe, "own")


def test_frozen_layers_are_in_no_group_whatever_makes_them():
    for recipe in ({}, {"decay": "matrices"}, {"layer_decay": 0.5}):
        built = vit()
        held = frozen.hold(built, frozen.by_patterns(("patch_embed", "blocks.0")))
        made = optimizers.make(built, Recipe(epochs=1, **recipe), 0.1, held)
        trained = {id(p) for group in made.param_groups for p in group["params"]}
        assert trained == {id(p) for name, p in built.named_parameters() if name not in held}


# Parts that stay


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [("blocks.0", "blocks.0.attn.qkv.weight", True), ("blocks.0", "blocks.01.norm.bias", False),
     ("blocks.[01]", "blocks.1.norm.bias", True), ("blocks.*.norm", "blocks.1.norm.bias", True),
     ("qkv", "blocks.0.attn.qkv.weight", False), ("*.qkv", "blocks.0.attn.qkv.weight", True), ("fc", "fc.bias", True)],
)  # fmt: skip
def test_a_pattern_is_a_part_with_all_beneath(pattern, name, expected):
    assert frozen.matches(pattern, name) == expected


def test_a_pattern_must_match_and_leave_the_head():
    recipe = Recipe(epochs=1, freeze="blok")
    with pytest.raises(UserError, match=r"recipe.freeze: nothing of test_vit is called 'blok'; its parts are .*blocks"):
        model_checks.check_recipe(vit(), VIT, recipe)
    with pytest.raises(UserError, match="'head' holds head.weight of the head, which starts at random"):
        model_checks.check_recipe(vit(), VIT, Recipe(epochs=1, freeze=["blocks", "head"]))
    model_checks.check_recipe(vit(), VIT, Recipe(epochs=1, freeze=["blocks.[01]"]))


@pytest.mark.parametrize("optimizer", ["sgd", "lion"])
def test_what_is_frozen_stays_with_its_statistics_and_all_else_moves(data, optimizer):
    before, after = models.state_of(net()), run(data, cycle(freeze=["body.0", "body.1"], optimizer=optimizer))[0]
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"head.weight", "head.bias"}
    statistics = run(data, cycle(freeze=["body.0"], optimizer=optimizer))[0]
    assert torch.equal(before["body.0.weight"], statistics["body.0.weight"])
    assert not torch.equal(before["body.1.running_mean"], statistics["body.1.running_mean"])


def test_afterwards_all_can_be_trained_again_even_after_an_error(data):
    class CutOffError(Exception):
        pass

    def stop(images):
        raise CutOffError

    for made, beat in ((cycle(steps=2, freeze="body"), lambda images: None), (head_first(), stop)):
        trained_net = net()
        try:
            loop.train(trained_net, *data, made, PREPROCESS, beat=beat)
        except CutOffError:
            assert beat is stop
        assert all(p.requires_grad for p in trained_net.parameters())
        assert all(module.training for module in trained_net.modules())


# The head first


def test_the_head_is_trained_alone_and_then_all_with_a_schedule_of_its_own(data):
    seen = {}
    watch = {step: lambda shown, step=step: seen.update({step: models.state_of(shown)}) for step in (10, 20)}
    made = head_first(head_lr=0.5)
    _, trained = run(data, made, watch=watch)
    before = models.state_of(net())
    assert {key for key in before if not torch.equal(before[key], seen[10][key])} == {"head.weight", "head.bias"}
    assert all(not torch.equal(before[key], seen[20][key]) for key in before)
    plain = cycle(steps=10)
    rates = [made.learning_rate(step, STEPS_PER_EPOCH) for step in range(20)]
    assert rates[10:] == [plain.learning_rate(step, STEPS_PER_EPOCH) for step in range(10)]
    assert rates[0] == 0.5 and rates[9] < 0.02
    assert [epoch.epoch for epoch in trained.epochs] == [0, 1, 2, 3]


def test_after_the_head_everything_begins_anew(data):
    """The second part is the run that starts from what the first has made: optimizer, average and all."""
    middle, recipe = {}, {"optimizer": "adamw", "lr": 0.01, "ema_decay": 0.8, "augment": ()}
    made = head_first(**recipe)
    whole, _ = run(data, made, watch={10: lambda shown: middle.update(models.state_of(shown))})
    later = net()
    later.load_state_dict(middle)
    fresh = loop.Snapshot({f"net.{key}": value for key, value in middle.items()}, loop.Trained((), 0.0))
    epochs = tuple(loop.Epoch(epoch, 0.0, 0.0, 0.0) for epoch in (0, 1))
    loop.train(later, *data, made, PREPROCESS, resume=dataclasses.replace(fresh, done=loop.Trained(epochs, 0.0)))
    assert_equal(models.state_of(later), whole)


@pytest.mark.parametrize(
    "recipe",
    [{}, {"optimizer": "lamb", "ema_decay": 0.9, "freeze": "body.0"},
     {"precision": "fp16", "optimizer": "lookahead_sgd"}],
)  # fmt: skip
def test_a_run_with_the_head_first_resumes_at_the_same_bits(data, recipe):
    made, contents = head_first(**recipe), []
    weights, trained = run(data, made, save=lambda snapshot: contents.append(loop.snapshot_to_bytes(snapshot)))
    assert len(contents) == 3  # within the first part, between the two, within the second
    for content in contents:
        torch.manual_seed(len(content))
        resumed, again = run(data, made, resume=loop.snapshot_from_bytes(content))
        assert_equal(resumed, weights)
        assert again.epochs == trained.epochs


# Averaged weights


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_timms(warmup):
    one, generator = net(), torch.Generator().manual_seed(2)
    theirs, ours = ModelEmaV3(one, decay=0.9, use_warmup=warmup), averaging.of(one, 0.9, warmup)
    for done in range(1, 9):
        with torch.no_grad():
            for value in one.state_dict().values():
                value.add_(torch.randint(-3, 4, value.shape, generator=generator).to(value.dtype))
        theirs.update(one, step=done)
        ours.update(one, done)
        assert_equal(ours.tensors, theirs.module.state_dict())


def test_the_network_of_a_run_is_the_average_and_is_what_is_shown(data):
    raw, seen, states = net(), {}, []
    real = averaging.Average.update
    watch = {step: lambda shown, step=step: seen.update({step: models.state_of(shown)}) for step in (7, 18)}
    weights, trained = run(data, cycle(ema_decay=0.7), watch=watch)
    plain = {step: states.append for step in range(1, 19)}
    _, again = run(data, cycle(), watch={step: lambda s: states.append(copy.deepcopy(s)) for step in plain})
    expected = averaging.of(raw, 0.7, False)
    for done, state in enumerate(states, start=1):
        real(expected, state, done)
        if done in seen:
            assert_equal(seen[done], {key: value.contiguous() for key, value in expected.tensors.items()})
    assert_equal(weights, seen[18])
    assert again.epochs == trained.epochs and differ(weights, models.state_of(states[-1]))


# Recorded steps


class Again:
    """What a graph does, on a processor: the work once more."""

    def __init__(self, work, results, parameters):
        self.work, self.results = work, results
        self.parameters, self.gradients = parameters, [parameter.grad for parameter in parameters]

    def replay(self):
        for result, new in zip(self.results, self.work() or (), strict=True):
            result.copy_(new)
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            if gradient is not None:
                gradient.copy_(parameter.grad)
            parameter.grad = gradient


@pytest.mark.parametrize("recipe", [{"optimizer": "lion", "lr": 0.001}, {"optimizer": "lamb", "freeze": "1"}])
def test_gradients_are_recorded_and_steps_of_timms_optimizers_are_not(data, monkeypatch, recipe):
    """With what plays the part of a recording, since a processor has none; only gradients are asked of it."""
    made, recorded = head_first(head_epochs=3, steps=20, augment=(), ema_decay=0.9, **recipe), []
    monkeypatch.setattr(cuda_graphs, "RECORDED_AFTER", 2)
    plain_net, recorded_net = (nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Linear(8, CLASSES)) for _ in range(2))
    recorded_net.load_state_dict(plain_net.state_dict())
    made = dataclasses.replace(made, heads=("2",), cuda_graphs=True)
    loop.train(plain_net, *data, made, PREPROCESS)

    def record(work):
        recorded.append(work)
        results = work()
        return Again(work, results, list(recorded_net.parameters())), results

    monkeypatch.setattr(cuda_graphs, "own_stream", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(cuda_graphs, "on_gpu", lambda device: record)
    monkeypatch.setattr(cuda_graphs, "fusible", lambda parameters: True)
    loop.train(recorded_net, *data, made, PREPROCESS)
    assert_equal(models.state_of(recorded_net), models.state_of(plain_net))
    assert len(recorded) == 4  # of two shapes, with the head and with all; with steps it would be twice as many
