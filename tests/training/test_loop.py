"""Training: an interrupted run ends at the same bits, rates are the schedule's, and nothing else is touched."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from raybasin.sweep import schedules
from raybasin.sweep.facts import Preprocess
from raybasin.sweep.specs import Recipe
from raybasin.training import callbacks, loop, models, optimizers
from raybasin.training.loop import Cycle, Diverged, Epoch, Snapshot, Trained

PREPROCESS = Preprocess(8, 1.0, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
N, BATCH, CLASSES = 23, 5, 3  # 5 batches an epoch, the last of 3 images


class Net(nn.Module):
    """Batch norm and dropout: state besides weights, and draws from the global generator."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten())
        self.head = nn.Linear(4 * 36, CLASSES)

    def forward(self, images_BCHW):
        return self.head(self.body(images_BCHW))


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    images_NHWC = torch.randint(256, (N, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return images_NHWC, torch.randint(CLASSES, (N,), generator=generator)


def cycle(steps=18, seed=7, max_lr=0.05, augment=("pad_crop", "flip"), **recipe):
    """By default 3.6 epochs."""
    return Cycle(
        Recipe(**{"epochs": 4, "batch_size": BATCH, "checkpoint_seconds": 0, **recipe}), augment, steps, max_lr, seed
    )


def run(data, made, **options):
    """The weights and what was recorded of a fresh run."""
    trained_net = net()
    trained = loop.train(trained_net, *data, made, PREPROCESS, **options)
    return models.state_of(trained_net), trained


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


def differ(a, b):
    return any(not torch.equal(a[key], b[key]) for key in a)


# Interruption


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_a_run_resumed_from_any_epoch_ends_at_the_same_bits(data, momentum):
    made = cycle(momentum=momentum)
    contents = []
    weights, trained = run(data, made, save=lambda snapshot: contents.append(loop.snapshot_to_bytes(snapshot)))
    assert len(contents) == 3  # after each epoch but the last
    for done, content in enumerate(contents, start=1):
        snapshot = loop.snapshot_from_bytes(content)
        assert len(snapshot.done.epochs) == done
        torch.manual_seed(done)  # the process that goes on has drawn other numbers
        later = []
        resumed, again = run(data, made, resume=snapshot, save=later.append)
        assert_equal(resumed, weights)
        assert again.epochs == trained.epochs
        for mine, theirs in zip(later, contents[done:], strict=True):
            # Momentum included.
            assert_equal(mine.tensors, loop.snapshot_from_bytes(theirs).tensors)


def test_a_run_that_is_cut_off_within_an_epoch_goes_on_from_its_last_snapshot(data):
    class CutOffError(Exception):
        pass

    kept, steps = [], []

    def stop(images):
        steps.append("step")
        if len(steps) == 13:  # the third step of the third epoch
            raise CutOffError

    with pytest.raises(CutOffError):
        run(data, cycle(), save=kept.append, beat=stop)
    resumed, _ = run(data, cycle(), resume=kept[-1])
    whole, _ = run(data, cycle())
    assert_equal(resumed, whole)


def test_a_snapshot_holds_momentum_and_statistics_and_does_not_change_later(data):
    kept = []
    run(data, cycle(), save=kept.append)
    keys = set(kept[0].tensors)
    assert {"net.body.1.running_mean", "net.body.1.num_batches_tracked", "net.head.weight"} <= keys
    assert {key for key in keys if key.startswith("optimizer.")} == {
        f"optimizer.{index}.momentum_buffer" for index in range(6)
    }
    assert [int(snapshot.tensors["net.body.1.num_batches_tracked"]) for snapshot in kept] == [5, 10, 15]
    assert differ(kept[0].tensors, kept[1].tensors)


def test_a_snapshot_comes_back_from_its_bytes():
    done = Trained((Epoch(0, 0.1, 1 / 3, 0.25), Epoch(1, 1e-9, 2.5, 0.0)), 12.5)
    tensors = {"net.a": torch.tensor([1.5, -0.0]), "net.n": torch.tensor(3), "optimizer.0.momentum": torch.ones(2, 2)}
    found = loop.snapshot_from_bytes(loop.snapshot_to_bytes(Snapshot(tensors, done)))
    assert found.done == done
    assert_equal(found.tensors, tensors)


def test_snapshots_are_taken_no_more_often_than_asked_and_never_after_the_last_epoch(data, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    counts = {}
    for seconds in (0.0, 4.0, 1e9):
        kept = []
        run(data, cycle(checkpoint_seconds=seconds), save=kept.append)
        counts[seconds] = [len(snapshot.done.epochs) for snapshot in kept]
    # The clock ticks at each look: three times an epoch while nothing is saved.
    assert counts[0.0] == [1, 2, 3]
    assert counts[4.0] == [2]
    assert counts[1e9] == []


def test_each_step_is_told_with_its_images(data):
    told = []
    run(data, cycle(), beat=told.append)
    assert len(told) == cycle().steps
    assert told[:5] == [BATCH] * 4 + [N - 4 * BATCH]


# Seeds


def test_the_same_seed_gives_the_same_bits_whatever_was_drawn_before(data):
    torch.manual_seed(1)
    first, trained = run(data, cycle())
    torch.manual_seed(2)
    second, again = run(data, cycle())
    assert_equal(first, second)
    assert trained.epochs == again.epochs


def test_another_seed_gives_other_weights(data):
    assert differ(run(data, cycle(seed=7))[0], run(data, cycle(seed=8))[0])


def orders(monkeypatch, data, made):
    """Which images each epoch saw, in their order."""
    seen = []
    real = loop.augment.draw_epoch

    def spy(*args):
        draws = real(*args)
        seen.append(draws.order_N.tolist())
        return draws

    monkeypatch.setattr(loop.augment, "draw_epoch", spy)
    run(data, made)
    monkeypatch.undo()
    return seen


def test_every_epoch_has_an_order_of_its_own_that_hangs_on_seed_and_epoch_alone(data, monkeypatch):
    """Cells are paired: another rate or length leaves the order of the images as it is."""
    first = orders(monkeypatch, data, cycle())
    assert all(sorted(order) == list(range(N)) for order in first)
    assert len({tuple(order) for order in first}) == len(first) == 4
    assert orders(monkeypatch, data, cycle(max_lr=0.1, steps=10)) == first[:2]
    assert not any(order in first for order in orders(monkeypatch, data, cycle(seed=8)))


# Rates and batches


def rates(monkeypatch, data, made):
    """The rate of each step and the size of its batch."""
    used, sizes = [], []
    step, forward = torch.optim.SGD.step, Net.forward

    def spy_step(optimizer, *args, **kwargs):
        (group,) = optimizer.param_groups
        used.append(group["lr"])
        return step(optimizer, *args, **kwargs)

    def spy_forward(network, images_BCHW):
        assert network.training
        sizes.append(len(images_BCHW))
        return forward(network, images_BCHW)

    monkeypatch.setattr(torch.optim.SGD, "step", spy_step)
    monkeypatch.setattr(Net, "forward", spy_forward)
    _, trained = run(data, made)
    monkeypatch.undo()
    return used, sizes, trained


def test_the_rate_of_every_step_is_the_schedules(data, monkeypatch):
    used, sizes, trained = rates(monkeypatch, data, cycle(steps=18))
    assert used == [0.05 / 2 * (1 + math.cos(math.pi * s / 18)) for s in range(18)]
    assert sizes == [5, 5, 5, 5, 3] * 3 + [5, 5, 5]  # the last epoch is not whole
    assert [epoch.lr for epoch in trained.epochs] == used[::5]
    assert [epoch.epoch for epoch in trained.epochs] == [0, 1, 2, 3]


def test_by_epoch_the_rate_is_held_within_an_epoch(data, monkeypatch):
    used, _, trained = rates(monkeypatch, data, cycle(steps=20, schedule_by="epoch"))
    assert used == [schedules.cosine(s // 5, 4, 0.05) for s in range(20)]
    assert [epoch.lr for epoch in trained.epochs] == used[::5]


def test_a_cycle_shorter_than_an_epoch_is_that_short(data, monkeypatch):
    used, sizes, trained = rates(monkeypatch, data, cycle(steps=2))
    assert (len(used), sizes, len(trained.epochs)) == (2, [5, 5], 1)


def test_the_optimizer_is_the_recipes(data, monkeypatch):
    seen = []
    step = torch.optim.SGD.step

    def spy(optimizer, *args, **kwargs):
        seen.append(dict(optimizer.param_groups[0]))
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    run(data, cycle(steps=1, momentum=0.8, nesterov=True, weight_decay=0.01))
    (group,) = seen
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.8, True, 0.01)
    assert len(group["params"]) == 6


def test_a_step_is_plain_sgd_on_the_mean_loss(data):
    """Without momentum, dropout, augmentation or decay, one step on all images has a closed form."""
    made = cycle(steps=1, batch_size=N, momentum=0, weight_decay=0, augment=(), max_lr=0.1)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    with torch.no_grad():
        linear[1].weight.zero_()
        linear[1].bias.zero_()
    trained = loop.train(linear, *data, made, PREPROCESS)
    images_NHWC, labels_N = data
    inputs_NF = ((images_NHWC.permute(0, 3, 1, 2).double() / 255 - 0.5) / 0.25).flatten(1)
    gradient_NC = torch.full((N, CLASSES), 1 / CLASSES, dtype=torch.float64)
    gradient_NC[torch.arange(N), labels_N] -= 1
    torch.testing.assert_close(linear[1].bias.double(), -0.1 * gradient_NC.mean(0), rtol=1e-5, atol=1e-7)
    expected_CF = -0.1 * gradient_NC.T @ inputs_NF / N
    torch.testing.assert_close(linear[1].weight.double(), expected_CF, rtol=1e-4, atol=1e-6)
    (epoch,) = trained.epochs
    assert epoch.train_loss == pytest.approx(math.log(CLASSES), rel=1e-6)
    assert epoch.train_error == pytest.approx(float((labels_N != 0).double().mean()))  # ties go to class 0


def test_loss_and_error_of_an_epoch_are_means_over_its_images_and_not_its_batches(data):
    """At a rate of practically 0 the weights stay, and the last batch is smaller."""
    made = cycle(steps=5, max_lr=1e-30, momentum=0, augment=())
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    _, labels_N = data
    trained = loop.train(flat, *data, made, PREPROCESS)
    with torch.no_grad():
        inputs_NCHW = (data[0].permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
        logits_NC = flat(inputs_NCHW)
    (epoch,) = trained.epochs
    assert epoch.train_loss == pytest.approx(float(nn.functional.cross_entropy(logits_NC, labels_N)), rel=1e-5)
    assert epoch.train_error == pytest.approx(float((logits_NC.argmax(1) != labels_N).double().mean()))


# What must not happen


@pytest.mark.parametrize("max_lr", [1e30, 1e12])
def test_a_loss_that_is_no_number_is_raised_with_the_epoch_and_the_rate(data, max_lr):
    with pytest.raises(Diverged, match=r"training loss is (nan|inf) in epoch \d at max_lr 1e\+"):
        run(data, cycle(steps=20, max_lr=max_lr))


def test_images_and_labels_are_not_changed(data):
    images_NHWC, labels_N = (tensor.clone() for tensor in data)
    run(data, cycle(augment=("random_resized_crop", "flip")))
    assert torch.equal(data[0], images_NHWC) and torch.equal(data[1], labels_N)


def flags():
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
    return (matmul.allow_tf32, conv.allow_tf32, conv.deterministic, conv.benchmark,
            torch.are_deterministic_algorithms_enabled())  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_numerics_sets_what_the_recipe_says_and_puts_it_back_even_after_an_error(precision, deterministic):
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
    original = flags()
    recipe = Recipe(epochs=1, precision=precision, deterministic=deterministic)
    try:
        for before in (True, False):
            matmul.allow_tf32 = conv.allow_tf32 = conv.deterministic = conv.benchmark = before
            found = flags()
            with pytest.raises(KeyError), loop.numerics(recipe, torch.device("cpu")):
                allowed = precision == "tf32"
                assert flags()[:4] == (allowed, allowed, deterministic, not deterministic)
                raise KeyError
            assert flags() == found
    finally:
        matmul.allow_tf32, conv.allow_tf32, conv.deterministic, conv.benchmark, _ = original


def test_scores_are_float32_whatever_is_set():
    before = flags()
    with loop.float32(Recipe(epochs=1, precision="tf32"), torch.device("cpu")):
        assert flags()[:2] == (False, False)
    assert flags() == before


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_bf16_is_for_the_network_alone_and_weights_stay_float32(data, precision, dtype):
    seen = []
    trained_net = net()
    trained_net.head.register_forward_hook(lambda layer, inputs, logits_BC: seen.append(logits_BC.dtype))
    loop.train(trained_net, *data, cycle(steps=1, precision=precision), PREPROCESS)
    assert seen == [dtype]
    assert {p.dtype for p in trained_net.parameters()} == {torch.float32}


def test_trained_comes_back_from_plain_values():
    done = Trained((Epoch(0, 0.1, 0.5, 0.25),), 1.5)
    tree = dataclasses.asdict(done)
    assert loop.trained_from_dict({**tree, "epochs": list(tree["epochs"])}) == done


# What a recipe may add


RECIPES = {
    "adamw": {"optimizer": "adamw", "lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1},
    "adamw without decay of vectors": {"optimizer": "adamw", "lr": 0.01, "decay": "matrices", "weight_decay": 0.1},
    "warm-up": {"warmup": 0.3, "warmup_lr": 1e-4},
    "clipping": {"grad_clip": 0.1},
    "smoothing": {"label_smoothing": 0.2},
    "mixup": {"mixup": 0.8, "batch_size": 4, "drop_last": True},
    "mixup and cutmix": {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "batch_size": 4, "drop_last": True},
    "fp16": {"precision": "fp16"},
    "nesterov": {"nesterov": True},
    "amsgrad": {"optimizer": "adamw", "lr": 0.01, "optimizer_args": {"amsgrad": True}},
    "steps counted by groups": {"optimizer": "lamb", "lr": 0.01},
    "lookahead": {"optimizer": "lookahead_adan", "lr": 0.01},
    "sign of momentum": {"optimizer": "lion", "lr": 0.001, "optimizer_args": {"betas": [0.9, 0.95]}},
    "numbers of Python's": {"optimizer": "laprop", "lr": 0.01},
    "state in bfloat16": {"optimizer": "adafactorbv", "lr": 0.01},
    "two kinds of weights": {"optimizer": "muon", "lr": 0.01},
    "corrected decay, fp16": {"optimizer": "adamc", "lr": 0.01, "precision": "fp16"},
    "average": {"ema_decay": 0.9},
    "average warmed up": {"ema_decay": 0.99, "ema_warmup": True, "optimizer": "adamw"},
    "frozen": {"freeze": "body.0"},
}


def with_classes(made, **changes):
    return dataclasses.replace(made, n_classes=CLASSES, warm_up=True, **changes)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_recipe_resumes_at_the_same_bits_and_differs_from_the_plain_one(data, recipe):
    made = with_classes(cycle(steps=15, **recipe))
    contents = []
    weights, trained = run(data, made, save=lambda snapshot: contents.append(loop.snapshot_to_bytes(snapshot)))
    assert len(contents) >= 2
    for content in contents:
        torch.manual_seed(len(content))
        resumed, again = run(data, made, resume=loop.snapshot_from_bytes(content))
        assert_equal(resumed, weights)
        assert again.epochs == trained.epochs
    assert differ(weights, run(data, with_classes(cycle(steps=15)))[0])


def test_every_augmentation_resumes_at_the_same_bits(data):
    names = ("random_resized_crop_bicubic", "flip", "rand_augment", "color_jitter", "random_erasing")
    made, contents = cycle(steps=15, augment=names), []
    weights, trained = run(data, made, save=lambda snapshot: contents.append(loop.snapshot_to_bytes(snapshot)))
    assert len(contents) >= 2
    for content in contents:
        torch.manual_seed(len(content))
        resumed, again = run(data, made, resume=loop.snapshot_from_bytes(content))
        assert_equal(resumed, weights)
        assert again.epochs == trained.epochs


def test_mixing_leaves_numpys_generator_as_it_was(data):
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    run(data, with_classes(cycle(steps=10, **RECIPES["mixup and cutmix"])))
    assert np.random.rand() == expected


def test_with_mixup_the_loss_is_that_of_both_labels(data, monkeypatch):
    """lam * loss(a) + (1 - lam) * loss(b), the images mixed with the same lam; from one linear layer at a rate of 0."""
    made = with_classes(cycle(steps=5, batch_size=4, drop_last=True, mixup=1.0, momentum=0, augment=(), max_lr=1e-30))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    drawn, inputs = [], []
    beta = np.random.beta
    monkeypatch.setattr(np.random, "beta", lambda *args, **more: drawn.append(beta(*args, **more)) or drawn[-1])
    (order,) = orders(monkeypatch, data, made)
    monkeypatch.setattr(np.random, "beta", lambda *args, **more: drawn.append(beta(*args, **more)) or drawn[-1])
    drawn.clear()
    flat.register_forward_pre_hook(lambda layer, args: inputs.append(args[0].detach().clone()))
    trained = loop.train(flat, *data, made, PREPROCESS)
    clean_NCHW = (data[0].permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    losses = []
    for batch, lam in enumerate(drawn):
        index_B = torch.tensor(order[4 * batch : 4 * batch + 4])
        mixed_BCHW = lam * clean_NCHW[index_B] + (1 - lam) * clean_NCHW[index_B.flip(0)]
        torch.testing.assert_close(inputs[batch], mixed_BCHW, rtol=1e-4, atol=1e-5)
        log_probs_BC = torch.log_softmax(flat(mixed_BCHW), 1)
        of = [nn.functional.nll_loss(log_probs_BC, data[1][index]) for index in (index_B, index_B.flip(0))]
        losses.append((lam * of[0] + (1 - lam) * of[1]).item())
    assert trained.epochs[0].train_loss == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_gradients_are_clipped_to_the_largest_norm(data):
    """One step of plain SGD then moves the weights by rate x norm, where the gradients are larger."""
    made = cycle(steps=1, batch_size=N, momentum=0, weight_decay=0, augment=(), max_lr=0.1, grad_clip=0.01)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    before = [parameter.detach().clone() for parameter in linear.parameters()]
    loop.train(linear, *data, made, PREPROCESS)
    moved = torch.sqrt(sum(((a.detach() - b) ** 2).sum() for a, b in zip(linear.parameters(), before, strict=True)))
    assert moved.item() == pytest.approx(0.1 * 0.01, rel=1e-4)


def test_without_decay_of_vectors_biases_and_norms_keep_their_size(data, monkeypatch):
    groups = []
    step = torch.optim.AdamW.step

    def spy(optimizer, *args, **kwargs):
        groups.extend((group["weight_decay"], [p.ndim for p in group["params"]]) for group in optimizer.param_groups)
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    run(data, cycle(steps=1, optimizer="adamw", decay="matrices", weight_decay=0.25))
    assert groups == [(0.0, [1, 1, 1, 1]), (0.25, [4, 2])]


def test_what_the_network_names_has_no_decay(data, monkeypatch):
    trained_net = net()
    trained_net.no_weight_decay = lambda: {"head.weight"}
    made = optimizers.make(trained_net, Recipe(epochs=1, decay="matrices", weight_decay=0.1), 0.05)
    decays = {id(p): group["weight_decay"] for group in made.param_groups for p in group["params"]}
    assert decays[id(trained_net.head.weight)] == 0 and decays[id(trained_net.body[0].weight)] == 0.1


def test_the_warm_up_is_for_runs_from_a_checkpoint_only(data, monkeypatch):
    made = cycle(steps=10, warmup=0.5, warmup_lr=0.001)
    assert rates(monkeypatch, data, made)[0] == [schedules.learning_rate(s, 10, 5, 0.05) for s in range(10)]
    warm = rates(monkeypatch, data, dataclasses.replace(made, warm_up=True))[0]
    assert warm[0] == 0.001 and warm[5] == 0.05 == max(warm)


def test_a_last_batch_can_be_left_out(data, monkeypatch):
    _, sizes, trained = rates(monkeypatch, data, cycle(steps=8, drop_last=True))
    assert sizes == [5] * 8 and len(trained.epochs) == 2


# Callbacks and watching


@pytest.mark.parametrize("steps", [12, 18])
def test_a_run_with_a_callback_resumes_at_the_same_bits(data, steps):
    def noise():
        return callbacks.Langevin(first_step=steps - 9, temperature=1.0, n_images=N, momentum=0.9, seed=3)

    def collecting():
        return callbacks.MomentCollector(every=4, steps=steps, rank=2)

    for make in (noise, collecting):
        kept, whole = [], make()
        weights, _ = run(data, cycle(steps=steps), callback=whole, save=kept.append)
        for snapshot in kept:
            later, content = make(), loop.snapshot_to_bytes(snapshot)
            resumed, _ = run(data, cycle(steps=steps), callback=later, resume=loop.snapshot_from_bytes(content))
            assert_equal(resumed, weights)
            assert_equal(later.tensors(), whole.tensors())
        assert differ(weights, run(data, cycle(steps=steps))[0]) == (make is noise)


def test_moments_are_those_of_the_weights_after_the_steps(data):
    callback, seen = callbacks.MomentCollector(every=5, steps=12, rank=9), []
    watch = {done: lambda trained: seen.append(trained.head.bias.detach().clone().double()) for done in (5, 10, 12)}
    run(data, cycle(steps=12), callback=callback, watch=watch)
    assert callback.moments.count == 3
    torch.testing.assert_close(callback.moments.mean["head.bias"], torch.stack(seen).mean(0))


def test_watching_shows_the_network_after_so_many_steps_and_changes_nothing(data):
    plain, trained = run(data, cycle())
    seen = {}
    watch = {done: lambda shown, done=done: seen.update({done: models.state_of(shown)}) for done in (1, 7, 18)}
    weights, again = run(data, cycle(), watch=watch)
    assert_equal(weights, plain)
    assert again.epochs == trained.epochs and list(seen) == [1, 7, 18]
    assert_equal(seen[18], plain)
    assert_equal(seen[7], run_for(data, 7))


def run_for(data, steps):
    """The weights after some steps of the default cycle, by stopping it there."""

    class StopError(Exception):
        pass

    made, told = net(), []

    def beat(images):
        told.append("step")
        if len(told) == steps:
            raise StopError

    with pytest.raises(StopError):
        loop.train(made, *data, cycle(), PREPROCESS, beat=beat)
    return models.state_of(made)
