"""Loops over pixels and pairs that Numba compiles: gradient histograms, nearest neighbours, alignment of two images.

They work on grey images of SIDE x SIDE. The best match of two images is searched over scale and shift along each axis.
"""

from __future__ import annotations

import math

from numba.extending import register_jitable

SIDE = 32
CELL = 4
NUM_BINS = 8
"""Directions of a gradient, over the full circle."""
NOISE = 8.0
"""Gradients of this size, in grey levels over two pixels, are halved: what JPEG does to a smooth area."""
MAX_SHIFT = 5.0
MIN_SCALE, MAX_SCALE = 0.7, 1.43
MIN_OVERLAP = 0.4
BLOCK = 32


@register_jitable
def _smooth(line):
    """Half of each value and a quarter of both neighbours, in place; 0 beyond the ends."""
    previous = 0.0
    for k in range(len(line)):
        value = line[k]
        following = line[k + 1] if k + 1 < len(line) else 0.0
        line[k] = 0.25 * previous + 0.5 * value + 0.25 * following
        previous = value


def gradient_histograms(greys, out):
    """greys: (B, SIDE, SIDE) uint8; out: (B, SIDE / CELL, SIDE / CELL, NUM_BINS) float32.

    Histograms of oriented gradients (Dalal and Triggs 2005) of cells, each a weighted mean with its neighbours, so that
    they change little with a shift, then normalised by itself.
    """
    cells = SIDE // CELL
    for image in range(len(greys)):
        grey, histograms = greys[image], out[image]
        histograms[:] = 0
        for y in range(SIDE):
            above, below = max(y - 1, 0), min(y + 1, SIDE - 1)
            for x in range(SIDE):
                dx = float(grey[y, min(x + 1, SIDE - 1)]) - float(grey[y, max(x - 1, 0)])
                dy = float(grey[below, x]) - float(grey[above, x])
                size = math.sqrt(dx * dx + dy * dy)
                direction = math.atan2(dy, dx) * (NUM_BINS / (2 * math.pi))
                lower = math.floor(direction)
                share, first = direction - lower, int(lower) % NUM_BINS
                histograms[y // CELL, x // CELL, first] += size * (1 - share)
                histograms[y // CELL, x // CELL, (first + 1) % NUM_BINS] += size * share
        for k in range(cells):
            for number in range(NUM_BINS):
                _smooth(histograms[:, k, number])
        for k in range(cells):
            for number in range(NUM_BINS):
                _smooth(histograms[k, :, number])
        for y in range(cells):
            for x in range(cells):
                total = 0.0
                for number in range(NUM_BINS):
                    histograms[y, x, number] /= CELL * CELL
                    total += histograms[y, x, number] ** 2
                histograms[y, x] /= math.sqrt(total) + NOISE


@register_jitable
def _insert(values, indices, value, index):
    """Insert into the decreasing `values` if it is among the largest; of one image's two similarities the larger."""
    last = len(values) - 1
    for k in range(last):  # the image's other similarity, mirrored
        if indices[k] >> 1 == index >> 1 and indices[k] >= 0:
            if values[k] >= value:
                return
            last = k
            break
    if value <= values[last]:
        return
    while last > 0 and values[last - 1] < value:
        values[last], indices[last] = values[last - 1], indices[last - 1]
        last -= 1
    values[last], indices[last] = value, index


def keep_neighbours(tile, row, column, mirrored, splits, min_similarity, values, indices):
    """Update the nearest neighbours of each image in each split by a tile of the matrix of similarities.

    tile: (R, C) float32: of the images from `row` on with those from `column` on; only pairs i < j are used.
    splits: (N,) int64, 0 or 1. values, indices: (N, 2, K) float32 and int64, by the split of the neighbour;
    an index is twice that of the image, plus 1 for its mirror image.
    """
    for r in range(tile.shape[0]):
        i, similarities = row + r, tile[r]
        begin = max(0, i + 1 - column)
        for start in range(begin, tile.shape[1], BLOCK):
            end = min(start + BLOCK, tile.shape[1])
            any_similar = 0
            for c in range(start, end):  # almost never: the loop is vectorised
                any_similar |= similarities[c] >= min_similarity
            if any_similar:
                for c in range(start, end):
                    value, j = similarities[c], column + c
                    if value >= min_similarity:
                        _insert(values[i, splits[j]], indices[i, splits[j]], value, 2 * j + mirrored)
                        _insert(values[j, splits[i]], indices[j, splits[i]], value, 2 * i + mirrored)


@register_jitable
def _correlation(first, second, scale_y, scale_x, shift_y, shift_x):
    """Correlation of `first` with `second` scaled about its centre and shifted, where both have pixels, times the
    square root of that share of the image; -1 if they overlap too little."""
    side = len(first)
    centre = (side - 1) / 2
    count, sum_a, sum_b, sum_aa, sum_bb, sum_ab = 0, 0.0, 0.0, 0.0, 0.0, 0.0
    for y in range(side):
        v = centre + scale_y * (y - centre) + shift_y
        if v < 0 or v > side - 1:
            continue
        top = min(int(v), side - 2)
        below = v - top
        for x in range(side):
            u = centre + scale_x * (x - centre) + shift_x
            if u < 0 or u > side - 1:
                continue
            left = min(int(u), side - 2)
            right = u - left
            upper = second[top, left] * (1 - right) + second[top, left + 1] * right
            lower = second[top + 1, left] * (1 - right) + second[top + 1, left + 1] * right
            a, b = first[y, x], upper * (1 - below) + lower * below
            count += 1
            sum_a += a
            sum_b += b
            sum_aa += a * a
            sum_bb += b * b
            sum_ab += a * b
    if count < MIN_OVERLAP * side * side:
        return -1.0
    variance_a = sum_aa / count - (sum_a / count) ** 2 + 1e-3
    variance_b = sum_bb / count - (sum_b / count) ** 2 + 1e-3
    covariance = sum_ab / count - sum_a / count * sum_b / count
    return covariance / math.sqrt(variance_a * variance_b) * math.sqrt(count / (side * side))


def align(firsts, halved_firsts, seconds, halved_seconds, scores, refined_from):
    """scores: (B,) float32: the largest correlation of each pair over scales and shifts, -1..1.

    firsts, seconds: (B, SIDE, SIDE) float32 of about unit variance; halved: of half the side. A grid on the halved
    images; from a score of `refined_from` on, then one parameter after the other (scale and shift of each axis) with
    steps that get smaller.
    """
    best, trial = [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]
    for pair in range(len(firsts)):
        first, second, half, other_half = firsts[pair], seconds[pair], halved_firsts[pair], halved_seconds[pair]
        score = -2.0
        for scale in (1.0, 0.8, 0.9, 1.12, 1.25):
            for y in range(-2, 3):
                for x in range(-2, 3):
                    value = _correlation(half, other_half, scale, scale, float(y), float(x))
                    if value > score:
                        score = value
                        best[0], best[1], best[2], best[3] = scale, scale, 2.0 * y, 2.0 * x
        score = _correlation(first, second, best[0], best[1], best[2], best[3])
        plain = _correlation(first, second, 1.0, 1.0, 0.0, 0.0)
        if plain >= score:
            score = plain
            best[0], best[1], best[2], best[3] = 1.0, 1.0, 0.0, 0.0
        step = 1.0 if score >= refined_from else 0.0  # pixels; of a scale, a twentieth: 0.8 pixels at the border
        while step > 0.2:
            improved = False
            for parameter in range(4):
                for sign in (-1.0, 1.0):
                    for k in range(4):
                        trial[k] = best[k]
                    trial[parameter] += sign * (step if parameter > 1 else step / 20)
                    inside = max(abs(trial[2]), abs(trial[3])) <= MAX_SHIFT
                    if min(trial[0], trial[1]) < MIN_SCALE or max(trial[0], trial[1]) > MAX_SCALE or not inside:
                        continue
                    value = _correlation(first, second, trial[0], trial[1], trial[2], trial[3])
                    if value > score + 1e-6:
                        score, improved = value, True
                        best[parameter] = trial[parameter]
            if not improved:
                step /= 2
        scores[pair] = score
