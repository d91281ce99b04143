"""Intraclass correlation against the textbook and pingouin; dwell over clusters against one fixation at a time."""

import numpy as np
import pytest

from gaze_vlm.findings import REGIONS, regions_at
from gaze_vlm.metrics.agreement import (
    ClusterVectors,
    cluster_vectors,
    cosine_of_sums,
    dwell_cosine,
    dwell_sums,
    icc,
    icc_of_sums,
)
from gaze_vlm.metrics.statistics import bootstrap
from gaze_vlm.scanpath import Scanpath

SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
"""Six subjects, four judges: the example of the paper of 1979."""

KINDS = [{"clusters": "regions"}, {"clusters": 5}, {"clusters": "dbscan", "eps": 0.1}]


def random_path(rng, fixations, low=0.0, high=1.0):
    return Scanpath.from_relative(
        rng.uniform(low, high, fixations), rng.uniform(low, high, fixations), rng.exponential(0.3, fixations)
    )


def random_pairs(count=40, **where):
    rng = np.random.default_rng(0)
    sizes = rng.integers(3, 12, size=(count, 2))
    return [[random_path(rng, size, **where) for size in column] for column in sizes.T]


def path(*fixations):
    """Fixations as (x, y, seconds)."""
    return Scanpath.from_relative(*np.reshape(fixations, (-1, 3)).T)


# ---- intraclass correlation


def test_icc_of_shrout_and_fleiss():
    np.testing.assert_allclose(icc(SHROUT_FLEISS), [0.29, 0.02, 0.76], atol=0.005)
    np.testing.assert_allclose(icc(SHROUT_FLEISS, form="3,1"), [0.71, 0.34, 0.95], atol=0.005)


def icc_cases():
    rng = np.random.default_rng(0)
    for subjects, raters in [(2, 3), (3, 5), (10, 2), (60, 2), (25, 4), (8, 7)]:
        for bias, noise in [(0.0, 0.1), (0.0, 1.0), (2.0, 0.5), (0.3, 10.0)]:
            ratings = rng.normal(size=(subjects, 1)) + bias * rng.normal(size=raters)
            yield ratings + noise * rng.normal(size=(subjects, raters))


@pytest.mark.parametrize(("form", "named"), [("2,1", "ICC(A,1)"), ("3,1", "ICC(C,1)")])
def test_icc_equals_pingouin(form, named, monkeypatch):
    pingouin, pandas = pytest.importorskip("pingouin"), pytest.importorskip("pandas")
    monkeypatch.setitem(pingouin.options, "round.column.CI95", None)  # two decimals otherwise
    for ratings in icc_cases():
        subject, rater = np.indices(ratings.shape).reshape(2, -1)
        table = pandas.DataFrame({"subject": subject, "rater": rater, "rating": ratings.ravel()})
        theirs = pingouin.intraclass_corr(table, "subject", "rater", "rating").set_index("Type").loc[named]
        np.testing.assert_allclose(icc(ratings, form=form), [theirs["ICC"], *theirs["CI95"]], rtol=1e-8, atol=1e-10)


def test_the_order_of_subjects_raters_and_the_unit_do_not_matter():
    rng = np.random.default_rng(1)
    for ratings in icc_cases():
        for form in ("2,1", "3,1"):
            result = icc(ratings, form=form)
            assert result.low <= result.value <= result.high <= 1
            shuffled = rng.permutation(rng.permutation(ratings), axis=1)
            np.testing.assert_allclose(icc(shuffled * 1000 - 7, form=form), result, rtol=1e-6, atol=1e-9)


def test_a_constant_bias_costs_agreement_and_not_consistency():
    subjects = np.array([0.1, 0.4, 0.2, 0.9, 0.5])
    biased = np.stack([subjects, subjects + 3], axis=1)
    np.testing.assert_allclose(icc(biased, form="3,1"), 1)
    assert icc(biased).value < 0.05
    for form in ("2,1", "3,1"):
        np.testing.assert_allclose(icc(np.stack([subjects, subjects], axis=1), form=form), 1)
    np.testing.assert_allclose(icc([[1, 1], [2, 2]]), 1)


@pytest.mark.parametrize("form", ["2,1", "3,1"])
def test_subjects_of_one_mean_have_the_least_correlation_there_is(form):
    # mean squares: 0 between subjects; between raters and left, 0 and 2/3, then 1/2 and 1/2, then 4/3 and 5/6
    for ratings, agreement in [
        ([[2, 1], [1, 2], [2, 1], [1, 2]], -2),
        ([[0, 1], [0, 1], [0, 1], [1, 0]], -1),
        ([[1, 2, 3], [2, 1, 3], [1, 3, 2]], -5 / 13),
    ]:
        least = -1 / (len(ratings[0]) - 1) if form == "3,1" else agreement
        np.testing.assert_allclose(icc(ratings, form=form), [least] * 3)


@pytest.mark.parametrize("form", ["2,1", "3,1"])
@pytest.mark.parametrize("ratings", [np.full((5, 3), 0.1), np.tile([0.1, 0.7, 0.3], (5, 1))])
def test_subjects_that_do_not_differ_have_no_correlation(ratings, form):
    assert np.isnan(icc(ratings, form=form)).all()


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = {"2,1": 0, "3,1": 0}
    for _ in range(600):
        # variance 2 between subjects, 1 of error, 0.5 between raters
        raters = rng.normal(scale=0.5**0.5, size=10)
        ratings = rng.normal(scale=2**0.5, size=(30, 1)) + raters + rng.normal(size=(30, 10))
        for form, truth in (("2,1", 2 / 3.5), ("3,1", 2 / 3)):
            result = icc(ratings, form=form)
            covered[form] += result.low <= truth <= result.high
    assert covered["3,1"] / 600 == pytest.approx(0.95, abs=0.03)
    assert covered["2,1"] / 600 == pytest.approx(0.95, abs=0.03)


# ---- dwell over clusters


def test_regions_hold_what_regions_at_says():
    first, second = random_pairs()
    table, case = cluster_vectors(first, second, clusters="regions")
    assert table.shape == (40 * 17, 2)
    expected = np.zeros((40, len(REGIONS), 2))
    names = list(REGIONS)
    for i, pair in enumerate(zip(first, second, strict=True)):
        for side, one in enumerate(pair):
            for x, y, _, duration in one.to_array().astype(float):
                for name in regions_at(x, y):
                    expected[i, names.index(name), side] += duration
    np.testing.assert_allclose(table, expected.reshape(-1, 2))
    np.testing.assert_array_equal(case, np.repeat(np.arange(40), 17))


def test_cells_are_those_of_the_scanpath_s_own_grid():
    first, second = random_pairs()
    table, case = cluster_vectors(first, second, clusters=3)
    np.testing.assert_array_equal(table[case == 7, 0], first[7].dwell((3, 3)).ravel())
    np.testing.assert_array_equal(table[case == 7, 1], second[7].dwell((3, 3)).ravel())


def test_dbscan_by_hand():
    first = path((0.2, 0.2, 1.0), (0.8, 0.8, 0.5), (0.5, 0.1, 0.3), (1.3, 0.2, 9.0))
    second = path((0.23, 0.2, 2.0), (0.26, 0.2, 1.0), (0.8, 0.5, 0.7))
    table, case = cluster_vectors([first, path(), first], [second, path(), first], clusters="dbscan", eps=0.04)
    # a chain of three, and a fixation alone each; the one off the image does not count
    assert sorted(map(tuple, table[case == 0].round(6))) == [(0, 0.7), (0.3, 0), (0.5, 0), (1, 3)]
    assert not (case == 1).any()
    np.testing.assert_array_equal(table[case == 2, 0], table[case == 2, 1])
    alone = cluster_vectors([first], [second], clusters="dbscan", eps=0.04, min_samples=4).dwell
    assert len(alone) == 6  # nothing is dense enough: each fixation for itself
    cosine = dwell_cosine([first, path()], [second, path()], clusters="dbscan", eps=0.04)
    np.testing.assert_allclose(cosine, [3 / np.sqrt((1 + 0.25 + 0.09) * (9 + 0.49)), np.nan])
    assert dwell_cosine([first], [second], clusters="dbscan", eps=0.04, min_samples=4) == 0


def test_cosine_by_hand():
    left, right, both = (0.2, 0.5, 3.0), (0.8, 0.5, 4.0), [(0.2, 0.5, 3.0), (0.8, 0.5, 4.0)]
    predictions = [path(left), path(left), path(*both), path(), path(left), path((0.2, 0.5, 0.0))]
    references = [path(left), path(right), path(left), path(left), path((1.2, 0.5, 1.0)), path(left)]
    cosine = dwell_cosine(predictions, references, clusters=2)
    np.testing.assert_allclose(cosine, [1, 0, 0.6, np.nan, np.nan, np.nan])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_cosine_is_symmetric_and_blind_to_order_and_total_time(kind):
    first, second = random_pairs(low=-0.1, high=1.1)
    cosine = dwell_cosine(first, second, **kind)
    assert 0.05 < np.nanmean(cosine) < 0.95
    assert (cosine[~np.isnan(cosine)] <= 1 + 1e-12).all()
    np.testing.assert_allclose(dwell_cosine(second, first, **kind), cosine, atol=1e-12)
    defined = ~np.isnan(dwell_cosine(first, first, **kind))
    np.testing.assert_allclose(dwell_cosine(first, first, **kind)[defined], 1)
    slow = [Scanpath.from_relative(p.x[::-1], p.y[::-1], p.duration[::-1] * 8) for p in first]
    np.testing.assert_allclose(dwell_cosine(slow, second, **kind), cosine, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS[1:], ids=str)
def test_mirrored_films_have_the_same_cosine(kind):
    first, second = random_pairs()
    mirrored = dwell_cosine([p.flip_horizontal() for p in first], [p.flip_horizontal() for p in second], **kind)
    np.testing.assert_allclose(mirrored, dwell_cosine(first, second, **kind), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_reading_agrees_more_with_itself_moved_a_little_than_with_another(kind):
    rng = np.random.default_rng(3)
    first, second = random_pairs()
    shifts = [rng.normal(0, 0.02, size=(2, len(one))) for one in first]
    near = [Scanpath.from_relative(p.x + dx, p.y + dy, p.duration) for p, (dx, dy) in zip(first, shifts, strict=True)]
    close, far = (dwell_cosine(first, other, **kind) for other in (near, second))
    assert np.nanmean(close) > np.nanmean(far) + 0.3
    close, far = (icc(cluster_vectors(first, other, **kind).dwell).value for other in (near, second))
    assert close > far + 0.3


def test_icc_over_cases_takes_a_bootstrap_by_case():
    first, second = random_pairs(20)
    vectors = cluster_vectors(first, second, clusters="regions")
    interval = bootstrap(vectors.dwell, lambda rows: icc(rows).value, groups=vectors.case, resamples=100)
    assert interval.low < icc(vectors.dwell).value < interval.high


# ---- sums of a case


@pytest.mark.parametrize("form", ["2,1", "3,1"])
def test_icc_of_sums_is_the_icc_of_their_clusters(form):
    first, second = random_pairs(low=-0.1, high=1.1)
    for kind in KINDS:
        vectors = cluster_vectors(first, second, **kind)
        sums = dwell_sums(vectors, len(first))
        assert sums.shape == (40, 6)
        assert icc_of_sums(sums, form=form) == pytest.approx(icc(vectors.dwell, form=form).value, rel=1e-9)
    for ratings in icc_cases():
        if ratings.shape[1] == 2:
            sums = dwell_sums(ClusterVectors(ratings + 100, np.arange(len(ratings)) % 3), 3)
            assert icc_of_sums(sums, form=form) == pytest.approx(icc(ratings, form=form).value, rel=1e-7)


def test_sums_that_say_nothing_of_agreement_are_nan():
    def of(*ratings):
        return dwell_sums(ClusterVectors(np.array(ratings, dtype=float), np.zeros(len(ratings), int)), 1)

    for form in ("2,1", "3,1"):
        for ratings in ([(1, 2)], [(0.1, 0.7)] * 5, [(0, 0)] * 3):
            assert np.isnan(icc_of_sums(of(*ratings), form=form)), ratings
        assert icc_of_sums(of((1, 1), (3, 3), (0.1, 0.1)), form=form) == pytest.approx(1)
        # a case's readings, averaged, weigh as one
        twice = np.concatenate([of((1, 2), (3, 5), (2, 2)), of((1, 2), (3, 5), (2, 2))])
        assert icc_of_sums(twice.mean(axis=0, keepdims=True), form=form) == icc_of_sums(twice[:1], form=form)
    assert np.isnan(icc_of_sums(np.zeros((0, 6))))
    with pytest.raises(ValueError, match='form must be "2,1" or "3,1"'):
        icc_of_sums(np.zeros((1, 6)), form="1,1")


def test_cosine_of_sums_is_that_of_the_vectors():
    rng = np.random.default_rng(4)
    dwell, case = rng.exponential(size=(30, 2)), np.repeat([0, 2], 15)
    expected = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in (dwell[:15].T, dwell[15:].T)]
    cosine = cosine_of_sums(dwell_sums(ClusterVectors(dwell, case), 3))
    np.testing.assert_allclose(cosine, [expected[0], np.nan, expected[1]])


def test_no_case_at_all():
    vectors = cluster_vectors([], [], clusters="regions")
    assert isinstance(vectors, ClusterVectors) and vectors.dwell.shape == (0, 2) and vectors.case.shape == (0,)
    assert dwell_cosine([], [], clusters=4).shape == (0,)


# ---- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: icc([[1, 2], [3, np.nan]]), "subject 1, rater 1: the rating is nan"),
        (lambda: icc([[1, 2], [np.inf, 3]]), "subject 1, rater 0: the rating is inf"),
        (lambda: icc([[1, 2]]), r"got shape \(1, 2\)"),
        (lambda: icc([1, 2, 3]), r"got shape \(3,\)"),
        (lambda: icc(SHROUT_FLEISS, form="1,1"), 'form must be "2,1" or "3,1", got \'1,1\''),
    ],
)
def test_bad_ratings_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("clusters", ["lobes", 0, -3, 2.5, True])
def test_unknown_clusters_are_named(clusters):
    with pytest.raises(ValueError, match=f"clusters must be .* got {clusters!r}"):
        dwell_cosine([path()], [path()], clusters=clusters)


def test_bad_pairs_and_settings_are_named():
    with pytest.raises(ValueError, match="predictions: 2, references: 1"):
        cluster_vectors([path(), path()], [path()], clusters="regions")
    for setting in ({"eps": 0}, {"min_samples": 0}):
        with pytest.raises(ValueError, match="eps must be above 0 and min_samples at least 1"):
            cluster_vectors([path()], [path()], clusters="dbscan", **setting)
