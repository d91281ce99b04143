"""Pictures of gaze: sizes, pixels where fixations are, films without gaze, and the animation in time."""

import time

import numpy as np
import pytest
from PIL import Image

from gaze_vlm.scanpath import Scanpath
from gaze_vlm.visualize import (
    HEAT_COLOURS,
    MIN_RADIUS,
    RADIUS,
    animate_scanpath,
    draw_heatmap,
    draw_scanpath,
    heat_layer,
    to_grey,
)

NO_GAZE = Scanpath([], [], [], [])


@pytest.fixture
def film():
    """(200, 300) uint8: a landscape film, dark to bright from left to right."""
    return np.repeat(np.linspace(10, 200, 300).astype(np.uint8)[None], 200, axis=0)


@pytest.fixture
def path():
    return Scanpath.from_relative([0.2, 0.8, 0.5], [0.3, 0.3, 0.8], [0.2, 0.4, 0.6])


def difference(picture, film):
    """(H, W) the largest change of a channel, against the plain film drawn at the same size."""
    plain = np.asarray(to_grey(film, max(picture.size)), int)[..., None]
    return np.abs(np.asarray(picture, int) - plain).max(axis=-1)


def around(changes, x, y, radius=6):
    row, column = round(y * changes.shape[0]), round(x * changes.shape[1])
    return changes[row - radius : row + radius + 1, column - radius : column + radius + 1]


@pytest.mark.parametrize("draw", [draw_scanpath, draw_heatmap])
def test_pictures_keep_the_aspect_ratio_and_take_arrays_and_pil_images(draw, film, path):
    picture = draw(film, path, size=600)
    assert (picture.mode, picture.size) == ("RGB", (600, 400))
    assert draw(Image.fromarray(film).rotate(90, expand=True), path, size=300).size == (200, 300)
    assert draw(Image.fromarray(film).convert("RGB"), path, size=600).tobytes() == picture.tobytes()


@pytest.mark.parametrize("draw", [draw_scanpath, draw_heatmap])
def test_fixations_are_where_they_should_be(draw, film, path):
    changes = difference(draw(film, path, size=600), film)
    for x, y in zip(path.x, path.y, strict=True):
        assert around(changes, x, y).mean() > 20
    for corner in ((0.04, 0.95), (0.96, 0.95), (0.04, 0.05), (0.96, 0.05)):
        assert around(changes, *corner).max() <= 4  # resampling


@pytest.mark.parametrize("draw", [draw_scanpath, draw_heatmap])
@pytest.mark.parametrize("gaze", [NO_GAZE, Scanpath([1.02, -0.1], [0.5, 0.5], [1, 2], [0, 1])])
def test_without_a_fixation_on_the_image_the_film_is_plain(draw, gaze, film):
    assert difference(draw(film, gaze, size=600), film).max() <= 4


def test_the_area_of_a_fixation_is_its_dwell():
    black = np.zeros((200, 200), np.uint8)

    def area(dwell):
        return (difference(draw_scanpath(black, Scanpath([0.5], [0.5], [dwell], [0]), size=800), black) > 10).sum()

    assert area(2.0) / area(1.0) == pytest.approx(2, rel=0.08)
    assert area(0.0) == area(0.01) > 0
    assert area(1.0) == pytest.approx(np.pi * (RADIUS * 800) ** 2, rel=0.1)
    assert area(0.0) == pytest.approx(np.pi * (MIN_RADIUS * 800) ** 2, rel=0.15)


def test_a_saccade_off_the_image_and_back_is_not_drawn(film):
    away = Scanpath.from_relative([0.2, 0.5, 0.8], [0.3, -0.5, 0.3], [0.3, 0.3, 0.3])
    straight = away[np.array([0, 2])]
    assert around(difference(draw_scanpath(film, away, size=600), film), 0.5, 0.3).max() <= 4
    assert around(difference(draw_scanpath(film, straight, size=600), film), 0.5, 0.3).max() > 20


def test_boxes_are_drawn_with_their_name(film):
    boxes = [{"name": "left lower lung zone", "box": [0.5, 0.4, 0.9, 0.9]}]
    changes = difference(draw_scanpath(film, NO_GAZE, boxes=boxes, size=600), film)
    assert around(changes, 0.5, 0.7, 3).max() > 60
    assert around(changes, 0.9, 0.7, 3).max() > 60
    assert changes[160:200, 300:480].max() > 60  # the name
    assert changes[:, :290].max() <= 4


def test_heat_rises_with_dwell_and_is_round_on_a_film_that_is_not_square():
    heat = np.asarray(heat_layer(Scanpath([0.5, 0.1], [0.5, 0.1], [1.0, 0.2], [0, 1]), (300, 200)), int)
    rows, columns = heat.shape[:2]
    assert (rows, columns) == (171, 256)
    assert heat[rows // 2, columns // 2, :3] == pytest.approx(HEAT_COLOURS[-1], abs=2)
    alpha = heat[..., 3]
    assert alpha[rows // 2, columns // 2] > alpha[rows // 10, columns // 10] > alpha[-1, -1] == 0
    wide, high = (alpha[rows // 2] > 100).sum(), (alpha[:, columns // 2] > 100).sum()
    assert abs(wide - high) <= 1


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation_runs_in_real_time(suffix, film, path, tmp_path):
    written = animate_scanpath(film, path, tmp_path / f"reading{suffix}", fps=10, size=240)
    with Image.open(written) as animation:
        assert animation.size == (240, 160)
        assert animation.n_frames == 13  # 1.2 s at 10 frames a second, and the last moment
        assert animation.info["loop"] == 0
        durations, frames = [], []
        for i in range(animation.n_frames):
            animation.seek(i)
            frames.append(np.asarray(animation.convert("RGB"), int))  # some formats tell the duration once decoded
            durations.append(animation.info["duration"])
    assert durations[:-1] == [100] * 12
    assert durations[-1] == 1200
    seen = [np.abs(frame - frames[0]).max(axis=-1) for frame in frames]
    assert around(seen[1], 0.8, 0.3, 4).mean() < 5  # from 0.2 s on
    assert around(seen[3], 0.8, 0.3, 4).mean() > 20
    assert around(seen[5], 0.5, 0.8, 4).mean() < 5  # from 0.6 s on
    assert around(seen[12], 0.5, 0.8, 4).mean() > 20
    assert around(np.abs(frames[12] - 10), 0.2, 0.3, 4).mean() > 20  # the first one stays


def length(path):
    """Frames and seconds of an animation."""
    with Image.open(path) as animation:
        total = 0
        for i in range(animation.n_frames):
            animation.seek(i)
            total += animation.info["duration"]
        return animation.n_frames, total / 1000


def test_an_animation_begins_with_the_first_fixation(film, path, tmp_path):
    late = Scanpath(path.x, path.y, path.duration, path.onset + 30)
    written = [animate_scanpath(film, one, tmp_path / f"{i}.gif", size=64) for i, one in enumerate((path, late))]
    assert length(written[1]) == length(written[0])


def test_a_long_reading_has_few_frames_and_keeps_its_time(film, path, tmp_path):
    slow = Scanpath(path.x, path.y, path.duration * 500, path.onset * 500)
    frames, seconds = length(animate_scanpath(film, slow, tmp_path / "slow.gif", size=32))
    assert frames <= 240
    assert seconds == pytest.approx(600 + 1.2, abs=0.02)


def test_an_animation_is_quickly_made(film, tmp_path):
    reading = Scanpath.from_relative(np.linspace(0.1, 0.9, 20), np.tile([0.3, 0.7], 10), np.full(20, 0.3))
    start = time.process_time()
    animate_scanpath(film.repeat(4, 0).repeat(4, 1), reading, tmp_path / "reading.gif")
    assert time.process_time() - start < 2


def test_names_do_not_cover_one_another(film):
    here = {"name": "Cardiomegaly", "box": [0.1, 0.1, 0.5, 0.5]}
    near = {"name": "Edema", "box": [0.11, 0.11, 0.5, 0.5]}
    both, one = (
        np.asarray(draw_scanpath(film, NO_GAZE, boxes=boxes, size=600), int)
        for boxes in ([here, near], [here, near | {"name": ""}])
    )
    plate = np.s_[58:66, 75:150]  # of Cardiomegaly
    assert np.abs(both[plate] - one[plate]).max() <= 4


def test_gif_hundredths_do_not_drift(film, tmp_path):
    reading = Scanpath.from_relative(np.linspace(0.1, 0.9, 7), np.full(7, 0.5), np.full(7, 0.4))
    written = animate_scanpath(film, reading, tmp_path / "reading.gif", fps=12)
    assert written.stat().st_size < 2_000_000
    with Image.open(written) as animation:
        total = 0
        for i in range(animation.n_frames):
            animation.seek(i)
            total += animation.info["duration"]
    assert total == pytest.approx(2800 + 1200, abs=10)


def test_an_animation_without_gaze_is_one_frame(film, tmp_path):
    with Image.open(animate_scanpath(film, NO_GAZE, tmp_path / "none.gif", size=120)) as animation:
        assert animation.n_frames == 1


def test_what_is_no_film_or_no_animation_is_refused(film, path, tmp_path):
    with pytest.raises(ValueError, match=r"\(H, W\) uint8 .* float64 \(4, 4\)"):
        draw_scanpath(np.zeros((4, 4)), path)
    with pytest.raises(ValueError, match=r"reading\.mp4: .* \.gif or \.webp"):
        animate_scanpath(film, path, tmp_path / "reading.mp4")
