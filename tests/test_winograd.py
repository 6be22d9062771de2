"""Convolutions with fewer multiplications: the values and gradients of `nn.Conv2d`."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.config import ModelConfig
from fastcifar.models import cpu_kernels, make_model, winograd
from fastcifar.models.winograd import WinogradConv2d, convert_convolutions
from fastcifar.models.winograd_kernels import matrices

TOLERANCE = 1e-4  # of the largest value; float32 has 24 bits, of which the transforms lose five


def random_images(*shape: int) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return values.contiguous(memory_format=torch.channels_last)


def layers(num_in: int, num_out: int, bias: bool = False) -> tuple[nn.Conv2d, WinogradConv2d]:
    """In float64, and as the layer under test."""
    torch.manual_seed(0)
    layer = nn.Conv2d(num_in, num_out, 3, padding=1, bias=bias).to(memory_format=torch.channels_last)
    reference = copy.deepcopy(layer).double()
    convert_convolutions(layer)
    assert isinstance(layer, WinogradConv2d)
    return reference, layer


def results(layer: nn.Conv2d, x: torch.Tensor, *, needs_x: bool = True) -> list[Any]:
    """Values, and the gradients of images and parameters."""
    x = x.to(layer.weight.dtype, copy=True).requires_grad_(needs_x)
    out = layer(x)
    out.backward(random_images(*out.shape).to(out.dtype))
    return [out, x.grad, *(param.grad for param in layer.parameters())]


def assert_close(found: list[Any], expected: list[Any]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one.double() - other).abs().max() <= TOLERANCE * other.abs().max()


@pytest.fixture(params=[2, 3, 4, 5, 6], ids="m={}".format)
def always(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The other way for the smallest images, with one size of tiles, and torch's own for none."""
    monkeypatch.setattr(winograd, "MIN_GAIN", 0.0)
    monkeypatch.setattr(winograd, "TILES", (request.param,))
    monkeypatch.setattr(F, "conv2d", None)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("num", "height", "width"),
    [(3, 8, 8), (1, 4, 4), (2, 3, 3), (2, 1, 1), (2, 13, 16), (3, 7, 15), (2, 5, 2), (1, 2, 21), (2, 18, 6)],
    ids=str,
)
@pytest.mark.parametrize(("num_in", "num_out", "bias"), [(16, 16, False), (32, 16, True), (16, 48, False)], ids=str)
def test_values_and_gradients_are_those_of_torch(
    num: int, height: int, width: int, num_in: int, num_out: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference, layer = layers(num_in, num_out, bias)
    x = random_images(num, num_in, height, width)
    found = results(layer, x)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    monkeypatch.undo()
    assert_close(found, results(reference, x))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("tiles", [1, 9, 20])
def test_blocks_and_threads_are_the_whole(tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, layer = layers(16, 32)
    x = random_images(7, 16, 9, 12)  # 9 tiles each
    monkeypatch.setattr(winograd, "BLOCK_BYTES", 0)
    monkeypatch.setattr(winograd, "BLOCK_TILES", tiles)
    monkeypatch.setattr(cpu_kernels, "MIN_SLICE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    found = results(layer, x)
    monkeypatch.undo()
    assert_close(found, results(reference, x))


@pytest.mark.usefixtures("always")
def test_the_same_images_give_the_same_bits() -> None:
    _, layer = layers(32, 16)
    x = random_images(9, 32, 8, 8)
    first = results(layer, x)
    layer.zero_grad()
    for one, other in zip(first, results(layer, x), strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("always")
def test_the_first_layer_has_no_gradient_of_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, layer = layers(16, 16)
    out, grad_x, grad_weight = results(layer, random_images(2, 16, 8, 8), needs_x=False)
    assert grad_x is None
    monkeypatch.undo()
    expected = results(reference, random_images(2, 16, 8, 8), needs_x=False)
    assert_close([out, grad_weight], [expected[0], expected[2]])


@pytest.mark.usefixtures("always")
def test_nan_is_not_lost() -> None:
    _, layer = layers(16, 16)
    x = random_images(2, 16, 8, 8)
    x[0, 3, 5, 5] = torch.nan
    assert layer(x).isnan().any(dim=(1, 2, 3)).tolist() == [True, False]


def test_only_training_in_float32_on_enough_channels_takes_the_other_way() -> None:
    _, layer = layers(128, 128)
    x = random_images(16, 128, 16, 16)
    assert layer._tile(x)
    assert not layer._tile(x[:1, :, :4, :4].contiguous(memory_format=torch.channels_last))
    assert not layer._tile(x.contiguous())
    assert not layer._tile(x.double())
    assert not layer._tile(random_images(64, 128, 2, 2))  # the transforms cost more than they save
    _, narrow = layers(16, 16)
    assert not narrow._tile(random_images(64, 16, 32, 32))
    with torch.autocast("cpu", torch.bfloat16):
        assert not layer._tile(x)
    with torch.no_grad():
        assert not layer._tile(x)
    layer.requires_grad_(False)
    assert not layer._tile(x)


def test_the_transforms_are_those_of_lavin_and_gray() -> None:
    from_pixels, to_pixels, from_filters = matrices(4)
    rows = ["4 0 -5 0 1 0", "0 -4 -4 1 1 0", "0 4 -4 -1 1 0", "0 -2 -1 2 1 0", "0 2 -1 -2 1 0", "0 4 0 -5 0 1"]
    assert np.array_equal(from_pixels, [list(map(int, row.split())) for row in rows])
    rows = ["1 1 1 1 1 0", "0 1 -1 2 -2 0", "0 1 1 4 4 0", "0 1 -1 8 -8 1"]
    assert np.array_equal(to_pixels, [list(map(int, row.split())) for row in rows])
    rows = ["6 0 0", "-4 -4 -4", "-4 4 -4", "1 2 4", "1 -2 4", "0 0 24"]
    assert np.allclose(from_filters * 24, [list(map(int, row.split())) for row in rows], atol=0, rtol=1e-15)


def test_processes_that_share_a_batch_do_as_one() -> None:
    layer = nn.Conv2d(512, 512, 3, padding=1)
    convert_convolutions(layer, 8)
    assert isinstance(layer, WinogradConv2d)
    _, alone = layers(512, 512)
    for num in (1, 2, 4, 8):
        assert layer._tile(random_images(num, 512, 4, 4)) == alone._tile(random_images(8 * num, 512, 4, 4))
    assert alone._tile(random_images(4, 512, 4, 4)) is None  # else all of them would be the same
    convert_convolutions(alone, 8)  # as after a range test, which only one of them makes
    assert alone._tile(random_images(4, 512, 4, 4)) == 4
    convert_convolutions(alone)
    assert alone._tile(random_images(32, 512, 4, 4)) == 4


@pytest.mark.parametrize(("side", "m"), [(32, 4), (24, 6), (16, 4), (15, 5), (7, 4), (6, 6), (5, 5), (3, 3)])
def test_tiles_fit_the_image(side: int, m: int) -> None:
    _, layer = layers(256, 256)
    assert layer._tile(random_images(64, 256, side, side)) == m


def pruned(layer: nn.Conv2d, num_in: int, num_out: int) -> None:
    """Cut its weights, and leave `in_channels` and `out_channels`, which torch does not read."""
    with torch.no_grad():
        layer.weight = nn.Parameter(layer.weight[:num_out, :num_in].clone(memory_format=torch.channels_last))
        layer.bias = nn.Parameter(layer.bias[:num_out].clone())


def replaced(layer: nn.Conv2d, **attributes: Any) -> None:
    for name, value in attributes.items():
        setattr(layer, name, value)


@pytest.mark.parametrize("is_converted_first", [True, False])
@pytest.mark.parametrize(
    ("num_in", "change"),
    [
        (128, lambda layer: pruned(layer, 128, 120)),
        (120, lambda layer: pruned(layer, 120, 128)),
        (128, lambda layer: replaced(layer, stride=(2, 2))),
        (128, lambda layer: replaced(layer, padding=(0, 0))),
        (128, lambda layer: replaced(layer, padding=(2, 2), dilation=(2, 2))),
        (128, lambda layer: replaced(layer, _conv_forward=lambda x, weight, bias: F.conv2d(x, weight, bias))),
        (64, lambda layer: replaced(layer, groups=2, weight=nn.Parameter(layer.weight[:, :32].detach().clone()))),
    ],
)
def test_a_layer_that_was_changed_computes_what_it_is(num_in: int, change: Any, is_converted_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(128, 128, 3, padding=1).to(memory_format=torch.channels_last)
    plain = copy.deepcopy(layer)
    if is_converted_first:
        convert_convolutions(layer)
    for each in (layer, plain):
        change(each)
    convert_convolutions(layer)
    assert type(layer) is (WinogradConv2d if is_converted_first else nn.Conv2d)
    x = random_images(16, num_in, 16, 16)
    for one, other in zip(results(layer, x), results(plain, x), strict=True):
        assert torch.equal(one, other)


def test_a_layer_keeps_weights_of_fewer_channels() -> None:
    reference, layer = layers(128, 128, bias=True)
    for each in (reference, layer):
        pruned(each, 112, 96)
    x = random_images(16, 112, 16, 16)
    assert layer._tile(x)
    assert_close(results(layer, x), results(reference, x))
    with pytest.raises(RuntimeError, match="to have 112 channels, but got 128"):
        layer(random_images(16, 128, 16, 16))


@pytest.mark.usefixtures("always")
def test_gradients_have_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, layer = layers(16, 16, bias=True)
    x, grads = random_images(2, 16, 8, 8), []
    for each in (layer, reference):
        own = x.to(each.weight.dtype, copy=True).requires_grad_()
        out = each(own)
        monkeypatch.undo()
        (grad,) = torch.autograd.grad(out.square().sum(), own, create_graph=True)
        grad.square().sum().backward()
        grads.append([grad, own.grad, each.weight.grad])
    assert_close(*grads)


def test_torch_func_finds_operations_of_torch() -> None:
    reference, layer = layers(128, 128)
    x = random_images(16, 128, 16, 16)

    def loss(weight: torch.Tensor, each: nn.Conv2d) -> torch.Tensor:
        return torch.func.functional_call(each, {"weight": weight}, (x.to(weight.dtype),)).square().mean()

    grads = [torch.func.grad(loss)(each.weight.detach(), each) for each in (layer, reference)]
    assert_close(*([grad] for grad in grads))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.Conv2d(64, 64, 3, padding=2, dilation=2),
        nn.Conv2d(64, 64, 3, padding="same"),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(64, 64, 3, padding=1, stride=2),
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 5, padding=2),
        nn.Conv2d(64, 24, 3, padding=1),
        nn.Conv2d(3, 64, 3, padding=1),
        nn.Conv2d(64, 64, 3, padding=1).double(),
        nn.ConvTranspose2d(64, 64, 3, padding=1),
    ],
)
def test_other_convolutions_stay_as_they_are(layer: nn.Module) -> None:
    kind = type(layer)
    convert_convolutions(layer)
    assert type(layer) is kind


@pytest.mark.full_size
@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_a_network_has_the_logits_and_gradients_of_its_layers(name: str) -> None:
    networks = []
    x, labels = random_images(64, 3, 32, 32), torch.arange(64) % 10
    for converts in (True, False):
        torch.manual_seed(0)
        network = make_model(ModelConfig(name=name), 10).to(memory_format=torch.channels_last)
        if converts:
            convert_convolutions(network)
            assert any(isinstance(layer, WinogradConv2d) for layer in network.modules())
        F.cross_entropy(network(x), labels).backward()
        networks.append(network)
    converted, plain = networks
    for (key, param), other in zip(converted.named_parameters(), plain.parameters(), strict=True):
        if param.grad is not None and other.grad is not None:
            assert (param.grad - other.grad).norm() < 1e-2 * other.grad.norm(), key
    with torch.inference_mode():
        first, second = (network.eval()(x) for network in networks)
    assert (first - second).abs().max() < 1e-2 * second.abs().max()
