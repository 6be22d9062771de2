"""FFCV's own loader with its own operations; `NormalizeImage` is the faster of its two ways to normalise."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.peers import CROP_PADDING, CUTOUT_SIZE, Work
from fastcifar.bench.measure import Epoch


def build(work: Work) -> Epoch:
    threads = torch.get_num_threads()
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import (
        Cutout,
        NormalizeImage,
        RandomHorizontalFlip,
        RandomTranslate,
        Squeeze,
        ToTensor,
        ToTorchImage,
    )

    image: list[Any] = [
        SimpleRGBImageDecoder(),
        RandomHorizontalFlip(),
        RandomTranslate(padding=CROP_PADDING, fill=(0, 0, 0)),
        Cutout(CUTOUT_SIZE, work.fill),
        NormalizeImage(work.mean, work.std, np.float32),
        ToTensor(),
        ToTorchImage(),
    ]
    loader = Loader(
        str(work.beton),
        batch_size=work.batch_size,
        num_workers=work.threads,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={"image": image, "label": [IntDecoder(), ToTensor(), Squeeze()]},
    )

    def epoch() -> Any:
        try:
            yield from loader
        finally:
            torch.set_num_threads(threads)

    return epoch
