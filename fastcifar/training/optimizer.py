"""Optimizers: those of torch, and Muon with an auxiliary optimizer for parameters that are not filters or matrices."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastcifar.config import OptimizerConfig, TrainConfig
from fastcifar.models.layers import MATRIX_LAYERS, frozen_part
from fastcifar.training.checkpoint import has_structure
from fastcifar.training.device import has_fast_bf16
from fastcifar.training.muon import Muon

log = logging.getLogger(__name__)
Group = dict[str, Any]
AUX_MOMENTUM = 0.85  # as in airbench
MATRICES = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""The names of the matrices of `MATRIX_LAYERS`."""
RULES = ("amsgrad", "decoupled_weight_decay", "maximize", "nesterov")
"""What a group of torch says about the update itself: no checkpoint changes it."""


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of `config`; its `lr` must not be 'auto'."""
    settings, lr = config.optimizer, config.peak_lr
    if settings.name == "muon":
        return _make_muon(model, config)
    groups = _decay_groups([param for param in model.parameters() if param.requires_grad], settings)
    if settings.name in ("adam", "adamw"):
        adam = torch.optim.AdamW if settings.name == "adamw" else torch.optim.Adam
        return adam(groups, lr=lr, betas=(settings.momentum, 0.999), fused=_can_fuse(model))
    nesterov = settings.nesterov and settings.momentum > 0
    return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum, nesterov=nesterov, fused=_can_fuse(model))


def has_decay(settings: OptimizerConfig, param: torch.Tensor) -> bool:
    """Whether weight decay and L1 apply to this parameter. Without `decay_all` only to filters and matrices, not to a
    scale or a token, whose shape may be (C, 1, 1) or (1, 1, C)."""
    return settings.decay_all or sum(size > 1 for size in param.shape) > 1


def scale_lrs(config: TrainConfig, lr: float) -> TrainConfig:
    """The settings with this `lr`; for Muon, the other rates change in proportion."""
    settings = config.optimizer
    if settings.name != "muon":
        return config.with_settings(lr=lr)
    ratio = lr / config.peak_lr
    bias_lr = None if settings.bias_lr is None else settings.bias_lr * ratio
    return config.with_settings(lr=lr, aux_lr=settings.aux_lr * ratio, bias_lr=bias_lr)


def muon_parameter_names(model: nn.Module) -> list[str]:
    """The parameters that Muon updates: the weights (2-D, 4-D) of linear, attention and convolution layers, except the
    last of them. Not: tokens, embeddings, biases, LayerScale, parametrizations."""
    layers = [module for module in model.modules() if isinstance(module, MATRIX_LAYERS)]
    head = set(layers[-1].parameters()) if layers else set()
    weights = {
        param
        for module in layers
        for name, param in module.named_parameters(recurse=False)
        if name in MATRICES and param.ndim in (2, 4)
    }
    return [name for name, param in model.named_parameters() if param in weights - head]


def _decay_groups(params: list[nn.Parameter], settings: OptimizerConfig) -> list[Group]:
    groups = [
        {"params": [param for param in params if has_decay(settings, param)], "weight_decay": settings.weight_decay},
        {"params": [param for param in params if not has_decay(settings, param)], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _can_fuse(model: nn.Module) -> bool:
    return all(param.is_floating_point() and param.device.type in ("cpu", "cuda") for param in model.parameters())


def _make_muon(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    settings, names = config.optimizer, set(muon_parameter_names(model))
    params = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    matrices = [param for name, param in params if name in names]
    others = [param for name, param in params if name not in names]
    log.info("muon updates %d filter banks and matrices; %s the others", len(matrices), settings.aux_optimizer)
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        muon = Muon(
            matrices,
            config.peak_lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov and settings.momentum > 0,
            weight_decay=0.0 if settings.unit_filters else settings.weight_decay,
            num_steps=settings.ns_steps,
            normalise=settings.unit_filters,
            dtype=torch.bfloat16 if has_fast_bf16(matrices[0].device) else torch.float32,
        )
        optimizers.append(muon)
    elif frozen_part(model) is None:
        log.warning(
            "muon finds no linear or convolution layer to update in %s, except the last (scripted and traced modules "
            "hide theirs): %s trains all parameters, at --aux-lr %g",
            *(config.model.name, settings.aux_optimizer, settings.aux_lr),
        )
    if others:
        optimizers.append(_make_auxiliary(others, settings, _can_fuse(model)))
    return CombinedOptimizer(optimizers)


def _make_auxiliary(params: list[nn.Parameter], settings: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    """For the parameters that Muon does not update. Whatever the rate of a group, its decay per step is that of
    aux_lr * weight_decay."""
    groups: list[Group] = []
    for group in _decay_groups(params, settings):
        for is_bias in (False, True):
            subset = [param for param in group["params"] if (param.ndim < 2) == is_bias]
            lr = settings.bias_lr if is_bias and settings.bias_lr is not None else settings.aux_lr
            decay = group["weight_decay"] * settings.aux_lr / lr
            groups.append({"params": subset, "lr": lr, "weight_decay": decay})
    groups = [group for group in groups if group["params"]]
    if settings.aux_optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=AUX_MOMENTUM, nesterov=True, fused=fused)
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=fused)


class CombinedOptimizer(torch.optim.Optimizer):
    """Optimizers that step together and share one schedule: `param_groups` are those of all."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        super().__init__([param for group in groups for param in group["params"]], {})
        self.param_groups = groups

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step of each."""
        for optimizer in self.optimizers:
            optimizer.step(closure)

    def state_dict(self) -> dict[str, Any]:
        """Part of the checkpoint."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from a checkpoint."""
        for optimizer, own in zip(self.optimizers, state["optimizers"], strict=True):
            load_optimizer_state(optimizer, own)
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state from a checkpoint. Raises ValueError, KeyError or TypeError if it is of other settings or weights:
    torch checks no shape, and its fused kernels would write beyond the end of a tensor that is too small."""
    if isinstance(optimizer, CombinedOptimizer):
        optimizer.load_state_dict(state)
        return
    groups = optimizer.state_dict()["param_groups"]
    same_rules = has_structure(state["param_groups"], groups) and all(
        saved.get(rule) == group.get(rule)
        for saved, group in zip(state["param_groups"], groups, strict=True)
        for rule in RULES
    )
    if not same_rules:
        raise ValueError("its groups have other settings")
    optimizer.load_state_dict(state)
    for param, values in optimizer.state.items():
        for name, value in values.items():
            if value is None:
                continue
            if not isinstance(value, torch.Tensor) or value.shape != (() if name == "step" else param.shape):
                raise ValueError(f"its {name} has another shape than the weights")
            if name != "step":  # in the memory layout of the weights, which the fused kernels assume
                values[name] = torch.empty_like(param).copy_(value)
