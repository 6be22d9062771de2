"""JPEG images of one size, decoded by FFCV's function in a loop that Numba compiles once and keeps on disk. The only
importer of FFCV.

FFCV's own loop is compiled for each loader, and ignores failures: the image that was in the slot before remains.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import llvmlite.binding
import numpy as np
import torch
from numba import types

from fastcifar.augment.numba_kernel import compiled
from fastcifar.errors import FastcifarError, MissingExtraError, describe

NUM_THREADS = torch.get_num_threads()
try:
    # importing FFCV fills a typed dictionary, which Numba compiles for 2.5 s; compiled code never reads it
    with patch("numba.typed.Dict", dict):
        from ffcv.libffcv import ctypes_imdecode
except ImportError as error:
    raise MissingExtraError("decoding JPEG images", "ffcv", str(error)) from error
except Exception as error:  # of a package that FFCV imports
    raise FastcifarError(f"JPEG images cannot be decoded ({describe(error)}); convert without --encode jpeg") from error
finally:
    torch.set_num_threads(NUM_THREADS)  # importing FFCV sets it to 1

SYMBOL = "fastcifar_imdecode"
llvmlite.binding.add_symbol(SYMBOL, ctypes.cast(ctypes_imdecode, ctypes.c_void_p).value)
SIDES, FLAGS = (types.uint32,) * 2, (types.boolean,) * 2
IMDECODE: Any = types.ExternalFunction(
    SYMBOL, types.intc(types.uintp, types.uint64, *SIDES, types.uintp, *SIDES, *SIDES, *SIDES, *FLAGS)
)


def load() -> Callable[..., int]:
    """`decode_slice`, compiled."""
    return compiled(decode_slice, _compile)


def decode_slice(memory: Any, starts: Any, sizes: Any, images: Any) -> int:
    """Fill `images`, (B, H, W, 3) uint8. Returns the row of an image that libjpeg fails on or warns about, else -1.

    memory: (num_bytes,) uint8, read-only; starts, sizes: (B,) int64, where in it each image is.
    """
    sides = images.shape[1], images.shape[2]
    for row in range(len(images)):
        encoded = memory[starts[row] : starts[row] + sizes[row]]
        target = images[row].ctypes.data
        if IMDECODE(encoded.ctypes.data, encoded.size, *sides, target, *sides, 0, 0, 1, 1, False, False) != 0:
            return row
    return -1


def _compile(decode: Callable[..., Any]) -> None:
    """Call it with the argument types of `FfcvLoader`."""
    memory, empty = np.zeros(1, np.uint8), np.zeros(0, np.int64)
    memory.flags.writeable = False
    decode(memory, empty, empty, np.zeros((0, 1, 1, 3), np.uint8))
