"""Batch normalisation on a CPU, in one pass with what surrounds it: see `norm_kernels`.

torch reads and writes the images once for each operation; on a CPU, memory is then the limit of all but convolutions.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from fastcifar.augment.kernel import numba_module
from fastcifar.system.thread_pool import Threads

Array = npt.NDArray[Any]
GELU, RELU = 0, 1
MIN_SLICE = 2**15  # values; submitting less to a thread costs more than it saves


def can_fuse(x: torch.Tensor, *layers: nn.Module) -> bool:
    """Whether `norm_act` can do what the layers do with x, (N, C, H, W): a batch normalisation on a CPU, in training
    with gradients or in evaluation in `torch.inference_mode`, in channels-last memory, and no hook that expects what is
    between the layers."""
    return (
        type(x) is torch.Tensor
        and x.device.type == "cpu"
        and x.dtype in (torch.bfloat16, torch.float32)
        and x.is_contiguous(memory_format=torch.channels_last)
        and (torch.is_grad_enabled() or torch.is_inference_mode_enabled())
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call,unused-ignore]
        and all(_is_plain(layer) for layer in layers)
        and len(x) > 1
        and min(x.shape[2:]) > 1
        and _numba_is_usable()
    )


@functools.cache
def _numba_is_usable() -> bool:
    with contextlib.suppress(ImportError):
        numba_module()
        return True
    return False


def _is_plain(layer: nn.Module) -> bool:
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    if any(hooks):
        return False
    if type(layer) in (nn.MaxPool2d, nn.GELU, nn.ReLU):
        return True
    return (
        type(layer) is nn.BatchNorm2d
        and layer.training != torch.is_inference_mode_enabled()
        and layer.affine
        and layer.track_running_stats
        and layer.momentum is not None
        and layer.weight.dtype == torch.float32
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
        _run("pool_activate", _values(x), size, *factors, _values(out), count=num, size=x[0].numel())
        return out
    out, rows = torch.empty_like(x), _values(x)
    added = rows[:0] if shortcut is None else _values(shortcut)
    outs = _values(out), rows[:0]
    _run("activate", rows, added, *factors, kind, *outs, count=num * height * width, size=channels)
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
        shape, rows = (height, width), _values(x)
        shift = _float32(norm.running_mean)
        if pool:
            height, width = height // 2, width // 2
            pooled = _empty(x, height, width)
            chosen: Array = np.empty(pooled.numel(), np.uint8)
            size = tuple(map(np.uint64, (*shape, channels)))
            arguments = (rows, size, shift, _values(pooled), chosen)
            sums = _summed("pool", *arguments, channels=channels, count=num, size=x[0].numel())
            x, rows = pooled, _values(pooled)
        else:
            chosen = np.empty(0, np.uint8)
            count = num * height * width
            sums = _summed("moments", rows, channels, shift, channels=channels, count=count, size=channels)
        count = num * height * width
        offset = sums[0] / count
        mean, var = shift + offset, np.maximum(sums[1] / count - offset**2, 0)
        _update_running(norm, mean, var * (count / (count - 1)))
        inv_std = 1 / np.sqrt(var + norm.eps)
        scale = _float32(weight) * inv_std
        scale, offset = scale.astype(np.float32), (_float32(bias) - mean * scale).astype(np.float32)
        out = torch.empty_like(x)
        added = _values(shortcut) if shortcut is not None else rows[:0]
        gate = torch.empty_like(x) if kind == GELU else out
        outs = _values(out), _values(gate)
        _run("activate", rows, added, scale, offset, kind, *outs, count=count, size=channels)
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
        rows = _values(x), _values(gate), _values(grad)
        shift = mean.astype(np.float32)
        sums = _summed("gradient_sums", *rows, shift, kind, channels=channels, count=count, size=channels)
        products = (sums[1] - (mean - shift) * sums[0]) * inv_std  # of the gradient and the normalised value
        slope = -scale * products * inv_std / count
        constant = (-scale * sums[0] / count - slope * mean).astype(np.float32)
        slope = slope.astype(np.float32)
        grad_shortcut = torch.empty_like(x) if has_shortcut else None
        if len(chosen):
            grad_x = _empty(x, *shape)
            size = tuple(map(np.uint64, (*shape, channels)))
            to_pixels = (*rows, chosen, scale, slope, constant, size, _values(grad_x))
            _run("unpool", *to_pixels, count=num, size=grad_x[0].numel())
        else:
            grad_x = torch.empty_like(x)
            added = _values(grad_shortcut) if grad_shortcut is not None else rows[0][:0]
            arguments = (*rows, scale, slope, constant, kind, _values(grad_x), added)
            _run("input_gradient", *arguments, count=count, size=channels)
        grads_of = [torch.from_numpy(values.astype(np.float32)) for values in (products, sums[0])]
        return grad_x, *grads_of, grad_shortcut, None, None, None


def _values(x: torch.Tensor) -> Array:
    """The memory of images in channels-last order, flat: float32, or bfloat16 as uint16."""
    flat = x.detach().permute(0, 2, 3, 1).reshape(-1)
    return flat.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else flat.numpy()


def _empty(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Uninitialised images of another size, like x."""
    return torch.empty((*x.shape[:2], height, width), dtype=x.dtype, memory_format=torch.channels_last)


def _float32(x: torch.Tensor | None) -> Array:
    return x.detach().numpy()  # type: ignore[union-attr]


def _update_running(norm: nn.BatchNorm2d, mean: Array, var: Array) -> None:
    for running, value in ((norm.running_mean, mean), (norm.running_var, var)):
        running.lerp_(torch.from_numpy(value.astype(np.float32)), norm.momentum)  # type: ignore[union-attr,arg-type]
    norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]


_pool = functools.cache(lambda count: Threads(count, "norm"))
_KERNELS: dict[tuple[str, Any], Callable[..., None]] = {}


def _run(name: str, *arguments: Any, count: int, size: int) -> None:
    """The kernel of this name on slices of `count` rows or images of `size` values, on as many threads as torch has."""
    kernel = _kernel(name, arguments)
    _in_slices(lambda number, first, last: kernel(*arguments, first, last), _bounds(count, size))


def _summed(name: str, *arguments: Any, channels: int, count: int, size: int) -> Array:
    """The sums, (2, C) float64, that the kernel adds up: one array for each slice, added in their order."""
    bounds = _bounds(count, size)
    sums = np.zeros((len(bounds) - 1, 2, channels))
    kernel = _kernel(name, (*arguments, sums[0]))
    _in_slices(lambda number, first, last: kernel(*arguments, sums[number], first, last), bounds)
    return sums.sum(axis=0)


def _kernel(name: str, arguments: Sequence[Any]) -> Callable[..., None]:
    """As machine code for arguments of these types."""
    key = name, arguments[0].dtype
    if key not in _KERNELS:
        from fastcifar.models import norm_kernels

        # empty: the cache of compiled functions keeps them alive
        empty = [given[:0].copy() if isinstance(given, np.ndarray) else given for given in arguments]
        _KERNELS[key] = numba_module().compiled(getattr(norm_kernels, name), lambda kernel: kernel(*empty, 0, 0))
    return _KERNELS[key]


def _bounds(count: int, size: int) -> list[int]:
    num = max(1, min(torch.get_num_threads(), count * size // MIN_SLICE))
    return [count * i // num for i in range(num + 1)]


def _in_slices(call: Callable[[int, int, int], None], bounds: Sequence[int]) -> None:
    slices = [(number, first, last) for number, (first, last) in enumerate(pairwise(bounds))]
    others = [_pool(len(slices)).submit(call, *each) for each in slices[1:]]
    call(*slices[0])
    for other in others:
        other.result()
