"""Networks for small images. Each names its `stages`, from shallow to deep: where class activation maps are taken."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from fastcifar.config import MODELS, ModelConfig
from fastcifar.errors import UsageError
from fastcifar.models.resnet import ResNet18
from fastcifar.models.small import SmallNet

_CHOICES = {"norm": ("resnet18",), "dropout": ("resnet18", "small"), "last_stride": ("resnet18",)}


def make_model(config: ModelConfig, num_classes: int, image_shape: tuple[int, int, int] = (32, 32, 3)) -> nn.Module:
    """The network of `config`, (N, 3, H, W) -> (N, num_classes), freshly initialised.

    A name that is not ours is looked up in `torchvision.models`; 'package.module:function' is imported and called with
    `num_classes=`. So never call this with the name from somebody else's file: see `ModelConfig.names_code`. Such
    a network is tried on images of `image_shape` (H, W, 3), and gets its `stages` from that.
    Raises UsageError if there is no such network, it has no such choice or it does not fit the images.
    """
    model = _call(builder(config), config.name, num_classes)
    smallest = getattr(model, "smallest_side", 1)
    if min(image_shape[:2]) < smallest:
        height, width, _ = image_shape
        raise UsageError(f"the images are {height}x{width}; {config.name} needs {smallest}x{smallest}: try resnet18")
    if not hasattr(model, "stages"):
        if not any(param.requires_grad for param in model.parameters()):
            raise UsageError(f"model {config.name!r} has no parameters to train; expected at least one")
        model.stages = _stages(model, config.name, num_classes, image_shape)  # type: ignore[assignment]
    return model


def require_side(model: nn.Module, side: int, name: str) -> None:
    """Raise UsageError if the network does not take images of side x side."""
    try:
        with evaluating(model), torch.no_grad():
            model(torch.zeros(1, 3, side, side, device=next(model.parameters()).device))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"progressive is {side}; {name} does not take images of {side}x{side} ({reason})") from error


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """In the block, the network is in evaluation mode; each of its modules is then put back into its own."""
    with modes_kept(model):
        model.eval()
        yield


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """After the block, each module of the network is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """After the block, the network has the buffers that it had, with the values that they had."""
    held = [(module, dict(module._buffers)) for module in model.modules()]  # a network may put others in their place
    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, buffers in held:
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)


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


def _stages(model: nn.Module, name: str, num_classes: int, image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Of each size of map the deepest module that gives it, found by passing two images through the network."""
    height, width, channels = image_shape
    deepest: dict[tuple[int, ...], str] = {}

    def keep(of: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and gives_maps(output, image_shape) and min(output.shape[2:]) > 1:
                deepest[tuple(output.shape[2:])] = of

        return hook

    hooks = [module.register_forward_hook(keep(of)) for of, module in model.named_modules() if of]
    images = torch.zeros(2, channels, height, width)
    try:
        with torch.no_grad():
            with modes_kept(model), buffers_kept(model), torch.random.fork_rng(devices=[]):
                model.train()
                answers = [model(images)]  # while training it may answer otherwise
            with evaluating(model):
                deepest.clear()
                answers.append(model(images))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"model {name!r} does not take images of {height}x{width} ({reason})") from error
    finally:
        for hook in hooks:
            hook.remove()
    for logits in answers:
        if not isinstance(logits, torch.Tensor) or logits.shape != (2, num_classes):
            found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise UsageError(f"model {name!r} gives {found} for 2 images; expected logits, (2, {num_classes})")
    return tuple(deepest[size] for size in sorted(deepest, reverse=True))


def gives_maps(output: torch.Tensor, image_shape: tuple[int, ...]) -> bool:
    """Whether this is (N, C, h, w), by h and w being in proportion to the image's: some networks give (N, h, w, C)."""
    (height, width), shape = image_shape[:2], output.shape
    return output.ndim == 4 and abs(shape[2] * width - shape[3] * height) <= max(height, width)


def _imported(name: str) -> Any:
    module_name, _, function_name = name.partition(":")
    try:
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # last: nothing of it takes the place of an installed module
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # the module may do anything when it is imported
        raise UsageError(
            f"model is {name!r}, which cannot be imported ({type(error).__name__}: {' '.join(str(error).split())}); "
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
            f"model {name!r} cannot be made ({type(error).__name__}: {' '.join(str(error).split())}); "
            "expected a function that takes num_classes and returns a torch.nn.Module"
        ) from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"model {name!r} returned {type(model).__name__}; expected a torch.nn.Module")
    return model


def count_parameters(model: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
