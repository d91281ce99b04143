import pytest

from gaze_vlm.findings import READING_ORDER, REGIONS
from gaze_vlm.keyframes import stage_of_text
from gaze_vlm.labeler import label
from gaze_vlm.reading_order import in_reading_order
from gaze_vlm.report_composer import ComposedSentence
from gaze_vlm.scanpath import Scanpath


def sentences(*texts):
    return [ComposedSentence(text) for text in texts]


def record(name, present):
    return {"name": name, "probability": 0.5, "present": present, "regions": []}


def gaze(*regions):
    boxes = [REGIONS[name].box for name in regions]
    return Scanpath.from_relative(
        [(a + c) / 2 for a, _, c, _ in boxes], [(b + d) / 2 for _, b, _, d in boxes], [0.3] * len(boxes)
    )


def texts(*arguments):
    return [sentence.text for sentence in in_reading_order(*arguments)]


def test_sentences_stand_in_the_order_of_inspection_and_no_stage_is_missing():
    given = sentences("No acute disease.", "A pacemaker is seen.", "The heart is enlarged.", "There is an effusion.")
    found = [record("Cardiomegaly", True), record("Pleural Effusion", True), record("Hernia", False)]
    assert texts(given, found, gaze("trachea", "left costophrenic angle")) == [
        "Airways: looked at, not judged.",
        "There is an effusion.",
        "The heart is enlarged.",
        "Diaphragm: looked at in part, nothing found.",
        "Everything else, bones, soft tissue: not looked at, not judged.",
        "A pacemaker is seen.",
        "No acute disease.",
    ]


def test_a_stage_is_looked_at_when_gaze_reaches_all_of_its_regions():
    places = [region.name for region in REGIONS.values() if region.stage == "D"]
    assert "Diaphragm: looked at, nothing found." in texts([], [record("Hernia", False)], gaze(*places))
    assert "Diaphragm: looked at in part, nothing found." in texts([], [record("Hernia", False)], gaze(places[0]))
    assert "Diaphragm: not looked at, nothing found." in texts([], [record("Hernia", False)], gaze("trachea"))
    assert "Diaphragm: not looked at, nothing found." in texts([], [record("Hernia", False)], Scanpath([], [], [], []))


def test_foreign_objects_are_a_stage_by_name():
    assert stage_of_text("Foreign objects: nothing found.") == "F"


def test_without_gaze_nothing_is_said_of_looking():
    said = texts([], [record("Hernia", False)], None)
    assert "Diaphragm: nothing found." in said
    assert not any("looked" in line for line in said)
    assert len(said) == len(READING_ORDER)


def test_a_stage_with_a_listed_finding_is_not_called_empty():
    said = texts([], [record("Fracture", True)], None)
    assert not any(line.startswith("Everything else") for line in said)


@pytest.mark.parametrize("path", [None, gaze("trachea"), Scanpath([], [], [], [])])
def test_lines_name_no_finding(path):
    for line in texts([], [record("Hernia", False), record("Nodule", False)], path):
        assert label(line).mentions == ()
