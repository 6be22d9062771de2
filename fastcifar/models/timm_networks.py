"""Networks of timm (github.com/huggingface/pytorch-image-models), an extra: by name with random weights, or downloaded
from the Hugging Face hub."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn

from fastcifar.config import HUB, TIMM, ModelConfig
from fastcifar.errors import FastcifarError, MissingExtraError, UsageError, describe, one_line
from fastcifar.system.memory import free_memory
from fastcifar.system.quiet import quiet_package


def from_timm(config: ModelConfig, image_shape: tuple[int, int, int], pretrained: bool) -> Callable[..., nn.Module]:
    """The function that builds timm's network, given `num_classes=`, for images of this shape (H, W, 3).

    pretrained: with the weights of the hub, if `config` names a network there. Raises MissingExtraError if timm is
    missing, UsageError if it has no such network.
    """
    with _quiet():
        try:
            import timm
        except ImportError as error:
            raise MissingExtraError(f"model {config.name!r}", "timm", one_line(error)) from error
        if not config.is_on_hub:
            _require_known(timm, config.name.removeprefix(TIMM))
    return partial(_create, timm.create_model, config, image_shape, pretrained and config.is_on_hub)


def _require_known(timm: Any, name: str) -> None:
    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture) and not tag:
        return
    if timm.is_model(architecture):
        raise UsageError(
            f"model is '{TIMM}{name}', pretrained weights, which are not downloaded for that name; expected "
            f"'{TIMM}{architecture}' (random weights), or '{HUB}timm/{name}'"
        )
    names = timm.list_models()
    near = " or ".join(repr(TIMM + each) for each in difflib.get_close_matches(architecture, names, 3))
    hint = f"; did you mean {near}?" if near else "; timm.list_models() lists them"
    raise UsageError(f"model is '{TIMM}{name}'; expected one of the {len(names):,} networks of timm{hint}")


def _create(
    create_model: Callable[..., nn.Module],
    config: ModelConfig,
    image_shape: tuple[int, int, int],
    pretrained: bool,
    num_classes: int,
) -> nn.Module:
    """The network; one of a fixed image size, e.g. a vision transformer, is made for `image_shape`."""
    name, size = config.name.removeprefix(TIMM), image_shape[:2]
    options: dict[str, Any] = {"num_classes": num_classes, "img_size": size}
    with _quiet():
        try:
            try:
                blank = _without_memory(create_model, name, options)
            except TypeError as error:
                if "img_size" not in str(error):
                    raise
                del options["img_size"]  # for a network that takes any size
                blank = _without_memory(create_model, name, options)
            _require_memory(blank, config.name)
            return create_model(name, pretrained=pretrained, **options)
        except FastcifarError:
            raise
        except Exception as error:  # of timm, or of a download
            raise UsageError(
                f"timm cannot build model {config.name!r} for images of {size[0]}x{size[1]} ({describe(error, 300)}); "
                "choose another"
            ) from error


def _without_memory(create_model: Callable[..., nn.Module], name: str, options: dict[str, Any]) -> nn.Module:
    """The network without values of its weights; the random generators do not advance."""
    with torch.device("meta"):
        return create_model(name, pretrained=False, **options)


def _require_memory(model: nn.Module, name: str) -> None:
    """The largest have 7 billion parameters, and a file may name them."""
    required, free = sum(param.nbytes for param in model.parameters()), free_memory()
    if required > free // 2:
        raise UsageError(
            f"model {name!r} has weights of {required / 2**30:.1f} GiB; expected at most half of the free memory, "
            f"{free / 2**31:.1f} GiB"
        )


def _quiet() -> AbstractContextManager[None]:
    """No warnings, and none in the log of timm: they concern its own defaults and deprecated names."""
    return quiet_package("timm", logging.ERROR)
