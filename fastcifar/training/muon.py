"""Muon (K. Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024), for convolution filters too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan: steepest at zero; singular values end in about 0.7..1.2


def orthogonalise(
    matrices: Sequence[torch.Tensor], num_steps: int, dtype: torch.dtype = torch.bfloat16
) -> list[torch.Tensor]:
    """(M, N) each -> (M, N) `dtype`: near the closest matrix with singular values of 1, by Newton-Schulz steps.
    Matrices of one shape, or its transpose, are computed together."""
    together: dict[tuple[int, ...], list[int]] = {}
    for index, matrix in enumerate(matrices):
        together.setdefault(tuple(sorted(matrix.shape)), []).append(index)
    result = list(matrices)
    for shape, indices in together.items():
        wide = [matrix if matrix.shape == shape else matrix.T for matrix in (matrices[index] for index in indices)]
        for index, x in zip(indices, _orthogonalise(torch.stack(wide).to(dtype), num_steps), strict=True):
            result[index] = x if x.shape == matrices[index].shape else x.T
    return result


def _orthogonalise(x: torch.Tensor, num_steps: int) -> torch.Tensor:
    """(B, M, N) with M <= N -> (B, M, N)."""
    a, b, c = COEFFICIENTS
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value exceeds 1
    for _ in range(num_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """(O, I, h, w) -> (O, h w I), without a copy if it is channels_last; a matrix as it is."""
    return weight if weight.ndim == 2 else weight.permute(0, 2, 3, 1).reshape(len(weight), -1)


def _as_weight(matrix: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    """The inverse, in the dtype of the parameter."""
    if param.ndim == 4:
        num_out, num_in, height, width = param.shape
        matrix = matrix.reshape(num_out, height, width, num_in).permute(0, 3, 1, 2)
    return matrix.to(param.dtype)


class Muon(torch.optim.Optimizer):
    """SGD with momentum that orthogonalises the update of each matrix, or filter bank (O, I, h, w) as (O, h w I).

    On matrices it equals `torch.optim.Muon`. lr: scaled by sqrt(max(1, rows / columns)). weight_decay: decoupled.
    normalise: scale each bank to the norm sqrt(O) before a step, as airbench does, instead of weight decay; for
    networks that normalise the output of all filters. dtype: in which updates are orthogonalised.
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
        dtype: torch.dtype = torch.bfloat16,
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
        self._dtype = dtype
        for group in self.param_groups:
            for param in group["params"]:
                if param.ndim not in (2, 4):
                    raise ValueError(f"Muon is for matrices and filters; got a parameter of shape {tuple(param.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step along the orthogonalised momentum of each parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                self._update(params, group)

    def _update(self, params: list[torch.Tensor], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        grads = [param.grad for param in params if param.grad is not None]
        for param in params:
            if "momentum_buffer" not in self.state[param]:
                self.state[param]["momentum_buffer"] = torch.zeros_like(param)
        averages = [self.state[param]["momentum_buffer"] for param in params]
        torch._foreach_lerp_(averages, grads, 1 - momentum)
        directions = torch._foreach_lerp(grads, averages, momentum) if group["nesterov"] else averages
        matrices = list(map(_as_matrix, directions))
        rates = [-lr * math.sqrt(max(1.0, len(matrix) / matrix.shape[1])) for matrix in matrices]
        updates = list(map(_as_weight, orthogonalise(matrices, group["num_steps"], self._dtype), params))
        if group["normalise"]:
            scales = torch._foreach_clamp_min(torch._foreach_norm(params), 1e-7)
            torch._foreach_reciprocal_(scales)
            torch._foreach_mul_(scales, [math.sqrt(len(param)) for param in params])
            torch._foreach_mul_(params, scales)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_mul_(updates, rates)
        torch._foreach_add_(params, updates)
