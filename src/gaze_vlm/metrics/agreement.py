"""Do two readers, or a model and a reader, spend their time in the same places?

GazeX reports an intraclass correlation and a cosine similarity of gaze clusters, and does not define either. Here the
clusters are the caller's choice, and one table of dwell times gives both numbers. Neither knows of order; the dynamic
time warping distance does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from gaze_vlm.findings import REGIONS
from gaze_vlm.metrics._alignment import batches, distance, stacked, time_first
from gaze_vlm.metrics._numbers import ratio
from gaze_vlm.scanpath import Scanpath

Clusters = Literal["regions", "dbscan"] | int
Form = Literal["2,1", "3,1"]

_REGION_BOXES = np.array([region.box for region in REGIONS.values()])


class ICCResult(NamedTuple):
    """An intraclass correlation, at most 1, higher is better, and its 95 % interval."""

    value: float
    low: float
    high: float


class ClusterVectors(NamedTuple):
    """Seconds of dwell in every cluster of every case.

    Args:
        dwell: (m, 2) float64, the prediction's and the reference's seconds: subjects and raters for `icc`.
        case: (m,) int64, whose cluster it is: groups for `statistics.bootstrap`.
    """

    dwell: np.ndarray
    case: np.ndarray


def icc(ratings: np.ndarray, *, form: Form = "2,1") -> ICCResult:
    """Intraclass correlation of single ratings, with a 95 % interval from the F distribution.

    "2,1" asks for the same values (two-way random effects, absolute agreement: what one rater adds throughout counts
    against it), "3,1" for the same differences (two-way mixed effects, consistency). Source: Shrout and Fleiss,
    Psychological Bulletin 1979. The interval takes subjects for independent; where they are not (the clusters of one
    film), resample the cases instead.

    Args:
        ratings: (n, k) of any unit, n subjects rated by the same k raters, at least 2 of each.

    Returns:
        ICCResult; NaN where no rater tells any two subjects apart, and where the formula divides by 0.
    """
    from scipy.stats import f

    _check_form(form)
    ratings = _ratings(ratings)
    if (ratings == ratings[0]).all():
        return ICCResult(*[float("nan")] * 3)
    n, k = ratings.shape
    between, raters, error = _mean_squares(ratings)
    value = _icc_value(between, raters, error, n, k, form)
    free, left = n - 1, (n - 1) * (k - 1)
    if form == "3,1":
        quantiles = 1 / f.ppf(0.975, free, left), f.ppf(0.975, left, free)
        interval = (_icc_value(q * between, raters, error, n, k, form) for q in quantiles)
        return ICCResult(float(value), *map(float, interval))
    # Satterthwaite's degrees of freedom of the raters' and the error's share
    share = k * value / n * raters, (1 + (n - 1) * k * value / n - value) * error
    if sum(share) == 0:  # no degrees of freedom: raters who agree to the last digit, or subjects of one mean
        return ICCResult(*[float(value)] * 3)
    degrees = sum(share) ** 2 / (share[0] ** 2 / (k - 1) + share[1] ** 2 / left)
    low, high = 1 / f.ppf(0.975, free, degrees), f.ppf(0.975, degrees, free)
    others = k * raters + (k * n - k - n) * error
    interval = (n * (q * between - error) / (others + n * q * between) for q in (low, high))
    return ICCResult(float(value), *map(float, interval))


def cluster_vectors(
    predictions: Sequence[Scanpath],
    references: Sequence[Scanpath],
    *,
    clusters: Clusters,
    eps: float = 0.05,
    min_samples: int = 2,
) -> ClusterVectors:
    """Dwell of each prediction and its reference in each cluster of the film; fixations off the image do not count.

    Args:
        clusters: "regions", the 17 of `findings.REGIONS` at their default boxes, where a fixation counts for every
            region that holds it; a whole number n, the cells of an n x n grid; or "dbscan", clusters of the two paths'
            fixations taken together (Ester et al., KDD 1996), and each fixation that belongs to none for itself, so
            that no dwell is lost. Regions and cells that neither path visits are in the table, with 0 and 0; places
            that dbscan's clusters leave out are not, and the `icc` of unrelated short paths is below 0 for it.
        eps: dbscan: how near neighbours are, as a fraction of the image's width and height.
        min_samples: dbscan: fixations within `eps`, itself counted, that make a fixation part of a cluster's core. Up
            to 2, fixations that lie within `eps` of one another, or are joined by such, are one cluster.
    """
    if len(predictions) != len(references):
        raise ValueError(f"one reference a prediction: predictions: {len(predictions)}, references: {len(references)}")
    pairs = [(a.drop_outside(), b.drop_outside()) for a, b in zip(predictions, references, strict=True)]
    if clusters == "dbscan":
        dbscan = _dbscan(eps, min_samples)
        tables = [_dbscan_dwell(a, b, dbscan) for a, b in pairs]
    elif clusters == "regions":
        tables = [np.stack([_region_dwell(a), _region_dwell(b)], axis=1) for a, b in pairs]
    elif isinstance(clusters, int) and not isinstance(clusters, bool) and clusters > 0:
        grid = (clusters, clusters)
        tables = [np.stack([a.dwell(grid).ravel(), b.dwell(grid).ravel()], axis=1) for a, b in pairs]
    else:
        raise ValueError(f'clusters must be "regions", "dbscan" or a whole number above 0, got {clusters!r}')
    case = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    return ClusterVectors(np.concatenate([np.zeros((0, 2)), *tables]), case)


def dwell_cosine(
    predictions: Sequence[Scanpath],
    references: Sequence[Scanpath],
    *,
    clusters: Clusters,
    eps: float = 0.05,
    min_samples: int = 2,
) -> np.ndarray:
    """Cosine between the dwell times of each prediction and its reference over clusters; higher is better.

    The order and the number of visits do not matter, nor does the total time. Few or overlapping clusters make any two
    paths alike: of 100 fixations each, scattered about the centre without aim, two reach 0.98 by "dbscan" and 0.96 by
    "regions". So read it beside the cosine of paths over other films. Arguments as in `cluster_vectors`.

    Returns:
        (n,) float64, 0..1; NaN where a path has no dwell in any cluster.
    """
    vectors = cluster_vectors(predictions, references, clusters=clusters, eps=eps, min_samples=min_samples)
    return cosine_of_sums(dwell_sums(vectors, len(predictions)))


def dwell_sums(vectors: ClusterVectors, cases: int) -> np.ndarray:
    """All that cosine and intraclass correlation need to know of each case, so that resampling cases costs no more
    than adding their rows.

    Returns:
        (cases, 6) float64: the case's clusters; the prediction's seconds in them and the reference's; the sums of
        their squares, and of their product.
    """
    first, second = vectors.dwell.T
    terms = (np.ones(len(first)), first, second, first**2, second**2, first * second)
    return np.stack([np.bincount(vectors.case, term, cases) for term in terms], axis=1)


def cosine_of_sums(sums: np.ndarray) -> np.ndarray:
    """`dwell_cosine` of each case: `dwell_sums` (n, 6) -> (n,) float64."""
    first, second, dot = sums.T[3:]
    return ratio(dot, np.sqrt(first) * np.sqrt(second))


def icc_of_sums(sums: np.ndarray, *, form: Form = "2,1") -> float:
    """`icc` of the two paths over the clusters of all cases together, without its interval; higher is better.

    Args:
        sums: (n, 6) as `dwell_sums` gives them, or means of such rows over the readings of a case.

    Returns:
        at most 1; NaN below two clusters, and as in `icc`.
    """
    _check_form(form)
    n, first, second, first_squares, second_squares, dot = np.asarray(sums, dtype=np.float64).sum(axis=0)
    if n < 2:
        return float("nan")
    squares, raters = first_squares + second_squares, (first - second) ** 2 / (2 * n)
    between = max(squares / 2 + dot - (first + second) ** 2 / (2 * n), 0.0)
    left = max(squares / 2 - dot - raters, 0.0)
    if between + left <= 1e-12 * squares:  # sums are rounded
        return float("nan")
    return float(_icc_value(between / (n - 1), raters, left / (n - 1), n, 2, form))


def dtw_distance(predictions: Sequence[Scanpath], references: Sequence[Scanpath]) -> np.ndarray:
    """How far apart two paths run when time may stretch: dynamic time warping; lower is better.

    Both paths are walked from their first fixations to their last; a step goes on by a fixation in one of them or in
    both, and costs their Euclidean distance then, twice where both went on, as for the two they start from. The
    cheapest walk is divided by the fixations of both, which is how often it went on: a mean distance over the aligned
    fixations, whatever the walk. Source: Sakoe and Chiba, IEEE Transactions on Acoustics, Speech and Signal Processing
    1978, the symmetric form without slope constraint. Symmetric in the paths; durations do not count.

    Returns:
        (n,) float64, in sides of the image (x counts in its widths, y in its heights), 0 for equal paths and up to
        sqrt(2) on it; paths moved by d against each other are at most d apart. NaN where a path is empty.
    """
    if len(predictions) != len(references):
        raise ValueError(f"one reference a prediction: predictions: {len(predictions)}, references: {len(references)}")
    (first, first_lengths), (second, second_lengths) = stacked(predictions), stacked(references)
    first, second = (points[:, :2].astype(np.float64) for points in (first, second))
    distances = np.full(len(predictions), np.nan)
    filled = np.flatnonzero(np.minimum(first_lengths, second_lengths))
    for part in batches(first_lengths, second_lengths, filled, whole_tables=False):
        a, b = time_first(first, first_lengths, part), time_first(second, second_lengths, part)
        distances[part] = _warped(*a, *b) / (a[1] + b[1])
    return distances


def _check_form(form: str) -> None:
    if form not in ("2,1", "3,1"):
        raise ValueError(f'form must be "2,1" or "3,1", got {form!r}')


def _icc_value(between: float, raters: float, error: float, n: float, k: int, form: Form) -> float:
    """The intraclass correlation of mean squares as `_mean_squares` gives them."""
    bias = k * (raters - error) / n if form == "2,1" else 0.0
    whole = between + (k - 1) * error + bias
    return (between - error) / whole if whole else float("nan")


def _ratings(ratings: np.ndarray) -> np.ndarray:
    ratings = np.asarray(ratings, dtype=np.float64)
    if ratings.ndim != 2 or min(ratings.shape) < 2:
        raise ValueError(f"ratings must be (n subjects, k raters), at least 2 of each, got shape {ratings.shape}")
    bad = np.argwhere(~np.isfinite(ratings))
    if len(bad):
        subject, rater = bad[0]
        raise ValueError(f"subject {subject}, rater {rater}: the rating is {ratings[subject, rater]}, not a number")
    return ratings


def _mean_squares(ratings: np.ndarray) -> tuple[float, float, float]:
    """Two-way analysis of variance: mean squares between subjects, between raters, and of what is left."""
    n, k = ratings.shape
    ratings = ratings - ratings.mean()
    subjects, raters = ratings.mean(axis=1, keepdims=True), ratings.mean(axis=0)
    left = ratings - subjects - raters
    return (
        k * (subjects**2).sum() / (n - 1),
        n * (raters**2).sum() / (k - 1),
        (left**2).sum() / ((n - 1) * (k - 1)),
    )


def _region_dwell(scanpath: Scanpath) -> np.ndarray:
    """(17,) seconds in each region's box."""
    x, y = scanpath.x[:, None].astype(np.float64), scanpath.y[:, None].astype(np.float64)
    x1, y1, x2, y2 = _REGION_BOXES.T
    return scanpath.duration.astype(np.float64) @ ((x1 <= x) & (x <= x2) & (y1 <= y) & (y <= y2))


def _dbscan(eps: float, min_samples: int):
    from sklearn.cluster import DBSCAN

    if not eps > 0 or min_samples < 1:
        raise ValueError(f"eps must be above 0 and min_samples at least 1, got {eps} and {min_samples}")
    return DBSCAN(eps=eps, min_samples=min_samples)


def _dbscan_dwell(first: Scanpath, second: Scanpath, dbscan) -> np.ndarray:
    """(clusters, 2) seconds of both paths in each cluster of their fixations."""
    both = np.concatenate([first.to_array(), second.to_array()]).astype(np.float64)
    if not len(both):
        return np.zeros((0, 2))
    labels = dbscan.fit_predict(both[:, :2])
    lone = labels == -1
    labels[lone] = labels.max() + 1 + np.arange(lone.sum())
    dwell = np.zeros((labels.max() + 1, 2))
    np.add.at(dwell, (labels, np.repeat([0, 1], [len(first), len(second)])), both[:, 3])
    return dwell


def _warped(
    first: np.ndarray, first_lengths: np.ndarray, second: np.ndarray, second_lengths: np.ndarray
) -> np.ndarray:
    """(n,) cost of the cheapest walk along points (R, 2, n) and (C, 2, n), before it is divided."""
    height, width, n = len(first), len(second), len(first_lengths)
    second = second[::-1]
    # row [i] of diagonal k: the cheapest walk to the i-th of the first and the (k - i)-th of the second, counted from
    # 1; only two diagonals are kept, and the rows of the border hold inf but for the start
    before, last = np.full((2, height + 1, n), np.inf)
    before[0] = 0
    costs = np.empty(n)
    for k in range(2, height + width + 1):
        low, high = max(1, k - width), min(height, k - 1)
        apart = distance(first[low - 1 : high], second[width - k + low : width - k + high + 1])
        both = before[low - 1 : high] + 2 * apart
        one = np.minimum(last[low - 1 : high], last[low : high + 1]) + apart
        before[0] = np.inf
        np.minimum(both, one, out=before[low : high + 1])
        before, last = last, before
        ends = np.flatnonzero(first_lengths + second_lengths == k)
        costs[ends] = last[first_lengths[ends], ends]
    return costs
