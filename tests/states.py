"""Networks and states that tests of weights share."""

import torch

from raybasin.sweep import specs
from raybasin.training import models

NAME = "test_resnet"
NET = specs.Architecture(name=NAME)


def own(function, **keys):
    """A network of tests/nets.py, as a user's own factory."""
    return specs.Architecture(name=function, factory=f"nets:{function}", **keys)


def body(state):
    """What of a state of `NET` is not its head."""
    return {key: tensor for key, tensor in state.items() if not key.startswith("fc.")}


def body_of(net, model):
    """The network's weights on the CPU, without its head."""
    return models.without_head(models.state_of(net), models.head_names(net, model))


def assert_equal_states(found, expected):
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor), key
