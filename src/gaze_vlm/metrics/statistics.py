"""Bootstrap intervals: how sure a mean, or a difference of two systems on the same cases, is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

Statistic = Callable[[np.ndarray], float]

_TAKE_AN_AXIS = (np.mean, np.nanmean, np.median, np.nanmedian)
_ENTRIES_AT_ONCE = 2_000_000


class Interval(NamedTuple):
    """`estimate` on all cases, and the ends of its bootstrap interval, in the statistic's own unit."""

    estimate: float
    low: float
    high: float


def bootstrap(
    values: np.ndarray,
    statistic: Statistic = np.mean,
    *,
    groups: Sequence | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of `statistic(values)`. Source: Efron and Tibshirani 1993, chapter 13.

    Args:
        values: (n, ...) one row a case.
        groups: (n,) what each case belongs to (its patient, its image), when cases of one group are not independent:
            whole groups are drawn then.
        statistic: takes an array of rows like `values`, gives one number. Resamples on which it is NaN (no positive
            case drawn, say) are left out. Fast for np.mean, np.nanmean, np.median, np.nanmedian.
        level: coverage, between 0 and 1.
    """
    values = _rows("values", values)
    parts = _resamples(len(values), resamples, values.size, seed, groups)
    draws = [_statistic(statistic, values, rows) for rows in parts]
    return _interval(float(statistic(values)), np.concatenate(draws), level)


def paired_bootstrap(
    a: np.ndarray,
    b: np.ndarray,
    statistic: Statistic = np.mean,
    *,
    groups: Sequence | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of `statistic(a) - statistic(b)`, for two systems scored on the same cases.

    Each resample draws cases, and takes them from both. An interval without 0 is a difference that other cases of the
    kind would show too. For a statistic of predictions and references give both in one array:

        paired_bootstrap(np.stack([predicted_a, reference], axis=1), np.stack([predicted_b, reference], axis=1),
                         lambda cases: macro_f1(cases[:, 0], cases[:, 1]))

    Args:
        a, b: (n, ...) one row a case, the same cases in the same order.
        statistic, groups, level: as in `bootstrap`.
    """
    a, b = _rows("a", a), _rows("b", b)
    if len(a) != len(b):
        raise ValueError(f"a and b must hold the same cases: a: {len(a)}, b: {len(b)}")
    draws = [
        _statistic(statistic, a, rows) - _statistic(statistic, b, rows)
        for rows in _resamples(len(a), resamples, max(a.size, b.size), seed, groups)
    ]
    return _interval(float(statistic(a)) - float(statistic(b)), np.concatenate(draws), level)


def _rows(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim == 0 or len(values) == 0:
        raise ValueError(f"{name} must hold at least one case, got shape {values.shape}")
    return values


def _resamples(
    cases: int, resamples: int, entries: int, seed: int, groups: Sequence | None
) -> Iterator[np.ndarray | list[np.ndarray]]:
    """Index rows (part, cases), `resamples` in all; a part draws a bounded number of the data's `entries`.

    With groups a part is one row in a list, for rows differ in length then.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    rng = np.random.default_rng(seed)
    if groups is not None:
        if len(groups) != cases:
            raise ValueError(f"groups: {len(groups)}, cases: {cases}; each case needs its group")
        order = np.unique(np.asarray(groups), return_inverse=True)[1]
        members = [np.flatnonzero(order == group) for group in range(order.max() + 1)]
        for _ in range(resamples):
            yield [np.concatenate([members[group] for group in rng.integers(0, len(members), len(members))])]
        return
    part = max(1, _ENTRIES_AT_ONCE // max(1, entries))
    for start in range(0, resamples, part):
        yield rng.integers(0, cases, size=(min(part, resamples - start), cases))


def _statistic(statistic: Statistic, values: np.ndarray, rows: np.ndarray | list[np.ndarray]) -> np.ndarray:
    if values.ndim == 1 and isinstance(rows, np.ndarray) and any(statistic is known for known in _TAKE_AN_AXIS):
        return statistic(values[rows], axis=1)
    return np.array([statistic(values[row]) for row in rows], dtype=np.float64)


def _interval(estimate: float, draws: np.ndarray, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return Interval(estimate, float("nan"), float("nan"))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high))
