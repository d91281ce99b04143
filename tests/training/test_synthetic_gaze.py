import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaze_vlm import Scanpath
from gaze_vlm.training.synthetic_gaze import bend_into_boxes

side = st.tuples(st.floats(0, 0.9), st.floats(0.02, 0.1)).map(lambda one: (one[0], one[0] + one[1]))
box = st.tuples(side, side).map(lambda one: (one[0][0], one[1][0], one[0][1], one[1][1]))


def path(count, seed=0):
    x, y, duration = np.random.default_rng(seed).random((3, count))
    return Scanpath.from_relative(x, y, duration)


@given(boxes=st.lists(box, min_size=1, max_size=3), count=st.integers(0, 8), keep=st.integers(0, 3))
def test_all_but_the_kept_end_in_a_box(boxes, count, keep):
    before = path(count)
    after = bend_into_boxes(before, boxes, keep)
    assert np.array_equal(after.x[:keep], before.x[:keep]) and np.array_equal(after.y[:keep], before.y[:keep])
    assert np.array_equal(after.onset, before.onset) and np.array_equal(after.duration, before.duration)
    for x, y in zip(after.x[keep:], after.y[keep:], strict=True):
        assert any(x1 < x < x2 and y1 < y < y2 for x1, y1, x2, y2 in np.float32(boxes))


def test_each_fixation_goes_to_the_nearest_box_and_keeps_its_side_of_it():
    before = Scanpath.from_relative([0.5, 0.2, 0.4, 0.9, 0.6], [0.5, 0.3, 0.6, 0.3, 0.8], [0.3] * 5)
    left, right = (0.1, 0.2, 0.3, 0.4), (0.7, 0.6, 0.9, 0.8)
    after = bend_into_boxes(before, [left, right])
    assert (after.x[1:3] < 0.3).all() and (after.x[3:] > 0.7).all()
    assert after.x[1] < after.x[2] and after.x[4] < after.x[3]
    assert after.y[1] < after.y[2] and after.y[3] < after.y[4]


def test_no_box_is_an_error():
    with pytest.raises(ValueError, match="there is none"):
        bend_into_boxes(path(3), [])
