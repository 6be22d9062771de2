"""What a loader delivers."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch

from fastcifar.errors import UsageError

UNPACK = dis.opmap["UNPACK_SEQUENCE"]


class Batch(NamedTuple):
    """Images, labels, and their indices in the dataset: three values. The caller owns the tensors, and may modify
    them."""

    images: torch.Tensor
    """(N, 3, H, W), channels_last by default: normalised, or 0..255 if the dtype is uint8."""
    labels: torch.Tensor
    """(N,) int64."""
    indices: torch.Tensor
    """(N,) int64: the indices of the images in the dataset."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        """The three tensors. Raises UsageError if they are unpacked into another number of names.

        torch's DataLoader delivers two values, so many write `for images, labels in loader`, for which Python only says
        "too many values to unpack". Unpacking calls this method first, so the calling instruction has the number of
        names. It takes about a microsecond per batch. Iteration in C whose result is unpacked, as in
        `a, b = map(list, batches)`, is mistaken for unpacking.
        """
        if torch.compiler.is_compiling():
            return tuple.__iter__(self)
        caller = sys._getframe(1)
        code, at = caller.f_code.co_code, caller.f_lasti
        if code[at] == UNPACK and code[at + 1] != 3:
            raise UsageError(
                f"a batch holds three values, unpacked into {code[at + 1]}; write 'for images, labels, indices in "
                "loader', or use batch.images and batch.labels"
            )
        return tuple.__iter__(self)
