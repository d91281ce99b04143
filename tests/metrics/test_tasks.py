from itertools import permutations

import numpy as np
import pytest
from scipy.stats import kendalltau

from gaze_vlm.metrics.tasks import TASK_METRICS, kendall_tau, score_values
from gaze_vlm.tasks import TASKS

pytest.importorskip("pycocoevalcap", reason='word overlap needs pycocoevalcap: pip install "gaze2report[eval]"')


def ranks(order):
    """The place of each thing."""
    return [order.index(thing) for thing in range(len(order))]


def test_kendalls_tau_is_scipys():
    for reference in permutations(range(4)):
        others = list(permutations(range(4)))
        expected = [kendalltau(ranks(other), ranks(reference)).statistic for other in others]
        assert kendall_tau(others, [reference] * len(others)) == pytest.approx(expected)


def test_orders_of_other_things_are_refused():
    for predicted, reference in (([0, 0], [0, 1]), ([0], [0]), ([0, 1, 2], [0, 1])):
        with pytest.raises(ValueError, match="orders of the same 2 or more"):
            kendall_tau([predicted], [reference])


PERFECT = {
    "report": "The heart is large.",
    "vqa": "yes",
    "ground": [(0.1, 0.1, 0.5, 0.5)],
    "keyframe": "The lungs are clear.",
    "trajectory": [(0.1, 0.1, 0.3), (0.8, 0.5, 0.2)],
    "order": [2, 0, 1],
}
WRONG = {
    "report": "Nothing else.",
    "vqa": "no",
    "ground": [(0.6, 0.6, 0.9, 0.9)],
    "keyframe": "Quite other words",
    "trajectory": [(0.9, 0.9, 0.3)],
    "order": [1, 0, 2],
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_metric_that_tells_right_from_wrong_from_none(task):
    reference = PERFECT[task]
    scores = score_values(TASK_METRICS[task].score, [reference, WRONG[task], None], [reference] * 3)
    assert scores[0] == pytest.approx(1)
    assert scores[1] < 0.5
    assert scores[2] == 0


def test_orders_and_next_sentences_are_scored_each_in_its_way():
    scores = score_values(TASK_METRICS["order"].score, [[1, 0], "a b c"], [[0, 1], "a b c"])
    assert scores.tolist() == [-1, 1]


def test_each_prediction_has_a_reference():
    with pytest.raises(ValueError, match="predictions: 1, references: 2"):
        score_values(TASK_METRICS["vqa"].score, ["yes"], ["yes", "no"])
    assert np.array_equal(score_values(TASK_METRICS["vqa"].score, [], []), [])
