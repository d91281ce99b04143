import numpy as np
import pytest

from gaze_vlm.metrics.tables.attention import EVEN, attention_scores

BOXES = [[[0.0, 0.0, 0.5, 0.5]], [[0.5, 0.5, 1.0, 1.0]], [[0.25, 0.25, 0.75, 0.75]]]


def quarter(row, column):
    maps = np.full((2, 2), 0.1)
    maps[row, column] = 1.0
    return maps


def found(scores, metric, system):
    (one,) = [s for s in scores if s.metric.startswith(metric) and s.system == system]
    return one.interval.estimate


def test_maps_against_boxes_beside_what_needs_no_model():
    right, wrong = np.stack([quarter(0, 0), quarter(1, 1), quarter(0, 0)]), np.stack([quarter(1, 1)] * 3)
    scores = attention_scores({"right": [right], "half": [right, wrong]}, BOXES, resamples=50)
    # the middle box holds the centre of its upper left quarter, and a quarter of that quarter
    assert found(scores, "pointing", "right") == 1
    assert found(scores, "pointing", "half") == pytest.approx((1 + 2 / 3) / 2)
    assert found(scores, "attention IoU", "right") == pytest.approx((1 + 1 + 1 / 7) / 3)
    assert found(scores, "pointing", "centre of the film") == pytest.approx(1.0)  # the corner of two boxes counts
    for metric in ("pointing", "attention IoU"):
        assert found(scores, metric, EVEN) == pytest.approx(0.25)
    assert scores[0].difference is None and scores[1].difference.estimate == pytest.approx(1 / 6)
