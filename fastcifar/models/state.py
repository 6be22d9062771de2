"""Contexts that restore a network afterwards: modes, buffers, `requires_grad`, compiled modules; or the random
generators."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the context; the mode of each module is restored afterwards."""
    with modes_kept(model):
        model.eval()
        yield


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """The training or evaluation mode of each module is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """The buffers of the network, and their values, are restored afterwards."""
    # a network may replace its buffers, except a scripted one, whose dictionary is read-only
    saved = [(m, dict(m._buffers)) for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, buffers in saved:
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)


@contextmanager
def parameters_frozen(model: nn.Module) -> Iterator[None]:
    """Within the context, no parameter requires a gradient."""
    trained = [param for param in model.parameters() if param.requires_grad]
    for param in trained:
        param.requires_grad_(False)
    try:
        yield
    finally:
        for param in trained:
            param.requires_grad_()


@contextmanager
def generators_kept(devices: Iterable[torch.device]) -> Iterator[None]:
    """The generators of Python, NumPy and torch, on the CPU and those of `devices` that are CUDA, are restored
    afterwards."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device for device in set(devices) if device.type == "cuda"]):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@contextmanager
def following(model: nn.Module, images: torch.Tensor) -> Iterator[torch.Tensor]:
    """Within the context, only what the network computes from these images, a float32 copy of `images`, requires a
    gradient; weights that a module returns, as parametrizations do, do not."""
    autocast = torch.autocast(images.device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), autocast, parameters_frozen(model), uncompiled():
        # cloned: a network may modify its input in place, which a leaf does not allow
        yield images.detach().to(torch.float32, copy=True).requires_grad_().clone()


def uncompiled() -> AbstractContextManager[Any]:
    """Within the context, compiled modules run eagerly, with their hooks."""
    if "torch._dynamo" not in sys.modules:  # importing it takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
