"""Reference implementations: slow and plain, one image, one pixel at a time."""

from __future__ import annotations

import colorsys
import copy
import math
from collections.abc import Sequence

import numpy as np
import torch

from fastcifar.config import AugmentConfig


def augment_image(image: np.ndarray, params: np.void, augment: AugmentConfig, fill: np.ndarray) -> np.ndarray:
    """Crop from the padded image, then flip, rotate, change colours, cut out."""
    out = crop_image(image, params, augment)
    if params["flip"]:
        out = out[:, ::-1].copy()
    if params["rotation"]:
        out = rotate_image(out, float(params["rotation"]), augment.padding_mode == "reflect")
    shifts = [int(params[name]) for name in ("hue", "saturation", "value")]
    if any(shifts):
        out = shift_colour(out, *shifts)
    if params["brightness"] or params["contrast"]:
        out = adjust_tone(out, int(params["brightness"]), int(params["contrast"]))
    for y, x, height, width in zip(
        *(params[f"cutout_{name}"].tolist() for name in ("y", "x", "height", "width")), strict=True
    ):
        for row in range(max(y, 0), min(y + height, len(out))):
            for column in range(max(x, 0), min(x + width, out.shape[1])):
                out[row, column] = fill
    return out


def crop_image(image: np.ndarray, params: np.void, augment: AugmentConfig) -> np.ndarray:
    height, width, _ = image.shape
    pad = augment.crop_padding
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            source_y = y + int(params["crop_y"]) - pad
            source_x = x + int(params["crop_x"]) - pad
            if augment.padding_mode == "reflect":
                source_y, source_x = mirror(source_y, height), mirror(source_x, width)
            if 0 <= source_y < height and 0 <= source_x < width:
                out[y, x] = image[source_y, source_x]
    return out


def rotate_image(image: np.ndarray, degrees: float, reflect: bool, exactly: bool = False) -> np.ndarray:
    """Bilinear, in fixed point, or `exactly` in float64: each pixel of the result looks up its source."""
    height, width, _ = image.shape
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    if not exactly:
        cos, sin = round(cos * 2**16) / 2**16, round(sin * 2**16) / 2**16
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            from_x, from_y = x - (width - 1) / 2, y - (height - 1) / 2
            source_x = cos * from_x - sin * from_y + (width - 1) / 2
            source_y = sin * from_x + cos * from_y + (height - 1) / 2
            if not exactly:
                source_x, source_y = math.floor(source_x * 2**11) / 2**11, math.floor(source_y * 2**11) / 2**11
            left, top = math.floor(source_x), math.floor(source_y)
            total = np.zeros(3)
            for tap_y, part_y in ((top, 1 - (source_y - top)), (top + 1, source_y - top)):
                for tap_x, part_x in ((left, 1 - (source_x - left)), (left + 1, source_x - left)):
                    tap = (mirror(tap_y, height), mirror(tap_x, width)) if reflect else (tap_y, tap_x)
                    if 0 <= tap[0] < height and 0 <= tap[1] < width:
                        total += image[tap] * (part_y * part_x)
            out[y, x] = np.floor(total + 0.5)
    return out


def shift_colour(image: np.ndarray, hue: int, saturation: int, value: int) -> np.ndarray:
    """In OpenCV's 8-bit HSV (hue 0..179): to HSV by its tables, back by Python's own conversion, rounded down."""
    out = np.zeros_like(image)
    for y, x in np.ndindex(image.shape[:2]):
        h, s, v = opencv_hsv(*image[y, x].tolist())
        h = (h + hue) % 180
        s = min(max(s + saturation, 0), 255) if s else 0
        v = min(max(v + value, 0), 255)
        rgb = colorsys.hsv_to_rgb(h / 180, s / 255, v / 255)
        out[y, x] = [math.floor(channel * 255 + 1e-6) for channel in rgb]
    return out


def adjust_tone(image: np.ndarray, brightness: int, contrast: int) -> np.ndarray:
    """Added to each value; then the distance from 128 times 1 + contrast / 256, rounded to nearest, a half up."""
    out = np.zeros_like(image)
    for at in np.ndindex(image.shape):
        exact = 128 + (int(image[at]) + brightness - 128) * (1 + contrast / 256)
        out[at] = min(max(math.floor(exact + 0.5), 0), 255)
    return out


def opencv_hsv(red: int, green: int, blue: int) -> tuple[int, int, int]:
    """`RGB2HSV_b` of OpenCV: two tables of divisions with 12 fractional bits."""
    value = max(red, green, blue)
    spread = value - min(red, green, blue)
    if spread == 0:
        return 0, 0, value
    saturation = (spread * round(255 * 4096 / value) + 2048) >> 12
    if value == red:
        hue = green - blue
    elif value == green:
        hue = blue - red + 2 * spread
    else:
        hue = red - green + 4 * spread
    return ((hue * round(30 * 4096 / spread) + 2048) >> 12) % 180, saturation, value


def mirror(position: int, side: int) -> int:
    while side > 1 and not 0 <= position < side:
        position = -position if position < 0 else 2 * (side - 1) - position
    return position if side > 1 else 0


def normalise_image(image: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (3, H, W) float32."""
    out = np.empty((3, *image.shape[:2]), dtype=np.float32)
    for channel in range(3):
        inv_std = np.float32(1.0 / std[channel])
        shifted = image[..., channel].astype(np.float32) - np.float32(mean[channel])
        out[channel] = shifted * inv_std
    return out


def mix_image(image: np.ndarray, other: np.ndarray, row: np.void) -> np.ndarray:
    """One image and its partner, (3, H, W) float32: a box of `row` pasted, or blended."""
    out = image.copy()
    if row["mix_height"]:
        for y in range(row["mix_y"], row["mix_y"] + row["mix_height"]):
            for x in range(row["mix_x"], row["mix_x"] + row["mix_width"]):
                out[:, y, x] = other[:, y, x]
        return out
    rest = np.float32(row["partner_weight"])
    own = np.float32(1) - rest
    for position in np.ndindex(image.shape):
        out[position] = np.float32(own * image[position]) + np.float32(rest * other[position])
    return out


def cam_image(
    model: torch.nn.Module, image: torch.Tensor, layer: str, target: int, method: str, epsilon: float = 0.0
) -> np.ndarray:
    """The formula of the paper for one image (3, H, W), in float64: the positive part of the map of one layer, (h, w).

    epsilon: what is added to the denominator of Grad-CAM++ (pytorch-grad-cam adds 1e-6).
    """
    double = copy.deepcopy(model).double().eval()
    kept: list[torch.Tensor] = []
    double.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.append(output))
    score = double(image[None].double())[0, target]
    (gradients,) = torch.autograd.grad(score, kept[0])
    activation, gradient = kept[0][0].detach().numpy(), gradients[0].numpy()
    heat = np.zeros(activation.shape[1:])
    for a, g in zip(activation, gradient, strict=True):  # channel by channel
        if method == "gradcam":
            heat += g.mean() * a
        elif method == "gradcampp":
            denominator = 2 * g**2 + a.sum() * g**3 + epsilon
            alpha = np.divide(g**2, denominator, out=np.zeros_like(g), where=(g != 0) & (denominator != 0))
            heat += (alpha * np.maximum(g, 0)).sum() * a
        else:
            heat += g * a
    return np.maximum(heat, 0)


def enlarge(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, between the centres of the pixels: (h, w) -> `size`."""
    axes = []
    for old, new in zip(heat.shape, size, strict=True):
        place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(place).astype(int)
        axes.append((low, np.minimum(low + 1, old - 1), place - low))
    (y0, y1, fy), (x0, x1, fx) = axes
    above = heat[y0][:, x0] * (1 - fx) + heat[y0][:, x1] * fx
    below = heat[y1][:, x0] * (1 - fx) + heat[y1][:, x1] * fx
    return above * (1 - fy)[:, None] + below * fy[:, None]


def resize_image(image: np.ndarray, size: tuple[int, int], fit: str, background: tuple[int, int, int]) -> np.ndarray:
    """(H, W, 3) uint8 to `size`, (height, width): crop (shorter side to the size, centre crop), pad or stretch."""
    old, scales = image.shape[:2], [new / old for new, old in zip(size, image.shape, strict=False)]
    if fit == "stretch":
        return resample(image, size, (0, 0), scales)
    if fit == "crop":
        scale = max(scales)
        return resample(image, size, [(old[i] - size[i] / scale) / 2 for i in range(2)], [scale, scale])
    scale = min(scales)
    inner = [max(1, round(side * scale)) for side in old]
    out = np.empty((*size, 3), np.uint8)
    out[:] = background
    y, x = ((size[i] - inner[i]) // 2 for i in range(2))
    out[y : y + inner[0], x : x + inner[1]] = resample(image, inner, (0, 0), [inner[i] / old[i] for i in range(2)])
    return out


def resample(image: np.ndarray, size: Sequence[int], start: Sequence[float], scales: Sequence[float]) -> np.ndarray:
    """Lanczos filter of three lobes, as wide as a pixel of the larger of the two images; rounded after each axis."""
    out = image.astype(np.float64)
    for axis in (1, 0):
        weights = np.zeros((size[axis], out.shape[axis]))
        for new in range(size[axis]):
            centre = start[axis] + (new + 0.5) / scales[axis]
            for old in range(out.shape[axis]):
                distance = (old + 0.5 - centre) * min(1.0, scales[axis])
                weights[new, old] = np.sinc(distance) * np.sinc(distance / 3) if abs(distance) < 3 else 0
        weights /= weights.sum(axis=1, keepdims=True)
        out = np.floor(np.moveaxis(np.tensordot(weights, out, (1, axis)), 0, axis) + 0.5)
    return out.clip(0, 255).astype(np.uint8)
