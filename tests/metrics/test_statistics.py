import math

import numpy as np
import pytest

from gaze_vlm.metrics.statistics import bootstrap, paired_bootstrap


def test_the_interval_of_a_mean_has_the_width_theory_gives():
    values = np.random.default_rng(0).normal(3, 2, size=2000)
    estimate, low, high = bootstrap(values, resamples=4000)
    standard_error = values.std() / math.sqrt(2000)
    assert estimate == pytest.approx(values.mean())
    assert low == pytest.approx(estimate - 1.96 * standard_error, abs=0.15 * standard_error)
    assert high == pytest.approx(estimate + 1.96 * standard_error, abs=0.15 * standard_error)


def test_pairing_makes_a_steady_gain_certain():
    rng = np.random.default_rng(1)
    b = rng.normal(0, 5, size=50)
    interval = paired_bootstrap(b + 0.1, b)
    assert interval.low == pytest.approx(0.1)
    assert interval.high == pytest.approx(0.1)
    unpaired = paired_bootstrap(rng.permutation(b + 0.1), b)
    assert unpaired.low < 0 < unpaired.high


@pytest.mark.parametrize("fast", [np.mean, np.median, np.nanmean])
def test_the_fast_way_and_the_slow_way_are_one(fast):
    rng = np.random.default_rng(2)
    a, b = rng.random((2, 30))
    slow = paired_bootstrap(a, b, lambda rows: fast(rows), resamples=300)
    np.testing.assert_allclose(paired_bootstrap(a, b, fast, resamples=300), slow)
    np.testing.assert_allclose(bootstrap(a, fast, resamples=300), bootstrap(a, lambda r: fast(r), resamples=300))


def test_parts_do_not_change_the_draws(monkeypatch):
    a = np.random.default_rng(3).random(40)
    whole = bootstrap(a, resamples=200)
    monkeypatch.setattr("gaze_vlm.metrics.statistics._ENTRIES_AT_ONCE", 100)
    assert bootstrap(a, resamples=200) == whole


def test_a_seed_repeats_and_a_wider_level_is_wider():
    a = np.random.default_rng(4).random(40)
    assert bootstrap(a, seed=5) == bootstrap(a, seed=5)
    assert bootstrap(a, seed=5) != bootstrap(a, seed=6)
    assert bootstrap(a, level=0.5).low > bootstrap(a, level=0.95).low


def test_rows_of_any_shape_and_resamples_without_a_value():
    labels = np.array([[1, 0]] + [[0, 1]] * 9)

    def ratio(rows):
        return rows[:, 1].sum() / rows[:, 0].sum() if rows[:, 0].sum() else math.nan

    interval = bootstrap(labels, ratio)
    assert interval.estimate == 9
    assert 0 < interval.low < interval.high < math.inf
    assert math.isnan(bootstrap(labels, lambda rows: math.nan).low)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_bootstrap(np.ones(3), np.ones(4)), "a: 3, b: 4"),
        (lambda: bootstrap([]), "at least one case"),
        (lambda: bootstrap(np.ones(3), level=95), "level"),
        (lambda: bootstrap(np.ones(3), resamples=0), "resamples"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_groups_are_drawn_whole():
    """Four copies of each patient's value say no more than one does: the interval is that of the patients alone."""
    patients = np.random.default_rng(3).normal(size=40)
    films, owners = np.repeat(patients, 4), np.repeat(np.arange(40), 4)
    alone, grouped, naive = bootstrap(patients), bootstrap(films, groups=owners), bootstrap(films)
    width = [interval.high - interval.low for interval in (alone, grouped, naive)]
    assert width[1] == pytest.approx(width[0], rel=0.1)
    assert width[2] < 0.7 * width[1]
    assert paired_bootstrap(films, films - 1, groups=[str(owner) for owner in owners]).low == pytest.approx(1.0)
    with pytest.raises(ValueError, match="groups: 3, cases: 160"):
        bootstrap(films, groups=[1, 2, 3])
