"""Networks: sizes, shapes, and the promise that images do not mix in evaluation."""

from __future__ import annotations

import pytest
import torch

from fastcifar import config
from fastcifar.errors import UsageError
from fastcifar.models import _CLASSES, count_parameters, make_model


def test_resnet18_has_the_parameters_of_the_cifar_variant() -> None:
    assert count_parameters(make_model("resnet18", 10)) == 11_173_962


def test_small_has_at_most_two_million_parameters() -> None:
    assert count_parameters(make_model("small", 10)) <= 2_000_000


def test_the_settings_name_the_models_that_exist() -> None:
    assert tuple(_CLASSES) == config.MODELS


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(UsageError, match="model is 'vgg'; expected one of: resnet18, small"):
        make_model("vgg", 10)


@pytest.mark.parametrize("name", config.MODELS)
@pytest.mark.parametrize(("side", "num_classes"), [(32, 10), (28, 2), (64, 100), (17, 3)])
def test_any_size_and_number_of_classes(name: str, side: int, num_classes: int) -> None:
    model = make_model(name, num_classes)
    assert model(torch.randn(2, 3, side, side)).shape == (2, num_classes)
    assert set(model.stages) <= dict(model.named_children()).keys()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", config.MODELS)
def test_images_do_not_mix_in_evaluation(name: str) -> None:
    model = make_model(name, 10).eval()
    images = torch.randn(3, 3, 32, 32)
    together = model(images)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", config.MODELS)
def test_the_seed_decides_the_initial_weights(name: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in make_model(name, 10).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
