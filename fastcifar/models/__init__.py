"""Networks for small images. Each names its `stages`, from shallow to deep: where class activation maps are taken."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from fastcifar.config import MODELS, ModelConfig
from fastcifar.errors import UsageError, describe, one_line
from fastcifar.models.probe import named_stages, try_out
from fastcifar.models.resnet import ResNet18
from fastcifar.models.small import SmallNet
from fastcifar.models.state import evaluating

_CHOICES = {"norm": ("resnet18",), "dropout": ("resnet18", "small"), "last_stride": ("resnet18",)}


def make_model(config: ModelConfig, num_classes: int, image_shape: tuple[int, int, int] = (32, 32, 3)) -> nn.Module:
    """The network of `config`, (N, 3, H, W) -> (N, num_classes), freshly initialised.

    A name that is not ours is looked up in `torchvision.models`; 'package.module:function' is imported and called with
    `num_classes=`. So never call this with the name from somebody else's file: see `ModelConfig.names_code`. Such
    a network is tried on images of `image_shape` (H, W, 3): see `try_out`.
    Raises UsageError if there is no such network, it has no such choice or it does not fit the images.
    """
    model = _call(builder(config), config.name, num_classes)
    smallest = getattr(model, "smallest_side", 1)
    if min(image_shape[:2]) < smallest:
        height, width, _ = image_shape
        raise UsageError(f"the images are {height}x{width}; {config.name} needs {smallest}x{smallest}: try resnet18")
    if config.name not in MODELS:
        stages = try_out(model, config.name, num_classes, image_shape)
        free = not hasattr(model, "stages")  # a network may call a list of its modules so
        setattr(model, "stages" if free else "map_layers", named_stages(model) or stages)
    return model


def stages_of(model: nn.Module) -> tuple[str, ...]:
    """The layers of which maps are drawn when none are named, from shallow to deep."""
    return getattr(model, "map_layers", None) or named_stages(model) or ()


def require_side(model: nn.Module, side: int, name: str) -> None:
    """Raise UsageError if the network does not take images of side x side."""
    try:
        with evaluating(model), torch.no_grad():
            model(torch.zeros(1, 3, side, side, device=next(model.parameters()).device))
    except RuntimeError as error:
        reason = one_line(error, 200)
        raise UsageError(f"progressive is {side}; {name} does not take images of {side}x{side} ({reason})") from error


def builder(config: ModelConfig) -> Callable[..., nn.Module]:
    """What makes the network of `config` when it is called with `num_classes=`. Raises UsageError as `make_model`."""
    for choice, models in _CHOICES.items():
        value = getattr(config, choice)
        if config.name not in models and value != getattr(ModelConfig, choice):
            raise UsageError(f"{choice} is {value!r}; only {' and '.join(models)} can choose, not {config.name}")
    if config.name == "resnet18":
        return partial(ResNet18, norm=config.norm, dropout=config.dropout, last_stride=config.last_stride)
    if config.name == "small":
        return partial(SmallNet, dropout=config.dropout)
    return _imported(config.name) if config.names_code else _from_torchvision(config.name)


def _from_torchvision(name: str) -> Callable[..., nn.Module]:
    import torchvision

    try:
        found = torchvision.models.get_model_builder(name)
    except ValueError:
        found = None
    if found is None or found.__module__.count(".") != 2:  # torchvision.models.detection.… classify nothing
        raise UsageError(
            f"model is {name!r}; expected one of: {', '.join(MODELS)}, a name of torchvision.models (such as "
            "resnet34 or mobilenet_v3_small), or package.module:function"
        )
    # two of torchvision's give further answers while training, unless they are told not to
    further = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return partial(found, weights=None, **further)


def _imported(name: str) -> Any:
    module_name, _, function_name = name.partition(":")
    try:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # last: nothing of it takes the place of an installed module
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # the module may do anything when it is imported
        raise UsageError(
            f"model is {name!r}, which cannot be imported ({describe(error)}); "
            "expected package.module:function, found from this folder or installed"
        ) from error
    if not callable(function):
        raise UsageError(f"model is {name!r}, which is no function; expected one that takes num_classes")
    return function


def _call(function: Any, name: str, num_classes: int) -> nn.Module:
    try:
        model = function(num_classes=num_classes)
    except Exception as error:
        raise UsageError(
            f"model {name!r} cannot be made ({describe(error)}); "
            "expected a function that takes num_classes and returns a torch.nn.Module"
        ) from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {name!r} returned {type(model).__name__}; expected a torch.nn.Module")
    return model


def count_parameters(model: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
