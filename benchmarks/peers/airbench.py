"""airbench's loader (github.com/KellerJordan/cifar10-airbench): the dataset normalised once, then an epoch
augmented whole by torch operations on the device and cut into batches. Reimplemented from its description: crops by a
mask for each shift, flips and cutouts by masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import pad

from benchmarks.peers import CROP_PADDING, CUTOUT_SIZE, Work
from fastcifar.bench.measure import Epoch


def build(work: Work) -> Epoch:
    device = torch.device(work.device)
    mean, std = (torch.from_numpy(v).float().view(1, 3, 1, 1).to(device) for v in (work.mean, work.std))
    images = torch.from_numpy(work.images).to(device).permute(0, 3, 1, 2).float().sub_(mean).div_(std)
    labels = torch.from_numpy(work.labels).to(device)
    black = ((0 - mean) / std).view(3, 1, 1)
    padded = pad(images - black, (CROP_PADDING,) * 4) + black
    num, _, height, width = images.shape

    def crops() -> torch.Tensor:
        out = torch.empty_like(images)
        shifts = torch.randint(0, 2 * CROP_PADDING + 1, (num, 2), device=device)
        for y in range(2 * CROP_PADDING + 1):
            for x in range(2 * CROP_PADDING + 1):
                chosen = (shifts[:, 0] == y) & (shifts[:, 1] == x)
                out[chosen] = padded[chosen, :, y : y + height, x : x + width]
        return out

    def epoch() -> Iterator[tuple[Any, Any]]:
        out = crops()
        flip = (torch.rand(num, device=device) < 0.5).view(-1, 1, 1, 1)
        out = torch.where(flip, out.flip(-1), out)
        y, x = (torch.randint(0, side, (num, 1, 1, 1), device=device) - CUTOUT_SIZE // 2 for side in (height, width))
        rows = torch.arange(height, device=device).view(1, 1, -1, 1) - y
        columns = torch.arange(width, device=device).view(1, 1, 1, -1) - x
        inside = (rows >= 0) & (rows < CUTOUT_SIZE) & (columns >= 0) & (columns < CUTOUT_SIZE)
        out = out.masked_fill_(inside, 0)
        order = torch.randperm(num, device=device)
        for chosen in order.split(work.batch_size)[: num // work.batch_size]:
            yield out[chosen], labels[chosen]

    return epoch
