"""The CPU kernel, compiled by Numba: `augment_slice` takes images one by one through the steps above it.

All of it is in this file: Numba's cache on disk knows when this file changed, and looks at no other.

A picture is (H * W * 3 + SLACK,) uint8 and stays in the nearest cache from the first step to the last. No bound is
looked at here: tables and offsets have been checked. The slow twin is `tests/reference.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.extending import register_jitable

SLACK = 16  # bytes behind a picture that `_reverse_five` may read and write
intrinsic: Any = extending.intrinsic  # its stub counts the typing context among the arguments
FLOAT32, BFLOAT16, UINT8 = 0, 1, 2  # what is written


def _pointer(context: Any, builder: Any, kind: Any, array: Any, position: Any, pointee: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [position]), pointee.as_pointer())


@intrinsic
def _copy_bytes(typing: Any, to: Any, at: Any, source: Any, begin: Any, count: Any) -> Any:
    """to[at : at + count] = source[begin : begin + count]: a slice assignment that does not look for overlaps."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, flag = ir.IntType(8), ir.IntType(1)
        pointers = [_pointer(context, builder, signature.args[i], args[i], args[i + 1], byte) for i in (0, 2)]
        kinds = [byte.as_pointer(), byte.as_pointer(), ir.IntType(64)]
        builder.call(builder.module.declare_intrinsic("llvm.memcpy", kinds), [*pointers, args[4], flag(0)])
        return context.get_dummy_value()

    return types.void(to, at, source, begin, count), generate


def _five_pixels(order: list[int]) -> Any:
    """What moves five pixels at once, in this order: 16 bytes are read and written, the last of them is noise."""

    def five(typing: Any, to: Any, at: Any, source: Any, begin: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            vector, index = ir.VectorType(ir.IntType(8), 16), ir.IntType(32)
            loaded = builder.load(_pointer(context, builder, signature.args[2], args[2], args[3], vector), align=1)
            mask = ir.Constant(
                ir.VectorType(index, 16), [index(3 * i + c) for i in order for c in range(3)] + [index(15)]
            )
            turned = builder.shuffle_vector(loaded, ir.Constant(vector, ir.Undefined), mask)
            builder.store(turned, _pointer(context, builder, signature.args[0], args[0], args[1], vector), align=1)
            return context.get_dummy_value()

        return types.void(to, at, source, begin), generate

    return intrinsic(five)


_copy_five, _reverse_five = _five_pixels([0, 1, 2, 3, 4]), _five_pixels([4, 3, 2, 1, 0])


@intrinsic
def _prefetch(typing: Any, source: Any, at: Any) -> Any:
    """Ask for the cache line of source[at]."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], ir.IntType(8))
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(function, [pointer, word(0), word(3), word(1)])  # to read, into all levels, data
        return context.get_dummy_value()

    return types.void(source, at), generate


@register_jitable
def prefetch(data: Any, begin: int, size: int) -> None:
    """Let the image at `begin` come from memory while another is worked on."""
    for at in range(begin, begin + size, 64):
        _prefetch(data, at)


@register_jitable
def mirrored(position: int, side: int) -> int:
    """A position outside 0 .. side - 1 mirrored at the borders, the edges themselves not repeated."""
    return (side - 1) - abs((side - 1) - abs(position) % max(2 * (side - 1), 1))


@register_jitable
def crop_and_flip(
    image: Any, picture: Any, height: int, width: int, top: int, left: int, flip: bool, reflect: bool
) -> None:
    """picture[y, x] = image[y + top, x + left], then turned round; zero or mirrored outside the image."""
    line = width * 3
    y0, x0 = min(max(0, -top), height), min(max(0, -left), width)
    y1, x1 = max(min(height, height - top), y0), max(min(width, width - left), x0)  # inside: y0 <= y < y1, x0 <= x < x1
    if not (flip or top or left):
        _copy_bytes(picture, 0, image, 0, height * line)
        return
    if x1 - x0 < 5:
        y1 = y0  # too narrow for five pixels at once
    if not reflect:
        for at in range(np.uint64(height * line)):
            picture[at] = np.uint8(0)
    for y in range(y0, y1):
        row, to = (y + top) * line + left * 3, y * line
        if flip:
            to += (width - 1) * 3
            for x in range(x1 - 5, x0, -5):
                _reverse_five(picture, to - (x + 4) * 3, image, row + x * 3)
            _reverse_five(picture, to - (x0 + 4) * 3, image, row + x0 * 3)
            to -= (x0 - 1) * 3
        else:
            for x in range(x0, x1 - 5, 5):
                _copy_five(picture, to + x * 3, image, row + x * 3)
            _copy_five(picture, to + (x1 - 5) * 3, image, row + (x1 - 5) * 3)
            to += x1 * 3
        picture[to] = np.uint8(0)  # the noise behind the last five: black border, or a pixel still to be written
    if reflect or y0 == y1:
        _fill_border(image, picture, height, width, y0, y1, x0, x1, top, left, flip, reflect)


@register_jitable
def _fill_border(
    image: Any,
    picture: Any,
    height: int,
    width: int,
    y0: int,
    y1: int,
    x0: int,
    x1: int,
    top: int,
    left: int,
    flip: bool,
    reflect: bool,
) -> None:
    """All pixels that are not within y0 <= y < y1, x0 <= x < x1, one by one."""
    for y in range(height):
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
                picture[at], picture[at + 1], picture[at + 2] = image[source], image[source + 1], image[source + 2]
            x += 1


@register_jitable
def rotate(image: Any, picture: Any, height: int, width: int, cos: int, sin: int, reflect: bool) -> None:
    """Turn about the centre, bilinear, with the integers of `params.rotation_terms` and weights of 11 bits."""
    for y in range(height):
        for x in range(width):
            from_x, from_y = 2 * x - (width - 1), 2 * y - (height - 1)  # doubled
            source_x = cos * from_x - sin * from_y + ((width - 1) << 16)  # units of 2**-17 of a pixel
            source_y = sin * from_x + cos * from_y + ((height - 1) << 16)
            left, top = source_x >> 17, source_y >> 17
            part_x, part_y = (source_x & 0x1FFFF) >> 6, (source_y & 0x1FFFF) >> 6
            red, green, blue = 1 << 21, 1 << 21, 1 << 21  # one half
            for below in range(2):
                for beside in range(2):
                    tap_y, tap_x = top + below, left + beside
                    if reflect:
                        tap_y, tap_x = mirrored(tap_y, height), mirrored(tap_x, width)
                    elif tap_y < 0 or tap_y >= height or tap_x < 0 or tap_x >= width:
                        continue
                    weight = (part_y if below else 2048 - part_y) * (part_x if beside else 2048 - part_x)
                    at = (tap_y * width + tap_x) * 3
                    red += weight * image[at]
                    green += weight * image[at + 1]
                    blue += weight * image[at + 2]
            at = (y * width + x) * 3
            picture[at], picture[at + 1], picture[at + 2] = red >> 22, green >> 22, blue >> 22


@register_jitable
def shift_colour(picture: Any, num_pixels: int, by_hue: int, by_saturation: int, by_value: int) -> None:
    """Shift hue, saturation and value in OpenCV's 8-bit HSV: see `torch_kernel`."""
    for at in range(0, num_pixels * 3, 3):
        red, green, blue = np.int64(picture[at]), np.int64(picture[at + 1]), np.int64(picture[at + 2])
        most = max(red, green, blue)
        spread = most - min(red, green, blue)
        saturation = (spread * (((255 << 13) + most) // (2 * max(most, 1))) + 2048) >> 12
        if most == red:
            hue = green - blue
        elif most == green:
            hue = blue - red + 2 * spread
        else:
            hue = red - green + 4 * spread
        hue = (hue * (((30 << 13) + spread) // (2 * max(spread, 1))) + 2048) >> 12
        hue = (hue + by_hue) % 180
        if saturation != 0:  # grey stays grey
            saturation = min(max(saturation + by_saturation, 0), 255)
        most = min(max(most + by_value, 0), 255)
        sector, part = hue // 30, hue % 30
        low = most * (255 - saturation) // 255
        falling = most * (7650 - saturation * part) // 7650
        rising = most * (7650 - saturation * (30 - part)) // 7650
        wheel = (most, falling, low, low, rising, most)  # red in each of the six sectors
        picture[at], picture[at + 1] = wheel[sector], wheel[(sector + 4) % 6]
        picture[at + 2] = wheel[(sector + 2) % 6]


@register_jitable
def cut_out(picture: Any, height: int, width: int, y: int, x: int, size_y: int, size_x: int, fill: Any) -> None:
    """Fill a box, cut at the border."""
    for row in range(max(y, 0), min(y + size_y, height)):
        for column in range(max(x, 0), min(x + size_x, width)):
            at = (row * width + column) * 3
            picture[at], picture[at + 1], picture[at + 2] = fill[0], fill[1], fill[2]


# The writers take a picture as blocks of rows: one block of rows of pixels, or a block for each channel. `mean` and
# `inv_std`, (blocks, row) float32, hold the values along a row. Indices are unsigned there: Numba lets negative ones
# count from the end, and the test for it keeps loops from becoming vector instructions (2,070 ns an image, not 175).


@register_jitable
def write_floats(picture: Any, out: Any, height: int, mean: Any, inv_std: Any) -> None:
    """`(float32(x) - mean) * inv_std`, and nothing that could be fused into one operation."""
    height, length = np.uint64(height), np.uint64(mean.shape[1])
    for block in range(np.uint64(len(mean))):
        for y in range(block * height, (block + np.uint64(1)) * height):
            for k in range(length):
                out[y * length + k] = (np.float32(picture[y * length + k]) - mean[block, k]) * inv_std[block, k]


@register_jitable
def write_bfloats(picture: Any, out: Any, height: int, mean: Any, inv_std: Any, line: Any) -> None:
    """The same, rounded to the nearest bfloat16, half to even, as uint16; `line` is room for a row of float32."""
    height, length, words = np.uint64(height), np.uint64(mean.shape[1]), line.view(np.uint32)
    for block in range(np.uint64(len(mean))):
        for y in range(block * height, (block + np.uint64(1)) * height):
            for k in range(length):
                line[k] = (np.float32(picture[y * length + k]) - mean[block, k]) * inv_std[block, k]
            for k in range(length):
                odd = (words[k] >> np.uint32(16)) & np.uint32(1)
                out[y * length + k] = np.uint16((words[k] + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@register_jitable
def split_channels(image: Any, picture: Any, num_pixels: int) -> None:
    """Pixel by pixel -> channel by channel."""
    count, three = np.uint64(num_pixels), np.uint64(3)
    for channel in range(three):
        for i in range(count):
            picture[channel * count + i] = image[i * three + channel]


def augment_slice(
    data: Any,  # (size,) uint8, read-only: images of H*W*3 bytes
    offsets: Any,  # (N,) int64: where each image of the dataset begins
    rows: Any,  # (B,) int64: the images of this batch
    crop: Any,  # two of (N,) int16; and so on: the columns of the table of params
    flip: Any,
    rotation: Any,  # (N, 2) int32: `params.rotation_terms`; (0, 2) where nothing is turned
    colour: Any,  # three of (N,) int16
    cutout: Any,  # four of (N, holes) int16
    shape: Any,  # (H, W)
    padding: int,
    reflect: bool,
    fill: Any,  # (3,) uint8
    mean: Any,  # (1, W * 3) float32, or (3, W): see the writers
    inv_std: Any,
    kind: int,
    outs: Any,  # (B, H * W * 3) float32, uint16 and uint8: `kind` names the one that is written
    first: int,
    last: int,
) -> None:
    """Images first .. last - 1 of a batch."""
    height, width = shape
    size = height * width * 3
    image, picture = np.empty(size + SLACK, np.uint8), np.empty(size + SLACK, np.uint8)
    line = np.empty(width * 3, np.float32)
    for i in range(first, last):
        row = rows[i]
        _copy_bytes(image, 0, data, offsets[row], size)  # all its cache lines are waited for at once
        if i + 1 < last:
            prefetch(data, offsets[rows[i + 1]], size)
        top, left = np.int64(crop[0][row]) - padding, np.int64(crop[1][row]) - padding
        crop_and_flip(image, picture, height, width, top, left, flip[row], reflect)
        if len(rotation) and (rotation[row, 0] != 1 << 16 or rotation[row, 1] != 0):
            rotate(picture, image, height, width, rotation[row, 0], rotation[row, 1], reflect)
            image, picture = picture, image
        by_hue, by_saturation, by_value = colour[0][row], colour[1][row], colour[2][row]
        if by_hue != 0 or by_saturation != 0 or by_value != 0:
            shift_colour(picture, height * width, by_hue, by_saturation, by_value)
        y, x, size_y, size_x = cutout
        for hole in range(y.shape[1]):
            cut_out(picture, height, width, y[row, hole], x[row, hole], size_y[row, hole], size_x[row, hole], fill)
        if len(mean) == 3:
            split_channels(picture, image, height * width)
            image, picture = picture, image
        if kind == FLOAT32:
            write_floats(picture, outs[0][i], height, mean, inv_std)
        elif kind == BFLOAT16:
            write_bfloats(picture, outs[1][i], height, mean, inv_std, line)
        else:
            _copy_bytes(outs[2][i], 0, picture, 0, size)
