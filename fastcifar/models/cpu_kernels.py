"""Runs kernels compiled by Numba on images in channels-last memory, on as many threads as torch has."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.augment.kernel import numba_module
from fastcifar.models.openmp import Team, make_team
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

    name: MODULE.FUNCTION of `fastcifar.models`.
    arguments: contiguous arrays, integers, and tuples of integers.
    """
    _call(name, arguments, _slices(count, size))


def summed(name: str, *arguments: Any, channels: int, count: int, size: int) -> Array:
    """The sums, (2, C) float64, that the kernel adds up: one array for each slice, added in their order."""
    slices = _slices(count, size)
    sums = np.zeros((len(slices), 2, channels))
    _call(name, arguments, [(own, *bounds) for own, bounds in zip(sums, slices, strict=True)])
    return sums.sum(axis=0)


_pool = functools.cache(lambda count: Threads(count, "kernels"))
_KERNELS: dict[tuple[Any, ...], tuple[Callable[..., None], Callable[[], Team | None]]] = {}


def _kernel(name: str, arguments: tuple[Any, ...]) -> tuple[Callable[..., None], Callable[[], Team | None]]:
    """As machine code for arguments of these types, and, when it is first asked for, for torch's threads."""
    key = name, *map(_type, arguments)
    if key not in _KERNELS:
        module, function = name.split(".")
        kernels = importlib.import_module(f"fastcifar.models.{module}")  # imports Numba
        # empty: the cache of compiled functions keeps them alive
        empty = [given[:0].copy() if isinstance(given, np.ndarray) else given for given in arguments[:-2]] + [0, 0]
        kernel = numba_module().compiled(getattr(kernels, function), lambda kernel: kernel(*empty))
        _KERNELS[key] = kernel, functools.cache(lambda: make_team(kernel, empty))
    return _KERNELS[key]


def _type(given: Any) -> Any:
    """What the type of an argument depends on."""
    return given.dtype.char if isinstance(given, np.ndarray) else len(given) if isinstance(given, tuple) else None


def _slices(count: int, size: int) -> list[tuple[int, int]]:
    """The first, and the one after the last, of each slice of `count` rows or images."""
    num = max(1, min(torch.get_num_threads(), count * size // MIN_SLICE))
    return list(pairwise(count * i // num for i in range(num + 1)))


def _call(name: str, arguments: tuple[Any, ...], slices: Sequence[tuple[Any, ...]]) -> None:
    """The kernel, once for each slice, with the arguments of all and those of the slice."""
    kernel, make = _kernel(name, (*arguments, *slices[0]))
    if len(slices) > 1 and (team := make()) is not None:
        team(arguments, slices)
        return
    others = [_pool(torch.get_num_threads()).submit(kernel, *arguments, *each) for each in slices[1:]]
    kernel(*arguments, *slices[0])
    for other in others:
        other.result()
