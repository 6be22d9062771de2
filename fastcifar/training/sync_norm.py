"""Batch normalisation over the images of all processes: that of torch on CUDA; ours on a CPU, where torch has none."""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

log = logging.getLogger(__name__)


class _Sum(torch.autograd.Function):
    """All-reduce of values in forward, of gradients in backward."""

    @staticmethod
    def forward(context: object, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(context: object, gradient: torch.Tensor) -> torch.Tensor:
        return _Sum.forward(context, gradient)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with statistics over the batches of all processes, in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        values = x.float()
        count = values.numel() // values.shape[1]
        sums = torch.cat([values.sum((0, 2, 3)), values.new_tensor([float(count)])])
        sums = _Sum.apply(sums)
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().sum((0, 2, 3))) / total
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.detach(), momentum)
            self.running_var.lerp_(variance.detach() * (total / (total - 1)), momentum)
        normed = centred * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.affine:
            normed = normed * self.weight[:, None, None] + self.bias[:, None, None]
        return normed.to(x.dtype)


def convert_sync_batchnorm(network: nn.Module, device: torch.device) -> nn.Module:
    """Replace the batch normalisations in `network`, in place; parameters and buffers stay. Subclasses that compute
    something else as well are not replaced: in timm they have an activation too."""
    kind, replacement = (_BatchNorm, nn.SyncBatchNorm) if device.type == "cuda" else (nn.BatchNorm2d, SyncBatchNorm2d)
    for name, module in network.named_modules():
        if isinstance(module, kind) and type(module).forward is _BatchNorm.forward:
            module.__class__ = replacement
            setattr(module, "process_group", None)  # noqa: B010 (mypy expects a tensor or a module)
        elif isinstance(module, _BatchNorm) and type(module) is not replacement:
            log.warning("--sync-bn: %s (%s) keeps its own statistics", name, type(module).__name__)
    return network
