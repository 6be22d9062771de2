"""Convolutions whose weight gradient is fast on narrow feature maps, on CPUs with AMX.

oneDNN's weight gradient multiplies tiles of 32 pixels of one row of one image: of a row of 7 pixels, 25 of 32 products
are wasted. Several images next to each other, with columns of zeros between them, are one wide image with the same
weight gradient: the zeros contribute nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.models.cpu_kernels import is_plain_convolution, is_transformed

TILE = 32  # pixels
WIDE = 64
"""Pixels: images are put together to about this width."""


class NarrowConv2d(nn.Conv2d):
    """`nn.Conv2d`, with another way to the gradient of the weight where that is faster: bfloat16 on a CPU with AMX, an
    output of at most a quarter of a tile. On one thread of an Intel Xeon, 500 images of 256 channels, 3 pixels a side,
    take 11 ms instead of 58; of 5 pixels 22 instead of 84, of 7 49 instead of 96, of 8 58 instead of 93."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self._is_slow(x):
            return super().forward(x)
        x = x.to(torch.bfloat16, memory_format=torch.channels_last)
        y = _Convolution.apply(x, self.weight.to(torch.bfloat16), self.stride, self.padding)
        return y if self.bias is None else y + self.bias.to(torch.bfloat16)[:, None, None]

    def _is_slow(self, x: torch.Tensor) -> bool:
        return (
            type(x) is torch.Tensor
            and x.device.type == "cpu"
            and torch.is_autocast_enabled("cpu")
            and torch.get_autocast_dtype("cpu") == torch.bfloat16
            and torch.is_grad_enabled()
            and self.weight.requires_grad
            and x.ndim == 4
            and len(x) > 1
            and not is_transformed()
            and _can_convert(self)
            and (x.shape[3] - 1) // self.stride[1] + 1 <= TILE // 4
        )


class _Convolution(torch.autograd.Function):
    """Cross-correlation of x (N, C, H, W) and weight (K, C, h, w), both bfloat16."""

    @staticmethod
    def forward(
        context: Any, x: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> torch.Tensor:
        context.save_for_backward(x, weight)
        context.stride, context.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding)

    @staticmethod
    def backward(context: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, weight = context.saved_tensors
        grad_x = grad_weight = None
        settings = context.stride, context.padding
        if context.needs_input_grad[0]:
            grad_x = _gradients(grad, x, weight, *settings, (True, False))[0]
        if context.needs_input_grad[1]:
            columns = grad.shape[3] + -(-context.padding[1] // context.stride[1])
            together = min(len(x), max(1, WIDE // columns))
            grad = _put_together(grad, together, columns)
            x = _put_together(x, together, columns * context.stride[1])
            grad_weight = _gradients(grad, x, weight, *settings, (False, True))[1]
        return grad_x, grad_weight, None, None


def _gradients(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    wanted: tuple[bool, bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    gradients = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), 1, (*wanted, False)
    )
    return gradients[0], gradients[1]


def _put_together(images: torch.Tensor, count: int, width: int) -> torch.Tensor:
    """(N, C, H, W) -> (ceil(N / count), C, H, count * width), channels_last: each image, then zeros up to `width`."""
    num, channels, height, own_width = images.shape
    whole, left = divmod(num, count)
    wide = images.new_empty((whole + bool(left), height, count, width, channels))
    wide[:, :, :, own_width:] = 0
    images = images.permute(0, 2, 3, 1)
    wide[:whole, :, :, :own_width] = (
        images[: whole * count].view(whole, count, height, own_width, channels).transpose(1, 2)
    )
    if left:
        wide[whole, :, :left, :own_width] = images[whole * count :].transpose(0, 1)
        wide[whole, :, left:] = 0
    return wide.view(len(wide), height, count * width, channels).permute(0, 3, 1, 2)


def convert_convolutions(network: nn.Module) -> None:
    """Make each convolution in `network` that can be one a `NarrowConv2d`, in place; parameters and buffers stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _can_convert(module):
            module.__class__ = NarrowConv2d


def _can_convert(layer: nn.Conv2d) -> bool:
    """Whether the layer computes what `_Convolution` does."""
    kernel, padding = layer.weight.shape[2:], layer.padding
    return (
        is_plain_convolution(layer)
        and isinstance(padding, tuple)
        and isinstance(layer.stride, tuple)
        and all(2 * pad == side - 1 for pad, side in zip(padding, kernel, strict=True))
    )
