"""3x3 convolutions with a quarter of the multiplications, for float32 on a CPU.

The algorithm of Winograd, as Lavin and Gray describe it ("Fast Algorithms for Convolutional Neural Networks", 2015):
6x6 pixels and 3x3 weights are transformed, multiplied place by place, and transformed back to 4x4 pixels. The products
of all channels are 36 matrix products. cuDNN does the same on a GPU. Rounding errors are about eight times those of the
direct sum, 5e-5 of a standard deviation; bfloat16 has 4e-3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from fastcifar.models.cpu_kernels import flat_values, numba_is_usable, run

LANES = 16
"""The kernels compute so many channels together."""
TRANSFORM_COST, FILTER_COST = 68, 45
"""Time to transform a value of a tile, or of the weights, in multiplications of a matrix product. Measured on two cores
of an Intel Xeon with AVX-512; with less bandwidth for its arithmetic than most."""
MIN_GAIN = 1.1
BLOCK_BYTES, BLOCK_TILES = 2**23, 256
"""Transformed images of a block, for each thread, and at least: more leave the cache, fewer slow the products."""
# weights (3x3) -> (6x6)
FILTERS = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
TRANSFORM = torch.from_numpy(np.kron(FILTERS, FILTERS)).float()  # (36, 9)


class WinogradConv2d(nn.Conv2d):
    """`nn.Conv2d`, in training with another way to the same values where that is faster. On two cores of an Intel Xeon
    that hides AMX, forward and backward of 64 images of 128 channels, 16 pixels a side, take 28 ms instead of 43; of
    256 channels and 8 pixels 24 instead of 43; of 512 and 4 31 instead of 63."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or not self._is_worthwhile(x):
            return super().forward(x)
        y = _Convolution.apply(x, self.weight)
        return y if self.bias is None else y + self.bias[:, None, None]

    def _is_worthwhile(self, x: torch.Tensor) -> bool:
        return (
            type(x) is torch.Tensor
            and x.device.type == "cpu"
            and x.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call,unused-ignore]
            and torch.is_grad_enabled()
            and self.weight.requires_grad
            and x.ndim == 4
            and x.is_contiguous(memory_format=torch.channels_last)
            and _gain(x, self.out_channels) >= MIN_GAIN
        )


class _Convolution(torch.autograd.Function):
    """Cross-correlation of x (N, C, H, W), channels_last, and weight (K, C, 3, 3), with padding 1."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(x, weight)
        filters = _filters(weight)
        out = _empty_like(x, len(weight))
        for images, tiles, products in _blocks(x, out):
            _transform("tiles_of_images", x[images], tiles)
            torch.bmm(tiles, filters.transpose(1, 2), out=products)
            _transform("images_of_tiles", out[images], products)
        return out

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        x, weight = context.saved_tensors
        needs_x, needs_weight = context.needs_input_grad
        grad = grad.contiguous(memory_format=torch.channels_last)
        filters = _filters(weight)
        grad_x = _empty_like(x, x.shape[1]) if needs_x else None
        grad_filters = x.new_zeros((36, *weight.shape[:2]))
        for images, tiles, products in _blocks(x, grad):
            _transform("tiles_of_gradient", grad[images], products)
            if needs_weight:
                _transform("tiles_of_images", x[images], tiles)
                grad_filters.baddbmm_(products.transpose(1, 2), tiles)
            if grad_x is not None:
                torch.bmm(products, filters, out=tiles)
                _transform("gradient_of_tiles", grad_x[images], tiles)
        return grad_x, _weight_gradient(grad_filters, weight) if needs_weight else None


def _filters(weight: torch.Tensor) -> torch.Tensor:
    """(K, C, 3, 3) -> (36, K, C)."""
    flat = weight.permute(2, 3, 0, 1).reshape(9, -1)
    return (TRANSFORM @ flat).view(36, *weight.shape[:2])


def _weight_gradient(grad_filters: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(36, K, C) -> (K, C, 3, 3)."""
    flat = TRANSFORM.T @ grad_filters.view(36, -1)
    return flat.view(3, 3, *weight.shape[:2]).permute(2, 3, 0, 1)


def _num_tiles(x: torch.Tensor) -> int:
    """Of one image."""
    return -(-x.shape[2] // 4) * -(-x.shape[3] // 4)


def _gain(x: torch.Tensor, num_out: int) -> float:
    """An estimate: the time of the direct convolution in that of this one."""
    num_in, tiles = x.shape[1], len(x) * _num_tiles(x)
    multiplications = tiles * (num_in * num_out + TRANSFORM_COST * (num_in + num_out)) + FILTER_COST * num_in * num_out
    return 9 * len(x) * x.shape[2] * x.shape[3] * num_in * num_out / (36 * multiplications)


def _blocks(x: torch.Tensor, out: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """Some images at a time, and memory for the tiles of x and of the result: (36, tiles, C) and (36, tiles, K)."""
    num_tiles, widths = _num_tiles(x), (x.shape[1], out.shape[1])
    budget = BLOCK_BYTES * torch.get_num_threads() // (36 * sum(widths) * x.element_size())
    step = min(len(x), max(1, max(budget, BLOCK_TILES) // num_tiles))
    memory = [x.new_empty(36 * step * num_tiles * width) for width in widths]
    for first in range(0, len(x), step):
        images = slice(first, min(first + step, len(x)))
        count = (images.stop - first) * num_tiles
        tiles, products = (
            flat[: 36 * count * width].view(36, count, width) for flat, width in zip(memory, widths, strict=True)
        )
        yield images, tiles, products


def _transform(name: str, images: torch.Tensor, tiles: torch.Tensor) -> None:
    """A kernel between images and tiles; its name says the direction."""
    num, channels, height, width = images.shape
    shape = tuple(map(np.uint64, (height, width, channels)))
    flat = flat_values(images), tiles.view(-1).numpy()
    if name.startswith("tiles"):
        run(f"winograd_kernels.{name}", flat[0], shape, flat[1], count=num, size=images[0].numel())
    else:
        run(f"winograd_kernels.{name}", flat[1], shape, flat[0], count=num, size=images[0].numel())


def _empty_like(x: torch.Tensor, channels: int) -> torch.Tensor:
    num, _, height, width = x.shape
    return torch.empty((num, channels, height, width), dtype=x.dtype, memory_format=torch.channels_last)


def convert_convolutions(network: nn.Module) -> None:
    """Make each convolution in `network` that can be one a `WinogradConv2d`, in place; parameters and buffers stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _can_convert(module):
            module.__class__ = WinogradConv2d


def _can_convert(layer: nn.Conv2d) -> bool:
    return (
        layer.kernel_size == (3, 3)
        and layer.stride == layer.padding == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and layer.weight.dtype == torch.float32
        and layer.in_channels % LANES == layer.out_channels % LANES == 0
        and numba_is_usable()
    )
