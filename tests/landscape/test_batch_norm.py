"""Batch-norm statistics against those computed by hand."""

import math
from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import nn

from raybasin.landscape import batch_norm


def assert_bit_equal(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> None:
    assert {name: x.numpy().tobytes() for name, x in a.items()} == {name: x.numpy().tobytes() for name, x in b.items()}


class Spy(nn.Module):
    """Passes its input on and notes in which mode."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[bool, bool]] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add((self.training, torch.is_grad_enabled()))
        return x


class NormAndDrop(nn.BatchNorm1d):
    """Batch norm that owns a further layer, as timm's BatchNormAct2d does."""

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.drop = Spy()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rest: torch.Tensor = self.drop(super().forward(x))
        return rest


@pytest.fixture
def unequal_batches() -> list[torch.Tensor]:
    """8, 5 and 2 images of 3 channels, each batch at a level of its own."""
    torch.manual_seed(0)
    return [torch.randn(n, 3) * (i + 1) + 10 * i for i, n in enumerate((8, 5, 2))]


def test_statistics_are_means_over_images_and_not_over_batches(unequal_batches: list[torch.Tensor]) -> None:
    net = nn.BatchNorm1d(3)
    assert batch_norm.reestimate(net, unequal_batches) == 15
    mean = torch.cat(unequal_batches).mean(dim=0)
    variance = sum(len(batch) * batch.var(dim=0) for batch in unequal_batches) / 15
    torch.testing.assert_close(net.running_mean, mean)
    torch.testing.assert_close(net.running_var, variance)
    torch.optim.swa_utils.update_bn(unequal_batches, net)
    assert not torch.allclose(net.get_buffer("running_mean"), mean, rtol=0.1)


def test_a_deeper_layer_sees_what_the_layer_before_it_gives_in_training(
    unequal_batches: list[torch.Tensor],
) -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(), nn.BatchNorm1d(3))
    batch_norm.reestimate(net, unequal_batches)
    inner = [torch.relu((x - x.mean(dim=0)) / (x.var(dim=0, correction=0) + 1e-5).sqrt()) for x in unequal_batches]
    torch.testing.assert_close(net[2].running_mean, torch.cat(inner).mean(dim=0))


def test_old_statistics_leave_no_trace(unequal_batches: list[torch.Tensor]) -> None:
    fresh, diverged = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    diverged.get_buffer("running_mean").fill_(math.nan)
    diverged.get_buffer("running_var").fill_(math.inf)
    batch_norm.reestimate(fresh, unequal_batches)
    batch_norm.reestimate(diverged, unequal_batches)
    assert_bit_equal(fresh.state_dict(), diverged.state_dict())


def test_estimating_twice_changes_nothing(unequal_batches: list[torch.Tensor]) -> None:
    net = nn.BatchNorm1d(3)
    batch_norm.reestimate(net, unequal_batches)
    once = {name: x.clone() for name, x in net.state_dict().items()}
    batch_norm.reestimate(net, unequal_batches)
    assert_bit_equal(net.state_dict(), once)


def test_dropout_stays_off(unequal_batches: list[torch.Tensor]) -> None:
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    batch_norm.reestimate(net, unequal_batches)
    torch.testing.assert_close(net[1].running_mean, torch.cat(unequal_batches).mean(dim=0))


def test_only_batch_norm_itself_is_in_training_mode_and_no_gradients_are_kept(
    unequal_batches: list[torch.Tensor],
) -> None:
    norm, outer = NormAndDrop(3), Spy()
    batch_norm.reestimate(nn.Sequential(norm, outer).train(), unequal_batches)
    assert norm.drop.seen == outer.seen == {(False, False)}
    torch.testing.assert_close(norm.running_mean, torch.cat(unequal_batches).mean(dim=0))


@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
def test_the_net_is_left_in_eval_mode_with_its_momentum(
    unequal_batches: list[torch.Tensor], momentum: float | None
) -> None:
    net = nn.Sequential(nn.BatchNorm1d(3, momentum=momentum), nn.Dropout()).train()
    batch_norm.reestimate(net, unequal_batches)
    assert net[0].momentum == momentum
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
def test_an_error_in_the_batches_leaves_eval_mode_and_momentum_as_well(
    unequal_batches: list[torch.Tensor], momentum: float | None
) -> None:
    def interrupted() -> Iterator[torch.Tensor]:
        yield unequal_batches[0]
        raise RuntimeError("disk gone")

    net = nn.Sequential(nn.BatchNorm1d(3, momentum=momentum)).train()
    with pytest.raises(RuntimeError, match="disk gone"):
        batch_norm.reestimate(net, interrupted())
    assert net[0].momentum == momentum
    assert not any(module.training for module in net.modules())


def test_weights_do_not_change(unequal_batches: list[torch.Tensor]) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = {name: x.detach().clone() for name, x in net.named_parameters()}
    batch_norm.reestimate(net, unequal_batches)
    assert_bit_equal({name: x.detach() for name, x in net.named_parameters()}, before)


@pytest.mark.parametrize("norm", [nn.LayerNorm(3), nn.BatchNorm1d(3, track_running_stats=False)])
def test_a_net_without_running_statistics_is_skipped_and_the_batches_are_not_touched(norm: nn.Module) -> None:
    def untouched() -> Iterator[torch.Tensor]:
        pytest.fail("the batches were read")
        yield torch.empty(0)

    assert batch_norm.reestimate(nn.Sequential(nn.Linear(3, 3), norm), untouched()) == 0


def test_no_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="no batches"):
        batch_norm.reestimate(nn.BatchNorm1d(3), [])


def test_batch_norm_of_every_kind_is_found_and_nothing_else() -> None:
    found = [nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.BatchNorm3d(3), nn.SyncBatchNorm(3), NormAndDrop(3)]
    others = [nn.LayerNorm(3), nn.InstanceNorm2d(3, track_running_stats=True), nn.GroupNorm(1, 3)]
    untracked = [nn.BatchNorm2d(3, track_running_stats=False)]
    assert batch_norm.layers(nn.ModuleList([*others, *found, *untracked])) == found
