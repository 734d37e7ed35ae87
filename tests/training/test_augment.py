"""Augmentation: exact identities, torchvision's geometry and distributions, and draws that hang on nothing else."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2.functional import InterpolationMode

from raybasin.sweep.facts import Preprocess
from raybasin.training import augment
from raybasin.training.augment import EpochDraws, draw_epoch, evaluation_batch, training_batch

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def random_images(n=6, height=16, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator)


def preprocess(size=16, crop=1.0, interpolation="bilinear"):
    return Preprocess(size, crop, MEAN, STD, interpolation)


def draws(n, names, seed=0, height=16, width=16, shown=None):
    return draw_epoch(n, names, height, width, shown or preprocess(), torch.Generator().manual_seed(seed))


def pixels(batch_BCHW):
    """Back to pixel values in [0, 255], [B, H, W, C]."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    return ((batch_BCHW * std + mean) * 255).permute(0, 2, 3, 1)


def in_order(n, **chosen):
    return EpochDraws(order_N=torch.arange(n), **chosen)


# Evaluation


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (20, 31), (33, 18), (40, 40), (9, 7)])
@pytest.mark.parametrize("crop", [0.875, 1.0])
def test_evaluation_is_torchvisions_resize_crop_and_normalise(height, width, crop, interpolation):
    images = random_images(height=height, width=width)
    reference = v2.Compose(
        [
            v2.ToDtype(torch.float32),
            v2.Resize(round(16 / crop), InterpolationMode(interpolation), antialias=True),
            v2.Lambda(lambda x: x.clamp(0, 255) / 255),
            v2.CenterCrop(16),
            v2.Normalize(MEAN, STD),
        ]
    )
    expected = reference(images.permute(0, 3, 1, 2))
    torch.testing.assert_close(
        evaluation_batch(images, preprocess(16, crop, interpolation)), expected, atol=1e-4, rtol=0
    )


def test_images_of_the_right_size_are_not_resampled():
    images = random_images()
    batch = evaluation_batch(images, preprocess())
    expected = (images.permute(0, 3, 1, 2) / 255.0 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
        :, None, None
    ]
    torch.testing.assert_close(batch, expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(pixels(batch).round().to(torch.uint8), images)


def test_batches_are_float32_and_channels_last():
    images = random_images(height=20, width=20)
    for names in ((), ("flip",), ("random_resized_crop",), ("pad_crop", "flip")):
        batch, _ = training_batch(images, draws(6, names, height=20, width=20), slice(0, 4), preprocess())
        assert batch.shape == (4, 3, 16, 16)
        assert batch.dtype == torch.float32
        assert batch.is_contiguous(memory_format=torch.channels_last)


def test_constants_made_while_scoring_serve_in_training():
    shown = Preprocess(16, 1.0, (0.11, 0.12, 0.13), STD)
    with torch.inference_mode():
        evaluation_batch(random_images(), shown)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    (evaluation_batch(random_images(), shown) * weight).sum().backward()
    assert weight.grad is not None


# Training: identities


def test_without_augmentation_training_shows_what_evaluation_shows():
    images, shown = random_images(height=20, width=24), preprocess(16, 0.875)
    made = draws(6, (), height=20, width=24, shown=shown)
    batch, index_B = training_batch(images, made, slice(1, 5), shown)
    assert torch.equal(index_B, made.order_N[1:5])
    assert torch.equal(batch, evaluation_batch(images[index_B], shown))


def test_an_epoch_shows_every_image_once():
    made = draws(10, ("random_resized_crop", "flip"))
    shown = [training_batch(random_images(10), made, slice(i, i + 4), preprocess())[1] for i in (0, 4, 8)]
    assert torch.cat(shown).sort().values.tolist() == list(range(10))


def test_flipping_twice_is_the_identity():
    images = random_images()
    flip = in_order(6, flip_N=torch.tensor([True, False] * 3))
    once, _ = training_batch(images, flip, slice(0, 6), preprocess())
    assert torch.equal(pixels(once).round().to(torch.uint8)[::2], images[::2].flip(2))
    twice, _ = training_batch(pixels(once).round().to(torch.uint8), flip, slice(0, 6), preprocess())
    assert torch.equal(twice, evaluation_batch(images, preprocess()))


@pytest.mark.parametrize("size", [16, 24, 41, 9])
def test_a_full_box_is_plain_interpolation(size):
    images = random_images(height=16, width=12)
    full = in_order(6, box_N4=torch.tensor([[0, 0, 16, 12]] * 6))
    batch, _ = training_batch(images, full, slice(0, 6), preprocess(size))
    expected = F.interpolate(images.permute(0, 3, 1, 2).float(), (size, size), mode="bilinear", antialias=False)
    torch.testing.assert_close(pixels(batch), expected.permute(0, 2, 3, 1), atol=1e-2, rtol=0)


def test_a_box_is_cut_before_it_is_resized_and_flipped_after():
    images = random_images(n=2, height=16, width=20)
    boxes = torch.tensor([[3, 5, 7, 6], [0, 12, 16, 8]])
    flip_N = torch.tensor([False, True])
    batch, _ = training_batch(images, in_order(2, box_N4=boxes, flip_N=flip_N), slice(0, 2), preprocess())
    for k, (top, left, height, width) in enumerate(boxes.tolist()):
        cut = images[k, top : top + height, left : left + width].permute(2, 0, 1)[None].float()
        expected = F.interpolate(cut, (16, 16), mode="bilinear")[0].permute(1, 2, 0)
        expected = expected.flip(1) if flip_N[k] else expected
        torch.testing.assert_close(pixels(batch)[k], expected, atol=1e-2, rtol=0)


def test_a_pad_crop_in_the_middle_is_the_identity():
    images = random_images()
    middle = in_order(6, offset_N2=torch.full((6, 2), 16 // 8))
    batch, _ = training_batch(images, middle, slice(0, 6), preprocess())
    assert torch.equal(batch, evaluation_batch(images, preprocess()))


def test_pad_crop_is_a_window_of_the_reflected_image():
    images, pad = random_images(), 16 // 8
    offsets = torch.tensor([[0, 0], [4, 4], [1, 3], [2, 0], [0, 4], [3, 2]])
    flip_N = torch.tensor([False, True] * 3)
    batch, _ = training_batch(images, in_order(6, offset_N2=offsets, flip_N=flip_N), slice(0, 6), preprocess())
    padded = F.pad(images.permute(0, 3, 1, 2).float(), (pad,) * 4, mode="reflect").permute(0, 2, 3, 1)
    for k, (row, column) in enumerate(offsets.tolist()):
        expected = padded[k, row : row + 16, column : column + 16]
        expected = expected.flip(1) if flip_N[k] else expected
        assert torch.equal(pixels(batch)[k].round(), expected)


def test_pad_crop_resizes_first_where_it_must():
    images = random_images(height=20, width=24)
    middle = in_order(6, offset_N2=torch.full((6, 2), 2))
    batch, _ = training_batch(images, middle, slice(2, 6), preprocess())
    torch.testing.assert_close(batch, evaluation_batch(images[2:6], preprocess(16, 1.0)))


def test_inputs_are_not_written():
    images = random_images(height=20, width=20)
    before = images.clone()
    for names in (("random_resized_crop", "flip"), ("pad_crop", "flip"), ("flip",), ()):
        training_batch(images, draws(6, names, height=20, width=20), slice(0, 6), preprocess(16, 0.875))
    evaluation_batch(images, preprocess(20))
    assert torch.equal(images, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_step_never_waits_for_the_device():
    images, generator = random_images(50, 20, 20).cuda(), torch.Generator().manual_seed(0)
    for names in ((), ("flip",), ("pad_crop", "flip"), ("random_resized_crop", "flip")):
        made = draw_epoch(50, names, 20, 20, preprocess(), generator).to(images.device)
        training_batch(images, made, slice(0, 20), preprocess())  # constants reach the device once
        torch.cuda.set_sync_debug_mode("error")
        try:
            batch, _ = training_batch(images, made, slice(20, 40), preprocess())
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert batch.isfinite().all()


# Draws


def test_equal_seeds_give_equal_epochs_and_others_do_not():
    names = ("random_resized_crop", "flip")
    first, again, other = (draws(50, names, seed=seed) for seed in (1, 1, 2))
    for field in ("order_N", "flip_N", "box_N4"):
        assert torch.equal(getattr(first, field), getattr(again, field))
        assert not torch.equal(getattr(first, field), getattr(other, field))


def test_what_an_image_looks_like_does_not_hang_on_its_batch():
    images, names = random_images(12), ("random_resized_crop", "flip")
    made = draws(12, names)
    whole, _ = training_batch(images, made, slice(0, 12), preprocess())
    parts = [training_batch(images, made, slice(i, i + 5), preprocess())[0] for i in (0, 5, 10)]
    assert torch.equal(whole, torch.cat(parts))


def test_leaving_out_the_crop_keeps_order_and_flips():
    crop, plain = draws(50, ("random_resized_crop", "flip")), draws(50, ("flip",))
    assert torch.equal(crop.order_N, plain.order_N)
    assert torch.equal(crop.flip_N, plain.flip_N)


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match="cutout"):
        draws(4, ("cutout",))


def test_flips_and_offsets_are_uniform():
    made = draws(20_000, ("pad_crop", "flip"))
    assert abs(made.flip_N.float().mean() - 0.5) < 0.02
    counts = torch.bincount(made.offset_N2.flatten(), minlength=5)
    assert len(counts) == 5
    assert (counts / counts.sum() - 0.2).abs().max() < 0.02


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 48), (20, 60)])
def test_crops_are_distributed_like_torchvisions(height, width):
    n = 4000
    ours = draws(n, ("random_resized_crop",), height=height, width=width).box_N4.numpy()
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, list(augment.CROP_SCALE), list(augment.CROP_RATIO)) for _ in range(n)]
    )
    top, left, box_height, box_width = ours.T
    assert (ours[:, :2] >= 0).all()
    assert (top + box_height <= height).all()
    assert (left + box_width <= width).all()
    assert (ours[:, 2:] > 0).all()
    for feature in (
        lambda box: box[:, 2] * box[:, 3] / (height * width),
        lambda box: np.log(box[:, 3] / box[:, 2]),
        lambda box: box[:, 0] / height,
        lambda box: box[:, 1] / width,
    ):
        a, b = np.sort(feature(ours)), np.sort(feature(theirs))
        # Two-sample Kolmogorov-Smirnov at a level of 1e-5; ties only make it smaller.
        both = np.concatenate([a, b])
        distance = np.abs(np.searchsorted(a, both, "right") - np.searchsorted(b, both, "right")).max() / n
        assert distance < math.sqrt(-math.log(1e-5 / 2) / n)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (10, 200), (200, 10), (7, 9)])
def test_the_fall_back_is_torchvisions_centre_crop(monkeypatch, height, width):
    # A scale above 1 never fits, so that torchvision falls back too.
    monkeypatch.setattr(augment, "CROP_SCALE", (4.0, 4.0))
    expected = RandomResizedCrop.get_params(torch.empty(3, height, width), [4.0, 4.0], list(augment.CROP_RATIO))
    boxes = draws(5, ("random_resized_crop",), height=height, width=width).box_N4
    assert boxes.tolist() == [list(expected)] * 5


# Bicubic crops, rand_augment, color_jitter and random_erasing

FURTHER = ("rand_augment", "color_jitter", "random_erasing")


def test_a_bicubic_crop_is_interpolate_inside_and_has_the_boxes_of_the_bilinear_one():
    bilinear, bicubic = (draws(50, (name, "flip")) for name in ("random_resized_crop", "random_resized_crop_bicubic"))
    assert torch.equal(bilinear.box_N4, bicubic.box_N4) and bicubic.bicubic and not bilinear.bicubic
    images = random_images(n=2, height=24, width=24)
    boxes = torch.tensor([[4, 5, 12, 10], [0, 0, 24, 24]])
    batch, _ = training_batch(images, in_order(2, box_N4=boxes, bicubic=True), slice(0, 2), preprocess(32))
    for k, (top, left, height, width) in enumerate(boxes.tolist()):
        cut = images[k, top : top + height, left : left + width].permute(2, 0, 1)[None].float()
        expected = F.interpolate(cut, (32, 32), mode="bicubic")[0].permute(1, 2, 0).clamp(0, 255)
        edge = 0 if (height, width) == (24, 24) else 8  # there the crop alone repeats its edge
        inside = slice(edge, 32 - edge)
        torch.testing.assert_close(pixels(batch)[k][inside, inside], expected[inside, inside], atol=2e-2, rtol=0)


@pytest.mark.parametrize("name", FURTHER)
def test_a_further_augmentation_moves_no_other_draw(name):
    base = ("random_resized_crop", "flip")
    rest = tuple(other for other in FURTHER if other != name)
    without, with_it = draws(30, (*base, *rest)), draws(30, (*base, *rest, name))
    changed = {
        field
        for field, value in vars(with_it).items()
        if not (value is vars(without)[field] or np.array_equal(value, vars(without)[field]))
    }
    expected = {
        "rand_augment": {"operation_N2", "operation_P2"},
        "color_jitter": {"jitter_N3", "jitter_order_N3"},
        "random_erasing": {"erase_N4"},
    }
    assert changed == expected[name]
    plain = draws(30, base)
    for field in ("order_N", "flip_N", "box_N4"):
        assert torch.equal(getattr(plain, field), getattr(with_it, field))


def test_equal_seeds_give_equal_bits_and_another_seed_others():
    images, names = random_images(12), ("random_resized_crop", "flip", *FURTHER)
    first, again, other = (
        training_batch(images, draws(12, names, seed=seed), slice(0, 6), preprocess())[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.is_contiguous(memory_format=torch.channels_last) and first.isfinite().all()


def test_nothing_is_drawn_from_the_generators_of_the_process():
    import random

    images, made = random_images(12), draws(12, ("random_resized_crop", *FURTHER))
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    training_batch(images, made, slice(0, 6), preprocess())
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_an_operation_goes_to_the_image_it_was_drawn_for():
    images = random_images(12)
    made = draws(12, ("rand_augment",))
    batch, index_B = training_batch(images, made, slice(4, 10), preprocess())
    fill = [float(round(255 * mean)) for mean in MEAN]
    for k, index in enumerate(index_B.tolist()):
        expected = images[index].permute(2, 0, 1)[None]
        for which in made.operation_N2[index].tolist():
            expected = augment.rand_augment.OPERATIONS[which](expected, fill)
        assert torch.equal(pixels(batch)[k].round().to(torch.uint8), expected[0].permute(1, 2, 0))


def test_erasing_puts_normal_noise_into_the_box_and_leaves_the_rest():
    images = random_images(3, 64, 64)
    shown = preprocess(64)
    boxes = torch.tensor([[10, 20, 30, 40], [0, 0, 0, 0], [0, 0, 64, 64]])
    plain, _ = training_batch(images, in_order(3), slice(0, 3), shown)
    batch, _ = training_batch(images, in_order(3, erase_N4=boxes, noise_seed=5), slice(0, 3), shown)
    inside = torch.zeros(3, 64, 64, dtype=torch.bool)
    inside[0, 10:40, 20:60] = inside[2] = True
    inside = inside[:, None].expand_as(batch)
    assert torch.equal(batch[~inside], plain[~inside])
    noise = batch[inside]
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    assert (batch[0, :, 10:40, 20:60] - batch[2, :, 10:40, 20:60]).abs().min() > 0  # no two images have the same noise


def test_erased_boxes_are_distributed_like_timms():
    """timm's own are found by letting it erase images of ones with zeros."""
    import random

    from timm.data.random_erasing import RandomErasing

    n, size = 4000, 32
    ours = draws(n, ("random_erasing",), shown=preprocess(size)).erase_N4
    erase = RandomErasing(augment.ERASE_SHARE, mode="const", device="cpu")
    random.seed(0)
    theirs = (erase(torch.ones(n, 1, size, size)) == 0)[:, 0]
    position = torch.arange(size)
    rows = (position >= ours[:, :1]) & (position < ours[:, :1] + ours[:, 2:3])
    columns = (position >= ours[:, 1:2]) & (position < ours[:, 1:2] + ours[:, 3:])
    mine = rows[:, :, None] & columns[:, None, :]
    assert abs(mine.any(dim=(1, 2)).float().mean() - augment.ERASE_SHARE) < 0.025
    for feature in (
        lambda erased: erased.float().sum(dim=(1, 2)),
        lambda erased: erased.any(dim=2).float().sum(dim=1),
        lambda erased: erased.any(dim=1).float().sum(dim=1),
        lambda erased: erased.any(dim=1).int().argmax(dim=1),
    ):
        a, b = (feature(erased[erased.any(dim=(1, 2))]).numpy() for erased in (mine, theirs))
        both = np.concatenate([a, b])
        share_a, share_b = (np.searchsorted(np.sort(x), both, "right") / len(x) for x in (a, b))
        # Two-sample Kolmogorov-Smirnov at a level of 1e-5; ties only make it smaller.
        assert np.abs(share_a - share_b).max() < math.sqrt(-math.log(1e-5 / 2) / min(len(a), len(b)))
