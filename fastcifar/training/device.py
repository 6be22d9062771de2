"""Where and how the arithmetic is done: device, autocast, memory layout, determinism, the C allocator."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from fastcifar.loaders.base import usable_device

log = logging.getLogger(__name__)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc's <malloc.h>


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """The torch device of that name; 'auto' is CUDA, else MPS, else CPU. Raises UsageError if it cannot be used.

    local_rank: of several processes on one machine, each takes the GPU of its number.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
    device = usable_device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # what names no device, nccl and Triton among it, means this one
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """True if the device multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and sys.platform == "linux":
        flags = Path("/proc/cpuinfo").read_text()
        return "amx_bf16" in flags or "avx512_bf16" in flags
    return False


def choose_amp(device: torch.device, amp: str) -> str:
    """'bf16', 'fp16' or 'off' for the setting `amp`."""
    if amp == "auto":
        return "bf16" if has_fast_bf16(device) else "off"
    if amp == "fp16" and device.type == "cpu":
        log.warning("float16 on a CPU can be many times slower than bf16 or float32")
    return amp


def autocast(device: torch.device, amp: str) -> AbstractContextManager[object]:
    """Autocast to bfloat16 ('bf16') or float16 ('fp16'), or nothing ('off')."""
    if amp == "off":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if amp == "bf16" else torch.float16)


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next step instead of giving it back page by page; True if it agreed.

    Page faults of large temporary tensors were measured as a third of a training step on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, -1), mallopt(M_TOP_PAD, 256 * 2**20)])


def make_deterministic(device: torch.device) -> None:
    """Allow only algorithms that give the same result each time, on one machine with one number of threads."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = False
