"""The interface between loaders and kernels: augment and normalise a batch of uint8 images.

One interface and one configuration for three implementations: `numba_kernel` on a CPU, `triton_kernel` on CUDA,
`torch_kernel` on any device. `make_kernel` selects one.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.augment.params import AugmentParams
from fastcifar.config import AugmentConfig
from fastcifar.errors import one_line

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class KernelConfig:
    """What a kernel does to every batch."""

    image_shape: tuple[int, int, int]
    """(H, W, 3)."""
    augment: AugmentConfig
    mean: npt.NDArray[np.float64]
    """(3,), 0..255, and `std`: for the normalisation; the mean is also what a cutout may be filled with."""
    std: npt.NDArray[np.float64]
    dtype: torch.dtype = torch.float32
    """uint8: not normalised."""
    channels_last: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @functools.cached_property
    def fill(self) -> npt.NDArray[np.uint8]:
        """What a cutout writes, (3,): black, or the mean rounded to 8 bits (half to even)."""
        return np.zeros(3, np.uint8) if self.augment.cutout_fill == "zero" else np.rint(self.mean).astype(np.uint8)


def normalisation(
    mean: npt.NDArray[np.float64], std: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """`mean32` and `inv_std32`, (3,) float32 each: images become `(float32(x) - mean32) * inv_std32`.

    A constant channel, with std 0, is divided by 1.
    """
    return mean.astype(np.float32), (1.0 / np.where(std > 0, std, 1.0)).astype(np.float32)


class Kernel(Protocol):
    """Augments and normalises batches of images."""

    num_ahead: int
    """How many batches to launch before the one that is needed now."""

    def to_device(self, array: npt.NDArray[Any]) -> Any:
        """The array where the kernel reads it: itself (Numba), or a tensor on the device."""

    def load_params(self, params: AugmentParams) -> Any:
        """The parameters as `launch` takes them."""

    def launch(self, data: Any, offsets: Any, indices: Any, params: Any) -> Callable[[], torch.Tensor]:
        """Start a batch: images `indices`, (B,) int64, of `data`, (size,) uint8. Image i begins at `offsets[i]`,
        (N,) int64, and has row i of the parameters. The arrays are those that `to_device` returned.

        Returns a function that waits for the batch, a new tensor (B, 3, H, W) in the dtype and memory format of the
        configuration.
        """

    def close(self) -> None:
        """End its threads."""


def make_kernel(config: KernelConfig) -> Kernel:
    """The fastest kernel for the device: Numba on a CPU, Triton on CUDA; torch elsewhere, or if neither is usable."""
    from fastcifar.augment.torch_kernel import TorchKernel

    try:
        if config.device.type == "cpu":
            kernel: Kernel = numba_module().NumbaKernel(config)
            return kernel
        if config.device.type == "cuda":
            from fastcifar.augment.triton_kernel import TritonKernel

            return TritonKernel(config)
    except ImportError as error:
        warn_of_torch_kernel(config.device, str(error))
    return TorchKernel(config)


def warn_of_torch_kernel(device: torch.device, reason: str) -> None:
    """Log, once, that torch operations replace a kernel."""
    _warn_once("CPU" if device.type == "cpu" else "GPU", reason)


@functools.cache  # once per reason: a run has three loaders
def _warn_once(device: str, reason: str) -> None:
    log.warning("the %s kernel cannot be used (%s): torch operations augment the images, slower", device, reason)


def numba_module() -> Any:
    """`fastcifar.augment.numba_kernel`. Raises ImportError if Numba is not installed, is disabled by
    NUMBA_DISABLE_JIT, or rejects its environment variables."""
    try:
        import numba

        if getattr(numba.config, "DISABLE_JIT", 0):
            raise ImportError("NUMBA_DISABLE_JIT is set; unset it to use the compiled kernel")
        return importlib.import_module("fastcifar.augment.numba_kernel")
    except ImportError:
        raise
    except Exception as error:  # NUMBA_NUM_THREADS=0 is a ValueError while Numba is imported
        raise ImportError(f"Numba failed: {one_line(error)}") from error
