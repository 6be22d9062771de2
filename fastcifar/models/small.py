"""A small network for CPUs: 2 million parameters, five times fewer operations than ResNet-18.

After the networks of D. Page ("How to train your ResNet", 2018) and K. Jordan (cifar10-airbench, 2024): a fixed first
layer that decorrelates neighbouring pixels, then three stages of two 3x3 convolutions, initialised as the identity. The
first layer needs no data: Haar filters in opponent colours, each divided by its standard deviation on natural images.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.models.fused_norm import KINDS, can_fuse, norm_act

WIDTHS = (64, 256, 256)
# Standard deviation of each filter's output on CIFAR-10, normalised by channel: brightness, red - blue, green - rest;
# of each: mean, columns, rows, checks. NOISE_VARIANCE is added to the variance, so that noise is not amplified.
STDS = (3.192, 0.495, 0.650, 0.221, 1.027, 0.060, 0.085, 0.015, 0.348, 0.034, 0.044, 0.012)
NOISE_VARIANCE = 0.01


def decorrelating_filters() -> torch.Tensor:
    """(24, 3, 2, 2): twelve orthogonal filters, scaled to unit variance, and their negatives."""
    haar = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5
    colours = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    colours = colours / colours.norm(dim=1, keepdim=True)
    filters = torch.einsum("kc,iy,jx->kijcyx", colours, haar, haar).reshape(12, 3, 2, 2)
    scaled = filters / (torch.tensor(STDS) ** 2 + NOISE_VARIANCE).sqrt()[:, None, None, None]
    return torch.cat([scaled, -scaled])


class Stem(nn.Module):
    """The fixed first layer: (N, 3, H, W) -> (N, 24, H - 1, W - 1). Without parameters, no gradient of the largest
    feature maps is computed."""

    filters: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("filters", decorrelating_filters(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(F.conv2d(x, self.filters))


class Stage(nn.Sequential):
    """Two 3x3 convolutions, the first followed by pooling: (N, C, H, W) -> (N, num_out, H // 2, W // 2)."""

    def __init__(self, num_in: int, num_out: int) -> None:
        first = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
        second = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        for layer in (first, second):
            nn.init.dirac_(layer.weight.data[: layer.in_channels])  # identity on the first channels
        norms = [nn.BatchNorm2d(num_out, momentum=0.4) for _ in range(2)]
        for norm in norms:
            norm.weight.requires_grad_(False)  # redundant: the next layer has weights
        super().__init__(first, nn.MaxPool2d(2), norms[0], nn.GELU(), second, norms[1], nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, pool, norm1, gelu1, second, norm2, gelu2 = self
        x = first(x)
        fused = can_fuse(x, norm1, gelu1, pool)
        x = norm_act(x, norm1, KINDS[type(gelu1)], pool=True) if fused else gelu1(norm1(pool(x)))
        x = second(x)
        return norm_act(x, norm2, KINDS[type(gelu2)]) if can_fuse(x, norm2, gelu2) else gelu2(norm2(x))


class SmallNet(nn.Module):
    """1,971,328 trainable parameters for ten classes. Feature maps of 32x32 images: 15, 7 and 3 pixels a side."""

    stages = ("layer1", "layer2", "layer3")
    smallest_side = 9

    def __init__(self, num_classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = Stem()
        self.layer1 = Stage(24, WIDTHS[0])
        self.layer2 = Stage(WIDTHS[0], WIDTHS[1])
        self.layer3 = Stage(WIDTHS[1], WIDTHS[2])
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTHS[2], num_classes, bias=False)
        nn.init.normal_(self.head.weight, std=1 / WIDTHS[2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) float -> (N, num_classes) logits."""
        x = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return self.head(self.dropout(x.amax(dim=(2, 3))))  # (N, 256, h, w) -> (N, 256)
