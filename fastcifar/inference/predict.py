"""Run a network over the images of a loader."""

from __future__ import annotations

from collections.abc import Callable
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


def predict(
    model: nn.Module,
    loader: Loader,
    *,
    amp: str = "off",
    tta: str = "none",
    advance: Callable[[int], None] | None = None,
    distributed: Distributed | None = None,
) -> Predictions:
    """Run `model` in evaluation mode over one epoch of `loader`, on the loader's device; its mode is restored.

    amp: 'bf16', 'fp16' or 'off'. tta: test-time augmentation, see `predict_batch`. advance: called with the size of
    each batch. distributed: each rank has a loader of its own shard; the predictions of all shards are returned, in
    the order of the ranks.
    """
    amp_dtype = torch.float16 if amp == "fp16" else torch.bfloat16
    batches: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    with evaluating(model), torch.inference_mode():
        for batch in loader.epoch(0):
            with torch.autocast(loader.config.device.type, amp_dtype, enabled=amp != "off"):
                logits = predict_batch(model, batch.images, tta)
            batches.append((batch.indices, batch.labels, logits.float()))
            if advance is not None:
                advance(len(batch.labels))
    columns = [torch.cat(column).cpu().numpy() for column in zip(*batches, strict=True)]
    if distributed is not None:
        shards = distributed.all_gather(columns)
        columns = [np.concatenate(column) for column in zip(*shards, strict=True)]
    return Predictions(indices=columns[0], labels=columns[1], logits=columns[2])


def predict_batch(model: nn.Module, images: torch.Tensor, tta: str = "none") -> torch.Tensor:
    """(N, 3, H, W) normalised images -> (N, C) logits.

    tta: 'flip' averages the logits of the images and of their mirror images. 'flip-shift' weights that by half, and by
    a quarter each the same of the images moved by one pixel up and left, and down and right (as airbench).
    """
    if tta == "none":
        return model(images)
    mirrored = 0.5 * (model(images) + model(images.flip(-1)))
    if tta == "flip":
        return mirrored
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    shifted = [padded[:, :, :height, :width], padded[:, :, 2:, 2:]]
    return 0.5 * mirrored + 0.25 * sum(predict_batch(model, image, "flip") for image in shifted)
