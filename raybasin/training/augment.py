"""uint8 images on the device -> normalised float batches, augmented there.

All that is random about an epoch is drawn at once at its start (`draw_epoch`), on the host, so that it is the same on
every device; a batch (`training_batch`) is then a pure function of those draws. With the images on the device nothing
moves in it between host and device or waits for the device, but for the small matrices of rand_augment's rotations and
shears. No input is written. An image is cropped, flipped, rand-augmented, colour-jittered, normalised and erased, in
this order, which is timm's.

Axes: N images of the whole set, B of a batch, H and W stored size, S output size, C = 3 channels, T tries.
Batches are [B, C, S, S] in channels-last memory format: the order in which images are stored, and the faster one for
convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from raybasin.data.decoding import DeviceImages, ImageReader
from raybasin.sweep.facts import Preprocess
from raybasin.sweep.ids import random_seed
from raybasin.sweep.specs import Augmentation
from raybasin.training import rand_augment

CROP_SCALE = (0.08, 1.0)  # smallest and largest area of a random crop, as a share of the image's
CROP_RATIO = (3 / 4, 4 / 3)  # least and greatest width / height of a random crop
CROP_TRIES = 10
ERASE_SHARE = 0.25  # of the images in which random_erasing erases a box
ERASE_SCALE = (0.02, 1 / 3)  # smallest and largest area of that box, as a share of the image's
ERASE_RATIO = (0.3, 1 / 0.3)  # least and greatest width / height of that box
PAD_DIVISOR = 8  # `pad_crop` pads by S // 8 pixels: the usual 4 of a CIFAR image of 32


@dataclass(eq=False)
class EpochDraws:
    """The random choices of one epoch. All but `order_N` go by image, so an image's do not hang on its batch."""

    order_N: Tensor  # int64 permutation: the image at each position of the epoch
    flip_N: Tensor | None = None  # bool: mirrored left to right
    box_N4: Tensor | None = None  # int64 (top, left, height, width) of a random_resized_crop, in stored pixels
    bicubic: bool = False  # whether those boxes are resized with bicubic interpolation; bilinear otherwise
    offset_N2: Tensor | None = None  # int64 (rows, columns) of a pad_crop in the padded image; S // 8 is no shift
    operation_N2: Tensor | None = None  # int64 positions in `rand_augment.OPERATIONS`
    operation_P2: npt.NDArray[np.int64] | None = None
    """The same by position in the epoch, and on the host, which must know how many images an operation gets."""
    jitter_N3: Tensor | None = None  # float32 factors of brightness, contrast and saturation of a color_jitter
    jitter_order_N3: Tensor | None = None  # int64: which of the three comes first, second and third
    erase_N4: Tensor | None = None
    """int64 (top, left, height, width) of a random_erasing, in the S x S image; 0 high where nothing is erased."""
    noise_seed: int = 0  # of what is put in the place of what is erased, on the device

    def to(self, device: torch.device) -> EpochDraws:
        """The same draws with their tensors on `device`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: v.to(device) for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def evaluation_batch(images_BHWC: Tensor, preprocess: Preprocess) -> Tensor:
    """float32 [B, 3, S, S]: shorter side resized to round(S / eval_crop) with antialiasing, centre crop, normalised.

    The same geometry as torchvision's Resize and CenterCrop. Where the images have that size already, nothing is
    resampled: pixel values are exact.
    """
    return _normalise(_resize_and_crop(images_BHWC, preprocess, preprocess.eval_crop), preprocess)


def draw_epoch(
    n: int, augment: Sequence[str], height: int, width: int, preprocess: Preprocess, generator: torch.Generator
) -> EpochDraws:
    """The draws of one epoch of `n` images of `height` x `width`, made on the generator's device.

    They depend on the generator's state and seed and on the arguments alone. The order is drawn before flips and these
    before crops, so that leaving a crop out of `augment` leaves the rest of the epoch as it is; the others draw from
    generators of their own.

    Args:
        n: how many images.
        augment: names of augmentations, in any order.
        height: of the stored images, in pixels.
        width: of the stored images, in pixels.
        preprocess: says what size they become.
        generator: on the device of the images.

    Raises:
        ValueError: for an unknown augmentation.
    """
    if unknown := set(augment) - set(get_args(Augmentation)):
        raise ValueError(f"unknown augmentation: {', '.join(sorted(unknown))}")
    device, seed = generator.device, generator.initial_seed()

    def own(name: str) -> torch.Generator:
        """For one augmentation, so that its draws move no others."""
        return torch.Generator(device).manual_seed(random_seed(seed, name))

    draws = EpochDraws(torch.randperm(n, generator=generator, device=device), noise_seed=random_seed(seed, "noise"))
    flip_N = torch.rand(n, generator=generator, device=device) < 0.5
    draws.flip_N = flip_N if "flip" in augment else None
    draws.bicubic = "random_resized_crop_bicubic" in augment
    if draws.bicubic or "random_resized_crop" in augment:
        draws.box_N4 = _draw_crops(n, height, width, generator)
    elif "pad_crop" in augment:
        shifts = 2 * (preprocess.image_size // PAD_DIVISOR) + 1
        draws.offset_N2 = torch.randint(shifts, (n, 2), generator=generator, device=device)
    if "rand_augment" in augment:
        draws.operation_N2 = rand_augment.draw_operations(n, own("rand_augment"))
        draws.operation_P2 = draws.operation_N2[draws.order_N].cpu().numpy()
    if "color_jitter" in augment:
        draws.jitter_N3, draws.jitter_order_N3 = rand_augment.draw_jitter(n, own("color_jitter"))
    if "random_erasing" in augment:
        size, erasing = preprocess.image_size, own("random_erasing")
        box_N4, fits_N = _draw_boxes(n, (size, size), ERASE_SCALE, ERASE_RATIO, erasing)
        erased_N = torch.rand(n, generator=erasing, device=device) < ERASE_SHARE
        draws.erase_N4 = box_N4 * (fits_N & erased_N)[:, None]
    return draws


def training_batch(
    images_NHWC: DeviceImages, draws: EpochDraws, positions: slice, preprocess: Preprocess
) -> tuple[Tensor, Tensor]:
    """The augmented images at `positions` of the epoch, float32 [B, 3, S, S], and which images they are, int64 [B].

    Without a crop in the draws the geometry is that of `evaluation_batch`.

    Raises:
        UserError: for an image that is decoded only now and cannot be.
    """
    index_B = draws.order_N[positions]
    flip_B = None if draws.flip_N is None else draws.flip_N[index_B]
    rows_B = index_B  # where the batch lies in images_NHWC
    if isinstance(images_NHWC, ImageReader):
        images_NHWC = images_NHWC.batch(draws.order_N, positions)
        rows_B = torch.arange(len(index_B), device=index_B.device)
    if draws.offset_N2 is not None:
        pixels = _pad_crop(images_NHWC, rows_B, draws.offset_N2[index_B], flip_B, preprocess)
    elif draws.box_N4 is not None:
        mode = "bicubic" if draws.bicubic else "bilinear"
        pixels = _resized_crop(images_NHWC[rows_B], draws.box_N4[index_B], flip_B, preprocess.image_size, mode)
    else:
        images_BHWC = images_NHWC[rows_B]
        if flip_B is not None:
            images_BHWC = torch.where(flip_B[:, None, None, None], images_BHWC.flip(2), images_BHWC)
        pixels = _resize_and_crop(images_BHWC, preprocess, preprocess.eval_crop)
    if draws.operation_N2 is not None and draws.operation_P2 is not None:
        fill = [float(round(255 * mean)) for mean in preprocess.mean]
        pixels = rand_augment.rand_augment(pixels, draws.operation_N2[index_B], draws.operation_P2[positions], fill)
    if draws.jitter_N3 is not None and draws.jitter_order_N3 is not None:
        pixels = rand_augment.color_jitter(pixels, draws.jitter_N3[index_B], draws.jitter_order_N3[index_B])
    shown = _normalise(pixels, preprocess)
    if draws.erase_N4 is not None:
        shown = _erase(shown, draws.erase_N4[index_B], random_seed(draws.noise_seed, positions.start))
    return shown, index_B


def _draw_crops(n: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Boxes [N, 4] as torchvision's RandomResizedCrop draws them: the first of ten tries that fits, else the largest
    centre crop whose ratio is allowed.

    Source: torchvision.transforms.RandomResizedCrop.get_params.
    """
    box_N4, fits_N = _draw_boxes(n, (height, width), CROP_SCALE, CROP_RATIO, generator)
    box_height, box_width = height, width
    if width < CROP_RATIO[0] * height:
        box_height = round(width / CROP_RATIO[0])
    elif width > CROP_RATIO[1] * height:
        box_width = round(height * CROP_RATIO[1])
    centre = (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
    return torch.where(fits_N[:, None], box_N4, torch.tensor(centre, device=generator.device))


def _draw_boxes(
    n: int, image: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Boxes [N, 4] of random area and shape: the first of ten tries that fits into the image, and whether one did [N].

    The tries of all images are made side by side. Areas are uniform, shapes (width / height) log-uniform.
    """
    device = generator.device
    share_NT, shape_NT = torch.rand(2, n, CROP_TRIES, generator=generator, device=device)
    area_NT = image[0] * image[1] * (scale[0] + (scale[1] - scale[0]) * share_NT)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    ratio_NT = torch.exp(low + (high - low) * shape_NT)
    size_NT2 = torch.stack([(area_NT / ratio_NT).sqrt(), (area_NT * ratio_NT).sqrt()], dim=-1).round().long()

    image_2 = torch.tensor(image, device=device)
    fits_NT = ((size_NT2 > 0) & (size_NT2 <= image_2)).all(dim=-1)
    first_N = fits_NT.int().argmax(dim=1)  # the first of equals
    size_N2 = size_NT2[torch.arange(n, device=device), first_N]
    place_N2 = torch.rand(n, 2, generator=generator, device=device)
    corner_N2 = (place_N2 * (image_2 - size_N2 + 1)).long().minimum(image_2 - size_N2)
    return torch.cat([corner_N2, size_N2], dim=1), fits_NT.any(dim=1)


# Geometry: pixel values in [0, 255] as [B, C, S, S], uint8 where nothing was resampled


def _resize_and_crop(images_BHWC: Tensor, preprocess: Preprocess, crop: float) -> Tensor:
    """Shorter side to round(S / crop), then the centre S x S, as torchvision's Resize and CenterCrop round them."""
    size, images_BCHW = preprocess.image_size, images_BHWC.permute(0, 3, 1, 2)
    height, width = images_BCHW.shape[-2:]
    shorter, mode = round(size / crop), preprocess.interpolation
    if min(height, width) != shorter:
        longer = int(shorter * max(height, width) / min(height, width))
        height, width = (longer, shorter) if height > width else (shorter, longer)
        # interpolate is about twice as fast on channel planes as on interleaved channels.
        planes = images_BCHW.to(torch.float32, memory_format=torch.contiguous_format)
        images_BCHW = F.interpolate(planes, (height, width), mode=mode, antialias=True, align_corners=False)
        if mode == "bicubic":  # which overshoots at edges
            images_BCHW.clamp_(0, 255)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return images_BCHW[:, :, top : top + size, left : left + size]


def _pad_crop(
    images_NHWC: Tensor, index_B: Tensor, offset_B2: Tensor, flip_B: Tensor | None, preprocess: Preprocess
) -> Tensor:
    """S x S windows of the reflect-padded images, as one gather: no padded copy is made and nothing is interpolated."""
    size = preprocess.image_size
    if images_NHWC.shape[1:3] != (size, size):
        resized = _resize_and_crop(images_NHWC[index_B], preprocess, crop=1.0)
        images_NHWC, index_B = resized.permute(0, 2, 3, 1), torch.arange(len(index_B), device=index_B.device)
    window_B2S = offset_B2[:, :, None] - size // PAD_DIVISOR + torch.arange(size, device=index_B.device)
    inside_B2S = (size - 1) - ((size - 1) - window_B2S.abs()).abs()
    row_BS, column_BS = inside_B2S.unbind(dim=1)
    if flip_B is not None:
        column_BS = torch.where(flip_B[:, None], column_BS.flip(1), column_BS)
    return images_NHWC[index_B[:, None, None], row_BS[:, :, None], column_BS[:, None, :]].permute(0, 3, 1, 2)


def _resized_crop(images_BHWC: Tensor, box_B4: Tensor, flip_B: Tensor | None, size: int, mode: str) -> Tensor:
    """Each image's box resized to S x S, as `interpolate` would resize the crop alone; in one grid_sample.

    Bicubic interpolation sees up to two pixels beyond the box, where the image has them. There is no antialiasing, as
    there was none in torchvision's tensor transforms when the methods compared here were published; it makes little
    difference where boxes are not much larger than S.
    """
    height, width = images_BHWC.shape[1:3]
    top_B, left_B, box_height_B, box_width_B = box_B4.unbind(dim=1)
    row_BS = _sample_points(top_B, box_height_B, size, within=mode == "bilinear")
    column_BS = _sample_points(left_B, box_width_B, size, within=mode == "bilinear")
    if flip_B is not None:
        column_BS = torch.where(flip_B[:, None], column_BS.flip(1), column_BS)
    # grid_sample counts from -1 to 1 between the outer edges of the outermost pixels.
    y_BS, x_BS = (2 * row_BS + 1) / height - 1, (2 * column_BS + 1) / width - 1
    grid_BSS2 = torch.stack([x_BS[:, None, :].expand(-1, size, -1), y_BS[:, :, None].expand(-1, -1, size)], dim=-1)
    images_BCHW = images_BHWC.permute(0, 3, 1, 2).float()
    resized = F.grid_sample(images_BCHW, grid_BSS2, mode=mode, padding_mode="border", align_corners=False)
    return resized.clamp_(0, 255) if mode == "bicubic" else resized


def _sample_points(start_B: Tensor, length_B: Tensor, size: int, within: bool) -> Tensor:
    """Where S evenly spaced pixels of a box fall among the stored pixels [B, S]; where they must lie `within` the box,
    never beyond its own pixels."""
    centre_S = torch.arange(size, device=start_B.device) + 0.5
    inside_BS = centre_S * (length_B[:, None] / size) - 0.5
    if within:
        inside_BS = inside_BS.clamp(min=0).minimum(length_B[:, None] - 1)
    return start_B[:, None] + inside_BS


def _erase(shown_BCSS: Tensor, box_B4: Tensor, seed: int) -> Tensor:
    """Normalised images with normal noise, pixel by pixel, in their boxes."""
    generator = torch.Generator(shown_BCSS.device).manual_seed(seed)
    noise_BSSC = torch.randn(*shown_BCSS.permute(0, 2, 3, 1).shape, generator=generator, device=shown_BCSS.device)
    position_S = torch.arange(shown_BCSS.shape[-1], device=shown_BCSS.device)
    top_B1, left_B1, height_B1, width_B1 = box_B4[:, :, None].unbind(dim=1)
    row_BS = (position_S >= top_B1) & (position_S < top_B1 + height_B1)
    column_BS = (position_S >= left_B1) & (position_S < left_B1 + width_B1)
    inside_B1SS = (row_BS[:, :, None] & column_BS[:, None, :])[:, None]
    return torch.where(inside_B1SS, noise_BSSC.permute(0, 3, 1, 2), shown_BCSS)


def _normalise(pixels_BCHW: Tensor, preprocess: Preprocess) -> Tensor:
    """(value / 255 - mean) / std as one multiplication, which makes the float copy, and one addition."""
    shift, scale = _shift_and_scale(preprocess, pixels_BCHW.device)
    return (pixels_BCHW * scale).add_(shift).contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=64)
def _shift_and_scale(preprocess: Preprocess, device: torch.device) -> tuple[Tensor, Tensor]:
    """[C, 1, 1] each. Kept, because making a tensor of host numbers at each step would wait for the device."""
    with torch.inference_mode(False):  # so that constants made while scoring also serve in training
        mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (preprocess.mean, preprocess.std))
        return (-mean / std).float().to(device), (1 / (255 * std)).float().to(device)
