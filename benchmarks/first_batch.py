"""Seconds from `make_loader(path)` (opening and hashing the file included, imports apart) to the first batch, in a
fresh process: with Numba's cache empty (cold) and filled (warm). FFCV caches nothing.

    python -m benchmarks.first_batch --data-dir data --json
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks import ROOT, Command, options, row, save_rows, show
from benchmarks.subprocesses import failure
from fastcifar import open_beton
from fastcifar.bench.results import environment

OURS = """if True:
    import sys, time
    import torch
    torch.set_num_threads(2)
    from fastcifar import AugmentConfig, make_loader
    from fastcifar.loaders import missing_part
    if missing_part(sys.argv[1]) is not None:
        sys.exit(3)
    if sys.argv[1] != "albumentations":
        import fastcifar.augment.numba_kernel
    begin = time.perf_counter()
    next(make_loader(sys.argv[2], AugmentConfig(), batch_size=512, loader=sys.argv[1]).epoch(0))
    print(time.perf_counter() - begin, flush=True)
    import os
    os._exit(0)
"""
STOCK = """if True:
    import sys, time
    try:
        import ffcv.loader, ffcv.transforms
    except ImportError:
        sys.exit(3)
    from benchmarks.peers import Work, stock_ffcv
    from fastcifar import open_beton
    beton = open_beton(sys.argv[2])
    empty = beton.images([0])
    facts = dict(beton=beton.path, labels=beton.labels, mean=beton.mean, std=beton.std)
    work = Work(**facts, images=empty, batch_size=512, threads=2)
    begin = time.perf_counter()
    next(stock_ffcv.build(work)())
    print(time.perf_counter() - begin, flush=True)
    import os
    os._exit(0)
"""


def one(name: str, path: Path, cache: str) -> float | None:
    """Seconds, in a new process; None if the loader is not installed."""
    code = STOCK if name == "stock-ffcv" else OURS
    variables = {**os.environ, "NUMBA_CACHE_DIR": cache}
    command = [sys.executable, "-W", "ignore", "-c", code, name, str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=ROOT)
    if answer.returncode == 3:
        return None
    if answer.returncode:
        raise failure(name, answer.stderr, answer.returncode)
    return float(answer.stdout.split()[-1])


@click.command(cls=Command)
@options("data_dir", "repeats")
def main(data_dir: str, repeats: int, save: bool, as_json: bool) -> None:
    """The first batch, cold and warm."""
    path = Path(data_dir).resolve() / "train.beton"
    open_beton(path)  # fails here if it is missing or damaged
    rows: list[dict[str, Any]] = []
    for name in ("resident", "ffcv", "albumentations", "stock-ffcv"):
        with tempfile.TemporaryDirectory() as cache:
            cold = one(name, path, cache)
            if cold is None:
                rows.append(row(name, note="skipped: not installed"))
                continue
            warm = [one(name, path, cache) or 0.0 for _ in range(repeats)]
        rows.append(
            row(
                name,
                first_batch_s=round(median(warm), 4),
                first_batch_s_min=round(min(warm), 4),
                first_batch_s_max=round(max(warm), 4),
                first_batch_cold_s=round(cold, 4),
                repeats=repeats,
            )
        )
    columns = ("name", "first_batch_s", "first_batch_s_min", "first_batch_s_max", "first_batch_cold_s", "note")
    show(rows, columns, as_json)
    if save:
        save_rows(__file__, rows, environment(data_dir))


if __name__ == "__main__":
    main()
