"""What a network answers on a loader's images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.loaders import Loader
from fastcifar.models.state import evaluating
from fastcifar.training.device import autocast
from fastcifar.training.distributed import Processes


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
    model: nn.Module,
    loader: Loader,
    *,
    amp: str = "off",
    tta: str = "none",
    advance: Callable[[int], None] | None = None,
    processes: Processes | None = None,
) -> Answers:
    """Run `model` in evaluation mode over one pass of `loader`, on the loader's device; the mode is put back after.

    tta: test-time augmentation, see `predict`. processes: each has a loader of a part of the images, one after the
    other; the answers are those of all.
    """
    device = loader.config.device
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    with evaluating(model), torch.inference_mode():
        for batch in loader.epoch(0):
            with autocast(device, amp):
                logits = predict(model, batch.images, tta)
            parts.append((batch.indices, batch.labels, logits.float()))
            if advance is not None:
                advance(len(batch.labels))
    columns = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
    if processes is not None:
        everyones = processes.everyones(columns)
        columns = [np.concatenate([part[i] for part in everyones]) for i in range(3)]
    scores, answers = torch.from_numpy(columns[2]).double(), torch.from_numpy(columns[1])
    return Answers(
        indices=columns[0],
        labels=columns[1],
        logits=columns[2],
        loss=F.cross_entropy(scores, answers).item(),
        accuracy=(scores.argmax(dim=1) == answers).sum().item() / len(answers),
    )


def predict(model: nn.Module, images: torch.Tensor, tta: str = "none") -> torch.Tensor:
    """(N, 3, H, W) normalised -> logits, (N, classes): of the images; 'flip': the mean of those of the images and of
    their mirror images; with 'flip-shift' half of that, and half of the same of the images moved by one pixel up and
    left, and down and right (as airbench)."""
    if tta == "none":
        return model(images)
    both = 0.5 * (model(images) + model(images.flip(-1)))
    if tta == "flip":
        return both
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    shifted = [padded[:, :, :height, :width], padded[:, :, 2:, 2:]]
    return 0.5 * both + 0.25 * sum(predict(model, image, "flip") for image in shifted)
