"""MixUp and CutMix: each image of a batch is mixed with another one, after augmentation and normalisation.

The partner is in the same eighth of the batch of all processes, so 1, 2, 4 and 8 processes, whose slices are whole
eighths, mix the same images. `make_mixer` selects an implementation: `numba_mixing` on a CPU, `triton_mixing` on CUDA,
torch operations elsewhere. The reference implementation is `tests/reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from fastcifar.augment.kernel import KernelConfig, numba_module, warn_of_torch_kernel
from fastcifar.augment.params import AugmentParams
from fastcifar.errors import UsageError

NUM_PARTS = 8
"""Each part of a batch is mixed within itself."""


class MixPlan(NamedTuple):
    """How the B images of a process are mixed."""

    partners: npt.NDArray[np.int64]
    """(B,): the position of the other image in the batch of this process."""
    weights: npt.NDArray[np.float32]
    """(B, 2): of the label of the image, and of its partner's; without a box also of the pixels."""
    boxes: npt.NDArray[np.int64]
    """(B, 4): top, left, height and width of what comes from the partner; height 0: no box."""
    bounds: npt.NDArray[np.int64]
    """(P + 1,): part p is images bounds[p] .. bounds[p + 1] - 1, and so are their partners."""


def require_mixable(batch_size: int, world_size: int) -> None:
    """Raise UsageError unless each eighth of a batch has two images, and each process whole eighths."""
    if NUM_PARTS % world_size:
        raise UsageError(
            f"{world_size} processes with mixup or cutmix; expected 1, 2, 4 or 8: images are mixed within each eighth "
            "of a batch"
        )
    if batch_size < 2 * NUM_PARTS:
        raise UsageError(
            f"batch_size is {batch_size} with mixup or cutmix; expected at least {2 * NUM_PARTS}: images are mixed "
            "within each eighth of a batch"
        )


def plan_mix(rows: AugmentParams, batch_size: int, rank: int, world_size: int) -> MixPlan:
    """How the images of process `rank` are mixed; `rows`, (batch_size // world_size,), are their parameters.

    Of a part of m images, the image at place p is mixed with that at p + 1 + floor(partner * (m - 1) / 2**32), modulo
    m: with each of the others with the same probability.
    """
    # (9,), the parts of the whole batch; `batch_size` is a multiple of `world_size`, so this slice begins with one
    bounds = np.arange(NUM_PARTS + 1) * batch_size // NUM_PARTS
    num = NUM_PARTS // world_size
    bounds = bounds[rank * num : (rank + 1) * num + 1] - bounds[rank * num]
    sizes = np.repeat(np.diff(bounds), np.diff(bounds))  # (B,), of the part of each image
    first = np.repeat(bounds[:-1], np.diff(bounds))
    step = 1 + ((rows["partner"].astype(np.uint64) * (sizes - 1).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
    partners = first + (np.arange(len(rows)) - first + step) % sizes
    weights = np.stack([1 - rows["partner_weight"], rows["partner_weight"]], axis=-1)
    boxes = np.stack([rows[f"mix_{name}"] for name in ("y", "x", "height", "width")], axis=-1)
    return MixPlan(partners, weights, boxes.astype(np.int64), bounds)


class Mixer(Protocol):
    """Mixes batches: `w * x + (1 - w) * y` in float32, each product and the sum rounded; or a box of y in x."""

    def launch(self, wait: Callable[[], torch.Tensor], plan: MixPlan) -> Callable[[], torch.Tensor]:
        """Start to mix the batch that `wait` returns: (B, 3, H, W) on the device and in the memory format of the
        configuration; float32, or uint8 if that is its dtype. The batch may be overwritten; `wait` is called from any
        thread, maybe several times.

        Returns a function that waits for the mixed batch, in the dtype of the configuration: rounded once.
        """

    def close(self) -> None:
        """End its threads."""


def make_mixer(config: KernelConfig) -> Mixer:
    """The fastest mixer for the device: Numba on a CPU, Triton on CUDA; torch elsewhere, or if neither is usable."""
    try:
        if config.device.type == "cpu":
            numba_module()
            from fastcifar.augment.numba_mixing import NumbaMixer

            return NumbaMixer(config)
        if config.device.type == "cuda":
            from fastcifar.augment.triton_mixing import TritonMixer

            return TritonMixer(config)
    except ImportError as error:
        warn_of_torch_kernel(config.device, str(error))
    return TorchMixer(config)


class TorchMixer:
    """Mixes on any device, at once: see `Mixer`."""

    def __init__(self, config: KernelConfig) -> None:
        self._config = config

    def launch(self, wait: Callable[[], torch.Tensor], plan: MixPlan) -> Callable[[], torch.Tensor]:
        config, images = self._config, wait()
        partners, weights, boxes = (torch.from_numpy(array).to(config.device) for array in plan[:3])
        mixed = rounded(self._mix(images.float(), partners, weights, boxes), config.dtype)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        return lambda: mixed.contiguous(memory_format=layout)

    def _mix(
        self, images: torch.Tensor, partners: torch.Tensor, weights: torch.Tensor, boxes: torch.Tensor
    ) -> torch.Tensor:
        """(B, 3, H, W) float32, a new tensor; the arrays of `MixPlan` on the device."""
        others = images[partners]
        own, rest = weights[:, :, None, None, None].unbind(1)  # (B, 1, 1, 1) each
        blend = images * own + others * rest  # three operations, so three roundings
        top, left, height, width = boxes[:, :, None].unbind(1)  # (B, 1) each
        rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
        in_y, in_x = (rows >= top) & (rows < top + height), (columns >= left) & (columns < left + width)
        in_box = (in_y[:, :, None] & in_x[:, None, :])[:, None]  # (B, 1, H, W)
        pasted = torch.where(in_box, others, images)
        return torch.where((height > 0)[:, :, None, None], pasted, blend)

    def close(self) -> None:
        pass


def rounded(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mixed float32 batch in `dtype`; to nearest, half to even."""
    return (images.round() if dtype == torch.uint8 else images).to(dtype)
