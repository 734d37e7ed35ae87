"""Callbacks: noise of the stated size where it is due, moments where they are collected, and both resumable."""

import math

import pytest
import torch
from torch import nn

from raybasin.training import callbacks


def net_with_gradients(size=20000):
    net = nn.Linear(size, 1)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return net


def langevin(**changes):
    given = {"first_step": 3, "temperature": 0.1, "n_images": 50, "momentum": 0.9, "seed": 1, **changes}
    return callbacks.Langevin(**given)


def test_noise_has_the_deviation_of_the_formula():
    net = net_with_gradients()
    langevin().before_step(net, step=3, lr=0.05)
    expected = math.sqrt(2 * (1 - 0.9) / 0.05) * math.sqrt(0.1 / 50)
    assert net.weight.grad.std().item() == pytest.approx(expected, rel=0.03)
    assert abs(net.weight.grad.mean().item()) < 4 * expected / math.sqrt(20000)


def test_plain_sgd_with_noise_diffuses_as_langevin_dynamics_say():
    """Without a loss, momentum 0: after one step of rate lr the weights have spread by sqrt(2 lr T / n)."""
    net = net_with_gradients()
    before = net.weight.detach().clone()
    langevin(momentum=0.0).before_step(net, step=5, lr=0.02)
    torch.optim.SGD(net.parameters(), lr=0.02).step()
    assert (net.weight.detach() - before).std().item() == pytest.approx(math.sqrt(2 * 0.02 * 0.1 / 50), rel=0.03)


def test_there_is_no_noise_before_its_first_step_and_none_at_a_rate_of_zero():
    for step, lr in ((2, 0.05), (4, 0.0)):
        net = net_with_gradients(4)
        langevin().before_step(net, step, lr)
        assert not net.weight.grad.any()


def test_the_noise_of_a_step_is_its_own_and_does_not_touch_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    a, b, c, d = (net_with_gradients(4) for _ in range(4))
    state = torch.get_rng_state()
    langevin().before_step(a, 3, 0.05)
    langevin().before_step(b, 3, 0.05)
    langevin().before_step(c, 4, 0.05)
    langevin(seed=2).before_step(d, 3, 0.05)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a.weight.grad, b.weight.grad)
    assert not torch.equal(a.weight.grad, c.weight.grad) and not torch.equal(a.weight.grad, d.weight.grad)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), expected)


def test_weights_are_collected_every_so_many_steps_and_at_the_end():
    for steps, collected in ((10, [4, 8, 10]), (8, [4, 8])):
        collector, counts = callbacks.MomentCollector(every=4, steps=steps, rank=2), [0]
        for done in range(1, steps + 1):
            collector.after_step(nn.Linear(2, 1), done)
            counts.append(collector.moments.count)
        assert [done for done in range(1, steps + 1) if counts[done] > counts[done - 1]] == collected


def test_moments_go_on_where_they_were_left():
    nets = [nn.Linear(2, 1) for _ in range(3)]
    whole = callbacks.MomentCollector(every=2, steps=6, rank=2)
    first, later = (callbacks.MomentCollector(every=2, steps=6, rank=2) for _ in range(2))
    for done, net in zip((2, 4, 6), nets, strict=True):
        whole.after_step(net, done - 1)  # not due
        whole.after_step(net, done)
    first.after_step(nets[0], 2)
    later.restore(first.tensors())
    later.after_step(nets[1], 4)
    later.after_step(nets[2], 6)
    assert whole.moments.count == later.moments.count == 3
    for name, tensor in whole.tensors().items():
        assert torch.equal(later.tensors()[name], tensor)
    mean = sum(net.weight.detach().double() for net in nets) / 3
    torch.testing.assert_close(whole.moments.mean["weight"], mean)
