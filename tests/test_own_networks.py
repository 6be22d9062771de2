"""Networks of the user: parametrized, scripted, compiled, lazy; one that cannot be used is an error of one line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from fastcifar.config import ModelConfig, OptimizerConfig, TrainConfig
from fastcifar.errors import UsageError
from fastcifar.explain import Activations
from fastcifar.models import make_model, stages_of
from fastcifar.models.probe import check_network, place
from fastcifar.training.optimizer import has_decay, make_optimizer, muon_parameter_names
from fastcifar.training.step import TrainStep
from fastcifar.training.weights import DatasetInfo, load_weights, save_weights

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def plain(num_classes: int, conv: nn.Module | None = None, width: int = 4) -> nn.Sequential:
    conv = conv or nn.Conv2d(3, width, 3, padding=1)
    return nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(64 * width, num_classes))


def weight_norm(num_classes: int) -> nn.Module:
    return plain(num_classes, parametrizations.weight_norm(nn.Conv2d(3, 2, 3, padding=1)), 2)  # as many as images


def spectral_norm(num_classes: int) -> nn.Module:
    return plain(num_classes, parametrizations.spectral_norm(nn.Conv2d(3, 4, 3, padding=1)))


def orthogonal(num_classes: int) -> nn.Module:
    return plain(num_classes, parametrizations.orthogonal(nn.Conv2d(3, 4, 3, padding=1)))


def old_spectral_norm(num_classes: int) -> nn.Module:
    return plain(num_classes, nn.utils.spectral_norm(nn.Conv2d(3, 4, 3, padding=1)))


def pruned(num_classes: int) -> nn.Module:
    model = plain(num_classes)
    prune.l1_unstructured(model[0], "weight", 0.5)
    return model


def lazy(num_classes: int) -> nn.Module:
    head = nn.MaxPool2d(4), nn.Flatten(), nn.LazyLinear(num_classes)
    return nn.Sequential(nn.LazyConv2d(4, 3, padding=1), nn.LazyBatchNorm2d(), *head)


def compiled(num_classes: int) -> nn.Module:
    return torch.compile(plain(num_classes), backend="eager")  # type: ignore[return-value]


class Own(nn.Module):
    """plain(), with something in its way."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.net = plain(num_classes)

    def forward(self, images: torch.Tensor) -> Any:
        return self.net(images)


class WithView(Own):
    def forward(self, images: torch.Tensor) -> Any:
        maps = self.net[2](self.net[0](images))
        return self.net[4](maps.view(len(maps), -1))


class ViewOfNarrowMaps(Own):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.net[0] = nn.Conv2d(3, 4, 3, stride=4, padding=1)

    def forward(self, images: torch.Tensor) -> Any:
        maps = self.net[0](images)  # (N, 4, 8, 8)
        return self.net[4](maps.view(len(maps), -1))


class WithStages(Own):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.stages = nn.ModuleList([self.net[0], self.net[2]])

    def forward(self, images: torch.Tensor) -> Any:
        for stage in self.stages:
            images = stage(images)
        return self.net[4](images.flatten(1))


class InPlace(Own):
    def forward(self, images: torch.Tensor) -> Any:
        return self.net(images.mul_(2.0))


class MadeWeight(Own):
    """A module gives its filters, (4, 3, 3, 3)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.maker = nn.Unflatten(0, (2, 3, 3, 3))
        self.code = nn.Parameter(torch.randn(54))

    def forward(self, images: torch.Tensor) -> Any:
        return self.net(images + nn.functional.conv2d(images, self.maker(self.code), padding=1).mean(1, keepdim=True))


class InWindows(Own):
    """A module gives four windows of each image, (4 N, 3, 16, 16)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.windows = nn.Upsample(scale_factor=0.5)

    def forward(self, images: torch.Tensor) -> Any:
        return self.net(images + self.windows(torch.cat([images] * 4)).mean())


class Reused(nn.Module):
    """As in torch's tutorials: one pooling, activation and dropout serve all layers; the last two, vectors too."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 8, 5), nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.relu, self.drop = nn.MaxPool2d(2), nn.ReLU(inplace=True), nn.Dropout(0.1)
        self.fc1, self.fc2 = nn.Linear(8 * 5 * 5, 16), nn.Linear(16, num_classes)

    def forward(self, images: torch.Tensor) -> Any:
        maps = self.drop(self.pool(self.relu(self.conv1(images))))  # (N, 6, 14, 14)
        maps = self.conv3(self.pool(self.drop(self.relu(self.conv2(maps)))))  # (N, 8, 5, 5)
        return self.fc2(self.drop(self.relu(self.fc1(maps.flatten(1)))))


class Frozen(Own):
    def forward(self, images: torch.Tensor) -> Any:
        with torch.no_grad():
            maps = self.net[2](self.net[0](images))
        return self.net[4](maps.flatten(1))


def own(name: str) -> ModelConfig:
    return ModelConfig(name=f"{__name__}:{name}")


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("weight_norm", ("1", "2")),
        ("spectral_norm", ("1", "2")),
        ("orthogonal", ("1", "2")),
        ("old_spectral_norm", ("1", "2")),
        ("pruned", ("1", "2")),
        ("lazy", ("1", "2")),
        pytest.param("compiled", ("_orig_mod.1", "_orig_mod.2"), marks=pytest.mark.slow),
        ("WithView", ("net.0", "net.2")),
        ("WithStages", ("net.0", "net.2")),
        ("InPlace", ("net.1", "net.2")),
        ("MadeWeight", ("net.1", "net.2")),
        ("InWindows", ("net.1", "net.2")),
        ("Reused", ("conv1", "conv2", "conv3")),
        ("Frozen", ()),
    ],
)
def test_a_stage_gives_maps_of_the_images(name: str, stages: tuple[str, ...]) -> None:
    model = place(make_model(own(name), 5), torch.device("cpu"))
    assert stages_of(model) == stages
    images = IMAGES.contiguous(memory_format=torch.channels_last)
    if stages:
        maps = Activations(model, images, stages).maps()["gradcam"].maps
        assert maps.shape == (2, len(stages), 32, 32)
    else:
        with pytest.raises(UsageError, match="no module of the network returns maps of the images"):
            Activations(model, images)
    nn.functional.cross_entropy(model(images.clone()), torch.tensor([0, 1])).backward()  # trainable as it was
    assert all(param.requires_grad for param in model.parameters())


class Strided(nn.Module):
    """With a shortcut of 1x1 filters and stride 2, as a ResNet has them."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.conv, self.shortcut = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 2 * width, 1, stride=2)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.shortcut(self.conv(x).relu()).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("width", [4, 8, 12, 16, 24])
def test_the_gradient_of_a_narrow_shortcut_is_that_of_torch(width: int) -> None:
    """In channels_last oneDNN crashes, hangs or is wrong with fewer input channels than a block has."""
    torch.manual_seed(0)
    model = Strided(5, width)
    check_network(model, "strided", 5, (64, 64, 3))
    assert getattr(model, "needs_contiguous", False) == (width < 16)
    exact = copy.deepcopy(model).double()
    model = place(model, torch.device("cpu"))
    images = torch.rand(5, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    for network, batch in ((model, images), (exact, images.double())):
        nn.functional.cross_entropy(network(batch), torch.arange(5)).backward()
    for param, other in zip(model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(param.grad, other.grad.float(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["0.parametrizations.weight", "0.parametrizations.weight.0"])
def test_what_gives_a_weight_is_not_a_layer_with_maps(name: str) -> None:
    model = make_model(own("weight_norm"), 5)
    with pytest.raises(UsageError, match=f"layer '{name}' returns"):
        Activations(model, IMAGES, [name])


def scripted(num_classes: int) -> nn.Module:
    return torch.jit.script(plain(num_classes))  # type: ignore[no-any-return]


def traced(num_classes: int) -> nn.Module:
    return torch.jit.trace(plain(num_classes), torch.zeros(2, 3, 32, 32))  # type: ignore[no-any-return]


def partly_scripted(num_classes: int) -> nn.Module:
    model = plain(num_classes)
    model[0] = torch.jit.script(model[0])
    return model


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(("name", "stages"), [("scripted", ()), ("traced", ()), ("partly_scripted", ("1", "2"))])
def test_a_scripted_module_gives_no_maps_and_says_so(name: str, stages: tuple[str, ...]) -> None:
    model = make_model(own(name), 5)
    assert stages_of(model) == stages
    with pytest.raises(UsageError, match="layer '0' is scripted, so its output cannot be read"):
        Activations(model, IMAGES, ["0"])


def a_tuple(num_classes: int) -> nn.Module:
    return Wrapped(num_classes, lambda logits: (logits, logits))


def a_dict(num_classes: int) -> nn.Module:
    return Wrapped(num_classes, lambda logits: {"logits": logits})


def maps_of_one_pixel(num_classes: int) -> nn.Module:
    return Wrapped(num_classes, lambda logits: logits[:, :, None, None])


class Wrapped(Own):
    def __init__(self, num_classes: int, change: Callable[[torch.Tensor], object]) -> None:
        super().__init__(num_classes)
        self.change = change

    def forward(self, images: torch.Tensor) -> Any:
        return self.change(self.net(images))


class NamesStages(Own):
    stages = ("net.0",)

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes + 1)


class ExtraState(Own):
    def get_extra_state(self) -> object:
        return {"version": 3}

    def set_extra_state(self, state: object) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a_tuple", r"returns tuple for 2 images; expected logits, \(2, 5\), in training and evaluation mode: wrap it"),
        ("a_dict", r"returns dict for 2 images; expected logits, \(2, 5\)"),
        ("maps_of_one_pixel", r"returns \(2, 5, 1, 1\) for 2 images; expected logits, \(2, 5\)"),
        ("NamesStages", r"returns \(2, 6\) for 2 images; expected logits, \(2, 5\)"),
        ("ExtraState", "has the state '_extra_state', which is not a tensor"),
    ],
)
def test_networks_that_cannot_be_trained_or_saved_are_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_model(own(name), 5)


class FewImages(Own):
    def forward(self, images: torch.Tensor) -> Any:
        if len(images) > 2:
            raise ValueError("two images at most")
        return self.net(images)


def test_what_fails_in_training_names_the_network() -> None:
    config = TrainConfig.from_settings(model=own("FewImages").name, lr=0.1)
    model = make_model(config.model, 5)
    step = TrainStep(model, model, make_optimizer(model, config), config, "off")
    with pytest.raises(UsageError, match=r"fails on images \(3, 3, 32, 32\) \(ValueError: two images at most\)"):
        step(torch.zeros(3, 3, 32, 32), torch.zeros(3, dtype=torch.int64))


def test_a_view_of_narrow_maps_is_trained_on_cpus_with_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcifar.training.step.has_cpu_flag", lambda name: True)
    config = TrainConfig.from_settings(model=own("ViewOfNarrowMaps").name, lr=0.1)
    model = make_model(config.model, 5)
    step = TrainStep(model, model, make_optimizer(model, config), config, "bf16")
    assert torch.isfinite(step(IMAGES, torch.tensor([0, 1]))[0])


@pytest.mark.parametrize("name", ["weight_norm", "old_spectral_norm", "pruned", "lazy", "WithView"])
def test_its_weights_are_saved(name: str, tmp_path: Path) -> None:
    model = make_model(own(name), 5)
    info = DatasetInfo(class_names=tuple("abcde"), image_shape=(32, 32, 3), mean=(0, 0, 0), std=(1, 1, 1), sha256="")
    save_weights(tmp_path / "a", model, own(name), info)
    loaded, _, _ = load_weights(tmp_path / "a", trusted=own(name).name)
    assert torch.equal(loaded(IMAGES), model.eval()(IMAGES))


def torchvisions(name: str) -> nn.Module:
    import torchvision

    with torch.device("meta"):
        return torchvision.models.get_model(name)


@pytest.mark.parametrize(
    ("name", "num_weights", "others"),
    [
        ("convnext_tiny", 58, {"layer_scale": 18, "classifier.2.weight": 1}),
        ("vit_b_16", 49, {"class_token": 1, "pos_embedding": 1, "heads.head.weight": 1}),
        ("swin_t", 52, {"relative_position_bias_table": 12, "head.weight": 1}),
        ("resnet18", 20, {"fc.weight": 1}),
    ],
)
def test_muon_updates_weights_of_linear_and_convolution_layers_alone(
    name: str, num_weights: int, others: dict[str, int]
) -> None:
    model = torchvisions(name)
    names = muon_parameter_names(model)
    assert len(names) == num_weights
    assert all(name.endswith(("weight", "in_proj_weight")) for name in names)
    rest = [name for name, param in model.named_parameters() if param.ndim > 1 and name not in names]
    assert {end: sum(name.endswith(end) for name in rest) for end in others} == others
    assert len(rest) == sum(others.values())


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.signal = nn.Conv1d(3, 4, 3)
        self.free = nn.Parameter(torch.ones(4, 4))
        self.normed = parametrizations.weight_norm(nn.Linear(4, 4))
        self.hidden = nn.Linear(4, 4)
        self.head = parametrizations.weight_norm(nn.Linear(4, 2))
        self.norm = nn.LayerNorm(4)


def test_muon_leaves_embeddings_scales_tokens_and_parametrizations_to_the_auxiliary_optimizer() -> None:
    model = Mixed()
    assert muon_parameter_names(model) == ["hidden.weight"]
    optimizer: Any = make_optimizer(model, TrainConfig.from_settings(optimizer="muon", lr=0.02))
    muon, auxiliary = ([p for group in part.param_groups for p in group["params"]] for part in optimizer.optimizers)
    assert [*muon] == [model.hidden.weight]
    assert len(auxiliary) == len(list(model.parameters())) - 1


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_muon_warns_where_it_updates_nothing(caplog: pytest.LogCaptureFixture) -> None:
    config = TrainConfig.from_settings(model="mine:net", optimizer="muon", lr=0.02)
    make_optimizer(Mixed(), config)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    make_optimizer(scripted(5), config)
    assert "muon finds no linear or convolution layer to update in mine:net" in caplog.text


def test_scales_and_tokens_do_not_decay_where_weights_alone_do() -> None:
    names = [
        name for name, param in Mixed().named_parameters() if not has_decay(OptimizerConfig(decay_all=False), param)
    ]
    scales = [name for name in names if not name.endswith("bias")]
    assert scales == [
        "scale",
        "token",
        "normed.parametrizations.weight.original0",
        "head.parametrizations.weight.original0",
        "norm.weight",
    ]
