"""One training step, for the trainer, the range test and `fastcifar bench`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fastcifar.config import TrainConfig
from fastcifar.errors import UsageError, one_line
from fastcifar.loaders import Loader, Mix
from fastcifar.models import narrow_conv, winograd
from fastcifar.system.cpus import has_cpu_flag
from fastcifar.training.device import autocast, choose_amp
from fastcifar.training.distributed import Distributed
from fastcifar.training.loss import class_weights_of, cross_entropy, sum_of_weights
from fastcifar.training.optimizer import has_decay, load_optimizer_state, make_optimizer
from fastcifar.training.sync_norm import convert_sync_batchnorm


class TrainStep:
    """Forward, backward and update, with autocast, label smoothing, L1, clipping and EMA as `config` says.

    model: `network`, the module with the weights, or what DDP and torch.compile made of it.
    amp: 'bf16', 'fp16' or 'off'.
    class_weights: (classes,) float32 on the device of the network, for the loss; see `class_weights_of`.
    distributed: the processes that share each batch; one by default.
    """

    def __init__(
        self,
        model: nn.Module,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        amp: str,
        class_weights: torch.Tensor | None = None,
        distributed: Distributed | None = None,
    ) -> None:
        self.model, self.network, self.optimizer, self.amp = model, network, optimizer, amp
        self._class_weights, self._distributed = class_weights, distributed or Distributed()
        self._model_config, self._settings = config.model, config.optimizer
        self._params = [param for param in network.parameters() if param.requires_grad]
        # the converted layers return channels_last
        if self._params[0].device.type == "cpu" and not getattr(network, "needs_contiguous", False):
            if amp == "off":
                winograd.convert_convolutions(network, self._distributed.world_size)
            elif amp == "bf16" and has_cpu_flag("amx_bf16"):
                narrow_conv.convert_convolutions(network)
        self._l1_params: list[torch.Tensor] = []
        if self._settings.l1:
            self._l1_params += [param for param in self._params if has_decay(self._settings, param)]
        self.scaler = torch.amp.GradScaler(self._params[0].device.type, enabled=amp == "fp16")
        self.ema: AveragedModel | None = None
        if self._settings.ema:
            self.ema = AveragedModel(network, multi_avg_fn=_average_fn(self._settings.ema), use_buffers=True)

    @property
    def eval_network(self) -> nn.Module:
        """The network to evaluate and keep: with the averaged weights, if there is an EMA."""
        return self.network if self.ema is None else self.ema.module

    @property
    def lr(self) -> float:
        """The current learning rate, of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, mix: Mix | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (N, 3, H, W), labels (N,), and the second labels of mixed images -> loss () float32, without
        penalties; logits (N, classes) float32. The loss of the whole batch is the mean of those of the processes."""
        try:
            with autocast(images.device, self.amp):
                logits = self.model(images)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
            if not self._model_config.names_code or isinstance(error, torch.OutOfMemoryError):
                raise
            reason = f"{type(error).__name__}: {one_line(error, 300)}"
            raise UsageError(
                f"model {self._model_config.name!r} fails on images {tuple(images.shape)} ({reason})"
            ) from error
        logits = logits.float()
        loss = cross_entropy(
            logits,
            labels,
            mix,
            class_weights=self._class_weights,
            label_smoothing=self._settings.label_smoothing,
        )
        if self._class_weights is not None and self._distributed.world_size > 1:  # divide by the sum of the whole batch
            weight = sum_of_weights(labels, mix, self._class_weights)
            loss = loss * (weight / self._distributed.mean(weight))
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        self._regularise_gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        return loss.detach(), logits.detach()

    @torch.no_grad()
    def _regularise_gradients(self) -> None:
        if self._l1_params:
            params = [param for param in self._l1_params if param.grad is not None]
            grads = [param.grad for param in params if param.grad is not None]
            torch._foreach_add_(grads, torch._foreach_sign(params), alpha=self._settings.l1)  # d |w| / d w
        if self._settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(self._params, self._settings.clip_norm)

    def state_dict(self) -> dict[str, Any]:
        """Part of the checkpoint, without the weights of the network."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from a checkpoint. Raises KeyError, ValueError or RuntimeError if it does not fit."""
        load_optimizer_state(self.optimizer, state["optimizer"])
        if state["scaler"]:  # not of a run without fp16
            self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])


def _average_fn(decay: float) -> Callable[..., None]:
    """That of torch, for tensors of one type; but integers, e.g. the indices in a Swin transformer, are copied: torch
    truncates their average, which may be one too small."""
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def update(averages: list[torch.Tensor], values: list[torch.Tensor], num_averaged: Any) -> None:
        if averages[0].is_floating_point() or averages[0].is_complex():
            average(averages, values, num_averaged)
        else:
            torch._foreach_copy_(averages, values)

    return update


def make_train_step(
    network: nn.Module, config: TrainConfig, loader: Loader, device: torch.device, distributed: Distributed
) -> TrainStep:
    """The step of a run on the images of `loader`, with an optimizer of its own, compiled and distributed as `config`
    says. Several processes must call this together."""
    if config.runtime.sync_bn and distributed.world_size > 1:
        network = convert_sync_batchnorm(network, device)
    optimizer = make_optimizer(network, config)
    model: Any = distributed.wrap(network, device, config.runtime.deterministic)
    if config.runtime.compile:
        model = torch.compile(model)
    weights = class_weights_of(config.optimizer.class_weights, loader)
    amp = choose_amp(device, config.runtime.amp)
    return TrainStep(model, network, optimizer, config, amp, weights, distributed)


def resize(images: torch.Tensor, side: int) -> torch.Tensor:
    """(N, C, H, W) -> (N, C, side, side), channels_last: bilinear with antialiasing."""
    if images.shape[-2:] == (side, side):
        return images
    resized = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    return resized.contiguous(memory_format=torch.channels_last)
