"""Rows that are put together by finding, and say so."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaze_vlm.data.matching import PAIRING, FindingMatcher, present_findings, report_findings, report_text
from gaze_vlm.findings import NO_FINDING
from gaze_vlm.labeler import sentences

NAMES = ["Edema", "Mass", "Atelectasis", "Cardiomegaly", NO_FINDING]
FILMS = [
    {"Edema", "Cardiomegaly"},
    {"Edema"},
    {NO_FINDING},
    {"Edema", "Cardiomegaly"},
    {"Mass"},
    {NO_FINDING},
    {"Edema", "Mass"},
]


def drawn(matcher: FindingMatcher, findings, seed: int, count: int = 20) -> list[int]:
    rng = random.Random(seed)
    return [matcher.draw(findings, rng)["film"] for _ in range(count)]


def test_the_same_seed_draws_the_same_films():
    first, second = (FindingMatcher(FILMS, NAMES) for _ in range(2))
    assert drawn(first, {"Edema"}, seed=1) == drawn(second, {"Edema"}, seed=1)
    assert drawn(first, {NO_FINDING}, seed=1) != drawn(first, {NO_FINDING}, seed=2)


def test_the_order_of_the_findings_does_not_matter():
    shuffled = [list(films)[::-1] for films in FILMS]
    draws = [drawn(FindingMatcher(films, names), findings, seed=3) for films, names, findings in (
        (FILMS, NAMES, ["Edema", "Cardiomegaly"]), (shuffled, NAMES[::-1], ["Cardiomegaly", "Edema"])
    )]  # fmt: skip
    assert draws[0] == draws[1]


@pytest.mark.parametrize(
    ("findings", "films", "likeness"),
    [
        ({"Edema", "Cardiomegaly"}, {0, 3}, 1.0),
        ({"Mass"}, {4}, 1.0),
        ({"Cardiomegaly"}, {0, 3}, 1 / 2),
        ({"Edema", "Mass", "Cardiomegaly"}, {0, 3, 6}, 2 / 3),
        (set(), {2, 5}, 1.0),
    ],
)
def test_only_the_films_most_alike_are_drawn_and_all_of_them(findings, films, likeness):
    matcher = FindingMatcher(FILMS, NAMES)
    rows = [matcher.draw(findings, random.Random(seed)) for seed in range(60)]
    assert {row["film"] for row in rows} == films
    assert [row["likeness"] for row in rows] == pytest.approx([likeness] * 60)


def test_what_is_not_in_the_vocabulary_counts_on_neither_side():
    matcher = FindingMatcher([{"Edema", "Hernia"}, {"Mass"}], ["Edema", "Mass"])
    assert matcher.draw({"Edema", "Fracture"}, random.Random(0))["likeness"] == 1.0
    assert set(drawn(matcher, {"Edema", "Fracture"}, seed=0)) == {0}


sets = st.sets(st.sampled_from(NAMES))


@given(st.lists(sets, min_size=1, max_size=8), sets, st.integers(0, 99))
def test_every_row_says_that_it_is_not_paired_and_no_film_is_more_alike(films, findings, seed):
    row = FindingMatcher(films, NAMES).draw(findings, random.Random(seed))
    assert row.keys() == {"film", "likeness", "pairing"}
    assert row["pairing"] == PAIRING
    assert "NOT paired" in PAIRING
    wanted = findings or {NO_FINDING}
    likeness = [len(wanted & film) / len(wanted | film) for film in films]
    assert likeness[row["film"]] == max(likeness) == row["likeness"]


def report(findings=None, impression=None) -> dict:
    return {"report": {"findings": findings, "impression": impression}}


@pytest.mark.parametrize(
    "dropped",
    [
        "The XXXX are normal.",
        "Compared to the prior study, there is less edema.",
        "No significant interval change.",
        "There is new consolidation in the left lower lobe.",
        "The effusion has resolved.",
        "Previously seen nodule is smaller.",
        "The lateral view shows degenerative change.",
        "Findings were discussed with Dr. Smith.",
        "Clear.",
        "The cardiomediastinal silhouette is stable.",
        "Mediastinal contours are unchanged.",
        "The heart appears stable.",
    ],
)
def test_sentences_that_one_film_cannot_show_are_dropped(dropped):
    kept = "The heart is normal in size."
    assert report_text(report(dropped)) == ""
    assert report_text(report(f"{kept} {dropped}", dropped)) == kept
    assert report_text(report(dropped, kept)) == kept


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("Stable cardiomegaly with edema.", "Cardiomegaly with edema."),
        ("There is a persistent left pleural effusion", "There is a left pleural effusion."),
        ("1. No pneumonia. 2. Normal heart size.", "No pneumonia. Normal heart size."),
        ("the lungs are clear ;", "The lungs are clear."),
        ("The lungs\n  are clear.", "The lungs are clear."),
        ("Lungs are clear. lungs are clear.", "Lungs are clear."),
    ],
)
def test_the_rest_is_joined_as_sentences(said, kept):
    assert report_text(report(said)) == kept


def test_findings_come_before_the_impression_and_nothing_is_said_twice():
    row = report("Heart size is normal. Lungs are clear.", "Lungs are clear. No acute disease.")
    assert report_text(row) == "Heart size is normal. Lungs are clear. No acute disease."
    assert report_text(report()) == ""


@given(st.text(alphabet="aXb .,;:1)\n", max_size=60), st.text(alphabet="stable is new.\n", max_size=60))
def test_whatever_comes_in_whole_sentences_come_out(findings, impression):
    text = report_text(report(findings, impression))
    assert "XX" not in text
    assert not text or text.endswith(".")
    for start, end in sentences(text):
        assert text[start:end].endswith(".")


def test_report_findings_are_what_the_labeler_asserts():
    assert report_findings("There is edema. No pneumothorax. Possible pneumonia.") == {"Edema"}
    assert report_findings("The lungs are clear.") == {NO_FINDING}
    assert report_findings("") == {NO_FINDING}


def test_present_findings_are_canonical_and_above_the_certainty():
    row = {"findings": [{"name": "pleural_effusion", "certainty": 1.0}, {"name": "Edema", "certainty": 0.4}]}
    assert present_findings(row) == {"Pleural Effusion"}
    assert present_findings(row, certainty=0.4) == {"Pleural Effusion", "Edema"}
