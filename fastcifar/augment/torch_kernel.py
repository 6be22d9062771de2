"""Augmentation with plain torch operations, on any device: every step is exact on uint8.

The reference implementation, one image at a time, is `tests/reference.py`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fastcifar.augment.kernel import KernelConfig, normalisation
from fastcifar.augment.params import ROTATION_BITS, AugmentParams, params_dtype, rotation_terms
from fastcifar.config import AugmentConfig


def params_to_device(params: AugmentParams, device: torch.device) -> dict[str, torch.Tensor]:
    """The columns as int64 tensors, (N,) or (N, holes); `rotation` as its fixed-point terms, (N, 2)."""
    columns = {name: params[name] for name in params_dtype().names or ()}
    columns["rotation"] = rotation_terms(columns["rotation"])
    return {name: torch.from_numpy(column.astype(np.int64)).to(device) for name, column in columns.items()}


def apply_params(
    images: torch.Tensor, params: dict[str, torch.Tensor], augment: AugmentConfig, fill: torch.Tensor
) -> torch.Tensor:
    """Crop, flip, rotate, change colours, cut out: (N, H, W, 3) uint8 -> (N, H, W, 3) uint8, a new tensor.

    Row i of `params` is for image i. `fill`, (3,) uint8: what a cutout writes.
    """
    out = _crop_and_flip(images, params, augment)
    if augment.rotate_degrees:
        out = rotate(out, params["rotation"], reflect=augment.padding_mode == "reflect")
    if augment.shifts_colour:
        shifts = torch.stack([params[name] for name in ("hue", "saturation", "value")])  # (3, N)
        changed = (shifts != 0).any(0)
        out[changed] = _shift_colour(out[changed], shifts[:, changed])
    if augment.adjusts_tone:
        out = _adjust_tone(out, params["brightness"], params["contrast"])
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
    """Rotate each image about its centre, bilinear, by integers: `terms`, (N, 2) int64, of `params.rotation_terms`.

    The weights have 11 bits: within one grey level of exact arithmetic (and of OpenCV 5).
    """
    num, height, width, _ = images.shape
    device = images.device
    x = 2 * torch.arange(width, device=device)[None, None, :] - (width - 1)  # (1, 1, W), from the centre, doubled
    y = 2 * torch.arange(height, device=device)[None, :, None] - (height - 1)  # (1, H, 1)
    cos, sin = terms[:, 0, None, None], terms[:, 1, None, None]
    source_x = cos * x - sin * y + ((width - 1) << ROTATION_BITS)  # (N, H, W), units of 2**-17 of a pixel
    source_y = sin * x + cos * y + ((height - 1) << ROTATION_BITS)
    left, top = source_x >> ROTATION_BITS + 1, source_y >> ROTATION_BITS + 1
    frac_x, frac_y = (source & (2 << ROTATION_BITS) - 1 for source in (source_x, source_y))
    frac_x, frac_y = frac_x >> ROTATION_BITS - 10, frac_y >> ROTATION_BITS - 10  # 11 bits
    which = torch.arange(num, device=device)[:, None, None]
    total = torch.full(images.shape, 1 << 21, device=device)  # one half
    for tap_y, weight_y in ((top, 2048 - frac_y), (top + 1, frac_y)):
        for tap_x, weight_x in ((left, 2048 - frac_x), (left + 1, frac_x)):
            weight = weight_y * weight_x
            if reflect:
                at_y, at_x = _reflect(tap_y, height), _reflect(tap_x, width)
            else:
                weight = weight * ((tap_y >= 0) & (tap_y < height) & (tap_x >= 0) & (tap_x < width))
                at_y, at_x = tap_y.clamp(0, height - 1), tap_x.clamp(0, width - 1)
            total += images[which, at_y, at_x] * weight[..., None]
    return (total >> 22).to(torch.uint8)


def _shift_colour(images: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Shift hue, saturation and value, (3, N) int64, in OpenCV's 8-bit HSV: to HSV with its arithmetic, and back
    rounded down, as OpenCV 5 does. Grey pixels stay grey, as in Albumentations."""
    red, green, blue = images.to(torch.int64).unbind(-1)  # (N, H, W) each
    value = images.amax(-1).to(torch.int64)
    chroma = value - images.amin(-1)
    saturation = (chroma * ((255 << 13) + value).div(2 * value.clamp(min=1), rounding_mode="floor") + 2048) >> 12
    from_blue = torch.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    hue = torch.where(value == red, green - blue, from_blue)
    hue = (hue * ((30 << 13) + chroma).div(2 * chroma.clamp(min=1), rounding_mode="floor") + 2048) >> 12
    hue_shift, saturation_shift, value_shift = shifts[:, :, None, None]
    hue = (hue + hue_shift) % 180
    saturation = torch.where(saturation == 0, 0, (saturation + saturation_shift).clamp(0, 255))  # grey stays grey
    value = (value + value_shift).clamp(0, 255)
    sector, frac = hue // 30, hue % 30
    p = value * (255 - saturation) // 255
    q = value * (7650 - saturation * frac) // 7650
    t = value * (7650 - saturation * (30 - frac)) // 7650
    wheel = torch.stack([value, q, p, p, t, value])  # red in each of the six sectors
    which = torch.stack([sector, (sector + 4) % 6, (sector + 2) % 6])  # green and blue follow it by a third
    return wheel.gather(0, which).movedim(0, -1).to(torch.uint8)


def _adjust_tone(images: torch.Tensor, brightness: torch.Tensor, contrast: torch.Tensor) -> torch.Tensor:
    """Brightness and contrast, (N,) int64 each: the value of `params.tone_table`, the same for the three channels."""
    added, factor = (column.to(torch.int32)[:, None, None, None] for column in (brightness - 128, contrast + 256))
    return (((images + added) * factor + 32_896) >> 8).clamp(0, 255).to(torch.uint8)


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
    """Positions outside 0 .. side - 1 mirrored at the borders; edges are not repeated."""
    return (side - 1) - ((side - 1) - positions.abs() % max(2 * (side - 1), 1)).abs()


def normalise(
    images: torch.Tensor, mean: torch.Tensor, inv_std: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """`(float32(x) - mean) * inv_std`, rounded to `dtype`: (N, H, W, 3) uint8 -> (N, 3, H, W) in channels_last memory.

    `mean` and `inv_std` are (3,) float32. Not a fused multiply-add: every loader gives the same bits.
    """
    return images.to(torch.float32).sub_(mean).mul_(inv_std).to(dtype).permute(0, 3, 1, 2)


class TorchKernel:
    """Augments and normalises batches on any device, at once: see `kernel.Kernel`."""

    num_ahead = 0

    def __init__(self, config: KernelConfig) -> None:
        self._config = config
        self._fill = self.to_device(config.fill)
        self._mean, self._inv_std = map(self.to_device, normalisation(config.mean, config.std))

    def to_device(self, array: np.ndarray) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # kernels do not write to it
            return torch.from_numpy(array).to(self._config.device)

    def load_params(self, params: AugmentParams) -> Any:
        return params_to_device(params, self._config.device)

    def launch(
        self, data: torch.Tensor, offsets: torch.Tensor, indices: torch.Tensor, params: Any
    ) -> Callable[[], torch.Tensor]:
        config = self._config
        size = math.prod(config.image_shape)
        # every run of `size` bytes as a row, without copying: indexing it by offset gathers whole images
        windows = data.as_strided((max(len(data) - size + 1, 0), size), (1, 1))
        images = windows[offsets[indices]].view(-1, *config.image_shape)  # (B, H, W, 3) uint8
        batch_params = {name: column[indices] for name, column in params.items()}
        images = apply_params(images, batch_params, config.augment, self._fill)
        if config.dtype == torch.uint8:
            out = images.permute(0, 3, 1, 2)  # (B, H, W, 3) -> (B, 3, H, W)
        else:
            out = normalise(images, self._mean, self._inv_std, config.dtype)
        if not config.channels_last:
            out = out.contiguous()
        return lambda: out

    def close(self) -> None:
        pass
