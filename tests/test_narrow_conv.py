"""Convolutions on narrow feature maps: the values and gradients of `nn.Conv2d`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from fastcifar.models.narrow_conv import NarrowConv2d, convert_convolutions


def random_images(*shape: int) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return values.bfloat16().contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("num", "side", "stride", "height", "width"),
    [
        (9, 3, 1, 7, 7),
        (9, 3, 2, 8, 8),
        (20, 3, 2, 7, 9),
        (40, 1, 2, 8, 5),
        (12, 5, 2, 9, 10),
        (5, 7, 4, 30, 31),
        (2, 3, 1, 2, 1),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_torch(num: int, side: int, stride: int, height: int, width: int, bias: bool) -> None:
    layer = nn.Conv2d(8, 16, side, stride=stride, padding=side // 2, bias=bias).to(memory_format=torch.channels_last)
    narrow = copy.deepcopy(layer)
    convert_convolutions(narrow)
    assert type(narrow) is NarrowConv2d
    results = []
    for module in (layer, narrow):
        x = random_images(num, 8, height, width).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = module(x)
        out.backward(random_images(*out.shape))
        results.append((out, x.grad, *(param.grad for param in module.parameters())))
    for expected, found in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        assert (found.double() - expected.double()).abs().max() <= 1e-2 * expected.double().abs().max()


def test_gradients_have_gradients() -> None:
    layer = nn.Conv2d(8, 16, 3, padding=1)
    narrow, grads = copy.deepcopy(layer), []
    convert_convolutions(narrow)
    for module in (narrow, layer):
        x = random_images(9, 8, 7, 7).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = module(x)
        found = torch.autograd.grad(out.float().square().sum(), (x, module.weight), create_graph=True)
        sum(grad.float().square().sum() for grad in found).backward()
        grads.append([*found, x.grad, module.weight.grad])
    for found, expected in zip(*grads, strict=True):
        assert (found - expected).abs().max() <= 2e-2 * expected.abs().max()


@pytest.mark.parametrize(
    "change",
    [{"dilation": (2, 2)}, {"padding": (0, 0)}, {"padding": 1}, {"stride": 1}, {"_conv_forward": None}],
    ids=str,
)
def test_a_layer_that_was_changed_computes_what_it_is(change: dict[str, Any]) -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1)
    convert_convolutions(layer)
    assert isinstance(layer, NarrowConv2d)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer._is_slow(random_images(4, 8, 8, 8))
        for name, value in change.items():
            setattr(layer, name, value)
        assert not layer._is_slow(random_images(4, 8, 8, 8))


def test_only_narrow_maps_in_training_with_autocast_take_the_other_way() -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1)
    convert_convolutions(layer)
    assert isinstance(layer, NarrowConv2d)
    narrow, wide = random_images(4, 8, 9, 8), random_images(4, 8, 8, 9)
    assert not layer._is_slow(narrow)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer._is_slow(narrow)
        assert not layer._is_slow(wide)
        assert not layer._is_slow(narrow[:1])
        with torch.no_grad():
            assert not layer._is_slow(narrow)
        layer.requires_grad_(False)
        assert not layer._is_slow(narrow)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 8, 3),
        nn.Conv2d(8, 8, 4, padding=1),
        nn.ConvTranspose2d(8, 8, 3, padding=1),
    ],
)
def test_other_convolutions_stay_as_they_are(layer: nn.Module) -> None:
    kind = type(layer)
    convert_convolutions(layer)
    assert type(layer) is kind


def test_parameters_hooks_and_names_stay() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
    before = dict(network.named_parameters())
    seen = []
    network[0].register_forward_hook(lambda module, given, result: seen.append(result.shape))
    convert_convolutions(network)
    assert all(param is before[name] for name, param in network.named_parameters())
    with torch.autocast("cpu", torch.bfloat16):
        network(random_images(2, 3, 4, 4))
    assert seen == [(2, 4, 4, 4)]
