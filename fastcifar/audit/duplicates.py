"""Pairs of images that show the same shot: exact copies, and copies after shift, scale, mirroring, recolouring or
compression, within a split and across splits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree

from fastcifar.audit import pixels
from fastcifar.audit.appearance import Floats, alignment_scores, features, read_thumbnails
from fastcifar.audit.issues import Image, Pair
from fastcifar.augment.numba_kernel import compiled
from fastcifar.data.beton import Beton
from fastcifar.training.progress import Reporter, SilentReporter

NUM_NEIGHBOURS = 4
"""Of each image in each split, that are looked at in detail."""
CANDIDATES_PER_IMAGE = 2
MIN_SIMILARITY = 0.35
"""Of the features of two images, to be looked at in detail; of images at random it is 0 +- 0.1."""
REFINED_FROM = 0.4
"""Score of a coarse alignment from which on it is refined."""
NUM_RANDOM_PAIRS = 4_000
LISTED_SCORES, CERTAIN_SCORES = (0.75, 0.95), (0.9, 0.999)
"""Bounds of the scores from which on a pair is listed, and is certain."""
LISTED_EXPECTED, CERTAIN_EXPECTED = 1.0, 1e-4
"""How many pairs of unrelated images of the dataset are expected to have such a score."""
MAX_NEAR_SCORE = 0.9999
"""1: the same pixels."""
TILE = (1_024, 4_096)
Pairs = npt.NDArray[np.int64]


def find_pairs(splits: Mapping[str, Beton], reporter: Reporter | None = None) -> list[Pair]:
    """The pairs of images that show the same shot, the most certain first.

    Of n equal images of a split, n - 1 pairs are listed; of similar ones, the pairs that connect them. Across the two
    splits, the pairs of which one is the other's most similar image; of equal images, each with that of the first.
    Raises DataError if an image is damaged.

    Each image has a vector (`appearance.features`); its nearest neighbours in each split, over all images, are aligned
    with it (`appearance.alignment_scores`). A pair is listed if its score is one that fewer than LISTED_EXPECTED of all
    pairs would reach, extrapolated from pairs at random.
    """
    reporter = reporter or SilentReporter()
    names, betons = list(splits), list(splits.values())
    thumbnails = read_thumbnails(betons, reporter)
    counts = [len(beton) for beton in betons]
    split_of = np.repeat(np.arange(len(betons)), counts)
    index_of = np.concatenate([np.arange(count) for count in counts])
    exact, distinct = _exact_pairs(thumbnails.hashes, split_of)
    near, scores, certain = _near_pairs(thumbnails.greys[distinct], split_of[distinct], reporter)
    score_of = dict.fromkeys(((i, j) for i, j in exact.tolist()), 1.0)
    for (i, j), score in zip(distinct[near].tolist(), scores.tolist(), strict=True):
        score_of.setdefault((i, j), min(score, MAX_NEAR_SCORE))
    near_leaks: dict[int, list[tuple[int, float]]] = {}  # of a training image
    for (i, j), score in score_of.items():
        if split_of[i] != split_of[j] and score < 1:
            near_leaks.setdefault(i, []).append((j, score))
    for first, copy in exact.tolist():  # only the first of equal training images was compared with the test images
        if split_of[first] == split_of[copy]:
            score_of |= {(copy, j): score for j, score in near_leaks.get(first, [])}
    leak_of: dict[int, tuple[int, float]] = {}  # of a test image, its most similar training image
    for (i, j), score in _best_first(score_of):
        if split_of[i] != split_of[j]:
            leak_of.setdefault(j, (i, score))
    for first, copy in exact.tolist():  # only the first of equal test images was compared with the training images
        if split_of[first] == split_of[copy] and first in leak_of:
            i, score_of[i, copy] = leak_of[first]

    def image(position: int) -> Image:
        return Image(split=names[split_of[position]], index=int(index_of[position]))

    return [
        Pair(first=image(i), second=image(j), score=score, exact=score == 1, certain=score >= certain)
        for (i, j), score in _best_first(score_of)
    ]


def _best_first(score_of: Mapping[tuple[int, int], float]) -> list[tuple[tuple[int, int], float]]:
    return sorted(score_of.items(), key=lambda each: (-each[1], each[0]))


def _exact_pairs(hashes: list[bytes], split_of: Pairs) -> tuple[Pairs, Pairs]:
    """Pairs of equal images, (P, 2): within a split, and of the first split with the first equal one of the second; and
    the positions of the images that equal no earlier one of their split."""
    first_of: dict[tuple[bytes, int], int] = {}
    pairs, distinct = [], []
    for position, (digest, split) in enumerate(zip(hashes, split_of.tolist(), strict=True)):
        if (first := first_of.setdefault((digest, split), position)) == position:
            distinct.append(position)
        else:
            pairs.append((first, position))
    for position, (digest, split) in enumerate(zip(hashes, split_of.tolist(), strict=True)):
        if split == 0 and (other := first_of.get((digest, 1))) is not None:
            pairs.append((position, other))
    return np.array(pairs, np.int64).reshape(-1, 2), np.array(distinct, np.int64)


def _near_pairs(greys: npt.NDArray[np.uint8], split_of: Pairs, reporter: Reporter) -> tuple[Pairs, Floats, float]:
    """Pairs (P, 2) of positions in `greys`, i < j, and their scores; and the score from which on a pair is certain."""
    if len(greys) < 2:
        return np.empty((0, 2), np.int64), np.empty(0, np.float32), 1.0
    candidates = _neighbours(*features(greys), split_of, reporter)
    scores = alignment_scores(greys, candidates, REFINED_FROM, reporter)
    listed, certain = _score_limits(greys)
    similar = scores >= listed
    pairs, scores = candidates[similar, :2], scores[similar]
    kept = _connecting(pairs, scores, split_of)
    return pairs[kept], scores[kept], certain


def _neighbours(own: Floats, mirrored: Floats, split_of: Pairs, reporter: Reporter) -> Pairs:
    """The pairs to look at in detail, (P, 3): i < j, and whether j is mirrored; at most CANDIDATES_PER_IMAGE * N: those
    of each image and its nearest in each split, then the others, both by similarity. own, mirrored: (N, D) float32."""
    count, (height, width) = len(own), TILE
    values = np.full((count, 2, NUM_NEIGHBOURS), -1, np.float32)
    indices = np.full((count, 2, NUM_NEIGHBOURS), -1, np.int64)
    keep = _keep_neighbours()
    rows = torch.from_numpy(own)
    columns = [(number, torch.from_numpy(array).T) for number, array in enumerate((own, mirrored))]
    product = torch.empty(TILE)
    reporter.begin("comparing images", count)
    for row in range(0, count, height):
        for column in range(row, count, width):
            for is_mirrored, array in columns:  # the mirror image of one is as similar to the other as the reverse
                part = array[:, column : column + width]
                num_rows = min(height, count - row)
                tile = product.flatten()[: num_rows * part.shape[1]].view(num_rows, part.shape[1])
                torch.mm(rows[row : row + height], part, out=tile)
                keep(tile.numpy(), row, column, is_mirrored, split_of, MIN_SIMILARITY, values, indices)
        reporter.advance(min(height, count - row))
    first, _, place = np.nonzero(indices >= 0)
    neighbours = indices[indices >= 0]
    similarity = values[indices >= 0]
    second, is_second_mirrored = neighbours >> 1, neighbours & 1
    triples = np.stack([np.minimum(first, second), np.maximum(first, second), is_second_mirrored], 1)
    order = np.lexsort((-similarity, place > 0))
    triples = triples[order]
    _, unique = np.unique(triples[:, 0] * count + triples[:, 1], return_index=True)
    return triples[np.sort(unique)[: max(CANDIDATES_PER_IMAGE * count, 1_000)]]


def _score_limits(greys: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """The scores from which on a pair is listed, and is certain.

    The tail of Fisher's z of the scores of pairs at random is continued as an exponential from its 90th and 99th
    percentile to the number of all pairs, as the expected number of a score in sequence alignment (Karlin and Altschul
    1990). Where images are alike, e.g. digits, that asks for more.
    """
    random = np.random.default_rng(0)
    first = random.integers(0, len(greys), NUM_RANDOM_PAIRS)
    second = (first + random.integers(1, len(greys), NUM_RANDOM_PAIRS)) % len(greys)
    scores = alignment_scores(greys, np.stack([first, second, np.zeros_like(first)], 1))
    unrelated = scores[scores < CERTAIN_SCORES[0]]  # of few images many pairs at random are duplicates
    unrelated = unrelated if len(unrelated) else scores
    z90, z99 = np.quantile(np.arctanh(np.clip(unrelated, -0.999, 0.999)), (0.9, 0.99))
    decades = math.log10(len(greys) * (len(greys) - 1) / 2) - 2

    def limit(expected: float, bounds: tuple[float, float]) -> float:
        return float(np.clip(math.tanh(z99 + (z99 - z90) * (decades - math.log10(expected))), *bounds))

    return limit(LISTED_EXPECTED, LISTED_SCORES), limit(CERTAIN_EXPECTED, CERTAIN_SCORES)


def _connecting(pairs: Pairs, scores: Floats, split_of: Pairs) -> Pairs:
    """The positions of the pairs to list: within a split, those of a maximum spanning forest; across splits, those that
    are the best of one of their images."""
    across = split_of[pairs[:, 0]] != split_of[pairs[:, 1]]
    kept = np.zeros(len(pairs), bool)
    within = np.flatnonzero(~across)
    if len(within):
        first, second = pairs[within].astype(np.int32).T  # scipy before 1.17 takes no others
        shape = (len(split_of), len(split_of))
        graph = coo_array((2.0 - scores[within].astype(np.float64), (first, second)), shape).tocsr()
        forest = minimum_spanning_tree(graph).tocoo()
        places = {(i, j): place for place, (i, j) in zip(within.tolist(), pairs[within].tolist(), strict=True)}
        kept[[places[pair] for pair in zip(forest.row.tolist(), forest.col.tolist(), strict=True)]] = True
    seen: set[int] = set()
    for place in np.flatnonzero(across)[np.argsort(-scores[across], kind="stable")].tolist():
        pair = set(pairs[place].tolist())
        kept[place] = not pair <= seen
        seen |= pair
    return np.flatnonzero(kept)


def _keep_neighbours() -> Callable[..., None]:
    def compile(kernel: Callable[..., None]) -> None:
        values, indices = np.zeros((2, 2, 1), np.float32), np.zeros((2, 2, 1), np.int64)
        kernel(np.zeros((1, 1), np.float32), 0, 1, 0, np.zeros(2, np.int64), 1.0, values, indices)

    return compiled(pixels.keep_neighbours, compile)
