"""rand_augment and color_jitter, on whole batches, each image with draws of its own.

The transforms of torchvision draw once for all images of a batch, and those of timm take one PIL image at a time. Here
draws come first, for all images of an epoch, and batches then go through torchvision's kernels.

Axes: N images of the whole set, B of a batch, C = 3 channels, S height and width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

# rand_augment: timm's policy rand-m9-inc1 of torchvision's operations

Operation = Callable[[Tensor, list[float]], Tensor]
"""From uint8 images [B, C, S, S] and the colour that fills what is uncovered."""


def _kernel(kernel: Callable[..., Tensor], *amount: float) -> Operation:
    """An operation that uncovers nothing."""
    return lambda pixels, fill: kernel(pixels, *amount)


def _rotate(degrees: float) -> Operation:
    return lambda pixels, fill: TF.rotate(pixels, degrees, InterpolationMode.BILINEAR, fill=fill)


def _affine(shear: tuple[float, float] = (0.0, 0.0), shift: tuple[float, float] = (0.0, 0.0)) -> Operation:
    """Sheared about the upper left corner by so many pixels a pixel, and shifted by so many sides, along x and y."""
    degrees = [math.degrees(math.atan(slope)) for slope in shear]

    def apply(pixels: Tensor, fill: list[float]) -> Tensor:
        moved = [round(share * pixels.shape[-1]) for share in shift]
        return TF.affine(pixels, 0.0, moved, 1.0, degrees, InterpolationMode.BILINEAR, fill=fill, center=[0.0, 0.0])

    return apply


KINDS: tuple[tuple[Operation, Operation], ...] = (
    (_kernel(TF.autocontrast),) * 2,
    (_kernel(TF.equalize),) * 2,
    (_kernel(TF.invert),) * 2,
    (_rotate(27.0), _rotate(-27.0)),
    (_kernel(TF.posterize, 1),) * 2,
    (_kernel(TF.solarize, 26),) * 2,
    (_kernel(lambda pixels: torch.where(pixels < 128, pixels + 99, pixels)),) * 2,  # solarize_add
    (_kernel(TF.adjust_saturation, 0.19), _kernel(TF.adjust_saturation, 1.81)),
    (_kernel(TF.adjust_contrast, 0.19), _kernel(TF.adjust_contrast, 1.81)),
    (_kernel(TF.adjust_brightness, 0.19), _kernel(TF.adjust_brightness, 1.81)),
    (_kernel(TF.adjust_sharpness, 0.19), _kernel(TF.adjust_sharpness, 1.81)),
    (_affine(shear=(0.27, 0.0)), _affine(shear=(-0.27, 0.0))),
    (_affine(shear=(0.0, 0.27)), _affine(shear=(0.0, -0.27))),
    (_affine(shift=(0.405, 0.0)), _affine(shift=(-0.405, 0.0))),
    (_affine(shift=(0.0, 0.405)), _affine(shift=(0.0, -0.405))),
)
"""The operations of timm's RandAugment at magnitude 9 of 10, each in both directions, if it has two.

Source: timm.data.auto_augment, `_RAND_INCREASING_TRANSFORMS` in its order, with what `LEVEL_TO_ARG` makes of 9.
"""
OPERATIONS: tuple[Operation, ...] = (lambda pixels, fill: pixels, *itertools.chain(*KINDS))
"""None, and the two directions of each kind."""


def draw_operations(n: int, generator: torch.Generator) -> Tensor:
    """Two operations [N, 2] for each image: one of the fifteen with probability 1/2, in either direction; else none."""
    device = generator.device
    kind_N2 = torch.randint(len(KINDS), (n, 2), generator=generator, device=device)
    other_N2 = torch.randint(2, (n, 2), generator=generator, device=device)
    applied_N2 = torch.rand(n, 2, generator=generator, device=device) < 0.5
    return torch.where(applied_N2, 1 + 2 * kind_N2 + other_N2, 0)


def rand_augment(
    pixels_BCSS: Tensor, operation_B2: Tensor, on_host_B2: npt.NDArray[np.int64], fill: list[float]
) -> Tensor:
    """uint8 images after two operations each, drawn for each image by itself.

    Images that get the same operation are put side by side and go through it together: the device sorts them, and the
    host, which has the same numbers, knows how many there are of each.

    Args:
        pixels_BCSS: values in [0, 255], rounded if they are no integers.
        operation_B2: positions in `OPERATIONS`, of the first and the second one.
        on_host_B2: the same numbers, on the host.
        fill: the colour of what is uncovered, C values in [0, 255].
    """
    if pixels_BCSS.dtype != torch.uint8:
        pixels_BCSS = pixels_BCSS.round().clamp_(0, 255).to(torch.uint8)
    for operation_B, on_host_B in zip(operation_B2.unbind(dim=1), on_host_B2.T, strict=True):
        order_B = operation_B.argsort(stable=True)
        present, counts = np.unique(on_host_B, return_counts=True)
        groups = pixels_BCSS[order_B].split(counts.tolist())
        done = torch.cat([OPERATIONS[which](group, fill) for which, group in zip(present, groups, strict=True)])
        pixels_BCSS = torch.empty_like(done).index_copy_(0, order_B, done)
    return pixels_BCSS


# color_jitter

JITTER = 0.4
"""Brightness, contrast and saturation are multiplied by 1 - 0.4 to 1 + 0.4."""


def draw_jitter(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Factors and order, as torchvision's ColorJitter(0.4, 0.4, 0.4) draws them."""
    factor_N3 = 1 - JITTER + 2 * JITTER * torch.rand(n, 3, generator=generator, device=generator.device)
    return factor_N3, torch.rand(n, 3, generator=generator, device=generator.device).argsort(dim=1)


def color_jitter(pixels_BCSS: Tensor, factor_B3: Tensor, order_B3: Tensor) -> Tensor:
    """Brightness, contrast and saturation changed by the factors of each image, in its own order.

    Each is a blend f x + (1 - f) y with another image y: black, the mean grey, or the grey image. As torchvision's
    ColorJitter, which would give all images of a batch the same factors, and without rounding in between.
    """
    pixels = pixels_BCSS.float()
    for which_B in order_B3.unbind(dim=1):
        factor_B = factor_B3.gather(1, which_B[:, None])[:, :, None, None]
        which_B = which_B[:, None, None, None]
        grey = TF.rgb_to_grayscale(pixels, num_output_channels=1)
        other = torch.where(which_B == 2, grey, torch.where(which_B == 1, grey.mean(dim=(2, 3), keepdim=True), 0.0))
        pixels = (factor_B * pixels + (1 - factor_B) * other).clamp_(0, 255)
    return pixels
