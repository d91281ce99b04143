"""Key frames by hand, against scikit-learn window by window, and what holds of any reading."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN

from gaze_vlm.dictation import fixations_of_sentences, windows_of_sentences
from gaze_vlm.findings import READING_ORDER
from gaze_vlm.keyframes import key_frames, stage_of_text
from gaze_vlm.scanpath import Scanpath


@st.composite
def scanpaths(draw):
    count = draw(st.integers(0, 25))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    centres = rng.random((4, 2))[rng.integers(0, 4, count)]
    x, y = (centres + rng.normal(0, 0.03, (count, 2))).T if count else np.zeros((2, 0))
    return Scanpath.from_relative(x, y, rng.uniform(0, 0.8, count))


def sentences(*spans):
    return [{"text": f"Sentence {number}.", "start": a, "end": b} for number, (a, b) in enumerate(spans)]


SPOKEN = sentences((0.5, 2), (2.5, 5), (6, 9))


def test_two_places_in_one_sentence_by_hand():
    path = Scanpath.from_relative(
        [0.2, 0.9, 0.22, 0.7, 0.71, 1.3], [0.3, 0.9, 0.3, 0.6, 0.6, 0.5], [0.3, 0.1, 0.1, 0.5, 0.3, 5.0]
    )
    first, second = key_frames(path, [{"text": "The heart is large.", "start": 0.0, "end": 2.0}])
    assert first.fixations == (0, 2)  # .3 s + .1 s; the one at .9, .9 is short and alone, the last one off the film
    assert (first.x, first.y) == pytest.approx((0.205, 0.3), abs=1e-6)
    assert first.box == pytest.approx((0.17, 0.27, 0.25, 0.33), abs=1e-6)
    assert (first.onset, first.dwell) == pytest.approx((0.0, 0.4))
    assert second.fixations == (3, 4)
    assert (second.onset, second.dwell) == pytest.approx((0.5, 0.8))
    assert {first.sentence, second.sentence} == {0}
    assert {first.stage, second.stage} == {"C"}


def test_a_long_fixation_is_a_key_frame_by_itself_and_a_short_one_is_not():
    path = Scanpath.from_relative([0.2, 0.8], [0.5, 0.5], [0.39, 0.4])
    assert [frame.fixations for frame in key_frames(path)] == [(1,)]
    path = Scanpath.from_relative([0.2], [0.5], [0.7])  # which is a little less than 0.7 in single precision
    assert len(key_frames(path, min_dwell=0.7)) == 1


def test_a_fixation_is_cut_at_the_windows_edge():
    path = Scanpath.from_relative([0.5], [0.5], [3.0])
    first, second = key_frames(path, window=2.0)
    assert (first.dwell, second.dwell) == pytest.approx((2.0, 1.0))
    assert (first.onset, second.onset) == pytest.approx((0.0, 2.0))
    assert first.fixations == second.fixations == (0,)
    assert first.sentence is None


def test_what_was_seen_before_a_sentence_belongs_to_it_too():
    path = Scanpath.from_relative([0.2, 0.8], [0.5, 0.5], [1.0, 1.0])
    said = sentences((1.5, 2.0))
    assert [frame.fixations for frame in key_frames(path, said)] == [(0,), (1,)]
    assert [frame.fixations for frame in key_frames(path, said, lookback=0.5)] == [(1,)]
    assert key_frames(path, sentences((9, 10)), lookback=1.0) == []


@given(scanpaths(), st.booleans())
def test_frames_hold_what_they_say(path, spoken):
    frames = key_frames(path, SPOKEN if spoken else None)
    order = [(frame.sentence, frame.onset) for frame in frames]
    assert not spoken or order == sorted(order)
    for frame in frames:
        assert list(frame.fixations) == sorted(set(frame.fixations))
        own = path[list(frame.fixations)]
        x1, y1, x2, y2 = frame.box
        assert own.inside.all()
        assert ((own.x >= x1 - 1e-6) & (own.x <= x2 + 1e-6) & (own.y >= y1 - 1e-6) & (own.y <= y2 + 1e-6)).all()
        assert x1 <= frame.x <= x2
        assert y1 <= frame.y <= y2
        assert 0 <= x1 <= x2 <= 1
        assert 0 < frame.dwell <= own.total_duration + 1e-5
    if not spoken and len(path):
        assert sum(frame.dwell for frame in frames) <= path.drop_outside().total_duration + 1e-4


@given(scanpaths())
def test_clusters_are_dbscans(path):
    windows = windows_of_sentences(SPOKEN)
    frames = key_frames(path, SPOKEN)
    for number, (start, end) in enumerate(windows):
        dwell = np.minimum(path.onset.astype(float) + path.duration, end) - np.maximum(path.onset.astype(float), start)
        kept = np.flatnonzero((dwell > 0) & path.inside)
        expected = set()
        if len(kept):
            points = path.to_array()[kept, :2].astype(float)
            labels = DBSCAN(eps=0.05, min_samples=400).fit_predict(points, sample_weight=1000 * dwell[kept])
            expected = {tuple(kept[labels == one].tolist()) for one in set(labels.tolist()) - {-1}}
        assert {frame.fixations for frame in frames if frame.sentence == number} == expected


@given(scanpaths(), st.sampled_from([0.7, 2.0, 5.0]))
def test_windows_of_time_are_sentences_without_lookback_or_words(path, window):
    first = float(path.onset[0]) if len(path) else 0.0
    edges = [first + number * window for number in range(1 + int(25 * 0.8 / window) + 1)]
    silent = [{"text": "", "start": start, "end": end} for start, end in pairwise(edges)]
    spoken = key_frames(path, silent, lookback=0)
    assert [replace(frame, sentence=None) for frame in spoken] == key_frames(path, window=window)


@given(scanpaths(), st.floats(0, 8))
def test_no_sentence_has_more_dwell_than_its_window(path, lookback):
    frames = key_frames(path, SPOKEN, lookback=lookback)
    for number, part in enumerate(fixations_of_sentences(path, SPOKEN, lookback=lookback)):
        dwell = [frame.dwell for frame in frames if frame.sentence == number]
        assert sum(dwell) <= part.drop_outside().total_duration + 1e-4
        assert all(seconds > 0.4 - 1e-4 for seconds in dwell)


@given(scanpaths())
def test_a_glance_off_the_image_moves_numbers_and_nothing_else(path):
    away = np.array([[1.2, 0.5, path.onset[0] if len(path) else 0.0, 0.0]], np.float32)
    longer = Scanpath.from_array(np.concatenate([away, path.to_array()]))
    moved = [replace(frame, fixations=tuple(i + 1 for i in frame.fixations)) for frame in key_frames(path, SPOKEN)]
    assert key_frames(longer, SPOKEN) == moved


@given(scanpaths())
def test_a_mirrored_reading_has_mirrored_frames(path):
    path = path.drop_outside()
    frames, mirrored = key_frames(path), key_frames(path.flip_horizontal())
    assert {frame.fixations for frame in frames} == {frame.fixations for frame in mirrored}
    by_fixations = {(frame.fixations, round(frame.onset, 4)): frame for frame in mirrored}
    for frame in frames:
        other = by_fixations[frame.fixations, round(frame.onset, 4)]
        assert other.x == pytest.approx(1 - frame.x, abs=1e-5)
        assert other.box == pytest.approx((1 - frame.box[2], frame.box[1], 1 - frame.box[0], frame.box[3]), abs=1e-5)


def test_nothing_looked_at_gives_nothing():
    empty = Scanpath([], [], [], [])
    assert key_frames(empty) == key_frames(empty, SPOKEN) == []
    assert key_frames(Scanpath.from_relative([2.0], [0.5], [3.0])) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0}, "eps must be a number above 0, got 0"),
        ({"eps": float("inf")}, "eps must be a number above 0, got inf"),
        ({"min_dwell": -1}, "min_dwell must be a number above 0, got -1"),
        ({"min_dwell": float("inf")}, "min_dwell must be a number above 0, got inf"),
        ({"window": 0.0}, "window must be a number above 0"),
        ({"window": float("inf")}, "window must be a number above 0, got inf"),
        ({"margin": -0.1}, "margin must be a number and not negative, got -0.1"),
        ({"margin": float("nan")}, "margin must be a number and not negative, got nan"),
        ({"lookback": float("nan"), "sentences": SPOKEN}, "lookback must be seconds"),
        ({"sentences": sentences((0, 1), (2, float("nan")))}, "sentence 1 must have start and end in seconds, got"),
    ],
)
def test_bad_parameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        key_frames(Scanpath.from_relative([0.5], [0.5], [1.0]), **options)


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("The trachea is midline.", "A"),
        ("Effusion and cardiomegaly.", "B"),
        ("Cardiomegaly and effusion.", "C"),
        ("Hiatal hernia behind the heart.", "D"),
        ("The lungs hide a rib fracture.", "E"),
        ("Spine, heart and lungs.", "E"),
        ("The lungs are clear.", "B"),
        ("Small left pleural effusion.", "B"),
        ("The heart is enlarged.", "C"),
        ("Mediastinal contours are normal.", "C"),
        ("The right hemidiaphragm is elevated.", "D"),
        ("No free air.", "D"),
        ("The bones are intact.", "E"),
        ("Healed rib fracture.", "E"),
        ("Endotracheal tube in place.", "F"),
        ("A pacemaker is seen.", "F"),
        ("No acute cardiopulmonary process.", None),
        ("Thank you.", None),
    ],
)
def test_the_stage_of_a_sentence(text, stage):
    assert stage_of_text(text) == stage


def test_without_words_the_place_tells_the_stage():
    path = Scanpath.from_relative([0.5, 0.85, 0.5], [0.08, 0.78, 0.97], [1.0, 1.0, 1.0])
    assert [frame.stage for frame in key_frames(path)] == ["A", "D", None]


def test_every_finding_of_the_order_has_its_stage():
    for stage in READING_ORDER:
        for finding in stage.findings:
            name = {"Hernia": "hiatal hernia"}.get(finding, finding.lower())
            assert stage_of_text(f"There is {name}.") == stage.letter, finding
