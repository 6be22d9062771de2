"""Augmentation on a GPU in one launch per batch, by Triton: uint8 in, normalised floats out.

A program computes a block of one image's values: where each comes from, and writes it once. The reference
implementation is `tests/reference.py`. With TRITON_INTERPRET=1 it runs on CPU tensors. Only this module and
`triton_mixing` import Triton.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from fastcifar.augment.kernel import KernelConfig, normalisation
from fastcifar.augment.params import AugmentParams, rotation_terms
from fastcifar.augment.torch_kernel import TorchKernel
from fastcifar.errors import one_line

BLOCK = 1024  # values per program


@triton.jit
def _mirrored(position, side: tl.constexpr):
    period: tl.constexpr = 2 * (side - 1) if side > 1 else 1
    return (side - 1) - tl.abs((side - 1) - tl.abs(position) % period)


@triton.jit
def within(position, side):
    """0 <= position < side in one comparison: as unsigned numbers, negative ones are large."""
    return position.to(tl.uint32) < tl.cast(side, tl.uint32)


@triton.jit
def _look_up(image, y, x, channel, top, left, flip, wanted, H: tl.constexpr, W: tl.constexpr, REFLECT: tl.constexpr):
    """One channel of pixel (y, x) after crop and flip, int32; black outside the image, or mirrored."""
    # one multiply-add for a value: what depends on the image alone is computed once
    step, first = tl.where(flip != 0, -1, 1), tl.where(flip != 0, left + W - 1, left)
    source_y, source_x = y + top, x * step + first
    if REFLECT:
        source_y, source_x = _mirrored(source_y, H), _mirrored(source_x, W)
    inside = wanted & within(source_y, H) & within(source_x, W)
    return tl.load(image + (source_y * W + source_x) * 3 + channel, mask=inside, other=0).to(tl.int32)


@triton.jit
def _rotated(
    image, y, x, channel, top, left, flip, cos, sin, wanted, H: tl.constexpr, W: tl.constexpr, REFLECT: tl.constexpr
):
    """One channel of pixel (y, x) after crop, flip and rotation: bilinear, by the integers of `torch_kernel.rotate`."""
    from_x, from_y = (2 * x - (W - 1)).to(tl.int64), (2 * y - (H - 1)).to(tl.int64)
    source_x = cos * from_x - sin * from_y + ((W - 1) << 16)
    source_y = sin * from_x + cos * from_y + ((H - 1) << 16)
    tap_x, tap_y = (source_x >> 17).to(tl.int32), (source_y >> 17).to(tl.int32)
    frac_x, frac_y = ((source_x & 0x1FFFF) >> 6).to(tl.int32), ((source_y & 0x1FFFF) >> 6).to(tl.int32)
    total = tl.full(x.shape, 1 << 21, tl.int32)  # one half
    for dy in tl.static_range(2):
        for dx in tl.static_range(2):
            at_y, at_x = tap_y + dy, tap_x + dx
            weight = (frac_y if dy else 2048 - frac_y) * (frac_x if dx else 2048 - frac_x)
            if REFLECT:
                at_y, at_x = _mirrored(at_y, H), _mirrored(at_x, W)
            inside = wanted & within(at_y, H) & within(at_x, W)
            total += weight * _look_up(image, at_y, at_x, channel, top, left, flip, inside, H, W, REFLECT)
    return total >> 22


@triton.jit
def _pixel(
    image, y, x, channel, top, left, flip, cos, sin, wanted,
    H: tl.constexpr, W: tl.constexpr, REFLECT: tl.constexpr, ROTATES: tl.constexpr,
):  # fmt: skip
    if ROTATES:
        value = _rotated(image, y, x, channel, top, left, flip, cos, sin, wanted, H, W, REFLECT)
    else:
        value = _look_up(image, y, x, channel, top, left, flip, wanted, H, W, REFLECT)
    return value


@triton.jit
def _colour_shifted(red, green, blue, hue_shift, saturation_shift, value_shift):
    """Red, green and blue after a shift in OpenCV's 8-bit HSV, by the integers of `torch_kernel._shift_colour`."""
    value = tl.maximum(tl.maximum(red, green), blue)
    chroma = value - tl.minimum(tl.minimum(red, green), blue)
    saturation = (chroma * (((255 << 13) + value) // (2 * tl.maximum(value, 1))) + 2048) >> 12
    hue = tl.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    hue = tl.where(value == red, green - blue, hue)
    hue = (hue * (((30 << 13) + chroma) // (2 * tl.maximum(chroma, 1))) + 2048) >> 12
    hue = (hue + hue_shift + 360) % 180
    shifted = tl.minimum(tl.maximum(saturation + saturation_shift, 0), 255)
    saturation = tl.where(saturation == 0, 0, shifted)
    value = tl.minimum(tl.maximum(value + value_shift, 0), 255)
    sector, frac = hue // 30, hue % 30
    p = value * (255 - saturation) // 255
    q = value * (7650 - saturation * frac) // 7650
    t = value * (7650 - saturation * (30 - frac)) // 7650
    return (
        _wheel(sector, value, q, p, t),
        _wheel((sector + 4) % 6, value, q, p, t),
        _wheel((sector + 2) % 6, value, q, p, t),
    )


@triton.jit
def _tone_adjusted(value, brightness, contrast):
    """The value of `params.tone_table`; one multiply-add for a value, the rest once for an image."""
    factor = 256 + contrast
    return tl.minimum(tl.maximum((value * factor + ((brightness - 128) * factor + 32896)) >> 8, 0), 255)


@triton.jit
def _wheel(sector, value, q, p, t):
    """The red of a sector of the colour wheel, 0..5."""
    rest = tl.where((sector == 2) | (sector == 3), p, t)
    return tl.where((sector == 0) | (sector == 5), value, tl.where(sector == 1, q, rest))


@triton.jit
def _of_channel(channel, red, green, blue):
    return tl.where(channel == 0, red, tl.where(channel == 1, green, blue))


@triton.jit
def _of_element(start, red, green, blue, VECTOR: tl.constexpr, PLANAR: tl.constexpr):
    """The constant of each element's channel. start: the channel of each element, (V, VECTOR), if PLANAR; else of the
    first of each vector, (V, 1): the three follow each other, and are selected once for a vector."""
    if PLANAR:
        value = _of_channel(start, red, green, blue)
    else:
        turn = (tl.arange(0, VECTOR) % 3)[None, :]
        second, third = _of_channel(start, green, blue, red), _of_channel(start, blue, red, green)
        value = tl.where(turn == 0, _of_channel(start, red, green, blue), tl.where(turn == 1, second, third))
    return value


@triton.jit
def _augment(
    data,  # uint8
    offsets,  # (N,) int64
    indices,  # (B,) int64
    moves,  # (N, 8) int32: crop_y, crop_x, flip, cos, sin, hue, saturation, value; and if TONES brightness, contrast
    holes,  # (N, HOLES, 4) int32: y, x, height, width
    out,
    # float32, by channel; arguments cost no load: in memory they would be more than half of all loads
    fill_0, fill_1, fill_2,
    mean_0, mean_1, mean_2,
    inv_std_0, inv_std_1, inv_std_2,
    H: tl.constexpr,
    W: tl.constexpr,
    PADDING: tl.constexpr,
    REFLECT: tl.constexpr,
    ROTATES: tl.constexpr,
    COLOURS: tl.constexpr,
    TONES: tl.constexpr,
    HOLES: tl.constexpr,
    NORMALISES: tl.constexpr,
    BFLOAT: tl.constexpr,
    PLANAR: tl.constexpr,
    BLOCK: tl.constexpr,
    VECTOR: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    index = tl.load(indices + number)
    image, move = data + tl.load(offsets + index), moves + index * (10 if TONES else 8)
    # (BLOCK / VECTOR, VECTOR), in the order of `out`, so that stores are coalesced: each thread stores vectors
    vector = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK // VECTOR)[:, None] * VECTOR
    element = vector + tl.arange(0, VECTOR)[None, :]
    wanted = (element < H * W * 3) | (H * W * 3 % BLOCK == 0)  # no comparison if each block is full
    if PLANAR:
        channel, pixel = element // (H * W), element % (H * W)
        start = channel
    else:
        channel, pixel = element % 3, element // 3
        start = vector % 3
    y, x = pixel // W, pixel % W
    cut = element < 0
    for hole in tl.static_range(HOLES):
        box = holes + (index * HOLES + hole) * 4
        in_y, in_x = y - tl.load(box), x - tl.load(box + 1)
        cut = cut | (within(in_y, tl.load(box + 2)) & within(in_x, tl.load(box + 3)))
    top, left, flip = tl.load(move) - PADDING, tl.load(move + 1) - PADDING, tl.load(move + 2)
    cos, sin = tl.load(move + 3).to(tl.int64), tl.load(move + 4).to(tl.int64)
    if COLOURS:
        red = _pixel(image, y, x, 0, top, left, flip, cos, sin, wanted, H, W, REFLECT, ROTATES)
        green = _pixel(image, y, x, 1, top, left, flip, cos, sin, wanted, H, W, REFLECT, ROTATES)
        blue = _pixel(image, y, x, 2, top, left, flip, cos, sin, wanted, H, W, REFLECT, ROTATES)
        pixel_value = _of_channel(channel, red, green, blue)
        hue_shift, saturation_shift, value_shift = tl.load(move + 5), tl.load(move + 6), tl.load(move + 7)
        red, green, blue = _colour_shifted(red, green, blue, hue_shift, saturation_shift, value_shift)
        shifted = _of_channel(channel, red, green, blue)
        pixel_value = tl.where((hue_shift != 0) | (saturation_shift != 0) | (value_shift != 0), shifted, pixel_value)
    else:
        pixel_value = _pixel(image, y, x, channel, top, left, flip, cos, sin, wanted, H, W, REFLECT, ROTATES)
    if TONES:
        pixel_value = _tone_adjusted(pixel_value, tl.load(move + 8), tl.load(move + 9))
    value = pixel_value.to(tl.float32)
    if HOLES:
        value = tl.where(cut, _of_element(start, fill_0, fill_1, fill_2, VECTOR, PLANAR), value)
    if NORMALISES:
        value = value - _of_element(start, mean_0, mean_1, mean_2, VECTOR, PLANAR)
        value = value * _of_element(start, inv_std_0, inv_std_1, inv_std_2, VECTOR, PLANAR)
    to = out + number.to(tl.int64) * (H * W * 3) + element
    if BFLOAT:  # rounded to nearest even here: Triton's interpreter truncates
        bits = value.to(tl.uint32, bitcast=True)
        tl.store(to, ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.uint16), mask=wanted)
    else:
        tl.store(to, value.to(out.dtype.element_ty), mask=wanted)


@triton.jit
def _write_zero(out):
    tl.store(out, 0)


@functools.cache
def require_launch(device: torch.device) -> None:
    """Raise ImportError unless Triton can compile and launch a kernel on this device: it needs a C compiler with
    Python's headers, and a GPU of compute capability 7.0 or more."""
    out = torch.empty(1, dtype=torch.int32, device=device)
    try:
        with torch.cuda.device_of(out):
            _write_zero[(1,)](out)
    except Exception as error:
        raise ImportError(f"Triton cannot compile a kernel here: {one_line(error)}") from error


def constexprs_of(config: KernelConfig) -> dict[str, Any]:
    """The arguments of `_augment` that are known when it is compiled."""
    (height, width, _), augment = config.image_shape, config.augment
    return {
        "H": height,
        "W": width,
        "PADDING": augment.crop_padding,
        "REFLECT": augment.padding_mode == "reflect",
        "ROTATES": augment.rotate_degrees > 0,
        "COLOURS": augment.shifts_colour,
        "TONES": augment.adjusts_tone,
        "HOLES": augment.cutout_holes if augment.cutout_size else 0,
        "NORMALISES": config.dtype != torch.uint8,
        "BFLOAT": config.dtype == torch.bfloat16,
        "PLANAR": not config.channels_last,
        "BLOCK": BLOCK,
        "VECTOR": min(8, 16 // config.dtype.itemsize),  # values that a thread stores together
    }


class TritonKernel(TorchKernel):
    """Augments and normalises batches on a GPU, one launch each: see `kernel.Kernel`."""

    def __init__(self, config: KernelConfig) -> None:
        """Raises ImportError if Triton cannot be used on the device."""
        require_launch(config.device)
        super().__init__(config)
        arrays = (config.fill.astype(np.float32), *normalisation(config.mean, config.std))
        self._constants = np.concatenate(arrays).tolist()  # float32 values, exact in Python's floats
        self._constexprs = constexprs_of(config)

    def load_params(self, params: AugmentParams) -> Any:
        """`moves` and `holes` of `_augment`."""
        terms, names = rotation_terms(params["rotation"]), ["hue", "saturation", "value"]
        if self._config.augment.adjusts_tone:
            names += ["brightness", "contrast"]
        moves = [params["crop_y"], params["crop_x"], params["flip"], *terms.T, *(params[name] for name in names)]
        holes = [params[f"cutout_{name}"] for name in ("y", "x", "height", "width")]
        arrays = (np.stack(columns, axis=-1).astype(np.int32) for columns in (moves, holes))
        return tuple(map(self.to_device, arrays))

    def launch(
        self, data: torch.Tensor, offsets: torch.Tensor, indices: torch.Tensor, params: Any
    ) -> Callable[[], torch.Tensor]:
        config, num, (height, width, _) = self._config, len(indices), self._config.image_shape
        shape = (num, height, width, 3) if config.channels_last else (num, 3, height, width)
        out = torch.empty(shape, dtype=config.dtype, device=config.device)
        if num:
            grid = (num, triton.cdiv(height * width * 3, BLOCK))
            written = out.view(torch.uint16) if config.dtype == torch.bfloat16 else out
            with torch.cuda.device_of(out):  # Triton launches on the current device
                _augment[grid](
                    data,
                    offsets,
                    indices,
                    *params,
                    written,
                    *self._constants,
                    **self._constexprs,
                    enable_fp_fusion=False,
                )
        images = out.permute(0, 3, 1, 2) if config.channels_last else out  # (N, H, W, 3) -> (N, 3, H, W)
        return lambda: images
