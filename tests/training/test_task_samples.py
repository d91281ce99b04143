"""Every task: row -> messages -> the same value again."""

import random

import numpy as np
import pytest

pytest.importorskip("datasets", reason='rows need datasets: pip install "gaze2report[train]"')

from hypothesis import given, settings
from hypothesis import strategies as st

from gaze_vlm.data.schema import row as schema_row
from gaze_vlm.keyframes import key_frames
from gaze_vlm.scanpath import Scanpath
from gaze_vlm.tasks import GAZE_TASKS, TASKS, parse_text
from gaze_vlm.training.rows import join_report
from gaze_vlm.training.sft_data import SftRows
from gaze_vlm.training.task_samples import MAX_FRAMES, MAX_STEPS, draws_of

SHARE = st.floats(-0.25, 1.25, width=32)
WORD = st.text(min_size=1, max_size=8)


@st.composite
def readings(draw) -> dict:
    """A row of the schema, whatever it holds."""
    count = draw(st.integers(0, 12))
    durations = draw(st.lists(st.floats(0, 2, width=32), min_size=count, max_size=count))
    places = draw(st.lists(st.tuples(SHARE, SHARE), min_size=count, max_size=count))
    path = Scanpath.from_relative([x for x, _ in places], [y for _, y in places], durations)
    words, clock = [], 0.0
    for word in draw(st.lists(WORD | st.just("."), max_size=12)):
        words.append({"text": word, "start": clock, "end": clock + 0.5})
        clock += 0.5
    boxes = [
        {"name": draw(st.sampled_from(["Edema", "chest", "right lung"])), "box": list(box), "phrase": phrase}
        for box, phrase in draw(st.lists(st.tuples(st.tuples(*[SHARE] * 4), st.none() | WORD), max_size=5))
    ]
    text = st.none() | WORD
    return schema_row(
        scanpath=draw(st.none() | st.just(path.to_records())),
        transcript=draw(st.none() | st.just(words)),
        boxes=draw(st.none() | st.just(boxes)),
        question=draw(text),
        answer=draw(text),
        prompt=draw(text),
        report={"findings": draw(text), "impression": draw(text), "indication": None, "comparison": None},
    )


@settings(max_examples=1000, deadline=None)
@given(readings(), st.integers(0, 9))
def test_every_task_comes_back(row, seed):
    report = parse_text(join_report(row["report"]))
    assert report.value is None or parse_text(report.value) == report
    for task in TASKS[1:]:
        for draw in draws_of(task, row):
            sample = draw(random.Random(seed), 1)
            if task == "vqa" and parse_text(sample.answer).value is None:
                continue  # an answer without a word, which is the release's
            expected = " ".join(sample.value.split()) if isinstance(sample.value, str) else sample.value
            assert sample.parse(sample.answer) == (expected, None)
            shown = sum(part["type"] == "image" for part in sample.messages[0]["content"])
            assert shown == (1 if sample.frames is None else len(sample.frames))


# ---- what the values are


def dictated(*sentences, **known) -> dict:
    """A reading that rests in a corner of its own for one second during each sentence."""
    corners = np.array([[0.2, 0.2], [0.8, 0.2], [0.2, 0.8], [0.8, 0.8], [0.5, 0.5]])[: len(sentences)]
    x, y = np.repeat(corners, 2, axis=0).T
    path = Scanpath.from_relative(x, y, np.full(len(x), 0.5))
    words = [
        piece
        for number, text in enumerate(sentences)
        for piece in (
            {"text": text, "start": number + 0.1, "end": number + 0.9},
            {"text": ".", "start": number + 0.9, "end": number + 0.95},
        )
    ]
    return schema_row(scanpath=path.to_records(), transcript=words, **known)


def test_a_key_frame_is_told_by_its_sentence_and_shown_as_its_frames():
    row = dictated("The heart is large", "The lungs are clear")
    samples = [draw(random.Random(0), 1) for draw in draws_of("keyframe", row)]
    assert [sample.value for sample in samples] == ["The heart is large.", "The lungs are clear."]
    assert all(frame.sentence == number for number, sample in enumerate(samples) for frame in sample.frames)
    assert draws_of("keyframe", row | {"transcript": None}) == []


def test_a_trajectory_is_the_key_frames_in_their_order():
    row = dictated("One", "Two", "Three", prompt="Edema")
    [draw] = draws_of("trajectory", row)
    sample = draw(random.Random(0), 1)
    frames = key_frames(Scanpath.from_records(row["scanpath"]), None)
    assert len(frames) >= 3
    assert "for edema?" in sample.messages[0]["content"][-1]["text"]
    spoken = [(round(x, 2), round(y, 2)) for x, y, _ in sample.value]
    assert list(dict.fromkeys(spoken)) == [(0.2, 0.2), (0.8, 0.2), (0.2, 0.8)]


def test_of_many_clusters_the_longest_stay():
    x = np.linspace(0, 1, 40)
    path = Scanpath.from_relative(x, x, np.linspace(0.5, 1, 40))
    [draw] = draws_of("trajectory", schema_row(scanpath=path.to_records()))
    assert len(draw(random.Random(0), 1).value) <= MAX_STEPS


def test_an_order_puts_what_is_shuffled_back():
    row = dictated("One", "Two", "Three", "Four", "Five")
    [draw] = draws_of("order", row)
    forms = set()
    for seed in range(60):
        sample = draw(random.Random(seed), 1)
        asked = sample.messages[0]["content"][-1]["text"]
        if sample.frames is not None:
            forms.add("frames")
            shown = [sample.frames[number].onset for number in sample.value]
            assert shown == sorted(shown)
            assert len(shown) <= MAX_FRAMES
        elif isinstance(sample.value, list):
            forms.add("sentences")
            names = ["One.", "Two.", "Three.", "Four.", "Five."]
            places = sorted(names, key=asked.index)
            assert [places[number] for number in sample.value] == names
        else:
            forms.add("next")
            assert sample.value in asked or sample.value in ("One.", "Two.", "Three.", "Four.", "Five.")
    assert forms == {"frames", "sentences", "next"}


def test_boxes_of_a_phrase_are_asked_for_together():
    boxes = [
        {"name": "Edema", "box": [0.5, 0.5, 0.7, 0.7], "phrase": None},
        {"name": "Edema", "box": [0.1, 0.1, 0.2, 0.2], "phrase": None},
        {"name": "chest", "box": [0, 0, 1, 1], "phrase": None},
        {"name": "Pneumonia", "box": [0, 0, 0.5, 2], "phrase": "patchy opacity"},
        {"name": "Mass", "box": [0.5, 0.5, 0.5001, 0.9], "phrase": None},
    ]
    samples = [draw(random.Random(0), 1) for draw in draws_of("ground", schema_row(boxes=boxes))]
    assert [(sample.messages[0]["content"][-1]["text"], sample.value) for sample in samples] == [
        ("Where is this: edema?", [(0.1, 0.1, 0.2, 0.2), (0.5, 0.5, 0.7, 0.7)]),
        ("Where is this: patchy opacity?", [(0, 0, 0.5, 1)]),
    ]


# ---- in training data


def test_all_tasks_are_drawn_with_their_films_and_without_the_gaze_that_is_their_answer(make_rows, make_row):
    known = dictated("The heart is large", "The lungs are clear")
    box = {"name": "Edema", "box": [0.1, 0.1, 0.5, 0.5]}
    full = {"shape": "box", "certainty": 1.0, "phrase": None, "annotator": "a"}
    row = make_row(
        0,
        scanpath=known["scanpath"],
        transcript=known["transcript"],
        boxes=[box | full],
        question="Is there edema?",
        answer="yes",
    )
    rows = SftRows(make_rows(row), tasks=dict.fromkeys(TASKS, 1.0), gaze={"given": 1}, training=False)
    seen = set()
    for place in range(len(rows)):
        task, drawn = rows.item(place).task, rows.draw(place)
        seen.add(task)
        asked = sum(part["type"] == "image" for part in drawn["prompt"][0]["content"])
        assert len(drawn["images"]) == len(drawn["fixations"]) == asked
        assert all(image.mode == "RGB" for image in drawn["images"])
        if task in GAZE_TASKS:
            assert drawn["gaze"] == "none"
            assert drawn["fixations"] == [None] * asked
        else:
            assert drawn["gaze"] == "given"
        if task == "keyframe":
            film = np.asarray(rows.films[0]["image"].convert("RGB"), int)
            assert np.abs(np.asarray(drawn["images"][0], int) - film).max() > 20  # heat is drawn over it
    assert seen == set(TASKS)


def test_labels_are_asked_when_told_to(make_rows, make_row):
    def found(name, certainty):
        return [{"name": name, "certainty": certainty, "label": None, "grade": None}]

    data = make_rows(make_row(0, findings=found("Edema", 1.0)), make_row(1, findings=found("Edema", 0.0)))
    rows = SftRows(data, tasks={"vqa": 1}, gaze={"none": 1}, ask_labels=True, training=False)
    asked = {(rows.item(place).row, rows.sample(place).answer) for place in range(len(rows))}
    assert {(0, "yes"), (1, "no"), (0, "edema"), (1, "none")} <= asked
    with pytest.raises(ValueError, match="no row can be used for the task vqa"):
        SftRows(data, tasks={"vqa": 1}, gaze={"none": 1})
