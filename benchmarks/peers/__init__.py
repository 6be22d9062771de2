"""The same augmentation by other libraries: crop 4 + flip + cutout 8 + normalise, float32, in either memory format.

Each module has `build(work)`, which returns what begins an epoch and raises ImportError where the peer is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

CROP_PADDING, CUTOUT_SIZE = 4, 8


@dataclass(frozen=True, kw_only=True)
class Work:
    """The input of every peer."""

    beton: Path
    images: np.ndarray
    """(N, H, W, 3) uint8, contiguous."""
    labels: np.ndarray
    """(N,) int64."""
    mean: np.ndarray
    """(3,) float64, 0..255."""
    std: np.ndarray
    batch_size: int
    threads: int
    device: str = "cpu"

    @property
    def fill(self) -> tuple[int, int, int]:
        """The mean, rounded to 8 bits: what cutout fills with."""
        red, green, blue = np.rint(self.mean).astype(int).tolist()
        return red, green, blue
