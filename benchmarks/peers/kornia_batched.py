"""Kornia's augmentations, on whole batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.peers import CROP_PADDING, CUTOUT_SIZE, Work
from fastcifar.bench.measure import Epoch


def build(work: Work) -> Epoch:
    import kornia.augmentation as kornia

    height, width = work.images.shape[1:3]
    share = CUTOUT_SIZE**2 / (height * width)
    mean, std = torch.from_numpy(work.mean / 255).float(), torch.from_numpy(work.std / 255).float()
    augment = torch.nn.Sequential(
        kornia.RandomCrop((height, width), padding=CROP_PADDING, p=1.0),
        kornia.RandomHorizontalFlip(p=0.5),
        kornia.Normalize(mean, std),
        kornia.RandomErasing(scale=(share, share), ratio=(1.0, 1.0), value=0.0, p=1.0),
    ).to(work.device)
    images = torch.from_numpy(work.images).permute(0, 3, 1, 2).contiguous().to(work.device)
    labels = torch.from_numpy(work.labels).to(work.device)

    def epoch() -> Iterator[tuple[Any, Any]]:
        order = torch.randperm(len(images), device=work.device)
        for rows in order.split(work.batch_size)[: len(images) // work.batch_size]:
            with torch.no_grad():
                yield augment(images[rows].float().div_(255)), labels[rows]

    return epoch
