"""Compiled networks: the same training, one compilation for all networks of one shape, and errors that say what to do.

Most of it with torch's own backend that traces a network and computes it as it is: a processor's compiler takes half a
minute for the smallest network, and is not everywhere.
"""

import os
import shutil
import subprocess
import sys
import threading

import pytest
import tiny
import torch
import torch._inductor.config as inductor
from test_loop import PREPROCESS, N, assert_equal, cycle, differ, net
from torch import nn

from raybasin.errors import UserError
from raybasin.jobs import train_members
from raybasin.sweep import plan
from raybasin.training import compiling, loop, models
from raybasin.training.loop import Cycle

COMPILERS = "c++", "g++", "clang++"


@pytest.fixture(autouse=True)
def nothing_is_compiled_yet(monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    images_NHWC = torch.randint(256, (N, 8, 8, 3), generator=generator, dtype=torch.uint8)
    return images_NHWC, torch.randint(3, (N,), generator=generator)


def trained(data, made, **options):
    """The weights and the network of a fresh run."""
    fresh = net()
    loop.train(fresh, *data, made, PREPROCESS, **options)
    return models.state_of(fresh), fresh


@pytest.fixture
def compilations(monkeypatch):
    """Counts them."""
    made = []

    def backend(module, inputs):
        made.append(module)
        return module.forward

    monkeypatch.setattr(compiling, "BACKEND", backend)
    return made


@pytest.mark.parametrize("recipe", [{}, {"ema_decay": 0.9, "grad_clip": 1.0}, {"precision": "bf16"}, {"mixup": 0.8}])
def test_steps_are_those_of_the_network_that_is_compiled(data, compilations, recipe):
    shape = {"batch_size": 4, "drop_last": True} if "mixup" in recipe else {}  # of pairs
    plain, compiled = (trained(data, mixed(cycle(**recipe, **shape, compile=asked)))[0] for asked in (False, True))
    assert_equal(compiled, plain)
    assert len(compilations) == (1 if shape else 2)  # the last batch of an epoch is not full


def mixed(made):
    """Mixed labels need to know of how many classes they are."""
    return Cycle(**{**vars(made), "n_classes": 3})


def test_a_head_that_is_trained_first_is_compiled_apart(data, compilations):
    runs = {}
    for asked in (False, True):
        made = cycle(steps=20, head_epochs=2, compile=asked)
        runs[asked], _ = trained(data, Cycle(**{**vars(made), "head_steps": 10, "heads": ("head",)}))
    assert_equal(runs[True], runs[False])
    assert len(compilations) == 4


def test_one_compilation_serves_all_networks_of_a_shape(data, compilations):
    one, _ = trained(data, cycle(compile=True))
    count = len(compilations)
    other, fresh = trained(data, cycle(seed=8, compile=True))
    assert count == len(compilations) == 2
    assert differ(one, other)
    assert set(models.state_of(fresh)) == set(models.state_of(net()))  # the network is not what was compiled of it
    assert_equal(trained(data, cycle(seed=8))[0], other)


def test_more_variants_than_torch_keeps_are_an_error_and_not_silently_uncompiled(data, compilations, monkeypatch):
    monkeypatch.setattr(compiling, "MOST_VARIANTS", 1)
    with pytest.raises(UserError, match=r"(?s)cannot be compiled here.*recompile.*recipe\.compile: false"):
        trained(data, cycle(compile=True))


def test_a_compiler_that_is_missing_is_said_with_the_way_out(data, monkeypatch, tmp_path):
    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with (
        inductor.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler"))}),
        pytest.raises(UserError, match=r"(?s)cannot be compiled here.*ompiler.*recipe\.compile: false"),
    ):
        trained(data, cycle(compile=True))
    assert torch._dynamo.config.recompile_limit != compiling.MOST_VARIANTS  # what was set is put back


def test_signs_are_given_while_a_step_is_compiled_and_count_no_images(data, monkeypatch):
    signs, images, heard = [], [], threading.Event()

    def beat(count):
        (images if count else signs).append(count)
        if not count:
            heard.set()

    def backend(module, inputs):
        heard.clear()
        assert heard.wait(60), "no sign while it is compiled"
        return module.forward

    monkeypatch.setattr(compiling, "BACKEND", backend)
    monkeypatch.setattr(compiling, "BEAT_SECONDS", 0.001)
    trained(data, cycle(compile=True), beat=beat)
    assert len(images) == 18 and len(signs) >= 2


class Counting(nn.Module):
    """Is another network at every step, as far as a compiler sees."""

    def __init__(self):
        super().__init__()
        self.head, self.calls = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), 0

    def forward(self, images_BCHW):
        self.calls += 1
        return self.head(images_BCHW) if self.calls < 100 else self.head(images_BCHW) * 0


def test_signs_are_given_in_each_step_that_is_compiled_of_a_shape_that_was_seen_too(data, monkeypatch):
    signs, heard = [], threading.Event()

    def backend(module, inputs):
        heard.clear()
        assert heard.wait(60), "no sign while it is compiled"
        signs.append(len(inputs))
        return module.forward

    monkeypatch.setattr(compiling, "BACKEND", backend)
    monkeypatch.setattr(compiling, "BEAT_SECONDS", 0.001)
    loop.train(
        Counting(), *data, cycle(steps=5, batch_size=N, compile=True), PREPROCESS,
        beat=lambda images: images or heard.set(),
    )  # fmt: skip
    assert len(signs) >= 2  # of one shape


@pytest.mark.parametrize("variable", ["TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"])
def test_a_switch_that_forbids_compiling_is_said(variable):
    script = (
        "import torch\nfrom torch import nn\nfrom raybasin.training import compiling\n"
        "with compiling.compiled(nn.Linear(2, 2), print): pass"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, variable: "1"}, capture_output=True, text=True
    )
    assert done.returncode == 1 and f"torch is told not to compile ({'TORCH_COMPILE_DISABLE'}" in done.stderr


@pytest.mark.parametrize(
    ("recipe", "recorded"), [({}, True), ({"compile": True}, False), ({"cuda_graphs": False}, False)]
)
def test_compiled_steps_are_not_recorded(recipe, recorded):
    spec = tiny.spec(**{f"recipe__{key}": value for key, value in recipe.items()})
    settings = plan.make(spec, tiny.facts()).settings
    assert train_members.recorded(spec.recipe, settings) is recorded


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C++ compiler here")
def test_torchs_own_compiler_trains_alike_and_goes_on_to_the_bit(data, monkeypatch, tmp_path):
    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    snapshots = []
    weights, _ = trained(data, cycle(compile=True), save=snapshots.append)
    torch._dynamo.reset()  # as another process would
    resumed, _ = trained(data, cycle(compile=True), resume=snapshots[1])
    assert_equal(resumed, weights)
    without_dropout = []
    for asked in (False, True):  # the compiler draws other random numbers
        fresh = net()
        fresh.body[3] = nn.Identity()
        loop.train(fresh, *data, cycle(steps=5, compile=asked), PREPROCESS)
        without_dropout.append(models.state_of(fresh))
    for key, tensor in without_dropout[0].items():
        torch.testing.assert_close(without_dropout[1][key], tensor, rtol=1e-3, atol=1e-4)
