"""Evidence: what is linked to what, the JSON contract, the review, and a page that no text can break out of."""

import base64
import copy
import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest
from PIL import Image

from gaze_vlm.evidence import JSON_SCHEMA, NOTICE, EvidenceBundle, EvidenceError, link_evidence
from gaze_vlm.findings import REGIONS
from gaze_vlm.scanpath import Scanpath

REPORT = (
    "FINDINGS: The heart is normal in size. There is a small left pleural effusion. "
    "No pneumothorax or right pleural effusion.\n\nIMPRESSION: Possible pneumonia. Compare with the prior film."
)
HEART, EFFUSION, DENIAL, POSSIBLE, REST = range(5)
ANGLE = {"name": "left costophrenic angle", "box": [0.75, 0.7, 0.9, 0.8]}
LEFT_BOX = {"name": "attended", "box": [0.6, 0.5, 0.8, 0.75]}
RIGHT_BOX = {"name": "attended", "box": [0.2, 0.5, 0.4, 0.7]}


def finding(name, probability, *regions, present=None):
    present = probability > 0.5 if present is None else present
    return {"name": name, "probability": probability, "present": present, "regions": list(regions)}


@pytest.fixture
def arguments():
    return {
        "findings": [
            finding("Pleural Effusion", 0.9, ANGLE, LEFT_BOX, RIGHT_BOX),
            finding("Cardiomegaly", 0.2),
            finding("Pneumothorax", 0.05),
            finding("Pneumonia", 0.4, LEFT_BOX),
        ],
        "scanpath": Scanpath.from_relative(
            [0.5, 0.3, 0.75, 0.85, 1.2, 0.625], [0.5, 0.6, 0.7, 0.75, 0.7, 0.5], [0.3, 0.2, 0.5, 0.4, 0.1, 0.25]
        ),
        "image": {"name": "/somewhere/private/film.png", "sha256": "0f" * 32, "width": 300, "height": 200},
        "model": {"name": "gaze-vlm/nano", "version": "0.1.0"},
        "gaze": "given",
    }


@pytest.fixture
def bundle(arguments):
    return link_evidence(REPORT, **arguments)


@pytest.fixture
def film():
    return Image.fromarray(np.repeat(np.arange(200, dtype=np.uint8)[:, None], 300, axis=1))


def names(sentence):
    return [region["name"] for region in sentence.regions]


def link(report, arguments, **changes):
    return link_evidence(report, **{**arguments, **changes})


# ---- what is linked


def test_sentences_stand_in_the_report_and_say_their_findings(bundle):
    assert [REPORT[s.start : s.end] for s in bundle.sentences] == [s.text for s in bundle.sentences]
    assert [[(f["name"], f["status"]) for f in s.findings] for s in bundle.sentences] == [
        [("Cardiomegaly", "absent")],
        [("Pleural Effusion", "present")],
        [("Pneumothorax", "absent"), ("Pleural Effusion", "absent")],
        [("Pneumonia", "uncertain")],
        [],
    ]
    assert bundle.image["name"] == "film.png"
    assert bundle.notice == NOTICE


def test_the_classifiers_regions_are_narrowed_to_the_side_that_is_named(bundle):
    assert bundle.sentences[EFFUSION].regions == [ANGLE, LEFT_BOX]
    assert bundle.sentences[POSSIBLE].regions == [LEFT_BOX]
    assert RIGHT_BOX in bundle.sentences[DENIAL].regions
    assert LEFT_BOX not in bundle.sentences[DENIAL].regions


def test_without_the_classifier_the_usual_regions_of_that_side_serve(arguments):
    (left,) = link("Left pleural effusion.", arguments, findings=[]).sentences
    assert names(left) == ["left costophrenic angle", "left lower lung zone"]
    assert all(region["box"][0] > 0.5 for region in left.regions)  # the patient's left is the image's right
    (right,) = link("Right pleural effusion.", arguments, findings=[]).sentences
    assert all(region["box"][2] < 0.5 for region in right.regions)
    (both,) = link("Bilateral pleural effusions.", arguments, findings=[]).sentences
    assert len(both.regions) == 4
    assert left.regions[0]["box"] == list(REGIONS["left costophrenic angle"].box)


def test_a_classifier_that_looked_at_the_other_side_has_no_say(arguments):
    seen = [finding("Pleural Effusion", 0.9, RIGHT_BOX)]
    (sentence,) = link("Left pleural effusion.", arguments, findings=seen).sentences
    assert names(sentence) == ["left costophrenic angle", "left lower lung zone"]
    assert sentence.confidence is None


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("Right upper lobe opacity.", ["right upper lung zone"]),
        ("Opacity at the left base.", ["left lower lung zone"]),
        ("Left basilar effusion.", ["left costophrenic angle", "left lower lung zone"]),
        ("The right lung is clear.", ["right lung"]),  # its zones lie within it
        ("Heart size is at the upper limits of normal.", ["cardiac silhouette", "left lower lung zone"]),
        ("Right middle lobe nodule.", ["right mid lung zone"]),
        ("No acute cardiopulmonary abnormality.", []),
        ("Compare with the prior film.", []),
    ],
)
def test_height_and_finer_names_narrow_the_usual_regions(report, expected, arguments):
    (sentence,) = link(report, arguments, findings=[]).sentences
    assert names(sentence) == expected


def test_fixations_are_those_in_the_boxes(bundle):
    # by hand: 2 lies in the attended box and on the angle's corner, 3 in the angle, 5 on the attended box's border
    assert bundle.sentences[EFFUSION].fixations == [2, 3, 5]
    assert bundle.sentences[POSSIBLE].fixations == [2, 5]
    assert bundle.sentences[HEART].fixations == [0, 2, 3, 5]  # 2 and 3 in the left lower zone
    assert bundle.sentences[REST].fixations == []


def test_confidence_is_the_classifiers_agreement(bundle, arguments):
    assert [s.confidence for s in bundle.sentences] == [1 - 0.2, 0.9, 1 - 0.9, 0.4, None]
    (both,) = link("Cardiomegaly with left pleural effusion.", arguments).sentences
    assert both.confidence == 0.9
    (mixed,) = link("Left pleural effusion without pneumothorax.", arguments).sentences
    assert mixed.confidence == 0.9
    (unknown,) = link("Rib fracture.", arguments).sentences
    assert unknown.confidence is None


def test_sources_go_with_the_sentences(arguments):
    sources = ["model", "template", "template", "model", "model"]
    assert [s.source for s in link(REPORT, arguments, sources=sources).sentences] == sources
    with pytest.raises(EvidenceError, match="sources: 2, sentences in the report: 5"):
        link(REPORT, arguments, sources=["model", "template"])
    with pytest.raises(EvidenceError, match=r"sentences\[1\].source must be one of 'model', 'template', got 'me'"):
        link(REPORT, arguments, sources=["model", "me", "model", "model", "model"])


def test_no_gaze_and_no_report_are_evidence_too(arguments, film):
    bundle = link("", arguments, scanpath=None, gaze="none", findings=[])
    assert bundle.sentences == ()
    assert bundle.reviewed_report == ""
    assert EvidenceBundle.from_json(bundle.to_json()) == bundle
    assert "</html>" in bundle.to_html(film)
    with pytest.raises(EvidenceError, match='gaze is "none", but the scanpath has 6 fixations'):
        link("", arguments, gaze="none")


# ---- the contract


def test_present_means_listed_and_no_threshold(bundle, film):
    """No Finding overrides a finding that reaches its threshold, and stands in where none does."""
    assert "threshold" not in json.dumps(JSON_SCHEMA) + bundle.to_html(film)
    assert '"not listed"' in bundle.to_html(film)


def test_round_trip_is_exact(bundle, arguments):
    bundle = bundle.review(EFFUSION, "edited", "Trace left pleural effusion.", "R. Reader")
    again = EvidenceBundle.from_json(bundle.to_json())
    assert again == bundle
    assert again.to_json() == bundle.to_json()
    assert Scanpath.from_records(again.scanpath) == arguments["scanpath"]


def test_bundles_fit_the_schema_and_the_schema_is_one(bundle):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(JSON_SCHEMA)
    validator = jsonschema.Draft202012Validator(JSON_SCHEMA)
    validator.validate(json.loads(bundle.to_json()))
    validator.validate(json.loads(bundle.review(0, "accepted", reviewer="R. Reader").to_json()))


BREAKS = {
    "evidence lacks gaze": lambda e: e.pop("gaze"),
    "evidence has the unknown extra": lambda e: e.update(extra=1),
    "evidence.schema_version must be one of '2.0'": lambda e: e.update(schema_version="1.0"),
    "evidence.notice must be one line of text": lambda e: e.update(notice=" "),
    "evidence.image.sha256 must match": lambda e: e["image"].update(sha256="abc"),
    "evidence.image.width must be of type integer": lambda e: e["image"].update(width=True),
    "evidence.image.height must be finite and in 1": lambda e: e["image"].update(height=0),
    "evidence.findings[0].probability must be finite and in 0..1": lambda e: e["findings"][0].update(probability=1.5),
    "evidence.findings[0].present must be of type boolean": lambda e: e["findings"][0].update(present=1),
    "evidence.findings[0].regions[0].box must have 4": lambda e: e["findings"][0]["regions"][0].update(box=[0, 1]),
    "evidence.sentences[1].confidence must be of type number or null": lambda e: e["sentences"][1].update(
        confidence="high"
    ),
    "evidence.sentences[0].review.status must be one of": lambda e: e["sentences"][0].update(
        review={"status": "fine", "text": None, "reviewer": None}
    ),
    "evidence.scanpath.duration[0] must be finite": lambda e: e["scanpath"]["duration"].__setitem__(0, -1),
    "evidence.sentences must be of type array": lambda e: e.update(sentences={}),
    "evidence.model.name must be one line": lambda e: e["model"].update(name="nano\n"),
    "evidence.image.name must be one line": lambda e: e["image"].update(name="film\x00.png"),
    "evidence.findings[0].regions[0].name must be one line": lambda e: e["findings"][0]["regions"][0].update(name=" "),
    "evidence.notice must be one line": lambda e: e.update(notice="Research\x00"),
    "evidence.model.version must be one line": lambda e: e["model"].update(version="1\ufffe"),
    "evidence.flags[0].finding must be one line": lambda e: e["flags"][0].update(finding=""),
    "evidence.flags[0].region must be one line": lambda e: e["flags"][0].update(region="a\x7f"),
    "evidence.key_frames[0].regions[0] must be one line": lambda e: e["key_frames"][0].update(regions=["\n"]),
    "evidence.coverage.regions[2].name must be one line": lambda e: e["coverage"]["regions"][2].update(name=""),
    "evidence.coverage.not_looked_at[0] must be one line": lambda e: e["coverage"].update(not_looked_at=[" "]),
    "evidence.flags[0].message must be one line": lambda e: e["flags"][0].update(message="Sentence 1\x1b[31m"),
}


@pytest.mark.parametrize("message", BREAKS)
def test_what_breaks_the_schema_is_named_and_refused_by_both_readers(message, bundle):
    data = json.loads(bundle.to_json())
    BREAKS[message](data)
    with pytest.raises(EvidenceError, match=re.escape(message)):
        EvidenceBundle.from_json(json.dumps(data))
    jsonschema = pytest.importorskip("jsonschema")
    assert not jsonschema.Draft202012Validator(JSON_SCHEMA).is_valid(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda e: e["findings"][0]["regions"][0].update(box=[0.5, 0.1, 0.4, 0.2]),
            "findings[0].regions[0].box: it ends",
        ),
        (
            lambda e: e["sentences"][0]["regions"][0].update(box=[0.5, 0.1, 0.5, 0.2]),
            "sentences[0].regions[0].box: it has",
        ),
        (lambda e: e["coverage"]["regions"][2].update(box=[0.1, 0.5, 0.4, 0.5]), "coverage.regions[2].box: it has no"),
        (lambda e: e["key_frames"][0].update(box=[0.1, 0.5, 0.4, 0.4]), "key_frames[0].box: it ends before"),
        (lambda e: e["model"].update(name="\ud800"), "model.name holds half a character"),
    ],
)
def test_what_no_schema_can_say_is_refused_too(change, message, bundle):
    data = json.loads(bundle.to_json())
    change(data)
    with pytest.raises(EvidenceError, match=re.escape(f"evidence.{message}")):
        EvidenceBundle.from_json(json.dumps(data))


def test_of_another_layout_the_version_is_told_and_nothing_else():
    with pytest.raises(EvidenceError, match=r"^evidence.schema_version must be one of '2\.0', got '1\.0'$"):
        EvidenceBundle.from_json('{"schema_version": "1.0", "sentences": 7}')


@pytest.mark.parametrize("text", ["", "[", "[]", "null", '"evidence"', "[" * 100_000, '{"report": NaN}'])
def test_what_is_no_evidence_is_refused(text):
    with pytest.raises(EvidenceError):
        EvidenceBundle.from_json(text)


def test_a_sentence_must_fit_report_and_scanpath(bundle):
    first, *rest = bundle.sentences
    with pytest.raises(EvidenceError, match=r"sentences\[0\]: its text does not stand in the report"):
        dataclasses.replace(bundle, sentences=(dataclasses.replace(first, text="Else."), *rest))
    with pytest.raises(EvidenceError, match=r"sentences\[0\]: fixation 6 of 6"):
        dataclasses.replace(bundle, sentences=(dataclasses.replace(first, fixations=[6]), *rest))
    with pytest.raises(ValueError, match="of one length"):
        dataclasses.replace(bundle, scanpath={**bundle.scanpath, "x": [0.5]})


def test_linking_leaves_its_input_alone(arguments):
    before = copy.deepcopy(arguments)
    link_evidence(REPORT, **arguments)
    assert before == arguments


# ---- review


def test_a_review_makes_a_new_bundle_and_a_new_report(bundle):
    reviewed = (
        bundle.review(HEART, "accepted", reviewer="R. Reader")
        .review(EFFUSION, "edited", "Trace left pleural effusion.")
        .review(REST, "rejected")
    )
    assert all(sentence.review is None for sentence in bundle.sentences)
    assert reviewed.sentences[HEART].review == {"status": "accepted", "text": None, "reviewer": "R. Reader"}
    assert bundle.reviewed_report == reviewed.report == REPORT
    assert reviewed.reviewed_report == (
        "FINDINGS: The heart is normal in size. Trace left pleural effusion. "
        "No pneumothorax or right pleural effusion.\n\nIMPRESSION: Possible pneumonia."
    )
    assert reviewed.review(REST, "accepted").reviewed_report.endswith("Compare with the prior film.")
    assert reviewed.review(HEART, "rejected").reviewed_report.startswith("Trace left")


@pytest.mark.parametrize(
    "decision", [(0, "edited"), (0, "edited", " "), (0, "accepted", "x"), (0, "ok"), (5, "accepted")]
)
def test_a_review_that_says_nothing_is_refused(bundle, decision):
    with pytest.raises(EvidenceError):
        bundle.review(*decision)


# ---- the page


def test_the_page_is_one_file_that_asks_for_nothing(bundle, film):
    page = bundle.to_html(film)
    assert re.findall(r"(?:https?:)?//[a-z][\w.]*\.[a-z]{2,}[^\s\"']*", page) == ["http://www.w3.org/2000/svg"]
    assert all(source.startswith("data:image/") for source in re.findall(r'\bsrc="([^"]*)"', page))
    assert not re.search(r"\bhref=|@import|url\(|fetch\(|XMLHttpRequest|\{\{", page)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)[1]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "Research demonstration. Not a medical device." in page


def test_the_page_holds_the_bundle(bundle, film):
    data = re.search(r'<script type="application/json" id="evidence">(.*?)</script>', bundle.to_html(film), re.DOTALL)[
        1
    ]
    assert EvidenceBundle.from_json(data) == bundle


HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)"><!-- {{film}} \u2028 & "'


def test_text_stays_text(arguments, film):
    image = {**arguments["image"], "name": HOSTILE}
    model = {"name": HOSTILE, "version": "<svg onload=alert(3)>"}
    findings = [finding(HOSTILE, 0.9, {"name": HOSTILE, "box": [0, 0, 1, 1]})]
    bundle = link(f"Cardiomegaly {HOSTILE}.", arguments, image=image, model=model, findings=findings)
    page = bundle.review(0, "edited", HOSTILE, HOSTILE).to_html(film)
    assert page.count("<script") == page.count("</script>") == 2
    assert page.count("<img") == 2
    assert "<svg onload" not in page
    assert "{{film}}" in page  # a placeholder in a text is not filled
    data = re.search(r'id="evidence">(.*?)</script>', page, re.DOTALL)[1]
    assert "<" not in data
    assert json.loads(data)["sentences"][0]["review"]["text"] == HOSTILE
    assert "innerHTML" not in page


def test_the_policy_names_the_very_script_of_the_page(bundle, film):
    page = bundle.to_html(film)
    for element in ("script", "style"):
        content = re.search(f"<{element}>(.*?)</{element}>", page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{element}-src 'sha256-{digest}'" in page


def test_the_film_must_be_the_one_of_the_evidence(bundle):
    with pytest.raises(EvidenceError, match=r"film \(width, height\): \(200, 300\), evidence: \(300, 200\)"):
        bundle.to_html(np.zeros((300, 200), np.uint8))


# ---- files


def test_save_refuses_to_overwrite_unless_told(bundle, film, tmp_path):
    folder = tmp_path / "new" / "folder"
    paths = bundle.save(folder, film)
    assert [path.name for path in paths] == ["evidence.json", "evidence.html"]
    assert EvidenceBundle.from_json(paths[0].read_text(encoding="utf-8")) == bundle
    changed = bundle.review(0, "rejected")
    with pytest.raises(EvidenceError, match=r"evidence\.json: exists already"):
        changed.save(folder, film)
    paths[0].unlink()
    with pytest.raises(EvidenceError, match=r"evidence\.html: exists already"):
        changed.save(folder, film)
    assert not paths[0].exists()
    changed.save(folder, film, overwrite=True)
    assert EvidenceBundle.from_json(paths[0].read_text(encoding="utf-8")) == changed


def test_names_that_are_no_utf8_can_be_saved(arguments, film, tmp_path):
    bundle = link(REPORT, arguments, image={**arguments["image"], "name": "C:\\films\\f\udcfc\nlm.png"})
    assert bundle.image["name"] == "f??lm.png"
    bundle.save(tmp_path, film)
