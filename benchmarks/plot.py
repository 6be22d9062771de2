"""The last line of benchmarks/results/loaders.jsonl as a figure.

python -m benchmarks.plot docs/loaders.png
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from benchmarks import ROOT, Command
from fastcifar import plotting


@click.command(cls=Command)
@click.argument("figure", type=click.Path(path_type=Path))
def main(figure: Path) -> None:
    """Draw the loaders next to those of other libraries."""
    lines = (ROOT / "benchmarks" / "results" / "loaders.jsonl").read_text(encoding="utf-8").splitlines()
    about = json.loads(lines[-1])
    where = about["gpu"] or f"{about['cores']} cores of an {about['machine']}"
    batch, dtype = about["data"].rsplit(", ", 2)[1:]
    plotting.write_png(figure, plotting.throughput(about["rows"], f" ({where}, {batch}, {dtype})"))


if __name__ == "__main__":
    main()
