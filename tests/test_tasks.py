"""What a film and its findings become in a chat."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaze_vlm.findings import FINDINGS, NO_FINDING
from gaze_vlm.tasks import (
    MAX_STEPS,
    REPORT_INSTRUCTION,
    TASKS,
    ground_messages,
    keyframe_messages,
    next_messages,
    order_messages,
    parse_boxes,
    parse_order,
    parse_text,
    parse_trajectory,
    report_messages,
    trajectory_messages,
    vqa_messages,
    write_boxes,
    write_trajectory,
)

IMAGE = {"type": "image"}


def asked(messages: list[dict]) -> str:
    (text,) = (part["text"] for part in messages[0]["content"] if part["type"] == "text")
    return text


def test_the_film_alone_is_asked_about_when_nothing_is_known():
    assert report_messages() == [
        {"role": "user", "content": [IMAGE, {"type": "text", "text": REPORT_INSTRUCTION}]},
    ]


@pytest.mark.parametrize(
    ("findings", "said"),
    [
        ([], " Findings: none."),
        ((), " Findings: none."),
        (["Edema"], " Findings: edema."),
        (["Cardiomegaly", "Pleural Effusion"], " Findings: cardiomegaly, pleural effusion."),
    ],
)
def test_known_findings_are_named_and_none_differs_from_unknown(findings, said):
    assert asked(report_messages(findings)) == REPORT_INSTRUCTION + said


def test_findings_keep_their_order():
    names = [name for name in FINDINGS if name != NO_FINDING]
    assert asked(report_messages(names)) != asked(report_messages(names[::-1]))


def test_the_answer_is_the_assistant_s():
    messages = report_messages(["Edema"], "There is edema.")
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[:1] == report_messages(["Edema"])
    assert messages[1]["content"] == [{"type": "text", "text": "There is edema."}]


def test_an_empty_report_is_an_answer_too():
    assert report_messages(report="")[-1] == {"role": "assistant", "content": [{"type": "text", "text": ""}]}


def test_one_image_goes_in_front_of_the_text():
    for messages in (report_messages(), report_messages(["Edema"]), report_messages(report="Normal.")):
        parts = [part["type"] for message in messages for part in message["content"]]
        assert parts.count("image") == 1
        assert parts[0] == "image"


def test_messages_are_new_each_time():
    first = report_messages()
    first[0]["content"].clear()
    assert report_messages()[0]["content"]


def test_report_is_a_task():
    assert "report" in TASKS


# ---- GazeX: places, trajectories and orders as text

THOUSANDTHS = st.integers(0, 1000)
EDGES = st.lists(THOUSANDTHS, min_size=2, max_size=2, unique=True).map(sorted)
BOX = st.tuples(EDGES, EDGES).map(lambda edges: (edges[0][0], edges[1][0], edges[0][1], edges[1][1]))
STEP = st.tuples(THOUSANDTHS, THOUSANDTHS, st.integers(0, 999_999))
WORDS = st.text(max_size=60).filter(lambda text: parse_text(text).value is not None)
MANY = settings(max_examples=1000, deadline=None)


def answered(messages: list[dict]) -> str:
    assert [message["role"] for message in messages] == ["user", "assistant"]
    return messages[1]["content"][0]["text"]


def places(messages: list[dict]) -> int:
    return sum(part["type"] == "image" for part in messages[0]["content"])


@MANY
@given(st.lists(BOX, max_size=5), WORDS)
def test_boxes_come_back(boxes, phrase):
    boxes = [tuple(edge / 1000 for edge in box) for box in boxes]
    messages = ground_messages(phrase, boxes)
    assert parse_boxes(answered(messages)) == (boxes, None)
    assert messages[:1] == ground_messages(phrase)


@MANY
@given(st.lists(STEP, min_size=1, max_size=MAX_STEPS), st.none() | WORDS)
def test_trajectories_come_back(steps, finding):
    steps = [(x / 1000, y / 1000, ticks / 100) for x, y, ticks in steps]
    messages = trajectory_messages(steps, finding=finding)
    assert parse_trajectory(answered(messages)) == (steps, None)
    assert messages[:1] == trajectory_messages(finding=finding)


@MANY
@given(st.integers(1, MAX_STEPS).flatmap(lambda count: st.permutations(range(count))), st.data())
def test_orders_come_back(order, data):
    order = list(order)
    by_frames = order_messages(len(order), order)
    assert parse_order(answered(by_frames), len(order)) == (order, None)
    assert places(by_frames) == len(order)
    sentences = data.draw(st.lists(WORDS, min_size=len(order), max_size=len(order)))
    by_sentences = order_messages(sentences, order)
    assert parse_order(answered(by_sentences), len(order)) == (order, None)
    assert places(by_sentences) == 1


@MANY
@given(WORDS, st.lists(WORDS, max_size=3), st.integers(1, 4))
def test_sentences_answers_and_reports_come_back(text, said, images):
    line = " ".join(text.split())
    for messages, shown in (
        (report_messages(None, text), 1),
        (vqa_messages("Is there edema?", text), 1),
        (keyframe_messages(text, frames=images), images),
        (next_messages(said, text), 1),
    ):
        assert parse_text(answered(messages)) == (line, None)
        assert places(messages) == shown


def test_parsers_never_raise():
    rng = random.Random(0)
    pieces = [
        "<box>",
        "</box>",
        "<gaze>",
        "</gaze>",
        "none",
        ",",
        ";",
        "-",
        ".",
        " ",
        "\n",
        "1000",
        "1001",
        "0",
        "٣",
        "²",
    ]
    pieces += ["7", "99999999999", "e9", "nan", "\x00", "é", "\ud800", "yes", "The lungs are clear."]
    parsers = (parse_text, parse_boxes, parse_trajectory, lambda text: parse_order(text, 3))
    read = 0
    for _ in range(100_000):
        text = "".join(rng.choices(pieces, k=rng.randrange(12)))
        for parser in parsers:
            value, reason = parser(text)
            assert (value is None) == (reason is not None)
            read += value is not None
    assert read > 1000  # some of it is an answer


@pytest.mark.parametrize(
    ("parser", "answer", "reason"),
    [
        (parse_boxes, "", "no box at ''"),
        (parse_boxes, "right lung", "no box at 'right lung'"),
        (parse_boxes, "<box>1,2,3</box>", "no box"),
        (parse_boxes, "<box>1,2,3,4</box> and more", "no box at 'and more'"),
        (parse_boxes, "<box>1,2,3,1001</box>", "lies off the image"),
        (parse_boxes, "<box>5,2,5,4</box>", "<box>5,2,5,4</box> has no area"),
        (parse_boxes, "<box>1\n2\n3,5,400,600</box>", "no box at"),
        (parse_boxes, "<bo x>1,2,3,4</box>", "no box at"),
        (parse_boxes, "n o\nn e..", "no box at"),
        (parse_trajectory, "<ga ze>1,2,3</gaze>", "no <gaze>"),
        (parse_trajectory, "<gaze>1 0 0,2,3</gaze>", "step 1 is no x,y,t but '1 0 0,2,3'"),
        (lambda text: parse_order(text, 3), "1, 2, 3...", "no numbers"),
        (parse_trajectory, "<gaze></gaze>", "step 1 is no x,y,t"),
        (parse_trajectory, "<gaze>1,2,3", "no <gaze>"),
        (parse_trajectory, "<gaze>1,2,3;4,5</gaze>", "step 2 is no x,y,t but '4,5'"),
        (parse_trajectory, "<gaze>1,1002,3</gaze>", "step 1 lies off the image"),
        (parse_trajectory, f"<gaze>{';'.join(['1,2,3'] * (MAX_STEPS + 1))}</gaze>", "65 steps are more than 64"),
        (lambda text: parse_order(text, 3), "1, 2", "each of 1 to 3 once"),
        (lambda text: parse_order(text, 2), "1, 1", "each of 1 to 2 once"),
        (lambda text: parse_order(text, 2), "first, second", "no numbers"),
        (parse_text, " . ", "no word"),
    ],
)
def test_what_is_no_answer_is_none_with_the_reason(parser, answer, reason):
    value, why = parser(answer)
    assert value is None
    assert reason in why


def test_what_lies_off_the_image_is_cut_to_it():
    assert write_boxes([(-0.2, 0.5, 1.4, 0.75)]) == "<box>0,500,1000,750</box>"
    assert write_trajectory([(-0.1, 1.2, 0.3333)]) == "<gaze>0,1000,33</gaze>"


def test_blanks_that_a_tokenizer_puts_around_marks_do_not_count():
    assert parse_boxes(" <box> 100 ,200, 300,\n400 </box> <box>1,2,3,4</box>\n").value == [
        (0.1, 0.2, 0.3, 0.4),
        (0.001, 0.002, 0.003, 0.004),
    ]
    assert parse_boxes("< box >1,2,3,4< / box >").value == [(0.001, 0.002, 0.003, 0.004)]
    assert parse_boxes("none .").value == []
    assert parse_trajectory("<gaze> 100, 200, 30 ; 1,2,3 </gaze> ").value == [(0.1, 0.2, 0.3), (0.001, 0.002, 0.03)]


@pytest.mark.parametrize(
    ("write", "value", "reason"),
    [
        (write_boxes, [(0.1, 0.1, 0.1003, 0.2)], "<box>100,100,100,200</box> has no area"),
        (write_boxes, [(0.5, 0.1, 0.4, 0.2)], "has no area"),
        (write_boxes, [(float("nan"), 0.1, 0.4, 0.2)], "a place is no number"),
        (write_trajectory, [], "at least one step"),
    ],
)
def test_nothing_is_written_that_cannot_be_read(write, value, reason):
    with pytest.raises(ValueError, match=reason):
        write(value)


def test_nowhere_is_an_answer():
    assert answered(ground_messages("edema", [])) == "none"
    assert parse_boxes("None.") == ([], None)
