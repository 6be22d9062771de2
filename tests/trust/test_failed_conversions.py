"""A failed conversion leaves the existing files, or none."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fastcifar.converters import convert
from fastcifar.converters.synthetic import source as synthetic_source
from fastcifar.data.beton import open_beton
from fastcifar.data.manifest import manifest_path
from tests.kills import Changes, changes_in
from tests.trust.cases import LONGEST_S, contents, count, error_line, run_cli, small_disk, start

Tally = Callable[[str], None]
WITHIN_S = 35
FILES = tuple(f"{name}.beton{end}" for name in ("test", "train") for end in ("", ".json", ".origins.txt"))


@pytest.fixture
def images(tmp_path: Path, image_folder: Callable[..., Path]) -> Path:
    return image_folder("images", each=40, side=32)


def good_sums(folder: Path) -> dict[str, str]:
    """SHA-256 of both betons; both are whole, and those of their manifests."""
    found = {name: open_beton(folder / f"{name}.beton") for name in ("train", "test")}
    assert all(beton.verified for beton in found.values())
    return {name: beton.sha256 for name, beton in found.items()}


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_killed_conversion_leaves_the_old_files_or_the_new(
    own_data_dir: Path, images: Path, tmp_path: Path, tally: Tally
) -> None:
    old, shared = good_sums(own_data_dir), set(os.listdir("/dev/shm"))
    arguments = ("convert", "--source", images, "--data-dir")
    began = time.monotonic()
    assert run_cli(*arguments, tmp_path / "new")[0] == 0
    took = time.monotonic() - began
    new, chosen, num, killed, renewed = good_sums(tmp_path / "new"), random.Random(0), count(2, 100), 0, 0
    before = contents(own_data_dir)
    for i in range(num):
        more = ("--encode", "jpeg") if i % 2 else ()
        process = start(*arguments, own_data_dir, *more, start_new_session=True)
        while process.poll() is None and not list(own_data_dir.glob(".*.partial")):
            time.sleep(0.001)  # waits for another process to reach a state; no result depends on it
        if i:
            time.sleep(chosen.uniform(0, 0.5) * took)
        process.kill()
        process.communicate(timeout=LONGEST_S)
        killed += process.returncode == -signal.SIGKILL
        assert not is_alive(process.pid)
        for name in ("train", "test"):
            beton = open_beton(own_data_dir / f"{name}.beton")  # whole, or it is refused
            if not more:
                assert beton.sha256 in (old[name], new[name])
            renewed += beton.sha256 != old[name]
        left = {path.name for path in own_data_dir.iterdir()} - set(FILES)
        ends = (".partial", ".partial.origins", ".json.partial", ".origins.txt.partial")
        assert left <= {f".{name}.beton{end}" for name in ("train", "test") for end in ends}
        for name, content in before.items():
            (own_data_dir / name).write_bytes(content)
    assert set(os.listdir("/dev/shm")) <= shared
    assert run_cli(*arguments, own_data_dir)[0] == 0
    assert good_sums(own_data_dir) == new
    assert sorted(path.name for path in own_data_dir.iterdir()) == sorted(FILES)
    assert killed
    tally(f"{num} kill -9, {killed} before the end: the old files whole, but for {renewed} times the new")


@pytest.mark.parametrize("jpeg_quality", [None, pytest.param(90, marks=pytest.mark.slow)])
def test_a_conversion_killed_at_any_change_of_the_disk_leaves_the_old_files_or_the_new(
    own_data_dir: Path, jpeg_quality: int | None
) -> None:
    def convert_again(fatal: int | None = None) -> Changes:
        with changes_in(own_data_dir, fatal) as changes, synthetic_source(20, 10, seed=1) as source:
            convert(source, own_data_dir, jpeg_quality=jpeg_quality)
        return changes

    old = contents(own_data_dir)
    num = len(convert_again().seen)
    new = contents(own_data_dir)
    for fatal in range(num):
        for path in own_data_dir.iterdir():
            path.unlink()
        for name, content in old.items():
            (own_data_dir / name).write_bytes(content)
        assert convert_again(fatal).died
        left = contents(own_data_dir)
        for name in ("train.beton", "test.beton"):
            assert left[name] in (old[name], new[name])
            manifest = f"{name}.json"  # it is gone, and the file opens with a warning, in the moment of replacing alone
            assert manifest not in left or left[manifest] == (old if left[name] == old[name] else new)[manifest]
            open_beton(own_data_dir / name)
        assert {name for name in left if not name.startswith(".")} <= set(FILES)
        assert all(".partial" in name for name in left if name.startswith("."))
        assert not convert_again().died
        assert contents(own_data_dir) == new  # nothing that was left is in the way
    assert num > 10


@pytest.mark.slow
def test_a_failing_source_is_an_error_within_seconds(own_data_dir: Path, images: Path) -> None:
    old = contents(own_data_dir)
    (images / "test/dog/39.png").write_bytes((images / "test/dog/39.png").read_bytes()[:100])  # the last one
    began = time.monotonic()
    code, _, errors = run_cli("convert", "--source", images, "--data-dir", own_data_dir)
    assert code == 4
    assert "test/dog/39.png: not a readable image" in error_line(errors)
    assert time.monotonic() - began < WITHIN_S
    assert contents(own_data_dir) == old


@pytest.mark.slow
@pytest.mark.full_size
def test_a_full_disk_leaves_the_old_files(own_data_dir: Path, images: Path, tmp_path: Path, tally: Tally) -> None:
    old = contents(own_data_dir)
    sizes = (33_200, 34_000, 36_000, 38_000, 40_000, 41_200, 42_000, 44_000, 46_000, 48_000)
    num = 0
    for kib in sizes[:: count(5, 1)]:
        with small_disk(tmp_path / "disk", kib) as disk:
            if disk is None:
                pytest.skip("no disk can be mounted here")
            for name, content in old.items():
                (disk / name).write_bytes(content)
            code, _, errors = run_cli("convert", "--source", images, "--data-dir", disk)
            if code:  # else it was large enough
                assert code == 1
                assert "No space left on device" in error_line(errors)
                assert "nothing was replaced" in errors
                assert contents(disk) == old
                num += 1
    assert num
    tally(f"{num} full disks: the old files whole")


@pytest.mark.slow
@pytest.mark.parametrize("kib", [100, 9_000])
def test_a_limit_to_the_size_of_files_is_a_full_disk(own_data_dir: Path, images: Path, kib: int) -> None:
    old = contents(own_data_dir)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (kib * 1024, kib * 1024))

    env = {"PYTHONDONTWRITEBYTECODE": "1"}  # Python would keep modules that were compiled and cut at the limit
    code, _, errors = run_cli("convert", "--source", images, "--data-dir", own_data_dir, preexec_fn=limit, env=env)
    assert code == 1
    assert "File too large" in error_line(errors)
    assert contents(own_data_dir) == old


@pytest.mark.slow
def test_one_source_gives_one_file(images: Path, tmp_path: Path, tally: Tally) -> None:
    num, found = count(2, 10), set()
    for i in range(num):
        env = {"PYTHONHASHSEED": str(i), "TZ": f"UTC{i}", "LC_ALL": ("C", "C.UTF-8")[i % 2]}
        assert run_cli("convert", "--source", images, "--data-dir", tmp_path / str(i), env=env)[0] == 0
        found.add(tuple(good_sums(tmp_path / str(i)).values()))
        assert manifest_path(tmp_path / str(i) / "train.beton").is_file()
    assert len(found) == 1
    tally(f"{num} conversions of one source: one SHA-256")
