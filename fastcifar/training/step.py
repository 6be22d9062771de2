"""One step of training, for the loop, the range test and `fastcifar bench`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastcifar.config import TrainConfig
from fastcifar.errors import UsageError, describe
from fastcifar.training.device import autocast
from fastcifar.training.optimizer import decayed, load_optimizer


class Step:
    """Forward, backward and update, with what `config` adds to them: autocast, label smoothing, L1, clipping, EMA.

    model: what is called; `network` is the module whose weights are trained (the same, but for DDP and compile).
    amp: 'bf16', 'fp16' or 'off'.
    """

    def __init__(
        self, model: nn.Module, network: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, amp: str
    ) -> None:
        self.model, self.network, self.optimizer, self.config, self.amp = model, network, optimizer, config, amp
        params = [param for param in network.parameters() if param.requires_grad]
        self._params = params
        self._shrunk: list[torch.Tensor] = (
            [param for param in params if decayed(config, param)] if config.optimizer.l1 else []
        )
        self.scaler = torch.amp.GradScaler(params[0].device.type) if amp == "fp16" else None
        self.ema: AveragedModel | None = None
        if config.optimizer.ema:
            average = get_ema_multi_avg_fn(config.optimizer.ema)  # type: ignore[no-untyped-call]
            self.ema = AveragedModel(network, multi_avg_fn=average, use_buffers=True)

    @property
    def scored(self) -> nn.Module:
        """The network that is validated and kept: that of the averaged weights, where there are such."""
        return self.network if self.ema is None else self.ema.module

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 3, H, W) and (N,) -> the loss, () float32, without penalties, and the logits, (N, classes) float32."""
        config = self.config
        try:
            with autocast(images.device, self.amp):
                logits = self.model(images)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
            if not config.model.names_code or isinstance(error, torch.OutOfMemoryError):
                raise
            reason = describe(error, 300)
            raise UsageError(f"model {config.model.name!r} fails on images {tuple(images.shape)} ({reason})") from error
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, label_smoothing=config.optimizer.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        if self.scaler is None:
            loss.backward()  # type: ignore[no-untyped-call]
            self._change_gradients()
            self.optimizer.step()
        else:
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self.scaler.unscale_(self.optimizer)
            self._change_gradients()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        return loss.detach(), logits.detach()

    @torch.no_grad()
    def _change_gradients(self) -> None:
        if self._shrunk:
            grads = [param.grad for param in self._shrunk if param.grad is not None]
            torch._foreach_add_(
                grads,
                torch._foreach_sign([param for param in self._shrunk if param.grad is not None]),
                alpha=self.config.optimizer.l1,
            )  # d |w| / d w
        if self.config.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(self._params, self.config.optimizer.clip_norm)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, but for the network's own weights."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint. Raises KeyError, ValueError or RuntimeError if it does not fit."""
        load_optimizer(self.optimizer, state["optimizer"])
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])


def resized(images: torch.Tensor, side: int) -> torch.Tensor:
    """(N, C, H, W) -> (N, C, side, side), channels_last: bilinear, smoothed where it shrinks."""
    if images.shape[-2:] == (side, side):
        return images
    small = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    return small.contiguous(memory_format=torch.channels_last)
