"""The CPU kernel, compiled by Numba: `augment_slice` passes images one by one through the steps above it.

Everything compiled is in this file, which makes it long: Numba's cache on disk is invalidated when this file changes,
and looks at no other.

A buffer is (H * W * 3 + SLACK,) uint8 and stays in the L1 cache from the first step to the last. Bounds are not
checked: the parameters are those of `sample_params`, and the beton has checked its offsets. Reference implementation:
`tests/reference.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.extending import register_jitable

SLACK = 16  # bytes behind the image that `_reverse_five` may read and write
intrinsic: Any = extending.intrinsic  # its type stub counts the typing context as an argument
FLOAT32, BFLOAT16, UINT8 = 0, 1, 2  # dtype of the output


def _pointer(context: Any, builder: Any, kind: Any, array: Any, position: Any, pointee: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [position]), pointee.as_pointer())


@intrinsic
def _copy_bytes(typing: Any, to: Any, at: Any, source: Any, begin: Any, count: Any) -> Any:
    """to[at : at + count] = source[begin : begin + count]: a slice assignment without a check for overlap."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, flag = ir.IntType(8), ir.IntType(1)
        pointers = [_pointer(context, builder, signature.args[i], args[i], args[i + 1], byte) for i in (0, 2)]
        kinds = [byte.as_pointer(), byte.as_pointer(), ir.IntType(64)]
        builder.call(builder.module.declare_intrinsic("llvm.memcpy", kinds), [*pointers, args[4], flag(0)])
        return context.get_dummy_value()

    return types.void(to, at, source, begin, count), generate


def _five_pixels(order: list[int]) -> Any:
    """Moves five pixels at once, in this order: 16 bytes are read and written; the last one is arbitrary."""

    def five(typing: Any, to: Any, at: Any, source: Any, begin: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            vector, index = ir.VectorType(ir.IntType(8), 16), ir.IntType(32)
            loaded = builder.load(_pointer(context, builder, signature.args[2], args[2], args[3], vector), align=1)
            mask = ir.Constant(
                ir.VectorType(index, 16), [index(3 * i + c) for i in order for c in range(3)] + [index(15)]
            )
            shuffled = builder.shuffle_vector(loaded, ir.Constant(vector, ir.Undefined), mask)
            builder.store(shuffled, _pointer(context, builder, signature.args[0], args[0], args[1], vector), align=1)
            return context.get_dummy_value()

        return types.void(to, at, source, begin), generate

    return intrinsic(five)


_copy_five, _reverse_five = _five_pixels([0, 1, 2, 3, 4]), _five_pixels([4, 3, 2, 1, 0])


@intrinsic
def _prefetch(typing: Any, source: Any, at: Any) -> Any:
    """Prefetch the cache line of source[at]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], ir.IntType(8))
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(function, [pointer, word(0), word(3), word(1)])  # for reading, into all cache levels, data cache
        return context.get_dummy_value()

    return types.void(source, at), generate


@register_jitable
def mirrored(position: int, side: int) -> int:
    """A position outside 0 .. side - 1 mirrored at the borders; edges are not repeated."""
    return (side - 1) - abs((side - 1) - abs(position) % max(2 * (side - 1), 1))


@register_jitable
def crop_and_flip(
    image: Any, buffer: Any, height: int, width: int, top: int, left: int, flip: bool, reflect: bool
) -> None:
    """buffer[y, x] = image[y + top, x + left], then flipped; zero or mirrored outside the image."""
    line = width * 3
    y0, x0 = min(max(0, -top), height), min(max(0, -left), width)
    y1, x1 = max(min(height, height - top), y0), max(min(width, width - left), x0)  # inside: y0 <= y < y1, x0 <= x < x1
    if not (flip or top or left):
        _copy_bytes(buffer, 0, image, 0, height * line)
        return
    if x1 - x0 < 5:
        y1 = y0  # too narrow for five pixels at once
    if not reflect:
        for at in range(np.uint64(height * line)):
            buffer[at] = np.uint8(0)
    for y in range(y0, y1):
        row, to = (y + top) * line + left * 3, y * line
        if flip:
            to += (width - 1) * 3
            for x in range(x1 - 5, x0, -5):
                _reverse_five(buffer, to - (x + 4) * 3, image, row + x * 3)
            _reverse_five(buffer, to - (x0 + 4) * 3, image, row + x0 * 3)
            to -= (x0 - 1) * 3
        else:
            for x in range(x0, x1 - 5, 5):
                _copy_five(buffer, to + x * 3, image, row + x * 3)
            _copy_five(buffer, to + (x1 - 5) * 3, image, row + (x1 - 5) * 3)
            to += x1 * 3
        buffer[to] = np.uint8(0)  # the arbitrary byte: border, or a pixel that is written next
    if not reflect and y0 != y1:
        return
    for y in range(height):  # the pixels outside y0 <= y < y1, x0 <= x < x1, one by one
        source_y = mirrored(y + top, height) if reflect else y + top
        x = 0
        while x < width:
            if x == x0 and x0 < x1 and y0 <= y < y1:
                x = x1
                continue
            source_x = mirrored(x + left, width) if reflect else x + left
            if 0 <= source_y < height and 0 <= source_x < width:
                at = (y * width + (width - 1 - x if flip else x)) * 3
                source = (source_y * width + source_x) * 3
                buffer[at], buffer[at + 1], buffer[at + 2] = image[source], image[source + 1], image[source + 2]
            x += 1


@register_jitable
def rotate(image: Any, buffer: Any, height: int, width: int, cos: int, sin: int, reflect: bool) -> None:
    """Rotate about the centre, bilinear, by the integers of `params.rotation_terms`, with weights of 11 bits."""
    for y in range(height):
        for x in range(width):
            from_x, from_y = 2 * x - (width - 1), 2 * y - (height - 1)  # doubled
            source_x = cos * from_x - sin * from_y + ((width - 1) << 16)  # units of 2**-17 of a pixel
            source_y = sin * from_x + cos * from_y + ((height - 1) << 16)
            left, top = source_x >> 17, source_y >> 17
            frac_x, frac_y = (source_x & 0x1FFFF) >> 6, (source_y & 0x1FFFF) >> 6
            red, green, blue = 1 << 21, 1 << 21, 1 << 21  # one half
            for dy in range(2):
                for dx in range(2):
                    tap_y, tap_x = top + dy, left + dx
                    if reflect:
                        tap_y, tap_x = mirrored(tap_y, height), mirrored(tap_x, width)
                    elif tap_y < 0 or tap_y >= height or tap_x < 0 or tap_x >= width:
                        continue
                    weight = (frac_y if dy else 2048 - frac_y) * (frac_x if dx else 2048 - frac_x)
                    at = (tap_y * width + tap_x) * 3
                    red += weight * image[at]
                    green += weight * image[at + 1]
                    blue += weight * image[at + 2]
            at = (y * width + x) * 3
            buffer[at], buffer[at + 1], buffer[at + 2] = red >> 22, green >> 22, blue >> 22


@register_jitable
def shift_colour(buffer: Any, num_pixels: int, hue_shift: int, saturation_shift: int, value_shift: int) -> None:
    """Shift hue, saturation and value in OpenCV's 8-bit HSV, in place: see `torch_kernel`."""
    for at in range(0, num_pixels * 3, 3):
        red, green, blue = np.int64(buffer[at]), np.int64(buffer[at + 1]), np.int64(buffer[at + 2])
        value = max(red, green, blue)
        chroma = value - min(red, green, blue)
        saturation = (chroma * (((255 << 13) + value) // (2 * max(value, 1))) + 2048) >> 12
        if value == red:
            hue = green - blue
        elif value == green:
            hue = blue - red + 2 * chroma
        else:
            hue = red - green + 4 * chroma
        hue = (hue * (((30 << 13) + chroma) // (2 * max(chroma, 1))) + 2048) >> 12
        hue = (hue + hue_shift) % 180
        if saturation != 0:  # grey stays grey
            saturation = min(max(saturation + saturation_shift, 0), 255)
        value = min(max(value + value_shift, 0), 255)
        sector, frac = hue // 30, hue % 30
        p = value * (255 - saturation) // 255
        q = value * (7650 - saturation * frac) // 7650
        t = value * (7650 - saturation * (30 - frac)) // 7650
        wheel = (value, q, p, p, t, value)  # red in each of the six sectors
        buffer[at], buffer[at + 1] = wheel[sector], wheel[(sector + 4) % 6]
        buffer[at + 2] = wheel[(sector + 2) % 6]


@register_jitable
def adjust_tone(buffer: Any, size: int, brightness: int, contrast: int, table: Any) -> None:
    """Brightness and contrast, in place; `table`, (256,) uint8, becomes that of `params.tone_table`. Computing each
    value takes 0.5 us an image with AVX-512 and 0.9 us with AVX2, the table 0.6 to 0.7 us."""
    for x in range(np.uint64(256)):
        table[x] = min(max(((np.int32(x) + brightness - 128) * (256 + contrast) + 32_896) >> 8, 0), 255)
    for at in range(np.uint64(size)):
        buffer[at] = table[buffer[at]]


@register_jitable
def cut_out(buffer: Any, height: int, width: int, y: int, x: int, size_y: int, size_x: int, fill: Any) -> None:
    """Fill a box, clipped at the border, in place."""
    for row in range(max(y, 0), min(y + size_y, height)):
        for column in range(max(x, 0), min(x + size_x, width)):
            at = (row * width + column) * 3
            buffer[at], buffer[at + 1], buffer[at + 2] = fill[0], fill[1], fill[2]


# The writers read a buffer as blocks of rows: one block of rows of pixels, or one block per channel. `mean` and
# `inv_std`, (blocks, row) float32, hold the values along a row. Indices are unsigned: Numba lets signed ones count from
# the end, and the check for that prevents vectorisation (2,070 ns an image, not 175).


@register_jitable
def write_floats(buffer: Any, out: Any, height: int, mean: Any, inv_std: Any) -> None:
    """`(float32(x) - mean) * inv_std`, without fused multiply-add."""
    height, length = np.uint64(height), np.uint64(mean.shape[1])
    for block in range(np.uint64(len(mean))):
        for y in range(block * height, (block + np.uint64(1)) * height):
            for k in range(length):
                out[y * length + k] = (np.float32(buffer[y * length + k]) - mean[block, k]) * inv_std[block, k]


@register_jitable
def write_bfloats(buffer: Any, out: Any, height: int, mean: Any, inv_std: Any, line: Any) -> None:
    """The same, rounded to the nearest bfloat16, half to even, as uint16; `line`: scratch, a row of float32."""
    height, length, words = np.uint64(height), np.uint64(mean.shape[1]), line.view(np.uint32)
    for block in range(np.uint64(len(mean))):
        for y in range(block * height, (block + np.uint64(1)) * height):
            for k in range(length):
                line[k] = (np.float32(buffer[y * length + k]) - mean[block, k]) * inv_std[block, k]
            for k in range(length):
                odd = (words[k] >> np.uint32(16)) & np.uint32(1)
                out[y * length + k] = np.uint16((words[k] + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@register_jitable
def split_channels(image: Any, buffer: Any, num_pixels: int) -> None:
    """(H, W, 3) -> (3, H, W)."""
    count, three = np.uint64(num_pixels), np.uint64(3)
    for channel in range(three):
        for i in range(count):
            buffer[channel * count + i] = image[i * three + channel]


def augment_slice(
    data: Any,  # (size,) uint8, read-only: images of H*W*3 bytes
    offsets: Any,  # (N,) int64: where each image of the dataset begins
    indices: Any,  # (B,) int64: the images of this batch
    crop: Any,  # two of (N,) int16: crop_y, crop_x; and so on: the columns of `AugmentParams`
    flip: Any,
    rotation: Any,  # (N, 2) int32: `params.rotation_terms`; (0, 2) without rotation
    colour: Any,  # five of (N,) int16
    cutout: Any,  # four of (N, holes) int16
    shape: Any,  # (H, W)
    padding: int,
    reflect: bool,
    fill: Any,  # (3,) uint8
    mean: Any,  # (1, W * 3) float32, or (3, W): see above the writers
    inv_std: Any,
    kind: int,
    outs: Any,  # (B, H * W * 3) float32, uint16 and uint8: `kind` selects the one that is written
    first: int,
    last: int,
) -> None:
    """Write images first .. last - 1 of a batch."""
    height, width = shape
    size = height * width * 3
    image, buffer = np.empty(size + SLACK, np.uint8), np.empty(size + SLACK, np.uint8)
    line, table = np.empty(width * 3, np.float32), np.empty(256, np.uint8)
    for i in range(first, last):
        index = indices[i]
        _copy_bytes(image, 0, data, offsets[index], size)  # waits for all its cache lines at once
        if i + 1 < last:
            begin = offsets[indices[i + 1]]
            for at in range(begin, begin + size, 64):  # the lines of the next image
                _prefetch(data, at)
        top, left = np.int64(crop[0][index]) - padding, np.int64(crop[1][index]) - padding
        crop_and_flip(image, buffer, height, width, top, left, flip[index], reflect)
        if len(rotation) and (rotation[index, 0] != 1 << 16 or rotation[index, 1] != 0):
            rotate(buffer, image, height, width, rotation[index, 0], rotation[index, 1], reflect)
            image, buffer = buffer, image
        hue_shift, saturation_shift, value_shift = colour[0][index], colour[1][index], colour[2][index]
        if hue_shift != 0 or saturation_shift != 0 or value_shift != 0:
            shift_colour(buffer, height * width, hue_shift, saturation_shift, value_shift)
        brightness, contrast = colour[3][index], colour[4][index]
        if brightness != 0 or contrast != 0:
            adjust_tone(buffer, size, brightness, contrast, table)
        y, x, size_y, size_x = cutout
        for hole in range(y.shape[1]):
            top, left = y[index, hole], x[index, hole]
            cut_out(buffer, height, width, top, left, size_y[index, hole], size_x[index, hole], fill)
        if len(mean) == 3:
            split_channels(buffer, image, height * width)
            image, buffer = buffer, image
        if kind == FLOAT32:
            write_floats(buffer, outs[0][i], height, mean, inv_std)
        elif kind == BFLOAT16:
            write_bfloats(buffer, outs[1][i], height, mean, inv_std, line)
        else:
            _copy_bytes(outs[2][i], 0, buffer, 0, size)
