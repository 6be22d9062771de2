"""Seconds and memory of `fastcifar convert`, next to torchvision's ImageFolder with FFCV's writer, on the same files.

    python -m benchmarks.convert --json

Cases: a tar of 60,000 PNG images of 32x32; a folder of 10,000 JPEG images of about 500x400 (smooth noise, quality 90),
resized to 64x64; 1,000,000 generated images of 64x64, from Python (ours only). Every candidate runs in a process of its
own, in turn, round after round; `memory_mib` is the largest resident memory of that process, imports included.
Files are made in a temporary folder (up to 13 GB).
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import PIL.Image

from benchmarks import Command, options, row, save_rows, show
from benchmarks.subprocesses import failure, run_group
from fastcifar.bench.results import environment
from fastcifar.converters.synthetic import CLASS_NAMES, SyntheticSplit
from fastcifar.system.cpus import available_cpus

PEER = "ImageFolder + FFCV"
GENERATED = """if True:
    import sys
    import numpy as np
    import fastcifar

    class Generated:
        classes = [str(label) for label in range(10)]
        noise = np.random.default_rng(0).integers(0, 256, (64, 64 * 3 + 4_096), dtype=np.uint8)
        def __init__(self, num_images):
            self.num_images = num_images
        def __len__(self):
            return self.num_images
        def __getitem__(self, index):
            begin = index % 4_096
            return (self.noise[:, begin : begin + 192] ^ (index >> 12)).reshape(64, 64, 3), index % 10

    fastcifar.convert(Generated(int(sys.argv[1])), sys.argv[2], test=Generated(1_000))
"""
MEASURE = """if True:
    import resource, subprocess, sys, time
    begin = time.perf_counter()
    process = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
    elapsed = time.perf_counter() - begin
    if process.returncode:
        sys.exit(process.returncode)
    print(elapsed, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def write_png_tar(path: Path, num_images: int) -> None:
    """A tar of synthetic images, five of six to train on."""
    with tarfile.open(path, "w") as archive:
        for split, stream, num in (("train", 0, num_images * 5 // 6), ("test", 1, num_images // 6)):
            for number, sample in enumerate(SyntheticSplit(num, 0, stream)):
                file = io.BytesIO()
                PIL.Image.fromarray(sample.image).save(file, "PNG")
                member = tarfile.TarInfo(f"{split}/{CLASS_NAMES[sample.label]}/{number:05d}.png")
                member.size = len(file.getvalue())
                file.seek(0)
                archive.addfile(member, file)


def write_photographs(folder: Path, num_images: int) -> None:
    """JPEG files of smooth noise, 450 to 550 pixels wide and 350 to 450 high, one of ten to test on."""
    for number, image in enumerate(smooth_noise(num_images)):
        split = "test" if number % 10 == 9 else "train"
        file = folder / split / f"class{number % 7}" / f"{number:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file, quality=90)


def smooth_noise(num_images: int) -> Iterator[PIL.Image.Image]:
    """Images whose spectrum falls as that of photographs."""
    random = np.random.default_rng(0)
    for _ in range(num_images):
        width, height = int(random.integers(450, 551)), int(random.integers(350, 451))
        image = PIL.Image.new("RGB", (width, height), (128, 128, 128))
        for side in (4, 16, 64):
            values = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
            layer = PIL.Image.fromarray(values).resize((width, height), PIL.Image.Resampling.BICUBIC)
            image = PIL.Image.blend(image, layer, 0.5 if side < 64 else 0.25)
        yield image


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds and MiB of a command. Raises ClickException if it fails."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = run_group([sys.executable, "-c", MEASURE, *command], **pipes)
    if process.returncode:
        raise failure(" ".join(command[:4]), process.stderr, process.returncode)
    seconds, kib = process.stdout.split()[-2:]
    return float(seconds), float(kib) / 1024


@click.command(cls=Command)
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1))
@click.option("--png", default=60_000, show_default=True, type=click.IntRange(0), help="Images in the tar; 0: skip.")
@click.option("--jpeg", default=10_000, show_default=True, type=click.IntRange(0), help="JPEG files; 0: skip.")
@click.option("--generated", default=1_000_000, show_default=True, type=click.IntRange(0), help="0: skip.")
@options()
def main(repeats: int, png: int, jpeg: int, generated: int, save: bool, as_json: bool) -> None:
    """Seconds and memory by case and candidate."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        convert = [sys.executable, "-m", "fastcifar", "convert", "--data-dir", str(folder / "data")]
        peer = [sys.executable, "-m", "benchmarks.peers.imagefolder_to_ffcv"]
        cases: list[tuple[str, int, dict[str, list[str]]]] = []
        if png:
            path = folder / "images.tar"
            write_png_tar(path, png)
            candidates = {"fastcifar": [*convert, "--source", str(path)]}
            candidates[PEER] = [*peer, str(path), "32", str(available_cpus())]
            cases.append((f"{png:,} PNG of 32x32 in a tar", png, candidates))
        if jpeg:
            photographs = folder / "photographs"
            write_photographs(photographs, jpeg)
            candidates = {"fastcifar": [*convert, "--source", str(photographs), "--size", "64"]}
            candidates[PEER] = [*peer, str(photographs), "64", str(available_cpus())]
            cases.append((f"{jpeg:,} JPEG of about 500x400 to 64x64", jpeg, candidates))
        if generated:
            command = [sys.executable, "-c", GENERATED, str(generated), str(folder / "data")]
            cases.append((f"{generated:,} generated of 64x64", generated, {"fastcifar": command}))
        for case, num_images, candidates in cases:
            if PEER in candidates and find_spec("ffcv") is None:
                del candidates[PEER]
                rows.append(row(PEER, case=case, note="skipped: FFCV is not installed"))
            results: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
            for number in range(repeats):
                for name, command in candidates.items():
                    results[name].append(measure(command))
                    click.echo(
                        f"round {number + 1} of {repeats}: {case}: {name} {results[name][-1][0]:.1f} s", err=True
                    )
            for name, measured in results.items():
                elapsed = sorted(seconds for seconds, _ in measured)
                values = {"seconds": round(median(elapsed), 2), "seconds_min": round(elapsed[0], 2)}
                values |= {"seconds_max": round(elapsed[-1], 2), "memory_mib": round(max(mib for _, mib in measured))}
                rows.append(
                    row(name, case=case, repeats=repeats, images_per_s=round(num_images / median(elapsed)), **values)
                )
    show(rows, ("name", "case", "seconds", "seconds_min", "seconds_max", "images_per_s", "memory_mib", "note"), as_json)
    if save:
        save_rows(__file__, rows, environment("generated images"))


if __name__ == "__main__":
    main()
