"""The params applied with plain torch operations, on any device: every step is exact on uint8.

The slow twin, one image at a time, is `tests/reference.py`.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from fastcifar.augment.params import TURN_BITS, AugmentParams, rotation_terms
from fastcifar.config import AugmentConfig


def to_device(params: AugmentParams, device: torch.device) -> dict[str, torch.Tensor]:
    """The columns of a table as int64 tensors, (N,) or (N, holes); `rotation` as its fixed-point terms, (N, 2)."""
    columns = {name: params[name] for name in params.dtype.names or ()}
    columns["rotation"] = rotation_terms(columns["rotation"])
    return {name: torch.from_numpy(column.astype(np.int64)).to(device) for name, column in columns.items()}


def fill_values(augment: AugmentConfig, mean: np.ndarray) -> np.ndarray:
    """What a cutout writes, (3,) uint8: black, or the dataset's mean rounded to 8 bits (half to even)."""
    return np.zeros(3, np.uint8) if augment.cutout_fill == "zero" else np.rint(mean).astype(np.uint8)


def apply_params(
    images: torch.Tensor, params: dict[str, torch.Tensor], augment: AugmentConfig, fill: torch.Tensor
) -> torch.Tensor:
    """Crop, flip, rotate, shift colours, cut out: (N, H, W, 3) uint8 -> (N, H, W, 3) uint8, a new tensor.

    Row i of `params` is for image i. `fill`, (3,) uint8, is what a cutout writes.
    """
    out = _crop_and_flip(images, params, augment)
    if augment.rotate_degrees:
        out = rotate(out, params["rotation"], reflect=augment.padding_mode == "reflect")
    if augment.shifts_colour:
        shifts = torch.stack([params[name] for name in ("hue", "saturation", "value")])  # (3, N)
        changed = (shifts != 0).any(0)
        out[changed] = _shift_colour(out[changed], shifts[:, changed])
    if augment.cutout_size:
        out = _cut_out(out, params, fill.to(images.device))
    return out


def _crop_and_flip(images: torch.Tensor, params: dict[str, torch.Tensor], augment: AugmentConfig) -> torch.Tensor:
    num, height, width, _ = images.shape
    device = images.device
    rows = torch.arange(height, device=device)[None, :]  # (1, H)
    columns = torch.arange(width, device=device)[None, :]  # (1, W)
    source_y = rows + params["crop_y"][:, None] - augment.crop_padding  # (N, H)
    flipped = torch.where(params["flip"][:, None].bool(), width - 1 - columns, columns)
    source_x = flipped + params["crop_x"][:, None] - augment.crop_padding  # (N, W)
    blank = None
    if augment.padding_mode == "reflect":
        source_y, source_x = _reflect(source_y, height), _reflect(source_x, width)
    elif augment.crop_padding:
        outside_y = (source_y < 0) | (source_y >= height)
        outside_x = (source_x < 0) | (source_x >= width)
        blank = outside_y[:, :, None] | outside_x[:, None, :]  # (N, H, W)
        source_y, source_x = source_y.clamp(0, height - 1), source_x.clamp(0, width - 1)
    which = torch.arange(num, device=device)[:, None, None]
    out = images[which, source_y[:, :, None], source_x[:, None, :]]  # (N, H, W, 3), copied
    if blank is not None:
        out.masked_fill_(blank[..., None], 0)
    return out


def rotate(images: torch.Tensor, terms: torch.Tensor, reflect: bool) -> torch.Tensor:
    """Turn each image about its centre, bilinear, with integers: `terms`, (N, 2) int64, of `params.rotation_terms`.

    The weights have 11 bits: within one grey level of exact arithmetic (and of OpenCV 5).
    """
    num, height, width, _ = images.shape
    device = images.device
    x = 2 * torch.arange(width, device=device)[None, None, :] - (width - 1)  # (1, 1, W), from the centre, doubled
    y = 2 * torch.arange(height, device=device)[None, :, None] - (height - 1)  # (1, H, 1)
    cos, sin = terms[:, 0, None, None], terms[:, 1, None, None]
    source_x = cos * x - sin * y + ((width - 1) << TURN_BITS)  # (N, H, W), units of 2**-17 of a pixel
    source_y = sin * x + cos * y + ((height - 1) << TURN_BITS)
    left, top = source_x >> TURN_BITS + 1, source_y >> TURN_BITS + 1
    right_part, lower_part = (source & (2 << TURN_BITS) - 1 for source in (source_x, source_y))
    right_part, lower_part = right_part >> TURN_BITS - 10, lower_part >> TURN_BITS - 10  # 11 bits
    which = torch.arange(num, device=device)[:, None, None]
    total = torch.full(images.shape, 1 << 21, device=device)  # one half
    for tap_y, part_y in ((top, 2048 - lower_part), (top + 1, lower_part)):
        for tap_x, part_x in ((left, 2048 - right_part), (left + 1, right_part)):
            weight = part_y * part_x
            if reflect:
                at_y, at_x = _reflect(tap_y, height), _reflect(tap_x, width)
            else:
                weight = weight * ((tap_y >= 0) & (tap_y < height) & (tap_x >= 0) & (tap_x < width))
                at_y, at_x = tap_y.clamp(0, height - 1), tap_x.clamp(0, width - 1)
            total += images[which, at_y, at_x] * weight[..., None]
    return (total >> 22).to(torch.uint8)


def _shift_colour(images: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Shift hue, saturation and value, (3, N) int64, in OpenCV's 8-bit HSV: there with its arithmetic; back,
    rounded down as OpenCV 5 does, exactly. Grey pixels have no hue and stay grey, as with Albumentations."""
    red, green, blue = images.to(torch.int64).unbind(-1)  # (N, H, W) each
    most = images.amax(-1).to(torch.int64)
    spread = most - images.amin(-1)
    saturation = (spread * ((255 << 13) + most).div(2 * most.clamp(min=1), rounding_mode="floor") + 2048) >> 12
    from_blue = torch.where(most == green, blue - red + 2 * spread, red - green + 4 * spread)
    hue = torch.where(most == red, green - blue, from_blue)
    hue = (hue * ((30 << 13) + spread).div(2 * spread.clamp(min=1), rounding_mode="floor") + 2048) >> 12
    by_hue, by_saturation, by_value = shifts[:, :, None, None]
    hue = (hue + by_hue) % 180
    saturation = torch.where(saturation == 0, 0, (saturation + by_saturation).clamp(0, 255))  # grey stays grey
    most = (most + by_value).clamp(0, 255)
    sector, part = hue // 30, hue % 30
    low = most * (255 - saturation) // 255
    falling = most * (7650 - saturation * part) // 7650
    rising = most * (7650 - saturation * (30 - part)) // 7650
    wheel = torch.stack([most, falling, low, low, rising, most])  # red in each of the six sectors
    which = torch.stack([sector, (sector + 4) % 6, (sector + 2) % 6])  # green and blue follow it by a third
    return wheel.gather(0, which).movedim(0, -1).to(torch.uint8)


def _cut_out(images: torch.Tensor, params: dict[str, torch.Tensor], fill: torch.Tensor) -> torch.Tensor:
    _, height, width, _ = images.shape
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    in_y = rows - params["cutout_y"][..., None]  # (N, holes, H)
    in_x = columns - params["cutout_x"][..., None]
    hit_y = (in_y >= 0) & (in_y < params["cutout_height"][..., None])
    hit_x = (in_x >= 0) & (in_x < params["cutout_width"][..., None])
    hit = (hit_y[..., :, None] & hit_x[..., None, :]).any(1)  # (N, H, W)
    return torch.where(hit[..., None], fill, images)


def _reflect(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Positions outside 0 .. side - 1 mirrored at the borders, the edges themselves not repeated."""
    return (side - 1) - ((side - 1) - positions.abs() % max(2 * (side - 1), 1)).abs()


def normalise(
    images: torch.Tensor, mean: torch.Tensor, inv_std: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """`(float32(x) - mean) * inv_std`, rounded to `dtype`: (N, H, W, 3) uint8 -> (N, 3, H, W) in channels_last memory.

    `mean` and `inv_std` are (3,) float32. Two operations, never one multiply-add: every loader gives the same bits.
    """
    return images.to(torch.float32).sub_(mean).mul_(inv_std).to(dtype).permute(0, 3, 1, 2)


class TorchAugment:
    """Gathers, augments and normalises batches on any device, with the interface of `TritonAugment`."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        augment: AugmentConfig,
        fill: np.ndarray,
        mean32: np.ndarray,
        inv_std32: np.ndarray,
        dtype: torch.dtype,
        channels_last: bool,
        device: torch.device,
    ) -> None:
        self._shape, self._augment, self._dtype, self._device = image_shape, augment, dtype, device
        self._channels_last = channels_last
        arrays = (fill, mean32, inv_std32)
        self._fill, self._mean, self._inv_std = (torch.from_numpy(values).to(device) for values in arrays)

    def columns(self, params: AugmentParams) -> dict[str, torch.Tensor]:
        """A checked table on the device."""
        return to_device(params, self._device)

    def __call__(
        self, data: torch.Tensor, offsets: torch.Tensor, rows: torch.Tensor, columns: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Images `rows`, (B,) int64, of `data`, (size,) uint8, each at its offset: a new tensor (B, 3, H, W), in
        channels_last memory or contiguous, of the dtype that was asked for."""
        size = math.prod(self._shape)
        # every run of `size` bytes as a row, without copying: indexing it by offset gathers whole images
        windows = data.as_strided((len(data) - size + 1, size), (1, 1))
        images = windows[offsets[rows]].view(-1, *self._shape)  # (B, H, W, 3) uint8
        chosen = {name: column[rows] for name, column in columns.items()}
        augmented = apply_params(images, chosen, self._augment, self._fill)
        if self._dtype == torch.uint8:
            out = augmented.permute(0, 3, 1, 2)
        else:
            out = normalise(augmented, self._mean, self._inv_std, self._dtype)
        return out if self._channels_last else out.contiguous()


def normalisation(mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`mean32` and `inv_std32`, each (3,) float32; a channel that never varies is divided by 1."""
    safe = np.where(std > 0, std, 1.0)
    return mean.astype(np.float32), (1.0 / safe).astype(np.float32)
