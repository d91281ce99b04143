"""Sentences with their times, the fixations of each, and fixations out of raw gaze."""

import importlib.util
import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaze_vlm.data.timing import fixations_from_gaze
from gaze_vlm.dictation import fixations_of_sentences, sentences_of
from gaze_vlm.scanpath import Scanpath

needs_pymovements = pytest.mark.skipif(
    importlib.util.find_spec("pymovements") is None, reason="needs pymovements (the extra gaze)"
)


def spoken(text, first=0.0):
    """One piece a word, half a second each."""
    return [
        {"text": word, "start": first + i / 2, "end": first + i / 2 + 0.4} for i, word in enumerate(text.split(" "))
    ]


# ---- sentences


def test_words_become_sentences_and_the_dictated_stop_takes_no_time():
    found = sentences_of(spoken("the heart , and / or hilum . clear ."))
    assert found == [
        {"text": "the heart, and / or hilum.", "start": 0.0, "end": 3.4},
        {"text": "clear.", "start": 4.0, "end": 4.4},
    ]


def test_phrases_that_bring_their_stop_are_joined_up_to_it():
    phrases = [("The lungs", 0, 1), ("are clear.", 1, 2), (" No effusion. ", 3, 4), ("Normal", 5, 6)]
    found = sentences_of([{"text": text, "start": start, "end": end} for text, start, end in phrases])
    assert [(item["text"], item["start"], item["end"]) for item in found] == [
        ("The lungs are clear.", 0, 2),
        ("No effusion.", 3, 4),
        ("Normal", 5, 6),
    ]


def test_a_decimal_that_the_release_took_apart_is_one_number_again():
    assert [item["text"] for item in sentences_of(spoken("a 2 .5 cm nodule ."))] == ["a 2.5 cm nodule."]


@pytest.mark.parametrize(("text", "count"), [(". .", 0), ("clear . .", 1), (", clear", 1), ("no stop at all", 1)])
def test_stops_alone_are_no_sentence_and_no_word_is_lost_for_want_of_one(text, count):
    found = sentences_of(spoken(text))
    assert len(found) == count
    assert all(item["start"] == (0.5 if text.startswith(",") else 0.0) for item in found)


def test_nothing_dictated_is_no_sentence():
    assert sentences_of([]) == []


@given(st.lists(st.lists(st.sampled_from(["heart", "no", "2", "a"]), min_size=1, max_size=5), max_size=5))
def test_transcription_comes_back_from_its_words(sentences):
    written = " ".join(f"{' '.join(words)}." for words in sentences)
    found = sentences_of(spoken(written.replace(".", " ."))) if written else []
    assert " ".join(item["text"] for item in found) == written
    assert [item["start"] for item in found] == sorted(item["start"] for item in found)
    assert all(item["start"] < item["end"] for item in found)


# ---- the fixations of a sentence

SENTENCES = [
    {"text": f"{i}.", "start": start, "end": end} for i, (start, end) in enumerate([(8, 10), (11, 13), (30, 31)])
]
EVERY_SECOND = Scanpath.from_relative([0.5] * 40, [0.5] * 40, [1.0] * 40, np.arange(40) - 2.0)


def window(scanpath):
    return float(scanpath.onset[0]), float(scanpath.onset[-1] + scanpath.duration[-1])


@pytest.mark.parametrize(
    ("options", "windows"),
    [
        ({}, [(3, 10), (8, 13), (25, 31)]),
        ({"lookback": 0}, [(8, 10), (11, 13), (30, 31)]),
        ({"lookback": math.inf}, [(-2, 10), (8, 13), (11, 31)]),
        ({"not_before": "end"}, [(3, 10), (10, 13), (25, 31)]),
        ({"lookback": math.inf, "not_before": "end"}, [(-2, 10), (10, 13), (13, 31)]),
        ({"lookback": 0.5}, [(7.5, 10), (10.5, 13), (29.5, 31)]),
    ],
)
def test_the_window_of_a_sentence(options, windows):
    assert [window(part) for part in fixations_of_sentences(EVERY_SECOND, SENTENCES, **options)] == windows


def test_the_window_of_a_sentence_that_starts_inside_the_one_before_holds_all_of_it():
    overlapping = [{"text": "a.", "start": 5, "end": 9}, {"text": "b.", "start": 7, "end": 12}]
    parts = fixations_of_sentences(EVERY_SECOND, overlapping, lookback=0, not_before="end")
    assert [window(part) for part in parts] == [(5, 9), (7, 12)]


def test_a_sentence_without_a_glance_is_empty_and_there_is_one_part_a_sentence():
    parts = fixations_of_sentences(EVERY_SECOND[:3], SENTENCES)
    assert [len(part) for part in parts] == [0, 0, 0]
    assert fixations_of_sentences(EVERY_SECOND, []) == []


timed = st.lists(st.tuples(st.floats(0, 4), st.floats(0.1, 4)), max_size=6)


@given(words=timed, glances=timed, lookback=st.floats(0, 8))
def test_windows_follow_the_published_rule(words, glances, lookback):
    """Written down as loops over one fixation and one sentence, after the formula of the 2023 paper's own code."""
    sentences, clock = [], 0.0
    for pause, length in words:
        sentences.append({"text": "x.", "start": clock + pause, "end": clock + pause + length})
        clock += pause + length
    onset, clock = [], -1.0
    for pause, length in glances:
        onset.append(clock + pause)
        clock += pause + length
    scanpath = Scanpath.from_relative([0.5] * len(glances), [0.5] * len(glances), [g for _, g in glances], onset)
    parts = fixations_of_sentences(scanpath, sentences, lookback=lookback)
    for i, (sentence, part) in enumerate(zip(sentences, parts, strict=True)):
        opens = sentence["start"] - lookback
        if i:
            opens = max(opens, sentences[i - 1]["start"])
        seconds = 0.0
        for start, (_, length) in zip(onset, glances, strict=True):
            seconds += max(0.0, min(start + length, sentence["end"]) - max(start, opens))
        assert part.total_duration == pytest.approx(seconds, abs=1e-3)


@pytest.mark.parametrize("options", [{"lookback": -1}, {"lookback": math.nan}, {"not_before": "middle"}])
def test_a_window_that_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        fixations_of_sentences(EVERY_SECOND, SENTENCES, **options)


# ---- fixations of raw gaze

SIZE, PIXELS_PER_DEGREE = (2544, 3056), 90.0
PLACES = [(0.2, 0.3), (0.6, 0.35), (1.05, 0.8)]  # the last one off the image
LENGTHS = [0.25, 0.4, 0.15]


def recording(rate=1000, noise=0.03, seed=0, first=-0.8):
    """Seconds and positions of an eye that rests at `PLACES` with a saccade of 40 ms between; noise in degrees."""
    rng, path = np.random.default_rng(seed), []
    for i, (place, length) in enumerate(zip(PLACES, LENGTHS, strict=True)):
        if i:
            path.append(np.linspace(PLACES[i - 1], place, round(0.04 * rate) + 2)[1:-1])
        path.append(np.tile(place, (round(length * rate), 1)))
    path = np.concatenate(path) + rng.normal(0, noise * PIXELS_PER_DEGREE, (sum(map(len, path)), 2)) / SIZE
    return first + np.arange(len(path)) / rate, path[:, 0], path[:, 1]


def found_in(gaze, **options):
    options = {"image_size": SIZE, "pixels_per_degree": PIXELS_PER_DEGREE} | options
    return fixations_from_gaze(*gaze, **options)


@needs_pymovements
@pytest.mark.parametrize(("method", "noise", "rate"), [("idt", 0.03, 1000), ("ivt", 0.002, 1000), ("idt", 0.03, 250)])
def test_fixations_are_found_where_and_when_the_eye_rested(method, noise, rate):
    scanpath = found_in(recording(rate, noise), method=method)
    assert len(scanpath) == len(PLACES)
    assert np.abs(np.stack([scanpath.x, scanpath.y], 1) - PLACES).max() < 0.01
    assert scanpath.duration == pytest.approx(LENGTHS, abs=0.03)
    assert scanpath.onset == pytest.approx([-0.8, -0.51, -0.07], abs=0.02)
    assert scanpath.image_size == SIZE


@needs_pymovements
def test_dispersion_is_the_algorithm_of_salvucci_and_goldberg():
    """Against the window written out: grow it while spread in x plus spread in y stays below the threshold."""
    rng = np.random.default_rng(3)
    degrees = np.cumsum(rng.normal(0, 0.06, (900, 2)), axis=0) + 12
    t, least, threshold = np.arange(900) / 250, 25, 1.0
    expected, first = [], 0
    while first + least <= len(degrees):
        end = first + least
        if np.ptp(degrees[first:end], axis=0).sum() > threshold:
            first += 1
            continue
        while end < len(degrees) and np.ptp(degrees[first : end + 1], axis=0).sum() < threshold:
            end += 1
        expected.append((t[first], *degrees[first:end].mean(axis=0)))
        first = end + 1
    x, y = (degrees * PIXELS_PER_DEGREE / SIZE).T
    scanpath = found_in((t, x, y), threshold=threshold)
    assert len(scanpath) == len(expected) > 3
    found = np.stack([scanpath.onset, scanpath.x * SIZE[0] / 90, scanpath.y * SIZE[1] / 90], axis=1)
    assert found[:-1] == pytest.approx(np.array(expected)[:-1], abs=1e-4)


@needs_pymovements
@pytest.mark.filterwarnings("error")  # NumPy's, where samples that are NaN are averaged
@pytest.mark.parametrize("method", ["idt", "ivt"])
def test_a_blink_ends_a_fixation(method):
    t, x, y = recording(noise=0.002)
    blink = (t > -0.4) & (t < -0.22)
    x[blink] = y[blink] = np.nan
    scanpath = found_in((t, x, y), method=method)
    assert len(scanpath) == 4
    assert scanpath.onset[2] == pytest.approx(-0.22, abs=0.01)
    assert np.isfinite(scanpath.to_array()).all()


@needs_pymovements
@pytest.mark.filterwarnings("error")
def test_a_recording_may_begin_with_a_blink():
    t, x, y = recording()
    x[:100] = y[:100] = np.nan
    scanpath = found_in((t, x, y))
    assert scanpath.onset == pytest.approx([-0.7, -0.51, -0.07], abs=0.02)


@needs_pymovements
def test_samples_that_are_missing_end_a_fixation_too():
    t, x, y = recording()
    kept = (t < -0.35) | (t > -0.25)
    scanpath = found_in((t[kept], x[kept], y[kept]))
    assert len(scanpath) == 4
    assert (scanpath.onset + scanpath.duration)[1] == pytest.approx(-0.35, abs=0.01)


@needs_pymovements
def test_a_clock_that_is_not_quite_even_is_read():
    t, x, y = recording(rate=60)
    t = np.round(t, 2)  # steps of 10 and of 20 ms
    assert len(found_in((t, x, y))) == len(PLACES)


@needs_pymovements
def test_with_one_pixel_per_degree_thresholds_are_pixels():
    gaze = recording()
    assert found_in(gaze, pixels_per_degree=1.0, threshold=90.0) == found_in(gaze, threshold=1.0)


@needs_pymovements
def test_both_sides_of_the_image_count_in_pixels_of_their_own():
    """A jump of 0.05 is 127 pixels along x and 153 along y: a threshold between them tells the two apart."""
    t, still, jump = np.arange(400) / 1000, np.full(400, 0.5), np.where(np.arange(400) < 200, 0.5, 0.55)
    options = {"pixels_per_degree": 1.0, "threshold": 140.0}
    assert len(found_in((t, jump, still), **options)) == 1
    assert len(found_in((t, still, jump), **options)) == 2


@needs_pymovements
def test_what_is_shorter_than_the_minimum_is_no_fixation():
    assert len(found_in(recording(), minimum_duration=0.2)) == 2
    assert len(found_in(recording(), minimum_duration=2.0)) == 0


@needs_pymovements
@pytest.mark.parametrize("count", [0, 1, 5])
def test_too_few_samples_hold_no_fixation(count):
    t, x, y = recording()
    assert len(found_in((t[:count], x[:count], y[:count]))) == 0


@needs_pymovements
@pytest.mark.filterwarnings("error")
def test_an_eye_that_was_never_found_has_no_fixation():
    t = np.arange(300) / 1000
    assert len(found_in((t, np.full(300, np.nan), np.full(300, np.nan)))) == 0


@needs_pymovements
@pytest.mark.parametrize(
    ("gaze", "options", "words"),
    [
        (([0, 1, 1], [0] * 3, [0] * 3), {}, "sample 2: t 1 s does not lie after 1 s"),
        (([0, math.nan, 1], [0] * 3, [0] * 3), {}, "sample 1"),
        (([0, 1], [0] * 3, [0] * 3), {}, "of one length"),
        (recording(), {"method": "hmm"}, "'hmm'"),
        (recording(), {"threshold": 0}, "above 0"),
        (recording(), {"pixels_per_degree": -1}, "above 0"),
        (recording(), {"minimum_duration": 0}, "above 0"),
    ],
)
def test_what_is_no_recording_is_refused(gaze, options, words):
    with pytest.raises(ValueError, match=words):
        found_in(gaze, **options)


def test_without_pymovements_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymovements.events", None)
    with pytest.raises(ImportError, match=r"gaze2report\[gaze\]"):
        found_in(recording())


@needs_pymovements
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.floats(-50, 50))
def test_fixations_move_with_the_clock(seed, shift):
    t, x, y = recording(rate=250, seed=seed)
    here, there = found_in((t, x, y)), found_in((t + shift, x, y))
    assert there.onset == pytest.approx(here.onset + shift, abs=1e-3)
    assert there.x == pytest.approx(here.x)
