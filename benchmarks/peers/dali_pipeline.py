"""NVIDIA DALI, fed with batches from memory: its operators on the CPU, or on the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.peers import CROP_PADDING, CUTOUT_SIZE, Work
from fastcifar.bench.measure import Epoch


def build(work: Work) -> Epoch:
    from nvidia.dali import fn, pipeline_def, types

    gpu = work.device != "cpu"
    if gpu:
        from nvidia.dali.plugin.pytorch import feed_ndarray
    height, width = work.images.shape[1:3]
    share = (CUTOUT_SIZE / height, CUTOUT_SIZE / width)
    random = np.random.default_rng(0)

    def batches() -> Iterator[Any]:
        while True:
            order = random.permutation(len(work.images))
            for begin in range(0, len(order) - work.batch_size + 1, work.batch_size):
                yield work.images[order[begin : begin + work.batch_size]]

    @pipeline_def(
        batch_size=work.batch_size, num_threads=work.threads, device_id=0 if gpu else None, prefetch_queue_depth=2
    )
    def pipeline() -> Any:
        images = fn.external_source(source=batches(), layout="HWC", batch=True, no_copy=True)
        if gpu:
            images = images.gpu()
        anchor = fn.random.uniform(range=(-0.5 * share[0], 1 - 0.5 * share[0]), shape=2)
        padded = fn.slice(
            images,
            start=(-CROP_PADDING, -CROP_PADDING),
            shape=(height + 2 * CROP_PADDING, width + 2 * CROP_PADDING),
            axes=(0, 1),
            out_of_bounds_policy="pad",
        )
        cut = fn.erase(
            fn.crop(
                padded,
                crop=(height, width),
                crop_pos_x=fn.random.uniform(range=(0, 1)),
                crop_pos_y=fn.random.uniform(range=(0, 1)),
            ),
            anchor=anchor,
            shape=share,
            normalized=True,
            axes=(0, 1),
            fill_value=list(work.fill),
        )
        return fn.crop_mirror_normalize(
            cut,
            dtype=types.FLOAT,
            output_layout="HWC",
            mirror=fn.random.coin_flip(),
            mean=work.mean.tolist(),
            std=work.std.tolist(),
        )

    built = pipeline()
    built.build()

    def epoch() -> Iterator[tuple[Any]]:
        for _ in range(len(work.images) // work.batch_size):
            (out,) = built.run()
            if not gpu:
                yield (out.as_array(),)
                continue
            batch = torch.empty((work.batch_size, height, width, 3), device=work.device)
            feed_ndarray(out.as_tensor(), batch)  # DALI reuses its output; this tensor can be kept
            yield (batch,)

    return epoch
