"""Tables: every number is that of the function it names, every case counts, what cannot be scored is refused."""

import math
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from gaze_vlm.findings import FINDINGS
from gaze_vlm.metrics import baselines, grounding, reports, saliency, scanpath, text, vqa
from gaze_vlm.metrics.cases import Case, Pairs
from gaze_vlm.metrics.classification import auroc, average_precision, calibration_error, threshold_scores
from gaze_vlm.metrics.statistics import Comparison, Interval, bootstrap, compare
from gaze_vlm.metrics.tables import Metric, Score, ScoreTable, beside, drawn, once, score, systems_of
from gaze_vlm.metrics.tables.answers import vqa_table
from gaze_vlm.metrics.tables.boxes import ground_table
from gaze_vlm.metrics.tables.findings import classify_table
from gaze_vlm.metrics.tables.reports import report_table
from gaze_vlm.metrics.tables.scanpaths import scanpath_table, spread_table
from gaze_vlm.scanpath import Scanpath

needs_words = pytest.mark.skipif(
    find_spec("pycocoevalcap") is None, reason='needs pycocoevalcap: pip install "gaze2report[eval]"'
)
needs_scipy = pytest.mark.skipif(find_spec("scipy") is None, reason='needs scipy: pip install "gaze2report[eval]"')

SENTENCES = (
    "The heart is mildly enlarged.",
    "There is a small left pleural effusion.",
    "No pneumothorax.",
    "Bibasilar atelectasis is present.",
    "Mild pulmonary edema.",
    "Possible right lower lobe pneumonia.",
    "Healed rib fracture on the right.",
)
CASES = 24


def paths(seed: int, count: int = CASES, fixations: int = 7) -> list[Scanpath]:
    rng = np.random.default_rng(seed)
    return [Scanpath.from_relative(*rng.random((2, fixations)), rng.exponential(0.3, fixations)) for _ in range(count)]


def texts(seed: int, count: int = CASES) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(SENTENCES, rng.integers(2, 5), replace=False)) for _ in range(count)]


def labels(seed: int, names=FINDINGS[:4], count: int = CASES) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [{name: float(rng.random() < 0.4) for name in names} for _ in range(count)]


def probabilities(seed: int, names=FINDINGS[:4], count: int = CASES) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [{name: float(rng.random()) for name in names} for _ in range(count)]


def boxes(seed: int, count: int = CASES) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((count, 2, 2, 2)), axis=2)
    return [corner[: 1 + i % 2].transpose(0, 1, 2).reshape(-1, 4) for i, corner in enumerate(corners)]


def answers(seed: int, count: int = CASES) -> list[str]:
    return np.random.default_rng(seed).choice(["yes", "no", "left", "right", "severe"], count).tolist()


def cases(values, **known) -> list[Case]:
    return [Case(f"case{i}", value, **known) for i, value in enumerate(values)]


def pairs(predictions, references, **known) -> Pairs:
    return Pairs(cases(predictions), cases(references, **known))


def row(table: ScoreTable, metric: str, system: str = "predictions"):
    """The one score whose metric begins so."""
    (found,) = [score for score in table.scores if score.metric.startswith(metric) and score.system == system]
    return found


def estimate(table: ScoreTable, metric: str, system: str = "predictions") -> float:
    return row(table, metric, system).interval.estimate


TABLES = {
    "scanpath": (scanpath_table, paths),
    "report": (report_table, texts),
    "classify": (classify_table, probabilities),
    "ground": (ground_table, boxes),
    "vqa": (vqa_table, answers),
}


def table_of(kind: str, predicted=None, reference=None, **options) -> ScoreTable:
    build, make = TABLES[kind]
    reference = (labels(1) if kind == "classify" else make(1)) if reference is None else reference
    predicted = make(2) if predicted is None else predicted
    return build(pairs(predicted, reference), resamples=100, **options)


# ---- the engine

VALUES = {"a": np.random.default_rng(0).random(20), "b": np.random.default_rng(1).random(20)}
MEAN = Metric("mean", True, lambda name: VALUES[name])


@pytest.mark.parametrize("groups", [None, [f"p{i // 3}" for i in range(20)]])
def test_intervals_differences_and_p_are_those_of_the_statistics(groups):
    first, second = score({"a": "a", "b": "b"}, [MEAN], groups=groups, resamples=150, seed=3)
    known = {"groups": groups, "resamples": 150, "seed": 3}
    assert first.interval == bootstrap(VALUES["a"], np.mean, **known)
    assert second.interval == bootstrap(VALUES["b"], np.mean, **known)
    assert first.difference is None
    assert second.difference == compare(VALUES["a"], VALUES["b"], np.mean, permutations=150, **known)


def test_groups_of_one_case_are_no_groups():
    assert score({"a": "a"}, [MEAN], groups=[f"p{i}" for i in range(20)]) == score({"a": "a"}, [MEAN])


def test_a_statistic_of_rows_gets_rows():
    rows = np.random.default_rng(2).random((20, 2, 3))
    metric = Metric("largest", None, lambda shift: rows + shift, lambda cases: float(cases[:, 1].max()))
    first, second = score({"a": 0.0, "b": 1.0}, [metric], resamples=50)
    assert first.interval.estimate == rows[:, 1].max()
    assert second.difference.estimate == pytest.approx(-1)
    assert (first.n, first.undefined) == (20, 0)


def test_a_case_without_a_value_is_counted_and_left_out_of_that_system_and_of_its_differences():
    holed = VALUES["b"].copy()
    holed[:5] = np.nan
    metric = Metric("mean", True, lambda name: holed if name == "b" else VALUES["a"])
    first, second = score({"a": "a", "b": "b"}, [metric], resamples=100)
    assert (first.n, first.undefined) == (20, 0)
    assert (second.n, second.undefined) == (15, 5)
    assert first.interval.estimate == VALUES["a"].mean()
    assert second.interval == bootstrap(holed[5:], np.mean, resamples=100)
    assert second.difference == compare(VALUES["a"][5:], holed[5:], np.mean, resamples=100, permutations=100)
    _, other = score({"b": "b", "a": "a"}, [metric], resamples=100)
    assert (other.n, other.undefined) == (20, 0)
    assert other.difference == compare(holed[5:], VALUES["a"][5:], np.mean, resamples=100, permutations=100)


@pytest.mark.filterwarnings("error")
def test_where_nothing_is_defined_everything_is_nan():
    metric = Metric("mean", True, lambda name: np.full(3, np.nan))
    for known in score({"a": "a", "b": "b"}, [metric]):
        assert (known.n, known.undefined) == (0, 3)
        assert all(map(math.isnan, known.interval))
    assert all(map(math.isnan, known.difference))


def test_one_group_has_an_estimate_and_no_interval():
    first, second = score({"a": "a", "b": "b"}, [MEAN], groups=["p"] * 20)
    assert first.interval.estimate == VALUES["a"].mean()
    assert math.isnan(first.interval.low)
    assert second.difference.estimate == pytest.approx(VALUES["a"].mean() - VALUES["b"].mean())
    assert math.isnan(second.difference.p)


def test_scores_come_metric_by_metric_and_a_computation_is_made_once_a_system():
    made = []
    both = once(lambda name: made.append(name) or np.stack([VALUES[name], -VALUES[name]]))
    metrics = [Metric(f"column {i}", True, lambda name, i=i: both(name)[i]) for i in range(2)]
    scores = score({"a": "a", "b": "b"}, metrics, resamples=10)
    assert [(known.metric, known.system) for known in scores] == [
        ("column 0", "a"),
        ("column 0", "b"),
        ("column 1", "a"),
        ("column 1", "b"),
    ]
    assert made == ["a", "b"]


def test_a_baseline_does_not_take_the_name_of_a_system():
    assert beside({"whole image": 1}, {"whole image": 2, "other": 3}) == {
        "whole image": 1,
        "whole image (baseline)": 2,
        "other": 3,
    }
    given = pairs([1], [1])
    assert systems_of(given, {"b": cases([2])}, "a") == {"a": [1], "b": [2]}
    with pytest.raises(ValueError, match="two systems are called 'a'"):
        systems_of(given, {"a": cases([2])}, "a")


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (range(30), "intervals: 500 bootstrap resamples of 30 cases; p: as many permutations"),
        ([i // 2 for i in range(50)], "500 bootstrap resamples of 25 groups, the cases of one patient or image; p"),
        (range(4), "4 cases; p: as many permutations; with fewer than 20 intervals are too narrow, and no p can be"),
        ([0, 0, 1, 1], "no p can be below 0.5"),
        (range(15), "no p can be below 0.002"),
        ([0, 0], "no intervals and no p"),
    ],
)
def test_what_intervals_rest_on_is_said(groups, words):
    known = [Case(str(i), 0, group=f"p{group}") for i, group in enumerate(groups)]
    said = drawn(Pairs(known, known), 500)
    assert words in said
    assert ("too narrow" in said) == (2 <= len(set(groups)) < 20)


def plain(value, where=""):
    """Only what JSON has, every number finite."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and plain(item, f"{where}.{name}") for name, item in value.items())
    if isinstance(value, list):
        return all(plain(item, where) for item in value)
    assert value is None or type(value) in (str, bool, int, float), f"{where} is a {type(value)}"
    assert type(value) is not float or math.isfinite(value), f"{where} is {value}"
    return True


def test_what_is_not_finite_is_null():
    known = Score(
        "metric", None, "system", 1, 0, Interval(math.inf, -math.inf, math.nan), Comparison(1, 2, math.inf, 1)
    )
    (document,) = ScoreTable((known,)).to_dict()["scores"]
    assert document["interval"] == {"estimate": None, "low": None, "high": None}
    assert document["difference"] == {"estimate": 1, "low": 2, "high": None, "p": 1}


def check_document(document: dict, number_of_cases: int) -> None:
    """As `ScoreTable.to_dict` says."""
    assert document.keys() == {"protocol", "scores"}
    assert plain(document)
    assert document["protocol"]
    assert all(isinstance(sentence, str) for sentence in document["protocol"])
    first = document["scores"][0]["system"]
    for known in document["scores"]:
        keys = "metric higher_is_better system n undefined interval difference"
        assert known.keys() == set(keys.split())
        assert known["n"] + known["undefined"] == number_of_cases or known["system"] == "another reader"
        assert known["higher_is_better"] in (True, False, None)
        assert known["interval"].keys() == {"estimate", "low", "high"}
        assert (known["interval"]["estimate"] is None) <= (known["interval"]["low"] is None)
        if known["system"] in (first, "another reader"):
            assert known["difference"] is None
        else:
            assert known["difference"].keys() == {"estimate", "low", "high", "p"}
            assert known["difference"]["p"] is None or 0 < known["difference"]["p"] <= 1


HOLED = {
    "scanpath": ([*paths(2)[:-2], Scanpath.from_relative([], [], []), paths(3)[0][:2]], paths(1)),
    "report": (["Clear.", *texts(2)[1:]], ["Normal.", *texts(1)[1:]]),
    "classify": (probabilities(2), [known | {FINDINGS[0]: 0.0} for known in labels(1)]),
    "ground": (boxes(2), [np.zeros((0, 4)), *boxes(1)[1:]]),
    "vqa": (["", *answers(2)[1:]], answers(1)),
}


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_counts_every_case_in_every_row_and_is_plain_json(kind):
    predicted, reference = HOLED[kind]
    table = table_of(kind, predicted, reference, versus={"other": cases(TABLES[kind][1](5))})
    check_document(table.to_dict(), CASES)
    assert {"predictions", "other"} < {known.system for known in table.scores}, "and a baseline"
    assert any(known.undefined for known in table.scores) == (kind != "classify")


@pytest.mark.parametrize("kind", TABLES)
def test_a_perfect_prediction_is_best_and_beats_the_baselines(kind):
    reference = labels(1) if kind == "classify" else TABLES[kind][1](1)
    table = table_of(kind, reference, reference)
    best = {True: 1.0, False: 0.0}
    beaten = 0
    for known in table.scores:
        if known.difference is None:
            if known.higher_is_better is not None and not known.metric.startswith("CIDEr"):
                assert known.interval == pytest.approx((best[known.higher_is_better],) * 3), known.metric
        elif known.higher_is_better is not None:
            sign = 1 if known.higher_is_better else -1
            assert not sign * known.difference.estimate < 0, f"{known.metric}, {known.system}"
            beaten += known.difference.p < 0.05 and sign * known.difference.low > 0
    assert beaten >= len({known.metric for known in table.scores}) / 2


@pytest.mark.parametrize("kind", TABLES)
def test_the_same_call_gives_the_same_table(kind):
    assert table_of(kind).to_dict() == table_of(kind).to_dict()


def test_a_markdown_table_has_a_cell_for_each_column_whatever_the_names_hold():
    table = vqa_table(pairs(answers(1), answers(2), finding="a|b\nc"), name="x|y", resamples=100)
    lines = table.to_markdown().splitlines()
    rows, rest = lines[: lines.index("")], lines[lines.index("") + 1 :]
    assert len({line.replace(r"\|", "").count("|") for line in rows}) == 1
    assert any(r"questions of type a\|b c" in line for line in rows)
    assert rest == [f"- {sentence}" for sentence in table.protocol]


# ---- scanpaths


def test_scanpath_numbers_are_those_of_the_functions():
    predicted, reference = paths(2), paths(1)
    table = table_of("scanpath", predicted, reference)
    matched = scanpath.multimatch(predicted, reference, screen_size=(224, 224))
    expected = {
        "ScanMatch (14 x 14 bins, threshold 3.5, gap 0, no duration)": scanpath.scanmatch(predicted, reference),
        "ScanMatch (14 x 14 bins, threshold 3.5, gap 0, duration": scanpath.scanmatch(
            predicted, reference, temporal_bin=0.05
        ),
        "string edit distance": scanpath.edit_distance(predicted, reference),
        "scaled time-delay": scanpath.time_delay_similarity(predicted, reference),
        "MultiMatch mean of 4": scanpath.multimatch_mean4(predicted, reference),
        "fixations a scanpath": np.full(CASES, 7.0),
        "fixated seconds": np.array([path.total_duration for path in predicted]),
    } | {f"MultiMatch {name}": values for name, values in matched.items()}
    for metric, values in expected.items():
        assert row(table, metric).interval == pytest.approx(bootstrap(values, np.mean, resamples=100)), metric
    over_all_cases = {"workload correlation", *(f"{DISTANCE} {what}" for what in QUANTITIES)}
    assert {known.metric for known in table.scores} == {row(table, m).metric for m in {*expected, *over_all_cases}}


DISTANCE = "Kolmogorov-Smirnov distance to the readers'"
QUANTITIES = {
    "saccade amplitude": lambda side: scanpath.saccade_amplitudes(side, screen_size=(224, 224)),
    "fixation duration": lambda side: np.concatenate([path.duration for path in side]),
    "fixations a scanpath": lambda side: np.array([len(path) for path in side]),
}


def of_any_length(seed: int) -> list[Scanpath]:
    """Fixations on a coarse raster of places and times, so that values repeat."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 12, CASES)
    return [Scanpath.from_relative(*rng.integers(0, 4, (2, n)) / 3, rng.integers(0, 5, n) / 8) for n in sizes]


@pytest.mark.parametrize("make", [paths, of_any_length])
@pytest.mark.parametrize("what", QUANTITIES)
def test_distances_to_the_readers_are_those_of_the_distributions(make, what):
    reference, values = make(1), QUANTITIES[what]
    others = {f"other {seed}": make(seed) for seed in range(3, 9)}
    table = table_of("scanpath", make(2), reference, versus={name: cases(side) for name, side in others.items()})
    expected = scanpath.distribution_distance(values(make(2)), values(reference))
    assert estimate(table, f"{DISTANCE} {what}") == pytest.approx(expected, abs=1e-12)
    for name, side in others.items():
        other = scanpath.distribution_distance(values(side), values(reference))
        assert estimate(table, f"{DISTANCE} {what}", name) == pytest.approx(other, abs=1e-12)
        difference = row(table, f"{DISTANCE} {what}", name).difference
        assert difference.estimate == pytest.approx(expected - other, abs=1e-12)


def test_intervals_of_distances_draw_cases():
    predicted, reference = of_any_length(2), of_any_length(1)
    for what, values in QUANTITIES.items():
        drawn_cases = bootstrap(
            np.arange(CASES),
            lambda rows, values=values: scanpath.distribution_distance(
                *(values([side[i] for i in rows]) for side in (predicted, reference))
            ),
            resamples=100,
        )
        assert row(table_of("scanpath", predicted, reference), f"{DISTANCE} {what}").interval == pytest.approx(
            drawn_cases, abs=1e-12
        )


@pytest.mark.parametrize("finest", [10, 40])
def test_a_distance_at_quantiles_is_hardly_smaller(finest, monkeypatch):
    monkeypatch.setattr("gaze_vlm.metrics.tables.scanpaths.FINEST", finest)
    for seed in range(2, 8):
        table = table_of("scanpath", paths(seed), paths(1))
        for what, values in list(QUANTITIES.items())[:2]:
            exact = scanpath.distribution_distance(values(paths(seed)), values(paths(1)))
            assert exact - 1 / (finest - 1) - 1e-12 <= estimate(table, f"{DISTANCE} {what}") <= exact + 1e-12


def test_a_made_up_duration_at_the_centre_is_in_no_distribution():
    reference = paths(1)
    known = Pairs(cases([path.with_centre(9.0) for path in reference]), cases(reference, centred=True))
    assert estimate(scanpath_table(known, resamples=100), f"{DISTANCE} fixation duration") == 0
    plainly = table_of("scanpath", [path.with_centre(9.0) for path in reference], reference)
    assert estimate(plainly, f"{DISTANCE} fixation duration") == pytest.approx(1 / 8)


def test_workload_is_ranked_over_the_cases():
    predicted, reference = paths(2), paths(1)
    other = {"other": paths(3), "slow": [replace(path, duration=100 * path.duration) for path in paths(3)]}
    table = table_of("scanpath", predicted, reference, versus={name: cases(side) for name, side in other.items()})
    expected = scanpath.workload_correlation(predicted, reference)
    interval = row(table, "workload correlation").interval
    assert interval.estimate == expected
    assert interval.low < expected < interval.high
    # the same order on another scale is the same system, swapped with another or not
    other, slow = (row(table, "workload correlation", name) for name in ("other", "slow"))
    assert (slow.interval, slow.difference) == (other.interval, other.difference)
    assert slow.interval != interval
    assert math.isnan(estimate(table, "workload correlation", "uniform, 7 fixations"))


def readings_of(**findings) -> list[Case]:
    return [Case(None, path, finding=finding) for finding, known in findings.items() for path in known]


def test_spread_is_the_mean_over_every_two_scanpaths_of_a_finding():
    few, many = {"a": paths(2, 3), "b": paths(3, 4), "c": paths(4, 2)}, {"a": paths(5, 6), "b": paths(6, 6)}
    table = spread_table({"few": few, "many": many}, readings_of(a=paths(7, 5), b=paths(8, 2), c=paths(9, 1)))
    sides = {"few": few, "many": many, "readers of the same finding": {"a": paths(7, 5), "b": paths(8, 2)}}
    measures = {"ScanMatch": scanpath.scanmatch, "MultiMatch mean of 4": scanpath.multimatch_mean4}
    for name, measure in measures.items():
        for system, known in sides.items():
            means = [
                np.mean([measure([p], [q]) for p in known[finding] for q in known[finding] if p is not q])
                for finding in ("a", "b")
            ]
            assert row(table, name, system).interval.estimate == pytest.approx(np.mean(means)), (name, system)
            assert row(table, name, system).n == 2, "c has one reading"
    assert {known.system for known in table.scores} == {*sides, "centre, 7 fixations", "uniform, 7 fixations"}
    check_document(table.to_dict(), 2)


def test_scanpaths_that_are_all_the_same_have_no_spread():
    same = {"a": [paths(1)[0]] * 3, "b": [paths(1)[1]] * 2}
    table = spread_table({"same": same}, readings_of(a=paths(7, 5), b=paths(8, 3)), resamples=100)
    for name in ("ScanMatch", "MultiMatch"):
        assert row(table, name, "same").interval == pytest.approx((1, 1, 1))
        assert row(table, name, "readers of the same finding").difference.estimate > 0


def test_spread_names_what_is_missing():
    readings = readings_of(a=paths(7, 5), b=paths(8, 3))
    with pytest.raises(ValueError, match="few: 'b' needs two scanpaths"):
        spread_table({"few": {"a": paths(1, 2), "b": paths(2, 1)}}, readings)
    with pytest.raises(ValueError, match="few: 'b' needs two scanpaths"):
        spread_table({"few": {"a": paths(1, 2)}}, readings)
    with pytest.raises(ValueError, match="no finding has two readings: readings: 2, findings: 2"):
        spread_table({"few": {"a": paths(1, 2)}}, readings_of(a=paths(7, 1), b=paths(8, 1)))


def test_map_numbers_are_those_of_the_functions():
    predicted, reference = paths(2), paths(1)
    table = table_of("scanpath", predicted, reference, maps=True)
    ours, theirs = (saliency.heat_maps(side, (56, 56), sigma=16 / 224) for side in (predicted, reference))
    assert estimate(table, "CC of maps") == pytest.approx(saliency.cc(ours, theirs).mean())
    assert estimate(table, "KL") == pytest.approx(saliency.kl_divergence(ours, theirs).mean())
    assert estimate(table, "NSS") == pytest.approx(saliency.nss(ours, reference).mean())
    assert estimate(table, "AUC-Judd") == pytest.approx(saliency.auc_judd(ours, reference).mean())
    for name, values in saliency.medgaze_scores(predicted, reference).items():
        assert estimate(table, f"MedGaze {name}") == pytest.approx(np.nanmean(values))


def test_the_centre_is_put_in_front_where_it_is_left_out():
    reference = paths(1)
    known = Pairs(cases([path.with_centre() for path in reference]), cases(reference, centred=True))
    table = scanpath_table(known, resamples=100)
    assert estimate(table, "MultiMatch mean of 4") == 1
    assert estimate(table, "string edit") == 0
    assert "a made-up fixation at the centre put in front (references: 24)" in table.protocol
    both = Pairs(cases(reference, centred=True), cases(reference, centred=True))
    assert estimate(scanpath_table(both, resamples=100), "string edit") == 0


@pytest.mark.parametrize("side", ["predictions", "other", "references", "training scanpaths"])
def test_one_side_without_durations_leaves_out_what_needs_them_and_says_so(side):
    sides = {name: cases(paths(seed)) for seed, name in enumerate(("predictions", "other", "references"))}
    sides["training scanpaths"] = cases(paths(7, 5), finding="Edema")
    sides[side] = [Case(case.id, case.value, finding=case.finding, timed=False) for case in sides[side]]
    table = scanpath_table(
        Pairs(sides["predictions"], sides["references"]),
        versus={"other": sides["other"]},
        training=sides["training scanpaths"],
        resamples=100,
        maps=True,
    )
    metrics = {known.metric for known in table.scores}
    assert not [name for name in metrics if "duration in bins" in name or "fixation duration" in name]
    assert not [name for name in metrics if name.startswith(("MedGaze", "fixated", "workload"))]
    assert "MultiMatch duration" not in metrics
    assert "MultiMatch mean of 4 (no duration)" in metrics
    assert any("weighted by count" in name for name in metrics)
    (said,) = [sentence for sentence in table.protocol if sentence.startswith("durations are not known")]
    assert said.endswith(f"({side}: {len(sides[side])})")


def test_short_and_empty_paths_are_counted():
    predicted, reference = HOLED["scanpath"]
    table = table_of("scanpath", predicted, reference)
    assert row(table, "MultiMatch shape").undefined == 2
    assert row(table, "scaled time-delay").undefined == 1
    assert row(table, "ScanMatch (14 x 14 bins, threshold 3.5, gap 0, no").undefined == 0
    assert "paths under 3 fixations, undefined in MultiMatch (predictions: 2)" in table.protocol
    assert "paths without fixation, 0 in ScanMatch unless both have none (predictions: 1)" in table.protocol


def test_another_reader_stands_beside_where_a_case_has_several_readings():
    readings = paths(1, 10)
    names = ["a", "a", "a", "b", "b", "c", "d", "d", "e", "e"]
    references = [
        Case(name, path, group=f"image {name}", reader=str(i))
        for i, (name, path) in enumerate(zip(names, readings, strict=True))
    ]
    predicted = [Case(name, path) for name, path in zip(names, paths(2, 10), strict=True)]
    table = scanpath_table(Pairs(predicted, references), resamples=100)
    values, shared = scanpath.reader_ceiling(readings, names, scanpath.scanmatch)
    known = row(table, "ScanMatch (14 x 14 bins, threshold 3.5, gap 0, no", "another reader")
    assert shared == ["a", "b", "d", "e"]
    assert (known.n, known.undefined, known.difference) == (4, 0, None)
    assert known.interval == pytest.approx(bootstrap(values, np.mean, resamples=100))
    check_document(table.to_dict(), 10)
    assert any(sentence.startswith("another reader: ") for sentence in table.protocol)
    one_image = Pairs(predicted, [replace(case, group="image") for case in references])
    known = row(scanpath_table(one_image, resamples=100), "string edit", "another reader")
    assert known.n == 4
    assert math.isnan(known.interval.low), "cases of one image are no independent cases"


@pytest.mark.parametrize("name", ["different", None])
def test_no_other_reader_where_each_case_has_one_reading(name):
    known = [Case(name and f"{name} {i}", path) for i, path in enumerate(paths(1, 4))]
    table = scanpath_table(Pairs(known, known), resamples=100)
    assert "another reader" not in {score.system for score in table.scores}


def test_training_scanpaths_make_baselines():
    training = cases(paths(5, 30), finding="Edema")
    table = scanpath_table(pairs(paths(2), paths(1), finding="Edema"), training=training, resamples=100)
    drawn_readers = baselines.RandomHuman().fit([case.value for case in training], ["Edema"] * 30)
    systems = list(dict.fromkeys(score.system for score in table.scores))
    assert systems == [
        "predictions",
        "centre, 7 fixations",
        "uniform, 7 fixations",
        "random reader, same finding",
        "mean of the finding",
        "medoid of the finding",
        "searched path of the finding",
    ]
    assert drawn_readers  # fits
    medoid = baselines.FindingMedoid().fit([case.value for case in training], ["Edema"] * 30)
    expected = scanpath.scanmatch(medoid.predict(["Edema"] * CASES, np.random.default_rng(0)), paths(1)).mean()
    assert estimate(table, "ScanMatch (14 x 14 bins, threshold 3.5, gap 0, no", "medoid of the finding") == expected
    assert "baselines that learn from readers have 30 training scanpaths" in table.protocol


@pytest.mark.parametrize("name", ["references", "training scanpaths", "centre, 7 fixations", "another reader"])
def test_a_system_may_be_called_anything(name):
    plainly, named = (table_of("scanpath", name=given) for given in ("predictions", name))
    first = [score.interval for score in plainly.scores if score.system == "predictions"]
    assert [score.interval for score in named.scores if score.system == name] == first


# ---- reports


def test_label_numbers_are_those_of_the_functions():
    predicted, reference = texts(2), texts(1)
    table = table_of("report", predicted, reference, by_finding=True)
    sides = [reports.labels_of(side, uncertain="negative") for side in (predicted, reference)]
    every, five = (reports.label_f1(*sides, names) for names in (FINDINGS, reports.COMPETITION_FINDINGS))
    assert estimate(table, f"label F1, macro over the {every.macro_findings} of 14") == every.macro_f1
    assert estimate(table, f"label F1, macro over the {five.macro_findings} of 5") == five.macro_f1
    assert estimate(table, "label F1, micro, 14") == every.micro_f1
    assert estimate(table, "label F1, micro, 5") == five.micro_f1
    assert estimate(table, "label F1 by example, 14") == pytest.approx(every.example_f1)
    assert estimate(table, "label precision, micro") == every.micro_precision
    assert estimate(table, "label recall, micro") == every.micro_recall
    errors = reports.errors_by_finding(*sides, FINDINGS)
    assert estimate(table, "findings hallucinated") == errors.hallucinated.mean()
    assert estimate(table, "findings omitted") == errors.omitted.mean()
    for name, f1, invented, omitted in zip(FINDINGS, every.f1, errors.hallucination, errors.omission, strict=True):
        assert estimate(table, f"{name}: F1") == pytest.approx(f1, nan_ok=True)
        assert estimate(table, f"{name}: hallucination") == pytest.approx(invented, nan_ok=True)
        assert estimate(table, f"{name}: omission") == pytest.approx(omitted, nan_ok=True)
    keywords = reports.keyword_recall(predicted, reference)
    assert estimate(table, "clinical keyword recall") == pytest.approx(np.nanmean(keywords))


def test_uncertain_findings_count_as_asked():
    predicted, reference = [SENTENCES[5]] * 3, ["There is pneumonia in the right lower lobe."] * 3
    recalls = [
        estimate(table_of("report", predicted, reference, uncertain=uncertain), "label recall, micro")
        for uncertain in ("negative", "positive")
    ]
    assert recalls[0] < recalls[1] == 1


@needs_words
@pytest.mark.parametrize("preparation", ["plain", "r2gen_iu"])
def test_word_numbers_are_those_of_the_functions(preparation):
    predicted, reference = texts(2), texts(1)
    table = table_of("report", predicted, reference, preparation=preparation)
    expected = text.word_overlap(predicted, reference, preparation=preparation).to_dict()
    for i in range(1, 5):
        assert estimate(table, f"BLEU-{i} ") == expected[f"bleu_{i}"]
    assert estimate(table, "ROUGE-L") == pytest.approx(expected["rouge_l"])
    assert estimate(table, "CIDEr") == pytest.approx(expected["cider"])
    assert all(f'"{preparation}"' in known.metric for known in table.scores if known.metric.startswith("BLEU"))


@needs_words
def test_texts_that_a_preparation_cuts_are_counted_and_one_it_empties_is_named():
    known = pairs(["word " * 70, *texts(2)[1:]], ["word " * 59 + "end", "word " * 99, *texts(1)[2:]])
    (said,) = [
        sentence
        for sentence in report_table(known, preparation="r2gen_iu", resamples=100).protocol
        if "cuts" in sentence
    ]
    assert said.endswith("(predictions: 1, references: 2)")
    for side, given in (("predictions", (["1. "], ["Clear."])), ("references", (["Clear."], ["1. "]))):
        with pytest.raises(ValueError, match=f"{side}: case case0 has no words when prepared as 'r2gen_iu'"):
            report_table(pairs(*given), preparation="r2gen_iu")


def test_without_the_extra_word_overlap_is_left_out_and_said_unless_it_was_asked_for(monkeypatch):
    from gaze_vlm.metrics.tables import reports as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    table = table_of("report")
    assert not [known for known in table.scores if "BLEU" in known.metric]
    assert 'BLEU, ROUGE-L, CIDEr and METEOR left out: pip install "gaze2report[eval]"' in table.protocol
    monkeypatch.setitem(__import__("sys").modules, "pycocoevalcap", None)
    with pytest.raises(ImportError, match=r'METEOR needs .*: pip install "gaze2report\[eval\]"'):
        table_of("report", with_meteor=True)


def test_a_random_training_report_is_drawn():
    table = table_of("report", training=cases(["Large left pneumothorax."]))
    assert estimate(table, "label recall, micro", "random training report") == 0
    assert not [sentence for sentence in table.protocol if "--train" in sentence]


# ---- findings


def test_classification_numbers_are_those_of_the_functions():
    predicted, reference = probabilities(2), labels(1)
    table = table_of("classify", predicted, reference, threshold=0.3)
    names = sorted(FINDINGS[:4])
    truth, scores = (np.array([[case[name] for name in names] for case in side]) for side in (reference, predicted))
    at = threshold_scores(truth, scores, 0.3)
    expected = {
        "AUROC, mean": auroc(truth, scores),
        "AUPRC": average_precision(truth, scores),
        "F1, mean, threshold 0.3": at.f1,
        "precision where called, mean, threshold 0.3": at.precision,
        "recall, mean, threshold 0.3": at.recall,
        "expected calibration error": calibration_error(truth, scores),
    }
    assert (truth.sum(axis=0) >= 5).all()
    for metric, values in expected.items():
        assert estimate(table, metric) == pytest.approx(values.mean()), metric
    for name, value, count in zip(names, auroc(truth, scores), truth.sum(axis=0), strict=True):
        assert estimate(table, f"AUROC {name} ({count:.0f} positives)") == value
        assert estimate(table, f"AUROC {name}", "label frequency") == 0.5


def test_a_finding_without_a_positive_or_without_a_negative_is_nan_and_in_no_mean():
    never, always, *rest = FINDINGS[:4]
    reference = [known | {never: 0.0, always: 1.0} for known in labels(1)]
    table = table_of("classify", probabilities(2), reference)
    assert math.isnan(estimate(table, f"AUROC {never} (0 positives)"))
    assert math.isnan(estimate(table, f"AUROC {always} ({CASES} positives)"))
    alone = table_of("classify", probabilities(2), [{name: known[name] for name in rest} for known in reference])
    assert row(table, "AUROC, mean").interval == row(alone, "AUROC, mean").interval
    assert "means over the 2 findings with at least 5 positives, and a negative" in table.protocol


@pytest.mark.parametrize(("uncertain", "expected"), [("negative", 1), ("positive", 3)])
def test_a_label_is_a_certainty_and_one_half_is_uncertain(uncertain, expected):
    reference = [{"Edema": value} for value in (0.75, 0.5, -1, 0.25, 0.0)]
    predicted = [{"Edema": 0.5}] * 5
    table = classify_table(pairs(predicted, reference), uncertain=uncertain, resamples=100)
    assert row(table, f"AUROC Edema ({expected} positives)")
    assert f"2 uncertain labels (-1, or a certainty of 0.5) as {uncertain}" in table.protocol


def test_findings_of_one_side_only_are_left_out_and_said():
    table = classify_table(pairs([{"Edema": 0.5, "Mass": 0.1}] * 3, [{"Edema": 1, "Hernia": 1}] * 3), resamples=100)
    assert "not predicted, left out: Hernia" in table.protocol
    assert "in no reference, left out: Mass" in table.protocol
    with pytest.raises(ValueError, match="no finding in common: predictions: Mass; references: Edema"):
        classify_table(pairs([{"Mass": 0.5}], [{"Edema": 1}]))


@pytest.mark.parametrize(
    ("predicted", "reference", "words"),
    [
        (
            [{"Edema": 0.5, "Mass": 0.5}, {"Edema": 0.5}],
            [{"Edema": 1, "Mass": 0}] * 2,
            "predictions: case case1 has no",
        ),
        (
            [{"Edema": 0.5}, {"Edema": 1.5}],
            [{"Edema": 1}] * 2,
            "predictions: case case1: Edema is 1.5, no probability",
        ),
        (
            [{"Edema": 0.5}] * 2,
            [{"Edema": 1}, {"Edema": 2}],
            "references: case case1: Edema is 2; a label is 0..1, or",
        ),
    ],
)
def test_a_score_or_label_that_cannot_be_is_named(predicted, reference, words):
    with pytest.raises(ValueError, match=words):
        classify_table(pairs(predicted, reference))


def test_the_frequency_is_that_of_the_training_labels():
    known = pairs([{"Edema": 0.5}] * 4, [{"Edema": float(i % 2)} for i in range(4)])
    training = cases([{"Edema": 1.0}] * 3 + [{"Edema": 0.0}])
    table = classify_table(known, training=training, resamples=100)
    called = classify_table(known, training=training, threshold=0.8, resamples=100)
    assert len(table.protocol) == 3
    assert "AUROC Edema (2 positives)" in {score.metric for score in called.scores}
    with pytest.raises(ValueError, match="training labels: case case1: Edema is 7"):
        classify_table(known, training=cases([{"Edema": 1.0}, {"Edema": 7.0}]))


# ---- boxes


@needs_scipy
def test_grounding_numbers_are_those_of_the_functions():
    predicted, reference = [np.zeros((0, 4)), *boxes(2)[1:]], [*boxes(1)[:-1], np.zeros((0, 4))]
    table = table_of("ground", predicted, reference, training=cases(boxes(9)))
    for metric, iou in (
        ("mIoU of the boxes' union", grounding.iou_union),
        ("mIoU of boxes matched", grounding.iou_hungarian),
    ):
        expected = grounding.grounding_scores(predicted, reference, iou=iou)
        assert estimate(table, metric) == pytest.approx(expected.mean_iou)
        assert row(table, metric).undefined == expected.without_reference == 1
    expected = grounding.grounding_scores(predicted, reference)
    for at in (0.3, 0.5):
        assert estimate(table, f"accuracy at IoU {at}") == pytest.approx(expected.accuracy[at])
    whole = grounding.iou_union([np.array([[0, 0, 1, 1]])] * CASES, reference)
    assert estimate(table, "mIoU of the boxes' union", "whole image") == pytest.approx(np.nanmean(whole))
    mean = np.concatenate(boxes(9)).mean(axis=0, keepdims=True)
    expected = np.nanmean(grounding.iou_union([mean] * CASES, reference))
    assert estimate(table, "mIoU of the boxes' union", "mean training box") == pytest.approx(expected)
    assert "phrases without a box of predictions, IoU 0: 1" in table.protocol


@pytest.mark.parametrize("side", ["predictions", "other", "references", "training boxes"])
def test_boxes_in_pixels_are_refused(side):
    pixels = [np.array([[0.0, 0.0, 1.0, 1.0]]), np.array([[10.0, 20.0, 200.0, 220.0]])]
    sides = {name: cases(boxes(1, 2)) for name in ("predictions", "other", "references", "training boxes")}
    sides[side] = cases(pixels)
    with pytest.raises(
        ValueError, match=f"{side}: case case1 has a box at 10; boxes are 0..1 of the image, not pixels"
    ):
        ground_table(
            Pairs(sides["predictions"], sides["references"]),
            versus={"other": sides["other"]},
            training=sides["training boxes"],
        )


def test_a_box_may_reach_over_the_edge_and_a_reference_needs_an_area():
    over = [np.array([[-0.2, 0.1, 1.2, 0.5]])] * 3
    assert estimate(ground_table(pairs(over, over), resamples=100), "mIoU of the boxes' union") == pytest.approx(1)
    flat = [np.array([[0.2, 0.1, 0.2, 0.5]])]
    assert estimate(ground_table(pairs(flat, over[:1]), resamples=100), "mIoU of the boxes' union") == 0
    with pytest.raises(ValueError, match="references: case case0 has a box without area"):
        ground_table(pairs(over[:1], flat))


def test_without_scipy_matched_boxes_are_left_out_and_said(monkeypatch):
    from gaze_vlm.metrics.tables import boxes as module

    monkeypatch.setattr(module, "find_spec", lambda name: None)
    table = table_of("ground")
    assert not [known for known in table.scores if "matched" in known.metric]
    assert any(sentence.startswith("IoU of matched boxes left out") for sentence in table.protocol)


# ---- answers


def test_answer_numbers_are_those_of_the_function():
    predicted, reference = answers(2), answers(1)
    kinds = ["where" if answer in ("left", "right") else "what" for answer in reference]
    known = Pairs(
        cases(predicted),
        [Case(f"case{i}", a, finding=k) for i, (a, k) in enumerate(zip(reference, kinds, strict=True))],
    )
    table = vqa_table(known, resamples=100)
    closed, typed = vqa.accuracy_by_type(predicted, reference), vqa.accuracy_by_type(predicted, reference, kinds)
    assert estimate(table, "exact match, all") == pytest.approx(closed.accuracy)
    for name, share, of in (
        ("closed questions", closed.by_type["closed"], closed.support["closed"]),
        ("open questions", closed.by_type["open"], closed.support["open"]),
        ("questions of type where", typed.by_type["where"], typed.support["where"]),
        ("questions of type what", typed.by_type["what"], typed.support["what"]),
    ):
        assert estimate(table, f"exact match, {name}") == pytest.approx(share)
        assert (row(table, f"exact match, {name}").n, row(table, f"exact match, {name}").undefined) == (of, CASES - of)


def test_the_majority_answer_is_that_of_its_kind_in_training():
    known = pairs(["x"] * 4, ["yes", ["no", "n"], "left", "right"])
    training = cases(["no", "no", "yes", "left", "left", "severe"])
    table = vqa_table(known, training=training, resamples=100)
    assert estimate(table, "exact match, closed questions", "majority answer") == 0.5
    assert estimate(table, "exact match, open questions", "majority answer") == 0.5
    assert not [sentence for sentence in table.protocol if "--train" in sentence]
    assert any("of the references themselves" in sentence for sentence in vqa_table(known, resamples=100).protocol)


def test_answers_that_cannot_be_scored_are_named_and_empty_ones_counted():
    with pytest.raises(ValueError, match="predictions: case case1 has several answers"):
        vqa_table(pairs(["a", ["b", "c"]], ["a", "b"]))
    for empty in ("", " . ", [], ["a", ""]):
        with pytest.raises(ValueError, match=r"reference of case case1: .* is empty or holds an empty answer"):
            vqa_table(pairs(["a", "b"], ["a", empty]))
    table = vqa_table(pairs(["", " ?", "left"], ["left"] * 3), resamples=100)
    assert "empty answers of predictions, which count as wrong: 2" in table.protocol
    assert estimate(table, "exact match, all") == pytest.approx(1 / 3)
