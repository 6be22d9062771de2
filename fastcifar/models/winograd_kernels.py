"""The transforms of `winograd`, compiled by Numba.

Everything compiled is in this file: see `fastcifar.augment.numba_pixels`. Images are float32, flat, in channels-last
order: (N * H * W * C,), with C a multiple of LANES. A tile stands for m x m pixels of the result of the convolution;
what it has beyond the image is zero, or dropped. Tiles are flat, too: (n * n * tiles * C,), n = m + 2: for each place
in a tile a matrix with a row per tile, image after image. `edge`, n zeros, tells the compiler n. Products are written
in LLVM's language: its vectoriser gives up on twelve arrays that might overlap.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.extending import register_jitable

from fastcifar.models.cpu_kernels import Array

intrinsic: Any = extending.intrinsic
LANES = 16
"""Channels that are computed together: a register of AVX-512, two of AVX2."""
POINTS = {
    2: (0, 1, -1), 3: (0, 1, -1, 2), 4: (0, 1, -1, 2, -2), 5: (0, 1, -1, 2, 0.5, -0.5), 6: (0, 1, -1, 2, -2, 0.5, -0.5)
}  # fmt: skip
"""For each m, where polynomials are evaluated; the last point is infinity. With 3 in place of a half, m = 5 would have
rounding errors 25 times as large."""


class Matrix(IntEnum):
    """The order of `matrices`."""

    FROM_PIXELS = 0
    TO_PIXELS = 1
    FROM_FILTERS = 2


@functools.cache
def matrices(m: int) -> tuple[Array, Array, Array]:
    """(n, n), (m, n) and (n, 3) float64: one-dimensional transforms of pixels, back to them, and of weights.

    Weights and m pixels of a result are coefficients of polynomials, which are multiplied at the points (Toom and
    Cook); the transposed of that algorithm computes a correlation. With m = 4 it has the matrices of Lavin and
    Gray.
    """
    points = np.array(POINTS[m], np.float64)
    finite, n = len(points), m + 2
    from_pixels, to_pixels, from_filters = np.zeros((n, n)), np.zeros((m, n)), np.zeros((n, 3))
    for k, point in enumerate(points):
        others = np.delete(points, k)
        from_pixels[k, :finite] = np.poly(others)[::-1]
        to_pixels[:, k] = point ** np.arange(m)
        from_filters[k] = point ** np.arange(3) / np.prod(point - others)
    from_pixels[-1] = np.poly(points)[::-1]
    to_pixels[-1, -1] = from_filters[-1, -1] = 1
    return from_pixels, to_pixels, from_filters


def _product(which: Matrix, *, transposed: bool = False, num_added: int = 0) -> Any:
    """A function of (source, start, step, limits, target, start, step, count, edge): one of the `matrices` times rows
    of the source, of `count` values each, become rows of the target; the first `num_added` are added to what is there.

    Row k begins at start + k * step. limits: (first, last + 1) of the rows that exist, the others are zero; None if all
    do.
    """
    vector, index = ir.VectorType(ir.FloatType(), LANES), ir.IntType(64)

    def constant(value: float) -> Any:
        return ir.Constant(vector, [value] * LANES)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        matrix = matrices(signature.args[8].count - 2)[which]
        matrix = matrix.T if transposed else matrix
        loop, after = builder.append_basic_block(), builder.append_basic_block()
        column: Any = None

        def vector_at(array: int, row: int) -> tuple[Any, Any]:
            """A place in a row, and whether it exists."""
            data = context.make_array(signature.args[array])(context, builder, args[array]).data
            start, step = args[array + 1], args[array + 2]
            place = builder.add(start, builder.mul(step, ir.Constant(index, row)))
            exists = None
            if array == 0 and not isinstance(signature.args[3], types.NoneType):
                first, end = (builder.extract_value(args[3], k) for k in (0, 1))
                row_at = ir.Constant(index, row)
                inside = (builder.icmp_unsigned(">=", row_at, first), builder.icmp_unsigned("<", row_at, end))
                exists = builder.and_(*inside)
                place = builder.select(exists, place, ir.Constant(index, 0))
            return builder.bitcast(builder.gep(data, [builder.add(place, column)]), vector.as_pointer()), exists

        def read(row: int) -> Any:
            pointer, exists = vector_at(0, row)
            value = builder.load(pointer, align=4)
            return value if exists is None else builder.select(exists, value, constant(0.0))

        def scaled(factor: float, value: Any) -> Any:
            return value if factor == 1 else builder.fmul(value, constant(factor))

        def combined(factors: Sequence[float], rows: list[Any]) -> Any:
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
        rows = [read(k) for k in range(matrix.shape[1])]
        for k, factors in enumerate(matrix.tolist()):
            total, (to, _) = combined(factors, rows), vector_at(4, k)
            builder.store(builder.fadd(builder.load(to, align=4), total) if k < num_added else total, to, align=4)
        following = builder.add(column, ir.Constant(index, LANES))
        column.add_incoming(ir.Constant(index, 0), before)
        column.add_incoming(following, loop)
        builder.cbranch(builder.icmp_unsigned("<", following, args[7]), loop, after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    def product(
        typing: Any, source: Any, start: Any, step: Any, limits: Any, out: Any, to: Any, by: Any, count: Any, edge: Any
    ) -> Any:
        return types.void(source, start, step, limits, out, to, by, count, edge), generate

    return intrinsic(product)


_from_pixels = _product(Matrix.FROM_PIXELS)
_to_pixels = _product(Matrix.TO_PIXELS)
_from_gradient = _product(Matrix.TO_PIXELS, transposed=True)
_to_gradient = _product(Matrix.FROM_PIXELS, transposed=True)
_add_to_gradient = _product(Matrix.FROM_PIXELS, transposed=True, num_added=2)  # tiles overlap by two pixels


@register_jitable
def _sizes(shape: Any, tiles: Any, edge: Any) -> Any:
    """Pixels of a tile, rows and columns of tiles in an image, values of a row of an image and between two places."""
    height, width, channels = shape
    n = np.uint64(len(edge))
    m = n - np.uint64(2)
    rows, columns = (height + m - np.uint64(1)) // m, (width + m - np.uint64(1)) // m
    return m, rows, columns, width * channels, np.uint64(len(tiles)) // (n * n)


def tiles_of_images(
    x: Any,  # (N * H * W * C,)
    shape: Any,  # (H, W, C), uint64
    tiles: Any,  # (n * n * N * tiles of an image * C,)
    edge: Any,
    first: int,  # images first .. last - 1
    last: int,
) -> None:
    """The n x n pixels around each m x m of the result, transformed in columns and rows."""
    height, _, channels = shape
    m, rows, columns, size, place = _sizes(shape, tiles, edge)
    zero, one, n = np.uint64(0), np.uint64(1), m + np.uint64(2)
    line = (m * columns + np.uint64(2)) * channels
    lines = np.zeros(n * line, np.float32)  # of n rows, with a column of zeros at each side
    for number in range(np.uint64(first), np.uint64(last)):
        image = number * height * size
        for row in range(rows):
            top = m * row
            limits = (zero if row else one, height - top + one)
            _from_pixels(x, image + (top - one) * size, size, limits, lines, channels, line, size, edge)
            for column in range(columns):
                tile = ((number * rows + row) * columns + column) * channels
                for k in range(n):
                    at, to = k * line + m * column * channels, tile + n * k * place
                    _from_pixels(lines, at, channels, None, tiles, to, place, channels, edge)


def images_of_tiles(
    out: Any,  # (N * H * W * C,)
    shape: Any,  # (H, W, C), uint64
    tiles: Any,  # (n * n * N * tiles of an image * C,)
    edge: Any,
    first: int,
    last: int,
) -> None:
    """The result of the convolution, of the products of transformed pixels and weights."""
    height, _, channels = shape
    m, rows, columns, size, place = _sizes(shape, tiles, edge)
    zero, n = np.uint64(0), m + np.uint64(2)
    line = m * columns * channels
    lines, pixels = np.empty(n * line, np.float32), np.empty(m * size, np.float32)
    for number in range(np.uint64(first), np.uint64(last)):
        image = number * height * size
        for row in range(rows):
            for column in range(columns):
                tile = ((number * rows + row) * columns + column) * channels
                for k in range(n):
                    at, to = tile + n * k * place, k * line + m * column * channels
                    _to_pixels(tiles, at, place, None, lines, to, channels, channels, edge)
            to, left = image + m * row * size, height - m * row
            if left >= m:
                _to_pixels(lines, zero, line, None, out, to, size, size, edge)
            else:
                _to_pixels(lines, zero, line, None, pixels, zero, size, size, edge)
                for k in range(left * size):
                    out[to + k] = pixels[k]


def tiles_of_gradient(
    grad: Any,  # (N * H * W * C,): of the result
    shape: Any,  # (H, W, C), uint64
    tiles: Any,  # (n * n * N * tiles of an image * C,)
    edge: Any,
    first: int,
    last: int,
) -> None:
    """The gradient of the tiles of `images_of_tiles`."""
    height, _, channels = shape
    m, rows, columns, size, place = _sizes(shape, tiles, edge)
    zero, n = np.uint64(0), m + np.uint64(2)
    line = m * columns * channels
    lines = np.zeros(n * line, np.float32)  # zeros beyond the image
    for number in range(np.uint64(first), np.uint64(last)):
        image = number * height * size
        for row in range(rows):
            top = m * row
            _from_gradient(grad, image + top * size, size, (zero, height - top), lines, zero, line, size, edge)
            for column in range(columns):
                tile = ((number * rows + row) * columns + column) * channels
                for k in range(n):
                    at, to = k * line + m * column * channels, tile + n * k * place
                    _from_gradient(lines, at, channels, None, tiles, to, place, channels, edge)


def gradient_of_tiles(
    grad: Any,  # (N * H * W * C,)
    shape: Any,  # (H, W, C), uint64
    tiles: Any,  # (n * n * N * tiles of an image * C,): the gradient of those of `tiles_of_images`
    edge: Any,
    first: int,
    last: int,
) -> None:
    """The gradient of the images of `tiles_of_images`."""
    height, _, channels = shape
    m, rows, columns, size, place = _sizes(shape, tiles, edge)
    zero, one, n = np.uint64(0), np.uint64(1), m + np.uint64(2)
    line = (m * columns + np.uint64(2)) * channels
    lines, pixels = np.empty(n * line, np.float32), np.empty(n * size, np.float32)
    for number in range(np.uint64(first), np.uint64(last)):
        image = number * height * size
        for row in range(rows):
            for column in range(columns):
                tile = ((number * rows + row) * columns + column) * channels
                for k in range(n):
                    at, to = tile + n * k * place, k * line + m * column * channels
                    if column:
                        _add_to_gradient(tiles, at, place, None, lines, to, channels, channels, edge)
                    else:
                        _to_gradient(tiles, at, place, None, lines, to, channels, channels, edge)
            top = m * row
            to = image + (top - one) * size  # rows top - 1 .. top + m of the image
            if row and top + m < height:
                _add_to_gradient(lines, channels, line, None, grad, to, size, size, edge)
                continue
            _to_gradient(lines, channels, line, None, pixels, zero, size, size, edge)
            for k in range(n):
                if zero < top + k <= height:
                    begin, adds = to + k * size, row > zero and k < np.uint64(2)
                    for i in range(size):
                        old = grad[begin + i] if adds else np.float32(0)
                        grad[begin + i] = old + pixels[k * size + i]
