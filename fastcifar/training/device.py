"""Where and how the arithmetic is done: device, autocast, memory layout, determinism, the C allocator."""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from fastcifar.loaders.base import usable_device
from fastcifar.system.cpus import available_cpus

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


def choose_threads(count: int | None) -> None:
    """Let torch and the loaders use `count` threads; with None as many as torch chose (its own default is the affinity
    mask, or OMP_NUM_THREADS), but no more than the limits of control groups allow."""
    torch.set_num_threads(count or min(torch.get_num_threads(), available_cpus()))


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


@contextmanager
def standard_torch_defaults() -> Iterator[None]:
    """In the block, torch makes float32 tensors on the CPU and records gradients, as in a fresh process, whatever
    `set_default_device`, `set_default_dtype` or `no_grad` the caller has in force."""
    dtype = torch.get_default_dtype()
    elsewhere = torch.get_default_device().type != "cpu"  # the context slows every operation: only where it is needed
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.device("cpu") if elsewhere else nullcontext(),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)


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
