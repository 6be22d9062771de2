"""Networks for small images. Each has `stages`, from shallow to deep: the layers of its class activation maps."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from fastcifar.config import MODELS, TIMM, ModelConfig
from fastcifar.errors import FastcifarError, UsageError, describe, one_line
from fastcifar.models.probe import check_network, named_stages
from fastcifar.models.resnet import ResNet18
from fastcifar.models.small import SmallNet
from fastcifar.models.state import evaluating
from fastcifar.models.timm_networks import from_timm

IMAGE_SHAPE = (32, 32, 3)
_OPTIONS = {"norm": ("resnet18",), "dropout": ("resnet18", "small"), "last_stride": ("resnet18",)}


def make_model(
    config: ModelConfig, num_classes: int, image_shape: tuple[int, int, int] = IMAGE_SHAPE, *, pretrained: bool = False
) -> nn.Module:
    """The network of `config`, (N, 3, H, W) -> (N, num_classes), newly initialised.

    Other names than 'resnet18' and 'small' are looked up in `torchvision.models`; 'timm:NAME' in timm;
    'package.module:function' is imported and called with `num_classes=`, so never pass a name from an untrusted file:
    see `ModelConfig.names_code`. Such a network is checked on images of `image_shape` (H, W, 3): it must return logits,
    and can be trained and saved.
    pretrained: with the weights of the Hugging Face hub, if the network is from there.
    Raises UsageError if there is no such network, it does not support an option, or it does not fit the images;
    MissingExtraError if timm is needed and missing.

    Examples:
        >>> network = make_model(ModelConfig(name="small"), num_classes=10)
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    model = _call(builder(config, image_shape, pretrained), config.name, num_classes)
    smallest = getattr(model, "smallest_side", 1)
    if min(image_shape[:2]) < smallest:
        height, width, _ = image_shape
        raise UsageError(f"the images are {height}x{width}; {config.name} needs {smallest}x{smallest}: try resnet18")
    if config.name not in MODELS:
        stages = check_network(model, config.name, num_classes, image_shape)
        free = not hasattr(model, "stages")  # a network may use that name for a list of modules
        setattr(model, "stages" if free else "map_layers", named_stages(model) or stages)
    return model


def stages_of(model: nn.Module) -> tuple[str, ...]:
    """The default layers of class activation maps, from shallow to deep."""
    return getattr(model, "map_layers", None) or named_stages(model) or ()


def require_side(model: nn.Module, side: int, name: str) -> None:
    """Raise UsageError if the network does not take images of side x side."""
    try:
        with evaluating(model), torch.no_grad():
            model(torch.zeros(1, 3, side, side, device=next(model.parameters()).device))
    except RuntimeError as error:
        reason = one_line(error, 200)
        raise UsageError(f"progressive is {side}; {name} does not take images of {side}x{side} ({reason})") from error


def builder(
    config: ModelConfig, image_shape: tuple[int, int, int] = IMAGE_SHAPE, pretrained: bool = False
) -> Callable[..., nn.Module]:
    """The function that builds the network of `config`, given `num_classes=`. Raises UsageError like `make_model`."""
    for option, models in _OPTIONS.items():
        value = getattr(config, option)
        if config.name not in models and value != getattr(ModelConfig, option):
            raise UsageError(f"{option} is {value!r}; supported only by {' and '.join(models)}, not by {config.name}")
    if config.name == "resnet18":
        return partial(ResNet18, norm=config.norm, dropout=config.dropout, last_stride=config.last_stride)
    if config.name == "small":
        return partial(SmallNet, dropout=config.dropout)
    if config.name.startswith(TIMM):
        return from_timm(config, image_shape, pretrained)
    return _imported(config.name) if config.names_code else _from_torchvision(config.name)


def _from_torchvision(name: str) -> Callable[..., nn.Module]:
    import torchvision

    if name != name.lower():  # torchvision's builder of 'ResNet18' is not that of MODELS
        raise UsageError(f"model is {name!r}; names of networks are in lower case: {name.lower()!r}")
    try:
        function = torchvision.models.get_model_builder(name)
    except ValueError:
        function = None
    if function is None or function.__module__.count(".") != 2:  # torchvision.models.detection.… are not classifiers
        raise UsageError(
            f"model is {name!r}; expected one of: {', '.join(MODELS)}, a name of torchvision.models (such as "
            "resnet34 or mobilenet_v3_small), timm:NAME, or package.module:function"
        )
    # two of torchvision's return auxiliary logits in training mode by default
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return partial(function, weights=None, **options)


def _imported(name: str) -> Any:
    module_name, _, function_name = name.partition(":")
    try:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # last: it must not shadow installed modules
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # importing it may raise anything
        raise UsageError(
            f"model is {name!r}, which cannot be imported ({describe(error)}); "
            "expected package.module:function, importable from this folder or installed"
        ) from error
    if not callable(function):
        raise UsageError(f"model is {name!r}, which is not callable; expected a function of num_classes")
    return function


def _call(function: Any, name: str, num_classes: int) -> nn.Module:
    try:
        model = function(num_classes=num_classes)
    except FastcifarError:
        raise
    except Exception as error:
        raise UsageError(
            f"model {name!r} cannot be built ({describe(error)}); "
            "expected a function that takes num_classes and returns a torch.nn.Module"
        ) from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {name!r} returned {type(model).__name__}; expected a torch.nn.Module")
    return model


def count_parameters(model: nn.Module) -> int:
    """The number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
