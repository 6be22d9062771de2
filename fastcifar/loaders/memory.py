"""How much memory is there, for those who choose a loader."""

from __future__ import annotations

import torch

from fastcifar.system import memory

SHARE_OF_MEMORY = 0.7
"""What a dataset may take of the memory that is free."""


def free_memory(device: torch.device | None = None) -> int:
    """Bytes that can still be used: of the GPU's memory, or of this machine's."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return memory.free_memory()
