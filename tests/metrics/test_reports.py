import json

import numpy as np
import pytest

from gaze_vlm.metrics.reports import label_f1, label_matrix, macro_f1, micro_f1
from gaze_vlm.metrics.statistics import paired_bootstrap

FINDINGS = ("cardiomegaly", "edema", "pneumothorax")


def test_scores_by_hand():
    predicted = [frozenset({"edema"}), frozenset({"edema", "cardiomegaly"}), frozenset(), frozenset({"hernia"})]
    reference = [{"edema"}, {"cardiomegaly"}, {"edema"}, set()]
    scores = label_f1(predicted, reference, FINDINGS)
    np.testing.assert_allclose(scores.precision, [1, 0.5, 0])
    np.testing.assert_allclose(scores.recall, [1, 0.5, 0])
    np.testing.assert_allclose(scores.f1, [1, 0.5, 0])
    np.testing.assert_array_equal(scores.support, [1, 2, 0])
    assert scores.macro_f1 == 0.75  # no reference has a pneumothorax
    assert scores.micro_f1 == pytest.approx(4 / 6)
    assert label_f1(predicted, reference, FINDINGS, min_support=2).macro_f1 == 0.5
    assert json.loads(json.dumps(scores.to_dict()))["findings"]["edema"]["support"] == 2


def test_scores_equal_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    predicted, reference = rng.random((2, 100, 5)) < 0.3
    names = list("abcde")
    as_sets = [[frozenset(np.array(names)[row]) for row in matrix] for matrix in (predicted, reference)]
    scores = label_f1(*as_sets, names)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(reference, predicted, zero_division=0)
    np.testing.assert_allclose(scores.precision, precision)
    np.testing.assert_allclose(scores.recall, recall)
    np.testing.assert_allclose(scores.f1, f1)
    np.testing.assert_array_equal(scores.support, support)
    assert scores.macro_f1 == pytest.approx(metrics.f1_score(reference, predicted, average="macro"))
    assert scores.micro_f1 == pytest.approx(metrics.f1_score(reference, predicted, average="micro"))


def test_the_normal_report_scores_zero_and_no_findings_at_all_is_nan():
    nothing = [frozenset()] * 3
    scores = label_f1(nothing, [{"edema"}, set(), {"cardiomegaly"}], FINDINGS)
    assert scores.macro_f1 == scores.micro_f1 == 0
    scores = label_f1(nothing, nothing, FINDINGS)
    assert np.isnan(scores.macro_f1) and np.isnan(scores.micro_f1)


def test_the_matrix_goes_through_the_paired_bootstrap():
    rng = np.random.default_rng(1)
    reference = rng.random((80, 4)) < 0.4
    good, poor = reference ^ (rng.random((80, 4)) < 0.05), reference ^ (rng.random((80, 4)) < 0.4)
    interval = paired_bootstrap(
        np.stack([good, reference], axis=1),
        np.stack([poor, reference], axis=1),
        lambda cases: macro_f1(cases[:, 0], cases[:, 1]),
        resamples=200,
    )
    assert interval.estimate == pytest.approx(macro_f1(good, reference) - macro_f1(poor, reference))
    assert 0 < interval.low < interval.estimate < interval.high


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="predicted: 1, reference: 2"):
        label_f1([set()], [set(), set()], FINDINGS)
    with pytest.raises(ValueError, match="distinct"):
        label_matrix([set()], ["edema", "edema"])
    with pytest.raises(ValueError, match=r"\(2, 3\), reference: \(3, 3\)"):
        micro_f1(np.zeros((2, 3)), np.zeros((3, 3)))
    assert label_matrix([], FINDINGS).shape == (0, 3)
