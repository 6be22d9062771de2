"""Optimisers: torch's own, and Muon with one of torch's for what is no filter."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastcifar.config import TrainConfig
from fastcifar.training.muon import Muon

log = logging.getLogger(__name__)
Group = dict[str, Any]
REST_MOMENTUM = 0.85  # airbench's
MATRICES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    nn.Conv2d: ("weight",),
    nn.MultiheadAttention: ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
}
"""Layers that multiply by a matrix, and what they call it."""


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of `config`, whose rate is a number by now."""
    lr = config.peak_lr
    if config.optimizer.name == "muon":
        return _muon(model, config, lr)
    groups = _groups(_trained(model), config)
    if config.optimizer.name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(config.optimizer.momentum, 0.999), fused=_can_fuse(model))
    nesterov = config.optimizer.nesterov and config.optimizer.momentum > 0
    return torch.optim.SGD(groups, lr=lr, momentum=config.optimizer.momentum, nesterov=nesterov, fused=_can_fuse(model))


def decayed(config: TrainConfig, param: torch.Tensor) -> bool:
    """Whether weight decay and L1 act on this parameter: if not on all, on filters and matrices, not on a scale or a
    token, whose shape may be (C, 1, 1) or (1, 1, C)."""
    return config.optimizer.decay_all or sum(size > 1 for size in param.shape) > 1


def at_rate(config: TrainConfig, lr: float) -> TrainConfig:
    """The settings with this rate; beside Muon the rates of the rest change in the same ratio."""
    if config.optimizer.name != "muon":
        return config.with_settings(lr=lr)
    ratio = lr / config.peak_lr
    bias_lr = None if config.optimizer.bias_lr is None else config.optimizer.bias_lr * ratio
    return config.with_settings(lr=lr, aux_lr=config.optimizer.aux_lr * ratio, bias_lr=bias_lr)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [param for param in model.parameters() if param.requires_grad]


def _groups(params: list[nn.Parameter], config: TrainConfig) -> list[Group]:
    with_decay = [param for param in params if decayed(config, param)]
    without = [param for param in params if not decayed(config, param)]
    groups = [
        {"params": with_decay, "weight_decay": config.optimizer.weight_decay},
        {"params": without, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _can_fuse(model: nn.Module) -> bool:
    return all(param.is_floating_point() and param.device.type in ("cpu", "cuda") for param in model.parameters())


def muon_names(model: nn.Module) -> list[str]:
    """The parameters that Muon updates: the weights (2-D, 4-D) of linear, attention and convolution layers, but for the
    last of those. Not of these: tokens, position embeddings and biases, LayerScale, embeddings, parametrizations."""
    layers = [module for module in model.modules() if isinstance(module, tuple(MATRICES))]
    head = set(layers[-1].parameters()) if layers else set()
    weights = {
        param
        for module in layers
        for name, param in module.named_parameters(recurse=False)
        if any(isinstance(module, kind) and name in MATRICES[kind] for kind in MATRICES) and param.ndim in (2, 4)
    }
    return [name for name, param in model.named_parameters() if param in weights - head]


def _muon(model: nn.Module, config: TrainConfig, lr: float) -> torch.optim.Optimizer:
    names = set(muon_names(model))
    params = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    hidden = [param for name, param in params if name in names]
    rest = [param for name, param in params if name not in names]
    log.info("muon updates %d filter banks and matrices; %s the rest", len(hidden), config.optimizer.aux_optimizer)
    if not hidden:
        log.warning(
            "muon finds no linear or convolution layer to update in %s, but for the last (scripted and traced modules "
            "hide theirs): %s trains all of it, at --rest-lr %g",
            config.model.name,
            config.optimizer.aux_optimizer,
            config.optimizer.aux_lr,
        )
    parts: list[torch.optim.Optimizer] = []
    if hidden:
        nesterov = config.optimizer.nesterov and config.optimizer.momentum > 0
        muon = Muon(
            hidden,
            lr,
            momentum=config.optimizer.momentum,
            nesterov=nesterov,
            weight_decay=0.0 if config.optimizer.unit_filters else config.optimizer.weight_decay,
            num_steps=config.optimizer.ns_steps,
            normalise=config.optimizer.unit_filters,
        )
        parts.append(muon)
    if rest:
        parts.append(_rest(rest, config, _can_fuse(model)))
    return Several(parts)


def _rest(params: list[nn.Parameter], config: TrainConfig, fused: bool) -> torch.optim.Optimizer:
    """For what Muon does not update. The penalty on each is weighted so that rest_lr * weight_decay counts,
    whatever its own rate is."""
    groups: list[Group] = []
    for group in _groups(params, config):
        for is_bias in (False, True):
            own = [param for param in group["params"] if (param.ndim < 2) == is_bias]
            lr = (
                config.optimizer.bias_lr
                if is_bias and config.optimizer.bias_lr is not None
                else config.optimizer.aux_lr
            )
            decay = group["weight_decay"] * config.optimizer.aux_lr / lr
            groups.append({"params": own, "lr": lr, "weight_decay": decay})
    groups = [group for group in groups if group["params"]]
    if config.optimizer.aux_optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=REST_MOMENTUM, nesterov=True, fused=fused)
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=fused)


class Several(torch.optim.Optimizer):
    """Optimisers that step together and share one schedule: `param_groups` are those of all."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([param for part in parts for group in part.param_groups for param in group["params"]], {})
        self._link()

    def _link(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """A step of each."""
        for part in self.parts:
            part.step(closure)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        for part, stored in zip(self.parts, state["parts"], strict=True):
            load_optimizer(part, stored)
        self._link()


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give the optimizer the state of a checkpoint. Raises ValueError, KeyError or TypeError if it is not one of these
    settings: torch looks at no shape, and its fused kernels write wherever a tensor that is too small ends."""
    if isinstance(optimizer, Several):
        optimizer.load_state_dict(state)  # part by part, each by this function
        return
    groups = optimizer.state_dict()["param_groups"]
    for old, new in zip(state["param_groups"], groups, strict=True):
        if old.keys() != new.keys() or any(_kind(old[key]) is not _kind(new[key]) for key in new):
            raise ValueError("its groups have other settings")
        if not all(math.isfinite(value) for value in old.values() if isinstance(value, (int, float))):
            raise ValueError("its groups have settings that are not finite")
    optimizer.load_state_dict(state)
    for param, values in optimizer.state.items():
        for name, value in values.items():
            if value is None:
                continue
            if not isinstance(value, torch.Tensor) or value.shape != (() if name == "step" else param.shape):
                raise ValueError(f"its {name} has another shape than the weights")
            if name != "step":  # and the layout of the weights, which those kernels take for granted
                values[name] = torch.empty_like(param).copy_(value)


def _kind(value: object) -> type:
    """Numbers are of one kind, and flags, which another device may leave open."""
    if value is None or isinstance(value, bool):
        return bool
    return float if isinstance(value, (int, float)) else type(value)
