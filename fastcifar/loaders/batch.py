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
    """Images with their labels, and where they come from: three values. The tensors are the caller's to keep and to
    write to."""

    images: torch.Tensor
    """(N, 3, H, W), in channels_last memory unless asked otherwise: normalised, or 0..255 if the dtype is uint8."""
    labels: torch.Tensor
    """(N,) int64."""
    indices: torch.Tensor
    """(N,) int64: where the images are in the dataset."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        """The three tensors. Raises UsageError where they are unpacked into another number of names.

        torch's DataLoader delivers two values, so `for images, labels in loader` is what many write, and Python says
        no more than "too many values to unpack". It asks for an iterator before it looks at the number of values: so
        the instruction that asks tells how many names there are. It takes about a microsecond a batch. Where C code
        iterates a batch while its result is unpacked, as in `a, b = map(list, batches)`, that is taken for this, too.
        """
        if torch.compiler.is_compiling():
            return tuple.__iter__(self)
        caller = sys._getframe(1)
        code, place = caller.f_code.co_code, caller.f_lasti
        if code[place] == UNPACK and code[place + 1] != 3:
            raise UsageError(
                f"a batch holds three values, unpacked into {code[place + 1]}; write 'for images, labels, indices in "
                "loader', or use batch.images and batch.labels"
            )
        return tuple.__iter__(self)
