"""The dynamic time warping distance against every walk there is, a plain loop and the package dtw-python."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaze_vlm.metrics.agreement import dtw_distance
from gaze_vlm.scanpath import Scanpath


def path(*points):
    x, y = np.reshape(points, (-1, 2)).T
    return Scanpath.from_relative(x, y, np.full(len(x), 0.3))


def random_pairs(count, longest, seed=0):
    rng = np.random.default_rng(seed)
    return [[path(*rng.uniform(-0.2, 1.2, (size, 2))) for size in rng.integers(1, longest, count)] for _ in range(2)]


def between(first, second):
    """(n, m) Euclidean distances."""
    a, b = (np.stack([one.x, one.y], axis=1).astype(np.float64) for one in (first, second))
    return np.linalg.norm(a[:, None] - b, axis=2)


def every_walk(rows, columns):
    """All ways from (0, 0) to the last cell, each a list of (row, column, how far it went)."""
    if rows == columns == 1:
        yield [(0, 0, 2)]
    for back in ((0, 1), (1, 0), (1, 1)):
        before = rows - back[0], columns - back[1]
        if min(before) > 0:
            yield from ([*walk, (rows - 1, columns - 1, sum(back))] for walk in every_walk(*before))


def test_it_is_the_least_mean_over_all_walks():
    first, second = random_pairs(60, 6)
    for a, b, value in zip(first, second, dtw_distance(first, second), strict=True):
        apart = between(a, b)
        walks = [np.array(walk) for walk in every_walk(len(a), len(b))]
        assert all(walk[:, 2].sum() == len(a) + len(b) for walk in walks)
        means = [np.average(apart[walk[:, 0], walk[:, 1]], weights=walk[:, 2]) for walk in walks]
        assert value == pytest.approx(min(means), rel=1e-12)


def test_it_equals_a_plain_loop():
    first, second = random_pairs(150, 60)
    for a, b, value in zip(first, second, dtw_distance(first, second), strict=True):
        apart = between(a, b)

        @cache
        def cost(i, j, apart=apart):
            if i < 0 or j < 0:
                return np.inf
            if i == j == 0:
                return 2 * apart[0, 0]
            return min(
                cost(i - 1, j) + apart[i, j], cost(i, j - 1) + apart[i, j], cost(i - 1, j - 1) + 2 * apart[i, j]
            )

        for i in range(len(a)):
            cost(i, 0)  # keeps the recursion shallow
        assert value == pytest.approx(cost(len(a) - 1, len(b) - 1) / (len(a) + len(b)), rel=1e-12)


def test_it_equals_dtw_python():
    dtw = pytest.importorskip("dtw", reason="needs dtw-python: pip install dtw-python")
    first, second = random_pairs(80, 50, seed=1)
    for a, b, value in zip(first, second, dtw_distance(first, second), strict=True):
        apart = between(a, b)
        theirs = dtw.dtw(apart, step_pattern="symmetric2", distance_only=True).distance
        # the package counts the first two once, the paper twice
        assert value == pytest.approx((theirs + apart[0, 0]) / (len(a) + len(b)), rel=1e-9)


def test_by_hand():
    still, there = path((0.5, 0.5)), path((0.5, 0.5), (0.8, 0.9))
    long = path((0.5, 0.5), (0.5, 0.5), (0.5, 0.5), (0.8, 0.9))
    # 3-4-5: one fixation against two is 0.3, 0.4 off once of 3; time stretches for nothing
    np.testing.assert_allclose(
        dtw_distance([still, there, long, still], [there, there, there, path((0.5, 0.75))]),
        [0.5 / 3, 0, 0, 0.25],
        atol=1e-7,
    )
    empty = path()
    assert np.isnan(dtw_distance([empty, still, empty], [still, empty, empty])).all()
    assert dtw_distance([], []).shape == (0,)
    with pytest.raises(ValueError, match="predictions: 2, references: 1"):
        dtw_distance([still, still], [still])


places = st.integers(0, 32).map(lambda i: i / 32)
paths = st.lists(st.tuples(places, places), min_size=1, max_size=8).map(lambda points: path(*points))


@settings(max_examples=80, deadline=None)
@given(paths, paths, st.data())
def test_what_a_distance_over_stretched_time_must_do(a, b, data):
    value = dtw_distance([a], [b])[0]
    assert 0 <= value <= between(a, b).max() + 1e-12
    again = np.sort(data.draw(st.lists(st.integers(0, len(a) - 1), max_size=4)) + list(range(len(a))))
    moved = Scanpath.from_relative(a.x + 0.25, a.y, a.duration)
    for first, second, expected in [
        (b, a, value),
        (a, a, 0),
        (a, a[again], 0),
        (a.flip_horizontal(), b.flip_horizontal(), value),
    ]:
        assert dtw_distance([first], [second])[0] == pytest.approx(expected, abs=1e-12)
    assert dtw_distance([a], [moved])[0] <= 0.25 + 1e-12


def test_pairs_of_a_batch_do_not_meet():
    first, second = random_pairs(300, 40, seed=2)
    alone = np.concatenate([dtw_distance([a], [b]) for a, b in zip(first, second, strict=True)])
    np.testing.assert_array_equal(dtw_distance(first, second), alone)
    assert alone.std() > 0.05
