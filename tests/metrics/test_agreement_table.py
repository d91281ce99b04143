"""The table of agreement: every number is that of the function it names, every case counts once, chance is shown."""

import math
from dataclasses import replace

import numpy as np
import pytest

from gaze_vlm.metrics.agreement import cluster_vectors, dtw_distance, dwell_cosine, icc
from gaze_vlm.metrics.cases import Case, Pairs
from gaze_vlm.metrics.statistics import bootstrap
from gaze_vlm.metrics.tables.agreement import AMONG, ELSEWHERE, agreement_metrics, agreement_table
from gaze_vlm.scanpath import Scanpath

FILMS = 24
FAST = {"resamples": 50}
DBSCAN, REGIONS = "DBSCAN, eps 0.05, from 2 fixations", "17 regions"
DTW = "DTW distance of fixations, in sides of the image"


def near(path: Scanpath, rng, spread: float) -> Scanpath:
    x, y = (side + rng.normal(0, spread, len(path)) for side in (path.x, path.y))
    return Scanpath.from_relative(x, y, path.duration * rng.uniform(0.5, 1.5, len(path)))


def films(seed: int = 0) -> list[Scanpath]:
    """Where there is something to see on each film."""
    rng = np.random.default_rng(seed)
    return [Scanpath.from_relative(*rng.uniform(0.2, 0.8, (2, 8)), rng.uniform(0.2, 1, 8)) for _ in range(FILMS)]


def read_by(readers: dict[str | None, int], spread: float = 0.01, seed: int = 1) -> Pairs:
    """Readers of the first so many films each, beside predictions that know where to look."""
    rng = np.random.default_rng(seed)
    known = [
        (
            Case(str(i), near(film, rng, spread)),
            Case(str(i), near(film, rng, spread), group=f"film {i}", reader=reader),
        )
        for i, film in enumerate(films())
        for reader, count in readers.items()
        if i < count
    ]
    one = {case.id: case for case, _ in known}  # one prediction a case
    return Pairs([one[reference.id] for _, reference in known], [reference for _, reference in known])


def value(table, metric: str, system: str):
    (found,) = [score for score in table.scores if (score.metric, score.system) == (metric, system)]
    return found


def sides(pairs: Pairs, *rows: int):
    rows = rows or range(len(pairs.references))
    return [[cases[i].value for i in rows] for cases in (pairs.predictions, pairs.references)]


TWO = read_by({"A": FILMS, "B": FILMS})


@pytest.fixture(scope="module")
def table():
    return agreement_table(TWO, name="mine", **FAST)


# ---- what the numbers are


def test_with_all_readers_a_case_counts_with_the_mean_over_its_readings(table):
    first, second = sides(TWO)
    for kind, clusters in ((DBSCAN, "dbscan"), (REGIONS, "regions")):
        cosine = dwell_cosine(first, second, clusters=clusters).reshape(FILMS, 2).mean(axis=1)
        score = value(table, f"cosine of seconds a cluster ({kind})", "mine")
        assert (score.n, score.undefined) == (FILMS, 0)
        assert score.interval.estimate == pytest.approx(cosine.mean())
    score = value(table, DTW, "mine")
    assert score.interval.estimate == pytest.approx(dtw_distance(first, second).mean())
    assert not score.higher_is_better


@pytest.mark.parametrize("form", ["2,1", "3,1"])
@pytest.mark.parametrize(("kind", "clusters"), [(DBSCAN, "dbscan"), (REGIONS, "regions")])
def test_icc_and_its_interval_are_those_of_the_clusters(table, kind, clusters, form):
    metric = f"ICC({form}) of seconds a cluster ({kind})"
    among = [[TWO.references[i].value for i in range(side, 2 * FILMS, 2)] for side in (0, 1)]
    reader_b = sides(TWO, *range(1, 2 * FILMS, 2))
    for paths, system in ((among, AMONG), (reader_b, "mine against reader B")):
        vectors = cluster_vectors(*paths, clusters=clusters)
        expected = bootstrap(
            vectors.dwell, lambda rows: icc(rows, form=form).value, groups=vectors.case, resamples=50, seed=0
        )
        np.testing.assert_allclose(value(table, metric, system).interval, expected, rtol=1e-9)


def test_two_readings_of_a_case_weigh_as_much_as_one():
    pairs = read_by({"A": FILMS, "B": 3})
    cosine = dwell_cosine(*sides(pairs), clusters="dbscan")
    expected = np.mean([*cosine[:6].reshape(3, 2).mean(axis=1), *cosine[6:]])
    table = agreement_table(pairs, **FAST)
    assert value(table, f"cosine of seconds a cluster ({DBSCAN})", "predictions").interval.estimate == pytest.approx(
        expected
    )
    assert expected != pytest.approx(cosine.mean(), rel=1e-4)
    twice = Pairs(
        TWO.predictions[::2] * 2, TWO.references[::2] + [replace(c, reader="C") for c in TWO.references[::2]]
    )
    once = Pairs(TWO.predictions[::2], TWO.references[::2])
    double, single = (agreement_table(known, **FAST) for known in (twice, once))
    for score in single.scores:
        if score.system == "predictions":
            np.testing.assert_allclose(value(double, score.metric, "predictions").interval, score.interval, rtol=1e-9)


def test_readers_agree_and_paths_of_other_cases_do_not(table):
    for metric in {score.metric for score in table.scores}:
        better = 1 if value(table, metric, "mine").higher_is_better else -1
        chance = [value(table, metric, system) for system in ("mine of another case", ELSEWHERE)]
        for system in ("mine", AMONG, "mine against reader A", "mine against reader B"):
            for one in chance:
                assert better * value(table, metric, system).interval.estimate > better * one.interval.estimate
        assert chance[0].n == FILMS
        assert chance[0].difference.p < 0.05
    assert value(table, f"ICC(2,1) of seconds a cluster ({DBSCAN})", ELSEWHERE).interval.high < 0
    assert value(table, f"cosine of seconds a cluster ({REGIONS})", ELSEWHERE).interval.estimate > 0.3


def test_readers_are_compared_with_the_first_on_the_cases_they_share():
    pairs = read_by({"A": FILMS, "B": 6})
    table = agreement_table(pairs, name="mine", **FAST)
    among, mine = (
        dwell_cosine(*paths, clusters="dbscan")
        for paths in (
            [[pairs.references[i].value for i in range(side, 12, 2)] for side in (0, 1)],
            sides(pairs, *range(12)),
        )
    )
    score = value(table, f"cosine of seconds a cluster ({DBSCAN})", AMONG)
    assert (score.n, score.undefined) == (6, 0)
    assert score.difference.estimate == pytest.approx(mine.mean() - among.mean())


def test_rows_stand_in_one_order_under_every_metric(table):
    names = [metric.name for metric in agreement_metrics(0, timed=True)]
    assert list(dict.fromkeys(score.metric for score in table.scores)) == names
    head = ["mine", "mine against reader A", "mine against reader B", AMONG, "mine of another case", ELSEWHERE]
    for name in names:
        systems = [score.system for score in table.scores if score.metric == name]
        assert systems == [*head, "centre, 8 fixations", "uniform, 8 fixations"]
    rival = agreement_table(TWO, name="mine", versus={"rival": TWO.predictions}, training=TWO.references, **FAST)
    systems = [score.system for score in rival.scores if score.metric == DTW]
    assert systems[:2] == ["mine", "rival"]
    assert "random reader, same finding" in systems
    for score in rival.scores:
        if score.system == "rival":
            assert score.difference.estimate == 0


# ---- what there is no row of, and why


def test_a_sentence_says_which_rows_are_left_out(table):
    assert not [sentence for sentence in table.protocol if "no row" in sentence]
    assert any(f"{AMONG}: every two of a case once" in sentence for sentence in table.protocol)
    few = agreement_table(read_by({"A": FILMS, "B": 19, "C": 1}), **FAST)
    assert {score.system for score in few.scores if "reader" in score.system} == {
        "predictions against reader A",
        AMONG,
        ELSEWHERE,
    }
    assert "2 of 3 readers have under 20 cases, and no row of their own" in few.protocol
    assert any("19 cases have several readings, and with fewer than 20" in sentence for sentence in few.protocol)
    for readers, said in (({"A": FILMS}, "only one"), ({None: FILMS}, "none")):
        alone = agreement_table(read_by(readers), **FAST)
        assert f"no rows of single readers: the references name {said}" in alone.protocol
        assert f"no case has two readings: no row of {AMONG}" in alone.protocol
        assert not any("against" in score.system or score.system == AMONG for score in alone.scores)


def test_one_image_has_no_chance_and_no_interval():
    pairs = read_by({"A": 2, "B": 2})
    pairs = Pairs(pairs.predictions, [replace(case, group="one") for case in pairs.references])
    table = agreement_table(pairs, **FAST)
    assert not any("another case" in score.system for score in table.scores)
    assert "all there is comes from one patient or image: no rows of other cases" in table.protocol
    assert all(math.isnan(score.interval.low) for score in table.scores)


def test_a_path_of_another_case_is_never_of_the_same_patient():
    pairs = read_by({"A": FILMS, "B": FILMS})
    groups = ["one", "other"]
    left, right = (Scanpath.from_relative([x], [0.5], [1]) for x in (0.2, 0.8))
    predictions, references = (
        [replace(case, value=(left, right)[int(case.id) % 2], group=groups[int(case.id) % 2]) for case in cases]
        for cases in (pairs.predictions, pairs.references)
    )
    table = agreement_table(Pairs(predictions, references), name="mine", **FAST)
    for system, apart in (("mine", 0), ("mine of another case", 0.6), (ELSEWHERE, 0.6)):
        assert value(table, DTW, system).interval.estimate == pytest.approx(apart, abs=1e-6)


def test_without_ids_every_reading_is_a_case():
    pairs = Pairs(*([replace(case, id=None) for case in cases] for cases in (TWO.predictions, TWO.references)))
    table = agreement_table(pairs, **FAST)
    assert value(table, DTW, "predictions").n == 2 * FILMS
    assert f"no case has two readings: no row of {AMONG}" in table.protocol


# ---- odd paths


def test_without_durations_fixations_count():
    slow = [
        replace(case, value=Scanpath.from_relative(case.value.x, case.value.y, 0 * case.value.x), timed=False)
        for case in TWO.predictions
    ]
    table = agreement_table(Pairs(slow, TWO.references), **FAST)
    even = [[Scanpath.from_relative(p.x, p.y, np.ones(len(p))) for p in side] for side in sides(TWO)]
    score = value(table, f"cosine of fixations a cluster ({REGIONS})", "predictions")
    assert score.interval.estimate == pytest.approx(dwell_cosine(*even, clusters="regions").mean())
    assert any("every fixation counts 1 for its seconds" in sentence for sentence in table.protocol)
    assert not any("seconds a cluster" in score.metric for score in table.scores)


def test_paths_without_fixation_and_made_up_ones_are_counted_and_said():
    empty = Scanpath.from_relative([], [], [])
    predictions = [replace(case, value=empty) if case.id == "3" else case for case in TWO.predictions]
    references = [replace(case, centred=True) for case in TWO.references]
    table = agreement_table(Pairs(predictions, references), name="mine", **FAST)
    for metric in (DTW, f"cosine of seconds a cluster ({DBSCAN})"):
        score = value(table, metric, "mine")
        assert (score.n, score.undefined) == (FILMS - 1, 1)
    said = "\n".join(table.protocol)
    assert "paths without fixation, undefined in cosine and DTW distance and without dwell in ICC (mine: 2)" in said
    assert (
        f"a made-up fixation at the centre put in front, in which all such paths agree (references: {2 * FILMS})"
        in said
    )
    first = [replace(case, value=case.value.with_centre()).value for case in references]
    expected = dtw_distance([case.value for case in predictions], first).reshape(FILMS, 2).mean(axis=1)
    assert value(table, DTW, "mine").interval.estimate == pytest.approx(np.nanmean(expected))


def test_a_system_may_be_called_anything(table):
    for name in (AMONG, ELSEWHERE, "mine of another case", "centre, 8 fixations"):
        other = agreement_table(TWO, name=name, resamples=5)
        assert value(other, DTW, name).interval.estimate == value(table, DTW, "mine").interval.estimate
        assert len({(score.metric, score.system) for score in other.scores}) == len(table.scores)
