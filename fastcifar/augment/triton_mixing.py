"""MixUp and CutMix on a GPU in one launch per batch, by Triton; see `mixing`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastcifar.augment.kernel import KernelConfig
from fastcifar.augment.mixing import TorchMixer
from fastcifar.augment.triton_kernel import BLOCK, require_launch, within


@triton.jit
def _mix(
    images,  # (B, H * W * 3) float32, in the order of `out`
    partners,  # and the others of `MixPlan`
    weights,
    boxes,
    out,
    H: tl.constexpr,
    W: tl.constexpr,
    PLANAR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    number = tl.program_id(0).to(tl.int64)
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wanted = element < H * W * 3
    pixel = element % (H * W) if PLANAR else element // 3
    own = tl.load(images + number * (H * W * 3) + element, mask=wanted, other=0)
    other = tl.load(images + tl.load(partners + number) * (H * W * 3) + element, mask=wanted, other=0)
    blend = own * tl.load(weights + number * 2) + other * tl.load(weights + number * 2 + 1)
    box = boxes + number * 4
    height = tl.load(box + 2)
    in_y, in_x = pixel // W - tl.load(box), pixel % W - tl.load(box + 1)
    in_box = within(in_y, height) & within(in_x, tl.load(box + 3))
    mixed = tl.where(height > 0, tl.where(in_box, other, own), blend)
    tl.store(out + number * (H * W * 3) + element, mixed, mask=wanted)


class TritonMixer(TorchMixer):
    """Mixes batches on a GPU, one launch each: see `mixing.Mixer`."""

    def __init__(self, config: KernelConfig) -> None:
        """Raises ImportError if Triton cannot be used on the device."""
        require_launch(config.device)
        super().__init__(config)

    def _mix(
        self, images: torch.Tensor, partners: torch.Tensor, weights: torch.Tensor, boxes: torch.Tensor
    ) -> torch.Tensor:
        height, width, _ = self._config.image_shape
        out = torch.empty_like(images)
        grid = (len(images), triton.cdiv(height * width * 3, BLOCK))
        with torch.cuda.device_of(out):  # Triton launches on the current device
            _mix[grid](
                images, partners, weights, boxes, out, H=height, W=width, PLANAR=not self._config.channels_last,
                BLOCK=BLOCK, enable_fp_fusion=False,
            )  # fmt: skip
        return out
