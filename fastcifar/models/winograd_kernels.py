"""The transforms of `winograd`, compiled by Numba.

Everything compiled is in this file: see `fastcifar.augment.numba_pixels`. Images are float32, flat, in channels-last
order: (N * H * W * C,), with C a multiple of LANES. Tiles are flat, too: (36 * tiles * C,), for each of the 6x6 places
in a tile a matrix with a row per tile, image after image. A tile stands for 4x4 pixels of the result of the
convolution; what it has beyond the image is zero, or dropped. Products are written in LLVM's language: its vectoriser
gives up on twelve arrays that might overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.extending import register_jitable

intrinsic: Any = extending.intrinsic
LANES = 16
"""float32 values that are computed together: a register of AVX-512, two of AVX2."""
NONE = np.uint64(2**64 - 1)
"""The place of a row of zeros."""

# Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), F(4x4, 3x3)
FROM_PIXELS = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
TO_PIXELS = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


def _product(matrix: Sequence[Sequence[int]], num_added: int = 0) -> Any:
    """A function of (source, places, target, places, count): `matrix` times rows of the source, of `count` values each,
    which begin at the places, become rows of the target; the first `num_added` are added to what is there."""
    vector, index = ir.VectorType(ir.FloatType(), LANES), ir.IntType(64)
    zero = ir.Constant(vector, [0.0] * LANES)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        source, target = (context.make_array(signature.args[k])(context, builder, args[k]).data for k in (0, 2))
        loop, after = builder.append_basic_block(), builder.append_basic_block()
        column = None

        def vector_at(array: Any, place: Any) -> Any:
            return builder.bitcast(builder.gep(array, [builder.add(place, column)]), vector.as_pointer())

        def read(place: Any) -> Any:
            exists = builder.icmp_unsigned("!=", place, ir.Constant(index, int(NONE)))
            value = builder.load(vector_at(source, builder.select(exists, place, ir.Constant(index, 0))), align=4)
            return builder.select(exists, value, zero)

        def scaled(factor: int, value: Any) -> Any:
            return value if factor == 1 else builder.fmul(value, ir.Constant(vector, [float(factor)] * LANES))

        def combined(factors: Sequence[int], rows: list[Any]) -> Any:
            (first, row), *others = [(factor, row) for factor, row in zip(factors, rows, strict=True) if factor]
            total = scaled(first, row)
            for factor, row in others:
                combine = builder.fadd if factor > 0 else builder.fsub
                total = combine(total, scaled(abs(factor), row), flags=("contract",))
            return total

        before = builder.block
        builder.branch(loop)
        builder.position_at_end(loop)
        column = builder.phi(index)
        rows = [read(builder.extract_value(args[1], k)) for k in range(len(matrix[0]))]
        for k, factors in enumerate(matrix):
            total, to = combined(factors, rows), vector_at(target, builder.extract_value(args[3], k))
            builder.store(builder.fadd(builder.load(to, align=4), total) if k < num_added else total, to, align=4)
        following = builder.add(column, ir.Constant(index, LANES))
        column.add_incoming(ir.Constant(index, 0), before)
        column.add_incoming(following, loop)
        builder.cbranch(builder.icmp_unsigned("<", following, args[4]), loop, after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    def product(typing: Any, source: Any, places: Any, target: Any, places_there: Any, count: Any) -> Any:
        return types.void(source, places, target, places_there, count), generate

    return intrinsic(product)


def _transposed(matrix: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
    return tuple(zip(*matrix, strict=True))


_from_pixels = _product(FROM_PIXELS)
_to_pixels = _product(TO_PIXELS)
_from_gradient = _product(_transposed(TO_PIXELS))
_to_gradient = _product(_transposed(FROM_PIXELS))
_add_to_gradient = _product(_transposed(FROM_PIXELS), 2)  # neighbouring tiles overlap by two pixels


@register_jitable
def _row(image: Any, row: Any, height: Any, size: Any) -> Any:
    """Where row `row` - 1 of an image of rows of `size` values begins; NONE outside."""
    return image + (row - np.uint64(1)) * size if (row > np.uint64(0)) & (row <= height) else NONE


@register_jitable
def _four(first: Any, step: Any) -> Any:
    return first, first + step, first + np.uint64(2) * step, first + np.uint64(3) * step


@register_jitable
def _six(first: Any, step: Any) -> Any:
    two = np.uint64(2) * step
    return first, first + step, first + two, first + two + step, first + two + two, first + two + two + step


@register_jitable
def _grid(shape: Any) -> Any:
    """Rows and columns of the tiles of an image."""
    height, width, _ = shape
    return (height + np.uint64(3)) // np.uint64(4), (width + np.uint64(3)) // np.uint64(4)


def tiles_of_images(
    x: Any,  # (N * H * W * C,)
    shape: Any,  # (H, W, C), uint64
    tiles: Any,  # (36 * N * tiles of an image * C,)
    first: int,  # images first .. last - 1
    last: int,
) -> None:
    """The 6x6 pixels around each 4x4 of the result, transformed in columns and rows."""
    height, width, channels = shape
    rows, columns = _grid(shape)
    one, four, six = np.uint64(1), np.uint64(4), np.uint64(6)
    size, place = width * channels, np.uint64(len(tiles)) // np.uint64(36)
    line = (four * columns + np.uint64(2)) * channels
    lines = np.zeros(six * line, np.float32)  # of six rows, with a column of zeros at each side
    for n in range(np.uint64(first), np.uint64(last)):
        image = n * height * size
        for row in range(rows):
            a, b, c, d, e, f = _six(four * row, one)
            places = (
                _row(image, a, height, size),
                _row(image, b, height, size),
                _row(image, c, height, size),
                _row(image, d, height, size),
                _row(image, e, height, size),
                _row(image, f, height, size),
            )
            _from_pixels(x, places, lines, _six(channels, line), size)
            for column in range(columns):
                tile = ((n * rows + row) * columns + column) * channels
                for k in range(six):
                    source = _six(k * line + four * column * channels, channels)
                    _from_pixels(lines, source, tiles, _six(tile + six * k * place, place), channels)


def images_of_tiles(
    tiles: Any,  # (36 * N * tiles of an image * C,)
    shape: Any,  # (H, W, C), uint64
    out: Any,  # (N * H * W * C,)
    first: int,
    last: int,
) -> None:
    """The result of the convolution, of the products of transformed pixels and weights."""
    height, width, channels = shape
    rows, columns = _grid(shape)
    four, six, none = np.uint64(4), np.uint64(6), np.uint64(0)
    size, place = width * channels, np.uint64(len(tiles)) // np.uint64(36)
    line = four * columns * channels
    lines, pixels = np.empty(six * line, np.float32), np.empty(four * size, np.float32)
    for n in range(np.uint64(first), np.uint64(last)):
        image = n * height * size
        for row in range(rows):
            for column in range(columns):
                tile = ((n * rows + row) * columns + column) * channels
                for k in range(six):
                    source = _six(tile + six * k * place, place)
                    _to_pixels(tiles, source, lines, _four(k * line + four * column * channels, channels), channels)
            to, left = image + four * row * size, height - four * row
            if left >= four:
                _to_pixels(lines, _six(none, line), out, _four(to, size), size)
            else:
                _to_pixels(lines, _six(none, line), pixels, _four(none, size), size)
                for k in range(left * size):
                    out[to + k] = pixels[k]


def tiles_of_gradient(
    grad: Any,  # (N * H * W * C,): of the result
    shape: Any,  # (H, W, C), uint64
    tiles: Any,  # (36 * N * tiles of an image * C,)
    first: int,
    last: int,
) -> None:
    """The gradient of the tiles of `images_of_tiles`."""
    height, width, channels = shape
    rows, columns = _grid(shape)
    one, four, six, none = np.uint64(1), np.uint64(4), np.uint64(6), np.uint64(0)
    size, place = width * channels, np.uint64(len(tiles)) // np.uint64(36)
    line = four * columns * channels
    lines = np.zeros(six * line, np.float32)  # zeros beyond the image
    for n in range(np.uint64(first), np.uint64(last)):
        image = n * height * size
        for row in range(rows):
            a, b, c, d = _four(four * row + one, one)
            places = (
                _row(image, a, height, size),
                _row(image, b, height, size),
                _row(image, c, height, size),
                _row(image, d, height, size),
            )
            _from_gradient(grad, places, lines, _six(none, line), size)
            for column in range(columns):
                tile = ((n * rows + row) * columns + column) * channels
                for k in range(six):
                    source = _four(k * line + four * column * channels, channels)
                    _from_gradient(lines, source, tiles, _six(tile + six * k * place, place), channels)


def gradient_of_tiles(
    tiles: Any,  # (36 * N * tiles of an image * C,): the gradient of those of `tiles_of_images`
    shape: Any,  # (H, W, C), uint64
    grad: Any,  # (N * H * W * C,)
    first: int,
    last: int,
) -> None:
    """The gradient of the images of `tiles_of_images`."""
    height, width, channels = shape
    rows, columns = _grid(shape)
    one, four, six, none = np.uint64(1), np.uint64(4), np.uint64(6), np.uint64(0)
    size, place = width * channels, np.uint64(len(tiles)) // np.uint64(36)
    line = (four * columns + np.uint64(2)) * channels
    lines, pixels = np.empty(six * line, np.float32), np.empty(six * size, np.float32)
    for n in range(np.uint64(first), np.uint64(last)):
        image = n * height * size
        for row in range(rows):
            for column in range(columns):
                tile = ((n * rows + row) * columns + column) * channels
                for k in range(six):
                    source = _six(tile + six * k * place, place)
                    to = _six(k * line + four * column * channels, channels)
                    if column:
                        _add_to_gradient(tiles, source, lines, to, channels)
                    else:
                        _to_gradient(tiles, source, lines, to, channels)
            top, bottom = four * row, four * row + four  # rows top - 1 .. bottom of the image
            if row and bottom < height:
                _add_to_gradient(lines, _six(channels, line), grad, _six(image + (top - one) * size, size), size)
                continue
            _to_gradient(lines, _six(channels, line), pixels, _six(none, size), size)
            for k in range(six):
                to = _row(image, top + k, height, size)
                if to != NONE:
                    if row and k < np.uint64(2):
                        for i in range(size):
                            grad[to + i] += pixels[k * size + i]
                    else:
                        for i in range(size):
                            grad[to + i] = pixels[k * size + i]
