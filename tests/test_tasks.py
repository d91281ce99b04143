"""What a film and its findings become in a chat."""

import pytest

from gaze_vlm.findings import FINDINGS, NO_FINDING
from gaze_vlm.tasks import REPORT_INSTRUCTION, TASKS, report_messages

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
