"""Batch normalisation on a CPU, in one pass with what surrounds it: see `norm_kernels`.

torch reads and writes the images once for each operation; on a CPU, memory is then the limit of all but convolutions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.module import _has_any_global_hook

from fastcifar.models.cpu_kernels import Array, can_read, flat_values, numba_is_usable, run, summed

GELU, RELU = 0, 1
KINDS: dict[type[nn.Module], int] = {nn.GELU: GELU, nn.ReLU: RELU}


def can_fuse(
    x: torch.Tensor, norm: nn.Module, activation: nn.Module | None = None, pool: nn.Module | None = None
) -> bool:
    """Whether `norm_act` can do what these layers do with x, (N, C, H, W): a batch normalisation on a CPU, in training
    with gradients or in evaluation in `torch.inference_mode`, in channels-last memory, and no hook that expects what is
    between the layers. The gradient then has no gradient.

    activation: None if it is a function.
    """
    return (
        can_read(x)
        and x.dtype in (torch.bfloat16, torch.float32)
        and (torch.is_grad_enabled() or torch.is_inference_mode_enabled())
        and not _has_any_global_hook()  # type: ignore[no-untyped-call]
        and not any(map(_has_hooks, (norm, activation, pool)))
        and _is_plain_norm(norm, x.shape[1])
        and (activation is None or type(activation) in KINDS)
        and (type(activation) is not nn.GELU or activation.approximate == "none")
        and (pool is None or (_is_plain_pool(pool) and type(activation) is nn.GELU))
        and len(x) > 1
        and min(x.shape[2:]) > 1
        and numba_is_usable()
    )


def _has_hooks(layer: nn.Module | None) -> bool:
    return layer is not None and any(
        (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    )


def _is_plain_pool(layer: nn.Module) -> bool:
    return (
        type(layer) is nn.MaxPool2d
        and (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == (2, 2, 0, 1)
        and not (layer.ceil_mode or layer.return_indices)
    )


def _is_plain_norm(layer: nn.Module, channels: int) -> bool:
    return (
        type(layer) is nn.BatchNorm2d
        and layer.training != torch.is_inference_mode_enabled()
        and layer.track_running_stats
        and layer.momentum is not None
        and all(
            values is not None and values.shape == (channels,) and values.dtype == torch.float32
            for values in (layer.weight, layer.bias, layer.running_mean, layer.running_var)
        )
    )


def norm_act(
    x: torch.Tensor, norm: nn.Module, kind: int, *, pool: bool = False, shortcut: torch.Tensor | None = None
) -> torch.Tensor:
    """activation(norm(max_pool2d(x, 2)) + shortcut), (N, C, H, W) bfloat16 or float32 -> of the same dtype.

    kind: GELU or RELU. pool: with the maximum of 2x2 pixels before, for GELU. shortcut: of the shape of x, for RELU.
    Updates the running statistics in training. Between x and the result all is float32. See `can_fuse`.
    """
    if shortcut is not None:
        shortcut = shortcut.to(x.dtype).contiguous(memory_format=torch.channels_last)
    assert isinstance(norm, nn.BatchNorm2d)
    if not norm.training:
        return _evaluate(x, norm, kind, pool, shortcut)
    return _NormAct.apply(x, norm.weight, norm.bias, shortcut, norm, kind, pool)


def _evaluate(
    x: torch.Tensor, norm: nn.BatchNorm2d, kind: int, pool: bool, shortcut: torch.Tensor | None
) -> torch.Tensor:
    """`norm_act` with the running statistics."""
    num, channels, height, width = x.shape
    scale = _float32(norm.weight) / np.sqrt(_float32(norm.running_var) + np.float32(norm.eps))
    factors = scale, _float32(norm.bias) - _float32(norm.running_mean) * scale
    if pool:
        out = _empty(x, height // 2, width // 2)
        size = tuple(map(np.uint64, (height, width, channels)))
        arguments = (flat_values(x), size, *factors, flat_values(out))
        run("norm_kernels.pool_activate", *arguments, count=num, size=x[0].numel())
        return out
    out, rows = torch.empty_like(x), flat_values(x)
    added = rows[:0] if shortcut is None else flat_values(shortcut)
    outs = flat_values(out), rows[:0]
    run("norm_kernels.activate", rows, added, *factors, kind, *outs, count=num * height * width, size=channels)
    return out


NOT_FINITE = np.errstate(over="ignore", invalid="ignore", divide="ignore")
"""Inf and NaN pass through, as in torch: the training says that its loss is not finite."""


class _NormAct(torch.autograd.Function):
    """The formulas of batch normalisation and its gradient (Ioffe and Szegedy 2015)."""

    @staticmethod
    @NOT_FINITE
    def forward(
        context: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        shortcut: torch.Tensor | None,
        norm: nn.BatchNorm2d,
        kind: int,
        pool: bool,
    ) -> torch.Tensor:
        num, channels, height, width = x.shape
        shape, rows = (height, width), flat_values(x)
        shift = _float32(norm.running_mean)
        if pool:
            height, width = height // 2, width // 2
            pooled = _empty(x, height, width)
            chosen: Array = np.empty(pooled.numel(), np.uint8)
            size = tuple(map(np.uint64, (*shape, channels)))
            arguments = (rows, size, shift, flat_values(pooled), chosen)
            sums = summed("norm_kernels.pool", *arguments, channels=channels, count=num, size=x[0].numel())
            x, rows = pooled, flat_values(pooled)
        else:
            chosen = np.empty(0, np.uint8)
            count = num * height * width
            sums = summed("norm_kernels.moments", rows, channels, shift, channels=channels, count=count, size=channels)
        count = num * height * width
        offset = sums[0] / count
        mean, var = shift + offset, np.maximum(sums[1] / count - offset**2, 0)
        _update_running(norm, mean, var * (count / (count - 1)))
        inv_std = 1 / np.sqrt(var + norm.eps)
        scale = _float32(weight) * inv_std
        scale, offset = scale.astype(np.float32), (_float32(bias) - mean * scale).astype(np.float32)
        out = torch.empty_like(x)
        added = flat_values(shortcut) if shortcut is not None else rows[:0]
        gate = torch.empty_like(x) if kind == GELU else out
        outs = flat_values(out), flat_values(gate)
        run("norm_kernels.activate", rows, added, scale, offset, kind, *outs, count=count, size=channels)
        context.save_for_backward(x, gate)
        context.facts = (shape, chosen, mean, inv_std, scale, kind, shortcut is not None)
        return out

    @staticmethod
    @once_differentiable
    @NOT_FINITE
    def backward(context: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, gate = context.saved_tensors
        shape, chosen, mean, inv_std, scale, kind, has_shortcut = context.facts
        num, channels, height, width = x.shape
        count = num * height * width
        grad = grad.to(x.dtype).contiguous(memory_format=torch.channels_last)
        rows = flat_values(x), flat_values(gate), flat_values(grad)
        shift = mean.astype(np.float32)
        sums = summed("norm_kernels.gradient_sums", *rows, shift, kind, channels=channels, count=count, size=channels)
        products = (sums[1] - (mean - shift) * sums[0]) * inv_std  # of the gradient and the normalised value
        slope = -scale * products * inv_std / count
        constant = (-scale * sums[0] / count - slope * mean).astype(np.float32)
        slope = slope.astype(np.float32)
        grad_shortcut = torch.empty_like(x) if has_shortcut else None
        if len(chosen):
            grad_x = _empty(x, *shape)
            size = tuple(map(np.uint64, (*shape, channels)))
            to_pixels = (*rows, chosen, scale, slope, constant, size, flat_values(grad_x))
            run("norm_kernels.unpool", *to_pixels, count=num, size=grad_x[0].numel())
        else:
            grad_x = torch.empty_like(x)
            added = flat_values(grad_shortcut) if grad_shortcut is not None else rows[0][:0]
            arguments = (*rows, scale, slope, constant, kind, flat_values(grad_x), added)
            run("norm_kernels.input_gradient", *arguments, count=count, size=channels)
        grads_of = [torch.from_numpy(values.astype(np.float32)) for values in (products, sums[0])]
        return grad_x, *grads_of, grad_shortcut, None, None, None


def _empty(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Uninitialised images of another size, like x."""
    return torch.empty((*x.shape[:2], height, width), dtype=x.dtype, memory_format=torch.channels_last)


def _float32(x: torch.Tensor | None) -> Array:
    return np.ascontiguousarray(x.detach().numpy())  # type: ignore[union-attr]


def _update_running(norm: nn.BatchNorm2d, mean: Array, var: Array) -> None:
    for running, value in ((norm.running_mean, mean), (norm.running_var, var)):
        running.lerp_(torch.from_numpy(value.astype(np.float32)), norm.momentum)  # type: ignore[union-attr,arg-type]
    norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
