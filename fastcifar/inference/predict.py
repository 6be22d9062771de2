"""Run a network over the images of a loader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.inference.predictions import Predictions
from fastcifar.loaders import Loader
from fastcifar.models.state import evaluating

if TYPE_CHECKING:
    from fastcifar.training.distributed import Distributed

Columns = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Indices (N,), labels (N,) and logits (N, C) float32 of a batch, on the device."""


def predict(
    model: nn.Module,
    loader: Loader,
    *,
    amp: str = "off",
    tta: str = "none",
    plain: torch.Tensor | None = None,
) -> Iterator[Columns]:
    """Run `model` in evaluation mode over one epoch of `loader`, on the loader's device, batch by batch; between them
    its mode is restored.

    amp: 'bf16', 'fp16' or 'off'. tta: test-time augmentation, see `predict_batch`. plain: the logits without it, of all
    images of the loader, if they are known.
    """
    start = 0
    for batch in loader.epoch(0):
        end = start + len(batch.labels)
        known = None if plain is None else plain[start:end].to(batch.images.device)
        yield batch.indices, batch.labels, predict_logits(model, batch.images, amp=amp, tta=tta, plain=known)
        start = end


def predict_logits(
    model: nn.Module,
    images: torch.Tensor,
    *,
    amp: str = "off",
    tta: str = "none",
    plain: torch.Tensor | None = None,
) -> torch.Tensor:
    """(N, 3, H, W) normalised images -> (N, C) float32 logits of `model` in evaluation mode; for amp, tta and plain see
    `predict`."""
    amp_dtype = torch.float16 if amp == "fp16" else torch.bfloat16
    with (
        evaluating(model),
        torch.inference_mode(),
        torch.autocast(images.device.type, amp_dtype, enabled=amp != "off"),
    ):
        return predict_batch(model, images, tta, plain)


def concatenate(batches: Sequence[Columns], distributed: Distributed | None = None) -> Predictions:
    """The predictions of all batches. distributed: also those of the other ranks, each of which has a loader of its
    own shard, in the order of the ranks."""
    columns = [torch.cat(column).cpu().numpy() for column in zip(*batches, strict=True)]
    if distributed is not None:
        shards = distributed.all_gather(columns)
        columns = [np.concatenate(column) for column in zip(*shards, strict=True)]
    return Predictions(indices=columns[0], labels=columns[1], logits=columns[2])


def predict_batch(
    model: nn.Module, images: torch.Tensor, tta: str = "none", plain: torch.Tensor | None = None
) -> torch.Tensor:
    """(N, 3, H, W) normalised images -> (N, C) float32 logits.

    tta: 'flip' averages the logits of the images and of their mirror images. 'flip-shift' weights that by half, and by
    a quarter each the same of the images moved by one pixel up and left, and down and right (as airbench).
    plain: the logits of the images themselves, if they are known.
    """
    logits = model(images).float() if plain is None else plain
    if tta == "none":
        return logits
    mirrored = 0.5 * (logits + model(images.flip(-1)).float())
    if tta == "flip":
        return mirrored
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    shifted = [padded[:, :, :height, :width], padded[:, :, 2:, 2:]]
    return 0.5 * mirrored + 0.25 * sum(predict_batch(model, image, "flip") for image in shifted)
