"""Optimizers and penalties: each against torch, or against its formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fastcifar.config import TrainConfig
from fastcifar.training.muon import Muon, orthogonalise
from fastcifar.training.optimizer import CombinedOptimizer, load_optimizer_state, make_optimizer
from fastcifar.training.step import TrainStep


def problem(seed: int = 0) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 4)
    )
    return model, torch.randn(16, 3, 8, 8), torch.randint(0, 4, (16,))


@pytest.mark.parametrize(("rows", "columns"), [(8, 20), (20, 8), (5, 5)])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_equals_torch_muon_on_matrices(rows: int, columns: int, nesterov: bool) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(rows, columns), torch.randn(5, rows, columns)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.05}
    optimizers = Muon([ours], **settings), torch.optim.Muon([theirs], **settings)
    for gradient in gradients:
        for param, optimizer in zip((ours, theirs), optimizers, strict=True):
            param.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_muon_treats_filters_as_matrices() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(6, 4, 3, 3), torch.randn(6, 4, 3, 3)
    filters = torch.nn.Parameter(start.clone(memory_format=torch.channels_last))
    rows = (start.permute(0, 2, 3, 1).reshape(6, 36), gradient.permute(0, 2, 3, 1).reshape(6, 36))
    matrix = torch.nn.Parameter(rows[0].clone())
    filters.grad, matrix.grad = gradient.clone(memory_format=torch.channels_last), rows[1].clone()
    Muon([filters], 0.1).step()
    Muon([matrix], 0.1).step()
    torch.testing.assert_close(filters.permute(0, 2, 3, 1).reshape(6, 36), matrix)
    with pytest.raises(ValueError, match=r"got a parameter of shape \(3,\)"):
        Muon([torch.nn.Parameter(torch.zeros(3))], 0.1)


@pytest.mark.parametrize("normalise", [False, True])
def test_muon_updates_each_matrix_as_if_it_were_alone(normalise: bool) -> None:
    """Those of one shape, or its transpose, are computed together; one has no gradient."""
    torch.manual_seed(0)
    shapes = [(4, 6), (6, 4), (4, 6), (4, 2, 1, 3), (3, 3), (4, 6)]
    together = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    alone = [torch.nn.Parameter(param.detach().clone()) for param in together]
    settings: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.05, "normalise": normalise}
    optimizers = [Muon(together, **settings), *(Muon([param], **settings) for param in alone)]
    for _ in range(2):
        for param, other in list(zip(together, alone, strict=True))[:-1]:
            param.grad = torch.randn(param.shape)
            other.grad = param.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for param, other in zip(together, alone, strict=True):
        torch.testing.assert_close(param, other, rtol=0, atol=2e-3)  # products are rounded to bfloat16
    assert len({param.flatten()[0].item() for param in together}) == len(shapes)


def test_orthogonalised_has_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise([torch.randn(32, 100)], 5)[0].float())
    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize("fast_bf16", [True, False])
def test_muon_multiplies_in_the_precision_that_the_device_is_fast_at(
    fast_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastcifar.training.optimizer.has_fast_bf16", lambda device: fast_bf16)
    model, images, labels = problem()
    optimizer = make_optimizer(model, TrainConfig.from_settings(optimizer="muon", lr=1.0, momentum=0, weight_decay=0))
    before = model[0].weight.detach().clone()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    gradient = model[0].weight.grad.permute(0, 2, 3, 1).reshape(8, -1)
    dtype = torch.bfloat16 if fast_bf16 else torch.float32
    expected = orthogonalise([gradient], 5, dtype)[0].float().reshape(8, 3, 3, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(before - model[0].weight, expected, rtol=0, atol=1e-6)


def test_muon_and_the_auxiliary_optimizer_share_the_parameters() -> None:
    model, images, labels = problem()
    optimizer = make_optimizer(model, TrainConfig.from_settings(optimizer="muon", lr=0.02, aux_lr=0.003))
    assert isinstance(optimizer, CombinedOptimizer)
    muon, auxiliary = optimizer.optimizers
    names = {param: name for name, param in model.named_parameters()}
    shares = [[names[p] for group in part.param_groups for p in group["params"]] for part in (muon, auxiliary)]
    assert shares == [["0.weight"], ["4.weight", "0.bias", "1.weight", "1.bias", "4.bias"]]
    before = [param.detach().clone() for param in model.parameters()]
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_ns_steps_reach_muon() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    several = make_optimizer(model, TrainConfig.from_settings(optimizer="muon", ns_steps=3))
    assert several.param_groups[0]["num_steps"] == 3


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_biases_next_to_muon_have_their_own_rate_and_the_same_decay(name: str) -> None:
    model, _, _ = problem()
    settings = {"aux_optimizer": name, "aux_lr": 0.02, "bias_lr": 50.0, "weight_decay": 0.2}
    _, auxiliary = make_optimizer(
        model, TrainConfig.from_settings(optimizer="muon", unit_filters=True, **settings)
    ).optimizers  # type: ignore[attr-defined]
    assert type(auxiliary).__name__.lower() == name
    rates = {param.ndim: group["lr"] for group in auxiliary.param_groups for param in group["params"]}
    assert rates == {1: 50.0, 2: 0.02}
    assert [group["lr"] * group["weight_decay"] for group in auxiliary.param_groups] == pytest.approx([0.004, 0.004])


def test_decay_can_exclude_biases_and_norms() -> None:
    model, _, _ = problem()
    for name in ("sgd", "adam", "adamw"):
        optimizer = make_optimizer(model, TrainConfig.from_settings(optimizer=name, weight_decay=0.1, decay_all=False))
        with_decay, without = optimizer.param_groups
        assert [p.ndim for p in with_decay["params"]] == [4, 2]
        assert (with_decay["weight_decay"], without["weight_decay"]) == (0.1, 0.0)
        assert len(make_optimizer(model, TrainConfig.from_settings(optimizer=name)).param_groups) == 1


@pytest.mark.parametrize(("name", "reference"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_weight_decay_is_coupled_in_adam_and_decoupled_in_adamw(name: str, reference: Any) -> None:
    model, images, labels = problem()
    theirs, _, _ = problem()
    config = TrainConfig.from_settings(optimizer=name, lr=0.01, momentum=0.8, weight_decay=0.1)
    step = TrainStep(model, model, make_optimizer(model, config), config, "off")
    optimizer = reference(theirs.parameters(), lr=0.01, betas=(0.8, 0.999), weight_decay=0.1, fused=True)
    for _ in range(3):
        step(images, labels)
        optimizer.zero_grad()
        F.cross_entropy(theirs(images), labels).backward()
        optimizer.step()
    for ours, param in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, param)


@pytest.mark.parametrize(
    ("name", "rule"), [("adam", "decoupled_weight_decay"), ("sgd", "nesterov"), ("adamw", "maximize")]
)
def test_a_checkpoint_cannot_change_how_an_optimizer_updates(name: str, rule: str) -> None:
    optimizer = make_optimizer(problem()[0], TrainConfig.from_settings(optimizer=name))
    state = optimizer.state_dict()
    load_optimizer_state(optimizer, state)
    state["param_groups"][0][rule] = not state["param_groups"][0][rule]
    with pytest.raises(ValueError, match="its groups have other settings"):
        load_optimizer_state(optimizer, state)


def one_step(**settings: Any) -> tuple[torch.nn.Module, torch.Tensor]:
    model, images, labels = problem()
    config = TrainConfig.from_settings(lr=0.1, momentum=0.0, weight_decay=0.0, **settings)
    loss, _ = TrainStep(model, model, make_optimizer(model, config), config, "off")(images, labels)
    return model, loss


def expected_step(penalty: float = 0.0, smoothing: float = 0.0, max_norm: float | None = None) -> list[torch.Tensor]:
    model, images, labels = problem()
    loss = F.cross_entropy(model(images), labels, label_smoothing=smoothing)
    loss = loss + penalty * sum(param.abs().sum() for param in model.parameters())
    loss.backward()
    if max_norm is not None:
        norm = torch.sqrt(sum(param.grad.square().sum() for param in model.parameters()))  # type: ignore[union-attr]
        assert norm > max_norm
        for param in model.parameters():
            param.grad.mul_(max_norm / norm)  # type: ignore[union-attr]
    return [param.detach() - 0.1 * param.grad for param in model.parameters()]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {}),
        ({"l1": 0.01}, {"penalty": 0.01}),
        ({"label_smoothing": 0.2}, {"smoothing": 0.2}),
        ({"clip_norm": 0.1}, {"max_norm": 0.1}),
    ],
)
def test_a_step_is_its_formula(settings: dict[str, Any], expected: dict[str, float]) -> None:
    model, _ = one_step(**settings)
    for param, want in zip(model.parameters(), expected_step(**expected), strict=True):
        torch.testing.assert_close(param.detach(), want, rtol=1e-4, atol=1e-5)


def test_the_reported_loss_has_no_penalties() -> None:
    assert one_step(l1=0.5)[1] == one_step()[1]


def test_l1_can_exclude_biases() -> None:
    with_all, weights_only = one_step(l1=0.1)[0], one_step(l1=0.1, decay_all=False)[0]
    plain = one_step()[0]
    assert torch.equal(weights_only[0].bias, plain[0].bias)  # type: ignore[arg-type]
    assert not torch.equal(with_all[0].bias, plain[0].bias)  # type: ignore[arg-type]
    assert torch.equal(with_all[0].weight, weights_only[0].weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["4.weight", "1.running_mean"])
def test_the_averaged_weights_are_evaluated(key: str) -> None:
    """And the averaged statistics of batch normalisation."""
    model, images, labels = problem()
    config = TrainConfig.from_settings(lr=0.1, ema=0.75)
    step = TrainStep(model, model, make_optimizer(model, config), config, "off")
    kept: list[torch.Tensor] = []
    for number in range(4):
        step(images * (number + 1), labels)
        kept.append(model.state_dict()[key].clone())
    expected = kept[0]
    for value in kept[1:]:
        expected = 0.75 * expected + 0.25 * value
    assert step.eval_network is not model
    torch.testing.assert_close(step.eval_network.state_dict()[key], expected)


def test_indices_are_not_averaged() -> None:
    model, images, labels = problem()
    model.register_buffer("index", torch.arange(169))
    config = TrainConfig.from_settings(lr=0.1, ema=0.9)
    step = TrainStep(model, model, make_optimizer(model, config), config, "off")
    for _ in range(3):
        step(images, labels)
    assert torch.equal(step.eval_network.state_dict()["index"], torch.arange(169))


def test_float16_scales_its_loss() -> None:
    model, images, labels = problem()
    config = TrainConfig.from_settings(lr=0.1)
    step = TrainStep(model, model, make_optimizer(model, config), config, "fp16")
    first, _ = step(images, labels)
    for _ in range(10):
        last, _ = step(images, labels)
    assert last < first
    state = step.state_dict()
    assert state["scaler"]["scale"] > 1
    again = TrainStep(model, model, make_optimizer(model, config), config, "fp16")
    state["scaler"]["scale"] = 128.0
    again.load_state_dict(state)
    assert again.scaler.get_scale() == 128.0
