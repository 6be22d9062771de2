"""A torch DataLoader with a plain Albumentations pipeline."""

from __future__ import annotations

import os

from benchmarks.peers import CROP_PADDING, CUTOUT_SIZE, Work
from benchmarks.peers.torchvision_transforms import Images, loader_of
from fastcifar.bench.measure import Epoch


def build(work: Work) -> Epoch:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations
    import cv2
    from albumentations.pytorch import ToTensorV2

    cv2.setNumThreads(0)
    height, width = work.images.shape[1:3]
    pipeline = albumentations.Compose(
        [
            albumentations.RandomCrop(height, width, pad_if_needed=False)
            if not CROP_PADDING
            else albumentations.Sequential(
                [
                    albumentations.Pad(CROP_PADDING, border_mode=cv2.BORDER_CONSTANT, fill=0, p=1.0),
                    albumentations.RandomCrop(height, width, p=1.0),
                ],
                p=1.0,
            ),
            albumentations.HorizontalFlip(p=0.5),
            albumentations.CoarseDropout(
                num_holes_range=(1, 1),
                hole_height_range=(CUTOUT_SIZE, CUTOUT_SIZE),
                hole_width_range=(CUTOUT_SIZE, CUTOUT_SIZE),
                fill=work.fill,
                p=1.0,
            ),
            albumentations.Normalize((work.mean / 255).tolist(), (work.std / 255).tolist()),
            ToTensorV2(),
        ]
    )
    return loader_of(work, Images(work.images, work.labels, lambda image: pipeline(image=image)["image"]))
