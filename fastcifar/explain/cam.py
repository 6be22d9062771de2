"""Class activation maps: Grad-CAM (Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via
Gradient-based Localization", 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from fastcifar.errors import UsageError

SMALLEST_MAP = 5


class CamResult(NamedTuple):
    """Maps of a batch."""

    maps: torch.Tensor
    """(N, h, w) float32 in 0..1, of the stage's own size; each image's largest value is 1 unless all are 0."""
    has_evidence: torch.Tensor
    """(N,) bool: False where nothing speaks for the class, so that the map is 0 everywhere."""
    logits: torch.Tensor
    """(N, num_classes) float32."""


@contextmanager
def _captured(model: nn.Module, stages: tuple[str, ...]) -> Iterator[dict[str, torch.Tensor]]:
    """In the block, what each of `stages` gives in a forward pass; the hooks are gone after it."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str) -> object:
        return lambda module, inputs, output: found.__setitem__(name, output)

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in stages]  # type: ignore[arg-type]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def grad_cam(model: nn.Module, images: torch.Tensor, stage: str, targets: torch.Tensor | None = None) -> CamResult:
    """Grad-CAM of each image at one stage of the network, in one forward and one backward pass for the whole batch.

    images: (N, 3, H, W) float32, normalised, on the network's device. targets: (N,) int64, the class whose evidence is
    mapped; the predicted one if not given. The network's gradients and mode are left as they were.
    Raises UsageError if the network has no such stage.
    """
    if stage not in dict(model.named_modules()):
        known = ", ".join(getattr(model, "stages", ()))
        raise UsageError(f"stage is {stage!r}; expected one of: {known}")
    was_training = model.training
    model.eval()
    try:
        with torch.enable_grad(), _captured(model, (stage,)) as found:
            # the images carry a gradient, so that a frozen network gives one too
            logits = model(images.detach().float().requires_grad_())
            activation = found[stage]  # (N, C, h, w)
            classes = logits.argmax(dim=1) if targets is None else targets
            scores = logits.gather(1, classes[:, None]).sum()  # images do not mix in evaluation mode
            (gradient,) = torch.autograd.grad(scores, activation)
    finally:
        model.train(was_training)
    weights = gradient.mean(dim=(2, 3), keepdim=True)  # (N, C, 1, 1)
    maps = (weights * activation.detach()).sum(dim=1).relu()  # (N, C, h, w) -> (N, h, w)
    peak = maps.amax(dim=(1, 2), keepdim=True)
    has_evidence = peak[:, 0, 0] > 0
    return CamResult(maps / torch.where(peak > 0, peak, 1.0), has_evidence, logits.detach())


def default_stage(model: nn.Module, image_shape: tuple[int, int, int]) -> tuple[str, tuple[int, int]]:
    """The deepest stage whose maps have at least 5x5 pixels (else the one with the largest), and its maps' size."""
    stages: tuple[str, ...] = model.stages  # type: ignore[assignment]
    height, width, channels = image_shape
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _captured(model, stages) as found:
            device = next(model.parameters()).device
            model(torch.zeros(1, channels, height, width, device=device))
    finally:
        model.train(was_training)
    sizes = {name: (found[name].shape[2], found[name].shape[3]) for name in stages}
    large = [name for name in stages if min(sizes[name]) >= SMALLEST_MAP]
    chosen = large[-1] if large else max(stages, key=lambda name: min(sizes[name]))
    return chosen, sizes[chosen]
