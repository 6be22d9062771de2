"""Networks: sizes, shapes, and the promise that images do not mix in evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.peers import plain_training
from fastcifar import config
from fastcifar.config import ModelConfig, TrainConfig
from fastcifar.errors import UsageError
from fastcifar.explain import Activations
from fastcifar.models import count_parameters, make_model
from fastcifar.training.weights import DatasetInfo, load_weights, save_weights


def test_resnet18_has_the_parameters_of_the_cifar_variant() -> None:
    assert count_parameters(make_model(ModelConfig(name="resnet18"), 10)) == 11_173_962


@pytest.mark.parametrize(("norm", "last_stride"), [("batch", 2), ("layer", 1)])
def test_resnet18_answers_as_torchvisions_brought_to_small_images(norm: str, last_stride: int) -> None:
    settings = TrainConfig.from_settings(norm=norm, last_stride=last_stride)
    ours = make_model(settings.model, 10).eval()
    plain = plain_training.network_of(settings, 10).eval()
    plain.load_state_dict(
        dict(zip(plain.state_dict(), ours.state_dict().values(), strict=True))
    )  # both in the order of the layers
    images = torch.rand(2, 3, 32, 32, generator=torch.manual_seed(0))
    torch.testing.assert_close(ours(images), plain(images))


def test_small_has_at_most_two_million_parameters() -> None:
    assert count_parameters(make_model(ModelConfig(name="small"), 10)) <= 2_000_000


@pytest.mark.parametrize("name", ["vgg", "fasterrcnn_resnet50_fpn", "quantized_resnet18", "r3d_18", "no.dots"])
def test_an_unknown_model_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"model is '{name}'; expected one of: resnet18, small, a name of torchvision"):
        make_model(ModelConfig(name=name), 10)


def test_a_network_of_torchvision_gets_its_stages() -> None:
    model = make_model(ModelConfig(name="resnet34"), 7)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert model.stages == ("relu", "layer1", "layer2", "layer3")  # 16, 8, 4 and 2 pixels a side
    assert model.training


class ChannelsLast(torch.nn.Module):
    """Works on (N, h, w, C) in between, as transformers of images do."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.maps = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.LayerNorm(8)
        self.head = torch.nn.Linear(8, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.maps(images).permute(0, 2, 3, 1)).mean(dim=(1, 2)))


def channels_last(num_classes: int) -> torch.nn.Module:
    return ChannelsLast(num_classes)


def test_only_what_is_in_proportion_to_the_images_is_a_stage() -> None:
    model = make_model(ModelConfig(name=f"{__name__}:channels_last"), 5, (32, 32, 3))
    assert model.stages == ("norm",)  # (N, h, w, C), after 'maps', (N, C, h, w)
    assert Activations(model, torch.zeros(2, 3, 32, 32), ["maps", "norm"]).sizes == ((32, 32), (32, 32))
    with pytest.raises(UsageError, match=r"layer 'head' returns a tensor of shape \(2, 5\), float32; expected maps"):
        Activations(model, torch.zeros(2, 3, 32, 32), ["head"])


def test_a_network_that_does_not_fit_the_images_is_refused() -> None:
    with pytest.raises(UsageError, match="model 'alexnet' does not take images of 32x32"):
        make_model(ModelConfig(name="alexnet"), 10)


def own_network(num_classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2), torch.nn.Flatten(), torch.nn.LazyLinear(num_classes))


def no_network(num_classes: int) -> str:
    return "network"


def wide_network(num_classes: int) -> torch.nn.Module:
    return own_network(num_classes + 1)


def test_a_network_of_the_user_is_imported_and_names_code() -> None:
    chosen = ModelConfig(name=f"{__name__}:own_network")
    assert chosen.names_code
    assert not ModelConfig(name="resnet34").names_code
    model = make_model(chosen, 3)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert model.stages == ("0",)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_network", "returned str; expected a torch.nn.Module"),
        ("wide_network", r"returns \(2, 4\) for 2 images; expected logits, \(2, 3\)"),
        ("missing", "which cannot be imported"),
        ("pytest", "which is not callable"),
    ],
)
def test_a_function_that_returns_no_classifier_is_refused(function: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_model(ModelConfig(name=f"{__name__}:{function}"), 3)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_without_batch_norm_an_image_does_not_see_the_others(norm: str) -> None:
    model = make_model(ModelConfig(norm=norm), 10)
    images = torch.randn(3, 3, 32, 32)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(model(images), alone, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    groups = {module.num_groups for module in model.modules() if isinstance(module, torch.nn.GroupNorm)}
    assert groups == ({1} if norm == "layer" else {4, 8, 16, 32})


def test_the_last_stage_keeps_its_size_with_stride_1() -> None:
    model = make_model(ModelConfig(last_stride=1), 10)
    assert Activations(model, torch.zeros(1, 3, 32, 32), ["layer4"]).sizes == ((8, 8),)


def test_dropout_drops_only_in_training() -> None:
    model = make_model(ModelConfig(name="small", dropout=0.9), 10)
    model.head.weight.data.fill_(1.0)
    images = torch.randn(8, 3, 32, 32)
    model.eval()
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_options_that_a_network_does_not_support_are_refused() -> None:
    with pytest.raises(UsageError, match="norm is 'layer'; supported only by resnet18, not by small"):
        make_model(ModelConfig(name="small", norm="layer"), 10)


@pytest.mark.parametrize("name", config.MODELS)
@pytest.mark.parametrize(("side", "num_classes"), [(32, 10), (28, 2), (64, 100), (17, 3)])
def test_any_size_and_number_of_classes(name: str, side: int, num_classes: int) -> None:
    model = make_model(ModelConfig(name=name), num_classes)
    assert model(torch.randn(2, 3, side, side)).shape == (2, num_classes)
    assert set(model.stages) <= dict(model.named_children()).keys()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", config.MODELS)
def test_images_do_not_mix_in_evaluation(name: str) -> None:
    model = make_model(ModelConfig(name=name), 10).eval()
    images = torch.randn(3, 3, 32, 32)
    together = model(images)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", config.MODELS)
def test_the_seed_decides_the_initial_weights(name: str) -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in make_model(ModelConfig(name=name), 10).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def with_a_tuple(num_classes: int) -> torch.nn.Module:
    class Net(torch.nn.Sequential):
        def forward(self, x: torch.Tensor) -> object:
            logits = super().forward(x)
            return (logits, logits) if self.training else logits

    return Net(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 10))


def frozen(num_classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, num_classes)).requires_grad_(False)


def empty(num_classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("with_a_tuple", r"returns tuple for 2 images; expected logits, \(2, 10\)"),
        ("frozen", "has no parameters to train; expected at least one"),
        ("empty", "has no parameters to train; expected at least one"),
    ],
)
def test_networks_that_cannot_be_trained_are_refused_at_once(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_model(ModelConfig(name=f"tests.test_models:{name}"), 10)


def test_checking_a_network_does_not_change_it() -> None:
    torch.manual_seed(0)
    made = make_model(ModelConfig(name="mobilenet_v3_small"), 10)
    after = torch.rand(1)
    assert all(int(b) == 0 for name, b in made.named_buffers() if name.endswith("num_batches_tracked"))
    assert made.training
    torch.manual_seed(0)
    import torchvision

    torchvision.models.mobilenet_v3_small(num_classes=10)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.slow
def test_googlenet_returns_only_logits() -> None:
    model = make_model(ModelConfig(name="googlenet"), 10)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 1)
        self.second.weight = self.first.weight
        self.head = torch.nn.Linear(3, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x)).mean(dim=(2, 3)))


def tied(num_classes: int) -> torch.nn.Module:
    return Tied()


def test_shared_weights_are_saved(tmp_path: Path) -> None:
    config = ModelConfig(name="tests.test_models:tied")
    model = make_model(config, 10)
    torch.nn.init.normal_(model.first.weight)
    info = DatasetInfo(
        class_names=tuple("abcdefghij"), image_shape=(32, 32, 3), mean=(0, 0, 0), std=(1, 1, 1), sha256=""
    )
    save_weights(tmp_path / "a", model, config, info)
    loaded, _, _ = load_weights(tmp_path / "a", trusted=config.name)
    assert torch.equal(loaded.second.weight, model.first.weight)
    assert loaded.second.weight is loaded.first.weight
