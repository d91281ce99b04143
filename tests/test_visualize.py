"""Pictures of gaze: sizes, pixels where fixations are, films without gaze, and the animation in time."""

import sys
import time
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image, ImageFont

from gaze_vlm.animation import BACKGROUND, captions
from gaze_vlm.keyframes import KeyFrame
from gaze_vlm.scanpath import Scanpath
from gaze_vlm.visualize import (
    BOX_COLOUR,
    HEAT_COLOURS,
    MIN_RADIUS,
    RADIUS,
    animate_scanpath,
    draw_attention,
    draw_density,
    draw_heatmap,
    draw_key_frame,
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


def key_frame(*fixations, box=(0.1, 0.2, 0.4, 0.6)):
    return KeyFrame(fixations, x=0.2, y=0.3, box=box, onset=0.0, dwell=1.0)


def test_a_key_frame_shows_the_heat_of_its_own_fixations_and_its_box(film, path):
    picture = draw_key_frame(film, path, key_frame(0, 2))
    changes = difference(picture, film)
    assert around(changes, 0.2, 0.3).mean() > 20
    assert around(changes, 0.5, 0.8).mean() > 20
    assert around(changes, 0.8, 0.3).max() == 0  # that fixation is not of the frame
    line = [picture.getpixel(place) for place in ((30, 80), (120, 80), (75, 40), (75, 120))]  # middles of the sides
    assert np.abs(np.array(line) - BOX_COLOUR).max() < 30
    heat = np.asarray(draw_heatmap(film, path[np.array([0, 2])], size=300), int)
    outside = np.ones(film.shape, bool)
    outside[38:123, 28:123] = False
    assert (np.asarray(picture, int)[outside] == heat[outside]).all()


@pytest.mark.parametrize(
    ("sides", "drawn"), [((150, 100), (150, 100)), ((1500, 2048), (750, 1024)), ((1024, 9), (1024, 9))]
)
def test_a_key_frame_has_the_size_of_its_film_within_limits(sides, drawn, path):
    picture = draw_key_frame(np.zeros(sides[::-1], np.uint8), path, key_frame(1))
    assert (picture.mode, picture.size) == ("RGB", drawn)


@pytest.mark.parametrize("box", [(0.5, 0.5, 0.5, 0.5), (0.2, 0.1, 0.2, 0.9), (0, 0, 1, 1)])
def test_a_box_may_be_a_point_or_the_film(box, film, path):
    assert draw_key_frame(film, path, key_frame(0, box=box)).size == (300, 200)


def test_names_do_not_cover_one_another(film):
    here = {"name": "Cardiomegaly", "box": [0.1, 0.1, 0.5, 0.5]}
    near = {"name": "Edema", "box": [0.11, 0.11, 0.5, 0.5]}
    both, one = (
        np.asarray(draw_scanpath(film, NO_GAZE, boxes=boxes, size=600), int)
        for boxes in ([here, near], [here, near | {"name": ""}])
    )
    plate = np.s_[58:66, 75:150]  # of Cardiomegaly
    assert np.abs(both[plate] - one[plate]).max() <= 4


def test_the_density_of_one_is_its_heat_map(film, path):
    assert draw_density(film, [path], size=300).tobytes() == draw_heatmap(film, path, size=300).tobytes()


def test_in_a_density_every_scanpath_weighs_the_same():
    black = np.zeros((200, 200), np.uint8)
    left, right = (Scanpath.from_relative([x] * 3, [0.5] * 3, [0.3] * 3) for x in (0.25, 0.75))
    slow = Scanpath(left.x, left.y, left.duration * 50, left.onset * 50)
    changes = difference(draw_density(black, [slow, right], size=200), black)
    assert changes[100, 50] == pytest.approx(changes[100, 150], abs=3)
    assert changes[100, 50] > 150
    two_to_one = difference(draw_density(black, [left, slow, right], size=200), black)
    assert two_to_one[100, 150] < two_to_one[100, 50] - 30


@pytest.mark.parametrize("scanpaths", [[], [NO_GAZE], [NO_GAZE, Scanpath([2.0], [0.5], [1.0], [0.0])]])
def test_a_density_without_gaze_is_the_plain_film(scanpaths, film):
    assert difference(draw_density(film, scanpaths, size=600), film).max() <= 4


def test_a_scanpath_without_gaze_does_not_change_a_density(film, path):
    assert draw_density(film, [NO_GAZE, path]).tobytes() == draw_density(film, [path]).tobytes()


# ---- animation

SUFFIXES = [
    ".gif",
    ".webp",
    pytest.param(".mp4", marks=pytest.mark.skipif(not find_spec("av"), reason='pip install "gaze2report[video]"')),
]
BAR = 2  # pixels, of a film of 240
SENTENCES = [
    {"text": "The heart is enlarged.", "start": 0.0, "end": 0.4},
    {"text": "The lungs are clear.", "start": 0.6, "end": 1.2},
]


def panels(picture, film, count, columns):
    """The changes of each panel below its title."""
    rows, width = -(-count // columns), picture.width // columns
    height = picture.height // rows
    top = height - to_grey(film, width).height
    corners = [(n % columns * width, n // columns * height) for n in range(count)]
    return [difference(picture.crop((x, y + top, x + width, y + height)), film) for x, y in corners]


def test_each_map_lies_over_a_film_of_its_own(film):
    left, right = np.zeros((5, 8)), np.zeros((5, 8))
    left[1, 1] = right[3, 6] = 7.0
    picture = draw_attention(
        film, {"left": left, "right": right, "flat": np.ones((2, 2)), "none": np.zeros((3, 3))}, size=300
    )
    assert picture.size == (900, 2 * (200 + 21))
    on_left, on_right, flat, none = panels(picture, film, 4, 3)
    for changes, (x, y), (away_x, away_y) in (
        (on_left, (1.5 / 8, 1.5 / 5), (6.5 / 8, 3.5 / 5)),
        (on_right, (6.5 / 8, 3.5 / 5), (1.5 / 8, 1.5 / 5)),
    ):
        assert around(changes, x, y).min() > 60
        assert around(changes, away_x, away_y).max() <= 4
    assert flat.max() <= 4 and none.max() <= 4
    assert not np.asarray(picture)[221:, 300:].any(), "nothing where no map is left"


def test_panels_share_one_scale_and_maps_have_any(film):
    weak, strong = 1 + np.eye(8), 1 + 30 * np.eye(8)
    together = panels(draw_attention(film, {"weak": weak, "strong": strong}, size=300), film, 2, 2)
    assert together[0].mean() < together[1].mean() / 2
    (alone,) = panels(draw_attention(film, {"weak": weak}, size=300), film, 1, 1)
    assert alone.mean() > together[0].mean(), "by itself it is its own measure"
    assert draw_attention(film, {"weak": weak * 1e-300}).tobytes() == draw_attention(film, {"weak": weak}).tobytes()


def test_names_stand_above_the_panels(film):
    maps = {"Edema": np.ones((2, 2)), "Enlarged Cardiomediastinum of a film, 0.99": np.ones((2, 2))}
    titles = np.asarray(draw_attention(film, maps, size=300))[:21]
    for first in (0, 300):
        lit = np.flatnonzero(titles[:, first : first + 300].max(axis=(0, 2)) > 128)
        assert len(lit) and lit[0] >= 3 and lit[-1] < 297, "in its own panel"
    assert draw_attention(film, {"": np.ones((1, 1))}, size=64).size == (64, 47)


@pytest.mark.parametrize(
    "attention", [np.ones(4), np.ones((0, 3)), np.full((2, 2), np.nan), np.array([[1.0, -1.0]]), np.array([[np.inf]])]
)
def test_what_is_no_map_is_named(attention, film):
    with pytest.raises(ValueError, match="Edema: a map must be"):
        draw_attention(film, {"Edema": attention})
    with pytest.raises(ValueError, match="no map to draw"):
        draw_attention(film, {})


def decoded(path):
    """(frames, H, W, 3) int pictures and (frames,) milliseconds of an animation."""
    if path.suffix == ".mp4":
        import av

        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = list(container.decode(stream))
            pictures = [frame.to_ndarray(format="rgb24") for frame in frames]
            times = [*(frame.pts for frame in frames), stream.duration]
            return np.array(pictures, int), [round(1000 * step * stream.time_base) for step in np.diff(times).tolist()]
    pictures, milliseconds = [], []
    with Image.open(path) as animation:
        assert animation.n_frames == 1 or animation.info["loop"] == 0
        for i in range(animation.n_frames):
            animation.seek(i)
            pictures.append(np.asarray(animation.convert("RGB"), int))
            milliseconds.append(animation.info["duration"])  # some formats tell it once decoded
    return np.array(pictures), milliseconds


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_animation_runs_in_real_time(suffix, film, path, tmp_path):
    frames, milliseconds = decoded(animate_scanpath(film, path, tmp_path / f"reading{suffix}", fps=10, size=240))
    assert frames.shape[1:] == (160 + BAR, 240, 3)
    hold = [100] * 12 if suffix == ".mp4" else [1200]
    assert milliseconds == [100] * 12 + hold  # 1.2 s at 10 frames a second, and the last moment
    seen = np.abs(frames - frames[0]).max(axis=-1)[:, :160]
    assert around(seen[1], 0.8, 0.3, 4).mean() < 5  # from 0.2 s on
    assert around(seen[2], 0.8, 0.3, 4).mean() > 20
    assert around(seen[5], 0.5, 0.8, 4).mean() < 5  # from 0.6 s on
    assert around(seen[6], 0.5, 0.8, 4).mean() > 20
    assert around(np.abs(frames[12] - 10)[:160], 0.2, 0.3, 4).mean() > 20  # the first one stays


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_animation_ends_with_the_whole_scanpath(suffix, path, tmp_path):
    black = np.zeros((200, 300), np.uint8)
    late = Scanpath(path.x, path.y, path.duration, path.onset * 20)  # the first one has faded before the end
    frames, _ = decoded(animate_scanpath(black, late, tmp_path / f"reading{suffix}", fps=5, size=240))
    whole = np.asarray(draw_scanpath(black, path, size=240), int)
    away = np.abs(frames[:, :160] - whole).mean(axis=(1, 2, 3)) / whole.mean()
    assert away[-1] < 0.3 < 0.5 < away[:60].min()


def test_what_is_looked_at_is_lit_and_grows_and_then_fades(tmp_path):
    black = np.zeros((200, 200), np.uint8)
    reading = Scanpath([0.25, 0.75], [0.5, 0.5], [2.0, 8.0], [0.0, 2.0])
    frames, _ = decoded(animate_scanpath(black, reading, tmp_path / "reading.gif", fps=5, size=200))
    first, second = frames[:, :200, :62], frames[:, :200, 100:]  # no saccade in either
    white = [(half.min(axis=-1) > 230).sum(axis=(1, 2)) for half in (first, second)]
    assert white[0][2] > 2 * white[0][12]  # its number is white too
    assert white[1][8] == 0 < white[1][12]
    area = (first.max(axis=-1) > 40).sum(axis=(1, 2))
    assert area[8] > 1.5 * area[0] > 0
    strength = first.sum(axis=(1, 2, 3))
    assert strength[11] > strength[20] > strength[30] > 0
    assert strength[37] == 0  # 7.4 s: it ended at 2 s and fades within 5
    assert strength[-1] > strength[11] / 2  # the whole scanpath at the end


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_bar_tells_the_time(suffix, film, path, tmp_path):
    frames, _ = decoded(animate_scanpath(film, path, tmp_path / f"reading{suffix}", fps=10, size=240))
    done = (frames[:, 160:].mean(axis=(1, 3)) > 150).sum(axis=1)
    assert done[:13] == pytest.approx(np.arange(13) * 20, abs=4)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_sentence_that_is_said_stands_below(suffix, film, path, tmp_path):
    written = animate_scanpath(film, path, tmp_path / f"a{suffix}", sentences=SENTENCES, fps=10, size=240)
    frames, _ = decoded(written)
    assert frames.shape[1] % 2 == 0
    strip = frames[:, 160 + BAR :]
    white = (strip > 130).all(axis=-1).sum(axis=(1, 2))
    first, blank, second = white[:4], white[4:6], white[6:12]
    assert min(first.min(), second.min()) > 60
    assert blank.max() == white[12:].max() == 0

    def change(i, j):
        return np.abs(strip[i] - strip[j]).mean()

    assert max(change(0, 3), change(6, 11)) < 3 < min(change(3, 4), change(3, 6), change(5, 6))


def test_of_two_sentences_at_a_time_the_later_is_shown(film, tmp_path):
    one, other = {"text": "one", "start": 0, "end": 1}, {"text": "other", "start": 0.5, "end": 0.8}
    strips = [
        decoded(animate_scanpath(film, NO_GAZE, tmp_path / "a.gif", sentences=sentences, fps=10, size=240))[0][:, 162:]
        for sentences in ([one, other], [other, one], [one])
    ]
    assert (strips[0] == strips[1]).all()
    both, alone = strips[0], strips[2]
    assert (both[[0, 4, 8, 9]] == alone[0]).all()
    assert (both[5] == both[7]).all()
    assert (both[5] != alone[0]).any()


def test_the_clock_begins_with_whatever_is_first(film, path, tmp_path):
    late = Scanpath(path.x, path.y, path.duration, path.onset + 30)
    _, plain = decoded(animate_scanpath(film, path, tmp_path / "a.gif", size=64))
    _, moved = decoded(animate_scanpath(film, late, tmp_path / "b.gif", size=64))
    assert moved == plain
    said = [{"text": "normal", "start": 29.0, "end": 32.0}]
    _, spoken = decoded(animate_scanpath(film, late, tmp_path / "c.gif", sentences=said, size=64))
    assert sum(spoken) == 3000 + 1200


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_speed(suffix, film, path, tmp_path):
    slow = Scanpath(path.x, path.y, path.duration * 2, path.onset * 2)
    same = [
        decoded(animate_scanpath(film, scanpath, tmp_path / f"a{suffix}", fps=10, speed=speed, size=64))
        for scanpath, speed in ((path, 1), (slow, 2))
    ]
    assert np.abs(same[0][0] - same[1][0]).mean() < 2  # only fading is on the clock of the reading
    assert same[0][1] == same[1][1]


def test_a_long_reading_has_few_frames_and_keeps_its_time(film, path, tmp_path):
    slow = Scanpath(path.x, path.y, path.duration * 500, path.onset * 500)
    _, milliseconds = decoded(animate_scanpath(film, slow, tmp_path / "slow.gif", size=32))
    assert len(milliseconds) <= 240 + 6 + 1
    assert sum(milliseconds) == pytest.approx(600_000 + 1200, abs=20)


def test_a_short_fixation_of_a_long_reading_is_lit(tmp_path):
    reading = Scanpath([0.2, 0.8, 0.2], [0.5] * 3, [0.5, 0.0, 0.5], [0.0, 300.0, 600.0])
    narrow = np.zeros((32, 400), np.uint8)
    frames, milliseconds = decoded(animate_scanpath(narrow, reading, tmp_path / "a.gif", size=400))
    lit = np.flatnonzero((frames[:-1, :32, 240:].min(axis=-1) > 200).sum(axis=(1, 2)) > 30)
    assert [milliseconds[i] for i in lit] in ([80], [90])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("sides", [(199, 301), (301, 199), (11, 301), (1, 1)])
def test_the_sides_of_an_animation_are_even(suffix, sides, path, tmp_path):
    grey = np.full(sides, 90, np.uint8)
    frames, _ = decoded(animate_scanpath(grey, path, tmp_path / f"a{suffix}", sentences=SENTENCES, fps=2, size=201))
    height, width = frames.shape[1:3]
    assert width % 2 == height % 2 == 0
    assert abs(width - max(1, round(201 * sides[1] / max(sides)))) <= 1
    assert frames[0, 1, 1] == pytest.approx([90] * 3, abs=6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_animation_without_gaze_is_the_film(suffix, film, tmp_path):
    frames, milliseconds = decoded(animate_scanpath(film, NO_GAZE, tmp_path / f"none{suffix}", size=120))
    assert len(frames) == (14 if suffix == ".mp4" else 1)
    assert suffix == ".webp" or sum(milliseconds) == pytest.approx(1200, abs=50)  # a single WebP has no time
    assert difference(Image.fromarray(frames[0][:80].astype(np.uint8)), film)[:70].max() <= 12


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dwell", [0.0, 0.5])
def test_an_animation_of_one_fixation(suffix, dwell, film, tmp_path):
    one = Scanpath([0.2], [0.5], [dwell], [7.0])
    frames, milliseconds = decoded(animate_scanpath(film, one, tmp_path / f"one{suffix}", fps=10, size=120))
    assert sum(milliseconds) == 1000 * max(dwell, 0.1) + 1200
    assert (np.abs(frames[:, 36:45, 20:29] - 45).max(axis=(1, 2, 3)) > 60).all()


def test_an_animation_is_quickly_made(film, tmp_path):
    reading = Scanpath.from_relative(np.linspace(0.1, 0.9, 20), np.tile([0.3, 0.7], 10), np.full(20, 0.3))
    start = time.process_time()
    written = animate_scanpath(film.repeat(4, 0).repeat(4, 1), reading, tmp_path / "reading.gif")
    assert time.process_time() - start < 3
    assert written.stat().st_size < 700_000  # only what changes is written


def test_gif_hundredths_do_not_drift(film, tmp_path):
    reading = Scanpath.from_relative(np.linspace(0.1, 0.9, 7), np.full(7, 0.5), np.full(7, 0.5))
    _, milliseconds = decoded(animate_scanpath(film, reading, tmp_path / "reading.gif", fps=12, size=64))
    assert set(milliseconds[:-1]) == {80, 90}
    assert sum(milliseconds) == 3500 + 1200


def test_a_sentence_is_wrapped_to_the_width_of_the_film():
    text = "There is a small left pleural effusion; " * 5
    (picture,) = captions([text], 300, 15)
    assert picture.size[0] == 300
    columns = np.flatnonzero((np.asarray(picture) > 130).any(axis=0))
    assert 0 < columns[0] < 30
    assert 270 < columns[-1] < 299
    short, blank = captions([text, ""], 300, 15)[0], captions([text, ""], 300, 15)[1]
    assert short.size == blank.size == picture.size
    assert np.ptp(np.asarray(blank)) == 0
    (word,) = captions(["W" * 200], 300, 15)
    assert (np.asarray(word)[:, [0, -1]] == BACKGROUND).all()


def test_letters_that_the_font_lacks_are_refused_or_drawn_with_another(film, path, tmp_path):
    sentences = [{"text": "Normal.", "start": 0, "end": 1}, {"text": "Épanchement", "start": 1, "end": 2}]
    with pytest.raises(ValueError, match="no 'É', which is in 'Épanchement': pass a font"):
        animate_scanpath(film, path, tmp_path / "a.gif", sentences=sentences, size=64)
    assert not (tmp_path / "a.gif").exists()
    with pytest.raises(ValueError, match="no 'É'"):  # Pillow's own font, as a file
        (tmp_path / "own.ttf").write_bytes(ImageFont.load_default(10).path.getvalue())
        animate_scanpath(film, path, tmp_path / "a.gif", sentences=sentences, size=64, font=tmp_path / "own.ttf")
    with pytest.raises(ValueError, match=r"none\.ttf: cannot be read as a font"):
        animate_scanpath(film, path, tmp_path / "a.gif", sentences=sentences, size=64, font=tmp_path / "none.ttf")
    try:
        ImageFont.truetype("DejaVuSans.ttf")
    except OSError:
        pytest.skip("DejaVu Sans is not installed")
    frames, _ = decoded(
        animate_scanpath(film, path, tmp_path / "a.gif", sentences=sentences, size=240, font="DejaVuSans.ttf")
    )
    assert (frames[-2, 162:] > 130).any()


@pytest.mark.parametrize(
    "sentence",
    [
        {"start": 0.0, "end": 1.0},
        {"text": "normal", "start": 0.0},
        {"text": "normal", "start": None, "end": 1.0},
        {"text": "normal", "start": 0.0, "end": float("nan")},
        {"text": "normal", "start": 2.0, "end": 1.0},
        {"text": None, "start": 0.0, "end": 1.0},
    ],
)
def test_a_sentence_that_is_none_is_named(sentence, film, path, tmp_path):
    with pytest.raises(ValueError, match=r"^sentence 1 must have text, and start and end in seconds"):
        animate_scanpath(film, path, tmp_path / "a.gif", sentences=[SENTENCES[0], sentence])


@pytest.mark.parametrize("option", [{"fps": 0}, {"fps": 51}, {"fps": float("nan")}, {"speed": 0}, {"speed": np.inf}])
def test_a_rate_that_is_none_is_named(option, film, path, tmp_path):
    with pytest.raises(ValueError, match=f"{next(iter(option))} must be"):
        animate_scanpath(film, path, tmp_path / "a.gif", **option)


def test_what_is_no_film_or_no_animation_is_refused(film, path, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"\(H, W\) uint8 .* float64 \(4, 4\)"):
        draw_scanpath(np.zeros((4, 4)), path)
    with pytest.raises(ValueError, match=r"reading\.avi: .* \.gif, \.webp or \.mp4"):
        animate_scanpath(film, path, tmp_path / "reading.avi")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'pip install "gaze2report\[video\]"'):
        animate_scanpath(film, path, tmp_path / "reading.mp4")
    assert not list(tmp_path.iterdir())
