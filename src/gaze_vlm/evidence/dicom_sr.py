"""A bundle as a DICOM structured report, and the report's text read back from one.

It is a Comprehensive SR with the title, headings and elements of a Basic Diagnostic Imaging Report (TID 2000), which
leaves no room for regions, so that no template is claimed. A Basic Text SR could hold the sentences, but neither
probabilities nor places on the film; TID 1500 holds measurements, and no sentence of a report.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..images import quiet
from .bundle import EvidenceBundle, EvidenceSentence

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.sr.coding import Code

SCHEME = "99GAZEVLM"
"""Coding scheme of what the standard's dictionary has no word for; the code of a finding is its name."""

_STANDARD = {
    "Cardiomegaly": ("SCT", "Cardiomegaly"),
    "Lung Opacity": ("DCM", "Opacity"),
    "Edema": ("SCT", "PulmonaryEdema"),
    "Pneumothorax": ("SCT", "Pneumothorax"),
    "Pleural Effusion": ("SCT", "PleuralEffusion"),
    "Infiltration": ("DCM", "Infiltrate"),
    "Mass": ("SCT", "Mass"),
    "Nodule": ("SCT", "Nodule"),
}
"""Finding -> scheme and keyword of pydicom's dictionary of codes (PS3.16), for those that it has."""

_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns")
_MAY_BE_EMPTY = (  # type 2 of the Patient and General Study modules
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
_NO_NAME, _LONGEST_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f\\]"), 63  # 64, of which one is for the caret
_NAME_RULE = f"must have 1 to {_LONGEST_NAME} characters, none of them a backslash or a control character"
_NO_TEXT = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_dicom_sr(bundle: EvidenceBundle, source: Dataset, *, organization: str | None = None) -> Dataset:
    """The bundle as a structured report on the DICOM film that it is about; `save_as` writes it to a file.

    It belongs to the patient and the study of `source` and is a series of its own. It holds, in this order: the
    notice; the whole report as reviewed; each of its sentences with its findings, the classifier's agreement in
    percent, and its regions and key frames as rectangles on the film in pixels; each finding that the classifier
    lists, with its probability in percent and its regions; the flags. Rejected sentences are left out; an edited one
    stands without evidence, which was that of other words, and with who edited it. Once a sentence was rejected or
    edited, or the report signed off, the classifier's findings and the flags are left out: they were the model's, and
    a person has decided.

    Without `bundle.sign_off` it is preliminary and unverified. Who signed is an observer beside the model. DICOM wants
    to know the organization of who verified a report, so one that was signed off is verified and final only if
    `organization` is given.

    Args:
        source: the film's data set; its pixels are not needed.
        organization: of the person in `bundle.sign_off`.

    Raises:
        ValueError: naming what the source lacks, its other size, or the report's character or the finding that DICOM
            cannot hold; also for an empty report, a reviewer or organization whose name cannot stand in DICOM, and an
            organization without who signed off. What the source says of the patient is not repeated.
        ImportError: without highdicom.
    """
    try:
        from highdicom import UID
        from highdicom.coding_schemes import CodingSchemeIdentificationItem
        from highdicom.sr import ComprehensiveSR
    except ImportError as error:
        raise ImportError('a DICOM structured report needs highdicom: pip install "gaze2report[dicom]"') from error

    verified = _verified(bundle, organization)
    with quiet():  # warnings and errors quote the patient's name and the like
        evidence = _check_source(bundle, source)
        content = _document(bundle, evidence)
        try:
            report = ComprehensiveSR(
                evidence=[evidence],
                content=content,
                series_instance_uid=UID(),
                series_number=1,
                sop_instance_uid=UID(),
                instance_number=1,
                manufacturer="gaze_vlm",
                manufacturer_model_name="gaze2report",
                software_versions=__version__,
                series_description="Chest X-ray report by a model, for research",
                content_qualification="RESEARCH",
                coding_schemes=[CodingSchemeIdentificationItem(designator=SCHEME, name="Findings of gaze_vlm")],
                is_complete=True,
                is_verified=bool(verified),
                is_final=bool(verified),
                specific_character_set="ISO_IR 192",
                **verified,
            )
        except Exception:  # highdicom and pydicom raise anything on what they do not expect
            raise _invalid() from None
    if verified:
        signed_at = datetime.fromisoformat(bundle.sign_off["signed_at"])
        report.VerifyingObserverSequence[0].VerificationDateTime = f"{signed_at:%Y%m%d%H%M%S%z}"
    return report


def sr_text(dataset: Dataset) -> str:
    """The whole report in a data set that `to_dicom_sr` made; ValueError if there is none.

    Spaces at its end do not count in DICOM and are not given back.
    """
    conclusion = _code("DCM", "Conclusion")
    for section in dataset.get("ContentSequence", ()):
        for item in section.get("ContentSequence", ()):
            for name in item.get("ConceptNameCodeSequence", ()):
                if name.get("CodeValue") == conclusion.value and "TextValue" in item:
                    return item.TextValue
    raise ValueError("the DICOM data set holds no report: a structured report with a conclusion is expected")


def reported_text(bundle: EvidenceBundle) -> str:
    """The report as reviewed, if DICOM and FHIR can hold it; else ValueError."""
    text = bundle.reviewed_report
    if not text:
        raise ValueError("the report is empty: there is nothing to file")
    if found := _NO_TEXT.search(text):
        raise ValueError(f"the report's character {found.start()} is {found[0]!r}, which DICOM and FHIR cannot hold")
    return text


def standard_code(finding: str) -> Code | None:
    """The code of a finding in pydicom's dictionary; None if it has none for it."""
    return _code(*_STANDARD[finding]) if finding in _STANDARD else None


def _code(scheme: str, keyword: str) -> Code:
    from pydicom.sr.codedict import codes

    return getattr(getattr(codes, scheme), keyword)


def _own_code(value: str, meaning: str | None = None) -> Code:
    from pydicom.sr.coding import Code

    if len(value) > 64 or "\\" in value:
        raise ValueError(f"the finding {value!r:.80} cannot be a code in DICOM: at most 64 characters, no backslash")
    return Code(value, SCHEME, meaning or value)


def _verified(bundle: EvidenceBundle, organization: str | None) -> dict[str, str]:
    """highdicom's arguments for who has verified the report; none if nobody has."""
    if organization is None:
        return {}
    if bundle.sign_off is None:
        raise ValueError("nobody has signed off, so that there is no organization to name")
    if not organization.strip() or _NO_NAME.search(organization) or len(organization) > _LONGEST_NAME:
        raise ValueError(f"the organization's name {_NAME_RULE}")
    return {
        "verifying_observer_name": _person_name(bundle.sign_off["reviewer"]),
        "verifying_organization": organization,
    }


def _person_name(name: str) -> str:
    """A reviewer's name as DICOM writes it, ValueError if it cannot."""
    if (
        not name.strip(" ^")
        or "=" in name
        or name.count("^") > 4
        or _NO_NAME.search(name)
        or len(name) > _LONGEST_NAME
    ):
        raise ValueError(f"the reviewer's name {_NAME_RULE}, and in a person's name no = and at most four ^")
    return name if "^" in name else f"{name}^"  # a caret ends the family name


def _person(name: str) -> list[Dataset]:
    """Items that say who observed something."""
    from highdicom import sr

    person = sr.PersonObserverIdentifyingAttributes(name=_person_name(name))
    context = sr.ObserverContext(observer_type=_code("DCM", "Person"), observer_identifying_attributes=person)
    return list(context)


def _check_source(bundle: EvidenceBundle, source: Dataset) -> Dataset:
    """The source with empty values where the standard allows them and the source has left them out."""
    from pydicom.uid import UID

    try:
        source = source[:0x7FE00000]  # a data set of its own, without the pixels
        # a value is read when it is asked for, and pydicom raises anything on a broken one
        values = {keyword: source.get(keyword) for keyword in (*_NEEDED, *_MAY_BE_EMPTY)}
    except Exception:
        raise _invalid() from None
    missing = [keyword for keyword in _NEEDED if not values[keyword]]
    if missing:
        raise ValueError(f"the DICOM source has no {', '.join(missing)}; a structured report cannot refer to it")
    *uids, rows, columns = (values[keyword] for keyword in _NEEDED)
    are_uids = all(isinstance(uid, str) and UID(uid).is_valid for uid in uids)
    if not (are_uids and isinstance(rows, int) and isinstance(columns, int)):
        raise _invalid()
    if UID(source.SOPClassUID).type != "SOP Class":
        raise ValueError(f"the DICOM source is of {source.SOPClassUID}, no class of the DICOM standard")
    film, size = (columns, rows), (bundle.image["width"], bundle.image["height"])
    if film != size:
        raise ValueError(f"DICOM source (width, height): {film}, evidence: {size}")
    for keyword in _MAY_BE_EMPTY:
        if keyword not in source:
            setattr(source, keyword, "")
    return source


def _invalid() -> ValueError:
    return ValueError("the DICOM source has a patient's or study's attribute of an invalid value")


# ---- the content tree


def _document(bundle: EvidenceBundle, source: Dataset) -> Dataset:
    from highdicom import sr

    model = bundle.model
    observer = sr.ObserverContext(
        observer_type=_code("DCM", "Device"),
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=_uid_of(model), name=model["name"], manufacturer_name="gaze_vlm", model_name=" ".join(model.values())
        ),
    )
    notice = _text(_code("DCM", "Comment"), bundle.notice)
    signed = _person(bundle.sign_off["reviewer"]) if bundle.sign_off else []
    report = _add(_text(_code("DCM", "Conclusion"), reported_text(bundle)), [_image(source, "INFERRED FROM")])
    flags = [] if bundle.is_decided else [flag["message"] for flag in bundle.flags]
    sections = (
        (_code("LN", "Conclusions"), [report]),
        (
            _code("LN", "Findings"),
            [item for s in bundle.sentences for item in _sentence(s, bundle, source)],
        ),
        (_own_code("classifier", "What the classifier found"), [_listed(f, source) for f in bundle.conclusions]),
        (_own_code("flags", "Disagreements"), [_text(_code("DCM", "Comment"), message) for message in flags]),
    )
    document = sr.ContainerContentItem(_code("LN", "DiagnosticImagingReport"))
    return _add(document, [*observer, *signed, notice, *(_section(name, items) for name, items in sections if items)])


def _sentence(sentence: EvidenceSentence, bundle: EvidenceBundle, source: Dataset) -> list[Dataset]:
    """The sentence's text with what it rests on; nothing for a rejected one."""
    if not sentence.stands:
        edit, reviewer = sentence.review["text"], sentence.review["reviewer"]
        return [_add(_text(_code("DCM", "Finding"), edit), _person(reviewer) if reviewer else [])] if edit else []
    properties = [_presence(finding["name"], finding["status"], "HAS PROPERTIES") for finding in sentence.findings]
    if sentence.confidence is not None:
        properties.append(_percent(_own_code("agreement", "Agreement of the classifier"), sentence.confidence))
    properties += [_region(region, source) for region in sentence.regions]
    key_frame = _own_code("key frame", f"Key frame of the {bundle.gaze} gaze")
    for frame in (bundle.key_frames[index] for index in sentence.key_frames):
        seconds = f"{frame['dwell']:.1f} s from second {frame['onset']:.1f} on"
        properties.append(_place(key_frame, seconds, frame["box"], source))
    return [_add(_text(_code("DCM", "Finding"), sentence.text), properties)]


def _listed(finding: dict[str, Any], source: Dataset) -> Dataset:
    """A finding that the classifier lists as present: how probable is it, and where."""
    item = _presence(finding["name"], "present", "CONTAINS")
    probability = _percent(_own_code("probability", "Probability by the classifier"), finding["probability"])
    return _add(item, [probability, *(_region(region, source) for region in finding["regions"])])


def _presence(finding: str, status: str, relationship: str) -> Dataset:
    from highdicom import sr

    answer = {"present": "Present", "absent": "Absent", "uncertain": "Undetermined"}[status]  # CID 240
    name = standard_code(finding) or _own_code(finding)
    return sr.CodeContentItem(name, _code("SCT", answer), relationship_type=relationship)


def _percent(name: Code, share: float) -> Dataset:
    from highdicom import sr

    return sr.NumContentItem(name, round(100 * share, 4), _code("UCUM", "Percent"), relationship_type="HAS PROPERTIES")


def _region(region: dict[str, Any], source: Dataset) -> Dataset:
    return _place(_code("SCT", "FindingSite"), region["name"], region["box"], source)


def _place(name: Code, text: str, box: list[float], source: Dataset) -> Dataset:
    """A text and its box, a closed polyline in pixels: 0, 0 is the film's upper left corner."""
    from highdicom import sr

    x1, y1, x2, y2 = np.array(box) * np.tile([source.Columns, source.Rows], 2)
    corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]])
    polyline = sr.ScoordContentItem(
        _code("DCM", "ImageRegion"), "POLYLINE", corners, relationship_type="INFERRED FROM"
    )
    _add(polyline, [_image(source, "SELECTED FROM")])
    return _add(_text(name, text, "HAS PROPERTIES"), [polyline])


def _image(source: Dataset, relationship: str) -> Dataset:
    from highdicom import sr

    return sr.ImageContentItem(
        _code("DCM", "OriginalSource"), source.SOPClassUID, source.SOPInstanceUID, relationship_type=relationship
    )


def _section(name: Code, items: Iterable[Dataset]) -> Dataset:
    from highdicom import sr

    section = sr.ContainerContentItem(name, is_content_continuous=False, relationship_type="CONTAINS")
    return _add(section, items)


def _text(name: Code, text: str, relationship: str = "CONTAINS") -> Dataset:
    from highdicom import sr

    return sr.TextContentItem(name, text, relationship_type=relationship)


def _add(item: Dataset, children: Iterable[Dataset]) -> Dataset:
    from highdicom import sr

    if children := list(children):
        item.ContentSequence = sr.ContentSequence(children)
    return item


def _uid_of(model: dict[str, str]) -> str:
    """A UID that is the same for the same name and version."""
    from pydicom.uid import generate_uid

    return generate_uid(entropy_srcs=[model["name"], "\n", model["version"]])
