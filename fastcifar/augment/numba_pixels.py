"""The CPU kernel, compiled by Numba: `augment_slice` takes images one by one through the steps above it.

All of it is in this file: Numba's cache on disk knows when this file changed, and looks at no other.

A picture is (H * W * 3 + SLACK,) uint8 and stays in the nearest cache from the first step to the last. No bound is
looked at here: tables and offsets have been checked. The slow twin is `tests/reference.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

SLACK = 16  # bytes behind a picture that `_reverse_five` may read and write
FLOAT32, BFLOAT16, UINT8 = 0, 1, 2  # what `write` writes


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


@intrinsic
def _reverse_five(typing: Any, to: Any, at: Any, source: Any, begin: Any) -> Any:
    """Five pixels the other way round in one shuffle: 16 bytes are read and written, the last of them is noise."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, index = ir.VectorType(ir.IntType(8), 16), ir.IntType(32)
        loaded = builder.load(_pointer(context, builder, signature.args[2], args[2], args[3], vector), align=1)
        order = [12, 13, 14, 9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2, 15]
        mask = ir.Constant(ir.VectorType(index, 16), [index(i) for i in order])
        turned = builder.shuffle_vector(loaded, ir.Constant(vector, ir.Undefined), mask)
        builder.store(turned, _pointer(context, builder, signature.args[0], args[0], args[1], vector), align=1)
        return context.get_dummy_value()

    return types.void(to, at, source, begin), generate


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
    if x1 - x0 < 5 or (flip and width < 5):
        y1 = y0  # too narrow for shortcuts
    elif flip:
        for y in range(y0, y1):
            source, last = (y + top) * line + left * 3, y * line + (width - 1) * 3
            for x in range(x1 - 5, x0, -5):
                _reverse_five(picture, last - (x + 4) * 3, image, source + x * 3)
            _reverse_five(picture, last - (x0 + 4) * 3, image, source + x0 * 3)
    elif y0 < y1:  # one piece, whose borders hold what lies beside: they are written below
        first = y0 * line + x0 * 3
        _copy_bytes(picture, first, image, first + top * line + left * 3, (y1 - 1) * line + x1 * 3 - first)
    for y in range(height):
        inside = y0 <= y < y1
        if inside and x0 == 0 and x1 == width:
            continue
        source_y = mirrored(y + top, height) if reflect else y + top
        row_inside = 0 <= source_y < height
        x = 0
        while x < width:
            if inside and x == x0:
                x = x1
                continue
            at = (y * width + (width - 1 - x if flip else x)) * 3
            source_x = mirrored(x + left, width) if reflect else x + left
            if row_inside and 0 <= source_x < width:
                source = (source_y * width + source_x) * 3
                picture[at], picture[at + 1], picture[at + 2] = image[source], image[source + 1], image[source + 2]
            else:
                picture[at], picture[at + 1], picture[at + 2] = np.uint8(0), np.uint8(0), np.uint8(0)
            x += 1


@register_jitable
def rotate(image: Any, picture: Any, height: int, width: int, cos: int, sin: int, reflect: bool) -> None:
    """Turn about the centre, bilinear, with the integers of `draws.rotation_terms` and weights of 11 bits."""
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
    """Shift hue, saturation and value in OpenCV's 8-bit HSV: see `torch_ops`."""
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


@register_jitable
def bfloat16(value: Any) -> Any:
    """The bits of the nearest bfloat16, half to even: () uint32 of a float32 -> () uint16."""
    return np.uint16((value + np.uint32(0x7FFF) + ((value >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@register_jitable
def write(
    picture: Any, out: Any, line: Any, height: int, width: int, kind: int, planar: bool, mean: Any, inv_std: Any
) -> None:
    """Normalise a picture into `out`, one image of floats, uint16 or uint8 (a flat view of each: `kind` names the one
    that is written), pixel by pixel or channel by channel. `line` is room for one row, (W * 3,) float32."""
    length = width * 3
    floats, halves, bytes_ = out
    words = line.view(np.uint32)
    for y in range(height):
        row = picture[y * length : (y + 1) * length]
        if kind == FLOAT32 and not planar:
            to = floats[y * length : (y + 1) * length]
            for k in range(length):
                to[k] = (np.float32(row[k]) - mean[k]) * inv_std[k]
            continue
        if kind != UINT8:
            for k in range(length):
                line[k] = (np.float32(row[k]) - mean[k]) * inv_std[k]
        for channel in range(3 if planar else 1):
            begin, step = ((channel * height + y) * width, 3) if planar else (y * length, 1)
            count = width if planar else length
            if kind == UINT8:
                for k in range(count):
                    bytes_[begin + k] = row[k * step + channel]
            elif kind == FLOAT32:
                for k in range(count):
                    floats[begin + k] = line[k * step + channel]
            else:
                for k in range(count):
                    halves[begin + k] = bfloat16(words[k * step + channel])


def augment_slice(
    data: Any,  # (size,) uint8, read-only: images of H*W*3 bytes
    offsets: Any,  # (N,) int64: where each image of the dataset begins
    rows: Any,  # (B,) int64: the images of this batch
    crop: Any,  # two of (N,) int16; and so on: the columns of the table of choices
    flip: Any,
    rotation: Any,  # (N, 2) int32: `draws.rotation_terms`; (0, 2) where nothing is turned
    colour: Any,  # three of (N,) int16
    cutout: Any,  # four of (N, holes) int16
    shape: Any,  # (H, W)
    padding: int,
    reflect: bool,
    fill: Any,  # (3,) uint8
    mean: Any,  # (W * 3,) float32: the channels' values, repeated along a row
    inv_std: Any,
    kind: int,
    planar: bool,
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
        _copy_bytes(image, 0, data, offsets[row], size)
        if i + 1 < last:
            prefetch(data, offsets[rows[i + 1]], size)
        top, left = np.int64(crop[0][row]) - padding, np.int64(crop[1][row]) - padding
        crop_and_flip(image, picture, height, width, top, left, flip[row], reflect)
        if len(rotation) and rotation[row, 1] != 0:
            rotate(picture, image, height, width, rotation[row, 0], rotation[row, 1], reflect)
            image, picture = picture, image
        by_hue, by_saturation, by_value = colour[0][row], colour[1][row], colour[2][row]
        if by_hue != 0 or by_saturation != 0 or by_value != 0:
            shift_colour(picture, height * width, by_hue, by_saturation, by_value)
        y, x, size_y, size_x = cutout
        for hole in range(y.shape[1]):
            cut_out(picture, height, width, y[row, hole], x[row, hole], size_y[row, hole], size_x[row, hole], fill)
        floats, halves, bytes_ = outs
        out = (floats[i if kind == FLOAT32 else 0], halves[i if kind == BFLOAT16 else 0])
        to = (out[0], out[1], bytes_[i if kind == UINT8 else 0])
        write(picture, to, line, height, width, kind, planar, mean, inv_std)
