"""Steps that are recorded and replayed, with a recording that a CPU can make: the same work done again."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from raybasin.errors import UserError
from raybasin.training import cuda_graphs
from raybasin.training.cuda_graphs import RECORDED_AFTER, Recorder

CLASSES = 3


@dataclass
class Again:
    """What a graph does, on a CPU: the work once more, its results where they lay when it was recorded."""

    work: Callable[[], None]

    def replay(self):
        self.work()


class Training:
    """Plain SGD on a small network; `record` gives what plays the part of a CUDA graph."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(CLASSES))
        self.net(torch.zeros(2, 3, 6, 6))
        self.net[1].reset_running_stats()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        self.recorded = 0

    def gradients(self, images_BCHW, labels_B):
        logits_BC = self.net(images_BCHW)
        loss = nn.functional.cross_entropy(logits_BC, labels_B)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        return loss.detach(), logits_BC.detach()

    def record(self, work):
        """Nothing is done now; a replay does `work` on the weights as they are then, and leaves its results in the
        tensors that the recording made."""
        self.recorded += 1
        before = copy.deepcopy((self.net.state_dict(), self.optimizer.state_dict()))
        results = work() or ()  # the tensors of its results; a graph leaves everything else as it was
        self.net.load_state_dict(before[0])
        for state, old in zip(self.optimizer.state.values(), before[1]["state"].values(), strict=True):
            state["momentum_buffer"].copy_(old["momentum_buffer"])
        gradients = [parameter.grad for parameter in self.net.parameters()]

        def again():
            for result, new in zip(results, work() or (), strict=True):
                result.copy_(new)
            for parameter, gradient in zip(self.net.parameters(), gradients, strict=True):
                gradient.copy_(parameter.grad)
                parameter.grad = gradient

        return Again(again), results

    def recorder(self):
        return Recorder(self.gradients, self.optimizer.step, list(self.net.parameters()), self.record)


def batches(sizes):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 3, 6, 6, generator=generator), torch.randint(CLASSES, (n,), generator=generator)) for n in sizes
    ]


def trained(record, sizes, between=lambda net: None):
    """The network after a step for each batch, and the losses."""
    training = Training()
    steps = training.recorder() if record else None
    losses = []
    for images_BCHW, labels_B in batches(sizes):
        if steps is None:
            loss, _ = training.gradients(images_BCHW, labels_B)
            between(training.net)
            training.optimizer.step()
        else:
            loss, _ = steps.gradients(images_BCHW, labels_B)
            between(training.net)
            steps.update()
        losses.append(float(loss))
    return training, losses


EPOCHS = [size for _ in range(RECORDED_AFTER + 4) for size in (5, 5, 3)]


def test_recorded_steps_are_those_that_would_have_been_done():
    plain, losses = trained(False, EPOCHS)
    recorded, again = trained(True, EPOCHS)
    assert losses == again
    assert recorded.recorded == 4  # two halves for each of two shapes
    for a, b in zip(plain.net.state_dict().values(), recorded.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_gradients_may_be_changed_between_the_halves():
    def noise(net):
        for parameter in net.parameters():
            parameter.grad.add_(0.01 * torch.ones_like(parameter.grad))

    plain, _ = trained(False, EPOCHS, noise)
    recorded, _ = trained(True, EPOCHS, noise)
    other, _ = trained(True, EPOCHS)
    weights = [torch.cat([p.flatten() for p in made.net.parameters()]) for made in (plain, recorded, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_little_is_not_recorded():
    training, _ = trained(True, [5] * RECORDED_AFTER)
    assert training.recorded == 0


def test_a_network_that_cannot_be_recorded_says_the_way_out():
    training = Training()

    def refuse(work):
        raise RuntimeError("operation not permitted when stream is capturing")

    steps = Recorder(training.gradients, training.optimizer.step, list(training.net.parameters()), refuse)
    with pytest.raises(UserError, match=r"(?s)cannot be recorded.*recipe.cuda_graphs: false"):
        for images_BCHW, labels_B in batches([5] * (RECORDED_AFTER + 1)):
            steps.gradients(images_BCHW, labels_B)
            steps.update()


def test_full_memory_stays_full_memory():
    training = Training()

    def refuse(work):
        raise torch.OutOfMemoryError("CUDA out of memory")

    steps = Recorder(training.gradients, training.optimizer.step, list(training.net.parameters()), refuse)
    with pytest.raises(torch.OutOfMemoryError):
        for images_BCHW, labels_B in batches([5] * (RECORDED_AFTER + 1)):
            steps.gradients(images_BCHW, labels_B)
            steps.update()


def test_on_a_cpu_nothing_is_fused():
    assert not cuda_graphs.fusible(Training().net.parameters())
