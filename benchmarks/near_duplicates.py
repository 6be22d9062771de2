"""How many of CIFAR-10's known near-duplicates are among the first cross-split pairs of a ranking? That of
`fastcifar audit`, next to pixel means, perceptual hashes and the features of a trained network.

    python -m benchmarks.near_duplicates --data-dir data --pairs near_duplicates.csv --labels-file labels.npz --run NAME

PAIRS is a table test_index,train_index,judgment in the order of the official archive, e.g. that of ciFAIR (Barz and
Denzler 2020); LABELS holds the official labels, `train` and `test`, see `benchmarks.label_errors`. A pair is found if
both its images are right. The others rank the most similar training image of each test image; hashes that differ in
equally many bits keep the order of the images.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import Command, options, row, save_rows, show
from benchmarks.label_errors import official_positions, read_labels
from fastcifar import open_beton
from fastcifar.audit.appearance import features, to_greys
from fastcifar.audit.duplicates import find_pairs
from fastcifar.bench.results import environment
from fastcifar.data.beton import Beton
from fastcifar.errors import DataError
from fastcifar.inference.trained_run import TrainedRun
from fastcifar.training import RunFolder
from fastcifar.training.device import choose_device

RANKS = (300, 500, 1_000, 2_000)
BATCH = 1_000
Images = np.ndarray
Ranking = list[tuple[int, int]]
"""Test and training image, the most similar pair first."""


def read_pairs(file: Path, judgment: str, train: Beton, test: Beton, labels_file: Path) -> set[tuple[int, int]]:
    """The pairs (test, train) of a judgment, as indices of the betons."""
    official = zip((train, test), read_labels(labels_file, "train", "test"), strict=True)
    index_of = [np.argsort(official_positions(beton, labels)) for beton, labels in official]
    with file.open(newline="") as table:
        lines = [line for line in csv.DictReader(table) if line["judgment"] == judgment]
    if not lines:
        raise DataError(f"{file}: no line has the judgment {judgment!r}")
    return {(int(index_of[1][int(line["test_index"])]), int(index_of[0][int(line["train_index"])])) for line in lines}


def most_similar(tests: torch.Tensor, trains: Sequence[torch.Tensor]) -> Ranking:
    """Each test image with the most similar training image. tests: (M, D), trains: (N, D) of the images, and of their
    mirror images; of unit length."""
    parts = [torch.stack([part @ each.T for each in trains]).amax(0).max(1) for part in tests.split(BATCH)]  # of (B, N)
    similarities, indices = (torch.cat(columns) for columns in zip(*parts, strict=True))
    order = similarities.argsort(descending=True, stable=True)
    return list(zip(order.tolist(), indices[order].tolist(), strict=True))[: max(RANKS)]


def standardised(vectors: torch.Tensor) -> torch.Tensor:
    """The scalar product of two of them is their correlation."""
    return F.normalize(vectors - vectors.mean(1, keepdim=True))


def grey_means(images: Images) -> torch.Tensor:
    """(N, H, W, 3) uint8 -> (N, 64): luminance, means of areas."""
    greys = torch.from_numpy(to_greys(images)).float()[:, None]
    return standardised(F.adaptive_avg_pool2d(greys, 8).flatten(1))


def colour_means(images: Images) -> torch.Tensor:
    """(N, H, W, 3) uint8 -> (N, 192)."""
    parts = [torch.from_numpy(images[begin : begin + BATCH]).float() for begin in range(0, len(images), BATCH)]
    return standardised(torch.cat([F.adaptive_avg_pool2d(part.permute(0, 3, 1, 2), 8).flatten(1) for part in parts]))


def hashes(name: str) -> Callable[[Images], torch.Tensor]:
    import imagehash
    from PIL import Image

    function = {"pHash": imagehash.phash, "dHash": imagehash.dhash}[name]

    def vectors(images: Images) -> torch.Tensor:
        bits = np.stack([function(Image.fromarray(image)).hash.ravel() for image in images])
        return torch.from_numpy(bits).float() * 2 - 1  # their scalar product falls with the number of bits that differ

    return vectors


def network_features(run: TrainedRun) -> Callable[[Images], torch.Tensor]:
    """The input of the last linear layer, of unit length."""
    kept: list[torch.Tensor] = []
    last = [module for module in run.model.modules() if isinstance(module, torch.nn.Linear)][-1]
    last.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0].float().cpu()))

    def vectors(images: Images) -> torch.Tensor:
        kept.clear()
        for begin in range(0, len(images), BATCH):
            run.logits(images[begin : begin + BATCH])
        return F.normalize(torch.cat(kept))

    return vectors


def gradient_ranking(tests: Images, trains: Images) -> Ranking:
    """The vectors by which `find_pairs` chooses what it aligns, without aligning."""
    own, mirrored = (torch.from_numpy(array) for array in features(to_greys(np.concatenate([trains, tests]))))
    return most_similar(own[len(trains) :], [own[: len(trains)], mirrored[: len(trains)]])


@click.command(cls=Command)
@click.option("--pairs", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--judgment", default="near-duplicate", show_default=True)
@click.option("--labels-file", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--run", type=click.Path(exists=True, file_okay=False, path_type=Path), help="For the features of its network."
)
@options("data_dir", "device")
def main(
    pairs: Path,
    judgment: str,
    labels_file: Path,
    run: Path | None,
    data_dir: str,
    device: str,
    save: bool,
    as_json: bool,
) -> None:
    """Share of the known near-duplicates among the first pairs of each ranking."""
    splits = {name: open_beton(Path(data_dir) / f"{name}.beton") for name in ("train", "test")}
    known = read_pairs(pairs, judgment, splits["train"], splits["test"], labels_file)
    trains, tests = (splits[name].images(np.arange(len(splits[name]))) for name in ("train", "test"))
    mirrored = np.ascontiguousarray(trains[:, :, ::-1])
    rows: list[dict[str, Any]] = []

    def add(name: str, ranking: Ranking) -> None:
        found = {f"first_{rank}": round(len(known & set(ranking[:rank])) / len(known), 4) for rank in RANKS}
        rows.append(row(name, **found, num_pairs=len(ranking)))
        click.echo(f"{name}: {found}", err=True)

    def compare(name: str, vectors: Callable[[Images], torch.Tensor]) -> None:
        of_tests, of_trains = vectors(tests), vectors(trains)
        add(name, most_similar(of_tests, [of_trains]))
        add(f"{name}, mirrored", most_similar(of_tests, [of_trains, vectors(mirrored)]))

    def audit_ranking() -> Ranking:
        return [(p.second.index, p.first.index) for p in find_pairs(splits) if p.first.split != p.second.split]

    compare("8x8 means, grey", grey_means)
    compare("8x8 means, colour", colour_means)
    try:
        for name in ("pHash", "dHash"):
            compare(name, hashes(name))
    except ImportError as error:
        click.echo(f"pHash, dHash: skipped ({error}); pip install -r benchmarks/peers.txt", err=True)
    if run is not None:
        compare("network features", network_features(TrainedRun(RunFolder(run), data_dir=data_dir, device=device)))
    add("gradient histograms, mirrored", gradient_ranking(tests, trains))
    add("audit", audit_ranking())
    show(rows, ("name", *(f"first_{rank}" for rank in RANKS), "num_pairs"), as_json)
    if save:
        save_rows(__file__, rows, {**environment(data_dir, choose_device(device)), "num_known": len(known)})


if __name__ == "__main__":
    main()
