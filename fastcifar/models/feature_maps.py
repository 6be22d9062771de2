"""Which modules of a network return feature maps of the images, and in which layout: (N, C, h, w) of convolutional
networks, (N, h, w, C), or the tokens (N, T, C) of a transformer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastcifar.models.state import evaluating, following

MAX_EXTRA_TOKENS = 16
"""Class, distillation and register tokens in front of those of the patches."""
PARTS_OF_BLOCKS = (nn.Linear, nn.Dropout, nn.Softmax)
"""Projections, and attention weights, (N, heads, T, T), which look like maps: not stages."""
Size = tuple[int, int]


@dataclass(frozen=True)
class MapLayout:
    """Where the maps are in the output of a module."""

    size: Size
    """(h, w)."""
    channels_last: bool = False
    """(N, h, w, C)."""
    num_extra_tokens: int | None = None
    """Of tokens, (N, T, C): how many come before those of the patches, which are row by row."""

    def to_maps(self, output: torch.Tensor) -> torch.Tensor:
        """The output as (N, C, h, w)."""
        if self.num_extra_tokens is not None:
            tokens = output[:, self.num_extra_tokens :].transpose(1, 2)  # (N, T, C) -> (N, C, h * w)
            return tokens.reshape(*tokens.shape[:2], *self.size)
        return output.movedim(3, 1) if self.channels_last else output


class _Grid:
    """Maps or patches, from which later tokens may be made."""

    def __init__(self, output: torch.Tensor, layout: MapLayout) -> None:
        self._output, self._layout = output, layout
        self._mixed: set[int] = set()  # by the number of tokens; later ones are mixed as well

    def find_patches(self, tokens: torch.Tensor) -> MapLayout | None:
        """The layout of tokens (N, T, C) whose patches are made from this grid: each from its own place alone, or from
        its own 2x2 places. None for others."""
        num_tokens = tokens.shape[1]
        if num_tokens in self._mixed:
            return None
        height, width = self._layout.size
        for factor in (1, 2):
            size = -(-height // factor), -(-width // factor)
            layout = MapLayout(size, num_extra_tokens=num_tokens - size[0] * size[1])
            if min(size) > 1 and self._are_patches(tokens, layout, factor):
                return layout
        return None

    def is_channels_last(self, output: torch.Tensor) -> bool | None:
        """Whether maps that are made from this grid are (N, h, w, C), where C is about w: half of dimension 2 is then
        half of the columns, not of the rows. None if they are not made from it."""
        with contextlib.suppress(RuntimeError):  # no gradient: modified in place, or not made from the images
            score = _weighted_sum(output[:, :, : output.shape[2] // 2])
            gradient = torch.autograd.grad(score, self._output, retain_graph=True, materialize_grads=True)[0]
            reached = self._layout.to_maps(gradient).float().square().sum(dim=(0, 1))
            rows, columns = (_imbalance(reached.sum(dim=dim)) for dim in (1, 0))
            return columns > rows if reached.any() else None
        return None

    def _are_patches(self, tokens: torch.Tensor, layout: MapLayout, factor: int) -> bool:
        if layout.num_extra_tokens not in range(MAX_EXTRA_TOKENS + 1):
            return False
        height, width = layout.size
        order = torch.randperm(height * width, generator=torch.Generator().manual_seed(0), device="cpu")
        half = (order < height * width // 2).view(layout.size)
        with contextlib.suppress(RuntimeError):  # no gradient: modified in place, or not made from the images
            for chosen in (half, ~half):
                score = _weighted_sum(layout.to_maps(tokens[:1])[..., chosen.to(tokens.device)])
                gradient = torch.autograd.grad(score, self._output, retain_graph=True, materialize_grads=True)[0]
                reached = (self._layout.to_maps(gradient) != 0).any(dim=0).any(dim=0).cpu()
                own = chosen.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
                if (reached & ~own[: reached.shape[0], : reached.shape[1]]).any():
                    self._mixed.add(tokens.shape[1])
                    return False
                if not reached.any():  # tokens of another branch
                    return False
            return True
        return False


class Recorder:
    """Learns in a forward pass which outputs are maps of the images, and where in tokens the grid of patches is."""

    def __init__(self, images_shape: tuple[int, ...]) -> None:
        self._num, _, self._height, self._width = images_shape
        self._first: list[_Grid] = []  # one: all that follows is made from it
        self._grids: dict[Size, _Grid] = {}  # the last output with each size
        self._tokens: dict[int, MapLayout] = {}  # by the number of tokens

    def add(self, inputs: tuple[Any, ...], output: object) -> MapLayout | None:
        """Take the call of a module into account, in the order in which they end; returns the layout of its output,
        None if that is not a map of the images.

        Maps have the aspect ratio of the images. Tokens are patches, behind up to 16 others, if they were made from the
        maps or patches before, place by place, as patch embeddings and mergers do. After attention each depends on all:
        those of the same number are the same patches.
        """
        grids = list(self._grids.values())
        given = inputs[0] if inputs else None  # perhaps the only sight of tokens before attention mixes them
        if isinstance(given, torch.Tensor) and (layout := self._layout_of(given, grids)) is not None:
            grids.append(_Grid(given, layout))
        self._first = self._first or grids[:1]
        if not isinstance(output, torch.Tensor) or (layout := self._layout_of(output, grids)) is None:
            return None
        self._grids[layout.size] = _Grid(output, layout)
        return layout

    def _layout_of(self, output: torch.Tensor, grids: list[_Grid]) -> MapLayout | None:
        if output.ndim not in (3, 4) or output.shape[0] != self._num:
            return None
        if output.ndim == 4:
            sizes = {False: output.shape[2:], True: output.shape[1:3]}
            layouts = [MapLayout((h, w), last) for last, (h, w) in sizes.items() if self._has_aspect(h, w)]
            if len(layouts) == 2:  # about as many channels as columns
                found = (grid.is_channels_last(output) for grid in (*reversed(grids), *self._first))
                return layouts[next((is_last for is_last in found if is_last is not None), False)]
            return layouts[0] if layouts else None
        num_tokens = output.shape[1]
        if num_tokens not in self._tokens:
            for grid in grids:
                if (layout := grid.find_patches(output)) is not None:
                    self._tokens[num_tokens] = layout
                    return layout
        return self._tokens.get(num_tokens)

    def _has_aspect(self, height: int, width: int) -> bool:
        fits = height <= self._height and width <= self._width  # attention has (N, heads, T, d), and T may be near d
        return fits and abs(height * self._width - width * self._height) <= max(self._height, self._width)


def _imbalance(values: torch.Tensor) -> float:
    """Of the first and the last half of (n,)."""
    half = len(values) // 2
    return float((values[:half].sum() - values[-half:].sum()).abs()) if half else 0.0


def _weighted_sum(features: torch.Tensor) -> torch.Tensor:
    """Not the plain sum: that of a layer norm is constant."""
    weights = torch.linspace(1, 2, features.numel(), device=features.device).view_as(features)
    return (features * weights).sum()


@contextmanager
def hooked(model: nn.Module, hook: Callable[[str, nn.Module, tuple[Any, ...], Any], Any]) -> Iterator[None]:
    """In the block, `hook(name, module, inputs, output)` after each call of a module that is not scripted; what it
    returns, if not None, takes the place of the output."""

    def of(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        return lambda module, inputs, output: hook(name, module, inputs, output)

    modules = [(n, m) for n, m in model.named_modules() if n and not isinstance(m, torch.jit.ScriptModule)]
    handles = [module.register_forward_hook(of(name)) for name, module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_stages(model: nn.Module, images: torch.Tensor) -> tuple[object, tuple[str, ...]]:
    """The output of the network for images (N, 3, H, W), and its stages: for each size of map, the deepest module that
    returns it, from large maps to small.

    Of a transformer it is the deepest one whose patch tokens the prediction depends on: what follows the last attention
    layer often uses the class token alone.
    """
    recorder = Recorder(tuple(images.shape))
    sizes: dict[str, Size | None] = {}  # in the order of the last call of each module
    tokens: dict[str, tuple[torch.Tensor, MapLayout]] = {}
    features: list[torch.Tensor] = []

    def record(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        sizes.pop(name, None)  # the last call counts
        layout = recorder.add(inputs, output)
        if layout is not None and (not output.requires_grad or isinstance(module, PARTS_OF_BLOCKS)):
            layout = None
        if layout is not None and layout.num_extra_tokens is not None:
            tokens[name] = (output, layout)
        sizes[name] = None if layout is None else layout.size

    def keep_features(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        features[:] = [each for each in inputs[:1] if isinstance(each, torch.Tensor) and each.requires_grad]

    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(keep_features) for module in linear]
    try:
        with evaluating(model), following(model, images) as inputs, hooked(model, record):
            output = model(inputs)
            unused = _unused_tokens(features or [output], tokens)
    finally:
        for handle in handles:
            handle.remove()
    deepest = {size: n for n, size in sizes.items() if size is not None and min(size) > 1 and n not in unused}
    return output, tuple(deepest[size] for size in sorted(deepest, reverse=True))


def _unused_tokens(features: list[Any], tokens: dict[str, tuple[torch.Tensor, MapLayout]]) -> set[str]:
    """The modules whose patch tokens do not influence the features of the images, the input of the last layer: its own
    weights may be 0 before training."""
    if not tokens or not isinstance(features[0], torch.Tensor):
        return set()
    unused: set[str] = set()
    with contextlib.suppress(RuntimeError):  # an output that was modified in place has no gradient
        outputs = [output for output, _ in tokens.values()]
        gradients = torch.autograd.grad(_weighted_sum(features[0].float()), outputs, allow_unused=True)
        for (name, (_, layout)), gradient in zip(tokens.items(), gradients, strict=True):
            if gradient is None or not bool(layout.to_maps(gradient).any()):
                unused.add(name)
    return unused
