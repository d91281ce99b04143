"""Ranks, and how far two rankings of the same cases agree."""

from __future__ import annotations

import numpy as np


def ranks(values: np.ndarray) -> np.ndarray:
    """(n,) numbers -> (n,) float64 ranks from 1, equal values sharing their mean rank."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values) + np.searchsorted(ordered, values, side="right") + 1) / 2


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation of (n,) with (n,) numbers: the product-moment correlation of their `ranks`.

    -1..1; NaN below 3 cases or where a side is constant. Source: Spearman, American Journal of Psychology 1904.
    """
    if len(a) < 3:
        return float("nan")
    first, second = (ranks(values) - (len(values) + 1) / 2 for values in (a, b))
    scale = np.sqrt((first @ first) * (second @ second))
    return float(np.clip(first @ second / scale, -1, 1)) if scale > 0 else float("nan")
