"""`--init`: weights of a run or of a file of any origin; what does not fit is named; no file does harm."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import nn

from fastcifar import recipes
from fastcifar.cli import main
from fastcifar.config import ModelConfig, TrainConfig
from fastcifar.converters import convert
from fastcifar.errors import CheckpointError, DataError, FastcifarError, UsageError
from fastcifar.training import RunFolder, train
from fastcifar.training.initial_weights import InitialWeights, Note, prepare_network, read_initial_weights
from fastcifar.training.weights import DatasetInfo, file_sha256, save_weights
from tests.tiny import NETWORK, network, tiny

pytestmark = pytest.mark.usefixtures("ordinary_algorithms")
INFO = DatasetInfo(
    class_names=("cat", "dog", "eel"), image_shape=(32, 32, 3), mean=(1.5,) * 3, std=(2.5,) * 3, sha256="0" * 64
)
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def first(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of an epoch. Not to be written to."""
    return train(tiny(tiny_data, epochs=1), runs_dir=tmp_path_factory.mktemp("runs"), name="first")[0]


def net(seed: int = 0, num_classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return network(num_classes)


def state(seed: int = 1, num_classes: int = 3) -> Tensors:
    return net(seed, num_classes).state_dict()


def prepared(path: Path, *, num_classes: int = 3, data: DatasetInfo = INFO) -> tuple[nn.Module, list[str]]:
    """The network of seed 0 with the weights at `path`, and what is logged."""
    model = net(0, num_classes)
    initial = read_initial_weights(path, path.parent)
    return model, messages(prepare_network(model, TrainConfig.from_settings(model=NETWORK), data, initial))


def messages(notes: list[Note]) -> list[str]:
    return [f"{logging.getLevelName(level)} {message}" for level, message in notes]


def same(model: nn.Module, tensors: Tensors) -> set[str]:
    """The names of the tensors of `model` that are those of `tensors`."""
    return {key for key, value in model.state_dict().items() if key in tensors and torch.equal(value, tensors[key])}


# ---- a run --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["name", "folder", "file"])
def test_a_training_starts_from_the_best_weights_of_a_run(
    first: RunFolder, tiny_data: Path, tmp_path: Path, form: str
) -> None:
    init = {"name": Path("first"), "folder": first.path, "file": first.best}[form]
    (tmp_path / "first").symlink_to(first.path)
    run, _ = train(tiny(tiny_data, init=init, epochs=1, lr=1e-12), runs_dir=tmp_path)
    stored = Path(str(run.read_config().init))
    assert stored.is_absolute()
    assert stored.samefile(first.best)
    assert "initial weights: 20 of 20 tensors of tests.tiny:network from " in run.log.read_text()
    assert json.loads((run.path / "env.json").read_text())["init_sha256"] == file_sha256(first.best)
    before, after = load_file(first.best), load_file(run.best)
    assert all(torch.allclose(after[key], before[key]) for key in before if key.endswith(("weight", "bias")))


def test_another_file_of_a_run_is_not_taken_for_its_weights(first: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"metrics\.json: damaged, or not weights .*; expected a \.safetensors file"
    ):
        read_initial_weights(first.metrics, tmp_path)


def test_the_range_test_starts_from_them_too(first: RunFolder, tiny_data: Path, tmp_path: Path) -> None:
    arguments = ["lr-find", "--model", NETWORK, "--data-dir", tiny_data, "--batch-size", 36, "--steps", 3]
    arguments += ["--init", first.path, "--freeze-until", "6", "--runs-dir", tmp_path]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert "initial weights: 20 of 20 tensors" in result.stderr
    assert "training 3,754 of 5,170 parameters" in result.stderr


def test_a_resumed_run_does_not_read_the_file_again(first: RunFolder, tiny_data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(first.best.read_bytes())
    run, _ = train(tiny(tiny_data, init=copy, epochs=1), runs_dir=tmp_path)
    copy.unlink()
    _, metrics = train(run.read_config().with_settings(epochs=2), resume=run)
    assert metrics["steps"] == 2
    env = json.loads((run.path / "env.json").read_text())
    assert len(env["init_sha256"]) == 64
    assert "init_sha256" not in env["resumed"][0]


def test_it_cannot_be_changed_on_resume(first: RunFolder, tmp_path: Path) -> None:
    for flag, value in (("--init", first.best), ("--freeze-until", "6")):
        arguments = ["train", "--resume", first.path, "--model", NETWORK, flag, value]
        result = CliRunner().invoke(main, list(map(str, arguments)))
        assert result.exit_code == 2
        assert f"{flag} cannot be changed when a run is resumed" in result.stderr


def test_a_recipe_cannot_name_a_file(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("settings:\n  init: /etc/passwd\n")
    with pytest.raises(UsageError, match="init cannot be set in a recipe; give it with --init"):
        recipes.load(tmp_path / "r.yaml")
    (tmp_path / "r.yaml").write_text("settings:\n  freeze_until: head\n")
    assert recipes.load(tmp_path / "r.yaml").config.freeze_until == "head"


def test_the_seed_decides_the_new_head(tmp_path: Path) -> None:
    save_file(state(num_classes=7), tmp_path / "a.safetensors")
    models = [prepared(tmp_path / "a.safetensors")[0] for _ in range(2)]
    assert torch.equal(models[0][11].weight, models[1][11].weight)  # type: ignore[index]
    assert torch.equal(models[0][11].weight, net(0)[11].weight)  # type: ignore[index]


# ---- classes ------------------------------------------------------------------------------------------------------


def own_file(path: Path, num_classes: int = 3, **changed: Any) -> Tensors:
    """A file of ours; returns its tensors."""
    names = tuple(["cat", "dog", "eel", "fox", "gnu"][:num_classes])
    save_weights(
        path, net(1, num_classes), ModelConfig(name=NETWORK), replace(INFO, **{"class_names": names, **changed})
    )
    return state(1, num_classes)


def test_the_head_is_copied_where_the_classes_are_the_same(tmp_path: Path) -> None:
    tensors = own_file(tmp_path / "a.safetensors")
    model, notes = prepared(tmp_path / "a.safetensors")
    assert same(model, tensors) == set(tensors)
    assert len(notes) == 1


@pytest.mark.parametrize("names", [("dog", "cat", "eel"), ("ant", "bee", "eel"), ("cat", "dog")])
def test_other_classes_get_a_new_head(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Also if the number is the same, or only the order differs: row by row nothing is copied."""
    tensors = own_file(tmp_path / "a.safetensors", len(names), class_names=names)
    model, notes = prepared(tmp_path / "a.safetensors")
    assert same(model, tensors) == set(tensors) - {"11.weight", "11.bias"}
    assert same(model, state(0)) >= {"11.weight", "11.bias"}
    assert notes[0].startswith("INFO initial weights: 18 of 20 tensors of tests.tiny:network from ")
    expected = f"INFO the last layer is newly initialised: the file has other classes ({', '.join(names)}); rows of "
    assert notes[1] == f"{expected}classes in both are not copied"
    assert len(notes) == 2


def test_a_file_without_class_names_gives_its_head_if_the_number_is_the_same(tmp_path: Path) -> None:
    tensors = state(num_classes=3)
    save_file(tensors, tmp_path / "a.safetensors")
    model, notes = prepared(tmp_path / "a.safetensors")
    assert same(model, tensors) == set(tensors)
    assert (
        notes[1]
        == "INFO the file names no classes; the outputs of its last layer are taken as cat, dog, eel, in this order"
    )
    save_file(state(num_classes=1_000), tmp_path / "a.safetensors")
    model, notes = prepared(tmp_path / "a.safetensors")
    assert notes[1:] == ["INFO the last layer is newly initialised: the file has 1,000 classes, the data 3"]


def test_other_normalisation_and_image_sizes_are_named(tmp_path: Path) -> None:
    own_file(tmp_path / "a.safetensors", mean=(7.0, 8.0, 9.25), image_shape=(64, 48, 3))
    _, notes = prepared(tmp_path / "a.safetensors")
    assert notes[1:] == [
        (
            "INFO the images are normalised by their mean (1.5, 1.5, 1.5) and std (2.5, 2.5, 2.5); "
            "the weights were trained with (7.0, 8.0, 9.2) and (2.5, 2.5, 2.5)"
        ),
        "INFO the weights were trained on images of 64x48; these are 32x32",
    ]


# ---- other files --------------------------------------------------------------------------------------------------


def wrapped(prefix: str = "", *entries: str, **others: Any) -> dict[str, Any]:
    value: dict[str, Any] = {f"{prefix}{key}": tensor for key, tensor in state().items()} | others
    for entry in entries:
        value = {"epoch": 3, "optimizer": {"state": {}}, entry: value}
    return value


@pytest.mark.parametrize(
    "content",
    [
        wrapped(),
        wrapped("", "state_dict"),
        wrapped("module.", "model_state_dict"),
        wrapped("_orig_mod.", "model"),
        wrapped("module._orig_mod.", "model", "state_dict"),
        wrapped("module.", "ema", n_averaged=torch.tensor(7)),
        {**wrapped("", "state_dict_ema"), "state_dict": state(2)},
    ],
    ids=["plain", "state_dict", "DDP", "compiled", "both", "EMA", "timm"],
)
def test_common_wrappers_are_unwrapped(content: dict[str, Any], tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    model, notes = prepared(tmp_path / "a.pt")
    assert same(model, state()) == set(state())
    assert notes[0].startswith("WARNING no checksum verifies these weights")
    assert ("in the file, but not in the network: n_averaged" in " ".join(notes)) == ("n_averaged" in str(content))


def test_the_names_of_a_compiled_network_are_found(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "a.safetensors")
    model = nn.Sequential()
    model.add_module("_orig_mod", net(0))
    prepare_network(model, TrainConfig(), INFO, read_initial_weights(tmp_path / "a.safetensors", tmp_path))
    assert same(model._orig_mod, state()) == set(state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_other_floats_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state().items()}
    save_file(tensors, tmp_path / "a.safetensors")
    model, _ = prepared(tmp_path / "a.safetensors")
    assert model[0].weight.dtype is torch.float32  # type: ignore[index]
    assert torch.equal(model[0].weight, tensors["0.weight"].float())  # type: ignore[index]


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    tensors = state()
    del tensors["3.weight"], tensors["4.bias"]
    tensors |= {"6.weight": torch.zeros(24, 16, 5, 5), "7.weight": torch.zeros(24, dtype=torch.int32)}
    tensors |= {f"extra.{i}": torch.zeros(1) for i in range(20)} | {"un\x1bprint\nable": torch.zeros(1)}
    save_file(tensors, tmp_path / "a.safetensors")
    model, notes = prepared(tmp_path / "a.safetensors")
    assert notes[0].startswith("INFO initial weights: 16 of 20 tensors")
    assert notes[2] == "INFO newly initialised, as not in the file: 3.weight, 4.bias"
    assert notes[3] == "INFO newly initialised, as of another shape or type in the file: 6.weight, 7.weight"
    assert notes[4].startswith("INFO in the file, but not in the network: extra.")
    assert notes[4].endswith(", … (21 in all)")
    assert all(note.isprintable() for note in notes)
    assert same(model, state(0)) >= {"3.weight", "6.weight"}


def test_frozen_layers_that_the_file_lacks_are_a_warning(tmp_path: Path) -> None:
    tensors = state()
    del tensors["3.weight"], tensors["6.weight"]
    save_file(tensors, tmp_path / "a.safetensors")
    initial = read_initial_weights(tmp_path / "a.safetensors", tmp_path)
    config = TrainConfig.from_settings(model=NETWORK, init="a", freeze_until="6")
    notes = messages(prepare_network(net(), config, INFO, initial))
    assert notes[-1] == "WARNING frozen with random weights, not those of --init: 3.weight"


# ---- refused ------------------------------------------------------------------------------------------------------


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def old_format(path: Path) -> None:
    torch.save(state(), path, _use_new_zipfile_serialization=False)


def recompressed(path: Path, method: int, copies: int = 1) -> None:
    """A checkpoint whose zip file is written again: compressed, or with entries that are the same bytes."""
    file = io.BytesIO()
    torch.save(state(), file)
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(path, "w", method) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
        first = target.infolist()[0]
        for i in range(copies - 1):
            again = zipfile.ZipInfo(f"archive/data/{100 + i}")
            again.header_offset, again.file_size, again.compress_size, again.CRC = first.header_offset, 10**6, 10**6, 0
            target.filelist.append(again)


def huge_by_stride(path: Path) -> None:
    torch.save({**state(), "0.weight": torch.zeros(1).expand(2**40)}, path)


def flipped(path: Path) -> None:
    own_file(path)
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


def no_longer_ours(path: Path) -> None:
    """A bit of a name in the header: without it, nothing would verify the tensors."""
    own_file(path)
    content = path.read_bytes()
    assert content.count(b"metadata_sha256") == 1
    path.write_bytes(content.replace(b"metadata_sha256", b"metadatb_sha256"))


def of_nan(path: Path) -> None:
    tensors = state()
    tensors["4.weight"][3] = float("nan")
    save_file(tensors, path)


def too_large_for_float32(path: Path) -> None:
    save_file({key: value.double() * 1e300 for key, value in state().items()}, path)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (lambda path: path.write_bytes(pickle.dumps(Payload())), "a.pt: damaged, or not weights"),
    "payload": (lambda path: torch.save({"state_dict": Payload()}, path), "it holds other objects than tensors"),
    "module": (lambda path: torch.save(nn.Linear(2, 2), path), "it holds other objects than tensors"),
    "old format": (old_format, "a pickle of torch before 1.6; load it with torch and save its state_dict again"),
    "compressed": (lambda path: recompressed(path, zipfile.ZIP_DEFLATED), "it is compressed"),
    "overlapping": (lambda path: recompressed(path, zipfile.ZIP_STORED, 50), "its parts overlap"),
    "no tensors": (lambda path: torch.save({"a": 1, "b": [torch.zeros(2)]}, path), "it holds no tensors by name"),
    "a list": (lambda path: torch.save([torch.zeros(2)], path), "it holds no tensors by name"),
    "empty": (lambda path: path.write_bytes(b""), "damaged, or not weights"),
    "huge header": (lambda path: path.write_bytes(struct.pack("<Q", 2**40) + b"{}"), "its header is too large"),
    "long header": (lambda path: path.write_bytes(struct.pack("<Q", 2**20) + b"{}"), "damaged, or not weights"),
    "text": (lambda path: path.write_text("settings:\n  epochs: 3\n"), "damaged, or not weights"),
    "folders": (lambda path: path.mkdir(), "has no checkpoint"),
    "flipped bit": (flipped, "the checksum of its tensors is wrong"),
    "flipped name": (no_longer_ours, "the checksum of its metadata is wrong"),
    "nan": (of_nan, r"4\.weight is not finite; expected other weights"),
    "infinite": (too_large_for_float32, "is not finite"),
    "nothing fits": (
        lambda path: save_file({"a.weight": torch.zeros(3)}, path),
        r"none of its 1 tensors fits tests\.tiny:network; they are a\.weight, those of the network 0\.weight, ",
    ),
    "counters alone": (
        lambda path: save_file({"1.num_batches_tracked": torch.tensor(3)}, path),
        "none of its 1 tensors fits",
    ),
    "twice": (
        lambda path: torch.save({**state(), **{f"module.{key}": value for key, value in state().items()}}, path),
        r"0\.weight and module\.0\.weight are the same weight; keep one",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_file_that_is_no_weights_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = REFUSED[name]
    make(tmp_path / "a.pt")
    with pytest.raises((CheckpointError, UsageError), match=message) as refused:
        prepared(tmp_path / "a.pt")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600
    assert not Path("ran").exists()


def test_tensors_that_take_no_memory_by_a_stride_of_zero_are_not_expanded(tmp_path: Path) -> None:
    huge_by_stride(tmp_path / "a.pt")
    _, notes = prepared(tmp_path / "a.pt")
    assert "INFO newly initialised, as of another shape or type in the file: 0.weight" in notes


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(8, 3, 3, 3).to_sparse(),
        torch.zeros(8, 3, 3, 3, device="meta"),
        torch.zeros(8, 3, 3, 3, dtype=torch.complex64),
        torch.zeros(8, 3, 3, 3, dtype=torch.int8),
        torch.zeros(8, 3, 9),
    ],
    ids=["sparse", "meta", "complex", "int8", "reshaped"],
)
def test_odd_tensors_do_not_fit(tensor: torch.Tensor, tmp_path: Path) -> None:
    torch.save({**state(), "0.weight": tensor}, tmp_path / "a.pt")
    _, notes = prepared(tmp_path / "a.pt")
    assert "INFO newly initialised, as of another shape or type in the file: 0.weight" in notes


@pytest.mark.parametrize(
    ("init", "error", "message"),
    [
        (
            "nope.safetensors",
            UsageError,
            "init is 'nope.safetensors': no such file; expected a file of weights, or a run",
        ),
        ("nope", DataError, "nope: no such run in .*; expected a folder or one of"),
        ("/dev/zero", CheckpointError, "/dev/zero: damaged, or not weights .not a regular file."),
        ("", UsageError, "init is ''; expected a path"),
        ("https://example.org/a.pt", UsageError, "a URL; expected a path on this machine; download the file first"),
    ],
)
def test_what_is_not_there_is_one_line(
    init: str, error: type[FastcifarError], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        read_initial_weights(init, tmp_path)


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_initial_weights(tmp_path / "a.safetensors", tmp_path)


def test_a_file_larger_than_memory_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").touch()
    os.truncate(tmp_path / "a.safetensors", 2**41)
    with pytest.raises(CheckpointError, match="expected at most"):
        read_initial_weights(tmp_path / "a.safetensors", tmp_path)


def test_random_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    """Of a file without checksum: of ours, every damage is detected."""
    files = {"a.safetensors": own_file, "a.pt": lambda path: torch.save(state(), path)}
    random, path = np.random.default_rng(0), tmp_path / "damaged"
    undetected: list[str] = []
    said: list[str] = []
    for name, make in files.items():
        make(tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        for _ in range(40):
            content = bytearray(whole)
            content[int(random.integers(min(len(content), 4_000)))] ^= 1 << int(random.integers(8))
            path.write_bytes(content)
            try:
                prepared(path)
                undetected.append(name)
            except (CheckpointError, UsageError) as error:
                said.append(str(error))
    assert set(undetected) <= {"a.pt"}
    assert not any("\n" in text for text in said)


def test_a_run_of_other_classes_is_a_start(first: RunFolder, tmp_path: Path) -> None:
    """As a user does it: convert other images, train from the run."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    convert([(image, "ab"[i % 2]) for i, image in enumerate(images)], tmp_path / "data", test_share=0.3)
    arguments = ["train", "--data-dir", tmp_path / "data", "--model", NETWORK, "--init", first.path, "--epochs", 1]
    arguments += ["--batch-size", 20, "--runs-dir", tmp_path / "runs", "--freeze-until", "head", "--name", "b"]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert "training 50 of 4,970 parameters: from 11 on" in result.stderr
    assert "the file has other classes (" in result.stderr


def test_a_note_for_each_kind_only() -> None:
    """A hostile file with a million names is one line for each kind."""
    tensors = {**state(), **dict.fromkeys((f"{i}" * 30 for i in range(20_000)), torch.zeros(1))}
    initial = InitialWeights(path=Path("a"), sha256="0" * 64, tensors=tensors)
    notes = prepare_network(net(), TrainConfig(), INFO, initial)
    assert len(notes) == 3
    assert max(len(message) for _, message in notes) < 2_000
