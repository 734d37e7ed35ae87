"""Moments and samples against closed forms and against the formulas as they are usually written."""

import math

import pytest
import torch

from raybasin.training import models, swag


def weights(*values):
    return {"w": torch.tensor(values, dtype=torch.float32)}


def collected(rows, rank=20):
    moments = swag.Moments()
    for row in rows:
        moments = swag.collect(moments, weights(*row), rank)
    return moments


def test_moments_of_one_two_and_three_collections_are_the_closed_form():
    one = collected([[1.0, 5.0]])
    assert one.count == 1 and one.mean["w"].tolist() == [1.0, 5.0] and one.squares["w"].tolist() == [0.0, 0.0]
    two = collected([[0.0, 5.0], [1.0, 5.0]])
    assert two.mean["w"].tolist() == [0.5, 5.0]
    assert (two.squares["w"] / 2).tolist() == [0.25, 0.0]
    three = collected([[0.0, 5.0], [0.0, 5.0], [3.0, 5.0]])
    assert three.mean["w"].tolist() == [1.0, 5.0]
    assert (three.squares["w"] / 3).tolist() == [2.0, 0.0]


def test_what_is_no_floating_number_has_no_moments_and_is_not_drawn():
    """A frozen parameter of integers: 3 - 1e-16 would become 2."""
    moments = swag.Moments()
    for value in (0.0, 1.0, 2.0):
        moments = swag.collect(moments, {"w": torch.tensor([value]), "index": torch.tensor([3])}, 20)
    assert set(moments.mean) == {"w"} and set(swag.sample(moments, 1.0, seed=0)) == {"w"}


def test_moments_equal_those_of_numpy_and_the_usual_formula():
    rows = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)).double()
    moments = collected(rows.tolist())
    torch.testing.assert_close(moments.mean["w"], rows.float().double().mean(0))
    usual = (rows.float().double() ** 2).mean(0) - rows.float().double().mean(0) ** 2
    torch.testing.assert_close(moments.squares["w"] / 9, usual)


def test_small_variances_of_large_weights_are_not_lost():
    """The mean square minus the squared mean in float32, as it is usually written, gives 0 or worse here."""
    moments = collected([[1000.0], [1000.0 + 2**-10], [1000.0 + 2**-9]])
    assert (moments.squares["w"] / 3).item() == pytest.approx(2 / 3 * 2**-20, rel=1e-9)


def test_deviations_are_from_the_running_mean_and_the_last_of_them_are_kept():
    rows = [[1.0], [3.0], [8.0], [0.0]]
    means = [1.0, 2.0, 4.0, 3.0]
    expected = [row[0] - mean for row, mean in zip(rows, means, strict=True)]
    assert [deviation["w"].item() for deviation in collected(rows).deviations] == expected
    assert [deviation["w"].item() for deviation in collected(rows, rank=2).deviations] == expected[-2:]


def test_collecting_changes_neither_the_weights_nor_the_moments_before():
    start, first = weights(1.0, 2.0), swag.Moments()
    before = swag.collect(first, start, 20)
    after = swag.collect(before, weights(3.0, 2.0), 20)
    assert start["w"].tolist() == [1.0, 2.0] and first.count == 0
    assert before.mean["w"].tolist() == [1.0, 2.0] and after.mean["w"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_draws_have_the_mean_and_the_covariance_of_the_formula(scale):
    """scale * (diag(variance) + D D^T / (K - 1)), estimated from many draws."""
    rows = torch.tensor([[0.0, 1.0], [2.0, 1.5], [1.0, 3.0], [4.0, -1.0]]).double()
    moments = collected(rows.tolist())
    d_KW = torch.stack([deviation["w"].double() for deviation in moments.deviations])
    expected = scale * (torch.diag(rows.var(0, correction=0)) + d_KW.T @ d_KW / (len(d_KW) - 1))
    draws = torch.stack([swag.sample(moments, scale, seed)["w"].double() for seed in range(6000)])
    torch.testing.assert_close(draws.mean(0), rows.mean(0), atol=0.1, rtol=0)
    torch.testing.assert_close(torch.cov(draws.T), expected, atol=0.25, rtol=0.06)


def test_a_draw_is_the_same_for_the_same_seed_and_in_the_type_of_the_weights():
    moments = collected([[0.0, 1.0], [2.0, 1.5]])
    a, b, c = (swag.sample(moments, 0.5, seed)["w"] for seed in (3, 3, 4))
    assert torch.equal(a, b) and not torch.equal(a, c) and a.dtype == torch.float32


def test_weights_that_never_moved_are_drawn_as_they_are():
    moments = collected([[0.25, -1.0]] * 3)
    assert swag.sample(moments, 0.5, 1)["w"].tolist() == [0.25, -1.0]


@pytest.mark.parametrize("rows", [[], [[1.0]]])
def test_fewer_than_two_collections_are_no_gaussian(rows):
    with pytest.raises(ValueError, match="two collected weights"):
        swag.sample(collected(rows), 0.5, 0)


def test_moments_come_back_from_a_file():
    moments = swag.Moments()
    for step in range(3):
        state = {"a.weight": torch.full((2, 2), float(step)), "b.bias": torch.tensor([math.pi * step])}
        moments = swag.collect(moments, state, rank=2)
    back = swag.from_tensors(models.from_bytes(models.to_bytes(swag.to_tensors(moments))))
    assert back.count == 3 and len(back.deviations) == 2
    for part in ("mean", "squares"):
        for name, tensor in getattr(moments, part).items():
            assert torch.equal(getattr(back, part)[name], tensor)
    assert torch.equal(swag.sample(back, 0.5, 1)["a.weight"], swag.sample(moments, 0.5, 1)["a.weight"])
