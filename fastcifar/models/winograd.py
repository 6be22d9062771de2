"""3x3 convolutions with fewer multiplications, for float32 on a CPU.

The algorithm of Winograd, as Lavin and Gray describe it ("Fast Algorithms for Convolutional Neural Networks", 2015):
n x n pixels, n = m + 2, and 3x3 weights are transformed, multiplied place by place, and transformed back to m x m
pixels of the result. The products of all channels are n * n matrix products. cuDNN does the same on a GPU. With m = 4,
36 multiplications stand for 144, with m = 6, 64 for 324. Rounding errors are up to ten times those of the direct sum:
at most 1.1e-4 of a standard deviation, for the layers of ResNet-18 and random images. bfloat16 has 8 bits, 4e-3 of a
value.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from fastcifar.models.cpu_kernels import can_read, flat_values, is_plain_convolution, numba_is_usable, run

TILES = (2, 3, 4, 5, 6)
"""Sides m of tiles; larger ones save more where they fit the image, and have larger rounding errors."""
TRANSFORM_COST, FILTER_COST = 50, 45
"""Time to transform a value of a tile, or of the weights, in multiplications of a matrix product. Measured on two cores
of an Intel Xeon with AVX-512; with less bandwidth for its arithmetic than most."""
MIN_GAIN = 1.1
BLOCK_BYTES, BLOCK_TILES = 2**23, 256
"""Transformed images of a block, for each thread, and at least: more leave the cache, fewer slow the products."""


class WinogradConv2d(nn.Conv2d):
    """`nn.Conv2d`, in training with another way to the same values where that is faster. On two cores of an Intel Xeon
    that hides AMX, forward and backward of 64 images of 128 channels, 16 pixels a side, take 20 ms instead of 40; of
    512 channels and 4 pixels 24 instead of 62; 256 images of 256 channels and 5 pixels 24 instead of 69.

    num_processes: that share a batch. What is fastest for all of it is used, whatever their number: rounding errors
    then do not depend on it.
    """

    num_processes: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (m := self._tile(x)) is None:
            return super().forward(x)
        y = _Convolution.apply(x, self.weight, m)
        return y if self.bias is None else y + self.bias[:, None, None]

    def _tile(self, x: torch.Tensor) -> int | None:
        """Which m is fastest; None: the direct sum."""
        can_be_used = (
            can_read(x)
            and x.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and torch.is_grad_enabled()
            and self.weight.requires_grad
            and _can_convert(self)
            and x.shape[1] == self.weight.shape[1]
        )
        if not can_be_used:
            return None
        shape = (len(x) * self.num_processes, *x.shape[1:])
        gains = {m: _gain(m, shape, len(self.weight)) for m in TILES}
        best = max(gains, key=gains.__getitem__)
        return best if gains[best] >= MIN_GAIN else None


class _Convolution(torch.autograd.Function):
    """Cross-correlation of x (N, C, H, W), channels_last, and weight (K, C, 3, 3), with padding 1."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, weight: torch.Tensor, m: int) -> torch.Tensor:
        context.save_for_backward(x, weight)
        context.m = m
        filters = _filters(weight, m)
        out = _empty_like(x, len(weight))
        for images, tiles, products in _blocks(m, x, out):
            _transform("tiles_of_images", m, x[images], tiles)
            torch.bmm(tiles, filters.transpose(1, 2), out=products)
            _transform("images_of_tiles", m, out[images], products)
        return out

    @staticmethod
    def backward(context: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        (x, weight), m = context.saved_tensors, context.m
        needs_x, needs_weight, _ = context.needs_input_grad
        if torch.is_grad_enabled():  # the gradient will have a gradient
            one = (1, 1)
            settings = None, one, one, one, False, (0, 0), 1, (needs_x, needs_weight, False)
            return *torch.ops.aten.convolution_backward(grad, x, weight, *settings)[:2], None
        grad = grad.contiguous(memory_format=torch.channels_last)
        filters = _filters(weight, m)
        grad_x = _empty_like(x, x.shape[1]) if needs_x else None
        grad_filters = filters.new_empty(filters.shape)
        for images, tiles, products in _blocks(m, x, grad):
            _transform("tiles_of_gradient", m, grad[images], products)
            if needs_weight:
                _transform("tiles_of_images", m, x[images], tiles)
                beta = int(images.start > 0)  # 0: what is in the memory is ignored
                grad_filters.baddbmm_(products.transpose(1, 2), tiles, beta=beta)
            if grad_x is not None:
                torch.bmm(products, filters, out=tiles)
                _transform("gradient_of_tiles", m, grad_x[images], tiles)
        return grad_x, _weight_gradient(grad_filters, m) if needs_weight else None, None


@functools.cache
def _filter_transform(m: int) -> torch.Tensor:
    """(n * n, 9): of rows and columns at once."""
    from fastcifar.models.winograd_kernels import Matrix, matrices  # imports Numba

    matrix = matrices(m)[Matrix.FROM_FILTERS]
    return torch.from_numpy(np.kron(matrix, matrix)).float()


def _filters(weight: torch.Tensor, m: int) -> torch.Tensor:
    """(K, C, 3, 3) -> (n * n, K, C), in the order (K, n * n, C), which needs no copy of channels-last weights."""
    flat = weight.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.matmul(_filter_transform(m), flat).transpose(0, 1)


def _weight_gradient(grad_filters: torch.Tensor, m: int) -> torch.Tensor:
    """(n * n, K, C) -> (K, C, 3, 3), channels-last."""
    flat = torch.matmul(_filter_transform(m).T, grad_filters.transpose(0, 1))
    return flat.view(len(flat), 3, 3, -1).permute(0, 3, 1, 2)


def _tiles_per_image(m: int, height: int, width: int) -> int:
    return -(-height // m) * -(-width // m)


def _gain(m: int, shape: tuple[int, ...], num_out: int) -> float:
    """An estimate: the time of the direct sum in that of this one."""
    num, num_in, height, width = shape
    products = num_in * num_out
    cost_per_tile = products + TRANSFORM_COST * (num_in + num_out)
    cost = num * _tiles_per_image(m, height, width) * cost_per_tile + FILTER_COST * products
    return 9 * num * height * width * products / ((m + 2) ** 2 * cost)


def _blocks(m: int, x: torch.Tensor, out: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Some images at a time, and memory for the tiles of x, (n * n, tiles, C), and of the result, (n * n, tiles, K)."""
    places, per_image = (m + 2) ** 2, _tiles_per_image(m, *x.shape[2:])
    widths = x.shape[1], out.shape[1]
    budget = BLOCK_BYTES * torch.get_num_threads() // (places * sum(widths) * x.element_size())
    step = min(len(x), max(1, max(budget, BLOCK_TILES) // per_image))
    memory = [x.new_empty(places * step * per_image * width) for width in widths]
    for first in range(0, len(x), step):
        images = slice(first, min(first + step, len(x)))
        shapes = [(places, (images.stop - first) * per_image, width) for width in widths]
        tiles, products = (
            flat[: shape[0] * shape[1] * shape[2]].view(shape) for flat, shape in zip(memory, shapes, strict=True)
        )
        yield images, tiles, products


def _transform(name: str, m: int, images: torch.Tensor, tiles: torch.Tensor) -> None:
    """A kernel between images and tiles; its name says the direction."""
    num, channels, height, width = images.shape
    shape, edge = tuple(map(np.uint64, (height, width, channels))), (0,) * (m + 2)
    arguments = (flat_values(images), shape, tiles.view(-1).numpy(), edge)
    run(f"winograd_kernels.{name}", *arguments, count=num, size=images[0].numel())


def _empty_like(x: torch.Tensor, channels: int) -> torch.Tensor:
    num, _, height, width = x.shape
    return torch.empty((num, channels, height, width), dtype=x.dtype, memory_format=torch.channels_last)


def convert_convolutions(network: nn.Module, num_processes: int = 1) -> None:
    """Make each convolution in `network` that can be one a `WinogradConv2d`, in place; parameters and buffers stay."""
    if not numba_is_usable():
        return
    for module in network.modules():
        if type(module) is nn.Conv2d and _can_convert(module):
            module.__class__ = WinogradConv2d
        if isinstance(module, WinogradConv2d):
            module.num_processes = num_processes


def _can_convert(layer: nn.Conv2d) -> bool:
    """Whether the layer computes what the kernels compute: its shapes may have changed, e.g. by pruning."""
    from fastcifar.models.winograd_kernels import LANES  # imports Numba

    weight, bias = layer.weight, layer.bias
    return (
        is_plain_convolution(layer)
        and layer.stride == layer.padding == (1, 1)
        and weight.shape[2:] == (3, 3)
        and weight.shape[0] % LANES == weight.shape[1] % LANES == 0
        and (bias is None or bias.shape == weight.shape[:1])
    )
