"""A torch DataLoader with torchvision's transforms, v1 on PIL images and v2 on tensors, as its tutorials show it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers import CROP_PADDING, CUTOUT_SIZE, Work
from fastcifar.bench.measure import Epoch


class Images(Dataset[Any]):
    """One image at a time, through `transform`."""

    def __init__(
        self, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], transform: Callable[[Any], Any]
    ) -> None:
        self._images, self._labels, self._transform = images, labels, transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self._transform(self._images[row]), int(self._labels[row])


def loader_of(work: Work, dataset: Dataset[Any]) -> Epoch:
    """A DataLoader with a worker for each thread."""
    loader = DataLoader(
        dataset,
        batch_size=work.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=work.threads,
        persistent_workers=True,
    )
    return lambda: iter(loader)


def build(work: Work) -> Epoch:
    from torchvision import transforms

    mean, std = (work.mean / 255).tolist(), (work.std / 255).tolist()
    scale = (CUTOUT_SIZE / work.images.shape[1]) ** 2
    transform = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.RandomCrop(work.images.shape[1:3], padding=CROP_PADDING),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
            transforms.RandomErasing(p=1.0, scale=(scale, scale), ratio=(1, 1), value=0),
        ]
    )
    return loader_of(work, Images(work.images, work.labels, transform))


def build_v2(work: Work) -> Epoch:
    from torchvision.transforms import v2

    mean, std = (work.mean / 255).tolist(), (work.std / 255).tolist()
    scale = (CUTOUT_SIZE / work.images.shape[1]) ** 2
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomCrop(work.images.shape[1:3], padding=CROP_PADDING),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
            v2.RandomErasing(p=1.0, scale=(scale, scale), ratio=(1, 1), value=0),
        ]
    )
    return loader_of(work, Images(work.images, work.labels, transform))
