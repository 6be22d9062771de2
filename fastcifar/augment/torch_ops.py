"""The choices applied with plain torch operations, on any device: every step is exact on uint8.

The slow twin, one image at a time, is `tests/reference.py`.
"""

from __future__ import annotations

import numpy as np
import torch

from fastcifar.augment.draws import Choices
from fastcifar.config import AugmentConfig


def to_device(choices: Choices, device: torch.device) -> dict[str, torch.Tensor]:
    """The columns of a table as (N,) int64 tensors."""
    return {name: torch.from_numpy(choices[name].astype(np.int64)).to(device) for name in choices.dtype.names or ()}


def fill_values(augment: AugmentConfig, mean: np.ndarray) -> np.ndarray:
    """What a cutout writes, (3,) uint8: black, or the dataset's mean rounded to 8 bits (half to even)."""
    return np.zeros(3, np.uint8) if augment.cutout_fill == "zero" else np.rint(mean).astype(np.uint8)


def apply_choices(
    images: torch.Tensor, choices: dict[str, torch.Tensor], augment: AugmentConfig, fill: torch.Tensor
) -> torch.Tensor:
    """Crop, flip, cut out: (N, H, W, 3) uint8 -> (N, H, W, 3) uint8, a new tensor; row i of `choices` is for image i.

    `fill`, (3,) uint8, is what a cutout writes.
    """
    num, height, width, _ = images.shape
    device = images.device
    rows = torch.arange(height, device=device)[None, :]  # (1, H)
    columns = torch.arange(width, device=device)[None, :]  # (1, W)
    source_y = rows + choices["crop_y"][:, None] - augment.crop_padding  # (N, H)
    flipped = torch.where(choices["flip"][:, None].bool(), width - 1 - columns, columns)
    source_x = flipped + choices["crop_x"][:, None] - augment.crop_padding  # (N, W)
    blank = None
    if augment.crop_mode == "reflect":
        source_y, source_x = _reflect(source_y, height), _reflect(source_x, width)
    elif augment.crop_padding:
        outside_y = (source_y < 0) | (source_y >= height)
        outside_x = (source_x < 0) | (source_x >= width)
        blank = outside_y[:, :, None] | outside_x[:, None, :]  # (N, H, W)
        source_y, source_x = source_y.clamp(0, height - 1), source_x.clamp(0, width - 1)
    which = torch.arange(num, device=device)[:, None, None]
    out = images[which, source_y[:, :, None], source_x[:, None, :]]  # (N, H, W, 3), copied
    if blank is not None:
        out.masked_fill_(blank[..., None], 0)
    if augment.cutout_size:
        in_y = rows - choices["cutout_y"][:, None]  # (N, H)
        in_x = columns - choices["cutout_x"][:, None]
        size = augment.cutout_size
        hit = ((in_y >= 0) & (in_y < size))[:, :, None] & ((in_x >= 0) & (in_x < size))[:, None, :]
        out = torch.where(hit[..., None], fill.to(device), out)
    return out


def _reflect(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Positions outside 0 .. side - 1 mirrored at the border, the edge itself not repeated."""
    return (side - 1) - ((side - 1) - positions.abs()).abs()


def normalise(
    images: torch.Tensor, mean: torch.Tensor, inv_std: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """`(float32(x) - mean) * inv_std`, rounded to `dtype`: (N, H, W, 3) uint8 -> (N, 3, H, W) in channels_last memory.

    `mean` and `inv_std` are (3,) float32. Two operations, never one multiply-add: every loader gives the same bits.
    """
    return images.to(torch.float32).sub_(mean).mul_(inv_std).to(dtype).permute(0, 3, 1, 2)


def augment_batch(
    images: torch.Tensor,
    choices: dict[str, torch.Tensor],
    augment: AugmentConfig,
    fill: torch.Tensor,
    mean: torch.Tensor,
    inv_std: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """`apply_choices`, then `normalise`, or only the change of layout if `dtype` is uint8:
    (N, H, W, 3) uint8 -> a new tensor (N, 3, H, W) in channels_last memory."""
    augmented = apply_choices(images, choices, augment, fill)
    if dtype == torch.uint8:
        return augmented.permute(0, 3, 1, 2)
    return normalise(augmented, mean, inv_std, dtype)


def normalisation(mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`mean32` and `inv_std32`, each (3,) float32; a channel that never varies is divided by 1."""
    safe = np.where(std > 0, std, 1.0)
    return mean.astype(np.float32), (1.0 / safe).astype(np.float32)
