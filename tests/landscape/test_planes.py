"""The plane through three members: coordinates and weights against closed forms."""

import math

import pytest
import torch

from raybasin.landscape import planes
from raybasin.landscape.interpolation import weighted_sum


def states(seed=0):
    """Three states with two parameters, a batch-norm statistic and a counter."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "w": torch.randn(3, 4, generator=generator), "b": torch.randn(5, generator=generator),
            "mean": 100 * torch.randn(4, generator=generator), "count": torch.tensor(7 + index),
        }
        for index in range(3)
    ]  # fmt: skip


NAMES = ["w", "b"]


def flat(state):
    return torch.cat([state[name].double().flatten() for name in NAMES])


def distance(p, q):
    return float(torch.dist(flat(p), flat(q)))


def at(three, frame, x, y):
    return weighted_sum(three, frame.shares(x, y))


def test_the_coordinates_of_a_triangle_are_those_of_school_geometry():
    """A triangle with sides 3, 4 and 5, put anywhere: the right angle is at a."""
    start = torch.tensor([10.0, -2.0, 7.0])
    a, b, c = ({"w": start + torch.tensor(v)} for v in ([0.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, -4.0]))
    assert planes.frame(a, b, c, ["w"]) == planes.Frame(3.0, 0.0, 4.0)
    assert planes.frame(b, a, c, ["w"]).members == ((0.0, 0.0), (3.0, 0.0), (3.0, 4.0))


def test_distances_between_members_are_distances_between_their_weights():
    a, b, c = states()
    p, q, r = planes.frame(a, b, c, NAMES).members
    for (one, at_one), (other, at_other) in (((a, p), (b, q)), ((a, p), (c, r)), ((b, q), (c, r))):
        assert math.dist(at_one, at_other) == pytest.approx(distance(one, other), rel=1e-12)


@pytest.mark.parametrize(("p", "q"), [((0, 0), (1, 2)), ((-3, 0.5), (2.5, -1)), ((7, 7), (7, -7))])
def test_the_plane_is_isometric(p, q):
    three = [{name: x.double() if x.is_floating_point() else x for name, x in state.items()} for state in states()]
    frame = planes.frame(*three, NAMES)
    assert distance(at(three, frame, *p), at(three, frame, *q)) == pytest.approx(math.dist(p, q), rel=1e-12)


def test_axes_are_those_of_gram_schmidt():
    three = [{name: x.double() if x.is_floating_point() else x for name, x in state.items()} for state in states()]
    a, b, c = map(flat, three)
    u = (b - a) / (b - a).norm()
    v = (c - a) - u * ((c - a) @ u)
    v = v / v.norm()
    frame = planes.frame(*three, NAMES)
    torch.testing.assert_close(flat(at(three, frame, 0.7, -1.3)), a + 0.7 * u - 1.3 * v, rtol=0, atol=1e-12)


def test_the_members_are_reproduced_bit_for_bit():
    three = states()
    three[1]["w"][0, 0] = -0.0
    frame = planes.frame(*three, NAMES)
    for member, place in zip(three, frame.members, strict=True):
        found = at(three, frame, *place)
        for name in ("w", "b", "mean"):
            assert found[name].numpy().tobytes() == member[name].numpy().tobytes()


@pytest.mark.parametrize("seed", range(20))
def test_shares_at_the_members_are_exact(seed):
    frame = planes.frame(*states(seed), NAMES)
    assert [frame.shares(*place) for place in frame.members] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]


def test_weights_are_summed_in_float64_and_rounded_once():
    three = states()
    frame = planes.frame(*three, NAMES)
    shares = frame.shares(0.37, 1.9)
    exact = sum(share * state["w"].double() for share, state in zip(shares, three, strict=True))
    found = at(three, frame, 0.37, 1.9)["w"]
    assert found.dtype == torch.float32 and torch.equal(found, exact.float())
    coarse = sum(share * state["w"] for share, state in zip(shares, three, strict=True))
    assert not torch.equal(found, coarse)  # so the comparison is not empty


def test_counters_are_those_of_the_first_member_everywhere():
    three = states()
    frame = planes.frame(*three, NAMES)
    assert {int(at(three, frame, *place)["count"]) for place in (*frame.members, (1.0, 1.0))} == {7}


@pytest.mark.parametrize(
    "place", [lambda a, b: b, lambda a, b: a, lambda a, b: 0.25 * a + 0.75 * b, lambda a, b: 3 * a - 2 * b]
)
def test_members_on_one_line_span_no_plane(place):
    a, b, _ = states()
    c = {name: place(a[name].double(), b[name].double()).float() for name in NAMES}
    with pytest.raises(ValueError, match="lie on one line"):
        planes.frame(a, b, c, NAMES)


def test_two_equal_members_span_no_plane():
    a, _, c = states()
    with pytest.raises(ValueError, match="lie on one line"):
        planes.frame(a, a, c, NAMES)


def test_what_is_small_beside_the_weights_still_spans_a_plane():
    a, _, _ = states()
    b, c = ({**a, name: a[name] + 1e-3} for name in NAMES)
    assert planes.frame(a, b, c, NAMES).cx == 0.0


def test_the_grid_covers_the_members_and_a_margin_of_their_longer_side():
    x_X, y_Y = planes.grid(((0.0, 0.0), (10.0, 0.0), (-2.0, 4.0)), 4, 0.25)
    assert x_X == pytest.approx([-5, 1, 7, 13]) and y_Y == pytest.approx([-3, -3 + 10 / 3, -3 + 20 / 3, 7])


def test_without_a_margin_the_members_on_the_border_are_points_of_the_grid():
    members = ((0.0, 0.0), (0.1, 0.0), (0.3, 0.7))
    x_X, y_Y = planes.grid(members, 7, 0.0)
    assert (x_X[0], x_X[-1], y_Y[0], y_Y[-1]) == (0.0, 0.3, 0.0, 0.7)


def test_complex_tensors_are_summed_and_masks_copied():
    a, b, c = ({"z": torch.tensor([z], dtype=torch.complex64), "mask": torch.tensor([m])}
               for z, m in ((1 + 1j, True), (2 + 3j, False), (-1 + 0j, False)))  # fmt: skip
    found = weighted_sum((a, b, c), (0.5, 0.25, 0.25))
    assert found["z"].item() == 0.5 * (1 + 1j) + 0.25 * (2 + 3j) + 0.25 * (-1)
    assert found["mask"].item() is True
    assert weighted_sum((a, b, c), (0.0, 1.0, 0.0))["z"].item() == 2 + 3j
