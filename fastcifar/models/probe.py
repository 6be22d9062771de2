"""Checks a network of the user on blank images: does it return logits, which memory format does it support, and which
modules return feature maps?"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from fastcifar.errors import UsageError, one_line
from fastcifar.models.feature_maps import find_stages
from fastcifar.models.state import buffers_kept, evaluating, modes_kept, uncompiled

NUM_IMAGES = 2
ONEDNN_BLOCK = 16
"""The most channels that oneDNN computes at a time."""


def check_network(model: nn.Module, name: str, num_classes: int, image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Pass images through the network in both modes; return its stages: for each size of feature map, the deepest
    module that returns it. Initialises lazy modules, and records the memory format for `place`.

    Raises UsageError if the network cannot be trained or saved, or does not return logits.
    """
    if not any(param.requires_grad for param in model.parameters()):
        raise UsageError(f"model {name!r} has no parameters to train; expected at least one")
    height, width, channels = image_shape
    blank = torch.zeros(NUM_IMAGES, channels, height, width, device="cpu", dtype=torch.float32)
    try:
        with torch.random.fork_rng(devices=[]), uncompiled():
            with torch.no_grad(), evaluating(model):
                model(blank)  # initialises lazy modules
            trained, evaluated, stages = _outputs_in_a_format(model, blank)
    except Exception as error:
        reason = one_line(error, 200)
        raise UsageError(f"model {name!r} does not take images of {height}x{width} ({reason})") from error
    for logits in (trained, evaluated):
        if not isinstance(logits, torch.Tensor) or logits.shape != (NUM_IMAGES, num_classes):
            output = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise UsageError(
                f"model {name!r} returns {output} for {NUM_IMAGES} images; expected logits, "
                f"({NUM_IMAGES}, {num_classes}), in training and evaluation mode: wrap it in a module that does"
            )
    others = [key for key, value in model.state_dict().items() if not isinstance(value, torch.Tensor)]
    if others:
        raise UsageError(f"model {name!r} has the state {others[0]!r}, which is not a tensor; expected only tensors")
    return stages


def _outputs_in_a_format(model: nn.Module, blank: torch.Tensor) -> tuple[object, object, tuple[str, ...]]:
    """The outputs in training and evaluation mode, and the stages; in channels_last if the network supports it, which
    is faster, but `view` fails on it, some modules have no such weights, and oneDNN writes where it must not."""
    if not any(map(_is_unsafe_in_channels_last, model.modules())):
        with contextlib.suppress(RuntimeError):
            model.to(memory_format=torch.channels_last)
            return _outputs(model, blank.contiguous(memory_format=torch.channels_last))
    model.to(memory_format=torch.contiguous_format)
    outputs = _outputs(model, blank)
    model.register_forward_pre_hook(_contiguous)
    model.needs_contiguous = True  # type: ignore[assignment]
    return outputs


def _is_unsafe_in_channels_last(layer: nn.Module) -> bool:
    """Whether the weight gradient, on a CPU in float32, may crash or be wrong: for 1x1 filters with a stride and fewer
    input channels than a block, oneDNN writes past its memory (github.com/uxlfoundation/oneDNN/issues/6035)."""
    return (
        isinstance(layer, nn.Conv2d)
        and max(layer.kernel_size) == 1
        and max(layer.stride) > 1
        and layer.in_channels // layer.groups < ONEDNN_BLOCK
    )


def _contiguous(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(each.contiguous() if isinstance(each, torch.Tensor) else each for each in inputs)


def _outputs(model: nn.Module, images: torch.Tensor) -> tuple[object, object, tuple[str, ...]]:
    with torch.no_grad(), modes_kept(model), buffers_kept(model):
        model.train()
        trained = model(images)
    return trained, *find_stages(model, images)


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """Move the network to the device, in channels_last if it supports that; returns it."""
    layout = torch.contiguous_format if getattr(model, "needs_contiguous", False) else torch.channels_last
    placed: nn.Module = model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    return placed


def named_stages(model: nn.Module) -> tuple[str, ...] | None:
    """The names of modules in `model.stages`; None if that is something else, or missing."""
    stages = getattr(model, "stages", None)
    known = dict(model.named_modules())
    if not isinstance(stages, (list, tuple)) or not all(isinstance(name, str) and name in known for name in stages):
        return None
    return tuple(stages)
