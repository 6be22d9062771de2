"""Class activation maps: where in an image the evidence for a class lies, as a layer of the network sees it.

- gradcam: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", 2017
- gradcampp: Chattopadhay et al., "Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks", 2018
- hirescam: Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of CNNs", 2020
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.config import CAM_METHODS
from fastcifar.errors import UsageError
from fastcifar.io.checks import format_choices, require_choice
from fastcifar.models import stages_of
from fastcifar.models.feature_maps import MapLayout, Recorder, find_stages, hooked
from fastcifar.models.state import evaluating, following

MIN_MAP_SIDE = 5
Size = tuple[int, int]


class CamMaps(NamedTuple):
    """Maps of one method for one class of each image."""

    maps: torch.Tensor
    """(N, layers, H, W) float32 in 0..1: each divided by its largest value, then enlarged to the image, bilinearly."""
    has_evidence: torch.Tensor
    """(N, layers) bool: False where there is no evidence for the class, and the map is 0 everywhere."""


class Activations:
    """The outputs of some layers of a network for a batch: one forward pass, for any number of maps.

    The network's gradients, mode and hooks are restored, also after an error.

    Examples:
        >>> run = Run("fast")
        >>> images = run.normalise(open_beton("data/test.beton").images(range(8)))  # as in training
        >>> activations = Activations(run.model(), images, ["layer2"])
        >>> activations.maps(methods=["hirescam"])["hirescam"].maps.shape  # (N, layers, H, W)
        torch.Size([8, 1, 32, 32])
    """

    logits: torch.Tensor
    """(N, num_classes) float32."""
    sizes: tuple[Size, ...]
    """(h, w) of each layer's own maps."""

    layers: tuple[str, ...]

    def __init__(self, model: nn.Module, images: torch.Tensor, layers: Sequence[str] | None = None) -> None:
        """images: (N, 3, H, W) float, normalised, on the network's device; it is run in float32.
        layers: names of modules that return feature maps, (N, C, h, w) or (N, h, w, C), or the tokens (N, T, C) of
        image patches, with or without a class token; by default the network's stages, the deepest module of each size.

        Of a module that is called several times, the last output counts.
        Raises UsageError if the network has no such layer, or its output is not a map.
        """
        if layers is None:
            layers = stages_of(model) or find_stages(model, images[:2])[1]
            if not layers:
                raise UsageError("no module of the network returns maps of the images; expected one that does")
        _require_layers(model, layers)
        self.layers = tuple(layers)
        self._image_size: Size = (images.shape[2], images.shape[3])
        outputs: dict[str, Any] = {}
        recorder = Recorder(tuple(images.shape))

        def keep(name: str, module: nn.Module, output: Any) -> Any:
            recorder.add(output)
            if name not in self.layers:
                return None
            outputs[name] = output
            # the network continues with a copy: the next module may work in place
            return output.clone() if isinstance(output, torch.Tensor) else None

        with evaluating(model), hooked(model, keep), following(model, images) as inputs:
            self._logits = model(inputs)
        self._outputs = [_require_tensor(name, outputs.get(name), tuple(images.shape)) for name in layers]
        self._layouts = [
            _require_maps(name, output, recorder.layout_of(output), tuple(images.shape))
            for name, output in zip(layers, self._outputs, strict=True)
        ]
        self.logits = self._logits.detach()
        self.sizes = tuple(layout.size for layout in self._layouts)

    def maps(
        self, targets: torch.Tensor | None = None, methods: Sequence[str] = ("gradcam", "gradcampp")
    ) -> dict[str, CamMaps]:
        """The maps of each method, from one backward pass for all layers and methods.

        targets: (N,) int64, the class whose evidence is mapped; the predicted one if not given.
        """
        for method in methods:
            require_choice("method", method, CAM_METHODS)
        classes = self.logits.argmax(dim=1) if targets is None else targets
        with torch.enable_grad():
            score = self._logits.gather(1, classes[:, None]).sum()  # images are independent in evaluation mode
        gradients = torch.autograd.grad(score, self._outputs, retain_graph=True, materialize_grads=True)
        maps = {}
        for method in methods:
            layers = [
                _METHODS[method](layout.to_maps(output.detach()), layout.to_maps(gradient))
                for layout, output, gradient in zip(self._layouts, self._outputs, gradients, strict=True)
            ]
            scaled, has_evidence = zip(*(_scaled(each, self._image_size) for each in layers), strict=True)
            maps[method] = CamMaps(torch.stack(scaled, dim=1), torch.stack(has_evidence, dim=1))
        return maps


def _grad_cam(activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    weights = gradient.mean(dim=(2, 3))  # (N, C)
    return torch.einsum("nc,nchw->nhw", weights, activation)


def _grad_cam_plus_plus(activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    # alpha = g^2 / (2 g^2 + sum(A) g^3), with g^2 taken out; where g <= 0 the paper's weight is 0 whatever alpha is
    denominator = 2 + activation.sum(dim=(2, 3), keepdim=True) * gradient
    alpha = torch.where(denominator != 0, 1 / denominator, 0.0)
    weights = (alpha * gradient.relu()).sum(dim=(2, 3))  # (N, C)
    return torch.einsum("nc,nchw->nhw", weights, activation)


def _hires_cam(activation: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return (gradient * activation).sum(dim=1)  # (N, C, h, w) -> (N, h, w)


_METHODS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "gradcam": _grad_cam,
    "gradcampp": _grad_cam_plus_plus,
    "hirescam": _hires_cam,
}


def _scaled(raw: torch.Tensor, size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, h, w) -> the positive part in 0..1, (N, H, W); and whether there is any, (N,)."""
    positive = raw.relu()
    peak = positive.amax(dim=(1, 2))  # (N,)
    has_evidence = peak > 0
    unit = positive / torch.where(has_evidence, peak, 1.0)[:, None, None]
    return F.interpolate(unit[:, None], size, mode="bilinear", align_corners=False)[:, 0].clamp(0, 1), has_evidence


def _require_layers(model: nn.Module, layers: Sequence[str]) -> None:
    known = {name: module for name, module in model.named_modules() if name}
    for name in layers:
        if name not in known:
            expected = format_choices(stages_of(model) or sorted(known), name)
            raise UsageError(f"layer is {name!r}; expected one of: {expected}; or another module of the network")
        if isinstance(known[name], torch.jit.ScriptModule):
            raise UsageError(f"layer {name!r} is scripted, so its output cannot be read; expected one in Python code")


def _require_tensor(name: str, output: Any, image_shape: tuple[int, ...]) -> torch.Tensor:
    if not isinstance(output, torch.Tensor):
        raise _not_maps(name, "not a tensor", image_shape)
    return output


def _require_maps(name: str, output: torch.Tensor, layout: MapLayout | None, image_shape: tuple[int, ...]) -> MapLayout:
    if layout is None:
        raise _not_maps(name, f"a tensor of shape {tuple(output.shape)}", image_shape)
    if not output.requires_grad:
        raise UsageError(f"layer {name!r} returns maps that do not depend on the images; expected maps that do")
    return layout


def _not_maps(name: str, returned: str, image_shape: tuple[int, ...]) -> UsageError:
    num, _, height, width = image_shape
    return UsageError(
        f"layer {name!r} returns {returned}; expected maps, (N, C, h, w) or (N, h, w, C), or tokens of patches, "
        f"(N, T, C), of {num} images, with the aspect ratio of {height}x{width}"
    )


def best_layer(sizes: Sequence[Size]) -> int:
    """Position of the layer to look at first among these, from shallow to deep: the deepest with maps of at least 5x5
    pixels, else the one with the largest maps."""
    large = [i for i, size in enumerate(sizes) if min(size) >= MIN_MAP_SIDE]
    return large[-1] if large else max(range(len(sizes)), key=lambda i: min(sizes[i]))
