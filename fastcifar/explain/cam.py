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
from fastcifar.io.checks import format_choices, require_choice, shown
from fastcifar.models import stages_of
from fastcifar.models.feature_maps import MapLayout, Recorder, find_stages, hooked
from fastcifar.models.state import evaluating, following

MIN_MAP_SIDE = 5
Size = tuple[int, int]


class CamMaps(NamedTuple):
    """Maps of one method for one class of each image, on the network's device."""

    maps: torch.Tensor
    """(N, layers, H, W) float32 in 0..1: each divided by its largest value, then enlarged to the image, bilinearly."""
    has_evidence: torch.Tensor
    """(N, layers) bool: False where there is no evidence for the class, and the map is 0 everywhere."""


class Activations:
    """The outputs of some layers of a network for a batch: one forward pass, for any number of maps.

    The network's gradients, mode and hooks are restored, also after an error. The outputs, and what the backward pass
    needs of all layers, stay on the network's device as long as this object exists.

    Examples:
        >>> run = Run("fast")
        >>> images = run.normalise(open_beton("data/test.beton").images(range(8)))  # as in training
        >>> activations = Activations(run.model(), images, ["layer2"])
        >>> activations.maps(methods=["hirescam"])["hirescam"].maps.shape  # (N, layers, H, W)
        torch.Size([8, 1, 32, 32])
    """

    logits: torch.Tensor
    """(N, num_classes) float32, on the network's device."""
    sizes: tuple[Size, ...]
    """(h, w) of each layer's own maps."""
    layers: tuple[str, ...]
    """Names of the layers, in the order of the maps."""

    def __init__(self, model: nn.Module, images: torch.Tensor, layers: Sequence[str] | None = None) -> None:
        """images: (N, 3, H, W) float, normalised, on the network's device; it is run in float32.
        layers: names of modules that return feature maps, (N, C, h, w) or (N, h, w, C), or the tokens (N, T, C) of
        image patches, with or without a class token; by default the network's stages, the deepest module of each size.

        Of a module that is called several times, the last output counts.
        Raises UsageError for other images, if the network has no such layer, if its output is not a map, or if the
        network does not return logits, (N, num_classes).
        """
        _require_images(images)
        if layers is None:
            layers = stages_of(model) or find_stages(model, images[:2])[1]
            if not layers:
                raise UsageError("no module of the network returns maps of the images; expected one that does")
        _require_names("layers", layers)
        require_layers(model, layers)
        self.layers = tuple(layers)
        self._image_size: Size = (images.shape[2], images.shape[3])
        outputs: dict[str, tuple[Any, MapLayout | None]] = {}
        recorder = Recorder(tuple(images.shape))

        def keep(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            layout = recorder.add(inputs, output)
            if name not in self.layers:
                return None
            outputs[name] = (output, layout)
            # the network continues with a copy: the next module may work in place
            return output.clone() if isinstance(output, torch.Tensor) else None

        with evaluating(model), hooked(model, keep), following(model, images) as inputs:
            self._logits = _require_logits(model(inputs), len(images))
        kept = [_require_maps(name, *outputs.get(name, (None, None)), tuple(images.shape)) for name in layers]
        self._outputs, self._layouts = zip(*kept, strict=True)
        self.logits = self._logits.detach()
        self.sizes = tuple(layout.size for layout in self._layouts)

    def maps(
        self, targets: torch.Tensor | None = None, methods: Sequence[str] = ("hirescam", "gradcam")
    ) -> dict[str, CamMaps]:
        """The maps of each method, (N, layers, H, W) float32 in 0..1, on the network's device; from one backward pass
        for all layers and methods.

        targets: (N,) int64 in 0..num_classes-1, on any device: the class whose evidence is mapped; the predicted one if
        not given.
        methods: of 'gradcam', 'gradcampp' and 'hirescam'.
        Raises UsageError for other targets or methods.
        """
        _require_names("methods", methods)
        for method in methods:
            require_choice("method", method, CAM_METHODS)
        classes = self.logits.argmax(dim=1) if targets is None else _require_targets(targets, self.logits)
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


def _require_images(images: Any) -> None:
    floats = isinstance(images, torch.Tensor) and images.is_floating_point()
    if not floats or images.ndim != 4 or images.shape[1] != 3 or not images.numel():
        raise UsageError(
            f"images is {_described(images)}; expected a normalised floating point tensor, (N, 3, H, W), as of "
            "Run.normalise or make_loader"
        )


def _require_targets(targets: object, logits: torch.Tensor) -> torch.Tensor:
    num, num_classes = logits.shape
    expected = f"expected an int64 tensor, ({num},), of classes in 0..{num_classes - 1}"
    if not isinstance(targets, torch.Tensor) or targets.shape != (num,) or targets.dtype != torch.int64:
        raise UsageError(f"targets is {_described(targets)}; {expected}")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= num_classes:
        raise UsageError(f"targets is {low}..{high}; {expected}")
    return targets.to(logits.device)


def _require_names(name: str, names: Sequence[str]) -> None:
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise UsageError(f"{name} is {shown(names)}; expected a list of names, at least one")


def _require_logits(output: object, num: int) -> torch.Tensor:
    if not isinstance(output, torch.Tensor) or output.ndim != 2 or len(output) != num:
        raise UsageError(
            f"the network returns {_described(output)} for {num} images; expected logits, ({num}, num_classes): "
            "wrap it in a module that returns them"
        )
    return output


def _described(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {str(value.dtype).removeprefix('torch.')}"
    return f"{shown(value)}, not a tensor"


def require_layers(model: nn.Module, layers: Sequence[str]) -> None:
    """Raise UsageError if the network has no such layer, or its output cannot be read."""
    known = {name: module for name, module in model.named_modules() if name}
    for name in layers:
        if name not in known:
            expected = format_choices(stages_of(model) or sorted(known), name)
            raise UsageError(f"layer is {name!r}; expected one of: {expected}; or another module of the network")
        if isinstance(known[name], torch.jit.ScriptModule):
            raise UsageError(f"layer {name!r} is scripted, so its output cannot be read; expected one in Python code")


def _require_maps(
    name: str, output: object, layout: MapLayout | None, image_shape: tuple[int, ...]
) -> tuple[torch.Tensor, MapLayout]:
    if not isinstance(output, torch.Tensor) or layout is None:
        num, _, height, width = image_shape
        raise UsageError(
            f"layer {name!r} returns {_described(output)}; expected maps, (N, C, h, w) or (N, h, w, C), or tokens of "
            f"patches, (N, T, C), of {num} images, with the aspect ratio of {height}x{width}"
        )
    if not output.requires_grad:
        raise UsageError(f"layer {name!r} returns maps that do not depend on the images; expected maps that do")
    return output, layout


def best_layer(sizes: Sequence[Size]) -> int:
    """Position of the layer to look at first among these, from shallow to deep: the deepest with maps of at least 5x5
    pixels, else the one with the largest maps."""
    large = [i for i, size in enumerate(sizes) if min(size) >= MIN_MAP_SIDE]
    return large[-1] if large else max(range(len(sizes)), key=lambda i: min(sizes[i]))
