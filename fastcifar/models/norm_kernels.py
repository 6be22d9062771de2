"""Batch normalisation with what surrounds it in one pass, compiled by Numba: maximum of 2x2 pixels before it, GELU or
ReLU and the sum with a shortcut after it.

Everything compiled is in this file: see `fastcifar.augment.numba_pixels`. Images are float32, or bfloat16 as uint16;
flat, in channels-last order: (rows, C), a row for each pixel of each image. Sums over rows are float32 within BLOCK
rows, and float64 over blocks. Indices are unsigned, so that the loops over channels are vectorised.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.extending import register_jitable

intrinsic: Any = extending.intrinsic
GELU = 0  # as in `fused_norm`
BLOCK = 64


def _bitcast(to: Any, llvm: Any) -> Any:
    def cast(typing: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.bitcast(args[0], llvm)

        return to(value), generate

    return intrinsic(cast)


_float_of_bits = _bitcast(types.float32, ir.FloatType())
_bits_of_float = _bitcast(types.uint32, ir.IntType(32))


def _load(value: Any) -> Any:
    """The float32 of a value of an image."""
    raise NotImplementedError  # compiled code only


@extending.overload(_load, strict=False)
def _compile_load(value: Any) -> Any:
    if isinstance(value, types.Float):
        return lambda value: value
    return lambda value: _float_of_bits(np.uint32(np.uint32(value) << np.uint32(16)))


def _store(image: Any, at: Any, value: Any) -> None:
    """image[at] = value, a float32; to the nearest bfloat16, half to even."""
    raise NotImplementedError  # compiled code only


@extending.overload(_store, strict=False)
def _compile_store(image: Any, at: Any, value: Any) -> Any:
    def store(image: Any, at: Any, value: Any) -> None:
        image[at] = value

    def store_rounded(image: Any, at: Any, value: Any) -> None:
        bits = _bits_of_float(value)
        image[at] = np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

    return store if isinstance(image.dtype, types.Float) else store_rounded


@register_jitable
def _exp_of_negative(x: Any) -> Any:
    """exp(x) for x <= 0, with a relative error of 2e-7: a power of two, and a polynomial for the rest."""
    scaled = max(x, np.float32(-87.0)) * np.float32(1.4426950408889634)
    whole = np.int32(scaled - np.float32(0.5))
    rest = (scaled - np.float32(whole)) * np.float32(0.6931471805599453)
    power = np.float32(1.0 / 720.0)
    power = power * rest + np.float32(1.0 / 120.0)
    power = power * rest + np.float32(1.0 / 24.0)
    power = power * rest + np.float32(1.0 / 6.0)
    power = power * rest + np.float32(0.5)
    power = power * rest + np.float32(1.0)
    power = power * rest + np.float32(1.0)
    return power * _float_of_bits(np.uint32(np.uint32(whole + np.int32(127)) << np.uint32(23)))


@register_jitable(error_model="numpy")
def _normal(z: Any) -> Any:
    """The standard normal distribution function at z, and exp(-z * z / 2). Abramowitz and Stegun, "Handbook of
    Mathematical Functions", 7.1.26: the error is below 2e-7."""
    a = abs(z) * np.float32(0.7071067811865476)
    t = np.float32(1.0) / (np.float32(1.0) + np.float32(0.3275911) * a)
    density = _exp_of_negative(-a * a)
    tail = np.float32(1.061405429)
    tail = tail * t - np.float32(1.453152027)
    tail = tail * t + np.float32(1.421413741)
    tail = tail * t - np.float32(0.284496736)
    tail = tail * t + np.float32(0.254829592)
    tail = np.float32(0.5) * tail * t * density
    return (np.float32(1.0) - tail if z > np.float32(0.0) else tail), density


@register_jitable
def _replaces(value: Any, best: Any) -> Any:
    """As in torch, the first of the largest values is the maximum, or the last NaN."""
    return (value > best) | (value != value)


@register_jitable
def _places(shape: Any, n: Any, row: Any, column: Any) -> Any:
    """Where the four pixels of image n begin that become pixel (row, column), in order, and where that begins."""
    height, width, channels = shape
    one, two = np.uint64(1), np.uint64(2)
    a = ((n * height + two * row) * width + two * column) * channels
    to = ((n * (height // two) + row) * (width // two) + column) * channels
    return a, a + channels, a + width * channels, a + (width + one) * channels, to


def pool(
    x: Any,  # (N * H * W * C,)
    shape: Any,  # (H, W, C), uint64
    shift: Any,  # (C,) float32: near the mean, so that the squares lose no precision
    out: Any,  # (N * (H // 2) * (W // 2) * C,)
    chosen: Any,  # the same, uint8: which of the four pixels
    sums: Any,  # (2, C) float64: of out - shift, and of its squares
    first: int,  # images first .. last - 1
    last: int,
) -> None:
    """Maximum of 2x2 pixels, without what is left over at the right and bottom, and its sums."""
    height, width, channels = shape
    rows, columns = height // np.uint64(2), width // np.uint64(2)
    total, squares = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for n in range(np.uint64(first), np.uint64(last)):
        for row in range(rows):
            total[:], squares[:] = np.float32(0), np.float32(0)
            for column in range(columns):
                a, b, c, d, to = _places(shape, n, row, column)
                for k in range(channels):
                    best, which = _load(x[a + k]), np.uint8(0)
                    value = _load(x[b + k])
                    which, best = (np.uint8(1), value) if _replaces(value, best) else (which, best)
                    value = _load(x[c + k])
                    which, best = (np.uint8(2), value) if _replaces(value, best) else (which, best)
                    value = _load(x[d + k])
                    which, best = (np.uint8(3), value) if _replaces(value, best) else (which, best)
                    _store(out, to + k, best)
                    chosen[to + k] = which
                    best -= shift[k]
                    total[k] += best
                    squares[k] += best * best
            for k in range(channels):
                sums[0, k] += total[k]
                sums[1, k] += squares[k]


def moments(x: Any, channels: int, shift: Any, sums: Any, first: int, last: int) -> None:
    """Of rows first .. last - 1 of x, (rows * C,): sums of x - shift and of its squares into (2, C) float64."""
    width, at = np.uint64(channels), np.uint64(first)
    total, squares = np.empty(width, np.float32), np.empty(width, np.float32)
    while at < last:
        end = min(at + np.uint64(BLOCK), np.uint64(last))
        total[:], squares[:] = np.float32(0), np.float32(0)
        for row in range(at, end):
            for k in range(width):
                value = _load(x[row * width + k]) - shift[k]
                total[k] += value
                squares[k] += value * value
        for k in range(width):
            sums[0, k] += total[k]
            sums[1, k] += squares[k]
        at = end


def activate(
    x: Any,  # (rows * C,)
    shortcut: Any,  # the same, or empty
    scale: Any,  # (C,) float32
    offset: Any,  # (C,) float32
    kind: int,
    out: Any,  # (rows * C,)
    slope: Any,  # the same, for GELU: its derivative; or empty
    first: int,  # rows first .. last - 1
    last: int,
) -> None:
    """out = activation(x * scale + offset + shortcut)."""
    channels = np.uint64(len(scale))
    for row in range(np.uint64(first), np.uint64(last)):
        at = row * channels
        if kind == GELU and not len(slope):
            for k in range(channels):
                z = _load(x[at + k]) * scale[k] + offset[k]
                _store(out, at + k, z * _normal(z)[0])
        elif kind == GELU:
            for k in range(channels):
                z = _load(x[at + k]) * scale[k] + offset[k]
                below, density = _normal(z)
                _store(out, at + k, z * below)
                _store(slope, at + k, below + z * density * np.float32(0.3989422804014327))
        elif len(shortcut):
            for k in range(channels):
                value = _load(x[at + k]) * scale[k] + offset[k] + _load(shortcut[at + k])
                _store(out, at + k, max(value, np.float32(0)))
        else:
            for k in range(channels):
                _store(out, at + k, max(_load(x[at + k]) * scale[k] + offset[k], np.float32(0)))


def pool_activate(
    x: Any,  # (N * H * W * C,)
    shape: Any,  # (H, W, C), uint64
    scale: Any,  # (C,) float32
    offset: Any,  # (C,) float32
    out: Any,  # (N * (H // 2) * (W // 2) * C,)
    first: int,  # images first .. last - 1
    last: int,
) -> None:
    """out = GELU(maximum of 2x2 pixels * scale + offset)."""
    height, width, channels = shape
    rows, columns = height // np.uint64(2), width // np.uint64(2)
    for n in range(np.uint64(first), np.uint64(last)):
        for row in range(rows):
            for column in range(columns):
                a, b, c, d, to = _places(shape, n, row, column)
                for k in range(channels):
                    best = _load(x[a + k])
                    for value in (_load(x[b + k]), _load(x[c + k]), _load(x[d + k])):
                        best = value if _replaces(value, best) else best
                    z = best * scale[k] + offset[k]
                    _store(out, to + k, z * _normal(z)[0])


def gradient_sums(
    x: Any,  # (rows * C,)
    gate: Any,  # the same: `slope` of `activate` for GELU, `out` for ReLU
    grad: Any,  # the same: gradient of out
    shift: Any,  # (C,) float32: the mean
    kind: int,
    sums: Any,  # (2, C) float64: of the gradient before the activation, and of its product with x - shift
    first: int,
    last: int,
) -> None:
    """What batch normalisation needs of the gradient of all rows."""
    channels, at = np.uint64(len(shift)), np.uint64(first)
    total, products = np.empty(channels, np.float32), np.empty(channels, np.float32)
    while at < last:
        end = min(at + np.uint64(BLOCK), np.uint64(last))
        total[:], products[:] = np.float32(0), np.float32(0)
        for row in range(at, end):
            start = row * channels
            if kind == GELU:
                for k in range(channels):
                    before = _load(grad[start + k]) * _load(gate[start + k])
                    total[k] += before
                    products[k] += before * (_load(x[start + k]) - shift[k])
            else:
                for k in range(channels):
                    before = _load(grad[start + k]) if gate[start + k] else np.float32(0)
                    total[k] += before
                    products[k] += before * (_load(x[start + k]) - shift[k])
        for k in range(channels):
            sums[0, k] += total[k]
            sums[1, k] += products[k]
        at = end


def input_gradient(
    x: Any,  # as for `gradient_sums`
    gate: Any,
    grad: Any,
    scale: Any,
    slope: Any,  # (C,) float32: result = scale * gradient + slope * x + constant
    constant: Any,
    kind: int,
    result: Any,  # (rows * C,): gradient of x
    shortcut: Any,  # the same, or empty: gradient of the shortcut
    first: int,
    last: int,
) -> None:
    """The gradient of the input of batch normalisation."""
    channels = np.uint64(len(scale))
    for row in range(np.uint64(first), np.uint64(last)):
        at = row * channels
        if kind == GELU:
            for k in range(channels):
                before = _load(grad[at + k]) * _load(gate[at + k])
                _store(result, at + k, scale[k] * before + slope[k] * _load(x[at + k]) + constant[k])
        elif len(shortcut):
            for k in range(channels):
                before = _load(grad[at + k]) if gate[at + k] else np.float32(0)
                _store(shortcut, at + k, before)
                _store(result, at + k, scale[k] * before + slope[k] * _load(x[at + k]) + constant[k])
        else:
            for k in range(channels):
                before = _load(grad[at + k]) if gate[at + k] else np.float32(0)
                _store(result, at + k, scale[k] * before + slope[k] * _load(x[at + k]) + constant[k])


def unpool(
    x: Any,  # of the pooled image, as for `gradient_sums`
    gate: Any,
    grad: Any,
    chosen: Any,  # as `pool` wrote it
    scale: Any,
    slope: Any,  # see `input_gradient`
    constant: Any,
    shape: Any,  # (H, W, C) of the image before pooling, uint64
    result: Any,  # (N * H * W * C,)
    first: int,  # images first .. last - 1
    last: int,
) -> None:
    """`input_gradient` for GELU, to the pixels that were the maximum; zero elsewhere."""
    height, width, channels = shape
    one, two = np.uint64(1), np.uint64(2)
    rows, columns = height // two, width // two
    line, zeros = np.empty(channels, result.dtype), np.zeros(1, result.dtype)
    zero = zeros[0]
    for n in range(np.uint64(first), np.uint64(last)):
        image = n * height * width * channels
        if height > two * rows:
            for k in range(image + (height - one) * width * channels, image + height * width * channels):
                result[k] = zero
        for row in range(rows):
            if width > two * columns:
                for y in range(two * row, two * row + two):
                    edge = image + (y * width + width - one) * channels
                    for k in range(channels):
                        result[edge + k] = zero
            for column in range(columns):
                a = image + (two * row * width + two * column) * channels
                at = ((n * rows + row) * columns + column) * channels
                for k in range(channels):
                    before = _load(grad[at + k]) * _load(gate[at + k])
                    _store(line, k, scale[k] * before + slope[k] * _load(x[at + k]) + constant[k])
                for number in range(np.uint64(4)):  # loops of their own, which LLVM vectorises
                    to = a + ((number >> one) * width + (number & one)) * channels
                    for k in range(channels):
                        result[to + k] = line[k] if chosen[at + k] == np.uint8(number) else zero
