"""Batch normalisation in one pass with what surrounds it: the values, gradients and statistics of torch in float64."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastcifar.config import ModelConfig
from fastcifar.models import cpu_kernels, make_model, openmp
from fastcifar.models.fused_norm import GELU, RELU, can_fuse, norm_act
from fastcifar.models.resnet import norm_relu

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}  # relative to the largest value


def images(*shape: int, dtype: torch.dtype = torch.float32, mean: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randn(shape, generator=generator) * 2 + mean
    return values.to(dtype).contiguous(memory_format=torch.channels_last)


def random_norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    generator = torch.Generator().manual_seed(channels)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(channels, generator=generator) + 0.5)
        norm.bias.copy_(torch.randn(channels, generator=generator))
    return norm


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    expected = expected.detach()
    return float((found.detach().double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(6, 8, 9, 7), (4, 5, 4, 4), (33, 64, 8, 8)], ids=str)
@pytest.mark.parametrize(
    ("kind", "pool", "has_shortcut"),
    [(GELU, True, False), (GELU, False, False), (RELU, False, False), (RELU, False, True)],
)
def test_values_gradients_and_statistics_are_those_of_torch(
    dtype: torch.dtype, shape: tuple[int, ...], kind: int, pool: bool, has_shortcut: bool
) -> None:
    norm, reference = random_norm(shape[1]), random_norm(shape[1]).double()
    x = images(*shape, dtype=dtype, mean=3.0)
    shortcut = images(*shape, dtype=dtype) if has_shortcut else None
    own = [t.clone().requires_grad_() for t in (x, shortcut) if t is not None]
    theirs = [t.double().requires_grad_() for t in (x, shortcut) if t is not None]

    out = norm_act(own[0], norm, kind, pool=pool, shortcut=own[1] if has_shortcut else None)
    before = reference(F.max_pool2d(theirs[0], 2) if pool else theirs[0])
    expected = F.gelu(before) if kind == GELU else F.relu(before + theirs[1] if has_shortcut else before)
    if kind == RELU:  # a value that rounds to zero has another slope in float64
        expected = expected * (out != 0)
    grad = images(*expected.shape, dtype=dtype)
    out.backward(grad)
    expected.backward(grad.double())

    tolerance = TOLERANCE[dtype]
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert error(out, expected) < tolerance
    for tensor, other in zip(own, theirs, strict=True):
        assert error(tensor.grad, other.grad) < tolerance
    assert error(norm.weight.grad, reference.weight.grad) < tolerance
    assert error(norm.bias.grad, reference.bias.grad) < tolerance
    assert error(norm.running_mean, reference.running_mean) < 1e-6
    assert error(norm.running_var, reference.running_var) < 1e-6
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(6, 8, 9, 7), (33, 64, 8, 8)], ids=str)
@pytest.mark.parametrize(
    ("kind", "pool", "has_shortcut"),
    [(GELU, True, False), (GELU, False, False), (RELU, False, False), (RELU, False, True)],
)
@torch.inference_mode()
def test_in_evaluation_the_running_statistics_count(
    dtype: torch.dtype, shape: tuple[int, ...], kind: int, pool: bool, has_shortcut: bool
) -> None:
    norm = random_norm(shape[1]).eval()
    norm.running_mean.copy_(torch.linspace(2, 4, shape[1]))
    norm.running_var.copy_(torch.linspace(1, 9, shape[1]))
    norm.weight[0] = -1  # the maximum is taken before it
    x, shortcut = images(*shape, dtype=dtype, mean=3.0), images(*shape, dtype=dtype) if has_shortcut else None
    x[1, 2, 1, 0] = torch.nan
    out = norm_act(x, norm, kind, pool=pool, shortcut=shortcut)
    norm.double()
    before = norm(F.max_pool2d(x.double(), 2) if pool else x.double())
    expected = F.gelu(before) if kind == GELU else F.relu(before if shortcut is None else before + shortcut.double())
    assert out.dtype == dtype
    assert torch.equal(out.isnan(), expected.isnan())
    assert error(out.nan_to_num(), expected.nan_to_num()) < TOLERANCE[dtype]


def test_statistics_keep_their_precision_far_from_zero() -> None:
    norm, x = random_norm(4), images(8, 4, 6, 6, mean=3_000.0)
    norm.running_mean.fill_(3_000.0)
    out = norm_act(x, norm, RELU)
    assert error(out, F.relu(random_norm(4).double()(x.double()))) < 1e-4


@pytest.mark.parametrize("has_openmp", [True, False])
def test_slices_on_several_threads_are_the_whole(has_openmp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, results = images(9, 8, 8, 8), []
    if not has_openmp:
        without_openmp(monkeypatch)
    for size in (2**30, 1):
        monkeypatch.setattr(cpu_kernels, "MIN_SLICE", size)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
        own = x.clone().requires_grad_()
        out = norm_act(own, random_norm(8), GELU, pool=True)
        out.square().sum().backward()
        results.append((out, own.grad))
    for first, second in zip(*results, strict=True):
        assert error(first, second.double()) < 1e-6


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("position", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=str)
def test_nan_is_not_lost(dtype: torch.dtype, pool: bool, position: tuple[int, int]) -> None:
    x = images(2, 3, 4, 4, dtype=dtype)
    x[0, 1, position[0], position[1]] = torch.nan
    found = norm_act(x, random_norm(3), GELU, pool=pool).isnan().all(dim=(2, 3)).all(dim=0)
    assert found.tolist() == [False, True, False]


def test_ordinary_training_and_evaluation_are_fused_and_nothing_else() -> None:
    norm, x = random_norm(4), images(2, 4, 4, 4)
    assert can_fuse(x, norm, nn.ReLU())
    assert not can_fuse(x.contiguous(), norm)
    assert not can_fuse(x.double(), norm)
    assert not can_fuse(x[:1], norm)
    assert not can_fuse(x, nn.GroupNorm(1, 4))
    assert not can_fuse(x, norm.eval())
    with torch.no_grad():
        assert not can_fuse(x, norm)
        assert not can_fuse(x, norm.train())
    with torch.inference_mode():
        assert not can_fuse(x, norm)
        assert can_fuse(x, norm.eval())
    norm.train()
    for layer in (norm, nn.ReLU()):
        handle = layer.register_forward_hook(lambda module, given, result: None)
        assert not can_fuse(x, norm, layer)
        handle.remove()
    assert can_fuse(x, norm)
    handle = nn.modules.module.register_module_forward_hook(lambda module, given, result: None)
    assert not can_fuse(x, norm)
    handle.remove()


def test_other_layers_are_not_fused() -> None:
    norm, x = random_norm(4), images(2, 4, 4, 4)
    pool, gelu = nn.MaxPool2d(2), nn.GELU()
    assert can_fuse(x, norm, gelu, pool)
    windows = (nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 1), nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(2, dilation=2))
    for other in (*windows, nn.ReLU(), gelu, norm):
        assert not can_fuse(x, norm, gelu, other)
    for other in (nn.GELU("tanh"), nn.SiLU(), pool, norm):
        assert not can_fuse(x, norm, other)
    for other in (random_norm(3), random_norm(8), gelu, nn.ReLU(), pool):
        assert not can_fuse(x, other, gelu)
    assert not can_fuse(x, norm, nn.ReLU(), pool)  # there is no kernel for both
    norm.running_var = torch.ones(8)
    assert not can_fuse(x, norm)


@pytest.mark.parametrize("name", ["small", "resnet18"])
@pytest.mark.parametrize("activation", [nn.GELU, nn.ReLU, nn.SiLU])
def test_an_activation_that_was_replaced_counts(
    name: str, activation: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make_model(ModelConfig(name=name), 10).to(memory_format=torch.channels_last)
    if name == "small":
        network.layer1[3], network.layer2[6], network.layer3[1] = activation(), activation(), activation()
    else:
        network.stem[2] = activation()
    x = images(4, 3, 12, 12)
    found = network(x)
    monkeypatch.setattr(f"fastcifar.models.{'small' if name == 'small' else 'resnet'}.can_fuse", lambda *_: False)
    assert error(found, network(x)) < 1e-4


def test_a_shortcut_may_be_a_value_for_each_channel() -> None:
    norm, x, shortcut = random_norm(4), images(2, 4, 4, 4), images(2, 4, 1, 1)
    assert error(norm_relu(x, norm, shortcut), F.relu(random_norm(4).double()(x.double()) + shortcut)) < 1e-5


@pytest.mark.parametrize("evaluates", [True, False])
def test_a_normalisation_of_other_channels_fails_as_in_torch(evaluates: bool) -> None:
    norm = random_norm(8).train(not evaluates)
    with torch.inference_mode(evaluates), pytest.raises(RuntimeError, match="running_mean should contain 4"):
        norm_relu(images(2, 4, 4, 4), norm)


def test_networks_can_be_mapped_over() -> None:
    network = make_model(ModelConfig(name="small"), 10).to(memory_format=torch.channels_last).eval()
    stacked = torch.stack([images(2, 3, 12, 12), images(2, 3, 12, 12)])
    mapped = torch.func.vmap(network)(stacked)
    assert error(mapped[1], network(stacked[1])) < 1e-5


@pytest.fixture
def four_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(cpu_kernels, "MIN_SLICE", 1)


def without_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "make_team", lambda kernel, arguments: None)
    monkeypatch.setattr(cpu_kernels, "_KERNELS", {})


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch's OpenMP has another interface")
@pytest.mark.usefixtures("four_slices")
def test_kernels_run_on_the_threads_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "_pool", lambda count: pytest.fail("a thread of another pool"))
    norm_act(images(9, 8, 8, 8), random_norm(8), RELU)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch's OpenMP has another interface")
@pytest.mark.usefixtures("four_slices")
def test_with_another_numba_other_threads_do_the_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openmp, "_compile_entry", lambda *arguments: 1 / 0)
    monkeypatch.setattr(cpu_kernels, "_KERNELS", {})
    openmp._report.cache_clear()
    with caplog.at_level("INFO"):
        out = norm_act(images(9, 8, 8, 8), random_norm(8), RELU)
    problem = "their kernels cannot run on the threads of torch (ZeroDivisionError: division by zero)"
    assert caplog.messages == [f"layers are slower: {problem}"]
    assert error(out, F.relu(random_norm(8).double()(images(9, 8, 8, 8).double()))) < 2e-6


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch's OpenMP has another interface")
@pytest.mark.usefixtures("four_slices")
def test_each_slice_is_computed_once_and_a_failure_is_an_error() -> None:
    import numba

    @numba.njit
    def add(values: Any, shape: Any, first: int, last: int) -> None:
        if first > shape[1]:
            raise ValueError
        for k in range(first, last):
            values[k] += k

    values, shape, slices = np.zeros(22), (2, 20), [(2 * k, 2 * k + 2) for k in range(11)]
    add(values, shape, 0, 0)
    team = openmp.make_team(add, (values, shape, 0, 0))
    assert team is not None
    team((values, shape), slices)
    np.testing.assert_array_equal(values, range(22))
    with pytest.raises(MemoryError, match="^a CPU kernel failed"):
        team((values, (2, 19)), slices)


@pytest.mark.usefixtures("four_slices")
def test_statistics_need_not_be_contiguous() -> None:
    norm, x = random_norm(4), images(8, 4, 6, 6, mean=3_000.0)
    norm.running_mean = torch.tensor([3_000.0, 0.0]).repeat(4)[::2]
    out = norm_act(x, norm, RELU)
    assert error(out, F.relu(random_norm(4).double()(x.double()))) < 1e-4


def test_one_pool_serves_every_number_of_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    without_openmp(monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    monkeypatch.setattr(cpu_kernels, "MIN_SLICE", 4 * 8 * 8)
    sizes, make = [], cpu_kernels.Threads
    cpu_kernels._pool.cache_clear()
    monkeypatch.setattr(cpu_kernels, "Threads", lambda count, name: sizes.append(count) or make(count, name))
    with torch.inference_mode():
        for num in (2, 3, 5, 9):
            norm_act(images(num, 4, 8, 8), random_norm(4).eval(), RELU)
    assert sizes == [6]


@pytest.mark.full_size
@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_a_network_has_the_logits_and_gradients_of_its_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients: list[Any] = []
    module = "fastcifar.models.small.can_fuse" if name == "small" else "fastcifar.models.resnet.can_fuse"
    for fuses in (True, False):
        torch.manual_seed(0)
        model = make_model(ModelConfig(name=name), 10).to(memory_format=torch.channels_last)
        if not fuses:
            monkeypatch.setattr(module, lambda x, *layers: False)
        F.cross_entropy(model(images(16, 3, 12, 12)), torch.arange(16) % 10).backward()
        gradients.append({key: param.grad for key, param in model.named_parameters() if param.requires_grad})
        gradients[-1] |= {key: value.float() for key, value in model.named_buffers()}
        with torch.inference_mode():
            gradients[-1]["logits"] = model.eval()(images(16, 3, 12, 12))
    for key, value in gradients[1].items():
        # as a whole: a value near zero may have another sign
        assert (gradients[0][key] - value).norm() < 2e-2 * value.norm(), key


@pytest.mark.parametrize("is_missing", [True, False])
def test_without_numba_torch_computes_each_layer(is_missing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import numba

    x, network = images(4, 3, 32, 32), make_model(ModelConfig(), 10).to(memory_format=torch.channels_last)
    expected = network(x)
    if is_missing:
        monkeypatch.setitem(sys.modules, "numba", None)
    else:
        monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    cpu_kernels.numba_is_usable.cache_clear()
    try:
        assert not can_fuse(images(4, 8, 6, 6), random_norm(8))
        assert error(network(x), expected) < 1e-4
        network(x).sum().backward()
    finally:
        cpu_kernels.numba_is_usable.cache_clear()
