"""MixUp and CutMix: their parameters, each implementation against the reference and torchvision, and all loaders."""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional as F
from torchvision.transforms import v2

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined

from fastcifar import AugmentConfig, make_loader  # noqa: E402
from fastcifar.augment.mixing import Mixer, TorchMixer, plan_mix  # noqa: E402
from fastcifar.augment.numba_mixing import NumbaMixer  # noqa: E402
from fastcifar.augment.params import BETA_STEPS, _beta_thresholds, below, raw_bits, sample_beta, sample_params  # noqa: E402
from fastcifar.cli import main  # noqa: E402
from fastcifar.cli.settings import train_config  # noqa: E402
from fastcifar.config import NO_AUGMENT, read_pipeline  # noqa: E402
from fastcifar.errors import UsageError  # noqa: E402
from fastcifar.loaders import Batch, Mix, MixedBatch  # noqa: E402
from fastcifar.training.loss import cross_entropy  # noqa: E402
from tests.reference import mix_image  # noqa: E402
from tests.test_loaders import LOADERS, epoch_of  # noqa: E402
from tests.test_torch_kernel import FORMATS, kernel_config  # noqa: E402

MIXUP, CUTMIX, BOTH = (
    replace(NO_AUGMENT, **alphas) for alphas in ({"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0})
)

# ---- parameters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "cdf"),
    [
        (0.5, lambda x: 2 / np.pi * np.arcsin(np.sqrt(x))),
        (1.0, lambda x: x),
        (2.0, lambda x: 3 * x**2 - 2 * x**3),
    ],
)
def test_beta_has_its_distribution(alpha: float, cdf: Any) -> None:
    thresholds = _beta_thresholds(alpha).astype(np.float64)
    expected = cdf((np.arange(BETA_STEPS) + 0.5) / BETA_STEPS) * 2.0**32
    assert np.abs(thresholds - expected).max() <= 1


@pytest.mark.parametrize("alpha", [1e-6, 0.1, 0.2, 8.0, 100.0])
def test_beta_is_that_of_scipy(alpha: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.beta.cdf((np.arange(BETA_STEPS) + 0.5) / BETA_STEPS, alpha, alpha) * 2**32
    assert np.abs(_beta_thresholds(alpha).astype(np.float64) - expected).max() <= 1


def test_beta_is_the_same_on_every_machine() -> None:
    data = b"".join(_beta_thresholds(alpha).astype("<u8").tobytes() for alpha in (0.2, 0.8, 1.0, 3.7))
    assert hashlib.sha256(data).hexdigest() == GOLDEN_THRESHOLDS
    bits = np.array([0, 2**63, 2**64 - 1], dtype=np.uint64)
    assert sample_beta(bits, 0.2).tolist() == [0, 0.5, 1]


def test_golden_rows() -> None:
    table = sample_params(replace(AugmentConfig(), mixup=0.2, cutmix=1.0), seed=5, epoch=2, num_images=100)
    for name, expected in GOLDEN_ROWS.items():
        assert table[name][:6].tolist() == expected, name


def test_mixing_does_not_change_the_other_columns() -> None:
    mixed = sample_params(replace(AugmentConfig(), mixup=0.2, cutmix=1.0), 0, 3, 50)
    table = sample_params(AugmentConfig(), 0, 3, 50)
    for name in table.dtype.names or ():
        assert (mixed[name] == table[name]).all()
    alone = sample_params(MIXUP, 0, 3, 50)
    assert (alone["partner"] == mixed["partner"]).all()


def test_mixup_and_cutmix_share_the_images() -> None:
    table = sample_params(BOTH, 0, 0, 20_000)
    pasted = table["mix_height"] > 0
    assert abs(pasted.mean() - 0.5) < 0.03
    blended = sample_params(MIXUP, 0, 0, 20_000)["partner_weight"]
    same = table["partner_weight"] == blended
    assert abs(same.mean() - 0.5) < 0.03
    alone = sample_params(CUTMIX, 0, 0, 20_000)
    for name in ("mix_y", "mix_x", "mix_height", "mix_width", "partner_weight"):
        assert (table[name][pasted] == alone[name][pasted]).all()


@pytest.mark.parametrize("shape", [(32, 32, 3), (9, 20, 3), (1, 3, 3)])
def test_boxes_are_those_of_torchvision(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    table = sample_params(CUTMIX, 7, 1, 300, shape)
    shares = sample_beta(raw_bits(7, 1, "cutmix", 300), 1.0)
    centres = {axis: below(raw_bits(7, 1, f"mix_{axis}", 300), side) for axis, side in zip("yx", shape, strict=False)}
    peer = v2.CutMix(alpha=1.0, num_classes=2)
    for i, row in enumerate(table):
        drawn = iter([torch.tensor([centres["x"][i]]), torch.tensor([centres["y"][i]])])
        monkeypatch.setattr(torch, "randint", lambda side, size, drawn=drawn: next(drawn))
        monkeypatch.setattr(peer, "_dist", type("Given", (), {"sample": lambda self, size, i=i: shares[i]})())
        expected = peer.make_params([torch.zeros(1, 3, *shape[:2])])
        left, top, right, bottom = expected["box"]
        if (right - left) * (bottom - top) == 0:
            assert (row["mix_height"], row["mix_width"], row["partner_weight"]) == (0, 0, 0)
            continue
        got = [row[f"mix_{name}"] for name in ("x", "y", "width", "height")]
        assert got == [left, top, right - left, bottom - top]
        assert row["partner_weight"] == np.float32(1 - expected["lam_adjusted"])


# ---- partners ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [16, 24, 512, 520])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_partners_are_in_the_same_eighth_for_every_number_of_processes(batch_size: int, world_size: int) -> None:
    table = sample_params(BOTH, 0, 0, batch_size)
    whole = plan_mix(table, batch_size, 0, 1)
    places = np.arange(batch_size)
    assert (whole.partners != places).all()
    assert (whole.partners * 8 // batch_size == places * 8 // batch_size).all()
    share = batch_size // world_size
    for rank in range(world_size):
        mine = slice(rank * share, (rank + 1) * share)
        part = plan_mix(table[mine], batch_size, rank, world_size)
        assert (part.partners + rank * share == whole.partners[mine]).all()
        assert (part.weights == whole.weights[mine]).all()
        assert (part.bounds[0], part.bounds[-1]) == (0, share)


@pytest.mark.parametrize(("batch_size", "world_size"), [(18, 2), (36, 4), (23, 1)])
def test_eighths_of_unequal_size_agree_too(batch_size: int, world_size: int) -> None:
    table = sample_params(BOTH, 0, 0, batch_size)
    share = batch_size // world_size
    parts = [plan_mix(table[r * share : (r + 1) * share], batch_size, r, world_size) for r in range(world_size)]
    together = np.concatenate([part.partners + rank * share for rank, part in enumerate(parts)])
    assert together.tolist() == plan_mix(table, batch_size, 0, 1).partners.tolist()


def test_each_other_image_is_a_partner_equally_often() -> None:
    table = sample_params(MIXUP, 0, 0, 64_000)
    steps = [(plan_mix(rows, 64, 0, 1).partners - np.arange(64)) % 8 for rows in table.reshape(-1, 64)]
    counts = np.bincount(np.concatenate(steps), minlength=8)
    assert counts[0] == 0
    assert np.abs(counts[1:] / 64_000 - 1 / 7).max() < 0.01


# ---- pixels ------------------------------------------------------------------------------------------------------

SHAPES = [(8, 8, 3), (5, 11, 3), (1, 1, 3)]


def mixers() -> list[Any]:
    cases = [pytest.param(TorchMixer, id="torch"), pytest.param(NumbaMixer, id="numba")]
    try:
        from fastcifar.augment.triton_mixing import TritonMixer
    except ImportError:
        return cases
    marks = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
    return [*cases, pytest.param(TritonMixer, id="triton", marks=marks)]


def check_mixed(make: type[Mixer], **settings: Any) -> None:
    """Batches are those of the reference, bit for bit, in the dtype and memory format; `wait` gives floats."""
    for number, (augment, shape) in enumerate(zip((MIXUP, CUTMIX, BOTH), SHAPES, strict=True)):
        config = kernel_config(
            augment, shape, device=DEVICE if "Triton" in make.__name__ else torch.device("cpu"), **settings
        )
        batch_size = 40 + 4 * number
        plan = plan_mix(table := sample_params(augment, 3, number, batch_size, shape), batch_size, 0, 1)
        random = np.random.default_rng(number)
        if config.dtype == torch.uint8:
            images = random.integers(0, 256, (batch_size, 3, *shape[:2]), dtype=np.uint8)
        else:
            images = random.normal(size=(batch_size, 3, *shape[:2])).astype(np.float32)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        batch = torch.from_numpy(images.copy()).contiguous(memory_format=layout).to(config.device)
        mixer = make(config)  # type: ignore[call-arg]
        got = mixer.launch(lambda batch=batch: batch, plan)()
        mixer.close()
        assert got.dtype == config.dtype
        assert got.is_contiguous(memory_format=layout)
        for i, partner in enumerate(plan.partners):
            expected = torch.from_numpy(
                mix_image(images[i].astype(np.float32), images[partner].astype(np.float32), table[i])
            )
            if config.dtype == torch.uint8:
                expected = expected.round()
            assert torch.equal(got[i].cpu(), expected.to(config.dtype)), i


@pytest.mark.parametrize(("dtype", "channels_last"), FORMATS)
@pytest.mark.parametrize("make", mixers())
def test_mixed_batches_are_those_of_the_reference(make: type[Mixer], dtype: torch.dtype, channels_last: bool) -> None:
    check_mixed(make, dtype=dtype, channels_last=channels_last)


@pytest.mark.parametrize("num_threads", [2, 3, 64])
def test_the_number_of_threads_changes_nothing(num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcifar.augment.numba_mixing.MIN_IMAGES", 5)
    config, images = (
        kernel_config(BOTH, (4, 4, 3)),
        torch.randn(48, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    )
    plan, results = plan_mix(sample_params(BOTH, 0, 0, 48, (4, 4, 3)), 48, 0, 1), []
    for threads in (1, num_threads):
        batch = images.clone()
        with closing(NumbaMixer(config, threads)) as mixer:
            results.append(mixer.launch(lambda batch=batch: batch, plan)())
    assert torch.equal(*results)


@pytest.mark.parametrize("augment", [MIXUP, CUTMIX])
def test_pixels_and_labels_are_those_of_torchvision(augment: AugmentConfig) -> None:
    """Its partner is the image before, and all images of a batch share weight and box."""
    table = np.repeat(sample_params(augment, 4, 0, 40, (8, 8, 3))[17:18], 40)
    images, labels = torch.randn(40, 3, 8, 8), torch.arange(40) % 7
    plan = plan_mix(table, 40, 0, 1)._replace(partners=(np.arange(40) - 1) % 40, bounds=np.array([0, 40]))
    row, peer = table[0], v2.MixUp(num_classes=7) if augment is MIXUP else v2.CutMix(num_classes=7)
    top, left, height, width = (int(row[f"mix_{name}"]) for name in ("y", "x", "height", "width"))
    lam = float(np.float32(1) - row["partner_weight"])
    params = {"labels": labels, "batch_size": 40, "lam": lam, "lam_adjusted": lam}
    params["box"] = (left, top, left + width, top + height)
    with closing(NumbaMixer(kernel_config(augment, (8, 8, 3), channels_last=False))) as mixer:
        got = mixer.launch(images.clone, plan)()
    assert torch.equal(got, peer.transform(images, params))
    assert not torch.equal(got, images)
    partners, weights = (torch.from_numpy(array) for array in plan[:2])
    batch = MixedBatch(got, labels, labels, Mix(labels[partners], weights))
    assert torch.allclose(batch.soft_labels(7), peer.transform(labels, params))


# ---- loaders -----------------------------------------------------------------------------------------------------

AUGMENT = AugmentConfig(mixup=0.4, cutmix=1.0)


def same(a: Batch, b: Batch) -> bool:
    assert a.mix is not None
    assert b.mix is not None
    pairs = zip((a.images, a.labels, a.indices, *a.mix), (b.images, b.labels, b.indices, *b.mix), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_mixes_alike_and_as_the_reference(data_dir: Path, name: str) -> None:
    settings: dict[str, Any] = {"batch_size": 100, "seed": 3, "loader": name}
    loader = make_loader(data_dir / "train.beton", AUGMENT, **settings)
    mixed, table = epoch_of(loader, 1), loader.params(1)
    plain = epoch_of(make_loader(data_dir / "train.beton", AugmentConfig(), **settings), 1)
    resident = epoch_of(make_loader(data_dir / "train.beton", AUGMENT, **{**settings, "loader": "resident"}), 1)
    for batch, other, expected in zip(mixed, plain, resident, strict=True):
        assert same(batch, expected)
        assert torch.equal(batch.indices, other.indices)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
    batch, other = mixed[0], plain[0]
    assert batch.mix is not None
    rows = table[batch.indices.numpy()]
    plan = plan_mix(rows, 100, 0, 1)
    assert torch.equal(batch.mix.partner_labels, batch.labels[plan.partners])
    assert torch.equal(batch.mix.weights, torch.from_numpy(plan.weights))
    images = other.images.numpy()
    for i, partner in enumerate(plan.partners):
        np.testing.assert_array_equal(batch.images[i].numpy(), mix_image(images[i], images[partner], rows[i]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8])
@pytest.mark.parametrize("name", LOADERS[::2])  # resident and albumentations
def test_half_precision_is_rounded_once_and_uint8_mixes_grey_levels(
    data_dir: Path, name: str, dtype: torch.dtype
) -> None:
    settings: dict[str, Any] = {"batch_size": 100, "loader": name}
    got = epoch_of(make_loader(data_dir / "train.beton", AUGMENT, dtype=dtype, **settings))
    if dtype == torch.uint8:
        plain = AugmentConfig()
        images = epoch_of(make_loader(data_dir / "train.beton", plain, dtype=dtype, **settings))[0].images
        loader = make_loader(data_dir / "train.beton", AUGMENT, **settings)
        rows = loader.params(0)[got[0].indices.numpy()]
        loader.close()
        floats = images.float().numpy()
        for i, partner in enumerate(plan_mix(rows, 100, 0, 1).partners):
            expected = np.rint(mix_image(floats[i], floats[partner], rows[i]))
            np.testing.assert_array_equal(got[0].images[i].numpy(), expected)
    else:
        for batch, exact in zip(got, epoch_of(make_loader(data_dir / "train.beton", AUGMENT, **settings)), strict=True):
            assert torch.equal(batch.images, exact.images.to(dtype))


def test_without_the_compiled_kernels_the_pixels_are_the_same(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unusable() -> None:
        raise ImportError("no Numba")

    expected = next(make_loader(data_dir / "train.beton", AUGMENT, batch_size=100).epoch(1))
    monkeypatch.setattr("fastcifar.augment.kernel.numba_module", unusable)
    monkeypatch.setattr("fastcifar.augment.mixing.numba_module", unusable)
    loader = make_loader(data_dir / "train.beton", AUGMENT, batch_size=100)
    assert isinstance(loader._mixer, TorchMixer)
    assert same(next(loader.epoch(1)), expected)


@pytest.mark.parametrize("sampler", ["none", "balanced"])
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_every_number_of_processes_sees_the_same_mixed_batches(data_dir: Path, world_size: int, sampler: str) -> None:
    def make(**settings: Any) -> list[Batch]:
        indices = np.flatnonzero(np.arange(600) % 7 != 3)
        return epoch_of(
            make_loader(data_dir / "train.beton", AUGMENT, batch_size=72, sampler=sampler, indices=indices, **settings),
            2,
        )

    parts = [make(rank=rank, world_size=world_size) for rank in range(world_size)]
    for whole, *slices in zip(make(), *parts, strict=True):
        mixes = [part.mix for part in slices]
        assert torch.equal(whole.images, torch.cat([part.images for part in slices]))
        assert torch.equal(whole.labels, torch.cat([part.labels for part in slices]))
        assert whole.mix is not None
        assert torch.equal(whole.mix.partner_labels, torch.cat([mix.partner_labels for mix in mixes if mix]))
        assert torch.equal(whole.mix.weights, torch.cat([mix.weights for mix in mixes if mix]))


@pytest.mark.parametrize("name", LOADERS)
def test_an_epoch_that_begins_in_the_middle_has_the_same_mixed_batches(data_dir: Path, name: str) -> None:
    def make() -> Any:
        return make_loader(data_dir / "train.beton", AUGMENT, batch_size=100, loader=name, sampler="balanced")

    whole, rest = epoch_of(make(), 1), epoch_of(make(), 1, start=4)
    assert len(rest) == 2
    assert all(map(same, whole[4:], rest))


def test_kept_batches_do_not_change(data_dir: Path) -> None:
    loader = make_loader(data_dir / "train.beton", AUGMENT, batch_size=30)
    kept, copies = [], []
    for batch in loader.epoch(0):
        kept.append(batch.images)
        copies.append(batch.images.clone())
    loader.close()
    assert all(map(torch.equal, kept, copies))


def test_leaving_early_leaves_no_thread(data_dir: Path) -> None:
    before = set(threading.enumerate())
    with closing(make_loader(data_dir / "train.beton", AUGMENT, batch_size=100, loader="resident")) as loader:
        next(loader.epoch(0))
        assert any(thread.name.startswith("fastcifar-mix") for thread in threading.enumerate())
    assert set(threading.enumerate()) <= before


def test_a_pipeline_can_be_mixed(data_dir: Path, tmp_path: Path) -> None:
    albumentations = pytest.importorskip("albumentations")
    albumentations.save(albumentations.Compose([albumentations.HorizontalFlip(p=0.5)]), tmp_path / "pipeline.json")
    augment = read_pipeline(tmp_path / "pipeline.json")
    loader = make_loader(data_dir / "train.beton", replace(augment, cutmix=1.0), batch_size=100)
    (mixed, *_), rows = epoch_of(loader), loader.params(0)
    plain = epoch_of(make_loader(data_dir / "train.beton", augment, batch_size=100))[0].images.numpy()
    rows = rows[mixed.indices.numpy()]
    for i, partner in enumerate(plan_mix(rows, 100, 0, 1).partners):
        np.testing.assert_array_equal(mixed.images[i].numpy(), mix_image(plain[i], plain[partner], rows[i]))


def test_the_commands_mix_images_of_a_pipeline(data_dir: Path, tmp_path: Path) -> None:
    albumentations = pytest.importorskip("albumentations")
    albumentations.save(albumentations.Compose([albumentations.HorizontalFlip(p=0.5)]), tmp_path / "p.json")
    arguments = ["preview", "--data-dir", data_dir, "--augment", tmp_path / "p.json", "--mixup", 0.4, "--n", 1]
    result = CliRunner().invoke(main, [*map(str, arguments), "--out", str(tmp_path / "a.png")])
    assert result.exit_code == 0, result.output
    assert "--mixup 0.4" in result.output
    values = {"pipeline": str(tmp_path / "p.json"), "cutmix": 1.0, "cutout_size": 8}
    config = train_config(click.Context(main), values)
    assert (config.augment.pipeline is None, config.augment.cutmix, config.augment.cutout_size) == (False, 1.0, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 15}, "batch_size is 15 with mixup or cutmix; expected at least 16: images are mixed within"),
        ({"batch_size": 48, "world_size": 3}, "3 processes with mixup or cutmix; expected 1, 2, 4 or 8"),
        ({"batch_size": 48, "world_size": 16}, "16 processes with mixup or cutmix; expected 1, 2, 4 or 8"),
        ({"mixup": -0.1}, r"mixup is -0\.1; expected a number, 0\.\.100"),
        ({"cutmix": float("nan")}, r"cutmix is nan; expected a number, 0\.\.100"),
    ],
)
def test_what_cannot_be_mixed_is_refused(data_dir: Path, settings: dict[str, Any], message: str) -> None:
    alphas = {name: settings.pop(name) for name in ("mixup", "cutmix") if name in settings}
    with pytest.raises(UsageError, match=message):
        make_loader(data_dir / "train.beton", replace(AUGMENT, **alphas), **settings)


# ---- batches -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(data_dir: Path) -> MixedBatch:
    (batch, *_) = epoch_of(make_loader(data_dir / "train.beton", AUGMENT, batch_size=100))
    assert isinstance(batch, MixedBatch)
    return batch


def test_the_labels_of_a_mixed_batch_cannot_be_mistaken(mixed: MixedBatch) -> None:
    """Its `labels` alone are not those of its images."""

    def unpack() -> None:
        _images, _labels, _indices = mixed

    uses: list[Any] = [unpack, lambda: list(mixed), lambda: mixed[:2], lambda: torch.utils._pytree.tree_map(abs, mixed)]
    for use in uses:
        with pytest.raises(UsageError, match=r"mixed .mixup, cutmix., so each has two labels; use batch.images with"):
            use()
    assert mixed[0] is mixed.images


def test_a_mixed_batch_has_soft_labels_and_main_labels(mixed: MixedBatch) -> None:
    soft = mixed.soft_labels(10)
    assert soft.dtype == torch.float32
    assert torch.allclose(soft.sum(1), torch.ones(100))
    for i in range(100):
        own, partner = int(mixed.labels[i]), int(mixed.mix.partner_labels[i])
        weight = mixed.mix.weights[i, 0]
        if own != partner:
            assert torch.equal(soft[i, own], weight)
        assert mixed.main_labels[i] == (own if weight >= 0.5 else partner)
    equal = mixed.mix._replace(weights=torch.full((100, 2), 0.5))
    assert torch.equal(MixedBatch(mixed.images, mixed.labels, mixed.indices, equal).main_labels, mixed.labels)
    copy = pickle.loads(pickle.dumps(mixed))
    assert same(copy, mixed)
    plain = Batch(*tuple.__iter__(mixed))
    assert plain.mix is None
    assert plain.main_labels is plain.labels
    logits = torch.randn(100, 10)
    assert torch.allclose(cross_entropy(logits, mixed.labels, mixed.mix), F.cross_entropy(logits, soft))


GOLDEN_THRESHOLDS = "a9feef0c41857f331b93af25092514d3caed5d8e211db21ab63a5a2d222eff9b"
GOLDEN_ROWS: dict[str, list[object]] = {
    "partner": [2230012566, 311058110, 2614338790, 28654641, 1705576399, 3212390999],
    "partner_weight": [0.177734375, 0.146728515625, 0.408203125, 0.2783203125, 0.124755859375, 0.990234375],
    "mix_y": [12, 0, 0, 17, 0, 0],
    "mix_x": [19, 0, 10, 0, 0, 0],
    "mix_height": [14, 0, 19, 15, 0, 0],
    "mix_width": [13, 0, 22, 19, 0, 0],
}
