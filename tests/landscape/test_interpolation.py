"""Arithmetic on weights: exact ends, and averages and distances in closed form."""

import math
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from raybasin.landscape.barriers import barrier, path_points
from raybasin.landscape.interpolation import (
    StateDict,
    average,
    interpolate,
    l2_distance,
    weighted_sum,
)


def scalar(value: float, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([value], dtype=dtype)}


def network_state(seed: int, steps: int) -> dict[str, torch.Tensor]:
    """The state of a small network with batch norm that has seen a number of batches."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for _ in range(steps):
        net(torch.randn(5, 3))
    return net.state_dict()


def assert_bit_equal(a: StateDict, b: StateDict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].numpy().tobytes() == b[name].numpy().tobytes(), name


# Interpolation


def test_a_point_lies_at_its_share_of_the_way() -> None:
    assert interpolate(scalar(2.0), scalar(10.0), 0.25)["w"].item() == 4.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_point_is_computed_in_float64_and_rounded_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    start, end = ({"w": torch.randn(200).to(dtype)} for _ in range(2))
    exact = 0.7 * start["w"].double() + 0.3 * end["w"].double()
    # In the tensors' own precision the formula gives other bits, so the comparison is not empty.
    assert dtype == torch.float64 or not torch.equal(0.7 * start["w"] + 0.3 * end["w"], exact.to(dtype))
    torch.testing.assert_close(interpolate(start, end, 0.3)["w"], exact.to(dtype), rtol=1e-15, atol=0)


def test_the_ends_of_a_path_are_exact_for_signed_zeros_and_infinities() -> None:
    start = {"w": torch.tensor([-0.0, 0.1, math.inf, 1.0])}
    end = {"w": torch.tensor([0.5, -0.0, 1.0, -math.inf])}
    assert_bit_equal(interpolate(start, end, 0.0), start)
    assert_bit_equal(interpolate(start, end, 1.0), end)


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_counters_are_copied_from_the_start(t: float) -> None:
    point = interpolate(network_state(0, steps=2), network_state(1, steps=7), t)
    assert point["1.num_batches_tracked"].item() == 2
    assert point["1.num_batches_tracked"].dtype == torch.int64


def test_complex_numbers_are_interpolated_averaged_and_measured_as_such() -> None:
    start, end = ({"z": torch.tensor([z], dtype=torch.complex64)} for z in (1 + 2j, 3 - 2j))
    assert_bit_equal(interpolate(start, end, 0.0), start)
    assert_bit_equal(interpolate(start, end, 1.0), end)
    assert interpolate(start, end, 0.25)["z"].item() == 1.5 + 1j
    assert average([start, end, end, start])["z"].item() == 2 + 0j
    assert average([start, end])["z"].dtype == torch.complex64
    assert l2_distance(start, end, ["z"]) == pytest.approx(math.sqrt(20))


def test_masks_and_integers_are_copied_from_the_start() -> None:
    start = {"mask": torch.tensor([True, False]), "index": torch.tensor([1, 5], dtype=torch.int8)}
    end = {"mask": torch.tensor([False, True]), "index": torch.tensor([3, 9], dtype=torch.int8)}
    assert_bit_equal(interpolate(start, end, 0.5), start)
    assert_bit_equal(average([start, end]), start)


def test_batch_norm_statistics_are_interpolated_too() -> None:
    start, end = network_state(0, steps=2), network_state(1, steps=7)
    middle = interpolate(start, end, 0.5)["1.running_mean"]
    torch.testing.assert_close(middle, (start["1.running_mean"] + end["1.running_mean"]) / 2)


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_interpolation_leaves_its_inputs_untouched_and_shares_no_memory_with_them(t: float) -> None:
    start, end = network_state(0, steps=1), network_state(1, steps=1)
    before = [{name: x.clone() for name, x in state.items()} for state in (start, end)]
    for tensor in interpolate(start, end, t).values():
        tensor.zero_()
    assert_bit_equal(start, before[0])
    assert_bit_equal(end, before[1])


def test_states_that_differ_are_refused_with_the_first_tensors_named() -> None:
    start = {"a": torch.zeros(2), "b": torch.zeros(2), "same": torch.zeros(1)}
    end = {"a": torch.zeros(3), "c": torch.zeros(2), "same": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"3 tensor\(s\): a is .*\[2\] and .*\[3\]; b is .* absent; c is absent"):
        interpolate(start, end, 0.5)


def test_states_of_different_precision_are_refused() -> None:
    with pytest.raises(ValueError, match="w is torch.float32 .* and torch.float64"):
        interpolate(scalar(0.0), scalar(1.0, torch.float64), 0.5)


@pytest.mark.parametrize(("left", "right", "expected"), [(-1.0, 1.0, 1.0), (0.5, 1.5, 0.0)])
def test_the_loss_along_an_interpolated_path_has_the_barrier_of_the_double_well(
    left: float, right: float, expected: float
) -> None:
    t_P = path_points(11)
    x_P = [interpolate(scalar(left), scalar(right), t)["w"].item() for t in t_P]
    # Around the one minimum at 1, from 0.5 to 1.5, the loss is convex enough to stay below the line.
    assert barrier(t_P, [(x**2 - 1) ** 2 for x in x_P]) == pytest.approx(expected, abs=1e-6)


def test_a_weighted_sum_is_exact_where_one_state_has_all_the_weight() -> None:
    states = [scalar(-0.0), scalar(math.inf), scalar(2.0)]
    for index, state in enumerate(states):
        assert_bit_equal(weighted_sum(states, [float(index == other) for other in range(3)]), state)
    assert weighted_sum([scalar(1.0), scalar(2.0), scalar(4.0)], (0.5, 0.25, 0.25))["w"].item() == 2.0


# Averages


@pytest.mark.parametrize(
    ("values", "mean"), [([0.3], 0.3), ([0.0, 1.0], 0.5), ([0.0, 0.0, 3.0], 1.0), ([1.0, 2.0, 6.0], 3.0)]
)
def test_an_average_is_the_arithmetic_mean(values: list[float], mean: float) -> None:
    torch.testing.assert_close(average([scalar(value) for value in values]), scalar(mean), rtol=0, atol=0)


def test_an_average_is_summed_in_float64() -> None:
    # In float32 both ones would be lost: 2**24 + 1 == 2**24.
    assert average([scalar(2.0**24), scalar(1.0), scalar(1.0)])["w"].item() == (2**24 + 2) / 3


def test_an_average_takes_counters_from_the_first_state() -> None:
    soup = average([network_state(0, steps=3), network_state(1, steps=8)])
    assert soup["1.num_batches_tracked"].item() == 3


@pytest.mark.parametrize("members", [1, 2])
def test_averaging_leaves_its_inputs_untouched_and_shares_no_memory_with_them(members: int) -> None:
    states = [network_state(seed, steps=1) for seed in range(members)]
    before = [{name: x.clone() for name, x in state.items()} for state in states]
    for tensor in average(states).values():
        tensor.zero_()
    for state, as_before in zip(states, before, strict=True):
        assert_bit_equal(state, as_before)


def test_averaging_a_generator_does_not_hold_all_its_states() -> None:
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most_alive = 0

    def states() -> Iterator[StateDict]:
        nonlocal most_alive
        for value in range(8):
            state = scalar(float(value))
            alive.add(state["w"])
            most_alive = max(most_alive, len(alive))
            yield state

    assert average(states())["w"].item() == 3.5
    assert most_alive <= 3  # the first, the last added, and the one just made


def test_the_average_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no states"):
        average([])


def test_an_average_of_states_that_differ_is_refused() -> None:
    with pytest.raises(ValueError, match=r"w is .*\[1\] and .*\[2\]"):
        average([scalar(1.0), scalar(1.0), {"w": torch.zeros(2)}])


# Distance


def test_distance_is_euclidean_over_all_named_tensors() -> None:
    a = {"u": torch.zeros(2, 1), "v": torch.zeros(1)}
    b = {"u": torch.tensor([[2.0], [3.0]]), "v": torch.tensor([6.0])}
    assert l2_distance(a, b, ["u", "v"]) == pytest.approx(7.0, rel=1e-15)


def test_distance_leaves_out_what_is_not_named() -> None:
    names = ["0.weight", "0.bias", "1.weight", "1.bias"]
    a, b = network_state(0, steps=1), network_state(0, steps=2)
    assert not torch.equal(a["1.running_mean"], b["1.running_mean"])
    b["0.bias"] += 2.0
    assert l2_distance(a, b, names) == pytest.approx(4.0, rel=1e-6)
    assert l2_distance(a, b, (name for name in names if name != "0.bias")) == 0.0


@pytest.mark.parametrize("b", [{}, {"w": torch.zeros(2)}], ids=["absent", "broadcastable"])
def test_distance_needs_the_same_tensors(b: StateDict) -> None:
    with pytest.raises(ValueError, match="w is"):
        l2_distance(scalar(1.0), b, ["w"])


def test_distance_over_a_name_that_neither_state_has_is_refused() -> None:
    with pytest.raises(ValueError, match="weight is absent and absent"):
        l2_distance(scalar(1.0), scalar(2.0), ["weight"])
