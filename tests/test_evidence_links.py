"""What evidence says of gaze: coverage, attention, key frames, flags, signature; and the published schema."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaze_vlm.evidence import JSON_SCHEMA, EvidenceBundle, EvidenceError, coverage, link_evidence
from gaze_vlm.evidence.coverage import attention_share, covered_share, is_looked_at
from gaze_vlm.evidence.schema import schema_text
from gaze_vlm.findings import REGIONS
from gaze_vlm.scanpath import Scanpath

ANGLE = {"name": "left costophrenic angle", "box": list(REGIONS["left costophrenic angle"].box)}


def path(*places, seconds=0.5):
    return Scanpath.from_relative([x for x, _ in places], [y for _, y in places], [seconds] * len(places))


def record(name, probability, present, *regions):
    return {"name": name, "probability": probability, "present": present, "regions": list(regions)}


def link(report, findings=(), scanpath=None, **options):
    known = {
        "image": {"name": "film.png", "sha256": "0f" * 32, "width": 300, "height": 200},
        "model": {"name": "made", "version": "1"},
        "gaze": "given" if scanpath is not None and len(scanpath) else "none",
    }
    return link_evidence(report, list(findings), scanpath, **(known | options))


def region(found: dict, name: str) -> dict:
    return next(one for one in found["regions"] if one["name"] == name)


# ---- coverage


def test_coverage_is_what_one_counts_by_hand():
    # trachea: x .45 to .55, y .03 to .35; squares of .1 x .1 around each fixation
    seen = coverage(path((0.5, 0.1), (0.5, 0.25), (0.5, 0.25), (0.45, 0.35)))
    # .05 to .15 and .2 to .3 in full, and of the last one its upper right quarter, of which .05 x .05 is new
    # but for .05 wide x (.3 - .3) already covered: rows .3 to .35, columns .45 to .5
    area = 0.1 * 0.1 + 0.1 * 0.1 + 0.05 * 0.05
    assert region(seen, "trachea")["looked_at"] == pytest.approx(area / (0.1 * 0.32), abs=1e-6)
    assert region(seen, "trachea")["dwell"] == pytest.approx(2.0)  # borders count
    # right clavicle, x .13 to .47, y .08 to .2: of the first square x .45 to .47, y .08 to .15
    assert region(seen, "right clavicle")["looked_at"] == pytest.approx(0.02 * 0.07 / (0.34 * 0.12), abs=1e-6)
    assert region(seen, "right clavicle")["dwell"] == 0
    assert "left costophrenic angle" in seen["not_looked_at"]
    assert "trachea" not in seen["not_looked_at"]


def test_a_large_radius_covers_all_and_no_gaze_covers_nothing():
    assert coverage(path((0.5, 0.5)), radius=1.0)["not_looked_at"] == []
    nothing = coverage(path())
    assert nothing["not_looked_at"] == list(REGIONS)
    with pytest.raises(ValueError, match="radius must be above 0, got 0"):
        coverage(path(), radius=0)


EDGES = st.lists(st.integers(-3, 13), min_size=2, max_size=2, unique=True).map(sorted)
BOXES = st.lists(st.tuples(EDGES, EDGES).map(lambda e: (e[0][0], e[1][0], e[0][1], e[1][1])), max_size=6)


@given(BOXES)
def test_covered_share_equals_counting_cells(boxes):
    grid = np.zeros((10, 10), bool)
    for x1, y1, x2, y2 in boxes:
        grid[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = True
    share = covered_share((0, 0, 1, 1), np.array(boxes, float).reshape(-1, 4) / 10)
    assert share == pytest.approx(grid.mean(), abs=1e-9)


@given(BOXES, st.integers(0, 99))
def test_attention_share_equals_counting_cells(boxes, seed):
    attention = np.random.default_rng(seed).dirichlet(np.ones(100)).reshape(10, 10)
    inside = np.zeros((10, 10), bool)
    for x1, y1, x2, y2 in boxes:
        inside[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = True
    share = attention_share(attention, [[edge / 10 for edge in box] for box in boxes])
    assert share == pytest.approx(attention[inside].sum(), abs=1e-9)


def test_cells_that_a_border_cuts_count_in_part():
    assert attention_share(np.array([[0.5, 0.5]]), [[0.25, 0, 0.75, 0.5]]) == pytest.approx(0.25)


# ---- links


def test_findings_have_their_fixations_and_their_share_of_attention():
    attention = np.zeros((10, 10))
    attention[7, 8] = 1.0
    found = [record("Pleural Effusion", 0.9, True, ANGLE), record("No Finding", 0.1, False)]
    bundle = link("Left effusion.", found, path((0.8, 0.75), (0.1, 0.1)), attention={"Pleural Effusion": attention})
    effusion, normal = bundle.findings
    assert effusion["fixations"] == [0]
    assert effusion["attention"] == pytest.approx(1.0)
    assert (normal["fixations"], normal["attention"]) == ([], None)


def test_a_border_counts_for_links_as_for_dwell():
    bundle = link("Trachea midline.", [], path((0.45, 0.1)))  # its left border; 0.45 has no exact float
    assert bundle.sentences[0].fixations == [0]
    assert region(bundle.coverage, "trachea")["dwell"] == 0.5


@pytest.mark.parametrize("attention", [np.full((2, 2), 1.0), np.full((2, 2), np.nan), np.array([[2.0, -1.0]])])
def test_attention_that_is_no_share_is_refused(attention):
    found = [record("Pleural Effusion", 0.9, True, ANGLE)]
    with pytest.raises(EvidenceError, match="attention of 'Pleural Effusion' must be shares that sum to 1"):
        link("Left effusion.", found, attention={"Pleural Effusion": attention})


def test_key_frames_are_linked_to_the_sentences_that_they_support():
    gaze = path((0.2, 0.2), (0.21, 0.2), (0.8, 0.75), (0.81, 0.75))
    bundle = link("Left pleural effusion.", [record("Pleural Effusion", 0.9, True, ANGLE)], gaze)
    assert [frame["fixations"] for frame in bundle.key_frames] == [[0, 1], [2, 3]]
    assert bundle.sentences[0].key_frames == [1]
    assert bundle.sentences[0].stage == "B"
    assert bundle.key_frames[1]["regions"][0] == "left costophrenic angle"
    spoken = [{"text": "The heart is large.", "start": 0.0, "end": 1.0}]
    assert [frame["stage"] for frame in link("", [], gaze, spoken=spoken).key_frames] == ["C"]


def test_a_sentence_about_a_place_has_the_regions_of_its_stage():
    (sentence,) = link("The trachea is midline.").sentences
    assert [one["name"] for one in sentence.regions] == ["trachea"]
    assert sentence.stage == "A"


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("The left hemidiaphragm is raised.", ["left costophrenic angle"]),
        ("The hemidiaphragms are smooth.", ["right costophrenic angle", "left costophrenic angle"]),
        ("Both hemidiaphragms are smooth.", ["right costophrenic angle", "left costophrenic angle"]),
        ("The right hemidiaphragm is higher than the left.", ["right costophrenic angle", "left costophrenic angle"]),
    ],
)
def test_a_place_lies_on_the_side_that_is_named(report, expected):
    (sentence,) = link(report).sentences
    assert [one["name"] for one in sentence.regions if "costophrenic" in one["name"]] == expected
    assert not any(
        one["name"].startswith("right") for one in link("The left heart border is seen.").sentences[0].regions
    )
    assert "cardiac silhouette" in [one["name"] for one in link("The left heart border is seen.").sentences[0].regions]


@pytest.mark.parametrize(
    ("report", "opacity", "other"),
    [
        ("Right upper lobe opacity and left basilar nodule.", "right upper lung zone", "left lower lung zone"),
        ("Opacity in the right upper and mid lung, nodule at the left base.", "right upper", "left lower lung zone"),
        ("Right lower lobe opacity and nodule.", "right lower lung zone", "right lower lung zone"),
        ("Right opacity with a nodule at the right base.", "right lower lung zone", "right lower lung zone"),
    ],
)
def test_a_height_is_of_what_it_is_said_of(report, opacity, other):
    (sentence,) = link(report).sentences
    found = {one["name"] for one in sentence.regions}
    assert found >= {other}
    assert any(name.startswith(opacity) for name in found)
    allowed = (
        {opacity, other} if opacity != "right upper" else {f"right {h} lung zone" for h in ("upper", "mid")} | {other}
    )
    assert found <= allowed


def test_sentences_are_those_that_are_given():
    report = "Opacity vs. effusion at st. Heart normal."
    spans = [(0, 11), (12, 41)]
    with pytest.raises(EvidenceError, match="sources: 3, sentences"):
        link(report, spans=spans, sources=["model"] * 3)
    bundle = link(report, spans=spans, sources=["model", "template"])
    assert [(sentence.text, sentence.source) for sentence in bundle.sentences] == [
        ("Opacity vs.", "model"),
        ("effusion at st. Heart normal.", "template"),
    ]


# ---- flags


def kinds(bundle, sentence=0):
    return [(flag["kind"], flag["finding"]) for flag in bundle.flags if flag["sentence"] == sentence]


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("Left pleural effusion.", []),
        ("Possible left pleural effusion.", []),
        ("No left pleural effusion.", [("contradicted", "Pleural Effusion")]),
        ("No right pleural effusion.", []),  # the classifier looks at the left
        ("Right pleural effusion.", [("unlikely", "Pleural Effusion")]),
        ("There is pneumonia.", [("unlikely", "Pneumonia")]),
        ("Possible pneumonia.", [("unlikely", "Pneumonia")]),
        ("No pneumonia.", []),
        ("Rib fracture.", []),  # which the classifier does not judge
        ("Compare with the prior film.", [("unlinked", None)]),
        ("Normal chest.", [("contradicted", "Pleural Effusion"), ("unlinked", None)]),
    ],
)
def test_what_does_not_agree_is_flagged(report, expected):
    found = [record("Pleural Effusion", 0.9, True, ANGLE), record("Pneumonia", 0.2, False)]
    assert kinds(link(report, found)) == expected


@pytest.mark.parametrize(
    ("listed", "report", "contradicted"),
    [
        ("Pneumonia", "No consolidation.", True),  # which pneumonia implies
        ("Pneumonia", "No opacity.", True),
        ("Consolidation", "No pneumonia.", False),
        ("Nodule", "No mass.", False),
        ("Mass", "No lung lesion.", True),
        ("Support Devices", "Normal chest.", False),
        ("No Finding", "Normal chest.", False),
        ("Silicosis", "No opacity.", False),  # a classifier may know names that we do not
    ],
)
def test_what_leaves_no_room_for_a_listed_finding_contradicts_it(listed, report, contradicted):
    flags = [flag for flag in link(report, [record(listed, 0.9, True)]).flags if flag["kind"] == "contradicted"]
    assert [flag["finding"] for flag in flags] == [listed] * contradicted
    if contradicted:
        assert flags[0]["message"] == f"Sentence 1 leaves no room for {listed} (0.90), which is listed."


def test_each_finding_that_a_denial_leaves_no_room_for_is_flagged():
    found = [record(name, 0.9, True) for name in ("Pneumonia", "Consolidation", "Lung Opacity", "Pleural Effusion")]
    for order in (found, found[::-1]):
        flags = link("Normal chest. No focal consolidation.", order).flags
        told = [
            {flag["finding"] for flag in flags if flag["sentence"] == number and flag["finding"]} for number in (0, 1)
        ]
        assert told == [{one["name"] for one in found}, {"Pneumonia", "Consolidation"}]


def test_regions_that_no_fixation_reaches_are_flagged_only_with_gaze():
    found = [record("Pleural Effusion", 0.9, True, ANGLE)]
    bundle = link("Left pleural effusion. No right pleural effusion.", found, path((0.3, 0.2)))
    assert kinds(bundle) == [("not looked at", "Pleural Effusion")]
    assert kinds(bundle, 1) == []  # what is denied need not have been looked at
    zones = [flag["region"] for flag in bundle.flags if flag["sentence"] is None]
    assert len(zones) == 5
    assert "right upper lung zone" not in zones
    assert kinds(link("Left pleural effusion.", found, path((0.8, 0.75)))) == []
    assert link("Left pleural effusion.", found).flags == []
    assert link("", found).coverage is None


def test_every_sentence_has_a_region_or_says_that_it_has_none():
    bundle = link("The heart is large. No acute disease. Trachea midline. Thank you.", [])
    unlinked = {flag["sentence"] for flag in bundle.flags if flag["kind"] == "unlinked"}
    assert {number for number, sentence in enumerate(bundle.sentences) if not sentence.regions} == unlinked == {1, 3}


def test_a_missed_region_goes_with_the_finding_that_is_said_to_be_there():
    heart = {"name": "cardiac silhouette", "box": list(REGIONS["cardiac silhouette"].box)}
    found = [record("Cardiomegaly", 0.9, True, heart), record("Pleural Effusion", 0.9, True, ANGLE)]
    gaze = path((0.5, 0.55))
    (flag,) = [flag for flag in link("Cardiomegaly with left effusion.", found, gaze).flags if flag["sentence"] == 0]
    assert (flag["finding"], flag["region"]) == ("Pleural Effusion", "left costophrenic angle")
    assert flag["message"] == "Sentence 1 says Pleural Effusion, but no fixation reaches the left costophrenic angle."
    # what the same sentence denies need not have been looked at
    assert kinds(link("Cardiomegaly without pneumothorax.", found, gaze)) == []
    assert kinds(link("Cardiomegaly, possible left effusion.", found, gaze)) == []


def test_reached_is_what_coverage_counts():
    eye = path((0.5, 0.5))
    for edge, reached in ((0.54, True), (0.56, False)):
        assert is_looked_at([edge, 0.4, 0.9, 0.6], eye) is reached
        assert is_looked_at([0.4, edge, 0.6, 0.9], eye) is reached
        assert is_looked_at([0.1, 0.4, 1 - edge, 0.6], eye) is reached
    assert not is_looked_at([0.3, 0.3, 0.3, 0.3], eye)
    assert not is_looked_at([0, 0, 1, 1], path())
    for one in coverage(path((0.2, 0.3), (0.6, 0.7)))["regions"]:
        assert is_looked_at(one["box"], path((0.2, 0.3), (0.6, 0.7))) == (one["looked_at"] > 0)


# ---- signature


def test_who_signs_has_decided_every_sentence():
    bundle = link("The heart is large. No effusion.")
    with pytest.raises(EvidenceError, match="sign_off: sentence 1 is not reviewed"):
        bundle.review(0, "accepted").sign("R")
    reviewed = bundle.review(0, "accepted").review(1, "rejected")
    signed = reviewed.sign("R", "2026-01-02T03:04:05+01:00")
    assert EvidenceBundle.from_json(signed.to_json()) == signed
    assert signed.review(0, "rejected").sign_off is None
    assert reviewed.sign("R").sign_off["signed_at"].endswith("+00:00")
    for wrong in ("yesterday", "2026-01-02T03:04:05", "2026-99-02T03:04:05Z"):
        with pytest.raises(EvidenceError, match=r"sign_off\.signed_at"):
            reviewed.sign("R", wrong)
    with pytest.raises(EvidenceError, match=r"sign_off\.reviewer"):
        reviewed.sign(" ")


def test_no_word_of_the_report_stands_outside_of_what_is_decided():
    data = json.loads(link("1. The heart is large.\n2) No effusion.").to_json())
    data["sentences"].pop(0)
    with pytest.raises(EvidenceError, match=r"evidence\.report: no sentence holds '1\. The heart is large"):
        EvidenceBundle.from_json(json.dumps(data))


@given(st.text(max_size=60))
def test_sentences_hold_every_word_of_any_report(report):
    link(report)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e["key_frames"][0].update(fixations=[9]), r"key_frames\[0\].fixations: 9 of 2"),
        (lambda e: e["findings"][0].update(fixations=[2]), r"findings\[0\].fixations: 2 of 2"),
        (lambda e: e["sentences"][0].update(key_frames=[1]), r"sentences\[0\].key_frames: 1 of 1"),
        (lambda e: e["flags"][0].update(sentence=5), r"flags\[0\].sentence: 5 of 1"),
        (lambda e: e["flags"][0].update(kind="odd"), r"flags\[0\].kind must be one of"),
        (lambda e: e["sentences"][0].update(stage="G"), r"sentences\[0\].stage must match"),
    ],
)
def test_numbers_that_lead_nowhere_are_refused(change, message):
    gaze = path((0.5, 0.5), (0.5, 0.5))
    data = json.loads(link("Rib fracture.", [record("Pneumonia", 0.2, False)], gaze).to_json())
    change(data)
    with pytest.raises(EvidenceError, match=message):
        EvidenceBundle.from_json(json.dumps(data))


def test_the_schema_is_published():
    """After a change: python -c "from gaze_vlm.evidence.schema import *; print(schema_text(), end='')" > the file."""
    published = Path(__file__).parents[1] / "docs" / "evidence.schema.json"
    assert published.read_text() == schema_text()
    assert JSON_SCHEMA["$id"].endswith(":2.0")
