"""Networks of timm: any by its name, with random weights; those of the Hugging Face hub only at the user's word."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from fastcifar import recipes
from fastcifar.cli import main
from fastcifar.config import ModelConfig, TrainConfig
from fastcifar.errors import CheckpointError, MissingExtraError, UsageError
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.models import count_parameters, make_model, stages_of, timm_networks
from fastcifar.training import RunFolder, train
from fastcifar.training.weights import DatasetInfo, load_weights, save_weights
from tests.tiny import network, tiny

timm = pytest.importorskip("timm")
HUB = "timm:hf-hub:someone/some-net"


def test_a_run_is_trained_evaluated_and_resumed(tiny_data: Path, tmp_path: Path) -> None:
    run, metrics = train(tiny(tiny_data, model="timm:test_resnet", epochs=1), runs_dir=tmp_path)
    assert run.path == tmp_path / "test_resnet"
    run.predictions.unlink()
    assert TrainedRun(run).predictions("test").accuracy == metrics["test_accuracy"]
    _, metrics = train(run.read_config().with_settings(epochs=2), resume=run)
    assert metrics["epochs"] == 2


@pytest.mark.slow
def test_each_command_takes_a_run_of_it(tiny_data: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        result = CliRunner().invoke(main, [*map(str, arguments), "--runs-dir", str(tmp_path)])
        assert result.exit_code == 0, result.output
        return result.output

    begin = ("train", "--model", "timm:test_resnet", "--data-dir", tiny_data, "--epochs", 1, "--batch-size", 36)
    run(*begin)
    assert (tmp_path / "test_resnet" / "report.html").is_file()
    run("eval", "test_resnet")
    assert "sheets" in run("explain", "test_resnet", "--n", 1, "--methods", "gradcam")
    run("train", "--resume", "test_resnet", "--epochs", 2)
    run(
        *begin[:-4], "--epochs", 1, "--batch-size", 36, "--init", "test_resnet", "--freeze-until", "head", "--name", "b"
    )
    log = (tmp_path / "b" / "log.txt").read_text()
    assert "training 970 of 373,658 parameters: from fc on" in log


@pytest.mark.parametrize(
    ("name", "sides", "stages"),
    [
        ("test_resnet", (32, 24), 4),
        ("test_vit", (32, 48), 1),
        ("test_vit3", (32, 32), 1),
        ("test_convnext", (32, 32), 3),
    ],
)
def test_a_network_of_a_fixed_image_size_is_made_for_the_images(name: str, sides: tuple[int, int], stages: int) -> None:
    model = make_model(ModelConfig(name=f"timm:{name}"), 7, (*sides, 3))
    assert model(torch.zeros(2, 3, *sides)).shape == (2, 7)
    assert len(stages_of(model)) == stages
    assert count_parameters(model) < 1_000_000


def test_the_seed_decides_the_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = make_model(ModelConfig(name="timm:test_vit"), 7)
        return torch.cat([param.flatten() for param in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnt18", "expected one of the .* networks of timm; did you mean 'timm:resnet18'"),
        ("timm:zzzzzzz", "networks of timm; timm.list_models.. lists them"),
        (
            "timm:resnet18.a1_in1k",
            "pretrained weights, which are not downloaded for that name; expected 'timm:resnet18' ",
        ),
        ("timm:../resnet18", "or package.module:function; on the Hugging Face hub: timm:hf-hub:OWNER/NAME"),
        ("timm:local-dir:/etc", "expected one of: resnet18, small"),
        ("timm:hf-hub:a", "expected one of: resnet18, small"),
        ("timm:", "expected one of: resnet18, small"),
    ],
)
def test_a_name_that_timm_does_not_know_is_one_line(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_model(ModelConfig(name=name), 10)


def test_images_that_are_too_small_are_one_line() -> None:
    with pytest.raises(UsageError, match=r"model 'timm:test_vit' does not take images of 8x8|timm cannot build model"):
        make_model(ModelConfig(name="timm:test_vit"), 10, (8, 8, 3))


def test_a_network_larger_than_the_memory_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may name one of 7 billion parameters."""
    monkeypatch.setattr(timm_networks, "free_memory", lambda: 2**21)
    with pytest.raises(
        UsageError, match=r"'timm:test_resnet' has weights of 0\.0 GiB; expected at most half of the free"
    ):
        make_model(ModelConfig(name="timm:test_resnet"), 10)


def test_without_timm_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"model 'timm:resnet18' needs timm, .*pip install 'fastcifar\[timm\]'"):
        make_model(ModelConfig(name="timm:resnet18"), 10)


def test_a_run_of_a_missing_timm_says_so_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(name="timm:test_resnet")
    info = DatasetInfo(class_names=("a", "b"), image_shape=(32, 32, 3), mean=(1,) * 3, std=(1,) * 3, sha256="")
    save_weights(tmp_path / "a", make_model(config, 2), config, info)
    load_weights(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match="needs timm"):
        load_weights(tmp_path / "a")


def test_options_of_other_networks_are_refused() -> None:
    with pytest.raises(UsageError, match="dropout is 0.5; supported only by resnet18 and small, not by timm:test_vit"):
        make_model(ModelConfig(name="timm:test_vit", dropout=0.5), 10)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """In place of timm's loader; the options of each call that makes a network with values."""
    calls: list[dict[str, Any]] = []

    def create_model(name: str, **options: Any) -> nn.Module:
        if "img_size" in options:
            raise TypeError("got an unexpected keyword argument 'img_size'")
        model = network(options["num_classes"])
        if torch.get_default_device().type != "meta":
            calls.append({"name": name, **options})
            if options["pretrained"]:
                nn.init.constant_(model[0].weight, 0.25)  # type: ignore[index,arg-type]
        return model

    monkeypatch.setattr(timm, "create_model", create_model)
    return calls


def test_weights_of_the_hub_are_loaded_for_a_new_run_alone(
    tiny_data: Path, tmp_path: Path, hub: list[dict[str, Any]]
) -> None:
    run, _ = train(tiny(tiny_data, model=HUB, epochs=1, lr=1e-12), runs_dir=tmp_path)
    assert run.path == tmp_path / "some-net"
    assert [call["pretrained"] for call in hub] == [True, False]  # the test loads the weights of the run
    assert hub[0]["name"] == "hf-hub:someone/some-net"
    model, _, _ = load_weights(run.best, trusted=HUB)
    assert torch.allclose(model[0].weight, torch.tensor(0.25))  # type: ignore[index,arg-type]
    train(run.read_config().with_settings(epochs=2), resume=run)
    assert not any(call["pretrained"] for call in hub[1:])


def test_no_recipe_and_no_run_folder_downloads_anything(
    tiny_data: Path, tmp_path: Path, hub: list[dict[str, Any]]
) -> None:
    run, _ = train(tiny(tiny_data, model=HUB, epochs=1), runs_dir=tmp_path)
    num_calls = len(hub)
    (tmp_path / "r.yaml").write_text(f"settings:\n  model: {HUB}\n")
    with pytest.raises(UsageError, match="a recipe cannot name code or a download: give it with --model"):
        recipes.load(tmp_path / "r.yaml")
    for arguments in (["train", "--resume"], ["eval"], ["explain"]):
        result = CliRunner().invoke(main, [*arguments, str(run.path)])
        assert result.exit_code in (2, 6)
        expected = f"{HUB}, downloaded from the Hugging Face hub; if you trust it, add --model {HUB}"
        assert expected in " ".join(result.stderr.split())
    with pytest.raises(CheckpointError, match="if you trust it, add --model"):
        TrainedRun(run)
    with pytest.raises(CheckpointError, match="if you trust it, add --model"):
        load_weights(run.best, trusted="timm:hf-hub:someone/else")
    assert len(hub) == num_calls
    assert CliRunner().invoke(main, ["eval", str(run.path), "--model", HUB]).exit_code == 0
    assert not hub[-1]["pretrained"]


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, **options: Any) -> nn.Module:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(UsageError, match=r"timm cannot build model '.*' for images of 32x32 \(OSError: no network\)"):
        make_model(ModelConfig(name=HUB), 10)
    monkeypatch.setattr(timm, "create_model", _gives_a_number)
    with pytest.raises(UsageError, match=r"timm cannot build model|returned int"):
        make_model(ModelConfig(name=HUB), 10)


def _gives_a_number(name: str, **options: Any) -> int:
    return 3


@pytest.mark.parametrize(
    ("name", "names_code", "label"),
    [
        ("timm:resnet18", False, "resnet18"),
        (HUB, True, "some-net"),
        ("timm:hf-hub:a/b.c@main", True, "b.c@main"),
        ("timm.models:resnet18", True, "resnet18"),
        ("resnet34", False, "resnet34"),
    ],
)
def test_only_the_user_names_what_is_downloaded(name: str, names_code: bool, label: str) -> None:
    config = ModelConfig(name=name)
    assert (config.names_code, config.label) == (names_code, label)
    assert TrainConfig.from_settings(model=name).peak_lr == 0.01


def test_a_new_run_says_nothing_of_random_layers_that_the_hub_filled(
    tiny_data: Path, tmp_path: Path, hub: list[dict[str, Any]]
) -> None:
    run, _ = train(tiny(tiny_data, model=HUB, epochs=1, freeze_until="11"), runs_dir=tmp_path)
    assert "keep random weights" not in run.log.read_text()
    assert isinstance(run, RunFolder)
