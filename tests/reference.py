"""Slow plain twins of what the package does fast: one image, one pixel at a time."""

from __future__ import annotations

import numpy as np
import torch

from fastcifar.config import AugmentConfig


def augment_image(image: np.ndarray, choice: np.void, augment: AugmentConfig, fill: np.ndarray) -> np.ndarray:
    """Crop from the padded image, then flip, then cut out."""
    height, width, _ = image.shape
    pad = augment.crop_padding
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            source_y = y + int(choice["crop_y"]) - pad
            source_x = x + int(choice["crop_x"]) - pad
            if augment.crop_mode == "reflect":
                source_y, source_x = mirror(source_y, height), mirror(source_x, width)
            if 0 <= source_y < height and 0 <= source_x < width:
                out[y, x] = image[source_y, source_x]
    if choice["flip"]:
        out = out[:, ::-1].copy()
    for y in range(height):
        for x in range(width):
            in_y = 0 <= y - int(choice["cutout_y"]) < augment.cutout_size
            in_x = 0 <= x - int(choice["cutout_x"]) < augment.cutout_size
            if in_y and in_x:
                out[y, x] = fill
    return out


def mirror(position: int, side: int) -> int:
    while not 0 <= position < side:
        position = -position if position < 0 else 2 * (side - 1) - position
    return position


def normalise_image(image: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (3, H, W) float32."""
    out = np.empty((3, *image.shape[:2]), dtype=np.float32)
    for channel in range(3):
        inv_std = np.float32(1.0 / std[channel])
        shifted = image[..., channel].astype(np.float32) - np.float32(mean[channel])
        out[channel] = shifted * inv_std
    return out


def grad_cam_image(model: torch.nn.Module, image: torch.Tensor, stage: str, target: int) -> np.ndarray:
    """The formula of the paper for one image (3, H, W): the map of one stage, (h, w), largest value 1, or all 0."""
    kept: list[torch.Tensor] = []
    hook = model.get_submodule(stage).register_forward_hook(lambda module, inputs, output: kept.append(output))
    score = model(image[None])[0, target]
    hook.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    activation, gradient = kept[0][0].detach().double().numpy(), gradient[0].double().numpy()
    heat = np.zeros(activation.shape[1:])
    for channel in range(len(activation)):
        heat += gradient[channel].mean() * activation[channel]
    heat = np.maximum(heat, 0)
    return heat / heat.max() if heat.max() > 0 else heat
