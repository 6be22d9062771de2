"""The params applied on a GPU in one launch for a batch, by Triton: uint8 in, normalised floats out.

A program makes a block of one image's values: it finds out where each comes from, and writes each once. The slow
twin is `tests/reference.py`. The only importer of Triton; under TRITON_INTERPRET=1 it works on CPU tensors too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from fastcifar.augment.params import AugmentParams, rotation_terms
from fastcifar.config import AugmentConfig

BLOCK = 1024  # values of a program


@triton.jit
def _mirrored(position, side: tl.constexpr):
    period: tl.constexpr = 2 * (side - 1) if side > 1 else 1
    return (side - 1) - tl.abs((side - 1) - tl.abs(position) % period)


@triton.jit
def _look_up(image, y, x, channel, top, left, flip, wanted, H: tl.constexpr, W: tl.constexpr, REFLECT: tl.constexpr):
    """One channel of pixel (y, x) after crop and flip, int32; black outside the image, or mirrored."""
    x = tl.where(flip != 0, W - 1 - x, x)
    source_y, source_x = y + top, x + left
    if REFLECT:
        source_y, source_x = _mirrored(source_y, H), _mirrored(source_x, W)
    inside = wanted & (source_y >= 0) & (source_y < H) & (source_x >= 0) & (source_x < W)
    return tl.load(image + (source_y * W + source_x) * 3 + channel, mask=inside, other=0).to(tl.int32)


@triton.jit
def _rotated(
    image, y, x, channel, top, left, flip, cos, sin, wanted, H: tl.constexpr, W: tl.constexpr, REFLECT: tl.constexpr
):
    """The same after a rotation: bilinear, with the integers of `torch_kernel.rotate`."""
    from_x, from_y = (2 * x - (W - 1)).to(tl.int64), (2 * y - (H - 1)).to(tl.int64)
    source_x = cos * from_x - sin * from_y + ((W - 1) << 16)
    source_y = sin * from_x + cos * from_y + ((H - 1) << 16)
    tap_x, tap_y = (source_x >> 17).to(tl.int32), (source_y >> 17).to(tl.int32)
    part_x, part_y = ((source_x & 0x1FFFF) >> 6).to(tl.int32), ((source_y & 0x1FFFF) >> 6).to(tl.int32)
    total = tl.full(x.shape, 1 << 21, tl.int32)  # one half
    for below in tl.static_range(2):
        for beside in tl.static_range(2):
            at_y, at_x = tap_y + below, tap_x + beside
            weight = (part_y if below else 2048 - part_y) * (part_x if beside else 2048 - part_x)
            if REFLECT:
                at_y, at_x = _mirrored(at_y, H), _mirrored(at_x, W)
            there = wanted & (at_y >= 0) & (at_y < H) & (at_x >= 0) & (at_x < W)
            total += weight * _look_up(image, at_y, at_x, channel, top, left, flip, there, H, W, REFLECT)
    return total >> 22


@triton.jit
def _colour_shifted(red, green, blue, by_hue, by_saturation, by_value):
    """Shifted in OpenCV's 8-bit HSV: the integers of `torch_kernel._shift_colour`."""
    most = tl.maximum(tl.maximum(red, green), blue)
    spread = most - tl.minimum(tl.minimum(red, green), blue)
    saturation = (spread * (((255 << 13) + most) // (2 * tl.maximum(most, 1))) + 2048) >> 12
    hue = tl.where(most == green, blue - red + 2 * spread, red - green + 4 * spread)
    hue = tl.where(most == red, green - blue, hue)
    hue = (hue * (((30 << 13) + spread) // (2 * tl.maximum(spread, 1))) + 2048) >> 12
    hue = (hue + by_hue + 360) % 180
    shifted = tl.minimum(tl.maximum(saturation + by_saturation, 0), 255)
    saturation = tl.where(saturation == 0, 0, shifted)
    most = tl.minimum(tl.maximum(most + by_value, 0), 255)
    sector, part = hue // 30, hue % 30
    low = most * (255 - saturation) // 255
    falling = most * (7650 - saturation * part) // 7650
    rising = most * (7650 - saturation * (30 - part)) // 7650
    return (
        _of_sector(sector, most, falling, low, rising),
        _of_sector((sector + 4) % 6, most, falling, low, rising),
        _of_sector((sector + 2) % 6, most, falling, low, rising),
    )


@triton.jit
def _of_sector(sector, most, falling, low, rising):
    """What red is in each of the six sectors of the colour wheel."""
    rest = tl.where((sector == 2) | (sector == 3), low, rising)
    return tl.where((sector == 0) | (sector == 5), most, tl.where(sector == 1, falling, rest))


@triton.jit
def _augment(
    data,  # uint8
    offsets,  # (N,) int64
    rows,  # (B,) int64
    moves,  # (N, 8) int32: crop_y, crop_x, flip, cos, sin, hue, saturation, value
    holes,  # (N, HOLES, 4) int32: y, x, height, width
    constants,  # (9,) float32: fill, mean, inv_std of the channels
    out,
    H: tl.constexpr,
    W: tl.constexpr,
    PADDING: tl.constexpr,
    REFLECT: tl.constexpr,
    ROTATES: tl.constexpr,
    COLOURS: tl.constexpr,
    HOLES: tl.constexpr,
    NORMALISES: tl.constexpr,
    BFLOAT: tl.constexpr,
    PLANAR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    number = tl.program_id(0)
    row = tl.load(rows + number)
    image, move = data + tl.load(offsets + row), moves + row * 8
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # as they lie in `out`, so that stores are side by side
    wanted = element < H * W * 3
    if PLANAR:
        channel, pixel = element // (H * W), element % (H * W)
    else:
        channel, pixel = element % 3, element // 3
    y, x = pixel // W, pixel % W
    top, left, flip = tl.load(move) - PADDING, tl.load(move + 1) - PADDING, tl.load(move + 2)
    cos, sin = tl.load(move + 3).to(tl.int64), tl.load(move + 4).to(tl.int64)
    if ROTATES:
        chosen = _rotated(image, y, x, channel, top, left, flip, cos, sin, wanted, H, W, REFLECT)
    else:
        chosen = _look_up(image, y, x, channel, top, left, flip, wanted, H, W, REFLECT)
    if COLOURS:
        if ROTATES:
            red = _rotated(image, y, x, 0, top, left, flip, cos, sin, wanted, H, W, REFLECT)
            green = _rotated(image, y, x, 1, top, left, flip, cos, sin, wanted, H, W, REFLECT)
            blue = _rotated(image, y, x, 2, top, left, flip, cos, sin, wanted, H, W, REFLECT)
        else:
            red = _look_up(image, y, x, 0, top, left, flip, wanted, H, W, REFLECT)
            green = _look_up(image, y, x, 1, top, left, flip, wanted, H, W, REFLECT)
            blue = _look_up(image, y, x, 2, top, left, flip, wanted, H, W, REFLECT)
        by_hue, by_saturation, by_value = tl.load(move + 5), tl.load(move + 6), tl.load(move + 7)
        red, green, blue = _colour_shifted(red, green, blue, by_hue, by_saturation, by_value)
        shifted = tl.where(channel == 0, red, tl.where(channel == 1, green, blue))
        chosen = tl.where((by_hue != 0) | (by_saturation != 0) | (by_value != 0), shifted, chosen)
    value = chosen.to(tl.float32)
    for hole in tl.static_range(HOLES):
        box = holes + (row * HOLES + hole) * 4
        in_y, in_x = y - tl.load(box), x - tl.load(box + 1)
        cut = (in_y >= 0) & (in_y < tl.load(box + 2)) & (in_x >= 0) & (in_x < tl.load(box + 3))
        value = tl.where(cut, tl.load(constants + channel, mask=wanted, other=0), value)
    if NORMALISES:
        value = value - tl.load(constants + 3 + channel, mask=wanted, other=0)
        value = value * tl.load(constants + 6 + channel, mask=wanted, other=0)
    to = out + number.to(tl.int64) * (H * W * 3) + element
    if BFLOAT:  # to nearest even by hand: Triton's interpreter cuts the bits off
        bits = value.to(tl.uint32, bitcast=True)
        tl.store(to, ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16), mask=wanted)
    else:
        tl.store(to, value.to(out.dtype.element_ty), mask=wanted)


class TritonAugment:
    """Augments and normalises batches on a GPU, one launch each."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        augment: AugmentConfig,
        fill: npt.NDArray[np.uint8],
        mean32: npt.NDArray[np.float32],
        inv_std32: npt.NDArray[np.float32],
        dtype: torch.dtype,
        channels_last: bool,
        device: torch.device,
    ) -> None:
        height, width, _ = image_shape
        self._shape, self._dtype, self._device, self._channels_last = (height, width), dtype, device, channels_last
        constants = np.concatenate([fill.astype(np.float32), mean32, inv_std32])
        self._constants = torch.from_numpy(constants).to(device)
        self._settings: dict[str, Any] = {
            "H": height,
            "W": width,
            "PADDING": augment.crop_padding,
            "REFLECT": augment.padding_mode == "reflect",
            "ROTATES": augment.rotate_degrees > 0,
            "COLOURS": augment.shifts_colour,
            "HOLES": augment.cutout_holes if augment.cutout_size else 0,
            "NORMALISES": dtype != torch.uint8,
            "BFLOAT": dtype == torch.bfloat16,
            "PLANAR": not channels_last,
            "BLOCK": BLOCK,
        }

    def columns(self, params: AugmentParams) -> tuple[torch.Tensor, torch.Tensor]:
        """A checked table on the device: (N, 8) and (N, holes, 4) int32."""
        terms = rotation_terms(params["rotation"])
        names = ("hue", "saturation", "value")
        moves = [params["crop_y"], params["crop_x"], params["flip"], *terms.T, *(params[name] for name in names)]
        holes = [params[f"cutout_{name}"] for name in ("y", "x", "height", "width")]
        arrays = (np.stack(columns, axis=-1).astype(np.int32) for columns in (moves, holes))
        of_moves, of_holes = (torch.from_numpy(array).to(self._device, non_blocking=True) for array in arrays)
        return of_moves, of_holes

    def __call__(
        self,
        data: torch.Tensor,
        offsets: torch.Tensor,
        rows: torch.Tensor,
        columns: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        """Images `rows`, (B,) int64, of `data`, (size,) uint8, each at its offset: a new tensor (B, 3, H, W), in
        channels_last memory or contiguous, of the dtype that was asked for. All of it on the device."""
        num, (height, width) = len(rows), self._shape
        shape = (num, height, width, 3) if self._channels_last else (num, 3, height, width)
        out = torch.empty(shape, dtype=self._dtype, device=self._device)
        if num:
            grid = (num, triton.cdiv(height * width * 3, BLOCK))
            to = out.view(torch.uint16) if self._dtype == torch.bfloat16 else out
            with torch.cuda.device_of(out):  # Triton launches on the current device
                _augment[grid](
                    data, offsets, rows, *columns, self._constants, to, **self._settings, enable_fp_fusion=False
                )
        return out.permute(0, 3, 1, 2) if self._channels_last else out  # (N, H, W, 3) -> (N, 3, H, W)
