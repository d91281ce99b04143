import numpy as np
import pytest

from gaze_vlm.metrics.classification import auroc, macro_auroc


@pytest.mark.parametrize("distinct_scores", [4, 10**6])
def test_auroc_equals_scikit_learn(distinct_scores):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels = rng.random((200, 6)) < [0.01, 0.1, 0.3, 0.5, 0.7, 0.98]
    labels[0], labels[1] = True, False
    scores = rng.integers(0, distinct_scores, size=labels.shape) + labels * distinct_scores * 0.3
    expected = [metrics.roc_auc_score(labels[:, c], scores[:, c]) for c in range(6)]
    np.testing.assert_allclose(auroc(labels, scores), expected, atol=1e-12)


def test_auroc_by_hand():
    labels = [[1, 1, 0, 1], [0, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1]]
    scores = [[0.9, 0, 0, 5], [0.1, 1, 1, 5], [0.5, 2, 2, 5], [0.6, 3, 3, 5]]
    np.testing.assert_array_equal(auroc(labels, scores), [0.75, np.nan, np.nan, 0.5])


def test_macro_auroc_leaves_rare_classes_out():
    labels = np.zeros((20, 3), dtype=bool)
    labels[:5, 0], labels[:4, 1], labels[:, 2] = True, True, True
    scores = np.stack([np.arange(20), -np.arange(20), np.arange(20)], axis=1)
    assert macro_auroc(labels, scores) == 0.0
    assert macro_auroc(labels, scores, min_positives=4) == 0.5
    assert np.isnan(macro_auroc(labels, scores, min_positives=21))


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 4)), r"\(3, 2\), scores: \(3, 4\)"),
        (np.full((3, 2), -1), np.zeros((3, 2)), "0 or 1"),
        (np.zeros((3, 2)), np.array([[0, 0], [0, np.nan], [0, 0]]), r"scores\[1, 1\]"),
    ],
)
def test_bad_input_is_named(labels, scores, message):
    with pytest.raises(ValueError, match=message):
        auroc(labels, scores)
