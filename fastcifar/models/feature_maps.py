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


class Recorder:
    """Learns the grid of the patches in a forward pass: the sizes of the maps that its modules return."""

    def __init__(self, images_shape: tuple[int, ...]) -> None:
        self._num, _, self._height, self._width = images_shape
        self._sizes: set[Size] = set()

    def add(self, output: object) -> MapLayout | None:
        """Take the output of the next module into account; returns its layout, as `layout_of`."""
        layout = self.layout_of(output) if isinstance(output, torch.Tensor) else None
        if layout is not None:
            self._sizes.add(layout.size)
        return layout

    def layout_of(self, output: torch.Tensor) -> MapLayout | None:
        """The layout of the maps in an output; None if it is not a map of the images.

        Maps have the aspect ratio of the images. Tokens are those of a grid that a module before returned as maps, as
        patch embeddings do, or of one that was merged from it, 2x2 patches into one, with up to 16 other tokens before.
        """
        if output.ndim not in (3, 4) or output.shape[0] != self._num:
            return None
        if output.ndim == 4:
            for first, channels_last in ((2, False), (1, True)):
                height, width = output.shape[first], output.shape[first + 1]
                if self._has_aspect(height, width):
                    return MapLayout((height, width), channels_last)
            return None
        extra = {size: output.shape[1] - size[0] * size[1] for size in self._grids()}
        extra = {size: num for size, num in extra.items() if 0 <= num <= MAX_EXTRA_TOKENS}
        if not extra:
            return None
        size = min(extra, key=lambda each: extra[each])
        return MapLayout(size, num_extra_tokens=extra[size])

    def _has_aspect(self, height: int, width: int) -> bool:
        fits = height <= self._height and width <= self._width  # attention has (N, heads, T, d), and T may be near d
        return fits and abs(height * self._width - width * self._height) <= max(self._height, self._width)

    def _grids(self) -> set[Size]:
        """The sizes of maps so far, and those after mergers."""
        grids = set(self._sizes)
        for height, width in self._sizes:
            while min(height, width) > 2:
                height, width = -(-height // 2), -(-width // 2)
                grids.add((height, width))
        return {size for size in grids if min(size) > 1}


@contextmanager
def hooked(model: nn.Module, hook: Callable[[str, nn.Module, Any], Any]) -> Iterator[None]:
    """In the block, `hook(name, module, output)` after each call of a module that is not scripted; what it returns, if
    not None, takes the place of the output."""

    def of(name: str) -> Callable[[nn.Module, Any, Any], Any]:
        return lambda module, inputs, output: hook(name, module, output)

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

    def record(name: str, module: nn.Module, output: Any) -> None:
        sizes.pop(name, None)  # the last call counts
        layout = recorder.add(output)
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
    last = features[0].float()
    # not the plain sum: that of a layer norm is constant
    weights = torch.linspace(1, 2, last.numel(), device=last.device).view_as(last)
    unused: set[str] = set()
    with contextlib.suppress(RuntimeError):  # an output that was modified in place has no gradient
        outputs = [output for output, _ in tokens.values()]
        gradients = torch.autograd.grad((last * weights).sum(), outputs, allow_unused=True)
        for (name, (_, layout)), gradient in zip(tokens.items(), gradients, strict=True):
            if gradient is None or not bool(layout.to_maps(gradient).any()):
                unused.add(name)
    return unused
