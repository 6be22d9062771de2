"""One step of training, for the loop and for `fastcifar bench`."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.training.device import autocast


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: torch.Tensor, labels: torch.Tensor, bf16: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward, backward and update; the loss, () float32, and the logits, (N, classes) float32."""
    with autocast(images.device, bf16):
        logits = model(images)
    logits = logits.float()
    loss = F.cross_entropy(logits, labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss, logits
