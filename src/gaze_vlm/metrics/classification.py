"""Ranking quality of findings' scores."""

from __future__ import annotations

import numpy as np


def auroc(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class; higher is better, 0.5 is chance.

    The chance that a random positive scores above a random negative, ties counting half. Source: Hanley and McNeil,
    Radiology 1982. Equals `sklearn.metrics.roc_auc_score`.

    Args:
        labels: (n, C) bool or 0 / 1.
        scores: (n, C) of any scale; only their order within a class counts.

    Returns:
        (C,) float64, 0..1; NaN for a class without a positive or without a negative.
    """
    labels, scores = _checked(labels, scores)
    positives = labels.sum(axis=0)
    negatives = len(labels) - positives
    rank_sums = np.array([_ranks(column)[positive].sum() for column, positive in zip(scores.T, labels.T, strict=True)])
    wins = rank_sums - positives * (positives + 1) / 2
    pairs = positives * negatives
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), np.nan)


def macro_auroc(labels: np.ndarray, scores: np.ndarray, *, min_positives: int = 5) -> float:
    """Mean AUROC over the classes with at least `min_positives` positives and one negative; NaN when there is none.

    Same arguments and range as `auroc`. Below a handful of positives a class's AUROC is mostly chance.
    """
    counted = np.asarray(labels).sum(axis=0) >= min_positives
    values = auroc(labels, scores)[counted]
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def _checked(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if labels.ndim != 2 or labels.shape != scores.shape:
        raise ValueError(f"labels and scores must both be (n, C), got labels: {labels.shape}, scores: {scores.shape}")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1 (bool); decide about uncertain ones first")
    if np.isnan(scores).any():
        case, column = np.argwhere(np.isnan(scores))[0]
        raise ValueError(f"scores[{case}, {column}] is NaN")
    return labels.astype(bool), scores


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing their mean rank."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group]
