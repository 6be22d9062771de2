"""The last line of benchmarks/results/loaders.jsonl as a picture.

python benchmarks/plot.py docs/loaders.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import Command  # noqa: E402
from fastcifar import plotting  # noqa: E402


@click.command(cls=Command)
@click.argument("picture", type=click.Path(path_type=Path))
def main(picture: Path) -> None:
    """Draw the loaders beside their peers."""
    lines = (ROOT / "benchmarks" / "results" / "loaders.jsonl").read_text(encoding="utf-8").splitlines()
    about = json.loads(lines[-1])
    where = about["gpu"] or f"{about['cores']} cores of an {about['machine']}"
    batch, dtype = about["data"].rsplit(", ", 2)[1:]
    plotting.write_png(picture, plotting.throughput(about["rows"], f" ({where}, {batch}, {dtype})"))


if __name__ == "__main__":
    main()
