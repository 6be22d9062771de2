"""What a network answers on a loader's images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.loaders import Loader
from fastcifar.training.device import autocast


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Logits of every image, and what they score."""

    indices: np.ndarray
    """(N,) int64."""
    labels: np.ndarray
    """(N,) int64."""
    logits: np.ndarray
    """(N, num_classes) float32."""
    loss: float
    """Mean cross-entropy, nats."""
    accuracy: float
    """Share of images whose largest logit is that of their label, 0..1."""


def evaluate(
    model: nn.Module, loader: Loader, *, bf16: bool = False, advance: Callable[[int], None] | None = None
) -> Answers:
    """Run `model` in evaluation mode over one pass of `loader`, on the loader's device; the mode is put back after."""
    device = loader.config.device
    was_training = model.training
    model.eval()
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    try:
        with torch.inference_mode():
            for batch in loader.epoch(0):
                with autocast(device, bf16):
                    logits = model(batch.images)
                parts.append((batch.indices, batch.labels, logits.float()))
                if advance is not None:
                    advance(len(batch.labels))
            indices, labels, logits = (torch.cat(column) for column in zip(*parts, strict=True))
            loss = (
                F.cross_entropy(logits.double(), labels).item()
                if device.type != "mps"
                else F.cross_entropy(logits, labels).item()
            )
            accuracy = (logits.argmax(dim=1) == labels).sum().item() / len(labels)
    finally:
        model.train(was_training)
    return Answers(
        indices=indices.cpu().numpy(),
        labels=labels.cpu().numpy(),
        logits=logits.cpu().numpy(),
        loss=loss,
        accuracy=accuracy,
    )
