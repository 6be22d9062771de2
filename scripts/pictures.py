"""Make the pictures of docs/ again, from real images and finished runs: `make pictures`.

    python scripts/pictures.py --data-dir data --run runs/fast --compare runs/a runs/b --audit audit --issues judged.csv

Each is what a command of the documentation writes, or a page of it in Chromium, reduced to at most 500 kB. Nothing is
trained, and the folders that are named are not written to.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from PIL import Image

from fastcifar import Run
from fastcifar.plotting import write_png

ROOT = Path(__file__).parent.parent
MAX_BYTES = 500_000
LEVEL = 5
"""Values of larger pictures are rounded to multiples of this: it halves them, and is not seen."""
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
AUGMENTATION = "--rotate-degrees 15 --rotate-p 0.5 --hue-shift 10 --saturation-shift 30 --value-shift 20 --colour-p 0.5"


@click.command()
@click.option("--data-dir", required=True, envvar="FASTCIFAR_DATA_DIR", type=FOLDER, help="train.beton and test.beton.")
@click.option("--run", required=True, type=FOLDER, help="A run on these data, with validation images.")
@click.option("--compare", nargs=2, type=FOLDER, help="Two groups of seeds.")
@click.option("--audit", type=FOLDER, help="The folder of an audit of these data.")
@click.option("--issues", type=FILE, help="Its issues.csv, with 'keep' where a label is right.")
@click.option("--to", default=ROOT / "docs", type=FOLDER, help="Where the pictures go.")
def main(
    data_dir: Path, run: Path, compare: tuple[Path, Path] | None, audit: Path | None, issues: Path | None, to: Path
) -> None:
    """Make the pictures of the documentation."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "data").symlink_to(data_dir.resolve())
        copy = shutil.copytree(run, work / "runs" / run.name)
        settings = (copy / "config.yaml").read_text(encoding="utf-8")
        settings = re.sub("^data_dir: .*$", f"data_dir: {work / 'data'}", settings, flags=re.MULTILINE)
        (copy / "config.yaml").write_text(settings, encoding="utf-8")

        def fastcifar(*words: str, module: str = "fastcifar") -> None:
            command = [sys.executable, "-m", module, *words]
            paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
            subprocess.run(command, cwd=work, env={**os.environ, **paths}, check=True, stdout=subprocess.DEVNULL)

        publish = Publisher(to)
        fastcifar("preview", "--n", "9", *AUGMENTATION.split())
        publish(work / "preview.png")
        fastcifar("preview", "--n", "9", "--cutout-size", "0", "--mixup", "0.4", "--cutmix", "1", "--out", "mixing.png")
        publish(work / "mixing.png")
        fastcifar("eval", str(copy), "--data-dir", "data")
        for figure in ("confusion", "reliability"):
            publish(copy / "eval" / "test" / f"{figure}.png")
        write_png(work / "curves.png", Run(copy).curves())
        publish(work / "curves.png")
        methods = ("--methods", "hirescam,gradcam,gradcampp")  # the sheet shows all
        fastcifar("explain", str(copy), "--n", "25", *methods, "--data-dir", "data")
        publish(copy / "explain" / "grid.png", "explain.png")
        publish(sorted((copy / "explain" / "sheets").iterdir())[0], "sheet.png")
        fastcifar("report", str(copy))
        with browser() as driver:
            for scheme in ("light", "dark"):
                publish(screenshot(driver, copy / "report.html", scheme, work / f"report-{scheme}.png"))
            if audit:
                publish(screenshot(driver, audit / "index.html", "light", work / "audit-page.png"))
        if compare:
            for group in compare:
                if (num := len(list(group.glob("seed-*/metrics.json")))) < 2:
                    raise click.ClickException(f"{group} has {num} finished runs; expected at least two")
                shutil.copytree(group, work / "groups" / group.name)
            names = [group.name for group in compare]
            fastcifar("runs", "compare", *names, "--runs-dir", "groups", "--output", "compared")
            publish(work / "compared" / "curves.png", "compare.png")
        if issues:
            words = ("--issues", str(issues.resolve()), "--data-dir", "data")
            fastcifar("audit.png", *words, module="benchmarks.audit_picture")
            publish(work / "audit.png")
        for name, text in (("loaders.png", "EPYC"), ("fast.png", "hiverge"), ("recipes.png", "fastcifar train")):
            fastcifar(name, "--of", text, module="benchmarks.plot")
            publish(work / name)


class Publisher:
    """Puts pictures into a folder, with few bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, picture: Path, name: str = "") -> None:
        target = self.folder / (name or picture.name)
        with Image.open(picture) as file:
            image = file.convert("RGB")
        image.save(target, optimize=True)
        if target.stat().st_size > MAX_BYTES:
            image = image.point(lambda value: min(255, (value + LEVEL // 2) // LEVEL * LEVEL))
            image.save(target, optimize=True)
        if target.stat().st_size > MAX_BYTES:
            raise click.ClickException(f"{target}: {target.stat().st_size:,} bytes; expected at most {MAX_BYTES:,}")
        click.echo(f"{target.name}: {image.width}x{image.height}, {target.stat().st_size:,} bytes")


@contextmanager
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def screenshot(driver: Any, page: Path, scheme: str, picture: Path) -> Path:
    """The top of a page as a PNG of 1280x1400 pixels; returns `picture`. scheme: 'light' or 'dark'."""
    size = {"width": 1280, "height": 1400, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    driver.get(page.resolve().as_uri())
    driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    picture.write_bytes(base64.b64decode(shot["data"]))
    return picture


if __name__ == "__main__":
    main()
