"""Image, boxes and gaze go through one view together."""

from random import Random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from gaze_vlm.scanpath import Scanpath
from gaze_vlm.training.views import View

SIZE = 128


@st.composite
def views(draw) -> View:
    sides = [draw(st.floats(0.3, 1.0)) for _ in range(2)]
    left, top = (draw(st.floats(0, 1 - side)) for side in sides)
    return View((left, top, left + sides[0], top + sides[1]), draw(st.booleans()))


def film_with_dot(x: float, y: float, width: int, height: int) -> Image.Image:
    film = Image.new("L", (width, height))
    radius = 0.02 * max(width, height)
    ImageDraw.Draw(film).ellipse(
        (x * width - radius, y * height - radius, x * width + radius, y * height + radius), 255
    )
    return film


def centre_of_light(image: Image.Image) -> tuple[float, float]:
    """Where the brightness lies, 0..1."""
    light = np.asarray(image, np.float64)
    ys, xs = (np.arange(side) + 0.5 for side in light.shape)
    total = light.sum()
    return (light.sum(0) @ xs) / total / light.shape[1], (light.sum(1) @ ys) / total / light.shape[0]


def whole(x: float, y: float, view: View) -> bool:
    """Is the dot at x, y wholly in the view?"""
    x1, y1, x2, y2 = view.box
    return x1 + 0.05 < x < x2 - 0.05 and y1 + 0.05 < y < y2 - 0.05


@settings(max_examples=80, deadline=None)
@given(views(), st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.sampled_from([(200, 200), (260, 180), (150, 240)]))
def test_a_bright_dot_at_a_fixation_is_where_the_view_says(view, x, y, size):
    assume(whole(x, y, view))
    film = film_with_dot(x, y, *size)
    scanpath = Scanpath.from_relative([x], [y], [0.3], image_size=size)
    seen = view.image(film, SIZE)
    moved = view.scanpath(scanpath)
    assert seen.size == (SIZE, SIZE)
    # a dot is drawn to whole pixels: one pixel of the film, magnified by the crop
    pixel = 1.5 / min(size) / min(view.box[2] - view.box[0], view.box[3] - view.box[1])
    assert centre_of_light(seen) == pytest.approx((moved.x[0], moved.y[0]), abs=pixel)
    assert moved.duration == pytest.approx([0.3])


@settings(max_examples=80, deadline=None)
@given(views(), st.floats(0.1, 0.9), st.floats(0.1, 0.9))
def test_a_box_around_the_fixation_stays_around_it(view, x, y):
    assume(whole(x, y, view))
    box = view.box_of([x - 0.04, y - 0.03, x + 0.04, y + 0.03])
    moved = view.scanpath(Scanpath.from_relative([x], [y], [0.3]))
    assert 0 <= box[0] < box[2] <= 1
    assert 0 <= box[1] < box[3] <= 1
    assert (box[0] + box[2]) / 2 == pytest.approx(float(moved.x[0]), abs=1e-5)
    assert (box[1] + box[3]) / 2 == pytest.approx(float(moved.y[0]), abs=1e-5)
    assert box[2] - box[0] == pytest.approx(0.08 / (view.box[2] - view.box[0]))


def test_the_whole_film_is_the_plain_view():
    film = Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIZE, SIZE), np.uint8))
    view = View()
    assert np.array_equal(view.image(film, SIZE), film)
    assert view.box_of([0.1, 0.2, 0.3, 0.4]) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    scanpath = Scanpath.from_relative([0.1, 0.9], [0.2, 0.4], [0.1, 0.2])
    assert view.scanpath(scanpath) == scanpath


def test_mirrored_left_is_right():
    film = film_with_dot(0.2, 0.6, 200, 200)
    view = View(flip=True)
    assert centre_of_light(view.image(film, SIZE)) == pytest.approx((0.8, 0.6), abs=0.01)
    assert view.box_of([0.1, 0.5, 0.3, 0.7]) == pytest.approx([0.7, 0.5, 0.9, 0.7])
    assert view.scanpath(Scanpath.from_relative([0.2], [0.6], [1.0])).x == pytest.approx([0.8])


def test_a_crop_is_cut_before_it_is_mirrored():
    view = View((0.0, 0.0, 0.5, 1.0), flip=True)
    assert view.scanpath(Scanpath.from_relative([0.1], [0.5], [1.0])).x == pytest.approx([0.8])
    assert view.box_of([0.0, 0.0, 0.1, 1.0]) == pytest.approx([0.8, 0.0, 1.0, 1.0])


def test_a_box_that_reaches_out_is_cut_and_one_outside_is_none():
    view = View((0.25, 0.25, 0.75, 0.75))
    assert view.box_of([0.0, 0.0, 0.5, 0.5]) == pytest.approx([0.0, 0.0, 0.5, 0.5])
    assert view.box_of([0.8, 0.3, 0.9, 0.5]) is None
    assert view.box_of([0.3, 0.0, 0.5, 0.2]) is None
    assert view.box_of([0.75, 0.3, 0.9, 0.5]) is None, "it only touches"


def test_fixations_outside_are_kept_off_the_image():
    moved = View((0.5, 0.0, 1.0, 1.0)).scanpath(Scanpath.from_relative([0.25, 0.75], [0.5, 0.5], [0.2, 0.3]))
    assert moved.x == pytest.approx([-0.5, 0.5])
    assert moved.inside.tolist() == [False, True]


def test_random_views_lie_on_the_film_and_repeat_with_their_seed():
    rng = Random(1)
    some = [View.random(rng, min_side=0.8) for _ in range(300)]
    again = Random(1)
    assert some == [View.random(again, min_side=0.8) for _ in range(300)]
    for view in some:
        x1, y1, x2, y2 = view.box
        assert 0 <= x1 < x2 <= 1
        assert 0 <= y1 < y2 <= 1
        assert min(x2 - x1, y2 - y1) >= 0.8 - 1e-9
    assert 90 < sum(view.flip for view in some) < 210
    assert not any(View.random(Random(seed), flip=0).flip for seed in range(50))
    assert all(View.random(Random(seed), flip=1).flip for seed in range(50))
