"""Device, threads, autocast, determinism, and the C allocator: as the settings say, and as the machine allows."""

from __future__ import annotations

import ctypes
import logging
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from fastcifar.config import RuntimeConfig
from fastcifar.loaders.base import usable_device
from fastcifar.system.cpus import OtherLoad, affinity_cpus, available_cpus, has_fast_bf16_cpu
from fastcifar.training.distributed import Distributed

log = logging.getLogger(__name__)
CHECK_LOAD_EVERY_S = 5.0
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc's <malloc.h>


def prepare_device(config: RuntimeConfig, distributed: Distributed) -> torch.device:
    """Choose the device, and set up threads, determinism and memory for training on it. Raises UsageError."""
    device = choose_device(config.device, distributed)
    choose_threads(config.threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def choose_device(name: str, distributed: Distributed | None = None) -> torch.device:
    """The torch device `name`; 'auto' is CUDA, else MPS, else CPU. Raises UsageError if it is not available.

    distributed: with several processes, each has the GPU of its local rank for 'cuda'.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and distributed is not None and distributed.world_size > 1:
        name = f"cuda:{distributed.local_rank}"
    device = usable_device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # the default of nccl and Triton
    return device


def synchronise(device: torch.device | None) -> None:
    """Wait for the GPU, if the device is one."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device is not None and device.type == "mps":
        torch.mps.synchronize()


def choose_threads(count: int | None) -> None:
    """Set the number of threads of torch and the loaders; None: torch's default (affinity mask or OMP_NUM_THREADS),
    within the limits of control groups."""
    torch.set_num_threads(count or min(torch.get_num_threads(), available_cpus()))


class CpuThreads:
    """Lowers the number of threads of torch while other processes keep CPUs busy: a thread that shares its CPU delays
    all others. adapt: False changes nothing.

    Measured by benchmarks.busy on two cores: next to one busy process, two threads train at 0.30 of the quiet rate
    (0.35 if their waits do not spin), one thread at 0.49; next to two, 0.11 (0.19) and 0.32.
    """

    def __init__(self, adapt: bool = True) -> None:
        self._max_threads = torch.get_num_threads()
        self._adapt = adapt and self._max_threads > 1
        self._others, self._since = OtherLoad(), time.monotonic()

    def after_step(self) -> None:
        """Call between two steps; checks the load every few seconds."""
        if not self._adapt or time.monotonic() - self._since < CHECK_LOAD_EVERY_S:
            return
        busy, num_cpus = self._others.cpus(), affinity_cpus()
        self._others, self._since = OtherLoad(), time.monotonic()
        if busy is None:
            return
        wanted = max(1, min(self._max_threads, num_cpus - round(busy)))
        if wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)
            threads = "1 thread" if wanted == 1 else f"{wanted} threads"
            log.info("other processes keep %.1f of %d CPUs busy: training with %s", busy, num_cpus, threads)

    def close(self) -> None:
        """Restore the number of threads."""
        torch.set_num_threads(self._max_threads)


def has_fast_bf16(device: torch.device) -> bool:
    """True if the device multiplies matrices faster in bfloat16 than in float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and has_fast_bf16_cpu()


def choose_amp(device: torch.device, amp: str) -> str:
    """'bf16', 'fp16' or 'off' for the setting `amp`."""
    if amp == "auto":
        return "bf16" if has_fast_bf16(device) else "off"
    if device.type == "cpu" and (amp == "fp16" or (amp == "bf16" and not has_fast_bf16(device))):
        log.warning("--amp %s on this CPU can be many times slower than --amp auto", amp)
    return amp


def autocast(device: torch.device, amp: str) -> AbstractContextManager[object]:
    """Autocast to bfloat16 ('bf16') or float16 ('fp16'), or no autocast ('off')."""
    if amp == "off":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if amp == "bf16" else torch.float16)


@contextmanager
def standard_torch_defaults() -> Iterator[None]:
    """In the block, torch has the defaults of a new process (float32, CPU, gradients), whatever the caller has set by
    `set_default_device`, `set_default_dtype` or `no_grad`. What is set in it by `choose_device` and `prepare_device`
    ends with it: the current GPU, determinism, and the number of threads (of more threads than CPUs, as many as CPUs
    are left)."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    determinism = torch.get_deterministic_debug_mode()
    gpu = _current_gpu()
    needs_cpu = torch.get_default_device().type != "cpu"  # the context slows down every operation
    torch.set_default_dtype(torch.float32)
    try:
        with (
            torch.device("cpu") if needs_cpu else nullcontext(),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            yield
    finally:
        torch.set_default_dtype(dtype)
        if _current_gpu() != gpu:
            torch.cuda.set_device(gpu)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(min(threads, available_cpus()))
        if torch.get_deterministic_debug_mode() != determinism:
            torch.use_deterministic_algorithms(determinism > 0, warn_only=determinism == 1)


def _current_gpu() -> int:
    """Its index; 0 in a process without CUDA so far, which asking would initialise."""
    return torch.cuda.current_device() if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]


def keep_freed_memory() -> None:
    """Let glibc, if that is the C library, keep freed memory for the next step instead of returning it to the system.

    Page faults of large temporary tensors took a third of a training step on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 256 * 2**20)):
            mallopt(parameter, value)
