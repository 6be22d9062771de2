"""Class activation maps of transformers: their tokens are maps, found in a pass through the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastcifar.config import CAM_METHODS, ModelConfig
from fastcifar.errors import UsageError
from fastcifar.explain import Activations
from fastcifar.models import make_model, stages_of
from tests.test_cam import spread

LABELS = torch.tensor([0, 3, 6])


class ToTokens(nn.Module):
    """(N, C, h, w) -> (N, extra + h * w, C)."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return torch.cat([tokens.new_ones(len(x), self.extra, x.shape[1]), tokens], dim=1)


class FromTokens(nn.Module):
    def __init__(self, extra: int, height: int, width: int) -> None:
        super().__init__()
        self.extra, self.size = extra, (height, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.extra :].transpose(1, 2).unflatten(2, self.size)


class Permute(nn.Module):
    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(self.axes)


def images(height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(1))


def convolutional(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, 12, 4, 4), nn.Conv2d(12, 7, 3, padding=1)
    return nn.Sequential(first, *between, nn.GELU(), last, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("method", CAM_METHODS)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
@pytest.mark.parametrize("extra", [0, 1, 5])
def test_tokens_give_the_maps_of_the_feature_map_that_they_hold(
    method: str, height: int, width: int, extra: int
) -> None:
    model = convolutional(ToTokens(extra), FromTokens(extra, height // 4, width // 4))
    found = Activations(model, images(height, width), ["0", "1"])
    assert found.sizes == ((height // 4, width // 4),) * 2
    maps = found.maps(LABELS, [method])[method].maps
    assert maps[:, 0].amax() > 0
    torch.testing.assert_close(maps[:, 1], maps[:, 0])


@pytest.mark.parametrize("method", CAM_METHODS)
def test_maps_with_channels_last_give_the_same(method: str) -> None:
    found = Activations(convolutional(Permute(0, 2, 3, 1), Permute(0, 3, 1, 2)), images(), ["0", "1"])
    maps = found.maps(LABELS, [method])[method].maps
    torch.testing.assert_close(maps[:, 1], maps[:, 0])


@pytest.mark.parametrize("channels", [6, 7, 8, 9])
@pytest.mark.parametrize("is_mixed", [True, False])
def test_maps_may_have_as_many_channels_as_columns(channels: int, is_mixed: bool) -> None:
    torch.manual_seed(0)
    norm = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels)) if is_mixed else nn.Identity()
    between = Permute(0, 2, 3, 1), norm, Permute(0, 3, 1, 2), nn.Conv2d(channels, channels, 3, padding=1)
    ends = nn.Conv2d(channels, 7, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(nn.Conv2d(3, channels, 4, 4), *between, nn.GELU(), *ends)
    found = Activations(model, images(), ["1", "2", "3", "4"])
    assert found.sizes == ((8, 8),) * 4
    maps = found.maps(LABELS, ["hirescam"])["hirescam"].maps
    torch.testing.assert_close(maps[:, 1], maps[:, 2])
    if not is_mixed:
        torch.testing.assert_close(maps[:, 0], maps[:, 2])


def test_merged_patches_are_a_grid_of_half_the_size() -> None:
    class Merge(ToTokens):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(nn.functional.avg_pool2d(x, 2, ceil_mode=True))

    found = Activations(convolutional(Merge(1), FromTokens(1, 3, 5)), images(24, 40), ["1"])
    assert found.sizes == ((3, 5),)


class Attention(nn.Module):
    """Each token depends on all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.softmax(x @ x.transpose(1, 2), dim=2) @ x


class MergeTokens(nn.Module):
    """(N, 64, C) -> (N, 16, C), the patches of 2x2 into one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(x.transpose(1, 2).unflatten(2, (8, 8)), 2).flatten(2).transpose(1, 2)


def test_tokens_keep_their_grid_through_attention_and_merge_into_half_of_it() -> None:
    between = ToTokens(0), Attention(), MergeTokens(), Attention(), FromTokens(0, 4, 4)
    found = Activations(convolutional(*between), images(), [str(i) for i in range(1, 6)])
    assert found.sizes == ((8, 8), (8, 8), (4, 4), (4, 4), (4, 4))
    maps = found.maps(LABELS, ["hirescam"])["hirescam"].maps
    torch.testing.assert_close(maps[:, 3], maps[:, 4])


class Pooled(nn.Module):
    def __init__(self, pool: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(x)


def from_all(num_tokens: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """As queries that attend to all patches."""
    return lambda x: x.flatten(2).mean(dim=2)[:, None].expand(-1, num_tokens, -1)


class PooledAttention(nn.Module):
    """Attention to 16 tokens, added to the maps pooled to 4x4, as in MViT."""

    def __init__(self) -> None:
        super().__init__()
        self.shortcut, self.attention = nn.AvgPool2d(2), Pooled(from_all(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.shortcut(x)
        return self.attention(x) + shortcut.flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


def test_tokens_of_another_branch_do_not_hide_the_patches() -> None:
    model = convolutional(PooledAttention(), FromTokens(0, 4, 4))
    assert Activations(model, images(), ["1"]).sizes == ((4, 4),)
    with pytest.raises(UsageError, match="layer '1.attention' returns a tensor of shape"):
        Activations(model, images(), ["1.attention"])


def behind(x: torch.Tensor) -> torch.Tensor:
    """The class token behind the patches."""
    return ToTokens(1)(x).roll(-1, dims=1)


@pytest.mark.parametrize(
    ("num_tokens", "pool"),
    [
        *((num, from_all(num)) for num in (3, 10, 16, 21, 64, 65, 70, 200)),
        (65, behind),
        (64, lambda x: x.transpose(2, 3).flatten(2).transpose(1, 2)),  # column by column
        (8, lambda x: x.mean(dim=3).transpose(1, 2)),  # one for each row
    ],
)
def test_tokens_that_are_no_grid_of_patches_are_refused(
    num_tokens: int, pool: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 7, 4, 4), Pooled(pool), Pooled(lambda x: x.mean(dim=1)))
    message = rf"layer '1' returns a tensor of shape \(3, {num_tokens}, 7\), float32; expected maps"
    with pytest.raises(UsageError, match=message):
        Activations(model, images(), ["1"])
    assert Activations(model, images()).layers == ("0",)


class Encoder(nn.Module):
    """Its first module mixes the tokens: attention, before a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.encoder(ToTokens(1)(self.patches(x)))
        return self.head(tokens[:, 0])  # type: ignore[no-any-return]


def test_a_transformer_of_torch_has_tokens_from_its_first_attention_on() -> None:
    torch.manual_seed(0)
    assert Activations(Encoder(), images(), ["encoder.norm1", "encoder"]).sizes == ((4, 4), (4, 4))


def vit(num_classes: int = 7) -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=num_classes)


def swin(num_classes: int = 7) -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 12, [2, 2], [2, 2], [4, 4], num_classes=num_classes)


def timm_vit(num_classes: int = 7) -> nn.Module:
    timm = pytest.importorskip("timm")
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "reg_tokens": 4}
    model: nn.Module = timm.models.vision_transformer.VisionTransformer(num_classes=num_classes, **options)
    return model


def timm_swin(num_classes: int = 7) -> nn.Module:
    timm = pytest.importorskip("timm")
    options = {"img_size": 32, "patch_size": 4, "embed_dim": 12, "depths": (2, 2), "num_heads": (2, 2)}
    model: nn.Module = timm.models.swin_transformer.SwinTransformer(num_classes=num_classes, window_size=4, **options)
    return model


@pytest.mark.parametrize(
    ("build", "stages"),
    [
        (vit, {"encoder.layers.encoder_layer_1.ln_1": (4, 4)}),
        (swin, {"features.1": (8, 8), "permute": (4, 4)}),
        (timm_vit, {"blocks.1.norm1": (4, 4)}),
        (timm_swin, {"layers.0": (8, 8), "norm": (4, 4)}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_default_layers_are_the_last_that_the_prediction_depends_on(
    build: Callable[[], nn.Module], stages: dict[str, tuple[int, int]]
) -> None:
    torch.manual_seed(0)
    model = make_model(ModelConfig(name=f"{__name__}:{build.__name__}"), 7)
    assert stages_of(model) == tuple(stages)
    for found in (Activations(model, images()), Activations(build(), images())):  # with stages, and a plain module
        assert dict(zip(found.layers, found.sizes, strict=True)) == stages
    head = next(module for name, module in reversed(list(model.named_modules())) if isinstance(module, nn.Linear))
    nn.init.normal_(head.weight)  # that of torchvision is 0
    maps = Activations(model, images()).maps(LABELS, ["gradcam"])["gradcam"]
    assert maps.maps.shape == (3, len(stages), 32, 32)
    assert maps.has_evidence.any()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "layer", "extra"),
    [
        (vit, "encoder.layers.encoder_layer_1.ln_1", 1),
        (timm_vit, "blocks.1.norm1", 5),
        (swin, "features.1", None),
        (swin, "permute", None),
        (timm_swin, "layers.0", None),
        (timm_swin, "norm", None),
    ],
)
@pytest.mark.parametrize(("method", "theirs"), [("gradcam", "GradCAM"), ("hirescam", "HiResCAM")])
def test_maps_are_those_of_pytorch_grad_cam_with_its_reshape_transform(
    build: Callable[[], nn.Module], layer: str, extra: int | None, method: str, theirs: str
) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def reshape(output: Any) -> Any:
        if extra is not None:
            output = output[:, extra:].unflatten(1, (4, 4))
        return output if layer == "permute" else output.permute(0, 3, 1, 2)

    torch.manual_seed(0)
    model = build().eval()
    for module in model.modules():  # of torchvision, the head is 0
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
    ours = Activations(model, images(), [layer]).maps(LABELS, [method])[method].maps[:, 0].numpy()
    with getattr(peer, theirs)(model, [model.get_submodule(layer)], reshape_transform=reshape) as cam:
        expected = cam(images(), [ClassifierOutputTarget(int(label)) for label in LABELS])
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(spread(ours), expected, atol=1e-4)
