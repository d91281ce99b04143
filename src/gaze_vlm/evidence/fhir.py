"""A bundle as an HL7 FHIR R4 DiagnosticReport."""

from __future__ import annotations

import base64
import html
from datetime import datetime
from typing import Any

from .bundle import EvidenceBundle
from .dicom_sr import reported_text, standard_code

_SYSTEMS = {"SCT": "http://snomed.info/sct", "DCM": "http://dicom.nema.org/resources/ontology/DCM"}
_UNITS = "http://unitsofmeasure.org"
_TERMS = "http://terminology.hl7.org/CodeSystem"


def to_fhir(bundle: EvidenceBundle, *, subject: dict[str, str] | None = None) -> dict[str, Any]:
    """The bundle as a DiagnosticReport of FHIR R4 (4.0.1), ready for `json.dumps`.

    Its conclusion, and its presented form as plain text, is the report as reviewed. An Observation stands for each
    finding that the classifier lists: how probable is it in percent, and where; a Device names the model. Once a
    sentence was rejected or edited, or the report signed off, both are left out: they were the model's, and a person
    has decided.

    Nothing in it comes from a DICOM file, nor from the name of the film's file, which may be a patient's.

    In FHIR "final" means that a person with the authority to do so has verified the report, so it is "preliminary"
    until `bundle.sign_off` says who has. The Observations are the classifier's and stay preliminary.

    Args:
        subject: the patient as an Identifier, `{"system", "value"}` or `{"value"}`; None: left out.

    Raises:
        ValueError: if the report is empty or has a character that FHIR cannot hold, or for another `subject`.
    """
    text = reported_text(bundle)
    report = {
        "resourceType": "DiagnosticReport",
        "text": {"status": "generated", "div": _narrative(bundle, text)},
        "status": "final" if bundle.sign_off else "preliminary",
        "category": [_concept("Radiology", f"{_TERMS}/v2-0074", "RAD")],
        "code": _concept("Diagnostic imaging study", "http://loinc.org", "18748-4"),
        "conclusion": text,
        "presentedForm": [
            {"contentType": "text/plain; charset=utf-8", "data": base64.b64encode(text.encode()).decode()}
        ],
    }
    if (
        bundle.conclusions
    ):  # what is contained must be referred to: the device by the observations, these by the report
        observations = [_observation(finding, number) for number, finding in enumerate(bundle.conclusions, start=1)]
        report["contained"] = [_device(bundle), *observations]
        report["result"] = [{"reference": f"#{observation['id']}"} for observation in observations]
    if subject is not None:
        if not subject.get("value") or subject.keys() - {"system", "value"}:
            raise ValueError("subject must be an identifier: its value and, if need be, its system, nothing else")
        report["subject"] = {"type": "Patient", "identifier": dict(subject)}
    if bundle.sign_off:
        report["issued"] = datetime.fromisoformat(bundle.sign_off["signed_at"]).isoformat()
        report["resultsInterpreter"] = [{"display": bundle.sign_off["reviewer"]}]
    return report


def _narrative(bundle: EvidenceBundle, text: str) -> str:
    notice, author, text = (html.escape(part) for part in (bundle.notice, " ".join(bundle.model.values()), text))
    return f'<div xmlns="http://www.w3.org/1999/xhtml"><p>{notice}</p><p>{author}</p><pre>{text}</pre></div>'


def _observation(finding: dict[str, Any], number: int) -> dict[str, Any]:
    code = standard_code(finding["name"])
    probability = {"value": round(100 * finding["probability"], 4), "unit": "%", "system": _UNITS, "code": "%"}
    observation = {
        "resourceType": "Observation",
        "id": f"finding-{number}",
        "status": "preliminary",
        "category": [_concept("Imaging", f"{_TERMS}/observation-category", "imaging")],
        "code": {"text": finding["name"]},
        "valueBoolean": True,
        "device": {"reference": "#model"},
        "component": [{"code": {"text": "Probability by the classifier"}, "valueQuantity": probability}],
    }
    if code:
        coding = _concept(code.meaning, _SYSTEMS[code.scheme_designator], code.value)["coding"]
        observation["code"]["coding"] = coding
    if finding["regions"]:
        observation["bodySite"] = {"text": ", ".join(region["name"] for region in finding["regions"])}
    return observation


def _device(bundle: EvidenceBundle) -> dict[str, Any]:
    return {
        "resourceType": "Device",
        "id": "model",
        "manufacturer": "gaze_vlm",
        "deviceName": [{"name": bundle.model["name"], "type": "model-name"}],
        "type": {"text": "Software that writes chest X-ray reports"},
        "version": [{"value": bundle.model["version"]}],
        "note": [{"text": bundle.notice}],
    }


def _concept(display: str, system: str, code: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code, "display": display}]}
