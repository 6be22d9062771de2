"""Pipes, devices, links and gigantic files instead of those that are read and written: no hang, no write elsewhere."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastcifar.config import ExplainConfig
from fastcifar.data.beton import open_beton
from fastcifar.data.manifest import manifest_path
from fastcifar.data.tables import ALLOCATION, HEADER, RECORD, TABLES_START
from fastcifar.errors import DataError, FastcifarError
from fastcifar.explain import explain_run
from fastcifar.inference.evaluation import evaluate_run
from fastcifar.io.atomic import _pid_namespace
from fastcifar.report import write_report
from fastcifar.training import RunFolder, train
from tests.trust.cases import LONGEST_S, contents, count, run_cli

READ = ("config.yaml", "metrics.json", "predictions.npz", "env.json", "weights/last.pt", "weights/best.safetensors")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(trained, tmp_path / "runs")
    return RunFolder(tmp_path / "runs" / "a")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def gigantic(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


class Hangs(BaseException):
    """Not an Exception: readers of files may catch those."""


@contextmanager
def in_time() -> Iterator[None]:
    """Ends the test if it waits for a pipe."""

    def end(*args: object) -> None:
        signal.alarm(1)  # again, if this is dropped
        raise Hangs

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("odd", [pipe, device, gigantic][: count(1, 3)])
def test_odd_files_in_a_run_folder_neither_hang_nor_crash(run: RunFolder, odd: Callable[[Path], None]) -> None:
    """First the optional files, then those that the commands need."""
    for name in READ[1:4]:
        (run.path / name).unlink()
        odd(run.path / name)
    with in_time():
        evaluate_run(run)
    settings = run.read_config().with_settings(epochs=2)
    for name in (READ[0], *READ[4:]):
        kept = (run.path / name).read_bytes()
        (run.path / name).unlink()
        odd(run.path / name)
        for use in (lambda: evaluate_run(run), lambda: train(settings, resume=run), run.read_config):
            with in_time(), suppress(FastcifarError):
                use()
        (run.path / name).unlink(missing_ok=True)
        (run.path / name).write_bytes(kept)
    with in_time():
        assert train(replace(settings, epochs=3), resume=run)[1]["epochs"] == 3


@pytest.mark.parametrize("odd", [pipe, device, gigantic])
def test_odd_betons_and_manifests_are_refused(own_data_dir: Path, odd: Callable[[Path], None]) -> None:
    path = own_data_dir / "train.beton"
    manifest_path(path).unlink()
    odd(manifest_path(path))
    with pytest.raises(DataError, match="not a manifest of fastcifar"):
        open_beton(path)
    path.unlink()
    odd(path)
    with pytest.raises(DataError):
        open_beton(path)


def test_a_sparse_beton_of_few_images_is_not_hashed_to_its_end(own_data_dir: Path) -> None:
    path = own_data_dir / "train.beton"
    content = np.fromfile(path, np.uint8)
    table = content[-30 * 24 :].tobytes()
    manifest_path(path).unlink()
    size = 200 * 2**30
    with path.open("r+b") as file:
        file.seek(size - len(table))
        file.write(table)
        file.seek(16)
        file.write((size - len(table)).to_bytes(8, "little"))
    with pytest.raises(DataError, match="more than 30 images can fill"):
        open_beton(path)


@pytest.mark.parametrize(("gib", "reason"), [(1, "images of 0x0"), (2_000, "its tables take .* GiB")])
def test_a_sparse_beton_of_many_images_is_refused_before_its_tables_are_read(
    own_data_dir: Path, gib: int, reason: str
) -> None:
    path = own_data_dir / "train.beton"
    manifest_path(path).unlink()
    header = np.fromfile(path, np.uint8, TABLES_START)
    num_images = (gib * 2**30 - TABLES_START) // (RECORD.itemsize + ALLOCATION.itemsize)
    values = header[: HEADER.itemsize].view(HEADER)
    values["num_samples"], values["alloc_table_ptr"] = num_images, TABLES_START + num_images * RECORD.itemsize
    with path.open("wb") as file:
        file.write(header)
        file.truncate(TABLES_START + num_images * (RECORD.itemsize + ALLOCATION.itemsize))
    with pytest.raises(DataError, match=reason):
        open_beton(path)


def test_links_instead_of_partial_files_are_not_followed(run: RunFolder, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    for file in (run.report, run.predictions, run.last):
        file.with_name(f".{os.getpid()}.{_pid_namespace()}.{file.name}.partial").symlink_to(victim)
    run.predictions.unlink()
    write_report(run)
    evaluate_run(run)
    train(run.read_config().with_settings(epochs=2), resume=run)
    run.log.unlink()
    run.log.symlink_to(victim)
    with pytest.raises(FastcifarError, match=r"log\.txt"):
        train(run.read_config().with_settings(epochs=3), resume=run)
    assert victim.read_text() == "kept"
    assert not run.report.is_symlink()


def test_links_instead_of_folders_are_not_followed(run: RunFolder, tmp_path: Path) -> None:
    """Into another run, or anywhere."""
    victim = tmp_path / "victim"
    (victim / "sheets").mkdir(parents=True)
    (victim / "sheets" / "mine").write_text("kept")
    shutil.copytree(run.path / "weights", victim / "weights")
    kept = contents(victim)
    shutil.rmtree(run.path / "weights")
    (run.path / "weights").symlink_to(victim / "weights")
    (run.path / "explain").symlink_to(victim)
    (run.path / "eval").mkdir()
    (run.path / "eval" / "test").symlink_to(victim)
    for write in (
        lambda: train(run.read_config().with_settings(epochs=2), resume=run),
        lambda: explain_run(run, ExplainConfig(n=1)),
        lambda: evaluate_run(run),
    ):
        with pytest.raises(FastcifarError, match="a link to a folder outside the run"):
            write()
        assert contents(victim) == kept


PARTIALS = [f".train.beton.{name}" for name in ("partial", "partial.origins", "json.partial", "origins.txt.partial")]


@pytest.mark.slow
@pytest.mark.parametrize("partial", [*PARTIALS, ".test.beton.partial"])
def test_a_conversion_does_not_write_through_links_or_wait_for_pipes(
    own_data_dir: Path, image_folder: Callable[..., Path], tmp_path: Path, partial: str
) -> None:
    images, victim = image_folder(), tmp_path / "victim"
    victim.write_text("kept")
    for odd in (lambda path: path.symlink_to(victim), pipe):
        odd(own_data_dir / partial)
        code, _, errors = run_cli("convert", "--source", images, "--data-dir", own_data_dir)
        assert code == 0, errors
        assert victim.read_text() == "kept"
        assert not (own_data_dir / "train.beton").is_symlink()
        assert len(contents(own_data_dir)) == 6


def test_predictions_of_other_images_are_computed_again(run: RunFolder) -> None:
    """Their hashes of weights and data match, their content does not."""
    with np.load(run.predictions) as found:
        honest = dict(found)
    expected = evaluate_run(run).metrics.accuracy
    for changed in (
        {key: honest[key][:5] for key in ("indices", "labels", "logits")},
        {"logits": honest["logits"][:, :3]},
        {"logits": np.pad(honest["logits"], ((0, 0), (0, 20)))},
        {"indices": np.zeros_like(honest["indices"])},
        {"indices": honest["indices"] + 10**9},
        {"labels": np.roll(honest["labels"], 1)},
    )[:: count(5, 1)]:
        np.savez(run.predictions, **{**honest, **changed})
        assert evaluate_run(run).metrics.accuracy == expected
        with np.load(run.predictions) as found:
            assert all(np.array_equal(found[key], honest[key]) for key in honest)
