"""The package as others get it: sdist and wheel, checked for PyPI, installed elsewhere, and run from there."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def call(*command: object, **settings: object) -> str:
    answer = subprocess.run([str(c) for c in command], capture_output=True, text=True, **settings)  # type: ignore[call-overload]
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.mark.slow
def test_the_package_installs_and_runs_elsewhere(tmp_path: Path) -> None:
    """The wheel is built from the sdist, as pip does with an sdist."""
    copy = tmp_path / "checkout"
    tracked = call("git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in tracked:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    dist = tmp_path / "dist"
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, copy, cwd=tmp_path)
    (wheel,), (sdist,) = dist.glob("fastcifar-*.whl"), dist.glob("fastcifar-*.tar.gz")
    call(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {name for name in tracked if (ROOT / name).is_file()} - packed <= {".gitignore"}
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    files = {name for name in tracked if name.startswith(("fastcifar/", "converters/")) and (ROOT / name).is_file()}
    assert {name if name.startswith("fastcifar/") else f"fastcifar/{name}" for name in files} <= inside
    assert not [name for name in inside if name.startswith(("tests/", "benchmarks/", "converters/"))]

    pip = (sys.executable, "-m", "pip", "--quiet")
    elsewhere = tmp_path / "env"
    venv.create(elsewhere)
    python = elsewhere / "bin" / "python"
    call(*pip, "--python", python, "install", "--no-deps", wheel)
    # the dependencies of this environment, without what its .pth files add (the checkout itself)
    (site,) = elsewhere.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    program = elsewhere / "bin" / "fastcifar"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FASTCIFAR"))}
    settings = {"cwd": tmp_path, "env": environment}
    where = call(python, "-c", "import fastcifar.converters as c; print(c.__file__)", **settings)
    assert where.strip() == str(site / "fastcifar/converters/__init__.py")
    assert "fastcifar, version" in call(program, "--version", **settings)
    images = tmp_path / "images"
    make = "import sys, pathlib, PIL.Image as I\nfor s in ('train', 'test'):\n for c in 'ab':\n  for i in range(4):\n"
    make += "   p = pathlib.Path(sys.argv[1], s, c, f'{i}.png'); p.parent.mkdir(parents=True, exist_ok=True)\n"
    make += "   I.new('RGB', (16, 16), (i * 9, 0, 200)).save(p)"
    call(python, "-c", make, images, **settings)
    call(program, "convert", "--source", images, **settings)
    call(program, "train", "--model", "small", "--batch-size", "4", "--max-steps", "1", **settings)
    assert "test images misclassified" in call(program, "explain", "--n", "2", **settings)
