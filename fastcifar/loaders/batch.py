"""What the loaders deliver: `Batch`, and `MixedBatch` with MixUp or CutMix."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import torch
from torch.nn import functional as F

from fastcifar.errors import UsageError


class Mix(NamedTuple):
    """The second label of each image of a mixed batch."""

    partner_labels: torch.Tensor
    """(N,) int64: the label of the image that it is mixed with."""
    weights: torch.Tensor
    """(N, 2) float32: of its own label, and of its partner's; together 1."""


class Batch(NamedTuple):
    """Images, labels, and their indices in the dataset: three values. The caller owns the tensors, and may modify them.

    Examples:
        >>> loader = make_loader("data/train.beton", batch_size=32)
        >>> batch = next(loader.epoch(0))
        >>> batch.images.shape, batch.labels.shape
        (torch.Size([32, 3, 32, 32]), torch.Size([32]))
        >>> images, labels, indices = batch
    """

    images: torch.Tensor
    """(N, 3, H, W), channels_last by default: normalised, or 0..255 if the dtype is uint8."""
    labels: torch.Tensor
    """(N,) int64."""
    indices: torch.Tensor
    """(N,) int64: the indices of the images in the dataset."""

    @property
    def mix(self) -> Mix | None:
        """The labels of the partners and their weights, if the images are mixed."""
        return None

    @property
    def main_labels(self) -> torch.Tensor:
        """(N,) int64: the labels; of a mixed image the one with the larger weight, its own if both are 0.5."""
        return self.labels


class MixedBatch(Batch):
    """A batch of mixed images, each with two labels: `labels` of the image itself, and those in `mix`.

    It cannot be unpacked or sliced, as its labels alone are not those of the images.

    Examples:
        >>> batch = next(make_loader("data/train.beton", AugmentConfig(mixup=0.2), batch_size=32).epoch(0))
        >>> batch.images.shape, batch.soft_labels(10).shape, batch.mix.weights.shape
        (torch.Size([32, 3, 32, 32]), torch.Size([32, 10]), torch.Size([32, 2]))
    """

    _mix: Mix

    def __new__(cls, images: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor, mix: Mix) -> MixedBatch:
        batch = super().__new__(cls, images, labels, indices)
        batch._mix = mix
        return batch

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.images, self.labels, self.indices, self._mix

    @property
    def mix(self) -> Mix:
        """The labels of the partners and their weights."""
        return self._mix

    @property
    def main_labels(self) -> torch.Tensor:
        """(N,) int64: of each image the label with the larger weight, its own if both are 0.5."""
        own, partner = self._mix.weights.unbind(1)
        return torch.where(own >= partner, self.labels, self._mix.partner_labels)

    def soft_labels(self, num_classes: int) -> torch.Tensor:
        """(N, num_classes) float32, each row with the sum 1, as torchvision's `v2.MixUp` and `v2.CutMix` return them
        and `torch.nn.functional.cross_entropy` takes them."""
        own, partner = (F.one_hot(each, num_classes) for each in (self.labels, self._mix.partner_labels))
        return own * self._mix.weights[:, :1] + partner * self._mix.weights[:, 1:]

    def __iter__(self) -> NoReturn:
        raise UsageError(
            "the images of this batch are mixed (mixup, cutmix), so each has two labels; use batch.images with "
            "batch.soft_labels(num_classes), or batch.labels with batch.mix"
        )

    def __getitem__(self, key: Any) -> Any:
        return self.__iter__() if isinstance(key, slice) else super().__getitem__(key)
