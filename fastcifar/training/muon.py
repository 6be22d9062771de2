"""Muon (K. Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024), for convolution filters too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan: steepest at zero; singular values end in about 0.7..1.2


def orthogonalise(matrix: torch.Tensor, num_steps: int) -> torch.Tensor:
    """(M, N) -> (M, N) bfloat16: near the closest matrix with singular values of 1, by Newton-Schulz steps."""
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16()
    if matrix.shape[0] > matrix.shape[1]:
        x = x.T
    x = x / x.norm().clamp(min=1e-7)  # so that no singular value exceeds 1
    for _ in range(num_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """SGD with momentum that orthogonalises the update of each matrix, or filter bank (O, I, h, w) as (O, I h w).

    On matrices it equals `torch.optim.Muon`. lr: scaled by sqrt(max(1, rows / columns)). weight_decay: decoupled.
    normalise: scale each bank to the norm sqrt(O) before a step, as airbench does, instead of weight decay; for
    networks that normalise the output of all filters.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        num_steps: int = 5,
        normalise: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "num_steps": num_steps,
            "normalise": normalise,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for param in group["params"]:
                if param.ndim not in (2, 4):
                    raise ValueError(f"Muon is for matrices and filters; got a parameter of shape {tuple(param.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step along the orthogonalised momentum of each parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad, group)

    def _update(self, param: torch.Tensor, grad: torch.Tensor, group: dict[str, Any]) -> None:
        state, momentum = self.state[param], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        average = state["momentum_buffer"].lerp_(grad, 1 - momentum)
        direction = grad.lerp(average, momentum) if group["nesterov"] else average
        num_rows = len(param)
        update = orthogonalise(direction.reshape(num_rows, -1), group["num_steps"])  # (O, I, h, w) -> (O, I h w)
        rate = group["lr"] * math.sqrt(max(1.0, num_rows / update.shape[1]))
        if group["normalise"]:
            param.mul_(math.sqrt(num_rows) / param.norm().clamp(min=1e-7))
        param.mul_(1 - group["lr"] * group["weight_decay"])
        param.add_(update.view(param.shape).to(param.dtype), alpha=-rate)
