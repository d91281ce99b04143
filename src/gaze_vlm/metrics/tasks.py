"""Each task's metric, on the values that `tasks` reads in answers; an answer that is none scores 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..scanpath import Scanpath
from .grounding import iou_union
from .scanpath import scanmatch
from .text import rouge_l
from .vqa import exact_match

Values = Sequence[Any]


class TaskMetric(NamedTuple):
    """A metric of one task.

    Args:
        name: as tables call it; higher is better.
        score: (predicted values, None where an answer is none; reference values) -> (n,) float64.
    """

    name: str
    score: Callable[[Values, Values], np.ndarray]


def kendall_tau(predicted: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> np.ndarray:
    """Kendall's rank correlation of orders: of all pairs, those in the same order less those in the other.

    Args:
        predicted, reference: n permutations of 0..k-1 each, k at least 2 and the same on both sides.

    Returns:
        (n,) float64, -1 (reversed) to 1 (the same); 0 is chance.
    """
    return np.array([_tau(a, b) for a, b in zip(predicted, reference, strict=True)], dtype=np.float64)


def _tau(predicted: Sequence[int], reference: Sequence[int]) -> float:
    count = len(reference)
    if count < 2 or sorted(predicted) != sorted(reference) or sorted(reference) != list(range(count)):
        raise ValueError(f"orders of the same 2 or more things are needed, got {list(predicted)}, {list(reference)}")
    ranks = np.argsort(predicted)[np.asarray(reference)]
    later = np.triu(np.sign(ranks[None] - ranks[:, None]), 1).sum()
    return float(later / (count * (count - 1) / 2))


def score_values(score: Callable[[list, list], np.ndarray], predicted: Values, reference: Values) -> np.ndarray:
    """`score` where there is a prediction, 0 where there is none."""
    if len(predicted) != len(reference):
        raise ValueError(f"one reference a prediction: predictions: {len(predicted)}, references: {len(reference)}")
    known = [number for number, value in enumerate(predicted) if value is not None]
    scores = np.zeros(len(reference))
    if known:
        scores[known] = score([predicted[number] for number in known], [reference[number] for number in known])
    return scores


def _trajectories(predicted: Values, reference: Values) -> np.ndarray:
    paths = [[Scanpath.from_relative(*np.array(steps).T) for steps in side] for side in (predicted, reference)]
    return scanmatch(*paths)


def _orders(predicted: Values, reference: Values) -> np.ndarray:
    """Orders by their correlation, next sentences by their words."""
    scores = np.zeros(len(reference))
    for kind, metric in ((list, kendall_tau), (str, rouge_l)):
        rows = [number for number, value in enumerate(reference) if isinstance(value, kind)]
        if rows:
            scores[rows] = metric([predicted[number] for number in rows], [reference[number] for number in rows])
    return scores


TASK_METRICS: dict[str, TaskMetric] = {
    "report": TaskMetric("ROUGE-L", rouge_l),
    "vqa": TaskMetric("exact match", exact_match),
    "ground": TaskMetric("mIoU of the boxes' union", iou_union),
    "keyframe": TaskMetric("ROUGE-L", rouge_l),
    "trajectory": TaskMetric("ScanMatch", _trajectories),
    "order": TaskMetric("Kendall's tau (next sentence: ROUGE-L)", _orders),
}
"""Task -> its metric; use it through `score_values`."""
