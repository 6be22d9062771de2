"""The training loss: cross-entropy with label smoothing, class weights and mixed labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from fastcifar.loaders import Loader, Mix


def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    mix: Mix | None = None,
    *,
    class_weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """The mean over a batch, () float32: logits (N, C) float32, labels (N,) int64, class_weights (C,) float32.

    Weights and smoothing are those of `torch.nn.functional.cross_entropy`. An image that is mixed counts as two, with
    the label of each and its weight; as in torch, the sum is divided by that of the class weights.
    """
    if mix is None:
        return F.cross_entropy(logits, labels, class_weights, label_smoothing=label_smoothing)
    losses = [
        F.cross_entropy(logits, each, class_weights, label_smoothing=label_smoothing, reduction="none")
        for each in (labels, mix.partner_labels)
    ]
    total = (mix.weights * torch.stack(losses, dim=1)).sum()
    return total / (len(labels) if class_weights is None else sum_of_weights(labels, mix, class_weights))


def sum_of_weights(labels: torch.Tensor, mix: Mix | None, class_weights: torch.Tensor) -> torch.Tensor:
    """The sum of the class weights of a batch, () float32, by which its loss is divided."""
    if mix is None:
        return class_weights[labels].sum()
    both = torch.stack([labels, mix.partner_labels], dim=1)  # (N, 2)
    return (mix.weights * class_weights[both]).sum()


def balanced_class_weights(labels: npt.ArrayLike, num_classes: int) -> npt.NDArray[np.float32]:
    """(num_classes,): N / (C * count) for the N `labels` of C classes, as scikit-learn's 'balanced'; 0 for a class
    without images, which is none of the C."""
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=num_classes)
    weights = counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 0).astype(np.float32)


def class_weights_of(setting: str, loader: Loader) -> torch.Tensor | None:
    """The class weights for the images of `loader`, on its device, if `setting` is 'balanced'."""
    if setting == "none":
        return None
    images = loader.dataset
    return torch.from_numpy(balanced_class_weights(images.targets, len(images.classes))).to(loader.config.device)
