"""Runs kernels compiled by Numba on images in channels-last memory, on as many threads as torch has."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.augment.kernel import numba_module
from fastcifar.system.thread_pool import Threads

Array = npt.NDArray[Any]
MIN_SLICE = 2**15  # values; submitting less to a thread costs more than it saves


@functools.cache
def numba_is_usable() -> bool:
    """Whether Numba can be imported."""
    with contextlib.suppress(ImportError):
        numba_module()
        return True
    return False


def can_read(x: torch.Tensor) -> bool:
    """Whether kernels can take the place of operations of torch on images x: a plain tensor (N, C, H, W) on a CPU, in
    channels-last memory, and neither compiled, traced nor transformed by `torch.func`."""
    return (
        type(x) is torch.Tensor
        and x.device.type == "cpu"
        and x.ndim == 4
        and not is_transformed()
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def is_plain_convolution(layer: torch.nn.Conv2d) -> bool:
    """Whether the layer, as it is, and not as it was made, has one group, no dilation, borders of zeros, float32
    weights, and computes what its class computes."""
    return (
        layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and "_conv_forward" not in vars(layer)
        and layer.weight.dtype == torch.float32
    )


def is_transformed() -> bool:
    """Whether torch.compile, a trace or torch.func looks for operations of torch in what is called."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call,unused-ignore]
        or torch._C._are_functorch_transforms_active()
    )


def flat_values(x: torch.Tensor) -> Array:
    """The memory of images in channels-last order, flat: float32, or bfloat16 as uint16."""
    flat = x.detach().permute(0, 2, 3, 1).reshape(-1)
    return flat.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else flat.numpy()


def run(name: str, *arguments: Any, count: int, size: int) -> None:
    """The kernel on slices of `count` rows or images of `size` values.

    name: MODULE.FUNCTION of `fastcifar.models`. Its first argument is an array; the dtype of that, and the lengths of
    tuples, say the types of all.
    """
    kernel = _kernel(name, arguments)
    _in_slices(lambda number, first, last: kernel(*arguments, first, last), _bounds(count, size))


def summed(name: str, *arguments: Any, channels: int, count: int, size: int) -> Array:
    """The sums, (2, C) float64, that the kernel adds up: one array for each slice, added in their order."""
    bounds = _bounds(count, size)
    sums = np.zeros((len(bounds) - 1, 2, channels))
    kernel = _kernel(name, (*arguments, sums[0]))
    _in_slices(lambda number, first, last: kernel(*arguments, sums[number], first, last), bounds)
    return sums.sum(axis=0)


_pool = functools.cache(lambda count: Threads(count, "kernels"))
_KERNELS: dict[tuple[Any, ...], Callable[..., None]] = {}


def _kernel(name: str, arguments: tuple[Any, ...]) -> Callable[..., None]:
    """As machine code for arguments of these types."""
    key = name, arguments[0].dtype, *(len(given) for given in arguments if isinstance(given, tuple))
    if key not in _KERNELS:
        module, function = name.split(".")
        kernels = importlib.import_module(f"fastcifar.models.{module}")  # imports Numba
        # empty: the cache of compiled functions keeps them alive
        empty = [given[:0].copy() if isinstance(given, np.ndarray) else given for given in arguments]
        _KERNELS[key] = numba_module().compiled(getattr(kernels, function), lambda kernel: kernel(*empty, 0, 0))
    return _KERNELS[key]


def _bounds(count: int, size: int) -> list[int]:
    num = max(1, min(torch.get_num_threads(), count * size // MIN_SLICE))
    return [count * i // num for i in range(num + 1)]


def _in_slices(call: Callable[[int, int, int], None], bounds: list[int]) -> None:
    slices = [(number, first, last) for number, (first, last) in enumerate(pairwise(bounds))]
    others = [_pool(torch.get_num_threads()).submit(call, *each) for each in slices[1:]]
    call(*slices[0])
    for other in others:
        other.result()
