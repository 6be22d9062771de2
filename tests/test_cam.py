"""Class activation maps against the formulas of the papers and against other implementations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastcifar import make_loader
from fastcifar.config import CAM_METHODS, ModelConfig
from fastcifar.errors import UsageError
from fastcifar.explain import Activations, best_layer
from fastcifar.models import make_model
from tests.reference import cam_image, enlarge

LAYERS = ("layer1", "layer2", "layer3", "layer4")
Trained = tuple[nn.Module, torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def trained(data_dir: Path) -> Trained:
    """A ResNet-18 trained for six steps; twelve test images, normalised, and their labels."""
    torch.manual_seed(0)
    model = make_model(ModelConfig(name="resnet18"), 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    train = make_loader(data_dir / "train.beton", batch_size=16)
    for batch in islice(train, 6):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch.images), batch.labels).backward()
        optimizer.step()
    test = make_loader(data_dir / "test.beton", train=False, batch_size=12, mean=train.mean, std=train.std)
    batch = next(iter(test))
    model.zero_grad(set_to_none=True)
    return model.eval(), batch.images, batch.labels


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def unit(heat: np.ndarray) -> np.ndarray:
    """Divided by the maximum, (h, w) or (N, h, w)."""
    peak = heat.max(axis=(-2, -1), keepdims=True)
    return heat / np.where(peak > 0, peak, 1)


def spread(heat: np.ndarray) -> np.ndarray:
    """From 0 to 1, as pytorch-grad-cam ends."""
    low = heat - heat.min(axis=(-2, -1), keepdims=True)
    return low / (1e-7 + low.max(axis=(-2, -1), keepdims=True))


@pytest.mark.parametrize("method", CAM_METHODS)
def test_maps_are_the_formula_of_the_paper(trained: Trained, method: str) -> None:
    model, images, labels = trained
    found = Activations(model, images, LAYERS).maps(labels, [method])[method]
    assert found.maps.shape == (12, 4, 32, 32)
    assert found.maps.dtype == torch.float32
    for i in range(4):
        for k, layer in enumerate(LAYERS):
            raw = cam_image(model, images[i], layer, int(labels[i]), method)
            np.testing.assert_allclose(found.maps[i, k].numpy(), enlarge(unit(raw), (32, 32)), atol=1e-4)
            assert bool(found.has_evidence[i, k]) == bool(raw.max() > 0)


@pytest.mark.slow
def test_grad_cam_is_that_of_pytorch_grad_cam(trained: Trained) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images, labels = trained
    ours = Activations(model, images, LAYERS).maps(labels, ["gradcam"])["gradcam"].maps.numpy()
    for k, layer in enumerate(LAYERS):
        copied = copy.deepcopy(model)
        with peer.GradCAM(copied, [copied.get_submodule(layer)]) as cam:
            theirs = cam(images, [ClassifierOutputTarget(int(label)) for label in labels])
        np.testing.assert_allclose(spread(ours[:, k]), theirs, atol=1e-4)


@pytest.mark.slow
def test_grad_cam_plus_plus_is_that_of_pytorch_grad_cam_but_for_its_epsilon(
    trained: Trained,
) -> None:
    peer = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images, labels = trained
    for layer in LAYERS:
        copied = copy.deepcopy(model)
        with peer.GradCAMPlusPlus(copied, [copied.get_submodule(layer)]) as cam:
            theirs = cam(images[:3], [ClassifierOutputTarget(int(label)) for label in labels[:3]])
        for i in range(3):
            raw = cam_image(model, images[i], layer, int(labels[i]), "gradcampp", epsilon=1e-6)
            np.testing.assert_allclose(spread(enlarge(raw, (32, 32))), theirs[i], atol=1e-3)


@pytest.mark.slow
def test_grad_cam_is_that_of_captum(trained: Trained) -> None:
    captum = pytest.importorskip("captum.attr")
    model, images, labels = trained
    ours = Activations(model, images, LAYERS).maps(labels, ["gradcam"])["gradcam"].maps.numpy()
    for k, layer in enumerate(LAYERS):
        copied = copy.deepcopy(model)
        found = captum.LayerGradCam(copied, copied.get_submodule(layer)).attribute(
            images, labels, relu_attributions=True
        )
        raw = unit(found[:, 0].detach().double().numpy())
        expected = np.stack([enlarge(heat, (32, 32)) for heat in raw])
        np.testing.assert_allclose(ours[:, k], expected, atol=1e-4)


@pytest.mark.slow
def test_all_layers_and_methods_at_once_equal_each_alone(trained: Trained) -> None:
    model, images, labels = trained
    kept = Activations(model, images, LAYERS)
    together, for_true = kept.maps(None, CAM_METHODS), kept.maps(labels, CAM_METHODS)
    predicted = kept.logits.argmax(dim=1)
    assert not torch.equal(predicted, labels)
    for k, layer in enumerate(LAYERS):
        for method in CAM_METHODS:
            for many, of in ((together, predicted), (for_true, labels)):
                alone = Activations(model, images, [layer]).maps(of, [method])[method]
                torch.testing.assert_close(many[method].maps[:, k], alone.maps[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(kept.logits, model(images).detach(), atol=1e-4, rtol=1e-4)


def test_maps_are_between_0_and_1(trained: Trained) -> None:
    model, images, _ = trained
    for found in Activations(model, images, LAYERS).maps(None, CAM_METHODS).values():
        assert found.maps.min() >= 0
        assert found.maps.max() <= 1
        assert (found.maps.amax(dim=(2, 3)) > 0).equal(found.has_evidence)


def test_the_network_is_unchanged(trained: Trained) -> None:
    model, images, _ = trained
    model.train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = Activations(model, images, LAYERS).logits
    assert logits.dtype == torch.float32
    assert [module.training for module in model.modules()] == modes
    model.eval()
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not images.requires_grad
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_are_removed_after_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(5, 4, 3))
    with pytest.raises(RuntimeError):
        Activations(model, torch.randn(2, 3, 32, 32), ["0"])
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 32, 32), r"a tensor of shape \(3, 32, 32\), float32"),
        (torch.zeros(2, 5, 32, 32), r"a tensor of shape \(2, 5, 32, 32\), float32"),
        (torch.zeros(0, 3, 32, 32), r"a tensor of shape \(0, 3, 32, 32\), float32"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), r"a tensor of shape \(2, 3, 32, 32\), uint8"),
        (np.zeros((2, 3, 32, 32)), r"array\(.*…, not a tensor"),
    ],
)
def test_other_images_are_refused(images: Any, message: str) -> None:
    with pytest.raises(UsageError, match=rf"images is {message}; expected a normalised floating point tensor, \(N, 3"):
        Activations(nn.Sequential(nn.Conv2d(3, 4, 3)), images)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (3, "3, not a tensor"),
        ([0, 1], r"\[0, 1\], not a tensor"),
        (torch.tensor([0]), r"a tensor of shape \(1,\), int64"),
        (torch.tensor([0, 1], dtype=torch.int32), r"a tensor of shape \(2,\), int32"),
        (torch.tensor([-1, 4]), r"-1\.\.4"),
        (torch.tensor([0, 4]), r"0\.\.4"),
    ],
)
def test_other_targets_are_refused(targets: Any, message: str) -> None:
    kept = Activations(small(), torch.zeros(2, 3, 8, 8), ["0"])
    with pytest.raises(
        UsageError, match=rf"targets is {message}; expected an int64 tensor, \(2,\), of classes in 0..3"
    ):
        kept.maps(targets)


def test_one_name_is_no_list_of_names() -> None:
    with pytest.raises(UsageError, match="layers is '0'; expected a list of names, at least one"):
        Activations(small(), torch.zeros(2, 3, 8, 8), "0")
    with pytest.raises(UsageError, match="methods is 'gradcam'; expected a list of names, at least one"):
        Activations(small(), torch.zeros(2, 3, 8, 8), ["0"]).maps(methods="gradcam")


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (lambda logits: (logits, logits), r"\(tensor\(.*…, not a tensor"),
        (lambda logits: {"logits": logits}, r"{'logits': .*…, not a tensor"),
        (lambda logits: logits.argmax(dim=1), r"a tensor of shape \(2,\), int64"),
    ],
)
def test_a_network_without_logits_is_refused(wrap: Callable[[torch.Tensor], Any], message: str) -> None:
    class Wrapped(nn.Sequential):
        def forward(self, x: torch.Tensor) -> Any:
            return wrap(super().forward(x))

    with pytest.raises(UsageError, match=f"returns {message} for 2 images; expected logits, .*: wrap it in a module"):
        Activations(Wrapped(small()), torch.zeros(2, 3, 8, 8))


def test_a_frozen_network_gives_maps_too(trained: Trained) -> None:
    model, images, _ = trained
    frozen = copy.deepcopy(model).requires_grad_(False)
    expected = Activations(model, images, ["layer2"]).maps()["gradcam"].maps
    torch.testing.assert_close(Activations(frozen, images, ["layer2"]).maps()["gradcam"].maps, expected)


def test_a_dead_layer_has_no_evidence_and_a_constant_image_has_finite_maps() -> None:
    dead = make_model(ModelConfig(name="resnet18"), 10).eval()
    with torch.no_grad():
        dead.head.weight.zero_()  # type: ignore[union-attr]
    for found in Activations(dead, torch.randn(3, 3, 32, 32), LAYERS).maps(None, CAM_METHODS).values():
        assert not found.has_evidence.any()
        assert (found.maps == 0).all()
    living = make_model(ModelConfig(name="resnet18"), 10).eval()
    for found in Activations(living, torch.zeros(2, 3, 32, 32), LAYERS).maps(None, CAM_METHODS).values():
        assert torch.isfinite(found.maps).all()


def test_the_output_of_a_layer_is_captured_before_it_is_changed_in_place() -> None:
    torch.manual_seed(1)

    def net(inplace: bool) -> nn.Module:
        torch.manual_seed(2)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(inplace=inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        )

    images = torch.randn(3, 3, 8, 8)
    maps = [Activations(net(inplace), images, ["0"]).maps(None, CAM_METHODS) for inplace in (False, True)]
    for method in CAM_METHODS:
        assert torch.equal(maps[0][method].maps, maps[1][method].maps)


def test_layers_without_maps_are_refused(trained: Trained) -> None:
    model, images, _ = trained
    with pytest.raises(UsageError, match="layer is 'layer9'; expected one of: layer1, layer2, layer3, layer4; or an"):
        Activations(model, images, ["layer1", "layer9"])
    with pytest.raises(UsageError, match=r"layer 'head' returns a tensor of shape \(12, 10\), float32; expected maps"):
        Activations(model, images, ["head"])
    with pytest.raises(UsageError, match="method is 'cam'; expected one of: gradcam, gradcampp, hirescam"):
        Activations(model, images, ["layer1"]).maps(None, ["cam"])
    unused = copy.deepcopy(model)
    unused.add_module("spare", nn.Conv2d(3, 3, 1))
    with pytest.raises(UsageError, match="layer 'spare' returns None, not a tensor; expected maps"):
        Activations(unused, images, ["spare"])


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (((32, 32), (16, 16), (8, 8), (4, 4)), 2),
        (((40, 40), (20, 20), (10, 10), (5, 5)), 3),
        (((3, 4), (2, 2), (1, 1), (1, 1)), 0),
        (((15, 15), (7, 7), (3, 3)), 1),
    ],
)
def test_the_best_layer_is_the_deepest_with_maps_of_5x5(sizes: tuple[tuple[int, int], ...], expected: int) -> None:
    assert best_layer(sizes) == expected


def test_the_sizes_are_those_of_the_layers(trained: Trained) -> None:
    model, images, _ = trained
    assert Activations(model, images, LAYERS).sizes == ((32, 32), (16, 16), (8, 8), (4, 4))
