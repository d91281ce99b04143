"""Scanpath similarity: sequences of fixations compared over many pairs at once.

ScanMatch, MultiMatch, the edit distance and the time-delay similarity each score (n,) predictions against (n,)
references; the paths' own statistics and what readers reach among one another stand beside them, for a score means
little without.

The GazeSearch protocol (Pham et al., WACV 2025, as its code does it): the image is a 224 x 224 square, the reference
starts with a fixation at the centre (`Scanpath.with_centre`), MultiMatch is averaged without duration
(`multimatch_mean4`). GazeSearch fills paths of fewer than 3 fixations with made-up ones at pixel (1, 1), so that its
MultiMatch is always a number; here such a pair is NaN, as in the definition, and the caller says what becomes of it
(`np.nanmean` leaves it out).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import permutations

import numpy as np

from gaze_vlm.metrics._alignment import (
    batches,
    cheapest_path,
    distance,
    grid_cells,
    heaviest_alignment,
    pixels,
    run_similarity,
    scaled,
    stacked,
    time_first,
)
from gaze_vlm.metrics._numbers import ratio
from gaze_vlm.metrics._ranks import rank_correlation
from gaze_vlm.scanpath import Scanpath

MULTIMATCH_DIMENSIONS = ("shape", "direction", "length", "position", "duration")

ScanpathMetric = Callable[[Sequence[Scanpath], Sequence[Scanpath]], np.ndarray]


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
    length of the longer sequence. Source: Cristino et al., Behavior Research Methods 2010. GazeParser's ScanMatch is
    the same at gap 0; at a negative gap it takes the table's highest cell, which leaves out an end for free. The
    default grid of 14 x 14 (16 pixels of 224) without durations is the setting of this package's published tables.

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
    return _scanmatch_pairs(predictions, references, pairs, pairs, bins, threshold, gap, temporal_bin)


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
    first, second = np.indices((len(scanpaths), len(others))).reshape(2, -1)
    scores = _scanmatch_pairs(scanpaths, others, first, second, bins, threshold, gap, temporal_bin)
    return scores.reshape(len(scanpaths), len(others))


def multimatch(
    predictions: Sequence[Scanpath], references: Sequence[Scanpath], *, screen_size: tuple[int, int] = (224, 224)
) -> dict[str, np.ndarray]:
    """MultiMatch of each prediction with its reference on five dimensions; higher is better.

    The saccades of the two paths are aligned at the least sum of vector differences; then, over the aligned pairs, the
    median difference of the vectors (shape), angles (direction), lengths, start points (position) and durations of the
    fixations they start from is divided by its largest possible value and taken from 1. Without the grouping step.
    Sources: Jarodzka et al., ETRA 2010; Dewhurst et al., Behavior Research Methods 2012. Values equal
    `multimatch_gaze.docomparison(..., screensize)` of the PyPI package multimatch-gaze, for whole pixels to the last
    digits, ties between alignments included, except that two durations of 0 s are equal here where the package divides
    0 by 0. A fraction of a pixel is kept to float32 (some 1e-5 pixels of 224).

    Args:
        screen_size: (width, height) in pixels that 0..1 of the image stands for. It sets the weight of x against y.

    Returns:
        keys shape, direction, length, position, duration, each (n,) float64, 0..1 for fixations on the screen. NaN
        where a path has fewer than 3 fixations.
    """
    _same_number(predictions, references)
    (first, first_lengths), (second, second_lengths) = stacked(predictions), stacked(references)
    first, second = (np.column_stack([pixels(points, screen_size), points[:, 2]]) for points in (first, second))
    scores = np.full((len(predictions), 5), np.nan)
    long_enough = np.flatnonzero((first_lengths >= 3) & (second_lengths >= 3))
    # n fixations make n - 1 saccades
    for part in batches(first_lengths - 1, second_lengths - 1, long_enough, whole_tables=True):
        a, b = time_first(first, first_lengths, part), time_first(second, second_lengths, part)
        scores[part] = _multimatch_batch(*a, *b, screen_size)
    return dict(zip(MULTIMATCH_DIMENSIONS, scores.T, strict=True))


def multimatch_mean4(
    predictions: Sequence[Scanpath], references: Sequence[Scanpath], *, screen_size: tuple[int, int] = (224, 224)
) -> np.ndarray:
    """(n,) float64, 0..1, higher is better: the mean of MultiMatch's shape, direction, length and position."""
    scores = multimatch(predictions, references, screen_size=screen_size)
    return np.mean([scores[name] for name in MULTIMATCH_DIMENSIONS[:4]], axis=0)


def edit_distance(
    predictions: Sequence[Scanpath],
    references: Sequence[Scanpath],
    *,
    grid: int = 5,
    screen_size: tuple[int, int] | None = (224, 224),
) -> np.ndarray:
    """String edit distance (SED) of each prediction and its reference; lower is better.

    A fixation becomes the letter of its cell in a grid x grid raster; the distance is the least number of letters put
    in, taken out or exchanged that turns one string into the other (Levenshtein 1966). Sources: Brandt and Stark,
    Journal of Cognitive Neuroscience 1997; the cells as in the published evaluation code of the scanpath literature
    (Zanca's visual attention metrics): coordinates cut to whole pixels, cells `side // grid` pixels wide, letter
    column + row * grid. Where the side is no multiple of the grid a last column is left over, and its letters are
    those of the next row's first cell: of 224 pixels in 5 the last four. That is kept, so that numbers compare.

    Args:
        grid: cells along each side.
        screen_size: (width, height) in pixels that 0..1 of the image stands for. With None the cells are exact
            fractions of the image, and a fixation off it counts in the nearest one.

    Returns:
        (n,) float64, whole numbers from 0 (equal strings) to the length of the longer path. Two empty paths are equal;
        against an empty one a path is as far as it is long.
    """
    _same_number(predictions, references)
    first, first_lengths = _letters(predictions, grid, screen_size)
    second, second_lengths = _letters(references, grid, screen_size)
    spared = np.zeros(len(predictions))
    filled = np.flatnonzero(np.minimum(first_lengths, second_lengths))
    for part in batches(first_lengths, second_lengths, filled, whole_tables=False):
        # letters opposite each other spare one of the two steps "out" and "in", equal ones both
        spared[part] = heaviest_alignment(
            *time_first(first, first_lengths, part),
            *time_first(second, second_lengths, part),
            lambda a, b: np.equal(a, b) + 1.0,
        )
    return first_lengths + second_lengths - spared


def time_delay_similarity(
    predictions: Sequence[Scanpath], references: Sequence[Scanpath], *, screen_size: tuple[int, int] = (224, 224)
) -> np.ndarray:
    """Scaled time-delay embedding similarity (STDE) of each prediction with its reference; higher is better.

    For every k up to the length of the shorter path, each run of k fixations of the prediction is held against the
    reference's closest run of k; the distance of two runs is the mean distance of their fixations, in units of the
    screen's longer side. Their mean over the prediction's runs, d, makes a similarity exp(-d), and these are averaged
    over k. Not symmetric: what the reference visits besides costs nothing. Source: Wang et al., CVPR 2011, scaled as
    in the published evaluation code of the scanpath literature (Zanca's visual attention metrics).

    Args:
        screen_size: (width, height) in pixels that 0..1 of the image stands for; only their ratio matters.

    Returns:
        (n,) float64, above 0 to 1; 1 when the prediction is the reference or a run of it. NaN where a path is empty.
    """
    _same_number(predictions, references)
    (first, first_lengths), (second, second_lengths) = stacked(predictions), stacked(references)
    first, second = (pixels(points, screen_size) / max(screen_size) for points in (first, second))
    scores = np.full(len(predictions), np.nan)
    filled = np.flatnonzero(np.minimum(first_lengths, second_lengths))
    for part in batches(first_lengths, second_lengths, filled, whole_tables=True):
        a, b = time_first(first, first_lengths, part), time_first(second, second_lengths, part)
        scores[part] = run_similarity(*a, *b)
    return scores


def fixation_statistics(
    scanpaths: Sequence[Scanpath], *, screen_size: tuple[int, int] | None = None
) -> dict[str, np.ndarray]:
    """What a scanpath amounts to, one number a path; to compare with `distribution_distance`.

    Args:
        screen_size: as in `saccade_amplitudes`.

    Returns:
        fixations: (n,) int64, how many.
        total_duration: (n,) float64, seconds fixated.
        mean_duration: (n,) float64, seconds a fixation; NaN for a path without any.
        scanpath_length: (n,) float64, the sum of its saccades' amplitudes, in the unit of `saccade_amplitudes`; 0 for
            a path without saccade.
    """
    points, lengths = stacked(scanpaths)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    total = np.bincount(owner, points[:, 2], len(lengths))
    amplitudes, of = _saccades(points, owner, screen_size)
    return {
        "fixations": lengths,
        "total_duration": total,
        "mean_duration": ratio(total, lengths),
        "scanpath_length": np.bincount(of, amplitudes, len(lengths)),
    }


def saccade_amplitudes(scanpaths: Sequence[Scanpath], *, screen_size: tuple[int, int] | None = None) -> np.ndarray:
    """The distances from each fixation to the next, of all scanpaths one after the other.

    Args:
        screen_size: (width, height) in pixels that 0..1 of the image stands for. With None x counts in widths of the
            image and y in heights, which is a length only if the image is square.

    Returns:
        (all fixations less one a path,) float64, in pixels, or fractions of the image's side without `screen_size`.
    """
    points, lengths = stacked(scanpaths)
    return _saccades(points, np.repeat(np.arange(len(lengths)), lengths), screen_size)[0]


def distribution_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sample Kolmogorov-Smirnov statistic; 0 for samples distributed alike, 1 for samples that do not overlap.

    The largest difference of the shares of `a` and of `b` that lie at or below any value. Source: Smirnov, Annals of
    Mathematical Statistics 1948. Equals `scipy.stats.ks_2samp(a, b).statistic`.

    Args:
        a, b: (n,) and (m,) numbers of one unit, such as `saccade_amplitudes` of predictions and of readers.

    Returns:
        0..1, lower is better; NaN when a sample is empty.
    """
    samples = []
    for name, values in (("a", a), ("b", b)):
        values = np.asarray(values, dtype=np.float64)
        if values.ndim != 1:
            raise ValueError(f"{name} must be a flat list of numbers, got shape {values.shape}")
        if np.isnan(values).any():
            raise ValueError(f"{name}[{np.isnan(values).argmax()}] is NaN")
        samples.append(np.sort(values))
    if not all(map(len, samples)):
        return float("nan")
    at = np.concatenate(samples)
    below_a, below_b = (np.searchsorted(values, at, side="right") / len(values) for values in samples)
    return float(np.abs(below_a - below_b).max())


def workload_correlation(predictions: Sequence[Scanpath], references: Sequence[Scanpath]) -> float:
    """Do predictions rank cases by the work that reading them takes? Higher is better.

    A case's workload is its total fixation duration in seconds, saccades not counted; the score is Spearman's
    correlation of the predicted with the readers' over cases, ties at their mean rank. Source: MedGaze (Awasthi et
    al., Scientific Reports 15:13685, 2025), which reports 0.65 on EGD-CXR. Equals `scipy.stats.spearmanr`.

    Returns:
        -1..1, about 0 for durations that say nothing of the case; NaN below 3 cases, or where one side has the same
        duration in every case.
    """
    _same_number(predictions, references)
    return rank_correlation(*(fixation_statistics(side)["total_duration"] for side in (predictions, references)))


def reader_ceiling(
    scanpaths: Sequence[Scanpath], cases: Sequence[Hashable], metric: ScanpathMetric
) -> tuple[np.ndarray, list[Hashable]]:
    """How well readers of one case predict each other: what a model can be expected to reach, in `metric`'s unit.

    Every reading of a case is scored against every other reading of it, in both orders, for a metric need not be
    symmetric; never against itself.

    Args:
        scanpaths: (n,) readings.
        cases: (n,) what each of them is a reading of (image, or image and finding).
        metric: such as `scanmatch` or `multimatch_mean4`: predictions and references -> (pairs,). It is called once.

    Returns:
        (k,) float64, the mean over a case's pairs, those left out on which the metric is NaN (NaN where all are); and
        the k cases with at least two readings, in the order in which they first occur.
    """
    if len(scanpaths) != len(cases):
        raise ValueError(f"one case a scanpath: scanpaths: {len(scanpaths)}, cases: {len(cases)}")
    readings: dict[Hashable, list[int]] = {}
    for number, case in enumerate(cases):
        readings.setdefault(case, []).append(number)
    shared = [case for case, numbers in readings.items() if len(numbers) > 1]
    if not shared:
        raise ValueError(f"no case has two readings: scanpaths: {len(scanpaths)}, cases: {len(readings)}")
    pairs = [(index, *pair) for index, case in enumerate(shared) for pair in permutations(readings[case], 2)]
    owner, prediction, reference = np.array(pairs).T
    scores = np.asarray(metric([scanpaths[i] for i in prediction], [scanpaths[i] for i in reference]), np.float64)
    if scores.shape != owner.shape:
        raise ValueError(f"metric must give one number a pair: pairs: {len(owner)}, got shape {scores.shape}")
    defined = ~np.isnan(scores)
    number = np.bincount(owner[defined], minlength=len(shared))
    total = np.bincount(owner[defined], scores[defined], len(shared))
    return ratio(total, number), shared


# ---- what several need


def _same_number(predictions: Sequence[Scanpath], references: Sequence[Scanpath]) -> None:
    if len(predictions) != len(references):
        raise ValueError(f"one reference a prediction: predictions: {len(predictions)}, references: {len(references)}")


def _saccades(points: np.ndarray, owner: np.ndarray, screen_size) -> tuple[np.ndarray, np.ndarray]:
    """Amplitudes of the saccades between stacked fixations of the paths `owner`, and whose they are."""
    steps = np.diff(points[:, :2].astype(np.float64) if screen_size is None else pixels(points, screen_size), axis=0)
    within = owner[1:] == owner[:-1]
    return np.hypot(*steps[within].T), owner[1:][within]


# ---- ScanMatch


def _scanmatch_pairs(scanpaths, others, i, j, bins, threshold, gap, temporal_bin) -> np.ndarray:
    """Scores of the pairs scanpaths[i], others[j]."""
    if min(bins) < 1:
        raise ValueError(f"bins must be (columns, rows) of at least 1, got {bins}")
    if not threshold > 0:
        raise ValueError(f"threshold must be above 0 cells, got {threshold}")
    if gap > 0:
        raise ValueError(f"gap must be zero or below, got {gap}")
    if temporal_bin is not None and not temporal_bin > 0:
        raise ValueError(f"temporal_bin must be seconds above 0 or None, got {temporal_bin}")
    first, first_lengths = _cell_codes(scanpaths, bins, temporal_bin)
    second, second_lengths = _cell_codes(others, bins, temporal_bin)
    rows, columns = first_lengths[i], second_lengths[j]
    longest = np.maximum(rows, columns)
    worth = _worth(bins, threshold) - 2 * gap
    best = np.full(len(i), np.nan)
    for part in batches(rows, columns, np.flatnonzero(longest), whole_tables=False):
        best[part] = heaviest_alignment(
            *time_first(first, first_lengths, i[part]),
            *time_first(second, second_lengths, j[part]),
            lambda a, b: worth[a - b],
        )
    return (best + gap * (rows + columns)) / (threshold * np.maximum(longest, 1))


def _cell_codes(
    scanpaths: Sequence[Scanpath], bins: tuple[int, int], temporal_bin: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """(total,) int64, the code of each entry's cell, path after path, and the lengths (n,).

    A code is row * 2 columns + column, so that the difference of two codes tells how far apart their cells lie.
    """
    points, lengths = stacked(scanpaths)
    column, row = grid_cells(points, bins).T
    codes = row * 2 * bins[0] + column
    if temporal_bin is not None:
        # counted in halves, so that two and a half bins of a float32 are just that
        times = np.round(scaled(points[:, 2], 2 / temporal_bin) / 2).astype(np.int64)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        codes, lengths = np.repeat(codes, times), np.bincount(np.repeat(owner, times), minlength=len(lengths))
    return codes, lengths


def _worth(bins: tuple[int, int], threshold: float) -> np.ndarray:
    """What aligning two cells is worth: entry [code - other code], which may be negative."""
    columns, rows = bins
    difference = np.arange(-2 * columns * rows, 2 * columns * rows)
    down = np.round(difference / (2 * columns))  # |right| < columns, so that rounding finds it
    right = difference - down * 2 * columns
    return np.roll(threshold - np.sqrt(down**2 + right**2), len(difference) // 2)


# ---- MultiMatch


def _multimatch_batch(first, first_lengths, second, second_lengths, screen_size) -> np.ndarray:
    """Points (F, 3, n) of paths of `first_lengths` (n,) fixations, and the same for second -> (n, 5) similarities."""
    a, b = np.diff(first[:, :2], axis=0), np.diff(second[:, :2], axis=0)
    i, j, on_path = cheapest_path(a, first_lengths - 1, b, second_lengths - 1, distance)
    pair = np.arange(len(i))[:, None]
    from_a, from_b = first[i, :, pair], second[j, :, pair]
    saccade_a, saccade_b = a[i, :, pair], b[j, :, pair]
    angle = np.abs(np.arctan2(saccade_a[..., 1], saccade_a[..., 0]) - np.arctan2(saccade_b[..., 1], saccade_b[..., 0]))
    longer = np.maximum(from_a[..., 2], from_b[..., 2])
    diagonal = float(np.hypot(*screen_size))
    differences = [
        np.linalg.norm(saccade_a - saccade_b, axis=-1) / (2 * diagonal),
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


# ---- edit distance


def _letters(
    scanpaths: Sequence[Scanpath], grid: int, screen_size: tuple[int, int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """(total,) int64, column + row * grid of each fixation's cell, path after path, and the lengths (n,)."""
    if grid < 1 or (screen_size is not None and grid > min(screen_size)):
        raise ValueError(f"grid must be at least 1 and at most a side of screen_size {screen_size}, got {grid}")
    points, lengths = stacked(scanpaths)
    if screen_size is None:
        cells = grid_cells(points, (grid, grid))
    else:
        cells = pixels(points, screen_size).astype(np.int64) // (np.array(screen_size) // grid)
    return cells @ (1, grid), lengths
