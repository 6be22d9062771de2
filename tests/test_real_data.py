"""All of CIFAR-10 as images: one conversion, looked at from every side."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastcifar.data.beton import open_beton

pytestmark = pytest.mark.real_data
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def test_counts_classes_and_statistics(real_dir: Path) -> None:
    train, test = (open_beton(real_dir / f"{name}.beton") for name in ("train", "test"))
    assert train.verified
    assert train.class_names == test.class_names == CLASSES
    assert np.bincount(train.labels).tolist() == [5_000] * 10
    assert np.bincount(test.labels).tolist() == [1_000] * 10
    np.testing.assert_allclose(train.mean, (125.3, 122.9, 113.9), atol=0.1)
    np.testing.assert_allclose(train.std, (62.5, 61.9, 66.5), atol=0.6)


def test_converting_takes_less_than_600_mb_of_memory(real_source: str, tmp_path: Path) -> None:
    code = """if True:
        import contextlib, sys
        from fastcifar.cli import main
        with contextlib.suppress(SystemExit):
            main(["convert", "--source", sys.argv[1], "--data-dir", sys.argv[2]])
        print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
    """
    command = [sys.executable, "-W", "ignore", "-c", code, real_source, str(tmp_path)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    assert (tmp_path / "test.beton.json").is_file()
    assert int(answer.stdout.splitlines()[-1]) * 1024 < 600e6  # the kernel counts in KiB


def test_an_archive_converts_to_the_same_bytes_each_time(real_dir: Path, tmp_path: Path, real_source: str) -> None:
    from fastcifar.converters import convert, open_source

    with open_source(real_source) as source:
        convert(source, tmp_path)
    assert (tmp_path / "train.beton.json").read_bytes() == (real_dir / "train.beton.json").read_bytes()
