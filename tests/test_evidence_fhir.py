"""The FHIR DiagnosticReport: valid, the same text, and no patient in it."""

import base64
import json
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from pydicom import dcmread

from gaze_vlm.evidence import NOTICE, link_evidence
from gaze_vlm.evidence.fhir import to_fhir
from gaze_vlm.images import read_film

REPORT = (
    "The heart is normal in size. Small left pleural effusion, ≈ 2 cm <&\"'>. No pneumothorax.\n\nCompare: 心臓 𝛼."
)
ANGLE = {"name": "left costophrenic angle", "box": [0.75, 0.7, 0.9, 0.8]}
FILM = {"name": "film.png", "sha256": "0f" * 32, "width": 300, "height": 200}
FINDINGS = [
    {"name": "Pleural Effusion", "probability": 0.912345678, "present": True, "regions": [ANGLE]},
    {"name": "Fracture", "probability": 0.1, "present": False, "regions": []},
]


def bundle_of(report, findings=(), film=FILM):
    model = {"name": "gaze-vlm/nano", "version": "0.1.0"}
    return link_evidence(report, list(findings), None, image=film, model=model, gaze="none")


@pytest.fixture
def bundle():
    return bundle_of(REPORT, FINDINGS)


def validate(report):
    """The report as fhir.resources reads it, by R4B: of what stands in here, R4B changed nothing of R4."""
    reason = 'needs pip install "gaze2report[dev]"'
    return pytest.importorskip("fhir.resources.R4B.diagnosticreport", reason=reason).DiagnosticReport(**report)


def presented(report):
    (form,) = report["presentedForm"]
    assert form["contentType"] == "text/plain; charset=utf-8"
    return base64.b64decode(form["data"]).decode()


# ---- valid


def test_fhir_resources_reads_it_and_gives_it_back(bundle):
    report = to_fhir(bundle)
    read = validate(report)
    assert json.loads(read.model_dump_json()) == json.loads(json.dumps(report))
    device, *observations = read.contained
    assert [resource.get_resource_type() for resource in read.contained] == ["Device", "Observation"]
    coded = [(read, "status"), (read.text, "status"), (device.deviceName[0], "type")]
    for resource, field in [*coded, *((observation, "status") for observation in observations)]:
        # fhir.resources knows the values that are allowed, and does not check them
        assert getattr(resource, field) in type(resource).model_fields[field].json_schema_extra["enum_values"]


@pytest.mark.parametrize(
    "change", [{"conclusion": ""}, {"finding": 1}, {"code": "chest"}, {"contained": [{"resourceType": "Observation"}]}]
)
def test_the_check_refuses_what_is_no_report(bundle, change):
    report = to_fhir(bundle)
    validate(report)
    with pytest.raises(ValueError, match="validation error"):
        validate({**report, **change})


def test_without_findings_it_is_valid_and_contains_nothing(bundle):
    report = to_fhir(bundle_of(REPORT))
    validate(report)
    assert not {"contained", "result"} & report.keys()


def test_what_is_contained_is_referred_to_and_the_other_way_round(bundle):
    report = to_fhir(bundle)
    known = [f"#{resource['id']}" for resource in report["contained"]]
    observations = [resource for resource in report["contained"] if resource["resourceType"] == "Observation"]
    used = {entry["reference"] for entry in report["result"]} | {o["device"]["reference"] for o in observations}
    assert used == set(known)
    assert len(known) == len(set(known))


def test_it_needs_no_other_package(bundle, monkeypatch):
    for name in ("fhir", "fhir.resources", "highdicom"):
        monkeypatch.setitem(sys.modules, name, None)
    assert to_fhir(bundle)["resourceType"] == "DiagnosticReport"


# ---- what it says


def test_the_conclusion_is_the_report_as_reviewed_and_so_is_what_is_presented(bundle):
    assert to_fhir(bundle)["conclusion"] == presented(to_fhir(bundle)) == REPORT
    reviewed = to_fhir(bundle.review(0, "rejected").review(1, "edited", "No effusion."))
    assert reviewed["conclusion"] == presented(reviewed) == "No effusion. No pneumothorax.\n\nCompare: 心臓 𝛼."


def test_what_the_model_concluded_does_not_stand_beside_what_a_person_did(bundle):
    assert "result" in to_fhir(bundle.review(0, "accepted"))
    signed = bundle
    for number in range(len(bundle.sentences)):
        signed = signed.review(number, "accepted")
    for decided in (bundle.review(1, "rejected"), bundle.review(1, "edited", "No effusion."), signed.sign("R")):
        report = to_fhir(decided)
        validate(report)
        assert not {"contained", "result"} & report.keys()


def test_an_observation_for_each_finding_that_the_classifier_lists(bundle):
    (_, effusion) = to_fhir(bundle)["contained"]
    assert effusion["code"]["text"] == "Pleural Effusion"
    assert effusion["code"]["coding"] == [
        {"system": "http://snomed.info/sct", "code": "60046008", "display": "Pleural effusion"}
    ]
    assert effusion["valueBoolean"] is True
    assert effusion["bodySite"] == {"text": "left costophrenic angle"}
    (component,) = effusion["component"]
    assert component["code"] == {"text": "Probability by the classifier"}
    assert (component["valueQuantity"]["value"], component["valueQuantity"]["code"]) == (91.2346, "%")
    (_, fracture) = to_fhir(bundle_of(REPORT, [{**FINDINGS[1], "present": True}]))["contained"]
    assert fracture["code"] == {"text": "Fracture"}  # no code that we could verify
    assert "bodySite" not in fracture


def test_it_names_the_model_and_says_that_it_is_research(bundle):
    report = to_fhir(bundle)
    device = report["contained"][0]
    assert (device["deviceName"][0]["name"], device["version"][0]["value"]) == ("gaze-vlm/nano", "0.1.0")
    assert device["note"] == [{"text": NOTICE}]


def test_the_narrative_shows_notice_model_and_report_and_no_text_breaks_out(bundle):
    div = ElementTree.fromstring(to_fhir(bundle)["text"]["div"])
    assert [element.text for element in div] == [NOTICE, "gaze-vlm/nano 0.1.0", REPORT]


def test_nothing_is_final_that_nobody_signed_off(bundle):
    report = to_fhir(bundle)
    assert report["status"] == "preliminary"
    assert [resource.get("status") for resource in report["contained"]] == [None, "preliminary"]
    assert "resultsInterpreter" not in report


def test_who_signed_off_makes_it_final(bundle):
    for number in range(len(bundle.sentences)):
        bundle = bundle.review(number, "accepted")
    report = to_fhir(bundle.sign("R. Adiologist", "2026-11-23T05:06+01:00"))
    validate(report)
    assert (report["status"], report["issued"]) == ("final", "2026-11-23T05:06:00+01:00")
    assert report["resultsInterpreter"] == [{"display": "R. Adiologist"}]


# ---- no patient in it


def test_no_patient_of_a_dicom_film_is_in_anything_that_is_not_dicom(save_dicom, tmp_path):
    path = tmp_path / "Doe_Jane_MRN4711.dcm"
    save_dicom(path, np.tile(np.arange(64, dtype=np.uint8), (48, 1)))
    source = dcmread(path)
    source.PatientName, source.PatientID, source.PatientBirthDate = "Doe^Jane", "MRN4711", "20000131"
    source.StudyInstanceUID, source.SeriesInstanceUID = "1.2.3.4", "1.2.3.4.5"
    source.save_as(path)
    film = read_film(path)
    image = {"name": film.path, "sha256": film.sha256, "width": film.size[0], "height": film.size[1]}
    report = to_fhir(bundle_of(REPORT, FINDINGS, image))
    bundle = bundle_of(REPORT, FINDINGS, {**image, "name": "film.dcm"})
    for text in (json.dumps(report), presented(report), bundle.to_json(), bundle.to_html(film.pixels)):
        assert not [word for word in ("Doe", "Jane", "MRN4711", "20000131", "1.2.3.4") if word in text]
    assert "subject" not in report


def test_the_subject_is_an_identifier_the_caller_gives(bundle):
    report = to_fhir(bundle, subject={"system": "urn:example", "value": "7"})
    validate(report)
    assert report["subject"] == {"type": "Patient", "identifier": {"system": "urn:example", "value": "7"}}


@pytest.mark.parametrize("subject", [{}, {"value": ""}, {"system": "urn:example"}, {"value": "7", "display": "Doe"}])
def test_a_subject_with_more_or_less_than_an_identifier_is_refused(bundle, subject):
    with pytest.raises(ValueError, match="must be an identifier"):
        to_fhir(bundle, subject=subject)


@pytest.mark.parametrize(("report", "problem"), [("Heart.\x00", r"character 6 is '\\x00'"), ("  ", "is empty")])
def test_a_report_that_fhir_cannot_hold_is_refused(report, problem):
    with pytest.raises(ValueError, match=problem):
        to_fhir(bundle_of(report))
