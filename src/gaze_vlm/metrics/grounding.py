"""Do predicted boxes, points, or gaze, lie where the reference boxes are?

A box is (x1, y1, x2, y2) from the top left, in 0..1 of the image or any other unit that both sides share. A case is
one phrase on one film, with any number of boxes on each side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gaze_vlm.metrics._numbers import known_mean, ratio
from gaze_vlm.scanpath import Scanpath


@dataclass(frozen=True, eq=False)
class GroundingScores:
    """Localisation over n cases. Scores 0..1, higher is better; NaN when no case has a reference box.

    Args:
        ious: (n,) float64, NaN for a case without reference box.
        mean_iou: mean of `ious`.
        accuracy: share of cases with an IoU of at least 0.3 and of at least 0.5, by these two numbers.
        cases: n.
        without_reference: cases without a reference box; they enter no mean.
        without_prediction: cases with a reference and no predicted box; they count as IoU 0.
    """

    ious: np.ndarray
    mean_iou: float
    accuracy: dict[float, float]
    cases: int
    without_reference: int
    without_prediction: int


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of each box of `a` with the box of `b` in the same row; higher is better.

    Args:
        a, b: (n, 4).

    Returns:
        (n,) float64, 0..1; NaN where neither box has an area.
    """
    a, b = _boxes("a", a), _boxes("b", b)
    if len(a) != len(b):
        raise ValueError(f"one box of b for each of a: a: {len(a)}, b: {len(b)}")
    return _iou(a, b)


def box_iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) float64: `box_iou` of every box of `a` (n, 4) with every box of `b` (m, 4)."""
    return _iou(_boxes("a", a)[:, None], _boxes("b", b))


def iou_union(predicted: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> np.ndarray:
    """IoU of the areas that the predicted and the reference boxes of a case cover; higher is better.

    Exact: all edges of a case span an irregular grid, whose cells are covered as a whole or not at all. How an area is
    cut into boxes does not matter.

    Args:
        predicted, reference: for each case (k, 4) boxes, an empty list for none. A reference box must have an area.

    Returns:
        (n,) float64, 0..1; 0 for a case without predicted box, NaN for one without reference box.
    """
    return np.array([_union_iou(*boxes) for boxes in _cases(predicted, reference)], dtype=np.float64)


def iou_hungarian(predicted: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> np.ndarray:
    """Mean IoU of the predicted and reference boxes of a case, matched one to one; higher is better.

    The matching with the highest sum of IoU (Kuhn, Naval Research Logistics 1955), divided by the number of boxes on
    the longer side, so that each missing and each surplus box counts as 0. Arguments, range and NaN as in `iou_union`.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError('iou_hungarian needs the package scipy: pip install "gaze2report[eval]"') from error
    scores = []
    for boxes, others in _cases(predicted, reference):
        ious = _iou(boxes[:, None], others)
        matched = ious[linear_sum_assignment(ious, maximize=True)]
        scores.append(matched.sum() / max(ious.shape) if len(others) else np.nan)
    return np.array(scores, dtype=np.float64)


def mean_iou(ious: np.ndarray) -> float:
    """Mean over the cases that have a reference (are not NaN); 0..1, higher is better; NaN when none has."""
    return known_mean(_with_reference(ious))


def accuracy_at(ious: np.ndarray, threshold: float) -> float:
    """Share of the cases with a reference whose IoU is at least `threshold` (0.3 and 0.5 are usual); as `mean_iou`."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}")
    # an IoU of exactly one half may come out a rounding below it
    return mean_iou(_with_reference(ious) >= threshold - 1e-9)


def grounding_scores(
    predicted: Sequence[np.ndarray],
    reference: Sequence[np.ndarray],
    *,
    iou: Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], np.ndarray] = iou_union,
) -> GroundingScores:
    """The usual scores of predicted boxes, and how many cases had nothing to score.

    Args:
        predicted, reference: as in `iou_union`.
        iou: `iou_union` or `iou_hungarian`.
    """
    ious = iou(predicted, reference)
    missing = np.isnan(ious)
    silent = np.array([len(boxes) == 0 for boxes in predicted], dtype=bool)
    return GroundingScores(
        ious=ious,
        mean_iou=mean_iou(ious),
        accuracy={threshold: accuracy_at(ious, threshold) for threshold in (0.3, 0.5)},
        cases=len(ious),
        without_reference=int(missing.sum()),
        without_prediction=int((silent & ~missing).sum()),
    )


def pointing_game(points: np.ndarray, reference: Sequence[np.ndarray], *, tolerance: float = 0.0) -> np.ndarray:
    """Does the point of each case lie in any of its reference boxes, border included? Higher is better.

    Source: Zhang et al., Top-down Neural Attention by Excitation Backprop, ECCV 2016, with 15 pixels of tolerance.

    Args:
        points: (n, 2) x, y in the unit of the boxes, such as the `map_peaks` of attention maps.
        reference: for each case (k, 4) boxes.
        tolerance: how far from a box a point may lie, in the unit of the boxes.

    Returns:
        (n,) float64, 1 for a hit and 0 for a miss; NaN for a case without reference box.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape != (len(reference), 2):
        raise ValueError(f"one x, y a case: points: {points.shape}, cases: {len(reference)}")
    _finite("point of case", points)
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    hits = []
    for case, boxes in enumerate(reference):
        boxes = _reference_boxes(case, boxes)
        away = np.maximum(np.maximum(boxes[:, :2] - points[case], points[case] - boxes[:, 2:]), 0)
        hits.append(float((np.hypot(*away.T) <= tolerance).any()) if len(boxes) else np.nan)
    return np.array(hits, dtype=np.float64)


def dwell_in_boxes(scanpaths: Sequence[Scanpath], reference: Sequence[np.ndarray]) -> np.ndarray:
    """Share of the fixation time of each case that falls in its reference boxes, borders included; higher is better.

    Boxes that overlap count once, and time spent off the image is time. Uniform gaze is expected to reach the boxes'
    share of the area, `iou_union([[(0, 0, 1, 1)]] * n, reference)`.

    Args:
        scanpaths: (n,) one a case.
        reference: for each case (k, 4) boxes, 0..1 of the image as fixations are.

    Returns:
        (n,) float64, 0..1; NaN for a case without reference box or without fixation time.
    """
    if len(scanpaths) != len(reference):
        raise ValueError(f"one scanpath a case: scanpaths: {len(scanpaths)}, cases: {len(reference)}")
    shares = []
    for case, (scanpath, boxes) in enumerate(zip(scanpaths, reference, strict=True)):
        shares.append(_dwell_share(scanpath, _on_image(case, _reference_boxes(case, boxes))))
    return np.array(shares, dtype=np.float64)


def map_peaks(maps: np.ndarray) -> np.ndarray:
    """Where each attention map is highest: the centre of its highest cell, or the mean of the centres of equals.

    The mean keeps to no side: a flat map points to the middle of the image. Between two peaks that are exactly equal
    it may lie on neither.

    Args:
        maps: (n, rows, columns) over the whole image.

    Returns:
        (n, 2) float64 x, y in 0..1 from the top left.
    """
    maps = np.asarray(maps, dtype=np.float64)
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise ValueError(f"maps must be (n, rows, columns), got shape {maps.shape}")
    _finite("map of case", maps)
    highest = maps == maps.max(axis=(1, 2), keepdims=True)
    x, y = ((np.arange(cells) + 0.5) / cells for cells in (maps.shape[2], maps.shape[1]))
    sums = np.stack([(highest * x).sum(axis=(1, 2)), (highest * y[:, None]).sum(axis=(1, 2))], axis=1)
    return sums / highest.sum(axis=(1, 2))[:, None]


def map_iou(maps: np.ndarray, reference: Sequence[np.ndarray], *, threshold: float = 0.5) -> np.ndarray:
    """IoU of the cells that reach `threshold` of a map's peak with the area of the case's boxes; higher is better.

    Exact, as `iou_union` is: a cell counts with the part of it that a box covers.

    Args:
        maps: (n, rows, columns) over the whole image, not negative.
        reference: for each case (k, 4) boxes, 0..1 of the image.
        threshold: share of the peak, above 0 and at most 1.

    Returns:
        (n,) float64, 0..1; NaN for a case without reference box.
    """
    maps = np.asarray(maps, dtype=np.float64)
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise ValueError(f"maps must be (n, rows, columns), got shape {maps.shape}")
    _finite("map of case", maps)
    below = np.argwhere(maps < 0)
    if len(below):
        raise ValueError(f"map of case {below[0, 0]}: holds {maps[tuple(below[0])]:g}, below zero")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, got {threshold}")
    reference = [_on_image(case, _reference_boxes(case, boxes)) for case, boxes in enumerate(reference)]
    rows, columns = maps.shape[1:]
    cells = []
    for reached in maps >= threshold * maps.max(axis=(1, 2), keepdims=True):
        y, x = np.nonzero(reached)
        cells.append(np.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], axis=1))
    return iou_union(cells, reference)


def _with_reference(ious: np.ndarray) -> np.ndarray:
    ious = np.asarray(ious, dtype=np.float64)
    if ious.ndim != 1:
        raise ValueError(f"ious must be (n,), one a case, got shape {ious.shape}")
    return ious[~np.isnan(ious)]


def _cases(predicted: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    if len(predicted) != len(reference):
        raise ValueError(f"one reference a prediction: predicted: {len(predicted)}, reference: {len(reference)}")
    return [
        (_boxes(f"case {case}, predicted", boxes), _reference_boxes(case, others))
        for case, (boxes, others) in enumerate(zip(predicted, reference, strict=True))
    ]


def _reference_boxes(case: int, boxes: np.ndarray) -> np.ndarray:
    boxes = _boxes(f"case {case}, reference", boxes)
    flat = np.flatnonzero(_areas(boxes) == 0)
    if len(flat):
        raise ValueError(f"case {case}, reference box {flat[0]}: {boxes[flat[0]].tolist()} has no area")
    return boxes


def _on_image(case: int, boxes: np.ndarray) -> np.ndarray:
    if len(boxes) and not -1 <= boxes.min() <= boxes.max() <= 2:
        raise ValueError(f"case {case}: boxes are 0..1 of the image, got {boxes[0].tolist()}")
    return boxes


def _boxes(name: str, boxes: np.ndarray) -> np.ndarray:
    """(k, 4) float64, checked; `name` says whose they are."""
    try:
        boxes = np.asarray(boxes, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} boxes must be (k, 4) numbers: x1, y1, x2, y2; {error}") from None
    if boxes.shape == (0,):
        return np.zeros((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name} boxes must be (k, 4): x1, y1, x2, y2; got shape {boxes.shape}")
    _finite(f"{name} box", boxes)
    turned = np.flatnonzero((boxes[:, 2:] < boxes[:, :2]).any(axis=1))
    if len(turned):
        raise ValueError(f"{name} box {turned[0]}: {boxes[turned[0]].tolist()} has x2 below x1 or y2 below y1")
    return boxes


def _finite(name: str, values: np.ndarray) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"{name} {bad[0, 0]}: holds {values[tuple(bad[0])]}, not a finite number")


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.maximum(sides, 0).prod(axis=-1)
    union = _areas(a) + _areas(b) - shared
    return ratio(shared, union)


def _union_iou(predicted: np.ndarray, reference: np.ndarray) -> float:
    if not len(reference):
        return np.nan
    both = np.concatenate([predicted, reference])
    x, y = np.unique(both[:, 0::2]), np.unique(both[:, 1::2])
    columns = (both[:, [0]] <= x[:-1]) & (x[1:] <= both[:, [2]])
    rows = (both[:, [1]] <= y[:-1]) & (y[1:] <= both[:, [3]])
    covered = rows[:, :, None] & columns[:, None]
    first, second = covered[: len(predicted)].any(axis=0), covered[len(predicted) :].any(axis=0)
    cells = np.diff(y)[:, None] * np.diff(x)
    return float(cells[first & second].sum() / cells[first | second].sum())


def _dwell_share(scanpath: Scanpath, boxes: np.ndarray) -> float:
    duration = scanpath.duration.astype(np.float64)
    if not len(boxes) or not duration.any():
        return np.nan
    # borders as float32, as fixations are: one that was put on a border lies on it
    x1, y1, x2, y2 = boxes.astype(np.float32).T[..., None]
    inside = (x1 <= scanpath.x) & (scanpath.x <= x2) & (y1 <= scanpath.y) & (scanpath.y <= y2)
    return duration[inside.any(axis=0)].sum() / duration.sum()
