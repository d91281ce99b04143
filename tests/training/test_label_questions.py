from collections import Counter

import datasets
import pytest

from gaze_vlm.findings import NO_FINDING
from gaze_vlm.training.label_questions import label_questions, presence_question


@pytest.fixture
def labelled():
    def build(*rows):
        findings = [
            None if row is None else [{"name": name, "certainty": float(value)} for name, value in row.items()]
            for row in rows
        ]
        views = ["PA", "AP", "LATERAL", None] * len(rows)
        return datasets.Dataset.from_dict({"findings": findings, "view": views[: len(rows)]})

    return build


def about(questions, finding):
    return [(one.row, one.answer) for one in questions if one.finding == finding]


def test_as_many_films_have_a_finding_as_have_not(labelled):
    rows = labelled(*[{"Edema": number < 3, "Fracture": number < 9} for number in range(10)])
    questions = label_questions(rows)
    counts = Counter((one.finding, one.answer) for one in questions if one.question_type == "presence")
    assert counts["Edema", "yes"] == counts["Edema", "no"] == 3
    assert counts["Fracture", "yes"] == counts["Fracture", "no"] == 1
    assert {row for row, answer in about(questions, "Edema") if answer == "yes"} == {0, 1, 2}
    assert all(row > 2 for row, answer in about(questions, "Edema") if answer == "no")


def test_other_films_are_drawn_with_another_seed_and_the_same_with_the_same(labelled):
    rows = labelled(*[{"Edema": number < 3} for number in range(40)])
    assert label_questions(rows, 1) == label_questions(rows, 1) != label_questions(rows, 2)


def test_what_nobody_judged_is_not_asked(labelled):
    questions = label_questions(labelled({"Edema": 1}, {"Edema": 0, "Fracture": 1}, None))
    assert about(questions, "Fracture") == []
    assert sorted(about(questions, "Edema")) == [(0, "yes"), (1, "no")]
    assert {one.row for one in questions if one.question_type == "findings"} == {0, 1}


def test_a_finding_above_is_asked_too(labelled):
    questions = label_questions(labelled({"Nodule": 1}, {NO_FINDING: 1}))
    assert sorted(about(questions, "Lung Lesion")) == [(0, "yes"), (1, "no")]


def test_findings_are_listed_in_words_and_the_view_is_asked_where_it_is_frontal(labelled):
    questions = label_questions(labelled({"Pleural Effusion": 1, "Edema": 1}, {NO_FINDING: 1}, {"Edema": 0}))
    listed = {one.row: one.answer for one in questions if one.question_type == "findings"}
    assert listed == {0: "edema, pleural effusion", 1: "none", 2: "none"}
    assert {one.row: one.answer for one in questions if one.question_type == "view"} == {0: "PA", 1: "AP"}


def test_questions_are_in_words():
    assert presence_question("Pleural Effusion") == "Is there pleural effusion?"
    assert presence_question(NO_FINDING) == "Is this film normal?"
