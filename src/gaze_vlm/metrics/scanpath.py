"""Scanpath similarity: ScanMatch and MultiMatch over many pairs at once.

Both align two sequences by dynamic programming. The tables of all pairs are filled together, one anti-diagonal after
the other, so a call costs one Python step a diagonal whatever the number of pairs.

The GazeSearch protocol (Pham et al., WACV 2025, as its code does it): the image is a 224 x 224 square, the reference
starts with a fixation at the centre (`gaze_vlm.data.gazesearch.with_centre`), MultiMatch is averaged without duration
(`multimatch_mean4`). GazeSearch fills paths of fewer than 3 fixations with made-up ones at pixel (1, 1), so that its
MultiMatch is always a number; here such a pair is NaN, as in the definition, and the caller says what becomes of it
(`np.nanmean` leaves it out).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np

from gaze_vlm.scanpath import Scanpath

MULTIMATCH_DIMENSIONS = ("shape", "direction", "length", "position", "duration")

_CELLS_AT_ONCE = 2_000_000  # table cells held at a time, over all pairs of a batch: 16 MB an array


def scanmatch(
    predictions: Sequence[Scanpath],
    references: Sequence[Scanpath],
    *,
    bins: tuple[int, int] = (14, 14),
    threshold: float = 3.5,
    gap: float = 0.0,
    temporal_bin: float | None = None,
) -> np.ndarray:
    """ScanMatch of each prediction with its reference; higher is better.

    A fixation becomes the cell it falls in (one off the image: the nearest cell); aligning cells a and b is worth
    `threshold - |a - b|`, in cell widths; the best alignment (Needleman-Wunsch) is divided by `threshold` times the
    length of the longer sequence. Source: Cristino et al., Behavior Research Methods 2010. The default grid of 14 x 14
    (16 pixels of 224) without durations is the setting of this package's published tables.

    Args:
        bins: (columns, rows) of the grid over the image.
        threshold: distance in cells from which on two fixations are better left unaligned (at gap 0).
        gap: what a fixation without partner costs, zero or below.
        temporal_bin: seconds; when given, a fixation counts round(duration / temporal_bin) times, as in the original,
            so that one shorter than half a bin counts for nothing.

    Returns:
        (n,) float64, 0..1 at gap 0 (a negative gap can push it below 0), 1 for equal sequences. A path without
        fixations scores 0 against one that has some, and NaN against another empty one.
    """
    _same_number(predictions, references)
    pairs = np.arange(len(predictions))
    encode = _CellEncoder(bins, temporal_bin)
    return _scanmatch_pairs(encode(predictions), encode(references), pairs, pairs, encode.worth(threshold), gap)


def scanmatch_matrix(
    scanpaths: Sequence[Scanpath],
    others: Sequence[Scanpath],
    *,
    bins: tuple[int, int] = (14, 14),
    threshold: float = 3.5,
    gap: float = 0.0,
    temporal_bin: float | None = None,
) -> np.ndarray:
    """(n, m) float64: `scanmatch` of every scanpath with every one of the others."""
    encode = _CellEncoder(bins, temporal_bin)
    first, second = np.indices((len(scanpaths), len(others))).reshape(2, -1)
    scores = _scanmatch_pairs(encode(scanpaths), encode(others), first, second, encode.worth(threshold), gap)
    return scores.reshape(len(scanpaths), len(others))


def multimatch(
    predictions: Sequence[Scanpath], references: Sequence[Scanpath], *, screen_size: tuple[int, int] = (224, 224)
) -> dict[str, np.ndarray]:
    """MultiMatch of each prediction with its reference on five dimensions; higher is better.

    The saccades of the two paths are aligned at the least sum of vector differences; then, over the aligned pairs, the
    median difference of the vectors (shape), angles (direction), lengths, start points (position) and durations of the
    fixations they start from is divided by its largest possible value and taken from 1. Without the grouping step.
    Sources: Jarodzka et al., ETRA 2010; Dewhurst et al., Behavior Research Methods 2012. Values equal
    `multimatch_gaze.docomparison(..., screensize)` of the PyPI package multimatch-gaze, ties between alignments
    included, except that two durations of 0 s are equal here where the package divides 0 by 0.

    Args:
        screen_size: (width, height) in pixels that 0..1 of the image stands for. It sets the weight of x against y.

    Returns:
        keys shape, direction, length, position, duration, each (n,) float64, 0..1 for fixations on the screen. NaN
        where a path has fewer than 3 fixations.
    """
    _same_number(predictions, references)
    first, first_lengths = _pixels(predictions, screen_size)
    second, second_lengths = _pixels(references, screen_size)
    scores = np.full((len(predictions), 5), np.nan)
    long_enough = np.flatnonzero((first_lengths >= 3) & (second_lengths >= 3))
    # n fixations make n - 1 saccades
    for part in _batches(first_lengths - 1, second_lengths - 1, long_enough):
        a, b = first_lengths[part] - 1, second_lengths[part] - 1
        scores[part] = _multimatch_batch(first[part, : a.max() + 1], a, second[part, : b.max() + 1], b, screen_size)
    return dict(zip(MULTIMATCH_DIMENSIONS, scores.T, strict=True))


def multimatch_mean4(
    predictions: Sequence[Scanpath], references: Sequence[Scanpath], *, screen_size: tuple[int, int] = (224, 224)
) -> np.ndarray:
    """(n,) float64, 0..1, higher is better: the mean of MultiMatch's shape, direction, length and position."""
    scores = multimatch(predictions, references, screen_size=screen_size)
    return np.mean([scores[name] for name in MULTIMATCH_DIMENSIONS[:4]], axis=0)


# ---- both


def _same_number(predictions: Sequence[Scanpath], references: Sequence[Scanpath]) -> None:
    if len(predictions) != len(references):
        raise ValueError(f"one reference a prediction: predictions: {len(predictions)}, references: {len(references)}")


def _padded(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Arrays (n_i, d) -> (len(rows), max n_i, d) filled up with zeros, and the n_i."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    stacked = np.concatenate(rows) if rows else np.zeros((0, 3), np.float32)
    table = np.zeros((len(rows), lengths.max(initial=0), stacked.shape[1]), stacked.dtype)
    table[np.arange(table.shape[1]) < lengths[:, None]] = stacked
    return table, lengths


def _pixels(scanpaths: Sequence[Scanpath], screen_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(n, longest, 3) x and y in pixels and duration in seconds, and the lengths."""
    table, lengths = _padded([np.stack([path.x, path.y, path.duration], axis=1) for path in scanpaths])
    return (table * np.array([*screen_size, 1], np.float32)).astype(np.float64), lengths


def _batches(first: np.ndarray, second: np.ndarray, pairs: np.ndarray) -> Iterator[np.ndarray]:
    """Indices of `pairs`, similar sizes together, in parts whose tables of first x second cells fit in memory."""
    pairs = pairs[np.argsort(np.maximum(first, second)[pairs], kind="stable")]
    start = 0
    while start < len(pairs):
        # sorted by the longer side: the last of a part bounds its table
        sides = np.maximum(first, second)[pairs[start:]]
        cells = (sides + 1) ** 2 * np.arange(1, len(sides) + 1)
        count = max(1, int(np.searchsorted(cells, _CELLS_AT_ONCE, side="right")))
        yield pairs[start : start + count]
        start += count


# ---- ScanMatch


class _CellEncoder:
    """Scanpaths -> (n, longest) int64, the code of each entry's cell, and the lengths (n,).

    A code is row * 2 columns + column, so that the difference of two codes tells how far apart their cells lie.
    """

    def __init__(self, bins: tuple[int, int], temporal_bin: float | None):
        if min(bins) < 1:
            raise ValueError(f"bins must be (columns, rows) of at least 1, got {bins}")
        if temporal_bin is not None and not temporal_bin > 0:
            raise ValueError(f"temporal_bin must be seconds above 0 or None, got {temporal_bin}")
        self.bins, self.temporal_bin = np.array(bins), temporal_bin

    def __call__(self, scanpaths: Sequence[Scanpath]) -> tuple[np.ndarray, np.ndarray]:
        table, lengths = _padded([np.stack([path.x, path.y, path.duration], axis=1) for path in scanpaths])
        # in float32, as the points are: 16 px of 224 in 14 columns is then column 1 and not 0.99999999
        column, row = np.clip(np.floor(table[..., :2] * self.bins.astype(np.float32)), 0, self.bins - 1).T
        cells = (row * 2 * self.bins[0] + column).T.astype(np.int64)
        if self.temporal_bin is None:
            return cells, lengths
        times = np.round(table[..., 2].astype(np.float64) / self.temporal_bin).astype(np.int64)  # 0 s in the filling
        repeated = _padded([np.repeat(*pair)[:, None] for pair in zip(cells, times, strict=True)])
        return repeated[0][..., 0], repeated[1]

    def worth(self, threshold: float) -> np.ndarray:
        """What aligning two cells is worth: entry [code - other code], which may be negative."""
        columns, rows = self.bins
        difference = np.arange(-2 * columns * rows, 2 * columns * rows)
        down = np.round(difference / (2 * columns))  # |right| < columns, so that rounding finds it
        right = difference - down * 2 * columns
        return np.roll(threshold - np.sqrt(down**2 + right**2), len(difference) // 2)


def _scanmatch_pairs(first, second, i, j, worth: np.ndarray, gap: float) -> np.ndarray:
    """Scores of the pairs first[i], second[j]; `first` and `second` come from a `_CellEncoder`."""
    threshold = worth[0]
    if not threshold > 0:
        raise ValueError(f"threshold must be above 0 cells, got {threshold}")
    if gap > 0:
        raise ValueError(f"gap must be zero or below, got {gap}")
    (first_cells, first_lengths), (second_cells, second_lengths) = first, second
    rows, columns = first_lengths[i], second_lengths[j]
    longest = np.maximum(rows, columns)
    best = np.full(len(i), np.nan)
    for part in _batches(rows, columns, np.flatnonzero(longest)):
        a = first_cells[i[part], : rows[part].max()]
        b = second_cells[j[part], : columns[part].max()]
        best[part] = _needleman_wunsch(a, rows[part], b, columns[part], worth, gap)
    return best / (threshold * np.maximum(longest, 1))


def _needleman_wunsch(a, rows, b, columns, worth: np.ndarray, gap: float) -> np.ndarray:
    """Best alignment sum (n,) of the first `rows` entries of a (n, R) with the first `columns` of b (n, C)."""
    (n, height), width = a.shape, b.shape[1]
    a, b = a.T, b.T
    # entry [i] of diagonal k: the best for i entries of a and k - i of b; only the last two diagonals are kept
    before, last = None, np.zeros((height + 1, n))
    best = np.zeros(n)
    for k in range(1, height + width + 1):
        diagonal = np.full((height + 1, n), k * gap)  # the ends, where nothing is aligned
        low, high = max(1, k - width), min(height, k - 1)
        if low <= high:
            aligned = before[low - 1 : high] + worth[a[low - 1 : high] - b[k - high - 1 : k - low][::-1]]
            skipped = np.maximum(last[low - 1 : high], last[low : high + 1]) + gap
            diagonal[low : high + 1] = np.maximum(aligned, skipped)
        before, last = last, diagonal
        ends = np.flatnonzero(rows + columns == k)
        best[ends] = diagonal[rows[ends], ends]
    return best


# ---- MultiMatch


def _multimatch_batch(first, first_saccades, second, second_saccades, screen_size) -> np.ndarray:
    """Points (n, F, 3) with `first_saccades` (n,) saccades each, and the same for second -> (n, 5) similarities."""
    a, b = np.diff(first[..., :2], axis=1), np.diff(second[..., :2], axis=1)
    (a_x, a_y), (b_x, b_y) = a.T, b.T  # (saccades, n) each
    cost = np.sqrt((a_x[:, None] - b_x) ** 2 + (a_y[:, None] - b_y) ** 2)
    i, j, on_path = _cheapest_path(cost, first_saccades, second_saccades)
    pair = np.arange(len(a))[:, None]
    from_a, from_b = first[pair, i], second[pair, j]
    saccade_a, saccade_b = a[pair, i], b[pair, j]
    angle = np.abs(np.arctan2(saccade_a[..., 1], saccade_a[..., 0]) - np.arctan2(saccade_b[..., 1], saccade_b[..., 0]))
    longer = np.maximum(from_a[..., 2], from_b[..., 2])
    diagonal = float(np.hypot(*screen_size))
    differences = [
        cost[i, j, pair] / (2 * diagonal),
        np.minimum(angle, 2 * np.pi - angle) / np.pi,
        np.abs(np.linalg.norm(saccade_a, axis=-1) - np.linalg.norm(saccade_b, axis=-1)) / diagonal,
        np.linalg.norm((from_a - from_b)[..., :2], axis=-1) / diagonal,
        np.abs(from_a[..., 2] - from_b[..., 2]) / np.where(longer > 0, longer, 1.0),
    ]
    return 1.0 - np.stack([_median(values, on_path) for values in differences], axis=1)


def _median(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Median of the counted entries of each row."""
    ordered = np.sort(np.where(counted, values, np.inf), axis=1)
    number, row = counted.sum(axis=1), np.arange(len(values))
    return (ordered[row, (number - 1) // 2] + ordered[row, number // 2]) / 2


def _cheapest_path(cost: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """Cheapest way from cell (0, 0) to (rows - 1, columns - 1) by steps right, down and right-down.

    Args:
        cost: (R, C, n), what entering a cell costs.

    Returns:
        i, j (n, R + C - 1) int64, the cells from the last to the first, and a bool mask of that shape: which count.
    """
    height, width, n = cost.shape
    total = np.full((height + 1, width + 1, n), np.inf)  # row and column 0 are a border that nothing comes from
    total[1, 1] = 0.0
    for k in range(1, height + width - 1):
        i = np.arange(max(0, k - width + 1), min(height, k + 1))
        j = k - i
        cheapest = np.minimum(total[i, j], np.minimum(total[i, j + 1], total[i + 1, j]))
        total[i + 1, j + 1] = cheapest + cost[i, j]
    i, j, on_path, tied = _backtrack(total, rows, columns)
    for pair in np.flatnonzero(tied):
        cells = _settled_path(cost[: rows[pair], : columns[pair], pair])
        on_path[pair] = np.arange(on_path.shape[1]) < len(cells)
        i[pair, on_path[pair]], j[pair, on_path[pair]] = np.array(cells).T
    return i, j, on_path


def _backtrack(total: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, ...]:
    """Follow the smallest bordered total back to (0, 0): i, j and mask as above, and which pairs met an exact tie."""
    n, steps = total.shape[2], total.shape[0] + total.shape[1] - 3
    pair, back = np.arange(n), np.array([(-1, -1), (-1, 0), (0, -1)]).T
    i, j = rows.copy(), columns.copy()  # in the bordered table
    path = np.ones((2, n, steps), dtype=np.int64)
    on_path = np.zeros((n, steps), dtype=bool)
    tied = np.zeros(n, dtype=bool)
    moving = np.ones(n, dtype=bool)
    for step in range(steps):
        path[0, :, step], path[1, :, step], on_path[:, step] = i, j, moving
        moving = moving & ((i > 1) | (j > 1))
        if not moving.any():
            break
        before = total[i + back[0][:, None], j + back[1][:, None], pair]
        choice = before.argmin(axis=0)
        tied |= moving & ((before == before[choice, pair]).sum(axis=0) > 1)
        i = i + np.where(moving, back[0][choice], 0)
        j = j + np.where(moving, back[1][choice], 0)
    return path[0] - 1, path[1] - 1, on_path, tied


def _settled_path(cost: np.ndarray) -> list[tuple[int, int]]:
    """The cells of one pair's cheapest path, last to first, where several are equally cheap.

    Equal totals occur when fixations repeat or lie on a coarse raster, and then the path decides the scores.
    Dijkstra's order decides as in multimatch-gaze (SciPy 1.17 below it): a cell keeps the first predecessor settled,
    and among the cells waiting at one total the last in row order is settled first. Rare on real gaze, hence one pair
    at a time.
    """
    rows, columns = cost.shape
    total = np.full((rows, columns), np.inf)
    total[0, 0] = 0.0
    settled = np.zeros((rows, columns), dtype=bool)
    predecessor: dict[tuple[int, int], tuple[int, int]] = {}
    waiting = [(0.0, 0, (0, 0))]
    while waiting:
        reached, _, (i, j) = heapq.heappop(waiting)
        if settled[i, j]:
            continue
        settled[i, j] = True
        for cell in ((i, j + 1), (i + 1, j), (i + 1, j + 1)):
            if cell[0] < rows and cell[1] < columns and reached + cost[cell] < total[cell]:
                total[cell] = reached + cost[cell]
                predecessor[cell] = (i, j)
                heapq.heappush(waiting, (total[cell], -(cell[0] * columns + cell[1]), cell))
    path = [(rows - 1, columns - 1)]
    while path[-1] in predecessor:
        path.append(predecessor[path[-1]])
    return path
