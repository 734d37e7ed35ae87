"""rand_augment and color_jitter: timm's policy on torchvision's operations, each image with draws of its own."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from torchvision.transforms import v2

from raybasin.training import rand_augment

MEAN = (124, 116, 104)
FILL = [float(value) for value in MEAN]


def smooth_images(n=3, size=48):
    """Smooth colours, so that the interpolation of a rotation matters little, and a patch of noise for sharpness to
    change; each image other ones."""
    y, x = np.mgrid[0:size, 0:size] / size
    waves = [
        [127 + 110 * np.sin(2 * np.pi * (x * (k + 1) / 2 + y * (c + 1) / 3) + k) for c in range(3)] for k in range(n)
    ]
    images = np.asarray(waves).round().astype(np.uint8)
    images[:, :, 20:26, 20:26] = np.random.default_rng(0).integers(0, 256, (n, 3, 6, 6))
    return torch.from_numpy(images)


def timms(kind, images_BCSS, sign):
    """What timm's operation `kind` at magnitude 9 makes of PIL images; `sign` is its random direction."""
    name = auto_augment._RAND_INCREASING_TRANSFORMS[kind]
    arguments = auto_augment.LEVEL_TO_ARG[name]
    level = arguments(9, {}) if arguments else ()
    if name.startswith(("Shear", "Translate", "Rotate")):
        level = (sign * abs(level[0]),)
    elif name[:5] in ("Color", "Contr", "Brigh", "Sharp"):
        level = (1 + sign * 0.81,)
    made = [
        auto_augment.NAME_TO_OP[name](
            Image.fromarray(image.permute(1, 2, 0).numpy()), *level, fillcolor=MEAN, resample=Image.Resampling.BILINEAR
        )
        for image in images_BCSS
    ]
    return torch.from_numpy(np.stack([np.asarray(image) for image in made])).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", range(len(rand_augment.KINDS)), ids=auto_augment._RAND_INCREASING_TRANSFORMS)
def test_the_two_directions_of_an_operation_are_those_of_timm(kind):
    images = smooth_images()
    ours = [operation(images, FILL).int() for operation in rand_augment.KINDS[kind]]
    theirs = [timms(kind, images, sign).int() for sign in (1, -1)]
    name = auto_augment._RAND_INCREASING_TRANSFORMS[kind]
    exact = not name.startswith(("Shear", "Translate", "Rotate"))

    def alike(a, b):
        """Colours to two levels. Geometry where it shows the image: its border may lie a pixel further."""
        difference = (a - b).abs()
        return difference.max() <= 2 if exact else (difference > 12).float().mean() < 0.06

    assert all(any(alike(our, their) for their in theirs) for our in ours)
    assert all(any(alike(our, their) for our in ours) for their in theirs)
    assert not any(alike(our, images.int()) for our in ours)


def test_there_are_all_operations_of_timm_and_none_twice():
    assert len(rand_augment.KINDS) == len(auto_augment._RAND_INCREASING_TRANSFORMS) == 15
    assert len(rand_augment.OPERATIONS) == 1 + 2 * 15


def test_every_image_gets_its_own_two_operations_whatever_its_batch():
    images = smooth_images(12)
    operation_B2 = rand_augment.draw_operations(12, torch.Generator().manual_seed(0))
    before = images.clone()
    together = rand_augment.rand_augment(images, operation_B2, operation_B2.numpy(), FILL)
    for k, (first, second) in enumerate(operation_B2.tolist()):
        alone = rand_augment.OPERATIONS[second](rand_augment.OPERATIONS[first](images[k : k + 1], FILL), FILL)
        assert torch.equal(together[k : k + 1], alone)
    assert torch.equal(images, before) and together.dtype == torch.uint8


def test_resampled_pixels_are_rounded_before():
    images = smooth_images(2).float() + 0.4
    none = torch.zeros(2, 2, dtype=torch.int64)
    assert torch.equal(rand_augment.rand_augment(images, none, none.numpy(), FILL), smooth_images(2))


def test_half_of_the_operations_are_none_and_the_others_uniform():
    drawn = rand_augment.draw_operations(60_000, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn.flatten(), minlength=31) / drawn.numel()
    assert abs(share[0] - 0.5) < 0.01
    assert len(share) == 31 and (share[1:] - 1 / 60).abs().max() < 0.002


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_jitter_is_torchvisions_with_the_factors_and_order_of_each_image(order):
    images = smooth_images(4)
    factor_B3, _ = rand_augment.draw_jitter(4, torch.Generator().manual_seed(1))
    order_B3 = torch.tensor([order] * 3 + [order[::-1]])
    ours = rand_augment.color_jitter(images, factor_B3, order_B3)
    change = (v2.functional.adjust_brightness, v2.functional.adjust_contrast, v2.functional.adjust_saturation)
    for k in range(4):
        expected = images[k].float() / 255
        for which in order_B3[k].tolist():
            expected = change[which](expected, float(factor_B3[k, which]))
        torch.testing.assert_close(ours[k] / 255, expected, atol=1e-5, rtol=0)


def test_jitter_factors_are_uniform_and_orders_are_too():
    factor_N3, order_N3 = rand_augment.draw_jitter(30_000, torch.Generator().manual_seed(0))
    assert factor_N3.min() >= 0.6 and factor_N3.max() <= 1.4
    assert (factor_N3.mean(0) - 1).abs().max() < 0.01
    assert (factor_N3.std(0) - 0.8 / 12**0.5).abs().max() < 0.01
    code = order_N3 @ torch.tensor([9, 3, 1])
    share = torch.unique(code, return_counts=True)[1] / len(code)
    assert len(share) == 6 and (share - 1 / 6).abs().max() < 0.01
