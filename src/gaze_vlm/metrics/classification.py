"""Findings' scores against labels: ranking, decisions at a threshold, calibration.

Labels and scores are (n, C), a row a case, and every result is (C,), a value a class: bootstrap over the rows with

    bootstrap(np.stack([labels, scores], axis=1), lambda cases: np.nanmean(auroc(cases[:, 0], cases[:, 1])))
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gaze_vlm.metrics._numbers import known_mean, ratio
from gaze_vlm.metrics._ranks import ranks


class ThresholdScores(NamedTuple):
    """Quality of yes or no decisions, (C,) float64 each, 0..1, higher is better.

    NaN: precision where nothing is called, recall without a positive, f1 with neither, specificity without a negative.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    specificity: np.ndarray


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
    rank_sums = np.array([ranks(column)[positive].sum() for column, positive in zip(scores.T, labels.T, strict=True)])
    wins = rank_sums - positives * (positives + 1) / 2
    return ratio(wins, positives * negatives)


def macro_auroc(labels: np.ndarray, scores: np.ndarray, *, min_positives: int = 5) -> float:
    """Mean AUROC over the classes with at least `min_positives` positives and one negative; NaN when there is none.

    Same arguments and range as `auroc`. Below a handful of positives a class's AUROC is mostly chance.
    """
    counted = np.asarray(labels).sum(axis=0) >= min_positives
    return known_mean(auroc(labels, scores)[counted])


def average_precision(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the precision-recall curve of each class; higher is better, the share of positives is chance.

    The mean, over the positives, of the precision among the cases that score at least as high. The curve goes in
    steps: straight lines between its points would flatter (Davis and Goadrich, ICML 2006). Equals
    `sklearn.metrics.average_precision_score`.

    Args:
        labels, scores: as in `auroc`.

    Returns:
        (C,) float64, 0..1; NaN for a class without a positive.
    """
    hits, called = _calls(*_checked(labels, scores))
    found = np.diff(hits, axis=0, prepend=0)
    return ratio((found * ratio(hits, called)).sum(axis=0), found.sum(axis=0))


def best_thresholds(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The score from which on to call each class so that its F1 is highest: the highest of equals.

    Take them on validation cases, for `threshold_scores` on others. Same arguments as `auroc`.

    Returns:
        (C,) float64, each a score that occurs; NaN for a class without a positive.
    """
    labels, scores = _checked(labels, scores)
    positives = labels.sum(axis=0)
    if not len(labels):
        return np.full(labels.shape[1], np.nan)
    hits, called = _calls(labels, scores)
    best = (hits / (called + positives)).argmax(axis=0)
    thresholds = np.sort(scores, axis=0)[::-1][best, np.arange(len(best))]
    return np.where(positives > 0, thresholds, np.nan)


def threshold_scores(labels: np.ndarray, scores: np.ndarray, thresholds: np.ndarray | float) -> ThresholdScores:
    """Precision, recall, F1 and specificity of each class when a case is called from its threshold on.

    Args:
        labels, scores: as in `auroc`.
        thresholds: (C,), or one for all classes, in the unit of `scores`. A class whose threshold is NaN (it has none)
            scores NaN.
    """
    labels, scores = _checked(labels, scores)
    thresholds = np.asarray(thresholds, dtype=np.float64)
    if thresholds.shape not in ((), (scores.shape[1],)):
        raise ValueError(f"thresholds: {thresholds.shape}, classes: {scores.shape[1]}; one a class, or one number")
    decided = np.where(np.isnan(thresholds), np.nan, np.ones(scores.shape[1]))
    calls = scores >= thresholds
    hits, called, positives = (labels & calls).sum(axis=0), calls.sum(axis=0), labels.sum(axis=0)
    return ThresholdScores(
        precision=decided * ratio(hits, called),
        recall=decided * ratio(hits, positives),
        f1=decided * ratio(2 * hits, called + positives),
        specificity=decided * ratio((~labels & ~calls).sum(axis=0), (~labels).sum(axis=0)),
    )


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 15) -> np.ndarray:
    """Expected calibration error of each class; lower is better.

    Cases are put in bins of equal width by their probability; the gap between the bin's mean probability and its share
    of positives is averaged, weighted by the cases of the bin. Sources: Naeini et al., AAAI 2015; Guo et al., ICML
    2017, who look at the probability of the predicted class, where this is the probability of the finding. It is above
    0 even for perfect probabilities, the more so the fewer the cases a bin.

    Args:
        labels: (n, C) bool or 0 / 1.
        probabilities: (n, C) in 0..1. A bin holds its lower edge, the last one both.

    Returns:
        (C,) float64, 0..1; NaN without a case.
    """
    labels, probabilities = _checked_probabilities(labels, probabilities)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    classes = labels.shape[1]
    bin_of = np.searchsorted(np.arange(1, bins) / bins, probabilities, side="right") + bins * np.arange(classes)
    gaps = np.bincount(bin_of.ravel(), weights=(probabilities - labels).ravel(), minlength=bins * classes)
    return ratio(np.abs(gaps).reshape(classes, bins).sum(axis=1), np.full(classes, len(labels)))


def pooled_calibration_error(labels: np.ndarray, probabilities: np.ndarray, *, bins: int = 15) -> float:
    """`calibration_error` of all entries as one class: errors of opposite sign in one bin make up for one another."""
    labels, probabilities = _checked_probabilities(labels, probabilities)
    return float(calibration_error(labels.reshape(-1, 1), probabilities.reshape(-1, 1), bins=bins)[0])


def brier(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Mean squared distance of probability and label, (C,) float64, 0..1; lower is better; NaN without a case.

    Source: Brier, Monthly Weather Review 1950, for one yes or no event. Arguments as in `calibration_error`.
    """
    labels, probabilities = _checked_probabilities(labels, probabilities)
    return ratio(((probabilities - labels) ** 2).sum(axis=0), np.full(labels.shape[1], len(labels)))


def _checked(labels: np.ndarray, scores: np.ndarray, name: str = "scores") -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if labels.ndim != 2 or labels.shape != scores.shape:
        raise ValueError(f"labels and {name} must both be (n, C), got labels: {labels.shape}, {name}: {scores.shape}")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1 (bool); decide about uncertain ones first")
    if np.isnan(scores).any():
        case, column = np.argwhere(np.isnan(scores))[0]
        raise ValueError(f"{name}[{case}, {column}] is NaN")
    return labels.astype(bool), scores


def _checked_probabilities(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = _checked(labels, probabilities, "probabilities")
    outside = np.argwhere((probabilities < 0) | (probabilities > 1))
    if len(outside):
        case, column = outside[0]
        raise ValueError(f"probabilities[{case}, {column}] is {probabilities[case, column]:g}, not within 0..1")
    return labels, probabilities


def _calls(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, C) int64 each: hits and calls when the row-th highest score of each class, and its equals, are called."""
    order = np.argsort(-scores, axis=0, kind="stable")
    ordered = np.take_along_axis(scores, order, axis=0)
    # a row's calls end with the last of the scores that equal its own
    last = np.ones(scores.shape, dtype=bool)
    last[:-1] = ordered[:-1] != ordered[1:]
    row = np.arange(len(scores))[:, None]
    end = np.minimum.accumulate(np.where(last, row, len(scores))[::-1], axis=0)[::-1]
    hits = np.cumsum(np.take_along_axis(labels, order, axis=0), axis=0)
    return np.take_along_axis(hits, end, axis=0), end + 1
